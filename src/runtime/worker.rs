//! A worker: one thread, one current-thread runtime, its own listening sockets and pools.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use super::drain::{Drain, Stop};
use super::socket::Bound;
use super::stream::Acceptor;
use crate::config::listener::Listener;
use crate::config::{Cluster, Directory};
use crate::http::worker::Worker;
use crate::listener::accept::{self, Census};

/// What a worker is started with.
pub struct Assignment {
    /// Its number, from 0.
    pub index: usize,
    /// Listeners and this worker's socket of each.
    pub listeners: Vec<(Arc<Listener>, Bound)>,
    /// All clusters.
    pub clusters: Arc<Directory<Cluster>>,
    /// The process's drain.
    pub drain: Arc<Drain>,
    /// What the worker reports.
    pub status: Arc<Status>,
    /// Which listeners accept no more connections.
    pub stop: watch::Receiver<Stop>,
    /// Becomes true when the worker is to end, whatever it does.
    pub end: watch::Receiver<bool>,
}

/// What a worker reports to the control thread.
#[derive(Debug, Default)]
pub struct Status {
    /// Connections open.
    pub connections: AtomicUsize,
    /// Requests being served and TCP sessions.
    pub busy: AtomicUsize,
    /// Milliseconds since anything was accepted or answered.
    pub quiet_ms: AtomicU64,
    /// It accepts connections.
    pub ready: AtomicBool,
    /// Its listening sockets are closed.
    pub stopped: AtomicBool,
}

/// Counts something while it lives.
pub struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    /// One more.
    pub fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// How often idle connections are looked through and the clock is followed.
const SWEEP: Duration = Duration::from_secs(1);
/// How often the status is reported while draining.
const REPORT: Duration = Duration::from_millis(20);

/// Runs the worker on the calling thread until it is told to end.
///
/// # Errors
/// The runtime or a listening socket cannot be set up.
pub fn run(assignment: Assignment) -> io::Result<()> {
    super::socket::set_thread_name(&format!("worker_{}", assignment.index));
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let result = runtime.block_on(serve(assignment));
    // Connections that are left are cut here.
    drop(runtime);
    result
}

async fn serve(assignment: Assignment) -> io::Result<()> {
    let Assignment { listeners, clusters, drain, status, stop, mut end, .. } = assignment;
    let worker = Rc::new(Worker::new(clusters, drain.clone()));
    let census = Rc::new(Census::default());
    let mut accepting = Vec::new();
    for (listener, bound) in listeners {
        let acceptor = Acceptor::new(bound)?;
        let task = accept::run(worker.clone(), listener, acceptor, census.clone(), stop.clone(), end.clone());
        accepting.push(tokio::task::spawn_local(task));
    }
    status.ready.store(true, Ordering::Release);
    let mut last_sweep = Instant::now();
    loop {
        let pause = if drain.is_draining() { REPORT } else { SWEEP.min(Duration::from_millis(250)) };
        tokio::select! {
            biased;
            _ = end.wait_for(|end| *end) => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        let now = Instant::now();
        if now.duration_since(last_sweep) >= SWEEP {
            last_sweep = now;
            worker.clock.tick();
            worker.upstreams.sweep(now);
        }
        status.connections.store(census.connections.get(), Ordering::Relaxed);
        status.busy.store(worker.active_requests.get() + census.relays.get(), Ordering::Relaxed);
        let last = census.last_accept.get().max(worker.last_request.get());
        let quiet = u64::try_from(now.saturating_duration_since(last).as_millis()).unwrap_or(u64::MAX);
        status.quiet_ms.store(quiet, Ordering::Relaxed);
        if accepting.iter().all(tokio::task::JoinHandle::is_finished) {
            status.stopped.store(true, Ordering::Release);
        }
    }
}
