//! Virtual hosts one by one: VHDS.
//!
//! In: encoded virtual hosts, named `TABLE/HOST`, and the hosts that requests ask for. Out: the route
//! tables made of what RDS gave and of these, and verdicts. A stream brings the virtual hosts of all
//! tables; they are kept for tables that come later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use outrigger_control_api::client::{Rejection, Resource, Update};

use super::effects::{Effects, VHDS};
use super::pieces::Supply;
use super::resource::{Refused, Stored};
use super::routes::{RouteKey, Routes};
use super::sources::StreamId;
use crate::config::compile::resource::Compiler;
use crate::config::demand::PATIENCE;
use crate::config::discovery::ConfigSource;
use crate::config::route::RouteTable;
use crate::config::{Problem, Slot};

/// All virtual hosts that come from one stream.
#[derive(Default)]
pub(super) struct Feed {
    pub(super) held: BTreeMap<Arc<str>, Stored>,
    pub(super) version: String,
    /// Names that requests asked for, and whether there was an answer. Those that do not exist go.
    asked: HashMap<Arc<str>, bool>,
    /// Something came, or did not in time.
    answered: bool,
    users: usize,
}

/// A virtual host that changes, and what it was.
type Change = (Arc<str>, Option<Stored>);

/// Names that requests may have asked for of one stream: a control plane that says yes to every name must
/// not make memory grow without end.
const MAX_ASKED: usize = 1 << 14;

/// The virtual hosts of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostSource {
    pub(super) stream: StreamId,
    pub(super) source: ConfigSource,
}

impl Feed {
    /// The virtual hosts of `table`, encoded.
    fn of<'f>(&'f self, table: &str) -> impl Iterator<Item = (&'f Arc<str>, &'f Stored)> + 'f {
        let prefix = format!("{table}/");
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let range = self.held.range::<str, _>(from);
        let (own, end) = (prefix.clone(), prefix.len());
        let of_prefix = range.take_while(move |(name, _)| name.starts_with(&own));
        // Tables may have a slash in their names, hosts have none.
        of_prefix.filter(move |(name, _)| !name.get(end..).unwrap_or_default().contains('/'))
    }

    /// `body`, an encoded table, with the virtual hosts of `table`.
    fn merged(&self, table: &str, body: &Arc<[u8]>) -> Arc<[u8]> {
        let mut hosts = self.of(table).peekable();
        if hosts.peek().is_none() {
            return body.clone();
        }
        let mut merged = body.to_vec();
        hosts.for_each(|(_, stored)| append(&mut merged, &stored.body));
        merged.into()
    }
}

/// Adds a virtual host to an encoded table.
fn append(table: &mut Vec<u8>, host: &[u8]) {
    /// `virtual_hosts`, length-delimited.
    const VIRTUAL_HOSTS: u8 = 2 << 3 | 2;
    table.push(VIRTUAL_HOSTS);
    let mut length = host.len();
    while length >= 0x80 {
        table.push(length as u8 | 0x80);
        length >>= 7;
    }
    table.push(length as u8);
    table.extend_from_slice(host);
}

/// Checks a virtual host by itself.
fn check(compiler: &Compiler, resource: &Resource) -> Result<Vec<Problem>, Vec<Problem>> {
    let mut alone = Vec::with_capacity(resource.body.len() + 16);
    append(&mut alone, &resource.body);
    let own = |problem: Problem| {
        let path = problem.path.strip_prefix("virtual_hosts[0]").unwrap_or(&problem.path);
        Problem::new(path.trim_start_matches('.'), problem.message)
    };
    match compiler.route_table(&alone.into(), &|_| true) {
        Ok(compiled) => Ok(compiled.warnings.into_iter().map(own).collect()),
        Err(problems) => Err(problems.into_iter().map(own).collect()),
    }
}

impl Routes {
    /// The body of a table with what VHDS gave for it.
    pub(super) fn with_hosts(&self, name: &str, source: Option<&HostSource>, body: &Arc<[u8]>) -> Arc<[u8]> {
        let feed = source.and_then(|source| self.hosts.get(&source.stream));
        feed.map_or_else(|| body.clone(), |feed| feed.merged(name, body))
    }

    /// One table more takes virtual hosts from this source.
    pub(super) fn follow_hosts(&mut self, source: &HostSource, effects: &mut Effects) {
        let feed = self.hosts.entry(source.stream).or_insert_with(|| {
            effects.subscribe_all(source.stream, VHDS, source.source.initial_fetch_timeout);
            Feed::default()
        });
        feed.users += 1;
    }

    /// One table less does.
    pub(super) fn leave_hosts(&mut self, source: &HostSource, effects: &mut Effects) {
        let Some(feed) = self.hosts.get_mut(&source.stream) else { return };
        feed.users -= 1;
        if feed.users > 0 {
            return;
        }
        if let Some(feed) = self.hosts.remove(&source.stream) {
            feed.asked.keys().for_each(|name| effects.unsubscribe(source.stream, VHDS, name));
            effects.unsubscribe_all(source.stream, VHDS);
        }
    }

    /// Whether the first virtual hosts came, or need not be waited for.
    pub(super) fn has_hosts(&self, source: Option<&HostSource>) -> bool {
        let feed = source.and_then(|source| self.hosts.get(&source.stream));
        feed.is_none_or(|feed| feed.answered)
    }

    /// A request wants the virtual host for an authority in the table of this slot: what it waits for.
    /// `None` if there is none to be had.
    pub(super) fn demand_host(
        &mut self,
        slot: &Arc<Slot<RouteTable>>,
        host: &str,
        effects: &mut Effects,
    ) -> Option<(RouteKey, Arc<str>)> {
        let (key, source) = self.host_source(slot)?;
        let feed = self.hosts.get_mut(&source.stream)?;
        let name: Arc<str> = format!("{}/{host}", key.1).into();
        if !feed.asked.contains_key(&name) {
            if feed.asked.len() >= MAX_ASKED {
                return None;
            }
            let timeout = source.source.initial_fetch_timeout.unwrap_or(PATIENCE);
            effects.subscribe(source.stream, VHDS, &name, Some(timeout));
            feed.asked.insert(name.clone(), false);
        }
        Some((key, name))
    }

    /// Whether it is known if there is such a virtual host.
    pub(super) fn is_host_settled(&self, key: &RouteKey, name: &str) -> bool {
        let feed = self.source_of(key).and_then(|source| self.hosts.get(&source.stream));
        feed.is_none_or(|feed| feed.asked.get(name) != Some(&false))
    }

    /// Virtual hosts that came or went.
    pub(super) fn update_hosts(
        &mut self,
        stream: StreamId,
        update: &Update,
        known: &dyn Fn(&str) -> bool,
        supply: &mut Supply<'_>,
    ) -> Vec<Rejection> {
        let compiler = self.compiler();
        let Some(feed) = self.hosts.get_mut(&stream) else { return Vec::new() };
        let mut rejections = Vec::new();
        // What each table had under the names that change.
        let mut changed: BTreeMap<&str, Vec<Change>> = BTreeMap::new();
        for resource in &update.added {
            let name: Arc<str> = resource.name.as_str().into();
            for asked in resource.aliases.iter().chain([&resource.name]) {
                feed.asked.get_mut(asked.as_str()).into_iter().for_each(|answered| *answered = true);
            }
            if let Some(stored) = feed.held.get_mut(&name).filter(|stored| stored.is(resource)) {
                stored.confirm(resource);
                continue;
            }
            let Some((table, _)) = resource.name.rsplit_once('/') else {
                let problem = Problem::new("name", "is not TABLE/HOST");
                rejections.push(Refused::new(resource, &[problem]).rejection(&name));
                continue;
            };
            match check(&compiler, resource) {
                Ok(warnings) => supply.effects.warn(&name, warnings),
                Err(problems) => {
                    rejections.push(Refused::new(resource, &problems).rejection(&name));
                    continue;
                }
            }
            let before = feed.held.insert(name.clone(), Stored::new(resource));
            changed.entry(table).or_default().push((name, before));
        }
        let mut touched: BTreeSet<&str> = changed.keys().copied().collect();
        for name in &update.removed {
            if feed.held.remove(name.as_str()).is_some() {
                touched.extend(name.rsplit_once('/').map(|(table, _)| table));
            }
            // Asked for again by the next request.
            if let Some((name, _)) = feed.asked.remove_entry(name.as_str()) {
                supply.effects.unsubscribe(stream, VHDS, &name);
            }
        }
        feed.answered = true;
        feed.version.clone_from(&update.version);
        for table in touched {
            let changes = changed.remove(table).unwrap_or_default();
            if self.remake(stream, table, known, supply).is_ok() {
                continue;
            }
            // One of them does not go with the others: one at a time, from what there was.
            for (name, before) in &changes {
                self.put_host(stream, name, before.clone());
            }
            let _ = self.remake(stream, table, known, supply);
            for (name, before) in changes {
                let Some(resource) = update.added.iter().find(|resource| *resource.name == *name) else {
                    continue;
                };
                self.put_host(stream, &name, Some(Stored::new(resource)));
                if let Err(problems) = self.remake(stream, table, known, supply) {
                    rejections.push(Refused::new(resource, &problems).rejection(&name));
                    self.put_host(stream, &name, before);
                }
            }
        }
        self.count_hosts(stream, update, rejections.is_empty());
        rejections
    }

    fn put_host(&mut self, stream: StreamId, name: &Arc<str>, stored: Option<Stored>) {
        let Some(feed) = self.hosts.get_mut(&stream) else { return };
        match stored {
            Some(stored) => drop(feed.held.insert(name.clone(), stored)),
            None => drop(feed.held.remove(name)),
        }
    }

    /// The control plane has given no virtual hosts in time, or not this one.
    pub(super) fn hosts_absent(&mut self, stream: StreamId, name: Option<&str>, effects: &mut Effects) {
        let Some(feed) = self.hosts.get_mut(&stream) else { return };
        match name {
            None => feed.answered = true,
            Some(name) => {
                if let Some((name, _)) = feed.asked.remove_entry(name) {
                    effects.unsubscribe(stream, VHDS, &name);
                }
            }
        }
    }

    pub(super) fn host_feeds(&self) -> impl Iterator<Item = (StreamId, &Feed)> {
        self.hosts.iter().map(|(stream, feed)| (*stream, feed))
    }
}
