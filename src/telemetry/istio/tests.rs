use std::sync::Arc;

use outrigger_control_api::pb::stats as pb;

use super::*;
use crate::telemetry::fixtures;
use crate::telemetry::format::FormatContext;
use crate::telemetry::metrics::snapshot;
use crate::telemetry::stream_info::StreamInfo;

fn metrics(config: &pb::PluginConfig) -> StandardMetrics {
    let mut problems = Problems::new();
    let metrics = StandardMetrics::compile(config, &mut problems);
    assert_eq!(problems.list(), []);
    metrics.expect("metrics")
}

/// A stream to the service `name`, which no other test knows.
fn stream(name: &str) -> StreamInfo {
    let mut info = fixtures::stream();
    let service = Service { host: Some(format!("{name}.test").into()), name: Some(name.into()) };
    info.service = Some(Arc::new(service));
    info
}

/// What is counted under names with all of `parts`.
fn counted(parts: &[&str]) -> Vec<i64> {
    let snapshot = snapshot();
    let of = snapshot.0.iter().filter(|sample| parts.iter().all(|part| sample.name.contains(part)));
    of.filter_map(|sample| snapshot.number(&sample.name)).collect()
}

#[test]
fn streams_alike_share_a_series_and_others_do_not() {
    let metrics = metrics(&pb::PluginConfig::default());
    let mut info = stream("alike");
    let name = ["istio_requests_total", "destination_service_name.alike."];
    metrics.request(&FormatContext::new(&info), false, None);
    metrics.request(&FormatContext::new(&info), false, None);
    assert_eq!(counted(&name), [2]);
    info.response_code = 404;
    metrics.request(&FormatContext::new(&info), false, None);
    assert_eq!(counted(&[name[0], name[1], "response_code.404."]), [1]);
    let told = Arc::new(Workload { name: "told".into(), ..Workload::default() });
    info.peers.upstream = Some(told.clone());
    metrics.request(&FormatContext::new(&info), false, None);
    // The same again of another allocation: another key, but the same series.
    info.peers.upstream = Some(Arc::new(Workload::clone(&told)));
    metrics.request(&FormatContext::new(&info), false, None);
    assert_eq!(counted(&[name[0], name[1], "destination_workload.told."]), [2]);
    assert_eq!(counted(&[name[0], name[1], "destination_workload.unknown."]).iter().sum::<i64>(), 3);
}

#[test]
fn every_standard_label_has_its_place_once() {
    let metrics = metrics(&pb::PluginConfig::default());
    for (inbound, gateway, code) in [(false, false, 201), (true, false, 202), (true, true, 203)] {
        let metrics =
            StandardMetrics { gateway, ..StandardMetrics { id: u64::from(code), ..clone(&metrics) } };
        let mut info = stream("labels");
        let mut connection = (*info.connection).clone();
        connection.inbound = inbound;
        info.connection = connection.into();
        info.response_code = code;
        let context = FormatContext::new(&info);
        let labels = Stream::of(&metrics, &context, Protocol::Grpc(Some(7)), &[]).labels();
        let mut names: Vec<_> = labels.iter().map(|(name, _)| &**name).collect();
        assert!(names.iter().all(|name| labels::is_standard(name)), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), labels.len()), (25, 25));
    }
    assert!(!labels::is_standard("path") && !labels::is_standard("source_service"));
}

fn clone(metrics: &StandardMetrics) -> StandardMetrics {
    StandardMetrics {
        overrides: Overrides::default(),
        node: metrics.node.clone(),
        _build: Gauge::noop(),
        ..*metrics
    }
}

#[test]
fn peers_cannot_make_labels_without_end() {
    let metrics = metrics(&pb::PluginConfig::default());
    let mut info = stream("endless");
    let long = "x".repeat(5000);
    let told = Workload { name: long.as_str().into(), namespace: "a\nb".into(), ..Workload::default() };
    info.peers.upstream = Some(Arc::new(told));
    metrics.request(&FormatContext::new(&info), false, None);
    let cut = format!("destination_workload.{}.", &long[..512]);
    assert_eq!(counted(&["istio_requests_total", &cut, "destination_workload_namespace.a_b."]), [1]);
}
