//! Servers that open tunnels (CONNECT, or POST with raw bytes) to a TCP server, over HTTP/2 and HTTP/1.1, and keep the
//! heads of the requests. What the authority begins with is what they do: `refuse.` is answered with 403, `over.` with
//! a 200 that ends the stream, `cut.` is broken off before an answer; anything else leads to the TCP server.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::http2;

/// Running servers.
pub struct TunnelOrigin {
    /// The port that speaks HTTP/2.
    pub http2: u16,
    /// The port that speaks HTTP/1.1.
    pub http1: u16,
    seen: Seen,
}

type Seen = Arc<Mutex<Vec<String>>>;

impl TunnelOrigin {
    /// Starts them in front of the TCP server at `target`.
    pub async fn start(target: u16) -> TunnelOrigin {
        let seen = Seen::default();
        let shared = seen.clone();
        let http2 = http2::serve(move |request, respond| {
            let seen = shared.clone();
            async move { on_stream(request, respond, target, seen).await }
        })
        .await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let http1 = listener.local_addr().expect("an address").port();
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(on_connection(stream, target, shared.clone()));
            }
        });
        TunnelOrigin { http2, http1, seen }
    }

    /// The heads that came since it was last asked.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().expect("heads"))
    }
}

async fn on_stream(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, target: u16, seen: Seen) {
    let (parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut head = format!("HTTP/2 {} {authority}", parts.method);
    if parts.method != http::Method::CONNECT {
        head += &format!(" {} {}", parts.uri.scheme_str().unwrap_or("-"), parts.uri.path());
    }
    for (name, value) in &parts.headers {
        head += &format!(" {name}={}", value.to_str().unwrap_or("?"));
    }
    seen.lock().expect("heads").push(head);
    let response = |status: u16| Response::builder().status(status).body(()).expect("a response");
    if authority.starts_with("refuse.") {
        let _ = respond.send_response(response(403), true);
    } else if authority.starts_with("over.") {
        let _ = respond.send_response(response(200), true);
    } else if authority.starts_with("cut.") {
        respond.send_reset(Reason::CANCEL);
    } else if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await {
        let (from, to) = stream.into_split();
        let Ok(sender) = respond.send_response(response(200), false) else { return };
        let up = tokio::spawn(upload(body, to));
        download(from, sender).await;
        let _ = up.await;
    }
}

/// From the stream to the server; a stream that is broken off is one there too.
async fn upload(mut body: RecvStream, mut to: OwnedWriteHalf) {
    while let Some(data) = body.data().await {
        let Ok(data) = data else {
            let _ = socket2::SockRef::from(to.as_ref() as &TcpStream).set_linger(Some(Duration::ZERO));
            return;
        };
        let _ = body.flow_control().release_capacity(data.len());
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// And back.
async fn download(mut from: OwnedReadHalf, mut sender: SendStream<Bytes>) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        match from.read(&mut bytes).await {
            Ok(0) => {
                let _ = sender.send_data(Bytes::new(), true);
                return;
            }
            Ok(count) => {
                let mut piece = Bytes::copy_from_slice(&bytes[..count]);
                while !piece.is_empty() {
                    sender.reserve_capacity(piece.len());
                    match poll_fn(|context| sender.poll_capacity(context)).await {
                        Some(Ok(room)) => {
                            let part = piece.split_to(room.min(piece.len()));
                            if sender.send_data(part, false).is_err() {
                                return;
                            }
                        }
                        _ => return,
                    }
                }
            }
            Err(_) => return sender.send_reset(Reason::CONNECT_ERROR),
        }
    }
}

async fn on_connection(mut stream: TcpStream, target: u16, seen: Seen) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).trim_end().replace("\r\n", " ");
    let authority = head.split_once("host: ").map_or("", |(_, rest)| rest).to_owned();
    seen.lock().expect("heads").push(head);
    if authority.starts_with("refuse.") {
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
    } else if authority.starts_with("cut.") {
        // Closed without a word.
    } else if let Ok(mut to) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await {
        // The server's first words can come together with the head.
        if stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_err() {
            return;
        }
        if tokio::io::copy_bidirectional(&mut stream, &mut to).await.is_err() {
            for stream in [&stream, &to] {
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
}
