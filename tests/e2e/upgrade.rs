//! `outrigger upgrade`: what clients see of it, and what it leaves behind when it cannot be done.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::discovery::mesh::{self, ControlPlane, Mesh};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};

const OURS: &str = env!("CARGO_BIN_EXE_outrigger");
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

/// A process that was started by another one; gone when dropped.
pub struct Successor(pub i32);

impl Drop for Successor {
    fn drop(&mut self) {
        // One that has ended by itself is no more than a number that nobody has had since.
        if command_line(self.0).is_some_and(|line| line.contains("outrigger")) {
            Command::new("kill").args(["-9", &self.0.to_string()]).status().expect("kill");
        }
    }
}

/// What a process was started with; `None` once it is gone.
pub fn command_line(pid: i32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
    Some(String::from_utf8_lossy(&line).replace('\0', " "))
}

/// Asks for an upgrade.
pub fn upgrade(flags: &[&str], to: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", OURS, "upgrade", "--to"]).arg(to).args(flags);
    command.output().expect("outrigger upgrade")
}

/// Asks for one that must succeed.
pub fn upgraded(flags: &[&str]) -> Successor {
    let output = upgrade(flags, Path::new(OURS));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = said.strip_prefix("process ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    Successor(pid.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&output.stderr))))
}

/// An abstract socket's name that nobody else has.
fn place() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("@outrigger-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn relays(port: u16) -> String {
    let bootstrap = Bootstrap::new().plain("main", "").render();
    let listener = "  - name: bytes\n    address: { socket_address: { address: 127.0.0.1, port_value: @port:bytes@ } }\n    filter_chains:\n    - filters:\n      - { name: t, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: bytes, cluster: bytes, access_log: [ { name: f, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \"@dir@/bytes.log\", log_format: { text_format_source: { inline_string: \"%BYTES_RECEIVED% %BYTES_SENT%\\n\" } } } } ] } }\n";
    let cluster = format!(
        "  - name: bytes\n    type: STATIC\n    connect_timeout: 2s\n    load_assignment: {{ cluster_name: bytes, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }} ] }} ] }}\n"
    );
    let with = |text: &str, key: &str, more: &str| text.replacen(key, &format!("{key}{more}"), 1);
    with(&with(&bootstrap, "  listeners:\n", listener), "  clusters:\n", &cluster)
}

/// A client's connection and the server's end of it.
fn connection(proxy: &Proxy, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port("bytes"))).expect("a connection");
    let (accepted, _) = server.accept().expect("the proxy's connection");
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    }
    (client, accepted)
}

/// Bytes that come from one end at the other.
fn passes((from, to): (&mut TcpStream, &mut TcpStream), bytes: &[u8]) {
    from.write_all(bytes).expect("sent");
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).expect("received");
    assert_eq!(got, bytes);
}

/// Sends until nothing more is taken.
fn stuff(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_nonblocking(true).expect("set");
    let (mut sent, mut quiet) = (Vec::new(), Instant::now());
    while quiet.elapsed() < Duration::from_millis(100) {
        let block: Vec<u8> = (0..4096).map(|index| (sent.len() + index) as u8 ^ 0x5a).collect();
        if let Ok(count) = stream.write(&block) {
            sent.extend_from_slice(&block[..count]);
            quiet = Instant::now();
        }
    }
    stream.set_nonblocking(false).expect("set");
    sent
}

/// An origin that answers when it may.
async fn held_back() -> (Arc<Semaphore>, Origin) {
    let gate = Arc::new(Semaphore::new(0));
    let origin = Origin::start().await;
    let held = gate.clone();
    origin.answer(move |_| Answer::ok("late").gated(&held));
    (gate, origin)
}

#[tokio::test]
async fn connections_go_on_in_the_new_process() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let template = relays(server.local_addr().expect("its address").port());
    let (gate, origin) = held_back().await;
    let values = origins(origin.port(), origin.port());
    let place = place();
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    let arguments = ["--socket-path", &place, "--drain-time-s", "20", "--file-flush-interval-msec", "10"];
    plan.arguments = &arguments;
    let mut proxy = Proxy::start(plan).await;
    let (first, flags) = (proxy.pid() as i32, ["--socket-path", &place]);

    // At rest; ended by the client; ended by the server; with bytes that neither end takes.
    let (mut client, mut peer) = connection(&proxy, &server);
    passes((&mut client, &mut peer), b"before");
    let (mut half, mut half_peer) = connection(&proxy, &server);
    half.write_all(b"all of it").expect("sent");
    half.shutdown(Shutdown::Write).expect("ended");
    let mut got = Vec::new();
    half_peer.read_to_end(&mut got).expect("everything");
    let (mut other, mut other_peer) = connection(&proxy, &server);
    other_peer.shutdown(Shutdown::Write).expect("ended");
    assert_eq!(other.read(&mut [0]).expect("an end"), 0);
    let (mut full, mut full_peer) = connection(&proxy, &server);
    let (up, down) = (stuff(&mut full), stuff(&mut full_peer));
    assert!(up.len() > 100_000 && down.len() > 100_000);
    // A request that is under way stays where it is.
    let mut waiting = Client::connect(proxy.port("main")).await.expect("a connection");
    waiting.send(GET).await.expect("sent");
    assert!(origin.wait_for(1).await);

    let second = upgraded(&flags);
    assert!(command_line(second.0).expect("its arguments").contains("--socket-path"));
    let counted = || async { proxy.stats().await.get("cluster.bytes.upstream_cx_active") == Some(&4) };
    assert!(eventually(DEADLINE, counted).await, "{}", proxy.output());
    passes((&mut client, &mut peer), b"after");
    passes((&mut peer, &mut client), b"and back");
    passes((&mut half_peer, &mut half), b"an answer");
    drop(half_peer);
    assert_eq!(half.read(&mut [0]).expect("an end"), 0);
    passes((&mut other, &mut other_peer), b"more");
    let mut got = vec![0; up.len()];
    full_peer.read_exact(&mut got).expect("what was on its way");
    assert!(got == up);
    let mut got = vec![0; down.len()];
    full.read_exact(&mut got).expect("what was on its way");
    assert!(got == down);
    // The old one finishes its request, and is a parent only from then on.
    assert!(!command_line(first).expect("it is there").contains("mind"));
    gate.add_permits(100);
    let answer = waiting.response().await;
    assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
    let minds = || std::future::ready(command_line(first).is_some_and(|line| line.contains(" mind ")));
    assert!(eventually(DEADLINE, minds).await, "{:?}", command_line(first));
    passes((&mut client, &mut peer), b"at last");

    // Once more; the one in the middle ends.
    let third = upgraded(&flags);
    assert!(third.0 != second.0 && command_line(first).is_some());
    passes((&mut client, &mut peer), b"in the third");
    let gone = || std::future::ready(command_line(second.0).is_none());
    assert!(eventually(DEADLINE, gone).await, "{:?}", command_line(second.0));
    passes((&mut peer, &mut client), b"still");
    let mut fresh = Client::connect(proxy.port("main")).await.expect("a connection");
    assert_eq!(fresh.exchange(GET).await.expect("an answer").status(), 200);
    // What was carried in three processes is logged once.
    drop((client, peer));
    let log = proxy.file("bytes.log");
    let logged =
        || std::future::ready(std::fs::read_to_string(&log).is_ok_and(|text| text.contains("30 13\n")));
    assert!(eventually(DEADLINE, logged).await, "{:?}", std::fs::read_to_string(&log));
    drop((half, other, other_peer, full, full_peer, fresh));
    // What the first process is told, the last one does: the first time it drains, the second time it ends.
    proxy.signal(libc::SIGTERM);
    let draining = || async {
        let ready = crate::harness::client::get(proxy.port("admin"), "/ready").await;
        !ready.is_ok_and(|page| page.status() == 200)
    };
    assert!(eventually(DEADLINE, draining).await);
    proxy.signal(libc::SIGTERM);
    let status = proxy.exit(DEADLINE).await;
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", proxy.output());
    assert!(command_line(third.0).is_none());
}

/// Filters that have let a connection in are behind it; those that have not heard of it yet are in the old process.
#[tokio::test]
async fn what_filters_have_let_in_goes_over_too() {
    const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let door = format!(
        "      - {{ name: c, typed_config: {{ \"@type\": {NETWORK}.connection_limit.v3.ConnectionLimit, stat_prefix: door, max_connections: 5 }} }}\n      - {{ name: r, typed_config: {{ \"@type\": {NETWORK}.rbac.v3.RBAC, stat_prefix: door, rules: {{ policies: {{ all: {{ permissions: [ {{ any: true }} ], principals: [ {{ any: true }} ] }} }} }} }} }}\n"
    );
    let template = relays(server.local_addr().expect("its address").port());
    let template = template.replacen("      - { name: t,", &format!("{door}      - {{ name: t,"), 1);
    let origin = Origin::start().await;
    let values = origins(origin.port(), origin.port());
    let place = place();
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    let arguments = ["--socket-path", &place, "--drain-time-s", "20"];
    plan.arguments = &arguments;
    let proxy = Proxy::start(plan).await;
    let (mut client, mut peer) = connection(&proxy, &server);
    passes((&mut client, &mut peer), b"before");
    let (mut silent, mut silent_peer) = connection(&proxy, &server);
    passes((&mut silent_peer, &mut silent), b"a greeting");
    let _second = upgraded(&["--socket-path", &place]);
    let counted = || async {
        let stats = proxy.stats().await;
        let value = |name: &str| stats.get(name).copied();
        value("cluster.bytes.upstream_cx_active") == Some(1)
            && value("connection_limit.door.active_connections") == Some(1)
    };
    assert!(eventually(DEADLINE, counted).await, "{:?}\n{}", proxy.stats().await, proxy.output());
    passes((&mut client, &mut peer), b"after");
    passes((&mut peer, &mut client), b"and back");
    passes((&mut silent, &mut silent_peer), b"its first words");
    passes((&mut silent_peer, &mut silent), b"and back");
}

/// A program that says that it can take over, and then does something else.
fn impostor(dir: &Path, then: &str) -> PathBuf {
    let file = dir.join("impostor");
    std::fs::write(
        &file,
        format!("#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && echo outrigger.1 && exit\n{then}\n"),
    )
    .expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("set");
    file
}

#[tokio::test]
async fn a_binary_that_cannot_take_over_changes_nothing() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let template = relays(server.local_addr().expect("its address").port());
    let origin = Origin::start().await;
    let values = origins(origin.port(), origin.port());
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).expect("made");
    let state = state.to_str().expect("a path");
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    let arguments = ["--state-dir", state, "--base-id", "7"];
    plan.arguments = &arguments;
    let proxy = Proxy::start(plan).await;
    let socket = dir.path().join("state/upgrade.sock_7");
    let mode = std::fs::metadata(&socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (mut client, mut peer) = connection(&proxy, &server);
    let mut kept = Client::connect(proxy.port("main")).await.expect("a connection");
    let flags = ["--state-dir", state, "--base-id", "7", "--timeout-s", "1"];
    for (then, expected) in [
        ("exit 3", "exit status: 3"),
        ("exec sleep 60", "not ready after 1 s"),
        // Speaks, but of something else.
        ("printf 'nonsense, and much of it' >&0; exec sleep 60", "not expected"),
    ] {
        let output = upgrade(&flags, &impostor(dir.path(), then));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(expected), "{then}: {said}");
        passes((&mut client, &mut peer), b"before and after");
        assert_eq!(kept.exchange(GET).await.expect("an answer").status(), 200);
        let mut fresh = Client::connect(proxy.port("main")).await.expect("a connection");
        let answer = fresh.exchange(GET).await.expect("an answer");
        assert_eq!((answer.status(), answer.header("connection")), (200, None), "{then}");
    }
    for (to, expected) in [
        (Path::new("/nowhere/outrigger"), "/nowhere/outrigger cannot be run"),
        (Path::new("/bin/true"), "/bin/true cannot take over"),
        (Path::new("/etc/passwd"), "/etc/passwd cannot be run"),
    ] {
        let output = upgrade(&flags, to);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(expected), "{said}");
    }
    let output = upgrade(&["--state-dir", "/nowhere"], Path::new(OURS));
    assert!(String::from_utf8_lossy(&output.stderr)
        .contains("no process takes upgrades at /nowhere/upgrade.sock"));
    // Another user gets no further than the door.
    let to: SocketAddr = ([127, 0, 0, 1], proxy.port("admin")).into();
    assert!(TcpStream::connect(to).is_ok());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).expect("set");
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", OURS, "upgrade", "--to", OURS]).args(flags);
        let said = String::from_utf8_lossy(&command.output().expect("to run it").stderr).into_owned();
        assert!(said.contains("only user 0 and root may ask"), "{said}");
    }
}

/// Whoever started the first process sees how the last one ended, whether the first still works or only waits.
#[tokio::test]
async fn the_first_process_ends_as_the_new_one_does() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let template = relays(server.local_addr().expect("its address").port());
    for works in [true, false] {
        let (_gate, origin) = held_back().await;
        let values = origins(origin.port(), origin.port());
        let place = place();
        let mut plan = Plan::new(Kind::Outrigger, &template, &values);
        let arguments = ["--socket-path", &place, "--drain-time-s", "20"];
        plan.arguments = &arguments;
        let mut proxy = Proxy::start(plan).await;
        let mut waiting = Client::connect(proxy.port("main")).await.expect("a connection");
        if works {
            waiting.send(GET).await.expect("sent");
            assert!(origin.wait_for(1).await);
        }
        let _waiting = works.then_some(waiting);
        let successor = upgraded(&["--socket-path", &place]);
        let first = proxy.pid() as i32;
        let minds = || std::future::ready(command_line(first).is_some_and(|line| line.contains(" mind ")));
        assert_eq!(
            eventually(if works { Duration::from_millis(100) } else { DEADLINE }, minds).await,
            !works
        );
        if !works {
            // Of its own, without what it has mapped of the program.
            let status = std::fs::read_to_string(format!("/proc/{first}/status")).expect("its status");
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
            let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
            assert!(kib < 4096, "{kib} KiB for a process that waits");
        }
        Command::new("kill").args(["-9", &successor.0.to_string()]).status().expect("kill");
        let status = proxy.exit(DEADLINE).await.expect("the end of the first");
        assert_eq!(status.code(), Some(137));
    }
}

/// A new process that hears from nobody is no successor, unless it knows from before what to do.
#[tokio::test]
async fn without_a_control_plane_the_last_good_configuration_has_to_do() {
    let origin = Origin::start().await;
    let text = mesh::bootstrap(false).replace("V3, ads: {} }", "V3, ads: {}, initial_fetch_timeout: 1s }");
    for keeps in [false, true] {
        let port = free_port();
        let plane = ControlPlane::start(&Mesh::simple(port, &[origin.port()])).await;
        let control = plane.port.to_string();
        let values = [("control", control)];
        let (dir, place) = (tempfile::tempdir().expect("a directory"), place());
        let state = dir.path().to_str().expect("a path");
        let mut plan = Plan::new(Kind::Outrigger, &text, &values);
        let arguments = ["--drain-time-s", "5", "--socket-path", &place, "--state-dir", state];
        plan.arguments = &arguments[..if keeps { 6 } else { 4 }];
        let _proxy = Proxy::start(plan).await;
        let mut client = Client::connect(port).await.expect("a connection");
        assert_eq!(client.exchange(GET).await.expect("an answer").status(), 200);
        let kept = || std::future::ready(!keeps || dir.path().join("last-good.xds").exists());
        assert!(eventually(DEADLINE, kept).await);
        drop(plane);
        let output = upgrade(&["--socket-path", &place], Path::new(OURS));
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let successor = said.strip_prefix("process ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let successor = successor.map(Successor);
        assert_eq!(successor.is_some(), keeps, "{said}");
        assert!(keeps || said.contains("the new process has no listener \"main\""), "{said}");
        let mut fresh = Client::connect(port).await.expect("a connection");
        let answer = fresh.exchange(GET).await.expect("an answer");
        assert_eq!((answer.status(), answer.header("connection")), (200, None));
    }
}
