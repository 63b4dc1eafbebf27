//! Route tables: RDS.
//!
//! In: encoded route configurations and which listeners need them. Out: filled slots, subscriptions
//! and verdicts. A table that a new listener needs again is taken as it was last known.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_control_api::client::{Rejection, Resource};

use super::effects::{Effects, RDS};
use super::resource::{Refused, Stored};
use super::sources::StreamId;
use super::stats::RdsStats;
use crate::config::compile::canonical;
use crate::config::compile::resource::{Compiler, RouteNeed};
use crate::config::route::RouteTable;
use crate::config::{Problem, Slot};

const TYPE_NAME: &str = "envoy.config.route.v3.RouteConfiguration";

/// A table that is wanted: from which stream, under which name.
pub(super) type RouteKey = (StreamId, Arc<str>);

/// All tables that listeners need.
pub(super) struct Routes {
    compiler: Arc<Compiler>,
    tables: HashMap<RouteKey, Table>,
}

/// One table.
pub(super) struct Table {
    slot: Arc<Slot<RouteTable>>,
    users: usize,
    pub(super) stored: Option<Stored>,
    pub(super) refused: Option<Refused>,
    absent: bool,
    stats: Vec<(Arc<str>, RdsStats)>,
}

impl Table {
    fn stats(&self) -> impl Iterator<Item = &RdsStats> {
        self.stats.iter().map(|(_, stats)| stats)
    }
}

impl Routes {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self { compiler, tables: HashMap::new() }
    }

    /// One listener more needs the table.
    pub(super) fn want(&mut self, key: &RouteKey, need: &RouteNeed, effects: &mut Effects) {
        let table = self.tables.entry(key.clone()).or_insert_with(|| {
            effects.subscribe(key.0, RDS, &key.1, need.source.initial_fetch_timeout);
            let slot = need.slot.clone();
            Table { slot, users: 0, stored: None, refused: None, absent: false, stats: Vec::new() }
        });
        table.users += 1;
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
        if table.users == 0 {
            self.tables.remove(key);
            effects.unsubscribe(key.0, RDS, &key.1);
        }
    }

    /// Whether a listener that needs the table may serve.
    pub(super) fn is_answered(&self, key: &RouteKey) -> bool {
        self.tables.get(key).is_none_or(|table| table.absent || table.slot.is_filled())
    }

    /// A table that came.
    pub(super) fn update(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        known: &dyn Fn(&str) -> bool,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let key = (stream, Arc::from(resource.name.as_str()));
        let Some(table) = self.tables.get_mut(&key) else { return Ok(()) };
        table.stats().for_each(|stats| stats.update_attempt.increment(1));
        if let Some(stored) = table.stored.as_mut().filter(|stored| stored.is(resource)) {
            stored.confirm(resource);
            table.refused = None;
            table.stats().for_each(|stats| stats.update_success.increment(1));
            return Ok(());
        }
        let refuse = |table: &mut Table, problems: &[Problem]| {
            let refused = Refused::new(resource, problems);
            let rejection = refused.rejection(&resource.name);
            table.refused = Some(refused);
            table.stats().for_each(|stats| stats.update_rejected.increment(1));
            Err(rejection)
        };
        let compiled = match self.compiler.route_table(&resource.body, known) {
            Ok(compiled) if *compiled.name == *resource.name => compiled,
            Ok(compiled) => {
                let message =
                    format!("the resource is called {:?} and the table {:?}", resource.name, compiled.name);
                return refuse(table, &[Problem::new("name", message)]);
            }
            Err(problems) => return refuse(table, &problems),
        };
        effects.warn(&resource.name, compiled.warnings);
        let mut stored = Stored::new(resource);
        let fingerprint = |stored: &Stored| canonical::of_encoded(TYPE_NAME, &stored.body);
        let same = table.stored.as_ref().filter(|old| fingerprint(old) == fingerprint(&stored));
        match same {
            // Written differently, but the same.
            Some(old) => stored.updated = old.updated,
            None => {
                table.slot.set(Some(Arc::new(compiled.value)));
                for stats in table.stats() {
                    stats.config_reload.increment(1);
                }
            }
        }
        for stats in table.stats() {
            stats.succeeded(&stored.version, stored.updated);
        }
        table.absent = false;
        table.refused = None;
        table.stored = Some(stored);
        Ok(())
    }

    /// The control plane does not have the table, or has not given it in time. One that is known stays.
    pub(super) fn absent(&mut self, name: &str, stream: StreamId, timed_out: bool) {
        let Some(table) = self.tables.get_mut(&(stream, Arc::from(name))) else { return };
        table.absent = true;
        for stats in table.stats() {
            if timed_out {
                stats.init_fetch_timeout.increment(1);
            } else {
                stats.update_empty.increment(1);
            }
        }
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (&Arc<str>, StreamId, &Table)> {
        self.tables.iter().map(|((stream, name), table)| (name, *stream, table))
    }
}
