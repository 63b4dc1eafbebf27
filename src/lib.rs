//! Outrigger: a service-mesh sidecar data plane that takes Envoy's xDS v3 configuration.
//!
//! The rooms, in the order traffic meets them:
//!
//! - [`config`]: the compiled, immutable model that everything else reads.
//! - [`runtime`]: threads, sockets and streams.
//! - [`telemetry`]: metrics, access logs and the record of a stream.

pub mod config;
pub mod runtime;
pub mod telemetry;
