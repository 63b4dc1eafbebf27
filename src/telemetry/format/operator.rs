//! The operators: how each is written in config and what it reads.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use super::parse::Token;
use super::time::TimeFormat;
use super::{FormatContext, FormatError, LogType};
use crate::config::{HeaderKey, HeaderView, Known};
use crate::telemetry::stream_info::{Protocol, ResponseFlags, StreamInfo, StreamTimes};

/// A parsed operator.
#[derive(Debug)]
pub(super) enum Operator {
    /// Known when parsed: `HOSTNAME`, `ENVIRONMENT`. `None`: no such variable.
    Constant(Option<Box<str>>),
    /// `REQ(A?B)`.
    Request(Pick),
    /// `RESP(A?B)`.
    Response(Pick),
    /// `TRAILER(A?B)`.
    Trailer(Pick),
    /// `START_TIME(format)`.
    StartTime(TimeFormat),
    /// `EMIT_TIME(format)`.
    EmitTime(TimeFormat),
    /// A whole number.
    Number(fn(&FormatContext<'_>) -> Option<u64>),
    /// Text that needs no argument.
    Text(fn(&FormatContext<'_>, &mut Vec<u8>) -> bool),
    /// An address with its port.
    Address(fn(&StreamInfo) -> Option<SocketAddr>),
    /// An address without its port.
    Ip(fn(&StreamInfo) -> Option<SocketAddr>),
    /// The port of an address.
    Port(fn(&StreamInfo) -> Option<SocketAddr>),
    /// `COMMON_DURATION(from:to:unit)`.
    Between { from: Point, to: Point, unit: TimeUnit },
    /// `PATH(query:which)`.
    Path { query: bool, which: WhichPath },
    /// `QUERY_PARAM(name)`, decoded.
    QueryParam(Box<str>),
    /// `GRPC_STATUS(form)`.
    GrpcStatus(GrpcForm),
    /// `RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES?)`.
    Details { keep_spaces: bool },
    /// `REQUESTED_SERVER_NAME(option)`.
    ServerName(ServerName),
    /// Accepted, but this proxy has no such value.
    Never(Box<str>),
}

/// The first of two headers that is there.
#[derive(Debug)]
pub(super) struct Pick(HeaderKey, Option<HeaderKey>);

#[derive(Debug, Clone, Copy)]
pub(super) enum Point {
    Start,
    Of(fn(&StreamTimes) -> Option<Duration>),
    /// A point that nothing sets.
    Never,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TimeUnit {
    Milli,
    Micro,
    Nano,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum WhichPath {
    Original,
    Current,
    OriginalOrCurrent,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum ServerName {
    SniOnly,
    SniFirst,
    HostFirst,
}

type NumberOf = fn(&FormatContext<'_>) -> Option<u64>;
type TextOf = fn(&FormatContext<'_>, &mut Vec<u8>) -> bool;
type AddressOf = fn(&StreamInfo) -> Option<SocketAddr>;

const NUMBERS: &[(&str, NumberOf)] = &[
    ("RESPONSE_CODE", |c| Some(c.info.response_code.into())),
    ("BYTES_RECEIVED", |c| Some(c.info.bytes_received)),
    ("BYTES_SENT", |c| Some(c.info.bytes_sent)),
    ("DURATION", |c| millis(c.info.times.end)),
    ("REQUEST_DURATION", |c| millis(c.info.times.request_complete)),
    ("REQUEST_TX_DURATION", |c| millis(c.info.times.last_upstream_tx)),
    ("RESPONSE_DURATION", |c| millis(c.info.times.first_upstream_rx)),
    ("RESPONSE_TX_DURATION", |c| {
        let times = &c.info.times;
        millis(Some(times.last_downstream_tx?.saturating_sub(times.first_upstream_rx?)))
    }),
    ("CONNECTION_ID", |c| Some(c.info.connection.id)),
    ("UPSTREAM_CONNECTION_ID", |c| Some(c.info.upstream_connection_id)),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", |c| Some(c.info.attempts.into())),
    ("REQUEST_HEADERS_BYTES", |c| Some(c.info.request_headers_bytes)),
    ("RESPONSE_HEADERS_BYTES", |c| Some(c.info.response_headers_bytes)),
    ("RESPONSE_TRAILERS_BYTES", |c| Some(c.trailers.map_or(0, HeaderView::byte_size) as u64)),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", |c| Some(c.info.request_headers_bytes)),
    ("DOWNSTREAM_HEADER_BYTES_SENT", |c| Some(c.info.response_headers_bytes)),
    ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", |c| Some(c.info.request_headers_bytes)),
    ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", |c| Some(c.info.response_headers_bytes)),
    // Framing is not counted; it is some ten bytes a chunk or frame.
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", |c| {
        Some(c.info.request_headers_bytes.saturating_add(c.info.bytes_received))
    }),
    ("DOWNSTREAM_WIRE_BYTES_SENT", |c| Some(c.info.response_headers_bytes.saturating_add(c.info.bytes_sent))),
    ("UPSTREAM_WIRE_BYTES_SENT", |c| Some(c.info.upstream_wire_sent)),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", |c| Some(c.info.upstream_wire_received)),
    ("GRPC_STATUS_NUMBER", grpc_status),
];

const TEXTS: &[(&str, TextOf)] = &[
    ("PROTOCOL", |c, out| put(out, c.info.protocol.map(Protocol::name))),
    ("UPSTREAM_PROTOCOL", |c, out| put(out, c.info.upstream_protocol.map(Protocol::name))),
    ("RESPONSE_FLAGS", |c, out| flags(c.info.flags, out, |(_, short, _)| *short)),
    ("RESPONSE_FLAGS_LONG", |c, out| flags(c.info.flags, out, |(_, _, long)| *long)),
    ("UPSTREAM_HOST", |c, out| put(out, c.info.host.as_ref().map(|host| &*host.address_text))),
    ("UPSTREAM_HOST_NAME", |c, out| {
        let host = c.info.host.as_ref();
        put(
            out,
            host.map(
                |h| if h.template.hostname.is_empty() { &*h.address_text } else { &*h.template.hostname },
            ),
        )
    }),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", |c, out| {
        let host = c.info.host.as_ref();
        put(
            out,
            host.map(|h| match h.template.hostname.is_empty() {
                true => h.address_text.rsplit_once(':').map_or(&*h.address_text, |(ip, _)| ip),
                false => &*h.template.hostname,
            }),
        )
    }),
    ("UPSTREAM_CLUSTER", |c, out| put(out, c.info.cluster.as_deref())),
    ("UPSTREAM_CLUSTER_RAW", |c, out| put(out, c.info.cluster.as_deref())),
    ("ROUTE_NAME", |c, out| put(out, c.info.route_name.as_deref())),
    ("FILTER_CHAIN_NAME", |c, out| put(out, Some(&*c.info.connection.filter_chain))),
    ("CONNECTION_TERMINATION_DETAILS", |c, out| put(out, Some(&*c.info.termination_details))),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", |c, out| {
        put_underscored(out, c.info.upstream_failure.as_deref().unwrap_or_default())
    }),
    ("ACCESS_LOG_TYPE", |c, out| put(out, Some(log_type_name(c.log_type)))),
    ("LOCAL_REPLY_BODY", |c, out| {
        out.extend_from_slice(c.local_reply_body);
        true
    }),
    // Envoy's empty set of flags is empty text, not a missing value.
    ("CUSTOM_FLAGS", |_, _| true),
    ("STREAM_ID", |c, out| put_bytes(out, c.request.and_then(|r| r.first(&KEYS.request_id)))),
    ("UNIQUE_ID", |_, out| unique_id(out)),
];

const ADDRESSES: &[(&str, AddressOf)] = &[
    ("DOWNSTREAM_REMOTE", StreamInfo::remote),
    ("DOWNSTREAM_DIRECT_REMOTE", |info| info.connection.direct_remote),
    ("DOWNSTREAM_LOCAL", |info| info.connection.local),
    ("DOWNSTREAM_DIRECT_LOCAL", |info| info.connection.direct_local),
    ("UPSTREAM_LOCAL", |info| info.upstream_local),
    ("UPSTREAM_REMOTE", |info| match &info.host.as_ref()?.address {
        // Only a connection that came to be has a remote end.
        crate::config::cluster::Address::Ip(address) => info.upstream_local.map(|_| *address),
        crate::config::cluster::Address::Pipe(_) => None,
    }),
];

/// Whether an operator that never has a value takes an argument.
#[derive(Clone, Copy)]
enum Argument {
    None,
    Optional,
    Required,
}

const NEVER: &[(&str, Argument)] = &[
    ("BYTES_RETRANSMITTED", Argument::None),
    ("CEL", Argument::Required),
    ("CLUSTER_METADATA", Argument::Required),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", Argument::None),
    ("DOWNSTREAM_HANDSHAKE_DURATION", Argument::None),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", Argument::None),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", Argument::None),
    ("DYNAMIC_METADATA", Argument::Required),
    ("FILTER_STATE", Argument::Required),
    ("METADATA", Argument::Required),
    ("PACKETS_RETRANSMITTED", Argument::None),
    ("ROUNDTRIP_DURATION", Argument::None),
    ("SPAN_ID", Argument::None),
    ("TLS_JA3_FINGERPRINT", Argument::None),
    ("TLS_JA4_FINGERPRINT", Argument::None),
    ("TRACE_ID", Argument::None),
    ("TYPED_CEL", Argument::Required),
    ("UPSTREAM_CONNECTION_IDS_ATTEMPTED", Argument::None),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", Argument::None),
    ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", Argument::None),
    ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Argument::None),
    ("UPSTREAM_DETECTED_CLOSE_TYPE", Argument::None),
    ("UPSTREAM_FILTER_STATE", Argument::Required),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", Argument::None),
    ("UPSTREAM_HEADER_BYTES_SENT", Argument::None),
    ("UPSTREAM_HOSTS_ATTEMPTED", Argument::None),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", Argument::None),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED", Argument::None),
    ("UPSTREAM_LOCAL_CLOSE_REASON", Argument::None),
    ("UPSTREAM_METADATA", Argument::Required),
    ("VIRTUAL_CLUSTER_NAME", Argument::None),
];

/// After `DOWNSTREAM_` or `UPSTREAM_`: values of a TLS connection.
const TLS: &[(&str, Argument)] = &[
    ("LOCAL_DNS_SAN", Argument::None),
    ("LOCAL_EMAIL_SAN", Argument::None),
    ("LOCAL_IP_SAN", Argument::None),
    ("LOCAL_OTHERNAME_SAN", Argument::None),
    ("LOCAL_SUBJECT", Argument::None),
    ("LOCAL_URI_SAN", Argument::None),
    ("PEER_CERT", Argument::None),
    ("PEER_CERT_V_END", Argument::Optional),
    ("PEER_CERT_V_START", Argument::Optional),
    ("PEER_CHAIN_FINGERPRINTS_1", Argument::None),
    ("PEER_CHAIN_FINGERPRINTS_256", Argument::None),
    ("PEER_CHAIN_SERIALS", Argument::None),
    ("PEER_DNS_SAN", Argument::None),
    ("PEER_EMAIL_SAN", Argument::None),
    ("PEER_FINGERPRINT_1", Argument::None),
    ("PEER_FINGERPRINT_256", Argument::None),
    ("PEER_IP_SAN", Argument::None),
    ("PEER_ISSUER", Argument::None),
    ("PEER_OTHERNAME_SAN", Argument::None),
    ("PEER_SERIAL", Argument::None),
    ("PEER_SUBJECT", Argument::None),
    ("PEER_URI_SAN", Argument::None),
    ("TLS_CIPHER", Argument::None),
    ("TLS_SESSION_ID", Argument::None),
    ("TLS_VERSION", Argument::None),
];

struct Keys {
    path: HeaderKey,
    original_path: HeaderKey,
    authority: HeaderKey,
    request_id: HeaderKey,
    content_type: HeaderKey,
    grpc_status: HeaderKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    path: Known::Path.into(),
    original_path: Known::XEnvoyOriginalPath.into(),
    authority: Known::Authority.into(),
    request_id: Known::XRequestId.into(),
    content_type: Known::ContentType.into(),
    grpc_status: Known::GrpcStatus.into(),
});

impl Operator {
    pub fn new(token: &Token<'_>) -> Result<Self, FormatError> {
        let operator = Self::resolve(token)?;
        let takes_length = match &operator {
            Operator::Request(_)
            | Operator::Response(_)
            | Operator::Trailer(_)
            | Operator::Path { .. }
            | Operator::QueryParam(_)
            | Operator::Never(_) => true,
            Operator::Constant(_) => token.argument.is_some(),
            _ => false,
        };
        if token.limit.is_some() && !takes_length {
            return Err(FormatError::TakesNoLength(token.name.into()));
        }
        Ok(operator)
    }

    fn resolve(token: &Token<'_>) -> Result<Self, FormatError> {
        let wrong = |reason: &str| FormatError::Argument {
            operator: token.name.into(),
            argument: token.argument.unwrap_or_default().into(),
            reason: reason.into(),
        };
        let argument = token.argument.unwrap_or_default();
        let required = || match argument {
            "" => Err(FormatError::NeedsArgument(token.name.into())),
            argument => Ok(argument),
        };
        let none = || match token.argument {
            Some(_) => Err(FormatError::TakesNoArgument(token.name.into())),
            None => Ok(()),
        };
        let pick = || Pick::parse(required()?).map_err(wrong);
        let time = || TimeFormat::parse(argument).map_err(|reason| wrong(&reason));
        Ok(match token.name {
            "REQ" => Operator::Request(pick()?),
            "RESP" => Operator::Response(pick()?),
            "TRAILER" => Operator::Trailer(pick()?),
            "START_TIME" => Operator::StartTime(time()?),
            "EMIT_TIME" => Operator::EmitTime(time()?),
            "COMMON_DURATION" => between(required()?).map_err(wrong)?,
            "PATH" => path(argument).map_err(wrong)?,
            "QUERY_PARAM" => Operator::QueryParam(required()?.into()),
            "GRPC_STATUS" => Operator::GrpcStatus(match argument {
                "" | "CAMEL_STRING" => GrpcForm::Camel,
                "SNAKE_STRING" => GrpcForm::Snake,
                "NUMBER" => GrpcForm::Number,
                _ => return Err(wrong("must be CAMEL_STRING, SNAKE_STRING or NUMBER")),
            }),
            "RESPONSE_CODE_DETAILS" => Operator::Details { keep_spaces: argument == "ALLOW_WHITESPACES" },
            "REQUESTED_SERVER_NAME" => Operator::ServerName(match argument.split(':').next().unwrap_or("") {
                "" | "SNI_ONLY" => ServerName::SniOnly,
                "SNI_FIRST" => ServerName::SniFirst,
                "HOST_FIRST" => ServerName::HostFirst,
                _ => return Err(wrong("must be SNI_ONLY, SNI_FIRST or HOST_FIRST")),
            }),
            "ENVIRONMENT" => Operator::Constant(std::env::var(required()?).ok().map(Into::into)),
            "HOSTNAME" => {
                none()?;
                let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
                Operator::Constant(name.map(|name| name.trim().into()))
            }
            name => {
                let operator = by_table(name).ok_or_else(|| FormatError::Unknown(name.into()))?;
                match operator {
                    (operator, Argument::None) => none().map(|()| operator)?,
                    (operator, Argument::Optional) => operator,
                    (operator, Argument::Required) => required().map(|_| operator)?,
                }
            }
        })
    }

    /// Whether values are numbers in JSON.
    pub fn is_number(&self) -> bool {
        matches!(
            self,
            Operator::Number(_)
                | Operator::Port(_)
                | Operator::Between { .. }
                | Operator::GrpcStatus(GrpcForm::Number)
        )
    }

    /// Appends the value; false when there is none (what was appended is then to be cut off).
    pub fn write(&self, out: &mut Vec<u8>, ctx: &FormatContext<'_>) -> bool {
        let info = ctx.info;
        match self {
            Operator::Constant(value) => put(out, value.as_deref()),
            Operator::Request(pick) => put_bytes(out, ctx.request.and_then(|view| pick.first(view))),
            Operator::Response(pick) => put_bytes(out, ctx.response.and_then(|view| pick.first(view))),
            Operator::Trailer(pick) => put_bytes(out, ctx.trailers.and_then(|view| pick.first(view))),
            Operator::StartTime(format) => {
                format.write(out, info.start_time);
                true
            }
            Operator::EmitTime(format) => {
                format.write(out, SystemTime::now());
                true
            }
            Operator::Number(number) => put_number(out, number(ctx)),
            Operator::Text(text) => text(ctx, out),
            Operator::Address(of) => of(info).is_some_and(|address| write!(out, "{address}").is_ok()),
            Operator::Ip(of) => of(info).is_some_and(|address| write!(out, "{}", address.ip()).is_ok()),
            Operator::Port(of) => put_number(out, of(info).map(|address| address.port().into())),
            Operator::Between { from, to, unit } => {
                let times = &info.times;
                let value = from.get(times).zip(to.get(times)).and_then(|(from, to)| to.checked_sub(from));
                put_number(out, value.map(|value| unit.of(value)))
            }
            Operator::Path { query, which } => {
                let Some(request) = ctx.request else { return false };
                let original = || request.first(&KEYS.original_path);
                let current = || request.first(&KEYS.path);
                let path = match which {
                    WhichPath::Original => original(),
                    WhichPath::Current => current(),
                    WhichPath::OriginalOrCurrent => original().or_else(current),
                };
                let without = |path| if *query { path } else { split_query(path).0 };
                put_bytes(out, path.map(without))
            }
            Operator::QueryParam(name) => {
                let path = ctx.request.and_then(|request| request.first(&KEYS.path));
                path.is_some_and(|path| put_query_param(out, split_query(path).1, name.as_bytes()))
            }
            Operator::GrpcStatus(form) => match (grpc_status(ctx), form) {
                (Some(status), GrpcForm::Number) => put_number(out, Some(status)),
                (Some(status), form) => put_grpc_name(out, status, *form),
                (None, _) => false,
            },
            Operator::Details { keep_spaces: true } => put(out, Some(&*info.details)),
            Operator::Details { keep_spaces: false } => put_underscored(out, &info.details),
            Operator::ServerName(order) => {
                let sni = || info.connection.server_name.as_deref().map(str::as_bytes);
                let host = || {
                    let authority = ctx.request?.first(&KEYS.authority)?;
                    authority.split(|b| *b == b':').next()
                };
                put_bytes(
                    out,
                    match order {
                        ServerName::SniOnly => sni(),
                        ServerName::SniFirst => sni().or_else(host),
                        ServerName::HostFirst => host().or_else(sni),
                    },
                )
            }
            Operator::Never(_) => false,
        }
    }
}

fn by_table(name: &str) -> Option<(Operator, Argument)> {
    if let Some((_, number)) = NUMBERS.iter().find(|(n, _)| *n == name) {
        return Some((Operator::Number(*number), Argument::None));
    }
    if let Some((_, text)) = TEXTS.iter().find(|(n, _)| *n == name) {
        return Some((Operator::Text(*text), Argument::None));
    }
    for (stem, of) in ADDRESSES {
        match name.strip_prefix(stem) {
            Some("_ADDRESS") => return Some((Operator::Address(*of), Argument::None)),
            Some("_ADDRESS_WITHOUT_PORT") => return Some((Operator::Ip(*of), Argument::None)),
            Some("_PORT") => return Some((Operator::Port(*of), Argument::None)),
            _ => {}
        }
    }
    let tls = name.strip_prefix("DOWNSTREAM_").or_else(|| name.strip_prefix("UPSTREAM_"));
    let never = NEVER.iter().find(|(n, _)| *n == name);
    let never = never.or_else(|| TLS.iter().find(|(n, _)| Some(*n) == tls));
    never.map(|(_, argument)| (Operator::Never(name.into()), *argument))
}

impl Pick {
    fn parse(argument: &str) -> Result<Self, &'static str> {
        let mut names = argument.split('?');
        let main = names.next().unwrap_or_default();
        let other = names.next();
        if names.next().is_some() {
            return Err("at most one alternative header");
        }
        let key = |name: &str| {
            let token = name.strip_prefix(':').unwrap_or(name);
            let good = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b':');
            good.then(|| HeaderKey::new(name)).ok_or("not a header name")
        };
        Ok(Pick(key(main)?, other.map(key).transpose()?))
    }

    fn first<'a>(&self, view: &'a dyn HeaderView) -> Option<&'a [u8]> {
        view.first(&self.0).or_else(|| self.1.as_ref().and_then(|other| view.first(other)))
    }
}

fn between(argument: &str) -> Result<Operator, &'static str> {
    let mut parts = argument.split(':');
    let (from, to) = match (parts.next(), parts.next()) {
        (Some(from), Some(to)) if !from.is_empty() && !to.is_empty() => (from, to),
        _ => return Err("must be <start>:<end> or <start>:<end>:<unit>"),
    };
    let unit = match parts.next() {
        None | Some("ms") => TimeUnit::Milli,
        Some("us") => TimeUnit::Micro,
        Some("ns") => TimeUnit::Nano,
        Some(_) => return Err("the unit must be ms, us or ns"),
    };
    let point = |name| match name {
        "DS_RX_BEG" => Point::Start,
        "DS_RX_END" => Point::Of(|t| t.request_complete),
        "US_TX_BEG" => Point::Of(|t| t.first_upstream_tx),
        "US_TX_END" => Point::Of(|t| t.last_upstream_tx),
        "US_RX_BEG" => Point::Of(|t| t.first_upstream_rx),
        "US_RX_END" => Point::Of(|t| t.last_upstream_rx),
        "DS_TX_BEG" => Point::Of(|t| t.first_downstream_tx),
        "DS_TX_END" => Point::Of(|t| t.last_downstream_tx),
        // Envoy takes other names for points that filters set.
        _ => Point::Never,
    };
    Ok(Operator::Between { from: point(from), to: point(to), unit })
}

impl Point {
    fn get(self, times: &StreamTimes) -> Option<Duration> {
        match self {
            Point::Start => Some(Duration::ZERO),
            Point::Of(of) => of(times),
            Point::Never => None,
        }
    }
}

impl TimeUnit {
    fn of(self, value: Duration) -> u64 {
        let value = match self {
            TimeUnit::Milli => value.as_millis(),
            TimeUnit::Micro => value.as_micros(),
            TimeUnit::Nano => value.as_nanos(),
        };
        u64::try_from(value).unwrap_or(u64::MAX)
    }
}

fn path(argument: &str) -> Result<Operator, &'static str> {
    let (query, which) = argument.split_once(':').unwrap_or((argument, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err("the first option must be WQ or NQ"),
    };
    let which = match which {
        "ORIG" => WhichPath::Original,
        "PATH" => WhichPath::Current,
        "" | "ORIG_OR_PATH" => WhichPath::OriginalOrCurrent,
        _ => return Err("the second option must be ORIG, PATH or ORIG_OR_PATH"),
    };
    Ok(Operator::Path { query, which })
}

fn millis(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| TimeUnit::Milli.of(duration))
}

fn put(out: &mut Vec<u8>, value: Option<&str>) -> bool {
    put_bytes(out, value.map(str::as_bytes))
}

/// Nothing is the same as empty.
fn put_bytes(out: &mut Vec<u8>, value: Option<&[u8]>) -> bool {
    let value = value.unwrap_or_default();
    out.extend_from_slice(value);
    !value.is_empty()
}

fn put_number(out: &mut Vec<u8>, value: Option<u64>) -> bool {
    if let Some(value) = value {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
    value.is_some()
}

fn put_underscored(out: &mut Vec<u8>, value: &str) -> bool {
    out.extend(value.bytes().map(|b| if b.is_ascii_whitespace() { b'_' } else { b }));
    !value.is_empty()
}

fn flags(
    set: ResponseFlags,
    out: &mut Vec<u8>,
    name: fn(&(ResponseFlags, &'static str, &'static str)) -> &'static str,
) -> bool {
    if set.is_empty() {
        out.push(b'-');
    }
    let mut first = true;
    for flag in ResponseFlags::ALL.iter().filter(|flag| set.contains(flag.0)) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
    true
}

fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    let path = path.split(|b| *b == b'#').next().unwrap_or_default();
    match memchr::memchr(b'?', path) {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (path, b""),
    }
}

fn put_query_param(out: &mut Vec<u8>, query: &[u8], name: &[u8]) -> bool {
    let mut decoded = Vec::new();
    for pair in query.split(|b| *b == b'&') {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        decoded.clear();
        percent_decode(halves.next().unwrap_or_default(), &mut decoded);
        if decoded == name {
            let start = out.len();
            percent_decode(halves.next().unwrap_or_default(), out);
            return out.len() > start;
        }
    }
    false
}

fn percent_decode(text: &[u8], out: &mut Vec<u8>) {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if let (b'%', [high, low, tail @ ..]) = (first, after) {
            if let (Some(high), Some(low)) = (digit(high), digit(low)) {
                out.push(high << 4 | low);
                rest = tail;
                continue;
            }
        }
        out.push(*first);
        rest = after;
    }
}

/// The gRPC status of the stream: from the trailers, else the response head, else as the HTTP status
/// maps to it. `None` when the request is not gRPC.
fn grpc_status(ctx: &FormatContext<'_>) -> Option<u64> {
    let content_type = ctx.request?.first(&KEYS.content_type)?;
    let rest = content_type.strip_prefix(b"application/grpc")?;
    if !(rest.is_empty() || rest.starts_with(b"+")) {
        return None;
    }
    Some(grpc_status_of(ctx))
}

/// [`grpc_status`] of a stream whatever its content type (`grpc_status_filter`).
pub(in crate::telemetry) fn grpc_status_of(ctx: &FormatContext<'_>) -> u64 {
    let sent = |view: Option<&dyn HeaderView>| {
        let status = std::str::from_utf8(view?.first(&KEYS.grpc_status)?).ok()?;
        status.parse().ok()
    };
    sent(ctx.trailers).or_else(|| sent(ctx.response)).unwrap_or(match ctx.info.response_code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    })
}

/// gRPC status names by number: as in code, as in the protocol.
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn put_grpc_name(out: &mut Vec<u8>, status: u64, form: GrpcForm) -> bool {
    match usize::try_from(status).ok().and_then(|status| GRPC.get(status)) {
        Some((_, snake)) if matches!(form, GrpcForm::Snake) => put(out, Some(snake)),
        Some((camel, _)) => put(out, Some(camel)),
        None => put_number(out, Some(status)),
    }
}

fn log_type_name(log_type: LogType) -> &'static str {
    match log_type {
        LogType::NotSet => "NotSet",
        LogType::TcpUpstreamConnected => "TcpUpstreamConnected",
        LogType::TcpPeriodic => "TcpPeriodic",
        LogType::TcpConnectionEnd => "TcpConnectionEnd",
        LogType::TcpConnectionStart => "TcpConnectionStart",
        LogType::DownstreamStart => "DownstreamStart",
        LogType::DownstreamPeriodic => "DownstreamPeriodic",
        LogType::DownstreamEnd => "DownstreamEnd",
        LogType::UpstreamPoolReady => "UpstreamPoolReady",
        LogType::UpstreamPeriodic => "UpstreamPeriodic",
        LogType::UpstreamEnd => "UpstreamEnd",
        LogType::DownstreamTunnelSuccessfullyEstablished => "DownstreamTunnelSuccessfullyEstablished",
        LogType::UdpTunnelUpstreamConnected => "UdpTunnelUpstreamConnected",
        LogType::UdpPeriodic => "UdpPeriodic",
        LogType::UdpSessionEnd => "UdpSessionEnd",
    }
}

/// A random UUID (version 4).
fn unique_id(out: &mut Vec<u8>) -> bool {
    let random = fastrand::u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{random:032x}");
    let mut rest = hex.as_str();
    for length in [8, 4, 4, 4, 12] {
        let (part, tail) = rest.split_at(length);
        out.extend_from_slice(part.as_bytes());
        if !tail.is_empty() {
            out.push(b'-');
        }
        rest = tail;
    }
    true
}
