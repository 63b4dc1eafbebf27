//! Envoy's attributes (envoyproxy.io: advanced/attributes): what each name stands for.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Instant, UNIX_EPOCH};

use super::value::{Failed, Outcome, Value};
use super::{CelError, Subject};
use crate::config::discovery::SanKind;
use crate::config::{HeaderKey, HeaderView, Known};
use crate::telemetry::format::told_grpc_status;
use crate::telemetry::stream_info::{read_route_metadata, DynamicMetadata, Protocol, StreamInfo};
use crate::tls::peer::Facts as Certificate;
use crate::tls::TlsInfo;

/// A head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Request,
    Response,
    Trailers,
}

impl Head {
    pub(super) fn head<'a>(self, subject: &Subject<'a>) -> Option<&'a dyn HeaderView> {
        match self {
            Head::Request => subject.request,
            Head::Response => subject.response,
            Head::Trailers => subject.trailers,
        }
    }
}

/// Whose connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// What TLS tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    Version,
    LocalSubject,
    PeerSubject,
    LocalName(SanKind),
    PeerName(SanKind),
    PeerDigest,
}

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
    Upstream,
    UpstreamLocal,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    /// A field of the request's head.
    RequestField(Known),
    Referer,
    UrlPath,
    Query,
    Headers(Head),
    Protocol,
    RequestTime,
    RequestSize,
    RequestTotalSize,
    RequestDuration,
    ResponseCode,
    CodeDetails,
    ResponseFlags,
    ResponseSize,
    ResponseTotalSize,
    GrpcStatus,
    BackendLatency,
    Address(End),
    Port(End),
    Mtls,
    ServerName,
    ConnectionId,
    TerminationDetails,
    DownstreamFailure,
    UpstreamFailure,
    Attempts,
    Tls(Side, Tls),
    Metadata,
    RouteMetadata,
    ClusterMetadata,
    HostMetadata,
    FilterState,
    RouteName,
    ClusterName,
    FilterChainName,
    Direction,
    Nothing,
}

/// Groups of attributes.
const GROUPS: &[&str] =
    &["request", "response", "source", "destination", "connection", "upstream", "metadata", "xds"];

/// What Envoy tells and this proxy does not.
const ELSEWHERE: &[(&str, &str)] = &[
    ("metadata", "typed_filter_metadata"),
    ("upstream", "locality"),
    ("upstream", "cx_pool_ready_duration"),
    ("xds", "node"),
    ("xds", "listener_metadata"),
    ("xds", "upstream_host_locality_metadata"),
    ("xds", "virtual_host_name"),
    ("xds", "virtual_host_metadata"),
];

impl Attribute {
    /// What `group.name` or `group` stands for; `None` if that is nothing.
    pub(super) fn find(group: &str, name: Option<&str>) -> Result<Option<Self>, CelError> {
        use Attribute::{Address, Headers, Port, RequestField};
        let Some(name) = name else {
            return match group {
                "filter_state" => Ok(Some(Attribute::FilterState)),
                group if GROUPS.contains(&group) || group == "upstream_filter_state" => {
                    Err(CelError::Attribute(group.to_owned()))
                }
                _ => Ok(None),
            };
        };
        if ELSEWHERE.contains(&(group, name)) {
            return Err(CelError::Attribute(format!("{group}.{name}")));
        }
        let tls = |side, name| Some(Attribute::Tls(side, tls(name)?));
        let known = match (group, name) {
            ("request", "path") => Some(RequestField(Known::Path)),
            ("request", "url_path") => Some(Attribute::UrlPath),
            ("request", "query") => Some(Attribute::Query),
            ("request", "host") => Some(RequestField(Known::Authority)),
            ("request", "scheme") => Some(RequestField(Known::Scheme)),
            ("request", "method") => Some(RequestField(Known::Method)),
            ("request", "referer") => Some(Attribute::Referer),
            ("request", "useragent") => Some(RequestField(Known::UserAgent)),
            ("request", "id") => Some(RequestField(Known::XRequestId)),
            ("request", "headers") => Some(Headers(Head::Request)),
            ("request", "protocol") => Some(Attribute::Protocol),
            ("request", "time") => Some(Attribute::RequestTime),
            ("request", "size") => Some(Attribute::RequestSize),
            ("request", "total_size") => Some(Attribute::RequestTotalSize),
            ("request", "duration") => Some(Attribute::RequestDuration),
            ("response", "code") => Some(Attribute::ResponseCode),
            ("response", "code_details") => Some(Attribute::CodeDetails),
            ("response", "flags") => Some(Attribute::ResponseFlags),
            ("response", "size") => Some(Attribute::ResponseSize),
            ("response", "total_size") => Some(Attribute::ResponseTotalSize),
            ("response", "grpc_status") => Some(Attribute::GrpcStatus),
            ("response", "headers") => Some(Headers(Head::Response)),
            ("response", "trailers") => Some(Headers(Head::Trailers)),
            ("response", "backend_latency") => Some(Attribute::BackendLatency),
            ("source", "address") => Some(Address(End::Source)),
            ("source", "port") => Some(Port(End::Source)),
            ("destination", "address") => Some(Address(End::Destination)),
            ("destination", "port") => Some(Port(End::Destination)),
            ("connection", "mtls") => Some(Attribute::Mtls),
            ("connection", "requested_server_name") => Some(Attribute::ServerName),
            ("connection", "id") => Some(Attribute::ConnectionId),
            ("connection", "termination_details") => Some(Attribute::TerminationDetails),
            ("connection", "transport_failure_reason") => Some(Attribute::DownstreamFailure),
            ("connection", name) => tls(Side::Downstream, name),
            ("upstream", "address") => Some(Address(End::Upstream)),
            ("upstream", "port") => Some(Port(End::Upstream)),
            ("upstream", "local_address") => Some(Address(End::UpstreamLocal)),
            ("upstream", "transport_failure_reason") => Some(Attribute::UpstreamFailure),
            ("upstream", "request_attempt_count") => Some(Attribute::Attempts),
            ("upstream", name) => tls(Side::Upstream, name),
            ("metadata", "filter_metadata") => Some(Attribute::Metadata),
            ("xds", "route_metadata") => {
                read_route_metadata();
                Some(Attribute::RouteMetadata)
            }
            ("xds", "cluster_metadata") => Some(Attribute::ClusterMetadata),
            ("xds", "upstream_host_metadata") => Some(Attribute::HostMetadata),
            ("xds", "route_name") => Some(Attribute::RouteName),
            ("xds", "cluster_name") => Some(Attribute::ClusterName),
            ("xds", "filter_chain_name") => Some(Attribute::FilterChainName),
            ("xds", "listener_direction") => Some(Attribute::Direction),
            _ => None,
        };
        // A name that a group lacks stands for nothing.
        Ok(known.or_else(|| GROUPS.contains(&group).then_some(Attribute::Nothing)))
    }

    /// Its value.
    pub(super) fn value<'a>(self, subject: &Subject<'a>) -> Outcome<'a> {
        self.read(subject).ok_or(Failed)
    }

    fn read<'a>(self, subject: &Subject<'a>) -> Option<Value<'a>> {
        let stream = subject.stream;
        let path = || first(subject.request?, &KEYS.path);
        match self {
            Attribute::RequestField(known) => {
                let key = KEYS.all.iter().find(|key| key.known() == known)?;
                first(subject.request?, key).map(Value::of_bytes)
            }
            Attribute::Referer => first(subject.request?, &KEYS.referer).map(Value::of_bytes),
            Attribute::UrlPath => path()?.split(|byte| *byte == b'?').next().map(Value::of_bytes),
            Attribute::Query => {
                let path = path()?;
                let query = memchr::memchr(b'?', path).and_then(|at| path.get(at + 1..)).unwrap_or_default();
                query.split(|byte| *byte == b'#').next().map(Value::of_bytes)
            }
            Attribute::Headers(head) => head.head(subject).map(Value::Headers),
            Attribute::Protocol => Some(text(stream?.protocol.map(Protocol::name)?)),
            Attribute::RequestTime => {
                let since = stream?.start_time().duration_since(UNIX_EPOCH).ok()?;
                i64::try_from(since.as_nanos()).ok().map(Value::Time)
            }
            Attribute::RequestSize => {
                let told = subject.request.and_then(|head| first(head, &KEYS.content_length));
                match told.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok()) {
                    Some(length) => Some(Value::Int(length)),
                    None => Some(Value::of_count(stream?.bytes_received)),
                }
            }
            Attribute::RequestTotalSize => {
                let head = subject.request.map_or(0, HeaderView::byte_size) as u64;
                Some(Value::of_count(stream?.bytes_received.saturating_add(head)))
            }
            Attribute::RequestDuration => {
                let stream = stream?;
                stream.after_start(stream.times.end).map(Value::of_duration)
            }
            Attribute::ResponseCode => {
                Some(stream?.response_code).filter(|code| *code > 0).map(|code| Value::Int(code.into()))
            }
            Attribute::CodeDetails => Some(&*stream?.details).filter(|said| !said.is_empty()).map(text),
            Attribute::ResponseFlags => Some(Value::Int(stream?.flags.0.into())),
            Attribute::ResponseSize => Some(Value::of_count(stream?.bytes_sent)),
            Attribute::ResponseTotalSize => {
                let size = |head: Option<&dyn HeaderView>| head.map_or(0, HeaderView::byte_size) as u64;
                let heads = size(subject.response).saturating_add(size(subject.trailers));
                Some(Value::of_count(stream?.bytes_sent.saturating_add(heads)))
            }
            Attribute::GrpcStatus => {
                let code = stream?.response_code;
                told_grpc_status(subject.trailers, subject.response, code).map(Value::of_count)
            }
            Attribute::BackendLatency => latency(stream?).map(Value::of_duration),
            Attribute::Address(End::Upstream) => Some(text(&stream?.host.as_ref()?.address_text)),
            Attribute::Address(end) => Some(Value::Text(Cow::Owned(end.address(subject)?.to_string()))),
            Attribute::Port(end) => Some(Value::Int(end.address(subject)?.port().into())),
            Attribute::Mtls => {
                let tls = subject.connection.tls.as_ref();
                Some(Value::Bool(tls.is_some_and(|tls| tls.peer.is_some())))
            }
            Attribute::ServerName => {
                Some(text(subject.connection.server_name.as_deref().unwrap_or_default()))
            }
            Attribute::ConnectionId => Some(Value::Uint(subject.connection.id)),
            Attribute::TerminationDetails => {
                Some(&*stream?.termination_details).filter(|said| !said.is_empty()).map(text)
            }
            Attribute::DownstreamFailure => {
                Some(text(stream?.downstream_failure.as_deref().unwrap_or_default()))
            }
            Attribute::UpstreamFailure => Some(text(stream?.upstream_failure.as_deref().unwrap_or_default())),
            Attribute::Attempts => Some(Value::Uint(stream?.attempts.into())),
            Attribute::Tls(side, what) => {
                let tls = match side {
                    Side::Downstream => subject.connection.tls.as_deref(),
                    Side::Upstream => stream?.upstream_tls.as_deref(),
                };
                what.read(tls?)
            }
            Attribute::Metadata => subject.dynamic.map(Value::Namespaces),
            Attribute::RouteMetadata => whole(stream?.route_metadata.as_deref()?),
            Attribute::ClusterMetadata => whole(stream?.cluster.as_ref()?.metadata.as_deref()?),
            Attribute::HostMetadata => whole(stream?.host.as_ref()?.template.noted.as_deref()?),
            Attribute::FilterState => stream.map(Value::State),
            Attribute::RouteName => Some(text(stream?.route_name.as_deref().unwrap_or_default())),
            Attribute::ClusterName => stream?.cluster.as_ref().map(|names| text(&names.name)),
            Attribute::FilterChainName => Some(text(&subject.connection.filter_chain)),
            Attribute::Nothing => None,
            // `envoy.config.core.v3.TrafficDirection`.
            Attribute::Direction => Some(Value::Int(if subject.connection.inbound { 1 } else { 2 })),
        }
    }
}

/// Keys of the fields that have names of their own.
struct Keys {
    all: Box<[HeaderKey]>,
    path: HeaderKey,
    referer: HeaderKey,
    content_length: HeaderKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let all =
        [Known::Path, Known::Authority, Known::Scheme, Known::Method, Known::UserAgent, Known::XRequestId];
    Keys {
        all: all.into_iter().map(HeaderKey::from).collect(),
        path: Known::Path.into(),
        referer: HeaderKey::new("referer"),
        content_length: Known::ContentLength.into(),
    }
});

fn first<'a>(head: &'a dyn HeaderView, key: &HeaderKey) -> Option<&'a [u8]> {
    head.first(key)
}

/// Metadata of a resource, as expressions see the message.
fn whole(all: &DynamicMetadata) -> Option<Value<'_>> {
    Some(Value::Map(vec![(text("filter_metadata"), Value::Namespaces(all))]))
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn latency(stream: &StreamInfo) -> Option<std::time::Duration> {
    let (sent, received): (Instant, Instant) =
        (stream.times.first_upstream_tx?, stream.times.last_upstream_rx?);
    Some(received.saturating_duration_since(sent))
}

impl End {
    fn address(self, subject: &Subject<'_>) -> Option<SocketAddr> {
        match self {
            End::Source => match subject.stream {
                Some(stream) => stream.remote(),
                None => subject.connection.remote,
            },
            End::Destination => subject.connection.local,
            End::Upstream => match &subject.stream?.host.as_ref()?.address {
                crate::config::cluster::Address::Ip(address) => Some(*address),
                crate::config::cluster::Address::Pipe(_) | crate::config::cluster::Address::Internal(_) => {
                    None
                }
            },
            End::UpstreamLocal => subject.stream?.upstream_local,
        }
    }
}

fn tls(name: &str) -> Option<Tls> {
    Some(match name {
        "tls_version" => Tls::Version,
        "subject_local_certificate" => Tls::LocalSubject,
        "subject_peer_certificate" => Tls::PeerSubject,
        "uri_san_local_certificate" => Tls::LocalName(SanKind::Uri),
        "uri_san_peer_certificate" => Tls::PeerName(SanKind::Uri),
        "dns_san_local_certificate" => Tls::LocalName(SanKind::Dns),
        "dns_san_peer_certificate" => Tls::PeerName(SanKind::Dns),
        "sha256_peer_certificate_digest" => Tls::PeerDigest,
        _ => return None,
    })
}

impl Tls {
    fn read(self, tls: &TlsInfo) -> Option<Value<'_>> {
        fn subject(facts: Option<&Certificate>) -> Value<'_> {
            text(facts.map_or("", |facts| facts.subject.as_str()))
        }
        match self {
            Tls::Version => Some(text(tls.version)),
            Tls::LocalSubject => Some(subject(tls.local_facts())),
            Tls::PeerSubject => Some(subject(tls.peer_facts())),
            Tls::LocalName(kind) => tls.local_facts()?.of_kind(kind).next().map(text),
            Tls::PeerName(kind) => tls.peer_facts()?.of_kind(kind).next().map(text),
            Tls::PeerDigest => Some(text(&tls.peer_facts()?.sha256)),
        }
    }
}
