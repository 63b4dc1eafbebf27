//! What rate limits count by: descriptors of `envoy.filters.http.ratelimit`, the same service asked by both, and those of
//! `envoy.filters.http.local_ratelimit`, as in [`super::filters`].

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::filters::{check, filter, host, route, says};
use super::grpc_service::{asked_by_both, GrpcService, Said, HTTP2};
use crate::harness::origin::Answer;
use crate::harness::{eventually, DEADLINE};
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, RateLimit,
};
use outrigger_control_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use outrigger_control_api::pb::google::protobuf::Duration;

const PER_ROUTE: &str = "extensions.filters.http.ratelimit.v3.RateLimitPerRoute";

/// A descriptor with the value `over` is over its limit.
fn answer(question: &RateLimitRequest) -> Said<RateLimitResponse> {
    let over =
        question.descriptors.iter().flat_map(|one| &one.entries).any(|entry| entry.value.as_str() == "over");
    let mut all = RateLimitResponse::default();
    all.set_overall_code(if over { Code::OverLimit } else { Code::Ok });
    let status = |number: usize| DescriptorStatus {
        current_limit: Some(RateLimit {
            requests_per_unit: 10 + number as u32,
            unit: Unit::Minute.into(),
            name: format!("limit-{number}"),
        }),
        limit_remaining: 5 - number as u32,
        duration_until_reset: Some(Duration { seconds: 7, nanos: 0 }),
        ..DescriptorStatus::default()
    };
    all.statuses = (0..question.descriptors.len()).map(status).collect();
    Said::Message(all)
}

fn matching(value: &str, more: &str) -> String {
    format!("{{ remote_address_match: {{ descriptor_value: '{value}', {more} }} }}")
}

const NEAR: &str = "address_matcher: { ranges: [ { address_prefix: 10.0.0.0, prefix_len: 8 }, { address_prefix: '::1', prefix_len: 128 }, { address_prefix: 127.0.0.1, prefix_len: 32 } ] }";
const FAR: &str = "address_matcher: { ranges: [ { address_prefix: 192.168.0.0, prefix_len: 16 } ] }";
const NOT_FAR: &str =
    "address_matcher: { invert_match: true, ranges: [ { address_prefix: 192.168.0.0, prefix_len: 16 } ] }";
const ADDRESS: &str = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%";

/// Policies of a filter, by the path of their route.
fn policies() -> Vec<(&'static str, String)> {
    let actions = |actions: &[String]| format!("{{ actions: [ {} ] }}", actions.join(", "));
    let key = |value: &str| format!("{{ generic_key: {{ descriptor_value: '{value}' }} }}");
    let counted = |more: &str| format!("{{ actions: [ {} ], {more} }}", key("fine"));
    let hits = |name: &str| counted(&format!("hits_addend: {{ format: '%DYNAMIC_METADATA(one:{name})%' }}"));
    let limit = |name: &str| {
        counted(&format!(
            "limit: {{ dynamic_metadata: {{ metadata_key: {{ key: one, path: [ {{ key: {name} }} ] }} }} }}"
        ))
    };
    let told = |option: &str| counted(&format!("x_ratelimit_option: {option}"));
    let late = |value: &str, more: &str| {
        format!("{{ actions: [ {} ], apply_on_stream_done: true{more} }}", key(value))
    };
    vec![
        (
            "/near",
            actions(&[matching("here", NEAR), matching(ADDRESS, &format!("descriptor_key: ip, {NEAR}"))]),
        ),
        ("/far", [actions(&[matching("there", FAR)]), actions(&[key("fine")])].join(", ")),
        ("/not-far", actions(&[matching("%REQ(x-user)% of %PROTOCOL%", NOT_FAR)])),
        ("/missing", [actions(&[matching("%REQ(x-none)%", NEAR)]), actions(&[key("fine")])].join(", ")),
        ("/default", actions(&[matching("%REQ(x-none)%", &format!("default_value: none, {NEAR}"))])),
        (
            "/nowhere",
            [actions(&[matching("here", "address_matcher: {}")]), actions(&[key("fine")])].join(", "),
        ),
        ("/percent", actions(&[key("100%"), key("%PROTOCOL%"), key("%%")])),
        ("/hits", counted("hits_addend: { number: 3 }")),
        ("/back", counted("hits_addend: { number: 2, is_negative_hits: true }")),
        ("/zero", counted("hits_addend: { number: 0 }")),
        ("/number", hits("number")),
        ("/fraction", hits("fraction")),
        ("/text", hits("text")),
        ("/word", hits("word")),
        ("/minus", hits("minus")),
        ("/large", hits("large")),
        ("/nothing", hits("nothing")),
        ("/length", counted("hits_addend: { format: '%REQ(x-user)%' }")),
        ("/limit", limit("limit")),
        ("/odd-unit", limit("odd")),
        ("/half", limit("half")),
        ("/text-limit", limit("text")),
        ("/fixed", counted("limit: { rate_limit: { requests_per_unit: 3, unit: MINUTE } }")),
        ("/late", [counted("hits_addend: { number: 1 }"), late("late", "")].join(", ")),
        ("/only-late", late("only", ", hits_addend: { format: '%DYNAMIC_METADATA(answer:cost)%' }")),
        ("/late-code", late("code", ", hits_addend: { format: '%RESPONSE_CODE%' }")),
        ("/over", [actions(&[key("over")]), late("after a refusal", "")].join(", ")),
        ("/gone", late("not found", "")),
        ("/told", [told("'OFF'"), told("UNSPECIFIED")].join(", ")),
        ("/untold", told("'OFF'")),
        ("/telling", [told("DRAFT_VERSION_03"), told("UNSPECIFIED")].join(", ")),
        ("/both", [told("DRAFT_VERSION_03"), told("'OFF'")].join(", ")),
        ("/turned", [told("'OFF'"), told("DRAFT_VERSION_03")].join(", ")),
    ]
}

#[tokio::test]
async fn descriptors_of_a_service() {
    let service = GrpcService::start(answer).await;
    let limit = |more: &str| {
        format!("domain: tests, timeout: 5s, rate_limit_service: {{ transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: limits }} }} }}{more}")
    };
    let said = |(path, limits): &(&str, String)| {
        route(path, &[says("limit", PER_ROUTE, &format!("rate_limits: [ {limits} ]"))])
    };
    let mut routes: String = policies().iter().map(said).collect();
    routes += "- { match: { prefix: /route }, route: { cluster: a, rate_limits: [ { actions: [ { remote_address_match: { descriptor_value: '%REQ(x-user)%', address_matcher: { ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 } ] } } } ], limit: { dynamic_metadata: { metadata_key: { key: one, path: [ { key: limit } ] } } } }, { actions: [ { generic_key: { descriptor_value: late of a route } } ], apply_on_stream_done: true } ] } }\n";
    routes += "- { match: { prefix: /off }, route: { cluster: a, rate_limits: [ { actions: [ { generic_key: { descriptor_value: quiet } } ], apply_on_stream_done: true } ] }, typed_per_filter_config: { limit: { '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true } } }\n";
    let chain = [
        filter("set", "set_metadata.v3.Config", "metadata: [ { metadata_namespace: one, value: { number: 5, fraction: 1.7, text: '7', word: seven, minus: -1, large: 2000000000, limit: { requests_per_unit: 4, unit: HOUR }, odd: { requests_per_unit: 4, unit: FORTNIGHT }, half: { unit: HOUR } } } ]"),
        filter("h2m", "header_to_metadata.v3.Config", "response_rules: [ { header: x-cost, on_header_present: { metadata_namespace: answer, key: cost, type: NUMBER } } ]"),
    ]
    .concat();
    let mut bootstrap = Bootstrap::new()
        .cluster("limits", &format!("{}\n{HTTP2}", endpoints(&[&service.port().to_string()])));
    for (name, more) in [
        ("main", ""),
        ("tells", ", enable_x_ratelimit_headers: DRAFT_VERSION_03"),
        ("never", ", filter_enabled: { default_value: { numerator: 0 } }"),
    ] {
        let limits = filter("limit", "ratelimit.v3.RateLimit", &limit(more));
        bootstrap =
            bootstrap.listener(name, "", &host("", &routes)).filters(name, &format!("{chain}{limits}"));
    }
    let get = |listener: &'static str, path: &'static str| {
        case(listener, path)
            .get(path, "X-User: 12\r\n")
            .answers(Answer::raw("HTTP/1.1 200 OK\r\nx-cost: 42\r\ncontent-length: 2\r\n\r\nok"))
    };
    let mut cases: Vec<Case> = policies().iter().map(|(path, _)| get("main", path)).collect();
    cases
        .extend(["/told", "/untold", "/telling", "/both", "/turned", "/near"].map(|path| get("tells", path)));
    cases.extend(["/route", "/off", "/not-routed"].map(|path| get("main", path)));
    cases.extend([case("never", "never, late").get("/late", "")]);
    check(bootstrap, cases, &["cluster.a.ratelimit."]).await;
    if !crate::peers::have(&["envoy"]) || super::set("OUTRIGGER_E2E_CASE").is_some() {
        return;
    }
    let questions = || service.questions().into_iter().map(|question| format!("{question:?}"));
    // Nobody waits for those that are asked at the end.
    let all = || async {
        questions().count() % 2 == 0
            && questions().filter(|text| text.contains("after a refusal")).count() == 2
    };
    eventually(DEADLINE, all).await;
    asked_by_both(questions());
}

const LOCAL: &str = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

#[tokio::test]
async fn buckets_of_this_process() {
    let bucket =
        |max: u32| format!("token_bucket: {{ max_tokens: {max}, tokens_per_fill: 1, fill_interval: 600s }}");
    let named =
        |entries: &str, max: u32, more: &str| format!("{{ entries: [ {entries} ], {}{more} }}", bucket(max));
    let user = "{ actions: [ { request_headers: { header_name: x-user, descriptor_key: user } } ] }";
    let limit = |prefix: &str, max: u32, more: &str| {
        let on = "filter_enabled: { default_value: { numerator: 100 } }, filter_enforced: { default_value: { numerator: 100 } }, enable_x_ratelimit_headers: DRAFT_VERSION_03";
        route(
            &format!("/{prefix}"),
            &[says("lr", LOCAL, &format!("stat_prefix: {prefix}, {}, {on}, {more}", bucket(max)))],
        )
    };
    let any = named("{ key: user }", 2, "");
    let by_user = format!("rate_limits: [ {user} ]");
    let near = format!(
        "rate_limits: [ {{ actions: [ {}, {} ] }} ]",
        matching("here", &format!("descriptor_key: net, {NEAR}")),
        matching(ADDRESS, &format!("descriptor_key: ip, {NEAR}"))
    );
    let shadow = ", shadow_mode: true";
    let plan = "{ actions: [ { request_headers: { header_name: x-user, descriptor_key: user } }, { generic_key: { descriptor_key: plan, descriptor_value: slow } } ] }";
    let routes = [
        limit("any", 10, &format!("descriptors: [ {any} ], {by_user}")),
        limit("few", 10, &format!("descriptors: [ {any} ], max_dynamic_descriptors: 1, {by_user}")),
        limit(
            "own",
            10,
            &format!("descriptors: [ {any}, {} ], {by_user}", named("{ key: user, value: jane }", 1, "")),
        ),
        limit(
            "net",
            10,
            &format!("descriptors: [ {} ], {near}", named("{ key: net, value: here }, { key: ip }", 1, "")),
        ),
        limit(
            "shadow",
            10,
            &format!("descriptors: [ {} ], {by_user}", named("{ key: user, value: jane }", 1, shadow)),
        ),
        limit("shade", 10, &format!("descriptors: [ {} ], {by_user}", named("{ key: user }", 1, shadow))),
        limit(
            "both",
            10,
            &format!(
                "descriptors: [ {}, {} ], rate_limits: [ {user}, {plan} ]",
                named("{ key: user, value: jane }", 1, shadow),
                named("{ key: user }, { key: plan, value: slow }", 2, "")
            ),
        ),
        limit(
            "last",
            2,
            &format!("descriptors: [ {} ], {by_user}", named("{ key: user, value: jane }", 1, shadow)),
        ),
        limit(
            "alone",
            2,
            &format!(
                "descriptors: [ {} ], always_consume_default_token_bucket: false, {by_user}",
                named("{ key: user, value: jane }", 1, shadow)
            ),
        ),
        limit(
            "hits",
            10,
            &format!(
                "descriptors: [ {} ], rate_limits: [ {} ]",
                named("{ key: user }", 5, ""),
                user.replace("actions", "hits_addend: { format: '%REQ(x-hits)%' }, actions")
            ),
        ),
        limit(
            "back",
            10,
            &format!(
                "descriptors: [ {} ], rate_limits: [ {}, {} ]",
                named("{ key: user, value: jane }", 4, ""),
                user.replace("actions", "hits_addend: { number: 2 }, actions"),
                "{ hits_addend: { number: 3, is_negative_hits: true }, actions: [ { header_value_match: { descriptor_key: user, descriptor_value: jane, headers: [ { name: x-user, string_match: { exact: john } } ] } } ] }",
            ),
        ),
        limit(
            "twice",
            10,
            &format!("descriptors: [ {} ], rate_limits: [ {user}, {user} ]", named("{ key: user }", 3, "")),
        ),
        limit(
            "untold",
            10,
            &format!(
                "descriptors: [ {any} ], rate_limits: [ {} ]",
                user.replace("actions", "x_ratelimit_option: 'OFF', actions")
            ),
        ),
        limit(
            "told",
            10,
            &format!(
                "descriptors: [ {any} ], rate_limits: [ {} ]",
                user.replace("actions", "x_ratelimit_option: DRAFT_VERSION_03, actions")
            ),
        )
        .replace("enable_x_ratelimit_headers: DRAFT_VERSION_03", "enable_x_ratelimit_headers: 'OFF'"),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("lr", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: main"));
    let names = [
        "any", "few", "own", "net", "shadow", "shade", "both", "last", "alone", "hits", "back", "twice",
        "untold", "told",
    ];
    let mut cases = Vec::new();
    for name in names {
        for user in ["jane", "jane", "john", "jane", "john", "john"] {
            cases.push(
                case("main", name).get(&format!("/{name}"), &format!("X-User: {user}\r\nX-Hits: 3\r\n")),
            );
        }
        cases.push(case("main", name).get(&format!("/{name}"), ""));
    }
    let rooms: Vec<String> = names.iter().map(|prefix| format!("{prefix}.http_local_rate_limit.")).collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}
