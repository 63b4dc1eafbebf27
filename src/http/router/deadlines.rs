//! The deadlines of one request: which there are, and which one passed.
//!
//! Comes in: the route's and the connection manager's timeouts and what the request's headers ask
//! for. Goes out: the nearest deadline for the connection's one timer.

use std::time::{Duration, Instant};

use crate::config::route::{Forward, GrpcTimeoutLimits};
use crate::config::{Cluster, Known, RequestView};
use crate::http::exchange::Exchange;

/// Which deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// The connection manager's `request_timeout`.
    Request,
    /// The route's `timeout`.
    Route,
    PerTry,
    PerTryIdle,
    /// The longest life of a try (the cluster's `max_stream_duration`).
    TryDuration,
    /// The stream's or the route's idle timeout.
    Idle,
    /// The stream's longest life.
    Duration,
}

/// The deadlines of a request.
#[derive(Debug)]
pub(super) struct Deadlines {
    pub(super) route_timeout: Option<Duration>,
    pub(super) try_timeout: Option<Duration>,
    try_idle_timeout: Option<Duration>,
    try_life: Option<Duration>,
    idle_timeout: Option<Duration>,
    request: Option<Instant>,
    route: Option<Instant>,
    per_try: Option<Instant>,
    per_try_idle: Option<Instant>,
    try_end: Option<Instant>,
    idle: Option<Instant>,
    duration: Option<Instant>,
    /// The stream's longest life.
    pub(super) life: Option<Duration>,
    /// What is expected of the upstream is told as `grpc-timeout` too (`max_grpc_timeout`).
    pub(super) grpc_told: bool,
    /// The whole request has come; never so where another protocol follows its head.
    complete: bool,
    /// This try has a connection.
    connected: bool,
    /// A try whose time is up goes on beside the next.
    pub(super) hedge: bool,
    /// The status of an answer that says the upstream was late: 504, or 204 where the request asks so.
    pub(super) late_status: u16,
    /// Something moved since the idle deadlines were set.
    moved: bool,
    /// When it moved, where that is known.
    moved_at: Option<Instant>,
}

impl Deadlines {
    pub(super) fn nearest(&mut self) -> Option<Instant> {
        if std::mem::take(&mut self.moved) && (self.idle.is_some() || self.per_try_idle.is_some()) {
            let now = self.moved_at.take().unwrap_or_else(Instant::now);
            self.idle = self.idle_timeout.map(|idle| now + idle);
            if self.per_try_idle.is_some() {
                self.per_try_idle = self.try_idle_timeout.map(|idle| now + idle);
            }
        }
        let mut nearest = self.idle;
        let others = [self.request, self.route, self.duration, self.per_try, self.per_try_idle, self.try_end];
        for deadline in others {
            if deadline.is_some() && (nearest.is_none() || deadline < nearest) {
                nearest = deadline;
            }
        }
        nearest
    }

    /// The one that has passed at `now`; the one that ends most when several have.
    pub(super) fn expired(&self, now: Instant) -> Expired {
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if passed(self.duration) {
            Expired::Duration
        } else if passed(self.request) {
            Expired::Request
        } else if passed(self.route) {
            Expired::Route
        } else if passed(self.per_try) {
            Expired::PerTry
        } else if passed(self.per_try_idle) {
            Expired::PerTryIdle
        } else if passed(self.try_end) {
            Expired::TryDuration
        } else {
            Expired::Idle
        }
    }

    /// Something moved. The clock is read when the deadline is next asked for.
    pub(super) fn touch(&mut self) {
        self.moved = true;
        self.moved_at = None;
    }

    /// As [`Deadlines::touch`], by a clock that has been read.
    pub(super) fn touch_at(&mut self, now: Instant) {
        self.moved = true;
        self.moved_at = Some(now);
    }

    /// The request is complete: the route's timer runs from here.
    pub(super) fn request_complete(&mut self, now: Instant) {
        self.complete = true;
        self.request = None;
        self.route = self.route_timeout.map(|timeout| now + timeout);
        if self.connected {
            self.start_try(now);
        }
    }

    /// The client has sent all of it, though not all has gone on.
    pub(super) fn request_received(&mut self) {
        self.request = None;
    }

    /// This try has its connection.
    pub(super) fn try_connected(&mut self, now: Instant) {
        self.connected = true;
        self.try_end = self.try_life.map(|life| now + life);
        if self.complete {
            self.start_try(now);
        }
    }

    fn start_try(&mut self, now: Instant) {
        self.per_try = self.try_timeout.map(|timeout| now + timeout);
        self.per_try_idle = self.try_idle_timeout.map(|timeout| now + timeout);
    }

    /// How long a try that begins now may take by the route's timeouts, if they limit it.
    pub(super) fn left_for_try(&self, now: Instant) -> Option<Duration> {
        let left = self.route.map(|route| route.saturating_duration_since(now));
        // What is hedged may take all the time there is.
        [self.try_timeout.filter(|_| !self.hedge), left].into_iter().flatten().min()
    }

    /// This try is over.
    pub(super) fn try_ended(&mut self) {
        self.connected = false;
        self.per_try = None;
        self.per_try_idle = None;
        self.try_end = None;
    }

    /// The response begins.
    pub(super) fn response_started(&mut self) {
        self.request = None;
        self.per_try = None;
    }
}

/// The deadlines of the request of `ex`, read before its controls are taken off.
pub(super) fn deadlines(ex: &Exchange<'_>, forward: &Forward, cluster: &Cluster, upgrade: bool) -> Deadlines {
    let manager = ex.manager;
    let request = ex.request.as_ref();
    let millis = |known| {
        let text = request.and_then(|request| request.fields.get(known))?;
        let millis: u64 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
        Some((millis > 0).then(|| Duration::from_millis(millis)))
    };
    let mut route_timeout = forward.timeout;
    let mut duration = forward.max_stream_duration.unwrap_or(manager.timeouts.max_stream_duration);
    let mut grpc_told = false;
    if let Some(grpc) = &forward.grpc_timeout {
        let asked = request.and_then(|request| request.fields.get(Known::GrpcTimeout)).and_then(grpc_timeout);
        let max = grpc.max.filter(|max| !max.is_zero());
        match (grpc.limits, asked) {
            (GrpcTimeoutLimits::Route, asked) if request.is_some_and(RequestView::is_grpc) => {
                // None and zero are the same: no end. The offset never makes an end of what has none, nor takes it away.
                let asked = asked.filter(|asked| !asked.is_zero());
                let asked = asked.map(|asked| {
                    asked.checked_sub(grpc.offset).filter(|left| !left.is_zero()).unwrap_or(asked)
                });
                route_timeout = match (asked, max) {
                    (Some(asked), Some(max)) => Some(asked.min(max)),
                    (asked, max) => asked.or(max),
                };
                grpc_told = true;
            }
            (GrpcTimeoutLimits::Route, _) | (GrpcTimeoutLimits::Stream, None) => {}
            (GrpcTimeoutLimits::Stream, Some(asked)) => {
                let asked = max.map_or(asked, |max| asked.min(max));
                duration = Some(asked.saturating_sub(grpc.offset));
            }
        }
    }
    let expected = if manager.router.respect_expected_rq_timeout {
        millis(Known::XEnvoyExpectedRqTimeoutMs)
    } else {
        None
    };
    if let Some(asked) = expected.or_else(|| millis(Known::XEnvoyUpstreamRqTimeoutMs)) {
        route_timeout = asked;
    }
    let policy = forward.retry.as_ref();
    let try_timeout = millis(Known::XEnvoyUpstreamRqPerTryTimeoutMs)
        .unwrap_or_else(|| policy.and_then(|policy| policy.per_try_timeout))
        .filter(|per_try| !per_try.is_zero() && route_timeout.is_none_or(|route| *per_try < route));
    let try_life = millis(Known::XEnvoyUpstreamStreamDurationMs).unwrap_or(cluster.http.max_stream_duration);
    let idle_timeout = forward.idle_timeout.unwrap_or(manager.timeouts.stream_idle);
    // A request that was redirected here began anew.
    let start = if ex.is_again() { ex.now } else { ex.info.start };
    let alternative =
        request.is_some_and(|request| request.fields.has(Known::XEnvoyUpstreamRqTimeoutAltResponse));
    let hedge = match request.and_then(|request| request.fields.get(Known::XEnvoyHedgeOnPerTryTimeout)) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => forward.hedge_on_per_try_timeout,
    };
    let mut deadlines = Deadlines {
        route_timeout,
        try_timeout,
        try_idle_timeout: policy.and_then(|policy| policy.per_try_idle_timeout),
        try_life,
        idle_timeout,
        request: None,
        route: None,
        per_try: None,
        per_try_idle: None,
        try_end: None,
        idle: idle_timeout.map(|idle| start + idle),
        duration: duration.map(|duration| start + duration),
        life: duration,
        grpc_told,
        complete: false,
        connected: false,
        hedge,
        late_status: if alternative { 204 } else { 504 },
        moved: false,
        moved_at: None,
    };
    if upgrade {
        // Its request never ends.
    } else if ex.upload.is_received() {
        deadlines.request_complete(ex.now);
    } else {
        deadlines.request = manager.timeouts.request.map(|timeout| start + timeout);
    }
    deadlines
}

/// Whole milliseconds; unlike [`Duration::as_millis`] without arithmetic on 128 bits.
pub(super) fn whole_millis(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(u64::from(duration.subsec_millis()))
}

/// A timeout as `grpc-timeout` says it: milliseconds, or the first longer unit in which it has eight digits.
pub(super) fn grpc_timeout_text(timeout: Duration) -> String {
    const MOST: u64 = 99_999_999;
    let millis = whole_millis(timeout);
    let units = [(1, 'm'), (1000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let (size, unit) = units.into_iter().find(|(size, _)| millis / size <= MOST).unwrap_or((3_600_000, 'H'));
    format!("{}{unit}", (millis / size).min(MOST))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn deadlines(start: Instant) -> Deadlines {
        let after = |millis| Some(start + Duration::from_millis(millis));
        Deadlines {
            route_timeout: Some(Duration::from_millis(100)),
            try_timeout: Some(Duration::from_millis(30)),
            try_idle_timeout: Some(Duration::from_millis(20)),
            try_life: Some(Duration::from_millis(45)),
            idle_timeout: Some(Duration::from_millis(500)),
            request: after(50),
            route: None,
            per_try: None,
            per_try_idle: None,
            try_end: None,
            idle: after(500),
            duration: after(900),
            life: None,
            grpc_told: false,
            complete: false,
            connected: false,
            hedge: false,
            late_status: 504,
            moved: false,
            moved_at: None,
        }
    }

    #[test]
    fn the_timers_of_a_try_wait_for_the_request_and_for_a_connection() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut deadlines = deadlines(start);
        assert_eq!(deadlines.nearest(), Some(at(50)));
        assert_eq!(deadlines.expired(at(50)), Expired::Request);
        deadlines.request_complete(at(10));
        assert_eq!(deadlines.nearest(), Some(at(110)));
        assert_eq!(deadlines.expired(at(110)), Expired::Route);
        deadlines.try_connected(at(40));
        assert_eq!(deadlines.nearest(), Some(at(60)));
        assert_eq!(deadlines.expired(at(60)), Expired::PerTryIdle);
        assert_eq!(deadlines.expired(at(70)), Expired::PerTry);
        assert_eq!(deadlines.left_for_try(at(70)), Some(Duration::from_millis(30)));
        assert_eq!(deadlines.left_for_try(at(100)), Some(Duration::from_millis(10)));
        deadlines.response_started();
        assert_eq!(deadlines.expired(at(70)), Expired::PerTryIdle);
        deadlines.per_try_idle = None;
        assert_eq!(deadlines.expired(at(85)), Expired::TryDuration);
        deadlines.try_ended();
        assert_eq!(deadlines.nearest(), Some(at(110)), "back-off counts against the route's timeout");
        assert_eq!(deadlines.expired(at(900)), Expired::Duration);
    }

    #[test]
    fn grpc_timeouts() {
        assert_eq!(grpc_timeout_text(Duration::from_millis(250)), "250m");
        assert_eq!(grpc_timeout_text(Duration::from_millis(100_000_000)), "100000S");
        assert_eq!(grpc_timeout_text(Duration::MAX), "99999999H");
        assert_eq!(grpc_timeout(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(grpc_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in [&b""[..], b"m", b"123456789m", b"1", b"1x", b"-1m"] {
            assert_eq!(grpc_timeout(bad), None, "{bad:?}");
        }
    }
}
