//! UDP listeners: `envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig` in, a [`UdpProxy`] out.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::{core::v3 as core, listener::v3 as pb};
use outrigger_control_api::pb::envoy::extensions::filters::udp::udp_proxy::v3 as udp;
use outrigger_control_api::pb::xds::r#type::matcher::v3 as matcher;
use outrigger_control_api::type_of;
use xxhash_rust::xxh64::xxh64;

use super::{duration_or, extension, Environment};
use crate::config::problems::Problems;
use crate::config::udp::UdpProxy;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::{UdpListenerStats, UdpProxyStats};

const UDP_PROXY: &str = "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig";
/// Envoy's default of the longest datagram.
const MAX_DATAGRAM: u64 = 1500;

/// Compiles the one filter that a UDP listener has.
pub(super) fn compile(
    listener: &pb::Listener,
    stat_prefix: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<UdpProxy>> {
    use pb::listener_filter::ConfigType;
    if !listener.filter_chains.is_empty() || listener.default_filter_chain.is_some() {
        problems.report_at("filter_chains", "a UDP listener has none");
    }
    let [filter] = listener.listener_filters.as_slice() else {
        problems.report_at("listener_filters", "a UDP listener has one filter, the UDP proxy");
        return None;
    };
    let socket =
        listener.udp_listener_config.as_ref().and_then(|config| config.downstream_socket_config.as_ref());
    problems.at_index("listener_filters", 0, |problems| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if type_of(any) == UDP_PROXY => {
            let config: udp::UdpProxyConfig = extension(any, "typed_config", problems)?;
            let proxy = problems.at("typed_config", |problems| {
                proxy(&config, (stat_prefix, datagram(socket)), environment, problems)
            });
            proxy.map(Arc::new)
        }
        // Refused by the support table.
        Some(ConfigType::ConfigDiscovery(_)) => None,
        _ => {
            let message = format!("the UDP listener filter {} is not supported", filter.name);
            problems.report_at("typed_config", message);
            None
        }
    })
}

fn datagram(config: Option<&core::UdpSocketConfig>) -> usize {
    let most = config.and_then(|config| config.max_rx_datagram_size).map_or(MAX_DATAGRAM, |most| most.value);
    usize::try_from(most).unwrap_or(usize::MAX)
}

fn proxy(
    config: &udp::UdpProxyConfig,
    (stat_prefix, max_datagram): (&str, usize),
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<UdpProxy> {
    use udp::udp_proxy_config::{hash_policy::PolicySpecifier, RouteSpecifier};
    let name = match config.route_specifier.as_ref() {
        Some(RouteSpecifier::Cluster(name)) => name.clone(),
        Some(RouteSpecifier::Matcher(matcher)) => {
            problems.at("matcher", |problems| only_route(matcher, problems))?
        }
        // Breaks a field rule.
        None => return None,
    };
    environment.check_reserved(&name, "cluster", problems);
    let before = problems.count();
    let idle_timeout = duration_or(&config.idle_timeout, Duration::from_secs(60), "idle_timeout", problems);
    let policy = config.hash_policies.first().and_then(|policy| policy.policy_specifier.as_ref());
    let compiled = UdpProxy {
        cluster: environment.compiler.clusters.slot(&name),
        idle_timeout,
        use_original_src_ip: config.use_original_src_ip,
        hash_source_ip: matches!(policy, Some(PolicySpecifier::SourceIp(true))),
        hash_key: match policy {
            Some(PolicySpecifier::Key(key)) => Some(xxh64(key.as_bytes(), 0)),
            _ => None,
        },
        max_datagram,
        max_upstream_datagram: datagram(config.upstream_socket_config.as_ref()),
        stats: UdpProxyStats::new(&Scope::udp(&config.stat_prefix)),
        listener: UdpListenerStats::new(&Scope::listener(stat_prefix).sub("udp")),
    };
    (problems.count() == before).then_some(compiled)
}

/// The cluster of a matcher that sends everything to one.
fn only_route(config: &matcher::Matcher, problems: &mut Problems) -> Option<String> {
    use matcher::matcher::on_match::OnMatch;
    if config.matcher_type.is_some() {
        problems.report("only on_no_match is supported: all sessions go to one cluster");
        return None;
    }
    let action = match config.on_no_match.as_ref().and_then(|all| all.on_match.as_ref()) {
        Some(OnMatch::Action(action)) => action.typed_config.as_ref(),
        _ => None,
    };
    match action {
        Some(any) if type_of(any) == "envoy.extensions.filters.udp.udp_proxy.v3.Route" => {
            let route: udp::Route = extension(any, "on_no_match.action.typed_config", problems)?;
            Some(route.cluster)
        }
        _ => {
            problems.report_at("on_no_match.action", "must be a Route of the UDP proxy");
            None
        }
    }
}
