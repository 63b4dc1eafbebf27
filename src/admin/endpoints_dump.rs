//! `EndpointsConfigDump`: the hosts in force, with the health that is known of them, whoever named them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{json, Map, Value};

use super::config_dump::typed;
use super::resources::address_json;
use super::AdminState;
use crate::config::cluster::{Address, Cluster, Discovery, Health, Locality};
use crate::config::Host;
use crate::discovery::view::Parts;

const KIND: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Static and dynamic endpoints. `assignments` are those that stand in clusters, by the cluster's name; `discovered` are
/// elements of the dump by the name that EDS knows them by.
pub(super) fn endpoints(
    state: &AdminState,
    assignments: &HashMap<String, Value>,
    discovered: &HashMap<Arc<str>, Value>,
) -> Parts {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    let mut clusters: Vec<_> = state.clusters.all();
    clusters.sort_by(|a, b| a.name().cmp(b.name()));
    let own = own_locality(&state.node);
    for cluster in clusters.into_iter().filter_map(|slot| slot.peek()) {
        let service = match &cluster.discovery {
            Discovery::Eds { service_name, .. } => Some(service_name),
            _ => None,
        };
        let entry = service.and_then(|service| discovered.get(service));
        let written = match service {
            Some(_) => entry.and_then(|entry| entry.get("endpoint_config")),
            None => assignments.get(&*cluster.name),
        };
        let name = service.unwrap_or(&cluster.name);
        let shown = typed(KIND, assignment(name, &cluster, &Written::of(written), own.as_ref()));
        if cluster.added_via_api {
            let mut entry = entry.cloned().unwrap_or_else(|| Value::Object(Map::new()));
            entry["endpoint_config"] = shown;
            dynamic.push(entry);
        } else {
            fixed.push(json!({ "endpoint_config": shown }));
        }
    }
    vec![("static_endpoint_configs", fixed), ("dynamic_endpoint_configs", dynamic)]
}

/// This proxy's own locality: Envoy shows it before the others.
fn own_locality(node: &Value) -> Option<Locality> {
    let locality = node.get("locality")?;
    let part = |name: &str| locality.get(name).and_then(Value::as_str).unwrap_or_default().into();
    Some(Locality { region: part("region"), zone: part("zone"), sub_zone: part("sub_zone") })
}

fn assignment(name: &str, cluster: &Cluster, written: &Written<'_>, own: Option<&Locality>) -> Value {
    let hosts = cluster.hosts.load();
    let place = |host: &Host| {
        let template = &host.template;
        let is_own = own.is_some_and(|own| *own == *template.locality);
        (template.priority, Reverse(is_own), template.locality.clone())
    };
    let mut sorted: Vec<&Arc<Host>> = hosts.all.iter().collect();
    sorted.sort_by_cached_key(|host| place(host));
    let named = matches!(cluster.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
    let groups = sorted.chunk_by(|a, b| place(a) == place(b));
    let groups: Vec<Value> = groups.filter_map(|hosts| group(hosts, written, named)).collect();
    let mut shown = Map::new();
    shown.insert("cluster_name".into(), name.into());
    if !groups.is_empty() {
        shown.insert("endpoints".into(), groups.into());
    }
    let mut policy = Map::new();
    if let Some(drop) = cluster.drops.policy() {
        let share = json!({"numerator": drop.share, "denominator": "MILLION"});
        let drop = json!([{"category": &*drop.category, "drop_percentage": share}]);
        policy.insert("drop_overloads".into(), drop);
    }
    policy.insert("overprovisioning_factor".into(), hosts.options.overprovisioning.into());
    shown.insert("policy".into(), policy.into());
    shown.into()
}

/// Hosts of one priority in one locality.
fn group(hosts: &[&Arc<Host>], written: &Written<'_>, named: bool) -> Option<Value> {
    let first = &hosts.first()?.template;
    let mut locality = Map::new();
    let parts = [
        ("region", &first.locality.region),
        ("zone", &first.locality.zone),
        ("sub_zone", &first.locality.sub_zone),
    ];
    for (name, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
        locality.insert(name.into(), part.as_ref().into());
    }
    let hosts: Vec<Value> = hosts.iter().map(|host| host_json(host, written, named)).collect();
    let mut shown = Map::new();
    shown.insert("locality".into(), locality.into());
    shown.insert("lb_endpoints".into(), hosts.into());
    shown.insert("load_balancing_weight".into(), first.locality_weight.into());
    if first.priority > 0 {
        shown.insert("priority".into(), first.priority.into());
    }
    Some(shown.into())
}

fn host_json(host: &Host, written: &Written<'_>, named: bool) -> Value {
    let template = &host.template;
    let entry = written.find(host, named);
    let mut check = Map::new();
    if let Some(own) = &template.check {
        let other = match &own.address {
            Some(Address::Ip(address)) => Some(address.port()),
            _ => own.port,
        };
        if let Some(port) = other {
            check.insert("port_value".into(), port.into());
        }
        if !own.hostname.is_empty() {
            check.insert("hostname".into(), own.hostname.as_ref().into());
        }
    }
    let mut endpoint = Map::new();
    endpoint.insert("address".into(), address_json(&host.address));
    endpoint.insert("health_check_config".into(), check.into());
    if !template.hostname.is_empty() {
        endpoint.insert("hostname".into(), template.hostname.as_ref().into());
    }
    if let Some(more) = entry.and_then(|entry| entry.pointer("/endpoint/additional_addresses")) {
        endpoint.insert("additional_addresses".into(), more.clone());
    }
    let health = match host.health() {
        Health::Healthy => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Unhealthy => "UNHEALTHY",
    };
    let mut shown = Map::new();
    shown.insert("endpoint".into(), endpoint.into());
    shown.insert("health_status".into(), health.into());
    match entry.and_then(|entry| entry.get("metadata")) {
        Some(metadata) => drop(shown.insert("metadata".into(), metadata.clone())),
        // As Envoy: a name's addresses have metadata, if empty ones.
        None if named => drop(shown.insert("metadata".into(), Value::Object(Map::new()))),
        None => {}
    }
    shown.insert("load_balancing_weight".into(), template.weight.max(1).into());
    shown.into()
}

/// The endpoints of an assignment as it was written, by address: hosts do not keep all that is said of them.
struct Written<'a>(HashMap<String, &'a Value>);

impl<'a> Written<'a> {
    fn of(assignment: Option<&'a Value>) -> Self {
        let list = |value: &'a Value, field: &str| value.get(field).and_then(Value::as_array);
        let groups = assignment.and_then(|assignment| list(assignment, "endpoints")).into_iter().flatten();
        let endpoints = groups.filter_map(|group| list(group, "lb_endpoints")).flatten();
        Self(endpoints.filter_map(|endpoint| Some((key(endpoint)?, endpoint))).collect())
    }

    fn find(&self, host: &Host, named: bool) -> Option<&'a Value> {
        match &host.address {
            Address::Ip(address) if named => {
                let by_name = self.0.get(&format!("{}:{}", host.template.hostname, address.port()));
                by_name.or_else(|| self.0.get(&*host.address_text)).copied()
            }
            _ => self.0.get(&*host.address_text).copied(),
        }
    }
}

/// What a host's address text is, or a name's with its port.
fn key(endpoint: &Value) -> Option<String> {
    let endpoint = endpoint.get("endpoint")?;
    let address = endpoint.get("address")?;
    let text =
        |value: &'_ Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    if let Some(path) = text(address, "/pipe/path") {
        return Some(path);
    }
    if let Some(listener) = text(address, "/envoy_internal_address/server_listener_name") {
        let id = text(address, "/envoy_internal_address/endpoint_id").unwrap_or_default();
        return Some(format!("envoy://{listener}/{id}"));
    }
    let port = address.pointer("/socket_address/port_value").and_then(Value::as_u64).unwrap_or(0);
    let host = text(address, "/socket_address/address")?;
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, u16::try_from(port).ok()?).to_string()),
        Err(_) => Some(format!("{}:{port}", text(endpoint, "/hostname").unwrap_or(host))),
    }
}
