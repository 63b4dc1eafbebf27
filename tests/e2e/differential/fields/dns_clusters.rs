//! Fields of clusters that are found by name: which addresses of a name become hosts, and what is counted when it moves.

use super::table::{group, stats, Table};
use crate::differential::beside::Beside;
use crate::differential::observe::Side;
use crate::harness::dns::{NameServer, Says};
use crate::harness::{eventually, DEADLINE};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// The hosts of each cluster.
async fn hosts(side: &Side) -> Vec<String> {
    let page = side.proxy.admin("/clusters").await;
    let mut lines: Vec<_> =
        page.lines().filter(|line| line.contains("::hostname::")).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn families_and_moves() {
    let moved = Arc::new(AtomicBool::new(false));
    let server = NameServer::start({
        let moved = moved.clone();
        move |name| {
            let list: &[&str] = match name {
                "dual.test" => &["127.0.0.1", "::1"],
                "four.test" => &["127.0.0.1", "127.0.0.2"],
                "six.test" => &["::1"],
                "moves.test" if moved.load(Ordering::Relaxed) => &["127.0.0.4", "127.0.0.5"],
                "moves.test" => &["127.0.0.3"],
                _ => return Says::NoSuchName,
            };
            Says::Addresses(list.iter().map(|address| address.parse().expect("an address")).collect())
        }
    });
    let resolver = format!("typed_dns_resolver_config: {{ name: cares, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [ {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} ] }} }}", server.port);
    let at = |name: &str| {
        group("", &[format!("{{ endpoint: {{ address: {{ socket_address: {{ address: {name}.test, port_value: 1 }} }} }} }}")])
    };
    let extension = |more: &str| {
        format!("cluster_type: {{ name: dns, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, dns_refresh_rate: 0.1s, {resolver}{more} }} }}")
    };
    let mut table = Table::default();
    for family in ["AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL"] {
        for name in ["dual", "four", "six"] {
            for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
                let options =
                    format!("type: {kind}\ndns_refresh_rate: 60s\ndns_lookup_family: {family}\n{resolver}");
                table = table.cluster(&format!("{kind}-{name}-{family}"), &options, &[at(name)]);
            }
        }
        let single = format!(", dns_lookup_family: {family}, all_addresses_in_single_endpoint: true");
        table = table.cluster(&format!("single-{family}"), &extension(&single), &[at("dual")]);
    }
    for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
        let options = format!("type: {kind}\ndns_refresh_rate: 0.1s\ndns_lookup_family: V4_ONLY\n{resolver}");
        table = table.cluster(&format!("{kind}-moves"), &options, &[at("moves")]);
    }
    table = table.cluster("moves", &extension(", dns_lookup_family: V4_ONLY"), &[at("moves")]);
    let Some([envoy, ours]) = table.sides().await else { return };
    let mut beside = Beside::default();
    let same = || async { hosts(&envoy).await == hosts(&ours).await };
    eventually(DEADLINE, same).await;
    beside.lines("hosts", &hosts(&envoy).await, &hosts(&ours).await);
    moved.store(true, Ordering::Relaxed);
    for side in [&envoy, &ours] {
        let gone = || async { !hosts(side).await.iter().any(|line| line.contains("127.0.0.3")) };
        assert!(eventually(DEADLINE, gone).await, "{:?}", side.proxy.kind());
    }
    eventually(DEADLINE, same).await;
    beside.lines("moved hosts", &hosts(&envoy).await, &hosts(&ours).await);
    beside.lines("statistics", &stats(&envoy, &["membership_"]).await, &stats(&ours, &["membership_"]).await);
    beside.end();
}
