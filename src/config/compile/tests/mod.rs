//! Rules of the compiler: for each, a bootstrap that breaks it, and the one problem that results.

#![allow(clippy::needless_pass_by_value)] // `json!` values read best as they are.

mod balancing;
mod bootstrap;
mod clusters;
mod connection_managers;
mod discovery;
mod filters;
mod listeners;
mod overload;
mod resources;
mod scoped;
mod survey;

use std::time::Duration;

use outrigger_control_api::load_value;
use serde_json::{json, Value};

use super::bootstrap::{CompiledBootstrap, NodeOptions};
use crate::config::cluster::{Address, Discovery, DnsFamily, LbPolicy};
use crate::config::http::{
    Codec, EscapedSlashes, HeaderCase, HttpConnectionManager, ServerHeader, StripPort,
};
use crate::config::listener::{Direction, Terminal};
use crate::config::Cluster;

const HCM: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const HCM_PATH: &str = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";

fn typed(name: &str) -> String {
    format!("type.googleapis.com/envoy.{name}")
}

fn router() -> Value {
    json!({"name": "router", "typed_config": {"@type": typed("extensions.filters.http.router.v3.Router")}})
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({"name": "tcp", "typed_config": {
        "@type": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "tcp", "cluster": cluster}})
}

/// One listener with a connection manager, one cluster with one endpoint, an admin port.
fn base() -> Value {
    json!({
        "node": {"id": "n", "cluster": "k"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        "static_resources": {
            "listeners": [{
                "name": "ingress",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
                "filter_chains": [{"filters": [{
                    "name": "http",
                    "typed_config": {
                        "@type": typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                        "stat_prefix": "ingress",
                        "route_config": {
                            "name": "routes",
                            "virtual_hosts": [{
                                "name": "all", "domains": ["*"],
                                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin"}}],
                            }],
                        },
                        "http_filters": [router()],
                    },
                }]}],
            }],
            "clusters": [{
                "name": "origin",
                "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": "origin",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                        "socket_address": {"address": "127.0.0.1", "port_value": 8081}}}}]}],
                },
            }],
        },
    })
}

/// Sets the value at a JSON pointer, making the last step; `null` removes it.
fn set(bootstrap: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let parent = bootstrap.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match (parent, value) {
        (Value::Object(fields), Value::Null) => assert!(fields.shift_remove(last).is_some(), "{pointer}"),
        (Value::Object(fields), value) => drop(fields.insert(last.to_owned(), value)),
        (Value::Array(items), value) if last == "-" => items.push(value),
        (Value::Array(items), value) => items[last.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
}

fn try_compile(bootstrap: &Value) -> Result<CompiledBootstrap, Vec<String>> {
    let text = |problems: Vec<_>| problems.iter().map(ToString::to_string).collect::<Vec<String>>();
    let loaded = load_value(bootstrap).map_err(text)?;
    super::bootstrap(loaded, &NodeOptions::default()).map_err(text)
}

/// The base with changes.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut bootstrap = base();
    for (pointer, value) in changes {
        set(&mut bootstrap, pointer, value.clone());
    }
    bootstrap
}

fn compiled(changes: &[(&str, Value)]) -> CompiledBootstrap {
    try_compile(&with(changes)).unwrap()
}

/// The bootstrap with these changes is refused with exactly this problem.
#[track_caller]
fn refuses(changes: &[(&str, Value)], expected: &str) {
    assert_eq!(try_compile(&with(changes)).unwrap_err(), [expected]);
}

#[track_caller]
fn refuses_cluster(changes: Value, expected: &str) {
    refuses(&cluster_changes(&changes), &format!("static_resources.clusters[0].{expected}"));
}

#[track_caller]
fn refuses_listener(changes: Value, expected: &str) {
    let Value::Object(changes) = changes else { panic!() };
    let pointers: Vec<_> = changes.keys().map(|key| format!("/static_resources/listeners/0/{key}")).collect();
    let changes: Vec<_> = pointers.iter().map(String::as_str).zip(changes.into_values()).collect();
    refuses(&changes, &format!("static_resources.listeners[0].{expected}"));
}

#[track_caller]
fn refuses_hcm(changes: Value, expected: &str) {
    let changes = hcm_changes(&changes);
    let changes: Vec<_> = changes.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    refuses(&changes, &format!("{HCM_PATH}.{expected}"));
}

fn hcm_changes(changes: &Value) -> Vec<(String, Value)> {
    let Value::Object(changes) = changes else { panic!() };
    changes.iter().map(|(key, value)| (format!("{HCM}/{key}"), value.clone())).collect()
}

fn cluster_changes(changes: &Value) -> Vec<(&'static str, Value)> {
    let mut cluster = base().pointer("/static_resources/clusters/0").unwrap().clone();
    let Value::Object(changes) = changes else { panic!() };
    for (key, value) in changes {
        set(&mut cluster, &format!("/{key}"), value.clone());
    }
    vec![("/static_resources/clusters/0", cluster)]
}

fn cluster(changes: Value) -> std::sync::Arc<Cluster> {
    let compiled = compiled(&cluster_changes(&changes));
    let slot = compiled.clusters.find("origin").unwrap();
    slot.get().unwrap()
}

pub(crate) fn hcm(changes: Value) -> std::sync::Arc<HttpConnectionManager> {
    let changes = hcm_changes(&changes);
    let changes: Vec<_> = changes.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    let compiled = compiled(&changes);
    match &compiled.listeners[0].chains[0].terminal {
        Terminal::Http(hcm) => hcm.clone(),
        other => panic!("{other:?}"),
    }
}

fn endpoint(address: &str, port: u32) -> Value {
    json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}})
}

fn assignment(endpoints: &[Value]) -> Value {
    json!({"cluster_name": "origin", "endpoints": [{"lb_endpoints": endpoints}]})
}
