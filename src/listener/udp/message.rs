//! DNS on the wire (RFC 1035 §4): a datagram in, the one question in it out; answers in, a datagram out.
//!
//! Names are read and records written by hickory. The header is read here, for a query that is cut off in it is
//! answered all the same, as Envoy does.

use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record};
use hickory_resolver::proto::serialize::binary::{
    BinDecodable, BinDecoder, BinEncodable, BinEncoder, NameEncoding,
};
use std::net::IpAddr;

/// Types of records that are answered.
pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_AAAA: u16 = 28;
pub(super) const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;

/// Most answers of a response, as in Envoy.
const MAX_ANSWERS: usize = 8;
/// Longest response: what a client without EDNS takes. Envoy counts four of the header's twelve bytes.
const MAX_RESPONSE: usize = 512;
const COUNTED_HEADER: usize = 4;

// The header's second word (RFC 1035 §4.1.1).
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;

/// What comes back with an answer (RFC 1035 §4.1.1, `RCODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Code {
    NoError = 0,
    FormatError = 1,
    NameError = 3,
    NotImplemented = 4,
}

/// What of a query's header its response repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    id: u16,
    flags: u16,
}

impl Head {
    /// Whether it says of itself that it answers a query.
    pub(super) fn is_response(self) -> bool {
        self.flags & RESPONSE != 0
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The name as it came.
    pub(super) name: Name,
    /// The name as text, with its odd bytes escaped.
    pub(super) text: String,
    /// Type of the records.
    pub(super) kind: u16,
    /// It has records of its own, such as EDNS options, which are not looked at.
    pub(super) has_more: bool,
}

/// Why a datagram is no query that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It ends within the header.
    Short,
    /// It is a response, or has answers or authorities.
    Answered,
    /// It has no question, or several.
    Questions,
    /// Its question cannot be read, or is not of the Internet's class.
    Question,
}

/// Reads a datagram.
pub(super) fn parse(datagram: &[u8]) -> (Head, Result<Question, Malformed>) {
    let words = |at: usize| datagram.get(2 * at..2 * at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let head = Head { id: words(0).unwrap_or(0), flags: words(1).unwrap_or(0) };
    let counts = [words(2), words(3), words(4), words(5)];
    let [Some(questions), Some(answers), Some(authorities), Some(additional)] = counts else {
        return (head, Err(Malformed::Short));
    };
    if head.is_response() || answers != 0 || authorities != 0 {
        return (head, Err(Malformed::Answered));
    }
    if questions != 1 {
        return (head, Err(Malformed::Questions));
    }
    (head, question(datagram, additional > 0).ok_or(Malformed::Question))
}

fn question(datagram: &[u8], has_more: bool) -> Option<Question> {
    let mut decoder = BinDecoder::new(datagram);
    // The header.
    decoder.read_slice(12).ok()?;
    let name = Name::read(&mut decoder).ok()?;
    let kind = decoder.read_u16().ok()?.unverified();
    let class = decoder.read_u16().ok()?.unverified();
    if name.is_root() || class != CLASS_IN {
        return None;
    }
    Some(Question { text: text(&name), name, kind, has_more })
}

/// A name with escapes for what is not part of ordinary names, so that no two names read alike.
fn text(name: &Name) -> String {
    let mut text = String::new();
    for (index, label) in name.iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'"' | b'.' | b';' | b'\\' | b'(' | b')' | b'@' | b'$' => {
                    text.extend(['\\', char::from(byte)]);
                }
                0x21..=0x7e => text.push(char::from(byte)),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
    }
    text
}

/// A name in a table or of a cluster, as records have it. `None` when a label or all of it is too long.
pub(super) fn name(text: &str) -> Option<Name> {
    Name::from_labels(text.split('.').map(str::as_bytes)).ok()
}

/// A record of an address; `None` when it is not of the type that is asked for.
pub(super) fn address(name: &Name, kind: u16, ttl: u32, address: IpAddr) -> Option<Record> {
    let data = match (address, kind) {
        (IpAddr::V4(ip), TYPE_A) => RData::A(A(ip)),
        (IpAddr::V6(ip), TYPE_AAAA) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), ttl, data))
}

/// The type of an address' record.
pub(super) fn kind_of(address: IpAddr) -> u16 {
    if address.is_ipv4() {
        TYPE_A
    } else {
        TYPE_AAAA
    }
}

/// A record of who offers a service: priority, weight and port.
pub(super) fn service(name: &Name, ttl: u32, [priority, weight, port]: [u16; 3], target: Name) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::SRV(SRV::new(priority, weight, port, target)))
}

/// What answers a question.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) record: Record,
    /// An address of what the answer names, which goes with it.
    pub(super) additional: Option<Record>,
}

impl From<Record> for Answer {
    fn from(record: Record) -> Self {
        Self { record, additional: None }
    }
}

/// The response to a query, and its code. `forwards`: names that are not known here are asked for elsewhere. `start`:
/// which answer is the first, where there are more than fit.
pub(super) fn response(
    head: Head,
    question: Option<&Question>,
    answers: &[Answer],
    forwards: bool,
    start: usize,
) -> (Vec<u8>, Code) {
    let mut asked = Vec::new();
    let mut answered = Vec::new();
    let mut added = Vec::new();
    let (mut answer_count, mut added_count) = (0_u16, 0_u16);
    if let Some(question) = question {
        // A name that was read can be written.
        let _ = encode(&question.name, &mut asked);
        asked.extend(question.kind.to_be_bytes());
        asked.extend(CLASS_IN.to_be_bytes());
    }
    let mut length = COUNTED_HEADER + asked.len();
    let first = if answers.len() > MAX_ANSWERS { start % answers.len() } else { 0 };
    let (behind, before) = answers.split_at(first);
    for answer in before.iter().chain(behind).take(MAX_ANSWERS) {
        let (mut record, mut additional) = (Vec::new(), Vec::new());
        let fits = encode(&answer.record, &mut record)
            && answer.additional.as_ref().is_none_or(|more| encode(more, &mut additional));
        if !fits {
            continue;
        }
        length += record.len() + additional.len();
        if length > MAX_RESPONSE {
            break;
        }
        answered.append(&mut record);
        answer_count += 1;
        added_count += u16::from(!additional.is_empty());
        added.append(&mut additional);
    }
    let code = match question.map(|question| question.kind) {
        None => Code::FormatError,
        Some(TYPE_A | TYPE_AAAA | TYPE_SRV) if answer_count > 0 => Code::NoError,
        Some(TYPE_A | TYPE_AAAA | TYPE_SRV) => Code::NameError,
        Some(_) => Code::NotImplemented,
    };
    let available = if forwards { RECURSION_AVAILABLE } else { 0 };
    let repeated = head.flags & (OPCODE | RECURSION_DESIRED);
    let flags = RESPONSE | repeated | available | u16::from(code as u8);
    let header = [head.id, flags, u16::from(question.is_some()), answer_count, 0, added_count];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.append(&mut asked);
    bytes.append(&mut answered);
    bytes.append(&mut added);
    (bytes, code)
}

/// Writes without compression, as Envoy does: what fits is then the same.
fn encode(what: &impl BinEncodable, into: &mut Vec<u8>) -> bool {
    let mut encoder = BinEncoder::new(into);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    what.emit(&mut encoder).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8], kind: u16) -> Vec<u8> {
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    #[test]
    fn odd_bytes_of_a_name_are_escaped() {
        let (_, question) = parse(&query(b"\x03a.b\x03\0\xff \x01A\0", TYPE_A));
        assert_eq!(question.unwrap().text, r"a\.b.\000\255\032.A");
    }

    #[test]
    fn every_beginning_of_a_query_is_answered_with_a_format_error() {
        let whole = query(b"\x01a\x07example\x03com\0", TYPE_A);
        for length in 0..whole.len() {
            let (head, question) = parse(&whole[..length]);
            let wanted = if length < 12 { Malformed::Short } else { Malformed::Question };
            assert_eq!(question.unwrap_err(), wanted, "{length} bytes");
            let (bytes, code) = response(head, None, &[], false, 0);
            assert_eq!((bytes.len(), code), (12, Code::FormatError));
        }
    }

    #[test]
    fn a_name_that_points_to_itself_is_no_name() {
        for name in [b"\xc0\x0c".as_slice(), b"\x01a\xc0\x0c", b"\xc0\xff", b"\x40a", b"\xc0"] {
            assert_eq!(parse(&query(name, TYPE_A)).1.unwrap_err(), Malformed::Question, "{name:?}");
        }
    }

    #[test]
    fn datagrams_of_any_bytes_are_read_without_a_panic() {
        let mut rng = fastrand::Rng::with_seed(9);
        for _ in 0..50_000 {
            let mut bytes: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
            // Past the header, mostly.
            for (byte, value) in bytes.iter_mut().skip(2).zip([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) {
                *byte = value;
            }
            let (head, question) = parse(&bytes);
            let (bytes, _) = response(head, question.ok().as_ref(), &[], true, 0);
            assert!(bytes.len() >= 12);
        }
    }

    #[test]
    fn a_response_has_what_fits() {
        let long = "a-label-that-takes-room.".repeat(5) + "example.com";
        let name = name(&long).unwrap();
        let mut asked = Vec::new();
        assert!(encode(&name, &mut asked));
        let (head, question) = parse(&query(&asked, TYPE_A));
        let record = |last| address(&name, TYPE_A, 300, IpAddr::from([10, 0, 0, last])).unwrap().into();
        let answers: Vec<Answer> = (0..9).map(record).collect();
        let (bytes, code) = response(head, question.ok().as_ref(), &answers, false, 8);
        assert_eq!((code, bytes[7]), (Code::NoError, 2));
        // The first of them is the last of the list.
        let first = 12 + asked.len() + 4 + asked.len() + 10;
        assert_eq!(bytes[first..first + 4], [10, 0, 0, 8]);
    }
}
