//! Clusters and their endpoints: CDS and EDS.
//!
//! In: encoded clusters and assignments. Out: filled slots, subscriptions to endpoints, and verdicts.
//! A cluster is checked when it comes and then sleeps until a request needs it
//! ([`Slot::wake`](crate::config::Slot::wake)). What warms and what serves are kept apart: a cluster
//! that works serves on until its successor has endpoints.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::client::{Rejection, Resource};
use smallvec::SmallVec;

use super::effects::{Effects, EDS};
use super::resource::{Assignment, Refused, SleepingCluster, Stored};
use super::sources::{Sources, StreamId};
use crate::config::cluster::Discovery;
use crate::config::compile::canonical;
use crate::config::compile::resource::Compiler;
use crate::config::slot::Dormant;
use crate::config::{Cluster, Problem, Slot};
use crate::telemetry::process::ClusterManagerStats;
use crate::upstream::dns;

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
    /// A DNS cluster is never asleep: its names are followed from the start.
    resolving: Option<Arc<Cluster>>,
    generation: u64,
}

/// The endpoints of one name.
pub(super) struct Endpoints {
    pub(super) stored: Option<Stored>,
    pub(super) refused: Option<Box<Refused>>,
    assignment: Arc<Assignment>,
    users: SmallVec<[Arc<str>; 1]>,
    /// The control plane does not know the name, or did not say so in time.
    absent: bool,
    /// `endpoint_stale_after`, and when it runs out.
    stale_after: Option<Duration>,
    stale_at: Option<Instant>,
    /// When the control plane last said that they are as they are.
    confirmed: Instant,
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
            let version =
                Version { stored: Stored::none(), eds: Some(key), resolving: Some(cluster), generation: 0 };
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
        let eds = self.want(&compiled.value, Some(stream), sources, effects);
        let resolves = matches!(compiled.value.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
        let resolving = resolves.then(|| Arc::new(compiled.value));
        if let Some(cluster) = &resolving {
            effects.follow_dns(name, generation, cluster.clone());
        }
        let version = Version { stored, eds, resolving, generation };
        let endpoints = version.eds.as_ref().and_then(|key| self.endpoints.get(key));
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        let ready = match endpoints {
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

    /// Endpoints that came by EDS.
    pub(super) fn update_endpoints(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        now: Instant,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let key = (stream, Arc::from(resource.name.as_str()));
        // Nobody waits for it any more.
        let Some(endpoints) = self.endpoints.get_mut(&key) else { return Ok(()) };
        if let Some(stored) = endpoints.stored.as_mut().filter(|stored| stored.is(resource)) {
            stored.confirm(resource);
            endpoints.refused = None;
            endpoints.confirmed = now;
            endpoints.stale_at = endpoints.stale_after.map(|after| now + after);
            if endpoints.stale_at.is_some() {
                self.timed.insert(key);
            }
            for cluster in endpoints.users.iter().filter_map(|user| self.entries.get(user)?.slot.get()) {
                cluster.stats().update_attempt.increment(1);
                cluster.stats().update_success.increment(1);
                cluster.stats().update_no_rebuild.increment(1);
            }
            return Ok(());
        }
        let checked = match self.compiler.check_assignment(&resource.body) {
            Ok(checked) if *checked.cluster_name == *resource.name => checked,
            Ok(checked) => {
                let message =
                    format!("the resource is called {:?} and this {:?}", resource.name, checked.cluster_name);
                return Err(endpoints.refuse(resource, &[Problem::new("cluster_name", message)]));
            }
            Err(problems) => {
                for cluster in endpoints.users.iter().filter_map(|user| self.entries.get(user)?.slot.get()) {
                    cluster.stats().update_attempt.increment(1);
                    cluster.stats().update_failure.increment(1);
                }
                return Err(endpoints.refuse(resource, &problems));
            }
        };
        effects.warn(&resource.name, checked.warnings);
        let stored = Stored::new(resource);
        endpoints.stale_after = checked.endpoint_stale_after;
        endpoints.stale_at = checked.endpoint_stale_after.map(|after| now + after);
        endpoints.refused = None;
        endpoints.absent = false;
        endpoints.confirmed = now;
        endpoints.assignment.set(Some(stored.body.clone()));
        let body = stored.body.clone();
        endpoints.stored = Some(stored);
        let timed = endpoints.stale_after.is_some();
        if timed {
            self.timed.insert(key.clone());
        }
        let users = self.endpoints.get(&key).map(Endpoints::each_user).unwrap_or_default();
        for user in users {
            self.endpoints_changed(&user, &key, Some(&body), timed, effects);
        }
        Ok(())
    }

    /// The control plane does not have these endpoints, or has not given them in time. Those known stay.
    pub(super) fn endpoints_absent(&mut self, name: &str, stream: StreamId, effects: &mut Effects) {
        let key = (stream, Arc::from(name));
        let Some(endpoints) = self.endpoints.get_mut(&key) else { return };
        endpoints.absent = true;
        for user in endpoints.each_user() {
            let Some(entry) = self.entries.get(&user) else { continue };
            let waits = entry.warming.as_ref().is_some_and(|version| version.eds.as_ref() == Some(&key));
            if !waits {
                continue;
            }
            // A cluster that works is not replaced by one without endpoints.
            let works = entry.active.is_some()
                && entry.slot.wake().is_some_and(|now| !now.hosts.load().all.is_empty());
            if works {
                tracing::warn!(
                    cluster = &*user,
                    endpoints = name,
                    "no endpoints for the new version; the old one serves on"
                );
            } else {
                self.activate(&user, effects);
            }
        }
    }

    fn endpoints_changed(
        &mut self,
        user: &str,
        key: &EdsKey,
        body: Option<&Arc<[u8]>>,
        timed: bool,
        effects: &mut Effects,
    ) {
        let Some(entry) = self.entries.get(user) else { return };
        let uses = |version: Option<&Version>| version.is_some_and(|v| v.eds.as_ref() == Some(key));
        let (active, warming) = (uses(entry.active.as_ref()), uses(entry.warming.as_deref()));
        if active {
            entry.slot.while_held(|cluster| {
                let Some(cluster) = cluster else { return };
                let stats = cluster.stats();
                stats.update_attempt.increment(1);
                if timed {
                    stats.assignment_timeout_received.increment(1);
                }
                let present = cluster.hosts.load_full();
                let hosts = match body {
                    Some(body) => self.compiler.hosts(cluster, body, &present.all),
                    None => Ok(Default::default()),
                };
                match hosts {
                    Ok(hosts) => {
                        stats.update_success.increment(1);
                        let same = same_hosts(&present.all, &hosts.all);
                        if same {
                            stats.update_no_rebuild.increment(1);
                        } else {
                            stats.membership_change.increment(1);
                            cluster.hosts.store(Arc::new(hosts));
                        }
                        dns::publish_membership(cluster);
                    }
                    // It passed the same checks when it came.
                    Err(problems) => {
                        stats.update_failure.increment(1);
                        tracing::error!(cluster = user, "endpoints not taken: {:?}", problems.first());
                    }
                }
            });
        }
        if warming && body.is_some() {
            self.activate(user, effects);
        }
    }

    /// The names of a DNS cluster were answered once.
    pub(super) fn resolved(&mut self, name: &str, generation: u64, effects: &mut Effects) {
        let entry = self.entries.get(name);
        let waits = entry.and_then(|entry| entry.warming.as_ref());
        if waits.is_some_and(|version| version.generation == generation) {
            self.activate(name, effects);
        }
    }

    /// Swaps the warm version in.
    fn activate(&mut self, name: &str, effects: &mut Effects) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let Some(version) = entry.warming.take() else { return };
        match &version.resolving {
            Some(cluster) => {
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
            effects.stop_dns(name, version.generation);
        }
        if let Some(key) = version.eds {
            self.release(name, &key, effects);
        }
    }

    /// The endpoints that `cluster` needs are wanted from now on.
    fn want(
        &mut self,
        cluster: &Cluster,
        parent: Option<StreamId>,
        sources: &mut Sources,
        effects: &mut Effects,
    ) -> Option<EdsKey> {
        let Discovery::Eds { service_name, source, initial_fetch_timeout } = &cluster.discovery else {
            return None;
        };
        let key = (sources.stream(source, parent, EDS), service_name.clone());
        let endpoints = self.endpoints.entry(key.clone()).or_insert_with(|| {
            effects.subscribe(key.0, EDS, service_name, *initial_fetch_timeout);
            Endpoints {
                stored: None,
                refused: None,
                assignment: Arc::default(),
                users: SmallVec::new(),
                absent: false,
                stale_after: None,
                stale_at: None,
                confirmed: Instant::now(),
            }
        });
        // Once for each version that uses it.
        endpoints.users.push(cluster.name.clone());
        Some(key)
    }

    /// One version less of `user` needs these endpoints.
    fn release(&mut self, user: &str, key: &EdsKey, effects: &mut Effects) {
        let Some(endpoints) = self.endpoints.get_mut(key) else { return };
        if let Some(index) = endpoints.users.iter().position(|name| **name == *user) {
            endpoints.users.swap_remove(index);
        }
        if endpoints.users.is_empty() {
            self.endpoints.remove(key);
            effects.unsubscribe(key.0, EDS, &key.1);
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
        let mut stale = Vec::new();
        self.timed.retain(|key| {
            let Some(endpoints) = self.endpoints.get_mut(key) else { return false };
            let Some(at) = endpoints.stale_at else { return false };
            if at > now {
                return true;
            }
            endpoints.stale_at = None;
            endpoints.stored = None;
            endpoints.assignment.set(None);
            stale.push(key.clone());
            false
        });
        for key in stale {
            let users = self.endpoints.get(&key).map(Endpoints::each_user);
            for user in users.unwrap_or_default() {
                if let Some(cluster) = self.entries.get(&user).and_then(|entry| entry.slot.get()) {
                    cluster.stats().assignment_stale.increment(1);
                }
                self.endpoints_changed(&user, &key, None, false, effects);
            }
        }
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

    /// The stream could not be opened, or broke.
    pub(super) fn failed(&self, stream: StreamId) {
        let of_stream = self.endpoints.iter().filter(|((own, _), _)| *own == stream);
        for user in of_stream.flat_map(|(_, endpoints)| &endpoints.users) {
            let awake = self.entries.get(user).and_then(|entry| entry.slot.get());
            if let Some(stats) = awake.as_ref().and_then(|cluster| cluster.stats.get()) {
                stats.update_attempt.increment(1);
                stats.update_failure.increment(1);
            }
        }
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

    /// Sets the gauges of time of clusters that are awake.
    pub(super) fn publish_ages(&self, now: Instant) {
        for endpoints in self.endpoints.values().filter(|endpoints| endpoints.stored.is_some()) {
            let age = now.saturating_duration_since(endpoints.confirmed).as_millis() as f64;
            for user in &endpoints.users {
                let awake = self.entries.get(user).and_then(|entry| entry.slot.get());
                if let Some(stats) = awake.as_ref().and_then(|cluster| cluster.stats.get()) {
                    stats.content_age_ms.set(age);
                }
            }
        }
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

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter().filter(|(name, _)| !self.fixed.contains(*name))
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = (&Arc<str>, StreamId, &Endpoints)> {
        self.endpoints.iter().map(|((stream, name), endpoints)| (name, *stream, endpoints))
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

impl Endpoints {
    /// Every cluster that uses them, once.
    fn each_user(&self) -> SmallVec<[Arc<str>; 1]> {
        let mut users = self.users.clone();
        users.sort();
        users.dedup();
        users
    }

    fn refuse(&mut self, resource: &Resource, problems: &[Problem]) -> Rejection {
        let refused = Refused::new(resource, problems);
        let rejection = refused.rejection(&resource.name);
        self.refused = Some(Box::new(refused));
        rejection
    }
}

fn same_hosts(one: &[Arc<crate::config::Host>], other: &[Arc<crate::config::Host>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
}
