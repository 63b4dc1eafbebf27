//! Loads on the status page: of each client the last report, by cluster and locality.

use std::fmt::Write as _;

use serde_json::{json, Value};

use super::page::{escape, list, rows, seconds};
use crate::pb::envoy::config::core::v3::Locality;
use crate::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use crate::server::LatestLoads;

/// One client, for `/status.json`.
pub(super) fn loads(latest: &LatestLoads) -> Value {
    json!({
        "stream": latest.stream, "id": latest.node.id, "cluster": latest.node.cluster,
        "since": seconds(latest.since), "at": latest.at.map(seconds), "reports": latest.reports,
        "clusters": latest.clusters.iter().map(cluster).collect::<Vec<_>>(),
    })
}

fn cluster(stats: &ClusterStats) -> Value {
    let passed = stats.load_report_interval.as_ref();
    let passed = passed.map(|passed| passed.seconds as f64 + f64::from(passed.nanos) / 1e9);
    json!({
        "name": stats.cluster_name, "service": stats.cluster_service_name, "seconds": passed,
        "dropped": stats.total_dropped_requests,
        "localities": stats.upstream_locality_stats.iter().map(locality).collect::<Vec<_>>(),
    })
}

fn locality(stats: &UpstreamLocalityStats) -> Value {
    let unnamed = Locality::default();
    let Locality { region, zone, sub_zone } = stats.locality.as_ref().unwrap_or(&unnamed);
    json!({
        "region": region, "zone": zone, "sub_zone": sub_zone, "priority": stats.priority,
        "issued": stats.total_issued_requests, "succeeded": stats.total_successful_requests,
        "failed": stats.total_error_requests, "in_progress": stats.total_requests_in_progress,
    })
}

/// All clients, for people. Clusters without load are left out.
pub(super) fn html(page: &mut String, clients: &[Value]) {
    if clients.is_empty() {
        return;
    }
    page.push_str("<h2>Loads</h2>");
    for client in clients {
        let text = |field: &str| escape(client[field].as_str().unwrap_or_default());
        let _ = write!(
            page,
            "<h3>{} <small>(cluster {}, {} reports)</small></h3>",
            text("id"),
            text("cluster"),
            client["reports"]
        );
        let lines = list(&client["clusters"]).iter().flat_map(lines).collect::<Vec<_>>();
        if lines.is_empty() {
            page.push_str("<p>No requests in the last report.</p>");
        }
        let heads = [
            "cluster",
            "locality",
            "priority",
            "requests/s",
            "succeeded",
            "failed",
            "in progress",
            "dropped",
        ];
        rows(page, &heads, &lines, |line| {
            list(line).iter().map(|cell| escape(cell.as_str().unwrap_or_default())).collect()
        });
    }
}

/// The lines of one cluster: one for each locality, or one for what was dropped alone.
fn lines(cluster: &Value) -> Vec<Value> {
    let seconds = cluster["seconds"].as_f64().filter(|seconds| *seconds > 0.0);
    let name = cluster["name"].as_str().unwrap_or_default();
    let mut dropped = cluster["dropped"].to_string();
    let localities = list(&cluster["localities"]);
    if localities.is_empty() && dropped != "0" {
        return vec![json!([name, "", "", "", "", "", "", dropped])];
    }
    let line = |locality: &Value| {
        let names = ["region", "zone", "sub_zone"].map(|field| locality[field].as_str().unwrap_or_default());
        let rate = locality["issued"].as_f64().zip(seconds).map(|(issued, seconds)| issued / seconds);
        let number = |field: &str| locality[field].to_string();
        json!([
            name,
            names.join("/").trim_end_matches('/'),
            number("priority"),
            rate.map_or(String::new(), |rate| format!("{rate:.1}")),
            number("succeeded"),
            number("failed"),
            number("in_progress"),
            // Of the cluster, not of a locality.
            std::mem::take(&mut dropped),
        ])
    };
    localities.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_locality_with_its_rate_and_none_for_what_is_idle() {
        let cluster = |name: &str, localities: Value, dropped: u64| json!({"name": name, "service": "", "seconds": 2.0, "dropped": dropped, "localities": localities});
        let locality = |zone: &str, issued: u64| {
            json!({"region": "r", "zone": zone, "sub_zone": "", "priority": 0, "issued": issued,
                "succeeded": issued, "failed": 0, "in_progress": 1})
        };
        let clusters = [
            cluster("<b>", json!([locality("1", 10), locality("2", 5)]), 3),
            cluster("idle", json!([]), 0),
            cluster("dropping", json!([]), 4),
        ];
        let client = json!({"id": "n", "cluster": "c", "reports": 2, "clusters": clusters});
        let mut page = String::new();
        html(&mut page, &[client]);
        assert!(page.contains("<td>&lt;b&gt;<td>r/1<td>0<td>5.0<td>10<td>0<td>1<td>3"), "{page}");
        assert!(page.contains("<td>&lt;b&gt;<td>r/2<td>0<td>2.5<td>5<td>0<td>1<td>"), "{page}");
        assert!(page.contains("<td>dropping<td><td><td><td><td><td><td>4"), "{page}");
        assert!(!page.contains("idle"), "{page}");
    }
}
