//! TLS towards upstreams: whom the proxy talks to, what is counted and logged, beside Envoy.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::certs::Certs;
use super::config::{field, mesh, own, spiffe, tcp, trust_domain, upstream, Config, CA};
use super::next_line;
use super::origin::{Manner, TlsOrigin};
use crate::harness::client::get;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;

/// Both proxies speak the same version, so that failures come at the same moment.
const OLD: &str = "tls_params: {tls_maximum_protocol_version: TLSv1_2},";
const NAMES: [&str; 6] = ["wrong", "expired", "future", "self", "stranger", "revoked"];

fn http_options(more: &str, protocol: &str) -> String {
    format!(
        r#"typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {more} {protocol}}}}},"#
    )
}

async fn setup(certs: &Certs) -> (Config, Vec<TlsOrigin>) {
    let at = certs.path();
    let start = |name: &'static str, manner: Manner| TlsOrigin::start(at, name, manner);
    let demands = Manner { demands: true, old: false };
    let mut origins = Vec::new();
    let mut config = Config::default();
    let known = mesh();
    let good = start("server", demands).await;
    let open = start("server", Manner::default()).await;
    let explicit = http_options("", "explicit_http_config: {http_protocol_options: {}}");
    config = config
        .cluster(
            "good",
            good.port,
            &upstream(&format!("{OLD} {} {known}", own("client")), "sni: server.mesh.test,"),
            &explicit,
        )
        .cluster("nocert", good.port, &upstream(&format!("{OLD} {known}"), ""), "")
        .cluster("badcert", good.port, &upstream(&format!("{OLD} {} {known}", own("stranger")), ""), "")
        .cluster(
            "pinned",
            open.port,
            &upstream(
                &format!("{OLD} validation_context: {{verify_certificate_hash: [\"{}\"]}}", "00".repeat(32)),
                "",
            ),
            "",
        )
        .cluster(
            "sni",
            open.port,
            &upstream(
                &format!("{OLD} validation_context: {{{CA}}}"),
                "sni: other.test, auto_sni_san_validation: true,",
            ),
            "",
        )
        .cluster(
            "auto",
            open.port,
            &upstream(&format!("{OLD} validation_context: {{{CA}}}"), ""),
            &http_options(
                "upstream_http_protocol_options: {auto_sni: true, auto_san_validation: true},",
                "auto_config: {}",
            ),
        );
    let domain = format!("trust_domains: [{}]", trust_domain("mesh.test", "ca.pem"));
    config =
        config.cluster("spiffe", open.port, &upstream(&format!("{OLD} {}", spiffe(&domain, "")), ""), "");
    let selfish = start("self", Manner::default()).await;
    config = config.cluster("unverified", selfish.port, &upstream(OLD, ""), "");
    origins.extend([good, open, selfish]);
    for name in NAMES {
        let origin = start(name, Manner::default()).await;
        let crl = if name == "revoked" {
            format!("validation_context: {{{CA}, crl: {{filename: \"@certs@/crl.pem\"}}}}")
        } else {
            known.clone()
        };
        config = config.cluster(name, origin.port, &upstream(&format!("{OLD} {crl}"), ""), "");
        if name == "wrong" {
            let strict = upstream(&format!("{OLD} {}", spiffe(&domain, "")), "");
            config = config.cluster("domain", origin.port, &strict, "");
        }
        origins.push(origin);
    }
    let plain = TlsOrigin::with(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let closes = TlsOrigin::with(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    config = config.cluster("plain", plain.port, &upstream(&known, ""), "").cluster(
        "closes",
        closes.port,
        &upstream(&known, ""),
        "",
    );
    origins.extend([plain, closes]);
    (config, origins)
}

#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    body: String,
    log: BTreeMap<&'static str, String>,
    counted: BTreeMap<String, u64>,
}

const LOGGED: &[&str] =
    &["code", "flags", "details", "failure", "upstream_uri", "upstream_subject", "upstream_own"];

async fn see(certs: &Certs, kind: Kind, config: &Config, names: &[&str]) -> Vec<Seen> {
    let proxy = Proxy::start(Plan::new(kind, &config.template(), &config.values(certs.path()))).await;
    let mut all = Vec::new();
    for name in names {
        let request = b"GET / HTTP/1.1\r\nHost: server.mesh.test\r\nConnection: close\r\n\r\n";
        let mut client = crate::harness::client::Client::connect(proxy.port(name)).await.expect("connected");
        let answer = client.exchange(request).await.expect("an answer");
        let line = next_line(&proxy.file(&format!("{name}.log")), 0).await;
        let log = LOGGED.iter().map(|key| (*key, field(&line, key).to_owned())).collect();
        let start = format!("cluster.{name}.");
        let wanted = |stat: &str| {
            let tls = stat.starts_with("ssl.")
                && ![".ciphers", ".cert", ".sigalgs"]
                    .iter()
                    .any(|part| stat.starts_with(&format!("ssl{part}")));
            tls || ["upstream_cx_connect_fail", "upstream_cx_http1_total"].contains(&stat)
        };
        let counted = proxy.stats().await.into_iter().filter_map(|(stat, value)| {
            let stat = stat.strip_prefix(&start)?;
            (value > 0 && wanted(stat)).then(|| (stat.to_owned(), value))
        });
        all.push(Seen { status: answer.status(), body: answer.text(), log, counted: counted.collect() });
    }
    all
}

#[tokio::test]
async fn upstreams_fare_as_with_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let certs = Certs::new();
    let (config, _origins) = setup(&certs).await;
    let mut names = vec![
        "good",
        "nocert",
        "badcert",
        "pinned",
        "sni",
        "auto",
        "unverified",
        "spiffe",
        "domain",
        "plain",
        "closes",
    ];
    names.extend(NAMES);
    let ours = see(&certs, Kind::Outrigger, &config, &names);
    let theirs = see(&certs, Kind::Envoy, &config, &names);
    let (ours, theirs) = tokio::join!(ours, theirs);
    for ((name, ours), theirs) in names.iter().zip(ours).zip(theirs) {
        assert_eq!(ours, theirs, "{name}: left is ours, right Envoy's");
    }
}

#[tokio::test]
async fn sessions_are_resumed_and_an_alert_after_the_handshake_is_told() {
    let certs = Certs::new();
    let demands = Manner { demands: true, old: false };
    let origin = TlsOrigin::start(certs.path(), "server", demands).await;
    let one = http_options(
        "common_http_protocol_options: {max_requests_per_connection: 1},",
        "explicit_http_config: {http_protocol_options: {}}",
    );
    let config = Config::default()
        .cluster(
            "good",
            origin.port,
            &upstream(&format!("{} {}", own("client"), mesh()), "sni: server.mesh.test,"),
            &one,
        )
        .cluster("nocert", origin.port, &upstream(&mesh(), ""), "");
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    for _ in 0..3 {
        assert_eq!(get(proxy.port("good"), "/").await.expect("an answer").text(), "origin 0");
    }
    let stats = proxy.stats().await;
    assert_eq!((stats["cluster.good.ssl.handshake"], stats["cluster.good.ssl.session_reused"]), (3, 2));
    // In TLS 1.3 a server says only after the handshake that it wants a certificate.
    assert_eq!(get(proxy.port("nocert"), "/").await.expect("an answer").status(), 503);
    let line = next_line(&proxy.file("nocert.log"), 0).await;
    assert_eq!(field(&line, "flags"), "UC");
    assert!(field(&line, "failure").contains("TLSV1_ALERT_CERTIFICATE_REQUIRED"), "{line}");
    assert_eq!(proxy.stats().await["cluster.nocert.ssl.connection_error"], 1);
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let certs = Certs::new();
    let origin = TlsOrigin::start(certs.path(), "server", Manner::default()).await;
    let config = Config::default().cluster("big", origin.port, &upstream(&mesh(), ""), "");
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    let mut client = crate::harness::client::Client::connect(proxy.port("big")).await.expect("connected");
    let body = vec![b'a'; 5_000_000];
    let head = format!("POST /up HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = client.exchange(&[head.as_bytes(), &body].concat()).await.expect("an answer");
    assert_eq!(answer.text(), "origin 5000000");
    let answer = client.exchange(b"GET /big HTTP/1.1\r\nhost: t\r\n\r\n").await.expect("an answer");
    assert!(
        answer.complete && answer.body.len() == 3_000_000 && answer.body.iter().all(|byte| *byte == b'b')
    );
}

#[tokio::test]
async fn the_metadata_of_an_endpoint_chooses_its_socket() {
    let certs = Certs::new();
    let origin = TlsOrigin::start(certs.path(), "server", Manner::default()).await;
    let socket = format!(
        "transport_socket_matches: [{{name: mesh, match: {{tlsMode: istio}}, {}}}, {{name: plain, match: {{}}, \
         transport_socket: {{name: envoy.transport_sockets.raw_buffer}}}}]",
        upstream(&mesh(), "")
    );
    let config = Config::default().cluster("mesh", origin.port, &socket, "").cluster(
        "plain",
        origin.port,
        &socket,
        "",
    );
    let template = config.template();
    let address = format!("{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}", origin.port);
    let metadata = "metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}";
    let template = template.replacen(&address, &format!("{address}, {metadata}"), 1);
    assert!(template.contains("tlsMode: istio}}}"), "{template}");
    let proxy = Proxy::outrigger(&template, &config.values(certs.path())).await;
    assert_eq!(get(proxy.port("mesh"), "/").await.expect("an answer").text(), "origin 0");
    assert_ne!(get(proxy.port("plain"), "/").await.expect("an answer").status(), 200);
    assert_eq!(proxy.stats().await["cluster.mesh.ssl.handshake"], 1);
}

/// Objects of the filter state say which name is asked for, and which the certificate must have.
#[tokio::test]
async fn objects_say_what_is_asked_for() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let certs = Certs::new();
    let origin = TlsOrigin::start(certs.path(), "server", Manner::default()).await;
    let known = mesh();
    let mut config = Config::default().cluster("known", origin.port, &upstream(&known, ""), "");
    let (server, sans) = ("envoy.network.upstream_server_name", "envoy.network.upstream_subject_alt_names");
    let cases = [
        ("right", [(server, "server.mesh.test"), (sans, "other.test,server.mesh.test")], true),
        ("wrong", [(server, "server.mesh.test"), (sans, "other.test")], false),
    ];
    for (name, objects, _) in cases {
        let value = |(key, text): (&str, &str)| {
            format!(
                r#"{{object_key: {key}, format_string: {{text_format_source: {{inline_string: "{text}"}}}}}}"#
            )
        };
        let filter = format!(
            r#"{{name: set, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config, on_new_connection: [{}]}}}}"#,
            objects.map(value).join(", ")
        );
        config = config.listener(name, "[]", &format!("[{{filters: [{filter}, {}]}}]", tcp("known")));
    }
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let proxy = Proxy::start(Plan::new(kind, &config.template(), &config.values(certs.path()))).await;
        for (name, _, good) in cases {
            let answer = get(proxy.port(name), "/").await;
            assert_eq!(answer.is_ok(), good, "{kind:?} {name}: {answer:?}");
        }
    }
}
