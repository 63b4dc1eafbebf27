//! Fields of outlier detection, a cluster for each: flags of hosts, statistics, and the event log.

use super::table::{answers, at, group, stats, Table};
use crate::differential::beside::Beside;
use crate::differential::observe::{Mask, Side};
use crate::harness::origin::{Answer, Then};
use crate::harness::{eventually, DEADLINE};

const NEVER_BACK: &str = "interval: 60s, base_ejection_time: 60s, max_ejection_percent: 100";
const SWEPT: &str = "interval: 0.5s, base_ejection_time: 60s, max_ejection_percent: 100, consecutive_5xx: 0, consecutive_local_origin_failure: 0";

/// Hosts of which nothing is to be said, as many as a cluster may have.
const GOOD: [&str; 4] = ["good", "well", "fine", "sound"];

/// A cluster: its options on top of those above, its hosts, how many requests it gets, and what is counted then.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], usize, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("in-a-row", NEVER_BACK, "consecutive_5xx: 2", &["bad", "good", "good"], 6, "ejections_enforced_consecutive_5xx"),
    ("not-enforced", NEVER_BACK, "consecutive_5xx: 2, enforcing_consecutive_5xx: 0", &["bad", "good"], 4, "ejections_detected_consecutive_5xx"),
    ("never", NEVER_BACK, "consecutive_5xx: 0", &["bad", "good"], 4, ""),
    ("gateway", NEVER_BACK, "consecutive_gateway_failure: 3, consecutive_5xx: 9, enforcing_consecutive_gateway_failure: 100", &["late", "good"], 6, "ejections_enforced_consecutive_gateway_failure"),
    ("gateway-default", NEVER_BACK, "consecutive_gateway_failure: 3, consecutive_5xx: 9", &["late", "good"], 6, "ejections_detected_consecutive_gateway_failure"),
    ("local", NEVER_BACK, "split_external_local_origin_errors: true, consecutive_5xx: 1, consecutive_local_origin_failure: 2", &["nobody", "good"], 4, "ejections_enforced_consecutive_local_origin_failure"),
    ("local-not-enforced", NEVER_BACK, "split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, enforcing_consecutive_local_origin_failure: 0", &["nobody", "good"], 4, "ejections_detected_consecutive_local_origin_failure"),
    ("local-together", NEVER_BACK, "consecutive_local_origin_failure: 1, consecutive_5xx: 3", &["nobody", "good"], 6, "ejections_enforced_consecutive_5xx"),
    ("too-many", "interval: 60s, max_ejection_percent: 33", "consecutive_5xx: 2", &["bad", "good", "good"], 6, "ejections_overflow"),
    ("just-enough", "interval: 60s, max_ejection_percent: 34", "consecutive_5xx: 2", &["bad", "good", "good"], 6, "ejections_enforced_total"),
    ("one-always", "interval: 60s, max_ejection_percent: 0", "consecutive_5xx: 2, always_eject_one_host: true", &["bad", "good", "good"], 6, "ejections_enforced_total"),
    ("rate", SWEPT, "success_rate_request_volume: 5, success_rate_stdev_factor: 1000, failure_percentage_minimum_hosts: 9", &["good", "good", "good", "good", "bad"], 50, "ejections_enforced_success_rate"),
    ("rate-not-enforced", SWEPT, "success_rate_request_volume: 5, success_rate_minimum_hosts: 3, success_rate_stdev_factor: 1000, enforcing_success_rate: 0, failure_percentage_minimum_hosts: 9", &["good", "good", "bad"], 30, "ejections_detected_success_rate"),
    ("rate-too-few", SWEPT, "success_rate_request_volume: 5, success_rate_minimum_hosts: 4, failure_percentage_minimum_hosts: 9", &["good", "good", "bad"], 30, ""),
    ("rate-too-far", SWEPT, "success_rate_request_volume: 5, success_rate_minimum_hosts: 3, success_rate_stdev_factor: 3000, failure_percentage_minimum_hosts: 9", &["good", "good", "bad"], 30, ""),
    ("rate-local", SWEPT, "split_external_local_origin_errors: true, success_rate_request_volume: 5, success_rate_minimum_hosts: 3, success_rate_stdev_factor: 500, failure_percentage_minimum_hosts: 9", &["good", "good", "nobody"], 30, "ejections_enforced_local_origin_success_rate"),
    ("rate-local-not-enforced", SWEPT, "split_external_local_origin_errors: true, enforcing_local_origin_success_rate: 0, success_rate_request_volume: 5, success_rate_minimum_hosts: 3, success_rate_stdev_factor: 500, failure_percentage_minimum_hosts: 9", &["good", "good", "nobody"], 30, "ejections_detected_local_origin_success_rate"),
    ("share", SWEPT, "failure_percentage_request_volume: 5, failure_percentage_minimum_hosts: 2, failure_percentage_threshold: 100, enforcing_failure_percentage: 100, success_rate_minimum_hosts: 9", &["good", "bad"], 30, "ejections_enforced_failure_percentage"),
    ("share-default", SWEPT, "failure_percentage_request_volume: 5, failure_percentage_minimum_hosts: 2, success_rate_minimum_hosts: 9", &["good", "bad"], 30, "ejections_detected_failure_percentage"),
    ("share-local", SWEPT, "split_external_local_origin_errors: true, failure_percentage_request_volume: 5, failure_percentage_minimum_hosts: 2, enforcing_failure_percentage_local_origin: 100, success_rate_minimum_hosts: 9", &["good", "nobody"], 30, "ejections_enforced_local_origin_failure_percentage"),
    ("degraded", NEVER_BACK, "detect_degraded_hosts: true", &["tired", "good"], 4, "ejections_detected_degradation"),
    ("degraded-unheard", NEVER_BACK, "detect_degraded_hosts: false", &["tired", "good"], 4, ""),
    // A failure is one, whatever else it says.
    ("degraded-and-failed", NEVER_BACK, "detect_degraded_hosts: true, consecutive_5xx: 2", &["tired-and-bad", "good"], 4, "ejections_enforced_consecutive_5xx"),
    ("degraded-apart", NEVER_BACK, "detect_degraded_hosts: true, split_external_local_origin_errors: true, enforcing_consecutive_5xx: 0, consecutive_5xx: 2", &["tired-and-bad", "good"], 4, "ejections_detected_consecutive_5xx"),
    ("degraded-and-missing", NEVER_BACK, "detect_degraded_hosts: true", &["tired-and-missing", "good"], 4, "ejections_detected_degradation"),
    ("reset", NEVER_BACK, "split_external_local_origin_errors: true, consecutive_5xx: 1, consecutive_local_origin_failure: 2", &["resets", "good"], 4, ""),
];

fn table() -> Table {
    let head = |status: &str| {
        Answer::raw(format!("HTTP/1.1 {status}\r\nx-envoy-degraded: 1\r\ncontent-length: 0\r\n\r\n"))
    };
    let table = Table::default()
        .named(&GOOD)
        .origin("bad", Answer::status(500, "X", "bad"))
        .origin("late", Answer::status(504, "X", "late"))
        .origin("tired", head("200 OK"))
        .origin("tired-and-bad", head("503 X"))
        .origin("tired-and-missing", head("404 X"))
        .origin("resets", Answer::raw("").then(Then::Reset))
        .more("cluster_manager: { outlier_detection: { event_log_path: \"@dir@/outliers.log\" } }");
    ROWS.iter().fold(table, |table, (name, usual, options, hosts, ..)| {
        let mut good = GOOD.iter();
        let hosts = hosts.iter().map(|host| match *host {
            "good" => at(good.next().expect("another good one"), ""),
            other => at(other, ""),
        });
        let hosts: Vec<_> = hosts.collect();
        let options = format!(
            "common_lb_config: {{ update_merge_window: 0s }}\noutlier_detection: {{ {usual}, {options} }}"
        );
        table.cluster(name, &options, &[group("", &hosts)])
    })
}

/// What became of the hosts.
async fn outcome(side: &Side) -> [Vec<String>; 3] {
    for (name, _, _, _, count, counter) in ROWS {
        answers(side, &format!("/{name}"), *count).await;
        if !counter.is_empty() {
            let name = format!("cluster.{name}.outlier_detection.{counter}");
            let counted = || async { side.proxy.stats().await.get(&name).is_some_and(|value| *value > 0) };
            assert!(eventually(DEADLINE, counted).await, "{:?}: no {name}", side.proxy.kind());
        }
    }
    let mask = Mask::new(side, 0);
    let page = mask.text(&side.proxy.admin("/clusters").await);
    let flags = page.lines().filter(|line| line.contains("health_flags")).map(str::to_owned).collect();
    // Whatever is detected is logged, but for what a cap keeps in.
    let logged = ROWS.iter().filter(|(.., counter)| !matches!(*counter, "" | "ejections_overflow")).count();
    let lines = || side.proxy.lines("outliers.log", 0);
    assert!(
        eventually(DEADLINE, || async { lines().len() >= logged }).await,
        "{:?}: {:?}",
        side.proxy.kind(),
        lines()
    );
    let event = |line: String| {
        let mut event: serde_json::Value = serde_json::from_str(&mask.text(&line)).expect("an event");
        event["timestamp"].take();
        event.to_string()
    };
    let events = lines().into_iter().map(event).collect();
    [stats(side, &["outlier_detection.", "membership_"]).await, flags, events]
}

#[tokio::test]
async fn each_field() {
    let Some([envoy, ours]) = table().sides().await else { return };
    let (theirs, mine) = tokio::join!(outcome(&envoy), outcome(&ours));
    let mut beside = Beside::default();
    for (what, (theirs, mine)) in ["statistics", "flags", "events"].iter().zip(theirs.iter().zip(&mine)) {
        beside.lines(what, theirs, mine);
    }
    beside.end();
}
