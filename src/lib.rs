//! Outrigger: a service-mesh sidecar data plane that takes Envoy's xDS v3 configuration.
//!
//! The rooms, in the order traffic meets them:
//!
//! - [`bootstrap`]: what the process is told at start.
//! - [`capture`]: rules that bring a pod's connections here.
//! - [`config`]: the compiled, immutable model that everything else reads.
//! - [`discovery`]: keeps the configuration what the control planes say.
//! - [`listener`]: accepting connections and choosing their filter chain.
//! - [`http`]: L7, from heads to the router.
//! - [`policy`]: who may do what.
//! - [`upstream`]: from a cluster to a connection.
//! - [`tls`]: certificates, trust and handshakes, both ways.
//! - [`runtime`]: threads, sockets and streams.
//! - [`tcp`]: connections forwarded as they are.
//! - [`telemetry`]: metrics, access logs and the record of a stream.
//! - [`admin`]: the admin port.

pub mod admin;
pub mod bootstrap;
pub mod capture;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod http;
pub mod inject;
pub mod listener;
pub mod policy;
pub mod runtime;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
