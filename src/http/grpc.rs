//! How an answer of our own is told to a gRPC client: its HTTP status and body in, the values of
//! `grpc-status` and `grpc-message` out.

/// The gRPC status of an HTTP status (Envoy's mapping).
pub(super) fn status_of(status: u16) -> &'static str {
    match status {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    }
}

/// `grpc-message` encoding: printable ASCII but `%` as it is, all else escaped.
pub(super) fn percent_encoded(text: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if (0x20..0x7f).contains(byte) && *byte != b'%' {
            out.push(*byte);
        } else {
            // Writing to a vector does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
