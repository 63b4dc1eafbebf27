//! What is counted of one host while requests run: atomics, shared by all workers.
//!
//! In: how a try ended. Out: which runs of failures have just become long enough. A success costs one addition
//! and one load.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::options::{Kind, Options};

/// Where a failure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The host answered so.
    External,
    /// The host was not reached, was too slow, or broke off.
    Local,
}

/// How a try ended (Envoy's `Outlier::Result` with its code).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The host answered with this status; of gRPC, the HTTP status of its `grpc-status`.
    Answered(u16),
    /// No connection, or one that broke; `connected` says that there was one.
    Failed {
        /// There was a connection.
        connected: bool,
    },
    /// Too late: counts as this status where origins are not told apart.
    TimedOut {
        /// There was a connection.
        connected: bool,
        /// The status that the client is told.
        status: u16,
    },
    /// A connection for a TCP session is there.
    Connected,
}

/// Counters of one host.
#[derive(Debug, Default)]
pub struct Monitor {
    /// Failures without a success in between: 5xx in the low half, gateway failures in the high one, so that a
    /// success looks at both with one load.
    runs: AtomicU64,
    local_run: AtomicU32,
    /// Of the interval, by [`Origin`].
    successes: [AtomicU32; 2],
    failures: [AtomicU32; 2],
    /// Success rates of the last interval in percent, as bits; negative = not enough requests. Shown by `/clusters`.
    rates: [AtomicU64; 2],
    /// It has said that it is degraded, and nobody has acted on that.
    degraded: AtomicBool,
    /// Ejections, kept by [`Detector`](super::Detector).
    record: Mutex<Record>,
}

/// What there was of ejections.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// How often.
    pub ejections: u32,
    /// When last.
    pub ejected: Option<Instant>,
    /// When it last came back.
    pub returned: Option<Instant>,
    /// Times `base_ejection_time`.
    pub backoff: u32,
    /// What was drawn for the last ejection.
    pub jitter: Duration,
    /// Since when it counts as degraded.
    pub degraded: Option<Instant>,
}

/// The runs that have just become long enough, in Envoy's order.
pub(super) type Found = [Option<Kind>; 2];

const GATEWAY: u64 = 1 << 32;
const LOW: u64 = GATEWAY - 1;

impl Monitor {
    /// Nothing was counted yet.
    pub fn new() -> Self {
        let none = || AtomicU64::new((-1.0f64).to_bits());
        Self { rates: [none(), none()], ..Self::default() }
    }

    /// Counts one try.
    #[inline]
    pub(super) fn take(&self, outcome: Outcome, options: &Options) -> Found {
        if options.split {
            return self.take_split(outcome, options);
        }
        match outcome {
            Outcome::Answered(status) | Outcome::TimedOut { status, .. } => self.answered(status, options),
            Outcome::Failed { .. } => self.answered(503, options),
            Outcome::Connected => self.answered(200, options),
        }
    }

    fn take_split(&self, outcome: Outcome, options: &Options) -> Found {
        match outcome {
            Outcome::Answered(status) => {
                self.reached();
                self.answered(status, options)
            }
            Outcome::Connected => {
                self.reached();
                [None, None]
            }
            Outcome::Failed { connected } | Outcome::TimedOut { connected, .. } => {
                if connected {
                    self.reached();
                }
                self.failures[Origin::Local as usize].fetch_add(1, Relaxed);
                let run = self.local_run.fetch_add(1, Relaxed).wrapping_add(1);
                let found = run == options.consecutive_local_origin_failure;
                [found.then_some(Kind::ConsecutiveLocalOriginFailure), None]
            }
        }
    }

    fn reached(&self) {
        self.successes[Origin::Local as usize].fetch_add(1, Relaxed);
        if self.local_run.load(Relaxed) != 0 {
            self.local_run.store(0, Relaxed);
        }
    }

    #[inline]
    fn answered(&self, status: u16, options: &Options) -> Found {
        if !(500..600).contains(&status) {
            self.successes[Origin::External as usize].fetch_add(1, Relaxed);
            if self.runs.load(Relaxed) != 0 {
                self.runs.store(0, Relaxed);
            }
            return [None, None];
        }
        self.failures[Origin::External as usize].fetch_add(1, Relaxed);
        let gateway = matches!(status, 502..=504);
        let next = |runs: u64| {
            // A run as long as this has been noticed long ago.
            let low = (runs & LOW).saturating_add(1).min(LOW);
            let high = if gateway { (runs >> 32).saturating_add(1).min(LOW) } else { 0 };
            (high << 32) | low
        };
        let mut before = self.runs.load(Relaxed);
        while let Err(now) = self.runs.compare_exchange_weak(before, next(before), Relaxed, Relaxed) {
            before = now;
        }
        let runs = next(before);
        let is = |run: u64, limit: u32| run == u64::from(limit);
        let of_gateway = gateway && is(runs >> 32, options.consecutive_gateway_failure);
        let of_5xx = is(runs & LOW, options.consecutive_5xx);
        [of_gateway.then_some(Kind::ConsecutiveGatewayFailure), of_5xx.then_some(Kind::Consecutive5xx)]
    }

    /// Notes that the host called itself degraded; true the first time.
    pub(super) fn note_degraded(&self) -> bool {
        !self.degraded.load(Relaxed) && !self.degraded.swap(true, Relaxed)
    }

    pub(super) fn forget_degraded(&self) {
        self.degraded.store(false, Relaxed);
    }

    /// A run begins anew.
    pub(super) fn reset(&self, kind: Kind) {
        let keep = match kind {
            Kind::Consecutive5xx => !LOW,
            Kind::ConsecutiveGatewayFailure => LOW,
            Kind::ConsecutiveLocalOriginFailure => return self.local_run.store(0, Relaxed),
            _ => return,
        };
        self.runs.fetch_and(keep, Relaxed);
    }

    /// All runs begin anew.
    pub(super) fn reset_all(&self) {
        self.runs.store(0, Relaxed);
        self.local_run.store(0, Relaxed);
    }

    /// Ends the interval: success rate in percent and number of requests of both origins; `None` without requests.
    pub(super) fn close_interval(&self) -> [Option<(f64, u64)>; 2] {
        std::array::from_fn(|origin| {
            // Both arrays have a place for each origin.
            let successes = u64::from(self.successes[origin].swap(0, Relaxed));
            let all = successes + u64::from(self.failures[origin].swap(0, Relaxed));
            self.rates[origin].store((-1.0f64).to_bits(), Relaxed);
            (all > 0).then(|| (successes as f64 * 100.0 / all as f64, all))
        })
    }

    pub(super) fn set_rate(&self, origin: Origin, rate: f64) {
        self.rates[origin as usize].store(rate.to_bits(), Relaxed);
    }

    /// The success rate of the last interval in percent; negative if there were too few requests.
    pub fn rate(&self, origin: Origin) -> f64 {
        f64::from_bits(self.rates[origin as usize].load(Relaxed))
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
