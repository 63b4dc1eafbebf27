//! The header fields of a message head, in one buffer.
//!
//! A received head is copied once into the buffer; fields are offsets into it, added values go to
//! its end. Lines that are already in the form they leave in (`name: value CRLF`) are written back
//! as runs of bytes, so an unchanged head costs one copy in and one copy out.

use std::cell::RefCell;

use bytes::Bytes;

use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known, KnownSet};

/// A range of [`Fields::buf`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    known: Known,
    /// Whether the line in the buffer is exactly `name: value\r\n`.
    canonical: bool,
    name: Span,
    value: Span,
}

/// Header fields in the order of arrival, without pseudo headers.
#[derive(Debug, Default)]
pub struct Fields {
    buf: Vec<u8>,
    list: Vec<Field>,
    present: KnownSet,
    /// How names are spelled where they are not all in lower case.
    spelling: Option<Box<Spelling>>,
}

/// Names that are spelled as they came.
#[derive(Clone, Debug)]
struct Spelling {
    /// Those that came. A field that is added under one of them is spelled like it.
    came: Vec<Span>,
    /// Others are spelled `Proper-Case`.
    proper: bool,
    /// The reason phrase of a response, where it is passed on; empty = none.
    reason: Box<str>,
}

/// What one thread keeps for reuse; more than this is freed.
const KEPT_PER_THREAD: usize = 64;
/// A buffer that grew beyond this is not kept.
const KEPT_CAPACITY: usize = 16 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<(Vec<u8>, Vec<Field>)>> = const { RefCell::new(Vec::new()) };
}

impl Fields {
    /// Empty fields on a recycled buffer.
    pub fn recycled() -> Self {
        let spare = SPARE.with(|spare| spare.borrow_mut().pop());
        let (buf, list) = spare.unwrap_or_else(|| (Vec::with_capacity(1024), Vec::with_capacity(24)));
        Self { buf, list, present: 0, spelling: None }
    }

    /// What was loaded keeps its spelling; names that are added are spelled `Proper-Case` if `proper`.
    #[cold]
    pub(super) fn keep_spelling(&mut self, proper: bool) {
        let came = self.list.iter().map(|field| field.name).collect();
        self.spelling = Some(Box::new(Spelling { came, proper, reason: Box::default() }));
    }

    /// Beside their spelling, a response's reason phrase is kept.
    #[cold]
    pub(super) fn keep_reason(&mut self, reason: &str) {
        if let Some(spelling) = &mut self.spelling {
            spelling.reason = reason.into();
        }
    }

    /// The reason phrase that is kept.
    pub(super) fn reason(&self) -> Option<&str> {
        self.spelling.as_ref().map(|spelling| &*spelling.reason).filter(|reason| !reason.is_empty())
    }

    /// Whether names are spelled as they came.
    pub(super) fn keeps_spelling(&self) -> bool {
        self.spelling.is_some()
    }

    /// Appends `name`, which is in lower case, as it is spelled here.
    pub(super) fn write_name(&self, name: &[u8], out: &mut Vec<u8>) {
        let Some(spelling) = &self.spelling else { return out.extend_from_slice(name) };
        let mut came = spelling.came.iter().map(|came| self.bytes(*came));
        match came.find(|came| came.eq_ignore_ascii_case(name)) {
            Some(came) => out.extend_from_slice(came),
            None if spelling.proper => proper_name(out, name),
            None => out.extend_from_slice(name),
        }
    }

    /// A name that is about to be added, as it is spelled here, where it is not in lower case.
    #[cold]
    fn spelled(&self, name: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(name.len());
        self.write_name(name, &mut out);
        out
    }

    /// Copies `raw` into the buffer and returns where it begins, for spans into it.
    pub(super) fn load(&mut self, raw: &[u8]) -> usize {
        let start = self.buf.len();
        self.buf.extend_from_slice(raw);
        start
    }

    /// Adds a field whose line already stands in the buffer. `lower` lower-cases the name in place.
    /// Returns what it is, and whether its line is plain: `name: value CRLF`, nothing else.
    #[inline]
    pub(super) fn push_loaded(
        &mut self,
        name: (usize, usize),
        value: (usize, usize),
        lower: bool,
    ) -> (Known, bool) {
        let (name_start, name_len) = name;
        let (value_start, value_len) = value;
        // The caller took these offsets from the bytes that it loaded.
        let (name, rest) = self.buf[name_start..].split_at_mut(name_len);
        let known = if lower {
            lower_name(name);
            Known::of(name)
        } else {
            Known::of(&name.to_ascii_lowercase())
        };
        let canonical = value_start == name_start + name_len + 2
            && rest.first_chunk() == Some(b": ")
            && rest.get(2 + value_len..).and_then(<[u8]>::first_chunk) == Some(b"\r\n");
        self.present |= known.bit();
        self.list.push(Field {
            known,
            canonical,
            name: span(name_start, name_len),
            value: span(value_start, value_len),
        });
        (known, canonical)
    }

    /// Adds a field. The name is written as given: lower case unless case is preserved.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let known = Known::of(name);
        if self.spelling.is_some() {
            return self.push_as_it_came(known, name, value);
        }
        self.push_spelled(known, name, value);
    }

    #[cold]
    fn push_as_it_came(&mut self, known: Known, name: &[u8], value: &[u8]) {
        let spelled = self.spelled(name);
        self.push_spelled(known, &spelled, value);
    }

    #[inline]
    fn push_spelled(&mut self, known: Known, name: &[u8], value: &[u8]) {
        let name_start = self.buf.len();
        self.buf.reserve(name.len() + value.len() + 4);
        self.buf.extend_from_slice(name);
        self.buf.extend_from_slice(b": ");
        let value_start = self.buf.len();
        self.buf.extend_from_slice(value);
        self.buf.extend_from_slice(b"\r\n");
        self.present |= known.bit();
        self.list.push(Field {
            known,
            canonical: true,
            name: span(name_start, name.len()),
            value: span(value_start, value.len()),
        });
    }

    /// Adds a known field.
    pub fn push_known(&mut self, known: Known, value: &[u8]) {
        let start = known.line_start().as_bytes();
        if self.spelling.is_some() {
            return self.push_as_it_came(known, start.strip_suffix(b": ").unwrap_or(start), value);
        }
        let name_start = self.buf.len();
        let value_start = name_start + start.len();
        self.buf.extend_from_slice(start);
        self.buf.extend_from_slice(value);
        self.buf.extend_from_slice(b"\r\n");
        self.present |= known.bit();
        let name = span(name_start, start.len().saturating_sub(2));
        self.list.push(Field { known, canonical: true, name, value: span(value_start, value.len()) });
    }

    /// Stores bytes that are not a field (a path, an authority) and returns where.
    pub fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.buf.len();
        self.buf.extend_from_slice(bytes);
        span(start, bytes.len())
    }

    /// Where `part` stands: a piece of `raw`, which was loaded to `base`, or else stored here.
    pub(super) fn locate(&mut self, base: usize, raw: &[u8], part: &[u8]) -> Span {
        let offset = (part.as_ptr() as usize).wrapping_sub(raw.as_ptr() as usize);
        if offset <= raw.len() && part.len() <= raw.len() - offset {
            span(base + offset, part.len())
        } else {
            self.store(part)
        }
    }

    /// The bytes of a span of this buffer.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.buf.get(start..start + span.len as usize).unwrap_or_default()
    }

    /// Whether the field is there.
    pub fn has(&self, known: Known) -> bool {
        self.present & known.bit() != 0
    }

    /// Whether any of the set is there.
    pub fn has_any(&self, set: KnownSet) -> bool {
        self.present & set != 0
    }

    /// The first value of a known field.
    pub fn get(&self, known: Known) -> Option<&[u8]> {
        if !self.has(known) {
            return None;
        }
        self.list.iter().find(|field| field.known == known).map(|field| self.bytes(field.value))
    }

    /// Where the first value of a known field stands.
    pub fn span_of(&self, known: Known) -> Option<Span> {
        if !self.has(known) {
            return None;
        }
        self.list.iter().find(|field| field.known == known).map(|field| field.value)
    }

    /// All values of a known field.
    pub fn all(&self, known: Known) -> impl DoubleEndedIterator<Item = &[u8]> {
        let list: &[Field] = if self.has(known) { &self.list } else { &[] };
        list.iter().filter(move |field| field.known == known).map(|field| self.bytes(field.value))
    }

    /// Every field: number, name, value.
    pub fn iter(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.list.iter().map(|field| (field.known, self.bytes(field.name), self.bytes(field.value)))
    }

    /// A copy of the whole buffer, for [`Fields::spans`] to cut values from without copying each.
    pub fn frozen(&self) -> Bytes {
        Bytes::copy_from_slice(&self.buf)
    }

    /// Every field: number, where its name and where its value stand.
    pub fn spans(&self) -> impl Iterator<Item = (Known, Span, std::ops::Range<usize>)> + '_ {
        let whole = self.buf.len();
        self.list.iter().map(move |field| {
            let start = (field.value.start as usize).min(whole);
            let end = (start + field.value.len as usize).min(whole);
            (field.known, field.name, start..end)
        })
    }

    /// Bytes that they and what is stored beside them take.
    pub fn size(&self) -> usize {
        self.buf.len()
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Replaces all values of a known field by one.
    pub fn set_known(&mut self, known: Known, value: &[u8]) {
        self.remove_known(known);
        self.push_known(known, value);
    }

    /// Removes a known field; says whether it was there.
    pub fn remove_known(&mut self, known: Known) -> bool {
        if !self.has(known) {
            return false;
        }
        self.list.retain(|field| field.known != known);
        self.present &= !known.bit();
        true
    }

    /// Removes every field of the set.
    pub fn remove_set(&mut self, set: KnownSet) {
        if self.present & set & !Known::Other.bit() != 0 {
            self.list.retain(|field| field.known == Known::Other || field.known.bit() & set == 0);
            self.present &= !set | Known::Other.bit();
        }
    }

    /// Removes fields by predicate on the (possibly mixed-case) name.
    pub fn remove_where(&mut self, mut drop: impl FnMut(&[u8]) -> bool) -> bool {
        let before = self.list.len();
        let buf = &self.buf;
        self.list.retain(|field| {
            let start = field.name.start as usize;
            !drop(buf.get(start..start + field.name.len as usize).unwrap_or_default())
        });
        if self.list.len() == before {
            return false;
        }
        self.present = self.list.iter().fold(0, |set, field| set | field.known.bit());
        true
    }

    /// Appends all fields as HTTP/1 lines, adjacent canonical ones in one copy.
    pub fn write_lines(&self, out: &mut Vec<u8>) {
        let mut run: Option<(usize, usize)> = None;
        for field in &self.list {
            let start = field.name.start as usize;
            let end = (field.value.start + field.value.len) as usize + 2;
            if field.canonical {
                run = match run {
                    Some((from, to)) if to == start => Some((from, end)),
                    Some((from, to)) => {
                        out.extend_from_slice(self.buf.get(from..to).unwrap_or_default());
                        Some((start, end))
                    }
                    None => Some((start, end)),
                };
                continue;
            }
            if let Some((from, to)) = run.take() {
                out.extend_from_slice(self.buf.get(from..to).unwrap_or_default());
            }
            out.extend_from_slice(self.bytes(field.name));
            out.extend_from_slice(b": ");
            out.extend_from_slice(self.bytes(field.value));
            out.extend_from_slice(b"\r\n");
        }
        if let Some((from, to)) = run {
            out.extend_from_slice(self.buf.get(from..to).unwrap_or_default());
        }
    }

    /// Appends all fields with `Proper-Case` names.
    pub fn write_lines_proper(&self, out: &mut Vec<u8>) {
        for (_, name, value) in self.iter() {
            proper_name(out, name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }

    fn matches(&self, field: &Field, key: &HeaderKey) -> bool {
        if key.known() == Known::Other {
            field.known == Known::Other && self.bytes(field.name).eq_ignore_ascii_case(key.name().as_bytes())
        } else {
            field.known == key.known()
        }
    }
}

impl Clone for Fields {
    fn clone(&self) -> Self {
        let mut copy = Fields::recycled();
        copy.buf.extend_from_slice(&self.buf);
        copy.list.extend_from_slice(&self.list);
        copy.present = self.present;
        copy.spelling.clone_from(&self.spelling);
        copy
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        if self.buf.capacity() == 0 || self.buf.capacity() > KEPT_CAPACITY {
            return;
        }
        let (mut buf, mut list) = (std::mem::take(&mut self.buf), std::mem::take(&mut self.list));
        buf.clear();
        list.clear();
        // The thread may be ending; then there is nothing to keep.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT_PER_THREAD {
                spare.push((buf, list));
            }
        });
    }
}

/// Appends a name as `Proper-Case`.
pub(super) fn proper_name(out: &mut Vec<u8>, name: &[u8]) {
    let mut upper = true;
    out.extend(name.iter().map(|byte| {
        let written = if upper { byte.to_ascii_uppercase() } else { *byte };
        upper = !byte.is_ascii_alphanumeric();
        written
    }));
}

/// Lower-cases a name, eight bytes at a time: most names are short, and every byte of every one is
/// looked at. Doing some bytes twice is cheaper than doing the rest one by one.
fn lower_name(name: &mut [u8]) {
    if let Some(last) = name.last_chunk_mut::<8>() {
        *last = lower_word(u64::from_le_bytes(*last)).to_le_bytes();
        let (words, _) = name.as_chunks_mut::<8>();
        for word in words {
            *word = lower_word(u64::from_le_bytes(*word)).to_le_bytes();
        }
    } else if let Some(last) = name.last_chunk_mut::<4>() {
        *last = lower_half(*last);
        if let Some(first) = name.first_chunk_mut::<4>() {
            *first = lower_half(*first);
        }
    } else {
        name.make_ascii_lowercase();
    }
}

fn lower_half(bytes: [u8; 4]) -> [u8; 4] {
    let [a, b, c, d, ..] = lower_word(u32::from_le_bytes(bytes).into()).to_le_bytes();
    [a, b, c, d]
}

/// Lower-cases the eight ASCII letters in a word at once; other bytes stay.
fn lower_word(word: u64) -> u64 {
    const EACH: u64 = u64::from_le_bytes([1; 8]);
    // The additions stay within their bytes: 0x7f + 0x3f has no carry.
    let low = word & (EACH * 0x7f);
    let from_a = low + EACH * u64::from(0x80 - b'A');
    let past_z = low + EACH * u64::from(0x7f - b'Z');
    let upper = from_a & !past_z & !word & (EACH * 0x80);
    // 0x80 >> 2 is 0x20, which tells the cases apart.
    word | (upper >> 2)
}

fn span(start: usize, len: usize) -> Span {
    // Heads are limited to 8 MiB by config, far below 4 GiB.
    Span { start: start as u32, len: len as u32 }
}

impl HeaderView for Fields {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        if !self.has(key.known()) {
            return;
        }
        for field in self.list.iter().filter(|field| self.matches(field, key)) {
            each(self.bytes(field.value));
        }
    }

    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        if !self.has(key.known()) {
            return None;
        }
        self.list.iter().find(|field| self.matches(field, key)).map(|field| self.bytes(field.value))
    }

    fn byte_size(&self) -> usize {
        self.list.iter().map(|field| (field.name.len + field.value.len) as usize).sum()
    }
}

impl HeaderMutate for Fields {
    fn append(&mut self, key: &HeaderKey, value: &[u8]) {
        self.push(key.name().as_bytes(), value);
    }

    fn set(&mut self, key: &HeaderKey, value: &[u8]) {
        self.remove(key);
        self.push(key.name().as_bytes(), value);
    }

    fn remove(&mut self, key: &HeaderKey) -> bool {
        if key.known() != Known::Other {
            return self.remove_known(key.known());
        }
        if !self.has(Known::Other) {
            return false;
        }
        self.remove_where(|name| name.eq_ignore_ascii_case(key.name().as_bytes()))
    }

    fn remove_prefix(&mut self, prefix: &str) {
        self.remove_where(|name| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_length_and_bytes_of_any_value_are_lower_cased_as_std_does() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..40 {
            for window in bytes.windows(length.max(1)) {
                let mut ours = window.to_vec();
                let mut theirs = ours.clone();
                lower_name(&mut ours);
                theirs.make_ascii_lowercase();
                assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn a_known_field_reads_as_the_same_field_given_by_name() {
        let (mut known, mut named) = (Fields::default(), Fields::default());
        known.push_known(Known::XRequestId, b"1");
        named.push(b"x-request-id", b"1");
        let all = |fields: &Fields| {
            let one = |(known, name, value): (Known, &[u8], &[u8])| (known, name.to_vec(), value.to_vec());
            fields.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(all(&known), all(&named));
        let lines = |fields: &Fields| {
            let mut out = Vec::new();
            fields.write_lines(&mut out);
            out
        };
        assert_eq!(lines(&known), b"x-request-id: 1\r\n");
        assert_eq!(lines(&known), lines(&named));
    }

    #[test]
    fn names_that_are_added_are_spelled_like_those_that_came() {
        let spelled = |proper: bool| {
            let mut fields = Fields::default();
            let raw = b"X-REQUEST-id: 1\r\nx-Odd: 2\r\n";
            let base = fields.load(raw);
            fields.push_loaded((base, 12), (base + 14, 1), false);
            fields.push_loaded((base + 17, 5), (base + 24, 1), false);
            fields.keep_spelling(proper);
            fields.set_known(Known::XRequestId, b"3");
            fields.push(b"x-new_name", b"4");
            fields.push(b"x-odd", b"5");
            let mut out = Vec::new();
            fields.clone().write_lines(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(spelled(false), "x-Odd: 2\r\nX-REQUEST-id: 3\r\nx-new_name: 4\r\nx-Odd: 5\r\n");
        assert_eq!(spelled(true), "x-Odd: 2\r\nX-REQUEST-id: 3\r\nX-New_Name: 4\r\nx-Odd: 5\r\n");
    }
}
