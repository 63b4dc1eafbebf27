//! The TCP proxy: connects upstream as soon as the filter chain is chosen, relays, and keeps the
//! record of the connection.
//!
//! Flags, statistics and the contents of access logs are those of Envoy 1.40, observed case by case.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{interval_at, sleep_until, Instant, Interval};

use super::handover::{Departing, Fate, Order, Passage, Position};
use super::relay::{relay, End, Limits, Meter, Side, Traffic};
use super::splice::Pipes;
use super::{Dial, DialContext, Dialed};
use crate::config::balancing::Criteria;
use crate::config::cluster::Address;
use crate::config::tcp::TcpProxy;
use crate::config::Cluster;
use crate::policy::gate::Gate;
use crate::runtime::Stream;
use crate::telemetry::filter_state;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::istio::tcp::Connection;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo, WallClock};

/// A client as it was accepted.
#[derive(Debug)]
pub struct Client {
    /// Its connection.
    pub stream: Stream,
    /// The bytes already read from it.
    pub prefix: BytesMut,
    /// The listener's `per_connection_buffer_limit_bytes`.
    pub buffer_limit: usize,
    /// Facts for logs.
    pub info: Rc<ConnectionInfo>,
    /// Network filters that are asked about what the client sends.
    pub gate: Option<Gate>,
}

/// A connection to an upstream that was made before it was known who serves the client.
#[derive(Debug)]
pub struct Early<P> {
    cluster: Arc<Cluster>,
    dialed: Dialed<P>,
}

impl<P> Early<P> {
    /// The connection.
    pub fn stream(&self) -> &Stream {
        &self.dialed.stream
    }

    /// Whether the upstream has said something already.
    pub fn has_spoken(&self) -> bool {
        !self.dialed.first.is_empty()
    }
}

/// Connects as [`serve`] would for this client, once; `None` when that fails.
pub async fn early<D: Dial>(
    proxy: &TcpProxy,
    connection: Rc<ConnectionInfo>,
    dialler: &D,
) -> Option<Early<D::Permit>> {
    let start = connection.start;
    let info = StreamInfo::new(connection, start, WallClock::now());
    let (slot, metadata) = proxy.draw()?;
    let cluster = slot.wake()?;
    let context = context(proxy, &info, &cluster, metadata);
    let dialed = dialler.dial(&slot, context).await.ok()?;
    Some(Early { cluster, dialed })
}

/// What an attempt to reach `cluster` depends on.
fn context(
    proxy: &TcpProxy,
    info: &StreamInfo,
    cluster: &Cluster,
    metadata: Option<Arc<Criteria>>,
) -> DialContext {
    let announced = cluster.socket.announced.is_some();
    DialContext {
        attempt: info.attempts,
        hash_source: info.connection.remote.filter(|_| proxy.hash_source_ip),
        local: info.destination().or(info.connection.restored()),
        metadata,
        hash: proxy.hash_object.as_ref().and_then(|name| info.object(name)?.hash()),
        names: (info.has_own_upstream() || announced).then(|| info.upstream_names(cluster, true, announced)),
        tunnel: proxy.tunnel.as_ref().map(|tunnel| tunnel.request(info).map(Rc::new)),
    }
}

/// Serves `client` until it is done, its fate is to end, or the future is dropped; then the access log is written
/// once. Where its fate is to leave, and somebody takes it, nothing is logged here. `early` is used in place of a
/// new connection.
pub async fn serve<D: Dial>(
    proxy: Arc<TcpProxy>,
    client: Client,
    early: Option<Early<D::Permit>>,
    dialler: &D,
    mut fate: watch::Receiver<Fate>,
) {
    let Client { stream: downstream, prefix, buffer_limit, info: connection, gate } = client;
    proxy.stats.downstream_cx_total.increment(1);
    let deadline = deadline(&proxy, Instant::now());
    let mut session = Session::new(proxy, connection);
    if session.proxy.log_options.on_start {
        session.log(LogType::TcpConnectionStart);
    }
    let connected = tokio::select! {
        biased;
        connected = session.connect(early, dialler) => connected,
        // Reading has not begun, so a client that only ended its side still waits for its answer.
        _ = downstream.failed() => None,
        () = at(deadline) => {
            session.expired();
            None
        }
        () = end(&mut fate) => None,
    };
    let Some((cluster, mut upstream)) = connected else {
        return;
    };
    let mut position = Position::from(prefix);
    // What came with the response that opened a tunnel.
    position.down.held = std::mem::take(&mut upstream.first);
    let early = session.traffic.from_upstream.get() + position.down.held.len() as u64;
    session.traffic.from_upstream.set(early);
    if session.proxy.log_options.on_connected {
        session.log(LogType::TcpUpstreamConnected);
    }
    let ways = Ways { downstream, upstream, cluster, buffer_limit, deadline, gate };
    session.carry(ways, position, fate).await;
}

/// A connection that filters before did not let in: it is counted, and logged with `flags`.
pub fn unserved(proxy: &Arc<TcpProxy>, connection: ConnectionInfo, flags: ResponseFlags) {
    proxy.stats.downstream_cx_total.increment(1);
    let mut session = Session::new(proxy.clone(), Rc::new(connection));
    session.info.flags.insert(flags);
}

/// A connection that another process has relayed so far.
#[derive(Debug)]
pub struct Resumed<P> {
    /// The client's end.
    pub downstream: Stream,
    /// The upstream's end.
    pub upstream: Dialed<P>,
    /// The cluster that the upstream is of.
    pub cluster: Arc<Cluster>,
    /// The listener's `per_connection_buffer_limit_bytes`.
    pub buffer_limit: usize,
    /// Facts for logs.
    pub info: Rc<ConnectionInfo>,
    /// What else is known.
    pub passage: Passage,
    /// Where it stands.
    pub position: Position,
}

/// As [`serve`], from where another process stopped.
pub async fn resume<P>(proxy: Arc<TcpProxy>, resumed: Resumed<P>, fate: watch::Receiver<Fate>) {
    let Resumed { downstream, upstream, cluster, buffer_limit, info: connection, passage, position } =
        resumed;
    proxy.stats.downstream_cx_total.increment(1);
    let deadline = deadline(&proxy, connection.start.into());
    let mut session = Session::new(proxy, connection);
    session.goes_to(&cluster);
    session.info.attempts = passage.attempts.saturating_sub(1);
    session.connected(&upstream);
    session.traffic.restore(passage.traffic);
    let bytes = [session.traffic.to_downstream.get(), session.traffic.from_downstream.get()];
    session.counted.iter_mut().for_each(|counted| counted.resume(bytes));
    let ways = Ways { downstream, upstream, cluster, buffer_limit, deadline, gate: None };
    session.carry(ways, position, fate).await;
}

/// What a session relays between.
struct Ways<P> {
    downstream: Stream,
    upstream: Dialed<P>,
    cluster: Arc<Cluster>,
    buffer_limit: usize,
    deadline: Option<Instant>,
    gate: Option<Gate>,
}

/// Completes when the fate is to end. That the worker ends means the same.
async fn end(fate: &mut watch::Receiver<Fate>) {
    let _ = fate.wait_for(|fate| matches!(fate, Fate::End)).await;
}

/// What a relay is told: to end, or to stop so that it can go on elsewhere if it may just then.
async fn order(fate: &mut watch::Receiver<Fate>, leaves: impl Fn() -> bool) -> Order {
    let told = |fate: &Fate| matches!(fate, Fate::End) || matches!(fate, Fate::Leave(_)) && leaves();
    match fate.wait_for(told).await {
        Ok(fate) if matches!(*fate, Fate::Leave(_)) => Order::Leave,
        _ => Order::Cut,
    }
}

/// When a connection that began at `start` has lived long enough.
fn deadline(proxy: &TcpProxy, start: Instant) -> Option<Instant> {
    let longest = proxy.max_connection_duration?;
    let share = proxy.max_connection_duration_jitter / 100.0 * fastrand::f64();
    start.checked_add(longest.saturating_add(longest.mul_f64(share)))
}

/// Moments at a regular distance, or none at all.
struct Ticks(Option<Interval>);

impl Ticks {
    fn every(period: Option<Duration>) -> Self {
        Self(period.map(|period| interval_at(Instant::now() + period, period)))
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The record of one connection. Its drop is the connection's end.
struct Session {
    proxy: Arc<TcpProxy>,
    info: StreamInfo,
    traffic: Rc<Traffic>,
    /// Another process goes on with it, and will log its end.
    left: bool,
    /// What standard metrics have counted of it.
    counted: Vec<Connection>,
}

impl Session {
    fn new(proxy: Arc<TcpProxy>, connection: Rc<ConnectionInfo>) -> Self {
        let start = connection.start;
        let metadata = connection.metadata.clone();
        let info = StreamInfo { metadata, ..StreamInfo::new(connection, start, WallClock::now()) };
        let counted = proxy.metrics.iter().cloned().map(Connection::new).collect();
        Self { proxy, info, traffic: Rc::default(), left: false, counted }
    }

    /// Relays to the end, here or elsewhere.
    async fn carry<P>(&mut self, ways: Ways<P>, mut position: Position, mut fate: watch::Receiver<Fate>) {
        let Ways { downstream, upstream, cluster, buffer_limit, deadline, gate } = ways;
        let proxy = self.proxy.clone();
        let traffic = self.traffic.clone();
        let meter = Counts::new(&proxy, &cluster, gate.as_ref());
        // What another process has moved it has counted.
        meter.counted.restore(traffic.totals());
        let pipes = Pipes::of_thread();
        let buffer = buffer_limit.min(cluster.per_connection_buffer_limit).max(1);
        let own_idle = self.info.object(filter_state::TCP_IDLE_TIMEOUT);
        let idle = match own_idle.and_then(|object| object.text().parse().ok()) {
            Some(millis) => Some(Duration::from_millis(millis)).filter(|idle| !idle.is_zero()),
            None => proxy.idle_timeout,
        };
        let limits = Limits { idle, deadline, buffer };
        // What only this process knows cannot go elsewhere.
        let mut leaves = downstream.is_plain()
            && upstream.stream.is_plain()
            && self.info.metadata.is_none()
            && self.info.objects.is_none()
            && self.info.connection.objects.is_none();
        let end = loop {
            let failing = async {
                if !cluster.close_on_failure {
                    std::future::pending::<()>().await;
                }
                upstream.host.shared.fails().await;
            };
            let mut told = fate.clone();
            let (may, asked) = (leaves, gate.as_ref());
            let may_leave = move || may && asked.is_none_or(Gate::is_over);
            let order = async {
                tokio::select! {
                    order = order(&mut told, may_leave) => order,
                    () = failing => Order::Cut,
                }
            };
            let from = (&downstream, std::mem::take(&mut position));
            let mut relaying = pin!(relay(from, &upstream.stream, limits, order, &traffic, &meter, &pipes));
            let (logs, counts) = (proxy.log_options.interval, self.count_interval());
            let end = if logs.is_none() && counts.is_none() {
                relaying.await
            } else {
                let (mut logs, mut counts) = (Ticks::every(logs), Ticks::every(counts));
                loop {
                    tokio::select! {
                        end = &mut relaying => break end,
                        () = logs.next() => self.log(LogType::TcpPeriodic),
                        () = counts.next() => self.count(false),
                    }
                }
            };
            let End::Left(at) = end else { break end };
            let takers = match &*fate.borrow() {
                Fate::Leave(takers) => Some(takers.clone()),
                _ => None,
            };
            self.left = match takers {
                Some(takers) => self.hand_over((&downstream, &upstream), &at, &takers).await,
                None => false,
            };
            if self.left {
                return;
            }
            (position, leaves) = (at, false);
        };
        if let Some(gate) = &gate {
            self.info.metadata = gate.told();
        }
        match end {
            End::Failed(Side::Upstream, _) => self.info.flags.insert(ResponseFlags::UR),
            End::Idle => proxy.stats.idle_timeout.increment(1),
            End::Deadline => self.expired(),
            End::Refused => {
                let Some(gate) = &gate else { return };
                if let Some(refusal) = gate.refusal() {
                    self.info.termination_details = refusal.termination.into();
                    self.info.details = refusal.details.into();
                    self.info.flags.insert(refusal.flags);
                }
                tokio::select! {
                    () = gate.linger(&downstream) => {}
                    () = self::end(&mut fate) => {}
                }
            }
            End::Finished | End::Failed(Side::Downstream, _) | End::Cut | End::Left(_) => {}
        }
    }

    /// Whether somebody else goes on with it.
    async fn hand_over<P>(
        &self,
        (downstream, upstream): (&Stream, &Dialed<P>),
        at: &Position,
        takers: &mpsc::UnboundedSender<Departing>,
    ) -> bool {
        let (taken, answer) = oneshot::channel();
        let own = |stream: &Stream| -> io::Result<_> { stream.descriptor()?.try_clone_to_owned() };
        // Without descriptors to spare it stays.
        let (Ok(downstream), Ok(socket)) = (own(downstream), own(&upstream.stream)) else { return false };
        let Address::Ip(host) = upstream.host.address else { return false };
        let info = &self.info.connection;
        let passage = Passage {
            cluster: self.info.cluster.as_ref().map_or("", |names| &*names.name).to_owned(),
            host: Some(host),
            remote: info.remote,
            direct_remote: info.direct_remote,
            local: info.local,
            direct_local: info.direct_local,
            is_restored: info.is_restored,
            source: info.source,
            server_name: info.server_name.as_deref().map(str::to_owned),
            age_ms: u64::try_from(info.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            attempts: self.info.attempts,
            held_up: at.up.held.len(),
            held_down: at.down.held.len(),
            up: at.up.stage,
            down: at.down.stage,
            traffic: self.traffic.totals(),
            ..Passage::default()
        };
        let departing = Departing {
            passage,
            retirement: info.retirement.clone(),
            downstream,
            upstream: socket,
            held: [&at.up.held[..], &at.down.held[..]].concat(),
            taken,
        };
        takers.send(departing).is_ok() && answer.await.is_ok()
    }

    /// How often standard metrics count it while it lasts.
    fn count_interval(&self) -> Option<Duration> {
        self.counted.iter().filter_map(Connection::interval).min()
    }

    /// Standard metrics count it.
    fn count(&mut self, over: bool) {
        let bytes = [self.traffic.to_downstream.get(), self.traffic.from_downstream.get()];
        for counted in &mut self.counted {
            counted.count(&self.info, bytes, over);
        }
    }

    /// Tries hosts until one is connected; otherwise the flags say why not.
    async fn connect<D: Dial>(
        &mut self,
        early: Option<Early<D::Permit>>,
        dialler: &D,
    ) -> Option<(Arc<Cluster>, Dialed<D::Permit>)> {
        if let Some(Early { cluster, dialed }) = early {
            self.goes_to(&cluster);
            self.connected(&dialed);
            return Some((cluster, dialed));
        }
        loop {
            let drawn = match self.info.object(filter_state::TCP_CLUSTER) {
                Some(named) => dialler.find(named.text()).map(|slot| (slot, None)),
                None => self.proxy.draw(),
            };
            let found = drawn.and_then(|(slot, metadata)| Some((slot.wake()?, slot, metadata)));
            let Some((cluster, slot, metadata)) = found else {
                self.proxy.stats.downstream_cx_no_route.increment(1);
                self.info.flags.insert(ResponseFlags::NC);
                return None;
            };
            self.goes_to(&cluster);
            let attempt = self.info.attempts;
            if attempt >= self.proxy.max_connect_attempts {
                self.info.flags.insert(ResponseFlags::URX);
                cluster.stats().upstream_cx_connect_attempts_exceeded.increment(1);
                return None;
            }
            let context = context(&self.proxy, &self.info, &cluster, metadata);
            match dialler.dial(&slot, context).await {
                Ok(dialed) => {
                    self.connected(&dialed);
                    return Some((cluster, dialed));
                }
                Err(error) => {
                    self.info.flags.insert(error.flag);
                    if !error.details.is_empty() {
                        self.info.upstream_failure = Some(error.details);
                    }
                    if error.host.is_some() {
                        self.info.host = error.host;
                    }
                    if !error.flag.contains(ResponseFlags::UF) {
                        return None;
                    }
                    self.info.attempts = attempt.saturating_add(1);
                }
            }
        }
    }

    fn goes_to(&mut self, cluster: &Cluster) {
        self.info.cluster = Some(cluster.names.clone());
        self.info.service.clone_from(&cluster.istio.service);
    }

    fn connected<P>(&mut self, dialed: &Dialed<P>) {
        self.info.attempts = self.info.attempts.saturating_add(1);
        self.info.host = Some(dialed.host.clone());
        self.info.upstream_local = dialed.stream.local_addr();
        self.info.upstream_connection_id = dialed.id;
        self.info.upstream_tls.clone_from(&dialed.tls);
        self.info.upstream_protocol = dialed.protocol;
    }

    fn expired(&mut self) {
        self.proxy.stats.max_downstream_connection_duration.increment(1);
        self.info.flags.insert(ResponseFlags::DT);
    }

    fn log(&mut self, log_type: LogType) {
        if self.proxy.access_logs.is_empty() {
            return;
        }
        let (info, traffic) = (&mut self.info, &self.traffic);
        info.bytes_received = traffic.from_downstream.get();
        info.bytes_sent = traffic.to_downstream.get();
        info.upstream_wire_sent = traffic.to_upstream.get();
        info.upstream_wire_received = traffic.from_upstream.get();
        info.times.end = Some(Instant::now().into_std());
        let mut context = FormatContext::new(&self.info);
        context.log_type = log_type;
        for log in &self.proxy.access_logs {
            log.write(&context);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.left {
            // What it has carried so far.
            return self.count(false);
        }
        self.count(true);
        self.log(LogType::TcpConnectionEnd);
    }
}

/// Passes a relay's news on to the statistics.
struct Counts<'a> {
    proxy: &'a TcpProxy,
    cluster: &'a Cluster,
    counted: Traffic,
    gate: Option<&'a Gate>,
    flushing: Cell<Option<Held>>,
}

impl<'a> Counts<'a> {
    fn new(proxy: &'a TcpProxy, cluster: &'a Cluster, gate: Option<&'a Gate>) -> Self {
        Self { proxy, cluster, counted: Traffic::default(), gate, flushing: Cell::default() }
    }
}

impl Meter for Counts<'_> {
    fn moved(&self, traffic: &Traffic) {
        let (downstream, upstream) = (&self.proxy.stats, self.cluster.stats());
        for (now, before, counter) in [
            (
                &traffic.from_downstream,
                &self.counted.from_downstream,
                &downstream.downstream_cx_rx_bytes_total,
            ),
            (&traffic.to_downstream, &self.counted.to_downstream, &downstream.downstream_cx_tx_bytes_total),
            (&traffic.from_upstream, &self.counted.from_upstream, &upstream.upstream_cx_rx_bytes_total),
            (&traffic.to_upstream, &self.counted.to_upstream, &upstream.upstream_cx_tx_bytes_total),
        ] {
            let new = now.get().wrapping_sub(before.replace(now.get()));
            if new > 0 {
                counter.increment(new);
            }
        }
    }

    fn paused(&self, side: Side, paused: bool) {
        let (downstream, upstream) = (&self.proxy.stats, self.cluster.stats());
        let counter = match (side, paused) {
            (Side::Downstream, true) => &downstream.downstream_flow_control_paused_reading_total,
            (Side::Downstream, false) => &downstream.downstream_flow_control_resumed_reading_total,
            (Side::Upstream, true) => &upstream.upstream_flow_control_paused_reading_total,
            (Side::Upstream, false) => &upstream.upstream_flow_control_resumed_reading_total,
        };
        counter.increment(1);
        if side == Side::Downstream {
            let buffer = if paused {
                &upstream.upstream_flow_control_backed_up_total
            } else {
                &upstream.upstream_flow_control_drained_total
            };
            buffer.increment(1);
        }
    }

    fn admits(&self) -> bool {
        self.gate.is_none_or(Gate::admits)
    }

    fn decides(&self) -> bool {
        self.gate.is_some_and(Gate::decides)
    }

    fn poll_decided(&self, context: &mut Context<'_>) -> Poll<()> {
        self.gate.map_or(Poll::Ready(()), |gate| gate.poll_decided(context))
    }

    fn watches(&self) -> bool {
        self.gate.is_some_and(Gate::watches)
    }

    fn flushing(&self) {
        self.proxy.stats.upstream_flush_total.increment(1);
        self.flushing.set(Some(Held::new(&self.proxy.stats.upstream_flush_active)));
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
