//! Builds the bootstraps of the differential suite: any number of HTTP listeners that differ in the options of their
//! connection manager and in their routes, in front of the same clusters.

/// A bootstrap template under construction.
pub struct Bootstrap {
    listeners: String,
    clusters: String,
    secrets: String,
    more: String,
}

/// Puts `text` under a key at the given depth.
fn indent(text: &str, depth: usize) -> String {
    let pad = " ".repeat(depth);
    text.lines()
        .map(|line| if line.is_empty() { String::from("\n") } else { format!("{pad}{line}\n") })
        .collect()
}

/// What every access-log line of the suite says, one `key=value` each, separated by tabs.
pub const LOG_FORMAT: &str = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%\\thost=%REQ(:AUTHORITY)%\\tcode=%RESPONSE_CODE%\
     \\tflags=%RESPONSE_FLAGS%\\tdetails=%RESPONSE_CODE_DETAILS%\\tprotocol=%PROTOCOL%\\tmethod=%REQ(:METHOD)%\
     \\tpath=%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%\\treceived=%BYTES_RECEIVED%\\tsent=%BYTES_SENT%\
     \\tcluster=%UPSTREAM_CLUSTER%\\troute=%ROUTE_NAME%\\tupstream=%UPSTREAM_HOST%\
     \\tfailure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\\tend=%CONNECTION_TERMINATION_DETAILS%\\n";

impl Bootstrap {
    /// A bootstrap with the clusters `a`, `b` (an origin each), `refused` (nobody listens there) and `empty` (no
    /// endpoint).
    pub fn new() -> Bootstrap {
        let (listeners, clusters, secrets, more) = Default::default();
        let bootstrap = Bootstrap { listeners, clusters, secrets, more };
        bootstrap
            .origin("a", "")
            .origin("b", "")
            .cluster("refused", &endpoints(&["@port:refused@"]))
            .cluster("empty", "type: STATIC\nload_assignment: { cluster_name: empty }")
    }

    /// A static cluster of one of the suite's origins (`a`, `b`, or `a-anything`) with more cluster options.
    pub fn origin(self, name: &str, options: &str) -> Bootstrap {
        let origin = name.split('-').next().unwrap_or(name);
        let body = format!("{}\n{options}", endpoints(&[&format!("@origin:{origin}@")]));
        self.cluster(name, &body)
    }

    /// A cluster with this body in YAML.
    pub fn cluster(mut self, name: &str, body: &str) -> Bootstrap {
        self.clusters += &format!("  - name: {name}\n    connect_timeout: 1s\n{}", indent(body, 4));
        self
    }

    /// A listener: `options` are fields of its connection manager, `hosts` a YAML list of virtual hosts. A virtual
    /// host for the suite's own probe is put before them.
    pub fn listener(mut self, name: &str, options: &str, hosts: &str) -> Bootstrap {
        self.listeners += &format!(
            r#"  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:{name}@ }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          delayed_close_timeout: 0.1s
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: "@dir@/access.log"
              log_format: {{ text_format_source: {{ inline_string: "{LOG_FORMAT}" }} }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
{options}          route_config:
            name: {name}
            virtual_hosts:
            - name: probe
              domains: [probe.test]
              routes:
              - match: {{ prefix: / }}
                direct_response: {{ status: 200, body: {{ inline_string: probe }} }}
{hosts}"#,
            options = indent(options, 10),
            hosts = indent(hosts, 12),
        );
        self
    }

    /// A listener whose every request goes to cluster `a`.
    pub fn plain(self, name: &str, options: &str) -> Bootstrap {
        self.listener(name, options, ALL_TO_A)
    }

    /// HTTP filters of a listener before the router, a YAML list.
    pub fn filters(mut self, name: &str, filters: &str) -> Bootstrap {
        let place = format!("          stat_prefix: {name}\n");
        let at = self.listeners.find(&place).expect("a listener of this name");
        let list = "          http_filters:\n";
        let at = at + self.listeners[at..].find(list).expect("its filters") + list.len();
        self.listeners.insert_str(at, &indent(filters, 10));
        self
    }

    /// A generic secret.
    pub fn secret(mut self, name: &str, text: &str) -> Bootstrap {
        if self.secrets.is_empty() {
            self.secrets += "  secrets:\n";
        }
        self.secrets +=
            &format!("  - {{ name: {name}, generic_secret: {{ secret: {{ inline_string: {text:?} }} }} }}\n");
        self
    }

    /// Fields of a listener's router, in YAML's flow style.
    pub fn router(mut self, name: &str, options: &str) -> Bootstrap {
        let place = format!("          stat_prefix: {name}\n");
        let at = self.listeners.find(&place).expect("a listener of this name");
        let kind = "envoy.extensions.filters.http.router.v3.Router";
        let at = at + self.listeners[at..].find(kind).expect("its router") + kind.len();
        self.listeners.insert_str(at, &format!(", {options}"));
        self
    }

    /// Any other part of the bootstrap.
    pub fn more(mut self, yaml: &str) -> Bootstrap {
        self.more += &format!("{yaml}\n");
        self
    }

    /// More fields of a listener's route configuration.
    pub fn route_options(mut self, name: &str, options: &str) -> Bootstrap {
        let place = format!("          route_config:\n            name: {name}\n");
        let more = format!("{place}{}", indent(options, 12));
        self.listeners = self.listeners.replace(&place, &more);
        self
    }

    /// More access logs of a listener, a YAML list.
    pub fn access_logs(mut self, name: &str, logs: &str) -> Bootstrap {
        let place = format!(
            "          stat_prefix: {name}\n          delayed_close_timeout: 0.1s\n          access_log:\n"
        );
        let more = format!("{place}{}", indent(logs, 10));
        self.listeners = self.listeners.replace(&place, &more);
        self
    }

    /// The template.
    pub fn render(&self) -> String {
        format!(
            "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\n\
             node: {{ id: differential, cluster: tests }}\n\
             {}static_resources:\n{}  listeners:\n{}  clusters:\n{}",
            self.more, self.secrets, self.listeners, self.clusters
        )
    }
}

/// A virtual host that sends everything to cluster `a`.
pub const ALL_TO_A: &str = "- name: all
  domains: ['*']
  routes:
  - match: { prefix: / }
    route: { cluster: a }";

/// The body of a static cluster with these ports.
pub fn endpoints(ports: &[&str]) -> String {
    let mut text = String::from(
        "type: STATIC\nload_assignment:\n  cluster_name: static\n  endpoints:\n  - lb_endpoints:",
    );
    for port in ports {
        text += &format!(
            "\n    - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}"
        );
    }
    text
}

/// The values of a template's `@origin:a@` and `@origin:b@`.
pub fn origins(a: u16, b: u16) -> [(&'static str, String); 2] {
    [("origin:a", a.to_string()), ("origin:b", b.to_string())]
}
