//! The HTTP/2 connections of one worker to one host: each carries many requests at a time.
//!
//! A request gets a place on the first connection that has one. When none has, a connection is opened if limits
//! allow, one at a time; requests wait for it, or for a place, in order. A connection that the host wants to
//! end (GOAWAY), or that is old enough, gets no new requests and closes when its last one is over.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{poll_fn, Future};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::SendStream;
use http::Request;

use super::permit::Permit;
use super::pool::begun::Begun;
use super::pool::{ConnectionPermit, HostPool, UpstreamConnection};
use super::UpstreamError;
use crate::http::h2::guard::{Account, Flood, Guarded};
use crate::http::h2::ping::Pinger;
use crate::http::h2::{client_builder, HeadLimits, Options};
use crate::telemetry::stats::Http2Stats;
use crate::tls::upstream::Purpose;
use crate::tls::TlsInfo;

/// The connections of a pool and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: RefCell<Vec<Rc<Multiplexed>>>,
    connecting: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Turn>>>,
    /// How often opening one has failed, and why the last time.
    failures: Cell<u64>,
    failure: RefCell<Option<UpstreamError>>,
}

/// A request that waits.
#[derive(Debug, Default)]
struct Turn {
    waker: RefCell<Option<Waker>>,
    called: Cell<bool>,
}

/// A connection that carries several requests.
pub struct Multiplexed {
    /// `None` once it takes no more requests.
    send: RefCell<Option<SendRequest<Bytes>>>,
    pool: Rc<HostPool>,
    id: u64,
    local: Option<SocketAddr>,
    tls: Option<Rc<TlsInfo>>,
    account: Rc<Account>,
    permit: ConnectionPermit,
    active: Cell<u32>,
    requests: Cell<u32>,
    /// When it was first seen to have no requests.
    idle_since: Cell<Option<Instant>>,
    most: u32,
    /// When bytes came last, where a silent host is asked for a sign of life (`connection_idle_interval`).
    heard: Cell<Option<Instant>>,
    /// It is to be asked.
    ask: Cell<bool>,
}

impl std::fmt::Debug for Multiplexed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Multiplexed")
            .field("id", &self.id)
            .field("host", &self.pool.host.address_text)
            .field("active", &self.active.get())
            .finish_non_exhaustive()
    }
}

impl Multiplexed {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Our address on it.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// What TLS agreed on.
    pub fn tls(&self) -> Option<&Rc<TlsInfo>> {
        self.tls.as_ref()
    }

    /// What its codec counts.
    pub fn codec(&self) -> &Http2Stats {
        self.pool.cluster().stats().http2()
    }

    /// What it has done so far.
    pub fn account(&self) -> &Rc<Account> {
        &self.account
    }

    /// A handle to send a request, if one more may be sent now.
    fn handle(&self) -> Option<SendRequest<Bytes>> {
        let mut place = self.send.borrow_mut();
        let send = place.as_ref()?;
        let most = usize::try_from(self.most).unwrap_or(usize::MAX).min(send.current_max_send_streams());
        if self.active.get() as usize >= most {
            return None;
        }
        let mut send = send.clone();
        match send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Some(send),
            Poll::Pending => None,
            // It was told to go away, or is gone.
            Poll::Ready(Err(_)) => {
                *place = None;
                None
            }
        }
    }

    /// How many more requests it takes now.
    fn room(&self) -> usize {
        let most = usize::try_from(self.most).unwrap_or(usize::MAX);
        let most = self.send.borrow().as_ref().map_or(0, |send| send.current_max_send_streams().min(most));
        most.saturating_sub(self.active.get() as usize)
    }

    /// A host that was silent since `heard` is asked whether it is there; sending wakes who asks.
    #[cold]
    fn ask_after_silence(&self, heard: Instant) {
        let keepalive = self.pool.cluster().http.http2.keepalive;
        let most = keepalive.and_then(|keepalive| keepalive.idle_interval);
        if most.is_some_and(|most| heard.elapsed() > most) {
            self.ask.set(true);
        }
    }

    fn is_open(&self) -> bool {
        self.send.borrow().is_some()
    }

    /// It gets no more requests; it closes when those it has are over.
    fn close(&self) {
        *self.send.borrow_mut() = None;
    }
}

/// A request's place on a connection.
#[derive(Debug)]
pub struct StreamSlot {
    connection: Rc<Multiplexed>,
    send: Option<SendRequest<Bytes>>,
    reused: bool,
}

impl StreamSlot {
    /// The connection.
    pub fn connection(&self) -> &Rc<Multiplexed> {
        &self.connection
    }

    /// Whether the connection had been there before this request.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Sends the head of the request.
    ///
    /// # Errors
    /// When the connection takes no more requests; a second call for one place is such a case.
    pub fn send_request(
        &mut self,
        request: Request<()>,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        match self.send.take() {
            Some(mut send) => {
                let streams = &self.connection.account.streams;
                streams.set(streams.get() + 1);
                send.send_request(request, ends)
            }
            None => Err(h2::Reason::REFUSED_STREAM.into()),
        }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let connection = &self.connection;
        let left = connection.active.get().saturating_sub(1);
        connection.active.set(left);
        if left == 0 {
            connection.permit.set_busy(false);
        }
        connection.pool.connections().call_next();
    }
}

impl Connections {
    /// Whether one is being opened.
    pub(super) fn is_connecting(&self) -> bool {
        self.connecting.get()
    }

    /// Requests that wait, requests under way, and how many more there is room for.
    pub(super) fn load(&self) -> (usize, usize, usize) {
        let open = self.open.borrow();
        let active = open.iter().map(|connection| connection.active.get() as usize).sum();
        let free = open.iter().map(|connection| connection.room()).sum();
        (self.waiting.borrow().len(), active, free)
    }

    fn failed(&self, error: UpstreamError) {
        self.failures.set(self.failures.get() + 1);
        *self.failure.borrow_mut() = Some(error);
    }

    fn call_next(&self) {
        while let Some(turn) = self.waiting.borrow_mut().pop_front() {
            turn.called.set(true);
            if let Some(waker) = turn.waker.borrow_mut().take() {
                waker.wake();
                return;
            }
        }
    }

    fn call_all(&self) {
        for turn in self.waiting.borrow_mut().drain(..) {
            turn.called.set(true);
            if let Some(waker) = turn.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Waits until something has changed that may make room.
    async fn turn(&self) {
        let turn = Rc::new(Turn::default());
        self.waiting.borrow_mut().push_back(turn.clone());
        let leave = LeaveQueue { connections: self, turn: &turn };
        poll_fn(|context| {
            if turn.called.get() {
                return Poll::Ready(());
            }
            *turn.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        std::mem::forget(leave);
    }

    pub(super) fn retire(&self) {
        for connection in self.open.borrow_mut().drain(..) {
            connection.close();
        }
    }

    /// Closes connections that idled too long and forgets those that are closed.
    pub(super) fn sweep(&self, pool: &HostPool, now: Instant) {
        let limit = pool.cluster().http.idle_timeout;
        let mut open = self.open.borrow_mut();
        open.retain(|connection| {
            if connection.active.get() == 0 && connection.is_open() {
                let since = connection.idle_since.get().unwrap_or(now);
                connection.idle_since.set(Some(since));
                let idle = now.saturating_duration_since(since);
                if limit.is_some_and(|limit| idle >= limit) {
                    pool.cluster().stats().upstream_cx_idle_timeout.increment(1);
                    connection.close();
                }
            }
            connection.is_open()
        });
    }
}

/// A request that goes away while it waits; if it was called, the next is.
struct LeaveQueue<'a> {
    connections: &'a Connections,
    turn: &'a Rc<Turn>,
}

impl Drop for LeaveQueue<'_> {
    fn drop(&mut self) {
        self.connections.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, self.turn));
        if self.turn.called.get() {
            self.connections.call_next();
        }
    }
}

/// A connection is being opened.
struct Connecting(Rc<HostPool>);

impl Drop for Connecting {
    fn drop(&mut self) {
        let connections = self.0.connections();
        connections.connecting.set(false);
        connections.call_all();
    }
}

impl HostPool {
    /// A place on a connection that is open and has room. Never waits.
    pub fn reuse_stream(self: &Rc<Self>) -> Option<StreamSlot> {
        let connections = self.connections();
        let mut gone = false;
        let found = connections.open.borrow().iter().find_map(|connection| {
            let send = connection.handle();
            gone |= send.is_none() && !connection.is_open();
            send.map(|send| (connection.clone(), send))
        });
        if gone {
            connections.open.borrow_mut().retain(|connection| connection.is_open());
        }
        let slot = found.map(|(connection, send)| self.place(connection, send, true))?;
        if let Some(ratio) = self.preconnects() {
            self.preconnect_multiplexed(ratio, 0);
        }
        Some(slot)
    }

    fn place(
        self: &Rc<Self>,
        connection: Rc<Multiplexed>,
        send: SendRequest<Bytes>,
        reused: bool,
    ) -> StreamSlot {
        connection.active.set(connection.active.get() + 1);
        connection.idle_since.set(None);
        connection.permit.set_busy(true);
        if let Some(heard) = connection.heard.get() {
            connection.ask_after_silence(heard);
        }
        let requests = connection.requests.get().saturating_add(1);
        connection.requests.set(requests);
        let http = &self.cluster().http;
        if http.max_requests_per_connection != 0 && requests >= http.max_requests_per_connection {
            self.cluster().stats().upstream_cx_max_requests.increment(1);
            connection.close();
        } else if http
            .max_connection_duration
            .is_some_and(|most| connection.permit.opened().elapsed() >= most)
        {
            self.cluster().stats().upstream_cx_max_duration_reached.increment(1);
            connection.close();
        }
        StreamSlot { connection, send: Some(send), reused }
    }

    /// A place on a connection: one that is open, or a new one, or the next that becomes free.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn stream(self: &Rc<Self>, priority: usize) -> Result<StreamSlot, UpstreamError> {
        if let Some(slot) = self.reuse_stream() {
            return Ok(slot);
        }
        let _pending = self.pending(priority)?;
        let connections = self.connections();
        loop {
            if let Some(slot) = self.reuse_stream() {
                return Ok(slot);
            }
            if !connections.connecting.get() {
                if let Some(permit) = self.new_permit(priority)? {
                    let connection = self.begin_multiplexed(permit).await?;
                    if let Some(send) = connection.handle() {
                        let slot = self.place(connection, send, false);
                        if let Some(ratio) = self.preconnects() {
                            self.preconnect_multiplexed(ratio, priority);
                        }
                        return Ok(slot);
                    }
                    continue;
                }
            }
            let failures = connections.failures.get();
            connections.turn().await;
            // Who waited for a connection shares its fate.
            if connections.failures.get() != failures {
                if let Some(error) = &*connections.failure.borrow() {
                    return Err(error.clone());
                }
            }
        }
    }

    /// Opens a connection that no request has asked for.
    pub(super) fn connect_ahead(self: &Rc<Self>, permit: Permit) {
        // Why there is none is counted, and told to who has come meanwhile.
        tokio::task::spawn_local(self.begin_multiplexed(permit));
    }

    /// Begins to open a connection. Who comes meanwhile waits for it and shares its fate.
    fn begin_multiplexed(self: &Rc<Self>, permit: Permit) -> Begun<Result<Rc<Multiplexed>, UpstreamError>> {
        self.connections().connecting.set(true);
        let connecting = Connecting(self.clone());
        let attempt = async move {
            let pool = &connecting.0;
            let connected = pool.connect_multiplexed(permit).await;
            if let Err(error) = &connected {
                pool.connections().failed(error.clone());
            }
            connected
        };
        Begun::new(self, attempt, Some(|_, _| ()))
    }

    async fn connect_multiplexed(self: &Rc<Self>, permit: Permit) -> Result<Rc<Multiplexed>, UpstreamError> {
        let connection = self.connect(permit, Purpose::Http2).await?;
        self.multiplex(connection).await
    }

    /// Begins with HTTP/2 on `connection`.
    pub(super) async fn multiplex(
        self: &Rc<Self>,
        connection: Box<UpstreamConnection>,
    ) -> Result<Rc<Multiplexed>, UpstreamError> {
        let options: &Options = &self.cluster().http.http2;
        let idle_interval = options.keepalive.and_then(|keepalive| keepalive.idle_interval);
        self.cluster().stats().upstream_cx_http2_total.increment(1);
        let (id, local, tls) = (connection.id, connection.local, connection.tls.clone());
        let (stream, permit) = connection.split();
        let account: Rc<Account> = Rc::default();
        let http = &self.cluster().http;
        let heads = HeadLimits { bytes: http.max_response_headers, fields: http.max_headers_count as usize };
        let table = options.header_table_size;
        let socket = Guarded::client(stream, options.limits, table, heads, account.clone());
        let broken = |error: h2::Error| UpstreamError::Connect {
            host: self.host.address_text.clone(),
            reason: error.to_string(),
            local: false,
        };
        let handshake = client_builder(options, &self.cluster().http).handshake::<_, Bytes>(socket);
        let (send, mut driver) = handshake.await.map_err(broken)?;
        let connection = Rc::new(Multiplexed {
            send: RefCell::new(Some(send)),
            pool: self.clone(),
            id,
            local,
            tls,
            account,
            permit,
            active: Cell::new(0),
            requests: Cell::new(0),
            idle_since: Cell::new(None),
            most: options.max_concurrent_streams,
            heard: Cell::new(idle_interval.map(|_| Instant::now())),
            ask: Cell::new(false),
        });
        let mut received = 0;
        let mut pinger = Pinger::new(options.keepalive, driver.ping_pong(), id);
        let driven = connection.clone();
        tokio::task::spawn_local(async move {
            let mut told = false;
            poll_fn(|context| {
                if driven.ask.take() {
                    // Before the request that made us ask.
                    pinger.ask();
                    if pinger.poll(context).is_ready() {
                        driven.codec().keepalive_timeout.increment(1);
                        return Poll::Ready(());
                    }
                }
                let polled = std::pin::Pin::new(&mut driver).poll(context);
                if idle_interval.is_some() && driven.account.received.get() != received {
                    received = driven.account.received.get();
                    driven.heard.set(Some(Instant::now()));
                }
                if driven.account.going_away.get() && !told {
                    told = true;
                    driven.pool.cluster().stats().upstream_cx_close_notify.increment(1);
                    driven.close();
                }
                if polled.is_ready() {
                    driven.permit.note_remote_close(driven.is_open());
                    return Poll::Ready(());
                }
                let dead = pinger.poll(context);
                if dead.is_ready() {
                    driven.codec().keepalive_timeout.increment(1);
                }
                dead
            })
            .await;
            if let Some(flood) = driven.account.flood.get() {
                let codec = driven.codec();
                match flood {
                    Flood::Empty => codec.inbound_empty_frames_flood.increment(1),
                    Flood::Priority => codec.inbound_priority_frames_flood.increment(1),
                    Flood::WindowUpdate => codec.inbound_window_update_frames_flood.increment(1),
                    Flood::Control => codec.outbound_control_flood.increment(1),
                }
            }
            if let Some(broken) = driven.account.broken.get() {
                driven.pool.cluster().stats().upstream_cx_protocol_error.increment(1);
                driven.codec().header_overflow.increment(u64::from(broken.overflow));
            }
            driven.close();
            let connections = driven.pool.connections();
            connections.open.borrow_mut().retain(|other| !Rc::ptr_eq(other, &driven));
            connections.call_all();
        });
        self.connections().open.borrow_mut().push(connection.clone());
        Ok(connection)
    }
}
