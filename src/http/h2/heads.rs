//! Heads between the `h2` crate's form and ours, both ways.
//!
//! Inside, a message looks as it would over HTTP/1: an extended CONNECT (RFC 8441) is an upgrade, crumbs of a
//! cookie are one field (RFC 9113 §8.2.3). What the crate has checked (names in lower case, no fields of a
//! connection, pseudo fields first) is not checked again; what it lets through and HTTP/1 could not say without
//! doubt is refused here.

use std::sync::LazyLock;

use bytes::Bytes;
use h2::ext::Protocol as ConnectProtocol;
use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};

use crate::config::http::{RequestLimits, Underscores};
use crate::config::{Known, KnownSet, RequestView};
use crate::http::fields::Fields;
use crate::http::h1::{check_authority, reads_as_framing, Framing};
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stream_info::Protocol;

/// Fields of a connection, which a message over HTTP/2 has not (RFC 9113 §8.2.2).
const OF_CONNECTION: KnownSet = Known::Connection.bit()
    | Known::KeepAlive.bit()
    | Known::ProxyConnection.bit()
    | Known::TransferEncoding.bit()
    | Known::Upgrade.bit()
    | Known::Http2Settings.bit();

/// Why a request cannot be served as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// Malformed (RFC 9113 §8.1.1): the stream is reset.
    Malformed(&'static str),
    /// More fields than allowed.
    TooManyFields,
    /// A name with an underscore.
    Underscore,
}

/// What follows a request's head.
#[derive(Debug)]
pub struct Parsed {
    /// The head.
    pub head: RequestHead,
    /// Whether and how a body follows, in HTTP/1's terms.
    pub framing: Framing,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// Names with an underscore that were dropped.
    pub dropped: u64,
}

/// A request's head. `ended` says that no body follows; `random` makes the key of a WebSocket, which over HTTP/2
/// has none and without which no HTTP/1 server accepts one (RFC 8441 §5).
///
/// # Errors
/// [`Bad`] when it must not be served.
pub fn request(
    parts: &http::request::Parts,
    ended: bool,
    limits: &RequestLimits,
    random: impl Fn() -> u64,
) -> Result<Parsed, Bad> {
    let mut fields = Fields::recycled();
    let connect_protocol = parts.extensions.get::<ConnectProtocol>();
    let method = parts.method.as_str().as_bytes();
    if method.iter().any(u8::is_ascii_lowercase) {
        return Err(Bad::Malformed("http2.invalid_method"));
    }
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str).as_bytes();
    if !path.iter().all(|byte| (0x21..0x7f).contains(byte)) {
        return Err(Bad::Malformed("http2.invalid_path"));
    }
    let host = parts.headers.get(http::header::HOST).map(HeaderValue::as_bytes);
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(authority), Some(host)) = (authority, host) {
        if !authority.eq_ignore_ascii_case(host) {
            return Err(Bad::Malformed("http2.authority_differs_from_host"));
        }
    }
    let authority = authority.or(host).unwrap_or_default();
    if !authority.is_empty() && check_authority(authority).is_err() {
        return Err(Bad::Malformed("http2.invalid_authority"));
    }
    let upgrade = connect_protocol.is_some();
    let method = if upgrade { b"GET" } else { method };
    let method = fields.store(method);
    let path = fields.store(path);
    let authority = fields.store(authority);
    let mut dropped = 0;
    let mut hosts = 0;
    if parts.headers.len() > limits.max_fields {
        return Err(Bad::TooManyFields);
    }
    let mut cookies: Option<Vec<u8>> = None;
    for (name, value) in &parts.headers {
        let name = name.as_str().as_bytes();
        let value = value.as_bytes();
        match name {
            b"host" => {
                hosts += 1;
                if hosts > 1 {
                    return Err(Bad::Malformed("http2.several_hosts"));
                }
                continue;
            }
            b"cookie" => {
                match &mut cookies {
                    Some(all) => {
                        all.extend_from_slice(b"; ");
                        all.extend_from_slice(value);
                    }
                    None => cookies = Some(value.to_vec()),
                }
                continue;
            }
            _ => {}
        }
        if reads_as_framing(name) {
            return Err(Bad::Malformed("http2.framing_in_disguise"));
        }
        if limits.underscores != Underscores::Allow && name.contains(&b'_') {
            match limits.underscores {
                Underscores::Reject => return Err(Bad::Underscore),
                _ => {
                    dropped += 1;
                    continue;
                }
            }
        }
        fields.push(name, value.trim_ascii());
    }
    if let Some(cookies) = cookies {
        fields.push_known(Known::Cookie, &cookies);
    }
    let length = content_length(&parts.headers)?;
    let connect = !upgrade && parts.method == Method::CONNECT;
    // What follows a CONNECT is no body of it.
    let framing = framing(ended || connect || upgrade, length);
    let expects_continue =
        !ended && fields.get(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    if let Some(protocol) = connect_protocol {
        fields.push_known(Known::Upgrade, protocol.as_str().as_bytes());
        fields.push_known(Known::Connection, b"upgrade");
        if protocol.as_str() == "websocket" && !parts.headers.contains_key(http::header::SEC_WEBSOCKET_KEY) {
            fields.push(b"sec-websocket-key", &websocket_key(random(), random()));
        }
    }
    let mut head = RequestHead::new(fields, Protocol::Http2, method, path, authority);
    if let Some(scheme) = parts.uri.scheme_str() {
        head.set_scheme(scheme.as_bytes());
    }
    if let Some(protocol) = connect_protocol {
        head.set_upgrade(&protocol.as_str().to_ascii_lowercase().into_bytes());
    } else if connect {
        head.set_upgrade(b"connect");
    }
    Ok(Parsed { head, framing, expects_continue, dropped })
}

/// Sixteen random bytes in base64 (RFC 6455 §4.1).
fn websocket_key(one: u64, two: u64) -> [u8; 24] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // 128 bits in groups of six, the last of which has two and four zeros.
    let bits = (u128::from(one) << 64) | u128::from(two);
    let mut key = [b'='; 24];
    for (place, letter) in key.iter_mut().take(22).enumerate() {
        let group = if place < 21 { bits >> (122 - 6 * place) } else { bits << 4 };
        // Six bits are an index into 64 letters.
        *letter = ALPHABET[(group & 63) as usize];
    }
    key
}

/// The body's length by its field.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Bad> {
    const BAD: Bad = Bad::Malformed("http2.content_length");
    let mut all = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.any(|other| other != first) {
        return Err(BAD);
    }
    let digits = first.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).map(Some).ok_or(BAD)
}

fn framing(ended: bool, length: Option<u64>) -> Framing {
    match length {
        _ if ended => Framing::Empty,
        Some(length) if length > 0 => Framing::Length(length),
        _ => Framing::Chunked,
    }
}

/// A response's head and how its body would be framed. `ended` says that no body follows, `to_connect` that
/// success opens a tunnel, `to_upgrade` that it accepts the upgrade which the extended CONNECT was.
///
/// # Errors
/// [`Bad`] when the length is no length.
pub fn response(
    parts: &http::response::Parts,
    ended: bool,
    to_head: bool,
    to_connect: bool,
    upgrade: Option<&[u8]>,
) -> Result<(ResponseHead, Framing), Bad> {
    let mut status = parts.status.as_u16();
    let mut fields = fields_of(&parts.headers);
    let length = content_length(&parts.headers)?;
    let accepted = (200..300).contains(&status);
    let tunnel = accepted && (to_connect || upgrade.is_some());
    if let (Some(protocol), true) = (upgrade, accepted) {
        status = 101;
        fields.push_known(Known::Upgrade, protocol);
        fields.push_known(Known::Connection, b"upgrade");
        fields.remove_known(Known::ContentLength);
    }
    // A tunnel whose end comes with its head is one all the same.
    let framing = if tunnel { Framing::Tunnel } else { framing(ended || to_head, length) };
    Ok((ResponseHead::new(fields, status, Protocol::Http2), framing))
}

/// Fields out of a map, in its order.
pub fn fields_of(map: &HeaderMap) -> Fields {
    let mut fields = Fields::recycled();
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields
}

/// The crate's names of the fields that we know by number.
static NAMES: LazyLock<Vec<Option<HeaderName>>> = LazyLock::new(|| {
    let mut names = Vec::new();
    for known in Known::all() {
        let place = known as usize;
        if names.len() <= place {
            names.resize(place + 1, None);
        }
        // Pseudo fields are no names; they find no place.
        names[place] = HeaderName::from_bytes(known.name().as_bytes()).ok();
    }
    names
});

/// A map of fields. What HTTP/2 has no place for is left out.
pub fn map_of(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    let bytes = fields.frozen();
    let names = &*NAMES;
    for (known, name, value) in fields.spans() {
        if OF_CONNECTION & known.bit() != 0 && known != Known::Other {
            continue;
        }
        let name = match names.get(known as usize) {
            Some(Some(name)) => name.clone(),
            _ => match HeaderName::from_bytes(fields.bytes(name)) {
                Ok(name) => name,
                Err(_) => continue,
            },
        };
        if let Ok(mut value) = HeaderValue::from_maybe_shared(bytes.slice(value)) {
            // Never the same twice: not worth a place in a table of names and values.
            value.set_sensitive(known == Known::XRequestId);
            map.append(name, value);
        }
    }
    map
}

/// The head of a response for a client. 101 is what HTTP/1 says for success of an extended CONNECT.
pub fn to_client(head: &ResponseHead) -> Response<()> {
    let mut map = map_of(&head.fields);
    let status = if head.status == 101 {
        map.remove(http::header::SEC_WEBSOCKET_ACCEPT);
        StatusCode::OK
    } else {
        StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY)
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = map;
    *response.version_mut() = Version::HTTP_2;
    response
}

/// The head of a request for an upstream; `None` when what it names cannot be said in HTTP/2.
pub fn to_upstream(head: &RequestHead) -> Option<Request<()>> {
    let authority = head.authority();
    let authority =
        (!authority.is_empty()).then(|| Authority::from_maybe_shared(Bytes::copy_from_slice(authority)));
    let authority = authority.transpose().ok()?;
    let upgrade = head.upgrade();
    let connect = head.is_method(b"CONNECT");
    let mut uri = http::uri::Parts::default();
    uri.authority = authority;
    let mut map = map_of(&head.fields);
    let mut request = Request::new(());
    if connect {
        *request.method_mut() = Method::CONNECT;
    } else {
        uri.scheme = Some(if head.scheme() == b"https" { Scheme::HTTPS } else { Scheme::HTTP });
        let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(head.path())).ok()?;
        uri.path_and_query = Some(path);
        if let Some(upgrade) = upgrade {
            *request.method_mut() = Method::CONNECT;
            let protocol = ConnectProtocol::from(std::str::from_utf8(upgrade).ok()?);
            request.extensions_mut().insert(protocol);
            map.remove(http::header::CONTENT_LENGTH);
            map.remove(http::header::SEC_WEBSOCKET_KEY);
        } else {
            *request.method_mut() = Method::from_bytes(head.method()).ok()?;
        }
        if uri.authority.is_none() {
            // A URI of three parts needs all of them.
            uri.authority = Some(Authority::from_static("-"));
        }
    }
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.headers_mut() = map;
    *request.version_mut() = Version::HTTP_2;
    Some(request)
}

#[cfg(test)]
#[path = "heads_tests.rs"]
mod tests;
