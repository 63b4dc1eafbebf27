//! Routing by zone: near hosts first, and as many requests elsewhere as keeps all hosts equally busy
//! (envoyproxy.io: load_balancing/zone_aware).
//!
//! Comes in: the hosts of the upstream and of the cluster that this proxy belongs to, by locality. Goes out: which
//! locality a request goes to. In shares of 1/10000, as Envoy reckons.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::balancing::ZoneAware;
use crate::config::cluster::{Health, Locality, LocalityHosts, Split};
use crate::config::{Host, HostSet};

/// What is decided beforehand for the highest priority.
#[derive(Debug, PartialEq)]
pub enum ZoneRouting {
    /// Localities do not matter.
    None,
    /// Too few hosts of the local cluster are up to reckon with it.
    LocalPanic,
    /// Everything stays in this one of the localities.
    Direct(usize),
    /// Some stays, the rest goes where there is room.
    Residual {
        /// Ours among the localities, and the share of requests that stays there.
        local: Option<(usize, u64)>,
        /// Sums of the room left up to and including each locality.
        room: Vec<u64>,
    },
}

/// What to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneNote {
    /// The local cluster does not have this proxy's locality, or is in panic.
    LocalNotOk,
    /// The upstream has too few hosts.
    TooSmall,
    /// The request stayed, as all do.
    Direct,
    /// The request stayed.
    Sampled,
    /// The request left.
    CrossZone,
    /// No locality has room: one is drawn.
    NoCapacity,
}

impl ZoneRouting {
    /// Decides for the highest priority of `split`; `local` are the hosts of this proxy's own cluster.
    pub fn new(
        all: &[Arc<Host>],
        split: &Split,
        local: Option<&HostSet>,
        options: &ZoneAware,
        panic_threshold: u32,
    ) -> (Self, Option<ZoneNote>) {
        let Some(level) = split.priorities.first() else { return (Self::None, None) };
        let upstream = &level.localities;
        if upstream.len() < 2 {
            return (Self::None, None);
        }
        let near = Near::count(local, options.by_weight);
        if near.all.len() < 2 && options.force_local.is_none() {
            return (Self::None, None);
        }
        if options.here == Locality::default() || !near.all.contains_key(&options.here) {
            return (Self::None, Some(ZoneNote::LocalNotOk));
        }
        if (level.healthy.len() as u64) < options.min_cluster_size {
            return (Self::None, Some(ZoneNote::TooSmall));
        }
        if local.is_none_or(|local| in_panic(local, panic_threshold)) {
            return (Self::LocalPanic, None);
        }
        (Self::of(all, upstream, &near, options), None)
    }

    fn of(all: &[Arc<Host>], upstream: &[LocalityHosts], near: &Near, options: &ZoneAware) -> Self {
        let size = |locality: &LocalityHosts| -> u64 {
            let weigh =
                |index: &u32| all.get(*index as usize).map_or(0, |host| weigh(host, options.by_weight));
            locality.healthy.iter().map(weigh).sum()
        };
        let healthy_upstream: u64 = upstream.iter().map(size).sum();
        let healthy_local: u64 = near.healthy.values().sum();
        // (of the local cluster, of the upstream) in each locality.
        let shares: Vec<(u64, u64)> = upstream
            .iter()
            .map(|locality| {
                let hosts = size(locality);
                if hosts == 0 {
                    return (0, 0);
                }
                let ours = near.healthy.get(&*locality.locality).copied().unwrap_or(0);
                let of = |part: u64, all: u64| (10_000 * part).checked_div(all).unwrap_or(0);
                (of(ours, healthy_local), of(hosts, healthy_upstream))
            })
            .collect();
        let local = upstream.iter().position(|locality| *locality.locality == options.here);
        let shares_here = local.and_then(|at| Some((at, *shares.get(at)?)));
        if let Some((at, (ours, theirs))) = shares_here {
            let healthy = upstream.get(at).map_or(0, |locality| locality.healthy.len());
            let forced = options.force_local.is_some_and(|least| healthy >= least as usize);
            if (theirs > 0 && theirs >= ours) || forced {
                return Self::Direct(at);
            }
        }
        let mut sum = 0;
        let room = shares.iter().enumerate().map(|(at, (ours, theirs))| {
            if Some(at) != local {
                sum += theirs.saturating_sub(*ours);
            }
            sum
        });
        let room = room.collect();
        let local =
            shares_here.map(|(at, (ours, theirs))| (at, (theirs * 10_000).checked_div(ours).unwrap_or(0)));
        Self::Residual { local, room }
    }

    /// The locality for a request.
    pub fn choose(&self, rng: &mut fastrand::Rng) -> Option<(usize, ZoneNote)> {
        match self {
            Self::None | Self::LocalPanic => None,
            Self::Direct(at) => Some((*at, ZoneNote::Direct)),
            Self::Residual { local, room } => {
                if let Some((at, share)) = local {
                    if rng.u64(0..10_000) < *share {
                        return Some((*at, ZoneNote::Sampled));
                    }
                }
                let all = room.last().copied().unwrap_or(0);
                if all == 0 {
                    return Some((rng.usize(..room.len().max(1)), ZoneNote::NoCapacity));
                }
                let drawn = rng.u64(..all);
                Some((room.partition_point(|sum| *sum <= drawn), ZoneNote::CrossZone))
            }
        }
    }
}

/// Hosts of the local cluster in each locality.
struct Near {
    all: BTreeMap<Arc<Locality>, u64>,
    healthy: BTreeMap<Arc<Locality>, u64>,
}

impl Near {
    fn count(local: Option<&HostSet>, by_weight: bool) -> Self {
        let mut near = Near { all: BTreeMap::new(), healthy: BTreeMap::new() };
        let hosts = local.into_iter().flat_map(|set| &set.all).filter(|host| host.template.priority == 0);
        for host in hosts {
            *near.all.entry(host.template.locality.clone()).or_default() += 1;
            if host.health() == Health::Healthy {
                *near.healthy.entry(host.template.locality.clone()).or_default() += weigh(host, by_weight);
            }
        }
        near
    }
}

fn weigh(host: &Host, by_weight: bool) -> u64 {
    if by_weight {
        host.template.weight.max(1).into()
    } else {
        1
    }
}

/// Whether too few hosts of the local cluster are up to reckon with it.
fn in_panic(local: &HostSet, threshold: u32) -> bool {
    let Some(level) = local.priorities.first() else { return threshold > 0 };
    let counted = (level.hosts.len() as u64).saturating_sub(level.excluded.into());
    let up = (level.healthy.len() + level.degraded.len()) as u64;
    (100 * up).checked_div(counted).unwrap_or(0) < u64::from(threshold)
}
