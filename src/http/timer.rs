//! One timer per connection for all its deadlines.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// Wakes the task at a deadline that may move with every request. The runtime's timer is touched
/// only when the deadline comes nearer than what is armed, or when the armed one passes: a
/// connection with a 15 s route timeout arms it once in 15 s, not once a request.
#[derive(Debug, Default)]
pub struct LazyTimer {
    armed: Option<Armed>,
}

#[derive(Debug)]
struct Armed {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
    /// The task's waker is registered. One connection is polled by one task, so once is enough.
    registered: bool,
}

impl LazyTimer {
    /// Another task will poll it: what is armed stays armed, for whoever comes.
    pub fn forget_task(&mut self) {
        if let Some(armed) = &mut self.armed {
            armed.registered = false;
        }
    }

    /// Ready once `deadline` has passed; pending for ever without one.
    pub fn poll(&mut self, deadline: Option<Instant>, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let armed = match &mut self.armed {
            Some(armed) if armed.at <= deadline => armed,
            Some(armed) => {
                armed.sleep.as_mut().reset(deadline.into());
                armed.at = deadline;
                armed.registered = false;
                armed
            }
            place => place.insert(Armed {
                sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
                at: deadline,
                registered: false,
            }),
        };
        loop {
            if armed.registered && !armed.sleep.is_elapsed() {
                return Poll::Pending;
            }
            if armed.sleep.as_mut().poll(context).is_pending() {
                armed.registered = true;
                return Poll::Pending;
            }
            if armed.at >= deadline {
                self.armed = None;
                return Poll::Ready(());
            }
            armed.sleep.as_mut().reset(deadline.into());
            armed.at = deadline;
            armed.registered = false;
        }
    }
}
