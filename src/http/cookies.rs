//! Cookies of a request, read and written as a whole.

use super::head::RequestHead;
use crate::config::Known;

/// The cookies of a request, names and values, in their order. Of several with one name all are there.
pub fn of(request: &RequestHead) -> impl Iterator<Item = (&[u8], &[u8])> {
    request.fields.all(Known::Cookie).flat_map(pairs)
}

/// The pairs in one `cookie` header.
fn pairs(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    header.split(|byte| *byte == b';').filter_map(|pair| {
        let pair = pair.trim_ascii_start();
        let at = memchr::memchr(b'=', pair)?;
        let value = pair.get(at + 1..).unwrap_or_default().trim_ascii_end();
        // Quotes around a value are no part of it.
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some((pair.get(..at).unwrap_or_default(), bare.unwrap_or(value)))
    })
}

/// Writes these cookies in place of all others; none take the header away.
pub fn write<'c>(request: &mut RequestHead, cookies: impl IntoIterator<Item = (&'c [u8], &'c [u8])>) {
    let mut text = Vec::new();
    for (name, value) in cookies {
        if !text.is_empty() {
            text.extend_from_slice(b"; ");
        }
        text.extend_from_slice(name);
        text.push(b'=');
        text.extend_from_slice(value);
    }
    if text.is_empty() {
        request.fields.remove_known(Known::Cookie);
    } else {
        request.fields.set_known(Known::Cookie, &text);
    }
}

/// Keeps the cookies whose names `keeps` takes. Where it takes all nothing is written anew.
pub fn retain(request: &mut RequestHead, keeps: impl Fn(&[u8]) -> bool) {
    let all: Vec<(Vec<u8>, Vec<u8>)> =
        of(request).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    if all.iter().all(|(name, _)| keeps(name)) {
        return;
    }
    let kept = all.iter().filter(|(name, _)| keeps(name)).map(|(name, value)| (&**name, &**value));
    write(request, kept);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::call;

    #[test]
    fn cookies_are_found_and_taken_out() {
        let mut request = call::head(b"GET", b"a.test", b"/", b"http");
        request.fields.push(b"cookie", b"a=1; key=\"k=1\"; b=2");
        request.fields.push(b"cookie", b"c=3;key=2");
        let found: Vec<_> = of(&request).collect();
        assert_eq!(found[1], (&b"key"[..], &b"k=1"[..]));
        assert_eq!(found.len(), 5);
        retain(&mut request, |name| name != b"key");
        assert_eq!(request.fields.get(Known::Cookie), Some(&b"a=1; b=2; c=3"[..]));
        retain(&mut request, |_| false);
        assert!(!request.fields.has(Known::Cookie));
    }
}
