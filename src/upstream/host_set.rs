//! Sorting hosts into priorities and splitting traffic between them, by Envoy's integer arithmetic
//! (envoyproxy.io: load_balancing/priority, panic_threshold, degraded).

use std::sync::Arc;

use crate::config::cluster::{Health, PriorityHosts, PriorityLoad};
use crate::config::{Host, HostSet};

/// What the split depends on besides the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitOptions {
    /// `overprovisioning_factor`. Default 140.
    pub overprovisioning: u32,
    /// `healthy_panic_threshold` in percent. Default 50; 0 disables.
    pub panic_threshold: u32,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self { overprovisioning: 140, panic_threshold: 50 }
    }
}

impl HostSet {
    /// Sorts `all` into priorities and computes each one's share.
    pub fn new(all: Vec<Arc<Host>>, options: SplitOptions) -> Self {
        let levels = all.iter().map(|host| host.template.priority + 1).max().unwrap_or(1);
        let mut priorities = vec![PriorityHosts::default(); levels as usize];
        for (index, host) in all.iter().enumerate() {
            // `levels` is one more than the largest priority; a set has far less than 2^32 hosts.
            let level = &mut priorities[host.template.priority as usize];
            let index = index as u32;
            level.hosts.push(index);
            match host.health() {
                Health::Healthy => level.healthy.push(index),
                Health::Degraded => level.degraded.push(index),
                Health::Unhealthy => {}
            }
        }
        let counts: Vec<_> = priorities
            .iter()
            .map(|level| (level.hosts.len() as u64, level.healthy.len() as u64, level.degraded.len() as u64))
            .collect();
        let load = split(&counts, options);
        Self { all, priorities, load, options }
    }

    /// The same hosts by their health of now.
    pub(crate) fn sorted_again(&self) -> Self {
        Self::new(self.all.clone(), self.options)
    }

    /// Whether each host's health is what it was sorted by.
    pub(crate) fn is_sorted(&self) -> bool {
        let health = |index: &u32| self.all.get(*index as usize).map(|host| host.health());
        self.priorities.iter().all(|level| {
            let (mut healthy, mut degraded) =
                (level.healthy.iter().peekable(), level.degraded.iter().peekable());
            level.hosts.iter().all(|index| {
                let sorted = if healthy.next_if_eq(&index).is_some() {
                    Health::Healthy
                } else if degraded.next_if_eq(&index).is_some() {
                    Health::Degraded
                } else {
                    Health::Unhealthy
                };
                health(index) == Some(sorted)
            })
        })
    }
}

/// Splits 100 % over priorities given (hosts, healthy, degraded) of each.
pub fn split(levels: &[(u64, u64, u64)], options: SplitOptions) -> Vec<PriorityLoad> {
    let share = |part: u64, all: u64| {
        (u64::from(options.overprovisioning) * part).checked_div(all).unwrap_or(0).min(100)
    };
    let availability: Vec<(u64, u64)> = levels
        .iter()
        .map(|(hosts, healthy, degraded)| (share(*healthy, *hosts), share(*degraded, *hosts)))
        .collect();
    let total: u64 = availability.iter().map(|(healthy, degraded)| healthy + degraded).sum();
    let normalized = total.min(100);
    let mut load = vec![PriorityLoad::default(); levels.len()];

    if normalized < 100 && options.panic_threshold > 0 {
        for (level, (hosts, healthy, degraded)) in load.iter_mut().zip(levels) {
            let percent = if *hosts == 0 { 0 } else { 100 * (healthy + degraded) / hosts };
            level.panic = percent < u64::from(options.panic_threshold);
        }
    }
    if load.iter().all(|level| level.panic) && !load.is_empty() {
        // Every level is in panic: split by host count.
        let hosts: u64 = levels.iter().map(|level| level.0).sum();
        if hosts != 0 {
            let mut left = 100;
            for (level, (count, ..)) in load.iter_mut().zip(levels) {
                level.healthy = percent_of((100 * count).checked_div(hosts).unwrap_or(0), left);
                left -= u64::from(level.healthy);
            }
            if let Some(first) = load.iter_mut().zip(levels).find(|(_, level)| level.0 > 0) {
                first.0.healthy = first.0.healthy.saturating_add(left as u8);
            }
        } else if let Some(first) = load.first_mut() {
            // Nobody is there, but somebody must be asked: that is what counts the panic.
            first.healthy = 100;
        }
        return load;
    }
    if normalized == 0 {
        return load;
    }
    let mut left = 100u64;
    for (level, (healthy, _)) in load.iter_mut().zip(&availability) {
        level.healthy = percent_of(healthy * 100 / normalized, left);
        left -= u64::from(level.healthy);
    }
    for (level, (_, degraded)) in load.iter_mut().zip(&availability) {
        level.degraded = percent_of(degraded * 100 / normalized, left);
        left -= u64::from(level.degraded);
    }
    if left > 0 {
        // The rounding remainder goes to the first level that has anything.
        if let Some((level, _)) = load.iter_mut().zip(&availability).find(|(_, a)| a.0 > 0) {
            level.healthy += left as u8;
        } else if let Some((level, _)) = load.iter_mut().zip(&availability).find(|(_, a)| a.1 > 0) {
            level.degraded += left as u8;
        }
    }
    load
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
