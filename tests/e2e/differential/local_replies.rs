//! What routes do to answers of the proxy's own, whoever gives them, and how long requests may wait among filters.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{check, filter, host, says};
use crate::harness::origin::Answer;

const DENY: &str = "rbac: { rules: { action: DENY, policies: { all: { permissions: [ { any: true } ], principals: [ { any: true } ] } } } }";
const CHANGES: &str = "response_headers_to_remove: [ www-authenticate ], response_headers_to_add: [ { header: { key: x-route, value: 'route %REQ(x-envoy-attempt-count)% %RESPONSE_CODE%' } }, { header: { key: content-type, value: text/own }, append_action: ADD_IF_ABSENT } ]";

/// A route with changes to responses. `action` is what it does, `said` what it says to filters.
fn route(path: &str, action: &str, said: &[String]) -> String {
    let said = said.join(", ");
    format!(
        "- {{ match: {{ prefix: {path} }}, {action}, {CHANGES}, typed_per_filter_config: {{ {said} }} }}\n"
    )
}

#[tokio::test]
async fn routes_change_the_proxys_own_answers() {
    let of = |name: &str, kind: &str, options: &str| {
        says(name, &format!("extensions.filters.http.{kind}"), options)
    };
    let deny = || of("rbac", "rbac.v3.RBACPerRoute", DENY);
    let fault =
        of("fault", "fault.v3.HTTPFault", "abort: { http_status: 418, percentage: { numerator: 100 } }");
    let limit = of("limit", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: limit, token_bucket: { max_tokens: 1, fill_interval: 3600s }, filter_enabled: { default_value: { numerator: 100 } }, filter_enforced: { default_value: { numerator: 100 } }");
    let basic = of(
        "basic",
        "basic_auth.v3.BasicAuthPerRoute",
        "users: { inline_string: 'u:{SHA}2kuSN7rMzfGcB2DKt67EqDWQELA=' }",
    );
    let a = "route: { cluster: a }";
    let weighted = "route: { weighted_clusters: { clusters: [ { name: empty, weight: 1, response_headers_to_add: [ { header: { key: x-cluster, value: cluster } } ] } ] } }";
    let routes = [
        route("/fault", a, &[fault]),
        route("/rbac", a, &[deny()]),
        route("/limit", a, &[limit]),
        route("/basic", a, &[basic]),
        route("/weighted", weighted, &[]),
        route("/denied-weighted", weighted, &[deny()]),
        route("/denied-redirect", "redirect: { path_redirect: /x }", &[deny()]),
        route("/redirect", "redirect: { path_redirect: /x }", &[]),
        route("/direct", "direct_response: { status: 403 }", &[]),
        route("/text", "direct_response: { status: 200, body: { inline_string: text } }", &[]),
        route("/typed", "direct_response: { status: 200, body: { inline_string: text }, body_format: { text_format_source: { inline_string: '%LOCAL_REPLY_BODY%' }, content_type: text/format } }", &[]),
        route("/none", "non_forwarding_action: {}", &[]),
        route("/unnamed", "route: { cluster_header: x-none }", &[]),
        route("/empty", "route: { cluster: empty }", &[]),
        route("/full", "route: { cluster: a-full }", &[]),
        route("/refused", "route: { cluster: refused }", &[]),
        route("/slow", "route: { cluster: a, timeout: 0.1s }", &[]),
        route("/idle", "route: { cluster: a, idle_timeout: 0.1s }", &[]),
        route("/", a, &[]),
    ]
    .concat();
    let options = "  include_request_attempt_count: true\n  include_attempt_count_in_response: true\n  response_headers_to_add: [ { header: { key: x-host, value: host } } ]\n";
    let filters = [
        filter("fault", "fault.v3.HTTPFault", ""),
        filter("rbac", "rbac.v3.RBAC", ""),
        filter("limit", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: none"),
        filter(
            "basic",
            "basic_auth.v3.BasicAuth",
            "users: { inline_string: 'u:{SHA}2kuSN7rMzfGcB2DKt67EqDWQELA=' }",
        ) + "  disabled: true\n",
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .origin("a-full", "circuit_breakers: { thresholds: [ { max_requests: 0 } ] }")
        .listener("own", "", &host(options, &routes))
        .filters("own", &filters)
        .route_options("own", "response_headers_to_add: [ { header: { key: x-table, value: table } } ]\n");
    let paths = [
        "/fault",
        "/rbac",
        "/limit",
        "/limit",
        "/basic",
        "/weighted",
        "/denied-weighted",
        "/denied-redirect",
        "/redirect",
        "/direct",
        "/text",
        "/typed",
        "/none",
        "/unnamed",
        "/empty",
        "/full",
        "/refused",
    ];
    let mut cases: Vec<_> = paths.map(|path| case("own", path).get(path, "")).into();
    cases.push(case("own", "gRPC").send("POST", "/rbac", "Content-Type: application/grpc\r\n", ""));
    let never = Arc::new(Semaphore::new(0));
    for path in ["/slow", "/idle"] {
        cases.push(case("own", path).get(path, "").answers(Answer::ok("late").gated(&never)));
    }
    check(bootstrap, cases, &["http.own.no_", "http.own.downstream_rq_4xx", "http.own.downstream_rq_5xx"])
        .await;
}

#[tokio::test]
async fn requests_wait_among_filters_as_long_as_their_routes_say() {
    let routes = "- { match: { prefix: /idle }, route: { cluster: a, idle_timeout: 0.2s } }\n- { match: { prefix: /life }, route: { cluster: a, max_stream_duration: { max_stream_duration: 0.2s } } }\n- { match: { prefix: / }, route: { cluster: a } }\n";
    let bootstrap = Bootstrap::new()
        .listener("own", "", &host("", routes))
        .filters("own", &filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100"))
        .listener("hasty", "request_timeout: 0.2s\n", &host("", routes))
        .filters("hasty", &filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100"));
    let half = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: t.test\r\nContent-Length: 9\r\n\r\nhalf");
    let cases = vec![
        case("own", "no byte for a while").raw(half("/idle")),
        case("own", "too long").raw(half("/life")),
        case("hasty", "not there in time").raw(half("/")),
    ];
    check(bootstrap, cases, &["http.own.downstream_rq_", "http.hasty.downstream_rq_"]).await;
}
