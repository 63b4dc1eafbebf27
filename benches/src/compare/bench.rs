//! What all scenarios use: the origin, the certificates, free ports, and those compared as they are started, asked and
//! put under load.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::certs::Certs;
use super::configs::{Setup, Wire};
use super::peer::{Peer, Programs};
use super::process::{Memory, Process};
use super::result::{PeerResult, Status};
use super::scenario::{Load, Security};
use super::Error;
use crate::cli::{self, CommandLine};
use crate::clock;
use crate::generate::run::run;
use crate::generate::task::Stage;
use crate::result::RunResult;
use crate::tls::{self, Files};

/// The longest wait for a proxy to answer.
const READY: Duration = Duration::from_secs(120);
/// Endpoints of each cluster of a large configuration, each an address of the origin.
pub const ENDPOINTS: u8 = 10;
/// A configuration that is longer is cut in the result.
const PUBLISHED: usize = 16 << 10;
/// What the origin listens for.
const ORIGIN: [&str; 6] = ["http", "echo", "source", "tls+http", "tls+echo", "tls+source"];

/// A comparison at work.
pub struct Bench {
    /// Who is compared, in the order of tables.
    pub peers: Vec<Peer>,
    /// Rounds that count.
    pub rounds: u32,
    /// Seconds of a measurement.
    pub seconds: f64,
    /// For `run`.
    stage: Arc<Stage>,
    programs: Programs,
    cores: Option<(usize, usize)>,
    certs: Certs,
    /// Of clients that are not `run`'s.
    tls: Arc<ClientConfig>,
    origin: Vec<SocketAddr>,
    /// It ends before its directory does.
    _origin: Process,
    dir: Directory,
}

/// One of those compared, ready.
pub struct Running {
    /// Who.
    pub peer: Peer,
    /// Where load goes.
    pub address: SocketAddr,
    /// Where its administrator asks; nobody listens there for some.
    pub admin: SocketAddr,
    /// Nobody has none.
    pub process: Option<Process>,
    /// The one between it and the origin, of a pair.
    pub behind: Option<Process>,
    /// When it was started.
    pub begun: Option<Instant>,
    /// What is found.
    pub result: PeerResult,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    /// Starts the origin. From here on, the calling thread runs where load does.
    ///
    /// # Errors
    /// There is no place for files, or the origin does not start.
    pub fn start(
        programs: Programs,
        peers: Vec<Peer>,
        (rounds, seconds): (u32, f64),
        cores: Option<(usize, usize)>,
        stage: Arc<Stage>,
    ) -> Result<Self, Error> {
        let nonce = fastrand::u64(..);
        let dir = Directory(std::env::temp_dir().join(format!("outrigger-compare-{nonce:016x}")));
        let private =
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&dir.0);
        private.map_err(Error::io(&dir.0))?;
        let certs = Certs::make(&dir.0)?;
        let (cert, key) = certs.client.clone();
        let files = Files { ca: Some(certs.ca.clone()), cert: Some(cert), key: Some(key) };
        let tls = tls::client(&files, false, &[b"http/1.1"], false)?;
        if let Some((_, load)) = cores {
            clock::pin(load).map_err(Error::io(Path::new("core")))?;
        }
        let (process, origin) = start_origin(&programs, &certs, &dir.0, cores.map(|(_, load)| load))?;
        Ok(Self { peers, rounds, seconds, stage, programs, cores, certs, tls, origin, _origin: process, dir })
    }

    /// Whether a signal has come.
    pub fn stopped(&self) -> bool {
        self.stage.stop.load(Ordering::Relaxed)
    }

    /// Where the origin speaks this.
    fn origin(&self, load: &Load, secure: bool) -> SocketAddr {
        let plain = match load.wire {
            Wire::Tcp if load.download => 2,
            Wire::Tcp => 1,
            _ => 0,
        };
        self.origin.get(plain + if secure { ORIGIN.len() / 2 } else { 0 }).copied().unwrap_or(NOWHERE)
    }

    /// What a proxy is to do for this load.
    ///
    /// # Errors
    /// There is no free port.
    pub fn setup(&self, load: &Load, clusters: usize) -> Result<Setup, Error> {
        let secure_origin = load.security == Security::Both;
        let origin = self.origin(load, secure_origin);
        let addresses = if clusters > 0 { ENDPOINTS } else { 1 };
        let endpoint = |nth| SocketAddr::new(loopback(nth), origin.port());
        Ok(Setup {
            wire: load.wire,
            onward: load.onward.unwrap_or(load.wire),
            refuses: load.refused,
            secure_clients: load.security.of_clients(),
            secure_origin,
            listen: free()?,
            admin: free()?,
            endpoints: (0..addresses).map(endpoint).collect(),
            clusters,
            connections: 4096,
            control: None,
        })
    }

    /// Connects to `address`, over mTLS if that is wanted.
    ///
    /// # Errors
    /// There is no connection. Without a handshake the first use of it fails.
    pub fn connect(&self, address: SocketAddr, security: Security) -> io::Result<Box<dyn Speak>> {
        let stream = connect(address)?;
        if !security.of_clients() {
            return Ok(Box::new(stream));
        }
        let session = ClientConnection::new(self.tls.clone(), ServerName::from(address.ip()));
        Ok(Box::new(StreamOwned::new(session.map_err(io::Error::other)?, stream)))
    }

    /// The core of load and origin.
    pub fn load_core(&self) -> Option<usize> {
        self.cores.map(|(_, load)| load)
    }

    /// The configuration of `peer`, as results have it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn config(&self, peer: Peer, setup: &Setup) -> Result<String, Error> {
        let (_, text) = setup.write(peer, &self.dir.0, &self.certs)?;
        Ok(self.published(&text))
    }

    /// Without the names of directories, and not too long.
    fn published(&self, text: &str) -> String {
        let mut end = text.len().min(PUBLISHED);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let (shown, rest) = text.split_at(end);
        let cut =
            if rest.is_empty() { String::new() } else { format!("\n... and {} bytes more\n", rest.len()) };
        shown.replace(&self.dir.0.display().to_string(), "DIR") + &cut
    }

    /// Starts one of those compared, and does not wait for it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn launch(&self, peer: Peer, setup: &Setup) -> Result<Running, Error> {
        let (file, text) = setup.write(peer, &self.dir.0, &self.certs)?;
        let config = self.published(&text);
        let mut running = Running { address: setup.listen, admin: setup.admin, ..Running::new(peer, config) };
        let to = setup.endpoints.first().copied().unwrap_or(NOWHERE);
        if peer == Peer::None {
            running.address = to;
            return Ok(running);
        }
        self.begin(&mut running, self.programs.command(peer, &file, (setup.listen, to)));
        Ok(running)
    }

    /// Starts two: what comes to the first goes over mTLS to the second, and from there to the origin.
    fn launch_pair(&self, peer: Peer, setup: &Setup) -> Result<Running, Error> {
        if !peer.is_proxy() {
            return self.launch(peer, setup);
        }
        // The last speaks to the origin as the client speaks to the first.
        let second = Setup {
            wire: setup.onward,
            onward: setup.wire,
            secure_clients: true,
            listen: free()?,
            admin: free()?,
            ..setup.clone()
        };
        let mut behind = self.launch(peer, &second)?;
        self.wait(&mut behind);
        if behind.result.status != Status::Measured {
            return Ok(behind);
        }
        let first = Setup { secure_origin: true, endpoints: vec![second.listen], ..setup.clone() };
        let mut running = self.launch(peer, &first)?;
        running.result.config =
            format!("{}\n# beside the origin\n{}", running.result.config, behind.result.config);
        running.behind = behind.process;
        Ok(running)
    }

    fn begin(&self, running: &mut Running, command: Option<Command>) {
        let Some(command) = command else {
            return running.fail("its program was not found".to_owned());
        };
        let log = self.dir.0.join(format!("{}.log", running.peer));
        running.begun = Some(Instant::now());
        match Process::start(command, self.cores.map(|(proxy, _)| proxy), &log) {
            Ok(process) => running.process = Some(process),
            Err(error) => running.fail(format!("cannot be started: {error}")),
        }
    }

    /// Starts one that takes Envoy's configuration, with this one, in a group of users of its own.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn launch_as(&self, peer: Peer, config: &str, group: &str) -> Result<Running, Error> {
        let file = self.dir.0.join(format!("{peer}.json"));
        std::fs::write(&file, config).map_err(Error::io(&file))?;
        let mut running = Running::new(peer, self.published(config));
        let command = self.programs.command(peer, &file, (NOWHERE, NOWHERE)).map(|inner| {
            let mut command = Command::new("setpriv");
            command
                .args(["--regid", group, "--clear-groups"])
                .arg(inner.get_program())
                .args(inner.get_args());
            command
        });
        self.begin(&mut running, command);
        Ok(running)
    }

    /// Where the program of `peer` is.
    pub fn program(&self, peer: Peer) -> Option<&Path> {
        self.programs.of(peer)
    }

    /// Waits until it accepts connections, or ends.
    pub fn wait(&self, running: &mut Running) {
        let deadline = Instant::now() + READY;
        loop {
            self.check(running);
            if running.result.status != Status::Measured || self.stopped() {
                return;
            }
            if TcpStream::connect_timeout(&running.address, Duration::from_secs(1)).is_ok() {
                return;
            }
            if Instant::now() > deadline {
                return running.fail(format!("does not listen after {} s", READY.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Notices that it has ended.
    pub fn check(&self, running: &mut Running) {
        if let Some(reason) = running.process.as_mut().and_then(Process::ended) {
            let reason = reason.replace(&self.dir.0.display().to_string(), "DIR");
            running.result.status = Status::NotSupported { reason };
            running.process = None;
        }
    }

    /// Starts all that are compared, and has each answer a request; those that cannot have no process.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn start_all(&self, load: &Load, say: &mut dyn FnMut(&str)) -> Result<Vec<Running>, Error> {
        let mut all = Vec::new();
        for &peer in &self.peers {
            let setup = self.setup(load, 0)?;
            if load.security != Security::Plain && matches!(peer, Peer::Splice | Peer::Relay) {
                // Bytes pass through it, but then it is the origin that is measured.
                let mut running = Running::new(peer, String::new());
                running.result.status = Status::NotSupported { reason: "a relay ends no TLS".to_owned() };
                all.push(running);
                continue;
            }
            if let Some(reason) = cannot(peer, load) {
                let mut running = Running::new(peer, String::new());
                running.result.status = Status::NotSupported { reason: reason.to_owned() };
                say(&format!("  {peer}: not supported: {reason}"));
                all.push(running);
                continue;
            }
            let mut running = match load.security {
                Security::Between => self.launch_pair(peer, &setup)?,
                _ => self.launch(peer, &setup)?,
            };
            if peer == Peer::None {
                running.address = self.origin(load, setup.secure_clients);
            }
            self.wait(&mut running);
            if running.result.status == Status::Measured && !self.stopped() {
                self.probe(&mut running, load)?;
            }
            match &running.result.status {
                Status::NotSupported { reason } => say(&format!("  {peer}: not supported: {reason}")),
                Status::Failed { reason } => say(&format!("  {peer}: failed: {reason}")),
                Status::Measured | Status::NotYet { .. } => {}
            }
            all.push(running);
        }
        Ok(all)
    }

    /// Whether one request has the answer that it should.
    ///
    /// # Errors
    /// The generator cannot run.
    fn probe(&self, running: &mut Running, load: &Load) -> Result<(), Error> {
        let load = Load { connections: 1, streams: 1, ..load.clone() };
        let result = self.run(running, &load, &["-n", "2", "--timeout", "5s"])?;
        if answered_well(&result, &load) == 0 {
            let failures =
                result.requests.failed_by_reason.keys().chain(result.connections.failed_by_reason.keys());
            let statuses = result.by_status.keys().map(|status| format!("status {status}"));
            let reasons: Vec<_> = failures.cloned().chain(statuses).collect();
            running.fail(format!("no good answer: {}", reasons.join(", ")));
            running.process = None;
        }
        Ok(())
    }

    /// One run of load.
    ///
    /// # Errors
    /// The generator cannot run.
    pub fn run(&self, running: &Running, load: &Load, more: &[&str]) -> Result<RunResult, Error> {
        let secure = load.security.of_clients();
        let scheme = match (load.wire, secure) {
            (Wire::Http1, false) => "http",
            (Wire::Http1, true) => "https",
            (Wire::Http2, false) => "h2c",
            (Wire::Http2, true) => "h2",
            (Wire::Grpc, false) => "grpc",
            (Wire::Grpc, true) => "grpcs",
            (Wire::Tcp, false) => "tcp",
            (Wire::Tcp, true) => "tls",
        };
        let mut line: Vec<String> = vec!["outrigger-load".to_owned(), "run".to_owned(), "-q".to_owned()];
        line.push(format!("{scheme}://{}/", running.address));
        line.extend([
            "-c".to_owned(),
            load.connections.to_string(),
            "-m".to_owned(),
            load.streams.to_string(),
        ]);
        line.extend(["--name".to_owned(), running.peer.to_string()]);
        if let Some((_, core)) = self.cores {
            line.extend(["--pin".to_owned(), core.to_string()]);
        }
        if secure {
            let (cert, key) = &self.certs.client;
            for (flag, path) in [("--ca", &self.certs.ca), ("--cert", cert), ("--key", key)] {
                line.extend([flag.to_owned(), path.display().to_string()]);
            }
        }
        line.extend(load.flags.iter().chain(more).map(|&flag| flag.to_owned()));
        let plan = match CommandLine::try_parse_from(line).map(|line| line.command) {
            Ok(cli::Command::Run(args)) => args.plan()?,
            Ok(_) => return Err(Error::Origin("no run".to_owned())),
            Err(error) => return Err(Error::Origin(error.to_string())),
        };
        let stage = Arc::new(self.stage.again());
        run(&plan, &stage, &mut |_| ()).map_err(Error::io(Path::new("load")))
    }
}

/// Why this one cannot be compared under this load.
fn cannot(peer: Peer, load: &Load) -> Option<&'static str> {
    if load.refused && !matches!(peer, Peer::Outrigger | Peer::Envoy) {
        return Some("it has no such breaker");
    }
    let to_two = load.onward.is_some_and(|wire| wire != load.wire);
    (to_two && peer == Peer::Nginx).then_some("it speaks no HTTP/2 to others")
}

/// How many requests had the answer that they should.
pub fn answered_well(run: &RunResult, load: &Load) -> u64 {
    if load.refused {
        return run.by_status.get("503").copied().unwrap_or(0);
    }
    run.requests.successful
}

impl Running {
    /// One that is not started, with this configuration.
    fn new(peer: Peer, config: String) -> Self {
        let result = PeerResult { peer: peer.to_string(), config, ..PeerResult::default() };
        Self { peer, address: NOWHERE, admin: NOWHERE, process: None, behind: None, begun: None, result }
    }

    /// Nanoseconds of CPU that it has used, both of a pair; `None` of nobody.
    pub fn cpu(&self) -> Option<u64> {
        let process = self.process.as_ref()?;
        Some(process.cpu() + self.behind.as_ref().map_or(0, Process::cpu))
    }

    /// Its memory, that of both of a pair; `None` of nobody.
    pub fn memory(&self) -> Option<Memory> {
        let process = self.process.as_ref()?.memory();
        Some(match self.behind.as_ref().map(Process::memory) {
            None => process,
            Some(behind) => Memory {
                rss: process.rss + behind.rss,
                pss: process.pss.zip(behind.pss).map(|(one, other)| one + other),
            },
        })
    }

    /// It does not do what it should.
    pub fn fail(&mut self, reason: String) {
        self.result.status = Status::Failed { reason };
    }
}

/// What can be asked.
pub trait Speak: Read + Write {}

impl<T: Read + Write> Speak for T {}

/// A connection on which nothing takes longer than some seconds.
///
/// # Errors
/// There is none.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The smallest part of HTTP/1.1: sends a request, and takes the whole answer; its status.
///
/// # Errors
/// Those of the socket, and an answer that is none.
pub fn ask(stream: &mut dyn Speak, host: &str) -> io::Result<u16> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = match stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        answer.extend(part.iter().take(count));
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        if length.is_some_and(|length| body.len() >= length) {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            return status.ok_or_else(|| ErrorKind::InvalidData.into());
        }
    }
}

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn loopback(nth: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, nth.saturating_add(1)))
}

/// A port that nobody uses now.
fn free() -> Result<SocketAddr, Error> {
    let found = TcpListener::bind(NOWHERE).and_then(|listener| listener.local_addr());
    found.map_err(Error::io(Path::new("a free port")))
}

fn start_origin(
    programs: &Programs,
    certs: &Certs,
    dir: &Path,
    core: Option<usize>,
) -> Result<(Process, Vec<SocketAddr>), Error> {
    let port = free()?.port();
    let mut command = Command::new(&programs.tool);
    command.arg("serve");
    for (nth, kind) in ORIGIN.iter().enumerate() {
        command.arg("-l").arg(format!("{kind}=127.0.0.1:{}", if nth == 0 { port } else { 0 }));
    }
    for nth in 1..ENDPOINTS {
        command.arg("-l").arg(format!("http={}", SocketAddr::new(loopback(nth), port)));
    }
    for (flag, path) in [("--cert", &certs.server.0), ("--key", &certs.server.1), ("--client-ca", &certs.ca)]
    {
        command.arg(flag).arg(path);
    }
    if let Some(core) = core {
        command.args(["--pin", &core.to_string()]);
    }
    let log = dir.join("origin.log");
    let mut process = Process::start(command, core, &log).map_err(Error::io(&programs.tool))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let written = process.written();
        let listening = written.lines().filter_map(|line| line.strip_prefix("listening ")?.split_once('='));
        let found: Vec<_> = listening.filter_map(|(_, address)| address.parse::<SocketAddr>().ok()).collect();
        if found.len() == ORIGIN.len() + usize::from(ENDPOINTS) - 1 {
            return Ok((process, found));
        }
        if let Some(reason) = process.ended() {
            return Err(Error::Origin(reason));
        }
        if Instant::now() > deadline {
            return Err(Error::Origin("it does not say where it listens".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
