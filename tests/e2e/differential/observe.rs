//! Runs one case against one proxy and writes down what happened as sorted `key: value` lines, with everything that
//! may lawfully differ between two runs (ports, dates, durations, random ids) replaced by its kind.

use super::case::{After, Case, Step};
use crate::harness::client::Client;
use crate::harness::http1::{Framing, Message, ReadError};
use crate::harness::origin::Origin;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use std::fmt;
use std::time::Duration;

/// A proxy and its origins.
pub struct Side {
    pub proxy: Proxy,
    pub origins: Vec<(&'static str, Origin)>,
}

/// What happened, as sorted lines.
pub struct Observation {
    lines: Vec<(String, String)>,
    /// Heads as they stood on the wire, for a reader of the report.
    heads: String,
}

const PROBE: &[u8] = b"GET /probe HTTP/1.1\r\nHost: probe.test\r\n\r\n";

/// How long a response may take: the slowest case waits for a timeout of one second.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a request that is cut off may take to end at the origin.
const SETTLED: Duration = Duration::from_secs(1);

impl Observation {
    /// Sorted lines.
    pub fn new(lines: Vec<(String, String)>) -> Observation {
        Observation { lines, heads: String::new() }
    }

    /// The lines in which the other differs; `ignored` are prefixes of keys.
    pub fn compare(&self, other: &Observation, ignored: &[&str]) -> Option<String> {
        let relevant = |lines: &[(String, String)]| -> Vec<(String, String)> {
            lines.iter().filter(|(k, _)| !ignored.iter().any(|i| k.starts_with(i))).cloned().collect()
        };
        let (mut theirs, mut mine) = (relevant(&self.lines), relevant(&other.lines));
        let common: Vec<_> = theirs.clone();
        for line in common {
            if let Some(at) = mine.iter().position(|l| *l == line) {
                mine.remove(at);
                let at = theirs.iter().position(|l| *l == line).unwrap_or(0);
                theirs.remove(at);
            }
        }
        if theirs.is_empty() && mine.is_empty() {
            return None;
        }
        let mut text = String::new();
        for (key, value) in theirs {
            text += &format!("  only Envoy:     {key}: {value}\n");
        }
        for (key, value) in mine {
            text += &format!("  only Outrigger: {key}: {value}\n");
        }
        Some(text)
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Complains unless this is the status line of the first response.
    pub fn answered(&self, expected: &str) -> Option<String> {
        let status = self.get("response[0].status").unwrap_or("none");
        (status != expected).then(|| format!("  should answer {expected}, not {status}\n"))
    }

    /// Complains unless this is a 400, a closed connection and an origin that saw nothing.
    pub fn refused(&self) -> Option<String> {
        let status = self.get("response[0].status").unwrap_or("none");
        let mut text = String::new();
        if status != "HTTP/1.1 400 Bad Request" {
            text += &format!("  should answer 400, not {status}\n");
        }
        if self.get("connection") != Some("closed") {
            text += &format!("  should close, but: {}\n", self.get("connection").unwrap_or("?"));
        }
        if let Some((key, value)) = self.lines.iter().find(|(k, _)| k.starts_with("origin")) {
            text += &format!("  the origin saw {key}: {value}\n");
        }
        (!text.is_empty()).then_some(text)
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.lines {
            writeln!(f, "  {key}: {value}")?;
        }
        write!(f, "{}", self.heads)
    }
}

/// Replaces what differs from run to run inside a value.
pub struct Mask {
    replacements: Vec<(String, String)>,
}

impl Mask {
    /// For what one side says; `client` is the port of the client's end, 0 for none.
    pub fn new(side: &Side, client: u16) -> Mask {
        let mut replacements = Vec::new();
        if client != 0 {
            replacements.push((format!(":{client}"), ":<client>".to_string()));
        }
        for (name, origin) in &side.origins {
            replacements.push((format!(":{}", origin.port()), format!(":<origin-{name}>")));
        }
        for (name, port) in side.proxy.ports() {
            replacements.push((format!(":{port}"), format!(":<port-{name}>")));
        }
        replacements.extend(own_addresses().into_iter().map(|a| (a, "<own address>".to_string())));
        Mask { replacements }
    }

    /// One more thing to replace.
    pub fn also(&mut self, from: &str, to: &str) {
        self.replacements.push((from.to_string(), to.to_string()));
    }

    pub fn text(&self, value: &str) -> String {
        let mut value = value.to_string();
        for (from, to) in &self.replacements {
            value = value.replace(from, to);
        }
        value
    }

    /// The value of a field, without what is random in it; `sent` is what the client sent.
    pub fn header(&self, name: &str, value: &str, sent: &str) -> String {
        let uuid = |v: &str| {
            let b = v.as_bytes();
            b.len() == 36
                && b.iter().enumerate().all(|(i, c)| match i {
                    8 | 13 | 18 | 23 => *c == b'-',
                    _ => c.is_ascii_digit() || (b'a'..=b'f').contains(c),
                })
        };
        match name {
            "date" if value.len() == 29 && value.ends_with(" GMT") => "<date>".to_string(),
            "x-envoy-upstream-service-time" if value.parse::<u64>().is_ok() => "<milliseconds>".to_string(),
            // What is left for a retry: the next half second.
            "x-envoy-expected-rq-timeout-ms" => match value.parse::<u64>() {
                Ok(left) if left > 500 => left.next_multiple_of(500).to_string(),
                _ => self.text(value),
            },
            "x-request-id" if uuid(value) && !sent.contains(value) => {
                format!("<uuid, version {}>", &value[14..15])
            }
            "x-forwarded-port" => self.text(&format!(":{value}")),
            _ => self.text(value),
        }
    }
}

/// The machine's addresses other than loopback: Envoy puts one of them where a client on loopback would stand.
fn own_addresses() -> Vec<String> {
    let output = std::process::Command::new("hostname").arg("-I").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().map(str::to_string).collect()
}

/// Runs the case.
pub async fn observe(side: &Side, case: &Case) -> Observation {
    for (_, origin) in &side.origins {
        origin.take();
        let script = case.script.clone();
        origin.answer(move |request| script(request));
    }
    let logged = side.proxy.length("access.log");
    let mut lines = Vec::new();
    let mut heads = String::new();
    let Ok(mut client) = Client::connect(side.proxy.port(case.listener)).await else {
        return Observation { lines: vec![("connection".into(), "refused".into())], heads };
    };
    let mask = Mask::new(side, client.local().port());
    let mut responses = Vec::new();
    let mut tunnel = Vec::new();
    let mut ended = None;
    let mut dropped = false;
    for step in &case.steps {
        match step {
            Step::Send(bytes) => {
                // A proxy that has refused already may have closed; what it said is read below.
                let _ = client.send(bytes).await;
            }
            Step::Read => read(&mut client, case, &mut responses, &mut ended).await,
            Step::Origin(n) => {
                let seen = || async { side.origins.iter().map(|(_, o)| o.peek()).sum::<usize>() >= *n };
                if !eventually(PATIENCE, seen).await {
                    lines.push(("origin".to_string(), format!("saw fewer than {n} requests")));
                }
            }
            Step::Finish => drop(client.finish().await),
            Step::Drop => dropped = true,
            Step::Tunnel(bytes) => {
                while ended.is_none() && finals(&responses) < case.responses {
                    read(&mut client, case, &mut responses, &mut ended).await;
                }
                let _ = client.send(bytes).await;
                tunnel.extend(bytes_back(&mut client, bytes.len()).await);
            }
        }
    }
    while !dropped && ended.is_none() && finals(&responses) < case.responses {
        read(&mut client, case, &mut responses, &mut ended).await;
    }
    let final_responses = finals(&responses);
    let connection =
        if dropped { String::from("dropped by the client") } else { end(&mut client, case, ended).await };
    let local = client.local();
    drop(client);
    lines.push(("connection".to_string(), connection));
    if !tunnel.is_empty() {
        lines.push(("tunnel".to_string(), tunnel.escape_ascii().to_string()));
    }

    let sent: String = case.steps.iter().fold(String::new(), |mut text, step| {
        if let Step::Send(bytes) = step {
            text += &bytes.iter().map(|b| char::from(*b)).collect::<String>();
        }
        text
    });
    for (i, message) in responses.iter().enumerate() {
        describe(&mut lines, &mask, &format!("response[{i}]"), "status", message, (&sent, case.spelled));
        heads += &format!("  <<< {}\n", message.raw_head.escape_ascii());
    }
    if case.mirrored > 0 {
        let seen = || async { side.origins.iter().map(|(_, o)| o.peek()).sum::<usize>() >= case.mirrored };
        if !eventually(PATIENCE, seen).await {
            lines.push(("origin".to_string(), format!("saw fewer than {} requests", case.mirrored)));
        }
    }
    // A request that was cut off ends at the origin a moment after its client has its answer.
    eventually(SETTLED, || async { !side.origins.iter().any(|(_, o)| o.is_reading()) }).await;
    for (name, origin) in &side.origins {
        for (i, request) in origin.take().iter().enumerate() {
            if case.partial {
                if request.complete {
                    lines.push((format!("origin-{name}"), "saw a whole request".to_string()));
                }
            } else {
                let place = format!("origin-{name}[{i}]");
                describe(&mut lines, &mask, &place, "line", request, (&sent, case.spelled));
            }
            heads += &format!("  >>> {}: {}\n", name, request.raw_head.escape_ascii());
        }
    }
    let expected = case.lines.unwrap_or(final_responses);
    log(&mut lines, &mask, side, "access.log", (logged, local.port()), expected).await;
    if lines.iter().any(|(key, _)| key.starts_with("response") && key.ends_with(".decoded")) {
        for (_, value) in lines.iter_mut().filter(|(key, _)| key.starts_with("log") && key.ends_with(".sent"))
        {
            *value = "<as coded>".to_string();
        }
    }
    lines.sort();
    Observation { lines, heads }
}

fn finals(responses: &[Message]) -> usize {
    responses.iter().filter(|r| r.status() >= 200 || r.status() == 101).count()
}

async fn read(client: &mut Client, case: &Case, responses: &mut Vec<Message>, ended: &mut Option<String>) {
    match client.response_within(case.to_head, PATIENCE).await {
        Some(Ok(message)) => responses.push(message),
        Some(Err(ReadError::Malformed(what))) => *ended = Some(format!("malformed: {what}")),
        // Whether a close arrives as FIN or as reset depends on what was unread at that moment.
        Some(Err(ReadError::Closed(rest))) if !rest.is_empty() => {
            *ended = Some(format!("closed after {:?}", String::from_utf8_lossy(&rest)));
        }
        Some(Err(_)) => *ended = Some("closed".to_string()),
        None => *ended = Some("no response".to_string()),
    }
}

async fn bytes_back(client: &mut Client, n: usize) -> Vec<u8> {
    let wait = async {
        while client.reader.buffered.len() < n {
            if !client.reader.fill().await.unwrap_or(false) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, wait).await;
    std::mem::take(&mut client.reader.buffered)
}

async fn end(client: &mut Client, case: &Case, ended: Option<String>) -> String {
    if let Some(ended) = ended {
        return ended;
    }
    match case.after {
        After::Nothing => "not looked at".to_string(),
        After::Close if client.closed(PATIENCE).await => "closed".to_string(),
        After::Close => "still open".to_string(),
        After::Probe => {
            if client.send(PROBE).await.is_err() {
                return "closed".to_string();
            }
            match client.response_within(false, PATIENCE).await {
                Some(Ok(m)) if m.text() == "probe" => "kept".to_string(),
                Some(Ok(m)) => format!("answers the next request with {} {:?}", m.start_line, m.text()),
                Some(Err(ReadError::Closed(rest))) if !rest.is_empty() => {
                    format!("closed after {:?}", String::from_utf8_lossy(&rest))
                }
                Some(Err(ReadError::Malformed(what))) => format!("malformed: {what}"),
                Some(Err(_)) => "closed".to_string(),
                None => "still open, the next request is not answered".to_string(),
            }
        }
    }
}

fn describe(
    lines: &mut Vec<(String, String)>,
    mask: &Mask,
    place: &str,
    first: &str,
    message: &Message,
    (sent, spelled): (&str, bool),
) {
    lines.push((format!("{place}.{first}"), mask.text(&message.start_line)));
    for (name, value) in &message.headers {
        let lower = name.to_ascii_lowercase();
        let value = mask.header(&lower, value, sent);
        let shown = if spelled { name } else { &lower };
        lines.push((format!("{place}.header.{shown}"), value));
    }
    let framing = match message.framing {
        Framing::Empty => "none".to_string(),
        Framing::Length(_) => "content-length".to_string(),
        Framing::Chunked => "chunked".to_string(),
        Framing::UntilClose => "until close".to_string(),
    };
    lines.push((format!("{place}.framing"), framing));
    if !message.complete {
        lines.push((format!("{place}.complete"), "no".to_string()));
    }
    if !message.body.is_empty() {
        let decoded = decoded(message);
        let bytes = decoded.as_ref().unwrap_or(&message.body);
        let body = match bytes.len() {
            0..=2000 => mask.text(&bytes.escape_ascii().to_string()),
            n => format!("{n} bytes, sum {}", bytes.iter().map(|b| u64::from(*b)).sum::<u64>()),
        };
        let what = if decoded.is_some() { "decoded" } else { "body" };
        lines.push((format!("{place}.{what}"), body));
    }
    for (name, value) in &message.trailers {
        lines.push((format!("{place}.trailer.{}", name.to_ascii_lowercase()), value.clone()));
    }
}

/// A body as it was before it was coded: two libraries need not write the same bytes.
fn decoded(message: &Message) -> Option<Vec<u8>> {
    use std::io::Read;
    let coding = message.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-encoding"))?;
    let mut out = Vec::new();
    match coding.1.as_str() {
        "gzip" => flate2::read::GzDecoder::new(&message.body[..]).read_to_end(&mut out).ok()?,
        "br" => brotli::Decompressor::new(&message.body[..], 4096).read_to_end(&mut out).ok()?,
        "zstd" => zstd::Decoder::new(&message.body[..]).ok()?.read_to_end(&mut out).ok()?,
        _ => return None,
    };
    Some(out)
}

/// Waits for the access-log lines of this client's connection, without those of the probe.
pub async fn log(
    lines: &mut Vec<(String, String)>,
    mask: &Mask,
    side: &Side,
    file: &str,
    (from, client): (u64, u16),
    expected: usize,
) {
    let peer = format!("peer=127.0.0.1:{client}\t");
    let found = || -> Vec<String> {
        // Ports come again: only what was written since this case began counts.
        let mut lines = side.proxy.lines(file, from);
        lines.retain(|line| line.starts_with(&peer) && !line.contains("\thost=probe.test\t"));
        lines
    };
    eventually(DEADLINE / 3, || async { found().len() >= expected }).await;
    for (i, line) in found().iter().take(expected).enumerate() {
        for field in line.split('\t').skip(1) {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            lines.push((format!("log[{i}].{key}"), mask.text(value)));
        }
    }
}
