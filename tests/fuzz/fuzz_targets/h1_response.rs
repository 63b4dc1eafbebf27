//! Any bytes as a response head: no panic; what is decided does not depend on how the bytes were cut;
//! an accepted head, written again, is read the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::config::http::HeaderCase;
use outrigger::http::h1::{parse_response, write, ResponseLimits};

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (flags, cut, bytes) = input;
    let (to_head, to_connect, preserve_case) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let limits = ResponseLimits {
        max_head: 60 * 1024,
        max_fields: 100,
        preserve_case,
        proper_added: flags & 16 != 0,
        reason: flags & 32 != 0,
        chunked_length: flags & 8 != 0,
    };
    let whole = parse_response(bytes, &limits, to_head, to_connect);
    let cut = usize::from(cut) % (bytes.len() + 1);
    match (parse_response(&bytes[..cut], &limits, to_head, to_connect), &whole) {
        (Ok(None), _) | (Err(_), Err(_)) => {}
        (Ok(Some(part)), Ok(Some(whole))) => {
            assert_eq!((part.consumed, part.framing), (whole.consumed, whole.framing));
        }
        (part, whole) => panic!("cut at {cut}: {part:?}, whole: {whole:?}"),
    }
    let Ok(Some(parsed)) = whole else { return };
    assert!(parsed.consumed <= bytes.len());
    assert!((100..=999).contains(&parsed.head.status));
    let mut out = Vec::new();
    write::response_head(&mut out, &parsed.head, HeaderCase::Preserve, b"", false);
    if out.len() > limits.max_head {
        return;
    }
    let again = parse_response(&out, &limits, to_head, to_connect).expect("accepted").expect("complete");
    assert_eq!((again.framing, again.head.status), (parsed.framing, parsed.head.status));
    assert_eq!((again.consumed, again.head.fields.len()), (out.len(), parsed.head.fields.len()));
});
