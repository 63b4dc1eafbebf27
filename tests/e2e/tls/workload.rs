//! Identities from a SPIFFE Workload API, which is played here: both sides of mTLS have them from it.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use http::Response;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::config::{http, Config, OK};
use crate::harness::client::get;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};

const ID: &str = "spiffe://mesh.test/workload";

#[derive(Clone, PartialEq, Message)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// Who signs, and what a bundle has of that.
struct Signer(Issuer<'static, KeyPair>, Vec<u8>);

impl Signer {
    fn new() -> Signer {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let own = params.self_signed(&key).expect("a certificate").der().to_vec();
        Signer(Issuer::new(params, key), own)
    }

    /// A response with one identity of this serial number; `bundle` is what it may trust.
    fn issue(&self, serial: u64, ca: bool, bundle: &[u8]) -> X509SvidResponse {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(ID.try_into().expect("ASCII"))];
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let svid = X509Svid {
            spiffe_id: ID.to_owned(),
            x509_svid: certificate.der().to_vec(),
            x509_svid_key: key.serialize_der(),
            bundle: bundle.to_vec(),
        };
        X509SvidResponse { svids: vec![svid], ..X509SvidResponse::default() }
    }
}

/// An agent at a socket; it ends when it is dropped.
struct Agent(JoinHandle<()>);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends what `says` has, and again whenever that changes.
fn agent(socket: &Path, says: &watch::Sender<X509SvidResponse>) -> Agent {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).expect("a socket");
    let says = says.subscribe();
    Agent(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let says = says.clone();
            connections.spawn(async move {
                let mut streams = tokio::task::JoinSet::new();
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
                    assert_eq!(request.headers()["workload.spiffe.io"], "true");
                    let mut says = says.clone();
                    streams.spawn(async move {
                        let head = Response::builder().header("content-type", "application/grpc");
                        let mut stream =
                            respond.send_response(head.body(()).expect("a head"), false).expect("sent");
                        loop {
                            let message = says.borrow_and_update().encode_to_vec();
                            let mut framed = vec![0];
                            framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
                            framed.extend_from_slice(&message);
                            if stream.send_data(Bytes::from(framed), false).is_err() {
                                return;
                            }
                            if says.changed().await.is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        }
    }))
}

#[tokio::test]
async fn identities_come_from_the_workload_api() {
    let directory = tempfile::Builder::new().prefix("outrigger-agent").tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let (first, second) = (Signer::new(), Signer::new());
    let (says, _) = watch::channel(first.issue(1001, false, &first.1));
    let own = "tls_certificate_sds_secret_configs: [{name: default}]";
    let trust = format!(
        r#"combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{ID}"}}}}]}}, validation_context_sds_secret_config: {{name: ROOTCA}}}}"#
    );
    let tls = |kind: &str, more: &str, common: &str| {
        format!(
            r#"transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}, {more} common_tls_context: {{{common}}}}}}}"#
        )
    };
    let by_id = format!("tls_certificate_sds_secret_configs: [{{name: \"{ID}\"}}], validation_context_sds_secret_config: {{name: ALL}}");
    let required = "require_client_certificate: true,";
    let inner = format!(
        "[{{filters: [{}], {}}}]",
        http("inner", "", OK),
        tls("DownstreamTlsContext", required, &by_id)
    );
    let options = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {max_requests_per_connection: 1}, explicit_http_config: {http_protocol_options: {}}}},"#;
    let port = crate::harness::ports::free_port();
    let config = Config::default().listener("inner", "[]", &inner).cluster(
        "front",
        port,
        &tls("UpstreamTlsContext", "", &format!("{own}, {trust}")),
        options,
    );
    let template = config.template();
    let endpoint = format!("unix://{}", socket.display());
    let arguments = ["--spiffe-endpoint-socket", endpoint.as_str()];
    let mut plan = Plan::new(Kind::Outrigger, &template, &[]);
    plan.arguments = &arguments;
    plan.ports.insert("inner".to_owned(), port);
    let running = agent(&socket, &says);
    let proxy = Proxy::start(plan).await;
    let front = proxy.port("front");
    let ok = || async { get(front, "/").await.is_ok_and(|answer| answer.status() == 200) };
    assert!(eventually(DEADLINE, ok).await, "{}", proxy.output());
    // In hexadecimal, as `/certs` has it.
    let serial = |serial: &'static str| {
        let proxy = &proxy;
        async move { proxy.admin("/certs").await.contains(serial) }
    };
    assert!(serial("\"3e9\"").await || serial("\"03e9\"").await, "{}", proxy.admin("/certs").await);
    // Both CAs are trusted, then the other one signs, then it alone is trusted: no request is lost.
    let both = [first.1.clone(), second.1.clone()].concat();
    let responses = [
        first.issue(1002, false, &both),
        second.issue(1003, false, &both),
        second.issue(1004, false, &second.1),
    ];
    for (success, response) in (2..).zip(responses) {
        says.send(response).expect("the agent runs");
        let taken = || async {
            assert!(ok().await, "no request is lost");
            proxy.stats().await["spiffe_workload.update_success"] == success
        };
        assert!(eventually(DEADLINE, taken).await, "{}", proxy.output());
        assert!(ok().await);
    }
    assert!(serial("3ec\"").await, "{}", proxy.admin("/certs").await);
    // What is no identity is refused, and the last one serves on.
    says.send(second.issue(1005, true, &second.1)).expect("the agent runs");
    let refused = || async { proxy.stats().await["spiffe_workload.update_rejected"] == 1 };
    assert!(eventually(DEADLINE, refused).await && ok().await);
    assert!(proxy.output().contains("is a CA"), "{}", proxy.output());
    // An agent that goes away is missed by nobody, and found when it is back.
    drop(running);
    let gone = || async { proxy.stats().await["spiffe_workload.connected_state"] == 0 };
    assert!(eventually(DEADLINE, gone).await && ok().await);
    says.send_replace(second.issue(1006, false, &second.1));
    let _running = agent(&socket, &says);
    let back = || async { serial("3ee\"").await };
    assert!(eventually(DEADLINE * 2, back).await && ok().await, "{}", proxy.output());
    // Nothing of a key is shown.
    let key = says.borrow().svids[0].x509_svid_key.clone();
    let dump = proxy.admin("/config_dump").await + &proxy.output();
    assert!(!dump.contains("PRIVATE KEY") && !dump.as_bytes().windows(16).any(|part| part == &key[..16]));
}
