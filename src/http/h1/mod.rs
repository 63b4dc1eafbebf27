//! HTTP/1.1 on the wire (RFC 9112): heads and bodies in and out of byte buffers, no I/O.
//!
//! Strict by default: whatever two parsers could read differently is refused.

pub mod body;
mod framing;
pub mod parse;
mod target;
pub mod write;

#[cfg(test)]
mod tests;

pub use crate::config::http::RequestLimits;
pub(in crate::http) use framing::reads_as_framing;
pub(crate) use target::check_authority;

pub use body::{BodyDecoder, BodyEvent, Framing};
pub use parse::{parse_request, parse_response, ParsedRequest, ParsedResponse, ResponseLimits};

/// Why a message was refused: what the client is told and what the log says. The answer's body is
/// the status text, its flag DPE, and the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{details} (answered {status})")]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// `response_code_details`, Envoy's where it has one.
    pub details: &'static str,
}

macro_rules! refusals {
    ($($(#[$meta:meta])* $name:ident = $status:literal $details:literal;)*) => {
        impl Refusal {
            $($(#[$meta])* pub const $name: Refusal = Refusal { status: $status, details: $details };)*
        }
    };
}

refusals! {
    /// Anything that is not HTTP.
    CODEC = 400 "http1.codec_error";
    /// Head larger than the limit.
    HEAD_TOO_LARGE = 431 "http1.headers_too_large";
    /// More fields than the limit.
    TOO_MANY_FIELDS = 431 "http1.too_many_headers";
    /// A transfer coding other than chunked.
    TRANSFER_ENCODING = 501 "http1.invalid_transfer_encoding";
    /// Chunked in HTTP/1.0, which has no transfer codings.
    CHUNKED_HTTP_10 = 400 "http1.invalid_transfer_encoding";
    /// Length and chunked together.
    LENGTH_AND_CHUNKED = 400 "http1.content_length_and_chunked_not_allowed";
    /// Length that is no number, or several lengths.
    CONTENT_LENGTH = 400 "http1.codec_error";
    /// Request target of no known form.
    TARGET = 400 "http1.invalid_url";
    /// Absolute target of a scheme other than http and https.
    SCHEME = 400 "http1.invalid_scheme";
    /// A host that is doubled, empty or malformed.
    HOST = 400 "http.invalid_authority";
    /// Bytes that may not be in a field.
    CHARACTERS = 400 "http1.invalid_characters";
    /// Field name with an underscore where config forbids them.
    UNDERSCORE = 400 "http1.unexpected_underscore";
    /// `Connection` names a field that must not be taken away.
    CONNECTION = 400 "http1.connection_header_rejected";
    /// HTTP/1.0 where config does not accept it, or a version that does not exist.
    LOW_VERSION = 426 "low_version";
    /// Chunked framing that is broken.
    CHUNK = 400 "http1.codec_error";
    /// Trailers larger than the limit.
    TRAILERS_TOO_LARGE = 431 "http1.trailers_too_large";
    /// An upstream that does not speak HTTP.
    UPSTREAM = 502 "protocol_error";
}
