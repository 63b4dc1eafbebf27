//! The client's end of a request, whatever protocol it speaks.
//!
//! Comes in: bytes of a connection, or a stream of one. Goes out: the request's body as a [`Source`], the
//! response's as a [`Sink`], and what only this end knows: how to begin, to end and to break off.

use std::io;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use super::h1;
use super::h2::server::ServerStream;
use super::head::ResponseHead;
use super::io::{poll_read, OutBuf, FIRST_READ};
use super::pump::{Sink, Source};
use crate::config::http::HeaderCase;
use crate::runtime::stream::Stream;

/// Bytes of the next requests taken while one is served, unless config allows less; a client's disconnect
/// is noticed this long.
const MAX_PIPELINED: usize = 16 * 1024;

/// An HTTP/1 connection.
#[derive(Debug)]
pub struct Wire {
    /// The socket.
    pub stream: Stream,
    /// Bytes read and not used yet.
    pub input: BytesMut,
    /// Bytes waiting to be written.
    pub output: OutBuf,
}

/// The client's end.
#[derive(Debug)]
pub enum Client {
    /// A connection, one request at a time.
    Http1(Wire),
    /// A stream of a connection.
    Http2(Box<ServerStream>),
}

impl Client {
    /// Whether it speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Client::Http2(_))
    }

    /// Where the request's body comes from.
    pub fn source(&mut self) -> Source<'_> {
        match self {
            Client::Http1(wire) => Source::Wire(&wire.stream, &mut wire.input),
            Client::Http2(stream) => Source::Frames(&mut stream.incoming),
        }
    }

    /// Nobody reads the request's body for now: as [`crate::http::h2::Incoming::gather`].
    pub fn gather(&mut self, context: &mut Context<'_>) {
        if let Client::Http2(stream) = self {
            stream.incoming.gather(context);
        }
    }

    /// Where the response's body goes.
    pub fn sink(&mut self) -> Sink<'_> {
        match self {
            Client::Http1(wire) => Sink::Wire(&wire.stream, &mut wire.output),
            Client::Http2(stream) => Sink::Frames(&mut stream.outgoing),
        }
    }

    /// A whole body that is no other than this.
    pub fn push_all(&mut self, body: Bytes) {
        match self {
            Client::Http1(wire) => wire.output.push(body),
            Client::Http2(stream) => {
                stream.outgoing.push(body);
                stream.outgoing.finish(None);
            }
        }
    }

    /// Writes what waits.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Client::Http1(wire) => wire.output.poll_flush(&wire.stream, context),
            Client::Http2(stream) => stream.outgoing.poll_flush(context),
        }
    }

    /// Writes what waits if there is anything; how that goes shows later.
    pub fn nudge(&mut self, context: &mut Context<'_>) {
        if let Client::Http1(wire) = self {
            if !wire.output.is_empty() {
                // A 100 Continue that waits for room.
                let _ = wire.output.poll_flush(&wire.stream, context);
            }
        }
    }

    /// Ready when the client has gone. `received` says that the whole request is here: then what it
    /// still sends, at most `limit` bytes of it, is the next one.
    pub fn poll_gone(&mut self, received: bool, limit: usize, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Client::Http1(wire) if received => {
                let most = limit.clamp(1, MAX_PIPELINED);
                while wire.input.len() < most {
                    match poll_read(&wire.stream, &mut wire.input, FIRST_READ, context) {
                        Poll::Pending => break,
                        Poll::Ready(Ok(count)) if count > 0 => {}
                        Poll::Ready(_) => return Poll::Ready(()),
                    }
                }
                Poll::Pending
            }
            Client::Http1(_) => Poll::Pending,
            Client::Http2(stream) => stream.poll_reset(context),
        }
    }

    /// Whether the client has ended its stream before its time, and only that.
    pub fn was_reset(&mut self) -> bool {
        match self {
            Client::Http1(_) => false,
            Client::Http2(stream) => stream.was_reset(),
        }
    }

    /// Ends a stream where its response broke off. Over HTTP/1 the close of the connection shows it.
    pub fn break_off(&mut self, reason: h2::Reason) {
        if let Client::Http2(stream) = self {
            stream.break_off(reason);
        }
    }

    /// Passes a response on that is not the last (1xx).
    pub fn interim(&mut self, head: &ResponseHead, context: &mut Context<'_>) {
        match self {
            Client::Http1(wire) => {
                h1::write::response_head(wire.output.flat(), head, HeaderCase::default(), b"", false);
                let _ = wire.output.poll_flush(&wire.stream, context);
            }
            Client::Http2(stream) => stream.interim(head),
        }
    }

    /// Lets a client send the body that it asked to send.
    pub fn send_continue(&mut self) {
        match self {
            Client::Http1(wire) => wire.output.flat().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Client::Http2(stream) => stream.send_continue(),
        }
    }

    /// Nothing more is said: the end of a tunnel.
    pub fn end(&mut self, context: &mut Context<'_>) {
        match self {
            Client::Http1(wire) => {
                let _ = wire.stream.shutdown_write();
            }
            Client::Http2(stream) => {
                stream.outgoing.finish(None);
                let _ = stream.outgoing.poll_flush(context);
            }
        }
    }
}
