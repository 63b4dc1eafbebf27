//! Envoy's substitution formats: `%OPERATOR(ARGUMENT):LENGTH%` in access logs, header values and the
//! bodies of local replies.
//!
//! Comes in: the format's text, or a JSON tree whose strings are formats. Goes out: bytes. All
//! names are resolved while parsing; rendering looks nothing up but headers, by their resolved key.
//!
//! What a peer can put into a value never breaks the line it stands in: control bytes are written
//! as `\x0a`, and where the format itself puts the operator between double quotes, so are `"` and
//! `\`. (Envoy writes values as they are.) In JSON, values are escaped as JSON wants it.

mod coalesce;
mod json;
mod metadata;
mod operator;
mod parse;
#[cfg(test)]
mod tests;
mod time;
mod tls;
mod values;

use crate::config::HeaderView;
use crate::telemetry::stream_info::StreamInfo;

use operator::Operator;
pub(in crate::telemetry) use values::grpc_status_of;
pub(crate) use values::told_grpc_status;

/// A compiled format. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Format(std::sync::Arc<Program>);

#[derive(Debug)]
struct Program {
    body: Body,
    style: Style,
    never_filled: Vec<Box<str>>,
}

#[derive(Debug)]
enum Body {
    /// No operator at all.
    Literal(Box<[u8]>),
    Text(Vec<Part>),
    Json(json::Node),
}

#[derive(Debug)]
enum Part {
    Literal(Box<[u8]>),
    Operator {
        operator: Operator,
        /// Longest value in bytes.
        limit: Option<usize>,
        /// Between double quotes of the format's own text.
        quoted: bool,
    },
}

/// Where a format is used, which decides what becomes of a missing value and of odd bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Style {
    /// A log line: a missing value is `-`.
    #[default]
    Log,
    /// A log line with `omit_empty_values`: a missing value is nothing.
    LogOmitEmpty,
    /// A header's value: a missing value is nothing. The header is left out when all of it is
    /// nothing (unless `keep_empty_value` is set); that is up to the caller.
    Header,
    /// A local reply's body: a missing value is `-`, and line breaks stay as they are.
    Body,
    /// The same with `omit_empty_values`: a missing value is nothing.
    BodyOmitEmpty,
}

/// Why a format was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` that starts no operator and is no `%%`.
    #[error("no operator at position {position} of format {format:?} (a percent sign is written %%)")]
    Syntax {
        /// The whole format.
        format: String,
        /// Byte offset of the `%`.
        position: usize,
    },
    /// No such operator.
    #[error("unknown operator %{0}%")]
    Unknown(String),
    /// The operator needs an argument.
    #[error("%{0}% needs an argument in parentheses")]
    NeedsArgument(String),
    /// The operator takes no argument.
    #[error("%{0}% takes no argument")]
    TakesNoArgument(String),
    /// The operator takes no length.
    #[error("%{0}% takes no length")]
    TakesNoLength(String),
    /// The argument is wrong.
    #[error("%{operator}({argument})%: {reason}")]
    Argument {
        /// The operator.
        operator: String,
        /// Its argument.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A JSON format that is not an object at the top.
    #[error("a JSON format is an object")]
    NotAnObject,
}

/// When an access log is written (`envoy.data.accesslog.v3.AccessLogType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum LogType {
    #[default]
    NotSet = 0,
    TcpUpstreamConnected = 1,
    TcpPeriodic = 2,
    TcpConnectionEnd = 3,
    DownstreamStart = 4,
    DownstreamPeriodic = 5,
    DownstreamEnd = 6,
    UpstreamPoolReady = 7,
    UpstreamPeriodic = 8,
    UpstreamEnd = 9,
    DownstreamTunnelSuccessfullyEstablished = 10,
    UdpTunnelUpstreamConnected = 11,
    UdpPeriodic = 12,
    UdpSessionEnd = 13,
    TcpConnectionStart = 14,
}

/// What operators read.
#[derive(Clone, Copy)]
pub struct FormatContext<'a> {
    /// The stream.
    pub info: &'a StreamInfo,
    /// Request head, pseudo headers included.
    pub request: Option<&'a dyn HeaderView>,
    /// Response head.
    pub response: Option<&'a dyn HeaderView>,
    /// Response trailers.
    pub trailers: Option<&'a dyn HeaderView>,
    /// Body of the reply when it was made here.
    pub local_reply_body: &'a [u8],
    /// Why the log is written.
    pub log_type: LogType,
    /// Whether the request is a health check (`not_health_check_filter`).
    pub health_check: bool,
}

impl<'a> FormatContext<'a> {
    /// A stream of which no head is known yet.
    pub fn new(info: &'a StreamInfo) -> Self {
        Self {
            info,
            request: None,
            response: None,
            trailers: None,
            local_reply_body: b"",
            log_type: LogType::NotSet,
            health_check: info.health_check,
        }
    }

    /// The same with the request's head.
    pub fn with_request(mut self, request: &'a dyn HeaderView) -> Self {
        self.request = Some(request);
        self
    }

    /// The same with the response's head.
    pub fn with_response(mut self, response: &'a dyn HeaderView) -> Self {
        self.response = Some(response);
        self
    }
}

impl std::fmt::Debug for FormatContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FormatContext")
            .field("info", self.info)
            .field("log_type", &self.log_type)
            .finish_non_exhaustive()
    }
}

/// Envoy's default access-log line.
pub const DEFAULT_LOG_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
%PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

impl Format {
    /// Parses a log line's format.
    pub fn parse(format: &str) -> Result<Self, FormatError> {
        Self::parse_as(format, Style::Log)
    }

    /// Parses a header value's format.
    pub fn parse_header(format: &str) -> Result<Self, FormatError> {
        Self::parse_as(format, Style::Header)
    }

    /// Parses a format for use in `style`.
    pub fn parse_as(format: &str, style: Style) -> Result<Self, FormatError> {
        let mut parts = parse::parse(format)?;
        let never_filled = parse::never_filled(&parts);
        let body = match parts.as_mut_slice() {
            [] => Body::Literal(Box::default()),
            [Part::Literal(bytes)] => Body::Literal(std::mem::take(bytes)),
            _ => Body::Text(parts),
        };
        Ok(Self::new(body, style, never_filled))
    }

    /// Compiles a JSON tree: its strings are formats, and a string that is one operator takes that
    /// operator's type (numbers stay numbers, a missing value is null). Rendered with sorted keys, on
    /// one line with its line break, in bodies too. With `omit_empty`, missing values and their keys are
    /// left out.
    pub fn json(tree: &serde_json::Value, omit_empty: bool) -> Result<Self, FormatError> {
        let mut never_filled = Vec::new();
        let node = json::compile(tree, omit_empty, &mut never_filled)?;
        if !matches!(node, json::Node::Object { .. }) {
            return Err(FormatError::NotAnObject);
        }
        Ok(Self::new(Body::Json(node), Style::Log, never_filled))
    }

    /// Envoy's default log line.
    pub fn default_log() -> Self {
        // The text is a constant that the tests parse.
        Self::parse(DEFAULT_LOG_FORMAT)
            .unwrap_or_else(|_| Self::new(Body::Text(Vec::new()), Style::Log, vec![]))
    }

    fn new(body: Body, style: Style, never_filled: Vec<Box<str>>) -> Self {
        Self(std::sync::Arc::new(Program { body, style, never_filled }))
    }

    /// The text when it has no operators.
    pub fn literal(&self) -> Option<&[u8]> {
        match &self.0.body {
            Body::Literal(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Whether it is one operator and no other text.
    pub fn is_one_operator(&self) -> bool {
        matches!(&self.0.body, Body::Text(parts) if matches!(parts.as_slice(), [Part::Operator { .. }]))
    }

    /// Operators that are accepted but have no value in this proxy, for a warning when config is
    /// compiled.
    pub fn never_filled(&self) -> &[Box<str>] {
        &self.0.never_filled
    }

    /// Appends the rendered text to `out`.
    pub fn render(&self, out: &mut Vec<u8>, ctx: &FormatContext<'_>) {
        match &self.0.body {
            Body::Literal(bytes) => out.extend_from_slice(bytes),
            Body::Text(parts) => render_parts(parts, self.0.style.look(), out, ctx),
            Body::Json(node) => {
                node.render(out, ctx);
                out.push(b'\n');
            }
        }
    }
}

/// What a [`Style`] comes to.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// A missing value is `-`.
    dash: bool,
    /// Control bytes are escaped, and with `quotes` what could end a quoted stretch.
    escape: bool,
    quotes: bool,
}

impl Style {
    fn look(self) -> Look {
        Look {
            dash: matches!(self, Style::Log | Style::Body),
            escape: !matches!(self, Style::Body | Style::BodyOmitEmpty),
            quotes: matches!(self, Style::Log | Style::LogOmitEmpty),
        }
    }
}

fn render_parts(parts: &[Part], look: Look, out: &mut Vec<u8>, ctx: &FormatContext<'_>) {
    for part in parts {
        match part {
            Part::Literal(bytes) => out.extend_from_slice(bytes),
            Part::Operator { operator, limit, quoted } => {
                let start = out.len();
                if operator.write(out, ctx) {
                    if let Some(limit) = limit {
                        out.truncate(start.saturating_add(*limit));
                    }
                    if look.escape && !operator.is_number() {
                        escape_from(out, start, *quoted && look.quotes);
                    }
                } else {
                    out.truncate(start);
                    if look.dash {
                        out.push(b'-');
                    }
                }
            }
        }
    }
}

/// Replaces what could break out of a line (or of quotes) in `out[start..]` by `\xNN`.
fn escape_from(out: &mut Vec<u8>, start: usize, quoted: bool) {
    let bad = |b: u8| b < b' ' && b != b'\t' || b == 0x7f || quoted && (b == b'"' || b == b'\\');
    let Some(value) = out.get(start..) else { return };
    let Some(first) = value.iter().position(|b| bad(*b)) else { return };
    let tail = out.split_off(start + first);
    for byte in tail {
        if bad(byte) {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            let digits = [byte >> 4, byte & 15].map(|d| HEX[usize::from(d)]);
            out.extend_from_slice(b"\\x");
            out.extend_from_slice(&digits);
        } else {
            out.push(byte);
        }
    }
}
