//! What a listener that takes mTLS and plain text (PERMISSIVE) would refuse if it took only mTLS (STRICT), by peer: what
//! to look at before making it strict.
//!
//! In: connections of such listeners without a client certificate that was verified. Out: a counter, and for the admin's
//! `/strict_mtls` the addresses that they come from.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use metrics::Counter;

use crate::telemetry::metrics::Scope;

/// What is known of one listener.
#[derive(Debug)]
pub struct Permissive {
    name: Arc<str>,
    refused: Counter,
    peers: Mutex<HashMap<Option<IpAddr>, Peer>>,
}

/// What is known of one peer.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Connections that STRICT would refuse.
    pub connections: u64,
    /// When the last of them came.
    pub last: SystemTime,
}

/// Peers remembered for a listener; later ones are counted as one that has no address.
pub const MAX_PEERS: usize = 1024;

/// By name; a listener that is changed goes on counting.
static LISTENERS: Mutex<BTreeMap<Arc<str>, Weak<Permissive>>> = Mutex::new(BTreeMap::new());

impl Permissive {
    /// Of the listener `name`, which counts in `scope` (`listener.<address>.`).
    pub fn of(name: &Arc<str>, scope: &Scope) -> Arc<Self> {
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = listeners.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let refused = scope.counter("strict_mtls_would_refuse");
        let new = Arc::new(Self { name: name.clone(), refused, peers: Mutex::default() });
        listeners.insert(name.clone(), Arc::downgrade(&new));
        new
    }

    /// A connection from `peer` is none of mTLS.
    pub fn note(&self, peer: Option<IpAddr>, now: SystemTime) {
        self.refused.increment(1);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = peers.len() < MAX_PEERS || peers.contains_key(&peer);
        let peer = peers.entry(peer.filter(|_| known)).or_insert(Peer { connections: 0, last: now });
        peer.connections += 1;
        peer.last = now;
    }

    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its peers, those with the most connections first. `None` stands for those that have no address, or came after
    /// [`MAX_PEERS`] others.
    pub fn peers(&self) -> Vec<(Option<IpAddr>, Peer)> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers: Vec<_> = peers.iter().map(|(address, peer)| (*address, *peer)).collect();
        peers.sort_by_key(|(address, peer)| (std::cmp::Reverse(peer.connections), *address));
        peers
    }
}

/// All listeners that take both, by name.
pub fn listeners() -> Vec<Arc<Permissive>> {
    let listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    listeners.values().filter_map(Weak::upgrade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_bounded_and_the_busiest_come_first() {
        let name: Arc<str> = "permissive_tests".into();
        let scope = Scope::listener("permissive_tests");
        let listener = Permissive::of(&name, &scope);
        let now = SystemTime::UNIX_EPOCH;
        for nth in 0..MAX_PEERS as u32 + 10 {
            listener.note(Some(IpAddr::from(nth.to_be_bytes())), now);
        }
        let first = IpAddr::from([0, 0, 0, 1]);
        (0..3).for_each(|_| listener.note(Some(first), now));
        let peers = Permissive::of(&name, &scope).peers();
        assert_eq!(peers.len(), MAX_PEERS + 1);
        assert_eq!((peers[0].0, peers[0].1.connections), (None, 10));
        assert_eq!((peers[1].0, peers[1].1.connections), (Some(first), 4));
    }
}
