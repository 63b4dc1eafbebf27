use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::config::cluster::{Address, HostTemplate, SocketTuning};
use crate::config::compile::bootstrap::{bootstrap, NodeOptions};
use crate::config::listener::Terminal;
use crate::config::{Host, Slot};
use crate::runtime::socket;
use crate::tcp::DialError;
use crate::telemetry::fixtures::connection;
use crate::telemetry::metrics::snapshot;

/// Compiles a proxy named `name` as part of a bootstrap, logging into `log`.
fn compile(name: &str, log: &std::path::Path, changes: &[(&str, Value)]) -> Arc<TcpProxy> {
    let operators = [
        "ACCESS_LOG_TYPE",
        "RESPONSE_FLAGS",
        "UPSTREAM_CLUSTER",
        "UPSTREAM_HOST",
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "UPSTREAM_WIRE_BYTES_SENT",
        "UPSTREAM_WIRE_BYTES_RECEIVED",
        "RESPONSE_CODE",
    ];
    let format: serde_json::Map<_, _> =
        operators.iter().map(|operator| ((*operator).into(), format!("%{operator}%").into())).collect();
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": name,
        "access_log": [{"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log, "log_format": {"json_format": format},
        }}],
    });
    for (field, value) in changes {
        config[*field] = value.clone();
    }
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}});
    let bootstrap_config = json!({"static_resources": {
        "listeners": [{"name": "l", "address": address, "filter_chains": [
            {"filters": [{"name": "tcp", "typed_config": config}]}]}],
        "clusters": [{"name": name}],
    }});
    let loaded = outrigger_control_api::load_value(&bootstrap_config).unwrap();
    let compiled = bootstrap(loaded, &NodeOptions::default()).unwrap();
    match &compiled.listeners[0].chains[0].terminal {
        Terminal::Tcp(proxy) => proxy.clone(),
        other => panic!("{other:?}"),
    }
}

/// Answers attempts in turn: with a connection to the address, or with an error.
struct Script {
    outcomes: RefCell<VecDeque<Result<SocketAddr, (ResponseFlags, &'static str)>>>,
    contexts: RefCell<Vec<DialContext>>,
    open: Rc<()>,
}

impl Dial for Script {
    type Permit = Rc<()>;

    async fn dial(&self, _: &Arc<Slot<Cluster>>, context: DialContext) -> Result<Dialed<Rc<()>>, DialError> {
        self.contexts.borrow_mut().push(context);
        let host = |address| Host::new(Address::Ip(address), HostTemplate::default());
        let next = self.outcomes.borrow_mut().pop_front();
        match next {
            Some(Ok(address)) => {
                let stream = socket::connect(&Address::Ip(address), &SocketTuning::default()).await.unwrap();
                let (host, permit) = (host(address), self.open.clone());
                let first = bytes::BytesMut::new();
                Ok(Dialed { stream, id: 7, host, tls: None, first, protocol: None, permit })
            }
            Some(Err((flag, details))) => {
                let tried = flag == ResponseFlags::UF;
                let host = tried.then(|| host(([127, 0, 0, 1], 1).into()));
                Err(DialError { flag, details: details.into(), host })
            }
            None => std::future::pending().await,
        }
    }
}

struct Rig {
    _directory: tempfile::TempDir,
    log: PathBuf,
    proxy: Arc<TcpProxy>,
    script: Rc<Script>,
    origin: TcpListener,
    client: TcpStream,
    fate: watch::Sender<Fate>,
    serving: JoinHandle<()>,
}

const REFUSED: (ResponseFlags, &str) = (ResponseFlags::UF, "delayed connect error: Connection refused");

impl Rig {
    /// Starts serving a connection; `plan` makes the dialler's script from the origin's address.
    async fn new(
        name: &str,
        changes: &[(&str, Value)],
        plan: impl FnOnce(SocketAddr) -> Vec<Result<SocketAddr, (ResponseFlags, &'static str)>>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let proxy = compile(name, &log, changes);
        let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outcomes = RefCell::new(plan(origin.local_addr().unwrap()).into());
        let script = Rc::new(Script { outcomes, contexts: RefCell::default(), open: Rc::new(()) });
        let (client, accepted) =
            tokio::join!(TcpStream::connect(front.local_addr().unwrap()), front.accept());
        let (downstream, remote) = accepted.unwrap();
        let connection = Rc::new(connection(Some(remote), Some(front.local_addr().unwrap())));
        let (fate, fated) = watch::channel(Fate::Stay);
        let serving = tokio::task::spawn_local({
            let (proxy, script) = (proxy.clone(), script.clone());
            async move {
                let prefix = BytesMut::from(&b"pre"[..]);
                let client = Client {
                    stream: downstream.into(),
                    prefix,
                    buffer_limit: 1 << 20,
                    info: connection,
                    gate: None,
                };
                serve(proxy, client, None, &*script, fated).await;
            }
        });
        let client = client.unwrap();
        Self { _directory: directory, log, proxy, script, origin, client, fate, serving }
    }

    /// Waits for the end and returns the log's lines, and the proxy so that its statistics live on.
    async fn finish(self) -> (Vec<Value>, Arc<TcpProxy>) {
        // An aborted task counts as finished, too.
        let _ = self.serving.await;
        assert_eq!(Rc::strong_count(&self.script.open), 1, "the upstream's permit was given back");
        assert!(self.proxy.access_logs[0].flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&self.log).unwrap();
        (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), self.proxy)
    }
}

fn run<F: std::future::Future<Output = ()>>(test: F) {
    crate::telemetry::metrics::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(30), test).await };
    LocalSet::new().block_on(&runtime, test).expect("the test took too long");
}

#[track_caller]
fn check(line: &Value, expected: &[(&str, Value)]) {
    for (field, value) in expected {
        assert_eq!(&line[*field], value, "{field} in {line}");
    }
}

fn count(name: &str) -> i64 {
    snapshot().number(name).unwrap_or_default()
}

#[test]
fn a_connection_and_its_record() {
    run(async {
        let mut rig =
            Rig::new("good", &[("hash_policy", json!([{"source_ip": {}}]))], |to| vec![Ok(to)]).await;
        let origin_address = rig.origin.local_addr().unwrap();
        let (mut server, _) = rig.origin.accept().await.unwrap();
        rig.client.write_all(b"fixed").await.unwrap();
        rig.client.shutdown().await.unwrap();
        let mut received = String::new();
        server.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "prefixed");
        server.write_all(b"answer").await.unwrap();
        assert_eq!(rig.client.read(&mut [0; 10]).await.unwrap(), 6);
        // Visible while the connection is open.
        assert_eq!(count("tcp.good.downstream_cx_rx_bytes_total"), 8);
        assert_eq!(count("tcp.good.downstream_cx_tx_bytes_total"), 6);
        assert_eq!(count("cluster.good.upstream_cx_tx_bytes_total"), 8);
        assert_eq!(count("cluster.good.upstream_cx_rx_bytes_total"), 6);
        drop(server);
        assert_eq!(rig.client.read(&mut [0; 10]).await.unwrap(), 0);
        let context = rig.script.contexts.borrow()[0].clone();
        assert_eq!(context.hash_source, Some(rig.client.local_addr().unwrap()));
        assert_eq!(context.local, None, "nobody redirected it");
        let (lines, _proxy) = rig.finish().await;
        assert_eq!(lines.len(), 1);
        check(
            &lines[0],
            &[
                ("ACCESS_LOG_TYPE", json!("TcpConnectionEnd")),
                ("RESPONSE_CODE", json!(0)),
                ("UPSTREAM_CLUSTER", json!("good")),
                ("UPSTREAM_HOST", json!(origin_address.to_string())),
                ("UPSTREAM_REQUEST_ATTEMPT_COUNT", json!(1)),
                ("BYTES_RECEIVED", json!(8)),
                ("BYTES_SENT", json!(6)),
                ("UPSTREAM_WIRE_BYTES_SENT", json!(8)),
                ("UPSTREAM_WIRE_BYTES_RECEIVED", json!(6)),
            ],
        );
        assert_eq!(count("tcp.good.downstream_cx_total"), 1);
    });
}

// Flags, counts and attempts of the failures below are Envoy 1.40's.

#[test]
fn failures_to_connect() {
    run(async {
        let refused3 = ("max_connect_attempts", json!(3));
        for (name, changes, failures, flags, attempts) in [
            ("refused", &[][..], &[REFUSED][..], "UF,URX", 1),
            ("refused3", &[refused3][..], &[REFUSED; 3], "UF,URX", 3),
            ("empty", &[], &[(ResponseFlags::UH, "")], "UH", 0),
            ("overflow", &[], &[(ResponseFlags::UO, "")], "UO", 0),
        ] {
            let mut rig = Rig::new(name, changes, |_| failures.iter().copied().map(Err).collect()).await;
            assert_eq!(rig.client.read(&mut [0]).await.unwrap(), 0);
            let (lines, _proxy) = rig.finish().await;
            assert_eq!(lines.len(), 1);
            check(
                &lines[0],
                &[
                    ("RESPONSE_FLAGS", json!(flags)),
                    ("UPSTREAM_CLUSTER", json!(name)),
                    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", json!(attempts)),
                    ("BYTES_RECEIVED", json!(0)),
                ],
            );
            let exceeded = count(&format!("cluster.{name}.upstream_cx_connect_attempts_exceeded"));
            assert_eq!(exceeded, i64::from(attempts > 0));
        }
    });
}

#[test]
fn a_second_attempt_may_succeed() {
    run(async {
        let attempts = [("max_connect_attempts", json!(2))];
        let rig = Rig::new("second", &attempts, |to| vec![Err(REFUSED), Ok(to)]).await;
        drop(rig.origin.accept().await.unwrap());
        let (lines, _proxy) = rig.finish().await;
        check(&lines[0], &[("UPSTREAM_REQUEST_ATTEMPT_COUNT", json!(2))]);
    });
}

#[test]
fn a_cluster_that_is_not_there() {
    run(async {
        let unknown = [("cluster", json!("nowhere"))];
        let mut rig = Rig::new("unknown", &unknown, |_| Vec::new()).await;
        assert_eq!(rig.client.read(&mut [0]).await.unwrap(), 0);
        let (lines, _proxy) = rig.finish().await;
        check(
            &lines[0],
            &[
                ("RESPONSE_FLAGS", json!("NC")),
                ("UPSTREAM_CLUSTER", Value::Null),
                ("UPSTREAM_REQUEST_ATTEMPT_COUNT", json!(0)),
            ],
        );
        assert_eq!(count("tcp.unknown.downstream_cx_no_route"), 1);
    });
}

#[test]
fn resets() {
    run(async {
        let linger_zero = |stream: TcpStream| {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        };
        let mut rig = Rig::new("reset-up", &[], |to| vec![Ok(to)]).await;
        let (mut server, _) = rig.origin.accept().await.unwrap();
        server.read_exact(&mut [0; 3]).await.unwrap();
        linger_zero(server);
        let error = rig.client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        check(&rig.finish().await.0[0], &[("RESPONSE_FLAGS", json!("UR"))]);

        let rig = Rig::new("reset-down", &[], |to| vec![Ok(to)]).await;
        let (mut server, _) = rig.origin.accept().await.unwrap();
        let Rig { client, .. } = rig;
        linger_zero(client);
        let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_client_that_leaves_while_we_connect() {
    run(async {
        let rig = Rig::new("leaves", &[], |_| Vec::new()).await;
        while rig.script.contexts.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        socket2::SockRef::from(&rig.client).set_linger(Some(Duration::ZERO)).unwrap();
        let Rig { client, serving, .. } = rig;
        drop(client);
        serving.await.unwrap();
    });
}

#[test]
fn timeouts_and_the_end_of_a_drain() {
    run(async {
        let idle = [("idle_timeout", json!("0.05s"))];
        let rig = Rig::new("idle", &idle, |to| vec![Ok(to)]).await;
        let _server = rig.origin.accept().await.unwrap();
        let (lines, _idle) = rig.finish().await;
        check(&lines[0], &[("RESPONSE_FLAGS", json!("-"))]);
        assert_eq!(count("tcp.idle.idle_timeout"), 1);

        let duration = [("max_downstream_connection_duration", json!("0.05s"))];
        let rig = Rig::new("duration", &duration, |to| vec![Ok(to)]).await;
        let _server = rig.origin.accept().await.unwrap();
        let (lines, _duration) = rig.finish().await;
        check(&lines[0], &[("RESPONSE_FLAGS", json!("DT"))]);
        assert_eq!(count("tcp.duration.max_downstream_connection_duration"), 1);

        let rig = Rig::new("cut", &[], |to| vec![Ok(to)]).await;
        let _server = rig.origin.accept().await.unwrap();
        rig.fate.send(Fate::End).unwrap();
        assert_eq!(rig.finish().await.0.len(), 1);
    });
}

#[test]
fn an_aborted_task_is_logged_once() {
    run(async {
        let mut rig = Rig::new("aborted", &[], |to| vec![Ok(to)]).await;
        let (mut server, _) = rig.origin.accept().await.unwrap();
        rig.client.write_all(b"12345").await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        rig.serving.abort();
        let (lines, _proxy) = rig.finish().await;
        assert_eq!(lines.len(), 1);
        check(&lines[0], &[("BYTES_RECEIVED", json!(8)), ("ACCESS_LOG_TYPE", json!("TcpConnectionEnd"))]);
    });
}

#[test]
fn logs_at_start_when_connected_and_on_the_way() {
    run(async {
        let options = json!({
            "flush_access_log_on_start": true, "flush_access_log_on_connected": true,
            "access_log_flush_interval": "0.02s",
        });
        let changes =
            [("access_log_options", options), ("max_downstream_connection_duration", json!("0.1s"))];
        let rig = Rig::new("logs", &changes, |to| vec![Ok(to)]).await;
        let _server = rig.origin.accept().await.unwrap();
        let (lines, _proxy) = rig.finish().await;
        let types: Vec<_> = lines.iter().map(|line| line["ACCESS_LOG_TYPE"].as_str().unwrap()).collect();
        let (first, rest) = types.split_at(2);
        assert_eq!(first, ["TcpConnectionStart", "TcpUpstreamConnected"]);
        let (last, periodic) = rest.split_last().unwrap();
        assert_eq!(*last, "TcpConnectionEnd");
        assert!(
            !periodic.is_empty() && periodic.iter().all(|log_type| *log_type == "TcpPeriodic"),
            "{types:?}"
        );
    });
}

#[test]
fn echo_and_direct_response() {
    use crate::tcp::local::{direct_response, echo};
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let accept = || async { Stream::from(listener.accept().await.unwrap().0) };
        let (mut client, stream) = (TcpStream::connect(to).await.unwrap(), accept().await);
        let ask = async {
            client.write_all(b"hello").await.unwrap();
            client.shutdown().await.unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            text
        };
        let (echoed, text) = tokio::join!(echo(&stream, BytesMut::from("well "), None), ask);
        echoed.unwrap();
        assert_eq!(text, "well hello");

        let (mut client, stream) = (TcpStream::connect(to).await.unwrap(), accept().await);
        client.write_all(b"a question that nobody reads").await.unwrap();
        let ask = async {
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            client.shutdown().await.unwrap();
            text
        };
        let (sent, text) = tokio::join!(direct_response(&stream, b"go away"), ask);
        sent.unwrap();
        assert_eq!(text, "go away");
    });
}

#[test]
fn who_takes_a_connection_logs_its_end() {
    run(async {
        for taken in [true, false] {
            let name = if taken { "taken" } else { "refused" };
            let mut rig = Rig::new(name, &[], |to| vec![Ok(to)]).await;
            let (mut server, _) = rig.origin.accept().await.unwrap();
            server.read_exact(&mut [0; 3]).await.unwrap();
            let (takers, mut departures) = mpsc::unbounded_channel();
            rig.fate.send(Fate::Leave(takers)).unwrap();
            let departing = departures.recv().await.unwrap();
            assert_eq!(departing.passage.cluster, name);
            assert_eq!(departing.passage.host, Some(server.local_addr().unwrap()));
            assert_eq!(departing.passage.traffic, [3, 3, 0, 0]);
            if taken {
                departing.taken.send(()).unwrap();
                rig.serving.await.unwrap();
                assert_eq!(std::fs::read_to_string(&rig.log).unwrap(), "");
                // The sockets are somebody else's now, and open.
                let mut socket =
                    TcpStream::from_std(std::net::TcpStream::from(departing.downstream)).unwrap();
                socket.write_all(b"x").await.unwrap();
                rig.client.read_exact(&mut [0]).await.unwrap();
                continue;
            }
            drop(departing);
            rig.client.write_all(b"go on").await.unwrap();
            let mut text = [0; 5];
            server.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"go on");
            rig.client.shutdown().await.unwrap();
            assert_eq!(server.read(&mut text).await.unwrap(), 0);
            drop(server);
            rig.serving.await.unwrap();
            assert!(rig.proxy.access_logs[0].flush(Duration::from_secs(10)));
            assert_eq!(std::fs::read_to_string(&rig.log).unwrap().lines().count(), 1);
        }
    });
}
