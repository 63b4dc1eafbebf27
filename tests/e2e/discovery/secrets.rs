//! Certificates and trust that a control plane sends (SDS): what waits for them, and what a change of them does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::server::ResourceType;

use super::beside::Both;
use super::clients::named;
use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh, NODE};
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use crate::tls::certs::{Authority, NOW};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const SDS: &str = "sds_config: { resource_api_version: V3, ads: {}, initial_fetch_timeout: 1s }";
/// A name of each workload.
const URI: &str = "spiffe://mesh.test/workload";

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("      {line}\n")).collect()
}

fn certificate((chain, key): &(String, String)) -> String {
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
