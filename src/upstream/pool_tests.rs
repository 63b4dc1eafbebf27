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

/// With a ratio of 2 there is a connection more for each request, and those that come next need not wait for theirs.
#[tokio::test]
async fn connections_are_opened_ahead() {
    crate::telemetry::metrics::install();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cluster = fixtures::cluster("ahead", Discovery::Static);
    cluster.preconnect_ratio = Some(2.0);
    let cluster = Arc::new(cluster);
    let host = Host::new(Address::Ip(listener.local_addr().unwrap()), HostTemplate::default());
    let pool = HostPool::new(&cluster, host.clone());
    let settled = |idle: usize| {
        let pool = pool.clone();
        async move {
            while pool.idle.borrow().len() != idle {
                tokio::task::yield_now().await;
            }
        }
    };
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let first = pool.connection(0).await.unwrap();
        settled(1).await;
        assert_eq!(pool.open.get(), 2);
        let second = pool.reuse().expect("it was opened ahead");
        settled(2).await;
        assert_eq!(pool.open.get(), 4);
        // Free again: nothing more is opened for the next.
        pool.give_back(second, true, Instant::now());
        let second = pool.reuse().expect("one of three");
        assert_eq!((pool.open.get(), pool.ahead_of_all()), (4, 0));
        // Who is not healthy gets no more than it is asked for.
        host.shared.health.set(crate::config::cluster::HealthFlags::FAILED_OUTLIER_CHECK);
        let third = pool.reuse().expect("idle");
        let fourth = pool.reuse().expect("idle");
        let fifth = pool.connection(0).await.unwrap();
        assert_eq!((pool.open.get(), pool.ahead_of_all()), (5, 0));
        drop((first, second, third, fourth, fifth));
    });
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("in time");
    assert_eq!(pool.open.get(), 0);
}

/// What a request began that is given up is there for the next, which waits for it instead of a connection of its own.
#[tokio::test]
async fn an_attempt_goes_on_without_its_request() {
    crate::telemetry::metrics::install();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Host::new(Address::Ip(listener.local_addr().unwrap()), HostTemplate::default());
    let pool = HostPool::new(&Arc::new(fixtures::cluster("begun", Discovery::Static)), host.clone());
    let all = tokio::task::LocalSet::new();
    let all = all.run_until(async {
        let mut context = Context::from_waker(std::task::Waker::noop());
        {
            let mut begun = pin!(pool.connection(0));
            assert!(begun.as_mut().poll(&mut context).is_pending());
            assert_eq!((pool.open.get(), pool.orphans.get()), (1, 0));
        }
        assert_eq!((pool.open.get(), pool.orphans.get()), (1, 1));
        let connection = pool.connection(0).await.unwrap();
        assert_eq!((pool.open.get(), pool.orphans.get()), (1, 0));
        drop(connection);
        // The same for those that carry several requests.
        {
            let mut begun = pin!(pool.stream(0));
            assert!(begun.as_mut().poll(&mut context).is_pending());
        }
        assert!(pool.connections().is_connecting());
        let slot = pool.stream(0).await.unwrap();
        assert_eq!((pool.open.get(), slot.reused()), (1, true));
        // What one session asked for is of no use to another.
        {
            let mut begun = pin!(pool.dedicated());
            assert!(begun.as_mut().poll(&mut context).is_pending());
            assert_eq!(pool.open.get(), 2);
        }
        assert_eq!((pool.open.get(), pool.orphans.get()), (1, 0));
    });
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("in time");
    assert!(!host.shared.health.has(crate::config::cluster::HealthFlags::SUSPECT), "nobody waited for long");
}
