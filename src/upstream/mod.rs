//! The upstream room: from a cluster to a connection that a request can be sent on.
//!
//! Comes in: a cluster's slot and what is known of the request. Goes out: an [`UpstreamConnection`]
//! to one host, or the reason why there is none. Each worker has its own pickers and pools
//! ([`Upstreams`]); shared between workers are only the immutable cluster, the host counters and the
//! circuit breakers.

pub mod balancing;
pub mod dns;
pub mod edf;
pub mod health;
pub mod host_set;
pub mod local;
pub mod multiplex;
pub mod orca;
pub mod outlier;
pub mod permit;
pub mod pick;
pub mod pool;
pub mod replay;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use crate::config::cluster::Address;
use crate::config::{Cluster, Host, Slot};
use crate::telemetry::stream_info::ResponseFlags;

pub use local::ClusterLocal;
pub use permit::{RelayPermit, RequestPermit};
pub use pick::PickContext;
pub use pool::{HostPool, UpstreamConnection};

/// One worker's view of all clusters.
#[derive(Debug, Default)]
pub struct Upstreams {
    places: Rc<Places>,
}

/// The clusters that a worker uses, by [`Slot::index`].
#[derive(Debug, Default)]
pub(crate) struct Places(RefCell<Vec<Option<Place>>>);

#[derive(Debug)]
struct Place {
    /// Where the cluster came from; a worker's state must not keep the name in use.
    slot: Weak<Slot<Cluster>>,
    local: Rc<ClusterLocal>,
}

impl Place {
    /// Whether the cluster is still the one in its slot.
    fn is_current(&self) -> bool {
        let slot = self.slot.upgrade();
        slot.is_some_and(|slot| slot.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.local.cluster)))
    }
}

impl Places {
    fn cluster(self: &Rc<Self>, slot: &Arc<Slot<Cluster>>) -> Option<Rc<ClusterLocal>> {
        let places = self.0.borrow_mut();
        let current = slot.load();
        if let (Some(current), Some(Some(place))) = (current.as_ref(), places.get(slot.index())) {
            if Arc::ptr_eq(&place.local.cluster, current) {
                place.local.touch();
                return Some(place.local.clone());
            }
        }
        drop(current);
        drop(places);
        self.renew(slot)
    }

    /// The slow part: nobody here has used this cluster, or it changed.
    #[cold]
    fn renew(self: &Rc<Self>, slot: &Arc<Slot<Cluster>>) -> Option<Rc<ClusterLocal>> {
        let index = slot.index();
        let Some(current) = slot.wake() else {
            if let Some(place) = self.0.borrow_mut().get_mut(index) {
                *place = None;
            }
            return None;
        };
        let local = Rc::new(ClusterLocal::new(current, self));
        let mut places = self.0.borrow_mut();
        if places.len() <= index {
            places.resize_with(index + 1, || None);
        }
        // `resize_with` above made the place.
        places[index] = Some(Place { slot: Arc::downgrade(slot), local: local.clone() });
        Some(local)
    }
}

impl Upstreams {
    /// The worker's state for the cluster now in `slot`; made on first use, made anew when the slot
    /// was swapped. `None` while the slot is empty.
    pub fn cluster(&self, slot: &Arc<Slot<Cluster>>) -> Option<Rc<ClusterLocal>> {
        self.places.cluster(slot)
    }

    /// Closes pooled connections that the peer closed, that sent bytes nobody asked for, or that
    /// idled too long; lets go of clusters that were replaced or removed, or that nobody uses. Called
    /// about once a second.
    pub fn sweep(&self, now: std::time::Instant) {
        let locals: Vec<_> =
            self.places.0.borrow().iter().flatten().map(|place| place.local.clone()).collect();
        for local in &locals {
            local.sweep(now);
        }
        drop(locals);
        for entry in self.places.0.borrow_mut().iter_mut() {
            let unused = |local: &Rc<ClusterLocal>| Rc::strong_count(local) == 1 && local.is_idle(now);
            if entry.as_ref().is_some_and(|place| !place.is_current() || unused(&place.local)) {
                *entry = None;
            }
        }
    }

    /// Drops every pooled connection (shutdown).
    pub fn close_idle(&self) {
        self.places.0.borrow_mut().clear();
    }
}

/// Why there is no upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Every host is out.
    #[error("no healthy upstream")]
    NoHealthyHost,
    /// A circuit breaker is open; which one.
    #[error("circuit breaker {0} is open")]
    Overflow(&'static str),
    /// The host refused or could not be reached.
    #[error("connection to {host} failed: {reason}")]
    Connect {
        /// The host.
        host: Arc<str>,
        /// What the kernel said.
        reason: String,
        /// Whether our side failed (no local port, no descriptor) and not the peer.
        local: bool,
    },
    /// TLS with the host failed.
    #[error("TLS with {host} failed: {reason}")]
    Tls {
        /// The host.
        host: Arc<str>,
        /// Envoy's transport failure reason; empty where the host only went away.
        reason: String,
    },
    /// The host did not answer in time.
    #[error("connection to {host} timed out")]
    ConnectTimeout {
        /// The host.
        host: Arc<str>,
    },
}

/// Why there is no connection to `host`, as Envoy writes it: what the kernel said, without its number. That of a socket
/// of TCP comes later, that of a Unix socket at once.
pub fn connect_failure(host: Option<&Host>, reason: &str) -> String {
    let reason = reason.split(" (os error").next().unwrap_or(reason);
    match host {
        Some(host) if !matches!(host.address, Address::Ip(_)) => {
            format!("immediate connect error: {reason}|remote address:{}", host.address_text)
        }
        _ => format!("delayed connect error: {reason}"),
    }
}

impl UpstreamError {
    /// The response flag this becomes.
    pub fn flag(&self) -> ResponseFlags {
        match self {
            UpstreamError::NoHealthyHost => ResponseFlags::UH,
            UpstreamError::Overflow(_) => ResponseFlags::UO,
            UpstreamError::Connect { .. }
            | UpstreamError::Tls { .. }
            | UpstreamError::ConnectTimeout { .. } => ResponseFlags::UF,
        }
    }
}
