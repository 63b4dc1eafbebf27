//! Endpoints of clusters: EDS.
//!
//! In: encoded assignments, and clusters that want or release them. Out: host sets of clusters that are awake, clusters
//! that are warm with their first endpoints, and verdicts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::client::{Rejection, Resource};
use smallvec::SmallVec;

use super::super::effects::{Effects, EDS};
use super::super::resource::{Assignment, Refused, Stored};
use super::super::sources::{Sources, StreamId};
use super::{Clusters, EdsKey, Version};
use crate::config::cluster::{Discovery, HealthFlags};
use crate::config::{Cluster, Host, Problem};
use crate::upstream::dns;

/// The endpoints of one name.
pub(in crate::discovery) struct Endpoints {
    pub(in crate::discovery) stored: Option<Stored>,
    pub(in crate::discovery) refused: Option<Box<Refused>>,
    pub(super) assignment: Arc<Assignment>,
    users: SmallVec<[Arc<str>; 1]>,
    /// The control plane does not know the name, or did not say so in time.
    pub(super) absent: bool,
    /// `endpoint_stale_after`, and when it runs out.
    stale_after: Option<Duration>,
    stale_at: Option<Instant>,
    /// When the control plane last said that they are as they are.
    confirmed: Instant,
}

impl Clusters {
    /// Endpoints that came by EDS.
    pub(in crate::discovery) fn update_endpoints(
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
    pub(in crate::discovery) fn endpoints_absent(
        &mut self,
        name: &str,
        stream: StreamId,
        effects: &mut Effects,
    ) {
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
                        if same && present.options == hosts.options {
                            stats.update_no_rebuild.increment(1);
                        } else {
                            cluster.hosts.store(hosts);
                            let changed = !cluster.hosts.load().has_members_of(&present);
                            stats.membership_change.increment(u64::from(changed));
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
            self.warmed_by_endpoints(user, body, effects);
        }
    }

    /// The first endpoints of a version that is warming came: it serves now, or when they were checked.
    fn warmed_by_endpoints(&mut self, user: &str, body: Option<&Arc<[u8]>>, effects: &mut Effects) {
        let warming = self.entries.get_mut(user).and_then(|entry| entry.warming.as_deref_mut());
        let Some(version) = warming else { return };
        let (followed, generation) = (std::mem::replace(&mut version.followed, true), version.generation);
        let Some(cluster) = version.resolving.clone() else { return self.activate(user, effects) };
        self.fill(&cluster, body);
        if !followed {
            effects.follow(user, generation, cluster);
        }
    }

    /// The endpoints that `cluster` needs are wanted from now on.
    pub(super) fn want(
        &mut self,
        cluster: &Cluster,
        parent: Option<StreamId>,
        sources: &mut Sources,
        effects: &mut Effects,
    ) -> Option<EdsKey> {
        let Discovery::Eds { service_name, source, initial_fetch_timeout, .. } = &cluster.discovery else {
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
    pub(super) fn release(&mut self, user: &str, key: &EdsKey, effects: &mut Effects) {
        let Some(endpoints) = self.endpoints.get_mut(key) else { return };
        if let Some(index) = endpoints.users.iter().position(|name| **name == *user) {
            endpoints.users.swap_remove(index);
        }
        if endpoints.users.is_empty() {
            self.endpoints.remove(key);
            effects.unsubscribe(key.0, EDS, &key.1);
        }
    }

    /// Drops endpoints that are stale.
    pub(super) fn sweep_endpoints(&mut self, now: Instant, effects: &mut Effects) {
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
    }

    /// The stream could not be opened, or broke.
    pub(in crate::discovery) fn failed(&self, stream: StreamId) {
        let of_stream = self.endpoints.iter().filter(|((own, _), _)| *own == stream);
        for user in of_stream.flat_map(|(_, endpoints)| &endpoints.users) {
            let awake = self.entries.get(user).and_then(|entry| entry.slot.get());
            if let Some(stats) = awake.as_ref().and_then(|cluster| cluster.stats.get()) {
                stats.update_attempt.increment(1);
                stats.update_failure.increment(1);
            }
        }
    }

    /// Sets the gauges of time of clusters that are awake.
    pub(in crate::discovery) fn publish_ages(&self, now: Instant) {
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

    pub(in crate::discovery) fn endpoints(&self) -> impl Iterator<Item = (&Arc<str>, StreamId, &Endpoints)> {
        self.endpoints.iter().map(|((stream, name), endpoints)| (name, *stream, endpoints))
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

/// Whether these are the same hosts, and none of them was only kept.
fn same_hosts(one: &[Arc<Host>], other: &[Arc<Host>]) -> bool {
    let same = |(one, other): (&Arc<Host>, &Arc<Host>)| {
        Arc::ptr_eq(one, other) && !one.shared.health.has(HealthFlags::PENDING_DYNAMIC_REMOVAL)
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}
