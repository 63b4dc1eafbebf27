//! The client of raw TCP: a request is so many bytes sent and so many received, several at a time behind each other.
//! Echo is as many back as forth; an upload has no answer and is over when the socket has taken it; a download sends
//! nothing and takes what a source sends on its own.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Client, Session};
use crate::record::{Pending, Reason, Recorder, NO_STATUS};

/// What all connections of a thread share.
pub struct Exchange {
    /// What is sent.
    pub payload: Bytes,
    /// Bytes of an answer.
    pub answer: u64,
    /// Requests at a time on one connection.
    pub depth: u32,
}

/// One connection.
pub struct Tcp {
    waiting: VecDeque<Pending>,
    /// Bytes that are in no answer yet, and when the first of them came.
    received: u64,
    first_byte: u64,
    answer: u64,
    depth: usize,
}

impl Tcp {
    /// Ends requests with bytes that came at this moment.
    fn settle(&mut self, now: u64, recorder: &mut Recorder) {
        while let (Some(pending), true) = (self.waiting.front(), self.received >= self.answer) {
            recorder.answered(*pending, now, self.first_byte, NO_STATUS);
            self.waiting.pop_front();
            self.received -= self.answer;
            self.first_byte = now;
        }
    }
}

impl Client for Tcp {
    type Shared = Exchange;

    const ENDS_SENT: bool = true;

    fn new(shared: &Exchange) -> Self {
        let depth = shared.depth as usize;
        Self { waiting: VecDeque::new(), received: 0, first_byte: 0, answer: shared.answer, depth }
    }

    fn room(&self) -> usize {
        self.depth.saturating_sub(self.waiting.len())
    }

    fn start(&mut self, shared: &mut Exchange, pending: Pending, session: &mut Session<'_>) {
        self.waiting.push_back(pending);
        session.out.push_shared(&shared.payload);
        if self.answer > 0 {
            // What a source sent before it was asked.
            self.settle(session.now, session.recorder);
        }
    }

    fn received(
        &mut self,
        _: &mut Exchange,
        bytes: &[u8],
        session: &mut Session<'_>,
    ) -> Result<usize, Reason> {
        session.recorder.body(session.now, bytes.len());
        if self.answer == 0 {
            return Err(Reason::Protocol);
        }
        if self.received == 0 {
            self.first_byte = session.now;
        }
        self.received += bytes.len() as u64;
        self.settle(session.now, session.recorder);
        Ok(bytes.len())
    }

    fn flushed(&mut self, session: &mut Session<'_>) {
        if self.answer == 0 {
            for pending in self.waiting.drain(..) {
                session.recorder.answered(pending, session.now, session.now, NO_STATUS);
            }
        }
    }

    fn oldest(&self) -> Option<u64> {
        self.waiting.front().map(|pending| pending.sent)
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn drain(&mut self, each: &mut dyn FnMut(Pending)) {
        self.waiting.drain(..).for_each(each);
    }
}
