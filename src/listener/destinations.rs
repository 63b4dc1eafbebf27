//! Which listener an address belongs to, for connections that one listener hands to another (`use_original_dst`).
//!
//! The control thread publishes a new table with every change; workers look up without waiting.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::cluster::Address;
use crate::config::listener::Listener;

/// All listeners by address; clones show the same table.
#[derive(Clone, Debug, Default)]
pub struct Destinations(Arc<ArcSwap<HashMap<SocketAddr, Arc<Listener>>>>);

impl Destinations {
    /// From now on these listeners are found.
    pub fn publish<'a>(&self, listeners: impl Iterator<Item = &'a Arc<Listener>>) {
        let mut table = HashMap::new();
        for listener in listeners {
            let Address::Ip(address) = listener.address else { continue };
            if listener.udp.is_some() {
                continue;
            }
            table.insert(address, listener.clone());
            if listener.ipv4_compat && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
                let both = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                table.entry(both).or_insert_with(|| listener.clone());
            }
        }
        self.0.store(Arc::new(table));
    }

    /// The listener of exactly this address, else the one of its port on all addresses.
    pub fn find(&self, destination: SocketAddr) -> Option<Arc<Listener>> {
        let table = self.0.load();
        let all = match destination.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let anywhere = || table.get(&SocketAddr::new(all, destination.port()));
        table.get(&destination).or_else(anywhere).cloned()
    }
}
