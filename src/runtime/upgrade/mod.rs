//! One binary replaced by another while connections stay: `outrigger upgrade`.
//!
//! The running process listens on a Unix socket ([`office`]). Asked there, it starts the new binary with its own
//! arguments ([`predecessor`]) and gives it all sockets over a channel ([`wire`]). The new process
//! ([`successor`]) serves from them as soon as its configuration is there; until it says so the old one serves as
//! before, and goes on if it never does. Then the old one gives away the TCP connections that it only relays,
//! finishes its requests, and at last is nothing but the parent of the new one ([`minder`]), so that whoever started
//! it (a container's engine, a supervisor) has one process for as long as anything runs.

pub mod command;
pub mod minder;
pub mod office;
pub mod predecessor;
pub mod succession;
pub mod successor;
pub mod wire;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use self::wire::{WireError, VERSION};

/// Why a process is not replaced. The text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Nobody listens for `outrigger upgrade`.
    #[error("no process takes upgrades at {0}: {1}")]
    Nobody(String, io::Error),
    /// Neither flag that says where is given.
    #[error("give the --socket-path or the --state-dir that the running process has")]
    Nowhere,
    /// The one who listens, or asks, is another user.
    #[error("the process at the other end runs as user {0}")]
    Stranger(u32),
    /// The binary cannot be run.
    #[error("{0} cannot be run: {1}")]
    Run(PathBuf, io::Error),
    /// The binary speaks no version of the protocol that is known here.
    #[error("{0} cannot take over from this process: asked for its hot restart version it says {1:?}, and not {2:?}")]
    Unlike(PathBuf, String, String),
    /// The new process ended too early.
    #[error("the new process ended before it was ready ({0}); its log says why")]
    Ended(std::process::ExitStatus),
    /// The new process did not become ready.
    #[error("the new process was not ready after {} s", .0.as_secs())]
    Late(Duration),
    /// It has not got its configuration.
    #[error("the new process has no listener {0:?}, which this one has")]
    Lacks(String),
    /// The two do not understand each other.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Anything else of the system's.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not now.
    #[error("{0}")]
    Busy(&'static str),
    /// The running process says no.
    #[error("not upgraded: {0}")]
    Refused(String),
}
