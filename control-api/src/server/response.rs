//! Builds the responses of a stream: which resources go in, and what the client knows afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message;

use super::kind::ResourceType;
use super::snapshot::{Resource, Resources, Snapshot};
use super::stream::{Protocol, StreamState};
use super::wire::{DeltaResource, DeltaResponse, SotwResponse};

/// A response, ready to be encoded. Bodies are shared with the snapshot.
#[derive(Debug, Clone)]
pub struct Response(Body);

#[derive(Debug, Clone)]
enum Body {
    Sotw(SotwResponse),
    Delta(DeltaResponse),
}

impl Response {
    /// Appends the encoded `DiscoveryResponse` or `DeltaDiscoveryResponse`.
    pub fn encode_to(&self, buffer: &mut impl BufMut) -> Result<(), prost::EncodeError> {
        match &self.0 {
            Body::Sotw(m) => m.encode(buffer),
            Body::Delta(m) => m.encode(buffer),
        }
    }

    /// The encoded message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match &self.0 {
            Body::Sotw(m) => m.encode_to_vec(),
            Body::Delta(m) => m.encode_to_vec(),
        }
    }
}

/// What goes into one response.
#[derive(Default)]
struct Parts {
    resources: Vec<(Arc<str>, Resource)>,
    removed: Vec<Arc<str>>,
    bytes: usize,
}

impl Parts {
    fn add(&mut self, name: &Arc<str>, resource: &Resource) {
        self.bytes += resource.any.len() + name.len() + resource.version.len();
        self.resources.push((name.clone(), resource.clone()));
    }
}

impl StreamState {
    /// Turns a new wildcard into names to answer.
    pub(super) fn expand(&mut self, kind: &ResourceType, target: &Snapshot) {
        let sotw = self.protocol == Protocol::StateOfTheWorld;
        let Some(sub) = self.types.get_mut(kind) else { return };
        let Some(version) = &sub.fresh else { return };
        let up_to_date = sotw && !version.is_empty() && *version == target.version(kind);
        let all = target.of(kind).map(|r| r.iter()).into_iter().flatten();
        if up_to_date {
            sub.known.extend(all.map(|(name, r)| (name.clone(), Some(r.version.clone()))));
            sub.fresh = None;
            return;
        }
        for (name, r) in all {
            if !sub.knows(name, &r.version) {
                sub.asked.entry(name.clone()).or_insert(false);
            }
        }
        let had = sub.known.iter().filter(|(_, version)| version.is_some()).map(|(name, _)| name);
        sub.removals.extend(had.filter(|n| target.get(kind, n).is_none()).cloned());
    }

    /// What the client asked for, changed or not.
    pub(super) fn answer(&mut self, kind: &ResourceType, target: &Arc<Snapshot>) -> Option<Response> {
        if self.protocol == Protocol::StateOfTheWorld {
            let asked = self.types.get(kind)?.asked.keys().cloned().collect();
            return self.sotw(kind, target, &asked, true);
        }
        let limit = self.limits.response_bytes;
        let sub = self.types.get_mut(kind)?;
        let mut parts = Parts::default();
        // An empty answer to a new wildcard tells the client that there is nothing to wait for.
        let even_empty = sub.fresh.take().is_some();
        while parts.bytes < limit {
            let Some((name, force)) = sub.asked.pop_first() else { break };
            if let Some(resource) = target.get(kind, &name) {
                sub.updates.remove(&name);
                if force || !sub.knows(&name, &resource.version) {
                    parts.add(&name, resource);
                }
            } else if sub.has(&name) && !force {
                sub.removals.insert(name);
            } else if force || !sub.known.contains_key(&name) {
                sub.removals.remove(&name);
                parts.removed.push(name);
            }
        }
        self.send(kind, target, parts, even_empty)
    }

    /// Changes that nobody asked for.
    pub(super) fn update(&mut self, kind: &ResourceType, target: &Arc<Snapshot>) -> Option<Response> {
        if self.protocol == Protocol::StateOfTheWorld {
            let updates = self.types.get(kind)?.updates.clone();
            return self.sotw(kind, target, &updates, false);
        }
        let limit = self.limits.response_bytes;
        let sub = self.types.get_mut(kind)?;
        let mut parts = Parts::default();
        while parts.bytes < limit {
            let Some(name) = sub.updates.pop_first() else { break };
            match target.get(kind, &name) {
                Some(resource) if !sub.knows(&name, &resource.version) => parts.add(&name, resource),
                _ => {}
            }
        }
        self.send(kind, target, parts, false)
    }

    /// Removals whose turn has come.
    pub(super) fn remove(&mut self, kind: &ResourceType, target: &Arc<Snapshot>) -> Option<Response> {
        let sub = self.types.get_mut(kind)?;
        sub.lingering.clear();
        let removed = std::mem::take(&mut sub.removals);
        if self.protocol == Protocol::Delta {
            let parts = Parts { removed: removed.into_iter().collect(), ..Parts::default() };
            return self.send(kind, target, parts, false);
        }
        for name in &removed {
            sub.known.remove(name);
        }
        // Other types cannot say it: the client drops them with what pointed at them.
        if kind.is_full_state() {
            self.sotw(kind, target, &BTreeSet::new(), true)
        } else {
            None
        }
    }

    /// A state-of-the-world response: all of it for full-state types, else `names` as far as they exist.
    fn sotw(
        &mut self,
        kind: &ResourceType,
        target: &Arc<Snapshot>,
        names: &BTreeSet<Arc<str>>,
        even_empty: bool,
    ) -> Option<Response> {
        let sub = self.types.get_mut(kind)?;
        let fresh = sub.fresh.take().is_some();
        let mut parts = Parts::default();
        if kind.is_full_state() {
            for (name, r) in target.of(kind).map(|r| r.iter()).into_iter().flatten() {
                if sub.covers(name) {
                    parts.add(name, r);
                }
            }
            for (name, r) in &sub.lingering {
                parts.add(name, r);
            }
            sub.asked.clear();
            sub.updates.clear();
        } else {
            for name in names {
                // A cluster that lingers in a newer form needs its endpoints, which linger as well.
                if let Some(r) = target.get(kind, name).or_else(|| sub.lingering.get(name)) {
                    parts.add(name, r);
                }
                sub.asked.remove(name);
                sub.updates.remove(name);
            }
        }
        let even_empty = fresh || (even_empty && kind.is_full_state());
        self.send(kind, target, parts, even_empty)
    }

    fn send(
        &mut self,
        kind: &ResourceType,
        target: &Arc<Snapshot>,
        parts: Parts,
        even_empty: bool,
    ) -> Option<Response> {
        if parts.resources.is_empty() && parts.removed.is_empty() && !even_empty {
            return None;
        }
        if *kind == ResourceType::CLUSTER {
            self.follow_clusters(target, &parts);
        }
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let sub = self.types.get_mut(kind)?;
        for (name, r) in &parts.resources {
            // What is answered on unsubscribing is not followed any more.
            if sub.covers(name) {
                sub.known.insert(name.clone(), Some(r.version.clone()));
            }
        }
        for name in &parts.removed {
            if sub.names.contains(name) {
                sub.known.insert(name.clone(), None);
            } else {
                sub.known.remove(name);
            }
        }
        let empty = Resources::default();
        let version = target.of(kind).map_or(&empty, |r| r).version_with(sub.lingering.iter());
        sub.sent(nonce.clone(), version.clone());
        Some(Response(self.body(kind, parts, version, nonce)))
    }

    fn body(&self, kind: &ResourceType, parts: Parts, version: String, nonce: String) -> Body {
        let type_url = kind.url().to_owned();
        if self.protocol == Protocol::StateOfTheWorld {
            let resources: Vec<Bytes> = parts.resources.into_iter().map(|(_, r)| r.any).collect();
            return Body::Sotw(SotwResponse { version_info: version, resources, type_url, nonce });
        }
        let resource = |(name, r): (Arc<str>, Resource)| DeltaResource {
            version: r.version.to_string(),
            resource: Some(r.any),
            name: name.to_string(),
        };
        Body::Delta(DeltaResponse {
            system_version_info: version,
            resources: parts.resources.into_iter().map(resource).collect(),
            type_url,
            nonce,
            removed_resources: parts.removed.iter().map(ToString::to_string).collect(),
        })
    }

    /// Clusters are about to be sent. A changed one needs its endpoints again to warm up, even if they are
    /// the same, and so does one that comes back: its client has dropped them, whether or not its request
    /// that says so has arrived. A new one's endpoints will be asked for by a client that has asked for
    /// those of all others.
    fn follow_clusters(&mut self, target: &Snapshot, parts: &Parts) {
        let Some(clusters) = self.types.get(&ResourceType::CLUSTER) else { return };
        let differing = parts.resources.iter().filter(|(name, r)| !clusters.knows(name, &r.version));
        let differing: Vec<Arc<str>> = differing.flat_map(|(_, r)| r.needs.iter().cloned()).collect();
        let resource_of = |name: &Arc<str>| {
            target.get(&ResourceType::CLUSTER, name).or_else(|| clusters.lingering.get(name))
        };
        let before = clusters.known.keys().filter_map(resource_of);
        let before: Vec<Arc<str>> = before.flat_map(|r| r.needs.iter().cloned()).collect();
        let Some(endpoints) = self.types.get_mut(&ResourceType::ENDPOINTS) else { return };
        let eager = !before.is_empty() && before.iter().all(|n| endpoints.covers(n));
        for name in differing {
            if !endpoints.covers(&name) {
                if eager {
                    self.awaited.insert(name);
                }
            } else if target.get(&ResourceType::ENDPOINTS, &name).is_some()
                || endpoints.lingering.contains_key(&name)
            {
                endpoints.asked.insert(name, true);
            }
        }
    }
}
