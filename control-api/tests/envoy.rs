//! The real Envoy as a client of the server: it boots over ADS, delta and state of the world, serves a
//! request, and follows a change of endpoints. `OUTRIGGER_ENVOY` names its binary.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use outrigger_control_api::load_resource;
use outrigger_control_api::server::{Event, Server, Snapshot, SnapshotCache};
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(30);

/// Answers every connection with its name.
async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let length = name.len();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.write_all((head + name).as_bytes()).await;
        }
    });
    address
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn resources(listener: SocketAddr, cluster: &str, backend: SocketAddr) -> Snapshot {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager = "type.googleapis.com/envoy.extensions.filters.network.\
                   http_connection_manager.v3.HttpConnectionManager";
    let all = [
        json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": cluster, "type": "EDS", "connect_timeout": "5s",
            "eds_cluster_config": {"eds_config": ads}
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": cluster,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(backend)}}]}]
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "in", "address": socket(listener),
            "filter_chains": [{"filters": [{
                "name": "http",
                "typed_config": {
                    "@type": manager, "stat_prefix": "in",
                    "rds": {"route_config_name": "r", "config_source": ads},
                    "http_filters": [{"name": "router", "typed_config": {"@type": router}}]
                }
            }]}]
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "r",
            "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]
            }]
        }),
    ];
    let mut snapshot = Snapshot::new();
    for resource in &all {
        snapshot.insert_any(load_resource(resource).unwrap().any).unwrap();
    }
    snapshot.validate().unwrap();
    snapshot
}

fn bootstrap(server: SocketAddr, api_type: &str) -> String {
    let http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let source = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": "envoy", "cluster": "test"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type, "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]
            },
            "cds_config": source, "lds_config": source
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "5s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": http2, "explicit_http_config": {"http2_protocol_options": {}}
                }
            },
            "load_assignment": {
                "cluster_name": "xds",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(server)}}]}]
            }
        }]}
    })
    .to_string()
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Asks until the answer ends with `want`; from the first good answer on, every answer must be good.
async fn until_answered(address: SocketAddr, want: &str, good: &mut bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let asking = async {
        loop {
            tick.tick().await;
            let answer = ask(address).await.unwrap_or_default();
            let ok = answer.starts_with("HTTP/1.1 200");
            assert!(ok || !*good, "a request failed during a change: {answer:?}");
            *good |= ok;
            if answer.ends_with(want) {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap_or_else(|_| panic!("{want:?} never answered"));
}

async fn boots_and_follows(envoy: &std::ffi::OsStr, api_type: &str) {
    let (one, two) = (backend("one").await, backend("two").await);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cache = SnapshotCache::by_node_cluster();
    cache.set("test", resources(free, "a", one));
    let server = Server::new(cache.clone()).on_event(|_, event| {
        if let Event::Nack { kind, nack } = event {
            eprintln!("refused: {kind} {}", nack.message);
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = bootstrap(listener.local_addr().unwrap(), api_type);
    tokio::spawn(async move { server.serve(listener).await });
    let mut child = tokio::process::Command::new(envoy)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warning", "--config-yaml", &config])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("Envoy starts");
    let mut good = false;
    until_answered(free, "one", &mut good).await;
    // Other endpoints, then another cluster in the place of the first.
    cache.set("test", resources(free, "a", two));
    until_answered(free, "two", &mut good).await;
    cache.set("test", resources(free, "b", one));
    until_answered(free, "one", &mut good).await;
    let streams = cache.streams();
    assert_eq!((streams.len(), streams[0].node_id.as_str()), (1, "envoy"));
    assert!(streams[0].types.iter().all(|t| t.nacks == 0), "{streams:?}");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn envoy_is_served() {
    let Some(envoy) = std::env::var_os("OUTRIGGER_ENVOY") else {
        eprintln!("skipped: OUTRIGGER_ENVOY does not name an Envoy binary");
        return;
    };
    for api_type in ["DELTA_GRPC", "GRPC"] {
        boots_and_follows(&envoy, api_type).await;
    }
}
