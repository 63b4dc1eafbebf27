//! Choosing a host: priority first, then the locality where that matters, then the policy. Pure but for the random
//! numbers and the time it is given.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use smallvec::SmallVec;

use super::balancing::table::{Bound, HashTable, Shuffle};
use super::balancing::zone::{ZoneNote, ZoneRouting};
use super::edf::Edf;
use super::host_set::distribute;
use crate::config::balancing::{Balancing, Criteria, LbPolicy, LocalityLb};
use crate::config::cluster::{HealthFlags, LocalityHosts, PriorityHosts, PriorityLoad, Split};
use crate::config::Host;

/// What a pick may depend on.
#[derive(Default, Clone, Copy)]
pub struct PickContext<'a> {
    /// The hash of the request, for policies that hash; without one, a random number.
    pub hash: Option<u64>,
    /// What is asked of the host's metadata, for subsets.
    pub metadata: Option<&'a Arc<Criteria>>,
    /// The hosts that the request asks for, lists of addresses separated by commas, and how many had their turn.
    pub wanted: Option<(&'a [&'a [u8]], usize)>,
    /// The address of the host of the request's session, and whether no other will do.
    pub session: Option<(&'a [u8], bool)>,
    /// Hosts not to be chosen if another is found.
    pub reject: Option<&'a dyn Fn(&Host) -> bool>,
    /// How often to pick again for that (`host_selection_retry_max_attempts`).
    pub repicks: u32,
    /// Priorities that earlier tries of the request went to (`previous_priorities`).
    pub tried: &'a [u32],
    /// Requests of the whole cluster, for bounded loads.
    pub in_flight: u32,
    /// The priority and whether its degraded hosts are meant, where that is already decided.
    pub level: Option<(usize, bool)>,
}

/// What a pick is made from.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// All hosts of the cluster.
    pub all: &'a [Arc<Host>],
    /// Those to choose from.
    pub split: &'a Split,
    /// Milliseconds of [`super::balancing::clock`], for slow start.
    pub now: u64,
}

/// The state of one worker's load balancer for one set of hosts.
#[derive(Debug)]
pub struct Picker {
    balancing: Arc<Balancing>,
    hashes: bool,
    /// One list of healthy hosts takes turns, and nothing else matters.
    plain: bool,
    levels: Vec<Level>,
    zone: Option<ZoneRouting>,
    panicked: bool,
    zone_note: Option<ZoneNote>,
    suspect: Option<u32>,
    /// The size of the table, until somebody has asked for it.
    table: Option<(u64, u64, u64)>,
    table_known: bool,
    last: SourceId,
    shuffle: Shuffle,
}

/// Which hosts of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    All = 0,
    Healthy = 1,
    Degraded = 2,
}

/// A list of hosts: of a level, or of one of its localities.
#[derive(Debug, Clone, Copy)]
struct SourceId {
    level: usize,
    kind: Kind,
    locality: Option<usize>,
}

/// The host sources of one priority.
#[derive(Debug, Default)]
struct Level {
    sources: [Source; 3],
    near: Option<Box<Near>>,
}

/// The host sources of one priority by locality, and the schedules by which localities take turns. The first
/// of each pair is of healthy hosts, the second of degraded ones.
#[derive(Debug)]
struct Near {
    sources: [Vec<Source>; 2],
    schedules: [Option<Turns>; 2],
}

/// Localities that take turns.
#[derive(Debug)]
struct Turns {
    edf: Edf,
    localities: Vec<usize>,
    weights: Vec<f64>,
}

/// What is remembered of one list of hosts between picks.
#[derive(Debug, Default)]
struct Source {
    ready: bool,
    next: usize,
    weighted: Option<Box<Edf>>,
}

/// How often the policy is asked again for a host that is not suspect, before hosts are looked at in order.
const OTHERS: u32 = 4;
/// How many hosts are looked at then.
const LOOKS: usize = 32;

impl Picker {
    /// A balancer over `split`. Overprovisioning is in percent.
    pub fn new(
        balancing: &Arc<Balancing>,
        split: &Split,
        overprovisioning: u32,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let weighted = balancing.locality == LocalityLb::Weighted;
        let mut levels: Vec<Level> = split.priorities.iter().map(|_| Level::default()).collect();
        if !balancing.hashes() {
            for (level, hosts) in levels.iter_mut().zip(&split.priorities) {
                if !hosts.localities.is_empty() {
                    level.near = Some(Box::new(Near::new(hosts, weighted, overprovisioning, rng)));
                }
            }
        }
        let one = matches!(split.load.as_slice(), [only] if only.healthy == 100 && !only.panic);
        let near = levels.iter().any(|level| level.near.is_some());
        Self {
            balancing: balancing.clone(),
            hashes: balancing.hashes(),
            plain: one && !near && balancing.policy == LbPolicy::RoundRobin,
            levels,
            zone: None,
            panicked: false,
            zone_note: None,
            suspect: None,
            table: None,
            table_known: false,
            last: SourceId { level: 0, kind: Kind::All, locality: None },
            shuffle: Shuffle::default(),
        }
    }

    /// Routes the highest priority by zone from now on.
    pub fn set_zone(&mut self, zone: Option<ZoneRouting>) {
        self.zone = zone.filter(|zone| *zone != ZoneRouting::None);
    }

    /// The weights of hosts have changed: schedules begin anew.
    pub fn reweigh(&mut self) {
        for level in &mut self.levels {
            let near = level.near.iter_mut().flat_map(|near| near.sources.iter_mut().flatten());
            for source in level.sources.iter_mut().chain(near) {
                *source = Source::default();
            }
        }
    }

    /// Whether the last pick was made in panic: health was not heeded.
    #[inline]
    pub fn panicked(&self) -> bool {
        self.panicked
    }

    /// What zones had to do with the last pick.
    #[inline]
    pub fn take_zone_note(&mut self) -> Option<ZoneNote> {
        self.zone_note.take()
    }

    /// The entries of the hash table, and those of the host with the fewest and with the most; once.
    #[inline]
    pub fn take_table(&mut self) -> Option<(u64, u64, u64)> {
        self.table.take()
    }

    /// A suspect host that was the policy's choice.
    #[inline]
    pub fn take_suspect(&mut self) -> Option<u32> {
        self.suspect.take()
    }

    /// What [`Picker::pick`] would say without any context, where that takes nothing but the next of a list; else
    /// `None`, and nothing has happened.
    #[inline]
    pub fn next(&mut self, ground: Ground<'_>) -> Option<usize> {
        if !self.plain {
            return None;
        }
        let [Level { sources: [_, source, _], .. }] = self.levels.as_mut_slice() else { return None };
        let [PriorityHosts { healthy, .. }] = ground.split.priorities.as_slice() else { return None };
        if !source.ready || source.weighted.is_some() {
            return None;
        }
        let next = if source.next + 1 >= healthy.len() { 0 } else { source.next + 1 };
        let index = *healthy.get(next)? as usize;
        if ground.all.get(index)?.shared.health.has(HealthFlags::SUSPECT) {
            return None;
        }
        source.next = next;
        Some(index)
    }

    /// The index of a host, or `None` when no host may be used.
    pub fn pick(
        &mut self,
        ground: Ground<'_>,
        context: &PickContext<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let hash = match context.hash {
            None if self.hashes => rng.u64(..),
            hash => hash.unwrap_or(0),
        };
        let mut chosen = self.pick_once(ground, context, hash, 0, rng)?;
        if let Some(reject) = context.reject {
            for attempt in 1..=context.repicks {
                if !reject(ground.all.get(chosen as usize)?) {
                    break;
                }
                chosen = self.pick_once(ground, context, hash, attempt, rng)?;
            }
        }
        if ground.all.get(chosen as usize)?.shared.health.has(HealthFlags::SUSPECT) {
            chosen = self.pass_over(chosen, ground, context, hash, rng);
        }
        Some(chosen as usize)
    }

    /// Another host than the suspect one: of the same list if there is one, else of another priority; else
    /// the suspect one. Looks at a bounded number of hosts.
    #[cold]
    fn pass_over(
        &mut self,
        first: u32,
        ground: Ground<'_>,
        context: &PickContext<'_>,
        hash: u64,
        rng: &mut fastrand::Rng,
    ) -> u32 {
        self.suspect = Some(first);
        let rejected = |host: &Host| context.reject.is_some_and(|reject| reject(host));
        let good = |index: u32| {
            let host = ground.all.get(index as usize);
            host.is_some_and(|host| !host.shared.health.has(HealthFlags::SUSPECT) && !rejected(host))
        };
        let list = self.last.of(ground.split);
        let last = self.last;
        for attempt in 1..=OTHERS {
            let again = self.pick_once(ground, context, hash, context.repicks + attempt, rng);
            if let Some(again) = again.filter(|again| good(*again)) {
                return again;
            }
        }
        let from = if self.hashes { hash } else { rng.u64(..) };
        let look = |list: &[u32], most: usize| {
            let start = from.checked_rem(list.len() as u64)? as usize;
            let order = list.iter().cycle().skip(start).take(list.len().min(most));
            order.copied().find(|index| good(*index))
        };
        look(list, LOOKS)
            .or_else(|| {
                let others =
                    ground.split.priorities.iter().enumerate().filter(|(level, _)| *level != last.level);
                let mut others = others.filter(|_| context.level.is_none());
                others.find_map(|(_, level)| look(&level.healthy, LOOKS / 4))
            })
            .unwrap_or(first)
    }

    fn pick_once(
        &mut self,
        ground: Ground<'_>,
        context: &PickContext<'_>,
        hash: u64,
        attempt: u32,
        rng: &mut fastrand::Rng,
    ) -> Option<u32> {
        self.panicked = false;
        if self.hashes {
            return self.pick_hashed(ground, context, hash, attempt);
        }
        let id = self.choose_source(ground, context, rng)?;
        self.last = id;
        let list = id.of(ground.split);
        let level = self.levels.get_mut(id.level)?;
        let source = match (id.locality, &mut level.near) {
            (Some(locality), Some(near)) => {
                near.sources.get_mut(usize::from(id.kind == Kind::Degraded))?.get_mut(locality)?
            }
            _ => level.sources.get_mut(id.kind as usize)?,
        };
        source.pick(&self.balancing, list, ground, rng)
    }

    fn choose_source(
        &mut self,
        ground: Ground<'_>,
        context: &PickContext<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<SourceId> {
        let split = ground.split;
        // One level with all its hosts healthy is the usual case and needs no draw.
        let (level, degraded) = match (split.load.as_slice(), context.level) {
            (_, Some(decided)) => decided,
            ([only], None) if only.healthy == 100 => (0, false),
            (loads, None) if context.tried.is_empty() => choose_level(loads, rng.u32(0..100))?,
            (_, None) => {
                choose_level(&untried(&split.load, &split.availability, context.tried), rng.u32(0..100))?
            }
        };
        self.panicked = split.load.get(level)?.panic;
        if self.panicked {
            let all = SourceId { level, kind: Kind::All, locality: None };
            return (!self.balancing.fail_traffic_on_panic).then_some(all);
        }
        let kind = if degraded { Kind::Degraded } else { Kind::Healthy };
        let plain = SourceId { level, kind, locality: None };
        let Some(near) = &mut self.levels.get_mut(level)?.near else { return Some(plain) };
        if let Some(turns) = near.schedules.get_mut(usize::from(degraded)).and_then(Option::as_mut) {
            let Turns { edf, localities, weights } = turns;
            let turn = edf.pick(|item| weights.get(item as usize).copied().unwrap_or(1.0));
            let locality = turn.and_then(|turn| localities.get(turn as usize)).copied();
            return Some(SourceId { locality, ..plain });
        }
        let (0, Some(zone), LocalityLb::ZoneAware(options)) = (level, &self.zone, &self.balancing.locality)
        else {
            return Some(plain);
        };
        if options.routing_enabled < 100 && rng.u8(0..100) >= options.routing_enabled {
            return Some(plain);
        }
        if *zone == ZoneRouting::LocalPanic {
            self.zone_note = Some(ZoneNote::LocalNotOk);
            return (!self.balancing.fail_traffic_on_panic).then_some(plain);
        }
        let Some((locality, note)) = zone.choose(rng) else { return Some(plain) };
        self.zone_note = Some(note);
        Some(SourceId { locality: Some(locality), ..plain })
    }

    fn pick_hashed(
        &mut self,
        ground: Ground<'_>,
        context: &PickContext<'_>,
        hash: u64,
        attempt: u32,
    ) -> Option<u32> {
        let split = ground.split;
        let (level, _) = match split.load.as_slice() {
            [only] if only.healthy == 100 => (0, false),
            loads => choose_level(loads, (hash % 100) as u32)?,
        };
        self.panicked = split.load.get(level)?.panic;
        self.last =
            SourceId { level, kind: if self.panicked { Kind::All } else { Kind::Healthy }, locality: None };
        let policy = &self.balancing.policy;
        let table = split.priorities.get(level)?.table.get_or_init(|| {
            let weighted = self.balancing.locality == LocalityLb::Weighted;
            HashTable::new(ground.all, split, level, policy, weighted)
        });
        if !self.table_known {
            (self.table_known, self.table) = (true, Some(table.size));
        }
        let factor = match policy {
            LbPolicy::RingHash(ring) => ring.hashing.balance_factor,
            LbPolicy::Maglev(maglev) => maglev.hashing.balance_factor,
            _ => 0,
        };
        if factor == 0 {
            return table.pick(hash, attempt);
        }
        let bound = Bound { all: ground.all, in_flight: context.in_flight, factor };
        table.pick_bounded(hash, attempt, &bound, &mut self.shuffle)
    }
}

/// The loads without the priorities that were tried; as they are when no other can take anything.
pub(super) fn untried(
    load: &[PriorityLoad],
    availability: &[(u8, u8)],
    tried: &[u32],
) -> SmallVec<[PriorityLoad; 8]> {
    let mut left: SmallVec<[(u8, u8); 8]> = availability.iter().copied().collect();
    for priority in tried {
        if let Some(level) = left.get_mut(*priority as usize) {
            *level = (0, 0);
        }
    }
    let mut changed: SmallVec<[PriorityLoad; 8]> =
        load.iter().map(|load| PriorityLoad { healthy: 0, degraded: 0, ..*load }).collect();
    if distribute(&left, &mut changed) {
        changed
    } else {
        load.iter().copied().collect()
    }
}

/// The level, and whether its degraded hosts are meant, into whose share a draw from 0 to 99 falls.
pub(super) fn choose_level(loads: &[PriorityLoad], draw: u32) -> Option<(usize, bool)> {
    let mut sum = 0;
    for (index, load) in loads.iter().enumerate() {
        sum += u32::from(load.healthy);
        if draw < sum {
            return Some((index, false));
        }
    }
    for (index, load) in loads.iter().enumerate() {
        sum += u32::from(load.degraded);
        if draw < sum {
            return Some((index, true));
        }
    }
    None
}

impl SourceId {
    #[inline]
    fn of(self, split: &Split) -> &[u32] {
        let Some(level) = split.priorities.get(self.level) else { return &[] };
        if let Some(locality) = self.locality {
            let Some(near) = level.localities.get(locality) else { return &[] };
            return if self.kind == Kind::Degraded { &near.degraded } else { &near.healthy };
        }
        match self.kind {
            Kind::All => &level.hosts,
            Kind::Healthy => &level.healthy,
            Kind::Degraded => &level.degraded,
        }
    }
}

impl Near {
    fn new(level: &PriorityHosts, weighted: bool, overprovisioning: u32, rng: &mut fastrand::Rng) -> Self {
        let sources = || level.localities.iter().map(|_| Source::default()).collect();
        let mut turns = |of: fn(&LocalityHosts) -> &[u32]| {
            let weights =
                level.localities.iter().map(|near| effective_weight(near, of(near), overprovisioning));
            let (localities, weights): (Vec<usize>, Vec<f64>) =
                weights.enumerate().filter(|(_, weight)| *weight > 0.0).unzip();
            let edf = Edf::new(&weights, rng.u64(..));
            (!localities.is_empty()).then_some(Turns { edf, localities, weights })
        };
        let schedules = match weighted {
            true => [turns(|near| &near.healthy), turns(|near| &near.degraded)],
            false => [None, None],
        };
        Self { sources: [sources(), sources()], schedules }
    }
}

/// A locality's weight by how many of its hosts can be used.
fn effective_weight(near: &LocalityHosts, usable: &[u32], overprovisioning: u32) -> f64 {
    let counted = near.hosts.len().saturating_sub(near.excluded as usize);
    if counted == 0 {
        return 0.0;
    }
    let ratio = usable.len() as f64 / counted as f64;
    f64::from(near.weight) * (f64::from(overprovisioning) / 100.0 * ratio).min(1.0)
}

impl Source {
    /// On first use: starts anywhere, and by weights if there are several.
    #[cold]
    fn prepare(&mut self, balancing: &Balancing, hosts: &[u32], ground: Ground<'_>, rng: &mut fastrand::Rng) {
        self.ready = true;
        let Some(first) = hosts.first() else { return };
        self.next = rng.usize(..hosts.len());
        if !matches!(
            balancing.policy,
            LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. } | LbPolicy::ClientSideWeighted(_)
        ) {
            return;
        }
        let weight =
            |index: &u32| ground.all.get(*index as usize).map_or(1, |host| weight_of(balancing, host));
        let equal = hosts.iter().all(|index| weight(index) == weight(first));
        let slow = balancing.slow_start.is_some_and(|slow| {
            let new = |index: &u32| {
                ground.all.get(*index as usize).is_some_and(|host| {
                    slow.factor(ground.now.saturating_sub(host.shared.healthy_since.load(Ordering::Relaxed)))
                        < 1.0
                })
            };
            hosts.iter().any(new)
        });
        if equal && !slow || hosts.len() < 2 {
            return;
        }
        let weights: Vec<f64> = hosts.iter().map(|index| effective(balancing, *index, ground)).collect();
        self.weighted = Some(Box::new(Edf::new(&weights, rng.u64(..))));
    }

    fn pick(
        &mut self,
        balancing: &Balancing,
        hosts: &[u32],
        ground: Ground<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<u32> {
        if !self.ready {
            self.prepare(balancing, hosts, ground, rng);
        }
        if hosts.is_empty() {
            return None;
        }
        if let Some(edf) = &mut self.weighted {
            let weight = |item: u32| {
                hosts.get(item as usize).map_or(1.0, |index| effective(balancing, *index, ground))
            };
            return edf.pick(weight).and_then(|item| hosts.get(item as usize)).copied();
        }
        match &balancing.policy {
            LbPolicy::Random => hosts.get(rng.usize(..hosts.len())).copied(),
            LbPolicy::LeastRequest { full_scan: true, .. } => least_of_all(hosts, ground.all, rng),
            LbPolicy::LeastRequest { choice_count, .. } => {
                let mut best: Option<(u32, u32)> = None;
                for _ in 0..(*choice_count).max(2) {
                    let index = *hosts.get(rng.usize(..hosts.len()))?;
                    let load = active(ground.all, index);
                    if best.is_none_or(|(_, least)| load < least) {
                        best = Some((index, load));
                    }
                }
                best.map(|(index, _)| index)
            }
            _ => {
                self.next = if self.next + 1 >= hosts.len() { 0 } else { self.next + 1 };
                hosts.get(self.next).copied()
            }
        }
    }
}

fn active(all: &[Arc<Host>], index: u32) -> u32 {
    all.get(index as usize).map_or(0, |host| host.shared.active_requests.load(Ordering::Relaxed))
}

/// The host with the fewest requests; of equal ones, any.
fn least_of_all(hosts: &[u32], all: &[Arc<Host>], rng: &mut fastrand::Rng) -> Option<u32> {
    let mut best: Option<(u32, u32)> = None;
    let mut equal = 1;
    for index in hosts {
        let load = active(all, *index);
        match best {
            Some((_, least)) if load > least => {}
            Some((_, least)) if load == least => {
                equal += 1;
                if rng.u32(0..equal) == 0 {
                    best = Some((*index, load));
                }
            }
            _ => {
                equal = 1;
                best = Some((*index, load));
            }
        }
    }
    best.map(|(index, _)| index)
}

/// A host's weight without regard to its requests and its age.
fn weight_of(balancing: &Balancing, host: &Host) -> u32 {
    match balancing.policy {
        LbPolicy::ClientSideWeighted(_) => host.weight_by_load(),
        _ => host.template.weight.max(1),
    }
}

/// A host's weight in a schedule: by its requests where the policy heeds them, and less while it is new.
fn effective(balancing: &Balancing, index: u32, ground: Ground<'_>) -> f64 {
    let Some(host) = ground.all.get(index as usize) else { return 1.0 };
    let mut weight = f64::from(weight_of(balancing, host));
    if let LbPolicy::LeastRequest { active_request_bias, .. } = balancing.policy {
        let active = f64::from(host.shared.active_requests.load(Ordering::Relaxed)) + 1.0;
        weight /= if active_request_bias == 1.0 { active } else { active.powf(active_request_bias) };
    }
    if let Some(slow) = &balancing.slow_start {
        let since = host.shared.healthy_since.load(Ordering::Relaxed);
        weight *= slow.factor(ground.now.saturating_sub(since));
    }
    weight
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
