//! The client of HTTP/1.1: one request at a time on a connection, sent as the same bytes again and again. Of an answer
//! it reads the status and what tells where it ends. An answer that starts with the very bytes of the head before is
//! not parsed again: heads differ only when the server's date does.

use bytes::Bytes;

use super::{Client, Session};
use crate::http1::{parse_answer, Body, Chunks, Head};
use crate::record::{Pending, Reason, Recorder};

/// What all connections of a thread share.
pub struct Requests {
    request: Bytes,
    head_only: bool,
    last: Option<(Vec<u8>, Head)>,
}

impl Requests {
    /// The whole request; `head_only` if its method is HEAD, whose answers have no body.
    pub fn new(request: Bytes, head_only: bool) -> Self {
        Self { request, head_only, last: None }
    }

    /// The head at the start of the bytes, if it is whole.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<Head>, Reason> {
        if let Some((text, head)) = &self.last {
            if bytes.starts_with(text) {
                return Ok(Some(*head));
            }
        }
        let Some(mut head) = parse_answer(bytes).map_err(|_| Reason::Protocol)? else { return Ok(None) };
        if self.head_only {
            head.body = Body::Length(0);
        }
        let text = bytes.get(..head.length).unwrap_or_default();
        self.last = Some((text.to_vec(), head));
        Ok(Some(head))
    }
}

/// One connection.
#[derive(Default)]
pub struct Http1 {
    pending: Option<Pending>,
    /// When the first byte of the answer came; 0 before.
    first_byte: u64,
    status: u16,
    /// The body that is being read.
    body: Option<Rest>,
    close: bool,
}

enum Rest {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Http1 {
    fn finish(&mut self, now: u64, recorder: &mut Recorder) {
        self.body = None;
        if let Some(pending) = self.pending.take() {
            recorder.answered(pending, now, self.first_byte, self.status);
        }
        self.first_byte = 0;
    }
}

impl Client for Http1 {
    type Shared = Requests;

    fn new(_: &Requests) -> Self {
        Self::default()
    }

    fn room(&self) -> usize {
        usize::from(self.pending.is_none() && !self.close)
    }

    fn start(&mut self, shared: &mut Requests, pending: Pending, session: &mut Session<'_>) {
        self.pending = Some(pending);
        session.out.push_shared(&shared.request);
    }

    fn received(
        &mut self,
        shared: &mut Requests,
        bytes: &[u8],
        session: &mut Session<'_>,
    ) -> Result<usize, Reason> {
        if self.pending.is_none() {
            return Err(Reason::Protocol);
        }
        if self.first_byte == 0 {
            self.first_byte = session.now;
        }
        let mut used = 0;
        while self.body.is_none() {
            let rest = bytes.get(used..).unwrap_or_default();
            let Some(head) = shared.head(rest)? else { return Ok(used) };
            used += head.length;
            if head.status < 200 {
                continue;
            }
            (self.status, self.close) = (head.status, head.close);
            self.body = Some(match head.body {
                Body::Length(length) => Rest::Length(length),
                Body::Chunked => Rest::Chunked(Chunks::default()),
                Body::UntilClose => Rest::UntilClose,
            });
        }
        let rest = bytes.get(used..).unwrap_or_default();
        let (taken, done) = match &mut self.body {
            Some(Rest::Length(length)) => {
                let taken = (*length).min(rest.len() as u64);
                *length -= taken;
                (taken as usize, *length == 0)
            }
            Some(Rest::Chunked(chunks)) => chunks.take(rest).map_err(|_| Reason::Protocol)?,
            Some(Rest::UntilClose) | None => (rest.len(), false),
        };
        session.recorder.body(session.now, taken);
        if done {
            self.finish(session.now, session.recorder);
            // Nothing else was asked for.
            if used + taken < bytes.len() {
                return Err(Reason::Protocol);
            }
        }
        Ok(used + taken)
    }

    fn ended(&mut self, _: &mut Requests, session: &mut Session<'_>) {
        if matches!(self.body, Some(Rest::UntilClose)) {
            self.finish(session.now, session.recorder);
        }
    }

    fn closing(&self) -> bool {
        self.close
    }

    fn oldest(&self) -> Option<u64> {
        self.pending.map(|pending| pending.sent)
    }

    fn in_flight(&self) -> usize {
        usize::from(self.pending.is_some())
    }

    fn drain(&mut self, each: &mut dyn FnMut(Pending)) {
        if let Some(pending) = self.pending.take() {
            each(pending);
        }
    }
}
