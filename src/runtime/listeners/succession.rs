//! Handing everything over to one process that is known: an upgrade.
//!
//! In: a predecessor's sockets, before the first listener is there. Out: our own, with what a successor must know of
//! them. Both processes have the same sockets then, so that nobody waits in a queue that nobody serves.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::super::drain::Stop;
use super::super::socket::{self, Bound};
use super::super::upgrade::wire::{Purpose, Socket};
use super::super::worker::Command;
use super::{form, ListenerManager};
use crate::config::listener::{FilterChain, Listener, NetworkFilter, Terminal};
use crate::config::tcp::TcpProxy;
use crate::config::Retirement;
use crate::listener::adopt::Adopted;
use crate::tcp::handover::Passage;

/// A socket of a predecessor.
#[derive(Debug)]
pub struct Inherited {
    /// What it says of it.
    pub socket: Socket,
    /// The socket.
    pub bound: Bound,
}

/// What serves a connection: its listener, its filter chain, and what that ends with.
pub type Taker = (Arc<Listener>, Arc<FilterChain>, Arc<TcpProxy>);

impl ListenerManager {
    /// These sockets are there for the listeners to come.
    pub fn inherit_from(&mut self, predecessor: Vec<Inherited>) {
        self.inherited = predecessor;
    }

    /// Takes those that `listener` would bind, if there are any.
    pub(super) fn inherit(&mut self, listener: &Listener) -> Vec<Bound> {
        if self.inherited.is_empty() {
            return Vec::new();
        }
        let address = listener.address.to_string();
        let form = format!("{:?}", form(listener));
        let alike = |socket: &Socket| socket.address == address && socket.form == form;
        let named = |socket: &Socket| alike(socket) && socket.name == *listener.name;
        // Several may have asked for any port; one address is one listener's else.
        let exact = self.inherited.iter().any(|one| named(&one.socket)) || address.ends_with(":0");
        let taken =
            self.inherited.extract_if(.., |one| if exact { named(&one.socket) } else { alike(&one.socket) });
        let taken: Vec<Bound> = taken.map(|one| one.bound).collect();
        for bound in taken.iter().filter(|bound| !matches!(bound, Bound::Udp(_))) {
            // A queue of another length is no reason to stop.
            let _ = socket::set_backlog(bound.as_fd(), listener.backlog);
        }
        taken
    }

    /// Forgets those that no listener has taken.
    pub fn disinherit(&mut self) {
        self.inherited.clear();
    }

    /// All sockets, for a successor.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn sockets(&self) -> std::io::Result<Vec<(Socket, OwnedFd)>> {
        let mut all = Vec::new();
        for entry in self.listeners.iter().filter(|entry| !entry.live.is_stopped()) {
            let listener = &entry.listener;
            for handle in entry.sockets.iter().flat_map(|sockets| &sockets.handles) {
                let socket = Socket {
                    id: socket::inode(handle.as_fd())?,
                    purpose: Purpose::Listener,
                    name: listener.name.to_string(),
                    address: listener.address.to_string(),
                    form: format!("{:?}", form(listener)),
                };
                all.push((socket, handle.as_fd().try_clone_to_owned()?));
            }
        }
        Ok(all)
    }

    /// The ids of all sockets that listeners have now.
    pub fn ids(&self) -> Vec<u64> {
        let sockets = self.listeners.iter().filter_map(|entry| entry.sockets.as_ref());
        let handles = sockets.flat_map(|sockets| &sockets.handles);
        handles.filter_map(|handle| socket::inode(handle.as_fd()).ok()).collect()
    }

    /// A successor serves these sockets: they are closed here, with nobody told. Other listeners stop as always, and
    /// none comes any more.
    pub fn leave(&mut self, taken: &HashSet<u64>) {
        self.stopped = Stop::All;
        for entry in &mut self.listeners {
            let handles = entry.sockets.iter().flat_map(|sockets| &sockets.handles);
            let mut ids = handles.map(|handle| socket::inode(handle.as_fd()).ok());
            if entry.sockets.is_some() && ids.all(|id| id.is_some_and(|id| taken.contains(&id))) {
                entry.live.leave();
            } else {
                entry.live.stop();
            }
            entry.sockets = None;
        }
        self.publish_destinations();
    }

    /// Tells all workers.
    pub fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that is gone has nothing to do.
            let _ = worker.send(command());
        }
    }

    /// Says in `passage` which filter chain has this retirement; false when none has any more.
    pub fn place(&self, retirement: &Arc<Retirement>, passage: &mut Passage) -> bool {
        for entry in &self.listeners {
            let listener = &entry.listener;
            let all = listener.chains.iter().chain(&listener.default_chain);
            for (place, chain) in all.enumerate() {
                if Arc::ptr_eq(&chain.retirement, retirement) {
                    passage.listener = listener.name.to_string();
                    passage.chain = chain.name.to_string();
                    passage.place = place;
                    return true;
                }
            }
        }
        false
    }

    /// What serves a connection that a predecessor has relayed.
    ///
    /// # Errors
    /// Nothing does; why.
    pub fn takes(&self, passage: &Passage) -> Result<Taker, &'static str> {
        let listener = self.get(&passage.listener).ok_or("no listener of this name")?;
        let all = || listener.chains.iter().chain(&listener.default_chain);
        let named = |chain: &&Arc<FilterChain>| *chain.name == *passage.chain;
        let mut same = all().filter(named);
        let only = same.next().filter(|_| same.next().is_none());
        let chain = all().nth(passage.place).filter(named).or(only).ok_or("no filter chain of this name")?;
        match &chain.terminal {
            Terminal::Tcp(proxy)
                if chain.tls.is_none() && chain.filters.iter().all(NetworkFilter::decides_once) =>
            {
                Ok((listener.clone(), chain.clone(), proxy.clone()))
            }
            _ => Err("the filter chain does not only relay"),
        }
    }

    /// One of the workers goes on with it.
    pub fn adopt(&mut self, adopted: Adopted) {
        self.next = self.next.wrapping_add(1);
        let worker = self.next.checked_rem(self.workers.len()).and_then(|index| self.workers.get(index));
        if let Some(worker) = worker {
            // A worker that is gone closes what it is sent.
            let _ = worker.send(Command::Adopt(Box::new(adopted)));
        }
    }
}
