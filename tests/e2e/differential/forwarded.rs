//! Headers about the client and about the proxy itself: x-forwarded-*, x-request-id, server, via, x-envoy-*.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::Group;
use crate::harness::origin::Answer;

pub fn group() -> Group {
    let internal = "internal_address_config: { cidr_ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 }, { address_prefix: 10.0.0.0, prefix_len: 8 } ] }";
    let bootstrap = Bootstrap::new()
        .plain("main", "")
        .plain("edge", "use_remote_address: true")
        .plain("edge-internal", &format!("use_remote_address: true\n{internal}"))
        .plain("edge-hops", "use_remote_address: true\nxff_num_trusted_hops: 1")
        .plain("hops", "xff_num_trusted_hops: 1")
        .plain("internal", internal)
        .plain("skip-append", "use_remote_address: true\nskip_xff_append: true")
        .plain("port", "use_remote_address: true\nappend_x_forwarded_port: true")
        .plain("via", "via: outer-proxy")
        .plain("no-id", "generate_request_id: false")
        .plain("keep-id", "use_remote_address: true\npreserve_external_request_id: true")
        .plain("always-id", "always_set_request_id_in_response: true")
        .plain("server-name", "server_name: mine")
        .plain("server-absent", "server_header_transformation: APPEND_IF_ABSENT")
        .plain("server-pass", "server_header_transformation: PASS_THROUGH")
        .plain("agent", "add_user_agent: true")
        .plain("scheme", "scheme_header_transformation: { scheme_to_overwrite: https }")
        .plain("no-cert", "forward_client_cert_details: FORWARD_ONLY")
        .plain("any-cert", "forward_client_cert_details: ALWAYS_FORWARD_ONLY");
    Group { bootstrap, cases: [addresses(), identity(), controls()].concat() }
}

/// Everything a client could claim.
const CLAIMS: &str = "X-Forwarded-For: 1.2.3.4, 10.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: f.test\r\n\
                      X-Forwarded-Port: 9\r\nX-Envoy-External-Address: 9.9.9.9\r\nX-Envoy-Internal: true\r\nForwarded: for=1.2.3.4\r\n";

fn addresses() -> Vec<Case> {
    let get = |listener, name, headers: &str| case(listener, name).get("/", headers);
    vec![
        get("main", "claims, not at the edge", CLAIMS),
        get("edge", "claims at the edge", CLAIMS),
        get("edge", "no claims at the edge", ""),
        get(
            "edge",
            "x-forwarded-for twice at the edge",
            "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n",
        ),
        get("edge", "x-forwarded-for empty at the edge", "X-Forwarded-For:\r\n"),
        get("edge-internal", "claims at an internal edge", CLAIMS),
        get("edge-internal", "no claims at an internal edge", ""),
        get("edge-hops", "claims behind one trusted hop at the edge", CLAIMS),
        get("edge-hops", "no claims behind one trusted hop at the edge", ""),
        get("hops", "claims behind one trusted hop", CLAIMS),
        get("hops", "unknown proto behind one trusted hop", "X-Forwarded-Proto: gopher\r\n"),
        get("internal", "internal by a single address", "X-Forwarded-For: 10.1.1.1\r\n"),
        get("internal", "external by two addresses", "X-Forwarded-For: 10.1.1.1, 10.1.1.2\r\n"),
        get("internal", "nothing to be internal by", ""),
        get("internal", "external by two, one of them none", "X-Forwarded-For: unknown, 10.1.1.1\r\n"),
        get("internal", "address that is none", "X-Forwarded-For: unknown\r\n"),
        get("skip-append", "claims at the edge without append", CLAIMS),
        get("port", "x-forwarded-port", ""),
        get("port", "x-forwarded-port is there already", "X-Forwarded-Port: 9\r\n"),
        get("scheme", "scheme overwritten", ""),
        case("main", "scheme of an absolute target")
            .raw("GET https://t.test/ HTTP/1.1\r\nHost: t.test\r\n\r\n"),
    ]
}

fn identity() -> Vec<Case> {
    let get = |listener, name, headers: &str| case(listener, name).get("/", headers);
    let id = "X-Request-Id: 11111111-2222-4333-8444-555555555555\r\n";
    let with_headers = || {
        Answer::raw("HTTP/1.1 200 OK\r\nserver: theirs\r\nvia: 1.1 theirs\r\nx-request-id: theirs\r\ncontent-length: 2\r\n\r\nok")
    };
    vec![
        get("main", "request id kept", id),
        get("main", "request id that is no uuid", "X-Request-Id: mine\r\n"),
        get("main", "request id empty", "X-Request-Id:\r\n"),
        get("edge", "request id at the edge", id),
        get("keep-id", "request id at the edge, preserved", id),
        get("no-id", "no request id", ""),
        get("no-id", "no request id but one given", id),
        get("always-id", "request id in the response", id),
        get("always-id", "request id made and in the response", ""),
        get("via", "via", "").answers(with_headers()),
        get("via", "via is there already", "Via: 1.0 first\r\n"),
        get("server-name", "server name", "").answers(with_headers()),
        get("server-absent", "server if absent", ""),
        get("server-absent", "server is there already", "").answers(with_headers()),
        get("server-pass", "server passed through", "").answers(with_headers()),
        get("server-pass", "no server passed through", ""),
        get("agent", "user agent added", ""),
        get("agent", "user agent is there already", "User-Agent: curl\r\n"),
    ]
}

fn controls() -> Vec<Case> {
    let controls = "x-envoy-max-retries: 3\r\nx-envoy-retry-on: 5xx\r\nx-envoy-retry-grpc-on: cancelled\r\n\
         x-envoy-upstream-rq-timeout-ms: 5000\r\nx-envoy-upstream-rq-per-try-timeout-ms: 4000\r\n\
         x-envoy-upstream-rq-timeout-alt-response: 1\r\nx-envoy-upstream-alt-stat-name: x\r\n\
         x-envoy-expected-rq-timeout-ms: 7\r\nx-envoy-force-trace: 1\r\nx-envoy-ip-tags: t\r\n\
         x-envoy-original-path: /o\r\nx-envoy-original-host: o.test\r\nx-envoy-original-url: u\r\n\
         x-envoy-decorator-operation: d\r\nx-envoy-downstream-service-cluster: c\r\n\
         x-envoy-downstream-service-node: n\r\nx-envoy-hedge-on-per-try-timeout: true\r\n\
         x-envoy-retriable-status-codes: 500\r\nx-envoy-retriable-header-names: x\r\n\
         x-envoy-attempt-count: 9\r\nx-envoy-overloaded: true\r\nx-envoy-is-timeout-retry: true\r\n\
         x-envoy-unknown-to-all: 1\r\nx-envoy-upstream-stream-duration-ms: 3000\r\n";
    let get = |listener, name, headers: &str| case(listener, name).get("/", headers);
    vec![
        get("main", "controls of a client", controls),
        get("edge", "controls of a client at the edge", controls),
        get("internal", "controls of an internal client", &format!("x-forwarded-for: 10.1.1.1\r\n{controls}")),
        get("main", "envoy headers of the origin", "").answers(Answer::raw(
            "HTTP/1.1 200 OK\r\nx-envoy-upstream-service-time: 77777\r\nx-envoy-overloaded: true\r\n\
             x-envoy-upstream-canary: true\r\nx-envoy-decorator-operation: d\r\nx-envoy-degraded: 1\r\n\
             x-envoy-immediate-health-check-fail: 0\r\nx-envoy-attempt-count: 4\r\ncontent-length: 2\r\n\r\nok",
        )),
        get("main", "client certificate header", "x-forwarded-client-cert: By=x;Hash=y\r\n"),
        get("no-cert", "client certificate header without tls", "x-forwarded-client-cert: By=x;Hash=y\r\n"),
        get("any-cert", "client certificate header always forwarded", "x-forwarded-client-cert: By=x;Hash=y\r\n"),
    ]
}
