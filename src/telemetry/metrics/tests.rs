use regex::Regex;

use super::render::general;
use super::*;

fn only(filter: &str) -> Query {
    Query { filter: Some(Regex::new(filter).unwrap()), ..Query::default() }
}

#[test]
fn names_are_envoys_and_prometheus_gets_tags() {
    let cluster = Scope::cluster("names|a.b:80");
    let handles = [
        cluster.counter("upstream_rq_total"),
        cluster.counter("upstream_rq_200"),
        cluster.counter("upstream_rq_2xx"),
        cluster.sub("circuit_breakers.default").counter("odd-name"),
        Scope::listener("names_127.0.0.1:80").counter("downstream_cx_total"),
        Scope::listener("names_[::1]:80").worker(3).counter("downstream_cx_total"),
        Scope::listener("names_x")
            .tagged("http", "envoy_http_conn_manager_prefix", "p")
            .counter("downstream_rq_5xx"),
        Scope::http_route("names_p", "r.1").counter("update_success"),
        Scope::raw("names_plain").counter("total"),
    ];
    for (value, handle) in (1..).zip(&handles) {
        handle.increment(value);
    }
    let names: Vec<String> =
        snapshot().0.into_iter().map(|sample| sample.name).filter(|name| name.contains("names")).collect();
    assert_eq!(
        names,
        [
            "cluster.names|a.b_80.circuit_breakers.default.odd-name",
            "cluster.names|a.b_80.upstream_rq_200",
            "cluster.names|a.b_80.upstream_rq_2xx",
            "cluster.names|a.b_80.upstream_rq_total",
            "http.names_p.rds.r.1.update_success",
            "listener.names_127.0.0.1_80.downstream_cx_total",
            "listener.names_[__1]_80.worker_3.downstream_cx_total",
            "listener.names_x.http.p.downstream_rq_5xx",
            "names_plain.total",
        ]
    );
    let lines = prometheus(&snapshot(), &only("names"));
    for want in [
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"names|a.b_80\"} 1",
        "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"names|a.b_80\"} 2",
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"names|a.b_80\"} 3",
        "envoy_cluster_circuit_breakers_default_odd_name{envoy_cluster_name=\"names|a.b_80\"} 4",
        "envoy_listener_downstream_cx_total{envoy_listener_address=\"names_127.0.0.1_80\"} 5",
        "envoy_listener_worker_downstream_cx_total{envoy_worker_id=\"3\",envoy_listener_address=\"names_[__1]_80\"} 6",
        "envoy_listener_http_downstream_rq_xx{envoy_response_code_class=\"5\",envoy_http_conn_manager_prefix=\"p\",\
         envoy_listener_address=\"names_x\"} 7",
        "envoy_http_rds_update_success{envoy_rds_route_config=\"r.1\",envoy_http_conn_manager_prefix=\"names_p\"} 8",
        "envoy_names_plain_total{} 9",
        "# TYPE envoy_cluster_upstream_rq_total counter",
    ] {
        assert!(lines.lines().any(|line| line == want), "{want}\nnot in\n{lines}");
    }
}

#[test]
fn one_name_is_one_series_and_ends_with_its_last_handle() {
    let read = || snapshot().number("cluster.short-lived.total");
    let first = Scope::cluster("short-lived").counter("total");
    first.increment(2);
    let second = Scope::cluster("short-lived").counter("total");
    second.increment(3);
    assert_eq!(read(), Some(5));
    drop(first);
    assert_eq!(read(), Some(5));
    drop(second);
    assert_eq!(read(), None);
    assert!(!locked(&REGISTRY).contains_key("cluster.short-lived."));
    let again = Scope::cluster("short-lived").counter("total");
    assert_eq!(read(), Some(0));
    drop(again);
}

#[test]
fn a_scope_forgets_series_that_come_and_go() {
    let scope = Scope::raw("churning");
    for number in 0..1000 {
        scope.counter(&format!("c{number}")).increment(1);
    }
    assert!(locked(&scope.0.series).len() < 10);
}

#[test]
fn gauges_know_whether_they_were_written() {
    let scope = Scope::raw("gauging");
    let (touched, _untouched) = (scope.gauge("touched"), scope.gauge("untouched"));
    touched.increment(3.0);
    touched.decrement(5.0);
    assert_eq!(snapshot().number("gauging.touched"), Some(-2));
    touched.set(0.0);
    let used = Query { used_only: true, ..only("^gauging") };
    assert_eq!(text(&snapshot(), &used), "gauging.touched: 0\n");
    let kind = Query { kind: Some(Kind::Counter), ..only("^gauging") };
    assert_eq!(text(&snapshot(), &kind), "");
    let inverted = Query { invert: true, ..only(r"^(?:[^g]|gauging\.u)") };
    assert!(text(&snapshot(), &inverted).starts_with("gauging.touched: 0\n"));
}

#[test]
fn counters_from_several_threads_add_up() {
    let counter = Scope::raw("threads").counter("total");
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..10_000).for_each(|_| counter.increment(1)));
        }
    });
    assert_eq!(snapshot().number("threads.total"), Some(40_000));
}

#[test]
fn histograms() {
    let scope = Scope::raw("histo");
    let (some, _none) =
        (scope.histogram("some", Unit::Milliseconds), scope.histogram("none", Unit::Milliseconds));
    for value in [0.0, 0.29, 2.0, 5.0, 99.0, 1234.0, 1e30] {
        some.record(value);
    }
    let snapshot = snapshot();
    let some = snapshot.histogram("histo.some").unwrap();
    assert_eq!(some.count, 7);
    let lowers: Vec<String> = some.bins.iter().map(|bin| general(bin.lower)).collect();
    assert_eq!(lowers, ["0", "0.29", "2", "5", "99", "1200", "9.9e+11"]);
    assert_eq!([0.0, 0.3, 5.0, 99.0, 1e9].map(|bound| some.count_up_to(bound)), [1, 2, 4, 5, 6]);
    assert_eq!(some.quantile(0.5), Some(5.05));

    let summary = text(&snapshot, &only(r"^histo\."));
    assert!(summary
        .starts_with("histo.none: No recorded values\nhisto.some: P0(0,0) P25(0.295,0.295) P50(5.05,5.05)"));
    let view = |histograms| text(&snapshot, &Query { histograms, ..only("^histo.some") });
    let cumulative = view(HistogramView::Cumulative);
    assert!(
        cumulative.contains("B0.5(2,2) B1(2,2) B5(4,4)") && cumulative.ends_with("B3.6e+06(6,6)\n"),
        "{cumulative}"
    );
    assert!(view(HistogramView::Disjoint).contains("B0.5(2,2) B1(0,0) B5(2,2) B10(0,0)"));
    assert!(view(HistogramView::Detailed).contains("\n  totals=0,0:1 0.29,0.01:1 2,0.1:1 "));
    let json = json(&snapshot, &only("^histo.some"));
    assert_eq!(json["stats"][0]["histograms"]["computed_quantiles"][0]["values"][2]["cumulative"], 5.05);
    assert_eq!(json["stats"][0]["histograms"]["supported_quantiles"][7], 99.5);

    let lines = prometheus(&snapshot, &only("^histo.some"));
    assert!(lines.contains("envoy_histo_some_bucket{le=\"5\"} 4\n"), "{lines}");
    assert!(lines.contains("envoy_histo_some_bucket{le=\"+Inf\"} 7\n"), "{lines}");
    assert!(lines.contains("envoy_histo_some_count{} 7\n"), "{lines}");
}

#[test]
fn an_unused_histogram_is_small() {
    assert!(size_of::<HistogramCell>() <= 32);
}

#[test]
fn the_facades_own_series_stay() {
    let recorder = FacadeRecorder::default();
    let metadata = Metadata::new("", metrics::Level::INFO, None);
    let key = Key::from_parts("facade_total", vec![metrics::Label::new("side", "up\"\n")]);
    recorder.register_counter(&key, &metadata).increment(1);
    recorder.register_counter(&key, &metadata).increment(1);
    let lines = prometheus(&snapshot(), &only("facade_total"));
    assert_eq!(lines, "# TYPE envoy_facade_total counter\nenvoy_facade_total{side=\"up\\\"_\"} 2\n");
}

#[test]
fn numbers_look_like_cs() {
    for (value, want) in [
        (0.0, "0"),
        (0.5, "0.5"),
        (2.05, "2.05"),
        (99.5, "99.5"),
        (1050.0, "1050"),
        (300_000.0, "300000"),
        (1_800_000.0, "1.8e+06"),
        (1.05e-7, "1.05e-07"),
        (123_456_789.0, "1.23457e+08"),
        (f64::NAN, "nan"),
    ] {
        assert_eq!(general(value), want);
    }
}

/// A small checker of the exposition format: every line is a type line or a sample, samples stand
/// below their type line, names and labels are well formed, no series occurs twice.
pub(crate) fn check_exposition(text: &str) -> Result<usize, String> {
    let sample = Regex::new(
        r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\} (NaN|[-+0-9.e]+)$"#,
    )
    .map_err(|error| error.to_string())?;
    let mut family = ("", "");
    let mut families = HashSet::new();
    let mut series = HashSet::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            family = head.split_once(' ').ok_or("type line without a type")?;
            if !families.insert(family.0) {
                return Err(format!("{} has two type lines", family.0));
            }
            continue;
        }
        let parts = sample.captures(line).ok_or_else(|| format!("bad line {line:?}"))?;
        let (name, labels) = (&parts[1], &parts[2]);
        let suffix =
            name.strip_prefix(family.0).ok_or_else(|| format!("{name} stands below {}", family.0))?;
        let allowed: &[&str] = match family.1 {
            "counter" | "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["", "_sum", "_count"],
            other => return Err(format!("unknown type {other}")),
        };
        if !allowed.contains(&suffix) || labels.ends_with(',') {
            return Err(format!("bad line {line:?}"));
        }
        if !series.insert(format!("{name}{{{labels}}}")) {
            return Err(format!("twice: {line}"));
        }
    }
    Ok(series.len())
}

#[test]
fn the_whole_exposition_is_well_formed() {
    let stats = crate::telemetry::stats::ClusterStats::for_cluster("expo\"s\\ition\n", [true, false]);
    stats.responses.count(200);
    stats.responses.count(503);
    stats.responses.time.record(12.0);
    stats.upstream_cx_active.set(3.0);
    let all = snapshot();
    for histograms in [HistogramView::Default, HistogramView::Summary] {
        let text = prometheus(&all, &Query { histograms, ..only("expo") });
        assert!(check_exposition(&text).unwrap() > 100);
    }
}
