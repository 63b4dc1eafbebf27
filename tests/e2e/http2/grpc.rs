//! gRPC's own implementation (`grpcio` of PyPI, client and server) through the sidecar: `service.py` and `calls.py`
//! beside this file, and the example of `examples/grpc`.

use super::matrix::speaks;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::grpc_service::HTTP2;
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use crate::peers::servers::{python, Server};
use crate::tls::certs::Certs;
use crate::tls::config;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs a script to its end; what it printed.
async fn run(script: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(python().expect("a Python with grpcio"));
    command.arg(file(script)).args(arguments).kill_on_drop(true);
    let output =
        tokio::time::timeout(DEADLINE * 12, command.output()).await.expect("in time").expect("python");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

const ROUTES: &str = "- name: all
  domains: ['*']
  routes:
  - { match: { prefix: /test.Bytes/ }, route: { cluster: h2, timeout: 0s, max_stream_duration: { grpc_timeout_header_max: 0s } } }
  - { match: { prefix: /grpc.health.v1.Health/ }, route: { cluster: h2 } }
  - { match: { prefix: /nobody. }, route: { cluster: refused } }";

/// A sidecar with [`ROUTES`] whose cluster `h2` has these options.
fn template(options: &str) -> String {
    Bootstrap::new()
        .cluster("h2", &format!("{}\n{options}", speaks("h2")))
        .listener("grpc", "", ROUTES)
        .render()
}

/// All calls through `proxy`; its statistics when they are over.
async fn calls(proxy: &Proxy) -> BTreeMap<String, u64> {
    let (good, said) = run("tests/e2e/http2/calls.py", &[&proxy.port("grpc").to_string()]).await;
    println!("{said}");
    assert!(good, "{said}\n{}", proxy.output());
    assert_eq!(said.matches("ok ").count(), 16, "{said}");
    let stats = proxy.stats().await;
    assert_eq!(stats["http.grpc.downstream_cx_http2_total"], 1);
    assert_eq!(stats["cluster.h2.upstream_cx_http1_total"], 0);
    // All calls are over, the abandoned ones too.
    let over = || async {
        let stats = proxy.stats().await;
        stats["http.grpc.downstream_rq_active"] == 0 && stats["cluster.h2.upstream_rq_active"] == 0
    };
    assert!(eventually(DEADLINE, over).await, "calls are left");
    stats
}

/// The values of a template in front of this port.
fn towards(port: u16) -> Vec<(&'static str, String)> {
    ["h2", "origin:a", "origin:b"].map(|name| (name, port.to_string())).to_vec()
}

#[tokio::test]
async fn every_kind_of_call() {
    if python().is_none() {
        return;
    }
    let server = Server::python(&file("tests/e2e/http2/service.py")).await;
    let proxy = Proxy::outrigger(&template(""), &towards(server.port)).await;
    calls(&proxy).await;
}

#[tokio::test]
async fn every_kind_of_call_through_two_sidecars_with_mutual_tls() {
    if python().is_none() {
        return;
    }
    let server = Server::python(&file("tests/e2e/http2/service.py")).await;
    let certs = Certs::new();
    let options = HTTP2.trim_end();
    let route = "route: {cluster: service, timeout: 0s, max_stream_duration: {grpc_timeout_header_max: 0s}}";
    let chain = format!(
        "[{{filters: [{}], {}}}]",
        config::http("inner", "", route),
        config::downstream(
            &format!("alpn_protocols: [h2], {}", config::mesh()),
            "require_client_certificate: true,"
        )
    );
    let inner = config::Config::default().listener("inner", config::INSPECT, &chain).cluster(
        "service",
        server.port,
        "",
        &format!("{options},"),
    );
    let inner = Proxy::outrigger(&inner.template(), &inner.values(certs.path())).await;

    let socket = config::upstream(&format!("{} {}", config::own("client"), config::mesh()), "");
    let mut values = towards(inner.port("inner"));
    values.push(("certs", certs.path().display().to_string()));
    let outer = Proxy::outrigger(&template(&socket), &values).await;
    let stats = calls(&outer).await;
    assert!(stats["cluster.h2.ssl.handshake"] > 0, "TLS between the sidecars");
    let stats = inner.stats().await;
    assert!(stats["http.inner.downstream_cx_ssl_total"] > 0, "TLS between the sidecars");
    assert_eq!(stats["cluster.service.upstream_cx_http1_total"], 0);
}

#[tokio::test]
async fn the_example_says_hello() {
    if python().is_none() {
        return;
    }
    let server = Server::python(&file("examples/grpc/server.py")).await;
    let text = include_str!("../../../examples/grpc/sidecar.yaml");
    let listen = free_port();
    let mut template = text.to_string();
    let ports =
        [(9901, "@port:admin@".to_string()), (10000, listen.to_string()), (50051, server.port.to_string())];
    for (fixed, new) in ports {
        let fixed = format!("port_value: {fixed} ");
        assert!(template.contains(&fixed), "the example has no {fixed}");
        template = template.replace(&fixed, &format!("port_value: {new} "));
    }
    let proxy = Proxy::outrigger(&template, &[]).await;
    let address = format!("127.0.0.1:{listen}");
    let (good, said) = run("examples/grpc/client.py", &["Ada", &address]).await;
    assert!(good && said == "Hello, Ada!\n", "{said}");
    let line = "/helloworld.Greeter/SayHello HTTP/2 grpc-status=OK ";
    let logged = || async { proxy.output().contains(line) };
    assert!(eventually(DEADLINE, logged).await, "{}", proxy.output());
    drop(server);
    let (good, said) = run("examples/grpc/client.py", &["Ada", &address]).await;
    assert!(!good && said.starts_with("UNAVAILABLE: "), "{said}");
}

#[test]
fn the_example_is_accepted_by_both() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let example = file("examples/grpc/sidecar.yaml");
    let envoy =
        Kind::Envoy.command().args(["--mode", "validate", "-l", "error", "-c"]).arg(&example).output();
    let mut ours = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let ours = ours.args(["validate", "-c"]).arg(&example).output();
    for output in [envoy, ours] {
        let output = output.expect("a proxy");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
