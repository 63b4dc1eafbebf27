//! Route tables: RDS.
//!
//! In: encoded route configurations and which listeners need them. Out: filled slots, subscriptions
//! and verdicts. A table that a new listener needs again is taken as it was last known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_control_api::client::{Rejection, Resource, Update};

use super::effects::{Effects, RDS, VHDS};
use super::pieces::{Held, Pieces, Supply};
use super::resource::{Refused, Stored};
use super::sources::{Sources, StreamId};
use super::stats::{HostsStats, RdsStats};
use super::virtual_hosts::{Feed, HostSource};
use crate::config::compile::canonical;
use crate::config::compile::resource::{Compiler, RouteNeed};
use crate::config::route::RouteTable;
use crate::config::{Problem, Slot};

const TYPE_NAME: &str = "envoy.config.route.v3.RouteConfiguration";

/// Fewer virtual hosts than this are not worth being put to sleep.
const MANY_AWAKE: usize = 64;

/// A table that is wanted: from which stream, under which name.
pub(super) type RouteKey = (StreamId, Arc<str>);

/// All tables that listeners need.
pub(super) struct Routes {
    compiler: Arc<Compiler>,
    tables: HashMap<RouteKey, Table>,
    /// Tables that requests may ask for.
    offered: HashMap<RouteKey, Offer>,
    /// The keys of all of both, by their slots.
    by_slot: HashMap<usize, RouteKey>,
    /// Virtual hosts that came one by one, by their streams.
    pub(super) hosts: HashMap<StreamId, Feed>,
    /// Tables that were replaced, until no request is looked up in them: to free a large one takes time,
    /// which a worker does not have.
    replaced: Vec<Arc<RouteTable>>,
}

/// A table that requests may ask for.
struct Offer {
    need: RouteNeed,
    users: usize,
    /// A request has asked for it; that makes it one more user of the table.
    wanted: bool,
}

/// One table.
pub(super) struct Table {
    slot: Arc<Slot<RouteTable>>,
    users: usize,
    pub(super) stored: Option<Stored>,
    /// The table as it is in force, where virtual hosts came one by one.
    pub(super) merged: Option<Arc<[u8]>>,
    hosts: Option<HostSource>,
    host_stats: Vec<HostsStats>,
    pub(super) refused: Option<Refused>,
    absent: bool,
    /// Secrets that are asked for. Given back by being dropped.
    pieces: Box<[Held]>,
    /// The control plane says that there is no such table.
    missing: bool,
    /// When the control plane last said that the table is as it is.
    confirmed: Instant,
    stats: Vec<(Arc<str>, RdsStats)>,
}

impl Table {
    fn stats(&self) -> impl Iterator<Item = &RdsStats> {
        self.stats.iter().map(|(_, stats)| stats)
    }
}

impl Routes {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self {
            compiler,
            tables: HashMap::new(),
            offered: HashMap::new(),
            by_slot: HashMap::new(),
            hosts: HashMap::new(),
            replaced: Vec::new(),
        }
    }

    /// One listener more needs the table.
    pub(super) fn want(&mut self, key: &RouteKey, need: &RouteNeed, effects: &mut Effects) {
        let table = self.tables.entry(key.clone()).or_insert_with(|| {
            effects.subscribe(key.0, RDS, &key.1, need.source.initial_fetch_timeout);
            let slot = need.slot.clone();
            Table {
                slot,
                users: 0,
                stored: None,
                merged: None,
                hosts: None,
                host_stats: Vec::new(),
                refused: None,
                absent: false,
                pieces: Box::default(),
                missing: false,
                confirmed: Instant::now(),
                stats: Vec::new(),
            }
        });
        table.users += 1;
        self.by_slot.insert(need.slot.index(), key.clone());
        for prefix in &need.stat_prefixes {
            if !table.stats.iter().any(|(known, _)| known == prefix) {
                let stats = RdsStats::of_route(prefix, &key.1);
                stats.update_attempt.increment(1);
                table.stats.push((prefix.clone(), stats));
            }
        }
    }

    /// One listener less needs it. Connections that began with it keep it.
    pub(super) fn release(&mut self, key: &RouteKey, effects: &mut Effects) {
        let Some(table) = self.tables.get_mut(key) else { return };
        table.users -= 1;
        if table.users > 0 {
            return;
        }
        let Some(table) = self.tables.remove(key) else { return };
        effects.unsubscribe(key.0, RDS, &key.1);
        if !self.offered.contains_key(key) {
            self.by_slot.remove(&table.slot.index());
        }
        if let Some(source) = &table.hosts {
            self.leave_hosts(source, effects);
        }
    }

    /// Requests may ask for the table; one user more.
    pub(super) fn offer(&mut self, key: &RouteKey, need: &RouteNeed) {
        let new = || Offer { need: need.clone(), users: 0, wanted: false };
        self.offered.entry(key.clone()).or_insert_with(new).users += 1;
        self.by_slot.insert(need.slot.index(), key.clone());
    }

    /// One user less lets requests ask for it.
    pub(super) fn withdraw(&mut self, key: &RouteKey, effects: &mut Effects) {
        let Some(offer) = self.offered.get_mut(key) else { return };
        offer.users -= 1;
        if offer.users > 0 {
            return;
        }
        if let Some(offer) = self.offered.remove(key) {
            if offer.wanted {
                self.release(key, effects);
            }
            if !self.tables.contains_key(key) {
                self.by_slot.remove(&offer.need.slot.index());
            }
        }
    }

    /// A request wants the table of this slot. `None` if it is not offered.
    pub(super) fn demand(&mut self, slot: &Slot<RouteTable>, effects: &mut Effects) -> Option<RouteKey> {
        let key = self.by_slot.get(&slot.index())?.clone();
        let offer = self.offered.get_mut(&key)?;
        if !std::mem::replace(&mut offer.wanted, true) {
            let need = offer.need.clone();
            self.want(&key, &need, effects);
        }
        Some(key)
    }

    /// Whether anybody has asked for the table.
    pub(super) fn is_wanted(&self, key: &RouteKey) -> bool {
        self.tables.contains_key(key)
    }

    /// Whether nothing is to be waited for that could come at once: the table is there, late, or does not
    /// exist.
    pub(super) fn is_settled(&self, key: &RouteKey) -> bool {
        self.is_answered(key) || self.tables.get(key).is_some_and(|table| table.missing)
    }

    /// Whether a listener that needs the table may take the place of one that serves.
    pub(super) fn is_answered(&self, key: &RouteKey) -> bool {
        self.tables.get(key).is_none_or(|table| {
            table.absent || table.slot.is_filled() && self.has_hosts(table.hosts.as_ref())
        })
    }

    /// A table that came.
    pub(super) fn update(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        known: &dyn Fn(&str) -> bool,
        sources: &mut Sources,
        pieces: &mut Pieces,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let key = (stream, Arc::from(resource.name.as_str()));
        let Some(table) = self.tables.get(&key) else { return Ok(()) };
        let mut stored = Stored::new(resource);
        let body = self.with_hosts(&key.1, table.hosts.as_ref(), &stored.body);
        let Some(table) = self.tables.get_mut(&key) else { return Ok(()) };
        let began = Instant::now();
        table.stats().for_each(|stats| stats.update_attempt.increment(1));
        if let Some(stored) = table.stored.as_mut().filter(|stored| stored.is(resource)) {
            stored.confirm(resource);
            let (version, updated) = (stored.version.clone(), stored.updated);
            table.refused = None;
            table.confirmed = began;
            table.stats().for_each(|stats| stats.succeeded(&version, updated, began.elapsed()));
            return Ok(());
        }
        let refuse = |table: &mut Table, problems: &[Problem]| {
            let refused = Refused::new(resource, problems);
            let rejection = refused.rejection(&resource.name);
            table.refused = Some(refused);
            table.stats().for_each(|stats| stats.update_rejected.increment(1));
            Err(rejection)
        };
        let compiled = match self.compiler.route_table(&body, known) {
            Ok(compiled) if *compiled.name == *resource.name => compiled,
            Ok(compiled) => {
                let message =
                    format!("the resource is called {:?} and the table {:?}", resource.name, compiled.name);
                return refuse(table, &[Problem::new("name", message)]);
            }
            Err(problems) => return refuse(table, &problems),
        };
        effects.warn(&resource.name, compiled.warnings);
        table.pieces = pieces.ask(&compiled.needs.pieces, Some(stream), sources, effects);
        let fingerprint = |stored: &Stored| canonical::of_encoded(TYPE_NAME, &stored.body);
        // What is the same in another order is as long; to reload a table that is the same costs little.
        let alike =
            |old: &&Stored| old.body.len() == stored.body.len() && fingerprint(old) == fingerprint(&stored);
        let same = table.stored.as_ref().filter(alike);
        match same {
            // Written differently, but the same.
            Some(old) => stored.updated = old.updated,
            None => {
                self.replaced.extend(table.slot.set(Some(Arc::new(compiled.value))));
                for stats in table.stats() {
                    stats.config_reload.increment(1);
                    stats.reloaded(stored.updated);
                }
            }
        }
        for stats in table.stats() {
            stats.succeeded(&stored.version, stored.updated, began.elapsed());
        }
        table.confirmed = began;
        (table.absent, table.missing) = (false, false);
        table.refused = None;
        table.stored = Some(stored);
        table.merged = table.hosts.as_ref().map(|_| body);
        let hosts = compiled.needs.virtual_hosts.map(|source| {
            let stream = sources.stream(&source.source, Some(stream), VHDS);
            HostSource { stream, source }
        });
        if table.hosts == hosts {
            return Ok(());
        }
        let prefixes = table.stats.iter().map(|(prefix, _)| HostsStats::of_hosts(prefix, &key.1));
        table.host_stats = if hosts.is_some() { prefixes.collect() } else { Vec::new() };
        let before = std::mem::replace(&mut table.hosts, hosts.clone());
        // What comes from the same stream stays.
        if let Some(source) = &hosts {
            self.follow_hosts(source, effects);
        }
        if let Some(source) = &before {
            self.leave_hosts(source, effects);
        }
        // Those that are here already were not part of it, or are not any more.
        if let Err(problems) = self.remake_table(&key, known, &mut Supply { pieces, sources, effects }) {
            tracing::error!(table = &*key.1, "virtual hosts not taken: {:?}", problems.first());
        }
        Ok(())
    }

    /// Makes the table `name` anew with the virtual hosts from `stream`.
    pub(super) fn remake(
        &mut self,
        stream: StreamId,
        name: &str,
        known: &dyn Fn(&str) -> bool,
        supply: &mut Supply<'_>,
    ) -> Result<(), Vec<Problem>> {
        let own = |table: &Table| table.hosts.as_ref().is_some_and(|source| source.stream == stream);
        // The same name may be that of tables from several streams.
        let keys = self.tables.iter().filter(|(key, table)| *key.1 == *name && own(table));
        let keys: Vec<_> = keys.map(|(key, _)| key.clone()).collect();
        keys.iter().try_for_each(|key| self.remake_table(key, known, supply))
    }

    fn remake_table(
        &mut self,
        key: &RouteKey,
        known: &dyn Fn(&str) -> bool,
        supply: &mut Supply<'_>,
    ) -> Result<(), Vec<Problem>> {
        let Some(table) = self.tables.get(key) else { return Ok(()) };
        let Some(stored) = &table.stored else { return Ok(()) };
        let body = self.with_hosts(&key.1, table.hosts.as_ref(), &stored.body);
        if body == *table.merged.as_ref().unwrap_or(&stored.body) {
            return Ok(());
        }
        let compiled = self.compiler.route_table(&body, known)?;
        supply.effects.warn(&key.1, compiled.warnings);
        let Some(table) = self.tables.get_mut(key) else { return Ok(()) };
        table.pieces = supply.ask(&compiled.needs.pieces, Some(key.0));
        self.replaced.extend(table.slot.set(Some(Arc::new(compiled.value))));
        table.merged = table.hosts.as_ref().map(|_| body);
        table.host_stats.iter().for_each(|stats| stats.config_reload.increment(1));
        Ok(())
    }

    /// Counts a response with virtual hosts, for the tables that take theirs from the stream.
    pub(super) fn count_hosts(&self, stream: StreamId, update: &Update, good: bool) {
        let own = |table: &&Table| table.hosts.as_ref().is_some_and(|source| source.stream == stream);
        for stats in self.tables.values().filter(own).flat_map(|table| &table.host_stats) {
            stats.update_attempt.increment(1);
            if update.added.is_empty() && update.removed.is_empty() {
                stats.update_empty.increment(1);
            }
            match good {
                true => stats.succeeded(&update.version, SystemTime::now()),
                false => stats.update_rejected.increment(1),
            }
        }
    }

    /// The table of a slot, and where its virtual hosts come from.
    pub(super) fn host_source(&self, slot: &Slot<RouteTable>) -> Option<(RouteKey, HostSource)> {
        let key = self.by_slot.get(&slot.index())?;
        Some((key.clone(), self.source_of(key)?.clone()))
    }

    pub(super) fn source_of(&self, key: &RouteKey) -> Option<&HostSource> {
        self.tables.get(key)?.hosts.as_ref()
    }

    pub(super) fn compiler(&self) -> Arc<Compiler> {
        self.compiler.clone()
    }

    /// The control plane has not given the table in time, or says that it will not. One that is known
    /// stays.
    pub(super) fn absent(&mut self, name: &str, stream: StreamId) {
        let Some(table) = self.tables.get_mut(&(stream, Arc::from(name))) else { return };
        table.absent = true;
        table.stats().for_each(|stats| stats.init_fetch_timeout.increment(1));
    }

    /// The control plane says that there is no such table. One that is known stays.
    pub(super) fn missing(&mut self, name: &str, stream: StreamId) {
        if let Some(table) = self.tables.get_mut(&(stream, Arc::from(name))) {
            table.missing = true;
        }
    }

    /// Puts virtual hosts to sleep in tables where many are awake.
    pub(super) fn rest(&mut self) {
        for table in self.tables.values() {
            if let Some(awake) = table.slot.get().filter(|table| table.awake() > MANY_AWAKE) {
                self.replaced.extend(table.slot.set(Some(Arc::new(awake.rested()))));
            }
        }
    }

    /// Frees tables that were replaced.
    pub(super) fn sweep(&mut self) {
        self.replaced.retain(|table| Arc::strong_count(table) > 1);
    }

    /// The stream could not be opened, or broke.
    pub(super) fn failed(&self, stream: StreamId) {
        let of_stream = self.tables.iter().filter(|((own, _), _)| *own == stream);
        for stats in of_stream.flat_map(|(_, table)| table.stats()) {
            stats.update_attempt.increment(1);
            stats.update_failure.increment(1);
        }
    }

    /// Sets the gauges of time.
    pub(super) fn publish_ages(&self, now: Instant) {
        for table in self.tables.values().filter(|table| table.stored.is_some()) {
            let age = now.saturating_duration_since(table.confirmed).as_millis() as f64;
            table.stats().for_each(|stats| stats.content_age_ms.set(age));
        }
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (&Arc<str>, StreamId, &Table)> {
        self.tables.iter().map(|((stream, name), table)| (name, *stream, table))
    }
}
