//! What the loader accepts, and how it names what it does not.

use serde_json::json;

use super::*;
use crate::pb::envoy::config::cluster::v3::{cluster::ClusterDiscoveryType, cluster::DiscoveryType};
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use crate::{Problem, MAX_TEXT_BYTES};

#[test]
fn a_bootstrap_becomes_typed_messages() {
    let bootstrap = bootstrap().message;
    let resources = bootstrap.static_resources.unwrap();
    let cluster = &resources.clusters[0];
    assert_eq!(cluster.name, "service");
    assert_eq!(cluster.connect_timeout.unwrap().seconds, 1);
    assert_eq!(cluster.per_connection_buffer_limit_bytes.unwrap().value, 32768);
    // The alias is the anchor's copy.
    assert_eq!(resources.listeners[0].address, resources.listeners[1].address);
    let Some(crate::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any)) =
        &resources.listeners[0].filter_chains[0].filters[0].config_type
    else {
        panic!("no typed_config");
    };
    let proxy: TcpProxy = crate::unpack(any).unwrap();
    assert_eq!(proxy.stat_prefix, "tcp");
    assert_eq!(proxy.idle_timeout.unwrap().nanos, 250_000_000);
}

#[test]
fn every_problem_is_reported_at_its_path() {
    let text = BOOTSTRAP
        .replace("stat_prefix: tcp", "stat_prefix: tcp\n          foo: 1")
        .replace("connect_timeout: 1s", "connect_timeout: 1 s")
        .replace("port_value: 8080", "port_value: many")
        .replace("port_value: 9901", "port_value: 99999999999");
    let problems = load::<Bootstrap>(&text, Format::Auto).unwrap_err();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "admin.address.socket_address.port_value: 99999999999 is out of range for an unsigned 32-bit integer",
            "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.foo: unknown field of \
             envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "static_resources.clusters[0].connect_timeout: invalid duration \"1 s\", expected seconds such as \
             0.25s or 10s",
            "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.\
             socket_address.port_value: expected an unsigned 32-bit integer, found the string \"many\"",
        ]
    );
}

#[test]
fn unknown_fields_come_with_a_suggestion() {
    assert_eq!(
        problem(CLUSTER, json!({ "conect_timeout": "1s" })),
        "static_resources.clusters[0].conect_timeout: unknown field of envoy.config.cluster.v3.Cluster, did \
         you mean connect_timeout?"
    );
}

#[test]
fn keys_of_maps_stand_in_the_path() {
    let options = any("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", json!({ "bad": {} }));
    assert_eq!(
        problem(CLUSTER, json!({ "typed_extension_protocol_options": { "x\"y": options } })),
        "static_resources.clusters[0].typed_extension_protocol_options[\"x\\\"y\"].bad: unknown field of \
         envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    );
}

#[test]
fn types_must_be_named_and_known() {
    let path = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    assert_eq!(
        problem(TCP_PROXY, json!({ "@type": "type.googleapis.com/a.B" })),
        format!("{path}.@type: unknown type a.B")
    );
    assert!(problem(TCP_PROXY, json!({ "@type": "a.B" }))
        .starts_with(&format!("{path}.@type: \"a.B\" is no type URL")));
    assert!(problem(TCP_PROXY, json!({ "@type": 5 })).contains("expected a type URL, found the number 5"));
    let filter = "/static_resources/listeners/0/filter_chains/0/filters/0";
    assert_eq!(
        problem(filter, json!({ "typed_config": { "a": 1 } })),
        format!("{path}: an `@type` is missing")
    );
    assert!(problem(filter, json!({ "typed_config": "x" })).contains("expected an object with an `@type`"));
    // A host other than Google's is as good, as for Envoy.
    accepted(TCP_PROXY, json!({ "@type": "a/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" }));
}

#[test]
fn kinds_must_fit() {
    for (change, expected) in [
        (json!({ "name": 5 }), "name: expected a string, found the number 5 (put it in quotes)"),
        (json!({ "name": ["a"] }), "name: expected a string, found a list"),
        (json!({ "connect_timeout": 5 }), "connect_timeout: a duration needs its unit: expected \"5s\", found 5"),
        (json!({ "connect_timeout": true }), "connect_timeout: expected a duration such as 0.25s, found the boolean true"),
        (json!({ "respect_dns_ttl": 1 }), "respect_dns_ttl: expected true or false, found the number 1"),
        (json!({ "upstream_bind_config": "x" }), "upstream_bind_config: expected an object (envoy.config.core.v3.BindConfig), found the string \"x\""),
        (json!({ "max_requests_per_connection": 5_000_000_000_u64 }), "max_requests_per_connection: 5000000000 is out of range for an unsigned 32-bit integer"),
        (json!({ "per_connection_buffer_limit_bytes": 1.5 }), "per_connection_buffer_limit_bytes: expected an unsigned 32-bit integer, found the number 1.5"),
        (json!({ "metadata": { "filter_metadata": [] } }), "metadata.filter_metadata: expected an object, found a list"),
        (json!({ "health_checks": [{ "unknown": 1 }] }), "health_checks[0].unknown: unknown field of envoy.config.core.v3.HealthCheck"),
        (json!({ "type": "FOO" }), "type: the string \"FOO\" is no envoy.config.cluster.v3.Cluster.DiscoveryType, expected one of STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST"),
        (json!({ "type": "StrictDns" }), "type: the string \"StrictDns\" is no envoy.config.cluster.v3.Cluster.DiscoveryType, expected one of STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST"),
        (json!({ "type": 77 }), "type: the number 77 is no envoy.config.cluster.v3.Cluster.DiscoveryType, expected one of STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST"),
    ] {
        assert_eq!(problem(CLUSTER, change), format!("static_resources.clusters[0].{expected}"));
    }
}

#[test]
fn a_field_is_set_once() {
    assert_eq!(
        problem(CLUSTER, json!({ "connectTimeout": "2s" })),
        "static_resources.clusters[0].connect_timeout: is set twice, as connect_timeout and as connectTimeout"
    );
    let twice = problem(TCP_PROXY, json!({ "weighted_clusters": { "clusters": [] } }));
    assert!(twice
        .ends_with("weighted_clusters: cannot be set together with cluster (only one cluster_specifier)"));
    // Null means not set.
    accepted(TCP_PROXY, json!({ "weighted_clusters": null }));
}

#[test]
fn what_envoy_accepts_is_accepted() {
    for change in [
        json!({ "respect_dns_ttl": "true" }),
        json!({ "type": "static" }),
        json!({ "type": 0 }),
        json!({ "type": "0" }),
        json!({ "per_connection_buffer_limit_bytes": { "value": 5 } }),
        json!({ "per_connection_buffer_limit_bytes": "5" }),
        json!({ "per_connection_buffer_limit_bytes": 5.0 }),
        json!({ "connect_timeout": { "seconds": 5 } }),
        json!({ "perConnectionBufferLimitBytes": null }),
        json!({ "health_checks": { "timeout": "1s" } }),
        json!({ "health_checks": [null] }),
        json!({ "metadata": { "filter_metadata": { "a": { "b": [null, {}] } } } }),
    ] {
        accepted(CLUSTER, change);
    }
    let lower = accepted(CLUSTER, json!({ "type": "strict_dns" }));
    let cluster = &lower.static_resources.unwrap().clusters[0];
    assert_eq!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32))
    );
}

#[test]
fn yaml_has_its_own_booleans_and_merge_keys() {
    let text = "admin: { ignore_global_conn_limit: yes }\nstatic_resources:\n  clusters:\n  - &a { name: a, connect_timeout: 1s }\n  - { <<: *a, name: b }\n";
    let loaded = load::<Bootstrap>(text, Format::Yaml).unwrap().message;
    assert!(loaded.admin.unwrap().ignore_global_conn_limit);
    let clusters = loaded.static_resources.unwrap().clusters;
    assert_eq!(clusters[1].name, "b");
    assert_eq!(clusters[1].connect_timeout, clusters[0].connect_timeout);
    let json = r#"{"admin": {"ignore_global_conn_limit": "yes"}}"#;
    assert!(load::<Bootstrap>(json, Format::Json).is_err());
}

#[test]
fn flow_yaml_in_braces_is_yaml() {
    assert!(load::<Bootstrap>("{static_resources: {clusters: [{name: a}]}}", Format::Auto).is_ok());
    let error = text_error("{\"static_resources\": {\"clusters\": [}", Format::Auto);
    assert!(error.starts_with("invalid JSON: ") && error.contains("line 1"), "{error}");
}

fn text_error(text: impl AsRef<[u8]>, format: Format) -> String {
    let problems: Vec<Problem> = load::<Bootstrap>(text, format).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].to_string()
}

#[test]
fn text_that_is_no_configuration_is_one_clear_error() {
    for (text, format, expected) in [
        ("", Format::Auto, "the configuration is empty"),
        ("# nothing\n", Format::Auto, "the configuration is empty"),
        ("- a\n", Format::Auto, "the configuration must be an object, found a list"),
        ("just words", Format::Auto, "the configuration must be an object, found the string \"just words\""),
        ("a: 1\nb: [\n", Format::Yaml, "line 3"),
        ("admin: {}\nadmin: {}\n", Format::Yaml, "duplicate entry"),
        ("{\"admin\": {}, \"admin\": {}}", Format::Json, "duplicate key \"admin\""),
        ("admin: {}\n---\nadmin: {}\n", Format::Yaml, "more than one document"),
        ("admin: !secret x\n", Format::Yaml, "the tag !secret has no meaning here"),
        ("admin: *nowhere\n", Format::Yaml, "unknown anchor"),
    ] {
        let error = text_error(text, format);
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    let error = text_error(b"admin:\n  \xff\xfe", Format::Auto);
    assert_eq!(error, "the configuration is not UTF-8 text (line 2, byte 9)");
    let error = text_error(vec![b' '; MAX_TEXT_BYTES + 1], Format::Auto);
    assert_eq!(error, "the configuration has 67108865 bytes, more than the limit of 67108864");
}

#[test]
fn nesting_is_bounded() {
    let depth = 100_000;
    for format in [Format::Json, Format::Yaml, Format::Auto] {
        let text = format!("{{\"node\": {}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let error = text_error(&text, format);
        assert!(error.contains("recursion limit"), "{error}");
    }
    // A value that no parser bounded is bounded by the walk.
    let mut matcher = json!({ "any_match": true });
    for _ in 0..200 {
        matcher = json!({ "not_match": matcher });
    }
    let problems = load_value::<crate::pb::envoy::config::tap::v3::MatchPredicate>(&matcher).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].message, "nested deeper than 128 levels");
    let mut value = json!(1);
    for _ in 0..200 {
        value = json!([value]);
    }
    assert!(problem(CLUSTER, json!({ "metadata": { "filter_metadata": { "a": { "b": value } } } }))
        .contains("nested"));
}

#[test]
fn a_billion_laughs_is_an_error() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(text_error(&text, Format::Yaml).contains("repetition limit"));
}

#[test]
fn ten_megabytes_are_read() {
    let mut text = String::from("static_resources:\n  clusters:\n");
    let mut count = 0;
    while text.len() < 10_000_000 {
        let name = format!("{count:0>2000}");
        text.push_str(&format!("  - name: \"{name}\"\n    connect_timeout: 1s\n"));
        count += 1;
    }
    let loaded = load::<Bootstrap>(&text, Format::Yaml).unwrap();
    assert_eq!(loaded.message.static_resources.unwrap().clusters.len(), count);
}

#[test]
fn mutations_never_panic() {
    const TOKENS: [&str; 14] =
        [": ", "\n", "- ", "{", "}", "[", "]", "\"", "&address ", "*address", "null", "-1", "1e999", "\u{0}"];
    let json =
        serde_json::to_string(&crate::text::parse(BOOTSTRAP.as_bytes(), Format::Yaml).unwrap()).unwrap();
    let (mut read, mut refused) = (0, 0);
    for seed in 1..=2000u64 {
        let mut random = Random::new(seed);
        let mut text = if seed % 2 == 0 { json.clone() } else { BOOTSTRAP.to_owned() }.into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len());
            match random.below(5) {
                0 => text[at] = u8::try_from(random.below(130)).unwrap(),
                1 => {
                    text.remove(at);
                }
                2 => {
                    let token = TOKENS[random.below(TOKENS.len())].bytes();
                    text.splice(at..at, token);
                }
                3 => {
                    let end = (at + random.below(200)).min(text.len());
                    text.drain(at..end);
                }
                _ => {
                    let end = (at + random.below(200)).min(text.len());
                    let copy = text[at..end].to_vec();
                    let to = random.below(text.len());
                    text.splice(to..to, copy);
                }
            }
        }
        match load::<Bootstrap>(&text, Format::Auto) {
            Ok(loaded) => {
                read += 1;
                let _ = crate::to_json(&loaded.dynamic);
            }
            Err(problems) => {
                assert!(!problems.is_empty(), "seed {seed}");
                refused += 1;
            }
        }
    }
    assert!(read > 50 && refused > 1000, "{read} read, {refused} refused");
}

#[test]
fn random_bytes_are_one_error() {
    for seed in 1..=200u64 {
        let mut random = Random::new(seed);
        let text: Vec<u8> = (0..random.below(5000) + 64).map(|_| random.byte()).collect();
        let error = text_error(&text, Format::Auto);
        assert!(error.contains("UTF-8") || error.contains("YAML") || error.contains("JSON"), "{error}");
    }
}
