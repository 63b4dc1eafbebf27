//! Statistics that are sent to sinks: what Envoy and Outrigger tell of the same requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_control_api::pb::envoy::service::metrics::v3::StreamMetricsMessage;
use outrigger_control_api::pb::io::prometheus::client::{Bucket, Quantile};
use outrigger_control_api::pb::opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest;
use outrigger_control_api::pb::opentelemetry::proto::common::v1::{any_value, KeyValue};
use outrigger_control_api::pb::opentelemetry::proto::metrics::v1::{metric, number_data_point};
use serde_json::{json, Value};
use tokio::net::{TcpListener, UdpSocket};

use crate::harness::client::Client;
use crate::harness::collector::Collector;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

/// What is compared: statistics that both have of the same requests.
const NAMES: &[&str] = &[
    "http.main.downstream_rq_2xx",
    "http.main.downstream_rq_total",
    "http.main.downstream_cx_total",
    "http.main.downstream_cx_active",
    "http.main.downstream_rq_time",
    "http.downstream_rq_xx",
    "http.downstream_rq_total",
    "http.downstream_cx_active",
    "http.downstream_rq_time",
];

/// Takes datagrams, split into lines.
async fn lines_of_datagrams() -> (u16, Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let port = socket.local_addr().expect("an address").port();
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = lines.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = socket.recv(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            kept.lock().expect("no panic").extend(text.lines().map(str::to_owned));
        }
    });
    (port, lines)
}

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": kind, "typed_config": config})
}

fn bootstrap() -> String {
    let address =
        |port: &str| json!({"socket_address": {"address": "127.0.0.1", "port_value": format!("@{port}@")}});
    let grpc = json!({"envoy_grpc": {"cluster_name": "collector"}});
    let sinks = [
        typed("envoy.config.metrics.v3.StatsdSink", json!({"address": address("statsd")})),
        typed(
            "envoy.config.metrics.v3.DogStatsdSink",
            json!({"address": address("dog"), "prefix": "mine", "max_bytes_per_datagram": 1000}),
        ),
        typed(
            "envoy.config.metrics.v3.MetricsServiceConfig",
            json!({"grpc_service": grpc, "transport_api_version": "V3",
            "emit_tags_as_labels": true, "report_counters_as_deltas": true}),
        ),
        typed(
            "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig",
            json!({"grpc_service": grpc, "prefix": "mine"}),
        ),
    ];
    let manager = json!({"stat_prefix": "main",
        "http_filters": [typed("envoy.extensions.filters.http.router.v3.Router", json!({}))],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]}});
    let manager =
        typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
    json!({"node": {"id": "node", "cluster": "web"}, "stats_sinks": sinks, "stats_flush_interval": "0.2s",
        "admin": {"address": address("port:admin")},
        "static_resources": {
            "listeners": [{"name": "main", "address": address("port:main"), "filter_chains": [{"filters": [manager]}]}],
            "clusters": [{"name": "collector", "type": "STATIC", "connect_timeout": "1s", "http2_protocol_options": {},
                "load_assignment": {"cluster_name": "collector", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": address("collector")}}]}]}}]}})
    .to_string()
}

fn shown(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

/// What each sink was told of some statistics: sums of counters, the last of gauges, of histograms that there was one.
async fn told(kind: Kind) -> BTreeSet<String> {
    let (statsd, statsd_lines) = lines_of_datagrams().await;
    let (dog, dog_lines) = lines_of_datagrams().await;
    let collector = Collector::start().await;
    let values = [
        ("statsd", statsd.to_string()),
        ("dog", dog.to_string()),
        ("collector", collector.port().to_string()),
    ];
    let template = bootstrap();
    let proxy =
        Proxy::start(Plan { arguments: &["--concurrency", "1"], ..Plan::new(kind, &template, &values) })
            .await;
    let mut client = Client::connect(proxy.port("main")).await.expect("connected");
    for _ in 0..3 {
        client.exchange(b"GET / HTTP/1.1\r\nhost: t.test\r\n\r\n").await.expect("an answer");
    }
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    let mut others: BTreeSet<String> = BTreeSet::new();
    let complete = eventually(DEADLINE, || {
        for (sink, lines) in [("statsd", &statsd_lines), ("dog", &dog_lines)] {
            for line in lines.lock().expect("no panic").drain(..) {
                let (name, rest) = line.split_once(':').expect("a name");
                let (_, short) = name.split_once('.').expect("a prefix");
                let parts: Vec<&str> = rest.split('|').collect();
                let tags = parts.iter().find_map(|part| part.strip_prefix('#')).unwrap_or_default();
                let mut tags: Vec<&str> = tags.split(',').collect();
                tags.sort_unstable();
                if !NAMES.contains(&short) || tags.iter().any(|tag| tag.contains("admin")) {
                    continue;
                }
                let key = format!("{sink} {name} {} {tags:?}", parts[1]);
                match parts[1] {
                    "c" => *sums.entry(key).or_default() += parts[0].parse::<f64>().expect("a number"),
                    "g" => drop(others.insert(format!("{key} {}", parts[0]))),
                    _ => drop(others.insert(key)),
                }
            }
        }
        for message in collector.take_of::<StreamMetricsMessage>("StreamMetrics") {
            others.extend(message.identifier.map(|one| format!("told by {}", one.node.expect("a node").id)));
            for family in message.envoy_metrics {
                for metric in &family.metric {
                    let labels: BTreeSet<_> =
                        metric.label.iter().map(|one| (one.name(), one.value())).collect();
                    if !NAMES.contains(&family.name()) || labels.iter().any(|(_, value)| *value == "admin") {
                        continue;
                    }
                    let key =
                        format!("metrics {} {} {labels:?}", family.name(), family.r#type.unwrap_or_default());
                    assert!(metric.timestamp_ms() > 1_700_000_000_000);
                    if let Some(counter) = &metric.counter {
                        *sums.entry(key.clone()).or_default() += counter.value();
                    }
                    if let Some(gauge) = &metric.gauge {
                        others.insert(format!("{key} {}", gauge.value()));
                    }
                    if let Some(histogram) = &metric.histogram {
                        let bounds: Vec<_> = histogram.bucket.iter().map(Bucket::upper_bound).collect();
                        others.insert(format!("{key} {bounds:?} {}", histogram.sample_count()));
                    }
                    if let Some(summary) = &metric.summary {
                        let quantiles: Vec<_> = summary.quantile.iter().map(Quantile::quantile).collect();
                        others.insert(format!("{key} {quantiles:?}"));
                    }
                }
            }
        }
        for request in collector.take_of::<ExportMetricsServiceRequest>("MetricsService/Export") {
            for one in request.resource_metrics {
                others.insert(format!("otlp {:?}", one.resource.map(|resource| resource.attributes.len())));
                for metric in one.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                    let Some(short) = metric.name.strip_prefix("mine.").filter(|short| NAMES.contains(short))
                    else {
                        continue;
                    };
                    let points: Vec<(String, BTreeMap<_, _>)> = match metric.data.expect("data") {
                        metric::Data::Sum(sum) => sum
                            .data_points
                            .iter()
                            .map(|point| {
                                let number_data_point::Value::AsInt(value) = point.value.expect("a value")
                                else {
                                    panic!("{point:?}")
                                };
                                (
                                    format!(
                                        "sum {} {} of {value}",
                                        sum.aggregation_temporality, sum.is_monotonic
                                    ),
                                    shown(&point.attributes),
                                )
                            })
                            .collect(),
                        metric::Data::Gauge(gauge) => gauge
                            .data_points
                            .iter()
                            .map(|point| (format!("gauge {:?}", point.value), shown(&point.attributes)))
                            .collect(),
                        metric::Data::Histogram(all) => all
                            .data_points
                            .iter()
                            .map(|point| {
                                (
                                    format!(
                                        "histogram {} of {} in {:?}",
                                        all.aggregation_temporality, point.count, point.explicit_bounds
                                    ),
                                    shown(&point.attributes),
                                )
                            })
                            .collect(),
                    };
                    for (text, attributes) in points {
                        if !attributes.values().any(|value| value == "admin") {
                            others.insert(format!("otlp {short} {text} {attributes:?}"));
                        }
                    }
                }
            }
        }
        // Three requests were told of by all.
        let all = |prefix: &str, texts: &BTreeSet<String>| texts.iter().any(|text| text.starts_with(prefix));
        let sums_done =
            sums.iter().filter(|(key, sum)| key.contains("rq_total") && **sum >= 3.0).count() >= 3;
        let done = sums_done
            && all("otlp http.downstream_rq_total sum 2 true of 3", &others)
            && others
                .iter()
                .any(|text| text.starts_with("metrics http.downstream_rq_time 4") && text.ends_with(" 3"));
        std::future::ready(done)
    })
    .await;
    let seen: Vec<_> = sums.iter().map(|(key, sum)| format!("{key} = {sum}")).collect();
    assert!(complete, "{kind:?}: {seen:#?}\n{others:#?}");
    // Gauges and histograms on their way to what they are.
    let passing = |text: &String| {
        text.contains("_active") && (text.ends_with(" 0") || text.contains("AsInt(0)"))
            || text.contains("rq_time")
                && !text.ends_with(" 3")
                && text.contains("metrics")
                && text.contains(" 4 ")
            || text.contains("sum 2") && !text.contains("of 3") && !text.contains("cx_")
            || text.contains("histogram") && !text.contains("of 3 ")
    };
    others.retain(|text| !passing(text));
    others.into_iter().chain(seen).collect()
}

#[tokio::test]
async fn sinks_are_told_what_envoy_tells_them() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) = tokio::join!(told(Kind::Envoy), told(Kind::Outrigger));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    let (theirs, ours) = (only(&theirs, &ours), only(&ours, &theirs));
    assert!(theirs.is_empty() && ours.is_empty(), "only Envoy: {theirs:#?}\nonly Outrigger: {ours:#?}");
}

/// A process that ends does not wait for sinks that take nothing.
#[tokio::test]
async fn silent_sinks_do_not_hold_the_end_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let grpc = json!({"envoy_grpc": {"cluster_name": "silent"}});
    let sink =
        || typed("envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig", json!({"grpc_service": grpc}));
    let address =
        |port: &str| json!({"socket_address": {"address": "127.0.0.1", "port_value": format!("@{port}@")}});
    let template = json!({"stats_sinks": [sink(), sink(), sink(), sink()], "stats_flush_interval": "1s",
        "admin": {"address": address("port:admin")},
        "static_resources": {"clusters": [
            {"name": "silent", "type": "STATIC", "connect_timeout": "1s", "http2_protocol_options": {},
                "load_assignment": {"cluster_name": "silent", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": address("silent")}}]}]}}]}})
    .to_string();
    let values = [("silent", silent.local_addr().expect("an address").port().to_string())];
    let mut proxy = Proxy::start(Plan::new(Kind::Outrigger, &template, &values)).await;
    // The first of them is being told: each may take a second.
    let _told = tokio::time::timeout(DEADLINE, silent.accept()).await.expect("a call").expect("a connection");
    proxy.signal(libc::SIGTERM);
    assert!(proxy.exit(Duration::from_secs(2)).await.is_some(), "{}", proxy.output());
}
