//! What is around a pod and in it: servers that answer whatever is spoken to them. Nothing of it depends on chance.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::harness::http1::Reader;
use crate::pods::mesh::Pod;
use crate::tls::certs::Certs;
use crate::tls::origin::{server_config, Manner};

/// How many tries of a request fail first.
pub const FAILS: &str = "x-fails";
/// The status of the answer.
pub const ANSWER: &str = "x-answer";
/// What tells the tries of one request from those of others.
pub const CASE: &str = "x-case";

/// A byte stream.
pub trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// The servers of one side.
pub struct World {
    acceptor: TlsAcceptor,
    tries: Mutex<HashMap<String, u32>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.lock().expect("tasks").drain(..).for_each(|task| task.abort());
    }
}

/// What differs from run to run, or by the version of who asks.
fn is_noise(name: &str) -> bool {
    name.starts_with("x-b3-")
        || ["x-request-id", "traceparent", "tracestate", "b3", "content-length", CASE].contains(&name)
}

impl World {
    /// With the certificate `name`.
    pub fn new(certs: &Certs, name: &str) -> Arc<World> {
        let mut config = server_config(certs.path(), name, Manner::default());
        config.alpn_protocols =
            ["h2", "http/1.1", "http/1.0", "istio"].map(|name| name.as_bytes().to_vec()).to_vec();
        Arc::new(World {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            tries: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// Serves at `address` in `pod`; does nothing where that is taken.
    pub fn listen(self: &Arc<Self>, pod: &Pod, address: SocketAddr) {
        let Ok(listener) = pod.namespace.within(move || std::net::TcpListener::bind(address)) else { return };
        listener.set_nonblocking(true).expect("set");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let world = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(world) = world.upgrade() else { return };
                tokio::spawn(world.serve(Box::new(stream), false));
            }
        });
        self.tasks.lock().expect("tasks").push(task.abort_handle());
    }

    fn serve(
        self: Arc<Self>,
        stream: Box<dyn Both>,
        secure: bool,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut stream = BufReader::new(stream);
            let Ok(first) = stream.fill_buf().await else { return };
            match first {
                [0x16, ..] if !secure => {
                    if let Ok(inner) = self.acceptor.clone().accept(stream).await {
                        self.serve(Box::new(inner), true).await;
                    }
                }
                [b'P', b'R', b'I', ..] => self.http2(stream, secure).await,
                [first, ..] if first.is_ascii_uppercase() => self.http1(stream, secure).await,
                _ => echo(stream).await,
            }
        })
    }

    async fn http1(&self, stream: BufReader<Box<dyn Both>>, secure: bool) {
        let (read, mut write) = tokio::io::split(stream);
        let mut reader = Reader::new(read);
        while let Ok(mut message) = reader.head().await {
            message.framing = Reader::<tokio::io::Empty>::request_framing(&message);
            if reader.body(&mut message).await.is_err() {
                return;
            }
            let mut line = message.start_line.split(' ');
            let (method, target) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
            let (status, text) = self.answer(
                ("HTTP/1.1", secure),
                (method, target),
                message.headers.clone(),
                message.body.len(),
            );
            let body = if method == "HEAD" { "" } else { &text };
            let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n{body}", text.len());
            if write.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn http2(self: Arc<Self>, stream: BufReader<Box<dyn Both>>, secure: bool) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let world = self.clone();
            tokio::spawn(async move {
                let (parts, mut body) = request.into_parts();
                let mut count = 0;
                while let Some(Ok(part)) = body.data().await {
                    count += part.len();
                    let _ = body.flow_control().release_capacity(part.len());
                }
                let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                let mut headers: Vec<(String, String)> =
                    parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
                let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
                headers.push(("host".to_owned(), authority));
                let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
                let (status, text) =
                    world.answer(("HTTP/2", secure), (parts.method.as_str(), &target), headers, count);
                let answer = http::Response::builder().status(status).body(()).expect("a head");
                if let Ok(mut stream) = respond.send_response(answer, false) {
                    let _ = stream.send_data(Bytes::from(text), true);
                }
            });
        }
    }

    /// What is answered to a request: what has come, without what differs from run to run.
    fn answer(
        &self,
        (protocol, secure): (&str, bool),
        (method, target): (&str, &str),
        headers: Vec<(String, String)>,
        body: usize,
    ) -> (u16, String) {
        let all: Vec<(String, String)> =
            headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let of = |wanted: &str| all.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let number = {
            let mut tries = self.tries.lock().expect("tries");
            let number = tries.entry(of(CASE).unwrap_or_default().to_owned()).or_default();
            *number += 1;
            *number
        };
        let fails = of(FAILS).and_then(|text| text.parse().ok()).unwrap_or(0);
        let status = match of(ANSWER).and_then(|text| text.parse().ok()) {
            _ if number <= fails => 503,
            Some(status) => status,
            None => 200,
        };
        let over = if secure { " over TLS" } else { "" };
        let mut lines = vec![format!("{method} {target} {protocol}{over}, try {number}, {body} bytes")];
        let mut seen: Vec<String> = all
            .iter()
            .filter(|(name, _)| !is_noise(name))
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        seen.sort();
        lines.extend(seen);
        (status, lines.join("\n"))
    }
}

async fn echo(mut stream: BufReader<Box<dyn Both>>) {
    let mut part = vec![0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut part).await {
        if stream.write_all(&part[..count]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}
