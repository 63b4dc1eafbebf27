//! The tasks that serve streams, each one stream after another.
//!
//! A task of its own for every stream would be allocated, moved into its place (8 KiB, most of them not yet in use) and
//! freed with every request, and those of many streams would push each other out of the processor's caches. Here a
//! stream gets the task that became free last.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::stream::{self, Arrived};
use crate::config::http::HttpConnectionManager;
use crate::http::worker::Worker;

/// Tasks of one worker that may wait for streams; each takes at most `LARGEST_TASK`.
const MOST_IDLE: usize = 256;
/// Most bytes of a stream's task: what is larger is no small object to the allocator.
const LARGEST_TASK: usize = 8192;

/// What a task has to do.
pub(super) struct Job {
    pub worker: Rc<Worker>,
    pub manager: Arc<HttpConnectionManager>,
    pub arrived: Arrived,
    /// The listener's.
    pub buffer_limit: usize,
    /// The stream's number on its connection.
    pub requests: u32,
}

/// Where a task is told of its next stream.
#[derive(Default)]
pub(super) struct Seat {
    job: RefCell<Option<Job>>,
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Seat {
    /// The next stream; none when the task is no longer wanted.
    pub(super) async fn next(&self) -> Option<Job> {
        poll_fn(|context| {
            if let Some(job) = self.job.borrow_mut().take() {
                return Poll::Ready(Some(job));
            }
            if self.over.get() {
                return Poll::Ready(None);
            }
            let mut waker = self.waker.borrow_mut();
            // A task has the same waker as long as it lives.
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// The tasks of one worker that wait for streams.
#[derive(Default)]
pub struct Seats {
    idle: RefCell<Vec<Rc<Seat>>>,
    /// The fewest there were since the last sweep: so many were not needed.
    fewest: Cell<usize>,
}

impl std::fmt::Debug for Seats {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Seats").field("idle", &self.idle.borrow().len()).finish_non_exhaustive()
    }
}

impl Seats {
    /// Has a stream served.
    pub(super) fn serve(&self, job: Job) {
        let free = {
            let mut idle = self.idle.borrow_mut();
            let free = idle.pop();
            self.fewest.set(self.fewest.get().min(idle.len()));
            free
        };
        if let Some(seat) = free {
            *seat.job.borrow_mut() = Some(job);
            return seat.wake();
        }
        let seat = Rc::new(Seat { job: RefCell::new(Some(job)), ..Seat::default() });
        let serving = stream::serve(seat);
        debug_assert!(
            size_of_val(&serving) <= LARGEST_TASK,
            "a stream's task has {} bytes",
            size_of_val(&serving)
        );
        // Boxed, because the runtime moves a task's future about when it begins and when it ends.
        tokio::task::spawn_local(Box::pin(serving));
    }

    /// A task has served its stream. Says whether it is to wait for another.
    pub(super) fn keep(&self, seat: &Rc<Seat>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let room = idle.len() < MOST_IDLE;
        if room {
            idle.push(seat.clone());
        }
        room
    }

    /// Ends the tasks that nothing needed since it was called last: about a second ago.
    pub fn sweep(&self) {
        let mut idle = self.idle.borrow_mut();
        let unneeded = self.fewest.get().min(idle.len());
        // Those that became free first are at the front.
        for seat in idle.drain(..unneeded) {
            seat.over.set(true);
            seat.wake();
        }
        self.fewest.set(idle.len());
    }

    /// How many wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.idle.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_needed_ends_and_what_was_needed_stays() {
        let seats = Seats::default();
        let all: Vec<Rc<Seat>> = (0..MOST_IDLE).map(|_| Rc::default()).collect();
        assert!(all.iter().all(|seat| seats.keep(seat)));
        assert!(!seats.keep(&Rc::default()), "more than {MOST_IDLE} wait");
        seats.sweep();
        assert_eq!(seats.len(), MOST_IDLE, "these have only just become free");
        // Ten are needed at a time.
        let taken = seats.idle.borrow_mut().split_off(MOST_IDLE - 10);
        seats.fewest.set(seats.fewest.get().min(seats.len()));
        assert!(taken.iter().all(|seat| seats.keep(seat)));
        seats.sweep();
        assert_eq!(seats.len(), 10);
        let ended = all.iter().filter(|seat| seat.over.get()).count();
        assert_eq!(ended, MOST_IDLE - 10);
        assert!(taken.iter().all(|seat| !seat.over.get()), "the ones used last stay");
        seats.sweep();
        assert_eq!(seats.len(), 0);
    }
}
