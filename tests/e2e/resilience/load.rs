//! Steady load that does not wait for answers: when a request is due is decided beforehand.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{timeout, Instant};

use super::origin::BODY;

/// Requests that take longer are given up, and lost.
const LONGEST: Duration = Duration::from_secs(10);
/// With so many on their way, those that are due wait: the machine is too busy to be told anything by more.
const MOST: usize = 400;
/// Requests that are due are sent together this often.
const TICK: Duration = Duration::from_millis(2);

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// A whole answer of the origin of this number.
    By(usize),
    /// Another status.
    Status(u16),
    /// An answer that ends before it should.
    Broken,
    /// No answer.
    Unanswered(String),
}

/// What came of the requests of a route.
#[derive(Default, Clone)]
pub struct Tally {
    pub ended: BTreeMap<Ended, usize>,
    pub slowest: Duration,
    pub late: usize,
}

impl Tally {
    pub fn all(&self) -> usize {
        self.ended.values().sum()
    }

    pub fn of(&self, origins: std::ops::Range<usize>) -> usize {
        let by = |ended: &Ended| matches!(ended, Ended::By(origin) if origins.contains(origin));
        self.ended.iter().filter(|(ended, _)| by(ended)).map(|(_, count)| count).sum()
    }

    pub fn lost(&self) -> usize {
        self.all() - self.of(0..usize::MAX)
    }

    pub fn broken(&self) -> usize {
        self.ended.get(&Ended::Broken).copied().unwrap_or(0)
    }

    /// What was lost, in words.
    pub fn losses(&self) -> String {
        let lost = self.ended.iter().filter(|(ended, _)| !matches!(ended, Ended::By(_)));
        lost.map(|(ended, count)| format!("{count} x {ended:?}")).collect::<Vec<_>>().join(", ")
    }
}

/// A client with as many connections as it needs.
pub struct Load {
    to: SocketAddr,
    idle: RefCell<Vec<TcpStream>>,
    routes: RefCell<Vec<(&'static str, Tally)>>,
    /// Requests that are not over, by how often [`Load::mark`] was called before.
    open: RefCell<BTreeMap<usize, usize>>,
    marks: Cell<usize>,
    stop: Cell<bool>,
}

impl Load {
    /// To a port of this machine.
    pub fn new(port: u16) -> Rc<Load> {
        Load::to(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    pub fn to(to: SocketAddr) -> Rc<Load> {
        Rc::new(Load {
            to,
            idle: RefCell::default(),
            routes: RefCell::default(),
            open: RefCell::default(),
            marks: Cell::new(0),
            stop: Cell::new(false),
        })
    }

    /// Sends so many requests a second to these routes by turns, until told to stop and all are over.
    pub async fn run(self: Rc<Self>, rate: f64, routes: &[&'static str]) {
        *self.routes.borrow_mut() = routes.iter().map(|route| (*route, Tally::default())).collect();
        let start = Instant::now();
        let mut sent = 0u64;
        let mut requests = tokio::task::JoinSet::new();
        while !self.stop.get() {
            let due = (start.elapsed().as_secs_f64() * rate) as u64;
            while sent < due && requests.len() < MOST {
                let route = (sent % routes.len() as u64) as usize;
                let load = self.clone();
                requests.spawn_local(async move { load.request(route).await });
                sent += 1;
            }
            while requests.try_join_next().is_some() {}
            tokio::time::sleep_until(Instant::now() + TICK).await;
        }
        while requests.join_next().await.is_some() {}
    }

    /// Requests a second that there are answers to when each of some clients asks as fast as it can.
    pub async fn capacity(self: &Rc<Self>, path: &'static str) -> f64 {
        let began = Instant::now();
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..24 {
            let load = self.clone();
            clients.spawn_local(async move {
                let mut answers = 0u32;
                while began.elapsed() < Duration::from_millis(500) {
                    answers += u32::from(matches!(load.exchange(path).await, Ended::By(_)));
                }
                answers
            });
        }
        let answers: u32 = clients.join_all().await.into_iter().sum();
        f64::from(answers) / began.elapsed().as_secs_f64()
    }

    /// What there was since the last call, by route. Requests that are not over are in the next.
    pub fn take(&self) -> Vec<(&'static str, Tally)> {
        let mut routes = self.routes.borrow_mut();
        routes.iter_mut().map(|(route, tally)| (*route, std::mem::take(tally))).collect()
    }

    /// Tells requests from before apart from those that come.
    pub fn mark(&self) {
        self.marks.set(self.marks.get() + 1);
    }

    /// Whether all requests from before the last mark are over.
    pub fn is_over(&self) -> bool {
        self.open.borrow().range(..self.marks.get()).all(|(_, open)| *open == 0)
    }

    /// Requests that are over since the last [`Load::take`].
    pub fn over(&self) -> usize {
        self.routes.borrow().iter().map(|(_, tally)| tally.all()).sum()
    }

    pub fn stop(&self) {
        self.stop.set(true);
    }

    async fn request(&self, route: usize) {
        let began = Instant::now();
        let path = self.routes.borrow()[route].0;
        let mark = self.marks.get();
        *self.open.borrow_mut().entry(mark).or_default() += 1;
        let ended = timeout(LONGEST, self.exchange(path)).await;
        let ended = ended.unwrap_or_else(|_| Ended::Unanswered("too late".into()));
        self.open.borrow_mut().entry(mark).and_modify(|open| *open -= 1);
        let tally = &mut self.routes.borrow_mut()[route].1;
        let took = began.elapsed();
        tally.slowest = tally.slowest.max(took);
        tally.late += usize::from(took > Duration::from_millis(500));
        *tally.ended.entry(ended).or_default() += 1;
    }

    async fn exchange(&self, path: &str) -> Ended {
        // As clients do, one that the other side has closed meanwhile is left.
        let alive = |stream: &TcpStream| matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        let idle = std::iter::from_fn(|| self.idle.borrow_mut().pop()).find(alive);
        let mut stream = match idle {
            Some(stream) => stream,
            None => match TcpStream::connect(self.to).await {
                Ok(stream) => stream,
                Err(error) => return Ended::Unanswered(format!("connect: {error}")),
            },
        };
        let request = format!("GET /{path} HTTP/1.1\r\nhost: t.test\r\n\r\n");
        if let Err(error) = stream.write_all(request.as_bytes()).await {
            return Ended::Unanswered(format!("write: {error}"));
        }
        let mut input = Vec::with_capacity(1024);
        loop {
            if let Some(answer) = parse(&input) {
                if !input.windows(17).any(|bytes| bytes.eq_ignore_ascii_case(b"connection: close")) {
                    self.idle.borrow_mut().push(stream);
                }
                return answer;
            }
            match stream.read_buf(&mut input).await {
                Ok(1..) => {}
                _ if input.is_empty() => return Ended::Unanswered("closed".into()),
                _ => return Ended::Broken,
            }
        }
    }
}

/// A whole answer.
fn parse(input: &[u8]) -> Option<Ended> {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&input[..end]).ok()?;
    let field = |name: &str| {
        let line =
            head.lines().find(|line| line.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name)));
        line.and_then(|line| line[name.len()..].trim().parse::<usize>().ok())
    };
    let length = field("content-length:").unwrap_or(0);
    if input.len() < end + length {
        return None;
    }
    match head.split(' ').nth(1)?.parse().ok()? {
        200 if length == BODY => Some(Ended::By(field("x-origin:")?)),
        status => Some(Ended::Status(status)),
    }
}
