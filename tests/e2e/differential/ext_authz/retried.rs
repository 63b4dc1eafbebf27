//! Questions that fail are asked again as often, and after as much, as a policy says.

use super::super::bootstrap::{endpoints, Bootstrap};
use super::super::case::case;
use super::super::filters::{check_but, filter, host};
use super::super::grpc_service::{GrpcService, Said, HTTP2};
use super::{plain, KIND};
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Then};
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;
use outrigger_control_api::pb::google::rpc::Status;
use std::collections::HashMap;
use std::sync::Mutex;

/// How a service behaves: it counts what it is asked for each path, and tells which time this is.
#[derive(Default)]
struct Times(Mutex<HashMap<String, usize>>);

impl Times {
    /// As it is asked for `path` about the request with this id.
    fn next(&self, path: &str, id: &str) -> usize {
        let mut all = self.0.lock().expect("no panic");
        let count = all.entry(format!("{path} {id}")).or_default();
        *count += 1;
        *count
    }
}

const SEEN: &str = "allowed_headers: { patterns: [ { exact: x-request-id } ] }";
const BACK_OFF: &str = "retry_back_off: { base_interval: 0.001s, max_interval: 0.3s }";

#[tokio::test]
async fn http_service() {
    let service = |policy: &str| {
        format!("http_service: {{ server_uri: {{ uri: 'http://authz.test', cluster: b, timeout: 5s }}, path_prefix: /authz{policy} }}")
    };
    let retry = |on: &str, more: &str| {
        format!(", retry_policy: {{ retry_on: '{on}', num_retries: 2, {BACK_OFF}{more} }}")
    };
    let mut bootstrap = Bootstrap::new();
    for (name, options) in [
        ("any", service(&retry("5xx", ""))),
        ("gateway", service(&retry("gateway-error", ""))),
        ("reset", service(&retry("reset", ""))),
        ("four", service(&retry("retriable-4xx", ""))),
        ("none", service(&retry("", ""))),
        ("once", service(&format!(", retry_policy: {{ retry_on: 5xx, {BACK_OFF} }}"))),
        ("away", format!("http_service: {{ server_uri: {{ uri: 'http://authz.test', cluster: refused, timeout: 5s }}{} }}", retry("connect-failure", ""))),
    ] {
        bootstrap = bootstrap
            .listener(name, "", &host("", &plain("/")))
            .filters(name, &filter("authz", KIND, &format!("{options}, {SEEN}")));
    }
    // Tries for one request have the same id.
    let mut cases = Vec::new();
    for listener in ["any", "gateway", "reset", "four", "none", "once", "away"] {
        for path in ["/fine", "/second", "/third", "/never", "/conflict", "/internal", "/cut", "/slow"] {
            if listener == "away" && path != "/fine" {
                continue;
            }
            let times = Times::default();
            let script = move |message: &Message| {
                let Some(path) = message.target().strip_prefix("/authz") else { return Answer::ok("ok") };
                let nth = times.next(path, message.header("x-request-id").expect("an id"));
                let busy = Answer::status(503, "Service Unavailable", "busy");
                match (path, nth) {
                    ("/second", 1) | ("/third", 1 | 2) | ("/never", _) => busy,
                    ("/conflict", 1) => Answer::status(409, "Conflict", "now"),
                    ("/internal", 1) => Answer::status(500, "Internal Server Error", "oops"),
                    ("/cut", 1) => {
                        Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort").then(Then::Close)
                    }
                    ("/slow", 1) => Answer::raw("").then(Then::Hang),
                    _ => Answer::ok("fine"),
                }
            };
            let name: &str = format!("{listener} {path}").leak();
            cases.push(case(listener, name).get(path, "").script(script));
        }
    }
    let rooms = [
        "http.any.ext_authz.",
        "http.none.ext_authz.",
        "cluster.b.upstream_rq_",
        "cluster.refused.upstream_rq_retry",
    ];
    check_but(
        bootstrap,
        cases,
        &rooms,
        &[
            "upstream_rq_5",
            "upstream_rq_completed",
            "upstream_rq_pending",
            "upstream_rq_rx_reset",
            "upstream_rq_tx_reset",
        ],
    )
    .await;
}

#[tokio::test]
async fn grpc_service() {
    let times = Times::default();
    let service = GrpcService::start(move |question: &pb::CheckRequest| {
        let http = question.attributes.as_ref().and_then(|all| all.request.as_ref()?.http.as_ref());
        let path = http.map(|http| http.path.clone()).unwrap_or_default();
        let id = http.and_then(|http| http.headers.get("x-request-id").cloned()).expect("an id");
        let nth = times.next(&path, &id);
        match (path.as_str(), nth) {
            ("/unavailable", 1) => Said::Status(14),
            ("/exhausted", 1 | 2) => Said::Status(8),
            ("/denied", 1) => Said::Status(7),
            ("/never", _) => Said::Status(14),
            ("/slow", 1) => Said::Nothing,
            _ => Said::Message(pb::CheckResponse {
                status: Some(Status::default()),
                ..pb::CheckResponse::default()
            }),
        }
    })
    .await;
    let grpc = |cluster: &str, on: &str| {
        format!("grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 5s, retry_policy: {{ retry_on: '{on}', num_retries: 2, {BACK_OFF} }} }}, transport_api_version: V3")
    };
    let mut bootstrap =
        Bootstrap::new().cluster("authz", &format!("{}\n{HTTP2}", endpoints(&[&service.port().to_string()])));
    let mut cases = Vec::new();
    for (name, options) in [
        ("unavailable", grpc("authz", "unavailable,resource-exhausted")),
        ("five", grpc("authz", "5xx")),
        ("away", grpc("refused", "connect-failure,unavailable")),
    ] {
        bootstrap = bootstrap
            .listener(name, "", &host("", &plain("/")))
            .filters(name, &filter("authz", KIND, &options));
        for path in ["/fine", "/unavailable", "/exhausted", "/denied", "/never", "/slow"] {
            if name == "away" && path != "/fine" {
                continue;
            }
            let case_name: &str = format!("{name} {path}").leak();
            cases.push(case(name, case_name).get(path, ""));
        }
    }
    let rooms = [
        "http.unavailable.ext_authz.",
        "http.five.ext_authz.",
        "cluster.authz.upstream_rq_retry",
        "cluster.authz.upstream_rq_per_try",
        "cluster.refused.upstream_rq_retry",
    ];
    check_but(bootstrap, cases, &rooms, &[]).await;
}
