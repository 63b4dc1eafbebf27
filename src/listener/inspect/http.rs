//! Recognising HTTP by its request line, or HTTP/2 by its preface.
//!
//! Comes in: the first bytes of a connection, again each time there are more. Goes out: a
//! [`Verdict`]. What counts as a request line was compared with Envoy 1.40's inspector, input by
//! input; it is laxer than the codec, which sees the same bytes afterwards.

use crate::config::token::is_token;

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Could become a request line.
    NeedMore,
    /// Not HTTP.
    NotHttp,
    /// HTTP: `http/1.0`, `http/1.1` or `h2c`.
    Http(&'static str),
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How far the search for the end of the line has come.
#[derive(Debug, Default)]
pub struct RequestLine {
    scanned: usize,
    method_ended: bool,
}

impl RequestLine {
    /// Looks at `bytes`: everything received so far, the earlier calls' bytes included.
    pub fn look(&mut self, bytes: &[u8]) -> Verdict {
        if bytes.starts_with(PREFACE) {
            return Verdict::Http("h2c");
        }
        if PREFACE.starts_with(bytes) {
            return Verdict::NeedMore;
        }
        let new = bytes.get(self.scanned..).unwrap_or_default();
        let end = new.iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at);
        if !self.method_ended {
            // Anything but a token before the first blank settles it without waiting for the line.
            let stop = new.iter().position(|byte| !is_token(*byte));
            match stop.and_then(|at| new.get(at)) {
                None => {}
                Some(b' ' | b'\t') if stop.unwrap_or(0) + self.scanned > 0 => self.method_ended = true,
                Some(_) => return Verdict::NotHttp,
            }
        }
        self.scanned = bytes.len();
        match end.and_then(|end| bytes.get(..end)) {
            Some(line) => {
                version(line.strip_suffix(b"\r").unwrap_or(line)).map_or(Verdict::NotHttp, Verdict::Http)
            }
            None => Verdict::NeedMore,
        }
    }
}

/// The protocol that a whole request line speaks of.
fn version(line: &[u8]) -> Option<&'static str> {
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let (method, target) = (words.next()?, words.next()?);
    if !is_target(target, method == b"CONNECT") {
        return None;
    }
    let Some(version) = words.next() else {
        return Some("http/1.0"); // The request of HTTP/0.9, which has no version.
    };
    match version {
        _ if words.next().is_some() => None,
        b"HTTP/1.1" => Some("http/1.1"),
        // A preface that went wrong.
        b"HTTP/2.0" if method == b"PRI" => None,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => {
            (major.is_ascii_digit() && minor.is_ascii_digit()).then_some("http/1.0")
        }
        _ => None,
    }
}

/// Origin form, asterisk form, or absolute form; with CONNECT also authority form.
fn is_target(target: &[u8], connect: bool) -> bool {
    if !target.iter().all(|byte| matches!(byte, 0 | 0x0c | b'!'..=b'~')) {
        return false;
    }
    match target {
        [b'/' | b'*', ..] => true,
        _ if connect => true,
        [first, ..] if first.is_ascii_alphabetic() => {
            let scheme =
                target.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
            target.get(scheme.count()..).is_some_and(|rest| rest.starts_with(b"://"))
        }
        _ => false,
    }
}
