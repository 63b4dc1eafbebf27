//! Permits: what a circuit breaker lends, given back when the value is dropped.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use crate::config::cluster::Limit;
use crate::config::{Cluster, Host};

/// Which breaker a permit came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connections,
    Pending,
    Requests,
    Retries,
}

fn limit(cluster: &Cluster, priority: usize, kind: Kind) -> &Limit {
    // There are two routing priorities; anything else is the default one.
    let breakers = if priority == 1 { &cluster.breakers[1] } else { &cluster.breakers[0] };
    match kind {
        Kind::Connections => &breakers.connections,
        Kind::Pending => &breakers.pending,
        Kind::Requests => &breakers.requests,
        Kind::Retries => &breakers.retries,
    }
}

/// Publishes `*_open` (and `remaining_*`) when the state changed.
fn publish(cluster: &Cluster, priority: usize, kind: Kind) {
    let limit = limit(cluster, priority, kind);
    let open = limit.is_open();
    let track = cluster.breakers[usize::from(priority == 1)].track_remaining;
    let changed = limit.note_open(open);
    if !changed && !track {
        return;
    }
    let stats = cluster.stats();
    if changed {
        let gauges = &stats.breakers[usize::from(priority == 1)];
        let gauge = match kind {
            Kind::Connections => &gauges.cx_open,
            Kind::Pending => &gauges.rq_pending_open,
            Kind::Requests => &gauges.rq_open,
            Kind::Retries => &gauges.rq_retry_open,
        };
        gauge.set(if open { 1.0 } else { 0.0 });
    }
    if let Some(gauges) = &stats.remaining[usize::from(priority == 1)] {
        let gauge = match kind {
            Kind::Connections => &gauges.remaining_cx,
            Kind::Pending => &gauges.remaining_pending,
            Kind::Requests => &gauges.remaining_rq,
            Kind::Retries => &gauges.remaining_retries,
        };
        gauge.set(f64::from(limit.max().saturating_sub(limit.used())));
    }
}

/// One unit of a circuit breaker.
#[derive(Debug)]
pub(super) struct Permit {
    cluster: Arc<Cluster>,
    priority: usize,
    kind: Kind,
}

impl Permit {
    pub(super) fn take(cluster: &Arc<Cluster>, priority: usize, kind: Kind) -> Option<Self> {
        if !limit(cluster, priority, kind).try_take() {
            publish(cluster, priority, kind);
            return None;
        }
        publish(cluster, priority, kind);
        Some(Self { cluster: cluster.clone(), priority, kind })
    }

    pub(super) fn take_anyway(cluster: &Arc<Cluster>, priority: usize, kind: Kind) -> Self {
        limit(cluster, priority, kind).take_anyway();
        publish(cluster, priority, kind);
        Self { cluster: cluster.clone(), priority, kind }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        limit(&self.cluster, self.priority, self.kind).release();
        publish(&self.cluster, self.priority, self.kind);
    }
}

/// A request in flight to a host: counts against the breaker, the host and the gauges.
#[derive(Debug)]
pub struct RequestPermit {
    permit: Permit,
    host: Arc<Host>,
}

impl RequestPermit {
    /// Takes a permit; `None` when `max_requests` is reached (counted as Envoy does, under
    /// `upstream_rq_pending_overflow`).
    pub fn take(cluster: &Arc<Cluster>, priority: usize, host: &Arc<Host>) -> Option<Self> {
        let Some(permit) = Permit::take(cluster, priority, Kind::Requests) else {
            cluster.stats().upstream_rq_pending_overflow.increment(1);
            return None;
        };
        let stats = cluster.stats();
        stats.upstream_rq_total.increment(1);
        stats.upstream_rq_active.increment(1.0);
        host.shared.active_requests.fetch_add(1, Ordering::Relaxed);
        host.shared.counters.rq_total.fetch_add(1, Ordering::Relaxed);
        Some(Self { permit, host: host.clone() })
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.permit.cluster.stats().upstream_rq_active.decrement(1.0);
        self.host.shared.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A retry in flight.
#[derive(Debug)]
pub struct RetryPermit {
    permit: Option<Permit>,
    cluster: Arc<Cluster>,
    priority: usize,
}

impl RetryPermit {
    /// Takes a permit; `None` when `max_retries` or the retry budget is spent.
    pub fn take(cluster: &Arc<Cluster>, priority: usize) -> Option<Self> {
        let breakers = &cluster.breakers[usize::from(priority == 1)];
        let permit = match breakers.retry_budget {
            None => Some(Permit::take(cluster, priority, Kind::Retries)?),
            Some(budget) => {
                let active = f64::from(breakers.requests.used()) + f64::from(breakers.pending.used());
                let allowed = (active * budget.percent / 100.0).max(f64::from(budget.min_concurrency));
                if f64::from(breakers.retries.used()) >= allowed {
                    return None;
                }
                breakers.retries.take_anyway();
                None
            }
        };
        Some(Self { permit, cluster: cluster.clone(), priority })
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        if self.permit.is_none() {
            self.cluster.breakers[usize::from(self.priority == 1)].retries.release();
        }
    }
}
