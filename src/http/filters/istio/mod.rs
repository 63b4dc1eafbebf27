//! Filters of Istio's own: those that change what goes over the wire, or who passes.

pub mod alpn;
pub mod authn;
pub mod peer_metadata;
