//! Carrying bytes both ways between two streams until both are done.
//!
//! Comes in: two connected [`Stream`]s, bytes already read from the client, limits. Goes out: how it
//! [`End`]ed, with the bytes counted in [`Traffic`]. Each direction is its own small machine: it
//! never reads while it still holds bytes that the other side has not taken, so a slow reader
//! stops its sender and nothing grows. It starts by copying through a buffer that the whole thread
//! shares; once it proves to be bulk it moves to `splice(2)`. A direction at rest holds neither
//! buffer nor pipe.

mod half;

use std::cell::Cell;
use std::future::{pending, poll_fn, Future};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{sleep_until, Instant};

use self::half::{At, Half, Turn, REFUSED};
use super::handover::{Order, Position};
use super::splice::Pipes;
use crate::runtime::Stream;

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
    /// Whether that has to be waited for ([`Meter::poll_decided`]).
    fn decides(&self) -> bool {
        false
    }
    /// The client has sent bytes, or its end: ready when it is known whether they may pass.
    fn poll_decided(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
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
        if !prefix.is_empty() {
            poll_fn(|cx| meter.poll_decided(cx)).await;
            if !meter.admits() {
                meter.moved(traffic);
                return End::Refused;
            }
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
                // What could not be delivered is read by nobody.
                source.gather(cx);
                continue;
            }
            if from == Side::Downstream && meter.decides() && is_undecided(cx, source, meter) {
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

/// Whether it is not known yet if what the client has sent may pass.
fn is_undecided(cx: &mut Context<'_>, source: &Stream, meter: &impl Meter) -> bool {
    // Without bytes there is nothing to decide on. Nothing can be read then: readiness does not come while this task runs.
    source.poll_spoken(cx).is_ready() && meter.poll_decided(cx).is_pending()
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
