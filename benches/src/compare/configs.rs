//! The configurations of those compared, from one description of what they are to do. Each has what its users would set
//! in production: one worker, no access log, connections to the origin kept and reused, limits that are out of the way.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};

use super::certs::Certs;
use super::peer::Peer;
use super::Error;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 on both sides, where a proxy can.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

/// Domains of each virtual host of a large configuration.
pub const DOMAINS: usize = 4;

/// What a proxy is to do.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What clients speak.
    pub wire: Wire,
    /// What is spoken to the origin, or to the next proxy.
    pub onward: Wire,
    /// No request is let through.
    pub refuses: bool,
    /// Clients come over mTLS.
    pub secure_clients: bool,
    /// The origin is reached over mTLS.
    pub secure_origin: bool,
    /// Where clients come.
    pub listen: SocketAddr,
    /// Where its administrator does.
    pub admin: SocketAddr,
    /// The endpoints of each cluster.
    pub endpoints: Vec<SocketAddr>,
    /// Clusters with a virtual host of their own each; 0 for one cluster that has everything.
    pub clusters: usize,
    /// Connections that may be open.
    pub connections: u32,
    /// Who can follow a control plane gets everything from this one.
    pub control: Option<SocketAddr>,
}

/// A domain of a virtual host.
pub fn domain(cluster: usize, nth: usize) -> String {
    format!("d{nth}.service-{cluster}.example")
}

/// The name of a cluster and of its virtual host.
pub fn service(nth: usize) -> String {
    format!("service-{nth}")
}

/// The domains of a virtual host.
pub fn domains_of(cluster: usize) -> Vec<String> {
    (0..DOMAINS).map(|nth| domain(cluster, nth)).collect()
}

/// An address as Envoy has it.
pub fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// A virtual host that sends everything to the cluster of its name.
pub fn all_to(name: &str, domains: &[String]) -> Value {
    json!({
        "name": name, "domains": domains, "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]
    })
}

impl Setup {
    /// Writes the configuration of `peer`; the file, and its text. Relays and nobody have none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, peer: Peer, dir: &Path, certs: &Certs) -> Result<(PathBuf, String), Error> {
        let (name, text) = match peer {
            Peer::Outrigger | Peer::Envoy => {
                let config = self.envoy(certs);
                // A large one is read by nobody.
                let text = if self.clusters > 0 { config.to_string() } else { format!("{config:#}") };
                (format!("{peer}.json"), text)
            }
            Peer::Haproxy => {
                let map = dir.join("haproxy.map");
                if self.clusters > 0 {
                    let mut lines = String::new();
                    for (cluster, nth) in self.domains() {
                        let _ = writeln!(lines, "{} service-{cluster}", domain(cluster, nth));
                    }
                    std::fs::write(&map, lines).map_err(Error::io(&map))?;
                }
                ("haproxy.cfg".to_owned(), self.haproxy(certs, &map))
            }
            Peer::Nginx => ("nginx.conf".to_owned(), self.nginx(certs, dir)),
            Peer::Splice | Peer::Relay | Peer::None => return Ok((PathBuf::new(), String::new())),
        };
        let path = dir.join(name);
        std::fs::write(&path, &text).map_err(Error::io(&path))?;
        Ok((path, text))
    }

    fn domains(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.clusters).flat_map(|cluster| (0..DOMAINS).map(move |nth| (cluster, nth)))
    }

    fn alpn(wire: Wire) -> Option<&'static str> {
        match wire {
            Wire::Http1 => Some("http/1.1"),
            Wire::Http2 | Wire::Grpc => Some("h2"),
            Wire::Tcp => None,
        }
    }

    /// One bootstrap, word for word the same for Envoy and Outrigger.
    fn envoy(&self, certs: &Certs) -> Value {
        if let Some(control) = self.control {
            return self.discovered(control);
        }
        let cluster = |name: String| {
            let endpoints = self.endpoints.iter().map(|&at| json!({"endpoint": {"address": address(at)}}));
            let mut cluster = json!({
                "name": name,
                "type": "STATIC",
                "connect_timeout": "1s",
                "circuit_breakers": {"thresholds": [{
                    "max_connections": 20000,
                    "max_pending_requests": 20000,
                    "max_requests": if self.refuses { 0 } else { 20000 }
                }]},
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}]
                }
            });
            if matches!(self.onward, Wire::Http2 | Wire::Grpc) {
                cluster["typed_extension_protocol_options"] = json!({
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}}
                    }
                });
            }
            if self.secure_origin {
                cluster["transport_socket"] = self.tls("Upstream", &certs.client, certs);
            }
            cluster
        };
        let (hosts, clusters): (Vec<_>, Vec<_>) = match self.clusters {
            0 => (vec![all_to("origin", &["*".to_owned()])], vec![cluster("origin".to_owned())]),
            many => (0..many)
                .map(|nth| {
                    let name = service(nth);
                    (all_to(&name, &domains_of(nth)), cluster(name))
                })
                .unzip(),
        };
        let mut listener = self.listener(&json!({"route_config": {"name": "all", "virtual_hosts": hosts}}));
        if self.secure_clients {
            listener["filter_chains"][0]["transport_socket"] = self.tls("Downstream", &certs.server, certs);
        }
        json!({
            "admin": {"address": address(self.admin)},
            "static_resources": {"listeners": [listener], "clusters": clusters}
        })
    }

    /// A listener with plaintext, whose HTTP has these routes.
    pub fn listener(&self, routes: &Value) -> Value {
        let filter = match self.wire {
            Wire::Tcp => json!({
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "tcp",
                    "cluster": "origin"
                }
            }),
            wire => {
                let mut manager = json!({
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "web",
                    "codec_type": if wire == Wire::Http1 { "HTTP1" } else { "HTTP2" },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
                    }]
                });
                for (name, value) in routes.as_object().into_iter().flatten() {
                    manager[name.as_str()] = value.clone();
                }
                json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
            }
        };
        json!({"name": "in", "address": address(self.listen), "filter_chains": [{"filters": [filter]}]})
    }

    /// A bootstrap that takes everything from a control plane, over delta ADS.
    fn discovered(&self, control: SocketAddr) -> Value {
        let ads = json!({"resource_api_version": "V3", "ads": {}});
        json!({
            "node": {"id": super::control::NODE, "cluster": "compare"},
            "admin": {"address": address(self.admin)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]
                },
                "cds_config": ads,
                "lds_config": ads
            },
            "static_resources": {"clusters": [{
                "name": "control",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}}
                    }
                },
                "load_assignment": {
                    "cluster_name": "control",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(control)}}]}]
                }
            }]}
        })
    }

    fn tls(&self, side: &str, (chain, key): &(PathBuf, PathBuf), certs: &Certs) -> Value {
        let mut common = json!({
            "tls_certificates": [{
                "certificate_chain": {"filename": chain}, "private_key": {"filename": key}
            }],
            "validation_context": {"trusted_ca": {"filename": certs.ca}}
        });
        let spoken = if side == "Upstream" { self.onward } else { self.wire };
        if let Some(alpn) = Self::alpn(spoken) {
            common["alpn_protocols"] = json!([alpn]);
        }
        let kind = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext");
        let mut config = json!({"@type": kind, "common_tls_context": common});
        if side == "Upstream" {
            config["sni"] = json!("localhost");
        } else {
            config["require_client_certificate"] = json!(true);
        }
        json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
    }

    fn haproxy(&self, certs: &Certs, map: &Path) -> String {
        let (ca, server, client) =
            (certs.ca.display(), certs.server_both.display(), certs.client_both.display());
        let alpn = |wire| Self::alpn(wire).map(|alpn| format!(" alpn {alpn}")).unwrap_or_default();
        let two = |wire| matches!(wire, Wire::Http2 | Wire::Grpc);
        let mode = if self.wire == Wire::Tcp { "tcp" } else { "http" };
        let mut bind = self.listen.to_string();
        match (self.secure_clients, two(self.wire)) {
            (true, _) => {
                bind += &format!(" ssl crt {server} ca-file {ca} verify required{}", alpn(self.wire));
            }
            (false, true) => bind += " proto h2",
            (false, false) => {}
        }
        let mut to = String::from(" pool-max-conn 1000");
        if self.secure_origin {
            let alpn = alpn(self.onward);
            to += &format!(" ssl crt {client} ca-file {ca} verify required sni str(localhost){alpn}");
        } else if two(self.onward) {
            to += " proto h2";
        }
        let mut text = format!(
            "global\n  nbthread 1\n  maxconn {}\n  no strict-limits\n  tune.ssl.default-dh-param 2048\n\
             defaults\n  mode {mode}\n  timeout connect 1s\n  timeout client 600s\n  timeout server 600s\n",
            self.connections
        );
        text += match self.wire {
            Wire::Tcp => "  option splice-auto\n",
            _ => "  option http-keep-alive\n  http-reuse always\n",
        };
        let _ = writeln!(text, "frontend in\n  bind {bind}");
        if self.wire != Wire::Tcp {
            text += "  option forwardfor\n";
        }
        let backend = |name: &str| {
            let mut text = format!("backend {name}\n");
            for (nth, endpoint) in self.endpoints.iter().enumerate() {
                let _ = writeln!(text, "  server e{nth} {endpoint}{to}");
            }
            text
        };
        if self.clusters == 0 {
            text + "  default_backend origin\n" + &backend("origin")
        } else {
            let _ = writeln!(text, "  use_backend %[req.hdr(host),lower,map({})]", map.display());
            (0..self.clusters).fold(text, |text, nth| text + &backend(&format!("service-{nth}")))
        }
    }

    fn nginx(&self, certs: &Certs, dir: &Path) -> String {
        let dir = dir.display();
        let two = matches!(self.wire, Wire::Http2 | Wire::Grpc);
        let module = match self.wire {
            Wire::Tcp => "load_module modules/ngx_stream_module.so;\n",
            _ => "",
        };
        let mut text = format!(
            "{module}worker_processes 1;\ndaemon off;\npid {dir}/nginx.pid;\nerror_log stderr crit;\n\
             events {{ worker_connections {}; }}\n",
            self.connections
        );
        let files = |prefix: &str, (chain, key): &(PathBuf, PathBuf), trust: &str| {
            let (chain, key, ca) = (chain.display(), key.display(), certs.ca.display());
            format!(
                "    {prefix}_certificate {chain};\n    {prefix}_certificate_key {key};\n    {prefix}_{trust}_certificate {ca};\n"
            )
        };
        let mut listen = format!("    listen {}", self.listen);
        listen += if self.secure_clients { " ssl" } else { "" };
        let mut secure = String::new();
        if self.secure_clients {
            secure += &files("ssl", &certs.server, "client");
            secure += "    ssl_verify_client on;\n    ssl_session_cache shared:tls:10m;\n    \
                       ssl_protocols TLSv1.2 TLSv1.3;\n";
        }
        let call = match self.wire {
            Wire::Grpc => "grpc",
            _ => "proxy",
        };
        if self.secure_origin {
            let prefix = format!("{call}_ssl");
            secure += &files(&prefix, &certs.client, "trusted");
            secure += &format!(
                "    {prefix}_verify on;\n    {prefix}_name localhost;\n    {prefix}_server_name on;\n"
            );
        }
        let servers: String = self.endpoints.iter().map(|endpoint| format!(" server {endpoint};")).collect();
        if self.wire == Wire::Tcp {
            let tls = if self.secure_origin { "    proxy_ssl on;\n" } else { "" };
            let _ = write!(
                text,
                "stream {{\n  upstream origin {{{servers} }}\n  server {{\n{listen};\n{secure}{tls}    tcp_nodelay on;\n    \
                 proxy_pass origin;\n  }}\n}}\n"
            );
            return text;
        }
        let scheme = match (self.wire, self.secure_origin) {
            (Wire::Grpc, false) => "grpc://",
            (Wire::Grpc, true) => "grpcs://",
            (_, false) => "http://",
            (_, true) => "https://",
        };
        listen += if two { " http2" } else { "" };
        text += "http {\n  access_log off;\n  tcp_nodelay on;\n  keepalive_timeout 600s;\n  keepalive_requests 1000000000;\n  \
                 server_names_hash_max_size 262144;\n  server_names_hash_bucket_size 128;\n  \
                 variables_hash_max_size 4096;\n";
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(text, "  {kind}_temp_path {dir}/nginx-{kind};");
        }
        text += match self.wire {
            Wire::Grpc => "",
            _ => {
                "  proxy_http_version 1.1;\n  proxy_max_temp_file_size 0;\n  proxy_set_header Connection \"\";\n  \
                 proxy_set_header Host $host;\n  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
            }
        };
        let mut one = |name: &str, names: String, keep: u32| {
            let _ = write!(
                text,
                "  upstream {name} {{{servers} keepalive {keep}; keepalive_requests 1000000000; keepalive_timeout 600s; }}\n  \
                 server {{\n{listen};\n    server_name {names};\n{secure}    location / {{ {call}_pass {scheme}{name}; }}\n  }}\n"
            );
        };
        match self.clusters {
            // To the origin it speaks HTTP/1.1, or opens a stream at a time: as many as clients have streams.
            0 => one("origin", "_".to_owned(), if two { 256 } else { 64 }),
            many => {
                for nth in 0..many {
                    // Each of its caches is allocated beforehand.
                    one(&service(nth), domains_of(nth).join(" "), 32);
                }
            }
        }
        text + "}\n"
    }
}
