//! `max_connection_pools` beside the real Envoy: so many hosts may have connections at a time.

use std::collections::BTreeMap;

use serde_json::json;

use super::{failures, Setup};
use crate::harness::client::get;

use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Origin, Then};
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const COUNTED: [&str; 9] = [
    "upstream_cx_pool_overflow",
    "upstream_cx_none_healthy",
    "upstream_cx_overflow",
    "upstream_cx_total",
    "upstream_rq_total",
    "upstream_rq_503",
    "upstream_rq_pending_overflow",
    "circuit_breakers.default.cx_pool_open",
    "circuit_breakers.default.remaining_cx_pools",
];

/// What comes of nine requests to three hosts of which two may have connections: those that stay, then those that go.
async fn story(kind: Kind) -> String {
    let mut origins = Vec::new();
    for _ in 0..3 {
        let answer = |request: &Message| match request.target().ends_with("/close") {
            true => Answer::raw("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .then(Then::Close),
            false => Answer::ok("ok"),
        };
        origins.push(Origin::with(true, answer).await);
    }
    let ports: Vec<u16> = origins.iter().map(Origin::port).collect();
    let mut setup = Setup::default();
    let options =
        json!({"circuit_breakers": {"thresholds": [{"max_connection_pools": 2, "track_remaining": true}]}});
    let retry = json!({"retry_policy": {"retry_on": "5xx,connect-failure", "num_retries": 2}});
    setup.cluster("stay", &[&ports], &options, &json!({}));
    setup.cluster("go", &[&ports], &options, &json!({}));
    setup.cluster("again", &[&ports], &options, &retry);
    let proxy = setup.start(kind, "1").await;
    let mut text = String::new();
    for target in ["/stay", "/go/close", "/again"] {
        let mut statuses = BTreeMap::<u16, usize>::new();
        for _ in 0..9 {
            let answer = get(proxy.port("main"), target).await.expect("an answer");
            *statuses.entry(answer.status()).or_default() += 1;
        }
        text += &format!("{target}: {statuses:?}\n");
    }
    for cluster in ["stay", "go", "again"] {
        let name = |stat: &str| format!("cluster.{cluster}.{stat}");
        let gone = || async { cluster != "go" || proxy.stats().await[&name("upstream_cx_active")] == 0 };
        text += &format!("{cluster}: {}\n", eventually(DEADLINE, gone).await);
        let stats = proxy.stats().await;
        for stat in COUNTED {
            text += &format!("  {stat} {:?}\n", stats.get(&name(stat)));
        }
    }
    let logged = eventually(DEADLINE, || std::future::ready(failures(&proxy).len() >= 6)).await;
    text += &format!("failures were logged: {logged}\n");
    for failure in failures(&proxy) {
        let host = ports.iter().any(|port| failure.host.ends_with(&port.to_string()));
        text += &format!("{} {} {} with a host: {host}\n", failure.cluster, failure.status, failure.flags);
    }
    text
}

#[tokio::test]
async fn so_many_hosts_have_connections() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) = tokio::join!(story(Kind::Envoy), story(Kind::Outrigger));
    if std::env::var_os("OUTRIGGER_E2E_SHOW").is_some() {
        println!("--- Envoy\n{theirs}--- Outrigger\n{ours}");
    }
    assert!(theirs == ours, "they differ\n--- Envoy\n{theirs}--- Outrigger\n{ours}");
}
