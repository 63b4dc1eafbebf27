//! Threads, sockets and streams: the only room that knows what the operating system calls things.
//!
//! Comes in: addresses and socket options from config. Goes out: bound listening sockets,
//! [`Stream`]s and [`Acceptor`]s that belong to one worker's current-thread runtime.

pub mod application;
pub mod buffer;
pub mod client_hello;
pub mod conduit;
pub mod drain;
mod foreign;
pub mod internal;
pub mod listeners;
pub mod pipe;
pub mod process;
pub mod proxy_protocol;
pub mod signals;
pub mod sinks;
pub mod socket;
pub mod stream;
mod tls_records;
pub mod tls_stream;
pub mod upgrade;
pub mod worker;

pub use process::{run, RunError};
pub use stream::{Acceptor, Stream};
pub use worker::Counted;
