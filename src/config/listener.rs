//! Listeners and filter chains (`envoy.config.listener.v3`).

use std::sync::Arc;
use std::time::Duration;

use super::chain_match::ChainIndex;
use super::cluster::{Address, SocketTuning};
use super::http::HttpConnectionManager;
use super::retirement::Retirement;
use super::tcp::TcpProxy;
use crate::listener::permissive::Permissive;
use crate::policy::rbac;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::filter_state::Setters;
use crate::telemetry::stats::ListenerStats;
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
    /// Direction, for drain and metrics.
    pub direction: Direction,
    /// Which chain serves a connection.
    pub index: ChainIndex,
    /// The chains `index` points into.
    pub chains: Vec<Arc<FilterChain>>,
    /// Serves what no chain matches.
    pub default_chain: Option<Arc<FilterChain>>,
    /// What is looked at before a chain is chosen.
    pub inspect: Inspect,
    /// How long inspection may take. Default 15 s; `None` = for ever.
    pub listener_filters_timeout: Option<Duration>,
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
