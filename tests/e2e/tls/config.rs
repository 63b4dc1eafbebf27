//! Bootstraps of these tests: listeners and clusters with TLS, each in a few words.

use std::path::Path;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

/// What each access log says.
const FORMAT: &str = "code=%RESPONSE_CODE%\\tflags=%RESPONSE_FLAGS%\\tdetails=%RESPONSE_CODE_DETAILS%\
    \\tdownstream_failure=%DOWNSTREAM_TRANSPORT_FAILURE_REASON%\\tfailure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\
    \\turi=%DOWNSTREAM_PEER_URI_SAN%\\tdns=%DOWNSTREAM_PEER_DNS_SAN%\\tsubject=%DOWNSTREAM_PEER_SUBJECT%\
    \\tissuer=%DOWNSTREAM_PEER_ISSUER%\\tserial=%DOWNSTREAM_PEER_SERIAL%\\tsha256=%DOWNSTREAM_PEER_FINGERPRINT_256%\
    \\tsha1=%DOWNSTREAM_PEER_FINGERPRINT_1%\\tcert=%DOWNSTREAM_PEER_CERT%\
    \\tvalid=%DOWNSTREAM_PEER_CERT_V_START%/%DOWNSTREAM_PEER_CERT_V_END%\\town_uri=%DOWNSTREAM_LOCAL_URI_SAN%\
    \\town_dns=%DOWNSTREAM_LOCAL_DNS_SAN%\\town_subject=%DOWNSTREAM_LOCAL_SUBJECT%\\tversion=%DOWNSTREAM_TLS_VERSION%\
    \\tsni=%REQUESTED_SERVER_NAME%\\tproto=%REQ(X-FORWARDED-PROTO)%\\txfcc=%REQ(X-FORWARDED-CLIENT-CERT)%\
    \\tupstream_uri=%UPSTREAM_PEER_URI_SAN%\\tupstream_subject=%UPSTREAM_PEER_SUBJECT%\
    \\tupstream_own=%UPSTREAM_LOCAL_URI_SAN%\\tprotocol=%PROTOCOL%\\tupstream_protocol=%UPSTREAM_PROTOCOL%";

fn access_log(file: &str) -> String {
    format!(
        r#"[{{name: file, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "@dir@/{file}.log", log_format: {{text_format_source: {{inline_string: "{FORMAT}\n"}}}}}}}}]"#
    )
}

/// An HTTP connection manager with these options (each ended by a comma) and this route.
pub fn http(name: &str, options: &str, route: &str) -> String {
    format!(
        r#"{{name: http, typed_config: {{"@type": {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, {options} access_log: {log}, http_filters: [{{name: router, typed_config: {{"@type": {FILTERS}.http.router.v3.Router}}}}], route_config: {{name: r, virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, {route}}}]}}]}}}}}}"#,
        log = access_log(name)
    )
}

/// A route that answers itself.
pub const OK: &str = "direct_response: {status: 200, body: {inline_string: ok}}";

/// A TCP proxy to a cluster.
pub fn tcp(cluster: &str) -> String {
    format!(
        r#"{{name: tcp, typed_config: {{"@type": {FILTERS}.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: {cluster}, access_log: {log}}}}}"#,
        log = access_log("tcp")
    )
}

pub const INSPECT: &str = r#"[{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]"#;

/// TLS towards clients with the certificate `server`: fields of the common context, and of the whole one (each
/// ended by a comma).
pub fn downstream(common: &str, options: &str) -> String {
    format!(
        r#"transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.DownstreamTlsContext, {options} common_tls_context: {{{own} {common}}}}}}}"#,
        own = own("server")
    )
}

/// TLS towards upstreams, likewise; `own` says which certificate is presented.
pub fn upstream(common: &str, options: &str) -> String {
    format!(
        r#"transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.UpstreamTlsContext, {options} common_tls_context: {{{common}}}}}}}"#
    )
}

/// A certificate to present.
pub fn own(name: &str) -> String {
    format!(
        r#"tls_certificates: [{{certificate_chain: {{filename: "@certs@/{name}.pem"}}, private_key: {{filename: "@certs@/{name}.key"}}}}],"#
    )
}

pub const CA: &str = r#"trusted_ca: {filename: "@certs@/ca.pem"}"#;
pub const MESH: &str =
    r#"match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://mesh.test/"}}]"#;

/// The CA of the mesh, and one of its names.
pub fn mesh() -> String {
    format!("validation_context: {{{CA}, {MESH}}}")
}

/// Trust by SPIFFE trust domain: these fields of the validator, and more of the validation context.
pub fn spiffe(validator: &str, more: &str) -> String {
    format!(
        r#"validation_context: {{{more} custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {{"@type": {TLS}.SPIFFECertValidatorConfig, {validator}}}}}}}"#
    )
}

/// The bundle of a trust domain.
pub fn trust_domain(name: &str, file: &str) -> String {
    format!(r#"{{name: {name}, trust_bundle: {{filename: "@certs@/{file}"}}}}"#)
}

/// A bootstrap under construction.
#[derive(Default)]
pub struct Config {
    listeners: String,
    clusters: String,
    values: Vec<(String, String)>,
}

impl Config {
    /// A listener with these filter chains. It logs connections that none of them got.
    pub fn listener(mut self, name: &str, filters: &str, chains: &str) -> Config {
        self.listeners += &format!(
            "  - {{name: {name}, stat_prefix: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: @port:{name}@}}}}, listener_filters: {filters}, access_log: {log}, filter_chains: {chains}}}\n",
            log = access_log(&format!("{name}-listener")),
        );
        self
    }

    /// A listener that ends TLS and answers itself.
    pub fn ends(self, name: &str, options: &str, common: &str, tls: &str) -> Config {
        let chain = format!("[{{filters: [{}], {}}}]", http(name, options, OK), downstream(common, tls));
        self.listener(name, INSPECT, &chain)
    }

    /// A cluster of one host, and a plain listener `NAME` in front of it.
    pub fn cluster(mut self, name: &str, port: u16, socket: &str, options: &str) -> Config {
        self.clusters += &format!(
            "  - {{name: {name}, connect_timeout: 2s, {options} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}, {socket}}}\n"
        );
        let chain = format!("[{{filters: [{}]}}]", http(name, "", &format!("route: {{cluster: {name}}}")));
        self.listener(name, "[]", &chain)
    }

    pub fn template(&self) -> String {
        format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @port:admin@}}}}}}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}",
            self.listeners,
            if self.clusters.is_empty() { "  - {name: none}\n" } else { &self.clusters },
        )
    }

    /// The values for the template.
    pub fn values(&self, certs: &Path) -> Vec<(&str, String)> {
        let own = self.values.iter().map(|(name, value)| (name.as_str(), value.clone()));
        own.chain([("certs", certs.display().to_string())]).collect()
    }
}

/// The value of `key` in a line of the access log.
pub fn field<'l>(line: &'l str, key: &str) -> &'l str {
    let start = format!("{key}=");
    line.split('\t').find_map(|part| part.strip_prefix(start.as_str())).unwrap_or("(none)")
}
