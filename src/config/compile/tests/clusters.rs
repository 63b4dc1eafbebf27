//! Clusters and their endpoints.

use super::*;
use crate::config::cluster::UpstreamProtocol;

#[test]
fn defaults_are_envoys() {
    let cluster = cluster(json!({"connect_timeout": null}));
    assert_eq!(cluster.discovery, Discovery::Static);
    assert_eq!(cluster.balancing.policy, LbPolicy::RoundRobin);
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.per_connection_buffer_limit, 1 << 20);
    let breakers = &cluster.breakers[0];
    let limits = [&breakers.connections, &breakers.pending, &breakers.requests, &breakers.retries];
    assert_eq!(limits.map(crate::config::cluster::Limit::max), [1024, 1024, 1024, 3]);
    assert_eq!((cluster.panic_threshold, cluster.overprovisioning), (50, 140));
    assert_eq!(cluster.http.idle_timeout, Some(Duration::from_secs(3600)));
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
fn a_dns_endpoint_without_an_address_is_accepted_and_noted() {
    let compiled = compiled(&cluster_changes(&json!({
        "type": "STRICT_DNS", "load_assignment": assignment(&[json!({}), endpoint("a", 1), json!({"endpoint": {}})])})));
    let cluster = compiled.clusters.find("origin").unwrap().get().unwrap();
    let Discovery::StrictDns(dns) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!(dns.names.iter().map(|name| &*name.host).collect::<Vec<_>>(), ["", "a", ""]);
    let warning =
        compiled.warnings.iter().find(|warning| warning.path.contains("lb_endpoints[0].endpoint.address"));
    assert!(warning.unwrap().message.contains("never has a host"));
}

#[test]
fn the_dns_cluster_extension_is_the_same() {
    let kind = json!({"name": "dns", "typed_config": {
        "@type": typed("extensions.clusters.dns.v3.DnsCluster"),
        "dns_refresh_rate": "7s", "dns_lookup_family": "V6_ONLY"}});
    let cluster = cluster(json!({
        "cluster_type": kind, "load_assignment": assignment(&[endpoint("a", 1), endpoint("b", 2)])}));
    let Discovery::StrictDns(dns) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!((dns.names.len(), dns.refresh, dns.family), (2, Duration::from_secs(7), DnsFamily::V6Only));
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
    assert_eq!(cluster.balancing.policy, LbPolicy::ClusterProvided);
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
        "lb_policy: CLUSTER_PROVIDED is only for ORIGINAL_DST and aggregate clusters",
    );
}

#[test]
fn the_first_supported_policy_wins() {
    let entry = |name: &str, more: Value| {
        let mut config = more;
        config["@type"] = json!(typed(&format!("extensions.load_balancing_policies.{name}")));
        json!({"typed_extension_config": {"name": name, "typed_config": config}})
    };
    let cors = json!({"@type": typed("extensions.filters.http.cors.v3.Cors")});
    let other = json!({"typed_extension_config": {"name": "other", "typed_config": cors}});
    let least = entry("least_request.v3.LeastRequest", json!({"choice_count": 5}));
    let random = entry("random.v3.Random", json!({}));
    let chosen = cluster(json!({"load_balancing_policy": {"policies": [other, least, random]}}));
    let expected = LbPolicy::LeastRequest { choice_count: 5, active_request_bias: 1.0, full_scan: false };
    assert_eq!(chosen.balancing.policy, expected);
    refuses_cluster(
        json!({"load_balancing_policy": {"policies": [other]}}),
        "load_balancing_policy.policies: none of these policies is supported: \
         envoy.extensions.filters.http.cors.v3.Cors",
    );
    refuses_cluster(
        json!({"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}),
        "load_balancing_policy: is required with lb_policy LOAD_BALANCING_POLICY_CONFIG",
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
    const AT: &str =
        "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"]";
    refuses_cluster(
        options(json!({"@type": kind, "auto_config": {"http2_protocol_options": {}}})),
        "transport_socket: auto_config needs TLS, by which the protocol is agreed on",
    );
    let explicit = |http2: Value| {
        options(json!({"@type": kind, "explicit_http_config": {"http2_protocol_options": http2}}))
    };
    let cluster = super::cluster(explicit(json!({})));
    assert_eq!(cluster.http.protocol, UpstreamProtocol::Http2);
    assert_eq!(cluster.http.http2, crate::http::h2::Options::default());
    let cluster = super::cluster(explicit(json!({
        "max_concurrent_streams": 7, "initial_stream_window_size": 65_536, "hpack_table_size": 0,
        "connection_keepalive": {"interval": "10s", "timeout": "2s", "interval_jitter": {"value": 0}},
    })));
    let http2 = &cluster.http.http2;
    assert_eq!(
        (http2.max_concurrent_streams, http2.initial_stream_window, http2.header_table_size),
        (7, 65_536, 0)
    );
    let keepalive = http2.keepalive.unwrap();
    assert_eq!(keepalive.interval, Some(Duration::from_secs(10)));
    assert_eq!((keepalive.timeout, keepalive.jitter_percent), (Duration::from_secs(2), 0.0));
    refuses_cluster(
        explicit(json!({"initial_stream_window_size": 1})),
        &format!(
            "{AT}.explicit_http_config.http2_protocol_options.initial_stream_window_size: is 1, must be at least 65535"
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
        (json!({"load_assignment": assignment(&[endpoint("localhost", 80)])}),
         "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \"localhost\" is \
          not an IP address; a cluster with host names needs type STRICT_DNS or LOGICAL_DNS"),
        (json!({"load_assignment": assignment(&[endpoint("127.0.0.1", 70000)])}),
         "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: \
          is 70000, must be at most 65535"),
        (json!({"type": "LOGICAL_DNS", "load_assignment": assignment(&[endpoint("a", 1), endpoint("b", 2)])}),
         "load_assignment.endpoints: a LOGICAL_DNS cluster needs exactly one endpoint, this has 2"),
        (json!({"outlier_detection": {"monitors": [{"name": "x"}]}}),
         "outlier_detection.monitors: monitors that are extensions are not supported"),
        (json!({"transport_socket": {"name": "tls", "typed_config": {
            "@type": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext"), "auto_sni_san_validation": true}}}),
         "transport_socket.typed_config.auto_sni_san_validation: needs a validation context"),
        (json!({"type": "STRICT_DNS", "dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"},
            "load_assignment": assignment(&[endpoint("a", 1)])}),
         "dns_failure_refresh_rate.max_interval: is 1s, must not be less than base_interval (2s)"),
        (json!({"dns_refresh_rate": "0.001s"}), "dns_refresh_rate: is 0.001s, must be greater than 0.001s"),
        (json!({"circuit_breakers": {"per_host_thresholds": [{"max_requests": 1}]}}),
         "circuit_breakers.per_host_thresholds[0]: only max_connections can be limited per host"),
        (json!({"common_lb_config": {"healthy_panic_threshold": {"value": 101}}}),
         "common_lb_config.healthy_panic_threshold.value: is 101, must be at most 100"),
        (json!({"preconnect_policy": {"predictive_preconnect_ratio": 0.5}}),
         "preconnect_policy.predictive_preconnect_ratio: is 0.5, must be at least 1"),
        (json!({"preconnect_policy": {"per_upstream_preconnect_ratio": 3.1}}),
         "preconnect_policy.per_upstream_preconnect_ratio: is 3.1, must be at most 3"),
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

#[test]
fn outlier_detection_has_envoys_defaults() {
    let cluster = cluster(json!({"outlier_detection": {"base_ejection_time": "400s"}}));
    let options = &cluster.health.as_ref().unwrap().outlier.as_ref().unwrap().options;
    let expected = crate::upstream::outlier::Options {
        base_ejection_time: Duration::from_secs(400),
        max_ejection_time: Duration::from_secs(400),
        ..Default::default()
    };
    assert_eq!(*options, expected);
}

fn http_check(changes: Value) -> Value {
    let mut check = json!({"timeout": "1s", "interval": "10s", "unhealthy_threshold": 2, "healthy_threshold": 3,
        "http_health_check": {"path": "/hc"}});
    if let (Value::Object(check), Value::Object(changes)) = (&mut check, changes) {
        check.extend(changes);
    }
    json!({"health_checks": [check]})
}

#[test]
fn health_checks_have_tls_options_of_their_own() {
    let cluster = cluster(http_check(json!({
        "tls_options": {"alpn_protocols": ["http/1.1", "x"]}, "transport_socket_match_criteria": {"plain": true}})));
    let options = &cluster.health.as_ref().unwrap().checks.as_ref().unwrap().options;
    let alpn: Vec<&[u8]> = options.alpn.iter().map(|protocol| &**protocol).collect();
    assert_eq!(alpn, [&b"http/1.1"[..], b"x"]);
    assert_eq!(options.socket_match.as_ref().unwrap().get("plain"), Some(&json!(true)));
}

#[test]
fn health_checks_have_envoys_defaults() {
    use crate::config::cluster::HealthFlags;
    let cluster = cluster(http_check(json!({"unhealthy_interval": "3s"})));
    let options = &cluster.health.as_ref().unwrap().checks.as_ref().unwrap().options;
    let seconds = |time: Duration| time.as_secs();
    assert_eq!(
        (seconds(options.no_traffic_interval), seconds(options.no_traffic_healthy_interval)),
        (60, 60)
    );
    assert_eq!((seconds(options.unhealthy_edge_interval), seconds(options.healthy_edge_interval)), (3, 10));
    assert!(options.reuse_connection);
    let hosts = cluster.hosts.load();
    let failed =
        |host: &std::sync::Arc<crate::config::Host>| host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC);
    assert!(hosts.all.iter().all(failed), "until their first check");
}

#[test]
fn wrong_health_checks_are_refused() {
    for (check, expected) in [
        (json!({"timeout": null}), "health_checks[0].timeout: is required"),
        (json!({"tcp_health_check": {"receive": [{"text": "0g"}]}, "http_health_check": null}),
         "health_checks[0].tcp_health_check.receive[0].text: invalid hex string \"0g\""),
        (json!({"grpc_health_check": {}, "http_health_check": null}),
         "health_checks[0].grpc_health_check: origin cluster must support HTTP/2 for gRPC healthchecking"),
        (json!({"http_health_check": {"path": "/", "expected_statuses": [{"start": 99, "end": 200}]}}),
         "health_checks[0].http_health_check.expected_statuses[0]: 99 to 200 is no range of statuses within 100 and 600"),
        (json!({"http_health_check": {"path": "/", "send": {"text": "00"}}}),
         "health_checks[0].http_health_check.send: a check by GET has no body"),
        (json!({"http_health_check": {"path": "/", "codec_client_type": "HTTP3"}}),
         "health_checks[0].http_health_check.codec_client_type: HTTP/3 upstream is not supported"),
        (json!({"custom_health_check": {"name": "envoy.health_checkers.redis"}, "http_health_check": null}),
         "health_checks[0].custom_health_check: HTTP, gRPC and TCP are supported"),
    ] {
        refuses_cluster(http_check(check), expected);
    }
    let two = json!({"health_checks": [http_check(json!({}))["health_checks"][0], http_check(json!({}))["health_checks"][0]]});
    refuses_cluster(two, "health_checks: multiple health checks are not supported");
}
