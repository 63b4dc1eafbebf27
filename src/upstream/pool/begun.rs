//! Attempts to connect that outlive the request that began them.
//!
//! As in Envoy, a request that is given up while its connection is being opened does not end the attempt: what comes of
//! it is kept for the next request, and counts for or against the host. Else a host that never answers would cost
//! every request that is more impatient than `connect_timeout`, and one that is slow to answer could never be reached.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{ready, Context, Poll};
use std::time::{Duration, Instant};

use super::{HostPool, UpstreamConnection};
use crate::tls::upstream::Purpose;
use crate::upstream::balancing::{clock, suspect};
use crate::upstream::permit::Permit;
use crate::upstream::UpstreamError;

type Connected = Result<Box<UpstreamConnection>, UpstreamError>;

/// A host that has not answered for this long when its request is given up is suspect. Within a zone a connection takes
/// a tenth of it; who is suspect for nothing is so until the attempt succeeds, and is used where there is no other.
const PATIENCE: Duration = Duration::from_millis(20);

/// What is done with the outcome of an attempt whose request is gone.
type Keep<T> = fn(&Rc<HostPool>, T);

/// An attempt.
pub(in crate::upstream) struct Begun<T: 'static> {
    /// `None` once it is over.
    attempt: Option<Pin<Box<dyn Future<Output = T>>>>,
    pool: Rc<HostPool>,
    since: Instant,
    /// `None` = it ends with its request: nobody else could use its connection.
    keep: Option<Keep<T>>,
}

impl<T> Begun<T> {
    pub(in crate::upstream) fn new(
        pool: &Rc<HostPool>,
        attempt: impl Future<Output = T> + 'static,
        keep: Option<Keep<T>>,
    ) -> Self {
        Self { attempt: Some(Box::pin(attempt)), pool: pool.clone(), since: Instant::now(), keep }
    }
}

impl<T> Future for Begun<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(attempt) = &mut self.attempt else { return Poll::Pending };
        let outcome = ready!(attempt.as_mut().poll(context));
        self.attempt = None;
        Poll::Ready(outcome)
    }
}

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        let Some(attempt) = self.attempt.take() else { return };
        self.pool.given_up(self.since);
        let Some(keep) = self.keep.filter(|_| !std::thread::panicking()) else { return };
        let orphan = Orphan::new(&self.pool);
        tokio::task::spawn_local(async move {
            let outcome = attempt.await;
            let pool = orphan.0.clone();
            drop(orphan);
            keep(&pool, outcome);
        });
    }
}

/// Counted in [`HostPool::orphans`] while it lives.
struct Orphan(Rc<HostPool>);

impl Orphan {
    fn new(pool: &Rc<HostPool>) -> Self {
        pool.orphans.set(pool.orphans.get() + 1);
        Self(pool.clone())
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.0.orphans.set(self.0.orphans.get().saturating_sub(1));
    }
}

impl HostPool {
    /// Opens a connection that carries one request at a time.
    pub(super) fn begin(self: &Rc<Self>, permit: Permit) -> Begun<Connected> {
        let pool = self.clone();
        let attempt = async move { pool.connect(permit, Purpose::Http1).await };
        let keep: Keep<Connected> = |pool, connected| {
            // Why there is none is counted.
            if let Ok(connection) = connected {
                pool.offer(connection, Instant::now());
            }
        };
        Begun::new(self, attempt, Some(keep))
    }

    /// Opens a connection for one TCP session.
    pub(super) fn begin_dedicated(self: &Rc<Self>, permit: Permit) -> Begun<Connected> {
        let pool = self.clone();
        Begun::new(self, async move { pool.connect(permit, Purpose::Tcp).await }, None)
    }

    /// Whether a connection is on its way that no request waits for.
    pub(super) fn has_orphans(&self) -> bool {
        self.orphans.get() as usize > self.waiting.borrow().len()
    }

    /// A request did not wait longer for a connection that was begun then.
    fn given_up(&self, since: Instant) {
        let late = since.elapsed() >= PATIENCE && self.cluster.balancing.suspects;
        if late && suspect::failed(&self.host, clock()) {
            self.cluster.stats().count_suspect();
        }
    }
}
