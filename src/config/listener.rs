//! Listeners and filter chains (`envoy.config.listener.v3`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::chain_match::ChainIndex;
use super::cluster::{Address, SocketOption, SocketTuning};
use super::http::HttpConnectionManager;
use super::retirement::Retirement;
use super::tcp::TcpProxy;
use super::udp::UdpService;
use crate::listener::permissive::Permissive;
use crate::policy::authz::NetworkAuthz;
use crate::policy::limits::{ConnectionLimit, ConnectionRate};
use crate::policy::rbac;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::filter_state::Setters;
use crate::telemetry::stats::{ListenerStats, ProxyProtocolStats};
use crate::tls::DownstreamTls;

/// A compiled listener.
#[derive(Debug)]
pub struct Listener {
    /// Its name; a listener without one is named by its address.
    pub name: Arc<str>,
    /// Equal for listeners that differ at most in their filter chains.
    pub fingerprint: u64,
    /// Where it listens.
    pub address: Address,
    /// An IPv6 socket that takes IPv4 connections too.
    pub ipv4_compat: bool,
    /// File mode of a Unix socket; 0 leaves it to the umask.
    pub pipe_mode: u32,
    /// Whether a socket is bound (false: reachable by hand-off only).
    pub bind_to_port: bool,
    /// Its connections do not count among those that the process may have.
    pub unlimited: bool,
    /// Direction, for drain and metrics.
    pub direction: Direction,
    /// Which chain serves a connection.
    pub index: ChainIndex,
    /// The chains `index` points into.
    pub chains: Vec<Arc<FilterChain>>,
    /// Serves what no chain matches.
    pub default_chain: Option<Arc<FilterChain>>,
    /// It takes datagrams, and has no filter chains.
    pub udp: Option<UdpService>,
    /// What is looked at before a chain is chosen.
    pub inspect: Inspect,
    /// Who says where a connection really comes from, before anything else is looked at.
    pub proxy_protocol: Option<Arc<ProxyProtocol>>,
    /// Upstreams see the client's address.
    pub original_src: Option<OriginalSrc>,
    /// Ports for which listener filters are left out.
    pub disabled: Box<[(ListenerFilter, PortPredicate)]>,
    /// `use_original_dst`: a connection goes to the listener of the address that it was meant for, if there is one.
    pub hand_off: bool,
    /// `IP_TRANSPARENT`: what TPROXY sends here keeps the address that it was meant for. Needs CAP_NET_ADMIN.
    pub transparent: bool,
    /// `IP_FREEBIND`: the address need not exist yet.
    pub freebind: bool,
    /// Options of the listening socket.
    pub socket_options: Arc<[SocketOption]>,
    /// How long inspection may take. Default 15 s; `None` = for ever.
    pub listener_filters_timeout: Option<Duration>,
    /// A client that says nothing may be one that waits for its server: that is found out by asking the server.
    pub races: bool,
    /// One of its chains ends TLS, so that a silent client's hello may be on its way.
    pub ends_tls: bool,
    /// Go on without the answer when inspection times out.
    pub continue_on_listener_filters_timeout: bool,
    /// Soft limit in bytes of what one downstream connection may buffer. Default 1 MiB.
    pub per_connection_buffer_limit: usize,
    /// `SO_REUSEPORT`, one socket per worker. Default true.
    pub reuse_port: bool,
    /// Accept backlog.
    pub backlog: u32,
    /// Socket options of accepted connections.
    pub socket: SocketTuning,
    /// Logs of connections that no filter chain logged.
    pub access_logs: Vec<AccessLog>,
    /// It takes mTLS and plain text.
    pub permissive: Option<Arc<Permissive>>,
    /// Statistics under `listener.<address>.`.
    pub stats: Arc<ListenerStats>,
}

/// A compiled filter chain.
#[derive(Debug)]
pub struct FilterChain {
    /// Its name, possibly empty.
    pub name: Arc<str>,
    /// Equal for filter chains that are configured alike.
    pub fingerprint: u64,
    /// Begins when the chain is changed or removed; its connections read it.
    pub retirement: Arc<Retirement>,
    /// TLS, or plain text.
    pub tls: Option<Arc<DownstreamTls>>,
    /// How long the TLS handshake may take; `None` = for ever.
    pub handshake_timeout: Option<Duration>,
    /// Network filters before the terminal one, in order.
    pub filters: Arc<[NetworkFilter]>,
    /// One of them is a [`NetworkFilter::SetFilterState`].
    pub sets_objects: bool,
    /// One of them limits connections.
    pub limits: bool,
    /// What serves the connection.
    pub terminal: Terminal,
}

/// A network filter before the terminal one.
#[derive(Debug, Clone)]
pub enum NetworkFilter {
    /// `envoy.filters.network.rbac`.
    Rbac(Arc<NetworkRbac>),
    /// `envoy.filters.network.set_filter_state`.
    SetFilterState(Arc<NetworkSetFilterState>),
    /// `envoy.filters.network.connection_limit`.
    ConnectionLimit(Arc<ConnectionLimit>),
    /// `envoy.filters.network.local_ratelimit`.
    ConnectionRate(Arc<ConnectionRate>),
    /// `envoy.filters.network.ext_authz`.
    ExtAuthz(Arc<NetworkAuthz>),
}

impl NetworkFilter {
    /// Whether a connection that it has let in needs it no more.
    pub fn decides_once(&self) -> bool {
        match self {
            Self::Rbac(rbac) => !rbac.continuous,
            Self::ExtAuthz(authz) => authz.enabled.is_none(),
            Self::ConnectionLimit(_) | Self::ConnectionRate(_) => true,
            Self::SetFilterState(_) => false,
        }
    }
}

/// `envoy.extensions.filters.network.set_filter_state.v3.Config`.
#[derive(Debug)]
pub struct NetworkSetFilterState {
    /// Set before anything is heard of the client.
    pub on_new_connection: Setters,
    /// Set when its certificate is known.
    pub on_downstream_tls_handshake: Setters,
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`.
#[derive(Debug)]
pub struct NetworkRbac {
    /// Its rules and statistics.
    pub filter: rbac::Filter,
    /// `CONTINUOUS`: asked at every read.
    pub continuous: bool,
    /// How long a refused connection stays open.
    pub delay: Option<Duration>,
}

/// The terminal network filter.
#[derive(Debug, Clone)]
pub enum Terminal {
    /// L7.
    Http(Arc<HttpConnectionManager>),
    /// L4.
    Tcp(Arc<TcpProxy>),
    /// Sends back what it receives.
    Echo,
    /// Sends this and closes.
    DirectResponse(bytes::Bytes),
}

/// `traffic_direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Direction {
    Unspecified,
    Inbound,
    Outbound,
}

impl Listener {
    /// Whether its connections come from this process itself.
    pub fn is_internal(&self) -> bool {
        matches!(self.address, Address::Internal(_))
    }

    /// Whether a filter is there for connections to `local`.
    #[inline]
    pub fn runs(&self, filter: ListenerFilter, local: Option<SocketAddr>) -> bool {
        let there = match filter {
            ListenerFilter::Tls => self.inspect.tls,
            ListenerFilter::Http => self.inspect.http,
            ListenerFilter::OriginalDst => self.inspect.original_dst,
            ListenerFilter::OriginalSrc => self.original_src.is_some(),
            ListenerFilter::ProxyProtocol => self.proxy_protocol.is_some(),
        };
        there && !self.disabled.iter().any(|(which, ports)| *which == filter && ports.matches(local))
    }
}

/// Which listener filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ListenerFilter {
    Tls,
    Http,
    OriginalDst,
    OriginalSrc,
    ProxyProtocol,
}

/// `envoy.config.listener.v3.ListenerFilterChainMatchPredicate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortPredicate {
    /// Every connection.
    Any,
    /// To ports from the first on and before the second.
    Range(i32, i32),
    /// The opposite.
    Not(Box<PortPredicate>),
    /// All of them.
    And(Box<[PortPredicate]>),
    /// One of them.
    Or(Box<[PortPredicate]>),
}

impl PortPredicate {
    /// Whether it is so of a connection to `local`.
    pub fn matches(&self, local: Option<SocketAddr>) -> bool {
        match self {
            Self::Any => true,
            Self::Range(from, end) => {
                local.is_some_and(|local| (*from..*end).contains(&i32::from(local.port())))
            }
            Self::Not(predicate) => !predicate.matches(local),
            Self::And(all) => all.iter().all(|predicate| predicate.matches(local)),
            Self::Or(all) => all.iter().any(|predicate| predicate.matches(local)),
        }
    }
}

/// `envoy.extensions.filters.listener.original_src.v3.OriginalSrc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalSrc {
    /// The client's port too, and not its address alone.
    pub bind_port: bool,
    /// `SO_MARK` of connections to upstreams; 0 = none.
    pub mark: u32,
}

/// `envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`.
#[derive(Debug)]
pub struct ProxyProtocol {
    /// A connection without a header is taken as it is.
    pub optional: bool,
    /// Version 1 is refused.
    pub refuses_v1: bool,
    /// Version 2 is refused.
    pub refuses_v2: bool,
    /// Fields of a header to be noted as dynamic metadata.
    pub rules: Box<[FieldRule]>,
    /// Statistics under `proxy_proto.`.
    pub stats: ProxyProtocolStats,
}

/// Where a field of a PROXY protocol header is noted.
#[derive(Debug)]
pub struct FieldRule {
    /// The field's type.
    pub kind: u8,
    /// Namespace of the dynamic metadata.
    pub namespace: Box<str>,
    /// Key in it.
    pub key: Box<str>,
    /// The value is noted as Base64, and not as text.
    pub base64: bool,
}

/// Listener filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inspect {
    /// Peek for a ClientHello.
    pub tls: bool,
    /// Peek for an HTTP request line.
    pub http: bool,
    /// Restore the original destination.
    pub original_dst: bool,
}
