//! The state of one host's checks: what an answer makes of the host, and when it is checked next. Time and chance are
//! arguments.

use std::time::Duration;

use smallvec::SmallVec;

use super::options::Options;
use crate::config::cluster::HealthFlags;

/// What was asked of a host so far.
#[derive(Debug)]
pub struct Session {
    /// There was no answer yet.
    first: bool,
    healthy: u32,
    unhealthy: u32,
}

/// Why a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The answer says so.
    Active {
        /// It counts against the threshold instead of failing the host at once.
        retriable: bool,
        /// The answer's status; 0 where it has none.
        status: u16,
    },
    /// An answer to a request said so.
    Passive,
    /// No connection, or one that broke.
    Network,
    /// No answer in time.
    Timeout,
}

impl Failure {
    fn is_network(self) -> bool {
        matches!(self, Failure::Network | Failure::Timeout)
    }

    /// As the event log writes it.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Active { .. } => "ACTIVE",
            Failure::Passive => "PASSIVE",
            Failure::Network => "NETWORK",
            Failure::Timeout => "NETWORK_TIMEOUT",
        }
    }

    /// The answer's status; 0 where there is none.
    pub fn status(self) -> u16 {
        match self {
            Failure::Active { status, .. } => status,
            _ => 0,
        }
    }
}

/// What an answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    Unchanged,
    /// Nothing yet: more answers like this are needed.
    Pending,
    /// The host's health.
    Changed,
}

/// Something for the event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// It counts as healthy now.
    AddHealthy {
        /// After its first check.
        first: bool,
    },
    /// It counts as failed now.
    EjectUnhealthy(Failure),
    /// A check failed.
    Failed {
        /// Why.
        failure: Failure,
        /// It was the first.
        first: bool,
    },
    /// A check succeeded and changed nothing.
    Succeeded,
    /// It counts as degraded now.
    Degraded,
    /// It does no longer.
    NoLongerDegraded,
}

/// What followed from an answer.
#[derive(Debug)]
pub struct Verdict {
    /// What it changed.
    pub transition: Transition,
    /// What is logged.
    pub notes: SmallVec<[Note; 3]>,
    /// It was the first answer.
    pub first: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self { first: true, healthy: 0, unhealthy: 0 }
    }
}

impl Session {
    /// Whether there was no answer yet.
    pub fn is_new(&self) -> bool {
        self.first
    }

    /// A check succeeded; `degraded` says what the answer did. The host's flags follow.
    pub fn succeeded(&mut self, flags: &HealthFlags, degraded: bool, options: &Options) -> Verdict {
        self.unhealthy = 0;
        let mut transition = Transition::Unchanged;
        let mut notes = SmallVec::new();
        if flags.has(HealthFlags::FAILED_ACTIVE_HC) {
            // The first answer is enough: a process that starts must not wait for several.
            if !self.first {
                self.healthy = self.healthy.saturating_add(1);
            }
            if self.first || self.healthy == options.healthy_threshold {
                flags.clear(
                    HealthFlags::ACTIVE_HC_TIMEOUT
                        | HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL
                        | HealthFlags::FAILED_ACTIVE_HC,
                );
                transition = Transition::Changed;
                notes.push(Note::AddHealthy { first: self.first });
            } else {
                transition = Transition::Pending;
            }
        }
        if transition != Transition::Changed && options.always_log_success {
            notes.push(Note::Succeeded);
        }
        if flags.clear(HealthFlags::PENDING_ACTIVE_HC) {
            transition = Transition::Changed;
        }
        if degraded != flags.has(HealthFlags::DEGRADED_ACTIVE_HC) {
            if degraded {
                flags.set(HealthFlags::DEGRADED_ACTIVE_HC);
                notes.push(Note::Degraded);
            } else {
                flags.clear(HealthFlags::DEGRADED_ACTIVE_HC);
                notes.push(Note::NoLongerDegraded);
            }
            if transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        }
        Verdict { transition, notes, first: std::mem::take(&mut self.first) }
    }

    /// A check failed. The host's flags follow.
    pub fn failed(&mut self, flags: &HealthFlags, failure: Failure, options: &Options) -> Verdict {
        self.healthy = 0;
        let mut transition = Transition::Unchanged;
        let mut notes = SmallVec::new();
        if !flags.has(HealthFlags::FAILED_ACTIVE_HC) {
            let waits = failure.is_network() || matches!(failure, Failure::Active { retriable: true, .. });
            if waits {
                self.unhealthy = self.unhealthy.saturating_add(1);
            }
            if !waits || self.unhealthy == options.unhealthy_threshold {
                flags.set(HealthFlags::FAILED_ACTIVE_HC);
                transition = Transition::Changed;
                notes.push(Note::EjectUnhealthy(failure));
            } else {
                transition = Transition::Pending;
            }
        }
        if failure == Failure::Timeout && flags.has(HealthFlags::FAILED_ACTIVE_HC) {
            flags.set(HealthFlags::ACTIVE_HC_TIMEOUT);
        } else {
            flags.clear(HealthFlags::ACTIVE_HC_TIMEOUT);
        }
        if flags.clear(HealthFlags::PENDING_ACTIVE_HC) {
            transition = Transition::Changed;
        }
        if self.first || options.always_log_failures {
            notes.push(Note::Failed { failure, first: self.first });
        }
        Verdict { transition, notes, first: std::mem::take(&mut self.first) }
    }
}

/// Time until the first check.
pub fn initial_delay(options: &Options, rng: &mut fastrand::Rng) -> Duration {
    match millis(options.initial_jitter) {
        0 => Duration::ZERO,
        jitter => bounded(options, 0, jitter, rng),
    }
}

/// Time until the next check after one that succeeded (`healthy`) or failed; `used` says that the cluster has had
/// traffic.
pub fn next_interval(
    options: &Options,
    healthy: bool,
    transition: Transition,
    used: bool,
    rng: &mut fastrand::Rng,
) -> Duration {
    let pending = transition == Transition::Pending;
    let base = match (used, healthy, pending) {
        (true, false, true) => options.unhealthy_edge_interval,
        (true, false, false) => options.unhealthy_interval,
        (true, true, true) => options.healthy_edge_interval,
        (true, true, false) => options.interval,
        (false, true, false) => options.no_traffic_healthy_interval,
        (false, ..) => options.no_traffic_interval,
    };
    bounded(options, millis(base), millis(options.interval_jitter), rng)
}

/// `base` milliseconds with jitter, within the bounds, and never nothing.
fn bounded(options: &Options, base: u64, jitter: u64, rng: &mut fastrand::Rng) -> Duration {
    let share = u64::from(options.interval_jitter_percent).saturating_mul(base) / 100;
    let mut time = base;
    if share > 0 {
        time = time.saturating_add(rng.u64(0..share));
    }
    if jitter > 0 {
        time = time.saturating_add(rng.u64(0..jitter));
    }
    let (least, most) = options.bounds;
    Duration::from_millis(time).min(most).max(least).max(Duration::from_millis(1))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
