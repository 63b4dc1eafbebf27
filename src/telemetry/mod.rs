//! What is seen from outside: metrics, access logs and the formats both share.
//!
//! Comes in: counts and finished [`stream_info::StreamInfo`] records. Goes out: Envoy's stat names
//! and log lines. Handles are resolved when config is compiled; the data path only counts.

pub mod access_log;
pub mod filter_state;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod format;
pub mod istio;
pub mod log;
pub mod metrics;
pub mod otlp;
pub mod process;
pub mod sinks;
pub mod stats;
pub mod stream_info;
pub mod tag;
pub mod told;
