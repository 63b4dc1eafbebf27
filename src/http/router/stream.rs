//! One try on an HTTP/2 connection: a stream, the request out, and the head of its answer back.

use std::rc::Rc;
use std::task::{ready, Context, Poll};
use std::time::Instant;

use super::attempt::{is_idempotent, Answered, Failed, Reading, Sent};
use super::hedge::Unanswered;
use super::lent::Lent;
use super::{Attempts, Failure};
use crate::http::exchange::Exchange;
use crate::http::h1::{ParsedResponse, Refusal};
use crate::http::h2::client::{ClientStream, Heard, Unsent};
use crate::http::h2::{Outgoing, StreamError};
use crate::http::pump::Out;
use crate::telemetry::stream_info::Protocol;
use crate::upstream::{HostPool, RequestPermit, UpstreamError};

impl Attempts<'_> {
    /// As [`Attempts::attempt`], from where the host is chosen.
    pub(super) async fn attempt_stream(
        &mut self,
        ex: &mut Exchange<'_>,
        pool: Rc<HostPool>,
    ) -> Result<Answered, Failed> {
        let mut out = Out::Frames(Outgoing::default());
        // What follows an upgrade is no body, and its end is not that of the head.
        if !self.upgrade {
            self.replay(ex, &mut out);
        }
        if ex.upload.is_passed() && !self.upgrade {
            // The end of the stream goes with the head where there is no body.
            if let Out::Frames(out) = &mut out {
                out.finish(None);
            }
        }
        let reused = pool.reuse_stream();
        let waited = reused.is_none() || ex.info.attempts > 1;
        let slot = match reused {
            Some(slot) => slot,
            None => match self.receive_until(ex, &mut out, pool.stream(self.forward.priority)).await {
                Ok(slot) => slot,
                Err(failure) => {
                    self.carry(ex, out, 0);
                    return Err(failure.into());
                }
            },
        };
        let Some(request_permit) = RequestPermit::take(self.upstream(), self.forward.priority, &pool.host)
        else {
            return Err(Failure::Upstream(UpstreamError::Overflow("max_requests")).into());
        };
        self.counts.each(|stats| stats.counters.upstream_rq_total.increment(1));
        ex.info.upstream_connection_id = slot.connection().id();
        ex.info.upstream_local = slot.connection().local();
        ex.info.upstream_tls = slot.connection().tls().cloned();
        ex.info.upstream_protocol = Some(Protocol::Http2);
        let reused = slot.reused();
        let (Some(request), Out::Frames(frames)) = (&ex.request, &mut out) else {
            return Err(Failure::Gone.into());
        };
        ex.info.upstream_wire_sent += request.fields.size() as u64;
        let stream = match ClientStream::send(slot, request, self.upgrade, frames) {
            Ok(stream) => stream,
            Err(Unsent::Unspeakable) => return Err(Failure::Refused(Refusal::TARGET).into()),
            Err(Unsent::Stream(error)) => {
                return Err(Failed { failure: Failure::Reset(error), started: true, unprocessed: true })
            }
        };
        let mut connection = Lent::Http2(Box::new(stream));
        let mut sent = Sent { at: if waited { Instant::now() } else { ex.now }, out };
        ex.info.times.first_upstream_tx = Some(sent.at);
        self.log_connected(ex);
        self.deadlines.try_connected(sent.at);
        let mut reading = Reading::default();
        match self.exchange_heads(ex, &mut connection, &mut sent, &mut reading).await {
            Ok(parsed) => Ok(Answered { parsed, connection, request_permit, sent }),
            Err(failure) if self.goes_on(&failure) => {
                Err(self.set_aside(ex, Unanswered { connection, sent, request_permit, reading }))
            }
            Err(failure) => {
                // What the upstream says that it did not begin with can be sent again, whatever it is. A
                // connection that closed under a request is as over HTTP/1.
                let unprocessed = match &failure {
                    Failure::Reset(StreamError::Refused) => true,
                    Failure::Closed => reused && is_idempotent(ex),
                    _ => false,
                };
                Err(Failed { failure, started: true, unprocessed })
            }
        }
    }

    /// As [`Attempts::poll_head`].
    pub(super) fn poll_stream_head(
        &mut self,
        ex: &mut Exchange<'_>,
        stream: &mut ClientStream,
        reading: &mut Reading,
        context: &mut Context<'_>,
    ) -> Poll<Result<ParsedResponse, Failure>> {
        let max_fields = self.upstream().http.max_headers_count as usize;
        loop {
            match ready!(stream.poll_head(max_fields, context)) {
                Ok(Heard::Final(parsed)) => return Poll::Ready(Ok(parsed)),
                Ok(Heard::Interim(head)) => {
                    if !reading.may_pass_interim() || head.status == 101 {
                        return Poll::Ready(Err(Failure::Protocol));
                    }
                    self.pass_interim(ex, &head, reading, context);
                }
                Err(StreamError::Closed) => return Poll::Ready(Err(Failure::Closed)),
                Err(StreamError::Protocol(_)) => return Poll::Ready(Err(Failure::Protocol)),
                Err(error) => return Poll::Ready(Err(Failure::Reset(error))),
            }
        }
    }
}
