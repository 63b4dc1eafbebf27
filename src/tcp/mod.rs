//! L4: what serves a connection without looking into it.
//!
//! Comes in: an accepted [`Stream`](crate::runtime::Stream) whose filter chain is known, the bytes
//! read while inspecting it, and a way to dial upstreams. Goes out: the same bytes to a server
//! and back, statistics and one access-log record.

pub mod relay;
pub mod splice;
