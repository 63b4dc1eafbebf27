//! Request and response heads: one type each, whatever protocol they came by.

use std::net::SocketAddr;

use super::fields::{Fields, Span};
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known, RequestView};
use crate::telemetry::stream_info::{Protocol, StreamInfo};

/// A request's head. `:method`, `:path` and `:authority` stand apart from the fields; HTTP/1's
/// `Host` is not among the fields.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The fields, without `host`.
    pub fields: Fields,
    /// The version it came by.
    pub protocol: Protocol,
    method: Span,
    path: Span,
    authority: Span,
    scheme: Span,
    upgrade: Option<Span>,
    /// The client's address after XFF processing.
    pub client: Option<SocketAddr>,
    grpc: bool,
}

impl RequestHead {
    /// A head whose parts stand in `fields` already.
    pub(super) fn new(fields: Fields, protocol: Protocol, method: Span, path: Span, authority: Span) -> Self {
        let grpc = fields.get(Known::ContentType).is_some_and(is_grpc_type);
        Self {
            fields,
            protocol,
            method,
            path,
            authority,
            scheme: Span::default(),
            upgrade: None,
            client: None,
            grpc,
        }
    }

    /// Whether what follows it is another protocol, if the other side agrees: an upgrade, or CONNECT.
    pub fn opens_tunnel(&self) -> bool {
        self.upgrade().is_some() || self.is_method(b"CONNECT")
    }

    /// Whether the method is this one.
    pub fn is_method(&self, method: &[u8]) -> bool {
        self.method() == method
    }

    /// Replaces `:path`.
    pub fn set_path(&mut self, path: &[u8]) {
        self.path = self.fields.store(path);
    }

    /// Replaces `:authority`.
    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = self.fields.store(authority);
    }

    /// Replaces `:method`.
    pub fn set_method(&mut self, method: &[u8]) {
        self.method = self.fields.store(method);
    }

    /// Replaces `:scheme`.
    pub fn set_scheme(&mut self, scheme: &[u8]) {
        self.scheme = self.fields.store(scheme);
    }

    /// Replaces `content-type`, by which it is known whether this is gRPC.
    pub fn set_grpc_type(&mut self, value: &[u8]) {
        self.fields.set_known(Known::ContentType, value);
        self.grpc = is_grpc_type(value);
    }

    /// Marks the request as an upgrade to `protocol`.
    pub fn set_upgrade(&mut self, protocol: &[u8]) {
        self.upgrade = Some(self.fields.store(protocol));
    }

    /// Marks the request as no upgrade any more.
    pub fn clear_upgrade(&mut self) {
        self.upgrade = None;
    }
}

impl HeaderView for RequestHead {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        match pseudo(self, key.known()) {
            Some(value) => each(value),
            None => self.fields.values(key, each),
        }
    }

    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        pseudo(self, key.known()).or_else(|| self.fields.first(key))
    }

    fn byte_size(&self) -> usize {
        // As Envoy counts them: names of the pseudo headers included.
        self.fields.byte_size()
            + self.method().len()
            + self.path().len()
            + self.authority().len()
            + self.scheme().len()
            + ":method:path:authority:scheme".len()
    }
}

fn pseudo(head: &RequestHead, known: Known) -> Option<&[u8]> {
    let value = match known {
        Known::Method => head.method(),
        Known::Path => head.path(),
        Known::Authority | Known::Host => head.authority(),
        Known::Scheme => head.scheme(),
        _ => return None,
    };
    (!value.is_empty()).then_some(value)
}

impl HeaderMutate for RequestHead {
    fn append(&mut self, key: &HeaderKey, value: &[u8]) {
        match key.known() {
            Known::Method | Known::Path | Known::Authority | Known::Host | Known::Scheme => {
                self.set(key, value);
            }
            _ => self.fields.append(key, value),
        }
    }

    fn set(&mut self, key: &HeaderKey, value: &[u8]) {
        match key.known() {
            Known::Method => self.set_method(value),
            Known::Path => self.set_path(value),
            Known::Authority | Known::Host => self.set_authority(value),
            Known::Scheme => self.set_scheme(value),
            _ => self.fields.set(key, value),
        }
    }

    fn remove(&mut self, key: &HeaderKey) -> bool {
        self.fields.remove(key)
    }

    fn remove_prefix(&mut self, prefix: &str) {
        self.fields.remove_prefix(prefix);
    }
}

impl RequestView for RequestHead {
    fn method(&self) -> &[u8] {
        self.fields.bytes(self.method)
    }

    fn path(&self) -> &[u8] {
        self.fields.bytes(self.path)
    }

    fn authority(&self) -> &[u8] {
        self.fields.bytes(self.authority)
    }

    fn scheme(&self) -> &[u8] {
        let scheme = self.fields.bytes(self.scheme);
        if scheme.is_empty() {
            b"http"
        } else {
            scheme
        }
    }

    fn upgrade(&self) -> Option<&[u8]> {
        self.upgrade.map(|span| self.fields.bytes(span))
    }

    fn is_grpc(&self) -> bool {
        self.grpc
    }

    fn remote_address(&self) -> Option<SocketAddr> {
        self.client
    }
}

impl RequestHead {
    /// The head together with what is known of its stream.
    pub fn of_stream<'a>(&'a self, stream: &'a StreamInfo) -> WithStream<'a> {
        WithStream { head: self, stream }
    }
}

/// A request's head with what is known of its stream.
pub struct WithStream<'a> {
    head: &'a RequestHead,
    stream: &'a StreamInfo,
}

impl HeaderView for WithStream<'_> {
    #[inline]
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        self.head.values(key, each);
    }

    #[inline]
    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        self.head.first(key)
    }

    #[inline]
    fn byte_size(&self) -> usize {
        self.head.byte_size()
    }
}

impl RequestView for WithStream<'_> {
    #[inline]
    fn method(&self) -> &[u8] {
        self.head.method()
    }

    #[inline]
    fn path(&self) -> &[u8] {
        self.head.path()
    }

    #[inline]
    fn authority(&self) -> &[u8] {
        self.head.authority()
    }

    #[inline]
    fn scheme(&self) -> &[u8] {
        self.head.scheme()
    }

    #[inline]
    fn upgrade(&self) -> Option<&[u8]> {
        self.head.upgrade()
    }

    #[inline]
    fn is_grpc(&self) -> bool {
        self.head.is_grpc()
    }

    #[inline]
    fn remote_address(&self) -> Option<SocketAddr> {
        self.head.remote_address()
    }

    #[inline]
    fn stream(&self) -> Option<&StreamInfo> {
        Some(self.stream)
    }
}

/// Whether a content type is gRPC's own.
pub fn is_grpc_type(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    value.starts_with(GRPC) && matches!(value.get(GRPC.len()), None | Some(b'+'))
}

/// A response's head.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// The fields.
    pub fields: Fields,
    /// The status, 100 to 999.
    pub status: u16,
    /// The version it came by.
    pub protocol: Protocol,
    status_text: [u8; 3],
}

impl ResponseHead {
    /// A head with this status.
    pub fn new(fields: Fields, status: u16, protocol: Protocol) -> Self {
        let mut head = Self { fields, status, protocol, status_text: [0; 3] };
        head.set_status(status);
        head
    }

    /// Replaces the status (three digits).
    pub fn set_status(&mut self, status: u16) {
        let digit = |n: u16| b'0' + (n % 10) as u8;
        self.status = status;
        self.status_text = [digit(status / 100), digit(status / 10), digit(status)];
    }

    /// Passes this reason phrase on, unless it is empty.
    pub fn set_reason(&mut self, reason: &str) {
        self.fields.keep_reason(reason);
    }

    /// The reason phrase that is passed on, if it is not the status's own.
    pub fn reason(&self) -> Option<&str> {
        self.fields.reason()
    }

    /// The status as text.
    pub fn status_text(&self) -> &[u8] {
        &self.status_text
    }
}

impl HeaderView for ResponseHead {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        if key.known() == Known::Status {
            each(&self.status_text);
        } else {
            self.fields.values(key, each);
        }
    }

    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        if key.known() == Known::Status {
            Some(&self.status_text)
        } else {
            self.fields.first(key)
        }
    }

    fn byte_size(&self) -> usize {
        self.fields.byte_size() + ":status".len() + 3
    }
}

impl HeaderMutate for ResponseHead {
    fn append(&mut self, key: &HeaderKey, value: &[u8]) {
        self.fields.append(key, value);
    }

    fn set(&mut self, key: &HeaderKey, value: &[u8]) {
        if key.known() == Known::Status {
            if let Some(status) = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                self.set_status(status);
            }
            return;
        }
        self.fields.set(key, value);
    }

    fn remove(&mut self, key: &HeaderKey) -> bool {
        self.fields.remove(key)
    }

    fn remove_prefix(&mut self, prefix: &str) {
        self.fields.remove_prefix(prefix);
    }
}

/// The reason phrase Envoy writes for a status; `Unknown` where it has none.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        599 => "Last Unassigned Server Error Code",
        _ => "Unknown",
    }
}
