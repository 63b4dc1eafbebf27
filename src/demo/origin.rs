//! The origin services: tiny HTTP/1.1 servers with `Content-Length` bodies, and a TCP echo.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
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
    /// The service.
    pub(super) service: &'static str,
    /// The cluster that it is an endpoint of.
    pub(super) cluster: &'static str,
    /// The replica, as told in `x-served-by`.
    pub(super) name: &'static str,
    /// Where it listens while it is open.
    address: Cell<Option<SocketAddr>>,
    /// Requests received.
    pub(super) requests: Cell<u64>,
    /// Requests answered 503.
    pub(super) failed: Cell<u64>,
    behaviour: Behaviour,
    /// Dropped to end it.
    running: RefCell<Option<watch::Sender<()>>>,
}

impl Origin {
    /// Not open yet.
    pub(super) fn new(
        service: &'static str,
        cluster: &'static str,
        name: &'static str,
        behaviour: Behaviour,
    ) -> Rc<Self> {
        let (requests, failed) = (Cell::new(0), Cell::new(0));
        let (address, running) = (Cell::new(None), RefCell::new(None));
        Rc::new(Self { service, cluster, name, address, requests, failed, behaviour, running })
    }

    /// Serves on a free loopback port until [`close`](Self::close); nothing changes if it does already.
    pub(super) async fn open(self: &Rc<Self>) -> io::Result<()> {
        if self.address.get().is_some() {
            return Ok(());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        self.address.set(Some(listener.local_addr()?));
        let (running, mut ended) = watch::channel(());
        self.running.replace(Some(running));
        let serving = self.clone();
        spawn_local(async move {
            loop {
                let stream = tokio::select! {
                    stream = accept(&listener) => stream,
                    _ = ended.changed() => return,
                };
                let (origin, ended) = (serving.clone(), ended.clone());
                // A broken connection is the other side's to notice.
                spawn_local(async move { origin.serve(stream, ended).await });
            }
        });
        Ok(())
    }

    /// Ends the service; a request that is being answered still is.
    pub(super) fn close(&self) {
        self.address.set(None);
        self.running.replace(None);
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address.get()
    }

    async fn serve(&self, mut stream: TcpStream, mut ended: watch::Receiver<()>) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(4096);
        loop {
            let request = tokio::select! {
                request = Request::read(&mut stream, &mut buffer) => request?,
                _ = ended.changed() => return Ok(()),
            };
            let Some(request) = request else { return Ok(()) };
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
            ("checkout", "POST") => format!(r#"{{"accepted":{}}}"#, request.body_len),
            ("checkout", _) => format!(r#"{{"cart":"{id}","items":3}}"#),
            ("web", _) => format!(r#"{{"page":"{id}"}}"#),
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
            loop {
                let stream = accept(&listener).await;
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

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of file descriptors, or the peer was gone already: later connections may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
