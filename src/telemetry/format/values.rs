//! Where the values come from: tables of the operators that take no argument, and how values of
//! each kind are written.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::operator::{GrpcForm, TimeUnit};
use super::{FormatContext, LogType};
use crate::config::query::{decoded, decoded_where};
use crate::config::{HeaderKey, HeaderView, Known};
use crate::http::head::is_grpc_type;
use crate::telemetry::stream_info::{NamedFlag, Protocol, StreamInfo};

pub(super) type NumberOf = fn(&FormatContext<'_>) -> Option<u64>;
pub(super) type TextOf = fn(&FormatContext<'_>, &mut Vec<u8>) -> bool;
pub(super) type AddressOf = fn(&StreamInfo) -> Option<SocketAddr>;

pub(super) const NUMBERS: &[(&str, NumberOf)] = &[
    ("RESPONSE_CODE", |c| Some(c.info.response_code.into())),
    ("BYTES_RECEIVED", |c| Some(c.info.bytes_received)),
    ("BYTES_SENT", |c| Some(c.info.bytes_sent)),
    ("DURATION", |c| millis_to(c, c.info.times.end)),
    ("REQUEST_DURATION", |c| millis_to(c, c.info.times.request_complete)),
    ("REQUEST_TX_DURATION", |c| millis_to(c, c.info.times.upstream_tx_end())),
    ("RESPONSE_DURATION", |c| millis_to(c, c.info.times.first_upstream_rx)),
    ("RESPONSE_TX_DURATION", |c| {
        let times = &c.info.times;
        Some(millis(times.last_downstream_tx?.saturating_duration_since(times.first_upstream_rx?)))
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

pub(super) const TEXTS: &[(&str, TextOf)] = &[
    ("PROTOCOL", |c, out| put(out, c.info.protocol.map(Protocol::name))),
    ("UPSTREAM_PROTOCOL", |c, out| put(out, c.info.upstream_protocol.map(Protocol::name))),
    ("RESPONSE_FLAGS", |c, out| flags(c.info, out, |(_, short, _)| *short)),
    ("RESPONSE_FLAGS_LONG", |c, out| flags(c.info, out, |(_, _, long)| *long)),
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
    ("UPSTREAM_CLUSTER", |c, out| put(out, c.info.cluster.as_ref().map(|names| &*names.stat_name))),
    ("UPSTREAM_CLUSTER_RAW", |c, out| put(out, c.info.cluster.as_ref().map(|names| &*names.name))),
    ("ROUTE_NAME", |c, out| put(out, c.info.route_name.as_deref())),
    ("VIRTUAL_CLUSTER_NAME", |c, out| put(out, c.info.virtual_cluster.as_ref().map(|name| &*name.0))),
    ("LISTENER_NAME", |c, out| put(out, Some(&*c.info.connection.listener))),
    ("FILTER_CHAIN_NAME", |c, out| put(out, Some(&*c.info.connection.filter_chain))),
    ("CONNECTION_TERMINATION_DETAILS", |c, out| put(out, Some(&*c.info.termination_details))),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", |c, out| {
        put_underscored(out, c.info.upstream_failure.as_deref().unwrap_or_default())
    }),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", |c, out| {
        put_underscored(out, c.info.downstream_failure.as_deref().unwrap_or_default())
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
    ("TRACE_ID", |c, out| {
        c.info.trace.as_ref().is_some_and(|trace| write!(out, "{:032x}", trace.id).is_ok())
    }),
    ("SPAN_ID", |c, out| {
        c.info.trace.as_ref().is_some_and(|trace| write!(out, "{:016x}", trace.span).is_ok())
    }),
];

pub(super) const ADDRESSES: &[(&str, AddressOf)] = &[
    ("DOWNSTREAM_REMOTE", StreamInfo::remote),
    ("DOWNSTREAM_DIRECT_REMOTE", |info| info.connection.direct_remote),
    ("DOWNSTREAM_LOCAL", |info| info.connection.local),
    ("DOWNSTREAM_DIRECT_LOCAL", |info| info.connection.direct_local),
    ("UPSTREAM_LOCAL", |info| info.upstream_local),
    ("UPSTREAM_REMOTE", |info| match &info.host.as_ref()?.address {
        // Only a connection that came to be has a remote end.
        crate::config::cluster::Address::Ip(address) => info.upstream_local.map(|_| *address),
        crate::config::cluster::Address::Pipe(_) | crate::config::cluster::Address::Internal(_) => None,
    }),
];

/// Whether an operator that never has a value takes an argument.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    None,
    Optional,
    Required,
}

pub(super) const NEVER: &[(&str, Argument)] = &[
    ("BYTES_RETRANSMITTED", Argument::None),
    ("DOWNSTREAM_CX_RTT", Argument::None),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", Argument::None),
    ("DOWNSTREAM_HANDSHAKE_DURATION", Argument::None),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", Argument::None),
    ("PACKETS_RETRANSMITTED", Argument::None),
    ("ROUNDTRIP_DURATION", Argument::None),
    ("ROUTE_RESOLUTION_COUNT", Argument::None),
    ("ROUTE_RESOLUTION_TIME_US", Argument::None),
    ("TLS_JA3_FINGERPRINT", Argument::None),
    ("TLS_JA4_FINGERPRINT", Argument::None),
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
    ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", Argument::None),
    ("UPSTREAM_LOCAL_CLOSE_REASON", Argument::None),
    ("UPSTREAM_SERVER_NAME", Argument::None),
];

pub(super) struct Keys {
    pub path: HeaderKey,
    pub original_path: HeaderKey,
    pub authority: HeaderKey,
    pub request_id: HeaderKey,
    pub content_type: HeaderKey,
    pub grpc_status: HeaderKey,
}

pub(super) static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    path: Known::Path.into(),
    original_path: Known::XEnvoyOriginalPath.into(),
    authority: Known::Authority.into(),
    request_id: Known::XRequestId.into(),
    content_type: Known::ContentType.into(),
    grpc_status: Known::GrpcStatus.into(),
});

/// Milliseconds from the stream's start to `point`.
fn millis_to(context: &FormatContext<'_>, point: Option<Instant>) -> Option<u64> {
    context.info.after_start(point).map(millis)
}

fn millis(duration: Duration) -> u64 {
    TimeUnit::Milli.of(duration)
}

pub(super) fn put(out: &mut Vec<u8>, value: Option<&str>) -> bool {
    put_bytes(out, value.map(str::as_bytes))
}

/// Nothing is the same as empty.
pub(super) fn put_bytes(out: &mut Vec<u8>, value: Option<&[u8]>) -> bool {
    let value = value.unwrap_or_default();
    out.extend_from_slice(value);
    !value.is_empty()
}

/// An empty value is one.
pub(super) fn put_found(out: &mut Vec<u8>, value: Option<&[u8]>) -> bool {
    out.extend_from_slice(value.unwrap_or_default());
    value.is_some()
}

pub(super) fn put_number(out: &mut Vec<u8>, value: Option<u64>) -> bool {
    if let Some(value) = value {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
    value.is_some()
}

pub(super) fn put_underscored(out: &mut Vec<u8>, value: &str) -> bool {
    out.extend(value.bytes().map(|b| if b.is_ascii_whitespace() { b'_' } else { b }));
    !value.is_empty()
}

fn flags(info: &StreamInfo, out: &mut Vec<u8>, name: fn(&NamedFlag) -> &'static str) -> bool {
    if info.flags.is_empty() {
        out.push(b'-');
    }
    let mut first = true;
    for flag in info.flags.ordered(info.protocol.is_some()) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
    true
}

pub(super) fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    let path = path.split(|b| *b == b'#').next().unwrap_or_default();
    match memchr::memchr(b'?', path) {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (path, b""),
    }
}

pub(super) fn put_query_param(out: &mut Vec<u8>, query: &[u8], name: &[u8]) -> bool {
    for pair in query.split(|b| *b == b'&') {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        if *decoded(halves.next().unwrap_or_default()) == *name {
            let value = decoded(halves.next().unwrap_or_default());
            out.extend_from_slice(&value);
            return !value.is_empty();
        }
    }
    false
}

/// Decodes what can be shown: as in Envoy, other escapes stay.
pub(super) fn decode_shown(text: &[u8], out: &mut Vec<u8>) {
    let shown = |byte: u8| {
        byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'{' | b'|' | b'}')
    };
    out.extend_from_slice(&decoded_where(text, shown));
}

/// The gRPC status of the stream: from the trailers, else the response head, else as the HTTP status
/// maps to it. `None` when the request is not gRPC.
pub(super) fn grpc_status(ctx: &FormatContext<'_>) -> Option<u64> {
    let content_type = ctx.request?.first(&KEYS.content_type)?;
    is_grpc_type(content_type).then(|| grpc_status_of(ctx))
}

/// [`grpc_status`] of a stream whatever its content type (`grpc_status_filter`).
pub(in crate::telemetry) fn grpc_status_of(ctx: &FormatContext<'_>) -> u64 {
    told_grpc_status(ctx.trailers, ctx.response, ctx.info.response_code).unwrap_or(2)
}

/// The gRPC status that a response tells, or that its HTTP status stands for; `None` if it has none (0).
pub(crate) fn told_grpc_status(
    trailers: Option<&dyn HeaderView>,
    response: Option<&dyn HeaderView>,
    http: u16,
) -> Option<u64> {
    let sent = |view: Option<&dyn HeaderView>| {
        let status = std::str::from_utf8(view?.first(&KEYS.grpc_status)?).ok()?;
        status.parse().ok()
    };
    let stands_for = match http {
        0 => None,
        400 => Some(13),
        401 => Some(16),
        403 => Some(7),
        404 => Some(12),
        429 | 502..=504 => Some(14),
        _ => Some(2),
    };
    sent(trailers).or_else(|| sent(response)).or(stands_for)
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

pub(super) fn put_grpc_name(out: &mut Vec<u8>, status: u64, form: GrpcForm) -> bool {
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
        LogType::TcpConnectionStart => "TcpConnectionStart",
        LogType::TcpConnectionEnd => "TcpConnectionEnd",
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
