//! The end of a request: what is counted, and what logs, traces and standard metrics are told of it.

use std::borrow::Cow;
use std::time::Instant;

use super::{Exchange, Next};
use crate::http::router::End;
use crate::http::{filters, trace};
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stream_info::ResponseFlags;

impl Exchange<'_> {
    /// It as logs see it at its end.
    pub(in crate::http) fn context(&self) -> FormatContext<'_> {
        FormatContext {
            request: self.request.as_ref().map(|head| head as _),
            response: self.response.as_ref().map(|head| head as _),
            trailers: self.trailers.as_ref().map(|fields| fields as _),
            local_reply_body: &self.local_body,
            log_type: LogType::DownstreamEnd,
            ..FormatContext::new(&self.info)
        }
    }

    pub(super) fn finish(&mut self, end: End) -> Next {
        let cut = std::mem::take(&mut self.open) && end == End::Gone;
        let now = if end == End::Done { self.now } else { Instant::now() };
        let since = now.saturating_duration_since(self.info.start);
        let stats = &self.manager.stats;
        self.info.times.end = Some(now);
        self.info.times.last_downstream_tx = Some(now);
        let again = end == End::Again;
        let first = !self.is_again();
        let before = self.redirected.as_ref().map_or(0, |redirected| redirected.received);
        self.info.bytes_received = before + self.upload.bytes;
        self.worker.last_request.set(now);
        self.down.idle_since = now;
        if first {
            let received = self.info.request_headers_bytes + self.info.bytes_received;
            stats.downstream_cx_rx_bytes_total.increment(received);
        }
        if !again {
            let sent = self.info.response_headers_bytes + self.info.bytes_sent;
            stats.downstream_cx_tx_bytes_total.increment(sent);
        }
        match end {
            // What is left of the request is not wanted: that is a reset of ours, too.
            End::Done if !self.upload.is_received() => stats.downstream_rq_rx_reset.increment(1),
            End::Done | End::Again => {}
            End::Gone if self.down.client.was_reset() => {
                self.info.flags.insert(ResponseFlags::DR);
                self.info.details = Cow::Borrowed("http2.remote_reset");
                stats.downstream_rq_rx_reset.increment(1);
            }
            End::Gone => {
                self.info.flags.insert(ResponseFlags::DC);
                self.info.details = Cow::Borrowed(match cut {
                    false => "downstream_remote_disconnect",
                    true if self.down.info.retirement.has_begun() => {
                        "downstream_local_disconnect(filter_chain_is_being_removed)"
                    }
                    true => "downstream_local_disconnect",
                });
                stats.downstream_rq_rx_reset.increment(1);
                stats.downstream_cx_destroy_active_rq.increment(1);
                stats.downstream_cx_destroy_remote_active_rq.increment(1);
            }
            // A reset of ours counts as one that was received, too.
            End::Cut | End::Broken => {
                stats.downstream_rq_tx_reset.increment(1);
                stats.downstream_rq_rx_reset.increment(1);
            }
        }
        if self.upload.received_trailers.is_some() && self.down.client.is_http2() {
            self.manager.http2_stats.trailers.increment(1);
        }
        if self.filters.is_some() {
            filters::note(self);
        }
        if self.span.is_some() {
            trace::end(self);
        }
        if self.reported {
            filters::report(self);
        }
        if self.filters.is_some() {
            filters::on_end(self, end == End::Done);
        }
        // One that begins again counts where it ends.
        if !again {
            // A client that left before any answer has no completed request.
            let answered = end != End::Gone || cut || self.info.response_code != 0;
            self.count(answered);
            self.manager.stats.downstream_rq_time.record(since.as_secs_f64() * 1000.0);
        }
        if !self.manager.access_logs.is_empty() {
            let context = self.context();
            for log in &self.manager.access_logs {
                log.write(&context);
            }
        }
        match end {
            End::Done if self.close => Next::Close,
            End::Done | End::Again => Next::Keep,
            End::Cut if self.down.client.is_http2() => Next::Reset,
            End::Cut => Next::Close,
            End::Gone => Next::Abort,
            End::Broken => Next::Reset,
        }
    }

    /// Counts a response that is not the last.
    #[cold]
    pub(in crate::http) fn count_interim(&self) {
        if !self.info.health_check {
            self.manager.stats.downstream_rq_completed.increment(1);
            self.manager.stats.downstream_rq_1xx.increment(1);
        }
    }

    /// The answer to a request all of which is here is as if the rest of it had not come yet: over HTTP/1 a piece of a
    /// body is looked at before it shows whether it is the last.
    pub(in crate::http) fn answer_early(&mut self) {
        if self.upload.is_received() && !self.down.client.is_http2() {
            self.close = true;
            self.manager.stats.downstream_rq_rx_reset.increment(1);
            self.manager.stats.downstream_rq_response_before_rq_complete.increment(1);
        }
    }

    fn count(&self, answered: bool) {
        if self.info.health_check {
            return;
        }
        let stats = &self.manager.stats;
        if answered {
            stats.downstream_rq_completed.increment(1);
        }
        match self.info.response_code / 100 {
            1 => stats.downstream_rq_1xx.increment(1),
            2 => stats.downstream_rq_2xx.increment(1),
            3 => stats.downstream_rq_3xx.increment(1),
            4 => stats.downstream_rq_4xx.increment(1),
            5 => stats.downstream_rq_5xx.increment(1),
            _ => {}
        }
    }
}
