//! Sorting hosts into priorities and splitting traffic between them, by Envoy's integer arithmetic
//! (envoyproxy.io: load_balancing/priority, panic_threshold, degraded).

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::balancing::clock;
use crate::config::cluster::{Health, HealthFlags, LocalityHosts, PriorityHosts, PriorityLoad, Split};
use crate::config::{Host, HostSet};

/// What the split depends on besides the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitOptions {
    /// `overprovisioning_factor`. Default 140.
    pub overprovisioning: u32,
    /// `healthy_panic_threshold` in percent. Default 50; 0 disables.
    pub panic_threshold: u32,
    /// `weighted_priority_health`: weights count, not heads.
    pub weighted: bool,
    /// Sort by locality too.
    pub localities: bool,
    /// Hosts that were never checked are in no count.
    pub ignore_new_hosts: bool,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self {
            overprovisioning: 140,
            panic_threshold: 50,
            weighted: false,
            localities: false,
            ignore_new_hosts: false,
        }
    }
}

/// What a host's health was when it was sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostState {
    health: Health,
    excluded: bool,
    /// Active health checks failed: when they no longer do, it starts slowly again.
    checks_failed: bool,
}

impl HostState {
    fn of(host: &Host, options: SplitOptions) -> Self {
        Self {
            health: host.health(),
            excluded: host.is_excluded(options.ignore_new_hosts),
            checks_failed: host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC),
        }
    }
}

impl HostSet {
    /// Sorts `all` into priorities and computes each one's share.
    pub fn new(all: Vec<Arc<Host>>, options: SplitOptions) -> Self {
        let states: Box<[_]> = all.iter().map(|host| HostState::of(host, options)).collect();
        let mut now = None;
        for (host, state) in all.iter().zip(&states) {
            let since = &host.shared.healthy_since;
            if state.health == Health::Healthy && since.load(Ordering::Relaxed) == 0 {
                since.store(*now.get_or_insert_with(clock), Ordering::Relaxed);
            }
        }
        // A set has far less than 2^32 hosts.
        let split = Split::new(&all, &states, 0..all.len() as u32, options);
        Self { all, split, options, states, ..Self::default() }
    }

    /// The same hosts by their health of now.
    pub(crate) fn sorted_again(&self) -> Self {
        for (host, state) in self.all.iter().zip(&self.states) {
            let back = state.checks_failed && !host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC);
            if back {
                host.shared.healthy_since.store(clock(), Ordering::Relaxed);
            }
        }
        Self::new(self.all.clone(), self.options)
    }

    /// Whether each host's health is what it was sorted by.
    pub(crate) fn is_sorted(&self) -> bool {
        let current = self.all.iter().map(|host| HostState::of(host, self.options));
        current.eq(self.states.iter().copied())
    }

    /// Whether these are the hosts of `other`, in whatever order: one that only its checks keep is one of them still.
    pub(crate) fn has_members_of(&self, other: &HostSet) -> bool {
        let known: HashSet<_> = other.all.iter().map(|host| Arc::as_ptr(&host.shared)).collect();
        self.all.len() == other.all.len()
            && self.all.iter().all(|host| known.contains(&Arc::as_ptr(&host.shared)))
    }

    /// Makes the tables that workers use of `before`, so that none of them has to.
    pub(crate) fn prepare_as(&self, before: &HostSet) {
        self.split.prepare_as(&self.all, &before.split, &before.all);
        if let Some(subsets) = before.subsets.get() {
            self.subsets.get_or_init(|| subsets.renewed(self));
        }
    }
}

impl Split {
    /// Sorts the hosts at `indices` of `all`.
    pub(crate) fn new(
        all: &[Arc<Host>],
        states: &[HostState],
        indices: impl Iterator<Item = u32>,
        options: SplitOptions,
    ) -> Self {
        let mut priorities = vec![];
        let mut near: Vec<BTreeMap<_, LocalityHosts>> = Vec::new();
        for index in indices {
            let at = index as usize;
            let (Some(host), Some(state)) = (all.get(at), states.get(at)) else { continue };
            let priority = host.template.priority as usize;
            if priorities.len() <= priority {
                priorities.resize_with(priority + 1, PriorityHosts::default);
                near.resize_with(priority + 1, BTreeMap::new);
            }
            // Resized above.
            let level = &mut priorities[priority];
            level.hosts.push(index);
            level.excluded += u32::from(state.excluded);
            match state.health {
                Health::Healthy => level.healthy.push(index),
                Health::Degraded => level.degraded.push(index),
                Health::Unhealthy => {}
            }
            if options.localities {
                let locality = &host.template.locality;
                let place = near[priority].entry(locality.clone()).or_default();
                place.weight = host.template.locality_weight;
                place.hosts.push(index);
                place.excluded += u32::from(state.excluded);
                match state.health {
                    Health::Healthy => place.healthy.push(index),
                    Health::Degraded => place.degraded.push(index),
                    Health::Unhealthy => {}
                }
            }
        }
        if priorities.is_empty() {
            priorities.push(PriorityHosts::default());
        }
        for (level, near) in priorities.iter_mut().zip(near) {
            level.localities =
                near.into_iter().map(|(locality, hosts)| LocalityHosts { locality, ..hosts }).collect();
        }
        let tallies: Vec<_> = priorities.iter().map(|level| Tally::of(level, all, states, options)).collect();
        let (load, availability) = shares(&tallies, options.panic_threshold);
        Self { priorities, load, availability }
    }

    fn prepare_as(&self, all: &[Arc<Host>], before: &Split, hosts_before: &[Arc<Host>]) {
        for (level, (now, before)) in self.priorities.iter().zip(&before.priorities).enumerate() {
            if let Some(table) = before.table.get() {
                now.table.get_or_init(|| table.renewed(all, self, level, hosts_before));
            }
        }
    }
}

/// What the split needs to know of one priority.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Hosts, excluded ones too.
    pub hosts: u64,
    /// Hosts that count.
    pub counted: u64,
    /// Healthy hosts.
    pub healthy: u64,
    /// Degraded hosts.
    pub degraded: u64,
    /// All that count, the healthy and the degraded, as the availability weighs them.
    pub weighed: (u64, u64, u64),
    /// `overprovisioning_factor`.
    pub overprovisioning: u32,
}

impl Tally {
    /// Counts one level.
    pub fn of(level: &PriorityHosts, all: &[Arc<Host>], states: &[HostState], options: SplitOptions) -> Self {
        let hosts = level.hosts.len() as u64;
        let counted = hosts.saturating_sub(level.excluded.into());
        let (healthy, degraded) = (level.healthy.len() as u64, level.degraded.len() as u64);
        let weighed = if options.weighted {
            let weight = |index: &u32| all.get(*index as usize).map_or(0, |host| host.template.weight.max(1));
            let sum = |list: &[u32]| list.iter().map(|index| u64::from(weight(index))).sum::<u64>();
            let counts = |index: &&u32| states.get(**index as usize).is_some_and(|state| !state.excluded);
            let counted = level.hosts.iter().filter(counts).map(|index| u64::from(weight(index))).sum();
            (counted, sum(&level.healthy), sum(&level.degraded))
        } else {
            (counted, healthy, degraded)
        };
        Self { hosts, counted, healthy, degraded, weighed, overprovisioning: options.overprovisioning }
    }
}

/// Splits 100 % over priorities given (hosts, healthy, degraded) of each.
pub fn split(levels: &[(u64, u64, u64)], options: SplitOptions) -> Vec<PriorityLoad> {
    let tally = |(hosts, healthy, degraded): &(u64, u64, u64)| Tally {
        hosts: *hosts,
        counted: *hosts,
        healthy: *healthy,
        degraded: *degraded,
        weighed: (*hosts, *healthy, *degraded),
        overprovisioning: options.overprovisioning,
    };
    shares(&levels.iter().map(tally).collect::<Vec<_>>(), options.panic_threshold).0
}

/// The share of each priority, and how much it could take.
pub fn shares(levels: &[Tally], panic_threshold: u32) -> (Vec<PriorityLoad>, Vec<(u8, u8)>) {
    let availability: Vec<(u8, u8)> = levels
        .iter()
        .map(|level| {
            let (all, healthy, degraded) = level.weighed;
            let share = |part: u64| {
                let share = (u64::from(level.overprovisioning) * part).checked_div(all);
                share.filter(|_| level.counted > 0).unwrap_or(0).min(100) as u8
            };
            (share(healthy), share(degraded))
        })
        .collect();
    let mut load = vec![PriorityLoad::default(); levels.len()];
    let total: u32 =
        availability.iter().map(|(healthy, degraded)| u32::from(*healthy) + u32::from(*degraded)).sum();

    if total < 100 && panic_threshold > 0 {
        for (load, level) in load.iter_mut().zip(levels) {
            let percent = (100 * (level.healthy + level.degraded)).checked_div(level.counted).unwrap_or(0);
            load.panic = percent < u64::from(panic_threshold);
        }
    }
    if load.iter().all(|level| level.panic) && !load.is_empty() {
        // Every level is in panic: split by host count.
        let hosts: u64 = levels.iter().map(|level| level.hosts).sum();
        if hosts != 0 {
            let mut left = 100;
            for (load, level) in load.iter_mut().zip(levels) {
                load.healthy = percent_of((100 * level.hosts).checked_div(hosts).unwrap_or(0), left);
                left -= u64::from(load.healthy);
            }
            if let Some((first, _)) = load.iter_mut().zip(levels).find(|(_, level)| level.hosts > 0) {
                first.healthy = first.healthy.saturating_add(left as u8);
            }
        } else if let Some(first) = load.first_mut() {
            // Nobody is there, but somebody must be asked: that is what counts the panic.
            first.healthy = 100;
        }
        return (load, availability);
    }
    distribute(&availability, &mut load);
    (load, availability)
}

/// Splits 100 % in proportion to what each priority could take; panic stays what it is. False if there
/// is nothing that could take any.
pub fn distribute(availability: &[(u8, u8)], load: &mut [PriorityLoad]) -> bool {
    let total: u64 =
        availability.iter().map(|(healthy, degraded)| u64::from(*healthy) + u64::from(*degraded)).sum();
    let normalized = total.min(100);
    if normalized == 0 {
        return false;
    }
    let mut left = 100u64;
    for (level, (healthy, _)) in load.iter_mut().zip(availability) {
        level.healthy = percent_of(u64::from(*healthy) * 100 / normalized, left);
        left -= u64::from(level.healthy);
    }
    for (level, (_, degraded)) in load.iter_mut().zip(availability) {
        level.degraded = percent_of(u64::from(*degraded) * 100 / normalized, left);
        left -= u64::from(level.degraded);
    }
    if left > 0 {
        // The rounding remainder goes to the first level that has anything.
        if let Some((level, _)) = load.iter_mut().zip(availability).find(|(_, a)| a.0 > 0) {
            level.healthy += left as u8;
        } else if let Some((level, _)) = load.iter_mut().zip(availability).find(|(_, a)| a.1 > 0) {
            level.degraded += left as u8;
        }
    }
    true
}

/// `wanted` percent, but no more than is left; at most 100.
fn percent_of(wanted: u64, left: u64) -> u8 {
    wanted.min(left).min(100) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::{Address, HealthFlags, HostTemplate, Hosts};

    fn loads(levels: &[(u64, u64)]) -> Vec<(u8, bool)> {
        let levels: Vec<_> = levels.iter().map(|(healthy, all)| (*all, *healthy, 0)).collect();
        split(&levels, SplitOptions::default()).iter().map(|load| (load.healthy, load.panic)).collect()
    }

    /// The table of Envoy's priority documentation, both levels of 100 hosts.
    #[test]
    fn spills_as_envoy_documents() {
        assert_eq!(loads(&[(72, 100), (100, 100)]), [(100, false), (0, false)]);
        assert_eq!(loads(&[(71, 100), (100, 100)]), [(99, false), (1, false)]);
        assert_eq!(loads(&[(50, 100), (100, 100)]), [(70, false), (30, false)]);
        assert_eq!(loads(&[(25, 100), (100, 100)]), [(35, false), (65, false)]);
        assert_eq!(loads(&[(25, 100), (25, 100)]), [(50, true), (50, true)]);
        assert_eq!(loads(&[(5, 100), (65, 100)]), [(8, true), (92, false)]);
    }

    #[test]
    fn a_change_of_health_sorts_the_hosts_anew() {
        let hosts: Vec<_> = (0..3u16)
            .map(|port| Host::new(Address::Ip(([127, 0, 0, 1], port).into()), HostTemplate::default()))
            .collect();
        let current = Hosts::new(HostSet::new(hosts.clone(), SplitOptions::default()));
        assert!(!current.health_changed(), "nothing did");
        hosts[1].shared.health.set(HealthFlags::FAILED_OUTLIER_CHECK);
        assert!(current.health_changed());
        assert_eq!(current.load().priorities[0].healthy, [0, 2]);
        hosts[2].shared.health.set(HealthFlags::DEGRADED_ACTIVE_HC);
        assert!(current.health_changed());
        assert_eq!(current.load().priorities[0].degraded, [2]);
        // Sorted before, stored after a change.
        let late = HostSet::new(hosts.clone(), SplitOptions::default());
        hosts[1].shared.health.clear(HealthFlags::FAILED_OUTLIER_CHECK);
        current.store(late);
        assert_eq!(current.load().priorities[0].healthy, [0, 1]);
    }

    /// Hosts that are excluded are in no denominator, but in the split of a total panic.
    #[test]
    fn excluded_hosts_do_not_count() {
        let hosts: Vec<_> = (0..4u16)
            .map(|port| Host::new(Address::Ip(([127, 0, 0, 1], port).into()), HostTemplate::default()))
            .collect();
        let current = Hosts::new(HostSet::new(hosts.clone(), SplitOptions::default()));
        for host in &hosts[1..] {
            host.shared.health.set(HealthFlags::FAILED_ACTIVE_HC);
        }
        current.health_changed();
        assert!(current.load().load[0].panic, "one of four");
        for host in &hosts[2..] {
            host.shared.health.set(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
        }
        assert!(current.health_changed());
        assert_eq!(current.load().priorities[0].excluded, 2);
        assert!(!current.load().load[0].panic, "one of two");
        // A host that was never checked is excluded where config says so.
        hosts[1].shared.health.set(HealthFlags::PENDING_ACTIVE_HC);
        let options = SplitOptions { ignore_new_hosts: true, ..SplitOptions::default() };
        assert_eq!(HostSet::new(hosts.clone(), SplitOptions::default()).priorities[0].excluded, 2);
        assert_eq!(HostSet::new(hosts, options).priorities[0].excluded, 3);
    }

    #[test]
    fn weights_count_where_config_says_so() {
        let host = |weight: u32, priority: u32, health: Health| {
            let template =
                HostTemplate { weight, priority, status: health.into(), ..HostTemplate::default() };
            Host::new(Address::Ip(([127, 0, 0, 1], 1).into()), template)
        };
        let hosts = vec![
            host(9, 0, Health::Healthy),
            host(1, 0, Health::Unhealthy),
            host(1, 0, Health::Unhealthy),
            host(1, 1, Health::Healthy),
        ];
        let loads = |weighted| {
            let options = SplitOptions { weighted, ..SplitOptions::default() };
            HostSet::new(hosts.clone(), options).load.iter().map(|load| load.healthy).collect::<Vec<_>>()
        };
        assert_eq!(loads(false), [46, 54]);
        assert_eq!(loads(true), [100, 0]);
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_leave() {
        let load = split(&[(100, 71, 29)], SplitOptions::default());
        assert_eq!((load[0].healthy, load[0].degraded), (99, 1));
    }

    #[test]
    fn without_panic_nothing_available_means_no_load() {
        let load = split(&[(10, 0, 0)], SplitOptions { panic_threshold: 0, ..SplitOptions::default() });
        assert_eq!(load, [PriorityLoad::default()]);
    }
}
