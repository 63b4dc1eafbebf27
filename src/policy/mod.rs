//! Who may do what: decisions about requests and connections.
//!
//! Comes in: compiled rules, and the facts of one request or connection. Goes out: a decision, and what is to be
//! told about it. Nothing here does I/O or waits; the filters that ask act on the answer.

pub mod authz;
pub mod cel;
pub mod gate;
pub mod jwt;
pub mod limits;
pub mod rbac;
pub mod state;
pub mod token_bucket;
pub mod token_buckets;
