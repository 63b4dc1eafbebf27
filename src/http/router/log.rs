//! What logs are told of single tries (`Router.upstream_log`).
//!
//! Comes in: each try at its beginning, when it has a connection, when it is answered, and at its end. Goes out: an
//! entry for each of them, in which the upstream is the one that bytes are sent to and received from.

use std::time::Instant;

use super::deadlines::Expired;
use super::{Attempts, Failure};
use crate::config::http::UpstreamLogs;
use crate::http::exchange::Exchange;
use crate::http::h2::StreamError;
use crate::http::head::ResponseHead;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};
use crate::upstream::{connect_failure, UpstreamError};

/// A try of which logs will be told.
pub(super) struct Noted {
    start: Instant,
    /// What was received from upstreams before, this try's head included once it is there.
    received: u64,
    head: Option<ResponseHead>,
    /// What the exchange said before.
    flags: ResponseFlags,
}

impl Attempts<'_> {
    /// A try begins.
    #[inline]
    pub(super) fn note_try(&mut self, ex: &Exchange<'_>) {
        if ex.manager.router.upstream_logs.is_some() {
            self.begin_note(ex);
        }
    }

    #[cold]
    fn begin_note(&mut self, ex: &Exchange<'_>) {
        let (received, flags) = (ex.info.upstream_wire_received, ex.info.flags);
        self.noted = Some(Box::new(Noted { start: Instant::now(), received, head: None, flags }));
    }

    /// The try has a connection.
    #[inline]
    pub(super) fn log_connected(&self, ex: &Exchange<'_>) {
        let (Some(noted), Some(logs)) = (&self.noted, &ex.manager.router.upstream_logs) else { return };
        if logs.when_connected {
            self.write(ex, logs, noted, LogType::UpstreamPoolReady, (ResponseFlags::NONE, None));
        }
    }

    /// The try is answered by `head`.
    #[inline]
    pub(super) fn note_head(&mut self, head: &ResponseHead) {
        if let Some(noted) = &mut self.noted {
            noted.head = Some(head.clone());
        }
    }

    /// The head of its answer has so many bytes.
    #[inline]
    pub(super) fn note_head_size(&mut self, size: u64) {
        if let Some(noted) = &mut self.noted {
            noted.received += size;
        }
    }

    /// The try is over, or nobody waits for it any more.
    #[inline]
    pub(super) fn log_end(&mut self, ex: &Exchange<'_>, failure: Option<&Failure>) {
        if let Some(noted) = self.noted.take() {
            self.log_noted_end(ex, &noted, failure);
        }
    }

    #[cold]
    fn log_noted_end(&self, ex: &Exchange<'_>, noted: &Noted, failure: Option<&Failure>) {
        let Some(logs) = &ex.manager.router.upstream_logs else { return };
        let flags = match failure.map(flag) {
            None => ResponseFlags::NONE,
            Some(Some(flag)) => flag,
            // No host was asked.
            Some(None) => return,
        };
        let reason = failure.and_then(|failure| reason(ex, failure));
        self.write(ex, logs, noted, LogType::UpstreamEnd, (flags, reason));
    }

    /// The try's answer has been passed on, or what came of it.
    #[inline]
    pub(super) fn log_answered(&mut self, ex: &Exchange<'_>) {
        if let Some(noted) = self.noted.take() {
            self.log_noted_answer(ex, &noted);
        }
    }

    #[cold]
    fn log_noted_answer(&self, ex: &Exchange<'_>, noted: &Noted) {
        let Some(logs) = &ex.manager.router.upstream_logs else { return };
        const OF_TRY: [ResponseFlags; 4] =
            [ResponseFlags::UC, ResponseFlags::UR, ResponseFlags::UPE, ResponseFlags::UMSDR];
        let flags = ex.info.flags.without(noted.flags).only(OF_TRY);
        self.write(ex, logs, noted, LogType::UpstreamEnd, (flags, None));
    }

    #[cold]
    fn write(
        &self,
        ex: &Exchange<'_>,
        logs: &UpstreamLogs,
        noted: &Noted,
        log_type: LogType,
        (flags, reason): (ResponseFlags, Option<Box<str>>),
    ) {
        let of = &ex.info;
        let ended = log_type == LogType::UpstreamEnd;
        let sent = if of.times.first_upstream_tx.is_some() && ended { ex.upload.passed() } else { 0 };
        let mut info = StreamInfo {
            protocol: of.upstream_protocol,
            response_code: noted.head.as_ref().map_or(0, |head| head.status),
            flags,
            bytes_received: of.upstream_wire_received.saturating_sub(noted.received),
            bytes_sent: sent,
            upstream_wire_sent: of.upstream_wire_sent,
            upstream_wire_received: of.upstream_wire_received,
            route_name: of.route_name.clone(),
            route_metadata: of.route_metadata.clone(),
            cluster: of.cluster.clone(),
            host: of.host.clone(),
            upstream_local: of.upstream_local,
            upstream_connection_id: of.upstream_connection_id,
            upstream_tls: of.upstream_tls.clone(),
            upstream_protocol: of.upstream_protocol,
            upstream_failure: reason.or_else(|| of.upstream_failure.clone()),
            ..StreamInfo::new(of.connection.clone(), noted.start, of.clock)
        };
        info.times.first_upstream_tx = of.times.first_upstream_tx;
        info.times.first_upstream_rx = of.times.first_upstream_rx.filter(|_| noted.head.is_some());
        info.times.last_upstream_rx = of.times.last_upstream_rx.filter(|_| ended);
        info.times.end = ended.then(Instant::now);
        let context = FormatContext {
            request: ex.request.as_ref().map(|head| head as _),
            response: noted.head.as_ref().map(|head| head as _),
            trailers: ex.trailers.as_ref().map(|fields| fields as _),
            log_type,
            ..FormatContext::new(&info)
        };
        for log in &logs.list {
            log.write(&context);
        }
    }
}

/// Why there was no connection.
fn reason(ex: &Exchange<'_>, failure: &Failure) -> Option<Box<str>> {
    let Failure::Upstream(UpstreamError::Connect { reason, .. } | UpstreamError::Tls { reason, .. }) =
        failure
    else {
        return None;
    };
    Some(connect_failure(ex.info.host.as_deref(), reason).into())
}

/// What a try that fails like this is marked by; `None` where there was none.
fn flag(failure: &Failure) -> Option<ResponseFlags> {
    Some(match failure {
        Failure::Upstream(UpstreamError::NoHealthyHost) => return None,
        Failure::Upstream(UpstreamError::Overflow(_)) => ResponseFlags::UO,
        Failure::Upstream(_) => ResponseFlags::UF,
        Failure::Closed => ResponseFlags::UC,
        Failure::Protocol | Failure::Reset(StreamError::Reset(h2::Reason::PROTOCOL_ERROR)) => {
            ResponseFlags::UPE
        }
        Failure::Reset(_) => ResponseFlags::UR,
        Failure::Timeout(Expired::PerTry | Expired::PerTryIdle) => ResponseFlags::UT,
        Failure::Timeout(Expired::TryDuration) => ResponseFlags::UMSDR,
        Failure::Timeout(_)
        | Failure::Gone
        | Failure::Refused(_)
        | Failure::Answer(_)
        | Failure::Late
        | Failure::Overtaken => ResponseFlags::NONE,
    })
}
