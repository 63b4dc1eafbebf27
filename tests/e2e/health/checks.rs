//! Hosts that are asked how they are.

use super::{beside, Bed, Setup};
use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Then};
use crate::harness::{eventually, http2, DEADLINE};
use bytes::Bytes;
use std::fmt::Write;

const FAILED: &str = "/failed_active_hc";
const WELL: &str = "healthy";

/// One check, often; `checker` is what is asked.
fn check(checker: &str) -> String {
    format!(
        "health_checks:\n- timeout: 2s\n  interval: 0.1s\n  no_traffic_interval: 0.1s\n  unhealthy_threshold: 2\n  \
         healthy_threshold: 2\n  event_log_path: \"@dir@/checks.log\"\n{checker}"
    )
}

fn http_check(more: &str) -> String {
    check(&format!("  http_health_check: {{ path: /hc{more} }}\n"))
}

/// Makes a host answer checks so, and requests with `ok`.
fn answers(bed: &Bed, host: usize, answer: Answer) {
    bed.origins[host].answer(move |request| match request.target() {
        "/hc" => answer.clone(),
        _ => Answer::ok("ok"),
    });
}

fn status(code: u16) -> Answer {
    Answer::status(code, "X", "x")
}

fn with_header(code: u16, header: &str) -> Answer {
    Answer::raw(format!("HTTP/1.1 {code} X\r\n{header}: 1\r\ncontent-length: 0\r\n\r\n"))
}

/// What there is to compare but counts of checks, which depend on time.
async fn observed(bed: &Bed, events: usize) -> String {
    // Envoy never lowers health_check.degraded: a host that recovers stays counted.
    let gauges = bed.stats(&["health_check.healthy", "membership_"]).await;
    let (page, statuses, events) =
        (bed.page().await, bed.statuses().await, bed.events("checks.log", events).await);
    format!("{gauges}{page}{statuses}{events}")
}

#[tokio::test]
async fn answers_fail_at_once_and_silence_by_the_threshold() {
    let setup = Setup { refused: 1, ..Setup::new(3, &http_check("")) };
    beside(setup, |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL, WELL, FAILED]).await;
        text += &format!("{:?}\n", bed.requests(9).await);
        answers(&bed, 0, status(503));
        text += &bed.until_flags(&[FAILED, WELL, WELL, FAILED]).await;
        answers(&bed, 1, Answer::raw("").then(Then::Reset));
        text += &bed.until_flags(&[FAILED, FAILED, WELL, FAILED]).await;
        text += &observed(&bed, 6).await;
        answers(&bed, 0, status(200));
        answers(&bed, 1, status(200));
        text += &bed.until_flags(&[WELL, WELL, WELL, FAILED]).await;
        text += &format!("{:?}\n", bed.requests(9).await);
        text + &observed(&bed, 8).await
    })
    .await;
}

#[tokio::test]
async fn flags_of_an_answer() {
    beside(Setup::new(3, &http_check("")), |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL, WELL]).await;
        answers(&bed, 0, with_header(200, "x-envoy-degraded"));
        answers(&bed, 1, with_header(503, "x-envoy-immediate-health-check-fail"));
        let excluded = "/failed_active_hc/excluded_via_immediate_hc_fail";
        text += &bed.until_flags(&["/degraded_active_hc", excluded, WELL]).await;
        text += &observed(&bed, 5).await;
        answers(&bed, 0, status(200));
        answers(&bed, 1, status(200));
        text += &bed.until_flags(&[WELL, WELL, WELL]).await;
        text + &observed(&bed, 7).await
    })
    .await;
}

#[tokio::test]
async fn answers_that_do_not_come_in_time() {
    let options = http_check("").replace("timeout: 2s", "timeout: 0.2s");
    beside(Setup::new(2, &options), |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL]).await;
        answers(&bed, 1, Answer::raw("").then(Then::Hang));
        text += &bed.until_flags(&[WELL, "/failed_active_hc/active_hc_timeout"]).await;
        text += &observed(&bed, 3).await;
        answers(&bed, 1, status(500));
        text += &bed.until_flags(&[WELL, FAILED]).await;
        text
    })
    .await;
}

#[tokio::test]
async fn statuses_that_are_expected_or_only_count() {
    let options = http_check(
        ", expected_statuses: [ { start: 201, end: 300 } ], retriable_statuses: [ { start: 500, end: 501 } ]",
    );
    fn script(request: &Message) -> Answer {
        status(if request.target() == "/hc" { 202 } else { 200 })
    }
    beside(Setup { script: Some(script), ..Setup::new(3, &options) }, |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL, WELL]).await;
        answers(&bed, 0, status(200));
        answers(&bed, 1, status(500));
        text += &bed.until_flags(&[FAILED, FAILED, WELL]).await;
        text + &observed(&bed, 5).await
    })
    .await;
}

#[tokio::test]
async fn the_first_failure_is_logged_and_then_what_changes() {
    fn script(_: &Message) -> Answer {
        status(500)
    }
    beside(Setup { script: Some(script), ..Setup::new(1, &http_check("")) }, |bed| async move {
        let mut text = bed.until_stat("health_check.failure", 3).await;
        text += &bed.until_flags(&[FAILED]).await;
        // In panic, for want of others.
        text += &format!("{:?}\n", bed.requests(2).await);
        text + &observed(&bed, 1).await
    })
    .await;
}

#[tokio::test]
async fn every_failure_and_success_is_logged_where_that_is_wanted() {
    let options = http_check("")
        .replace("  event_log_path: \"@dir@/checks.log\"\n", concat!(
            "  event_logger:\n  - name: file\n    typed_config:\n      ",
            "\"@type\": type.googleapis.com/envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink\n",
            "      event_log_path: \"@dir@/checks.log\"\n  always_log_health_check_failures: true\n",
            "  always_log_health_check_success: true\n",
        ))
        .replace("interval: 0.1s", "interval: 60s");
    fn script(request: &Message) -> Answer {
        // One of each.
        status(if request.target() == "/hc" { 503 } else { 200 })
    }
    let setup = Setup { script: Some(script), ..Setup::new(2, &options) };
    beside(setup, |bed| async move {
        let mut text = bed.until_stat("health_check.attempt", 2).await;
        text += &bed.until_stat("health_check.failure", 2).await;
        let stats = bed.stats(&["health_check."]).await;
        text + &stats + &bed.events("checks.log", 2).await
    })
    .await;
}

#[tokio::test]
async fn what_a_check_sends() {
    let http = ", method: POST, send: { text: \"6869\" }, host: h.test, request_headers_to_add: [ { header: { key: x-a, value: b } }, \
                { header: { key: x-host, value: \"%UPSTREAM_HOST%\" } } ], request_headers_to_remove: [ user-agent ]";
    let more = ", request_headers_to_add: [ { header: { key: user-agent, value: more } }, \
                { header: { key: x-protocol, value: \"%PROTOCOL%\" } } ]";
    for more in ["", ", method: PUT", http, more] {
        beside(Setup::new(1, &http_check(more)), |bed| async move {
            let mut text = bed.until_flags(&[WELL]).await;
            let request = bed.origins[0].take().remove(0);
            let _ = write!(
                text,
                "{:?} {:?}",
                bed.named(&String::from_utf8_lossy(&request.raw_head)),
                request.text()
            );
            text
        })
        .await;
    }
}

#[tokio::test]
async fn a_body_and_the_name_of_the_service() {
    let options = http_check(
        ", receive: [ { text: \"6f6e65\" }, { binary: \"dHdv\" } ], service_name_matcher: { prefix: mine }",
    );
    fn script(_: &Message) -> Answer {
        let head = "HTTP/1.1 200 OK\r\nx-envoy-upstream-healthchecked-cluster: mine-too\r\n";
        Answer::raw(format!("{head}content-length: 9\r\n\r\n.one.two."))
    }
    beside(Setup { script: Some(script), ..Setup::new(3, &options) }, |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL, WELL]).await;
        let head = "HTTP/1.1 200 OK\r\nx-envoy-upstream-healthchecked-cluster:";
        answers(&bed, 0, Answer::raw(format!("{head} other\r\ncontent-length: 9\r\n\r\n.one.two.")));
        answers(&bed, 1, Answer::raw(format!("{head} mine\r\ncontent-length: 6\r\n\r\ntwoone")));
        text += &bed.until_flags(&[FAILED, FAILED, WELL]).await;
        text += &bed.until_stat("health_check.verify_cluster", 1).await;
        text + &observed(&bed, 5).await
    })
    .await;
}

#[tokio::test]
async fn hosts_with_checks_of_their_own() {
    let endpoint = |host: usize, more: &str| {
        format!(
            "          - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @host:{host}@ }} }}, \
             health_check_config: {{ {more} }} }}\n"
        )
    };
    // The second is checked at the first's port, the third not at all.
    let endpoints = [
        endpoint(0, "hostname: own.test"),
        endpoint(1, "port_value: @host:0@"),
        endpoint(2, "disable_active_health_check: true"),
        endpoint(3, "address: { socket_address: { address: 127.0.0.1, port_value: @host:0@ } }"),
    ];
    let setup = Setup { refused: 3, endpoints: Some(endpoints.concat()), ..Setup::new(1, &http_check("")) };
    beside(setup, |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL, WELL, WELL]).await;
        let heard = || {
            let mut hosts: Vec<String> = bed.origins[0]
                .take()
                .iter()
                .filter_map(|request| request.header("host").map(str::to_owned))
                .collect();
            hosts.sort();
            hosts.dedup();
            hosts
        };
        let _ = writeln!(text, "{:?}", heard());
        answers(&bed, 0, status(500));
        text += &bed.until_flags(&[FAILED, FAILED, WELL, FAILED]).await;
        text + &observed(&bed, 6).await
    })
    .await;
}

#[tokio::test]
async fn connections_and_bytes() {
    // GET /hc HTTP/1.1, and of the answer "200" and "ok".
    let bytes = "474554202f686320485454502f312e310d0a686f73743a20780d0a0d0a";
    for checker in [
        "  tcp_health_check: {}\n".to_owned(),
        format!("  tcp_health_check: {{ send: {{ text: \"{bytes}\" }}, receive: [ {{ text: \"323030\" }}, {{ binary: \"b2s=\" }} ] }}\n"),
    ] {
        let setup = Setup { refused: 1, ..Setup::new(2, &check(&checker)) };
        let plain = checker.contains("{}");
        beside(setup, move |bed| async move {
            let mut text = bed.until_flags(&[WELL, WELL, FAILED]).await;
            if !plain {
                answers(&bed, 0, status(200).then(Then::Close));
                text += &bed.until_flags(&[FAILED, WELL, FAILED]).await;
            }
            text + &observed(&bed, 4 - usize::from(plain)).await
        })
        .await;
    }
}

/// An HTTP/2 origin: the service `sick` does not serve, `none` is not known; other requests are answered 200, or 503 at
/// `/bad`.
pub async fn http2_origin() -> u16 {
    http2::serve(|request, mut respond| async move {
        let grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
        let path = request.uri().path().to_owned();
        let mut body = request.into_body();
        let mut sent = Vec::new();
        while let Some(Ok(piece)) = body.data().await {
            let _ = body.flow_control().release_capacity(piece.len());
            sent.extend_from_slice(&piece);
        }
        let name = sent.get(7..).unwrap_or_default();
        let response = http::Response::builder();
        if !grpc {
            let code = if path == "/bad" { 503 } else { 200 };
            let _ = respond.send_response(response.status(code).body(()).expect("a head"), true);
            return;
        }
        let response = response.header("content-type", "application/grpc");
        if name == b"none" {
            let response = response.header("grpc-status", "5").body(()).expect("a head");
            let _ = respond.send_response(response, true);
            return;
        }
        let Ok(mut stream) = respond.send_response(response.body(()).expect("a head"), false) else { return };
        let serving = if name == b"sick" { 2 } else { 1 };
        let _ = stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]), false);
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            "0".parse().expect("a value"),
        )]);
        let _ = stream.send_trailers(trailers);
    })
    .await
}

#[tokio::test]
async fn grpc_and_http2() {
    let port = http2_origin().await;
    for (checker, flags) in [
        ("grpc_health_check: {}", WELL),
        ("grpc_health_check: { service_name: good, authority: a.test }", WELL),
        ("grpc_health_check: { service_name: sick }", FAILED),
        ("grpc_health_check: { service_name: none }", FAILED),
        ("http_health_check: { path: /hc, codec_client_type: HTTP2 }", WELL),
        ("http_health_check: { path: /bad, codec_client_type: HTTP2 }", FAILED),
    ] {
        let options = format!("{}{}", check(&format!("  {checker}\n")), http2::OPTIONS);
        let setup = Setup { more: vec![port], refused: 1, ..Setup::new(0, &options) };
        beside(setup, move |bed| async move {
            let mut text = bed.until_stat("health_check.attempt", 6).await;
            text += &bed.until_flags(&[flags, FAILED]).await;
            text + &observed(&bed, 2).await
        })
        .await;
    }
}

#[tokio::test]
async fn a_host_that_asks_to_be_left_alone() {
    let options = http_check("").replace("interval: 0.1s", "interval: 60s");
    beside(Setup::new(2, &options), |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL]).await;
        bed.answers(0, with_header(200, "x-envoy-immediate-health-check-fail"));
        text += &format!("{:?}\n", bed.requests(2).await);
        text += &bed.until_flags(&["/failed_active_hc/excluded_via_immediate_hc_fail", WELL]).await;
        text += &bed.stats(&["health_check."]).await;
        text + &observed(&bed, 3).await
    })
    .await;
}

#[tokio::test]
async fn a_successful_check_brings_an_outlier_back() {
    let options = format!(
        "{}outlier_detection: {{ consecutive_5xx: 2, max_ejection_percent: 100, interval: 60s, base_ejection_time: 60s }}",
        http_check("").replace("interval: 0.1s", "interval: 0.4s")
    );
    beside(Setup::new(2, &options), |bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL]).await;
        bed.answers(1, status(500));
        let mut statuses = bed.requests(4).await;
        statuses.sort_unstable();
        text += &format!("{statuses:?}\n");
        text += &bed.until_stat("outlier_detection.ejections_enforced_total", 1).await;
        text += &bed.until_flags(&[WELL, WELL]).await;
        text + &bed.stats(&["outlier_detection."]).await + &bed.events("outliers.log", 2).await
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_dies_gets_no_requests() {
    beside(Setup::new(3, &http_check("")), |mut bed| async move {
        let mut text = bed.until_flags(&[WELL, WELL, WELL]).await;
        drop(bed.origins.remove(1));
        text += &bed.until_flags(&[WELL, FAILED, WELL]).await;
        // Not one goes wrong from here.
        let statuses = bed.requests(30).await;
        let good = statuses.iter().all(|status| *status == 200);
        let _ = writeln!(text, "{good}");
        let idle = || async { bed.stat("upstream_rq_active").await == 0 };
        assert!(eventually(DEADLINE, idle).await);
        text + &observed(&bed, 4).await
    })
    .await;
}

/// `close_connections_on_host_health_failure`: TCP sessions with a host that fails end, else they go on.
#[tokio::test]
async fn sessions_with_a_host_that_fails() {
    for close in [true, false] {
        let options = format!("{}close_connections_on_host_health_failure: {close}\n", http_check(""));
        beside(Setup { tcp: true, ..Setup::new(1, &options) }, |bed| async move {
            let mut text = bed.until_flags(&[WELL]).await;
            let mut client = Client::connect(bed.proxy.port("main")).await.expect("a connection");
            let request = b"GET / HTTP/1.1\r\nhost: t.test\r\n\r\n";
            text += &format!("{:?}\n", client.exchange(request).await.map(|answer| answer.status()).ok());
            answers(&bed, 0, status(503));
            text += &bed.until_flags(&[FAILED]).await;
            if close {
                text += &format!("closed: {}\n", client.closed(DEADLINE).await);
            } else {
                text += &format!("{:?}\n", client.exchange(request).await.map(|answer| answer.status()).ok());
                drop(client);
            }
            text += &bed.until_stat("upstream_cx_destroy", 1).await;
            // Whose end of a session that both have ended came first is not told apart here.
            let more = if close { "upstream_cx_destroy" } else { "upstream_cx_active" };
            text + &bed.stats(&["upstream_cx_total", more]).await
        })
        .await;
    }
}
