//! What the streams of a client's connection share, and the connections of one worker.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::http::h2::guard::Account;
use crate::http::timer::LazyTimer;
use crate::http::worker::Worker;
use crate::telemetry::stream_info::ConnectionInfo;

/// A stream that its client resets sooner than this was opened for nothing (Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`).
const PREMATURE: Duration = Duration::from_secs(1);
/// After so many streams, half of which were opened for nothing, the connection is cut (Envoy's
/// `overload.premature_reset_total_stream_count`).
const PREMATURE_STREAMS: u64 = 500;
/// Timers kept for the next streams of a connection.
const TIMERS_KEPT: usize = 64;

/// What the streams of a connection share.
#[derive(Debug)]
pub struct Connection {
    pub(super) account: Rc<Account>,
    pub(super) active: Cell<usize>,
    pub(super) idle_since: Cell<Instant>,
    /// GOAWAY is to be sent, or was.
    pub(super) drain: Cell<bool>,
    /// When it is to be sent, because the client should connect anew.
    moves: Cell<Option<Instant>>,
    ended: Cell<u64>,
    premature: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    timers: RefCell<Vec<LazyTimer>>,
    pub(super) info: Rc<ConnectionInfo>,
}

/// The HTTP/2 connections of one worker. Over HTTP/1 a response says that the connection will close; one that
/// carries none for now must be told to leave by itself, or its client's next request comes too late.
#[derive(Debug, Default)]
pub struct Registry(RefCell<Vec<Weak<Connection>>>);

impl Registry {
    pub(super) fn add(&self, connection: &Rc<Connection>) {
        self.0.borrow_mut().push(Rc::downgrade(connection));
    }

    /// Tells those to leave whose time has come. Called about once a second.
    pub fn sweep(&self, worker: &Worker, now: Instant) {
        self.choose_movers(worker, now);
        self.0.borrow_mut().retain(|connection| {
            let Some(connection) = connection.upgrade() else { return false };
            let info = &connection.info;
            let leaving = worker.drain.announces_close(now, info.inbound, || worker.random())
                || info.retirement.announces_close(now, || worker.random())
                || connection.moves.get().is_some_and(|moment| moment <= now);
            if leaving && !connection.drain.replace(true) {
                connection.wake();
            }
            !leaving
        });
    }
}

impl Registry {
    /// Where this service has grown, chooses who is to connect anew, and when.
    fn choose_movers(&self, worker: &Worker, now: Instant) {
        let Some(rebalance) = &worker.rebalance else { return };
        let options = &rebalance.options;
        let cluster = worker.clusters.find(&options.cluster);
        let cluster = cluster.and_then(|slot| worker.upstreams.cluster(&slot));
        let hosts = cluster.map_or(0, |cluster| cluster.cluster.hosts.load().all.len());
        let share = rebalance.share(hosts);
        if share == 0.0 {
            return;
        }
        let mut rng = worker.rng.borrow_mut();
        for connection in self.0.borrow().iter().filter_map(Weak::upgrade) {
            if rng.f64() < share && connection.moves.get().is_none() {
                connection.moves.set(Some(now + options.window.mul_f64(rng.f64())));
            }
        }
    }
}

impl Connection {
    pub(super) fn new(account: Rc<Account>, info: Rc<ConnectionInfo>) -> Self {
        Self {
            account,
            active: Cell::new(0),
            idle_since: Cell::new(info.start),
            drain: Cell::new(false),
            moves: Cell::new(None),
            ended: Cell::new(0),
            premature: Cell::new(0),
            waker: RefCell::default(),
            timers: RefCell::default(),
            info,
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn watch(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            place => *place = Some(context.waker().clone()),
        }
    }

    pub(super) fn timer(&self) -> LazyTimer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    /// A stream that began at `start` is over at `end`; `reset` says that its client ended it.
    pub(super) fn stream_ended(&self, mut timer: LazyTimer, reset: bool, start: Instant, end: Instant) {
        timer.forget_task();
        let mut timers = self.timers.borrow_mut();
        if timers.len() < TIMERS_KEPT {
            timers.push(timer);
        }
        self.ended.set(self.ended.get() + 1);
        if reset && end.saturating_duration_since(start) < PREMATURE {
            self.premature.set(self.premature.get() + 1);
        }
        let left = self.active.get().saturating_sub(1);
        self.active.set(left);
        if left == 0 || self.is_abused() {
            self.idle_since.set(end);
            self.wake();
        }
    }

    /// Whether the client opens streams only to reset them.
    pub(super) fn is_abused(&self) -> bool {
        let (ended, premature) = (self.ended.get(), self.premature.get());
        if ended < PREMATURE_STREAMS {
            premature >= PREMATURE_STREAMS / 2
        } else {
            premature * 2 >= ended
        }
    }
}
