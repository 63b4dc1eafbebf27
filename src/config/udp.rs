//! UDP forwarded as it is (`envoy.extensions.filters.udp.udp_proxy.v3`).

use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, Slot};
use crate::telemetry::stats::{UdpListenerStats, UdpProxyStats};

/// A compiled `UdpProxyConfig`.
#[derive(Debug)]
pub struct UdpProxy {
    /// Where datagrams go.
    pub cluster: Arc<Slot<Cluster>>,
    /// A session without datagrams for so long is over. Default 1 min.
    pub idle_timeout: Duration,
    /// Upstreams see the client's address. Needs CAP_NET_ADMIN.
    pub use_original_src_ip: bool,
    /// Hash-based balancing goes by the client's address.
    pub hash_source_ip: bool,
    /// It goes by this.
    pub hash_key: Option<u64>,
    /// The longest datagram in bytes. Default 1500.
    pub max_datagram: usize,
    /// The same from upstreams.
    pub max_upstream_datagram: usize,
    /// Statistics under `udp.<stat_prefix>.`.
    pub stats: UdpProxyStats,
    /// Statistics under `listener.<address>.udp.`.
    pub listener: UdpListenerStats,
}
