//! Requests that a cluster refuses before a host is asked: what a control plane wants refused
//! (`ClusterLoadAssignment.Policy.drop_overloads`), and what load reports say of them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

/// `drop_overloads`, of which Envoy takes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropOverload {
    /// What load reports call it.
    pub category: Arc<str>,
    /// Parts of a million that are refused, at most [`DropOverload::ALL`].
    pub share: u32,
}

impl DropOverload {
    /// Every request is refused.
    pub const ALL: u32 = 1_000_000;
}

/// What was refused, and what is to be. Stays when the cluster's hosts change.
#[derive(Debug, Default)]
pub struct Drops {
    /// Requests that a circuit breaker or `drop_overloads` refused.
    pub total: AtomicU64,
    /// Those by `drop_overloads`.
    pub overload: AtomicU64,
    share: AtomicU32,
    policy: ArcSwapOption<DropOverload>,
}

impl Drops {
    /// From now on `policy` holds.
    pub fn set(&self, policy: Option<DropOverload>) {
        self.share.store(policy.as_ref().map_or(0, |policy| policy.share), Ordering::Relaxed);
        self.policy.store(policy.map(Arc::new));
    }

    /// Whether a request is refused: parts of a million that are, where `random` says so.
    pub fn refuses(&self, random: impl FnOnce() -> u64) -> Option<u32> {
        let share = self.share.load(Ordering::Relaxed);
        (share > 0 && random() % u64::from(DropOverload::ALL) < u64::from(share)).then_some(share)
    }

    /// What holds now.
    pub fn policy(&self) -> Option<Arc<DropOverload>> {
        self.policy.load_full()
    }
}
