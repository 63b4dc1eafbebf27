//! The threads of the origin and their loops.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustls::{ServerConfig, ServerConnection};
use slab::Slab;
use socket2::{Domain, SockRef, Socket, Type};

use super::h1::Http1;
use super::h2::Http2;
use super::{Fate, Settings, Shared, Speaks, Turn};
use crate::clock::{self, Alarm};
use crate::link::{Got, Link};
use crate::{http2, websocket};

const BACKLOG: i32 = 4096;
const BUFFER: usize = 256 * 1024;
const TURNS: u32 = 16;
/// The longest time until the end of a server is noticed.
const TICK: Duration = Duration::from_millis(50);
const ALARM: Token = Token(usize::MAX);
/// Tokens from here on are listeners.
const LISTENERS: usize = usize::MAX / 2;

/// A running origin; it ends when dropped.
pub struct Server {
    /// Where it listens, in the order of its settings.
    pub addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Server {
    /// Binds and starts. All addresses are bound when it returns.
    ///
    /// # Errors
    /// An address cannot be bound, or a core cannot be used.
    pub fn start(settings: &Settings) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut listen = settings.listen.clone();
        let mut workers = Vec::new();
        for thread in 0..settings.threads.max(1) {
            let mut worker = Worker::new(Shared::new(settings.behaviour.clone()), stop.clone())?;
            for part in &mut listen {
                let listener = bind(part.address)?;
                // The other threads share the port that was found.
                part.address = listener.local_addr()?;
                let tls = if part.tls { settings.tls.clone() } else { None };
                if part.tls && tls.is_none() {
                    return Err(io::Error::new(
                        ErrorKind::InvalidInput,
                        "a TLS listener without TLS settings",
                    ));
                }
                worker.listen(listener, part.speaks, tls)?;
            }
            let core = settings.pin.get(thread as usize % settings.pin.len().max(1)).copied();
            workers.push((worker, core));
        }
        let threads = workers.into_iter().map(|(worker, core)| {
            std::thread::spawn(move || {
                core.map_or(Ok(()), clock::pin)?;
                worker.run()
            })
        });
        let threads = threads.collect();
        Ok(Self { addresses: listen.iter().map(|part| part.address).collect(), stop, threads })
    }

    /// Waits for the end of its threads, which only an error or [`Server::stop`] brings.
    ///
    /// # Errors
    /// That of a thread.
    pub fn wait(&mut self) -> io::Result<()> {
        for thread in self.threads.drain(..) {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread of the origin ended in panic")))?;
        }
        Ok(())
    }

    /// Whether a thread has ended.
    pub fn is_over(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wait();
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    socket.bind(&address.into()).map_err(told)?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

enum Kind {
    /// HTTP, not known which.
    New,
    Http1(Http1),
    Http2(Box<Http2>),
    WebSocket,
    Echo,
    Sink,
    Source,
}

struct Conn {
    link: Link,
    kind: Kind,
    /// Tells a connection from the one before with the same key.
    number: u64,
    /// To be closed when all is sent.
    closing: bool,
}

struct Listener {
    socket: TcpListener,
    speaks: Speaks,
    tls: Option<Arc<ServerConfig>>,
}

struct Worker {
    poll: Poll,
    alarm: Alarm,
    listeners: Vec<Listener>,
    conns: Slab<Conn>,
    shared: Shared,
    buffer: Vec<u8>,
    /// Moment, key, number, stream.
    due: BinaryHeap<Reverse<(u64, usize, u64, u32)>>,
    timers: Vec<(u64, u32)>,
    again: Vec<usize>,
    accepted: u64,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn new(shared: Shared, stop: Arc<AtomicBool>) -> io::Result<Self> {
        let (poll, alarm) = (Poll::new()?, Alarm::new()?);
        poll.registry().register(&mut SourceFd(&alarm.descriptor()), ALARM, Interest::READABLE)?;
        Ok(Self {
            poll,
            alarm,
            listeners: Vec::new(),
            conns: Slab::new(),
            shared,
            buffer: vec![0; BUFFER],
            due: BinaryHeap::new(),
            timers: Vec::new(),
            again: Vec::new(),
            accepted: 0,
            stop,
        })
    }

    fn listen(
        &mut self,
        mut socket: TcpListener,
        speaks: Speaks,
        tls: Option<Arc<ServerConfig>>,
    ) -> io::Result<()> {
        let token = Token(LISTENERS + self.listeners.len());
        self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
        self.listeners.push(Listener { socket, speaks, tls });
        Ok(())
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(Reverse((at, ..))) = self.due.peek() {
                self.alarm.set(*at);
            }
            let wait = if self.again.is_empty() { TICK } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for key in std::mem::take(&mut self.again) {
                self.serve(key, None, true);
            }
            for event in &events {
                match event.token() {
                    ALARM => {}
                    Token(token) if token >= LISTENERS => self.accept(token - LISTENERS),
                    Token(key) => self.serve(key, None, event.is_read_closed()),
                }
            }
            if !self.due.is_empty() {
                self.call(clock::now());
            }
        }
        Ok(())
    }

    fn call(&mut self, now: u64) {
        while let Some(Reverse((at, key, number, stream))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            if self.conns.get(key).is_some_and(|conn| conn.number == number) {
                self.serve(key, Some(stream), false);
            }
        }
    }

    fn accept(&mut self, index: usize) {
        loop {
            let Some(listener) = self.listeners.get(index) else { return };
            let mut stream = match listener.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // One that is gone already; or no descriptor left, and then others must close first.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(_) => return,
            };
            let tls = match &listener.tls {
                None => None,
                Some(config) => match ServerConnection::new(config.clone()) {
                    Ok(session) => Some(session.into()),
                    Err(_) => continue,
                },
            };
            let kind = match listener.speaks {
                Speaks::Http => Kind::New,
                Speaks::Echo => Kind::Echo,
                Speaks::Sink => Kind::Sink,
                Speaks::Source => Kind::Source,
            };
            let entry = self.conns.vacant_entry();
            let key = entry.key();
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registered = self.poll.registry().register(&mut stream, Token(key), interest);
            if stream.set_nodelay(true).is_err() || registered.is_err() {
                continue;
            }
            self.accepted += 1;
            entry.insert(Conn { link: Link::new(stream, tls), kind, number: self.accepted, closing: false });
        }
    }

    fn serve(&mut self, key: usize, due: Option<u32>, ending: bool) {
        let result = self.progress(key, due, ending);
        let number = self.conns.get(key).map_or(0, |conn| conn.number);
        for (at, stream) in self.timers.drain(..) {
            self.due.push(Reverse((at, key, number, stream)));
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        match result {
            Ok(()) if !conn.closing || !conn.link.out.is_empty() => return,
            Ok(()) => {
                conn.link.close();
                let _ = conn.link.stream.shutdown(Shutdown::Write);
            }
            Err(true) => {
                let _ = SockRef::from(&conn.link.stream).set_linger(Some(Duration::ZERO));
            }
            Err(false) => {}
        }
        self.conns.remove(key);
    }

    /// Reads and answers. An error ends the connection, with a reset if it is `true`.
    /// With `ending` it reads to the end: the news that the peer has closed comes only once.
    fn progress(&mut self, key: usize, due: Option<u32>, ending: bool) -> Result<(), bool> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        let now = clock::now();
        if let Some(stream) = due {
            let mut turn =
                Turn { now, out: &mut conn.link.out, shared: &mut self.shared, timers: &mut self.timers };
            let result = match &mut conn.kind {
                Kind::Http1(http) => http.due(&mut turn),
                Kind::Http2(http) => http.due(stream, &mut turn),
                _ => Ok(()),
            };
            settle(conn, result)?;
            // Requests that came in the meantime.
            let kept = conn.link.take_kept();
            if !kept.is_empty() && !conn.closing {
                let used = take(conn, &kept, now, &mut self.shared, &mut self.timers)?;
                conn.link.keep(kept.get(used..).unwrap_or_default());
            }
        }
        for turn in 0..TURNS {
            if matches!(conn.kind, Kind::Source) && conn.link.out.is_empty() && !conn.link.is_handshaking() {
                let body = self.shared.body(BUFFER);
                conn.link.out.push_shared(&body);
            }
            if !conn.closing {
                // An echo to a peer that does not read must not fill the memory.
                if conn.link.out.is_empty() || !matches!(conn.kind, Kind::Echo) {
                    match conn.link.read(&mut self.buffer) {
                        Ok(Got::Nothing) => {
                            flush(conn)?;
                            if !matches!(conn.kind, Kind::Source) || !conn.link.out.is_empty() {
                                return Ok(());
                            }
                        }
                        Ok(Got::End) => {
                            flush(conn)?;
                            return Err(false);
                        }
                        Err(error) if error.kind() == ErrorKind::OutOfMemory => return Ok(()),
                        Err(_) => return Err(false),
                        Ok(Got::Bytes { count, more }) => {
                            let bytes = self.buffer.get(..count).unwrap_or_default();
                            let used = take(conn, bytes, now, &mut self.shared, &mut self.timers)?;
                            conn.link.keep(bytes.get(used..).unwrap_or_default());
                            if !more && !ending && !matches!(conn.kind, Kind::Source) {
                                return flush(conn);
                            }
                        }
                    }
                }
            }
            flush(conn)?;
            if conn.closing || (!conn.link.out.is_empty() && matches!(conn.kind, Kind::Echo | Kind::Source)) {
                return Ok(());
            }
            if turn + 1 == TURNS {
                self.again.push(key);
            }
        }
        Ok(())
    }
}

fn flush(conn: &mut Conn) -> Result<(), bool> {
    match conn.link.flush() {
        Ok(_) => Ok(()),
        Err(_) => Err(false),
    }
}

fn settle(conn: &mut Conn, result: Result<(), Fate>) -> Result<(), bool> {
    match result {
        Ok(()) => {}
        Err(Fate::Reset) => return Err(true),
        Err(Fate::Close) => conn.closing = true,
        Err(Fate::WebSocket) => conn.kind = Kind::WebSocket,
    }
    Ok(())
}

/// Gives bytes to the protocol; how many it took.
fn take(
    conn: &mut Conn,
    bytes: &[u8],
    now: u64,
    shared: &mut Shared,
    timers: &mut Vec<(u64, u32)>,
) -> Result<usize, bool> {
    let out = &mut conn.link.out;
    if matches!(conn.kind, Kind::New) {
        let start = http2::PREFACE.len().min(bytes.len()).min(4);
        if bytes.get(..start) != http2::PREFACE.get(..start) {
            conn.kind = Kind::Http1(Http1::default());
        } else if start == 4 {
            conn.kind = Kind::Http2(Box::default());
        } else {
            return Ok(0);
        }
    }
    let mut turn = Turn { now, out, shared, timers };
    let result = match &mut conn.kind {
        Kind::Http1(http) => http.received(bytes, &mut turn),
        Kind::Http2(http) => http.received(bytes, &mut turn),
        Kind::Echo => {
            turn.out.push(bytes);
            Ok(bytes.len())
        }
        Kind::WebSocket => echo_messages(bytes, &mut turn),
        Kind::New | Kind::Sink | Kind::Source => Ok(bytes.len()),
    };
    match result {
        Ok(used) => Ok(used),
        Err(fate) => settle(conn, Err(fate)).map(|()| bytes.len()),
    }
}

fn echo_messages(bytes: &[u8], turn: &mut Turn<'_>) -> Result<usize, Fate> {
    let mut used = 0;
    loop {
        let rest = bytes.get(used..).unwrap_or_default();
        let Some(frame) = websocket::take(rest).map_err(|_| Fate::Close)? else { return Ok(used) };
        used += frame.length;
        let payload = websocket::masked(frame.payload, frame.mask.unwrap_or_default());
        match frame.opcode {
            websocket::PONG => {}
            websocket::PING => websocket::put(websocket::PONG, &payload, None, turn.out),
            websocket::CLOSE => {
                websocket::put(websocket::CLOSE, &payload, None, turn.out);
                return Err(Fate::Close);
            }
            opcode => websocket::put(opcode, &payload, None, turn.out),
        }
    }
}
