//! Single resources, `Any`, `TypedStruct` and the JSON form.

use prost::Message as _;
use serde_json::json;

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use crate::pb::google::protobuf::Any;
use crate::pb::stats::PluginConfig;
use crate::{check_any, load_resource, message_to_json, to_dynamic, to_json, type_of, unpack, UnpackError};

const TYPED_STRUCTS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// An `Any` of a `TypedStruct` as a control plane sends it, which the loader would have converted.
fn struct_any(package: &str, type_name: &str, value: serde_json::Value) -> Any {
    let fields = json!({ "type_url": format!("type.googleapis.com/{type_name}"), "value": value });
    // Read as an unknown type, then renamed, so that the structure stays one.
    let mut unknown = fields.clone();
    unknown["type_url"] = json!("type.googleapis.com/not.Known");
    let resource = load_resource(&any(package, unknown)).unwrap();
    let mut message = resource.dynamic;
    let url = crate::reflect::Value::String(format!("type.googleapis.com/{type_name}"));
    message.try_set_field_by_number(1, url).unwrap();
    Any { type_url: format!("type.googleapis.com/{package}"), value: message.encode_to_vec() }
}

#[test]
fn the_pool_holds_our_types_and_those_of_xds_api() {
    for name in [
        "envoy.config.bootstrap.v3.Bootstrap",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
        "stats.PluginConfig",
    ] {
        assert!(crate::pool().get_message_by_name(name).is_some(), "{name}");
    }
    let cluster = crate::descriptor::<Cluster>().unwrap();
    let newer = |name: &str| cluster.get_field_by_name(name).unwrap().is_newer();
    assert!(newer("dns_jitter"));
    assert!(!newer("dns_refresh_rate"));
}

#[test]
fn fields_added_later_have_rust_types_too() {
    use crate::pb::envoy::config::route::v3::RouteMatch;
    let config = json!({ "prefix": "/", "cookies": [{ "name": "c", "string_match": { "exact": "v" } }] });
    let loaded = load_value::<RouteMatch>(&config).unwrap();
    assert_eq!(loaded.message.cookies[0].name, "c");
    assert!(loaded.message.cookies[0].string_match.is_some());
    assert_eq!(crate::to_dynamic(&loaded.message), Some(loaded.dynamic));
}

#[test]
fn a_resource_says_what_it_is() {
    let resource = load_resource(&any("envoy.config.cluster.v3.Cluster", json!({ "name": "a" }))).unwrap();
    assert_eq!(resource.any.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert_eq!(unpack::<Cluster>(&resource.any).unwrap().name, "a");
    assert_eq!(load_resource(&json!({ "name": "a" })).unwrap_err()[0].to_string(), "an `@type` is missing");
    assert_eq!(load_resource(&json!({})).unwrap_err().len(), 1);
    assert_eq!(load_resource(&json!({ "@type": "" })).unwrap_err().len(), 1);
    // A document may name its type, but no other.
    let wrong = load_value::<Bootstrap>(&any("envoy.config.cluster.v3.Cluster", json!({}))).unwrap_err();
    assert!(wrong[0].message.starts_with("expected the type envoy.config.bootstrap.v3.Bootstrap"));
    assert!(load_value::<Bootstrap>(&any("envoy.config.bootstrap.v3.Bootstrap", json!({}))).is_ok());
}

#[test]
fn well_known_types_stand_under_value() {
    let string = load_resource(&any("google.protobuf.StringValue", json!({ "value": "x" }))).unwrap();
    assert_eq!(to_json(&string.dynamic), any("google.protobuf.StringValue", json!({ "value": "x" })));
    let problems =
        load_resource(&any("google.protobuf.Duration", json!({ "value": "1", "a": 1 }))).unwrap_err();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(lines[0], "a: google.protobuf.Duration is given under `value` only");
    assert!(lines[1].starts_with("value: invalid duration \"1\""));
}

#[test]
fn a_typed_struct_of_a_known_type_is_that_type() {
    for package in TYPED_STRUCTS {
        let config = |value| {
            let url = "type.googleapis.com/stats.PluginConfig";
            any(package, json!({ "type_url": url, "value": value }))
        };
        let resource = load_resource(&config(json!({ "reporter": "SERVER_GATEWAY" }))).unwrap();
        assert_eq!(type_of(&resource.any), "stats.PluginConfig");
        assert_eq!(unpack::<PluginConfig>(&resource.any).unwrap().reporter, 1);
        let filter = "/static_resources/listeners/0/filter_chains/0/filters/0";
        assert_eq!(
            problem(filter, json!({ "typed_config": config(json!({ "foo": 1 })) })),
            "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.value.foo: unknown field of \
             stats.PluginConfig"
        );
    }
}

#[test]
fn a_typed_struct_of_an_unknown_type_stays_one() {
    for package in TYPED_STRUCTS {
        let value = any(package, json!({ "type_url": "type.googleapis.com/a.B", "value": { "x": 1.0 } }));
        let resource = load_resource(&value).unwrap();
        assert_eq!(resource.any.type_url, format!("type.googleapis.com/{package}"));
        assert_eq!(type_of(&resource.any), "a.B");
        assert_eq!(to_json(&resource.dynamic), value);
        assert!(check_any(&resource.any, "").is_ok());
    }
}

#[test]
fn typed_structs_on_the_wire_are_converted() {
    for package in TYPED_STRUCTS {
        let good = struct_any(package, "stats.PluginConfig", json!({ "disable_host_header_fallback": true }));
        assert_eq!(type_of(&good), "stats.PluginConfig");
        assert!(unpack::<PluginConfig>(&good).unwrap().disable_host_header_fallback);
        let bad = struct_any(package, "stats.PluginConfig", json!({ "foo": 1 }));
        let error = unpack::<PluginConfig>(&bad).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the structure is no valid stats.PluginConfig: value.foo: unknown field of stats.PluginConfig"
        );
        assert_eq!(check_any(&bad, "r").unwrap_err()[0].path, "r.value.foo");
    }
}

#[test]
fn unpacking_names_the_mismatch() {
    let cluster = Any { type_url: "x/envoy.config.cluster.v3.Cluster".to_owned(), value: vec![0xff] };
    let error = unpack::<TcpProxy>(&cluster).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected the type envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, found \
         envoy.config.cluster.v3.Cluster"
    );
    assert!(matches!(unpack::<Cluster>(&cluster), Err(UnpackError::Malformed { .. })));
    let error = unpack::<Cluster>(&Any::default()).unwrap_err();
    assert!(error.to_string().ends_with("found none"));
    assert_eq!(type_of(&Any::default()), "");
}

#[test]
fn unknown_fields_on_the_wire_are_found_by_number() {
    let mut cluster = Cluster { name: "a".to_owned(), ..Cluster::default() };
    let mut options = PluginConfig::default().encode_to_vec();
    // Field 100, a varint.
    options.extend([0xa0, 0x06, 0x01]);
    let typed = |name: &str, value: &[u8]| Any { type_url: format!("t/{name}"), value: value.to_vec() };
    let options = [
        ("ok", typed("stats.PluginConfig", &[])),
        ("x", typed("stats.PluginConfig", &options)),
        ("y", typed("a.B", &[])),
    ];
    cluster.typed_extension_protocol_options = options.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let any =
        Any { type_url: "t/envoy.config.cluster.v3.Cluster".to_owned(), value: cluster.encode_to_vec() };
    let lines: Vec<String> =
        check_any(&any, "clusters[a]").unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "clusters[a].typed_extension_protocol_options[\"x\"]: unknown field number 100 of stats.PluginConfig",
            "clusters[a].typed_extension_protocol_options[\"y\"]: unknown type a.B",
        ]
    );
    cluster.typed_extension_protocol_options.clear();
    cluster.lb_policy = 99;
    let any =
        Any { type_url: "t/envoy.config.cluster.v3.Cluster".to_owned(), value: cluster.encode_to_vec() };
    assert_eq!(
        check_any(&any, "c").unwrap_err()[0].to_string(),
        "c.lb_policy: 99 is no envoy.config.cluster.v3.Cluster.LbPolicy"
    );
    assert_eq!(check_any(&Any::default(), "c").unwrap_err().len(), 1);
}

#[test]
fn json_is_what_the_loader_reads() {
    let loaded = bootstrap();
    let dumped = to_json(&loaded.dynamic);
    assert_eq!(dumped["@type"], "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap");
    let proxy = dumped.pointer(TCP_PROXY).unwrap();
    assert_eq!(proxy["idle_timeout"], "0.250s");
    assert_eq!(
        proxy["access_log"][0]["typed_config"]["log_format"]["json_format"]["nested"]["a"],
        json!([1.0, true, null])
    );
    assert_eq!(dumped.pointer(CLUSTER).unwrap()["per_connection_buffer_limit_bytes"], 32768);
    assert_eq!(load_value::<Bootstrap>(&dumped).unwrap().message, loaded.message);
    assert_eq!(message_to_json(&loaded.message), dumped);
}

#[test]
fn what_cannot_be_read_is_dumped_as_it_came() {
    let unknown = Any { type_url: "t/a.B".to_owned(), value: vec![1, 2, 3] };
    assert_eq!(
        to_json(&to_dynamic(&unknown).unwrap())["value"],
        json!({ "@type": "t/a.B", "value": "AQID" })
    );
}

#[test]
fn equal_content_has_equal_bytes() {
    let keys: Vec<String> = (0..50).map(|i| format!("key {i}")).collect();
    let cluster = |order: &mut dyn Iterator<Item = &String>| {
        let metadata: serde_json::Map<String, serde_json::Value> =
            order.map(|key| (key.clone(), json!({ "a": key }))).collect();
        let value =
            json!({ "name": "a", "lb_policy": "RANDOM", "metadata": { "filter_metadata": metadata } });
        load_resource(&any("envoy.config.cluster.v3.Cluster", value)).unwrap()
    };
    let (first, second) = (cluster(&mut keys.iter()), cluster(&mut keys.iter().rev()));
    assert_eq!(first.any.value, second.any.value);
    assert_eq!(first.any.value, second.dynamic.encode_to_vec());
    let decoded = Cluster::decode(first.any.value.as_slice()).unwrap();
    assert_eq!(to_dynamic(&decoded).unwrap(), first.dynamic);
}
