//! What a bootstrap says of control planes.

use super::*;
use crate::config::discovery::{
    ApiKind, ControlIdentity, Material, Roots, SanPattern, Source, TargetAddress,
};

const CLUSTERS: &str = "/static_resources/clusters";

fn v3(mut source: Value) -> Value {
    source["resource_api_version"] = "V3".into();
    source
}

fn http2() -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": typed("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {
            "connection_keepalive": {"interval": "30s", "timeout": "5s"}}},
    }})
}

/// A cluster as Istio's agent offers it.
fn xds_cluster() -> Value {
    json!({
        "name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s", "max_requests_per_connection": 1,
        "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [{
            "endpoint": {"address": {"pipe": {"path": "/run/xds"}}}}]}]},
        "typed_extension_protocol_options": http2(),
    })
}

/// The same over TLS, which requests to clusters cannot have yet.
fn tls_cluster() -> Value {
    let mut cluster = xds_cluster();
    cluster["transport_socket"] = json!({"name": "tls", "typed_config": {
        "@type": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext"), "sni": "cp.test"}});
    cluster
}

fn grpc(cluster: &str) -> Value {
    json!({"api_type": "DELTA_GRPC", "set_node_on_first_message_only": true, "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": cluster}}]})
}

fn dynamic() -> Value {
    json!({"ads_config": grpc("xds-grpc"), "lds_config": v3(json!({"ads": {}, "initial_fetch_timeout": "0s"})),
        "cds_config": v3(json!({"ads": {}}))})
}

fn clusters(more: &[Value]) -> Value {
    let mut list = base().pointer(CLUSTERS).unwrap().clone();
    list.as_array_mut().unwrap().extend(more.iter().cloned());
    list
}

#[test]
fn delta_ads_over_a_unix_socket() {
    let compiled = compiled(&[("/dynamic_resources", dynamic()), (CLUSTERS, clusters(&[xds_cluster()]))]);
    let discovery = compiled.discovery.unwrap();
    let ads = discovery.ads.unwrap();
    assert!(ads.delta && ads.aggregated && ads.set_node_on_first_message_only);
    assert_eq!((ads.kind, ads.rate_limit), (ApiKind::Grpc, None));
    let target = &ads.targets[0];
    assert_eq!(target.addresses, [TargetAddress::Fixed(Address::Pipe("/run/xds".into()))]);
    assert_eq!((&*target.authority, target.tls.is_none()), ("xds-grpc", true));
    assert_eq!(target.http2_keepalive, Some((Duration::from_secs(30), Duration::from_secs(5))));
    assert_eq!(target.connect_timeout, Duration::from_secs(1));
    let (lds, cds) = (discovery.lds.unwrap(), discovery.cds.unwrap());
    assert_eq!((lds.source, lds.initial_fetch_timeout), (Source::Ads, None));
    assert_eq!((cds.source, cds.initial_fetch_timeout), (Source::Ads, Some(Duration::from_secs(15))));
    assert_eq!((&*discovery.node.id, &*discovery.node.user_agent_name), ("n", "outrigger"));
    assert!(compiled.clusters.find("xds-grpc").is_some(), "requests can use it too");
    assert!(compiled.compiler.static_clusters.contains("xds-grpc"));
}

#[test]
fn loads_are_reported_where_the_bootstrap_says() {
    let field = "/cluster_manager";
    let compiled = compiled(&[
        (field, json!({"load_stats_config": grpc("xds-grpc")})),
        (CLUSTERS, clusters(&[xds_cluster()])),
    ]);
    let discovery = compiled.discovery.unwrap();
    let source = discovery.load_stats.unwrap();
    assert_eq!(source.targets[0].addresses, [TargetAddress::Fixed(Address::Pipe("/run/xds".into()))]);
    assert_eq!(&*discovery.node.id, "n");
    assert!(discovery.ads.is_none() && discovery.cds.is_none());
    assert!(!compiled.warnings.iter().any(|note| note.path.contains("load_stats_config")));
    // A second service is not tried, and that is said.
    let mut two = grpc("xds-grpc");
    let service = two["grpc_services"][0].clone();
    two["grpc_services"].as_array_mut().unwrap().push(service);
    let compiled = super::compiled(&[
        (field, json!({"load_stats_config": two})),
        (CLUSTERS, clusters(&[xds_cluster()])),
    ]);
    let path = "cluster_manager.load_stats_config.grpc_services[1]";
    assert!(compiled.warnings.iter().any(|note| note.path == path), "{:?}", compiled.warnings);
    let rest = json!({"api_type": "REST", "transport_api_version": "V3", "cluster_names": ["xds-grpc"],
        "refresh_delay": "1s"});
    refuses(
        &[(field, json!({"load_stats_config": rest})), (CLUSTERS, clusters(&[xds_cluster()]))],
        "cluster_manager.load_stats_config.api_type: load reporting needs gRPC",
    );
}

#[test]
fn a_route_to_a_cluster_for_discovery_is_refused() {
    let route = "/route_config/virtual_hosts/0/routes/0/route/cluster";
    let pointer = format!("{HCM}{route}");
    let changes = [
        ("/dynamic_resources", dynamic()),
        (CLUSTERS, clusters(&[tls_cluster()])),
        (&*pointer, "xds-grpc".into()),
    ];
    let wrong = "the cluster \"xds-grpc\" serves discovery only: a gRPC service names it, and its \
                 connections are TLS";
    refuses(&changes, &format!("{HCM_PATH}.route_config.virtual_hosts[0].routes[0].route.cluster: {wrong}"));
    let filters = "/static_resources/listeners/0/filter_chains/0/filters/0";
    refuses(
        &[changes[0].clone(), changes[1].clone(), (filters, tcp_proxy("xds-grpc"))],
        &format!("{HCM_PATH}.cluster: {wrong}"),
    );
    // Without TLS the cluster serves requests too.
    let plain = xds_cluster();
    let compiled = compiled(&[changes[0].clone(), (CLUSTERS, clusters(&[plain])), changes[2].clone()]);
    assert!(compiled.clusters.find("xds-grpc").is_some_and(|slot| slot.get().is_some()));
}

#[test]
fn a_cluster_with_tls_that_no_grpc_service_names_serves_requests() {
    let compiled = compiled(&[(CLUSTERS, clusters(&[tls_cluster()]))]);
    let cluster = compiled.clusters.find("xds-grpc").and_then(|slot| slot.get()).unwrap();
    assert!(cluster.tls.as_ref().is_some_and(|tls| tls.default.is_some()));
}

#[test]
fn tls_to_a_control_plane() {
    let mut cluster = xds_cluster();
    cluster["type"] = "STRICT_DNS".into();
    cluster["load_assignment"] = assignment(&[endpoint("cp.test", 5678)]);
    cluster["transport_socket"] = json!({"name": "tls", "typed_config": {
        "@type": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": "cp.test",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": "/c"}, "private_key": {"inline_string": "k"}}],
            "validation_context_sds_secret_config": {"name": "ca"},
        },
    }});
    let secret = json!([{"name": "ca", "validation_context": {
        "trusted_ca": {"filename": "/ca"},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "cp"}}]}}]);
    let changes = [
        ("/dynamic_resources", dynamic()),
        (CLUSTERS, clusters(&[cluster.clone()])),
        ("/static_resources/secrets", secret),
    ];
    let compiled = compiled(&changes);
    let target = compiled.discovery.unwrap().ads.unwrap().targets[0].clone();
    let TargetAddress::Name { host, port, .. } = &target.addresses[0] else { panic!() };
    assert_eq!((&**host, *port), ("cp.test", 5678));
    let tls = target.tls.unwrap();
    assert_eq!(tls.trust.roots, Roots::Pem(Material::File("/ca".into())));
    let (chain, key) = (Material::File("/c".into()), Material::Inline("k".into()));
    assert_eq!(tls.identity, Some(ControlIdentity::Given { chain, key }));
    assert_eq!((tls.sni.as_deref(), tls.versions), (Some("cp.test"), (13, 13)));
    assert_eq!(tls.trust.names[0].pattern, SanPattern::Exact("cp".into()));

    let place = "static_resources.clusters[1].transport_socket.typed_config.common_tls_context";
    let common = "/transport_socket/typed_config/common_tls_context";
    for (field, value, expected) in [
        (
            "validation_context_sds_secret_config",
            json!({"name": "other"}),
            "validation_context_sds_secret_config.name: there is no static secret \"other\"",
        ),
        (
            "tls_certificates",
            json!([{"certificate_chain": {"filename": "/c"}}]),
            "tls_certificates[0]: needs certificate_chain and private_key",
        ),
        ("key_log", json!({"path": "/k"}), "key_log: the field is not supported"),
    ] {
        let mut cluster = cluster.clone();
        set(&mut cluster, &format!("{common}/{field}"), value);
        let changes = [changes[0].clone(), (CLUSTERS, clusters(&[cluster])), changes[2].clone()];
        refuses(&changes, &format!("{place}.{expected}"));
    }
}

#[test]
fn equal_control_planes_are_equal() {
    let own = v3(json!({"api_config_source": {
        "api_type": "GRPC", "rate_limit_settings": {"fill_rate": 4.0},
        "grpc_services": [{"google_grpc": {"target_uri": "dns:///cp.test:18000", "stat_prefix": "x"},
            "initial_metadata": [{"key": "Authorization", "value": "token"}]}]}}));
    let mut late = own.clone();
    late["initial_fetch_timeout"] = "3s".into();
    let compiled = compiled(&[("/dynamic_resources", json!({"lds_config": own, "cds_config": late}))]);
    let discovery = compiled.discovery.unwrap();
    let (lds, cds) = (discovery.lds.unwrap(), discovery.cds.unwrap());
    assert_eq!(lds.source, cds.source);
    let Source::Own(api) = &lds.source else { panic!("{lds:?}") };
    let limit = api.rate_limit.unwrap();
    assert_eq!((limit.max_tokens, limit.fill_interval), (100, Duration::from_millis(250)));
    assert!(!api.delta && !api.aggregated);
    assert_eq!(api.targets[0].initial_metadata, [("authorization".into(), "token".into())]);
    assert_eq!(&*api.targets[0].authority, "cp.test:18000");
}

#[test]
fn runtime_layers_and_route_tables_from_a_control_plane() {
    let rtds = v3(json!({"ads": {}}));
    let rds = json!({"route_config_name": "r", "config_source": v3(json!({"ads": {}}))});
    let (inline, pointer) = (format!("{HCM}/route_config"), format!("{HCM}/rds"));
    let compiled = compiled(&[
        ("/dynamic_resources", dynamic()),
        (CLUSTERS, clusters(&[xds_cluster()])),
        (
            "/layered_runtime",
            json!({"layers": [{"name": "l", "rtds_layer": {"name": "x", "rtds_config": rtds}}]}),
        ),
        (&inline, Value::Null),
        (&pointer, rds),
    ]);
    let layer = &compiled.discovery.unwrap().rtds[0];
    assert_eq!((&*layer.layer, &*layer.name, &layer.source.source), ("l", "x", &Source::Ads));
    assert_eq!(&*compiled.needs[0].route_tables[0].name, "r");
}

#[test]
fn wrong_sources_are_refused() {
    let with_cluster = |dynamic: Value, expected: &str| {
        refuses(&[("/dynamic_resources", dynamic), (CLUSTERS, clusters(&[xds_cluster()]))], expected);
    };
    let mut changed = dynamic();
    changed["cds_config"]["resource_api_version"] = "V2".into();
    with_cluster(
        changed,
        "dynamic_resources.cds_config.resource_api_version: is V2, only V3 is supported: set \
         resource_api_version: V3",
    );
    let mut changed = dynamic();
    changed["ads_config"]["grpc_services"] = json!([{"envoy_grpc": {"cluster_name": "none"}}]);
    changed["lds_config"] = v3(json!({"api_config_source": grpc("xds-grpc")}));
    with_cluster(
        changed,
        "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: there is no cluster \"none\" \
         for discovery: it must be in the bootstrap, and not of type EDS",
    );
    let mut changed = dynamic();
    changed["lds_config"] = v3(json!({"self": {}}));
    with_cluster(changed, "dynamic_resources.lds_config.self: has no meaning in the bootstrap");
    let mut changed = dynamic();
    changed["lds_config"] =
        v3(json!({"api_config_source": {"api_type": "REST", "cluster_names": ["xds-grpc"]}}));
    with_cluster(
        changed,
        "dynamic_resources.lds_config.api_config_source.refresh_delay: is required for REST",
    );
    refuses(
        &[
            ("/dynamic_resources", dynamic()),
            (CLUSTERS, clusters(&[xds_cluster()])),
            ("/node/id", Value::Null),
        ],
        "node.id: is required to ask a control plane (or --service-node and --service-cluster)",
    );
    // A cluster with problems of its own is not reported where it is named, too.
    let mut cluster = tls_cluster();
    cluster["type"] = "ORIGINAL_DST".into();
    refuses(
        &[("/dynamic_resources", dynamic()), (CLUSTERS, clusters(&[cluster]))],
        "static_resources.clusters[1].type: serves discovery, which needs a cluster of type STATIC, STRICT_DNS \
         or LOGICAL_DNS",
    );
}
