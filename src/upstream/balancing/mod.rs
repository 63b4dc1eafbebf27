//! What pickers stand on: tables of consistent hashing, subsets, routing by zone, aggregates of clusters, and
//! hosts that are passed over because they could not be reached.
//!
//! Comes in: sorted hosts. Goes out: tables and plans that a pick only reads. What is dear to make is made once
//! for all workers, by the control thread where a worker has used it before.

pub mod aggregate;
pub mod subset;
pub mod suspect;
pub mod table;
pub mod zone;

#[cfg(test)]
mod tests;

use std::sync::OnceLock;
use std::time::Instant;

/// Milliseconds since shortly before this process first asked; never 0.
pub fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
}
