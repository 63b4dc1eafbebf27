//! Weights by load (`client_side_weighted_round_robin`): a host's requests per second by how busy that makes it
//! (envoyproxy.io: client-side weighted round robin; gRPC proposal A58).
//!
//! Comes in: reports as they come, on any worker. Goes out: one weight for each host, reckoned once in a while by
//! whoever picks then. Time is an argument, in milliseconds.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::report::OrcaLoadReport;
use super::{HostLoad, Metric};
use crate::config::HostSet;

/// Options of the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightOptions {
    /// How much failed requests per request add to a host's utilization. Envoy's default: 0.
    pub error_penalty: f64,
    /// A host weighs as others do until it has reported for so long. Default 10 s.
    pub blackout: Duration,
    /// So long after its last report a host weighs as others do. Default 180 s.
    pub expiration: Duration,
    /// Time between reckonings. Default 1 s.
    pub update: Duration,
    /// The largest of these is the host's utilization, if it is above 0.
    pub metrics: Box<[Metric]>,
    /// Hosts are asked for reports beside requests too.
    pub out_of_band: Option<Box<OutOfBand>>,
}

/// How hosts are asked for reports beside requests.
#[derive(Debug, Clone, PartialEq)]
pub struct OutOfBand {
    /// How often they are to report. Default 10 s.
    pub period: Duration,
    /// Where they are asked, in place of the port that requests go to.
    pub port: Option<u16>,
    /// What they are called then, in place of their address.
    pub authority: Option<Box<str>>,
    /// Which of the cluster's transport sockets that goes through, in place of what the host's metadata say.
    pub socket_match: Option<serde_json::Map<String, serde_json::Value>>,
}

impl WeightOptions {
    /// The weight that a report gives its host; `None` when it says too little.
    pub fn weight_of(&self, report: &OrcaLoadReport) -> Option<u32> {
        let requests = Some(report.rps_fractional).filter(|requests| *requests > 0.0)?;
        let utilization = self.utilization(report) + self.error_penalty * report.eps / requests;
        // Saturates.
        (utilization > 0.0).then(|| (requests / utilization) as u32)
    }

    fn utilization(&self, report: &OrcaLoadReport) -> f64 {
        let mut largest = 0.0f64;
        for metric in &self.metrics {
            metric.values(report, &mut |_, value| largest = largest.max(value));
        }
        if largest > 0.0 {
            largest
        } else if report.application_utilization > 0.0 {
            report.application_utilization
        } else {
            report.cpu_utilization
        }
    }
}

impl HostLoad {
    /// A report gave it this weight.
    pub(super) fn reported(&self, weight: u32, now: u64) {
        self.weight.store(weight, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        // The first since it was last silent for too long.
        let _ = self.since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Its weight, if reports have come for long enough and not too long ago.
    fn valid(&self, options: &WeightOptions, now: u64) -> Option<u32> {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 || now < since.saturating_add(millis(options.blackout)) {
            return None;
        }
        if self.last.load(Ordering::Relaxed).saturating_add(millis(options.expiration)) < now {
            self.since.store(0, Ordering::Relaxed);
            return None;
        }
        Some(self.weight.load(Ordering::Relaxed))
    }
}

/// When the weights of a cluster were reckoned.
#[derive(Debug, Default)]
pub struct Reckoning {
    /// When they are to be again; 0 = nobody has picked yet.
    due: AtomicU64,
    /// Counts reckonings that changed something.
    generation: AtomicU32,
}

impl Reckoning {
    /// Reckons if it is time, and tells after how many changes this is.
    pub fn follow(&self, set: &HostSet, options: &WeightOptions, now: u64) -> u32 {
        let due = self.due.load(Ordering::Relaxed);
        if now >= due {
            let next = now.saturating_add(millis(options.update)).max(1);
            let mine = self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            // The first comes a period after the first pick.
            if mine && due != 0 && reckon(set, options, now) {
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.generation.load(Ordering::Relaxed)
    }

    /// Hosts have come or gone: the next pick reckons, if there was one before.
    pub fn hasten(&self) {
        let due = self.due.load(Ordering::Relaxed);
        if due != 0 {
            self.due.store(1, Ordering::Relaxed);
        }
    }
}

/// Gives each host its weight; those without one of their own get the median of their priority. True when that
/// changes a weight.
fn reckon(set: &HostSet, options: &WeightOptions, now: u64) -> bool {
    let mut changed = false;
    for level in &set.priorities {
        let mut known = Vec::new();
        let mut others = Vec::new();
        for host in level.hosts.iter().filter_map(|index| set.all.get(*index as usize)) {
            let load = host.shared.load.get_or_init(Box::default);
            match load.valid(options, now) {
                Some(weight) => {
                    known.push(weight);
                    changed |= load.weigh(weight, host.template.weight);
                }
                None => others.push(host),
            }
        }
        if others.is_empty() {
            continue;
        }
        let median = median(&mut known).unwrap_or(1);
        for host in others {
            let load = host.shared.load.get_or_init(Box::default);
            changed |= load.weigh(median, host.template.weight);
        }
    }
    changed
}

impl HostLoad {
    /// It weighs this much from now on, at least 1; true when it weighed something else. Before the first time it
    /// weighed what config says.
    fn weigh(&self, weight: u32, configured: u32) -> bool {
        let weight = weight.max(1);
        let before = self.share.swap(weight, Ordering::Relaxed);
        weight != if before == 0 { configured.max(1) } else { before }
    }
}

/// The middle one, or between the two.
fn median(weights: &mut [u32]) -> Option<u32> {
    weights.sort_unstable();
    let middle = weights.len() / 2;
    let upper = *weights.get(middle)?;
    if weights.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *weights.get(middle.checked_sub(1)?)?;
    u32::try_from((u64::from(lower) + u64::from(upper)) / 2).ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
