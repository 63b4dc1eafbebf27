//! The request as it goes upstream: rewrites, header changes, and its bytes for one try.

use std::borrow::Cow;
use std::time::Instant;

use super::deadlines::{grpc_timeout_text, whole_millis, Deadlines};
use super::Attempts;
use crate::config::http::RouterOptions;
use crate::config::route::{Forward, Route, WeightedCluster, RETRY_HEADERS};
use crate::config::{Known, KnownSet, RequestView};
use crate::http::exchange::{Exchange, Reply};
use crate::http::h1;
use crate::http::head::RequestHead;
use crate::http::io::OutBuf;
use crate::http::trace;
use crate::telemetry::stream_info::StreamInfo;
use crate::upstream::HostPool;

/// Request controls that end at this proxy.
const CONTROLS: KnownSet = RETRY_HEADERS
    | Known::XEnvoyUpstreamRqTimeoutMs.bit()
    | Known::XEnvoyUpstreamRqPerTryTimeoutMs.bit()
    | Known::XEnvoyUpstreamRqTimeoutAltResponse.bit()
    | Known::XEnvoyHedgeOnPerTryTimeout.bit()
    | Known::XEnvoyUpstreamStreamDurationMs.bit();

/// Turns the request head into what goes upstream.
pub(super) fn prepare(
    request: &mut RequestHead,
    route: &Route,
    forward: &Forward,
    weighted: Option<&WeightedCluster>,
    info: &StreamInfo,
    deadlines: &Deadlines,
    options: &RouterOptions,
) {
    request.fields.remove_set(CONTROLS);
    if forward.include_request_attempt_count {
        request.fields.set_known(Known::XEnvoyAttemptCount, b"1");
    }
    let told = options.respect_expected_rq_timeout && request.fields.has(Known::XEnvoyExpectedRqTimeoutMs);
    if !told {
        request.fields.remove_known(Known::XEnvoyExpectedRqTimeoutMs);
    }
    let of_try = deadlines.try_timeout.filter(|_| !deadlines.hedge);
    if let Some(expected) = of_try.or(deadlines.route_timeout) {
        if !options.suppress_envoy_headers && !told {
            let mut digits = itoa::Buffer::new();
            request.fields.push_known(
                Known::XEnvoyExpectedRqTimeoutMs,
                digits.format(whole_millis(expected)).as_bytes(),
            );
        }
        if deadlines.grpc_told {
            request.fields.set_known(Known::GrpcTimeout, grpc_timeout_text(expected).as_bytes());
        }
    }
    // What limits the stream here limits it further on.
    if let Some(life) = deadlines.life.filter(|life| !life.is_zero() && request.is_grpc()) {
        request.fields.set_known(Known::GrpcTimeout, grpc_timeout_text(life).as_bytes());
    }
    if let Some(weighted) = weighted {
        weighted.request_headers.apply_to_request(request, info);
        if let Some(host) = &weighted.host_rewrite {
            rewrite_host(request, host, false);
        }
    }
    route.request_headers.apply_to_request(request, info);
    let host = forward.rewritten_host(request).map(Cow::into_owned);
    if let Some(host) = host {
        rewrite_host(request, &host, forward.append_x_forwarded_host);
    }
    if let Some(path) = forward.rewritten_path(&route.matched, request.path()) {
        if !options.suppress_envoy_headers {
            // Also where it stays what it was.
            let original = request.path().to_vec();
            request.fields.set_known(Known::XEnvoyOriginalPath, &original);
        }
        request.set_path(&path);
    }
}

fn rewrite_host(request: &mut RequestHead, host: &[u8], forwarded: bool) {
    let original = request.authority().to_vec();
    if forwarded {
        request.fields.push_known(Known::XForwardedHost, &original);
    }
    if original != host {
        request.fields.set_known(Known::XEnvoyOriginalHost, &original);
        request.set_authority(host);
    }
}

impl Attempts<'_> {
    /// Says in the request's head what is of this try alone. An answer where a filter of the cluster refuses it.
    pub(super) fn stamp(
        &self,
        ex: &mut Exchange<'_>,
        pool: &HostPool,
        was_timeout: bool,
    ) -> Option<Box<Reply>> {
        if ex.span.is_some() {
            trace::on_try(ex, &pool.host);
        }
        let request = ex.request.as_mut()?;
        if self.forward.auto_host_rewrite() {
            let hostname = pool.host.template.hostname.clone();
            if !hostname.is_empty() {
                rewrite_host(
                    request,
                    hostname.as_bytes(),
                    self.forward.append_x_forwarded_host && ex.info.attempts == 1,
                );
            }
        }
        if self.forward.include_request_attempt_count && ex.info.attempts > 1 {
            let mut digits = itoa::Buffer::new();
            request.fields.set_known(Known::XEnvoyAttemptCount, digits.format(ex.info.attempts).as_bytes());
        }
        if self.forward.include_is_timeout_retry_header && ex.info.attempts > 1 {
            let value: &[u8] = if was_timeout { b"true" } else { b"false" };
            request.fields.set_known(Known::XEnvoyIsTimeoutRetry, value);
        }
        if ex.info.attempts > 1 && request.fields.has(Known::XEnvoyExpectedRqTimeoutMs) {
            // The next hop has only what is left.
            if let Some(left) = self.deadlines.left_for_try(Instant::now()) {
                let mut digits = itoa::Buffer::new();
                let left = digits.format(whole_millis(left)).as_bytes();
                request.fields.set_known(Known::XEnvoyExpectedRqTimeoutMs, left);
            }
        }
        if self.upstream().http.filters.is_empty() {
            return None;
        }
        self.filter_request(ex)
    }

    /// Writes the request's head for an HTTP/1 connection.
    pub(super) fn write_head(&self, ex: &Exchange<'_>, out: &mut OutBuf) {
        let Some(request) = &ex.request else { return };
        let extra = framing_line(request, ex.upload.is_chunked(), self.upgrade);
        let case = self.upstream().http.http1.header_case;
        h1::write::request_head(out.flat(), request, case, extra);
    }
}

/// The field that frames the body, where the head has none.
pub(super) fn framing_line(request: &RequestHead, chunked: bool, upgrade: bool) -> &'static [u8] {
    if chunked {
        b"transfer-encoding: chunked\r\n"
    } else if !upgrade
        && !request.fields.has(Known::ContentLength)
        && !matches!(request.method(), b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
    {
        b"content-length: 0\r\n"
    } else {
        b""
    }
}
