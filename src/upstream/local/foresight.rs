//! Connections to the hosts that come next (`preconnect_policy.predictive_preconnect_ratio`).
//!
//! As in Envoy, a cluster should have room for so many times the requests that it has, the one that is about to begin
//! included; with each request at most three connections are opened, each to the host after the one before. Those hosts
//! are remembered: they are the next picks. A policy whose next pick nobody can know foresees nothing. The hosts' rooms
//! are added up for each request, so this is for clusters of tens of hosts rather than of thousands.

use super::{ClusterLocal, View};
use crate::config::balancing::LbPolicy;
use crate::upstream::pick::{Ground, PickContext};
use crate::upstream::pool::preconnect::{wants, MOST};

impl ClusterLocal {
    /// How many times the requests that it has the cluster should have room for; `None` = nothing is foreseen.
    #[inline]
    pub fn foresees(&self) -> Option<f64> {
        self.cluster.predictive_ratio
    }

    /// Before a request begins that is sent over `http2` or not: connections for those after it.
    #[cold]
    pub fn foresee(&self, ratio: f64, priority: usize, http2: bool) {
        for _ in 0..MOST {
            let next = {
                let view = &mut *self.view.borrow_mut();
                let (mut streams, mut room) = (0, 0);
                for pool in &view.pools {
                    let load = pool.load(http2);
                    streams += load.streams;
                    room += load.room;
                }
                if !wants(streams + 1, ratio, room) {
                    return;
                }
                self.peek(view).and_then(|index| view.pools.get(index)).cloned()
            };
            if !next.is_some_and(|pool| pool.foresee(ratio, priority, http2)) {
                return;
            }
        }
    }

    /// The pick after the last one that is known.
    fn peek(&self, view: &mut View) -> Option<usize> {
        let balancing = &self.cluster.balancing;
        let known = matches!(balancing.policy, LbPolicy::RoundRobin | LbPolicy::Random);
        if !known || balancing.subsets.is_some() || self.aggregate.is_some() {
            return None;
        }
        let View { set, picker, rng, more, .. } = view;
        let healthy: usize = set.split.priorities.iter().map(|level| level.healthy.len()).sum();
        let foreseen = &mut more.get_or_insert_with(Box::default).foreseen;
        if foreseen.len() >= healthy {
            return None;
        }
        let ground = Ground { all: &set.all, split: &set.split, now: super::clock() };
        let index = picker.pick(ground, &PickContext::default(), rng)?;
        foreseen.push_back(index);
        Some(index)
    }
}
