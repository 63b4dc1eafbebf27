//! What holds a body's pieces for a while on their way: its pace, and services that look at them.
//!
//! Comes in: pieces, and the end with its trailers. Goes out: the same or others, in their turn. Filters that need no
//! time ([`transforms`]) come before the first stage or after any.
//!
//! [`transforms`]: super::filters::transforms

use std::collections::VecDeque;
use std::task::{ready, Context, Poll};

use bytes::Bytes;

use super::exchange::Reply;
use super::fields::Fields;
use super::filters::bandwidth_limit::Throttle;
use super::filters::ext_proc::duplex::Duplex;
use super::filters::ext_proc::stream::Processor;
use super::filters::ext_proc::watch::Watch;
use super::filters::transforms::{Transform, Transforms};
use super::pace::Pace;

/// What may pass.
#[derive(Debug)]
pub(super) enum Passes {
    Piece(Bytes),
    End(Option<Fields>),
    /// Nothing is held.
    Nothing,
}

/// Why nothing more passes.
#[derive(Debug)]
pub(super) enum Stop {
    /// The message is answered with this, where that is still possible.
    Reply(Box<Reply>),
    /// What came is not what it should be.
    Broken,
}

/// One of them.
#[derive(Debug)]
pub(super) enum Stage {
    Pace(Box<Pace>),
    Throttle(Box<Throttle>),
    Processor(Box<Processor>),
    Duplex(Box<Duplex>),
    Watch(Box<Watch>),
}

/// All that one body goes through, in order.
#[derive(Debug, Default)]
pub(super) struct Stages {
    list: Vec<(Stage, Transforms)>,
    /// What has left the last of them.
    out: VecDeque<Passes>,
    /// What was known before it was taken, with the place of the stage that it came from: those that were added
    /// meanwhile have it too.
    early: VecDeque<(usize, Passes)>,
    /// The end has left it.
    ended: bool,
    /// Bytes that have passed.
    pub(super) passed: u64,
}

impl Stage {
    pub(super) fn hold(&mut self, piece: Bytes) {
        match self {
            Stage::Pace(pace) => pace.hold(piece),
            Stage::Throttle(throttle) => throttle.hold(piece),
            Stage::Processor(processor) => processor.hold(piece),
            Stage::Duplex(duplex) => duplex.hold(piece),
            Stage::Watch(watch) => watch.hold(piece),
        }
    }

    pub(super) fn hold_end(&mut self, trailers: Option<Fields>) {
        match self {
            Stage::Pace(pace) => pace.hold_end(trailers),
            Stage::Throttle(throttle) => throttle.hold_end(trailers),
            Stage::Processor(processor) => processor.hold_end(trailers),
            Stage::Duplex(duplex) => duplex.hold_end(trailers),
            Stage::Watch(watch) => watch.hold_end(trailers),
        }
    }

    fn length(&self) -> usize {
        match self {
            Stage::Pace(pace) => pace.length(),
            Stage::Throttle(throttle) => throttle.length(),
            Stage::Processor(processor) => processor.length(),
            Stage::Duplex(duplex) => duplex.length(),
            Stage::Watch(watch) => watch.length(),
        }
    }

    fn gather(&mut self, context: &mut Context<'_>) {
        match self {
            Stage::Processor(processor) => processor.gather(context),
            Stage::Duplex(duplex) => duplex.gather(context),
            Stage::Pace(_) | Stage::Throttle(_) | Stage::Watch(_) => {}
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Passes, Stop>> {
        match self {
            Stage::Pace(pace) => pace.poll_next(context).map(Ok),
            Stage::Throttle(throttle) => throttle.poll_next(context).map(Ok),
            Stage::Processor(processor) => processor.poll_next(context),
            Stage::Duplex(duplex) => duplex.poll_next(context),
            Stage::Watch(watch) => watch.poll_next(context),
        }
    }
}

impl Stages {
    /// One more, after those that are there.
    pub(super) fn add(&mut self, stage: Stage) {
        self.list.push((stage, Transforms::default()));
    }

    /// A filter after those that are there.
    pub(super) fn transform(&mut self, transform: Transform) {
        if let Some((_, then)) = self.list.last_mut() {
            then.add(transform);
        }
    }

    /// Bytes that wait.
    pub(super) fn length(&self) -> usize {
        self.list.iter().map(|(stage, _)| stage.length()).sum()
    }

    /// Whether the body's end has passed.
    pub(super) fn is_over(&self) -> bool {
        self.ended
    }

    /// There is no room for what passes: services that say more are not heard, but calls beside theirs go on.
    pub(super) fn gather(&mut self, context: &mut Context<'_>) {
        self.list.iter_mut().for_each(|(stage, _)| stage.gather(context));
    }

    pub(super) fn hold(&mut self, piece: Bytes) {
        if let (false, Some((stage, _))) = (piece.is_empty(), self.list.first_mut()) {
            stage.hold(piece);
        }
    }

    /// The body ends here, with these trailers.
    pub(super) fn hold_end(&mut self, trailers: Option<Fields>) {
        if let Some((stage, _)) = self.list.first_mut() {
            stage.hold_end(trailers);
        }
    }

    /// What passes next; pending while something is held that may not.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Passes, Stop>> {
        let (mut at, mut waits) = (0, false);
        loop {
            if let Some(passes) = self.out.pop_front() {
                match &passes {
                    Passes::Piece(piece) => self.passed += piece.len() as u64,
                    Passes::End(_) => self.ended = true,
                    Passes::Nothing => {}
                }
                return Poll::Ready(Ok(passes));
            }
            if let Some((from, passes)) = self.early.pop_front() {
                self.leave(from, passes)?;
                continue;
            }
            let Some((stage, _)) = self.list.get_mut(at) else { break };
            match stage.poll_next(context) {
                Poll::Ready(Err(stop)) => return Poll::Ready(Err(stop)),
                // Those behind it may have something.
                Poll::Pending => (at, waits) = (at + 1, true),
                Poll::Ready(Ok(Passes::Nothing)) => at += 1,
                Poll::Ready(Ok(passes)) => self.leave(at, passes)?,
            }
        }
        if waits {
            Poll::Pending
        } else {
            Poll::Ready(Ok(Passes::Nothing))
        }
    }

    /// Ready as soon as the last stage lets something pass, or holds nothing. Others may still be added after it.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let last = self.list.len().saturating_sub(1);
        debug_assert!(
            self.list.last().is_none_or(|(_, then)| then.is_empty()),
            "a filter has been added already"
        );
        let passes = ready!(self.poll_next(context))?;
        match &passes {
            Passes::Piece(piece) => self.passed -= piece.len() as u64,
            Passes::End(_) => self.ended = false,
            Passes::Nothing => return Poll::Ready(Ok(())),
        }
        self.early.push_back((last, passes));
        self.early.extend(self.out.drain(..).map(|passes| (last, passes)));
        Poll::Ready(Ok(()))
    }

    /// What has left the stage at `at` goes through the filters behind that.
    fn leave(&mut self, at: usize, passes: Passes) -> Result<(), Stop> {
        let Some((_, then)) = self.list.get_mut(at) else { return Ok(()) };
        match passes {
            Passes::Piece(piece) => {
                let (piece, rest) = then.piece(piece).zip(then.pause()).ok_or(Stop::Broken)?;
                for piece in [piece, rest] {
                    self.pass(at, Passes::Piece(piece));
                }
            }
            Passes::End(trailers) => {
                let (piece, trailers) = then.end(trailers).ok_or(Stop::Broken)?;
                self.pass(at, Passes::Piece(piece));
                self.pass(at, Passes::End(trailers));
            }
            Passes::Nothing => {}
        }
        Ok(())
    }

    /// Hands on what has left the stage at `at`.
    fn pass(&mut self, at: usize, passes: Passes) {
        if matches!(&passes, Passes::Piece(piece) if piece.is_empty()) {
            return;
        }
        match (self.list.get_mut(at + 1), passes) {
            (Some((next, _)), Passes::Piece(piece)) => next.hold(piece),
            (Some((next, _)), Passes::End(trailers)) => next.hold_end(trailers),
            (_, passes) => self.out.push_back(passes),
        }
    }
}
