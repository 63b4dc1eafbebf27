//! What upstreams say of their own load (ORCA: a report in the head or the trailers of a response).
//!
//! Comes in: the fields of a response, and what the cluster wants to know of reports. Goes out: weights by which
//! `client_side_weighted_round_robin` picks ([`weights`]), and sums of metrics for the control plane that asks for
//! loads ([`HostLoad::latch`]). Where a cluster wants neither, nobody looks at a response for it.

pub mod out_of_band;
pub mod report;
pub mod weights;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use self::report::{Map, OrcaLoadReport};
use self::weights::WeightOptions;
use crate::config::cluster::HostShared;

/// What a cluster wants of load reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// Metrics that are summed up for the control plane (`lrs_report_endpoint_metrics`).
    pub metrics: Option<Box<[Metric]>>,
    /// Weights are reckoned of them.
    pub weights: Option<WeightOptions>,
}

/// A metric of a report by the name that config has for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    name: Box<str>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Cpu,
    Memory,
    Application,
    Errors,
    Requests,
    /// An entry of a map; `None` = each.
    Entry(Map, Option<Box<str>>),
}

impl Metric {
    /// The metric called `name`; `None` when reports have none of that name.
    pub fn new(name: &str) -> Option<Self> {
        let kind = match name {
            "cpu_utilization" => Kind::Cpu,
            "mem_utilization" => Kind::Memory,
            "application_utilization" => Kind::Application,
            "eps" => Kind::Errors,
            "rps_fractional" => Kind::Requests,
            _ => {
                let (map, key) = Map::of(name)?;
                Kind::Entry(map, (key != "*").then(|| key.into()))
            }
        };
        Some(Self { name: name.into(), kind })
    }

    /// Tells `each` the name and value of it, or of all that it stands for.
    fn values(&self, report: &OrcaLoadReport, each: &mut dyn FnMut(&str, f64)) {
        let value = match &self.kind {
            Kind::Cpu => report.cpu_utilization,
            Kind::Memory => report.mem_utilization,
            Kind::Application => report.application_utilization,
            Kind::Errors => report.eps,
            Kind::Requests => report.rps_fractional,
            Kind::Entry(map, Some(key)) => match map.entries(report).get(&**key) {
                Some(value) => *value,
                None => return,
            },
            Kind::Entry(map, None) => {
                for (key, value) in map.entries(report) {
                    each(&format!("{}{key}", map.prefix()), *value);
                }
                return;
            }
        };
        each(&self.name, value);
    }
}

/// What one host reported.
#[derive(Debug, Default)]
pub struct HostLoad {
    /// The weight that the last report gives it.
    weight: AtomicU32,
    /// When reports began to come, in milliseconds of [`crate::upstream::balancing::clock`]; 0 = there is none.
    since: AtomicU64,
    /// When the last one came.
    last: AtomicU64,
    /// What it weighs in picks; 0 = that was not reckoned yet.
    share: AtomicU32,
    sums: Mutex<BTreeMap<Box<str>, Sum>>,
}

/// The reports that had a metric.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sum {
    /// How many there were.
    pub reports: u64,
    /// The sum of their values.
    pub total: f64,
}

impl HostLoad {
    /// What it weighs in picks, if that was reckoned.
    pub fn share(&self) -> Option<u32> {
        Some(self.share.load(Ordering::Relaxed)).filter(|share| *share > 0)
    }

    /// What was summed up since this was last asked.
    pub fn latch(&self) -> BTreeMap<Box<str>, Sum> {
        std::mem::take(&mut *self.sums.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sum(&self, metrics: &[Metric], report: &OrcaLoadReport) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for metric in metrics {
            metric.values(report, &mut |name, value| {
                if let Some(sum) = sums.get_mut(name) {
                    sum.reports += 1;
                    sum.total += value;
                } else if sums.len() < MOST_SUMS {
                    sums.insert(name.into(), Sum { reports: 1, total: value });
                }
            });
        }
    }
}

/// Most metrics of a host between two reports to the control plane: an upstream chooses their names.
const MOST_SUMS: usize = 1024;

/// Heeds a report of `host` at `now`: for the control plane what `metrics` says, for picks what `weights` says.
pub fn heed(
    report: &OrcaLoadReport,
    metrics: Option<&Wanted>,
    weights: Option<&Wanted>,
    host: &HostShared,
    now: u64,
) {
    let load = || host.load.get_or_init(Box::default);
    if let Some(metrics) = metrics.and_then(|wanted| wanted.metrics.as_deref()) {
        load().sum(metrics, report);
    }
    if let Some(options) = weights.and_then(|wanted| wanted.weights.as_ref()) {
        weigh(report, options, host, now);
    }
}

/// Weighs `host` by a report. False when that says too little.
fn weigh(report: &OrcaLoadReport, options: &WeightOptions, host: &HostShared, now: u64) -> bool {
    let weight = options.weight_of(report);
    if let Some(weight) = weight {
        host.load.get_or_init(Box::default).reported(weight, now);
    }
    weight.is_some()
}

#[cfg(test)]
mod tests;
