//! The origin's HTTP/1.1: a request that starts with the very bytes of the head before is not parsed again, and its
//! answer is one copy of prepared bytes.

use std::sync::Arc;

use super::behaviour::{Answer, Controls, Fault};
use super::{Fate, Turn};
use crate::http1::{field, head_length, lines, lists, number, Body, Chunks};
use crate::websocket;

/// What a head says.
#[derive(Debug)]
pub struct Request {
    length: usize,
    body: Body,
    close: bool,
    head_only: bool,
    upgrade: Option<String>,
    controls: Controls,
}

/// What all connections of a thread share.
#[derive(Default)]
pub struct Cache {
    request: Option<(Vec<u8>, Arc<Request>)>,
    answer: Option<((u16, usize), Vec<u8>)>,
}

enum Skip {
    Length(u64),
    Chunked(Chunks),
}

/// One connection.
#[derive(Default)]
pub struct Http1 {
    /// The body of a request that is being skipped.
    skip: Option<Skip>,
    request: Option<Arc<Request>>,
    /// An answer that waits for its time.
    waiting: Option<Answer>,
    /// What is left of a slow body.
    slow: Option<(usize, Answer)>,
    stalled: bool,
    served: u64,
}

impl Http1 {
    /// Takes requests; how many bytes.
    pub fn received(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> Result<usize, Fate> {
        let mut used = 0;
        while used < bytes.len() {
            let rest = bytes.get(used..).unwrap_or_default();
            if self.waiting.is_some() || self.slow.is_some() || self.stalled {
                return Ok(used);
            }
            if self.request.is_none() {
                let Some(request) = request(rest, turn)? else { return Ok(used) };
                used += request.length;
                self.skip = match request.body {
                    Body::Length(0) => None,
                    Body::Length(length) => Some(Skip::Length(length)),
                    Body::Chunked => Some(Skip::Chunked(Chunks::default())),
                    Body::UntilClose => return Err(Fate::Close),
                };
                self.request = Some(request);
            }
            let rest = bytes.get(used..).unwrap_or_default();
            let (taken, done) = match &mut self.skip {
                None => (0, true),
                Some(Skip::Length(length)) => {
                    let taken = (*length).min(rest.len() as u64);
                    *length -= taken;
                    (taken as usize, *length == 0)
                }
                Some(Skip::Chunked(chunks)) => chunks.take(rest).map_err(|_| Fate::Close)?,
            };
            used += taken;
            if done {
                self.skip = None;
                if let Some(request) = self.request.take() {
                    self.asked(&request, turn)?;
                }
            }
        }
        Ok(used)
    }

    fn asked(&mut self, request: &Arc<Request>, turn: &mut Turn<'_>) -> Result<(), Fate> {
        self.served += 1;
        turn.shared.count();
        if let Some(key) = &request.upgrade {
            let accept = websocket::accept(key.as_bytes());
            turn.out.push(
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                     sec-websocket-accept: {accept}\r\n\r\n"
                )
                .as_bytes(),
            );
            return Err(Fate::WebSocket);
        }
        let shared = &mut *turn.shared;
        let mut answer = shared.behaviour.answer(&request.controls, self.served, &mut shared.random);
        answer.close |= request.close;
        if request.head_only {
            self.request = Some(request.clone());
        }
        if answer.delay > 0 {
            self.waiting = Some(answer);
            turn.timers.push((turn.now + answer.delay, 0));
            return Ok(());
        }
        self.answer(answer, turn)
    }

    fn answer(&mut self, answer: Answer, turn: &mut Turn<'_>) -> Result<(), Fate> {
        let head_only = self.request.take().is_some();
        match answer.fault {
            Some(Fault::Reset) => return Err(Fate::Reset),
            Some(Fault::Close) => return Err(Fate::Close),
            Some(Fault::Stall) => {
                self.stalled = true;
                return Ok(());
            }
            _ => {}
        }
        let half = answer.fault == Some(Fault::Half);
        let plain = !answer.close && !answer.chunked && answer.slow.is_none() && !half && !head_only;
        let shared = &mut *turn.shared;
        if let (true, Some((key, bytes))) = (plain, &shared.http1.answer) {
            if *key == (answer.status, answer.size) {
                turn.out.push(bytes);
                turn.out.push_shared(&shared.body(answer.size));
                return Ok(());
            }
        }
        let reason = if answer.status == 200 { "OK" } else { "Status" };
        let mut head = format!("HTTP/1.1 {} {reason}\r\ncontent-type: text/plain\r\n", answer.status);
        if answer.chunked {
            head.push_str("transfer-encoding: chunked\r\n");
        } else if answer.status != 204 {
            head.push_str(&format!("content-length: {}\r\n", answer.size));
        }
        if answer.close {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        turn.out.push(head.as_bytes());
        if plain {
            shared.http1.answer = Some(((answer.status, answer.size), head.into_bytes()));
        }
        if let (Some((_, pause)), false) = (answer.slow, head_only || half || answer.size == 0) {
            self.slow = Some((answer.size, answer));
            turn.timers.push((turn.now + pause, 0));
            return Ok(());
        }
        if !head_only {
            let size = if half { answer.size / 2 } else { answer.size };
            piece(size, &answer, !half, turn);
        }
        if half || answer.close {
            return Err(Fate::Close);
        }
        Ok(())
    }

    /// A moment that was asked for has come.
    pub fn due(&mut self, turn: &mut Turn<'_>) -> Result<(), Fate> {
        if let Some(answer) = self.waiting.take() {
            return self.answer(answer, turn);
        }
        let Some((left, answer)) = self.slow.take() else { return Ok(()) };
        let (size, pause) = answer.slow.unwrap_or((left, 0));
        let size = size.min(left);
        piece(size, &answer, size == left, turn);
        if size < left {
            self.slow = Some((left - size, answer));
            turn.timers.push((turn.now + pause, 0));
        } else if answer.close {
            return Err(Fate::Close);
        }
        Ok(())
    }
}

/// A part of a body.
fn piece(size: usize, answer: &Answer, last: bool, turn: &mut Turn<'_>) {
    if answer.chunked && size > 0 {
        turn.out.push(format!("{size:x}\r\n").as_bytes());
    }
    turn.out.push_shared(&turn.shared.body(size));
    if answer.chunked {
        turn.out.push(if size == 0 { b"" } else { b"\r\n" });
        turn.out.push(if last { b"0\r\n\r\n" } else { b"" });
    }
}

/// The head at the start of the bytes, if it is whole.
fn request(bytes: &[u8], turn: &mut Turn<'_>) -> Result<Option<Arc<Request>>, Fate> {
    let cache = &mut turn.shared.http1;
    if let Some((text, request)) = &cache.request {
        if bytes.starts_with(text) {
            return Ok(Some(request.clone()));
        }
    }
    let Some(length) = head_length(bytes).map_err(|_| Fate::Close)? else { return Ok(None) };
    let head = bytes.get(..length).unwrap_or_default();
    let mut lines = lines(head);
    let first = lines.next().unwrap_or_default();
    let old = first.ends_with(b" HTTP/1.0");
    if !old && !first.ends_with(b" HTTP/1.1") {
        return Err(Fate::Close);
    }
    let mut request = Request {
        length,
        body: Body::Length(0),
        close: old,
        head_only: first.starts_with(b"HEAD "),
        upgrade: None,
        controls: Controls::default(),
    };
    let (mut key, mut websocket) = (None, false);
    for (name, value) in lines.filter_map(field) {
        let name = name.to_ascii_lowercase();
        match &*name {
            b"content-length" if request.body != Body::Chunked => {
                request.body = Body::Length(number(value).ok_or(Fate::Close)?);
            }
            b"transfer-encoding" if lists(value, b"chunked") => request.body = Body::Chunked,
            b"connection" => request.close = lists(value, b"close") || (old && !lists(value, b"keep-alive")),
            b"upgrade" => websocket = lists(value, b"websocket"),
            b"sec-websocket-key" => key = std::str::from_utf8(value).ok().map(str::to_owned),
            name => request.controls.header(name, value),
        }
    }
    request.upgrade = key.filter(|_| websocket);
    let request = Arc::new(request);
    cache.request = Some((head.to_vec(), request.clone()));
    Ok(Some(request))
}
