//! Responses that a service looks at before the client has anything of them (`envoy.filters.http.ext_proc`).
//!
//! Comes in: the response's head, and its body where that is to be seen too. Goes out: both as the service wants them, or
//! an answer in their place. The request's body goes on upstream all the while, and its deadlines hold.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;

use super::attempt::Sent;
use super::lent::Lent;
use super::{Attempts, End, Failure};
use crate::config::Known;
use crate::http::client::Client;
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::filters;
use crate::http::filters::ext_proc::session::{Session, Side};
use crate::http::filters::ext_proc::{Body, Config, Verdict};
use crate::http::h1::Framing;
use crate::http::head::ResponseHead;
use crate::http::manager;
use crate::http::pump::Pump;
use crate::http::reply::one_chunk;
use crate::http::stages::Stage;
use crate::telemetry::stream_info::Protocol;

/// A response on its way to the service.
pub(super) struct Consulted<'c> {
    pub(super) head: &'c mut ResponseHead,
    pub(super) framing: Framing,
    pub(super) connection: &'c mut Lent,
    pub(super) sent: &'c mut Sent,
    /// Its body, once it was taken in.
    pub(super) body: &'c mut Option<Collected>,
    /// The body on its way, where a service has been given it already.
    pub(super) download: &'c mut Option<Box<Pump>>,
    /// It has none.
    pub(super) ends: &'c mut bool,
}

/// The whole body of a response.
pub(super) struct Collected {
    pub(super) body: Bytes,
    pub(super) trailers: Option<Fields>,
    /// The upstream has sent all that it has to say.
    pub(super) whole: bool,
}

/// Why a response does not go on.
pub(super) enum Stopped {
    /// It is answered with this instead.
    Reply(Box<Reply>),
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Stopped::Failed(failure)
    }
}

impl Attempts<'_> {
    /// Asks the service of `session` about the response.
    pub(super) async fn consult(
        &mut self,
        ex: &mut Exchange<'_>,
        session: &Rc<RefCell<Session>>,
        asked: &mut Consulted<'_>,
    ) -> Result<(), Stopped> {
        let config = session.borrow().config.clone();
        session.borrow_mut().tell(config.attributes_of(Side::Response, ex, Some(asked.head)));
        if config.watches.is_some() {
            let told = config.tell_response(session, ex, asked.head, *asked.ends);
            match (told.map_err(Stopped::Reply)?, &asked.body) {
                (Some(mut watch), Some(collected)) => {
                    watch.hold(collected.body.clone());
                    watch.hold_end(collected.trailers.clone());
                }
                (Some(watch), None) => filters::look_at_download(ex, Stage::Watch(Box::new(watch))),
                (None, _) => {}
            }
            return Ok(());
        }
        if session.borrow().mode.response_body == Body::Duplex && !*asked.ends {
            return self.consult_duplex(ex, session, asked).await;
        }
        if session.borrow().mode.response_head {
            let ask = config.question_of_head(asked.head, *asked.ends);
            let metadata = session.borrow().metadata(ex);
            let answer = Session::ask(session.clone(), ask, metadata);
            let said = self.hear(ex, asked, answer).await?;
            match config.hear_response(session, said, ex, asked.head, true) {
                Verdict::Reply(reply) => return Err(Stopped::Reply(reply)),
                Verdict::Go(Some(body), true) => {
                    asked.head.fields.remove_known(Known::ContentLength);
                    *asked.ends = body.is_empty();
                    let whole = asked.framing.is_empty();
                    *asked.body = Some(Collected { body, trailers: None, whole });
                    return Ok(());
                }
                Verdict::Go(..) => {}
            }
        }
        if session.borrow().is_done() || *asked.ends {
            return Ok(());
        }
        let limit = ex.down.buffer_limit.min(self.upstream().per_connection_buffer_limit);
        let mode = session.borrow().mode;
        let collected = match asked.body.take() {
            Some(collected) => collected,
            None if mode.response_body != Body::Whole => {
                if let Some(stage) = config.of_response(session, ex, limit) {
                    if mode.response_body.unsizes() {
                        asked.head.fields.remove_known(Known::ContentLength);
                    }
                    filters::look_at_download(ex, stage);
                }
                return Ok(());
            }
            None => {
                let begun = asked.download.take();
                let taken =
                    self.take_whole(ex, asked.framing, begun, asked.connection, asked.sent, limit).await?;
                let Some(body) = taken else {
                    let reply = Reply::new(500, "response_payload_too_large").body("Internal Server Error");
                    return Err(Stopped::Reply(Box::new(reply)));
                };
                let trailers = ex.trailers.clone().filter(|_| self.takes_trailers(asked.connection));
                Collected { body: body.into(), trailers, whole: true }
            }
        };
        let collected = asked.body.insert(collected);
        let trailers = collected.trailers.clone().filter(|_| mode.response_trailers);
        if mode.response_body != Body::None {
            let ask = Config::question_of_body(&collected.body, trailers.is_none());
            let metadata = session.borrow().metadata(ex);
            let answer = Session::ask(session.clone(), ask, metadata);
            let said = self.hear(ex, asked, answer).await?;
            match config.hear_response(session, said, ex, asked.head, false) {
                Verdict::Reply(reply) => return Err(Stopped::Reply(reply)),
                Verdict::Go(None, _) => {}
                Verdict::Go(Some(body), _) => {
                    config.body_of_response(session, asked.head, &body).map_err(Stopped::Reply)?;
                    if let Some(collected) = asked.body {
                        collected.body = body;
                    }
                }
            }
        }
        let Some(mut trailers) = trailers.filter(|_| !session.borrow().is_done()) else { return Ok(()) };
        let metadata = session.borrow().metadata(ex);
        let answer = Session::ask(session.clone(), config.question_of_trailers(&trailers), metadata);
        let said = self.hear(ex, asked, answer).await?;
        config.hear_trailers(session, said, ex, &mut trailers).map_err(Stopped::Reply)?;
        if let Some(collected) = asked.body {
            collected.trailers = Some(trailers);
        }
        Ok(())
    }

    /// Waits for what the service says.
    pub(super) async fn hear<T>(
        &mut self,
        ex: &mut Exchange<'_>,
        asked: &mut Consulted<'_>,
        answer: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let mut answer = pin!(answer);
        let said = poll_fn(|context| {
            self.poll_upload(ex, asked.connection, &mut asked.sent.out, context)?;
            // Other streams of its connection go on.
            asked.connection.source().gather(context);
            if let Poll::Ready(said) = answer.as_mut().poll(context) {
                return Poll::Ready(Ok(said));
            }
            self.poll_client(ex, context)
        })
        .await;
        ex.now = Instant::now();
        said
    }
}

/// Sends a response whose body was taken in.
pub(super) async fn send_collected(
    ex: &mut Exchange<'_>,
    mut head: ResponseHead,
    collected: Collected,
) -> End {
    let Collected { mut body, mut trailers, .. } = collected;
    let now = Instant::now();
    ex.now = now;
    ex.info.times.last_upstream_rx = Some(now);
    // Filters nearer to the client have their turn with it.
    if let Some(coded) = filters::on_reply_body(ex, &body, &mut trailers) {
        body = coded;
    }
    let to_head = ex.request.as_ref().is_some_and(|request| request.is_method(b"HEAD"));
    let http_10 = ex.request.as_ref().is_some_and(|request| request.protocol == Protocol::Http10);
    let bare = to_head || matches!(head.status, 204 | 304);
    if !bare && head.fields.has(Known::ContentLength) {
        let mut digits = itoa::Buffer::new();
        head.fields.set_known(Known::ContentLength, digits.format(body.len()).as_bytes());
    }
    let chunked = !head.fields.has(Known::ContentLength) && !bare;
    manager::finish_response(ex.manager, &mut head, ex.request.as_ref(), true, ex.worker, now);
    let ends = bare || (body.is_empty() && trailers.is_none());
    ex.start_response(head, Some(chunked), ends, now);
    if !bare {
        ex.info.bytes_sent += body.len() as u64;
        let passes = ex.manager.http1.enable_trailers;
        match &mut ex.down.client {
            Client::Http2(stream) if !ends => {
                stream.outgoing.push(body);
                stream.outgoing.finish(trailers.as_ref());
            }
            Client::Http2(_) => {}
            Client::Http1(wire) if chunked && !http_10 => {
                wire.output.push(one_chunk(&body, trailers.as_ref().filter(|_| passes)));
            }
            Client::Http1(wire) => wire.output.push(body),
        }
    }
    match ex.flush().await {
        Ok(()) => End::Done,
        Err(()) => End::Gone,
    }
}
