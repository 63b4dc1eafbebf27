//! One try on an HTTP/2 connection: a stream, the request out, and the head of its answer back.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::attempt::{is_idempotent, Answered, Failed, Sent, MAX_INTERIM};
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
            self.copies.replay(&ex.upload, &mut out);
        }
        if ex.upload.is_received() && !self.upgrade {
            // The end of the stream goes with the head where there is no body.
            if let Out::Frames(out) = &mut out {
                out.finish(None);
            }
        }
        let reused = pool.reuse_stream();
        let waited = reused.is_none() || ex.info.attempts > 1;
        let slot = match reused {
            Some(slot) => slot,
            None => self.receive_until(ex, &mut out, pool.stream(self.forward.priority)).await?,
        };
        let Some(request_permit) = RequestPermit::take(self.upstream(), self.forward.priority, &pool.host)
        else {
            return Err(Failure::Upstream(UpstreamError::Overflow("max_requests")).into());
        };
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
        let sent = Sent { at: if waited { Instant::now() } else { ex.now }, out };
        ex.info.times.first_upstream_tx = Some(sent.at);
        self.deadlines.try_connected(sent.at);
        match self.exchange_stream_heads(ex, &mut connection, sent).await {
            Ok((parsed, sent)) => Ok(Answered { parsed, connection, request_permit, sent }),
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

    async fn exchange_stream_heads(
        &mut self,
        ex: &mut Exchange<'_>,
        lent: &mut Lent,
        mut sent: Sent,
    ) -> Result<(ParsedResponse, Sent), Failure> {
        let max_fields = self.upstream().http.max_headers_count as usize;
        let mut interim = 0u32;
        let parsed = poll_fn(|context| {
            self.poll_upload(ex, lent, &mut sent.out, context)?;
            let Lent::Http2(stream) = &mut *lent else { return Poll::Ready(Err(Failure::Protocol)) };
            loop {
                match stream.poll_head(max_fields, context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Heard::Final(parsed))) => return Poll::Ready(Ok(parsed)),
                    Poll::Ready(Ok(Heard::Interim(head))) => {
                        interim += 1;
                        if interim > MAX_INTERIM || head.status == 101 {
                            return Poll::Ready(Err(Failure::Protocol));
                        }
                        if ex.manager.proxy_100_continue {
                            ex.down.client.interim(&head, context);
                        }
                    }
                    Poll::Ready(Err(StreamError::Closed)) => return Poll::Ready(Err(Failure::Closed)),
                    Poll::Ready(Err(StreamError::Protocol(_))) => return Poll::Ready(Err(Failure::Protocol)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Reset(error))),
                }
            }
            self.poll_client(ex, context)
        })
        .await?;
        Ok((parsed, sent))
    }
}
