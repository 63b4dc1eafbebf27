//! `envoy.filters.http.ratelimit`: the same service, asked by both, as in [`super::filters`].

use super::bootstrap::{endpoints, Bootstrap};
use super::case::case;
use super::filters::{check, filter, host, route, says};
use super::grpc_service::{asked_by_both, GrpcService, Said, HTTP2};
use outrigger_control_api::pb::envoy::config::core::v3::HeaderValue;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, RateLimit,
};
use outrigger_control_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use outrigger_control_api::pb::google::protobuf::Duration;

const KIND: &str = "ratelimit.v3.RateLimit";
const PER_ROUTE: &str = "extensions.filters.http.ratelimit.v3.RateLimitPerRoute";

fn header(key: &str, value: &str) -> HeaderValue {
    HeaderValue { key: key.to_string(), value: value.to_string(), ..HeaderValue::default() }
}

/// The first value of the first descriptor says what to answer.
fn answer(question: &RateLimitRequest) -> Said<RateLimitResponse> {
    let first = question.descriptors.first().and_then(|one| one.entries.first());
    let status = |code: Code, remaining: u32| DescriptorStatus {
        code: code.into(),
        current_limit: Some(RateLimit {
            requests_per_unit: 10,
            unit: Unit::Minute.into(),
            name: "ten".to_string(),
        }),
        limit_remaining: remaining,
        duration_until_reset: Some(Duration { seconds: 17, nanos: 0 }),
        ..DescriptorStatus::default()
    };
    let mut all = RateLimitResponse::default();
    all.set_overall_code(Code::Ok);
    match first.map(|entry| entry.value.as_str()).unwrap_or_default() {
        "over" => {
            all.set_overall_code(Code::OverLimit);
            all.statuses = vec![status(Code::Ok, 5), status(Code::OverLimit, 0)];
            all.response_headers_to_add = vec![header("x-from-service", "over")];
            all.raw_body = b"slow down".to_vec();
        }
        "bare" => all.set_overall_code(Code::OverLimit),
        "unknown" => all.set_overall_code(Code::Unknown),
        "error" => return Said::Status(14),
        "silent" => return Said::Nothing,
        _ => {
            all.statuses = vec![status(Code::Ok, 5)];
            all.response_headers_to_add = vec![header("x-from-service", "fine")];
            all.request_headers_to_add = vec![header("x-to-upstream", "fine")];
        }
    }
    Said::Message(all)
}

#[tokio::test]
async fn ratelimit() {
    let service = GrpcService::start(answer).await;
    let limit = |more: &str| {
        format!("domain: tests, timeout: 1s, rate_limit_service: {{ transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: limits }} }} }}{more}")
    };
    let with = |path: &str, limits: &str| {
        format!("- {{ match: {{ prefix: {path} }}, route: {{ cluster: a, rate_limits: [ {limits} ] }} }}\n")
    };
    let fixed =
        |value: &str| format!("{{ actions: [ {{ generic_key: {{ descriptor_value: {value} }} }} ] }}");
    let routes = [
        with("/header", "{ actions: [ { request_headers: { header_name: x-say, descriptor_key: say } } ] }"),
        with("/skip", "{ actions: [ { generic_key: { descriptor_value: fine, descriptor_key: mine } }, { request_headers: { header_name: x-say, descriptor_key: say, skip_if_absent: true } } ] }"),
        with("/all", "{ actions: [ { source_cluster: {} }, { destination_cluster: {} }, { remote_address: {} }, { masked_remote_address: { v4_prefix_mask_len: 16 } } ] }, { actions: [ { header_value_match: { descriptor_value: strict, headers: [ { name: x-strict, present_match: true } ] } } ] }, { actions: [ { header_value_match: { descriptor_key: lax, descriptor_value: lax, expect_match: false, headers: [ { name: x-strict, present_match: true } ] } } ] }, { actions: [ { query_parameter_value_match: { descriptor_value: asked, query_parameters: [ { name: ask, present_match: true } ] } } ] }, { actions: [ { query_parameters: { query_parameter_name: ask, descriptor_key: ask } } ] }"),
        with("/metadata", "{ actions: [ { metadata: { descriptor_key: none, metadata_key: { key: some, path: [ { key: thing } ] }, default_value: nothing } } ] }, { actions: [ { metadata: { descriptor_key: none, metadata_key: { key: some, path: [ { key: thing } ] } } } ] }, { actions: [ { generic_key: { descriptor_value: fine } }, { metadata: { descriptor_key: none, metadata_key: { key: some, path: [ { key: thing } ] }, skip_if_absent: true } } ] }"),
        with("/stage", "{ stage: 1, actions: [ { generic_key: { descriptor_value: over } } ] }"),
        with("/off", "{ disable_key: quiet, actions: [ { generic_key: { descriptor_value: over } } ] }"),
        with("/over", &fixed("over")),
        with("/bare", &fixed("bare")),
        with("/unknown", &fixed("unknown")),
        with("/error", &fixed("error")),
        "- { match: { prefix: /both }, route: { cluster: a, include_vh_rate_limits: true, rate_limits: [ { actions: [ { generic_key: { descriptor_value: fine } } ] } ] } }\n".to_string(),
        "- { match: { prefix: /include }, route: { cluster: a, rate_limits: [ { actions: [ { generic_key: { descriptor_value: fine } } ] } ] }, typed_per_filter_config: { limit: { '@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute, vh_rate_limits: INCLUDE, domain: other } } }\n".to_string(),
        route("/ignore", &[says("limit", PER_ROUTE, "vh_rate_limits: IGNORE")]),
        route("/own", &[says("limit", PER_ROUTE, "rate_limits: [ { actions: [ { generic_key: { descriptor_value: over } } ] } ]")]),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let vhost = "  rate_limits: [ { actions: [ { generic_key: { descriptor_value: host } } ] } ]\n";
    let mut bootstrap = Bootstrap::new()
        .cluster("limits", &format!("{}\n{HTTP2}", endpoints(&[&service.port().to_string()])))
        .more("layered_runtime: { layers: [ { name: one, static_layer: { ratelimit: { quiet: { http_filter_enabled: 0 } } } } ] }");
    for (name, options) in [
        ("main", limit("")),
        ("told", limit(", enable_x_ratelimit_headers: DRAFT_VERSION_03, disable_x_envoy_ratelimited_header: true, rate_limited_status: { code: 503 }, response_headers_to_add: [ { header: { key: x-limited, value: 'yes' } } ], rate_limited_as_resource_exhausted: true")),
        ("deny", limit(", failure_mode_deny: true, status_on_error: { code: 502 }, stat_prefix: mine")),
        ("first", limit(", stage: 1")),
        ("inside", limit(", request_type: internal")),
        ("shadow", limit(", filter_enforced: { default_value: { numerator: 0 } }")),
        ("never", limit(", filter_enabled: { default_value: { numerator: 0 } }")),
        ("brief", limit(", failure_mode_deny: true").replace("timeout: 1s", "timeout: 0.1s")),
    ] {
        bootstrap = bootstrap.listener(name, "", &host(vhost, &routes)).filters(name, &filter("limit", KIND, &options));
    }
    let get = |listener: &'static str, name: &'static str, path: &str, headers: &str| {
        case(listener, name).get(path, headers)
    };
    let cases = vec![
        get("main", "virtual host", "/x", ""),
        get("main", "header, fine", "/header", "X-Say: fine\r\n"),
        get("main", "header, over", "/header", "X-Say: over\r\n"),
        get("main", "header, none", "/header", ""),
        get("main", "header skipped", "/skip", ""),
        get("main", "header not skipped", "/skip", "X-Say: more\r\n"),
        get("main", "all actions", "/all", ""),
        get("main", "all actions, strict", "/all?ask=1", "X-Strict: 1\r\n"),
        get("main", "metadata", "/metadata", ""),
        get("main", "other stage", "/stage", ""),
        get("main", "off by runtime", "/off", ""),
        get("main", "over", "/over", ""),
        get("main", "over, gRPC", "/over", "Content-Type: application/grpc\r\n"),
        get("main", "over, without more", "/bare", ""),
        get("main", "no code", "/unknown", ""),
        get("main", "error", "/error", ""),
        get("main", "both", "/both", ""),
        get("main", "included", "/include", ""),
        get("main", "ignored", "/ignore", ""),
        get("main", "own", "/own", ""),
        get("main", "direct", "/direct", ""),
        get("told", "told, fine", "/x", ""),
        get("told", "told, over", "/over", ""),
        get("told", "told, over, gRPC", "/over", "Content-Type: application/grpc\r\n"),
        get("deny", "deny, error", "/error", ""),
        get("deny", "deny, fine", "/x", ""),
        get("first", "first stage", "/stage", ""),
        get("first", "first stage, nothing", "/over", ""),
        get("inside", "from outside", "/over", ""),
        get("shadow", "shadow", "/over", ""),
        get("never", "never", "/over", ""),
        get("brief", "too slow", "/header", "X-Say: silent\r\n"),
    ];
    check(bootstrap, cases, &["cluster.a.ratelimit."]).await;
    if !crate::peers::have(&["envoy"]) || super::set("OUTRIGGER_E2E_CASE").is_some() {
        return;
    }
    asked_by_both(service.take().iter().map(|question| format!("{question:?}")));
}
