//! Filters of Istio's own: those that change what goes over the wire.

pub mod alpn;
pub mod peer_metadata;
