//! The client of WebSocket: an upgrade, then binary messages that the peer sends back, several at a time.

use std::collections::VecDeque;

use super::{Client, Session};
use crate::http1::parse_answer;
use crate::out::Out;
use crate::record::{Pending, Reason, NO_STATUS};
use crate::websocket::{self, BINARY, CLOSE, PING, PONG};

/// The mask of every message: it protects nobody here.
const MASK: [u8; 4] = [0x6f, 0x75, 0x74, 0x72];

/// What all connections of a thread share.
pub struct Messages {
    /// The request that upgrades.
    pub upgrade: Vec<u8>,
    /// A message as it is sent.
    frame: Vec<u8>,
    /// Bytes of a message.
    size: usize,
    /// Messages at a time on one connection.
    depth: usize,
}

impl Messages {
    /// Messages of so many bytes.
    pub fn new(upgrade: Vec<u8>, size: usize, depth: u32) -> Self {
        let (mut out, mut frame) = (Out::default(), Vec::new());
        websocket::put(BINARY, &vec![b'x'; size], Some(MASK), &mut out);
        // A vector takes everything.
        let _ = out.write_to(&mut frame);
        Self { upgrade, frame, size, depth: depth as usize }
    }
}

/// One connection.
pub struct WebSocket {
    waiting: VecDeque<Pending>,
    upgraded: bool,
    depth: usize,
    closing: bool,
}

impl Client for WebSocket {
    type Shared = Messages;

    fn new(shared: &Messages) -> Self {
        Self { waiting: VecDeque::new(), upgraded: false, depth: shared.depth, closing: false }
    }

    fn open(&mut self, shared: &mut Messages, session: &mut Session<'_>) {
        session.out.push(&shared.upgrade);
    }

    fn room(&self) -> usize {
        if self.upgraded && !self.closing {
            self.depth.saturating_sub(self.waiting.len())
        } else {
            0
        }
    }

    fn start(&mut self, shared: &mut Messages, pending: Pending, session: &mut Session<'_>) {
        self.waiting.push_back(pending);
        session.recorder.messages(session.now, 1, 0);
        session.out.push(&shared.frame);
    }

    fn received(
        &mut self,
        shared: &mut Messages,
        bytes: &[u8],
        session: &mut Session<'_>,
    ) -> Result<usize, Reason> {
        let mut used = 0;
        if !self.upgraded {
            let Some(head) = parse_answer(bytes).map_err(|_| Reason::Upgrade)? else { return Ok(0) };
            if head.status != 101 {
                return Err(Reason::Upgrade);
            }
            (self.upgraded, used) = (true, head.length);
        }
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            let Some(frame) = websocket::take(rest).map_err(|_| Reason::Protocol)? else { return Ok(used) };
            used += frame.length;
            match frame.opcode {
                PING => websocket::put(PONG, frame.payload, Some(MASK), session.out),
                PONG => {}
                CLOSE => self.closing = true,
                _ => {
                    if frame.payload.len() != shared.size {
                        return Err(Reason::Protocol);
                    }
                    let pending = self.waiting.pop_front().ok_or(Reason::Protocol)?;
                    session.recorder.body(session.now, frame.payload.len());
                    session.recorder.messages(session.now, 0, 1);
                    session.recorder.answered(pending, session.now, session.now, NO_STATUS);
                }
            }
        }
    }

    fn closing(&self) -> bool {
        self.closing
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
