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
//! - [`frames`]: wrong frames and malformed requests, beside Envoy; [`table`] and [`requests`] are its tables, [`raw`]
//!   its two ends. [`fuzz`]: random ones.
//! - [`floods`], [`abuse`]: clients that cost much; [`liars`]: origins that break the protocol.
//! - [`stalled`]: very many small messages for who does not read; [`stalled_tunnels`]: the same in tunnels.
//! - [`drains`]: connections that are told to leave.
//! - [`hedged`]: tries that go on beside the next.
//! - [`h2_client`]: the `h2` package for Python as client.

mod abuse;
mod cases;
mod client;
mod counters;
mod drains;
mod filters;
mod floods;
mod frames;
mod fuzz;
mod goaway;
mod grpc;
mod h2_client;
mod hedged;
mod liars;
mod liveness;
mod load;
pub mod matrix;
mod origin;
mod raw;
mod requests;
mod stalled;
mod stalled_tunnels;
mod table;
mod websocket;
