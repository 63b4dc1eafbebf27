//! One side: a pod with a proxy and an application, and a world around it, in network namespaces of their own.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use outrigger::bootstrap::xds_dir;
use serde_json::{json, Value};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::asks::{reached, Ask, POD, UNNAMED};
use super::bundle::{each_address, Prepared};
use super::world::{Both, World};
use crate::discovery::mesh::{snapshot_of, ControlPlane, NODE};
use crate::harness::http1::Reader;
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::pods::mesh::{ip, Mesh, Pod};
use crate::pods::sidecar::{Plan, Sidecar};
use crate::tls::certs::Certs;

const CONTROL: u16 = 18000;
const ADS: &str = "live-ads";

/// The pods and what serves in them; proxies come and go.
pub struct Side {
    kind: Kind,
    mesh: Mesh,
    dir: TempDir,
}

/// A proxy that has taken a bundle.
pub struct Live<'a> {
    side: &'a Side,
    sidecar: Sidecar,
    control: ControlPlane,
    _world: Arc<World>,
}

impl Side {
    pub fn new(kind: Kind) -> Side {
        let mesh = Mesh::new(2);
        let (pod, world) = (mesh.pods[0].namespace.name(), mesh.pods[1].namespace.name());
        ip(&format!("-n {pod} route add default via 10.77.0.2"));
        // The world has all other addresses.
        ip(&format!("-n {world} route add local default dev lo"));
        Side { kind, mesh, dir: tempfile::tempdir().expect("a directory") }
    }

    fn pod(&self) -> &Pod {
        &self.mesh.pods[0]
    }

    fn around(&self) -> &Pod {
        &self.mesh.pods[1]
    }

    pub fn log(&self) -> String {
        self.dir.path().join("access.log").display().to_string()
    }

    /// Serves the bundle to a new proxy. What it refuses of it is the error.
    pub async fn take(&self, prepared: &Prepared, certs: &Certs) -> Result<Live<'_>, Vec<(String, String)>> {
        let _ = std::fs::remove_file(self.log());
        let world = World::new(certs, "world");
        self.serve(prepared, &world);
        let listener = self.pod().listen(CONTROL);
        listener.set_nonblocking(true).expect("set");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let mut resources = prepared.resources.clone();
        resources
            .extend(prepared.secrets.iter().map(|(name, certificate)| secret(name, *certificate, certs)));
        resources.push(marker());
        let control = ControlPlane::over(listener, snapshot_of(&resources));
        let mut names = BTreeSet::new();
        prepared.resources.iter().for_each(|value| xds_dir::sources_in(value, false, &mut names));
        let sent: Vec<&str> = prepared.of_kind(".Cluster").filter_map(|one| one["name"].as_str()).collect();
        names.retain(|name| !sent.contains(&name.as_str()));
        let mut bootstrap = xds_dir::stand_in_bootstrap(&names, ADS, CONTROL);
        bootstrap["node"] = json!({"id": NODE, "cluster": "test"});
        bootstrap["admin"] =
            json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}});
        let plan = Plan {
            bootstrap: Some(&bootstrap.to_string()),
            arguments: &["--file-flush-interval-msec", "10", "-l", "warn"],
            kind: self.kind,
            ..Plan::PLAIN
        };
        let sidecar = Sidecar::start(self.pod(), &plan, certs);
        let settled = || async { !control.refused().is_empty() || self.has_marker() };
        assert!(eventually(DEADLINE, settled).await, "{:?}: the listeners do not come", self.kind);
        match control.refused() {
            refused if refused.is_empty() => Ok(Live { side: self, sidecar, control, _world: world }),
            refused => Err(refused),
        }
    }

    /// Connections of clients.
    fn open(&self) -> u64 {
        let page = self.pod().admin("/stats?filter=downstream_cx_active").expect("statistics");
        let of = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            let counted = name.starts_with("listener.") && !name.starts_with("listener.admin");
            value.trim().parse::<u64>().ok().filter(|_| counted)
        };
        page.lines().filter_map(of).sum()
    }

    /// The last of the listeners is there, and those before it.
    fn has_marker(&self) -> bool {
        let page = self.pod().admin("/listeners?format=json").unwrap_or_default();
        page.contains("live-marker") && self.pod().admin("/ready").is_some()
    }

    /// Where the bundle sends something, somebody answers.
    fn serve(&self, prepared: &Prepared, world: &Arc<World>) {
        let mut inside = BTreeSet::new();
        let mut outside = BTreeSet::from([UNNAMED]);
        let mut own = BTreeSet::new();
        for listener in prepared.of_kind(".Listener") {
            for (to, from_outside) in reached(listener) {
                if from_outside {
                    let captured = listener["bindToPort"] == false || to.ip() == &POD;
                    inside.extend(captured.then_some(SocketAddrV4::new(POD, to.port())));
                } else {
                    outside.insert(to.port());
                }
            }
            let at = listener["address"]["socketAddress"]["address"].as_str();
            let at: Option<Ipv4Addr> = at.and_then(|text| text.parse().ok());
            let bound = listener["bindToPort"] != false || listener["trafficDirection"] == "INBOUND";
            own.extend(at.filter(|at| bound && !at.is_unspecified() && !at.is_loopback() && *at != POD));
        }
        let endpoints =
            prepared.resources.iter().filter(|value| value["@type"].as_str().is_some_and(is_of_hosts));
        for mut value in endpoints.cloned() {
            each_address(&mut value, &mut |socket| {
                let port = socket["portValue"].as_u64().and_then(|port| u16::try_from(port).ok());
                let at: Option<Ipv4Addr> = socket["address"].as_str().and_then(|text| text.parse().ok());
                match (at, port) {
                    (Some(at), Some(port)) if at.is_loopback() || own.contains(&at) => {
                        inside.insert(SocketAddrV4::new(at, port));
                    }
                    (Some(_), Some(port)) => drop(outside.insert(port)),
                    _ => {}
                }
            });
        }
        let (pod, around) = (self.pod().namespace.name(), self.around().namespace.name());
        for at in &own {
            // It may be there from the bundle before.
            ip_if(&format!("-n {pod} addr add {at}/32 dev lo"));
            ip_if(&format!("-n {around} route add {at}/32 via {POD}"));
        }
        inside.into_iter().for_each(|at| world.listen(self.pod(), at.into()));
        for port in outside {
            world.listen(self.around(), (Ipv4Addr::UNSPECIFIED, port).into());
        }
    }

    /// Does what `ask` says: the client's address, and what came of it.
    pub async fn ask(&self, ask: &Ask, clients: &[ClientConfig]) -> (String, String) {
        let from = if ask.outside { self.around() } else { self.pod() };
        let Ok(stream) = connect(from, ask) else { return (String::new(), "no connection".to_owned()) };
        let own = stream.local_addr().expect("an address").to_string();
        stream.set_nonblocking(true).expect("set");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
        let mut stream: Box<dyn Both> = Box::new(stream);
        if let Some(secure) = &ask.secure {
            let mut config = clients[secure.identity.unwrap_or(0)].clone();
            config.alpn_protocols = secure.alpn.iter().map(|name| name.clone().into_bytes()).collect();
            let name = ServerName::try_from(secure.name.clone()).expect("a name");
            let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
            match tokio::time::timeout(DEADLINE, connecting).await {
                Ok(Ok(inner)) => stream = Box::new(inner),
                Ok(Err(error)) => return (own, format!("no TLS: {error}")),
                Err(_) => return (own, "no end of the handshake".to_owned()),
            }
        }
        let said = tokio::time::timeout(DEADLINE, exchange(stream, ask)).await;
        (own, said.unwrap_or_else(|_| "no answer".to_owned()))
    }
}

impl Live<'_> {
    /// Ends the proxy, and returns what it has logged.
    pub async fn end(mut self) -> Vec<String> {
        assert!(self.control.refused().is_empty(), "{:?}", self.control.refused());
        // Each is logged when it has ended.
        eventually(DEADLINE, || async { self.side.open() == 0 }).await;
        self.sidecar.signal(libc::SIGTERM);
        self.sidecar.wait();
        let text = std::fs::read_to_string(self.side.log()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Captures the pod's connections from now on.
pub fn capture(side: &Side, wanted: bool) {
    side.pod().init(if wanted { &[] } else { &["--cleanup"] });
}

fn is_of_hosts(kind: &str) -> bool {
    kind.ends_with(".Cluster") || kind.ends_with(".ClusterLoadAssignment")
}

fn ip_if(line: &str) {
    let _ =
        std::process::Command::new("ip").args(line.split(' ')).stderr(std::process::Stdio::null()).status();
}

fn secret(name: &str, certificate: bool, certs: &Certs) -> Value {
    let file = |name: &str| json!({"filename": certs.file(name).display().to_string()});
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    match certificate {
        true => json!({"@type": kind, "name": name, "tls_certificate": {
            "certificate_chain": file("pod.pem"), "private_key": file("pod.key")}}),
        false => json!({"@type": kind, "name": name, "validation_context": {"trusted_ca": file("ca.pem")}}),
    }
}

/// A listener that is of no bundle and comes last.
fn marker() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "zz-live-marker",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}, "bind_to_port": false,
        "filter_chains": [{"filters": [{"name": "end", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config"}}]}]
    })
}

/// Connects from a port that no other connection has had: capture gives another to one whose port it sees twice.
fn connect(from: &Pod, ask: &Ask) -> std::io::Result<std::net::TcpStream> {
    let (to, own) = (ask.to, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, ask.port));
    from.namespace.within(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&own.into())?;
        socket.connect_timeout(&to.into(), DEADLINE)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    })
}

async fn exchange(mut stream: Box<dyn Both>, ask: &Ask) -> String {
    let _ = stream.write_all(&ask.bytes).await;
    let mut reader = Reader::new(stream);
    if !ask.http {
        while reader.buffered.len() < ask.bytes.len() && reader.fill().await.unwrap_or(false) {}
        return format!("got {}", reader.buffered.escape_ascii());
    }
    let head = ask.bytes.starts_with(b"HEAD ");
    let Ok(message) = reader.response(head).await else { return "closed".to_owned() };
    let mut fields: Vec<String> = message
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .filter(|(name, _)| {
            !["date", "x-envoy-upstream-service-time", "x-request-id"].contains(&name.as_str())
        })
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    fields.sort();
    format!("{}\n{}\n{}", message.start_line, fields.join("\n"), message.text())
}

/// The configuration of a client with the certificate `name`.
pub fn client(certs: &Certs, name: &str) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(certs.file(&format!("{name}.pem"))).expect("a file");
    let chain = chain.collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(certs.file(&format!("{name}.key"))).expect("a key");
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key)
        .expect("a pair")
}

/// Whom the proxy claims to be is not what is looked at here.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let all = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, &all)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let all = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, &all)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
