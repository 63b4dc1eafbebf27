//! Clients that notice every request that is lost.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::mesh::{bootstrap, ControlPlane};
use crate::harness::client::{get, Client};
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};

pub const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

pub async fn named(name: &'static str) -> Origin {
    Origin::with(false, move |_| Answer::ok(name)).await
}

pub async fn proxy(delta: bool, control: &ControlPlane) -> Proxy {
    Proxy::outrigger(&bootstrap(delta), &[("control", control.port.to_string())]).await
}

/// The body of one answer; anything but a 200 is told as an error.
pub async fn ask(port: u16) -> Result<String, String> {
    match get(port, "/").await {
        Ok(answer) if answer.status() == 200 => Ok(answer.text()),
        Ok(answer) => Err(format!("{} {}", answer.start_line, answer.text())),
        Err(error) => Err(error.to_string()),
    }
}

/// Clients that ask without pause, half of them on connections that stay.
pub struct Load {
    pub good: Cell<usize>,
    pub bodies: RefCell<std::collections::BTreeMap<String, usize>>,
    pub lost: RefCell<Vec<String>>,
    pub stop: Cell<bool>,
}

impl Load {
    pub fn start(port: u16, clients: usize, local: &tokio::task::LocalSet) -> Rc<Load> {
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
    pub async fn answers(&self, more: usize, bodies: &[&str]) {
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
    pub async fn only(&self, bodies: &[&str]) {
        let only = || async {
            self.bodies.borrow_mut().clear();
            let until = self.good.get() + 200;
            eventually(DEADLINE, || std::future::ready(self.good.get() >= until)).await;
            self.bodies.borrow().keys().all(|body| bodies.contains(&body.as_str()))
        };
        assert!(eventually(DEADLINE * 2, only).await, "seen: {:?}", self.bodies);
    }
}
