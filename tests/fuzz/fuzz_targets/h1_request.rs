//! Any bytes as a request head: no panic; what is decided does not depend on how the bytes were cut;
//! an accepted head, written again, is read the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::config::http::{HeaderCase, Underscores};
use outrigger::config::RequestView;
use outrigger::http::h1::{parse_request, write, RequestLimits};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let limits = RequestLimits {
        max_head: 60 * 1024,
        max_fields: 100,
        http_10: true,
        default_host: None,
        absolute_url: true,
        chunked_length: true,
        custom_methods: true,
        preserve_case: true,
        proper_added: true,
        underscores: Underscores::Allow,
        ignored_upgrades: Vec::new(),
    };
    let whole = parse_request(bytes, &limits);
    let cut = usize::from(cut) % (bytes.len() + 1);
    match (parse_request(&bytes[..cut], &limits), &whole) {
        (Ok(None), _) => {}
        (Ok(Some(part)), Ok(Some(whole))) => {
            assert_eq!((part.consumed, part.framing), (whole.consumed, whole.framing));
        }
        // That there are too many fields is seen before what is wrong with one of them, where all are there.
        (Err(part), Err(whole)) => assert!(part.status == whole.status || whole.status == 431),
        (part, whole) => panic!("cut at {cut}: {part:?}, whole: {whole:?}"),
    }
    let Ok(Some(parsed)) = whole else { return };
    assert!(parsed.consumed <= bytes.len());
    let (path, authority) = (parsed.head.path(), parsed.head.authority());
    if authority.is_empty() || !(path.is_empty() || path == b"*" || path.starts_with(b"/")) {
        // Refused by the connection manager.
        return;
    }
    let mut out = Vec::new();
    write::request_head(&mut out, &parsed.head, HeaderCase::Preserve, b"");
    if out.len() > limits.max_head {
        return;
    }
    // An absolute target may have brought the host that is a field now.
    let limits = RequestLimits { max_fields: limits.max_fields + 1, ..limits };
    let again = parse_request(&out, &limits).expect("accepted").expect("complete");
    assert_eq!(again.framing, parsed.framing);
    assert_eq!(again.consumed, out.len());
    assert_eq!((again.head.path(), again.head.authority()), (path, authority));
});
