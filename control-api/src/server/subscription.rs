//! What one stream's client wants of one type, what it has been sent, and what it is owed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kind::ResourceType;
use super::snapshot::{Resource, Snapshot};

/// The most responses of one type whose acknowledgement is still told apart.
const MAX_OUTSTANDING: usize = 32;

/// The name that stands for every resource.
pub(super) const WILDCARD: &str = "*";

/// A response that the client has not judged yet.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub nonce: String,
    pub version: String,
}

/// A response that the client refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The version refused.
    pub version: String,
    /// The client's gRPC code.
    pub code: i32,
    /// The client's words.
    pub message: String,
    /// When it arrived.
    pub at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// Every resource is wanted.
    pub wildcard: bool,
    /// A state-of-the-world client has named something, so that an empty list no longer means everything.
    pub named: bool,
    /// What is wanted by name.
    pub names: BTreeSet<Arc<str>>,
    /// The version that the client was sent or said it has; `None` after it was told that there is none.
    pub known: HashMap<Arc<str>, Option<Arc<str>>>,
    /// Names whose resource has a name of its own.
    pub real: HashMap<Arc<str>, Arc<str>>,
    /// Times to live of what the client has.
    pub ttls: BTreeMap<Arc<str>, Duration>,
    /// When the client is to hear of these again.
    pub beat_at: Option<Instant>,
    /// Names to answer at once; true when even unchanged.
    pub asked: BTreeMap<Arc<str>, bool>,
    /// The wildcard has just been asked for: everything is to be answered, with what the client has.
    pub fresh: Option<String>,
    /// Wanted names whose resource is newer than what the client has. Coalesced: one entry a name.
    pub updates: BTreeSet<Arc<str>>,
    /// Names that the client has and shall lose.
    pub removals: BTreeSet<Arc<str>>,
    /// Their resources, kept for full responses until the removal's turn comes.
    pub lingering: BTreeMap<Arc<str>, Resource>,
    pub outstanding: VecDeque<Sent>,
    pub last_nonce: String,
    pub version_sent: String,
    pub version_acked: String,
    pub acks: u64,
    pub nacks: u64,
    pub last_nack: Option<Nack>,
}

impl Subscription {
    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Like [`covers`](Self::covers), for a resource that may be served by name only.
    pub(super) fn gets(&self, name: &str, resource: &Resource) -> bool {
        (self.wildcard && !resource.by_name_only) || self.names.contains(name)
    }

    /// Nothing owed but removals, and every response judged.
    pub(super) fn is_settled(&self) -> bool {
        self.outstanding.is_empty() && self.updates.is_empty() && !self.must_answer()
    }

    pub(super) fn must_answer(&self) -> bool {
        self.fresh.is_some() || !self.asked.is_empty()
    }

    pub(super) fn knows(&self, name: &str, version: &str) -> bool {
        matches!(self.known.get(name), Some(Some(known)) if **known == *version)
    }

    /// True when the client has some version of it.
    pub(super) fn has(&self, name: &str) -> bool {
        matches!(self.known.get(name), Some(Some(_)))
    }

    /// Notes that the resource `name` is different in `new`.
    pub(super) fn changed(
        &mut self,
        kind: &ResourceType,
        name: Arc<str>,
        old: Option<&Snapshot>,
        new: &Snapshot,
    ) {
        if !self.covers(&name) {
            return;
        }
        if let Some(resource) = new.get(kind, &name) {
            if !self.gets(&name, resource) && !self.has(&name) {
                return;
            }
            self.removals.remove(&name);
            self.lingering.remove(&name);
            if self.knows(&name, &resource.version) {
                self.updates.remove(&name);
            } else {
                self.updates.insert(name);
            }
            return;
        }
        self.updates.remove(&name);
        if self.has(&name) {
            if let Some(resource) = old.and_then(|s| s.get(kind, &name)) {
                self.lingering.insert(name.clone(), resource.clone());
            }
            self.removals.insert(name);
        }
    }

    /// Looks anew which virtual hosts answer for the host names asked for.
    pub(super) fn rehost(&mut self, new: &Snapshot) {
        let kind = ResourceType::VIRTUAL_HOST;
        let names: Vec<Arc<str>> = self.names.iter().cloned().collect();
        for name in names {
            if new.get(&kind, &name).is_some() {
                continue;
            }
            match self.answering(new, &kind, &name) {
                Some((_, resource)) => {
                    self.removals.remove(&name);
                    if self.knows(&name, &resource.version) {
                        self.updates.remove(&name);
                    } else {
                        self.updates.insert(name);
                    }
                }
                None => {
                    self.updates.remove(&name);
                    if self.has(&name) {
                        self.removals.insert(name);
                    }
                }
            }
        }
    }

    /// The resource for `name`. A virtual host that answers to it no longer is followed all the same, so
    /// that the client hears of that.
    pub(super) fn answering<'a>(
        &self,
        target: &'a Snapshot,
        kind: &ResourceType,
        name: &str,
    ) -> Option<(&'a Arc<str>, &'a Resource)> {
        target.answering(kind, name).or_else(|| target.answering(kind, self.real.get(name)?))
    }

    /// The name is no longer wanted.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.asked.remove(name);
        self.updates.remove(name);
        self.removals.remove(name);
        self.lingering.remove(name);
        self.real.remove(name);
        self.ttls.remove(name);
    }

    /// Drops everything that is no longer covered.
    pub(super) fn forget_uncovered(&mut self) {
        let Self { names, wildcard, .. } = self;
        if *wildcard {
            return;
        }
        self.known.retain(|n, _| names.contains(n));
        self.asked.retain(|n, _| names.contains(n));
        self.updates.retain(|n| names.contains(n));
        self.removals.retain(|n| names.contains(n));
        self.lingering.retain(|n, _| names.contains(n));
        self.real.retain(|n, _| names.contains(n));
        self.ttls.retain(|n, _| names.contains(n));
        self.fresh = None;
    }

    pub(super) fn sent(&mut self, nonce: String, version: String) {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.last_nonce.clone_from(&nonce);
        self.version_sent.clone_from(&version);
        self.outstanding.push_back(Sent { nonce, version });
    }

    /// The client's judgement of the response with this nonce: its version, or `None` for a nonce that is
    /// stale or not ours. Earlier responses count as judged too.
    pub(super) fn judged(&mut self, nonce: &str) -> Option<String> {
        let at = self.outstanding.iter().position(|s| s.nonce == nonce)?;
        self.outstanding.drain(..=at).next_back().map(|s| s.version)
    }
}
