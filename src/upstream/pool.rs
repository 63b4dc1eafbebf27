//! The connections of one worker to one host.
//!
//! A connection is either lent to a request or idle here. An idle connection is looked at before it
//! is lent again (readiness costs no system call): one that the peer closed, or that has bytes
//! nobody asked for, is dropped. When the connection limit is reached, requests wait in order.

pub(super) mod begun;
mod connect;
pub(super) mod leaving;
pub(super) mod preconnect;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use self::preconnect::Ahead;
use super::multiplex::Connections;
use super::permit::{Kind, Permit};
use super::UpstreamError;
use crate::config::{Cluster, Host};
use crate::runtime::buffer;
use crate::runtime::stream::Stream;
use crate::telemetry::stats::Held;
use crate::tls::upstream::{HostTls, Names};
use crate::tls::TlsInfo;

/// The pool of one host.
#[derive(Debug)]
pub struct HostPool {
    /// The host.
    pub host: Arc<Host>,
    cluster: Arc<Cluster>,
    idle: RefCell<Vec<Idle>>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    /// Connections open or opening, idle or lent.
    open: Cell<u32>,
    retired: Cell<bool>,
    /// How often the host had failed when this pool was made.
    failures: u32,
    /// Connections on their way that no request has asked for.
    ahead: Ahead,
    /// Connections on their way whose requests are gone.
    orphans: Cell<u32>,
    /// What the host has taught us about how long it keeps idle connections.
    learned_idle: Cell<Option<Duration>>,
    /// Those that carry several requests at a time.
    multiplexed: Connections,
    /// The names that TLS asks for.
    names: Names,
    /// What TLS keeps between connections.
    tls: HostTls,
    /// Whether the host speaks HTTP/2, where it is the host that says so.
    speaks_http2: Cell<Option<bool>>,
    /// That it has connections, or is about to, counts against `max_connection_pools`. Those of TCP do not.
    standing: RefCell<Option<Permit>>,
    /// Pools of connections that ask for other names.
    named: RefCell<HashMap<Names, Rc<HostPool>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<UpstreamConnection>,
    since: Instant,
}

/// A request that waits for a connection.
#[derive(Debug, Default)]
struct Waiter {
    state: RefCell<Waiting>,
}

#[derive(Debug, Default)]
enum Waiting {
    #[default]
    New,
    Parked(Waker),
    /// A connection to use.
    Given(Box<UpstreamConnection>),
    /// One was closed: there may be room to open another.
    Retry,
    Gone,
}

/// Numbers connections for logs.
static NEXT_ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// A connection to a host. Dropping it closes it and gives its permits back; [`HostPool::give_back`]
/// keeps it for the next request.
pub struct UpstreamConnection {
    /// The socket.
    pub stream: Stream,
    /// What TLS agreed on.
    pub tls: Option<Rc<TlsInfo>>,
    /// Our address on it.
    pub local: Option<SocketAddr>,
    /// Bytes read and not used yet.
    pub input: BytesMut,
    /// Its number.
    pub id: u64,
    /// Requests sent on it.
    pub requests: u32,
    /// Whether it was idle in the pool before this request.
    pub reused: bool,
    permit: ConnectionPermit,
}

/// What an open connection holds: its place in the breakers, gauges and counts. Dropping it says that
/// the connection is closed.
#[derive(Debug)]
pub struct ConnectionPermit {
    opened: Instant,
    pool: Rc<HostPool>,
    remote_closed: Cell<bool>,
    /// A request is on it.
    busy: Cell<bool>,
    _permit: Permit,
    _active: Active,
}

/// A request that waits for a connection counts as such while this lives.
pub(super) struct Pending {
    _permit: Permit,
    _gauge: Held,
}

/// The `upstream_cx_active` gauge, held.
struct Active(#[allow(dead_code)] Held);

impl std::fmt::Debug for Active {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Active")
    }
}

impl std::fmt::Debug for UpstreamConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamConnection")
            .field("id", &self.id)
            .field("host", &self.permit.pool.host.address_text)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

impl UpstreamConnection {
    /// Notes that the peer closed it, for the statistics.
    pub fn note_remote_close(&self) {
        self.permit.remote_closed.set(true);
    }

    /// The pool it belongs to.
    pub fn pool(&self) -> &Rc<HostPool> {
        &self.permit.pool
    }

    /// The stream alone, for a TCP session, and what must be held while it is open.
    pub fn split(self) -> (Stream, ConnectionPermit) {
        (self.stream, self.permit)
    }

    /// When it was opened.
    pub fn opened(&self) -> Instant {
        self.permit.opened
    }

    /// Whether nothing has happened on it that forbids another request.
    fn is_alive(&self) -> bool {
        // No readiness event since the last read means no system call here.
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl ConnectionPermit {
    /// When the connection was opened.
    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether requests are on it.
    pub(super) fn set_busy(&self, busy: bool) {
        self.busy.set(busy);
    }

    /// Who closed it, for the statistics.
    pub(super) fn note_remote_close(&self, remote: bool) {
        self.remote_closed.set(remote);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let stats = self.pool.cluster.stats();
        stats.upstream_cx_destroy.increment(1);
        if self.remote_closed.get() {
            stats.upstream_cx_destroy_remote.increment(1);
        } else {
            stats.upstream_cx_destroy_local.increment(1);
        }
        if self.busy.get() {
            stats.upstream_cx_destroy_with_active_rq.increment(1);
            if self.remote_closed.get() {
                stats.upstream_cx_destroy_remote_with_active_rq.increment(1);
            } else {
                stats.upstream_cx_destroy_local_with_active_rq.increment(1);
            }
        }
        stats.upstream_cx_length_ms.record(self.opened.elapsed().as_secs_f64() * 1000.0);
        self.pool.host.shared.active_connections.fetch_sub(1, Ordering::Relaxed);
        self.pool.closed_one();
    }
}

impl HostPool {
    pub(super) fn new(cluster: &Arc<Cluster>, host: Arc<Host>) -> Rc<Self> {
        Self::with_names(cluster, host, Names::default())
    }

    fn with_names(cluster: &Arc<Cluster>, host: Arc<Host>, names: Names) -> Rc<Self> {
        Rc::new(Self {
            failures: host.shared.failures.load(Ordering::Relaxed),
            host,
            cluster: cluster.clone(),
            idle: RefCell::default(),
            waiting: RefCell::default(),
            standing: RefCell::default(),
            open: Cell::new(0),
            retired: Cell::new(false),
            ahead: Ahead::default(),
            orphans: Cell::new(0),
            learned_idle: Cell::new(None),
            multiplexed: Connections::default(),
            names,
            tls: HostTls::default(),
            speaks_http2: Cell::new(None),
            named: RefCell::default(),
        })
    }

    /// The cluster that the host is of.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.multiplexed
    }

    /// An idle connection that is still alive, if there is one. Never waits.
    pub fn reuse(self: &Rc<Self>) -> Option<Box<UpstreamConnection>> {
        loop {
            let Idle { mut connection, since } = self.idle.borrow_mut().pop()?;
            if connection.is_alive() {
                connection.reused = true;
                connection.permit.busy.set(true);
                if let Some(ratio) = self.preconnects() {
                    self.preconnect(ratio, 0, 0);
                }
                return Some(connection);
            }
            self.learn(since.elapsed());
            connection.note_remote_close();
        }
    }

    /// A place among the requests that wait for a connection.
    ///
    /// # Errors
    /// All are taken.
    pub(super) fn pending(&self, priority: usize) -> Result<Pending, UpstreamError> {
        let stats = self.cluster.stats();
        let Some(permit) = Permit::take(&self.cluster, priority, Kind::Pending) else {
            stats.upstream_rq_pending_overflow.increment(1);
            return Err(UpstreamError::Overflow("max_pending_requests"));
        };
        stats.upstream_rq_pending_total.increment(1);
        Ok(Pending { _permit: permit, _gauge: Held::new(&stats.upstream_rq_pending_active) })
    }

    /// A connection: idle, new, or the next that becomes free when no new one is allowed.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connection(
        self: &Rc<Self>,
        priority: usize,
    ) -> Result<Box<UpstreamConnection>, UpstreamError> {
        if let Some(connection) = self.reuse() {
            return Ok(connection);
        }
        let _pending = self.pending(priority)?;
        loop {
            let permit = if self.has_orphans() { None } else { self.new_permit(priority)? };
            if let Some(permit) = permit {
                if let Some(ratio) = self.preconnects() {
                    self.preconnect(ratio, priority, 1);
                }
                return self.begin(permit).await;
            }
            if let Some(connection) = self.wait().await {
                return Ok(connection);
            }
            if let Some(connection) = self.reuse() {
                return Ok(connection);
            }
        }
    }

    /// A new connection for one TCP session, not to be pooled.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn dedicated(self: &Rc<Self>) -> Result<Box<UpstreamConnection>, UpstreamError> {
        let _pending = self.pending(0)?;
        let permit = (!self.is_full(0)).then(|| Permit::take(&self.cluster, 0, Kind::Connections)).flatten();
        let Some(permit) = permit else {
            self.cluster.stats().upstream_cx_overflow.increment(1);
            return Err(UpstreamError::Overflow("max_connections"));
        };
        self.begin_dedicated(permit).await
    }

    /// Takes a connection back after a request. `reusable` says that the exchange ended cleanly.
    pub fn give_back(&self, mut connection: Box<UpstreamConnection>, reusable: bool, now: Instant) {
        connection.requests += 1;
        connection.permit.busy.set(false);
        let http = &self.cluster.http;
        if !reusable || self.retired.get() || !connection.input.is_empty() {
            return;
        }
        if http.max_requests_per_connection != 0 && connection.requests >= http.max_requests_per_connection {
            self.cluster.stats().upstream_cx_max_requests.increment(1);
            return;
        }
        if http.max_connection_duration.is_some_and(|max| now.duration_since(connection.permit.opened) >= max)
        {
            self.cluster.stats().upstream_cx_max_duration_reached.increment(1);
            return;
        }
        // An idle connection holds no buffer.
        buffer::put_back(&mut connection.input);
        self.offer(connection, now);
    }

    /// Gives a connection to who waits for one, or keeps it.
    fn offer(&self, mut connection: Box<UpstreamConnection>, now: Instant) {
        if self.retired.get() {
            return;
        }
        while let Some(waiter) = self.next_waiter() {
            connection.reused = true;
            connection.permit.busy.set(true);
            match waiter.give(connection) {
                None => return,
                Some(back) => connection = back,
            }
        }
        connection.permit.busy.set(false);
        self.idle.borrow_mut().push(Idle { connection, since: now });
    }

    /// Stops pooling: the host left or the cluster was replaced. Requests in flight finish.
    pub fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.retire_shared();
    }

    /// Retires all but its own connections for one request at a time.
    fn retire_shared(&self) {
        self.multiplexed.retire();
        for pool in self.named.borrow().values() {
            pool.retire();
        }
    }

    /// Whether checks or outlier detection have found the host to have failed since this pool was made.
    pub(super) fn has_failed(&self) -> bool {
        self.host.shared.failures.load(Ordering::Relaxed) != self.failures
    }

    /// Whether any connection is open.
    pub fn is_used(&self) -> bool {
        self.open.get() > 0 || self.named.borrow().values().any(|pool| pool.is_used())
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.multiplexed.sweep(self, now);
        // Names come from requests: those that nobody uses are forgotten.
        self.named.borrow_mut().retain(|_, pool| {
            pool.sweep(now);
            pool.is_used() || Rc::strong_count(pool) > 1
        });
        let limit = match (self.cluster.http.idle_timeout, self.learned_idle.get()) {
            (Some(configured), Some(learned)) => Some(configured.min(learned)),
            (configured, learned) => configured.or(learned),
        };
        let mut dropped = Vec::new();
        self.idle.borrow_mut().retain_mut(|idle| {
            let age = now.saturating_duration_since(idle.since);
            let closed = !idle.connection.is_alive();
            let expired = limit.is_some_and(|limit| age >= limit);
            if closed || expired {
                dropped.push((closed, age));
                if closed {
                    idle.connection.note_remote_close();
                }
            }
            !(closed || expired)
        });
        for (closed, age) in dropped {
            if closed {
                self.learn(age);
            } else {
                self.cluster.stats().upstream_cx_idle_timeout.increment(1);
            }
        }
    }

    /// Remembers that the host closed a connection idle for `age`, to retire the next ones a fifth
    /// earlier. Closes within the first second teach nothing: they are restarts, not idle limits.
    fn learn(&self, age: Duration) {
        if age < Duration::from_secs(1) {
            return;
        }
        let earlier = age.mul_f64(0.8);
        let known = self.learned_idle.get().unwrap_or(Duration::MAX);
        self.learned_idle.set(Some(earlier.min(known)));
    }

    /// Whether all workers together have as many connections to the host as it may have
    /// (`per_host_thresholds`).
    fn is_full(&self, priority: usize) -> bool {
        // Those that are being opened count in `open` only, and only this worker's.
        let open = || self.host.shared.active_connections.load(Ordering::Relaxed).max(self.open.get());
        self.cluster.breakers[usize::from(priority == 1)]
            .per_host_connections
            .is_some_and(|most| open() >= most)
    }

    /// For a connection for HTTP, if there may be one more.
    ///
    /// # Errors
    /// The pool has none, and there are too many pools that have.
    pub(super) fn new_permit(&self, priority: usize) -> Result<Option<Permit>, UpstreamError> {
        self.stand(priority)?;
        Ok(self.connection_permit(priority))
    }

    /// Makes the pool one of those that count.
    fn stand(&self, priority: usize) -> Result<(), UpstreamError> {
        let mut standing = self.standing.borrow_mut();
        if standing.is_none() {
            *standing = Permit::take(&self.cluster, priority, Kind::Pools);
        }
        if standing.is_none() {
            self.cluster.stats().upstream_cx_pool_overflow.increment(1);
            // As in Envoy, whoever has no pool has no host.
            return Err(UpstreamError::NoHealthyHost);
        }
        Ok(())
    }

    /// The pool counts no longer if nothing is left of it.
    fn fall_if_unused(&self) {
        if self.open.get() == 0 && self.waiting.borrow().is_empty() {
            self.standing.take();
        }
    }

    fn connection_permit(&self, priority: usize) -> Option<Permit> {
        if !self.is_full(priority) {
            if let Some(permit) = Permit::take(&self.cluster, priority, Kind::Connections) {
                return Some(permit);
            }
        }
        self.cluster.stats().upstream_cx_overflow.increment(1);
        // A host without any connection is always allowed one, as in Envoy.
        (self.open.get() == 0).then(|| Permit::take_anyway(&self.cluster, priority, Kind::Connections))
    }

    async fn wait(&self) -> Option<Box<UpstreamConnection>> {
        let waiter = Rc::new(Waiter::default());
        self.waiting.borrow_mut().push_back(waiter.clone());
        let guard = Leave { pool: self, waiter: waiter.clone() };
        let given = poll_fn(|context| {
            let mut state = waiter.state.borrow_mut();
            match std::mem::replace(&mut *state, Waiting::Parked(context.waker().clone())) {
                Waiting::Given(connection) => {
                    *state = Waiting::Gone;
                    Poll::Ready(Some(connection))
                }
                Waiting::Retry => {
                    *state = Waiting::Gone;
                    Poll::Ready(None)
                }
                _ => Poll::Pending,
            }
        })
        .await;
        drop(guard);
        given
    }

    fn next_waiter(&self) -> Option<Rc<Waiter>> {
        self.waiting.borrow_mut().pop_front()
    }

    /// A connection of this pool ended: somebody who waits may open another.
    fn closed_one(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        if let Some(waiter) = self.next_waiter() {
            waiter.retry();
        } else {
            self.fall_if_unused();
        }
    }
}

/// A connection being opened; counts as open until it fails or becomes an [`UpstreamConnection`].
struct Opening(Option<Rc<HostPool>>);

impl Opening {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.closed_one();
        }
    }
}

impl Waiter {
    /// Hands the connection over, or gives it back when nobody waits any more.
    fn give(&self, connection: Box<UpstreamConnection>) -> Option<Box<UpstreamConnection>> {
        let mut state = self.state.borrow_mut();
        match std::mem::replace(&mut *state, Waiting::Gone) {
            Waiting::Gone => Some(connection),
            before => {
                *state = Waiting::Given(connection);
                if let Waiting::Parked(waker) = before {
                    waker.wake();
                }
                None
            }
        }
    }

    fn retry(&self) {
        let mut state = self.state.borrow_mut();
        if let Waiting::Parked(waker) = std::mem::replace(&mut *state, Waiting::Retry) {
            waker.wake();
        }
    }
}

/// Takes a waiter out of the queue when its request goes away; a connection that was already given
/// to it goes back to the pool.
struct Leave<'a> {
    pool: &'a HostPool,
    waiter: Rc<Waiter>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.pool.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiter));
        let state = std::mem::replace(&mut *self.waiter.state.borrow_mut(), Waiting::Gone);
        match state {
            Waiting::Given(connection) => {
                connection.permit.busy.set(false);
                self.pool.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
            }
            Waiting::Retry => self.pool.wake_next(),
            _ => {}
        }
        self.pool.fall_if_unused();
    }
}

impl HostPool {
    fn wake_next(&self) {
        if let Some(waiter) = self.next_waiter() {
            waiter.retry();
        }
    }
}

/// Whether a connect failed for want of something of our own.
fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
        )
    )
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
