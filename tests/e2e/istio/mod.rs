//! What Istio's control plane asks of a sidecar beside Envoy's own extensions.

mod authn;
mod boot;
mod metrics;

use serde_json::{json, Value};

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::tls::certs::Certs;
use crate::tls::origin::{server_config, Manner, TlsOrigin};

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    config
}

/// A structure that stands for a message, as Istio sends those of its own.
#[allow(clippy::needless_pass_by_value)] // What `json!` makes.
fn structure(kind: &str, value: Value) -> Value {
    typed(
        "udpa.type.v1.TypedStruct",
        json!({"type_url": format!("type.googleapis.com/{kind}"), "value": value}),
    )
}

fn listener(name: &str, direction: &str, network: &[Value], filters: &[Value]) -> Value {
    let router = json!({"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({}))});
    let filters: Vec<_> =
        filters.iter().map(|config| json!({"name": "one", "typed_config": config})).chain([router]).collect();
    let manager = json!({"stat_prefix": name, "http_filters": filters, "route_config": {
        "virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin"}}]}]}});
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let network: Vec<_> = network.iter().cloned().chain([typed(kind, manager)]).collect();
    let network: Vec<_> =
        network.into_iter().map(|config| json!({"name": "one", "typed_config": config})).collect();
    json!({"name": name, "traffic_direction": direction, "filter_chains": [{"filters": network}],
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@port:{name}@")}}})
}

fn bootstrap(listeners: &[Value], cluster: Value) -> String {
    let mut origin = json!({"name": "origin", "connect_timeout": "1s", "type": "STATIC",
        "filters": [{"name": "exchange", "typed_config": exchange()}],
        "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": [{"endpoint": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": "@origin@"}}}}]}]}});
    if let (Some(fields), Value::Object(more)) = (origin.as_object_mut(), cluster) {
        fields.extend(more);
    }
    json!({
        "node": {"id": "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local", "cluster": "web.shop", "metadata": {
            "NAME": "web-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "web", "LABELS": {"app": "web"}}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}},
        "static_resources": {"listeners": listeners, "clusters": [origin]}
    })
    .to_string()
}

fn exchange() -> Value {
    structure(
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        json!({"protocol": "istio-peer-exchange"}),
    )
}

fn stats() -> Value {
    typed("stats.PluginConfig", json!({"disable_host_header_fallback": true}))
}

fn wasm(name: &str) -> Value {
    typed(
        "envoy.extensions.filters.http.wasm.v3.Wasm",
        json!({"config": {"vm_config": {
        "runtime": "envoy.wasm.runtime.null", "code": {"local": {"inline_string": name}}}}}),
    )
}

/// The protocol that a client with this offer agrees on with the server at `port`.
async fn agreed(port: u16, certs: &Certs, offer: &[&str]) -> Option<String> {
    let stream = connect(port, certs, ("web", "reviews.test"), offer).await;
    stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
}

/// The identity of the server at `port`.
async fn peer_of(port: u16, certs: &Certs) -> String {
    let stream = connect(port, certs, ("client", "web.test"), &[]).await;
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
    let names = parsed.subject_alternative_name().expect("readable").expect("names");
    let uri = names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uri.unwrap_or_default()
}

/// A TLS connection with the server called `name` at `port`, as the client whose certificate is `own`.
async fn connect(
    port: u16,
    certs: &Certs,
    (own, name): (&str, &'static str),
    offer: &[&str],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(certs.file("ca.pem")).expect("a file") {
        roots.add(root.expect("a certificate")).expect("added");
    }
    let chain = CertificateDer::pem_file_iter(certs.file(&format!("{own}.pem"))).expect("a file");
    let chain = chain.map(|one| one.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(certs.file(&format!("{own}.key"))).expect("a key");
    let config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key);
    let mut config = config.expect("a configuration");
    config.alpn_protocols = offer.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let name = name.try_into().expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
}

const HEADERS: [&str; 2] = ["x-envoy-peer-metadata-id", "x-envoy-peer-metadata"];

/// Peers over HTTP are told of each other, applications are not.
#[tokio::test]
async fn peers_introduce_themselves_and_applications_see_nothing_of_it() {
    let client_side = structure(
        "io.istio.http.peer_metadata.Config",
        json!({
        "upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
        "upstream_propagation": [{"istio_headers": {}}]}),
    );
    let server_side = structure(
        "io.istio.http.peer_metadata.Config",
        json!({
        "downstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
        "downstream_propagation": [{"istio_headers": {}}]}),
    );
    let old = wasm("envoy.wasm.metadata_exchange");
    let template = bootstrap(
        &[
            listener("outbound", "OUTBOUND", &[exchange(), stats()], &[client_side, stats()]),
            listener("inbound", "INBOUND", &[exchange()], &[server_side, stats(), wasm("envoy.wasm.stats")]),
            listener("old-outbound", "OUTBOUND", &[], std::slice::from_ref(&old)),
            listener("old-inbound", "INBOUND", &[], &[old]),
        ],
        json!({}),
    );
    let origin = Origin::start().await;
    let told = "x-envoy-peer-metadata-id: peer\r\nx-envoy-peer-metadata: cGVlcg==\r\n";
    let values = [("origin", origin.port().to_string())];
    let proxy = Proxy::start(Plan::new(Kind::Outrigger, &template, &values)).await;
    // The listener, whether the client introduces itself, and who sees who we are: the upstream, the client.
    for (listener, introduced, upstream, client) in [
        ("outbound", true, Some("sidecar~"), false),
        ("outbound", false, Some("sidecar~"), false),
        ("inbound", true, None, true),
        ("inbound", false, None, false),
        ("old-outbound", true, Some("sidecar~"), false),
        ("old-inbound", true, None, true),
        ("old-inbound", false, None, false),
    ] {
        let case = format!("{listener}, introduced: {introduced}");
        origin.answer(|_| {
            Answer::raw(
                "HTTP/1.1 200 OK\r\nx-envoy-peer-metadata-id: upstream\r\ncontent-length: 2\r\n\r\nok",
            )
        });
        let mut connection = Client::connect(proxy.port(listener)).await.expect("connected");
        let headers = if introduced { told } else { "" };
        let request = format!("GET / HTTP/1.1\r\nhost: t.test\r\n{headers}\r\n");
        let answer = connection.exchange(request.as_bytes()).await.expect("an answer");
        let seen = origin.take().pop().expect("the request");
        match upstream {
            Some(id) => {
                let told = seen.header(HEADERS[0]).unwrap_or_default();
                assert!(told.starts_with(id), "{case}: the upstream is told {told:?}");
                assert!(seen.header(HEADERS[1]).is_some_and(|told| told.len() > 20), "{case}");
            }
            None => assert!(HEADERS.iter().all(|name| seen.header(name).is_none()), "{case}: {seen:?}"),
        }
        let told = answer.header(HEADERS[0]).is_some_and(|id| id.starts_with("sidecar~"));
        assert_eq!(told, client, "{case}: {answer:?}");
        // What the upstream says of itself is for sidecars on our side of it.
        let kept = answer.header(HEADERS[0]).is_some_and(|id| id == "upstream");
        assert!(!kept || listener == "inbound", "{case}: {answer:?}");
    }
}

/// The upstream is offered what the filter says for its HTTP version, unless the cluster is excepted.
#[tokio::test]
async fn protocols_offered_follow_the_filter() {
    let certs = Certs::new();
    let mut server = server_config(certs.path(), "server", Manner::default());
    let names: [&[u8]; 3] = [b"istio-http/1.1", b"istio-peer-exchange", b"http/1.1"];
    server.alpn_protocols = names.map(<[u8]>::to_vec).into();
    let server = Arc::new(server);
    let origin = TlsOrigin::with(move |stream| {
        let acceptor = TlsAcceptor::from(server.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let agreed = stream.get_ref().1.alpn_protocol().unwrap_or(b"none").to_vec();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.is_ok_and(|count| count > 0) {
                    continue;
                }
                return;
            }
            let length = agreed.len();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.write_all(&[head.into_bytes(), agreed].concat()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let alpn = typed(
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        json!({"alpn_override": [{"upstream_protocol": "HTTP11", "alpn_override": ["istio-http/1.1", "istio", "http/1.1"]}]}),
    );
    let listeners = [listener("with", "OUTBOUND", &[], &[alpn]), listener("without", "OUTBOUND", &[], &[])];
    for (excepted, listener, agreed) in
        [(false, "with", "istio-http/1.1"), (false, "without", "http/1.1"), (true, "with", "http/1.1")]
    {
        let context = json!({"common_tls_context": {"alpn_protocols": ["istio-peer-exchange", "http/1.1"]}});
        let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let metadata = if excepted { json!({"alpn_override": "false"}) } else { json!({}) };
        let cluster = json!({"transport_socket": {"name": "tls", "typed_config": typed(kind, context)},
            "metadata": {"filter_metadata": {"istio": metadata}}});
        let values = [("origin", origin.port.to_string())];
        let template = bootstrap(&listeners, cluster);
        let proxy = Proxy::start(Plan::new(Kind::Outrigger, &template, &values)).await;
        let answer = crate::harness::client::get(proxy.port(listener), "/").await.expect("an answer");
        assert_eq!(answer.text(), agreed, "{listener}, excepted: {excepted}");
    }
}
