//! Pods whose sidecars wait for somebody: a control plane, endpoints, a resolver; and ports that wait for no sidecar.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::TokioResolver;

use super::mesh::{Mesh, Pod};
use super::server::{Application, ECHO, OTHER, PLENTY};
use super::sidecar::{Plan, Sidecar};
use crate::discovery::mesh::{bootstrap, snapshot, ControlPlane};
use crate::harness::{eventually, DEADLINE};
use crate::tls::certs::Certs;

const CONTROL: u16 = 18000;
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Listens for captured connections from the start, and knows from a control plane in `at` where they go.
fn waits_for(at: &Pod) -> String {
    let listener = format!(
        "  listeners:\n  - name: outbound\n    address: {{ socket_address: {{ address: \"::\", port_value: 15001, ipv4_compat: true }} }}\n    filter_chains:\n    - filter_chain_match: {{ destination_port: {PLENTY} }}\n      filters:\n      - {{ name: h, typed_config: {{ \"@type\": {HTTP}, stat_prefix: out, route_config: {{ validate_clusters: false, virtual_hosts: [ {{ name: all, domains: [\"*\"], routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: web }} }} ] }} ] }}, http_filters: [ {{ name: r, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }} ] }} }}\n    - filters:\n      - {{ name: t, typed_config: {{ \"@type\": {TCP}, stat_prefix: bytes, cluster: echo }} }}\n    listener_filters: [ {{ name: o, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst }} }} ]\n"
    );
    let text = bootstrap(false).replace("@port:admin@", "15000").replace("@control@", &CONTROL.to_string());
    let control = format!("address: {}, port_value: {CONTROL}", at.v4);
    let text = text.replace(&format!("address: 127.0.0.1, port_value: {CONTROL}"), &control);
    let text = text.replace("  lds_config: { resource_api_version: V3, ads: {} }\n", "");
    text.replace("static_resources:\n", &format!("static_resources:\n{listener}"))
}

fn cluster(name: &str, port: u16, pods: &[&Pod]) -> [String; 2] {
    let endpoint = |pod: &&Pod| {
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {port} }} }} }} }}",
            pod.v4
        )
    };
    let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
    [
        format!("\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {name}\ntype: EDS\nconnect_timeout: 1s\neds_cluster_config: {{ eds_config: {{ resource_api_version: V3, ads: {{}} }} }}\n"),
        format!("\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: {name}\nendpoints: [ {{ lb_endpoints: [ {} ] }} ]\n", endpoints.join(", ")),
    ]
}

fn control_plane(pod: &Pod, resources: &[String]) -> ControlPlane {
    let listener = pod.listen(CONTROL);
    listener.set_nonblocking(true).expect("set");
    ControlPlane::over(tokio::net::TcpListener::from_std(listener).expect("a listener"), snapshot(resources))
}

/// A status line for a request from `pod`, which names a host that nobody has to resolve.
fn asks(pod: &Pod) -> String {
    let Ok(mut stream) = pod.connect(SocketAddr::from(([10, 77, 0, 200], PLENTY))) else {
        return "no connection".to_owned();
    };
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_wait_for_a_control_plane_and_services_for_their_endpoints() {
    let mesh = Mesh::new(3);
    let certs = Certs::new();
    let [client, server, control] = mesh.pods.as_slice() else { panic!("three pods") };
    let _application = Application::start(server);
    client.init(&[]);
    let text = waits_for(control);
    let _sidecar = Sidecar::spawn(client, &Plan { bootstrap: Some(&text), ..Plan::PLAIN }, &certs);
    // It listens, and waits for somebody who is not there.
    let state = || async {
        let page = client.any_page("/server_info").unwrap_or_default();
        page.contains("\"INITIALIZING\"")
    };
    assert!(eventually(DEADLINE, state).await);
    let mut early = client.connect(server.at(false, ECHO)).expect("a connection that is held");
    early.write_all(b"early\n").expect("sent");
    early.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    let nothing = early.read(&mut [0]).expect_err("nobody knows where it goes");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    let resources = |web: &[&Pod]| [cluster("echo", ECHO, &[server]), cluster("web", PLENTY, web)].concat();
    let plane = control_plane(control, &resources(&[server]));
    early.set_read_timeout(Some(DEADLINE)).expect("set");
    let mut got = [0; 6];
    early.read_exact(&mut got).expect("an answer after all");
    assert_eq!(&got, b"early\n");
    // Scaled to nothing, and back.
    let set = |web: &[&Pod]| plane.cache.set(crate::discovery::mesh::NODE, snapshot(&resources(web)));
    for (web, expected) in [
        (&[server][..], "HTTP/1.1 200 OK"),
        (&[], "HTTP/1.1 503 Service Unavailable"),
        (&[server], "HTTP/1.1 200 OK"),
    ] {
        set(web);
        let answers = || async { asks(client) == expected };
        assert!(eventually(DEADLINE, answers).await, "{} and not {expected}", asks(client));
    }
    assert!(plane.refused().is_empty());
}

/// They reach the application and the world when there is no sidecar, and only they.
#[test]
fn ports_that_are_left_out_need_no_sidecar() {
    let mesh = Mesh::new(2);
    let [pod, peer] = mesh.pods.as_slice() else { panic!("two pods") };
    let (_own, _theirs) = (Application::start(pod), Application::start(peer));
    pod.init(&["-o", "7005", "-d", "7005"]);
    for six in [false, true] {
        for (from, to) in [(pod, peer), (peer, pod)] {
            let mut stream = from.connect(to.at(six, OTHER)).expect("a connection");
            stream.write_all(b"x").expect("sent");
            stream.read_exact(&mut [0]).expect("an echo");
            let refused = from.connect(to.at(six, ECHO)).expect_err("there is no sidecar");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    }
}

/// Answers each question for an address (RFC 1035) with 192.0.2.7, until the test ends.
fn resolver(pod: &Pod) {
    let at = SocketAddr::from((pod.v4, 5300));
    let socket = pod.namespace.within(move || UdpSocket::bind(at).expect("a port"));
    socket.set_read_timeout(Some(DEADLINE * 2)).expect("set");
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((count, peer)) = socket.recv_from(&mut bytes) {
            // The name ends at its first zero; type and class follow.
            let end = bytes[12..count].iter().position(|byte| *byte == 0).expect("a name") + 12 + 5;
            let mut answer = bytes[..end].to_vec();
            // An answer, of one record, without the additional ones of the question.
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            socket.send_to(&answer, peer).expect("sent");
        }
    });
}

#[test]
fn names_are_resolved_by_way_of_the_sidecar() {
    let mesh = Mesh::new(2);
    let certs = Certs::new();
    let [client, server] = mesh.pods.as_slice() else { panic!("two pods") };
    resolver(server);
    let text = format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: 15000 }} }}\nstatic_resources:\n  listeners:\n  - name: dns\n    address: {{ socket_address: {{ protocol: UDP, address: 0.0.0.0, port_value: 15053 }} }}\n    listener_filters:\n    - name: envoy.filters.udp_listener.udp_proxy\n      typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig, stat_prefix: dns, cluster: resolver }}\n  clusters:\n  - name: resolver\n    type: STATIC\n    load_assignment: {{ cluster_name: resolver, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: 5300 }} }} }} }} ] }} ] }}\n",
        server.v4
    );
    let state = tempfile::tempdir().expect("a directory");
    let arguments = ["--state-dir", state.path().to_str().expect("a path")];
    let plan = Plan { bootstrap: Some(&text), arguments: &arguments, ..Plan::PLAIN };
    let sidecar = Sidecar::start(client, &plan, &certs);
    client.init(&["--redirect-dns", "--capture-all-dns"]);
    let resolve = |name: &'static str| {
        client.namespace.within(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            // Nobody has this address.
            let nowhere = Ipv4Addr::new(10, 77, 0, 222).into();
            let server = NameServerConfig::new(nowhere, true, vec![ConnectionConfig::udp()]);
            let config = ResolverConfig::from_parts(None, vec![], vec![server]);
            runtime.block_on(async move {
                let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
                builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4Only;
                let resolver = builder.build().expect("a resolver");
                let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
                Ok::<_, String>(found.iter().map(|ip| ip.to_string()).collect::<Vec<_>>())
            })
        })
    };
    assert_eq!(resolve("web.mesh.test."), Ok(vec!["192.0.2.7".to_owned()]));
    assert_eq!(client.counter("udp.dns.downstream_sess_total"), 1);
    // Also while the sidecar is replaced.
    let _successor = crate::upgrade::upgraded(&arguments);
    assert_eq!(resolve("other.mesh.test."), Ok(vec!["192.0.2.7".to_owned()]));
    let end = Instant::now() + DEADLINE;
    while client.counter("udp.dns.downstream_sess_total") != 1 {
        assert!(Instant::now() < end);
    }
    drop(sidecar);
}
