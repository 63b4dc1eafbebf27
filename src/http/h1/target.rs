//! The request line's method and target, and hosts: text in, its parts or a refusal out
//! (RFC 9112 §3, RFC 9110 §4.2 and §7.2).

use super::Refusal;

/// The registered methods (RFC 9110 §9, RFC 5789) and the WebDAV ones that Envoy's parser knows.
pub(super) fn known_method(method: &str) -> bool {
    matches!(
        method,
        "GET"
            | "HEAD"
            | "POST"
            | "PUT"
            | "DELETE"
            | "CONNECT"
            | "OPTIONS"
            | "TRACE"
            | "PATCH"
            | "ACL"
            | "BIND"
            | "CHECKOUT"
            | "COPY"
            | "LINK"
            | "LOCK"
            | "M-SEARCH"
            | "MERGE"
            | "MKACTIVITY"
            | "MKCALENDAR"
            | "MKCOL"
            | "MOVE"
            | "NOTIFY"
            | "PROPFIND"
            | "PROPPATCH"
            | "PURGE"
            | "REBIND"
            | "REPORT"
            | "SEARCH"
            | "SOURCE"
            | "SUBSCRIBE"
            | "UNBIND"
            | "UNLINK"
            | "UNLOCK"
            | "UNSUBSCRIBE"
    )
}

/// A request target taken apart (RFC 9112 §3.2).
pub(super) struct Target<'a> {
    pub scheme: Option<&'static [u8]>,
    pub authority: Option<&'a [u8]>,
    pub path: &'a [u8],
}

impl<'a> Target<'a> {
    pub fn parse(method: &[u8], target: &'a [u8], absolute: bool) -> Result<Self, Refusal> {
        if !all_visible(target) {
            let control = |byte: &u8| *byte <= 0x20 || *byte == 0x7f;
            return Err(if target.iter().any(control) { Refusal::CHARACTERS } else { Refusal::CODEC });
        }
        if method == b"CONNECT" {
            let port = target.rsplit(|byte| *byte == b':').next().unwrap_or_default();
            let has_port = target.contains(&b':') && !port.is_empty() && port.iter().all(u8::is_ascii_digit);
            if !has_port || target.contains(&b'/') {
                return Err(Refusal::TARGET);
            }
            return Ok(Self { scheme: None, authority: Some(target), path: b"" });
        }
        match target.first() {
            Some(b'/') => return Ok(Self { scheme: None, authority: None, path: target }),
            Some(b'*') if target.len() == 1 && method == b"OPTIONS" => {
                return Ok(Self { scheme: None, authority: None, path: target })
            }
            _ => {}
        }
        let rest = strip_prefix_ignore_case(target, b"http://")
            .map(|rest| (&b"http"[..], rest))
            .or_else(|| strip_prefix_ignore_case(target, b"https://").map(|rest| (&b"https"[..], rest)));
        let Some((scheme, rest)) = rest else {
            return Err(match target.first() {
                Some(b'*') => Refusal::TARGET,
                _ if scheme_of(target).is_some() => Refusal::SCHEME,
                _ => Refusal::CODEC,
            });
        };
        if !absolute {
            // Left as it is; the connection manager refuses a path that does not begin with `/`.
            return Ok(Self { scheme: None, authority: None, path: target });
        }
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // User information says nothing to anyone after us. A second `@` is refused as part of the host.
        let host = memchr::memchr(b'@', authority).map_or(0, |at| at + 1);
        let authority = authority.get(host..).unwrap_or_default();
        match path.first() {
            _ if authority.is_empty() => Err(Refusal::TARGET),
            Some(_) => Ok(Self { scheme: Some(scheme), authority: Some(authority), path }),
            None => Ok(Self { scheme: Some(scheme), authority: Some(authority), path: b"/" }),
        }
    }
}

/// Whether every byte is a visible ASCII character. Without a branch per byte.
fn all_visible(text: &[u8]) -> bool {
    let eight = |word: &[u8; 8]| word.iter().fold(true, |all, byte| all & byte.is_ascii_graphic());
    let (words, rest) = text.as_chunks::<8>();
    words.iter().all(eight) && rest.iter().all(u8::is_ascii_graphic)
}

/// The scheme of an absolute target, without its `://`.
fn scheme_of(target: &[u8]) -> Option<&[u8]> {
    let end = memchr::memmem::find(target, b"://")?;
    let scheme = target.get(..end)?;
    let rest = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    (scheme.first()?.is_ascii_alphabetic() && scheme.iter().all(rest)).then_some(scheme)
}

/// Whether this could be a request target at all, in any of its forms.
pub(super) fn shaped_like_target(method: &[u8], target: &[u8]) -> bool {
    match target.first() {
        None => false,
        Some(b'/' | b'*') => true,
        Some(_) => method == b"CONNECT" || scheme_of(target).is_some(),
    }
}

fn strip_prefix_ignore_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What a host name may be made of (RFC 3986 §3.2.2: unreserved, sub-delims but the comma, percent).
const REG_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'%'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b';'
                    | b'='
            );
        byte += 1;
    }
    table
};

/// `host[:port]` (RFC 9110 §7.2): no userinfo, no path, no list, a port of digits.
pub(crate) fn check_authority(authority: &[u8]) -> Result<(), Refusal> {
    let allowed = |byte: &u8| REG_NAME[usize::from(*byte)];
    let (host, port) = if authority.first() == Some(&b'[') {
        let end = authority.iter().position(|byte| *byte == b']').ok_or(Refusal::HOST)?;
        let inside = authority.get(1..end).unwrap_or_default();
        if !inside.iter().all(|byte| {
            byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'%') || byte.is_ascii_alphabetic()
        }) {
            return Err(Refusal::HOST);
        }
        (inside, authority.get(end + 1..).unwrap_or_default())
    } else {
        // What comes after the name must be a colon, which the end of this sees to.
        let end = authority.iter().position(|byte| !allowed(byte)).unwrap_or(authority.len());
        authority.split_at(end)
    };
    let port_ok = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    if host.is_empty() || !port_ok {
        return Err(Refusal::HOST);
    }
    Ok(())
}
