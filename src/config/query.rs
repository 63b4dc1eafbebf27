//! The query of a path, taken apart and put together again.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// A path with its query, whose parameters are in the order of their names.
#[derive(Debug)]
pub struct Query<'p> {
    path: &'p [u8],
    decoded: bool,
    pairs: BTreeMap<Cow<'p, [u8]>, Vec<Cow<'p, [u8]>>>,
}

impl<'p> Query<'p> {
    /// The path's, without percent escapes.
    pub fn decoded(path: &'p [u8]) -> Self {
        Self::of(path, true)
    }

    /// The path's, as it is.
    pub fn raw(path: &'p [u8]) -> Self {
        Self::of(path, false)
    }

    fn of(path: &'p [u8], decode: bool) -> Self {
        let read = |text: &'p [u8]| if decode { decoded(text) } else { Cow::Borrowed(text) };
        let (path, found) = pairs(path);
        let mut pairs: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, value) in found {
            pairs.entry(read(key)).or_default().push(read(value));
        }
        Self { path, decoded: decode, pairs }
    }

    /// The first value of the parameter `name`.
    pub fn first(&self, name: &[u8]) -> Option<&[u8]> {
        self.pairs.get(name)?.first().map(|value| &**value)
    }

    /// Takes the parameter `name` away.
    pub fn remove(&mut self, name: &[u8]) {
        self.pairs.remove(name);
    }

    /// Gives the parameter `name` this one value.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.pairs.insert(Cow::Owned(name.to_vec()), vec![Cow::Owned(value.to_vec())]);
    }

    /// The path with the query as it is now.
    pub fn written(&self) -> Vec<u8> {
        let write = |out: &mut Vec<u8>, text: &[u8]| match self.decoded {
            true => encode(out, text, is_unreserved),
            false => out.extend_from_slice(text),
        };
        let mut out = self.path.to_vec();
        let mut delimiter = b'?';
        for (key, values) in &self.pairs {
            for value in values {
                out.push(delimiter);
                delimiter = b'&';
                write(&mut out, key);
                out.push(b'=');
                write(&mut out, value);
            }
        }
        out
    }
}

/// A path without its query, and the query's names and values as they are.
pub fn pairs(path: &[u8]) -> (&[u8], impl Iterator<Item = (&[u8], &[u8])>) {
    let (path, query) = path.split_at(memchr::memchr(b'?', path).unwrap_or(path.len()));
    let pieces = query.get(1..).unwrap_or_default().split(|byte| *byte == b'&');
    let pairs = pieces.filter(|pair| !pair.is_empty()).map(|pair| match memchr::memchr(b'=', pair) {
        Some(at) => (pair.get(..at).unwrap_or_default(), pair.get(at + 1..).unwrap_or_default()),
        None => (pair, &b""[..]),
    });
    (path, pairs)
}

/// What can be read in one way only (RFC 3986 §2.3).
pub fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~')
}

/// Without percent escapes.
pub fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    decoded_where(text, |_| true)
}

/// The byte whose percent escape `text` begins with.
pub fn escaped(text: &[u8]) -> Option<u8> {
    let digit = |one: u8| char::from(one).to_digit(16);
    match *text {
        [b'%', high, low, ..] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    }
}

/// Without the percent escapes of what is `wanted`; the others stay.
pub fn decoded_where(text: &[u8], wanted: impl Fn(u8) -> bool) -> Cow<'_, [u8]> {
    if memchr::memchr(b'%', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        match escaped(rest).filter(|byte| wanted(*byte)) {
            Some(byte) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    Cow::Owned(out)
}

/// Appends `text` with percent escapes for all that `may` not stand.
pub fn encode(out: &mut Vec<u8>, text: &[u8], may: fn(u8) -> bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        if may(*byte) {
            out.push(*byte);
        } else {
            // Both are below 16.
            out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_put_together_in_the_order_of_names() {
        let mut query = Query::decoded(b"/x?z=1&token=a%20b&a=%26&flag&z=2");
        assert_eq!(query.first(b"token"), Some(&b"a b"[..]));
        query.remove(b"token");
        assert_eq!(query.written(), b"/x?a=%26&flag=&z=1&z=2");
        let mut query = Query::raw(b"/x?a=%41");
        query.set(b"b", b"%20");
        assert_eq!(query.written(), b"/x?a=%41&b=%20");
        assert_eq!(Query::raw(b"/x").written(), b"/x");
    }
}
