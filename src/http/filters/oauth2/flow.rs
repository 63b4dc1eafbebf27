//! The way to the provider and back: what it is told, and what comes back from it.

use aws_lc_rs::digest::{digest, SHA256};
use base64::prelude::{Engine as _, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use super::session;
use crate::config::query::{encode, is_unreserved, Query};
use crate::config::RequestView;
use crate::http::head::RequestHead;

/// What the provider sends somebody back with.
pub enum Callback {
    /// A code for tokens.
    Good {
        /// The code.
        code: Vec<u8>,
        /// Where the flow began.
        url: Vec<u8>,
        /// Its id.
        flow: String,
    },
    /// Nothing that can be used.
    Bad {
        /// Why.
        details: String,
        /// The flow's id, if that is certain.
        flow: String,
    },
}

/// 32 random octets (RFC 7636 §7.1), as text; `None` where nothing is random.
pub fn verifier() -> Option<String> {
    let mut octets = [0; 32];
    aws_lc_rs::rand::fill(&mut octets).ok()?;
    Some(BASE64_URL_SAFE_NO_PAD.encode(octets))
}

/// What the provider gives back as it is.
pub fn state(url: &[u8], csrf: &str, flow: &str) -> String {
    let text = |text: &str| Value::from(text).to_string();
    let url = text(&String::from_utf8_lossy(url));
    let json = format!("{{\"url\":{url},\"csrf_token\":{},\"flow_id\":{}}}", text(csrf), text(flow));
    BASE64_URL_SAFE_NO_PAD.encode(json)
}

/// Where users log in: `endpoint` with what is to be told of this flow in its query.
pub fn authorization(endpoint: &[u8], state: &str, redirect_uri: &[u8], verifier: &str) -> Vec<u8> {
    let mut query = Query::raw(endpoint);
    let mut escaped = Vec::with_capacity(redirect_uri.len() * 2);
    encode(&mut escaped, redirect_uri, is_unreserved);
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    query.set(b"state", state.as_bytes());
    query.set(b"redirect_uri", &escaped);
    query.set(b"code_challenge", challenge.as_bytes());
    query.set(b"code_challenge_method", b"S256");
    query.written()
}

/// Reads what the provider says, which must belong to a flow of this browser.
pub fn callback(request: &RequestHead, secret: &[u8], nonce: &str, domains: &[Box<str>]) -> Callback {
    let query = Query::raw(request.path());
    let shown = || {
        let written = query.written();
        let at = memchr::memchr(b'?', &written).unwrap_or(written.len());
        String::from_utf8_lossy(written.get(at..).unwrap_or_default()).into_owned()
    };
    let bad = |details: String, flow: &str| Callback::Bad { details, flow: flow.to_owned() };
    let (code, state) = (query.first(b"code"), query.first(b"state"));
    if query.first(b"error").is_some() {
        let checked = state.map(|state| check(request, state, secret, nonce, domains));
        let flow = match checked {
            Some(Ok((_, flow)) | Err((_, flow))) => flow,
            None => String::new(),
        };
        return bad(format!("OAuth server returned an error: {}", shown()), &flow);
    }
    let (Some(code), Some(state)) = (code, state) else {
        return bad(format!("Code or state query param does not exist: {}", shown()), "");
    };
    match check(request, state, secret, nonce, domains) {
        Ok((url, flow)) => Callback::Good { code: code.to_vec(), url, flow },
        Err((details, flow)) => bad(details, &flow),
    }
}

/// Where the flow began and its id; the error is why that is not to be trusted.
fn check(
    request: &RequestHead,
    state: &[u8],
    secret: &[u8],
    nonce: &str,
    domains: &[Box<str>],
) -> Result<(Vec<u8>, String), (String, String)> {
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(state).unwrap_or_default();
    let shown = String::from_utf8_lossy(&decoded);
    let none = String::new;
    let Ok(Value::Object(all)) = serde_json::from_slice::<Value>(&decoded) else {
        return Err((format!("State query param is not a valid JSON: {shown}"), none()));
    };
    let (Some(url), Some(csrf)) = (all.get("url"), all.get("csrf_token")) else {
        return Err((format!("State query param does not contain url or CSRF token: {shown}"), none()));
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (url, csrf) = (text(url), text(csrf));
    let flow = all.get("flow_id").map(text).unwrap_or_default();
    let kept = session::of_flow(request, nonce, &flow);
    if kept.is_none_or(|kept| kept != csrf.as_bytes()) || !session::is_csrf_token(secret, csrf.as_bytes()) {
        return Err(("CSRF token validation failed".to_owned(), none()));
    }
    if host_of(url.as_bytes()).is_none() {
        return Err((format!("State url can not be initialized: {url}"), flow));
    }
    if !is_allowed(url.as_bytes(), domains) {
        return Err((format!("State url host is not in the allowed redirect domains: {url}"), flow));
    }
    Ok((url.into_bytes(), flow))
}

/// The host and port of an absolute URL, and what follows. It may stand in a header: nothing in it ends one.
fn host_of(url: &[u8]) -> Option<(&[u8], &[u8])> {
    if !url.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let at = memchr::memmem::find(url, b"://")?;
    let scheme = url.get(..at)?.to_ascii_lowercase();
    if !matches!(&*scheme, b"http" | b"https") {
        return None;
    }
    let rest = url.get(at + 3..)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (host, path) = rest.split_at_checked(end)?;
    (!host.is_empty()).then_some((host, path))
}

/// The path of an absolute URL.
pub fn path_of(url: &[u8]) -> &[u8] {
    host_of(url).map_or(b"", |(_, path)| if path.is_empty() { b"/" } else { path })
}

/// Whether users may be sent there.
pub fn is_allowed(url: &[u8], domains: &[Box<str>]) -> bool {
    if domains.is_empty() {
        return true;
    }
    let Some(host) = host_of(url).and_then(|(host, _)| bare_host(host)) else { return false };
    domains.iter().any(|domain| match domain.strip_prefix('*').filter(|rest| rest.starts_with('.')) {
        Some(suffix) => host
            .split_at_checked(host.len().saturating_sub(suffix.len()))
            .is_some_and(|(name, end)| !name.is_empty() && end.eq_ignore_ascii_case(suffix.as_bytes())),
        None => host.eq_ignore_ascii_case(domain.as_bytes()),
    })
}

/// A host without its port and brackets. None where browsers could read it as another one: names before an `@`, and `\`,
/// which they take for `/`.
fn bare_host(host: &[u8]) -> Option<&[u8]> {
    let (host, port) = match host.strip_prefix(b"[") {
        Some(literal) => literal.split_at_checked(memchr::memchr(b']', literal)?)?,
        None => host.split_at_checked(memchr::memchr(b':', host).unwrap_or(host.len()))?,
    };
    let port = port.strip_prefix(b"]").unwrap_or(port);
    let is_port = port.is_empty() || port.strip_prefix(b":")?.iter().all(u8::is_ascii_digit);
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:".contains(byte);
    (is_port && host.iter().all(is_host)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_sent_to_hosts_that_are_allowed() {
        let domains = ["a.test", "*.b.test", "::1"].map(Box::from);
        for (url, wanted) in [
            ("https://a.test/x", true),
            ("http://A.test:8080", true),
            ("https://x.b.test/", true),
            ("https://b.test/", false),
            ("https://evil.test/?a.test", false),
            ("https://[::1]:80/", true),
            ("a.test", false),
            ("https://X.B.TEST/", true),
            // What browsers take for another host.
            ("https://a.test@evil.test/", false),
            ("https://a.test:x@evil.test/", false),
            ("https://[::1]@evil.test/", false),
            ("https://evil.test\\.b.test/", false),
            ("https://a.test\r\nset-cookie: x=y/", false),
        ] {
            assert_eq!(is_allowed(url.as_bytes(), &domains), wanted, "{url}");
        }
        assert!(is_allowed(b"anything", &[]));
        assert!(host_of(b"https://a.test/\r\nset-cookie: x=y").is_none(), "it would end a header");
    }

    #[test]
    fn the_provider_is_told_of_the_flow() {
        let url = authorization(b"https://login.test/auth?client_id=me&z=1", "st", b"https://a.test/cb", "v");
        let text = String::from_utf8(url).unwrap();
        assert!(text.starts_with("https://login.test/auth?client_id=me&code_challenge="), "{text}");
        assert!(
            text.ends_with("&code_challenge_method=S256&redirect_uri=https%3A%2F%2Fa.test%2Fcb&state=st&z=1")
        );
    }
}
