//! The bootstrap: everything the process is told at start, in one pass.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::accesslog::v3::{
    access_log::ConfigType, AccessLog as AccessLogConfig,
};
use outrigger_control_api::pb::envoy::config::bootstrap::v3 as pb;
use outrigger_control_api::pb::envoy::config::cluster::v3::Cluster as ClusterConfig;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::listener::v3::Listener as ListenerConfig;
use outrigger_control_api::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use outrigger_control_api::pb::envoy::r#type::v3::SemanticVersion;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::DynamicMessage;
use outrigger_control_api::{message_to_json, to_json, Loaded};
use prost::{Message as _, Name as _};
use serde_json::{json, Value};

use super::control_clusters::{check_support, control_targets, Control};
use super::resource::{Compiler, Environment, Needs, StaticSecrets};
use super::runtime::{self, Runtime};
use super::{check, cluster, control, discovery, dns, endpoints, listener, overload, rooms, sinks, tracing};
use crate::config::cluster::{Address, Cluster, Discovery, Locality};
use crate::config::discovery::{ApiKind, ApiSource, ConfigSource, DiscoveryConfig, RtdsLayer, Source};
use crate::config::listener::Listener;
use crate::config::local_node::LocalNode;
use crate::config::problems::{Problem, Problems};
use crate::config::route::RouteTable;
use crate::config::slot::Directory;
use crate::config::support;
use crate::listener::limit;
use crate::telemetry::access_log::{AccessLog, LineFile};
use crate::telemetry::metrics;
use crate::telemetry::sinks::Sinks;
use crate::tls::workload::Workload;
use crate::upstream::outlier::Registry;

/// What the command line says that the bootstrap also could.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// `--service-node`.
    pub id: Option<String>,
    /// `--service-cluster`.
    pub cluster: Option<String>,
    /// `--service-zone`.
    pub zone: Option<String>,
    /// `--spiffe-endpoint-socket`.
    pub workload_api: Option<String>,
}

/// A bootstrap ready to run.
#[derive(Debug)]
pub struct CompiledBootstrap {
    /// The admin port, if there is one.
    pub admin: Option<Admin>,
    /// Who this proxy is.
    pub node: Node,
    /// Every cluster; the slots of those in the bootstrap are filled.
    pub clusters: Arc<Directory<Cluster>>,
    /// Every route table, under `LISTENER/ROUTE_CONFIG`.
    pub routes: Arc<Directory<RouteTable>>,
    /// What the resources of control planes are compiled against.
    pub compiler: Arc<Compiler>,
    /// The listeners, in the order of the bootstrap.
    pub listeners: Vec<Arc<Listener>>,
    /// What each of the listeners needs before it can serve.
    pub needs: Vec<Needs>,
    /// Where further configuration comes from, if any does.
    pub discovery: Option<DiscoveryConfig>,
    /// Who is told of statistics, if anybody is.
    pub sinks: Option<Sinks>,
    /// Runtime values.
    pub runtime: Runtime,
    /// What was accepted without effect, each kind once.
    pub warnings: Vec<Problem>,
    /// The bootstrap itself, for the admin port.
    pub dump: ConfigDump,
}

/// `envoy.config.bootstrap.v3.Admin`.
#[derive(Debug)]
pub struct Admin {
    /// Where to listen.
    pub address: Address,
    /// Its access logs.
    pub access_logs: Vec<AccessLog>,
}

/// Who this proxy is, flags included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Node id.
    pub id: String,
    /// Cluster that the node belongs to.
    pub cluster: String,
    /// Where it runs.
    pub locality: Locality,
    /// `node.metadata` as JSON; null without.
    pub metadata: Value,
}

/// The bootstrap in its compact form, for the admin port.
pub struct ConfigDump {
    bootstrap: Vec<u8>,
    /// With the flags' values; null when nothing is said of the node.
    node: Value,
}

/// There may be keys in it.
impl std::fmt::Debug for ConfigDump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a bootstrap of {} bytes", self.bootstrap.len())
    }
}

impl ConfigDump {
    /// The bootstrap as JSON, `@type`s included, with the node as the flags left it.
    pub fn to_json(&self) -> Value {
        let Some(descriptor) = outrigger_control_api::descriptor::<pb::Bootstrap>() else {
            return Value::Null;
        };
        // The bytes are a bootstrap that was encoded here.
        let Ok(dynamic) = DynamicMessage::decode(descriptor, self.bootstrap.as_slice()) else {
            return Value::Null;
        };
        let mut bootstrap = to_json(&dynamic);
        if let Value::Object(fields) = &mut bootstrap {
            fields.insert("node".to_owned(), self.node.clone());
        }
        bootstrap
    }

    /// The node alone, which costs little.
    pub fn node(&self) -> &Value {
        &self.node
    }
}

/// The node of a bootstrap as JSON, with what the flags changed.
fn node_json(bootstrap: &DynamicMessage, node: &Node) -> Value {
    let own = bootstrap.get_field_by_name("node");
    let own = own.as_deref().and_then(|value| value.as_message()).map(to_json);
    let mut fields = match own {
        Some(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    fields.shift_remove("@type");
    let mut set = |field: &str, value: &str| {
        if !value.is_empty() {
            fields.insert(field.to_owned(), value.into());
        }
    };
    set("id", &node.id);
    set("cluster", &node.cluster);
    if !node.locality.zone.is_empty() {
        if let Value::Object(locality) = fields.entry("locality").or_insert_with(|| json!({})) {
            locality.insert("zone".to_owned(), (&*node.locality.zone).into());
        }
    }
    Value::Object(fields)
}

/// Compiles a bootstrap.
///
/// # Errors
/// Every problem found, in the order of the checks: fields that are not supported, Envoy's field rules,
/// then everything else. What stands inside a field that is refused is not reported as well.
pub fn bootstrap(
    loaded: Loaded<pb::Bootstrap>,
    options: &NodeOptions,
) -> Result<CompiledBootstrap, Vec<Problem>> {
    let Loaded { message, dynamic } = loaded;
    let named = control::named_in(&dynamic);
    let (findings, control) = check_support(&dynamic, named);
    let mut ruled = Vec::new();
    support::rules::check(&dynamic, "", &mut ruled);
    // Bootstraps can be large: no form of one is kept longer than it is needed.
    let node = node(message.node.as_ref(), options);
    LocalNode::set(&node_of(message.node.clone(), &node), &node.metadata);
    let dump = ConfigDump { node: node_json(&dynamic, &node), bootstrap: dynamic.encode_to_vec() };
    drop(dynamic);

    let mut problems = Problems::new();
    let compiled = compile(message, node, dump, &control, options.workload_api.as_deref(), &mut problems);
    let (found, notes) = problems.into_parts();
    let all = check::merge(findings.rejected, ruled.into_iter().chain(found));
    match compiled {
        Some(mut compiled) if all.is_empty() => {
            compiled.warnings = check::once_each(findings.observed.into_iter().chain(notes));
            Ok(compiled)
        }
        // A compiler that fails reports why.
        _ if all.is_empty() => Err(vec![Problem::new("", "cannot be compiled")]),
        _ => Err(all),
    }
}

fn compile(
    message: pb::Bootstrap,
    node: Node,
    dump: ConfigDump,
    control: &Control,
    workload_api: Option<&str>,
    problems: &mut Problems,
) -> Option<CompiledBootstrap> {
    let runtime = problems
        .at("layered_runtime", |problems| Runtime::compile(message.layered_runtime.as_ref(), problems));
    for (key, _) in runtime.iter().filter(|(key, _)| !runtime::is_used(key)) {
        problems.note("layered_runtime", format!("the runtime key {key} is not used"));
    }
    let resolver = dns::resolver(
        message.typed_dns_resolver_config.as_ref(),
        message.dns_resolution_config.as_ref(),
        &[],
        message.use_tcp_for_dns_lookups,
        problems,
    );
    let bind = message.cluster_manager.as_ref().and_then(|manager| manager.upstream_bind_config.as_ref());
    let bind = bind.map(|bind| {
        problems.at("cluster_manager.upstream_bind_config", |problems| cluster::bind_config(bind, problems))
    });
    let outliers = Arc::new(Registry::default());
    let manager = message.cluster_manager.as_ref();
    if let Some(config) = manager.and_then(|manager| manager.outlier_detection.as_ref()) {
        let field = "cluster_manager.outlier_detection.event_log_path";
        match config.event_log_path.as_str() {
            "" => {}
            path => match LineFile::open(path) {
                Ok(file) => outliers.log_to(file),
                Err(error) => problems.report_at(field, format!("cannot open {path}: {error}")),
            },
        }
    }
    let resources = message.static_resources.unwrap_or_default();
    let dynamic = message.dynamic_resources.as_ref();
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let reserved = control.reserved.iter().filter_map(|index| resources.clusters.get(*index));
    let workload = workload_api.and_then(|endpoint| problems.take(Workload::new(endpoint)));
    let mut compiler = Compiler {
        outliers,
        runtime: Arc::new(ArcSwap::from_pointee(runtime.clone())),
        service: (bytes(&node.cluster), bytes(&node.id)),
        resolver: resolver.unwrap_or_default(),
        bind: bind.unwrap_or_default(),
        static_secrets: StaticSecrets(
            resources.secrets.iter().map(|secret| (secret.name.clone(), secret.clone())).collect(),
        ),
        static_clusters: resources.clusters.iter().map(|cluster| cluster.name.clone()).collect(),
        discovery_only: reserved.map(|cluster| cluster.name.clone()).collect(),
        has_ads: dynamic.is_some_and(|dynamic| dynamic.ads_config.is_some()),
        ads_is_delta: dynamic
            .and_then(|dynamic| dynamic.ads_config.as_ref())
            .is_some_and(discovery::names_delta),
        workload,
        ..Compiler::default()
    };
    let control_needs = problems.at("static_resources", |problems| {
        control_targets(&resources.clusters, control, &mut compiler, problems)
    });
    compiler.locality = node.locality.clone();
    let shown = message.stats_config.as_ref().and_then(|config| config.stats_matcher.as_ref());
    metrics::show(shown.and_then(|config| {
        problems.at("stats_config.stats_matcher", |problems| metrics::Shown::compile(config, problems))
    }));
    limit::set(overload::connections(message.overload_manager.as_ref(), problems));
    overload::check_extensions(&message.bootstrap_extensions, problems);
    #[allow(deprecated)] // Istio's agent writes it.
    let tracer = message.tracing.as_ref().and_then(|tracing| tracing.http.as_ref());
    compiler.tracer = tracer.and_then(|config| {
        problems.at("tracing.http", |problems| {
            tracing::provider(config, &compiler.clusters, &compiler.service.0, problems)
        })
    });
    let local = message.cluster_manager.as_ref().map(|manager| manager.local_cluster_name.as_str());
    if let Some(local) = local.filter(|local| !local.is_empty()) {
        if compiler.static_clusters.contains(local) {
            compiler.local_cluster = Some(compiler.clusters.slot(local));
        } else {
            let message = format!("there is no cluster {local:?} in the bootstrap");
            problems.report_at("cluster_manager.local_cluster_name", message);
        }
    }
    let discovery =
        discovery_config(&message.dynamic_resources, message.layered_runtime.as_ref(), &compiler, problems);
    let load_stats = message.cluster_manager.as_ref().and_then(|manager| manager.load_stats_config.as_ref());
    let load_stats = load_stats.and_then(|config| {
        problems.at("cluster_manager.load_stats_config", |problems| {
            let source = discovery::api_source(config, &compiler, problems)?;
            if source.kind != ApiKind::Grpc {
                problems.report_at("api_type", "load reporting needs gRPC");
            }
            Some(Arc::new(source))
        })
    });
    let discovery = match load_stats {
        Some(_) => Some(DiscoveryConfig { load_stats, ..discovery.unwrap_or_else(no_sources) }),
        None => discovery,
    };
    if let Some(discovery) = &discovery {
        compiler.lds = discovery.lds.as_ref().map(|lds| lds.source.clone());
        compiler.cds = discovery.cds.as_ref().map(|cds| cds.source.clone());
    }
    let sinks =
        sinks::compile(&message.stats_sinks, &message.stats_flush_interval, &compiler.clusters, problems);
    let known = |name: &str| compiler.static_clusters.contains(name);
    let environment = Environment { known: &known, ..Environment::new(&compiler) };
    let (listeners, mut needs) = problems.at("static_resources", |problems| {
        compile_clusters(resources.clusters, &control.reserved, &environment, problems);
        compile_listeners(&resources.listeners, &environment, problems)
    });
    let admin = message
        .admin
        .as_ref()
        .and_then(|admin| problems.at("admin", |problems| compile_admin(admin, &environment, problems)));
    let asks = discovery.as_ref().is_some_and(|discovery| {
        let source = |config: &Option<ConfigSource>| {
            config.as_ref().is_some_and(|config| matches!(config.source, Source::Ads | Source::Own(_)))
        };
        discovery.ads.is_some() || source(&discovery.lds) || source(&discovery.cds)
    });
    if asks && (node.id.is_empty() || node.cluster.is_empty()) {
        let field = if node.id.is_empty() { "node.id" } else { "node.cluster" };
        problems
            .report_at(field, "is required to ask a control plane (or --service-node and --service-cluster)");
    }
    if !problems.is_empty() {
        return None;
    }
    needs.push(control_needs);
    let waits = needs.iter().any(|needs| !needs.is_empty());
    let eds = |cluster: &Cluster| matches!(cluster.discovery, Discovery::Eds { .. });
    let waits = waits || compiler.clusters.all().iter().any(|slot| slot.get().is_some_and(|c| eds(&c)));
    let discovery = discovery
        .or_else(|| waits.then(no_sources))
        .map(|discovery| DiscoveryConfig { node: node_of(message.node, &node), ..discovery });
    Some(CompiledBootstrap {
        admin,
        dump,
        node,
        clusters: compiler.clusters.clone(),
        routes: compiler.routes.clone(),
        compiler: Arc::new(compiler),
        listeners,
        needs,
        discovery,
        sinks,
        runtime,
        warnings: Vec::new(),
    })
}

fn no_sources() -> DiscoveryConfig {
    DiscoveryConfig {
        node: core::Node::default(),
        ads: None,
        lds: None,
        cds: None,
        rtds: Vec::new(),
        load_stats: None,
    }
}

/// The sources that the bootstrap names, without the node. `None` if it names none.
fn discovery_config(
    dynamic: &Option<pb::bootstrap::DynamicResources>,
    runtime: Option<&pb::LayeredRuntime>,
    compiler: &Compiler,
    problems: &mut Problems,
) -> Option<DiscoveryConfig> {
    let mut discovery = no_sources();
    if let Some(dynamic) = dynamic {
        problems.at("dynamic_resources", |problems| {
            let source = |config: &Option<core::ConfigSource>, field: &str, problems: &mut Problems| {
                let config = config.as_ref()?;
                problems.at(field, |problems| discovery::config_source(config, None, compiler, problems))
            };
            discovery.ads = dynamic.ads_config.as_ref().and_then(|ads| {
                problems.at("ads_config", |problems| {
                    let ads = discovery::api_source(ads, compiler, problems)?;
                    if ads.kind != ApiKind::Grpc {
                        problems.report_at("api_type", "ADS needs gRPC");
                    }
                    Some(Arc::new(ApiSource { aggregated: true, ..ads }))
                })
            });
            discovery.lds = source(&dynamic.lds_config, "lds_config", problems);
            discovery.cds = source(&dynamic.cds_config, "cds_config", problems);
        });
    }
    for (index, layer) in runtime.iter().flat_map(|runtime| &runtime.layers).enumerate() {
        let Some(pb::runtime_layer::LayerSpecifier::RtdsLayer(rtds)) = &layer.layer_specifier else {
            continue;
        };
        problems.at(format_args!("layered_runtime.layers[{index}].rtds_layer"), |problems| {
            if rtds.name.is_empty() {
                problems.report_at("name", "is required");
            }
            let Some(config) = &rtds.rtds_config else {
                return problems.report_at("rtds_config", "is required");
            };
            let source = problems
                .at("rtds_config", |problems| discovery::config_source(config, None, compiler, problems));
            discovery.rtds.extend(source.map(|source| RtdsLayer {
                layer: layer.name.as_str().into(),
                name: rtds.name.as_str().into(),
                source,
            }));
        });
    }
    (dynamic.is_some() || !discovery.rtds.is_empty()).then_some(discovery)
}

/// The node as a control plane is told of it.
fn node_of(own: Option<core::Node>, node: &Node) -> core::Node {
    let own = own.unwrap_or_default();
    let number = |text: &str| text.parse().unwrap_or_default();
    let version = SemanticVersion {
        major_number: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor_number: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
    };
    let mut locality = own.locality;
    if !node.locality.zone.is_empty() {
        locality.get_or_insert_with(Default::default).zone = node.locality.zone.to_string();
    }
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        locality,
        user_agent_name: "outrigger".to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentBuildVersion(
            core::BuildVersion { version: Some(version), metadata: None },
        )),
        extensions: Vec::new(),
        client_features: Vec::new(),
        listening_addresses: Vec::new(),
        ..own
    }
}

fn compile_clusters(
    list: Vec<ClusterConfig>,
    reserved: &HashSet<usize>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) {
    let mut names = HashSet::new();
    for (index, config) in list.into_iter().enumerate() {
        problems.at_index("clusters", index, |problems| {
            if !config.name.is_empty() && !names.insert(config.name.clone()) {
                return problems.report_at("name", format!("duplicate cluster {:?}", config.name));
            }
            if reserved.contains(&index) {
                return;
            }
            if let Some(compiled) = cluster::compile(&config, environment, problems) {
                environment.compiler.clusters.slot(&config.name).set(Some(Arc::new(compiled)));
            }
        });
    }
}

fn compile_listeners(
    list: &[ListenerConfig],
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> (Vec<Arc<Listener>>, Vec<Needs>) {
    let mut listeners: Vec<Arc<Listener>> = Vec::new();
    let of_clusters = environment.needs.take();
    let mut all_needs = Vec::new();
    let mut names = HashSet::new();
    for (index, config) in list.iter().enumerate() {
        problems.at_index("listeners", index, |problems| {
            if !config.name.is_empty() && !names.insert(config.name.as_str()) {
                problems.report_at("name", format!("duplicate listener {:?}", config.name));
            }
            let compiled = listener::compile(config, environment, problems);
            let needs = environment.needs.take();
            let Some(compiled) = compiled else { return };
            let any_port = matches!(&compiled.address, Address::Ip(address) if address.port() == 0);
            let same = |other: &&Arc<Listener>| other.address == compiled.address;
            if let Some(other) = listeners.iter().find(same).filter(|_| !any_port) {
                let message =
                    format!("{} is the address of the listener {:?} too", compiled.address, other.name);
                return problems.report_at("address", message);
            }
            listeners.push(Arc::new(compiled));
            all_needs.push(needs);
        });
    }
    all_needs.push(of_clusters);
    (listeners, all_needs)
}

fn compile_admin(admin: &pb::Admin, environment: &Environment<'_>, problems: &mut Problems) -> Option<Admin> {
    let mut access_logs = rooms::access_logs(&admin.access_log, "access_log", environment, problems);
    if !admin.access_log_path.is_empty() {
        let file = FileAccessLog { path: admin.access_log_path.clone(), ..FileAccessLog::default() };
        let any = Any { type_url: FileAccessLog::type_url(), value: file.encode_to_vec() };
        let config = AccessLogConfig {
            name: "envoy.access_loggers.file".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any)),
            ..AccessLogConfig::default()
        };
        access_logs.extend(rooms::access_logs(&[config], "access_log_path", environment, problems));
    }
    // Without an address there is no admin port, as in Envoy.
    let address = admin.address.as_ref()?;
    let bind = problems.at("address", |problems| listener::bind_address(address, problems))?;
    Some(Admin { address: bind.address, access_logs })
}

fn node(node: Option<&core::Node>, options: &NodeOptions) -> Node {
    let default = core::Node::default();
    let node = node.unwrap_or(&default);
    let over = |flag: &Option<String>, field: &str| flag.clone().unwrap_or_else(|| field.to_owned());
    let mut locality = node.locality.as_ref().map(endpoints::locality).unwrap_or_default();
    if let Some(zone) = &options.zone {
        locality.zone = zone.as_str().into();
    }
    Node {
        id: over(&options.id, &node.id),
        cluster: over(&options.cluster, &node.cluster),
        locality,
        metadata: node.metadata.as_ref().map_or(Value::Null, |metadata| {
            let mut value = message_to_json(metadata);
            value.get_mut("value").map(Value::take).unwrap_or(value)
        }),
    }
}
