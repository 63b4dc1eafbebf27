//! Lines of the event log: `envoy.data.core.v3.HealthCheckEvent` as JSON, fields as Envoy writes them.

use std::time::SystemTime;

use serde_json::{json, Map, Value};

use super::options::Options;
use super::session::Note;
use crate::config::cluster::Address;
use crate::config::{Cluster, Host};
use crate::telemetry::access_log::json_time;

/// Logs what was found out about `host`.
pub(super) fn log(options: &Options, cluster: &Cluster, host: &Host, notes: &[Note]) {
    if options.logs.is_empty() {
        return;
    }
    let now = SystemTime::now();
    for note in notes {
        let line = line(options.probe.name(), cluster, host, *note, now);
        for file in &options.logs {
            file.append(line.as_bytes());
        }
    }
}

fn line(checker: &str, cluster: &Cluster, host: &Host, note: Note, now: SystemTime) -> String {
    let mut line = Map::new();
    line.insert("health_checker_type".into(), checker.into());
    line.insert("host".into(), address(&host.address));
    line.insert("cluster_name".into(), cluster.name.as_ref().into());
    let (name, content) = match note {
        Note::EjectUnhealthy(failure) => (
            "eject_unhealthy_event",
            json!({ "failure_type": failure.name(), "http_status_code": failure.status() }),
        ),
        Note::AddHealthy { first } => ("add_healthy_event", json!({ "first_check": first })),
        Note::Failed { failure, first } => (
            "health_check_failure_event",
            json!({
                "failure_type": failure.name(),
                "first_check": first,
                "http_status_code": failure.status(),
            }),
        ),
        Note::Degraded => ("degraded_healthy_host", json!({})),
        Note::NoLongerDegraded => ("no_longer_degraded_host", json!({})),
        Note::Succeeded => ("successful_health_check_event", json!({})),
    };
    // In the order of the fields' numbers.
    let early = matches!(note, Note::EjectUnhealthy(_) | Note::AddHealthy { .. });
    let time = json_time(now);
    if early {
        line.insert(name.into(), content);
        line.insert("timestamp".into(), time.into());
    } else {
        line.insert("timestamp".into(), time.into());
        if note != Note::Succeeded {
            line.insert(name.into(), content.clone());
        }
    }
    let locality = &host.template.locality;
    line.insert(
        "locality".into(),
        json!({ "region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone }),
    );
    if note == Note::Succeeded {
        line.insert(name.into(), json!({}));
    }
    let mut line = Value::from(line).to_string();
    line.push('\n');
    line
}

fn address(address: &Address) -> Value {
    match address {
        Address::Ip(ip) => json!({ "socket_address": {
            "protocol": "TCP",
            "address": ip.ip().to_string(),
            "port_value": ip.port(),
            "resolver_name": "",
            "ipv4_compat": false,
            "network_namespace_filepath": "",
        }}),
        Address::Pipe(path) => json!({ "pipe": { "path": path.to_string_lossy(), "mode": 0 } }),
        Address::Internal(internal) => json!({ "envoy_internal_address": {
            "server_listener_name": &*internal.listener, "endpoint_id": &*internal.endpoint_id,
        }}),
    }
}
