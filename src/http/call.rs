//! Requests of our own to a cluster: what filters ask other services.
//!
//! Comes in: a request's head and its whole body, the cluster's slot, and how long and how much the answer may be. Goes
//! out: the whole answer, or why there is none. The cluster's pools, limits and health count as for any request. What
//! nobody has begun with is sent again, and so is what has failed where config says how often.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{ready, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::fields::Fields;
use super::h1::{self, BodyDecoder, BodyEvent, Framing, ResponseLimits};
use super::h2::client::{ClientStream, Heard, Unsent};
use super::h2::{Outgoing, Piece, StreamError};
use super::head::{RequestHead, ResponseHead};
use super::io::{poll_read, OutBuf, FIRST_READ};
use super::manager;
use super::router::retry::{covers, part};
use super::worker::Worker;
use crate::config::cluster::UpstreamProtocol;
use crate::config::route::{RequestRetries, RetryOn};
use crate::config::services::{GrpcTarget, Retries};
use crate::config::{Cluster, HeaderMutate, Known, Slot};
use crate::telemetry::stream_info::Protocol;
use crate::upstream::permit::RetryPermit;
use crate::upstream::{
    ClusterLocal, HostPool, PickContext, RequestPermit, UpstreamConnection, UpstreamError,
};

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its head.
    pub head: ResponseHead,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: Option<Fields>,
    /// How long after the call its head was there.
    pub took: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such cluster.
    #[error("the cluster does not exist")]
    NoCluster,
    /// No host, or no room for one more request.
    #[error("no host of the cluster can be asked")]
    Unavailable,
    /// No connection to a host.
    #[error("no host of the cluster can be reached")]
    Unreached,
    /// It took longer than it may.
    #[error("there was no answer in time")]
    TimedOut,
    /// It is larger than it may be.
    #[error("the answer is too large")]
    TooLarge,
    /// The connection was lost before there was an answer.
    #[error("there was no answer")]
    Lost,
    /// It broke off.
    #[error("the answer broke off")]
    Broken,
}

impl CallError {
    fn of(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::NoHealthyHost | UpstreamError::Overflow(_) => CallError::Unavailable,
            UpstreamError::Connect { .. }
            | UpstreamError::Tls { .. }
            | UpstreamError::ConnectTimeout { .. } => CallError::Unreached,
        }
    }

    /// Whether these conditions are about it.
    fn is_retriable(self, on: RetryOn) -> bool {
        let any = RetryOn::FIVE_XX.with(RetryOn::GATEWAY_ERROR).with(RetryOn::RESET);
        on.intersects(match self {
            CallError::NoCluster | CallError::Unavailable | CallError::TooLarge | CallError::Broken => {
                return false
            }
            CallError::Unreached => any.with(RetryOn::CONNECT_FAILURE).with(RetryOn::RESET_BEFORE_REQUEST),
            CallError::TimedOut | CallError::Lost => any,
        })
    }
}

/// Why one try has no answer.
enum Lost {
    /// It can be sent again: nobody has begun with it.
    Unprocessed,
    For(CallError),
}

impl From<CallError> for Lost {
    fn from(error: CallError) -> Self {
        Lost::For(error)
    }
}

/// Most tries of a request that nobody begins with.
const REPLAYS: usize = 3;

/// A request of our own.
#[derive(Debug)]
pub struct Call {
    /// Its head.
    pub request: RequestHead,
    /// Its body.
    pub body: Bytes,
    /// How long it may take altogether; `None` = as long as it takes.
    pub timeout: Option<Duration>,
    /// Most bytes of an answer's body.
    pub most: usize,
    /// When it is tried again.
    pub retries: Option<Retries>,
}

/// A request's head with only what a request must have.
pub fn head(method: &[u8], authority: &[u8], path: &[u8], scheme: &[u8]) -> RequestHead {
    let mut fields = Fields::recycled();
    let (method, path) = (fields.store(method), fields.store(path));
    let authority = fields.store(authority);
    let mut head = RequestHead::new(fields, Protocol::Http11, method, path, authority);
    head.set_scheme(scheme);
    head
}

/// Adds what every request of our own says of where it comes from.
pub fn sign(head: &mut RequestHead, worker: &Worker, timeout: Option<Duration>) {
    manager::append_forwarded_for(head, worker.own_address.as_bytes());
    sign_only(head, timeout);
}

/// As [`sign`], without this machine's address.
pub fn sign_only(head: &mut RequestHead, timeout: Option<Duration>) {
    head.fields.push_known(Known::XEnvoyInternal, b"true");
    if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
        head.fields.push_known(Known::XEnvoyExpectedRqTimeoutMs, b"");
        expect(head, timeout);
    }
}

/// Says anew how long the answer may take, where that was said.
fn expect(head: &mut RequestHead, timeout: Duration) {
    if head.fields.has(Known::XEnvoyExpectedRqTimeoutMs) {
        let mut digits = itoa::Buffer::new();
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        head.fields.set_known(Known::XEnvoyExpectedRqTimeoutMs, digits.format(millis).as_bytes());
    }
}

impl Call {
    /// Sends it to the cluster in `slot`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn send(self, worker: Rc<Worker>, slot: Arc<Slot<Cluster>>) -> Result<Answer, CallError> {
        let cluster = worker.upstreams.cluster(&slot).ok_or(CallError::NoCluster)?;
        let (timeout, began) = (self.timeout, Instant::now());
        let exchange = self.tries(&worker, &cluster, began);
        let answer = match timeout {
            None => exchange.await,
            Some(timeout) => match tokio::time::timeout(timeout, exchange).await {
                Ok(answer) => answer,
                Err(_) => {
                    cluster.cluster.stats().upstream_rq_timeout.increment(1);
                    Err(CallError::TimedOut)
                }
            },
        };
        worker.last_request.set(Instant::now());
        answer
    }

    /// As often as its retries allow.
    async fn tries(
        mut self,
        worker: &Worker,
        cluster: &Rc<ClusterLocal>,
        began: Instant,
    ) -> Result<Answer, CallError> {
        let Some(retries) = self.retries else { return self.begun(cluster, began, None).await };
        let conditions = RequestRetries::plain(retries.on, retries.most);
        let stats = cluster.cluster.stats();
        let per_try = retries.per_try(self.timeout);
        let (mut tries, mut permit) = (0, None);
        loop {
            tries += 1;
            let more = (tries <= retries.most).then_some(&conditions);
            let one = self.begun(cluster, began, more);
            let tried = match per_try {
                None => one.await,
                Some(limit) => tokio::time::timeout(limit, one).await.unwrap_or_else(|_| {
                    stats.upstream_rq_per_try_timeout.increment(1);
                    Err(CallError::TimedOut)
                }),
            };
            let again = match &tried {
                Ok(answer) => covers(&conditions, &answer.head),
                Err(error) => error.is_retriable(retries.on),
            };
            // The retry that has just ended makes room for the next.
            let retried = permit.take().is_some();
            if !again {
                if retried && tried.is_ok() {
                    stats.upstream_rq_retry_success.increment(1);
                }
                return tried;
            }
            if tries > retries.most {
                stats.upstream_rq_retry_limit_exceeded.increment(1);
                return tried;
            }
            permit = RetryPermit::take(&cluster.cluster, 0);
            if permit.is_none() {
                stats.upstream_rq_retry_overflow.increment(1);
                return tried;
            }
            stats.upstream_rq_retry.increment(1);
            stats.upstream_rq_retry_backoff_exponential.increment(1);
            tokio::time::sleep(part(retries.pause(tries), worker.random())).await;
            if let (None, Some(timeout)) = (per_try, self.timeout) {
                expect(&mut self.request, timeout.saturating_sub(began.elapsed()));
            }
        }
    }

    /// Until somebody has begun with it. An answer that `retried` is about is not counted.
    async fn begun(
        &self,
        cluster: &Rc<ClusterLocal>,
        began: Instant,
        retried: Option<&RequestRetries>,
    ) -> Result<Answer, CallError> {
        for _ in 0..REPLAYS {
            match self.once(cluster, began, retried).await {
                Err(Lost::Unprocessed) => {}
                Err(Lost::For(error)) => return Err(error),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(CallError::Lost)
    }

    async fn once(
        &self,
        cluster: &Rc<ClusterLocal>,
        began: Instant,
        retried: Option<&RequestRetries>,
    ) -> Result<Answer, Lost> {
        let pool = cluster.pick(&PickContext::default()).map_err(|_| CallError::Unavailable)?;
        let http2 = match pool.cluster().http.protocol {
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Downstream => self.request.protocol == Protocol::Http2,
            UpstreamProtocol::Http1 | UpstreamProtocol::Auto => false,
        };
        if http2 {
            self.exchange_stream(&pool, began, retried).await
        } else {
            self.exchange(&pool, began, retried).await
        }
    }

    async fn exchange(
        &self,
        pool: &Rc<HostPool>,
        began: Instant,
        retried: Option<&RequestRetries>,
    ) -> Result<Answer, Lost> {
        let cluster = pool.cluster().clone();
        let mut connection = pool.connection(0).await.map_err(|error| CallError::of(&error))?;
        // One that was kept may be closed just when it is used: then nobody has read the question.
        let closed = if connection.reused { Lost::Unprocessed } else { CallError::Lost.into() };
        let _permit = RequestPermit::take(&cluster, 0, &pool.host).ok_or(CallError::Unavailable)?;
        let mut out = OutBuf::default();
        h1::write::request_head(out.flat(), &self.request, cluster.http.http1.header_case, b"");
        if !self.body.is_empty() {
            out.push(self.body.clone());
        }
        let flushed = poll_fn(|context| out.poll_flush(&connection.stream, context)).await;
        if flushed.is_err() || !fill(&mut connection).await {
            return Err(closed);
        }
        let (answer, reusable) = self.answer(&cluster, &mut connection, began, retried).await?;
        pool.give_back(connection, reusable, Instant::now());
        Ok(answer)
    }

    async fn answer(
        &self,
        cluster: &Arc<Cluster>,
        connection: &mut UpstreamConnection,
        began: Instant,
        retried: Option<&RequestRetries>,
    ) -> Result<(Answer, bool), CallError> {
        let http = &cluster.http;
        let limits = ResponseLimits::of(http);
        let to_head = self.request.is_method(b"HEAD");
        let parsed = loop {
            let parsed = h1::parse_response(&connection.input, &limits, to_head, false);
            if let Some(parsed) = parsed.map_err(|_| CallError::Lost)? {
                connection.input.advance(parsed.consumed);
                if parsed.head.status >= 200 {
                    break parsed;
                }
                continue;
            }
            if !fill(connection).await {
                return Err(CallError::Lost);
            }
        };
        note(cluster, &parsed.head, retried);
        let took = began.elapsed();
        let mut decoder = BodyDecoder::new(parsed.framing, http.max_response_headers);
        let until_close = parsed.framing == Framing::UntilClose;
        let mut body = BytesMut::new();
        let trailers = poll_fn(|context| loop {
            match decoder.next(&mut connection.input) {
                Ok(BodyEvent::Data(length)) => {
                    if body.len() + length > self.most {
                        return Poll::Ready(Err(CallError::TooLarge));
                    }
                    body.extend_from_slice(connection.input.get(..length).unwrap_or_default());
                    connection.input.advance(length);
                }
                Ok(BodyEvent::End(trailers)) => return Poll::Ready(Ok(trailers)),
                Ok(BodyEvent::More) => {
                    let read =
                        ready!(poll_read(&connection.stream, &mut connection.input, FIRST_READ, context));
                    if !matches!(read, Ok(count) if count > 0) {
                        // The end of the connection may be that of the body.
                        return Poll::Ready(match (read, until_close) {
                            (Ok(_), true) => Ok(None),
                            _ => Err(CallError::Broken),
                        });
                    }
                }
                Err(_) => return Poll::Ready(Err(CallError::Broken)),
            }
        })
        .await?;
        let reusable = parsed.keep_alive && !until_close;
        Ok((Answer { head: parsed.head, body: body.freeze(), trailers, took }, reusable))
    }

    /// As [`Call::exchange`], over HTTP/2.
    async fn exchange_stream(
        &self,
        pool: &Rc<HostPool>,
        began: Instant,
        retried: Option<&RequestRetries>,
    ) -> Result<Answer, Lost> {
        let cluster = pool.cluster().clone();
        let slot = match pool.reuse_stream() {
            Some(slot) => slot,
            None => pool.stream(0).await.map_err(|error| CallError::of(&error))?,
        };
        let _permit = RequestPermit::take(&cluster, 0, &pool.host).ok_or(CallError::Unavailable)?;
        let mut out = Outgoing::default();
        out.push(self.body.clone());
        out.finish(None);
        let reused = slot.reused();
        let mut stream = match ClientStream::send(slot, &self.request, false, &mut out) {
            Ok(stream) => stream,
            Err(Unsent::Unspeakable) => return Err(CallError::Lost.into()),
            Err(Unsent::Stream(_)) => return Err(Lost::Unprocessed),
        };
        // What became of it is told with the answer's head.
        let _ = poll_fn(|context| out.poll_flush(context)).await;
        let max_fields = cluster.http.max_headers_count as usize;
        let parsed = loop {
            match poll_fn(|context| stream.poll_head(max_fields, context)).await {
                Ok(Heard::Final(parsed)) => break parsed,
                Ok(Heard::Interim(_)) => {}
                Err(StreamError::Refused) => return Err(Lost::Unprocessed),
                Err(StreamError::Closed) if reused => return Err(Lost::Unprocessed),
                Err(_) => return Err(CallError::Lost.into()),
            }
        };
        note(&cluster, &parsed.head, retried);
        let took = began.elapsed();
        let mut body = BytesMut::new();
        let trailers = loop {
            match poll_fn(|context| stream.incoming.poll_next(context)).await {
                Ok(Piece::Data(data)) if body.len() + data.len() > self.most => {
                    return Err(CallError::TooLarge.into());
                }
                Ok(Piece::Data(data)) => body.extend_from_slice(&data),
                Ok(Piece::End(trailers)) => break trailers,
                Err(_) => return Err(CallError::Broken.into()),
            }
        };
        Ok(Answer { head: parsed.head, body: body.freeze(), trailers, took })
    }
}

/// Reads more of an answer; false where there is none.
async fn fill(connection: &mut UpstreamConnection) -> bool {
    let UpstreamConnection { stream, input, .. } = connection;
    let count = poll_fn(|context| poll_read(stream, input, FIRST_READ, context)).await;
    matches!(count, Ok(count) if count > 0)
}

fn note(cluster: &Cluster, head: &ResponseHead, retried: Option<&RequestRetries>) {
    if retried.is_some_and(|conditions| covers(conditions, head)) {
        return;
    }
    let stats = cluster.stats();
    stats.responses.count(head.status);
    stats.upstream_rq_completed.increment(1);
}

/// Why a gRPC service gave no message: its status, or one that stands for what went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcError {
    /// The gRPC status.
    pub status: u32,
}

/// Most bytes of a message that a service answers with.
const MAX_MESSAGE: usize = 4 << 20;
const UNKNOWN: u32 = 2;
const DEADLINE_EXCEEDED: u32 = 4;
const UNAVAILABLE: u32 = 14;

/// The head of a call of `path` of the service `target`.
pub fn grpc_head(worker: &Worker, target: &GrpcTarget, path: &[u8]) -> RequestHead {
    let mut request = head(b"POST", &target.authority, path, b"http");
    request.protocol = Protocol::Http2;
    request.fields.push_known(Known::Te, b"trailers");
    if let Some(timeout) = target.timeout {
        // Eight digits at most (gRPC over HTTP/2: Timeout): what is longer than a day is as long as it takes.
        if let Ok(millis @ 0..=99_999_999) = u32::try_from(timeout.as_millis()) {
            let mut digits = itoa::Buffer::new();
            let text = [digits.format(millis).as_bytes(), b"m"].concat();
            request.fields.push_known(Known::GrpcTimeout, &text);
        }
    }
    request.set_grpc_type(b"application/grpc");
    for (key, value) in &target.metadata {
        request.append(key, value.as_bytes());
    }
    sign(&mut request, worker, None);
    request
}

/// Asks `path` of the service `target`.
///
/// # Errors
/// [`GrpcError`].
pub async fn unary<Q: Message, A: Message + Default>(
    worker: Rc<Worker>,
    target: Arc<GrpcTarget>,
    path: &'static [u8],
    question: Q,
) -> Result<A, GrpcError> {
    unary_encoded(worker, target, path, &question.encode_to_vec()).await
}

/// [`unary`] with a question that is encoded.
///
/// # Errors
/// [`GrpcError`].
pub async fn unary_encoded<A: Message + Default>(
    worker: Rc<Worker>,
    target: Arc<GrpcTarget>,
    path: &'static [u8],
    question: &[u8],
) -> Result<A, GrpcError> {
    let request = grpc_head(&worker, &target, path);
    let length = question.len();
    let mut body = BytesMut::with_capacity(length + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).map_err(|_| GrpcError { status: UNKNOWN })?);
    body.extend_from_slice(question);
    let call = Call {
        request,
        body: body.freeze(),
        timeout: target.timeout,
        most: MAX_MESSAGE,
        retries: target.retries,
    };
    let answer = call.send(worker, target.cluster.clone()).await.map_err(|error| GrpcError {
        status: match error {
            CallError::TimedOut => DEADLINE_EXCEEDED,
            CallError::TooLarge => UNKNOWN,
            _ => UNAVAILABLE,
        },
    })?;
    if answer.head.status != 200 {
        let status = super::grpc::status_of(answer.head.status).parse().unwrap_or(UNKNOWN);
        return Err(GrpcError { status });
    }
    let fields = answer.trailers.as_ref().unwrap_or(&answer.head.fields);
    let status = fields.get(Known::GrpcStatus).and_then(crate::config::matcher::number::<u32>);
    match status {
        Some(0) => {}
        status => return Err(GrpcError { status: status.unwrap_or(UNKNOWN) }),
    }
    let mut body = answer.body;
    let compressed = body.try_get_u8().ok();
    let length = body.try_get_u32().ok();
    match (compressed, length) {
        (Some(0), Some(length)) if length as usize == body.len() => {
            A::decode(body).map_err(|_| GrpcError { status: UNKNOWN })
        }
        _ => Err(GrpcError { status: UNKNOWN }),
    }
}
