//! HTTP connection managers.

use super::*;

#[test]
fn defaults_are_envoys() {
    let hcm = hcm(json!({}));
    assert_eq!(hcm.codec, Codec::Auto);
    assert_eq!(hcm.server_name, "envoy");
    assert_eq!(hcm.server_header, ServerHeader::Overwrite);
    assert!(!hcm.use_remote_address && hcm.generate_request_id);
    assert_eq!(hcm.timeouts.idle, Some(Duration::from_secs(3600)));
    assert_eq!(hcm.timeouts.stream_idle, Some(Duration::from_secs(300)));
    assert_eq!(hcm.timeouts.request, None);
    assert_eq!(hcm.timeouts.request_headers, Some(Duration::from_secs(10)));
    assert_eq!((hcm.limits.max_head, hcm.limits.max_fields), (60 * 1024, 100));
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
    assert!(hcm.limits.http_10);
    assert_eq!(hcm.limits.default_host.as_deref(), Some(&b"h"[..]));
    assert_eq!((&hcm.server_name[..], hcm.server_header), (&b"s"[..], ServerHeader::PassThrough));
    assert_eq!(hcm.scheme_overwrite.as_deref(), Some(&b"https"[..]));
    assert_eq!((hcm.escaped_slashes, hcm.strip_port), (EscapedSlashes::Reject, StripPort::Any));
    let upgrades: Vec<_> = hcm.upgrades.iter().map(|upgrade| (&*upgrade.kind, upgrade.enabled)).collect();
    assert_eq!(upgrades, [("websocket", true), ("x", false)]);
    assert_eq!(hcm.internal_networks, [("10.0.0.0".parse().unwrap(), 8)]);
    assert_eq!(hcm.xff_num_trusted_hops, 2);
    assert!(hcm.internal_unix && hcm.client_cert == crate::config::http::ClientCert::AlwaysForwardOnly);
    assert_eq!((hcm.limits.max_head, hcm.limits.max_fields), (96 * 1024, 9));
}

#[test]
fn wrong_connection_managers_are_refused() {
    let xff = json!([{"name": "xff", "typed_config": {
        "@type": typed("extensions.http.original_ip_detection.xff.v3.XffConfig")}}]);
    for (changes, expected) in [
        (json!({"http_filters": [router(), router()]}), "http_filters[0]: the router (router) must be the last filter"),
        (json!({"http_filters/0/disabled": true}), "http_filters[0].disabled: the router cannot be disabled"),
        (json!({"http_filters": [{"name": "geoip", "typed_config": {
            "@type": typed("extensions.filters.http.geoip.v3.Geoip")}}, router()]}),
         "http_filters[0].typed_config: the extension type envoy.extensions.filters.http.geoip.v3.Geoip is known but \
          not supported"),
        (json!({"http_filters": [{"name": "lua", "typed_config": {
            "@type": typed("extensions.filters.http.lua.v3.Lua"), "inline_code": "function oh no"}}, router()]}),
         "http_filters[0].typed_config.inline_code: script load error: syntax error: [string \"function oh no\"]:1: \
          '(' expected near 'no'"),
        (json!({"http_filters": [{"name": "lua", "typed_config": {
            "@type": typed("extensions.filters.http.lua.v3.Lua"), "source_codes": {
                "one": {"inline_string": "nothing()"}}}}, router()]}),
         "http_filters[0].typed_config.source_codes[\"one\"]: script load error: runtime error: \
          [string \"nothing()\"]:1: attempt to call global 'nothing' (a nil value)"),
        (json!({"http_filters": [{"name": "lua", "typed_config": {
            "@type": typed("extensions.filters.http.lua.v3.Lua"), "inline_code": "x = 1",
            "default_source_code": {"inline_string": "x = 1"}}}, router()]}),
         "http_filters[0].typed_config.inline_code: only one of inline_code and default_source_code can be set"),
        (json!({"codec_type": "HTTP3"}), "codec_type: HTTP/3 is not supported"),
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
        (json!({"original_ip_detection_extensions": [{"name": "x", "typed_config": {
            "@type": typed("extensions.http.original_ip_detection.xff.v3.XffConfig"), "xff_num_trusted_hops": 1,
            "xff_trusted_cidrs": {"cidrs": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}}}]}),
         "original_ip_detection_extensions[0].typed_config.xff_trusted_cidrs: cannot be combined with \
          xff_num_trusted_hops"),
        (json!({"original_ip_detection_extensions": [{"name": "h", "typed_config": {
            "@type": typed("extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig")}}]}),
         "original_ip_detection_extensions[0].typed_config.header_name: is empty"),
        (json!({"early_header_mutation_extensions": [{"name": "e", "typed_config": {
            "@type": typed("extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"),
            "mutations": [{"remove": ":path"}]}}]}),
         "early_header_mutation_extensions[0].typed_config.mutations[0].remove: \":path\": pseudo headers and host cannot be removed"),
        (json!({"scheme_header_transformation": {"scheme_to_overwrite": "ftp"}}),
         "scheme_header_transformation.scheme_to_overwrite: is \"ftp\", must be one of [\"http\", \"https\"]"),
        (json!({"stream_idle_timeout": "-1s"}), "stream_idle_timeout: must not be negative"),
        (json!({"http_filters/0/typed_config/strict_check_headers": ["x-foo"]}),
         "http_filters[0].typed_config.strict_check_headers: entry 0: is \"x-foo\", must be one of \
          [\"x-envoy-upstream-rq-timeout-ms\", \"x-envoy-upstream-rq-per-try-timeout-ms\", \
          \"x-envoy-max-retries\", \"x-envoy-retry-grpc-on\", \"x-envoy-retry-on\"]"),
    ] {
        refuses_hcm(changes, expected);
    }
    let rds = json!({"config_source": {"ads": {}, "resource_api_version": "V3"}});
    refuses_hcm(json!({"route_config": null, "rds": rds}), "rds.route_config_name: is required");
}

#[test]
fn verbose_tracing_is_only_warned_about() {
    let compiled = compiled(&[(&format!("{HCM}/tracing"), json!({"verbose": true}))]);
    assert_eq!(compiled.warnings.len(), 1);
    assert_eq!(compiled.warnings[0].path, format!("{HCM_PATH}.tracing.verbose"));
}

#[test]
fn clusters_of_static_routes_must_exist() {
    let route = |action: Value| json!({"route_config/virtual_hosts/0/routes/0/route": action});
    const AT: &str = "route_config.virtual_hosts[0].routes[0].route";
    refuses_hcm(route(json!({"cluster": "x"})), &format!("{AT}.cluster: there is no cluster \"x\""));
    refuses_hcm(
        route(
            json!({"weighted_clusters": {"clusters": [{"name": "origin", "weight": 1}, {"name": "x", "weight": 1}]}}),
        ),
        &format!("{AT}.weighted_clusters.clusters[1].name: there is no cluster \"x\""),
    );
    refuses_hcm(
        route(json!({"cluster": "origin", "request_mirror_policies": [{"cluster": "x"}]})),
        &format!("{AT}.request_mirror_policies[0].cluster: there is no cluster \"x\""),
    );
    hcm(
        json!({"route_config/validate_clusters": false, "route_config/virtual_hosts/0/routes/0/route": {"cluster": "x"}}),
    );
    hcm(route(json!({"cluster_header": "x-cluster"})));
}
