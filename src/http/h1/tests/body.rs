//! Bodies of every framing, however the bytes are cut.

use bytes::{Buf, BytesMut};

use super::*;
use crate::http::h1::{BodyDecoder, BodyEvent};

/// A body's data, its trailers as lines, and what was left in the buffer.
pub(super) type Body = (Vec<u8>, Option<String>, Vec<u8>);

/// Runs a decoder over `input` arriving `step` bytes at a time; `None` when it ends unfinished.
pub(super) fn decode(
    input: &[u8],
    framing: Framing,
    step: usize,
    max: usize,
) -> Result<Option<Body>, Refusal> {
    let (mut decoder, mut buffer, mut data) = (BodyDecoder::new(framing, max), BytesMut::new(), Vec::new());
    let mut parts = input.chunks(step.max(1));
    loop {
        match decoder.next(&mut buffer)? {
            BodyEvent::Data(count) => {
                assert!(count > 0 && count <= buffer.len());
                data.extend_from_slice(&buffer[..count]);
                buffer.advance(count);
            }
            BodyEvent::More => match parts.next() {
                Some(part) => buffer.extend_from_slice(part),
                None => return Ok(None),
            },
            BodyEvent::End(trailers) => {
                assert!(decoder.is_done() && decoder.ends_at_close());
                let trailers = trailers.map(|fields| {
                    let mut out = Vec::new();
                    fields.write_lines(&mut out);
                    String::from_utf8_lossy(&out).into_owned()
                });
                let left = buffer.iter().chain(parts.flatten()).copied().collect();
                return Ok(Some((data, trailers, left)));
            }
        }
    }
}

/// The same however the input is cut.
fn chunked(input: &str, max: usize) -> Result<Option<Body>, Refusal> {
    let whole = decode(input.as_bytes(), Framing::Chunked, input.len(), max);
    for step in 1..input.len().min(12) {
        let cut = decode(input.as_bytes(), Framing::Chunked, step, max);
        assert_eq!(whole, cut, "{input:?} by {step}");
    }
    whole
}

#[test]
fn chunked_bodies() {
    for (input, data, trailers, left) in [
        ("0\r\n\r\n", "", None, ""),
        ("5\r\nhello\r\n0\r\n\r\nGET /", "hello", None, "GET /"),
        ("5\r\nhello\r\n6\r\n\r\n0\r\n\r\r\n000\r\n\r\n", "hello\r\n0\r\n\r", None, ""),
        ("00A\r\n0123456789\r\n0\r\n\r\n", "0123456789", None, ""),
        ("1;a\r\nx\r\n1;a=b;c=\"d;\\\"e\"\r\ny\r\n0;z\r\n\r\n", "xy", None, ""),
        ("1\r\nx\r\n0\r\nX-Sum: 1 \r\n\r\nZ", "x", Some("x-sum: 1\r\n"), "Z"),
        // What frames, routes or vouches for a message has no place behind it.
        (
            "0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: x\r\nAuthorization: x\r\nX-Forwarded-For: x\r\nok: y\r\n\r\n",
            "",
            Some("ok: y\r\n"),
            "",
        ),
    ] {
        let body = chunked(input, 1000).expect(input).expect(input);
        let wanted = (data.as_bytes().to_vec(), trailers.map(str::to_owned), left.as_bytes().to_vec());
        assert_eq!(body, wanted, "{input:?}");
    }
    for input in ["5\r\nhel", "5", "5\r", "5;a", "1\r\nx", "1\r\nx\r", "0\r\n", "0\r\n\r", "0\r\nx: y\r\n"] {
        assert_eq!(chunked(input, 1000), Ok(None), "{input:?}");
    }
    let long = format!("5;{}\r\nhello\r\n", "a".repeat(2000));
    for input in [
        "g\r\n",
        "\r\n",
        ";a\r\n",
        "-1\r\n",
        "+1\r\nx\r\n",
        "0x1\r\nx\r\n",
        " 1\r\nx\r\n",
        "1 \r\nx\r\n",
        "1\t\r\nx\r\n",
        "1\nx\r\n",
        "1\rx\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1\r\nxx\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "1;\r\nx\r\n",
        "1;;a\r\nx\r\n",
        "1;a=\r\nx\r\n",
        "1;=b\r\nx\r\n",
        "1; a\r\nx\r\n",
        "1;a b\r\nx\r\n",
        "1;a\x00\r\nx\r\n",
        "1;a=\"b\r\nx\r\n",
        "1;a\nx\r\n",
        "1;a\rb\r\nx\r\n",
        "1,a\r\nx\r\n",
        "FFFFFFFFFFFFFFFF\r\nx",
        "10000000000000000\r\nx",
        "0000000000000000000000001\r\nx\r\n",
        &long,
        "0\r\n\n",
        "0\r\nx: y\n\r\n",
        "0\r\nx: y\r\n z\r\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\nx: a\x00\r\n\r\n",
        "0\r\nx: a\rb\r\n\r\n",
    ] {
        assert_eq!(chunked(input, 1000), Err(Refusal::CHUNK), "{input:?}");
    }
    let trailers = "x: 01234567890\r\n\r\n";
    let input = format!("0\r\n{trailers}");
    assert!(matches!(chunked(&input, trailers.len()), Ok(Some(_))));
    assert_eq!(chunked(&input, trailers.len() - 1), Err(Refusal::TRAILERS_TOO_LARGE));
    assert_eq!(
        chunked(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(65)), 10_000),
        Err(Refusal::TRAILERS_TOO_LARGE)
    );
    let mut out = Vec::new();
    for length in [1, 15, 16, 0xabc, usize::MAX] {
        out.clear();
        write::chunk_open(&mut out, length);
        assert_eq!(String::from_utf8_lossy(&out), format!("{length:x}\r\n"));
    }
}

#[test]
fn bodies_of_a_length_and_until_close() {
    for step in 1..12 {
        let body = decode(b"helloGET", Framing::Length(5), step, 0).expect("good").expect("whole");
        assert_eq!(body, (b"hello".to_vec(), None, b"GET".to_vec()));
        assert_eq!(decode(b"hell", Framing::Length(5), step, 0), Ok(None));
    }
    assert!(
        BodyDecoder::new(Framing::Empty, 0).is_done() && BodyDecoder::new(Framing::Length(0), 0).is_done()
    );
    let mut buffer = BytesMut::from(&b"abc"[..]);
    let mut decoder = BodyDecoder::new(Framing::Length(5), 0);
    assert!(matches!(decoder.next(&mut buffer), Ok(BodyEvent::Data(3))));
    buffer.advance(3);
    assert_eq!((decoder.remaining(), decoder.is_done(), decoder.ends_at_close()), (Some(2), false, false));
    buffer.extend_from_slice(b"de\r\n");
    assert!(matches!(decoder.next(&mut buffer), Ok(BodyEvent::Data(2))));
    buffer.advance(2);
    assert!(decoder.is_done() && matches!(decoder.next(&mut buffer), Ok(BodyEvent::End(None))));
    assert_eq!(&buffer[..], b"\r\n");

    let mut decoder = BodyDecoder::new(Framing::UntilClose, 0);
    assert!(matches!(decoder.next(&mut buffer), Ok(BodyEvent::Data(2))));
    buffer.advance(2);
    assert!(matches!(decoder.next(&mut buffer), Ok(BodyEvent::More)));
    assert!(decoder.ends_at_close() && !decoder.is_done());
    decoder.finish();
    assert!(decoder.is_done());
}
