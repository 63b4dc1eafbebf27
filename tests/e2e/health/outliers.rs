//! Hosts that fail requests.

use super::{beside, Bed, Setup};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Then};

const NEVER_BACK: &str = "interval: 60s, base_ejection_time: 60s";

fn detection(options: &str) -> String {
    format!("outlier_detection: {{ {options} }}")
}

/// What there is to compare.
async fn observed(bed: &Bed, events: usize) -> String {
    let stats = bed.stats(&["outlier_detection.", "membership_"]).await;
    let (page, statuses, events) =
        (bed.page().await, bed.statuses().await, bed.events("outliers.log", events).await);
    format!("{stats}{page}{statuses}{events}")
}

fn status(code: u16) -> Answer {
    Answer::status(code, "X", "x")
}

/// Rounds of requests, one for each host; the statuses, sorted. Where one is ejected on the way, the others must answer alike:
/// whose turn it is then is chance.
async fn rounds(bed: &Bed, rounds: usize, hosts: usize) -> String {
    let mut statuses = bed.requests(rounds * hosts).await;
    statuses.sort_unstable();
    format!("{statuses:?}\n")
}

/// Requests until so many ejections were enforced. Which host is next after one is chance.
async fn until_ejected(bed: &Bed, ejections: u64) -> String {
    until_counted(bed, "ejections_enforced_total", ejections).await
}

/// Requests until a counter of outlier detection says so.
async fn until_counted(bed: &Bed, counter: &str, value: u64) -> String {
    let counter = format!("outlier_detection.{counter}");
    for _ in 0..400 {
        if bed.stat(&counter).await >= value {
            break;
        }
        bed.requests(1).await;
    }
    format!("{counter}: {}\n", bed.stat(&counter).await)
}

#[tokio::test]
async fn consecutive_5xx() {
    let options = detection(&format!("consecutive_5xx: 3, max_ejection_percent: 40, {NEVER_BACK}"));
    beside(Setup::new(3, &options), |bed| async move {
        bed.answers(1, status(500));
        let mut text = rounds(&bed, 3, 3).await;
        text += &bed.until_flags(&["healthy", "/failed_outlier_check", "healthy"]).await;
        text += &rounds(&bed, 4, 2).await;
        // The cap: a second one stays.
        bed.answers(2, status(501));
        text += &rounds(&bed, 3, 2).await;
        text += &bed.until_stat("outlier_detection.ejections_overflow", 1).await;
        text + &observed(&bed, 1).await
    })
    .await;
}

#[tokio::test]
async fn ten_percent_of_three_hosts_is_none() {
    beside(Setup::new(3, &detection("consecutive_5xx: 2")), |bed| async move {
        bed.answers(0, status(503));
        let mut text = rounds(&bed, 2, 3).await;
        text += &bed.until_stat("outlier_detection.ejections_overflow", 1).await;
        if bed.proxy.kind() == crate::harness::proxy::Kind::Outrigger {
            let output = bed.proxy.output();
            assert!(output.contains("10 % of 3 hosts is less than one host"), "{output}");
            assert!(output.contains("allows 0 of 3 hosts to be ejected"), "{output}");
        }
        text + &observed(&bed, 0).await
    })
    .await;
}

#[tokio::test]
async fn one_host_may_always_go() {
    let options = detection(&format!("consecutive_5xx: 2, always_eject_one_host: true, {NEVER_BACK}"));
    beside(Setup::new(3, &options), |bed| async move {
        bed.answers(0, status(503));
        let mut text = rounds(&bed, 2, 3).await;
        text += &bed.until_flags(&["/failed_outlier_check", "healthy", "healthy"]).await;
        text + &observed(&bed, 1).await
    })
    .await;
}

#[tokio::test]
async fn gateway_failures_and_what_is_not_enforced() {
    let options = detection(&format!(
        "consecutive_5xx: 4, enforcing_consecutive_5xx: 0, consecutive_gateway_failure: 2, \
         enforcing_consecutive_gateway_failure: 100, max_ejection_percent: 100, {NEVER_BACK}"
    ));
    beside(Setup::new(3, &options), |bed| async move {
        bed.answers(0, status(504));
        bed.answers(1, status(500));
        let mut text = until_ejected(&bed, 1).await;
        text += &bed.until_flags(&["/failed_outlier_check", "healthy", "healthy"]).await;
        text += &until_counted(&bed, "ejections_detected_consecutive_5xx", 1).await;
        text + &observed(&bed, 2).await
    })
    .await;
}

#[tokio::test]
async fn hosts_that_cannot_be_reached_or_break_off() {
    let options = detection(&format!("consecutive_5xx: 3, max_ejection_percent: 100, {NEVER_BACK}"));
    let setup = Setup { refused: 1, ..Setup::new(3, &options) };
    beside(setup, |bed| async move {
        bed.answers(0, Answer::raw("").then(Then::Reset));
        bed.answers(1, Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").then(Then::Close));
        // Of an answer that breaks off, the head has ended the run.
        let mut text = until_ejected(&bed, 2).await;
        let out = "/failed_outlier_check";
        text += &bed.until_flags(&[out, "healthy", "healthy", out]).await;
        text += &format!("{:?}\n", bed.requests(8).await);
        text + &observed(&bed, 2).await
    })
    .await;
}

#[tokio::test]
async fn origins_told_apart() {
    let options = detection(&format!(
        "split_external_local_origin_errors: true, consecutive_5xx: 3, consecutive_local_origin_failure: 2, \
         max_ejection_percent: 100, {NEVER_BACK}"
    ));
    let setup = Setup { refused: 1, ..Setup::new(3, &options) };
    beside(setup, |bed| async move {
        bed.answers(0, Answer::raw("").then(Then::Reset));
        bed.answers(1, status(503));
        let mut text = until_ejected(&bed, 2).await;
        let out = "/failed_outlier_check";
        text += &bed.until_flags(&["healthy", out, "healthy", out]).await;
        text += &rounds(&bed, 4, 2).await;
        text + &observed(&bed, 2).await
    })
    .await;
}

#[tokio::test]
async fn hosts_that_are_too_slow() {
    let options = detection(&format!("consecutive_5xx: 2, max_ejection_percent: 100, {NEVER_BACK}"));
    let setup = Setup { route: Some(", timeout: 0.15s"), ..Setup::new(2, &options) };
    beside(setup, |bed| async move {
        bed.answers(1, Answer::raw("").then(Then::Hang));
        let mut text = rounds(&bed, 2, 2).await;
        text += &bed.until_flags(&["healthy", "/failed_outlier_check"]).await;
        text + &observed(&bed, 1).await
    })
    .await;
}

#[tokio::test]
async fn retries_count_each_try() {
    let options = detection(&format!("consecutive_5xx: 2, max_ejection_percent: 100, {NEVER_BACK}"));
    let route =
        ", retry_policy: { retry_on: 5xx, num_retries: 5, retry_back_off: { base_interval: 0.001s } }";
    let setup = Setup { route: Some(route), ..Setup::new(2, &options) };
    beside(setup, |bed| async move {
        bed.answers(0, status(500));
        let mut text = until_ejected(&bed, 1).await;
        text += &bed.until_flags(&["/failed_outlier_check", "healthy"]).await;
        text + &bed.events("outliers.log", 1).await
    })
    .await;
}

#[tokio::test]
async fn the_status_of_grpc() {
    let options = detection(&format!(
        "consecutive_5xx: 9, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100, \
         max_ejection_percent: 100, {NEVER_BACK}"
    ));
    beside(Setup::new(2, &options), |bed| async move {
        let refusal = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n";
        bed.answers(1, Answer::raw(refusal));
        let mut text = rounds(&bed, 3, 2).await;
        text += &format!("{:?}\n", bed.flags().await);
        for _ in 0..4 {
            let mut client = Client::connect(bed.proxy.port("main")).await.expect("a connection");
            let request = "POST / HTTP/1.1\r\nHost: t\r\nContent-Type: application/grpc\r\nTE: trailers\r\n\
                           Content-Length: 0\r\n\r\n";
            let answer = client.exchange(request.as_bytes()).await.expect("an answer");
            text += &format!("{}\n", answer.status());
        }
        text += &bed.until_flags(&["healthy", "/failed_outlier_check"]).await;
        text + &observed(&bed, 1).await
    })
    .await;
}

#[tokio::test]
async fn an_ejected_host_comes_back() {
    let options =
        detection("consecutive_5xx: 2, max_ejection_percent: 100, interval: 0.1s, base_ejection_time: 0.3s");
    beside(Setup::new(2, &options), |bed| async move {
        bed.answers(0, status(500));
        let mut text = until_ejected(&bed, 1).await;
        text += &bed.until_flags(&["healthy", "healthy"]).await;
        text += &until_ejected(&bed, 2).await;
        bed.answers(0, status(200));
        text += &bed.until_flags(&["healthy", "healthy"]).await;
        text += &rounds(&bed, 4, 2).await;
        text + &observed(&bed, 4).await
    })
    .await;
}

#[tokio::test]
async fn success_rates() {
    let options = detection(
        "consecutive_5xx: 0, interval: 1s, base_ejection_time: 60s, success_rate_request_volume: 5, \
         max_ejection_percent: 20, failure_percentage_minimum_hosts: 9",
    );
    beside(Setup::new(5, &options), |bed| async move {
        bed.answers(3, status(500));
        let mut text = rounds(&bed, 20, 5).await;
        let well = "healthy";
        text += &bed.until_flags(&[well, well, well, "/failed_outlier_check", well]).await;
        let stats = bed.stats(&["outlier_detection.", "membership_"]).await;
        text + &stats + &bed.events("outliers.log", 1).await
    })
    .await;
}

#[tokio::test]
async fn failure_percentages() {
    let options = detection(
        "consecutive_5xx: 0, interval: 1s, base_ejection_time: 60s, failure_percentage_request_volume: 5, \
         failure_percentage_minimum_hosts: 2, enforcing_failure_percentage: 100, max_ejection_percent: 50, \
         success_rate_minimum_hosts: 9",
    );
    beside(Setup::new(2, &options), |bed| async move {
        bed.answers(1, status(500));
        let mut text = rounds(&bed, 20, 2).await;
        text += &bed.until_flags(&["healthy", "/failed_outlier_check"]).await;
        let stats = bed.stats(&["outlier_detection.", "membership_"]).await;
        text + &stats + &bed.events("outliers.log", 1).await
    })
    .await;
}

#[tokio::test]
async fn hosts_that_call_themselves_degraded() {
    let options = detection(&format!("detect_degraded_hosts: true, {NEVER_BACK}"));
    beside(Setup::new(2, &options), |bed| async move {
        bed.answers(1, Answer::raw("HTTP/1.1 200 OK\r\nx-envoy-degraded: 1\r\ncontent-length: 0\r\n\r\n"));
        let mut text = rounds(&bed, 1, 2).await;
        text += &bed.until_flags(&["healthy", "/degraded_outlier_detection"]).await;
        text + &observed(&bed, 1).await
    })
    .await;
}

#[tokio::test]
async fn connections_of_tcp() {
    let options = detection(&format!("consecutive_5xx: 3, max_ejection_percent: 100, {NEVER_BACK}"));
    let setup = Setup { refused: 1, tcp: true, ..Setup::new(1, &options) };
    beside(setup, |bed| async move {
        // Whoever cannot be connected to is closed; the others are answered.
        for _ in 0..6 {
            let _ = crate::harness::client::get(bed.proxy.port("main"), "/").await;
        }
        let mut text = bed.until_flags(&["healthy", "/failed_outlier_check"]).await;
        text += &rounds(&bed, 2, 1).await;
        text + &bed.stats(&["outlier_detection.", "membership_"]).await + &bed.events("outliers.log", 1).await
    })
    .await;
}
