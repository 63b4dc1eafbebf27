//! Bootstraps of a given size, compiled.

use outrigger::config::compile::bootstrap::{CompiledBootstrap, NodeOptions};
use outrigger_control_api::load_value;
use serde_json::{json, Value};

/// Domain `domain` of virtual host `host`.
pub fn domain(host: usize, domain: usize) -> String {
    format!("service-{host}.namespace-{domain}.svc.test")
}

/// A bootstrap with so many virtual hosts of four domains and two routes each, and one cluster `origin` with so many
/// hosts and this load-balancing policy.
pub fn compiled(virtual_hosts: usize, hosts: usize, policy: &str) -> CompiledBootstrap {
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let virtual_hosts: Vec<Value> = (0..virtual_hosts)
        .map(|host| {
            let domains: Vec<String> = (0..4).map(|number| domain(host, number)).collect();
            json!({"name": format!("v{host}"), "domains": domains, "routes": [
                {"match": {"path": "/health"}, "direct_response": {"status": 200}},
                {"match": {"prefix": "/"}, "route": {"cluster": "origin"}}]})
        })
        .collect();
    let endpoints: Vec<Value> = (0..hosts)
        .map(|host| {
            let address = format!("10.{}.{}.{}", host >> 16, (host >> 8) & 255, host & 255);
            json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": 8080}}}})
        })
        .collect();
    let value = json!({"static_resources": {
        "listeners": [{
            "name": "ingress",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                "@type": typed("network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "ingress",
                "route_config": {"name": "routes", "virtual_hosts": virtual_hosts},
                "http_filters": [{"name": "router", "typed_config": {"@type": typed("http.router.v3.Router")}}]
            }}]}]
        }],
        "clusters": [{
            "name": "origin", "connect_timeout": "1s", "lb_policy": policy,
            "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": endpoints}]}
        }]
    }});
    let loaded = load_value(&value).unwrap_or_else(|problems| panic!("{problems:?}"));
    outrigger::config::compile::bootstrap(loaded, &NodeOptions::default())
        .unwrap_or_else(|problems| panic!("{problems:?}"))
}
