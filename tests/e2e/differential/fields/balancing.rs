//! Fields that decide on hosts: which of them ever get a request.

use super::table::{answers, at, group, stats, Table};
use crate::differential::beside::Beside;

const HOSTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const POLICY: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies";

/// A policy in its extension form.
fn policy(kind: &str, more: &str) -> String {
    format!("load_balancing_policy: {{ policies: [ {{ typed_extension_config: {{ name: it, typed_config: {{ \"@type\": {POLICY}.{kind}{more} }} }} }} ] }}")
}

/// Asks each path often enough that whoever may be chosen is, and compares who was; then the statistics.
async fn compare(table: Table, paths: &[String], parts: &[&str]) {
    let Some([envoy, ours]) = table.sides().await else { return };
    let mut beside = Beside::default();
    for path in paths {
        let (theirs, mine) = tokio::join!(answers(&envoy, path, 40), answers(&ours, path, 40));
        let names = |seen: std::collections::BTreeMap<String, usize>| seen.into_keys().collect::<Vec<_>>();
        beside.values(path, &names(theirs), &names(mine));
    }
    beside.lines("statistics", &stats(&envoy, parts).await, &stats(&ours, parts).await);
    beside.end();
}

#[tokio::test]
async fn near_hosts_come_first() {
    let zone = |zone: &str, hosts: &[&str]| {
        let hosts: Vec<_> = hosts
            .iter()
            .map(|host| at(host, "metadata: { filter_metadata: { envoy.lb: { v: one } } },"))
            .collect();
        let place = format!("locality: {{ region: here, zone: {zone} }}, load_balancing_weight: 1,");
        group(&place, &hosts)
    };
    let six = [zone("near", &HOSTS[..3]), zone("far", &HOSTS[3..])];
    let selectors = "subset_selectors: [ { keys: [ v ] } ], fallback_policy: ANY_ENDPOINT";
    let within = |more: &str| {
        let inner = policy("round_robin.v3.RoundRobin", more);
        policy(
            "subset.v3.Subset",
            &format!(", {selectors}, {}", inner.replace("load_balancing_policy", "subset_lb_policy")),
        )
    };
    let zones = ", locality_lb_config: { zone_aware_lb_config: {} }";
    let kinds = [
        ("classic", String::new()),
        ("random", "lb_policy: RANDOM".into()),
        ("least", "lb_policy: LEAST_REQUEST".into()),
        ("other-options", "common_lb_config: { healthy_panic_threshold: { value: 10 } }".into()),
        ("weighted", "common_lb_config: { locality_weighted_lb_config: {} }".into()),
        ("few", "common_lb_config: { zone_aware_lb_config: { min_cluster_size: 7 } }".into()),
        ("never", "common_lb_config: { zone_aware_lb_config: { routing_enabled: { value: 0 } } }".into()),
        ("extension", policy("round_robin.v3.RoundRobin", "")),
        ("empty", policy("round_robin.v3.RoundRobin", ", locality_lb_config: {}")),
        ("extension-random", policy("random.v3.Random", "")),
        ("extension-least", policy("least_request.v3.LeastRequest", "")),
        ("reported", policy("client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", "")),
        ("hashed", policy("maglev.v3.Maglev", ", table_size: 101")),
        ("subsets", format!("lb_subset_config: {{ {selectors} }}")),
        (
            "subsets-zones",
            format!(
                "common_lb_config: {{ zone_aware_lb_config: {{}} }}\nlb_subset_config: {{ {selectors} }}"
            ),
        ),
        ("extension-subsets", within("")),
        ("extension-subsets-zones", within(zones)),
    ];
    // Nobody is nearer to the cluster that says what is near.
    let local = [zone("near", &["a"]), zone("far", &["b", "c", "d", "e", "f"])];
    let mut table = Table::default()
        .named(&HOSTS)
        .more("cluster_manager: { local_cluster_name: local }")
        .cluster("local", "", &local);
    let mut paths = vec!["/local".to_owned()];
    for (name, options) in kinds {
        table = table.cluster(name, &options, &six);
        let chosen = format!("/{name}/one");
        table = table.route(&chosen, name, ", metadata_match: { filter_metadata: { envoy.lb: { v: one } } }");
        paths.extend([format!("/{name}"), chosen]);
    }
    compare(table, &paths, &["lb_zone_routing", "lb_local_cluster_not_ok", "upstream_rq_5xx"]).await;
}

#[tokio::test]
async fn hosts_that_requests_ask_for() {
    let inner = policy("round_robin.v3.RoundRobin", "").replace("load_balancing_policy", "fallback_policy");
    let sources = "override_host_sources: [ { header: x-first }, { header: x-second } ]";
    let options = policy("override_host.v3.OverrideHost", &format!(", {sources}, {inner}"));
    let hosts =
        [at("a", ""), at("b", ""), at("c", "health_status: UNHEALTHY,"), at("d", "health_status: DRAINING,")];
    let here = |host: &str| format!("127.0.0.1:@origin:{host}@");
    let nobody = "127.0.0.1:1".to_owned();
    let asked: [(&str, Vec<(&str, String)>); 11] = [
        ("one", vec![("x-first", here("b"))]),
        ("unhealthy", vec![("x-first", here("c"))]),
        ("draining", vec![("x-first", here("d"))]),
        ("second", vec![("x-second", here("b"))]),
        ("both", vec![("x-first", here("a")), ("x-second", here("b"))]),
        ("unknown", vec![("x-first", nobody.clone())]),
        ("no-address", vec![("x-first", "somewhere".into())]),
        ("unknown-first", vec![("x-first", nobody.clone()), ("x-second", here("b"))]),
        ("no-address-first", vec![("x-first", "somewhere".into()), ("x-second", here("b"))]),
        ("list", vec![("x-first", format!("{nobody},{}", here("b")))]),
        ("spaced-list", vec![("x-first", format!("{nobody}, {} , {}", here("b"), here("a")))]),
    ];
    let mut table = Table::default().named(&HOSTS).cluster("asks", &options, &[group("", &hosts)]);
    let mut paths = Vec::new();
    for (name, headers) in &asked {
        let path = format!("/asks/{name}");
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        table = table.telling(&path, "asks", &headers);
        paths.push(path);
    }
    compare(table, &paths, &["upstream_rq_total"]).await;
}

#[tokio::test]
async fn hosts_that_drain_are_not_counted() {
    let drains = |host: &str| at(host, "health_status: DRAINING,");
    let well = |host: &str| at(host, "");
    let fails = |host: &str| at(host, "health_status: UNHEALTHY,");
    let second = |host: &str| group("priority: 1,", &[well(host)]);
    let weighted = "common_lb_config: { locality_weighted_lb_config: {} }";
    let clusters = [
        ("most", "", vec![group("", &[drains("a"), drains("b"), drains("c"), well("d")]), second("e")]),
        ("some", "", vec![group("", &[drains("a"), fails("b"), well("c"), well("d")]), second("e")]),
        ("all", "", vec![group("", &[drains("a"), drains("b")])]),
        ("all-first", "", vec![group("", &[drains("a"), drains("b")]), second("e")]),
        ("panic", "", vec![group("", &[drains("a"), fails("b"), fails("c"), well("d")])]),
        ("weighted", weighted, vec![group("load_balancing_weight: 1,", &[drains("a"), well("b")])]),
        ("timeout", "", vec![group("", &[at("a", "health_status: TIMEOUT,"), well("b")])]),
    ];
    let mut table = Table::default().named(&HOSTS);
    let mut paths = Vec::new();
    for (name, options, groups) in &clusters {
        table = table.cluster(name, options, groups);
        paths.push(format!("/{name}"));
    }
    compare(
        table,
        &paths,
        &["membership_excluded", "membership_healthy", "membership_total", "lb_healthy_panic"],
    )
    .await;
}

#[tokio::test]
async fn keys_that_no_selector_has() {
    let has = |host: &str, keys: &str| {
        at(host, &format!("metadata: {{ filter_metadata: {{ envoy.lb: {{ {keys} }} }} }},"))
    };
    let hosts = [
        has("a", "a: one, b: one, c: one"),
        has("b", "a: one, b: one"),
        has("c", "a: one"),
        has("d", "c: one"),
        at("e", ""),
    ];
    let selectors = [
        ("short-first", "[ { keys: [ a ] }, { keys: [ a, b ] } ]"),
        ("long-first", "[ { keys: [ a, b ] }, { keys: [ a ] } ]"),
        ("apart", "[ { keys: [ c ] }, { keys: [ a, b ] } ]"),
        ("alike", "[ { keys: [ c ] }, { keys: [ a ] } ]"),
        ("three", "[ { keys: [ a ] }, { keys: [ c ] }, { keys: [ a, b, c ] } ]"),
        ("fallback", "[ { keys: [ a, b ], fallback_policy: ANY_ENDPOINT }, { keys: [ a ] } ]"),
    ];
    let asked = [
        ("abc", "a: one, b: one, c: one"),
        ("ab", "a: one, b: one"),
        ("ac", "a: one, c: one"),
        ("other-b", "a: one, b: two, c: one"),
        ("bc", "b: one, c: one"),
        ("unknown", "z: one"),
        ("a-unknown", "a: one, z: one"),
    ];
    let mut table = Table::default().named(&HOSTS);
    let mut paths = Vec::new();
    let inner = policy("round_robin.v3.RoundRobin", "").replace("load_balancing_policy", "subset_lb_policy");
    for (name, selectors) in selectors {
        let more = format!(", allow_redundant_keys: true, subset_selectors: {selectors}, {inner}");
        table = table.cluster(name, &policy("subset.v3.Subset", &more), &[group("", &hosts)]);
        for (which, keys) in asked {
            let path = format!("/{name}/{which}");
            let wants = format!(", metadata_match: {{ filter_metadata: {{ envoy.lb: {{ {keys} }} }} }}");
            table = table.route(&path, name, &wants);
            paths.push(path);
        }
    }
    compare(table, &paths, &["lb_subsets_selected", "lb_subsets_fallback", "upstream_rq_5xx"]).await;
}
