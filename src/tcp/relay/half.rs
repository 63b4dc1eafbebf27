//! One direction of a relay.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::Interest;

use crate::runtime::Stream;
use crate::tcp::handover::{Leg, Stage};
use crate::tcp::splice::{Lent, Pipes};

/// The thread's copy buffer, and the most a direction holds in memory for a slow reader.
const SCRATCH: usize = 64 << 10;
/// A read of at least this much counts as bulk.
const BIG: usize = 16 << 10;
/// Bytes in big reads, one after the other, that move a direction to splicing.
const BULK: usize = 64 << 10;
/// A splice of less than this is no gain over a copy.
const SMALL: usize = 8 << 10;
/// Small splices in a row that move a direction back to copying.
const SMALL_STREAK: u32 = 8;
/// After failing to get a pipe, bytes to copy before asking again.
const RETRY_PIPE: usize = 1 << 20;
/// How a read that may not pass is told from one that failed: no read of a socket fails so.
pub(super) const REFUSED: io::ErrorKind = io::ErrorKind::Unsupported;
/// Reads in one turn of a direction before the other one has its turn.
const TURN: u32 = 4;

pub(super) enum Turn {
    /// Waits for a stream, which will wake the task.
    Blocked,
    /// Had its share; could go on.
    More,
    /// Just passed the end on.
    Done,
}

pub(super) enum At {
    Source,
    Target,
}

/// One direction.
pub(super) struct Half {
    stage: Stage,
    /// Bytes in memory that the target has not taken.
    pending: BytesMut,
    /// A pipe with bytes that the target has not taken.
    pipe: Option<Lent>,
    pipes: Rc<Pipes>,
    /// Most bytes held.
    limit: usize,
    mode: Mode,
    /// The source was read since the task woke up.
    fresh: bool,
    /// What was read last may not pass.
    refused: bool,
}

#[derive(Clone, Copy)]
enum Mode {
    /// Copying, with the bytes read so far in an unbroken row of big reads (negative: not to be
    /// counted yet, because pipes are short).
    Copy(isize),
    /// Copying for good: one of the streams cannot be spliced.
    CopyOnly,
    /// Splicing, with the number of small moves in a row.
    Splice(u32),
}

impl Half {
    pub(super) fn new(leg: Leg, pipes: &Rc<Pipes>, limit: usize, splices: bool) -> Self {
        let Leg { held: pending, stage } = leg;
        let mode = if splices { Mode::Copy(0) } else { Mode::CopyOnly };
        Self { stage, pending, pipe: None, pipes: pipes.clone(), limit, mode, fresh: false, refused: false }
    }

    /// Where it stands; it moves no more.
    pub(super) fn stop(&mut self) -> io::Result<Leg> {
        let mut held = std::mem::take(&mut self.pending);
        if let Some(pipe) = &mut self.pipe {
            held.extend_from_slice(&pipe.take()?);
        }
        Ok(Leg { held, stage: self.stage })
    }

    pub(super) fn held(&self) -> usize {
        self.pending.len() + self.pipe.as_ref().map_or(0, |pipe| pipe.held())
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Stops without delivering what is held.
    pub(super) fn abandon(&mut self) {
        self.stage = Stage::Done;
        self.pending = BytesMut::new();
        self.pipe = None;
    }

    /// Moves what can be moved, up to this direction's share.
    pub(super) fn turn(
        &mut self,
        cx: &mut Context<'_>,
        source: &Stream,
        target: &Stream,
        (read, wrote): (&Cell<u64>, &Cell<u64>),
        admits: &dyn Fn() -> bool,
    ) -> Result<Turn, (At, io::Error)> {
        for _ in 0..TURN {
            while self.held() > 0 {
                if pending_or(target.poll_write_ready(cx)).map_err(|error| (At::Target, error))? {
                    source.gather(cx);
                    return Ok(Turn::Blocked);
                }
                self.deliver(target, wrote).map_err(|error| (At::Target, error))?;
            }
            if self.stage == Stage::Ending {
                self.release();
                // A target that is gone has no use for our end of stream.
                let _ = target.shutdown_write();
                self.stage = Stage::Done;
                return Ok(Turn::Done);
            }
            if pending_or(source.poll_read_ready(cx)).map_err(|error| (At::Source, error))? {
                self.release();
                self.fresh = false;
                return Ok(Turn::Blocked);
            }
            let count = match self.fetch(source, target, wrote, admits)? {
                Some(count) if self.refused => {
                    read.set(read.get() + count as u64);
                    return Err((At::Source, REFUSED.into()));
                }
                Some(0) => {
                    self.stage = Stage::Ending;
                    continue;
                }
                Some(count) => count,
                None => continue,
            };
            read.set(read.get() + count as u64);
            self.fresh = true;
        }
        Ok(Turn::More)
    }

    /// Gives the pipe back once it is empty, and memory likewise.
    fn release(&mut self) {
        self.pipe = None;
        if self.pending.capacity() > 0 && self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
    }

    /// Writes what is held, once. Holding nothing less than before means "would block".
    fn deliver(&mut self, target: &Stream, wrote: &Cell<u64>) -> io::Result<()> {
        let result = if !self.pending.is_empty() {
            target.try_write(&self.pending).inspect(|count| self.pending.advance(*count))
        } else if let Some(pipe) = &mut self.pipe {
            match target.try_io(Interest::WRITABLE, || pipe.drain(target.descriptor()?)) {
                // This target takes no splices (an odd kind of socket): copy from now on.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.mode = Mode::CopyOnly;
                    self.pending = BytesMut::from(pipe.take()?.as_slice());
                    self.pipe = None;
                    return Ok(());
                }
                other => other,
            }
        } else {
            return Ok(());
        };
        match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                wrote.set(wrote.get() + count as u64);
                Ok(())
            }
            Err(error) if would_block(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads once: how many bytes, 0 at the end of the stream, `None` if there is nothing now.
    fn fetch(
        &mut self,
        source: &Stream,
        target: &Stream,
        wrote: &Cell<u64>,
        admits: &dyn Fn() -> bool,
    ) -> Result<Option<usize>, (At, io::Error)> {
        if let Mode::Splice(_) = self.mode {
            if self.pipe.is_none() {
                self.pipe = self.pipes.lend();
            }
            match &mut self.pipe {
                Some(_) => return self.fetch_spliced(source, target, wrote, admits),
                None => self.mode = Mode::Copy(-(RETRY_PIPE as isize)),
            }
        }
        self.fetch_copied(source, target, wrote, admits)
    }

    fn fetch_copied(
        &mut self,
        source: &Stream,
        target: &Stream,
        wrote: &Cell<u64>,
        admits: &dyn Fn() -> bool,
    ) -> Result<Option<usize>, (At, io::Error)> {
        let most = self.limit.min(SCRATCH);
        let result =
            with_scratch(|scratch| match source.try_read(scratch.get_mut(..most).unwrap_or_default()) {
                Ok(count) if !admits() => {
                    self.refused = true;
                    Ok(Some(count))
                }
                Ok(count) => {
                    let bytes = scratch.get(..count).unwrap_or_default();
                    self.hand_on(bytes, target, wrote)
                        .map_err(|error| (At::Target, error))
                        .map(|()| Some(count))
                }
                Err(error) if would_block(&error) => Ok(None),
                Err(error) => Err((At::Source, error)),
            });
        if let (Ok(Some(count)), Mode::Copy(row)) = (&result, self.mode) {
            let row = if *count >= BIG || row < 0 { row.saturating_add_unsigned(*count) } else { 0 };
            self.mode = if row >= BULK as isize { Mode::Splice(0) } else { Mode::Copy(row) };
        }
        result
    }

    /// Writes `bytes` to the target and keeps what it does not take.
    fn hand_on(&mut self, bytes: &[u8], target: &Stream, wrote: &Cell<u64>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let count = match target.try_write(bytes) {
            Ok(count) => count,
            Err(error) if would_block(&error) => 0,
            Err(error) => return Err(error),
        };
        wrote.set(wrote.get() + count as u64);
        self.pending.extend_from_slice(bytes.get(count..).unwrap_or_default());
        Ok(())
    }

    fn fetch_spliced(
        &mut self,
        source: &Stream,
        target: &Stream,
        wrote: &Cell<u64>,
        admits: &dyn Fn() -> bool,
    ) -> Result<Option<usize>, (At, io::Error)> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(None);
        };
        let (fresh, limit) = (self.fresh, self.limit as u64);
        // TCP's urgent data stops splices but not reads: a ready stream that yields nothing, and one
        // that seems to be at its end, are asked again with a read.
        let mut ask_again = false;
        let filled = source.try_io(Interest::READABLE, || {
            let filled = pipe.fill(source.descriptor()?, limit);
            ask_again = match &filled {
                Ok(count) => *count == 0,
                Err(error) => would_block(error) && !fresh && source.try_peek(&mut [0]).is_ok(),
            };
            if ask_again {
                return Ok(0);
            }
            filled
        });
        if ask_again {
            return self.fetch_copied(source, target, wrote, admits);
        }
        match filled {
            Ok(count) => {
                if let Mode::Splice(streak) = &mut self.mode {
                    *streak = if count < SMALL { *streak + 1 } else { 0 };
                    if *streak >= SMALL_STREAK {
                        self.mode = Mode::Copy(0);
                    }
                }
                self.deliver(target, wrote).map_err(|error| (At::Target, error))?;
                Ok(Some(count))
            }
            Err(error) if would_block(&error) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.mode = Mode::CopyOnly;
                self.pipe = None;
                Ok(None)
            }
            Err(error) => Err((At::Source, error)),
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether a readiness is still pending.
fn pending_or(poll: Poll<io::Result<()>>) -> io::Result<bool> {
    match poll {
        Poll::Pending => Ok(true),
        Poll::Ready(result) => result.map(|()| false),
    }
}

/// Lends the thread's copy buffer.
fn with_scratch<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
    }
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}
