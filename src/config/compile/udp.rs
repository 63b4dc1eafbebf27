//! UDP listeners: `envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig` in, a [`UdpProxy`] out, or a DNS filter.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::{core::v3 as core, listener::v3 as pb};
use outrigger_control_api::pb::envoy::extensions::filters::udp::dns_filter::v3::DnsFilterConfig;
use outrigger_control_api::pb::envoy::extensions::filters::udp::udp_proxy::v3 as udp;
use outrigger_control_api::type_of;
use xxhash_rust::xxh64::xxh64;

use super::{dns_filter, duration, duration_or, extension, rbac_tree, rooms, Environment};
use crate::config::problems::Problems;
use crate::config::tcp::check_interval;
use crate::config::udp::{UdpFilter, UdpProxy, UdpService};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::{UdpListenerStats, UdpProxyStats};

const UDP_PROXY: &str = "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig";
const DNS_FILTER: &str = "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig";
/// Envoy's default of the longest datagram.
const MAX_DATAGRAM: u64 = 1500;

/// Compiles the one filter that a UDP listener has.
pub(super) fn compile(
    listener: &pb::Listener,
    stat_prefix: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<UdpService> {
    use pb::listener_filter::ConfigType;
    if !listener.filter_chains.is_empty() || listener.default_filter_chain.is_some() {
        problems.report_at("filter_chains", "a UDP listener has none");
    }
    let [filter] = listener.listener_filters.as_slice() else {
        problems
            .report_at("listener_filters", "a UDP listener has one filter: the UDP proxy, or the DNS filter");
        return None;
    };
    let socket =
        listener.udp_listener_config.as_ref().and_then(|config| config.downstream_socket_config.as_ref());
    let filter = problems.at_index("listener_filters", 0, |problems| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if type_of(any) == UDP_PROXY => {
            let config: udp::UdpProxyConfig = extension(any, "typed_config", problems)?;
            let proxy = problems.at("typed_config", |problems| proxy(&config, environment, problems));
            Some(UdpFilter::Proxy(Arc::new(proxy?)))
        }
        Some(ConfigType::TypedConfig(any)) if type_of(any) == DNS_FILTER => {
            let config: DnsFilterConfig = extension(any, "typed_config", problems)?;
            let filter =
                problems.at("typed_config", |problems| dns_filter::compile(&config, environment, problems));
            Some(UdpFilter::Dns(Arc::new(filter?)))
        }
        // Refused by the support table.
        Some(ConfigType::ConfigDiscovery(_)) => None,
        _ => {
            let message = format!("the UDP listener filter {} is not supported", filter.name);
            problems.report_at("typed_config", message);
            None
        }
    });
    Some(UdpService {
        filter: filter?,
        max_datagram: datagram(socket),
        stats: UdpListenerStats::new(&Scope::listener(stat_prefix).sub("udp")),
    })
}

fn datagram(config: Option<&core::UdpSocketConfig>) -> usize {
    let most = config.and_then(|config| config.max_rx_datagram_size).map_or(MAX_DATAGRAM, |most| most.value);
    usize::try_from(most).unwrap_or(usize::MAX)
}

fn proxy(
    config: &udp::UdpProxyConfig,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<UdpProxy> {
    use udp::udp_proxy_config::{hash_policy::PolicySpecifier, RouteSpecifier};
    let before = problems.count();
    let (matcher, names) = match config.route_specifier.as_ref() {
        Some(RouteSpecifier::Cluster(name)) => (None, vec![name.as_str().into()]),
        Some(RouteSpecifier::Matcher(matcher)) => {
            let (tree, names) = problems.at("matcher", |problems| rbac_tree::routing(matcher, problems))?;
            (Some(tree), names)
        }
        // Breaks a field rule.
        None => return None,
    };
    for name in &names {
        environment.check_reserved(name, if matcher.is_some() { "matcher" } else { "cluster" }, problems);
    }
    let options = config.access_log_options.as_ref();
    let log_interval = problems.at("access_log_options", |problems| {
        let interval = duration(
            &options.and_then(|options| options.access_log_flush_interval),
            "access_log_flush_interval",
            problems,
        );
        check_interval(interval, "access_log_flush_interval", problems);
        interval
    });
    let scope = Scope::udp(&config.stat_prefix);
    let idle_timeout = duration_or(&config.idle_timeout, Duration::from_secs(60), "idle_timeout", problems);
    let policy = config.hash_policies.first().and_then(|policy| policy.policy_specifier.as_ref());
    let compiled = UdpProxy {
        clusters: names.iter().map(|name| environment.compiler.clusters.slot(name)).collect(),
        matcher,
        per_packet: config.use_per_packet_load_balancing,
        idle_timeout,
        use_original_src_ip: config.use_original_src_ip,
        hash_source_ip: matches!(policy, Some(PolicySpecifier::SourceIp(true))),
        hash_key: match policy {
            Some(PolicySpecifier::Key(key)) => Some(xxh64(key.as_bytes(), 0)),
            _ => None,
        },
        max_upstream_datagram: datagram(config.upstream_socket_config.as_ref()),
        access_logs: rooms::access_logs(&config.access_log, "access_log", environment, problems),
        log_interval,
        proxy_logs: rooms::access_logs(&config.proxy_access_log, "proxy_access_log", environment, problems),
        stats: UdpProxyStats::new(&scope),
        scope,
    };
    (problems.count() == before).then_some(compiled)
}
