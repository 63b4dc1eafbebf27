//! `/clusters` and `/listeners`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{json, Map, Value};

use super::{AdminState, Answer, Params};
use crate::config::cluster::{Address, Cluster, Discovery, HealthFlags, HealthStatus};
use crate::config::Host;
use crate::upstream::outlier::{Origin, OutlierDetection, Rates};

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
    if let Some(outlier) = outlier(cluster) {
        for (origin, prefix) in [(Origin::External, ""), (Origin::Local, "local_origin_")] {
            let Rates { average, threshold } = outlier.rates(origin);
            writeln!(out, "{name}::outlier::{prefix}success_rate_average::{}", general(average))?;
            writeln!(
                out,
                "{name}::outlier::{prefix}success_rate_ejection_threshold::{}",
                general(threshold)
            )?;
        }
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
        writeln!(out, "{prefix}::hostname::{}", one_line(&template.hostname))?;
        writeln!(out, "{prefix}::health_flags::{}", health_flags(host))?;
        if host.shared.health.has(HealthFlags::SUSPECT) {
            // No line of Envoy's: picks pass it over.
            writeln!(out, "{prefix}::suspect::true")?;
        }
        writeln!(out, "{prefix}::weight::{}", host.weight_by_load())?;
        writeln!(out, "{prefix}::region::{}", one_line(&locality.region))?;
        writeln!(out, "{prefix}::zone::{}", one_line(&locality.zone))?;
        writeln!(out, "{prefix}::sub_zone::{}", one_line(&locality.sub_zone))?;
        writeln!(out, "{prefix}::canary::false")?;
        writeln!(out, "{prefix}::priority::{}", template.priority)?;
        writeln!(out, "{prefix}::success_rate::{}", rate(host, Origin::External))?;
        writeln!(out, "{prefix}::local_origin_success_rate::{}", rate(host, Origin::Local))?;
    }
    Ok(())
}

fn outlier(cluster: &Cluster) -> Option<&OutlierDetection> {
    cluster.health.as_ref()?.outlier.as_ref()
}

/// A host's success rate in the last interval, in percent; -1 where there is none.
fn rate(host: &Host, origin: Origin) -> f64 {
    host.shared.outlier.get().map_or(-1.0, |monitor| monitor.rate(origin))
}

/// A number with six significant digits at most, as C's `%g` writes it.
fn general(number: f64) -> String {
    let exponent = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    // Percentages are far from where `%g` begins to write exponents.
    let decimals = usize::try_from(5 - exponent).unwrap_or(0).min(12);
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The flags of a host in Envoy's words and order, `healthy` without any.
fn health_flags(host: &Host) -> String {
    let flags = &host.shared.health;
    let eds = host.template.status;
    let all = [
        (flags.has(HealthFlags::FAILED_ACTIVE_HC), "/failed_active_hc"),
        (flags.has(HealthFlags::FAILED_OUTLIER_CHECK), "/failed_outlier_check"),
        (matches!(eds, HealthStatus::Unhealthy | HealthStatus::Timeout), "/failed_eds_health"),
        (flags.has(HealthFlags::DEGRADED_ACTIVE_HC), "/degraded_active_hc"),
        (eds == HealthStatus::Degraded, "/degraded_eds_health"),
        (flags.has(HealthFlags::PENDING_DYNAMIC_REMOVAL), "/pending_dynamic_removal"),
        (flags.has(HealthFlags::PENDING_ACTIVE_HC), "/pending_active_hc"),
        (flags.has(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL), "/excluded_via_immediate_hc_fail"),
        (flags.has(HealthFlags::ACTIVE_HC_TIMEOUT), "/active_hc_timeout"),
        (eds == HealthStatus::Draining, "/eds_status_draining"),
        (flags.has(HealthFlags::DEGRADED_OUTLIER_DETECTION), "/degraded_outlier_detection"),
    ];
    let text: String = all.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if text.is_empty() {
        "healthy".to_owned()
    } else {
        text
    }
}

/// `HostHealthStatus`; what is false is left out.
fn health_status(host: &Host) -> Value {
    let flag = |flag: u16| host.shared.health.has(flag).then_some(Value::Bool(true));
    let eds = match host.template.status {
        HealthStatus::Unknown | HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Draining => "DRAINING",
        HealthStatus::Unhealthy | HealthStatus::Timeout => "UNHEALTHY",
    };
    let fields = [
        ("failed_active_health_check", flag(HealthFlags::FAILED_ACTIVE_HC)),
        ("failed_outlier_check", flag(HealthFlags::FAILED_OUTLIER_CHECK)),
        ("eds_health_status", Some(eds.into())),
        ("failed_active_degraded_check", flag(HealthFlags::DEGRADED_ACTIVE_HC)),
        ("pending_dynamic_removal", flag(HealthFlags::PENDING_DYNAMIC_REMOVAL)),
        ("pending_active_hc", flag(HealthFlags::PENDING_ACTIVE_HC)),
        ("excluded_via_immediate_hc_fail", flag(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL)),
        ("active_hc_timeout", flag(HealthFlags::ACTIVE_HC_TIMEOUT)),
        ("failed_degraded_outlier_detection", flag(HealthFlags::DEGRADED_OUTLIER_DETECTION)),
    ];
    let set = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(set.collect())
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
    let thresholds_of = |origin: Origin| outlier(cluster).map(|outlier| outlier.rates(origin).threshold);
    let threshold = |origin: Origin| thresholds_of(origin).filter(|threshold| *threshold > 0.0);
    if let Some(threshold) = threshold(Origin::External) {
        shown.insert("success_rate_ejection_threshold".into(), json!({ "value": threshold }));
    }
    if !hosts.is_empty() {
        shown.insert("host_statuses".into(), hosts.into());
    }
    if let Some(threshold) = threshold(Origin::Local) {
        shown.insert("local_origin_success_rate_ejection_threshold".into(), json!({ "value": threshold }));
    }
    shown.insert("circuit_breakers".into(), json!({ "thresholds": thresholds }));
    shown.insert("observability_name".into(), cluster.stat_name.as_ref().into());
    if let Discovery::Eds { service_name, .. } = &cluster.discovery {
        shown.insert("eds_service_name".into(), service_name.as_ref().into());
    }
    shown.into()
}

fn host_json(host: &Host) -> Value {
    // Counters first, gauges after them.
    let (gauges, counters): (Vec<_>, Vec<_>) = host_stats(host).into_iter().partition(|(_, _, gauge)| *gauge);
    let stats = counters.into_iter().chain(gauges).map(|(name, value, is_gauge)| {
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
    shown.insert("stats".into(), Value::Array(stats.collect()));
    shown.insert("health_status".into(), health_status(host));
    if rate(host, Origin::External) >= 0.0 {
        shown.insert("success_rate".into(), json!({ "value": rate(host, Origin::External) }));
    }
    shown.insert("weight".into(), host.weight_by_load().into());
    if !template.hostname.is_empty() {
        shown.insert("hostname".into(), template.hostname.as_ref().into());
    }
    if template.priority != 0 {
        shown.insert("priority".into(), template.priority.into());
    }
    if rate(host, Origin::Local) >= 0.0 {
        shown.insert("local_origin_success_rate".into(), json!({ "value": rate(host, Origin::Local) }));
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

/// `envoy.config.core.v3.Address`.
pub(super) fn address_json(address: &Address) -> Value {
    match address {
        Address::Ip(address) => {
            json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
        }
        Address::Pipe(path) => json!({"pipe": {"path": path.to_string_lossy()}}),
        Address::Internal(internal) => json!({ "envoy_internal_address": {
            "server_listener_name": &*internal.listener, "endpoint_id": &*internal.endpoint_id,
        }}),
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
