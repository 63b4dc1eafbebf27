//! Sidecars next to pods: network namespaces with Outrigger's own capture rules, applications that know nothing of it,
//! and the wire between them.

mod applications;
mod brokers;
mod cases;
mod jobs;
pub mod mesh;
mod names;
mod plane;
mod program;
mod rules;
mod server;
pub mod sidecar;
mod tproxy;
mod upgrade;
pub mod user;
mod wire;
