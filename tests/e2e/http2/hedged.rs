//! Tries that go on beside the next over HTTP/2 upstream (`hedge_on_per_try_timeout`), beside Envoy: which answer the
//! client gets, how the streams of the others end, and what is counted.

use crate::differential::bootstrap::{endpoints, origins, Bootstrap};
use crate::harness::client::get;
use crate::harness::http2;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use http::Response;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What one try gets: a status after a time in milliseconds; 0 = nothing until its stream is reset.
type Try = (u16, u64);

const CASES: [(&str, [Try; 2]); 6] = [
    ("/quick", [(200, 0), (200, 0)]),
    ("/second", [(0, 0), (200, 0)]),
    ("/first", [(200, 700), (0, 0)]),
    ("/fails", [(503, 700), (200, 900)]),
    ("/other-fails", [(200, 1300), (503, 100)]),
    ("/both-fail", [(503, 1300), (500, 100)]),
];

#[tokio::test]
async fn hedging_over_http2() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let hosts = "- name: all\n  domains: ['*']\n  include_request_attempt_count: true\n  \
                 include_attempt_count_in_response: true\n  hedge_policy: { hedge_on_per_try_timeout: true }\n  routes:\n  \
                 - { match: { prefix: / }, route: { cluster: hedged, timeout: 3.3s, retry_policy: { retry_on: 5xx, \
                 num_retries: 1, per_try_timeout: 0.4s } } }\n";
    let mut told = Vec::new();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let resets: Arc<Mutex<Vec<u32>>> = Arc::default();
        let seen = resets.clone();
        let port = http2::serve(move |request, mut respond| {
            let seen = seen.clone();
            async move {
                let attempt = request.headers().get("x-envoy-attempt-count");
                let attempt: usize = attempt.and_then(|text| text.to_str().ok()?.parse().ok()).unwrap_or(1);
                let path = request.uri().path();
                let script = CASES.iter().find(|(own, _)| *own == path).expect("a case").1;
                let (status, millis) = script[(attempt - 1).min(1)];
                let answered = async {
                    if status == 0 {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                };
                tokio::select! {
                    () = answered => {}
                    reason = poll_fn(|context| respond.poll_reset(context)) => {
                        let reason = reason.map_or(u32::MAX, u32::from);
                        return seen.lock().expect("resets").push(reason);
                    }
                }
                let head = Response::builder().status(status).body(()).expect("a head");
                if let Ok(mut stream) = respond.send_response(head, false) {
                    let _ = stream.send_data(format!("try {attempt}").into(), true);
                }
            }
        })
        .await;
        let cluster = format!("{}\nhttp2_protocol_options: {{}}", endpoints(&[&port.to_string()]));
        let template = Bootstrap::new().cluster("hedged", &cluster).listener("main", "", hosts).render();
        let proxy = Proxy::start(Plan::new(kind, &template, &origins(port, port))).await;
        let asked = CASES.map(|(path, _)| {
            let port = proxy.port("main");
            async move {
                let answer = get(port, path).await.expect("an answer");
                let attempts = answer.header("x-envoy-attempt-count").unwrap_or_default().to_owned();
                format!("{path}: {} {:?} after {attempts}", answer.status(), answer.text())
            }
        });
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(asked.await);
        }
        // One for each case whose other try was still on its way.
        let all = || std::future::ready(resets.lock().expect("resets").len() >= 2);
        assert!(
            eventually(DEADLINE, all).await,
            "{kind:?}: {:?} {answers:?}",
            resets.lock().expect("resets")
        );
        let over = || async { proxy.stats().await.get("cluster.hedged.upstream_rq_active") == Some(&0) };
        assert!(eventually(DEADLINE, over).await, "{kind:?}: a try is left over");
        // Envoy says INTERNAL_ERROR, which no host has to do with.
        let ended = resets.lock().expect("resets").len();
        let stats = proxy.stats().await;
        let rooms = [
            "rq_total",
            "rq_completed",
            "rq_200",
            "rq_503",
            "rq_500",
            "rq_retry",
            "rq_retry_success",
            "rq_per_try_timeout",
            "rq_tx_reset",
            "cx_total",
        ];
        let counted = rooms.map(|room| {
            format!("{room}: {}", stats.get(&format!("cluster.hedged.upstream_{room}")).copied().unwrap_or(0))
        });
        told.push((answers, ended, counted));
    }
    assert_eq!(told[0], told[1], "left Envoy, right Outrigger");
}
