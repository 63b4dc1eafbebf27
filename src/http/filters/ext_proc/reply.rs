//! Answers of our own that a service looks at before the client has anything of them.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;

use super::session::{Said, Session, Side};
use super::{Body, Config, Verdict};
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

async fn hear(ex: &mut Exchange<'_>, answer: impl Future<Output = Said>) -> Result<Said, Stopped> {
    let mut answer = pin!(answer);
    let said = poll_fn(|context| {
        if let Poll::Ready(said) = answer.as_mut().poll(context) {
            return Poll::Ready(Ok(said));
        }
        let down = &mut *ex.down;
        down.client.nudge(context);
        if down.client.poll_gone(ex.upload.is_received(), down.buffer_limit, context).is_ready() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        Poll::Pending
    })
    .await;
    ex.now = Instant::now();
    said
}
