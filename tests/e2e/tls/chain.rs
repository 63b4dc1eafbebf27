//! Sidecars in a row: Envoy and Outrigger on either side of mutual TLS, HTTP/1 and HTTP/2, and TCP through it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certs::Certs;
use super::config::{downstream, field, http, mesh, own, tcp, upstream, Config, INSPECT, OK};
use super::next_line;
use crate::harness::client::Client;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::DEADLINE;
use crate::peers;

const DETAILS: &str =
    "forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: {subject: true, uri: true},";

fn options(protocol: &str) -> String {
    format!(
        r#"typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {protocol}}}}},"#
    )
}

/// The server's sidecar.
fn inner() -> Config {
    let both = format!("alpn_protocols: [h2, http/1.1], {}", mesh());
    let old = format!("alpn_protocols: [http/1.1], {}", mesh());
    let required = "require_client_certificate: true,";
    let chain = |name: &str, common: &str| {
        format!("[{{filters: [{}], {}}}]", http(name, DETAILS, OK), downstream(common, required))
    };
    Config::default().listener("both", INSPECT, &chain("both", &both)).listener(
        "old",
        INSPECT,
        &chain("old", &old),
    )
}

/// The client's sidecar.
fn outer(both: u16, old: u16) -> Config {
    let socket = upstream(&format!("{} {}", own("client"), mesh()), "sni: server.mesh.test,");
    Config::default()
        .cluster("one", both, &socket, &options("explicit_http_config: {http_protocol_options: {}}"))
        .cluster("two", both, &socket, &options("explicit_http_config: {http2_protocol_options: {}}"))
        .cluster("auto-two", both, &socket, &options("auto_config: {}"))
        .cluster("auto-one", old, &socket, &options("auto_config: {}"))
}

async fn through(certs: &Certs, client_side: Kind, server_side: Kind) {
    let config = inner();
    let server = Proxy::start(Plan::new(server_side, &config.template(), &config.values(certs.path()))).await;
    let config = outer(server.port("both"), server.port("old"));
    let client = Proxy::start(Plan::new(client_side, &config.template(), &config.values(certs.path()))).await;
    let pair = format!("{client_side:?} to {server_side:?}");
    let ways = [
        ("one", "both", "HTTP/1.1"),
        ("two", "both", "HTTP/2"),
        ("auto-two", "both", "HTTP/2"),
        ("auto-one", "old", "HTTP/1.1"),
    ];
    let mut lines = [0; 2];
    for (cluster, listener, protocol) in ways {
        let mut user = Client::connect(client.port(cluster)).await.expect("connected");
        for round in 0..2 {
            let answer =
                user.exchange(b"GET / HTTP/1.1\r\nhost: server.mesh.test\r\n\r\n").await.expect("an answer");
            assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{pair} {cluster}");
            let place = &mut lines[usize::from(listener == "old")];
            let line = next_line(&server.file(&format!("{listener}.log")), *place).await;
            *place += 1;
            assert_eq!(field(&line, "protocol"), protocol, "{pair} {cluster} {round}: {line}");
            assert_eq!(field(&line, "uri"), "spiffe://mesh.test/client");
            assert_eq!(field(&line, "own_uri"), "spiffe://mesh.test/server");
            assert_eq!(field(&line, "sni"), "server.mesh.test");
            let xfcc = format!(
                "By=spiffe://mesh.test/server;Hash={};Subject=\"CN=client,O=Mesh\\, Inc\";URI=spiffe://mesh.test/client",
                field(&line, "sha256")
            );
            assert_eq!(field(&line, "xfcc"), xfcc, "{pair} {cluster}");
        }
        let line = next_line(&client.file(&format!("{cluster}.log")), 0).await;
        assert_eq!(field(&line, "upstream_protocol"), protocol, "{pair} {cluster}");
        assert_eq!(field(&line, "upstream_uri"), "spiffe://mesh.test/server");
        assert_eq!(field(&line, "upstream_own"), "spiffe://mesh.test/client");
    }
}

#[tokio::test]
async fn outrigger_to_outrigger() {
    through(&Certs::new(), Kind::Outrigger, Kind::Outrigger).await;
}

#[tokio::test]
async fn outrigger_to_envoy() {
    if peers::have(&["envoy"]) {
        through(&Certs::new(), Kind::Outrigger, Kind::Envoy).await;
    }
}

#[tokio::test]
async fn envoy_to_outrigger() {
    if peers::have(&["envoy"]) {
        through(&Certs::new(), Kind::Envoy, Kind::Outrigger).await;
    }
}

#[tokio::test]
async fn tcp_passes_through_tls_and_keeps_its_ends() {
    let certs = Certs::new();
    let origin = TcpOrigin::start().await;
    let chain = format!(
        "[{{filters: [{}], {}}}]",
        tcp("origin"),
        downstream(&mesh(), "require_client_certificate: true,")
    );
    let config = Config::default().listener("inner", "[]", &chain).cluster("origin", origin.port, "", "");
    let server = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    let socket = upstream(&format!("{} {}", own("client"), mesh()), "");
    let config = Config::default().cluster("inner", server.port("inner"), &socket, "").listener(
        "outer",
        "[]",
        &format!("[{{filters: [{}]}}]", tcp("inner")),
    );
    let client = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
    let user = TcpStream::connect(("127.0.0.1", client.port("outer"))).await.expect("connected");
    let (mut read, mut write) = user.into_split();
    let mut echoed = Vec::new();
    let send = async {
        write.write_all(&bytes).await.expect("sent");
        write.shutdown().await.expect("ended");
    };
    let (_, got) = tokio::join!(send, tokio::time::timeout(DEADLINE * 2, read.read_to_end(&mut echoed)));
    got.expect("in time").expect("no reset");
    assert!(echoed == bytes, "{} of {} bytes came back", echoed.len(), bytes.len());
    let line = next_line(&client.file("tcp.log"), 0).await;
    assert_eq!((field(&line, "flags"), field(&line, "upstream_uri")), ("-", "spiffe://mesh.test/server"));
    let line = next_line(&server.file("tcp.log"), 0).await;
    assert_eq!((field(&line, "flags"), field(&line, "uri")), ("-", "spiffe://mesh.test/client"));
}
