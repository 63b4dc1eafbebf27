//! The clients: keep-alive HTTP/1.1 connections and TCP connections that each ask at a steady pace, check every byte
//! of the answer, and count.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{spawn_local, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior};

/// Connections that ask for each service.
const HTTP_CONNECTIONS: [(Service, u64); 3] =
    [(Service::Web, 6), (Service::Checkout, 6), (Service::Users, 4)];
/// Each of so many HTTP clients takes a new connection for each request.
const FRESH: u64 = 4;
const TCP_CONNECTIONS: u64 = 2;
/// Each connection asks at most this often: enough to see, little enough to leave the machine alone.
const PACE: Duration = Duration::from_millis(10);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Latencies above this, in microseconds, count as this.
const SLOWEST: u64 = 60_000_000;
/// The largest answer a client reads.
const MAX_ANSWER: usize = 1024 * 1024;

/// What the clients counted.
#[derive(Default)]
pub(super) struct Tally {
    /// Answers that were 200 with the right body.
    pub(super) right: Cell<u64>,
    /// Other answers, by status.
    pub(super) wrong_status: RefCell<BTreeMap<u16, u64>>,
    /// Answers of 200 with another body than expected.
    pub(super) wrong_body: Cell<u64>,
    /// Requests without an answer.
    pub(super) lost: Cell<u64>,
    /// Answers by the replica that gave them.
    pub(super) served_by: RefCell<BTreeMap<&'static str, u64>>,
    /// The replicas that there are.
    names: Vec<&'static str>,
    /// Bytes sent to the echo service.
    pub(super) echo_sent: Cell<u64>,
    /// Bytes that came back as they were sent.
    pub(super) echo_back: Cell<u64>,
    /// TCP connections made, and those that broke or brought other bytes back.
    pub(super) echo_connections: Cell<u64>,
    pub(super) echo_broken: Cell<u64>,
}

impl Tally {
    /// Requests that were answered in any way.
    pub(super) fn answers(&self) -> u64 {
        self.right.get() + self.failed() - self.lost.get()
    }

    /// Requests that did not get the right answer.
    pub(super) fn failed(&self) -> u64 {
        let other: u64 = self.wrong_status.borrow().values().sum();
        self.lost.get() + self.wrong_body.get() + other
    }
}

/// The running clients.
pub(super) struct Traffic {
    pub(super) tally: Rc<Tally>,
    /// Of all services but `users`, one of whose replicas is slow on purpose.
    latencies: Rc<RefCell<Latencies>>,
    stop: Rc<Cell<bool>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
}

/// Latencies in microseconds.
struct Latencies {
    all: Option<Histogram<u64>>,
    recent: Option<Histogram<u64>>,
    step: Option<Histogram<u64>>,
}

/// `None` cannot happen with these constants; without a histogram the latencies would just be missing.
fn histogram() -> Option<Histogram<u64>> {
    Histogram::new_with_bounds(1, SLOWEST, 3).ok()
}

impl Traffic {
    /// Starts all clients; `names` are the replicas that may answer.
    pub(super) fn start(http: SocketAddr, tcp: SocketAddr, names: Vec<&'static str>) -> Self {
        let latencies = Latencies { all: histogram(), recent: histogram(), step: histogram() };
        let traffic = Self {
            tally: Rc::new(Tally { names, ..Tally::default() }),
            latencies: Rc::new(RefCell::new(latencies)),
            stop: Rc::default(),
            tasks: RefCell::default(),
        };
        let services =
            HTTP_CONNECTIONS.into_iter().flat_map(|(service, count)| (0..count).map(move |_| service));
        for (number, service) in (0..).zip(services) {
            let client = traffic.client(number);
            traffic.tasks.borrow_mut().push(spawn_local(async move { client.ask_http(http, service).await }));
        }
        for number in 0..TCP_CONNECTIONS {
            let client = traffic.client(number);
            traffic.tasks.borrow_mut().push(spawn_local(async move { client.ask_echo(tcp).await }));
        }
        traffic
    }

    fn client(&self, number: u64) -> Client {
        Client {
            number,
            tally: self.tally.clone(),
            latencies: self.latencies.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Lets every client finish the request it is at, and close.
    pub(super) async fn finish(&self) {
        self.stop.set(true);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        for task in tasks {
            // A client that panicked has not counted its request, which the totals show.
            let _ = task.await;
        }
    }

    /// The latencies since the last call.
    pub(super) fn take_latencies(&self) -> Option<Histogram<u64>> {
        std::mem::replace(&mut self.latencies.borrow_mut().recent, histogram())
    }

    /// The latencies since the last call.
    pub(super) fn take_step_latencies(&self) -> Option<Histogram<u64>> {
        std::mem::replace(&mut self.latencies.borrow_mut().step, histogram())
    }

    /// The latencies from the start.
    pub(super) fn latencies(&self) -> Option<Histogram<u64>> {
        self.latencies.borrow().all.clone()
    }
}

#[derive(Clone, Copy)]
enum Service {
    Web,
    Checkout,
    Users,
}

struct Client {
    number: u64,
    tally: Rc<Tally>,
    latencies: Rc<RefCell<Latencies>>,
    stop: Rc<Cell<bool>>,
}

impl Client {
    async fn ask_http(self, address: SocketAddr, service: Service) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = None;
        for turn in 0_u64.. {
            pace.tick().await;
            if self.stop.get() {
                return;
            }
            let id = self.number * 1_000_000 + turn;
            let (request, expected) = question(service, id);
            let began = Instant::now();
            let answer =
                tokio::time::timeout(PATIENCE, exchange(&mut connection, address, request.as_bytes()));
            match answer.await {
                Ok(Ok(answer)) => {
                    let took = began.elapsed();
                    if !matches!(service, Service::Users) {
                        self.record(took);
                    }
                    self.count(&answer, expected.as_bytes());
                }
                Ok(Err(_)) | Err(_) => {
                    bump(&self.tally.lost, 1);
                    connection = None;
                }
            }
            if self.number.is_multiple_of(FRESH) {
                connection = None;
            }
        }
    }

    fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(SLOWEST).max(1);
        let mut latencies = self.latencies.borrow_mut();
        let Latencies { all, recent, step } = &mut *latencies;
        for histogram in [all, recent, step].into_iter().flatten() {
            histogram.saturating_record(micros);
        }
    }

    fn count(&self, answer: &Answer, expected: &[u8]) {
        let replica = self.tally.names.iter().find(|name| **name == answer.served_by);
        match answer.status {
            200 if answer.body == expected && replica.is_some() => bump(&self.tally.right, 1),
            200 => bump(&self.tally.wrong_body, 1),
            other => *self.tally.wrong_status.borrow_mut().entry(other).or_default() += 1,
        }
        if let Some(name) = replica {
            *self.tally.served_by.borrow_mut().entry(name).or_default() += 1;
        }
    }

    async fn ask_echo(self, address: SocketAddr) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection: Option<TcpStream> = None;
        for turn in 0_u64.. {
            pace.tick().await;
            if self.stop.get() {
                return;
            }
            if connection.is_none() {
                connection = TcpStream::connect(address).await.ok();
                bump(&self.tally.echo_connections, 1);
            }
            let Some(stream) = &mut connection else {
                bump(&self.tally.echo_broken, 1);
                continue;
            };
            // Sizes from a few bytes to a few kilobytes, contents that differ from turn to turn.
            let len = 16 + (turn * 997 % 4096) as usize;
            let sent: Vec<u8> = (0..len).map(|i| (i as u64 ^ turn ^ self.number) as u8).collect();
            let mut back = vec![0; len];
            let round = async {
                stream.write_all(&sent).await?;
                bump(&self.tally.echo_sent, len as u64);
                stream.read_exact(&mut back).await
            };
            match tokio::time::timeout(PATIENCE, round).await {
                Ok(Ok(_)) if back == sent => bump(&self.tally.echo_back, len as u64),
                _ => {
                    bump(&self.tally.echo_broken, 1);
                    connection = None;
                }
            }
        }
    }
}

/// A request, and the body that answers it.
fn question(service: Service, id: u64) -> (String, String) {
    match service {
        Service::Web => (get("web", &format!("/page/{id}")), format!(r#"{{"page":"{id}"}}"#)),
        Service::Users => {
            (get("users", &format!("/users/{id}")), format!(r#"{{"user":"{id}","name":"Ada"}}"#))
        }
        Service::Checkout if id.is_multiple_of(4) => {
            let body = format!(r#"{{"cart":"{id}","items":["oar","sail","rope"]}}"#);
            let head =
                format!("POST /cart HTTP/1.1\r\nhost: checkout\r\ncontent-length: {}\r\n\r\n", body.len());
            (head + &body, format!(r#"{{"accepted":{}}}"#, body.len()))
        }
        Service::Checkout => {
            (get("checkout", &format!("/cart/{id}")), format!(r#"{{"cart":"{id}","items":3}}"#))
        }
    }
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")
}

fn bump(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// An answer with its whole body.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) served_by: String,
    pub(super) body: Vec<u8>,
    close: bool,
}

/// One request and its answer on this connection, which is made first where there is none and let go of where the
/// answer says so.
pub(super) async fn exchange(
    connection: &mut Option<TcpStream>,
    address: SocketAddr,
    request: &[u8],
) -> io::Result<Answer> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    stream.write_all(request).await?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(answer) = Answer::parse(&buffer)? {
            if !answer.close {
                *connection = Some(stream);
            }
            return Ok(answer);
        }
        if buffer.len() > MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

impl Answer {
    /// The answer in the buffer, if it is complete.
    pub(super) fn parse(buffer: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        let head = match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(invalid()),
        };
        let rest = buffer.get(head..).unwrap_or_default();
        let chunked = header(parsed.headers, "transfer-encoding").is_some();
        let (body, end) = if chunked {
            let Some(unchunked) = unchunk(rest)? else { return Ok(None) };
            unchunked
        } else {
            let len = content_length(parsed.headers).ok_or_else(invalid)?;
            let Some(body) = rest.get(..len) else { return Ok(None) };
            (body.to_vec(), len)
        };
        // More than was asked for.
        if rest.len() > end {
            return Err(invalid());
        }
        let text = |name: &str| header(parsed.headers, name).unwrap_or_default();
        Ok(Some(Self {
            status: parsed.code.ok_or_else(invalid)?,
            served_by: text("x-served-by").to_owned(),
            body,
            close: text("connection").eq_ignore_ascii_case("close"),
        }))
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// A chunked body without trailers and how long it was, if it is complete.
fn unchunk(bytes: &[u8]) -> io::Result<Option<(Vec<u8>, usize)>> {
    let mut body = Vec::new();
    let mut at: usize = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(invalid()),
        };
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_ANSWER).ok_or_else(invalid)?;
        let Some(chunk) = rest.get(start..start + size + 2) else { return Ok(None) };
        let data = chunk.strip_suffix(b"\r\n").ok_or_else(invalid)?;
        body.extend_from_slice(data);
        at += start + size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok()
}

/// The value of `Content-Length`.
pub(super) fn content_length(headers: &[httparse::Header<'_>]) -> Option<usize> {
    header(headers, "content-length")?.trim().parse().ok()
}
