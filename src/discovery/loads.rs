//! Load reports: what each cluster's hosts counted, for the control plane that asks for it.
//!
//! In: the counters that requests keep of each host anyway (those of `/clusters`), and what the control plane wants.
//! Out: differences since the last look. Requests are not told of any of it: everything is read here, on the control
//! thread, when a report is due, and before clusters go to sleep or are replaced.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_control_api::client::{load_reports, LoadEvent, Loads};
use outrigger_control_api::pb::envoy::config::core::v3::{Locality as PbLocality, Node};
use outrigger_control_api::pb::envoy::config::endpoint::v3::{
    cluster_stats::DroppedRequests, ClusterStats, EndpointLoadMetricStats, UpstreamEndpointStats,
    UpstreamLocalityStats,
};
use tokio::task::AbortHandle;

use super::manager::Manager;
use super::stats::LoadReporterStats;
use super::{streams, DiscoveryError};
use crate::config::cluster::{HostShared, Locality};
use crate::config::compile::resource::Compiler;
use crate::config::discovery::ApiSource;
use crate::config::drops::Drops;
use crate::config::slot::Directory;
use crate::config::{Cluster, Host};
use crate::telemetry::metrics::Scope;
use crate::telemetry::told::address;
use crate::upstream::orca::Sum;

/// Reports until dropped.
pub(super) struct LoadReporting {
    ledger: Arc<Mutex<Ledger>>,
    task: AbortHandle,
}

impl LoadReporting {
    /// Starts to report to `source`.
    ///
    /// # Errors
    /// What the bootstrap says of it cannot be used.
    pub(super) fn start(
        source: &ApiSource,
        node: &Node,
        compiler: &Compiler,
        manager: &Arc<Mutex<Manager>>,
    ) -> Result<Self, DiscoveryError> {
        let (endpoint, settings) = streams::way(source, node)?;
        let ledger = Arc::new(Mutex::new(Ledger::new(compiler.clusters.clone())));
        let stats = LoadReporterStats::new(&Scope::raw("load_reporter"));
        let reporter = Reporter { ledger: ledger.clone(), manager: manager.clone(), stats };
        let task = tokio::spawn(load_reports(endpoint, settings, fastrand::u64(..), reporter));
        Ok(Self { ledger, task: task.abort_handle() })
    }

    /// Counts what happened until now.
    pub(super) fn count(&self) {
        lock(&self.ledger).count();
    }
}

impl Drop for LoadReporting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the client asks.
struct Reporter {
    ledger: Arc<Mutex<Ledger>>,
    manager: Arc<Mutex<Manager>>,
    stats: LoadReporterStats,
}

impl Loads for Reporter {
    fn clusters(&mut self) -> Vec<String> {
        lock(&self.ledger).clusters()
    }

    fn start(&mut self, cluster: &str) {
        lock(&self.ledger).start(cluster);
    }

    fn stop(&mut self, cluster: &str) {
        lock(&self.ledger).accounts.remove(cluster);
    }

    fn take(&mut self, cluster: &str, endpoints: bool) -> Option<ClusterStats> {
        let taken = lock(&self.ledger).take(cluster, endpoints)?;
        let service = lock(&self.manager).service_name(cluster);
        Some(ClusterStats {
            cluster_service_name: service.map(|name| name.to_string()).unwrap_or_default(),
            ..taken
        })
    }

    fn event(&mut self, event: &LoadEvent) {
        match event {
            LoadEvent::Asked { .. } => self.stats.requests.increment(1),
            LoadEvent::Sent { .. } => self.stats.responses.increment(1),
            LoadEvent::Disconnected { graceful: false, .. } => self.stats.errors.increment(1),
            LoadEvent::Retried => self.stats.retries.increment(1),
            LoadEvent::Disconnected { .. }
            | LoadEvent::Connect
            | LoadEvent::Connected
            | LoadEvent::Abandon { .. } => {}
        }
    }
}

/// What is counted of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    issued: u64,
    succeeded: u64,
    failed: u64,
}

impl Counts {
    fn of(host: &HostShared) -> Self {
        let counters = &host.counters;
        // First what follows the other: a request that ends meanwhile is not one that was never issued.
        let succeeded = counters.rq_success.load(Ordering::Relaxed);
        let failed = counters.rq_error.load(Ordering::Relaxed);
        Self { issued: counters.rq_total.load(Ordering::Relaxed), succeeded, failed }
    }

    /// Adds what came between two looks.
    fn add(&mut self, before: Self, now: Self) {
        self.issued += now.issued.wrapping_sub(before.issued);
        self.succeeded += now.succeeded.wrapping_sub(before.succeeded);
        self.failed += now.failed.wrapping_sub(before.failed);
    }
}

/// What was seen of a host, and what of it is not reported yet.
#[derive(Debug)]
struct Counted {
    host: Arc<Host>,
    seen: Counts,
    unreported: Counts,
    /// The cluster has it now.
    present: bool,
}

/// Requests that were refused before a host was asked.
#[derive(Debug, Clone, Copy, Default)]
struct Dropped {
    total: u64,
    overload: u64,
}

impl Dropped {
    fn of(drops: &Drops) -> Self {
        let [total, overload] = [&drops.total, &drops.overload].map(|count| count.load(Ordering::Relaxed));
        Self { total, overload }
    }

    /// What came between `seen` and `now`.
    fn add(&mut self, seen: Self, now: Self) {
        self.total += now.total.wrapping_sub(seen.total);
        self.overload += now.overload.wrapping_sub(seen.overload);
    }
}

/// One cluster.
#[derive(Debug, Default)]
struct Account {
    /// By the address in memory of what outlives new descriptions of a host, which each entry holds.
    hosts: HashMap<usize, Counted>,
    /// What the cluster's present version counts, and what was seen of it.
    drops: Option<(Arc<Drops>, Dropped)>,
    unreported_drops: Dropped,
}

/// What is counted of each cluster that the control plane asks for.
#[derive(Debug)]
struct Ledger {
    clusters: Arc<Directory<Cluster>>,
    accounts: BTreeMap<String, Account>,
}

impl Ledger {
    fn new(clusters: Arc<Directory<Cluster>>) -> Self {
        Self { clusters, accounts: BTreeMap::new() }
    }

    fn clusters(&self) -> Vec<String> {
        let all = self.clusters.all();
        all.iter().filter(|slot| slot.is_filled()).map(|slot| slot.name().to_string()).collect()
    }

    fn start(&mut self, cluster: &str) {
        let account = self.accounts.entry(cluster.to_owned()).or_default();
        account.count(awake(&self.clusters, cluster).as_deref());
        for counted in account.hosts.values_mut() {
            counted.unreported = Counts::default();
            if let Some(load) = counted.host.shared.load.get() {
                load.latch();
            }
        }
        account.unreported_drops = Dropped::default();
    }

    fn count(&mut self) {
        for (name, account) in &mut self.accounts {
            account.count(awake(&self.clusters, name).as_deref());
        }
    }

    fn take(&mut self, cluster: &str, endpoints: bool) -> Option<ClusterStats> {
        if !self.clusters.find(cluster)?.is_filled() {
            return None;
        }
        let account = self.accounts.entry(cluster.to_owned()).or_default();
        account.count(awake(&self.clusters, cluster).as_deref());
        Some(account.take(endpoints))
    }
}

/// A cluster that sleeps counts nothing.
fn awake(clusters: &Directory<Cluster>, name: &str) -> Option<Arc<Cluster>> {
    clusters.find(name)?.get()
}

impl Account {
    /// Adds what happened since the last time.
    fn count(&mut self, cluster: Option<&Cluster>) {
        self.hosts.values_mut().for_each(|counted| counted.present = false);
        let hosts = cluster.map(|cluster| cluster.hosts.load_full()).unwrap_or_default();
        for host in &hosts.all {
            let counted = self.hosts.entry(Arc::as_ptr(&host.shared).addr()).or_insert_with(|| Counted {
                host: host.clone(),
                seen: Counts::default(),
                unreported: Counts::default(),
                present: true,
            });
            counted.present = true;
            if !Arc::ptr_eq(&counted.host, host) {
                counted.host = host.clone();
            }
        }
        for counted in self.hosts.values_mut() {
            let now = Counts::of(&counted.host.shared);
            counted.unreported.add(counted.seen, now);
            counted.seen = now;
        }
        if let Some((drops, seen)) = &mut self.drops {
            let now = Dropped::of(drops);
            self.unreported_drops.add(*seen, now);
            *seen = now;
        }
        if let Some(cluster) = cluster {
            let same = self.drops.as_ref().is_some_and(|(drops, _)| Arc::ptr_eq(drops, &cluster.drops));
            if !same {
                let now = Dropped::of(&cluster.drops);
                self.unreported_drops.add(Dropped::default(), now);
                self.drops = Some((cluster.drops.clone(), now));
            }
        }
    }

    /// What was counted and not reported, by priority and locality. Hosts that are gone are let go when their last
    /// request is over.
    fn take(&mut self, endpoints: bool) -> ClusterStats {
        let mut localities: BTreeMap<(u32, Arc<Locality>), UpstreamLocalityStats> = BTreeMap::new();
        for counted in self.hosts.values_mut() {
            let Counts { issued, succeeded, failed } = std::mem::take(&mut counted.unreported);
            let active = u64::from(counted.host.shared.active_requests.load(Ordering::Relaxed));
            if issued + succeeded + failed + active == 0 {
                continue;
            }
            let metrics = counted.host.shared.load.get().map(|load| load.latch()).unwrap_or_default();
            let template = &counted.host.template;
            let stats = localities.entry((template.priority, template.locality.clone())).or_default();
            stats.total_issued_requests += issued;
            stats.total_successful_requests += succeeded;
            stats.total_error_requests += failed;
            stats.total_requests_in_progress += active;
            if endpoints {
                stats.upstream_endpoint_stats.push(UpstreamEndpointStats {
                    address: Some(address(&counted.host.address)),
                    total_issued_requests: issued,
                    total_successful_requests: succeeded,
                    total_error_requests: failed,
                    total_requests_in_progress: active,
                    load_metric_stats: metrics.iter().map(|(name, sum)| metric(name, sum)).collect(),
                    ..Default::default()
                });
            }
            add_metrics(&mut stats.load_metric_stats, &metrics);
        }
        self.hosts.retain(|_, counted| {
            let shared = &counted.host.shared;
            let idle =
                shared.active_requests.load(Ordering::Relaxed) == 0 && Counts::of(shared) == counted.seen;
            counted.present || !idle
        });
        let upstream_locality_stats = localities.into_iter().map(|((priority, locality), stats)| {
            let Locality { region, zone, sub_zone } = &*locality;
            let [region, zone, sub_zone] = [region, zone, sub_zone].map(ToString::to_string);
            let locality = PbLocality { region, zone, sub_zone };
            UpstreamLocalityStats { locality: Some(locality), priority, ..stats }
        });
        let Dropped { total, overload } = std::mem::take(&mut self.unreported_drops);
        let policy = self.drops.as_ref().and_then(|(drops, _)| drops.policy());
        let by_policy = (overload > 0).then(|| DroppedRequests {
            category: policy.map(|policy| policy.category.to_string()).unwrap_or_default(),
            dropped_count: overload,
        });
        ClusterStats {
            upstream_locality_stats: upstream_locality_stats.collect(),
            total_dropped_requests: total,
            dropped_requests: by_policy.into_iter().collect(),
            ..Default::default()
        }
    }
}

fn metric(name: &str, sum: &Sum) -> EndpointLoadMetricStats {
    EndpointLoadMetricStats {
        metric_name: name.to_string(),
        num_requests_finished_with_metric: sum.reports,
        total_metric_value: sum.total,
    }
}

/// Adds a host's metrics to those of its locality.
fn add_metrics(all: &mut Vec<EndpointLoadMetricStats>, of_host: &BTreeMap<Box<str>, Sum>) {
    for (name, sum) in of_host {
        match all.iter_mut().find(|stats| stats.metric_name == **name) {
            Some(stats) => {
                stats.num_requests_finished_with_metric += sum.reports;
                stats.total_metric_value += sum.total;
            }
            None => all.push(metric(name, sum)),
        }
    }
}

#[cfg(test)]
#[path = "loads_tests.rs"]
mod tests;
