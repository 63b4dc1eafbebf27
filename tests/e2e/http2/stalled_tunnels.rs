//! A tunnel whose reader does not read stalls alone, even if what waits for it are very many small messages: other
//! streams of the connections that carry it go on, and it goes on itself as soon as there is room.
//!
//! HTTP/2 comes in, and leaves through an internal listener in a tunnel of its own for each request or CONNECT.

use super::matrix::speaks;
use super::raw::*;
use crate::differential::bootstrap::Bootstrap;
use crate::harness::proxy::Proxy;
use crate::harness::DEADLINE;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// Many more than the library keeps of such frames for a connection: what is on the way takes its share.
const MESSAGES: usize = 120_000;
const MESSAGE: &[u8] = b"0123456789";
const ALL: usize = MESSAGES * MESSAGE.len();
/// `SETTINGS_INITIAL_WINDOW_SIZE`, and its default.
const WINDOW: u16 = 4;
const OPEN: u32 = 65_535;

/// Opens tunnels. Where it has room for what they carry, it answers HTTP/1.1 in them: the first with all messages, others
/// with `ok`. Where it has none until it is told to, it tells how much came.
struct Origin {
    port: u16,
    /// The proxy has all messages.
    sent: Arc<Notify>,
    open: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    async fn start(window: u32) -> Origin {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (sent, open): (Arc<Notify>, Arc<Notify>) = Default::default();
        let told = (sent.clone(), open.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(Raw::of(stream), window, told.0.clone(), told.1.clone()));
            }
        });
        Origin { port, sent, open, task }
    }
}

fn messages(stream: u32) -> Vec<u8> {
    frame(DATA, 0, stream, MESSAGE).repeat(MESSAGES)
}

fn room() -> u32 {
    u32::try_from(ALL).expect("a window")
}

async fn serve(mut raw: Raw, window: u32, sent: Arc<Notify>, open: Arc<Notify>) -> Option<()> {
    raw.accept(&setting(WINDOW, window)).await.ok()?;
    let mut received = 0;
    loop {
        let got = tokio::select! {
            got = raw.next(DEADLINE * 6) => got?,
            () = open.notified() => {
                raw.send(&[window_update(0, room()), window_update(1, room())].concat()).await.ok()?;
                continue;
            }
        };
        let body = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let answer = match got.kind {
            PING if got.flags & ACK != 0 => {
                sent.notify_one();
                continue;
            }
            PING => frame(PING, ACK, 0, &got.payload),
            HEADERS => frame(HEADERS, END_HEADERS, got.stream, &block(&[(b":status", b"200")])),
            DATA if window == 0 => {
                received += got.payload.len();
                if !got.ends() {
                    continue;
                }
                frame(DATA, END_STREAM, got.stream, received.to_string().as_bytes())
            }
            DATA if got.payload.is_empty() => continue,
            DATA if got.stream == 1 => {
                [frame(DATA, 0, 1, body(ALL).as_bytes()), messages(1), ping()].concat()
            }
            DATA => frame(DATA, 0, got.stream, (body(2) + "ok").as_bytes()),
            _ => continue,
        };
        raw.send(&answer).await.ok()?;
    }
}

async fn start(origin: &Origin) -> Proxy {
    let template = Bootstrap::new()
        .cluster("h2", &speaks("h2"))
        .cluster(
            "inner",
            "load_assignment: { cluster_name: inner, endpoints: [ { lb_endpoints: [ { endpoint: { address: { \
             envoy_internal_address: { server_listener_name: originate } } } } ] } ] }",
        )
        .listener(
            "main",
            "codec_type: HTTP2\nhttp2_protocol_options: { allow_connect: true }",
            "- name: all
  domains: ['*']
  routes:
  - { match: { connect_matcher: {} }, route: { cluster: inner, upgrade_configs: [ { upgrade_type: CONNECT, connect_config: {} } ] } }
  - { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }
  - { match: { prefix: / }, route: { cluster: inner } }",
        )
        .more(
            "bootstrap_extensions:\n- name: envoy.bootstrap.internal_listener\n  typed_config: { \"@type\": \
             type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener }",
        )
        .render();
    let originate = "  listeners:
  - name: originate
    internal_listener: {}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: originate
          cluster: h2
          tunneling_config: { hostname: 'far.test:443' }
";
    let template = template.replacen("  listeners:\n", originate, 1);
    let values = ["h2", "origin:a", "origin:b"].map(|name| (name, origin.port.to_string()));
    Proxy::outrigger(&template, &values).await
}

#[tokio::test]
async fn small_messages_that_nobody_reads_stall_the_tunnel_they_come_from() {
    let origin = Origin::start(OPEN).await;
    let proxy = start(&origin).await;
    // No room for bodies, and no table for heads.
    let mut slow = Raw::with(proxy.port("main"), &[setting(1, 0), setting(WINDOW, 0)].concat()).await;
    slow.send(&get(1, "/")).await.expect("sent");
    let all = tokio::time::timeout(DEADLINE, origin.sent.notified()).await;
    assert!(all.is_ok(), "the origin cannot send everything");
    let mut other = Raw::open(proxy.port("main")).await;
    assert_eq!(other.get(1, "/").await, Outcome::Status(200, 2));
    slow.send(&[window_update(0, room()), window_update(1, room())].concat()).await.expect("sent");
    assert_eq!(slow.outcome(1, DEADLINE).await, Outcome::Status(200, ALL));
    assert_eq!(proxy.stats().await["cluster.h2.upstream_cx_total"], 1, "both were on one connection");
}

#[tokio::test]
async fn small_messages_that_nobody_takes_stall_the_tunnel_they_go_into() {
    let origin = Origin::start(0).await;
    let proxy = start(&origin).await;
    let mut client = Raw::open(proxy.port("main")).await;
    // The connection's window opens wide only with this.
    while client.next(DEADLINE).await.expect("a frame").kind != WINDOW_UPDATE {}
    let connect = block(&[(b":method", b"CONNECT"), (b":authority", b"t.test:443")]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &connect)).await.expect("sent");
    client.send(&[messages(1), ping()].concat()).await.expect("sent");
    loop {
        let frame = client.next(DEADLINE).await.expect("the proxy takes everything");
        assert_ne!(frame.kind, GOAWAY, "{}", frame.number(4));
        if frame.kind == PING && frame.flags & ACK != 0 {
            break;
        }
    }
    assert_eq!(client.get(3, "/direct").await, Outcome::Status(200, 2));
    client.send(&frame(DATA, END_STREAM, 1, b"")).await.expect("the connection is open");
    origin.open.notify_one();
    let told = client.outcome(1, DEADLINE).await;
    assert!(matches!(told, Outcome::Status(_, length) if length == ALL.to_string().len()), "{told:?}");
}
