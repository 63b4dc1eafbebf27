//! HTTP filters that decide on requests or change heads: the same requests, in the same order, then the same statistics.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::{differing, run_side, set, Side};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use crate::harness::proxy::Kind;
use crate::peers;
use std::collections::BTreeMap;

/// Statistics whose names begin with one of these.
async fn stats(side: &Side, rooms: &[&str]) -> BTreeMap<String, u64> {
    let mut stats = side.proxy.stats().await;
    stats.retain(|name, _| rooms.iter().any(|room| name.starts_with(room)));
    stats
}

/// Runs the cases against both, and compares all statistics in `rooms` afterwards: names and values.
pub(super) async fn check(bootstrap: Bootstrap, cases: Vec<Case>, rooms: &[&str]) {
    check_but(bootstrap, cases, rooms, &[]).await;
}

/// The same, but for statistics whose names contain one of `but`.
pub(super) async fn check_but(bootstrap: Bootstrap, cases: Vec<Case>, rooms: &[&str], but: &[&str]) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = bootstrap.render();
    let envoy = run_side(Kind::Envoy, &template).await;
    let ours = match set("OUTRIGGER_E2E_ENVOY_ONLY") {
        Some(_) => None,
        None => Some(run_side(Kind::Outrigger, &template).await),
    };
    let mut failures = differing(&cases, &envoy, ours.as_ref()).await;
    let theirs = stats(&envoy, rooms).await;
    match &ours {
        Some(ours) => {
            let mine = stats(ours, rooms).await;
            let names: std::collections::BTreeSet<_> = theirs.keys().chain(mine.keys()).collect();
            for name in names.into_iter().filter(|name| !but.iter().any(|but| name.contains(but))) {
                let (theirs, mine) = (theirs.get(name), mine.get(name));
                // What Envoy has not counted yet it may not show.
                if theirs != mine && (theirs, mine) != (None, Some(&0)) {
                    failures.push(format!("=== {name}: {theirs:?} with Envoy, {mine:?} with Outrigger"));
                }
            }
        }
        None => println!("{theirs:#?}"),
    }
    if set("OUTRIGGER_E2E_CASE").is_none() && ours.is_some() {
        assert!(theirs.values().any(|value| *value > 0), "nothing was counted: {theirs:?}");
    }
    assert!(failures.is_empty(), "{} differences\n{}", failures.len(), failures.join("\n"));
}

/// A filter's entry; `options` are in YAML's flow style.
pub(super) fn filter(name: &str, kind: &str, options: &str) -> String {
    format!(
        "- name: {name}\n  typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.{kind}{comma}{options} }}\n",
        comma = if options.is_empty() { "" } else { ", " }
    )
}

/// What a level says to filters.
pub(super) fn says(name: &str, kind: &str, options: &str) -> String {
    let comma = if options.is_empty() { "" } else { ", " };
    format!("{name}: {{ \"@type\": type.googleapis.com/envoy.{kind}{comma}{options} }}")
}

pub(super) fn route(path: &str, said: &[String]) -> String {
    format!(
        "- {{ match: {{ prefix: {path} }}, route: {{ cluster: a }}, typed_per_filter_config: {{ {} }} }}\n",
        said.join(", ")
    )
}

pub(super) fn host(options: &str, routes: &str) -> String {
    let routes: String = routes.lines().map(|line| format!("  {line}\n")).collect();
    format!("- name: all\n  domains: ['*']\n{options}  routes:\n{routes}")
}

#[tokio::test]
async fn cors() {
    const POLICY: &str = "extensions.filters.http.cors.v3.CorsPolicy";
    let policy = |options: &str| says("cors", POLICY, options);
    let origins = "allow_origin_string_match: [ { exact: 'http://good.test' }, { suffix: '.fine.test' } ]";
    let routes = [
        route(
            "/full",
            &[policy(&format!(
                "{origins}, allow_methods: 'GET, PUT', allow_headers: x-a, expose_headers: x-b, max_age: '60', \
                 allow_credentials: true, allow_private_network_access: true"
            ))],
        ),
        route("/echo", &[policy("allow_methods: '*', allow_headers: '*'")]),
        route("/star", &[policy("allow_origin_string_match: [ { exact: '*' } ]")]),
        route("/strict", &[policy(&format!("{origins}, forward_not_matching_preflights: false"))]),
        route("/off", &[policy("filter_enabled: { default_value: { numerator: 0 } }")]),
        route(
            "/runtime",
            &[policy("filter_enabled: { default_value: { numerator: 0 }, runtime_key: cors.on }")],
        ),
        route(
            "/shadow",
            &[policy(
                "filter_enabled: { default_value: { numerator: 0 } }, shadow_enabled: { default_value: { numerator: 100 } }",
            )],
        ),
        route("/disabled", &[says("cors", "config.route.v3.FilterConfig", "disabled: true")]),
        route("/enabled", &[says("cors", "config.route.v3.FilterConfig", "config: {}")]),
        format!(
            "- {{ match: {{ prefix: /weighted }}, route: {{ weighted_clusters: {{ clusters: [ {{ name: a, weight: 1, typed_per_filter_config: {{ {} }} }} ] }} }} }}\n",
            policy("expose_headers: x-weighted")
        ),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n".to_string(),
        "- { match: { prefix: /plain }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let vhost = format!(
        "  typed_per_filter_config: {{ {} }}\n",
        policy(
            "allow_origin_string_match: [ { exact: 'http://vhost.test' } ], allow_methods: 'GET', expose_headers: x-vhost"
        )
    );
    let legacy = "- name: all\n  domains: ['*']\n  cors: { allow_origin_string_match: [ { exact: 'http://vhost.test' } ], \
                  allow_methods: GET }\n  routes:\n  - { match: { prefix: /own }, route: { cluster: a, cors: { \
                  allow_origin_string_match: [ { exact: 'http://good.test' } ], max_age: '5' } } }\n  \
                  - { match: { prefix: / }, route: { cluster: a } }\n";
    let chain = filter("cors", "cors.v3.Cors", "");
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host(&vhost, &routes))
        .filters("main", &chain)
        .listener("legacy", "", legacy)
        .filters("legacy", &chain)
        .more("layered_runtime: { layers: [ { name: one, static_layer: { cors: { on: { numerator: 100 } } } } ] }");
    let simple = |name, path: &str, origin: &str| {
        case("main", name).get(path, &format!("Origin: {origin}\r\n")).answers(Answer::raw(
            "HTTP/1.1 200 OK\r\naccess-control-allow-origin: theirs\r\naccess-control-expose-headers: theirs\r\n\
             content-length: 2\r\n\r\nok",
        ))
    };
    let preflight = |name, path: &str, more: &str| {
        case("main", name).send("OPTIONS", path, &format!("Access-Control-Request-Method: PUT\r\n{more}"), "")
    };
    let cases = vec![
        case("main", "no origin").get("/full", ""),
        case("main", "empty origin").get("/full", "Origin:\r\n"),
        simple("allowed origin", "/full", "http://good.test"),
        simple("allowed by suffix", "/full", "http://a.fine.test"),
        simple("other origin", "/full", "http://bad.test"),
        simple("origins of the host", "/echo", "http://vhost.test"),
        simple("any origin", "/star", "http://any.test"),
        simple("off", "/off", "http://vhost.test"),
        simple("on by runtime", "/runtime", "http://vhost.test"),
        simple("shadow", "/shadow", "http://vhost.test"),
        simple("disabled", "/disabled", "http://vhost.test"),
        simple("enabled without more", "/enabled", "http://vhost.test"),
        simple("weighted", "/weighted", "http://vhost.test"),
        simple("direct response", "/direct", "http://vhost.test"),
        simple("only the host", "/plain", "http://vhost.test"),
        simple("no route", "/none", "http://vhost.test"),
        preflight("preflight", "/full", "Origin: http://good.test\r\n"),
        preflight(
            "preflight for a private network",
            "/full",
            "Origin: http://good.test\r\nAccess-Control-Request-Private-Network: true\r\n",
        ),
        preflight(
            "preflight that is echoed",
            "/echo",
            "Origin: http://vhost.test\r\nAccess-Control-Request-Headers: x-1, x-2\r\n",
        ),
        preflight("preflight of another origin", "/full", "Origin: http://bad.test\r\n"),
        preflight("preflight of another origin, strict", "/strict", "Origin: http://bad.test\r\n"),
        preflight(
            "preflight of gRPC",
            "/full",
            "Origin: http://good.test\r\nContent-Type: application/grpc\r\n",
        ),
        case("main", "options without a method").send("OPTIONS", "/full", "Origin: http://good.test\r\n", ""),
        case("legacy", "field of the route").get("/own", "Origin: http://good.test\r\n"),
        case("legacy", "field of the route, other").get("/own", "Origin: http://vhost.test\r\n"),
        case("legacy", "field of the host").get("/x", "Origin: http://vhost.test\r\n"),
        case("legacy", "fields together").send(
            "OPTIONS",
            "/own",
            "Origin: http://good.test\r\nAccess-Control-Request-Method: PUT\r\n",
            "",
        ),
    ];
    check(bootstrap, cases, &["http.main.cors.", "http.legacy.cors."]).await;
}

#[tokio::test]
async fn header_mutation() {
    const PER_ROUTE: &str = "extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";
    let level = |name: &str| {
        says(
            "hm",
            PER_ROUTE,
            &format!(
                "mutations: {{ request_mutations: [ {{ append: {{ header: {{ key: x-level, value: {name} }} }} }}, \
                 {{ append: {{ header: {{ key: x-last, value: {name} }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }} }} ], \
                 response_mutations: [ {{ append: {{ header: {{ key: x-level, value: {name} }} }} }} ] }}"
            ),
        )
    };
    let query = |list: &str| {
        says("hm", PER_ROUTE, &format!("mutations: {{ query_parameter_mutations: [ {list} ] }}"))
    };
    let add = |key: &str, value: &str, action: &str| {
        format!("{{ append: {{ record: {{ key: {key}, value: '{value}' }}, action: {action} }} }}")
    };
    let own = "mutations: { request_mutations: [ { remove: x-gone }, \
               { append: { header: { key: x-from, value: '%REQ(x-gone)%-%REQ(x-kept)%' } } }, \
               { append: { header: { key: x-from, value: 'second %REQ(x-from)%' } } }, \
               { append: { header: { key: x-only, value: over }, append_action: OVERWRITE_IF_EXISTS } }, \
               { append: { header: { key: x-absent, value: new }, append_action: ADD_IF_ABSENT } }, \
               { remove_on_match: { key_matcher: { prefix: x-drop- } } } ], \
               response_mutations: [ { remove: x-origin }, \
               { append: { header: { key: x-code, value: '%RESPONSE_CODE% %REQ(x-kept)%' } } }, \
               { append: { header: { key: server, value: changed }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } } ] }";
    let routes = [
        route("/route", &[level("route")]),
        route(
            "/query",
            &[query(
                &[
                    add("b", "%REQ(x-kept)%", "APPEND_IF_EXISTS_OR_ADD"),
                    add("a", "absent", "ADD_IF_ABSENT"),
                    add("c", "over", "OVERWRITE_IF_EXISTS"),
                    add("d", "x y&z/%%", "OVERWRITE_IF_EXISTS_OR_ADD"),
                    "{ remove: gone }".to_string(),
                ]
                .join(", "),
            )],
        ),
        format!(
            "- {{ match: {{ prefix: /weighted }}, route: {{ weighted_clusters: {{ clusters: [ {{ name: a, weight: 1, typed_per_filter_config: {{ {} }} }} ] }} }}, typed_per_filter_config: {{ {} }} }}\n",
            level("weighted"),
            level("route")
        ),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n".to_string(),
        route("/off", &[says("hm", "config.route.v3.FilterConfig", "disabled: true")]),
        "- { match: { prefix: /refused }, route: { cluster: refused } }\n".to_string(),
        "- { match: { prefix: /plain }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let hosts = host(&format!("  typed_per_filter_config: {{ {} }}\n", level("vhost")), &routes);
    let table = format!("typed_per_filter_config: {{ {} }}", level("table"));
    let bootstrap = Bootstrap::new()
        .listener("main", "", &hosts)
        .route_options("main", &table)
        .filters("main", &filter("hm", "header_mutation.v3.HeaderMutation", own))
        .listener("specific", "", &hosts)
        .route_options("specific", &table)
        .filters(
            "specific",
            &filter("hm", "header_mutation.v3.HeaderMutation", "most_specific_header_mutations_wins: true"),
        )
        .listener("two", "", &hosts)
        .filters(
            "two",
            &[
                filter("first", "header_mutation.v3.HeaderMutation", "mutations: { request_mutations: [ { append: { header: { key: x-order, value: first } } } ], response_mutations: [ { append: { header: { key: x-order, value: first } } } ] }"),
                filter("silent", "header_mutation.v3.HeaderMutation", "mutations: { request_mutations: [ { append: { header: { key: x-order, value: 'off' } } } ] }").replace("  typed_config", "  disabled: true\n  typed_config"),
                filter("second", "header_mutation.v3.HeaderMutation", "mutations: { request_mutations: [ { append: { header: { key: x-order, value: second } } } ], response_mutations: [ { append: { header: { key: x-order, value: second } } } ] }"),
            ]
            .concat(),
        );
    let sent = "x-gone: 1\r\nx-kept: kept\r\nx-only: theirs\r\nX-Drop-One: 1\r\nx-drop-two: 2\r\n";
    let get = |name, listener, path: &str| {
        case(listener, name)
            .get(path, sent)
            .answers(Answer::raw("HTTP/1.1 200 OK\r\nx-origin: o\r\ncontent-length: 2\r\n\r\nok"))
    };
    let cases = vec![
        get("all levels", "main", "/route"),
        get("all levels, most specific wins", "specific", "/route"),
        get("weighted", "main", "/weighted"),
        get("weighted, most specific wins", "specific", "/weighted"),
        get("query parameters", "main", "/query?z=1&c=1&c=2&b=0&gone=1&e=%41&f"),
        get("query parameters where there are none", "main", "/query"),
        get("direct response", "main", "/direct"),
        get("off for a route", "main", "/off"),
        get("refused by the upstream", "main", "/refused"),
        get("no route", "main", "/none"),
        case("main", "nothing sent").get("/plain", ""),
        get("order", "two", "/plain"),
        case("main", "absolute path rejected").raw("GET nonsense HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        case("main", "no host").raw("GET / HTTP/1.1\r\n\r\n"),
    ];
    check(bootstrap, cases, &["cluster.a.upstream_rq_2"]).await;
}

#[tokio::test]
async fn trailer_mutation() {
    const PER_ROUTE: &str = "extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";
    let append = |key: &str, value: &str, action: &str| {
        format!("{{ append: {{ header: {{ key: {key}, value: '{value}' }}, append_action: {action} }} }}")
    };
    let changes = |level: &str| {
        let list = [
            "{ remove: x-gone }".to_string(),
            "{ remove_on_match: { key_matcher: { prefix: x-drop- } } }".to_string(),
            append("x-level", level, "APPEND_IF_EXISTS_OR_ADD"),
            append("x-t", "over", "OVERWRITE_IF_EXISTS"),
            append("x-none", "over", "OVERWRITE_IF_EXISTS"),
            append("x-absent", level, "ADD_IF_ABSENT"),
            append("x-last", level, "OVERWRITE_IF_EXISTS_OR_ADD"),
            append("x-of-request", "%REQ(x-sent)% %REQ(:path)% %PROTOCOL%", "APPEND_IF_EXISTS_OR_ADD"),
        ];
        list.join(", ")
    };
    let both = |level: &str| {
        let list = changes(level);
        let code = append("x-code", "%RESPONSE_CODE% %RESP(x-head)%", "APPEND_IF_EXISTS_OR_ADD");
        format!("mutations: {{ request_trailers_mutations: [ {list} ], response_trailers_mutations: [ {list}, {code} ] }}")
    };
    let to = |said: &str, path: &str| {
        format!("- {{ match: {{ prefix: {path} }}, route: {{ cluster: a-t }}, typed_per_filter_config: {{ {said} }} }}\n")
    };
    let routes = [
        to(&says("hm", PER_ROUTE, &both("route")), "/route"),
        to(&says("hm", "config.route.v3.FilterConfig", "disabled: true"), "/off"),
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n"
            .to_string(),
        to("", "/"),
    ]
    .concat();
    let options = format!(
        "  include_request_attempt_count: true\n  retry_policy: {{ retry_on: 5xx }}\n  typed_per_filter_config: {{ {} }}\n",
        says("hm", PER_ROUTE, &both("host"))
    );
    let hosts = host(&options, &routes);
    const KIND: &str = "header_mutation.v3.HeaderMutation";
    let mut bootstrap = Bootstrap::new().origin("a-t", super::ext_proc_streams::TRAILERS_UPSTREAM);
    for (name, filters) in [
        ("main", filter("hm", KIND, &both("filter"))),
        ("specific", filter("hm", KIND, "most_specific_header_mutations_wins: true")),
        ("two", filter("one", KIND, &both("one")) + &filter("two", KIND, &both("two"))),
    ] {
        bootstrap =
            bootstrap.listener(name, super::ext_proc_streams::TRAILERS, &hosts).filters(name, &filters);
    }
    let origin = |request: &Message| {
        match request.target() {
        "/again" if request.header("x-envoy-attempt-count") == Some("1") => {
            Answer::status(503, "Service Unavailable", "not yet")
        }
        "/plain" => Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        _ => Answer::raw(
            "HTTP/1.1 200 OK\r\nx-head: yes\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: old\r\nx-gone: 1\r\nx-drop-1: 1\r\nx-kept: 1\r\n\r\n",
        ),
    }
    };
    let post = |listener: &'static str, name: &'static str, path: &str, trailers: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: t.test\r\nTE: trailers\r\nX-Sent: sent\r\nTransfer-Encoding: chunked\r\n\r\n");
        case(listener, name).raw(format!("{head}3\r\nabc\r\n0\r\n{trailers}\r\n")).script(origin)
    };
    let sent = "x-t: old\r\nX-Gone: 1\r\nx-drop-1: 1\r\nx-kept: 1\r\n";
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["main", "specific", "two"] {
        for (name, path) in [
            ("trailers", "/x"),
            ("of a route", "/route"),
            ("off", "/off"),
            ("none back", "/plain"),
            ("sent again", "/again"),
        ] {
            cases.push(post(listener, name, path, sent));
        }
        cases.push(post(listener, "none sent", "/x", ""));
        cases.push(case(listener, "a length").send("POST", "/plain", "", "abc").script(origin));
        cases.push(case(listener, "no body").get("/x", "").script(origin));
        cases.push(case(listener, "direct").get("/direct", ""));
    }
    check(bootstrap, cases, &["cluster.a-t.upstream_rq_2"]).await;
}

#[tokio::test]
async fn fault() {
    const PER_ROUTE: &str = "extensions.filters.http.fault.v3.HTTPFault";
    let abort = |options: &str| {
        says("fault", PER_ROUTE, &format!("abort: {{ percentage: {{ numerator: 100 }}, {options} }}"))
    };
    let any = |options: &str| says("fault", PER_ROUTE, options);
    let routes = [
        route("/abort", &[abort("http_status: 418")]),
        route("/body", &[abort("http_status: 503, response_body: mine")]),
        route("/grpc", &[abort("grpc_status: 8")]),
        route("/header", &[abort("header_abort: {}")]),
        route("/half", &[any("abort: { percentage: { numerator: 50 }, header_abort: {} }")]),
        route("/never", &[any("abort: { percentage: { numerator: 0 }, http_status: 500 }")]),
        route(
            "/matching",
            &[abort("http_status: 500").replace(
                "abort:",
                "headers: [ { name: x-fault, string_match: { exact: 'yes' } } ], downstream_nodes: [ n1, n2 ], abort:",
            )],
        ),
        route("/cluster", &[abort("http_status: 500").replace("abort:", "upstream_cluster: a, abort:")]),
        route("/other", &[abort("http_status: 500").replace("abort:", "upstream_cluster: b, abort:")]),
        route("/delay", &[any("delay: { percentage: { numerator: 100 }, fixed_delay: 0.05s }")]),
        route("/both", &[any("delay: { percentage: { numerator: 100 }, fixed_delay: 0.05s }, abort: { percentage: { numerator: 100 }, http_status: 505 }")]),
        route("/delay-header", &[any("delay: { percentage: { numerator: 100 }, header_delay: {} }")]),
        route("/overflow", &[abort("http_status: 500").replace("abort:", "max_active_faults: 0, abort:")]),
        route("/disabled", &[says("fault", "config.route.v3.FilterConfig", "disabled: true")]),
        route("/runtime", &[abort("http_status: 500").replace("abort:", "abort_percent_runtime: my.percent, abort_http_status_runtime: my.status, abort:").replace("numerator: 100", "numerator: 0")]),
        "- { match: { prefix: /redirect }, redirect: { path_redirect: /x } }\n".to_string(),
        "- { match: { prefix: /plain }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let own = "abort: { percentage: { numerator: 100 }, http_status: 500 }, headers: [ { name: x-own, present_match: true } ]";
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("fault", "fault.v3.HTTPFault", own))
        .more("layered_runtime: { layers: [ { name: one, static_layer: { my: { percent: 100, status: 507 } } } ] }");
    let get = |name, path: &str, headers: &str| case("main", name).get(path, headers);
    let cases = vec![
        get("abort", "/abort", ""),
        get("abort with a body", "/body", ""),
        case("main", "abort of a head").send("HEAD", "/abort", "", "").answers_head(),
        case("main", "abort of a post").send("POST", "/abort", "", "hello"),
        get("abort for the client's cluster", "/abort", "x-envoy-downstream-service-cluster: edge.one\r\n"),
        get("abort of gRPC by HTTP status", "/abort", "Content-Type: application/grpc\r\n"),
        get("gRPC status for gRPC", "/grpc", "Content-Type: application/grpc\r\n"),
        get("gRPC status for others", "/grpc", ""),
        get("by header", "/header", "x-envoy-fault-abort-request: 503\r\n"),
        get(
            "by header for gRPC",
            "/header",
            "x-envoy-fault-abort-grpc-request: 5\r\nContent-Type: application/grpc\r\n",
        ),
        get("by header, no status", "/header", "x-envoy-fault-abort-request: 99\r\n"),
        get("by header, no number", "/header", "x-envoy-fault-abort-request: abc\r\n"),
        get("by header, missing", "/header", ""),
        get(
            "by header, never",
            "/header",
            "x-envoy-fault-abort-request: 503\r\nx-envoy-fault-abort-request-percentage: 0\r\n",
        ),
        get(
            "a share that the client makes nothing",
            "/half",
            "x-envoy-fault-abort-request: 503\r\nx-envoy-fault-abort-request-percentage: 0\r\n",
        ),
        get("never", "/never", ""),
        get("matching", "/matching", "x-fault: yes\r\nx-envoy-downstream-service-node: n2\r\n"),
        get("another node", "/matching", "x-fault: yes\r\nx-envoy-downstream-service-node: n3\r\n"),
        get("no node", "/matching", "x-fault: yes\r\n"),
        get("another header", "/matching", "x-fault: no\r\nx-envoy-downstream-service-node: n2\r\n"),
        get("cluster", "/cluster", ""),
        get("another cluster", "/other", ""),
        get("delay", "/delay", ""),
        case("main", "delay of a post").send("POST", "/delay", "", "hello"),
        get("delay and abort", "/both", ""),
        get("delay by header", "/delay-header", "x-envoy-fault-delay-request: 30\r\n"),
        get("delay by header, none", "/delay-header", "x-envoy-fault-delay-request: 0\r\n"),
        get("delay by header, missing", "/delay-header", ""),
        get("overflow", "/overflow", ""),
        get("disabled", "/disabled", "x-own: 1\r\n"),
        get("runtime", "/runtime", ""),
        get("redirect", "/redirect", "x-own: 1\r\n"),
        get("the filter's own", "/plain", "x-own: 1\r\n"),
        get("none of its own", "/plain", ""),
        get("no route", "/none", "x-own: 1\r\n"),
    ];
    check(bootstrap, cases, &["http.main.fault.", "http.main.rq_total"]).await;
}
