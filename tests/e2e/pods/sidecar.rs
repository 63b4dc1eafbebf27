//! A sidecar in a pod: its configuration, in the shape that Istio's has, and its process.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::mesh::Pod;
use super::server::WELCOMES;
use super::user;
use crate::harness::proxy::Kind;
use crate::harness::DEADLINE;
use crate::tls::certs::Certs;

/// How a sidecar is configured.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Addresses whose pods have sidecars of the mesh.
    pub mesh: &'a [&'a Pod],
    /// Plain text is refused.
    pub strict: bool,
    /// The application sees the client's address.
    pub transparent: bool,
    /// More arguments.
    pub arguments: &'a [&'a str],
    /// In place of its own configuration.
    pub bootstrap: Option<&'a str>,
    /// Whose sidecar it is.
    pub kind: Kind,
}

impl Plan<'_> {
    pub const PLAIN: Plan<'static> = Plan {
        mesh: &[],
        strict: false,
        transparent: false,
        arguments: &[],
        bootstrap: None,
        kind: Kind::Outrigger,
    };
}

const TYPE: &str = "type.googleapis.com/envoy.extensions";

fn inspectors(more: &str) -> String {
    let one = |name: &str, message: &str| {
        format!("    - {{ name: {name}, typed_config: {{ \"@type\": {TYPE}.filters.listener.{name}.v3.{message} }} }}\n")
    };
    let original = one("original_dst", "OriginalDst");
    let (tls, http) = (one("tls_inspector", "TlsInspector"), one("http_inspector", "HttpInspector"));
    format!("    listener_filters:\n{original}{more}{tls}{http}    listener_filters_timeout: 0s\n")
}

fn chain(name: &str, matcher: &str, socket: &str, filter: &str) -> String {
    format!("    - name: {name}\n      filter_chain_match: {{ {matcher} }}\n{socket}      filters:\n      - {filter}\n")
}

fn relays(cluster: &str) -> String {
    format!("{{ name: t, typed_config: {{ \"@type\": {TYPE}.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {cluster}, cluster: {cluster} }} }}")
}

fn speaks(cluster: &str) -> String {
    format!("{{ name: h, typed_config: {{ \"@type\": {TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {cluster}, codec_type: AUTO, upgrade_configs: [ {{ upgrade_type: websocket }} ], route_config: {{ virtual_hosts: [ {{ name: all, domains: [\"*\"], routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: {cluster}, timeout: 0s }} }} ] }} ] }}, http_filters: [ {{ name: r, typed_config: {{ \"@type\": {TYPE}.filters.http.router.v3.Router }} }} ] }} }}")
}

/// A cluster that goes where the client meant to go.
fn original(name: &str, more: &str) -> String {
    format!("  - name: {name}\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n    connect_timeout: 2s\n{more}")
}

fn common(certs: &Certs, name: &str) -> String {
    let file = |file: &str| certs.file(file).display().to_string();
    format!(
        "tls_certificates: [ {{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }} ], validation_context: {{ trusted_ca: {{ filename: {} }} }}",
        file(&format!("{name}.pem")),
        file(&format!("{name}.key")),
        file("ca.pem")
    )
}

const HTTP: &str = "application_protocols: [http/1.0, http/1.1, h2c]";
/// What sidecars offer each other where they carry HTTP.
const CARRIED: &str = "mesh-http";

/// Upstreams are spoken to as clients speak.
const BOTH: &str = "    typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, use_downstream_protocol_config: { http_protocol_options: {}, http2_protocol_options: {} } } }\n";

/// The configuration of a sidecar.
pub fn bootstrap(plan: &Plan<'_>, certs: &Certs) -> String {
    let ranges = plan.mesh.iter().flat_map(|pod| {
        [
            format!("{{ address_prefix: {}, prefix_len: 32 }}", pod.v4),
            format!("{{ address_prefix: \"{}\", prefix_len: 128 }}", pod.v6),
        ]
    });
    let ranges = format!("prefix_ranges: [ {} ]", ranges.collect::<Vec<_>>().join(", "));
    let mut outbound =
        vec![chain("http", HTTP, "", &speaks("out-http")), chain("bytes", "", "", &relays("out"))];
    if !plan.mesh.is_empty() {
        outbound.push(chain("mesh-http", &format!("{ranges}, {HTTP}"), "", &speaks("mesh-http")));
        outbound.push(chain("mesh-bytes", &ranges, "", &relays("mesh")));
    }
    let presents = format!(
        "      transport_socket: {{ name: tls, typed_config: {{ \"@type\": {TYPE}.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {{ alpn_protocols: [{CARRIED}, mesh], {} }} }} }}\n",
        common(certs, "server")
    );
    // The application is reached from an address that capture leaves alone; there is one for each version of IP.
    let mut inbound = Vec::new();
    for (version, range) in [("4", "address_prefix: 0.0.0.0"), ("6", "address_prefix: \"::\"")] {
        let to = format!("prefix_ranges: [ {{ {range}, prefix_len: 0 }} ]");
        let (bytes, http) = (format!("in{version}"), format!("in{version}-http"));
        inbound.push(chain(
            "tls-http",
            &format!("{to}, transport_protocol: tls, application_protocols: [{CARRIED}]"),
            &presents,
            &speaks(&http),
        ));
        inbound.push(chain(
            "tls",
            &format!("{to}, transport_protocol: tls, application_protocols: [mesh]"),
            &presents,
            &relays(&bytes),
        ));
        if !plan.strict {
            inbound.push(chain("http", &format!("{to}, {HTTP}"), "", &speaks(&http)));
            inbound.push(chain("bytes", &to, "", &relays(&bytes)));
        }
    }
    if !plan.strict {
        inbound.push(chain("welcomes", &format!("destination_port: {WELCOMES}"), "", &relays("in4")));
    }
    let keeps = if plan.transparent {
        format!("    - {{ name: s, typed_config: {{ \"@type\": {TYPE}.filters.listener.original_src.v3.OriginalSrc, mark: 1337 }} }}\n")
    } else {
        String::new()
    };
    let marked = user::socket_options();
    let from = |address: &str| {
        match plan.transparent {
        // What is said here counts alone.
        true => "    upstream_bind_config: {}\n".to_owned(),
        false => format!(
            "    upstream_bind_config: {{ source_address: {{ address: \"{address}\", port_value: 0 }}, {marked} }}\n"
        ),
    }
    };
    let towards = |protocol: &str| {
        format!("    transport_socket: {{ name: tls, typed_config: {{ \"@type\": {TYPE}.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {{ alpn_protocols: [{protocol}], {} }} }} }}\n", common(certs, "client"))
    };
    let listener = |name: &str, port: u16, options: &str, filters: &str, chains: &[String]| {
        format!("  - name: {name}\n    address: {{ socket_address: {{ address: \"::\", port_value: {port}, ipv4_compat: true }} }}\n{options}{filters}    filter_chains:\n{}", chains.concat())
    };
    let transparent = if plan.transparent { "    transparent: true\n" } else { "" };
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: 15000 }} }}\ncluster_manager: {{ upstream_bind_config: {{ {marked} }} }}\nstatic_resources:\n  listeners:\n{}{}  clusters:\n{}",
        listener("outbound", 15001, "    use_original_dst: true\n    traffic_direction: OUTBOUND\n", &inspectors(""), &outbound),
        listener("inbound", 15006, &format!("    traffic_direction: INBOUND\n{transparent}"), &inspectors(&keeps), &inbound),
        [
            original("out", ""),
            original("out-http", BOTH),
            original("mesh", &towards("mesh")),
            original("mesh-http", &(towards(CARRIED) + BOTH)),
            original("in4", &from("127.0.0.6")),
            original("in4-http", &(from("127.0.0.6") + BOTH)),
            original("in6", &from("::6")),
            original("in6-http", &(from("::6") + BOTH)),
        ]
        .concat(),
    )
}

/// A running sidecar.
pub struct Sidecar {
    child: Child,
    dir: TempDir,
}

impl Sidecar {
    /// Starts one in `pod`, and waits until it is ready.
    pub fn start(pod: &Pod, plan: &Plan<'_>, certs: &Certs) -> Sidecar {
        let mut sidecar = Sidecar::spawn(pod, plan, certs);
        sidecar.ready(pod);
        sidecar
    }

    /// Starts one and waits for nothing.
    pub fn spawn(pod: &Pod, plan: &Plan<'_>, certs: &Certs) -> Sidecar {
        let dir = tempfile::Builder::new().prefix("outrigger-pod").tempdir().expect("a directory");
        let file = dir.path().join("bootstrap.yaml");
        let text = plan.bootstrap.map_or_else(|| bootstrap(plan, certs), str::to_owned);
        fs::write(&file, text).expect("written");
        let output = File::create(dir.path().join("output.log")).expect("the output file");
        let own = plan.kind.command();
        let mut command = pod.program(true, own.get_program().to_str().expect("UTF-8"));
        command.args(own.get_args()).args(["--concurrency", "1", "-c"]).arg(file).args(plan.arguments);
        if !plan.arguments.contains(&"--drain-time-s") {
            command.args(["--drain-time-s", "1"]);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("the output file")).stderr(output);
        Sidecar { child: command.spawn().expect("a sidecar"), dir }
    }

    /// Waits until it is ready.
    pub fn ready(&mut self, pod: &Pod) {
        let end = Instant::now() + DEADLINE * 2;
        while pod.admin("/ready").is_none() {
            let ended = !matches!(self.child.try_wait(), Ok(None));
            assert!(!ended && Instant::now() < end, "the sidecar is not ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process, or what it has become of it.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Tells it something.
    pub fn signal(&self, signal: libc::c_int) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()));
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended, which it must as it should.
    pub fn wait(&mut self) {
        let end = Instant::now() + DEADLINE;
        while self.is_running() {
            assert!(Instant::now() < end, "the sidecar does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().expect("its status");
        assert!(status.success(), "the sidecar ended with {status}");
    }

    /// What it has said.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output.log")).unwrap_or_default()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let from = output.len().saturating_sub(4000);
            eprintln!("--- a sidecar's output:\n{}---", output.get(from..).unwrap_or(&output));
        }
    }
}
