//! Whether and when a request is tried again.

use std::time::Duration;

use super::deadlines::Expired;
use super::{Attempts, Failure};
use crate::config::route::RetryOn;
use crate::config::Known;
use crate::http::exchange::Exchange;
use crate::http::h1::ParsedResponse;
use crate::telemetry::stream_info::ResponseFlags;
use crate::upstream::permit::RetryPermit;
use crate::upstream::UpstreamError;

impl Attempts<'_> {
    /// Whether this response is to be thrown away and the request tried again.
    pub(super) fn retry_response(
        &self,
        ex: &mut Exchange<'_>,
        parsed: &ParsedResponse,
        left: &mut u32,
        permit: &mut Option<RetryPermit>,
    ) -> bool {
        let Some(retries) = &self.retries else { return false };
        let status = parsed.head.status;
        if status < 400
            && !retries.on.intersects(RetryOn::RETRIABLE_STATUS_CODES.with(RetryOn::RETRIABLE_HEADERS))
            && !parsed.head.fields.has(Known::GrpcStatus)
        {
            return false;
        }
        let limited = parsed.head.fields.has(Known::XEnvoyRatelimited);
        let wanted = if limited {
            retries.on.contains(RetryOn::ENVOY_RATELIMITED)
        } else {
            (status >= 500 && retries.on.contains(RetryOn::FIVE_XX))
                || (matches!(status, 502..=504) && retries.on.contains(RetryOn::GATEWAY_ERROR))
                || (status == 409 && retries.on.contains(RetryOn::RETRIABLE_4XX))
                || (retries.on.contains(RetryOn::RETRIABLE_STATUS_CODES)
                    && retries.is_retriable_status(status))
                || (retries.on.contains(RetryOn::RETRIABLE_HEADERS)
                    && retries.has_retriable_header(&parsed.head))
                || parsed.head.fields.get(Known::GrpcStatus).is_some_and(|code| {
                    let condition = match code {
                        b"1" => RetryOn::GRPC_CANCELLED,
                        b"4" => RetryOn::GRPC_DEADLINE_EXCEEDED,
                        b"8" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
                        b"13" => RetryOn::GRPC_INTERNAL,
                        b"14" => RetryOn::GRPC_UNAVAILABLE,
                        _ => return false,
                    };
                    retries.on.contains(condition)
                })
        };
        wanted && self.may_retry(ex, left, permit)
    }

    pub(super) fn retry_failure(
        &self,
        ex: &mut Exchange<'_>,
        failure: &Failure,
        left: &mut u32,
        permit: &mut Option<RetryPermit>,
    ) -> bool {
        let Some(retries) = &self.retries else { return false };
        let any = RetryOn::FIVE_XX.with(RetryOn::GATEWAY_ERROR).with(RetryOn::RESET);
        let wanted = match failure {
            Failure::Upstream(UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. }) => {
                retries.on.intersects(any.with(RetryOn::CONNECT_FAILURE))
            }
            Failure::Closed | Failure::Protocol => retries.on.intersects(any),
            Failure::Timeout(Expired::PerTry) => retries.on.intersects(any),
            _ => false,
        };
        wanted && self.may_retry(ex, left, permit)
    }

    pub(super) fn may_retry(
        &self,
        ex: &mut Exchange<'_>,
        left: &mut u32,
        permit: &mut Option<RetryPermit>,
    ) -> bool {
        let stats = self.cluster.cluster.stats();
        if ex.upload.bytes > 0 && self.kept.is_none() {
            stats.retry_or_shadow_abandoned.increment(1);
            return false;
        }
        if !ex.upload.is_received() {
            return false;
        }
        if *left == 0 {
            stats.upstream_rq_retry_limit_exceeded.increment(1);
            ex.info.flags.insert(ResponseFlags::URX);
            return false;
        }
        *permit = None;
        let Some(taken) = RetryPermit::take(&self.cluster.cluster, self.forward.priority) else {
            stats.upstream_rq_retry_overflow.increment(1);
            ex.info.flags.insert(ResponseFlags::UO);
            return false;
        };
        *permit = Some(taken);
        *left -= 1;
        stats.upstream_rq_retry.increment(1);
        stats.upstream_rq_retry_backoff_exponential.increment(1);
        true
    }

    /// Waits before the next try: a random part of an interval that doubles.
    pub(super) async fn back_off(&mut self, ex: &mut Exchange<'_>) {
        self.deadlines.per_try = None;
        let back_off =
            self.retries.as_ref().and_then(|retries| retries.policy.as_ref()).map(|policy| policy.back_off);
        let (base, max) =
            back_off.map_or((Duration::from_millis(25), Duration::from_millis(250)), |b| (b.base, b.max));
        let doubled = base.saturating_mul(1 << ex.info.attempts.saturating_sub(1).min(16)).min(max);
        let micros = u64::try_from(doubled.as_micros()).unwrap_or(u64::MAX).max(1);
        let pause = Duration::from_micros(ex.worker.random() % micros);
        // Outlasting the route's timeout is settled by the next attempt's first poll.
        tokio::time::sleep(pause).await;
    }
}
