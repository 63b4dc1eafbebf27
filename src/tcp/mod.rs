//! L4: what serves a connection without looking into it.
//!
//! Comes in: an accepted [`Stream`] whose filter chain is known, the bytes read while inspecting it,
//! and a way to [`Dial`] upstreams. Goes out: the same bytes to a server and back, statistics and
//! access-log records. How hosts are picked and connections counted is the dialler's business.

pub mod handover;
pub mod local;
pub mod proxy;
pub mod relay;
pub mod splice;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

pub use handover::Fate;
pub use proxy::{early, resume, serve, unserved, Client, Early, Resumed};

use crate::config::balancing::Criteria;
use crate::config::{Cluster, Host, Slot};
use crate::runtime::Stream;
use crate::telemetry::stream_info::ResponseFlags;
use crate::tls::upstream::Names;
use crate::tls::TlsInfo;

/// What an attempt to reach an upstream may depend on.
#[derive(Clone, Debug, Default)]
pub struct DialContext {
    /// Number of the attempt, from 0.
    pub attempt: u32,
    /// The client's address, when hash-based balancing is to go by it.
    pub hash_source: Option<SocketAddr>,
    /// Where the client meant to go, if it was redirected here; for original-destination clusters.
    pub local: Option<SocketAddr>,
    /// What is asked of the host's metadata.
    pub metadata: Option<Arc<Criteria>>,
    /// Hash-based balancing goes by this, if it is known, and not by the client's address.
    pub hash: Option<u64>,
    /// What objects say of the connection; what TLS asks for counts where there is TLS.
    pub names: Option<Names>,
}

/// A connection to an upstream.
#[derive(Debug)]
pub struct Dialed<P> {
    /// The connected stream.
    pub stream: Stream,
    /// Number of the connection.
    pub id: u64,
    /// The host it goes to.
    pub host: Arc<Host>,
    /// What TLS agreed on.
    pub tls: Option<Rc<TlsInfo>>,
    /// Held as long as the connection is open: gives back what was taken for it.
    pub permit: P,
}

/// Why an upstream was not reached.
#[derive(Debug, thiserror::Error)]
#[error("{details}")]
pub struct DialError {
    /// `UF` (may be tried again), `UH` or `UO`.
    pub flag: ResponseFlags,
    /// Envoy's transport failure reason, as in `delayed connect error: Connection refused`; empty
    /// when no connection was tried.
    pub details: Box<str>,
    /// The host that was tried.
    pub host: Option<Arc<Host>>,
}

/// Picks a host of a cluster and connects to it, counting what Envoy's connection pools count:
/// connects, failures, timeouts, `upstream_cx_none_healthy`, `upstream_cx_overflow`, and the end of
/// the connection when the permit is dropped. Byte counts and exceeded attempts are the proxy's.
#[allow(async_fn_in_trait)] // Futures stay on their worker's thread.
pub trait Dial {
    /// What is held while a connection is open.
    type Permit;

    /// The cluster of this name, if there is one.
    fn find(&self, cluster: &str) -> Option<Arc<Slot<Cluster>>> {
        let _ = cluster;
        None
    }

    /// One attempt. `cluster` was not empty when it was looked at.
    async fn dial(
        &self,
        cluster: &Arc<Slot<Cluster>>,
        context: DialContext,
    ) -> Result<Dialed<Self::Permit>, DialError>;
}
