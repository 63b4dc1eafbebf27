//! Requests that a cluster refuses before a host is asked: what runtime wants refused (maintenance mode), what a
//! control plane does (`ClusterLoadAssignment.Policy.drop_overloads`), and what load reports say of them.

use std::sync::atomic::{AtomicU64, Ordering};
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

/// The half of the shares that `drop_overloads` has.
const LOWER: u64 = u32::MAX as u64;

/// Why a request is refused before a host is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Runtime has the cluster in maintenance.
    Maintenance,
    /// The control plane wants so many parts of a million refused.
    Overload(u32),
}

/// What was refused, and what is to be. Stays when the cluster's hosts change.
#[derive(Debug, Default)]
pub struct Drops {
    /// Requests that a circuit breaker or `drop_overloads` refused.
    pub total: AtomicU64,
    /// Those by `drop_overloads`.
    pub overload: AtomicU64,
    /// Parts of a million by `policy` in the lower half, percent by maintenance in the upper: a request looks once.
    shares: AtomicU64,
    policy: ArcSwapOption<DropOverload>,
}

impl Drops {
    /// From now on `policy` holds.
    pub fn set(&self, policy: Option<DropOverload>) {
        let share = policy.as_ref().map_or(0, |policy| policy.share);
        self.change(|shares| shares & !LOWER | u64::from(share));
        self.policy.store(policy.map(Arc::new));
    }

    /// From now on so many percent of the requests are refused for maintenance.
    pub fn maintain(&self, percent: u32) {
        self.change(|shares| shares & LOWER | u64::from(percent) << 32);
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        let _ = self.shares.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |shares| Some(change(shares)));
    }

    /// Why a request is refused, if `random` says so.
    #[inline]
    pub fn refuses(&self, random: impl Fn() -> u64) -> Option<Refusal> {
        let shares = self.shares.load(Ordering::Relaxed);
        if shares == 0 {
            return None;
        }
        let (maintenance, share) = (shares >> 32, shares & LOWER);
        if maintenance > 0 && random() % 100 < maintenance {
            return Some(Refusal::Maintenance);
        }
        // A share is at most a million.
        (share > 0 && random() % u64::from(DropOverload::ALL) < share)
            .then_some(Refusal::Overload(share as u32))
    }

    /// What holds now.
    pub fn policy(&self) -> Option<Arc<DropOverload>> {
        self.policy.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_goes_before_overload_and_neither_forgets_the_other() {
        let drops = Drops::default();
        let of = |random: u64| drops.refuses(move || random);
        assert_eq!(of(0), None);
        drops.maintain(30);
        assert_eq!(
            [of(0), of(29), of(30), of(129)],
            [Some(Refusal::Maintenance), Some(Refusal::Maintenance), None, Some(Refusal::Maintenance)]
        );
        drops.set(Some(DropOverload { category: "c".into(), share: 500_000 }));
        assert_eq!(
            [of(0), of(50), of(999_999)],
            [Some(Refusal::Maintenance), Some(Refusal::Overload(500_000)), None]
        );
        drops.maintain(0);
        assert_eq!(
            [of(0), of(499_999), of(500_000)],
            [Some(Refusal::Overload(500_000)), Some(Refusal::Overload(500_000)), None]
        );
        drops.set(None);
        assert_eq!(of(0), None);
    }
}
