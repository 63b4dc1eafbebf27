//! The command line, and the plans it is turned into.
//!
//! The scheme of a target says what is talked: `http`, `https` (HTTP/1.1), `h2c`, `h2` (HTTP/2), `grpc`, `grpcs` (the
//! echo service), `ws`, `wss`, `tcp`, `tls`.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use rustls::pki_types::ServerName;

use crate::clock;
use crate::compare::relay::RelayArgs;
use crate::compare::CompareArgs;
use crate::generate::run::{GrpcKind, Plan, Protocol};
use crate::generate::task::Hello;
use crate::http1::{parse_answer, Body};
use crate::http2;
use crate::result::{Schedule, Work};
use crate::serve::behaviour::{Behaviour, Delay, Fault};
use crate::serve::{Listen, Settings};
use crate::tls::{self, Files};
use crate::units;

/// The whole command line.
#[derive(Parser)]
#[command(name = "outrigger-load", version, about = "Load generator and origin server of Outrigger")]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Put load on a target and measure.
    Run(Box<RunArgs>),
    /// Be the target: HTTP/1.1, HTTP/2, gRPC and WebSocket on one port, or raw TCP.
    Serve(ServeArgs),
    /// Make one HTML report of several results.
    Report(ReportArgs),
    /// Run the same work through Outrigger, other proxies and none, side by side.
    Compare(Box<CompareArgs>),
    /// Move bytes and do nothing else: the floor of the comparison.
    Relay(RelayArgs),
}

/// What is measured of raw TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcpKind {
    /// So many bytes there and back.
    Rr,
    /// Only there; the origin is a sink.
    Upload,
    /// Only back; the origin is a source.
    Download,
}

/// Arguments of `run`.
#[derive(Args)]
pub struct RunArgs {
    /// SCHEME://HOST[:PORT]/PATH with a scheme of http, https, h2c, h2, grpc, grpcs, ws, wss, tcp, tls.
    pub target: String,
    /// Connect there instead of the target's host and port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub connect: Option<SocketAddr>,
    /// Connections over all threads.
    #[arg(short, long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Requests at a time on a connection (HTTP/2 streams, messages of WebSocket and TCP).
    #[arg(short = 'm', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub streams: u32,
    /// Length of the measured time, such as 10s.
    #[arg(short, long, default_value = "10s", value_parser = units::duration)]
    pub duration: u64,
    /// Time before it that is not counted.
    #[arg(long, default_value = "0s", value_parser = units::duration)]
    pub warmup: u64,
    /// End after so many requests.
    #[arg(short = 'n', long)]
    pub requests: Option<u64>,
    /// Open loop: requests per second.
    #[arg(short, long, value_parser = rate)]
    pub rate: Option<f64>,
    /// With --rate: random arrivals instead of even ones.
    #[arg(long, requires = "rate")]
    pub poisson: bool,
    /// Open loop with a rate that grows or shrinks evenly: FROM-TO.
    #[arg(long, value_name = "FROM-TO", conflicts_with = "rate", value_parser = ramp)]
    pub ramp: Option<(f64, f64)>,
    /// Open loop with several rates, each for an equal time.
    #[arg(long, value_name = "RATE,RATE,..", value_delimiter = ',', conflicts_with_all = ["rate", "ramp"], value_parser = rate)]
    pub steps: Vec<f64>,
    /// Search for the highest rate whose p99 stays under this, such as 5ms. Every trial takes --duration; --rate is the
    /// first one.
    #[arg(long, value_name = "DURATION", conflicts_with_all = ["ramp", "steps", "requests"], value_parser = units::duration)]
    pub find_p99_under: Option<u64>,
    /// Threads.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Run on these cores only, a thread on each in turn.
    #[arg(long, value_name = "CORE,..", value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// The longest wait for an answer.
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    pub timeout: u64,
    /// How long to wait for answers after the end.
    #[arg(long, default_value = "1s", value_parser = units::duration)]
    pub grace: u64,
    /// HTTP method; by default GET, with a body POST.
    #[arg(short = 'X', long)]
    pub method: Option<String>,
    /// A header, NAME: VALUE.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// Bytes of a body, or of a message (gRPC, WebSocket, TCP).
    #[arg(long, value_parser = units::bytes)]
    pub size: Option<u64>,
    /// Close a connection after so many requests.
    #[arg(long, default_value_t = 0)]
    pub requests_per_connection: u64,
    /// Which gRPC method.
    #[arg(long, default_value = "unary")]
    pub grpc: GrpcKind,
    /// Messages of a streaming gRPC request.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub messages: u32,
    /// What to measure of raw TCP.
    #[arg(long, default_value = "rr")]
    pub tcp: TcpKind,
    /// Only open and close connections, with TLS by its handshake.
    #[arg(long)]
    pub handshake: bool,
    /// With --handshake: have one small answer on each connection, after the time that counts.
    #[arg(long, requires = "handshake")]
    pub hello: bool,
    /// With --handshake: resume sessions; --hello is then a matter of course, because many servers send their tickets
    /// only with an answer.
    #[arg(long, requires = "handshake")]
    pub resume: bool,
    /// Certificates to trust, PEM.
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Own certificate chain, PEM.
    #[arg(long)]
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long)]
    pub key: Option<PathBuf>,
    /// Trust any certificate.
    #[arg(long)]
    pub insecure: bool,
    /// Name that the server's certificate must have; by default the target's host.
    #[arg(long)]
    pub sni: Option<String>,
    /// What the result calls this run.
    #[arg(long)]
    pub name: Option<String>,
    /// Length of the intervals of the series.
    #[arg(long, value_parser = units::duration)]
    pub interval: Option<u64>,
    /// Seed of random arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON; `-` for the standard output, instead of the text.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write the result as a self-contained page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// No progress.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// KIND=ADDRESS:PORT with a kind of http, echo, sink, source, with `tls+` before it for TLS.
    #[arg(short, long, default_value = "http=127.0.0.1:8080")]
    pub listen: Vec<Listen>,
    /// Bytes of bodies.
    #[arg(long, default_value = "92", value_parser = units::bytes)]
    pub size: u64,
    /// Status of answers.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub status: u16,
    /// Before each answer: 5ms, uniform:1ms-5ms, exp:5ms or normal:5ms,1ms.
    #[arg(long)]
    pub delay: Option<Delay>,
    /// Share of requests that go wrong, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub fault_rate: f64,
    /// How: reset, close, stall, half, or a status.
    #[arg(long, default_value = "503")]
    pub fault: Fault,
    /// Close connections after so many requests.
    #[arg(long)]
    pub close_after: Option<u64>,
    /// Bodies in pieces: BYTES/PAUSE.
    #[arg(long, value_parser = units::pace)]
    pub slow: Option<(usize, u64)>,
    /// Stop everything at every so many requests: COUNT/DURATION.
    #[arg(long, value_parser = units::every)]
    pub stall: Option<(u64, u64)>,
    /// Threads.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Run on these cores only, a thread on each in turn.
    #[arg(long, value_name = "CORE,..", value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// Certificate chain for TLS, PEM; by default one is made.
    #[arg(long)]
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long)]
    pub key: Option<PathBuf>,
    /// Demand client certificates from there, PEM.
    #[arg(long)]
    pub client_ca: Option<PathBuf>,
}

/// Arguments of `report`.
#[derive(Args)]
pub struct ReportArgs {
    /// Results, as `run --json` writes them.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// The page.
    #[arg(short, long)]
    pub output: PathBuf,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e8).contains(&rate) => Ok(rate),
        _ => Err(format!("{text}: not a rate between 0.001 and 100000000 a second")),
    }
}

fn ramp(text: &str) -> Result<(f64, f64), String> {
    let (from, to) = text.split_once('-').ok_or_else(|| format!("{text}: not FROM-TO"))?;
    Ok((rate(from)?, rate(to)?))
}

/// Whether these are the whole answer of HTTP/1.1 to a GET; what is none is over too.
fn is_answer(bytes: &[u8]) -> bool {
    match parse_answer(bytes) {
        Err(_) => true,
        Ok(None) => false,
        Ok(Some(head)) => match head.body {
            Body::Length(length) => (bytes.len() - head.length) as u64 >= length,
            Body::Chunked => bytes.ends_with(b"0\r\n\r\n"),
            Body::UntilClose => true,
        },
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text}: not NAME: VALUE"))?;
    if name.is_empty() || text.contains(|c: char| c.is_ascii_control()) {
        return Err(format!("{text:?}: not NAME: VALUE"));
    }
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Why a command line is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target.
    #[error("{target}: {reason}")]
    Target {
        /// As it was given.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Two things that do not go together.
    #[error("{0}")]
    Flags(&'static str),
}

impl RunArgs {
    /// The plan that the arguments mean.
    ///
    /// # Errors
    /// A target or files that are of no use.
    pub fn plan(&self) -> Result<Plan, Error> {
        let bad = |reason: &str| Error::Target { target: self.target.clone(), reason: reason.to_owned() };
        let (scheme, rest) = self.target.split_once("://").ok_or_else(|| bad("no SCHEME://"))?;
        if rest.contains(|c: char| c.is_ascii_control() || c == ' ') {
            return Err(bad("has a space or a control character"));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let secure = matches!(scheme, "https" | "h2" | "grpcs" | "wss" | "tls");
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host_port = match (has_port, scheme) {
            (true, _) => authority.to_owned(),
            (false, "tcp" | "tls") if self.connect.is_none() => return Err(bad("needs a port")),
            (false, _) => format!("{authority}:{}", if secure { 443 } else { 80 }),
        };
        let host = host_port.rsplit_once(':').map_or("", |(host, _)| host);
        let address = match self.connect {
            Some(address) => address,
            None => {
                let mut found = host_port.to_socket_addrs().map_err(|error| bad(&error.to_string()))?;
                found.next().ok_or_else(|| bad("has no address"))?
            }
        };
        let (label, protocol) =
            self.protocol(scheme, authority, path, secure).map_err(|reason| match reason {
                Some(flags) => Error::Flags(flags),
                None => bad("unknown scheme"),
            })?;
        let tls = match secure {
            false => None,
            true => {
                let files = Files { ca: self.ca.clone(), cert: self.cert.clone(), key: self.key.clone() };
                let protocols: &[&[u8]] = match scheme {
                    "h2" | "grpcs" => &[b"h2"],
                    "https" | "wss" => &[b"http/1.1"],
                    _ => &[],
                };
                let config = tls::client(&files, self.insecure, protocols, self.resume)?;
                let name = self.sni.as_deref().unwrap_or(host.trim_matches(['[', ']']));
                let name =
                    ServerName::try_from(name.to_owned()).map_err(|_| bad("no name for a certificate"))?;
                Some((config, name))
            }
        };
        let schedule = self.schedule();
        let (messages, request_bytes) = match &protocol {
            Protocol::Grpc { kind: GrpcKind::Unary, size, .. } => (1, *size as u64),
            Protocol::Grpc { size, .. } => (self.messages, *size as u64),
            Protocol::Http2 { body, .. } => (1, body.len() as u64),
            Protocol::WebSocket { size, .. } => (1, *size as u64),
            Protocol::Tcp { send, .. } => (1, *send as u64),
            Protocol::Http1 { .. } => (1, self.size.unwrap_or(0)),
            Protocol::Handshake { .. } => (1, 0),
        };
        let tls_name = match (secure, &self.cert) {
            (false, _) => "none",
            (true, None) => "tls",
            (true, Some(_)) => "mtls",
        };
        let work = Work {
            protocol: label.to_owned(),
            target: self.target.clone(),
            tls: tls_name.to_owned(),
            schedule,
            connections: self.connections,
            streams: if matches!(protocol, Protocol::Http1 { .. }) { 1 } else { self.streams },
            messages,
            request_bytes,
            requests_per_connection: self.requests_per_connection,
            threads: self.threads,
            pinned: self.pin.clone(),
            duration_s: if self.requests.is_some() { 86_400.0 } else { clock::seconds(self.duration) },
            warmup_s: clock::seconds(self.warmup),
            timeout_s: clock::seconds(self.timeout),
        };
        let name = self.name.clone().unwrap_or_else(|| format!("{label} {}", self.target));
        Ok(Plan {
            name,
            work,
            address,
            tls,
            protocol,
            requests: self.requests,
            grace_s: clock::seconds(self.grace),
            interval_s: match (self.interval, self.requests) {
                (None, Some(_)) => Some(1.0),
                (interval, _) => interval.map(clock::seconds),
            },
            seed: self.seed,
        })
    }

    fn schedule(&self) -> Schedule {
        match (self.rate, self.ramp, &*self.steps) {
            (Some(rate), ..) if self.poisson => Schedule::Poisson { rate },
            (Some(rate), ..) => Schedule::Constant { rate },
            (_, Some((from, to)), _) => Schedule::Ramp { from, to },
            (_, _, rates @ [_, ..]) => Schedule::Steps { rates: rates.to_vec() },
            _ => Schedule::Closed,
        }
    }

    /// Its name and what it is; without a reason the scheme is unknown.
    fn protocol(
        &self,
        scheme: &str,
        authority: &str,
        path: &str,
        secure: bool,
    ) -> Result<(&'static str, Protocol), Option<&'static str>> {
        let size = |default: u64| self.size.unwrap_or(default).min(1 << 30) as usize;
        let body = Bytes::from(vec![b'x'; size(0)]);
        let method = self.method.as_deref().unwrap_or(if body.is_empty() { "GET" } else { "POST" });
        let fields = |method: &str, path: &str| {
            let scheme = if secure { "https" } else { "http" };
            let pseudo =
                [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)];
            let mut fields: Vec<_> = pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            fields.push(("user-agent".to_owned(), "outrigger-load".to_owned()));
            fields
        };
        let own = || self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        let named = |name: &str| self.headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
        let head = |method: &str| {
            let mut text = format!("{method} {path} HTTP/1.1\r\n");
            if !named("host") {
                text.push_str(&format!("Host: {authority}\r\n"));
            }
            if !named("user-agent") {
                text.push_str("User-Agent: outrigger-load\r\n");
            }
            self.headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
            text
        };
        if self.handshake {
            let hello = match scheme {
                "http" | "https" | "ws" | "wss" => {
                    Hello { bytes: (head("GET") + "\r\n").into(), answered: is_answer }
                }
                // A connection's beginning is answered with another one.
                "h2c" | "h2" | "grpc" | "grpcs" => {
                    Hello { bytes: http2::beginning().into(), answered: |bytes| !bytes.is_empty() }
                }
                "tcp" | "tls" => {
                    Hello { bytes: vec![b'x'; size(1)].into(), answered: |bytes| !bytes.is_empty() }
                }
                _ => return Err(None),
            };
            let hello = (self.hello || self.resume).then_some(hello);
            return Ok(("handshake", Protocol::Handshake { hello }));
        }
        Ok(match scheme {
            "http" | "https" => {
                let mut request = head(method);
                if !body.is_empty() {
                    request.push_str(&format!("Content-Length: {}\r\n", body.len()));
                }
                request.push_str("\r\n");
                let request = [request.as_bytes(), &body].concat().into();
                ("http1", Protocol::Http1 { request, head_only: method == "HEAD" })
            }
            "h2c" | "h2" => {
                let mut fields = fields(method, path);
                if !body.is_empty() {
                    fields.push(("content-length".to_owned(), body.len().to_string()));
                }
                fields.extend(own());
                ("http2", Protocol::Http2 { fields, body })
            }
            "grpc" | "grpcs" => {
                let (label, name) = match self.grpc {
                    GrpcKind::Unary => ("grpc-unary", "Unary"),
                    GrpcKind::ServerStream => ("grpc-server-stream", "Download"),
                    GrpcKind::ClientStream => ("grpc-client-stream", "Upload"),
                    GrpcKind::Bidi => ("grpc-bidi", "Chat"),
                };
                let mut fields = fields("POST", &format!("/outrigger.load.v1.Echo/{name}"));
                fields.push(("content-type".to_owned(), "application/grpc".to_owned()));
                fields.push(("te".to_owned(), "trailers".to_owned()));
                fields.extend(own());
                (label, Protocol::Grpc { fields, kind: self.grpc, size: size(92) })
            }
            "ws" | "wss" => {
                let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                               Sec-WebSocket-Key: b3V0cmlnZ2VyLWxvYWQta2V5\r\n\r\n";
                let upgrade = (head("GET") + upgrade).into_bytes();
                ("websocket", Protocol::WebSocket { upgrade, size: size(92) })
            }
            "tcp" | "tls" => match self.tcp {
                _ if self.size == Some(0) => return Err(Some("--size must not be 0 for raw TCP")),
                TcpKind::Rr => ("tcp-rr", Protocol::Tcp { send: size(92), receive: size(92) as u64 }),
                TcpKind::Upload => ("tcp-upload", Protocol::Tcp { send: size(64 << 10), receive: 0 }),
                TcpKind::Download => {
                    ("tcp-download", Protocol::Tcp { send: 0, receive: size(64 << 10) as u64 })
                }
            },
            _ => return Err(None),
        })
    }
}

impl ServeArgs {
    /// The settings that the arguments mean.
    ///
    /// # Errors
    /// Files that are of no use.
    pub fn settings(&self) -> Result<Settings, Error> {
        if !(0.0..=1.0).contains(&self.fault_rate) {
            return Err(Error::Flags("--fault-rate is a share from 0 to 1"));
        }
        let tls = if self.listen.iter().any(|listen| listen.tls) {
            let files = Files { ca: self.client_ca.clone(), cert: self.cert.clone(), key: self.key.clone() };
            Some(tls::server(&files, &[b"h2", b"http/1.1"])?)
        } else {
            None
        };
        let behaviour = Behaviour {
            status: self.status,
            size: self.size.min(1 << 30) as usize,
            delay: self.delay,
            faults: (self.fault_rate > 0.0).then_some((self.fault_rate, self.fault)),
            close_after: self.close_after,
            slow: self.slow,
            stall: self.stall,
        };
        Ok(Settings {
            listen: self.listen.clone(),
            tls,
            behaviour,
            threads: self.threads,
            pin: self.pin.clone(),
        })
    }
}
