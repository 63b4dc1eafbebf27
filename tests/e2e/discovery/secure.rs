//! The way to the control plane: a Unix socket, and TLS that both sides prove themselves with.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use outrigger_control_api::server::{Server, SnapshotCache};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::clients::{ask, named};
use super::mesh::{bootstrap, snapshot, Mesh, NODE};
use super::secrets::{agent, agent_cluster, certificate, indented, FROM_AGENT};
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};

const CONTROL: &str = "spiffe://mesh.test/control";
const SIDECAR: &str = "spiffe://mesh.test/sidecar";

/// Ended when it is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One listener that sends everything to one origin.
async fn small_mesh() -> (Origin, u16, SnapshotCache) {
    let origin = named("ok").await;
    let port = free_port();
    let cache = SnapshotCache::by_node_id();
    cache.set(NODE, Mesh::simple(port, &[origin.port()]).snapshot());
    (origin, port, cache)
}

#[tokio::test]
async fn over_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("xds.sock").display().to_string();
    let name = format!("outrigger-e2e-{}-{}", std::process::id(), free_port());
    for (configured, bound) in [(file.clone(), file), (format!("@{name}"), format!("\0{name}"))] {
        let (_origin, port, cache) = small_mesh().await;
        let listener = UnixListener::bind(&bound).expect("a Unix socket");
        let server = Server::new(cache);
        let _task = Task(tokio::spawn(async move { server.serve_unix(listener).await }).abort_handle());
        let tcp = "socket_address: { address: 127.0.0.1, port_value: @control@ }";
        let text = bootstrap(true);
        assert!(text.contains(tcp));
        let proxy =
            Proxy::outrigger(&text.replace(tcp, &format!("pipe: {{ path: \"{configured}\" }}")), &[]).await;
        assert_eq!(ask(port).await.as_deref(), Ok("ok"), "{}", proxy.output());
        assert_eq!(proxy.stats().await["control_plane.connected_state"], 1);
    }
}

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn certificate(&self) -> &rcgen::Certificate {
        self.0.as_ref()
    }

    fn issue(&self, usage: ExtendedKeyUsagePurpose, uri: &str, dns: &str) -> Issued {
        let mut params = CertificateParams::new([dns.to_owned()]).expect("names");
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        Issued { certificate: params.signed_by(&key, &self.0).expect("a certificate"), key }
    }

    fn server(&self) -> Issued {
        self.issue(ExtendedKeyUsagePurpose::ServerAuth, CONTROL, "control.mesh.test")
    }

    fn client(&self) -> Issued {
        self.issue(ExtendedKeyUsagePurpose::ClientAuth, SIDECAR, "sidecar.mesh.test")
    }
}

/// Puts a file into place whole.
fn put(directory: &Path, name: &str, text: &str) {
    let aside = directory.join("aside");
    fs::write(&aside, text).expect("written");
    fs::rename(aside, directory.join(name)).expect("moved");
}

impl Issued {
    fn put(&self, directory: &Path) {
        put(directory, "client.key", &self.key.serialize_pem());
        put(directory, "client.pem", &self.certificate.pem());
    }
}

/// A control plane that speaks TLS and demands certificates of `authority`.
struct Secure {
    port: u16,
    /// The clients' certificates, in the order of their connections.
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    hang_up: watch::Sender<()>,
    _task: Task,
}

impl Secure {
    async fn start(cache: SnapshotCache, authority: &Authority, own: &Issued) -> Secure {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().der().clone()).expect("a root");
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config
            .expect("versions")
            .with_client_cert_verifier(verifier.expect("a verifier"))
            .with_single_cert(
                vec![own.certificate.der().clone()],
                PrivateKeyDer::try_from(own.key.serialize_der()).expect("a key"),
            )
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (seen, (hang_up, hung_up)) = (Arc::new(Mutex::new(Vec::new())), watch::channel(()));
        let (server, certificates) = (Server::new(cache), seen.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, server, seen) = (acceptor.clone(), server.clone(), certificates.clone());
                let mut hung_up = hung_up.clone();
                hung_up.mark_unchanged();
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let leaf = chain.first().map(|leaf: &CertificateDer<'_>| leaf.to_vec());
                    seen.lock().expect("not poisoned").extend(leaf);
                    tokio::select! {
                        _ = server.serve_connection(stream) => {}
                        _ = hung_up.changed() => {}
                    }
                });
            }
        });
        Secure { port, seen, hang_up, _task: Task(task.abort_handle()) }
    }

    fn seen(&self) -> Vec<Vec<u8>> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

/// A bootstrap whose control plane must prove itself; `context` is what it must prove.
fn secured(context: &str, directory: &Path) -> String {
    let at = directory.display();
    let socket = format!(
        r#"    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: control.mesh.test
{context}
        common_tls_context:
          tls_certificates:
          - certificate_chain: {{ filename: "{at}/client.pem" }}
            private_key: {{ filename: "{at}/client.key" }}
          validation_context:
            trusted_ca: {{ filename: "{at}/ca.pem" }}
            NAMES
    load_assignment:
      cluster_name: control
"#
    );
    // What is mended is to be noticed soon.
    let back_off = "retry_policy: { retry_back_off: { base_interval: 0.05s, max_interval: 0.2s } }";
    let target = "envoy_grpc: { cluster_name: control }";
    assert!(bootstrap(true).contains(target));
    let text =
        bootstrap(true).replace(target, &format!("envoy_grpc: {{ cluster_name: control, {back_off} }}"));
    let assignment = "    load_assignment:\n      cluster_name: control\n";
    assert!(text.contains(assignment));
    text.replace(assignment, &socket)
}

fn uri(name: &str) -> String {
    let matcher = format!("[{{ san_type: URI, matcher: {{ exact: \"{name}\" }} }}]");
    format!("match_typed_subject_alt_names: {matcher}")
}

#[tokio::test]
async fn both_sides_prove_themselves_and_renewed_certificates_are_used() {
    let (origin, port, cache) = small_mesh().await;
    let authority = Authority::new("mesh");
    let control = Secure::start(cache.clone(), &authority, &authority.server()).await;
    let files = tempfile::tempdir().expect("a directory");
    let first = authority.client();
    first.put(files.path());
    put(files.path(), "ca.pem", &authority.certificate().pem());
    let template = secured("", files.path()).replace("NAMES", &uri(CONTROL));
    let proxy = Proxy::outrigger(&template, &[("control", control.port.to_string())]).await;
    assert_eq!(ask(port).await.as_deref(), Ok("ok"), "{}", proxy.output());
    assert_eq!(control.seen(), [first.certificate.der().to_vec()]);

    // Renewed: the next connection shows the new one.
    let second = authority.client();
    second.put(files.path());
    control.hang_up.send_replace(());
    let renewed = || std::future::ready(control.seen().last() == Some(&second.certificate.der().to_vec()));
    assert!(eventually(DEADLINE, renewed).await, "{}", proxy.output());
    assert_eq!(ask(port).await.as_deref(), Ok("ok"));

    // Half renewed: no connection, a clear line, and traffic goes on. Then the other half comes.
    let third = authority.client();
    put(files.path(), "client.key", &third.key.serialize_pem());
    control.hang_up.send_replace(());
    let told = || std::future::ready(proxy.output().contains("no certificate for the control plane"));
    assert!(eventually(DEADLINE, told).await, "{}", proxy.output());
    assert_eq!(ask(port).await.as_deref(), Ok("ok"));
    put(files.path(), "client.pem", &third.certificate.pem());
    let renewed = || std::future::ready(control.seen().last() == Some(&third.certificate.der().to_vec()));
    assert!(eventually(DEADLINE * 2, renewed).await, "{}", proxy.output());

    // What the control plane says is followed over the new connection.
    let other = named("other").await;
    cache.set(NODE, Mesh::simple(port, &[other.port()]).snapshot());
    assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("other") }).await);
    drop(origin);
}

/// A file of one secret, as other control planes lay it beside a proxy.
fn put_secret(directory: &Path, file: &str, secret: &str) {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    put(directory, file, &format!("resources:\n- \"@type\": {kind}\n{secret}"));
}

#[tokio::test]
async fn secrets_for_the_control_plane_may_be_in_files_that_change() {
    let (_origin, port, cache) = small_mesh().await;
    let authority = Authority::new("mesh");
    let control = Secure::start(cache.clone(), &authority, &authority.server()).await;
    let files = tempfile::tempdir().expect("a directory");
    let at = files.path().display().to_string();
    let first = authority.client();
    first.put(files.path());
    put(files.path(), "ca.pem", &authority.certificate().pem());
    let own = |name: &str| {
        format!(
            "  name: {name}\n  tls_certificate:\n    certificate_chain: {{ filename: \"{at}/client.pem\" }}\n    \
             private_key: {{ filename: \"{at}/client.key\" }}\n"
        )
    };
    let trust = |of: &str| {
        format!(
            "  name: trust\n  validation_context:\n    trusted_ca: {{ filename: \"{at}/ca.pem\" }}\n    {}\n",
            uri(of)
        )
    };
    put_secret(files.path(), "own.yaml", &own("own"));
    put_secret(files.path(), "trust.yaml", &trust("spiffe://mesh.test/other"));
    let given = secured("", files.path());
    let (head, rest) = given.split_once("          tls_certificates:").expect("a certificate");
    let (_, tail) = rest.split_once("            NAMES\n").expect("names");
    let source = |name: &str| {
        format!("{{ name: {name}, sds_config: {{ resource_api_version: V3, path_config_source: {{ path: \"{at}/{name}.yaml\" }} }} }}")
    };
    let template = format!(
        "{head}          tls_certificate_sds_secret_configs: [{}]\n          \
         validation_context_sds_secret_config: {}\n{tail}",
        source("own"),
        source("trust")
    );
    let proxy =
        Proxy::spawn(&Plan::new(Kind::Outrigger, &template, &[("control", control.port.to_string())]));
    // The secret names somebody else.
    let told = || std::future::ready(proxy.output().contains("spiffe://mesh.test/other"));
    assert!(eventually(DEADLINE, told).await, "{}", proxy.output());
    put_secret(files.path(), "trust.yaml", &trust(CONTROL));
    let serves = || async { ask(port).await.as_deref() == Ok("ok") };
    assert!(eventually(DEADLINE * 2, serves).await, "{}", proxy.output());
    assert_eq!(control.seen().last(), Some(&first.certificate.der().to_vec()));
    // Without the secret there is no certificate, and a line that says which file lacks what.
    put_secret(files.path(), "own.yaml", &own("other"));
    control.hang_up.send_replace(());
    let told = || {
        let output = proxy.output();
        std::future::ready(output.contains("own.yaml: the secret \"own\": is not there"))
    };
    assert!(eventually(DEADLINE, told).await, "{}", proxy.output());
    let second = authority.client();
    second.put(files.path());
    put_secret(files.path(), "own.yaml", &own("own"));
    let renewed = || std::future::ready(control.seen().last() == Some(&second.certificate.der().to_vec()));
    assert!(eventually(DEADLINE * 2, renewed).await, "{}", proxy.output());
}

#[tokio::test]
async fn secrets_for_the_control_plane_may_come_from_an_agent() {
    let (_origin, port, cache) = small_mesh().await;
    let authority = Authority::new("mesh");
    let control = Secure::start(cache, &authority, &authority.server()).await;
    let files = tempfile::tempdir().expect("a directory");
    let trust = format!(
        "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\nname: trust\nvalidation_context:\n  \
         trusted_ca:\n    inline_string: |\n{}  {}\n",
        indented(&authority.certificate().pem()),
        uri(CONTROL)
    );
    let secrets = |own: &Issued| {
        let own = certificate(&(own.certificate.pem(), own.key.serialize_pem()));
        snapshot(&[own, trust.clone()])
    };
    let given = secured("", files.path());
    let (head, rest) = given.split_once("          tls_certificates:").expect("a certificate");
    let (_, tail) = rest.split_once("            NAMES\n").expect("names");
    let path = files.path().join("agent.sock");
    let template = format!(
        "{head}          tls_certificate_sds_secret_configs: [{{ name: own, {FROM_AGENT} }}]\n          \
         validation_context_sds_secret_config: {{ name: trust, {FROM_AGENT} }}\n{tail}{}",
        agent_cluster(&path)
    );
    let (first, second) = (authority.client(), authority.client());
    let of_agent = SnapshotCache::by_node_id();
    of_agent.set(NODE, secrets(&first));
    // The agent comes after the sidecar, which does not go to the control plane without its secrets.
    let proxy =
        Proxy::spawn(&Plan::new(Kind::Outrigger, &template, &[("control", control.port.to_string())]));
    let asked = || {
        let output = proxy.output();
        std::future::ready(
            output.lines().any(|line| line.contains("no stream") && line.contains("agent.sock")),
        )
    };
    assert!(eventually(DEADLINE, asked).await, "{}", proxy.output());
    let running = agent(&path, &of_agent);
    let serves = || async { ask(port).await.as_deref() == Ok("ok") };
    assert!(eventually(DEADLINE * 2, serves).await, "{}", proxy.output());
    assert_eq!(control.seen(), [first.certificate.der().to_vec()], "{}", proxy.output());
    // A renewed one is for the next connection.
    of_agent.set(NODE, secrets(&second));
    let renewed = || async { proxy.stats().await["sds.own.update_success"] == 2 };
    assert!(eventually(DEADLINE, renewed).await, "{}", proxy.output());
    running.abort();
    control.hang_up.send_replace(());
    let shown = || std::future::ready(control.seen().last() == Some(&second.certificate.der().to_vec()));
    assert!(eventually(DEADLINE * 2, shown).await, "{}", proxy.output());
    assert_eq!(ask(port).await.as_deref(), Ok("ok"));
}

#[tokio::test]
async fn a_control_plane_that_cannot_prove_itself_is_refused_and_told() {
    let (_origin, port, cache) = small_mesh().await;
    let (authority, stranger) = (Authority::new("mesh"), Authority::new("stranger"));
    let control = Secure::start(cache, &authority, &authority.server()).await;
    let values = [("control", control.port.to_string())];
    let own = authority.certificate().pem();
    let other_sni = "        auto_sni_san_validation: true";
    let cases = [
        ("another name", secured_for(&uri("spiffe://mesh.test/other")), own.clone(), CONTROL),
        ("another signer", secured_for(&uri(CONTROL)), stranger.certificate().pem(), "UnknownIssuer"),
        (
            "not the name that is asked for",
            secured_for("").replace("sni: control.mesh.test", &format!("sni: other.mesh.test\n{other_sni}")),
            own.clone(),
            "other.mesh.test",
        ),
        ("no trusted CA in the file", secured_for(&uri(CONTROL)), String::new(), "ca.pem"),
    ];
    for (case, template, ca, told) in cases {
        let files = tempfile::tempdir().expect("a directory");
        authority.client().put(files.path());
        put(files.path(), "ca.pem", &ca);
        let template = template.replace("@files@", &files.path().display().to_string());
        let proxy = Proxy::spawn(&Plan::new(Kind::Outrigger, &template, &values));
        let said = || {
            let output = proxy.output();
            let line = output.lines().any(|line| line.contains("TLS handshake") && line.contains(told));
            std::future::ready(line)
        };
        assert!(eventually(DEADLINE, said).await, "{case}: {}", proxy.output());
        assert!(ask(port).await.is_err(), "{case}: it was believed");
        // The file is mended: nothing has to be restarted.
        if told != CONTROL && told != "other.mesh.test" {
            put(files.path(), "ca.pem", &own);
            let serves = || async { ask(port).await.as_deref() == Ok("ok") };
            assert!(eventually(DEADLINE * 2, serves).await, "{case}: {}", proxy.output());
        }
    }
    // The name that is asked for is the one it has.
    let files = tempfile::tempdir().expect("a directory");
    authority.client().put(files.path());
    put(files.path(), "ca.pem", &own);
    let template = secured(other_sni, files.path()).replace("NAMES", "");
    let proxy = Proxy::outrigger(&template, &values).await;
    assert_eq!(ask(port).await.as_deref(), Ok("ok"), "{}", proxy.output());
    drop(proxy);

    // A certificate that the control plane does not trust: it says so, and that is in the log.
    stranger.client().put(files.path());
    let proxy = Proxy::spawn(&Plan::new(Kind::Outrigger, &template, &values));
    let refused = || std::future::ready(proxy.output().contains("received fatal alert"));
    assert!(eventually(DEADLINE, refused).await, "{}", proxy.output());
    assert!(ask(port).await.is_err());
}

/// [`secured`] with a directory to be filled in, and names of the control plane.
fn secured_for(names: &str) -> String {
    secured("", Path::new("@files@")).replace("NAMES", names)
}
