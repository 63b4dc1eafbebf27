//! Entries of `StreamAccessLogs`.

use std::collections::HashMap;
use std::sync::LazyLock;

use outrigger_control_api::pb::envoy::config::core::v3::RequestMethod;
use outrigger_control_api::pb::envoy::data::accesslog::v3 as pb;
use outrigger_control_api::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use outrigger_control_api::pb::google::protobuf::UInt32Value;

use super::common::Common;
use crate::config::{HeaderKey, HeaderView, Known};
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::Protocol;
use crate::telemetry::told::utf8;

/// Fields of heads that are logged beside those that always are.
#[derive(Debug, Default)]
pub(super) struct Additional {
    pub request: Vec<HeaderKey>,
    pub response: Vec<HeaderKey>,
    pub trailers: Vec<HeaderKey>,
}

pub(super) struct Keys {
    method: HeaderKey,
    scheme: HeaderKey,
    authority: HeaderKey,
    path: HeaderKey,
    user_agent: HeaderKey,
    referer: HeaderKey,
    forwarded_for: HeaderKey,
    pub request_id: HeaderKey,
    original_path: HeaderKey,
}

pub(super) static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    method: Known::Method.into(),
    scheme: Known::Scheme.into(),
    authority: Known::Authority.into(),
    path: Known::Path.into(),
    user_agent: Known::UserAgent.into(),
    referer: HeaderKey::new("referer"),
    forwarded_for: Known::XForwardedFor.into(),
    request_id: Known::XRequestId.into(),
    original_path: Known::XEnvoyOriginalPath.into(),
});

type View<'a> = Option<&'a dyn HeaderView>;

fn first(view: View<'_>, key: &HeaderKey) -> String {
    view.and_then(|view| view.first(key)).map(utf8).unwrap_or_default()
}

/// The fields that `view` has of `keys`; several values are one, with commas.
fn chosen(view: View<'_>, keys: &[HeaderKey]) -> HashMap<String, String> {
    let Some(view) = view else { return HashMap::new() };
    let each = |key: &HeaderKey| {
        let mut joined: Option<Vec<u8>> = None;
        view.values(key, &mut |value| match &mut joined {
            Some(joined) => {
                joined.push(b',');
                joined.extend_from_slice(value);
            }
            None => joined = Some(value.to_vec()),
        });
        Some((key.name().to_owned(), utf8(&joined?)))
    };
    keys.iter().filter_map(each).collect()
}

/// The entry of a request.
pub(super) fn http(
    common: &Common,
    more: &Additional,
    context: &FormatContext<'_>,
) -> pb::HttpAccessLogEntry {
    let info = context.info;
    let (request, response) = (context.request, context.response);
    let size = |view: View<'_>| view.map_or(0, |view| view.byte_size() as u64);
    let method = request.and_then(|view| view.first(&KEYS.method)).unwrap_or_default();
    let method = std::str::from_utf8(method).ok().and_then(RequestMethod::from_str_name);
    let version = match info.protocol {
        None => HttpVersion::ProtocolUnspecified,
        Some(Protocol::Http10) => HttpVersion::Http10,
        Some(Protocol::Http11) => HttpVersion::Http11,
        Some(Protocol::Http2) => HttpVersion::Http2,
    };
    pb::HttpAccessLogEntry {
        common_properties: Some(common.of(context)),
        protocol_version: version.into(),
        request: Some(pb::HttpRequestProperties {
            request_method: method.unwrap_or(RequestMethod::MethodUnspecified).into(),
            scheme: first(request, &KEYS.scheme),
            authority: first(request, &KEYS.authority),
            port: None,
            path: first(request, &KEYS.path),
            user_agent: first(request, &KEYS.user_agent),
            referer: first(request, &KEYS.referer),
            forwarded_for: first(request, &KEYS.forwarded_for),
            request_id: first(request, &KEYS.request_id),
            original_path: first(request, &KEYS.original_path),
            request_headers_bytes: size(request),
            request_body_bytes: info.bytes_received,
            request_headers: chosen(request, &more.request),
            // Of what goes upstream, heads are not counted apart from bodies.
            upstream_header_bytes_sent: 0,
            downstream_header_bytes_received: info.request_headers_bytes,
        }),
        response: Some(pb::HttpResponseProperties {
            response_code: (info.response_code != 0)
                .then(|| UInt32Value { value: info.response_code.into() }),
            response_headers_bytes: size(response),
            response_body_bytes: info.bytes_sent,
            response_headers: chosen(response, &more.response),
            response_trailers: chosen(context.trailers, &more.trailers),
            response_code_details: info.details.to_string(),
            upstream_header_bytes_received: 0,
            downstream_header_bytes_sent: info.response_headers_bytes,
        }),
    }
}

/// The entry of a TCP session.
pub(super) fn tcp(common: &Common, context: &FormatContext<'_>) -> pb::TcpAccessLogEntry {
    pb::TcpAccessLogEntry {
        common_properties: Some(common.of(context)),
        connection_properties: Some(pb::ConnectionProperties {
            received_bytes: context.info.bytes_received,
            sent_bytes: context.info.bytes_sent,
        }),
    }
}
