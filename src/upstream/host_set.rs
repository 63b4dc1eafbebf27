//! Sorting hosts into priorities and splitting traffic between them, by Envoy's integer arithmetic
//! (envoyproxy.io: load_balancing/priority, panic_threshold, degraded).

use std::sync::Arc;

use crate::config::cluster::{Health, PriorityHosts, PriorityLoad};
use crate::config::{Host, HostSet};

/// What the split depends on besides the hosts.
#[derive(Debug, Clone, Copy)]
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
        Self { all, priorities, load }
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
