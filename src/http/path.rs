//! Path normalisation (RFC 3986 §5.2.4 and §6.2.2), as `normalize_path`, `merge_slashes` and
//! `path_with_escaped_slashes_action` ask for.

use crate::config::http::EscapedSlashes;
use crate::config::query::{encode, escaped, is_unreserved};

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized {
    /// It was normal already.
    Unchanged,
    /// This is it now.
    Changed(Vec<u8>),
    /// Redirect the client to this.
    Redirect(Vec<u8>),
    /// The request is bad; with the path as logs tell it, if that is another.
    Refused(Option<Vec<u8>>),
}

/// Normalises the path part of `path`; the query is left alone.
pub fn normalize(path: &[u8], dots: bool, slashes: bool, escaped_slashes: EscapedSlashes) -> Normalized {
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    let (before, query) = path.split_at(end);
    if is_normal(before) {
        return Normalized::Unchanged;
    }
    let whole = |mut path: Vec<u8>| {
        path.extend_from_slice(query);
        path
    };
    let mut current = before.to_vec();
    let mut redirect = false;
    if escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(&current) {
        current = unescape_slashes(&current);
        match escaped_slashes {
            EscapedSlashes::Keep | EscapedSlashes::UnescapeAndForward => {}
            EscapedSlashes::Reject => return Normalized::Refused(Some(whole(current))),
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
        }
    }
    if dots {
        match remove_dots(&current) {
            Some(clean) => current = clean,
            None => return Normalized::Refused(None),
        }
    }
    if slashes {
        merge_slashes(&mut current);
    }
    if current == before {
        return Normalized::Unchanged;
    }
    if redirect {
        Normalized::Redirect(whole(current))
    } else {
        Normalized::Changed(whole(current))
    }
}

/// Whether nothing could change the path, as it is with nearly all: a look at each byte.
fn is_normal(path: &[u8]) -> bool {
    let mut last = 0;
    for byte in path {
        let odd = match byte {
            b'%' | b'\\' => true,
            b'/' | b'.' => last == b'/',
            byte => must_be_escaped(*byte) || *byte == 0,
        };
        if odd {
            return false;
        }
        last = *byte;
    }
    path.first() == Some(&b'/')
}

/// Adjacent slashes become one. As in Envoy, of a path of nothing else two are left.
fn merge_slashes(path: &mut Vec<u8>) {
    let bare = path.len() > 1 && path.iter().all(|byte| *byte == b'/');
    path.dedup_by(|next, last| *next == b'/' && *last == b'/');
    if bare {
        path.push(b'/');
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

/// Bytes that are no URL's own (the path percent-encode set of the URL standard).
fn must_be_escaped(byte: u8) -> bool {
    matches!(byte, b' ' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Decodes percent-encoded unreserved bytes, encodes those that are no URL's, turns `\` into `/` and resolves dot
/// segments, those with parameters (`/..;a=b/`) too, as Envoy does before it decodes. Escapes that are none stay as they
/// are. `None` when the path does not begin with a slash or holds a zero byte, escaped or not.
fn remove_dots(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    for (index, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            decoded.push(b'/');
        }
        match segment {
            [b'.', b';', ..] => decoded.push(b'.'),
            [b'.', b'.', b';', ..] => decoded.extend_from_slice(b".."),
            segment => decode(segment, &mut decoded)?,
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

fn decode(segment: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = segment;
    while let Some((first, after)) = rest.split_first() {
        match *first {
            0 => return None,
            b'\\' => out.push(b'/'),
            b'%' => match escaped(rest) {
                Some(0) => return None,
                Some(byte) if is_unreserved(byte) => {
                    out.push(byte);
                    rest = rest.get(3..).unwrap_or_default();
                    continue;
                }
                _ => out.push(b'%'),
            },
            byte if must_be_escaped(byte) => encode(out, &[byte], |_| false),
            byte => out.push(byte),
        }
        rest = after;
    }
    Some(())
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
            ("/%zz", "/%zz"),
            ("/a%2", "/a%2"),
            ("/a%00b", "Refused(None)"),
            ("/a/..;x=1/b", "/b"),
            ("/a/.;/b", "/a/b"),
            ("/a/..;", "/"),
            ("/a;x/b", "/a;x/b"),
            // Escaped dots with parameters are no dot segment, before decoding or after.
            ("/a/%2e%2e;/b", "/a/..;/b"),
            ("/a/...;/b", "/a/...;/b"),
            ("/<\"^`{|}>", "/%3C%22%5E%60%7B%7C%7D%3E"),
            ("///", "//"),
        ] {
            assert_eq!(both(path), normal, "{path}");
        }
    }

    #[test]
    fn escaped_slashes_by_action() {
        let act = |action| normalize(b"/a%2Fb%5cc?x=%2f", false, false, action);
        assert_eq!(act(EscapedSlashes::Keep), Normalized::Unchanged);
        assert_eq!(act(EscapedSlashes::Reject), Normalized::Refused(Some(b"/a/b\\c?x=%2f".to_vec())));
        assert_eq!(act(EscapedSlashes::UnescapeAndForward), Normalized::Changed(b"/a/b\\c?x=%2f".to_vec()));
        assert_eq!(act(EscapedSlashes::UnescapeAndRedirect), Normalized::Redirect(b"/a/b\\c?x=%2f".to_vec()));
    }
}
