//! TLS on the data path: certificates, trust, and the handshakes of both sides.
//!
//! Comes in: compiled contexts (`DownstreamTlsContext`, `UpstreamTlsContext`) whose certificates and trust live in
//! [`secret::Slot`]s, and connected streams. Goes out: a [`TlsStream`](crate::runtime::tls_stream::TlsStream), what
//! was agreed on and who the peer is ([`peer::TlsInfo`]), or why there is no connection, in Envoy's words. A context is
//! made anew at the first handshake after one of its slots has changed; connections that stand keep what they have.

mod contexts;
pub mod downstream;
pub mod expiry;
pub mod failure;
pub mod identity;
pub mod name;
pub mod names;
pub mod ocsp;
pub mod params;
pub mod peer;
pub mod renewal;
pub mod secret;
pub mod sessions;
pub(crate) mod signatures;
pub mod spiffe;
pub mod stats;
pub mod unverified;
pub mod upstream;
pub mod validation;
mod verifier;
pub mod workload;

#[cfg(test)]
mod tests;

pub use downstream::DownstreamTls;
pub use peer::{Peer, TlsInfo};
pub use secret::{Secret, Secrets, Slot};
pub use upstream::UpstreamTls;
pub use validation::Validation;
