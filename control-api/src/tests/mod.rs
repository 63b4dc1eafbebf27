//! Behaviour of the whole crate, on one small bootstrap and changed copies of it.

mod loading;
mod reflection;
mod resources;
mod support;

use serde_json::{json, Value};

use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::{load, load_value, Format, Loaded};

/// A TCP proxy, an HTTP listener and a cluster, in the style people write.
const BOOTSTRAP: &str = r#"
admin:
  address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }
static_resources:
  listeners:
  - name: tcp
    address: &address
      socket_address: { address: 127.0.0.1, port_value: 10000 }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: service
          idle_timeout: 0.25s
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/stdout
              log_format: { json_format: { status: "%RESPONSE_CODE%", nested: { a: [1, true, null] } } }
  - name: http
    address: *address
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: / }
                route: { cluster: service, timeout: 5s }
                typed_per_filter_config:
                  x:
                    "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
                    config: {}
          http_filters:
          - name: router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: service
    type: STATIC
    connect_timeout: 1s
    per_connection_buffer_limit_bytes: 32768
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http_protocol_options: {} }
    load_assignment:
      cluster_name: service
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8080 } } }
"#;

const TCP_PROXY: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const CLUSTER: &str = "/static_resources/clusters/0";

fn bootstrap() -> Loaded<Bootstrap> {
    load(BOOTSTRAP, Format::Yaml).unwrap()
}

/// The bootstrap as JSON, changed by `change` at the object that the JSON pointer names.
fn changed(pointer: &str, change: Value) -> Value {
    let mut value: Value = crate::text::parse(BOOTSTRAP.as_bytes(), Format::Yaml).unwrap();
    let object = value.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    value
}

/// What the loader says about the changed bootstrap, one problem a line.
fn problems(pointer: &str, change: Value) -> Vec<String> {
    match load_value::<Bootstrap>(&changed(pointer, change)) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn problem(pointer: &str, change: Value) -> String {
    let problems = problems(pointer, change);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().unwrap()
}

fn accepted(pointer: &str, change: Value) -> Bootstrap {
    match load_value::<Bootstrap>(&changed(pointer, change)) {
        Ok(loaded) => loaded.message,
        Err(problems) => panic!("{problems:?}"),
    }
}

fn any(name: &str, fields: Value) -> Value {
    let mut object = json!({ "@type": format!("type.googleapis.com/{name}") });
    object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    object
}

/// xorshift64*: a seed names a run exactly.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let scaled = (u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * limit as u128) >> 64;
        usize::try_from(scaled).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}
