//! Pods whose sidecars wait for somebody: a control plane, endpoints; and ports that wait for no sidecar.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use super::mesh::{Mesh, Pod};
use super::server::{Application, ECHO, OTHER, PLENTY};
use super::sidecar::{Plan, Sidecar};
use super::user::{self, as_root};
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
        format!("\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {name}\ntype: EDS\nconnect_timeout: 1s\nupstream_bind_config: {{ {} }}\neds_cluster_config: {{ eds_config: {{ resource_api_version: V3, ads: {{}} }} }}\n", user::socket_options()),
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
    as_root!();
    let mesh = Mesh::new(3);
    let certs = Certs::new();
    let [client, server, control] = mesh.pods.as_slice() else { panic!("three pods") };
    let _application = Application::start(server);
    client.init(&["-o", &CONTROL.to_string()]);
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
    as_root!();
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
