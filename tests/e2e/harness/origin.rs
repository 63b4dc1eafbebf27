//! A scripted HTTP/1 origin server in the test's own process: it records every request as it came and answers what
//! the script says, good or bad.

use super::http1::{Framing, Message, ReadError, Reader};
use super::{eventually, DEADLINE};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What happens to the connection after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next request is awaited.
    KeepAlive,
    /// Closed in good order.
    Close,
    /// Reset.
    Reset,
    /// Nothing more is done until the proxy closes.
    Hang,
    /// Every byte is sent back until the proxy closes (an upgraded connection).
    Echo,
}

/// When the answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as the head is there; the body is not read.
    Head,
    /// After the whole request.
    Body,
}

/// One scripted answer.
#[derive(Clone)]
pub struct Answer {
    pub when: When,
    /// Written and flushed one after the other.
    pub pieces: Vec<Vec<u8>>,
    pub then: Then,
    /// The answer waits for a permit of this.
    pub gate: Option<Arc<Semaphore>>,
    /// So many more bytes after the pieces, made as they are sent.
    pub flood: usize,
    /// Like `pieces`, sent after the head and before the body is read (for `100 Continue`).
    pub interim: Vec<u8>,
}

impl Answer {
    /// These bytes, then keep-alive.
    pub fn raw(bytes: impl AsRef<[u8]>) -> Answer {
        let pieces = vec![bytes.as_ref().to_vec()];
        Answer { when: When::Body, pieces, then: Then::KeepAlive, gate: None, flood: 0, interim: vec![] }
    }

    /// A 200 with this body and a content-length.
    pub fn ok(body: &str) -> Answer {
        Answer::status(200, "OK", body)
    }

    /// Any status with a body and a content-length.
    pub fn status(code: u16, reason: &str, body: &str) -> Answer {
        let length = body.len();
        Answer::raw(format!("HTTP/1.1 {code} {reason}\r\ncontent-length: {length}\r\n\r\n{body}"))
    }

    pub fn then(mut self, then: Then) -> Answer {
        self.then = then;
        self
    }

    pub fn at_head(mut self) -> Answer {
        self.when = When::Head;
        self
    }

    pub fn interim(mut self, bytes: &str) -> Answer {
        self.interim = bytes.as_bytes().to_vec();
        self
    }

    pub fn piece(mut self, bytes: impl AsRef<[u8]>) -> Answer {
        self.pieces.push(bytes.as_ref().to_vec());
        self
    }

    pub fn flood(mut self, bytes: usize) -> Answer {
        self.flood = bytes;
        self
    }

    pub fn gated(mut self, gate: &Arc<Semaphore>) -> Answer {
        self.gate = Some(gate.clone());
        self
    }
}

type Script = dyn Fn(&Message) -> Answer + Send + Sync;

struct State {
    script: Mutex<Arc<Script>>,
    received: Mutex<Vec<Message>>,
    /// Requests whose head was read, kept or not.
    requests: AtomicUsize,
    /// Requests whose body is being read.
    reading: AtomicUsize,
    /// Bytes of floods written.
    flooded: AtomicUsize,
    /// Load tests do not keep the requests.
    keep: bool,
}

/// A running origin; it stops when dropped.
pub struct Origin {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Origin {
    /// Starts an origin that answers `200` with the body `ok` until told otherwise.
    pub async fn start() -> Origin {
        Origin::with(true, |_| Answer::ok("ok")).await
    }

    /// Starts an origin with a script; `keep` records the requests.
    pub async fn with(keep: bool, script: impl Fn(&Message) -> Answer + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("an origin's port");
        let address = listener.local_addr().expect("an origin's address");
        let state = Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            received: Mutex::new(Vec::new()),
            requests: AtomicUsize::new(0),
            reading: AtomicUsize::new(0),
            flooded: AtomicUsize::new(0),
            keep,
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // Connections end with the origin.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let accepted = listener.accept().await;
                while connections.try_join_next().is_some() {}
                match accepted {
                    Ok((stream, _)) => {
                        let shared = shared.clone();
                        connections.spawn(async move { serve(stream, &shared).await });
                    }
                    // Out of descriptors in a load test: give the others time to finish.
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        });
        Origin { address, state, task }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Replaces the script.
    pub fn answer(&self, script: impl Fn(&Message) -> Answer + Send + Sync + 'static) {
        *self.state.script.lock().expect("script") = Arc::new(script);
    }

    /// The requests since the last call.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.state.received.lock().expect("received"))
    }

    /// How many requests there are since the last `take`.
    pub fn peek(&self) -> usize {
        self.state.received.lock().expect("received").len()
    }

    /// Requests whose head was read, in all.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Whether a request's body is still on its way.
    pub fn is_reading(&self) -> bool {
        self.state.reading.load(Ordering::Relaxed) > 0
    }

    /// Bytes of floods written in all.
    pub fn flooded(&self) -> usize {
        self.state.flooded.load(Ordering::Relaxed)
    }

    /// Waits until at least `n` requests are recorded (since the last `take`).
    pub async fn wait_for(&self, n: usize) -> bool {
        eventually(DEADLINE, || async { self.peek() >= n }).await
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: &State) {
    let _ = stream.set_nodelay(true);
    let reset = |stream: &TcpStream| {
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    };
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    loop {
        let mut request = match reader.head().await {
            Ok(head) => head,
            Err(ReadError::Malformed(what)) => {
                let bytes = std::mem::take(&mut reader.buffered);
                record(state, broken(&what, bytes));
                return;
            }
            Err(ReadError::Closed(rest)) if !rest.is_empty() => {
                record(state, broken("the connection ended inside a head", rest));
                return;
            }
            Err(_) => return,
        };
        request.framing = Reader::<tokio::net::tcp::OwnedReadHalf>::request_framing(&request);
        state.requests.fetch_add(1, Ordering::Relaxed);
        let script = state.script.lock().expect("script").clone();
        let answer = script(&request);
        let slot = record(state, request.clone());
        let mut alive = answer.interim.is_empty() || write.write_all(&answer.interim).await.is_ok();
        if alive && answer.when == When::Body {
            state.reading.fetch_add(1, Ordering::Relaxed);
            alive = reader.body(&mut request).await.is_ok() && request.complete;
            replace(state, slot, &request);
            state.reading.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(gate) = &answer.gate {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
        for piece in &answer.pieces {
            alive = alive && write.write_all(piece).await.is_ok() && write.flush().await.is_ok();
        }
        let chunk = vec![b'f'; 16 * 1024];
        let mut left = answer.flood;
        while alive && left > 0 {
            match write.write(&chunk[..left.min(chunk.len())]).await {
                Ok(n) => {
                    left -= n;
                    state.flooded.fetch_add(n, Ordering::Relaxed);
                }
                Err(_) => alive = false,
            }
        }
        match answer.then {
            Then::KeepAlive if alive => {
                if answer.when == When::Head {
                    let _ = reader.body(&mut request).await;
                    replace(state, slot, &request);
                }
            }
            Then::KeepAlive | Then::Close => {
                // Unread bytes would turn the close into a reset: take what comes until the proxy closes too.
                let _ = write.shutdown().await;
                while let Ok(true) = reader.fill().await {
                    reader.buffered.clear();
                }
                return;
            }
            Then::Reset => {
                reset(reader_stream(&reader));
                return;
            }
            Then::Hang => {
                while let Ok(true) = reader.fill().await {
                    reader.buffered.clear();
                }
                return;
            }
            Then::Echo => {
                let early = std::mem::take(&mut reader.buffered);
                if write.write_all(&early).await.is_err() {
                    return;
                }
                while let Ok(true) = reader.fill().await {
                    let bytes = std::mem::take(&mut reader.buffered);
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = write.shutdown().await;
                return;
            }
        }
    }
}

fn reader_stream(reader: &Reader<tokio::net::tcp::OwnedReadHalf>) -> &TcpStream {
    reader.io().as_ref()
}

fn broken(what: &str, bytes: Vec<u8>) -> Message {
    Message {
        start_line: format!("<{what}>"),
        headers: vec![],
        framing: Framing::Empty,
        body: bytes,
        trailers: vec![],
        complete: false,
        raw_head: vec![],
    }
}

/// Keeps a request and says where.
fn record(state: &State, request: Message) -> usize {
    if !state.keep {
        return 0;
    }
    let mut received = state.received.lock().expect("received");
    received.push(request);
    received.len() - 1
}

fn replace(state: &State, slot: usize, request: &Message) {
    if state.keep {
        let mut received = state.received.lock().expect("received");
        if let Some(entry) = received.get_mut(slot) {
            if entry.raw_head == request.raw_head {
                *entry = request.clone();
            }
        }
    }
}

/// An origin that accepts connections and never reads from nor writes to them.
pub struct Silent {
    port: u16,
    task: JoinHandle<()>,
}

impl Silent {
    pub async fn start() -> Silent {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Silent { port, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
