//! The process: sockets bound, workers started, signals and the admin port served, and the end.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::{mpsc, oneshot, watch};

use super::drain::{Drain, Stop};
use super::socket::{self, Bound, ListenError, ListenOptions};
use super::worker::{self, Assignment, Status};
use crate::admin::{AdminCommand, AdminState, BootstrapSource, ListenerStatus};
use crate::bootstrap::flags::DrainStrategy;
use crate::bootstrap::Flags;
use crate::config::cluster::{Address, Discovery};
use crate::config::compile::CompiledBootstrap;
use crate::config::listener::Listener;
use crate::telemetry::access_log;
use crate::telemetry::log::LogControl;
use crate::telemetry::process::{Managers, Server, ServerState};
use crate::upstream::dns;

/// Why the process cannot run. The text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener's socket.
    #[error("listener {name}: {source}")]
    Listen {
        /// The listener.
        name: Arc<str>,
        /// Why.
        source: ListenError,
    },
    /// The admin port.
    #[error("admin: {0}")]
    Admin(ListenError),
    /// A thread or runtime.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// A process that had no traffic for this long has nobody left to wait for.
const QUIET: Duration = Duration::from_secs(5);
/// How long the admin port may be held by the process that we replace.
const ADMIN_PATIENCE: Duration = Duration::from_secs(2);
/// After new connections go to a successor, those already on their way to us are still accepted.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(10);

/// Serves traffic until it is told to stop.
///
/// # Errors
/// A listener cannot be bound, or a thread or runtime cannot start.
pub fn run(compiled: CompiledBootstrap, flags: Flags, log: LogControl) -> Result<(), RunError> {
    crate::telemetry::metrics::install();
    // Without the raised limit the process serves fewer connections, but it serves.
    let _ = socket::raise_nofile_limit();
    let workers = flags.workers().max(1);
    let mut sockets = Vec::new();
    for listener in compiled.listeners.iter().filter(|listener| listener.bind_to_port) {
        let options = ListenOptions {
            reuse_port: listener.reuse_port,
            backlog: listener.backlog,
            ipv4_compat: listener.ipv4_compat,
            mode: (listener.pipe_mode != 0).then_some(listener.pipe_mode),
            ..ListenOptions::default()
        };
        let fail = |source| RunError::Listen { name: listener.name.clone(), source };
        let first = socket::listen(&listener.address, &options).map_err(fail)?;
        sockets.push((listener.clone(), first, options));
    }
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(serve(compiled, flags, log, sockets, workers))
}

type Socket = (Arc<Listener>, Bound, ListenOptions);

struct Workers {
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    statuses: Vec<Arc<Status>>,
    stop: watch::Sender<Stop>,
    end: watch::Sender<bool>,
    addresses: Vec<std::net::SocketAddr>,
    inodes: Vec<u64>,
    /// One handle on each listener's first socket, to steer its group until the listener stops.
    handles: RefCell<Vec<(Arc<Listener>, Bound)>>,
    count: usize,
}

async fn serve(
    compiled: CompiledBootstrap,
    flags: Flags,
    log: LogControl,
    sockets: Vec<Socket>,
    count: usize,
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let server = Server::new(count);
    let server = Arc::new(server);
    let drain = Arc::new(Drain::default());
    start_clusters(&compiled).await;
    let statuses = listener_statuses(&sockets);
    let clusters = compiled.clusters.all().iter().filter(|slot| slot.get().is_some()).count();
    let managers = Managers::new(clusters, sockets.len(), count);
    let workers = start_workers(&compiled, &drain, sockets, count)?;
    let (commands, mut requests) = mpsc::channel(16);
    let (admin_stop, admin_stopped) = watch::channel(false);
    if let Some(admin) = &compiled.admin {
        let node = Arc::new(compiled.dump.node().clone());
        let dump = compiled.dump;
        let state = AdminState {
            server: server.clone(),
            clusters: compiled.clusters.clone(),
            listeners: Arc::new(ArcSwap::from_pointee(statuses)),
            bootstrap: BootstrapSource(Arc::new(move || dump.to_json())),
            node,
            loaded: SystemTime::now(),
            options: Arc::new(serde_json::json!({ "concurrency": count })),
            log,
            commands,
        };
        let bound = bind_admin(&admin.address).await?;
        if let Some(address) = bound.local_addr() {
            if let Err(error) = crate::bootstrap::write_admin_address(&flags, &address.to_string()) {
                tracing::warn!("admin address file: {error}");
            }
            tracing::info!("admin address: {address}");
        }
        serve_admin(bound, state, admin_stopped)?;
    }
    while !workers.statuses.iter().all(|status| status.ready.load(Ordering::Acquire)) {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    managers.started();
    server.set_state(ServerState::Live);
    tracing::info!("starting main dispatch loop");
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut stop_later: Option<(tokio::time::Instant, Stop)> = None;
    let mut steered = true;
    let graceful = loop {
        let later = async {
            match stop_later {
                Some((at, which)) => {
                    tokio::time::sleep_until(at).await;
                    which
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            which = later => {
                stop_later = None;
                managers.stopped(workers.stop(which));
            }
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break true,
            _ = reopen.recv() => access_log::reopen_all(),
            _ = tick.tick() => {
                let open: usize = workers.statuses.iter().map(|s| s.connections.load(Ordering::Relaxed)).sum();
                server.connections().store(open as u64, Ordering::Relaxed);
                server.refresh();
                steered = steered && !workers.stop_steering();
            }
            command = requests.recv() => match command {
                Some(AdminCommand::Quit) => break false,
                Some(AdminCommand::DrainListeners { graceful, inbound_only, skip_exit }) => {
                    let which = if inbound_only { Stop::Inbound } else { Stop::All };
                    if !graceful {
                        // As in Envoy: open connections are not told.
                        if !skip_exit {
                            managers.stopped(workers.stop(which));
                        }
                    } else if !drain.is_draining() {
                        drain.start(strategy(&flags, true), inbound_only);
                        stop_later = (!skip_exit).then(|| (tokio::time::Instant::now() + flags.drain_time(), which));
                    }
                }
                Some(AdminCommand::HealthFail(fail)) => {
                    if fail {
                        drain.start(strategy(&flags, true), false);
                    }
                }
                None => std::future::pending().await,
            },
        }
    };
    if graceful {
        tracing::info!("draining for up to {} s", flags.drain_time().as_secs());
        server.set_state(ServerState::Draining);
        drain.start(None, false);
        // The port goes to whoever replaces us.
        let _ = admin_stop.send(true);
        tokio::select! {
            () = finish(&workers, flags.drain_time()) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    workers.stop(Stop::All);
    let _ = workers.end.send(true);
    for thread in workers.threads {
        if let Ok(Err(error)) = thread.join() {
            tracing::error!("a worker failed: {error}");
        }
    }
    access_log::flush_all(Duration::from_secs(1));
    Ok(())
}

fn strategy(flags: &Flags, graceful: bool) -> Option<Duration> {
    (graceful && flags.drain_strategy == DrainStrategy::Gradual).then(|| flags.drain_time())
}

/// Hosts of DNS clusters are looked up before traffic is taken, as Envoy warms clusters.
async fn start_clusters(compiled: &CompiledBootstrap) {
    let mut answers = Vec::new();
    for slot in compiled.clusters.all() {
        let Some(cluster) = slot.get() else { continue };
        if matches!(cluster.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_)) {
            let (first, answer) = oneshot::channel();
            answers.push(answer);
            tokio::spawn(dns::follow_announcing(cluster, first));
        } else {
            dns::announce_members(&cluster);
        }
    }
    for answer in answers {
        // Without an answer in time the listeners open anyway; requests get 503 until it comes.
        let _ = dns::first_resolution(answer).await;
    }
}

fn listener_statuses(sockets: &[Socket]) -> Vec<ListenerStatus> {
    let address = |listener: &Listener, bound: &Bound| {
        bound.local_addr().map_or_else(|| listener.address.clone(), Address::Ip)
    };
    sockets
        .iter()
        .map(|(listener, bound, _)| ListenerStatus {
            name: listener.name.clone(),
            addresses: vec![address(listener, bound)],
        })
        .collect()
}

fn start_workers(
    compiled: &CompiledBootstrap,
    drain: &Arc<Drain>,
    sockets: Vec<Socket>,
    count: usize,
) -> Result<Workers, RunError> {
    let (stop, stopped) = watch::channel(Stop::None);
    let (end, ended) = watch::channel(false);
    let mut shares: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    let mut handles = Vec::new();
    let mut inodes = Vec::new();
    for (listener, first, options) in sockets {
        let fail = |source| RunError::Listen { name: listener.name.clone(), source };
        let bound_address = first.local_addr();
        addresses.extend(bound_address.filter(|_| listener.reuse_port));
        let address = bound_address.map_or_else(|| listener.address.clone(), Address::Ip);
        for (index, share) in shares.iter_mut().enumerate() {
            let own = if index > 0 && listener.reuse_port && matches!(address, Address::Ip(_)) {
                socket::listen(&address, &options).map_err(fail)?
            } else {
                // Without SO_REUSEPORT the workers share one accept queue.
                first.try_clone()?
            };
            if let Bound::Tcp(own) = &own {
                inodes.push(socket::inode(own.as_fd())?);
            }
            share.push((listener.clone(), own));
        }
        handles.push((listener, first));
    }
    let mut threads = Vec::new();
    let mut statuses = Vec::new();
    for (index, listeners) in shares.into_iter().enumerate() {
        let status = Arc::new(Status::default());
        statuses.push(status.clone());
        let assignment = Assignment {
            index,
            listeners,
            clusters: compiled.clusters.clone(),
            drain: drain.clone(),
            status,
            stop: stopped.clone(),
            end: ended.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("worker_{index}"));
        threads.push(thread.spawn(move || worker::run(assignment))?);
    }
    let handles = RefCell::new(handles);
    Ok(Workers { threads, statuses, stop, end, addresses, inodes, handles, count })
}

/// Binds the admin port; the process we replace may need a moment to let go of it.
async fn bind_admin(address: &Address) -> Result<Bound, RunError> {
    let options = ListenOptions { reuse_port: false, ..ListenOptions::default() };
    let deadline = Instant::now() + ADMIN_PATIENCE;
    loop {
        match socket::listen(address, &options) {
            Err(ListenError::InUse(_)) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
            other => return other.map_err(RunError::Admin),
        }
    }
}

fn serve_admin(bound: Bound, state: AdminState, mut stop: watch::Receiver<bool>) -> Result<(), RunError> {
    let stopped = async move {
        // The sender gone means the same.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    match bound {
        Bound::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(crate::admin::serve(listener, state, stopped));
        }
        Bound::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            tokio::spawn(crate::admin::serve(listener, state, stopped));
        }
    }
    Ok(())
}

/// Waits until the process may end: a successor took the ports and our connections are gone, or
/// nobody has spoken for a while, or the time is up.
async fn finish(workers: &Workers, limit: Duration) {
    let start = Instant::now();
    let deadline = start + limit;
    // Sockets stay open for latecomers until this long before the end.
    let stop_at = deadline - (limit / 10).min(Duration::from_secs(1));
    let mut stop_after: Option<Instant> = None;
    loop {
        tokio::time::sleep(POLL * 2).await;
        let now = Instant::now();
        if now >= deadline {
            return;
        }
        if stop_after.is_none() && workers.handed_over() {
            stop_after = Some(now + HANDSHAKE_GRACE);
        }
        if now >= stop_at || stop_after.is_some_and(|at| now >= at) {
            workers.stop(Stop::All);
        }
        let sum = |of: fn(&Status) -> usize| workers.statuses.iter().map(|status| of(status)).sum::<usize>();
        let stopped = workers.statuses.iter().all(|status| status.stopped.load(Ordering::Acquire));
        let connections = sum(|status| status.connections.load(Ordering::Relaxed));
        let busy = sum(|status| status.busy.load(Ordering::Relaxed));
        let quiet =
            workers.statuses.iter().map(|s| s.quiet_ms.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX);
        if stopped && connections == 0 {
            return;
        }
        // The first reports after the drain began are at most two intervals old.
        let reported = now.duration_since(start) > Duration::from_millis(300);
        if reported && busy == 0 && Duration::from_millis(quiet) >= QUIET {
            return;
        }
    }
}

impl Workers {
    /// Closes the listening sockets of the listeners concerned; says how many listeners that were.
    fn stop(&self, which: Stop) -> usize {
        let mut handles = self.handles.borrow_mut();
        let before = handles.len();
        // A handle of ours would keep the port open.
        handles.retain(|(listener, _)| !which.concerns(listener));
        self.stop.send_if_modified(|stop| {
            let more = *stop < which;
            *stop = which.max(*stop);
            more
        });
        before - handles.len()
    }

    /// Takes off what a predecessor left on our ports to send new connections here: a rule made for
    /// its sockets and ours would pick out one of our workers. False while it still listens.
    fn stop_steering(&self) -> bool {
        if !socket::foreign_listeners(&self.addresses, &self.inodes).is_empty() {
            return false;
        }
        for (_, handle) in self.handles.borrow().iter() {
            if let Bound::Tcp(listener) = handle {
                // A kernel that cannot take it off cannot have put it on.
                let _ = socket::stop_steering(listener.as_fd());
            }
        }
        true
    }

    /// Whether another process listens on all our ports; new connections then go to it alone.
    fn handed_over(&self) -> bool {
        let taken = socket::foreign_listeners(&self.addresses, &self.inodes);
        if self.addresses.is_empty() || !self.addresses.iter().all(|address| taken.contains(address)) {
            return false;
        }
        for (_, handle) in self.handles.borrow().iter() {
            if let Bound::Tcp(listener) = handle {
                // Our sockets came first in the group. Where steering is not possible the kernel goes
                // on spreading connections until we close.
                let first_of_theirs = u32::try_from(self.count).unwrap_or(u32::MAX);
                let _ = socket::steer_new_connections(listener.as_fd(), first_of_theirs);
            }
        }
        true
    }
}
