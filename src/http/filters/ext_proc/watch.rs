//! Services that only watch (`observability_mode`): what passes is told to them, and nothing waits for it.
//!
//! Comes in: heads, bodies and trailers as they pass. Goes out: the same, at once, while a task of the stream's own sends
//! copies to the service and hears nothing of what that says. A service that takes less than passes slows that down; one
//! that fails ends the request, unless config says otherwise, with the next part that it would be told of.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{poll_fn, Future as _};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use tokio::time::{sleep, Sleep};

use super::session::{Session, Side};
use super::{mutation, Body, Config};
use crate::http::call_stream::{Ended, GrpcStream};
use crate::http::fields::Fields;
use crate::http::stages::{Passes, Stop};

/// Nothing more passes while so many bytes wait to be told: as many as a pump holds.
pub(super) const ROOM: usize = 64 * 1024;

/// A stream to a service that watches. The request is over when it is dropped.
#[derive(Debug)]
pub(super) struct Watcher(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    messages: RefCell<VecDeque<Vec<u8>>>,
    /// Bytes in them.
    waiting: Cell<usize>,
    /// Who sends them.
    sender: RefCell<Option<Waker>>,
    /// Who waits until there is room.
    waits: RefCell<Vec<Waker>>,
    /// The stream has ended, and how where that ends the request.
    ended: Cell<bool>,
    failed: RefCell<Option<Ended>>,
    /// The request is over.
    over: Cell<bool>,
}

impl Watcher {
    /// Tells on `stream` what it is given, and closes it `linger` after the request.
    pub(super) fn new(stream: GrpcStream, config: Arc<Config>, fail_open: bool, linger: Duration) -> Self {
        let shared = Rc::new(Shared::default());
        let sending = Sending { shared: shared.clone(), stream, config, fail_open, linger, timer: None };
        tokio::task::spawn_local(sending.run());
        Self(shared)
    }

    /// Whether nothing more is told, and that means nothing for the request.
    pub(super) fn has_ended(&self) -> bool {
        self.0.ended.get() && self.0.failed.borrow().is_none()
    }

    /// How it failed, once.
    pub(super) fn failure(&self) -> Option<Ended> {
        self.0.failed.borrow_mut().take()
    }

    pub(super) fn send(&self, message: Vec<u8>) {
        if self.0.ended.get() {
            return;
        }
        self.0.waiting.set(self.0.waiting.get() + message.len());
        self.0.messages.borrow_mut().push_back(message);
        self.0.wake();
    }

    fn is_full(&self) -> bool {
        self.0.waiting.get() >= ROOM && !self.0.ended.get()
    }

    /// Ready while there is room for more.
    fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_full() || self.0.ended.get() {
            return Poll::Ready(());
        }
        let mut waits = self.0.waits.borrow_mut();
        // Both sides are of one task, which looks again and again.
        if !waits.iter().any(|waker| waker.will_wake(context.waker())) {
            waits.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.over.set(true);
        self.0.wake();
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.sender.take() {
            waker.wake();
        }
    }
}

/// The task that sends.
struct Sending {
    shared: Rc<Shared>,
    stream: GrpcStream,
    config: Arc<Config>,
    fail_open: bool,
    linger: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Sending {
    async fn run(mut self) {
        let ended = poll_fn(|context| self.poll(context)).await;
        let (shared, stats) = (&self.shared, &self.config.stats);
        shared.ended.set(true);
        shared.messages.borrow_mut().clear();
        match ended {
            None => stats.streams_closed.increment(1),
            // Nobody asks any more how it ended.
            Some(_) if shared.over.get() => {}
            Some(ended) => {
                stats.server_half_closed.increment(1);
                let failed = ended.status != 0;
                if failed {
                    stats.streams_failed.increment(1);
                }
                if failed && !self.fail_open {
                    *shared.failed.borrow_mut() = Some(ended);
                } else {
                    stats.streams_closed.increment(1);
                    if failed {
                        stats.failure_mode_allowed.increment(1);
                    }
                }
            }
        }
        shared.waits.take().into_iter().for_each(Waker::wake);
    }

    /// Ready when the stream has ended, or is to be closed.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Ended>> {
        let shared = &self.shared;
        *shared.sender.borrow_mut() = Some(context.waker().clone());
        loop {
            match self.stream.poll_next(context) {
                // What it says counts for nothing.
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(ended)) => return Poll::Ready(Some(ended)),
                Poll::Pending => {}
            }
            if !self.stream.is_flushed() {
                break;
            }
            let Some(message) = shared.messages.borrow_mut().pop_front() else { break };
            shared.waiting.set(shared.waiting.get().saturating_sub(message.len()));
            self.stream.send(&message);
            shared.waits.take().into_iter().for_each(Waker::wake);
        }
        if !shared.over.get() {
            return Poll::Pending;
        }
        let linger = self.linger;
        self.timer.get_or_insert_with(|| Box::pin(sleep(linger))).as_mut().poll(context).map(|()| None)
    }
}

/// A body and its trailers, of which a service is told.
#[derive(Debug)]
pub(in crate::http) struct Watch {
    session: Rc<RefCell<Session>>,
    side: Side,
    /// Its pieces are told.
    pieces: bool,
    trailers: bool,
    metadata: Metadata,
    out: VecDeque<Bytes>,
    length: usize,
    end: Option<Option<Fields>>,
}

impl Watch {
    /// Of the body of `side`; `None` where nothing of it is told.
    pub(in crate::http) fn of(
        session: &Rc<RefCell<Session>>,
        side: Side,
        metadata: Metadata,
    ) -> Option<Self> {
        let mode = session.borrow().mode;
        let (body, trailers) = match side {
            Side::Request => (mode.request_body, mode.request_trailers),
            Side::Response => (mode.response_body, mode.response_trailers),
        };
        // As in Envoy nothing is told of bodies that were to be told as a whole.
        let pieces = body == Body::Pieces;
        (pieces || trailers).then(|| Self {
            session: session.clone(),
            side,
            pieces,
            trailers,
            metadata,
            out: VecDeque::new(),
            length: 0,
            end: None,
        })
    }

    pub(in crate::http) fn length(&self) -> usize {
        let full = self.session.borrow().watcher.as_ref().is_some_and(Watcher::is_full);
        if full {
            ROOM
        } else {
            self.length
        }
    }

    pub(in crate::http) fn hold(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.tell(&piece, false);
        self.length += piece.len();
        self.out.push_back(piece);
    }

    pub(in crate::http) fn hold_end(&mut self, trailers: Option<Fields>) {
        match &trailers {
            None => self.tell(&Bytes::new(), true),
            Some(trailers) if self.trailers => {
                let mut session = self.session.borrow_mut();
                let lines = mutation::trailers(&session.config, trailers);
                let ask = match self.side {
                    Side::Request => Ask::RequestTrailers(lines),
                    Side::Response => Ask::ResponseTrailers(lines),
                };
                session.send(ask, self.metadata.clone());
            }
            Some(_) => {}
        }
        self.end = Some(trailers);
    }

    fn tell(&mut self, piece: &Bytes, ends: bool) {
        if self.pieces {
            let body = pb::HttpBody { body: piece.to_vec(), end_of_stream: ends };
            let ask = match self.side {
                Side::Request => Ask::RequestBody(body),
                Side::Response => Ask::ResponseBody(body),
            };
            self.session.borrow_mut().send(ask, self.metadata.clone());
        }
    }

    pub(in crate::http) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Passes, Stop>> {
        let config = self.session.borrow().config.clone();
        if let Some(reply) = config.watching(&self.session) {
            return Poll::Ready(Err(Stop::Reply(reply)));
        }
        if let Some(piece) = self.out.pop_front() {
            self.length = self.length.saturating_sub(piece.len());
            return Poll::Ready(Ok(Passes::Piece(piece)));
        }
        if let Some(trailers) = self.end.take() {
            return Poll::Ready(Ok(Passes::End(trailers)));
        }
        let session = self.session.borrow();
        match session.watcher.as_ref().map(|watcher| watcher.poll_room(context)) {
            Some(Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(Ok(Passes::Nothing)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_again_for_room_waits_once() {
        let watcher = Watcher(Rc::default());
        watcher.0.waiting.set(ROOM);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(watcher.poll_room(&mut context).is_pending());
        }
        assert_eq!(watcher.0.waits.borrow().len(), 1);
    }
}
