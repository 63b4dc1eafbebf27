//! Whether and when a request is tried again.
//!
//! Comes in: a response or a failure, and what the route and the request say about retries. Goes out:
//! a yes or no with its statistics, and the pause before the next try. Time and chance are arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use smallvec::SmallVec;

use super::attempt::Failed;
use super::deadlines::Expired;
use super::{Attempts, Failure};
use crate::config::route::{
    BackOff, HostPredicate, RateLimitedBackOff, RequestRetries, ResetFormat, RetryOn,
};
use crate::config::{HeaderView, Known};
use crate::http::exchange::Exchange;
use crate::http::h2::StreamError;
use crate::http::head::ResponseHead;
use crate::telemetry::stream_info::ResponseFlags;
use crate::upstream::permit::RetryPermit;
use crate::upstream::UpstreamError;

/// The retries of one request.
#[derive(Debug)]
pub(super) struct Retries {
    conditions: RequestRetries,
    left: u32,
    /// How many pauses by back-off there were.
    paused: u32,
    /// The pause that the last response asked for.
    asked: Option<Duration>,
    /// The retry that runs.
    permit: Option<RetryPermit>,
    /// The priority of each host that was tried, and the priorities that are left out for it.
    attempted: SmallVec<[u32; 2]>,
    excluded: SmallVec<[u32; 2]>,
}

/// A pause before a try, and what decided how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Exponential(Duration),
    RateLimited(Duration),
}

impl Retries {
    pub(super) fn new(conditions: RequestRetries) -> Self {
        Self {
            left: conditions.num_retries,
            conditions,
            paused: 0,
            asked: None,
            permit: None,
            attempted: SmallVec::new(),
            excluded: SmallVec::new(),
        }
    }

    /// Which hosts a retry avoids, and how often one is chosen anew for that.
    pub(super) fn host_predicates(&self) -> Option<(&[HostPredicate], u32)> {
        let policy = self.conditions.policy.as_ref().filter(|policy| !policy.host_predicates.is_empty())?;
        Some((&policy.host_predicates, policy.host_selection_max_attempts))
    }

    fn update_frequency(&self) -> Option<usize> {
        self.conditions.policy.as_ref()?.previous_priorities.map(|frequency| frequency as usize)
    }

    /// A host was tried; `priority` tells its priority.
    pub(super) fn note_priority(&mut self, priority: impl FnOnce() -> u32) {
        if self.update_frequency().is_some() {
            self.attempted.push(priority());
        }
    }

    /// After every so many tries, leaves their priorities out; all count again when `others` says that
    /// no other is left.
    pub(super) fn skip_priorities(&mut self, others: impl FnOnce(&[u32]) -> bool) {
        let Some(frequency) = self.update_frequency() else { return };
        if self.attempted.len() < frequency {
            self.excluded.clear();
        } else if self.attempted.len().is_multiple_of(frequency.max(1)) {
            self.excluded.extend_from_slice(&self.attempted);
            if !others(&self.excluded) {
                self.excluded.clear();
                self.attempted.clear();
            }
        }
    }

    /// The priorities that are left out.
    pub(super) fn priorities_tried(&self) -> &[u32] {
        &self.excluded
    }

    /// Whether this response is one to try again for.
    fn wants_after_response(&self, head: &ResponseHead) -> bool {
        covers(&self.conditions, head)
    }

    /// Whether this failure is one to try again after; `started` says that the request had a connection.
    fn wants_after_failure(&self, failure: &Failure, started: bool) -> bool {
        let any = RetryOn::FIVE_XX.with(RetryOn::GATEWAY_ERROR).with(RetryOn::RESET);
        let any = if started { any } else { any.with(RetryOn::RESET_BEFORE_REQUEST) };
        let wanted = match failure {
            Failure::Upstream(UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. }) => {
                any.with(RetryOn::CONNECT_FAILURE)
            }
            Failure::Reset(StreamError::Refused) => any.with(RetryOn::REFUSED_STREAM),
            Failure::Closed
            | Failure::Protocol
            | Failure::Reset(_)
            | Failure::Timeout(Expired::PerTry | Expired::PerTryIdle) => any,
            _ => return false,
        };
        self.conditions.on.intersects(wanted)
    }

    /// The pause before the next try: what the upstream asked for and up to half as much on top, or a
    /// random part of an interval that doubles.
    fn pause(&mut self, random: u64) -> Pause {
        if let Some(asked) = self.asked.take() {
            return Pause::RateLimited(asked + part(asked / 2, random));
        }
        let back_off =
            self.conditions.policy.as_ref().map_or_else(BackOff::default, |policy| policy.back_off);
        let interval = back_off.base.saturating_mul(1 << self.paused.min(16)).min(back_off.max);
        self.paused = self.paused.saturating_add(1);
        Pause::Exponential(part(interval, random))
    }
}

/// Whether these conditions are about this response.
pub(in crate::http) fn covers(conditions: &RequestRetries, head: &ResponseHead) -> bool {
    let on = conditions.on;
    if head.fields.has(Known::XEnvoyRatelimited) {
        return on.contains(RetryOn::ENVOY_RATELIMITED);
    }
    let status = head.status;
    (status >= 500 && on.contains(RetryOn::FIVE_XX))
        || (matches!(status, 502..=504) && on.contains(RetryOn::GATEWAY_ERROR))
        || (status == 409 && on.contains(RetryOn::RETRIABLE_4XX))
        || (on.contains(RetryOn::RETRIABLE_STATUS_CODES) && conditions.is_retriable_status(status))
        || (on.contains(RetryOn::RETRIABLE_HEADERS) && conditions.has_retriable_header(head))
        || head.fields.get(Known::GrpcStatus).is_some_and(|code| {
            let condition = match code {
                b"1" => RetryOn::GRPC_CANCELLED,
                b"4" => RetryOn::GRPC_DEADLINE_EXCEEDED,
                b"8" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
                b"13" => RetryOn::GRPC_INTERNAL,
                b"14" => RetryOn::GRPC_UNAVAILABLE,
                _ => return false,
            };
            on.contains(condition)
        })
}

/// A random part of `whole`, never all of it.
pub(in crate::http) fn part(whole: Duration, random: u64) -> Duration {
    let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random % micros)
}

/// The pause that a response asks for, if one is to be heeded: the first of the headers that holds one
/// of more than a millisecond and not over the limit.
fn pause_asked(policy: &RateLimitedBackOff, head: &ResponseHead, now: SystemTime) -> Option<Duration> {
    let asked = policy.reset_headers.iter().find_map(|header| {
        let text = std::str::from_utf8(head.first(&header.key)?).ok()?;
        let number: u64 = text.trim().parse().ok()?;
        let asked = match header.format {
            ResetFormat::Seconds => Duration::from_secs(number),
            ResetFormat::UnixTimestamp => {
                let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                Duration::from_secs(number.checked_sub(now)?)
            }
        };
        (asked <= policy.max).then_some(asked)
    });
    asked.filter(|asked| *asked > Duration::from_millis(1))
}

impl Attempts<'_> {
    /// Whether this response is to be thrown away and the request tried again.
    pub(super) fn retry_response(&mut self, ex: &mut Exchange<'_>, head: &ResponseHead) -> bool {
        let Some(retries) = &mut self.retries else { return false };
        if !retries.wants_after_response(head) {
            if retries.permit.take().is_some() {
                self.cluster.cluster.stats().upstream_rq_retry_success.increment(1);
                self.counts.each(|stats| stats.counters.upstream_rq_retry_success.increment(1));
            }
            return false;
        }
        let limited =
            retries.conditions.policy.as_ref().and_then(|policy| policy.rate_limited_back_off.as_ref());
        retries.asked = limited.and_then(|limited| {
            let clock = &ex.worker.clock;
            pause_asked(limited, head, clock.system(std::time::Instant::now()))
        });
        self.may_retry(ex)
    }

    /// Whether the route would have the request tried again for this response.
    pub(super) fn is_retriable(&self, head: &ResponseHead) -> bool {
        self.retries.as_ref().is_some_and(|retries| retries.wants_after_response(head))
    }

    /// Whether the request is to be tried again after this failure.
    pub(super) fn retry_failure(&mut self, ex: &mut Exchange<'_>, failed: &Failed) -> bool {
        let wanted = |retries: &Retries| retries.wants_after_failure(&failed.failure, failed.started);
        self.retries.as_ref().is_some_and(wanted) && self.may_retry(ex)
    }

    /// Whether the route's own policy is about this failure, whatever is left of its tries.
    pub(super) fn policy_covers(&self, ex: &Exchange<'_>, failed: &Failed) -> bool {
        let wanted = |retries: &Retries| retries.wants_after_failure(&failed.failure, failed.started);
        ex.upload.is_passed() && self.retries.as_ref().is_some_and(wanted)
    }

    /// Whether another try may go beside one that was too slow. The retry that runs goes on where none may.
    pub(super) fn may_hedge(&mut self, ex: &mut Exchange<'_>) -> bool {
        let running = match &mut self.retries {
            Some(retries) if retries.left == 0 => retries.permit.take(),
            _ => None,
        };
        let more = self.may_retry(ex);
        if let (Some(retries), Some(running)) = (&mut self.retries, running) {
            retries.permit = Some(running);
        }
        more
    }

    /// A slow try that no other was begun for has answered: it may be the retry that succeeded, or one more that would
    /// be tried again.
    pub(super) fn note_late(&mut self, ex: &mut Exchange<'_>, head: &ResponseHead) {
        let Some(retries) = &mut self.retries else { return };
        let stats = self.cluster.cluster.stats();
        if !retries.wants_after_response(head) {
            if retries.permit.take().is_some() {
                stats.upstream_rq_retry_success.increment(1);
                self.counts.each(|stats| stats.counters.upstream_rq_retry_success.increment(1));
            }
        } else if retries.left == 0 {
            stats.upstream_rq_retry_limit_exceeded.increment(1);
            self.counts.each(|stats| stats.counters.upstream_rq_retry_limit_exceeded.increment(1));
            ex.info.flags.insert(ResponseFlags::URX);
        }
    }

    /// There will be no further try: no retry runs.
    pub(super) fn end_retries(&mut self) {
        if let Some(retries) = &mut self.retries {
            retries.permit = None;
        }
    }

    pub(super) fn may_retry(&mut self, ex: &mut Exchange<'_>) -> bool {
        let Some(retries) = &mut self.retries else { return false };
        let stats = self.cluster.cluster.stats();
        if !ex.upload.is_passed() {
            return false;
        }
        // The retry that has just ended makes room for the next.
        retries.permit = None;
        if retries.left == 0 {
            stats.upstream_rq_retry_limit_exceeded.increment(1);
            self.counts.each(|stats| stats.counters.upstream_rq_retry_limit_exceeded.increment(1));
            ex.info.flags.insert(ResponseFlags::URX);
            return false;
        }
        retries.left -= 1;
        retries.permit = RetryPermit::take(&self.cluster.cluster, self.forward.priority);
        if retries.permit.is_none() {
            stats.upstream_rq_retry_overflow.increment(1);
            self.counts.each(|stats| stats.counters.upstream_rq_retry_overflow.increment(1));
            ex.info.flags.insert(ResponseFlags::UO);
            return false;
        }
        stats.upstream_rq_retry.increment(1);
        self.counts.each(|stats| stats.counters.upstream_rq_retry.increment(1));
        true
    }

    /// Waits before the next try, while the client stays and the route's time is not up.
    pub(super) async fn back_off(&mut self, ex: &mut Exchange<'_>) -> Result<(), Failure> {
        self.deadlines.try_ended();
        let Some(retries) = &mut self.retries else { return Ok(()) };
        let stats = self.cluster.cluster.stats();
        let pause = match retries.pause(ex.worker.random()) {
            Pause::Exponential(pause) => {
                stats.upstream_rq_retry_backoff_exponential.increment(1);
                pause
            }
            Pause::RateLimited(pause) => {
                stats.upstream_rq_retry_backoff_ratelimited.increment(1);
                pause
            }
        };
        self.wait(ex, tokio::time::sleep(pause)).await
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
