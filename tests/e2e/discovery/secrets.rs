//! Certificates and trust that a control plane sends (SDS): what waits for them, and what a change of them does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::server::{ResourceType, Server, SnapshotCache};
use tokio::net::UnixListener;

use super::beside::Both;
use super::clients::named;
use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh, NODE};
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use crate::tls::certs::{Authority, NOW};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const SDS: &str = "sds_config: { resource_api_version: V3, ads: {}, initial_fetch_timeout: 1s }";
/// A name of each workload.
const URI: &str = "spiffe://mesh.test/workload";

pub(super) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("      {line}\n")).collect()
}

/// A secret called `own`: a chain and its key, PEM.
pub(super) fn certificate((chain, key): &(String, String)) -> String {
    format!(
        "\"@type\": {TLS}.Secret\nname: own\ntls_certificate:\n  certificate_chain:\n    inline_string: |\n{}  \
         private_key:\n    inline_string: |\n{}",
        indented(chain),
        indented(key)
    )
}

fn trust(authorities: &[&Authority]) -> String {
    let bundle: String = authorities.iter().map(|ca| ca.pem()).collect();
    format!(
        "\"@type\": {TLS}.Secret\nname: trust\nvalidation_context:\n  trusted_ca:\n    inline_string: |\n{}",
        indented(&bundle)
    )
}

/// TLS with both secrets.
fn context(kind: &str, more: &str) -> String {
    format!(
        "transport_socket: {{ name: tls, typed_config: {{ \"@type\": {TLS}.{kind}, {more} common_tls_context: {{ \
         tls_certificate_sds_secret_configs: [{{ name: own, {SDS} }}], combined_validation_context: {{ \
         default_validation_context: {{ match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: \"{URI}\" }} }}] }}, \
         validation_context_sds_secret_config: {{ name: trust, {SDS} }} }} }} }} }}\n"
    )
}

/// A listener in plaintext before another one that ends mTLS, as on both sides of a mesh.
fn mesh(front: u16, back: u16, origin: u16) -> Vec<String> {
    let mut mesh = Mesh::simple(front, &[back]);
    mesh.listeners.insert("inner".into(), back);
    mesh.tables.insert("inner".into(), vec![("/".into(), vec![("origin".into(), 1)])]);
    mesh.services.insert("origin".into(), vec![origin]);
    mesh.cluster_extra.insert("web".into(), context("UpstreamTlsContext", ""));
    let mut resources = mesh.resources();
    for text in resources.iter_mut().filter(|text| text.contains("name: inner\naddress")) {
        let socket = context("DownstreamTlsContext", "require_client_certificate: true,");
        *text = text.replace("filter_chains:\n- filters:", &format!("filter_chains:\n- {socket}  filters:"));
    }
    resources
}

async fn answer(port: u16) -> String {
    match crate::harness::client::get(port, "/").await {
        Ok(answer) => format!("{} {}", answer.status(), answer.text()),
        Err(_) => "no connection".to_owned(),
    }
}

async fn wait_for(port: u16, expected: &str, what: &str) {
    let same = eventually(DEADLINE * 2, || async { answer(port).await == expected }).await;
    assert!(same, "{what}: {:?}, not {expected:?}", answer(port).await);
}

async fn secrets(delta: bool) {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let issue = |ca: &Authority| ca.issue("workload", URI, &["workload.mesh.test"], NOW, 7);
    let origin = named("one").await;
    let (front, back) = (free_port(), free_port());
    let resources = |more: Vec<String>| [mesh(front, back, origin.port()), more].concat();
    let (own, other) = (certificate(&issue(&first)), certificate(&issue(&second)));
    let control = ControlPlane::on(0, snapshot(&resources(vec![own.clone(), trust(&[&first])]))).await;
    let proxy = Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await;
    let served = eventually(DEADLINE * 2, || async { answer(front).await == "200 one" }).await;
    assert!(served, "{}\n{}\n{:?}", proxy.output(), proxy.admin("/config_dump").await, control.refused());
    let stats = proxy.stats().await;
    assert_eq!((stats["sds.own.update_success"], stats["sds.trust.update_success"]), (1, 1));
    // The CA changes: first both are trusted, then the other certificate, then only the new CA.
    control.cache.set(NODE, snapshot(&resources(vec![own.clone(), trust(&[&first, &second])])));
    assert!(control.settled(&ResourceType::SECRET).await);
    control.cache.set(NODE, snapshot(&resources(vec![other.clone(), trust(&[&first, &second])])));
    assert!(control.settled(&ResourceType::SECRET).await);
    control.cache.set(NODE, snapshot(&resources(vec![other.clone(), trust(&[&second])])));
    assert!(control.settled(&ResourceType::SECRET).await);
    assert_eq!(answer(front).await, "200 one", "after both were exchanged");
    // What is no certificate is refused by its name, and the last good one serves on.
    let broken = other.replace("BEGIN CERTIFICATE", "BEGIN NOTHING");
    control.cache.set(NODE, snapshot(&resources(vec![broken, trust(&[&second])])));
    assert!(eventually(DEADLINE, || std::future::ready(!control.refused().is_empty())).await);
    let (kind, text) = control.refused().remove(0);
    assert!(kind.ends_with("Secret") && text.contains("own") && text.contains("certificate_chain"), "{text}");
    assert!(!text.contains("PRIVATE"), "{text}");
    assert_eq!(answer(front).await, "200 one");
    let dump = proxy.admin("/config_dump").await;
    assert!(dump.contains("dynamic_active_secrets") && dump.contains("[redacted]"), "{dump}");
    assert!(!dump.contains("PRIVATE KEY"), "a key is shown");
}

#[tokio::test]
async fn secrets_come_and_change_delta() {
    secrets(true).await;
}

#[tokio::test]
async fn secrets_come_and_change_state_of_the_world() {
    secrets(false).await;
}

/// An agent beside the sidecar that signs certificates: a Unix socket, a stream for each secret.
pub(super) fn agent(path: &std::path::Path, cache: &SnapshotCache) -> tokio::task::AbortHandle {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).expect("a Unix socket");
    let server = Server::new(cache.clone());
    tokio::spawn(async move { server.serve_unix(listener).await }).abort_handle()
}

/// A secret's source: the agent.
pub(super) const FROM_AGENT: &str = "sds_config: { resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: { api_type: GRPC, \
        transport_api_version: V3, set_node_on_first_message_only: true, \
        grpc_services: [{ envoy_grpc: { cluster_name: sds-grpc } }] } }";

/// The bootstrap's cluster of the agent at `path`.
pub(super) fn agent_cluster(path: &std::path::Path) -> String {
    format!(
        "  - name: sds-grpc\n    type: STATIC\n    connect_timeout: 1s\n    typed_extension_protocol_options:\n      \
         envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
         explicit_http_config: {{ http2_protocol_options: {{}} }}\n    load_assignment:\n      cluster_name: sds-grpc\n      \
         endpoints:\n      - lb_endpoints:\n        - endpoint: {{ address: {{ pipe: {{ path: \"{}\" }} }} }}\n",
        path.display()
    )
}

#[tokio::test]
async fn an_agent_on_a_unix_socket_gives_secrets_and_may_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sds.sock");
    let cluster = agent_cluster(&path);
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let secrets = |ca: &Authority, serial| {
        let own = certificate(&ca.issue("workload", URI, &["workload.mesh.test"], NOW, serial));
        snapshot(&[own, trust(&[ca])])
    };
    let origin = named("one").await;
    let (front, back) = (free_port(), free_port());
    let resources: Vec<String> =
        mesh(front, back, origin.port()).iter().map(|text| text.replace(SDS, FROM_AGENT)).collect();
    assert!(resources.iter().any(|text| text.contains("sds-grpc")));
    let control = ControlPlane::on(0, snapshot(&resources)).await;
    // The agent comes after the sidecar, which waits for it.
    let cache = SnapshotCache::by_node_id();
    cache.set(NODE, secrets(&first, 7));
    let template = bootstrap(true) + &cluster;
    let proxy =
        Proxy::spawn(&Plan::new(Kind::Outrigger, &template, &[("control", control.port.to_string())]));
    let up = || std::future::ready(proxy.output().contains("control plane connected"));
    assert!(eventually(DEADLINE, up).await, "{}", proxy.output());
    let asked = || async {
        let stats = proxy.stats().await;
        stats.get("sds.own.update_attempt").is_some_and(|n| *n > 0)
    };
    assert!(eventually(DEADLINE * 2, asked).await, "{}", proxy.output());
    let running = agent(&path, &cache);
    wait_for(front, "200 one", "with the agent").await;
    // The agent is gone: what it gave serves on.
    running.abort();
    assert!(eventually(DEADLINE, || async { answer(front).await == "200 one" }).await);
    // It comes back with everything new.
    cache.set(NODE, secrets(&second, 8));
    let running = agent(&path, &cache);
    let renewed = || async {
        let stats = proxy.stats().await;
        stats["sds.own.update_success"] >= 2 && stats["sds.trust.update_success"] >= 2
    };
    assert!(eventually(DEADLINE * 4, renewed).await, "{}", proxy.output());
    wait_for(front, "200 one", "after the agent's return").await;
    running.abort();
}

#[tokio::test]
async fn without_its_secrets_a_listener_refuses_and_a_cluster_fails() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let ca = Authority::new("mesh");
    let own = certificate(&ca.issue("workload", URI, &["workload.mesh.test"], NOW, 7));
    let origin = Origin::with(false, |_| Answer::ok("one")).await;
    let (a, b) = (free_port(), free_port());
    let first = std::sync::atomic::AtomicU16::new(0);
    // Envoy is asked for first.
    let back = |front: u16| {
        let known = first.compare_exchange(0, front, Ordering::Relaxed, Ordering::Relaxed);
        if known.map_or_else(|known| known == front, |_| true) {
            a
        } else {
            b
        }
    };
    let resources = |more: Vec<String>| {
        let origin = origin.port();
        move |front: u16| [mesh(front, back(front), origin), more.clone()].concat()
    };
    let both = Both::start(false, resources(Vec::new())).await;
    for side in &both.sides {
        let kind = side.proxy.kind();
        let refused = || async { answer(side.port).await.starts_with("503 upstream connect error") };
        assert!(eventually(DEADLINE * 2, refused).await, "{kind:?}: {:?}", answer(side.port).await);
        let counted = || async {
            let stats = side.proxy.stats().await;
            stats.iter().any(|(name, n)| name.ends_with("upstream_context_secrets_not_ready") && *n > 0)
        };
        assert!(eventually(DEADLINE, counted).await, "{kind:?} does not count it");
    }
    both.set(resources(vec![own, trust(&[&ca])])).await;
    for side in &both.sides {
        wait_for(side.port, "200 one", &format!("{:?} with secrets", side.proxy.kind())).await;
    }
}

#[tokio::test]
async fn certificates_that_change_all_the_time_lose_no_request() {
    let ca = Authority::new("mesh");
    let issue = |serial: u64| certificate(&ca.issue("workload", URI, &["workload.mesh.test"], NOW, serial));
    let origin = named("one").await;
    let (front, back) = (free_port(), free_port());
    let resources = |own: String| [mesh(front, back, origin.port()), vec![own, trust(&[&ca])]].concat();
    let control = ControlPlane::on(0, snapshot(&resources(issue(1)))).await;
    let proxy = Proxy::outrigger(&bootstrap(true), &[("control", control.port.to_string())]).await;
    wait_for(front, "200 one", "mTLS").await;
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, asked) = (done.clone(), asked.clone());
            tokio::spawn(async move {
                // A connection each, so that handshakes go on upstream too whenever one is closed.
                while !done.load(Ordering::Relaxed) {
                    let answer = answer(front).await;
                    assert_eq!(answer, "200 one", "request {}", asked.load(Ordering::Relaxed));
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let begin = Instant::now();
    for serial in 2..12 {
        control.cache.set(NODE, snapshot(&resources(issue(serial))));
        assert!(control.settled(&ResourceType::SECRET).await);
        let asked_then = asked.load(Ordering::Relaxed);
        assert!(
            eventually(DEADLINE, || std::future::ready(asked.load(Ordering::Relaxed) > asked_then + 20))
                .await
        );
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request is lost");
    }
    let stats = proxy.stats().await;
    assert!(stats["sds.own.update_success"] >= 11, "{:?}", stats.get("sds.own.update_success"));
    assert!(begin.elapsed() < Duration::from_secs(60));
}

/// A certificate near its end is asked for anew while the stream is silent, and serves on meanwhile.
async fn ending(delta: bool) {
    let ca = Authority::new("ca");
    let origin = named("one").await;
    let (front, back) = (free_port(), free_port());
    let ending = ca.issue_for(URI, &["workload.mesh.test"], (10_000, 600));
    let resources = [mesh(front, back, origin.port()), vec![certificate(&ending), trust(&[&ca])]].concat();
    let control = ControlPlane::on(0, snapshot(&resources)).await;
    let proxy = Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await;
    wait_for(front, "200 one", "at the start").await;
    let again = || async {
        assert_eq!(answer(front).await, "200 one", "the last good one serves on");
        let stats = proxy.stats().await;
        stats.get("sds.own.early_refetch") == Some(&1) && stats["sds.own.update_success"] >= 2
    };
    assert!(eventually(DEADLINE, again).await, "{:?}", proxy.stats().await.get("sds.own.update_success"));
    assert!(proxy.output().contains("is asked for anew"), "{}", proxy.output());
    assert!(!proxy.stats().await.contains_key("sds.trust.early_refetch"));
    assert_eq!(answer(front).await, "200 one");
}

#[tokio::test]
async fn certificates_near_their_end_are_asked_for_anew() {
    ending(false).await;
}

#[tokio::test]
async fn certificates_near_their_end_are_asked_for_anew_by_delta() {
    ending(true).await;
}
