//! The life of the stream: when to connect, when to doubt it, when it may send.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::machine::Settings;
use super::pace::{Backoff, Bucket};

/// Where the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was wanted yet.
    Idle,
    /// Until the next attempt.
    Waiting { until: Instant },
    /// An attempt is under way.
    Connecting,
    /// Since then.
    Open { since: Instant },
    /// Given up, and not yet reported closed. Was healthy, or not.
    Abandoned { healthy: bool },
}

#[derive(Debug)]
pub(super) struct Link {
    pub phase: Phase,
    /// Counts streams; answers belong to one.
    pub generation: u64,
    pub heard: Option<Instant>,
    pub rate_limited: u64,
    backoff: Backoff,
    bucket: Option<Bucket>,
    held_until: Option<Instant>,
    /// Requests have been waiting for the rate limit ever since this was set.
    limited: bool,
    healthy_after: Duration,
    doubt_after: Option<Duration>,
    answer_after: Duration,
    /// The open stream brought a response.
    brought: bool,
    /// It was reported that it brought none.
    reported: bool,
}

impl Link {
    pub fn new(settings: &Settings, now: Instant, seed: u64) -> Self {
        Self {
            phase: Phase::Idle,
            generation: 0,
            heard: None,
            rate_limited: 0,
            backoff: Backoff::new(settings.backoff_base, settings.backoff_cap, Rng::with_seed(seed)),
            bucket: settings.rate_limit.map(|limit| Bucket::new(limit, now)),
            held_until: None,
            limited: false,
            healthy_after: settings.healthy_after,
            doubt_after: settings.doubt_after,
            answer_after: settings.answer_after,
            brought: false,
            reported: false,
        }
    }

    pub fn opened(&mut self, now: Instant) {
        self.phase = Phase::Open { since: now };
        self.generation += 1;
        self.heard = Some(now);
        self.brought = false;
        self.reported = false;
    }

    /// The wait before the next attempt, or nothing if there was neither stream nor attempt.
    pub fn closed(&mut self, now: Instant) -> Option<Duration> {
        let healthy = match self.phase {
            Phase::Idle | Phase::Waiting { .. } => return None,
            Phase::Connecting => false,
            Phase::Abandoned { healthy } => healthy,
            Phase::Open { since } => self.healthy(now, since),
        };
        if healthy {
            self.backoff.reset();
        }
        let wait = self.backoff.next_wait();
        self.phase = Phase::Waiting { until: now + wait };
        self.held_until = None;
        Some(wait)
    }

    pub fn received(&mut self, now: Instant) {
        self.heard = Some(now);
        self.brought = true;
    }

    pub fn alive(&mut self, at: Instant) {
        self.heard = self.heard.max(Some(at));
    }

    pub fn retry_due(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Waiting { until } if until <= now)
    }

    /// How long nothing was heard, once that is too long; gives the stream up.
    pub fn doubt(&mut self, now: Instant) -> Option<Duration> {
        let Phase::Open { since } = self.phase else { return None };
        if self.doubt_at()? > now {
            return None;
        }
        self.phase = Phase::Abandoned { healthy: self.healthy(now, since) };
        Some(now.saturating_duration_since(self.heard?))
    }

    /// How long the stream has brought nothing, once that is long. Told once for each stream.
    pub fn unanswered(&mut self, now: Instant) -> Option<Duration> {
        if self.answer_at()? > now {
            return None;
        }
        self.reported = true;
        Some(self.answer_after)
    }

    fn answer_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { since } if !self.brought && !self.reported => since.checked_add(self.answer_after),
            _ => None,
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Open { .. } => {
                [self.held_until, self.doubt_at(), self.answer_at()].into_iter().flatten().min()
            }
            Phase::Idle | Phase::Connecting | Phase::Abandoned { .. } => None,
        }
    }

    /// Whether a request may go out.
    ///
    /// # Errors
    /// It may not, until the deadline; true when this is news.
    pub fn take_token(&mut self, now: Instant) -> Result<(), bool> {
        match self.bucket.as_mut().map_or(Ok(()), |bucket| bucket.take(now)) {
            Ok(()) => {
                self.held_until = None;
                Ok(())
            }
            Err(at) => {
                let news = !std::mem::replace(&mut self.limited, true);
                self.rate_limited += u64::from(news);
                self.held_until = Some(at);
                Err(news)
            }
        }
    }

    /// Nothing waits to be sent.
    pub fn all_sent(&mut self) {
        self.limited = false;
        self.held_until = None;
    }

    pub fn is_current(&self, generation: u64) -> bool {
        self.generation == generation && matches!(self.phase, Phase::Open { .. })
    }

    fn healthy(&self, now: Instant, since: Instant) -> bool {
        self.brought && now.saturating_duration_since(since) >= self.healthy_after
    }

    fn doubt_at(&self) -> Option<Instant> {
        self.heard?.checked_add(self.doubt_after?)
    }
}
