//! Builds the responses of a stream: which resources go in, and what the client knows afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use prost::Message;

use super::kind::ResourceType;
use super::snapshot::{Resource, Resources, Snapshot};
use super::stream::{Protocol, StreamState};
use super::wire::{DeltaResource, DeltaResponse, SotwResponse, WRAPPER};
use crate::pb::google::protobuf::{self, Any};

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
    /// Names that nothing answers to, to be said as VHDS does.
    absent: Vec<Arc<str>>,
    /// Names whose resource has a name of its own.
    real: HashMap<Arc<str>, Arc<str>>,
    bytes: usize,
}

impl Parts {
    /// Says what has become of the one that answered before `own`.
    fn replace(&mut self, before: Option<&Arc<str>>, own: &Arc<str>, target: &Snapshot, kind: &ResourceType) {
        let Some(before) = before.filter(|before| *before != own) else { return };
        match target.get(kind, before) {
            Some(resource) => self.add(before, resource),
            None => self.removed.push(before.clone()),
        }
    }

    /// Adds what answers to `name`, and is called `own`.
    fn add_as(&mut self, name: &Arc<str>, own: &Arc<str>, resource: &Resource) {
        if name != own {
            self.real.insert(name.clone(), own.clone());
        }
        self.add(name, resource);
    }

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
            let mine: Vec<_> = all.filter(|(name, r)| sub.gets(name, r)).collect();
            sub.known.extend(mine.into_iter().map(|(name, r)| (name.clone(), Some(r.version.clone()))));
            sub.fresh = None;
            return;
        }
        for (name, r) in all {
            if sub.gets(name, r) && !sub.knows(name, &r.version) {
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
            let found = sub.answering(target, kind, &name).filter(|(_, r)| sub.gets(&name, r));
            if let Some((own, resource)) = found {
                sub.updates.remove(&name);
                if force || !sub.knows(&name, &resource.version) {
                    parts.replace(sub.real.get(&name), own, target, kind);
                    parts.add_as(&name, own, resource);
                }
            } else if sub.has(&name) && !force {
                sub.removals.insert(name);
            } else if force || !sub.known.contains_key(&name) {
                sub.removals.remove(&name);
                if *kind == ResourceType::VIRTUAL_HOST && sub.names.contains(&name) {
                    parts.absent.push(name);
                } else {
                    parts.removed.push(name);
                }
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
            match sub.answering(target, kind, &name) {
                Some((own, resource)) if !sub.knows(&name, &resource.version) => {
                    parts.replace(sub.real.get(&name), own, target, kind);
                    parts.add_as(&name, own, resource);
                }
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
                if sub.gets(name, r) {
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
        mut parts: Parts,
        even_empty: bool,
    ) -> Option<Response> {
        let nothing = parts.resources.is_empty() && parts.removed.is_empty() && parts.absent.is_empty();
        if nothing && !even_empty {
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
                match r.ttl.filter(|_| self.ttl) {
                    Some(ttl) => {
                        sub.ttls.insert(name.clone(), ttl);
                        sub.beat_at = None;
                    }
                    None => drop(sub.ttls.remove(name)),
                }
                match parts.real.get(name) {
                    Some(own) => drop(sub.real.insert(name.clone(), own.clone())),
                    None => drop(sub.real.remove(name)),
                }
            }
        }
        for name in &parts.absent {
            sub.known.insert(name.clone(), None);
        }
        for name in &mut parts.removed {
            sub.ttls.remove(name);
            if sub.names.contains(name) {
                sub.known.insert(name.clone(), None);
            } else {
                sub.known.remove(name);
            }
            if let Some(own) = sub.real.remove(name) {
                *name = own;
            }
        }
        parts.removed.sort_unstable();
        parts.removed.dedup();
        let empty = Resources::default();
        let version = target.of(kind).map_or(&empty, |r| r).version_with(sub.lingering.iter());
        sub.sent(nonce.clone(), version.clone());
        Some(Response(self.body(kind, parts, version, nonce)))
    }

    fn body(&self, kind: &ResourceType, parts: Parts, version: String, nonce: String) -> Body {
        let type_url = kind.url().to_owned();
        if self.protocol == Protocol::StateOfTheWorld {
            let packed = |(name, r): (Arc<str>, Resource)| match r.ttl.filter(|_| self.ttl) {
                Some(ttl) => wrapped(&name, &r.version, Some(r.any), Some(ttl)),
                None => r.any,
            };
            let resources: Vec<Bytes> = parts.resources.into_iter().map(packed).collect();
            return Body::Sotw(SotwResponse { version_info: version, resources, type_url, nonce });
        }
        let mut resources: Vec<DeltaResource> = Vec::with_capacity(parts.resources.len());
        // Where a resource is that other names stand for; a response names none twice.
        let mut places: HashMap<Arc<str>, usize> = HashMap::new();
        for (name, r) in parts.resources {
            let own = parts.real.get(&name);
            let alias = own.map(|_| name.to_string());
            let own = own.unwrap_or(&name);
            if !parts.real.is_empty() {
                if let Some(before) = places.get(own).and_then(|at| resources.get_mut(*at)) {
                    before.aliases.extend(alias);
                    continue;
                }
                places.insert(own.clone(), resources.len());
            }
            resources.push(DeltaResource {
                version: r.version.to_string(),
                resource: Some(r.any),
                name: own.to_string(),
                aliases: alias.into_iter().collect(),
                ttl: r.ttl.filter(|_| self.ttl).map(duration),
            });
        }
        resources.extend(parts.absent.iter().map(|name| {
            let name = name.to_string();
            DeltaResource { aliases: vec![name.clone()], name, ..DeltaResource::default() }
        }));
        Body::Delta(DeltaResponse {
            system_version_info: version,
            resources,
            type_url,
            nonce,
            removed_resources: parts.removed.iter().map(ToString::to_string).collect(),
        })
    }

    /// Names of resources with a time to live, with their versions, but without their content.
    pub(super) fn heartbeat(&mut self, kind: &ResourceType, target: &Arc<Snapshot>) -> Option<Response> {
        let sub = self.types.get_mut(kind)?;
        let alive = sub.ttls.keys().filter_map(|name| {
            let (own, resource) = target.answering(kind, name)?;
            sub.knows(name, &resource.version).then(|| (own.clone(), resource.version.clone(), resource.ttl))
        });
        let alive: BTreeMap<Arc<str>, (Arc<str>, Option<Duration>)> =
            alive.map(|(own, version, ttl)| (own, (version, ttl))).collect();
        if alive.is_empty() {
            return None;
        }
        // Whose time has become unlimited is named one last time.
        sub.ttls.retain(|name, _| target.answering(kind, name).is_some_and(|(_, r)| r.ttl.is_some()));
        self.nonce += 1;
        let (nonce, version) = (self.nonce.to_string(), sub.version_sent.clone());
        sub.sent(nonce.clone(), version.clone());
        let type_url = kind.url().to_owned();
        if self.protocol == Protocol::StateOfTheWorld {
            let wrap = |(name, (version, ttl)): (&Arc<str>, &(Arc<str>, Option<Duration>))| {
                wrapped(name, version, None, *ttl)
            };
            let resources = alive.iter().map(wrap).collect();
            return Some(Response(Body::Sotw(SotwResponse {
                version_info: version,
                resources,
                type_url,
                nonce,
            })));
        }
        let resource = |(name, (version, ttl)): (Arc<str>, (Arc<str>, Option<Duration>))| DeltaResource {
            name: name.to_string(),
            version: version.to_string(),
            ttl: ttl.map(duration),
            ..DeltaResource::default()
        };
        Some(Response(Body::Delta(DeltaResponse {
            system_version_info: version,
            resources: alive.into_iter().map(resource).collect(),
            type_url,
            nonce,
            removed_resources: Vec::new(),
        })))
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

fn duration(of: Duration) -> protobuf::Duration {
    let seconds = i64::try_from(of.as_secs()).unwrap_or(i64::MAX);
    // Less than a thousand million.
    let nanos = i32::try_from(of.subsec_nanos()).unwrap_or_default();
    protobuf::Duration { seconds, nanos }
}

/// A resource of the state of the world with a name, a version and a time to live.
fn wrapped(name: &str, version: &str, resource: Option<Bytes>, ttl: Option<Duration>) -> Bytes {
    let (name, version, ttl) = (name.to_owned(), version.to_owned(), ttl.map(duration));
    let value = DeltaResource { name, version, resource, ttl, aliases: Vec::new() }.encode_to_vec();
    Any { type_url: WRAPPER.to_owned(), value }.encode_to_vec().into()
}
