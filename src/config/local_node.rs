//! Who this proxy is, as it tells its peers: what Istio's peer-metadata headers carry.
//!
//! In: the node of the bootstrap. Out: [`LocalNode`], which filters take a reference to when they are compiled.

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use outrigger_control_api::pb::envoy::config::core::v3::Node;
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value};
use prost::Message;
use serde_json::Value as Json;

use crate::telemetry::istio::Workload;

/// Who this proxy is.
#[derive(Debug, Default)]
pub struct LocalNode {
    /// Its id; empty if it has none.
    pub id: Box<str>,
    /// The zone that it is in; empty if it is in none.
    pub zone: Box<str>,
    /// The cluster that it belongs to; empty if it has none.
    pub cluster: Box<str>,
    /// All that services are told of it: a `Node`, encoded.
    pub told: Box<[u8]>,
    /// What peers are told of its workload: a `Struct` in base64.
    pub workload: Box<str>,
    /// What labels of metrics say of it.
    pub own: Workload,
    /// The release of Istio that it is said to be of.
    pub istio_version: Box<str>,
}

static CURRENT: LazyLock<ArcSwap<LocalNode>> = LazyLock::new(ArcSwap::default);

impl LocalNode {
    /// The node of the bootstrap that was read last.
    pub fn current() -> Arc<Self> {
        CURRENT.load_full()
    }

    /// This process is `node`, whose metadata are these.
    pub fn set(node: &Node, metadata: &Json) {
        let zone = node.locality.as_ref().map(|locality| locality.zone.as_str());
        CURRENT.store(Arc::new(Self {
            zone: zone.unwrap_or_default().into(),
            cluster: node.cluster.as_str().into(),
            told: node.encode_to_vec().into(),
            ..Self::of(&node.id, metadata)
        }));
    }

    /// The node `id` with this metadata.
    pub fn of(id: &str, metadata: &Json) -> Self {
        Self {
            id: id.into(),
            zone: Box::default(),
            cluster: Box::default(),
            told: Box::default(),
            workload: STANDARD.encode(workload(metadata)).into(),
            own: Workload::of_node(metadata),
            istio_version: metadata.get("ISTIO_VERSION").and_then(Json::as_str).unwrap_or_default().into(),
        }
    }
}

/// Labels that peers are told of.
const LABELS: [&str; 4] =
    ["app", "service.istio.io/canonical-name", "service.istio.io/canonical-revision", "version"];

/// What a peer is told of the workload with this metadata, the fields in the order of their names.
fn workload(metadata: &Json) -> Vec<u8> {
    let text = |name: &str| metadata.get(name).and_then(Json::as_str).filter(|text| !text.is_empty());
    let mut out = Vec::new();
    for name in ["CLUSTER_ID", "LABELS", "NAME", "NAMESPACE", "OWNER", "WORKLOAD_NAME"] {
        if name == "LABELS" {
            let label = |label: &&str| {
                let value = metadata.get("LABELS")?.get(label)?.as_str()?;
                Some(field(label, Kind::StringValue(value.to_owned())))
            };
            let labels: Vec<u8> = LABELS.iter().filter_map(label).flatten().collect();
            if let Some(labels) = Struct::decode(labels.as_slice()).ok().filter(|all| !all.fields.is_empty())
            {
                out.extend(ordered(name, &labels));
            }
        } else if let Some(value) = text(name) {
            out.extend(field(name, Kind::StringValue(value.to_owned())));
        }
    }
    out
}

/// A `Struct` with one field; several after each other are a `Struct` of them all.
fn field(name: &str, kind: Kind) -> Vec<u8> {
    let fields = [(name.to_owned(), Value { kind: Some(kind) })].into_iter().collect();
    Struct { fields }.encode_to_vec()
}

/// As [`field`] with a structure, whose fields are in the order of their names too.
fn ordered(name: &str, inner: &Struct) -> Vec<u8> {
    let mut names: Vec<&String> = inner.fields.keys().collect();
    names.sort();
    let each = names.into_iter().filter_map(|name| {
        let kind = inner.fields.get(name)?.kind.clone()?;
        Some(field(name, kind))
    });
    // Written by hand, as a map of the message type has no order: fields 1 (key) and 2 (value) of the entry, and of
    // the value field 5, the structure.
    let structure: Vec<u8> = each.flatten().collect();
    let value = delimited(5, &structure);
    let entry = [delimited(1, name.as_bytes()), delimited(2, &value)].concat();
    delimited(1, &entry)
}

/// A field of bytes, as protobuf writes it.
fn delimited(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encode_length_delimiter(bytes.len(), &mut out).unwrap_or_default();
    out.extend_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_of_the_workload() {
        let metadata = serde_json::json!({
            "NAME": "web-1", "NAMESPACE": "shop", "CLUSTER_ID": "Kubernetes", "WORKLOAD_NAME": "web",
            "OWNER": "kubernetes://apis/apps/v1/namespaces/shop/deployments/web",
            "LABELS": {"version": "v1", "app": "web", "pod-template-hash": "abc"},
            "PROXY_CONFIG": {"concurrency": 2}
        });
        let told = Struct::decode(workload(&metadata).as_slice()).expect("a structure");
        let text = |fields: &Struct, name: &str| match fields.fields.get(name).and_then(|v| v.kind.clone()) {
            Some(Kind::StringValue(text)) => text,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(text(&told, "NAME"), "web-1");
        assert_eq!(text(&told, "WORKLOAD_NAME"), "web");
        assert!(!told.fields.contains_key("PROXY_CONFIG"), "peers need not know");
        let Some(Kind::StructValue(labels)) = told.fields["LABELS"].kind.clone() else { panic!("no labels") };
        assert_eq!((text(&labels, "app"), text(&labels, "version")), ("web".to_owned(), "v1".to_owned()));
        assert_eq!(labels.fields.len(), 2);
        assert_eq!(workload(&metadata), workload(&metadata), "always the same bytes");
        assert_eq!(workload(&Json::Null), Vec::<u8>::new());
    }
}
