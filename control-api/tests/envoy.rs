//! The real Envoy as a client of the server: it boots over ADS, delta and state of the world, serves a
//! request, and follows a change of endpoints. `OUTRIGGER_ENVOY` names its binary.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test

use std::net::SocketAddr;

use outrigger_control_api::load_resource;
use outrigger_control_api::server::{Event, Server, Snapshot, SnapshotCache};
use serde_json::json;
use tokio::net::TcpListener;

mod harness;
use harness::{backend, bootstrap, envoy_binary, free_address, socket, start_envoy, until_answered};

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

async fn boots_and_follows(envoy: &std::ffi::OsStr, api_type: &str) {
    let (one, two) = (backend("one").await, backend("two").await);
    let free = free_address().await;
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
    let mut child = start_envoy(envoy, &config);
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
    let Some(envoy) = envoy_binary() else { return };
    for api_type in ["DELTA_GRPC", "GRPC"] {
        boots_and_follows(&envoy, api_type).await;
    }
}
