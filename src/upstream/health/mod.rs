//! Active health checks, and what a cluster knows of its hosts' health beside them.
//!
//! In: what config says of checks, hosts that come and go, and answers to checks. Out: the flags of hosts (then the
//! cluster's host set is sorted anew and workers follow), statistics, and lines of the event log. When a host is
//! checked and what follows from an answer is in [`session`], a state machine; [`probe`] asks; [`run`] brings both
//! together on the control thread.

mod events;
pub mod options;
pub mod probe;
pub mod run;
pub mod session;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

pub use self::options::{HostCheck, Options, Probe};
use super::outlier::{Outcome, OutlierDetection};
use crate::config::cluster::{Health, HealthFlags, HostShared};
use crate::config::{Cluster, Host, HostSet};
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `cluster.<name>.health_check.`.
    pub struct CheckStats {
        counters { attempt, success, failure, passive_failure, network_failure, verify_cluster }
        gauges { healthy, degraded }
        histograms {}
    }
}

/// Outlier detection and active health checks of a cluster.
#[derive(Debug, Default)]
pub struct ClusterHealth {
    /// Outlier detection.
    pub outlier: Option<OutlierDetection>,
    /// Active health checks.
    pub checks: Option<Checks>,
}

/// Active health checks of a cluster.
#[derive(Debug)]
pub struct Checks {
    /// What config says.
    pub options: Options,
    stats: OnceLock<Box<CheckStats>>,
    /// Whether anybody ever connected to the cluster.
    used: AtomicBool,
    /// By the address of what its descriptions share: how to tell a host's session that an answer asked to be left
    /// alone.
    sessions: Mutex<HashMap<usize, Arc<Notify>>>,
}

/// What an answer says of its host, beside its status.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heard {
    /// `x-envoy-degraded`.
    pub degraded: bool,
    /// `x-envoy-immediate-health-check-fail`.
    pub immediate_fail: bool,
}

impl ClusterHealth {
    /// Makes the statistics.
    pub fn make_stats(&self, stat_name: &str) {
        if let Some(outlier) = &self.outlier {
            outlier.stats(stat_name);
        }
        if let Some(checks) = &self.checks {
            checks.stats(stat_name);
        }
    }

    /// A try of `cluster` at `host` ended.
    pub fn report(&self, cluster: &Arc<Cluster>, host: &Arc<Host>, outcome: Outcome) {
        if let Some(outlier) = &self.outlier {
            outlier.report(cluster, host, outcome);
        }
    }

    /// The head of an answer has come.
    pub fn heard(&self, cluster: &Arc<Cluster>, host: &Arc<Host>, status: u16, heard: Heard) {
        if let Some(outlier) = &self.outlier {
            outlier.report(cluster, host, Outcome::Answered(status));
            // A failure counts as one, whatever else it says.
            if heard.degraded && status < 500 {
                outlier.report_degraded(cluster, host);
            }
        }
        if heard.immediate_fail {
            if let Some(checks) = &self.checks {
                checks.leave_alone(host);
            }
        }
    }
}

impl Checks {
    /// Checks by `options`.
    pub fn new(options: Options) -> Self {
        Self { options, stats: OnceLock::new(), used: AtomicBool::new(false), sessions: Mutex::default() }
    }

    /// The statistics, made by the first call.
    pub fn stats(&self, stat_name: &str) -> &CheckStats {
        self.stats.get_or_init(|| Box::new(CheckStats::new(&Scope::cluster(stat_name).sub("health_check"))))
    }

    /// Whether anybody ever connected to the cluster.
    fn is_used(&self, cluster: &Cluster) -> bool {
        if self.used.load(Ordering::Relaxed) {
            return true;
        }
        let connected = |host: &Arc<Host>| host.shared.counters.cx_total.load(Ordering::Relaxed) > 0;
        let used = cluster.hosts.load().all.iter().any(connected);
        self.used.store(used, Ordering::Relaxed);
        used
    }

    /// The host answered a request with the wish to be left alone.
    #[cold]
    fn leave_alone(&self, host: &Arc<Host>) {
        host.shared.health.set(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get(&key(host)) {
            session.notify_one();
        }
    }

    fn enter(&self, host: &Host) -> Arc<Notify> {
        let notify = Arc::<Notify>::default();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(key(host), notify.clone());
        notify
    }

    fn leave(&self, key: usize) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Sets the gauges.
    fn publish(&self, cluster: &Cluster) {
        let hosts = cluster.hosts.load();
        let checked = || hosts.all.iter().filter(|host| is_checked(host));
        let with = |flag: u16| checked().filter(|host| host.shared.health.has(flag)).count();
        let stats = self.stats(&cluster.stat_name);
        let failed = with(HealthFlags::FAILED_ACTIVE_HC);
        stats.healthy.set((checked().count() - failed) as f64);
        stats.degraded.set(with(HealthFlags::DEGRADED_ACTIVE_HC) as f64);
    }
}

/// A number for a host, the same for all its descriptions while one of them lives.
fn key(host: &Host) -> usize {
    Arc::as_ptr(&host.shared) as usize
}

/// Whether checks of this host are not turned off.
fn is_checked(host: &Host) -> bool {
    host.template.check.as_ref().is_none_or(|check| !check.disabled)
}

/// What active health checks want done with hosts that come and go.
#[derive(Debug, Default)]
pub struct CheckPolicy {
    /// Hosts are not counted before their first check (`ignore_new_hosts_until_first_hc`).
    pub ignore_new: bool,
    /// A host that discovery takes away goes even while its checks succeed (`ignore_health_on_host_removal`).
    pub remove_healthy: bool,
    /// There is one host whose address changes (LOGICAL_DNS): its health stays.
    pub logical: bool,
    /// Told when hosts came or went.
    pub changed: Notify,
}

impl CheckPolicy {
    /// The hosts from the start count as failed until their first check.
    pub(crate) fn begin(&self, set: &HostSet) {
        for host in set.all.iter().filter(|host| is_checked(host)) {
            host.shared.health.set(HealthFlags::FAILED_ACTIVE_HC);
        }
    }

    /// `next` is to follow on `present`: new hosts count as failed until their first check; those that are gone stay
    /// for as long as their checks succeed.
    pub(crate) fn admit(&self, present: &HostSet, next: HostSet) -> HostSet {
        let identity = |host: &Arc<Host>| Arc::as_ptr(&host.shared);
        let known: HashSet<*const HostShared> = present.all.iter().map(identity).collect();
        let wanted: HashSet<*const HostShared> = next.all.iter().map(identity).collect();
        for host in &next.all {
            if known.contains(&identity(host)) {
                host.shared.health.clear(HealthFlags::PENDING_DYNAMIC_REMOVAL);
            } else if let Some(before) = present.all.first().filter(|_| self.logical) {
                host.shared.health.set(before.shared.health.get());
            } else if is_checked(host) {
                let pending = if self.ignore_new { HealthFlags::PENDING_ACTIVE_HC } else { 0 };
                host.shared.health.set(HealthFlags::FAILED_ACTIVE_HC | pending);
            }
        }
        if self.remove_healthy || self.logical {
            return next;
        }
        let addresses: HashSet<_> = next.all.iter().map(|host| &host.address).collect();
        let stays = |host: &&Arc<Host>| {
            !wanted.contains(&identity(host))
                && !addresses.contains(&host.address)
                && is_checked(host)
                && host.template.status.health() != Health::Unhealthy
                && !host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC)
        };
        let kept: Vec<_> = present.all.iter().filter(stays).cloned().collect();
        drop(addresses);
        if kept.is_empty() {
            return next;
        }
        for host in &kept {
            host.shared.health.set(HealthFlags::PENDING_DYNAMIC_REMOVAL);
        }
        let options = next.options;
        HostSet::new(next.all.into_iter().chain(kept).collect(), options)
    }
}

/// Whether the cluster's hosts are checked actively.
pub fn is_checked_actively(cluster: &Cluster) -> bool {
    cluster.health.as_ref().is_some_and(|health| health.checks.is_some())
}

#[cfg(test)]
mod tests;
