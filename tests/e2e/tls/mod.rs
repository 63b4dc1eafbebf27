//! TLS both ways: real clients (curl, openssl), servers of another library, and the real Envoy on either side. What
//! Envoy does with the same configuration and the same peers is what is expected.

pub mod certs;
mod chain;
pub mod config;
mod downstream;
mod expiry;
pub mod origin;
mod permissive;
mod rotation;
mod staples;
mod upstream;
mod workload;

use std::path::Path;
use std::process::Stdio;

use crate::harness::DEADLINE;
use crate::peers::find;

/// What curl did: its exit status, and what it printed.
pub struct Curl {
    pub ok: bool,
    pub text: String,
}

/// Runs curl against a port of this machine as `server.mesh.test`, trusting the mesh's CA; what it prints ends with
/// the status and the HTTP version in brackets.
pub async fn curl(certs: &Path, scheme: &str, port: u16, arguments: &[&str]) -> Curl {
    let mut command = tokio::process::Command::new(find("curl").expect("curl"));
    command
        .args(["-s", "-m", "10", "-w", "[%{http_code} %{http_version}]", "--cacert"])
        .arg(certs.join("ca.pem"))
        .args(["--resolve", &format!("server.mesh.test:{port}:127.0.0.1")])
        .args(arguments)
        .arg(format!("{scheme}://server.mesh.test:{port}/"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(DEADLINE * 2, command.output()).await.expect("curl ends").expect("curl runs");
    Curl { ok: output.status.success(), text: String::from_utf8_lossy(&output.stdout).into_owned() }
}

/// curl's arguments to present a certificate.
pub fn with_cert(certs: &Path, name: &str) -> Vec<String> {
    let file = |kind: &str| certs.join(format!("{name}.{kind}")).display().to_string();
    vec!["--cert".to_owned(), file("pem"), "--key".to_owned(), file("key")]
}

/// Waits until the file has another line than the first `known`, and returns it.
pub async fn next_line(file: &Path, known: usize) -> String {
    let mut found = None;
    crate::harness::eventually(DEADLINE, || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        found = text.lines().nth(known).filter(|_| text.ends_with('\n')).map(str::to_owned);
        std::future::ready(found.is_some())
    })
    .await;
    found.unwrap_or_else(|| panic!("no line {known} in {}", file.display()))
}
