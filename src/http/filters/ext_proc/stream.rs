//! Bodies that a service looks at while they pass, and trailers.
//!
//! Comes in: a body's pieces and its end. Goes out: what the service makes of them, in the same order. It is asked about
//! each piece as that comes, and may be asked about the next before it has answered; who waits is the sink, not the
//! source, until as much is held as may be.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use tokio::time::{sleep, Instant, Sleep};

use super::mutation;
use super::session::{Said, Session, Side};
use super::settle::{SPURIOUS, STREAMED};
use super::Verdict;
use crate::http::fields::Fields;
use crate::http::stages::{Passes, Stop};

/// How the pieces of a body are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Look {
    /// Not at all: only its trailers are.
    Pass,
    /// Each as it comes.
    Pieces,
    /// So many bytes of its beginning, as one.
    Beginning(usize),
}

/// The service's part in one body.
#[derive(Debug)]
pub(in crate::http) struct Processor {
    session: Rc<RefCell<Session>>,
    side: Side,
    look: Look,
    trailers: bool,
    /// What it sees of the request's metadata.
    metadata: Metadata,
    /// What is taken in to be shown as one.
    gathered: Vec<u8>,
    /// What waits, in order.
    held: VecDeque<Held>,
    length: usize,
    end: End,
    timer: Option<Pin<Box<Sleep>>>,
    /// It has asked for more time for its answer.
    extended: bool,
}

#[derive(Debug)]
enum Held {
    /// The service was asked about it and has not answered.
    Shown(Bytes),
    Free(Bytes),
}

#[derive(Debug)]
enum End {
    /// It has not come.
    Open,
    /// It comes after all that is held, with these trailers.
    Held(Option<Fields>),
    /// The service was asked about these trailers.
    Shown(Fields),
    Passed,
}

impl Processor {
    pub(in crate::http) fn new(
        session: &Rc<RefCell<Session>>,
        side: Side,
        look: Look,
        metadata: Metadata,
    ) -> Self {
        let mode = session.borrow().mode;
        let trailers = match side {
            Side::Request => mode.request_trailers,
            Side::Response => mode.response_trailers,
        };
        Self {
            session: session.clone(),
            side,
            look,
            trailers,
            metadata,
            gathered: Vec::new(),
            held: VecDeque::new(),
            length: 0,
            end: End::Open,
            timer: None,
            extended: false,
        }
    }

    /// Bytes that wait.
    pub(in crate::http) fn length(&self) -> usize {
        self.length
    }

    pub(in crate::http) fn hold(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.length += piece.len();
        match self.look {
            Look::Pieces if !self.is_done() => self.show(piece, false),
            Look::Beginning(limit) if !self.is_done() => {
                self.gathered.extend_from_slice(&piece);
                if self.gathered.len() >= limit {
                    self.look = Look::Pass;
                    let gathered = std::mem::take(&mut self.gathered);
                    self.show(gathered.into(), false);
                }
            }
            _ => self.held.push_back(Held::Free(piece)),
        }
    }

    pub(in crate::http) fn hold_end(&mut self, trailers: Option<Fields>) {
        if self.is_done() {
            self.let_go();
        }
        let shows = match self.look {
            Look::Pass => false,
            // With trailers it is they that end the message.
            Look::Pieces => trailers.is_none(),
            Look::Beginning(_) => true,
        };
        if shows {
            let last = std::mem::take(&mut self.gathered);
            self.show(last.into(), trailers.is_none());
            self.look = Look::Pass;
        }
        self.end = End::Held(trailers);
    }

    fn is_done(&self) -> bool {
        self.session.borrow().is_done()
    }

    /// Asks the service about a piece.
    fn show(&mut self, piece: Bytes, ends: bool) {
        let body = pb::HttpBody { body: piece.to_vec(), end_of_stream: ends };
        let ask = match self.side {
            Side::Request => Ask::RequestBody(body),
            Side::Response => Ask::ResponseBody(body),
        };
        self.ask(ask);
        self.held.push_back(Held::Shown(piece));
    }

    fn ask(&mut self, ask: Ask) {
        let mut session = self.session.borrow_mut();
        session.send(ask, self.metadata.clone());
        if self.timer.is_none() {
            self.timer = Some(Box::pin(sleep(session.config.timeout)));
        }
    }

    /// As [`Session::gather`].
    pub(in crate::http) fn gather(&mut self, context: &mut Context<'_>) {
        self.session.borrow_mut().gather(context);
    }

    /// What passes next; pending while the service has to say something before.
    pub(in crate::http) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Passes, Stop>> {
        loop {
            if let Some(Held::Free(piece)) = self.held.front_mut() {
                let piece = std::mem::take(piece);
                self.held.pop_front();
                self.length = self.length.saturating_sub(piece.len());
                return Poll::Ready(Ok(Passes::Piece(piece)));
            }
            if self.held.is_empty() && !matches!(self.end, End::Shown(_)) {
                self.timer = None;
                match std::mem::replace(&mut self.end, End::Passed) {
                    End::Held(Some(trailers)) if self.trailers && !self.is_done() => {
                        let lines = mutation::trailers(&self.session.borrow().config, &trailers);
                        self.end = End::Shown(trailers);
                        self.ask(match self.side {
                            Side::Request => Ask::RequestTrailers(lines),
                            Side::Response => Ask::ResponseTrailers(lines),
                        });
                    }
                    End::Held(trailers) => return Poll::Ready(Ok(Passes::End(trailers))),
                    end => {
                        self.end = end;
                        return Poll::Ready(Ok(Passes::Nothing));
                    }
                }
            }
            let said = ready!(self.poll_said(context));
            if let Err(stop) = self.hear(said) {
                return Poll::Ready(Err(stop));
            }
        }
    }

    fn poll_said(&mut self, context: &mut Context<'_>) -> Poll<Said> {
        let mut session = self.session.borrow_mut();
        loop {
            match session.poll_said(self.side, context) {
                Poll::Pending => break,
                Poll::Ready(Said::Later(wanted)) => {
                    if let (Some(wanted), Some(timer)) =
                        (session.may_take(wanted, true, &mut self.extended), &mut self.timer)
                    {
                        timer.as_mut().reset(Instant::now() + wanted);
                    }
                }
                said => return said,
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(context).map(|()| Said::TimedOut),
            None => Poll::Pending,
        }
    }

    /// Does what the service says of what it was shown first.
    fn hear(&mut self, said: Said) -> Result<(), Stop> {
        let config = self.session.borrow().config.clone();
        let says = match config.settle_later(&self.session, said) {
            Ok(Some(says)) => says,
            Ok(None) => {
                self.let_go();
                return Ok(());
            }
            Err(reply) => return Err(Stop::Reply(reply)),
        };
        self.wait_again(config.timeout);
        match (self.side, says) {
            (Side::Request, Says::RequestBody(said)) | (Side::Response, Says::ResponseBody(said))
                if matches!(self.held.front(), Some(Held::Shown(_))) =>
            {
                if said.response.as_ref().is_some_and(mutation::is_streamed) {
                    config.out_of_turn(&self.session, STREAMED).map_err(Stop::Reply)?;
                    self.let_go();
                    return Ok(());
                }
                config.stats.stream_msgs_received.increment(1);
                let changed = said.response.map(|common| mutation::body_of(common, false));
                if let Some(Held::Shown(piece)) = self.held.pop_front() {
                    self.length = self.length.saturating_sub(piece.len());
                    let piece = match changed {
                        Some(Verdict::Go(Some(other), _)) => other,
                        _ => piece,
                    };
                    self.length += piece.len();
                    self.held.push_front(Held::Free(piece));
                }
            }
            (Side::Request, Says::RequestTrailers(said)) | (Side::Response, Says::ResponseTrailers(said))
                if matches!(self.end, End::Shown(_)) =>
            {
                config.stats.stream_msgs_received.increment(1);
                let End::Shown(mut trailers) = std::mem::replace(&mut self.end, End::Passed) else {
                    return Ok(());
                };
                if let Some(changes) = &said.header_mutation {
                    mutation::apply_to_trailers(&config, changes, &mut trailers)
                        .map_err(|refused| Stop::Reply(Box::new(config.refuse(&self.session, refused))))?;
                }
                // They have been looked at.
                self.trailers = false;
                self.end = End::Held(Some(trailers));
            }
            _ => {
                config.out_of_turn(&self.session, SPURIOUS).map_err(Stop::Reply)?;
                self.let_go();
            }
        }
        Ok(())
    }

    /// The next answer has as much time as any.
    fn wait_again(&mut self, timeout: Duration) {
        self.extended = false;
        if let Some(timer) = &mut self.timer {
            timer.as_mut().reset(Instant::now() + timeout);
        }
    }

    /// The service is not asked any more: what it has not answered to passes as it is.
    fn let_go(&mut self) {
        for held in &mut self.held {
            if let Held::Shown(piece) = held {
                *held = Held::Free(std::mem::take(piece));
            }
        }
        if !self.gathered.is_empty() {
            self.held.push_back(Held::Free(std::mem::take(&mut self.gathered).into()));
        }
        self.look = Look::Pass;
        self.trailers = false;
        self.end = match std::mem::replace(&mut self.end, End::Passed) {
            End::Shown(trailers) => End::Held(Some(trailers)),
            end => end,
        };
    }
}
