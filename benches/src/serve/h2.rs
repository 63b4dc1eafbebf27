//! The origin's HTTP/2: answers to any request, and the gRPC echo service.

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;

use super::behaviour::{Answer, Controls, Fault};
use super::{Fate, Turn};
use crate::generate::grpc::{framed, EchoRequest, EchoResponse};
use crate::http2::{self, Core, Event, Sending};

const STREAMS: u32 = 1 << 20;
const INTERNAL_ERROR: u32 = 2;
/// The longest gRPC message that is put together.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Http,
    Unary,
    Download,
    Upload,
    Chat,
}

struct Stream {
    id: u32,
    method: Method,
    head_only: bool,
    answer: Answer,
    /// The request has ended; the answer has begun.
    asked: bool,
    begun: bool,
    /// What is left of a slow body.
    slow: usize,
    sending: Sending,
    /// gRPC ends with a status of its own, once everything is sent.
    trailers: bool,
    received: u32,
    message: BytesMut,
    /// Messages and bytes of an upload.
    messages: u32,
    bytes: u64,
}

/// One connection.
#[derive(Default)]
pub struct Http2 {
    core: Core,
    streams: Vec<Stream>,
    served: u64,
    last: u32,
    block: Vec<u8>,
    /// The preface has come.
    opened: bool,
    closing: bool,
}

impl Http2 {
    /// Takes frames; how many bytes.
    pub fn received(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> Result<usize, Fate> {
        let mut used = 0;
        if !self.opened {
            if bytes.len() < http2::PREFACE.len() {
                return Ok(0);
            }
            if !bytes.starts_with(http2::PREFACE) {
                return Err(Fate::Close);
            }
            (self.opened, used) = (true, http2::PREFACE.len());
            self.core.open(false, STREAMS, turn.out);
        }
        while used < bytes.len() {
            let rest = bytes.get(used..).unwrap_or_default();
            let (taken, event) = self.core.take(rest, turn.out).map_err(|_| Fate::Close)?;
            if taken == 0 {
                break;
            }
            used += taken;
            self.handle(event, turn)?;
        }
        if self.closing && self.streams.is_empty() {
            return Err(Fate::Close);
        }
        Ok(used)
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.streams.iter().position(|stream| stream.id == id)
    }

    fn handle(&mut self, event: Event<'_>, turn: &mut Turn<'_>) -> Result<(), Fate> {
        match event {
            Event::Headers { stream, block, end } => {
                let mut controls = Controls::default();
                let (mut method, mut head_only) = (Method::Http, false);
                let decoded = self.core.decoder.decode(&block, |name, value| match name {
                    b":method" => head_only = value == b"HEAD",
                    b":path" => {
                        method = match value.strip_prefix(b"/outrigger.load.v1.Echo/") {
                            Some(b"Unary") => Method::Unary,
                            Some(b"Download") => Method::Download,
                            Some(b"Upload") => Method::Upload,
                            Some(b"Chat") => Method::Chat,
                            _ => Method::Http,
                        };
                    }
                    name => controls.header(name, value),
                });
                decoded.map_err(|_| Fate::Close)?;
                if self.find(stream).is_none() && !self.closing {
                    self.served += 1;
                    self.last = stream;
                    let shared = &mut *turn.shared;
                    let answer = shared.behaviour.answer(&controls, self.served, &mut shared.random);
                    if answer.close {
                        self.closing = true;
                        http2::goaway(stream, turn.out);
                    }
                    self.streams.push(Stream {
                        id: stream,
                        method,
                        head_only,
                        answer,
                        asked: false,
                        begun: false,
                        slow: 0,
                        sending: Sending::new(&self.core),
                        trailers: false,
                        received: 0,
                        message: BytesMut::new(),
                        messages: 0,
                        bytes: 0,
                    });
                }
                if end {
                    self.ended(stream, turn)?;
                }
            }
            Event::Data { stream: id, bytes, end, .. } => {
                let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) else {
                    return Ok(());
                };
                stream.received += bytes.len() as u32;
                if stream.received > http2::WINDOW / 2 {
                    http2::window_update(id, std::mem::take(&mut stream.received), turn.out);
                }
                if stream.method != Method::Http {
                    stream.message.extend_from_slice(bytes);
                    self.messages(id, turn)?;
                }
                if end {
                    self.ended(id, turn)?;
                }
            }
            Event::Reset { stream } => self.streams.retain(|open| open.id != stream),
            Event::Goaway { .. } => self.closing = true,
            Event::Room { stream: 0, .. } => self.pump(turn),
            Event::Room { stream: id, by } => {
                if let Some(at) = self.find(id) {
                    if let Some(stream) = self.streams.get_mut(at) {
                        stream.sending.window += by;
                    }
                    self.send(at, turn);
                }
            }
            Event::Windows { by } => {
                self.streams.iter_mut().for_each(|stream| stream.sending.window += by);
                self.pump(turn);
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    /// Takes whole messages of a gRPC request.
    fn messages(&mut self, id: u32, turn: &mut Turn<'_>) -> Result<(), Fate> {
        loop {
            let Some(at) = self.find(id) else { return Ok(()) };
            let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
            let Some([_, length @ ..]) = stream.message.first_chunk::<5>().copied() else { return Ok(()) };
            let length = u32::from_be_bytes(length) as usize;
            if length > MAX_MESSAGE {
                return Err(Fate::Close);
            }
            if stream.message.len() < 5 + length {
                return Ok(());
            }
            stream.message.advance(5);
            let message = stream.message.split_to(length).freeze();
            let request = EchoRequest::decode(message).map_err(|_| Fate::Close)?;
            stream.messages += 1;
            stream.bytes += request.payload.len() as u64;
            let reply =
                EchoResponse { payload: request.payload, messages: stream.messages, bytes: stream.bytes };
            match stream.method {
                Method::Unary | Method::Chat => stream.sending.push(framed(&reply), false),
                Method::Download => {
                    let reply = framed(&reply);
                    (0..request.messages).for_each(|_| stream.sending.push(reply.clone(), false));
                }
                Method::Upload | Method::Http => {}
            }
            if stream.method == Method::Chat {
                self.begin(at, turn)?;
            }
        }
    }

    /// The request is complete.
    fn ended(&mut self, id: u32, turn: &mut Turn<'_>) -> Result<(), Fate> {
        let Some(at) = self.find(id) else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
        if std::mem::replace(&mut stream.asked, true) {
            return Ok(());
        }
        turn.shared.count();
        if stream.method == Method::Upload {
            let reply =
                EchoResponse { payload: Bytes::new(), messages: stream.messages, bytes: stream.bytes };
            stream.sending.push(framed(&reply), false);
        }
        stream.trailers = stream.method != Method::Http;
        if stream.begun {
            self.send(at, turn);
            return Ok(());
        }
        let delay = stream.answer.delay;
        if delay > 0 {
            turn.timers.push((turn.now + delay, id));
            return Ok(());
        }
        self.begin(at, turn)
    }

    /// The head of an answer, and what there is of its body.
    fn begin(&mut self, at: usize, turn: &mut Turn<'_>) -> Result<(), Fate> {
        let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
        if std::mem::replace(&mut stream.begun, true) {
            self.send(at, turn);
            return Ok(());
        }
        match stream.answer.fault {
            Some(Fault::Reset) => {
                http2::reset(stream.id, INTERNAL_ERROR, turn.out);
                self.streams.swap_remove(at);
                return Ok(());
            }
            Some(Fault::Close) => return Err(Fate::Close),
            Some(Fault::Stall) => return Ok(()),
            _ => {}
        }
        self.block.clear();
        self.core.encoder.start(&mut self.block);
        let encoder = &mut self.core.encoder;
        if stream.method == Method::Http {
            let Answer { status, size, .. } = stream.answer;
            encoder.field(b":status", status.to_string().as_bytes(), &mut self.block);
            encoder.field(b"content-type", b"text/plain", &mut self.block);
            if status != 204 {
                encoder.field(b"content-length", size.to_string().as_bytes(), &mut self.block);
            }
            let empty = size == 0 || stream.head_only;
            http2::headers(stream.id, &self.block, empty, turn.out);
            if empty {
                self.streams.swap_remove(at);
                return Ok(());
            }
            if stream.answer.fault == Some(Fault::Half) {
                stream.sending.push(turn.shared.body(size / 2), false);
                stream.sending.pump(stream.id, &mut self.core, turn.out);
                http2::reset(stream.id, INTERNAL_ERROR, turn.out);
                self.streams.swap_remove(at);
                return Ok(());
            }
            if let Some((_, pause)) = stream.answer.slow {
                stream.slow = size;
                turn.timers.push((turn.now + pause, stream.id));
                return Ok(());
            }
            stream.sending.push(turn.shared.body(size), true);
        } else {
            encoder.field(b":status", b"200", &mut self.block);
            encoder.field(b"content-type", b"application/grpc", &mut self.block);
            http2::headers(stream.id, &self.block, false, turn.out);
        }
        self.send(at, turn);
        Ok(())
    }

    /// Sends what windows allow, and the end.
    fn send(&mut self, at: usize, turn: &mut Turn<'_>) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        if !stream.begun {
            return;
        }
        stream.sending.pump(stream.id, &mut self.core, turn.out);
        if !stream.asked || !stream.sending.is_done() || stream.slow > 0 {
            return;
        }
        if stream.answer.fault == Some(Fault::Stall) {
            return;
        }
        if stream.trailers {
            self.block.clear();
            self.core.encoder.start(&mut self.block);
            self.core.encoder.field(b"grpc-status", b"0", &mut self.block);
            http2::headers(stream.id, &self.block, true, turn.out);
        }
        self.streams.swap_remove(at);
    }

    fn pump(&mut self, turn: &mut Turn<'_>) {
        // From the end, for those that are done are removed.
        for at in (0..self.streams.len()).rev() {
            self.send(at, turn);
        }
    }

    /// A moment that was asked for has come.
    pub fn due(&mut self, id: u32, turn: &mut Turn<'_>) -> Result<(), Fate> {
        let Some(at) = self.find(id) else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(at) else { return Ok(()) };
        if !stream.begun {
            self.begin(at, turn)?;
        } else if stream.slow > 0 {
            let (size, pause) = stream.answer.slow.unwrap_or((stream.slow, 0));
            let size = size.min(stream.slow);
            stream.slow -= size;
            stream.sending.push(turn.shared.body(size), stream.slow == 0);
            if stream.slow > 0 {
                turn.timers.push((turn.now + pause, id));
            }
            self.send(at, turn);
        }
        if self.closing && self.streams.is_empty() {
            return Err(Fate::Close);
        }
        Ok(())
    }
}
