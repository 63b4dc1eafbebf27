//! The deadlines of one request: which there are, and which one passed.

use std::time::{Duration, Instant};

use crate::config::route::Forward;
use crate::config::Known;
use crate::http::exchange::Exchange;

/// Which deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    Route,
    PerTry,
    Idle,
    Duration,
}

/// The deadlines of a request.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    pub(super) route_timeout: Option<Duration>,
    pub(super) try_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) route: Option<Instant>,
    pub(super) per_try: Option<Instant>,
    pub(super) idle: Option<Instant>,
    pub(super) duration: Option<Instant>,
    /// Something moved since `idle` was set.
    moved: bool,
}

impl Deadlines {
    pub(super) fn nearest(&mut self) -> Option<Instant> {
        if std::mem::take(&mut self.moved) {
            self.idle = self.idle_timeout.map(|idle| Instant::now() + idle);
        }
        [self.route, self.per_try, self.idle, self.duration].into_iter().flatten().min()
    }

    pub(super) fn expired(&self) -> Expired {
        let now = Instant::now();
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if passed(self.duration) {
            Expired::Duration
        } else if passed(self.route) {
            Expired::Route
        } else if passed(self.per_try) {
            Expired::PerTry
        } else {
            Expired::Idle
        }
    }

    /// Something moved. The clock is read when the deadline is next asked for.
    pub(super) fn touch(&mut self) {
        self.moved = true;
    }

    /// Only idleness and age limit what follows (a tunnel).
    pub(super) fn request_ended(&mut self) {
        self.route = None;
        self.route_timeout = None;
        self.per_try = None;
    }

    /// The request is complete: the route's timers run from here.
    pub(super) fn request_complete(&mut self, now: Instant) {
        if self.route.is_none() {
            self.route = self.route_timeout.map(|timeout| now + timeout);
        }
        if self.per_try.is_none() {
            self.per_try = self.try_timeout.map(|timeout| now + timeout);
        }
    }
}

pub(super) fn deadlines(ex: &Exchange<'_>, forward: &Forward) -> Deadlines {
    let manager = ex.manager;
    let request = ex.request.as_ref();
    let millis = |known| {
        let text = request.and_then(|request| request.fields.get(known))?;
        let millis: u64 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
        Some((millis > 0).then(|| Duration::from_millis(millis)))
    };
    let mut route_timeout = forward.timeout;
    if let Some(grpc) = &forward.grpc_timeout {
        if let Some(asked) =
            request.and_then(|request| request.fields.get(Known::GrpcTimeout)).and_then(grpc_timeout)
        {
            let asked = grpc.max.filter(|max| !max.is_zero()).map_or(asked, |max| asked.min(max));
            route_timeout = Some(asked.saturating_sub(grpc.offset)).filter(|timeout| !timeout.is_zero());
        }
    }
    if let Some(asked) = millis(Known::XEnvoyUpstreamRqTimeoutMs) {
        route_timeout = asked;
    }
    let policy_try = forward.retry.as_ref().and_then(|policy| policy.per_try_timeout);
    let try_timeout = millis(Known::XEnvoyUpstreamRqPerTryTimeoutMs)
        .unwrap_or(policy_try)
        .filter(|per_try| !per_try.is_zero() && route_timeout.is_none_or(|route| *per_try < route));
    let idle_timeout = forward.idle_timeout.unwrap_or(manager.timeouts.stream_idle);
    let duration = forward.max_stream_duration.unwrap_or(manager.timeouts.max_stream_duration);
    Deadlines {
        route_timeout,
        try_timeout,
        idle_timeout,
        route: None,
        per_try: None,
        idle: idle_timeout.map(|idle| ex.info.start + idle),
        duration: duration.map(|duration| ex.info.start + duration),
        moved: false,
    }
}

/// `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}
