//! One downstream HTTP/2 connection: its streams, each a request of its own, until it is drained, idle or cut.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{ready, Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};

use super::body::{Incoming, Outgoing};
use super::guard::{Account, Broken, Flood, Guarded};
use super::heads::{self, Bad, Parsed};
use super::ping::Pinger;
use super::{HeadLimits, Options, ERROR_RESETS, PENDING_RESETS, RESETS_KEPT, SEND_BUFFER};
use crate::config::http::HttpConnectionManager;
use crate::http::client::Client;
use crate::http::connection::Downstream;
use crate::http::exchange::{Exchange, Next};
use crate::http::head::ResponseHead;
use crate::http::timer::LazyTimer;
use crate::http::worker::Worker;
use crate::runtime::stream::Stream;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::ConnectionInfo;

/// A connection's first frames, and its last ones, may take so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// A stream that its client resets sooner than this was opened for nothing (Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`).
const PREMATURE: Duration = Duration::from_secs(1);
/// After so many streams, half of which were opened for nothing, the connection is cut (Envoy's
/// `overload.premature_reset_total_stream_count`).
const PREMATURE_STREAMS: u64 = 500;
/// Timers kept for the next streams of a connection.
const TIMERS_KEPT: usize = 64;

/// A client's stream.
#[derive(Debug)]
pub struct ServerStream {
    /// The request's body.
    pub incoming: Incoming,
    /// The response's body.
    pub outgoing: Outgoing,
    respond: SendResponse<Bytes>,
    begun: bool,
    reset: bool,
    connection: Rc<Connection>,
}

impl ServerStream {
    /// Ready when the client has ended the stream before its time.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_end(context));
        self.reset = true;
        Poll::Ready(())
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.begun {
            self.outgoing.poll_reset(context)
        } else {
            self.respond.poll_reset(context).map(|reset| reset.is_ok())
        }
    }

    /// Whether the client has ended the stream before its time, while the connection goes on.
    pub fn was_reset(&mut self) -> bool {
        let reset = self.poll_end(&mut Context::from_waker(Waker::noop()));
        self.reset |= reset.is_ready();
        reset == Poll::Ready(true)
    }

    /// Passes a 1xx on.
    pub fn interim(&mut self, head: &ResponseHead) {
        if head.status != 101 {
            // Fails only on a stream that has ended; that shows elsewhere.
            let _ = self.respond.send_informational(heads::to_client(head));
        }
    }

    /// Lets the client send its body.
    pub fn send_continue(&mut self) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        let _ = self.respond.send_informational(response);
    }

    /// Begins the response; `ends` says that nothing follows its head.
    pub fn begin(&mut self, head: &ResponseHead, ends: bool) {
        match self.respond.send_response(heads::to_client(head), ends) {
            Ok(stream) => {
                self.outgoing.open(stream, ends, self.connection.account.clone());
                self.begun = true;
            }
            // The stream has ended; so has the request.
            Err(_) => self.outgoing.fail(),
        }
    }

    /// Asks the client to open no more streams on this connection.
    pub fn drain(&self) -> bool {
        let first = !self.connection.drain.replace(true);
        self.connection.wake();
        first
    }

    /// Ends the stream where its response broke off.
    pub fn break_off(&mut self, reason: Reason) {
        if self.begun {
            self.outgoing.reset(reason);
        } else {
            self.respond.send_reset(reason);
        }
    }
}

/// What the streams of a connection share.
#[derive(Debug)]
struct Connection {
    account: Rc<Account>,
    active: Cell<usize>,
    idle_since: Cell<Instant>,
    /// GOAWAY is to be sent, or was.
    drain: Cell<bool>,
    /// When it is to be sent, because the client should connect anew.
    moves: Cell<Option<Instant>>,
    ended: Cell<u64>,
    premature: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    timers: RefCell<Vec<LazyTimer>>,
    info: Rc<ConnectionInfo>,
}

/// The HTTP/2 connections of one worker. Over HTTP/1 a response says that the connection will close; one that
/// carries none for now must be told to leave by itself, or its client's next request comes too late.
#[derive(Debug, Default)]
pub struct Registry(RefCell<Vec<Weak<Connection>>>);

impl Registry {
    fn add(&self, connection: &Rc<Connection>) {
        self.0.borrow_mut().push(Rc::downgrade(connection));
    }

    /// Tells those to leave whose time has come. Called about once a second.
    pub fn sweep(&self, worker: &Worker, now: Instant) {
        self.choose_movers(worker, now);
        self.0.borrow_mut().retain(|connection| {
            let Some(connection) = connection.upgrade() else { return false };
            let info = &connection.info;
            let leaving = worker.drain.announces_close(now, info.inbound, || worker.random())
                || info.retirement.announces_close(now, || worker.random())
                || connection.moves.get().is_some_and(|moment| moment <= now);
            if leaving && !connection.drain.replace(true) {
                connection.wake();
            }
            !leaving
        });
    }
}

impl Registry {
    /// Where this service has grown, chooses who is to connect anew, and when.
    fn choose_movers(&self, worker: &Worker, now: Instant) {
        let Some(rebalance) = &worker.rebalance else { return };
        let options = &rebalance.options;
        let cluster = worker.clusters.find(&options.cluster);
        let cluster = cluster.and_then(|slot| worker.upstreams.cluster(&slot));
        let hosts = cluster.map_or(0, |cluster| cluster.cluster.hosts.load().all.len());
        let share = rebalance.share(hosts);
        if share == 0.0 {
            return;
        }
        let mut rng = worker.rng.borrow_mut();
        for connection in self.0.borrow().iter().filter_map(Weak::upgrade) {
            if rng.f64() < share && connection.moves.get().is_none() {
                connection.moves.set(Some(now + options.window.mul_f64(rng.f64())));
            }
        }
    }
}

impl Connection {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn watch(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            place => *place = Some(context.waker().clone()),
        }
    }

    fn timer(&self) -> LazyTimer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    /// A stream that began at `start` is over at `end`; `reset` says that its client ended it.
    fn stream_ended(&self, mut timer: LazyTimer, reset: bool, start: Instant, end: Instant) {
        timer.forget_task();
        let mut timers = self.timers.borrow_mut();
        if timers.len() < TIMERS_KEPT {
            timers.push(timer);
        }
        self.ended.set(self.ended.get() + 1);
        if reset && end.saturating_duration_since(start) < PREMATURE {
            self.premature.set(self.premature.get() + 1);
        }
        let left = self.active.get().saturating_sub(1);
        self.active.set(left);
        if left == 0 || self.is_abused() {
            self.idle_since.set(end);
            self.wake();
        }
    }

    /// Whether the client opens streams only to reset them.
    fn is_abused(&self) -> bool {
        let (ended, premature) = (self.ended.get(), self.premature.get());
        if ended < PREMATURE_STREAMS {
            premature >= PREMATURE_STREAMS / 2
        } else {
            premature * 2 >= ended
        }
    }
}

/// What comes next on a connection.
#[allow(clippy::large_enum_variant)] // Most are requests.
enum Event {
    Request(Request<RecvStream>, SendResponse<Bytes>),
    /// The peer or the socket ended it.
    Ended(Option<h2::Error>),
    Flood(Flood),
    /// Frames that are wrong in themselves.
    Broken(Broken),
    /// Streams opened only to be reset.
    Abuse,
    Idle,
    TooOld,
    /// The time to leave is over.
    Late,
    /// A head that does not come to its end.
    Half,
    /// No answer to a PING.
    Dead,
}

fn builder(options: &Options, manager: &HttpConnectionManager) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .header_table_size(options.header_table_size)
        .max_concurrent_streams(options.max_concurrent_streams)
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_header_list_size(u32::try_from(manager.limits.max_head).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(RESETS_KEPT)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER);
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Serves a connection whose protocol is known. `prefix` was read before; `buffer_limit` is the listener's. Says
/// whether it was the client that ended it.
pub async fn serve(
    worker: Rc<Worker>,
    manager: Arc<HttpConnectionManager>,
    stream: Stream,
    prefix: BytesMut,
    buffer_limit: usize,
    info: Rc<ConnectionInfo>,
) -> bool {
    let stats = &manager.stats;
    stats.downstream_cx_http2_total.increment(1);
    let _http2 = Held::new(&stats.downstream_cx_http2_active);
    let account: Rc<Account> = Rc::default();
    let options = &manager.http2;
    let heads = HeadLimits { bytes: manager.limits.max_head, fields: manager.limits.max_fields };
    let table = options.header_table_size;
    let socket = Guarded::server(stream, prefix, options.limits, table, heads, account.clone());
    let handshake = builder(options, &manager).handshake::<_, Bytes>(socket);
    let mut connection = match tokio::time::timeout(PATIENCE, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            if !error.is_io() {
                stats.downstream_cx_protocol_error.increment(1);
            }
            return error.is_io();
        }
        Err(_) => return false,
    };
    let shared = Rc::new(Connection {
        account,
        active: Cell::new(0),
        idle_since: Cell::new(info.start),
        drain: Cell::new(false),
        moves: Cell::new(None),
        ended: Cell::new(0),
        premature: Cell::new(0),
        waker: RefCell::default(),
        timers: RefCell::default(),
        info: info.clone(),
    });
    worker.multiplexed.add(&shared);
    let mut timer = LazyTimer::default();
    let mut pinger = Pinger::new(options.keepalive, connection.ping_pong(), worker.random());
    let mut requests = 0u32;
    // When it is cut, once it was told to leave and has no streams.
    let mut leaving: Option<Instant> = None;
    let mut told = false;
    // When the head must be complete whose first bytes are here.
    let mut half: Option<Instant> = None;
    let head_patience = manager.timeouts.request_headers.unwrap_or(PATIENCE);
    let codec = &manager.http2_stats;
    loop {
        let idle = manager.timeouts.idle;
        let oldest = manager.timeouts.max_connection_duration.map(|age| info.start + age);
        let event = poll_fn(|context| {
            shared.watch(context);
            if shared.drain.get() && !told {
                told = true;
                codec.goaway_sent.increment(1);
                connection.graceful_shutdown();
            }
            if shared.is_abused() {
                return Poll::Ready(Event::Abuse);
            }
            let accepted = connection.poll_accept(context);
            count_refused(&shared.account, &manager);
            if let Some(flood) = shared.account.flood.get() {
                return Poll::Ready(Event::Flood(flood));
            }
            if let Some(broken) = shared.account.broken.get() {
                return Poll::Ready(Event::Broken(broken));
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    return Poll::Ready(Event::Request(request, respond))
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Ended(Some(error))),
                Poll::Ready(None) => return Poll::Ready(Event::Ended(None)),
                Poll::Pending => {}
            }
            if pinger.poll(context).is_ready() {
                return Poll::Ready(Event::Dead);
            }
            half = shared.account.half.get().then(|| half.unwrap_or_else(|| Instant::now() + head_patience));
            let quiet = shared.active.get() == 0;
            let idle_end = idle.filter(|_| quiet && !told).map(|idle| shared.idle_since.get() + idle);
            let old = oldest.filter(|_| !told);
            let late = leaving.filter(|_| quiet);
            let nearest = [idle_end, old, late, half].into_iter().flatten().min();
            ready!(timer.poll(nearest, context));
            let now = Instant::now();
            Poll::Ready(match (half, late, old) {
                (Some(half), ..) if half <= now => Event::Half,
                (_, Some(late), _) if late <= now => Event::Late,
                (_, _, Some(old)) if old <= now => Event::TooOld,
                _ => Event::Idle,
            })
        })
        .await;
        match event {
            Event::Request(request, respond) => {
                shared.account.accepted.set(respond.stream_id().as_u32());
                requests = requests.saturating_add(1);
                let limit = manager.max_requests_per_connection;
                if limit != 0 && requests >= limit && !shared.drain.replace(true) {
                    stats.downstream_cx_max_requests_reached.increment(1);
                }
                shared.active.set(shared.active.get() + 1);
                let stream = Arriving { request, respond, buffer_limit, requests };
                let (worker, manager) = (worker.clone(), manager.clone());
                let (shared, info) = (shared.clone(), info.clone());
                // Boxed, because the runtime moves a task's future about when it begins and when it ends.
                tokio::task::spawn_local(Box::pin(serve_stream(worker, manager, shared, info, stream)));
            }
            Event::Idle => {
                stats.downstream_cx_idle_timeout.increment(1);
                shared.drain.set(true);
                leaving = Some(Instant::now() + manager.drain_timeout);
            }
            Event::TooOld => {
                stats.downstream_cx_max_duration_reached.increment(1);
                shared.drain.set(true);
                leaving = Some(Instant::now() + manager.drain_timeout);
            }
            Event::Late => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                finish(&mut connection).await;
                break;
            }
            Event::Half => {
                stats.downstream_rq_header_timeout.increment(1);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                finish(&mut connection).await;
                break;
            }
            Event::Dead => {
                codec.keepalive_timeout.increment(1);
                break;
            }
            Event::Flood(flood) => {
                match flood {
                    Flood::Empty => codec.inbound_empty_frames_flood.increment(1),
                    Flood::Priority => codec.inbound_priority_frames_flood.increment(1),
                    Flood::WindowUpdate => codec.inbound_window_update_frames_flood.increment(1),
                    Flood::Control => codec.outbound_control_flood.increment(1),
                }
                stats.downstream_cx_protocol_error.increment(1);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                finish(&mut connection).await;
                break;
            }
            Event::Broken(broken) => {
                if broken.overflow {
                    codec.header_overflow.increment(1);
                }
                stats.downstream_cx_protocol_error.increment(1);
                connection.abrupt_shutdown(broken.reason);
                finish(&mut connection).await;
                break;
            }
            Event::Abuse => {
                manager.stats.downstream_rq_too_many_premature_resets.increment(1);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                finish(&mut connection).await;
                break;
            }
            Event::Ended(error) => {
                let ours = error.as_ref().filter(|error| !error.is_io() && !error.is_remote());
                if let Some(error) = ours {
                    stats.downstream_cx_protocol_error.increment(1);
                    count_ended(error, &shared.account, &manager);
                }
                return ours.is_none();
            }
        }
    }
    false
}

/// Counts what the crate answered by itself.
fn count_refused(account: &Account, manager: &HttpConnectionManager) {
    if account.malformed.get() + account.overflows.get() + account.refused.get() == 0 {
        return;
    }
    let codec = &manager.http2_stats;
    let (malformed, overflows, refused) =
        (account.malformed.take(), account.overflows.take(), account.refused.take());
    codec.rx_messaging_error.increment(malformed);
    codec.header_overflow.increment(overflows);
    codec.tx_reset.increment(refused);
    manager.stats.downstream_rq_tx_reset.increment(refused);
}

/// Counts why the crate ended a connection. It says so in words only, and to the client only.
fn count_ended(error: &h2::Error, account: &Account, manager: &HttpConnectionManager) {
    if error.reason() != Some(Reason::ENHANCE_YOUR_CALM) {
        return;
    }
    let codec = &manager.http2_stats;
    let farewell = account.farewell.borrow();
    let words = String::from_utf8_lossy(&farewell);
    if words.contains("resets") {
        manager.stats.downstream_rq_too_many_premature_resets.increment(1);
    } else if words.contains("data_frames") {
        codec.inbound_empty_frames_flood.increment(1);
    } else {
        codec.header_overflow.increment(1);
    }
}

/// Lets the last frames go.
async fn finish(connection: &mut h2::server::Connection<Guarded, Bytes>) {
    let closed = poll_fn(|context| connection.poll_closed(context));
    let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
}

/// Heads of all streams of a connection may take so much more than the client ever sent. A client that opens many
/// streams with heads that are large only once they are decoded, and lets none of them end, gets no more of them.
const HEADS_HELD: u64 = 4 << 20;
/// A head below this is never too much: a whole compression table of the default size may be in it.
const SMALL_HEAD: u64 = 4 * 1024;

/// What a head takes.
struct HeadRoom(Rc<Account>, u64);

impl HeadRoom {
    fn take(account: &Rc<Account>, size: usize) -> Option<Self> {
        let size = size as u64;
        let held = account.held.get() + size;
        if held > HEADS_HELD + account.received.get() && size > SMALL_HEAD {
            return None;
        }
        account.held.set(held);
        Some(Self(account.clone(), size))
    }
}

impl Drop for HeadRoom {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get().saturating_sub(self.1));
    }
}

/// A request that has just come.
struct Arriving {
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    buffer_limit: usize,
    requests: u32,
}

async fn serve_stream(
    worker: Rc<Worker>,
    manager: Arc<HttpConnectionManager>,
    connection: Rc<Connection>,
    info: Rc<ConnectionInfo>,
    stream: Arriving,
) {
    let Arriving { request, mut respond, buffer_limit, requests } = stream;
    let (parts, body) = request.into_parts();
    let start = Instant::now();
    let codec = &manager.http2_stats;
    let parsed = heads::request(&parts, body.is_end_stream(), &manager.limits, || worker.random());
    drop(parts);
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(bad) => {
            match bad {
                Bad::Malformed(_) => codec.rx_messaging_error.increment(1),
                Bad::TooManyFields => codec.header_overflow.increment(1),
                Bad::Underscore => codec.requests_rejected_with_underscores_in_headers.increment(1),
            }
            codec.tx_reset.increment(1);
            manager.stats.downstream_rq_total.increment(1);
            manager.stats.downstream_rq_http2_total.increment(1);
            manager.stats.downstream_rq_tx_reset.increment(1);
            respond.send_reset(Reason::PROTOCOL_ERROR);
            drop((body, respond));
            connection.stream_ended(LazyTimer::default(), true, start, start);
            return;
        }
    };
    let Parsed { head, framing, expects_continue, dropped } = parsed;
    let Some(_room) = HeadRoom::take(&connection.account, head.fields.size()) else {
        codec.header_overflow.increment(1);
        codec.tx_reset.increment(1);
        respond.send_reset(Reason::REFUSED_STREAM);
        drop((body, respond));
        connection.stream_ended(LazyTimer::default(), true, start, start);
        return;
    };
    let _active = Held::new(&codec.streams_active);
    if dropped > 0 {
        codec.dropped_headers_with_underscores.increment(dropped);
    }
    let stream = ServerStream {
        incoming: Incoming::new(body),
        outgoing: Outgoing::default(),
        respond,
        begun: false,
        reset: false,
        connection: connection.clone(),
    };
    let mut down = Downstream {
        client: Client::Http2(Box::new(stream)),
        timer: connection.timer(),
        info,
        buffer_limit,
        requests,
        idle_since: start,
    };
    let next = {
        let mut exchange = Exchange::new(&worker, &manager, &mut down);
        exchange.run_stream(head, framing, expects_continue).await
    };
    let Downstream { client, timer, idle_since: end, .. } = down;
    let mut reset = false;
    if let Client::Http2(mut stream) = client {
        reset = stream.reset;
        match next {
            Next::Keep => {}
            Next::Abort => codec.rx_reset.increment(1),
            // An answer that broke off, with a head or without one.
            Next::Reset => {
                codec.tx_reset.increment(1);
                stream.break_off(Reason::INTERNAL_ERROR);
            }
            // What the client was told is whole; the rest of its request is not waited for.
            Next::Close => {}
        }
    }
    connection.stream_ended(timer, reset, start, end);
}
