//! Header blocks, looked through before the `h2` crate decodes them.
//!
//! Comes in: a header block (RFC 7541). Goes out: whether it may pass. The crate takes a name or a value that HTTP
//! does not allow for an error of the whole connection, and has then lost its place in the compression; but it is
//! an error of one stream (RFC 9113 §8.1.1). So a block with such a field is exchanged for one that changes the
//! dynamic table in the same way, without the field's bytes, and that the crate answers by resetting the stream. A
//! block of more fields than allowed is exchanged too, before it becomes large.
//!
//! Only what cannot be seen in the coded form is decoded: names that are new, and values that may have forbidden
//! bytes in them. Of the dynamic table nothing is kept but what each entry is good for.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::huffman;
use crate::config::token::is_token;

/// Whose blocks they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Requests.
    Server,
    /// Responses.
    Client,
}

/// What a field's name says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Regular,
    Method,
    /// `:scheme`, `:authority`, `:path`, `:protocol`.
    Visible,
    Status,
    /// No block with it is good.
    Bad,
}

impl Name {
    fn of_static(index: u64) -> Self {
        match index {
            1 | 4..=7 => Self::Visible,
            2 | 3 => Self::Method,
            8..=14 => Self::Status,
            _ => Self::Regular,
        }
    }

    fn of_literal(name: &[u8]) -> Self {
        if name.first().is_some_and(|first| *first != b':') && name.iter().all(|byte| is_lower_token(*byte)) {
            return Self::Regular;
        }
        match name {
            b":method" => Self::Method,
            b":scheme" | b":authority" | b":path" | b":protocol" => Self::Visible,
            b":status" => Self::Status,
            _ => Self::Bad,
        }
    }
}

fn is_lower_token(byte: u8) -> bool {
    is_token(byte) && !byte.is_ascii_uppercase()
}

/// What is to be done with a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Good,
    /// This one goes in its place.
    Exchanged(Vec<u8>, Why),
    /// The compression is broken: an error of the connection.
    Broken,
}

/// Why a block does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A name or value that HTTP does not allow.
    Malformed,
    /// More fields than allowed.
    TooMany,
    /// Trailers that are a request: of a stream that is over.
    Request,
}

/// A field that the crate answers with a stream error: `connection: x`, entering no table.
pub const POISON: &[u8] = b"\x00\x0aconnection\x01x";

/// An entry is at least so large (RFC 7541 §4.1).
const ENTRY: usize = 32;
const STATIC_ENTRIES: u64 = 61;

/// Looks through the blocks of one direction of a connection.
#[derive(Debug)]
pub struct Screen {
    side: Side,
    max_fields: usize,
    /// The names of the dynamic table's entries, newest first; some of the last may be gone already.
    entries: VecDeque<Name>,
    most_entries: usize,
    table_size: u64,
}

/// One field or instruction, as it is coded.
enum Coded<'a> {
    Indexed(u64),
    Literal { inserts: bool, name: NameOf<'a>, value: Text<'a> },
    Size(u64),
}

enum NameOf<'a> {
    Index(u64),
    Text(Text<'a>),
}

#[derive(Clone, Copy)]
struct Text<'a> {
    coded: bool,
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    fn decoded(self) -> Option<Cow<'a, [u8]>> {
        if self.coded {
            huffman::decode(self.bytes).map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(self.bytes))
        }
    }

    /// Whether a value is good for such a name; `None` when its code is broken.
    fn is_good(self, name: Name) -> Option<bool> {
        let value = |bytes: &[u8]| match name {
            Name::Regular => {
                // Without leaving early: most are good, and so it is done many bytes at a time.
                bytes
                    .iter()
                    .fold(true, |good, byte| good & ((*byte >= 32 && *byte != 127) | (*byte == b'\t')))
            }
            Name::Method => !bytes.is_empty() && bytes.iter().all(|byte| is_token(*byte)),
            Name::Visible => bytes.iter().all(u8::is_ascii_graphic),
            Name::Status => matches!(bytes, [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9']),
            Name::Bad => false,
        };
        if !self.coded {
            return Some(value(self.bytes));
        }
        // A space or a comma in a path is somebody else's to find.
        if matches!(name, Name::Regular | Name::Visible) && !huffman::is_suspect(self.bytes) {
            return Some(true);
        }
        huffman::decode(self.bytes).map(|bytes| value(&bytes))
    }
}

impl Screen {
    /// `table_size` is what we let the peer's table be, `max_fields` how many regular fields a block may have.
    pub fn new(side: Side, table_size: usize, max_fields: usize) -> Self {
        let most_entries = table_size / ENTRY + 1;
        let table_size = (table_size as u64).max(4096);
        // Pseudo fields, and one more so that the exact limit is left to who counts exactly.
        let max_fields = max_fields.saturating_add(7);
        Self { side, max_fields, entries: VecDeque::new(), most_entries, table_size }
    }

    /// Looks through a block. `trailers` says that it is certain that it has trailers.
    pub fn look(&mut self, block: &[u8], trailers: bool) -> Verdict {
        let mut rest = block;
        let (mut fields, mut bad, mut method) = (0, false, false);
        let before = self.entries.len();
        let mut inserted = 0;
        while !rest.is_empty() {
            let Some(coded) = next(&mut rest) else { return Verdict::Broken };
            match coded {
                // At most twice, and first (RFC 7541 §4.2).
                Coded::Size(size) if fields == 0 && size <= self.table_size => {}
                Coded::Size(_) => return Verdict::Broken,
                Coded::Indexed(index) => {
                    fields += 1;
                    let Some(name) = self.name(index) else { return Verdict::Broken };
                    method |= name == Name::Method;
                    bad |= self.is_bad(name, trailers);
                }
                Coded::Literal { inserts, name, value } => {
                    fields += 1;
                    let name = match name {
                        NameOf::Index(index) => self.name(index),
                        NameOf::Text(text) => text.decoded().map(|name| Name::of_literal(&name)),
                    };
                    let Some(name) = name else { return Verdict::Broken };
                    let Some(good) = value.is_good(name) else { return Verdict::Broken };
                    method |= name == Name::Method;
                    bad |= !good || self.is_bad(name, trailers);
                    if inserts {
                        inserted += 1;
                        self.entries.truncate(self.most_entries.saturating_sub(1));
                        // What is not good is bad for who refers to it later, too.
                        self.entries.push_front(if good { name } else { Name::Bad });
                    }
                }
            }
        }
        let why = match fields {
            fields if fields > self.max_fields => Why::TooMany,
            _ if method && trailers => Why::Request,
            _ => Why::Malformed,
        };
        if !bad && why == Why::Malformed {
            return Verdict::Good;
        }
        // As it was when the block began.
        let begun = self.entries.iter().skip(inserted).copied().take(before).collect();
        exchange(block, begun, self.most_entries)
            .map_or(Verdict::Broken, |block| Verdict::Exchanged(block, why))
    }

    fn name(&self, index: u64) -> Option<Name> {
        name_at(&self.entries, index)
    }

    fn is_bad(&self, name: Name, trailers: bool) -> bool {
        match name {
            Name::Regular => false,
            Name::Bad => true,
            Name::Status => trailers || self.side == Side::Server,
            Name::Method | Name::Visible => trailers || self.side == Side::Client,
        }
    }
}

fn name_at(entries: &VecDeque<Name>, index: u64) -> Option<Name> {
    if index == 0 {
        return None;
    }
    match index.checked_sub(STATIC_ENTRIES + 1) {
        None => Some(Name::of_static(index)),
        Some(index) => entries.get(usize::try_from(index).ok()?).copied(),
    }
}

/// The block's changes of the table, with harmless bytes where they were bad, and [`POISON`].
fn exchange(block: &[u8], mut entries: VecDeque<Name>, most_entries: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    let mut rest = block;
    while !rest.is_empty() {
        let whole = rest;
        match next(&mut rest)? {
            Coded::Size(_) => out.extend_from_slice(whole.get(..whole.len() - rest.len())?),
            Coded::Literal { inserts: true, name, value } => {
                let (kind, literal) = match name {
                    NameOf::Index(index) => (name_at(&entries, index)?, None),
                    NameOf::Text(text) => {
                        let text = text.decoded()?;
                        (Name::of_literal(&text), Some(text))
                    }
                };
                let good = value.is_good(kind)?;
                if good && kind != Name::Bad {
                    out.extend_from_slice(whole.get(..whole.len() - rest.len())?);
                } else {
                    let mut length = value.decoded()?.len();
                    // An entry of the same size, since sizes decide what leaves the table. As a pseudo field, or
                    // under a name that is bad, no bytes would be harmless.
                    let name = match (literal, name_length(kind)) {
                        (Some(name), _) => name.len(),
                        (None, Some(length)) => length,
                        (None, None) => 0,
                    };
                    match (name, literal_index(whole, kind)) {
                        (0, Some(head)) => out.extend_from_slice(head),
                        (0, None) => {
                            length = length.checked_sub(1)?;
                            string(&mut out, 0x40, 1);
                        }
                        (name, _) => string(&mut out, 0x40, name),
                    }
                    plain(&mut out, length);
                }
                entries.truncate(most_entries.saturating_sub(1));
                entries.push_front(if good { kind } else { Name::Bad });
            }
            Coded::Indexed(_) | Coded::Literal { .. } => {}
        }
    }
    out.extend_from_slice(POISON);
    Some(out)
}

/// Length of a name that has one length only.
fn name_length(kind: Name) -> Option<usize> {
    match kind {
        Name::Method | Name::Status => Some(b":method".len()),
        _ => None,
    }
}

/// The coded index of the name, where it may stay: any bytes are allowed in the value after it.
fn literal_index(whole: &[u8], kind: Name) -> Option<&[u8]> {
    if !matches!(kind, Name::Regular | Name::Visible | Name::Bad) {
        return None;
    }
    let mut rest = whole;
    let index = integer(&mut rest, 6)?;
    (index != 0).then(|| whole.get(..whole.len() - rest.len()))?
}

/// A literal's name of so many harmless bytes, after the byte that says what it is.
fn string(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    plain(out, length);
}

fn plain(out: &mut Vec<u8>, length: usize) {
    let mut left = length;
    if left < 127 {
        // Below seven bits.
        out.push(left as u8);
    } else {
        out.push(127);
        left -= 127;
        while left >= 128 {
            out.push((left % 128) as u8 | 128);
            left /= 128;
        }
        out.push(left as u8);
    }
    out.resize(out.len() + length, b'x');
}

/// The next field or instruction; `None` when it is cut off or none.
#[inline]
fn next<'a>(rest: &mut &'a [u8]) -> Option<Coded<'a>> {
    let first = *rest.first()?;
    if first & 0x80 != 0 {
        return Some(Coded::Indexed(integer(rest, 7)?));
    }
    if first & 0xe0 == 0x20 {
        return Some(Coded::Size(integer(rest, 5)?));
    }
    let inserts = first & 0x40 != 0;
    let name = match integer(rest, if inserts { 6 } else { 4 })? {
        0 => NameOf::Text(text(rest)?),
        index => NameOf::Index(index),
    };
    Some(Coded::Literal { inserts, name, value: text(rest)? })
}

#[inline]
fn text<'a>(rest: &mut &'a [u8]) -> Option<Text<'a>> {
    let coded = *rest.first()? & 0x80 != 0;
    let length = usize::try_from(integer(rest, 7)?).ok()?;
    if length > rest.len() {
        return None;
    }
    let (bytes, after) = rest.split_at(length);
    *rest = after;
    Some(Text { coded, bytes })
}

/// RFC 7541 §5.1; at most four bytes after the first.
#[inline]
fn integer(rest: &mut &[u8], prefix: u32) -> Option<u64> {
    let most = (1u64 << prefix) - 1;
    let (first, after) = rest.split_first()?;
    let value = u64::from(*first) & most;
    *rest = after;
    if value < most {
        return Some(value);
    }
    long_integer(rest, value)
}

/// The bytes after a first one that was full.
fn long_integer(rest: &mut &[u8], mut value: u64) -> Option<u64> {
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value += u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen() -> Screen {
        Screen::new(Side::Server, 4096, 100)
    }

    fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = vec![first, name.len() as u8];
        out.extend_from_slice(name);
        out.push(value.len() as u8);
        out.extend_from_slice(value);
        out
    }

    #[test]
    fn good_blocks_pass() {
        // RFC 7541 C.4.1 to C.4.3, one after another.
        let mut screen = screen();
        let blocks: [&[u8]; 3] = [
            &[
                0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90,
                0xf4, 0xff,
            ],
            &[0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf],
            &[
                0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0x89,
                0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
            ],
        ];
        for block in blocks {
            assert_eq!(screen.look(block, false), Verdict::Good);
        }
        assert_eq!(screen.look(&literal(0, b"a", b"\xff\t b"), false), Verdict::Good);
    }

    #[test]
    fn bad_fields_are_exchanged() {
        let bad: [(&[u8], &[u8]); 9] = [
            (b"Upper", b"x"),
            (b"", b"x"),
            (b"a b", b"x"),
            (b":foo", b"x"),
            (b":status", b"200"),
            (b"a", b"x\0"),
            (b":method", b"G T"),
            (b":path", b"/\xff"),
            (b"a", b"x\r\ny"),
        ];
        for (name, value) in bad {
            let verdict = screen().look(&literal(0, name, value), false);
            assert_eq!(verdict, Verdict::Exchanged(POISON.to_vec(), Why::Malformed), "{name:?}: {value:?}");
        }
        let fine = literal(0, b":path", b"/");
        assert_eq!(screen().look(&fine, false), Verdict::Good);
        assert!(matches!(screen().look(&fine, true), Verdict::Exchanged(..)), "in trailers");
        let mut responses = Screen::new(Side::Client, 4096, 100);
        assert!(matches!(responses.look(&fine, false), Verdict::Exchanged(..)), "in a response");
        assert_eq!(responses.look(&literal(0, b":status", b"299"), false), Verdict::Good);
        assert!(matches!(responses.look(&literal(0, b":status", b"99"), false), Verdict::Exchanged(..)));
    }

    #[test]
    fn the_table_changes_as_it_would_have() {
        let mut screen = screen();
        let block = [literal(0x40, b"good", b"1"), literal(0x40, b"BAD", b"\0\0"), literal(0, b"gone", b"2")]
            .concat();
        let expected = [literal(0x40, b"good", b"1"), literal(0x40, b"xxx", b"xx"), POISON.to_vec()].concat();
        assert_eq!(screen.look(&block, false), Verdict::Exchanged(expected, Why::Malformed));
        // The newest entry is the bad one: who refers to it is refused, by its name too.
        assert!(matches!(screen.look(&[0xbe], false), Verdict::Exchanged(..)));
        assert_eq!(screen.look(&[0xbf], false), Verdict::Good);
        assert!(matches!(screen.look(&[0x0f, 0x2f, 1, b'a'], false), Verdict::Exchanged(..)));
        // It moves on with the others.
        assert_eq!(screen.look(&literal(0x40, b"new", b"1"), false), Verdict::Good);
        assert_eq!(screen.look(&[0xbe], false), Verdict::Good);
        assert!(matches!(screen.look(&[0xbf], false), Verdict::Exchanged(..)));
        // A name of the static table stays, with as many bytes of value.
        let verdict = screen.look(&[0x44, 2, b'/', 0], false);
        let expected = [&[0x44, 2, b'x', b'x'], POISON].concat();
        assert_eq!(verdict, Verdict::Exchanged(expected, Why::Malformed));
        // A method must be one: a name as long takes its place.
        let verdict = screen.look(&[0x42, 1, b' '], false);
        let expected = [&literal(0x40, b"xxxxxxx", b"x"), POISON].concat();
        assert_eq!(verdict, Verdict::Exchanged(expected, Why::Malformed));
    }

    #[test]
    fn broken_compression_is_found() {
        let mut late = literal(0, b"a", b"b");
        late.push(0x20);
        for block in [
            &[0x80][..],
            &[0xff, 0x60],
            &late,
            &[0x3f, 0xe1, 0xff, 0x03],
            &[0, 5, b'a'],
            &[0, 1, b'a', 0x82, 0x1f, 0xff],
            &[0xff; 9],
        ] {
            assert_eq!(screen().look(block, false), Verdict::Broken, "{block:?}");
        }
    }

    #[test]
    fn too_many_fields_are_exchanged_for_none() {
        let mut screen = screen();
        let mut block = literal(0x40, b"x", b"v");
        block.extend([0xbe; 2000]);
        let expected = [literal(0x40, b"x", b"v"), POISON.to_vec()].concat();
        assert_eq!(screen.look(&block, false), Verdict::Exchanged(expected, Why::TooMany));
    }
}
