//! The short form: what it yields and what it refuses.

use serde_json::{json, Value};

use super::*;
use crate::load::load_resource;
use crate::text::{parse, Format};

fn expanded(text: &str) -> Vec<(String, Value)> {
    let made = expand(&parse(text.as_bytes(), Format::Yaml).unwrap()).unwrap_or_else(|e| panic!("{e:?}"));
    made.labels.into_iter().zip(made.resources).collect()
}

/// Every problem as `service: path`.
fn refused(text: &str) -> Vec<String> {
    let problems = expand(&parse(text.as_bytes(), Format::Yaml).unwrap()).unwrap_err();
    problems.into_iter().map(|(label, problem)| format!("{label}: {problem}")).collect()
}

fn find<'a>(resources: &'a [(String, Value)], kind: &str, name: &str) -> &'a Value {
    let is_it = |value: &Value| {
        let named = value["name"] == name || value["cluster_name"] == name;
        named && value["@type"].as_str().is_some_and(|url| url.ends_with(kind))
    };
    &resources.iter().find(|(_, value)| is_it(value)).unwrap_or_else(|| panic!("no {kind} {name}")).1
}

const EVERYTHING: &str = r#"
listen: 127.0.0.1:9000
services:
  web:
    port: 8080
    hosts: [www.example, "*.web.example"]
    endpoints: ["10.0.0.1:8080", {address: "[::1]:8080", weight: 3, zone: b, priority: 1, health: draining}]
    lb_policy: least_request
    timeout: 2s
    connect_timeout: 250ms
    idle_timeout: 5m
    retries: {attempts: 3, on: [5xx, reset], per_try_timeout: 500ms}
    circuit_breakers: {max_connections: 10, max_pending_requests: 0, max_requests: 20, max_retries: 5}
    outlier_detection: {consecutive_5xx: 3, interval: 1s, base_ejection_time: 10s, max_ejection_percent: 50}
    health_check: {path: /ready, interval: 1s}
  accounts:
    protocol: grpc
    port: 50051
    versions:
      stable: {weight: 95, endpoints: ["10.0.1.1:50051"]}
      canary: {weight: 5, headers: {X-Canary: "yes"}, endpoints: "10.0.1.2:50051"}
  named:
    listen: 127.0.0.1:9001
    endpoints: ["db.example:80"]
    health_check: {}
  database:
    protocol: tcp
    listen: 127.0.0.1:5432
    idle_timeout: 1h
    versions:
      one: {weight: 0, endpoints: ["10.0.2.1:5432"]}
      two: {endpoints: ["10.0.2.2:5432"]}
"#;

#[test]
fn every_field_becomes_resources() {
    let made = expanded(EVERYTHING);
    for (label, resource) in &made {
        load_resource(resource).unwrap_or_else(|e| panic!("{label}: {e:?}\n{resource:#}"));
    }
    let web = find(&made, "Cluster", "web");
    assert_eq!((&web["type"], &web["lb_policy"]), (&json!("EDS"), &json!("LEAST_REQUEST")));
    assert_eq!(web["circuit_breakers"]["thresholds"][0]["max_pending_requests"], 0);
    assert_eq!(web["outlier_detection"]["base_ejection_time"], "10s");
    assert_eq!(web["health_checks"][0]["http_health_check"]["path"], "/ready");
    assert_eq!(web["connect_timeout"], "0.25s");
    let endpoints = find(&made, "ClusterLoadAssignment", "web");
    assert_eq!(endpoints["endpoints"][1]["priority"], 1);
    assert_eq!(endpoints["endpoints"][1]["load_balancing_weight"], 3);
    assert_eq!(endpoints["endpoints"][1]["lb_endpoints"][0]["health_status"], "DRAINING");

    let hosts = &find(&made, "RouteConfiguration", "services")["virtual_hosts"];
    let domains =
        ["web", "web:8080", "www.example", "www.example:8080", "*.web.example", "*.web.example:8080"];
    assert_eq!(hosts[0]["domains"], json!(domains));
    let action = &hosts[0]["routes"][0]["route"];
    assert_eq!((&action["timeout"], &action["retry_policy"]["num_retries"]), (&json!("2s"), &json!(3)));
    assert_eq!(action["retry_policy"]["retry_on"], "5xx,reset");
    let chosen = &hosts[1]["routes"][0];
    assert_eq!(chosen["match"]["headers"][0], json!({"name": "x-canary", "string_match": {"exact": "yes"}}));
    assert_eq!(chosen["route"]["cluster"], "accounts/canary");
    let weighted = &hosts[1]["routes"][1]["route"]["weighted_clusters"]["clusters"];
    assert_eq!(weighted[0], json!({"name": "accounts/stable", "weight": 95}));
    assert_eq!(hosts[2]["domains"], json!(["named", "named:*"]));
    assert_eq!(hosts.as_array().unwrap().len(), 3, "tcp has no host names");

    for name in ["accounts", "accounts:50051"] {
        assert!(find(&made, "Listener", name)["api_listener"].is_object());
    }
    assert_eq!(find(&made, "Cluster", "named")["type"], "STRICT_DNS");
    assert!(find(&made, "Listener", "services/named")["address"].is_object());
    assert_eq!(find(&made, "Listener", "services")["address"]["socket_address"]["port_value"], 9000);
    let tcp = &find(&made, "Listener", "services/database")["filter_chains"][0]["filters"][0]["typed_config"];
    let clusters = json!([{"name": "database/two", "weight": 1}]);
    assert_eq!((&tcp["idle_timeout"], &tcp["weighted_clusters"]["clusters"]), (&json!("3600s"), &clusters));
}

#[test]
fn mistakes_are_named_with_service_and_field() {
    let cases = [
        ("services: {a: {}}", "services[\"a\"].endpoints: there are none"),
        (
            "services: {a: {endpoints: ['1.2.3.4']}}",
            "services[\"a\"].endpoints[0].address: \"1.2.3.4\" is no address",
        ),
        ("services: {a: {endpoints: ['1.2.3:80']}}", "endpoints[0].address: \"1.2.3:80\" is no address"),
        (
            "services: {a: {endpoints: ['h:80'], tiemout: 1s}}",
            "services[\"a\"].tiemout: no such field; there are",
        ),
        ("services: {a: {endpoints: ['h:80'], timeout: 1}}", "services[\"a\"].timeout: \"1\" is no time"),
        (
            "services: {a: {endpoints: ['h:80'], port: 0}}",
            "services[\"a\"].port: must be a whole number from 1",
        ),
        (
            "services: {a: {endpoints: ['h:80'], lb_policy: best}}",
            "lb_policy: \"best\" is none of round_robin",
        ),
        ("services: {a: {endpoints: ['h:80'], protocol: tcp}}", "listen: is needed for tcp"),
        (
            "services: {'a b': {endpoints: ['h:80']}}",
            "services[\"a b\"]: the name of a service is a host name",
        ),
        (
            "services: {a: {endpoints: ['h:80'], hosts: b}, b: {endpoints: ['h:80']}}",
            "\"a\" has the host name \"b\" too",
        ),
        ("services: {a: {endpoints: ['h:80'], listen: '127.0.0.1:15001'}}", "listens on 127.0.0.1:15001 too"),
        (
            "services: {a: {versions: {x: {weight: 0, endpoints: ['h:80']}}}}",
            "at least one weight must be above 0",
        ),
        ("services: []", ": services: must be an object with names as keys, found"),
        ("services: {}\nextra: 1", ": extra: no such field"),
    ];
    for (text, want) in cases {
        let problems = refused(text);
        assert!(problems.iter().any(|p| p.contains(want)), "{text}: {problems:?} lacks {want:?}");
    }
    let both = refused("services: {a: {endpoints: ['h:0']}, b: {endpoints: ['h:80'], port: x}}");
    assert_eq!(both.len(), 2, "all problems at once: {both:?}");
    assert!(both[1].starts_with("service \"b\": "), "{both:?}");
}
