//! Nothing waits for anything: a swap not for a worker that is busy with a request, a request not for a swap.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::clients::{ask, named, proxy, Load, GET};
use super::mesh::{ControlPlane, Mesh};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::{alone, eventually, DEADLINE};

#[tokio::test]
async fn a_request_that_takes_long_delays_no_swap_and_ends_on_what_it_began_with() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let slow = Origin::with(true, move |_| Answer::ok("slow").gated(&held)).await;
    let quick = named("quick").await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[slow.port()]);
    let control = ControlPlane::start(&mesh).await;
    // One worker, with as many requests under way as it can have.
    let proxy = proxy(true, &control).await;
    let mut waiting = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(port).await.expect("a connection");
        client.send(GET).await.expect("sent");
        waiting.push(client);
    }
    assert!(slow.wait_for(16).await, "the requests did not arrive");
    // Cluster, endpoints, routes and listener all change.
    mesh.services.insert("web".into(), vec![quick.port()]);
    mesh.cluster_extra.insert("web".into(), "per_connection_buffer_limit_bytes: 32768".into());
    mesh.tables.insert("main".into(), vec![("/".into(), vec![("web".into(), 2)])]);
    mesh.manager_extra = "      server_name: changed".into();
    let began = Instant::now();
    control.set(&mesh);
    // Who comes too early waits for the slow one too.
    let swapped = || async {
        let answer = tokio::time::timeout(Duration::from_millis(200), ask(port)).await;
        answer.is_ok_and(|answer| answer.as_deref() == Ok("quick"))
    };
    assert!(eventually(DEADLINE, swapped).await, "{}", proxy.output());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "the swap took {took:?}");
    // What was under way ends well.
    gate.add_permits(16);
    for mut client in waiting {
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "slow"));
    }
    assert_eq!(control.refused(), [], "{}", proxy.output());
}

/// The time that 99 of 100 requests take at most, over so many.
async fn p99(port: u16, requests: usize) -> Duration {
    let mut client = Client::connect(port).await.expect("a connection");
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let began = Instant::now();
        assert_eq!(client.exchange(GET).await.expect("an answer").status(), 200);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times[requests * 99 / 100]
}

#[tokio::test]
async fn a_swap_of_thousands_of_resources_delays_no_request() {
    let _alone = alone().await;
    let origin = named("ok").await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[origin.port()]);
    let control = ControlPlane::start(&mesh).await;
    let proxy = proxy(true, &control).await;
    assert_eq!(ask(port).await.as_deref(), Ok("ok"));
    let quiet = p99(port, 2000).await;
    for number in 0..3000 {
        mesh.services.insert(format!("service-{number}"), vec![origin.port()]);
    }
    // Made before, so that this process does not compete while it counts.
    let snapshot = mesh.snapshot();
    let local = tokio::task::LocalSet::new();
    let load = Load::start(port, 2, &local);
    let script = async {
        load.answers(100, &["ok"]).await;
        control.cache.set(super::mesh::NODE, snapshot);
        let mut busy = Vec::new();
        loop {
            busy.push(p99(port, 200).await);
            let stats = proxy.stats().await;
            if stats["cluster_manager.active_clusters"] >= 3001 {
                break;
            }
            assert!(busy.len() < 500, "the push is not taken: {stats:?}");
        }
        load.stop.set(true);
        busy
    };
    let mut busy = local.run_until(script).await;
    local.await;
    assert_eq!(*load.lost.borrow(), Vec::<String>::new());
    busy.sort_unstable();
    let middle = busy[busy.len() / 2];
    // The machine is shared with the push itself; a worker that waited for the whole of it would take seconds.
    let bound = quiet * 4 + Duration::from_millis(20);
    assert!(middle < bound, "p99 {quiet:?} before, {busy:?} while 3000 clusters came");
    assert_eq!(control.refused(), []);
}
