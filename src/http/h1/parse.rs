//! Message heads from bytes (RFC 9112 §2-§6, RFC 9110 §5 and §7).

use std::mem::MaybeUninit;

use super::{Framing, Refusal};
use crate::config::http::Underscores;
use crate::config::{HeaderView, Known, RequestView};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stream_info::Protocol;

/// What a request head may be.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Size of the head in bytes.
    pub max_head: usize,
    /// Number of fields.
    pub max_fields: usize,
    /// Accept HTTP/1.0.
    pub http_10: bool,
    /// Host for an HTTP/1.0 request without one.
    pub default_host: Option<bytes::Bytes>,
    /// Accept absolute-form targets.
    pub absolute_url: bool,
    /// Accept a length beside chunked (the length is dropped).
    pub chunked_length: bool,
    /// Accept any method token.
    pub custom_methods: bool,
    /// Keep the spelling of names.
    pub preserve_case: bool,
    /// What to do with names that contain an underscore.
    pub underscores: Underscores,
}

/// A complete request head.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The head.
    pub head: RequestHead,
    /// Bytes it took.
    pub consumed: usize,
    /// How the body is delimited.
    pub framing: Framing,
    /// The client wants the connection kept.
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
}

/// What a response head may be.
#[derive(Debug, Clone)]
pub struct ResponseLimits {
    /// Size of the head in bytes.
    pub max_head: usize,
    /// Number of fields.
    pub max_fields: usize,
    /// Keep the spelling of names.
    pub preserve_case: bool,
    /// Accept a length beside chunked.
    pub chunked_length: bool,
}

/// A complete response head.
#[derive(Debug)]
pub struct ParsedResponse {
    /// The head.
    pub head: ResponseHead,
    /// Bytes it took.
    pub consumed: usize,
    /// How the body is delimited.
    pub framing: Framing,
    /// The connection can be used again afterwards.
    pub keep_alive: bool,
}

/// Fields that fit on the stack; more take a heap vector.
const STACK_FIELDS: usize = 64;

/// Reads a request head from the front of `input`. `Ok(None)` when more bytes are needed.
///
/// # Errors
/// A [`Refusal`] when the bytes cannot become an acceptable head.
pub fn parse_request(input: &[u8], limits: &RequestLimits) -> Result<Option<ParsedRequest>, Refusal> {
    let window = input.get(..limits.max_head).unwrap_or(input);
    let mut stack = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; STACK_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let mut result = parsed.parse_with_uninit_headers(window, &mut stack);
    let mut heap;
    if result == Err(httparse::Error::TooManyHeaders) && limits.max_fields > STACK_FIELDS {
        heap = vec![MaybeUninit::<httparse::Header<'_>>::uninit(); limits.max_fields];
        parsed = httparse::Request::new(&mut []);
        result = parsed.parse_with_uninit_headers(window, &mut heap);
    }
    let consumed = match result {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) => {
            check_partial(window)?;
            return if input.len() >= limits.max_head { Err(Refusal::HEAD_TOO_LARGE) } else { Ok(None) };
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TOO_MANY_FIELDS),
        Err(httparse::Error::Version | httparse::Error::Token) => {
            return match other_version(window) {
                OtherVersion::Yes => Err(Refusal::LOW_VERSION),
                OtherVersion::Cut if input.len() < limits.max_head => Ok(None),
                OtherVersion::Cut | OtherVersion::No => Err(syntax(window)),
            }
        }
        Err(_) => return Err(syntax(window)),
    };
    if parsed.headers.len() > limits.max_fields {
        return Err(Refusal::TOO_MANY_FIELDS);
    }
    let raw = window.get(..consumed).unwrap_or_default();
    strict_lines(raw)?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::CODEC);
    };
    let protocol = if minor == 0 { Protocol::Http10 } else { Protocol::Http11 };
    if protocol == Protocol::Http10 && !limits.http_10 {
        return Err(Refusal::LOW_VERSION);
    }
    if !limits.custom_methods && !known_method(method) {
        return Err(Refusal::CODEC);
    }

    let mut fields = Fields::recycled();
    let base = fields.load(raw);
    load_fields(&mut fields, parsed.headers, raw, base, limits.preserve_case, limits.underscores)?;

    let target = Target::parse(method.as_bytes(), target.as_bytes(), limits.absolute_url)?;
    let mut hosts = fields.all(Known::Host);
    let host = hosts.next().map(<[u8]>::to_vec);
    if hosts.next().is_some() {
        return Err(Refusal::HOST);
    }
    drop(hosts);
    fields.remove_known(Known::Host);
    let authority: &[u8] = match (target.authority, &host) {
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => limits.default_host.as_deref().unwrap_or_default(),
    };
    if let Some(host) = &host {
        check_authority(host)?;
    }
    if !authority.is_empty() {
        check_authority(authority)?;
    }

    let framing = request_framing(&mut fields, protocol, limits)?;
    let connection = Connection::of(&fields);
    let keep_alive = connection.keep_alive(protocol);
    let expects_continue = protocol == Protocol::Http11
        && fields.get(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    let method_span = fields.store(method.as_bytes());
    let path_span = fields.store(target.path);
    let authority_span = fields.store(authority);
    let mut head = RequestHead::new(fields, protocol, method_span, path_span, authority_span);
    if let Some(scheme) = target.scheme {
        head.set_scheme(scheme);
    }
    if connection.upgrade && protocol == Protocol::Http11 {
        let kind = head.fields.get(Known::Upgrade).map(<[u8]>::to_ascii_lowercase);
        if let Some(kind) = kind.filter(|kind| !kind.is_empty()) {
            head.set_upgrade(&kind);
        }
    } else if method == "CONNECT" {
        head.set_upgrade(b"connect");
    }
    Ok(Some(ParsedRequest { head, consumed, framing, keep_alive, expects_continue }))
}

/// Reads a response head from the front of `input`. `to_head` says that the request was HEAD,
/// `to_connect` that it was CONNECT or an upgrade (a success then opens a tunnel).
///
/// # Errors
/// A [`Refusal`] (its status is what the client is told, 502).
pub fn parse_response(
    input: &[u8],
    limits: &ResponseLimits,
    to_head: bool,
    to_connect: bool,
) -> Result<Option<ParsedResponse>, Refusal> {
    const PROTOCOL: Refusal = Refusal::UPSTREAM;
    let window = input.get(..limits.max_head).unwrap_or(input);
    let mut stack = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; STACK_FIELDS];
    let config = httparse::ParserConfig::default();
    let mut parsed = httparse::Response::new(&mut []);
    let mut result = config.parse_response_with_uninit_headers(&mut parsed, window, &mut stack);
    let mut heap;
    if result == Err(httparse::Error::TooManyHeaders) && limits.max_fields > STACK_FIELDS {
        heap = vec![MaybeUninit::<httparse::Header<'_>>::uninit(); limits.max_fields];
        parsed = httparse::Response::new(&mut []);
        result = config.parse_response_with_uninit_headers(&mut parsed, window, &mut heap);
    }
    let consumed = match result {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if input.len() >= limits.max_head => return Err(PROTOCOL),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(PROTOCOL),
    };
    if parsed.headers.len() > limits.max_fields {
        return Err(PROTOCOL);
    }
    let raw = window.get(..consumed).unwrap_or_default();
    strict_lines(raw).map_err(|_| PROTOCOL)?;
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(PROTOCOL);
    };
    if !(100..=999).contains(&status) {
        return Err(PROTOCOL);
    }
    let protocol = if minor == 0 { Protocol::Http10 } else { Protocol::Http11 };
    let mut fields = Fields::recycled();
    let base = fields.load(raw);
    load_fields(&mut fields, parsed.headers, raw, base, limits.preserve_case, Underscores::Allow)
        .map_err(|_| PROTOCOL)?;

    let length = content_length(&fields).map_err(|_| PROTOCOL)?;
    let chunked = transfer_encoding(&fields).map_err(|_| PROTOCOL)?;
    if chunked && length.is_some() {
        if !limits.chunked_length {
            return Err(PROTOCOL);
        }
        fields.remove_known(Known::ContentLength);
    }
    if status == 101 && !to_connect {
        // Nobody asked for another protocol.
        return Err(PROTOCOL);
    }
    let connection = Connection::of(&fields);
    let tunnel = (to_connect && (200..300).contains(&status)) || status == 101;
    let framing = if tunnel {
        Framing::Tunnel
    } else if to_head || status < 200 || status == 204 || status == 304 {
        Framing::Empty
    } else if chunked {
        Framing::Chunked
    } else if let Some(length) = length {
        Framing::length(length)
    } else {
        Framing::UntilClose
    };
    // A chunked HTTP/1.0 answer went through something that does not know chunks (RFC 9112 §6.1).
    let keep_alive = connection.keep_alive(protocol)
        && !(chunked && protocol == Protocol::Http10)
        && !matches!(framing, Framing::UntilClose | Framing::Tunnel);
    let head = ResponseHead::new(fields, status, protocol);
    Ok(Some(ParsedResponse { head, consumed, framing, keep_alive }))
}

/// Control bytes in the head are told apart from other syntax errors, as Envoy's details do.
fn syntax(input: &[u8]) -> Refusal {
    let end = memchr::memmem::find(input, b"\r\n\r\n").unwrap_or(input.len());
    let control = |byte: &u8| (*byte < 0x20 && !matches!(byte, b'\r' | b'\n' | b'\t')) || *byte == 0x7f;
    if input.iter().take(end).any(control) {
        Refusal::CHARACTERS
    } else {
        Refusal::CODEC
    }
}

/// Whether a request line that is no HTTP/1.0 or HTTP/1.1 one is that of another version.
enum OtherVersion {
    Yes,
    No,
    /// The bytes that tell are still to come.
    Cut,
}

/// Tells a request line with a well-formed other version, or with none at all (HTTP/0.9), from one
/// that is no HTTP. The HTTP/2 preface is no HTTP/1 request. The answer must not depend on how the
/// bytes were cut, so a line that may become one of those is waited for; no other is.
fn other_version(mut input: &[u8]) -> OtherVersion {
    while let Some(rest) = input.strip_prefix(b"\r\n") {
        input = rest;
    }
    let end = memchr::memchr2(b'\r', b'\n', input).unwrap_or(input.len());
    let (line, after) = input.split_at(end);
    let complete = after.starts_with(b"\r\n");
    if !complete && !after.is_empty() && after != b"\r" {
        return OtherVersion::No;
    }
    if line.iter().any(|byte| *byte < 0x20 || *byte >= 0x7f) {
        return OtherVersion::No;
    }
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), version) = (parts.next(), parts.next(), parts.next()) else {
        return OtherVersion::No;
    };
    if !method.iter().all(u8::is_ascii_alphabetic)
        || method.is_empty()
        || target.is_empty()
        || parts.next().is_some()
        || line.starts_with(b"PRI * HTTP/2.0")
    {
        return OtherVersion::No;
    }
    match version {
        None if complete => OtherVersion::Yes,
        None if !after.is_empty() => OtherVersion::Cut,
        Some(b"HTTP/1.0" | b"HTTP/1.1") | None => OtherVersion::No,
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if complete && major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            OtherVersion::Yes
        }
        Some(version) if !complete && version.len() <= 8 && version.starts_with(b"HTTP/") => {
            OtherVersion::Cut
        }
        Some(_) => OtherVersion::No,
    }
}

/// A head that is not complete yet but can be refused already: one with a bare LF.
fn check_partial(input: &[u8]) -> Result<(), Refusal> {
    strict_lines(input)
}

/// Every LF must follow a CR (RFC 9112 §2.2 lets a recipient accept a bare LF; two parsers that
/// differ in it can be set against each other, so it is refused).
fn strict_lines(raw: &[u8]) -> Result<(), Refusal> {
    for at in memchr::memchr_iter(b'\n', raw) {
        if at == 0 || raw.get(at - 1) != Some(&b'\r') {
            return Err(Refusal::CODEC);
        }
    }
    Ok(())
}

fn load_fields(
    fields: &mut Fields,
    parsed: &[httparse::Header<'_>],
    raw: &[u8],
    base: usize,
    preserve_case: bool,
    underscores: Underscores,
) -> Result<(), Refusal> {
    let origin = raw.as_ptr() as usize;
    for header in parsed {
        if header.name.is_empty() {
            return Err(Refusal::CODEC);
        }
        if reads_as_framing(header.name.as_bytes()) {
            return Err(Refusal::UNDERSCORE);
        }
        if underscores != Underscores::Allow && header.name.as_bytes().contains(&b'_') {
            if underscores == Underscores::Reject {
                return Err(Refusal::UNDERSCORE);
            }
            continue;
        }
        // httparse trims white space before the value and leaves it behind.
        let value = header.value.trim_ascii_end();
        // Both slices lie inside `raw`, which was copied to `base`.
        let name_at = base + (header.name.as_ptr() as usize - origin);
        let value_at = base + (value.as_ptr() as usize - origin);
        fields.push_loaded((name_at, header.name.len()), (value_at, value.len()), !preserve_case);
    }
    Ok(())
}

/// `Transfer_Encoding` and its like: servers that turn names into variables (CGI) read them as the
/// field with a dash, so what frames the message for them does not frame it for us.
fn reads_as_framing(name: &[u8]) -> bool {
    let is = |field: &[u8]| {
        name.len() == field.len()
            && name.iter().zip(field).all(|(byte, wanted)| {
                byte.to_ascii_lowercase() == *wanted || (*byte == b'_' && *wanted == b'-')
            })
    };
    name.contains(&b'_') && (is(b"transfer-encoding") || is(b"content-length"))
}

/// The registered methods (RFC 9110 §9, RFC 5789) and the WebDAV ones that Envoy's parser knows.
fn known_method(method: &str) -> bool {
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
struct Target<'a> {
    scheme: Option<&'static [u8]>,
    authority: Option<&'a [u8]>,
    path: &'a [u8],
}

impl<'a> Target<'a> {
    fn parse(method: &[u8], target: &'a [u8], absolute: bool) -> Result<Self, Refusal> {
        if target.iter().any(|byte| *byte <= 0x20 || *byte == 0x7f) {
            return Err(Refusal::CHARACTERS);
        }
        if target.iter().any(|byte| *byte >= 0x80) {
            return Err(Refusal::CODEC);
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
            let scheme = target.windows(3).position(|window| window == b"://");
            let named = scheme.and_then(|end| target.get(..end)).is_some_and(|scheme| {
                scheme.first().is_some_and(u8::is_ascii_alphabetic)
                    && scheme.iter().all(u8::is_ascii_alphanumeric)
            });
            return Err(if named { Refusal::SCHEME } else { Refusal::TARGET });
        };
        if !absolute {
            // Left as it is; the connection manager refuses a path that does not begin with `/`.
            return Ok(Self { scheme: None, authority: None, path: target });
        }
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        match path.first() {
            _ if authority.is_empty() => Err(Refusal::TARGET),
            Some(_) => Ok(Self { scheme: Some(scheme), authority: Some(authority), path }),
            None => Ok(Self { scheme: Some(scheme), authority: Some(authority), path: b"/" }),
        }
    }
}

fn strip_prefix_ignore_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// `host[:port]` (RFC 9110 §7.2): no userinfo, no path, no list, a port of digits.
fn check_authority(authority: &[u8]) -> Result<(), Refusal> {
    let allowed = |byte: &u8| {
        byte.is_ascii_alphanumeric()
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
            )
    };
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
        let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
        let (host, port) = authority.split_at(end);
        if !host.iter().all(allowed) {
            return Err(Refusal::HOST);
        }
        (host, port)
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

fn request_framing(
    fields: &mut Fields,
    protocol: Protocol,
    limits: &RequestLimits,
) -> Result<Framing, Refusal> {
    let length = content_length(fields)?;
    let chunked = transfer_encoding(fields)?;
    if chunked {
        if protocol == Protocol::Http10 {
            return Err(Refusal::TRANSFER_ENCODING);
        }
        if length.is_some() {
            if !limits.chunked_length {
                return Err(Refusal::LENGTH_AND_CHUNKED);
            }
            fields.remove_known(Known::ContentLength);
        }
        return Ok(Framing::Chunked);
    }
    Ok(length.map_or(Framing::Empty, Framing::length))
}

/// The one content length, if any (RFC 9110 §8.6). Repeated fields are refused even when equal.
fn content_length(fields: &Fields) -> Result<Option<u64>, Refusal> {
    let mut values = fields.all(Known::ContentLength);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::CONTENT_LENGTH);
    }
    let mut length: u64 = 0;
    for digit in value {
        length = length
            .checked_mul(10)
            .and_then(|length| length.checked_add(u64::from(digit - b'0')))
            .filter(|length| *length <= i64::MAX as u64)
            .ok_or(Refusal::CONTENT_LENGTH)?;
    }
    Ok(Some(length))
}

/// Whether the message is chunked; any other transfer coding is refused.
fn transfer_encoding(fields: &Fields) -> Result<bool, Refusal> {
    let mut values = fields.all(Known::TransferEncoding);
    let Some(value) = values.next() else { return Ok(false) };
    if values.next().is_some() || !value.eq_ignore_ascii_case(b"chunked") {
        return Err(Refusal::TRANSFER_ENCODING);
    }
    Ok(true)
}

/// The options of `Connection` that matter here.
#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Connection {
    fn of(fields: &Fields) -> Self {
        let mut connection = Self::default();
        for value in fields.all(Known::Connection).chain(fields.all(Known::ProxyConnection)) {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                connection.close |= option.eq_ignore_ascii_case(b"close");
                connection.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        for value in fields.all(Known::Connection) {
            let mut options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            connection.upgrade |= options.any(|option| option.eq_ignore_ascii_case(b"upgrade"));
        }
        connection
    }

    fn keep_alive(&self, protocol: Protocol) -> bool {
        !self.close && (protocol != Protocol::Http10 || self.keep_alive)
    }
}

/// Size of the head as Envoy's `%REQUEST_HEADERS_BYTES%` counts it.
pub fn head_size(head: &RequestHead) -> u64 {
    debug_assert!(!head.method().is_empty(), "a parsed request has a method");
    head.byte_size() as u64
}
