//! The streams of a client's connection: each a request of its own.

use std::rc::Rc;
use std::task::{ready, Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};

use super::connections::Connection;
use super::seats::{Job, Seat};
use crate::config::http::HttpConnectionManager;
use crate::http::client::Client;
use crate::http::connection::Downstream;
use crate::http::exchange::{Exchange, Next};
use crate::http::h2::body::{Incoming, Outgoing};
use crate::http::h2::guard::Account;
use crate::http::h2::heads::{self, Bad, Parsed};
use crate::http::head::ResponseHead;
use crate::http::timer::LazyTimer;
use crate::http::worker::Worker;
use crate::telemetry::stats::Held;

/// A client's stream.
#[derive(Debug)]
pub struct ServerStream {
    /// The request's body.
    pub incoming: Incoming,
    /// The response's body.
    pub outgoing: Outgoing,
    respond: SendResponse<Bytes>,
    begun: bool,
    reset: bool,
    connection: Rc<Connection>,
}

impl ServerStream {
    /// Ready when the client has ended the stream before its time.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_end(context));
        self.reset = true;
        Poll::Ready(())
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.begun {
            self.outgoing.poll_reset(context)
        } else {
            self.respond.poll_reset(context).map(|reset| reset.is_ok())
        }
    }

    /// Whether the client has ended the stream before its time, while the connection goes on.
    pub fn was_reset(&mut self) -> bool {
        let reset = self.poll_end(&mut Context::from_waker(Waker::noop()));
        self.reset |= reset.is_ready();
        reset == Poll::Ready(true)
    }

    /// Passes a 1xx on.
    pub fn interim(&mut self, head: &ResponseHead) {
        if head.status != 101 {
            // Fails only on a stream that has ended; that shows elsewhere.
            let _ = self.respond.send_informational(heads::to_client(head));
        }
    }

    /// Lets the client send its body.
    pub fn send_continue(&mut self) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        let _ = self.respond.send_informational(response);
    }

    /// Begins the response; `ends` says that nothing follows its head.
    pub fn begin(&mut self, head: &ResponseHead, ends: bool) {
        match self.respond.send_response(heads::to_client(head), ends) {
            Ok(stream) => {
                self.outgoing.open(stream, ends, self.connection.account.clone());
                self.begun = true;
            }
            // The stream has ended; so has the request.
            Err(_) => self.outgoing.fail(),
        }
    }

    /// Asks the client to open no more streams on this connection.
    pub fn drain(&self) -> bool {
        let first = !self.connection.drain.replace(true);
        self.connection.wake();
        first
    }

    /// Ends the stream where its response broke off.
    pub fn break_off(&mut self, reason: Reason) {
        if self.begun {
            self.outgoing.reset(reason);
        } else {
            self.respond.send_reset(reason);
        }
    }
}

/// Heads of all streams of a connection may take so much more than the client ever sent. A client that opens many
/// streams with heads that are large only once they are decoded, and lets none of them end, gets no more of them.
const HEADS_HELD: u64 = 2 << 20;
/// A head below this is never too much: a whole compression table of the default size may be in it.
const SMALL_HEAD: u64 = 4 * 1024;

/// What a head takes.
struct HeadRoom(Rc<Account>, u64);

impl HeadRoom {
    fn take(account: &Rc<Account>, size: usize) -> Option<Self> {
        let size = size as u64;
        let held = account.held.get() + size;
        if held > HEADS_HELD + account.received.get() && size > SMALL_HEAD {
            return None;
        }
        account.held.set(held);
        Some(Self(account.clone(), size))
    }
}

impl Drop for HeadRoom {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get().saturating_sub(self.1));
    }
}

/// A request whose head is good, and has room.
pub(super) struct Arrived {
    parsed: Parsed,
    room: HeadRoom,
    // Boxed here: what is moved into a task is part of it to its end.
    stream: Box<ServerStream>,
    start: Instant,
}

/// Looks at the head of a request that has just come; one that is not served is reset. Before its task is made:
/// thousands may come at once, most of them for nothing.
pub(super) fn arrive(
    worker: &Worker,
    manager: &HttpConnectionManager,
    connection: &Rc<Connection>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Option<Arrived> {
    let (parts, body) = request.into_parts();
    let start = Instant::now();
    let codec = &manager.http2_stats;
    let parsed = heads::request(&parts, body.is_end_stream(), &manager.limits, || worker.random());
    drop(parts);
    let reason = match parsed {
        Ok(parsed) => match HeadRoom::take(&connection.account, parsed.head.fields.size()) {
            Some(room) => {
                let stream = ServerStream {
                    incoming: Incoming::new(body),
                    outgoing: Outgoing::default(),
                    respond,
                    begun: false,
                    reset: false,
                    connection: connection.clone(),
                };
                return Some(Arrived { parsed, room, stream: Box::new(stream), start });
            }
            None => {
                codec.header_overflow.increment(1);
                Reason::REFUSED_STREAM
            }
        },
        Err(bad) => {
            match bad {
                Bad::Malformed(_) => codec.rx_messaging_error.increment(1),
                Bad::TooManyFields => codec.header_overflow.increment(1),
                Bad::Underscore => codec.requests_rejected_with_underscores_in_headers.increment(1),
            }
            manager.stats.downstream_rq_total.increment(1);
            manager.stats.downstream_rq_http2_total.increment(1);
            manager.stats.downstream_rq_tx_reset.increment(1);
            Reason::PROTOCOL_ERROR
        }
    };
    codec.tx_reset.increment(1);
    respond.send_reset(reason);
    drop((body, respond));
    connection.stream_ended(LazyTimer::default(), true, start, start);
    None
}

/// Serves one stream after another. All in one body: a future that is made elsewhere is copied into its place.
pub(super) async fn serve(seat: Rc<Seat>) {
    while let Some(Job { worker, manager, arrived, buffer_limit, requests }) = seat.next().await {
        let Arrived { parsed, room: _room, stream, start } = arrived;
        let Parsed { head, framing, expects_continue, dropped } = parsed;
        let codec = &manager.http2_stats;
        let connection = stream.connection.clone();
        let active = Held::new(&codec.streams_active);
        if dropped > 0 {
            codec.dropped_headers_with_underscores.increment(dropped);
        }
        let mut down = Downstream {
            client: Client::Http2(stream),
            timer: connection.timer(),
            info: connection.info.clone(),
            buffer_limit,
            requests,
            idle_since: start,
            aged: false,
        };
        let next = {
            let mut exchange = Exchange::new(&worker, &manager, &mut down, start);
            let stopped = exchange.arrive(head, framing, expects_continue);
            exchange.run_stream(stopped).await
        };
        let Downstream { client, timer, idle_since: end, .. } = down;
        let mut reset = false;
        if let Client::Http2(mut stream) = client {
            reset = stream.reset;
            match next {
                Next::Keep => {}
                // Not where it was the connection that ended.
                Next::Abort if stream.was_reset() => codec.rx_reset.increment(1),
                Next::Abort => {}
                // An answer that broke off, with a head or without one.
                Next::Reset => {
                    codec.tx_reset.increment(1);
                    stream.break_off(Reason::INTERNAL_ERROR);
                }
                // What the client was told is whole; the rest of its request is not waited for.
                Next::Close => {}
            }
        }
        connection.stream_ended(timer, reset, start, end);
        drop(active);
        if !worker.seats.keep(&seat) {
            return;
        }
    }
}
