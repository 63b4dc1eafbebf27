//! What STRICT would refuse, before a listener is made strict.

use serde_json::Value;

use super::certs::Certs;
use super::config::{downstream, http, mesh, Config, INSPECT, OK};
use super::{curl, with_cert};
use crate::harness::client::get;
use crate::harness::proxy::Proxy;
use crate::peers;

#[tokio::test]
async fn clients_without_mtls_are_told_by_their_addresses() {
    if !peers::have(&["curl"]) {
        return;
    }
    let certs = Certs::new();
    let required = "require_client_certificate: true,";
    let chains = format!(
        "[{{filter_chain_match: {{transport_protocol: tls}}, filters: [{filter}], {tls}}}, \
         {{filter_chain_match: {{transport_protocol: raw_buffer}}, filters: [{filter}]}}]",
        filter = http("both", "", OK),
        tls = downstream(&mesh(), required),
    );
    let config = Config::default().listener("both", INSPECT, &chains).ends("strict", "", &mesh(), required);
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    for _ in 0..2 {
        assert_eq!(get(proxy.port("both"), "/").await.expect("an answer").status(), 200);
    }
    for listener in ["both", "strict"] {
        let own = with_cert(certs.path(), "client");
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        assert!(curl(certs.path(), "https", proxy.port(listener), &own).await.ok);
    }
    let page: Value = serde_json::from_str(&proxy.admin("/strict_mtls").await).expect("JSON");
    let listeners = page["listeners"].as_array().expect("a list");
    assert_eq!(listeners.len(), 1, "only one takes plain text: {page}");
    assert_eq!((&listeners[0]["name"], &listeners[0]["would_refuse"]), (&"both".into(), &2.into()));
    let peers = listeners[0]["peers"].as_array().expect("a list");
    assert_eq!(peers.len(), 1);
    assert_eq!((&peers[0]["address"], &peers[0]["connections"]), (&"127.0.0.1".into(), &2.into()));
    assert_eq!(proxy.stats().await["listener.both.strict_mtls_would_refuse"], 2);
}
