//! Statistics of both proxies after the same traffic over HTTP/2.

use super::client::{http1, http2, Ask, Client};
use super::matrix::{bootstrap, start, End};
use super::origin::{Act, Body, Break, Pairs, Plan};
use crate::differential::counters::comparable;
use crate::differential::set;
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use h2::Reason;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use tokio::net::TcpStream;

/// What must be there.
const REQUIRED: &[&str] = &[
    "http.to-h2.downstream_cx_http2_total",
    "http.to-h2.downstream_cx_http2_active",
    "http.to-h2.downstream_cx_http1_total",
    "http.to-h2.downstream_rq_http2_total",
    "http.to-h2.downstream_rq_http1_total",
    "http.to-h2.downstream_rq_rx_reset",
    "http.to-h2.downstream_rq_tx_reset",
    "http.to-h2.downstream_cx_upgrades_total",
    "cluster.h2.upstream_cx_http2_total",
    "cluster.h2.upstream_cx_http1_total",
    "cluster.h2.upstream_rq_total",
    "cluster.h2.upstream_rq_rx_reset",
    "cluster.h2.upstream_rq_tx_reset",
    "cluster.h2.upstream_rq_timeout",
    "http2.rx_reset",
    "http2.tx_reset",
    "http2.trailers",
    "http2.streams_active",
    "http2.goaway_sent",
    "cluster.h2.http2.rx_reset",
    "cluster.h2.http2.tx_reset",
    "cluster.h2.http2.trailers",
    "cluster.h2.http2.streams_active",
    "cluster.h2.http2.keepalive_timeout",
];

const ROOMS: &[&str] = &["http.to-h1.", "http.to-h2.", "cluster.h1.", "cluster.h2.", "http2."];

fn ask(path: &'static str) -> Ask {
    Ask {
        method: "GET",
        path,
        authority: "t.test",
        headers: vec![],
        body: Body::None,
        trailers: vec![],
        websocket: false,
        client: Client::Whole,
    }
}

fn post(body: Body, trailers: Pairs) -> Ask {
    Ask { method: "POST", body, trailers, ..ask("/a") }
}

/// Exchanges, each with the origin's part.
fn exchanges() -> Vec<(Ask, Act)> {
    let ok = |body, trailers: Pairs| Act::Answer { status: 200, headers: vec![], body, trailers };
    let plain = || ok(Body::Fixed(2), vec![]);
    let late = || vec![("x-late", "1")];
    vec![
        (ask("/a"), plain()),
        (post(Body::Fixed(200_000), vec![]), plain()),
        (post(Body::Streamed(10, 2), late()), ok(Body::Streamed(10, 2), late())),
        (Ask { authority: "none.test", ..ask("/a") }, plain()),
        (ask("/direct"), plain()),
        (ask("/empty"), plain()),
        (ask("/timeout"), Act::Stall(None)),
        (ask("/timeout"), Act::Stall(Some(10))),
        (ask("/a"), Act::Break(None, Break::Reset(Reason::INTERNAL_ERROR))),
        (ask("/a"), Act::Break(Some(10), Break::Reset(Reason::INTERNAL_ERROR))),
        (Ask { client: Client::BreakRequest, ..post(Body::Streamed(1000, 2), vec![]) }, plain()),
        (Ask { client: Client::BreakResponse, ..ask("/a") }, Act::Stall(Some(10))),
        (Ask { websocket: true, client: Client::Tunnel(b"hello"), ..ask("/ws") }, Act::Tunnel),
        (ask("/a"), Act::Answer { status: 404, headers: vec![], body: Body::None, trailers: vec![] }),
        (ask("/a"), Act::Answer { status: 503, headers: vec![], body: Body::None, trailers: vec![] }),
    ]
}

/// A client whose connection ends while a request of its is unanswered.
async fn leave(end: &End, upstream: &str) {
    end.origin.plan(Plan { at_head: false, after: 0, interim: vec![], act: Act::Stall(None) });
    let stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, end.side.proxy.port(upstream))).await.expect("connected");
    let (mut requests, connection) = h2::client::handshake(stream).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    let request = http::Request::get("http://t.test/a").body(()).expect("a request");
    let answer = requests.send_request(request, true).expect("sent");
    let gauge = format!("cluster.{}.upstream_rq_active", upstream.trim_start_matches("to-"));
    let asked = || async { end.side.proxy.stats().await.get(&gauge) == Some(&1) };
    assert!(eventually(DEADLINE, asked).await, "nobody is asked");
    driver.abort();
    drop((requests, answer));
}

async fn traffic(end: &End) -> BTreeMap<String, u64> {
    let (side, origin) = (&end.side, &end.origin);
    for upstream in ["to-h1", "to-h2"] {
        let port = side.proxy.port(upstream);
        for (ask, act) in exchanges() {
            for downstream in [1, 2] {
                // The tunnels of different protocols end differently; see the matrix.
                if ask.websocket && (downstream == 1 || upstream == "to-h1") {
                    continue;
                }
                origin.plan(Plan { at_head: false, after: 0, interim: vec![], act: act.clone() });
                match downstream {
                    1 => http1(port, &ask, origin).await,
                    _ => http2(port, &ask, origin).await,
                };
                origin.settled().await;
            }
        }
        leave(end, upstream).await;
    }
    let quiet = || async {
        let stats = side.proxy.stats().await;
        let zero = |name: &str| stats.get(name) == Some(&0);
        zero("http.to-h1.downstream_cx_active")
            && zero("http.to-h2.downstream_cx_active")
            && zero("cluster.h1.upstream_rq_active")
            && zero("cluster.h2.upstream_rq_active")
    };
    assert!(eventually(DEADLINE, quiet).await, "{:?} is not quiet", side.proxy.kind());
    side.proxy.stats().await
}

/// Names that may differ, with the reason.
const DIFFERENT: &[(&str, &str)] = &[
    // Over HTTP/2 the request of a tunnel has no body of its own, and is complete with its head.
    ("downstream_rq_response_before_rq_complete", "tunnels"),
];

#[tokio::test]
async fn counters_after_the_same_traffic() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = bootstrap().render();
    let theirs = traffic(&start(Kind::Envoy, &template).await).await;
    let missing: Vec<_> = REQUIRED.iter().filter(|name| !theirs.contains_key(**name)).collect();
    assert!(missing.is_empty(), "the test asks for names that Envoy does not have: {missing:?}");
    if set("OUTRIGGER_E2E_SHOW").is_some() {
        println!("{:#?}", theirs.iter().filter(|(n, _)| comparable(n, ROOMS)).collect::<Vec<_>>());
    }
    let mine = traffic(&start(Kind::Outrigger, &template).await).await;
    let mut wrong: Vec<String> = REQUIRED
        .iter()
        .filter(|name| !mine.contains_key(**name))
        .map(|name| format!("{name} is missing"))
        .collect();
    for (name, value) in mine.iter().filter(|(name, _)| comparable(name, ROOMS)) {
        let accepted = DIFFERENT.iter().any(|(different, _)| name.ends_with(different));
        match theirs.get(name) {
            Some(expected) if expected != value && !accepted => {
                wrong.push(format!("{name}: {expected} with Envoy, {value} with Outrigger"));
            }
            Some(_) => {}
            None => wrong.push(format!("{name} is no name of Envoy's")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
