//! The request's body on its way upstream, and the copies of it that another try or a mirror needs.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

use super::lent::Lent;
use super::shadow::Feed;
use super::{Attempts, Failure};
use crate::config::cluster::UpstreamProtocol;
use crate::http::exchange::Exchange;
use crate::http::pump::{Out, Pump, PumpError, Seen};

/// Copies of the body.
#[derive(Debug)]
pub(super) struct Copies {
    /// Pieces kept for another try; `None` when there will be none.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    /// Most bytes kept.
    keep: usize,
    /// Most bytes that wait for one mirror.
    limit: usize,
    mirrors: Vec<Rc<Feed>>,
    /// How often the body had grown too large, since last asked.
    abandoned: u64,
}

impl Copies {
    /// Keeps up to `keep` bytes for another try, if it is to; at most `limit` bytes wait for one mirror.
    pub(super) fn new(keep: Option<usize>, limit: usize) -> Self {
        let kept = keep.map(|_| Vec::new());
        Self { kept, kept_bytes: 0, keep: keep.unwrap_or(0), limit, mirrors: Vec::new(), abandoned: 0 }
    }

    /// The body has come before the first try: it is kept until there is an answer.
    pub(super) fn hold(&mut self, body: &Bytes) {
        self.keep = self.keep.max(body.len());
        self.kept_bytes = body.len();
        self.kept = Some(if body.is_empty() { Vec::new() } else { vec![body.clone()] });
    }

    /// There will be no other try.
    pub(super) fn stop(&mut self) {
        self.kept = None;
    }

    /// Whether another try can have the same body.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// The body as it was kept, if it was.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let mut pieces = self.kept.take()?;
        Some(match pieces.len() {
            0 => Bytes::new(),
            1 => pieces.swap_remove(0),
            _ => pieces.concat().into(),
        })
    }

    pub(super) fn add_mirror(&mut self, feed: Rc<Feed>) {
        self.mirrors.push(feed);
    }

    fn add(&mut self, piece: Seen<'_>) {
        if self.kept.is_none() && self.mirrors.is_empty() {
            return;
        }
        let piece = match piece {
            Seen::Bytes(bytes) => Bytes::copy_from_slice(bytes),
            Seen::Shared(piece) => piece.clone(),
        };
        let limit = self.limit;
        let abandoned = &mut self.abandoned;
        self.mirrors.retain(|mirror| {
            let fits = mirror.push(piece.clone(), limit);
            *abandoned += u64::from(!fits);
            fits
        });
        if let Some(pieces) = &mut self.kept {
            self.kept_bytes += piece.len();
            if self.kept_bytes <= self.keep {
                pieces.push(piece);
            } else {
                self.kept = None;
                *abandoned += 1;
            }
        }
    }

    /// The body is complete.
    fn end(&mut self, upload: &Pump) {
        for mirror in self.mirrors.drain(..) {
            mirror.end(upload.received_trailers.clone());
        }
    }

    /// Puts what was kept into `out`, framed.
    pub(super) fn replay(&self, upload: &Pump, out: &mut Out) {
        for piece in self.kept.iter().flatten() {
            upload.replay(piece, out);
        }
        if upload.is_passed() {
            upload.replay_end(out);
        }
    }
}

/// A body, as far as it had come when there was no connection for it: nothing of it has been sent.
pub(super) struct Carried {
    out: Out,
    /// How much had come then. Where more has since, this is not all of it.
    bytes: u64,
    complete: bool,
}

impl Drop for Copies {
    /// The request ended before its body did.
    fn drop(&mut self) {
        for mirror in &self.mirrors {
            mirror.cut();
        }
    }
}

impl Attempts<'_> {
    pub(super) fn can_replay(&self, ex: &Exchange<'_>) -> bool {
        let is_whole =
            |carried: &Carried| carried.bytes == ex.upload.bytes && carried.complete == ex.upload.is_passed();
        Self::is_fresh(ex) || self.copies.is_kept() || self.carried.as_deref().is_some_and(is_whole)
    }

    /// Whether nothing of the body has come, nor been given by a filter.
    fn is_fresh(ex: &Exchange<'_>) -> bool {
        ex.upload.bytes == 0 && ex.upload.passed() == 0
    }

    /// Keeps what has come of the body while there was no connection, behind the `head` bytes of its head, if no copy
    /// of it is kept: a host that cannot be reached loses no request, however large, as long as it fits the buffers.
    pub(super) fn carry(&mut self, ex: &Exchange<'_>, out: Out, head: usize) {
        let protocol = self.cluster.cluster.http.protocol;
        // Framed for one protocol it is of no use to the other.
        let may_change = self.cluster.is_aggregate() || protocol == UpstreamProtocol::Auto;
        if self.copies.is_kept() || Self::is_fresh(ex) || may_change || self.terminate {
            return;
        }
        let out = match out {
            Out::Wire(wire) => Out::Wire(wire.without_head(head)),
            frames @ Out::Frames(_) => frames,
        };
        let complete = ex.upload.is_passed();
        self.carried = Some(Box::new(Carried { out, bytes: ex.upload.bytes, complete }));
    }

    /// Puts into `out` what an earlier try had of the body.
    pub(super) fn replay(&mut self, ex: &Exchange<'_>, out: &mut Out) {
        match (self.carried.take().map(|carried| carried.out), out) {
            (Some(Out::Wire(carried)), Out::Wire(out)) => out.append(carried),
            (Some(carried @ Out::Frames(_)), out @ Out::Frames(_)) => *out = carried,
            (_, out) => self.copies.replay(&ex.upload, out),
        }
    }

    /// Takes the request's body in while there is no connection for it.
    pub(super) fn receive(
        &mut self,
        ex: &mut Exchange<'_>,
        out: &mut Out,
        context: &mut Context<'_>,
    ) -> Result<(), Failure> {
        if ex.upload.is_passed() {
            return Ok(());
        }
        let Exchange { upload, down, .. } = ex;
        let copies = &mut self.copies;
        let each = |piece: Seen<'_>| copies.add(piece);
        let polled = upload.poll_receive(down.client.source(), out, each, context);
        self.moved(ex, false);
        match polled {
            Poll::Ready(Err(error)) => upload_failure(error),
            _ => Ok(()),
        }
    }

    /// Moves the request's body on; an upstream that takes no more of it may still answer.
    pub(super) fn poll_upload(
        &mut self,
        ex: &mut Exchange<'_>,
        connection: &Lent,
        out: &mut Out,
        context: &mut Context<'_>,
    ) -> Result<(), Failure> {
        let Exchange { upload, down, .. } = ex;
        let was_received = upload.is_passed();
        if was_received && out.is_empty() {
            return Ok(());
        }
        let Some(sink) = connection.sink(out) else { return Ok(()) };
        let copies = &mut self.copies;
        let each = |piece: Seen<'_>| copies.add(piece);
        let polled = upload.poll(down.client.source(), sink, each, context);
        self.moved(ex, was_received);
        match polled {
            Poll::Pending | Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(PumpError::SinkIo(_))) => {
                out.clear();
                Ok(())
            }
            Poll::Ready(Err(error)) => upload_failure(error),
        }
    }

    /// Notes what a turn of the upload has changed.
    fn moved(&mut self, ex: &mut Exchange<'_>, was_received: bool) {
        if self.copies.abandoned > 0 {
            let abandoned = std::mem::take(&mut self.copies.abandoned);
            let kept = self.retries.is_some() || self.forward.redirects.is_some();
            if kept || self.copies.is_kept() {
                self.cluster.cluster.stats().retry_or_shadow_abandoned.increment(abandoned);
            }
            if !self.copies.is_kept() {
                self.retries = None;
            }
        }
        let progress = std::mem::take(&mut ex.upload.progress);
        let mut read = None;
        if !was_received && ex.upload.is_passed() {
            let now = Instant::now();
            read = Some(now);
            ex.info.times.request_complete = Some(now);
            self.copies.end(&ex.upload);
            if !self.upgrade {
                self.deadlines.request_complete(now);
            }
        }
        if progress {
            if ex.upload.is_received() {
                self.deadlines.request_received();
            }
            match read {
                Some(now) => self.deadlines.touch_at(now),
                None => self.deadlines.touch(),
            }
        }
    }
}

fn upload_failure(error: PumpError) -> Result<(), Failure> {
    Err(match error {
        PumpError::Source(refusal) => Failure::Refused(refusal),
        PumpError::Answer(reply) => Failure::Answer(reply),
        PumpError::SourceClosed
        | PumpError::SourceIo(_)
        | PumpError::SourceReset(_)
        | PumpError::SinkIo(_) => Failure::Gone,
    })
}
