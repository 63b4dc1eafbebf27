//! Who a peer is: what Istio's proxies tell of themselves in headers, what its control plane tells of endpoints, and what
//! the bootstrap tells of this proxy.

use std::cell::RefCell;
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD_NO_PAD;
use base64::Engine as _;
use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value};
use prost::Message;
use serde_json::Value as Json;
use xxhash_rust::xxh64::xxh64;

use super::recent::{seed, Recent};

/// A workload, as labels of metrics show it; what is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Workload {
    pub name: Box<str>,
    pub namespace: Box<str>,
    pub canonical_service: Box<str>,
    pub canonical_revision: Box<str>,
    pub cluster: Box<str>,
    pub app: Box<str>,
    pub version: Box<str>,
}

/// The service that a cluster stands for, where its metadata or its name tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its host name; without one a request's own host stands for it.
    pub host: Option<Box<str>>,
    /// Its short name.
    pub name: Option<Box<str>>,
}

/// Clusters of Istio's that are no services; they are shown under their own names.
const PASSTHROUGH: [&str; 5] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];

impl Service {
    /// Of the cluster `cluster` with this metadata.
    pub fn of_cluster(cluster: &str, metadata: Option<&Metadata>) -> Option<Arc<Self>> {
        if PASSTHROUGH.contains(&cluster) {
            return Some(Arc::new(Self { host: None, name: Some(cluster.into()) }));
        }
        let Kind::ListValue(services) =
            metadata?.filter_metadata.get("istio")?.fields.get("services")?.kind.as_ref()?
        else {
            return None;
        };
        let Kind::StructValue(first) = services.values.first()?.kind.as_ref()? else { return None };
        let host = text(first, "host");
        let name = match text(first, "name") {
            Some(name) => Some(name),
            None => host.and_then(|host| host.split('.').next()),
        };
        Some(Arc::new(Self { host: host.map(Box::from), name: name.map(Box::from) }))
    }
}

/// What an endpoint's metadata say of its workload, as it is written there.
pub fn of_endpoint(metadata: Option<&Metadata>) -> Option<&str> {
    text(metadata?.filter_metadata.get("istio")?, "workload").filter(|encoded| !encoded.is_empty())
}

fn text<'a>(fields: &'a Struct, name: &str) -> Option<&'a str> {
    text_of(fields.fields.get(name)?)
}

fn text_of(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// The longest header that is looked into, in bytes.
const MAX_HEADER: usize = 16 * 1024;
/// So many peers are remembered at least, by each thread.
const PEERS: usize = 1024;

/// A header, and who it tells of.
type Told = (Box<[u8]>, Arc<Workload>);

thread_local! {
    static TOLD: RefCell<Recent<Told>> = RefCell::new(Recent::new(PEERS));
}

impl Workload {
    /// What a peer says of itself in `x-envoy-peer-metadata`. Peers of late are known by their header as it is.
    pub fn told(header: &[u8]) -> Option<Arc<Self>> {
        if header.is_empty() || header.len() > MAX_HEADER {
            return None;
        }
        TOLD.with_borrow_mut(|told| {
            let hash = xxh64(header, seed());
            if let Some((_, known)) = told.get(hash).filter(|(own, _)| **own == *header) {
                return Some(known.clone());
            }
            let workload = Arc::new(Self::decode(header)?);
            told.put(hash, (header.into(), workload.clone()));
            Some(workload)
        })
    }

    fn decode(header: &[u8]) -> Option<Self> {
        let digits = header.trim_ascii_end();
        let padding = digits.iter().rev().take_while(|digit| **digit == b'=').count();
        let bytes = STANDARD_NO_PAD.decode(digits.get(..digits.len() - padding)?).ok()?;
        let told = Struct::decode(bytes.as_slice()).ok()?;
        let labels = match told.fields.get("LABELS").and_then(|labels| labels.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => Some(labels),
            _ => None,
        };
        let field = |name: &str| text(&told, name);
        let label = |name: &str| text(labels?, name);
        Some(Self::of(field, label))
    }

    /// The workload of the node with this metadata.
    pub fn of_node(metadata: &Json) -> Self {
        let labels = metadata.get("LABELS");
        let field = |name: &str| metadata.get(name)?.as_str();
        let label = |name: &str| labels?.get(name)?.as_str();
        Self::of(field, label)
    }

    fn of<'a>(field: impl Fn(&str) -> Option<&'a str>, label: impl Fn(&str) -> Option<&'a str>) -> Self {
        let own = |text: Option<&str>| text.unwrap_or_default().into();
        Self {
            name: own(field("WORKLOAD_NAME")),
            namespace: own(field("NAMESPACE")),
            canonical_service: own(label("service.istio.io/canonical-name")),
            canonical_revision: own(label("service.istio.io/canonical-revision")),
            cluster: own(field("CLUSTER_ID")),
            app: own(label("app")),
            version: own(label("version")),
        }
    }

    /// From the form that endpoints' metadata have: `workload;namespace;canonical name;canonical revision;cluster`.
    pub(super) fn encoded(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let mut next = || parts.next().map(Box::from);
        Some(Self {
            name: next()?,
            namespace: next()?,
            canonical_service: next()?,
            canonical_revision: next()?,
            cluster: next()?,
            ..Self::default()
        })
    }
}

/// The peers of a stream, as far as they have told who they are.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    /// Who sent the request.
    pub downstream: Option<Arc<Workload>>,
    /// Who answered it.
    pub upstream: Option<Arc<Workload>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    fn header(json: &Json) -> String {
        crate::config::local_node::LocalNode::of("node", json).workload.into()
    }

    #[test]
    fn what_a_proxy_tells_is_what_its_peer_reads() {
        let node = serde_json::json!({"NAME": "web-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "web", "CLUSTER_ID": "one",
            "LABELS": {"app": "web", "version": "v2", "service.istio.io/canonical-name": "web",
                "service.istio.io/canonical-revision": "v2"}});
        let told = Workload::told(header(&node).as_bytes()).expect("a workload");
        assert_eq!(*told, Workload::of_node(&node));
        assert_eq!((&*told.name, &*told.namespace, &*told.cluster), ("web", "shop", "one"));
        assert_eq!((&*told.app, &*told.version, &*told.canonical_revision), ("web", "v2", "v2"));
        let again = Workload::told(header(&node).as_bytes()).expect("a workload");
        assert!(Arc::ptr_eq(&told, &again), "it was decoded once");
    }

    #[test]
    fn what_cannot_be_read_is_nobody() {
        let cut = STANDARD.encode(b"\x0a\x7f");
        for header in ["", "!", "peer", &cut, &"A".repeat(MAX_HEADER + 1)] {
            assert_eq!(Workload::told(header.as_bytes()), None, "{header:.20}");
        }
        assert_eq!(Workload::encoded("web;shop;web;v1"), None);
        let host = Workload::encoded("web;shop;front;v1;one").expect("a workload");
        assert_eq!((&*host.name, &*host.canonical_service, &*host.cluster), ("web", "front", "one"));
    }
}
