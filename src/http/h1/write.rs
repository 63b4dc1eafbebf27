//! Message heads to bytes.

use crate::config::http::HeaderCase;
use crate::config::RequestView;
use crate::http::fields::{proper_name, Fields};
use crate::http::head::{reason, RequestHead, ResponseHead};

/// Appends a request head; `extra` are complete lines that go last.
pub fn request_head(out: &mut Vec<u8>, head: &RequestHead, case: HeaderCase, extra: &[u8]) {
    out.extend_from_slice(head.method());
    out.push(b' ');
    // CONNECT has no path; its target is the authority.
    out.extend_from_slice(if head.path().is_empty() { head.authority() } else { head.path() });
    if case == HeaderCase::Proper || head.fields.keeps_spelling() {
        out.extend_from_slice(b" HTTP/1.1\r\n");
        name(out, &head.fields, case, b"host");
        out.extend_from_slice(b": ");
    } else {
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    }
    out.extend_from_slice(head.authority());
    out.extend_from_slice(b"\r\n");
    lines(out, &head.fields, case, extra);
    out.extend_from_slice(b"\r\n");
}

/// Appends a response head; `extra` are complete lines that go last. `http_10` answers an HTTP/1.0
/// client in its own version.
pub fn response_head(out: &mut Vec<u8>, head: &ResponseHead, case: HeaderCase, extra: &[u8], http_10: bool) {
    status_line(out, head, http_10);
    lines(out, &head.fields, case, extra);
    out.extend_from_slice(b"\r\n");
}

fn status_line(out: &mut Vec<u8>, head: &ResponseHead, http_10: bool) {
    if head.status == 200 && !http_10 && head.reason().is_none() {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(if http_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(head.status_text());
    out.push(b' ');
    out.extend_from_slice(head.reason().unwrap_or_else(|| reason(head.status)).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What came with its spelling has it where it goes, whatever is the rule there.
#[inline(always)]
fn lines(out: &mut Vec<u8>, fields: &Fields, case: HeaderCase, extra: &[u8]) {
    if case != HeaderCase::Proper && !fields.keeps_spelling() {
        fields.write_lines(out);
        return out.extend_from_slice(extra);
    }
    spelled_lines(out, fields, case, extra);
}

/// The same, where names are not all in lower case.
fn spelled_lines(out: &mut Vec<u8>, fields: &Fields, case: HeaderCase, extra: &[u8]) {
    match case {
        HeaderCase::Proper if !fields.keeps_spelling() => fields.write_lines_proper(out),
        _ => fields.write_lines(out),
    }
    for line in extra.split_inclusive(|byte| *byte == b'\n') {
        let (key, value) = line.split_at(memchr::memchr(b':', line).unwrap_or(0));
        name(out, fields, case, key);
        out.extend_from_slice(value);
    }
}

/// Appends a name that is in lower case.
fn name(out: &mut Vec<u8>, fields: &Fields, case: HeaderCase, name: &[u8]) {
    match case {
        HeaderCase::Proper if !fields.keeps_spelling() => proper_name(out, name),
        _ => fields.write_name(name, out),
    }
}

/// Appends the line that opens a chunk of `length` bytes.
pub fn chunk_open(out: &mut Vec<u8>, length: usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut rest = length;
    loop {
        at -= 1;
        // 16 digits hold any usize; `rest & 15` is a digit.
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

/// Appends the end of a chunked body with trailers.
pub fn chunked_end(out: &mut Vec<u8>, trailers: Option<&Fields>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write_lines(out);
    }
    out.extend_from_slice(b"\r\n");
}
