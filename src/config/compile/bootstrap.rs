//! The bootstrap: everything the process is told at start, in one pass.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::accesslog::v3::{
    access_log::ConfigType, AccessLog as AccessLogConfig,
};
use outrigger_control_api::pb::envoy::config::bootstrap::v3 as pb;
use outrigger_control_api::pb::envoy::config::cluster::v3::Cluster as ClusterConfig;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::listener::v3::Listener as ListenerConfig;
use outrigger_control_api::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::support::Findings;
use outrigger_control_api::DynamicMessage;
use outrigger_control_api::{message_to_json, to_json, Loaded};
use prost::{Message as _, Name as _};
use serde_json::{json, Value};

use super::runtime::{self, Runtime};
use super::{cluster, dns, endpoints, listener, rooms, Environment};
use crate::config::cluster::{Address, Cluster, Locality};
use crate::config::listener::Listener;
use crate::config::problems::{Problem, Problems};
use crate::config::route::RouteTable;
use crate::config::slot::Directory;
use crate::config::support;
use crate::telemetry::access_log::AccessLog;

/// What the command line says that the bootstrap also could.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// `--service-node`.
    pub id: Option<String>,
    /// `--service-cluster`.
    pub cluster: Option<String>,
    /// `--service-zone`.
    pub zone: Option<String>,
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
    /// The listeners, in the order of the bootstrap.
    pub listeners: Vec<Arc<Listener>>,
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
#[derive(Debug)]
pub struct ConfigDump {
    bootstrap: Vec<u8>,
    /// With the flags' values; null when nothing is said of the node.
    node: Value,
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
    let findings = check_support(&dynamic);
    let mut ruled = Vec::new();
    support::rules::check(&dynamic, "", &mut ruled);
    // Bootstraps can be large: no form of one is kept longer than it is needed.
    let node = node(message.node.as_ref(), options);
    let dump = ConfigDump { node: node_json(&dynamic, &node), bootstrap: dynamic.encode_to_vec() };
    drop(dynamic);

    let mut problems = Problems::new();
    let compiled = compile(message, node, dump, &mut problems);
    let (found, notes) = problems.into_parts();
    let all = merge(findings.rejected, ruled.into_iter().chain(found));
    match compiled {
        Some(mut compiled) if all.is_empty() => {
            compiled.warnings = once_each(findings.observed.into_iter().chain(notes));
            Ok(compiled)
        }
        // A compiler that fails reports why.
        _ if all.is_empty() => Err(vec![Problem::new("", "cannot be compiled")]),
        _ => Err(all),
    }
}

/// What the support table says, without the entries of load-balancing policy lists: the first policy
/// that is supported counts, which only their compiler can tell.
fn check_support(message: &DynamicMessage) -> Findings {
    let mut findings = support::table().check(message, "");
    let listed = |problem: &Problem| problem.path.contains("load_balancing_policy.policies[");
    findings.rejected.retain(|problem| !listed(problem));
    findings.observed.retain(|problem| !listed(problem));
    findings
}

/// `rejected`, then those of `others` that stand elsewhere. One problem for each path.
fn merge(rejected: Vec<Problem>, others: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let mut seen: HashSet<String> = rejected.iter().map(|problem| problem.path.clone()).collect();
    let refused: Vec<String> = seen.iter().cloned().collect();
    let inside = |path: &str| {
        refused.iter().any(|refused| {
            path.strip_prefix(refused.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    };
    let others: Vec<_> =
        others.filter(|problem| !inside(&problem.path) && seen.insert(problem.path.clone())).collect();
    rejected.into_iter().chain(others).collect()
}

/// The first warning of each kind, with the number of its likes.
fn once_each(warnings: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let mut kinds: HashMap<(String, String), (usize, usize)> = HashMap::new();
    let mut once: Vec<Problem> = Vec::new();
    for warning in warnings {
        let field = warning.path.rsplit('.').next().unwrap_or_default();
        let field = field.split('[').next().unwrap_or_default().to_owned();
        let next = once.len();
        let (_, count) = kinds.entry((field, warning.message.clone())).or_insert((next, 0));
        *count += 1;
        if *count == 1 {
            once.push(warning);
        }
    }
    for (index, count) in kinds.into_values().filter(|(_, count)| *count > 1) {
        if let Some(warning) = once.get_mut(index) {
            warning.message.push_str(&format!(" (and {} more)", count - 1));
        }
    }
    once
}

fn compile(
    message: pb::Bootstrap,
    node: Node,
    dump: ConfigDump,
    problems: &mut Problems,
) -> Option<CompiledBootstrap> {
    let runtime = problems
        .at("layered_runtime", |problems| Runtime::compile(message.layered_runtime.as_ref(), problems));
    for (key, _) in runtime.iter().filter(|(key, _)| !runtime::is_used(key)) {
        problems.note("layered_runtime", format!("the runtime key {key} is not used"));
    }
    let clusters = Arc::new(Directory::default());
    let routes = Arc::new(Directory::default());
    let resolver = dns::resolver(
        message.typed_dns_resolver_config.as_ref(),
        message.dns_resolution_config.as_ref(),
        &[],
        message.use_tcp_for_dns_lookups,
        problems,
    );
    let bind = message.cluster_manager.as_ref().and_then(|manager| manager.upstream_bind_config.as_ref());
    let source_address = bind.and_then(|bind| {
        problems.at("cluster_manager.upstream_bind_config", |problems| cluster::bind_address(bind, problems))
    });
    let resources = message.static_resources.unwrap_or_default();
    let names: HashSet<String> = resources.clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let environment = Environment {
        clusters: &clusters,
        known_clusters: names.iter().map(String::as_str).collect(),
        routes: &routes,
        runtime: &runtime,
        service: (bytes(&node.cluster), bytes(&node.id)),
        resolver: resolver.unwrap_or_default(),
        source_address,
    };
    let listeners = problems.at("static_resources", |problems| {
        compile_clusters(resources.clusters, &environment, problems);
        compile_listeners(&resources.listeners, &environment, problems)
    });
    let admin = message
        .admin
        .as_ref()
        .and_then(|admin| problems.at("admin", |problems| compile_admin(admin, &environment, problems)));
    problems.is_empty().then_some(CompiledBootstrap {
        admin,
        dump,
        node,
        clusters,
        routes,
        listeners,
        runtime,
        warnings: Vec::new(),
    })
}

fn compile_clusters(list: Vec<ClusterConfig>, environment: &Environment<'_>, problems: &mut Problems) {
    let mut names = HashSet::new();
    for (index, config) in list.into_iter().enumerate() {
        problems.at_index("clusters", index, |problems| {
            if !config.name.is_empty() && !names.insert(config.name.clone()) {
                return problems.report_at("name", format!("duplicate cluster {:?}", config.name));
            }
            if let Some(compiled) = cluster::compile(&config, environment, problems) {
                environment.clusters.slot(&config.name).set(Some(Arc::new(compiled)));
            }
        });
    }
}

fn compile_listeners(
    list: &[ListenerConfig],
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Vec<Arc<Listener>> {
    let mut listeners: Vec<Arc<Listener>> = Vec::new();
    let mut names = HashSet::new();
    for (index, config) in list.iter().enumerate() {
        problems.at_index("listeners", index, |problems| {
            if !config.name.is_empty() && !names.insert(config.name.as_str()) {
                problems.report_at("name", format!("duplicate listener {:?}", config.name));
            }
            let Some(compiled) = listener::compile(config, environment, problems) else { return };
            let any_port = matches!(&compiled.address, Address::Ip(address) if address.port() == 0);
            let same = |other: &&Arc<Listener>| other.address == compiled.address;
            if let Some(other) = listeners.iter().find(same).filter(|_| !any_port) {
                let message =
                    format!("{} is the address of the listener {:?} too", compiled.address, other.name);
                return problems.report_at("address", message);
            }
            listeners.push(Arc::new(compiled));
        });
    }
    listeners
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
