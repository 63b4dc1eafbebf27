//! More HTTP filters, as in [`super::filters`]: limits, cross-site requests, whole bodies, health checks, notes.

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{check, filter, host, route, says};
use crate::harness::origin::Answer;

const ALL: &str = "filter_enabled: { default_value: { numerator: 100 } }";

#[tokio::test]
async fn local_ratelimit() {
    const KIND: &str = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    let enforced = format!("{ALL}, filter_enforced: {{ default_value: {{ numerator: 100 }} }}");
    let bucket =
        |max: u32| format!("token_bucket: {{ max_tokens: {max}, tokens_per_fill: 1, fill_interval: 60s }}");
    let limit = |prefix: &str, max: u32, more: &str| {
        says("lr", KIND, &format!("stat_prefix: {prefix}, {}, {more}", bucket(max)))
    };
    let routes = [
        route("/one", &[limit("one", 2, &enforced)]),
        route("/headers", &[limit("two", 1, &format!("{enforced}, enable_x_ratelimit_headers: DRAFT_VERSION_03, response_headers_to_add: [ {{ header: {{ key: x-limited, value: '%RESPONSE_CODE%' }} }} ]"))]),
        route("/status", &[limit("three", 1, &format!("{enforced}, status: {{ code: 503 }}, rate_limited_as_resource_exhausted: true"))]),
        route("/success", &[limit("four", 1, &format!("{enforced}, status: {{ code: 200 }}"))]),
        route("/off", &[limit("five", 1, "filter_enforced: { default_value: { numerator: 100 } }")]),
        route("/counted", &[limit("six", 1, &format!("{ALL}, request_headers_to_add_when_not_enforced: [ {{ header: {{ key: x-over, value: 'yes' }} }} ]"))]),
        route("/runtime", &[limit("seven", 1, "filter_enabled: { default_value: { numerator: 0 }, runtime_key: lr.on }, filter_enforced: { default_value: { numerator: 0 }, runtime_key: lr.enforced }")]),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } }, typed_per_filter_config: { ".to_string()
            + &limit("eight", 1, &enforced)
            + " } }\n",
        "- { match: { prefix: /plain }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("lr", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: main"))
        .more("layered_runtime: { layers: [ { name: one, static_layer: { lr: { on: 100, enforced: { numerator: 100, denominator: HUNDRED } } } } ] }");
    let get = |name, path: &str| case("main", name).get(path, "");
    let grpc = "Content-Type: application/grpc\r\n";
    let cases = vec![
        get("first of two", "/one"),
        get("second of two", "/one"),
        get("third of two", "/one"),
        case("main", "over the limit, a body").send("POST", "/one", "", "hello"),
        case("main", "over the limit, gRPC").get("/one", grpc),
        get("headers, allowed", "/headers"),
        get("headers, limited", "/headers"),
        get("other status, allowed", "/status"),
        get("other status, limited", "/status"),
        case("main", "other status, gRPC").get("/status", grpc),
        get("a success, allowed", "/success"),
        get("a success, limited", "/success"),
        get("off, first", "/off"),
        get("off, second", "/off"),
        get("only counted, first", "/counted"),
        get("only counted, second", "/counted"),
        get("runtime, first", "/runtime"),
        get("runtime, second", "/runtime"),
        get("direct, first", "/direct"),
        get("direct, second", "/direct"),
        get("the filter's own", "/plain"),
    ];
    let rooms: Vec<String> = ["main", "one", "two", "three", "four", "five", "six", "seven", "eight"]
        .iter()
        .map(|prefix| format!("{prefix}.http_local_rate_limit."))
        .collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}

#[tokio::test]
async fn local_ratelimit_descriptors() {
    const KIND: &str = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    let on = format!("{ALL}, filter_enforced: {{ default_value: {{ numerator: 100 }} }}, enable_x_ratelimit_headers: DRAFT_VERSION_03");
    let bucket =
        |max: u32| format!("token_bucket: {{ max_tokens: {max}, tokens_per_fill: 1, fill_interval: 600s }}");
    let entry = |key: &str, value: &str| format!("{{ key: {key}, value: '{value}' }}");
    let named =
        |entries: &[String], max: u32| format!("{{ entries: [ {} ], {} }}", entries.join(", "), bucket(max));
    let by_header = "{ actions: [ { request_headers: { header_name: x-user, descriptor_key: user } } ] }";
    let both = "{ actions: [ { request_headers: { header_name: x-user, descriptor_key: user } }, { generic_key: { descriptor_value: slow } } ] }";
    let limit = |prefix: &str, max: u32, more: &str| {
        says("lr", KIND, &format!("stat_prefix: {prefix}, {}, {on}, {more}", bucket(max)))
    };
    let jane = [entry("user", "jane")];
    let slow = [entry("user", "jane"), entry("generic_key", "slow")];
    let descriptors = format!("descriptors: [ {}, {} ]", named(&jane, 2), named(&slow, 1));
    let with = |path: &str, limits: &str, said: String| {
        format!("- {{ match: {{ prefix: {path} }}, route: {{ cluster: a, rate_limits: [ {limits} ] }}, typed_per_filter_config: {{ {said} }} }}\n")
    };
    let routes = [
        with("/route", by_header, limit("one", 10, &descriptors)),
        with("/both", &format!("{by_header}, {both}"), limit("two", 10, &descriptors)),
        with(
            "/stage",
            &by_header.replace("{ actions", "{ stage: 2, actions"),
            limit("three", 3, &format!("{descriptors}, stage: 2")),
        ),
        with(
            "/alone",
            by_header,
            limit("four", 1, &format!("{descriptors}, always_consume_default_token_bucket: false")),
        ),
        route("/own", &[limit("five", 10, &format!("{descriptors}, rate_limits: [ {by_header} ]"))]),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("lr", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: main"));
    let mut cases = Vec::new();
    for (path, names) in [
        ("/route", ["route 1", "route 2", "route 3", "route 4"]),
        ("/both", ["both 1", "both 2", "both 3", "both 4"]),
        ("/stage", ["stage 1", "stage 2", "stage 3", "stage 4"]),
        ("/alone", ["alone 1", "alone 2", "alone 3", "alone 4"]),
        ("/own", ["own 1", "own 2", "own 3", "own 4"]),
    ] {
        for (name, user) in names.into_iter().zip(["jane", "john", "jane", "jane"]) {
            cases.push(case("main", name).get(path, &format!("X-User: {user}\r\n")));
        }
    }
    let rooms: Vec<String> = ["one", "two", "three", "four", "five"]
        .map(|prefix| format!("{prefix}.http_local_rate_limit."))
        .to_vec();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}

#[tokio::test]
async fn csrf() {
    const KIND: &str = "extensions.filters.http.csrf.v3.CsrfPolicy";
    let routes = [
        route("/more", &[says("csrf", KIND, &format!("{ALL}, additional_origins: [ {{ exact: other.test }}, {{ suffix: '.fine.test:8080' }} ]"))]),
        route("/shadow", &[says("csrf", KIND, "filter_enabled: { default_value: { numerator: 0 } }, shadow_enabled: { default_value: { numerator: 100 } }")]),
        route("/off", &[says("csrf", KIND, "filter_enabled: { default_value: { numerator: 0 } }")]),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("csrf", "csrf.v3.CsrfPolicy", ALL));
    let send =
        |name, method: &str, path: &str, headers: &str| case("main", name).send(method, path, headers, "");
    let mut cases = vec![
        send("get", "GET", "/x", "Origin: http://evil.test\r\n"),
        send("same origin", "POST", "/x", "Origin: http://t.test\r\n"),
        send("same origin, https", "PUT", "/x", "Origin: https://t.test\r\n"),
        send("same referrer", "DELETE", "/x", "Referer: http://t.test/page?x=1\r\n"),
        send("other origin", "POST", "/x", "Origin: http://evil.test\r\n"),
        send("other origin, patch", "PATCH", "/x", "Origin: http://evil.test\r\n"),
        send("another port", "POST", "/x", "Origin: http://t.test:8080\r\n"),
        send(
            "origin before referrer",
            "POST",
            "/x",
            "Origin: http://evil.test\r\nReferer: http://t.test/\r\n",
        ),
        send("no origin", "POST", "/x", ""),
        send("null origin", "POST", "/x", "Origin: null\r\n"),
        send("null origin and a referrer", "POST", "/x", "Origin: null\r\nReferer: http://t.test/\r\n"),
        send("empty origin and referrer", "POST", "/x", "Origin:\r\nReferer: http://t.test/\r\n"),
        send("bare origin", "POST", "/x", "Origin: t.test\r\n"),
        send("additional", "POST", "/more", "Origin: http://other.test\r\n"),
        send("additional, suffix", "POST", "/more", "Origin: http://a.fine.test:8080\r\n"),
        send("not additional", "POST", "/more", "Origin: http://a.fine.test\r\n"),
        send("shadow", "POST", "/shadow", "Origin: http://evil.test\r\n"),
        send("off", "POST", "/off", "Origin: http://evil.test\r\n"),
        send("direct", "POST", "/direct", "Origin: http://evil.test\r\n"),
    ];
    cases.push(
        case("main", "host in capitals")
            .raw("POST /x HTTP/1.1\r\nHost: T.test\r\nOrigin: http://t.test\r\nContent-Length: 0\r\n\r\n"),
    );
    check(bootstrap, cases, &["http.main.csrf."]).await;
}

#[tokio::test]
async fn buffer() {
    const PER_ROUTE: &str = "extensions.filters.http.buffer.v3.BufferPerRoute";
    let routes = [
        route("/small", &[says("buffer", PER_ROUTE, "buffer: { max_request_bytes: 4 }")]),
        route("/off", &[says("buffer", PER_ROUTE, "disabled: true")]),
        "- { match: { prefix: /mirror }, route: { cluster: a, request_mirror_policies: [ { cluster: b } ] } }\n".to_string(),
        "- { match: { prefix: /retry }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 1 } } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100000"));
    let chunked = |name, path: &str, body: &str| {
        case("main", name)
            .raw(format!("POST {path} HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
    };
    let large = "x".repeat(90_000);
    let cases = vec![
        case("main", "no body").get("/x", ""),
        case("main", "a body").send("POST", "/x", "", "hello"),
        case("main", "a large body").send("POST", "/x", "", &large),
        chunked("chunks", "/x", "5\r\nhello\r\n3\r\n, w\r\n0\r\n\r\n"),
        chunked("no chunk", "/x", "0\r\n\r\n"),
        chunked("off", "/off", "5\r\nhello\r\n0\r\n\r\n"),
        case("main", "mirrored").send("POST", "/mirror", "", "hello").mirrored(2),
        case("main", "tried again").send("POST", "/retry", "", "hello").answers(Answer::status(
            503,
            "Service Unavailable",
            "no",
        )),
        case("main", "fits").send("POST", "/small", "", "four"),
    ];
    check(bootstrap, cases, &["cluster.a.upstream_rq_2"]).await;
}

#[tokio::test]
async fn health_check() {
    let is = "headers: [ { name: ':path', string_match: { exact: /healthz } } ]";
    let all =
        "- name: all\n  domains: ['*']\n  routes:\n  - { match: { prefix: / }, route: { cluster: a } }\n";
    let mut bootstrap = Bootstrap::new();
    for (name, options) in [
        ("main", format!("pass_through_mode: false, {is}")),
        ("passing", format!("pass_through_mode: true, {is}")),
        ("cached", format!("pass_through_mode: true, cache_time: 3600s, {is}")),
        ("good", format!("pass_through_mode: false, {is}, cluster_min_healthy_percentages: {{ a: {{ value: 100 }}, empty: {{ value: 0 }} }}")),
        ("bad", format!("pass_through_mode: false, {is}, cluster_min_healthy_percentages: {{ a: {{ value: 50 }}, empty: {{ value: 1 }} }}")),
        ("unknown", format!("pass_through_mode: false, {is}, cluster_min_healthy_percentages: {{ none: {{ value: 0 }} }}")),
    ] {
        bootstrap = bootstrap
            .listener(name, "", all)
            .filters(name, &filter("hc", "health_check.v3.HealthCheck", &options));
    }
    let cases = vec![
        case("main", "answered").get("/healthz", ""),
        case("main", "head").send("HEAD", "/healthz", "", "").answers_head(),
        case("main", "another path").get("/other", ""),
        case("passing", "passed on").get("/healthz", ""),
        case("cached", "passed on and kept").get("/healthz", "").answers(Answer::status(
            503,
            "Service Unavailable",
            "no",
        )),
        case("cached", "from memory").get("/healthz", ""),
        case("cached", "another path, not from memory").get("/other", ""),
        case("good", "clusters are healthy").get("/healthz", ""),
        case("bad", "a cluster is not").get("/healthz", ""),
        case("unknown", "a cluster is unknown").get("/healthz", ""),
    ];
    let rooms = [
        "http.main.health_check.",
        "http.passing.health_check.",
        "http.cached.health_check.",
        "http.good.health_check.",
        "http.bad.health_check.",
        "http.unknown.health_check.",
        "http.main.downstream_rq_2",
        "http.main.downstream_rq_completed",
    ];
    check(bootstrap, cases, &rooms).await;
}

#[tokio::test]
async fn metadata() {
    const PER_ROUTE: &str = "extensions.filters.http.header_to_metadata.v3.Config";
    let shown: Vec<String> = [
        "one:a",
        "one:b",
        "one:c:d",
        "one",
        "one:list",
        "one:none",
        "two:x",
        "h2m:plain",
        "h2m:number",
        "h2m:half",
        "h2m:cookie",
        "h2m:missing",
        "h2m:rewritten",
        "h2m:fixed",
        "h2m:decoded",
        "envoy.filters.http.header_to_metadata:default",
        "h2m:route",
    ]
    .iter()
    .enumerate()
    .map(|(i, what)| format!("{{ header: {{ key: x-m-{i}, value: '%DYNAMIC_METADATA({what})%' }} }}"))
    .collect();
    let routes = [
        route("/own", &[says("h2m", PER_ROUTE, "request_rules: [ { header: x-plain, on_header_present: { metadata_namespace: h2m, key: route } } ]")]),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let rules = [
        "{ header: x-plain, on_header_present: { metadata_namespace: h2m, key: plain }, remove: true }",
        "{ header: x-number, on_header_present: { metadata_namespace: h2m, key: number, type: NUMBER } }",
        "{ header: x-half, on_header_present: { metadata_namespace: h2m, key: half, type: NUMBER } }",
        "{ cookie: c, on_header_present: { metadata_namespace: h2m, key: cookie } }",
        "{ header: x-none, on_header_missing: { metadata_namespace: h2m, key: missing, value: 'absent' } }",
        "{ header: x-path, on_header_present: { metadata_namespace: h2m, key: rewritten, regex_value_rewrite: { pattern: { regex: '^/(\\w+)/.*' }, substitution: '\\1' } } }",
        "{ header: x-path, on_header_present: { metadata_namespace: h2m, key: fixed, value: given } }",
        "{ header: x-64, on_header_present: { metadata_namespace: h2m, key: decoded, encode: BASE64 } }",
        "{ header: x-path, on_header_present: { key: default } }",
    ];
    let chain = [
        filter("set", "set_metadata.v3.Config", "metadata: [ { metadata_namespace: one, value: { a: text, b: 3, c: { d: true }, list: [ 1 ] } }, \
                { metadata_namespace: one, value: { a: other, e: true, c: { f: [ x ] }, list: [ 2 ] }, allow_overwrite: true }, \
                { metadata_namespace: one, value: { a: denied } }, { metadata_namespace: two, value: { x: 'y' } } ]"),
        filter("show", "header_mutation.v3.HeaderMutation", "mutations: { response_mutations: [ { append: { header: { key: x-answered, value: '%DYNAMIC_METADATA(h2m:answer)%' } } } ] }"),
        filter("h2m", "header_to_metadata.v3.Config", &format!("request_rules: [ {} ], response_rules: [ {{ header: x-origin, on_header_present: {{ metadata_namespace: h2m, key: answer }}, remove: true }} ]", rules.join(", "))),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener(
            "main",
            "",
            &host(&format!("  response_headers_to_add: [ {} ]\n", shown.join(", ")), &routes),
        )
        .filters("main", &chain);
    let answer = Answer::raw("HTTP/1.1 200 OK\r\nx-origin: o\r\ncontent-length: 2\r\n\r\nok");
    let all = "x-plain: p\r\nx-plain: q\r\nx-number: 12\r\nx-half: 2.5\r\nCookie: b=1; c=crumb\r\nx-path: /first/second\r\nx-64: aGVsbG8\r\n";
    let get = |name, path: &str, headers: &str| case("main", name).get(path, headers).answers(answer.clone());
    let cases = vec![
        get("all there", "/x", all),
        get("nothing there", "/x", ""),
        get("no numbers", "/x", "x-number: twelve\r\nx-64: !!\r\nx-path: none\r\nx-none: there\r\n"),
        get("of a route", "/own", all),
        get("empty header", "/x", "x-plain:\r\n"),
    ];
    check(bootstrap, cases, &["http.main.set_metadata."]).await;
}
