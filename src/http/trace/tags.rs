//! What spans tell of a request: Envoy's tags under their names, and those that config adds.

use std::sync::LazyLock;

use super::{RouteTracing, Tracing};
use crate::config::local_node::LocalNode;
use crate::config::{HeaderKey, Host, Known};
use crate::http::head::is_grpc_type;
use crate::telemetry::format::{told_grpc_status, FormatContext};
use crate::telemetry::stream_info::{Protocol, ResponseFlags};
use crate::telemetry::tag::CustomTag;

macro_rules! keys {
    ($($name:ident = $text:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new($text));)*
    };
}

keys! {
    AUTHORITY = ":authority", METHOD = ":method", PATH = ":path", SCHEME = ":scheme",
    REQUEST_ID = "x-request-id", USER_AGENT = "user-agent", ORIGINAL_PATH = "x-envoy-original-path",
    CLUSTER = "x-envoy-downstream-service-cluster", CLIENT_TRACE = "x-client-trace-id",
    CONTENT_TYPE = "content-type", GRPC_TIMEOUT = "grpc-timeout", GRPC_MESSAGE = "grpc-message",
}

type Tags<'a> = Vec<(&'a str, String)>;

/// The tags of a request's span.
pub(super) fn downstream<'a>(
    tracing: &'a Tracing,
    route: Option<&'a RouteTracing>,
    context: &FormatContext<'_>,
) -> Tags<'a> {
    let info = context.info;
    let node = LocalNode::current();
    let mut tags: Tags<'a> = Vec::with_capacity(24);
    tags.push(("node_id", node.id.to_string()));
    tags.push(("zone", node.zone.to_string()));
    let text = |key: &HeaderKey| {
        let value = context.request?.first(key)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let or_dash = |key: &HeaderKey| text(key).unwrap_or_else(|| "-".into());
    if context.request.is_some() {
        tags.extend(text(&REQUEST_ID).map(|id| ("guid:x-request-id", id)));
        let mut path = text(&ORIGINAL_PATH).or_else(|| text(&PATH)).unwrap_or_default();
        let mut end = path.len().min(tracing.max_path);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        path.truncate(end);
        let scheme = text(&SCHEME).unwrap_or_default();
        let host = text(&AUTHORITY).unwrap_or_default();
        tags.push(("http.url", format!("{scheme}://{host}{path}")));
        tags.push(("http.method", text(&METHOD).unwrap_or_default()));
        tags.push(("downstream_cluster", or_dash(&CLUSTER)));
        tags.push(("user_agent", or_dash(&USER_AGENT)));
        tags.push(("http.protocol", protocol(info.protocol)));
        let peer = info.connection.direct_remote.map(|peer| peer.ip().to_string());
        tags.push(("peer.address", peer.unwrap_or_default()));
        tags.extend(text(&CLIENT_TRACE).map(|id| ("guid:x-client-trace-id", id)));
        if is_grpc(context) {
            tags.push(("grpc.path", text(&PATH).unwrap_or_default()));
            tags.push(("grpc.authority", host));
            tags.push(("grpc.content_type", text(&CONTENT_TYPE).unwrap_or_default()));
            tags.extend(text(&GRPC_TIMEOUT).map(|timeout| ("grpc.timeout", timeout)));
        }
    }
    tags.push(("request_size", info.bytes_received.to_string()));
    common(&mut tags, custom(tracing, route), context, (info.response_code, info.flags));
    tags
}

/// A try to reach an upstream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tried {
    /// Its number, from 0.
    pub number: usize,
    /// The status that it got; 0 = none.
    pub status: u16,
    /// No other came after it.
    pub last: bool,
}

/// The tags of a try's span.
pub(super) fn upstream<'a>(
    all: &'a [CustomTag],
    own: &'a [CustomTag],
    context: &FormatContext<'_>,
    host: Option<&Host>,
    tried: Tried,
) -> Tags<'a> {
    let mut tags: Tags<'a> = Vec::with_capacity(16);
    tags.push(("http.protocol", protocol(context.info.upstream_protocol)));
    if let Some(host) = host {
        tags.push(("upstream_address", host.address_text.to_string()));
        tags.push(("peer.address", host.address_text.to_string()));
    }
    if tried.number > 0 {
        tags.push(("retry.count", tried.number.to_string()));
    }
    if !tried.last && tried.status != 0 {
        tags.push(("canceled", "true".into()));
    }
    // That no more tries are left is found out later.
    let flags = ResponseFlags(context.info.flags.0 & !ResponseFlags::URX.0);
    common(&mut tags, (all, own), context, (tried.status, flags));
    tags
}

/// The tags that config adds: the connection manager's, and the route's.
pub(super) fn custom<'a>(
    tracing: &'a Tracing,
    route: Option<&'a RouteTracing>,
) -> (&'a [CustomTag], &'a [CustomTag]) {
    (&tracing.tags, route.map(|route| &*route.tags).unwrap_or_default())
}

fn common<'a>(
    tags: &mut Tags<'a>,
    (all, own): (&'a [CustomTag], &'a [CustomTag]),
    context: &FormatContext<'_>,
    (status, flags): (u16, ResponseFlags),
) {
    let info = context.info;
    if is_grpc(context) && status != 0 {
        if let Some(status) = told_grpc_status(context.trailers, context.response, status) {
            tags.push(("grpc.status_code", status.to_string()));
            let message = |view: Option<&dyn crate::config::HeaderView>| {
                view?.first(&GRPC_MESSAGE).map(|text| String::from_utf8_lossy(text).into_owned())
            };
            let told = message(context.trailers).or_else(|| message(context.response));
            tags.extend(told.map(|text| ("grpc.message", text)));
            if matches!(status, 2 | 4 | 8 | 12..=15) {
                tags.push(("error", "true".into()));
            }
        }
    }
    tags.push(("component", "proxy".into()));
    if let Some(names) = &info.cluster {
        tags.push(("upstream_cluster", names.name.to_string()));
        tags.push(("upstream_cluster.name", names.stat_name.to_string()));
    }
    tags.push(("http.status_code", status.to_string()));
    tags.push(("response_size", info.bytes_sent.to_string()));
    let flags: Vec<_> = flags.ordered(true).map(|(_, short, _)| *short).collect();
    tags.push(("response_flags", if flags.is_empty() { "-".into() } else { flags.join(",") }));
    for tag in all.iter().chain(own) {
        if let Some(value) = tag.value.of(context) {
            match tags.iter_mut().find(|(name, _)| *name == &*tag.name) {
                Some((_, there)) => *there = value,
                None => tags.push((&tag.name, value)),
            }
        }
    }
    if (status == 0 || status >= 500) && !tags.iter().any(|(name, _)| *name == "error") {
        tags.push(("error", "true".into()));
    }
}

fn is_grpc(context: &FormatContext<'_>) -> bool {
    let kind: HeaderKey = Known::ContentType.into();
    context.request.and_then(|request| request.first(&kind)).is_some_and(is_grpc_type)
}

fn protocol(protocol: Option<Protocol>) -> String {
    protocol.map_or("-", Protocol::name).into()
}
