//! Permits: what a circuit breaker lends, given back when the value is dropped.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use crate::config::cluster::{Limit, RetryBudget};
use crate::config::{Cluster, Host};

/// Which breaker a permit came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connections,
    Pending,
    Requests,
    Retries,
    Pools,
}

fn limit(cluster: &Cluster, priority: usize, kind: Kind) -> &Limit {
    // There are two routing priorities; anything else is the default one.
    let breakers = if priority == 1 { &cluster.breakers[1] } else { &cluster.breakers[0] };
    match kind {
        Kind::Connections => &breakers.connections,
        Kind::Pending => &breakers.pending,
        Kind::Requests => &breakers.requests,
        Kind::Retries => &breakers.retries,
        Kind::Pools => &breakers.pools,
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
            Kind::Pools => &gauges.cx_pool_open,
        };
        gauge.set(if open { 1.0 } else { 0.0 });
    }
    // What is left of a budget is nobody's to say: it moves with every request.
    let of_budget =
        kind == Kind::Retries && cluster.breakers[usize::from(priority == 1)].retry_budget.is_some();
    if let Some(gauges) = stats.remaining[usize::from(priority == 1)].as_ref().filter(|_| !of_budget) {
        let gauge = match kind {
            Kind::Connections => &gauges.remaining_cx,
            Kind::Pending => &gauges.remaining_pending,
            Kind::Requests => &gauges.remaining_rq,
            Kind::Retries => &gauges.remaining_retries,
            Kind::Pools => &gauges.remaining_cx_pools,
        };
        gauge.set(f64::from(limit.max().saturating_sub(limit.used())));
    }
}

/// A session of datagrams with a host, which counts as a connection.
#[derive(Debug)]
pub struct SessionPermit(#[allow(dead_code)] Permit);

impl SessionPermit {
    /// `None` when the circuit breaker has no room.
    pub fn take(cluster: &Arc<Cluster>) -> Option<Self> {
        Permit::take(cluster, 0, Kind::Connections).map(Self)
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
    /// Whether there is no permit now; then that is counted. One that is free may be gone before it is taken. Where
    /// nothing may wait either, it is the pool's to say which limit is in the way.
    #[inline]
    pub fn is_refused(cluster: &Cluster, priority: usize) -> bool {
        let refused = Self::would_be_refused(cluster, priority);
        if refused {
            cluster.stats().upstream_rq_active_overflow.increment(1);
        }
        refused
    }

    /// As [`RequestPermit::is_refused`], but nothing is counted.
    #[inline]
    pub fn would_be_refused(cluster: &Cluster, priority: usize) -> bool {
        let open = |kind| limit(cluster, priority, kind).is_open();
        open(Kind::Requests) && !open(Kind::Pending)
    }

    /// Takes a permit; `None` when `max_requests` is reached, which is counted.
    pub fn take(cluster: &Arc<Cluster>, priority: usize, host: &Arc<Host>) -> Option<Self> {
        let Some(permit) = Permit::take(cluster, priority, Kind::Requests) else {
            cluster.stats().upstream_rq_active_overflow.increment(1);
            return None;
        };
        begins(cluster, host);
        Some(Self { permit, host: host.clone() })
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        ends(&self.permit.cluster, &self.host);
    }
}

/// A TCP session with a host: counted as a request is, but no breaker of requests knows of it.
#[derive(Debug)]
pub struct RelayPermit {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
}

impl RelayPermit {
    /// Counts one more.
    pub fn take(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Self {
        begins(cluster, host);
        Self { cluster: cluster.clone(), host: host.clone() }
    }
}

impl Drop for RelayPermit {
    fn drop(&mut self) {
        ends(&self.cluster, &self.host);
    }
}

#[inline]
fn begins(cluster: &Cluster, host: &Host) {
    let stats = cluster.stats();
    stats.upstream_rq_total.increment(1);
    stats.upstream_rq_active.increment(1.0);
    host.shared.active_requests.fetch_add(1, Ordering::Relaxed);
    host.shared.counters.rq_total.fetch_add(1, Ordering::Relaxed);
}

#[inline]
fn ends(cluster: &Cluster, host: &Host) {
    cluster.stats().upstream_rq_active.decrement(1.0);
    host.shared.active_requests.fetch_sub(1, Ordering::Relaxed);
}

/// A retry in flight.
#[derive(Debug)]
pub struct RetryPermit {
    _permit: Permit,
}

impl RetryPermit {
    /// Takes a permit; `None` when `max_retries` or the retry budget is spent.
    pub fn take(cluster: &Arc<Cluster>, priority: usize) -> Option<Self> {
        let breakers = &cluster.breakers[usize::from(priority == 1)];
        let permit = match breakers.retry_budget {
            None => Permit::take(cluster, priority, Kind::Retries)?,
            Some(budget) => {
                if breakers.retries.used() >= budget.allows(&breakers.requests, &breakers.pending) {
                    return None;
                }
                // The gauge `rq_retry_open` goes by `max_retries` with a budget too, as in Envoy.
                Permit::take_anyway(cluster, priority, Kind::Retries)
            }
        };
        Some(Self { _permit: permit })
    }
}

impl RetryBudget {
    /// How many retries may be in flight beside these requests, as a whole number.
    fn allows(self, requests: &Limit, pending: &Limit) -> u32 {
        let active = u64::from(requests.used()) + u64::from(pending.used());
        // A cast is cut off at the largest number.
        let share = (self.percent / 100.0 * active as f64) as u32;
        share.max(self.min_concurrency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::{Address, Discovery, HostTemplate};
    use crate::config::fixtures;

    #[test]
    fn a_budget_is_a_whole_number_of_retries() {
        let mut cluster = fixtures::cluster("budget", Discovery::Static);
        cluster.breakers[0].retry_budget = Some(RetryBudget { percent: 50.0, min_concurrency: 1 });
        let cluster = Arc::new(cluster);
        let host = Host::new(Address::Ip(([127, 0, 0, 1], 1).into()), HostTemplate::default());
        let first = RetryPermit::take(&cluster, 0).expect("one is always allowed");
        assert!(RetryPermit::take(&cluster, 0).is_none());
        let requests: Vec<_> = (0..5).map(|_| RequestPermit::take(&cluster, 0, &host)).collect();
        let second = RetryPermit::take(&cluster, 0).expect("half of five is two");
        assert!(RetryPermit::take(&cluster, 0).is_none(), "and no more");
        drop((first, requests));
        assert!(RetryPermit::take(&cluster, 0).is_none());
        drop(second);
        assert!(RetryPermit::take(&cluster, 0).is_some());
    }
}
