use std::time::{Duration, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram};

use super::*;
use crate::telemetry::metrics::{snapshot, Scope, Unit};

/// A scope of this test alone, and what is in it.
fn series(name: &'static str) -> (Scope, Counter, Gauge, Histogram) {
    let scope = Scope::cluster(name);
    let (count, open) = (scope.counter("upstream_rq_200"), scope.gauge("upstream_cx_active"));
    let took = scope.histogram("upstream_rq_time", Unit::Milliseconds);
    (scope, count, open, took)
}

fn own(name: &str) -> Snapshot {
    let prefix = format!("cluster.{name}.");
    Snapshot(snapshot().0.into_iter().filter(|sample| sample.name.starts_with(&prefix)).collect())
}

#[test]
fn counters_are_told_by_what_has_come() {
    let (_scope, count, open, took) = series("sinks_deltas");
    let statsd = Statsd { prefix: "envoy".into(), tagged: false, most: 0 };
    let mut before = Before::new(UNIX_EPOCH);
    assert_eq!(
        datagrams(&statsd, &before.advance(&own("sinks_deltas"))),
        Vec::<String>::new(),
        "never written"
    );
    count.increment(3);
    open.set(2.0);
    for value in [5.0, 5.0, 700.0] {
        took.record(value);
    }
    let lines = datagrams(&statsd, &before.advance(&own("sinks_deltas")));
    let expected = [
        "envoy.cluster.sinks_deltas.upstream_cx_active:2|g",
        "envoy.cluster.sinks_deltas.upstream_rq_200:3|c",
        "envoy.cluster.sinks_deltas.upstream_rq_time:5.05|ms|@0.5",
        "envoy.cluster.sinks_deltas.upstream_rq_time:705|ms",
    ];
    assert_eq!(lines, expected);
    count.increment(1);
    took.record(700.0);
    let lines = datagrams(&statsd, &before.advance(&own("sinks_deltas")));
    assert_eq!(
        lines[1..],
        [
            "envoy.cluster.sinks_deltas.upstream_rq_200:1|c",
            "envoy.cluster.sinks_deltas.upstream_rq_time:705|ms"
        ]
    );
}

#[test]
fn tags_leave_the_name_and_lines_share_datagrams() {
    let (_scope, count, open, _took) = series("sinks_tags");
    count.increment(1);
    open.set(1.0);
    let mut before = Before::new(UNIX_EPOCH);
    let snapshot = own("sinks_tags");
    let told = before.advance(&snapshot);
    let statsd = |most| Statsd { prefix: "mine".into(), tagged: true, most };
    let lines = [
        "mine.cluster.upstream_cx_active:1|g|#envoy.cluster_name:sinks_tags",
        "mine.cluster.upstream_rq:1|c|#envoy.response_code:200,envoy.cluster_name:sinks_tags",
    ];
    assert_eq!(datagrams(&statsd(0), &told), lines);
    assert_eq!(datagrams(&statsd(1000), &told), [lines.join("\n")]);
    assert_eq!(datagrams(&statsd(100), &told), lines, "together they are too long");
}

#[test]
fn metrics_go_in_batches_and_only_the_first_is_named() {
    let (_scope, count, _open, took) = series("sinks_batches");
    count.increment(1);
    took.record(1.0);
    let snapshot = own("sinks_batches");
    let told = Before::new(UNIX_EPOCH).advance(&snapshot);
    let options = MetricsService { deltas: false, labels: true, summaries: true, histograms: true, batch: 2 };
    let families = families(&options, &told, UNIX_EPOCH + Duration::from_secs(1));
    assert_eq!(families.len(), 3, "a counter, and a histogram twice");
    let sizes: Vec<_> = messages(&options, &families, true).iter().map(Vec::len).collect();
    assert_eq!(sizes.len(), 2);
    let unnamed: Vec<_> = messages(&options, &families, false).iter().map(Vec::len).collect();
    assert!(unnamed[0] < sizes[0] && unnamed[1] == sizes[1], "{unnamed:?} {sizes:?}");
}
