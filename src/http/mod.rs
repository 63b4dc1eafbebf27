//! L7: HTTP connections served.
//!
//! Comes in: an accepted byte stream and the connection manager that its filter chain names. A
//! request's head is parsed (`h1`), prepared (`manager`), routed and forwarded (`router`), its
//! bodies moved by `pump`; every answer of our own is a `local_reply`. Goes out: bytes both ways, one
//! access-log record a stream. Nothing here knows about threads or reads protobuf.

pub mod bulk;
pub mod call;
pub mod call_stream;
pub mod client;
mod client_cert;
pub mod coding;
pub mod connection;
pub mod cookies;
pub mod detection;
pub mod exchange;
pub mod fields;
pub mod filters;
mod grpc;
pub mod h1;
pub mod h2;
pub mod head;
pub mod io;
pub(crate) mod location;
pub mod logs;
pub mod manager;
mod on_demand;
mod pace;
pub mod path;
pub mod pump;
mod reply;
pub mod router;
pub mod server_stream;
mod shelf;
mod stages;
pub mod timer;
pub mod trace;
pub mod worker;
