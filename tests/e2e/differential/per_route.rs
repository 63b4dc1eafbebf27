//! Filters that ask a service: routes and virtual hosts that name another one, or tell it something else.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::ext_authz::{answer, masked};
use super::ext_proc::processor;
use super::filters::{check, check_but, filter, route, says};
use super::grpc_service::{asked_by_both, GrpcService, Said, HTTP2};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;
use outrigger_control_api::pb::google::rpc::Status;

fn host(domain: &str, options: &str, routes: &str) -> String {
    let routes: String = routes.lines().map(|line| format!("  {line}\n")).collect();
    format!("- name: {domain:?}\n  domains: [{domain:?}]\n{options}  routes:\n{routes}")
}

fn level(said: &str) -> String {
    format!("  typed_per_filter_config: {{ {said} }}\n")
}

/// Entries of `docs/differences.md` that cases here name.
pub const DIFFERENCES: &[&str] = &["unreached-processors"];

const ANY: &str = "- { match: { prefix: / }, route: { cluster: a } }\n";

#[tokio::test]
async fn authorization() {
    const PER_ROUTE: &str = "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
    let service = GrpcService::start(answer).await;
    let refuses = GrpcService::start(|_: &pb::CheckRequest| {
        Said::Message(pb::CheckResponse {
            status: Some(Status { code: 7, ..Status::default() }),
            ..pb::CheckResponse::default()
        })
    })
    .await;
    let settings = |options: &str| says("authz", PER_ROUTE, &format!("check_settings: {{ {options} }}"));
    let grpc =
        |cluster: &str| format!("grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 1s }}");
    let http = |more: &str| {
        format!("http_service: {{ server_uri: {{ uri: 'http://authz.test', cluster: b, timeout: 1s }}, path_prefix: /authz{more} }}")
    };
    let told = ", authorization_request: { allowed_headers: { patterns: [ { exact: x-see } ] }, headers_to_add: [ { key: x-added, value: added } ] }, authorization_response: { allowed_upstream_headers: { patterns: [ { prefix: x-up } ] } }";
    let routes = [
        route("/deny", &[settings(&grpc("authz"))]),
        route("/headers", &[settings(&grpc("authz"))]),
        route("/http", &[settings(&http(told))]),
        route("/context", &[settings("context_extensions: { level: route }")]),
        route("/off", &[says("authz", PER_ROUTE, "disabled: true")]),
        route(
            "/body",
            &[settings(&format!("with_request_body: {{ max_request_bytes: 9 }}, {}", grpc("authz")))],
        ),
        route("/lost", &[settings(&grpc("refused"))]),
        route("/unknown", &[settings(&grpc("nowhere"))]),
        ANY.to_string(),
    ]
    .concat();
    let named = level(&settings(&format!("context_extensions: {{ host: all }}, {}", grpc("authz"))));
    let hosts = [host("*", "", &routes), host("named.test", &named, &routes)].concat();
    let cluster = |port: u16| format!("{}\n{HTTP2}", endpoints(&[&port.to_string()]));
    let bootstrap = Bootstrap::new()
        .cluster("authz", &cluster(service.port()))
        .cluster("refuses", &cluster(refuses.port()))
        .listener("grpc", "", &hosts)
        .filters(
            "grpc",
            &[
                filter("set", "set_metadata.v3.Config", "metadata: [ { metadata_namespace: one, typed_value: { '@type': type.googleapis.com/google.protobuf.StringValue, value: text } }, { metadata_namespace: two, value: { a: b } }, { metadata_namespace: three, typed_value: { '@type': type.googleapis.com/google.protobuf.BoolValue, value: true } } ]"),
                filter(
                    "authz",
                    "ext_authz.v3.ExtAuthz",
                    &format!("{}, transport_api_version: V3, metadata_context_namespaces: [ two ], typed_metadata_context_namespaces: [ one, none ]", grpc("refuses")),
                ),
            ]
            .concat(),
        )
        .listener("http", "", &hosts)
        .filters("http", &filter("authz", "ext_authz.v3.ExtAuthz", &http("")));
    let script = |message: &Message| match message.target() {
        "/authz/http/deny" | "/authz/context" | "/authz/x" => Answer::status(401, "Unauthorized", "no!"),
        _ => Answer::raw("HTTP/1.1 200 OK\r\nx-up: 1\r\ncontent-length: 2\r\n\r\nok"),
    };
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["grpc", "http"] {
        for (name, domain) in [("any", "t.test"), ("named", "named.test")] {
            for path in
                ["/x", "/deny", "/headers", "/http", "/http/deny", "/context", "/off", "/lost", "/unknown"]
            {
                let name: &str = format!("{name} {path}").leak();
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {domain}\r\nX-See: 1\r\nX-Other: 2\r\nAuthorization: a\r\n\r\n"
                );
                cases.push(case(listener, name).raw(request).script(script));
            }
        }
        cases.push(case(listener, "a body").send("POST", "/body", "", "hello").script(script));
    }
    let rooms = ["http.grpc.ext_authz.", "http.http.ext_authz."];
    check(bootstrap, cases, &rooms).await;
    if !crate::peers::have(&["envoy"]) || super::set("OUTRIGGER_E2E_CASE").is_some() {
        return;
    }
    asked_by_both(service.take().iter().map(masked));
    asked_by_both(refuses.take().iter().map(masked));
}

#[tokio::test]
async fn processing() {
    const PER_ROUTE: &str = "extensions.filters.http.ext_proc.v3.ExtProcPerRoute";
    let port = processor().await;
    let overrides = |options: &str| says("proc", PER_ROUTE, &format!("overrides: {{ {options} }}"));
    let metadata = |pairs: &[(&str, &str)]| {
        let all: Vec<_> =
            pairs.iter().map(|(key, value)| format!("{{ key: {key}, value: {value} }}")).collect();
        format!("[ {} ]", all.join(", "))
    };
    let service = |cluster: &str, who: &str| {
        format!(
            "grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 5s, initial_metadata: {} }}",
            metadata(&[("x-who", who), ("x-who-two", who)])
        )
    };
    let routes = [
        route("/own", &[overrides(&service("proc", "route"))]),
        route(
            "/told",
            &[overrides(&format!(
                "grpc_initial_metadata: {}",
                metadata(&[("x-who", "told"), ("x-who-more", "more")])
            ))],
        ),
        route(
            "/both",
            &[overrides(&format!(
                "grpc_initial_metadata: {}, {}",
                metadata(&[("x-who", "told"), ("x-who-more", "more")]),
                service("proc", "route")
            ))],
        ),
        route("/mode", &[overrides("processing_mode: { response_header_mode: SKIP }")]),
        route(
            "/attributes",
            &[overrides("request_attributes: [ request.path ], response_attributes: [ response.code ]")],
        ),
        route("/names", &[overrides("metadata_options: { forwarding_namespaces: { untyped: [ two ] } }")]),
        route(
            "/metadata",
            &[overrides("metadata_options: { receiving_namespaces: { untyped: [ other ] } }")],
        ),
        route(
            "/lost/open",
            &[overrides(&format!("failure_mode_allow: true, {}", service("refused", "route")))],
        ),
        route("/lost", &[overrides(&service("refused", "route"))]),
        route("/unknown", &[overrides(&service("nowhere", "route"))]),
        route("/off", &[says("proc", PER_ROUTE, "disabled: true")]),
        ANY.to_string(),
    ]
    .concat();
    let shown = "  request_headers_to_add: [ { header: { key: x-md, value: '%DYNAMIC_METADATA(mine:user)% %DYNAMIC_METADATA(other:user)%' } } ]\n";
    let named = level(&overrides(&format!(
        "grpc_initial_metadata: {}, metadata_options: {{ forwarding_namespaces: {{ untyped: [ one, two ] }} }}, {}",
        metadata(&[("x-who-host", "host")]),
        service("proc", "host")
    )));
    let hosts = [host("*", shown, &routes), host("named.test", &format!("{shown}{named}"), &routes)].concat();
    let set = "metadata: [ { metadata_namespace: one, value: { a: b } }, { metadata_namespace: two, value: { a: b } } ]";
    let options = format!(
        "{}, metadata_options: {{ forwarding_namespaces: {{ untyped: [ one ] }}, receiving_namespaces: {{ untyped: [ mine ] }} }}",
        service("proc", "filter")
    );
    let filters = [
        filter("set", "set_metadata.v3.Config", set),
        filter("proc", "ext_proc.v3.ExternalProcessor", &options),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .cluster("proc", &format!("{}\n{HTTP2}", endpoints(&[&port.to_string()])))
        .listener("main", "", &hosts)
        .filters("main", &filters);
    let mut cases: Vec<Case> = Vec::new();
    for domain in ["t.test", "named.test"] {
        for path in [
            "/x",
            "/own",
            "/told",
            "/both",
            "/mode",
            "/attributes",
            "/names",
            "/metadata",
            "/lost",
            "/lost/open",
            "/unknown",
            "/off",
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {domain}\r\n\r\n");
            let case = case("main", format!("{domain} {path}").leak()).raw(request);
            let lost = ["/lost", "/unknown"].contains(&path);
            cases.push(if lost { case.differs(DIFFERENCES[0], &["log[0].details"]) } else { case });
        }
    }
    // Envoy counts no call of a cluster that does not exist.
    let uncounted = ["server_half_closed", "streams_started", "stream_msgs_sent"];
    check_but(bootstrap, cases, &["http.main.ext_proc."], &uncounted).await;
}
