//! `/clusters` and `/listeners`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{json, Map, Value};

use super::{AdminState, Answer, Params};
use crate::config::cluster::{Address, Cluster, Discovery, Health, HealthFlags};
use crate::config::Host;

pub(super) fn clusters(state: &AdminState, params: &Params) -> Answer {
    let filter = match params.regex("filter") {
        Ok(filter) => filter,
        Err(answer) => return answer,
    };
    let clusters = state
        .clusters
        .all()
        .into_iter()
        .filter(|slot| filter.as_ref().is_none_or(|filter| filter.is_match(slot.name())))
        .filter_map(|slot| slot.peek());
    if params.get("format") == Some("json") {
        let statuses: Vec<Value> = clusters.map(|cluster| cluster_json(&cluster)).collect();
        return Answer::json(&json!({ "cluster_statuses": statuses }));
    }
    let mut out = String::new();
    for cluster in clusters {
        // Writing to a String cannot fail.
        let _ = cluster_text(&cluster, &mut out);
    }
    Answer::text(out)
}

fn cluster_text(cluster: &Cluster, out: &mut String) -> std::fmt::Result {
    let name = one_line(&cluster.name);
    writeln!(out, "{name}::observability_name::{}", one_line(&cluster.stat_name))?;
    if let Discovery::Eds { service_name, .. } = &cluster.discovery {
        writeln!(out, "{name}::eds_service_name::{}", one_line(service_name))?;
    }
    for (priority, breakers) in ["default", "high"].iter().zip(&cluster.breakers) {
        writeln!(out, "{name}::{priority}_priority::max_connections::{}", breakers.connections.max())?;
        writeln!(out, "{name}::{priority}_priority::max_pending_requests::{}", breakers.pending.max())?;
        writeln!(out, "{name}::{priority}_priority::max_requests::{}", breakers.requests.max())?;
        writeln!(out, "{name}::{priority}_priority::max_retries::{}", breakers.retries.max())?;
    }
    writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api)?;
    for host in &cluster.hosts.load().all {
        let prefix = format!("{name}::{}", one_line(&host.address_text));
        for (stat, value, _) in host_stats(host) {
            writeln!(out, "{prefix}::{stat}::{value}")?;
        }
        let template = &host.template;
        let locality = &template.locality;
        let flags = match host.health() {
            Health::Healthy => "healthy",
            Health::Degraded => "/degraded_eds_health",
            Health::Unhealthy => "/failed_eds_health",
        };
        writeln!(out, "{prefix}::hostname::{}", one_line(&template.hostname))?;
        writeln!(out, "{prefix}::health_flags::{flags}")?;
        if host.shared.health.has(HealthFlags::SUSPECT) {
            // No line of Envoy's: picks pass it over.
            writeln!(out, "{prefix}::suspect::true")?;
        }
        writeln!(out, "{prefix}::weight::{}", template.weight)?;
        writeln!(out, "{prefix}::region::{}", one_line(&locality.region))?;
        writeln!(out, "{prefix}::zone::{}", one_line(&locality.zone))?;
        writeln!(out, "{prefix}::sub_zone::{}", one_line(&locality.sub_zone))?;
        writeln!(out, "{prefix}::canary::false")?;
        writeln!(out, "{prefix}::priority::{}", template.priority)?;
        // Outlier detection has no rates to show: Envoy's value for that.
        writeln!(out, "{prefix}::success_rate::-1")?;
        writeln!(out, "{prefix}::local_origin_success_rate::-1")?;
    }
    Ok(())
}

fn cluster_json(cluster: &Cluster) -> Value {
    let hosts: Vec<Value> = cluster.hosts.load().all.iter().map(|host| host_json(host)).collect();
    let thresholds: Vec<Value> = ["DEFAULT", "HIGH"]
        .iter()
        .zip(&cluster.breakers)
        .map(|(priority, breakers)| {
            let mut shown = Map::new();
            // A field with its default value is left out.
            if *priority != "DEFAULT" {
                shown.insert("priority".into(), (*priority).into());
            }
            shown.insert("max_connections".into(), breakers.connections.max().into());
            shown.insert("max_pending_requests".into(), breakers.pending.max().into());
            shown.insert("max_requests".into(), breakers.requests.max().into());
            shown.insert("max_retries".into(), breakers.retries.max().into());
            shown.into()
        })
        .collect();
    let mut shown = Map::new();
    shown.insert("name".into(), cluster.name.as_ref().into());
    if cluster.added_via_api {
        shown.insert("added_via_api".into(), true.into());
    }
    if !hosts.is_empty() {
        shown.insert("host_statuses".into(), hosts.into());
    }
    shown.insert("circuit_breakers".into(), json!({ "thresholds": thresholds }));
    shown.insert("observability_name".into(), cluster.stat_name.as_ref().into());
    if let Discovery::Eds { service_name, .. } = &cluster.discovery {
        shown.insert("eds_service_name".into(), service_name.as_ref().into());
    }
    shown.into()
}

fn host_json(host: &Host) -> Value {
    let stats = host_stats(host).map(|(name, value, is_gauge)| {
        let mut stat = Map::new();
        if is_gauge {
            stat.insert("type".into(), "GAUGE".into());
        }
        if value != 0 {
            stat.insert("value".into(), value.to_string().into());
        }
        stat.insert("name".into(), name.into());
        Value::from(stat)
    });
    let template = &host.template;
    let health = match host.health() {
        Health::Healthy => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Unhealthy => "UNHEALTHY",
    };
    let mut locality = Map::new();
    for (name, value) in [
        ("region", &template.locality.region),
        ("zone", &template.locality.zone),
        ("sub_zone", &template.locality.sub_zone),
    ] {
        if !value.is_empty() {
            locality.insert(name.into(), value.as_ref().into());
        }
    }
    let mut shown = Map::new();
    shown.insert("address".into(), address_json(&host.address));
    shown.insert("stats".into(), Value::Array(stats.into()));
    shown.insert("health_status".into(), json!({ "eds_health_status": health }));
    shown.insert("weight".into(), template.weight.into());
    if !template.hostname.is_empty() {
        shown.insert("hostname".into(), template.hostname.as_ref().into());
    }
    if template.priority != 0 {
        shown.insert("priority".into(), template.priority.into());
    }
    shown.insert("locality".into(), locality.into());
    shown.into()
}

/// Name, value, whether it is a gauge; sorted by name. Requests wait for a connection per cluster
/// here, not per host, hence the constant.
fn host_stats(host: &Host) -> [(&'static str, u64, bool); 9] {
    let counter = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &host.shared.counters;
    [
        ("cx_active", host.shared.active_connections.load(Ordering::Relaxed).into(), true),
        ("cx_connect_fail", counter(&counters.cx_connect_fail), false),
        ("cx_total", counter(&counters.cx_total), false),
        ("rq_active", host.shared.active_requests.load(Ordering::Relaxed).into(), true),
        ("rq_error", counter(&counters.rq_error), false),
        ("rq_pending_active", 0, true),
        ("rq_success", counter(&counters.rq_success), false),
        ("rq_timeout", counter(&counters.rq_timeout), false),
        ("rq_total", counter(&counters.rq_total), false),
    ]
}

pub(super) fn listeners(state: &AdminState, params: &Params) -> Answer {
    let listeners = state.listeners.load();
    if params.get("format") == Some("json") {
        let statuses: Vec<Value> = listeners
            .iter()
            .map(|listener| {
                let mut shown = Map::new();
                shown.insert("name".into(), listener.name.as_ref().into());
                let mut addresses = listener.addresses.iter().map(address_json);
                if let Some(first) = addresses.next() {
                    shown.insert("local_address".into(), first);
                }
                let more: Vec<Value> = addresses.collect();
                if !more.is_empty() {
                    shown.insert("additional_local_addresses".into(), more.into());
                }
                shown.into()
            })
            .collect();
        return Answer::json(&json!({ "listener_statuses": statuses }));
    }
    let mut out = String::new();
    for listener in listeners.iter() {
        for address in &listener.addresses {
            let _ = writeln!(out, "{}::{}", one_line(&listener.name), one_line(&address.to_string()));
        }
    }
    Answer::text(out)
}

fn address_json(address: &Address) -> Value {
    match address {
        Address::Ip(address) => {
            json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
        }
        Address::Pipe(path) => json!({"pipe": {"path": path.to_string_lossy()}}),
    }
}

/// Names come from a control plane: a line break in one must not make a line.
fn one_line(text: &str) -> std::borrow::Cow<'_, str> {
    if text.chars().any(char::is_control) {
        text.replace(char::is_control, "_").into()
    } else {
        text.into()
    }
}
