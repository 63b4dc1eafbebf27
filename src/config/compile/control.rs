//! Clusters of control planes: what a `GrpcService` of the bootstrap needs of the static cluster that
//! it names. In: the cluster. Out: the way to the control plane.

use std::collections::BTreeSet;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use outrigger_control_api::pb::envoy::extensions::upstreams::http::v3::{
    http_protocol_options::{explicit_http_config::ProtocolConfig, UpstreamProtocolOptions},
    HttpProtocolOptions,
};
use outrigger_control_api::reflect::{DynamicMessage, Value};
use outrigger_control_api::{expand_any, unpack, Expanded};

use super::cluster::{bound, kind, Kind};
use super::control_tls::transport_socket;
use super::dns::dns;
use super::endpoints::static_hosts;
use super::{duration, duration_or, keepalive, Environment};
use crate::config::discovery::{GrpcTarget, TargetAddress};
use crate::config::problems::Problems;

/// Deepest nesting of messages that is searched for names of control planes.
const MAX_DEPTH: usize = 64;

/// The clusters that gRPC services and REST sources in `message` name.
pub(super) fn named_in(message: &DynamicMessage) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    search(message, 0, &mut names);
    names
}

fn search(message: &DynamicMessage, depth: usize, names: &mut BTreeSet<String>) {
    if depth > MAX_DEPTH {
        return;
    }
    match message.descriptor().full_name() {
        "envoy.config.core.v3.GrpcService.EnvoyGrpc" => {
            let name = message.get_field_by_name("cluster_name");
            names.extend(name.as_deref().and_then(Value::as_str).map(str::to_owned));
            return;
        }
        "envoy.config.core.v3.ApiConfigSource" => {
            let list = message.get_field_by_name("cluster_names");
            let list = list.as_deref().and_then(Value::as_list).unwrap_or_default();
            names.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        "google.protobuf.Any" => {
            if let Expanded::Message(inner) = expand_any(message, "") {
                search(&inner, depth + 1, names);
            }
            return;
        }
        // Whole messages of configuration that name no control plane.
        "envoy.config.route.v3.RouteConfiguration" | "envoy.config.endpoint.v3.ClusterLoadAssignment" => {
            return
        }
        _ => {}
    }
    for (_, value) in message.fields() {
        match value {
            Value::Message(inner) => search(inner, depth + 1, names),
            Value::List(list) => {
                list.iter().filter_map(Value::as_message).for_each(|m| search(m, depth + 1, names));
            }
            Value::Map(map) => {
                map.values().filter_map(Value::as_message).for_each(|m| search(m, depth + 1, names));
            }
            _ => {}
        }
    }
}

/// The way to the control plane that is the static cluster `cluster`. `None` when a problem was reported.
pub(super) fn target(
    cluster: &pb::Cluster,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<GrpcTarget> {
    let before = problems.count();
    let assignment = cluster.load_assignment.as_ref();
    let addresses = match kind(cluster, problems)? {
        Kind::Aggregate => {
            problems.report_at("cluster_type", "an aggregate cluster cannot serve discovery");
            return None;
        }
        Kind::Static => {
            let hosts = problems.at("load_assignment", |problems| static_hosts(assignment, problems));
            if hosts.iter().any(|host| matches!(host.address, crate::config::cluster::Address::Internal(_))) {
                problems.report_at(
                    "load_assignment",
                    "a control plane cannot be reached by an internal listener",
                );
            }
            hosts.iter().map(|host| TargetAddress::Fixed(host.address.clone())).collect()
        }
        Kind::StrictDns | Kind::LogicalDns => {
            let dns = dns(cluster, environment, problems)?;
            let name = |name: crate::config::cluster::DnsName| TargetAddress::Name {
                host: name.host,
                port: name.port,
                family: dns.family,
                resolvers: dns.resolvers.clone(),
            };
            dns.names.into_iter().map(name).collect::<Vec<_>>()
        }
        Kind::OriginalDst | Kind::Eds => {
            let message = "serves discovery, which needs a cluster of type STATIC, STRICT_DNS or LOGICAL_DNS";
            problems.report_at("type", message);
            return None;
        }
    };
    if addresses.is_empty() && problems.count() == before {
        problems.report_at("load_assignment", "has no endpoint, but serves discovery");
    }
    let tls = cluster.transport_socket.as_ref().and_then(|socket| {
        problems.at("transport_socket", |problems| transport_socket(socket, environment, problems))
    });
    let connect_timeout =
        duration_or(&cluster.connect_timeout, Duration::from_secs(5), "connect_timeout", problems);
    let http2 = http2_options(cluster);
    let http2_keepalive = http2.and_then(|http2| http2.connection_keepalive).and_then(|keepalive| {
        let interval =
            duration(&keepalive.interval, "http2_protocol_options.connection_keepalive", problems)?;
        let timeout = duration(&keepalive.timeout, "http2_protocol_options.connection_keepalive", problems)?;
        Some((interval, timeout))
    });
    let tcp_keepalive = cluster
        .upstream_connection_options
        .as_ref()
        .and_then(|options| keepalive(options.tcp_keepalive.as_ref()));
    let bind = bound(cluster.upstream_bind_config.as_ref(), environment, problems);
    if bind.freebind || !bind.options.is_empty() {
        let message = "only source_address is supported for connections to a control plane";
        problems.report_at("upstream_bind_config", message);
    }
    (problems.count() == before).then(|| GrpcTarget {
        name: cluster.name.as_str().into(),
        addresses,
        authority: cluster.name.as_str().into(),
        tls,
        connect_timeout,
        timeout: None,
        initial_metadata: Vec::new(),
        back_off: None,
        max_receive_message_length: None,
        http2_keepalive,
        tcp_keepalive,
        source_address: bind.source_address,
    })
}

/// The HTTP/2 options of a cluster, from whichever place sets them.
fn http2_options(cluster: &pb::Cluster) -> Option<core::Http2ProtocolOptions> {
    // What does not unpack was reported when the support table was consulted.
    let typed = cluster
        .typed_extension_protocol_options
        .values()
        .find_map(|any| unpack::<HttpProtocolOptions>(any).ok());
    match typed.and_then(|options| options.upstream_protocol_options) {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => Some(http2),
            _ => None,
        },
        Some(_) => None,
        None => cluster.http2_protocol_options.clone(),
    }
}
