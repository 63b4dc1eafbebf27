//! The upstream room: from a cluster to a connection that a request can be sent on.
//!
//! Comes in: a cluster's slot and what is known of the request. Goes out: an [`UpstreamConnection`]
//! to one host, or the reason why there is none. Each worker has its own pickers and pools
//! ([`Upstreams`]); shared between workers are only the immutable cluster, the host counters and the
//! circuit breakers.

pub mod dns;
pub mod edf;
pub mod host_set;
pub mod local;
pub mod permit;
pub mod pick;
pub mod pool;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{Cluster, Slot};
use crate::telemetry::stream_info::ResponseFlags;

pub use local::ClusterLocal;
pub use permit::RequestPermit;
pub use pick::PickContext;
pub use pool::{HostPool, UpstreamConnection};

/// One worker's view of all clusters.
#[derive(Debug, Default)]
pub struct Upstreams {
    locals: RefCell<Vec<Option<Rc<ClusterLocal>>>>,
}

impl Upstreams {
    /// The worker's state for the cluster now in `slot`; made on first use, made anew when the slot
    /// was swapped. `None` while the slot is empty.
    pub fn cluster(&self, slot: &Slot<Cluster>) -> Option<Rc<ClusterLocal>> {
        let current = slot.load();
        let index = slot.index();
        let mut locals = self.locals.borrow_mut();
        let Some(current) = current.as_ref() else {
            if let Some(place) = locals.get_mut(index) {
                *place = None;
            }
            return None;
        };
        if let Some(Some(local)) = locals.get(index) {
            if Arc::ptr_eq(&local.cluster, current) {
                return Some(local.clone());
            }
        }
        if locals.len() <= index {
            locals.resize_with(index + 1, || None);
        }
        let local = Rc::new(ClusterLocal::new(current.clone()));
        // `resize_with` above made the place.
        locals[index] = Some(local.clone());
        Some(local)
    }

    /// Closes pooled connections that the peer closed, that sent bytes nobody asked for, or that
    /// idled too long. Called about once a second.
    pub fn sweep(&self, now: std::time::Instant) {
        let locals: Vec<_> = self.locals.borrow().iter().flatten().cloned().collect();
        for local in locals {
            local.sweep(now);
        }
    }

    /// Drops every pooled connection (shutdown).
    pub fn close_idle(&self) {
        self.locals.borrow_mut().clear();
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
    /// The host did not answer in time.
    #[error("connection to {host} timed out")]
    ConnectTimeout {
        /// The host.
        host: Arc<str>,
    },
}

impl UpstreamError {
    /// The response flag this becomes.
    pub fn flag(&self) -> ResponseFlags {
        match self {
            UpstreamError::NoHealthyHost => ResponseFlags::UH,
            UpstreamError::Overflow(_) => ResponseFlags::UO,
            UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. } => ResponseFlags::UF,
        }
    }
}
