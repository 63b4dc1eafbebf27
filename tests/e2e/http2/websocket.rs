//! A thousand WebSockets over both protocols on either side stay open, and carry messages, while the listener and the
//! route table under them are replaced by a control plane.

use super::origin::{send, Act, Origin, Plan};
use crate::differential::bootstrap::endpoints;
use crate::discovery::clients::{ask, named, proxy};
use crate::discovery::mesh::{ControlPlane, Mesh};
use crate::harness::client::{get, Client};
use crate::harness::ports::free_port;
use crate::harness::{alone, eventually, DEADLINE};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use std::net::Ipv4Addr;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Sockets of each protocol of the client; half of them to an origin of each protocol.
const EACH: usize = 500;
/// Streams on a connection.
const TOGETHER: usize = 50;

enum Socket {
    Http1(Box<Client>),
    Http2(SendStream<Bytes>, RecvStream),
}

impl Socket {
    /// Sends a message and reads it back.
    async fn echo(&mut self, message: &str) {
        let wanted = message.len();
        match self {
            Socket::Http1(client) => {
                client.send(message.as_bytes()).await.expect("the socket is open");
                while client.reader.buffered.len() < wanted {
                    assert!(client.reader.fill().await.expect("the socket is open"), "the socket was closed");
                }
                assert_eq!(&std::mem::take(&mut client.reader.buffered)[..], message.as_bytes());
            }
            Socket::Http2(stream, body) => {
                let piece = Bytes::copy_from_slice(message.as_bytes());
                send(stream, piece, false).await.expect("the stream is open");
                let mut back = Vec::new();
                while back.len() < wanted {
                    let data = body.data().await.expect("the stream is open").expect("the stream is open");
                    let _ = body.flow_control().release_capacity(data.len());
                    back.extend_from_slice(&data);
                }
                assert_eq!(&back[..], message.as_bytes());
            }
        }
    }
}

async fn over_http1(port: u16, path: &str) -> Socket {
    let mut client = Client::connect(port).await.expect("a connection");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: t.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let answer = client.exchange(request.as_bytes()).await.unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(answer.status(), 101, "{path}: {}", answer.text());
    Socket::Http1(Box::new(client))
}

async fn connection(port: u16, tasks: &mut JoinSet<()>) -> SendRequest<Bytes> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("a connection");
    let (requests, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let offered = || std::future::ready(requests.is_extended_connect_protocol_enabled());
    assert!(eventually(DEADLINE, offered).await, "extended CONNECT is not offered");
    requests
}

async fn over_http2(requests: &SendRequest<Bytes>, path: &str) -> Socket {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = format!("http://t.test{path}").parse().expect("a URI");
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let mut requests = requests.clone().ready().await.expect("room for a stream");
    let (response, stream) = requests.send_request(request, false).expect("a stream");
    let response = response.await.unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(response.status(), 200, "{path}");
    Socket::Http2(stream, response.into_body())
}

#[tokio::test]
async fn a_thousand_sockets_outlive_changes_of_listener_and_routes() {
    let _alone = alone().await;
    let origin = Origin::start().await;
    origin.plan(Plan { at_head: false, after: 0, interim: vec![], act: Act::Tunnel });
    let web = named("web").await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[web.port()]);
    let routes = |more: &str| {
        let to = |prefix: &str, cluster: &str| (prefix.to_string(), vec![(cluster.to_string(), 1)]);
        vec![to("/one", "one"), to("/two", "two"), to(more, "web"), to("/", "web")]
    };
    mesh.tables.insert("main".into(), routes("/before"));
    mesh.services.insert("one".into(), vec![origin.http1]);
    mesh.services.insert("two".into(), vec![origin.http2]);
    let http2 = super::matrix::speaks("h2");
    let http2 = http2.strip_prefix(&endpoints(&["@h2@"])).expect("endpoints first").trim_start().to_string();
    mesh.cluster_extra.insert("two".into(), http2);
    mesh.manager_extra = "      http2_protocol_options: { allow_connect: true }".into();
    let control = ControlPlane::start(&mesh).await;
    let proxy = proxy(true, &control).await;
    assert_eq!(ask(port).await.as_deref(), Ok("web"));

    let mut tasks = JoinSet::new();
    let mut sockets = Vec::new();
    let path = |nth: usize| if nth.is_multiple_of(2) { "/one" } else { "/two" };
    for nth in 0..EACH {
        sockets.push(over_http1(port, path(nth)).await);
    }
    for _ in 0..EACH / TOGETHER {
        let requests = connection(port, &mut tasks).await;
        for nth in 0..TOGETHER {
            sockets.push(over_http2(&requests, path(nth)).await);
        }
    }
    for (nth, socket) in sockets.iter_mut().enumerate() {
        socket.echo(&format!("before {nth}")).await;
    }
    let stats = proxy.stats().await;
    assert_eq!(stats["http.main.downstream_cx_upgrades_active"], 2 * EACH as u64);
    assert_eq!(stats["cluster.one.upstream_rq_active"], EACH as u64);
    assert_eq!(stats["cluster.two.upstream_rq_active"], EACH as u64);

    // The listener first, then the table, then both.
    mesh.manager_extra += "\n      server_name: changed";
    control.set(&mesh);
    let changed = |name: &'static str| async move {
        get(port, "/").await.is_ok_and(|answer| answer.all("server").any(|server| server == name))
    };
    assert!(eventually(DEADLINE, || changed("changed")).await, "the listener did not change");
    sockets[0].echo("between").await;
    mesh.tables.insert("main".into(), routes("/after"));
    control.set(&mesh);
    mesh.tables.insert("main".into(), vec![("/".into(), vec![("web".into(), 1)])]);
    mesh.manager_extra = mesh.manager_extra.replace("changed", "again");
    control.set(&mesh);
    assert!(eventually(DEADLINE, || changed("again")).await, "the listener did not change again");
    let gone = || async { get(port, "/one").await.is_ok_and(|answer| answer.text() == "web") };
    assert!(eventually(DEADLINE, gone).await, "the routes did not change");

    for (nth, socket) in sockets.iter_mut().enumerate() {
        socket.echo(&format!("after {nth}, {}", "x".repeat(nth))).await;
    }
    let active = proxy.stats().await["http.main.downstream_cx_upgrades_active"];
    assert_eq!(active, 2 * EACH as u64);
    drop(sockets);
    drop(tasks);
    let over = || async { proxy.stats().await.get("http.main.downstream_cx_upgrades_active") == Some(&0) };
    assert!(eventually(DEADLINE, over).await, "sockets are left");
    assert_eq!(control.refused(), [], "{}", proxy.output());
}
