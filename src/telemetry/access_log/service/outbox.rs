//! What waits in one worker for services of logs.
//!
//! Comes in: encoded entries. Goes out: [`Batch`]es, to whoever tends a service's [`Queue`]: a [`Courier`] that the
//! worker installs, as only it can call clusters. A queue is bounded in bytes; what does not fit is dropped and counted.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::Service;

/// Most bytes that wait for one service in one worker, beside the batch that is being filled.
const MOST_WAITING: usize = 1 << 20;

/// Entries that go together: each in the form in which the service's message repeats it.
#[derive(Debug, Default)]
pub struct Batch {
    /// The entries.
    pub bytes: Vec<u8>,
    /// How many there are.
    pub count: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The batch that is being filled.
    open: Batch,
    full: VecDeque<Batch>,
    /// Bytes in `full`.
    held: usize,
    /// Batches go as they are.
    hurried: bool,
}

/// What waits for one service.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: RefCell<Waiting>,
    /// A batch was taken and is on its way.
    carried: Cell<bool>,
    /// There is something new: the first entry of a batch, or a batch that is full.
    pub news: Notify,
}

impl Queue {
    /// Whether a batch is full.
    pub fn is_full(&self) -> bool {
        !self.waiting.borrow().full.is_empty()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let waiting = self.waiting.borrow();
        waiting.full.is_empty() && waiting.open.count == 0
    }

    /// Whether a batch was taken and is on its way.
    pub fn set_carried(&self, carried: bool) {
        self.carried.set(carried);
    }

    /// Whether a batch need not be full to go.
    pub fn is_hurried(&self) -> bool {
        self.waiting.borrow().hurried
    }

    /// The oldest batch, full or not.
    pub fn take(&self) -> Option<Batch> {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.full.pop_front() {
            Some(batch) => {
                waiting.held -= batch.bytes.len();
                Some(batch)
            }
            None => Some(std::mem::take(&mut waiting.open)).filter(|batch| batch.count > 0),
        }
    }

    /// Adds the entry that `write` appends; false if there is no room.
    fn push(&self, enough: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let waiting = &mut *self.waiting.borrow_mut();
        if waiting.held >= MOST_WAITING {
            return false;
        }
        write(&mut waiting.open.bytes);
        waiting.open.count += 1;
        if waiting.open.bytes.len() >= enough {
            let batch = std::mem::take(&mut waiting.open);
            waiting.held += batch.bytes.len();
            waiting.full.push_back(batch);
            self.news.notify_one();
        } else if waiting.open.count == 1 {
            self.news.notify_one();
        }
        true
    }
}

/// Who brings entries to services.
pub trait Courier {
    /// From now on looks after `queue`, which is of `service`.
    fn tend(&self, service: &Arc<Service>, queue: &Rc<Queue>);
}

#[derive(Default)]
struct Outbox {
    courier: Option<Rc<dyn Courier>>,
    queues: HashMap<u64, Rc<Queue>>,
}

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::default();
}

/// A courier at work on this thread, until it is dropped.
#[derive(Debug)]
pub struct Installed(());

/// Lets `courier` bring what is logged on this thread.
pub fn install(courier: Rc<dyn Courier>) -> Installed {
    OUTBOX.with_borrow_mut(|outbox| outbox.courier = Some(courier));
    Installed(())
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What held the courier is dropped outside of the borrow.
        let outbox = OUTBOX.with_borrow_mut(std::mem::take);
        drop(outbox);
    }
}

/// Nobody tends this service's queue any more; one that is needed later is a new one.
pub fn forget(id: u64) {
    OUTBOX.with_borrow_mut(|outbox| drop(outbox.queues.remove(&id)));
}

/// Whether nothing waits on this thread, and nothing is on its way.
pub fn is_empty() -> bool {
    OUTBOX.with_borrow(|outbox| outbox.queues.values().all(|queue| queue.is_empty() && !queue.carried.get()))
}

/// From now on batches on this thread do not wait to be full.
pub fn hurry() {
    OUTBOX.with_borrow(|outbox| {
        for queue in outbox.queues.values() {
            queue.waiting.borrow_mut().hurried = true;
            queue.news.notify_one();
        }
    });
}

/// Adds the entry that `write` appends, unless there is no room or nobody to bring it. Says whether it was added.
pub(super) fn push(service: &Arc<Service>, write: impl FnOnce(&mut Vec<u8>)) -> bool {
    let (queue, courier) = OUTBOX.with_borrow_mut(|outbox| match outbox.queues.get(&service.id) {
        Some(queue) => (Some(queue.clone()), None),
        None => {
            let courier = outbox.courier.clone();
            let queue = courier.is_some().then(|| outbox.queues.entry(service.id).or_default().clone());
            (queue, courier)
        }
    });
    let Some(queue) = queue else { return false };
    if let Some(courier) = courier {
        courier.tend(service, &queue);
    }
    queue.push(service.enough, write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_bounded_and_keeps_the_order() {
        let queue = Queue::default();
        let entry = [7; 1000];
        let mut taken = 0;
        while queue.push(4000, |out| out.extend_from_slice(&entry)) {
            taken += 1;
            assert!(taken < 2000, "no end");
        }
        assert!((1040..=1060).contains(&taken), "{taken} of 1000 bytes");
        let first = queue.take().expect("a batch");
        assert_eq!((first.count, first.bytes.len()), (4, 4000));
        assert!(queue.push(4000, |out| out.push(8)), "there is room again");
        let mut rest = 0;
        let mut last = Batch::default();
        while let Some(batch) = queue.take() {
            rest += batch.count;
            last = batch;
        }
        assert_eq!((rest, last.bytes.last()), (taken - 3, Some(&8)));
        assert!(queue.is_empty() && !queue.is_full());
    }
}
