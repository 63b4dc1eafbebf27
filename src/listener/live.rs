//! A listener as the accept loops see it: its configuration may change between two connections, its
//! sockets stay.
//!
//! The control thread swaps and stops; the accept loops, one for each worker's socket, load and obey.
//! Neither waits for the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::destinations::Destinations;
use crate::config::listener::Listener;

/// What all workers share of one listener.
#[derive(Debug)]
pub struct LiveListener {
    current: ArcSwap<Listener>,
    orders: watch::Sender<Orders>,
    accepting: AtomicUsize,
    destinations: Destinations,
}

/// What the accept loops are told about their sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Take what waits in the accept queue, then close.
    pub stop: bool,
    /// Close at once: another process accepts from the same queue.
    pub leave: bool,
    /// Length of the accept queue.
    pub backlog: u32,
}

impl LiveListener {
    /// A listener that nobody accepts connections for yet.
    pub fn new(listener: Arc<Listener>, destinations: Destinations) -> Arc<Self> {
        let (orders, _) = watch::channel(Orders { stop: false, leave: false, backlog: listener.backlog });
        let accepting = AtomicUsize::new(0);
        Arc::new(Self { current: ArcSwap::new(listener), orders, accepting, destinations })
    }

    /// What serves a connection that is accepted now. Wait-free.
    pub fn get(&self) -> Arc<Listener> {
        self.current.load_full()
    }

    /// New connections are served by `listener` from now on. Returns the one before.
    pub fn swap(&self, listener: Arc<Listener>) -> Arc<Listener> {
        let backlog = listener.backlog;
        let old = self.current.swap(listener);
        self.orders.send_if_modified(|orders| std::mem::replace(&mut orders.backlog, backlog) != backlog);
        old
    }

    /// Every loop takes what waits in its accept queue, closes its socket and ends.
    pub fn stop(&self) {
        self.orders.send_if_modified(|orders| !std::mem::replace(&mut orders.stop, true));
    }

    /// Every loop closes its socket, from which another process accepts, and ends.
    pub fn leave(&self) {
        self.orders.send_modify(|orders| (orders.stop, orders.leave) = (true, true));
    }

    /// Whether it was told to stop.
    pub fn is_stopped(&self) -> bool {
        self.orders.borrow().stop
    }

    /// Sockets that are still open, those included that have not reached their worker.
    pub fn accepting(&self) -> usize {
        self.accepting.load(Ordering::Acquire)
    }

    /// For one accept loop.
    pub fn share(self: &Arc<Self>) -> Share {
        self.accepting.fetch_add(1, Ordering::AcqRel);
        Share(self.clone())
    }
}

/// One accept loop's part in a listener; held until its socket is closed.
#[derive(Debug)]
pub struct Share(Arc<LiveListener>);

impl Share {
    /// What serves a connection that is accepted now.
    pub fn get(&self) -> Arc<Listener> {
        self.0.get()
    }

    /// The listeners of all addresses.
    pub(super) fn destinations(&self) -> &Destinations {
        &self.0.destinations
    }

    /// What the loop is told; the first look always finds news.
    pub(super) fn orders(&self) -> watch::Receiver<Orders> {
        let mut orders = self.0.orders.subscribe();
        orders.mark_changed();
        orders
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.accepting.fetch_sub(1, Ordering::AcqRel);
    }
}
