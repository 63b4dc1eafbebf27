//! Clusters: groups of hosts where requests can go.
//!
//! A [`Cluster`] is immutable but for its host set, which is swapped whole.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use super::balancing::LbPolicy;
use super::balancing::{Balancing, Members};
use super::discovery::Source;
use super::drops::Drops;
pub use super::hosts::{
    Address, Health, HealthFlags, HealthStatus, HostCounters, HostShared, HostTemplate, Hosts,
    InternalAddress, Locality, LocalityHosts, PriorityHosts, PriorityLoad, Split,
};
use super::passing::Passing;
use super::tls::ClusterTls;
use super::Host;
use crate::runtime::proxy_protocol;
use crate::telemetry::istio::Service;
use crate::telemetry::stats::ClusterStats;
use crate::telemetry::stream_info::DynamicMetadata;
use crate::upstream::health::ClusterHealth;
use crate::upstream::host_set::SplitOptions;
use crate::upstream::orca::Wanted;

/// What a cluster is called.
#[derive(Debug)]
pub struct ClusterNames {
    /// See [`Cluster::name`].
    pub name: Arc<str>,
    /// See [`Cluster::stat_name`].
    pub stat_name: Arc<str>,
    /// Its metadata, which formats and expressions read.
    pub metadata: Option<Arc<DynamicMetadata>>,
}

/// A compiled cluster (`envoy.config.cluster.v3.Cluster`).
#[derive(Debug)]
pub struct Cluster {
    /// Its name, the key that routes use.
    pub name: Arc<str>,
    /// The name under which statistics appear (`alt_stat_name`, else `name`).
    pub stat_name: Arc<str>,
    /// Both, as streams keep them.
    pub names: Arc<ClusterNames>,
    /// How its hosts are found.
    pub discovery: Discovery,
    /// How a host is chosen.
    pub balancing: Arc<Balancing>,
    /// Time for TCP connect (and TLS handshake). Envoy's default: 5 s.
    pub connect_timeout: Duration,
    /// Soft limit in bytes of what one upstream connection may buffer. Default 1 MiB.
    pub per_connection_buffer_limit: usize,
    /// Circuit breakers of routing priority DEFAULT and HIGH.
    pub breakers: [Breakers; 2],
    /// Below this share (percent) of available hosts, health is ignored. Default 50; 0 disables.
    pub panic_threshold: u8,
    /// `overprovisioning_factor` in percent. Default 140.
    pub overprovisioning: u32,
    /// Priorities share by the weights of their hosts instead of their numbers.
    pub weighted_priority_health: bool,
    /// How often unused hosts of an original-destination cluster are dropped. Default 5 s.
    pub cleanup_interval: Duration,
    /// HTTP towards the upstream.
    pub http: UpstreamHttp,
    /// Socket options for upstream connections.
    pub socket: SocketTuning,
    /// TLS towards its hosts.
    pub tls: Option<Arc<ClusterTls>>,
    /// What is passed on to hosts that are internal listeners; the sockets that are matched (`tls`) have their own.
    pub passing: Option<Arc<Passing>>,
    /// What Istio's filters are told of it.
    pub istio: IstioCluster,
    /// Whether it came from a control plane instead of the bootstrap.
    pub added_via_api: bool,
    /// How many times the requests that it has a host should have room for
    /// (`preconnect_policy.per_upstream_preconnect_ratio`, 1 to 3); `None` = as many.
    pub preconnect_ratio: Option<f64>,
    /// The same of the cluster, by connections to the hosts that come next (`predictive_preconnect_ratio`).
    pub predictive_ratio: Option<f64>,
    /// TCP sessions with a host end when it is found to have failed (`close_connections_on_host_health_failure`).
    pub close_on_failure: bool,
    /// Requests that are refused before a host is asked.
    pub drops: Arc<Drops>,
    /// Outlier detection and active health checks, where it has either.
    pub health: Option<Box<ClusterHealth>>,
    /// What it wants of its hosts' load reports.
    pub orca: Option<Box<Wanted>>,
    /// The current hosts.
    pub hosts: Hosts,
    /// Statistics, made on first use so that an unused cluster costs no series.
    pub stats: OnceLock<Box<ClusterStats>>,
}

/// What a cluster's metadata tell Istio's filters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IstioCluster {
    /// TLS offers what its context says, whatever the HTTP version (`alpn_override: "false"`).
    pub keeps_alpn: bool,
    /// It is outside of the mesh.
    pub external: bool,
    /// The service that it stands for.
    pub service: Option<Arc<Service>>,
}

impl Cluster {
    /// What its hosts are sorted by.
    pub fn split_options(&self) -> SplitOptions {
        SplitOptions {
            overprovisioning: self.overprovisioning,
            panic_threshold: self.panic_threshold.into(),
            weighted: self.weighted_priority_health,
            localities: self.balancing.by_locality(),
            ignore_new_hosts: self.balancing.ignore_new_hosts,
        }
    }

    /// How sockets to `host` are set up: where sockets are matched, not each host is told of clients.
    pub fn socket_to(&self, host: &Host) -> Cow<'_, SocketTuning> {
        let matching = self.tls.as_ref().filter(|tls| !tls.matches.is_empty());
        let (Some(tls), Some((version, ends))) = (matching, self.socket.announced) else {
            return Cow::Borrowed(&self.socket);
        };
        let announced = tls.announced_to(host);
        if announced == Some(version) {
            return Cow::Borrowed(&self.socket);
        }
        let announced = announced.map(|version| (version, ends));
        Cow::Owned(SocketTuning { announced, ..self.socket.clone() })
    }

    /// What is passed on to `host`, an internal listener.
    pub fn passing_to(&self, host: &Host) -> Option<&Arc<Passing>> {
        let matched = self.tls.as_ref().and_then(|tls| tls.passing_to(host));
        matched.unwrap_or(self.passing.as_ref())
    }

    /// Whether anything is passed on to any host.
    #[inline]
    pub fn passes(&self) -> bool {
        let matched = |tls: &Arc<ClusterTls>| tls.matches.iter().any(|entry| entry.passing.is_some());
        self.passing.is_some() || self.tls.as_ref().is_some_and(matched)
    }

    /// The cluster's statistics.
    pub fn stats(&self) -> &ClusterStats {
        self.stats.get_or_init(|| {
            let [default, high] = &self.breakers;
            if let Some(health) = &self.health {
                health.make_stats(&self.stat_name);
            }
            let stats =
                ClusterStats::for_cluster(&self.stat_name, [default.track_remaining, high.track_remaining]);
            for (breakers, gauges) in self.breakers.iter().zip(&stats.remaining) {
                if let Some(gauges) = gauges {
                    let left = |limit: &Limit| f64::from(limit.max().saturating_sub(limit.used()));
                    gauges.remaining_cx.set(left(&breakers.connections));
                    gauges.remaining_pending.set(left(&breakers.pending));
                    gauges.remaining_rq.set(left(&breakers.requests));
                    gauges.remaining_cx_pools.set(left(&breakers.pools));
                    if breakers.retry_budget.is_none() {
                        gauges.remaining_retries.set(left(&breakers.retries));
                    }
                }
            }
            Box::new(stats)
        })
    }
}

/// How hosts are found.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// Listed in the cluster.
    Static,
    /// Every address of every name is a host.
    StrictDns(Dns),
    /// One logical host; each new connection goes to the current first address.
    LogicalDns(Dns),
    /// From EDS under this service name.
    Eds {
        /// The `ClusterLoadAssignment` to ask for.
        service_name: Arc<str>,
        /// The name is one that config gives, not the cluster's for want of it.
        named: bool,
        /// Where to ask for it.
        source: Source,
        /// How long the cluster waits for its first assignment. Default 15 s; `None` = for ever.
        initial_fetch_timeout: Option<Duration>,
    },
    /// The connection's original destination.
    OriginalDst {
        /// Header that overrides the destination (`x-envoy-original-dst-host` unless named).
        header: Option<super::HeaderKey>,
        /// Port that replaces the destination's.
        port_override: Option<u16>,
    },
    /// The hosts of other clusters, as if their priorities followed each other.
    Aggregate(Members),
}

/// DNS discovery options.
#[derive(Clone, Debug, PartialEq)]
pub struct Dns {
    /// What to resolve: host name, port, weight, priority, locality.
    pub names: Vec<DnsName>,
    /// Time between resolutions. Default 5 s.
    pub refresh: Duration,
    /// Base and cap of the back-off after a failure; `None` = `refresh`.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// Use the record's TTL instead of `refresh`.
    pub respect_ttl: bool,
    /// Which address families to use.
    pub family: DnsFamily,
    /// Name servers to ask instead of the system's.
    pub resolvers: Vec<SocketAddr>,
    /// Ask by TCP.
    pub tcp: bool,
    /// Do not append the system's search domains.
    pub no_search_domain: bool,
}

/// One name to resolve.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsName {
    /// The name.
    pub host: Arc<str>,
    /// The port of the resulting hosts.
    pub port: u16,
    /// What the resulting hosts carry.
    pub template: HostTemplate,
}

/// `dns_lookup_family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// IPv6, else IPv4 (Envoy's default).
    Auto,
    /// Only IPv4.
    V4Only,
    /// Only IPv6.
    V6Only,
    /// IPv4, else IPv6.
    V4Preferred,
    /// Both.
    All,
}

/// Circuit breakers of one routing priority, shared by all workers.
#[derive(Debug)]
pub struct Breakers {
    /// Upstream connections. Default 1024.
    pub connections: Limit,
    /// Requests waiting for a connection. Default 1024.
    pub pending: Limit,
    /// Requests in flight. Default 1024.
    pub requests: Limit,
    /// Retries in flight. Default 3.
    pub retries: Limit,
    /// Pools with connections for HTTP. Unlimited by default.
    pub pools: Limit,
    /// Replaces `retries` when set.
    pub retry_budget: Option<RetryBudget>,
    /// Publish `remaining_*` gauges.
    pub track_remaining: bool,
    /// `max_connections` per host, if limited.
    pub per_host_connections: Option<u32>,
}

/// `retry_budget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests that may be retries. Default 20.
    pub percent: f64,
    /// Retries always allowed. Default 3.
    pub min_concurrency: u32,
}

/// One limit and what counts against it.
#[derive(Debug)]
pub struct Limit {
    max: u32,
    used: AtomicU32,
    /// Whether the limit was last seen reached (the `*_open` gauge).
    open: AtomicBool,
}

impl Limit {
    /// A limit of `max`.
    pub fn new(max: u32) -> Self {
        Self { max, used: AtomicU32::new(0), open: AtomicBool::new(max == 0) }
    }

    /// The configured maximum.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// How many are held now.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes one if the limit allows it. Give it back with [`Limit::release`].
    pub fn try_take(&self) -> bool {
        if self.used.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes one whatever the limit says (Envoy always allows a host's first connection).
    pub fn take_anyway(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives one back.
    pub fn release(&self) {
        let before = self.used.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "released more than was taken");
    }

    /// Whether nothing more is allowed now.
    pub fn is_open(&self) -> bool {
        self.used() >= self.max
    }

    /// Notes the state for the gauge; true when it changed.
    pub fn note_open(&self, open: bool) -> bool {
        self.open.swap(open, Ordering::Relaxed) != open
    }
}

/// HTTP options towards an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamHttp {
    /// Which protocol to speak.
    pub protocol: UpstreamProtocol,
    /// Close a connection without requests after this. Default 1 h; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// Close a connection this old.
    pub max_connection_duration: Option<Duration>,
    /// Longest a try may take, from its connection to the end of its response.
    pub max_stream_duration: Option<Duration>,
    /// Requests per connection; 0 = unlimited.
    pub max_requests_per_connection: u32,
    /// Response header fields allowed. Default 100.
    pub max_headers_count: u32,
    /// Response head size allowed, in bytes. Default 60 KiB (80 KiB for HTTP/1).
    pub max_response_headers: usize,
    /// HTTP/1 codec options.
    pub http1: super::http::Http1Options,
    /// HTTP/2 codec options.
    pub http2: crate::http::h2::Options,
    /// What is hashed instead of what routes say, where hosts are chosen by hashes.
    pub hash_policies: Option<Arc<[super::route::HashPolicy]>>,
    /// HTTP filters, in their order.
    pub filters: Arc<[UpstreamFilter]>,
}

/// An HTTP filter of a cluster: it sees the heads of each try.
#[derive(Clone, Debug)]
pub struct UpstreamFilter {
    /// Its name.
    pub name: super::route::FilterName,
    /// What it does.
    pub filter: UpstreamFilterKind,
}

/// What a filter of a cluster does.
#[derive(Clone, Debug)]
pub enum UpstreamFilterKind {
    /// `envoy.filters.http.header_mutation`.
    HeaderMutation(crate::http::filters::header_mutation::Config),
    /// `envoy.filters.http.credential_injector`.
    CredentialInjector(Arc<crate::http::filters::credential_injector::Config>),
}

/// Protocol towards an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// As the downstream request.
    Downstream,
    /// By ALPN.
    Auto,
}

/// Socket options.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SocketTuning {
    /// Keepalive: idle time, interval, probes. `None` fields leave the kernel's.
    pub keepalive: Option<Keepalive>,
    /// Local address to bind before connecting.
    pub source_address: Option<SocketAddr>,
    /// The source may be an address of another machine. Needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// The source need not exist yet.
    pub freebind: bool,
    /// `SO_MARK`. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// More options, set before connecting.
    pub options: Arc<[SocketOption]>,
    /// The header of the PROXY protocol comes first: its version, and whose connection it tells of (`None`: our own).
    pub announced: Option<(proxy_protocol::Version, Option<proxy_protocol::Ends>)>,
}

/// A socket option by its numbers (`envoy.config.core.v3.SocketOption`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOption {
    /// As setsockopt takes it.
    pub level: i32,
    /// As setsockopt takes it.
    pub name: i32,
    /// As setsockopt takes it.
    pub value: Box<[u8]>,
    /// When it is set.
    pub state: SocketState,
}

/// A time in a socket's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SocketState {
    BeforeBind,
    Bound,
    Listening,
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Probes before the peer counts as dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}
