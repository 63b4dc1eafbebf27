//! The router: a request to an upstream and its response back, with timeouts and retries
//! (envoyproxy.io: http_filters/router_filter).

mod attempt;
mod deadlines;
mod fail;
mod mirror;
mod request;
mod respond;
mod retry;
mod shadow;
mod tunnel;
mod upload;

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use self::attempt::Answered;

use self::deadlines::{deadlines, Deadlines, Expired};
use self::mirror::mirror;
use self::request::prepare;
use super::exchange::{Exchange, Reply};
use super::h1::{Framing, Refusal};
use crate::config::route::{Chosen, Forward, RequestRetries, Route, WeightedCluster};
use crate::config::{Cluster, Host, RequestView, Slot};
use crate::telemetry::stream_info::ResponseFlags;
use crate::upstream::permit::RetryPermit;
use crate::upstream::{ClusterLocal, UpstreamError};

/// How a request ended for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has its whole answer.
    Done,
    /// It went away.
    Gone,
    /// Its answer was cut off.
    Broken,
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
    /// Nothing came in time.
    Timeout(Expired),
    /// The client went away.
    Gone,
    /// The client's body is broken.
    Refused(Refusal),
}

/// What the attempts of one request share.
struct Attempts<'r> {
    route: &'r Arc<Route>,
    forward: &'r Forward,
    weighted: Option<&'r WeightedCluster>,
    cluster: Rc<ClusterLocal>,
    retries: Option<RequestRetries>,
    deadlines: Deadlines,
    /// Body pieces kept for another attempt; `None` once they grew too large.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    tried: SmallVec<[*const Host; 2]>,
    upgrade: bool,
}

/// Forwards the request.
pub(in crate::http) async fn forward(
    ex: &mut Exchange<'_>,
    route: &Arc<Route>,
    forward: &Forward,
    random: u64,
) -> End {
    let Some(request) = &ex.request else { return End::Gone };
    let (chosen, weighted) = forward.target.choose(request, random);
    let slot: Option<Arc<Slot<Cluster>>> = match chosen {
        Chosen::Slot(slot) => Some(slot.clone()),
        Chosen::Named(name) => name
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(|name| ex.worker.clusters.find(name)),
    };
    let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) else {
        ex.manager.stats.no_cluster.increment(1);
        ex.info.flags.insert(ResponseFlags::NC);
        return ex.reply(Reply::new(forward.cluster_not_found_code, "cluster_not_found")).await;
    };
    ex.info.cluster = Some(cluster.cluster.name.clone());
    let upgrade = match request.upgrade() {
        None => false,
        Some(kind) if upgrade_enabled(ex, forward, kind) => true,
        Some(_) => {
            ex.manager.stats.downstream_rq_ws_on_non_ws_route.increment(1);
            ex.close = true;
            return ex.reply(Reply::new(403, "upgrade_failed")).await;
        }
    };
    let deadlines = deadlines(ex, forward);
    let Some(request) = &mut ex.request else { return End::Gone };
    let retries = if upgrade { None } else { RequestRetries::of(forward.retry.as_ref(), &*request) };
    prepare(
        request,
        route,
        forward,
        weighted,
        &ex.info,
        &deadlines,
        ex.manager.router.suppress_envoy_headers,
    );
    mirror(ex, forward);
    let kept = (retries.is_some() && !upgrade).then(Vec::new);
    let mut attempts = Attempts {
        route,
        forward,
        weighted,
        cluster,
        retries,
        deadlines,
        kept,
        kept_bytes: 0,
        tried: SmallVec::new(),
        upgrade,
    };
    attempts.run(ex).await
}

fn upgrade_enabled(ex: &Exchange<'_>, forward: &Forward, kind: &[u8]) -> bool {
    let find = |upgrades: &[crate::config::http::Upgrade]| {
        upgrades
            .iter()
            .find(|upgrade| upgrade.kind.as_bytes().eq_ignore_ascii_case(kind))
            .map(|upgrade| upgrade.enabled)
    };
    find(&forward.upgrades).or_else(|| find(&ex.manager.upgrades)).unwrap_or(false)
}

impl Attempts<'_> {
    async fn run(&mut self, ex: &mut Exchange<'_>) -> End {
        let mut left = self.retries.as_ref().map_or(0, |retries| retries.num_retries);
        let mut replayed = false;
        let mut permit: Option<RetryPermit> = None;
        let mut was_timeout = false;
        loop {
            ex.info.attempts += 1;
            let outcome = self.attempt(ex, was_timeout).await;
            let (failure, proof) = match outcome {
                Ok(Answered { parsed, connection, request_permit, sent }) => {
                    let retry = self.retry_response(ex, &parsed, &mut left, &mut permit);
                    if !retry {
                        if ex.info.attempts > 1 && parsed.head.status < 500 {
                            self.cluster.cluster.stats().upstream_rq_retry_success.increment(1);
                        }
                        return self.respond(ex, parsed, connection, request_permit, sent).await;
                    }
                    // The client never sees this answer, but the host gave it.
                    if let Some(host) = &ex.info.host {
                        host.counters.rq_error.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(request_permit);
                    if matches!(parsed.framing, Framing::Empty | Framing::Length(0)) && parsed.keep_alive {
                        let pool = connection.pool().clone();
                        pool.give_back(connection, true, Instant::now());
                    }
                    Box::pin(self.back_off(ex)).await;
                    was_timeout = false;
                    continue;
                }
                Err(failed) => (failed.failure, failed.unprocessed),
            };
            // A connection that died before the request was taken, or between requests that may be
            // repeated: the client must not see it (the keep-alive race).
            if proof && !replayed && self.can_replay(ex) {
                replayed = true;
                ex.info.attempts -= 1;
                continue;
            }
            if self.retry_failure(ex, &failure, &mut left, &mut permit) {
                was_timeout = matches!(failure, Failure::Timeout(Expired::PerTry));
                self.charge_error(ex, true);
                Box::pin(self.back_off(ex)).await;
                continue;
            }
            return Box::pin(self.fail(ex, failure)).await;
        }
    }
}
