//! OCSP responses shown with certificates, as `openssl s_client -status` sees them, beside Envoy.

use std::path::Path;
use std::process::Stdio;

use super::certs::Certs;
use super::config::{http, Config, INSPECT, OK};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::DEADLINE;
use crate::peers::{self, find};

/// Has openssl answer for the certificate `server`; without `until` nobody knows for how long.
fn respond(certs: &Certs, name: &str, until: bool) {
    std::fs::write(certs.file("ca.key"), certs.ca.key_pem()).expect("written");
    let index = "V\t220101000000Z\t\t0A\tunknown\t/CN=server\n";
    std::fs::write(certs.file("index.txt"), index).expect("written");
    let file = |name: &str| certs.file(name).display().to_string();
    let mut command = std::process::Command::new(find("openssl").expect("openssl"));
    command.args([
        "ocsp",
        "-index",
        &file("index.txt"),
        "-rsigner",
        &file("ca.pem"),
        "-rkey",
        &file("ca.key"),
    ]);
    command.args(["-CA", &file("ca.pem"), "-issuer", &file("ca.pem"), "-cert", &file("server.pem")]);
    command.args(["-respout", &file(name)]);
    if until {
        command.args(["-ndays", "2"]);
    }
    let output = command.stdin(Stdio::null()).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a handshake came about, and whether a response was shown with it.
async fn shake_hands(certs: &Path, port: u16, status: bool) -> (bool, bool) {
    let mut command = tokio::process::Command::new(find("openssl").expect("openssl"));
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "server.mesh.test"]);
    command.arg("-CAfile").arg(certs.join("ca.pem"));
    if status {
        command.arg("-status");
    }
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(DEADLINE, run).await.expect("openssl ends").expect("openssl runs");
    let text = String::from_utf8_lossy(&output.stdout);
    (
        text.contains("Cipher is TLS") || text.contains("Cipher is ECDHE"),
        text.contains("OCSP Response Status: successful"),
    )
}

#[tokio::test]
async fn responses_are_stapled_as_by_envoy() {
    if !peers::have(&["envoy", "openssl"]) {
        return;
    }
    let certs = Certs::new();
    respond(&certs, "good.der", true);
    // As in Envoy, what nobody knows the end of has expired.
    respond(&certs, "expired.der", false);
    let mut config = Config::default();
    let mut cases = Vec::new();
    for policy in ["LENIENT_STAPLING", "STRICT_STAPLING", "MUST_STAPLE"] {
        for staple in ["good", "expired", ""] {
            if policy == "MUST_STAPLE" && staple.is_empty() {
                continue;
            }
            let name = format!("{}-{}", policy.split('_').next().unwrap_or_default(), staple).to_lowercase();
            let der = match staple {
                "" => String::new(),
                staple => format!(", ocsp_staple: {{filename: \"@certs@/{staple}.der\"}}"),
            };
            let socket = format!(
                r#"transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, ocsp_staple_policy: {policy}, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: "@certs@/server.pem"}}, private_key: {{filename: "@certs@/server.key"}}{der}}}]}}}}}}"#
            );
            let chain = format!("[{{filters: [{}], {socket}}}]", http(&name, "", OK));
            config = config.listener(&name, INSPECT, &chain);
            cases.push(name);
        }
    }
    let mut told = Vec::new();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let proxy = Proxy::start(Plan::new(kind, &config.template(), &config.values(certs.path()))).await;
        let mut lines = Vec::new();
        for name in &cases {
            let port = proxy.port(name);
            let (with, without) =
                (shake_hands(certs.path(), port, true).await, shake_hands(certs.path(), port, false).await);
            let stats = proxy.stats().await;
            let counted = ["requests", "responses", "omitted", "failed"]
                .map(|stat| stats[&format!("listener.{name}.ssl.ocsp_staple_{stat}")]);
            lines.push(format!("{name}: asked {with:?}, not asked {without:?}, counted {counted:?}"));
        }
        told.push(lines);
    }
    assert_eq!(told[0], told[1], "left Envoy, right Outrigger");
    assert!(
        told[1][0].contains("asked (true, true), not asked (true, false), counted [1, 1, 0, 0]"),
        "{:?}",
        told[1]
    );
}
