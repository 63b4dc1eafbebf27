//! `envoy.filters.http.ext_authz`: the same service, asked by both, as in [`super::filters`].

mod lost;
mod retried;
mod shadow;

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::filters::{check, filter, host, route, says};
use super::grpc_service::{asked_by_both, GrpcService, Said, HTTP2};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use outrigger_control_api::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter};
use outrigger_control_api::pb::envoy::r#type::v3::HttpStatus;
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;
use outrigger_control_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_control_api::pb::google::protobuf::{value::Kind, BoolValue, Struct, Value};
use outrigger_control_api::pb::google::rpc::Status;
use std::collections::BTreeMap;

const KIND: &str = "ext_authz.v3.ExtAuthz";
const PER_ROUTE: &str = "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";

fn plain(path: &str) -> String {
    format!("- {{ match: {{ prefix: {path} }}, route: {{ cluster: a }} }}\n")
}

#[tokio::test]
async fn http_service() {
    let service = |more: &str| {
        format!("http_service: {{ server_uri: {{ uri: 'http://authz.test', cluster: b, timeout: 1s }}, path_prefix: /authz{more} }}")
    };
    let response = ", authorization_response: { allowed_upstream_headers: { patterns: [ { prefix: x-up } ] }, allowed_upstream_headers_to_append: { patterns: [ { exact: x-list } ] }, allowed_client_headers_on_success: { patterns: [ { prefix: x-ok } ] }, dynamic_metadata_from_headers: { patterns: [ { exact: x-user } ] } }";
    let shown = "  request_headers_to_add: [ { header: { key: x-md, value: '%DYNAMIC_METADATA(envoy.filters.http.ext_authz:x-user)%' } } ]\n";
    let routes = [
        route("/off", &[says("authz", PER_ROUTE, "disabled: true")]),
        route("/nobody", &[says("authz", PER_ROUTE, "check_settings: { disable_request_body_buffering: true }")]),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n".to_string(),
        "- { match: { prefix: /changed, headers: [ { name: x-up-user, present_match: true } ] }, route: { cluster: a, prefix_rewrite: /rerouted } }\n".to_string(),
        plain("/"),
    ]
    .concat();
    let with_body = "with_request_body: { max_request_bytes: 20 }";
    let partial = "with_request_body: { max_request_bytes: 4, allow_partial_message: true }";
    let listener = |bootstrap: Bootstrap, name: &str, options: &str| {
        bootstrap.listener(name, "", &host(shown, &routes)).filters(name, &filter("authz", KIND, options))
    };
    let mut bootstrap = Bootstrap::new();
    for (name, options) in [
        ("main", format!("{}, clear_route_cache: true, stat_prefix: mine", service(response))),
        ("body", format!("{}, {with_body}", service(""))),
        ("partial", format!("{}, {partial}", service(""))),
        ("open", "failure_mode_allow: true, failure_mode_allow_header_add: true, http_service: { server_uri: { uri: 'http://authz.test', cluster: refused, timeout: 1s } }".to_string()),
        ("shut", "status_on_error: { code: 503 }, http_service: { server_uri: { uri: 'http://authz.test', cluster: refused, timeout: 1s } }".to_string()),
        ("none", "http_service: { server_uri: { uri: 'http://authz.test', cluster: empty, timeout: 1s } }".to_string()),
        ("some", format!("{}, allowed_headers: {{ patterns: [ {{ prefix: x-see }} ] }}, disallowed_headers: {{ patterns: [ {{ exact: x-see-not }} ] }}", service(", authorization_request: { headers_to_add: [ { key: x-added, value: added } ] }, authorization_response: { allowed_client_headers: { patterns: [ { exact: x-why } ] } }"))),
        ("never", format!("{}, filter_enabled: {{ default_value: {{ numerator: 0 }} }}", service(""))),
        ("denied", format!("{}, filter_enabled: {{ default_value: {{ numerator: 0 }} }}, deny_at_disable: {{ default_value: true, runtime_key: authz.deny }}", service(""))),
        ("over", "http_service: { server_uri: { uri: 'http://authz.test', cluster: b, timeout: 1s }, path_override: /authz/fixed }".to_string()),
    ] {
        bootstrap = listener(bootstrap, name, &options);
    }
    let script = |message: &Message| {
        let Some(path) = message.target().strip_prefix("/authz") else { return Answer::ok("ok") };
        match path {
            "/deny" => Answer::raw("HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\nx-why: because\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 3\r\n\r\nno!"),
            "/redirect" => Answer::raw("HTTP/1.1 302 Found\r\nlocation: http://login.test/\r\ncontent-length: 0\r\n\r\n"),
            "/created" => Answer::status(201, "Created", "made"),
            "/broken" => Answer::status(500, "Internal Server Error", "oops"),
            "/busy" => Answer::status(503, "Service Unavailable", "oops"),
            "/headers" | "/changed" => Answer::raw("HTTP/1.1 200 OK\r\nx-up-user: jane\r\nx-up-twice: 1\r\nx-up-twice: 2\r\nx-list: more\r\nx-ok-a: client\r\nx-user: jane\r\nx-other: nobody\r\ncontent-length: 0\r\n\r\n"),
            "/remove" => Answer::raw("HTTP/1.1 200 OK\r\nx-envoy-auth-headers-to-remove: x-secret, x-other\r\nx-envoy-auth-headers-to-remove: host, :path\r\ncontent-length: 0\r\n\r\n"),
            _ => Answer::ok("fine"),
        }
    };
    let get = |listener: &'static str, name: &'static str, path: &str, headers: &str| {
        case(listener, name).get(path, headers).script(script)
    };
    let post = |listener: &'static str, name: &'static str, path: &str, body: &str| {
        case(listener, name).send("POST", path, "", body).script(script)
    };
    let cases: Vec<Case> = vec![
        get("main", "allowed", "/x?a=b", "Authorization: Basic abc\r\nX-Other: 1\r\nCookie: a=b\r\n"),
        post("main", "allowed, a body", "/x", "hello"),
        get("main", "denied", "/deny", ""),
        case("main", "denied, HEAD").send("HEAD", "/deny", "", "").answers_head().script(script),
        get("main", "denied, gRPC", "/deny", "Content-Type: application/grpc\r\n"),
        get("main", "redirected", "/redirect", ""),
        get("main", "another 2xx", "/created", ""),
        get("main", "500", "/broken", ""),
        get("main", "503", "/busy", ""),
        get("main", "headers", "/headers", "X-Up-User: forged\r\nX-List: one\r\nX-Ok-A: forged\r\n"),
        get("main", "headers, nothing to append to", "/headers", ""),
        get("main", "rerouted", "/changed", ""),
        get("main", "removed", "/remove", "X-Secret: 1\r\nX-Other: 2\r\nX-Kept: 3\r\n"),
        get("main", "off", "/off", ""),
        get("main", "direct", "/direct", ""),
        post("body", "whole body", "/x", "hello"),
        get("body", "no body", "/x", ""),
        case("body", "chunks").raw("POST /x HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n, w\r\n0\r\n\r\n").script(script),
        post("body", "just fits", "/x", "12345678901234567890"),
        post("body", "body, denied", "/deny", "hello"),
        post("body", "route without bodies", "/nobody", "hello"),
        post("partial", "short body", "/x", "abc"),
        post("partial", "exact body", "/x", "abcd"),
        get("open", "open", "/x", ""),
        post("open", "open, a body", "/x", "hello"),
        get("shut", "shut", "/x", ""),
        get("none", "no host", "/x", ""),
        get("some", "some headers", "/x", "X-See-Me: 1\r\nX-See-Not: 2\r\nX-Other: 3\r\nAuthorization: a\r\nX-Added: no\r\n"),
        get("some", "some headers, denied", "/deny", ""),
        get("never", "never", "/deny", ""),
        get("denied", "denied while off", "/x", ""),
        get("over", "fixed path", "/whatever", ""),
    ];
    let rooms = [
        "http.main.ext_authz.",
        "http.body.ext_authz.",
        "http.open.ext_authz.",
        "http.shut.ext_authz.",
        "http.never.ext_authz.",
        "http.denied.ext_authz.",
        "cluster.a.ext_authz.",
    ];
    check(bootstrap, cases, &rooms).await;
}

fn header(key: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    #[allow(deprecated)]
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_string(),
            value: value.to_string(),
            ..HeaderValue::default()
        }),
        append: append.map(|value| BoolValue { value }),
        append_action: action,
        ..HeaderValueOption::default()
    }
}

fn ways(prefix: &str) -> Vec<HeaderValueOption> {
    let mut all: Vec<_> =
        (0..4).map(|action| header(&format!("{prefix}-{action}"), "new", None, action)).collect();
    all.extend((0..4).map(|action| header(&format!("{prefix}-absent-{action}"), "new", None, action)));
    for (name, append) in [("yes", true), ("no", false)] {
        all.push(header(&format!("{prefix}-{name}"), "new", Some(append), 0));
        all.push(header(&format!("{prefix}-absent-{name}"), "new", Some(append), 0));
    }
    all
}

/// The header lines that those changes meet.
fn met(prefix: &str) -> String {
    ["0", "1", "2", "3", "yes", "no"].map(|name| format!("{prefix}-{name}: old\r\n")).concat()
}

pub(super) fn answer(question: &pb::CheckRequest) -> Said<pb::CheckResponse> {
    let http = question.attributes.as_ref().and_then(|all| all.request.as_ref()?.http.as_ref());
    let path = http.map(|http| http.path.split('?').next().unwrap_or_default()).unwrap_or_default();
    let status = |code| Some(Status { code, ..Status::default() });
    let ok = |said: pb::OkHttpResponse| pb::CheckResponse {
        status: status(0),
        http_response: Some(HttpResponse::OkResponse(said)),
        ..pb::CheckResponse::default()
    };
    let denied = |code: i32, headers: Vec<HeaderValueOption>, body: &str| pb::CheckResponse {
        status: status(7),
        http_response: Some(HttpResponse::DeniedResponse(pb::DeniedHttpResponse {
            status: (code != 0).then_some(HttpStatus { code }),
            headers,
            body: body.to_string(),
        })),
        ..pb::CheckResponse::default()
    };
    let metadata = || {
        let mut all = Struct::default();
        all.fields.insert("user".to_string(), Value { kind: Some(Kind::StringValue("jane".to_string())) });
        Some(all)
    };
    Said::Message(match path {
        "/deny" => pb::CheckResponse { status: status(7), ..pb::CheckResponse::default() },
        "/deny/said" => denied(
            401,
            vec![
                header("x-why", "because", None, 0),
                header("set-cookie", "a=1", None, 0),
                header("set-cookie", "b=2", Some(true), 0),
                header("x-set", "1", Some(false), 0),
            ],
            "no!",
        ),
        "/deny/default" => denied(0, Vec::new(), "no!"),
        "/deny/long" => denied(429, vec![header("retry-after", "1", None, 2)], &"x".repeat(100)),
        "/headers" => ok(pb::OkHttpResponse { headers: ways("x-to"), ..pb::OkHttpResponse::default() }),
        "/response" => ok(pb::OkHttpResponse {
            response_headers_to_add: ways("x-from"),
            ..pb::OkHttpResponse::default()
        }),
        "/remove" => ok(pb::OkHttpResponse {
            headers_to_remove: ["x-secret", "Host", ":path", "x-none"].map(String::from).to_vec(),
            ..pb::OkHttpResponse::default()
        }),
        "/path" => ok(pb::OkHttpResponse {
            headers: vec![header(":path", "/elsewhere", None, 2)],
            ..pb::OkHttpResponse::default()
        }),
        "/query" => ok(pb::OkHttpResponse {
            query_parameters_to_set: vec![
                QueryParameter { key: "a".to_string(), value: "new".to_string() },
                QueryParameter { key: "z".to_string(), value: "%20".to_string() },
            ],
            query_parameters_to_remove: vec!["b".to_string()],
            ..pb::OkHttpResponse::default()
        }),
        "/envoy" => ok(pb::OkHttpResponse {
            headers: vec![
                header("x-envoy-own", "1", None, 2),
                header("x-fine", "1", None, 2),
                header(":method", "PUT", None, 2),
            ],
            headers_to_remove: vec!["x-secret".to_string()],
            ..pb::OkHttpResponse::default()
        }),
        "/invalid" => ok(pb::OkHttpResponse {
            headers: vec![header("x-bad", "a\r\nx-evil: 1", None, 2)],
            ..pb::OkHttpResponse::default()
        }),
        "/metadata" => {
            pb::CheckResponse { dynamic_metadata: metadata(), ..ok(pb::OkHttpResponse::default()) }
        }
        "/unavailable" => return Said::Status(14),
        "/unauthenticated" => return Said::Status(16),
        "/silent" => return Said::Nothing,
        _ => ok(pb::OkHttpResponse::default()),
    })
}

/// A question without what differs from call to call.
pub(super) fn masked(question: &pb::CheckRequest) -> String {
    let mut question = question.clone();
    let Some(all) = &mut question.attributes else { return String::new() };
    let ports = |peer: &mut Option<pb::attribute_context::Peer>| {
        use outrigger_control_api::pb::envoy::config::core::v3::{
            address::Address, socket_address::PortSpecifier,
        };
        if let Some(Address::SocketAddress(socket)) =
            peer.as_mut().and_then(|peer| peer.address.as_mut()).and_then(|address| address.address.as_mut())
        {
            socket.port_specifier = Some(PortSpecifier::PortValue(1));
        }
    };
    ports(&mut all.source);
    ports(&mut all.destination);
    let mut headers = BTreeMap::new();
    if let Some(request) = &mut all.request {
        request.time = request.time.map(|_| Default::default());
        if let Some(http) = &mut request.http {
            http.id = if http.id.is_empty() { String::new() } else { "id".to_string() };
            for (name, value) in http.headers.drain() {
                let random = name == "x-request-id";
                headers.insert(name, if random { "random".to_string() } else { value });
            }
            if let Some(map) = &mut http.header_map {
                map.headers.retain(|header| header.key != "x-request-id");
                map.headers
                    .sort_by(|one, other| (&one.key, &one.raw_value).cmp(&(&other.key, &other.raw_value)));
            }
        }
    }
    let extensions: BTreeMap<_, _> = all.context_extensions.drain().collect();
    format!("{question:?} {headers:?} {extensions:?}")
}

#[tokio::test]
async fn grpc_service() {
    let service = GrpcService::start(answer).await;
    let grpc = |more: &str| {
        format!("grpc_service: {{ envoy_grpc: {{ cluster_name: authz }}, timeout: 1s{more} }}, transport_api_version: V3")
    };
    let shown = "  request_headers_to_add: [ { header: { key: x-md, value: '%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%' } } ]\n  typed_per_filter_config: { authz: { '@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: { context_extensions: { host: all, level: host } } } }\n";
    let routes = [
        route("/off", &[says("authz", PER_ROUTE, "disabled: true")]),
        route("/context", &[says("authz", PER_ROUTE, "check_settings: { context_extensions: { route: context, level: route } }")]),
        route("/own", &[says("authz", PER_ROUTE, "check_settings: { with_request_body: { max_request_bytes: 3, allow_partial_message: true } }")]),
        "- { match: { prefix: /elsewhere }, route: { cluster: b } }\n".to_string(),
        plain("/"),
    ]
    .concat();
    let mut bootstrap =
        Bootstrap::new().cluster("authz", &format!("{}\n{HTTP2}", endpoints(&[&service.port().to_string()])));
    for (name, options) in [
        ("main", grpc(", initial_metadata: [ { key: x-from, value: proxy } ]") + ", clear_route_cache: true"),
        ("body", grpc("") + ", with_request_body: { max_request_bytes: 10, pack_as_bytes: true }"),
        ("partial", grpc("") + ", with_request_body: { max_request_bytes: 4, allow_partial_message: true }"),
        ("raw", grpc("") + ", encode_raw_headers: true, include_tls_session: true, include_peer_certificate: true"),
        ("rules", grpc("") + ", decoder_header_mutation_rules: {}"),
        ("strict", grpc("") + ", decoder_header_mutation_rules: { disallow_is_error: true, disallow_expression: { regex: 'x-fi.*' } }"),
        ("all", grpc("") + ", decoder_header_mutation_rules: { allow_all_routing: true, allow_envoy: true }"),
        ("valid", grpc("") + ", validate_mutations: true, max_denied_response_body_bytes: 10"),
        ("quiet", grpc("") + ", enable_dynamic_metadata_ingestion: false, charge_cluster_response_stats: false"),
        ("brief", "grpc_service: { envoy_grpc: { cluster_name: authz }, timeout: 0.2s }, transport_api_version: V3, failure_mode_allow: true".to_string()),
    ] {
        bootstrap = bootstrap.listener(name, "", &host(shown, &routes)).filters(name, &filter("authz", KIND, &options));
    }
    let get = |listener: &'static str, name: &'static str, path: &str, headers: &str| {
        case(listener, name).get(path, headers)
    };
    let post = |listener: &'static str, name: &'static str, path: &str, body: &str| {
        case(listener, name).send("POST", path, "", body)
    };
    let old = Answer::raw(format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", met("x-from")));
    let cases = vec![
        get("main", "allowed", "/x?a=b", "X-Two: 1\r\nX-Two: 2\r\nX-Envoy-Auth-Partial-Body: forged\r\n"),
        post("main", "allowed, a body", "/x", "hello"),
        get("main", "denied", "/deny", ""),
        get("main", "denied, said", "/deny/said", ""),
        get("main", "denied, default status", "/deny/default", ""),
        get("main", "denied, long", "/deny/long", ""),
        get("main", "denied, gRPC", "/deny/said", "Content-Type: application/grpc\r\n"),
        get("main", "headers", "/headers", &met("X-To")),
        get("main", "response headers", "/response", "").answers(old),
        get("main", "removed", "/remove", "X-Secret: 1\r\n"),
        get("main", "another path", "/path", ""),
        get("main", "query", "/query?a=1&b=2&c=%41&a=3", ""),
        get("main", "invalid header", "/fine", ""),
        get("main", "metadata", "/metadata", ""),
        get("main", "unavailable", "/unavailable", ""),
        get("main", "unauthenticated", "/unauthenticated", ""),
        get("main", "off", "/off", ""),
        get("main", "context", "/context", ""),
        post("main", "body of a route", "/own", "hello"),
        post("body", "a body as bytes", "/x", "hello"),
        get("body", "no body", "/x", ""),
        post("partial", "short", "/x", "abc"),
        get("raw", "raw", "/x", "X-Two: 1\r\nX-Two: 2\r\n"),
        get("rules", "default rules", "/envoy", "X-Secret: 1\r\n"),
        get("strict", "strict rules", "/envoy", ""),
        get("strict", "strict rules, nothing to do", "/x", ""),
        get("all", "all allowed", "/envoy", "X-Secret: 1\r\n"),
        get("valid", "valid", "/headers", ""),
        get("valid", "not valid", "/invalid", ""),
        get("valid", "cut", "/deny/long", ""),
        get("quiet", "quiet", "/metadata", ""),
        get("quiet", "quiet, denied", "/deny", ""),
        get("brief", "too slow", "/silent", ""),
    ];
    let rooms = [
        "http.main.ext_authz.",
        "http.body.ext_authz.",
        "http.strict.ext_authz.",
        "http.valid.ext_authz.",
        "http.quiet.ext_authz.",
        "http.brief.ext_authz.",
        "cluster.a.ext_authz.",
    ];
    check(bootstrap, cases, &rooms).await;
    if !crate::peers::have(&["envoy"]) || super::set("OUTRIGGER_E2E_CASE").is_some() {
        return;
    }
    asked_by_both(service.take().iter().map(masked));
}
