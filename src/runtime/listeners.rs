//! The set of listeners: added, replaced, changed in place and removed while traffic flows.
//!
//! In: compiled listeners, from the bootstrap or discovered. Out: bound sockets for the workers, the
//! listener that each accept loop reads, filter chains that are told to retire, the `listener_manager.`
//! statistics, and what the admin port shows. Lives on the control thread; nothing here waits for a worker.
//!
//! A change never closes a socket that the new listener can use. New sockets listen on all workers before
//! old ones are closed, and whoever waits in the queue of an old one is served.

mod handover;
mod succession;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;

pub use self::succession::Inherited;
use super::drain::Stop;
use super::socket::{self, Bound, ListenError, ListenOptions};
use super::worker::Command;
use crate::admin::ListenerStatus;
use crate::bootstrap::flags::DrainStrategy;
use crate::bootstrap::Flags;
use crate::config::cluster::Address;
use crate::config::listener::{FilterChain, Listener};
use crate::config::Retirement;
use crate::listener::destinations::Destinations;
use crate::listener::live::LiveListener;
use crate::telemetry::metrics::Scope;
use crate::telemetry::process::ListenerManagerStats;

/// Why a listener was not taken; everything is as it was before. The text is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// A socket.
    #[error("listener {name}: {source}")]
    Listen {
        /// The listener.
        name: Arc<str>,
        /// Why.
        source: ListenError,
    },
    /// Two listeners cannot share an address.
    #[error("listener {name}: {address} is the address of the listener {other:?} too")]
    Duplicate {
        /// The listener.
        name: Arc<str>,
        /// Where both listen.
        address: Address,
        /// The one that was there first.
        other: Arc<str>,
    },
    /// Discovery cannot change what the bootstrap says.
    #[error("listener {0} is static: only the bootstrap can say what it is")]
    Static(Arc<str>),
    /// As in Envoy: the accept queues of the two kinds cannot be handed over.
    #[error("listener {0}: enable_reuse_port cannot be changed by an update")]
    ReusePort(Arc<str>),
}

/// Where a listener comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The bootstrap: there until the process ends.
    Static,
    /// Discovery.
    Dynamic,
}

/// What became of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// There was none of its name.
    Added,
    /// It says what is there already; or it would listen in a direction that `/drain_listeners` has stopped.
    Unchanged,
    /// Only filter chains differ: those that are as before keep their connections, the others retire.
    InPlace,
    /// New connections are served by the new one, and all filter chains of the old one retire.
    Replaced,
}

/// How filter chains retire.
#[derive(Clone, Copy, Debug)]
pub struct DrainPolicy {
    /// `--drain-time-s`: over this long the share of responses that announce the close grows to one.
    pub time: Duration,
    /// `--drain-strategy`; if not, all responses announce it at once.
    pub gradual: bool,
    /// What is left at the end of the drain time is closed. If not, connections stay until they end.
    pub ends: bool,
}

impl DrainPolicy {
    /// As the command line says.
    pub fn new(flags: &Flags) -> Self {
        Self {
            time: flags.drain_time(),
            gradual: flags.drain_strategy == DrainStrategy::Gradual,
            ends: flags.drain_ends(),
        }
    }
}

/// All listeners of the process.
#[derive(Debug)]
pub struct ListenerManager {
    policy: DrainPolicy,
    workers: Vec<UnboundedSender<Command>>,
    /// In the order they came.
    listeners: Vec<Entry>,
    /// Sockets that the workers are about to close.
    closing: Vec<(Arc<LiveListener>, Vec<u64>)>,
    draining: Vec<Draining>,
    stopped: Stop,
    /// Who has which address, for the workers.
    destinations: Destinations,
    statuses: Arc<ArcSwap<Vec<ListenerStatus>>>,
    stats: ListenerManagerStats,
    /// Sockets of a predecessor that no listener has taken.
    inherited: Vec<Inherited>,
    /// The worker that goes on with the next connection of a predecessor.
    next: usize,
}

#[derive(Debug)]
struct Entry {
    origin: Origin,
    /// What serves new connections now, as `live` says it to the workers.
    listener: Arc<Listener>,
    live: Arc<LiveListener>,
    /// None with `bind_to_port: false`, and once it was stopped.
    sockets: Option<Sockets>,
}

/// What is kept of a listener's sockets; the sockets themselves are the workers'.
#[derive(Debug)]
struct Sockets {
    /// A second handle on each: to steer their group, and to hand them over. There is at least one.
    handles: Vec<Bound>,
    /// The IP address of a group of sockets that other processes can join.
    group: Option<SocketAddr>,
    inodes: Vec<u64>,
    /// A predecessor may have left a rule on them.
    steered: bool,
}

/// Filter chains that were retired together.
#[derive(Debug)]
struct Draining {
    until: Instant,
    /// All of a listener, which counts as one.
    whole: bool,
    retirements: Arc<[Arc<Retirement>]>,
    cut: bool,
}

impl ListenerManager {
    /// No listeners yet, for workers that take these commands.
    pub fn new(policy: DrainPolicy, workers: Vec<UnboundedSender<Command>>) -> Self {
        Self::within(&Scope::listener_manager(), policy, workers)
    }

    fn within(scope: &Scope, policy: DrainPolicy, workers: Vec<UnboundedSender<Command>>) -> Self {
        Self {
            policy,
            workers,
            listeners: Vec::new(),
            closing: Vec::new(),
            draining: Vec::new(),
            stopped: Stop::None,
            destinations: Destinations::default(),
            statuses: Arc::default(),
            stats: ListenerManagerStats::new(scope),
            inherited: Vec::new(),
            next: 0,
        }
    }

    /// Adds the listeners of the bootstrap.
    ///
    /// # Errors
    /// A socket cannot be bound.
    pub fn start(&mut self, listeners: Vec<Arc<Listener>>) -> Result<(), ListenerError> {
        for listener in listeners {
            self.check_address(&listener)?;
            self.add(listener, Origin::Static)?;
        }
        self.publish();
        Ok(())
    }

    /// Makes `listener` what serves new connections under its name.
    ///
    /// # Errors
    /// Its address cannot be bound or belongs to another listener, or the listener of this name cannot
    /// become this one. That one goes on as before.
    pub fn apply(&mut self, listener: Listener, origin: Origin) -> Result<Applied, ListenerError> {
        let applied = self.change(listener, origin, Instant::now());
        self.publish();
        applied
    }

    /// Takes the listener of this name away: its sockets are closed when their accept queues are empty, its
    /// connections are asked to leave. False when discovery has given none of this name.
    pub fn remove(&mut self, name: &str) -> bool {
        let removed = self.take_away(name, Instant::now());
        self.publish();
        removed
    }

    /// Removes and applies discovered listeners that came together, in this order. An added listener takes
    /// over the sockets of a removed one with the same address, so that renaming refuses no connection.
    pub fn update(&mut self, removed: &[&str], added: Vec<Listener>) -> Vec<Result<Applied, ListenerError>> {
        let now = Instant::now();
        let mut removed: HashSet<&str> = removed.iter().copied().collect();
        let mut added: Vec<Option<Listener>> = added.into_iter().map(Some).collect();
        let mut results: Vec<Option<Result<Applied, ListenerError>>> = added.iter().map(|_| None).collect();
        for (place, result) in added.iter_mut().zip(&mut results) {
            let Some(listener) = place.take_if(|listener| self.position(&listener.name).is_none()) else {
                continue;
            };
            let predecessor = self.listeners.iter().position(|entry| {
                entry.origin == Origin::Dynamic
                    && entry.sockets.is_some()
                    && removed.contains(&*entry.listener.name)
                    && same_sockets(&entry.listener, &listener)
                    && !self.stopped.concerns(&listener)
            });
            let Some(predecessor) = predecessor else {
                *place = Some(listener);
                continue;
            };
            let old = self.swap(predecessor, listener);
            removed.remove(&*old.name);
            self.retire(chains_of(&old), true, now);
            self.stats.listener_removed.increment(1);
            self.stats.listener_added.increment(1);
            *result = Some(Ok(Applied::Added));
        }
        for name in removed {
            self.take_away(name, now);
        }
        let results = added.into_iter().zip(results).map(|(place, result)| match (place, result) {
            (Some(listener), _) => self.change(listener, Origin::Dynamic, now),
            // Every place that was emptied has its result.
            (None, result) => result.unwrap_or(Ok(Applied::Unchanged)),
        });
        let results = results.collect();
        self.publish();
        results
    }

    /// Names and addresses of the listeners, kept up to date for the admin port.
    pub fn statuses(&self) -> Arc<ArcSwap<Vec<ListenerStatus>>> {
        self.statuses.clone()
    }

    /// Names of the listeners that came from there.
    pub fn names(&self, origin: Origin) -> impl Iterator<Item = Arc<str>> + '_ {
        let of_origin = self.listeners.iter().filter(move |entry| entry.origin == origin);
        of_origin.map(|entry| entry.listener.name.clone())
    }

    /// The listener of this name, as it serves new connections.
    pub fn get(&self, name: &str) -> Option<Arc<Listener>> {
        self.listeners.get(self.position(name)?).map(|entry| entry.listener.clone())
    }

    /// Listeners that were announced and wait for their routes or secrets.
    pub fn set_warming(&self, count: usize) {
        self.stats.total_listeners_warming.set(count as f64);
    }

    /// All workers accept connections.
    pub fn started(&self) {
        self.stats.workers_started.set(1.0);
    }

    /// What time brings: the ends of drains, and of predecessors. Called about once a second.
    pub fn tick(&mut self, now: Instant) {
        self.stop_steering();
        self.closing.retain(|(live, _)| live.accepting() > 0);
        for draining in &mut self.draining {
            if self.policy.ends && now >= draining.until && !draining.cut {
                draining.cut = true;
                for worker in &self.workers {
                    // A worker that is gone has no connections.
                    let _ = worker.send(Command::Cut(draining.retirements.clone()));
                }
            }
        }
        let before = self.draining.len();
        self.draining.retain(|draining| now < draining.until || !(draining.cut || draining.is_over()));
        if self.draining.len() < before {
            self.show_draining();
        }
    }

    /// Closes the sockets of the listeners concerned, for good.
    pub fn stop(&mut self, which: Stop) {
        self.stopped = self.stopped.max(which);
        for entry in &mut self.listeners {
            // What goes on behind those that are open still needs internal ones.
            let ends = which.concerns(&entry.listener) && !entry.listener.is_internal();
            if ends && !entry.live.is_stopped() {
                entry.live.stop();
                // A handle of ours would keep the port open.
                entry.sockets = None;
                self.stats.listener_stopped.increment(1);
            }
        }
        self.publish_destinations();
    }

    /// Whether all sockets are closed.
    pub fn is_closed(&self) -> bool {
        let lives =
            self.listeners.iter().filter(|entry| !entry.listener.is_internal()).map(|entry| &entry.live);
        let closed = |live: &Arc<LiveListener>| live.accepting() == 0;
        lives.chain(self.closing.iter().map(|(live, _)| live)).all(closed)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.listeners.iter().position(|entry| *entry.listener.name == *name)
    }

    fn change(&mut self, listener: Listener, origin: Origin, now: Instant) -> Result<Applied, ListenerError> {
        if self.stopped.concerns(&listener) {
            return Ok(Applied::Unchanged);
        }
        let Some(index) = self.position(&listener.name) else {
            self.check_address(&listener)?;
            return self.add(Arc::new(listener), origin).map(|()| Applied::Added);
        };
        // Found there.
        let entry = &self.listeners[index];
        if entry.origin == Origin::Static {
            return Err(ListenerError::Static(listener.name));
        }
        let old = entry.listener.clone();
        if old.fingerprint == listener.fingerprint {
            if prints(&old) == prints(&listener) {
                return Ok(Applied::Unchanged);
            }
            self.change_in_place(index, &old, listener, now);
            return Ok(Applied::InPlace);
        }
        self.check_address(&listener)?;
        self.replace(index, &old, listener, now).map(|()| Applied::Replaced)
    }

    fn add(&mut self, listener: Arc<Listener>, origin: Origin) -> Result<(), ListenerError> {
        let entry = self.open(listener, origin)?;
        self.listeners.push(entry);
        self.stats.listener_added.increment(1);
        Ok(())
    }

    fn change_in_place(&mut self, index: usize, old: &Listener, mut listener: Listener, now: Instant) {
        keep(&mut listener.chains, &old.chains);
        keep(listener.default_chain.as_mut_slice(), old.default_chain.as_slice());
        let kept: HashSet<_> = chains_of(&listener).map(Arc::as_ptr).collect();
        let gone: Vec<_> = chains_of(old).filter(|chain| !kept.contains(&Arc::as_ptr(chain))).collect();
        self.swap(index, listener);
        self.retire(gone.into_iter(), false, now);
        self.stats.listener_modified.increment(1);
        self.stats.listener_in_place_updated.increment(1);
    }

    fn replace(
        &mut self,
        index: usize,
        old: &Listener,
        listener: Listener,
        now: Instant,
    ) -> Result<(), ListenerError> {
        if old.reuse_port != listener.reuse_port {
            return Err(ListenerError::ReusePort(listener.name));
        }
        if same_sockets(old, &listener) {
            if let (Address::Pipe(path), true) =
                (&listener.address, listener.pipe_mode != 0 && listener.pipe_mode != old.pipe_mode)
            {
                let source = |source| ListenError::Other { address: listener.address.clone(), source };
                let refused =
                    |error| ListenerError::Listen { name: listener.name.clone(), source: source(error) };
                socket::set_mode(path, listener.pipe_mode).map_err(refused)?;
            }
            self.swap(index, listener);
        } else {
            let new = self.open(Arc::new(listener), self.listeners[index].origin)?;
            let old = std::mem::replace(&mut self.listeners[index], new);
            self.close(old);
        }
        self.retire(chains_of(old), true, now);
        self.stats.listener_modified.increment(1);
        Ok(())
    }

    fn take_away(&mut self, name: &str, now: Instant) -> bool {
        let dynamic = |index: &usize| self.listeners[*index].origin == Origin::Dynamic;
        let Some(index) = self.position(name).filter(dynamic) else { return false };
        let entry = self.listeners.remove(index);
        let listener = entry.listener.clone();
        self.close(entry);
        self.retire(chains_of(&listener), true, now);
        self.stats.listener_removed.increment(1);
        true
    }

    /// Swaps what serves new connections on the same sockets.
    fn swap(&mut self, index: usize, listener: Listener) -> Arc<Listener> {
        self.count_created();
        let entry = &mut self.listeners[index];
        entry.listener = Arc::new(listener);
        entry.live.swap(entry.listener.clone())
    }

    /// Tells the workers to close the sockets. The connections that wait in their queues get the old listener.
    fn close(&mut self, entry: Entry) {
        entry.live.stop();
        self.closing.retain(|(live, _)| live.accepting() > 0);
        if let Some(sockets) = entry.sockets {
            self.closing.push((entry.live, sockets.inodes));
        }
    }

    /// Other listeners may not have its address.
    fn check_address(&self, listener: &Listener) -> Result<(), ListenerError> {
        if matches!(&listener.address, Address::Ip(address) if address.port() == 0) {
            return Ok(());
        }
        for other in self.listeners.iter().map(|entry| &entry.listener) {
            let both = other.udp.is_some() == listener.udp.is_some();
            if other.name != listener.name && other.address == listener.address && both {
                let (name, address) = (listener.name.clone(), listener.address.clone());
                return Err(ListenerError::Duplicate { name, address, other: other.name.clone() });
            }
        }
        Ok(())
    }

    /// Binds a socket for each worker, and hands them out when all are there.
    fn open(&mut self, listener: Arc<Listener>, origin: Origin) -> Result<Entry, ListenerError> {
        let bound = if listener.bind_to_port { self.bind(&listener) } else { Ok((Vec::new(), None)) };
        let (bound, sockets) = bound.map_err(|source| {
            self.stats.listener_create_failure.increment(1);
            ListenerError::Listen { name: listener.name.clone(), source }
        })?;
        let live = LiveListener::new(listener.clone(), self.destinations.clone());
        if listener.is_internal() {
            for worker in &self.workers {
                let _ = worker.send(Command::Serve(live.share()));
            }
        }
        // A predecessor may have had more workers.
        for (worker, bound) in self.workers.iter().cycle().zip(bound) {
            // A worker that is gone closes what it is sent.
            let _ = worker.send(Command::Listen(live.share(), bound));
        }
        self.count_created();
        Ok(Entry { origin, listener, live, sockets })
    }

    fn bind(&mut self, listener: &Listener) -> Result<(Vec<Bound>, Option<Sockets>), ListenError> {
        let options = ListenOptions {
            reuse_port: listener.reuse_port,
            backlog: listener.backlog,
            ipv4_compat: listener.ipv4_compat,
            mode: (listener.pipe_mode != 0).then_some(listener.pipe_mode),
            transparent: listener.transparent,
            freebind: listener.freebind,
            options: listener.socket_options.clone(),
            datagrams: listener.udp.is_some(),
        };
        let mut handles = self.inherit(listener);
        if handles.is_empty() {
            handles.push(socket::listen(&listener.address, &options)?);
        }
        let local = handles.first().and_then(Bound::local_addr);
        let address = local.map_or_else(|| listener.address.clone(), Address::Ip);
        let failed = |source| ListenError::Other { address: address.clone(), source };
        let mut bound = Vec::with_capacity(self.workers.len());
        for index in 0..self.workers.len().max(handles.len()) {
            if index >= handles.len() && listener.reuse_port && local.is_some() {
                handles.push(socket::listen(&address, &options)?);
            }
            // Without SO_REUSEPORT the workers share one accept queue.
            let Some(own) = handles.get(index).or(handles.first()) else { continue };
            bound.push(own.try_clone().map_err(failed)?);
        }
        let tcp = handles.iter().filter(|handle| matches!(handle, Bound::Tcp(_)));
        let inodes =
            tcp.map(|handle| socket::inode(handle.as_fd())).collect::<Result<_, _>>().map_err(failed)?;
        let group = local.filter(|_| listener.reuse_port && listener.udp.is_none());
        Ok((bound, Some(Sockets { handles, group, inodes, steered: true })))
    }

    /// As Envoy counts: each worker on its own.
    fn count_created(&self) {
        self.stats.listener_create_success.increment(self.workers.len() as u64);
    }

    /// Asks the connections of these filter chains to leave; `whole`: they are all of a listener.
    fn retire<'a>(&mut self, chains: impl Iterator<Item = &'a Arc<FilterChain>>, whole: bool, now: Instant) {
        let window = self.policy.gradual.then_some(self.policy.time);
        let retirements: Arc<[_]> = chains.map(|chain| chain.retirement.clone()).collect();
        for retirement in retirements.iter() {
            retirement.begin(now, window);
        }
        let until = now.checked_add(self.policy.time).unwrap_or(now);
        if whole || !retirements.is_empty() {
            self.draining.push(Draining { until, whole, retirements, cut: false });
            self.show_draining();
        }
    }

    fn show_draining(&self) {
        let listeners = self.draining.iter().filter(|draining| draining.whole).count();
        let chains = self.draining.iter().filter(|draining| !draining.whole);
        let chains: usize = chains.map(|draining| draining.retirements.len()).sum();
        self.stats.total_listeners_draining.set(listeners as f64);
        self.stats.total_filter_chains_draining.set(chains as f64);
    }

    /// Those that were stopped get no connections from others either.
    fn publish_destinations(&self) {
        let open = self.listeners.iter().filter(|entry| !entry.live.is_stopped());
        self.destinations.publish(open.map(|entry| &entry.listener));
    }

    fn publish(&self) {
        self.publish_destinations();
        self.stats.total_listeners_active.set(self.listeners.len() as f64);
        let status = |entry: &Entry| {
            let listener = &entry.listener;
            let bound = entry.sockets.as_ref().and_then(|sockets| sockets.handles.first()?.local_addr());
            let address = bound.map_or_else(|| listener.address.clone(), Address::Ip);
            ListenerStatus { name: listener.name.clone(), addresses: vec![address] }
        };
        self.statuses.store(Arc::new(self.listeners.iter().map(status).collect()));
    }
}

impl Draining {
    /// Nobody reads the retirements any more: the chains and their connections are gone.
    fn is_over(&self) -> bool {
        self.retirements.iter().all(|retirement| Arc::strong_count(retirement) == 1)
    }
}

/// Whether the sockets of one serve the other.
fn same_sockets(old: &Listener, new: &Listener) -> bool {
    old.address == new.address && form(old) == form(new)
}

/// What must be alike for that.
fn form(listener: &Listener) -> impl PartialEq + std::fmt::Debug {
    let options = (listener.transparent, listener.freebind, listener.socket_options.clone());
    (listener.bind_to_port, listener.reuse_port, listener.ipv4_compat, options, listener.udp.is_some())
}

fn chains_of(listener: &Listener) -> impl Iterator<Item = &Arc<FilterChain>> {
    listener.chains.iter().chain(&listener.default_chain)
}

/// Puts the old filter chains in the place of those that are like them.
fn keep(chains: &mut [Arc<FilterChain>], old: &[Arc<FilterChain>]) {
    let old: HashMap<u64, &Arc<FilterChain>> = old.iter().map(|chain| (chain.fingerprint, chain)).collect();
    for chain in chains {
        if let Some(same) = old.get(&chain.fingerprint) {
            *chain = Arc::clone(same);
        }
    }
}

/// The filter chains' fingerprints.
fn prints(listener: &Listener) -> (Vec<u64>, Option<u64>) {
    let print = |chain: &Arc<FilterChain>| chain.fingerprint;
    (listener.chains.iter().map(print).collect(), listener.default_chain.as_ref().map(print))
}

#[cfg(test)]
#[path = "listeners_tests.rs"]
mod tests;
