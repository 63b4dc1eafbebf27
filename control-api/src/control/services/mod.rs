//! Services in a short form, as Envoy's resources.
//!
//! In: an object with `services`, from a file that is usually called `services.yaml`. Out: a listener,
//! route tables, clusters and endpoints, or every problem with its service and field.
//!
//! ```yaml
//! listen: 127.0.0.1:15001      # where HTTP and gRPC clients find all services, by host name
//!
//! services:
//!   web:                       # the name: cluster `web`, and requests with `host: web`
//!     port: 8080               # `host: web:8080` as well
//!     endpoints:
//!     - 10.0.0.1:8080
//!     - {address: "10.0.0.2:8080", weight: 2, zone: b}
//!   accounts:
//!     protocol: grpc           # http (default), http2, grpc, tcp
//!     hosts: [accounts.internal]
//!     versions:                # in place of `endpoints`
//!       stable: {weight: 95, endpoints: ["10.0.1.1:50051"]}
//!       canary:
//!         weight: 5
//!         headers: {x-canary: "yes"}   # these requests always
//!         endpoints: ["10.0.1.2:50051"]
//!     timeout: 2s
//!     retries: {attempts: 2, per_try_timeout: 500ms}
//!   database:
//!     protocol: tcp
//!     listen: 127.0.0.1:5432   # a listener of its own: needed for tcp
//!     endpoints: ["10.0.2.1:5432"]
//! ```
//!
//! | field of a service | meaning | default |
//! |---|---|---|
//! | `endpoints` | IP addresses with ports, or host names with ports, which clients resolve; as text or as objects | |
//! | `endpoints[].address` | the same, in an object | |
//! | `endpoints[].weight` | share of the load, 1 to 1,000 | 1 |
//! | `endpoints[].zone` | its locality's zone | |
//! | `endpoints[].priority` | 0 to 127; 1 is used when 0 fails | 0 |
//! | `endpoints[].health` | `healthy`, `draining`, `unhealthy` | `healthy` |
//! | `versions` | several sets of endpoints by name, each a cluster `service/version` | |
//! | `versions.*.weight` | share of the requests; 0 to 1,000,000 | 1 |
//! | `versions.*.headers` | requests with all of these headers go here, whatever the weight | |
//! | `port` | clients may add it to the host name | any |
//! | `hosts` | other host names, also with `*` as their first or last letter | |
//! | `protocol` | what endpoints speak: `http`, `http2`, `grpc`, `tcp` | `http` |
//! | `listen` | a listener for this service alone, whatever the host name | |
//! | `lb_policy` | `round_robin`, `least_request`, `random`, `ring_hash`, `maglev` | `round_robin` |
//! | `timeout` | for a request and its retries; `0s` is none | Envoy's 15 s |
//! | `connect_timeout` | for a connection to an endpoint | 5 s |
//! | `idle_timeout` | before a connection without requests is closed | Envoy's 1 h |
//! | `retries.attempts` | how many, 1 to 100 | 1 |
//! | `retries.on` | Envoy's conditions | `connect-failure`, `refused-stream`, `reset` |
//! | `retries.per_try_timeout` | for each try | |
//! | `circuit_breakers` | `max_connections`, `max_pending_requests`, `max_requests`, `max_retries` | Envoy's |
//! | `outlier_detection` | `consecutive_5xx`, `interval`, `base_ejection_time`, `max_ejection_percent` | off |
//! | `health_check` | `path` (HTTP; without it TCP), `interval` (5 s), `timeout` (1 s) | off |
//!
//! Services that speak `grpc` also get listeners without a socket, named `service` and `service:port`, so
//! that gRPC's own xDS client finds `xds:///service`. Proxies do not see them.

mod read;
mod reader;
mod resources;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;

use crate::problem::Problem;

/// Where services are found by host name, unless the file says it.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);

/// Resources and where each comes from.
#[derive(Debug)]
pub(super) struct Expansion {
    pub labels: Vec<String>,
    pub resources: Vec<Value>,
}

/// Turns services into resources.
///
/// # Errors
/// Every problem, with the service that it is in.
pub(super) fn expand(file: &Value) -> Result<Expansion, Vec<(String, Problem)>> {
    let mesh = read::mesh(file)?;
    let made = resources::of(&mesh);
    let (labels, resources) = made.into_iter().unzip();
    Ok(Expansion { labels, resources })
}

/// All services of a file.
#[derive(Debug)]
struct Mesh {
    listen: SocketAddr,
    services: Vec<Service>,
}

#[derive(Debug)]
struct Service {
    name: String,
    port: Option<u64>,
    hosts: Vec<String>,
    protocol: Protocol,
    listen: Option<SocketAddr>,
    versions: Vec<Version>,
    lb_policy: &'static str,
    timeout: Option<String>,
    connect_timeout: Option<String>,
    idle_timeout: Option<String>,
    retries: Option<Retries>,
    /// Field names and values as Envoy has them.
    circuit_breakers: Option<Vec<(&'static str, u64)>>,
    outlier_detection: Option<Vec<(&'static str, Value)>>,
    health_check: Option<HealthCheck>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
}

#[derive(Debug)]
struct Version {
    /// The whole name of the cluster.
    cluster: String,
    weight: u64,
    headers: Vec<(String, String)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    host: String,
    port: u16,
    weight: u64,
    zone: String,
    priority: u64,
    health: &'static str,
}

impl Endpoint {
    fn is_ip(&self) -> bool {
        self.host.parse::<std::net::IpAddr>().is_ok()
    }
}

#[derive(Debug)]
struct Retries {
    attempts: u64,
    on: Vec<String>,
    per_try_timeout: Option<String>,
}

#[derive(Debug)]
struct HealthCheck {
    path: Option<String>,
    interval: String,
    timeout: String,
}

#[cfg(test)]
mod tests;
