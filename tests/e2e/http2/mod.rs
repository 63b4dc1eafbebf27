//! HTTP/2 on either side of the proxy, beside the real Envoy and with other programs that speak it.
//!
//! - [`matrix`]: every shape of exchange over every pair of protocols, compared with Envoy; [`cases`] is its table,
//!   [`origin`] and [`client`] are its two ends.
//! - [`counters`]: statistics after the same traffic.
//! - [`filters`]: gRPC for clients that cannot read trailers, and statistics of calls.
//! - [`goaway`]: connections that an origin ends while requests are on them, frame by frame.
//! - [`grpc`]: gRPC's own implementation through the sidecar, and `examples/grpc`.
//! - [`websocket`]: WebSockets that stay open while the configuration changes.
//! - [`load`]: nghttp2's load generator.

mod cases;
mod client;
mod counters;
mod filters;
mod goaway;
mod grpc;
mod load;
pub mod matrix;
mod origin;
mod websocket;
