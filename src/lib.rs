//! Outrigger: a service-mesh sidecar data plane that takes Envoy's xDS v3 configuration.
//!
//! The rooms, in the order traffic meets them:
//!
//! - [`config`]: the compiled, immutable model that everything else reads.
//! - [`listener`]: accepting connections and choosing their filter chain.
//! - [`runtime`]: threads, sockets and streams.
//! - [`tcp`]: connections forwarded as they are.
//! - [`telemetry`]: metrics, access logs and the record of a stream.

pub mod config;
pub mod listener;
pub mod runtime;
pub mod tcp;
pub mod telemetry;
