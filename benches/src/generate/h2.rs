//! The client of HTTP/2 and gRPC: as many requests at a time as it has streams. The header block of a request is
//! encoded once for a connection with insertions into the peer's table, and is a few index bytes from then on; a block
//! of an answer that consists of the same indices as one before is not decoded again.

use bytes::Bytes;

use super::grpc::Counter;
use super::{Client, Session};
use crate::http2::{self, Core, Event, Sending};
use crate::record::{Pending, Reason, GRPC};

const CANCEL: u32 = 8;

/// How a request's body is sent, and when the next message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// All messages, then the end.
    Ahead,
    /// A message after each one that came.
    PingPong,
}

/// What all connections of a thread share.
pub struct Requests {
    /// Names and values, pseudo headers first.
    pub fields: Vec<(String, String)>,
    /// A body, or one message.
    pub body: Bytes,
    /// How often it is sent; 0 for no body.
    pub messages: u32,
    /// How.
    pub conversation: Conversation,
    /// Whether bodies are messages, and their end has a status.
    pub grpc: bool,
    /// Requests at a time on one connection.
    pub streams: u32,
}

struct Stream {
    id: u32,
    pending: Pending,
    first_byte: u64,
    status: u16,
    grpc_status: Option<u16>,
    /// Messages that are still to be sent after an answer.
    left: u32,
    sending: Sending,
    counter: Counter,
    received: u32,
}

/// What a block says: its HTTP and gRPC status.
#[derive(Clone, Copy, Default)]
struct Meaning {
    status: Option<u16>,
    grpc: Option<u16>,
}

/// One connection.
pub struct Http2 {
    core: Core,
    streams: Vec<Stream>,
    most: usize,
    next: u32,
    /// The block of every request once it is all indices.
    block: Vec<u8>,
    block_is_final: bool,
    closing: bool,
    /// Blocks that were decoded, as long as the decoder's table does not change.
    known: Vec<(Vec<u8>, Meaning)>,
    generation: u64,
}

impl Http2 {
    fn find(&self, id: u32) -> Option<usize> {
        self.streams.iter().position(|stream| stream.id == id)
    }

    fn meaning(&mut self, block: &[u8]) -> Result<Meaning, Reason> {
        if self.generation == self.core.decoder.generation() {
            if let Some((_, meaning)) = self.known.iter().find(|(known, _)| known == block) {
                return Ok(*meaning);
            }
        } else {
            self.known.clear();
        }
        let before = self.core.decoder.generation();
        let mut meaning = Meaning::default();
        let number = |value: &[u8]| crate::http1::number(value).and_then(|value| u16::try_from(value).ok());
        let decoded = self.core.decoder.decode(block, |name, value| match name {
            b":status" => meaning.status = number(value),
            b"grpc-status" => meaning.grpc = number(value),
            _ => {}
        });
        decoded.map_err(|_| Reason::Protocol)?;
        self.generation = self.core.decoder.generation();
        if before == self.generation && self.known.len() < 8 {
            self.known.push((block.to_vec(), meaning));
        }
        Ok(meaning)
    }

    fn end(&mut self, at: usize, grpc: bool, session: &mut Session<'_>) {
        let stream = self.streams.swap_remove(at);
        if !stream.sending.is_done() || stream.left > 0 {
            http2::reset(stream.id, CANCEL, session.out);
        }
        if grpc && (stream.status == 200 || stream.grpc_status.is_some()) {
            // An end without a status is, by gRPC's rules, an unknown error.
            let status = stream.grpc_status.unwrap_or(2).min(63);
            session.recorder.answered(stream.pending, session.now, stream.first_byte, GRPC + status);
        } else if stream.status == 0 {
            session.recorder.failed(stream.pending, session.now, Reason::Protocol);
        } else {
            session.recorder.answered(stream.pending, session.now, stream.first_byte, stream.status);
        }
    }

    fn handle(
        &mut self,
        shared: &Requests,
        event: Event<'_>,
        session: &mut Session<'_>,
    ) -> Result<(), Reason> {
        match event {
            Event::Headers { stream, block, end } => {
                let meaning = self.meaning(&block)?;
                let Some(at) = self.find(stream) else { return Ok(()) };
                let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
                if stream.first_byte == 0 {
                    stream.first_byte = session.now;
                }
                stream.status = meaning.status.unwrap_or(stream.status);
                stream.grpc_status = meaning.grpc.or(stream.grpc_status);
                if end {
                    self.end(at, shared.grpc, session);
                }
            }
            Event::Data { stream: id, bytes, end, .. } => {
                let Some(at) = self.find(id) else { return Ok(()) };
                let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
                session.recorder.body(session.now, bytes.len());
                // A stream's window is a gibibyte; a longer answer gets it back in large pieces.
                stream.received += bytes.len() as u32;
                if stream.received > http2::WINDOW / 2 {
                    http2::window_update(id, std::mem::take(&mut stream.received), session.out);
                }
                if shared.grpc {
                    let messages = stream.counter.take(bytes);
                    session.recorder.messages(session.now, 0, u64::from(messages));
                    for _ in 0..messages.min(stream.left) {
                        stream.left -= 1;
                        stream.sending.push(shared.body.clone(), stream.left == 0);
                        session.recorder.messages(session.now, 1, 0);
                    }
                    stream.sending.pump(id, &mut self.core, session.out);
                }
                if end {
                    self.end(at, shared.grpc, session);
                }
            }
            Event::Reset { stream } => {
                if let Some(at) = self.find(stream) {
                    let stream = self.streams.swap_remove(at);
                    session.recorder.failed(stream.pending, session.now, Reason::StreamReset);
                }
            }
            Event::Goaway { last } => {
                self.closing = true;
                while let Some(at) = self.streams.iter().position(|stream| stream.id > last) {
                    let stream = self.streams.swap_remove(at);
                    session.recorder.failed(stream.pending, session.now, Reason::Goaway);
                }
            }
            Event::Room { stream: 0, .. } => self.pump(session),
            Event::Room { stream, by } => {
                if let Some(stream) = self.streams.iter_mut().find(|open| open.id == stream) {
                    stream.sending.window += by;
                    stream.sending.pump(stream.id, &mut self.core, session.out);
                }
            }
            Event::Windows { by } => {
                self.streams.iter_mut().for_each(|stream| stream.sending.window += by);
                self.most = shared.streams.min(self.core.max_streams) as usize;
                self.block_is_final = false;
                self.pump(session);
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    fn pump(&mut self, session: &mut Session<'_>) {
        for stream in &mut self.streams {
            stream.sending.pump(stream.id, &mut self.core, session.out);
        }
    }
}

impl Client for Http2 {
    type Shared = Requests;

    fn new(shared: &Requests) -> Self {
        Self {
            core: Core::default(),
            streams: Vec::new(),
            most: shared.streams as usize,
            next: 1,
            block: Vec::new(),
            block_is_final: false,
            closing: false,
            known: Vec::new(),
            generation: 0,
        }
    }

    fn open(&mut self, _: &mut Requests, session: &mut Session<'_>) {
        self.core.open(true, 0, session.out);
    }

    fn room(&self) -> usize {
        if self.closing {
            return 0;
        }
        self.most.saturating_sub(self.streams.len())
    }

    fn start(&mut self, shared: &mut Requests, pending: Pending, session: &mut Session<'_>) {
        let id = self.next;
        self.next += 2;
        // Stream numbers end; another connection goes on.
        self.closing |= self.next >= 1 << 30;
        if !self.block_is_final {
            self.block.clear();
            self.core.encoder.start(&mut self.block);
            let mut grown = !self.block.is_empty();
            for (name, value) in &shared.fields {
                grown |= self.core.encoder.field(name.as_bytes(), value.as_bytes(), &mut self.block);
            }
            self.block_is_final = !grown;
        }
        http2::headers(id, &self.block, shared.messages == 0, session.out);
        let mut sending = Sending::new(&self.core);
        let mut left = 0;
        if shared.messages > 0 {
            let ahead = if shared.conversation == Conversation::Ahead { shared.messages } else { 1 };
            left = shared.messages - ahead;
            for nth in 1..=ahead {
                sending.push(shared.body.clone(), nth == shared.messages);
            }
            sending.pump(id, &mut self.core, session.out);
            if shared.grpc {
                session.recorder.messages(session.now, u64::from(ahead), 0);
            }
        }
        self.streams.push(Stream {
            id,
            pending,
            first_byte: 0,
            status: 0,
            grpc_status: None,
            left,
            sending,
            counter: Counter::default(),
            received: 0,
        });
    }

    fn received(
        &mut self,
        shared: &mut Requests,
        bytes: &[u8],
        session: &mut Session<'_>,
    ) -> Result<usize, Reason> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = bytes.get(used..).unwrap_or_default();
            let (taken, event) = self.core.take(rest, session.out).map_err(|_| Reason::Protocol)?;
            if taken == 0 {
                break;
            }
            used += taken;
            self.handle(shared, event, session)?;
        }
        Ok(used)
    }

    fn closing(&self) -> bool {
        self.closing
    }

    fn oldest(&self) -> Option<u64> {
        self.streams.iter().map(|stream| stream.pending.sent).min()
    }

    fn in_flight(&self) -> usize {
        self.streams.len()
    }

    fn expire(&mut self, before: u64, session: &mut Session<'_>) -> bool {
        while let Some(at) = self.streams.iter().position(|stream| stream.pending.sent < before) {
            let stream = self.streams.swap_remove(at);
            http2::reset(stream.id, CANCEL, session.out);
            session.recorder.failed(stream.pending, session.now, Reason::Timeout);
        }
        true
    }

    fn drain(&mut self, each: &mut dyn FnMut(Pending)) {
        self.streams.drain(..).for_each(|stream| each(stream.pending));
    }
}
