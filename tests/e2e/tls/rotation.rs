//! Certificates that change while connections stand, and secrets of the bootstrap.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::certs::{put, Authority, Certs, NOW};
use super::config::{field, http, Config, OK};
use super::{curl, next_line, with_cert};
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::proxy::{Kind, Plan, Proxy};
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

/// Files that nobody watches are read anew when the certificate in them is near its end.
#[tokio::test]
async fn a_certificate_near_its_end_is_looked_for_in_its_files() {
    let certs = Certs::new();
    let names = ["server.mesh.test"];
    put(certs.path(), "server", &certs.ca.issue_for("spiffe://mesh.test/old", &names, (36, 4)));
    let config = Config::default().ends("ending", "", "", "");
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    put(certs.path(), "server", &certs.ca.issue("server", "spiffe://mesh.test/new", &names, NOW, 21));
    let mut asked = 0;
    let renewed = eventually(DEADLINE * 2, || {
        let (proxy, certs, nth) = (&proxy, &certs, asked);
        asked += 1;
        async move {
            // Between its end and the next look at its files it is refused.
            curl(certs.path(), "https", proxy.port("ending"), &[]).await;
            field(&next_line(&proxy.file("ending.log"), nth).await, "own_uri") == "spiffe://mesh.test/new"
        }
    });
    assert!(renewed.await, "{}", proxy.output());
}

/// No request is lost while a certificate changes every second and the CA once, on connections that each carry one
/// request. Takes three seconds, or `OUTRIGGER_ROTATION_SECONDS`.
#[tokio::test]
async fn nothing_is_lost_while_certificates_and_the_ca_change() {
    let seconds = std::env::var("OUTRIGGER_ROTATION_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u64 = seconds.unwrap_or(3).max(3);
    let certs = Certs::new();
    let (old, new) = (&certs.ca, Authority::new("new"));
    let uri = "spiffe://mesh.test/workload";
    let issue = |ca: &Authority| {
        put(certs.path(), "own", &ca.issue("workload", uri, &["workload.mesh.test"], NOW, 30));
    };
    let trust = |pem: String| {
        std::fs::write(certs.file("aside-ca"), pem).expect("written");
        std::fs::rename(certs.file("aside-ca"), certs.file("trust.pem")).expect("moved");
    };
    issue(old);
    trust(old.pem());
    let watched = "watched_directory: {path: \"@certs@\"}";
    let common = format!(
        "tls_certificate_sds_secret_configs: [{{name: own}}], combined_validation_context: {{default_validation_context: \
         {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"{uri}\"}}}}]}}, \
         validation_context_sds_secret_config: {{name: ca}}}}"
    );
    let tls = |kind: &str, more: &str| {
        format!(
            r#"transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}, {more} common_tls_context: {{{common}}}}}}}"#
        )
    };
    let inner = tls(
        "DownstreamTlsContext",
        "require_client_certificate: true, disable_stateless_session_resumption: true,",
    );
    let inner = format!("[{{filters: [{}], {inner}}}]", http("inner", "", OK));
    let one = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {max_requests_per_connection: 1}, explicit_http_config: {http_protocol_options: {}}}},"#;
    let port = crate::harness::ports::free_port();
    let config = Config::default().listener("inner", "[]", &inner).cluster(
        "front",
        port,
        &tls("UpstreamTlsContext", ""),
        one,
    );
    let secrets = format!("  secrets:\n  - {{name: own, tls_certificate: {{certificate_chain: {{filename: \"@certs@/own.pem\"}}, private_key: {{filename: \"@certs@/own.key\"}}, {watched}}}}}\n  - {{name: ca, validation_context: {{trusted_ca: {{filename: \"@certs@/trust.pem\"}}, {watched}}}}}\n");
    let text = config.template().replace("  listeners:\n", &format!("{secrets}  listeners:\n"));
    let values = config.values(certs.path());
    let mut plan = Plan::new(Kind::Outrigger, &text, &values);
    plan.ports.insert("inner".to_owned(), port);
    let proxy = Proxy::start(plan).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let answered = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (port, stopped, answered) = (proxy.port("front"), stopped.clone(), answered.clone());
        clients.spawn(async move {
            let mut client = Client::connect(port).await.expect("a connection");
            let (mut good, mut lost) = (0_u64, Vec::new());
            while !*stopped.borrow() {
                match client.exchange(b"GET / HTTP/1.1\r\nhost: server.mesh.test\r\n\r\n").await {
                    Ok(answer) if answer.status() == 200 => {
                        good += 1;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(answer) => lost.push(format!("{} {}", answer.status(), answer.text())),
                    Err(error) => {
                        lost.push(error.to_string());
                        client = Client::connect(port).await.expect("a connection");
                    }
                }
            }
            (good, lost)
        });
    }
    let middle = seconds / 2;
    for second in 0..seconds {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        if second + 1 == middle.max(1) {
            trust(old.pem() + &new.pem());
            issue(old);
        } else if second < middle {
            issue(old);
        } else {
            issue(&new);
            if second > middle {
                trust(new.pem());
            }
        }
    }
    // The last change is served too.
    let enough = answered.load(Ordering::Relaxed) + 100;
    let served = eventually(std::time::Duration::from_secs(10), || {
        let served = answered.load(Ordering::Relaxed) >= enough;
        async move { served }
    });
    assert!(served.await, "{}", proxy.output());
    stop.send_replace(true);
    let (mut good, mut lost) = (0, Vec::new());
    while let Some(done) = clients.join_next().await {
        let (more, bad) = done.expect("a client");
        good += more;
        lost.extend(bad);
    }
    let stats = proxy.stats().await;
    let handshakes = stats["listener.inner.ssl.handshake"];
    let contexts = stats["listener.inner.server_ssl_socket_factory.ssl_context_update_by_sds"];
    println!(
        "{seconds} s: {good} requests, {handshakes} handshakes, {contexts} changes, {} lost",
        lost.len()
    );
    assert!(
        lost.is_empty(),
        "{} of {good}: {:?}\n{}",
        lost.len(),
        &lost[..lost.len().min(5)],
        proxy.output()
    );
    assert!(
        handshakes >= good && contexts >= seconds,
        "{handshakes} handshakes for {good}, {contexts} changes"
    );
}
