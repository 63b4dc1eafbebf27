//! Certificates that change while connections stand, and secrets of the bootstrap.

use super::certs::{put, Certs, NOW};
use super::config::{field, http, Config, OK};
use super::{curl, next_line, with_cert};
use crate::harness::eventually;
use crate::harness::proxy::Proxy;
use crate::harness::DEADLINE;

#[tokio::test]
async fn a_renewed_certificate_is_used_and_standing_connections_stay() {
    let certs = Certs::new();
    let socket = r#"transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {tls_certificate_sds_secret_configs: [{name: own}], combined_validation_context: {default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://mesh.test/client"}}]}, validation_context_sds_secret_config: {name: ca}}}}}"#;
    let chain = format!("[{{filters: [{}], {socket}}}]", http("rotated", "", OK));
    let config = Config::default().listener("rotated", "[]", &chain);
    let secrets = "  secrets:\n  - {name: own, tls_certificate: {certificate_chain: {filename: \"@certs@/server.pem\"}, private_key: {filename: \"@certs@/server.key\"}, watched_directory: {path: \"@certs@\"}}}\n  - {name: ca, validation_context: {trusted_ca: {filename: \"@certs@/ca.pem\"}}}\n";
    let text = config.template().replace("  listeners:\n", &format!("{secrets}  listeners:\n"));
    let proxy = Proxy::outrigger(&text, &config.values(certs.path())).await;
    let own = with_cert(certs.path(), "client");
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let told = curl(certs.path(), "https", proxy.port("rotated"), &own).await;
    assert_eq!((told.ok, told.text.as_str()), (true, "ok[200 1.1]"));
    let line = next_line(&proxy.file("rotated.log"), 0).await;
    assert_eq!(field(&line, "own_uri"), "spiffe://mesh.test/server");
    let renewed = certs.ca.issue("server", "spiffe://mesh.test/renewed", &["server.mesh.test"], NOW, 20);
    put(certs.path(), "server", &renewed);
    let start = std::time::Instant::now();
    for asked in 1.. {
        let told = curl(certs.path(), "https", proxy.port("rotated"), &own).await;
        assert!(told.ok, "no connection may fail while certificates change");
        let line = next_line(&proxy.file("rotated.log"), asked).await;
        if field(&line, "own_uri") == "spiffe://mesh.test/renewed" {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "the old one is still in use: {line}");
    }
    let stats = proxy.stats().await;
    assert_eq!(stats["listener.rotated.server_ssl_socket_factory.ssl_context_update_by_sds"], 1);
    // Half an update is none.
    std::fs::write(certs.file("aside"), "no certificate").expect("written");
    std::fs::rename(certs.file("aside"), certs.file("server.pem")).expect("moved");
    let kept = eventually(DEADLINE, || async {
        assert!(curl(certs.path(), "https", proxy.port("rotated"), &own).await.ok);
        proxy.output().contains("the last one stays")
    });
    assert!(kept.await, "{}", proxy.output());
    assert!(
        !curl(certs.path(), "https", proxy.port("rotated"), &[]).await.ok,
        "nobody gets in without a certificate"
    );
}
