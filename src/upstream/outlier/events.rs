//! Lines of the event log: `envoy.data.cluster.v3.OutlierDetectionEvent` as JSON, fields as Envoy writes them.

use std::time::SystemTime;

use serde_json::{json, Map, Value};

use super::{Action, Event, Kind};
use crate::telemetry::access_log::json_time;

/// The line for `event` of the cluster `cluster`, its end included; `None` for what Envoy does not log.
pub(super) fn line(cluster: &str, event: &Event, now: SystemTime) -> Option<String> {
    let (action, enforced) = match event.action {
        Action::Ejected | Action::Degraded => ("EJECT", true),
        Action::NotEnforced => ("EJECT", false),
        Action::Returned | Action::Restored => ("UNEJECT", false),
        Action::Capped { .. } => return None,
    };
    let mut line = Map::new();
    line.insert("type".into(), event.kind.name().into());
    line.insert("timestamp".into(), json_time(now).into());
    if let Some(since) = event.since {
        // 64-bit numbers are texts in protobuf's JSON.
        line.insert("secs_since_last_action".into(), since.as_secs().to_string().into());
    }
    line.insert("cluster_name".into(), cluster.into());
    line.insert("upstream_url".into(), event.host.address_text.as_ref().into());
    line.insert("action".into(), action.into());
    line.insert("num_ejections".into(), event.ejections.into());
    line.insert("enforced".into(), enforced.into());
    if action == "EJECT" {
        let (name, details) = details(event);
        line.insert(name.into(), details);
    }
    let mut line = Value::from(line).to_string();
    line.push('\n');
    Some(line)
}

fn details(event: &Event) -> (&'static str, Value) {
    // Cut off, as the numbers of the message are whole; a rate that is not there counts as nothing.
    let whole = |rate: f64| rate.clamp(0.0, 100.0) as u32;
    match event.kind {
        Kind::SuccessRate | Kind::SuccessRateLocalOrigin => (
            "eject_success_rate_event",
            json!({
                "host_success_rate": whole(event.rate),
                "cluster_average_success_rate": whole(event.cluster.average),
                "cluster_success_rate_ejection_threshold": whole(event.cluster.threshold),
            }),
        ),
        Kind::FailurePercentage | Kind::FailurePercentageLocalOrigin => {
            ("eject_failure_percentage_event", json!({ "host_success_rate": whole(event.rate) }))
        }
        _ => ("eject_consecutive_event", json!({})),
    }
}
