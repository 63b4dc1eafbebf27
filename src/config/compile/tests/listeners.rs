//! Listeners and filter chains.

use super::*;

fn listener(changes: Value) -> std::sync::Arc<crate::config::listener::Listener> {
    let Value::Object(changes) = changes else { panic!() };
    let pointers: Vec<_> = changes.keys().map(|key| format!("/static_resources/listeners/0/{key}")).collect();
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
    assert_eq!((listener.address.clone(), listener.pipe_mode), (Address::Pipe("/run/x.sock".into()), 0o600));
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
    assert!(matches!(&compiled.listeners[0].chains[0].terminal, Terminal::DirectResponse(b) if b.is_empty()));
}

#[test]
fn a_default_chain_is_enough() {
    let chain = json!({"filters": [tcp_proxy("origin")]});
    let listener = listener(json!({"filter_chains": [], "default_filter_chain": chain}));
    assert!(listener.chains.is_empty() && listener.default_chain.is_some());
}

/// What makes a listener one of datagrams, with this filter.
fn udp(config: serde_json::Value) -> serde_json::Value {
    json!({
        "address/socket_address/protocol": "UDP",
        "filter_chains": null,
        "listener_filters": [{"name": "f", "typed_config": config}],
    })
}

#[test]
fn wrong_listeners_are_refused() {
    for (changes, expected) in [
        (
            json!({"address/socket_address/address": "localhost"}),
            "address.socket_address.address: \"localhost\" is not an IP address; a listener needs one",
        ),
        (
            json!({"address/socket_address/protocol": "UDP", "filter_chains": null}),
            "listener_filters: a UDP listener has one filter: the UDP proxy, or the DNS filter",
        ),
        (
            udp(
                json!({"@type": typed("extensions.filters.udp.udp_proxy.v3.UdpProxyConfig"), "stat_prefix": "u"}),
            ),
            "listener_filters[0].typed_config.route_specifier: is required: one of cluster, matcher",
        ),
        (
            udp(
                json!({"@type": typed("extensions.filters.udp.udp_proxy.v3.UdpProxyConfig"), "stat_prefix": "u",
                "matcher": {"matcher_tree": {
                    "input": {"name": "i", "typed_config": {
                        "@type": typed("extensions.matching.common_inputs.network.v3.ServerNameInput")}},
                    "exact_match_map": {"map": {"a": {"action": {"name": "r", "typed_config": {
                        "@type": typed("extensions.filters.udp.udp_proxy.v3.Route"), "cluster": "origin"}}}}}}}}),
            ),
            "listener_filters[0].typed_config.matcher.matcher_tree.input.typed_config: the input \
             envoy.extensions.matching.common_inputs.network.v3.ServerNameInput is not supported here",
        ),
        (
            udp(
                json!({"@type": typed("extensions.filters.udp.dns_filter.v3.DnsFilterConfig"), "stat_prefix": "d",
                "server_config": {"inline_dns_table": {"virtual_domains": [
                    {"name": "a.b", "endpoint": {"address_list": {"address": ["10.0.0.1", "10.0.0"]}}}]}}}),
            ),
            "listener_filters[0].typed_config.server_config.inline_dns_table.virtual_domains[0].endpoint\
             .address_list.address[1]: \"10.0.0\" is not an IP address",
        ),
        (
            json!({"filter_chains/0/filters": [tcp_proxy("origin"), tcp_proxy("origin")]}),
            "filter_chains[0].filters[0]: the terminal filter tcp must be the last one of its chain",
        ),
        (
            json!({"filter_chains/0/transport_socket": {"name": "tls", "typed_config": {
            "@type": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext")}}}),
            "filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificates: a listener \
             needs a certificate",
        ),
        (
            json!({"listener_filters": [
                {"name": "t", "typed_config": {"@type": typed("extensions.filters.listener.tls_inspector.v3.TlsInspector")}},
                {"name": "p", "typed_config": {"@type": typed("extensions.filters.listener.proxy_protocol.v3.ProxyProtocol")}},
            ]}),
            "listener_filters[1]: must stand before the inspectors, which would look at its header",
        ),
        (
            json!({"listener_filters": [{"name": "p", "typed_config": {
            "@type": typed("extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"),
            "rules": [{"tlv_type": 256, "on_tlv_present": {"key": "k"}}]}}]}),
            "listener_filters[0].typed_config.rules[0].tlv_type: must be less than 256",
        ),
        (
            json!({"socket_options": [{"level": 1_099_511_627_776_i64, "name": 1, "int_value": 1}]}),
            "socket_options[0].level: is no number that the kernel takes",
        ),
        (
            json!({"additional_addresses": [{"address": {"pipe": {"path": "/x"}}}]}),
            "additional_addresses: a listener has one address so far",
        ),
    ] {
        refuses_listener(changes, expected);
    }
}

/// A network filter of RBAC with one policy.
fn rbac(policy: &Value) -> Value {
    json!({"name": "rbac", "typed_config": {"@type": typed("extensions.filters.network.rbac.v3.RBAC"),
        "stat_prefix": "r", "rules": {"policies": {"p": policy}}}})
}

#[test]
fn network_filters_come_before_the_terminal_one() {
    let policy = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
    let filters =
        json!({"filter_chains": [{"filters": [rbac(&policy), rbac(&policy), tcp_proxy("origin")]}]});
    assert_eq!(listener(filters).chains[0].filters.len(), 2);
    let at = "filter_chains[0].filters[0]";
    let refused = |policy: Value, expected: &str| {
        let filters = json!({"filter_chains/0/filters": [rbac(&policy), tcp_proxy("origin")]});
        refuses_listener(filters, &format!("{at}.typed_config.rules.policies[\"p\"]{expected}"));
    };
    refuses_listener(
        json!({"filter_chains/0/filters": [rbac(&policy)]}),
        &format!("{at}: rbac is no terminal filter and cannot be the last one of its chain"),
    );
    let mut with = policy.clone();
    with["condition"] =
        json!({"call_expr": {"function": "string", "args": [{"const_expr": {"bool_value": true}}]}});
    refused(with, ".condition: the function string() with 1 arguments is not supported");
    let mut with = policy.clone();
    with["permissions"] = json!([{"header": {"name": "x", "present_match": true}}]);
    refused(with, ".permissions[0].header: a connection has no headers to look at");
    let mut with = policy;
    with["principals"] = json!([{"not_id": {"filter_state": {"key": "k", "address_match": {"ranges": [{"address_prefix": "x"}]}}}}]);
    let at = ".principals[0].not_id.filter_state.address_match.ranges[0].address_prefix";
    refused(with, &format!("{at}: \"x\" is not an IP address"));
}

#[test]
fn an_internal_listener_has_no_socket() {
    let internal = |mut changes: Value| {
        changes["internal_listener"] = json!({});
        changes
    };
    let found = listener(internal(json!({"address": null})));
    assert!(found.is_internal() && !found.bind_to_port);
    assert_eq!(found.address.to_string(), "envoy://ingress/");
    refuses_listener(
        internal(json!({})),
        "address: is only for a listener with a socket, and this is an internal one",
    );
    refuses_listener(
        internal(json!({"address": null, "transparent": true})),
        "transparent: is only for a listener with a socket, and this is an internal one",
    );
    refuses_listener(
        json!({"address": {"envoy_internal_address": {"server_listener_name": "x"}}}),
        "address.envoy_internal_address: a listener has none; use internal_listener",
    );
}
