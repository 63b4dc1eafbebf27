//! The compiled configuration: what the data path reads and never writes.
//!
//! Protobuf resources come in through `compile`; immutable values come out, each reachable through
//! a [`Slot`] that is swapped whole. A compiled value cannot express an invalid state: what could
//! be wrong with a resource is found while it is compiled and reported with its field path.
//! Nothing here does I/O, and nothing here knows about threads.

pub mod balancing;
pub mod chain_match;
pub mod cluster;
pub mod compile;
pub mod control_secret;
pub mod demand;
pub mod discovery;
pub mod dns_filter;
pub mod drops;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod headers;
pub mod hosts;
pub mod http;
pub mod listener;
pub mod local_node;
pub mod matcher;
pub mod passing;
pub mod path_template;
pub mod pieces;
pub mod problems;
pub mod query;
pub mod regex;
pub mod retirement;
pub mod route;
pub mod runtime_value;
pub mod scopes;
pub mod services;
pub mod slot;
#[cfg(test)]
mod slot_tests;
pub mod support;
mod sync;
pub mod tcp;
pub mod tls;
pub mod token;
pub mod tunnel;
pub mod udp;

pub use cluster::Cluster;
pub use headers::{HeaderKey, HeaderMutate, HeaderView, Known, KnownSet, RequestView};
pub use hosts::{Host, HostSet};
pub use problems::{Problem, Problems};
pub use retirement::Retirement;
pub use slot::{Directory, Slot};
