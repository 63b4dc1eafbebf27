//! A thousand clusters: what nobody uses costs little, the first request wakes what it needs, and a change of one
//! cluster's endpoints is in force at once.

use std::time::{Duration, Instant};

use outrigger_control_api::load_resource;
use outrigger_control_api::server::{ResourceType, Snapshot};
use serde_json::{json, Value};

use super::clients::named;
use super::mesh::{bootstrap, ControlPlane, Mesh, NODE};
use crate::harness::client::Client;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{alone, eventually, settled, DEADLINE};

const CLUSTERS: usize = 1_000;
/// Resident memory for each cluster with ten endpoints and a virtual host of four domains, in bytes. About a third of
/// it is used; compiled, they would need three times as much.
const EACH: usize = 12 << 10;
/// From the start of the process to the first answer, in a build that is not optimised, on a busy machine.
const READY: Duration = Duration::from_secs(15);
/// The median of changes: from the control plane's to the first request that sees it.
const CHANGE: Duration = Duration::from_millis(50);

fn assignment(name: &str, port: u16) -> Value {
    let endpoint = |nth: u8| {
        json!({"endpoint": {"address": {"socket_address": {
            "address": format!("127.0.0.{nth}"), "port_value": port
        }}}})
    };
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        // The first one answers; the others are there to be kept.
        "endpoints": [
            {"priority": 0, "lb_endpoints": [endpoint(1)]},
            {"priority": 1, "lb_endpoints": (2..=10).map(endpoint).collect::<Vec<_>>()}
        ]
    })
}

fn insert(snapshot: &mut Snapshot, resource: &Value) {
    let loaded = load_resource(resource).unwrap_or_else(|e| panic!("{resource}: {e:?}"));
    snapshot.insert_any(loaded.any).expect("a resource with a name");
}

fn mesh(clusters: usize, listen: u16, port: u16) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut hosts = Vec::new();
    for nth in 0..clusters {
        let name = format!("service-{nth}");
        insert(
            &mut snapshot,
            &json!({
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": name,
                "type": "EDS",
                "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "ads": {}}},
                "circuit_breakers": {"thresholds": [{"max_connections": 2000}]}
            }),
        );
        insert(&mut snapshot, &assignment(&name, port));
        hosts.push(json!({
            "name": name,
            "domains": (0..4).map(|d| format!("d{d}.{name}.example")).collect::<Vec<_>>(),
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]
        }));
    }
    insert(
        &mut snapshot,
        &json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "main",
            "virtual_hosts": hosts
        }),
    );
    let listener: Value =
        serde_yaml_ng::from_str(&Mesh::default().listener("main", listen)).expect("a listener");
    insert(&mut snapshot, &listener);
    snapshot
}

async fn status_and_body(client: &mut Client, host: &str) -> (u16, String) {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let answer = client.exchange(request.as_bytes()).await.expect("an answer");
    (answer.status(), answer.text())
}

/// A proxy with so many clusters, and its resident bytes once they no longer change.
async fn loaded(clusters: usize, port: u16) -> (ControlPlane, Proxy, u16, Duration, usize) {
    let listen = free_port();
    let control = ControlPlane::on(0, mesh(clusters, listen, port)).await;
    let begin = Instant::now();
    let proxy = Proxy::outrigger(&bootstrap(true), &[("control", control.port.to_string())]).await;
    let ready = begin.elapsed();
    assert!(control.settled(&ResourceType::ROUTE).await, "{:?}", control.refused());
    assert_eq!(control.refused(), []);
    let resident = settled(|| proxy.resident() >> 16).await << 16;
    (control, proxy, listen, ready, resident)
}

#[tokio::test]
async fn thousands_of_clusters_sleep_and_one_changes_at_once() {
    let _alone = alone().await;
    let (one, other) = (named("one").await, named("other").await);
    let (_few_control, few, _, _, base) = loaded(10, one.port()).await;
    drop(few);
    let (control, proxy, listen, ready, resident) = loaded(CLUSTERS, one.port()).await;
    let each = resident.saturating_sub(base) / CLUSTERS;
    eprintln!("ready after {ready:?}; {resident} bytes, {each} for each cluster");
    assert!(ready < READY, "{ready:?}");
    // Memory that was used while all of it came goes back little by little.
    let small = || std::future::ready(proxy.resident().saturating_sub(base) / CLUSTERS < EACH);
    assert!(eventually(DEADLINE, small).await, "{each} bytes for each cluster");

    // Nobody has called: no cluster has anything to count with.
    let clusters_counting =
        |stats: &str| (0..CLUSTERS).filter(|nth| stats.contains(&format!("cluster.service-{nth}."))).count();
    let stats = proxy.admin("/stats").await;
    assert_eq!(clusters_counting(&stats), 0);
    let mut client = Client::connect(listen).await.expect("a connection");
    let last = format!("service-{}", CLUSTERS - 1);
    let host = format!("d3.{last}.example");
    assert_eq!(status_and_body(&mut client, &host).await, (200, "one".to_owned()));
    assert_eq!(status_and_body(&mut client, "nobody.example").await.0, 404);
    let stats = proxy.admin("/stats").await;
    assert_eq!(clusters_counting(&stats), 1, "only the one that was called");
    assert!(stats.contains(&format!("cluster.{last}.membership_total: 10")), "{stats}");

    // Its endpoints change; requests see it at once.
    let mut snapshot = (*control.cache.get(NODE).expect("a snapshot")).clone();
    let mut times = Vec::new();
    for step in 0..40 {
        let (port, body) = if step % 2 == 0 { (other.port(), "other") } else { (one.port(), "one") };
        insert(&mut snapshot, &assignment(&last, port));
        let begin = Instant::now();
        control.cache.set(NODE, snapshot.clone());
        loop {
            let (status, text) = status_and_body(&mut client, &host).await;
            assert_eq!(status, 200, "{text}");
            if text == body {
                break;
            }
            assert!(begin.elapsed() < DEADLINE, "not seen");
        }
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    eprintln!("a change is seen after {:?} (median), {:?} (longest)", times[20], times[39]);
    assert!(times[20] < CHANGE, "{times:?}");
    // A change of one that sleeps wakes nobody, and counts when it wakes.
    insert(&mut snapshot, &assignment("service-0", other.port()));
    control.cache.set(NODE, snapshot.clone());
    assert!(control.settled(&ResourceType::ENDPOINTS).await);
    assert_eq!(clusters_counting(&proxy.admin("/stats").await), 1);
    assert_eq!(status_and_body(&mut client, "d0.service-0.example").await, (200, "other".to_owned()));

    // All but one of them go, and what they needed with them.
    for nth in 1..CLUSTERS - 1 {
        snapshot.remove(&ResourceType::CLUSTER, &format!("service-{nth}"));
        snapshot.remove(&ResourceType::ENDPOINTS, &format!("service-{nth}"));
    }
    insert(
        &mut snapshot,
        &json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "main",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": last}}]}]
        }),
    );
    control.cache.set(NODE, snapshot);
    let gone = || async { proxy.stats().await["cluster_manager.active_clusters"] == 3 };
    assert!(eventually(DEADLINE, gone).await, "{:?}", proxy.stats().await["cluster_manager.active_clusters"]);
    assert_eq!(status_and_body(&mut client, &host).await.0, 200);
    assert_eq!(control.refused(), [], "{}", proxy.output());
}
