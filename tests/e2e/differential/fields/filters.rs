//! Fields of HTTP filters.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case};
use crate::differential::filters::{check_but, filter, host, route, says};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;

#[tokio::test]
async fn faults_of_responses_and_by_runtime() {
    const FAULT: &str = "extensions.filters.http.fault.v3.HTTPFault";
    let fault = |options: &str| says("fault", FAULT, options);
    let always = "percentage: { numerator: 100 }";
    let never = "percentage: { numerator: 0 }";
    let abort = format!("abort: {{ {never}, http_status: 500 }}");
    let delay = format!("delay: {{ {never}, fixed_delay: 0.01s }}");
    let slow = format!("response_rate_limit: {{ {always}, fixed_limit: {{ limit_kbps: 64 }} }}");
    let routes = [
        route("/slow", &[fault(&slow)]),
        route("/by-header", &[fault(&format!("response_rate_limit: {{ {always}, header_limit: {{}} }}"))]),
        route("/unslowed", &[fault(&format!("response_rate_limit: {{ {never}, fixed_limit: {{ limit_kbps: 1 }} }}"))]),
        route("/slow-by-runtime", &[fault(&format!("response_rate_limit_percent_runtime: f.on, response_rate_limit: {{ {never}, fixed_limit: {{ limit_kbps: 64 }} }}"))]),
        route("/delay-by-runtime", &[fault(&format!("delay_percent_runtime: f.on, delay_duration_runtime: f.ms, {delay}"))]),
        route("/no-delay-by-runtime", &[fault(&format!("delay_percent_runtime: f.on, delay_duration_runtime: f.off, {delay}"))]),
        route("/abort-by-runtime", &[fault(&format!("abort_percent_runtime: f.on, abort_http_status_runtime: f.status, {abort}"))]),
        route("/grpc-by-runtime", &[fault(&format!("abort_percent_runtime: f.on, abort_grpc_status_runtime: f.grpc, abort: {{ {never}, grpc_status: 4 }}"))]),
        route("/most-by-runtime", &[fault(&format!("max_active_faults_runtime: f.off, max_active_faults: 9, abort: {{ {always}, http_status: 500 }}"))]),
        route("/uncounted", &[fault(&format!("disable_downstream_cluster_stats: true, abort: {{ {always}, http_status: 500 }}"))]),
        route("/counted", &[fault(&format!("abort: {{ {always}, http_status: 500 }}"))]),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("fault", "fault.v3.HTTPFault", ""))
        .more("layered_runtime: { layers: [ { name: one, static_layer: { f: { on: 100, off: 0, ms: 20, status: 507, grpc: 9 } } } ] }");
    let get = |name: &'static str, path: &str, headers: &str| case("main", name).get(path, headers);
    let long = || Answer::ok(&"x".repeat(9000));
    let grpc = "Content-Type: application/grpc\r\n";
    let cases = vec![
        get("slowed", "/slow", "").answers(long()),
        get("slowed, nothing to slow", "/slow", "").answers(Answer::ok("")),
        case("main", "slowed, a head")
            .send("HEAD", "/slow", "", "")
            .answers_head()
            .answers(Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")),
        get("slowed in chunks", "/slow", "").answers(
            Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
                .piece("2\r\nde\r\n0\r\n\r\n"),
        ),
        get("slowed as asked", "/by-header", "X-Envoy-Fault-Throughput-Response: 100\r\n").answers(long()),
        get("slowed as asked, not enough", "/by-header", "X-Envoy-Fault-Throughput-Response: 0\r\n")
            .answers(long()),
        get("slowed as asked, no number", "/by-header", "X-Envoy-Fault-Throughput-Response: fast\r\n")
            .answers(long()),
        get(
            "slowed as asked, of none",
            "/by-header",
            "X-Envoy-Fault-Throughput-Response: 100\r\nX-Envoy-Fault-Throughput-Response-Percentage: 0\r\n",
        )
        .answers(long()),
        get("not asked", "/by-header", "").answers(long()),
        get("not slowed", "/unslowed", "").answers(long()),
        get("slowed by runtime", "/slow-by-runtime", "").answers(long()),
        get("delayed by runtime", "/delay-by-runtime", ""),
        get("no delay by runtime", "/no-delay-by-runtime", ""),
        get("aborted by runtime", "/abort-by-runtime", ""),
        get("aborted by runtime, gRPC", "/grpc-by-runtime", grpc),
        get("too many by runtime", "/most-by-runtime", ""),
        get("a cluster that is not counted", "/uncounted", "X-Envoy-Downstream-Service-Cluster: edge\r\n"),
        get("a cluster that is counted", "/counted", "X-Envoy-Downstream-Service-Cluster: edge\r\n"),
    ];
    check_but(bootstrap, cases, &["http.main.fault.", "http.main.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn what_services_may_change() {
    let rules = [
        ("none", String::new()),
        ("routing", "allow_all_routing: true".to_string()),
        ("envoy", "allow_envoy: true".to_string()),
        ("system", "disallow_system: true, allow_all_routing: true".to_string()),
        ("all", "disallow_all: true".to_string()),
        ("allowed", "disallow_all: true, allow_expression: { regex: 'x-fi.*' }".to_string()),
        ("both", "allow_expression: { regex: 'x-.*' }, disallow_expression: { regex: 'x-fi.*' }".to_string()),
        ("error", "disallow_all: true, disallow_is_error: true".to_string()),
    ];
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, rules) in rules {
        let rules = if rules.is_empty() {
            String::new()
        } else {
            format!(", decoder_header_mutation_rules: {{ {rules} }}")
        };
        let service = "http_service: { server_uri: { uri: 'http://authz.test', cluster: b, timeout: 1s }, path_prefix: /authz, authorization_response: { allowed_upstream_headers: { patterns: [ { prefix: x-first }, { prefix: x-second }, { exact: x-envoy-original-path } ] } } }";
        bootstrap = bootstrap
            .plain(name, "")
            .filters(name, &filter("authz", "ext_authz.v3.ExtAuthz", &format!("{service}{rules}")));
        for (what, headers) in [
            ("a usual one", "x-first: 1\r\nx-second: 2\r\n"),
            ("one of the proxy", "x-envoy-original-path: /fake\r\n"),
            ("none", ""),
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n");
            let script = move |message: &Message| match message.target().starts_with("/authz") {
                true => Answer::raw(&answer),
                false => Answer::ok("ok"),
            };
            cases.push(case(name, format!("{name}: {what}").leak()).get("/", "").script(script));
        }
    }
    check_but(bootstrap, cases, &["http.none.ext_authz.", "http.error.ext_authz."], BUT).await;
}

#[tokio::test]
async fn decompressors() {
    let library = |more: &str| {
        format!("decompressor_library: {{ name: gzip, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip{more} }} }}")
    };
    let kinds = [
        ("plain", library("")),
        ("ratio", library(", max_inflate_ratio: 5")),
        ("quiet", format!("{}, request_direction_config: {{ advertise_accept_encoding: false }}", library(""))),
        ("told", format!("{}, request_direction_config: {{ advertise_accept_encoding: true }}", library(""))),
        ("eager", format!("{}, response_direction_config: {{ common_config: {{ ignore_no_transform_header: true }} }}, request_direction_config: {{ common_config: {{ ignore_no_transform_header: true }} }}", library(""))),
    ];
    let coded = |bytes: &[u8]| {
        use std::io::Write as _;
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        coder.write_all(bytes).expect("a buffer");
        coder.finish().expect("a buffer")
    };
    let answer = |headers: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        Answer::raw([head.as_bytes(), body].concat())
    };
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    let short = coded(b"hello hello hello");
    for (name, options) in kinds {
        bootstrap = bootstrap
            .plain(name, "")
            .filters(name, &filter("gunzip", "decompressor.v3.Decompressor", &options));
        let get = |what: &str, headers: &str| case(name, format!("{name}: {what}").leak()).get("/", headers);
        let request = |headers: &str, body: &[u8]| {
            let head = format!("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Encoding: gzip\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        cases.extend([
            get("an answer", "").answers(answer("", &short)),
            get("an answer that may not change", "")
                .answers(answer("cache-control: private, no-transform\r\n", &short)),
            get("an answer of another coding", "").answers(Answer::raw(
                "HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nxx",
            )),
            get("an answer of two codings", "").answers(Answer::raw(
                "HTTP/1.1 200 OK\r\ncontent-encoding: br, gzip\r\ncontent-length: 2\r\n\r\nxx",
            )),
            get("what is accepted", "Accept-Encoding: br\r\n"),
            case(name, format!("{name}: a request").leak()).raw(request("", &short)),
            case(name, format!("{name}: a request that may not change").leak())
                .raw(request("Cache-Control: no-transform\r\n", &short)),
        ]);
    }
    check_but(bootstrap, cases, &["http.plain.decompressor."], BUT).await;
}

#[tokio::test]
async fn states_that_are_empty() {
    let set = |options: &str| {
        filter("set", "set_filter_state.v3.Config", &format!("on_request_headers: [ {{ object_key: one, factory_key: envoy.string, format_string: {{ text_format_source: {{ inline_string: '%REQ(x-one)%' }}{options} }} }} ]"))
    };
    let skip = filter("set", "set_filter_state.v3.Config", "on_request_headers: [ { object_key: one, factory_key: envoy.string, skip_if_empty: true, format_string: { text_format_source: { inline_string: '%REQ(x-one)%' }, omit_empty_values: true } } ]");
    let hosts = "- name: all\n  domains: ['*']\n  routes:\n  - match: { prefix: / }\n    route: { cluster: a }\n    request_headers_to_add: [ { header: { key: x-state, value: '[%FILTER_STATE(one:PLAIN)%]' } } ]\n";
    let bootstrap = Bootstrap::new()
        .listener("usual", "", hosts)
        .filters("usual", &set(""))
        .listener("omit", "", hosts)
        .filters("omit", &set(", omit_empty_values: true"))
        .listener("skip", "", hosts)
        .filters("skip", &skip);
    let mut cases = Vec::new();
    for listener in ["usual", "omit", "skip"] {
        cases.push(case(listener, format!("{listener}: nothing").leak()).get("/", ""));
        cases.push(case(listener, format!("{listener}: something").leak()).get("/", "X-One: 1\r\n"));
        cases.push(case(listener, format!("{listener}: empty").leak()).get("/", "X-One:\r\n"));
    }
    check_but(bootstrap, cases, &["http.usual.downstream_rq_"], BUT).await;
}
