//! Fields of route tables, virtual hosts and routes.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case};
use crate::differential::filters::check_but;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use tokio::sync::Semaphore;

fn direct(name: &str, matcher: &str) -> String {
    format!("  - {{ match: {{ {matcher} }}, direct_response: {{ status: 200, body: {{ inline_string: '{name}' }} }} }}\n")
}

#[tokio::test]
async fn tables() {
    let all =
        "- name: all\n  domains: ['*']\n  routes:\n  - { match: { prefix: / }, route: { cluster: a } }\n";
    let hosts = [
        "- name: exact\n  domains: [x.test]\n  routes:\n".to_string(),
        direct("exact", "prefix: /"),
        "- name: ported\n  domains: ['x.test:81']\n  routes:\n".to_string(),
        direct("ported", "prefix: /"),
        "- name: suffix\n  domains: ['*.test']\n  routes:\n".to_string(),
        direct("suffix", "prefix: /"),
        "- name: any\n  domains: ['*']\n  routes:\n".to_string(),
        direct("any", "prefix: /"),
    ]
    .concat();
    let parameters = [
        "- name: all\n  domains: ['*']\n  routes:\n".to_string(),
        direct("exact", "path: /a/b"),
        direct("separated", "path_separated_prefix: /sep"),
        direct("regex", "safe_regex: { regex: '/r/[0-9]+' }"),
        direct("prefix", "prefix: /p/q"),
        "  - { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let long =
        format!("- name: all\n  domains: ['*']\n  routes:\n{}", direct(&"x".repeat(5000), "prefix: /"));
    let bootstrap = Bootstrap::new()
        .listener("internal", "", all)
        .route_options("internal", "internal_only_headers: [ x-inner, X-Second ]\n")
        .listener("edge", "use_remote_address: true\n", all)
        .route_options("edge", "internal_only_headers: [ x-inner, X-Second ]\n")
        .listener("ports", "", &hosts)
        .route_options("ports", "ignore_port_in_host_matching: true\n")
        .listener("parameters", "", &parameters)
        .route_options("parameters", "ignore_path_parameters_in_path_matching: true\n")
        .listener("counted", "", &parameters)
        .listener("long", "", &long)
        .route_options("long", "max_direct_response_body_size_bytes: 6000\n");
    let inner = "X-Inner: 1\r\nx-second: 2\r\nX-Third: 3\r\n";
    let outside = format!("{inner}X-Forwarded-For: 8.8.8.8\r\n");
    let mut cases = vec![
        case("internal", "headers inside").get("/", inner),
        case("internal", "headers outside").get("/", &outside),
        case("edge", "headers at an edge").get("/", inner),
        case("edge", "headers at an edge, forwarded").get("/", &outside),
        case("long", "a long answer").get("/", ""),
    ];
    for host in [
        "x.test",
        "x.test:80",
        "x.test:81",
        "y.test:99",
        "other:1",
        "[::1]:80",
        "[::1]",
        "x.test:",
        "X.TEST:443",
    ] {
        cases.push(case("ports", format!("port {host}").leak()).host(host, "/"));
    }
    for listener in ["parameters", "counted"] {
        for path in [
            "/a/b",
            "/a/b;x=1",
            "/a;x/b",
            "/a/b;x?q",
            "/sep;y/z",
            "/sep;y",
            "/r/12;v=1",
            "/r/1;2/3",
            "/p/q;r",
            "/p;x/q",
            "/;",
            "/a/b?x;y",
        ] {
            cases.push(case(listener, format!("{listener} {path}").leak()).get(path, ""));
        }
    }
    check_but(bootstrap, cases, &["http.ports.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn hosts_that_require_tls() {
    let host = |name: &str, require: &str| {
        format!("- name: {name}\n  domains: ['{name}.test']\n  require_tls: {require}\n  routes:\n  - {{ match: {{ prefix: /other }}, redirect: {{ path_redirect: /x }} }}\n  - {{ match: {{ prefix: / }}, route: {{ cluster: a }} }}\n")
    };
    let hosts = [host("all", "ALL"), host("external", "EXTERNAL_ONLY"), host("none", "NONE")].concat();
    let bootstrap = Bootstrap::new()
        .listener("plain", "", &hosts)
        .listener("edge", "use_remote_address: true\n", &hosts)
        .listener("secure", "scheme_header_transformation: { scheme_to_overwrite: https }\n", &hosts);
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["plain", "edge", "secure"] {
        for name in ["all", "external", "none"] {
            for (what, line) in [
                ("nothing", ""),
                ("https before", "X-Forwarded-Proto: https\r\n"),
                ("outside", "X-Forwarded-For: 8.8.8.8\r\n"),
                ("inside", "X-Forwarded-For: 10.0.0.1\r\n"),
                ("gRPC", "Content-Type: application/grpc\r\n"),
            ] {
                for target in ["/a?b=c", "/other"] {
                    let title: &str = format!("{listener} {name} {what} {target}").leak();
                    let request = format!("GET {target} HTTP/1.1\r\nHost: {name}.test\r\n{line}\r\n");
                    cases.push(case(listener, title).raw(request));
                }
            }
            let title: &str = format!("{listener} {name} with a port").leak();
            cases.push(
                case(listener, title)
                    .raw(format!("POST /x HTTP/1.1\r\nHost: {name}.test:80\r\nContent-Length: 1\r\n\r\nx")),
            );
        }
    }
    check_but(bootstrap, cases, &["http.plain.downstream_rq_", "http.edge.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn timeouts_of_grpc() {
    let routes = [
        ("/max", "max_grpc_timeout: 0.4s"),
        ("/zero", "max_grpc_timeout: 0s"),
        ("/offset", "max_grpc_timeout: 0s, grpc_timeout_offset: 0.2s"),
        ("/stream", "max_stream_duration: { grpc_timeout_header_max: 0.4s }"),
        ("/stream-zero", "max_stream_duration: { grpc_timeout_header_max: 0s }"),
        (
            "/stream-offset",
            "max_stream_duration: { grpc_timeout_header_max: 0s, grpc_timeout_header_offset: 0.1s }",
        ),
        ("/stream-both", "max_stream_duration: { max_stream_duration: 0.3s, grpc_timeout_header_max: 2s }"),
        ("/plain", "timeout: 0.3s"),
    ];
    let text: String = routes
        .iter()
        .map(|(path, options)| {
            format!("  - {{ match: {{ prefix: {path} }}, route: {{ cluster: a, {options} }} }}\n")
        })
        .collect();
    let bootstrap =
        Bootstrap::new().listener("main", "", &format!("- name: all\n  domains: ['*']\n  routes:\n{text}"));
    let never = std::sync::Arc::new(Semaphore::new(0));
    let slow = move |message: &Message| match message.target().contains("quick") {
        true => Answer::ok("ok"),
        false => Answer::ok("late").gated(&never),
    };
    let mut cases: Vec<Case> = Vec::new();
    let grpc = "Content-Type: application/grpc\r\nTE: trailers\r\n";
    for (path, _) in routes {
        for (what, line) in [
            ("300m", "grpc-timeout: 300m\r\n"),
            ("2S", "grpc-timeout: 2S\r\n"),
            ("odd", "grpc-timeout: 300x\r\n"),
        ] {
            let name: &str = format!("{path} {what} quick").leak();
            cases.push(
                case("main", name)
                    .get(&format!("{path}/quick"), &format!("{grpc}{line}"))
                    .script(slow.clone()),
            );
        }
    }
    for (path, line) in [
        ("/max", "grpc-timeout: 2S\r\n"),
        ("/max", ""),
        ("/zero", "grpc-timeout: 300m\r\n"),
        ("/offset", "grpc-timeout: 500m\r\n"),
        ("/stream", "grpc-timeout: 2S\r\n"),
        ("/stream-zero", "grpc-timeout: 300m\r\n"),
        ("/stream-offset", "grpc-timeout: 400m\r\n"),
        ("/stream-both", ""),
        ("/plain", "grpc-timeout: 9S\r\n"),
    ] {
        let name: &str = format!("{path} {} late", line.trim()).leak();
        cases.push(case("main", name).get(path, &format!("{grpc}{line}")).script(slow.clone()));
    }
    check_but(bootstrap, cases, &["http.main.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn routers() {
    let kinds = [
        ("quiet", "suppress_envoy_headers: true"),
        ("strict", "strict_check_headers: [ x-envoy-upstream-rq-timeout-ms, x-envoy-upstream-rq-per-try-timeout-ms, x-envoy-max-retries, x-envoy-retry-grpc-on, x-envoy-retry-on ]"),
        ("expects", "respect_expected_rq_timeout: true"),
        ("span", "start_child_span: true"),
    ];
    let hosts = "- name: all\n  domains: ['*']\n  include_request_attempt_count: true\n  include_attempt_count_in_response: true\n  routes:\n  - match: { prefix: /rewritten }\n    route: { cluster: a, prefix_rewrite: /new, timeout: 2s, retry_policy: { retry_on: 5xx } }\n  - match: { prefix: / }\n    route: { cluster: a, timeout: 2s, retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 0.001s } } }\n";
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in kinds {
        bootstrap = bootstrap.listener(name, "", hosts).router(name, options);
        let get = |what: &str, path: &str, headers: &str| {
            case(name, format!("{name}: {what}").leak()).get(path, headers)
        };
        cases.extend([
            get("plain", "/", ""),
            get("rewritten", "/rewritten/x", ""),
            get("a retry", "/", "X-Envoy-Max-Retries: 1\r\n")
                .answers(Answer::status(503, "Down", ""))
                .lines(1),
            get("no number of retries", "/", "X-Envoy-Max-Retries: some\r\n"),
            get("no timeout", "/", "X-Envoy-Upstream-Rq-Timeout-Ms: soon\r\n"),
            get("a timeout", "/", "X-Envoy-Upstream-Rq-Timeout-Ms: 900\r\n"),
            get("a timeout of a try", "/", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: -1\r\n"),
            get("unknown reasons", "/", "X-Envoy-Retry-On: 5xx,whenever\r\n"),
            get("known reasons", "/", "X-Envoy-Retry-On: 5xx,reset\r\n"),
            get("unknown gRPC reasons", "/", "X-Envoy-Retry-Grpc-On: cancelled,never\r\n"),
            get("an expected timeout", "/", "X-Envoy-Expected-Rq-Timeout-Ms: 1500\r\n"),
            get(
                "both timeouts",
                "/",
                "X-Envoy-Expected-Rq-Timeout-Ms: 1500\r\nX-Envoy-Upstream-Rq-Timeout-Ms: 900\r\n",
            ),
            get("no expected timeout", "/", "X-Envoy-Expected-Rq-Timeout-Ms: x\r\n"),
        ]);
    }
    check_but(bootstrap, cases, &["http.quiet.downstream_rq_", "http.strict.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn mirrors_keep_their_hosts_name() {
    let policy = |options: &str| format!("request_mirror_policies: [ {{ cluster: b{options} }} ]");
    let changes = "{ remove: x-gone }, { append: { header: { key: x-host, value: '%REQ(:authority)% %REQ(x-gone)%' } } }, \
                   { append: { header: { key: x-kept, value: '%REQ(:path)%' }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } }, \
                   { append: { header: { key: x-kept, value: more } } }, \
                   { append: { header: { key: x-envoy-internal, value: said }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } }, \
                   { append: { header: { key: x-host-of, value: '%UPSTREAM_CLUSTER% %RESPONSE_CODE%' } } }, \
                   { remove_on_match: { key_matcher: { prefix: x-drop- } } }";
    let routes = format!(
        "- name: all\n  domains: ['*']\n  routes:\n  - {{ match: {{ prefix: /kept }}, route: {{ cluster: a, {} }} }}\n  - {{ match: {{ prefix: /changed }}, route: {{ cluster: a, {} }} }}\n  - {{ match: {{ prefix: /off }}, route: {{ cluster: a, {} }} }}\n  - {{ match: {{ prefix: /literal }}, route: {{ cluster: a, {} }} }}\n  - {{ match: {{ prefix: /rewritten }}, route: {{ cluster: a, prefix_rewrite: /new, host_rewrite_literal: new.test, append_x_forwarded_host: true, {} }}, request_headers_to_add: [ {{ header: {{ key: x-route, value: added }} }} ] }}\n",
        policy(", disable_shadow_host_suffix_append: true"),
        policy(""),
        policy(", runtime_fraction: { default_value: { numerator: 0 } }"),
        policy(", host_rewrite_literal: 'mirror.test:81'"),
        policy(&format!(", host_rewrite_literal: mirror.test, request_headers_mutations: [ {changes} ]")),
    );
    let bootstrap = Bootstrap::new().listener("main", "", &routes);
    let cases = vec![
        case("main", "kept").get("/kept", "").mirrored(2),
        case("main", "changed").get("/changed", "").mirrored(2),
        case("main", "with a port").host("t.test:8080", "/changed").mirrored(2),
        case("main", "off").get("/off", ""),
        case("main", "a body").send("POST", "/kept", "", "hello").mirrored(2),
        case("main", "a name of its own").get("/literal", "").mirrored(2),
        case("main", "changed heads")
            .get("/rewritten/x", "X-Gone: 1\r\nX-Kept: 2\r\nX-Drop-A: 3\r\nx-drop-b: 4\r\n")
            .mirrored(2),
        case("main", "changed heads, a body")
            .send("POST", "/rewritten", "X-Gone: 1\r\nX-Drop-A: 3\r\n", "hello")
            .mirrored(2),
    ];
    check_but(bootstrap, cases, &["cluster.a.upstream_rq_", "cluster.b.upstream_rq_t"], BUT).await;
}

#[tokio::test]
async fn hosts_named_by_a_header() {
    let host = |name: &str, domain: &str| {
        format!("- name: {name}\n  domains: ['{domain}']\n  routes:\n{}", direct(name, "prefix: /"))
    };
    let named = [host("exact", "x.test"), host("ported", "x.test:81"), host("suffix", "*.y.test")].concat();
    let with_any = named.clone() + &host("any", "*");
    let bootstrap = Bootstrap::new()
        .listener("main", "", &named)
        .route_options("main", "vhost_header: X-Host\n")
        .listener("any", "", &with_any)
        .route_options("any", "vhost_header: x-host\nignore_port_in_host_matching: true\n")
        .listener("one", "", &host("one", "*"))
        .route_options("one", "vhost_header: x-host\n");
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["main", "any", "one"] {
        for line in [
            "",
            "X-Host: x.test\r\n",
            "x-host: X.Test\r\n",
            "X-Host: x.test:81\r\n",
            "X-Host: x.test:82\r\n",
            "X-Host: a.y.test\r\n",
            "X-Host: other\r\n",
            "X-Host: \r\n",
            "X-Host: x.test\r\nX-Host: a.y.test\r\n",
        ] {
            let name: &str = format!("{listener}: {}", line.escape_debug()).leak();
            cases.push(case(listener, name).raw(format!("GET /p HTTP/1.1\r\nHost: x.test\r\n{line}\r\n")));
        }
    }
    check_but(bootstrap, cases, &["http.main.no_route", "http.any.no_route"], BUT).await;
}
