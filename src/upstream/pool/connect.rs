//! How a pool's connections are made: the way to the host, and TLS with what it agrees on.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;

use super::begun::Begun;
use super::{is_local, Active, ConnectionPermit, HostPool, Idle, Opening, UpstreamConnection, NEXT_ID};
use crate::config::cluster::{Address, SocketTuning};
use crate::runtime::stream::Stream;
use crate::runtime::{internal, socket};
use crate::telemetry::stats::Held;
use crate::tls::upstream::{Names, Purpose};
use crate::tls::TlsInfo;
use crate::upstream::balancing::{clock, suspect};
use crate::upstream::permit::{Kind, Permit};
use crate::upstream::UpstreamError;

impl HostPool {
    /// The pool of connections to the same host that ask for `names`.
    pub fn named(self: &Rc<Self>, names: &Names) -> Rc<Self> {
        if *names == self.names {
            return self.clone();
        }
        let mut named = self.named.borrow_mut();
        let make = || Self::with_names(&self.cluster, self.host.clone(), names.clone());
        named.entry(names.clone()).or_insert_with(make).clone()
    }

    /// Whether the host speaks HTTP/2, where it is the host that says so; `None` while it has no connection.
    pub fn speaks_http2(&self) -> Option<bool> {
        self.speaks_http2.get().filter(|_| self.open.get() > 0)
    }

    /// Opens a connection to find out what the host speaks; it serves the next request.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn find_out(self: &Rc<Self>, priority: usize) -> Result<bool, UpstreamError> {
        let _pending = self.pending(priority)?;
        loop {
            if let Some(known) = self.speaks_http2() {
                return Ok(known);
            }
            let permit = if self.has_orphans() { None } else { self.new_permit(priority)? };
            let Some(permit) = permit else {
                if let Some(connection) = self.wait().await {
                    self.give_back(connection, true, Instant::now());
                }
                continue;
            };
            let pool = self.clone();
            let attempt = async move { pool.connect_to_find_out(permit).await };
            Begun::new(self, attempt, Some(|_, _| ())).await?;
        }
    }

    async fn connect_to_find_out(self: &Rc<Self>, permit: Permit) -> Result<(), UpstreamError> {
        let connection = self.connect(permit, Purpose::Auto).await?;
        let http2 = connection.stream.tls().is_some_and(|tls| tls.speaks(b"h2"));
        self.speaks_http2.set(Some(http2));
        if http2 {
            self.multiplex(connection).await?;
        } else {
            self.cluster.stats().upstream_cx_http1_total.increment(1);
            self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
            // Who may have come to wait for one whose request is gone finds it.
            self.wake_next();
        }
        Ok(())
    }

    /// A connection for one TCP session that another process has opened. It counts as open whatever the limits are.
    pub fn adopt(self: &Rc<Self>, stream: Stream) -> Box<UpstreamConnection> {
        let stats = self.cluster.stats();
        self.open.set(self.open.get() + 1);
        stats.upstream_cx_total.increment(1);
        self.host.shared.counters.cx_total.fetch_add(1, Ordering::Relaxed);
        let permit = Permit::take_anyway(&self.cluster, 0, Kind::Connections);
        self.opened(permit, Instant::now(), (stream, None), true)
    }

    fn opened(
        self: &Rc<Self>,
        permit: Permit,
        opened: Instant,
        (stream, tls): (Stream, Option<Rc<TlsInfo>>),
        busy: bool,
    ) -> Box<UpstreamConnection> {
        self.host.shared.active_connections.fetch_add(1, Ordering::Relaxed);
        Box::new(UpstreamConnection {
            local: stream.local_addr(),
            stream,
            tls,
            input: BytesMut::new(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            requests: 0,
            reused: false,
            permit: ConnectionPermit {
                opened,
                pool: self.clone(),
                remote_closed: Cell::new(false),
                busy: Cell::new(busy),
                _permit: permit,
                _active: Active(Held::new(&self.cluster.stats().upstream_cx_active)),
            },
        })
    }

    /// Opens a connection for `purpose`.
    pub(in crate::upstream) async fn connect(
        self: &Rc<Self>,
        permit: Permit,
        purpose: Purpose,
    ) -> Result<Box<UpstreamConnection>, UpstreamError> {
        let http1 = purpose == Purpose::Http1;
        let stats = self.cluster.stats();
        self.open.set(self.open.get() + 1);
        let opening = Opening(Some(self.clone()));
        stats.upstream_cx_total.increment(1);
        stats.upstream_cx_http1_total.increment(u64::from(http1));
        self.host.shared.counters.cx_total.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let outcome = tokio::time::timeout(self.cluster.connect_timeout, self.reach(purpose)).await;
        let error = match outcome {
            Ok(Ok(reached)) => {
                opening.done();
                stats.upstream_cx_connect_ms.record(started.elapsed().as_secs_f64() * 1000.0);
                suspect::reached(&self.host);
                // A session is on its connection as long as that is open.
                let busy = matches!(purpose, Purpose::Http1 | Purpose::Tcp);
                return Ok(self.opened(permit, started, reached, busy));
            }
            Ok(Err(error)) => error,
            Err(_) => {
                stats.upstream_cx_connect_timeout.increment(1);
                UpstreamError::ConnectTimeout { host: self.host.address_text.clone() }
            }
        };
        stats.upstream_cx_connect_fail.increment(1);
        stats.upstream_cx_destroy.increment(1);
        stats.upstream_cx_destroy_remote.increment(1);
        stats.upstream_rq_pending_failure_eject.increment(1);
        self.host.shared.counters.cx_connect_fail.fetch_add(1, Ordering::Relaxed);
        let ours = matches!(error, UpstreamError::Connect { local: true, .. });
        if !ours && self.cluster.balancing.suspects && suspect::failed(&self.host, clock()) {
            stats.count_suspect();
        }
        Err(error)
    }

    /// The socket's options, where they depend on the client.
    fn own_socket(&self) -> Option<SocketTuning> {
        let socket = self.cluster.socket_to(&self.host);
        if self.names.source.is_none() && self.names.ends.is_none() {
            return match socket {
                Cow::Borrowed(_) => None,
                Cow::Owned(own) => Some(own),
            };
        }
        let mut tuning = socket.into_owned();
        if let Some((address, mark)) = self.names.source {
            tuning.source_address = Some(address);
            tuning.transparent = true;
            tuning.mark = (mark != 0).then_some(mark).or(tuning.mark);
        }
        tuning.announced = tuning.announced.map(|(version, _)| (version, self.names.ends));
        Some(tuning)
    }

    /// Connects to the host, and speaks TLS with it if config says so.
    async fn reach(&self, purpose: Purpose) -> Result<(Stream, Option<Rc<TlsInfo>>), UpstreamError> {
        let own = self.own_socket();
        let tuning = own.as_ref().unwrap_or(&self.cluster.socket);
        let connected = match &self.host.address {
            Address::Internal(internal) => {
                let passing = self.cluster.passing_to(&self.host);
                let passed = passing.map(|passing| passing.passed(&self.host, self.names.shared.as_ref()));
                internal::connect(&internal.listener, passed.unwrap_or_default())
                    .and_then(|stream| socket::announce(&stream, tuning).map(|()| stream))
            }
            address => socket::connect(address, tuning).await,
        };
        let stream = connected.map_err(|error| UpstreamError::Connect {
            host: self.host.address_text.clone(),
            local: is_local(&error),
            reason: error.to_string(),
        })?;
        let Some(tls) = self.cluster.tls.as_ref().and_then(|tls| tls.for_host(&self.host)) else {
            return Ok((stream, None));
        };
        let connected = Box::pin(tls.connect(stream, &self.host, &self.names, purpose, &self.tls)).await;
        let (stream, info) = connected
            .map_err(|reason| UpstreamError::Tls { host: self.host.address_text.clone(), reason })?;
        Ok((stream.into(), Some(info)))
    }
}
