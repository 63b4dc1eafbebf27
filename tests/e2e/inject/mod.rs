//! Sidecars for pods: manifests, the admission webhook, probes that go through the sidecar, and being ready.

mod manifests;
mod probes;
mod webhook;

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use std::process::{Command, Output};

pub fn outrigger(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger")).args(arguments).output().expect("outrigger starts")
}

/// `ready` tells what is, `wait` waits for it, whoever of both is started first.
#[tokio::test]
async fn exec_probes_and_hooks_know_when_it_is_ready() {
    let admin = free_port();
    let address = format!("127.0.0.1:{admin}");
    let early = outrigger(&["ready", "--admin-address", &address]);
    assert!(!early.status.success());
    let text = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(text.starts_with(&format!("not ready: admin at {address}: ")), "{text}");
    let late = outrigger(&["wait", "--admin-address", &address, "--timeout-s", "0"]);
    assert!(!late.status.success() && String::from_utf8_lossy(&late.stderr).contains(" after 0 s"));
    let waiter = {
        let address = address.clone();
        tokio::task::spawn_blocking(move || outrigger(&["wait", "--admin-address", &address]))
    };
    let origin = Origin::start().await;
    let template = Bootstrap::new().plain("main", "").render();
    let values = origins(origin.port(), origin.port());
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.ports.insert("admin".to_owned(), admin);
    let proxy = Proxy::start(plan).await;
    let waited = waiter.await.expect("it ends");
    assert!(waited.status.success(), "{waited:?}");
    assert!(outrigger(&["ready", "--admin-address", &address]).status.success());
    let failed = crate::harness::client::Client::connect(proxy.port("admin"));
    let question = b"POST /healthcheck/fail HTTP/1.1\r\nhost: a\r\n\r\n";
    failed.await.expect("a connection").exchange(question).await.expect("an answer");
    let sick = outrigger(&["ready", "--admin-address", &address]);
    assert!(!sick.status.success());
    assert!(String::from_utf8_lossy(&sick.stderr).starts_with("not ready: 503 "), "{sick:?}");
}
