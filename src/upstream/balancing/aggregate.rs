//! Aggregate clusters: the hosts of several clusters, as if the priorities of each followed those of the one before
//! (envoyproxy.io: upstream/aggregate_cluster).
//!
//! Comes in: the slots of the members, and what each one's hosts are now. Goes out: a pool of one member. Which
//! priority a request goes to is decided here, over all members at once; which host of it, by the member's own
//! balancer. A pick looks no name up: it sees whether a member changed, and if one did, puts the priorities together
//! anew.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::super::host_set::{shares, Tally};
use super::super::local::has_others;
use super::super::pick::{choose_level, untried, PickContext};
use super::super::pool::HostPool;
use super::super::{ClusterLocal, Places};
use crate::config::balancing::Members;
use crate::config::cluster::{Discovery, PriorityLoad};
use crate::config::{Cluster, HostSet, Slot};

/// One worker's state of an aggregate.
#[derive(Debug)]
pub struct Aggregate {
    places: Weak<Places>,
    panic_threshold: u32,
    view: RefCell<View>,
}

#[derive(Debug)]
struct View {
    parts: Vec<Part>,
    /// Member and its priority, in order of preference.
    levels: Vec<(usize, u32)>,
    load: Vec<PriorityLoad>,
    availability: Vec<(u8, u8)>,
    made: bool,
    rng: fastrand::Rng,
}

/// A member, and what it was when the priorities were put together.
#[derive(Debug)]
struct Part {
    slot: Arc<Slot<Cluster>>,
    now: Option<(Rc<ClusterLocal>, Arc<HostSet>)>,
}

impl Part {
    fn is_current(&self) -> bool {
        match (&self.now, self.slot.load().as_ref()) {
            (Some((local, set)), Some(cluster)) => {
                Arc::ptr_eq(&local.cluster, cluster) && Arc::ptr_eq(set, &cluster.hosts.load())
            }
            // It may be there, and sleep.
            (None, None) => !self.slot.is_filled(),
            // The hosts of an aggregate are not taken over.
            (None, Some(cluster)) => matches!(cluster.discovery, Discovery::Aggregate(_)),
            (Some(_), None) => false,
        }
    }
}

impl Aggregate {
    pub(in crate::upstream) fn new(members: &Members, cluster: &Cluster, places: Weak<Places>) -> Self {
        let parts = members.0.iter().map(|slot| Part { slot: slot.clone(), now: None }).collect();
        let view = View {
            parts,
            levels: Vec::new(),
            load: Vec::new(),
            availability: Vec::new(),
            made: false,
            rng: fastrand::Rng::new(),
        };
        Self { places, panic_threshold: cluster.panic_threshold.into(), view: RefCell::new(view) }
    }

    /// Whether a pick may go by the hash of the request.
    pub fn hashes(&self) -> bool {
        self.refresh();
        let view = self.view.borrow();
        let mut members = view.parts.iter().filter_map(|part| part.now.as_ref());
        members.any(|(local, _)| local.cluster.balancing.hashes())
    }

    /// Chooses a priority, and its member a host.
    pub(in crate::upstream) fn choose(&self, context: &PickContext<'_>) -> Option<Rc<HostPool>> {
        self.refresh();
        let mut view = self.view.borrow_mut();
        let View { load, availability, rng, .. } = &mut *view;
        let draw = rng.u32(0..100);
        let (level, degraded) = match context.tried {
            [] => choose_level(load, draw)?,
            tried => choose_level(&untried(load, availability, tried), draw)?,
        };
        let (part, priority) = *view.levels.get(level)?;
        let (local, _) = view.parts.get(part)?.now.as_ref()?;
        let local = local.clone();
        drop(view);
        local.touch();
        local.choose(&PickContext { level: Some((priority as usize, degraded)), tried: &[], ..*context })
    }

    /// Whether a priority that is not one of `tried` could take requests.
    pub fn has_others(&self, tried: &[u32]) -> bool {
        has_others(&self.view.borrow().availability, tried)
    }

    /// Which of the priorities a host is in.
    pub fn priority_of(&self, pool: &HostPool) -> u32 {
        let view = self.view.borrow();
        let is_of = |part: &usize| {
            let now = view.parts.get(*part).and_then(|part| part.now.as_ref());
            now.is_some_and(|(local, _)| Arc::ptr_eq(&local.cluster, pool.cluster()))
        };
        let priority = pool.host.template.priority;
        let found = view.levels.iter().position(|(part, level)| *level == priority && is_of(part));
        found.unwrap_or(0) as u32
    }

    /// Lets go of members that were replaced or are gone.
    pub(in crate::upstream) fn sweep(&self) {
        let mut view = self.view.borrow_mut();
        if view.made && !view.parts.iter().all(Part::is_current) {
            view.made = false;
            view.parts.iter_mut().for_each(|part| part.now = None);
        }
    }

    fn refresh(&self) {
        let mut view = self.view.borrow_mut();
        if view.made && view.parts.iter().all(Part::is_current) {
            return;
        }
        self.renew(&mut view);
    }

    #[cold]
    fn renew(&self, view: &mut View) {
        let Some(places) = self.places.upgrade() else { return };
        let mut levels = Vec::new();
        let mut tallies = Vec::new();
        for (index, part) in view.parts.iter_mut().enumerate() {
            part.now = places.cluster(&part.slot).filter(|local| !local.is_aggregate()).map(|local| {
                let set = local.cluster.hosts.load_full();
                (local, set)
            });
            let Some((_, set)) = &part.now else { continue };
            for (priority, level) in set.priorities.iter().enumerate() {
                if !level.hosts.is_empty() {
                    // A set has at most 129 priorities.
                    levels.push((index, priority as u32));
                    tallies.push(Tally::of(level, &set.all, &set.states, set.options));
                }
            }
        }
        let (load, availability) = shares(&tallies, self.panic_threshold);
        (view.levels, view.load, view.availability, view.made) = (levels, load, availability, true);
    }
}
