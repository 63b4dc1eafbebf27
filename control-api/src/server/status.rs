//! What is known of each client.

use std::time::{Instant, SystemTime};

use super::kind::ResourceType;
use super::stream::{Protocol, StreamState};
use super::subscription::{Nack, Subscription};

/// One open stream.
#[derive(Debug, Clone)]
pub struct StreamStatus {
    /// Numbered from 1 in the order of arrival.
    pub id: u64,
    /// The node's id, as it says.
    pub node_id: String,
    /// The node's cluster, as it says.
    pub node_cluster: String,
    /// Whose snapshot it gets.
    pub key: String,
    /// Delta or state of the world.
    pub protocol: Protocol,
    /// The type of a separate stream; `None` on an aggregated one.
    pub only: Option<ResourceType>,
    /// When the node named itself.
    pub since: SystemTime,
    /// By type, in the order of sending.
    pub types: Vec<TypeStatus>,
}

impl StreamStatus {
    /// True when everything was sent and accepted.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        self.types.iter().all(|t| t.pending == 0 && t.version_sent == t.version_acked)
    }
}

/// One type on one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    /// The type.
    pub kind: ResourceType,
    /// Everything is subscribed to.
    pub wildcard: bool,
    /// The number of names subscribed to beside the wildcard.
    pub subscribed: usize,
    /// The number of resources that the client has been told about.
    pub known: usize,
    /// The number of names whose change or removal waits to be sent.
    pub pending: usize,
    /// The version last sent; empty before.
    pub version_sent: String,
    /// The version last accepted; empty before.
    pub version_acked: String,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// The last refusal, and when it arrived.
    pub last_nack: Option<(Nack, SystemTime)>,
}

impl TypeStatus {
    fn of(kind: &ResourceType, s: &Subscription) -> Self {
        Self {
            kind: kind.clone(),
            wildcard: s.wildcard,
            subscribed: s.names.len(),
            known: s.known.len(),
            pending: s.asked.len() + s.updates.len() + s.removals.len(),
            version_sent: s.version_sent.clone(),
            version_acked: s.version_acked.clone(),
            acks: s.acks,
            nacks: s.nacks,
            last_nack: s.last_nack.clone().map(|nack| {
                let at = wall_clock(nack.at);
                (nack, at)
            }),
        }
    }
}

impl StreamState {
    /// The state of each type on the stream.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        self.types.iter().map(|(kind, s)| TypeStatus::of(kind, s)).collect()
    }
}

fn wall_clock(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}

/// What happened on a stream.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node named itself.
    Connected,
    /// The stream ended; with why, if the client broke a rule or the connection broke.
    Disconnected(Option<String>),
    /// A response was accepted.
    Ack {
        /// The type.
        kind: ResourceType,
        /// The version accepted.
        version: String,
    },
    /// A response was refused.
    Nack {
        /// The type.
        kind: ResourceType,
        /// Why.
        nack: Nack,
    },
}
