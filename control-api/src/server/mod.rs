//! The server side of xDS v3: what a control plane is made of, but for deciding what its nodes shall have.
//!
//! In: a [`Snapshot`] for each node, or for each group of nodes, put into a [`SnapshotCache`] whenever it
//! changes. Out: the discovery services over gRPC, aggregated (ADS) and one type a stream, delta and state
//! of the world; and who has accepted or refused what ([`SnapshotCache::streams`], [`Server::on_event`]).
//!
//! # A control plane
//!
//! ```no_run
//! use outrigger_control_api::pb::envoy::config::cluster::v3::Cluster;
//! use outrigger_control_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
//! use outrigger_control_api::server::{Event, Server, Snapshot, SnapshotCache};
//!
//! # async fn control_plane() -> Result<(), Box<dyn std::error::Error>> {
//! // One snapshot for all nodes that say `node: { cluster: web }`.
//! let cache = SnapshotCache::by_node_cluster();
//!
//! // Typed messages, `Any`s or encoded bytes; `control::load_directory` reads files.
//! let mut snapshot = Snapshot::new();
//! snapshot.insert(&Cluster { name: "backend".into(), ..Cluster::default() })?;
//! snapshot.insert(&ClusterLoadAssignment { cluster_name: "backend".into(), ..Default::default() })?;
//! if let Err(missing) = snapshot.validate() {
//!     for name in missing {
//!         eprintln!("{name}");
//!     }
//! }
//! cache.set("web", snapshot.clone());
//!
//! let server = Server::new(cache.clone()).on_event(|stream, event| {
//!     if let Event::Nack { kind, nack } = event {
//!         eprintln!("{} refused {kind} {}: {}", stream.node_id, nack.version, nack.message);
//!     }
//! });
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:18000").await?;
//! tokio::spawn(async move { server.serve(listener).await });
//!
//! // Later: change what shall be changed, and set it again. Clones share everything else, and only the
//! // difference is sent.
//! snapshot.insert(&ClusterLoadAssignment { cluster_name: "backend".into(), ..Default::default() })?;
//! cache.set("web", snapshot);
//! # Ok(())
//! # }
//! ```
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
pub use response::Response;
pub use rest::FetchError;
pub use snapshot::{Dangling, Resource, ResourceError, Snapshot, TypedResource};
pub use status::{Event, StreamStatus, TypeStatus};
pub use stream::{Limits, Protocol, StreamError, StreamState, Verdict};
pub use subscription::Nack;
pub use transport::Server;

#[cfg(test)]
mod tests;
