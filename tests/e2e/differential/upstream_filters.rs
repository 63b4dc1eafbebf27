//! HTTP filters of clusters (`HttpProtocolOptions.http_filters`): heads of tries, after all that routes do to them.

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{host, says};
use super::{differing, run_side, set};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use crate::harness::proxy::Kind;
use crate::peers;

#[tokio::test]
async fn header_mutation() {
    if !peers::have(&["envoy"]) {
        return;
    }
    const PER_ROUTE: &str = "extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";
    let add =
        |name: &str, value: &str| format!("{{ append: {{ header: {{ key: {name}, value: '{value}' }} }} }}");
    let mutation = |name: &str, options: &str| {
        format!("{{ name: {name}, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {{ {options} }} }} }}")
    };
    let first = mutation(
        "first",
        &format!(
            "request_mutations: [ {}, {}, {{ remove: x-secret }} ], response_mutations: [ {}, {{ remove: x-inner }} ]",
            add("x-host", "%REQ(:authority)% %REQ(:path)% %REQ(x-route)%"),
            add("x-order", "first"),
            add("x-order", "first"),
        ),
    );
    let second = mutation(
        "second",
        &format!(
            "request_mutations: [ {} ], response_mutations: [ {} ]",
            add("x-order", "second"),
            add("x-order", "second")
        ),
    );
    let codec = "{ name: envoy.filters.http.upstream_codec, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec } }";
    let options = format!(
        "typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{ http_protocol_options: {{}} }}, http_filters: [ {first}, {second}, {codec} ] }} }}"
    );
    let own = says(
        "first",
        PER_ROUTE,
        &format!("mutations: {{ request_mutations: [ {} ] }}", add("x-own", "route")),
    );
    let routes = [
        format!("- {{ match: {{ prefix: /own }}, route: {{ cluster: a-filtered }}, typed_per_filter_config: {{ {own} }} }}\n"),
        "- { match: { prefix: /changed }, route: { cluster: a-filtered, prefix_rewrite: /other, host_rewrite_literal: inner.test }, request_headers_to_add: [ { header: { key: x-route, value: added } } ], response_headers_to_remove: [ x-gone ] }\n".to_string(),
        "- { match: { prefix: /again }, route: { cluster: a-filtered, timeout: 0s, retry_policy: { retry_on: retriable-headers, retriable_headers: [ { name: x-again, present_match: true } ], num_retries: 2, retry_back_off: { base_interval: 0.001s } } } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a-filtered } }\n".to_string(),
    ]
    .concat();
    let template =
        Bootstrap::new().origin("a-filtered", &options).listener("main", "", &host("", &routes)).render();
    let answer =
        "HTTP/1.1 200 OK\r\nx-inner: 1\r\nx-gone: 1\r\nx-order: origin\r\ncontent-length: 2\r\n\r\nok";
    let again = |message: &Message| match message.all("x-order").count() {
        2 => Answer::raw("HTTP/1.1 200 OK\r\nx-again: 1\r\ncontent-length: 2\r\n\r\nno"),
        _ => Answer::ok("ok"),
    };
    let get =
        |name, path: &str, headers: &str| case("main", name).get(path, headers).answers(Answer::raw(answer));
    let cases = vec![
        get("plain", "/x", "X-Secret: 1\r\nX-Order: client\r\n"),
        get("of a route", "/own", ""),
        get("after the route", "/changed/x", ""),
        case("main", "each try").get("/again", "").script(again),
        case("main", "no answer").send("POST", "/x", "", "body").answers(Answer::status(
            503,
            "Unavailable",
            "",
        )),
    ];
    let envoy = run_side(Kind::Envoy, &template).await;
    let ours = match set("OUTRIGGER_E2E_ENVOY_ONLY") {
        Some(_) => None,
        None => Some(run_side(Kind::Outrigger, &template).await),
    };
    let failures = differing(&cases, &envoy, ours.as_ref()).await;
    assert!(failures.is_empty(), "{} cases differ\n{}", failures.len(), failures.join("\n"));
}
