//! One try: a host, a connection, the request out, and the head of its answer back.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::retry::Retries;
use super::{Attempts, Failure};
use crate::config::cluster::Discovery;
use crate::config::{HeaderView, RequestView};
use crate::http::exchange::Exchange;
use crate::http::fields::Fields;
use crate::http::h1::{self, Framing, ParsedResponse, ResponseLimits};
use crate::http::head::ResponseHead;
use crate::http::io::{poll_read, OutBuf, FIRST_READ};
use crate::telemetry::stream_info::Protocol;
use crate::upstream::{HostPool, PickContext, RequestPermit, UpstreamConnection, UpstreamError};

/// A 100-, 102- or 103-response too many is an attack or a broken origin.
const MAX_INTERIM: u32 = 100;
/// Bytes of the next requests taken while one is served, unless config allows less; a client's disconnect
/// is noticed this long.
const MAX_PIPELINED: usize = 16 * 1024;

/// A request on a connection.
pub(super) struct Sent {
    /// When it got the connection.
    pub(super) at: Instant,
    /// What of it is still to be written.
    pub(super) out: OutBuf,
}

/// A response whose head is there.
pub(super) struct Answered {
    pub(super) parsed: ParsedResponse,
    pub(super) connection: Box<UpstreamConnection>,
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
        let pool = self.pick(ex).map_err(Failure::Upstream)?;
        if self.retries.is_some() {
            self.tried.push(Arc::as_ptr(&pool.host.shared));
        }
        ex.info.host = Some(pool.host.clone());
        // Written before there is a connection: the client's body is taken in meanwhile.
        let mut out = OutBuf::default();
        if !self.terminate {
            self.write_head(ex, &pool, was_timeout, &mut out);
            self.copies.replay(&ex.upload, &mut out);
        }
        let reused = if self.terminate { None } else { pool.reuse() };
        let waited = reused.is_none() || ex.info.attempts > 1;
        let mut connection = match reused {
            Some(connection) => connection,
            None => Box::pin(self.connect(ex, &pool, &mut out)).await?,
        };
        let Some(request_permit) =
            RequestPermit::take(&self.cluster.cluster, self.forward.priority, &pool.host)
        else {
            if !self.terminate {
                // Nothing was sent on it.
                pool.give_back(connection, true, Instant::now());
            }
            return Err(Failure::Upstream(UpstreamError::Overflow("max_requests")).into());
        };
        ex.info.upstream_connection_id = connection.id;
        ex.info.upstream_local = connection.local;
        let sent = Sent { at: if waited { Instant::now() } else { ex.now }, out };
        ex.info.times.first_upstream_tx = Some(sent.at);
        if self.terminate {
            return Ok(Answered { parsed: accepted(), connection, request_permit, sent });
        }
        ex.info.upstream_protocol = Some(Protocol::Http11);
        self.deadlines.try_connected(sent.at);
        let result = self.exchange_heads(ex, &mut connection, sent).await;
        match result {
            Ok((parsed, sent)) => Ok(Answered { parsed, connection, request_permit, sent }),
            Err((failure, answered)) => {
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
                let unprocessed = closed && connection.reused && !answered && idempotent;
                Err(Failed { failure, started: true, unprocessed })
            }
        }
    }

    /// A new connection, or the next that becomes free; the client's body goes into `out` meanwhile.
    async fn connect(
        &mut self,
        ex: &mut Exchange<'_>,
        pool: &Rc<HostPool>,
        out: &mut OutBuf,
    ) -> Result<Box<UpstreamConnection>, Failure> {
        let (priority, terminate) = (self.forward.priority, self.terminate);
        let connect = async {
            if terminate {
                pool.dedicated().await
            } else {
                pool.connection(priority).await
            }
        };
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

    fn pick(&self, ex: &Exchange<'_>) -> Result<Rc<HostPool>, UpstreamError> {
        if let Discovery::OriginalDst { header, port_override } = &self.cluster.cluster.discovery {
            let named =
                header.as_ref().zip(ex.request.as_ref()).and_then(|(key, request)| request.first(key));
            let named =
                named.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
            let Some(mut address) = named.or_else(|| ex.info.connection.restored()) else {
                self.cluster.cluster.stats().original_dst_host_invalid.increment(1);
                return Err(UpstreamError::NoHealthyHost);
            };
            if let Some(port) = port_override {
                address.set_port(*port);
            }
            return Ok(self.cluster.original_destination(address));
        }
        let context = match self.retries.as_ref().and_then(Retries::avoids_hosts) {
            Some(repicks) if !self.tried.is_empty() => PickContext { avoid: &self.tried, repicks },
            _ => PickContext { avoid: &[], repicks: 0 },
        };
        self.cluster.pick(&context)
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

    /// Watches the client and the clock.
    pub(super) fn poll_client<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        context: &mut Context<'_>,
    ) -> Poll<Result<T, Failure>> {
        if !ex.down.output.is_empty() {
            // A 100 Continue that waits for room.
            let _ = ex.down.output.poll_flush(&ex.down.stream, context);
        }
        if ex.upload.is_received() {
            let most = ex.down.buffer_limit.clamp(1, MAX_PIPELINED);
            while ex.down.input.len() < most {
                match poll_read(&ex.down.stream, &mut ex.down.input, FIRST_READ, context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Failure::Gone)),
                }
            }
        }
        if ex.down.timer.poll(self.deadlines.nearest(), context).is_ready() {
            return Poll::Ready(Err(Failure::Timeout(self.deadlines.expired(Instant::now()))));
        }
        Poll::Pending
    }
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
