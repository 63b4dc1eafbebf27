//! What the tests of listeners stand on: worker threads, configuration and clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use outrigger_control_api::pb::envoy::config::listener::v3 as pb;
use outrigger_control_api::{load, Format};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};
use tokio::sync::watch;

use super::super::super::worker::{self, Assignment};
use super::super::*;
use crate::config::compile::bootstrap::NodeOptions;
use crate::config::compile::{self, CompiledBootstrap, Environment};
use crate::config::Problems;
use crate::telemetry::metrics::{install, snapshot};

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a condition.
#[track_caller]
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

pub(super) struct Rig {
    pub(super) manager: ListenerManager,
    scope: String,
    config: CompiledBootstrap,
    pub(super) policy: DrainPolicy,
    commands: Vec<UnboundedReceiver<Command>>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    end: watch::Sender<bool>,
    pub(super) echo: TcpListener,
}

/// Responses announce their close at once, and connections stay until they end.
pub(super) const AT_ONCE: DrainPolicy =
    DrainPolicy { time: Duration::from_secs(600), gradual: false, ends: false };
pub(super) const GRADUAL: DrainPolicy =
    DrainPolicy { time: Duration::from_secs(600), gradual: true, ends: false };

impl Rig {
    /// Workers that have been started.
    pub(super) fn new(workers: usize, policy: DrainPolicy) -> Self {
        let mut rig = Self::idle(workers, policy);
        rig.start();
        rig
    }

    /// Workers that have not: as if each were busy with something long.
    pub(super) fn idle(workers: usize, policy: DrainPolicy) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        install();
        let scope = format!("listeners-test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = echo.local_addr().unwrap().port();
        let yaml = format!(
            "static_resources: {{ clusters: [ {{ name: echo, connect_timeout: 1s, load_assignment: {{ cluster_name: echo,
            endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1,
            port_value: {port} }} }} }} }} ] }} ] }} }}, {{ name: inside, load_assignment: {{ cluster_name: inside,
            endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ envoy_internal_address: {{
            server_listener_name: inside }} }} }} }} ] }} ] }} }} ] }}"
        );
        let config = compile::bootstrap(load(yaml, Format::Yaml).unwrap(), &NodeOptions::default()).unwrap();
        let (senders, commands) = (0..workers).map(|_| unbounded_channel()).unzip();
        let manager = ListenerManager::within(&Scope::raw(&scope), policy, senders);
        let (end, _) = watch::channel(false);
        Self { manager, scope, config, policy, commands, threads: Vec::new(), end, echo }
    }

    pub(super) fn start(&mut self) {
        for (index, commands) in std::mem::take(&mut self.commands).into_iter().enumerate() {
            let assignment = Assignment {
                index,
                commands,
                drains_end: self.policy.ends,
                clusters: self.config.clusters.clone(),
                runtime: self.config.compiler.runtime.clone(),
                server: None,
                drain: Arc::default(),
                rebalance: None,
                status: Arc::default(),
                end: self.end.subscribe(),
            };
            self.threads.push(std::thread::spawn(move || worker::run(assignment)));
        }
    }

    pub(super) fn compile(&self, yaml: &str) -> Listener {
        self.compile_message(&load::<pb::Listener>(yaml, Format::Yaml).unwrap().message)
    }

    pub(super) fn compile_message(&self, message: &pb::Listener) -> Listener {
        let environment = Environment {
            known: &|name| ["echo", "inside"].contains(&name),
            ..Environment::new(&self.config.compiler)
        };
        let mut problems = Problems::new();
        compile::listener::compile(message, &environment, &mut problems)
            .unwrap_or_else(|| panic!("{:?}", problems.into_parts()))
    }

    pub(super) fn apply(&mut self, yaml: &str) -> Result<Applied, ListenerError> {
        let listener = self.compile(yaml);
        self.manager.apply(listener, Origin::Dynamic)
    }

    /// A listener whose configured port is not 0: a free one outside the range of ports for clients.
    pub(super) fn apply_somewhere(&mut self, name: &str, body: &str) -> u16 {
        for _ in 0..50 {
            let port = fastrand::u16(10_000..30_000);
            match self.apply(&listener(name, port, "", &[http(body)])) {
                Ok(_) => return port,
                Err(ListenerError::Listen { source: ListenError::InUse(_), .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no free port");
    }

    /// Where a listener is bound.
    pub(super) fn port(&self, name: &str) -> u16 {
        let statuses = self.manager.statuses().load_full();
        let status = statuses.iter().find(|status| &*status.name == name).unwrap();
        let Address::Ip(address) = &status.addresses[0] else { panic!("{status:?}") };
        address.port()
    }

    #[track_caller]
    pub(super) fn counts(&self, expected: &[(&str, i64)]) {
        let snapshot = snapshot();
        for (name, value) in expected {
            assert_eq!(snapshot.number(&format!("{}.{name}", self.scope)), Some(*value), "{name}");
        }
    }

    /// The one connection that was relayed to the origin next.
    pub(super) fn relayed(&self) -> TcpStream {
        let (stream, _) = self.echo.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.end.send(true);
        for thread in self.threads.drain(..) {
            let ended = thread.join().expect("a worker");
            assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
        }
    }
}

/// A filter chain that answers HTTP requests with `body`.
pub(super) fn http(body: &str) -> String {
    format!(
        "{{ name: http, filters: [ {{ name: http, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: http, route_config: {{ name: routes, virtual_hosts: [ {{ name: all, domains: ['*'], routes: [
        {{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: '{body}' }} }} }} ] }} ] }},
        http_filters: [ {{ name: router, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }} ] }} }} ] }}"
    )
}

/// A filter chain for clients on 127.0.0.2 that relays to the origin.
pub(super) fn tcp(name: &str) -> String {
    format!(
        "{{ name: {name}, filter_chain_match: {{ source_prefix_ranges: [ {{ address_prefix: 127.0.0.2, prefix_len: 32 }} ] }},
        filters: [ {{ name: tcp, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
        stat_prefix: tcp, cluster: echo }} }} ] }}"
    )
}

pub(super) fn listener(name: &str, port: u16, options: &str, chains: &[String]) -> String {
    let chains = chains.join(", ");
    format!(
        "{{ name: {name}, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }},
        filter_chains: [ {chains} ] {options} }}"
    )
}

/// What makes a listener another one, without another address.
pub(super) fn another(number: usize) -> String {
    format!(", per_connection_buffer_limit_bytes: {}", 10_000 + number)
}

pub(super) fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// From 127.0.0.2.
pub(super) fn connect_from_two(port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 2], 0)))).unwrap();
    socket.connect(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], port)))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

/// Asks and returns the whole answer.
pub(super) fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        if length.is_some_and(|length| length.parse() == Ok(body.len())) {
            return Ok(text);
        }
    }
}

pub(super) fn closes(answer: &str) -> bool {
    answer.contains("connection: close")
}

/// Both ways through a relayed session.
pub(super) fn passes(client: &mut TcpStream, origin: &mut TcpStream) {
    let mut buffer = [0; 4];
    client.write_all(b"ping").unwrap();
    origin.read_exact(&mut buffer).unwrap();
    origin.write_all(&buffer).unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
}

#[track_caller]
pub(super) fn refuses(port: u16) {
    // A close on its way may still reset instead of refuse.
    eventually("the port is closed", || {
        connect(port).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

/// Clients that connect, ask once and go, in a tight loop while `script` runs; returns what they lost.
pub(super) fn under_connects(port: u16, script: impl FnOnce(&dyn Fn() -> usize)) -> (usize, Vec<String>) {
    let (done, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut lost = Vec::new();
    std::thread::scope(|scope| {
        let client = || {
            let mut lost = Vec::new();
            while !done.load(Ordering::Relaxed) {
                match connect(port).and_then(|mut stream| ask(&mut stream)) {
                    Ok(answer) if answer.starts_with("http/1.1 200") => {
                        good.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(answer) => lost.push(answer),
                    Err(error) => lost.push(error.to_string()),
                }
            }
            lost
        };
        let clients: Vec<_> = (0..2).map(|_| scope.spawn(client)).collect();
        script(&|| good.load(Ordering::Relaxed));
        done.store(true, Ordering::Relaxed);
        lost.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
    });
    (good.into_inner(), lost)
}
