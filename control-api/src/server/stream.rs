//! One discovery stream without its transport.
//!
//! In: the client's requests, new snapshots, the time. Out: responses, one at a time and only as many as
//! the caller asks for, so that a slow client costs one set of names, never a queue. Whatever the client
//! asks for is answered at once; changes are pushed make-before-break (see [`super`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kind::ResourceType;
use super::response::Response;
use super::snapshot::Snapshot;
use super::subscription::{Nack, Subscription, WILDCARD};
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::pb::google::rpc::Status;

/// The two forms of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Responses hold whole states.
    StateOfTheWorld,
    /// Responses hold differences.
    Delta,
}

/// What bounds one stream.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a change waits for the client to settle what it depends on, before it is sent all the
    /// same. 5 s.
    pub patience: Duration,
    /// Where a delta response is split, in bytes of resources. 2 MiB: gRPC clients refuse 4 MiB.
    pub response_bytes: usize,
    /// The most names of one type that a client may subscribe to. 1,000,000.
    pub names: usize,
    /// The most types on one stream. 64.
    pub types: usize,
    /// The most connections at a time; more wait to be accepted. 10,000.
    pub connections: usize,
    /// The most streams on one connection at a time. 100.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(5),
            response_bytes: 2 * 1024 * 1024,
            names: 1_000_000,
            types: 64,
            connections: 10_000,
            streams: 100,
        }
    }
}

/// Why a stream must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The request does not say what it asks for, and the service does not either.
    #[error("the request has no type_url")]
    NoType,
    /// A service of one type was asked for another.
    #[error("this service serves {serves}, not {asked}")]
    WrongType {
        /// The type of the service.
        serves: String,
        /// The type asked for.
        asked: String,
    },
    /// More than [`Limits::types`].
    #[error("more than {limit} resource types on one stream")]
    TooManyTypes {
        /// The limit.
        limit: usize,
    },
    /// More than [`Limits::names`].
    #[error("more than {limit} subscribed names of type {kind}")]
    TooManyNames {
        /// The type.
        kind: String,
        /// The limit.
        limit: usize,
    },
}

/// What a request said about an earlier response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    None,
    /// The response with this version was accepted.
    Ack {
        /// The type.
        kind: ResourceType,
        /// The version accepted.
        version: String,
    },
    /// The response was refused.
    Nack {
        /// The type.
        kind: ResourceType,
        /// Why.
        nack: Nack,
    },
}

/// One stream: [`on_delta`](Self::on_delta) or [`on_sotw`](Self::on_sotw) for each request,
/// [`set_target`](Self::set_target) for each snapshot; after each, and at [`deadline`](Self::deadline),
/// [`poll`](Self::poll) until it has nothing more.
#[derive(Debug)]
pub struct StreamState {
    pub(super) protocol: Protocol,
    pub(super) limits: Limits,
    /// The only type of a separate stream.
    only: Option<ResourceType>,
    pub(super) target: Option<Arc<Snapshot>>,
    pub(super) types: BTreeMap<ResourceType, Subscription>,
    pub(super) nonce: u64,
    /// Since when something waits for the client.
    held_since: Option<Instant>,
    /// The client knows of times to live.
    pub(super) ttl: bool,
    /// Endpoints of clusters just announced, which a client that subscribes to all of them will ask for.
    pub(super) awaited: BTreeSet<Arc<str>>,
}

impl StreamState {
    /// A new stream; `only` for a service of one type.
    #[must_use]
    pub fn new(protocol: Protocol, only: Option<ResourceType>, limits: Limits) -> Self {
        Self {
            protocol,
            limits,
            only,
            target: None,
            types: BTreeMap::new(),
            nonce: 0,
            held_since: None,
            ttl: false,
            awaited: BTreeSet::new(),
        }
    }

    /// What the client says that it can, in `node.client_features`.
    pub fn set_client_features(&mut self, features: &[String]) {
        let has = |feature: &str| features.iter().any(|f| f == feature);
        let sotw = self.protocol == Protocol::StateOfTheWorld;
        let wrapped = !sotw || has("xds.config.supports-resource-in-sotw");
        self.ttl = wrapped && has("xds.config.supports-resource-ttl");
    }

    /// The form of the protocol that the stream speaks.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What the client shall have from now on.
    pub fn set_target(&mut self, snapshot: Arc<Snapshot>) {
        let old = self.target.take();
        let empty = Snapshot::new();
        for (kind, subscription) in &mut self.types {
            for name in old.as_deref().unwrap_or(&empty).changed(&snapshot, kind) {
                subscription.changed(kind, name, old.as_deref(), &snapshot);
            }
            if *kind == ResourceType::VIRTUAL_HOST {
                subscription.rehost(&snapshot);
            }
        }
        self.target = Some(snapshot);
    }

    /// A delta request.
    ///
    /// # Errors
    /// The stream must end: the request breaks a limit or names no type.
    pub fn on_delta(&mut self, request: DeltaDiscoveryRequest, now: Instant) -> Result<Verdict, StreamError> {
        let (kind, first) = self.kind_of(&request.type_url)?;
        let limit = self.limits.names;
        let sub = self.types.entry(kind.clone()).or_default();
        let verdict = if first {
            Verdict::None
        } else {
            judge(sub, &kind, &request.response_nonce, request.error_detail, now)
        };
        if first {
            for (name, version) in request.initial_resource_versions {
                sub.known.insert(name.into(), Some(version.into()));
            }
        }
        let nothing = request.resource_names_subscribe.is_empty();
        let legacy = first && nothing && request.resource_names_unsubscribe.is_empty();
        let wildcard = legacy || request.resource_names_subscribe.iter().any(|n| n == WILDCARD);
        if wildcard && !sub.wildcard {
            sub.wildcard = true;
            sub.fresh = Some(String::new());
        }
        for name in request.resource_names_subscribe.into_iter().filter(|n| n != WILDCARD) {
            let name: Arc<str> = name.into();
            // Only on a first message does the client say what it has; later, asking means lacking.
            let force = !(first && sub.has(&name));
            sub.asked.insert(name.clone(), force);
            self.awaited.remove(&name);
            sub.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                sub.wildcard = false;
                sub.forget_uncovered();
            } else if sub.names.remove(name.as_str()) {
                if sub.wildcard {
                    sub.asked.insert(name.into(), true);
                } else {
                    sub.forget(&name);
                }
            }
        }
        if first && !sub.wildcard {
            sub.forget_uncovered();
        }
        too_many(sub, &kind, limit)?;
        Ok(verdict)
    }

    /// A state-of-the-world request.
    ///
    /// # Errors
    /// The stream must end: the request breaks a limit or names no type.
    pub fn on_sotw(&mut self, request: DiscoveryRequest, now: Instant) -> Result<Verdict, StreamError> {
        let (kind, first) = self.kind_of(&request.type_url)?;
        let limit = self.limits.names;
        let sub = self.types.entry(kind.clone()).or_default();
        let nonce = request.response_nonce;
        if !sub.last_nonce.is_empty() && !nonce.is_empty() && nonce != sub.last_nonce {
            return Ok(Verdict::None);
        }
        let refused = request.error_detail.is_some();
        let verdict = judge(sub, &kind, &nonce, request.error_detail, now);
        let empty = request.resource_names.is_empty();
        let wildcard = (empty && !sub.named) || request.resource_names.iter().any(|n| n == WILDCARD);
        sub.named |= !empty;
        let names: BTreeSet<Arc<str>> =
            request.resource_names.into_iter().filter(|n| n != WILDCARD).map(Into::into).collect();
        let same = names == sub.names && wildcard == sub.wildcard;
        if wildcard && !sub.wildcard {
            sub.fresh = Some(if first { request.version_info } else { String::new() });
        }
        sub.wildcard = wildcard;
        for name in names.difference(&sub.names) {
            sub.asked.insert(name.clone(), true);
            self.awaited.remove(name);
        }
        // Neither a change nor a verdict: the client asks for all of it once more, as Envoy does when a
        // cluster warms up. What it has in full it does not ask for like this.
        if same && !first && !refused && verdict == Verdict::None && !nonce.is_empty() {
            sub.asked.extend(names.iter().map(|n| (n.clone(), true)));
        }
        sub.names = names;
        if !same {
            sub.forget_uncovered();
        }
        too_many(sub, &kind, limit)?;
        Ok(verdict)
    }

    /// The next response, if one is due.
    pub fn poll(&mut self, now: Instant) -> Option<Response> {
        let target = self.target.clone()?;
        let kinds: Vec<ResourceType> = self.types.keys().cloned().collect();
        for kind in &kinds {
            self.expand(kind, &target);
            if self.types.get(kind).is_some_and(Subscription::must_answer) {
                if let Some(response) = self.answer(kind, &target) {
                    return Some(response);
                }
            }
        }
        let impatient =
            self.held_since.is_some_and(|s| now.saturating_duration_since(s) >= self.limits.patience);
        if impatient {
            self.awaited.clear();
        }
        let sent = self.push(&kinds, &target, impatient).or_else(|| self.retract(&target, impatient));
        let waiting = self.types.values().any(|s| !s.updates.is_empty() || !s.removals.is_empty());
        if !waiting {
            self.held_since = None;
        } else if self.held_since.is_none() || (sent.is_some() && !impatient) {
            self.held_since = Some(now);
        }
        sent.or_else(|| self.beat(&kinds, &target, now))
    }

    /// When [`poll`](Self::poll) is to be called though nothing happened.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.held_since.map(|since| since + self.limits.patience);
        let idle = self.types.values().filter(|s| s.outstanding.is_empty());
        held.into_iter().chain(idle.filter_map(|s| s.beat_at)).min()
    }

    /// A sign of life for resources with a time to live, if one is due.
    fn beat(&mut self, kinds: &[ResourceType], target: &Arc<Snapshot>, now: Instant) -> Option<Response> {
        for kind in kinds {
            let Some(sub) = self.types.get_mut(kind) else { continue };
            let due = sub.beat_at.is_some_and(|at| at <= now) && sub.outstanding.is_empty();
            if due || sub.beat_at.is_none() {
                sub.beat_at = sub.ttls.values().min().and_then(|ttl| now.checked_add(*ttl / 2));
            }
            if due {
                if let Some(response) = self.heartbeat(kind, target) {
                    return Some(response);
                }
            }
        }
        None
    }

    /// Changes, in the order of types.
    fn push(&mut self, kinds: &[ResourceType], target: &Arc<Snapshot>, impatient: bool) -> Option<Response> {
        for kind in kinds {
            let Some(sub) = self.types.get(kind).filter(|s| !s.updates.is_empty()) else {
                continue;
            };
            let due = impatient || (sub.outstanding.is_empty() && self.is_clear(kind));
            if due {
                if let Some(response) = self.update(kind, target) {
                    return Some(response);
                }
            }
        }
        None
    }

    /// True when nothing that `kind` may point at is still under way.
    fn is_clear(&self, kind: &ResourceType) -> bool {
        let waits_for =
            |(other, sub): (&ResourceType, &Subscription)| !sub.is_settled() && other.is_waited_for_by(kind);
        !kind.waits() || (self.awaited.is_empty() && !self.types.iter().any(waits_for))
    }

    /// Removals, once every addition has settled; what points at others first.
    fn retract(&mut self, target: &Arc<Snapshot>, impatient: bool) -> Option<Response> {
        loop {
            let settled = self.awaited.is_empty() && self.types.values().all(Subscription::is_settled);
            if !settled && !impatient {
                return None;
            }
            let owed = self.types.iter().filter(|(_, s)| !s.removals.is_empty());
            let kind = owed.map(|(k, _)| k).min_by_key(|k| k.removal_rank())?.clone();
            if let Some(response) = self.remove(&kind, target) {
                return Some(response);
            }
        }
    }

    fn kind_of(&self, url: &str) -> Result<(ResourceType, bool), StreamError> {
        let kind = match (&self.only, url) {
            (None, "") => return Err(StreamError::NoType),
            (Some(only), url) if url.is_empty() || url == only.url() => only.clone(),
            (Some(only), url) => {
                let (serves, asked) = (only.url().to_owned(), url.to_owned());
                return Err(StreamError::WrongType { serves, asked });
            }
            (None, url) => ResourceType::from_url(url),
        };
        let first = !self.types.contains_key(&kind);
        if first && self.types.len() >= self.limits.types {
            return Err(StreamError::TooManyTypes { limit: self.limits.types });
        }
        Ok((kind, first))
    }
}

fn too_many(sub: &Subscription, kind: &ResourceType, limit: usize) -> Result<(), StreamError> {
    if sub.names.len() > limit || sub.known.len() > limit.saturating_add(sub.names.len()) {
        return Err(StreamError::TooManyNames { kind: kind.url().to_owned(), limit });
    }
    Ok(())
}

/// Books what a request says about the response with `nonce`.
fn judge(
    sub: &mut Subscription,
    kind: &ResourceType,
    nonce: &str,
    error: Option<Status>,
    now: Instant,
) -> Verdict {
    let Some(version) = sub.judged(nonce) else {
        return Verdict::None;
    };
    let kind = kind.clone();
    if let Some(Status { code, message, .. }) = error {
        let nack = Nack { version, code, message, at: now };
        sub.nacks += 1;
        sub.last_nack = Some(nack.clone());
        return Verdict::Nack { kind, nack };
    }
    sub.acks += 1;
    sub.version_acked.clone_from(&version);
    Verdict::Ack { kind, version }
}
