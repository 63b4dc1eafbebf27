//! A closed-loop load generator for HTTP/1.1: every connection sends its next request once it has the whole answer to
//! the one before. Latencies are therefore those of a server that is never asked for more than it manages; they say
//! nothing about waiting in front of an overloaded one.

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{spawn_local, LocalSet};
use tokio::time::{timeout_at, Instant};

/// Latencies above this, in microseconds, count as this.
const SLOWEST: u64 = 60_000_000;
/// The longest head of an answer that is read.
const MAX_HEAD: usize = 64 * 1024;
/// How long to wait after a failed connection before the next try, so that a server that is gone costs no CPU.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Parser)]
#[command(name = "outrigger-load", about = "Load generator of Outrigger")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// GET one URL over HTTP/1.1 keep-alive connections.
    Http(HttpArgs),
}

#[derive(Args)]
struct HttpArgs {
    /// Where to ask: http://HOST[:PORT]/PATH.
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections: u32,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Run on this core only.
    #[arg(long, value_name = "CORE")]
    pin: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let CommandLine { command: Command::Http(args) } = CommandLine::parse();
    match http(&args) {
        Ok(results) => {
            println!("{}", if args.json { results.json() } else { results.text() });
            // No answer at all is no measurement.
            if results.latencies.is_empty() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            eprintln!("outrigger-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn http(args: &HttpArgs) -> Result<Results, String> {
    if let Some(core) = args.pin {
        pin(core)?;
    }
    let (address, request) = target(&args.url)?;
    let latencies = Histogram::new_with_bounds(1, SLOWEST, 3).map_err(|error| error.to_string())?;
    let load = Rc::new(Load {
        address,
        request,
        until: Cell::new(Instant::now()),
        latencies: RefCell::new(latencies),
        errors: Cell::new(0),
        other_statuses: Cell::new(0),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let began = runtime.block_on(LocalSet::new().run_until(async {
        let began = Instant::now();
        load.until.set(began + Duration::from_secs(args.seconds));
        let connections: Vec<_> = (0..args.connections)
            .map(|_| {
                let load = load.clone();
                spawn_local(async move { load.ask_until_the_end().await })
            })
            .collect();
        for connection in connections {
            if connection.await.is_err() {
                load.errors.set(load.errors.get() + 1);
            }
        }
        began
    }));
    let took = began.elapsed();
    let latencies = load.latencies.borrow().clone();
    Ok(Results { took, latencies, errors: load.errors.get(), other_statuses: load.other_statuses.get() })
}

/// The address to connect to and the request to send.
fn target(url: &str) -> Result<(SocketAddr, Vec<u8>), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} does not start with http://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    if rest.contains(|c: char| c.is_ascii_control() || c == ' ') {
        return Err(format!("{url:?} has a space or a control character"));
    }
    let port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let host_port = if port { authority.to_owned() } else { format!("{authority}:80") };
    let mut found = host_port.to_socket_addrs().map_err(|error| format!("{host_port}: {error}"))?;
    let address = found.next().ok_or_else(|| format!("{host_port} has no address"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: outrigger-load\r\n\r\n");
    Ok((address, request.into_bytes()))
}

/// `sched_setaffinity` has no safe wrapper among our dependencies; `taskset` does the same from outside.
fn pin(core: usize) -> Result<(), String> {
    let cores = core.to_string();
    let pid = std::process::id().to_string();
    let done = std::process::Command::new("taskset").args(["-pc", &cores, &pid]).output();
    match done {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("cannot run on core {core}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("cannot run on core {core}: taskset: {error}")),
    }
}

struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    until: Cell<Instant>,
    latencies: RefCell<Histogram<u64>>,
    /// Connections that could not be made, broke, or brought something that is no answer.
    errors: Cell<u64>,
    /// Answers that are not 2xx; they are counted among the latencies too.
    other_statuses: Cell<u64>,
}

impl Load {
    /// One connection, made again after an error.
    async fn ask_until_the_end(&self) {
        while Instant::now() < self.until.get() {
            // A request that the end cuts off is neither an answer nor an error.
            let Ok(ended) = timeout_at(self.until.get(), self.ask()).await else { return };
            if ended.is_err() {
                self.errors.set(self.errors.get() + 1);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Asks until the server closes in good order (`Ok`) or something breaks.
    async fn ask(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let began = Instant::now();
            stream.write_all(&self.request).await?;
            let answer = read_answer(&mut stream, &mut buffer).await?;
            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(SLOWEST);
            self.latencies.borrow_mut().saturating_record(micros.max(1));
            if !(200..300).contains(&answer.status) {
                self.other_statuses.set(self.other_statuses.get() + 1);
            }
            if answer.close {
                return Ok(());
            }
        }
    }
}

#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    close: bool,
    /// Bytes of the head, its empty line included.
    len: usize,
    body: Body,
}

#[derive(Debug, PartialEq)]
enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

/// Reads one whole answer; bytes after it are an error, for nothing else was asked for.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<Head> {
    let mut filled = 0;
    let head = loop {
        let got = stream.read(buffer.get_mut(filled..).unwrap_or_default()).await?;
        if got == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        filled += got;
        if let Some(head) = parse_head(buffer.get(..filled).unwrap_or_default())? {
            break head;
        }
        if filled >= MAX_HEAD.min(buffer.len()) {
            return Err(invalid());
        }
    };
    let mut rest = filled - head.len;
    match head.body {
        Body::Length(len) => {
            while rest < len {
                rest += more(stream, buffer).await?;
            }
            if rest > len {
                return Err(invalid());
            }
        }
        Body::UntilClose => while stream.read(buffer).await? > 0 {},
        Body::Chunked => {
            let mut chunks = Chunks::default();
            let mut done = chunks.take(buffer.get(head.len..filled).unwrap_or_default())?;
            while !done {
                let got = more(stream, buffer).await?;
                done = chunks.take(buffer.get(..got).unwrap_or_default())?;
            }
        }
    }
    Ok(head)
}

async fn more(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream.read(buffer).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        got => Ok(got),
    }
}

fn invalid() -> std::io::Error {
    std::io::ErrorKind::InvalidData.into()
}

/// The head at the start of the bytes, if it is whole.
fn parse_head(bytes: &[u8]) -> std::io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default()).map_err(|_| invalid())?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).ok_or_else(invalid)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(invalid)?;
    let mut close = status_line.starts_with('0');
    let mut body = if matches!(status, 204 | 304) { Body::Length(0) } else { Body::UntilClose };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            body = Body::Length(value.parse().map_err(|_| invalid())?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            close |= value.eq_ignore_ascii_case("close");
        }
    }
    close |= body == Body::UntilClose;
    Ok(Some(Head { status, close, len: end + 4, body }))
}

/// Finds the end of a chunked body, byte by byte where lines are, in strides where data is.
#[derive(Default)]
struct Chunks {
    /// Data of the current chunk still to come, with its line end.
    data: usize,
    line: Vec<u8>,
    /// The last chunk has come; the trailers are left.
    last: bool,
}

impl Chunks {
    /// Whether the body is complete.
    fn take(&mut self, mut bytes: &[u8]) -> std::io::Result<bool> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.data > 0 {
                let step = self.data.min(bytes.len());
                self.data -= step;
                bytes = bytes.get(step..).unwrap_or_default();
                continue;
            }
            bytes = rest;
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > MAX_HEAD {
                    return Err(invalid());
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let text = std::str::from_utf8(&line).map_err(|_| invalid())?.trim_end_matches('\r');
            if self.last {
                match text {
                    "" if rest.is_empty() => return Ok(true),
                    "" => return Err(invalid()),
                    _ => continue,
                }
            }
            let size = text.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| invalid())?;
            self.last = size == 0;
            self.data = if self.last { 0 } else { size.checked_add(2).ok_or_else(invalid)? };
        }
        Ok(false)
    }
}

struct Results {
    took: Duration,
    latencies: Histogram<u64>,
    errors: u64,
    other_statuses: u64,
}

impl Results {
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64().max(0.001)
    }

    fn at(&self, quantile: f64) -> u64 {
        self.latencies.value_at_quantile(quantile)
    }

    fn text(&self) -> String {
        format!(
            "{} requests in {:.2} s: {:.0}/s\n{} errors, {} answers other than 2xx\n\
             latency in us: p50 {}, p90 {}, p99 {}, max {}",
            self.latencies.len(),
            self.took.as_secs_f64(),
            self.rate(),
            self.errors,
            self.other_statuses,
            self.at(0.5),
            self.at(0.9),
            self.at(0.99),
            self.latencies.max(),
        )
    }

    fn json(&self) -> String {
        serde_json::json!({
            "requests": self.latencies.len(),
            "seconds": self.took.as_secs_f64(),
            "requests_per_second": self.rate(),
            "errors": self.errors,
            "other_statuses": self.other_statuses,
            "latency_us": {
                "p50": self.at(0.5), "p90": self.at(0.9), "p99": self.at(0.99), "max": self.latencies.max(),
            },
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let head = parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap().unwrap();
        assert_eq!(head, Head { status: 200, close: false, len: 38, body: Body::Length(5) });
        let head = parse_head(b"HTTP/1.0 404 No\r\n\r\n").unwrap().unwrap();
        assert_eq!(head, Head { status: 404, close: true, len: 19, body: Body::UntilClose });
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\n").unwrap(), None);
        assert!(parse_head(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_end_where_they_end_however_they_are_cut() {
        let body = b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nt: v\r\n\r\n";
        for cut in 0..body.len() {
            let (front, back) = body.split_at(cut);
            let mut chunks = Chunks::default();
            assert!(!chunks.take(front).unwrap(), "cut at {cut}");
            assert!(chunks.take(back).unwrap(), "cut at {cut}");
        }
        assert!(Chunks::default().take(b"x\r\n").is_err());
        assert!(Chunks::default().take(b"0\r\n\r\nmore").is_err());
    }

    #[test]
    fn urls_are_taken_apart() {
        let (address, request) = target("http://127.0.0.1:8080/a?b").unwrap();
        assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], 8080)));
        assert!(request.starts_with(b"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"));
        assert_eq!(target("http://127.0.0.1").unwrap().0.port(), 80);
        assert!(target("https://127.0.0.1/").is_err());
        assert!(target("http://127.0.0.1/a b").is_err());
    }
}
