//! The little of WebSocket (RFC 6455) that both ends need: the answer to a key, and frames.

use base64::Engine as _;

use crate::out::Out;

/// Opcode of a binary message.
pub const BINARY: u8 = 2;
/// Opcode of the end.
pub const CLOSE: u8 = 8;
/// Opcode of a ping.
pub const PING: u8 = 9;
/// Opcode of its answer.
pub const PONG: u8 = 10;
/// The longest message.
const MAX_MESSAGE: u64 = 16 * 1024 * 1024;

/// The value of `sec-websocket-accept` for a key.
pub fn accept(key: &[u8]) -> String {
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// A frame; `mask` from clients.
pub fn put(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Out) {
    let marked = if mask.is_some() { 0x80 } else { 0 };
    out.push(&[0x80 | opcode]);
    match payload.len() {
        length @ ..=125 => out.push(&[marked | length as u8]),
        length @ ..=0xffff => {
            out.push(&[marked | 126]);
            out.push(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(&[marked | 127]);
            out.push(&(length as u64).to_be_bytes());
        }
    }
    match mask {
        None => out.push(payload),
        Some(mask) => {
            out.push(&mask);
            out.push(&masked(payload, mask));
        }
    }
}

/// The payload with the mask put on or off.
pub fn masked(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()
}

/// A message of more than 16 MiB.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("WebSocket message is too long")]
pub struct TooLong;

/// A frame at the start of bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub opcode: u8,
    /// As it came.
    pub payload: &'a [u8],
    /// To take off.
    pub mask: Option<[u8; 4]>,
    /// Bytes of the whole frame.
    pub length: usize,
}

/// The frame at the start of the bytes, if it is whole.
///
/// # Errors
/// It is too long.
pub fn take(bytes: &[u8]) -> Result<Option<Frame<'_>>, TooLong> {
    parse(bytes).transpose()
}

fn parse(bytes: &[u8]) -> Option<Result<Frame<'_>, TooLong>> {
    let ([first, second], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match second & 0x7f {
        126 => {
            rest.split_first_chunk().map(|(length, rest)| (u64::from(u16::from_be_bytes(*length)), rest))?
        }
        127 => rest.split_first_chunk().map(|(length, rest)| (u64::from_be_bytes(*length), rest))?,
        length => (u64::from(length), rest),
    };
    if length > MAX_MESSAGE {
        return Some(Err(TooLong));
    }
    let (mask, rest) = match second & 0x80 {
        0 => (None, rest),
        _ => rest.split_first_chunk().map(|(mask, rest)| (Some(*mask), rest))?,
    };
    let payload = rest.get(..length as usize)?;
    let length = bytes.len() - rest.len() + payload.len();
    Some(Ok(Frame { opcode: first & 15, payload, mask, length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_has_its_answer() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_of_every_length_come_back() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let payload = vec![7; length];
                let (mut out, mut bytes) = (Out::default(), Vec::new());
                put(BINARY, &payload, mask, &mut out);
                out.write_to(&mut bytes).unwrap();
                let frame = take(&bytes).unwrap().unwrap();
                assert_eq!((frame.opcode, frame.length), (BINARY, bytes.len()));
                assert_eq!(masked(frame.payload, mask.unwrap_or_default()), payload);
                assert_eq!(take(&bytes[..bytes.len() - 1]), Ok(None));
            }
        }
        assert!(take(&[0x82, 127, 255, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
