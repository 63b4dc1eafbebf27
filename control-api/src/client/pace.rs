//! How fast the client may act: the wait before a new stream, and the rate of requests.

use std::time::{Duration, Instant};

use fastrand::Rng;

/// Exponential wait with full jitter: anywhere between nothing and a bound that doubles.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    bound: Duration,
    rng: Rng,
}

impl Backoff {
    /// The bound starts at `base` and never passes `cap`.
    #[must_use]
    pub fn new(base: Duration, cap: Duration, rng: Rng) -> Self {
        let base = base.max(Duration::from_millis(1));
        Self { base, cap: cap.max(base), bound: base, rng }
    }

    /// The wait before the next attempt; doubles the bound.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.bound.mul_f64(self.rng.f64());
        self.bound = self.bound.saturating_mul(2).min(self.cap);
        wait
    }

    /// Back to the first bound, after a stream that worked.
    pub fn reset(&mut self) {
        self.bound = self.base;
    }
}

/// Envoy's `RateLimitSettings`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// Requests that may be sent at once; Envoy's default is 100.
    pub max_tokens: u32,
    /// Requests per second after that; Envoy's default is 10. Less than one a minute counts as that.
    pub fill_rate: f64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { max_tokens: 100, fill_rate: 10.0 }
    }
}

/// A token bucket, full at the start.
#[derive(Debug)]
pub struct Bucket {
    limit: RateLimit,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let max_tokens = limit.max_tokens.max(1);
        let slowest = 1.0 / 60.0;
        let fill_rate = if limit.fill_rate.is_nan() { slowest } else { limit.fill_rate.clamp(slowest, 1e6) };
        let limit = RateLimit { max_tokens, fill_rate };
        Self { limit, tokens: f64::from(max_tokens), filled: now }
    }

    /// Takes a token, or says when there will be one.
    ///
    /// # Errors
    /// The instant to ask again at.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.limit.fill_rate).min(f64::from(self.limit.max_tokens));
        self.filled = self.filled.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let missing = (1.0 - self.tokens) / self.limit.fill_rate;
        // A little late rather than a little early, which would ask twice.
        Err(self.filled + Duration::from_secs_f64(missing) + Duration::from_micros(1))
    }
}
