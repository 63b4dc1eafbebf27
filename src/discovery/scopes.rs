//! Scoped routes: SRDS.
//!
//! In: encoded scopes, and which connection managers need them. Out: filled slots of scopes, route
//! tables that are asked for (at once, or offered to requests that want them), and verdicts. Two scopes
//! with the same key cannot be in force together: the one that came later is refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_control_api::client::{Rejection, Update};

use super::effects::{Effects, SRDS};
use super::resource::{Refused, Stored};
use super::routes::{RouteKey, Routes};
use super::sources::StreamId;
use super::stats::ScopesStats;
use crate::config::compile::resource::{Compiler, RouteNeed, ScopesNeed};
use crate::config::compile::scoped::{conflict_text, ScopeConfig, ScopeTableRef};
use crate::config::discovery::ConfigSource;
use crate::config::scopes::{Scope, ScopeKey, ScopeTable};
use crate::config::{Problem, Slot};

/// Refused scopes kept for the admin page of which no version was ever good.
const MAX_NEVER_GOOD: usize = 64;

/// The scopes of a connection manager: the stream that brings them, and the one that brings their tables.
pub(super) type ScopesKey = (StreamId, StreamId);

/// Under which prefix, and by which name for its scopes, a connection manager counts.
type User = (Arc<str>, Arc<str>);

/// All scopes that connection managers need.
pub(super) struct Scopes {
    compiler: Arc<Compiler>,
    feeds: BTreeMap<StreamId, Feed>,
}

/// The scopes that come from one stream: it brings all there are, whoever asks.
#[derive(Default)]
pub(super) struct Feed {
    pub(super) version: String,
    pub(super) updated: Option<SystemTime>,
    pub(super) held: BTreeMap<Arc<str>, Held>,
    pub(super) refused: BTreeMap<Arc<str>, Refused>,
    answered: bool,
    groups: BTreeMap<StreamId, Group>,
}

/// One scope.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) stored: Stored,
    config: Arc<ScopeConfig>,
}

/// The connection managers that take the tables of a feed's scopes from one stream.
struct Group {
    tables: ConfigSource,
    slot: Arc<Slot<ScopeTable>>,
    users: usize,
    stats: Vec<(User, ScopesStats)>,
    /// The tables of the scopes in force; the others are offered.
    wanted: Vec<RouteKey>,
    offered: Vec<RouteKey>,
}

impl Scopes {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self { compiler, feeds: BTreeMap::new() }
    }

    /// One listener more needs these scopes.
    pub(super) fn want(
        &mut self,
        key: ScopesKey,
        need: &ScopesNeed,
        routes: &mut Routes,
        effects: &mut Effects,
    ) {
        let feed = self.feeds.entry(key.0).or_insert_with(|| {
            effects.subscribe_all(key.0, SRDS, need.source.initial_fetch_timeout);
            Feed::default()
        });
        let group = feed.groups.entry(key.1).or_insert_with(|| Group {
            tables: need.tables.clone(),
            slot: need.slot.clone(),
            users: 0,
            stats: Vec::new(),
            wanted: Vec::new(),
            offered: Vec::new(),
        });
        group.users += 1;
        for (prefix, name) in &need.users {
            let user = (prefix.clone(), name.clone());
            if !group.stats.iter().any(|(known, _)| *known == user) {
                let stats = ScopesStats::of_scopes(prefix, name);
                stats.update_attempt.increment(1);
                group.stats.push((user, stats));
            }
        }
        // What was known before serves at once.
        if feed.answered {
            group.rebuild(key.1, &feed.held, &self.compiler, routes, effects);
        }
    }

    /// One listener less needs them.
    pub(super) fn release(&mut self, key: ScopesKey, routes: &mut Routes, effects: &mut Effects) {
        let Some(feed) = self.feeds.get_mut(&key.0) else { return };
        let Some(group) = feed.groups.get_mut(&key.1) else { return };
        group.users -= 1;
        if group.users > 0 {
            return;
        }
        if let Some(group) = feed.groups.remove(&key.1) {
            group.wanted.iter().for_each(|table| routes.release(table, effects));
            group.offered.iter().for_each(|table| routes.withdraw(table, effects));
            group.slot.set(None);
        }
        if feed.groups.is_empty() {
            self.feeds.remove(&key.0);
            effects.unsubscribe_all(key.0, SRDS);
        }
    }

    /// Whether the scopes and the tables that are not on demand are there, or will not come soon.
    pub(super) fn is_met(&self, key: ScopesKey, replaces: bool, routes: &Routes) -> bool {
        let Some(feed) = self.feeds.get(&key.0) else { return true };
        let Some(group) = feed.groups.get(&key.1) else { return true };
        let met = |table: &RouteKey| match replaces {
            true => routes.is_answered(table),
            false => routes.is_settled(table),
        };
        feed.answered && group.wanted.iter().all(met)
    }

    /// Scopes that came or went.
    pub(super) fn update(
        &mut self,
        stream: StreamId,
        update: &Update,
        routes: &mut Routes,
        effects: &mut Effects,
    ) -> Vec<Rejection> {
        let Some(feed) = self.feeds.get_mut(&stream) else { return Vec::new() };
        let began = Instant::now();
        let mut refused: BTreeMap<Arc<str>, Vec<Problem>> = BTreeMap::new();
        let mut next = feed.held.clone();
        let mut changed: BTreeSet<Arc<str>> = BTreeSet::new();
        for name in &update.removed {
            next.remove(name.as_str());
            feed.refused.remove(name.as_str());
        }
        for resource in &update.added {
            let name: Arc<str> = resource.name.as_str().into();
            if let Some(held) = next.get_mut(&name).filter(|held| held.stored.is(resource)) {
                held.stored.confirm(resource);
                feed.refused.remove(&name);
                continue;
            }
            match self.compiler.scope(&resource.body) {
                Ok(compiled) if compiled.name == name => {
                    effects.warn(&name, compiled.warnings);
                    let config = Arc::new(compiled.value);
                    next.insert(name.clone(), Held { stored: Stored::new(resource), config });
                    changed.insert(name);
                }
                Ok(compiled) => {
                    let other = &compiled.name;
                    let message = format!("the resource is called {name:?} and the scope {other:?}");
                    refused.insert(name, vec![Problem::new("name", message)]);
                }
                Err(problems) => drop(refused.insert(name, problems)),
            }
        }
        loop {
            let conflicts = conflicting(&next);
            if conflicts.is_empty() {
                break;
            }
            for (one, other) in conflicts {
                // The one that is new goes; of two new ones the later.
                let is_new = |name: &Arc<str>| changed.contains(name);
                let (winner, loser) = if is_new(&other) { (one, other) } else { (other, one) };
                let problem = Problem::new("key", conflict_text(&winner, &loser));
                match feed.held.get(&loser).filter(|_| is_new(&loser)) {
                    Some(before) => drop(next.insert(loser.clone(), before.clone())),
                    None => drop(next.remove(&loser)),
                }
                changed.remove(&loser);
                refused.insert(loser, vec![problem]);
            }
        }
        let gone = feed.held.keys().any(|name| !next.contains_key(name));
        let news = gone || !changed.is_empty();
        changed.iter().for_each(|name| drop(feed.refused.remove(name)));
        feed.held = next;
        let first = !std::mem::replace(&mut feed.answered, true);
        if refused.is_empty() && !update.flawed {
            feed.version.clone_from(&update.version);
        }
        if news {
            feed.updated = Some(SystemTime::now());
        }
        for (stream, group) in &mut feed.groups {
            if news || first {
                group.rebuild(*stream, &feed.held, &self.compiler, routes, effects);
            }
            for (_, stats) in &group.stats {
                stats.update_attempt.increment(1);
                if update.added.is_empty() && update.removed.is_empty() {
                    stats.update_empty.increment(1);
                }
                match refused.is_empty() && !update.flawed {
                    true => stats.succeeded(&update.version, SystemTime::now(), began.elapsed()),
                    false => stats.update_rejected.increment(1),
                }
                if news {
                    stats.reloaded(SystemTime::now());
                }
            }
        }
        feed.refuse(refused, update)
    }

    /// The control plane has given no scopes in time.
    pub(super) fn absent(&mut self, stream: StreamId) {
        let Some(feed) = self.feeds.get_mut(&stream) else { return };
        feed.answered = true;
        for (_, stats) in feed.groups.values().flat_map(|group| &group.stats) {
            stats.init_fetch_timeout.increment(1);
        }
    }

    /// The stream could not be opened, or broke.
    pub(super) fn failed(&self, stream: StreamId) {
        let feed = self.feeds.get(&stream);
        for (_, stats) in feed.iter().flat_map(|feed| feed.groups.values()).flat_map(|group| &group.stats) {
            stats.update_attempt.increment(1);
            stats.update_failure.increment(1);
        }
    }

    /// Sets the gauges of scopes whose tables are there or asked for.
    pub(super) fn publish(&self, routes: &Routes) {
        for group in self.feeds.values().flat_map(|feed| feed.groups.values()) {
            let active = group.offered.iter().filter(|key| routes.is_wanted(key)).count();
            for (_, stats) in &group.stats {
                stats.active_scopes.set((group.fixed() + active) as f64);
            }
        }
    }

    pub(super) fn feeds(&self) -> impl Iterator<Item = (StreamId, &Feed)> {
        self.feeds.iter().map(|(stream, feed)| (*stream, feed))
    }
}

impl Feed {
    /// The names that connection managers have for their scopes.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.groups.values().flat_map(|group| &group.stats).map(|((_, name), _)| name)
    }

    fn refuse(&mut self, refused: BTreeMap<Arc<str>, Vec<Problem>>, update: &Update) -> Vec<Rejection> {
        let mut rejections = Vec::with_capacity(refused.len());
        for (name, problems) in refused {
            let Some(resource) = update.added.iter().find(|resource| *resource.name == *name) else {
                continue;
            };
            let known = self.held.contains_key(&name);
            let refused = Refused::new(resource, &problems);
            rejections.push(refused.rejection(&name));
            if known || self.refused.len() < MAX_NEVER_GOOD {
                self.refused.insert(name, refused);
            }
        }
        rejections
    }
}

/// Scopes that have the key of another: that one, and they. In the order of their names.
fn conflicting(held: &BTreeMap<Arc<str>, Held>) -> Vec<(Arc<str>, Arc<str>)> {
    let mut first: HashMap<&ScopeKey, &Arc<str>> = HashMap::with_capacity(held.len());
    let mut conflicts = Vec::new();
    for (name, held) in held {
        let holder = *first.entry(&held.config.key).or_insert(name);
        if holder != name {
            conflicts.push((holder.clone(), name.clone()));
        }
    }
    conflicts
}

impl Group {
    /// How many scopes have a table that need not be asked for on demand.
    fn fixed(&self) -> usize {
        self.slot.get().map_or(0, |table| table.len()).saturating_sub(self.offered.len())
    }

    /// Makes the scopes anew. Tables that stay in use are not let go of in between.
    fn rebuild(
        &mut self,
        tables: StreamId,
        held: &BTreeMap<Arc<str>, Held>,
        compiler: &Compiler,
        routes: &mut Routes,
        effects: &mut Effects,
    ) {
        let mut stat_prefixes: Vec<_> = self.stats.iter().map(|((prefix, _), _)| prefix.clone()).collect();
        stat_prefixes.dedup();
        let (mut wanted, mut offered) = (Vec::new(), Vec::new());
        let mut scopes = Vec::with_capacity(held.len());
        for held in held.values() {
            let config = &held.config;
            let (slot, lazy) = match &config.table {
                ScopeTableRef::Inline(slot) => (slot.clone(), false),
                ScopeTableRef::Named { name, on_demand } => {
                    let slot = compiler.route_slot(&self.tables.source, name);
                    let need = RouteNeed {
                        source: self.tables.clone(),
                        name: name.clone(),
                        slot: slot.clone(),
                        stat_prefixes: stat_prefixes.clone(),
                    };
                    let key = (tables, name.clone());
                    if *on_demand {
                        routes.offer(&key, &need);
                        offered.push(key);
                    } else {
                        routes.want(&key, &need, effects);
                        wanted.push(key);
                    }
                    (slot, *on_demand)
                }
            };
            let (name, key) = (config.name.clone(), config.key.clone());
            scopes.push(Scope { name, key, routes: slot, on_demand: lazy });
        }
        self.slot.set(Some(Arc::new(ScopeTable::new(scopes))));
        let before = std::mem::replace(&mut self.wanted, wanted);
        before.iter().for_each(|key| routes.release(key, effects));
        let before = std::mem::replace(&mut self.offered, offered);
        before.iter().for_each(|key| routes.withdraw(key, effects));
        for (_, stats) in &self.stats {
            stats.all_scopes.set(held.len() as f64);
            stats.on_demand_scopes.set(self.offered.len() as f64);
        }
    }
}
