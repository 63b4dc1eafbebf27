//! The server side of xDS v3: what a control plane is made of, but for deciding what its nodes shall have.
//!
//! In: a [`Snapshot`] for each node, or for each group of nodes, put into a [`SnapshotCache`] whenever it
//! changes. Out: the discovery services over gRPC, aggregated (ADS) and one type a stream, delta and state
//! of the world, and over REST; and who has accepted or refused what ([`SnapshotCache::streams`],
//! [`Server::on_event`]).
//!
//! # A control plane
//!
//! A whole one: it serves what a directory holds, and moves a service to another address when it is told to
//! on standard input. What is different in yours is where resources come from and what makes them change.
//!
//! ```no_run
//! use outrigger_control_api::pb::envoy::config::core::v3::{address, socket_address, Address, SocketAddress};
//! use outrigger_control_api::pb::envoy::config::endpoint::v3::{
//!     lb_endpoint::HostIdentifier, ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
//! };
//! use outrigger_control_api::server::{Event, Server, Snapshot, SnapshotCache};
//! use tokio::io::{AsyncBufReadExt, BufReader};
//!
//! /// The endpoints of a cluster: one, on this machine.
//! fn endpoints(cluster: &str, port: u32) -> ClusterLoadAssignment {
//!     let port = Some(socket_address::PortSpecifier::PortValue(port));
//!     let socket = SocketAddress { address: "127.0.0.1".into(), port_specifier: port, ..Default::default() };
//!     let address = Some(Address { address: Some(address::Address::SocketAddress(socket)) });
//!     let host = Some(HostIdentifier::Endpoint(Endpoint { address, ..Default::default() }));
//!     let endpoint = LbEndpoint { host_identifier: host, ..Default::default() };
//!     let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
//!     ClusterLoadAssignment { cluster_name: cluster.into(), endpoints: vec![locality], ..Default::default() }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Listeners, routes and clusters as files; typed messages, `Any`s and bytes go in as well.
//!     let mut snapshot = outrigger_control_api::control::load_directory("mesh".as_ref())
//!         .map_err(|problems| problems.iter().map(|p| format!("{p}\n")).collect::<String>())?;
//!     snapshot.insert(&endpoints("backend", 8080))?;
//!     for missing in snapshot.validate().err().unwrap_or_default() {
//!         eprintln!("{missing}");
//!     }
//!
//!     // One snapshot for all nodes that say `node: { cluster: web }`, another for all others.
//!     let cache = SnapshotCache::by_node_cluster();
//!     cache.set("web", snapshot.clone());
//!     cache.set_common(Some(Snapshot::new().into()));
//!
//!     let server = Server::new(cache.clone()).on_event(|stream, event| {
//!         if let Event::Nack { kind, nack } = event {
//!             eprintln!("{} refused {kind} {}: {}", stream.node_id, nack.version, nack.message);
//!         }
//!     });
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:18000").await?;
//!     tokio::spawn(async move { server.serve(listener).await });
//!
//!     // Change what shall be changed and set it again: copies share the rest, and only the difference is sent.
//!     let mut lines = BufReader::new(tokio::io::stdin()).lines();
//!     while let Some(line) = lines.next_line().await? {
//!         snapshot.insert(&endpoints("backend", line.trim().parse()?))?;
//!         cache.set("web", snapshot.clone());
//!         let in_sync = cache.streams().iter().filter(|stream| stream.is_in_sync()).count();
//!         println!("{in_sync} clients were up to date before this");
//!     }
//!     Ok(())
//! }
//! ```
//!
//! What else there is: [`Snapshot::set_ttl`] for resources that clients drop when they hear nothing,
//! [`Snapshot::serve_by_name_only`] for listeners that only gRPC asks for, virtual hosts that are found by
//! the host name that a proxy asks for on demand (VHDS), [`Server::fetch`] and REST on the same port,
//! [`Server::serve_unix`], [`Server::serve_connection`] for TLS, [`Limits`], load reports ([`LoadReports`]). [`crate::control`] is a control
//! plane made of this that serves files.
//!
//! # What is sent, and when
//!
//! A version is a hash of content, so equal content is never sent twice, also not to a client that
//! reconnects, after a restart of the server, or by another server with the same content. What a client
//! asks for is answered at once, even if it is unchanged; a delta client is told of names that do not exist,
//! a state-of-the-world client by their absence from clusters and listeners.
//!
//! Changes of one snapshot are sent make-before-break on an aggregated stream: runtime and secrets, clusters,
//! endpoints, extensions, then listeners, scopes, route tables and virtual hosts, and at last removals, first
//! of what points at others. Listeners and routes wait until the client has accepted or refused the clusters
//! and endpoints before them; Envoy accepts clusters only once they are warm. Until their turn comes,
//! resources to be removed stay in the full responses of the state of the world. A changed cluster is followed
//! by its endpoints, which Envoy needs to warm it up. A client that stays silent is waited for no longer than
//! [`Limits::patience`]. Streams of one type each cannot be ordered against each other.
//!
//! For each type one response at a time is under way to a client, but for answers to what it asks. Changes
//! in the meantime are kept as one set of names, and their newest content is sent.

mod cache;
mod chunks;
mod kind;
mod load_report;
mod reference;
mod response;
mod rest;
mod snapshot;
mod status;
mod stream;
mod subscription;
mod transport;
mod virtual_host;
mod wire;

pub use cache::SnapshotCache;
pub use kind::ResourceType;
pub use load_report::{LatestLoads, LoadQuery, LoadReport, LoadReports};
pub use response::Response;
pub use rest::FetchError;
pub use snapshot::{Dangling, Resource, ResourceError, Snapshot, TypedResource};
pub use status::{Event, StreamStatus, TypeStatus};
pub use stream::{Limits, Protocol, StreamError, StreamState, Verdict};
pub use subscription::Nack;
pub use transport::Server;

#[cfg(test)]
mod tests;
