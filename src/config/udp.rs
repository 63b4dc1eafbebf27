//! What UDP listeners do with datagrams: forward them (`envoy.extensions.filters.udp.udp_proxy.v3`), or answer names.

use std::sync::Arc;
use std::time::Duration;

use super::dns_filter::DnsFilter;
use super::{Cluster, Slot};
use crate::policy::rbac::tree::Tree;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::{UdpListenerStats, UdpProxyStats};

/// What a listener does with datagrams.
#[derive(Debug)]
pub struct UdpService {
    /// What they are for.
    pub filter: UdpFilter,
    /// The longest datagram in bytes. Default 1500.
    pub max_datagram: usize,
    /// Statistics under `listener.<address>.udp.`.
    pub stats: UdpListenerStats,
}

/// The one filter of a UDP listener.
#[derive(Debug)]
pub enum UdpFilter {
    /// They go on to an upstream.
    Proxy(Arc<UdpProxy>),
    /// They are queries for names.
    Dns(Arc<DnsFilter>),
}

/// A compiled `UdpProxyConfig`.
#[derive(Debug)]
pub struct UdpProxy {
    /// Where datagrams go: all to the only one, or to the one that the matcher names.
    pub clusters: Box<[Arc<Slot<Cluster>>]>,
    /// Which cluster a client's datagrams go to.
    pub matcher: Option<Tree>,
    /// Each datagram goes to a host of its own, instead of all of a client to one.
    pub per_packet: bool,
    /// A session without datagrams for so long is over. Default 1 min.
    pub idle_timeout: Duration,
    /// Upstreams see the client's address. Needs CAP_NET_ADMIN.
    pub use_original_src_ip: bool,
    /// Hash-based balancing goes by the client's address.
    pub hash_source_ip: bool,
    /// It goes by this.
    pub hash_key: Option<u64>,
    /// The longest datagram from an upstream in bytes. Default 1500.
    pub max_upstream_datagram: usize,
    /// What is written of each session when it ends.
    pub access_logs: Vec<AccessLog>,
    /// How often it is written while a session lasts, at least 1 ms.
    pub log_interval: Option<Duration>,
    /// What each worker writes of all that it has forwarded, when it is over.
    pub proxy_logs: Vec<AccessLog>,
    /// Statistics under `udp.<stat_prefix>.`.
    pub stats: UdpProxyStats,
    /// Where these statistics are.
    pub scope: Scope,
}
