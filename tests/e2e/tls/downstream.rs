//! TLS towards clients: who gets in, what is counted and logged, beside Envoy with the same configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certs::Certs;
use super::config::{downstream, field, http, mesh, spiffe, trust_domain, Config, CA, INSPECT, OK};
use super::{curl, next_line, with_cert};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

fn config() -> Config {
    let details =
        "set_current_client_cert_details: {subject: true, cert: true, chain: true, dns: true, uri: true},";
    let mode = |mode: &str| format!("forward_client_cert_details: {mode}, {details}");
    let alpn = "alpn_protocols: [h2, http/1.1],";
    let any = format!("validation_context: {{{CA}}}");
    let required = "require_client_certificate: true,";
    let permissive = format!(
        "[{{filter_chain_match: {{transport_protocol: tls}}, filters: [{filter}], {tls}}}, \
         {{filter_chain_match: {{transport_protocol: raw_buffer}}, filters: [{filter}]}}]",
        filter = http("permissive", "", OK),
        tls = downstream(&any, ""),
    );
    let slow = format!(
        "[{{transport_socket_connect_timeout: 0.3s, filters: [{}], {}}}]",
        http("slow", "", OK),
        downstream("", "")
    );
    let both = [trust_domain("mesh.test", "ca.pem"), trust_domain("evil.test", "other.pem")].join(", ");
    let both = format!("trust_domains: [{both}]");
    Config::default()
        .ends("strict", &mode("SANITIZE_SET"), &format!("{alpn} {}", mesh()), required)
        .ends("named", &mode("SANITIZE"), &mesh(), "")
        .ends("optional", &mode("APPEND_FORWARD"), &any, "")
        .ends("forward", &mode("FORWARD_ONLY"), &any, "")
        .ends("always", &mode("ALWAYS_FORWARD_ONLY"), "", "")
        .ends("nobody", &mode("FORWARD_ONLY"), "", required)
        .ends(
            "crl",
            "",
            &format!("validation_context: {{{CA}, crl: {{filename: \"@certs@/crl.pem\"}}}}"),
            required,
        )
        .ends(
            "untrusted",
            &mode("SANITIZE_SET"),
            &format!("validation_context: {{{CA}, trust_chain_verification: ACCEPT_UNTRUSTED}}"),
            required,
        )
        .ends("old", "", "tls_params: {tls_maximum_protocol_version: TLSv1_2, cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384]},", "")
        .ends("spiffe", &mode("SANITIZE_SET"), &spiffe(&both, ""), "")
        .ends("bundles", "", &spiffe("trust_bundles: {filename: \"@certs@/bundles.json\"}", ""), "")
        .ends("workload", "", &spiffe(&format!("trust_domains: [{}]", trust_domain("mesh.test", "ca.pem")), SOMEBODY), "")
        .listener("permissive", INSPECT, &permissive)
        .listener("slow", "[]", &slow)
}

/// A workload, and a name of another kind that SPIFFE does not look at.
const SOMEBODY: &str =
    "match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: server.mesh.test}}, \
    {san_type: URI, matcher: {exact: \"spiffe://mesh.test/client\"}}],";

/// One client: a listener, a certificate, and more arguments of curl.
const CLIENTS: &[(&str, &str, &str, &[&str])] = &[
    ("strict", "client", "https", &[]),
    ("strict", "client", "https", &["--http1.1"]),
    ("strict", "client", "https", &["--tls-max", "1.2"]),
    ("strict", "wrong", "https", &[]),
    ("strict", "expired", "https", &[]),
    ("strict", "future", "https", &[]),
    ("strict", "self", "https", &[]),
    ("strict", "stranger", "https", &[]),
    ("strict", "", "https", &[]),
    ("strict", "", "https", &["--tls-max", "1.2"]),
    ("named", "", "https", &[]),
    ("optional", "", "https", &["-H", "x-forwarded-client-cert: By=a"]),
    ("optional", "client", "https", &["-H", "x-forwarded-client-cert: By=a"]),
    ("optional", "stranger", "https", &[]),
    ("forward", "client", "https", &["-H", "x-forwarded-client-cert: By=a"]),
    ("forward", "", "https", &["-H", "x-forwarded-client-cert: By=a"]),
    ("always", "", "https", &["-H", "x-forwarded-client-cert: By=a"]),
    ("nobody", "", "https", &[]),
    ("nobody", "client", "https", &[]),
    ("crl", "client", "https", &[]),
    ("crl", "revoked", "https", &[]),
    ("untrusted", "self", "https", &[]),
    ("untrusted", "", "https", &[]),
    ("old", "", "https", &[]),
    ("spiffe", "client", "https", &[]),
    ("spiffe", "client", "https", &["--tls-max", "1.2"]),
    ("spiffe", "wrong", "https", &[]),
    ("spiffe", "stranger", "https", &[]),
    ("spiffe", "expired", "https", &[]),
    ("spiffe", "self", "https", &[]),
    ("spiffe", "signer", "https", &[]),
    ("spiffe", "useless", "https", &[]),
    ("spiffe", "", "https", &[]),
    ("bundles", "client", "https", &[]),
    ("bundles", "stranger", "https", &[]),
    ("workload", "client", "https", &[]),
    ("workload", "server", "https", &[]),
    ("workload", "wrong", "https", &[]),
    ("permissive", "", "https", &[]),
    ("permissive", "client", "https", &[]),
    ("permissive", "", "http", &[]),
];

/// What is seen of one client.
#[derive(Debug, PartialEq)]
struct Seen {
    ok: bool,
    text: String,
    log: String,
    counted: BTreeMap<String, u64>,
}

/// What is counted of TLS on a listener, but for what the sides agree on by taste.
async fn counted(proxy: &Proxy, listener: &str) -> BTreeMap<String, u64> {
    let start = format!("listener.{listener}.ssl.");
    let own = |name: &str| !["ciphers.", "certificate."].iter().any(|part| name.starts_with(part));
    let stats = proxy.stats().await.into_iter().filter_map(|(name, value)| {
        let name = name.strip_prefix(&start)?;
        (value > 0 && own(name)).then(|| (name.to_owned(), value))
    });
    stats.collect()
}

async fn see(certs: &Certs, kind: Kind) -> Vec<Seen> {
    let config = config();
    let proxy = Proxy::start(Plan::new(kind, &config.template(), &config.values(certs.path()))).await;
    let mut all = Vec::new();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for (listener, certificate, scheme, more) in CLIENTS {
        let own = if certificate.is_empty() { Vec::new() } else { with_cert(certs.path(), certificate) };
        let arguments: Vec<&str> = own.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let told = curl(certs.path(), scheme, proxy.port(listener), &arguments).await;
        // A client that was refused after it thought itself done prints nothing but its own status.
        let log = if told.ok {
            let line = lines.entry((*listener).to_owned()).or_default();
            *line += 1;
            next_line(&proxy.file(&format!("{listener}.log")), *line - 1).await
        } else {
            failure(&proxy, listener, &mut lines).await
        };
        let counted = counted(&proxy, listener).await;
        all.push(Seen { ok: told.ok, text: if told.ok { told.text } else { String::new() }, log, counted });
    }
    all
}

/// The next failed handshake in the listener's log: Envoy logs others there as well.
async fn failure(proxy: &Proxy, listener: &str, lines: &mut BTreeMap<String, usize>) -> String {
    let file = proxy.file(&format!("{listener}-listener.log"));
    loop {
        let known = lines.entry(format!("{listener}-listener")).or_default();
        let line = next_line(&file, *known).await;
        *known += 1;
        let failure = field(&line, "downstream_failure");
        if failure != "-" {
            return failure.to_owned();
        }
    }
}

#[tokio::test]
async fn clients_fare_as_with_envoy() {
    if !peers::have(&["envoy", "curl"]) {
        return;
    }
    let certs = Certs::new();
    let (ours, theirs) = tokio::join!(see(&certs, Kind::Outrigger), see(&certs, Kind::Envoy));
    for ((client, ours), theirs) in CLIENTS.iter().zip(ours).zip(theirs) {
        assert_eq!(ours, theirs, "{client:?}: left is ours, right Envoy's");
    }
}

#[tokio::test]
async fn a_client_that_goes_or_dawdles_in_the_handshake_is_let_go() {
    let certs = Certs::new();
    let config = config();
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    let mut dawdler = TcpStream::connect(("127.0.0.1", proxy.port("slow"))).await.expect("connected");
    // The first bytes of a ClientHello.
    dawdler.write_all(&[0x16, 3, 1, 1, 0]).await.expect("sent");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, dawdler.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "it is not closed");
    let counter = "listener.slow.downstream_cx_transport_socket_connect_timeout";
    let counted = eventually(DEADLINE, || async { proxy.stats().await[counter] == 1 }).await;
    assert!(counted, "{:?}", proxy.stats().await.get(counter));
    let mut leaver = TcpStream::connect(("127.0.0.1", proxy.port("strict"))).await.expect("connected");
    leaver.write_all(&[0x16, 3, 1, 1, 0]).await.expect("sent");
    drop(leaver);
    let gone = eventually(DEADLINE, || async {
        let stats = proxy.stats().await;
        stats["listener.strict.downstream_pre_cx_active"] == 0
            && stats["listener.strict.downstream_listener_filter_remote_close"] == 1
    })
    .await;
    assert!(gone);
    // It was not a connection yet, as in Envoy.
    assert_eq!(proxy.stats().await["listener.strict.downstream_cx_total"], 0);
    assert_eq!(proxy.stats().await["listener.slow.downstream_cx_active"], 0);
}

#[tokio::test]
async fn openssl_resumes_its_session() {
    if !peers::have(&["openssl"]) {
        return;
    }
    let certs = Certs::new();
    let config = config();
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let session = certs.file("session");
        for step in ["-sess_out", "-sess_in"] {
            let mut openssl = tokio::process::Command::new(peers::find("openssl").expect("openssl"));
            openssl
                .args([
                    "s_client",
                    "-quiet",
                    "-ign_eof",
                    version,
                    "-servername",
                    "server.mesh.test",
                    "-connect",
                ])
                .arg(format!("127.0.0.1:{}", proxy.port("always")))
                .arg(step)
                .arg(&session)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .kill_on_drop(true);
            let mut child = openssl.spawn().expect("openssl");
            let mut input = child.stdin.take().expect("a pipe");
            input.write_all(b"GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.expect("sent");
            let output = tokio::time::timeout(DEADLINE, child.wait_with_output())
                .await
                .expect("in time")
                .expect("openssl");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                text.contains("200 OK"),
                "{version} {step}: {text} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let stats = proxy.stats().await;
    assert_eq!((stats["listener.always.ssl.handshake"], stats["listener.always.ssl.session_reused"]), (4, 2));
}

#[tokio::test]
async fn nothing_secret_is_shown() {
    let certs = Certs::new();
    let key = std::fs::read_to_string(certs.file("server.key")).expect("the key");
    let certificate = std::fs::read_to_string(certs.file("server.pem")).expect("the certificate");
    let lines = |text: &str| text.lines().collect::<Vec<_>>().join("\\n");
    let socket = format!(
        r#"transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: {{inline_string: "{}"}}, private_key: {{inline_string: "{}"}}}}]}}}}}}"#,
        lines(&certificate),
        lines(&key),
    );
    let chain = format!("[{{filters: [{}], {socket}}}]", http("inline", "", OK));
    let config = Config::default().listener("inline", "[]", &chain);
    let proxy = Proxy::outrigger(&config.template(), &config.values(certs.path())).await;
    let told = curl(certs.path(), "https", proxy.port("inline"), &[]).await;
    assert_eq!((told.ok, told.text.as_str()), (true, "ok[200 1.1]"));
    let dump = proxy.admin("/config_dump").await;
    let secret = key.lines().nth(1).expect("a line");
    assert!(dump.contains("[redacted]") && !dump.contains(secret), "the dump shows the key");
    assert!(!proxy.output().contains(secret), "the log shows the key");
    // A key that fits nothing is refused without being quoted.
    let wrong = std::fs::read_to_string(certs.file("client.key")).expect("a key");
    let text = config.template().replace(&lines(&key), &lines(&wrong));
    let mut plan = Plan::new(Kind::Outrigger, &text, &[]);
    let values = config.values(certs.path());
    plan.values = &values;
    let mut refused = Proxy::spawn(&plan);
    let status = refused.exit(Duration::from_secs(20)).await.expect("it ends");
    let output = refused.output();
    assert!(!status.success() && output.contains("private_key: does not fit the certificate"), "{output}");
    assert!(!output.contains(wrong.lines().nth(1).expect("a line")), "the error shows the key");
}
