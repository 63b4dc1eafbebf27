//! Load reports, beside the real Envoy's: the same bootstrap, the same requests, the same service that asks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::endpoint::v3::ClusterStats;
use outrigger_control_api::server::{LoadQuery, LoadReport, LoadReports, Server, SnapshotCache};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::clients::named;
use super::mesh::{bootstrap, snapshot, Mesh};
use crate::harness::client::get;
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const INTERVAL: Duration = Duration::from_millis(250);

/// A control plane that asks for loads.
struct Asking {
    port: u16,
    cache: SnapshotCache,
    loads: LoadReports,
    reports: Arc<Mutex<Vec<LoadReport>>>,
    task: JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asking {
    async fn start(port: u16, query: LoadQuery) -> Asking {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let seen = reports.clone();
        let loads = LoadReports::with_callback(query, move |report| {
            seen.lock().expect("not poisoned").push(report.clone());
        });
        let cache = SnapshotCache::by_node_id();
        let server = Server::new(cache.clone()).with_load_reports(loads.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let task = tokio::spawn(async move { server.serve(listener).await });
        Asking { port, cache, loads, reports, task }
    }

    fn reports(&self) -> Vec<LoadReport> {
        self.reports.lock().expect("not poisoned").clone()
    }

    /// Every report of a cluster so far.
    fn of(&self, cluster: &str) -> Vec<ClusterStats> {
        let reports = self.reports().into_iter().flat_map(|report| report.clusters);
        reports.filter(|stats| stats.cluster_name == cluster).collect()
    }

    /// What was reported of a cluster until now, by zone and priority: issued, succeeded and failed.
    fn sums(&self, cluster: &str) -> BTreeMap<(String, u32), [u64; 3]> {
        let mut sums = BTreeMap::<_, [u64; 3]>::new();
        for locality in self.of(cluster).iter().flat_map(|stats| &stats.upstream_locality_stats) {
            let zone = locality.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default();
            let sum = sums.entry((zone, locality.priority)).or_default();
            let parts = [
                locality.total_issued_requests,
                locality.total_successful_requests,
                locality.total_error_requests,
            ];
            sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
        sums
    }

    fn dropped(&self, cluster: &str) -> u64 {
        self.of(cluster).iter().map(|stats| stats.total_dropped_requests).sum()
    }

    /// Waits for so many further reports.
    async fn more(&self, count: usize) {
        let before = self.reports().len();
        let more = || std::future::ready(self.reports().len() >= before + count);
        assert!(eventually(DEADLINE, more).await, "no reports come: {:?}", self.reports());
    }
}

fn with_loads(node: &str) -> String {
    let text = bootstrap(true).replace("id: sidecar", &format!("id: {node}"));
    format!(
        "{text}\ncluster_manager:\n  load_stats_config:\n    api_type: GRPC\n    transport_api_version: V3\n\
         \x20   grpc_services: [{{ envoy_grpc: {{ cluster_name: control }} }}]\n"
    )
}

/// Two zones of one service, one of which fails; a second service under an EDS name of its own with nobody there; one
/// whose circuit breaker lets nobody in.
fn resources(port: u16, good: u16, bad: u16) -> Vec<String> {
    let mut mesh = Mesh::simple(port, &[good]);
    mesh.services.insert("other".into(), vec![good]);
    mesh.services.insert("full".into(), vec![good]);
    mesh.cluster_extra.insert(
        "full".into(),
        "circuit_breakers: { thresholds: [{ max_requests: 0, max_connections: 0, max_pending_requests: 0 }] }".into(),
    );
    mesh.cluster_extra
        .insert("web".into(), "lrs_report_endpoint_metrics: [ cpu_utilization, 'named_metrics.*' ]".into());
    mesh.tables.insert(
        "main".into(),
        vec![
            ("/full".into(), vec![("full".into(), 1)]),
            ("/other".into(), vec![("other".into(), 1)]),
            ("/".into(), vec![("web".into(), 1)]),
        ],
    );
    let mut resources = mesh.resources();
    resources.retain(|text| !text.contains("cluster_name: web") && !text.contains("cluster_name: other"));
    for text in &mut resources {
        if text.contains("name: other\n") {
            *text =
                text.replace("eds_cluster_config: {", "eds_cluster_config: { service_name: other-endpoints,");
        }
    }
    resources.push(Mesh::endpoints("other-endpoints", &[good]));
    let zone = |zone: &str, port: u16| {
        format!(
            "- locality: {{ region: r, zone: {zone} }}\n  load_balancing_weight: 1\n  lb_endpoints:\n  \
             - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}\n"
        )
    };
    let kind = "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    resources.push(format!("{kind}\ncluster_name: web\nendpoints:\n{}{}", zone("a", good), zone("b", bad)));
    resources
}

struct Side {
    proxy: Proxy,
    control: Asking,
    port: u16,
}

impl Side {
    /// A proxy that has its listener and was asked for loads.
    async fn start(kind: Kind, query: LoadQuery, good: u16, bad: u16) -> Side {
        let control = Asking::start(0, query).await;
        let port = free_port();
        control.cache.set("loads", snapshot(&resources(port, good, bad)));
        let text = with_loads("loads");
        let proxy = Proxy::start(Plan::new(kind, &text, &[("control", control.port.to_string())])).await;
        let side = Side { proxy, control, port };
        let serves = || async { get(port, "/other").await.is_ok_and(|answer| answer.status() == 200) };
        assert!(eventually(DEADLINE * 2, serves).await, "{kind:?} does not serve");
        // What was asked for is being counted.
        side.control.more(4).await;
        side
    }

    async fn request(&self, path: &str, count: usize) -> BTreeMap<u16, u64> {
        let mut seen = BTreeMap::new();
        for _ in 0..count {
            let status = get(self.port, path).await.map_or(0, |answer| answer.status());
            *seen.entry(status).or_default() += 1;
        }
        seen
    }
}

/// An origin that answers everything with 500.
async fn failing() -> Origin {
    Origin::with(false, |_| Answer::status(500, "Internal Server Error", "bad")).await
}

async fn sides(query: &LoadQuery, good: u16, bad: u16) -> Vec<Side> {
    let mut sides = Vec::new();
    let kinds: &[Kind] =
        if peers::have(&["envoy"]) { &[Kind::Envoy, Kind::Outrigger] } else { &[Kind::Outrigger] };
    for kind in kinds {
        sides.push(Side::start(*kind, query.clone(), good, bad).await);
    }
    sides
}

#[tokio::test]
async fn the_sums_of_all_reports_are_what_was_sent_as_in_envoy() {
    let (one, two) = (named("one").await, failing().await);
    for side in sides(&LoadQuery::all(INTERVAL), one.port(), two.port()).await {
        let kind = side.proxy.kind();
        let control = &side.control;
        let (before, dropped_before) = (control.sums("web"), control.dropped("full"));
        assert_eq!((before, dropped_before), (BTreeMap::new(), 0), "{kind:?}");
        let seen = side.request("/", 40).await;
        let full = side.request("/full", 5).await;
        assert_eq!(full, BTreeMap::from([(503, 5)]), "{kind:?}");
        control.more(3).await;
        let (good, bad) =
            (seen.get(&200).copied().unwrap_or_default(), seen.get(&500).copied().unwrap_or_default());
        assert_eq!(good + bad, 40, "{kind:?}: {seen:?}");
        assert!(good > 0 && bad > 0, "{kind:?}: {seen:?}");
        let expected =
            BTreeMap::from([(("a".to_owned(), 0), [good, good, 0]), (("b".to_owned(), 0), [bad, 0, bad])]);
        assert_eq!(control.sums("web"), expected, "{kind:?}");
        assert_eq!(control.dropped("full"), 5, "{kind:?}");
        assert_eq!(control.sums("full"), BTreeMap::new(), "{kind:?}");

        // The first message has the node alone, and says that clusters need not be listed.
        let first = control.reports()[0].clone();
        assert_eq!((first.node.id.as_str(), first.clusters.len()), ("loads", 0), "{kind:?}");
        let features = &first.node.client_features;
        assert!(features.iter().any(|feature| feature == "envoy.lrs.supports_send_all_clusters"), "{kind:?}");
        // Reports name the endpoints where that name is not the cluster's, and take the time they say.
        let last = |cluster: &str| control.of(cluster).pop().expect("reported");
        assert_eq!(last("other").cluster_service_name, "other-endpoints", "{kind:?}");
        assert_eq!(last("web").cluster_service_name, "", "{kind:?}");
        assert!(last("web").upstream_locality_stats.is_empty(), "{kind:?}: what is idle is left out");
        let passed = last("web").load_report_interval.expect("an interval");
        let passed = Duration::new(passed.seconds as u64, passed.nanos as u32);
        assert!(passed >= INTERVAL && passed < INTERVAL * 20, "{kind:?}: {passed:?}");

        let stats = side.proxy.stats().await;
        assert_eq!(stats["load_reporter.requests"], 1, "{kind:?}");
        assert!(stats["load_reporter.responses"] >= 5, "{kind:?}");
        assert_eq!((stats["load_reporter.errors"], stats["load_reporter.retries"]), (0, 0), "{kind:?}");
    }
}

#[tokio::test]
async fn clusters_that_are_listed_are_reported_by_endpoint_and_nothing_else_is_as_in_envoy() {
    let (one, two) = (named("one").await, failing().await);
    let listed = Some(vec!["web".to_owned(), "absent".to_owned()]);
    let query = LoadQuery { clusters: listed, interval: INTERVAL, endpoints: true };
    for side in sides(&query, one.port(), two.port()).await {
        let kind = side.proxy.kind();
        let control = &side.control;
        side.request("/other", 3).await;
        let seen = side.request("/", 20).await;
        control.more(3).await;
        let mut by_port = BTreeMap::<u32, [u64; 3]>::new();
        for locality in control.of("web").iter().flat_map(|stats| &stats.upstream_locality_stats) {
            for endpoint in &locality.upstream_endpoint_stats {
                let address =
                    outrigger_control_api::message_to_json(endpoint.address.as_ref().expect("an address"));
                let port = &address["socket_address"]["port_value"];
                let sum = by_port.entry(port.as_u64().unwrap_or_default() as u32).or_default();
                let parts = [
                    endpoint.total_issued_requests,
                    endpoint.total_successful_requests,
                    endpoint.total_error_requests,
                ];
                sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            }
        }
        let (good, bad) = (seen[&200], seen[&500]);
        let expected = BTreeMap::from([
            (u32::from(one.port()), [good, good, 0]),
            (u32::from(two.port()), [bad, 0, bad]),
        ]);
        assert_eq!(by_port, expected, "{kind:?}");
        let names: std::collections::BTreeSet<String> =
            control.reports().into_iter().flat_map(|r| r.clusters).map(|stats| stats.cluster_name).collect();
        assert_eq!(names, ["web".to_owned()].into(), "{kind:?}");
        // Another question, on the same stream.
        control.loads.ask(LoadQuery::all(INTERVAL));
        let all = || std::future::ready(!control.of("other").is_empty());
        assert!(eventually(DEADLINE, all).await, "{kind:?}");
    }
}

/// What origins say of their own load is summed up by locality and, where that is asked, by endpoint.
#[tokio::test]
async fn metrics_that_origins_report_are_summed_up_as_in_envoy() {
    let reporting = |metrics: &'static str| {
        Origin::with(false, move |_| {
            let head =
                format!("HTTP/1.1 200 OK\r\nendpoint-load-metrics: {metrics}\r\ncontent-length: 2\r\n\r\nok");
            Answer::raw(head)
        })
    };
    let one = reporting("TEXT cpu_utilization=0.5,named_metrics.queue=3,mem_utilization=0.9").await;
    let two = reporting("JSON {\"named_metrics\": {\"queue\": 1, \"jobs\": 0.25}}").await;
    let query = LoadQuery { clusters: Some(vec!["web".to_owned()]), interval: INTERVAL, endpoints: true };
    for side in sides(&query, one.port(), two.port()).await {
        let (kind, control) = (side.proxy.kind(), &side.control);
        let seen = side.request("/", 20).await;
        assert_eq!(seen, BTreeMap::from([(200, 20)]), "{kind:?}");
        control.more(3).await;
        let mut by_zone = BTreeMap::<(String, String), (u64, f64)>::new();
        let mut by_endpoint = by_zone.clone();
        for locality in control.of("web").iter().flat_map(|stats| &stats.upstream_locality_stats) {
            let zone = locality.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default();
            let of_endpoints =
                locality.upstream_endpoint_stats.iter().flat_map(|stats| &stats.load_metric_stats);
            for (sums, all) in [
                (&mut by_zone, locality.load_metric_stats.iter().collect::<Vec<_>>()),
                (&mut by_endpoint, of_endpoints.collect()),
            ] {
                for metric in all {
                    let sum = sums.entry((zone.clone(), metric.metric_name.clone())).or_default();
                    sum.0 += metric.num_requests_finished_with_metric;
                    sum.1 += metric.total_metric_value;
                }
            }
        }
        let line =
            |zone: &str, name: &str, reports, total| ((zone.to_owned(), name.to_owned()), (reports, total));
        let expected = BTreeMap::from([
            line("a", "cpu_utilization", 10, 5.0),
            line("a", "named_metrics.queue", 10, 30.0),
            line("b", "cpu_utilization", 10, 0.0),
            line("b", "named_metrics.jobs", 10, 2.5),
            line("b", "named_metrics.queue", 10, 10.0),
        ]);
        assert_eq!(by_zone, expected, "{kind:?}");
        assert_eq!(by_endpoint, expected, "{kind:?}");
    }
}

#[tokio::test]
async fn a_service_that_comes_back_gets_what_was_counted_meanwhile_as_in_envoy() {
    let (one, two) = (named("one").await, failing().await);
    for side in sides(&LoadQuery::all(INTERVAL), one.port(), two.port()).await {
        let kind = side.proxy.kind();
        let port = side.control.port;
        let Side { proxy, control, port: own } = side;
        drop(control);
        let failed = || async { proxy.stats().await["load_reporter.errors"] > 0 };
        assert!(eventually(DEADLINE, failed).await, "{kind:?}: {:?}", proxy.stats().await);
        let mut sent = 0;
        for _ in 0..10 {
            sent += u64::from(get(own, "/").await.is_ok());
        }
        assert_eq!(sent, 10, "{kind:?}");
        let control = Asking::start(port, LoadQuery::all(INTERVAL)).await;
        // Envoy tries again after 5 s.
        let back = || std::future::ready(!control.reports().is_empty());
        assert!(eventually(DEADLINE * 2, back).await, "{kind:?}");
        let first = control.reports()[0].clone();
        let web = first.clusters.iter().find(|stats| stats.cluster_name == "web").expect("reported at once");
        let issued: u64 = web.upstream_locality_stats.iter().map(|stats| stats.total_issued_requests).sum();
        assert_eq!(issued, sent, "{kind:?}");
        assert!(proxy.stats().await["load_reporter.retries"] > 0, "{kind:?}");
    }
}

/// `outrigger-control` asks too, and shows what comes.
#[tokio::test]
async fn the_small_control_plane_shows_loads_on_its_status_page() {
    use outrigger_control_api::control::{Control, Settings};
    let one = named("one").await;
    let port = free_port();
    let dir = tempfile::tempdir().expect("a directory");
    let text: String =
        resources(port, one.port(), one.port()).iter().fold("resources:\n".to_owned(), |all, text| {
            let value: Value = serde_yaml_ng::from_str(text).expect("YAML");
            all + &format!("- {value}\n")
        });
    std::fs::write(dir.path().join("mesh.yaml"), text).expect("a file");
    let mut settings = Settings::new(dir.path());
    settings.load_interval = Some(INTERVAL);
    let control = Control::open(settings, |line| eprintln!("{line}"));
    assert!(control.problems().is_empty(), "{:?}", control.problems());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let place = listener.local_addr().expect("its address").port();
    let server = control.server();
    let task = tokio::spawn(async move { server.serve(listener).await });
    let _proxy = Proxy::outrigger(&with_loads("shown"), &[("control", place.to_string())]).await;
    let shown = || async {
        let _ = get(port, "/").await;
        let status = control.status();
        let clusters = status["loads"][0]["clusters"].as_array().cloned().unwrap_or_default();
        let web = clusters.iter().find(|cluster| cluster["name"] == "web").cloned().unwrap_or_default();
        status["loads"][0]["id"] == "shown" && web["localities"][0]["issued"].as_u64() > Some(0)
    };
    assert!(eventually(DEADLINE, shown).await, "{}", control.status());
    task.abort();
}
