//! A control plane that does everything wrong: requests go on, memory stays bounded, the log says what is wrong, and
//! the next good update is taken.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::clients::{named, Load};
use super::mesh::{bootstrap, Mesh};
use super::scripted::{frame, Manner, Reply, Scripted, CDS, LDS};
use crate::harness::client::get;
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{alone, eventually, DEADLINE};

/// How much memory may be taken for whatever a control plane sends.
const ALLOWANCE: usize = 100 << 20;

/// A bootstrap that soon tries again and soon doubts.
pub fn impatient(delta: bool) -> String {
    bootstrap(delta)
        .replace(
            "cluster_name: control }",
            "cluster_name: control, retry_policy: { retry_back_off: { base_interval: 0.05s, max_interval: 0.2s } } }",
        )
        .replace(
            "http2_protocol_options: {}",
            "http2_protocol_options: { connection_keepalive: { interval: 1s, timeout: 1s } }",
        )
}

struct Trial {
    control: Scripted,
    proxy: Proxy,
    load: Rc<Load>,
    mesh: Mesh,
    origins: [(&'static str, Origin); 2],
    /// Which of the origins serves.
    turn: usize,
    base: usize,
}

impl Trial {
    async fn start(delta: bool, local: &tokio::task::LocalSet) -> Trial {
        let origins = [("one", named("one").await), ("two", named("two").await)];
        let port = free_port();
        let mesh = Mesh::simple(port, &[origins[0].1.port()]);
        let control = Scripted::start(delta, &mesh).await;
        let proxy = Proxy::outrigger(&impatient(delta), &[("control", control.port.to_string())]).await;
        let load = Load::start(port, 2, local);
        local.run_until(load.answers(500, &["one"])).await;
        let base = proxy.resident();
        Trial { control, proxy, load, mesh, origins, turn: 0, base }
    }

    fn serving(&self) -> &'static str {
        self.origins[self.turn].0
    }

    /// The proxy's memory now, beyond what it had at first.
    fn grown(&self) -> usize {
        self.proxy.resident().saturating_sub(self.base)
    }

    /// Misbehaves, looks for a line in the log, and behaves again.
    async fn survive(&mut self, what: &str, lines: &[&str], act: impl FnOnce(&Scripted)) {
        let from = self.proxy.output().len();
        act(&self.control);
        let said = || {
            let output = self.proxy.output();
            let new = output.get(from..).unwrap_or_default();
            std::future::ready(lines.iter().all(|line| new.contains(line)))
        };
        assert!(eventually(DEADLINE * 2, said).await, "{what}: the log does not say {lines:?}");
        self.load.answers(100, &[self.serving()]).await;
        assert!(self.grown() < ALLOWANCE, "{what}: {} bytes more", self.grown());
        self.control.good_again();
        self.update(what).await;
    }

    /// A good update is taken.
    async fn update(&mut self, what: &str) {
        self.turn = 1 - self.turn;
        self.mesh.services.insert("web".into(), vec![self.origins[self.turn].1.port()]);
        self.control.set(&self.mesh);
        self.load.only(&[self.serving()]).await;
        assert_eq!(*self.load.lost.borrow(), Vec::<String>::new(), "{what}");
        let took = self.proxy.output();
        assert!(!took.contains("panicked"), "{what}: {took}");
    }
}

/// The encoded resource of a type and name.
fn body(mesh: &Mesh, type_url: &str, name: &str) -> Vec<u8> {
    let found = mesh.resources().iter().find_map(|text| {
        let value: serde_json::Value = serde_yaml_ng::from_str(text).expect("YAML");
        let own = value["name"].as_str().or(value["cluster_name"].as_str());
        let any = outrigger_control_api::load_resource(&value).expect("a resource").any;
        (any.type_url == type_url && own == Some(name)).then(|| any.value.to_vec())
    });
    found.expect("there is such a resource")
}

async fn misbehave(delta: bool) {
    let _alone = alone().await;
    let local = tokio::task::LocalSet::new();
    let mut trial = Trial::start(delta, &local).await;
    let script = async {
        let web = body(&trial.mesh, CDS, "web");
        let whole = || Reply::new(CDS, "bad", "b").with("web", CDS, web.clone());
        trial
            .survive("no nonce", &["odd control plane: response without a nonce"], |control| {
                control.send(&Reply { nonce: String::new(), ..whole() });
            })
            .await;
        trial
            .survive("the nonce of another", &["with the nonce of the one before"], |control| {
                control.send(&whole());
                control.send(&whole());
            })
            .await;
        let listener = body(&trial.mesh, LDS, "main");
        trial
            .survive("another type", &["discovery response refused", "is of type"], |control| {
                control.send(&whole().with("main", LDS, listener.clone()));
            })
            .await;
        trial
            .survive("a response cut short", &["no stream to the control plane", "decode"], |control| {
                let mut bytes = whole().encode(delta);
                bytes.truncate(bytes.len() - 7);
                control.raw(&frame(&bytes));
            })
            .await;
        trial
            .survive("a resource cut short", &["discovery response refused"], |control| {
                let mut cut = web.clone();
                cut.truncate(cut.len() - 3);
                control.send(&Reply::new(CDS, "bad", "b").with("web", CDS, cut));
            })
            .await;
        trial
            .survive("no protobuf at all", &["no stream to the control plane"], |control| {
                control.raw(&frame(&[0xff; 300]));
            })
            .await;
        trial
            .survive("no gRPC at all", &["no stream to the control plane"], |control| {
                control.raw(&Bytes::from_static(&[0x47; 1000]));
            })
            .await;
        trial
            .survive("100 MB", &["exceeds max_message_size"], |control| {
                control.raw(&frame(&vec![0; 100 << 20]));
            })
            .await;
        trial
            .survive("the same name twice", &["duplicate resource name"], |control| {
                control.send(&whole().with("web", CDS, web.clone()));
            })
            .await;
        trial
            .survive(
                "an unknown type",
                &["discovery response ignored: nothing of this type was asked for"],
                |control| {
                    let url = "type.googleapis.com/acme.v1.Anvil";
                    (0..1000)
                        .for_each(|_| control.send(&Reply::new(url, "1", "n").with("x", url, vec![1; 100])));
                },
            )
            .await;
        trial
            .survive("a long name of a type", &["discovery response ignored"], |control| {
                control.send(&Reply::new(&"x".repeat(1 << 20), "1", "n"));
            })
            .await;
        assert!(trial.proxy.output().len() < 100_000, "the log is {} bytes", trial.proxy.output().len());
        trial.survive("drops", &["came to a halt"], |control| control.drip(1 << 20, 0)).await;
        trial
            .survive("drops after a flood", &["came to a halt"], |control| control.drip(60 << 20, 30 << 20))
            .await;
        trial
            .survive("a reset after each message", &["ended the stream"], |control| {
                control.manner(Manner::ResetAfterEach);
            })
            .await;
        trial.survive("deaf", &["no stream to the control plane", "keep-alive"], Scripted::deafen).await;
        trial
            .survive("mute", &["odd control plane: the stream has brought no response for"], |control| {
                control.manner(Manner::Mute);
            })
            .await;
        trial
            .survive(
                "headers only",
                &["odd control plane: the stream has brought no response for"],
                |control| {
                    control.manner(Manner::HeadersOnly);
                },
            )
            .await;
        trial
            .survive("HTTP", &["no stream to the control plane", "503"], |control| {
                control.manner(Manner::Http(503));
            })
            .await;
        trial
            .survive("a response before any request", &["discovery response ignored"], |control| {
                let url = "type.googleapis.com/acme.v1.Anvil";
                control.manner(Manner::First(frame(&Reply::new(url, "1", "n").encode(delta))));
            })
            .await;
        trial.load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
}

#[tokio::test]
async fn nothing_that_a_control_plane_sends_disturbs_requests_delta() {
    misbehave(true).await;
}

#[tokio::test]
async fn nothing_that_a_control_plane_sends_disturbs_requests_state_of_the_world() {
    misbehave(false).await;
}

/// Names that never come again, of every type, and refusals without end.
async fn churn(delta: bool) {
    let _alone = alone().await;
    let local = tokio::task::LocalSet::new();
    let mut trial = Trial::start(delta, &local).await;
    let script = async {
        let rounds = |trial: &mut Trial, from: usize, count: usize| {
            for round in from..from + count {
                let mut mesh = trial.mesh.clone();
                let name = format!("churn-{round}-{}", "x".repeat(200));
                mesh.services.insert(name.clone(), vec![1]);
                mesh.tables.insert(
                    "main".into(),
                    vec![("/never".into(), vec![(name.clone(), 1)]), ("/".into(), vec![("web".into(), 1)])],
                );
                let mut resources = mesh.resources();
                // A listener that is refused, each time under another name.
                let bad =
                    mesh.listener(&name, 1).replace("stat_prefix:", "codec_type: HTTP3\n      stat_prefix:");
                resources.push(bad);
                trial.control.set_all(&resources);
            }
        };
        let is_taken = |trial: &Trial, round: usize| {
            let admin = trial.proxy.port("admin");
            async move {
                let page = get(admin, "/config_dump?resource=dynamic_active_clusters").await;
                page.is_ok_and(|page| page.text().contains(&format!("churn-{round}-")))
            }
        };
        rounds(&mut trial, 0, 300);
        assert!(eventually(DEADLINE * 6, || is_taken(&trial, 299)).await, "the first rounds were not taken");
        let before = trial.proxy.resident();
        rounds(&mut trial, 300, 1200);
        assert!(eventually(DEADLINE * 12, || is_taken(&trial, 1499)).await, "the rounds were not taken");
        trial.load.answers(100, &["one"]).await;
        let after = trial.proxy.resident();
        assert!(after < before + (24 << 20), "{before} bytes before, {after} after");
        assert!(!trial.control.refused().is_empty(), "the listeners were not refused");
        // What went has left nothing behind.
        trial.update("after the churn").await;
        let gone = || async {
            let stats = trial.proxy.admin("/stats").await;
            let page = trial.proxy.admin("/config_dump").await;
            !stats.contains("churn-") && !page.contains("churn-1400-")
        };
        assert!(eventually(DEADLINE * 2, gone).await, "churned names are left");
        let log = trial.proxy.output();
        assert!(log.len() < 400_000, "the log is {} bytes", log.len());
        trial.load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
    assert_eq!(*trial.load.lost.borrow(), Vec::<String>::new());
}

#[tokio::test]
async fn names_that_never_come_again_leave_nothing_behind_delta() {
    churn(true).await;
}

#[tokio::test]
async fn names_that_never_come_again_leave_nothing_behind_state_of_the_world() {
    churn(false).await;
}

#[tokio::test]
async fn what_is_refused_again_and_again_does_not_fill_the_log_or_stop_other_types() {
    let _alone = alone().await;
    let local = tokio::task::LocalSet::new();
    let mut trial = Trial::start(true, &local).await;
    let script = async {
        let mut bad = trial.mesh.clone();
        bad.cluster_extra.insert("web".into(), "connection_pool_per_downstream_connection: true".into());
        let bad = Reply::new(CDS, "bad", "b").with("web", CDS, body(&bad, CDS, "web"));
        let from = trial.proxy.output().len();
        let mut step = 0;
        let mut again = |count: usize| {
            for _ in 0..count {
                step += 1;
                trial.control.send(&Reply { nonce: step.to_string(), ..bad.clone() });
            }
        };
        again(1000);
        // Each refusal is answered with the same again.
        let (mut before, mut stalls) = (0, 0);
        while before < 3_000 {
            let more = || std::future::ready(trial.control.refused().len() > before);
            if !eventually(DEADLINE / 4, more).await {
                // On a machine that is busy, a stream may be doubted and replaced; what was on it is gone with it.
                stalls += 1;
                assert!(stalls < 8, "{before} refusals, and no more");
                again(1000);
                continue;
            }
            let now = trial.control.refused().len();
            again(now - before);
            before = now;
        }
        // Endpoints get through in the middle of it.
        trial.update("among refusals").await;
        let log = trial.proxy.output();
        let lines = log[from..].lines().filter(|line| line.contains("discovery response refused")).count();
        assert!((1..=60).contains(&lines), "{lines} lines");
        assert!(log[from..].contains("connection_pool_per_downstream_connection"), "{}", &log[from..]);
        assert!(trial.grown() < ALLOWANCE, "{} bytes more", trial.grown());
        let stats = trial.proxy.stats().await;
        assert!(stats["cluster_manager.cds.update_rejected"] >= 3_000, "{stats:?}");
        trial.update("after refusals").await;
        trial.load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
}

#[tokio::test]
async fn a_stream_that_is_doubted_is_replaced_and_what_changed_meanwhile_is_taken() {
    let local = tokio::task::LocalSet::new();
    let mut trial = Trial::start(true, &local).await;
    let script = async {
        let opened = trial.control.opened();
        trial.control.deafen();
        let silent = || async { trial.proxy.stats().await["control_plane.connected_state"] == 0 };
        assert!(eventually(DEADLINE, silent).await, "the silence is not noticed");
        // Told to nobody: only a new stream can bring it.
        trial.control.good_again();
        trial.update("after silence").await;
        assert!(trial.control.opened() > opened);
        let stats = trial.proxy.stats().await;
        assert!(stats["control_plane.streams_opened"] >= 2);
        assert_eq!(stats["control_plane.connected_state"], 1);
        trial.load.stop.set(true);
    };
    tokio::time::timeout(Duration::from_secs(60), local.run_until(script)).await.expect("in time");
    local.await;
}
