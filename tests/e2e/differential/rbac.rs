//! Role-based access control beside Envoy's: tables of requests and connections. Compared are the answers, what access
//! logs say, dynamic metadata included, and every statistic of the filters.

use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use crate::tls::certs::Certs;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

const LOG: &str = "case=%REQ(X-CASE)%\\tpolicy=%REQ(X-POLICY)%\\tcode=%RESPONSE_CODE%\\tdetails=%RESPONSE_CODE_DETAILS%\
     \\tflags=%RESPONSE_FLAGS%\\tend=%CONNECTION_TERMINATION_DETAILS%\\treceived=%BYTES_RECEIVED%\\tsent=%BYTES_SENT%\
     \\tcluster=%UPSTREAM_CLUSTER%\\turi=%DOWNSTREAM_PEER_URI_SAN%\\thttp=%DYNAMIC_METADATA(envoy.filters.http.rbac)%\
     \\tnetwork=%DYNAMIC_METADATA(envoy.filters.network.rbac)%\\tcommon=%DYNAMIC_METADATA(envoy.common)%\\n";

pub(super) fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.{kind}").into();
    config
}

fn log() -> Value {
    let file = typed(
        "extensions.access_loggers.file.v3.FileAccessLog",
        json!({"path": "@dir@/access.log",
            "log_format": {"text_format_source": {"inline_string": LOG.replace("\\t", "\t").replace("\\n", "\n")}}}),
    );
    json!([{"name": "file", "typed_config": file}])
}

pub(super) fn http_rbac(config: Value) -> Value {
    json!({"name": "envoy.filters.http.rbac", "typed_config": typed("extensions.filters.http.rbac.v3.RBAC", config)})
}

pub(super) fn per_route(config: Value) -> Value {
    json!({"envoy.filters.http.rbac": typed("extensions.filters.http.rbac.v3.RBACPerRoute", config)})
}

fn network_rbac(name: &str, mut config: Value) -> Value {
    config["stat_prefix"] = name.into();
    json!({"name": "rbac", "typed_config": typed("extensions.filters.network.rbac.v3.RBAC", config)})
}

fn tcp(name: &str) -> Value {
    let config = json!({"stat_prefix": name, "cluster": "origin", "access_log": log()});
    json!({"name": "tcp", "typed_config": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", config)})
}

/// A connection manager that answers by itself.
pub(super) fn http(name: &str, filters: &[Value], routes: &Value) -> Value {
    let router = json!({"name": "router", "typed_config": typed("extensions.filters.http.router.v3.Router", json!({}))});
    let filters: Vec<_> = filters.iter().cloned().chain([router]).collect();
    let config = json!({"stat_prefix": name, "access_log": log(), "http_filters": filters,
        "use_remote_address": true, "xff_num_trusted_hops": 1,
        "route_config": {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}});
    let kind = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({"name": "http", "typed_config": typed(kind, config)})
}

pub(super) fn ok(prefix: &str, options: &Value) -> Value {
    json!({"match": {"prefix": prefix}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
        "typed_per_filter_config": options})
}

pub(super) fn listener(name: &str, filters: &Value, tls: bool) -> Value {
    let mut chain = json!({"filters": filters});
    let mut inspectors = json!([]);
    if tls {
        let context = json!({"common_tls_context": {
            "tls_certificates": [{"certificate_chain": {"filename": "@certs@/server.pem"},
                "private_key": {"filename": "@certs@/server.key"}}],
            "validation_context": {"trusted_ca": {"filename": "@certs@/ca.pem"}}}});
        let kind = "extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        chain["transport_socket"] = json!({"name": "tls", "typed_config": typed(kind, context)});
        let inspector = typed("extensions.filters.listener.tls_inspector.v3.TlsInspector", json!({}));
        inspectors = json!([{"name": "tls", "typed_config": inspector}]);
    }
    json!({"name": name, "listener_filters": inspectors, "filter_chains": [chain],
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@port:{name}@")}}})
}

pub(super) fn template(listeners: &[Value]) -> String {
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}},
        "static_resources": {"listeners": listeners, "clusters": [{"name": "origin", "connect_timeout": "1s",
            "type": "STATIC", "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@origin@"}}}}]}]}}]}
    })
    .to_string()
}

pub(super) struct Side {
    pub(super) proxy: Proxy,
    _origin: TcpOrigin,
}

pub(super) async fn side(kind: Kind, template: &str, certs: &Path) -> Side {
    let origin = TcpOrigin::start().await;
    let values = [("origin", origin.port.to_string()), ("certs", certs.display().to_string())];
    Side { proxy: Proxy::start(Plan::new(kind, template, &values)).await, _origin: origin }
}

impl Side {
    /// The access log once it has this many lines, and no more for a while.
    pub(super) async fn lines(&self, count: usize) -> Vec<String> {
        let read = || self.proxy.lines("access.log", 0);
        eventually(DEADLINE, || std::future::ready(read().len() >= count)).await;
        read()
    }

    /// Every statistic of the filters.
    async fn counted(&self) -> BTreeMap<String, u64> {
        self.proxy.stats().await.into_iter().filter(|(name, _)| name.contains("rbac.")).collect()
    }
}

pub(super) trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// A connection: plain, or with TLS and maybe a certificate.
pub(super) async fn connect(port: u16, tls: Option<&str>, certs: &Certs) -> Box<dyn Both> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    stream.set_nodelay(true).expect("no delay");
    let Some(own) = tls else { return Box::new(stream) };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(certs.file("ca.pem")).expect("a CA") {
        roots.add(root.expect("PEM")).expect("a CA");
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match own {
        "" => config.with_no_client_auth(),
        own => {
            let chain =
                CertificateDer::pem_file_iter(certs.file(&format!("{own}.pem"))).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(certs.file(&format!("{own}.key"))).expect("a key");
            config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).expect("an identity")
        }
    };
    let name = "server.mesh.test".try_into().expect("a name");
    Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake"))
}

/// Sends requests one after the other; the bodies have to be short.
pub(super) async fn ask(stream: &mut Box<dyn Both>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let whole = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
        (body.len() >= length).then(|| format!("{} {body}", head.lines().next().unwrap_or_default()))
    };
    loop {
        if let Some(answer) = whole(&text) {
            return answer;
        }
        match tokio::time::timeout(DEADLINE, stream.read(&mut buffer)).await {
            Ok(Ok(count)) if count > 0 => text.extend_from_slice(&buffer[..count]),
            other => return format!("{other:?} after {}", String::from_utf8_lossy(&text)),
        }
    }
}

/// Where a client comes from: a listener, and the certificate it presents over TLS.
pub(super) type From = (&'static str, Option<&'static str>);

pub(super) const CLIENTS: &[From] =
    &[("plain", None), ("tls", Some("")), ("tls", Some("client")), ("tls", Some("wrong"))];

/// Requests: method, target, header lines.
pub(super) const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/", ""),
    ("GET", "/api/v1/items?x=/admin", ""),
    ("POST", "/api/v1/items", "content-length: 0\r\n"),
    ("GET", "/admin/", "x-user: alice\r\n"),
    ("GET", "/admin", "x-user: bob\r\nx-user: alice\r\n"),
    ("GET", "/static/a.png", "x-user:\r\n"),
    ("GET", "/API/v1", "x-user: alice,bob\r\n"),
    ("DELETE", "/api/v2/items/7", "x-count: 5\r\n"),
    ("GET", "/api/v1/items", "x-forwarded-for: 10.1.2.3\r\n"),
    ("GET", "/x", "x-forwarded-for: 192.168.7.7\r\nx-user: Alice\r\n"),
    ("GET", "/api", "x-forwarded-for: fd00::7\r\n"),
    ("OPTIONS", "/", "x-count: 12\r\nx-count: 3\r\n"),
];

pub(super) async fn same_counts(envoy: &Side, ours: &Side) {
    let (theirs, mine) = tokio::join!(envoy.counted(), ours.counted());
    assert!(theirs.len() >= 4, "{theirs:?}");
    let wrong: Vec<_> = (theirs.keys().chain(mine.keys()))
        .filter(|name| theirs.get(*name) != mine.get(*name))
        .map(|name| (name, theirs.get(name), mine.get(name)))
        .collect();
    assert!(wrong.is_empty(), "left is Envoy's\n{wrong:#?}");
}

/// Complains of the lines that differ.
fn same(theirs: &[String], mine: &[String]) {
    let wrong: Vec<_> = theirs.iter().zip(mine).filter(|(theirs, mine)| theirs != mine).take(20).collect();
    assert!(wrong.is_empty() && theirs.len() == mine.len(), "left is Envoy's\n{wrong:#?}");
}

fn prefix(path: &str) -> Value {
    json!({"permissions": [{"url_path": {"path": {"prefix": path}}}], "principals": [{"any": true}]})
}

fn anyone() -> Value {
    json!({"any one": {"permissions": [{"any": true}], "principals": [{"any": true}]}})
}

fn named(names: &[&str]) -> Value {
    let ids: Vec<_> =
        names.iter().map(|name| json!({"authenticated": {"principal_name": {"exact": name}}})).collect();
    json!({"named": {"permissions": [{"any": true}], "principals": [{"or_ids": {"ids": ids}}]}})
}

/// A match tree as meshes write it: identities first, then what is known of the network.
fn mesh_tree() -> Value {
    let input = |kind: &str| {
        let config = typed(&format!("extensions.matching.common_inputs.{kind}"), json!({}));
        json!({"name": "input", "typed_config": config})
    };
    let act = |name: &str, action: &str| {
        let config = typed("config.rbac.v3.Action", json!({"name": name, "action": action}));
        json!({"action": {"name": "act", "typed_config": config}})
    };
    let path = typed("type.matcher.v3.HttpRequestHeaderMatchInput", json!({"header_name": ":path"}));
    let single =
        |kind: &str, text: Value| json!({"single_predicate": {"input": input(kind), "value_match": text}});
    json!({
        "matcher_list": {"matchers": [
            {"predicate": single("ssl.v3.UriSanInput", json!({"exact": "spiffe://evil.test/client"})),
             "on_match": act("evil", "DENY")},
            {"predicate": {"and_matcher": {"predicate": [
                single("ssl.v3.UriSanInput", json!({"prefix": "spiffe://mesh.test/"})),
                {"not_matcher": single("network.v3.ServerNameInput", json!({"exact": "other"}))}]}},
             "on_match": {"matcher": {"matcher_tree": {"input": {"name": "path", "typed_config": path},
                "prefix_match_map": {"map": {"/api": act("api", "ALLOW"), "/api/v2": act("v2", "DENY"),
                    "/admin": {"matcher": {"matcher_tree": {"input": input("network.v3.SourceIPInput"),
                        "exact_match_map": {"map": {"10.9.9.9": act("far", "ALLOW")}}}}}}}}}}},
            {"predicate": single("network.v3.SourceIPInput", json!({"prefix": "10.1."})), "on_match": act("ten", "LOG")},
        ]},
        "on_no_match": {"matcher": {"matcher_tree": {"input": input("network.v3.DirectSourceIPInput"),
            "exact_match_map": {"map": {"127.0.0.1": {"matcher": {"matcher_list": {"matchers": [
                {"predicate": single("ssl.v3.SubjectInput", json!({"contains": "Mesh"})), "on_match": act("ours", "ALLOW")}]}}}}}}}}
    })
}

/// Requests by their rules: a table for the filter, its routes and a match tree.
#[tokio::test]
async fn rbac_of_requests() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let routes = json!([
        ok("/off", &per_route(json!({}))),
        ok(
            "/other",
            &per_route(json!({"rbac": {"rules": {"policies": {"o": prefix("/other/good")}},
            "rules_stat_prefix": "route", "track_per_rule_stats": true}}))
        ),
        ok("/", &json!({}))
    ]);
    let table = [
        http_rbac(
            json!({"rules": {"action": "DENY", "policies": {"no way": prefix("/no"), "b": prefix("/no/b")}},
            "rules_stat_prefix": "own", "track_per_rule_stats": true,
            "shadow_rules": {"policies": {"s": prefix("/s")}}, "shadow_rules_stat_prefix": "dry."}),
        ),
        {
            let mut second = http_rbac(json!({"rules": {"action": "LOG", "policies": {"l": prefix("/l")}}}));
            second["name"] = "second".into();
            second
        },
    ];
    let tree = [http_rbac(json!({"matcher": mesh_tree(), "shadow_rules": {"policies": {}},
        "shadow_rules_stat_prefix": "tree", "track_per_rule_stats": true}))];
    let value = |text: &str| json!({"filter": "who", "path": [{"key": "user"}], "value": {"string_match": {"exact": text}}});
    let meta = [
        json!({"name": "metadata", "typed_config": typed("extensions.filters.http.header_to_metadata.v3.Config",
            json!({"request_rules": [{"header": "x-user",
                "on_header_present": {"metadata_namespace": "who", "key": "user", "type": "STRING"}}]}))}),
        http_rbac(json!({"rules": {"policies": {
            "dynamic": {"permissions": [{"metadata": value("alice")}], "principals": [{"any": true}]},
            "static": {"permissions": [{"any": true}], "principals": [
                {"sourced_metadata": {"metadata_matcher": value("route"), "metadata_source": "ROUTE"}}]}}}})),
    ];
    let mut marked = ok("/api", &json!({}));
    marked["metadata"] = json!({"filter_metadata": {"who": {"user": "route"}}});
    let listeners: Vec<_> = [("plain", false), ("tls", true)]
        .into_iter()
        .flat_map(|(name, tls)| {
            let trees = format!("{name}-tree");
            let metas = format!("{name}-meta");
            [
                listener(&metas, &json!([http(&metas, &meta, &json!([marked, ok("/", &json!({}))]))]), tls),
                listener(name, &json!([http(name, &table, &routes.clone())]), tls),
                listener(&trees, &json!([http(&trees, &tree, &json!([ok("/", &json!({}))]))]), tls),
            ]
        })
        .collect();
    let template = template(&listeners);
    let certs = Certs::new();
    let (envoy, ours) = tokio::join!(
        side(Kind::Envoy, &template, certs.path()),
        side(Kind::Outrigger, &template, certs.path())
    );
    let targets = ["/no", "/no/b", "/s", "/l", "/", "/off/no", "/other/good", "/other/no", "/noise?/s"];
    let run = |side| {
        let certs = &certs;
        async move {
            let side: &Side = side;
            let mut answers = Vec::new();
            for (listener, own) in CLIENTS {
                let mut stream = connect(side.proxy.port(listener), *own, certs).await;
                for target in targets {
                    let request = format!("GET {target} HTTP/1.1\r\nhost: t\r\nx-case: {listener}\r\n\r\n");
                    let answer = ask(&mut stream, &request).await;
                    answers.push(format!("{listener} {own:?} {target}: {answer}"));
                }
                for part in ["tree", "meta"] {
                    let listener = format!("{listener}-{part}");
                    let mut stream = connect(side.proxy.port(&listener), *own, certs).await;
                    for (method, target, headers) in REQUESTS {
                        let request = format!(
                            "{method} {target} HTTP/1.1\r\nhost: t\r\nx-case: {listener}\r\n{headers}\r\n"
                        );
                        let answer = ask(&mut stream, &request).await;
                        answers.push(format!("{listener} {own:?} {target} {headers:?}: {answer}"));
                    }
                }
            }
            answers
        }
    };
    let (theirs, mine) = tokio::join!(run(&envoy), run(&ours));
    same(&theirs, &mine);
    let denied = theirs.iter().filter(|line| line.ends_with("403 Forbidden RBAC: access denied")).count();
    assert!(denied > 10 && denied < theirs.len() - 10, "{theirs:#?}");
    let (theirs, mine) = tokio::join!(envoy.lines(theirs.len()), ours.lines(theirs.len()));
    same(&theirs, &mine);
    same_counts(&envoy, &ours).await;
}

/// What a TCP client does: its listener and certificate, what it sends, and whether it then ends its side.
const SESSIONS: &[(&str, Option<&str>, &[&str], bool)] = &[
    ("deny", None, &["echo\nhello"], false),
    ("deny", None, &[], true),
    // What the server sends first is passed on; the client's word decides.
    ("deny", None, &["source 5\n"], true),
    ("allow", None, &["echo\n", "hello"], true),
    ("often", None, &["echo\n", "a", "b"], true),
    ("late", None, &["echo\nhello"], false),
    ("two", None, &["echo\nhello"], true),
    ("echo", None, &["hello"], true),
    ("echo-deny", None, &["hello"], true),
    ("http", None, &["GET / HTTP/1.1\r\nhost: t\r\n\r\n"], false),
    ("http", None, &[], true),
    ("mtls", Some("client"), &["echo\nhello"], true),
    ("mtls", Some("wrong"), &["echo\nhello"], false),
    ("mtls", Some(""), &["echo\nhello"], false),
    ("mtls-tree", Some("client"), &["echo\nhello"], true),
    ("mtls-tree", Some("wrong"), &["echo\nhello"], false),
    ("mtls-http", Some("client"), &["GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"], false),
    ("mtls-http", Some("wrong"), &["GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"], false),
];

/// Connections by their rules.
#[tokio::test]
async fn rbac_of_connections() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let deny = json!({"action": "DENY", "policies": anyone()});
    let allow = json!({"policies": anyone()});
    let nobody = json!({"policies": {}});
    let echo =
        json!({"name": "echo", "typed_config": typed("extensions.filters.network.echo.v3.Echo", json!({}))});
    let tree = {
        let uri = typed("extensions.matching.common_inputs.ssl.v3.UriSanInput", json!({}));
        let act = typed("config.rbac.v3.Action", json!({"name": "mesh", "action": "ALLOW"}));
        json!({"matcher_tree": {"input": {"name": "uri", "typed_config": uri}, "prefix_match_map": {"map": {
            "spiffe://mesh.test/": {"action": {"name": "act", "typed_config": act}}}}}})
    };
    let mesh = json!({"policies": named(&["spiffe://mesh.test/client", "spiffe://mesh.test/other"])});
    let routes = || json!([ok("/", &json!({}))]);
    let listeners = [
        listener(
            "deny",
            &json!([
                network_rbac(
                    "deny",
                    json!({"rules": deny, "shadow_rules": allow,
            "shadow_rules_stat_prefix": "dry"})
                ),
                tcp("deny")
            ]),
            false,
        ),
        listener(
            "allow",
            &json!([network_rbac("allow.", json!({"rules": allow, "shadow_rules": nobody})), tcp("allow")]),
            false,
        ),
        listener(
            "often",
            &json!([
                network_rbac("often", json!({"rules": allow, "enforcement_type": "CONTINUOUS"})),
                tcp("often")
            ]),
            false,
        ),
        listener(
            "late",
            &json!([network_rbac("late", json!({"rules": nobody, "delay_deny": "0.3s"})), tcp("late")]),
            false,
        ),
        listener(
            "two",
            &json!([
                network_rbac("one", json!({"rules": allow})),
                network_rbac("two", json!({"rules": deny})),
                tcp("two")
            ]),
            false,
        ),
        listener("echo", &json!([network_rbac("echo", json!({"rules": allow})), echo]), false),
        listener("echo-deny", &json!([network_rbac("echo-deny", json!({"rules": deny})), echo]), false),
        listener(
            "http",
            &json!([network_rbac("http", json!({"rules": nobody})), http("http", &[], &routes())]),
            false,
        ),
        listener("mtls", &json!([network_rbac("mtls", json!({"rules": mesh})), tcp("mtls")]), true),
        listener(
            "mtls-tree",
            &json!([
                network_rbac("mtls-tree", json!({"matcher": tree, "shadow_matcher": tree})),
                tcp("mtls-tree")
            ]),
            true,
        ),
        listener(
            "mtls-http",
            &json!([network_rbac("mtls-http", json!({"rules": mesh})), http("mtls-http", &[], &routes())]),
            true,
        ),
    ];
    let template = template(&listeners);
    let certs = Certs::new();
    let (envoy, ours) = tokio::join!(
        side(Kind::Envoy, &template, certs.path()),
        side(Kind::Outrigger, &template, certs.path())
    );
    let (theirs, mine) = tokio::join!(sessions(&envoy, &certs), sessions(&ours, &certs));
    same(&theirs, &mine);
    same_counts(&envoy, &ours).await;
}

async fn sessions(side: &Side, certs: &Certs) -> Vec<String> {
    let mut seen = Vec::new();
    let mut lines = 0;
    for (listener, own, parts, finishes) in SESSIONS {
        let begin = std::time::Instant::now();
        let mut stream = connect(side.proxy.port(listener), *own, certs).await;
        let mut got = Vec::new();
        for part in *parts {
            let _ = stream.write_all(part.as_bytes()).await;
            // Each part is a read of its own: its answer comes before the next.
            if ["often", "echo"].contains(listener) && *part != "echo\n" {
                let _ = tokio::time::timeout(DEADLINE, stream.read_buf(&mut got)).await;
            } else if *listener == "often" {
                let name = "often.rbac.allowed";
                eventually(DEADLINE, || async { side.proxy.stats().await.get(name) == Some(&1) }).await;
            }
        }
        if *finishes {
            let _ = stream.shutdown().await;
        }
        let end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut got)).await;
        // With bytes on the way an end may be a reset.
        let end = if end.is_ok() { "over" } else { "open" };
        let late = *listener == "late" && begin.elapsed() >= Duration::from_millis(250);
        let body = String::from_utf8_lossy(&got);
        let body = body.split("\r\n\r\n").last().unwrap_or_default();
        seen.push(format!(
            "{listener} {own:?} {parts:?}: {body:?}, {end}{}",
            if late { ", late" } else { "" }
        ));
        // Echoes and refused HTTP connections are not logged.
        let refused = got.is_empty();
        if !(listener.starts_with("echo") || listener.ends_with("http") && refused) {
            lines += 1;
            let all = side.lines(lines).await;
            seen.push(all.get(lines - 1).cloned().unwrap_or_default());
        }
    }
    seen
}
