//! Clusters: `envoy.config.cluster.v3.Cluster` in, a [`Cluster`] out.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::cluster::v3::cluster::PreconnectPolicy;
use outrigger_control_api::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use outrigger_control_api::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateConfig;
use outrigger_control_api::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use outrigger_control_api::pb::envoy::extensions::clusters::original_dst::v3::OriginalDstCluster;
use outrigger_control_api::pb::envoy::extensions::upstreams::http::v3::{
    http_protocol_options::{explicit_http_config::ProtocolConfig, UpstreamProtocolOptions},
    HttpProtocolOptions,
};
use outrigger_control_api::pb::envoy::extensions::upstreams::tcp::v3::TcpProtocolOptions;
use outrigger_control_api::pb::google::protobuf::DoubleValue;
use outrigger_control_api::type_of;

use super::balancing::balancing;
use super::discovery::config_source;
use super::dns::dns;
use super::endpoints::{self, static_hosts};
use super::http_options::{http1_options, http2_options};
use super::runtime::DROP_OVERLOAD_LIMIT;
use super::{
    buffer_limit, cluster_tls, duration_or, extension, generic_secret, health_check, idle, istio, keepalive,
    orca, socket_options, u32_or, upstream_filters, Environment,
};
use crate::config::balancing::Members;
use crate::config::cluster::{
    Breakers, ClusterNames, Discovery, Hosts, Limit, RetryBudget, SocketTuning, UpstreamHttp,
    UpstreamProtocol,
};
use crate::config::discovery::Source;
use crate::config::problems::Problems;
use crate::config::{Cluster, HeaderKey, HostSet};

/// Compiles `cluster`. What Envoy's field rules say of single fields is not checked again here.
/// `None` when a problem was reported.
pub fn compile(
    cluster: &pb::Cluster,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Cluster> {
    let before = problems.count();
    let kind = kind(cluster, problems);
    let balancing = balancing(cluster, kind, environment, problems);
    let name: Arc<str> = cluster.name.as_str().into();
    let stat_name =
        if cluster.alt_stat_name.is_empty() { name.clone() } else { cluster.alt_stat_name.as_str().into() };
    let connect_timeout =
        duration_or(&cluster.connect_timeout, Duration::from_secs(5), "connect_timeout", problems);
    let http = protocol_options(cluster, &stat_name, problems);
    let breakers = breakers(cluster, environment, problems);
    let assignment = cluster.load_assignment.as_ref();
    let overprovisioning = assignment
        .and_then(|assignment| assignment.policy.as_ref())
        .map_or(140, |policy| u32_or(policy.overprovisioning_factor, 140));
    let discovery = discovery(cluster, kind?, environment, problems);
    if cluster.eds_cluster_config.is_some() && kind? != Kind::Eds {
        problems.report_at("eds_cluster_config", "is only for clusters of type EDS");
    }
    let hosts = match kind? {
        Kind::Static => problems.at("load_assignment", |problems| static_hosts(assignment, problems)),
        _ => Vec::new(),
    };
    let socket = SocketTuning {
        keepalive: cluster
            .upstream_connection_options
            .as_ref()
            .and_then(|o| keepalive(o.tcp_keepalive.as_ref())),
        announced: cluster_tls::announced(cluster).map(|version| (version, None)),
        ..bound(cluster.upstream_bind_config.as_ref(), environment, problems)
    };
    let tls = cluster_tls::cluster(cluster, &stat_name, http.protocol, environment, problems);
    let dropped = assignment.and_then(|assignment| {
        let limit = environment.compiler.runtime.load().number(DROP_OVERLOAD_LIMIT);
        problems.at("load_assignment", |problems| endpoints::drop_overload(assignment, limit, problems))
    });
    let health = health_check::health(cluster, kind?, &http, hosts.len(), environment, problems);
    istio::cluster_filters(&cluster.filters, problems);
    generic_secret::meet_wants(environment, problems);
    let orca = orca::wanted(cluster, balancing.as_ref().map(|(balancing, _)| balancing), problems);
    if problems.count() > before {
        return None;
    }
    let (balancing, panic_threshold) = balancing?;
    let policy = assignment.and_then(|assignment| assignment.policy.as_ref());
    let names = ClusterNames {
        name: name.clone(),
        stat_name: stat_name.clone(),
        metadata: super::metadata::noted(cluster.metadata.as_ref()),
    };
    let mut compiled = Cluster {
        name,
        stat_name,
        names: names.into(),
        discovery: discovery?,
        balancing: Arc::new(balancing),
        connect_timeout,
        per_connection_buffer_limit: buffer_limit(cluster.per_connection_buffer_limit_bytes),
        breakers,
        panic_threshold,
        overprovisioning,
        weighted_priority_health: policy.is_some_and(|policy| policy.weighted_priority_health),
        cleanup_interval: duration_or(
            &cluster.cleanup_interval,
            Duration::from_secs(5),
            "cleanup_interval",
            problems,
        ),
        http,
        socket,
        tls,
        passing: cluster_tls::passing(cluster),
        istio: istio::of_cluster(&cluster.name, cluster.metadata.as_ref()),
        added_via_api: environment.dynamic,
        preconnect_ratio: ratio(cluster, |policy| policy.per_upstream_preconnect_ratio),
        predictive_ratio: ratio(cluster, |policy| policy.predictive_preconnect_ratio),
        close_on_failure: cluster.close_connections_on_host_health_failure,
        drops: Arc::default(),
        health: health.map(Box::new),
        orca,
        hosts: Hosts::default(),
        stats: OnceLock::new(),
    };
    compiled.drops.set(dropped);
    compiled.drops.maintain(environment.compiler.runtime.load().maintenance(&cluster.name));
    compiled.hosts = Hosts::new(HostSet::new(hosts, compiled.split_options()));
    if let Some(policy) = health_check::policy(cluster, kind?) {
        compiled.hosts.check(policy);
    }
    Some(compiled)
}

/// One of `preconnect_policy`; its range is a field rule.
fn ratio(cluster: &pb::Cluster, of: fn(&PreconnectPolicy) -> Option<DoubleValue>) -> Option<f64> {
    cluster.preconnect_policy.as_ref().and_then(of).map(|ratio| ratio.value).filter(|ratio| *ratio > 1.0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Static,
    StrictDns,
    LogicalDns,
    OriginalDst,
    Eds,
    Aggregate,
}

/// How the cluster finds its hosts; `None` when that is refused, by the support table or here.
pub(super) fn kind(cluster: &pb::Cluster, problems: &mut Problems) -> Option<Kind> {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    match &cluster.cluster_discovery_type {
        None => Some(Kind::Static),
        Some(ClusterDiscoveryType::Type(number)) => match DiscoveryType::try_from(*number).ok()? {
            DiscoveryType::Static => Some(Kind::Static),
            DiscoveryType::StrictDns => Some(Kind::StrictDns),
            DiscoveryType::LogicalDns => Some(Kind::LogicalDns),
            DiscoveryType::OriginalDst => Some(Kind::OriginalDst),
            DiscoveryType::Eds => Some(Kind::Eds),
        },
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let found = custom.typed_config.as_ref().map(type_of).unwrap_or_default();
            match (custom.name.as_str(), found) {
                (_, "envoy.extensions.clusters.dns.v3.DnsCluster") => {
                    problems.at("cluster_type", |problems| {
                        let dns: DnsCluster =
                            extension(custom.typed_config.as_ref()?, "typed_config", problems)?;
                        Some(if dns.all_addresses_in_single_endpoint {
                            Kind::LogicalDns
                        } else {
                            Kind::StrictDns
                        })
                    })
                }
                (_, "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster") => {
                    Some(Kind::OriginalDst)
                }
                (_, "envoy.extensions.clusters.aggregate.v3.ClusterConfig") => Some(Kind::Aggregate),
                ("envoy.cluster.eds", "") => Some(Kind::Eds),
                ("envoy.cluster.static", "") => Some(Kind::Static),
                ("envoy.cluster.strict_dns", "") => Some(Kind::StrictDns),
                ("envoy.cluster.logical_dns", "") => Some(Kind::LogicalDns),
                ("envoy.cluster.original_dst", "") => Some(Kind::OriginalDst),
                (name, "") => {
                    problems.report_at("cluster_type", format!("there is no cluster type {name:?}"));
                    None
                }
                // A type without an entry in the support table is refused there.
                _ => None,
            }
        }
    }
}

fn discovery(
    cluster: &pb::Cluster,
    kind: Kind,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Discovery> {
    match kind {
        Kind::Static => Some(Discovery::Static),
        Kind::OriginalDst => original_dst(cluster, problems),
        Kind::Eds => eds(cluster, environment, problems),
        Kind::Aggregate => aggregate(cluster, environment, problems),
        Kind::StrictDns | Kind::LogicalDns => {
            let dns = dns(cluster, environment, problems)?;
            if kind == Kind::StrictDns {
                return Some(Discovery::StrictDns(dns));
            }
            if dns.names.len() != 1 {
                let message =
                    format!("a LOGICAL_DNS cluster needs exactly one endpoint, this has {}", dns.names.len());
                problems.report_at("load_assignment.endpoints", message);
                return None;
            }
            Some(Discovery::LogicalDns(dns))
        }
    }
}

fn eds(cluster: &pb::Cluster, environment: &Environment<'_>, problems: &mut Problems) -> Option<Discovery> {
    if cluster.load_assignment.is_some() {
        problems.note("load_assignment", "the endpoints of an EDS cluster come from a control plane");
    }
    let compiler = environment.compiler;
    problems.at("eds_cluster_config", |problems| {
        let config = cluster.eds_cluster_config.as_ref();
        let Some(source) = config.and_then(|config| config.eds_config.as_ref()) else {
            problems.report_at("eds_config", "is required for an EDS cluster");
            return None;
        };
        let parent = environment.dynamic.then(|| compiler.cds.clone().unwrap_or(Source::SameAsParent));
        let source = problems
            .at("eds_config", |problems| config_source(source, parent.as_ref(), compiler, problems))?;
        let service_name = match config.map(|config| config.service_name.as_str()) {
            None | Some("") => cluster.name.as_str(),
            Some(name) => name,
        };
        if service_name.starts_with("xdstp:") {
            problems.report_at("service_name", "xdstp names are not supported");
        }
        Some(Discovery::Eds {
            service_name: service_name.into(),
            named: config.is_some_and(|config| !config.service_name.is_empty()),
            source: source.source,
            initial_fetch_timeout: source.initial_fetch_timeout,
        })
    })
}

fn original_dst(cluster: &pb::Cluster, problems: &mut Problems) -> Option<Discovery> {
    use pb::cluster::{ClusterDiscoveryType, LbConfig};
    if cluster.load_assignment.is_some() {
        problems.report_at("load_assignment", "an ORIGINAL_DST cluster takes no endpoints");
        return None;
    }
    let mut options = match &cluster.lb_config {
        Some(LbConfig::OriginalDstLbConfig(config)) => OriginalDstCluster {
            use_http_header: config.use_http_header,
            http_header_name: config.http_header_name.clone(),
            upstream_port_override: config.upstream_port_override,
            metadata_key: None,
        },
        _ => OriginalDstCluster::default(),
    };
    if let Some(ClusterDiscoveryType::ClusterType(custom)) = &cluster.cluster_discovery_type {
        if let Some(any) = &custom.typed_config {
            options = problems.at("cluster_type", |problems| extension(any, "typed_config", problems))?;
        }
    }
    let header = match options.http_header_name.as_str() {
        "" => "x-envoy-original-dst-host",
        name => name,
    };
    let port_override =
        options.upstream_port_override.map(|port| u16::try_from(port.value).unwrap_or_default());
    if options.upstream_port_override.is_some_and(|port| port.value > 65535) {
        problems.report_at("original_dst_lb_config.upstream_port_override", "must be at most 65535");
    }
    Some(Discovery::OriginalDst {
        header: options.use_http_header.then(|| HeaderKey::new(header)),
        port_override,
    })
}

/// The members of an aggregate cluster.
fn aggregate(
    cluster: &pb::Cluster,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Discovery> {
    use pb::cluster::ClusterDiscoveryType;
    if cluster.load_assignment.is_some() {
        problems.report_at("load_assignment", "an aggregate cluster has the endpoints of its members");
        return None;
    }
    let Some(ClusterDiscoveryType::ClusterType(custom)) = &cluster.cluster_discovery_type else {
        return None;
    };
    problems.at("cluster_type", |problems| {
        let config: AggregateConfig = extension(custom.typed_config.as_ref()?, "typed_config", problems)?;
        for name in &config.clusters {
            environment.check_reserved(name, "typed_config.clusters", problems);
        }
        let slots = config.clusters.iter().map(|name| environment.compiler.clusters.slot(name));
        Some(Discovery::Aggregate(Members(slots.collect())))
    })
}

fn breakers(cluster: &pb::Cluster, environment: &Environment<'_>, problems: &mut Problems) -> [Breakers; 2] {
    use core::RoutingPriority;
    use pb::circuit_breakers::Thresholds;
    let config = cluster.circuit_breakers.as_ref();
    let per_host = |priority: RoutingPriority| {
        let list = config.map(|config| config.per_host_thresholds.as_slice()).unwrap_or_default();
        list.iter().find(|entry| entry.priority() == priority).and_then(|entry| entry.max_connections)
    };
    for (index, entry) in config.iter().flat_map(|config| &config.per_host_thresholds).enumerate() {
        let only_connections = Thresholds {
            priority: entry.priority,
            max_connections: entry.max_connections,
            ..Default::default()
        };
        if *entry != only_connections {
            problems.at("circuit_breakers", |problems| {
                problems.at_index("per_host_thresholds", index, |problems| {
                    problems.report("only max_connections can be limited per host");
                });
            });
        }
    }
    [(RoutingPriority::Default, "default"), (RoutingPriority::High, "high")].map(|(priority, name)| {
        let list = config.map(|config| config.thresholds.as_slice()).unwrap_or_default();
        let entry = list.iter().find(|entry| entry.priority() == priority).copied().unwrap_or_default();
        let limit = |field: &str, value, default| {
            let key = format!("circuit_breakers.{}.{name}.{field}", cluster.name);
            let runtime = environment.compiler.runtime.load().number(&key).map(|value| value as u32);
            Limit::new(runtime.unwrap_or_else(|| u32_or(value, default)))
        };
        Breakers {
            connections: limit("max_connections", entry.max_connections, 1024),
            pending: limit("max_pending_requests", entry.max_pending_requests, 1024),
            requests: limit("max_requests", entry.max_requests, 1024),
            retries: limit("max_retries", entry.max_retries, 3),
            pools: limit("max_connection_pools", entry.max_connection_pools, u32::MAX),
            // The message without either field leaves `max_retries` in force, as in Envoy.
            retry_budget: entry
                .retry_budget
                .filter(|budget| budget.budget_percent.is_some() || budget.min_retry_concurrency.is_some())
                .map(|budget| RetryBudget {
                    percent: budget.budget_percent.map_or(20.0, |percent| percent.value),
                    min_concurrency: u32_or(budget.min_retry_concurrency, 3),
                }),
            track_remaining: entry.track_remaining,
            per_host_connections: per_host(priority).map(|limit| limit.value),
        }
    })
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP_OPTIONS: &str = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions";

fn protocol_options(cluster: &pb::Cluster, stat_name: &str, problems: &mut Problems) -> UpstreamHttp {
    // The extension replaces the deprecated fields, as in Envoy.
    let mut common = cluster.common_http_protocol_options;
    let mut http1 = cluster.http_protocol_options.clone();
    let mut protocol = match (cluster.protocol_selection(), &cluster.http2_protocol_options) {
        (pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol, _) => UpstreamProtocol::Downstream,
        (_, Some(_)) => UpstreamProtocol::Http2,
        (_, None) => UpstreamProtocol::Http1,
    };
    let mut http2 = problems.at("http2_protocol_options", |problems| {
        http2_options(cluster.http2_protocol_options.as_ref(), problems)
    });
    let mut hash_policies = None;
    let mut filters = Arc::default();
    for (key, any) in &cluster.typed_extension_protocol_options {
        problems.at(format!("typed_extension_protocol_options[{key:?}]"), |problems| match key.as_str() {
            HTTP_OPTIONS => {
                let Some(options) = extension::<HttpProtocolOptions>(any, "", problems) else { return };
                common = options.common_http_protocol_options;
                let policies = crate::config::route::hash_policies(&options.hash_policy, problems);
                hash_policies = (!policies.is_empty()).then(|| policies.into());
                filters = upstream_filters::compile(&options.http_filters, stat_name, problems);
                let (kind, one, two, field) = upstream_protocol(options.upstream_protocol_options);
                (protocol, http1) = (kind, one);
                http2 = problems.at(field, |problems| http2_options(two.as_ref(), problems));
            }
            TCP_OPTIONS => {
                // Nothing in it has an effect.
                let _ = extension::<TcpProtocolOptions>(any, "", problems);
            }
            _ => problems.report(format!("there are no protocol options with the name {key:?}")),
        });
    }
    let common = common.unwrap_or_default();
    problems.at("common_http_protocol_options", |problems| UpstreamHttp {
        protocol,
        idle_timeout: idle(&common.idle_timeout, Some(Duration::from_secs(3600)), "idle_timeout", problems),
        max_connection_duration: idle(
            &common.max_connection_duration,
            None,
            "max_connection_duration",
            problems,
        ),
        max_stream_duration: idle(&common.max_stream_duration, None, "max_stream_duration", problems),
        max_requests_per_connection: common
            .max_requests_per_connection
            .or(cluster.max_requests_per_connection)
            .map_or(0, |max| max.value),
        max_headers_count: u32_or(common.max_headers_count, 100),
        max_response_headers: 80 * 1024,
        http1: http1_options(http1.as_ref()),
        http2,
        hash_policies,
        filters,
    })
}

type Chosen =
    (UpstreamProtocol, Option<core::Http1ProtocolOptions>, Option<core::Http2ProtocolOptions>, &'static str);

/// The protocol that the extension chooses, with its options and the field that the second have.
fn upstream_protocol(chosen: Option<UpstreamProtocolOptions>) -> Chosen {
    const EXPLICIT: &str = "explicit_http_config.http2_protocol_options";
    match chosen {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                (UpstreamProtocol::Http1, Some(http1), None, EXPLICIT)
            }
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                (UpstreamProtocol::Http2, None, Some(http2), EXPLICIT)
            }
            // HTTP/3 is refused by the support table.
            _ => (UpstreamProtocol::Http1, None, None, EXPLICIT),
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => (
            UpstreamProtocol::Downstream,
            config.http_protocol_options,
            config.http2_protocol_options,
            "use_downstream_protocol_config.http2_protocol_options",
        ),
        Some(UpstreamProtocolOptions::AutoConfig(config)) => (
            UpstreamProtocol::Auto,
            config.http_protocol_options,
            config.http2_protocol_options,
            "auto_config.http2_protocol_options",
        ),
        _ => (UpstreamProtocol::Http1, None, None, EXPLICIT),
    }
}

/// How sockets are bound, as the cluster says, or else the bootstrap.
pub(super) fn bound(
    bind: Option<&core::BindConfig>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> SocketTuning {
    match bind {
        Some(bind) => problems.at("upstream_bind_config", |problems| bind_config(bind, problems)),
        None => environment.compiler.bind.clone(),
    }
}

/// `source_address` with port 0 leaves the choice to the kernel.
pub(super) fn bind_config(bind: &core::BindConfig, problems: &mut Problems) -> SocketTuning {
    let source_address = bind.source_address.as_ref().and_then(|source| {
        problems.at("source_address", |problems| {
            let Ok(ip) = source.address.parse::<IpAddr>() else {
                problems.report_at("address", format!("{:?} is not an IP address", source.address));
                return None;
            };
            Some(SocketAddr::new(ip, super::port(source, problems)?))
        })
    });
    let ipv4 = source_address.map(|source| source.is_ipv4());
    SocketTuning {
        source_address,
        freebind: bind.freebind.is_some_and(|wanted| wanted.value),
        options: socket_options::compile(&bind.socket_options, "socket_options", ipv4, problems),
        ..SocketTuning::default()
    }
}
