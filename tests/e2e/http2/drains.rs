//! How HTTP/2 connections are told to leave: GOAWAY with the highest stream first, then with the last one that will be
//! served (RFC 9113 §6.8). Streams under way end well, and connections without streams are told too.

use super::raw::*;
use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const HIGHEST: u32 = 0x7fff_ffff;

/// The next frame that is no SETTINGS or window; PINGs are answered and not shown.
async fn next(raw: &mut Raw) -> Option<Frame> {
    loop {
        let frame = raw.next(DEADLINE).await?;
        match frame.kind {
            SETTINGS | WINDOW_UPDATE => {}
            PING if frame.flags & ACK == 0 => {
                let _ = raw.send(&super::raw::frame(PING, ACK, 0, &frame.payload)).await;
            }
            _ => return Some(frame),
        }
    }
}

async fn goaway(raw: &mut Raw, what: &str) -> u32 {
    let frame = next(raw).await.unwrap_or_else(|| panic!("{what}: the connection was closed without a word"));
    assert_eq!((frame.kind, frame.number(4)), (GOAWAY, NO_ERROR), "{what}: {frame:?}");
    frame.number(0)
}

#[tokio::test]
async fn sigterm_says_goaway_twice_and_lets_streams_end() {
    let gate = Arc::new(Semaphore::new(0));
    let origin = Origin::start().await;
    let held = gate.clone();
    origin.answer(move |request| match request.target() {
        "/held" => Answer::ok("late").gated(&held),
        _ => Answer::ok("ok"),
    });
    let template = Bootstrap::new().plain("main", "codec_type: HTTP2").render();
    let values = origins(origin.port(), origin.port());
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.arguments = &["--drain-time-s", "5"];
    let mut proxy = Proxy::start(plan).await;
    let mut busy = Raw::open(proxy.port("main")).await;
    let mut idle = Raw::open(proxy.port("main")).await;
    let mut fresh = Raw::open(proxy.port("main")).await;
    assert_eq!(idle.get(1, "/").await, Outcome::Status(200, 2));
    assert_eq!(busy.get(1, "/").await, Outcome::Status(200, 2));
    busy.send(&get(3, "/held")).await.expect("sent");
    assert!(origin.wait_for(3).await);
    proxy.signal(libc::SIGTERM);

    for (raw, last, what) in [(&mut idle, 1, "idle"), (&mut fresh, 0, "never used")] {
        assert_eq!(goaway(raw, what).await, HIGHEST, "{what}: the first GOAWAY");
        assert_eq!(goaway(raw, what).await, last, "{what}: the last GOAWAY");
        assert!(raw.ended(DEADLINE).await.0, "{what}: stays open");
    }
    assert_eq!(goaway(&mut busy, "busy").await, HIGHEST);
    // Between the two GOAWAYs a client may not know yet: such a stream is served.
    assert_eq!(goaway(&mut busy, "busy").await, 3);
    // One that comes after the last is not answered, and harms nobody.
    busy.send(&get(5, "/")).await.expect("sent");
    gate.add_permits(10);
    assert_eq!(busy.outcome(3, DEADLINE).await, Outcome::Status(200, 4));
    assert!(busy.ended(DEADLINE).await.0, "the connection stays open after its last stream");
    let status = proxy.exit(Duration::from_secs(8)).await;
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", proxy.output());
}

#[tokio::test]
async fn a_stream_that_crosses_the_first_goaway_is_served() {
    let origin = Origin::start().await;
    let template = Bootstrap::new().plain("main", "codec_type: HTTP2").render();
    let values = origins(origin.port(), origin.port());
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.arguments = &["--drain-time-s", "5"];
    let proxy = Proxy::start(plan).await;
    let mut raw = Raw::open(proxy.port("main")).await;
    assert_eq!(raw.get(1, "/").await, Outcome::Status(200, 2));
    proxy.signal(libc::SIGTERM);
    // The PING that comes with the first GOAWAY is not answered before the request is out.
    let mut told = false;
    let ping = loop {
        let frame = raw.next(DEADLINE).await.expect("a frame");
        told |= frame.kind == GOAWAY && frame.number(0) == HIGHEST;
        if told && frame.kind == PING {
            break frame;
        }
    };
    raw.send(&[get(3, "/"), frame(PING, ACK, 0, &ping.payload)].concat()).await.expect("sent");
    let mut last = None;
    let mut served = false;
    while let Some(frame) = raw.next(DEADLINE).await {
        if frame.kind == GOAWAY {
            last = Some(frame.number(0));
        }
        served |= frame.stream == 3 && frame.kind == HEADERS && frame.status() == 200;
    }
    assert_eq!((served, last), (true, Some(3)));
}

#[tokio::test]
async fn time_limits_of_a_connection_end_it_in_good_order() {
    let origin = Origin::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    origin.answer(move |request| match request.target() {
        "/held" => Answer::ok("late").gated(&held),
        _ => Answer::ok("ok"),
    });
    let template = Bootstrap::new()
        .plain("idle", "codec_type: HTTP2\ncommon_http_protocol_options: { idle_timeout: 0.5s }\ndrain_timeout: 0.3s")
        .plain("old", "codec_type: HTTP2\ncommon_http_protocol_options: { max_connection_duration: 0.5s }\ndrain_timeout: 0.3s")
        .plain("counted", "codec_type: HTTP2\ncommon_http_protocol_options: { max_requests_per_connection: 2 }")
        .render();
    let proxy = Proxy::outrigger(&template, &origins(origin.port(), origin.port())).await;

    let mut raw = Raw::open(proxy.port("idle")).await;
    assert_eq!(raw.get(1, "/").await, Outcome::Status(200, 2));
    assert_eq!(goaway(&mut raw, "idle").await, HIGHEST);
    assert_eq!(goaway(&mut raw, "idle").await, 1);
    assert!(raw.ended(DEADLINE).await.0);
    assert_eq!(proxy.stats().await.get("http.idle.downstream_cx_idle_timeout"), Some(&1));

    // A client that does not answer the PING between them is cut all the same.
    let mut raw = Raw::open(proxy.port("idle")).await;
    assert_eq!(raw.get(1, "/").await, Outcome::Status(200, 2));
    assert_eq!(raw.ended(DEADLINE).await, (true, Some(NO_ERROR)));

    let mut raw = Raw::open(proxy.port("old")).await;
    raw.send(&get(1, "/held")).await.expect("sent");
    assert_eq!(goaway(&mut raw, "old").await, HIGHEST);
    assert_eq!(goaway(&mut raw, "old").await, 1);
    gate.add_permits(10);
    assert_eq!(raw.outcome(1, DEADLINE).await, Outcome::Status(200, 4));
    assert!(raw.ended(DEADLINE).await.0);
    assert_eq!(proxy.stats().await.get("http.old.downstream_cx_max_duration_reached"), Some(&1));

    let mut raw = Raw::open(proxy.port("counted")).await;
    assert_eq!(raw.get(1, "/").await, Outcome::Status(200, 2));
    raw.send(&get(3, "/")).await.expect("sent");
    let (mut served, mut goaways) = (false, Vec::new());
    while let Some(frame) = next(&mut raw).await {
        if frame.kind == GOAWAY {
            goaways.push((frame.number(0), frame.number(4)));
        }
        served |= frame.stream == 3 && frame.ends();
    }
    assert!(served, "the last request is served");
    assert_eq!(goaways, [(HIGHEST, NO_ERROR), (3, NO_ERROR)]);
}

/// Endpoints for a cluster whose source is a file, moved into place.
fn put_endpoints(directory: &std::path::Path, ports: &[u16]) {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|port| {
            let address =
                serde_json::json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
            serde_json::json!({ "endpoint": { "address": address } })
        })
        .collect();
    let assignment = serde_json::json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "pods",
        "endpoints": [{ "lb_endpoints": endpoints }],
    });
    let response = serde_json::json!({ "version_info": ports.len().to_string(), "resources": [assignment] });
    let aside = directory.join("aside");
    std::fs::write(&aside, response.to_string()).expect("written");
    std::fs::rename(&aside, directory.join("eds.json")).expect("moved");
}

#[tokio::test]
async fn a_fair_share_of_the_clients_moves_when_the_service_grows() {
    let origin = Origin::start().await;
    let files = tempfile::tempdir().expect("a directory");
    put_endpoints(files.path(), &[origin.port()]);
    let path = files.path().join("eds.json").display().to_string();
    let template = Bootstrap::new().plain("main", "codec_type: HTTP2").render().replace(
        "  clusters:\n",
        &format!(
            "  clusters:\n  - name: pods\n    type: EDS\n    eds_cluster_config: {{ eds_config: \
             {{ resource_api_version: V3, path_config_source: {{ path: {path} }} }} }}\n"
        ),
    );
    let values = origins(origin.port(), origin.port());
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.arguments = &["--rebalance-cluster", "pods", "--rebalance-window-s", "1"];
    let proxy = Proxy::start(plan).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut raw = Raw::open(proxy.port("main")).await;
        assert_eq!(raw.get(1, "/").await, Outcome::Status(200, 2));
        clients.push(raw);
    }
    let members = |count: u64| {
        let proxy = &proxy;
        move || async move { proxy.stats().await.get("cluster.pods.membership_total") == Some(&count) }
    };
    assert!(eventually(DEADLINE, members(1)).await);
    put_endpoints(files.path(), &[origin.port(), 1]);
    assert!(eventually(DEADLINE, members(2)).await);
    let mut moved = 0;
    let mut stream = 1;
    // They ask on, until all who are to move must have been told: growth is seen within a second.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        stream += 2;
        let mut staying = Vec::new();
        for mut raw in clients {
            assert_eq!(raw.get(stream, "/").await, Outcome::Status(200, 2), "a request is lost");
            let told = raw.goaway.is_some();
            moved += usize::from(told);
            if !told {
                staying.push(raw);
            }
        }
        clients = staying;
    }
    assert!((8..=32).contains(&moved), "{moved} of 40 moved, where half is fair");
}
