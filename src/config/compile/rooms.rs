//! The parts of a resource that other rooms compile: routes, access logs, the TCP proxy, filter-chain
//! matching. One function for each, so that their callers here read alike.

use outrigger_control_api::pb::envoy::config::{
    accesslog::v3 as accesslog, listener::v3 as listener, route::v3 as route,
};
use outrigger_control_api::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;

use super::{bool_or, known_clusters, on_demand, Environment};
use crate::config::chain_match::ChainIndex;
use crate::config::problems::Problems;
use crate::config::route::{HeaderOps, RouteTable};
use crate::config::tcp::TcpProxy;
use crate::telemetry::access_log::AccessLog;

/// The access logs in `field`.
pub(crate) fn access_logs(
    list: &[accesslog::AccessLog],
    field: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Vec<AccessLog> {
    let runtime = |key: &str| environment.compiler.runtime.load().number(key);
    let compile = |(index, config)| {
        problems.at_index(field, index, |problems| {
            AccessLog::compile(config, &runtime, &environment.compiler.clusters, problems)
        })
    };
    list.iter().enumerate().filter_map(compile).collect()
}

/// A route table. The clusters it names must exist if it says so, or, where it says nothing, by
/// `validate`.
pub(super) fn route_table(
    config: &route::RouteConfiguration,
    validate: bool,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<RouteTable> {
    // A cluster that lost its name has been reported; it may be the one that is meant here.
    let unnamed = !environment.dynamic && (environment.known)("");
    let validate = bool_or(config.validate_clusters, validate) && !unnamed;
    known_clusters::check(config, validate, environment, problems);
    if config.vhds.is_some() {
        problems.report_at("vhds", "needs a table that comes by RDS");
    }
    on_demand::check(&config.typed_per_filter_config, environment.compiler, problems);
    for (index, host) in config.virtual_hosts.iter().enumerate() {
        problems.at_index("virtual_hosts", index, |problems| {
            on_demand::check_host(host, environment.compiler, problems);
        });
    }
    crate::config::route::compile(config, &environment.compiler.clusters, problems)
}

/// A TCP proxy.
pub(super) fn tcp_proxy(
    config: &tcp_proxy::TcpProxy,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<TcpProxy> {
    TcpProxy::compile(config, environment, problems)
}

/// The index of a listener's filter chains.
pub(super) fn chain_index(chains: &[listener::FilterChain], problems: &mut Problems) -> ChainIndex {
    ChainIndex::compile(chains, problems)
}

/// Header changes in `field`.
pub(super) fn header_ops(
    list: &[outrigger_control_api::pb::envoy::config::core::v3::HeaderValueOption],
    field: &str,
    problems: &mut Problems,
) -> HeaderOps {
    HeaderOps::compile(list, field, &[], "", problems).unwrap_or_default()
}
