//! TCP through HTTP beside Envoy's, and internal listeners on the way: what the client sees, what the host that opens
//! the tunnel is asked, how the origin's connection ends, what the access log says.

use super::beside::Beside;
use super::set;
use super::tcp::{case, chain, listener, observe, send, Act, Case, Side};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::tunnel_origin::TunnelOrigin;
use crate::harness::{eventually, http2, DEADLINE};
use crate::peers;

/// An entry of `clusters` with this host.
fn cluster(name: &str, host: &str, more: &str) -> String {
    format!(
        "  - name: {name}\n    type: STATIC\n    connect_timeout: 1s\n{more}    load_assignment: {{ cluster_name: {name}, \
         endpoints: [ {{ lb_endpoints: [ {{ {host} }} ] }} ] }}\n"
    )
}

const BY_METADATA: &str = r#"    transport_socket:
      name: envoy.transport_sockets.internal_upstream
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        passthrough_metadata: [ { kind: { host: {} }, name: envoy.filters.listener.original_dst }, { kind: { cluster: {} }, name: of.cluster } ]
        transport_socket: { name: envoy.transport_sockets.raw_buffer, typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }
    metadata: { filter_metadata: { of.cluster: { key: word } } }
"#;

const ORIGINAL_DST: &str = "    listener_filters:\n    - name: envoy.filters.listener.original_dst\n      typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst }\n";

/// A listener that only this process connects to.
fn internal(name: &str, options: &str, chains: &[String]) -> String {
    format!("  - name: {name}\n    internal_listener: {{}}\n{options}    filter_chains:\n{}", chains.concat())
}

fn template() -> String {
    let to = |cluster: &str, config: &str| {
        format!("cluster: {cluster}\n          max_connect_attempts: 2\n          tunneling_config: {{ {config} }}")
    };
    let plain = |name: &str, cluster: &str, config: &str| {
        listener(name, "", &[chain(name, "", &to(cluster, config))])
    };
    let added = "headers_to_add: [ { header: { key: x-name, value: one } }, { header: { key: x-port, value: '%DOWNSTREAM_LOCAL_PORT%' }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }, { header: { key: x-none, value: '%REQUESTED_SERVER_NAME%' } } ]";
    let set_state = r#"      - name: set
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
          on_new_connection:
          - { object_key: my.word, factory_key: envoy.string, format_string: { text_format_source: { inline_string: passed } }, shared_with_upstream: ONCE }
          - { object_key: my.own, factory_key: envoy.string, format_string: { text_format_source: { inline_string: kept } } }
          - { object_key: envoy.filters.listener.original_dst.remote_ip, format_string: { text_format_source: { inline_string: "10.1.2.3:45" } }, shared_with_upstream: ONCE }
"#;
    let with_state = chain("state", "", "cluster: by-metadata").replacen(
        "      filters:\n",
        &format!("      filters:\n{set_state}"),
        1,
    );
    let listeners = [
        plain("h2", "h2", "hostname: good.test:443"),
        plain("h2-added", "h2", &format!("hostname: 'h%DOWNSTREAM_LOCAL_PORT%.test:1', {added}")),
        plain("h2-post", "h2", "hostname: good.test:443, use_post: true"),
        plain("h2-path", "h2", "hostname: good.test:443, use_post: true, post_path: /a/b"),
        plain("h2-refuse", "h2", "hostname: refuse.test:443"),
        plain("h2-over", "h2", "hostname: over.test:443"),
        plain("h2-cut", "h2", "hostname: cut.test:443"),
        plain("h1", "h1", "hostname: good.test:443"),
        plain("h1-added", "h1", &format!("hostname: 'h%DOWNSTREAM_LOCAL_PORT%.test:1', {added}")),
        plain("h1-post", "h1", "hostname: good.test:443, use_post: true"),
        plain("h1-refuse", "h1", "hostname: refuse.test:443"),
        plain("h1-cut", "h1", "hostname: cut.test:443"),
        plain("unreachable", "refused", "hostname: good.test:443"),
        plain("empty", "empty", "hostname: good.test:443"),
        listener("inner", "", &[chain("inner", "", "cluster: inner")]),
        listener("metadata", "", &[chain("metadata", "", "cluster: by-metadata")]),
        listener("state", "", &[with_state]),
        listener("nowhere", "", &[chain("nowhere", "", "cluster: nowhere")]),
        internal("relay", "", &[chain("relay", "", "cluster: good")]),
        internal(
            "originate",
            ORIGINAL_DST,
            &[chain("originate", "", &to("h2", "hostname: '%DOWNSTREAM_LOCAL_ADDRESS%', headers_to_add: [ { header: { key: x-cluster, value: '%DYNAMIC_METADATA(of.cluster:key)%' } }, { header: { key: x-word, value: '%FILTER_STATE(my.word:PLAIN)%' } }, { header: { key: x-own, value: '%FILTER_STATE(my.own:PLAIN)%' } } ]"))],
        ),
    ];
    let socket = |port: &str| {
        format!("endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}")
    };
    let within = |name: &str, id: &str| {
        format!("endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: {name}, endpoint_id: '{id}' }} }} }}")
    };
    let metadata =
        "metadata: { filter_metadata: { envoy.filters.listener.original_dst: { local: '10.9.8.7:65' } } }";
    let clusters = [
        cluster("good", &socket("@origin@"), ""),
        http2::cluster("h2", "@h2@"),
        cluster("h1", &socket("@h1@"), ""),
        http2::cluster("refused", "@port:refused-port@"),
        "  - name: empty\n    type: STATIC\n    load_assignment: { cluster_name: empty }\n".to_owned(),
        cluster("inner", &within("relay", ""), ""),
        cluster("nowhere", &within("nobody", ""), ""),
        cluster("by-metadata", &format!("{}, {metadata}", within("originate", "x")), BY_METADATA),
    ];
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\nbootstrap_extensions:\n- name: envoy.bootstrap.internal_listener\n  typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener, buffer_size_kb: 64 }}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}",
        listeners.concat(),
        clusters.concat()
    )
}

fn cases() -> Vec<Case> {
    use Act::{End, Finish, Read, Reset, Send};
    let unreached = |mut case: Case, ignore| {
        case.reaches = false;
        case.ignore = ignore;
        case
    };
    let ignoring = |mut case: Case, ignore| {
        case.ignore = ignore;
        case
    };
    let mut cases = Vec::new();
    for listener in ["h2", "h2-added", "h2-post", "h2-path", "h1", "h1-added"] {
        // Envoy ends a tunnel over HTTP/1 with the first end of either side.
        let acts = match listener.starts_with("h1") {
            true => vec![send("echo\nhello"), Read(5)],
            false => vec![send("echo\nhello"), Read(5), Finish, End],
        };
        let ignore: &[&str] = if listener.starts_with("h1") { &["origin"] } else { &[] };
        cases.push(ignoring(case("echo", listener, acts), ignore));
    }
    cases.extend([
        case(
            "the client ends first and still gets its answer",
            "h2",
            vec![send("count\n0123456789"), Finish, End],
        ),
        case(
            "the origin ends first and still gets the rest",
            "h2",
            vec![send("early\n"), Read(3), send("more from the client"), Finish, End],
        ),
        case("sixteen mebibytes back", "h2", vec![send("source 16777216\n"), Read(16 << 20), Finish, End]),
        case("four mebibytes there", "h2", vec![send("count\n"), Send(vec![b'x'; 4 << 20]), Finish, End]),
        case("a mebibyte back", "h1", vec![send("source 1048576\n"), Read(1 << 20)]),
        // A reset is passed on; Envoy makes an orderly end of it.
        ignoring(case("the origin resets", "h2", vec![send("reset\n"), End]), &["flags", "reset"]),
        ignoring(
            case("the client resets", "h2", vec![send("echo\nx"), Read(1), Reset]),
            &["origin", "flags"],
        ),
        unreached(case("refused", "h2-refuse", vec![send("echo\n"), End]), &["reset"]),
        unreached(case("ended with its head", "h2-over", vec![send("echo\n"), End]), &["reset"]),
        unreached(case("broken off", "h2-cut", vec![send("echo\n"), End]), &["reset"]),
        unreached(case("refused", "h1-refuse", vec![send("echo\n"), End]), &["reset"]),
        unreached(case("closed", "h1-cut", vec![send("echo\n"), End]), &["reset"]),
        unreached(case("connection refused", "unreachable", vec![send("echo\n"), End]), &["reset"]),
        unreached(case("no endpoint", "empty", vec![send("echo\n"), End]), &["reset"]),
        case("internal, echo", "inner", vec![send("echo\nhello"), Read(5), Finish, End]),
        case("internal, the client ends first", "inner", vec![send("count\n0123456789"), Finish, End]),
        case(
            "internal, the origin ends first",
            "inner",
            vec![send("early\n"), Read(3), send("more from the client"), Finish, End],
        ),
        case(
            "internal, sixteen mebibytes back",
            "inner",
            vec![send("source 16777216\n"), Read(16 << 20), Finish, End],
        ),
        case(
            "internal, four mebibytes there",
            "inner",
            vec![send("count\n"), Send(vec![b'x'; 4 << 20]), Finish, End],
        ),
        ignoring(case("internal, the origin resets", "inner", vec![send("reset\n"), End]), &["flags"]),
        unreached(case("no internal listener", "nowhere", vec![send("echo\n"), End]), &["reset"]),
        case("internal, by metadata", "metadata", vec![send("echo\nhello"), Read(5), Finish, End]),
        case("internal, by filter state", "state", vec![send("echo\nhello"), Read(5), Finish, End]),
    ]);
    cases
}

async fn side(kind: Kind, template: &str) -> (Side, TunnelOrigin) {
    let origin = TcpOrigin::start().await;
    let tunnels = TunnelOrigin::start(origin.port).await;
    let values = [
        ("origin", origin.port.to_string()),
        ("h2", tunnels.http2.to_string()),
        ("h1", tunnels.http1.to_string()),
    ];
    let proxy = Proxy::start(Plan::new(kind, template, &values)).await;
    (Side { proxy, origin }, tunnels)
}

/// Runs a case and says what happened, with the names of ports in place of their numbers.
async fn told((side, tunnels): &(Side, TunnelOrigin), case: &Case) -> String {
    let mut text = observe(side, case).await;
    for head in tunnels.take() {
        text += &format!("asked: {head}\n");
    }
    for (name, port) in
        [("<h2>", tunnels.http2), ("<h1>", tunnels.http1), ("<listener>", side.proxy.port(case.listener))]
    {
        text = text.replace(&port.to_string(), name);
    }
    text
}

const COUNTERS: &[&str] = &[
    "tcp.h2.downstream_cx_total",
    "tcp.h2.downstream_cx_rx_bytes_total",
    "tcp.h2.downstream_cx_tx_bytes_total",
    "cluster.h2.upstream_cx_total",
    "cluster.h2.upstream_cx_http2_total",
    "cluster.h2.upstream_rq_total",
    "cluster.h2.upstream_rq_active",
    "cluster.h2.upstream_cx_connect_attempts_exceeded",
    "cluster.h1.upstream_cx_total",
    "cluster.h1.upstream_cx_http1_total",
    "cluster.h1.upstream_rq_total",
    "cluster.inner.upstream_cx_total",
    "cluster.inner.upstream_cx_destroy",
    "cluster.nowhere.upstream_cx_connect_fail",
    "listener.envoy_internal_relay.downstream_cx_total",
    "listener.envoy_internal_relay.downstream_cx_destroy",
    "listener.envoy_internal_originate.downstream_cx_total",
];

#[tokio::test]
async fn tunnels() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = template();
    let only = set("OUTRIGGER_E2E_CASE").unwrap_or_default();
    let envoy = side(Kind::Envoy, &template).await;
    let ours = side(Kind::Outrigger, &template).await;
    let mut beside = Beside::default();
    for case in cases().iter().filter(|c| c.name.contains(&only)) {
        let (theirs, mine) = (told(&envoy, case).await, told(&ours, case).await);
        beside.texts(&case.title(), &theirs, &mine);
    }
    // There it would be a body in chunks.
    let mut by_post = case("by POST over HTTP/1.1", "h1-post", vec![send("echo\n"), Act::End]);
    by_post.reaches = false;
    let refused = told(&ours, &by_post).await;
    assert!(
        refused.contains("log flags=UF,URX") && refused.contains("a_tunnel_by_POST_needs_HTTP/2"),
        "{refused}"
    );
    assert!(!refused.contains("asked:"), "{refused}");
    if only.is_empty() {
        let idle = || async { ours.0.proxy.stats().await.get("cluster.h2.upstream_rq_active") == Some(&0) };
        assert!(eventually(DEADLINE, idle).await, "a tunnel is left");
        let (theirs, mine) = (envoy.0.proxy.stats().await, ours.0.proxy.stats().await);
        for name in COUNTERS {
            beside.values(name, &theirs.get(*name), &mine.get(*name));
        }
    }
    beside.end();
}
