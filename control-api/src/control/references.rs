//! What a resource points at: clusters, endpoints, route tables and secrets, each with the field that
//! names it. Names that come from elsewhere, such as a file, are left out.

use crate::any::{expand_any, Expanded};
use crate::json::sorted;
use crate::load::MAX_DEPTH;
use crate::problem::Path;
use crate::reflect::{DynamicMessage, Value};
use crate::server::ResourceType;
use crate::well_known::WellKnown;

/// One name that a resource takes for granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// The field.
    pub path: String,
    /// The type of what it names.
    pub to: ResourceType,
    /// The name.
    pub name: String,
}

/// Fields that hold the name of a cluster, or several.
const CLUSTER_FIELDS: [(&str, &str); 12] = [
    ("envoy.config.core.v3.GrpcService.EnvoyGrpc", "cluster_name"),
    ("envoy.config.core.v3.HttpUri", "cluster"),
    ("envoy.config.route.v3.RouteAction", "cluster"),
    ("envoy.config.route.v3.RouteAction.RequestMirrorPolicy", "cluster"),
    ("envoy.config.route.v3.WeightedCluster.ClusterWeight", "name"),
    ("envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters"),
    ("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "cluster"),
    ("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight", "name"),
    ("envoy.data.dns.v3.DnsTable.DnsEndpoint", "cluster_name"),
    ("envoy.data.dns.v3.DnsTable.DnsServiceTarget", "cluster_name"),
    ("envoy.extensions.filters.udp.udp_proxy.v3.Route", "cluster"),
    ("envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig", "cluster"),
];

/// The number of `EDS` among the discovery types of a cluster.
const EDS: i32 = 3;

/// Everything that `resource` points at.
pub(super) fn of(resource: &DynamicMessage) -> Vec<Reference> {
    let mut walk = Walk { path: Path::new(""), found: Vec::new() };
    walk.message(resource, 0);
    walk.found
}

struct Walk {
    path: Path,
    found: Vec<Reference>,
}

impl Walk {
    fn message(&mut self, message: &DynamicMessage, depth: usize) {
        // Deeper ones have been refused when they were read.
        if depth >= MAX_DEPTH {
            return;
        }
        let descriptor = message.descriptor();
        match WellKnown::of(&descriptor) {
            Some(WellKnown::Any) => {
                if let Expanded::Message(inner) = expand_any(message, "") {
                    self.message(&inner, depth + 1);
                }
                return;
            }
            Some(_) => return,
            None => {}
        }
        let name = descriptor.full_name();
        for (_, field) in CLUSTER_FIELDS.iter().filter(|(owner, _)| *owner == name) {
            self.names(message, field, &ResourceType::CLUSTER);
        }
        match name {
            "envoy.config.cluster.v3.Cluster" => self.endpoints(message),
            "envoy.config.route.v3.ScopedRouteConfiguration" => {
                self.names(message, "route_configuration_name", &ResourceType::ROUTE);
            }
            "envoy.extensions.filters.network.http_connection_manager.v3.Rds"
                if is_ours(message, "config_source") =>
            {
                self.names(message, "route_config_name", &ResourceType::ROUTE);
            }
            "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig" if is_ours(message, "sds_config") => {
                self.names(message, "name", &ResourceType::SECRET);
            }
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter" => {
                if let Some(Value::Message(discovery)) = set(message, "config_discovery") {
                    if is_ours(discovery, "config_source") {
                        self.names(message, "name", &ResourceType::EXTENSION);
                    }
                }
            }
            _ => {}
        }
        for (field, value) in message.fields() {
            let back = self.path.field(field.name());
            self.value(value, depth + 1);
            self.path.back(back);
        }
    }

    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Message(message) => self.message(message, depth),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let back = self.path.index(index);
                    self.value(item, depth);
                    self.path.back(back);
                }
            }
            Value::Map(entries) => {
                for (key, item) in sorted(entries) {
                    let back = self.path.key(&key);
                    self.value(item, depth);
                    self.path.back(back);
                }
            }
            _ => {}
        }
    }

    fn names(&mut self, message: &DynamicMessage, field: &str, to: &ResourceType) {
        let Some(value) = set(message, field) else { return };
        let back = self.path.field(field);
        match value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let back = self.path.index(index);
                    self.found.extend(item.as_str().map(|name| self.reference(to, name)));
                    self.path.back(back);
                }
            }
            one => self.found.extend(one.as_str().map(|name| self.reference(to, name))),
        }
        self.path.back(back);
    }

    fn endpoints(&mut self, cluster: &DynamicMessage) {
        let is_eds = matches!(set(cluster, "type"), Some(Value::EnumNumber(EDS)));
        let Some(Value::Message(config)) = set(cluster, "eds_cluster_config").filter(|_| is_eds) else {
            return;
        };
        if !is_ours(config, "eds_config") {
            return;
        }
        let own = set(cluster, "name").and_then(Value::as_str);
        let named = set(config, "service_name").and_then(Value::as_str);
        let Some(name) = named.or(own) else { return };
        let back = self.path.field("eds_cluster_config");
        let reference = self.reference(&ResourceType::ENDPOINTS, name);
        self.found.push(reference);
        self.path.back(back);
    }

    fn reference(&self, to: &ResourceType, name: &str) -> Reference {
        Reference { path: self.path.as_str().to_owned(), to: to.clone(), name: name.to_owned() }
    }
}

/// The value of a field that is set.
fn set<'a>(message: &'a DynamicMessage, name: &str) -> Option<&'a Value> {
    message.fields().find(|(field, _)| field.name() == name).map(|(_, value)| value)
}

/// True when the source in this field is the control plane that sent the resource.
fn is_ours(message: &DynamicMessage, field: &str) -> bool {
    let Some(Value::Message(source)) = set(message, field) else { return false };
    set(source, "ads").is_some() || set(source, "self").is_some()
}
