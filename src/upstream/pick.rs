//! Choosing a host: priority first, then the policy. Pure but for the random numbers it is given.

use std::sync::atomic::Ordering;

use super::edf::Edf;
use crate::config::cluster::LbPolicy;
use crate::config::HostSet;

/// What a pick may depend on.
#[derive(Debug, Default)]
pub struct PickContext<'a> {
    /// Hosts already tried for this request, to be avoided.
    pub avoid: &'a [*const crate::config::cluster::HostShared],
    /// How often to pick again to avoid them (`host_selection_retry_max_attempts`).
    pub repicks: u32,
}

/// The state of one worker's load balancer for one host set.
#[derive(Debug)]
pub struct Picker {
    policy: LbPolicy,
    fail_in_panic: bool,
    levels: Vec<Level>,
    panicked: bool,
}

/// The host sources of one priority.
#[derive(Debug)]
struct Level {
    all: Source,
    healthy: Source,
    degraded: Source,
}

#[derive(Debug)]
struct Source {
    hosts: Vec<u32>,
    next: usize,
    weighted: Option<Edf>,
}

impl Picker {
    /// A balancer over `set`.
    pub fn new(policy: &LbPolicy, set: &HostSet, fail_in_panic: bool, rng: &mut fastrand::Rng) -> Self {
        let mut source = |hosts: &[u32]| Source::new(policy, hosts, set, rng);
        let levels = set
            .priorities
            .iter()
            .map(|level| Level {
                all: source(&level.hosts),
                healthy: source(&level.healthy),
                degraded: source(&level.degraded),
            })
            .collect();
        Self { policy: policy.clone(), fail_in_panic, levels, panicked: false }
    }

    /// Whether the last pick was made in panic: health was not heeded.
    pub fn panicked(&self) -> bool {
        self.panicked
    }

    /// The index of a host, or `None` when no host may be used.
    pub fn pick(
        &mut self,
        set: &HostSet,
        context: &PickContext<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let mut chosen = self.pick_once(set, rng)?;
        for _ in 0..context.repicks {
            let host = set.all.get(chosen)?;
            if !context.avoid.contains(&std::sync::Arc::as_ptr(&host.shared)) {
                break;
            }
            chosen = self.pick_once(set, rng)?;
        }
        Some(chosen)
    }

    fn pick_once(&mut self, set: &HostSet, rng: &mut fastrand::Rng) -> Option<usize> {
        self.panicked = false;
        // One level with all its hosts healthy is the usual case and needs no draw.
        let (level, panic, degraded) = match set.load.as_slice() {
            [only] if only.healthy == 100 => (0, only.panic, false),
            loads => choose_level(loads, rng.u32(0..100))?,
        };
        self.panicked = panic;
        if panic && self.fail_in_panic {
            return None;
        }
        let level = self.levels.get_mut(level)?;
        let source = match (panic, degraded) {
            (true, _) => &mut level.all,
            (false, true) => &mut level.degraded,
            (false, false) => &mut level.healthy,
        };
        source.pick(&self.policy, set, rng).map(|index| index as usize)
    }
}

fn choose_level(loads: &[crate::config::cluster::PriorityLoad], draw: u32) -> Option<(usize, bool, bool)> {
    let mut sum = 0;
    for (index, load) in loads.iter().enumerate() {
        sum += u32::from(load.healthy);
        if draw < sum {
            return Some((index, load.panic, false));
        }
    }
    for (index, load) in loads.iter().enumerate() {
        sum += u32::from(load.degraded);
        if draw < sum {
            return Some((index, load.panic, true));
        }
    }
    None
}

impl Source {
    fn new(policy: &LbPolicy, hosts: &[u32], set: &HostSet, rng: &mut fastrand::Rng) -> Self {
        let weight = |index: u32| set.all.get(index as usize).map_or(1, |host| host.template.weight.max(1));
        let first = hosts.first().map(|index| weight(*index));
        let equal = hosts.iter().all(|index| Some(weight(*index)) == first);
        let weighted = matches!(policy, LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. }) && !equal;
        let weighted =
            weighted.then(|| Edf::new(hosts.iter().map(|i| (*i, f64::from(weight(*i)))), rng.u64(..)));
        let next = if hosts.is_empty() { 0 } else { rng.usize(..hosts.len()) };
        Self { hosts: hosts.to_vec(), next, weighted }
    }

    fn pick(&mut self, policy: &LbPolicy, set: &HostSet, rng: &mut fastrand::Rng) -> Option<u32> {
        if self.hosts.is_empty() {
            return None;
        }
        let host = |index: u32| set.all.get(index as usize);
        let active =
            |index: u32| host(index).map_or(0, |host| host.shared.active_requests.load(Ordering::Relaxed));
        if let Some(edf) = &mut self.weighted {
            return edf.pick(|index| {
                let weight = host(index).map_or(1.0, |host| f64::from(host.template.weight.max(1)));
                match policy {
                    LbPolicy::LeastRequest { active_request_bias, .. } => {
                        weight / (f64::from(active(index)) + 1.0).powf(*active_request_bias)
                    }
                    _ => weight,
                }
            });
        }
        match policy {
            LbPolicy::RoundRobin | LbPolicy::ClusterProvided => {
                self.next = if self.next + 1 >= self.hosts.len() { 0 } else { self.next + 1 };
                self.hosts.get(self.next).copied()
            }
            LbPolicy::Random => self.hosts.get(rng.usize(..self.hosts.len())).copied(),
            LbPolicy::LeastRequest { choice_count, .. } => {
                let mut best: Option<(u32, u32)> = None;
                for _ in 0..(*choice_count).max(2) {
                    let index = *self.hosts.get(rng.usize(..self.hosts.len()))?;
                    let load = active(index);
                    if best.is_none_or(|(_, least)| load < least) {
                        best = Some((index, load));
                    }
                }
                best.map(|(index, _)| index)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::{Address, Health, HostTemplate};
    use crate::config::Host;
    use std::net::SocketAddr;

    fn set(hosts: &[(u32, u32, Health)]) -> HostSet {
        let all = hosts
            .iter()
            .enumerate()
            .map(|(index, (weight, priority, health))| {
                let address = SocketAddr::from(([127, 0, 0, 1], 1000 + index as u16));
                let template = HostTemplate {
                    weight: *weight,
                    priority: *priority,
                    health: *health,
                    ..HostTemplate::default()
                };
                Host::new(Address::Ip(address), template)
            })
            .collect();
        HostSet::new(all, Default::default())
    }

    fn shares(policy: &LbPolicy, set: &HostSet, picks: usize) -> Vec<usize> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut picker = Picker::new(policy, set, false, &mut rng);
        let mut seen = vec![0; set.all.len()];
        for _ in 0..picks {
            if let Some(index) = picker.pick(set, &PickContext::default(), &mut rng) {
                seen[index] += 1;
            }
        }
        seen
    }

    #[test]
    fn round_robin_is_exact() {
        let set = set(&[(1, 0, Health::Healthy); 4]);
        assert_eq!(shares(&LbPolicy::RoundRobin, &set, 400), [100; 4]);
    }

    #[test]
    fn round_robin_follows_weights() {
        let set = set(&[(1, 0, Health::Healthy), (3, 0, Health::Healthy)]);
        let seen = shares(&LbPolicy::RoundRobin, &set, 400);
        assert!((299..=301).contains(&seen[1]), "{seen:?}");
    }

    #[test]
    fn unhealthy_hosts_are_skipped_until_panic() {
        let one_out = set(&[(1, 0, Health::Healthy), (1, 0, Health::Healthy), (1, 0, Health::Unhealthy)]);
        assert_eq!(shares(&LbPolicy::RoundRobin, &one_out, 100)[2], 0);
        let two_out = set(&[(1, 0, Health::Healthy), (1, 0, Health::Unhealthy), (1, 0, Health::Unhealthy)]);
        assert_eq!(shares(&LbPolicy::RoundRobin, &two_out, 99), [33; 3]);
    }

    #[test]
    fn spills_to_the_next_priority() {
        let set = set(&[(1, 0, Health::Unhealthy), (1, 0, Health::Healthy), (1, 1, Health::Healthy)]);
        let seen = shares(&LbPolicy::RoundRobin, &set, 10_000);
        assert_eq!(seen[0], 0);
        assert!((6_700..7_300).contains(&seen[1]), "{seen:?}");
    }

    #[test]
    fn least_request_prefers_the_idle_host() {
        let set = set(&[(1, 0, Health::Healthy), (1, 0, Health::Healthy)]);
        set.all[0].shared.active_requests.store(50, Ordering::Relaxed);
        let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
        let seen = shares(&policy, &set, 1000);
        assert!(
            (200..300).contains(&seen[0]),
            "both draws hit the busy host a quarter of the time: {seen:?}"
        );
    }

    #[test]
    fn a_tried_host_is_avoided() {
        let set = set(&[(1, 0, Health::Healthy); 3]);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut picker = Picker::new(&LbPolicy::RoundRobin, &set, false, &mut rng);
        let tried = [std::sync::Arc::as_ptr(&set.all[1].shared)];
        let context = PickContext { avoid: &tried, repicks: 3 };
        for _ in 0..30 {
            assert_ne!(picker.pick(&set, &context, &mut rng), Some(1));
        }
    }
}
