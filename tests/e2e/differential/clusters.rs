//! Where requests go and what happens when that fails: weights, missing and empty clusters, refused connections,
//! resets, timeouts.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, After, Case, Step};
use super::Group;
use crate::harness::origin::{Answer, Then};

const HOSTS: &str = r#"- name: all
  domains: ['*']
  routes:
  - { match: { prefix: /a }, route: { cluster: a } }
  - { match: { prefix: /weighted-b }, route: { weighted_clusters: { clusters: [ { name: a, weight: 0 }, { name: b, weight: 100 } ] } } }
  - { match: { prefix: /weighted-a }, route: { weighted_clusters: { clusters: [ { name: a, weight: 7 }, { name: b, weight: 0 } ] } } }
  - { match: { prefix: /weighted-missing }, route: { weighted_clusters: { clusters: [ { name: a, weight: 0 }, { name: nowhere, weight: 1 } ] } } }
  - { match: { prefix: /by-header }, route: { cluster_header: x-cluster } }
  - { match: { prefix: /missing-404 }, route: { cluster: nowhere, cluster_not_found_response_code: NOT_FOUND } }
  - { match: { prefix: /missing-500 }, route: { cluster: nowhere, cluster_not_found_response_code: INTERNAL_SERVER_ERROR } }
  - { match: { prefix: /missing }, route: { cluster: nowhere } }
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: /sick }, route: { cluster: sick } }
  - { match: { prefix: /refused }, route: { cluster: refused } }
  - { match: { prefix: /unresolved }, route: { cluster: unresolved } }
  - { match: { prefix: /timeout }, route: { cluster: a, timeout: 0.2s } }
  - { match: { prefix: /idle }, route: { cluster: a, timeout: 0s, idle_timeout: 0.3s } }
  - { match: { prefix: /no-timeout }, route: { cluster: a, timeout: 0s } }
  - { match: { prefix: /max-duration }, route: { cluster: a, max_stream_duration: { max_stream_duration: 0.3s } } }
  - { match: { prefix: /breaker }, route: { cluster: breaker } }
  - { match: { prefix: /drop-all }, route: { cluster: drop-all } }
  - { match: { prefix: /drop-most }, route: { cluster: drop-most } }
  - { match: { prefix: /drop-none }, route: { cluster: drop-none } }
"#;

const SICK: &str = "type: STATIC
load_assignment:
  cluster_name: sick
  endpoints:
  - lb_endpoints:
    - health_status: UNHEALTHY
      endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin:a@ } } }
common_lb_config: { healthy_panic_threshold: { value: 0 } }";

const UNRESOLVED: &str = "type: STRICT_DNS
load_assignment:
  cluster_name: unresolved
  endpoints:
  - lb_endpoints:
    - endpoint: { address: { socket_address: { address: nowhere.invalid, port_value: 80 } } }";

pub fn group() -> Group {
    let drops = |share: &str| {
        let policy =
            format!("  policy: {{ drop_overloads: [ {{ category: busy, drop_percentage: {share} }} ] }}");
        format!("{}\n{policy}", endpoints(&["@origin:a@"]))
    };
    let breaker = "circuit_breakers: { thresholds: [ { max_requests: 0 } ] }";
    let bootstrap = Bootstrap::new()
        .cluster("sick", SICK)
        .cluster("unresolved", UNRESOLVED)
        .cluster("breaker", &format!("{}\n{breaker}", endpoints(&["@origin:a@"])))
        .cluster("drop-all", &drops("{ numerator: 100 }"))
        .cluster("drop-most", &drops("{ numerator: 999999, denominator: MILLION }"))
        .cluster("drop-none", &drops("{ numerator: 0 }"))
        .listener("main", "", HOSTS)
        .route_options("main", "validate_clusters: false")
        .plain("request-timeout", "request_timeout: 0.3s")
        .plain("headers-timeout", "request_headers_timeout: 0.3s")
        .plain("stream-idle", "stream_idle_timeout: 0.3s")
        .plain("idle", "common_http_protocol_options: { idle_timeout: 0.3s }\ndrain_timeout: 0.1s")
        .plain("one-request", "common_http_protocol_options: { max_requests_per_connection: 1 }")
        .plain(
            "short",
            "common_http_protocol_options: { max_connection_duration: 0.2s }\ndrain_timeout: 0.1s",
        );
    let mut cases = choice();
    cases.extend(failures());
    cases.extend(timeouts());
    Group { bootstrap, cases }
}

fn choice() -> Vec<Case> {
    let get = |name, target: &str| case("main", name).get(target, "");
    vec![
        get("weights 0 and 100", "/weighted-b"),
        get("weights 7 and 0", "/weighted-a"),
        get("weights to a missing cluster", "/weighted-missing"),
        case("main", "cluster by header").get("/by-header", "x-cluster: b\r\n"),
        case("main", "cluster by header, missing cluster").get("/by-header", "x-cluster: nowhere\r\n"),
        get("cluster by header, no header", "/by-header"),
        get("missing cluster", "/missing"),
        get("missing cluster with 404", "/missing-404"),
        get("missing cluster with 500", "/missing-500"),
        case("main", "missing cluster for a post").send("POST", "/missing", "", "hello"),
        case("main", "missing cluster for grpc").send(
            "POST",
            "/missing",
            "content-type: application/grpc\r\nte: trailers\r\n",
            "",
        ),
        get("no endpoint", "/empty"),
        get("no healthy endpoint", "/sick"),
        get("name that does not resolve", "/unresolved"),
        get("connection refused", "/refused"),
        case("main", "connection refused for head").send("HEAD", "/refused", "", "").answers_head(),
        case("main", "connection refused for a post").send("POST", "/refused", "", "hello"),
        case("main", "connection refused for grpc").send(
            "POST",
            "/refused",
            "content-type: application/grpc\r\nte: trailers\r\n",
            "",
        ),
        get("circuit breaker open", "/breaker"),
        get("everything is dropped", "/drop-all"),
        get("almost everything is dropped", "/drop-most"),
        case("main", "almost everything is dropped, grpc").send(
            "POST",
            "/drop-most",
            "content-type: application/grpc\r\nte: trailers\r\n",
            "",
        ),
        get("nothing is dropped", "/drop-none"),
    ]
}

fn failures() -> Vec<Case> {
    let get = |name, answer: Answer| case("main", name).get("/a", "").answers(answer);
    let nothing = || Answer::raw("");
    vec![
        get("origin closes before it answers", nothing().then(Then::Close)).differs("replay", &["origin"]),
        // No connection is kept after the case before.
        get("origin resets before it answers", nothing().then(Then::Reset)),
        case("main", "origin closes before it answers a post")
            .send("POST", "/a", "", "hello")
            .answers(nothing().then(Then::Close)),
        get("origin closes inside the head", Answer::raw("HTTP/1.1 200 OK\r\ncontent-le").then(Then::Close)),
        get("origin resets inside the head", Answer::raw("HTTP/1.1 200 OK\r\ncontent-le").then(Then::Reset)),
        get(
            "origin closes inside the body",
            Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").then(Then::Close),
        ),
        get(
            "origin closes inside a chunked body",
            Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
                .then(Then::Close),
        ),
        get(
            "origin closes inside a chunk",
            Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhello").then(Then::Close),
        ),
    ]
}

fn timeouts() -> Vec<Case> {
    let hang = || Answer::raw("").then(Then::Hang);
    let half = || Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").then(Then::Hang);
    vec![
        case("main", "route timeout").get("/timeout", "").answers(hang()),
        case("main", "route timeout after the head").get("/timeout", "").answers(half()),
        case("main", "route timeout for a post").send("POST", "/timeout", "", "hello").answers(hang()),
        case("main", "route timeout does not run while the request is on its way")
            .raw("POST /timeout HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhel")
            .step(Step::Origin(1))
            .raw("lo"),
        case("main", "timeout header of a client is not obeyed")
            .get("/a", "x-envoy-upstream-rq-timeout-ms: 1\r\n"),
        case("main", "route idle timeout").get("/idle", "").answers(hang()),
        case("main", "route idle timeout after the head").get("/idle", "").answers(half()),
        case("main", "maximal stream duration").get("/max-duration", "").answers(hang()),
        case("request-timeout", "request timeout")
            .raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhel")
            .after(After::Close),
        case("headers-timeout", "request headers timeout")
            .raw("GET / HTTP/1.1\r\nHost: t.te")
            .after(After::Close),
        case("stream-idle", "stream idle timeout before the request has ended")
            .raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhel")
            .after(After::Close),
        case("stream-idle", "stream idle timeout inside the head")
            .raw("GET / HTTP/1.1\r\nHost: t.te")
            .after(After::Close),
        case("stream-idle", "stream idle timeout while the origin thinks").get("/", "").answers(hang()),
        case("idle", "idle connection").get("/", "").after(After::Close),
        case("idle", "idle connection that never sends").responses(0).after(After::Close),
        case("one-request", "one request per connection").get("/", ""),
        case("short", "maximal connection duration").get("/", "").after(After::Close),
        case("main", "client leaves while the origin thinks")
            .get("/no-timeout", "")
            .answers(hang())
            .step(Step::Origin(1))
            .step(Step::Drop)
            .lines(1),
    ]
}
