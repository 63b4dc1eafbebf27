//! Connections that move to another process while they are relayed.
//!
//! A worker's connections look at one [`Fate`]. When it says that they are to leave, a relay stops between two reads,
//! and what it knows goes out as a [`Departing`]: both sockets and where the relay [stands](Position). Its task waits
//! for the answer: it ends if somebody else goes on, else it goes on itself. In the other process the same comes in as
//! a [`Passage`] and two sockets.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::config::Retirement;

/// What is to become of a worker's connections.
#[derive(Clone, Debug, Default)]
pub enum Fate {
    /// They go on.
    #[default]
    Stay,
    /// Those that can are handed over.
    Leave(mpsc::UnboundedSender<Departing>),
    /// They are closed.
    End,
}

/// What a relay is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To end.
    Cut,
    /// To stop where it stands. Not obeyed once a side has failed.
    Leave,
}

/// Where one direction of a relay stands.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    /// Bytes read and not delivered.
    pub held: BytesMut,
    /// What else is to come.
    pub stage: Stage,
}

/// How far one direction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The source may have more.
    #[default]
    Open,
    /// The source is at its end; the target is to be told when it has everything.
    Ending,
    /// The target was told.
    Done,
}

/// Where a relay stands.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// From the client.
    pub up: Leg,
    /// To the client.
    pub down: Leg,
    /// What the first direction holds was not counted yet, nor asked about.
    pub fresh: bool,
}

impl From<BytesMut> for Position {
    /// Before the first byte is relayed.
    fn from(prefix: BytesMut) -> Self {
        Self { up: Leg { held: prefix, stage: Stage::Open }, down: Leg::default(), fresh: true }
    }
}

/// What the process that goes on with a connection needs to know, as JSON. Fields may be added; who reads them
/// ignores what it does not know, and has a default for what is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Passage {
    /// The listener's name.
    pub listener: String,
    /// The filter chain's name, possibly empty.
    pub chain: String,
    /// Its place in the listener; one more than the last is the default chain.
    pub place: usize,
    /// The upstream cluster's name.
    pub cluster: String,
    /// The upstream's IP address and port.
    pub host: Option<SocketAddr>,
    /// As `ConnectionInfo` has them.
    pub remote: Option<SocketAddr>,
    /// See there.
    pub direct_remote: Option<SocketAddr>,
    /// See there.
    pub local: Option<SocketAddr>,
    /// See there.
    pub direct_local: Option<SocketAddr>,
    /// See there.
    pub is_restored: bool,
    /// See there.
    pub source: Option<(SocketAddr, u32)>,
    /// See there.
    pub server_name: Option<String>,
    /// Milliseconds since the connection was accepted.
    pub age_ms: u64,
    /// Attempts that it took to reach the upstream.
    pub attempts: u32,
    /// How many bytes from the client are held.
    pub held_up: usize,
    /// How many to the client.
    pub held_down: usize,
    /// How far the direction from the client is.
    pub up: Stage,
    /// How far the other is.
    pub down: Stage,
    /// Bytes read from the client, written to the upstream, read from the upstream, written to the client.
    pub traffic: [u64; 4],
}

/// A connection that waits to be taken over.
#[derive(Debug)]
pub struct Departing {
    /// What is known of it; listener, chain and place are not.
    pub passage: Passage,
    /// That of its filter chain, which thereby can be found.
    pub retirement: Arc<Retirement>,
    /// The client's socket.
    pub downstream: OwnedFd,
    /// The upstream's socket.
    pub upstream: OwnedFd,
    /// Bytes from the client, then bytes to the client.
    pub held: Vec<u8>,
    /// Told once somebody else goes on with it. Dropped, it says that nobody does.
    pub taken: oneshot::Sender<()>,
}
