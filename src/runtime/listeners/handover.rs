//! Handing sockets over between processes: from a predecessor to this one, and from this one to a successor.
//!
//! In: the sockets of all listeners and what the kernel says of others on the same ports. Out: where the kernel sends
//! new connections.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::super::socket::{self, Bound};
use super::{ListenerManager, Sockets};

impl ListenerManager {
    /// Those of our addresses on which another process listens.
    fn foreign(&self) -> HashSet<SocketAddr> {
        let sockets = self.listeners.iter().filter_map(|entry| entry.sockets.as_ref());
        let addresses: Vec<SocketAddr> = sockets.filter_map(|sockets| sockets.group).collect();
        socket::foreign_listeners(&addresses, &self.inodes())
    }

    /// Whether another process listens on all our ports; new connections then go to it alone.
    pub fn handed_over(&self) -> bool {
        let foreign = self.foreign();
        let taken = |sockets: &Sockets| sockets.group.is_none_or(|address| foreign.contains(&address));
        let sockets = || self.listeners.iter().filter_map(|entry| entry.sockets.as_ref());
        if !sockets().any(|sockets| sockets.group.is_some()) || !sockets().all(taken) {
            return false;
        }
        for sockets in sockets() {
            if let Some(Bound::Tcp(listener)) = sockets.handles.first() {
                // Our sockets came first in the group. Where steering is not possible the kernel goes
                // on spreading connections until we close.
                let first_of_theirs = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
                let _ = socket::steer_new_connections(listener.as_fd(), first_of_theirs);
            }
        }
        true
    }

    /// Takes off what a predecessor left on our ports to send new connections here: a rule made for its
    /// sockets and ours would pick out one of our workers. Not while it still listens on any of them.
    pub(super) fn stop_steering(&mut self) {
        if !self.listeners.iter().filter_map(|entry| entry.sockets.as_ref()).any(|sockets| sockets.steered) {
            return;
        }
        let foreign = self.foreign();
        let ours = |sockets: &Sockets| sockets.group.is_none_or(|address| !foreign.contains(&address));
        if !self.listeners.iter().filter_map(|entry| entry.sockets.as_ref()).all(ours) {
            return;
        }
        for sockets in self.listeners.iter_mut().filter_map(|entry| entry.sockets.as_mut()) {
            if let (Some(Bound::Tcp(listener)), true) = (sockets.handles.first(), sockets.steered) {
                // A kernel that cannot take it off cannot have put it on.
                let _ = socket::stop_steering(listener.as_fd());
            }
            sockets.steered = false;
        }
    }

    fn inodes(&self) -> Vec<u64> {
        let open = self.listeners.iter().filter_map(|entry| entry.sockets.as_ref());
        let open = open.flat_map(|sockets| &sockets.inodes);
        open.chain(self.closing.iter().flat_map(|(_, inodes)| inodes)).copied().collect()
    }
}
