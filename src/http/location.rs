//! Absolute URLs that requests are sent to by a redirect that is followed here.

/// An absolute URL, as far as a request needs it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Location<'l> {
    /// As it is spelled.
    pub(crate) scheme: &'l [u8],
    /// A name or an address, and maybe a port.
    pub(crate) authority: &'l [u8],
    /// Path and query; not empty, but where there is a query it may begin with that.
    pub(crate) path: &'l [u8],
}

impl<'l> Location<'l> {
    /// `None` for what is not an absolute URL.
    pub(crate) fn of(url: &'l [u8]) -> Option<Self> {
        let scheme = memchr::memmem::find(url, b"://")?;
        let (scheme, rest) = (url.get(..scheme)?, url.get(scheme + 3..)?);
        let named = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if !scheme.first()?.is_ascii_alphabetic() || !scheme.iter().all(named) {
            return None;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        let user = memchr::memrchr(b'@', authority).map_or(0, |at| at + 1);
        let authority = authority.get(user..)?;
        let path = path.split(|byte| *byte == b'#').next().unwrap_or_default();
        let path: &[u8] = if path.is_empty() { b"/" } else { path };
        (is_authority(authority) && path.iter().all(u8::is_ascii_graphic)).then_some(Self {
            scheme,
            authority,
            path,
        })
    }
}

/// Whether it is a name or an address, and if there is a port, that is one.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match (text.first(), memchr::memrchr(b']', text)) {
        (Some(b'['), Some(end)) => text.split_at(end + 1),
        _ => text.split_at(memchr::memchr(b':', text).unwrap_or(text.len())),
    };
    let port_fits = match port.split_first() {
        None => true,
        Some((b':', digits)) if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).is_ok_and(|digits| digits.parse::<u16>().is_ok())
        }
        Some(_) => false,
    };
    let host_fits = match host {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        }
        name => {
            let named = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
            !name.is_empty() && name.iter().all(named)
        }
    };
    port_fits && host_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_absolute() {
        let parts = |url: &'static str| {
            let location = Location::of(url.as_bytes())?;
            let text = |bytes: &'static [u8]| std::str::from_utf8(bytes).unwrap();
            Some([text(location.scheme), text(location.authority), text(location.path)])
        };
        for (url, expected) in [
            ("http://a.test", ["http", "a.test", "/"]),
            ("HTTP://a.test/x?y=1#z", ["HTTP", "a.test", "/x?y=1"]),
            ("https://u:p@a.test:81/x", ["https", "a.test:81", "/x"]),
            ("http://@a.test/", ["http", "a.test", "/"]),
            ("http://a.test?x=1", ["http", "a.test", "?x=1"]),
            ("http://[::1]:80/x", ["http", "[::1]:80", "/x"]),
            ("http://a.test./\"<>", ["http", "a.test.", "/\"<>"]),
            ("h2://a.test/", ["h2", "a.test", "/"]),
        ] {
            assert_eq!(parts(url), Some(expected), "{url}");
        }
        for url in [
            "",
            "/x",
            "x",
            "//a.test/x",
            "http:a.test/x",
            "http:///x",
            "http://a_b.test/",
            "http://a%41.test/",
            "http://[::x]/",
            "http://[/x",
            "http://a.test:/x",
            "http://a.test:99999/x",
            "http://a.test:1x/",
            "http://a.test/a b",
            "http://a.test/\u{e9}",
            "2http://a.test/",
        ] {
            assert_eq!(parts(url), None, "{url}");
        }
    }
}
