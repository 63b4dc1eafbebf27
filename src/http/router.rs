//! The router: a request to an upstream and its response back, with timeouts and retries
//! (envoyproxy.io: http_filters/router_filter).

use std::borrow::Cow;
use std::future::poll_fn;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::exchange::{Exchange, Reply};
use super::fields::Fields;
use super::h1::{self, Framing, ParsedResponse, Refusal, ResponseLimits};
use super::head::RequestHead;
use super::io::{poll_read, OutBuf, FIRST_READ};
use super::manager;
use super::pump::{Pump, PumpError};
use super::tunnel;
use crate::config::cluster::Discovery;
use crate::config::route::{Chosen, Forward, RequestRetries, Route, WeightedCluster, RETRY_HEADERS};
use crate::config::{Cluster, HeaderView, Host, Known, KnownSet, RequestView, Slot};
use crate::telemetry::stream_info::{Protocol, ResponseFlags};
use crate::upstream::permit::RetryPermit;
use crate::upstream::{
    ClusterLocal, HostPool, PickContext, RequestPermit, UpstreamConnection, UpstreamError,
};

/// How a request ended for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has its whole answer.
    Done,
    /// It went away.
    Gone,
    /// Its answer was cut off.
    Broken,
}

/// Why an attempt failed before a response head was there, or while one was being passed on.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection.
    Upstream(UpstreamError),
    /// The upstream closed or reset the connection.
    Closed,
    /// The upstream sent what is not HTTP.
    Protocol,
    /// Nothing came in time.
    Timeout(Expired),
    /// The client went away.
    Gone,
    /// The client's body is broken.
    Refused(Refusal),
}

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
    route_timeout: Option<Duration>,
    try_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    route: Option<Instant>,
    per_try: Option<Instant>,
    idle: Option<Instant>,
    duration: Option<Instant>,
}

impl Deadlines {
    pub(super) fn nearest(&self) -> Option<Instant> {
        [self.route, self.per_try, self.idle, self.duration].into_iter().flatten().min()
    }

    fn expired(&self) -> Expired {
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

    /// Something moved.
    pub(super) fn touch(&mut self) {
        if let Some(idle) = self.idle_timeout {
            self.idle = Some(Instant::now() + idle);
        }
    }

    /// Only idleness and age limit what follows (a tunnel).
    pub(super) fn request_ended(&mut self) {
        self.route = None;
        self.route_timeout = None;
        self.per_try = None;
    }

    /// The request is complete: the route's timers run from here.
    fn request_complete(&mut self, now: Instant) {
        if self.route.is_none() {
            self.route = self.route_timeout.map(|timeout| now + timeout);
        }
        if self.per_try.is_none() {
            self.per_try = self.try_timeout.map(|timeout| now + timeout);
        }
    }
}

/// What the attempts of one request share.
struct Attempts<'r> {
    route: &'r Arc<Route>,
    forward: &'r Forward,
    weighted: Option<&'r WeightedCluster>,
    cluster: Rc<ClusterLocal>,
    retries: Option<RequestRetries>,
    deadlines: Deadlines,
    /// Body pieces kept for another attempt; `None` once they grew too large.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    tried: Vec<*const Host>,
    upgrade: bool,
}

/// Request controls that end at this proxy.
const CONTROLS: KnownSet = RETRY_HEADERS
    | Known::XEnvoyUpstreamRqTimeoutMs.bit()
    | Known::XEnvoyUpstreamRqPerTryTimeoutMs.bit()
    | Known::XEnvoyUpstreamRqTimeoutAltResponse.bit()
    | Known::XEnvoyHedgeOnPerTryTimeout.bit()
    | Known::XEnvoyUpstreamStreamDurationMs.bit();

/// Forwards the request.
pub(super) async fn forward(
    ex: &mut Exchange<'_>,
    route: &Arc<Route>,
    forward: &Forward,
    random: u64,
) -> End {
    let Some(request) = &ex.request else { return End::Gone };
    let (chosen, weighted) = forward.target.choose(request, random);
    let slot: Option<Arc<Slot<Cluster>>> = match chosen {
        Chosen::Slot(slot) => Some(slot.clone()),
        Chosen::Named(name) => name
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(|name| ex.worker.clusters.find(name)),
    };
    let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) else {
        ex.manager.stats.no_cluster.increment(1);
        ex.info.flags.insert(ResponseFlags::NC);
        return ex.reply(Reply::new(forward.cluster_not_found_code, "cluster_not_found")).await;
    };
    ex.info.cluster = Some(cluster.cluster.name.clone());
    let upgrade = match request.upgrade() {
        None => false,
        Some(kind) if upgrade_enabled(ex, forward, kind) => true,
        Some(_) => {
            ex.manager.stats.downstream_rq_ws_on_non_ws_route.increment(1);
            ex.close = true;
            return ex.reply(Reply::new(403, "upgrade_failed")).await;
        }
    };
    let deadlines = deadlines(ex, forward);
    let Some(request) = &mut ex.request else { return End::Gone };
    let retries = if upgrade { None } else { RequestRetries::of(forward.retry.as_ref(), &*request) };
    prepare(
        request,
        route,
        forward,
        weighted,
        &ex.info,
        &deadlines,
        ex.manager.router.suppress_envoy_headers,
    );
    mirror(ex, forward);
    let kept = (retries.is_some() && !upgrade).then(Vec::new);
    let mut attempts = Attempts {
        route,
        forward,
        weighted,
        cluster,
        retries,
        deadlines,
        kept,
        kept_bytes: 0,
        tried: Vec::new(),
        upgrade,
    };
    attempts.run(ex).await
}

fn upgrade_enabled(ex: &Exchange<'_>, forward: &Forward, kind: &[u8]) -> bool {
    let find = |upgrades: &[crate::config::http::Upgrade]| {
        upgrades
            .iter()
            .find(|upgrade| upgrade.kind.as_bytes().eq_ignore_ascii_case(kind))
            .map(|upgrade| upgrade.enabled)
    };
    find(&forward.upgrades).or_else(|| find(&ex.manager.upgrades)).unwrap_or(false)
}

fn deadlines(ex: &Exchange<'_>, forward: &Forward) -> Deadlines {
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

/// Turns the request head into what goes upstream.
fn prepare(
    request: &mut RequestHead,
    route: &Route,
    forward: &Forward,
    weighted: Option<&WeightedCluster>,
    info: &crate::telemetry::stream_info::StreamInfo,
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
    async fn run(&mut self, ex: &mut Exchange<'_>) -> End {
        let mut left = self.retries.as_ref().map_or(0, |retries| retries.num_retries);
        let mut replayed = false;
        let mut permit: Option<RetryPermit> = None;
        let mut was_timeout = false;
        loop {
            ex.info.attempts += 1;
            let outcome = self.attempt(ex, was_timeout).await;
            let (failure, proof) = match outcome {
                Ok(Answered { parsed, connection, request_permit, sent }) => {
                    let retry = self.retry_response(ex, &parsed, &mut left, &mut permit);
                    if !retry {
                        if ex.info.attempts > 1 && parsed.head.status < 500 {
                            self.cluster.cluster.stats().upstream_rq_retry_success.increment(1);
                        }
                        return self.respond(ex, parsed, connection, request_permit, sent).await;
                    }
                    // The client never sees this answer, but the host gave it.
                    if let Some(host) = &ex.info.host {
                        host.counters.rq_error.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(request_permit);
                    if matches!(parsed.framing, Framing::Empty | Framing::Length(0)) && parsed.keep_alive {
                        let pool = connection.pool().clone();
                        pool.give_back(*connection, true, Instant::now());
                    }
                    self.back_off(ex).await;
                    was_timeout = false;
                    continue;
                }
                Err(failed) => (failed.failure, failed.unprocessed),
            };
            // A connection that died before the request was taken, or between requests that may be
            // repeated: the client must not see it (the keep-alive race).
            if proof && !replayed && self.can_replay(ex) {
                replayed = true;
                ex.info.attempts -= 1;
                continue;
            }
            if self.retry_failure(ex, &failure, &mut left, &mut permit) {
                was_timeout = matches!(failure, Failure::Timeout(Expired::PerTry));
                self.charge_error(ex, true);
                self.back_off(ex).await;
                continue;
            }
            return self.fail(ex, failure).await;
        }
    }

    fn can_replay(&self, ex: &Exchange<'_>) -> bool {
        ex.upload.bytes == 0 || self.kept.is_some()
    }

    /// One try: a connection, the request, and the head of the response.
    async fn attempt(&mut self, ex: &mut Exchange<'_>, was_timeout: bool) -> Result<Answered, Failed> {
        let plain = |failure| Failed { failure, unprocessed: false };
        let pool = self.pick(ex).map_err(|error| plain(Failure::Upstream(error)))?;
        self.tried.push(Arc::as_ptr(&pool.host));
        ex.info.host = Some(pool.host.clone());
        let connection = match pool.reuse() {
            Some(connection) => connection,
            None => {
                let connect = pool.connection(self.forward.priority);
                match wait(ex, &mut self.deadlines, connect).await {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(error)) => return Err(plain(Failure::Upstream(error))),
                    Err(failure) => return Err(plain(failure)),
                }
            }
        };
        let Some(request_permit) =
            RequestPermit::take(&self.cluster.cluster, self.forward.priority, &pool.host)
        else {
            // Nothing was sent on it.
            pool.give_back(connection, true, Instant::now());
            return Err(plain(Failure::Upstream(UpstreamError::Overflow("max_requests"))));
        };
        let mut connection = Box::new(connection);
        ex.info.upstream_connection_id = connection.id;
        ex.info.upstream_local =
            connection.stream.local_addr().filter(|_| !ex.manager.access_logs.is_empty());
        ex.info.upstream_protocol = Some(Protocol::Http11);
        let mut out = OutBuf::default();
        self.write_head(ex, &pool, was_timeout, &mut out);
        if let Some(kept) = &self.kept {
            for piece in kept {
                ex.upload.replay(piece, &mut out);
            }
            if ex.info.attempts > 1 && ex.upload.is_received() {
                ex.upload.replay_end(&mut out);
            }
        }
        let sent = Sent { at: Instant::now(), out };
        ex.info.times.first_upstream_tx = Some(sent.at.saturating_duration_since(ex.info.start));
        if ex.upload.is_received() {
            self.deadlines.request_complete(sent.at);
        }
        let result = self.exchange_heads(ex, &mut connection, sent).await;
        match result {
            Ok((parsed, sent)) => Ok(Answered { parsed, connection, request_permit, sent }),
            Err((failure, started)) => {
                let closed = matches!(failure, Failure::Closed);
                if closed {
                    connection.note_remote_close();
                }
                // Nothing of an answer came on a connection that had served before: the upstream
                // closed it as we wrote. Safe to repeat if not one byte went out, or if the method
                // may be repeated by definition (RFC 9110 §9.2.2).
                let idempotent = ex.request.as_ref().is_some_and(|request| {
                    matches!(request.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE")
                });
                let unprocessed = closed && connection.reused && !started && idempotent;
                Err(Failed { failure, unprocessed })
            }
        }
    }

    fn pick(&self, ex: &Exchange<'_>) -> Result<Rc<HostPool>, UpstreamError> {
        if let Discovery::OriginalDst { header, port_override } = &self.cluster.cluster.discovery {
            let named =
                header.as_ref().zip(ex.request.as_ref()).and_then(|(key, request)| request.first(key));
            let named =
                named.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
            let info = &ex.info.connection;
            let restored = info.local.filter(|local| Some(*local) != info.direct_local);
            let Some(mut address) = named.or(restored) else {
                self.cluster.cluster.stats().original_dst_host_invalid.increment(1);
                return Err(UpstreamError::NoHealthyHost);
            };
            if let Some(port) = port_override {
                address.set_port(*port);
            }
            return Ok(self.cluster.original_destination(address));
        }
        let policy = self.retries.as_ref().and_then(|retries| retries.policy.as_ref());
        let avoid = policy.is_some_and(|policy| !policy.host_predicates.is_empty()) && !self.tried.is_empty();
        let context = PickContext {
            avoid: if avoid { &self.tried } else { &[] },
            repicks: if avoid { policy.map_or(1, |policy| policy.host_selection_max_attempts) } else { 0 },
        };
        self.cluster.pick(&context)
    }

    fn write_head(&self, ex: &mut Exchange<'_>, pool: &HostPool, was_timeout: bool, out: &mut OutBuf) {
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

    /// Sends the request and waits for the head of its answer. On failure also says whether a byte
    /// of an answer had come.
    async fn exchange_heads(
        &mut self,
        ex: &mut Exchange<'_>,
        connection: &mut UpstreamConnection,
        mut sent: Sent,
    ) -> Result<(ParsedResponse, Sent), (Failure, bool)> {
        let cluster = &self.cluster.cluster;
        let limits = ResponseLimits {
            max_head: cluster.http.max_response_headers,
            max_fields: cluster.http.max_headers_count as usize,
            preserve_case: cluster.http.http1.header_case == crate::config::http::HeaderCase::Preserve,
            chunked_length: cluster.http.http1.allow_chunked_length,
        };
        let to_head = ex.request.as_ref().is_some_and(|request| request.is_method(b"HEAD"));
        let mut interim = 0u32;
        let mut started = false;
        let result = poll_fn(|context| {
            self.poll_upload(ex, connection, &mut sent.out, context)?;
            loop {
                if !connection.input.is_empty() {
                    match h1::parse_response(&connection.input, &limits, to_head, self.upgrade) {
                        Ok(Some(parsed)) if parsed.head.status < 200 && parsed.head.status != 101 => {
                            bytes::Buf::advance(&mut connection.input, parsed.consumed);
                            interim += 1;
                            if interim > MAX_INTERIM {
                                return Poll::Ready(Err(Failure::Protocol));
                            }
                            if ex.manager.proxy_100_continue {
                                let out = ex.down.output.flat();
                                h1::write::response_head(out, &parsed.head, Default::default(), b"", false);
                                let _ = ex.down.output.poll_flush(&ex.down.stream, context);
                            }
                            continue;
                        }
                        Ok(Some(parsed)) if parsed.head.status == 101 && !self.upgrade => {
                            return Poll::Ready(Err(Failure::Protocol))
                        }
                        Ok(Some(parsed)) => return Poll::Ready(Ok(parsed)),
                        Ok(None) => {}
                        Err(_) => return Poll::Ready(Err(Failure::Protocol)),
                    }
                }
                match poll_read(&connection.stream, &mut connection.input, FIRST_READ, context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(count)) if count > 0 => started = true,
                    // Cut off inside a head is not HTTP; before it, the connection was closed.
                    Poll::Ready(_) if started => return Poll::Ready(Err(Failure::Protocol)),
                    Poll::Ready(_) => return Poll::Ready(Err(Failure::Closed)),
                }
            }
            self.poll_client(ex, context)
        })
        .await;
        match result {
            Ok(parsed) => {
                bytes::Buf::advance(&mut connection.input, parsed.consumed);
                Ok((parsed, sent))
            }
            Err(failure) => Err((failure, started)),
        }
    }

    /// Moves the request's body on; an upstream that takes no more of it may still answer.
    fn poll_upload(
        &mut self,
        ex: &mut Exchange<'_>,
        connection: &UpstreamConnection,
        out: &mut OutBuf,
        context: &mut Context<'_>,
    ) -> Result<(), Failure> {
        let Exchange { upload, down, info, .. } = ex;
        let was_received = upload.is_received();
        if was_received && out.is_empty() {
            return Ok(());
        }
        let (kept, kept_bytes) = (&mut self.kept, &mut self.kept_bytes);
        let limit = self
            .route
            .buffer_limit
            .map_or(self.cluster.cluster.per_connection_buffer_limit, |limit| limit as usize);
        let keep = |piece: &[u8]| {
            if let Some(pieces) = kept {
                *kept_bytes += piece.len();
                if *kept_bytes > limit {
                    *kept = None;
                } else {
                    pieces.push(Bytes::copy_from_slice(piece));
                }
            }
        };
        let polled = upload.poll((&down.stream, &mut down.input), (&connection.stream, out), keep, context);
        let progress = std::mem::take(&mut upload.progress);
        if !was_received && upload.is_received() {
            let now = Instant::now();
            info.times.request_complete = Some(now.saturating_duration_since(info.start));
            self.deadlines.request_complete(now);
        }
        if progress {
            self.deadlines.touch();
        }
        match polled {
            Poll::Pending | Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(PumpError::SinkIo(_))) => {
                out.clear();
                Ok(())
            }
            Poll::Ready(Err(PumpError::Source(refusal))) => Err(Failure::Refused(refusal)),
            Poll::Ready(Err(PumpError::SourceClosed | PumpError::SourceIo(_))) => Err(Failure::Gone),
        }
    }

    /// Watches the client and the clock.
    fn poll_client<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        context: &mut Context<'_>,
    ) -> Poll<Result<T, Failure>> {
        if !ex.down.output.is_empty() {
            // A 100 Continue that waits for room.
            let _ = ex.down.output.poll_flush(&ex.down.stream, context);
        }
        if ex.upload.is_received() {
            while ex.down.input.len() < MAX_PIPELINED {
                match poll_read(&ex.down.stream, &mut ex.down.input, FIRST_READ, context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Failure::Gone)),
                }
            }
        }
        if ex.down.timer.poll(self.deadlines.nearest(), context).is_ready() {
            return Poll::Ready(Err(Failure::Timeout(self.deadlines.expired())));
        }
        Poll::Pending
    }

    /// Passes the response on.
    async fn respond(
        &mut self,
        ex: &mut Exchange<'_>,
        parsed: ParsedResponse,
        mut connection: Box<UpstreamConnection>,
        request_permit: RequestPermit,
        mut sent: Sent,
    ) -> End {
        let now = Instant::now();
        let ParsedResponse { mut head, framing, keep_alive, .. } = parsed;
        if !keep_alive {
            self.cluster.cluster.stats().upstream_cx_close_notify.increment(1);
        }
        ex.info.times.first_upstream_rx = Some(now.saturating_duration_since(ex.info.start));
        ex.info.details = Cow::Borrowed("via_upstream");
        self.charge(ex, head.status, now.saturating_duration_since(sent.at));
        self.deadlines.per_try = None;
        let connect = ex.request.as_ref().is_some_and(|request| request.is_method(b"CONNECT"));
        if self.upgrade && !connect && head.status / 100 == 2 {
            // Neither accepted nor refused: the client could not tell where the other protocol begins.
            ex.info.details = Cow::Borrowed("websocket_handshake_unsuccessful");
            let mut fields = Fields::recycled();
            std::mem::swap(&mut fields, &mut head.fields);
            ex.close = true;
            return ex.reply(Reply::new(head.status, "websocket_handshake_unsuccessful")).await;
        }
        let suppress = ex.manager.router.suppress_envoy_headers;
        if !suppress && head.status != 101 && ex.upload.is_received() {
            let took = now.saturating_duration_since(sent.at).as_millis();
            let mut digits = itoa::Buffer::new();
            head.fields.set_known(Known::XEnvoyUpstreamServiceTime, digits.format(took).as_bytes());
        }
        if self.forward.include_attempt_count_in_response {
            let mut digits = itoa::Buffer::new();
            head.fields.set_known(Known::XEnvoyAttemptCount, digits.format(ex.info.attempts).as_bytes());
        }
        if let Some(weighted) = self.weighted {
            weighted.response_headers.apply_to_response(
                &mut head,
                &ex.info,
                ex.request.as_ref().map(|r| r as _),
            );
        }
        self.route.response_headers.apply_to_response(
            &mut head,
            &ex.info,
            ex.request.as_ref().map(|r| r as _),
        );
        let to_head = ex.request.as_ref().is_some_and(|request| request.is_method(b"HEAD"));
        if head.status == 204 {
            head.fields.remove_known(Known::ContentLength);
        }
        manager::finish_response(ex.manager, &mut head, ex.request.as_ref(), true, ex.worker, now);
        if framing == Framing::Tunnel {
            ex.start_response(head, None, now);
            return tunnel::run(ex, &mut self.deadlines, connection, sent.out).await;
        }
        let http_10 = ex.request.as_ref().is_some_and(|request| request.protocol == Protocol::Http10);
        let chunked = match framing {
            Framing::Chunked | Framing::UntilClose => true,
            Framing::Length(_) => !head.fields.has(Known::ContentLength),
            Framing::Empty => {
                to_head && !head.fields.has(Known::ContentLength) && head.status != 204 && head.status != 304
            }
            Framing::Tunnel => false,
        };
        if self.upgrade {
            ex.close = true;
        }
        ex.start_response(head, Some(chunked), now);
        let write_chunked = chunked && !http_10 && !to_head;
        let mut download = Pump::new(
            framing,
            write_chunked,
            ex.manager.http1.enable_trailers,
            self.cluster.cluster.http.max_response_headers,
        );
        let result = self.pass_body(ex, &mut download, &mut connection, &mut sent.out).await;
        ex.info.bytes_sent += download.bytes;
        drop(request_permit);
        match result {
            Ok(()) => {
                let end = Instant::now();
                ex.info.times.last_upstream_rx = Some(end.saturating_duration_since(ex.info.start));
                let request_sent = ex.upload.is_received() && sent.out.is_empty();
                let pool = connection.pool().clone();
                pool.give_back(*connection, keep_alive && request_sent, end);
                End::Done
            }
            Err(Failure::Gone) => End::Gone,
            Err(Failure::Timeout(expired)) => {
                match expired {
                    Expired::Idle => ex.info.flags.insert(ResponseFlags::SI),
                    Expired::Route | Expired::PerTry => ex.info.flags.insert(ResponseFlags::UT),
                    Expired::Duration => {}
                }
                ex.info.details = Cow::Borrowed(timeout_details(expired));
                self.count_timeout(ex, expired);
                End::Broken
            }
            Err(Failure::Refused(refusal)) => {
                ex.info.flags.insert(ResponseFlags::DPE);
                ex.info.details = Cow::Borrowed(refusal.details);
                End::Broken
            }
            Err(_) => {
                let stats = self.cluster.cluster.stats();
                stats.upstream_rq_rx_reset.increment(1);
                ex.info.flags.insert(ResponseFlags::UPE);
                ex.info.details = Cow::Borrowed("upstream_reset_after_response_started{protocol_error}");
                // What came is passed on before the connection is cut.
                let _ = ex.flush().await;
                End::Broken
            }
        }
    }

    async fn pass_body(
        &mut self,
        ex: &mut Exchange<'_>,
        download: &mut Pump,
        connection: &mut UpstreamConnection,
        out: &mut OutBuf,
    ) -> Result<(), Failure> {
        poll_fn(|context| {
            self.poll_upload(ex, connection, out, context)?;
            let polled = {
                let down = &mut *ex.down;
                let source = (&connection.stream, &mut connection.input);
                download.poll(source, (&down.stream, &mut down.output), |_| {}, context)
            };
            if std::mem::take(&mut download.progress) {
                self.deadlines.touch();
            }
            match polled {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::SinkIo(_))) => return Poll::Ready(Err(Failure::Gone)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Protocol)),
                Poll::Pending => {}
            }
            if ex.down.timer.poll(self.deadlines.nearest(), context).is_ready() {
                return Poll::Ready(Err(Failure::Timeout(self.deadlines.expired())));
            }
            Poll::Pending
        })
        .await
    }

    fn charge(&self, ex: &Exchange<'_>, status: u16, took: Duration) {
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
    fn charge_error(&self, ex: &Exchange<'_>, failed: bool) {
        if let (true, Some(host)) = (failed, &ex.info.host) {
            host.counters.rq_error.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether this response is to be thrown away and the request tried again.
    fn retry_response(
        &self,
        ex: &mut Exchange<'_>,
        parsed: &ParsedResponse,
        left: &mut u32,
        permit: &mut Option<RetryPermit>,
    ) -> bool {
        use crate::config::route::RetryOn;
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

    fn retry_failure(
        &self,
        ex: &mut Exchange<'_>,
        failure: &Failure,
        left: &mut u32,
        permit: &mut Option<RetryPermit>,
    ) -> bool {
        use crate::config::route::RetryOn;
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

    fn may_retry(&self, ex: &mut Exchange<'_>, left: &mut u32, permit: &mut Option<RetryPermit>) -> bool {
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
    async fn back_off(&mut self, ex: &mut Exchange<'_>) {
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

    fn count_timeout(&self, ex: &Exchange<'_>, expired: Expired) {
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
    async fn fail(&mut self, ex: &mut Exchange<'_>, failure: Failure) -> End {
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

/// A 100-, 102- or 103-response too many is an attack or a broken origin.
const MAX_INTERIM: u32 = 100;
/// Bytes of the next requests taken while one is served; a client's disconnect is noticed this long.
const MAX_PIPELINED: usize = 16 * 1024;

fn timeout_details(expired: Expired) -> &'static str {
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

struct Sent {
    at: Instant,
    out: OutBuf,
}

struct Answered {
    parsed: ParsedResponse,
    connection: Box<UpstreamConnection>,
    request_permit: RequestPermit,
    sent: Sent,
}

struct Failed {
    failure: Failure,
    /// The upstream provably did nothing for the request, or it may be repeated by definition.
    unprocessed: bool,
}

/// Waits for `future` while the client stays and time is left.
async fn wait<T>(
    ex: &mut Exchange<'_>,
    deadlines: &mut Deadlines,
    future: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        if ex.upload.is_received() && ex.down.input.len() < MAX_PIPELINED {
            if let Poll::Ready(read) = poll_read(&ex.down.stream, &mut ex.down.input, FIRST_READ, context) {
                if !matches!(read, Ok(count) if count > 0) {
                    return Poll::Ready(Err(Failure::Gone));
                }
                context.waker().wake_by_ref();
            }
        }
        if ex.down.timer.poll(deadlines.nearest(), context).is_ready() {
            return Poll::Ready(Err(Failure::Timeout(deadlines.expired())));
        }
        Poll::Pending
    })
    .await
}

/// Sends a copy of the request where the route's mirrors say; its answers are thrown away.
fn mirror(ex: &Exchange<'_>, forward: &Forward) {
    let Some(request) = &ex.request else { return };
    for mirror in forward.mirrors.iter() {
        if !mirror.fraction.holds(ex.worker.random()) {
            continue;
        }
        let slot = match mirror.cluster.choose(request) {
            Chosen::Slot(slot) => Some(slot.clone()),
            Chosen::Named(name) => name
                .and_then(|name| std::str::from_utf8(name).ok())
                .and_then(|name| ex.worker.clusters.find(name)),
        };
        let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) else { continue };
        // A body would have to be held until its end; only requests without one are mirrored so far.
        if !ex.upload.is_received() {
            cluster.cluster.stats().retry_or_shadow_abandoned.increment(1);
            continue;
        }
        let mut copy = request.clone();
        if mirror.append_shadow_suffix {
            let authority = shadow_authority(copy.authority());
            copy.set_authority(&authority);
        }
        copy.fields.set_known(Known::XEnvoyInternal, b"true");
        let worker = ex.worker.clone();
        tokio::task::spawn_local(async move {
            let _ = super::shadow::send(&worker, &cluster, copy).await;
        });
    }
}

/// `host-shadow[:port]`.
fn shadow_authority(authority: &[u8]) -> Vec<u8> {
    let colon = authority.iter().rposition(|byte| *byte == b':').unwrap_or(authority.len());
    let (host, port) = authority.split_at(colon);
    [host, b"-shadow", port].concat()
}
