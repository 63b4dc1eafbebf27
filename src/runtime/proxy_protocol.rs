//! The PROXY protocol, versions 1 and 2: what a connection's first bytes say of where it really comes from, and
//! the same bytes for an upstream that wants to be told.
//!
//! Comes in: everything received so far, again each time there is more. Goes out: a [`Verdict`]. What is refused is
//! what Envoy 1.40 refuses, and spellings that the specification does not know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Both ends of a connection as the header tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// Where it meant to go.
    pub destination: SocketAddr,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So far the beginning of a header.
    NeedMore,
    /// No header.
    Absent,
    /// A whole header.
    Header(Header),
}

/// A header.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// Its version.
    pub version: Version,
    /// Its length in bytes.
    pub length: usize,
    /// Whose connection it is; `None`: the sender's own.
    pub ends: Option<Ends>,
    /// Where the bytes of its type-length-value fields are.
    pub fields: Range<usize>,
}

/// Bytes that begin as a header and are none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PROXY protocol's {version:?} header {what}")]
pub struct Malformed {
    /// As what it began.
    pub version: Version,
    /// It is a line that does not end: to Envoy no header at all.
    pub endless: bool,
    what: &'static str,
}

const SIGNATURE_V1: &[u8] = b"PROXY ";
const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line: 107 bytes as the specification counts, and the NUL that Envoy makes room for.
const MAX_V1: usize = 108;
/// Signature, version and command, family and transport, length.
const HEAD_V2: usize = 16;
const V4_LENGTH: usize = 12;
const V6_LENGTH: usize = 36;

/// Looks at `bytes`: everything received so far.
///
/// # Errors
/// They begin as a header does and go on as none does.
pub fn look(bytes: &[u8]) -> Result<Verdict, Malformed> {
    if begins(bytes, SIGNATURE_V2) {
        return if bytes.len() < HEAD_V2 { Ok(Verdict::NeedMore) } else { look_v2(bytes) };
    }
    if begins(bytes, SIGNATURE_V1) {
        return if bytes.len() < SIGNATURE_V1.len() { Ok(Verdict::NeedMore) } else { look_v1(bytes) };
    }
    Ok(Verdict::Absent)
}

/// Whether the shorter of both is how the longer begins.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(one, other)| one == other)
}

fn look_v1(bytes: &[u8]) -> Result<Verdict, Malformed> {
    let malformed = |what| Malformed { version: Version::V1, endless: false, what };
    let within = bytes.get(..MAX_V1).unwrap_or(bytes);
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        let endless = Malformed { endless: true, ..malformed("has no end") };
        return if bytes.len() < MAX_V1 { Ok(Verdict::NeedMore) } else { Err(endless) };
    };
    let line = within.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or_else(|| malformed("is no text"))?;
    let header = |ends| {
        let length = end + 2;
        Verdict::Header(Header { version: Version::V1, length, ends, fields: length..length })
    };
    let words: Vec<&str> = line.split(' ').collect();
    let (is_v4, rest) = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Ok(header(None)),
        ["PROXY", "TCP4", rest @ ..] => (true, rest),
        ["PROXY", "TCP6", rest @ ..] => (false, rest),
        _ => return Err(malformed("names no protocol that is known")),
    };
    let [source, destination, source_port, destination_port] = rest else {
        return Err(malformed("has not two addresses and two ports"));
    };
    let end_of = |ip: &str, port: &str| {
        let ip: IpAddr = ip.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == is_v4)?;
        let plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        Some(SocketAddr::new(ip, port.parse().ok().filter(|_| plain)?))
    };
    match (end_of(source, source_port), end_of(destination, destination_port)) {
        (Some(source), Some(destination)) => Ok(header(Some(Ends { source, destination }))),
        _ => Err(malformed("has an address or a port that is none")),
    }
}

fn look_v2(bytes: &[u8]) -> Result<Verdict, Malformed> {
    let malformed = |what| Malformed { version: Version::V2, endless: false, what };
    let &[command, family, high, low] = bytes.get(12..HEAD_V2).unwrap_or_default() else {
        return Ok(Verdict::NeedMore);
    };
    let length = HEAD_V2 + usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 {
        return Err(malformed("has another version"));
    }
    let local = match command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(malformed("has an unknown command")),
    };
    let needed = match (local, family >> 4, family & 0xf) {
        (true, ..) => 0,
        (false, 1, 1 | 2) => V4_LENGTH,
        (false, 2, 1 | 2) => V6_LENGTH,
        _ => return Err(malformed("has an address family or transport that is not supported")),
    };
    if length < HEAD_V2 + needed {
        return Err(malformed("is too short for its addresses"));
    }
    let Some(body) = bytes.get(HEAD_V2..length) else {
        return Ok(Verdict::NeedMore);
    };
    let ends = match needed {
        V4_LENGTH => ends::<4>(body).map(|(source, destination, ports)| {
            (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into(), ports)
        }),
        V6_LENGTH => ends::<16>(body).map(|(source, destination, ports)| {
            (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), ports)
        }),
        _ => None,
    };
    let ends = ends.map(|(source, destination, [from, to]): (IpAddr, IpAddr, [u16; 2])| Ends {
        source: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
    });
    // What a connection of the sender's own may carry is passed over.
    let fields = if local { length..length } else { HEAD_V2 + needed..length };
    Ok(Verdict::Header(Header { version: Version::V2, length, ends, fields }))
}

type RawEnds<const N: usize> = ([u8; N], [u8; N], [u16; 2]);

/// Two addresses of `N` bytes and two ports.
fn ends<const N: usize>(body: &[u8]) -> Option<RawEnds<N>> {
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let &[a, b, c, d] = rest.first_chunk::<4>()?;
    Some((*source, *destination, [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]))
}

/// The type-length-value fields in `bytes`, up to the first that is cut off.
pub fn fields(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let &[kind, high, low, ref after @ ..] = rest else { return None };
        let (value, next) = after.split_at_checked(u16::from_be_bytes([high, low]).into())?;
        rest = next;
        Some((kind, value))
    })
}

/// Whether `bytes` are nothing but type-length-value fields.
pub fn are_fields(bytes: &[u8]) -> bool {
    fields(bytes).map(|(_, value)| value.len() + 3).sum::<usize>() == bytes.len()
}

/// A header that tells an upstream of a connection with these ends; `None`, and ends of two families, make it one
/// of our own.
pub fn write(version: Version, ends: Option<Ends>) -> Vec<u8> {
    let same = |ends: &Ends| ends.source.is_ipv4() == ends.destination.is_ipv4();
    let ends = ends.filter(same);
    let mut out = Vec::with_capacity(MAX_V1);
    match (version, ends) {
        (Version::V1, None) => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        (Version::V1, Some(Ends { source, destination })) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
            out.extend_from_slice(line.as_bytes());
        }
        (Version::V2, None) => {
            out.extend_from_slice(SIGNATURE_V2);
            out.extend_from_slice(&[0x20, 0, 0, 0]);
        }
        (Version::V2, Some(Ends { source, destination })) => {
            out.extend_from_slice(SIGNATURE_V2);
            let (family, length) = if source.is_ipv4() { (0x11, V4_LENGTH) } else { (0x21, V6_LENGTH) };
            out.extend_from_slice(&[0x21, family, 0, length as u8]);
            for ip in [source.ip(), destination.ip()] {
                match ip {
                    IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
                }
            }
            out.extend_from_slice(&source.port().to_be_bytes());
            out.extend_from_slice(&destination.port().to_be_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_read_byte_by_byte() {
        let cases =
            [Some(ends("10.0.0.1:1234", "10.0.0.2:80")), Some(ends("[2001:db8::1]:65535", "[::1]:1")), None];
        for version in [Version::V1, Version::V2] {
            for ends in cases {
                let header = write(version, ends);
                let bytes = [header.as_slice(), b"rest"].concat();
                for cut in 0..header.len() {
                    assert_eq!(look(&bytes[..cut]), Ok(Verdict::NeedMore), "{version:?} {ends:?} {cut}");
                }
                let Ok(Verdict::Header(found)) = look(&bytes) else { panic!("{version:?} {ends:?}") };
                assert_eq!((found.version, found.length, found.ends), (version, header.len(), ends));
            }
        }
        assert_eq!(write(Version::V1, Some(ends("1.1.1.1:1", "[::1]:1"))), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn lines_that_are_none() {
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        for line in [
            "PROXY \r\n",
            "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            "PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n",
            "PROXY TCP4 ::1 2.2.2.2 1 2\r\n",
            "PROXY TCP6 ::1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
            "PROXY TCP4 a b c d\r\n",
            long.as_str(),
        ] {
            assert!(look(line.as_bytes()).is_err(), "{line}");
        }
        assert!(matches!(
            look(b"PROXY UNKNOWN what ever\r\n"),
            Ok(Verdict::Header(Header { ends: None, .. }))
        ));
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PROXX", b"\r\n\r\nX", b"\x16\x03\x01"] {
            assert_eq!(look(bytes), Ok(Verdict::Absent));
        }
    }

    #[test]
    fn binary_headers_that_are_none_and_their_fields() {
        let with = |tail: &[u8]| [SIGNATURE_V2, tail].concat();
        for tail in [
            &[0x11, 0x11, 0, 12][..],
            &[0x22, 0x11, 0, 12],
            &[0x21, 0x01, 0, 12],
            &[0x21, 0x31, 0, 216],
            &[0x21, 0x10, 0, 12],
            &[0x21, 0x11, 0, 11],
            &[0x21, 0x21, 0, 35],
        ] {
            assert!(look(&with(tail)).is_err(), "{tail:?}");
        }
        let mut header = write(Version::V2, Some(ends("10.0.0.1:1234", "10.0.0.2:80")));
        header[15] += 3 + 2 + 3;
        header.extend_from_slice(&[0xea, 0, 2, b'h', b'i', 0xe0, 0, 9]);
        let Ok(Verdict::Header(found)) = look(&header) else { panic!() };
        assert_eq!(found.length, header.len());
        let list: Vec<_> = fields(&header[found.fields]).collect();
        assert_eq!(list, [(0xea, &b"hi"[..])]);
        assert!(are_fields(&header[28..33]) && are_fields(b"") && !are_fields(&header[28..]));
        // A health check of the sender.
        let local = with(&[0x20, 0, 0, 2, 9, 9]);
        let Ok(Verdict::Header(found)) = look(&local) else { panic!() };
        assert_eq!((found.ends, found.length, found.fields.is_empty()), (None, 18, true));
    }
}
