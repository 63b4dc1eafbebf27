//! A bucket of tokens that fills as time passes. Shared by all workers, without a lock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use outrigger_control_api::pb::envoy::r#type::v3 as pb;

use crate::config::compile::{duration, u32_or};
use crate::config::problems::Problems;

/// Shortest time in which tokens come, as in Envoy.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// A token bucket. It begins full.
#[derive(Debug)]
pub struct TokenBucket {
    base: Instant,
    max: u32,
    /// Nanoseconds in which one token comes.
    each: f64,
    /// Since when it fills from nothing, in nanoseconds after `base`; more than it holds is lost.
    empty_at: AtomicI64,
}

/// A moment of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Most tokens.
    pub max: u32,
    /// Whole tokens in it.
    pub left: u32,
    /// Seconds until there is a token, rounded up.
    pub reset: u64,
}

impl TokenBucket {
    /// A bucket of `max` tokens, into which `tokens` come in each `interval`; neither is 0.
    pub fn new(max: u32, tokens: u32, interval: Duration, now: Instant) -> Self {
        let each = (interval.as_nanos() as f64 / f64::from(tokens.max(1))).max(1.0);
        let full = -(each * f64::from(max)).ceil();
        Self { base: now, max, each, empty_at: AtomicI64::new(full as i64) }
    }

    /// A full bucket like this one.
    pub fn anew(&self, now: Instant) -> Self {
        let full = -(self.each * f64::from(self.max)).ceil();
        Self { base: now, max: self.max, each: self.each, empty_at: AtomicI64::new(full as i64) }
    }

    /// The bucket in the field `token_bucket`; full.
    pub fn compile(config: &pb::TokenBucket, problems: &mut Problems) -> Self {
        problems.at("token_bucket", |problems| {
            let interval =
                duration(&config.fill_interval, "fill_interval", problems).unwrap_or(Duration::ZERO);
            if interval < MIN_INTERVAL {
                problems.report_at("fill_interval", "must be at least 0.05s");
            }
            let tokens = u32_or(config.tokens_per_fill, 1);
            Self::new(config.max_tokens, tokens, interval, Instant::now())
        })
    }

    /// Nanoseconds after the base. Fits: 292 years do.
    fn at(&self, now: Instant) -> i64 {
        i64::try_from(now.saturating_duration_since(self.base).as_nanos()).unwrap_or(i64::MAX)
    }

    fn tokens(&self, now: i64, empty_at: i64) -> f64 {
        (now.saturating_sub(empty_at) as f64 / self.each).clamp(0.0, f64::from(self.max))
    }

    /// Nanoseconds in which one token comes.
    pub fn each(&self) -> f64 {
        self.each
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes `count` tokens, if there are as many.
    pub fn take_many(&self, count: u64, now: Instant) -> bool {
        let count = count as f64;
        let now = self.at(now);
        let taken = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let tokens = self.tokens(now, empty_at);
            (tokens >= count).then(|| now.saturating_sub(((tokens - count) * self.each) as i64))
        });
        taken.is_ok()
    }

    /// Takes up to `most` tokens, and says how many.
    pub fn take_some(&self, most: u64, now: Instant) -> u64 {
        let now = self.at(now);
        let mut taken = 0;
        let _ = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let tokens = self.tokens(now, empty_at);
            // Not negative.
            taken = (tokens as u64).min(most);
            (taken > 0).then(|| now.saturating_sub(((tokens - taken as f64) * self.each) as i64))
        });
        taken
    }

    /// Puts `count` tokens back; what does not fit is lost.
    pub fn put_back(&self, count: u64, now: Instant) {
        let count = count as f64;
        let now = self.at(now);
        let _ = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let tokens = (self.tokens(now, empty_at) + count).min(f64::from(self.max));
            Some(now.saturating_sub((tokens * self.each) as i64))
        });
    }

    /// How full it is.
    pub fn level(&self, now: Instant) -> Level {
        let tokens = self.tokens(self.at(now), self.empty_at.load(Ordering::Relaxed));
        let wait = if tokens >= 1.0 { 0.0 } else { (1.0 - tokens) * self.each / 1e9 };
        // `tokens` is at most `max`, `wait` not negative.
        Level { max: self.max, left: tokens as u32, reset: wait.ceil() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_full_and_fills_as_time_passes() {
        let start = Instant::now();
        let bucket = TokenBucket::new(3, 2, Duration::from_secs(1), start);
        assert_eq!(bucket.level(start), Level { max: 3, left: 3, reset: 0 });
        assert_eq!([(); 4].map(|()| bucket.take(start)), [true, true, true, false]);
        assert_eq!(bucket.level(start), Level { max: 3, left: 0, reset: 1 });
        let after = |millis| start + Duration::from_millis(millis);
        assert!(!bucket.take(after(499)));
        assert!(bucket.take(after(501)));
        assert!(!bucket.take(after(502)));
        // It never holds more than it may.
        assert_eq!(bucket.level(after(60_000)).left, 3);
        assert_eq!([(); 4].map(|()| bucket.take(after(60_000))), [true, true, true, false]);
    }

    #[test]
    fn what_is_put_back_can_be_taken_again() {
        let start = Instant::now();
        let bucket = TokenBucket::new(4, 1, Duration::from_secs(1000), start);
        assert!(bucket.take_many(4, start));
        bucket.put_back(2, start);
        assert_eq!((bucket.level(start).left, bucket.take_many(3, start)), (2, false));
        bucket.put_back(50, start);
        assert_eq!(bucket.level(start).left, 4);
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing() {
        let start = Instant::now();
        let bucket = TokenBucket::new(1, u32::MAX, Duration::from_millis(50), start);
        assert_eq!([bucket.take(start), bucket.take(start)], [true, false]);
        assert!(bucket.take(start + Duration::from_nanos(2)));
    }
}
