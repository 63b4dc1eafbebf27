//! gRPC messages: the five bytes before each, and the echo service's own, `outrigger.load.v1.Echo`:
//!
//! - `Unary`: the payload back;
//! - `Download` (server streaming): the payload as often as asked;
//! - `Upload` (client streaming): the count and size of what came;
//! - `Chat` (both): each payload back.

use bytes::{BufMut as _, Bytes, BytesMut};

/// What is asked of the echo service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoRequest {
    /// To be sent back.
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: Bytes,
    /// Messages wanted of `Download`.
    #[prost(uint32, tag = "2")]
    pub messages: u32,
}

/// What the echo service says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoResponse {
    /// What was sent.
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: Bytes,
    /// Messages received by `Upload`.
    #[prost(uint32, tag = "2")]
    pub messages: u32,
    /// Bytes of their payloads.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

/// A message with the five bytes before it.
pub fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    // A BytesMut grows: there is always room.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// An echo request.
pub fn request(payload: usize, messages: u32) -> Bytes {
    framed(&EchoRequest { payload: Bytes::from(vec![b'x'; payload]), messages })
}

/// Counts messages in a stream of bytes that is cut anywhere.
#[derive(Default)]
pub struct Counter {
    head: [u8; 5],
    have: usize,
    left: usize,
}

impl Counter {
    /// How many messages end in these bytes.
    pub fn take(&mut self, mut bytes: &[u8]) -> u32 {
        let mut ended = 0;
        while !bytes.is_empty() {
            if self.have < 5 {
                let part = bytes.len().min(5 - self.have);
                let (front, rest) = bytes.split_at(part);
                self.head[self.have..self.have + part].copy_from_slice(front);
                self.have += part;
                bytes = rest;
                if self.have == 5 {
                    let [_, length @ ..] = self.head;
                    self.left = u32::from_be_bytes(length) as usize;
                }
            }
            if self.have == 5 {
                let part = bytes.len().min(self.left);
                self.left -= part;
                bytes = bytes.get(part..).unwrap_or_default();
                if self.left == 0 {
                    self.have = 0;
                    ended += 1;
                }
            }
        }
        ended
    }

    /// Whether it stands between messages.
    pub fn is_whole(&self) -> bool {
        self.have == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let stream = [request(10, 1), request(0, 0), request(300, 7)].concat();
        for cut in 0..stream.len() {
            let mut counter = Counter::default();
            let (front, back) = stream.split_at(cut);
            assert_eq!(counter.take(front) + counter.take(back), 3, "cut at {cut}");
            assert!(counter.is_whole());
        }
    }
}
