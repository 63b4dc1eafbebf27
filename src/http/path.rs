//! Path normalisation (RFC 3986 §5.2.4 and §6.2.2), as `normalize_path`, `merge_slashes` and
//! `path_with_escaped_slashes_action` ask for.

use crate::config::http::EscapedSlashes;

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized {
    /// It was normal already.
    Unchanged,
    /// This is it now.
    Changed(Vec<u8>),
    /// Redirect the client to this.
    Redirect(Vec<u8>),
    /// The request is bad.
    Refused,
}

/// Normalises the path part of `path`; the query is left alone.
pub fn normalize(path: &[u8], dots: bool, slashes: bool, escaped: EscapedSlashes) -> Normalized {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let (before, query) = path.split_at(end);
    let mut current = before.to_vec();
    let mut redirect = false;
    if escaped != EscapedSlashes::Keep && has_escaped_slash(&current) {
        match escaped {
            EscapedSlashes::Keep => {}
            EscapedSlashes::Reject => return Normalized::Refused,
            EscapedSlashes::UnescapeAndRedirect | EscapedSlashes::UnescapeAndForward => {
                current = unescape_slashes(&current);
                redirect = escaped == EscapedSlashes::UnescapeAndRedirect;
            }
        }
    }
    if dots {
        match remove_dots(&current) {
            Some(clean) => current = clean,
            None => return Normalized::Refused,
        }
    }
    if slashes {
        current.dedup_by(|next, last| *next == b'/' && *last == b'/');
    }
    if current == before {
        return Normalized::Unchanged;
    }
    current.extend_from_slice(query);
    if redirect {
        Normalized::Redirect(current)
    } else {
        Normalized::Changed(current)
    }
}

fn escaped_slash(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', b'2', b'f' | b'F', ..] => Some(b'/'),
        [b'%', b'5', b'c' | b'C', ..] => Some(b'\\'),
        _ => None,
    }
}

fn has_escaped_slash(path: &[u8]) -> bool {
    (0..path.len()).any(|at| path.get(at..).and_then(escaped_slash).is_some())
}

fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        if let Some(slash) = escaped_slash(rest) {
            out.push(slash);
            rest = rest.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

/// Decodes percent-encoded unreserved bytes, turns `\` into `/` and resolves dot segments. `None`
/// when the path does not begin with a slash or an escape is broken.
fn remove_dots(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'\\' => decoded.push(b'/'),
            b'%' => {
                let (high, low) = (hex(*after.first()?)?, hex(*after.get(1)?)?);
                let byte = high * 16 + low;
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                    decoded.push(byte);
                } else {
                    decoded.push(b'%');
                    decoded.extend_from_slice(after.get(..2).unwrap_or_default());
                }
                rest = after.get(2..).unwrap_or_default();
            }
            0 => return None,
            other => decoded.push(*other),
        }
    }
    let inner = decoded.strip_prefix(b"/")?;
    let mut out: Vec<&[u8]> = Vec::new();
    let mut segments = inner.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                out.pop();
            }
            other => {
                out.push(other);
                continue;
            }
        }
        if last {
            // `/a/.` and `/a/b/..` end in a slash.
            out.push(b"");
        }
    }
    let mut clean = Vec::with_capacity(decoded.len());
    for segment in out {
        clean.push(b'/');
        clean.extend_from_slice(segment);
    }
    if clean.is_empty() {
        clean.push(b'/');
    }
    Some(clean)
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(path: &str) -> String {
        match normalize(path.as_bytes(), true, true, EscapedSlashes::Keep) {
            Normalized::Unchanged => path.into(),
            Normalized::Changed(path) => String::from_utf8(path).expect("ascii"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn dot_segments_and_double_slashes() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/../../etc", "/etc"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("//a///b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2fb", "/a%2fb"),
            ("/a\\b", "/a/b"),
            ("/x/../y?q=/a/../b", "/y?q=/a/../b"),
            ("/%zz", "Refused"),
        ] {
            assert_eq!(both(path), normal, "{path}");
        }
    }

    #[test]
    fn escaped_slashes_by_action() {
        let act = |action| normalize(b"/a%2Fb%5cc?x=%2f", false, false, action);
        assert_eq!(act(EscapedSlashes::Keep), Normalized::Unchanged);
        assert_eq!(act(EscapedSlashes::Reject), Normalized::Refused);
        assert_eq!(act(EscapedSlashes::UnescapeAndForward), Normalized::Changed(b"/a/b\\c?x=%2f".to_vec()));
        assert_eq!(act(EscapedSlashes::UnescapeAndRedirect), Normalized::Redirect(b"/a/b\\c?x=%2f".to_vec()));
    }
}
