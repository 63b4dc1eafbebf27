//! Two sidecars with a mesh's identities and an HBONE tunnel between them, as ambient control planes lay it: TCP and
//! HTTP through `connect_originate` on one side, `connect_terminate` and `main_internal` on the other. Either side
//! can be the real Envoy.

use std::time::Duration;

use crate::harness::client::{get, Client};
use crate::harness::origin::Origin;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::{eventually, http2, DEADLINE};
use crate::peers;
use crate::tls::certs::Certs;

const TYPES: &str = "type.googleapis.com/envoy";

fn tls(own: &str, of: &str, options: &str) -> String {
    format!(
        r#"    transport_socket:
      name: tls
      typed_config:
        "@type": {TYPES}.extensions.transport_sockets.tls.v3.{of}
        {options}
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
          tls_certificates: [ {{ certificate_chain: {{ filename: "@certs@/{own}.pem" }}, private_key: {{ filename: "@certs@/{own}.key" }} }} ]
          validation_context: {{ trusted_ca: {{ filename: "@certs@/ca.pem" }}, match_typed_subject_alt_names: [ {{ san_type: URI, matcher: {{ prefix: "spiffe://mesh.test/" }} }} ] }}
"#
    )
}

const INTERNAL: &str = r#"name: envoy.transport_sockets.internal_upstream
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
          passthrough_metadata: [ { kind: { host: {} }, name: envoy.filters.listener.original_dst } ]
          transport_socket: { name: raw_buffer, typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }"#;

const HEAD: &str = r#"admin: { address: { socket_address: { address: 127.0.0.1, port_value: @port:admin@ } } }
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: { "@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener, buffer_size_kb: 64 }
static_resources:
  listeners:
"#;

const ORIGINAL_DST: &str = r#"    listener_filters:
    - { name: envoy.filters.listener.original_dst, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst } }
"#;

fn tcp_proxy(prefix: &str, options: &str) -> String {
    format!(
        "      - {{ name: tcp, typed_config: {{ \"@type\": {TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {prefix}, {options} }} }}\n"
    )
}

fn log(format: &str) -> String {
    format!(
        "access_log: [ {{ name: file, typed_config: {{ \"@type\": {TYPES}.extensions.access_loggers.file.v3.FileAccessLog, path: '@dir@/access.log', log_format: {{ text_format_source: {{ inline_string: \"{format}\\n\" }} }} }} }} ]"
    )
}

/// The client's sidecar: `tcp` and `web` in front of services whose endpoints are behind tunnels.
fn outbound(with: &str) -> String {
    let at = |name: &str| {
        format!("  - name: {name}\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:{name}@ }} }}\n")
    };
    let service = |name: &str, port: &str| {
        format!(
            r#"  - name: {name}
    connect_timeout: 2s
    load_assignment: {{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: connect_originate, endpoint_id: "127.0.0.1:{port}" }} }} }}, metadata: {{ filter_metadata: {{ envoy.filters.listener.original_dst: {{ local: "127.0.0.1:{port}" }}, envoy.transport_socket_match: {{ tunnel: http }} }} }} }} ] }} ] }}
    transport_socket_matches:
    - name: hbone
      match: {{ tunnel: http }}
      transport_socket:
        {INTERNAL}
    - {{ name: plain, match: {{}}, transport_socket: {{ name: raw, typed_config: {{ "@type": {TYPES}.extensions.transport_sockets.raw_buffer.v3.RawBuffer }} }} }}
"#
        )
    };
    let web = format!(
        "      - {{ name: http, typed_config: {{ \"@type\": {TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: web, http_filters: [ {{ name: router, typed_config: {{ \"@type\": {TYPES}.extensions.filters.http.router.v3.Router }} }} ], route_config: {{ virtual_hosts: [ {{ name: all, domains: ['*'], routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: web }} }} ] }} ] }} }} }}\n"
    );
    let chain = "    filter_chains:\n    - filters:\n";
    let options = http2::OPTIONS.lines().map(|line| format!("    {line}\n")).collect::<String>();
    [
        HEAD.to_owned(),
        at("tcp"),
        chain.to_owned(),
        tcp_proxy("tcp", "cluster: tcp"),
        at("web"),
        chain.to_owned(),
        web,
        "  - name: connect_originate\n    internal_listener: {}\n".to_owned(),
        ORIGINAL_DST.to_owned(),
        chain.to_owned(),
        tcp_proxy("connect_originate", &format!("cluster: connect_originate, tunneling_config: {{ hostname: '%DOWNSTREAM_LOCAL_ADDRESS%', headers_to_add: [ {{ header: {{ key: baggage, value: k8s.cluster.name=Kubernetes }} }} ] }}, {}", log("flags=%RESPONSE_FLAGS% peer=%UPSTREAM_PEER_URI_SAN% to=%DOWNSTREAM_LOCAL_ADDRESS% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON%"))),
        "  clusters:\n".to_owned(),
        service("tcp", "@origin@"),
        service("web", "@web@"),
        format!("  - name: connect_originate\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n    connect_timeout: 2s\n    cleanup_interval: 60s\n    original_dst_lb_config: {{ upstream_port_override: @hbone@ }}\n{options}"),
        tls(with, "UpstreamTlsContext", "sni: server.mesh.test"),
    ]
    .concat()
}

/// The server's sidecar: 15008, and the application behind it.
fn inbound() -> String {
    let state = r#"{ name: connect_authority, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, on_request_headers: [ { object_key: envoy.filters.listener.original_dst.local_ip, format_string: { text_format_source: { inline_string: "%REQ(:AUTHORITY)%" } }, shared_with_upstream: ONCE }, { object_key: envoy.filters.listener.original_dst.remote_ip, format_string: { text_format_source: { inline_string: "%DOWNSTREAM_REMOTE_ADDRESS%" } }, shared_with_upstream: ONCE }, { object_key: io.istio.peer_principal, factory_key: envoy.string, format_string: { text_format_source: { inline_string: "%DOWNSTREAM_PEER_URI_SAN%" } }, shared_with_upstream: ONCE } ] } }"#;
    let manager = format!(
        "      - {{ name: http, typed_config: {{ \"@type\": {TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: connect_terminate, stream_idle_timeout: 0s, http2_protocol_options: {{ allow_connect: true, max_concurrent_streams: 100 }}, upgrade_configs: [ {{ upgrade_type: CONNECT }} ], http_filters: [ {state}, {{ name: router, typed_config: {{ \"@type\": {TYPES}.extensions.filters.http.router.v3.Router }} }} ], route_config: {{ virtual_hosts: [ {{ name: default, domains: ['*'], routes: [ {{ match: {{ connect_matcher: {{}} }}, route: {{ cluster: main_internal, upgrade_configs: [ {{ upgrade_type: CONNECT, connect_config: {{}} }} ] }} }} ] }} ] }} }} }}\n"
    );
    [
        HEAD.to_owned(),
        "  - name: connect_terminate\n    address: { socket_address: { address: 127.0.0.1, port_value: @port:hbone@ } }\n    filter_chains:\n    - filters:\n".to_owned(),
        manager,
        tls("server", "DownstreamTlsContext", "require_client_certificate: true").replace("\n    ", "\n      ").replacen("    transport", "      transport", 1),
        "  - name: main_internal\n    internal_listener: {}\n".to_owned(),
        ORIGINAL_DST.to_owned(),
        "    filter_chains:\n    - filters:\n".to_owned(),
        tcp_proxy("main_internal", &format!("cluster: app, {}", log("principal=%FILTER_STATE(io.istio.peer_principal:PLAIN)% from=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% to=%DOWNSTREAM_LOCAL_ADDRESS%"))),
        "  clusters:\n".to_owned(),
        format!("  - name: main_internal\n    load_assignment: {{ cluster_name: main_internal, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: main_internal }} }} }} }} ] }} ] }}\n    transport_socket:\n        {INTERNAL}\n"),
        "  - name: app\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n    connect_timeout: 2s\n".to_owned(),
    ]
    .concat()
}

/// Sends `bytes`, ends the sending direction, and returns what comes back to the end.
async fn whole(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut client = Client::connect(port).await.expect("a connection");
    client.send(bytes).await.expect("sent");
    client.finish().await.expect("ended");
    let read = async { while let Ok(true) = client.reader.fill().await {} };
    tokio::time::timeout(DEADLINE * 2, read).await.expect("an end");
    client.reader.buffered.drain(..).collect()
}

async fn lines(proxy: &Proxy, count: usize) -> Vec<String> {
    let read = || proxy.lines("access.log", 0);
    let all = || std::future::ready(read().len() >= count);
    assert!(eventually(DEADLINE, all).await, "{count} lines: {:?}", read());
    read()
}

async fn through(client: Kind, server: Kind) {
    let certs = Certs::new();
    let origin = TcpOrigin::start().await;
    let web = Origin::start().await;
    let directory = certs.path().display().to_string();
    let inbound = inbound();
    let server = Proxy::start(Plan::new(server, &inbound, &[("certs", directory.clone())])).await;
    let values = [
        ("certs", directory),
        ("origin", origin.port.to_string()),
        ("web", web.port().to_string()),
        ("hbone", server.port("hbone").to_string()),
    ];
    let template = outbound("client");
    let client = Proxy::start(Plan::new(client, &template, &values)).await;
    let port = client.port("tcp");

    assert_eq!(whole(port, b"echo\nhello").await, b"hello");
    assert_eq!(origin.end().await, "5 bytes, then the end", "each end is carried on its own");
    let much = [b"count\n".to_vec(), vec![b'x'; 4 << 20]].concat();
    assert_eq!(whole(port, &much).await, b"4194304 bytes, then the end");
    assert_eq!(whole(port, b"source 4194304\n").await.len(), 4 << 20);
    assert_eq!(whole(port, b"early\n").await, b"bye");

    let page = get(client.port("web"), "/path").await.expect("an answer");
    assert_eq!(page.status(), 200);

    // Four TCP sessions have ended; HTTP keeps its connection.
    let seen = lines(&server, 4).await;
    let expected = format!("principal=spiffe://mesh.test/client from=127.0.0.1 to=127.0.0.1:{}", origin.port);
    assert!(seen[..4].iter().all(|line| *line == expected), "{seen:?}");
    let told = lines(&client, 4).await;
    let expected = format!("flags=- peer=spiffe://mesh.test/server to=127.0.0.1:{} failure=-", origin.port);
    assert!(told[..4].iter().all(|line| *line == expected), "{told:?}");
    let stats = client.stats().await;
    assert_eq!(
        stats.get("cluster.connect_originate.upstream_cx_http2_total"),
        Some(&1),
        "tunnels share a connection"
    );
    assert_eq!(stats.get("cluster.connect_originate.upstream_rq_total"), Some(&5));
    assert_eq!(stats.get("listener.envoy_internal_connect_originate.downstream_cx_total"), Some(&5));
    let left =
        || async { client.stats().await.get("cluster.connect_originate.upstream_rq_active") == Some(&1) };
    assert!(eventually(DEADLINE, left).await, "only HTTP's tunnel is open");
}

#[tokio::test]
async fn between_two_of_ours() {
    through(Kind::Outrigger, Kind::Outrigger).await;
}

#[tokio::test]
async fn to_envoy() {
    if peers::have(&["envoy"]) {
        through(Kind::Outrigger, Kind::Envoy).await;
    }
}

#[tokio::test]
async fn from_envoy() {
    if peers::have(&["envoy"]) {
        through(Kind::Envoy, Kind::Outrigger).await;
    }
}

#[tokio::test]
async fn who_is_not_of_the_mesh_gets_no_tunnel() {
    let certs = Certs::new();
    let directory = certs.path().display().to_string();
    let inbound = inbound();
    let server = Proxy::outrigger(&inbound, &[("certs", directory.clone())]).await;
    let values = [
        ("certs", directory),
        ("origin", "1".to_owned()),
        ("web", "1".to_owned()),
        ("hbone", server.port("hbone").to_string()),
    ];
    let template = outbound("wrong");
    let client = Proxy::outrigger(&template, &values).await;
    let mut stranger = Client::connect(client.port("tcp")).await.expect("a connection");
    assert!(stranger.closed(Duration::from_secs(5)).await);
    let told = lines(&client, 1).await;
    assert!(told[0].starts_with("flags=UF"), "{told:?}");
}
