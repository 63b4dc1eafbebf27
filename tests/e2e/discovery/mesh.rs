//! A control plane in the test's own process, and the small mesh that it describes: one listener, a route table, services
//! with their endpoints.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use outrigger_control_api::load_resource;
use outrigger_control_api::server::{Event, ResourceType, Server, Snapshot, SnapshotCache};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::{eventually, DEADLINE};

/// The node id of every proxy under test.
pub const NODE: &str = "sidecar";

/// A prefix, and the clusters that it leads to with their weights.
pub type Route = (String, Vec<(String, u32)>);

/// What the control plane is to say.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    /// Ports of the listeners by name; `name` serves the route table `name`.
    pub listeners: BTreeMap<String, u16>,
    /// Routes of each table: prefix, then clusters with their weights.
    pub tables: BTreeMap<String, Vec<Route>>,
    /// Ports of each cluster's endpoints.
    pub services: BTreeMap<String, Vec<u16>>,
    /// More text in each cluster.
    pub cluster_extra: BTreeMap<String, String>,
    /// More text in each connection manager.
    pub manager_extra: String,
}

impl Mesh {
    /// One listener that sends everything to one service.
    pub fn simple(port: u16, endpoints: &[u16]) -> Mesh {
        let mut mesh = Mesh::default();
        mesh.listeners.insert("main".into(), port);
        mesh.tables.insert("main".into(), vec![("/".into(), vec![("web".into(), 1)])]);
        mesh.services.insert("web".into(), endpoints.to_vec());
        mesh
    }

    pub fn listener(&self, name: &str, port: u16) -> String {
        let extra = &self.manager_extra;
        format!(
            r#"
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: {name}
address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: {name}
      rds: {{ route_config_name: {name}, config_source: {{ resource_api_version: V3, ads: {{}} }} }}
      upgrade_configs: [{{ upgrade_type: websocket }}]
      http_filters:
      - name: router
        typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
{extra}
"#
        )
    }

    pub fn table(name: &str, routes: &[(String, Vec<(String, u32)>)]) -> String {
        let mut text = format!(
            "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: {name}\n\
             virtual_hosts:\n- name: all\n  domains: [\"*\"]\n  routes:\n"
        );
        for (prefix, clusters) in routes {
            text += &format!("  - match: {{ prefix: \"{prefix}\" }}\n    route:\n      timeout: 5s\n      weighted_clusters:\n        clusters:\n");
            for (cluster, weight) in clusters {
                text += &format!("        - {{ name: {cluster}, weight: {weight} }}\n");
            }
        }
        text
    }

    pub fn cluster(&self, name: &str) -> String {
        let extra = self.cluster_extra.get(name).map_or("", String::as_str);
        format!(
            r#"
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: {name}
type: EDS
connect_timeout: 1s
eds_cluster_config: {{ eds_config: {{ resource_api_version: V3, ads: {{}} }} }}
{extra}
"#
        )
    }

    pub fn endpoints(name: &str, ports: &[u16]) -> String {
        let mut text = format!(
            "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: {name}\nendpoints:\n- lb_endpoints:\n"
        );
        for port in ports {
            text += &format!("  - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}\n");
        }
        if ports.is_empty() {
            text = text.replace("endpoints:\n- lb_endpoints:\n", "");
        }
        text
    }

    /// Every resource as YAML.
    pub fn resources(&self) -> Vec<String> {
        let mut all = Vec::new();
        all.extend(self.services.keys().map(|name| self.cluster(name)));
        all.extend(self.services.iter().map(|(name, ports)| Mesh::endpoints(name, ports)));
        all.extend(self.tables.iter().map(|(name, routes)| Mesh::table(name, routes)));
        all.extend(self.listeners.iter().map(|(name, port)| self.listener(name, *port)));
        all
    }

    pub fn snapshot(&self) -> Snapshot {
        snapshot(&self.resources())
    }
}

/// A snapshot of resources in YAML, each with its `@type`.
pub fn snapshot(resources: &[String]) -> Snapshot {
    snapshot_of(&resources.iter().map(|text| value(text)).collect::<Vec<_>>())
}

/// A snapshot of resources in JSON.
pub fn snapshot_of(resources: &[serde_json::Value]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for value in resources {
        let loaded = load_resource(value).unwrap_or_else(|e| panic!("{value}: {e:?}"));
        snapshot.insert_any(loaded.any).expect("a resource with a name");
    }
    snapshot
}

fn value(yaml: &str) -> serde_json::Value {
    serde_yaml_ng::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"))
}

/// A control plane.
pub struct ControlPlane {
    pub cache: SnapshotCache,
    pub port: u16,
    /// Every refusal: type and text.
    pub refusals: Arc<Mutex<Vec<(String, String)>>>,
    task: JoinHandle<()>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlPlane {
    pub async fn start(mesh: &Mesh) -> ControlPlane {
        ControlPlane::on(0, mesh.snapshot()).await
    }

    /// On a port that must not change, for one that comes back.
    pub async fn on(port: u16, snapshot: Snapshot) -> ControlPlane {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a port");
        ControlPlane::over(listener, snapshot)
    }

    /// On a socket that listens already.
    pub fn over(listener: TcpListener, snapshot: Snapshot) -> ControlPlane {
        let cache = SnapshotCache::by_node_id();
        cache.set(NODE, snapshot);
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let seen = refusals.clone();
        let server = Server::new(cache.clone()).on_event(move |_, event| {
            if let Event::Nack { kind, nack } = event {
                seen.lock().expect("not poisoned").push((kind.to_string(), nack.message.clone()));
            }
        });
        let port = listener.local_addr().expect("its address").port();
        let task = tokio::spawn(async move {
            let _ = server.serve(listener).await;
        });
        ControlPlane { cache, port, refusals, task }
    }

    pub fn set(&self, mesh: &Mesh) {
        self.cache.set(NODE, mesh.snapshot());
    }

    pub fn refused(&self) -> Vec<(String, String)> {
        self.refusals.lock().expect("not poisoned").clone()
    }

    /// Waits until the one client has accepted or refused what is served now of this type.
    pub async fn settled(&self, kind: &ResourceType) -> bool {
        let version = self.cache.get(NODE).map(|snapshot| snapshot.version(kind));
        eventually(DEADLINE, || {
            let acked = self.cache.streams().iter().any(|stream| {
                stream.types.iter().any(|t| t.kind == *kind && Some(&t.version_acked) == version.as_ref())
            });
            std::future::ready(acked)
        })
        .await
    }
}

/// A bootstrap that takes everything from a control plane.
pub fn bootstrap(delta: bool) -> String {
    let kind = if delta { "DELTA_GRPC" } else { "GRPC" };
    format!(
        r#"
node: {{ id: {NODE}, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}
dynamic_resources:
  ads_config:
    api_type: {kind}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{ envoy_grpc: {{ cluster_name: control }} }}]
  cds_config: {{ resource_api_version: V3, ads: {{}} }}
  lds_config: {{ resource_api_version: V3, ads: {{}} }}
static_resources:
  clusters:
  - name: control
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: control
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @control@ }} }} }}
"#
    )
}
