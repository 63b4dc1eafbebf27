//! Any bytes as a chunked body: no panic, and the same result however they are cut.
#![no_main]

use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use outrigger::http::h1::{BodyDecoder, BodyEvent, Framing};

/// The data, and whether the body ended (`None`: refused).
fn decode(input: &[u8], step: usize) -> Option<(Vec<u8>, bool)> {
    let mut decoder = BodyDecoder::new(Framing::Chunked, 1024);
    let (mut buffer, mut data) = (BytesMut::new(), Vec::new());
    let mut parts = input.chunks(step);
    loop {
        match decoder.next(&mut buffer).ok()? {
            BodyEvent::Data(count) => {
                data.extend_from_slice(&buffer[..count]);
                buffer.advance(count);
            }
            BodyEvent::More => match parts.next() {
                Some(part) => buffer.extend_from_slice(part),
                None => return Some((data, false)),
            },
            BodyEvent::End(_) => return Some((data, true)),
        }
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(decode(bytes, bytes.len().max(1)), decode(bytes, usize::from(step).max(1)));
});
