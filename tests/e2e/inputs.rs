//! Configuration files that are no configuration, or nearly: one clear answer each, quickly, and never a crash.

use crate::differential::bootstrap::{endpoints, origins, Bootstrap};
use crate::harness::proxy::{fill, Kind};
use crate::peers;
use serde_json::{Map, Value};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// `outrigger validate` of a file, ended after a while.
fn validate(file: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(env!("CARGO_BIN_EXE_outrigger")).args(["validate", "-c"]).arg(file);
    command.output().expect("outrigger under timeout")
}

/// What a process said, whichever way.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

/// Fails unless the file was refused with status 1 and few words.
fn refused(name: &str, bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join(name);
    std::fs::write(&file, bytes).expect("a file");
    let started = Instant::now();
    let output = validate(&file);
    let text = said(&output);
    let start: String = text.chars().take(600).collect();
    assert_eq!(output.status.code(), Some(1), "{name}: exit status; it said: {start}");
    assert!(!text.trim().is_empty(), "{name}: refused without a word");
    assert!(text.len() < 4_000, "{name}: {} bytes of complaint: {start}", text.len());
    assert!(started.elapsed() < Duration::from_secs(30), "{name} took {:?}", started.elapsed());
    text
}

/// A generator whose numbers are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (i, name) in ["a.yaml", "b.json", "c.pb", "d", "e.pb_text"].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..1000 << i).map(|_| random.next() as u8).collect();
        refused(name, &bytes);
        let text: Vec<u8> =
            (0..1000 << i).map(|_| b" \n:{}[],-&*!|>'\"%@`abc01"[random.next() as usize % 24]).collect();
        refused(name, &text);
    }
    refused("empty.json", b"");
    refused("list.yaml", b"[1, 2, 3]");
    refused("text.yaml", b"hello");
    refused("number.json", b"17");
    refused("half.json", b"{\"static_resources\": {\"listeners\": [");
}

#[test]
fn ten_megabytes_of_nonsense_are_refused() {
    let megabytes = 10 << 20;
    refused("open.yaml", "[".repeat(megabytes).as_bytes());
    refused("open.json", "[".repeat(megabytes).as_bytes());
    refused("deep.json", "{\"a\":".repeat(megabytes / 5).as_bytes());
    refused("deep.yaml", (0..2_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>().as_bytes());
    refused("dashes.yaml", "- ".repeat(megabytes / 2).as_bytes());
    refused("one-string.yaml", "x".repeat(megabytes).as_bytes());
    refused("zeros", &vec![0; megabytes]);
    refused("unknown.yaml", format!("node: {{ id: {} }}\nnonsense: 1\n", "x".repeat(megabytes)).as_bytes());
    // Every alias doubles what the one before it means.
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for i in 1..40 {
        bomb += &format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1);
    }
    refused("bomb.yaml", bomb.as_bytes());
}

#[test]
fn ten_megabytes_of_good_configuration_are_accepted() {
    let mut bootstrap = Bootstrap::new().plain("main", "");
    let mut size = 0;
    let mut i = 0;
    while size < 10 << 20 {
        let body = endpoints(&["80", "81", "82", "83", "84", "85", "86", "87"]);
        size += body.len() + 40;
        bootstrap = bootstrap.cluster(&format!("cluster-number-{i}"), &body);
        i += 1;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let text = fill(&bootstrap.render(), &origins(1, 1), dir.path(), &mut Default::default());
    assert!(text.len() > 10 << 20);
    let file = dir.path().join("big.yaml");
    std::fs::write(&file, text).expect("a file");
    let output = validate(&file);
    assert!(output.status.success(), "{}", said(&output));
}

/// A step into a JSON tree.
#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

/// The path as the messages write it.
fn written(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text += key,
            Step::Key(key) => text += &format!(".{key}"),
            Step::Index(i) => text += &format!("[{i}]"),
        }
    }
    text
}

/// Every place where a key could be taken away.
fn places(value: &Value, here: &mut Vec<Step>, all: &mut Vec<Vec<Step>>) {
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                here.push(Step::Key(key.clone()));
                all.push(here.clone());
                places(below, here, all);
                here.pop();
            }
        }
        Value::Array(list) => {
            for (i, below) in list.iter().enumerate() {
                here.push(Step::Index(i));
                places(below, here, all);
                here.pop();
            }
        }
        _ => {}
    }
}

fn without(value: &Value, path: &[Step]) -> Value {
    match (value, path) {
        (Value::Object(map), [Step::Key(key)]) => {
            let kept: Map<String, Value> =
                map.iter().filter(|(k, _)| *k != key).map(|(k, v)| (k.clone(), v.clone())).collect();
            Value::Object(kept)
        }
        (Value::Object(map), [Step::Key(key), rest @ ..]) => {
            let change =
                |(k, v): (&String, &Value)| (k.clone(), if k == key { without(v, rest) } else { v.clone() });
            Value::Object(map.iter().map(change).collect())
        }
        (Value::Array(list), [Step::Index(i), rest @ ..]) => Value::Array(
            list.iter()
                .enumerate()
                .map(|(n, v)| if n == *i { without(v, rest) } else { v.clone() })
                .collect(),
        ),
        _ => value.clone(),
    }
}

const COMPLETE: &str = r#"
node: { id: n, cluster: c }
admin: { address: { socket_address: { address: 127.0.0.1, port_value: 9901 } } }
static_resources:
  listeners:
  - name: http
    address: { socket_address: { address: 127.0.0.1, port_value: 10000 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/null
              log_format: { text_format_source: { inline_string: "%RESPONSE_CODE%\n" } }
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match:
                  prefix: /
                  headers: [ { name: x, string_match: { exact: y } } ]
                  query_parameters: [ { name: q, string_match: { safe_regex: { regex: z } } } ]
                  runtime_fraction: { default_value: { numerator: 100 }, runtime_key: k }
                request_headers_to_add: [ { header: { key: a, value: b } } ]
                route:
                  regex_rewrite: { pattern: { regex: a }, substitution: b }
                  weighted_clusters: { clusters: [ { name: one, weight: 1 }, { name: two, weight: 2 } ] }
                  request_mirror_policies: [ { cluster: two } ]
                  hash_policy: [ { header: { header_name: h } }, { cookie: { name: c } } ]
              - match: { path: /d }
                direct_response: { status: 200, body: { inline_string: x } }
              - match: { safe_regex: { regex: /r } }
                redirect: { host_redirect: h }
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  - name: tcp
    address: { socket_address: { address: 127.0.0.1, port_value: 10001 } }
    listener_filters:
    - name: envoy.filters.listener.tls_inspector
      typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }
    filter_chains:
    - filter_chain_match: { server_names: [a.test] }
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: one
  clusters:
  - name: one
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: one
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 80 } } }
  - name: two
    type: STRICT_DNS
    circuit_breakers: { thresholds: [ { priority: DEFAULT, max_requests: 5 } ] }
    load_assignment:
      cluster_name: two
      endpoints:
      - locality: { region: r, zone: z }
        lb_endpoints:
        - endpoint: { hostname: h, address: { socket_address: { address: localhost, port_value: 80 } } }
          load_balancing_weight: 1
"#;

/// Fields without which Envoy accepts the configuration and Outrigger does not, with the entry of
/// `docs/differences.md` that says why.
pub const DIFFERENCES: &[(&str, &str)] = &[(
    "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters",
    "no-http-filters",
)];

/// Takes every key of a complete configuration away in turn. Outrigger refuses what Envoy refuses, and names the place.
#[test]
fn a_missing_field_is_refused_as_envoy_refuses_it() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let complete: Value = serde_yaml_ng::from_str(COMPLETE).expect("the configuration of this test");
    let mut all = vec![Vec::new()];
    places(&complete, &mut Vec::new(), &mut all);
    assert!(all.len() > 100);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.json");
    let mut wrong = Vec::new();
    let mut refusals = 0;
    for path in &all {
        let mutated = if path.is_empty() { complete.clone() } else { without(&complete, path) };
        std::fs::write(&file, mutated.to_string()).expect("a file");
        let envoy =
            Kind::Envoy.command().args(["--mode", "validate", "-l", "error", "-c"]).arg(&file).output();
        let envoy = envoy.expect("envoy");
        let mine = validate(&file);
        let place = written(path);
        if DIFFERENCES.iter().any(|(known, _)| *known == place) {
            let refused = mine.status.code() == Some(1) && said(&mine).contains(&place);
            if !refused || !envoy.status.success() {
                wrong.push(format!("without {place}: not the documented difference: {}", said(&mine)));
            }
            continue;
        }
        if envoy.status.success() != mine.status.success() {
            let which = if envoy.status.success() {
                "Envoy accepts, Outrigger refuses"
            } else {
                "Envoy refuses, Outrigger accepts"
            };
            let why = if envoy.status.success() { said(&mine) } else { said(&envoy) };
            wrong.push(format!("without {place}: {which}: {}", why.lines().next_back().unwrap_or("")));
            continue;
        }
        if !mine.status.success() {
            refusals += 1;
            let text = said(&mine);
            // The field itself or what contains it.
            let parent = written(&path[..path.len().saturating_sub(1)]);
            let lines = text.lines().filter(|l| !l.trim().is_empty()).count();
            if mine.status.code() != Some(1) || lines > 3 || !text.contains(&parent) {
                wrong.push(format!(
                    "without {place}: not one clear line naming {parent}: {}",
                    text.replace('\n', " / ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert!(refusals >= 20, "only {refusals} refusals");
}
