//! Decisions that stop nobody.

use super::super::bootstrap::{endpoints, Bootstrap};
use super::super::case::case;
use super::super::filters::{check, filter, host};
use super::super::grpc_service::{GrpcService, HTTP2};
use super::{answer, plain, KIND};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;

#[tokio::test]
async fn nobody_is_refused_in_shadow_mode() {
    let service = GrpcService::start(answer).await;
    let http = |cluster: &str, more: &str| {
        format!("shadow_mode: true, http_service: {{ server_uri: {{ uri: 'http://authz.test', cluster: {cluster}, timeout: 1s }}, path_prefix: /authz{more} }}")
    };
    let grpc = "shadow_mode: true, grpc_service: { envoy_grpc: { cluster_name: authz }, timeout: 1s }, transport_api_version: V3";
    let response = ", authorization_response: { allowed_upstream_headers: { patterns: [ { exact: x-up } ] }, allowed_client_headers: { patterns: [ { exact: x-why } ] }, allowed_client_headers_on_success: { patterns: [ { exact: x-ok } ] } }";
    let shown = "  response_headers_to_add:\n  - { header: { key: x-typed, value: '%FILTER_STATE(authz.shadow)%' } }\n  - { header: { key: x-plain, value: '%FILTER_STATE(authz.shadow:PLAIN)%' } }\n  - { header: { key: x-md, value: '%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%' } }\n";
    let mut bootstrap =
        Bootstrap::new().cluster("authz", &format!("{}\n{HTTP2}", endpoints(&[&service.port().to_string()])));
    for (name, options) in [
        ("main", http("b", response)),
        ("lost", http("refused", "") + ", failure_mode_allow: true, failure_mode_allow_header_add: true, status_on_error: { code: 503 }"),
        ("never", http("b", "") + ", filter_enabled: { default_value: { numerator: 0 } }, deny_at_disable: { default_value: true, runtime_key: authz.deny }"),
        ("rpc", grpc.to_string()),
    ] {
        bootstrap = bootstrap.listener(name, "", &host(shown, &plain("/"))).filters(name, &filter("authz", KIND, &options));
    }
    let script = |message: &Message| match message.target().strip_prefix("/authz") {
        Some("/deny") => Answer::raw(
            "HTTP/1.1 401 Unauthorized\r\nx-why: because\r\nx-other: 1\r\ncontent-length: 3\r\n\r\nno!",
        ),
        Some("/broken") => Answer::status(500, "Internal Server Error", "oops"),
        Some(_) => Answer::raw("HTTP/1.1 200 OK\r\nx-up: 1\r\nx-ok: 2\r\ncontent-length: 0\r\n\r\n"),
        None => Answer::ok("ok"),
    };
    let get = |listener: &'static str, name: &'static str, path: &str| {
        case(listener, name).get(path, "").script(script)
    };
    let cases = vec![
        get("main", "allowed", "/x"),
        get("main", "denied", "/deny"),
        get("main", "broken", "/broken"),
        case("main", "a body").send("POST", "/deny", "", "hello").script(script),
        get("lost", "nobody there", "/x"),
        get("never", "denied while off", "/x"),
        get("rpc", "allowed by gRPC", "/x"),
        get("rpc", "changed by gRPC", "/remove"),
        get("rpc", "denied by gRPC", "/deny"),
        get("rpc", "denied by gRPC, said", "/deny/said"),
        get("rpc", "metadata by gRPC", "/metadata"),
        get("rpc", "unavailable", "/unavailable"),
    ];
    let rooms = [
        "http.main.ext_authz.",
        "http.lost.ext_authz.",
        "http.never.ext_authz.",
        "http.rpc.ext_authz.",
        "cluster.a.ext_authz.",
        "cluster.a.upstream_rq_4",
    ];
    check(bootstrap, cases, &rooms).await;
}
