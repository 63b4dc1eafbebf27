//! One try: a host, a connection, the request out, and the head of its answer back.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use smallvec::SmallVec;

use super::hash::Hashed;
use super::hedge::Unanswered;
use super::lent::Lent;
use super::{Attempts, Failure};
use crate::config::cluster::{Discovery, UpstreamProtocol};
use crate::config::route::HostPredicate;
use crate::config::{Cluster, HeaderView, Host, Known, RequestView};
use crate::http::exchange::Exchange;
use crate::http::fields::Fields;
use crate::http::filters::session;
use crate::http::filters::stateful_session::Session;
use crate::http::h1::{self, Framing, ParsedResponse, ResponseLimits};
use crate::http::head::ResponseHead;
use crate::http::io::{poll_read, OutBuf, FIRST_READ};
use crate::http::pump::Out;
use crate::telemetry::stream_info::Protocol;
use crate::tls::upstream::Names;
use crate::upstream::{HostPool, PickContext, RequestPermit, UpstreamConnection, UpstreamError};

/// A 100-, 102- or 103-response too many is an attack or a broken origin.
const MAX_INTERIM: u32 = 100;
/// A request on a connection.
pub(super) struct Sent {
    /// When it got the connection.
    pub(super) at: Instant,
    /// What of it is still to be written.
    pub(super) out: Out,
}

/// How far the head of an answer has been read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    interim: u32,
    /// A byte of it has come.
    started: bool,
    /// Heads before the final one are not passed on.
    pub(super) quiet: bool,
}

/// A response whose head is there.
pub(super) struct Answered {
    pub(super) parsed: ParsedResponse,
    pub(super) connection: Lent,
    pub(super) request_permit: RequestPermit,
    pub(super) sent: Sent,
}

/// A try without a response.
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// The request had a connection.
    pub(super) started: bool,
    /// The upstream provably did nothing for the request, or it may be repeated by definition.
    pub(super) unprocessed: bool,
}

impl From<Failure> for Failed {
    /// A failure before there was a connection.
    fn from(failure: Failure) -> Self {
        Self { failure, started: false, unprocessed: false }
    }
}

impl Attempts<'_> {
    /// One try: a connection, the request, and the head of the response.
    pub(super) async fn attempt(
        &mut self,
        ex: &mut Exchange<'_>,
        was_timeout: bool,
    ) -> Result<Answered, Failed> {
        let mut pool = match self.pick(ex) {
            Ok(pool) => pool,
            Err(error) => return Err(Failure::Upstream(error).into()),
        };
        let tls = self.cluster.cluster.tls.as_ref();
        let announced = self.cluster.cluster.socket.announced.is_some();
        if tls.is_some_and(|tls| tls.auto.is_some()) || ex.info.has_own_upstream() || announced {
            pool = pool.named(&names(ex, &self.cluster.cluster, announced));
        }
        if let Some(retries) = &mut self.retries {
            self.tried.push(Arc::as_ptr(&pool.host.shared));
            retries.note_priority(|| self.cluster.priority_of(&pool));
        }
        if self.cluster.is_aggregate() {
            self.member = Some(pool.cluster().clone());
        }
        ex.info.host = Some(pool.host.clone());
        if ex.manager.scheme_follows {
            let tls = tls.is_some_and(|tls| tls.for_host(&pool.host).is_some());
            if let Some(request) = &mut ex.request {
                request.set_scheme(if tls { b"https" } else { b"http" });
            }
        }
        // Who cannot be taken opens no connection, and costs little.
        if RequestPermit::is_refused(self.upstream(), self.forward.priority) {
            return Err(Failure::Upstream(UpstreamError::Overflow("max_requests")).into());
        }
        // Written before there is a connection: the client's body is taken in meanwhile.
        if !self.terminate {
            if let Some(reply) = self.stamp(ex, &pool, was_timeout) {
                return Err(Failure::Answer(reply).into());
            }
            let http2 = match self.cluster.cluster.http.protocol {
                UpstreamProtocol::Auto => self.find_out(ex, &pool).await?,
                _ => self.speaks_http2(ex),
            };
            if let Some(ratio) = self.cluster.foresees() {
                self.cluster.foresee(ratio, self.forward.priority, http2);
            }
            if http2 {
                return Box::pin(self.attempt_stream(ex, pool)).await;
            }
        }
        let mut wire = OutBuf::default();
        if !self.terminate {
            self.write_head(ex, &mut wire);
            ex.info.upstream_wire_sent += wire.len() as u64;
        }
        let head = wire.len();
        let mut out = Out::Wire(wire);
        if !self.terminate {
            self.replay(ex, &mut out);
        }
        let reused = if self.terminate { None } else { pool.reuse() };
        let waited = reused.is_none() || ex.info.attempts > 1;
        let connection = match reused {
            Some(connection) => connection,
            None => match Box::pin(self.connect(ex, &pool, &mut out)).await {
                Ok(connection) => connection,
                Err(failure) => {
                    self.carry(ex, out, head);
                    return Err(failure.into());
                }
            },
        };
        let Some(request_permit) = RequestPermit::take(self.upstream(), self.forward.priority, &pool.host)
        else {
            if !self.terminate {
                // Nothing was sent on it.
                pool.give_back(connection, true, Instant::now());
            }
            return Err(Failure::Upstream(UpstreamError::Overflow("max_requests")).into());
        };
        self.counts.each(|stats| stats.counters.upstream_rq_total.increment(1));
        ex.info.upstream_connection_id = connection.id;
        ex.info.upstream_local = connection.local;
        ex.info.upstream_tls.clone_from(&connection.tls);
        let sent = Sent { at: if waited { Instant::now() } else { ex.now }, out };
        ex.info.times.first_upstream_tx = Some(sent.at);
        if self.terminate {
            self.log_connected(ex);
            let connection = Lent::Http1(connection);
            return Ok(Answered { parsed: accepted(), connection, request_permit, sent });
        }
        ex.info.upstream_protocol = Some(Protocol::Http11);
        self.log_connected(ex);
        self.deadlines.try_connected(sent.at);
        let reused = connection.reused;
        let mut connection = Lent::Http1(connection);
        let (mut sent, mut reading) = (sent, Reading::default());
        let result = self.exchange_heads(ex, &mut connection, &mut sent, &mut reading).await;
        match result {
            Ok(parsed) => Ok(Answered { parsed, connection, request_permit, sent }),
            Err(failure) if self.goes_on(&failure) => {
                Err(self.set_aside(ex, Unanswered { connection, sent, request_permit, reading }))
            }
            Err(failure) => {
                let answered = reading.started;
                let closed = matches!(failure, Failure::Closed);
                if let (true, Lent::Http1(connection)) = (closed, &connection) {
                    connection.note_remote_close();
                    if let Some(reason) = crate::tls::failure::of_stream(&connection.stream) {
                        ex.info.upstream_failure = Some(reason.into());
                        let tls = self.cluster.cluster.tls.as_ref();
                        if let Some(tls) = tls.and_then(|tls| tls.for_host(&connection.pool().host)) {
                            tls.broken();
                        }
                    }
                }
                // Nothing of an answer came on a connection that had served before: the upstream
                // closed it as we wrote. Safe to repeat if not one byte went out, or if the method
                // may be repeated by definition (RFC 9110 §9.2.2).
                let unprocessed = closed && reused && !answered && is_idempotent(ex);
                Err(Failed { failure, started: true, unprocessed })
            }
        }
    }

    /// Whether a host that says itself what it speaks wants HTTP/2.
    async fn find_out(&mut self, ex: &mut Exchange<'_>, pool: &Rc<HostPool>) -> Result<bool, Failure> {
        if let Some(known) = pool.speaks_http2() {
            return Ok(known);
        }
        let priority = self.forward.priority;
        Box::pin(self.wait(ex, pool.find_out(priority))).await?.map_err(Failure::Upstream)
    }

    /// A new connection, or the next that becomes free; the client's body goes into `out` meanwhile.
    async fn connect(
        &mut self,
        ex: &mut Exchange<'_>,
        pool: &Rc<HostPool>,
        out: &mut Out,
    ) -> Result<Box<UpstreamConnection>, Failure> {
        let (priority, terminate) = (self.forward.priority, self.terminate);
        let connect = async {
            if terminate {
                pool.dedicated().await
            } else {
                pool.connection(priority).await
            }
        };
        self.receive_until(ex, out, connect).await
    }

    /// Takes the client's body into `out` until `connect` has a connection, the client goes or time is up.
    pub(super) async fn receive_until<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        out: &mut Out,
        connect: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, Failure> {
        let mut connect = pin!(connect);
        poll_fn(|context| {
            // First, so that what came with the head counts as received even if connecting fails at once.
            self.receive(ex, out, context)?;
            if let Poll::Ready(connected) = connect.as_mut().poll(context) {
                return Poll::Ready(connected.map_err(Failure::Upstream));
            }
            self.poll_client(ex, context)
        })
        .await
    }

    /// Waits for `future` while the client stays and time is left.
    pub(super) async fn wait<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        future: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            self.poll_client(ex, context)
        })
        .await
    }

    /// Which protocol the cluster is spoken to in.
    pub(super) fn speaks_http2(&self, ex: &Exchange<'_>) -> bool {
        match self.upstream().http.protocol {
            UpstreamProtocol::Http1 | UpstreamProtocol::Auto => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Downstream => ex.down.client.is_http2(),
        }
    }

    /// The cluster that is asked: the picked member of an aggregate.
    #[inline]
    pub(super) fn upstream(&self) -> &Arc<Cluster> {
        match &self.member {
            Some(member) => member,
            None => &self.cluster.cluster,
        }
    }

    fn pick(&mut self, ex: &Exchange<'_>) -> Result<Rc<HostPool>, UpstreamError> {
        // A try that follows another goes elsewhere.
        let session = session(ex).filter(|_| self.tried.is_empty()).and_then(Session::wanted);
        let asks_nothing = self.forward.hash_policies.is_empty()
            && self.forward.metadata_match.is_none()
            && session.is_none();
        if asks_nothing && self.weighted.is_none() && self.tried.is_empty() {
            if let Some(pool) = self.cluster.next() {
                return Ok(pool);
            }
        }
        if let Discovery::OriginalDst { header, port_override } = &self.cluster.cluster.discovery {
            let named =
                header.as_ref().zip(ex.request.as_ref()).and_then(|(key, request)| request.first(key));
            let parsed =
                named.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
            let told = ex.info.destination().or(parsed);
            if named.is_some() && told.is_none() {
                self.cluster.cluster.stats().original_dst_host_invalid.increment(1);
            }
            let Some(mut address) = told.or_else(|| ex.info.connection.restored()) else {
                return Err(UpstreamError::NoHealthyHost);
            };
            if let Some(port) = port_override {
                address.set_port(*port);
            }
            return Ok(self.cluster.original_destination(address));
        }
        let mut context = PickContext {
            metadata: match self.weighted {
                Some(weighted) => weighted.metadata_match.as_ref(),
                None => self.forward.metadata_match.as_ref(),
            },
            session,
            ..PickContext::default()
        };
        let own = self.cluster.cluster.http.hash_policies.as_deref();
        let policies = own.unwrap_or(&self.forward.hash_policies);
        if !policies.is_empty() && self.cluster.hashes() {
            let hashed = self.hashed.get_or_insert_with(|| Box::new(Hashed::of(policies, ex)));
            context.hash = hashed.hash;
        }
        let mut named: SmallVec<[&[u8]; 2]> = SmallVec::new();
        if let (Some(options), Some(request)) = (self.cluster.override_host(), &ex.request) {
            named.extend(options.headers.iter().filter_map(|key| request.first(key)));
            context.wanted = Some((&named, self.tried.len()));
        }
        let Some(retries) = self.retries.as_mut().filter(|_| !self.tried.is_empty()) else {
            return self.cluster.pick(&context);
        };
        retries.skip_priorities(|tried| self.cluster.has_others(tried));
        context.tried = retries.priorities_tried();
        let Some((predicates, repicks)) = retries.host_predicates() else {
            return self.cluster.pick(&context);
        };
        let tried = &self.tried;
        let reject = |host: &Host| {
            predicates.iter().any(|predicate| match predicate {
                HostPredicate::PreviousHosts => tried.contains(&Arc::as_ptr(&host.shared)),
                HostPredicate::OmitCanaryHosts => host.is_canary(),
                HostPredicate::OmitHostMetadata(wanted) => match &host.template.metadata {
                    Some(metadata) => metadata.has(wanted, true),
                    None => wanted.pairs().is_empty(),
                },
            })
        };
        self.cluster.pick(&PickContext { reject: Some(&reject), repicks, ..context })
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) async fn exchange_heads(
        &mut self,
        ex: &mut Exchange<'_>,
        lent: &mut Lent,
        sent: &mut Sent,
        reading: &mut Reading,
    ) -> Result<ParsedResponse, Failure> {
        poll_fn(|context| {
            self.poll_upload(ex, lent, &mut sent.out, context)?;
            if let Poll::Ready(head) = self.poll_head(ex, lent, reading, context) {
                return Poll::Ready(head);
            }
            self.poll_client(ex, context)
        })
        .await
    }

    /// Passes a response on that is not the last, and counts it.
    #[cold]
    pub(super) fn pass_interim(
        &mut self,
        ex: &mut Exchange<'_>,
        head: &ResponseHead,
        reading: &Reading,
        context: &mut Context<'_>,
    ) {
        // Others are not known to be such, and are left out.
        if !matches!(head.status, 100 | 102..=104) {
            return;
        }
        self.count_response(head.status);
        // An answer has begun.
        self.retries = None;
        if ex.manager.proxy_100_continue && !reading.quiet {
            ex.count_interim();
            ex.down.client.interim(head, context);
        }
    }

    /// Reads towards the head of an answer.
    pub(super) fn poll_head(
        &mut self,
        ex: &mut Exchange<'_>,
        lent: &mut Lent,
        reading: &mut Reading,
        context: &mut Context<'_>,
    ) -> Poll<Result<ParsedResponse, Failure>> {
        match lent {
            Lent::Http1(connection) => self.poll_wire_head(ex, connection, reading, context),
            Lent::Http2(stream) => self.poll_stream_head(ex, stream, reading, context),
        }
    }

    fn poll_wire_head(
        &mut self,
        ex: &mut Exchange<'_>,
        connection: &mut UpstreamConnection,
        reading: &mut Reading,
        context: &mut Context<'_>,
    ) -> Poll<Result<ParsedResponse, Failure>> {
        let limits = ResponseLimits::of(&self.upstream().http);
        let to_head = ex.request.as_ref().is_some_and(|request| request.is_method(b"HEAD"));
        loop {
            if !connection.input.is_empty() {
                match h1::parse_response(&connection.input, &limits, to_head, self.upgrade) {
                    Ok(Some(parsed)) if parsed.head.status < 200 && parsed.head.status != 101 => {
                        bytes::Buf::advance(&mut connection.input, parsed.consumed);
                        if !reading.may_pass_interim() {
                            return Poll::Ready(Err(Failure::Protocol));
                        }
                        self.pass_interim(ex, &parsed.head, reading, context);
                        continue;
                    }
                    Ok(Some(parsed)) if parsed.head.status == 101 && !self.upgrade => {
                        return Poll::Ready(Err(Failure::Protocol))
                    }
                    Ok(Some(parsed)) => {
                        bytes::Buf::advance(&mut connection.input, parsed.consumed);
                        return Poll::Ready(Ok(parsed));
                    }
                    Ok(None) => {}
                    Err(_) => return Poll::Ready(Err(Failure::Protocol)),
                }
            }
            let UpstreamConnection { stream, input, .. } = connection;
            match poll_read(stream, input, FIRST_READ, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) if count > 0 => reading.started = true,
                // Cut off inside a head is not HTTP; before it, the connection was closed.
                Poll::Ready(_) if reading.started => return Poll::Ready(Err(Failure::Protocol)),
                Poll::Ready(_) => return Poll::Ready(Err(Failure::Closed)),
            }
        }
    }

    /// Watches the client and the clock.
    pub(super) fn poll_client<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        context: &mut Context<'_>,
    ) -> Poll<Result<T, Failure>> {
        if !self.late.is_empty() && self.poll_late(ex, context).is_ready() {
            return Poll::Ready(Err(Failure::Overtaken));
        }
        let down = &mut *ex.down;
        down.client.nudge(context);
        if down.client.poll_gone(ex.upload.is_received(), down.buffer_limit, context).is_ready() {
            return Poll::Ready(Err(Failure::Gone));
        }
        if ex.down.timer.poll(self.deadlines.nearest(), context).is_ready() {
            return Poll::Ready(Err(Failure::Timeout(self.deadlines.expired(Instant::now()))));
        }
        Poll::Pending
    }
}

impl Reading {
    /// Counts a head before the final one; false when there are too many.
    pub(super) fn may_pass_interim(&mut self) -> bool {
        self.interim += 1;
        self.interim <= MAX_INTERIM
    }
}

/// What sets a request's connection apart: what objects say, and above that what the cluster makes of its head.
#[cold]
fn names(ex: &Exchange<'_>, cluster: &Cluster, announced: bool) -> Names {
    let tls = cluster.tls.as_deref();
    let mut names = ex.info.upstream_names(cluster, tls.is_some(), announced);
    if let (Some(auto), Some(request)) = (tls.and_then(|tls| tls.auto.as_ref()), &ex.request) {
        let of_head = auto.of(request, &Known::Authority.into());
        names.sni = of_head.sni.or(names.sni);
        if !of_head.sans.is_empty() {
            names.sans = of_head.sans;
        }
    }
    names
}

/// Whether the method may be repeated by definition (RFC 9110 §9.2.2).
pub(super) fn is_idempotent(ex: &Exchange<'_>) -> bool {
    ex.request.as_ref().is_some_and(|request| {
        matches!(request.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE")
    })
}

/// The answer to a CONNECT that ends here: its connection is there, and what follows is not HTTP.
fn accepted() -> ParsedResponse {
    ParsedResponse {
        head: ResponseHead::new(Fields::recycled(), 200, Protocol::Http11),
        consumed: 0,
        framing: Framing::Tunnel,
        keep_alive: false,
    }
}
