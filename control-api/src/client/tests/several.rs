//! The clients of this crate with its servers: several addresses of one control plane, and load reports.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use crate::server::{LoadQuery, LoadReport, LoadReports, Server, Snapshot, SnapshotCache};

async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// A server on a port of its own, until its task is aborted.
async fn serve(server: Server) -> (Address, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
    (address, tokio::spawn(async move { server.serve(listener).await }))
}

fn endpoint(addresses: &[&Address]) -> Endpoint {
    let mut endpoint = Endpoint::new(addresses[0].clone());
    endpoint.others = addresses[1..].iter().copied().cloned().collect();
    endpoint
}

fn settings(backoff: Duration) -> Settings {
    let node = Node { id: "n".to_owned(), cluster: "c".to_owned(), ..Default::default() };
    Settings { backoff_base: backoff, backoff_cap: backoff, ..Settings::new(node) }
}

/// A port that nobody listens on.
async fn nowhere() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Address::Tcp("127.0.0.1".to_owned(), listener.local_addr().unwrap().port())
}

#[tokio::test]
async fn an_address_that_refuses_costs_no_wait_and_one_that_works_is_kept() {
    let cache = SnapshotCache::by_node_id();
    cache.set_common(Some(Snapshot::new().into()));
    let (one, _first) = serve(Server::new(cache.clone())).await;
    let (two, _second) = serve(Server::new(cache.clone())).await;
    let dead = nowhere().await;
    // A back-off that no test waits for.
    for seed in 0..8 {
        let (subscriptions, mut events, run) =
            client::<Incremental>(endpoint(&[&dead, &one, &two]), settings(Duration::from_secs(3600)), seed);
        let task = tokio::spawn(run);
        subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);
        let event = within(events.next()).await;
        assert!(matches!(event, Some(Event::Connected)), "{event:?}");
        task.abort();
    }
}

#[tokio::test]
async fn where_it_is_goes_and_it_moves_to_the_other_and_says_so_when_there_is_none() {
    let caches = [SnapshotCache::by_node_id(), SnapshotCache::by_node_id()];
    caches.iter().for_each(|cache| cache.set_common(Some(Snapshot::new().into())));
    let (one, first) = serve(Server::new(caches[0].clone())).await;
    let (two, second) = serve(Server::new(caches[1].clone())).await;
    let dead = nowhere().await;
    let (subscriptions, mut events, run) =
        client::<Incremental>(endpoint(&[&one, &dead, &two]), settings(Duration::from_millis(5)), 1);
    tokio::spawn(run);
    subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);
    let updated = async |events: &mut Events| loop {
        if let Event::Update(update) = within(events.next()).await.expect("it runs") {
            break subscriptions.accept(update.id);
        }
    };
    updated(&mut events).await;
    let at = caches.iter().position(|cache| !cache.streams().is_empty()).expect("it is at one of them");
    let servers = [first, second];
    servers[at].abort();
    // Nothing new is told, but there is a stream.
    while !matches!(within(events.next()).await, Some(Event::Connected)) {}
    while caches[1 - at].streams().is_empty() {
        tokio::task::yield_now().await;
    }
    servers[1 - at].abort();
    let reason = loop {
        if let Event::Disconnected { reason, .. } = within(events.next()).await.expect("it runs") {
            if reason.contains("addresses") {
                break reason;
            }
        }
    };
    assert!(reason.starts_with("none of 3 addresses of the control plane can be reached: "), "{reason}");
    for address in [&one, &two, &dead] {
        assert!(reason.contains(&format!("cannot connect to control plane {address}: ")), "{reason}");
    }
}

#[tokio::test]
async fn an_address_that_accepts_and_says_nothing_is_left_for_the_next() {
    let cache = SnapshotCache::by_node_id();
    cache.set_common(Some(Snapshot::new().into()));
    let (good, _serves) = serve(Server::new(cache)).await;
    // Takes connections and closes them.
    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp("127.0.0.1".to_owned(), rude.local_addr().unwrap().port());
    tokio::spawn(async move { while rude.accept().await.is_ok() {} });
    for seed in 0..4 {
        let (subscriptions, mut events, run) =
            client::<Incremental>(endpoint(&[&address, &good]), settings(Duration::from_millis(5)), seed);
        let task = tokio::spawn(run);
        subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);
        loop {
            match within(events.next()).await {
                Some(Event::Update(update)) => break assert!(update.added.is_empty()),
                Some(_) => {}
                None => panic!("the client ended"),
            }
        }
        task.abort();
    }
}

/// One cluster, to which requests come when the test says so.
struct Counts {
    issued: Arc<Mutex<u64>>,
    events: mpsc::UnboundedSender<LoadEvent>,
}

impl Loads for Counts {
    fn clusters(&mut self) -> Vec<String> {
        vec!["web".to_owned()]
    }

    fn start(&mut self, _cluster: &str) {
        *self.issued.lock().unwrap() = 0;
    }

    fn stop(&mut self, _cluster: &str) {}

    fn take(&mut self, cluster: &str, _endpoints: bool) -> Option<ClusterStats> {
        let total_issued_requests =
            (cluster == "web").then(|| std::mem::take(&mut *self.issued.lock().unwrap()))?;
        let locality = UpstreamLocalityStats { total_issued_requests, ..Default::default() };
        Some(ClusterStats { upstream_locality_stats: vec![locality], ..Default::default() })
    }

    fn event(&mut self, event: &LoadEvent) {
        let _ = self.events.send(event.clone());
    }
}

#[tokio::test]
async fn load_reports_reach_the_server_and_follow_what_it_asks() {
    let (sender, mut reports) = mpsc::unbounded_channel::<LoadReport>();
    let query = LoadQuery::all(Duration::from_millis(100));
    let loads = LoadReports::with_callback(query, move |report| drop(sender.send(report.clone())));
    let server = Server::new(SnapshotCache::by_node_id()).with_load_reports(loads.clone());
    let (address, task) = serve(server).await;
    let dead = nowhere().await;
    let (events, mut log) = mpsc::unbounded_channel();
    let issued = Arc::new(Mutex::new(7));
    let counts = Counts { issued: issued.clone(), events };
    let settings = settings(Duration::from_millis(5));
    tokio::spawn(load_reports(endpoint(&[&dead, &address]), settings, 1, counts));

    let first = within(reports.recv()).await.unwrap();
    assert_eq!((first.node.id.as_str(), first.clusters.len()), ("n", 0));
    while !matches!(within(log.recv()).await.unwrap(), LoadEvent::Asked { clusters: None, .. }) {}
    *issued.lock().unwrap() += 3;
    let mut sum = 0;
    while sum < 3 {
        let report = within(reports.recv()).await.unwrap();
        assert_eq!(report.clusters[0].cluster_name, "web");
        assert!(report.clusters[0].load_report_interval.is_some());
        sum += report.clusters[0].upstream_locality_stats[0].total_issued_requests;
    }
    assert_eq!(sum, 3, "not what was before");
    let latest = loads.latest();
    assert_eq!((latest.len(), latest[0].clusters.len()), (1, 1));

    // Another question, on the stream that is open.
    loads.ask(LoadQuery {
        clusters: Some(vec!["other".to_owned()]),
        ..LoadQuery::all(Duration::from_millis(100))
    });
    while !within(reports.recv()).await.unwrap().clusters.is_empty() {}
    task.abort();
    while !matches!(within(log.recv()).await.unwrap(), LoadEvent::Retried) {}
    while !loads.latest().is_empty() {
        tokio::task::yield_now().await;
    }
}
