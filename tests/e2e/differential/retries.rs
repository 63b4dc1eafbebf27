//! Trying again, and giving up: conditions, back-off, the timeouts of a try, what an internal client may ask for, and
//! mirrors of requests that go wrong.

use super::bootstrap::Bootstrap;
use super::case::{case, Case, Step};
use super::Group;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Then};

// Where tries follow each other there is no timeout: the upstream would be told what is left of it.
const HOSTS: &str = r#"- name: all
  domains: ['*']
  include_request_attempt_count: true
  include_attempt_count_in_response: true
  include_is_timeout_retry_header: true
  routes:
  - { match: { prefix: /5xx }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 2, retry_back_off: { base_interval: 0.001s } } } }
  - { match: { prefix: /codes }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: retriable-status-codes, retriable_status_codes: [418] } } }
  - { match: { prefix: /headers }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: retriable-headers, retriable_headers: [ { name: x-again, present_match: true } ] } } }
  - { match: { prefix: /reset }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: reset } } }
  - { match: { prefix: /before }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: reset-before-request } } }
  - { match: { prefix: /refused-before }, route: { cluster: refused, retry_policy: { retry_on: reset-before-request, num_retries: 2 } } }
  - { match: { prefix: /refused }, route: { cluster: refused, retry_policy: { retry_on: connect-failure } } }
  - { match: { prefix: /per-try }, route: { cluster: a, retry_policy: { retry_on: 5xx, per_try_timeout: 0.2s } } }
  - { match: { prefix: /try-idle }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, per_try_idle_timeout: 0.2s } } }
  - { match: { prefix: /asked }, route: { cluster: a, timeout: 0.3s, retry_policy: { retry_on: 5xx, rate_limited_retry_back_off: { reset_headers: [ { name: retry-after } ] } } } }
  - { match: { prefix: /no-breaker }, route: { cluster: a-breaker, timeout: 0s, retry_policy: { retry_on: 5xx } } }
  - { match: { prefix: /gate }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, retriable_request_headers: [ { name: x-please, present_match: true } ] } } }
  - { match: { prefix: /small }, per_request_buffer_limit_bytes: 4, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx } } }
  - { match: { prefix: /short-life }, route: { cluster: a-life } }
  - { match: { prefix: /grpc-life }, route: { cluster: a, max_stream_duration: { grpc_timeout_header_max: 1s } } }
  - { match: { prefix: /timeout }, route: { cluster: a, timeout: 0.2s } }
  - { match: { prefix: /mirror-refused }, route: { cluster: a, request_mirror_policies: [ { cluster: refused } ] } }
  - { match: { prefix: /mirror }, route: { cluster: a, request_mirror_policies: [ { cluster: b } ] } }
  - { match: { prefix: /ignored }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, rate_limited_retry_back_off: { reset_headers: [ { name: retry-after } ] } } } }
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: / }, route: { cluster: a, timeout: 0s } }
"#;

pub fn group() -> Group {
    let internal = "use_remote_address: true\nskip_xff_append: true\n\
         internal_address_config: { cidr_ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 } ] }";
    let bootstrap = Bootstrap::new()
        .origin("a-breaker", "circuit_breakers: { thresholds: [ { max_retries: 0 } ] }")
        .origin("a-life", "common_http_protocol_options: { max_stream_duration: 0.2s }")
        .listener("main", "", HOSTS)
        .listener("internal", internal, HOSTS);
    let mut cases = conditions();
    cases.extend(timeouts());
    cases.extend(asked());
    cases.extend(mirrors());
    Group { bootstrap, cases }
}

/// The first try is answered so, later ones `200 ok`.
fn first(answer: Answer) -> impl Fn(&Message) -> Answer + Clone + Send + Sync + 'static {
    move |request| match request.header("x-envoy-attempt-count") {
        Some("1") => answer.clone(),
        _ => Answer::ok("ok"),
    }
}

fn busy() -> Answer {
    Answer::status(503, "Service Unavailable", "busy")
}

fn closes() -> Answer {
    Answer::raw("").then(Then::Close)
}

fn hangs() -> Answer {
    Answer::raw("").then(Then::Hang)
}

fn conditions() -> Vec<Case> {
    let get = |name, target: &str| case("main", name).get(target, "");
    vec![
        get("second try succeeds", "/5xx").script(first(busy())),
        get("all tries fail", "/5xx").answers(busy()),
        get("no retry without a reason", "/5xx").answers(Answer::status(404, "Not Found", "")),
        case("main", "body sent again")
            .send("POST", "/5xx", "", "hello")
            .script(first(busy())),
        case("main", "chunked body sent again")
            .raw("POST /5xx HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
            .script(first(busy())),
        case("main", "body larger than the buffer is not sent again")
            .send("POST", "/small", "", "hello")
            .script(first(busy())),
        get("retriable status", "/codes").script(first(Answer::status(418, "Teapot", "no"))),
        get("another status", "/codes").script(first(busy())),
        get("retriable header", "/headers")
            .script(first(Answer::raw("HTTP/1.1 200 OK\r\nx-again: 1\r\ncontent-length: 0\r\n\r\n"))),
        get("reset is tried again", "/reset").script(first(closes())).differs("replay", &["origin"]),
        get("reset after the request was sent", "/before")
            .script(first(closes()))
            .differs("replay", &["origin"]),
        get("answer is no reset", "/reset").script(first(busy())),
        get("no try at all", "/empty"),
        get("refused connection", "/refused"),
        get("refused connection is a reset before the request", "/refused-before"),
        get("retries not allowed by the breaker", "/no-breaker").answers(busy()),
        get("request header missing", "/gate").script(first(busy())),
        case("main", "request header there").get("/gate", "x-please: 1\r\n").script(first(busy())),
        get("rate limited response", "/5xx").script(first(Answer::raw(
            "HTTP/1.1 503 Busy\r\nx-envoy-ratelimited: true\r\ncontent-length: 0\r\n\r\n",
        ))),
        get("trailers-only grpc status", "/5xx").script(first(Answer::raw(
            "HTTP/1.1 200 OK\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n",
        ))),
    ]
}

fn timeouts() -> Vec<Case> {
    let get = |name, target: &str| case("main", name).get(target, "");
    let half = || Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").then(Then::Hang);
    vec![
        get("first try takes too long", "/per-try").script(first(hangs())),
        get("both tries take too long", "/per-try").answers(hangs()),
        get("first try stands still", "/try-idle").script(first(hangs())),
        get("response stands still", "/try-idle").answers(half()),
        get("short pause asked for is longer than the route's timeout", "/asked").script(first(Answer::raw(
            "HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n",
        ))),
        get("pause asked for is longer than allowed", "/ignored").script(first(Answer::raw(
            "HTTP/1.1 503 Busy\r\nretry-after: 301\r\ncontent-length: 0\r\n\r\n",
        ))),
        get("longest life of a try", "/short-life").answers(hangs()),
        get("longest life of a try after the head", "/short-life").answers(half()),
        case("main", "grpc timeout limits the stream")
            .raw("POST /grpc-life HTTP/1.1\r\nHost: t.test\r\nContent-Type: application/grpc\r\nTE: trailers\r\ngrpc-timeout: 200m\r\nContent-Length: 0\r\n\r\n")
            .answers(hangs()),
        case("main", "client leaves during the pause")
            .get("/asked", "")
            .script(first(Answer::raw("HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n")))
            .step(Step::Origin(1))
            .step(Step::Drop)
            .lines(1),
    ]
}

fn asked() -> Vec<Case> {
    let get = |name, target: &str, headers: &str| case("internal", name).get(target, headers);
    vec![
        get("internal client asks for retries", "/x", "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 3\r\n")
            .answers(busy()),
        get(
            "internal client asks for retriable statuses",
            "/x",
            "x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 404,409\r\n",
        )
        .script(first(Answer::status(409, "Conflict", ""))),
        get("internal client sets the timeout", "/x", "x-envoy-upstream-rq-timeout-ms: 150\r\n")
            .answers(hangs()),
        get(
            "internal client sets the timeout of a try",
            "/5xx",
            "x-envoy-upstream-rq-per-try-timeout-ms: 150\r\n",
        )
        .script(first(hangs())),
        get(
            "internal client wants 204 for lateness",
            "/timeout",
            "x-envoy-upstream-rq-timeout-alt-response: 1\r\n",
        )
        .answers(hangs()),
        get("internal client sets the life of a try", "/x", "x-envoy-upstream-stream-duration-ms: 150\r\n")
            .answers(hangs()),
    ]
}

fn mirrors() -> Vec<Case> {
    vec![
        case("main", "mirrored in chunks")
            .raw("POST /mirror HTTP/1.1\r\nHost: t.test:81\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
            .mirrored(2),
        case("main", "mirrored while it is sent")
            .raw("POST /mirror HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhel")
            .step(Step::Origin(2))
            .raw("lo")
            .mirrored(2),
        case("main", "mirrored to nobody").send("POST", "/mirror-refused", "", "hello"),
        case("main", "mirrored without a body").send("POST", "/mirror", "Content-Length: 0\r\n", "").mirrored(2),
    ]
}
