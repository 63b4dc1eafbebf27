//! TLS of clusters: the contexts of their hosts, and which host has which.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::{cluster::v3 as cluster_pb, core::v3 as core};
use outrigger_control_api::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use outrigger_control_api::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use outrigger_control_api::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use outrigger_control_api::pb::envoy::r#type::metadata::v3::metadata_kind::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value as ProtoValue};
use outrigger_control_api::{type_of, unpack};

use super::tls::upstream;
use super::Environment;
use crate::config::cluster::UpstreamProtocol;
use crate::config::headers::HeaderKey;
use crate::config::passing::Passing;
use crate::config::problems::Problems;
use crate::config::tls::{AutoNames, ClusterTls, SocketMatch};
use crate::runtime::proxy_protocol::Version;

/// TLS towards the hosts of a cluster; `None` for plain text, and when a problem was reported.
pub(super) fn cluster(
    cluster: &cluster_pb::Cluster,
    stat_name: &Arc<str>,
    protocol: UpstreamProtocol,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<ClusterTls>> {
    let before = problems.count();
    let socket = |socket: &core::TransportSocket, problems: &mut Problems| {
        problems.at("transport_socket", |problems| upstream(socket, stat_name, environment, problems))
    };
    // What comes before it, and what it is.
    let parts = |config: &core::TransportSocket, problems: &mut Problems| {
        if let Some(around) = internal(config) {
            check_passing(&around, problems);
            (around.transport_socket.and_then(|inner| socket(&inner, problems)), None)
        } else if let Some(around) = wrapped(config) {
            let inner = around.transport_socket.as_ref();
            (inner.and_then(|config| socket(config, problems)), Some(version(&around)))
        } else {
            (socket(config, problems), None)
        }
    };
    let default = cluster.transport_socket.as_ref().map(|config| parts(config, problems));
    let (default, announced) = default.unwrap_or_default();
    let mut matches = Vec::new();
    for (index, entry) in cluster.transport_socket_matches.iter().enumerate() {
        problems.at_index("transport_socket_matches", index, |problems| {
            let criteria = entry.r#match.as_ref().map(criteria).unwrap_or_default();
            let (tls, announced) =
                entry.transport_socket.as_ref().map(|config| parts(config, problems)).unwrap_or_default();
            let passing = entry.transport_socket.as_ref().and_then(|config| passing_by(config, cluster));
            matches.push(SocketMatch { criteria, tls, announced, passing });
        });
    }
    if protocol == UpstreamProtocol::Auto && default.is_none() && problems.count() == before {
        problems.report_at("transport_socket", "auto_config needs TLS, by which the protocol is agreed on");
    }
    let options = cluster
        .typed_extension_protocol_options
        .get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
        .and_then(|any| unpack::<HttpProtocolOptions>(any).ok());
    let options = match options {
        Some(options) => options.upstream_http_protocol_options,
        None => cluster.upstream_http_protocol_options.clone(),
    };
    let auto =
        options.filter(|options| options.auto_sni || options.auto_san_validation).map(|options| AutoNames {
            sni: options.auto_sni,
            san: options.auto_san_validation,
            header: (!options.override_auto_sni_header.is_empty())
                .then(|| HeaderKey::new(&options.override_auto_sni_header)),
        });
    if default.is_none() && matches.is_empty() {
        return None;
    }
    Some(Arc::new(ClusterTls { default, matches, announced, auto }))
}

/// The PROXY protocol around the cluster's transport socket.
fn wrapped(socket: &core::TransportSocket) -> Option<ProxyProtocolUpstreamTransport> {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else { return None };
    let name = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    (type_of(any) == name).then(|| unpack(any).ok()).flatten()
}

/// What is passed on to internal listeners, with the cluster's transport socket around it.
fn internal(socket: &core::TransportSocket) -> Option<InternalUpstreamTransport> {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else { return None };
    let name = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    (type_of(any) == name).then(|| unpack(any).ok()).flatten()
}

fn check_passing(config: &InternalUpstreamTransport, problems: &mut Problems) {
    for (index, source) in config.passthrough_metadata.iter().enumerate() {
        let kind = source.kind.as_ref().and_then(|kind| kind.kind.as_ref());
        if !matches!(kind, Some(Kind::Host(_) | Kind::Cluster(_))) {
            problems.at("typed_config", |problems| {
                problems.at_index("passthrough_metadata", index, |problems| {
                    problems
                        .report_at("kind", "must be host or cluster: there are no others when connecting");
                });
            });
        }
    }
}

/// What `socket` passes on of its hosts and of `cluster`.
fn passing_by(socket: &core::TransportSocket, cluster: &cluster_pb::Cluster) -> Option<Arc<Passing>> {
    let mut passing = Passing::default();
    for source in internal(socket)?.passthrough_metadata {
        match source.kind.and_then(|kind| kind.kind) {
            Some(Kind::Host(_)) => passing.of_host.push(source.name.into()),
            Some(Kind::Cluster(_)) => {
                let of_cluster =
                    cluster.metadata.as_ref().and_then(|all| all.filter_metadata.get(&source.name));
                passing.of_cluster.extend(of_cluster.map(|fields| (source.name, fields.clone())));
            }
            _ => {}
        }
    }
    Some(Arc::new(passing))
}

/// What the cluster's own transport socket passes on.
pub(super) fn passing(cluster: &cluster_pb::Cluster) -> Option<Arc<Passing>> {
    passing_by(cluster.transport_socket.as_ref()?, cluster)
}

/// The version of the PROXY protocol in which the cluster's hosts are told of clients, or the first of those that some
/// of them are.
pub(super) fn announced(cluster: &cluster_pb::Cluster) -> Option<Version> {
    let matched = cluster.transport_socket_matches.iter().filter_map(|entry| entry.transport_socket.as_ref());
    cluster.transport_socket.iter().chain(matched).find_map(wrapped).map(|around| version(&around))
}

fn version(around: &ProxyProtocolUpstreamTransport) -> Version {
    match around.config.as_ref().map(core::ProxyProtocolConfig::version) {
        None | Some(core::proxy_protocol_config::Version::V1) => Version::V1,
        Some(core::proxy_protocol_config::Version::V2) => Version::V2,
    }
}

/// The fields of a `Struct`, to be compared one by one.
fn criteria(fields: &Struct) -> Vec<(Box<str>, serde_json::Value)> {
    let mut all: Vec<_> =
        fields.fields.iter().map(|(key, value)| (key.as_str().into(), message_value(value))).collect();
    all.sort_by(|(one, _): &(Box<str>, _), (two, _)| one.cmp(two));
    all
}

/// What endpoints are chosen sockets by: their metadata `envoy.transport_socket_match`.
pub(super) fn socket_match(
    metadata: Option<&core::Metadata>,
) -> Option<Arc<serde_json::Map<String, serde_json::Value>>> {
    Some(socket_criteria(metadata?.filter_metadata.get("envoy.transport_socket_match")?))
}

/// The same of these fields.
pub(super) fn socket_criteria(fields: &Struct) -> Arc<serde_json::Map<String, serde_json::Value>> {
    let all = criteria(fields).into_iter().map(|(key, value)| (key.into_string(), value));
    Arc::new(all.collect())
}

fn message_value(value: &ProtoValue) -> serde_json::Value {
    use outrigger_control_api::pb::google::protobuf::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(message_value).collect(),
        Some(Kind::StructValue(fields)) => {
            let fields = criteria(fields).into_iter().map(|(key, value)| (key.into_string(), value));
            serde_json::Value::Object(fields.collect())
        }
    }
}
