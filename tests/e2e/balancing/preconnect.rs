//! Connections that are opened before a request needs them: as many as Envoy opens, after each request.

use super::Setup;
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use serde_json::{json, Value};
use std::sync::Arc;
use tokio::sync::Semaphore;

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn endpoint(port: u16) -> Value {
    json!({"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}]})
}

fn ahead(ratio: f64) -> Value {
    json!({"preconnect_policy": {"per_upstream_preconnect_ratio": ratio}})
}

#[tokio::test]
async fn as_many_connections_are_opened_ahead_as_by_envoy() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let origin = Origin::with(false, move |_| Answer::ok("0").gated(&held)).await;
    // What is asked over HTTP/2.
    let mut middle = Setup::default();
    middle.cluster("held", vec![endpoint(origin.port())], json!({}));
    for path in ["h2", "plain", "ahead", "half", "few", "sick"] {
        middle.route(path, json!({"cluster": "held", "timeout": "0s"}));
    }
    let middle = Proxy::start(Plan::new(Kind::Outrigger, &middle.render(), &[])).await;
    let mut setup = Setup::default();
    let mut h2 = ahead(2.0);
    h2["typed_extension_protocol_options"] = json!({OPTIONS: {
        "@type": format!("type.googleapis.com/{OPTIONS}"),
        "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 2}}}});
    setup.cluster("h2", vec![endpoint(middle.port("main"))], h2);
    setup.cluster("plain", vec![endpoint(origin.port())], json!({}));
    setup.cluster("ahead", vec![endpoint(origin.port())], ahead(2.0));
    setup.cluster("half", vec![endpoint(origin.port())], ahead(1.5));
    let mut few = ahead(3.0);
    few["circuit_breakers"] = json!({"thresholds": [{"max_connections": 2}]});
    setup.cluster("few", vec![endpoint(origin.port())], few);
    let names = ["h2", "plain", "ahead", "half", "few"];
    for name in names {
        setup.route(name, json!({"cluster": name, "timeout": "0s"}));
    }
    let Some(sides) = setup.start().await else { return };
    for name in names {
        let mut clients = Vec::new();
        for request in 1..=4 {
            if name == "few" && request > 2 {
                break;
            }
            for side in &sides {
                let mut client = Client::connect(side.proxy.port("main")).await.expect("a connection");
                let text = format!("GET /{name}/ HTTP/1.1\r\nhost: t.test\r\n\r\n");
                client.send(text.as_bytes()).await.expect("sent");
                clients.push(client);
                let active = format!("cluster.{name}.upstream_rq_active");
                let begun = || async { side.proxy.stats().await[&active] == request };
                assert!(eventually(DEADLINE, begun).await, "{name}: request {request}");
            }
            let [theirs, ours] = &sides;
            let opened = format!("cluster.{name}.upstream_cx_active");
            let same = || async {
                let (theirs, ours) = (theirs.proxy.stats().await, ours.proxy.stats().await);
                theirs[&opened] == ours[&opened] && ours[&opened] > 0
            };
            let alike = eventually(DEADLINE, same).await;
            let (theirs, ours) = (theirs.proxy.stats().await, ours.proxy.stats().await);
            assert!(
                alike,
                "{name}: after request {request} Envoy has {} connections, Outrigger {}",
                theirs[&opened], ours[&opened]
            );
            println!("{name}: {request} requests, {} connections", ours[&opened]);
        }
    }
    gate.add_permits(1000);
}

/// The cluster as a whole connects ahead, to hosts in their order. Which of them is the first is drawn, so it is the
/// number of connections after each request that has to be alike.
#[tokio::test]
async fn hosts_that_come_next_are_connected_to_as_by_envoy() {
    let gate = Arc::new(Semaphore::new(0));
    let mut origins = Vec::new();
    for _ in 0..6 {
        let held = gate.clone();
        origins.push(Origin::with(false, move |_| Answer::ok("0").gated(&held)).await);
    }
    let endpoints = || origins.iter().map(|origin| endpoint(origin.port())).collect::<Vec<_>>();
    let cases = [
        ("half", json!({"preconnect_policy": {"predictive_preconnect_ratio": 1.5}})),
        ("twice", json!({"preconnect_policy": {"predictive_preconnect_ratio": 2.0}})),
        (
            "least",
            json!({"lb_policy": "LEAST_REQUEST", "preconnect_policy": {"predictive_preconnect_ratio": 2.0}}),
        ),
        (
            "ring",
            json!({"lb_policy": "RING_HASH", "preconnect_policy": {"predictive_preconnect_ratio": 2.0}}),
        ),
    ];
    // Envoy adds up what all clusters of a worker have: each has a pair of proxies to itself.
    for (name, options) in cases {
        let mut setup = Setup::default();
        setup.cluster(name, endpoints(), options);
        setup.route(name, json!({"cluster": name, "timeout": "0s"}));
        let Some(sides) = setup.start().await else { return };
        let mut clients = Vec::new();
        let (active, opened) =
            (format!("cluster.{name}.upstream_rq_active"), format!("cluster.{name}.upstream_cx_active"));
        for request in 1..=4 {
            for side in &sides {
                let mut client = Client::connect(side.proxy.port("main")).await.expect("a connection");
                let text = format!("GET /{name}/ HTTP/1.1\r\nhost: t.test\r\n\r\n");
                client.send(text.as_bytes()).await.expect("sent");
                clients.push(client);
                let begun = || async { side.proxy.stats().await[&active] == request };
                assert!(eventually(DEADLINE, begun).await, "{name}: request {request}");
            }
            let counts = || async {
                let [theirs, ours] = &sides;
                [theirs.proxy.stats().await[&opened], ours.proxy.stats().await[&opened]]
            };
            let alike = || async { matches!(counts().await, [theirs, ours] if theirs == ours && ours > 0) };
            let alike = eventually(DEADLINE, alike).await;
            assert!(alike, "{name}: after request {request} Envoy and Outrigger have {:?}", counts().await);
            println!("{name}: {request} requests, {:?} connections", counts().await);
        }
    }
    gate.add_permits(1000);
}
