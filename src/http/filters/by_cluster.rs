//! Statistics that a filter keeps by the cluster that requests go to, and answers of a filter that count as the cluster's.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::chain::At;
use crate::http::exchange::Exchange;
use crate::telemetry::metrics::Scope;

/// Statistics in `cluster.<name>.<room>.`, made when a cluster is first counted.
pub struct ByCluster<S> {
    /// The filter's room there, with the prefix that config wants after it.
    room: Box<str>,
    new: fn(&Scope) -> S,
    known: RwLock<HashMap<Box<str>, Arc<S>>>,
}

impl<S> std::fmt::Debug for ByCluster<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ByCluster({})", self.room)
    }
}

impl<S> ByCluster<S> {
    /// In `room`, or `room.prefix`.
    pub fn new(room: &str, prefix: &str, new: fn(&Scope) -> S) -> Self {
        let room = if prefix.is_empty() { room.into() } else { format!("{room}.{prefix}").into() };
        Self { room, new, known: RwLock::default() }
    }

    /// Those of the cluster that a request goes to.
    pub(super) fn of(&self, ex: &Exchange<'_>, at: &At<'_>) -> Option<Arc<S>> {
        at.course.with_cluster(ex, |name| self.named(name))
    }

    fn named(&self, name: &str) -> Arc<S> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let stats = Arc::new((self.new)(&Scope::cluster(name).sub(&self.room)));
            let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
            all.entry(name.into()).or_insert(stats).clone()
        })
    }
}

/// Counts a filter's answer among those of the cluster that the request would have gone to.
pub(super) fn charge(ex: &Exchange<'_>, at: &At<'_>, status: u16) {
    let slot = at.course.with_cluster(ex, |name| ex.worker.clusters.find(name)).flatten();
    if let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) {
        let stats = cluster.cluster.stats();
        stats.responses.count(status);
        stats.upstream_rq_completed.increment(1);
    }
}
