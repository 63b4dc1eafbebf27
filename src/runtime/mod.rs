//! Threads, sockets and streams: the only room that knows what the operating system calls things.
//!
//! Comes in: addresses and socket options from config. Goes out: bound listening sockets,
//! [`Stream`]s and [`Acceptor`]s that belong to one worker's current-thread runtime.

pub mod drain;
pub mod socket;
pub mod stream;

pub use stream::{Acceptor, Stream};

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data path is not part of this build.
    #[error("this build cannot serve traffic")]
    NotBuilt,
}

/// Serves traffic until it is told to stop.
///
/// # Errors
/// A listener cannot be bound, or the runtime cannot start.
pub fn run(
    _compiled: crate::config::compile::CompiledBootstrap,
    _flags: crate::bootstrap::Flags,
    _log: crate::telemetry::log::LogControl,
) -> Result<(), RunError> {
    Err(RunError::NotBuilt)
}
