//! Message heads from bytes (RFC 9112 §2-§6, RFC 9110 §5 and §7).

use std::mem::MaybeUninit;

use super::framing::{content_length, reads_as_framing, request_framing, transfer_encoding, Connection};
use super::target::{check_authority, known_method, shaped_like_target, Target};
use super::{Framing, Refusal};
use crate::config::cluster::UpstreamHttp;
use crate::config::http::{HeaderCase, RequestLimits, Underscores};
use crate::config::matcher::StringMatcher;
use crate::config::token::is_token;
use crate::config::Known;
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stream_info::Protocol;

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
    /// Spell those that are added `Proper-Case` then.
    pub proper_added: bool,
    /// Keep the reason phrase.
    pub reason: bool,
    /// Accept a length beside chunked.
    pub chunked_length: bool,
}

impl ResponseLimits {
    /// Those of a cluster.
    pub fn of(http: &UpstreamHttp) -> Self {
        Self {
            max_head: http.max_response_headers,
            max_fields: http.max_headers_count as usize,
            preserve_case: http.http1.header_case == HeaderCase::Preserve,
            proper_added: http.http1.proper_added,
            reason: http.http1.forward_reason,
            chunked_length: http.http1.allow_chunked_length,
        }
    }

    /// Those of a cluster that sets none.
    pub const UNSET: Self = Self {
        max_head: 60 * 1024,
        max_fields: 100,
        preserve_case: false,
        proper_added: false,
        reason: false,
        chunked_length: false,
    };
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
    let mut fields = Fields::recycled();
    let base = fields.load(raw);
    let how = Loading { preserve_case: limits.preserve_case, underscores: limits.underscores, folded: false };
    load_fields(&mut fields, parsed.headers, raw, base, &how)?;
    if limits.preserve_case {
        fields.keep_spelling(limits.proper_added);
    }
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

    let target = Target::parse(method.as_bytes(), target.as_bytes(), limits.absolute_url)?;
    if fields.all(Known::Host).nth(1).is_some() {
        return Err(Refusal::HOST);
    }
    let host = fields.span_of(Known::Host);
    if let Some(host) = host {
        check_authority(fields.bytes(host))?;
        fields.remove_known(Known::Host);
    }
    let authority_span = match (target.authority, host) {
        (Some(authority), _) => {
            check_authority(authority)?;
            fields.store(authority)
        }
        // The field is gone, its bytes are where they were.
        (None, Some(host)) => host,
        (None, None) => match &limits.default_host {
            Some(host) if protocol == Protocol::Http10 => {
                check_authority(host)?;
                fields.store(host)
            }
            // The connection manager answers it.
            _ => fields.store(b""),
        },
    };

    let framing = request_framing(&mut fields, protocol, limits)?;
    let connection = Connection::of(&fields);
    let keep_alive = connection.keep_alive(protocol);
    let expects_continue = protocol == Protocol::Http11
        && fields.get(Known::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    let method_span = fields.locate(base, raw, method.as_bytes());
    let path_span = fields.locate(base, raw, target.path);
    let mut head = RequestHead::new(fields, protocol, method_span, path_span, authority_span);
    if let Some(scheme) = target.scheme {
        head.set_scheme(scheme);
    }
    if connection.upgrade && protocol == Protocol::Http11 {
        if !limits.ignored_upgrades.is_empty() {
            drop_upgrades(&mut head, &limits.ignored_upgrades);
        }
        let kind = head.fields.get(Known::Upgrade).map(<[u8]>::to_ascii_lowercase);
        if let Some(kind) = kind.filter(|kind| !kind.is_empty()) {
            head.set_upgrade(&kind);
        }
    } else if method == "CONNECT" {
        head.set_upgrade(b"connect");
    }
    Ok(Some(ParsedRequest { head, consumed, framing, keep_alive, expects_continue }))
}

/// Takes away the protocols that nobody is upgraded to; those that are left may still be spoken.
#[cold]
fn drop_upgrades(head: &mut RequestHead, ignored: &[StringMatcher]) {
    let Some(wishes) = head.fields.get(Known::Upgrade) else { return };
    let kept: Vec<&[u8]> = (wishes.split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
        .filter(|wish| !wish.is_empty() && !ignored.iter().any(|matcher| matcher.matches(wish)))
        .collect();
    let kept = kept.join(&b","[..]);
    if kept.is_empty() {
        head.fields.remove_known(Known::Upgrade);
    } else {
        head.fields.set_known(Known::Upgrade, &kept);
    }
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
    let mut config = httparse::ParserConfig::default();
    let mut parsed = httparse::Response::new(&mut []);
    let mut result = config.parse_response_with_uninit_headers(&mut parsed, window, &mut stack);
    // Hardly any head has folded lines; those that do are read a second time.
    let folded = result == Err(httparse::Error::HeaderName);
    if folded {
        config.allow_obsolete_multiline_headers_in_responses(true);
        parsed = httparse::Response::new(&mut []);
        result = config.parse_response_with_uninit_headers(&mut parsed, window, &mut stack);
    }
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
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(PROTOCOL);
    };
    if !(100..=999).contains(&status) {
        return Err(PROTOCOL);
    }
    let protocol = if minor == 0 { Protocol::Http10 } else { Protocol::Http11 };
    let mut fields = Fields::recycled();
    let base = fields.load(raw);
    let how = Loading { preserve_case: limits.preserve_case, underscores: Underscores::Allow, folded };
    load_fields(&mut fields, parsed.headers, raw, base, &how).map_err(|_| PROTOCOL)?;
    if limits.preserve_case {
        fields.keep_spelling(limits.proper_added);
    }

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
    let mut head = ResponseHead::new(fields, status, protocol);
    if limits.reason {
        head.set_reason(parsed.reason.unwrap_or_default());
    }
    Ok(Some(ParsedResponse { head, consumed, framing, keep_alive }))
}

/// Control bytes in the head are told apart from other syntax errors, as Envoy's details do.
fn syntax(input: &[u8]) -> Refusal {
    let start = input.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(0);
    let input = input.get(start..).unwrap_or_default();
    let method = input.split(|byte| matches!(byte, b' ' | b'\r' | b'\n')).next().unwrap_or_default();
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        // Another protocol altogether.
        return Refusal::CODEC;
    }
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
        || !shaped_like_target(method, target)
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

/// How fields are taken in.
struct Loading {
    preserve_case: bool,
    underscores: Underscores,
    /// Some value may go over several lines.
    folded: bool,
}

/// Adds what was parsed from `raw`, which stands at `base` in `fields` already.
fn load_fields(
    fields: &mut Fields,
    parsed: &[httparse::Header<'_>],
    raw: &[u8],
    base: usize,
    how: &Loading,
) -> Result<(), Refusal> {
    let origin = raw.as_ptr() as usize;
    // Where the next line begins if all of them are plain.
    let start = parsed.first().map_or(base, |first| base + (first.name.as_ptr() as usize - origin));
    let (mut next, mut plain) = (start, true);
    for header in parsed {
        let name = header.name.as_bytes();
        if name.is_empty() {
            return Err(Refusal::CODEC);
        }
        if how.underscores != Underscores::Allow && name.contains(&b'_') {
            if how.underscores == Underscores::Reject {
                return Err(Refusal::UNDERSCORE);
            }
            continue;
        }
        // httparse trims white space before the value and leaves it behind.
        let value = header.value.trim_ascii_end();
        if how.folded && memchr::memchr(b'\n', value).is_some() {
            let line = [name, b": ", &unfolded(value), b"\r\n"].concat();
            let (at, value_at) = (fields.load(&line), name.len() + 2);
            let length = line.len() - value_at - 2;
            fields.push_loaded((at, name.len()), (at + value_at, length), !how.preserve_case);
            continue;
        }
        // Both slices lie inside `raw`, which was copied to `base`.
        let name_at = base + (name.as_ptr() as usize - origin);
        let value_at = base + (value.as_ptr() as usize - origin);
        let (known, canonical) =
            fields.push_loaded((name_at, name.len()), (value_at, value.len()), !how.preserve_case);
        if known == Known::Other && reads_as_framing(name) {
            return Err(Refusal::UNDERSCORE);
        }
        plain &= canonical && name_at == next;
        next = value_at + value.len() + 2;
    }
    // One plain line after the other, from the end of the first line to the empty one: nothing else
    // can be between them.
    let first_line = raw.get(..start - base).unwrap_or_default();
    let last_line = raw.get(next - base..).unwrap_or_default();
    if plain && first_line.ends_with(b"\r\n") && first_line.first() > Some(&b' ') && last_line == b"\r\n" {
        return Ok(());
    }
    strict_lines(raw)
}

/// A folded value on one line: each fold becomes a space (RFC 9112 §5.2).
fn unfolded(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for part in value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|part| !part.is_empty()) {
        if !out.is_empty() {
            out.push(b' ');
        }
        out.extend_from_slice(part);
    }
    out
}
