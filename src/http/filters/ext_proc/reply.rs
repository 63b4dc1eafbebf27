//! Answers of our own that a service looks at before the client has anything of them.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;

use super::duplex;
use super::session::{Session, Side};
use super::{Body, Config, Duplex, Verdict};
use crate::config::Known;
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::ResponseHead;

/// Why an answer does not go on.
pub(in crate::http) enum Stopped {
    /// It is another.
    Reply(Box<Reply>),
    /// The client has gone.
    Gone,
}

/// Asks the service of `session` about an answer.
pub(in crate::http) async fn consult(
    ex: &mut Exchange<'_>,
    session: &Rc<RefCell<Session>>,
    head: &mut ResponseHead,
    body: &mut Bytes,
    ends: bool,
) -> Result<(), Stopped> {
    let config = session.borrow().config.clone();
    session.borrow_mut().tell(config.attributes_of(Side::Response, ex, Some(head)));
    if config.watches.is_some() {
        let told = config.tell_response(session, ex, head, ends).map_err(Stopped::Reply)?;
        if let Some(mut watch) = told {
            watch.hold(body.clone());
            watch.hold_end(None);
        }
        return Ok(());
    }
    if !ends && session.borrow().mode.response_body == Body::Duplex {
        return consult_duplex(ex, session, head, body).await;
    }
    if session.borrow().mode.response_head {
        let ask = config.question_of_head(head, ends);
        let metadata = session.borrow().metadata(ex);
        let said = hear(ex, Session::ask(session.clone(), ask, metadata)).await?;
        match config.hear_response(session, said, ex, head, true) {
            Verdict::Reply(reply) => return Err(Stopped::Reply(reply)),
            Verdict::Go(Some(other), true) => {
                head.fields.remove_known(Known::ContentLength);
                *body = other;
                return Ok(());
            }
            Verdict::Go(..) => {}
        }
    }
    let looks = !session.borrow().is_done() && session.borrow().mode.response_body != Body::None;
    if !looks || ends {
        return Ok(());
    }
    let metadata = session.borrow().metadata(ex);
    let said =
        hear(ex, Session::ask(session.clone(), Config::question_of_body(body, true), metadata)).await?;
    match config.hear_response(session, said, ex, head, false) {
        Verdict::Reply(reply) => Err(Stopped::Reply(reply)),
        Verdict::Go(None, _) => Ok(()),
        Verdict::Go(Some(other), _) => {
            config.body_of_response(session, head, &other).map_err(Stopped::Reply)?;
            *body = other;
            Ok(())
        }
    }
}

/// As [`consult`], where the service takes and gives the body as it likes.
async fn consult_duplex(
    ex: &mut Exchange<'_>,
    session: &Rc<RefCell<Session>>,
    head: &mut ResponseHead,
    body: &mut Bytes,
) -> Result<(), Stopped> {
    let config = session.borrow().config.clone();
    let (asks, metadata) = (session.borrow().mode.response_head, session.borrow().metadata(ex));
    let ask = config.question_of_head(head, false);
    let answer = asks.then(|| Session::ask(session.clone(), ask, metadata.clone()));
    let mut given = Duplex::new(session, Side::Response, metadata);
    given.hold(body.clone());
    given.hold_end(None);
    if let Some(answer) = answer {
        let said = hear(ex, answer).await?;
        match config.hear_response(session, said, ex, head, true) {
            Verdict::Reply(reply) => return Err(Stopped::Reply(reply)),
            Verdict::Go(Some(other), true) => {
                session.borrow_mut().replace_body(Side::Response);
                head.fields.remove_known(Known::ContentLength);
                *body = other;
                return Ok(());
            }
            Verdict::Go(..) => {}
        }
    }
    head.fields.remove_known(Known::ContentLength);
    let answer = duplex::whole(given, ex.down.buffer_limit);
    let (other, _) = hear(ex, answer).await?.map_err(Stopped::Reply)?;
    *body = other;
    Ok(())
}

async fn hear<T>(ex: &mut Exchange<'_>, answer: impl Future<Output = T>) -> Result<T, Stopped> {
    let mut answer = pin!(answer);
    let said = poll_fn(|context| {
        if let Poll::Ready(said) = answer.as_mut().poll(context) {
            return Poll::Ready(Ok(said));
        }
        let down = &mut *ex.down;
        down.client.nudge(context);
        down.client.gather(context);
        if down.client.poll_gone(ex.upload.is_received(), down.buffer_limit, context).is_ready() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        Poll::Pending
    })
    .await;
    ex.now = Instant::now();
    said
}
