//! Any bytes as a response head: no panic, nothing taken that is not there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::h1::{parse_response, ResponseLimits};

fuzz_target!(|input: (bool, bool, &[u8])| {
    let (to_head, to_connect, bytes) = input;
    let limits =
        ResponseLimits { max_head: 60 * 1024, max_fields: 100, preserve_case: false, chunked_length: false };
    if let Ok(Some(parsed)) = parse_response(bytes, &limits, to_head, to_connect) {
        assert!(parsed.consumed <= bytes.len());
        assert!((100..=999).contains(&parsed.head.status));
    }
});
