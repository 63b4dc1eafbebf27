//! Services as Envoy's resources, in JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{json, Map, Value};

use super::{Endpoint, Mesh, Protocol, Service, Version};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.\
                       http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP_OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The listener and the route table that all services share.
const SHARED: &str = "services";

/// Each resource with the service that it belongs to.
pub(super) fn of(mesh: &Mesh) -> Vec<(String, Value)> {
    let mut made = Vec::new();
    let mut shared = Vec::new();
    for service in &mesh.services {
        let label = format!("service {:?}", service.name);
        let mut add = |resource| made.push((label.clone(), resource));
        for version in &service.versions {
            let inline = !version.endpoints.iter().all(Endpoint::is_ip);
            add(cluster(service, version, inline));
            if !inline {
                add(assignment(version, Some(ENDPOINTS)));
            }
        }
        if service.protocol == Protocol::Tcp {
            service.listen.iter().for_each(|address| add(tcp_listener(service, *address)));
            continue;
        }
        let own = own_name(service);
        if let Some(address) = service.listen {
            add(listener(&own, address));
            add(route_table(&own, &[virtual_host(service, &["*".to_owned()])]));
        }
        shared.push(virtual_host(service, &domains(service)));
        if service.protocol == Protocol::Grpc {
            let with_port = service.port.map(|port| format!("{}:{port}", service.name));
            for name in [service.name.clone()].into_iter().chain(with_port) {
                add(json!({
                    "@type": LISTENER, "name": name,
                    "api_listener": {"api_listener": manager(SHARED)}
                }));
            }
        }
    }
    if !shared.is_empty() {
        made.push((String::new(), listener(SHARED, mesh.listen)));
        made.push((String::new(), route_table(SHARED, &shared)));
    }
    made
}

fn own_name(service: &Service) -> String {
    format!("{SHARED}/{}", service.name)
}

fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

/// `null` fields are left out.
fn object(fields: Vec<(&str, Value)>) -> Value {
    let set = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(set.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

fn cluster(service: &Service, version: &Version, inline: bool) -> Value {
    let discovery = if inline {
        ("load_assignment", assignment(version, None))
    } else {
        ("eds_cluster_config", json!({"eds_config": ads()}))
    };
    let breakers = service.circuit_breakers.as_ref().map(|limits| {
        let limits: Map<_, _> =
            limits.iter().map(|(name, limit)| ((*name).to_owned(), json!(limit))).collect();
        json!({"thresholds": [limits]})
    });
    let outliers = service.outlier_detection.as_ref().map(|set| object(set.clone()));
    let check = service.health_check.as_ref().map(|check| {
        let kind = match &check.path {
            Some(path) => ("http_health_check", json!({"path": path})),
            None => ("tcp_health_check", json!({})),
        };
        let both = [("healthy_threshold", json!(1)), ("unhealthy_threshold", json!(2))];
        let times = [("interval", json!(check.interval)), ("timeout", json!(check.timeout)), kind];
        Value::Array(vec![object(times.into_iter().chain(both).collect())])
    });
    let http2 = matches!(service.protocol, Protocol::Http2 | Protocol::Grpc);
    let http = service.protocol != Protocol::Tcp && (http2 || service.idle_timeout.is_some());
    let options = http.then(|| {
        let version = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
        let idle = service.idle_timeout.as_ref().map(|time| json!({"idle_timeout": time}));
        json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object(vec![
            ("@type", json!(HTTP_OPTIONS)),
            ("common_http_protocol_options", json!(idle)),
            ("explicit_http_config", json!({version: {}})),
        ])})
    });
    object(vec![
        ("@type", json!(CLUSTER)),
        ("name", json!(version.cluster)),
        ("type", json!(if inline { "STRICT_DNS" } else { "EDS" })),
        discovery,
        ("connect_timeout", json!(service.connect_timeout)),
        ("lb_policy", json!(service.lb_policy.to_ascii_uppercase())),
        ("circuit_breakers", json!(breakers)),
        ("outlier_detection", json!(outliers)),
        ("health_checks", json!(check)),
        ("typed_extension_protocol_options", json!(options)),
    ])
}

/// Localities carry weights, which proxies need for locality-weighted balancing only, and gRPC always.
fn assignment(version: &Version, url: Option<&str>) -> Value {
    let mut localities: BTreeMap<(u64, &str), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in &version.endpoints {
        localities.entry((endpoint.priority, &endpoint.zone)).or_default().push(endpoint);
    }
    let locality = |((priority, zone), endpoints): ((u64, &str), Vec<&Endpoint>)| {
        let weight: u64 = endpoints.iter().map(|endpoint| endpoint.weight).sum();
        json!({
            "locality": {"zone": zone}, "priority": priority, "load_balancing_weight": weight,
            "lb_endpoints": endpoints.iter().map(|e| json!({
                "endpoint": {"address": socket(&e.host, e.port)},
                "load_balancing_weight": e.weight,
                "health_status": e.health.to_ascii_uppercase()
            })).collect::<Vec<_>>()
        })
    };
    let localities: Vec<Value> = localities.into_iter().map(locality).collect();
    object(vec![
        ("@type", json!(url)),
        ("cluster_name", json!(version.cluster)),
        ("endpoints", json!(localities)),
    ])
}

fn socket(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn manager(routes: &str) -> Value {
    json!({
        "@type": MANAGER, "stat_prefix": routes,
        "rds": {"route_config_name": routes, "config_source": ads()},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}]
    })
}

fn listener(name: &str, address: SocketAddr) -> Value {
    json!({
        "@type": LISTENER, "name": name, "address": socket(&address.ip().to_string(), address.port()),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager(name)
        }]}]
    })
}

fn tcp_listener(service: &Service, address: SocketAddr) -> Value {
    let own = own_name(service);
    let proxy = object(vec![
        ("@type", json!(TCP_PROXY)),
        ("stat_prefix", json!(own)),
        target(service),
        ("idle_timeout", json!(service.idle_timeout)),
    ]);
    json!({
        "@type": LISTENER, "name": own, "address": socket(&address.ip().to_string(), address.port()),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}]
    })
}

fn route_table(name: &str, hosts: &[Value]) -> Value {
    json!({"@type": ROUTE, "name": name, "virtual_hosts": hosts})
}

/// The host names that a service is found by.
pub(super) fn domains(service: &Service) -> Vec<String> {
    let mut domains = Vec::new();
    for host in [&service.name].into_iter().chain(&service.hosts) {
        domains.push(host.clone());
        if !host.ends_with('*') {
            let port = service.port.map(|port| port.to_string());
            // A wildcard may stand at one end only.
            if !host.starts_with('*') || port.is_some() {
                domains.push(format!("{host}:{}", port.as_deref().unwrap_or("*")));
            }
        }
    }
    domains
}

fn virtual_host(service: &Service, domains: &[String]) -> Value {
    let chosen = service.versions.iter().filter(|version| !version.headers.is_empty());
    let mut routes: Vec<Value> = chosen
        .map(|version| {
            let headers = version
                .headers
                .iter()
                .map(|(name, value)| json!({"name": name, "string_match": {"exact": value}}));
            let headers: Vec<Value> = headers.collect();
            let matched = json!({"prefix": "/", "headers": headers});
            json!({"match": matched, "route": action(service, ("cluster", json!(version.cluster)))})
        })
        .collect();
    routes.push(json!({"match": {"prefix": "/"}, "route": action(service, target(service))}));
    json!({"name": service.name, "domains": domains, "routes": routes})
}

/// The cluster, or the clusters with their weights.
fn target(service: &Service) -> (&'static str, Value) {
    match service.versions.as_slice() {
        [version] => ("cluster", json!(version.cluster)),
        versions => {
            // A weight of 0 gets nothing, and TCP refuses it.
            let used = versions.iter().filter(|version| version.weight > 0);
            let clusters: Vec<Value> =
                used.map(|version| json!({"name": version.cluster, "weight": version.weight})).collect();
            ("weighted_clusters", json!({ "clusters": clusters }))
        }
    }
}

fn action(service: &Service, target: (&'static str, Value)) -> Value {
    let retries = service.retries.as_ref().map(|retries| {
        object(vec![
            ("retry_on", json!(retries.on.join(","))),
            ("num_retries", json!(retries.attempts)),
            ("per_try_timeout", json!(retries.per_try_timeout)),
        ])
    });
    object(vec![target, ("timeout", json!(service.timeout)), ("retry_policy", json!(retries))])
}
