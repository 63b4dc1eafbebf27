//! Mirrored requests: sent like others, their answers read and forgotten.
//!
//! Comes in: a request's head and, by way of a [`Feed`], its body while the client sends it. Nothing
//! goes out: the request that is mirrored neither waits for its mirror nor learns how it fared.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{ready, Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::health::heard;
use super::report;
use super::request::framing_line;
use crate::config::cluster::UpstreamProtocol;
use crate::config::RequestView;
use crate::http::fields::Fields;
use crate::http::h1::write::{chunk_open, chunked_end};
use crate::http::h1::{self, BodyDecoder, BodyEvent, ResponseLimits};
use crate::http::h2::client::{ClientStream, Heard};
use crate::http::h2::{Outgoing, Piece};
use crate::http::head::RequestHead;
use crate::http::io::{poll_read, OutBuf, FIRST_READ};
use crate::http::trace::mirror::{MirrorSpan, Mirrored};
use crate::http::worker::Worker;
use crate::telemetry::stream_info::Protocol;
use crate::upstream::{ClusterLocal, HostPool, PickContext, RequestPermit, UpstreamConnection};

/// A body on its way from the request to its mirror.
#[derive(Debug, Default)]
pub(super) struct Feed {
    pieces: RefCell<VecDeque<Bytes>>,
    waiting: Cell<usize>,
    state: Cell<State>,
    trailers: RefCell<Option<Fields>>,
    reader: RefCell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// All pieces are here.
    Ended,
    /// The rest will not come.
    Cut,
}

impl Feed {
    /// Adds a piece. False, and the mirror is given up, when more than `limit` bytes would wait: a slow
    /// mirror must not hold up the request, nor fill the memory.
    pub(super) fn push(&self, piece: Bytes, limit: usize) -> bool {
        if self.state.get() != State::Open {
            return false;
        }
        let waiting = self.waiting.get() + piece.len();
        if waiting > limit {
            self.cut();
            return false;
        }
        self.waiting.set(waiting);
        self.pieces.borrow_mut().push_back(piece);
        self.wake();
        true
    }

    /// The body is complete.
    pub(super) fn end(&self, trailers: Option<Fields>) {
        if self.state.get() == State::Open {
            *self.trailers.borrow_mut() = trailers;
            self.state.set(State::Ended);
            self.wake();
        }
    }

    /// The rest of the body will not come.
    pub(super) fn cut(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Cut);
            self.pieces.borrow_mut().clear();
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }

    fn watch(&self, context: &Context<'_>) {
        *self.reader.borrow_mut() = Some(context.waker().clone());
    }

    fn take(&self) -> Option<Bytes> {
        let piece = self.pieces.borrow_mut().pop_front()?;
        self.waiting.set(self.waiting.get().saturating_sub(piece.len()));
        Some(piece)
    }
}

/// A mirrored request.
pub(super) struct Shadow {
    pub(super) worker: Rc<Worker>,
    pub(super) cluster: Rc<ClusterLocal>,
    pub(super) span: Option<Box<MirrorSpan>>,
    /// What comes of it.
    pub(super) said: Mirrored,
    pub(super) request: RequestHead,
    /// The body is written chunked, with its trailers if `trailers`.
    pub(super) chunked: bool,
    pub(super) trailers: bool,
    pub(super) feed: Rc<Feed>,
    /// How long the answer may take after the request's end.
    pub(super) patience: Duration,
}

impl Shadow {
    /// Sends it. Nobody is told when that fails.
    pub(super) async fn send(mut self) {
        let _ = self.exchange().await;
        // Nothing more is to be kept for it.
        self.feed.cut();
        if let Some(span) = self.span.take() {
            span.end(&self.worker, &self.cluster, &self.said);
        }
    }

    async fn exchange(&mut self) -> Option<()> {
        let pool = self.cluster.pick(&PickContext::default()).ok()?;
        self.said.host = Some(pool.host.clone());
        let cluster = pool.cluster();
        let http2 = match cluster.http.protocol {
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Downstream => self.request.protocol == Protocol::Http2,
            UpstreamProtocol::Http1 | UpstreamProtocol::Auto => false,
        };
        if http2 {
            return self.exchange_stream(&pool).await;
        }
        let connection = tokio::time::timeout(self.patience, pool.connection(0)).await;
        let mut connection = connection.ok()?.ok()?;
        let _permit = RequestPermit::take(cluster, 0, &pool.host)?;
        self.said.protocol = Some(Protocol::Http11);
        let mut out = OutBuf::default();
        let extra = framing_line(&self.request, self.chunked, false);
        h1::write::request_head(out.flat(), &self.request, cluster.http.http1.header_case, extra);
        let mut framed = false;
        // As long as the client sends, the request itself sets the limits.
        poll_fn(|context| {
            let sent = self.poll_send(&connection, &mut out, &mut framed, context);
            if sent.is_pending() && self.feed.state.get() == State::Ended {
                return Poll::Ready(Some(()));
            }
            sent
        })
        .await?;
        let patience = self.patience;
        let rest = async {
            poll_fn(|context| self.poll_send(&connection, &mut out, &mut framed, context)).await?;
            self.answer(&mut connection).await
        };
        let reusable = tokio::time::timeout(patience, rest).await.ok()??;
        let now = Instant::now();
        self.worker.last_request.set(now);
        pool.give_back(connection, reusable, now);
        Some(())
    }

    /// As [`Shadow::exchange`], over HTTP/2.
    async fn exchange_stream(&mut self, pool: &Rc<HostPool>) -> Option<()> {
        let cluster = pool.cluster();
        let slot = tokio::time::timeout(self.patience, pool.stream(0)).await.ok()?.ok()?;
        let _permit = RequestPermit::take(cluster, 0, &pool.host)?;
        self.said.protocol = Some(Protocol::Http2);
        let mut out = Outgoing::default();
        if self.feed.state.get() == State::Ended && self.feed.pieces.borrow().is_empty() {
            out.finish(self.feed.trailers.borrow().as_ref());
        }
        let mut stream = ClientStream::send(slot, &self.request, false, &mut out).ok()?;
        // As long as the client sends, the request itself sets the limits.
        poll_fn(|context| {
            let sent = self.poll_frames(&mut out, context);
            if sent.is_pending() && self.feed.state.get() == State::Ended {
                return Poll::Ready(Some(()));
            }
            sent
        })
        .await?;
        let patience = self.patience;
        let rest = async {
            poll_fn(|context| self.poll_frames(&mut out, context)).await?;
            let max_fields = cluster.http.max_headers_count as usize;
            let parsed = loop {
                match poll_fn(|context| stream.poll_head(max_fields, context)).await.ok()? {
                    Heard::Final(parsed) => break parsed,
                    Heard::Interim(_) => {}
                }
            };
            heard(cluster, &pool.host, &self.request, &parsed.head);
            report::heard(cluster, &pool.host, &parsed.head.fields);
            let stats = cluster.stats();
            stats.responses.count(parsed.head.status);
            stats.upstream_rq_completed.increment(1);
            self.said.status = parsed.head.status;
            while let Piece::Data(_) = poll_fn(|context| stream.incoming.poll_next(context)).await.ok()? {}
            Some(())
        };
        tokio::time::timeout(patience, rest).await.ok()??;
        self.worker.last_request.set(Instant::now());
        Some(())
    }

    /// Hands over what the feed has. Ready when all is out, with `None` when that cannot be.
    fn poll_frames(&self, out: &mut Outgoing, context: &mut Context<'_>) -> Poll<Option<()>> {
        self.feed.watch(context);
        loop {
            if self.feed.state.get() == State::Cut {
                return Poll::Ready(None);
            }
            if ready!(out.poll_flush(context)).is_err() {
                return Poll::Ready(None);
            }
            match self.feed.take() {
                Some(piece) => out.push(piece),
                None if self.feed.state.get() == State::Open => return Poll::Pending,
                None => {
                    out.finish(self.feed.trailers.borrow().as_ref());
                    return out.poll_flush(context).map(Result::ok);
                }
            }
        }
    }

    /// Writes what the feed has. Ready when all is out, with `None` when that cannot be.
    fn poll_send(
        &self,
        connection: &UpstreamConnection,
        out: &mut OutBuf,
        framed: &mut bool,
        context: &mut Context<'_>,
    ) -> Poll<Option<()>> {
        self.feed.watch(context);
        loop {
            if self.feed.state.get() == State::Cut {
                return Poll::Ready(None);
            }
            if ready!(out.poll_flush(&connection.stream, context)).is_err() {
                return Poll::Ready(None);
            }
            match self.feed.take() {
                Some(piece) if self.chunked && !piece.is_empty() => {
                    chunk_open(out.flat(), piece.len());
                    out.push(piece);
                    out.flat().extend_from_slice(b"\r\n");
                }
                Some(piece) => out.push(piece),
                None if self.feed.state.get() == State::Open => return Poll::Pending,
                None if self.chunked && !*framed => {
                    let trailers = self.feed.trailers.borrow();
                    chunked_end(out.flat(), trailers.as_ref().filter(|_| self.trailers));
                    *framed = true;
                }
                None => return Poll::Ready(Some(())),
            }
        }
    }

    /// Reads the answer away. Says whether the connection can be used again.
    async fn answer(&mut self, connection: &mut UpstreamConnection) -> Option<bool> {
        let cluster = connection.pool().cluster().clone();
        let http = &cluster.http;
        let limits = ResponseLimits::of(http);
        let to_head = self.request.method() == b"HEAD";
        let parsed = loop {
            if let Some(parsed) = h1::parse_response(&connection.input, &limits, to_head, false).ok()? {
                connection.input.advance(parsed.consumed);
                if parsed.head.status >= 200 {
                    break parsed;
                }
                continue;
            }
            let UpstreamConnection { stream, input, .. } = connection;
            let count = poll_fn(|context| poll_read(stream, input, FIRST_READ, context)).await;
            if !matches!(count, Ok(count) if count > 0) {
                return None;
            }
        };
        heard(&cluster, &connection.pool().host, &self.request, &parsed.head);
        report::heard(&cluster, &connection.pool().host, &parsed.head.fields);
        let stats = cluster.stats();
        stats.responses.count(parsed.head.status);
        stats.upstream_rq_completed.increment(1);
        self.said.status = parsed.head.status;
        let mut decoder = BodyDecoder::new(parsed.framing, http.max_response_headers);
        let complete = poll_fn(|context| loop {
            match decoder.next(&mut connection.input) {
                Ok(BodyEvent::Data(length)) => connection.input.advance(length),
                Ok(BodyEvent::End(_)) => return Poll::Ready(true),
                Ok(BodyEvent::More) => {
                    let read =
                        ready!(poll_read(&connection.stream, &mut connection.input, FIRST_READ, context));
                    if !matches!(read, Ok(count) if count > 0) {
                        return Poll::Ready(false);
                    }
                }
                Err(_) => return Poll::Ready(false),
            }
        })
        .await;
        Some(complete && parsed.keep_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_that_is_not_read_is_given_up_at_the_limit() {
        let feed = Feed::default();
        assert!(feed.push(Bytes::from_static(b"12345"), 8));
        assert!(!feed.push(Bytes::from_static(b"6789"), 8));
        assert_eq!((feed.state.get(), feed.take()), (State::Cut, None));
        assert!(!feed.push(Bytes::from_static(b"1"), 8));
        feed.end(None);
        assert_eq!(feed.state.get(), State::Cut);
    }

    #[test]
    fn what_was_read_makes_room() {
        let feed = Feed::default();
        for _ in 0..100 {
            assert!(feed.push(Bytes::from_static(b"12345"), 8));
            assert_eq!(feed.take().as_deref(), Some(&b"12345"[..]));
        }
        feed.end(None);
        assert_eq!(feed.state.get(), State::Ended);
    }
}
