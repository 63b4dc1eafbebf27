//! Istio's standard metrics: two sidecars with mutual TLS between them, and what each says of who calls whom.

use std::collections::BTreeMap;

use serde_json::{json, Value};

use super::{exchange, structure, typed};
use crate::harness::client::{get, Client};
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::{eventually, DEADLINE};
use crate::tls::certs::{put, Certs};

const FILTERS: &str = "envoy.extensions.filters";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/books/sa/reviews";

fn stats(options: &Value) -> Value {
    structure("stats.PluginConfig", options.clone())
}

/// Peers that tell each other who they are, `side` being `downstream` or `upstream`.
fn peers(side: &str) -> Value {
    let headers = json!([{"istio_headers": {}}]);
    let names = ["discovery", "propagation"].map(|what| format!("{side}_{what}"));
    let config: BTreeMap<_, _> = names.into_iter().map(|name| (name, headers.clone())).collect();
    structure("io.istio.http.peer_metadata.Config", json!(config))
}

fn node(name: &str, namespace: &str, version: &str) -> Value {
    json!({"id": format!("sidecar~10.0.0.1~{name}-1.{namespace}~{namespace}.svc.cluster.local"), "cluster": name,
        "metadata": {"NAME": format!("{name}-1"), "NAMESPACE": namespace, "WORKLOAD_NAME": format!("{name}-{version}"),
            "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.30.0", "LABELS": {"app": name, "version": version,
                "service.istio.io/canonical-name": name, "service.istio.io/canonical-revision": version}}})
}

fn listener(name: &str, direction: &str, filters: &[Value], socket: Option<Value>) -> Value {
    let filters: Vec<_> =
        filters.iter().map(|config| json!({"name": "one", "typed_config": config})).collect();
    let mut chain = json!({"filters": filters});
    if let Some(socket) = socket {
        chain["transport_socket"] = json!({"name": "tls", "typed_config": socket});
    }
    let inspector = typed(&format!("{FILTERS}.listener.tls_inspector.v3.TlsInspector"), json!({}));
    json!({"name": name, "traffic_direction": direction, "filter_chains": [chain],
        "listener_filters": [{"name": "tls", "typed_config": inspector}],
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@port:{name}@")}}})
}

fn manager(filters: &[Value], routes: &[(&str, &str)]) -> Value {
    let router = typed(&format!("{FILTERS}.http.router.v3.Router"), json!({}));
    let filters: Vec<_> = filters
        .iter()
        .chain([&router])
        .map(|config| json!({"name": "one", "typed_config": config}))
        .collect();
    let routes: Vec<_> = routes
        .iter()
        .map(|(prefix, cluster)| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster}}))
        .collect();
    typed(
        &format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
        json!({"stat_prefix": "http", "http_filters": filters,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}}),
    )
}

fn tcp_proxy(cluster: &str) -> Value {
    typed(
        &format!("{FILTERS}.network.tcp_proxy.v3.TcpProxy"),
        json!({"stat_prefix": "tcp", "cluster": cluster}),
    )
}

/// A cluster of one endpoint, called `@port@` in the template.
fn cluster(name: &str, port: &str, service: Option<&str>, workload: Option<&str>) -> Value {
    let services = service.map(|service| {
        json!({"filter_metadata": {"istio": {"services": [
            {"host": format!("{service}.books.svc.cluster.local"), "name": service, "namespace": "books"}]}}})
    });
    let endpoint = workload.map(|workload| json!({"filter_metadata": {"istio": {"workload": workload}}}));
    json!({"name": name, "connect_timeout": "1s", "type": "STATIC", "metadata": services,
        "filters": [{"name": "exchange", "typed_config": exchange()}],
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"metadata": endpoint,
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@{port}@")}}}}]}]}})
}

fn tls(context: &str, name: &str) -> Value {
    let file = |what: &str| json!({"filename": format!("@certs@/{what}")});
    let protocols = match context {
        "DownstreamTlsContext" => json!(["istio-peer-exchange", "h2", "http/1.1"]),
        _ => json!(["istio-peer-exchange", "http/1.1"]),
    };
    let mut config = json!({"common_tls_context": {"alpn_protocols": protocols,
        "tls_certificates": [{"certificate_chain": file(&format!("{name}.pem")), "private_key": file(&format!("{name}.key"))}],
        "validation_context": {"trusted_ca": file("ca.pem")}}});
    if context == "DownstreamTlsContext" {
        config["require_client_certificate"] = true.into();
    }
    typed(&format!("envoy.extensions.transport_sockets.tls.v3.{context}"), config)
}

fn bootstrap(node: &Value, listeners: &[Value], clusters: &[Value]) -> String {
    json!({"node": node, "static_resources": {"listeners": listeners, "clusters": clusters},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}}})
    .to_string()
}

type Labels = BTreeMap<String, String>;

/// The series of `metric` that the proxy shows to Prometheus, each with its value.
async fn series(proxy: &Proxy, metric: &str) -> Vec<(Labels, f64)> {
    let page = proxy.admin("/stats/prometheus").await;
    let each = |line: &str| {
        let (labels, value) = line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} ")?;
        let label = |part: &str| {
            let (name, value) = part.split_once("=\"")?;
            Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
        };
        Some((labels.split("\",").filter_map(label).collect(), value.parse().ok()?))
    };
    page.lines().filter_map(each).collect()
}

/// The labels of the only series of `metric` with this label, which comes to have this value: a request is counted
/// after its answer was sent.
async fn one(proxy: &Proxy, metric: &str, (name, text): (&str, &str), value: f64) -> Labels {
    let found = std::cell::RefCell::new(Vec::new());
    let counted = || async {
        let mut all = series(proxy, metric).await;
        all.retain(|(labels, _)| labels.get(name).is_some_and(|own| own == text));
        found.replace(all);
        matches!(found.borrow().as_slice(), [(_, counted)] if *counted == value)
    };
    assert!(eventually(DEADLINE / 4, counted).await, "{metric} with {name} {text:?}: {:?}", found.borrow());
    let (labels, _) = found.into_inner().remove(0);
    labels
}

fn assert_labels(metric: &str, labels: &Labels, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(labels.get(*name).map(String::as_str), Some(*value), "{name} of {metric}: {labels:?}");
    }
}

struct Mesh {
    client: Proxy,
    server: Proxy,
    origin: Origin,
    _echo: TcpOrigin,
    certs: Certs,
}

impl Mesh {
    /// Two sidecars. `options` are those of the caller's filter.
    async fn start(options: &Value) -> Mesh {
        let (origin, echo) = (Origin::start().await, TcpOrigin::start().await);
        let certs = Certs::new();
        for (name, identity) in [("web", CLIENT), ("reviews", SERVER)] {
            put(certs.path(), name, &certs.ca.issue_for(identity, &["reviews.test"], (60, 3600)));
        }
        let directory = ("certs", certs.path().display().to_string());
        let grpc = typed(
            &format!("{FILTERS}.http.grpc_stats.v3.FilterConfig"),
            json!({"emit_filter_state": true, "stats_for_all_methods": false}),
        );
        let inbound = manager(
            &[peers("downstream"), grpc.clone(), stats(&json!({"disable_host_header_fallback": true}))],
            &[("/", "inbound|9080||")],
        );
        let server = bootstrap(
            &node("reviews", "books", "v3"),
            &[
                listener("inbound", "INBOUND", &[inbound], Some(tls("DownstreamTlsContext", "reviews"))),
                listener(
                    "tcp",
                    "INBOUND",
                    &[exchange(), stats(&json!({})), tcp_proxy("inbound|9000||")],
                    Some(tls("DownstreamTlsContext", "reviews")),
                ),
            ],
            &[
                cluster("inbound|9080||", "origin", Some("reviews"), None),
                cluster("inbound|9000||", "echo", None, None),
            ],
        );
        let values =
            [("origin", origin.port().to_string()), ("echo", echo.port.to_string()), directory.clone()];
        let server = Proxy::start(Plan::new(Kind::Outrigger, &server, &values)).await;
        let outbound = manager(
            &[peers("upstream"), grpc, stats(options)],
            &[("/dead", "dead"), ("/pass", "PassthroughCluster"), ("/", "outbound|9080||reviews")],
        );
        let secure = |mut cluster: Value| {
            let socket = tls("UpstreamTlsContext", "web");
            cluster["transport_socket"] = json!({"name": "tls", "typed_config": socket});
            cluster
        };
        let client = bootstrap(
            &node("web", "shop", "v1"),
            &[
                listener("outbound", "OUTBOUND", &[outbound], None),
                listener(
                    "tcp",
                    "OUTBOUND",
                    &[stats(&json!({"tcp_reporting_duration": "0.1s"})), tcp_proxy("outbound|9000||reviews")],
                    None,
                ),
            ],
            &[
                secure(cluster(
                    "outbound|9080||reviews",
                    "inbound",
                    Some("reviews"),
                    Some("other;other;other;v9;other"),
                )),
                secure(cluster(
                    "outbound|9000||reviews",
                    "tcp",
                    Some("reviews"),
                    Some("reviews-v3;books;reviews;v3;Kubernetes"),
                )),
                cluster("dead", "dead", Some("details"), Some("details-v1;books;details;v1;east")),
                cluster("PassthroughCluster", "origin", None, None),
            ],
        );
        let dead = crate::harness::ports::free_port();
        let values = [
            ("inbound", server.port("inbound").to_string()),
            ("tcp", server.port("tcp").to_string()),
            ("origin", origin.port().to_string()),
            ("dead", dead.to_string()),
            directory,
        ];
        let client = Proxy::start(Plan::new(Kind::Outrigger, &client, &values)).await;
        Mesh { client, server, origin, _echo: echo, certs }
    }
}

/// What both sides of a call say of it, label by label.
#[tokio::test]
async fn requests_are_counted_by_who_calls_whom() {
    let mesh = Mesh::start(&json!({"disable_host_header_fallback": true})).await;
    mesh.origin.answer(|_| Answer::ok("hello"));
    for _ in 0..3 {
        let answer = get(mesh.client.port("outbound"), "/").await.expect("an answer");
        assert_eq!(answer.text(), "hello");
        assert_eq!(answer.header("x-envoy-peer-metadata"), None, "the client is no sidecar");
    }
    let both = [
        ("source_workload", "web-v1"),
        ("source_canonical_service", "web"),
        ("source_canonical_revision", "v1"),
        ("source_workload_namespace", "shop"),
        ("source_principal", CLIENT),
        ("source_app", "web"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", "reviews-v3"),
        ("destination_workload_namespace", "books"),
        ("destination_principal", SERVER),
        ("destination_app", "reviews"),
        ("destination_version", "v3"),
        ("destination_service", "reviews.books.svc.cluster.local"),
        ("destination_canonical_service", "reviews"),
        ("destination_canonical_revision", "v3"),
        ("destination_service_name", "reviews"),
        ("destination_service_namespace", "books"),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
    ];
    for (proxy, reporter, policy) in
        [(&mesh.client, "source", "unknown"), (&mesh.server, "destination", "mutual_tls")]
    {
        let labels = one(proxy, "istio_requests_total", ("reporter", reporter), 3.0).await;
        assert_labels(reporter, &labels, &both);
        assert_labels(reporter, &labels, &[("connection_security_policy", policy)]);
        assert_eq!(labels.len(), both.len() + 2, "{labels:?}");
        for metric in ["request_duration_milliseconds", "request_bytes", "response_bytes"] {
            let name = format!("istio_{metric}_count");
            assert_eq!(one(proxy, &name, ("reporter", reporter), 3.0).await, labels, "{name}");
        }
        let sums = series(proxy, "istio_response_bytes_sum").await;
        assert!(sums[0].1 > 3.0 * 5.0, "heads and bodies: {sums:?}");
        let labels = one(proxy, "istio_build", ("component", "proxy"), 1.0).await;
        assert_eq!(labels.get("tag").map(String::as_str), Some("1.30.0"));
        let page = proxy.admin("/stats/prometheus").await;
        assert!(page.contains("# TYPE istio_requests_total counter\n"), "its type is told");
        let page = proxy.admin("/stats?filter=istio_requests_total").await;
        let name = format!("istiocustom.istio_requests_total.reporter.{reporter}.source_workload.web-v1.");
        assert!(page.starts_with(&name) && page.trim_end().ends_with(": 3"), "{page}");
    }
}

/// Nobody answers, or nobody tells who it is: what is known of the endpoint and of the cluster stands for it.
#[tokio::test]
async fn what_peers_do_not_tell_is_known_of_their_endpoints() {
    let mesh = Mesh::start(&json!({})).await;
    mesh.origin.answer(|_| Answer::status(404, "Not Found", ""));
    assert_eq!(get(mesh.client.port("outbound"), "/dead").await.expect("an answer").status(), 503);
    let mut outside = Client::connect(mesh.client.port("outbound")).await.expect("connected");
    let request = b"GET /pass HTTP/1.1\r\nhost: outside.example\r\n\r\n";
    assert_eq!(outside.exchange(request).await.expect("an answer").status(), 404);
    let labels = one(&mesh.client, "istio_requests_total", ("response_code", "503"), 1.0).await;
    let expected = [
        ("destination_workload", "details-v1"),
        ("destination_workload_namespace", "books"),
        ("destination_principal", "unknown"),
        ("destination_app", "unknown"),
        ("destination_version", "unknown"),
        ("destination_canonical_service", "details"),
        ("destination_canonical_revision", "v1"),
        ("destination_service", "details.books.svc.cluster.local"),
        ("destination_cluster", "east"),
        ("source_principal", "unknown"),
        ("response_flags", "UF"),
    ];
    assert_labels("dead", &labels, &expected);
    let labels = one(&mesh.client, "istio_requests_total", ("response_code", "404"), 1.0).await;
    let expected = [
        ("destination_service_name", "PassthroughCluster"),
        ("destination_service", "outside.example"),
        ("destination_workload", "unknown"),
        ("destination_canonical_revision", "latest"),
        ("destination_service_namespace", "unknown"),
    ];
    assert_labels("pass", &labels, &expected);
}

/// Calls of gRPC by their status, their messages by peers alone.
#[tokio::test]
async fn calls_are_counted_with_their_status_and_their_messages() {
    let mesh = Mesh::start(&json!({})).await;
    mesh.origin.answer(|_| {
        Answer::raw("HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ncontent-length: 14\r\n\r\n\0\0\0\0\x02ab\0\0\0\0\x02cd")
    });
    let mut client = Client::connect(mesh.client.port("outbound")).await.expect("connected");
    let head = "POST /books.Reviews/Get HTTP/1.1\r\nhost: t.test\r\ncontent-type: application/grpc\r\ncontent-length: 7\r\n\r\n";
    let answer = client.exchange(&[head.as_bytes(), b"\0\0\0\0\x02ab"].concat()).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    for (proxy, reporter) in [(&mesh.client, "source"), (&mesh.server, "destination")] {
        let labels = one(proxy, "istio_requests_total", ("reporter", reporter), 1.0).await;
        assert_labels(reporter, &labels, &[("request_protocol", "grpc"), ("grpc_response_status", "5")]);
        for (metric, messages) in [("request", 1.0), ("response", 2.0)] {
            let name = format!("istio_{metric}_messages_total");
            let labels = one(proxy, &name, ("reporter", reporter), messages).await;
            assert_labels(&name, &labels, &[("source_workload", "web-v1"), ("destination_app", "reviews")]);
            assert_eq!(labels.get("response_code"), None, "they are counted while a call lasts");
        }
    }
}

/// Connections are counted when they are first looked at and when they end, their bytes meanwhile too.
#[tokio::test]
async fn connections_are_counted_while_they_last() {
    let mesh = Mesh::start(&json!({})).await;
    let mut client = Client::connect(mesh.client.port("tcp")).await.expect("connected");
    client.send(b"hello\n").await.expect("sent");
    let proxy = &mesh.client;
    one(proxy, "istio_tcp_received_bytes_total", ("reporter", "source"), 6.0).await;
    let labels = one(proxy, "istio_tcp_connections_opened_total", ("reporter", "source"), 1.0).await;
    let expected = [
        ("source_workload", "web-v1"),
        ("source_principal", CLIENT),
        ("destination_principal", SERVER),
        ("destination_workload", "reviews-v3"),
        ("destination_service", "reviews.books.svc.cluster.local"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "unknown"),
    ];
    assert_labels("opened", &labels, &expected);
    assert_eq!((labels.get("response_code"), labels.get("grpc_response_status")), (None, None));
    one(proxy, "istio_tcp_connections_closed_total", ("reporter", "source"), 0.0).await;
    drop(client);
    for (proxy, reporter) in [(&mesh.client, "source"), (&mesh.server, "destination")] {
        one(proxy, "istio_tcp_connections_closed_total", ("reporter", reporter), 1.0).await;
        for metric in ["sent_bytes", "received_bytes"] {
            let name = format!("istio_tcp_{metric}_total");
            one(proxy, &name, ("reporter", reporter), 6.0).await;
        }
    }
    let labels =
        one(&mesh.server, "istio_tcp_connections_opened_total", ("reporter", "destination"), 1.0).await;
    // Peers of TCP do not tell who they are, but their certificates do.
    let expected = [
        ("source_workload", "unknown"),
        ("source_principal", CLIENT),
        ("source_workload_namespace", "shop"),
        ("connection_security_policy", "mutual_tls"),
    ];
    assert_labels("opened", &labels, &expected);
}

/// Metrics and labels as the Telemetry API has them changed.
#[tokio::test]
async fn metrics_and_labels_are_changed_by_options() {
    let options = json!({"metrics": [
        {"name": "requests_total", "dimensions": {"path": "request.url_path", "request_protocol": "request.method", "odd": "no.such.thing"}},
        {"tags_to_remove": ["source_principal"]},
        {"name": "request_bytes", "drop": true},
    ]});
    let mesh = Mesh::start(&options).await;
    mesh.origin.answer(|_| Answer::ok("hello"));
    for path in ["/one", "/two?x=1", "/two"] {
        get(mesh.client.port("outbound"), path).await.expect("an answer");
    }
    for (path, count) in [("/one", 1.0), ("/two", 2.0)] {
        let labels = one(&mesh.client, "istio_requests_total", ("path", path), count).await;
        assert_labels(path, &labels, &[("request_protocol", "GET"), ("odd", "unknown")]);
        assert_eq!(labels.get("source_principal"), None);
    }
    let labels = one(&mesh.client, "istio_response_bytes_count", ("reporter", "source"), 3.0).await;
    assert_eq!((labels.get("path"), labels.get("source_principal")), (None, None));
    assert!(series(&mesh.client, "istio_request_bytes_count").await.is_empty());
}

/// TCP metadata are not exchanged, so their protocol is agreed on with nobody, whoever offers it.
#[tokio::test]
async fn metadata_exchange_is_never_agreed_on() {
    let mesh = Mesh::start(&json!({})).await;
    for (offer, agreed) in [
        (&["istio-peer-exchange", "h2"][..], Some("h2")),
        (&["istio-peer-exchange"], None),
        (&["istio-peer-exchange", "http/1.1"], Some("http/1.1")),
    ] {
        let found = super::agreed(mesh.server.port("inbound"), &mesh.certs, offer).await;
        assert_eq!(found.as_deref(), agreed, "{offer:?}");
    }
}
