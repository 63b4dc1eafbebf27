//! The request as it goes upstream: rewrites, header changes, and its bytes for one try.

use std::borrow::Cow;

use super::deadlines::Deadlines;
use super::Attempts;
use crate::config::route::{Forward, Route, WeightedCluster, RETRY_HEADERS};
use crate::config::{Known, KnownSet, RequestView};
use crate::http::exchange::Exchange;
use crate::http::h1;
use crate::http::head::RequestHead;
use crate::http::io::OutBuf;
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
    suppress: bool,
) {
    request.fields.remove_set(CONTROLS | Known::XEnvoyExpectedRqTimeoutMs.bit());
    if !suppress {
        if let Some(expected) = deadlines.try_timeout.or(deadlines.route_timeout) {
            let mut digits = itoa::Buffer::new();
            request
                .fields
                .push_known(Known::XEnvoyExpectedRqTimeoutMs, digits.format(expected.as_millis()).as_bytes());
        }
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
        let original = request.path().to_vec();
        if original != path {
            request.fields.set_known(Known::XEnvoyOriginalPath, &original);
            request.set_path(&path);
        }
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
    pub(super) fn write_head(
        &self,
        ex: &mut Exchange<'_>,
        pool: &HostPool,
        was_timeout: bool,
        out: &mut OutBuf,
    ) {
        let Some(request) = &mut ex.request else { return };
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
        if self.forward.include_request_attempt_count {
            let mut digits = itoa::Buffer::new();
            request.fields.set_known(Known::XEnvoyAttemptCount, digits.format(ex.info.attempts).as_bytes());
        }
        if self.forward.include_is_timeout_retry_header && was_timeout {
            request.fields.set_known(Known::XEnvoyIsTimeoutRetry, b"true");
        }
        let extra: &[u8] = if ex.upload.is_chunked() {
            b"transfer-encoding: chunked\r\n"
        } else if !self.upgrade
            && !request.fields.has(Known::ContentLength)
            && !matches!(request.method(), b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
        {
            b"content-length: 0\r\n"
        } else {
            b""
        };
        let case = self.cluster.cluster.http.http1.header_case;
        h1::write::request_head(out.flat(), request, case, extra);
    }
}
