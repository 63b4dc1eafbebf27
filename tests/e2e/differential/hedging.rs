//! Tries that go on after their time while another goes beside them: which answer the client gets, what origins see, and
//! what is counted.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check, host};
use crate::harness::origin::{Answer, Then};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// What one try gets. Times in milliseconds from the moment that the origin has its head.
#[derive(Clone, Copy)]
enum Try {
    /// This status, after a time.
    Status(u16, u64),
    /// The connection is closed, after a time.
    Close(u64),
    Never,
}

/// Opens after `millis`.
fn after(millis: u64) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let opens = gate.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        opens.add_permits(1);
    });
    gate
}

/// A request of `method` to `path`, each of whose tries gets what `tries` says, the last for all that follow.
fn hedged(name: &'static str, method: &str, path: &str, tries: &'static [Try]) -> Case {
    let body = if method == "POST" { "hello" } else { "" };
    case("main", name).send(method, path, "", body).script(move |request| {
        let attempt: usize =
            request.header("x-envoy-attempt-count").and_then(|text| text.parse().ok()).unwrap_or(1);
        match tries[(attempt - 1).min(tries.len() - 1)] {
            Try::Status(status, millis) => {
                Answer::status(status, "Whatever", &format!("try {attempt}")).gated(&after(millis))
            }
            Try::Close(millis) => Answer::raw("").then(Then::Close).gated(&after(millis)),
            Try::Never => Answer::ok("never").gated(&Arc::new(Semaphore::new(0))),
        }
    })
}

#[tokio::test]
async fn hedging() {
    use Try::{Close, Never, Status};
    let route = |path: &str, retries: u32, timeout: &str, more: &str| {
        format!(
            "- {{ match: {{ prefix: {path} }}, route: {{ cluster: a-hedged, timeout: {timeout}, retry_policy: {{ \
             retry_on: 5xx, num_retries: {retries}, per_try_timeout: 0.4s }}{more} }} }}\n"
        )
    };
    let routes = [
        route("/two", 1, "3.3s", ""),
        route("/three", 2, "3.3s", ""),
        route("/short", 1, "1.3s", ""),
        route("/plain", 1, "3.3s", ", hedge_policy: {}"),
    ]
    .concat();
    let options = "  include_request_attempt_count: true\n  include_attempt_count_in_response: true\n  \
                   include_is_timeout_retry_header: true\n  hedge_policy: { hedge_on_per_try_timeout: true }\n";
    let bootstrap = Bootstrap::new().origin("a-hedged", "").listener("main", "", &host(options, &routes));
    let cases = vec![
        hedged("in time", "GET", "/two", &[Status(200, 0)]),
        hedged("the second is faster", "GET", "/two", &[Never, Status(200, 0)]),
        hedged("a body", "POST", "/two", &[Never, Status(200, 0)]),
        hedged("the first after all", "GET", "/two", &[Status(200, 700), Never]),
        hedged("the first fails after all", "GET", "/two", &[Status(503, 700), Status(200, 900)]),
        hedged("the first breaks off after all", "GET", "/two", &[Close(700), Status(200, 900)]),
        hedged("the second fails", "GET", "/two", &[Status(200, 1300), Status(503, 100)]),
        hedged("the second breaks off", "GET", "/two", &[Status(200, 1300), Close(100)]),
        hedged("both fail", "GET", "/two", &[Status(503, 1300), Status(500, 100)]),
        hedged("both break off", "GET", "/two", &[Close(1300), Close(100)]),
        hedged("a third", "GET", "/three", &[Never, Never, Status(200, 0)]),
        hedged(
            "the second fails, the third is good",
            "GET",
            "/three",
            &[Never, Status(503, 0), Status(200, 0)],
        ),
        hedged("a third, and the first after all", "GET", "/three", &[Status(200, 1300), Never, Never]),
        hedged("nobody", "GET", "/short", &[Never]),
        hedged("not hedged", "GET", "/plain", &[Never, Status(200, 0)]),
    ];
    let rooms = [
        "total",
        "completed",
        "200",
        "500",
        "503",
        "504",
        "retry",
        "retry_success",
        "retry_limit_exceeded",
        "retry_overflow",
        "per_try_timeout",
        "timeout",
    ]
    .map(|stat| format!("cluster.a-hedged.upstream_rq_{stat}"));
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}
