//! What config says of active health checks, with Envoy's defaults.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::config::cluster::Address;
use crate::config::matcher::StringMatcher;
use crate::config::route::HeaderOps;
use crate::config::Host;
use crate::telemetry::access_log::LineFile;

/// `health_check_config` of an endpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostCheck {
    /// Where it is checked; its own address unless set.
    pub address: Option<Address>,
    /// The port that is checked; the address's unless set.
    pub port: Option<u16>,
    /// The host name that checks send, if not empty.
    pub hostname: Box<str>,
    /// It is not checked.
    pub disabled: bool,
}

/// `envoy.config.core.v3.HealthCheck`.
#[derive(Debug)]
pub struct Options {
    /// How long an answer may take, the connection included.
    pub timeout: Duration,
    /// Time between the checks of a healthy host.
    pub interval: Duration,
    /// The first check comes up to this much later. Default 0.
    pub initial_jitter: Duration,
    /// Up to this much is added to each interval. Default 0.
    pub interval_jitter: Duration,
    /// The same in percent of the interval. Default 0.
    pub interval_jitter_percent: u32,
    /// Failures in a row before a host counts as failed.
    pub unhealthy_threshold: u32,
    /// Successes in a row before it counts as healthy again.
    pub healthy_threshold: u32,
    /// Time between checks while nobody has used the cluster. Default 60 s.
    pub no_traffic_interval: Duration,
    /// The same for a healthy host. Default: `no_traffic_interval`.
    pub no_traffic_healthy_interval: Duration,
    /// Time between the checks of a failed host. Default: `interval`.
    pub unhealthy_interval: Duration,
    /// Time to the next check after one that failed, where more are needed. Default: `unhealthy_interval`.
    pub unhealthy_edge_interval: Duration,
    /// Time to the next check after one that succeeded, where more are needed. Default: `interval`.
    pub healthy_edge_interval: Duration,
    /// Bounds of every interval (runtime `health_check.min_interval` and `max_interval`).
    pub bounds: (Duration, Duration),
    /// What checks offer by ALPN, where it is not what their protocol has.
    pub alpn: Box<[Box<[u8]>]>,
    /// What decides on the transport socket of checks, in place of the host's metadata.
    pub socket_match: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    /// Connections are kept between checks. Default true.
    pub reuse_connection: bool,
    /// Every failure is logged.
    pub always_log_failures: bool,
    /// Every success is logged.
    pub always_log_success: bool,
    /// Where events are logged.
    pub logs: Vec<LineFile>,
    /// What is asked.
    pub probe: Probe,
}

/// What is asked of a host.
#[derive(Debug)]
pub enum Probe {
    /// A request.
    Http(Box<HttpProbe>),
    /// `grpc.health.v1.Health/Check`.
    Grpc(Box<GrpcProbe>),
    /// A connection, and bytes.
    Tcp(TcpProbe),
}

/// `http_health_check`.
#[derive(Debug)]
pub struct HttpProbe {
    /// By HTTP/2 with prior knowledge.
    pub http2: bool,
    /// The method.
    pub method: &'static str,
    /// `:path`.
    pub path: Box<str>,
    /// The host name, unless the endpoint has one; the cluster's name if empty.
    pub host: Box<str>,
    /// Changes to the request's head.
    pub headers: HeaderOps,
    /// The request's body.
    pub send: Vec<u8>,
    /// What the answer's body must have in it, in this order.
    pub receive: Vec<Vec<u8>>,
    /// Bytes of the answer's body that are looked at; 0 = all. Default 1024.
    pub response_buffer: usize,
    /// Statuses that mean healthy. Default 200.
    pub expected: Vec<Range<u16>>,
    /// Statuses that count against `unhealthy_threshold` instead of failing the host at once.
    pub retriable: Vec<Range<u16>>,
    /// What `x-envoy-upstream-healthchecked-cluster` of the answer must be.
    pub service_name: Option<StringMatcher>,
}

/// `grpc_health_check`.
#[derive(Debug)]
pub struct GrpcProbe {
    /// The service that is asked for; empty = the server.
    pub service: Box<str>,
    /// `:authority`, as [`HttpProbe::host`].
    pub authority: Box<str>,
    /// More metadata.
    pub metadata: HeaderOps,
}

/// `tcp_health_check`.
#[derive(Debug)]
pub struct TcpProbe {
    /// What is sent.
    pub send: Vec<u8>,
    /// What must come back, in this order, with anything in between; if nothing, being connected is enough.
    pub receive: Vec<Vec<u8>>,
}

impl Probe {
    /// As the event log writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Probe::Http(_) => "HTTP",
            Probe::Grpc(_) => "GRPC",
            Probe::Tcp(_) => "TCP",
        }
    }
}

/// Where `host` is checked.
pub fn address_of(host: &Host) -> Address {
    let check = host.template.check.as_deref();
    let mut address = check.and_then(|check| check.address.clone()).unwrap_or_else(|| host.address.clone());
    if let (Address::Ip(address), Some(port)) = (&mut address, check.and_then(|check| check.port)) {
        address.set_port(port);
    }
    address
}

/// The host name that checks of `host` send: the endpoint's, else `configured`, else the cluster's name.
pub fn authority_of(host: &Host, configured: &str, cluster: &Arc<str>) -> String {
    let own = host.template.check.as_deref().map(|check| &*check.hostname).unwrap_or_default();
    let name = if !own.is_empty() {
        own
    } else if !configured.is_empty() {
        configured
    } else {
        cluster
    };
    name.to_owned()
}

/// Whether each of `wanted` is in `bytes`, one after the other.
pub fn contains_in_order(bytes: &[u8], wanted: &[Vec<u8>]) -> bool {
    let mut rest = bytes;
    wanted.iter().all(|piece| match memchr::memmem::find(rest, piece) {
        Some(at) => {
            rest = rest.get(at + piece.len()..).unwrap_or_default();
            true
        }
        None => false,
    })
}
