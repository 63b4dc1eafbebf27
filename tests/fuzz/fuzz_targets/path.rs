//! Any bytes as a path: no panic; a path that was normalised once stays as it is, and no dot segment
//! is left in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::config::http::EscapedSlashes;
use outrigger::http::path::{normalize, Normalized};

fuzz_target!(|input: (u8, &[u8])| {
    let (flags, path) = input;
    let (dots, slashes) = (flags & 1 != 0, flags & 2 != 0);
    let escaped = [
        EscapedSlashes::Keep,
        EscapedSlashes::Reject,
        EscapedSlashes::UnescapeAndRedirect,
        EscapedSlashes::UnescapeAndForward,
    ][usize::from(flags >> 2 & 3)];
    let clean = match normalize(path, dots, slashes, escaped) {
        Normalized::Refused => return,
        Normalized::Unchanged => path.to_vec(),
        Normalized::Changed(clean) | Normalized::Redirect(clean) => clean,
    };
    let again = normalize(&clean, dots, slashes, escaped);
    assert_eq!(again, Normalized::Unchanged, "{}", clean.escape_ascii());
    let end = clean.iter().position(|byte| *byte == b'?').unwrap_or(clean.len());
    let mut segments = clean[..end].split(|byte| *byte == b'/');
    assert!(!dots || !segments.any(|segment| segment == b"." || segment == b".."));
    assert!(!slashes || !clean[..end].windows(2).any(|two| two == b"//"));
});
