use std::future::Future;
use std::pin::pin;
use std::task::Context;

use tokio::net::TcpListener;

use super::*;
use crate::config::cluster::{Address, Discovery, HostTemplate};
use crate::config::fixtures;

#[tokio::test]
async fn the_connections_of_a_host_are_limited_for_all_workers_together() {
    crate::telemetry::metrics::install();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cluster = fixtures::cluster("limited_by_host", Discovery::Static);
    cluster.breakers[0].per_host_connections = Some(2);
    let cluster = Arc::new(cluster);
    let host = || Host::new(Address::Ip(listener.local_addr().unwrap()), HostTemplate::default());
    let shared = host();
    let [one, other, elsewhere] = [shared.clone(), shared, host()].map(|host| HostPool::new(&cluster, host));
    let first = one.connection(0).await.unwrap();
    let _second = other.connection(0).await.unwrap();
    assert!(matches!(other.dedicated().await, Err(UpstreamError::Overflow("max_connections"))));
    // Another host has its own limit, and HIGH priority has none here.
    let _third = elsewhere.connection(0).await.unwrap();
    let _fourth = one.connection(1).await.unwrap();
    let mut waits = pin!(one.connection(0));
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert!(waits.as_mut().poll(&mut context).is_pending());
    let id = first.id;
    one.give_back(first, true, Instant::now());
    assert_eq!(waits.await.unwrap().id, id, "the one that became free");
}
