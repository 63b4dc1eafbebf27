//! What is counted by virtual cluster and by route.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case};
use crate::differential::filters::check_but;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Then};

const HOSTS: &str = r#"- name: all.of:it
  domains: ['*']
  include_request_attempt_count: true
  response_headers_to_add: [ { header: { key: x-virtual-cluster, value: '%VIRTUAL_CLUSTER_NAME%' } } ]
  virtual_clusters:
  - { name: posts, headers: [ { name: ':method', string_match: { exact: POST } }, { name: ':path', string_match: { prefix: /app } } ] }
  - { name: 'marked.requests', headers: [ { name: x-mark, present_match: true } ] }
  - { name: changed, headers: [ { name: ':path', string_match: { prefix: /new } } ] }
  - { name: never, headers: [ { name: ':path', string_match: { exact: /never } } ] }
  routes:
  - { match: { prefix: /app }, stat_prefix: app.main, route: { cluster: a } }
  - { match: { prefix: /old }, route: { cluster: a, prefix_rewrite: /new } }
  - { match: { prefix: /direct }, stat_prefix: direct, direct_response: { status: 200, body: { inline_string: hi } } }
  - { match: { prefix: /again }, stat_prefix: again, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 2, retry_back_off: { base_interval: 0.001s } } } }
  - { match: { prefix: /asked }, stat_prefix: again, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, rate_limited_retry_back_off: { max_interval: 1s, reset_headers: [ { name: retry-after } ] } } } }
  - { match: { prefix: /no-breaker }, stat_prefix: no-breaker, route: { cluster: a-retries, timeout: 0s, retry_policy: { retry_on: 5xx } } }
  - { match: { prefix: /full }, stat_prefix: full, route: { cluster: a-full } }
  - { match: { prefix: /late }, stat_prefix: late, route: { cluster: a, timeout: 0.2s } }
  - { match: { prefix: /try-late }, stat_prefix: try-late, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, per_try_timeout: 0.2s } } }
  - { match: { prefix: /refused }, stat_prefix: refused, route: { cluster: refused, retry_policy: { retry_on: connect-failure, num_retries: 1 } } }
  - { match: { prefix: /empty }, stat_prefix: empty, route: { cluster: empty } }
  - { match: { prefix: /maintained }, stat_prefix: maintained, route: { cluster: a-maintained } }
  - { match: { prefix: /nowhere }, stat_prefix: nowhere, route: { cluster_header: x-none } }
  - { match: { prefix: /moved }, stat_prefix: moved, route: { cluster: a, internal_redirect_policy: {} } }
  - { match: { prefix: /mirror }, stat_prefix: mirror, route: { cluster: a, request_mirror_policies: [ { cluster: b } ] } }
  - { match: { prefix: / }, route: { cluster: a } }
"#;

const ONLY_ROUTE: &str = r#"- name: plain
  domains: ['*']
  response_headers_to_add: [ { header: { key: x-virtual-cluster, value: '%VIRTUAL_CLUSTER_NAME%' } } ]
  routes:
  - { match: { prefix: /app }, stat_prefix: app, route: { cluster: a } }
  - { match: { prefix: / }, route: { cluster: a } }
"#;

/// The first try is answered so, later ones `200 ok`.
fn first(answer: Answer) -> impl Fn(&Message) -> Answer + Clone + Send + Sync + 'static {
    move |request| match request.header("x-envoy-attempt-count") {
        Some("1") => answer.clone(),
        _ => Answer::ok("ok"),
    }
}

#[tokio::test]
async fn by_virtual_cluster_and_route() {
    let bootstrap = Bootstrap::new()
        .origin("a-retries", "circuit_breakers: { thresholds: [ { max_retries: 0 } ] }")
        .origin("a-full", "circuit_breakers: { thresholds: [ { max_requests: 0 } ] }")
        .origin("a-maintained", "")
        .more("layered_runtime: { layers: [ { name: static, static_layer: { upstream.maintenance_mode.a-maintained: 100 } } ] }")
        .listener("main", "", HOSTS)
        .listener("plain", "", ONLY_ROUTE);
    let get = |path: &'static str| case("main", path).get(path, "");
    let named = |name, path, headers: &str| case("main", name).get(path, headers);
    let busy = Answer::status(503, "Busy", "busy");
    let mark = "X-Mark: 1\r\n";
    let cases: Vec<Case> = vec![
        get("/app"),
        case("main", "a post").send("POST", "/app/x", "", "hello"),
        case("main", "a post elsewhere").send("POST", "/other", "", "hello"),
        named("marked", "/app", mark),
        get("/old"),
        named("a status", "/app", mark).answers(Answer::status(404, "Not Found", "")),
        named("another status", "/app", "").answers(Answer::status(301, "Moved", "")),
        named("direct", "/direct", mark),
        named("tried again", "/again", mark).script(first(busy.clone())),
        named("tried in vain", "/again", mark).answers(busy.clone()),
        named("asked to wait", "/asked", mark)
            .script(first(Answer::raw("HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"))),
        named("no retry allowed", "/no-breaker", mark).answers(busy),
        named("full", "/full", mark),
        named("late", "/late", mark).answers(Answer::raw("").then(Then::Hang)),
        named("too slow for a try", "/try-late", mark).script(first(Answer::raw("").then(Then::Hang))),
        named("refused", "/refused", mark),
        named("empty", "/empty", mark),
        named("maintained", "/maintained", mark),
        named("nowhere", "/nowhere", mark),
        case("main", "closed")
            .send("POST", "/other", mark, "hello")
            .answers(Answer::raw("").then(Then::Close)),
        named("no HTTP", "/app", mark).answers(Answer::raw("nonsense\r\n\r\n").then(Then::Close)),
        named("mirrored", "/mirror", mark).mirrored(2),
        named("redirected here", "/moved", "").script(|request| match request.target() {
            "/moved" => Answer::raw(
                "HTTP/1.1 302 Found\r\nlocation: http://t.test/app/there\r\ncontent-length: 0\r\n\r\n",
            ),
            _ => Answer::ok("ok"),
        }),
        case("plain", "a route alone").get("/app", ""),
        case("plain", "neither").get("/", ""),
    ];
    check_but(bootstrap, cases, &["vhost."], BUT).await;
}
