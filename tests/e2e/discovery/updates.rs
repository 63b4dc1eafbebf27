//! Updates of every type, in both variants of the protocol, and what is refused.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use outrigger_control_api::server::ResourceType;

use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh, NODE};
use crate::harness::client::{get, Client};
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

async fn named(name: &'static str) -> Origin {
    Origin::with(false, move |_| Answer::ok(name)).await
}

async fn proxy(delta: bool, control: &ControlPlane) -> Proxy {
    Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await
}

/// The body of one answer; anything but a 200 is told as an error.
async fn ask(port: u16) -> Result<String, String> {
    match get(port, "/").await {
        Ok(answer) if answer.status() == 200 => Ok(answer.text()),
        Ok(answer) => Err(format!("{} {}", answer.start_line, answer.text())),
        Err(error) => Err(error.to_string()),
    }
}

/// Clients that ask without pause, half of them on connections that stay.
struct Load {
    good: Cell<usize>,
    bodies: RefCell<std::collections::BTreeMap<String, usize>>,
    lost: RefCell<Vec<String>>,
    stop: Cell<bool>,
}

impl Load {
    fn start(port: u16, clients: usize, local: &tokio::task::LocalSet) -> Rc<Load> {
        let load = Rc::new(Load {
            good: Cell::new(0),
            bodies: RefCell::default(),
            lost: RefCell::default(),
            stop: Cell::new(false),
        });
        for index in 0..clients {
            local.spawn_local(load.clone().client(port, index % 2 == 0));
        }
        load
    }

    async fn client(self: Rc<Load>, port: u16, reuse: bool) {
        let mut kept: Option<Client> = None;
        while !self.stop.get() {
            let mut client = match kept.take() {
                Some(client) => client,
                None => match Client::connect(port).await {
                    Ok(client) => client,
                    Err(error) => {
                        self.lost.borrow_mut().push(format!("connect: {error}"));
                        continue;
                    }
                },
            };
            match client.exchange(GET).await {
                Ok(answer) if answer.status() == 200 => {
                    self.good.set(self.good.get() + 1);
                    *self.bodies.borrow_mut().entry(answer.text()).or_default() += 1;
                    let close = answer.all("connection").any(|value| value.eq_ignore_ascii_case("close"));
                    kept = (reuse && !close).then_some(client);
                }
                Ok(answer) => self.lost.borrow_mut().push(format!("{} {}", answer.start_line, answer.text())),
                Err(error) => self.lost.borrow_mut().push(format!("no answer: {error}")),
            }
        }
    }

    /// Waits for so many more answers, and that each of `bodies` is among them.
    async fn answers(&self, more: usize, bodies: &[&str]) {
        let until = self.good.get() + more;
        self.bodies.borrow_mut().clear();
        let all = || {
            let seen = self.bodies.borrow();
            let done = self.good.get() >= until && bodies.iter().all(|body| seen.contains_key(*body));
            std::future::ready(done)
        };
        assert!(
            eventually(DEADLINE * 2, all).await,
            "seen: {:?}, lost: {:?}",
            self.bodies,
            self.lost.borrow()
        );
    }

    /// Waits until nothing but these bodies comes.
    async fn only(&self, bodies: &[&str]) {
        let only = || async {
            self.bodies.borrow_mut().clear();
            let until = self.good.get() + 200;
            eventually(DEADLINE, || std::future::ready(self.good.get() >= until)).await;
            self.bodies.borrow().keys().all(|body| bodies.contains(&body.as_str()))
        };
        assert!(eventually(DEADLINE * 2, only).await, "seen: {:?}", self.bodies);
    }
}

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
        mesh.cluster_extra.insert("web".into(), "dns_refresh_rate: 0s\nlb_policy: MAGLEV".into());
        mesh.cluster_extra.insert("other".into(), "per_connection_buffer_limit_bytes: 65536".into());
        mesh.services.insert("third".into(), vec![two.port()]);
        control.set(&mesh);
        assert!(eventually(DEADLINE, || std::future::ready(!control.refused().is_empty())).await);
        let (kind, text) = control.refused().remove(0);
        assert!(kind.contains("Cluster"), "{kind}");
        assert!(text.contains("web") && text.contains("lb_policy"), "{text}");
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
