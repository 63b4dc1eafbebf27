//! Bodies that a service takes and gives as it likes (`FULL_DUPLEX_STREAMED`).
//!
//! Comes in: a body's pieces, and its end with its trailers; each goes to the service at once, and is forgotten. Goes out:
//! what the service says is the body, in its own pieces and its own time. Nothing has a time limit here. What the service
//! does not take yet is held, up to [`ROOM`]; what it says waits with it while nobody takes that.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{ready, Context, Poll};

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;

use super::mutation;
use super::session::{Said, Session, Side};
use super::settle::{ORDINARY, SPURIOUS};
use super::watch::ROOM;
use crate::http::exchange::Reply;
use crate::http::fields::Fields;
use crate::http::stages::{Passes, Stop};

/// The service's part in one body.
#[derive(Debug)]
pub(in crate::http) struct Duplex {
    session: Rc<RefCell<Session>>,
    side: Side,
    metadata: Metadata,
    /// What passes next: what the service has said, or what came after it was left.
    free: VecDeque<Bytes>,
    length: usize,
    source: Source,
    /// The service has said its end.
    ends: bool,
    /// Its end has passed.
    passed: bool,
}

/// What has come of the end.
#[derive(Debug)]
enum Source {
    Open,
    /// With these trailers, which the service was shown.
    Ended(Option<Fields>),
}

impl Duplex {
    pub(in crate::http) fn new(session: &Rc<RefCell<Session>>, side: Side, metadata: Metadata) -> Self {
        session.borrow_mut().begin_body(side);
        Self {
            session: session.clone(),
            side,
            metadata,
            free: VecDeque::new(),
            length: 0,
            source: Source::Open,
            ends: false,
            passed: false,
        }
    }

    /// Bytes that wait.
    pub(in crate::http) fn length(&self) -> usize {
        if self.session.borrow().unsent() >= ROOM {
            ROOM
        } else {
            self.length
        }
    }

    /// Whether the service still says what the body is.
    fn is_asked(&self) -> bool {
        let session = self.session.borrow();
        !session.is_done() && session.is_duplex(self.side)
    }

    /// Whether nothing of the body counts: another has taken its place.
    fn is_replaced(&self) -> bool {
        self.session.borrow().is_replaced(self.side)
    }

    pub(in crate::http) fn hold(&mut self, piece: Bytes) {
        if piece.is_empty() || self.passed {
            return;
        }
        if self.is_asked() {
            self.ask_of(&piece, false);
        } else if !self.is_replaced() {
            self.length += piece.len();
            self.free.push_back(piece);
        }
    }

    pub(in crate::http) fn hold_end(&mut self, trailers: Option<Fields>) {
        if self.is_asked() && !self.passed {
            match &trailers {
                None => self.ask_of(&Bytes::new(), true),
                Some(trailers) => {
                    let mut session = self.session.borrow_mut();
                    let lines = mutation::trailers(&session.config, trailers);
                    session.send(
                        match self.side {
                            Side::Request => Ask::RequestTrailers(lines),
                            Side::Response => Ask::ResponseTrailers(lines),
                        },
                        self.metadata.clone(),
                    );
                }
            }
        }
        self.source = Source::Ended(trailers);
    }

    fn ask_of(&mut self, piece: &Bytes, ends: bool) {
        let body = pb::HttpBody { body: piece.to_vec(), end_of_stream: ends };
        let ask = match self.side {
            Side::Request => Ask::RequestBody(body),
            Side::Response => Ask::ResponseBody(body),
        };
        self.session.borrow_mut().send(ask, self.metadata.clone());
    }

    /// As [`Session::gather`].
    pub(in crate::http) fn gather(&mut self, context: &mut Context<'_>) {
        self.session.borrow_mut().gather(context);
    }

    /// What passes next; pending until the service has said what that is.
    pub(in crate::http) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Passes, Stop>> {
        loop {
            if self.passed {
                return Poll::Ready(Ok(Passes::Nothing));
            }
            if let Some(piece) = self.free.pop_front() {
                self.length = self.length.saturating_sub(piece.len());
                return Poll::Ready(Ok(Passes::Piece(piece)));
            }
            if self.ends {
                return Poll::Ready(Ok(self.end(None)));
            }
            if !self.is_asked() {
                let Source::Ended(trailers) = &mut self.source else {
                    return Poll::Ready(Ok(Passes::Nothing));
                };
                let trailers = trailers.take().filter(|_| !self.session.borrow().is_replaced(self.side));
                return Poll::Ready(Ok(self.end(trailers)));
            }
            if self.session.borrow().awaits_head(self.side) {
                // Who waits for that hears what is said.
                self.session.borrow_mut().flush(context);
                return Poll::Pending;
            }
            let said = ready!(self.session.borrow_mut().poll_said(self.side, context));
            match self.hear(said) {
                Ok(Some(passes)) => return Poll::Ready(Ok(passes)),
                Ok(None) => {}
                Err(reply) => return Poll::Ready(Err(Stop::Reply(reply))),
            }
        }
    }

    fn end(&mut self, trailers: Option<Fields>) -> Passes {
        self.passed = true;
        self.session.borrow_mut().end_body(self.side);
        Passes::End(trailers)
    }

    fn hear(&mut self, said: Said) -> Result<Option<Passes>, Box<Reply>> {
        let config = self.session.borrow().config.clone();
        if matches!(said, Said::Later(_)) {
            // There is no limit that could be put off.
            config.stats.override_message_timeout_ignored.increment(1);
            return Ok(None);
        }
        // A service that is left has what it was given.
        let Some(says) = config.settle_later(&self.session, said)? else { return Ok(None) };
        match (self.side, says) {
            (Side::Request, Says::RequestBody(said)) | (Side::Response, Says::ResponseBody(said)) => {
                let mutation = said.response.and_then(|common| common.body_mutation?.mutation);
                let Some(Mutation::StreamedResponse(piece)) = mutation else {
                    config.out_of_turn(&self.session, ORDINARY)?;
                    return Ok(None);
                };
                config.stats.stream_msgs_received.increment(1);
                self.give(piece);
                Ok(None)
            }
            (Side::Request, Says::RequestTrailers(said)) | (Side::Response, Says::ResponseTrailers(said)) => {
                let Source::Ended(trailers) = &mut self.source else {
                    config.out_of_turn(&self.session, SPURIOUS)?;
                    return Ok(None);
                };
                config.stats.stream_msgs_received.increment(1);
                let mut trailers = trailers.take();
                if let (Some(changes), Some(trailers)) = (&said.header_mutation, &mut trailers) {
                    mutation::apply_to_trailers(&config, changes, trailers)
                        .map_err(|refused| Box::new(config.refuse(&self.session, refused)))?;
                }
                Ok(Some(self.end(trailers)))
            }
            _ => {
                config.out_of_turn(&self.session, SPURIOUS)?;
                Ok(None)
            }
        }
    }

    /// The next piece of the body, as the service has it.
    fn give(&mut self, said: pb::StreamedBodyResponse) {
        let piece = Bytes::from(said.body);
        // With nothing before it, the end waits for what the service says of trailers.
        let waits = piece.is_empty() && matches!(self.source, Source::Ended(Some(_)));
        self.ends = said.end_of_stream && !waits;
        if !piece.is_empty() {
            self.length += piece.len();
            self.free.push_back(piece);
        }
    }
}

/// All that passes of a body whose end has come, as the service wants it; up to `limit` bytes.
pub(in crate::http) async fn whole(
    mut duplex: Duplex,
    limit: usize,
) -> Result<(Bytes, Option<Fields>), Box<Reply>> {
    let mut whole = Vec::new();
    loop {
        match poll_fn(|context| duplex.poll_next(context)).await {
            Ok(Passes::Piece(piece)) if piece.len() <= limit.saturating_sub(whole.len()) => {
                whole.extend_from_slice(&piece);
            }
            Ok(Passes::Piece(_)) => {
                duplex.session.borrow_mut().close();
                let reply = Reply::new(500, "response_payload_too_large").body("Internal Server Error");
                return Err(Box::new(reply));
            }
            Ok(Passes::End(trailers)) => return Ok((whole.into(), trailers)),
            Ok(Passes::Nothing) => return Ok((whole.into(), None)),
            Err(Stop::Reply(reply)) => return Err(reply),
            Err(Stop::Broken) => return Err(Box::new(Reply::new(500, ""))),
        }
    }
}
