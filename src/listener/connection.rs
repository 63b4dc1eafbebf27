//! Serving one connection: from accepting it to the filter chain that has it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::accept::Census;
use super::counsel::Services;
use super::destinations::Destinations;
use super::dialler::{Dialler, Open};
use super::filters::Arrival;
use super::inspect::{self, InspectError, Inspected};
use super::race::{self, First};
use crate::config::chain_match::ConnectionFacts;
use crate::config::http::HttpConnectionManager;
use crate::config::listener::{
    Direction, FilterChain, Listener, NetworkFilter, NetworkSetFilterState, Terminal,
};
use crate::config::tcp::TcpProxy;
use crate::http::worker::Worker;
use crate::policy::gate::Gate;
use crate::policy::limits::{Full, Room};
use crate::runtime::internal::Passed;
use crate::runtime::tls_stream::TlsStream;
use crate::runtime::{Counted, Stream};
use crate::tcp::{Client, Early, Fate};
use crate::telemetry::filter_state::Setters;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stats::{Held, ListenerStats};
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::tls::{DownstreamTls, TlsInfo};

/// A connection of the census. Its drop is the connection's end, however that comes.
pub(super) struct Session<'a> {
    pub(super) id: u64,
    pub(super) census: &'a Census,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(sessions) = &self.census.sessions {
            sessions.closed(self.id);
        }
    }
}

/// A connection of a listener.
pub(super) struct Opened {
    stats: Arc<ListenerStats>,
    start: Instant,
    _active: Held,
}

impl Opened {
    pub(super) fn new(listener: &Listener, start: Instant) -> Self {
        let stats = listener.stats.clone();
        stats.downstream_cx_total.increment(1);
        let active = Held::new(&stats.downstream_cx_active);
        Self { stats, start, _active: active }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.stats.downstream_cx_destroy.increment(1);
        self.stats.downstream_cx_length_ms.record(self.start.elapsed().as_secs_f64() * 1000.0);
    }
}

type Spoken = Early<Open>;

/// A connection on its way to its filter chain.
struct Entry<'a> {
    worker: &'a Worker,
    census: &'a Census,
    id: u64,
    start: Instant,
    arrival: Arrival,
    /// The connection to an upstream that was made to hear who speaks first.
    early: Option<(Arc<FilterChain>, Spoken)>,
}

impl Entry<'_> {
    /// Runs the listener filters; the error says that the connection is to be closed, and was counted.
    async fn arrive(&mut self, listener: &Listener, stream: &Stream) -> Result<(), ()> {
        let stats = &listener.stats;
        if listener.proxy_protocol.is_none() && !listener.inspect.tls && !listener.inspect.http {
            // Nobody has to be waited for.
            return self.arrival.place(listener, stream).await.map_err(drop);
        }
        let _before = Held::new(&stats.downstream_pre_cx_active);
        let filters = self.filter(listener, stream);
        let outcome = match listener.listener_filters_timeout {
            Some(timeout) => tokio::time::timeout(timeout, filters).await,
            None => Ok(filters.await),
        };
        let counter = match outcome {
            Ok(Ok(())) => return Ok(()),
            Err(_) if listener.continue_on_listener_filters_timeout => {
                stats.downstream_pre_cx_timeout.increment(1);
                return Ok(());
            }
            Err(_) => &stats.downstream_pre_cx_timeout,
            Ok(Err(InspectError::TooLarge)) => &stats.downstream_listener_filter_error,
            Ok(Err(InspectError::Closed | InspectError::Io(_))) => {
                &stats.downstream_listener_filter_remote_close
            }
            Ok(Err(InspectError::Malformed(_) | InspectError::Unannounced)) => return Err(()),
        };
        counter.increment(1);
        Err(())
    }

    async fn filter(&mut self, listener: &Listener, stream: &Stream) -> Result<(), InspectError> {
        self.arrival.place(listener, stream).await?;
        let inspects = self.arrival.inspects(listener);
        if !inspects.tls && !inspects.http {
            return Ok(());
        }
        let verdicts = &self.census.verdicts;
        if listener.races && self.arrival.inspected.prefix.is_empty() && stream.is_quiet() {
            if let Some((chain, proxy)) = self.if_silent(listener) {
                let info = Rc::new(self.describe(listener, Some(&chain), None));
                let dialler = Dialler { worker: self.worker };
                let may_be_tls = inspects.tls && may_end_tls(listener, &self.arrival);
                let racing = race::first(verdicts, stream, &proxy, info, &dialler, may_be_tls);
                match Box::pin(racing).await {
                    First::Client(early) => self.early = early.map(|early| (chain, early)),
                    First::Server(early) => {
                        self.early = early.map(|early| (chain, early));
                        return Ok(());
                    }
                }
            }
        }
        inspect::inspect(stream, inspects, &mut self.arrival.inspected).await?;
        if listener.ends_tls && self.arrival.inspected.tls {
            verdicts.begins_tls(self.arrival.local, self.arrival.remote);
        }
        Ok(())
    }

    /// The chain for a client that says nothing, if the server may speak first there.
    fn if_silent(&self, listener: &Listener) -> Option<(Arc<FilterChain>, Arc<TcpProxy>)> {
        let chain = choose(listener, &Inspected::default(), &self.arrival)?;
        match &chain.terminal {
            Terminal::Tcp(proxy) if chain.tls.is_none() && !chain.sets_objects && !chain.limits => {
                let proxy = proxy.clone();
                Some((chain, proxy))
            }
            _ => None,
        }
    }

    /// What is known of the connection.
    fn describe(
        &self,
        listener: &Listener,
        chain: Option<&Arc<FilterChain>>,
        server_name: Option<Box<str>>,
    ) -> ConnectionInfo {
        let arrival = &self.arrival;
        ConnectionInfo {
            retirement: chain.map(|chain| chain.retirement.clone()).unwrap_or_default(),
            inbound: listener.direction == Direction::Inbound,
            id: self.id,
            remote: arrival.remote,
            direct_remote: arrival.direct_remote,
            local: arrival.local,
            direct_local: arrival.direct_local,
            is_restored: arrival.is_restored,
            source: arrival.source,
            metadata: arrival.metadata.clone(),
            tls: None,
            server_name,
            listener: listener.name.clone(),
            filter_chain: chain.map_or_else(|| "".into(), |chain| chain.name.clone()),
            start: self.start,
            objects: arrival.objects.clone(),
        }
    }
}

/// A connection as it comes in.
pub(super) struct Origin {
    pub(super) stream: Stream,
    /// What it brings with it from elsewhere in this process.
    pub(super) passed: Passed,
}

/// Serves an accepted connection to its end.
pub(super) async fn serve(
    worker: Rc<Worker>,
    mut listener: Arc<Listener>,
    destinations: Destinations,
    Origin { mut stream, passed }: Origin,
    id: u64,
    census: Rc<Census>,
    fate: watch::Receiver<Fate>,
) {
    let _counted = Counted::new(&census.connections);
    let _session = Session { id, census: &census };
    let start = Instant::now();
    let mut entry = Entry {
        worker: &worker,
        census: &census,
        id,
        start,
        arrival: Arrival::new(&stream, passed),
        early: None,
    };
    if entry.arrive(&listener, &stream).await.is_err() {
        return;
    }
    if listener.hand_off {
        let meant = entry.arrival.local.filter(|_| entry.arrival.is_restored);
        // From there it is not handed on.
        let found = meant.and_then(|local| destinations.find(local));
        if let Some(found) = found.filter(|found| *found.name != *listener.name) {
            listener = found;
            if entry.arrive(&listener, &stream).await.is_err() {
                return;
            }
        }
    }
    drop(destinations);
    let stats = listener.stats.clone();
    let chain = choose(&listener, &entry.arrival.inspected, &entry.arrival);
    // What nobody serves is no connection yet, as in Envoy.
    let _opened = chain.is_some().then(|| Opened::new(&listener, start));
    if let (Some(sessions), Some(chain)) = (&census.sessions, &chain) {
        sessions.chosen(id, &chain.retirement);
    }
    let server_name = entry.arrival.inspected.server_name.take();
    let mut info = entry.describe(&listener, chain.as_ref(), server_name);
    let remote = info.remote;
    let Entry { early, arrival: Arrival { mut inspected, .. }, .. } = entry;
    // What was dialled for another chain is not wanted.
    let same = |of: &Arc<FilterChain>| chain.as_ref().is_some_and(|chain| Arc::ptr_eq(chain, of));
    let early = early.filter(|(of, _)| same(of)).map(|(_, early)| early);
    if let Some(chain) = chain.as_ref().filter(|chain| chain.sets_objects) {
        info = with_objects(info, chain, &worker, |filter| &filter.on_new_connection);
    }
    // Held until the connection is over.
    let mut rooms = SmallVec::new();
    if let Some(chain) = chain.as_ref().filter(|chain| chain.limits) {
        if let Err(flags) = Box::pin(admit(chain, &worker, &stream, &mut rooms)).await {
            unserved(&chain.terminal, info, flags);
            return;
        }
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
                    manager.stats.downstream_cx_ssl_total.increment(1);
                    unheard(manager);
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
        let gate = Gate::new(&chain.filters, &info, || Rc::new(Services(worker.clone())));
        // Boxed apart, so that a connection has the size of what serves it.
        match chain.terminal.clone() {
            Terminal::Http(manager) => {
                let _http = Counted::new(&census.http);
                crate::http::connection::serve(worker, manager, stream, prefix, limit, info, gate).await;
            }
            Terminal::Tcp(proxy) => {
                let _relay = Counted::new(&census.relays);
                let dialler = Dialler { worker: &worker };
                let client = Client { stream, prefix, buffer_limit: limit, info, gate };
                Box::pin(crate::tcp::serve(proxy, client, early, &dialler, fate)).await;
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

/// Asks the filters that limit connections, in their order, for `rooms`. The error says that the connection is to be
/// closed, and with which flags that is logged.
#[cold]
async fn admit(
    chain: &FilterChain,
    worker: &Worker,
    stream: &Stream,
    rooms: &mut SmallVec<[Room; 1]>,
) -> Result<(), ResponseFlags> {
    for filter in &*chain.filters {
        match filter {
            NetworkFilter::ConnectionLimit(limit) => match limit.take(&worker.runtime) {
                Ok(room) => rooms.extend(room),
                Err(Full) => {
                    if let Some(delay) = limit.delay {
                        let _ = tokio::time::timeout(delay, stream.failed()).await;
                    }
                    return Err(ResponseFlags::NONE);
                }
            },
            NetworkFilter::ConnectionRate(rate) if !rate.admits(&worker.runtime, Instant::now()) => {
                return Err(ResponseFlags::URX);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A connection that the chain's last filter knows of, and has never heard.
fn unserved(terminal: &Terminal, info: ConnectionInfo, flags: ResponseFlags) {
    match terminal {
        Terminal::Http(manager) => unheard(manager),
        Terminal::Tcp(proxy) => crate::tcp::unserved(proxy, info, flags),
        Terminal::Echo | Terminal::DirectResponse(_) => {}
    }
}

/// Envoy's connection manager is there before anything is heard.
fn unheard(manager: &HttpConnectionManager) {
    manager.stats.downstream_cx_total.increment(1);
    manager.stats.downstream_cx_destroy.increment(1);
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

fn facts<'a>(inspected: &'a Inspected, arrival: &Arrival) -> ConnectionFacts<'a> {
    ConnectionFacts {
        local: arrival.local,
        remote: arrival.remote,
        direct_remote: arrival.direct_remote,
        server_name: inspected.server_name.as_deref().unwrap_or_default(),
        transport: inspected.transport(),
        alpn: &inspected.alpn,
    }
}

/// Whether TLS would be ended here, if the client began with a hello.
fn may_end_tls(listener: &Listener, arrival: &Arrival) -> bool {
    let ends = |chain: &Arc<FilterChain>| chain.tls.is_some();
    let one = |index: usize| listener.chains.get(index).is_some_and(ends);
    let nothing = Inspected::default();
    listener.ends_tls
        && (listener.default_chain.as_ref().is_some_and(ends)
            || listener.index.may_find(&facts(&nothing, arrival), one))
}

/// The filter chain for a connection of which this was found.
fn choose(listener: &Listener, inspected: &Inspected, arrival: &Arrival) -> Option<Arc<FilterChain>> {
    let facts = facts(inspected, arrival);
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
