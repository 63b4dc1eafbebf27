//! The upstream's end of a try: a connection lent for it, or a stream of one.

use std::rc::Rc;
use std::task::Context;
use std::time::Instant;

use crate::http::h2::client::ClientStream;
use crate::http::pump::{Out, Sink, Source};
use crate::upstream::{HostPool, UpstreamConnection};

/// What a request was sent on.
pub(super) enum Lent {
    /// A connection.
    Http1(Box<UpstreamConnection>),
    /// A stream.
    Http2(Box<ClientStream>),
}

impl Lent {
    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Lent::Http2(_))
    }

    /// Where the response's body comes from.
    pub(super) fn source(&mut self) -> Source<'_> {
        match self {
            Lent::Http1(connection) => {
                let UpstreamConnection { stream, input, .. } = &mut **connection;
                Source::Wire(stream, input)
            }
            Lent::Http2(stream) => Source::Frames(&mut stream.incoming),
        }
    }

    /// Where `out` goes; `None` if it was not made for this protocol.
    pub(super) fn sink<'a>(&'a self, out: &'a mut Out) -> Option<Sink<'a>> {
        match (self, out) {
            (Lent::Http1(connection), Out::Wire(out)) => Some(Sink::Wire(&connection.stream, out)),
            (_, Out::Frames(out)) => Some(Sink::Frames(out)),
            (Lent::Http2(_), Out::Wire(_)) => None,
        }
    }

    /// Nothing more will be sent: the end of a tunnel.
    pub(super) fn end(&self, out: &mut Out, context: &mut Context<'_>) {
        match (self, out) {
            (Lent::Http1(connection), _) => {
                let _ = connection.stream.shutdown_write();
            }
            (Lent::Http2(_), Out::Frames(out)) => {
                out.finish(None);
                let _ = out.poll_flush(context);
            }
            (Lent::Http2(_), Out::Wire(_)) => {}
        }
    }

    /// The whole response has come at `now`; `reusable` says that the request went out and that the
    /// upstream keeps the connection.
    pub(super) fn give_back(self, reusable: bool, now: Instant) {
        match self {
            Lent::Http1(connection) => {
                let pool: Rc<HostPool> = connection.pool().clone();
                pool.give_back(connection, reusable, now);
            }
            // The stream ends with its handles.
            Lent::Http2(_) => {}
        }
    }
}
