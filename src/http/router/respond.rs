//! The response on its way to the client.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::attempt::{Answered, Sent};
use super::consult::{send_collected, Consulted, Stopped};
use super::deadlines::{whole_millis, Expired};
use super::fail::timeout_details;
use super::lent::Lent;
use super::{tunnel, Attempts, End, Ended, Failure};
use crate::config::Known;
use crate::http::exchange::{Exchange, Reply};
use crate::http::filters::{self, Turn};
use crate::http::h1::{Framing, ParsedResponse};
use crate::http::h2::StreamError;
use crate::http::head::ResponseHead;
use crate::http::io::OutBuf;
use crate::http::manager;
use crate::http::pump::{Out, Pump, PumpError, Seen};
use crate::telemetry::stream_info::{Protocol, ResponseFlags};

impl Attempts<'_> {
    /// Passes the response on.
    pub(super) async fn respond(&mut self, ex: &mut Exchange<'_>, answered: Answered) -> Ended {
        if let Some(policy) = &self.forward.redirects {
            if self.redirect(ex, policy, &answered.parsed) {
                return self.leave(ex, answered);
            }
        }
        let Answered { parsed, mut connection, request_permit, mut sent } = answered;
        let now = Instant::now();
        ex.now = now;
        let ParsedResponse { mut head, framing, keep_alive, consumed } = parsed;
        // Over HTTP/2 a head is counted as it is without compression.
        let head_size = if connection.is_http2() { head.fields.size() } else { consumed };
        ex.info.upstream_wire_received += head_size as u64;
        self.note_head_size(head_size as u64);
        self.copies.stop();
        if !keep_alive {
            self.upstream().stats().upstream_cx_close_notify.increment(1);
        }
        ex.info.times.first_upstream_rx = Some(now);
        ex.info.details = Cow::Borrowed("via_upstream");
        // Formats of added headers may ask for it.
        ex.info.response_code = head.status;
        let took = now.saturating_duration_since(sent.at);
        self.charge(ex, head.status, took);
        self.deadlines.response_started();
        let connect = ex.request.as_ref().is_some_and(|request| request.is_method(b"CONNECT"));
        if self.upgrade && !connect && head.status / 100 == 2 {
            // Neither accepted nor refused: the client could not tell where the other protocol begins.
            ex.info.details = Cow::Borrowed("websocket_handshake_unsuccessful");
            ex.close = true;
            return Reply::new(head.status, "websocket_handshake_unsuccessful").into();
        }
        let suppress = ex.manager.router.suppress_envoy_headers;
        if !suppress && !self.upgrade && ex.upload.is_passed() {
            let took = whole_millis(took);
            let mut digits = itoa::Buffer::new();
            head.fields.set_known(Known::XEnvoyUpstreamServiceTime, digits.format(took).as_bytes());
        }
        if self.forward.include_attempt_count_in_response {
            let mut digits = itoa::Buffer::new();
            head.fields.set_known(Known::XEnvoyAttemptCount, digits.format(ex.info.attempts).as_bytes());
        }
        if let Some(weighted) = self.weighted {
            weighted.response_headers.apply_to_response(
                &mut head,
                &ex.info,
                ex.request.as_ref().map(|r| r as _),
            );
        }
        self.route.response_headers.apply_to_response(
            &mut head,
            &ex.info,
            ex.request.as_ref().map(|r| r as _),
        );
        if let Some(hashed) = &self.hashed {
            for cookie in &hashed.cookies {
                head.fields.push(b"set-cookie", cookie);
            }
        }
        let to_head = ex.request.as_ref().is_some_and(|request| request.is_method(b"HEAD"));
        if head.status == 204 {
            head.fields.remove_known(Known::ContentLength);
        }
        let empty = framing.is_empty();
        let (mut collected, mut begun) = (None, None);
        if ex.filters.is_some() {
            let mut encoding = filters::on_response(ex, empty);
            while let Some(turn) = encoding.next(ex, &mut head) {
                let session = match turn {
                    Turn::Ask(session) => session,
                    Turn::Reply(reply) => return Ended::Reply(reply),
                    Turn::Again => {
                        if empty {
                            connection.give_back(keep_alive && sent.out.is_empty(), now);
                        } else {
                            self.count_given_up(ex);
                        }
                        return End::Again.into();
                    }
                };
                let mut asked = Consulted {
                    head: &mut head,
                    framing,
                    connection: &mut connection,
                    sent: &mut sent,
                    body: &mut collected,
                    download: &mut begun,
                    ends: &mut encoding.ends,
                };
                match Box::pin(self.consult(ex, &session, &mut asked)).await {
                    Ok(()) => {}
                    Err(Stopped::Reply(reply)) => return Ended::Reply(reply),
                    Err(Stopped::Failed(failure)) => {
                        self.broke_off(ex, &failure);
                        return self.fail(ex, failure);
                    }
                }
            }
            if let Some(collected) = collected {
                let keep_alive = keep_alive && collected.whole;
                let idle = ex.upload.is_passed() && sent.out.is_empty();
                let end = Box::pin(send_collected(ex, head, collected)).await;
                connection.give_back(keep_alive && idle && end == End::Done, ex.now);
                return end.into();
            }
            if !empty && filters::collects_response(ex) {
                return self.bridge(ex, head, framing, begun, connection, sent).await;
            }
        }
        if empty && !to_head && !ex.down.client.is_http2() && !matches!(head.status, 204 | 304) {
            // What HTTP/2 says with the end of the stream.
            if connection.is_http2() && !head.fields.has(Known::ContentLength) {
                head.fields.push_known(Known::ContentLength, b"0");
            }
        }
        manager::finish_response(ex.manager, &mut head, ex.request.as_ref(), true, ex.worker, now);
        if framing == Framing::Tunnel {
            ex.start_response(head, None, false, now);
            return Box::pin(tunnel::run(ex, self, connection, sent.out)).await.into();
        }
        let http_10 = ex.request.as_ref().is_some_and(|request| request.protocol == Protocol::Http10);
        let chunked = match framing {
            // Over HTTP/2 a length of nothing may come before the end of the stream does.
            Framing::Chunked | Framing::UntilClose if !connection.is_http2() => true,
            Framing::Chunked | Framing::UntilClose | Framing::Length(_) => {
                !head.fields.has(Known::ContentLength)
            }
            Framing::Empty => {
                to_head && !head.fields.has(Known::ContentLength) && head.status != 204 && head.status != 304
            }
            Framing::Tunnel => false,
        };
        if self.upgrade {
            ex.close = true;
        }
        ex.start_response(head, Some(chunked), empty || to_head, now);
        let write_chunked = chunked && !http_10 && !to_head;
        // An end that comes too early shows.
        let self_delimiting = write_chunked || !chunked;
        let trailers = self.takes_trailers(&connection);
        let mut download = match begun {
            Some(begun) => *begun,
            None => Pump::new(framing, write_chunked, trailers, self.upstream().http.max_response_headers)
                .unseen(),
        };
        download.set_chunked(write_chunked);
        download.keep_trailers(ex.down.client.is_http2() || ex.manager.http1.enable_trailers);
        if ex.filters.is_some() {
            filters::on_download(ex, &mut download);
        }
        download.limit(ex.down.buffer_limit.min(self.upstream().per_connection_buffer_limit));
        let result = self.pass_body(ex, &mut download, &mut connection, &mut sent.out).await;
        ex.info.bytes_sent += download.passed();
        ex.info.upstream_wire_received += download.bytes;
        ex.trailers = download.received_trailers.take();
        if let Some(trailers) = &ex.trailers {
            self.note_load(ex.info.host.as_ref(), trailers);
        }
        drop(request_permit);
        if let Err(failure) = &result {
            self.broke_off(ex, failure);
        }
        let end = match result {
            Ok(()) => {
                let end = ex.now;
                ex.info.times.last_upstream_rx = Some(end);
                let request_sent = ex.upload.is_passed() && sent.out.is_empty();
                connection.give_back(keep_alive && request_sent, end);
                End::Done
            }
            Err(Failure::Gone) => {
                self.count_given_up(ex);
                End::Gone
            }
            Err(Failure::Timeout(expired)) => {
                match expired {
                    Expired::Idle => ex.info.flags.insert(ResponseFlags::SI),
                    Expired::Route | Expired::PerTry | Expired::PerTryIdle => {
                        ex.info.flags.insert(ResponseFlags::UT);
                    }
                    Expired::TryDuration => ex.info.flags.insert(ResponseFlags::UMSDR),
                    Expired::Duration | Expired::Request => {}
                }
                ex.info.details = Cow::Borrowed(timeout_details(expired));
                self.count_timeout(ex, expired);
                self.count_given_up(ex);
                cut_off(ex, self_delimiting).await
            }
            Err(Failure::Refused(refusal)) => {
                ex.info.flags.insert(ResponseFlags::DPE);
                ex.info.details = Cow::Borrowed(refusal.details);
                End::Broken
            }
            Err(Failure::Answer(reply)) => {
                // It is too late for another answer.
                ex.info.details = reply.details;
                cut_off(ex, self_delimiting).await
            }
            Err(Failure::Reset(error)) => {
                self.count_stream(error);
                let (flag, details) = match error {
                    StreamError::Closed => (ResponseFlags::UC, "connection_termination"),
                    StreamError::Refused => (ResponseFlags::UR, "remote_refused_stream_reset"),
                    StreamError::Reset(h2::Reason::PROTOCOL_ERROR) => (ResponseFlags::UPE, "protocol_error"),
                    StreamError::Reset(_) => (ResponseFlags::UR, "remote_reset"),
                    StreamError::Protocol(_) => (ResponseFlags::UPE, "protocol_error"),
                };
                ex.info.flags.insert(flag);
                ex.info.details = Cow::Owned(format!("upstream_reset_after_response_started{{{details}}}"));
                cut_off(ex, self_delimiting).await
            }
            Err(failure) => {
                self.upstream().stats().upstream_cx_protocol_error.increment(1);
                if let (Failure::Closed, Lent::Http1(connection)) = (&failure, &connection) {
                    connection.note_remote_close();
                }
                ex.info.flags.insert(ResponseFlags::UPE);
                ex.info.details = Cow::Borrowed("upstream_reset_after_response_started{protocol_error}");
                cut_off(ex, self_delimiting).await
            }
        };
        end.into()
    }

    /// Collects the response and puts gRPC's status into its head, for a client of HTTP/1.
    async fn bridge(
        &mut self,
        ex: &mut Exchange<'_>,
        mut head: ResponseHead,
        framing: Framing,
        begun: Option<Box<Pump>>,
        mut connection: Lent,
        mut sent: Sent,
    ) -> Ended {
        let cluster = self.upstream().clone();
        let limit = ex.down.buffer_limit.min(cluster.per_connection_buffer_limit);
        let mut body = match self.take_whole(ex, framing, begun, &mut connection, &mut sent, limit).await {
            Ok(Some(body)) => body,
            failed => {
                let failure = failed.err().unwrap_or(Failure::Protocol);
                self.broke_off(ex, &failure);
                return self.fail(ex, failure);
            }
        };
        let bridged = filters::bridged(ex);
        filters::grpc_http1_bridge::complete(&mut head, ex.trailers.as_ref(), &mut body, bridged);
        let now = Instant::now();
        ex.now = now;
        ex.info.times.last_upstream_rx = Some(now);
        manager::finish_response(ex.manager, &mut head, ex.request.as_ref(), true, ex.worker, now);
        connection.give_back(ex.upload.is_passed() && sent.out.is_empty(), now);
        ex.start_response(head, Some(false), body.is_empty(), now);
        ex.info.bytes_sent += body.len() as u64;
        ex.down.client.push_all(body.into());
        match ex.flush().await {
            Ok(()) => End::Done.into(),
            Err(()) => End::Gone.into(),
        }
    }

    /// Whether an upstream's trailers count.
    pub(super) fn takes_trailers(&self, connection: &Lent) -> bool {
        connection.is_http2() || self.upstream().http.http1.enable_trailers
    }

    /// Takes in all of a response's body, after what filters have done to it so far. `None` where it is larger than
    /// `limit` bytes. `begun` is its way so far, if it is on it.
    pub(super) async fn take_whole(
        &mut self,
        ex: &mut Exchange<'_>,
        framing: Framing,
        begun: Option<Box<Pump>>,
        connection: &mut Lent,
        sent: &mut Sent,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let cluster = self.upstream().clone();
        let mut download = begun.map_or_else(
            || Pump::new(framing, false, self.takes_trailers(connection), cluster.http.max_response_headers),
            |begun| *begun,
        );
        filters::on_download(ex, &mut download);
        let mut body = Vec::new();
        let fits = poll_fn(|context| {
            self.poll_upload(ex, connection, &mut sent.out, context)?;
            let mut shelf = Out::Wire(OutBuf::default());
            let each = |piece: Seen<'_>| match piece {
                Seen::Bytes(bytes) => body.extend_from_slice(bytes),
                Seen::Shared(bytes) => body.extend_from_slice(bytes),
            };
            let polled = download.poll_receive(connection.source(), &mut shelf, each, context);
            if std::mem::take(&mut download.progress) {
                self.deadlines.touch();
            }
            if body.len() > limit {
                return Poll::Ready(Ok(false));
            }
            match polled {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(true)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(receiving(error))),
                Poll::Pending if !shelf.is_empty() => {
                    // It held as much as it may; there is room again.
                    context.waker().wake_by_ref();
                }
                Poll::Pending => {}
            }
            self.poll_client(ex, context)
        })
        .await?;
        ex.info.upstream_wire_received += download.bytes;
        ex.trailers = download.received_trailers.take();
        if let Some(trailers) = &ex.trailers {
            self.note_load(ex.info.host.as_ref(), trailers);
        }
        Ok(fits.then_some(body))
    }

    pub(super) async fn pass_body(
        &mut self,
        ex: &mut Exchange<'_>,
        download: &mut Pump,
        connection: &mut Lent,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let mut waited = false;
        let passed = poll_fn(|context| {
            self.poll_upload(ex, connection, out, context)?;
            let polled = { download.poll(connection.source(), ex.down.client.sink(), |_| {}, context) };
            if std::mem::take(&mut download.progress) {
                self.deadlines.touch();
            }
            match polled {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::SinkIo(_))) => return Poll::Ready(Err(Failure::Gone)),
                Poll::Ready(Err(PumpError::SourceReset(error))) => {
                    return Poll::Ready(Err(Failure::Reset(error)))
                }
                Poll::Ready(Err(PumpError::SourceClosed | PumpError::SourceIo(_))) => {
                    return Poll::Ready(Err(Failure::Closed))
                }
                Poll::Ready(Err(PumpError::Source(_))) => return Poll::Ready(Err(Failure::Protocol)),
                Poll::Ready(Err(PumpError::Answer(reply))) => {
                    return Poll::Ready(Err(Failure::Answer(reply)))
                }
                Poll::Pending => {}
            }
            // A client that has gone is not noticed by writing while the upstream says nothing.
            let down = &mut *ex.down;
            if down.client.poll_gone(ex.upload.is_received(), down.buffer_limit, context).is_ready() {
                return Poll::Ready(Err(Failure::Gone));
            }
            if ex.down.timer.poll(self.deadlines.nearest(), context).is_ready() {
                return Poll::Ready(Err(Failure::Timeout(self.deadlines.expired(Instant::now()))));
            }
            waited = true;
            Poll::Pending
        })
        .await;
        if waited {
            ex.now = Instant::now();
        }
        passed
    }
}

/// What it means that a response that is taken in does not go on.
pub(super) fn receiving(error: PumpError) -> Failure {
    match error {
        PumpError::SourceReset(error) => Failure::Reset(error),
        PumpError::Answer(reply) => Failure::Answer(reply),
        _ => Failure::Protocol,
    }
}

/// Ends a response that cannot be completed. What came of it is passed on, as far as the client takes
/// it now; a client that could not tell the early end from the right one gets a reset.
async fn cut_off(ex: &mut Exchange<'_>, self_delimiting: bool) -> End {
    let patience = match ex.manager.delayed_close_timeout {
        Duration::ZERO => Duration::from_secs(1),
        patience => patience,
    };
    let flushed = ex.flush_within(Some(patience)).await.is_ok();
    if flushed && self_delimiting {
        End::Cut
    } else {
        End::Broken
    }
}
