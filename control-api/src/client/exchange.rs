//! A stream as its driver holds it: requests in, what comes of it out.

use std::future::{pending, Future};
use std::pin::Pin;

use tokio::sync::mpsc;

use super::transport::{Inbound, TransportError};

type Task = Pin<Box<dyn Future<Output = TransportError> + Send>>;

/// A stream, from the attempt to open it to its end.
pub(super) struct Exchange<Q, R> {
    task: Task,
    /// Has room for one request.
    pub requests: mpsc::Sender<Q>,
    pub inbound: mpsc::Receiver<Inbound<R>>,
}

/// What happened on a stream.
pub(super) enum Happening<R> {
    Inbound(Inbound<R>),
    Ended(TransportError),
}

impl<Q, R> Exchange<Q, R> {
    /// An attempt, which is made while [`next`](Self::next) is polled.
    pub fn new(open: impl FnOnce(mpsc::Receiver<Q>, mpsc::Sender<Inbound<R>>) -> Task) -> Self {
        let (requests, request_queue) = mpsc::channel(1);
        let (inbound_queue, inbound) = mpsc::channel(1);
        Self { task: open(request_queue, inbound_queue), requests, inbound }
    }

    /// What comes next. Nothing is read unless `read`. Loses nothing when dropped half-way.
    pub async fn next(&mut self, read: bool) -> Happening<R> {
        tokio::select! {
            biased;
            Some(inbound) = self.inbound.recv(), if read => Happening::Inbound(inbound),
            error = &mut self.task => Happening::Ended(error),
        }
    }
}

/// Waits for ever where there is nothing to wait for.
pub(super) async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
