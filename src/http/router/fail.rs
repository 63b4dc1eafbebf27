//! A request without an answer: what the client is told, and what is counted.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::attempt::Failed;
use super::deadlines::Expired;
use super::{Attempts, End, Ended, Failure};
use crate::config::drops::{DropOverload, Refusal};
use crate::config::route::{Counts, Forward};
use crate::config::Cluster;
use crate::http::exchange::{Exchange, Reply};
use crate::http::filters::session;
use crate::http::filters::stateful_session::Session;
use crate::http::h2::StreamError;
use crate::telemetry::stream_info::{Protocol, ResponseFlags};
use crate::upstream::{connect_failure, UpstreamError};

/// What the client is told.
struct Told {
    status: u16,
    flag: ResponseFlags,
    details: Cow<'static, str>,
    body: Cow<'static, str>,
    /// The upstream is charged with the status.
    charged: bool,
    grpc: Option<&'static str>,
    /// It is the connection manager that ends the stream.
    by_manager: bool,
}

impl Told {
    fn new(
        status: u16,
        flag: ResponseFlags,
        details: impl Into<Cow<'static, str>>,
        body: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            flag,
            details: details.into(),
            body: body.into(),
            charged: true,
            grpc: None,
            by_manager: false,
        }
    }

    /// The stream was reset for `reason` (its body's words) before its response began.
    fn reset(ex: &Exchange<'_>, status: u16, flag: ResponseFlags, details: &str, reason: &str) -> Self {
        let again = if ex.info.attempts > 1 { "retried and the latest " } else { "" };
        Self::new(
            status,
            flag,
            format!("upstream_reset_before_response_started{{{details}}}"),
            format!(
                "upstream connect error or disconnect/reset before headers. {again}reset reason: {reason}"
            ),
        )
    }

    /// A breaker is open. Then there are many of these, and they must be cheap: nothing is put together.
    fn overflow(ex: &Exchange<'_>) -> Self {
        if ex.info.attempts > 1 {
            return Self::reset(ex, 503, ResponseFlags::UO, "overflow", "overflow");
        }
        Self::new(
            503,
            ResponseFlags::UO,
            "upstream_reset_before_response_started{overflow}",
            "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        )
    }

    fn by_manager(self) -> Self {
        Self { charged: false, by_manager: true, ..self }
    }

    /// Counts it as the upstream's, where there is one to charge.
    #[inline]
    fn charge(&self, ex: &Exchange<'_>, cluster: &Cluster, counts: Counts<'_>, reached_host: bool) {
        let no_host = self.flag == ResponseFlags::UH;
        if !self.charged || (ex.info.host.is_none() && !no_host) {
            return;
        }
        let stats = cluster.stats();
        stats.responses.count(self.status);
        stats.upstream_rq_completed.increment(1);
        counts.each(|stats| stats.count(self.status));
        if let Some(host) = ex.info.host.as_ref().filter(|_| !no_host && reached_host) {
            host.shared.counters.rq_error.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[inline]
    fn reply(self, ex: &Exchange<'_>, forward: &Forward) -> Reply {
        let reply = Reply::new(self.status, self.details)
            .text(self.body)
            .marker((self.flag == ResponseFlags::UO).then_some("x-envoy-overloaded"))
            .grpc_status(self.grpc.map(Cow::Borrowed));
        if self.by_manager {
            return reply;
        }
        let attempts = forward.include_attempt_count_in_response.then_some(ex.info.attempts);
        reply.attempts(attempts)
    }
}

/// The answer to a request that runtime or the control plane wants refused before a host is asked.
pub(super) fn refuse(
    ex: &mut Exchange<'_>,
    cluster: &Cluster,
    counts: Counts<'_>,
    refusal: Refusal,
) -> Reply {
    let stats = cluster.stats();
    let (flag, details, body, marker) = match refusal {
        Refusal::Maintenance => {
            stats.upstream_rq_maintenance_mode.increment(1);
            (ResponseFlags::UO, "maintenance_mode", "maintenance mode", "x-envoy-overloaded")
        }
        Refusal::Overload(DropOverload::ALL) => {
            let marker = "x-envoy-unconditional-drop-overload";
            (ResponseFlags::UDO, "unconditional_drop_overload", "unconditional drop overload", marker)
        }
        Refusal::Overload(_) => {
            (ResponseFlags::DO, "drop_overload", "drop overload", "x-envoy-drop-overload")
        }
    };
    cluster.drops.total.fetch_add(1, Ordering::Relaxed);
    if let Refusal::Overload(_) = refusal {
        cluster.drops.overload.fetch_add(1, Ordering::Relaxed);
    }
    stats.responses.count(503);
    stats.upstream_rq_completed.increment(1);
    counts.each(|stats| stats.count(503));
    ex.info.flags.insert(flag);
    Reply::new(503, details).body(body).marker(Some(marker))
}

/// The answer to a request that a breaker has refused before there was a try.
pub(super) fn overflow(
    ex: &mut Exchange<'_>,
    forward: &Forward,
    cluster: &Cluster,
    counts: Counts<'_>,
) -> Reply {
    cluster.drops.total.fetch_add(1, Ordering::Relaxed);
    let told = Told::overflow(ex);
    ex.info.flags.insert(told.flag);
    told.charge(ex, cluster, counts, true);
    told.reply(ex, forward)
}

impl Attempts<'_> {
    /// Charges a response to its cluster and host.
    pub(super) fn charge(&self, ex: &Exchange<'_>, status: u16, took: Duration) {
        self.count_response(status);
        let took = took.as_secs_f64() * 1000.0;
        self.cluster.cluster.stats().responses.time.record(took);
        self.counts.each(|stats| stats.responses.time.record(took));
        if let Some(host) = &ex.info.host {
            let counter =
                if status >= 500 { &host.shared.counters.rq_error } else { &host.shared.counters.rq_success };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a response by its status.
    #[inline]
    pub(super) fn count_response(&self, status: u16) {
        let stats = self.cluster.cluster.stats();
        stats.responses.count(status);
        stats.upstream_rq_completed.increment(1);
        self.counts.each(|stats| stats.count(status));
    }

    /// Counts a try that is not the last against its host: the client never sees what came of it.
    pub(super) fn charge_error(&self, ex: &Exchange<'_>) {
        if let Some(host) = &ex.info.host {
            host.shared.counters.rq_error.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a failed try, whether or not another follows.
    pub(super) fn count(&self, ex: &Exchange<'_>, failed: &Failed) {
        let stats = self.upstream().stats();
        match &failed.failure {
            Failure::Gone if !failed.started => stats.upstream_rq_cancelled.increment(1),
            Failure::Gone | Failure::Refused(_) | Failure::Answer(_) => self.count_given_up(ex),
            Failure::Upstream(_) | Failure::Late | Failure::Overtaken => {}
            Failure::Closed if is_stream(ex) => self.count_stream(StreamError::Closed),
            Failure::Closed => {}
            Failure::Reset(error) => self.count_stream(*error),
            Failure::Protocol => {
                stats.upstream_cx_protocol_error.increment(1);
                if is_stream(ex) {
                    self.count_stream(StreamError::Protocol(h2::Reason::PROTOCOL_ERROR));
                }
            }
            Failure::Timeout(expired) => {
                self.count_timeout(ex, *expired);
                if failed.started {
                    self.count_given_up(ex);
                }
            }
        }
    }

    /// Counts a try that is given up. Over HTTP/1 that is a close, which Envoy does not count as a reset.
    pub(super) fn count_given_up(&self, ex: &Exchange<'_>) {
        if is_stream(ex) {
            self.upstream().stats().upstream_rq_tx_reset.increment(1);
        }
    }

    /// Counts how an HTTP/2 stream was ended before its time.
    pub(super) fn count_stream(&self, error: StreamError) {
        let stats = self.upstream().stats();
        match error {
            StreamError::Reset(_) => {
                stats.upstream_rq_rx_reset.increment(1);
                stats.http2().rx_reset.increment(1);
            }
            StreamError::Refused => stats.http2().rx_reset.increment(1),
            StreamError::Protocol(_) => {
                stats.upstream_rq_tx_reset.increment(1);
                stats.http2().rx_messaging_error.increment(1);
            }
            StreamError::Closed => stats.upstream_rq_pending_failure_eject.increment(1),
        }
    }

    pub(super) fn count_timeout(&self, ex: &Exchange<'_>, expired: Expired) {
        let stats = self.cluster.cluster.stats();
        match expired {
            Expired::Request => ex.manager.stats.downstream_rq_timeout.increment(1),
            Expired::Route => {
                stats.upstream_rq_timeout.increment(1);
                self.counts.each(|stats| stats.counters.upstream_rq_timeout.increment(1));
            }
            Expired::PerTry => stats.upstream_rq_per_try_timeout.increment(1),
            Expired::PerTryIdle => stats.upstream_rq_per_try_idle_timeout.increment(1),
            Expired::TryDuration => stats.upstream_rq_max_duration_reached.increment(1),
            Expired::Idle => ex.manager.stats.downstream_rq_idle_timeout.increment(1),
            Expired::Duration => ex.manager.stats.downstream_rq_max_duration_reached.increment(1),
        }
        if let (Expired::Route | Expired::PerTry | Expired::PerTryIdle, Some(host)) = (expired, &ex.info.host)
        {
            host.shared.counters.rq_timeout.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the client is told when there is no answer.
    pub(super) fn fail(&mut self, ex: &mut Exchange<'_>, failure: Failure) -> Ended {
        // Envoy refuses who would have to wait before it looks at a host.
        let reached_host =
            !matches!(failure, Failure::Upstream(UpstreamError::Overflow("max_pending_requests")));
        let told = match failure {
            // The last two are never the end of a request.
            Failure::Gone | Failure::Late | Failure::Overtaken => return End::Gone.into(),
            Failure::Refused(refusal) => return ex.refusal(refusal).into(),
            Failure::Answer(reply) => return Ended::Reply(reply),
            Failure::Upstream(UpstreamError::NoHealthyHost) => {
                if ex.info.attempts <= 1 {
                    // The one that was chosen may have no pool: then it is nobody's.
                    ex.info.host = None;
                }
                let status = session(ex).and_then(Session::status).unwrap_or(503);
                Told::new(status, ResponseFlags::UH, "no_healthy_upstream", "no healthy upstream")
            }
            Failure::Upstream(UpstreamError::Overflow(_)) => {
                self.upstream().drops.total.fetch_add(1, Ordering::Relaxed);
                Told::overflow(ex)
            }
            Failure::Upstream(UpstreamError::Connect { reason, local, .. }) => {
                let (kind, text) = if local {
                    ("connection_failure", "connection failure")
                } else {
                    ("remote_connection_failure", "remote connection failure")
                };
                let reason = connect_failure(ex.info.host.as_deref(), &reason);
                let shown = reason.replace(' ', "_");
                let told = Told::reset(ex, 503, ResponseFlags::UF, &format!("{kind}|{shown}"), text);
                ex.info.upstream_failure = Some(reason.into());
                told
            }
            Failure::Upstream(UpstreamError::Tls { reason, .. }) => {
                let (kind, text) = ("remote_connection_failure", "remote connection failure");
                let shown =
                    if reason.is_empty() { String::new() } else { format!("|{}", reason.replace(' ', "_")) };
                let told = Told::reset(ex, 503, ResponseFlags::UF, &format!("{kind}{shown}"), text);
                ex.info.upstream_failure = Some(reason.into());
                told
            }
            Failure::Upstream(UpstreamError::ConnectTimeout { .. }) => {
                Told::reset(ex, 503, ResponseFlags::UF, "connection_timeout", "connection timeout")
            }
            Failure::Closed => {
                let why = ex
                    .info
                    .upstream_failure
                    .as_deref()
                    .map(|reason| format!("|{}", reason.replace(' ', "_")));
                let details = format!("connection_termination{}", why.unwrap_or_default());
                Told::reset(ex, 503, ResponseFlags::UC, &details, "connection termination")
            }
            Failure::Reset(StreamError::Refused) => {
                let (details, reason) = ("remote_refused_stream_reset", "remote refused stream reset");
                Told::reset(ex, 503, ResponseFlags::UR, details, reason)
            }
            Failure::Reset(error) if error != StreamError::Reset(h2::Reason::PROTOCOL_ERROR) => {
                Told::reset(ex, 503, ResponseFlags::UR, "remote_reset", "remote reset")
            }
            Failure::Protocol | Failure::Reset(_) => {
                Told::reset(ex, 502, ResponseFlags::UPE, "protocol_error", "protocol error")
            }
            Failure::Timeout(expired) => self.late(ex, expired),
        };
        ex.info.flags.insert(told.flag);
        // What follows the head was for another protocol.
        ex.close |= self.upgrade;
        told.charge(ex, &self.cluster.cluster, self.counts, reached_host);
        told.reply(ex, self.forward).into()
    }

    fn late(&self, ex: &Exchange<'_>, expired: Expired) -> Told {
        let details = timeout_details(expired);
        match expired {
            Expired::Request => Told::new(408, ResponseFlags::NONE, details, "request timeout").by_manager(),
            Expired::Route | Expired::PerTry | Expired::PerTryIdle => {
                let status = self.deadlines.late_status;
                let body = if status == 504 { "upstream request timeout" } else { "" };
                Told::new(status, ResponseFlags::UT, details, body)
            }
            Expired::TryDuration => {
                let body = "upstream max stream duration reached";
                Told { charged: false, ..Told::new(504, ResponseFlags::UMSDR, details, body) }
            }
            Expired::Idle => {
                let status = if ex.upload.is_received() { 504 } else { 408 };
                Told::new(status, ResponseFlags::SI, details, "stream timeout").by_manager()
            }
            Expired::Duration => {
                let status = if ex.upload.is_received() { 504 } else { 408 };
                let told = Told::new(status, ResponseFlags::NONE, details, "downstream duration timeout");
                // DEADLINE_EXCEEDED
                Told { grpc: Some("4"), ..told.by_manager() }
            }
        }
    }
}

pub(super) fn timeout_details(expired: Expired) -> &'static str {
    match expired {
        Expired::Request => "request_overall_timeout",
        Expired::Route => "response_timeout",
        Expired::PerTry => "upstream_per_try_timeout",
        Expired::PerTryIdle => "upstream_per_try_idle_timeout",
        Expired::TryDuration => "upstream_max_stream_duration_reached",
        Expired::Idle => "stream_idle_timeout",
        Expired::Duration => "max_duration_timeout",
    }
}

/// Whether the last try was on an HTTP/2 stream.
fn is_stream(ex: &Exchange<'_>) -> bool {
    ex.info.upstream_protocol == Some(Protocol::Http2)
}
