//! Applies updates of all types, in the order that breaks nothing.
//!
//! In: updates as they come, what the control plane does not have, the time. Out: slots filled,
//! listeners served, [`Effect`]s for others, and why resources are refused. Knows neither sockets nor
//! tasks.

mod kept;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_control_api::client::{Rejection, Update};

use super::called_clusters::CalledClusters;
use super::clusters::Clusters;
use super::demands::{Awaited, Demands};
use super::effects::{Effect, Effects, CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, SRDS, VHDS};
use super::listeners::{Listeners, World};
use super::pieces::{Pieces, Supply};
use super::routes::Routes;
use super::runtime::Layers;
use super::scopes::Scopes;
use super::sources::{Sources, StreamId};
use super::stats::SubscriptionStats;
use super::wanted::{Ground, Wanted};
use super::Serving;
use crate::config::compile::resource::{Compiler, Needs};
use crate::config::demand::{Ask, ClusterSource, Want};
use crate::config::discovery::{ConfigSource, DiscoveryConfig};
use crate::telemetry::metrics::Scope;
use crate::telemetry::process::ClusterManagerStats;

/// Route tables rest at each so-many-th doze.
const TABLES_REST_EVERY: u32 = 10;

/// A subscription to everything of a type.
pub(super) struct Whole {
    pub(super) stream: StreamId,
    pub(super) timeout: Option<Duration>,
    pub(super) stats: SubscriptionStats,
    answered: bool,
    asked: bool,
    /// The control plane was heard in this run.
    heard: bool,
    pub(super) version: String,
}

/// The configuration that control planes gave, and what is done about it.
pub(super) struct Manager {
    compiler: Arc<Compiler>,
    pub(super) clusters: Clusters,
    pub(super) routes: Routes,
    pub(super) scopes: Scopes,
    pub(super) pieces: Pieces,
    pub(super) listeners: Listeners,
    pub(super) layers: Layers,
    pub(super) sources: Sources,
    effects: Effects,
    pub(super) cds: Option<Whole>,
    pub(super) lds: Option<Whole>,
    /// What the bootstrap's listeners need.
    fixed_needs: Vec<Wanted>,
    /// Requests that wait.
    demands: Demands,
    called: CalledClusters,
    initialized: bool,
    /// What serves comes from an earlier run, and the control plane was not heard of all of it yet.
    restored: bool,
    /// How often [`Manager::doze`] was called.
    dozes: u32,
    /// When something changed that is to be kept for the next start.
    pub(super) changed: Option<Instant>,
}

impl Manager {
    /// `needs` are those of the bootstrap's listeners.
    pub(super) fn new(compiler: &Arc<Compiler>, config: &DiscoveryConfig, needs: &[Needs]) -> Self {
        let mut sources = Sources::default();
        let mut whole = |source: &Option<ConfigSource>, type_url, scope: Scope| {
            source.as_ref().map(|source| Whole {
                stream: sources.stream(&source.source, None, type_url),
                timeout: source.initial_fetch_timeout,
                stats: SubscriptionStats::new(&scope),
                answered: false,
                asked: false,
                heard: false,
                version: String::new(),
            })
        };
        let cds = whole(&config.cds, CDS, Scope::raw("cluster_manager.cds"));
        let lds = whole(&config.lds, LDS, Scope::raw("listener_manager.lds"));
        let stats = ClusterManagerStats::new(&Scope::cluster_manager());
        let mut effects = Effects::default();
        let layers = Layers::new(compiler.clone(), &config.rtds, &mut sources, &mut effects);
        let mut manager = Self {
            compiler: compiler.clone(),
            clusters: Clusters::new(compiler.clone(), stats),
            routes: Routes::new(compiler.clone()),
            scopes: Scopes::new(compiler.clone()),
            pieces: Pieces::new(compiler.clone()),
            listeners: Listeners::new(compiler.clone()),
            layers,
            sources,
            effects,
            cds,
            lds,
            fixed_needs: Vec::new(),
            demands: Demands::default(),
            called: CalledClusters::default(),
            initialized: false,
            restored: false,
            dozes: 0,
            changed: None,
        };
        manager.clusters.follow_fixed(&mut manager.sources, &mut manager.effects);
        let Self { scopes, routes, pieces, sources, effects, .. } = &mut manager;
        let ground = &mut Ground { scopes, routes, pieces, sources, effects };
        let wanted = needs.iter().map(|needs| Wanted::ask(needs, None, ground)).collect();
        manager.fixed_needs = wanted;
        manager
    }

    /// What is to be done, in order.
    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects.list)
    }

    /// Takes an update of one type; what is refused comes back. The rest is in force.
    pub(super) fn update(
        &mut self,
        stream: StreamId,
        update: &Update,
        serving: &mut dyn Serving,
    ) -> Vec<Rejection> {
        let now = Instant::now();
        let Update { type_url, version, added, removed, flawed, .. } = update;
        let Self { clusters, routes, scopes, pieces, listeners, called, sources, effects, .. } = self;
        let mut refused = Vec::new();
        let whole = match type_url.as_str() {
            CDS => {
                for resource in added {
                    refused.extend(clusters.update(resource, stream, sources, pieces, effects).err());
                }
                removed.iter().for_each(|name| clusters.remove(name, now, effects));
                if !removed.is_empty() {
                    clusters.sweep(now, effects);
                }
                called.update(stream, update, refused.is_empty() && !flawed, effects);
                self.cds.as_mut().filter(|cds| cds.stream == stream)
            }
            EDS => {
                for resource in added {
                    refused.extend(clusters.update_endpoints(resource, stream, now, effects).err());
                }
                removed.iter().for_each(|name| clusters.endpoints_absent(name, stream, effects));
                None
            }
            RDS => {
                for resource in added {
                    let known = |name: &str| clusters.knows(name);
                    refused.extend(routes.update(resource, stream, &known, sources, pieces, effects).err());
                }
                removed.iter().for_each(|name| routes.missing(name, stream));
                let ground = Ground { scopes, routes, pieces, sources, effects };
                listeners.advance(&mut World { clusters, ground, serving });
                None
            }
            VHDS => {
                let supply = &mut Supply { pieces, sources, effects };
                refused = routes.update_hosts(stream, update, &|name| clusters.knows(name), supply);
                let ground = Ground { scopes, routes, pieces, sources, effects };
                listeners.advance(&mut World { clusters, ground, serving });
                None
            }
            SRDS => {
                refused = scopes.update(stream, update, routes, effects);
                let ground = Ground { scopes, routes, pieces, sources, effects };
                listeners.advance(&mut World { clusters, ground, serving });
                None
            }
            LDS => {
                let ground = Ground { scopes, routes, pieces, sources, effects };
                let world = &mut World { clusters, ground, serving };
                refused = listeners.update(added, removed, stream, world);
                self.lds.as_mut()
            }
            ECDS | SDS => {
                let type_url = if type_url == SDS { SDS } else { ECDS };
                for resource in added {
                    refused.extend(pieces.update(resource, stream, type_url, sources, effects).err());
                }
                removed.iter().for_each(|name| pieces.absent(name, stream, type_url, true));
                clusters.advance(effects);
                let ground = Ground { scopes, routes, pieces, sources, effects };
                listeners.advance(&mut World { clusters, ground, serving });
                None
            }
            RTDS => {
                let mut changed = false;
                for resource in added {
                    match self.layers.update(resource, stream) {
                        Ok(change) => changed |= change,
                        Err(rejection) => refused.push(rejection),
                    }
                }
                for name in removed {
                    changed |= self.layers.absent(name, stream, true);
                }
                if changed {
                    clusters.recompile();
                }
                None
            }
            _ => None,
        };
        if let Some(whole) = whole {
            whole.answered = true;
            // A refusal is counted when the client reports it: not all of them come by here.
            if refused.is_empty() && !flawed {
                whole.version.clone_from(version);
                whole.stats.update_attempt.increment(1);
                whole.stats.succeeded(version, std::time::SystemTime::now(), now.elapsed());
            }
        }
        self.changed.get_or_insert(now);
        self.settle(serving);
        refused
    }

    /// A resource, or everything of a type, did not come in time.
    pub(super) fn timed_out(
        &mut self,
        stream: StreamId,
        type_url: &str,
        name: Option<&str>,
        serving: &mut dyn Serving,
    ) {
        match (type_url, name) {
            (CDS, None) => self.cds.iter_mut().for_each(Whole::timed_out),
            (LDS, None) => self.lds.iter_mut().for_each(Whole::timed_out),
            (EDS, Some(name)) => self.clusters.endpoints_absent(name, stream, &mut self.effects),
            (RTDS, Some(name)) => {
                self.layers.absent(name, stream, false);
            }
            (RDS, Some(name)) => {
                self.routes.absent(name, stream);
                self.advance(serving);
            }
            (ECDS | SDS, Some(name)) => {
                self.pieces.absent(name, stream, if type_url == SDS { SDS } else { ECDS }, false);
                self.clusters.advance(&mut self.effects);
                self.advance(serving);
            }
            (CDS, Some(name)) => self.called.absent(name, stream, &mut self.effects),
            (VHDS, name) => {
                self.routes.hosts_absent(stream, name, &mut self.effects);
                self.advance(serving);
            }
            (SRDS, None) => {
                self.scopes.absent(stream);
                self.advance(serving);
            }
            _ => {}
        }
        self.settle(serving);
    }

    /// Lets listeners serve whose needs are met now.
    fn advance(&mut self, serving: &mut dyn Serving) {
        let Self { clusters, routes, scopes, pieces, listeners, sources, effects, .. } = self;
        let ground = Ground { scopes, routes, pieces, sources, effects };
        listeners.advance(&mut World { clusters, ground, serving });
    }

    /// A request waits for something.
    pub(super) fn asked(&mut self, ask: Ask) {
        let awaited = match &ask.want {
            Want::Table(slot) => self.routes.demand(slot, &mut self.effects).map(Awaited::Table),
            Want::VirtualHost { table, host } => self
                .routes
                .demand_host(table, host, &mut self.effects)
                .map(|(key, name)| Awaited::VirtualHost(key, name)),
            Want::Cluster { from, name } => self.call(from, name),
        };
        match awaited {
            Some(awaited) => self.demands.push(awaited, ask),
            // It was withdrawn since: the request looks again.
            None => ask.answer(),
        }
        self.answer();
    }

    fn call(&mut self, from: &ClusterSource, name: &str) -> Option<Awaited> {
        if self.clusters.serves(name).0 {
            return None;
        }
        let source = match from {
            ClusterSource::Filter(clusters) => clusters.source.clone(),
            ClusterSource::Route(route) => match self.compiler.route_clusters(route) {
                Ok(clusters) => clusters?.source,
                // It was checked when the table came.
                Err(problems) => {
                    tracing::error!(cluster = name, "cannot be asked for: {:?}", problems.first());
                    return None;
                }
            },
        };
        let stream = self.sources.stream(&source.source, None, CDS);
        self.called.call(name, stream, &source, &mut self.effects).map(Awaited::Cluster)
    }

    /// Answers requests that waited for what is there now, or will not come.
    fn answer(&mut self) {
        let Self { demands, routes, clusters, called, .. } = self;
        demands.settle(|awaited| match awaited {
            Awaited::Table(key) => routes.is_settled(key),
            Awaited::VirtualHost(key, name) => routes.is_host_settled(key, name),
            Awaited::Cluster(name) => {
                let (serves, warms) = clusters.serves(name);
                serves || !warms && !called.is_awaited(name)
            }
        });
    }

    /// The names of a DNS cluster were answered once.
    pub(super) fn resolved(&mut self, cluster: &str, generation: u64, serving: &mut dyn Serving) {
        self.clusters.resolved(cluster, generation, &mut self.effects);
        self.settle(serving);
    }

    /// The stream could not be opened, or broke.
    pub(super) fn failed(&mut self, stream: StreamId) {
        for whole in [&self.cds, &self.lds].into_iter().flatten() {
            if whole.stream == stream && whole.asked {
                whole.stats.update_attempt.increment(1);
                whole.stats.update_failure.increment(1);
            }
        }
        self.clusters.failed(stream);
        self.routes.failed(stream);
        self.scopes.failed(stream);
        self.pieces.failed(stream);
    }

    /// A response was refused, in part or whole.
    pub(super) fn refused(&mut self, type_url: &str) {
        let whole = match type_url {
            CDS => &self.cds,
            LDS => &self.lds,
            _ => &None,
        };
        if let Some(whole) = whole {
            whole.stats.update_attempt.increment(1);
            whole.stats.update_rejected.increment(1);
        }
    }

    /// Whatever time brings. True while it should come again soon.
    pub(super) fn tick(&mut self, now: Instant, serving: &mut dyn Serving) -> bool {
        let soon = self.clusters.sweep(now, &mut self.effects);
        self.routes.sweep();
        self.demands.sweep();
        self.compiler.demand.publish();
        self.scopes.publish(&self.routes);
        self.clusters.publish_ages(now);
        self.routes.publish_ages(now);
        self.pieces.renew(SystemTime::now(), &mut self.effects);
        self.settle(serving);
        soon
    }

    /// Puts to sleep what nobody uses and forgets names that nothing refers to.
    pub(super) fn doze(&mut self) {
        self.dozes += 1;
        // What is wanted again is compiled again, so that this must not be often.
        if self.dozes.is_multiple_of(TABLES_REST_EVERY) {
            self.routes.rest();
        }
        self.clusters.doze();
        self.compiler.clusters.forget_unused();
        self.compiler.routes.forget_unused();
        self.compiler.scopes.forget_unused();
    }

    /// What becomes due after any change: listeners are asked for when all clusters are warm, as in
    /// Envoy, and the process serves when all listeners are.
    pub(super) fn settle(&mut self, serving: &mut dyn Serving) {
        self.clusters.publish();
        self.pieces.sweep(&mut self.effects);
        serving.set_warming(self.listeners.warming());
        self.answer();
        if self.initialized {
            return;
        }
        // Clusters are compiled with runtime values.
        if !self.layers.are_answered() {
            return;
        }
        if let Some(cds) = &mut self.cds {
            cds.ask(CDS, &mut self.effects);
        }
        let clusters = self.cds.as_ref().is_none_or(|cds| cds.answered) && self.clusters.is_warm();
        if clusters {
            if let Some(lds) = &mut self.lds {
                lds.ask(LDS, &mut self.effects);
            }
        }
        let listeners = self.lds.as_ref().is_none_or(|lds| lds.answered) && self.listeners.is_warm();
        let fixed = self.fixed_needs.iter().all(|wanted| wanted.is_met(false, &self.scopes, &self.routes));
        self.initialized = clusters && listeners && fixed;
    }

    /// The control plane has confirmed or replaced what is held: all of one type, or with `None` of
    /// every type that comes from the stream. True if the last good configuration served until now.
    pub(super) fn heard(&mut self, stream: StreamId, type_url: Option<&str>) -> bool {
        for (whole, own) in [(&mut self.cds, CDS), (&mut self.lds, LDS)] {
            let meant = type_url.is_none_or(|type_url| type_url == own);
            if let Some(whole) = whole.as_mut().filter(|whole| meant && whole.stream == stream) {
                whole.heard = true;
            }
        }
        let all = [&self.cds, &self.lds].into_iter().flatten().all(|whole| whole.heard);
        all && std::mem::take(&mut self.restored)
    }

    /// Whether the last good configuration serves and nobody has confirmed it.
    pub(super) fn is_restored(&self) -> bool {
        self.restored
    }

    /// The name that a cluster gives for its endpoints, if it gives one.
    pub(super) fn service_name(&self, cluster: &str) -> Option<Arc<str>> {
        self.clusters.service_name(cluster)
    }

    /// For `/ready?verbose`.
    pub(super) fn readiness(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (whole, what) in [(&self.cds, "clusters"), (&self.lds, "listeners")] {
            if let Some(whole) = whole {
                let state = match (whole.answered, whole.heard) {
                    (_, true) => "received",
                    (true, false) if self.restored => "last good, the control plane was not heard yet",
                    (true, false) => "not received in time",
                    (false, false) => "awaited",
                };
                lines.push(format!("{what}: {state}"));
            }
        }
        if self.restored {
            lines.push("serving the last good configuration".to_owned());
        }
        lines
    }

    /// Whether the first configuration is in force, or was waited for long enough.
    pub(super) fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// Nothing is waited for any more.
    fn answer_all(&mut self) {
        for (whole, type_url) in [(&mut self.cds, CDS), (&mut self.lds, LDS)] {
            if let Some(whole) = whole {
                whole.answered = true;
                whole.ask(type_url, &mut self.effects);
            }
        }
    }
}

impl Whole {
    fn ask(&mut self, type_url: &'static str, effects: &mut Effects) {
        if !std::mem::replace(&mut self.asked, true) {
            self.stats.update_attempt.increment(1);
            effects.list.push(Effect::SubscribeAll { stream: self.stream, type_url, timeout: self.timeout });
        }
    }

    fn timed_out(&mut self) {
        self.answered = true;
        self.stats.update_attempt.increment(1);
        self.stats.init_fetch_timeout.increment(1);
    }
}
