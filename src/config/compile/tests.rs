//! Rules of the compiler: for each, a bootstrap that breaks it, and the one problem that results.

use std::time::Duration;

use outrigger_control_api::load_value;
use serde_json::{json, Value};

use super::bootstrap::{CompiledBootstrap, NodeOptions};
use crate::config::cluster::{Address, Discovery, DnsFamily, LbPolicy};
use crate::config::http::{
    Codec, EscapedSlashes, HeaderCase, HttpConnectionManager, ServerHeader, StripPort,
};
use crate::config::listener::{Direction, Terminal};
use crate::config::Cluster;

const HCM: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const HCM_PATH: &str = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";

fn typed(name: &str) -> String {
    format!("type.googleapis.com/envoy.{name}")
}

fn router() -> Value {
    json!({"name": "router", "typed_config": {"@type": typed("extensions.filters.http.router.v3.Router")}})
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({"name": "tcp", "typed_config": {
        "@type": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "tcp", "cluster": cluster}})
}

/// One listener with a connection manager, one cluster with one endpoint, an admin port.
fn base() -> Value {
    json!({
        "node": {"id": "n", "cluster": "k"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        "static_resources": {
            "listeners": [{
                "name": "ingress",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
                "filter_chains": [{"filters": [{
                    "name": "http",
                    "typed_config": {
                        "@type": typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                        "stat_prefix": "ingress",
                        "route_config": {
                            "name": "routes",
                            "virtual_hosts": [{
                                "name": "all", "domains": ["*"],
                                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin"}}],
                            }],
                        },
                        "http_filters": [router()],
                    },
                }]}],
            }],
            "clusters": [{
                "name": "origin",
                "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": "origin",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                        "socket_address": {"address": "127.0.0.1", "port_value": 8081}}}}]}],
                },
            }],
        },
    })
}

/// Sets the value at a JSON pointer, making the last step; `null` removes it.
fn set(bootstrap: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let parent = bootstrap.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match (parent, value) {
        (Value::Object(fields), Value::Null) => assert!(fields.shift_remove(last).is_some(), "{pointer}"),
        (Value::Object(fields), value) => drop(fields.insert(last.to_owned(), value)),
        (Value::Array(items), value) if last == "-" => items.push(value),
        (Value::Array(items), value) => items[last.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
}

fn try_compile(bootstrap: &Value) -> Result<CompiledBootstrap, Vec<String>> {
    let text = |problems: Vec<_>| problems.iter().map(ToString::to_string).collect::<Vec<String>>();
    let loaded = load_value(bootstrap).map_err(text)?;
    super::bootstrap(&loaded, &NodeOptions::default()).map_err(text)
}

/// The base with changes.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut bootstrap = base();
    for (pointer, value) in changes {
        set(&mut bootstrap, pointer, value.clone());
    }
    bootstrap
}

fn compiled(changes: &[(&str, Value)]) -> CompiledBootstrap {
    try_compile(&with(changes)).unwrap()
}

/// The bootstrap with these changes is refused with exactly this problem.
#[track_caller]
fn refuses(changes: &[(&str, Value)], expected: &str) {
    assert_eq!(try_compile(&with(changes)).unwrap_err(), [expected]);
}

#[track_caller]
fn refuses_cluster(changes: Value, expected: &str) {
    refuses(&cluster_changes(&changes), &format!("static_resources.clusters[0].{expected}"));
}

#[track_caller]
fn refuses_listener(changes: Value, expected: &str) {
    let Value::Object(changes) = changes else { panic!() };
    let pointers: Vec<_> = changes.keys().map(|key| format!("/static_resources/listeners/0/{key}")).collect();
    let changes: Vec<_> = pointers.iter().map(String::as_str).zip(changes.into_values()).collect();
    refuses(&changes, &format!("static_resources.listeners[0].{expected}"));
}

#[track_caller]
fn refuses_hcm(changes: Value, expected: &str) {
    let changes = hcm_changes(&changes);
    let changes: Vec<_> = changes.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    refuses(&changes, &format!("{HCM_PATH}.{expected}"));
}

fn hcm_changes(changes: &Value) -> Vec<(String, Value)> {
    let Value::Object(changes) = changes else { panic!() };
    changes.iter().map(|(key, value)| (format!("{HCM}/{key}"), value.clone())).collect()
}

fn cluster_changes(changes: &Value) -> Vec<(&'static str, Value)> {
    let mut cluster = base().pointer("/static_resources/clusters/0").unwrap().clone();
    let Value::Object(changes) = changes else { panic!() };
    for (key, value) in changes {
        set(&mut cluster, &format!("/{key}"), value.clone());
    }
    vec![("/static_resources/clusters/0", cluster)]
}

fn cluster(changes: Value) -> std::sync::Arc<Cluster> {
    let compiled = compiled(&cluster_changes(&changes));
    let slot = compiled.clusters.find("origin").unwrap();
    slot.get().unwrap()
}

fn hcm(changes: Value) -> std::sync::Arc<HttpConnectionManager> {
    let changes = hcm_changes(&changes);
    let changes: Vec<_> = changes.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    let compiled = compiled(&changes);
    match &compiled.listeners[0].chains[0].terminal {
        Terminal::Http(hcm) => hcm.clone(),
        other => panic!("{other:?}"),
    }
}

fn endpoint(address: &str, port: u32) -> Value {
    json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}})
}

fn assignment(endpoints: &[Value]) -> Value {
    json!({"cluster_name": "origin", "endpoints": [{"lb_endpoints": endpoints}]})
}

mod bootstrap {
    use super::*;

    #[test]
    fn the_base_compiles() {
        let compiled = compiled(&[]);
        assert_eq!(compiled.warnings, []);
        assert_eq!(compiled.admin.unwrap().address.to_string(), "127.0.0.1:9901");
        assert_eq!((compiled.node.id.as_str(), compiled.node.cluster.as_str()), ("n", "k"));
        assert!(compiled.routes.find("ingress/routes").unwrap().get().is_some());
        let dump = compiled.dump.to_json();
        assert_eq!(dump["configs"][0]["bootstrap"]["node"]["id"], "n");
        assert_eq!(dump["configs"][1]["static_clusters"][0]["cluster"]["name"], "origin");
        assert_eq!(dump["configs"][2]["static_listeners"][0]["listener"]["name"], "ingress");
    }

    #[test]
    fn an_empty_bootstrap_compiles() {
        let compiled = try_compile(&json!({})).unwrap();
        assert!(compiled.listeners.is_empty() && compiled.admin.is_none());
    }

    #[test]
    fn discovery_is_refused() {
        let ads = json!({"ads": {}});
        let changes = [("/dynamic_resources", json!({"cds_config": ads, "lds_config": ads}))];
        let problems = try_compile(&with(&changes)).unwrap_err();
        let mut problems: Vec<_> = problems.iter().map(String::as_str).collect();
        problems.sort_unstable();
        assert_eq!(
            problems,
            [
                "dynamic_resources.cds_config: discovery from a control plane is not supported yet",
                "dynamic_resources.lds_config: discovery from a control plane is not supported yet",
            ]
        );
    }

    #[test]
    fn each_missing_required_field_is_one_problem() {
        for (pointer, expected) in [
            ("/static_resources/clusters/0/name", "static_resources.clusters[0].name: is empty"),
            (
                "/static_resources/clusters/0/load_assignment/cluster_name",
                "static_resources.clusters[0].load_assignment.cluster_name: is empty",
            ),
            (
                "/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints/0/endpoint",
                "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint: is required",
            ),
            (
                "/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address",
                "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: \
                 is required",
            ),
            ("/static_resources/listeners/0/address", "static_resources.listeners[0].address: is required"),
            (
                "/static_resources/listeners/0/address/socket_address/address",
                "static_resources.listeners[0].address.socket_address.address: is empty",
            ),
            (
                "/static_resources/listeners/0/address/socket_address/port_value",
                "static_resources.listeners[0].address.socket_address.port_specifier: is required: \
                 one of port_value, named_port",
            ),
            (
                "/static_resources/listeners/0/filter_chains",
                "static_resources.listeners[0].filter_chains: is empty: a listener needs a filter chain",
            ),
            (
                "/static_resources/listeners/0/filter_chains/0/filters/0/name",
                "static_resources.listeners[0].filter_chains[0].filters[0].name: is empty",
            ),
            (
                "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config",
                "static_resources.listeners[0].filter_chains[0].filters[0].typed_config: is required",
            ),
        ] {
            refuses(&[(pointer, Value::Null)], expected);
        }
        for (field, expected) in [
            ("stat_prefix", "stat_prefix: is empty"),
            ("http_filters", "http_filters: must end with the router (envoy.filters.http.router)"),
            ("route_config", "route_specifier: is required: one of rds, route_config, scoped_routes"),
            ("http_filters/0/name", "http_filters[0].name: is empty"),
            ("http_filters/0/typed_config", "http_filters[0].typed_config: is required"),
        ] {
            refuses_hcm(json!({field: null}), expected);
        }
    }

    #[test]
    fn all_problems_come_at_once() {
        let problems = try_compile(&with(&[
            ("/static_resources/clusters/0/connect_timeout", json!("0s")),
            ("/static_resources/listeners/0/filter_chains", json!([])),
            ("/static_resources/clusters/0/health_checks", json!([{}])),
        ]))
        .unwrap_err();
        assert_eq!(
            problems,
            [
                "static_resources.clusters[0].health_checks: health checking is not supported yet",
                "static_resources.clusters[0].connect_timeout: is 0s, must be greater than 0s",
                "static_resources.listeners[0].filter_chains: is empty: a listener needs a filter chain",
            ]
        );
    }

    #[test]
    fn observed_fields_are_warned_about_once() {
        let endpoint =
            json!({"metadata": {"filter_metadata": {}}, "endpoint": endpoint("10.0.0.1", 1)["endpoint"]});
        let compiled = compiled(&cluster_changes(
            &json!({"load_assignment": assignment(&[endpoint.clone(), endpoint.clone(), endpoint])}),
        ));
        assert_eq!(
            compiled.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].metadata: \
              metadata is not used yet (and 2 more)"]
        );
    }

    #[test]
    fn runtime_layers_are_flattened_and_later_ones_win() {
        let layers = json!({"layers": [
            {"name": "a", "static_layer": {"upstream": {"healthy_panic_threshold": 10}, "x": {"numerator": 3}}},
            {"name": "b", "static_layer": {"upstream.healthy_panic_threshold": 20,
                "circuit_breakers.origin.default.max_requests": 7}},
            {"name": "c", "admin_layer": {}},
        ]});
        let compiled = compiled(&[("/layered_runtime", layers)]);
        assert_eq!(compiled.runtime.layers(), ["a", "b", "c"]);
        let cluster = compiled.clusters.find("origin").unwrap().get().unwrap();
        assert_eq!(cluster.panic_threshold, 20);
        assert_eq!(cluster.breakers[0].requests.max(), 7);
        assert_eq!(cluster.breakers[1].requests.max(), 1024);
        assert_eq!(compiled.warnings[0].message, "the runtime key x is not used");
    }

    #[test]
    fn duplicates_are_refused() {
        let cluster = base()["static_resources"]["clusters"][0].clone();
        refuses(
            &[("/static_resources/clusters/-", cluster)],
            "static_resources.clusters[1].name: duplicate cluster \"origin\"",
        );
        let mut listener = base()["static_resources"]["listeners"][0].clone();
        listener["address"]["socket_address"]["port_value"] = json!(1);
        refuses(
            &[("/static_resources/listeners/-", listener.clone())],
            "static_resources.listeners[1].name: duplicate listener \"ingress\"",
        );
        listener["address"]["socket_address"]["port_value"] = json!(8080);
        listener["name"] = json!("other");
        refuses(
            &[("/static_resources/listeners/-", listener)],
            "static_resources.listeners[1].address: 127.0.0.1:8080 is the address of the listener \"ingress\" too",
        );
    }

    #[test]
    fn extensions_of_another_kind_are_refused() {
        refuses_hcm(
            json!({"http_filters/0/typed_config": tcp_proxy("origin")["typed_config"]}),
            "http_filters[0].typed_config: the HTTP filter router \
             (envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy) is not supported yet",
        );
        refuses_listener(
            json!({"filter_chains/0/filters/0": router()}),
            "filter_chains[0].filters[0].typed_config: the network filter router \
             (envoy.extensions.filters.http.router.v3.Router) is not supported yet",
        );
    }
}

mod clusters {
    use super::*;

    #[test]
    fn defaults_are_envoys() {
        let cluster = cluster(json!({"connect_timeout": null}));
        assert_eq!(cluster.discovery, Discovery::Static);
        assert_eq!(cluster.lb_policy, LbPolicy::RoundRobin);
        assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
        assert_eq!(cluster.per_connection_buffer_limit, 1 << 20);
        let breakers = &cluster.breakers[0];
        let limits = [&breakers.connections, &breakers.pending, &breakers.requests, &breakers.retries];
        assert_eq!(limits.map(crate::config::cluster::Limit::max), [1024, 1024, 1024, 3]);
        assert_eq!(breakers.pools.max(), u32::MAX);
        assert_eq!((cluster.panic_threshold, cluster.overprovisioning), (50, 140));
        assert_eq!(cluster.http.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(cluster.tcp_idle_timeout, Some(Duration::from_secs(600)));
        assert!(cluster.http.http1.allow_absolute_url);
        let hosts = cluster.hosts.load();
        assert_eq!(hosts.all.len(), 1);
        assert_eq!(&*hosts.all[0].address_text, "127.0.0.1:8081");
        assert_eq!(hosts.all[0].template.weight, 1);
    }

    #[test]
    fn first_threshold_of_a_priority_wins() {
        let cluster = cluster(json!({"circuit_breakers": {
            "thresholds": [
                {"max_connections": 1, "retry_budget": {"budget_percent": {"value": 25}}},
                {"max_connections": 2},
                {"priority": "HIGH", "max_retries": 9, "retry_budget": {}},
            ],
            "per_host_thresholds": [{"max_connections": 4}],
        }}));
        assert_eq!(cluster.breakers[0].connections.max(), 1);
        let budget = cluster.breakers[0].retry_budget.unwrap();
        assert_eq!((budget.percent, budget.min_concurrency), (25.0, 3));
        assert_eq!(cluster.breakers[0].per_host_connections, Some(4));
        assert_eq!(cluster.breakers[1].retries.max(), 9);
        assert_eq!(cluster.breakers[1].retry_budget, None);
    }

    #[test]
    fn dns_options() {
        let cluster = cluster(json!({
            "type": "LOGICAL_DNS",
            "load_assignment": assignment(&[endpoint("origin.test", 80)]),
            "dns_lookup_family": "V4_PREFERRED",
            "dns_refresh_rate": "30s",
            "dns_failure_refresh_rate": {"base_interval": "1s"},
            "respect_dns_ttl": true,
            "typed_dns_resolver_config": {"name": "cares", "typed_config": {
                "@type": typed("extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"),
                "resolvers": [{"socket_address": {"address": "10.0.0.53", "port_value": 53}}],
                "dns_resolver_options": {"use_tcp_for_dns_lookups": true},
            }},
        }));
        let Discovery::LogicalDns(dns) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
        assert_eq!((&*dns.names[0].host, dns.names[0].port), ("origin.test", 80));
        assert_eq!(&*dns.names[0].template.hostname, "origin.test");
        assert_eq!(dns.family, DnsFamily::V4Preferred);
        assert_eq!(dns.refresh, Duration::from_secs(30));
        assert_eq!(dns.failure_refresh, Some((Duration::from_secs(1), Duration::from_secs(10))));
        assert!(dns.respect_ttl && dns.tcp && !dns.no_search_domain);
        assert_eq!(dns.resolvers, ["10.0.0.53:53".parse().unwrap()]);
    }

    #[test]
    fn the_dns_cluster_extension_is_the_same() {
        let kind = json!({"name": "dns", "typed_config": {
            "@type": typed("extensions.clusters.dns.v3.DnsCluster"),
            "dns_refresh_rate": "7s", "dns_lookup_family": "V6_ONLY"}});
        let cluster = cluster(json!({
            "cluster_type": kind, "load_assignment": assignment(&[endpoint("a", 1), endpoint("b", 2)])}));
        let Discovery::StrictDns(dns) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
        assert_eq!(
            (dns.names.len(), dns.refresh, dns.family),
            (2, Duration::from_secs(7), DnsFamily::V6Only)
        );
    }

    #[test]
    fn original_destination() {
        let cluster = cluster(json!({
            "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "load_assignment": null,
            "original_dst_lb_config": {"use_http_header": true, "upstream_port_override": 81}, "cleanup_interval": "9s",
        }));
        let Discovery::OriginalDst { header, port_override } = &cluster.discovery else { panic!() };
        assert_eq!(header.as_ref().unwrap().name(), "x-envoy-original-dst-host");
        assert_eq!(*port_override, Some(81));
        assert_eq!(cluster.lb_policy, LbPolicy::ClusterProvided);
        assert_eq!(cluster.cleanup_interval, Duration::from_secs(9));
        refuses_cluster(
            json!({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}),
            "load_assignment: an ORIGINAL_DST cluster takes no endpoints",
        );
        refuses_cluster(
            json!({"type": "ORIGINAL_DST", "load_assignment": null}),
            "lb_policy: an ORIGINAL_DST cluster needs CLUSTER_PROVIDED",
        );
        refuses_cluster(
            json!({"lb_policy": "CLUSTER_PROVIDED"}),
            "lb_policy: CLUSTER_PROVIDED is only for ORIGINAL_DST clusters",
        );
    }

    #[test]
    fn the_first_supported_policy_wins() {
        let entry = |name: &str, more: Value| {
            let mut config = more;
            config["@type"] = json!(typed(&format!("extensions.load_balancing_policies.{name}")));
            json!({"typed_extension_config": {"name": name, "typed_config": config}})
        };
        let maglev = entry("maglev.v3.Maglev", json!({}));
        let least = entry("least_request.v3.LeastRequest", json!({"choice_count": 5}));
        let random = entry("random.v3.Random", json!({}));
        let chosen = cluster(json!({"load_balancing_policy": {"policies": [maglev, least, random]}}));
        assert_eq!(chosen.lb_policy, LbPolicy::LeastRequest { choice_count: 5, active_request_bias: 1.0 });
        refuses_cluster(
            json!({"load_balancing_policy": {"policies": [maglev]}}),
            "load_balancing_policy.policies: none of these policies is supported: \
             envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
        );
        let slow =
            entry("round_robin.v3.RoundRobin", json!({"slow_start_config": {"slow_start_window": "1s"}}));
        refuses_cluster(
            json!({"load_balancing_policy": {"policies": [slow]}}),
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.slow_start_config: \
             slow start is not supported yet",
        );
        refuses_cluster(
            json!({"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}),
            "load_balancing_policy: is required with lb_policy LOAD_BALANCING_POLICY_CONFIG",
        );
        refuses_cluster(
            json!({"lb_policy": "RING_HASH"}),
            "lb_policy: consistent hashing is not supported yet",
        );
        refuses_cluster(
            json!({"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 1}}),
            "least_request_lb_config.choice_count: is 1, must be at least 2",
        );
    }

    #[test]
    fn protocol_options() {
        let options = |config: Value| {
            json!({"typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": config,
                "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions": {
                    "@type": typed("extensions.upstreams.tcp.v3.TcpProtocolOptions"), "idle_timeout": "0s"},
            }})
        };
        let kind = typed("extensions.upstreams.http.v3.HttpProtocolOptions");
        let common = json!({"idle_timeout": "3s", "max_requests_per_connection": 4});
        let cluster = cluster(options(json!({
            "@type": kind, "common_http_protocol_options": common,
            "explicit_http_config": {"http_protocol_options": {"header_key_format": {"proper_case_words": {}}}},
        })));
        assert_eq!(cluster.http.idle_timeout, Some(Duration::from_secs(3)));
        assert_eq!(cluster.http.max_requests_per_connection, 4);
        assert_eq!(cluster.http.http1.header_case, HeaderCase::Proper);
        assert_eq!(cluster.tcp_idle_timeout, None);
        const AT: &str =
            "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"]";
        refuses_cluster(
            options(json!({"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}})),
            &format!(
                "{AT}.explicit_http_config.http2_protocol_options: HTTP/2 upstream is not supported yet"
            ),
        );
        refuses_cluster(
            options(json!({"@type": kind})),
            &format!(
                "{AT}.upstream_protocol_options: is required: one of explicit_http_config, \
                 use_downstream_protocol_config, auto_config"
            ),
        );
    }

    #[test]
    fn socket_options() {
        let cluster = cluster(json!({
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30, "keepalive_probes": 4}},
            "upstream_bind_config": {"source_address": {"address": "127.0.0.2", "port_value": 0}},
        }));
        let keepalive = cluster.socket.keepalive.unwrap();
        assert_eq!(
            (keepalive.time, keepalive.probes, keepalive.interval),
            (Some(Duration::from_secs(30)), Some(4), None)
        );
        assert_eq!(cluster.socket.source_address, Some("127.0.0.2:0".parse().unwrap()));
    }

    #[test]
    fn wrong_clusters_are_refused() {
        for (changes, expected) in [
            (json!({"connect_timeout": "0s"}), "connect_timeout: is 0s, must be greater than 0s"),
            (json!({"type": "EDS", "load_assignment": null}),
             "type: endpoint discovery from a control plane is not supported yet"),
            (json!({"load_assignment": assignment(&[endpoint("localhost", 80)])}),
             "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \"localhost\" is \
              not an IP address; a cluster with host names needs type STRICT_DNS or LOGICAL_DNS"),
            (json!({"load_assignment": assignment(&[endpoint("127.0.0.1", 70000)])}),
             "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: \
              is 70000, must be at most 65535"),
            (json!({"type": "LOGICAL_DNS", "load_assignment": assignment(&[endpoint("a", 1), endpoint("b", 2)])}),
             "load_assignment.endpoints: a LOGICAL_DNS cluster needs exactly one endpoint, this has 2"),
            (json!({"outlier_detection": {}}), "outlier_detection: outlier detection is not supported yet"),
            (json!({"transport_socket": {"name": "tls", "typed_config": {
                "@type": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext")}}}),
             "transport_socket.typed_config: TLS to upstreams is not supported yet"),
            (json!({"type": "STRICT_DNS", "dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"},
                "load_assignment": assignment(&[endpoint("a", 1)])}),
             "dns_failure_refresh_rate.max_interval: is 1s, must not be less than base_interval (2s)"),
            (json!({"dns_refresh_rate": "0.001s"}), "dns_refresh_rate: is 0.001s, must be greater than 0.001s"),
            (json!({"circuit_breakers": {"per_host_thresholds": [{"max_requests": 1}]}}),
             "circuit_breakers.per_host_thresholds[0]: only max_connections can be limited per host"),
            (json!({"common_lb_config": {"healthy_panic_threshold": {"value": 101}}}),
             "common_lb_config.healthy_panic_threshold.value: is 101, must be at most 100"),
            (json!({"preconnect_policy": {}}), "preconnect_policy: connecting ahead is not supported"),
            (json!({"lb_subset_config": {}}), "lb_subset_config: subset load balancing is not supported yet"),
            (json!({"lb_policy": "ROUND_ROBIN", "round_robin_lb_config": {"slow_start_config": {}}}),
             "round_robin_lb_config.slow_start_config: slow start is not supported yet"),
        ] {
            refuses_cluster(changes, expected);
        }
        let heavy = json!({"load_balancing_weight": 0, "endpoint": endpoint("10.0.0.1", 1)["endpoint"]});
        refuses_cluster(
            json!({"load_assignment": assignment(&[heavy])}),
            "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight: is 0, must be at least 1",
        );
        refuses_cluster(
            json!({"load_assignment/endpoints/0/priority": 129}),
            "load_assignment.endpoints[0].priority: is 129, must be at most 128",
        );
    }

    #[test]
    fn gaps_in_priorities_are_accepted_as_by_envoy() {
        let cluster = cluster(json!({"load_assignment/endpoints/0/priority": 2}));
        assert_eq!(cluster.hosts.load().priorities.len(), 3);
    }
}

mod listeners {
    use super::*;

    fn listener(changes: Value) -> std::sync::Arc<crate::config::listener::Listener> {
        let Value::Object(changes) = changes else { panic!() };
        let pointers: Vec<_> =
            changes.keys().map(|key| format!("/static_resources/listeners/0/{key}")).collect();
        let changes: Vec<_> = pointers.iter().map(String::as_str).zip(changes.into_values()).collect();
        compiled(&changes).listeners[0].clone()
    }

    #[test]
    fn defaults_are_envoys() {
        let listener = listener(json!({}));
        assert_eq!((&*listener.name, listener.bind_to_port, listener.reuse_port), ("ingress", true, true));
        assert_eq!(listener.listener_filters_timeout, Some(Duration::from_secs(15)));
        assert_eq!(listener.per_connection_buffer_limit, 1 << 20);
        assert_eq!(listener.direction, Direction::Unspecified);
        assert!(!listener.ipv4_compat && listener.backlog > 0);
    }

    #[test]
    fn options() {
        let listener = listener(json!({
            "name": null, "traffic_direction": "INBOUND", "bind_to_port": false, "tcp_backlog_size": 7,
            "listener_filters_timeout": "0s", "address": {"pipe": {"path": "/run/x.sock", "mode": 0o600}},
            "listener_filters": [
                {"name": "tls", "typed_config": {"@type": typed("extensions.filters.listener.tls_inspector.v3.TlsInspector")}},
                {"name": "dst", "typed_config": {"@type": typed("extensions.filters.listener.original_dst.v3.OriginalDst")}},
            ],
        }));
        assert_eq!(&*listener.name, "/run/x.sock");
        assert_eq!(
            (listener.address.clone(), listener.pipe_mode),
            (Address::Pipe("/run/x.sock".into()), 0o600)
        );
        assert_eq!(listener.direction, Direction::Inbound);
        assert_eq!(
            (listener.bind_to_port, listener.backlog, listener.listener_filters_timeout),
            (false, 7, None)
        );
        assert!(listener.inspect.tls && listener.inspect.original_dst && !listener.inspect.http);
    }

    #[test]
    fn terminal_filters() {
        let direct = json!({"name": "d", "typed_config": {
            "@type": typed("extensions.filters.network.direct_response.v3.Config"), "response": {"inline_string": "hi"}}});
        let Terminal::DirectResponse(body) =
            &listener(json!({"filter_chains/0/filters/0": direct})).chains[0].terminal
        else {
            panic!()
        };
        assert_eq!(body, "hi");
        let listener = listener(json!({"filter_chains/0/filters": [tcp_proxy("origin")]}));
        assert!(matches!(listener.chains[0].terminal, Terminal::Tcp(_)));
        // A chain without filters closes its connections, as Envoy's do.
        let compiled = compiled(&[("/static_resources/listeners/0/filter_chains/0/filters", json!([]))]);
        assert!(
            matches!(&compiled.listeners[0].chains[0].terminal, Terminal::DirectResponse(b) if b.is_empty())
        );
    }

    #[test]
    fn a_default_chain_is_enough() {
        let chain = json!({"filters": [tcp_proxy("origin")]});
        let listener = listener(json!({"filter_chains": [], "default_filter_chain": chain}));
        assert!(listener.chains.is_empty() && listener.default_chain.is_some());
    }

    #[test]
    fn wrong_listeners_are_refused() {
        for (changes, expected) in [
            (
                json!({"address/socket_address/address": "localhost"}),
                "address.socket_address.address: \"localhost\" is not an IP address; a listener needs one",
            ),
            (
                json!({"address/socket_address/protocol": "UDP"}),
                "address.socket_address.protocol: UDP is not supported",
            ),
            (
                json!({"filter_chains/0/filters": [tcp_proxy("origin"), tcp_proxy("origin")]}),
                "filter_chains[0].filters[0]: the terminal filter tcp must be the last one of its chain",
            ),
            (
                json!({"filter_chains/0/transport_socket": {"name": "tls", "typed_config": {
                "@type": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext")}}}),
                "filter_chains[0].transport_socket.typed_config: TLS termination is not supported yet",
            ),
            (
                json!({"use_original_dst": true}),
                "use_original_dst: handing connections to other listeners is not supported yet",
            ),
            (
                json!({"listener_filters": [{"name": "p", "typed_config": {
                "@type": typed("extensions.filters.listener.proxy_protocol.v3.ProxyProtocol")}}]}),
                "listener_filters[0].typed_config: the extension type \
              envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol is known but not supported",
            ),
            (
                json!({"additional_addresses": [{"address": {"pipe": {"path": "/x"}}}]}),
                "additional_addresses: a listener has one address so far",
            ),
            (
                json!({"socket_options": [{"level": 1, "name": 1, "int_value": 1}]}),
                "socket_options: this socket option is not supported",
            ),
        ] {
            refuses_listener(changes, expected);
        }
    }
}

mod connection_managers {
    use super::*;

    #[test]
    fn defaults_are_envoys() {
        let hcm = hcm(json!({}));
        assert_eq!(hcm.codec, Codec::Auto);
        assert_eq!(hcm.server_name, "envoy");
        assert_eq!(hcm.server_header, ServerHeader::Overwrite);
        assert!(!hcm.use_remote_address && hcm.generate_request_id && hcm.pack_trace_reason);
        assert_eq!(hcm.timeouts.idle, Some(Duration::from_secs(3600)));
        assert_eq!(hcm.timeouts.stream_idle, Some(Duration::from_secs(300)));
        assert_eq!(hcm.timeouts.request, None);
        assert_eq!(hcm.timeouts.request_headers, Some(Duration::from_secs(10)));
        assert_eq!((hcm.max_request_headers, hcm.max_headers_count), (60 * 1024, 100));
        assert_eq!(hcm.drain_timeout, Duration::from_secs(5));
        assert_eq!(hcm.delayed_close_timeout, Duration::from_secs(1));
        assert_eq!((&hcm.service.0[..], &hcm.service.1[..]), (&b"k"[..], &b"n"[..]));
        assert!(hcm.via.is_none() && hcm.upgrades.is_empty() && hcm.internal_networks.is_empty());
    }

    #[test]
    fn options() {
        let hcm = hcm(json!({
            "codec_type": "HTTP1", "stream_idle_timeout": "0s", "request_headers_timeout": "0s",
            "common_http_protocol_options": {"idle_timeout": "0s", "max_headers_count": 9,
                "max_stream_duration": "2s", "headers_with_underscores_action": "REJECT_REQUEST"},
            "http_protocol_options": {"accept_http_10": true, "default_host_for_http_10": "h",
                "override_stream_error_on_invalid_http_message": true},
            "server_name": "s", "server_header_transformation": "PASS_THROUGH", "via": "v",
            "scheme_header_transformation": {"scheme_to_overwrite": "https"},
            "path_with_escaped_slashes_action": "REJECT_REQUEST", "strip_any_host_port": true,
            "upgrade_configs": [{"upgrade_type": "WebSocket"}, {"upgrade_type": "x", "enabled": false}],
            "internal_address_config": {"unix_sockets": true, "cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
            "original_ip_detection_extensions": [{"name": "xff", "typed_config": {
                "@type": typed("extensions.http.original_ip_detection.xff.v3.XffConfig"), "xff_num_trusted_hops": 2}}],
            "request_id_extension": {"typed_config": {
                "@type": typed("extensions.request_id.uuid.v3.UuidRequestIdConfig"), "pack_trace_reason": false}},
            "max_request_headers_kb": 96, "forward_client_cert_details": "ALWAYS_FORWARD_ONLY",
        }));
        assert_eq!(hcm.codec, Codec::Http1);
        assert_eq!(
            (hcm.timeouts.stream_idle, hcm.timeouts.request_headers, hcm.timeouts.idle),
            (None, None, None)
        );
        assert_eq!(hcm.timeouts.max_stream_duration, Some(Duration::from_secs(2)));
        assert!(hcm.http1.accept_http_10 && hcm.stream_error_on_invalid_http_message);
        assert_eq!(hcm.http1.default_host_for_http_10.as_deref(), Some(&b"h"[..]));
        assert_eq!((&hcm.server_name[..], hcm.server_header), (&b"s"[..], ServerHeader::PassThrough));
        assert_eq!(hcm.scheme_overwrite.as_deref(), Some(&b"https"[..]));
        assert_eq!((hcm.escaped_slashes, hcm.strip_port), (EscapedSlashes::Reject, StripPort::Any));
        let upgrades: Vec<_> = hcm.upgrades.iter().map(|upgrade| (&*upgrade.kind, upgrade.enabled)).collect();
        assert_eq!(upgrades, [("websocket", true), ("x", false)]);
        assert_eq!(hcm.internal_networks, [("10.0.0.0".parse().unwrap(), 8)]);
        assert_eq!(hcm.xff_num_trusted_hops, 2);
        assert!(hcm.internal_unix && !hcm.pack_trace_reason && hcm.always_forward_client_cert);
        assert_eq!((hcm.max_request_headers, hcm.max_headers_count), (96 * 1024, 9));
    }

    #[test]
    fn wrong_connection_managers_are_refused() {
        let xff = json!([{"name": "xff", "typed_config": {
            "@type": typed("extensions.http.original_ip_detection.xff.v3.XffConfig")}}]);
        for (changes, expected) in [
            (json!({"http_filters": [router(), router()]}), "http_filters[0]: the router (router) must be the last filter"),
            (json!({"http_filters/0/disabled": true}), "http_filters[0].disabled: the router cannot be disabled"),
            (json!({"http_filters": [{"name": "lua", "typed_config": {
                "@type": typed("extensions.filters.http.lua.v3.Lua")}}, router()]}),
             "http_filters[0].typed_config: the extension type envoy.extensions.filters.http.lua.v3.Lua is known but \
              not supported"),
            (json!({"codec_type": "HTTP2"}), "codec_type: HTTP/2 is not supported yet"),
            (json!({"max_request_headers_kb": 0}), "max_request_headers_kb: is 0, must be greater than 0"),
            (json!({"max_request_headers_kb": 8193}), "max_request_headers_kb: is 8193, must be at most 8192"),
            (json!({"common_http_protocol_options": {"max_headers_count": 0}}),
             "common_http_protocol_options.max_headers_count: is 0, must be at least 1"),
            (json!({"strip_matching_host_port": true, "strip_any_host_port": true}),
             "strip_any_host_port: cannot be combined with strip_matching_host_port"),
            (json!({"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "WEBSOCKET"}]}),
             "upgrade_configs[1].upgrade_type: the upgrade \"websocket\" is configured twice"),
            (json!({"server_name": "a\nb"}), "server_name: \"a\\nb\" is not a header value"),
            (json!({"use_remote_address": true, "original_ip_detection_extensions": xff}),
             "original_ip_detection_extensions: cannot be combined with use_remote_address"),
            (json!({"xff_num_trusted_hops": 1, "original_ip_detection_extensions": xff}),
             "original_ip_detection_extensions: cannot be combined with xff_num_trusted_hops"),
            (json!({"scheme_header_transformation": {"scheme_to_overwrite": "ftp"}}),
             "scheme_header_transformation.scheme_to_overwrite: is \"ftp\", must be one of [\"http\", \"https\"]"),
            (json!({"stream_idle_timeout": "-1s"}), "stream_idle_timeout: must not be negative"),
            (json!({"internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 33}]}}),
             "internal_address_config.cidr_ranges[0].prefix_len: is 33, must be at most 32 for this address"),
            (json!({"http_filters/0/typed_config/strict_check_headers": ["x-foo"]}),
             "http_filters[0].typed_config.strict_check_headers: entry 0: is \"x-foo\", must be one of \
              [\"x-envoy-upstream-rq-timeout-ms\", \"x-envoy-upstream-rq-per-try-timeout-ms\", \
              \"x-envoy-max-retries\", \"x-envoy-retry-grpc-on\", \"x-envoy-retry-on\"]"),
        ] {
            refuses_hcm(changes, expected);
        }
        let rds = json!({"route_config_name": "r", "config_source": {"ads": {}}});
        refuses_hcm(
            json!({"route_config": null, "rds": rds}),
            "rds: route discovery from a control plane is not supported yet",
        );
    }

    #[test]
    fn tracing_is_only_warned_about() {
        let compiled = compiled(&[(&format!("{HCM}/tracing"), json!({"random_sampling": {"value": 1}}))]);
        assert_eq!(compiled.warnings.len(), 1);
        assert_eq!(compiled.warnings[0].path, format!("{HCM_PATH}.tracing"));
    }
}
