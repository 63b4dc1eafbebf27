//! A stream whose receiver has no room stalls alone, even if what waits for it are very many small messages: the other
//! streams of its connection go on, and it goes on itself as soon as there is room (RFC 9113 §5.2.2).

use super::matrix::{hosts, speaks};
use super::raw::*;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::ext_proc::processor;
use crate::differential::ext_proc_duplex::SWARM;
use crate::harness::proxy::Proxy;
use crate::harness::{origin as http1, settled, DEADLINE};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// More than the library keeps of such frames for a connection.
const MESSAGES: usize = 60_000;
const MESSAGE: &[u8] = b"0123456789";
const ALL: usize = MESSAGES * MESSAGE.len();
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
const WINDOW: u16 = 4;

/// Nothing goes on for a while.
const LATE: &str = "- name: fault
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    delay: { fixed_delay: 1s, percentage: { numerator: 100 } }";

/// Answers a GET for its first stream with all messages and others with `ok`; a POST, when it is there, with its
/// length. Its windows for bodies open when it is told to.
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
    async fn start() -> Origin {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (sent, open): (Arc<Notify>, Arc<Notify>) = Default::default();
        let told = (sent.clone(), open.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(Raw::of(stream), told.0.clone(), told.1.clone()));
            }
        });
        Origin { port, sent, open, task }
    }
}

fn messages(stream: u32) -> Vec<u8> {
    frame(DATA, 0, stream, MESSAGE).repeat(MESSAGES)
}

fn answer(stream: u32, body: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &block(&[(b":status", b"200")]));
    [head, frame(DATA, END_STREAM, stream, body)].concat()
}

async fn serve(mut raw: Raw, sent: Arc<Notify>, open: Arc<Notify>) -> Option<()> {
    raw.accept(&setting(WINDOW, 0)).await.ok()?;
    let mut received = 0;
    loop {
        let frame = tokio::select! {
            frame = raw.next(DEADLINE * 6) => frame?,
            () = open.notified() => {
                let room = u32::try_from(ALL).expect("a window");
                raw.send(&[window_update(0, room), window_update(1, room)].concat()).await.ok()?;
                continue;
            }
        };
        match frame.kind {
            PING if frame.flags & ACK != 0 => sent.notify_one(),
            PING => raw.send(&super::raw::frame(PING, ACK, 0, &frame.payload)).await.ok()?,
            HEADERS if frame.ends() && frame.stream == 1 => {
                let head = super::raw::frame(HEADERS, END_HEADERS, 1, &block(&[(b":status", b"200")]));
                raw.send(&[head, messages(1), ping()].concat()).await.ok()?;
                // The end, when all else is there.
                raw.send(&super::raw::frame(DATA, END_STREAM, 1, b"")).await.ok()?;
            }
            HEADERS if frame.ends() => raw.send(&answer(frame.stream, b"ok")).await.ok()?,
            DATA => {
                received += frame.payload.len();
                if frame.ends() {
                    raw.send(&answer(frame.stream, received.to_string().as_bytes())).await.ok()?;
                }
            }
            _ => {}
        }
    }
}

async fn start(origin: &Origin) -> Proxy {
    let template = Bootstrap::new()
        .cluster("h1", &speaks("h1"))
        .cluster("h2", &speaks("h2"))
        .listener("main", "codec_type: HTTP2", &hosts("h2"))
        .listener("late", "codec_type: HTTP2", &hosts("h2"))
        .filters("late", LATE)
        .render();
    let values = ["h1", "h2", "origin:a", "origin:b"].map(|name| (name, origin.port.to_string()));
    Proxy::outrigger(&template, &values).await
}

#[tokio::test]
async fn small_messages_that_nobody_reads_stall_one_response() {
    let origin = Origin::start().await;
    let proxy = start(&origin).await;
    // No room for bodies, and no table for heads.
    let mut slow = Raw::with(proxy.port("main"), &[setting(1, 0), setting(WINDOW, 0)].concat()).await;
    slow.send(&get(1, "/")).await.expect("sent");
    let all = tokio::time::timeout(DEADLINE, origin.sent.notified()).await;
    assert!(all.is_ok(), "the origin cannot send everything");
    let mut other = Raw::open(proxy.port("main")).await;
    assert_eq!(other.get(1, "/").await, Outcome::Status(200, 2));
    let room = u32::try_from(ALL).expect("a window");
    slow.send(&[window_update(0, room), window_update(1, room)].concat()).await.expect("sent");
    assert_eq!(slow.outcome(1, DEADLINE).await, Outcome::Status(200, ALL));
    assert_eq!(proxy.stats().await["cluster.h2.upstream_cx_total"], 1, "both were on one connection");
}

/// A filter that asks the processor of this cluster.
fn asks(cluster: &str, options: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";
    let service = format!("grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }} }}");
    format!("- {{ name: proc, typed_config: {{ \"@type\": {kind}, {service}, {options} }} }}")
}

/// A response whose head a processor has yet to say something of.
#[tokio::test]
async fn small_messages_come_while_a_processor_is_asked() {
    let (processor, origin) = (processor().await, Origin::start().await);
    let template = Bootstrap::new()
        .cluster("h1", &speaks("h1"))
        .cluster("h2", &speaks("h2"))
        .cluster("proc", &speaks("h2").replace("@h2@", "@proc@"))
        .listener("main", "codec_type: HTTP2", &hosts("h2"))
        .filters("main", &asks("proc", "failure_mode_allow: true, message_timeout: 1s"))
        .render();
    let values = [("proc", processor)]
        .into_iter()
        .chain(["h1", "h2", "origin:a", "origin:b"].map(|name| (name, origin.port)));
    let values: Vec<_> = values.map(|(name, port)| (name, port.to_string())).collect();
    let proxy = Proxy::outrigger(&template, &values).await;
    let mut client = Raw::open(proxy.port("main")).await;
    let room = u32::try_from(ALL).expect("a window");
    let request = [get(1, "/slow-response"), window_update(0, room), window_update(1, room)].concat();
    client.send(&request).await.expect("sent");
    assert_eq!(client.outcome(1, DEADLINE).await, Outcome::Status(200, ALL));
}

/// What a processor says of a response that its client does not read stalls that response; others that it is asked about
/// on the same connection go on.
#[tokio::test]
async fn small_messages_of_a_processor_stall_one_response() {
    let (processor, origin) = (processor().await, http1::Origin::start().await);
    let mode = "processing_mode: { response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND }";
    let template = Bootstrap::new()
        .cluster("h2", &speaks("h2"))
        .plain("main", "codec_type: HTTP2")
        .filters("main", &asks("h2", mode))
        .render();
    let values = [("h2", processor), ("origin:a", origin.port()), ("origin:b", origin.port())];
    let proxy = Proxy::outrigger(&template, &values.map(|(name, port)| (name, port.to_string()))).await;
    let mut slow = Raw::with(proxy.port("main"), &[setting(1, 0), setting(WINDOW, 0)].concat()).await;
    slow.send(&get(1, "/swarm")).await.expect("sent");
    settled(|| proxy.resident()).await;
    let mut other = Raw::open(proxy.port("main")).await;
    assert!(matches!(other.get(1, "/x").await, Outcome::Status(200, _)));
    let all = SWARM * MESSAGE.len();
    let room = u32::try_from(all).expect("a window");
    slow.send(&[window_update(0, room), window_update(1, room)].concat()).await.expect("sent");
    assert_eq!(slow.outcome(1, DEADLINE).await, Outcome::Status(200, all));
    assert_eq!(proxy.stats().await["cluster.h2.upstream_cx_total"], 1, "all calls were on one connection");
}

#[tokio::test]
async fn small_messages_that_nobody_takes_stall_one_request() {
    takes_all("main").await;
}

/// The same while the request has yet to go anywhere.
#[tokio::test]
async fn small_messages_come_while_a_filter_waits() {
    takes_all("late").await;
}

async fn takes_all(listener: &str) {
    let origin = Origin::start().await;
    let proxy = start(&origin).await;
    let mut client = Raw::open(proxy.port(listener)).await;
    // The connection's window opens wide only with this.
    while client.next(DEADLINE).await.expect("a frame").kind != WINDOW_UPDATE {}
    client.send(&[post(1, "/"), messages(1), ping()].concat()).await.expect("sent");
    loop {
        let frame = client.next(DEADLINE).await.expect("the proxy takes everything");
        assert_ne!(frame.kind, GOAWAY, "{}", frame.number(4));
        if frame.kind == PING && frame.flags & ACK != 0 {
            break;
        }
    }
    client.send(&frame(DATA, END_STREAM, 1, b"")).await.expect("the connection is open");
    origin.open.notify_one();
    assert_eq!(client.outcome(1, DEADLINE).await, Outcome::Status(200, ALL.to_string().len()));
}
