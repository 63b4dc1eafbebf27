//! A sidecar as Istio's agent starts it: its command line, the bootstrap that it writes, resources and secrets over Unix
//! sockets, the ports of dashboards and probes, and the admin pages that `istioctl` reads, beside the real Envoy's.

use std::collections::BTreeSet;
use std::path::Path;

use outrigger_control_api::server::{Server, SnapshotCache};
use serde_json::{json, Value};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use super::{exchange, structure, typed};
use crate::discovery::mesh::snapshot_of;
use crate::harness::client::get;
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use crate::tls::certs::{Certs, NOW};

/// What the agent starts its proxy with.
const ARGUMENTS: &[&str] = &[
    "--drain-time-s",
    "45",
    "--drain-strategy",
    "immediate",
    "--local-address-ip-version",
    "v4",
    "--file-flush-interval-msec",
    "1000",
    "--disable-hot-restart",
    "--allow-unknown-static-fields",
    "-l",
    "warning",
    "--skip-deprecated-logs",
];
const NODE: &str = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local";
const FILTERS: &str = "envoy.extensions.filters";

fn socket_address(port: &str) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn grpc_cluster(name: &str, path: &Path) -> Value {
    json!({"name": name, "alt_stat_name": format!("{name};"), "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            json!({"explicit_http_config": {"http2_protocol_options": {}}}))},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"pipe": {"path": path}}}}]}]}})
}

fn cluster(name: &str, port: &str) -> Value {
    json!({"name": name, "alt_stat_name": format!("{name};"), "type": "STATIC", "connect_timeout": "0.250s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket_address(port)}}]}]}})
}

/// A listener that passes one path on to a cluster.
fn page(name: &str, path: &str, cluster: &str) -> Value {
    let router = typed(&format!("{FILTERS}.http.router.v3.Router"), json!({}));
    let manager = json!({"stat_prefix": name, "codec_type": "AUTO", "http_filters": [{"name": "router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "backend", "domains": ["*"],
            "routes": [{"match": {"prefix": path}, "route": {"cluster": cluster}}]}]}});
    json!({"address": socket_address(&format!("@port:{name}@")), "bypass_overload_manager": true,
        "filter_chains": [{"filters": [{"name": "http",
            "typed_config": typed(&format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"), manager)}]}]})
}

/// The bootstrap, as the agent writes it. `foreign` has what only Istio's own build of Envoy knows.
fn bootstrap(sockets: &Path, foreign: bool) -> String {
    let monitor = typed(
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        json!({"max_active_downstream_connections": "2147483647"}),
    );
    let mut extensions = vec![json!({"name": "envoy.bootstrap.internal_listener", "typed_config": structure(
        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener", json!({"buffer_size_kb": 64}))})];
    if foreign {
        extensions.push(json!({"name": "metadata_discovery", "typed_config":
            structure("istio.workload.BootstrapExtension", json!({"config_source": {"ads": {}}}))}));
    }
    let zipkin = typed(
        "envoy.config.trace.v3.ZipkinConfig",
        json!({"collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans", "trace_id_128bit": true,
            "collector_endpoint_version": "HTTP_JSON", "shared_span_context": false}),
    );
    json!({
        "application_log_config": {"log_format": {"text_format": "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t"}},
        "node": {"id": NODE, "cluster": "web.shop", "locality": {}, "metadata": {
            "NAME": "web-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "web", "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": "1.30.0", "LABELS": {"app": "web"}, "ENVOY_PROMETHEUS_PORT": 15090, "ENVOY_STATUS_PORT": 15021,
            "PROXY_CONFIG": {"drainDuration": "45s", "statNameLength": 189}}},
        "layered_runtime": {"layers": [
            {"name": "global config", "static_layer": {
                "envoy.reloadable_features.http_reject_path_with_fragment": false, "re2.max_program_size.error_level": "32768"}},
            {"name": "admin", "admin_layer": {}}]},
        "bootstrap_extensions": extensions,
        "overload_manager": {"resource_monitors": [{"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": monitor}]},
        "stats_config": {"use_all_default_tags": false,
            "stats_tags": [{"tag_name": "cluster_name", "regex": "^cluster\\.((.+?(\\..+?\\.svc\\.cluster\\.local)?)\\.)"}],
            "stats_matcher": {"inclusion_list": {"patterns": [{"prefix": "reporter="}, {"prefix": "cluster_manager"},
                {"prefix": "listener_manager"}, {"prefix": "server"}, {"prefix": "cluster.xds-grpc"}, {"prefix": "wasm"},
                {"suffix": "rbac.allowed"}, {"safe_regex": {"regex": "vhost\\..*\\.route\\..*"}}, {"prefix": "component"},
                {"prefix": "istio"}]}}},
        "admin": {"profile_path": "/var/lib/istio/data/envoy.prof", "address": socket_address("@port:admin@"),
            "access_log": [{"name": "envoy.access_loggers.file", "typed_config":
                typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({"path": "/dev/null"}))}]},
        "dynamic_resources": {
            "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "ads_config": {"api_type": "DELTA_GRPC", "set_node_on_first_message_only": true, "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
        "cluster_manager": {"outlier_detection": {"event_log_path": "/dev/stdout"}, "enable_deferred_cluster_creation": true},
        "deferred_stat_options": {"enable_deferred_creation_stats": true},
        "static_resources": {
            "clusters": [cluster("prometheus_stats", "@port:admin@"), cluster("agent", "@agent@"),
                grpc_cluster("sds-grpc", &sockets.join("sds")), grpc_cluster("xds-grpc", &sockets.join("xds")),
                cluster("zipkin", "@agent@")],
            "listeners": [page("prometheus", "/stats/prometheus", "prometheus_stats"), page("health", "/healthz/ready", "agent")]},
        "tracing": {"http": {"name": "envoy.tracers.zipkin", "typed_config": zipkin}},
    })
    .to_string()
}

/// What the control plane sends: a listener that ends mutual TLS with secrets of the agent, and its cluster.
fn resources(port: u16, origin: u16, foreign: bool) -> Vec<Value> {
    let from_agent = json!({"resource_api_version": "V3", "initial_fetch_timeout": "0s", "api_config_source": {
        "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}]}});
    let tls = json!({"require_client_certificate": false, "common_tls_context": {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": from_agent}],
        "combined_validation_context": {"default_validation_context": {},
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": from_agent}}}});
    let router = json!({"name": "router", "typed_config": typed(&format!("{FILTERS}.http.router.v3.Router"), json!({}))});
    let stats = json!({"name": "istio.stats", "typed_config":
        structure("stats.PluginConfig", json!({"disable_host_header_fallback": true}))});
    let filters = if foreign { json!([stats, router]) } else { json!([router]) };
    let manager = json!({"stat_prefix": "inbound_0.0.0.0_9080;", "http_filters": filters,
        "tracing": {"client_sampling": {"value": 100}, "random_sampling": {"value": 1}, "overall_sampling": {"value": 100}},
        "route_config": {"name": "inbound|9080||", "validate_clusters": false, "virtual_hosts": [{"name": "inbound|http|9080",
            "domains": ["*"], "routes": [{"name": "default", "match": {"prefix": "/"},
                "decorator": {"operation": "web.shop.svc.cluster.local:9080/*"},
                "route": {"cluster": "inbound|9080||", "timeout": "0s", "max_stream_duration": {"max_stream_duration": "0s"}}}]}]}});
    let manager = json!({"name": "http", "typed_config":
        typed(&format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"), manager)});
    let chain = |name: &str, matched: Value, socket: Option<Value>| {
        let mut chain = json!({"name": name, "filter_chain_match": matched, "filters": [manager]});
        if let Some(socket) = socket {
            chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config":
                typed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", socket)});
        }
        chain
    };
    let inspector = typed(&format!("{FILTERS}.listener.tls_inspector.v3.TlsInspector"), json!({}));
    let mut own = json!({"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "inbound|9080||", "type": "STATIC",
        "alt_stat_name": "inbound|9080||;", "connect_timeout": "10s", "metadata": {"filter_metadata": {"istio": {"services": [
            {"host": "web.shop.svc.cluster.local", "name": "web", "namespace": "shop"}]}}},
        "load_assignment": {"cluster_name": "inbound|9080||", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": origin}}}}]}]}});
    if foreign {
        own["filters"] = json!([{"name": "istio.metadata_exchange", "typed_config": exchange()}]);
    }
    vec![
        json!({"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "virtualInbound",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}, "traffic_direction": "INBOUND",
            "continue_on_listener_filters_timeout": true, "listener_filters_timeout": "0s",
            "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}],
            "filter_chains": [chain("tls", json!({"transport_protocol": "tls"}), Some(tls)),
                chain("plain", json!({"transport_protocol": "raw_buffer"}), None)]}),
        own,
    ]
}

/// Secrets as the agent hands them out.
fn secrets(certs: &Certs) -> Vec<Value> {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let identity = "spiffe://cluster.local/ns/shop/sa/web";
    let (chain, key) = certs.ca.issue("web", identity, &["web.test"], NOW, 21);
    vec![
        json!({"@type": kind, "name": "default", "tls_certificate": {
            "certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}}),
        json!({"@type": kind, "name": "ROOTCA", "validation_context": {"trusted_ca": {"inline_string": certs.ca.pem()}}}),
    ]
}

/// Serves `resources` to the sidecar at `path`.
fn serve(path: &Path, resources: &[Value]) -> AbortHandle {
    let cache = SnapshotCache::by_node_id();
    cache.set(NODE, snapshot_of(resources));
    let listener = UnixListener::bind(path).expect("a Unix socket");
    let server = Server::new(cache);
    tokio::spawn(async move { server.serve_unix(listener).await }).abort_handle()
}

struct Sidecar {
    proxy: Proxy,
    port: u16,
    certs: Certs,
    served: [AbortHandle; 2],
    _agent: Origin,
    _origin: Origin,
    _sockets: tempfile::TempDir,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.served.iter().for_each(AbortHandle::abort);
    }
}

impl Sidecar {
    async fn start(kind: Kind, foreign: bool) -> Sidecar {
        let sockets = tempfile::tempdir().expect("a directory");
        let certs = Certs::new();
        let origin = Origin::with(true, |_| Answer::ok("hello")).await;
        let agent = Origin::with(true, |_| Answer::ok("ready")).await;
        let port = free_port();
        let served = [
            serve(&sockets.path().join("xds"), &resources(port, origin.port(), foreign)),
            serve(&sockets.path().join("sds"), &secrets(&certs)),
        ];
        let template = bootstrap(sockets.path(), foreign);
        let values = [("agent", agent.port().to_string())];
        // Envoys of tests are given two of them anyway.
        let given = ["--disable-hot-restart", "-l", "warning"];
        let wanted = |argument: &&&str| kind == Kind::Outrigger || !given.contains(argument);
        let arguments: Vec<&str> = ARGUMENTS.iter().filter(wanted).copied().collect();
        let plan = Plan { arguments: &arguments, ..Plan::new(kind, &template, &values) };
        let proxy = Proxy::start(plan).await;
        Sidecar { proxy, port, certs, served, _agent: agent, _origin: origin, _sockets: sockets }
    }

    async fn serves(&self) -> bool {
        eventually(DEADLINE, || async {
            get(self.port, "/").await.is_ok_and(|answer| answer.text() == "hello")
        })
        .await
    }
}

#[tokio::test]
async fn a_sidecar_boots_as_the_agent_starts_it() {
    let sidecar = Sidecar::start(Kind::Outrigger, true).await;
    assert!(sidecar.serves().await, "{}", sidecar.proxy.output());
    // The workload's certificate, which came by its own socket.
    let peer = super::peer_of(sidecar.port, &sidecar.certs).await;
    assert_eq!(peer, "spiffe://cluster.local/ns/shop/sa/web");
    // What Prometheus scrapes, and what kubelet asks.
    let scraped = get(sidecar.proxy.port("prometheus"), "/stats/prometheus").await.expect("an answer").text();
    let line = scraped.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap_or_default();
    for label in
        [r#"reporter="destination""#, r#"destination_service_name="web""#, r#"destination_workload="web""#]
    {
        assert!(line.contains(label), "{label} in {line:?}");
    }
    assert!(scraped.contains("envoy_server_live"), "{scraped}");
    assert!(!scraped.contains("envoy_http_"), "statistics that the matcher leaves out are not shown");
    let ready = get(sidecar.proxy.port("health"), "/healthz/ready").await.expect("an answer");
    assert_eq!((ready.status(), ready.text().as_str()), (200, "ready"));
    // How the agent finds out that the proxy is up.
    let page = sidecar
        .proxy
        .admin("/stats?usedonly&filter=%5E(server.state%7Clistener_manager.workers_started)")
        .await;
    assert!(
        page.contains("server.state: 0") && page.contains("listener_manager.workers_started: 1"),
        "{page}"
    );
}

/// The names of all fields in `value`, each with its way; entries of lists share one.
fn fields(value: &Value, way: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                let way = format!("{way}.{name}");
                fields(value, &way, found);
                found.insert(way);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| fields(value, &format!("{way}[]"), found)),
        _ => {}
    }
}

/// Pages that `istioctl proxy-config` and `proxy-status` read have the fields that Envoy gives them.
#[tokio::test]
async fn admin_pages_have_the_fields_of_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) =
        tokio::join!(Sidecar::start(Kind::Envoy, false), Sidecar::start(Kind::Outrigger, false));
    let mut text = String::new();
    for sidecar in [&theirs, &ours] {
        assert!(sidecar.serves().await, "{}", sidecar.proxy.output());
    }
    // Which extensions were built in, and of which build, is Envoy's own; `istioctl` reads endpoints at `/clusters`. What
    // else differs is in docs/differences.md.
    let own = |fields: &[&str]| fields.iter().map(|field| format!(".configs[]{field}")).collect::<Vec<_>>();
    let bootstrap = own(&[
        ".bootstrap.node.extensions",
        ".bootstrap.node.user_agent_build_version",
        ".bootstrap.node.user_agent_name",
        ".bootstrap.bootstrap_extensions[].typed_config.",
        ".static_route_configs[].route_config.",
        ".dynamic_active_clusters[].client_status",
        ".dynamic_active_secrets[].client_status",
        ".dynamic_listeners[].client_status",
        ".dynamic_listeners[].active_state.client_status",
    ]);
    let endpoints = own(&[
        ".static_endpoint_configs[].endpoint_config",
        ".static_endpoint_configs[].last_updated",
        ".dynamic_endpoint_configs",
    ]);
    let endpoints = [bootstrap.clone(), endpoints].concat();
    let status = own(&[".client_status", ".active_state.client_status"]);
    let server = [".command_line_options.".to_owned(), ".node.".to_owned()];
    for (page, excepted) in [
        ("/config_dump", &bootstrap[..]),
        ("/config_dump?include_eds", &endpoints),
        ("/config_dump?resource=dynamic_listeners", &status),
        ("/config_dump?resource=dynamic_active_clusters", &status),
        ("/config_dump?resource=dynamic_active_secrets", &status),
        ("/config_dump?mask=bootstrap", &bootstrap),
        ("/clusters?format=json", &[]),
        ("/listeners?format=json", &[]),
        ("/stats?format=json", &[]),
        ("/server_info", &server),
        ("/certs", &[]),
        ("/runtime", &[]),
        ("/memory", &[]),
    ] {
        let mut all = Vec::new();
        for sidecar in [&theirs, &ours] {
            let text = sidecar.proxy.admin(page).await;
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{page}: {error}: {text}"));
            let mut found = BTreeSet::new();
            fields(&value, "", &mut found);
            found.retain(|way| !excepted.iter().any(|excepted| way.starts_with(excepted.as_str())));
            all.push(found);
        }
        for (name, one, other) in [("Envoy", &all[0], &all[1]), ("Outrigger", &all[1], &all[0])] {
            one.difference(other).for_each(|way| text += &format!("{page}: only {name}: {way}\n"));
        }
    }
    assert!(text.is_empty(), "{text}");
}
