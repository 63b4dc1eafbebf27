//! The router: a request to an upstream and its response back, with timeouts and retries
//! (envoyproxy.io: http_filters/router_filter).
//!
//! Comes in: a request whose route forwards it. Goes out: its response, written to the client, or an
//! answer that says why there is none. In the order of a request's life: [`request`] turns its head
//! into what goes upstream, [`mirror`] and [`shadow`] send copies of it, [`attempt`] is one try ([`stream`]
//! over HTTP/2) on what is [`lent`] for it with [`upload`] moving the body, [`retry`] decides on another,
//! [`hedge`] lets slow ones go on, [`log`] tells of each, [`redirect`] sends the request elsewhere, [`respond`]
//! passes the response on, [`tunnel`] relays another protocol after it, [`fail`] answers when there is none.
//! [`deadlines`] are watched all the while.

mod attempt;
mod consult;
mod deadlines;
mod duplex;
mod fail;
mod hash;
mod health;
mod hedge;
mod lent;
mod log;
mod mirror;
mod redirect;
mod report;
mod request;
mod respond;
pub(super) mod retry;
mod shadow;
mod stream;
mod tunnel;
mod upload;
mod upstream_filters;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use self::attempt::Failed;
use self::deadlines::{deadlines, Deadlines, Expired};
pub(in crate::http) use self::hash::choice;
use self::hash::Hashed;
use self::hedge::{Late, Won};
use self::log::Noted;
use self::mirror::mirror;
use self::request::prepare;
use self::retry::Retries;
use self::upload::{Carried, Copies};
use super::exchange::{Exchange, Reply};
use super::filters;
use super::h1::{Framing, Refusal};
use super::h2::StreamError;
use super::on_demand::Gone;
use super::trace;
use crate::config::cluster::{HostShared, UpstreamProtocol};
use crate::config::http::Upgrade;
use crate::config::matcher::number;
use crate::config::route::{
    Chosen, CountedBy, Counts, Forward, RequestRetries, RetryOn, Route, WeightedCluster,
};
use crate::config::{Cluster, HeaderView, Known, RequestView, Slot};
use crate::telemetry::stream_info::ResponseFlags;
use crate::upstream::{ClusterLocal, RequestPermit, UpstreamError};

/// How a request ended for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has its whole answer.
    Done,
    /// It went away.
    Gone,
    /// Its answer was cut off, and the close shows it.
    Cut,
    /// Its answer was cut off, and only a reset can show it.
    Broken,
    /// It has none yet: it is to be served again, as its head is now.
    Again,
}

/// What is left to do for a request. An answer of our own is sent in one place, for which what the attempts took is
/// given back: many of those at a time are the answer to an overload.
#[derive(Debug)]
pub enum Ended {
    /// Nothing.
    Over(End),
    /// To send this. Boxed, since it passes through many hands, and most requests end otherwise.
    Reply(Box<Reply>),
}

impl From<End> for Ended {
    fn from(end: End) -> Self {
        Self::Over(end)
    }
}

impl From<Reply> for Ended {
    fn from(reply: Reply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// Why an attempt failed before a response head was there, or while one was being passed on.
#[derive(Debug)]
enum Failure {
    /// No connection.
    Upstream(UpstreamError),
    /// The upstream closed or reset the connection.
    Closed,
    /// The upstream sent what is not HTTP.
    Protocol,
    /// The upstream reset the stream.
    Reset(StreamError),
    /// Nothing came in time.
    Timeout(Expired),
    /// The client went away.
    Gone,
    /// The client's body is broken.
    Refused(Refusal),
    /// A filter wants this answered.
    Answer(Box<Reply>),
    /// Nothing came in the time of a try, which goes on: see [`hedge`].
    Late,
    /// Such a try has decided the request.
    Overtaken,
}

/// What the attempts of one request share.
struct Attempts<'r> {
    route: &'r Arc<Route>,
    forward: &'r Forward,
    weighted: Option<&'r WeightedCluster>,
    cluster: Rc<ClusterLocal>,
    /// What counts the request beside its cluster.
    counts: Counts<'r>,
    /// The cluster of the host that was picked, where `cluster` is an aggregate.
    member: Option<Arc<Cluster>>,
    /// The hash of the request, once a pick has asked for it.
    hashed: Option<Box<Hashed>>,
    /// `None` when nothing will be tried again.
    retries: Option<Retries>,
    deadlines: Deadlines,
    copies: Copies,
    /// What came of the body while a host could not be reached.
    carried: Option<Box<Carried>>,
    /// Hosts of earlier tries, where there may be more than one try.
    tried: SmallVec<[*const HostShared; 2]>,
    /// A load report has come.
    reported: bool,
    /// Tries that go on after their time, and the one of them that decides the request.
    late: Vec<Late>,
    won: Option<Box<Won>>,
    /// There is none but those.
    alone: bool,
    /// The try of the moment, where logs are told of it.
    noted: Option<Box<Noted>>,
    /// Another protocol may follow the heads.
    upgrade: bool,
    /// The upstream is given what follows a CONNECT, not the CONNECT itself.
    terminate: bool,
}

/// Bytes of a body that are kept, where there are no retries, until the upstream has answered.
const REPLAY: usize = 64 * 1024;
/// How often a request that no upstream has begun with is sent again, beside what retries allow.
const MAX_REPLAYS: u32 = 3;

/// Forwards the request. `random` chooses among clusters.
pub(in crate::http) async fn forward(
    ex: &mut Exchange<'_>,
    route: &Arc<Route>,
    forward: &Forward,
    random: u64,
) -> Ended {
    if let Some(reply) = strict_check(ex) {
        ex.info.flags.insert(ResponseFlags::IH);
        return reply.into();
    }
    let Some(request) = &ex.request else { return End::Gone.into() };
    let (chosen, weighted) = forward.target.choose(request, random);
    let slot: Option<Arc<Slot<Cluster>>> = match &chosen {
        Chosen::Slot(slot) => Some((*slot).clone()),
        Chosen::Named(name) => name
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(|name| ex.worker.clusters.find(name)),
    };
    let cluster = match slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) {
        None if ex.manager.on_demand.is_some() => {
            let name = match &chosen {
                Chosen::Slot(slot) => Some(Box::from(&**slot.name())),
                Chosen::Named(name) => name.and_then(|name| std::str::from_utf8(name).ok()).map(Box::from),
            };
            match Box::pin(ex.find_cluster(route, name)).await {
                Ok(cluster) => cluster,
                Err(Gone) => return End::Gone.into(),
            }
        }
        found => found,
    };
    let Some(cluster) = cluster else {
        ex.manager.stats.no_cluster.increment(1);
        ex.info.flags.insert(ResponseFlags::NC);
        return Reply::new(forward.cluster_not_found_code, "cluster_not_found").into();
    };
    ex.info.cluster = Some(cluster.cluster.names.clone());
    ex.info.service.clone_from(&cluster.cluster.istio.service);
    if ex.filters.is_some() {
        filters::on_cluster(ex);
    }
    let counts = match &route.counted {
        None => Counts::default(),
        Some(counted) => counts(ex, counted),
    };
    if let Some(refusal) = cluster.cluster.drops.refuses(|| ex.worker.random()) {
        return fail::refuse(ex, &cluster.cluster, counts, refusal).into();
    }
    let Some(request) = &ex.request else { return End::Gone.into() };
    let mut terminate = false;
    let upgrade = match request.upgrade() {
        None => false,
        Some(kind) => {
            let Some(enabled) = find_upgrade(ex, forward, kind).filter(|upgrade| upgrade.enabled) else {
                ex.manager.stats.downstream_rq_ws_on_non_ws_route.increment(1);
                ex.close = true;
                return Reply::new(403, "upgrade_failed").into();
            };
            terminate = enabled.terminate;
            true
        }
    };
    if !upgrade && weighted.is_none() && is_refused_at_once(ex, forward, &cluster) {
        if ex.is_looked_back_at() || !route.response_headers.is_empty() {
            let deadlines = deadlines(ex, forward, &cluster.cluster, upgrade);
            let Some(request) = &mut ex.request else { return End::Gone.into() };
            prepare(request, route, forward, weighted, &ex.info, &deadlines, &ex.manager.router);
        }
        let reply = fail::overflow(ex, forward, &cluster.cluster, counts);
        // A filter may have waited, or who looked for what the control plane gives on demand.
        let waited = !ex.manager.filters.is_empty() || ex.manager.on_demand.is_some();
        return if waited { reply } else { reply.at_once() }.into();
    }
    let deadlines = deadlines(ex, forward, &cluster.cluster, upgrade);
    let Some(request) = &mut ex.request else { return End::Gone.into() };
    let retries = RequestRetries::of(forward.retry.as_ref(), &*request).map(Retries::new);
    prepare(request, route, forward, weighted, &ex.info, &deadlines, &ex.manager.router);
    let upstream_limit = cluster.cluster.per_connection_buffer_limit;
    ex.upload.limit(upstream_limit);
    let limit = route.buffer_limit.map_or(upstream_limit, |limit| limit as usize);
    let protocol = cluster.cluster.http.protocol;
    // Any member of an aggregate may be asked, and hosts may say themselves what they speak.
    let http2 = cluster.is_aggregate()
        || matches!(protocol, UpstreamProtocol::Http2 | UpstreamProtocol::Auto)
        || (protocol == UpstreamProtocol::Downstream && ex.down.client.is_http2());
    ex.upload.keep_trailers(http2 || cluster.cluster.http.http1.enable_trailers);
    // Without retries, for what an HTTP/2 upstream says it did not begin with.
    let kept = retries.is_some() || forward.redirects.is_some();
    let keep = if kept { Some(limit) } else { http2.then(|| limit.min(REPLAY)) };
    let mut copies = Copies::new(keep, limit);
    let body = filters::take_body(ex);
    if !upgrade && !forward.mirrors.is_empty() {
        mirror(ex, forward, &deadlines, &mut copies, body.as_ref());
    }
    if let Some(body) = &body {
        copies.hold(body);
    }
    let mut attempts = Attempts {
        route,
        forward,
        weighted,
        cluster,
        counts,
        member: None,
        hashed: None,
        retries,
        deadlines,
        copies,
        carried: None,
        tried: SmallVec::new(),
        reported: false,
        late: Vec::new(),
        won: None,
        alone: false,
        noted: None,
        upgrade,
        terminate,
    };
    let ended = attempts.run(ex).await;
    attempts.count_bytes(ex);
    ended
}

/// What counts the request beside its cluster, which is then known of it.
#[cold]
fn counts<'r>(ex: &mut Exchange<'_>, counted: &'r CountedBy) -> Counts<'r> {
    let Some(request) = &ex.request else { return Counts::default() };
    let (counts, name) = counted.of(request);
    ex.info.virtual_cluster = name.cloned();
    counts
}

/// Whether a breaker is in the way of a request whose host is nobody's choice. That is then counted, and is found out
/// before anything is made ready for a try, as a try would: many of those at a time are the answer to an overload.
#[inline]
fn is_refused_at_once(ex: &mut Exchange<'_>, forward: &Forward, cluster: &ClusterLocal) -> bool {
    if !RequestPermit::would_be_refused(&cluster.cluster, forward.priority) {
        return false;
    }
    let plain = forward.hash_policies.is_empty()
        && forward.metadata_match.is_none()
        && forward.mirrors.is_empty()
        && ex.manager.router.upstream_logs.is_none()
        && !cluster.is_aggregate()
        && !ex.manager.scheme_follows
        && filters::session(ex).is_none_or(|session| session.wanted().is_none());
    let Some(pool) = plain.then(|| cluster.next()).flatten() else { return false };
    let refused = RequestPermit::is_refused(&cluster.cluster, forward.priority);
    if refused {
        ex.info.attempts += 1;
        ex.info.host = Some(pool.host.clone());
    }
    refused
}

/// The upgrade as the route has it, else as the connection manager has it.
fn find_upgrade<'c>(ex: &Exchange<'c>, forward: &'c Forward, kind: &[u8]) -> Option<&'c Upgrade> {
    let of_kind = |upgrade: &&Upgrade| upgrade.kind.as_bytes().eq_ignore_ascii_case(kind);
    forward.upgrades.iter().find(of_kind).or_else(|| ex.manager.upgrades.iter().find(of_kind))
}

/// The answer to a request with a control that is to be checked and does not parse
/// (`strict_check_headers`).
fn strict_check(ex: &Exchange<'_>) -> Option<Reply> {
    let request = ex.request.as_ref()?;
    ex.manager.router.strict_check_headers.iter().find_map(|key| {
        let value = request.first(key)?;
        let valid = match key.known() {
            Known::XEnvoyRetryOn => RetryOn::parse(value).1,
            Known::XEnvoyRetryGrpcOn => RetryOn::parse_grpc(value).1,
            _ => number::<u64>(value).is_some(),
        };
        let name = key.name();
        (!valid).then(|| {
            let body = format!("invalid header '{name}' with value '{}'", String::from_utf8_lossy(value));
            Reply::new(400, format!("request_headers_failed_strict_check{{{name}}}")).body(body)
        })
    })
}

impl Attempts<'_> {
    /// Whether no host has seen the request for want of a connection, and one that is in good health may yet.
    fn is_unsent(&self, failed: &Failed) -> bool {
        let never = matches!(
            failed.failure,
            Failure::Upstream(
                UpstreamError::Connect { local: false, .. } | UpstreamError::ConnectTimeout { .. }
            )
        );
        never && !self.terminate && self.cluster.has_well()
    }

    /// Counts what passed between us and the upstream: heads, and bodies without their framing.
    fn count_bytes(&self, ex: &mut Exchange<'_>) {
        if ex.info.upstream_wire_sent > 0 || self.terminate {
            ex.info.upstream_wire_sent += ex.upload.passed();
        }
        let stats = self.upstream().stats();
        stats.upstream_cx_tx_bytes_total.increment(ex.info.upstream_wire_sent);
        stats.upstream_cx_rx_bytes_total.increment(ex.info.upstream_wire_received);
    }

    async fn run(&mut self, ex: &mut Exchange<'_>) -> Ended {
        let mut replays = 0;
        let mut was_timeout = false;
        let mut hedged = false;
        loop {
            ex.info.attempts += 1;
            self.note_try(ex);
            match self.attempt(ex, was_timeout).await {
                Ok(mut answered) => {
                    self.filter_response(ex, &mut answered.parsed.head);
                    self.heard(ex, &answered.parsed.head);
                    trace::on_answer(ex, answered.parsed.head.status);
                    self.note_load(ex.info.host.as_ref(), &answered.parsed.head.fields);
                    self.note_head(&answered.parsed.head);
                    if !self.retry_response(ex, &answered.parsed.head) {
                        if !self.late.is_empty() {
                            if self.is_retriable(&answered.parsed.head) {
                                self.charge_error(ex);
                                self.count_given_up(ex);
                                self.log_end(ex, None);
                                drop(answered);
                                return Box::pin(self.wait_for_late(ex)).await;
                            }
                            self.give_up_late(ex);
                        }
                        let ended = self.respond(ex, answered).await;
                        self.log_answered(ex);
                        return ended;
                    }
                    self.log_end(ex, None);
                    was_timeout = false;
                    let (parsed, connection) = (answered.parsed, answered.connection);
                    if matches!(parsed.framing, Framing::Empty | Framing::Length(0)) && parsed.keep_alive {
                        connection.give_back(true, Instant::now());
                    }
                }
                Err(Failed { failure: Failure::Late, .. }) => {
                    if !self.hedge(ex) {
                        return Box::pin(self.wait_for_late(ex)).await;
                    }
                    was_timeout = true;
                    hedged = true;
                }
                Err(Failed { failure: Failure::Overtaken, started, .. }) => {
                    if !started {
                        self.upstream().stats().upstream_rq_cancelled.increment(1);
                    }
                    return Box::pin(self.overtaken(ex, started)).await;
                }
                Err(failed) => {
                    // A connection that died before the request was taken, or between requests that
                    // may be repeated: the client must not see it (the keep-alive race).
                    let unsent = self.is_unsent(&failed);
                    let unseen = unsent || matches!(failed.failure, Failure::Reset(StreamError::Refused));
                    let most = if unseen { MAX_REPLAYS } else { 1 };
                    let by_policy = unseen && self.policy_covers(ex, &failed);
                    let unprocessed = failed.unprocessed || unsent;
                    let possible = unprocessed && !by_policy && replays < most && self.can_replay(ex);
                    if possible && self.cluster.may_replay() {
                        if unsent {
                            // It says as much of its host as if the client had seen it.
                            self.failed(ex, &failed);
                        }
                        replays += 1;
                        ex.info.attempts -= 1;
                        self.deadlines.try_ended();
                        continue;
                    }
                    self.log_end(ex, Some(&failed.failure));
                    self.count(ex, &failed);
                    self.failed(ex, &failed);
                    if !self.retry_failure(ex, &failed) {
                        if self.is_survived(&failed.failure) {
                            self.charge_abort(ex, &failed.failure);
                            return Box::pin(self.wait_for_late(ex)).await;
                        }
                        self.end_late(ex, &failed.failure);
                        return self.fail(ex, failed.failure);
                    }
                    was_timeout =
                        matches!(failed.failure, Failure::Timeout(Expired::PerTry | Expired::PerTryIdle));
                }
            }
            if !std::mem::take(&mut hedged) {
                self.charge_error(ex);
            }
            if let Err(failure) = Box::pin(self.back_off(ex)).await {
                if let Failure::Overtaken = failure {
                    return Box::pin(self.overtaken(ex, false)).await;
                }
                if !self.late.is_empty() {
                    return self.fail_late(ex, failure);
                }
                let failed = Failed::from(failure);
                self.count(ex, &failed);
                return self.fail(ex, failed.failure);
            }
        }
    }
}
