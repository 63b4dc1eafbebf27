//! The process: sockets bound, workers started, signals and the admin port served, and the end.

use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::{mpsc, oneshot, watch};

use super::application::Application;
use super::drain::{Drain, Stop};
use super::listeners::{DrainPolicy, ListenerError, ListenerManager};
use super::signals::Signals;
use super::sinks;
use super::socket::{self, Bound, ListenError, ListenOptions};
use super::upgrade::minder::Charge;
use super::upgrade::succession::{Relief, Upgrades};
use super::upgrade::successor::Predecessor;
use super::upgrade::wire::{Purpose, WireError};
use super::worker::{self, Assignment, Command, Status};
use crate::admin::{AdminCommand, AdminState, BootstrapSource};
use crate::bootstrap::flags::DrainStrategy;
use crate::bootstrap::Flags;
use crate::capture::CaptureError;
use crate::config::cluster::{self, Address};
use crate::config::compile::runtime::Runtime;
use crate::config::compile::CompiledBootstrap;
use crate::config::listener::Listener;
use crate::config::{Cluster, Directory};
use crate::discovery::{Discovery, Serving};
use crate::inject::probes::{self, ServeError};
use crate::telemetry::access_log;
use crate::telemetry::log::LogControl;
use crate::telemetry::process::{Managers, Server, ServerState};
use crate::upstream::{dns, health};

/// Why the process cannot run. The text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// The admin port.
    #[error("admin: {0}")]
    Admin(ListenError),
    /// The port for the application's probes.
    #[error(transparent)]
    Probes(#[from] ServeError),
    /// `--capture`.
    #[error("{0}")]
    Flags(String),
    /// The rules of capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The process in whose place this one was to serve.
    #[error("upgrade: {0}")]
    Upgrade(#[from] WireError),
    /// Where upgrades are asked for.
    #[error("--socket-path: {0}")]
    Office(ListenError),
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
/// How often is looked whether the application is still there.
const LOOK: Duration = Duration::from_millis(250);

/// Serves traffic until it is told to stop, and then until its successor ends, if it has one.
///
/// # Errors
/// A listener cannot be bound, or a thread or runtime cannot start.
pub fn run(compiled: CompiledBootstrap, flags: Flags, log: LogControl) -> Result<ExitCode, RunError> {
    crate::telemetry::metrics::install();
    // Without the raised limit the process serves fewer connections, but it serves.
    let _ = socket::raise_nofile_limit();
    let workers = flags.workers().max(1);
    let (senders, commands): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    // A port that cannot be had ends the process before anything is begun.
    let mut listeners = ListenerManager::new(DrainPolicy::new(&flags), senders);
    let predecessor = Predecessor::meet()?.map(|(predecessor, sockets)| {
        listeners.inherit_from(sockets);
        predecessor
    });
    listeners.start(compiled.listeners.clone())?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = Arc::new(Mutex::new(listeners));
    let charge = control.block_on(serve(compiled, flags, log, listeners, commands, predecessor))?;
    drop(control);
    Ok(charge.map_or(ExitCode::SUCCESS, Charge::mind))
}

/// The listeners, for those on the control thread that change them. Never locked across an await.
pub type SharedListeners = Arc<Mutex<ListenerManager>>;

fn lock(listeners: &Mutex<ListenerManager>) -> MutexGuard<'_, ListenerManager> {
    listeners.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Workers {
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    statuses: Vec<Arc<Status>>,
    end: watch::Sender<bool>,
}

async fn serve(
    compiled: CompiledBootstrap,
    flags: Flags,
    log: LogControl,
    listeners: SharedListeners,
    commands: Vec<mpsc::UnboundedReceiver<Command>>,
    mut predecessor: Option<Predecessor>,
) -> Result<Option<Charge>, RunError> {
    let count = commands.len();
    let capture = flags.captures().map_err(RunError::Flags)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // As in Envoy it ends nobody: others read their files again then.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::warn!("SIGHUP has no effect");
        }
    });
    let server = Server::new(count);
    let server = Arc::new(server);
    let drain = Arc::new(Drain::default());
    tokio::spawn(compiled.compiler.outliers.clone().run());
    if let Some(workload) = &compiled.compiler.workload {
        tokio::spawn(crate::discovery::workload::follow(workload.clone()));
    }
    let (process_end, process_ends) = watch::channel(false);
    let mut upgrades = Upgrades::open(&flags, predecessor.as_mut()).map_err(RunError::Office)?;
    serve_probes(&flags, process_ends, &mut upgrades, predecessor.as_mut())?;
    start_clusters(&compiled).await;
    // All of them, as in Envoy: also those that only lead to control planes.
    let _managers = Managers::new(compiled.compiler.static_clusters.len());
    let mut discovery = compiled.discovery.as_ref().map(|config| {
        let state = flags.state_dir.as_deref();
        Discovery::start(config, &compiled.compiler, &compiled.needs, state, &mut Discovered(&listeners))
    });
    let clusters = compiled.clusters.clone();
    let values = compiled.compiler.runtime.clone();
    let (worker_commands, (commands, mut requests)) = (commands, mpsc::channel(16));
    let (admin_stop, admin_stopped) = watch::channel(false);
    let mut admin_waits = None;
    if let Some(admin) = &compiled.admin {
        let node = Arc::new(compiled.dump.node().clone());
        let dump = compiled.dump;
        let state = AdminState {
            server: server.clone(),
            clusters: compiled.clusters.clone(),
            listeners: lock(&listeners).statuses(),
            bootstrap: BootstrapSource(Arc::new(move || dump.to_json())),
            node,
            loaded: SystemTime::now(),
            options: Arc::new(serde_json::json!({ "concurrency": count })),
            log,
            commands,
            discovery: discovery.as_ref().map(Discovery::view),
        };
        let text = admin.address.to_string();
        let inherited = predecessor.as_mut().and_then(|predecessor| predecessor.port(Purpose::Admin, &text));
        let bound = match inherited {
            Some(bound) => bound,
            None => bind_admin(&admin.address).await?,
        };
        upgrades.keep(Purpose::Admin, &text, &bound);
        if let Some(address) = bound.local_addr() {
            if let Err(error) = crate::bootstrap::write_admin_address(&flags, &address.to_string()) {
                tracing::warn!("admin address file: {error}");
            }
            tracing::info!("admin address: {address}");
        }
        match predecessor {
            // Until this process serves, the one before says that it does.
            Some(_) => admin_waits = Some((bound, state, admin_stopped)),
            None => serve_admin(bound, state, admin_stopped)?,
        }
    }
    server.set_state(ServerState::Initializing);
    // The first configuration is waited for, as in Envoy; who connects meanwhile waits in the queue.
    while let Some(waiting) = discovery.as_mut().filter(|discovery| !discovery.is_initialized()) {
        tokio::select! {
            happening = waiting.next() => waiting.handle(happening, &mut Discovered(&listeners)),
            _ = terminate.recv() => return Ok(None),
            _ = interrupt.recv() => return Ok(None),
            command = requests.recv() => {
                if let Some(AdminCommand::Quit) = command {
                    return Ok(None);
                }
            }
        }
    }
    // Not before somebody listens.
    let begin_capture = || match &capture {
        Some(options) => {
            crate::capture::apply(options)?;
            tracing::info!("connections of this network namespace are captured");
            Ok::<(), CaptureError>(())
        }
        None => Ok(()),
    };
    if let Some(predecessor) = &mut predecessor {
        // It does; what can fail is done before connections are accepted here.
        begin_capture()?;
        predecessor.offer(&listeners)?;
    }
    let workers = start_workers(&clusters, &values, &server, &drain, &flags, worker_commands)?;
    while !workers.statuses.iter().all(|status| status.ready.load(Ordering::Acquire)) {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    lock(&listeners).started();
    match predecessor {
        Some(predecessor) => relieve(predecessor, &listeners, &clusters)?,
        None => begin_capture()?,
    }
    if let Some((bound, state, stopped)) = admin_waits {
        serve_admin(bound, state, stopped)?;
    }
    let flusher =
        compiled.sinks.map(|sinks| sinks::start(sinks, clusters.clone(), values.clone())).transpose()?;
    server.set_state(ServerState::Live);
    tracing::info!("starting main dispatch loop");
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut stop_later: Option<(tokio::time::Instant, Stop)> = None;
    // One for the whole time: it has to remember that there was an application.
    let mut application_gone = pin!(application_gone(&flags));
    let ending = loop {
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
                lock(&listeners).stop(which);
            }
            _ = terminate.recv() => break Ending::Drain,
            _ = interrupt.recv() => break Ending::Drain,
            relief = upgrades.next(&listeners) => break Ending::Replaced(relief),
            _ = reopen.recv() => access_log::reopen_all(),
            () = follow(&mut discovery, &listeners) => {}
            () = &mut application_gone => {
                tracing::info!("the application has gone");
                break Ending::Drain;
            }
            _ = tick.tick() => {
                let open: usize = workers.statuses.iter().map(|s| s.connections.load(Ordering::Relaxed)).sum();
                server.connections().store(open as u64, Ordering::Relaxed);
                server.refresh();
                lock(&listeners).tick(Instant::now());
            }
            command = requests.recv() => match command {
                Some(AdminCommand::Quit) => break Ending::Quit,
                Some(AdminCommand::DrainListeners { graceful, inbound_only, skip_exit }) => {
                    let which = if inbound_only { Stop::Inbound } else { Stop::All };
                    if !graceful {
                        // As in Envoy: open connections are not told.
                        if !skip_exit {
                            lock(&listeners).stop(which);
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
    let replaced = matches!(ending, Ending::Replaced(_));
    let graceful = !matches!(ending, Ending::Quit);
    if graceful {
        tracing::info!("draining for up to {} s", flags.drain_time().as_secs());
        server.set_state(ServerState::Draining);
        // Who is still at work is not told to leave, but where a successor waits.
        drain.start(None, flags.outlive_application && !replaced);
        // The port goes to whoever replaces us.
        let _ = admin_stop.send(true);
    }
    let mut charge = match ending {
        Ending::Replaced(relief) => {
            upgrades.close();
            let _ = process_end.send(true);
            if let Some(discovery) = &mut discovery {
                discovery.keep_no_more();
            }
            Some(relief.accept(&listeners)?)
        }
        Ending::Drain | Ending::Quit => None,
    };
    drop(upgrades);
    if graceful {
        let mut signals = Signals { terminate, interrupt, reopen };
        tokio::select! {
            () = finish(&workers, &listeners, &drain, &flags, replaced) => {}
            // Endpoints change while requests are finished.
            () = async { loop { follow(&mut discovery, &listeners).await } } => {}
            () = signals.end(charge.as_mut()) => {}
        }
    }
    lock(&listeners).stop(Stop::All);
    let _ = process_end.send(true);
    let _ = workers.end.send(true);
    for thread in workers.threads {
        if let Ok(Err(error)) = thread.join() {
            tracing::error!("a worker failed: {error}");
        }
    }
    access_log::flush_all(Duration::from_secs(1));
    if let Some(flusher) = flusher {
        flusher.end();
    }
    Ok(charge)
}

/// Why the process leaves.
enum Ending {
    /// At once.
    Quit,
    /// When everybody has been served, or the time is up.
    Drain,
    /// Likewise, and its successor serves.
    Replaced(Relief),
}

/// Tells the process before this one that it is not needed any more, and takes what it gives from then on.
fn relieve(
    predecessor: Predecessor,
    listeners: &SharedListeners,
    clusters: &Arc<Directory<Cluster>>,
) -> Result<(), RunError> {
    predecessor.relieve()?;
    let (listeners, clusters) = (listeners.clone(), clusters.clone());
    let take = move || predecessor.take(&listeners, &clusters);
    std::thread::Builder::new().name("take over".to_owned()).spawn(take)?;
    Ok(())
}

/// Answers kubelet's probes of the application, where the port for them is given.
fn serve_probes(
    flags: &Flags,
    mut ends: watch::Receiver<bool>,
    upgrades: &mut Upgrades,
    predecessor: Option<&mut Predecessor>,
) -> Result<(), ServeError> {
    let Some(port) = flags.probe_port else { return Ok(()) };
    let name = port.to_string();
    let listener = match predecessor.and_then(|predecessor| predecessor.port(Purpose::Probes, &name)) {
        Some(Bound::Tcp(listener)) => listener,
        _ => probes::listen(port)?,
    };
    upgrades.keep(Purpose::Probes, &name, &listener);
    let table = std::env::var(probes::VARIABLE).unwrap_or_else(|_| "{}".to_owned());
    let ended = async move {
        // The sender gone means the same.
        let _ = ends.wait_for(|ends| *ends).await;
    };
    let address = probes::serve(&table, listener, ended)?;
    tracing::info!("probes of the application are answered on {address}");
    Ok(())
}

/// Returns when the application has gone, if its end is ours.
async fn application_gone(flags: &Flags) {
    match flags.exit_with_application {
        true => Application::default().gone().await,
        false => std::future::pending().await,
    }
}

fn strategy(flags: &Flags, graceful: bool) -> Option<Duration> {
    (graceful && flags.drain_strategy == DrainStrategy::Gradual).then(|| flags.drain_time())
}

/// Hosts of DNS clusters are looked up before traffic is taken, as Envoy warms clusters.
async fn start_clusters(compiled: &CompiledBootstrap) {
    let mut answers = Vec::new();
    for slot in compiled.clusters.all() {
        let Some(cluster) = slot.get() else { continue };
        if !matches!(cluster.discovery, cluster::Discovery::StrictDns(_) | cluster::Discovery::LogicalDns(_))
        {
            dns::announce_members(&cluster);
        }
        if health::run::is_followed(&cluster) {
            let (first, answer) = oneshot::channel();
            answers.push((cluster.clone(), answer));
            tokio::spawn(health::run::follow(cluster, first));
        }
    }
    for (cluster, answer) in answers {
        // Without an answer in time the listeners open anyway; requests get 503 until it comes.
        health::run::warmed(&cluster, answer).await;
    }
}

/// Listeners as discovery changes them.
struct Discovered<'a>(&'a Mutex<ListenerManager>);

impl Serving for Discovered<'_> {
    fn update(&mut self, removed: &[&str], added: Vec<Listener>) -> Vec<Result<(), String>> {
        let results = lock(self.0).update(removed, added);
        let told = |result: Result<_, ListenerError>| match result {
            // As in Envoy, the bootstrap's listener stays and the control plane is not told.
            Err(error @ ListenerError::Static(_)) => {
                tracing::warn!("{error}");
                Ok(())
            }
            result => result.map(drop).map_err(|error| error.to_string()),
        };
        results.into_iter().map(told).collect()
    }

    fn set_warming(&mut self, listeners: usize) {
        lock(self.0).set_warming(listeners);
    }
}

/// Takes one step of discovery; never ends where there is none.
async fn follow(discovery: &mut Option<Discovery>, listeners: &Mutex<ListenerManager>) {
    match discovery {
        Some(discovery) => {
            let happening = discovery.next().await;
            discovery.handle(happening, &mut Discovered(listeners));
        }
        None => std::future::pending().await,
    }
}

fn start_workers(
    clusters: &Arc<Directory<Cluster>>,
    runtime: &Arc<ArcSwap<Runtime>>,
    server: &Arc<Server>,
    drain: &Arc<Drain>,
    flags: &Flags,
    commands: Vec<mpsc::UnboundedReceiver<Command>>,
) -> Result<Workers, RunError> {
    let (end, ended) = watch::channel(false);
    let mut threads = Vec::new();
    let mut statuses = Vec::new();
    for (index, commands) in commands.into_iter().enumerate() {
        let status = Arc::new(Status::default());
        statuses.push(status.clone());
        let assignment = Assignment {
            index,
            commands,
            drains_end: flags.drain_ends(),
            clusters: clusters.clone(),
            runtime: runtime.clone(),
            server: Some(server.clone()),
            drain: drain.clone(),
            rebalance: flags.rebalance(),
            status,
            end: ended.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("worker_{index}"));
        threads.push(thread.spawn(move || worker::run(assignment))?);
    }
    Ok(Workers { threads, statuses, end })
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
        // Never bound so.
        Bound::Udp(_) => {}
        Bound::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            tokio::spawn(crate::admin::serve(listener, state, stopped));
        }
    }
    Ok(())
}

/// Waits until the process may end: a successor took the ports and our connections are gone, or
/// nobody has spoken for a while, or the time is up.
async fn finish(
    workers: &Workers,
    listeners: &Mutex<ListenerManager>,
    drain: &Drain,
    flags: &Flags,
    replaced: bool,
) {
    let start = Instant::now();
    let limit = flags.drain_time();
    let mut application = (flags.outlive_application && !replaced).then(Application::default);
    let mut looked: Option<Instant> = None;
    let deadline = start + limit;
    // Sockets stay open for latecomers until this long before the end: what they ask for must still be answered, on a
    // machine with others to serve too.
    let stop_at = deadline - (limit / 4).min(Duration::from_secs(1));
    let mut stop_after: Option<Instant> = None;
    loop {
        tokio::time::sleep(POLL * 2).await;
        let now = Instant::now();
        let sum = |of: fn(&Status) -> usize| workers.statuses.iter().map(|status| of(status)).sum::<usize>();
        let busy = sum(|status| status.busy.load(Ordering::Relaxed));
        if now >= deadline {
            if busy > 0 {
                tracing::warn!(
                    "the drain time is over, and {busy} requests and relayed connections are cut off"
                );
            }
            return;
        }
        if let Some(beside) = &application {
            if looked.is_none_or(|at| now.duration_since(at) >= LOOK) {
                looked = Some(now);
                if now >= stop_at || !beside.is_there() {
                    tracing::info!("outbound traffic ends too");
                    drain.start(None, false);
                    application = None;
                }
            }
        }
        let mut listeners = lock(listeners);
        if stop_after.is_none() && listeners.handed_over() {
            stop_after = Some(now + HANDSHAKE_GRACE);
        }
        if now >= stop_at || stop_after.is_some_and(|at| now >= at) {
            listeners.stop(Stop::All);
        }
        let stopped = listeners.is_closed();
        drop(listeners);
        let connections = sum(|status| status.connections.load(Ordering::Relaxed));
        let quiet =
            workers.statuses.iter().map(|s| s.quiet_ms.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX);
        if stopped && connections == 0 {
            return;
        }
        // Where everything goes on without us there is no hurry: who has said nothing yet may stay.
        if replaced && connections > sum(|status| status.http.load(Ordering::Relaxed)) {
            continue;
        }
        if application.is_some() {
            continue;
        }
        // The first reports after the drain began are at most two intervals old.
        let reported = now.duration_since(start) > Duration::from_millis(300);
        if reported && busy == 0 && Duration::from_millis(quiet) >= QUIET {
            return;
        }
    }
}
