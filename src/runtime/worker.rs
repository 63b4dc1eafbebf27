//! A worker: one thread, one current-thread runtime, its own listening sockets and pools.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use super::drain::Drain;
use super::socket::Bound;
use super::stream::Acceptor;
use crate::config::compile::runtime::Runtime;
use crate::config::{Cluster, Directory, Retirement};
use crate::http::filters::jwt_authn;
use crate::http::h2::rebalance::{self, Rebalance};
use crate::http::logs;
use crate::http::worker::Worker;
use crate::listener::accept::{self, Census};
use crate::listener::adopt::{self, Adopted};
use crate::listener::live::Share;
use crate::listener::udp;
use crate::tcp::handover::{Departing, Fate};
use crate::telemetry::process::Server;

/// What a worker is started with.
pub struct Assignment {
    /// Its number, from 0.
    pub index: usize,
    /// What it is told to do. What waits here at the start is done before the worker counts as ready.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// Connections of retired filter chains are closed some day.
    pub drains_end: bool,
    /// All clusters.
    pub clusters: Arc<Directory<Cluster>>,
    /// Runtime values, as they are now.
    pub runtime: Arc<ArcSwap<Runtime>>,
    /// The server's state.
    pub server: Option<Arc<Server>>,
    /// The process's drain.
    pub drain: Arc<Drain>,
    /// Whether connections move when the service grows.
    pub rebalance: Option<rebalance::Options>,
    /// What the worker reports.
    pub status: Arc<Status>,
    /// Becomes true when the worker is to end, whatever it does.
    pub end: watch::Receiver<bool>,
}

/// What a worker is told by the control thread.
#[derive(Debug)]
pub enum Command {
    /// To accept connections of a listener on this socket, until that is stopped.
    Listen(Share, Bound),
    /// To take the connections of an internal listener, until that is stopped.
    Serve(Share),
    /// To close the connections of these filter chains.
    Cut(Arc<[Arc<Retirement>]>),
    /// To go on with a connection of another process.
    Adopt(Box<Adopted>),
    /// To give away the connections that can go on elsewhere.
    Leave(mpsc::UnboundedSender<Departing>),
}

/// What a worker reports to the control thread.
#[derive(Debug, Default)]
pub struct Status {
    /// Connections open.
    pub connections: AtomicUsize,
    /// Of these, with HTTP, which can be closed between requests.
    pub http: AtomicUsize,
    /// Requests being served and TCP sessions.
    pub busy: AtomicUsize,
    /// Milliseconds since anything was accepted or answered.
    pub quiet_ms: AtomicU64,
    /// It accepts connections.
    pub ready: AtomicBool,
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
    let Assignment {
        mut commands,
        drains_end,
        clusters,
        runtime,
        server,
        drain,
        rebalance,
        status,
        mut end,
        ..
    } = assignment;
    let mut worker = Worker::new(clusters, drain.clone());
    worker.runtime = runtime;
    worker.server = server;
    worker.rebalance = rebalance.map(Rebalance::new);
    let worker = Rc::new(worker);
    let _courier = logs::install(&worker);
    let census = Rc::new(Census::new(drains_end));
    let (fate, fated) = watch::channel(Fate::Stay);
    let obey = |command: Command| -> io::Result<()> {
        match command {
            Command::Listen(share, Bound::Udp(socket)) => {
                tokio::task::spawn_local(udp::run(
                    worker.clone(),
                    share,
                    socket,
                    fated.clone(),
                    census.clone(),
                ));
            }
            Command::Listen(share, bound) => {
                let acceptor = Acceptor::new(bound)?;
                let accepting = accept::run(worker.clone(), share, acceptor, census.clone(), fated.clone());
                tokio::task::spawn_local(accepting);
            }
            Command::Serve(share) => accept::internal(&worker, share, &census, &fated),
            Command::Adopt(adopted) => adopt::start(&worker, *adopted, &census, &fated),
            Command::Leave(takers) => drop(fate.send(Fate::Leave(takers))),
            Command::Cut(retired) => census.sessions.iter().for_each(|sessions| sessions.cut(&retired)),
        }
        Ok(())
    };
    while let Ok(command) = commands.try_recv() {
        obey(command)?;
    }
    let mut last_sweep = Instant::now();
    // What grows from now on has grown.
    worker.multiplexed.sweep(&worker, last_sweep);
    status.ready.store(true, Ordering::Release);
    loop {
        let pause = if drain.is_draining() { REPORT } else { SWEEP.min(Duration::from_millis(250)) };
        tokio::select! {
            biased;
            _ = end.wait_for(|end| *end) => {
                let _ = fate.send(Fate::End);
                logs::finish().await;
                return Ok(());
            }
            Some(command) = commands.recv() => {
                if let Err(error) = obey(command) {
                    tracing::error!("a worker cannot take a listening socket: {error}");
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
        let now = Instant::now();
        if now.duration_since(last_sweep) >= SWEEP {
            last_sweep = now;
            worker.clock.tick();
            worker.upstreams.sweep(now);
            jwt_authn::tick(&worker, now);
            worker.multiplexed.sweep(&worker, now);
            worker.seats.sweep();
        }
        status.connections.store(census.connections.get(), Ordering::Relaxed);
        status.http.store(census.http.get(), Ordering::Relaxed);
        status.busy.store(worker.active_requests.get() + census.relays.get(), Ordering::Relaxed);
        let last = census.last_accept.get().max(worker.last_request.get());
        let quiet = u64::try_from(now.saturating_duration_since(last).as_millis()).unwrap_or(u64::MAX);
        status.quiet_ms.store(quiet, Ordering::Relaxed);
    }
}
