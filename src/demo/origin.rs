//! The origin services: tiny HTTP/1.1 servers with `Content-Length` bodies, and a TCP echo.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

/// The longest request an origin reads; the clients' own are far below.
const MAX_REQUEST: usize = 64 * 1024;

/// How an origin answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Behaviour {
    Steady,
    /// Answers this late.
    Slow(Duration),
    /// Every n-th answer is 503.
    FailsEvery(u64),
}

/// One HTTP origin and what it counted.
pub(super) struct Origin {
    /// The service, which is also the cluster's name.
    pub(super) service: &'static str,
    /// The replica, as told in `x-served-by`.
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    /// Requests received.
    pub(super) requests: Cell<u64>,
    /// Requests answered 503.
    pub(super) failed: Cell<u64>,
    behaviour: Behaviour,
}

impl Origin {
    /// Serves on a free loopback port until the runtime ends.
    pub(super) async fn start(
        service: &'static str,
        name: &'static str,
        behaviour: Behaviour,
    ) -> io::Result<Rc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let origin =
            Rc::new(Self { service, name, address, requests: Cell::new(0), failed: Cell::new(0), behaviour });
        let serving = origin.clone();
        spawn_local(async move {
            while let Some(stream) = accept(&listener).await {
                let origin = serving.clone();
                // A broken connection is the other side's to notice.
                spawn_local(async move { origin.serve(stream).await });
            }
        });
        Ok(origin)
    }

    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(4096);
        loop {
            let Some(request) = Request::read(&mut stream, &mut buffer).await? else { return Ok(()) };
            let answer = self.answer(&request).await;
            stream.write_all(answer.as_bytes()).await?;
        }
    }

    async fn answer(&self, request: &Request) -> String {
        let count = self.requests.get() + 1;
        self.requests.set(count);
        match self.behaviour {
            Behaviour::Steady => {}
            Behaviour::Slow(late) => tokio::time::sleep(late).await,
            Behaviour::FailsEvery(nth) if count.is_multiple_of(nth) => {
                self.failed.set(self.failed.get() + 1);
                return self
                    .message("503 Service Unavailable", r#"{"error":"this replica is having a moment"}"#);
            }
            Behaviour::FailsEvery(_) => {}
        }
        let id = request.path.rsplit('/').next().unwrap_or_default();
        let body = match (self.service, request.method.as_str()) {
            ("orders", "POST") => format!(r#"{{"accepted":{}}}"#, request.body_len),
            ("orders", _) => format!(r#"{{"order":"{id}","items":3}}"#),
            _ => format!(r#"{{"user":"{id}","name":"Ada"}}"#),
        };
        self.message("200 OK", &body)
    }

    fn message(&self, status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-served-by: {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.name,
            body.len()
        )
    }
}

struct Request {
    method: String,
    /// Letters, digits and `/ - _ .` of the path only, so that it fits into JSON as it is.
    path: String,
    body_len: usize,
}

impl Request {
    /// The next request, taken out of the buffer with its body; `None` at an orderly end.
    async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        loop {
            if let Some((request, len)) = Self::parse(buffer)? {
                if buffer.len() >= len {
                    buffer.drain(..len);
                    return Ok(Some(request));
                }
            }
            if buffer.len() > MAX_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The head in the buffer, if it is complete, and how long it is with its body.
    fn parse(buffer: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        let head = match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        let body_len = super::traffic::content_length(parsed.headers).unwrap_or(0).min(MAX_REQUEST);
        let path = parsed.path.unwrap_or_default().split('?').next().unwrap_or_default();
        let path = path.chars().filter(|c| c.is_ascii_alphanumeric() || "/-_.".contains(*c)).collect();
        let method = parsed.method.unwrap_or_default().to_owned();
        Ok(Some((Self { method, path, body_len }, head + body_len)))
    }
}

/// A TCP service that sends back what it gets.
pub(super) struct Echo {
    pub(super) address: SocketAddr,
    /// Connections accepted.
    pub(super) connections: Cell<u64>,
    /// Bytes sent back.
    pub(super) bytes: Cell<u64>,
}

impl Echo {
    /// Serves on a free loopback port until the runtime ends.
    pub(super) async fn start() -> io::Result<Rc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let echo = Rc::new(Self { address, connections: Cell::new(0), bytes: Cell::new(0) });
        let serving = echo.clone();
        spawn_local(async move {
            while let Some(stream) = accept(&listener).await {
                let echo = serving.clone();
                echo.connections.set(echo.connections.get() + 1);
                spawn_local(async move { echo.serve(stream).await });
            }
        });
        Ok(echo)
    }

    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let len = stream.read(&mut buffer).await?;
            let Some(got) = buffer.get(..len).filter(|got| !got.is_empty()) else { return Ok(()) };
            stream.write_all(got).await?;
            self.bytes.set(self.bytes.get() + len as u64);
        }
    }
}

/// The next connection; `None` when there cannot be one any more.
async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some(stream),
            // Out of file descriptors, or the peer was gone already: later connections may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
