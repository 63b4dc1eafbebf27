//! Constant change under load: nothing fails, and what was open stays open.

use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::clients::{named, proxy, Load};
use super::mesh::{ControlPlane, Mesh};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin, Then};
use crate::harness::ports::free_port;
use crate::harness::{alone, http2, DEADLINE};

const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: t.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// How many seconds the churn lasts: `OUTRIGGER_CHURN_SECONDS`, else few.
fn seconds() -> u64 {
    std::env::var("OUTRIGGER_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// A server of gRPC's form: its calls get back each message as it comes.
async fn echo(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let mut back = respond.send_response(head, false).expect("the head is taken");
    let mut body = request.into_body();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        back.send_data(piece, false).expect("the piece is taken");
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = back.send_trailers(trailers);
}

/// A call of gRPC's form that stays open.
struct Call {
    send: h2::SendStream<Bytes>,
    body: h2::RecvStream,
}

impl Call {
    async fn open(port: u16) -> Call {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = http::Request::builder()
            .method("POST")
            .uri("http://t.test/test.Echo/Both")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).expect("a head");
        let (response, send) = client.send_request(request, false).expect("a stream");
        let response = tokio::time::timeout(DEADLINE, response).await.expect("in time").expect("a response");
        assert_eq!(response.status(), 200);
        Call { send, body: response.into_body() }
    }

    async fn echo(&mut self, text: &[u8]) {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(text.len()).expect("a short text").to_be_bytes());
        message.extend_from_slice(text);
        self.send.send_data(Bytes::from(message.clone()), false).expect("the stream is open");
        let mut back = Vec::new();
        while back.len() < message.len() {
            let piece = tokio::time::timeout(DEADLINE, self.body.data()).await.expect("in time");
            let piece = piece.expect("the stream is open").expect("the stream is whole");
            let _ = self.body.flow_control().release_capacity(piece.len());
            back.extend_from_slice(&piece);
        }
        assert_eq!(back, message);
    }

    async fn end(mut self) {
        self.send.send_data(Bytes::new(), true).expect("the stream is open");
        while let Some(piece) = self.body.data().await {
            piece.expect("the stream is whole");
        }
        let trailers = self.body.trailers().await.expect("the stream is whole").expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
    }
}

#[tokio::test]
async fn constant_change_loses_no_request_and_cuts_no_stream() {
    let _alone = alone().await;
    let backends = [named("a").await, named("b").await, named("c").await];
    let ports: Vec<u16> = backends.iter().map(Origin::port).collect();
    let sockets = Origin::with(false, |_| {
        Answer::raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .at_head()
            .then(Then::Echo)
    })
    .await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &ports);
    mesh.services.insert("sockets".into(), vec![sockets.port()]);
    mesh.services.insert("streams".into(), vec![http2::serve(echo).await]);
    mesh.cluster_extra.insert("streams".into(), http2::OPTIONS.into());
    let tables = [
        vec![
            ("/ws".into(), vec![("sockets".into(), 1)]),
            ("/test.Echo/".into(), vec![("streams".into(), 1)]),
            ("/".into(), vec![("web".into(), 1)]),
        ],
        vec![
            ("/ws".into(), vec![("sockets".into(), 1)]),
            ("/test.Echo/".into(), vec![("streams".into(), 1)]),
            ("/".into(), vec![("web".into(), 9), ("web2".into(), 1)]),
        ],
    ];
    mesh.services.insert("web2".into(), ports.clone());
    mesh.tables.insert("main".into(), tables[0].clone());
    let control = ControlPlane::start(&mesh).await;
    let proxy = proxy(true, &control).await;
    let mut socket = Client::connect(port).await.expect("a connection");
    assert_eq!(socket.exchange(UPGRADE).await.expect("an answer").status(), 101);

    let mut call = Call::open(port).await;

    let local = tokio::task::LocalSet::new();
    let load = Load::start(port, 8, &local);
    let script = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        for step in 1..=seconds() * 100 {
            tick.tick().await;
            // A different choice of endpoints each time.
            let chosen: Vec<u16> =
                (0..3).filter(|bit| (step % 7 + 1) >> bit & 1 == 1).map(|bit| ports[bit as usize]).collect();
            mesh.services.insert("web".into(), chosen);
            if step % 100 == 0 {
                mesh.tables.insert("main".into(), tables[(step / 100 % 2) as usize].clone());
            }
            if step % 250 == 0 {
                mesh.manager_extra = format!("      server_name: step{step}");
            }
            control.set(&mesh);
            if step % 50 == 0 {
                let message = format!("message {step}");
                socket.send(message.as_bytes()).await.expect("the socket is open");
                while socket.reader.buffered.len() < message.len() {
                    assert!(socket.reader.fill().await.expect("the socket is open"), "the socket was closed");
                }
                assert_eq!(&socket.reader.buffered[..], message.as_bytes());
                socket.reader.buffered.clear();
                call.echo(message.as_bytes()).await;
            }
        }
        call.end().await;
        load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
    assert_eq!(*load.lost.borrow(), Vec::<String>::new(), "of {} requests", load.good.get());
    assert_eq!(control.refused(), []);
    let stats = proxy.stats().await;
    let updates = stats["cluster.web.update_success"];
    assert!(updates >= seconds() * 20, "only {updates} updates of endpoints arrived");
    assert!(stats["listener_manager.lds.update_success"] > seconds() * 100 / 250);
    eprintln!("{} requests, {updates} updates of endpoints", load.good.get());
}
