//! Accepting connections: from a listening socket to the filter chain that serves each.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::connection::{serve, Origin};
use super::limit;
use super::live::Share;
use super::race::Verdicts;
use super::sessions::Sessions;
use crate::http::worker::Worker;
use crate::runtime::internal::{self, Passed};
use crate::runtime::socket::tune_accepted;
use crate::runtime::{Acceptor, Stream};
use crate::tcp::Fate;

/// What a worker knows of the connections it serves.
#[derive(Debug)]
pub struct Census {
    /// Connections open.
    pub connections: Cell<usize>,
    /// Of these, relayed as they are (TCP).
    pub relays: Cell<usize>,
    /// Of these, at requests (HTTP).
    pub http: Cell<usize>,
    /// When the last one was accepted.
    pub last_accept: Cell<Instant>,
    /// Each of them, where drains have an end.
    pub sessions: Option<Sessions>,
    /// Who speaks first at destinations.
    pub verdicts: Verdicts,
}

impl Census {
    /// No connections. `drains_end`: those of retired filter chains may have to be closed.
    pub fn new(drains_end: bool) -> Self {
        Self {
            connections: Cell::new(0),
            relays: Cell::new(0),
            http: Cell::new(0),
            last_accept: Cell::new(Instant::now()),
            sessions: drains_end.then(Sessions::default),
            verdicts: Verdicts::default(),
        }
    }
}

/// Numbers connections for logs.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The number of a new connection.
pub(super) fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Pause of the accept loop when the process is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Most connections that are taken from the queue of a listener that has stopped.
const MAX_WAITING: usize = 1 << 16;

/// Accepts until the listener is stopped and the accept queue is empty. Each connection is served by what
/// the listener is when it is accepted.
pub async fn run(
    worker: Rc<Worker>,
    share: Share,
    acceptor: Acceptor,
    census: Rc<Census>,
    fate: watch::Receiver<Fate>,
) {
    let start = |stream: Stream| {
        let listener = share.get();
        let room = if listener.unlimited { Some(None) } else { limit::take() };
        let Some(room) = room else {
            return listener.stats.downstream_global_cx_overflow.increment(1);
        };
        tune_accepted(&stream, &listener.socket);
        let destinations = share.destinations().clone();
        census.last_accept.set(Instant::now());
        let id = next_id();
        let origin = Origin { stream, passed: Passed::default() };
        let served = serve(worker.clone(), listener, destinations, origin, id, census.clone(), fate.clone());
        let task = match room {
            None => tokio::task::spawn_local(served),
            Some(room) => tokio::task::spawn_local(async move {
                served.await;
                drop(room);
            }),
        };
        if let Some(sessions) = &census.sessions {
            sessions.opened(id, task.abort_handle());
        }
    };
    let exhausted = || share.get().stats.downstream_cx_overflow.increment(1);
    let mut orders = share.orders();
    loop {
        let accepted = tokio::select! {
            biased;
            changed = orders.changed() => {
                let orders = *orders.borrow_and_update();
                if orders.leave {
                    // Whoever waits waits for the process that has this socket too.
                    return;
                }
                if changed.is_err() || orders.stop {
                    break;
                }
                // A queue of another length is no reason to stop.
                let _ = acceptor.set_backlog(orders.backlog);
                continue;
            }
            accepted = poll_fn(|context| acceptor.poll_accept(context)) => accepted,
        };
        match accepted {
            Ok(stream) => start(stream),
            Err(error) if is_exhausted(&error) => {
                exhausted();
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            // The client gave up while it waited to be accepted.
            Err(_) => {}
        }
    }
    // Whoever waits has been told that the connection stands: closing now would reset it.
    for _ in 0..MAX_WAITING {
        match acceptor.accept_waiting() {
            Ok(Some(stream)) => start(stream),
            Ok(None) => break,
            Err(error) if is_exhausted(&error) => {
                exhausted();
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            Err(_) => {}
        }
    }
    // The share says that the socket is open.
    drop(acceptor);
    drop(share);
}

/// Takes the connections of an internal listener until that is stopped.
pub fn internal(worker: &Rc<Worker>, share: Share, census: &Rc<Census>, fate: &watch::Receiver<Fate>) {
    let name = share.get().name.clone();
    let mut orders = share.orders();
    // The worker has the taker on its thread: it may not keep the worker.
    let (weak, census, fate) = (Rc::downgrade(worker), census.clone(), fate.clone());
    let taker = move |stream: Stream, passed: Passed| {
        let (Some(worker), listener) = (weak.upgrade(), share.get()) else { return };
        let destinations = share.destinations().clone();
        census.last_accept.set(Instant::now());
        let id = next_id();
        let origin = Origin { stream, passed };
        let served = serve(worker, listener, destinations, origin, id, census.clone(), fate.clone());
        let task = tokio::task::spawn_local(served);
        if let Some(sessions) = &census.sessions {
            sessions.opened(id, task.abort_handle());
        }
    };
    // At once, so that connections which come first find it.
    let listening = internal::listen(name, Rc::new(taker));
    tokio::task::spawn_local(async move {
        // That nobody can give orders any more means the same.
        let _ = orders.wait_for(|orders| orders.stop).await;
        drop(listening);
    });
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
