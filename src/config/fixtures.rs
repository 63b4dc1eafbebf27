//! A compiled cluster for the tests of other rooms.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::balancing::Balancing;
use super::cluster::{
    Breakers, Cluster, ClusterNames, Discovery, LbPolicy, Limit, SocketTuning, UpstreamHttp, UpstreamProtocol,
};

/// A cluster without hosts, with Envoy's defaults.
pub(crate) fn cluster(name: &str, discovery: Discovery) -> Cluster {
    let breakers = || Breakers {
        connections: Limit::new(1024),
        pending: Limit::new(1024),
        requests: Limit::new(1024),
        retries: Limit::new(3),
        pools: Limit::new(u32::MAX),
        retry_budget: None,
        track_remaining: false,
        per_host_connections: None,
    };
    Cluster {
        name: name.into(),
        stat_name: name.into(),
        names: names(name),
        discovery,
        balancing: Arc::new(Balancing::new(LbPolicy::RoundRobin)),
        connect_timeout: Duration::from_secs(5),
        per_connection_buffer_limit: 1 << 20,
        breakers: [breakers(), breakers()],
        panic_threshold: 50,
        overprovisioning: 140,
        cleanup_interval: Duration::from_secs(5),
        weighted_priority_health: false,
        http: UpstreamHttp {
            protocol: UpstreamProtocol::Http1,
            idle_timeout: None,
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: 0,
            max_headers_count: 100,
            max_response_headers: 60 << 10,
            hash_policies: None,
            http1: Default::default(),
            filters: std::sync::Arc::default(),
            http2: Default::default(),
        },
        socket: SocketTuning::default(),
        tls: None,
        passing: None,
        istio: crate::config::cluster::IstioCluster::default(),
        added_via_api: false,
        preconnect_ratio: None,
        predictive_ratio: None,
        close_on_failure: false,
        drops: Arc::default(),
        health: None,
        orca: None,
        hosts: Default::default(),
        stats: OnceLock::new(),
    }
}

/// The names of a cluster.
pub(crate) fn names(name: &str) -> Arc<ClusterNames> {
    Arc::new(ClusterNames { name: name.into(), stat_name: name.into(), metadata: None })
}
