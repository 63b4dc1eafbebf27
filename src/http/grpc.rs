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

/// The HTTP status of a gRPC status (Envoy's mapping); `None` if it is no number.
pub(super) fn http_status_of(status: &[u8]) -> Option<u16> {
    let code: u32 = std::str::from_utf8(status).ok()?.trim().parse().ok()?;
    Some(match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    })
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
