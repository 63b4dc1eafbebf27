//! Clusters: CDS. Their endpoints are in [`endpoints`].
//!
//! In: encoded clusters and assignments. Out: filled slots, subscriptions to endpoints, and verdicts.
//! A cluster is checked when it comes and then sleeps until a request needs it
//! ([`Slot::wake`](crate::config::Slot::wake)). What warms and what serves are kept apart: a cluster
//! that works serves on until its successor has endpoints.

pub(super) mod endpoints;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::client::{Rejection, Resource};

use self::endpoints::Endpoints;
use super::effects::Effects;
use super::pieces::{Held, Pieces};
use super::resource::{Refused, SleepingCluster, Stored};
use super::sources::{Sources, StreamId};
use crate::config::cluster::Discovery;
use crate::config::compile::canonical;
use crate::config::compile::resource::Compiler;
use crate::config::slot::Dormant;
use crate::config::{Cluster, Problem, Slot};
use crate::telemetry::process::ClusterManagerStats;
use crate::upstream::{dns, health};

const TYPE_NAME: &str = "envoy.config.cluster.v3.Cluster";

/// A removed cluster serves on for as long as something refers to it, but no longer than this: routes
/// that still name it are most likely about to be replaced.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Endpoints that are wanted: from which stream, under which name.
type EdsKey = (StreamId, Arc<str>);

/// All clusters that a control plane gave.
pub(super) struct Clusters {
    compiler: Arc<Compiler>,
    /// Those of the bootstrap, which a control plane cannot change.
    fixed: HashSet<Arc<str>>,
    entries: HashMap<Arc<str>, Entry>,
    endpoints: HashMap<EdsKey, Endpoints>,
    /// Names of entries that were removed and are not gone: what [`Clusters::sweep`] looks at.
    leaving: HashSet<Arc<str>>,
    /// Keys of endpoints that become stale.
    timed: HashSet<EdsKey>,
    stats: ClusterManagerStats,
    next_generation: u64,
    /// The gauges are to be set anew.
    changed: bool,
}

/// One cluster.
pub(super) struct Entry {
    slot: Arc<Slot<Cluster>>,
    pub(super) active: Option<Version>,
    /// Boxed, as `refused` is: few have it, and there are thousands of entries.
    pub(super) warming: Option<Box<Version>>,
    pub(super) refused: Option<Box<Refused>>,
    removed: Option<Instant>,
}

/// One version of a cluster.
pub(super) struct Version {
    pub(super) stored: Stored,
    eds: Option<EdsKey>,
    /// The name in `eds` is one that the cluster gives.
    named: bool,
    /// A cluster whose names are resolved or whose hosts are checked is never asleep: that goes on from the start.
    resolving: Option<Arc<Cluster>>,
    /// Whether it has begun.
    followed: bool,
    generation: u64,
    /// Secrets. Given back by being dropped.
    pieces: Box<[Held]>,
    /// It waits for nothing but these.
    due: bool,
}

impl Clusters {
    pub(super) fn new(compiler: Arc<Compiler>, stats: ClusterManagerStats) -> Self {
        let fixed = compiler.static_clusters.iter().map(|name| Arc::from(name.as_str())).collect();
        Self {
            compiler,
            fixed,
            entries: HashMap::new(),
            endpoints: HashMap::new(),
            leaving: HashSet::new(),
            timed: HashSet::new(),
            stats,
            next_generation: 0,
            changed: true,
        }
    }

    /// Endpoints for clusters of the bootstrap that take theirs from EDS.
    pub(super) fn follow_fixed(&mut self, sources: &mut Sources, effects: &mut Effects) {
        for slot in self.compiler.clusters.all() {
            let Some(cluster) = slot.get() else { continue };
            let Some(key) = self.want(&cluster, None, sources, effects) else { continue };
            let named = is_named(&cluster);
            let version = Version {
                stored: Stored::none(),
                eds: Some(key),
                named,
                resolving: Some(cluster),
                followed: true,
                generation: 0,
                pieces: Box::default(),
                due: true,
            };
            let name = slot.name().clone();
            let entry = Entry { slot, active: Some(version), warming: None, refused: None, removed: None };
            self.entries.insert(name, entry);
        }
    }

    /// A cluster that came by CDS.
    pub(super) fn update(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        sources: &mut Sources,
        pieces: &mut Pieces,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let name = resource.name.as_str();
        if self.fixed.contains(name) {
            let message = format!("{name:?} is a cluster of the bootstrap, which discovery cannot change");
            effects.warn(name, vec![Problem::new("name", message)]);
            return Ok(());
        }
        if let Some(entry) = self.entries.get_mut(name) {
            let newest = entry.warming.as_deref_mut().or(entry.active.as_mut());
            if let Some(newest) = newest.filter(|newest| newest.stored.is(resource)) {
                newest.stored.confirm(resource);
                entry.refused = None;
                if entry.removed.take().is_some() {
                    self.stats.cluster_added.increment(1);
                }
                return Ok(());
            }
        }
        let compiled = match self.compiler.cluster(&resource.body) {
            Ok(compiled) if *compiled.name == *name => compiled,
            Ok(compiled) => {
                let message = format!("the resource is called {name:?} and the cluster {:?}", compiled.name);
                return Err(self.refuse(resource, &[Problem::new("name", message)]));
            }
            Err(problems) => return Err(self.refuse(resource, &problems)),
        };
        effects.warn(&compiled.name, compiled.warnings);
        let mut stored = Stored::new(resource);
        let mut added = false;
        let entry = self.entries.entry(compiled.name.clone()).or_insert_with(|| {
            added = true;
            let slot = self.compiler.clusters.slot(name);
            Entry { slot, active: None, warming: None, refused: None, removed: None }
        });
        let back = entry.removed.take().is_some();
        if added || back {
            self.stats.cluster_added.increment(1);
        }
        entry.refused = None;
        // Written differently, but the same: nothing drains for that.
        if let (None, Some(active)) = (&entry.warming, &mut entry.active) {
            let fingerprint = |body: &[u8]| canonical::of_encoded(TYPE_NAME, body);
            if fingerprint(&active.stored.body) == fingerprint(&stored.body) {
                stored.updated = active.stored.updated;
                active.stored = stored;
                return Ok(());
            }
        }
        if !added && !back {
            self.stats.cluster_modified.increment(1);
        }
        self.next_generation += 1;
        let generation = self.next_generation;
        let named = is_named(&compiled.value);
        let eds = self.want(&compiled.value, Some(stream), sources, effects);
        let resolves = health::run::is_followed(&compiled.value);
        let resolving = resolves.then(|| Arc::new(compiled.value));
        let pieces = pieces.ask(&compiled.needs.pieces, Some(stream), sources, effects);
        let mut version =
            Version { stored, eds, named, resolving, followed: false, generation, pieces, due: false };
        let endpoints = version.eds.as_ref().and_then(|key| self.endpoints.get(key));
        let assignment = endpoints.and_then(|endpoints| endpoints.stored.as_ref()).map(|stored| &stored.body);
        if let Some(cluster) = &version.resolving {
            if version.eds.is_none() || assignment.is_some() {
                self.fill(cluster, assignment);
                effects.follow(name, generation, cluster.clone());
                version.followed = true;
            }
        }
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        let ready = match endpoints {
            Some(_) if version.followed => false,
            Some(endpoints) => endpoints.stored.is_some() || endpoints.absent && entry.active.is_none(),
            None => !resolves,
        };
        let superseded = entry.warming.replace(Box::new(version));
        if ready {
            self.activate(name, effects);
        }
        if let Some(version) = superseded {
            self.retire(name, *version, effects);
        }
        self.changed = true;
        Ok(())
    }

    /// Gives a cluster that is about to be followed the hosts that it has from the start.
    fn fill(&self, cluster: &Cluster, assignment: Option<&Arc<[u8]>>) {
        if let Some(body) = assignment {
            // It passed the same checks when it came.
            if let Ok(hosts) = self.compiler.hosts(cluster, body, &cluster.hosts.load().all) {
                cluster.hosts.store(hosts);
            }
        }
        if !cluster.hosts.load().all.is_empty() {
            dns::announce_members(cluster);
        }
    }

    fn refuse(&mut self, resource: &Resource, problems: &[Problem]) -> Rejection {
        let refused = Refused::new(resource, problems);
        let rejection = refused.rejection(&resource.name);
        if let Some(entry) = self.entries.get_mut(resource.name.as_str()) {
            entry.refused = Some(Box::new(refused));
        }
        rejection
    }

    /// The control plane took a cluster away. It goes with the next [`sweep`](Self::sweep) that finds it
    /// unused.
    pub(super) fn remove(&mut self, name: &str, now: Instant, effects: &mut Effects) {
        let Some(entry) = self.entries.get_mut(name).filter(|_| !self.fixed.contains(name)) else { return };
        if entry.removed.is_some() {
            return;
        }
        self.stats.cluster_removed.increment(1);
        entry.removed = Some(now);
        self.leaving.insert(entry.slot.name().clone());
        if let Some(version) = entry.warming.take() {
            self.retire(name, *version, effects);
        }
        self.changed = true;
    }

    /// The names of a DNS cluster were answered once.
    pub(super) fn resolved(&mut self, name: &str, generation: u64, effects: &mut Effects) {
        let entry = self.entries.get(name);
        let waits = entry.and_then(|entry| entry.warming.as_ref());
        if waits.is_some_and(|version| version.generation == generation) {
            self.activate(name, effects);
        }
    }

    /// Lets versions serve that waited for nothing but what is there now.
    pub(super) fn advance(&mut self, effects: &mut Effects) {
        let due = |entry: &Entry| entry.warming.as_ref().is_some_and(|version| version.due);
        let names: Vec<_> =
            self.entries.iter().filter(|(_, entry)| due(entry)).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.activate(name, effects));
    }

    /// Swaps the warm version in, once its secrets are there.
    fn activate(&mut self, name: &str, effects: &mut Effects) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let settled = |version: &mut Box<Version>| {
            version.due = true;
            version.pieces.iter().all(Held::is_settled)
        };
        let Some(mut version) = entry.warming.take_if(settled) else { return };
        match &version.resolving {
            Some(cluster) => {
                if !std::mem::replace(&mut version.followed, true) {
                    // Nobody knows its endpoints; if they come, they are checked.
                    effects.follow(name, version.generation, cluster.clone());
                }
                let old = entry.slot.set(Some(cluster.clone()));
                if old.is_some_and(|old| old.stats.get().is_some()) {
                    cluster.stats();
                }
            }
            None => {
                let endpoints = version.eds.as_ref().and_then(|key| self.endpoints.get(key));
                let assignment = endpoints.map(|endpoints| endpoints.assignment.clone());
                let (compiler, body) = (self.compiler.clone(), version.stored.body.clone());
                let sleeping = Arc::new(SleepingCluster { compiler, body, assignment });
                let new = sleeping.clone();
                // What is awake stays awake; the old value, dropped after, keeps the statistics alive
                // until the new one has them.
                let _old = entry.slot.replace(sleeping, |_old| new.wake());
            }
        }
        self.stats.cluster_updated.increment(1);
        if let Some(old) = entry.active.replace(*version) {
            self.retire(name, old, effects);
        }
        self.changed = true;
    }

    /// A version is not needed any more.
    fn retire(&mut self, name: &str, version: Version, effects: &mut Effects) {
        if version.resolving.is_some() {
            effects.stop_following(name, version.generation);
        }
        if let Some(key) = version.eds {
            self.release(name, &key, effects);
        }
    }

    /// Drops removed clusters whose time has come, and endpoints that are stale. True if there are
    /// removed ones left.
    pub(super) fn sweep(&mut self, now: Instant, effects: &mut Effects) -> bool {
        let mut gone = Vec::new();
        self.leaving.retain(|name| {
            let Some(entry) = self.entries.get(name) else { return false };
            // It may have come back.
            let Some(removed) = entry.removed else { return false };
            // Ours and the directory's.
            let referred = Arc::strong_count(&entry.slot) > 2;
            let stays = referred && now.saturating_duration_since(removed) < LINGER;
            if !stays {
                gone.push(name.clone());
            }
            stays
        });
        for name in gone {
            let Some(entry) = self.entries.remove(&name) else { continue };
            entry.slot.set(None);
            if let Some(version) = entry.active {
                self.retire(&name, version, effects);
            }
            self.changed = true;
        }
        self.sweep_endpoints(now, effects);
        !self.leaving.is_empty()
    }

    /// Runtime values changed: what is awake is compiled anew. What sleeps will be when it wakes.
    pub(super) fn recompile(&mut self) {
        let awake = self.entries.values().filter(|entry| entry.slot.get().is_some());
        for version in awake.filter_map(|entry| Some((entry, entry.active.as_ref()?))) {
            let (entry, version) = version;
            // A cluster whose names are followed keeps its values until it changes itself.
            if version.resolving.is_none() {
                let sleeping = self.sleeping(version);
                let new = sleeping.clone();
                let _old = entry.slot.replace(sleeping, |_old| new.wake());
            }
        }
    }

    fn sleeping(&self, version: &Version) -> Arc<SleepingCluster> {
        let assignment = version.eds.as_ref().and_then(|key| self.endpoints.get(key));
        let assignment = assignment.map(|endpoints| endpoints.assignment.clone());
        let (compiler, body) = (self.compiler.clone(), version.stored.body.clone());
        Arc::new(SleepingCluster { compiler, body, assignment })
    }

    /// Puts to sleep what nobody uses, and says how many clusters are awake.
    pub(super) fn doze(&self) -> usize {
        let asleep = |entry: &&Entry| entry.slot.get().is_none() || entry.slot.sleep();
        self.entries.len() - self.entries.values().filter(asleep).count()
    }

    /// Whether no cluster waits for its first endpoints.
    pub(super) fn is_warm(&self) -> bool {
        self.entries.iter().all(|(name, entry)| match &entry.active {
            None => entry.warming.is_none(),
            // Those of the bootstrap are active from the start.
            Some(version) if self.fixed.contains(name) => {
                let endpoints = version.eds.as_ref().and_then(|key| self.endpoints.get(key));
                endpoints.is_none_or(|endpoints| endpoints.stored.is_some() || endpoints.absent)
            }
            Some(_) => true,
        })
    }

    /// Whether requests to the cluster can be served, or it waits for its endpoints.
    pub(super) fn serves(&self, name: &str) -> (bool, bool) {
        let Some(entry) = self.entries.get(name) else { return (self.fixed.contains(name), false) };
        (entry.active.is_some() && entry.removed.is_none(), entry.warming.is_some())
    }

    /// Whether there is a cluster of this name, warm or not.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.fixed.contains(name) || self.entries.contains_key(name)
    }

    /// The name that a cluster gives for its endpoints, if it gives one.
    pub(super) fn service_name(&self, cluster: &str) -> Option<Arc<str>> {
        let version = self.entries.get(cluster)?.active.as_ref().filter(|version| version.named)?;
        version.eds.as_ref().map(|(_, name)| name.clone())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter().filter(|(name, _)| !self.fixed.contains(*name))
    }

    /// Sets the gauges to what there is now.
    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let active = self.entries.values().filter(|entry| entry.active.is_some()).count();
        let fixed = self.fixed.iter().filter(|name| !self.entries.contains_key(*name)).count();
        let warming = self.entries.values().filter(|entry| entry.warming.is_some()).count();
        self.stats.active_clusters.set((active + fixed) as f64);
        self.stats.warming_clusters.set(warming as f64);
    }
}

/// Whether the cluster gives a name for its endpoints.
fn is_named(cluster: &Cluster) -> bool {
    matches!(cluster.discovery, Discovery::Eds { named: true, .. })
}
