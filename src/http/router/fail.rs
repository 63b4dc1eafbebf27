//! A request without an answer: what the client is told, and what is counted.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::deadlines::Expired;
use super::{Attempts, End, Failure};
use crate::http::exchange::{Exchange, Reply};
use crate::telemetry::stream_info::ResponseFlags;
use crate::upstream::UpstreamError;

impl Attempts<'_> {
    pub(super) fn charge(&self, ex: &Exchange<'_>, status: u16, took: Duration) {
        let stats = self.cluster.cluster.stats();
        stats.responses.count(status);
        stats.upstream_rq_completed.increment(1);
        stats.responses.time.record(took.as_secs_f64() * 1000.0);
        if let Some(host) = &ex.info.host {
            let counter = if status >= 500 { &host.counters.rq_error } else { &host.counters.rq_success };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a try that is not the last against its host.
    pub(super) fn charge_error(&self, ex: &Exchange<'_>, failed: bool) {
        if let (true, Some(host)) = (failed, &ex.info.host) {
            host.counters.rq_error.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_timeout(&self, ex: &Exchange<'_>, expired: Expired) {
        let stats = self.cluster.cluster.stats();
        match expired {
            Expired::Route => stats.upstream_rq_timeout.increment(1),
            Expired::PerTry => stats.upstream_rq_per_try_timeout.increment(1),
            Expired::Idle => ex.manager.stats.downstream_rq_idle_timeout.increment(1),
            Expired::Duration => ex.manager.stats.downstream_rq_max_duration_reached.increment(1),
        }
        if let (Expired::Route | Expired::PerTry, Some(host)) = (expired, &ex.info.host) {
            host.counters.rq_timeout.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells the client that there is no answer.
    pub(super) async fn fail(&mut self, ex: &mut Exchange<'_>, failure: Failure) -> End {
        let stats = self.cluster.cluster.stats();
        let reset = "upstream connect error or disconnect/reset before headers. ";
        let (status, flag, details, body): (u16, ResponseFlags, Cow<'static, str>, Cow<'static, str>) =
            match &failure {
                Failure::Gone => {
                    stats.upstream_rq_cancelled.increment(1);
                    return End::Gone;
                }
                Failure::Refused(refusal) => {
                    stats.upstream_rq_tx_reset.increment(1);
                    return ex.refuse(*refusal).await;
                }
                Failure::Upstream(UpstreamError::NoHealthyHost) => {
                    (503, ResponseFlags::UH, "no_healthy_upstream".into(), "no healthy upstream".into())
                }
                Failure::Upstream(UpstreamError::Overflow(_)) => (
                    503,
                    ResponseFlags::UO,
                    "upstream_reset_before_response_started{overflow}".into(),
                    format!("{reset}reset reason: overflow").into(),
                ),
                Failure::Upstream(UpstreamError::Connect { reason, local, .. }) => {
                    let (kind, text) = if *local {
                        ("connection_failure", "connection failure")
                    } else {
                        ("remote_connection_failure", "remote connection failure")
                    };
                    let reason = format!("delayed_connect_error:_{}", connect_reason(reason));
                    let details = format!("upstream_reset_before_response_started{{{kind}|{reason}}}");
                    ex.info.upstream_failure = Some(reason.into());
                    (503, ResponseFlags::UF, details.into(), format!("{reset}reset reason: {text}").into())
                }
                Failure::Upstream(UpstreamError::ConnectTimeout { .. }) => (
                    503,
                    ResponseFlags::UF,
                    "upstream_reset_before_response_started{connection_timeout}".into(),
                    format!("{reset}reset reason: connection timeout").into(),
                ),
                Failure::Closed => {
                    stats.upstream_rq_rx_reset.increment(1);
                    (
                        503,
                        ResponseFlags::UC,
                        "upstream_reset_before_response_started{connection_termination}".into(),
                        format!("{reset}reset reason: connection termination").into(),
                    )
                }
                Failure::Protocol => {
                    stats.upstream_cx_protocol_error.increment(1);
                    stats.upstream_rq_rx_reset.increment(1);
                    (
                        502,
                        ResponseFlags::UPE,
                        "upstream_reset_before_response_started{protocol_error}".into(),
                        format!("{reset}reset reason: protocol error").into(),
                    )
                }
                Failure::Timeout(expired) => {
                    self.count_timeout(ex, *expired);
                    let (flag, body) = match expired {
                        Expired::Idle => (ResponseFlags::SI, "stream timeout"),
                        Expired::Duration => (ResponseFlags::NONE, "downstream duration timeout"),
                        Expired::Route | Expired::PerTry => (ResponseFlags::UT, "upstream request timeout"),
                    };
                    let unfinished = *expired == Expired::Idle && !ex.upload.is_received();
                    (if unfinished { 408 } else { 504 }, flag, timeout_details(*expired).into(), body.into())
                }
            };
        ex.info.flags.insert(flag);
        let charged = ex.info.host.is_some() && flag != ResponseFlags::UH && flag != ResponseFlags::SI;
        if charged {
            stats.responses.count(status);
            stats.upstream_rq_completed.increment(1);
            if let Some(host) = &ex.info.host {
                host.counters.rq_error.fetch_add(1, Ordering::Relaxed);
            }
        } else if flag == ResponseFlags::UH {
            stats.responses.count(status);
            stats.upstream_rq_completed.increment(1);
        }
        let overflow = flag == ResponseFlags::UO;
        ex.reply(
            Reply::new(status, details).body(body.as_bytes()).overloaded(overflow).route(self.route.clone()),
        )
        .await
    }
}

pub(super) fn timeout_details(expired: Expired) -> &'static str {
    match expired {
        Expired::Route => "response_timeout",
        Expired::PerTry => "upstream_per_try_timeout",
        Expired::Idle => "stream_idle_timeout",
        Expired::Duration => "max_duration_timeout",
    }
}

/// What the kernel said, as Envoy writes it: no number, underscores for blanks.
fn connect_reason(reason: &str) -> String {
    reason.split(" (os error").next().unwrap_or(reason).replace(' ', "_")
}
