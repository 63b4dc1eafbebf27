//! Start, drain, hand-over and end of the process.

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{alone, eventually, DEADLINE};
use std::cell::Cell;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

/// What the clients of the hand-over have seen together.
#[derive(Default)]
struct Tally {
    good: Cell<usize>,
    announced: Cell<usize>,
    lost: std::cell::RefCell<Vec<String>>,
    stop: Cell<bool>,
}

/// A client that sends requests until told to stop: on one connection for as long as nobody announces its close, or on a
/// new connection for each.
async fn client(port: u16, reuse: bool, tally: Rc<Tally>) {
    let mut connection: Option<Client> = None;
    while !tally.stop.get() {
        let mut open = match connection.take() {
            Some(open) => open,
            None => match Client::connect(port).await {
                Ok(open) => open,
                Err(e) => {
                    tally.lost.borrow_mut().push(format!("connect: {e}"));
                    continue;
                }
            },
        };
        match open.exchange(GET).await {
            Ok(answer) if answer.status() == 200 => {
                tally.good.set(tally.good.get() + 1);
                let close = answer.all("connection").any(|v| v.eq_ignore_ascii_case("close"));
                tally.announced.set(tally.announced.get() + usize::from(close));
                if reuse && !close {
                    connection = Some(open);
                }
            }
            Ok(answer) => tally.lost.borrow_mut().push(format!("{} {}", answer.start_line, answer.text())),
            Err(e) => tally.lost.borrow_mut().push(format!("no answer: {e}")),
        }
    }
}

#[tokio::test]
async fn a_successor_on_the_same_port_loses_no_request() {
    let _alone = alone().await;
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let template = Bootstrap::new().plain("main", "").render();
    let values = origins(origin.port(), origin.port());
    let drain = Duration::from_secs(3);
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.arguments = &["--drain-time-s", "3"];
    let mut first = Proxy::start(plan).await;
    let port = first.port("main");

    let tally = Rc::new(Tally::default());
    let local = tokio::task::LocalSet::new();
    for i in 0..16 {
        local.spawn_local(client(port, i % 2 == 0, tally.clone()));
    }
    let script = async {
        let enough = |n: usize| {
            let tally = tally.clone();
            move || std::future::ready(tally.good.get() >= n)
        };
        assert!(eventually(DEADLINE * 2, enough(1_000)).await, "only {} requests", tally.good.get());
        let mut plan = Plan::new(Kind::Outrigger, &template, &values);
        plan.ports = first.ports().clone();
        first.signal(libc::SIGTERM);
        let termed = Instant::now();
        let mut second = Proxy::spawn(&plan);
        let status = first.exit(drain * 3).await;
        let took = termed.elapsed();
        assert!(status.is_some_and(|s| s.success()), "the first ended with {status:?} after {took:?}");
        assert!(took <= drain + Duration::from_secs(1), "draining for {drain:?} took {took:?}");
        assert!(second.ready().await, "the successor is not ready: {}", second.output());
        let so_far = tally.good.get();
        let total = (so_far + 1_000).max(3_200);
        assert!(
            eventually(DEADLINE * 2, enough(total)).await,
            "the successor answered {}",
            tally.good.get() - so_far
        );
        tally.stop.set(true);
        second
    };
    let second = local.run_until(script).await;
    local.await;
    let lost = tally.lost.borrow();
    let shown = lost.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(lost.is_empty(), "{} of {} lost:\n{shown}\n{}", lost.len(), tally.good.get(), second.output());
    assert!(tally.announced.get() >= 8, "only {} closes were announced", tally.announced.get());
    assert_eq!(origin.requests(), tally.good.get(), "requests at the origin, answers at the clients");
}

/// The old process sends new connections to one socket of the new one; that must end with it, or a successor with more
/// workers would go on with one.
#[tokio::test]
async fn all_workers_of_a_successor_are_used() {
    let _alone = alone().await;
    let origin = Origin::start().await;
    let template = Bootstrap::new().plain("main", "").render();
    let values = origins(origin.port(), origin.port());
    let mut first = Proxy::start(Plan::new(Kind::Outrigger, &template, &values)).await;
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.arguments = &["--concurrency", "2"];
    plan.ports = first.ports().clone();
    first.signal(libc::SIGTERM);
    let mut second = Proxy::spawn(&plan);
    assert!(first.exit(DEADLINE).await.is_some_and(|status| status.success()));
    assert!(second.ready().await, "the successor is not ready: {}", second.output());
    // One client at a time: each worker that is used needs one connection to the origin, and only one.
    let both_used = || async {
        let mut client = Client::connect(second.port("main")).await.unwrap();
        assert_eq!(client.exchange(GET).await.unwrap().status(), 200);
        second.stats().await.get("cluster.a.upstream_cx_total") == Some(&2)
    };
    assert!(eventually(DEADLINE, both_used).await, "one worker got all connections");
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_the_close_announced() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let gate = Arc::new(Semaphore::new(0));
        let origin = Origin::start().await;
        let held = gate.clone();
        origin.answer(move |_| Answer::ok("late").gated(&held));
        let template = Bootstrap::new().plain("main", "").render();
        let values = origins(origin.port(), origin.port());
        let mut plan = Plan::new(Kind::Outrigger, &template, &values);
        plan.arguments = &["--drain-time-s", "5"];
        let mut proxy = Proxy::start(plan).await;
        let mut client = Client::connect(proxy.port("main")).await.unwrap();
        client.send(GET).await.unwrap();
        assert!(origin.wait_for(1).await);
        proxy.signal(signal);
        let draining = || async {
            let ready = crate::harness::client::get(proxy.port("admin"), "/ready").await;
            !ready.is_ok_and(|page| page.status() == 200)
        };
        assert!(eventually(DEADLINE, draining).await, "still ready after signal {signal}");
        gate.add_permits(10);
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "late"));
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.closed(DEADLINE).await, "the connection stays open");
        let status = proxy.exit(Duration::from_secs(6)).await;
        assert!(status.is_some_and(|s| s.success()), "after signal {signal}: {status:?}\n{}", proxy.output());
    }
}

#[tokio::test]
async fn a_hangup_ends_nothing() {
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let template = Bootstrap::new().plain("main", "").render();
    let proxy = Proxy::outrigger(&template, &origins(origin.port(), origin.port())).await;
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    proxy.signal(libc::SIGHUP);
    assert!(eventually(DEADLINE, || async { proxy.output().contains("SIGHUP") }).await, "{}", proxy.output());
    assert_eq!(client.exchange(GET).await.unwrap().text(), "ok");
}

/// Runs `outrigger` until it ends by itself.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("20").arg(env!("CARGO_BIN_EXE_outrigger")).args(arguments);
    command.output().expect("outrigger under timeout")
}

/// Fails unless the process ended with status 1 and one line on stderr that says all of `words`.
fn one_clear_line(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "exit status, having said: {said}");
    let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line, not: {said}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is missing in: {}", lines[0]);
    }
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bootstrap.yaml");
    let mut ports = [("main".to_string(), port)].into();
    let template = Bootstrap::new().plain("main", "").render();
    let text = crate::harness::proxy::fill(&template, &origins(1, 1), dir.path(), &mut ports);
    std::fs::write(&file, text).expect("the bootstrap");
    let output = run(&["run", "-c", file.to_str().expect("a path")]);
    one_clear_line(&output, &[&format!("127.0.0.1:{port}"), "in use"]);

    // The admin port likewise.
    let mut ports = [("admin".to_string(), port)].into();
    let text = crate::harness::proxy::fill(&template, &origins(1, 1), dir.path(), &mut ports);
    std::fs::write(&file, text).expect("the bootstrap");
    let output = run(&["run", "-c", file.to_str().expect("a path")]);
    one_clear_line(&output, &[&format!("127.0.0.1:{port}"), "in use"]);
}

#[test]
fn a_file_that_cannot_be_read_is_one_clear_line() {
    one_clear_line(&run(&["run", "-c", "/nowhere/bootstrap.yaml"]), &["/nowhere/bootstrap.yaml"]);
    one_clear_line(&run(&["run", "-c", "/"]), &["/"]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bootstrap.yaml");
    let path = file.to_str().expect("a path").to_string();
    std::fs::write(&file, "static_resources: { listeners: [ { nmae: x } ] }").expect("a file");
    one_clear_line(&run(&["run", "-c", &path]), &["static_resources.listeners[0].nmae"]);
    // Envoy's own spelling of a check.
    let output = run(&["--mode", "validate", "-c", &path]);
    assert_eq!(output.status.code(), Some(1));
}
