//! The command line: Envoy's spellings start it, so that a pod specification written for Envoy does.

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::{get, Client};
use crate::harness::origin::Origin;
use crate::harness::proxy::{Kind, Plan, Proxy};
use std::process::Command;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

async fn serves(arguments: &[&str]) -> Proxy {
    let origin = Origin::start().await;
    let template = Bootstrap::new().plain("main", "").render();
    let values = origins(origin.port(), origin.port());
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.arguments = arguments;
    let proxy = Proxy::start(plan).await;
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    assert_eq!(client.exchange(GET).await.unwrap().status(), 200, "with {arguments:?}");
    proxy
}

#[tokio::test]
async fn flags_of_envoy() {
    let flags =
        ["--service-node", "node-7", "--service-cluster", "shop", "-l", "warning", "--drain-time-s", "3"];
    let more = ["--base-id", "5", "--mode", "serve", "--log-level", "info"];
    let proxy = serves(&[&flags[..], &more[..2]].concat()).await;
    let info: serde_json::Value = serde_json::from_str(&proxy.admin("/server_info").await).expect("JSON");
    assert_eq!(
        (info["node"]["id"].as_str(), info["node"]["cluster"].as_str()),
        (Some("node-7"), Some("shop"))
    );
    serves(&more[2..]).await;
}

/// What Istio's agent starts Envoy with.
#[tokio::test]
async fn flags_of_an_agent() {
    let drain = ["--drain-time-s", "45", "--drain-strategy", "immediate", "--local-address-ip-version", "v4"];
    let rest =
        ["--file-flush-interval-msec", "1000", "--disable-hot-restart", "--allow-unknown-static-fields"];
    let logs = ["-l", "warning", "--component-log-level", "misc:error", "--skip-deprecated-logs"];
    serves(&[&drain[..], &rest[..], &logs[..]].concat()).await;
}

/// A bootstrap on the command line is laid over the one in the file.
#[tokio::test]
async fn config_yaml_is_merged() {
    let added = "{ node: { id: from-the-command-line } }";
    let proxy = serves(&["--config-yaml", added]).await;
    let info: serde_json::Value = serde_json::from_str(&proxy.admin("/server_info").await).expect("JSON");
    assert_eq!(info["node"]["id"].as_str(), Some("from-the-command-line"));
    assert_eq!(get(proxy.port("admin"), "/ready").await.unwrap().status(), 200);
}

#[test]
fn unknown_flags_and_missing_files_are_told() {
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_outrigger")).args(arguments).output().expect("outrigger");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, said) = run(&["run", "--no-such-flag"]);
    assert!(code != Some(0) && said.contains("--no-such-flag"), "{code:?}: {said}");
    let (code, said) = run(&["--version"]);
    assert!(code == Some(0) && said.contains(env!("CARGO_PKG_VERSION")), "{code:?}: {said}");
    let (code, said) = run(&["--help"]);
    assert!(
        code == Some(0) && ["run", "validate", "demo"].iter().all(|word| said.contains(word)),
        "{code:?}: {said}"
    );
}
