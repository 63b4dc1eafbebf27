//! Discovery: keeps the configuration what the control planes say.
//!
//! In: what the bootstrap says of control planes, and their updates. Out: slots that are filled and
//! swapped ([`Slot`](crate::config::Slot)), listeners handed to whoever serves them ([`Serving`]), and
//! verdicts. Runs on the control thread; nothing on the data path waits for it or is waited for.
//!
//! An update goes through [`streams`], the client of one control plane, to the [`manager`], which gives
//! each resource to the room of its type: [`clusters`] (with their endpoints), [`routes`],
//! [`listeners`]. What these want done comes back as [`effects`]. The other way go load reports ([`loads`]).

mod called_clusters;
mod clusters;
mod demands;
mod effects;
mod last_good;
mod listeners;
mod loads;
mod manager;
mod pieces;
mod resource;
mod routes;
mod runtime;
mod scopes;
mod sources;
mod stats;
mod streams;
mod tls;
pub mod view;
mod virtual_hosts;
mod wanted;
mod watch;
pub mod workload;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_control_api::client::{Change, Event, Update};
use outrigger_control_api::pb::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};

use self::effects::{Effect, CDS};
use self::loads::LoadReporting;
use self::manager::Manager;
use self::sources::StreamId;
use self::stats::ControlPlaneStats;
use self::streams::Streams;
use self::view::View;
use self::watch::Watch;
use crate::config::compile::resource::{Compiler, Needs};
use crate::config::demand::Ask;
use crate::config::discovery::DiscoveryConfig;
use crate::config::listener::Listener;
use crate::config::Cluster;
use crate::telemetry::metrics::Scope;
use crate::upstream::health;

/// Who serves listeners.
pub trait Serving {
    /// Stops serving the listeners `removed` and serves those `added`, in place of what has the same name,
    /// whose connections go on until they end. Says of each that was added whether it serves; where it
    /// does not, what served before still does, and the error is for the control plane's operator.
    fn update(&mut self, removed: &[&str], added: Vec<Listener>) -> Vec<Result<(), String>>;

    /// So many listeners wait for what they need.
    fn set_warming(&mut self, listeners: usize);
}

/// Why resources cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// A resource is to come from the aggregated stream, which the bootstrap does not configure.
    #[error("the bootstrap has no dynamic_resources.ads_config")]
    NoAds,
    /// TLS to the control plane.
    #[error("TLS to the control plane {target}: {reason}")]
    Tls {
        /// Its name.
        target: Arc<str>,
        /// Why.
        reason: String,
    },
}

/// What there is to react to.
#[derive(Debug)]
pub struct Happening(What);

#[derive(Debug)]
enum What {
    Event(StreamId, Event),
    Resolved { cluster: Arc<str>, generation: u64 },
    Asked(Ask),
    Tick,
}

/// How often time is looked at while nothing is under way.
const TICK: Duration = Duration::from_secs(1);
/// How often clusters that nobody uses are put to sleep.
const DOZE: Duration = Duration::from_secs(30);

/// A stream that stays open for this long without a response confirms what is held: a control plane
/// that has nothing new need not say so.
const CONFIRMED_AFTER: Duration = Duration::from_secs(5);

/// Changes are collected for this long before the last good configuration is written.
const WRITE_AFTER: Duration = Duration::from_secs(2);

/// Names of a cluster that were answered: the cluster's, and which version of it asked.
type Resolved = (Arc<str>, u64);

/// The client of all control planes.
pub struct Discovery {
    manager: Arc<Mutex<Manager>>,
    streams: Streams,
    events: mpsc::Receiver<(StreamId, Event)>,
    lookups: HashMap<u64, AbortHandle>,
    resolved: (mpsc::UnboundedSender<Resolved>, mpsc::UnboundedReceiver<Resolved>),
    /// What requests wait for.
    asks: mpsc::UnboundedReceiver<Ask>,
    ticks: tokio::time::Interval,
    last_doze: Instant,
    stats: Arc<ControlPlaneStats>,
    watch: Watch,
    keeper: Option<Keeper>,
    loads: Option<LoadReporting>,
}

/// Writes the last good configuration.
struct Keeper {
    directory: PathBuf,
    node: Node,
    writing: Option<JoinHandle<()>>,
}

impl Discovery {
    /// Starts to ask for what the bootstrap wants and what its listeners need; serves what `state_directory` holds until it comes.
    /// To be called within the control thread's runtime.
    pub fn start(
        config: &DiscoveryConfig,
        compiler: &Arc<Compiler>,
        needs: &[Needs],
        state_directory: Option<&Path>,
        serving: &mut dyn Serving,
    ) -> Self {
        let (streams, events) = Streams::new(config.node.clone(), config.ads.clone());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stats = Arc::new(ControlPlaneStats::new(&Scope::raw("control_plane")));
        let mut discovery = Self {
            manager: Arc::new(Mutex::new(Manager::new(compiler, config, needs))),
            streams,
            events,
            lookups: HashMap::new(),
            resolved: mpsc::unbounded_channel(),
            // Taken once in the life of a process; another one would have nobody to serve.
            asks: compiler.demand.take_asks().unwrap_or_else(|| mpsc::unbounded_channel().1),
            ticks,
            last_doze: Instant::now(),
            watch: Watch::new(stats.clone()),
            stats,
            keeper: state_directory.map(|directory| Keeper {
                directory: directory.to_owned(),
                node: config.node.clone(),
                writing: None,
            }),
            loads: None,
        };
        discovery.stats.connected_state.set(0.0);
        discovery.restore(serving);
        discovery.manager().settle(serving);
        discovery.act(serving);
        discovery.loads = config.load_stats.as_ref().and_then(|source| {
            let started = LoadReporting::start(source, &config.node, compiler, &discovery.manager);
            started.map_err(|error| tracing::error!("loads are not reported: {error}")).ok()
        });
        discovery
    }

    /// For the admin port.
    pub fn view(&self) -> View {
        View::new(self.manager.clone(), self.watch.board())
    }

    fn manager(&self) -> MutexGuard<'_, Manager> {
        self.manager.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the last good configuration, if there is one.
    fn restore(&mut self, serving: &mut dyn Serving) {
        let Some(keeper) = &self.keeper else { return };
        let groups = match last_good::read(&keeper.directory, &keeper.node) {
            Ok(Some(groups)) => groups,
            Ok(None) => return,
            Err(error) => return tracing::error!("last good configuration not used: {error}"),
        };
        let held = self.manager().restore(groups, serving);
        if self.manager().is_restored() {
            self.stats.last_good_in_use.set(1.0);
        }
        for change in held {
            self.act(serving);
            let manager = self.manager.clone();
            let manager = manager.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(subscriptions) = self.streams.subscriptions(change.0, &manager.sources) {
                subscriptions.change(change.1);
            }
        }
    }

    /// Writes what is in force some time after it changed.
    fn keep(&mut self, now: Instant) {
        let Some(keeper) = &mut self.keeper else { return };
        if keeper.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        let mut manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner);
        let due = manager.changed.is_some_and(|at| now.saturating_duration_since(at) >= WRITE_AFTER);
        if !due || !manager.is_initialized() {
            return;
        }
        manager.changed = None;
        let groups = manager.in_force();
        let (directory, node) = (keeper.directory.clone(), keeper.node.clone());
        keeper.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = last_good::write(&directory, &node, &groups) {
                tracing::error!("last good configuration not written: {error}");
            }
        }));
    }

    /// The next thing to [`handle`](Self::handle). Loses nothing when dropped half-way.
    pub async fn next(&mut self) -> Happening {
        tokio::select! {
            biased;
            // First, because a control plane that never pauses must not keep time from passing.
            _ = self.ticks.tick() => Happening(What::Tick),
            Some((cluster, generation)) = self.resolved.1.recv() => Happening(What::Resolved { cluster, generation }),
            Some(ask) = self.asks.recv() => Happening(What::Asked(ask)),
            Some((stream, event)) = self.events.recv() => Happening(What::Event(stream, event)),
        }
    }

    /// Reacts.
    pub fn handle(&mut self, happening: Happening, serving: &mut dyn Serving) {
        let mut arrived = None;
        match happening.0 {
            What::Event(stream, event) => {
                if let Event::Update(Update { type_url, received: Some(received), .. }) = &event {
                    arrived = Some((type_url.clone(), *received));
                }
                self.event(stream, event, serving);
            }
            What::Asked(ask) => self.manager().asked(ask),
            What::Resolved { cluster, generation } => self.manager().resolved(&cluster, generation, serving),
            What::Tick => {
                let now = Instant::now();
                self.manager().tick(now, serving);
                if now.duration_since(self.last_doze) >= DOZE {
                    self.last_doze = now;
                    self.count_loads();
                    self.manager().doze();
                }
                for stream in self.watch.open_for(now, CONFIRMED_AFTER) {
                    self.confirmed(stream, None);
                }
                self.watch.ask(&self.streams);
                self.keep(now);
            }
        }
        self.act(serving);
        if let Some((type_url, received)) = arrived {
            self.watch.in_effect(&type_url, received);
        }
    }

    /// From now on the last good configuration is written by another process.
    pub fn keep_no_more(&mut self) {
        self.keeper = None;
    }

    /// Whether the first configuration is in force, or was waited for long enough: then the process
    /// takes traffic.
    pub fn is_initialized(&self) -> bool {
        self.manager().is_initialized()
    }

    fn event(&mut self, stream: StreamId, event: Event, serving: &mut dyn Serving) {
        match event {
            Event::Update(update) => {
                if update.type_url == CDS {
                    self.count_loads();
                }
                let refused = self.manager().update(stream, &update, serving);
                if refused.is_empty() && !update.flawed {
                    self.confirmed(stream, Some(&update.type_url));
                }
                // The client writes to the log what is refused.
                if let Some(subscriptions) = self.streams.get(stream) {
                    if refused.is_empty() {
                        subscriptions.accept(update.id);
                    } else {
                        subscriptions.reject(update.id, refused);
                    }
                }
            }
            Event::FetchTimeout { type_url, name } => {
                self.manager().timed_out(stream, &type_url, name.as_deref(), serving);
            }
            // The client writes all of these to the log.
            Event::Connected => self.watch.opened(stream),
            Event::Disconnected { reason, .. } => {
                self.watch.closed(stream, reason);
                self.manager().failed(stream);
            }
            Event::RateLimited => self.stats.rate_limit_enforced.increment(1),
            Event::Refused { type_url, .. } => {
                self.stats.responses_refused.increment(1);
                self.manager().refused(&type_url);
            }
            Event::Ignored { .. } => self.stats.responses_ignored.increment(1),
            Event::ResourceError { type_url, name, .. } => {
                // The control plane says that it will not come.
                self.manager().timed_out(stream, &type_url, Some(&name), serving);
            }
            Event::Unsupported { .. } | Event::Odd { .. } => {}
            // The client acts on these itself.
            Event::Connect | Event::Abandon { .. } => {}
        }
    }

    /// Clusters are about to sleep or to be replaced, and their counts to go.
    fn count_loads(&self) {
        if let Some(loads) = &self.loads {
            loads.count();
        }
    }

    /// What is held of a type, or of all that come from a stream, is what the control plane has.
    fn confirmed(&mut self, stream: StreamId, type_url: Option<&str>) {
        if self.manager().heard(stream, type_url) {
            tracing::info!(
                "the control plane is heard: the last good configuration is confirmed or replaced"
            );
            self.stats.last_good_in_use.set(0.0);
        }
    }

    /// Does what follows from changes.
    fn act(&mut self, serving: &mut dyn Serving) {
        loop {
            let mut effects = self.manager().take_effects().into_iter().peekable();
            if effects.peek().is_none() {
                return;
            }
            while let Some(effect) = effects.next() {
                match effect {
                    Effect::Subscribe { stream, type_url, name, timeout } => {
                        // Thousands of names go into one request.
                        let mut names = vec![name];
                        let same = |next: &Effect| matches!(next, Effect::Subscribe { stream: s, type_url: t, timeout: o, .. } if (*s, *t, *o) == (stream, type_url, timeout));
                        while let Some(Effect::Subscribe { name, .. }) = effects.next_if(same) {
                            names.push(name);
                        }
                        self.subscribe(stream, type_url, &names, timeout, serving);
                    }
                    Effect::Unsubscribe { stream, type_url, name } => {
                        let mut names = vec![name];
                        let same = |next: &Effect| matches!(next, Effect::Unsubscribe { stream: s, type_url: t, .. } if (*s, *t) == (stream, type_url));
                        while let Some(Effect::Unsubscribe { name, .. }) = effects.next_if(same) {
                            names.push(name);
                        }
                        if let Some(subscriptions) = self.streams.get(stream) {
                            subscriptions.unsubscribe(type_url, names.iter().map(ToString::to_string));
                        }
                    }
                    Effect::SubscribeAll { stream, type_url, timeout } => {
                        let subscriptions = {
                            let manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner);
                            self.streams.subscriptions(stream, &manager.sources)
                        };
                        match subscriptions {
                            Ok(subscriptions) => streams::subscribe_all(subscriptions, type_url, timeout),
                            Err(error) => {
                                tracing::error!(type_url, "{error}");
                                self.manager().timed_out(stream, type_url, None, serving);
                            }
                        }
                    }
                    Effect::UnsubscribeAll { stream, type_url } => {
                        if let Some(subscriptions) = self.streams.get(stream) {
                            subscriptions.change(Change::UnsubscribeAll { type_url: type_url.to_owned() });
                        }
                    }
                    Effect::Follow { name, generation, cluster } => {
                        self.follow(name, generation, cluster);
                    }
                    Effect::StopFollowing { generation } => {
                        if let Some(lookup) = self.lookups.remove(&generation) {
                            lookup.abort();
                        }
                    }
                }
            }
        }
    }

    fn subscribe(
        &mut self,
        stream: StreamId,
        type_url: &'static str,
        names: &[Arc<str>],
        timeout: Option<Duration>,
        serving: &mut dyn Serving,
    ) {
        let subscriptions = {
            let manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner);
            self.streams.subscriptions(stream, &manager.sources)
        };
        match subscriptions {
            Ok(subscriptions) => streams::subscribe(subscriptions, type_url, names, timeout),
            Err(error) => {
                tracing::error!(type_url, resource = names.first().map(|name| &**name), "{error}");
                for name in names {
                    self.manager().timed_out(stream, type_url, Some(name), serving);
                }
            }
        }
    }

    fn follow(&mut self, name: Arc<str>, generation: u64, cluster: Arc<Cluster>) {
        let sender = self.resolved.0.clone();
        let task = tokio::spawn(async move {
            let (first, answer) = tokio::sync::oneshot::channel();
            let awaited = cluster.clone();
            let answered = async move {
                // Without an answer in time the cluster serves without hosts.
                health::run::warmed(&awaited, answer).await;
                drop(awaited);
                let _ = sender.send((name, generation));
            };
            tokio::join!(health::run::follow(cluster, first), answered);
        });
        self.lookups.insert(generation, task.abort_handle());
    }
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").field("initialized", &self.is_initialized()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod demand_tests;
#[cfg(test)]
mod tests;
