//! The control plane goes away, comes back, and is not there when the proxy starts.

use std::time::{Duration, Instant};

use super::clients::{ask, named, Load};
use super::mesh::{bootstrap, ControlPlane, Mesh};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{alone, eventually, DEADLINE};

#[tokio::test]
async fn a_control_plane_that_dies_and_comes_back_is_not_noticed_by_requests() {
    for delta in [true, false] {
        let (one, two) = (named("one").await, named("two").await);
        let port = free_port();
        let mut mesh = Mesh::simple(port, &[one.port()]);
        let control = ControlPlane::start(&mesh).await;
        let place = control.port;
        let proxy = Proxy::outrigger(&bootstrap(delta), &[("control", place.to_string())]).await;
        let local = tokio::task::LocalSet::new();
        let load = Load::start(port, 4, &local);
        let script = async {
            load.answers(100, &["one"]).await;
            drop(control);
            let lost = || async { proxy.stats().await["control_plane.connected_state"] == 0 };
            assert!(eventually(DEADLINE, lost).await, "the loss is not shown");
            load.answers(500, &["one"]).await;
            mesh.services.insert("web".into(), vec![two.port()]);
            let back = ControlPlane::on(place, mesh.snapshot()).await;
            load.only(&["two"]).await;
            let stats = proxy.stats().await;
            assert_eq!(stats["control_plane.connected_state"], 1);
            assert!(stats["control_plane.streams_opened"] >= 2);
            if delta {
                // Only the endpoints differ: nothing else was taken again.
                assert_eq!(stats["cluster_manager.cluster_modified"], 0);
                assert_eq!(stats["http.main.rds.main.config_reload"], 1);
                assert_eq!(stats["listener_manager.listener_modified"], 0);
            }
            load.stop.set(true);
            back
        };
        let back = local.run_until(script).await;
        local.await;
        assert_eq!(*load.lost.borrow(), Vec::<String>::new(), "of {} requests", load.good.get());
        assert_eq!(back.refused(), []);
    }
}

#[tokio::test]
async fn without_its_control_plane_a_proxy_serves_what_it_last_knew() {
    let _alone = alone().await;
    let (one, two) = (named("one").await, named("two").await);
    let state = tempfile::tempdir().expect("a directory");
    let directory = state.path().display().to_string();
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[one.port()]);
    let control = ControlPlane::start(&mesh).await;
    let place = control.port;
    let values = [("control", place.to_string())];
    let template = bootstrap(true);
    let arguments = ["--state-dir", directory.as_str()];
    let with_state = || {
        let mut plan = Plan::new(Kind::Outrigger, &template, &values);
        plan.arguments = &arguments;
        plan
    };
    let first = Proxy::start(with_state()).await;
    assert_eq!(ask(port).await.as_deref(), Ok("one"));
    let kept = state.path().join("last-good.xds");
    assert!(eventually(DEADLINE, || std::future::ready(kept.exists())).await, "nothing was kept");
    drop((first, control));

    let mut second = Proxy::spawn(&with_state());
    let started = Instant::now();
    assert!(second.ready().await, "{}", second.output());
    let took = started.elapsed();
    assert_eq!(ask(port).await.as_deref(), Ok("one"));
    // Without waiting for anybody: the first fetch would be waited for 15 s.
    assert!(took < Duration::from_secs(5), "not ready for {took:?}");
    let ready = second.admin("/ready?verbose").await;
    assert!(ready.contains("last good"), "{ready}");
    assert_eq!(second.stats().await["control_plane.last_good_in_use"], 1);

    // It comes back with something else.
    mesh.services.insert("web".into(), vec![two.port()]);
    let back = ControlPlane::on(place, mesh.snapshot()).await;
    assert!(eventually(DEADLINE * 4, || async { ask(port).await.as_deref() == Ok("two") }).await);
    // Endpoints are in force before the listeners, which come last, are heard of.
    let confirmed = || async { second.stats().await["control_plane.last_good_in_use"] == 0 };
    assert!(eventually(DEADLINE, confirmed).await, "{}", second.output());
    drop(second);

    // What is damaged is not used, and said so.
    std::fs::write(&kept, "something else").expect("written");
    drop(back);
    let third = Proxy::spawn(&with_state());
    let told = || std::future::ready(third.output().contains("last good configuration not used"));
    assert!(eventually(DEADLINE, told).await, "{}", third.output());
}

#[tokio::test]
async fn a_control_plane_of_several_addresses_is_found_where_it_is() {
    let (one, two) = (named("one").await, named("two").await);
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[one.port()]);
    let mut planes = [ControlPlane::start(&mesh).await, ControlPlane::start(&mesh).await];
    let endpoint = |port: &str| {
        format!(
            "        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}\n"
        )
    };
    let several = bootstrap(true)
        .replace(&endpoint("@control@"), &["@port:nobody@", "@one@", "@two@"].map(&endpoint).concat());
    let values = [("one", planes[0].port.to_string()), ("two", planes[1].port.to_string())];
    let proxy = Proxy::outrigger(&several, &values).await;
    assert_eq!(ask(port).await.as_deref(), Ok("one"));
    // The one that it is at goes; the other knows something new.
    if planes[0].cache.streams().is_empty() {
        planes.swap(0, 1);
    }
    let [at, other] = planes;
    assert!(other.cache.streams().is_empty(), "one stream is enough");
    mesh.services.insert("web".into(), vec![two.port()]);
    other.set(&mesh);
    drop(at);
    let moved = || async { ask(port).await.as_deref() == Ok("two") };
    assert!(eventually(DEADLINE, moved).await, "{}", proxy.output());
    // With nobody left, all of them are named.
    drop(other);
    let named =
        || async { proxy.output().contains("none of 3 addresses of the control plane can be reached") };
    assert!(eventually(DEADLINE, named).await, "{}", proxy.output());
}
