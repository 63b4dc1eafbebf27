//! How many connections a filter chain takes: at a time (`envoy.filters.network.connection_limit`), and one after the other
//! (`envoy.filters.network.local_ratelimit`).
//!
//! Comes in: a connection, as it is accepted, before TLS. Goes out: room for it, held until it is over, or how it is closed.
//! Shared by all workers, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::token_bucket::TokenBucket;
use crate::config::compile::runtime::Runtime;
use crate::config::runtime_value::RuntimeSwitch;
use arc_swap::ArcSwap;

crate::stats! {
    /// `connection_limit.<stat_prefix>.`.
    pub struct ConnectionLimitStats {
        counters { limited_connections }
        gauges { active_connections }
        histograms {}
    }
}

crate::stats! {
    /// `local_rate_limit.<stat_prefix>.`.
    pub struct ConnectionRateStats {
        counters { rate_limited }
        gauges {}
        histograms {}
    }
}

/// So many connections at a time.
#[derive(Debug)]
pub struct ConnectionLimit {
    /// Its statistics.
    pub stats: ConnectionLimitStats,
    /// At most so many, from 1.
    pub most: u64,
    /// How long a connection beyond stays open.
    pub delay: Option<Duration>,
    /// Whether there is a limit.
    pub enabled: RuntimeSwitch,
    open: AtomicU64,
}

/// So many connections in a time.
#[derive(Debug)]
pub struct ConnectionRate {
    /// Its statistics.
    pub stats: ConnectionRateStats,
    /// A token for each connection.
    pub bucket: TokenBucket,
    /// Whether there is a limit.
    pub enabled: RuntimeSwitch,
}

/// The room of one connection, given back when it is dropped.
#[derive(Debug)]
pub struct Room(Arc<ConnectionLimit>);

impl ConnectionLimit {
    /// A limit of `most` connections.
    pub fn new(
        stats: ConnectionLimitStats,
        most: u64,
        delay: Option<Duration>,
        enabled: RuntimeSwitch,
    ) -> Self {
        Self { stats, most, delay, enabled, open: AtomicU64::new(0) }
    }

    /// Room for one more connection; the error is that there is none. While the limit is off nothing is counted.
    pub fn take(self: &Arc<Self>, runtime: &ArcSwap<Runtime>) -> Result<Option<Room>, Full> {
        if !self.enabled.now(runtime) {
            return Ok(None);
        }
        let more = |open| (open < self.most).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            self.stats.limited_connections.increment(1);
            return Err(Full);
        }
        self.stats.active_connections.increment(1.0);
        Ok(Some(Room(self.clone())))
    }
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Drop for Room {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.stats.active_connections.decrement(1.0);
    }
}

impl ConnectionRate {
    /// Whether one more connection may come now.
    pub fn admits(&self, runtime: &ArcSwap<Runtime>, now: Instant) -> bool {
        let admitted = !self.enabled.now(runtime) || self.bucket.take(now);
        if !admitted {
            self.stats.rate_limited.increment(1);
        }
        admitted
    }
}
