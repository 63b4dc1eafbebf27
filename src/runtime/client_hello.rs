//! What a ClientHello asks for that the TLS library does not tell who chooses the certificate: the state of that
//! certificate (`status_request`, RFC 6066 §8).
//!
//! Comes in: the bytes of a handshake before the library has them, on the same thread. Goes out: a yes or no while it
//! works on them.

use std::cell::Cell;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const STATUS_REQUEST: u16 = 5;

thread_local! {
    static ASKS_STATUS: Cell<bool> = const { Cell::new(false) };
}

/// Looks at what a client has sent and the library is about to be given.
pub(super) fn look(bytes: &[u8]) {
    if let Some(extensions) = extensions(bytes) {
        ASKS_STATUS.set(asks_status(extensions));
    }
}

/// Whether the client whose hello the library is looking at on this thread asks for the state of the certificate.
pub fn asks_for_status() -> bool {
    ASKS_STATUS.get()
}

/// Takes `count` bytes off the front.
fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (part, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(part)
}

/// A number of `size` bytes, at most 3.
fn number(bytes: &mut &[u8], size: usize) -> Option<usize> {
    Some(take(bytes, size)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// The extensions of a hello that is in one record; `None` for anything else.
fn extensions(mut bytes: &[u8]) -> Option<&[u8]> {
    let bytes = &mut bytes;
    if take(bytes, 1)? != [HANDSHAKE] {
        return None;
    }
    take(bytes, 2)?;
    let length = number(bytes, 2)?;
    let record = &mut take(bytes, length)?;
    if take(record, 1)? != [CLIENT_HELLO] {
        return None;
    }
    let length = number(record, 3)?;
    let hello = &mut take(record, length)?;
    // Version and random; then session id, cipher suites, compression methods.
    take(hello, 34)?;
    for size in [1, 2, 1] {
        let length = number(hello, size)?;
        take(hello, length)?;
    }
    let length = number(hello, 2).unwrap_or_default();
    take(hello, length)
}

fn asks_status(mut extensions: &[u8]) -> bool {
    let extensions = &mut extensions;
    while let (Some(kind), Some(length)) = (number(extensions, 2), number(extensions, 2)) {
        if take(extensions, length).is_none() {
            return false;
        }
        if kind == usize::from(STATUS_REQUEST) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3; 34];
        body.extend_from_slice(b"\x01s\x00\x02\x13\x01\x01\x00");
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(extensions);
        let mut record = vec![HANDSHAKE, 3, 1];
        record.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
        record.extend_from_slice(&[CLIENT_HELLO, 0]);
        record.extend_from_slice(&(body.len() as u16).to_be_bytes());
        record.extend_from_slice(&body);
        record
    }

    #[test]
    fn the_extension_is_found_among_others() {
        let other = b"\x00\x0a\x00\x04\x00\x02\x00\x1d";
        let status = b"\x00\x05\x00\x05\x01\x00\x00\x00\x00";
        for (extensions, asks) in [
            (&[&other[..], status].concat()[..], true),
            (&[&status[..], other].concat(), true),
            (other, false),
            (b"", false),
            // Cut off, or with a length beyond the end.
            (&b"\x00\x05\x00\x09\x01"[..], false),
        ] {
            look(&hello(extensions));
            assert_eq!(asks_for_status(), asks, "{extensions:?}");
        }
        look(&hello(status));
        // Neither part of a hello nor another message changes what is known.
        look(&hello(b"")[..30]);
        look(b"\x16\x03\x03\x00\x01\x02");
        assert!(asks_for_status());
    }
}
