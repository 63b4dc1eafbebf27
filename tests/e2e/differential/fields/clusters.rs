//! Fields of clusters.

use super::BUT;
use crate::differential::bootstrap::{endpoints, Bootstrap};
use crate::differential::case::{case, Case, Step};
use crate::differential::filters::check_but;
use crate::harness::origin::{Answer, Then};

/// The request's destination is told by a header that the route adds.
fn told(header: &str, value: &str) -> String {
    format!("    request_headers_to_add: [ {{ header: {{ key: {header}, value: '{value}' }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }} ]\n")
}

#[tokio::test]
async fn original_destinations_by_header() {
    let cluster = |options: &str| {
        format!("type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\noriginal_dst_lb_config: {{ {options} }}")
    };
    let route = |path: &str, cluster: &str, told: &str| {
        format!("  - match: {{ prefix: {path} }}\n    route: {{ cluster: {cluster} }}\n{told}")
    };
    let routes = [
        route("/by-header", "usual", &told("x-envoy-original-dst-host", "127.0.0.1:@origin:a@")),
        route("/by-other", "named", &told("x-where", "127.0.0.1:@origin:b@")),
        route("/port", "port", &told("x-envoy-original-dst-host", "127.0.0.1:1")),
        route("/unread", "unread", &told("x-envoy-original-dst-host", "127.0.0.1:@origin:a@")),
        route("/named-usual", "named", &told("x-envoy-original-dst-host", "127.0.0.1:@origin:a@")),
        route("/odd", "usual", &told("x-envoy-original-dst-host", "somewhere:80")),
        route("/list", "usual", &told("x-envoy-original-dst-host", "127.0.0.1:@origin:a@, 127.0.0.1:1")),
        route("/nothing", "usual", ""),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .cluster("usual", &cluster("use_http_header: true"))
        .cluster("named", &cluster("use_http_header: true, http_header_name: X-Where"))
        .cluster("port", &cluster("use_http_header: true, upstream_port_override: @origin:b@"))
        .cluster("unread", &cluster("use_http_header: false"))
        .listener("main", "", &format!("- name: all\n  domains: ['*']\n  routes:\n{routes}"));
    let paths = ["/by-header", "/by-other", "/port", "/odd", "/list", "/nothing", "/named-usual"];
    let cases = paths.iter().map(|path| case("main", path).get(path, "")).collect();
    let rooms = [
        "cluster.usual.upstream_rq_",
        "cluster.named.upstream_rq_",
        "cluster.usual.original_dst_host_invalid",
    ];
    check_but(bootstrap, cases, &rooms, BUT).await;
}

#[tokio::test]
async fn connections() {
    let cluster = |options: &str| format!("{}\n{options}", endpoints(&["@origin:a@"]));
    let kinds = [
        ("keepalive", "upstream_connection_options: { tcp_keepalive: { keepalive_probes: 3, keepalive_time: 7, keepalive_interval: 2 } }"),
        ("same", "protocol_selection: USE_DOWNSTREAM_PROTOCOL\nhttp2_protocol_options: {}"),
        ("per-host", "circuit_breakers: { per_host_thresholds: [ { max_connections: 1 } ], thresholds: [ { track_remaining: true } ] }"),
        ("options", "upstream_bind_config: { source_address: { address: 127.0.0.1, port_value: 0 }, socket_options: [ { level: 1, name: 9, int_value: 1, state: STATE_PREBIND } ] }"),
        ("freebind", "upstream_bind_config: { source_address: { address: 127.0.0.9, port_value: 0 }, freebind: true }"),
        ("by-name", "circuit_breakers: { thresholds: [ { priority: HIGH, max_requests: 0 } ] }"),
    ];
    let mut bootstrap = Bootstrap::new();
    let mut routes = String::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in kinds {
        bootstrap = bootstrap.cluster(name, &cluster(options));
        routes += &format!("  - {{ match: {{ prefix: /{name}/high }}, route: {{ cluster: {name}, priority: HIGH }} }}\n  - {{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}\n");
        let titled = |what: &str| case("main", format!("{name}: {what}").leak());
        cases.extend([
            titled("a request").get(&format!("/{name}"), ""),
            titled("of high priority").get(&format!("/{name}/high"), ""),
            titled("a body").send("POST", &format!("/{name}"), "", "hello"),
            titled("two requests")
                .get(&format!("/{name}"), "")
                .step(Step::Read)
                .get(&format!("/{name}"), "")
                .responses(2),
            titled("a connection that closes")
                .get(&format!("/{name}"), "")
                .answers(Answer::ok("bye").then(Then::Close)),
        ]);
    }
    let bootstrap =
        bootstrap.listener("main", "", &format!("- name: all\n  domains: ['*']\n  routes:\n{routes}"));
    let rooms = [
        "cluster.keepalive.upstream_rq_",
        "cluster.same.upstream_rq_",
        "cluster.per-host.upstream_rq_",
        "cluster.per-host.circuit_breakers",
        "cluster.by-name.upstream_rq_",
        "cluster.by-name.circuit_breakers",
    ];
    // Who waits for a connection is up to how many workers have some.
    let but = [BUT, &["pending_total", "remaining_"]].concat();
    check_but(bootstrap, cases, &rooms, &but).await;
}
