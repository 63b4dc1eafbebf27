//! Updates of every type, in both variants of the protocol, and what is refused.

use outrigger_control_api::server::ResourceType;

use super::clients::{ask, named, proxy, Load};
use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh, NODE};
use crate::harness::client::get;
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};

async fn scale(delta: bool) {
    let origins = [named("a").await, named("b").await, named("c").await, named("d").await, named("e").await];
    let ports: Vec<u16> = origins.iter().map(Origin::port).collect();
    let canary = named("canary").await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &ports[..2]);
    let control = ControlPlane::start(&mesh).await;
    let proxy = proxy(delta, &control).await;
    let local = tokio::task::LocalSet::new();
    let load = Load::start(port, 8, &local);
    let script = async {
        load.answers(200, &["a", "b"]).await;
        mesh.services.insert("web".into(), ports.clone());
        control.set(&mesh);
        load.answers(200, &["a", "b", "c", "d", "e"]).await;
        mesh.services.insert("web".into(), ports[4..].to_vec());
        control.set(&mesh);
        load.only(&["e"]).await;
        // A canary comes, takes everything, and goes.
        mesh.services.insert("canary".into(), vec![canary.port()]);
        mesh.tables
            .insert("main".into(), vec![("/".into(), vec![("web".into(), 90), ("canary".into(), 10)])]);
        control.set(&mesh);
        load.answers(200, &["e", "canary"]).await;
        mesh.tables.insert("main".into(), vec![("/".into(), vec![("canary".into(), 1)])]);
        mesh.services.remove("web");
        control.set(&mesh);
        load.only(&["canary"]).await;
        mesh.services.insert("web".into(), ports[..1].to_vec());
        mesh.tables.insert("main".into(), vec![("/".into(), vec![("web".into(), 1)])]);
        mesh.services.remove("canary");
        control.set(&mesh);
        load.only(&["a"]).await;
        // The listener changes: its socket stays.
        mesh.manager_extra = "      server_name: changed".into();
        control.set(&mesh);
        let changed = || async {
            get(port, "/").await.is_ok_and(|answer| answer.all("server").any(|server| server == "changed"))
        };
        assert!(eventually(DEADLINE, changed).await, "the listener did not change");
        load.answers(200, &["a"]).await;
        load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
    assert_eq!(*load.lost.borrow(), Vec::<String>::new(), "of {} requests", load.good.get());
    assert_eq!(control.refused(), [], "{}", proxy.output());
}

#[tokio::test]
async fn scaling_and_shifting_lose_no_request_delta() {
    scale(true).await;
}

#[tokio::test]
async fn scaling_and_shifting_lose_no_request_state_of_the_world() {
    scale(false).await;
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_path_and_its_siblings_are_taken() {
    for delta in [true, false] {
        let (one, two) = (named("one").await, named("two").await);
        let port = free_port();
        let mut mesh = Mesh::simple(port, &[one.port()]);
        mesh.services.insert("other".into(), vec![two.port()]);
        let control = ControlPlane::start(&mesh).await;
        let proxy = proxy(delta, &control).await;
        assert_eq!(ask(port).await.as_deref(), Ok("one"));

        // `web` becomes bad, `other` changes and is routed to beside it.
        mesh.cluster_extra.insert("web".into(), "connection_pool_per_downstream_connection: true".into());
        mesh.cluster_extra.insert("other".into(), "per_connection_buffer_limit_bytes: 65536".into());
        mesh.services.insert("third".into(), vec![two.port()]);
        control.set(&mesh);
        assert!(eventually(DEADLINE, || std::future::ready(!control.refused().is_empty())).await);
        let (kind, text) = control.refused().remove(0);
        assert!(kind.contains("Cluster"), "{kind}");
        assert!(text.contains("web") && text.contains("connection_pool_per_downstream_connection"), "{text}");
        assert!(!text.contains("other"), "{text}");
        assert_eq!(ask(port).await.as_deref(), Ok("one"), "the last good version serves");
        let third = || async { proxy.admin("/clusters?format=json").await.contains("\"third\"") };
        assert!(eventually(DEADLINE, third).await, "the sibling was not taken");
        let stats = proxy.stats().await;
        assert!(stats["cluster_manager.cds.update_rejected"] >= 1);

        // A route to a cluster that comes later is no reason to refuse the table.
        mesh.cluster_extra.clear();
        mesh.tables.insert("main".into(), vec![("/".into(), vec![("other".into(), 1)])]);
        control.set(&mesh);
        assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("two") }).await);
    }
}

#[tokio::test]
async fn a_cluster_that_works_is_not_replaced_by_one_without_endpoints() {
    let origin = named("ok").await;
    let port = free_port();
    let mesh = Mesh::simple(port, &[origin.port()]);
    let control = ControlPlane::start(&mesh).await;
    let proxy = proxy(true, &control).await;
    assert_eq!(ask(port).await.as_deref(), Ok("ok"));
    // The cluster now takes its endpoints from a name that does not exist.
    let mut resources = mesh.resources();
    resources[0] = resources[0].replace("eds_cluster_config: {", "eds_cluster_config: { service_name: late,");
    control.cache.set(NODE, snapshot(&resources));
    let warming = || async { proxy.stats().await["cluster_manager.warming_clusters"] == 1 };
    assert!(eventually(DEADLINE, warming).await);
    assert_eq!(ask(port).await.as_deref(), Ok("ok"), "the old version serves on");
    // They come.
    let late = named("late").await;
    resources.push(Mesh::endpoints("late", &[late.port()]));
    control.cache.set(NODE, snapshot(&resources));
    assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("late") }).await);
    assert!(control.settled(&ResourceType::CLUSTER).await);
}

#[tokio::test]
async fn runtime_layers_change_the_limits_of_clusters() {
    let origin = named("ok").await;
    let port = free_port();
    let mesh = Mesh::simple(port, &[origin.port()]);
    let layer = |requests: u32, maintained: u32| {
        format!(
            "\"@type\": type.googleapis.com/envoy.service.runtime.v3.Runtime\nname: tuned\nlayer:\n  \
             circuit_breakers.web.default.max_requests: {requests}\n  upstream.maintenance_mode.web: {maintained}\n"
        )
    };
    let resources = |requests, maintained| {
        let mut resources = mesh.resources();
        resources.push(layer(requests, maintained));
        resources
    };
    let control = ControlPlane::on(0, snapshot(&resources(0, 0))).await;
    let template = bootstrap(true)
        + "layered_runtime:\n  layers:\n  - name: control\n    rtds_layer: { name: tuned, rtds_config: { resource_api_version: V3, ads: {} } }\n";
    let proxy = Proxy::outrigger(&template, &[("control", control.port.to_string())]).await;
    assert!(ask(port).await.unwrap_err().contains("503"), "no request is allowed");
    let shown = proxy.admin("/runtime").await;
    assert!(shown.contains("circuit_breakers.web.default.max_requests"), "{shown}");
    control.cache.set(NODE, snapshot(&resources(5, 0)));
    assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("ok") }).await);
    control.cache.set(NODE, snapshot(&resources(5, 100)));
    let maintained =
        || async { proxy.stats().await.get("cluster.web.upstream_rq_maintenance_mode") > Some(&0) };
    let asked = || async { ask(port).await.is_err() && maintained().await };
    assert!(eventually(DEADLINE, asked).await);
    control.cache.set(NODE, snapshot(&resources(5, 0)));
    assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("ok") }).await);
    assert_eq!(control.refused(), []);
}
