//! Which hosts are outliers: a state machine over the counters of a cluster's hosts. Time and chance are arguments.
//!
//! The rules are Envoy's: a host is ejected when its run of failures or its rates say so, as long as not too many are
//! out, and comes back at a sweep when its time is over, which grows with each ejection and shrinks while it behaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::monitor::{Monitor, Origin};
use super::options::{Kind, Options};
use crate::config::cluster::HealthFlags;
use crate::config::Host;

/// What became of a host.
#[derive(Debug, Clone)]
pub struct Event {
    /// Which.
    pub host: Arc<Host>,
    /// Why; what returns has no reason.
    pub kind: Kind,
    /// What was done.
    pub action: Action,
    /// How often the host was ejected so far.
    pub ejections: u32,
    /// Time since the last action of the other sort.
    pub since: Option<Duration>,
    /// The host's success rate in percent.
    pub rate: f64,
    /// Those of the cluster.
    pub cluster: Rates,
}

/// What was done with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It gets no traffic now.
    Ejected,
    /// It would have been ejected, but `enforcing_*` said no.
    NotEnforced,
    /// It would have been ejected, but as many as may are out already.
    Capped {
        /// So many are out.
        ejected: usize,
        /// Of so many.
        hosts: usize,
    },
    /// It gets traffic again.
    Returned,
    /// It counts as degraded.
    Degraded,
    /// It does no longer.
    Restored,
}

/// Success rates over a cluster, in percent; -1 where there are none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// The mean of all hosts.
    pub average: f64,
    /// A host below this is an outlier.
    pub threshold: f64,
}

impl Rates {
    const NONE: Self = Self { average: -1.0, threshold: -1.0 };
}

/// The detector of one cluster.
#[derive(Debug)]
pub struct Detector {
    rng: fastrand::Rng,
    rates: [Rates; 2],
}

/// The hosts of a cluster; those without a monitor never had a request.
type Hosts<'a> = &'a [Arc<Host>];

impl Detector {
    /// A detector that draws with `rng`.
    pub fn new(rng: fastrand::Rng) -> Self {
        Self { rng, rates: [Rates::NONE; 2] }
    }

    /// The rates of the last interval.
    pub fn rates(&self, origin: Origin) -> Rates {
        self.rates[origin as usize]
    }

    /// A run of failures of `host` has become long enough.
    pub fn consecutive(
        &mut self,
        options: &Options,
        hosts: Hosts<'_>,
        host: &Arc<Host>,
        kind: Kind,
        now: Instant,
    ) -> Option<Event> {
        let monitor = host.shared.outlier.get()?;
        // It may have left the cluster.
        let here = hosts.iter().any(|other| Arc::ptr_eq(&other.shared, &host.shared));
        if !here || is_ejected(host) {
            return None;
        }
        let event = self.eject(options, hosts, host, monitor, kind, now);
        // The next run counts from nothing, whether this one had an effect or not.
        monitor.reset(kind);
        Some(event)
    }

    /// `host` said that it is degraded.
    pub fn degraded(&mut self, host: &Arc<Host>, now: Instant) -> Option<Event> {
        let monitor = host.shared.outlier.get()?;
        if !host.shared.health.set(HealthFlags::DEGRADED_OUTLIER_DETECTION) {
            return None;
        }
        let mut record = monitor.record();
        record.degraded = Some(now);
        Some(Event {
            host: host.clone(),
            kind: Kind::Degraded,
            action: Action::Degraded,
            ejections: record.ejections,
            since: since(record.returned, now),
            rate: -1.0,
            cluster: Rates::NONE,
        })
    }

    /// An active health check of `host` succeeded.
    pub fn checked(&mut self, host: &Arc<Host>, now: Instant) -> Option<Event> {
        let monitor = host.shared.outlier.get()?;
        let healthy = !host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC);
        (healthy && is_ejected(host)).then(|| bring_back(host, monitor, now))
    }

    /// The end of an interval.
    pub fn sweep(&mut self, options: &Options, hosts: Hosts<'_>, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        let mut closed = Vec::with_capacity(hosts.len());
        for host in hosts {
            let Some(monitor) = host.shared.outlier.get() else { continue };
            events.extend(check_return(options, host, monitor, now));
            closed.push((host, monitor, monitor.close_interval()));
        }
        for origin in [Origin::External, Origin::Local] {
            let intervals: Vec<_> = closed
                .iter()
                .filter(|(host, ..)| !is_ejected(host))
                .filter_map(|(host, monitor, interval)| {
                    // An interval has a place for each origin.
                    let (rate, volume) = interval[origin as usize]?;
                    Some(Interval { host, monitor, rate, volume })
                })
                .collect();
            self.look_at_rates(options, hosts, origin, &intervals, now, &mut events);
        }
        for (host, monitor, _) in &closed {
            let mut record = monitor.record();
            let behaves = since(record.returned, now).is_some_and(|since| since >= options.interval);
            if behaves && !is_ejected(host) {
                record.backoff = record.backoff.saturating_sub(1);
            }
        }
        events
    }

    fn look_at_rates(
        &mut self,
        options: &Options,
        hosts: Hosts<'_>,
        origin: Origin,
        intervals: &[Interval<'_>],
        now: Instant,
        events: &mut Vec<Event>,
    ) {
        let (by_rate, by_share) = match origin {
            Origin::External => (Kind::SuccessRate, Kind::FailurePercentage),
            Origin::Local => (Kind::SuccessRateLocalOrigin, Kind::FailurePercentageLocalOrigin),
        };
        self.rates[origin as usize] = Rates::NONE;
        let rate_hosts = options.success_rate_minimum_hosts as usize;
        let share_hosts = options.failure_percentage_minimum_hosts as usize;
        if hosts.len() < rate_hosts && hosts.len() < share_hosts {
            return;
        }
        let rate_volume = u64::from(options.success_rate_request_volume);
        let share_volume = u64::from(options.failure_percentage_request_volume);
        for interval in intervals.iter().filter(|i| i.volume >= rate_volume.min(share_volume)) {
            interval.monitor.set_rate(origin, interval.rate);
        }
        let with = |volume: u64| intervals.iter().filter(move |interval| interval.volume >= volume);
        let count = with(rate_volume).count();
        if count > 0 && count >= rate_hosts {
            let mean = with(rate_volume).map(|interval| interval.rate).sum::<f64>() / count as f64;
            let squares = with(rate_volume).map(|interval| (interval.rate - mean).powi(2)).sum::<f64>();
            let deviation = (squares / count as f64).sqrt();
            let threshold = mean - options.success_rate_stdev_factor * deviation;
            self.rates[origin as usize] = Rates { average: mean, threshold };
            for interval in with(rate_volume).filter(|interval| interval.rate < threshold) {
                events.extend(self.eject_by_rate(options, hosts, interval, by_rate, now));
            }
        }
        let count = with(share_volume).count();
        if count > 0 && count >= share_hosts {
            let most = f64::from(options.failure_percentage_threshold);
            for interval in with(share_volume).filter(|interval| 100.0 - interval.rate >= most) {
                events.extend(self.eject_by_rate(options, hosts, interval, by_share, now));
            }
        }
    }

    /// A host that the other detector has just ejected is not ejected twice.
    fn eject_by_rate(
        &mut self,
        options: &Options,
        hosts: Hosts<'_>,
        interval: &Interval<'_>,
        kind: Kind,
        now: Instant,
    ) -> Option<Event> {
        let (host, monitor) = (interval.host, interval.monitor);
        (!is_ejected(host)).then(|| self.eject(options, hosts, host, monitor, kind, now))
    }

    fn eject(
        &mut self,
        options: &Options,
        hosts: Hosts<'_>,
        host: &Arc<Host>,
        monitor: &Monitor,
        kind: Kind,
        now: Instant,
    ) -> Event {
        let origin = match kind {
            Kind::SuccessRateLocalOrigin | Kind::FailurePercentageLocalOrigin => Origin::Local,
            _ => Origin::External,
        };
        let ejected = hosts.iter().filter(|host| is_ejected(host)).count();
        let percent = 100.0 * (ejected + 1) as f64 / hosts.len().max(1) as f64;
        let allowed = percent <= f64::from(options.max_ejection_percent.min(100))
            || options.always_eject_one_host && ejected == 0;
        let mut record = monitor.record();
        let since = since(record.returned, now);
        let action = if !allowed {
            Action::Capped { ejected, hosts: hosts.len() }
        } else if self.rng.u32(0..100) >= options.enforcing(kind) {
            Action::NotEnforced
        } else {
            host.shared.health.set(HealthFlags::FAILED_OUTLIER_CHECK);
            record.ejections = record.ejections.saturating_add(1);
            record.ejected = Some(now);
            let jitter = millis(options.max_ejection_time_jitter);
            record.jitter = Duration::from_millis(self.rng.u64(0..=jitter));
            let base = options.base_ejection_time;
            if base.saturating_mul(record.backoff) < options.max_ejection_time.saturating_add(base) {
                record.backoff = record.backoff.saturating_add(1);
            }
            Action::Ejected
        };
        Event {
            host: host.clone(),
            kind,
            action,
            ejections: record.ejections,
            since,
            rate: monitor.rate(origin),
            cluster: self.rates[origin as usize],
        }
    }

    /// Whether something is known of these hosts that must not be forgotten.
    pub fn remembers(hosts: Hosts<'_>) -> bool {
        hosts.iter().any(|host| {
            let flags = HealthFlags::FAILED_OUTLIER_CHECK | HealthFlags::DEGRADED_OUTLIER_DETECTION;
            host.shared.health.has(flags)
                || host.shared.outlier.get().is_some_and(|monitor| monitor.record().backoff > 0)
        })
    }
}

/// What one host did within the interval.
struct Interval<'a> {
    host: &'a Arc<Host>,
    monitor: &'a Monitor,
    rate: f64,
    volume: u64,
}

/// Whether `host` is out.
pub(super) fn is_ejected(host: &Host) -> bool {
    host.shared.health.has(HealthFlags::FAILED_OUTLIER_CHECK)
}

fn since(then: Option<Instant>, now: Instant) -> Option<Duration> {
    then.map(|then| now.saturating_duration_since(then))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

/// Brings a host back whose time is over, from ejection or from being degraded.
fn check_return(options: &Options, host: &Arc<Host>, monitor: &Monitor, now: Instant) -> Option<Event> {
    let (backoff, jitter, ejected, degraded) = {
        let record = monitor.record();
        (record.backoff, record.jitter, record.ejected, record.degraded)
    };
    let term = |times: u32| options.base_ejection_time.saturating_mul(times).min(options.max_ejection_time);
    if is_ejected(host) {
        let over = since(ejected, now).is_none_or(|since| since >= term(backoff).saturating_add(jitter));
        return over.then(|| bring_back(host, monitor, now));
    }
    let over = since(Some(degraded?), now).is_some_and(|since| since >= term(1));
    over.then(|| {
        host.shared.health.clear(HealthFlags::DEGRADED_OUTLIER_DETECTION);
        monitor.forget_degraded();
        let mut record = monitor.record();
        record.degraded = None;
        Event {
            host: host.clone(),
            kind: Kind::Consecutive5xx,
            action: Action::Restored,
            ejections: record.ejections,
            since: since(record.ejected, now),
            rate: -1.0,
            cluster: Rates::NONE,
        }
    })
}

fn bring_back(host: &Arc<Host>, monitor: &Monitor, now: Instant) -> Event {
    host.shared.health.clear(HealthFlags::FAILED_OUTLIER_CHECK);
    // A counter that is near its limit must not throw it out again at once.
    monitor.reset_all();
    let mut record = monitor.record();
    record.returned = Some(now);
    Event {
        host: host.clone(),
        kind: Kind::Consecutive5xx,
        action: Action::Returned,
        ejections: record.ejections,
        since: since(record.ejected, now),
        rate: -1.0,
        cluster: Rates::NONE,
    }
}
