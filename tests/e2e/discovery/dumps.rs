//! What `/config_dump` shows of route tables, scopes and endpoints that a control plane wrote into listeners and
//! clusters, beside the real Envoy.

use serde_json::Value;

use super::beside::{Both, Side};
use super::clients::named;
use super::mesh::Mesh;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

/// A listener with two tables and a list of scopes of its own.
fn listener() -> String {
    let hosts = "virtual_hosts: [{ name: all, domains: [\"*\"], routes: [{ match: { prefix: / }, route: { cluster: inline } }] }]";
    let manager = |routes: &str| {
        format!(
            "filters: [{{ name: http, typed_config: {{ \"@type\": {MANAGER}, stat_prefix: own, {routes}, \
             http_filters: [{{ name: router, typed_config: {{ \"@type\": {ROUTER} }} }}] }} }}]"
        )
    };
    let source = "{ resource_api_version: V3, ads: {} }";
    let scopes = format!(
        "scoped_routes: {{ name: scopes, rds_config_source: {source}, \
         scope_key_builder: {{ fragments: [{{ header_value_extractor: {{ name: x, element_separator: \",\", index: 0 }} }}] }}, \
         scoped_route_configurations_list: {{ scoped_route_configurations: [{{ name: one, \
         key: {{ fragments: [{{ string_key: a }}] }}, route_configuration: {{ name: of-scope, {hosts} }} }}] }} }}"
    );
    format!(
        "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\nname: own\n\
         address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}\nfilter_chains:\n\
         - filter_chain_match: {{ source_ports: [1] }}\n  {}\n- filter_chain_match: {{ source_ports: [2] }}\n  {}\n- {}\n",
        manager(&format!("route_config: {{ name: first, {hosts} }}")),
        manager(&scopes),
        manager(&format!("route_config: {{ name: second, {hosts} }}")),
    )
}

fn cluster(name: &str, kind: &str, endpoints: &str) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {name}\ntype: {kind}\nconnect_timeout: 1s\n\
         dns_lookup_family: V4_ONLY\nload_assignment:\n  cluster_name: elsewhere\n  endpoints: {endpoints}\n"
    )
}

fn at(port: u16, more: &str) -> String {
    format!(
        "endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}{more} }}"
    )
}

/// A mesh of EDS, and clusters and a listener that bring what they need.
fn resources(port: u16) -> Vec<String> {
    let mut resources = Mesh::simple(port, &[7]).resources();
    let simple = format!(
        "[{{ locality: {{ region: r, zone: far }}, load_balancing_weight: 3, lb_endpoints: [{{ load_balancing_weight: 2, \
         metadata: {{ filter_metadata: {{ a: {{ b: c }} }} }}, {} }}, {{ health_status: DRAINING, {} }}, \
         {{ health_status: DEGRADED, {} }}] }}, {{ locality: {{ region: r, zone: near }}, lb_endpoints: [{{ {} }}] }}, \
         {{ priority: 1, lb_endpoints: [{{ endpoint: {{ address: {{ pipe: {{ path: /tmp/none }} }} }} }}] }}]\n  \
         policy: {{ overprovisioning_factor: 150, drop_overloads: [{{ category: much, drop_percentage: {{ numerator: 5 }} }}] }}",
        at(1, ", hostname: one"),
        at(2, ", health_check_config: { port_value: 9, hostname: checked }"),
        at(3, ""),
        at(4, ""),
    );
    resources.push(cluster("inline", "STATIC", &simple));
    let of_name = "[{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: localhost, port_value: 5 } } } }] }]";
    resources.push(cluster("names", "STRICT_DNS", of_name));
    resources.push(cluster("name", "LOGICAL_DNS", of_name));
    resources.push(cluster("nothing", "STATIC", "[]"));
    resources.push(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: anywhere\ntype: ORIGINAL_DST\n\
         lb_policy: CLUSTER_PROVIDED\nconnect_timeout: 1s\n"
            .to_owned(),
    );
    resources.push(listener());
    resources
}

/// The parts of the dump that have tables, scopes or endpoints, with what differs between any two proxies left out.
async fn dump(side: &Side, query: &str) -> Vec<(String, Vec<Value>)> {
    let dump: Value =
        serde_json::from_str(&side.proxy.admin(&format!("/config_dump?{query}")).await).expect("JSON");
    let mut parts = Vec::new();
    for config in dump["configs"].as_array().into_iter().flatten() {
        let kind = config["@type"].as_str().unwrap_or_default();
        if !["EndpointsConfigDump", "RoutesConfigDump", "ScopedRoutesConfigDump"]
            .iter()
            .any(|part| kind.ends_with(part))
        {
            continue;
        }
        let lists = config.as_object().into_iter().flatten().filter(|(field, _)| *field != "@type");
        for (field, list) in lists {
            let mut list = list.as_array().cloned().unwrap_or_default();
            for entry in list.iter_mut().filter_map(Value::as_object_mut) {
                // Times; and what we tell of endpoints besides.
                let told = entry.remove("last_updated").is_some() || field.ends_with("endpoint_configs");
                assert!(told, "{field} without a time");
                entry.remove("client_status");
                if field.ends_with("endpoint_configs") {
                    entry.remove("version_info");
                }
            }
            // In no order.
            list.sort_by_key(ToString::to_string);
            parts.push((format!("{kind} {field}"), list));
        }
    }
    parts
}

#[tokio::test]
async fn what_stands_in_listeners_and_clusters_is_shown_as_envoy_shows_it() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let one = named("one").await;
    let both = Both::start(true, |port| Mesh::simple(port, &[one.port()]).resources()).await;
    both.set(resources).await;
    for query in ["include_eds", "", "include_eds&name_regex=^(names?|second|scopes)$", "name_regex=^one$"] {
        let differing = || async {
            let [envoy, ours] = [dump(&both.sides[0], query).await, dump(&both.sides[1], query).await];
            (envoy != ours).then(|| format!("Envoy {envoy:#?}\nhere {ours:#?}"))
        };
        let same = eventually(DEADLINE, || async { differing().await.is_none() }).await;
        assert!(same, "{query}: {}", differing().await.unwrap_or_default());
    }
    let [envoy, _] = [dump(&both.sides[0], "include_eds").await, dump(&both.sides[1], "").await];
    let counts: Vec<usize> = envoy.iter().map(|(_, list)| list.len()).collect();
    assert_eq!(counts, [1, 6, 1, 2, 1], "{envoy:#?}");
}
