//! What a thread of the generator is told: its part of the work, and when all begin and end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::Arc;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use rustls::ClientConfig;

use crate::result::Schedule;

/// When all threads begin.
#[derive(Default)]
pub struct Stage {
    /// Threads that have tried all their connections.
    pub(super) ready: AtomicU32,
    /// The beginning, set by the last of them.
    pub(super) begin: AtomicU64,
    /// Ends the run early.
    pub stop: Arc<AtomicBool>,
}

impl Stage {
    /// For another run, which the same signals end.
    pub fn again(&self) -> Self {
        Self { stop: self.stop.clone(), ..Self::default() }
    }
}

/// What is said on a connection that only comes and goes, once it has counted: many servers send their session tickets
/// no earlier than with an answer.
#[derive(Clone, Debug)]
pub struct Hello {
    /// To the server.
    pub bytes: Bytes,
    /// Whether these bytes from it are its answer, whole.
    pub answered: fn(&[u8]) -> bool,
}

/// What a thread does.
pub struct Task {
    /// Where to connect.
    pub address: SocketAddr,
    /// TLS, and the name of the server.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Connections of this thread.
    pub connections: u32,
    /// Which thread of how many.
    pub share: (u32, u32),
    /// When to send.
    pub schedule: Schedule,
    /// Requests of this thread after which it ends; `u64::MAX` for no end.
    pub requests: u64,
    /// Requests on one connection; `u64::MAX` for no limit.
    pub per_connection: u64,
    /// Warm-up and measured time, seconds.
    pub times: (f64, f64),
    /// The longest wait for an answer, nanoseconds.
    pub timeout: u64,
    /// How long to wait for answers after the end, nanoseconds.
    pub grace: u64,
    /// Connections only come and go.
    pub handshakes: bool,
    /// What is said on those.
    pub hello: Option<Hello>,
    /// For random arrivals.
    pub seed: u64,
}
