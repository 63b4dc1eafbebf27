//! Single resources, as a control plane sends them: encoded bytes in, a compiled value with what it
//! warns about and what it needs out, or every problem, with field paths that start at the resource.
//!
//! The three checks are those of the bootstrap. A resource is valid by itself: names of resources that
//! are not there yet lead to empty slots.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::cluster::v3::Cluster as ClusterConfig;
use outrigger_control_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrigger_control_api::pb::envoy::config::listener::v3::Listener as ListenerConfig;
use outrigger_control_api::pb::envoy::config::route::v3::{
    RouteConfiguration, ScopedRouteConfiguration, VirtualHost,
};
use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretConfig;
use outrigger_control_api::{pool, DynamicMessage};
use prost::{Message, Name};

use super::check::{self, merge, once_each};
use super::discovery::config_source;
use super::dns::Resolver;
use super::runtime::{Runtime, DROP_OVERLOAD_LIMIT};
use super::scoped::{self, ScopeConfig};
use super::{cluster, endpoints, generic_secret, http_filters, known_clusters, listener, on_demand};
use crate::config::cluster::{Locality, SocketTuning};
use crate::config::demand::Demand;
use crate::config::discovery::{ApiSource, ConfigSource, GrpcTarget, Source};
use crate::config::http::HttpFilter;
use crate::config::listener::Listener;
use crate::config::pieces::PieceNeed;
use crate::config::problems::{Problem, Problems};
use crate::config::route::{self, RouteTable};
use crate::config::scopes::ScopeTable;
use crate::config::support;
use crate::config::{Cluster, Directory, Host, HostSet, Slot};
use crate::http::trace::export::Provider;
use crate::telemetry::metrics::Scope;
use crate::tls;
use crate::upstream::host_set::SplitOptions;
use crate::upstream::outlier::Registry;

/// Everything that resources are compiled against. Shared by the control thread and the workers, which
/// compile the hosts of a cluster when they first use it.
#[derive(Debug, Default)]
pub struct Compiler {
    /// Clusters by name.
    pub clusters: Arc<Directory<Cluster>>,
    /// Route tables: those of RDS as [`Compiler::route_slot`] names them, inline ones of the bootstrap's
    /// listeners as `LISTENER/TABLE`.
    pub routes: Arc<Directory<RouteTable>>,
    /// Scopes of SRDS, as [`Compiler::scopes_slot`] names them.
    pub scopes: Directory<ScopeTable>,
    /// The bootstrap's TLS secrets. They are compiled when something needs them.
    pub static_secrets: StaticSecrets,
    /// TLS secrets: those of the bootstrap by their names, those of SDS as [`Compiler::secret_slot`] names them.
    pub secrets: tls::Secrets,
    /// Where secrets that no source is named for may come from.
    pub workload: Option<Arc<tls::workload::Workload>>,
    /// Where requests ask for what is not there yet.
    pub demand: Arc<Demand>,
    /// Where clusters with outlier detection register, and what their event log is.
    pub outliers: Arc<Registry>,
    /// Runtime values: those of the bootstrap and of RTDS.
    pub runtime: Arc<ArcSwap<Runtime>>,
    /// Where this node is.
    pub locality: Locality,
    /// The cluster that this node belongs to (`cluster_manager.local_cluster_name`).
    pub local_cluster: Option<Arc<Slot<Cluster>>>,
    /// This node's cluster and id, as `add_user_agent` sends them.
    pub service: (Bytes, Bytes),
    /// The bootstrap's collector of traces, for connection managers that name none.
    pub tracer: Option<Arc<Provider>>,
    /// The bootstrap's resolver, for clusters that name none.
    pub resolver: Resolver,
    /// How the bootstrap has sockets bound, for clusters that say nothing of it.
    pub bind: SocketTuning,
    /// Names of the bootstrap's clusters: no control plane may replace them.
    pub static_clusters: HashSet<String>,
    /// Those of the bootstrap's clusters that no request may use: they need what only discovery can do.
    pub discovery_only: HashSet<String>,
    /// The bootstrap's clusters that its gRPC services name.
    pub control: HashMap<String, GrpcTarget>,
    /// Clusters of the bootstrap that are not in `control`, and why, unless that was reported.
    pub(super) refused_control: HashMap<String, Option<Problem>>,
    /// Whether the bootstrap has an `ads_config`.
    pub has_ads: bool,
    /// Whether that is a delta stream.
    pub ads_is_delta: bool,
    /// Where listeners and clusters come from: what `self` means in them.
    pub lds: Option<Source>,
    /// As `lds`, for clusters.
    pub cds: Option<Source>,
    /// The sources of route tables so far; their positions tell equal names apart.
    pub(super) sources: Mutex<Vec<Arc<ApiSource>>>,
}

/// Secrets of the bootstrap by their names.
#[derive(Default)]
pub struct StaticSecrets(pub HashMap<String, SecretConfig>);

/// Only names: what they hold is secret.
impl fmt::Debug for StaticSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A resource, compiled.
#[derive(Debug)]
pub struct Compiled<T> {
    /// Its name.
    pub name: Arc<str>,
    /// What the data path uses.
    pub value: T,
    /// What was accepted without effect, each kind once.
    pub warnings: Vec<Problem>,
    /// What has to be there before the resource can serve.
    pub needs: Needs,
}

/// What has to be there before a resource can serve.
#[derive(Debug, Default, Clone)]
pub struct Needs {
    /// Route tables to ask for, each once.
    pub route_tables: Vec<RouteNeed>,
    /// Those to ask for when a request wants them, each once.
    pub lazy_tables: Vec<RouteNeed>,
    /// Scopes to ask for, each source once.
    pub scoped_routes: Vec<ScopesNeed>,
    /// Where a route table has the virtual hosts that are not in it (VHDS).
    pub virtual_hosts: Option<ConfigSource>,
    /// Parts that come by themselves.
    pub pieces: Vec<PieceNeed>,
    /// Requests may ask for more.
    pub on_demand: bool,
}

impl Needs {
    /// Whether nothing is needed.
    pub fn is_empty(&self) -> bool {
        let Self { route_tables, lazy_tables, scoped_routes, virtual_hosts, pieces, on_demand } = self;
        let tables = route_tables.is_empty() && lazy_tables.is_empty() && scoped_routes.is_empty();
        tables && virtual_hosts.is_none() && pieces.is_empty() && !on_demand
    }
}

/// The scopes of a connection manager.
#[derive(Debug, Clone)]
pub struct ScopesNeed {
    /// Whom to ask for scopes, and how long to wait.
    pub source: ConfigSource,
    /// Whom to ask for their tables.
    pub tables: ConfigSource,
    /// Where they go.
    pub slot: Arc<Slot<ScopeTable>>,
    /// Under which prefixes and names the connection managers that use them count.
    pub users: Vec<(Arc<str>, Arc<str>)>,
}

/// A route table to ask for.
#[derive(Debug, Clone)]
pub struct RouteNeed {
    /// Whom to ask, and how long to wait.
    pub source: ConfigSource,
    /// The name to ask for.
    pub name: Arc<str>,
    /// Where it goes.
    pub slot: Arc<Slot<RouteTable>>,
    /// Under which prefixes the connection managers that use it count.
    pub stat_prefixes: Vec<Arc<str>>,
}

/// A `ClusterLoadAssignment` that was checked, but not made into hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The service name that it belongs to.
    pub cluster_name: Arc<str>,
    /// What was accepted without effect, each kind once.
    pub warnings: Vec<Problem>,
    /// After this time without another assignment the endpoints are gone; `None` = never.
    pub endpoint_stale_after: Option<Duration>,
    /// How many endpoints it lists.
    pub endpoints: usize,
}

/// What compiling one resource may look at besides the resource, and what it leaves behind.
pub struct Environment<'a> {
    /// What all resources share.
    pub compiler: &'a Compiler,
    /// Whether there is a cluster of this name now.
    pub known: &'a dyn Fn(&str) -> bool,
    /// The resource comes from a control plane, not from the bootstrap.
    pub dynamic: bool,
    /// What the resource needs, noted while it is compiled.
    pub needs: RefCell<Needs>,
}

impl<'a> Environment<'a> {
    /// The environment of a resource in the bootstrap that knows no cluster.
    pub fn new(compiler: &'a Compiler) -> Self {
        Self { compiler, known: &|_| false, dynamic: false, needs: RefCell::default() }
    }

    /// Reports that `field` of a resource in the bootstrap names a cluster that serves discovery only.
    pub fn check_reserved(&self, cluster: &str, field: impl fmt::Display, problems: &mut Problems) -> bool {
        let reserved = !self.dynamic && self.compiler.discovery_only.contains(cluster);
        if reserved {
            let message = format!(
                "the cluster {cluster:?} serves discovery only: a gRPC service names it, and its connections are TLS"
            );
            problems.report_at(field, message);
        }
        reserved
    }
}

impl Compiler {
    /// The slot of the route table `name` from `source`: the same each time.
    pub fn route_slot(&self, source: &Source, name: &str) -> Arc<Slot<RouteTable>> {
        self.routes.slot(&format!("{}:{name}", self.label(source)))
    }

    /// The slot of the scopes from `source` whose tables come from `tables`: the same each time.
    pub fn scopes_slot(&self, source: &Source, tables: &Source) -> Arc<Slot<ScopeTable>> {
        self.scopes.slot(&format!("{} {}", self.label(source), self.label(tables)))
    }

    /// The slot of the secret `name` from `source`: the same each time.
    pub fn secret_slot(&self, source: &Source, name: &str) -> Arc<tls::Slot> {
        self.secrets.slot(&format!("{}:{name}", self.label(source)), name)
    }

    /// Compiles an encoded `envoy.extensions.transport_sockets.tls.v3.Secret`. Its value goes into the slot with
    /// [`tls::Slot::put`].
    ///
    /// # Errors
    /// Every problem found.
    pub fn secret(&self, body: &[u8]) -> Result<Compiled<Arc<tls::Secret>>, Vec<Problem>> {
        self.compile(body, &|_| true, |config: &SecretConfig, _, problems| {
            let compiled = super::tls::secret_content(config, problems)?;
            Some((config.name.as_str().into(), compiled))
        })
    }

    /// A text for each source.
    fn label(&self, source: &Source) -> String {
        let Source::Own(api) = source else { return source.to_string() };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sources.iter().position(|known| known == api);
        let number = known.unwrap_or_else(|| {
            sources.push(api.clone());
            sources.len() - 1
        });
        format!("{source}#{number}")
    }

    /// Whether resources can be asked for one by one, and be said not to exist. That of the resource
    /// around, where it is not known, may turn out not to be: then nothing comes.
    pub(super) fn is_delta(&self, source: &Source) -> bool {
        match source {
            Source::Ads => self.ads_is_delta || !self.has_ads,
            Source::Own(api) => api.delta,
            Source::SameAsParent => true,
            Source::Path { .. } => false,
        }
    }

    /// Compiles an encoded `envoy.config.route.v3.ScopedRouteConfiguration`.
    ///
    /// # Errors
    /// Every problem found.
    pub fn scope(&self, body: &[u8]) -> Result<Compiled<ScopeConfig>, Vec<Problem>> {
        self.compile(body, &|_| true, |config: &ScopedRouteConfiguration, environment, problems| {
            let compiled = scoped::scope_config(config, environment, problems)?;
            Some((compiled.name.clone(), compiled))
        })
    }

    /// Compiles an encoded `envoy.config.cluster.v3.Cluster`.
    ///
    /// # Errors
    /// Every problem found.
    pub fn cluster(&self, body: &[u8]) -> Result<Compiled<Cluster>, Vec<Problem>> {
        self.compile(body, &|_| true, |config: &ClusterConfig, environment, problems| {
            let compiled = cluster::compile(config, environment, problems)?;
            Some((compiled.name.clone(), compiled))
        })
    }

    /// Compiles an encoded `envoy.config.route.v3.RouteConfiguration`, a virtual host at a time; the
    /// table shares `body`. Clusters that it names and that `known` denies are problems only if it says
    /// `validate_clusters`.
    ///
    /// # Errors
    /// Every problem found.
    pub fn route_table(
        &self,
        body: &Arc<[u8]>,
        known: &dyn Fn(&str) -> bool,
    ) -> Result<Compiled<RouteTable>, Vec<Problem>> {
        let parts = route::split(body).ok_or_else(|| {
            vec![Problem::new("", format!("the bytes are no valid {}", RouteConfiguration::full_name()))]
        })?;
        let config = decoded::<RouteConfiguration>(&parts.rest)?;
        let mut found = Found::default();
        found.check::<RouteConfiguration>(&parts.rest, "")?;
        let environment = Environment { compiler: self, known, dynamic: true, needs: RefCell::default() };
        let mut problems = Problems::new();
        let validate = config.validate_clusters.is_some_and(|validate| validate.value);
        let clusters = known_clusters::Check::new(validate, &environment);
        if let Some(check) = &clusters {
            check.table(&config, &mut problems);
        }
        on_demand::check(&config.typed_per_filter_config, self, &mut problems);
        environment.needs.borrow_mut().virtual_hosts = config.vhds.as_ref().and_then(|vhds| {
            problems.at("vhds.config_source", |problems| {
                // Demanded by a field rule.
                let parent = Some(&Source::SameAsParent);
                let source = config_source(vhds.config_source.as_ref()?, parent, self, problems)?;
                if !self.is_delta(&source.source) {
                    problems.report("virtual hosts need a delta stream (DELTA_GRPC)");
                }
                Some(source)
            })
        });
        let look = &mut |bytes: &[u8], host: &VirtualHost, problems: &mut Problems| {
            if let Err(malformed) = found.check::<VirtualHost>(bytes, problems.path()) {
                malformed.iter().for_each(|problem| problems.report(&problem.message));
            }
            if let Some(check) = &clusters {
                check.host(host, problems);
            }
            on_demand::check_host(host, self, problems);
        };
        let table = route::compile_encoded(&config, body, &parts.hosts, &self.clusters, &mut problems, look);
        generic_secret::meet_wants(&environment, &mut problems);
        found.conclude(table.map(|table| (table.name.clone(), table)), environment.needs.take(), problems)
    }

    /// Compiles an encoded `envoy.config.listener.v3.Listener`. Clusters that its inline route tables
    /// name and that `known` denies are problems unless the table says otherwise.
    ///
    /// # Errors
    /// Every problem found.
    pub fn listener(
        &self,
        body: &[u8],
        known: &dyn Fn(&str) -> bool,
    ) -> Result<Compiled<Listener>, Vec<Problem>> {
        self.compile(body, known, |config: &ListenerConfig, environment, problems| {
            let compiled = listener::compile(config, environment, problems)?;
            Some((compiled.name.clone(), compiled))
        })
    }

    /// Compiles an encoded `envoy.config.core.v3.TypedExtensionConfig` for an HTTP filter that may be one of `types`,
    /// in a connection manager that counts under `stat_prefix`.
    ///
    /// # Errors
    /// Every problem found.
    pub fn http_filter(
        &self,
        body: &[u8],
        types: &[Box<str>],
        stat_prefix: &str,
    ) -> Result<Compiled<HttpFilter>, Vec<Problem>> {
        let stats = Scope::http(stat_prefix);
        self.compile(body, &|_| true, |config: &TypedExtensionConfig, environment, problems| {
            let filter = http_filters::discovered(config, types, &stats, &self.clusters, problems);
            generic_secret::meet_wants(environment, problems);
            Some((config.name.as_str().into(), filter?))
        })
    }

    /// Checks an encoded `envoy.config.endpoint.v3.ClusterLoadAssignment` without making hosts of it.
    ///
    /// # Errors
    /// Every problem found.
    pub fn check_assignment(&self, assignment: &[u8]) -> Result<Assignment, Vec<Problem>> {
        let compiled =
            self.compile(assignment, &|_| true, |config: &ClusterLoadAssignment, _, problems| {
                let checked = endpoints::check(config, problems)?;
                Some((config.cluster_name.as_str().into(), checked))
            })?;
        let (endpoint_stale_after, endpoints) = compiled.value;
        Ok(Assignment {
            cluster_name: compiled.name,
            warnings: compiled.warnings,
            endpoint_stale_after,
            endpoints,
        })
    }

    /// The hosts of `cluster` by an assignment that [`Compiler::check_assignment`] has accepted; what it says of
    /// requests to refuse holds at once. Hosts
    /// of `previous` that are described as before stay the same `Arc`; those of which only the weight,
    /// health, priority or locality changed keep their counters and connections.
    ///
    /// # Errors
    /// Every problem found, if the assignment was not accepted before.
    pub fn hosts(
        &self,
        cluster: &Cluster,
        assignment: &[u8],
        previous: &[Arc<Host>],
    ) -> Result<HostSet, Vec<Problem>> {
        let config = ClusterLoadAssignment::decode(assignment)
            .map_err(|error| vec![malformed::<ClusterLoadAssignment>(&error)])?;
        let mut problems = Problems::new();
        let hosts = endpoints::eds_hosts(&config, previous, &mut problems);
        let limit = self.runtime.load().number(DROP_OVERLOAD_LIMIT);
        let dropped = endpoints::drop_overload(&config, limit, &mut problems);
        if !problems.is_empty() {
            return Err(problems.into_parts().0);
        }
        cluster.drops.set(dropped);
        let overprovisioning = config.policy.as_ref().and_then(|policy| policy.overprovisioning_factor);
        let weighted = config.policy.as_ref().is_some_and(|policy| policy.weighted_priority_health);
        let options = SplitOptions {
            overprovisioning: overprovisioning.map_or(cluster.overprovisioning, |factor| factor.value),
            weighted: weighted || cluster.weighted_priority_health,
            ..cluster.split_options()
        };
        Ok(HostSet::new(hosts, options))
    }

    fn compile<M, T>(
        &self,
        body: &[u8],
        known: &dyn Fn(&str) -> bool,
        compile: impl FnOnce(&M, &Environment<'_>, &mut Problems) -> Option<(Arc<str>, T)>,
    ) -> Result<Compiled<T>, Vec<Problem>>
    where
        M: Message + Name + Default,
    {
        let config = decoded::<M>(body)?;
        let mut found = Found::default();
        found.check::<M>(body, "")?;
        let environment = Environment { compiler: self, known, dynamic: true, needs: RefCell::default() };
        let mut problems = Problems::new();
        let compiled = compile(&config, &environment, &mut problems);
        found.conclude(compiled, environment.needs.take(), problems)
    }
}

/// What the checks before compiling found.
#[derive(Default)]
struct Found {
    rejected: Vec<Problem>,
    observed: Vec<Problem>,
    ruled: Vec<Problem>,
}

impl Found {
    /// Checks an encoded message that is at `path`.
    fn check<M: Name>(&mut self, body: &[u8], path: &str) -> Result<(), Vec<Problem>> {
        let name = M::full_name();
        let unknown = || vec![Problem::new("", format!("unknown type {name}"))];
        let descriptor = pool().get_message_by_name(&name).ok_or_else(unknown)?;
        // Nearly every resource is fine, which a look at the bytes can tell.
        if let Some(observed) = support::scan(&descriptor, body) {
            let placed = |problem: Problem| match path {
                "" => problem,
                _ => Problem::new(format!("{path}.{}", problem.path), problem.message),
            };
            self.observed.extend(observed.into_iter().map(placed));
            return Ok(());
        }
        let dynamic =
            DynamicMessage::decode(descriptor, body).map_err(|error| vec![malformed::<M>(&error)])?;
        support::rules::check(&dynamic, path, &mut self.ruled);
        let findings = check::support(support::table(), &dynamic, path);
        self.rejected.extend(findings.rejected);
        self.observed.extend(findings.observed);
        Ok(())
    }

    /// Puts what was found together with what the compiler says.
    fn conclude<T>(
        self,
        compiled: Option<(Arc<str>, T)>,
        needs: Needs,
        mut problems: Problems,
    ) -> Result<Compiled<T>, Vec<Problem>> {
        for want in problems.take_wants() {
            problems.elsewhere(want.path, |problems| problems.report("no secret can be had here"));
        }
        let (found, notes) = problems.into_parts();
        let all = merge(self.rejected, self.ruled.into_iter().chain(found));
        match compiled {
            Some((name, value)) if all.is_empty() => Ok(Compiled {
                name,
                value,
                warnings: once_each(self.observed.into_iter().chain(notes)),
                needs,
            }),
            // A compiler that fails reports why.
            _ if all.is_empty() => Err(vec![Problem::new("", "cannot be compiled")]),
            _ => Err(all),
        }
    }
}

fn decoded<M: Message + Name + Default>(body: &[u8]) -> Result<M, Vec<Problem>> {
    M::decode(body).map_err(|error| vec![malformed::<M>(&error)])
}

fn malformed<M: Name>(error: &prost::DecodeError) -> Problem {
    Problem::new("", format!("the bytes are no valid {}: {error}", M::full_name()))
}
