//! HPACK (RFC 7541): a decoder for whatever a peer sends, and an encoder for the few fields that this tool sends again
//! and again. The encoder inserts a field when it is new and never evicts: when its table is full it sends literals.

use std::collections::VecDeque;

use super::huffman;

/// Bytes of both tables, the protocol's default; neither side of this tool announces another.
const TABLE: usize = 4096;
/// What an entry costs beside its name and value.
const OVERHEAD: usize = 32;
/// The longest string that is decoded.
const LONGEST: usize = 64 * 1024;

const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The block is no HPACK, or names an entry that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("header block is not valid HPACK")]
pub struct Invalid;

/// A name and a value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// Decodes the blocks of one direction of a connection.
#[derive(Default)]
pub struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    /// 0 stands for [`TABLE`], until an update says otherwise.
    shrunk_by: usize,
    insertions: u64,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// Changes whenever the meaning of a block of indices may.
    pub fn generation(&self) -> u64 {
        self.insertions
    }

    /// Calls `field` with each name and value.
    ///
    /// # Errors
    /// [`Invalid`]; the connection cannot go on, for the tables of its ends differ from here.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), Invalid> {
        let mut rest = block;
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut rest, 5)?;
                self.shrunk_by = TABLE.checked_sub(size).ok_or(Invalid)?;
                self.insertions += 1;
                self.evict(0);
            } else {
                let insert = first & 0x40 != 0;
                let index = integer(&mut rest, if insert { 6 } else { 4 })?;
                let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
                name.clear();
                value.clear();
                if index == 0 {
                    string(&mut rest, &mut name)?;
                } else {
                    name.extend_from_slice(self.entry(index)?.0);
                }
                string(&mut rest, &mut value)?;
                field(&name, &value);
                if insert {
                    self.insert(&name, &value);
                }
                (self.name, self.value) = (name, value);
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Invalid> {
        let index = index.checked_sub(1).ok_or(Invalid)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) = self.entries.get(index - STATIC.len()).ok_or(Invalid)?;
        Ok((name, value))
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        self.insertions += 1;
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(size);
        if size <= TABLE - self.shrunk_by {
            self.entries.push_front((name.into(), value.into()));
            self.size += size;
        }
    }

    /// Makes room for an entry.
    fn evict(&mut self, size: usize) {
        while self.size + size > TABLE - self.shrunk_by {
            let Some((name, value)) = self.entries.pop_back() else { return };
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// Encodes the blocks of one direction of a connection.
#[derive(Default)]
pub struct Encoder {
    /// Oldest first.
    entries: Vec<Entry>,
    size: usize,
    /// The peer wants a smaller table: nothing is indexed any more, and the next block says so.
    off: bool,
    announce: bool,
}

impl Encoder {
    /// The peer's limit for the table, from its settings.
    pub fn limit(&mut self, limit: usize) {
        if limit < TABLE && !self.off {
            (self.off, self.announce) = (true, true);
            self.entries.clear();
        }
    }

    /// Starts a block.
    pub fn start(&mut self, block: &mut Vec<u8>) {
        if std::mem::take(&mut self.announce) {
            block.push(0x20);
        }
    }

    /// Appends a field to a block; whether the table has grown by it, so that the same field is shorter next time.
    pub fn field(&mut self, name: &[u8], value: &[u8], block: &mut Vec<u8>) -> bool {
        let known = self.entries.iter().position(|(n, v)| **n == *name && **v == *value);
        if let Some(at) = known {
            put_integer(STATIC.len() + self.entries.len() - at, 7, 0x80, block);
            return false;
        }
        let same_name = STATIC.iter().position(|(n, _)| n.as_bytes() == name);
        let whole =
            STATIC.iter().position(|(n, v)| n.as_bytes() == name && v.as_bytes() == value && !v.is_empty());
        if let Some(at) = whole {
            put_integer(at + 1, 7, 0x80, block);
            return false;
        }
        let size = name.len() + value.len() + OVERHEAD;
        let insert = !self.off && self.size + size <= TABLE;
        let (bits, mark) = if insert { (6, 0x40) } else { (4, 0) };
        put_integer(same_name.map_or(0, |at| at + 1), bits, mark, block);
        if same_name.is_none() {
            put_integer(name.len(), 7, 0, block);
            block.extend_from_slice(name);
        }
        put_integer(value.len(), 7, 0, block);
        block.extend_from_slice(value);
        if insert {
            self.entries.push((name.into(), value.into()));
            self.size += size;
        }
        insert
    }
}

fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Invalid> {
    let (&first, mut left) = rest.split_first().ok_or(Invalid)?;
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(first) & most;
    if value == most {
        let mut shift = 0;
        loop {
            let (&byte, after) = left.split_first().ok_or(Invalid)?;
            left = after;
            // 4 bytes are enough for every length and index that is accepted.
            if shift > 21 {
                return Err(Invalid);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = left;
    Ok(value)
}

fn put_integer(value: usize, bits: u32, mark: u8, block: &mut Vec<u8>) {
    let most = (1_usize << bits) - 1;
    if value < most {
        block.push(mark | value as u8);
        return;
    }
    block.push(mark | most as u8);
    let mut left = value - most;
    while left >= 0x80 {
        block.push(0x80 | (left & 0x7f) as u8);
        left >>= 7;
    }
    block.push(left as u8);
}

fn string(rest: &mut &[u8], into: &mut Vec<u8>) -> Result<(), Invalid> {
    let coded = rest.first().ok_or(Invalid)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    if length > LONGEST || length > rest.len() {
        return Err(Invalid);
    }
    let (bytes, after) = rest.split_at(length);
    *rest = after;
    if coded {
        return huffman::decode(bytes, into).ok_or(Invalid);
    }
    into.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Vec<String> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| fields.push(format!("{}: {}", text(name), text(value)))).unwrap();
        fields
    }

    #[test]
    fn what_is_encoded_decodes_and_is_shorter_the_second_time() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let sent = [(":status", "200"), ("content-length", "92"), ("x-test", "a"), (":status", "503")];
        let mut lengths = Vec::new();
        for _ in 0..2 {
            let mut block = Vec::new();
            for (name, value) in sent {
                encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
            }
            lengths.push(block.len());
            let expected: Vec<_> = sent.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            assert_eq!(fields(&mut decoder, &block), expected);
        }
        assert_eq!(lengths[1], sent.len());
    }

    #[test]
    fn an_example_of_the_rfc_decodes() {
        // C.6.1: Huffman strings, all inserted.
        let block = [
            0x48, 0x82, 0x64, 0x02, 0x58, 0x85, 0xae, 0xc3, 0x77, 0x1a, 0x4b, 0x61, 0x96, 0xd0, 0x7a, 0xbe,
            0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66, 0xe0, 0x82, 0xa6,
            0x2d, 0x1b, 0xff,
        ];
        let mut decoder = Decoder::default();
        let expected = [":status: 302", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:21 GMT"];
        assert_eq!(fields(&mut decoder, &block), expected);
        assert_eq!(fields(&mut decoder, &[0xc0, 0xbf, 0xbe]), expected);
    }

    #[test]
    fn bad_blocks_are_refused() {
        for block in
            [&[0x80][..], &[0xc0], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x00, 0x05, b'a'], &[0x3f]]
        {
            assert_eq!(Decoder::default().decode(block, |_, _| ()), Err(Invalid), "{block:?}");
        }
    }

    #[test]
    fn a_peer_without_a_table_gets_literals() {
        let mut encoder = Encoder::default();
        encoder.limit(0);
        let mut decoder = Decoder::default();
        for _ in 0..2 {
            let mut block = Vec::new();
            encoder.start(&mut block);
            encoder.field(b"x-test", b"a", &mut block);
            assert_eq!(fields(&mut decoder, &block), ["x-test: a"]);
        }
        assert!(decoder.entries.is_empty());
    }
}
