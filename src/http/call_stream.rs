//! A gRPC call of our own that lasts: messages both ways on one stream.
//!
//! Comes in: messages for a service, which wait until there is a stream. Goes out: its messages, one after the other,
//! and how the call ended. Dropping it ends the stream. The cluster's pools and limits count as for any request.

use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::call::grpc_head;
use super::fields::Fields;
use super::h2::client::{ClientStream, Heard};
use super::h2::{Outgoing, Piece};
use super::head::RequestHead;
use super::worker::Worker;
use crate::config::matcher::number;
use crate::config::services::GrpcTarget;
use crate::config::{Cluster, Known};
use crate::upstream::multiplex::StreamSlot;
use crate::upstream::{PickContext, RequestPermit};

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The gRPC status; 0 if all is well.
    pub status: u32,
    /// What the service says of it.
    pub message: String,
}

/// Most bytes of a message from the service.
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes before each message: a flag and its length.
const FRAME: usize = 5;
const UNKNOWN: u32 = 2;
const UNAVAILABLE: u32 = 14;

type Opening = Pin<Box<dyn Future<Output = Option<(StreamSlot, RequestPermit, Arc<Cluster>)>>>>;

enum State {
    /// A place on a connection is waited for.
    Opening(Opening, Box<RequestHead>),
    Open(Box<Open>),
    Ended,
}

struct Open {
    stream: ClientStream,
    _permit: RequestPermit,
    cluster: Arc<Cluster>,
    headed: bool,
}

/// A call.
pub struct GrpcStream {
    state: State,
    out: Outgoing,
    input: BytesMut,
}

impl std::fmt::Debug for GrpcStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.state {
            State::Opening(..) => "GrpcStream(opening)",
            State::Open(_) => "GrpcStream(open)",
            State::Ended => "GrpcStream(ended)",
        })
    }
}

impl GrpcStream {
    /// Calls `path` of the service `target`.
    pub fn new(worker: &Rc<Worker>, target: &GrpcTarget, path: &'static [u8]) -> Self {
        let request = grpc_head(worker, target, path);
        let (worker, slot) = (worker.clone(), target.cluster.clone());
        let opening = async move {
            let cluster = worker.upstreams.cluster(&slot)?;
            let pool = cluster.pick(&PickContext::default()).ok()?;
            let slot = match pool.reuse_stream() {
                Some(slot) => slot,
                None => pool.stream(0).await.ok()?,
            };
            let cluster = pool.cluster().clone();
            let permit = RequestPermit::take(&cluster, 0, &pool.host)?;
            Some((slot, permit, cluster))
        };
        Self {
            state: State::Opening(Box::pin(opening), Box::new(request)),
            out: Outgoing::default(),
            input: BytesMut::new(),
        }
    }

    /// Sends a message, encoded.
    pub fn send(&mut self, message: &[u8]) {
        let mut framed = BytesMut::with_capacity(message.len() + FRAME);
        framed.put_u8(0);
        // No message of ours is near 4 GiB: bodies are limited long before.
        framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        framed.extend_from_slice(message);
        self.out.push(framed.freeze());
    }

    /// Bytes that are not on their way yet.
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Sends what there is room for. What is wrong with the stream shows when it is read from.
    pub fn flush(&mut self, context: &mut Context<'_>) {
        if matches!(self.state, State::Open(_)) {
            let _ = self.out.poll_flush(context);
        }
    }

    /// Nobody takes what comes for now: as [`super::h2::Incoming::gather`].
    pub fn gather(&mut self, context: &mut Context<'_>) {
        if let State::Open(open) = &mut self.state {
            open.stream.incoming.gather(context);
        }
    }

    /// Whether all that was sent is on its way.
    pub fn is_flushed(&self) -> bool {
        matches!(self.state, State::Open(_)) && self.out.is_empty()
    }

    /// Waits until all that was sent is on its way; false if the call has ended before.
    pub async fn flushed(&mut self) -> bool {
        poll_fn(|context| loop {
            match self.poll_next(context) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if self.is_flushed() => return Poll::Ready(true),
                Poll::Pending => return Poll::Pending,
            }
        })
        .await
    }

    /// Whether the call has ended, as far as is known now.
    pub async fn has_ended(&mut self) -> bool {
        poll_fn(|context| loop {
            match self.poll_next(context) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(true),
                Poll::Pending => return Poll::Ready(false),
            }
        })
        .await
    }

    /// Nothing more is sent.
    pub fn finish(&mut self, context: &mut Context<'_>) {
        self.out.finish(None);
        let _ = self.out.poll_flush(context);
    }

    /// The next message of the service, or how the call ended.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        let polled = self.poll(context);
        if let Poll::Ready(Err(_)) = &polled {
            self.state = State::Ended;
        }
        polled
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        let failed = |status| Poll::Ready(Err(Ended { status, message: String::new() }));
        if let State::Opening(opening, request) = &mut self.state {
            match opening.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return failed(UNAVAILABLE),
                Poll::Ready(Some((slot, permit, cluster))) => {
                    let Ok(stream) = ClientStream::send(slot, request, true, &mut self.out) else {
                        return failed(UNAVAILABLE);
                    };
                    let open = Open { stream, _permit: permit, cluster, headed: false };
                    self.state = State::Open(Box::new(open));
                }
            }
        }
        let State::Open(open) = &mut self.state else { return failed(UNAVAILABLE) };
        // What is wrong with the stream shows when it is read from.
        let _ = self.out.poll_flush(context);
        while !open.headed {
            match open.stream.poll_head(open.cluster.http.max_headers_count as usize, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Heard::Interim(_))) => {}
                Poll::Ready(Err(_)) => return failed(UNAVAILABLE),
                Poll::Ready(Ok(Heard::Final(parsed))) => {
                    open.headed = true;
                    let stats = open.cluster.stats();
                    stats.responses.count(parsed.head.status);
                    stats.upstream_rq_completed.increment(1);
                    if parsed.head.status != 200 {
                        return failed(super::grpc::status_of(parsed.head.status).parse().unwrap_or(UNKNOWN));
                    }
                    if parsed.head.fields.has(Known::GrpcStatus) {
                        return Poll::Ready(Err(Ended::of(Some(&parsed.head.fields))));
                    }
                }
            }
        }
        loop {
            match message(&mut self.input) {
                Err(status) => return failed(status),
                Ok(Some(message)) => return Poll::Ready(Ok(message)),
                Ok(None) => {}
            }
            match open.stream.incoming.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Piece::Data(data))) => self.input.extend_from_slice(&data),
                Poll::Ready(Ok(Piece::End(trailers))) => {
                    return Poll::Ready(Err(Ended::of(trailers.as_ref())));
                }
                Poll::Ready(Err(_)) => return failed(UNAVAILABLE),
            }
        }
    }
}

impl Ended {
    fn of(fields: Option<&Fields>) -> Self {
        let status = fields.and_then(|fields| fields.get(Known::GrpcStatus)).and_then(number::<u32>);
        let message = fields.and_then(|fields| fields.get(Known::GrpcMessage)).unwrap_or_default();
        Self { status: status.unwrap_or(UNKNOWN), message: String::from_utf8_lossy(message).into_owned() }
    }
}

/// Takes a whole message off the front.
fn message(input: &mut BytesMut) -> Result<Option<Bytes>, u32> {
    let Some((frame, rest)) = input.split_at_checked(FRAME) else { return Ok(None) };
    let [compressed, length @ ..] = frame else { return Ok(None) };
    let length = u32::from_be_bytes(length.try_into().map_err(|_| UNKNOWN)?) as usize;
    if *compressed != 0 || length > MAX_MESSAGE {
        return Err(UNKNOWN);
    }
    if rest.len() < length {
        return Ok(None);
    }
    input.advance(FRAME);
    Ok(Some(input.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let bytes = b"\0\0\0\0\x03abc\0\0\0\0\0\0\0\0\0\x01d";
        for cut in 1..bytes.len() {
            let (mut input, mut found) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(message) = message(&mut input).unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [&b"abc"[..], b"", b"d"], "{cut}");
        }
        assert_eq!(message(&mut BytesMut::from(&b"\x01\0\0\0\0"[..])), Err(UNKNOWN), "compressed");
        assert_eq!(message(&mut BytesMut::from(&b"\0\xff\0\0\0"[..])), Err(UNKNOWN), "too large");
    }
}
