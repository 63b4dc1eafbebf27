//! The gradient controller: how many requests may be on their way, by how long they take now and how long they take
//! when there are few (envoyproxy.io: adaptive concurrency, gradient controller). Time and chance are arguments.
//!
//! Comes in: when requests came and when their responses were complete. Goes out: the limit. Once in a while the limit is
//! the least for as many responses as it takes to learn the ideal time; between that, at every update, it follows the
//! ratio of the ideal time to the one of now. Nothing here runs by itself: what was due is done with the next request.

use std::time::{Duration, Instant};

/// What config says.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Which part of the samples is not longer than the time they stand for, 0 to 1.
    pub(super) percentile: f64,
    /// The limit's own bounds.
    pub(super) most: u32,
    pub(super) least: u32,
    /// Time between two updates of the limit.
    pub(super) update: Duration,
    /// How much longer than ideal, as a share of it, is as good as ideal.
    pub(super) buffer: f64,
    pub(super) min_rtt: Rtt,
}

/// Where the ideal time comes from.
#[derive(Debug, Clone)]
pub(super) enum Rtt {
    Fixed(Duration),
    Measured {
        /// Time between two measurements, and the share of it that chance may add.
        interval: Duration,
        jitter: f64,
        /// Samples that a measurement takes.
        requests: u32,
    },
}

/// What gauges show. Times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Shown {
    pub(super) limit: u32,
    pub(super) headroom: f64,
    pub(super) gradient: f64,
    pub(super) measuring: bool,
    pub(super) min_rtt: u64,
    pub(super) sample_rtt: u64,
}

/// The state of one controller.
#[derive(Debug)]
pub(super) struct Gradient {
    options: Options,
    rng: fastrand::Rng,
    samples: Samples,
    shown: Shown,
    outstanding: u32,
    /// The limit that holds again after the measurement.
    deferred: u32,
    /// When the measurement began: what came before is none of its samples.
    since: Instant,
    /// When the next measurement begins.
    measure_at: Option<Instant>,
    /// When the limit is next updated; not while measuring.
    update_at: Option<Instant>,
    /// How often in a row the limit was to be the least and was already.
    at_least: u32,
}

/// So often in a row the least limit speaks against the ideal time.
const TOO_OFTEN: u32 = 5;

impl Gradient {
    pub(super) fn new(options: Options, seed: u64, now: Instant) -> Self {
        let fixed = match options.min_rtt {
            Rtt::Fixed(fixed) => Some(fixed),
            Rtt::Measured { .. } => None,
        };
        let limit = options.least;
        let mut gradient = Self {
            update_at: Some(now + options.update),
            options,
            rng: fastrand::Rng::with_seed(seed),
            samples: Samples::default(),
            shown: Shown { limit, min_rtt: fixed.map_or(0, micros), ..Shown::default() },
            outstanding: 0,
            deferred: 0,
            since: now,
            measure_at: None,
            at_least: 0,
        };
        if fixed.is_none() {
            gradient.measure(now);
        }
        gradient
    }

    pub(super) fn shown(&self) -> Shown {
        self.shown
    }

    /// Whether one more request may go; it counts until it is complete or cancelled.
    pub(super) fn admit(&mut self) -> bool {
        let admitted = self.outstanding < self.shown.limit;
        self.outstanding += u32::from(admitted);
        admitted
    }

    /// A request ended without a complete response.
    pub(super) fn cancel(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// A response to a request of `start` is complete. True when that changes what is shown.
    pub(super) fn complete(&mut self, start: Instant, now: Instant) -> bool {
        self.cancel();
        if start < self.since {
            return false;
        }
        self.samples.add(micros(now.saturating_duration_since(start)));
        let Rtt::Measured { interval, jitter, requests } = self.options.min_rtt else { return false };
        if !self.shown.measuring || self.samples.count < u64::from(requests) {
            return false;
        }
        self.shown.min_rtt = self.samples.take(self.options.percentile);
        self.set_limit(self.deferred);
        self.shown.measuring = false;
        let range = (interval.as_millis() as f64 * jitter).ceil() as u64;
        let more = if range > 0 { self.rng.u64(0..range) } else { 0 };
        // Without a pause there would be nothing but measuring; Envoy's timers are no shorter either.
        let pause = (interval + Duration::from_millis(more)).max(Duration::from_millis(1));
        self.measure_at = Some(now + pause);
        self.update_at = Some(now + self.options.update);
        true
    }

    /// Does what was due by `now`. True when that changes what is shown.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        let before = self.shown;
        loop {
            let measure = self.measure_at.filter(|at| *at <= now);
            let update = self.update_at.filter(|at| *at <= now);
            match (measure, update) {
                (None, None) => break,
                (Some(at), update) if update.is_none_or(|update| at <= update) => {
                    self.measure_at = None;
                    self.measure(at);
                }
                // Begins again after the measurement.
                (_, Some(_)) if self.shown.measuring => self.update_at = None,
                (_, Some(at)) => {
                    self.update(at);
                    // Periods without samples change nothing.
                    let periods =
                        now.saturating_duration_since(at).as_nanos() / self.options.update.as_nanos();
                    let skip = self.options.update.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
                    self.update_at = Some(at + skip + self.options.update);
                }
                (Some(_), None) => break,
            }
        }
        before != self.shown
    }

    /// A measurement begins.
    fn measure(&mut self, now: Instant) {
        if self.shown.measuring {
            return;
        }
        self.shown.measuring = true;
        self.deferred = self.shown.limit;
        self.set_limit(self.options.least);
        self.samples = Samples::default();
        self.since = now;
    }

    /// The limit follows the samples since the last time.
    fn update(&mut self, now: Instant) {
        if self.samples.count == 0 {
            return;
        }
        self.shown.sample_rtt = self.samples.take(self.options.percentile);
        let ideal = self.shown.min_rtt as f64 * (1.0 + self.options.buffer);
        let ratio = ideal / self.shown.sample_rtt as f64;
        // 0 by 0: nothing could be faster.
        self.shown.gradient = if ratio.is_nan() { 2.0 } else { ratio.clamp(0.5, 2.0) };
        let limit = f64::from(self.shown.limit) * self.shown.gradient;
        self.shown.headroom = limit.sqrt();
        // Saturates.
        let limit = (limit + self.shown.headroom) as u32;
        self.set_limit(limit.min(self.options.most).max(self.options.least));
        if self.at_least >= TOO_OFTEN && matches!(self.options.min_rtt, Rtt::Measured { .. }) {
            // The ideal time is no longer true, and the limit is where a measurement wants it.
            self.measure_at = Some(now);
        }
    }

    fn set_limit(&mut self, limit: u32) {
        let least = self.options.least;
        if !self.shown.measuring && self.shown.limit == least && limit == least {
            self.at_least += 1;
        } else {
            self.at_least = 0;
        }
        self.shown.limit = limit;
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Times in buckets of two significant digits, as the histogram that Envoy uses has them.
#[derive(Debug, Default)]
struct Samples {
    count: u64,
    /// Made by the first sample.
    buckets: Vec<u32>,
}

/// 0, and 90 for each of the powers of ten from 1 microsecond to more than a day.
const BUCKETS: usize = 1 + 90 * 12;

impl Samples {
    fn add(&mut self, micros: u64) {
        if self.buckets.is_empty() {
            self.buckets = vec![0; BUCKETS];
        }
        let index = match micros {
            0 => 0,
            micros => {
                let (mut digits, mut power) = (micros.min(10u64.pow(12) - 1) * 10, 0);
                while digits >= 100 {
                    digits /= 10;
                    power += 1;
                }
                // Two digits, and a power below 12.
                1 + power * 90 + (digits as usize - 10)
            }
        };
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket = bucket.saturating_add(1);
            self.count += 1;
        }
    }

    /// The time that `share` of the samples do not exceed, in whole microseconds; forgets them.
    fn take(&mut self, share: f64) -> u64 {
        let wanted = self.count as f64 * share;
        let mut below = 0.0;
        let mut found = 0.0;
        for (index, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (left, width) = bounds(index);
            let count = f64::from(*count);
            found = left + width * ((wanted - below) / count).clamp(0.0, 1.0);
            if below + count >= wanted {
                break;
            }
            below += count;
        }
        self.count = 0;
        self.buckets.fill(0);
        found as u64
    }
}

/// Where a bucket begins, and how wide it is.
fn bounds(index: usize) -> (f64, f64) {
    let Some(index) = index.checked_sub(1) else { return (0.0, 0.0) };
    let width = 10f64.powi((index / 90) as i32 - 1);
    (((index % 90) as f64 + 10.0) * width, width)
}

#[cfg(test)]
#[path = "gradient_tests.rs"]
mod tests;
