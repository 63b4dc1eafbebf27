//! How DNS clusters resolve: the classic fields of a cluster, the `DnsCluster` extension and resolver
//! configurations in, a [`Dns`] out.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use outrigger_control_api::pb::envoy::extensions::clusters::{
    common::dns::v3::DnsLookupFamily, dns::v3::DnsCluster,
};
use outrigger_control_api::pb::envoy::extensions::network::dns_resolver::{
    cares::v3::CaresDnsResolverConfig, getaddrinfo::v3::GetAddrInfoDnsResolverConfig,
};
use outrigger_control_api::unpack;

use super::endpoints::dns_names;
use super::{duration, duration_or, extension, ip_address, Environment};
use crate::config::cluster::{Dns, DnsFamily};
use crate::config::problems::Problems;

/// The DNS options of a strict or logical DNS cluster; `None` when a problem was reported.
pub(super) fn dns(
    cluster: &pb::Cluster,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Dns> {
    use pb::cluster::{ClusterDiscoveryType, DnsLookupFamily as Classic};
    let names =
        problems.at("load_assignment", |problems| dns_names(cluster.load_assignment.as_ref(), problems))?;
    let custom = match &cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(custom)) => custom.typed_config.as_ref(),
        _ => None,
    };
    if let Some(any) = custom {
        return problems.at("cluster_type.typed_config", |problems| {
            let config: DnsCluster = extension(any, "", problems)?;
            let failure =
                config.dns_failure_refresh_rate.as_ref().map(|rate| (rate.base_interval, rate.max_interval));
            let family = match config.dns_lookup_family() {
                DnsLookupFamily::Unspecified | DnsLookupFamily::Auto => DnsFamily::Auto,
                DnsLookupFamily::V4Only => DnsFamily::V4Only,
                DnsLookupFamily::V6Only => DnsFamily::V6Only,
                DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
                DnsLookupFamily::All => DnsFamily::All,
            };
            let resolver = match &config.typed_dns_resolver_config {
                Some(typed) => {
                    problems.at("typed_dns_resolver_config", |problems| typed_resolver(typed, problems))
                }
                None => None,
            };
            Some(Dns {
                names,
                refresh: refresh(&config.dns_refresh_rate, problems),
                failure_refresh: failure_refresh(failure, problems),
                respect_ttl: config.respect_dns_ttl,
                family,
                ..resolver.unwrap_or_else(|| environment.compiler.resolver.clone()).dns()
            })
        });
    }
    let rate = cluster.dns_failure_refresh_rate.as_ref();
    let family = match cluster.dns_lookup_family() {
        Classic::Auto => DnsFamily::Auto,
        Classic::V4Only => DnsFamily::V4Only,
        Classic::V6Only => DnsFamily::V6Only,
        Classic::V4Preferred => DnsFamily::V4Preferred,
        Classic::All => DnsFamily::All,
    };
    let own = resolver(
        cluster.typed_dns_resolver_config.as_ref(),
        cluster.dns_resolution_config.as_ref(),
        &cluster.dns_resolvers,
        cluster.use_tcp_for_dns_lookups,
        problems,
    );
    Some(Dns {
        names,
        refresh: refresh(&cluster.dns_refresh_rate, problems),
        failure_refresh: failure_refresh(rate.map(|rate| (rate.base_interval, rate.max_interval)), problems),
        respect_ttl: cluster.respect_dns_ttl,
        family,
        ..own.unwrap_or_else(|| environment.compiler.resolver.clone()).dns()
    })
}

type PbDuration = outrigger_control_api::pb::google::protobuf::Duration;

fn refresh(rate: &Option<PbDuration>, problems: &mut Problems) -> Duration {
    duration_or(rate, Duration::from_secs(5), "dns_refresh_rate", problems)
}

fn failure_refresh(
    rate: Option<(Option<PbDuration>, Option<PbDuration>)>,
    problems: &mut Problems,
) -> Option<(Duration, Duration)> {
    let (base, max) = rate?;
    problems.at("dns_failure_refresh_rate", |problems| {
        let base = duration(&base, "base_interval", problems)?;
        let max = duration(&max, "max_interval", problems).unwrap_or(base * 10);
        if max < base {
            problems.report_at(
                "max_interval",
                format!("is {max:?}, must not be less than base_interval ({base:?})"),
            );
        }
        Some((base, max))
    })
}

/// Which name servers to ask, and how.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    tcp: bool,
    no_search_domain: bool,
}

impl Resolver {
    /// As the options of nothing in particular: no names, and Envoy's intervals.
    pub(super) fn dns(self) -> Dns {
        Dns {
            names: Vec::new(),
            refresh: Duration::from_secs(5),
            failure_refresh: None,
            respect_ttl: false,
            family: DnsFamily::Auto,
            resolvers: self.servers,
            tcp: self.tcp,
            no_search_domain: self.no_search_domain,
        }
    }
}

/// The resolver that config asks for, newest form first; `None` when it says nothing.
pub(super) fn resolver(
    typed: Option<&core::TypedExtensionConfig>,
    classic: Option<&core::DnsResolutionConfig>,
    servers: &[core::Address],
    tcp: bool,
    problems: &mut Problems,
) -> Option<Resolver> {
    if let Some(typed) = typed {
        return problems.at("typed_dns_resolver_config", |problems| typed_resolver(typed, problems));
    }
    if let Some(classic) = classic {
        let options = classic.dns_resolver_options.unwrap_or_default();
        return Some(Resolver {
            servers: problems
                .at("dns_resolution_config", |p| name_servers(&classic.resolvers, "resolvers", p)),
            tcp: options.use_tcp_for_dns_lookups,
            no_search_domain: options.no_default_search_domain,
        });
    }
    (tcp || !servers.is_empty()).then(|| Resolver {
        servers: name_servers(servers, "dns_resolvers", problems),
        tcp,
        no_search_domain: false,
    })
}

fn typed_resolver(typed: &core::TypedExtensionConfig, problems: &mut Problems) -> Option<Resolver> {
    let any = typed.typed_config.as_ref()?;
    if unpack::<GetAddrInfoDnsResolverConfig>(any).is_ok() {
        return Some(Resolver::default());
    }
    // Other types are refused by the support table.
    let config = unpack::<CaresDnsResolverConfig>(any).ok()?;
    let options = config.dns_resolver_options.unwrap_or_default();
    Some(Resolver {
        servers: problems
            .at("typed_config", |problems| name_servers(&config.resolvers, "resolvers", problems)),
        tcp: options.use_tcp_for_dns_lookups,
        no_search_domain: options.no_default_search_domain,
    })
}

fn name_servers(addresses: &[core::Address], field: &str, problems: &mut Problems) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        match problems.at_index(field, index, |problems| ip_address(address, problems)) {
            Some(server) if server.port() == 0 => servers.push(SocketAddr::new(server.ip(), 53)),
            Some(server) => servers.push(server),
            None => {}
        }
    }
    servers
}
