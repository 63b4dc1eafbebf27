//! Carrying bytes both ways between two streams until both are done.
//!
//! Comes in: two connected [`Stream`]s, bytes already read from the client, limits. Goes out: how it
//! [`End`]ed, with the bytes counted in [`Traffic`]. Each direction is its own small machine: it
//! never reads while it still holds bytes that the other side has not taken, so a slow reader
//! stops its sender and nothing grows. It starts by copying through a buffer that the whole thread
//! shares; once it proves to be bulk it moves to `splice(2)`. A direction at rest holds neither
//! buffer nor pipe.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn, Future};
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::time::{sleep_until, Instant};

use super::handover::{Leg, Order, Position, Stage};
use super::splice::{Lent, Pipes};
use crate::runtime::Stream;

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
const REFUSED: io::ErrorKind = io::ErrorKind::Unsupported;
/// Reads in one turn of a direction before the other one has its turn.
const TURN: u32 = 4;

/// Bytes moved so far; live while the relay runs.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Read from the client, bytes that came with the connection included.
    pub from_downstream: Cell<u64>,
    /// Written to the upstream.
    pub to_upstream: Cell<u64>,
    /// Read from the upstream.
    pub from_upstream: Cell<u64>,
    /// Written to the client.
    pub to_downstream: Cell<u64>,
}

impl Traffic {
    fn all(&self) -> [&Cell<u64>; 4] {
        [&self.from_downstream, &self.to_upstream, &self.from_upstream, &self.to_downstream]
    }

    /// All of them, in the order of the fields.
    pub fn totals(&self) -> [u64; 4] {
        self.all().map(Cell::get)
    }

    /// What was moved before.
    pub fn restore(&self, before: [u64; 4]) {
        self.all().into_iter().zip(before).for_each(|(count, before)| count.set(before));
    }

    /// Changes whenever anything moves.
    fn sum(&self) -> u64 {
        self.totals().into_iter().fold(0, u64::wrapping_add)
    }
}

/// What a relay tells while it runs, at most once per wake-up each.
pub trait Meter {
    /// Bytes were moved; `traffic` has the totals.
    fn moved(&self, traffic: &Traffic);
    /// Reading from `side` stopped because the other side is slow (`true`), or went on.
    fn paused(&self, side: Side, paused: bool);
    /// The client cannot be written any more; what it had sent is still being delivered.
    fn flushing(&self);
    /// The client has sent bytes, or its end: whether they may pass.
    fn admits(&self) -> bool {
        true
    }
    /// Whether [`Meter::admits`] is to be asked at every read, not only at the first.
    fn watches(&self) -> bool {
        false
    }
}

/// One end of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream,
    /// The server.
    Upstream,
}

/// Limits of a relay; `None` = none.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time without a byte in either direction.
    pub idle: Option<Duration>,
    /// When it ends whatever happens.
    pub deadline: Option<Instant>,
    /// Most bytes that a direction holds for a slow reader, at least 1. In memory, 64 KiB are never
    /// exceeded.
    pub buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { idle: None, deadline: None, buffer: usize::MAX }
    }
}

/// How a relay ended. The streams are still open; those of a failed relay are set to reset when
/// they are dropped.
#[derive(Debug)]
pub enum End {
    /// Both sides sent their end of stream, and everything was delivered.
    Finished,
    /// A side failed, as by a reset; the other one will be reset too.
    Failed(Side, io::Error),
    /// Nothing moved for [`Limits::idle`].
    Idle,
    /// [`Limits::deadline`] passed.
    Deadline,
    /// [`Order::Cut`] came.
    Cut,
    /// [`Order::Leave`] came: nothing is read or written any more, and somebody may go on from here.
    Left(Position),
    /// The meter did not let the client's bytes pass.
    Refused,
}

/// Relays between `downstream` and `upstream`, from `position` on, until both sides are done or something ends it.
pub async fn relay(
    (downstream, position): (&Stream, Position),
    upstream: &Stream,
    limits: Limits,
    order: impl Future<Output = Order>,
    traffic: &Traffic,
    meter: &impl Meter,
    pipes: &Rc<Pipes>,
) -> End {
    if position.fresh {
        let prefix = &position.up.held;
        traffic.from_downstream.set(traffic.from_downstream.get() + prefix.len() as u64);
        if !prefix.is_empty() && !meter.admits() {
            meter.moved(traffic);
            return End::Refused;
        }
    }
    let splices = downstream.is_plain() && upstream.is_plain() && !meter.watches();
    let mut up = Half::new(position.up, pipes, limits.buffer, splices);
    let mut down = Half::new(position.down, pipes, limits.buffer, splices);
    let (mut broken, mut obeys) = (None, true);
    let mut active = Instant::now();
    let mut order = pin!(order);
    let mut timer = pin!(sleep_until(next_deadline(limits, active).unwrap_or(active)));
    loop {
        // A stream that is read is seen to fail by reading it; one that is only written, only so.
        let (watch_down, watch_up) = (up.is_done() && !down.is_done(), down.is_done() && !up.is_done());
        let moving = poll_fn(|cx| {
            let ways = [
                (&mut up, downstream, upstream, &traffic.from_downstream, &traffic.to_upstream),
                (&mut down, upstream, downstream, &traffic.from_upstream, &traffic.to_downstream),
            ];
            let before = traffic.sum();
            let result = drive(cx, ways, &mut broken, meter);
            if traffic.sum() != before {
                active = Instant::now();
                meter.moved(traffic);
            }
            result
        });
        tokio::select! {
            biased;
            moved = moving => match moved {
                Ok(true) => {
                    return broken.take().map_or(End::Finished, |(side, error)| End::Failed(side, error));
                }
                // One direction is done: from now on another stream is watched.
                Ok(false) => {}
                Err((_, error)) if error.kind() == REFUSED => return End::Refused,
                Err((side, error)) => {
                    downstream.set_linger_zero();
                    upstream.set_linger_zero();
                    return End::Failed(side, error);
                }
            },
            failure = failure(downstream, watch_down) => {
                reset_if_delivered(upstream);
                return End::Failed(Side::Downstream, failure);
            }
            failure = failure(upstream, watch_up) => {
                reset_if_delivered(downstream);
                return End::Failed(Side::Upstream, failure);
            }
            () = timer.as_mut(), if limits.idle.is_some() || limits.deadline.is_some() => {
                // The timer is not touched while bytes move: it looks at the clock when it fires.
                let now = Instant::now();
                if limits.deadline.is_some_and(|deadline| now >= deadline) {
                    return End::Deadline;
                }
                if limits.idle.is_some_and(|idle| now >= active + idle) {
                    return End::Idle;
                }
                if let Some(next) = next_deadline(limits, active) {
                    timer.as_mut().reset(next);
                }
            }
            order = order.as_mut(), if obeys => match order {
                Order::Cut => return End::Cut,
                Order::Leave if broken.is_none() => {
                    if let (Ok(up), Ok(down)) = (up.stop(), down.stop()) {
                        return End::Left(Position { up, down, fresh: false });
                    }
                    return End::Cut;
                }
                Order::Leave => obeys = false,
            },
        }
    }
}

/// Passes a reset on to a stream that was sent its end of stream already, unless that would throw
/// away bytes which are still on their way; closing it then has to do.
fn reset_if_delivered(stream: &Stream) {
    if stream.unsent() == 0 {
        stream.set_linger_zero();
    }
}

fn next_deadline(limits: Limits, active: Instant) -> Option<Instant> {
    let idle = limits.idle.map(|idle| active + idle);
    [idle, limits.deadline].into_iter().flatten().min()
}

/// The error of a stream that is no longer read; never completes while `watch` is false.
async fn failure(stream: &Stream, watch: bool) -> io::Error {
    if !watch || stream.failed().await.is_err() {
        return pending().await;
    }
    stream.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

type Way<'a> = (&'a mut Half, &'a Stream, &'a Stream, &'a Cell<u64>, &'a Cell<u64>);
type Broken = Option<(Side, io::Error)>;

/// Runs both directions until neither can go on. `true` when both are done, `false` when one of
/// them has just been.
///
/// A stream that cannot be written any more ends one direction only: what it sent before it failed
/// is still delivered, and reading it then tells how it ended.
fn drive(
    cx: &mut Context<'_>,
    ways: [Way<'_>; 2],
    broken: &mut Broken,
    meter: &impl Meter,
) -> Poll<Result<bool, (Side, io::Error)>> {
    let [(up, downstream, upstream, read_down, wrote_up), (down, _, _, read_up, wrote_down)] = ways;
    loop {
        let (mut blocked, mut ended) = (true, false);
        for (from, to, source, target, half, read, wrote) in [
            (Side::Downstream, Side::Upstream, downstream, upstream, &mut *up, read_down, wrote_up),
            (Side::Upstream, Side::Downstream, upstream, downstream, &mut *down, read_up, wrote_down),
        ] {
            if half.is_done() {
                continue;
            }
            let held = half.held() > 0;
            let admits = || from == Side::Upstream || meter.admits();
            match half.turn(cx, source, target, (read, wrote), &admits) {
                Ok(Turn::Blocked) => {}
                Ok(Turn::More) => blocked = false,
                Ok(Turn::Done) => ended = true,
                Err((At::Source, error)) => return Poll::Ready(Err((from, error))),
                Err((At::Target, error)) => {
                    half.abandon();
                    ended = true;
                    *broken = Some((to, error));
                    if to == Side::Downstream {
                        meter.flushing();
                    }
                }
            }
            if held != (half.held() > 0) {
                meter.paused(from, !held);
            }
        }
        if ended {
            return Poll::Ready(Ok(up.is_done() && down.is_done()));
        }
        if blocked {
            return Poll::Pending;
        }
    }
}

enum Turn {
    /// Waits for a stream, which will wake the task.
    Blocked,
    /// Had its share; could go on.
    More,
    /// Just passed the end on.
    Done,
}

enum At {
    Source,
    Target,
}

/// One direction.
struct Half {
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
    fn new(leg: Leg, pipes: &Rc<Pipes>, limit: usize, splices: bool) -> Self {
        let Leg { held: pending, stage } = leg;
        let mode = if splices { Mode::Copy(0) } else { Mode::CopyOnly };
        Self { stage, pending, pipe: None, pipes: pipes.clone(), limit, mode, fresh: false, refused: false }
    }

    /// Where it stands; it moves no more.
    fn stop(&mut self) -> io::Result<Leg> {
        let mut held = std::mem::take(&mut self.pending);
        if let Some(pipe) = &mut self.pipe {
            held.extend_from_slice(&pipe.take()?);
        }
        Ok(Leg { held, stage: self.stage })
    }

    fn held(&self) -> usize {
        self.pending.len() + self.pipe.as_ref().map_or(0, |pipe| pipe.held())
    }

    fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Stops without delivering what is held.
    fn abandon(&mut self) {
        self.stage = Stage::Done;
        self.pending = BytesMut::new();
        self.pipe = None;
    }

    /// Moves what can be moved, up to this direction's share.
    fn turn(
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
            match target.try_io(Interest::WRITABLE, || pipe.drain(target.as_fd())) {
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
            let filled = pipe.fill(source.as_fd(), limit);
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

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
