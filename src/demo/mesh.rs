//! What the demonstration consists of, as files: the services that the control plane serves, and the bootstraps of
//! the sidecars that ask it. In: the origins, the free ports. Out: a directory that is gone when this is dropped.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::origin::Origin;
use super::script::State;
use super::{DemoError, Origins};

/// The usual ports, where they are free: of the sidecar, of the control plane, and of a second sidecar.
const PORTS: [u16; 8] = [10000, 10001, 9901, 18000, 18001, 10100, 10101, 9902];
/// The node of the demonstration's own sidecar.
pub(super) const NODE: &str = "demo";
/// The node of another one that somebody may start beside it.
const SECOND: &str = "second";

/// Where everything listens, and the files.
pub(super) struct Mesh {
    pub(super) http: SocketAddr,
    pub(super) tcp: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) control: SocketAddr,
    pub(super) status: SocketAddr,
    second_http: SocketAddr,
    directory: PathBuf,
}

/// The sockets of the control plane, held from the start.
pub(super) struct ControlSockets {
    pub(super) discovery: TcpListener,
    pub(super) status: TcpListener,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // Somebody else's clean-up has come first, or there is no more to do about it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Mesh {
    /// Chooses ports and writes all files; the services as `state` wants them.
    pub(super) fn create(origins: &Origins, state: State) -> Result<(Self, ControlSockets), DemoError> {
        // Held together, so that no port is chosen twice; but for the control plane's free again when this returns.
        let held = PORTS.map(|port| {
            let local = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            local(port).or_else(|_| local(0)).and_then(|listener| Ok((listener.local_addr()?, listener)))
        });
        let [http, tcp, admin, control, status, second_http, second_tcp, second_admin] =
            held.map(|held| held.map_err(DemoError::io("find a free port")));
        let ((http, _http), (tcp, _tcp), (admin, _admin)) = (http?, tcp?, admin?);
        let ((control, discovery), (status, status_socket)) = (control?, status?);
        let (second_http, second_tcp, second_admin) = (second_http?, second_tcp?, second_admin?);

        let name = format!("outrigger-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let directory = std::env::temp_dir().join(name);
        let second_http = (second_http.0, second_tcp.0, second_admin.0);
        let (second_http, second_tcp, second_admin) = second_http;
        let mesh = Self { http, tcp, admin, control, status, second_http, directory };
        let failed = || DemoError::io("write the files of the demonstration");
        // Fails where somebody else has made something of this name.
        DirBuilder::new().mode(0o700).create(&mesh.directory).map_err(failed())?;
        fs::create_dir_all(mesh.resources().join(SECOND)).map_err(failed())?;
        mesh.tell(origins, state)?;
        let listeners = listeners(second_http, second_tcp);
        fs::write(mesh.resources().join(SECOND).join("listeners.yaml"), listeners).map_err(failed())?;
        fs::write(mesh.bootstrap(), bootstrap(NODE, admin, control)).map_err(failed())?;
        fs::write(mesh.second(), bootstrap(SECOND, second_admin, control)).map_err(failed())?;
        Ok((mesh, ControlSockets { discovery, status: status_socket }))
    }

    /// Says to the control plane what shall be: its file is replaced.
    pub(super) fn tell(&self, origins: &Origins, state: State) -> Result<(), DemoError> {
        let text = self.services(origins, state);
        let (aside, file) = (self.resources().join(".services.yaml"), self.resources().join("services.yaml"));
        let written = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &file));
        written.map_err(DemoError::io("write services.yaml"))
    }

    /// The directory that the control plane serves.
    pub(super) fn resources(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// The sidecar's bootstrap.
    pub(super) fn bootstrap(&self) -> PathBuf {
        self.directory.join("sidecar.yaml")
    }

    fn second(&self) -> PathBuf {
        self.directory.join("second.yaml")
    }

    /// The services in the short form of the control plane.
    fn services(&self, origins: &Origins, state: State) -> String {
        let list = |origins: &mut dyn Iterator<Item = &Origin>| {
            let addresses =
                origins.filter_map(Origin::address).map(|address| format!("{:?}", address.to_string()));
            addresses.collect::<Vec<_>>().join(", ")
        };
        let web = list(&mut origins.web.iter().take(state.web).map(AsRef::as_ref));
        let [stable, canary] =
            [&origins.stable, &origins.canary].map(|one| list(&mut std::iter::once(&**one)));
        let users = list(&mut origins.users.iter().map(AsRef::as_ref));
        let (http, tcp, echo) = (self.http, self.tcp, origins.echo.address);
        let (canary_weight, stable_weight) = (state.canary, 100 - state.canary.min(100));
        format!(
            "listen: {http}\n\
             services:\n\
             \x20 web:\n\
             \x20   endpoints: [{web}]\n\
             \x20 checkout:\n\
             \x20   versions:\n\
             \x20     stable: {{ weight: {stable_weight}, endpoints: [{stable}] }}\n\
             \x20     canary: {{ weight: {canary_weight}, endpoints: [{canary}] }}\n\
             \x20 users:                     # one of them is slow, one fails every tenth request\n\
             \x20   endpoints: [{users}]\n\
             \x20   retries: {{ attempts: 5, on: [5xx, connect-failure] }}\n\
             \x20   circuit_breakers: {{ max_retries: 64 }}\n\
             \x20 echo:\n\
             \x20   protocol: tcp\n\
             \x20   listen: {tcp}\n\
             \x20   endpoints: [\"{echo}\"]\n"
        )
    }

    /// What is configured, as it stands in the files.
    pub(super) fn introduction(&self) -> String {
        let shown = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| format!("# {error}\n"));
        let (resources, bootstrap) = (self.resources(), self.bootstrap());
        format!(
            "# Outrigger's demonstration, all on loopback: services, clients that keep asking for them, a sidecar in\n\
             # between, and a control plane that tells the sidecar over ADS what to do. While the requests flow, a\n\
             # service scales from 2 to 5 endpoints and to 1, and a canary takes over another one step by step.\n\n\
             # What the control plane serves, {}/services.yaml:\n\n{}\n\
             # The bootstrap of the sidecar, {}; everything else it takes from the control plane:\n\n{}",
            resources.display(),
            shown(&resources.join("services.yaml")),
            bootstrap.display(),
            shown(&bootstrap),
        )
    }

    /// What the user may try.
    pub(super) fn invitation(&self) -> String {
        let Self { http, tcp, admin, control, status, second_http, .. } = self;
        let program =
            std::env::current_exe().map_or_else(|_| "outrigger".into(), |path| path.display().to_string());
        let (second, second_port) = (self.second(), second_http.port());
        let second = second.display();
        let mut text = String::from("# Ready. Try, from another terminal:\n");
        let lines = [
            format!("curl -i -H 'host: web' http://{http}/page/17          # x-served-by: who answered"),
            format!("curl -i -H 'host: checkout' -d '{{\"items\":[\"oar\"]}}' http://{http}/cart"),
            format!("curl -i -H 'host: users' http://{http}/users/4       # three replicas take turns"),
            format!("echo hello | nc -q1 {} {}", tcp.ip(), tcp.port()),
            format!("curl 'http://{admin}/stats?usedonly'"),
            format!("curl 'http://{admin}/config_dump'                  # what the control plane gave"),
        ];
        for line in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(
            text,
            "# (These requests are counted too, and so the totals at the end differ by them.)\n\
             # Admin page of the sidecar:     http://{admin}/\n\
             # Status page of the control plane, which speaks xDS on {control}: http://{status}/\n\
             # Another data plane on the same control plane, with ports of its own, follows each step as well:\n\
             \x20 {program} run -c {second}\n\
             \x20 envoy --base-id 1 -c {second}\n\
             \x20 curl -i -H 'host: web' http://127.0.0.1:{second_port}/",
        );
        text
    }
}

fn socket(address: SocketAddr) -> String {
    format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", address.ip(), address.port())
}

/// A bootstrap that takes everything from the control plane. Envoy understands it as well.
fn bootstrap(node: &str, admin: SocketAddr, control: SocketAddr) -> String {
    let (admin, control) = (socket(admin), socket(control));
    format!(
        r#"node: {{ id: {node}, cluster: {node} }}
admin: {{ address: {admin} }}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{ envoy_grpc: {{ cluster_name: control }} }}]
  cds_config: {{ resource_api_version: V3, ads: {{}} }}
  lds_config: {{ resource_api_version: V3, ads: {{}} }}
static_resources:
  clusters:
  - name: control
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: control
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {control} }}
"#
    )
}

/// The listeners of the services on other addresses, in Envoy's form: what a subdirectory holds replaces what is for
/// everybody.
fn listeners(http: SocketAddr, tcp: SocketAddr) -> String {
    let (http, tcp) = (socket(http), socket(tcp));
    format!(
        r#"# For the nodes of the cluster "{SECOND}", in place of the listeners of the same names.
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: services
  address: {http}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: services
        rds: {{ route_config_name: services, config_source: {{ resource_api_version: V3, ads: {{}} }} }}
        http_filters:
        - name: envoy.filters.http.router
          typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: services/echo
  address: {tcp}
  filter_chains:
  - filters:
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: services/echo
        cluster: echo
"#
    )
}
