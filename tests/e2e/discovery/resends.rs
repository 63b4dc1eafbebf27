//! A control plane that sends all that it has again, equal but for one thing that is new, as istiod's pushes are.

use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::server::{ResourceType, Snapshot};
use prost::Message;

use super::calls::{echo, Call};
use super::clients::{named, Load};
use super::mesh::{bootstrap, ControlPlane, Mesh};
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{alone, http2};

/// Listeners beside the one with the load, each with a route table, and services.
const LISTENERS: usize = 30;
const SERVICES: usize = 60;
const STREAMS: usize = 200;
const PUSHES: usize = 20;

/// All that `mesh` has with versions of this push, `otherwise` in other bytes of the same meaning.
fn again(mesh: &Mesh, push: usize, otherwise: bool) -> Snapshot {
    let content = mesh.snapshot();
    let mut snapshot = Snapshot::new();
    for kind in content.types() {
        for name in content.names(kind) {
            let resource = content.get(kind, name).expect("it was listed");
            let any = Any::decode(resource.encoded_any().clone()).expect("encoded");
            let value = if otherwise { name_last(any.value) } else { any.value };
            let version = format!("{push}-{}", resource.version());
            snapshot
                .insert_encoded(&any.type_url, name, Bytes::from(value), Some(&version))
                .expect("as good as before");
        }
    }
    snapshot
}

/// The first field, which is the name in all of these messages, comes last.
fn name_last(mut message: Vec<u8>) -> Vec<u8> {
    const NAME: u8 = 1 << 3 | 2;
    let length = match message[..] {
        [NAME, length @ ..128, ..] => usize::from(length),
        _ => return message,
    };
    message.rotate_left(2 + length);
    message
}

async fn equal_pushes_change_nothing(delta: bool) {
    let _alone = alone().await;
    let backend = named("a").await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &[backend.port()]);
    mesh.services.insert("streams".into(), vec![http2::serve(echo).await]);
    mesh.cluster_extra.insert("streams".into(), http2::OPTIONS.into());
    let routes =
        vec![("/test.Echo/".into(), vec![("streams".into(), 1)]), ("/".into(), vec![("web".into(), 1)])];
    mesh.tables.insert("main".into(), routes.clone());
    for index in 0..LISTENERS {
        mesh.listeners.insert(format!("other{index}"), free_port());
        mesh.tables.insert(format!("other{index}"), routes.clone());
    }
    for index in 0..SERVICES {
        mesh.services.insert(format!("service{index}"), vec![backend.port()]);
    }
    let control = ControlPlane::start(&mesh).await;
    let proxy = Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await;
    let mut calls = Vec::new();
    for _ in 0..STREAMS {
        calls.push(Call::open(port).await);
    }
    let taken = [ResourceType::CLUSTER, ResourceType::ROUTE, ResourceType::LISTENER];
    for kind in &taken {
        assert!(control.settled(kind).await, "{kind} is not taken");
    }
    let before = proxy.stats().await;

    let local = tokio::task::LocalSet::new();
    let load = Load::start(port, 8, &local);
    let script = async {
        for push in 1..=PUSHES {
            mesh.services.insert(format!("new{push}"), vec![backend.port()]);
            control.cache.set(super::mesh::NODE, again(&mesh, push, push % 2 == 1));
            for kind in &taken {
                assert!(control.settled(kind).await, "push {push}: {kind} is not taken");
            }
            for call in calls.iter_mut().skip(push).step_by(PUSHES) {
                call.echo(format!("push {push}").as_bytes()).await;
            }
        }
        load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
    for mut call in calls {
        call.echo(b"still there").await;
        call.end().await;
    }
    assert_eq!(*load.lost.borrow(), Vec::<String>::new(), "of {} requests", load.good.get());
    assert_eq!(control.refused(), []);
    let after = proxy.stats().await;
    let same = [
        "listener_manager.listener_added",
        "listener_manager.listener_modified",
        "listener_manager.listener_removed",
        "listener_manager.total_listeners_draining",
        "listener_manager.total_filter_chains_draining",
        "http.main.downstream_cx_drain_close",
        "http.main.rds.main.config_reload",
        "http.other0.rds.other0.config_reload",
        "cluster_manager.cluster_modified",
        "cluster_manager.cluster_removed",
    ];
    for name in same {
        assert_eq!(after.get(name), before.get(name), "{name}");
    }
    assert_eq!(
        after["cluster_manager.cluster_added"] - before["cluster_manager.cluster_added"],
        PUSHES as u64
    );

    // What it costs is what has changed: nothing here, not even bytes; then nothing but bytes; then each listener.
    let mut costs = [Duration::ZERO; 3];
    for (kind, cost) in costs.iter_mut().enumerate() {
        for push in 0..PUSHES {
            if kind == 2 {
                mesh.manager_extra = format!("      server_name: push{push}");
            }
            let number = PUSHES * (kind + 1) + push + 1;
            let snapshot = again(&mesh, number, kind == 1 && push % 2 == 0);
            let spent = proxy.cpu_of_threads();
            control.cache.set(super::mesh::NODE, snapshot);
            for kind in &taken {
                assert!(control.settled(kind).await, "push {number}: {kind} is not taken");
            }
            *cost += proxy.cpu_of_threads().saturating_sub(spent);
        }
    }
    let costs = costs.map(|cost| cost / PUSHES as u32);
    let [same, equal, changed] = costs;
    println!(
        "a push of {} resources: {same:?} where all are the same, {equal:?} where they are written otherwise, {changed:?} \
         where {} listeners changed",
        mesh.resources().len(),
        LISTENERS + 1
    );
    assert!(same < changed, "{same:?} for nothing, {changed:?} for {} listeners", LISTENERS + 1);
}

#[tokio::test]
async fn equal_pushes_change_nothing_delta() {
    equal_pushes_change_nothing(true).await;
}

#[tokio::test]
async fn equal_pushes_change_nothing_state_of_the_world() {
    equal_pushes_change_nothing(false).await;
}
