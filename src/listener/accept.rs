//! Accepting connections: from a listening socket to the filter chain that serves each.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;

use super::inspect::{self, InspectError, Inspected, Patience};
use super::live::Share;
use super::sessions::Sessions;
use crate::config::chain_match::ConnectionFacts;
use crate::config::cluster::Discovery;
use crate::config::listener::{
    Direction, FilterChain, Listener, NetworkFilter, NetworkSetFilterState, Terminal,
};
use crate::config::{Cluster, Host, Slot};
use crate::http::worker::Worker;
use crate::policy::gate::Gate;
use crate::runtime::socket::tune_accepted;
use crate::runtime::tls_stream::TlsStream;
use crate::runtime::{Acceptor, Counted, Stream};
use crate::tcp::{Client, Dial, DialContext, DialError, Dialed};
use crate::telemetry::filter_state::Setters;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stats::{Held, ListenerStats};
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::tls::upstream::Names;
use crate::tls::{DownstreamTls, TlsInfo};
use crate::upstream::outlier::Outcome;
use crate::upstream::pool::ConnectionPermit;
use crate::upstream::{PickContext, UpstreamError};
use xxhash_rust::xxh64::xxh64;

/// What a worker knows of the connections it serves.
#[derive(Debug)]
pub struct Census {
    /// Connections open.
    pub connections: Cell<usize>,
    /// Of these, relayed as they are (TCP).
    pub relays: Cell<usize>,
    /// When the last one was accepted.
    pub last_accept: Cell<Instant>,
    /// Each of them, where drains have an end.
    pub sessions: Option<Sessions>,
}

impl Census {
    /// No connections. `drains_end`: those of retired filter chains may have to be closed.
    pub fn new(drains_end: bool) -> Self {
        Self {
            connections: Cell::new(0),
            relays: Cell::new(0),
            last_accept: Cell::new(Instant::now()),
            sessions: drains_end.then(Sessions::default),
        }
    }
}

/// Numbers connections for logs.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
/// Pause of the accept loop when the process is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Most connections that are taken from the queue of a listener that has stopped.
const MAX_WAITING: usize = 1 << 16;

/// Accepts until the listener is stopped and the accept queue is empty. Each connection is served by what
/// the listener is when it is accepted.
pub async fn run(
    worker: Rc<Worker>,
    share: Share,
    acceptor: Acceptor,
    census: Rc<Census>,
    cut: tokio::sync::watch::Receiver<bool>,
) {
    let start = |stream: Stream| {
        let listener = share.get();
        tune_accepted(&stream, &listener.socket);
        census.last_accept.set(Instant::now());
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let served = serve(worker.clone(), listener, stream, id, census.clone(), cut.clone());
        let task = tokio::task::spawn_local(served);
        if let Some(sessions) = &census.sessions {
            sessions.opened(id, task.abort_handle());
        }
    };
    let exhausted = || share.get().stats.downstream_cx_overflow.increment(1);
    let mut orders = share.orders();
    loop {
        let accepted = tokio::select! {
            biased;
            changed = orders.changed() => {
                let orders = *orders.borrow_and_update();
                if changed.is_err() || orders.stop {
                    break;
                }
                // A queue of another length is no reason to stop.
                let _ = acceptor.set_backlog(orders.backlog);
                continue;
            }
            accepted = poll_fn(|context| acceptor.poll_accept(context)) => accepted,
        };
        match accepted {
            Ok(stream) => start(stream),
            Err(error) if is_exhausted(&error) => {
                exhausted();
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            // The client gave up while it waited to be accepted.
            Err(_) => {}
        }
    }
    // Whoever waits has been told that the connection stands: closing now would reset it.
    for _ in 0..MAX_WAITING {
        match acceptor.accept_waiting() {
            Ok(Some(stream)) => start(stream),
            Ok(None) => break,
            Err(error) if is_exhausted(&error) => {
                exhausted();
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            Err(_) => {}
        }
    }
    // The share says that the socket is open.
    drop(acceptor);
    drop(share);
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// An open connection. Its drop is the connection's end, however that comes.
struct Opened<'a> {
    id: u64,
    census: &'a Census,
    stats: Arc<ListenerStats>,
    start: Instant,
    /// Past inspection.
    inspected: bool,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if let Some(sessions) = &self.census.sessions {
            sessions.closed(self.id);
        }
        self.stats.downstream_cx_destroy.increment(1);
        if self.inspected {
            self.stats.downstream_cx_length_ms.record(self.start.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

async fn serve(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    mut stream: Stream,
    id: u64,
    census: Rc<Census>,
    mut cut: tokio::sync::watch::Receiver<bool>,
) {
    let _counted = Counted::new(&census.connections);
    let start = Instant::now();
    let stats = listener.stats.clone();
    let mut opened = Opened { id, census: &census, stats: stats.clone(), start, inspected: false };
    stats.downstream_cx_total.increment(1);
    let _active = Held::new(&stats.downstream_cx_active);
    let (direct_local, remote) = (stream.local_addr(), stream.peer_addr());
    // A connection that was not redirected keeps its address.
    let restored = listener.inspect.original_dst.then(|| stream.original_dst().ok()).flatten();
    let local = restored.or(direct_local);
    let inspected = if listener.inspect.tls || listener.inspect.http {
        let _before = Held::new(&stats.downstream_pre_cx_active);
        let patience = Patience {
            timeout: listener.listener_filters_timeout,
            continue_anyway: listener.continue_on_listener_filters_timeout,
        };
        match inspect::inspect(&stream, listener.inspect, patience).await {
            Ok(inspected) => inspected,
            Err(error) => {
                let counter = match error {
                    InspectError::Timeout(_) => &stats.downstream_pre_cx_timeout,
                    InspectError::TooLarge => &stats.downstream_listener_filter_error,
                    InspectError::Closed | InspectError::Io(_) => {
                        &stats.downstream_listener_filter_remote_close
                    }
                };
                counter.increment(1);
                return;
            }
        }
    } else {
        Inspected::default()
    };
    opened.inspected = true;
    let mut inspected = inspected;
    let chain = choose(&listener, &inspected, local, remote);
    if let (Some(sessions), Some(chain)) = (&census.sessions, &chain) {
        sessions.chosen(id, &chain.retirement);
    }
    let mut info = ConnectionInfo {
        retirement: chain.as_ref().map(|chain| chain.retirement.clone()).unwrap_or_default(),
        inbound: listener.direction == Direction::Inbound,
        id,
        remote,
        direct_remote: remote,
        local,
        direct_local,
        tls: None,
        server_name: inspected.server_name,
        filter_chain: chain.as_ref().map_or_else(|| "".into(), |chain| chain.name.clone()),
        start,
        objects: None,
    };
    if let Some(chain) = chain.as_ref().filter(|chain| chain.sets_objects) {
        info = with_objects(info, chain, &worker, |filter| &filter.on_new_connection);
    }
    if let Some((chain, tls)) = chain.as_ref().and_then(|chain| Some((chain, chain.tls.as_ref()?))) {
        let prefix = std::mem::take(&mut inspected.prefix);
        match Box::pin(handshake(tls, chain.handshake_timeout, stream, (prefix, &inspected.alpn))).await {
            Ok(secured) => {
                let local = tls.presented(info.server_name.as_deref());
                let agreed = TlsInfo { lenient: tls.is_lenient(), ..TlsInfo::new(&secured, local) };
                info.tls = Some(Rc::new(agreed));
                stream = secured.into();
                if chain.sets_objects {
                    info = with_objects(info, chain, &worker, |filter| &filter.on_downstream_tls_handshake);
                }
            }
            Err(why) => {
                if why.is_none() {
                    stats.downstream_cx_transport_socket_connect_timeout.increment(1);
                }
                if let Terminal::Http(manager) = &chain.terminal {
                    // Envoy's connection manager is there before the handshake.
                    manager.stats.downstream_cx_total.increment(1);
                    manager.stats.downstream_cx_ssl_total.increment(1);
                    manager.stats.downstream_cx_destroy.increment(1);
                }
                let failure = why.unwrap_or_default();
                log_unserved(&listener, &worker, Rc::new(info), ResponseFlags::NONE, "", failure);
                return;
            }
        }
    }
    if let (Some(permissive), Some(_)) = (&listener.permissive, &chain) {
        if !info.tls.as_ref().is_some_and(|tls| tls.is_verified()) {
            permissive.note(remote.map(|remote| remote.ip().to_canonical()), SystemTime::now());
        }
    }
    let info = Rc::new(info);
    if let Some(chain) = &chain {
        // A connection keeps its filter chain alive, and not the listener that was swapped meanwhile.
        let limit = listener.per_connection_buffer_limit;
        drop(listener);
        let prefix = inspected.prefix;
        let gate = Gate::new(&chain.filters, &info);
        // Boxed apart, so that a connection has the size of what serves it.
        match chain.terminal.clone() {
            Terminal::Http(manager) => {
                crate::http::connection::serve(worker, manager, stream, prefix, limit, info, gate).await;
            }
            Terminal::Tcp(proxy) => {
                let _relay = Counted::new(&census.relays);
                let dialler = Dialler { worker: &worker };
                let cut = async move {
                    // An error means that the worker is ending, which cuts as well.
                    let _ = cut.wait_for(|cut| *cut).await;
                };
                let client = Client { stream, prefix, buffer_limit: limit, info, gate };
                Box::pin(crate::tcp::serve(proxy, client, &dialler, cut)).await;
            }
            Terminal::Echo => {
                // A client that goes away ends its echo.
                let _ = Box::pin(crate::tcp::local::echo(&stream, prefix, gate.as_ref())).await;
            }
            Terminal::DirectResponse(response) => {
                let _ = Box::pin(crate::tcp::local::direct_response(&stream, &response)).await;
            }
        }
    } else {
        stats.no_filter_chain_match.increment(1);
        if !inspected.prefix.is_empty() {
            // Closed with bytes that nobody wants: the client is told so.
            stream.set_linger_zero();
        }
        let details = "filter_chain_not_found";
        log_unserved(&listener, &worker, info, ResponseFlags::NR, details, String::new());
    }
}

/// The connection with what `set_filter_state` filters leave on it at one point of its life.
#[cold]
fn with_objects(
    mut info: ConnectionInfo,
    chain: &FilterChain,
    worker: &Worker,
    point: fn(&NetworkSetFilterState) -> &Setters,
) -> ConnectionInfo {
    let (objects, start) = (info.objects.take(), info.start);
    let mut stream = StreamInfo::new(Rc::new(info), start, worker.clock.wall());
    stream.objects = objects;
    for filter in &*chain.filters {
        if let NetworkFilter::SetFilterState(filter) = filter {
            point(filter).apply(None, &mut stream);
        }
    }
    let StreamInfo { connection, objects, .. } = stream;
    ConnectionInfo { objects, ..Rc::unwrap_or_clone(connection) }
}

fn choose(
    listener: &Listener,
    inspected: &Inspected,
    local: Option<std::net::SocketAddr>,
    remote: Option<std::net::SocketAddr>,
) -> Option<Arc<FilterChain>> {
    let facts = ConnectionFacts {
        local,
        remote,
        direct_remote: remote,
        server_name: inspected.server_name.as_deref().unwrap_or_default(),
        transport: inspected.transport(),
        alpn: &inspected.alpn,
    };
    let found = listener.index.find(&facts).and_then(|index| listener.chains.get(index));
    found.or(listener.default_chain.as_ref()).cloned()
}

/// The TLS handshake. The error is Envoy's transport failure reason; `None` when it took too long.
async fn handshake(
    tls: &DownstreamTls,
    timeout: Option<Duration>,
    stream: Stream,
    inspected: (BytesMut, &[Box<str>]),
) -> Result<TlsStream, Option<String>> {
    let (prefix, offered) = inspected;
    let accepted = tls.accept(stream, prefix, offered);
    let accepted = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, accepted).await.map_err(|_| None)?,
        None => accepted.await,
    };
    accepted.map_err(|error| Some(error.to_string()))
}

/// Logs a connection that no filter chain got.
fn log_unserved(
    listener: &Listener,
    worker: &Worker,
    info: Rc<ConnectionInfo>,
    flags: ResponseFlags,
    details: &'static str,
    failure: String,
) {
    if listener.access_logs.is_empty() {
        return;
    }
    let start = info.start;
    let mut info = StreamInfo::new(info, start, worker.clock.wall());
    info.flags.insert(flags);
    info.details = details.into();
    info.downstream_failure = (!failure.is_empty()).then(|| failure.into());
    info.times.end = Some(Instant::now());
    let context = FormatContext { log_type: LogType::NotSet, ..FormatContext::new(&info) };
    for log in &listener.access_logs {
        log.write(&context);
    }
}

fn report(cluster: &Arc<Cluster>, host: &Arc<Host>, outcome: Outcome) {
    if let Some(health) = &cluster.health {
        health.report(cluster, host, outcome);
    }
}

/// Connects TCP sessions through the worker's pools.
struct Dialler<'a> {
    worker: &'a Worker,
}

impl Dial for Dialler<'_> {
    type Permit = ConnectionPermit;

    fn find(&self, cluster: &str) -> Option<Arc<Slot<Cluster>>> {
        self.worker.clusters.find(cluster)
    }

    async fn dial(
        &self,
        cluster: &Arc<Slot<Cluster>>,
        context: DialContext,
    ) -> Result<Dialed<Self::Permit>, DialError> {
        let none = |flag| DialError { flag, details: "".into(), host: None };
        let Some(local) = self.worker.upstreams.cluster(cluster) else {
            return Err(none(ResponseFlags::NC));
        };
        let mut pool = match (&local.cluster.discovery, context.local) {
            (Discovery::OriginalDst { port_override, .. }, Some(mut address)) => {
                if let Some(port) = port_override {
                    address.set_port(*port);
                }
                local.original_destination(address)
            }
            _ => {
                let source = context.hash_source;
                let source = source.map(|client| xxh64(client.ip().to_string().as_bytes(), 0));
                let hash = context.hash.or(source);
                let pick =
                    PickContext { hash, metadata: context.metadata.as_ref(), ..PickContext::default() };
                local.pick(&pick).map_err(|error| none(error.flag()))?
            }
        };
        if let Some(names) = context.names {
            let tls = local.cluster.tls.is_some();
            pool = pool.named(&if tls { names } else { Names { apart: names.apart, ..Names::default() } });
        }
        match pool.dedicated().await {
            Ok(connection) => {
                report(&local.cluster, &pool.host, Outcome::Connected);
                let id = connection.id;
                let host = pool.host.clone();
                let tls = connection.tls.clone();
                let (stream, permit) = connection.split();
                Ok(Dialed { stream, id, host, tls, permit })
            }
            Err(error) => {
                match &error {
                    UpstreamError::Connect { local: false, .. } => {
                        report(&local.cluster, &pool.host, Outcome::Failed { connected: false });
                    }
                    UpstreamError::ConnectTimeout { .. } => {
                        let late = Outcome::TimedOut { connected: false, status: 504 };
                        report(&local.cluster, &pool.host, late);
                    }
                    // What is lacking here says nothing of the host.
                    _ => {}
                }
                let details: Box<str> = match &error {
                    UpstreamError::Connect { reason, .. } => {
                        let reason = reason.split(" (os error").next().unwrap_or(reason);
                        format!("delayed connect error: {reason}").into()
                    }
                    UpstreamError::Tls { reason, .. } => reason.as_str().into(),
                    UpstreamError::ConnectTimeout { .. } => "connection timeout".into(),
                    _ => "".into(),
                };
                Err(DialError { flag: error.flag(), details, host: Some(pool.host.clone()) })
            }
        }
    }
}
