//! Outlier detection: hosts that fail requests get none for a while.
//!
//! In: how each try of a request ended, from all workers, and time. Out: hosts flagged FAILED_OUTLIER_CHECK (then the
//! cluster's host set is sorted anew and workers follow), statistics, and lines of the event log. What is counted per
//! request is in [`monitor`], what follows from it in [`detector`]. A run of failures is acted on by the worker that
//! saw its last one, under the cluster's lock; rates are looked at by the control thread ([`sweep`]).

pub mod detector;
mod events;
pub mod monitor;
pub mod options;
pub mod sweep;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

pub use self::detector::{Action, Detector, Event, Rates};
pub use self::monitor::{Monitor, Origin, Outcome};
pub use self::options::{Kind, Options};
pub use self::sweep::Registry;
use crate::config::{Cluster, Host};
use crate::telemetry::metrics::Scope;
use crate::upstream::dns::publish_membership;

crate::stats! {
    /// `cluster.<name>.outlier_detection.`.
    pub struct OutlierStats {
        counters {
            ejections_total, ejections_overflow, ejections_consecutive_5xx, ejections_success_rate,
            ejections_enforced_total,
            ejections_detected_consecutive_5xx, ejections_enforced_consecutive_5xx,
            ejections_detected_consecutive_gateway_failure, ejections_enforced_consecutive_gateway_failure,
            ejections_detected_success_rate, ejections_enforced_success_rate,
            ejections_detected_consecutive_local_origin_failure,
            ejections_enforced_consecutive_local_origin_failure,
            ejections_detected_local_origin_success_rate, ejections_enforced_local_origin_success_rate,
            ejections_detected_failure_percentage, ejections_enforced_failure_percentage,
            ejections_detected_local_origin_failure_percentage,
            ejections_enforced_local_origin_failure_percentage,
            ejections_detected_degradation,
        }
        gauges { ejections_active }
        histograms {}
    }
}

/// A cluster's outlier detection.
pub struct OutlierDetection {
    /// What config says.
    pub options: Options,
    detector: Mutex<Detector>,
    stats: OnceLock<Box<OutlierStats>>,
    registry: Arc<Registry>,
    /// Whether the control thread knows of the cluster.
    registered: AtomicBool,
    /// Whether it was said that a cap keeps a host in.
    warned: AtomicBool,
}

impl std::fmt::Debug for OutlierDetection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutlierDetection").field("options", &self.options).finish_non_exhaustive()
    }
}

impl OutlierDetection {
    /// Detection by `options`; sweeps and the event log are those of `registry`.
    pub fn new(options: Options, registry: Arc<Registry>) -> Self {
        Self {
            options,
            detector: Mutex::new(Detector::new(fastrand::Rng::new())),
            stats: OnceLock::new(),
            registry,
            registered: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        }
    }

    /// The statistics, made by the first call.
    pub fn stats(&self, stat_name: &str) -> &OutlierStats {
        self.stats
            .get_or_init(|| Box::new(OutlierStats::new(&Scope::cluster(stat_name).sub("outlier_detection"))))
    }

    /// The success rates of the last interval.
    pub fn rates(&self, origin: Origin) -> Rates {
        self.lock().rates(origin)
    }

    /// Counts how a try of `cluster` at `host` ended; ejects the host if that makes it an outlier.
    #[inline]
    pub fn report(&self, cluster: &Arc<Cluster>, host: &Arc<Host>, outcome: Outcome) {
        self.report_at(cluster, host, outcome, Instant::now);
    }

    /// As [`OutlierDetection::report`], with the time of a clock that is only read when it matters.
    #[inline]
    pub fn report_at(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        outcome: Outcome,
        now: impl FnOnce() -> Instant,
    ) {
        let found = self.monitor(cluster, host).take(outcome, &self.options);
        if found != [None, None] {
            self.found(cluster, host, found, now());
        }
    }

    /// `host` answered that it is degraded.
    #[cold]
    pub fn report_degraded(&self, cluster: &Arc<Cluster>, host: &Arc<Host>) {
        if self.options.detect_degraded && self.monitor(cluster, host).note_degraded() {
            let event = self.lock().degraded(host, Instant::now());
            self.conclude(cluster, event);
        }
    }

    /// An active health check of `host` succeeded.
    pub fn checked(&self, cluster: &Arc<Cluster>, host: &Arc<Host>) {
        if self.options.unejected_by_checks && detector::is_ejected(host) {
            let event = self.lock().checked(host, Instant::now());
            self.conclude(cluster, event);
        }
    }

    /// Ends an interval. True if what is known of the hosts must not be forgotten.
    pub fn sweep(&self, cluster: &Arc<Cluster>, now: Instant) -> bool {
        let hosts = cluster.hosts.load_full();
        let events = self.lock().sweep(&self.options, &hosts.all, now);
        self.conclude(cluster, events);
        Detector::remembers(&hosts.all)
    }

    fn monitor<'h>(&self, cluster: &Arc<Cluster>, host: &'h Arc<Host>) -> &'h Monitor {
        host.shared.outlier.get_or_init(|| {
            if !self.registered.swap(true, Ordering::Relaxed) {
                self.registry.register(cluster);
            }
            Box::new(Monitor::new())
        })
    }

    #[cold]
    fn found(&self, cluster: &Arc<Cluster>, host: &Arc<Host>, found: monitor::Found, now: Instant) {
        for kind in found.into_iter().flatten() {
            let hosts = cluster.hosts.load_full();
            let event = self.lock().consecutive(&self.options, &hosts.all, host, kind, now);
            self.conclude(cluster, event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts, logs and publishes what was done.
    fn conclude(&self, cluster: &Arc<Cluster>, events: impl IntoIterator<Item = Event>) {
        let stats = self.stats(&cluster.stat_name);
        let mut changed = false;
        for event in events {
            stats.count(&event);
            changed |= !matches!(event.action, Action::NotEnforced | Action::Capped { .. });
            if event.action == Action::Ejected {
                event.host.shared.note_failure();
            }
            self.explain(cluster, &event);
            self.registry.log(|| events::line(&cluster.name, &event, std::time::SystemTime::now()));
        }
        if changed {
            cluster.hosts.health_changed();
            publish_membership(cluster);
            let hosts = cluster.hosts.load();
            let ejected = hosts.all.iter().filter(|host| detector::is_ejected(host)).count();
            stats.ejections_active.set(ejected as f64);
        }
    }

    /// Says why a host that is an outlier stays: once for each cluster as a warning, then for who looks closer.
    fn explain(&self, cluster: &Cluster, event: &Event) {
        let (name, host, kind) = (&*cluster.name, &*event.host.address_text, event.kind.name());
        match event.action {
            Action::Capped { ejected, hosts } => {
                let percent = self.options.max_ejection_percent;
                let why = format!(
                    "max_ejection_percent ({percent} %) allows {} of {hosts} hosts to be ejected, and {ejected} are",
                    self.options.most_ejected(hosts)
                );
                if self.warned.swap(true, Ordering::Relaxed) {
                    tracing::debug!(cluster = name, host, kind, "not ejected: {why}");
                } else {
                    tracing::warn!(
                        cluster = name,
                        host,
                        kind,
                        "not ejected: {why}; said once for this cluster"
                    );
                }
            }
            Action::NotEnforced => {
                let field = event.kind.enforcing_field();
                let percent = self.options.enforcing(event.kind);
                tracing::debug!(cluster = name, host, kind, "not ejected: {field} is {percent} %");
            }
            action => tracing::debug!(cluster = name, host, kind, "{action:?}"),
        }
    }
}

impl Drop for OutlierDetection {
    fn drop(&mut self) {
        // Its hosts are gone with it.
        if let Some(stats) = self.stats.get() {
            stats.ejections_active.set(0.0);
        }
    }
}

impl OutlierStats {
    fn count(&self, event: &Event) {
        let (detected, enforced) = match event.kind {
            Kind::Consecutive5xx => {
                (&self.ejections_detected_consecutive_5xx, &self.ejections_enforced_consecutive_5xx)
            }
            Kind::ConsecutiveGatewayFailure => (
                &self.ejections_detected_consecutive_gateway_failure,
                &self.ejections_enforced_consecutive_gateway_failure,
            ),
            Kind::SuccessRate => {
                (&self.ejections_detected_success_rate, &self.ejections_enforced_success_rate)
            }
            Kind::ConsecutiveLocalOriginFailure => (
                &self.ejections_detected_consecutive_local_origin_failure,
                &self.ejections_enforced_consecutive_local_origin_failure,
            ),
            Kind::SuccessRateLocalOrigin => (
                &self.ejections_detected_local_origin_success_rate,
                &self.ejections_enforced_local_origin_success_rate,
            ),
            Kind::FailurePercentage => {
                (&self.ejections_detected_failure_percentage, &self.ejections_enforced_failure_percentage)
            }
            Kind::FailurePercentageLocalOrigin => (
                &self.ejections_detected_local_origin_failure_percentage,
                &self.ejections_enforced_local_origin_failure_percentage,
            ),
            Kind::Degraded => return self.ejections_detected_degradation.increment(1),
        };
        if matches!(event.action, Action::Returned | Action::Restored | Action::Degraded) {
            return;
        }
        detected.increment(1);
        match event.kind {
            // Two counters of old that are kept up.
            Kind::Consecutive5xx => self.ejections_consecutive_5xx.increment(1),
            Kind::SuccessRate | Kind::SuccessRateLocalOrigin => self.ejections_success_rate.increment(1),
            _ => {}
        }
        if let Action::Capped { .. } = event.action {
            return self.ejections_overflow.increment(1);
        }
        if matches!(event.kind, Kind::Consecutive5xx | Kind::SuccessRate) {
            self.ejections_total.increment(1);
        }
        if event.action == Action::Ejected {
            enforced.increment(1);
            self.ejections_enforced_total.increment(1);
        }
    }
}

#[cfg(test)]
mod tests;
