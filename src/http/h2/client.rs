//! A request's stream to an upstream.

use std::rc::Rc;
use std::task::{Context, Poll};

use h2::client::ResponseFuture;
use http::Response;

use super::body::{Incoming, Outgoing};
use super::heads;
use super::StreamError;
use crate::http::h1::{Framing, ParsedResponse};
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::Protocol;
use crate::upstream::multiplex::{Multiplexed, StreamSlot};

/// A stream that a request was sent on. Dropping it resets the stream unless both sides have ended it.
#[derive(Debug)]
pub struct ClientStream {
    /// Its place on the connection.
    pub slot: StreamSlot,
    /// The response's body, once its head is there.
    pub incoming: Incoming,
    response: ResponseFuture,
    informed: bool,
    /// Nothing more will be heard before the body.
    headed: bool,
    _active: Held,
    /// What the response answers.
    asked: Asked,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        // The crate resets a stream whose handles are gone.
        if !self.headed || !self.incoming.is_over() {
            self.connection().codec().tx_reset.increment(1);
        }
    }
}

#[derive(Debug)]
struct Asked {
    to_head: bool,
    connect: bool,
    upgrade: Option<Box<[u8]>>,
}

/// What comes before a body.
#[derive(Debug)]
pub enum Heard {
    /// A head that is not the last.
    Interim(ResponseHead),
    /// The response's head.
    Final(ParsedResponse),
}

/// Why a request could not be sent.
#[derive(Debug)]
pub enum Unsent {
    /// It cannot be said in HTTP/2.
    Unspeakable,
    /// The connection takes no more requests.
    Stream(StreamError),
}

impl ClientStream {
    /// Sends a request's head on a stream, with the end of the stream on it if nothing waits in `out`;
    /// `tunnel` says that more will follow in any case. `out` is then this stream's.
    ///
    /// # Errors
    /// [`Unsent`]; nothing was sent then.
    pub fn send(
        mut slot: StreamSlot,
        head: &RequestHead,
        tunnel: bool,
        out: &mut Outgoing,
    ) -> Result<Self, Unsent> {
        use crate::config::RequestView;
        let request = heads::to_upstream(head).ok_or(Unsent::Unspeakable)?;
        let ends = !tunnel && out.is_only_end();
        let sent = slot.send_request(request, ends);
        let (response, stream) = sent.map_err(|error| Unsent::Stream(StreamError::of(&error)))?;
        out.open(stream, ends, slot.connection().account().clone());
        let connect = head.is_method(b"CONNECT");
        let asked = Asked {
            to_head: head.is_method(b"HEAD"),
            connect,
            upgrade: head.upgrade().filter(|_| !connect).map(Into::into),
        };
        let _active = Held::new(&slot.connection().codec().streams_active);
        let incoming = Incoming::default();
        Ok(Self { slot, incoming, response, informed: false, headed: false, _active, asked })
    }

    /// Its connection.
    pub fn connection(&self) -> &Rc<Multiplexed> {
        self.slot.connection()
    }

    /// The next head. `max_fields` bounds its fields.
    pub fn poll_head(
        &mut self,
        max_fields: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<Heard, StreamError>> {
        if !self.informed {
            match self.response.poll_informational(context) {
                Poll::Ready(Some(Ok(response))) => {
                    let (parts, ()) = response.into_parts();
                    let head = ResponseHead::new(
                        heads::fields_of(&parts.headers),
                        parts.status.as_u16(),
                        Protocol::Http2,
                    );
                    return Poll::Ready(Ok(Heard::Interim(head)));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.headed = true;
                    return Poll::Ready(Err(StreamError::of(&error)));
                }
                Poll::Ready(None) => self.informed = true,
                Poll::Pending => {}
            }
        }
        let response = std::future::Future::poll(std::pin::Pin::new(&mut self.response), context);
        self.headed |= response.is_ready();
        match response {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(StreamError::of(&error))),
            Poll::Ready(Ok(response)) => Poll::Ready(self.answered(response, max_fields)),
        }
    }

    fn answered(
        &mut self,
        response: Response<h2::RecvStream>,
        max_fields: usize,
    ) -> Result<Heard, StreamError> {
        const BROKEN: StreamError = StreamError::Protocol(h2::Reason::PROTOCOL_ERROR);
        let (parts, body) = response.into_parts();
        if parts.headers.len() > max_fields {
            return Err(BROKEN);
        }
        let Asked { to_head, connect, upgrade } = &self.asked;
        let ended = body.is_end_stream();
        let (head, framing) =
            heads::response(&parts, ended, *to_head, *connect, upgrade.as_deref()).map_err(|_| BROKEN)?;
        // Nobody asked for another protocol.
        if framing != Framing::Tunnel && head.status == 101 {
            return Err(BROKEN);
        }
        self.incoming = Incoming::new(body);
        Ok(Heard::Final(ParsedResponse { head, consumed: 0, framing, keep_alive: true }))
    }
}
