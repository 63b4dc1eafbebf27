use std::collections::HashMap;

use serde_json::{json, Value};

use super::*;
use crate::config::compile::Compiler;

fn compile(config: &Value) -> Result<TcpProxy, Vec<String>> {
    let compiler = Compiler::default();
    let environment = Environment::new(&compiler);
    let config = outrigger_control_api::load_value::<pb::TcpProxy>(config).expect("a test's own JSON");
    let mut problems = Problems::new();
    let proxy = TcpProxy::compile(&config.message, &environment, &mut problems);
    proxy.ok_or_else(|| problems.list().iter().map(ToString::to_string).collect())
}

#[test]
fn defaults_are_envoys() {
    let proxy = compile(&json!({"stat_prefix": "x", "cluster": "one"})).unwrap();
    assert_eq!(proxy.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(proxy.max_connect_attempts, 1);
    assert_eq!(proxy.max_connection_duration, None);
    assert_eq!(proxy.log_options, LogOptions::default());
    assert!(!proxy.hash_source_ip);
    assert_eq!(&**proxy.draw().unwrap().0.name(), "one");
}

#[test]
fn everything_set() {
    let proxy = compile(&json!({
        "stat_prefix": "x", "cluster": "one", "idle_timeout": "0s", "max_connect_attempts": 3,
        "max_downstream_connection_duration": "60s",
        "max_downstream_connection_duration_jitter_percentage": {"value": 25.0},
        "access_log_options": {"flush_access_log_on_connected": true, "access_log_flush_interval": "2s"},
        "hash_policy": [{"source_ip": {}}],
    }))
    .unwrap();
    assert_eq!(proxy.idle_timeout, None);
    assert_eq!(proxy.max_connect_attempts, 3);
    assert_eq!(proxy.max_connection_duration, Some(Duration::from_secs(60)));
    assert_eq!(proxy.max_connection_duration_jitter, 25.0);
    let interval = Some(Duration::from_secs(2));
    assert_eq!(proxy.log_options, LogOptions { on_start: false, on_connected: true, interval });
    assert!(proxy.hash_source_ip);
}

#[test]
fn weights_are_kept() {
    let clusters =
        json!([{"name": "a", "weight": 1}, {"name": "b", "weight": 3}, {"name": "c", "weight": 6}]);
    let proxy = compile(&json!({"stat_prefix": "x", "weighted_clusters": {"clusters": clusters}})).unwrap();
    let Target::Weighted(weighted) = &proxy.target else { panic!("{:?}", proxy.target) };
    let mut counts = HashMap::new();
    for draw in 0..weighted.total() {
        *counts.entry(weighted.at(draw).unwrap().name().to_string()).or_insert(0) += 1;
    }
    assert_eq!(counts, [("a", 1), ("b", 3), ("c", 6)].map(|(name, n)| (name.to_owned(), n)).into());
    assert!(weighted.at(10).is_none());
    assert!(proxy.draw().is_some());
}

#[test]
fn problems_name_their_field() {
    for (field, value, expected) in [
        ("idle_timeout", json!("-1s"), "idle_timeout: must not be negative"),
        (
            "max_downstream_connection_duration_jitter_percentage",
            json!({"value": 101.0}),
            "max_downstream_connection_duration_jitter_percentage: is 101, must be from 0 to 100",
        ),
        (
            "access_log_options",
            json!({"access_log_flush_interval": "0.0001s"}),
            "access_log_options.access_log_flush_interval: is 100µs, must be at least 1ms",
        ),
        ("hash_policy", json!([{}]), "hash_policy[0]: needs source_ip or filter_state"),
        ("access_log", json!([{"name": "x"}]), "access_log[0].typed_config: an access log needs a logger"),
    ] {
        let mut config = json!({"stat_prefix": "x", "cluster": "one"});
        config[field] = value;
        assert_eq!(compile(&config).unwrap_err(), [expected]);
    }
    let both = json!({
        "stat_prefix": "x", "cluster": "one", "access_log_options": {}, "flush_access_log_on_connected": true,
    });
    let problem = "flush_access_log_on_connected: cannot be set together with access_log_options";
    assert_eq!(compile(&both).unwrap_err(), [problem]);
}

#[test]
fn a_tunnel_is_asked_for_as_config_says() {
    use crate::config::RequestView;
    use crate::telemetry::fixtures;
    let with = |tunnel: Value| json!({"stat_prefix": "x", "cluster": "one", "tunneling_config": tunnel});
    let request = |tunnel: Value| {
        let proxy = compile(&with(tunnel)).unwrap();
        proxy.tunnel.unwrap().request(&fixtures::stream())
    };
    let added = json!([{"header": {"key": "x-a", "value": "%PROTOCOL%-b"}}]);
    let head = request(json!({"hostname": "a.test:1", "headers_to_add": added})).unwrap();
    assert_eq!((head.method(), head.authority(), head.path()), (&b"CONNECT"[..], &b"a.test:1"[..], &b""[..]));
    assert_eq!(head.fields.iter().count(), 1);
    let head = request(json!({"hostname": "a.test:1", "use_post": true, "post_path": "/p"})).unwrap();
    assert_eq!((head.method(), head.path()), (&b"POST"[..], &b"/p"[..]));
    for unspeakable in ["two words", "a.test\r\nx: y", "%REQUESTED_SERVER_NAME% %PROTOCOL%"] {
        assert!(request(json!({"hostname": unspeakable})).is_none(), "{unspeakable}");
    }
    for (tunnel, expected) in [
        (json!({"hostname": "a", "post_path": "/"}), "post_path: is only for use_post"),
        (json!({"hostname": "a", "use_post": true, "post_path": "x y"}), "post_path: \"x y\" is no path"),
    ] {
        assert_eq!(compile(&with(tunnel)).unwrap_err(), [format!("tunneling_config.{expected}")]);
    }
}
