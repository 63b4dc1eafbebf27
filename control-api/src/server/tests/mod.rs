//! Scripted clients against the stream without its transport, random sequences, and one real connection.

mod content;
mod extras;
mod loopback;
mod ordering;
mod protocol;
mod random;

use std::sync::Arc;
use std::time::Instant;

use prost::Message as _;

use super::{Limits, Protocol, ResourceType, Response, Snapshot, StreamState};
use crate::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::pb::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource};
use crate::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::pb::google::rpc::Status;

pub const CDS: ResourceType = ResourceType::CLUSTER;
pub const EDS: ResourceType = ResourceType::ENDPOINTS;
pub const LDS: ResourceType = ResourceType::LISTENER;
pub const RDS: ResourceType = ResourceType::ROUTE;

pub fn ads() -> Option<ConfigSource> {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    Some(ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() })
}

/// A cluster whose endpoints come from EDS; `edition` makes it differ.
pub fn cluster(name: &str, edition: u32) -> Cluster {
    Cluster {
        name: name.into(),
        alt_stat_name: format!("{edition}"),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..EdsClusterConfig::default() }),
        ..Cluster::default()
    }
}

pub fn endpoints(name: &str, edition: u32) -> ClusterLoadAssignment {
    let locality = LocalityLbEndpoints { priority: edition, ..LocalityLbEndpoints::default() };
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    }
}

/// A route table that names the cluster that it points at.
pub fn route(name: &str, to: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: name.into(),
        internal_only_headers: vec![to.into()],
        ..RouteConfiguration::default()
    }
}

pub fn listener(name: &str, edition: u32) -> Listener {
    Listener { name: name.into(), stat_prefix: format!("{edition}"), ..Listener::default() }
}

/// Clusters with their endpoints, a listener, and a route table `r` to the first cluster.
pub fn mesh(clusters: &[&str], edition: u32) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for name in clusters {
        snapshot.insert(&cluster(name, 0)).unwrap();
        snapshot.insert(&endpoints(name, edition)).unwrap();
    }
    snapshot.insert(&listener("l", 0)).unwrap();
    snapshot.insert(&route("r", clusters[0])).unwrap();
    snapshot
}

pub fn stream(protocol: Protocol, snapshot: &Snapshot) -> StreamState {
    let mut state = StreamState::new(protocol, None, Limits::default());
    state.set_target(Arc::new(snapshot.clone()));
    state
}

pub fn delta(kind: &ResourceType, add: &[&str], remove: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_subscribe: add.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: remove.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

pub fn sotw(kind: &ResourceType, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.url().into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.into(),
        ..DiscoveryRequest::default()
    }
}

pub fn refusal() -> Option<Status> {
    Some(Status { code: 3, message: "no such thing".into(), ..Status::default() })
}

/// A response of either form, as a client sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub kind: ResourceType,
    pub nonce: String,
    pub version: String,
    /// Names with versions; of the state of the world, with their content instead.
    pub resources: Vec<(String, String)>,
    pub bodies: Vec<Vec<u8>>,
    pub removed: Vec<String>,
}

impl Seen {
    pub fn names(&self) -> Vec<&str> {
        self.resources.iter().map(|(n, _)| n.as_str()).collect()
    }

    /// `type: added -removed`, for comparison with a script.
    pub fn line(&self) -> String {
        let kind = self.kind.to_string();
        let kind = kind.rsplit('.').next().unwrap();
        let removed = self.removed.iter().map(|n| format!(" -{n}"));
        let added = self.names().into_iter().map(|n| format!(" {n}"));
        added.chain(removed).fold(format!("{kind}:"), |line, part| line + &part)
    }
}

pub fn seen(protocol: Protocol, response: &Response) -> Seen {
    let bytes = response.encode();
    if protocol == Protocol::Delta {
        let m = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        return Seen {
            kind: ResourceType::from_url(&m.type_url),
            nonce: m.nonce,
            version: m.system_version_info,
            bodies: m.resources.iter().map(|r| r.resource.clone().unwrap().value).collect(),
            resources: m.resources.into_iter().map(|r| (r.name, r.version)).collect(),
            removed: m.removed_resources,
        };
    }
    let m = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
    let kind = ResourceType::from_url(&m.type_url);
    let name = |value: &[u8]| match &kind {
        k if *k == CDS => Cluster::decode(value).unwrap().name,
        k if *k == EDS => ClusterLoadAssignment::decode(value).unwrap().cluster_name,
        k if *k == LDS => Listener::decode(value).unwrap().name,
        _ => RouteConfiguration::decode(value).unwrap().name,
    };
    let resources = m.resources.iter().map(|r| (name(&r.value), format!("{:?}", r.value))).collect();
    Seen {
        resources,
        bodies: m.resources.into_iter().map(|r| r.value).collect(),
        kind,
        nonce: m.nonce,
        version: m.version_info,
        removed: Vec::new(),
    }
}

/// Everything that is due now.
pub fn drain(state: &mut StreamState, now: Instant) -> Vec<Seen> {
    let protocol = state.protocol();
    std::iter::from_fn(|| state.poll(now)).map(|r| seen(protocol, &r)).collect()
}

pub fn lines(responses: &[Seen]) -> Vec<String> {
    responses.iter().map(Seen::line).collect()
}
