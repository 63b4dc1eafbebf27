//! One worker's state for one cluster: its load balancer and one pool per host.

mod foresight;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::balancing::aggregate::Aggregate;
use super::balancing::subset::{Plan, SubsetIndex, SubsetNote, Target};
use super::balancing::zone::{ZoneNote, ZoneRouting};
use super::balancing::{clock, suspect};
use super::pick::{Ground, PickContext, Picker};
use super::pool::leaving::Leavers;
use super::pool::HostPool;
use super::replay::ReplayBudget;
use super::{Places, UpstreamError};
use crate::config::balancing::{Criteria, LbPolicy, LocalityLb, OverrideHost, ZoneAware};
use crate::config::cluster::{Address, Discovery, Health, HealthFlags, HostShared, HostTemplate, Split};
use crate::config::{Cluster, Host, HostSet};

/// A cluster as one worker uses it.
#[derive(Debug)]
pub struct ClusterLocal {
    /// The compiled cluster.
    pub cluster: Arc<Cluster>,
    view: RefCell<View>,
    leavers: Leavers,
    /// Pools of hosts that no host set lists (original destinations).
    dynamic: RefCell<HashMap<SocketAddr, Destination>>,
    /// Whether anybody asked for it since the last sweep, and when a sweep last found so.
    used: Cell<bool>,
    last_used: Cell<Instant>,
    /// What may be sent again.
    replays: ReplayBudget,
    /// A pick needs more than the hosts and a policy.
    special: bool,
    /// The other clusters whose hosts it has.
    aggregate: Option<Box<Aggregate>>,
}

/// An original destination.
#[derive(Debug)]
struct Destination {
    pool: Rc<HostPool>,
    /// When it was last asked for or seen to have a connection.
    used: Instant,
}

/// A cluster without requests and connections for this long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// Plans for the criteria of so many routes are remembered.
const MOST_PLANS: usize = 4096;
/// Pools of hosts that stay, whatever is said of them now.
type Kept = HashMap<*const HostShared, Rc<HostPool>>;

/// The host set that the picker and the pools were made for.
#[derive(Debug)]
struct View {
    set: Arc<HostSet>,
    picker: Picker,
    pools: Vec<Rc<HostPool>>,
    rng: fastrand::Rng,
    more: Option<Box<More>>,
}

/// What only some clusters need.
#[derive(Debug, Default)]
struct More {
    /// The pickers of subsets that were asked.
    subsets: HashMap<u32, Picker>,
    subsets_known: bool,
    /// By the address of the criteria, which are held.
    plans: HashMap<*const Criteria, (Arc<Criteria>, Rc<Plan>)>,
    /// The plan for requests without criteria.
    plan: Option<Rc<Plan>>,
    /// The hosts of the local cluster that routing by zone was decided by.
    local: Option<Arc<HostSet>>,
    zone_known: bool,
    /// After how many changes of weights by load the schedules were made.
    weighed: u32,
    /// Hosts by address.
    addresses: HashMap<Arc<str>, u32>,
    /// Picks that were made ahead of their requests.
    foreseen: VecDeque<usize>,
}

impl ClusterLocal {
    pub(super) fn new(cluster: Arc<Cluster>, places: &Rc<Places>) -> Self {
        let set = cluster.hosts.load_full();
        let leavers = Leavers::default();
        let view = View::new(&cluster, set, HashMap::new(), &leavers);
        let balancing = &cluster.balancing;
        let aggregate = match &cluster.discovery {
            Discovery::Aggregate(members) => {
                Some(Box::new(Aggregate::new(members, &cluster, Rc::downgrade(places))))
            }
            _ => None,
        };
        let special = aggregate.is_some()
            || balancing.subsets.is_some()
            || balancing.slow_start.is_some()
            || balancing.override_host.is_some()
            || matches!(balancing.locality, LocalityLb::ZoneAware(_))
            || matches!(balancing.policy, LbPolicy::ClientSideWeighted(_))
            || balance_factor(&balancing.policy) > 0
            || cluster.predictive_ratio.is_some();
        Self {
            view: RefCell::new(view),
            leavers,
            dynamic: RefCell::default(),
            used: Cell::new(true),
            last_used: Cell::new(Instant::now()),
            replays: ReplayBudget::default(),
            special,
            aggregate,
            cluster,
        }
    }

    /// Notes that it is in use, for a request.
    pub(super) fn touch(&self) {
        self.used.set(true);
        self.replays.earn();
    }

    /// Whether a request that no upstream has begun with may be sent again beside what retries allow; counted either way.
    #[cold]
    pub fn may_replay(&self) -> bool {
        let may = self.replays.spend();
        self.cluster.stats().count_replay(may);
        may
    }

    /// Whether nobody asked for it for long and it has no connections. Only [`ClusterLocal::sweep`]
    /// makes it so.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_used.get()) >= IDLE
            && self.dynamic.borrow().is_empty()
            && !self.view.borrow().pools.iter().any(|pool| pool.is_used())
    }

    /// Whether a pick goes by the hash of the request.
    pub fn hashes(&self) -> bool {
        match &self.aggregate {
            Some(aggregate) => aggregate.hashes(),
            None => self.cluster.balancing.hashes(),
        }
    }

    /// The headers with which a request may ask for a host.
    pub fn override_host(&self) -> Option<&OverrideHost> {
        self.cluster.balancing.override_host.as_deref()
    }

    /// Whether its hosts are those of other clusters.
    #[inline]
    pub fn is_aggregate(&self) -> bool {
        self.aggregate.is_some()
    }

    /// Whether a priority that is not one of `tried` could take requests.
    pub fn has_others(&self, tried: &[u32]) -> bool {
        if let Some(aggregate) = &self.aggregate {
            return aggregate.has_others(tried);
        }
        has_others(&self.view.borrow().set.availability, tried)
    }

    /// Whether there is a host that is healthy and was reached when it was last tried, where picks look for such.
    #[cold]
    pub fn has_well(&self) -> bool {
        let well = |host: &Arc<Host>| {
            host.health() == Health::Healthy && !host.shared.health.has(HealthFlags::SUSPECT)
        };
        self.cluster.balancing.suspects && self.view.borrow().set.all.iter().any(well)
    }

    /// The priority that a host of this cluster has here.
    pub fn priority_of(&self, pool: &HostPool) -> u32 {
        match &self.aggregate {
            Some(aggregate) => aggregate.priority_of(pool),
            None => pool.host.template.priority,
        }
    }

    /// The next host, where nothing but the order of hosts decides; else `None`, and
    /// [`ClusterLocal::pick`] has to be asked.
    pub fn next(&self) -> Option<Rc<HostPool>> {
        if self.special {
            return None;
        }
        let view = &mut *self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &self.cluster.hosts.load()) {
            return None;
        }
        let ground = Ground { all: &view.set.all, split: &view.set.split, now: 0 };
        let index = view.picker.next(ground)?;
        view.pools.get(index).cloned()
    }

    /// Chooses a host.
    ///
    /// # Errors
    /// [`UpstreamError::NoHealthyHost`] when none may be used.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Rc<HostPool>, UpstreamError> {
        self.choose(context).ok_or_else(|| {
            self.cluster.stats().upstream_cx_none_healthy.increment(1);
            UpstreamError::NoHealthyHost
        })
    }

    /// As [`ClusterLocal::pick`], but nothing is counted for want of a host.
    pub(super) fn choose(&self, context: &PickContext<'_>) -> Option<Rc<HostPool>> {
        if let Some(aggregate) = &self.aggregate {
            self.touch();
            return aggregate.choose(context);
        }
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &self.cluster.hosts.load()) {
            self.rebuild(&mut view);
        }
        if let Some((address, strict)) = context.session {
            let found = self.of_session(&mut view, address);
            if found.is_some() || strict {
                return found;
            }
        }
        if self.special {
            return self.choose_special(&mut view, context);
        }
        let View { set, picker, pools, rng, .. } = &mut *view;
        let ground = Ground { all: &set.all, split: &set.split, now: 0 };
        let chosen = picker.pick(ground, context, rng).and_then(|index| pools.get(index)).cloned();
        self.after(picker, set);
        chosen
    }

    /// The host of a session, if it may be used.
    #[cold]
    fn of_session(&self, view: &mut View, address: &[u8]) -> Option<Rc<HostPool>> {
        let View { set, pools, more, .. } = view;
        let index = more.get_or_insert_with(Box::default).at(set, address)?;
        let pool = pools.get(index as usize)?;
        self.cluster.balancing.askable.has(pool.host.status()).then(|| pool.clone())
    }

    /// Counts what happened in a pick, and looks after a suspect host.
    #[inline]
    fn after(&self, picker: &mut Picker, set: &HostSet) {
        if picker.panicked() {
            self.cluster.stats().lb_healthy_panic.increment(1);
        }
        if let Some(suspect) = picker.take_suspect() {
            self.look_into(set, suspect);
        }
        if let Some((size, least, most)) = picker.take_table() {
            let ring = matches!(self.cluster.balancing.policy, LbPolicy::RingHash(_));
            self.cluster.stats().set_table(ring, size, least, most);
        }
    }

    /// Asks a suspect host for a connection, if it is time.
    #[cold]
    fn look_into(&self, set: &HostSet, suspect: u32) {
        let Some(host) = set.all.get(suspect as usize) else { return };
        if !suspect::may_ask(host, clock()) {
            return;
        }
        let (host, cluster) = (host.clone(), self.cluster.clone());
        tokio::task::spawn_local(async move {
            let socket = cluster.socket_to(&host);
            let connect = crate::runtime::socket::connect(&host.address, &socket);
            if let Ok(Ok(_)) = tokio::time::timeout(cluster.connect_timeout, connect).await {
                suspect::answered(&host);
            }
        });
    }

    fn choose_special(&self, view: &mut View, context: &PickContext<'_>) -> Option<Rc<HostPool>> {
        let View { set, picker, pools, rng, more } = view;
        let more = &mut **more.get_or_insert_with(Box::default);
        let balancing = &self.cluster.balancing;
        while let Some(index) = more.foreseen.pop_front() {
            let Some(pool) = pools.get(index) else { continue };
            let suspect = pool.host.shared.health.has(HealthFlags::SUSPECT);
            if !suspect && !context.reject.is_some_and(|reject| reject(&pool.host)) {
                return Some(pool.clone());
            }
        }
        if let Some(wanted) = context.wanted {
            let found = more.find(set, wanted).and_then(|index| pools.get(index as usize));
            if let Some(pool) = found {
                return Some(pool.clone());
            }
        }
        if let LocalityLb::ZoneAware(options) = &balancing.locality {
            let local = options.local.load().as_ref().map(|local| local.hosts.load_full());
            let same = match (&local, &more.local) {
                (Some(now), Some(before)) => Arc::ptr_eq(now, before),
                (now, before) => now.is_none() && before.is_none(),
            };
            if !same || !more.zone_known {
                more.local = local;
                more.zone_known = true;
                more.subsets.clear();
                picker.set_zone(Some(self.zone(options, set, &set.split, more.local.as_deref())));
            }
        }
        let mut now = if balancing.slow_start.is_some() { clock() } else { 0 };
        if let LbPolicy::ClientSideWeighted(options) = &balancing.policy {
            now = clock();
            let generation = self.cluster.hosts.reckoning.follow(set, options, now);
            if more.weighed != generation {
                more.weighed = generation;
                picker.reweigh();
                more.subsets.clear();
            }
        }
        let ground = Ground { all: &set.all, split: &set.split, now };
        let mut context = *context;
        if balance_factor(&balancing.policy) > 0 {
            let [default, high] = &self.cluster.breakers;
            context.in_flight = default.requests.used().saturating_add(high.requests.used());
        }
        let Some(options) = &balancing.subsets else {
            let chosen = picker.pick(ground, &context, rng);
            self.after(picker, set);
            self.count_zone(picker.take_zone_note());
            return chosen.and_then(|index| pools.get(index)).cloned();
        };
        let index = set.subsets.get_or_init(|| SubsetIndex::new(options.clone(), set)).clone();
        let plan = more.plan(&index, context.metadata);
        let stats = self.cluster.stats().balancing();
        if !more.subsets_known {
            more.subsets_known = true;
            self.cluster.stats().set_subsets(index.len(), index.duplicates, index.changes);
        }
        for (target, note) in plan.iter() {
            if *note == SubsetNote::Selected {
                stats.lb_subsets_selected.increment(1);
            }
            let chosen = match target {
                Target::Any => {
                    let chosen = picker.pick(ground, &context, rng);
                    self.after(picker, set);
                    self.count_zone(picker.take_zone_note());
                    chosen
                }
                Target::Subset(subset) => {
                    let Some(found) = index.get(*subset) else { continue };
                    if let Some(single) = found.single {
                        Some(single as usize)
                    } else {
                        let own = more.subsets.entry(*subset).or_insert_with(|| {
                            let factor = set.options.overprovisioning;
                            let mut own = Picker::new(balancing, &found.split, factor, rng);
                            if let LocalityLb::ZoneAware(options) = &balancing.locality {
                                let local = more.local.as_deref();
                                own.set_zone(Some(self.zone(options, set, &found.split, local)));
                            }
                            own
                        });
                        let chosen = own.pick(Ground { split: &found.split, ..ground }, &context, rng);
                        self.after(own, set);
                        self.count_zone(own.take_zone_note());
                        chosen
                    }
                }
            };
            if let Some(pool) = chosen.and_then(|index| pools.get(index)) {
                match note {
                    SubsetNote::Fallback => stats.lb_subsets_fallback.increment(1),
                    SubsetNote::Panic => stats.lb_subsets_fallback_panic.increment(1),
                    SubsetNote::Selected | SubsetNote::None => {}
                }
                return Some(pool.clone());
            }
        }
        None
    }

    /// Decides on routing by zone for the hosts of `split`, all of `set` or a subset.
    fn zone(
        &self,
        options: &ZoneAware,
        set: &HostSet,
        split: &Split,
        local: Option<&HostSet>,
    ) -> ZoneRouting {
        let threshold = self.cluster.panic_threshold.into();
        let (zone, note) = ZoneRouting::new(&set.all, split, local, options, threshold);
        self.cluster.stats().lb_recalculate_zone_structures.increment(1);
        self.count_zone(note);
        zone
    }

    fn count_zone(&self, note: Option<ZoneNote>) {
        let Some(note) = note else { return };
        let stats = self.cluster.stats().balancing();
        match note {
            ZoneNote::LocalNotOk => stats.lb_local_cluster_not_ok.increment(1),
            ZoneNote::TooSmall => stats.lb_zone_cluster_too_small.increment(1),
            ZoneNote::Direct => stats.lb_zone_routing_all_directly.increment(1),
            ZoneNote::Sampled => stats.lb_zone_routing_sampled.increment(1),
            ZoneNote::CrossZone => stats.lb_zone_routing_cross_zone.increment(1),
            ZoneNote::NoCapacity => {
                stats.lb_zone_routing_cross_zone.increment(1);
                stats.lb_zone_no_capacity_left.increment(1);
            }
        }
    }

    /// The pool of an original destination, made on demand.
    pub fn original_destination(&self, address: SocketAddr) -> Rc<HostPool> {
        let mut dynamic = self.dynamic.borrow_mut();
        let used = Instant::now();
        let destination = dynamic.entry(address).or_insert_with(|| {
            let host = Host::new(Address::Ip(address), HostTemplate::default());
            Destination { pool: HostPool::new(&self.cluster, host), used }
        });
        destination.used = used;
        destination.pool.clone()
    }

    /// The pool of the host at `address`, listed or not.
    pub fn holding(&self, address: SocketAddr) -> Rc<HostPool> {
        let is_it = |pool: &&Rc<HostPool>| pool.host.address == Address::Ip(address);
        let listed = self.view.borrow().pools.iter().find(is_it).cloned();
        listed.unwrap_or_else(|| self.original_destination(address))
    }

    pub(super) fn sweep(&self, now: Instant) {
        if self.used.replace(false) {
            self.last_used.set(now);
        }
        if let Some(aggregate) = &self.aggregate {
            aggregate.sweep();
        }
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &self.cluster.hosts.load()) {
            self.rebuild(&mut view);
        }
        for pool in &view.pools {
            pool.sweep(now);
        }
        self.leavers.sweep(now);
        self.dynamic.borrow_mut().retain(|_, Destination { pool, used }| {
            pool.sweep(now);
            if pool.is_used() {
                *used = now;
            }
            now.saturating_duration_since(*used) < self.cluster.cleanup_interval
        });
    }

    /// Follows a new host set: hosts that stayed keep their pools, those of the others are kept for a while in case
    /// that they come back.
    #[cold]
    fn rebuild(&self, view: &mut View) {
        let mut kept: Kept =
            view.pools.drain(..).map(|pool| (Arc::as_ptr(&pool.host.shared), pool)).collect();
        let set = self.cluster.hosts.load_full();
        let mut keep: Kept = set
            .all
            .iter()
            .filter_map(|host| kept.remove_entry(&Arc::as_ptr(&host.shared)))
            .filter(|(_, pool)| {
                let fit = !pool.has_failed();
                if !fit {
                    // Its connections are not used on: if one of them leads astray, others may not.
                    pool.retire();
                }
                fit
            })
            .collect();
        let joined = keep.len() < set.all.len();
        if self.cluster.balancing.close_on_host_set_change && (joined || !kept.is_empty()) {
            kept.drain().chain(keep.drain()).for_each(|(_, pool)| pool.retire());
        }
        self.cluster.hosts.reckoning.hasten();
        *view = View::new(&self.cluster, set, keep, &self.leavers);
        if !kept.is_empty() {
            let now = Instant::now();
            kept.into_values().for_each(|pool| self.leavers.take_in(pool, now));
        }
    }
}

/// Whether there is something that can take requests, besides the levels that were tried.
pub(super) fn has_others(availability: &[(u8, u8)], tried: &[u32]) -> bool {
    let mut left = availability.iter().enumerate().filter(|(level, _)| !tried.contains(&(*level as u32)));
    left.any(|(_, (healthy, degraded))| *healthy > 0 || *degraded > 0)
}

fn balance_factor(policy: &LbPolicy) -> u32 {
    match policy {
        LbPolicy::RingHash(ring) => ring.hashing.balance_factor,
        LbPolicy::Maglev(maglev) => maglev.hashing.balance_factor,
        _ => 0,
    }
}

impl Drop for ClusterLocal {
    fn drop(&mut self) {
        for pool in &self.view.borrow().pools {
            pool.retire();
        }
        self.leavers.retire();
        for destination in self.dynamic.borrow().values() {
            destination.pool.retire();
        }
    }
}

impl View {
    fn new(cluster: &Arc<Cluster>, set: Arc<HostSet>, mut kept: Kept, leavers: &Leavers) -> Self {
        let mut rng = fastrand::Rng::new();
        let picker = Picker::new(&cluster.balancing, &set, set.options.overprovisioning, &mut rng);
        let pools = set
            .all
            .iter()
            .map(|host| {
                kept.remove(&Arc::as_ptr(&host.shared)).unwrap_or_else(|| {
                    let pool = HostPool::new(cluster, host.clone());
                    leavers.pass_on(&pool);
                    pool
                })
            })
            .collect();
        Self { set, picker, pools, rng, more: None }
    }
}

impl More {
    /// What to ask for these criteria.
    fn plan(&mut self, index: &SubsetIndex, criteria: Option<&Arc<Criteria>>) -> Rc<Plan> {
        let Some(criteria) = criteria else {
            return self.plan.get_or_insert_with(|| Rc::new(index.plan(None))).clone();
        };
        if let Some((_, plan)) = self.plans.get(&Arc::as_ptr(criteria)) {
            return plan.clone();
        }
        if self.plans.len() >= MOST_PLANS {
            self.plans.clear();
        }
        let plan = Rc::new(index.plan(Some(criteria)));
        self.plans.insert(Arc::as_ptr(criteria), (criteria.clone(), plan.clone()));
        plan
    }

    /// The host whose turn it is of those that a request asks for. As in Envoy its health does not count: who chose
    /// it knows better.
    fn find(&mut self, set: &HostSet, (lists, turn): (&[&[u8]], usize)) -> Option<u32> {
        let named = lists.iter().flat_map(|list| list.split(|byte| *byte == b','));
        named.filter_map(|address| self.at(set, address.trim_ascii())).nth(turn)
    }

    /// The host at an address.
    fn at(&mut self, set: &HostSet, address: &[u8]) -> Option<u32> {
        if self.addresses.is_empty() {
            let named = set.all.iter().enumerate();
            self.addresses = named.map(|(index, host)| (host.address_text.clone(), index as u32)).collect();
        }
        self.addresses.get(std::str::from_utf8(address).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::cluster::Discovery;
    use crate::config::fixtures;

    #[test]
    fn an_original_destination_is_kept_for_the_cleanup_interval() {
        let discovery = Discovery::OriginalDst { header: None, port_override: None };
        let cleanup_interval = Duration::from_secs(9);
        let cluster = Cluster { cleanup_interval, ..fixtures::cluster("destinations", discovery) };
        let local = ClusterLocal::new(Arc::new(cluster), &Rc::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let before = local.original_destination(address);
        let start = Instant::now();
        local.sweep(start + cleanup_interval / 2);
        assert!(Rc::ptr_eq(&before, &local.original_destination(address)));
        local.sweep(start + cleanup_interval * 2);
        assert!(!Rc::ptr_eq(&before, &local.original_destination(address)));
    }
}
