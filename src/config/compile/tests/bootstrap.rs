//! The bootstrap as a whole.

use super::*;

#[test]
fn the_base_compiles() {
    let compiled = compiled(&[]);
    assert_eq!(compiled.warnings, []);
    assert_eq!(compiled.admin.unwrap().address.to_string(), "127.0.0.1:9901");
    assert_eq!((compiled.node.id.as_str(), compiled.node.cluster.as_str()), ("n", "k"));
    assert!(compiled.routes.find("ingress/routes").unwrap().get().is_some());
    let dump = compiled.dump.to_json();
    assert_eq!(dump["node"]["id"], "n");
    assert_eq!(dump["static_resources"]["clusters"][0]["name"], "origin");
    assert_eq!(dump["@type"], typed("config.bootstrap.v3.Bootstrap"));
}

#[test]
fn an_empty_bootstrap_compiles() {
    let compiled = try_compile(&json!({})).unwrap();
    assert!(compiled.listeners.is_empty() && compiled.admin.is_none());
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
            "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: \
             is required",
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
        ("/static_resources/clusters/0/upstream_config", json!({})),
    ]))
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "static_resources.clusters[0].upstream_config: custom upstreams are not supported",
            "static_resources.clusters[0].connect_timeout: is 0s, must be greater than 0s",
            "static_resources.listeners[0].filter_chains: is empty: a listener needs a filter chain",
        ]
    );
}

#[test]
fn observed_fields_are_warned_about_once() {
    let mut endpoint = endpoint("10.0.0.1", 1);
    let other = endpoint["endpoint"]["address"].clone();
    endpoint["endpoint"]["additional_addresses"] = json!([{"address": other}]);
    let compiled = compiled(&cluster_changes(
        &json!({"load_assignment": assignment(&[endpoint.clone(), endpoint.clone(), endpoint])}),
    ));
    assert_eq!(
        compiled.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.additional_addresses: \
          connections go to the first address only (and 2 more)"]
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
