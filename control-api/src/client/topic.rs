//! One type of resources: what is wanted of it, what the stream was told, what is held.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::types::{absence_deletes, type_url, Resource, TypeStatus, Wildcard};
use crate::pb::envoy::service::discovery::v3::ResourceError;

/// The name that asks for everything.
pub(super) const STAR: &str = "*";

/// One resource of a response, read but not yet checked.
#[derive(Debug, Default)]
pub struct Item {
    /// Empty where it could not be found.
    pub name: String,
    pub aliases: Vec<String>,
    pub version: String,
    /// Its type and encoded form; a heartbeat has none.
    pub body: Option<(String, Bytes)>,
    pub ttl: Option<Duration>,
}

/// A response in the form that both variants share.
#[derive(Debug, Default)]
pub struct Incoming {
    pub type_url: String,
    pub nonce: String,
    pub version: String,
    pub items: Vec<Item>,
    pub removed: Vec<String>,
    /// What could not even be read.
    pub problems: Vec<String>,
    /// Names that the control plane has an error for, with code and message.
    pub errors: Vec<(String, i32, String)>,
}

impl Incoming {
    /// Notes the errors of a response. One without a name says nothing.
    pub(super) fn note_errors(&mut self, errors: Vec<ResourceError>) {
        for ResourceError { resource_name, error_detail } in errors {
            let Some(name) = resource_name.map(|name| name.name).filter(|name| !name.is_empty()) else {
                continue;
            };
            let status = error_detail.unwrap_or_default();
            self.errors.push((name, status.code, status.message));
        }
    }
}

impl Incoming {
    /// What it holds in memory, nearly.
    pub(super) fn bytes(&self) -> usize {
        let item = |item: &Item| item.name.len() + item.body.as_ref().map_or(0, |(_, body)| body.len());
        let items: usize = self.items.iter().map(item).sum();
        items + self.removed.iter().map(String::len).sum::<usize>()
    }
}

/// What waits for its turn, in order.
#[derive(Debug)]
pub(super) enum Waiting {
    Response { incoming: Incoming, received: Instant, bytes: usize },
    Expired(String),
}

/// An update that the user has not judged yet.
#[derive(Debug)]
pub(super) struct InFlight {
    pub id: u64,
    pub generation: u64,
    pub received: Instant,
    /// None where there is nothing to answer.
    pub nonce: Option<String>,
    pub version: String,
    pub items: Vec<Held>,
    pub removed: Vec<String>,
    pub problems: Vec<String>,
    /// The size of the response, whose resources the user holds until the verdict.
    pub bytes: usize,
}

/// A resource without its body.
#[derive(Debug)]
pub(super) struct Held {
    pub name: String,
    pub aliases: Vec<String>,
    pub version: String,
    pub ttl: Option<Duration>,
}

/// An ACK, or with an error a NACK.
#[derive(Debug)]
pub struct Answer {
    pub nonce: String,
    /// The last accepted version, once this answer was found.
    pub version: String,
    pub error: Option<String>,
}

/// A response after the checks that need no knowledge of its resources.
#[derive(Debug)]
pub(super) struct Checked {
    pub added: Vec<(Resource, Option<Duration>)>,
    pub removed: Vec<String>,
    /// Held resources whose time to live starts anew.
    pub refreshed: Vec<(String, Option<Duration>)>,
    pub problems: Vec<String>,
    /// The user has to see it.
    pub deliver: bool,
}

/// The state of one type.
#[derive(Debug, Default)]
pub struct Topic {
    pub(super) url: String,
    pub(super) wildcard: Option<Wildcard>,
    /// Wanted names, and whether the stream knows.
    pub(super) names: BTreeMap<String, bool>,
    /// Names that the next request has to subscribe.
    pub(super) fresh: BTreeSet<String>,
    /// Names that it has to unsubscribe.
    pub(super) gone: BTreeSet<String>,
    /// The wanted names are not those the stream was told.
    pub(super) dirty: bool,
    /// The stream has seen a request of this type.
    pub(super) told: bool,
    /// It knows of the wildcard.
    pub(super) told_wildcard: bool,
    /// It was told a name, so that naming nothing now means nothing.
    pub(super) told_named: bool,
    /// The wildcard was given up, and the stream does not know; if wanted again, all has to be resent.
    pub(super) forgot_all: bool,
    /// No response was accepted since the stream was told of the wildcard.
    pub(super) wildcard_new: bool,
    /// Versions of the resources held.
    pub(super) known: HashMap<String, String>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) answers: VecDeque<Answer>,
    pub(super) last_nonce: String,
    /// A hash of the nonce of the response before, on the same stream.
    pub(super) nonce_before: Option<u64>,
    pub(super) accepted_version: String,
    pub(super) paused: bool,
    pub(super) received: Option<Instant>,
    pub(super) accepted: Option<Instant>,
    pub(super) accepted_total: u64,
    pub(super) rejected_total: u64,
    pub(super) last_rejection: Option<(String, String)>,
}

impl Topic {
    pub(super) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::default() }
    }

    /// Wants `name`; false if it was wanted before.
    pub(super) fn want(&mut self, name: &str) -> bool {
        if self.names.contains_key(name) {
            return false;
        }
        // Given up and wanted again before the stream heard of it: the stream still has to resend.
        let announced = self.gone.remove(name);
        self.names.insert(name.to_owned(), announced);
        self.fresh.insert(name.to_owned());
        self.dirty = true;
        true
    }

    /// Asks for `name` again, if it is wanted.
    pub(super) fn refresh(&mut self, name: &str) {
        if self.names.contains_key(name) {
            self.fresh.insert(name.to_owned());
            self.dirty = true;
        }
    }

    /// No longer wants `name`; false if it was not wanted.
    pub(super) fn unwant(&mut self, name: &str) -> bool {
        let Some(announced) = self.names.remove(name) else { return false };
        self.fresh.remove(name);
        if announced {
            self.gone.insert(name.to_owned());
        }
        if self.wildcard.is_none() {
            self.known.remove(name);
        }
        self.dirty = true;
        true
    }

    pub(super) fn want_all(&mut self, wildcard: Wildcard) -> bool {
        let new = self.wildcard.is_none();
        if new {
            self.wildcard = Some(wildcard);
            self.wildcard_new = true;
            self.dirty = true;
        }
        new
    }

    /// Ends the wildcard; the names forgotten with it.
    pub(super) fn unwant_all(&mut self) -> Vec<String> {
        if self.wildcard.take().is_none() {
            return Vec::new();
        }
        self.dirty = true;
        self.forgot_all = self.told_wildcard;
        let lost: Vec<String> =
            self.known.keys().filter(|name| !self.names.contains_key(*name)).cloned().collect();
        for name in &lost {
            self.known.remove(name);
        }
        lost
    }

    pub(super) fn wants_any(&self) -> bool {
        self.wildcard.is_some() || !self.names.is_empty()
    }

    pub(super) fn wants(&self, name: &str, aliases: &[String]) -> bool {
        self.wildcard.is_some()
            || self.names.contains_key(name)
            || aliases.iter().any(|alias| self.names.contains_key(alias))
    }

    /// A stream closed, and what was said and heard on it is void.
    pub(super) fn stream_closed(&mut self) {
        for announced in self.names.values_mut() {
            *announced = false;
        }
        self.fresh = self.names.keys().cloned().collect();
        self.gone.clear();
        self.dirty = true;
        self.told = false;
        self.told_wildcard = false;
        self.told_named = false;
        self.forgot_all = false;
        self.last_nonce.clear();
        self.nonce_before = None;
        self.answers.clear();
        self.waiting.retain(|waiting| matches!(waiting, Waiting::Expired(_)));
    }

    /// Checks what can be checked without decoding a resource.
    ///
    /// # Errors
    /// The whole response is to be refused for this.
    pub(super) fn check(&self, incoming: Incoming, full_state: bool) -> Result<Checked, String> {
        let mut seen = HashSet::with_capacity(incoming.items.len() + incoming.removed.len());
        for name in incoming.items.iter().map(|item| &item.name).chain(&incoming.removed) {
            if !name.is_empty() && !seen.insert(name.as_str()) {
                return Err(format!("duplicate resource name {name:?} in one response"));
            }
        }
        let absent: Vec<String> = if full_state && absence_deletes(&self.url) {
            let mut absent: Vec<_> =
                self.known.keys().filter(|name| !seen.contains(name.as_str())).cloned().collect();
            absent.sort_unstable();
            absent
        } else {
            Vec::new()
        };
        drop(seen);

        let count = incoming.items.len();
        let mut unnamed = !incoming.problems.is_empty();
        let mut added = Vec::with_capacity(count);
        let mut refreshed = Vec::new();
        let mut problems = incoming.problems;
        let mut unknown = Vec::new();
        for (index, item) in incoming.items.into_iter().enumerate() {
            let Item { name, aliases, version, body, ttl } = item;
            if name.is_empty() {
                unnamed = true;
                problems.push(format!("resource {index} of {count} has no name"));
                continue;
            }
            let Some((type_url, body)) = body else {
                match self.known.get(&name) {
                    Some(held) if *held == version => refreshed.push((name, ttl)),
                    _ if !self.wants(&name, &aliases) => {}
                    // How a host is answered that there is no virtual host for.
                    None if self.url == type_url::VIRTUAL_HOST => unknown.push(name),
                    Some(held) => problems.push(format!(
                        "{name}: no body, and no heartbeat either: its version is {version:?}, held is {held:?}"
                    )),
                    None => problems.push(format!("{name}: no body, and not held in any version")),
                }
                continue;
            };
            if type_url != incoming.type_url {
                problems.push(format!(
                    "{name}: is of type {type_url:?} in a response of type {:?}",
                    incoming.type_url
                ));
            } else if self.wants(&name, &aliases) {
                added.push((Resource { name, version, aliases, body }, ttl));
            }
        }

        let heartbeat = count > 0 && refreshed.len() == count && incoming.removed.is_empty();
        let mut removed: Vec<String> = incoming
            .removed
            .into_iter()
            .filter(|name| self.known.contains_key(name) || self.wants(name, &[]))
            .collect();
        removed.extend(unknown);
        // One that cannot be named may be any of those that seem absent.
        if !heartbeat && !unnamed {
            removed.extend(absent);
        }
        let news = !added.is_empty() || !removed.is_empty();
        let complete = self.wildcard.is_some() && !heartbeat && problems.is_empty();
        Ok(Checked { added, removed, refreshed, problems, deliver: news || complete })
    }

    /// The bytes of responses that have no verdict yet.
    pub(super) fn held_bytes(&self) -> usize {
        let waiting = |waiting: &Waiting| match waiting {
            Waiting::Response { bytes, .. } => *bytes,
            Waiting::Expired(_) => 0,
        };
        let in_flight = self.in_flight.as_ref().map_or(0, |in_flight| in_flight.bytes);
        self.waiting.iter().map(waiting).sum::<usize>() + in_flight
    }

    /// What is wrong with the nonce of a response, if anything: by it the server knows our answer.
    pub(super) fn odd_nonce(&mut self, nonce: &str) -> Option<&'static str> {
        let hash = xxhash_rust::xxh64::xxh64(nonce.as_bytes(), 0);
        let repeated = self.nonce_before.replace(hash) == Some(hash);
        match () {
            () if nonce.is_empty() => Some("response without a nonce"),
            () if repeated => Some("response with the nonce of the one before"),
            () => None,
        }
    }

    pub(super) fn status(&self) -> TypeStatus {
        TypeStatus {
            type_url: self.url.clone(),
            version: self.accepted_version.clone(),
            resources: self.known.len(),
            names: self.names.len(),
            wildcard: self.wildcard.is_some(),
            received: self.received,
            accepted: self.accepted,
            accepted_total: self.accepted_total,
            rejected_total: self.rejected_total,
            last_rejection: self.last_rejection.clone(),
            pending: self.waiting.len() + usize::from(self.in_flight.is_some()),
        }
    }
}
