//! A client that makes one exchange over HTTP/1 or over HTTP/2 and writes down what came of it.

use super::origin::{map, pairs, pattern, send, told, Body, Origin, Pairs};
use crate::harness::http1::{Framing, Message, Reader};
use crate::harness::{eventually, DEADLINE};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{Method, Request};
use std::future::{poll_fn, Future};
use std::net::Ipv4Addr;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long an answer may take: the slowest case waits for a timeout of less than a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long the client looks for what comes after an answer.
const AFTER: Duration = Duration::from_millis(300);

/// What the client does beside sending its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Sends all of it.
    Whole,
    /// Sends the body when it is let to (`expect: 100-continue`).
    Expect,
    /// Keeps half of the body back until it has the whole answer.
    Hold,
    /// Breaks off in the middle of the request's body.
    BreakRequest,
    /// Breaks off in the middle of the response's body.
    BreakResponse,
    /// Sends these bytes through the tunnel, reads as many, and ends its side.
    Tunnel(&'static [u8]),
    /// Sends these bytes through the tunnel, reads as many, and breaks off.
    BreakTunnel(&'static [u8]),
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: &'static str,
    pub path: &'static str,
    pub authority: &'static str,
    pub headers: Pairs,
    pub body: Body,
    pub trailers: Pairs,
    /// It asks for a WebSocket.
    pub websocket: bool,
    pub client: Client,
}

/// How far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Nothing,
    Continue,
    Head,
    /// As much of the body as was waited for.
    Data,
    Over,
}

pub type Lines = Vec<(String, String)>;

/// What the client saw, and its port.
pub struct Heard {
    pub lines: Lines,
    pub port: u16,
}

fn line(lines: &mut Lines, key: &str, value: impl Into<String>) {
    lines.push((key.to_string(), value.into()));
}

/// A body in a line: itself, or its size and a sum that depends on the order.
pub fn shown(body: &[u8]) -> String {
    match body.len() {
        0..=200 => body.escape_ascii().to_string(),
        length => {
            let sum = body.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("{length} bytes, sum {sum:x}")
        }
    }
}

async fn connect(port: u16) -> TcpStream {
    let stream = timeout(DEADLINE, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await;
    let stream = stream.expect("in time").expect("a connection");
    let _ = stream.set_nodelay(true);
    stream
}

/// Half of a body, then the rest.
fn halves(body: &Body) -> (Vec<Bytes>, Vec<Bytes>) {
    let mut pieces = body.pieces();
    if let [one] = &mut pieces[..] {
        let first = one.split_to(one.len() / 2);
        return (vec![first], vec![one.clone()]);
    }
    let rest = pieces.split_off(pieces.len() / 2);
    (pieces, rest)
}

async fn until(progress: &mut watch::Receiver<Progress>, least: Progress) {
    let _ = timeout(PATIENCE, progress.wait_for(|now| *now >= least)).await;
}

// HTTP/2

/// Makes the exchange over HTTP/2.
pub async fn http2(port: u16, ask: &Ask, origin: &Origin) -> Heard {
    let mut lines = Lines::new();
    let stream = connect(port).await;
    let local = stream.local_addr().expect("an address").port();
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).initial_window_size(1 << 20);
    let (mut requests, connection) = builder.handshake::<_, Bytes>(stream).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    if ask.websocket {
        let offered = || std::future::ready(requests.is_extended_connect_protocol_enabled());
        if !eventually(PATIENCE, offered).await {
            line(&mut lines, "extended connect", "not offered");
            return Heard { lines, port: local };
        }
    }
    let request = request(ask);
    let ends = ask.body == Body::None
        && ask.trailers.is_empty()
        && ask.client != Client::Hold
        && !matches!(ask.client, Client::Tunnel(_) | Client::BreakTunnel(_));
    requests = requests.ready().await.expect("a connection");
    let (response, stream) = requests.send_request(request, ends).expect("a request");
    let (tell, progress) = watch::channel(Progress::Nothing);
    let (sent, heard) =
        tokio::join!(give(ask, stream, ends, progress, origin), take(ask, response, &tell, origin));
    lines.extend(heard);
    if let Some(sent) = sent {
        line(&mut lines, "request", sent);
    }
    let kept = probe(&mut requests).await;
    line(&mut lines, "connection", kept);
    drop(requests);
    driver.abort();
    Heard { lines, port: local }
}

fn request(ask: &Ask) -> Request<()> {
    let mut request = Request::new(());
    let plain = Method::from_bytes(ask.method.as_bytes()).expect("a method");
    *request.method_mut() = if ask.websocket { Method::CONNECT } else { plain };
    let uri = if ask.method == "CONNECT" {
        ask.authority.to_string()
    } else {
        format!("http://{}{}", ask.authority, ask.path)
    };
    *request.uri_mut() = uri.parse().expect("a URI");
    *request.headers_mut() = map(&ask.headers);
    if ask.websocket {
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        request.headers_mut().extend(map(&[("sec-websocket-version", "13")]));
    }
    if let Body::Fixed(length) = ask.body {
        request.headers_mut().insert("content-length", length.into());
    }
    request
}

/// Sends what follows the head; says how the proxy ended it, where that is looked at.
async fn give(
    ask: &Ask,
    mut stream: SendStream<Bytes>,
    ended: bool,
    mut progress: watch::Receiver<Progress>,
    origin: &Origin,
) -> Option<String> {
    let (first, rest) = halves(&ask.body);
    let reset = Reason::CANCEL;
    match ask.client {
        Client::Whole | Client::Expect => {
            if ask.client == Client::Expect {
                until(&mut progress, Progress::Continue).await;
                if *progress.borrow() >= Progress::Head {
                    return Some("not wanted".to_string());
                }
            }
            if !ended {
                let _ = finish(ask, &mut stream, first.into_iter().chain(rest)).await;
            }
            None
        }
        Client::Hold => {
            for piece in first {
                let _ = send(&mut stream, piece, false).await;
            }
            until(&mut progress, Progress::Over).await;
            Some(match timeout(AFTER, poll_fn(|context| stream.poll_reset(context))).await {
                Ok(Ok(reason)) => format!("reset {reason:?}"),
                Ok(Err(error)) => told(&error),
                Err(_) => {
                    let _ = finish(ask, &mut stream, rest.into_iter()).await;
                    "still wanted".to_string()
                }
            })
        }
        Client::BreakRequest => {
            for piece in &first {
                let _ = send(&mut stream, piece.clone(), false).await;
            }
            arrived(origin, &first).await;
            stream.send_reset(reset);
            None
        }
        Client::BreakResponse => {
            if !ended {
                let _ = finish(ask, &mut stream, first.into_iter().chain(rest)).await;
            }
            until(&mut progress, Progress::Data).await;
            stream.send_reset(reset);
            None
        }
        Client::Tunnel(bytes) | Client::BreakTunnel(bytes) => {
            until(&mut progress, Progress::Head).await;
            let _ = send(&mut stream, Bytes::from_static(bytes), false).await;
            until(&mut progress, Progress::Data).await;
            if matches!(ask.client, Client::BreakTunnel(_)) {
                stream.send_reset(reset);
            } else {
                let _ = stream.send_data(Bytes::new(), true);
            }
            None
        }
    }
}

/// Waits until the origin has the request's head and these bytes of its body, as far as it reads it.
async fn arrived(origin: &Origin, pieces: &[Bytes]) {
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let there = || std::future::ready(origin.seen().iter().any(|seen| seen.body.len() >= length));
    eventually(AFTER, there).await;
}

async fn finish(
    ask: &Ask,
    stream: &mut SendStream<Bytes>,
    pieces: impl Iterator<Item = Bytes>,
) -> Result<(), h2::Error> {
    let pieces: Vec<Bytes> = pieces.collect();
    for (i, piece) in pieces.iter().enumerate() {
        send(stream, piece.clone(), i + 1 == pieces.len() && ask.trailers.is_empty()).await?;
    }
    if !ask.trailers.is_empty() {
        stream.send_trailers(map(&ask.trailers))?;
    } else if pieces.is_empty() {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

async fn take(
    ask: &Ask,
    mut response: ResponseFuture,
    progress: &watch::Sender<Progress>,
    origin: &Origin,
) -> Lines {
    let mut lines = Lines::new();
    let all = take_all(ask, &mut response, progress, origin, &mut lines);
    if timeout(PATIENCE, all).await.is_err() {
        line(&mut lines, "response.end", "nothing more came");
    }
    progress.send_replace(Progress::Over);
    lines
}

async fn take_all(
    ask: &Ask,
    response: &mut ResponseFuture,
    progress: &watch::Sender<Progress>,
    origin: &Origin,
    lines: &mut Lines,
) {
    let mut interims = 0;
    let mut informed = false;
    let answer = loop {
        let next = poll_fn(|context| {
            if !informed {
                match response.poll_informational(context) {
                    Poll::Ready(Some(Ok(interim))) => return Poll::Ready(Err(Some(interim))),
                    Poll::Ready(None | Some(Err(_))) => informed = true,
                    Poll::Pending => {}
                }
            }
            std::pin::Pin::new(&mut *response).poll(context).map(|answer| {
                answer.map_err(|error| {
                    lines.push(("response.end".to_string(), told(&error)));
                    None
                })
            })
        })
        .await;
        match next {
            Ok(answer) => break answer,
            Err(None) => return,
            Err(Some(interim)) => {
                let status = interim.status().as_u16().to_string();
                line(lines, &format!("interim[{interims}].status"), status);
                head(lines, &format!("interim[{interims}]"), &pairs(interim.headers()));
                interims += 1;
                if interim.status() == 100 {
                    progress.send_replace(Progress::Continue);
                }
            }
        }
    };
    let (parts, mut body) = answer.into_parts();
    line(lines, "response.status", parts.status.as_u16().to_string());
    head(lines, "response", &pairs(&parts.headers));
    progress.send_replace(Progress::Head);
    let wanted = match ask.client {
        Client::Tunnel(bytes) | Client::BreakTunnel(bytes) => bytes.len(),
        _ => 1,
    };
    let mut all = Vec::new();
    if body.is_end_stream() {
        line(lines, "response.end", "complete");
        return;
    }
    origin.go();
    let end = loop {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                all.extend_from_slice(&data);
                if all.len() >= wanted {
                    progress.send_replace(Progress::Data);
                    if matches!(ask.client, Client::BreakResponse | Client::BreakTunnel(_)) {
                        break "broken off by the client".to_string();
                    }
                }
            }
            Some(Err(error)) => break told(&error),
            None => match body.trailers().await {
                Ok(trailers) => {
                    for (name, value) in trailers.as_ref().map(pairs).unwrap_or_default() {
                        lines.push((format!("response.trailer.{name}"), value));
                    }
                    break "complete".to_string();
                }
                Err(error) => break told(&error),
            },
        }
    };
    if ask.client != Client::BreakResponse {
        line(lines, "response.body", shown(&all));
    }
    line(lines, "response.end", end);
}

fn head(lines: &mut Lines, place: &str, headers: &[(String, String)]) {
    for (name, value) in headers {
        lines.push((format!("{place}.header.{}", name.to_ascii_lowercase()), value.clone()));
    }
}

/// Whether another request is answered on the connection.
async fn probe(requests: &mut SendRequest<Bytes>) -> String {
    let request = Request::get("http://probe.test/probe").body(()).expect("a request");
    let ask = async {
        let mut ready = requests.clone().ready().await?;
        let (response, _) = ready.send_request(request, true)?;
        Ok::<u16, h2::Error>(response.await?.status().as_u16())
    };
    match timeout(PATIENCE, ask).await {
        Ok(Ok(200)) => "kept".to_string(),
        Ok(Ok(status)) => format!("answers the next request with {status}"),
        Ok(Err(error)) => told(&error),
        Err(_) => "does not answer the next request".to_string(),
    }
}

// HTTP/1

/// Makes the exchange over HTTP/1.
pub async fn http1(port: u16, ask: &Ask, origin: &Origin) -> Heard {
    let stream = connect(port).await;
    let local = stream.local_addr().expect("an address").port();
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    let (tell, progress) = watch::channel(Progress::Nothing);
    let (sent, mut lines) = tokio::join!(
        give_http1(ask, &mut write, progress, origin),
        take_http1(ask, &mut reader, &tell, origin)
    );
    if let Some(sent) = sent {
        line(&mut lines, "request", sent);
    }
    if !matches!(ask.client, Client::BreakRequest | Client::BreakResponse | Client::BreakTunnel(_)) {
        let kept = probe_http1(&mut reader, &mut write).await;
        line(&mut lines, "connection", kept);
    }
    Heard { lines, port: local }
}

async fn give_http1(
    ask: &Ask,
    stream: &mut OwnedWriteHalf,
    mut progress: watch::Receiver<Progress>,
    origin: &Origin,
) -> Option<String> {
    let target = if ask.method == "CONNECT" { ask.authority } else { ask.path };
    let mut text = format!("{} {target} HTTP/1.1\r\nhost: {}\r\n", ask.method, ask.authority);
    for (name, value) in &ask.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if ask.websocket {
        text += "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    }
    let chunked = matches!(ask.body, Body::Streamed(..)) || !ask.trailers.is_empty();
    match ask.body {
        _ if chunked => text += "transfer-encoding: chunked\r\n",
        Body::Fixed(length) => text += &format!("content-length: {length}\r\n"),
        _ => {}
    }
    text += "\r\n";
    let mut text = text.into_bytes();
    let framed = |pieces: &[Bytes], last: bool| {
        let mut out = Vec::new();
        for piece in pieces {
            if chunked {
                out.extend(format!("{:x}\r\n", piece.len()).bytes());
            }
            out.extend_from_slice(piece);
            if chunked {
                out.extend(b"\r\n");
            }
        }
        if chunked && last {
            out.extend(b"0\r\n");
            for (name, value) in &ask.trailers {
                out.extend(format!("{name}: {value}\r\n").bytes());
            }
            out.extend(b"\r\n");
        }
        out
    };
    let reset = |stream: &OwnedWriteHalf| {
        let stream: &TcpStream = stream.as_ref();
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    };
    let (first, rest) = halves(&ask.body);
    let mut all = first.clone();
    all.extend(rest.iter().cloned());
    if matches!(ask.client, Client::Whole | Client::BreakResponse) {
        // In one go, so that what a proxy has of it at a time is not left to chance.
        text.extend(framed(&all, true));
    }
    let _ = stream.write_all(&text).await;
    match ask.client {
        Client::Whole => {}
        Client::Expect => {
            until(&mut progress, Progress::Continue).await;
            if *progress.borrow() >= Progress::Head {
                return Some("not wanted".to_string());
            }
            let _ = stream.write_all(&framed(&all, true)).await;
        }
        Client::Hold => {
            let _ = stream.write_all(&framed(&first, false)).await;
            until(&mut progress, Progress::Over).await;
            let _ = stream.write_all(&framed(&rest, true)).await;
        }
        Client::BreakRequest => {
            let _ = stream.write_all(&framed(&first, false)).await;
            arrived(origin, &first).await;
            reset(stream);
        }
        Client::BreakResponse => {
            until(&mut progress, Progress::Data).await;
            reset(stream);
        }
        Client::Tunnel(bytes) | Client::BreakTunnel(bytes) => {
            until(&mut progress, Progress::Head).await;
            let _ = stream.write_all(bytes).await;
            until(&mut progress, Progress::Data).await;
            if matches!(ask.client, Client::BreakTunnel(_)) {
                reset(stream);
            } else {
                let _ = stream.shutdown().await;
            }
        }
    }
    None
}

async fn take_http1(
    ask: &Ask,
    reader: &mut Reader<OwnedReadHalf>,
    progress: &watch::Sender<Progress>,
    origin: &Origin,
) -> Lines {
    let mut lines = Lines::new();
    if ask.client == Client::BreakRequest {
        return lines;
    }
    let all = take_all_http1(ask, reader, progress, origin, &mut lines);
    if timeout(PATIENCE, all).await.is_err() {
        line(&mut lines, "response.end", "nothing more came");
    }
    progress.send_replace(Progress::Over);
    lines
}

fn message(lines: &mut Lines, place: &str, message: &Message) {
    line(lines, &format!("{place}.status"), message.status().to_string());
    head(lines, place, &message.headers);
}

async fn take_all_http1(
    ask: &Ask,
    reader: &mut Reader<OwnedReadHalf>,
    progress: &watch::Sender<Progress>,
    origin: &Origin,
    lines: &mut Lines,
) {
    let mut interims = 0;
    let mut answer = loop {
        let answer = match reader.head().await {
            Ok(answer) => answer,
            Err(error) => return line(lines, "response.end", format!("closed ({error})")),
        };
        if answer.status() >= 200 || answer.status() == 101 {
            break answer;
        }
        message(lines, &format!("interim[{interims}]"), &answer);
        interims += 1;
        if answer.status() == 100 {
            progress.send_replace(Progress::Continue);
        }
    };
    message(lines, "response", &answer);
    progress.send_replace(Progress::Head);
    origin.go();
    let connected = ask.method == "CONNECT" && answer.status() == 200;
    if connected || answer.status() == 101 {
        let (Client::Tunnel(bytes) | Client::BreakTunnel(bytes)) = ask.client else { return };
        while reader.buffered.len() < bytes.len() && reader.fill().await.unwrap_or(false) {}
        progress.send_replace(Progress::Data);
        if matches!(ask.client, Client::BreakTunnel(_)) {
            return;
        }
        let mut end = "complete";
        loop {
            match reader.fill().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    end = "closed";
                    break;
                }
            }
        }
        line(lines, "response.body", shown(&std::mem::take(&mut reader.buffered)));
        return line(lines, "response.end", end);
    }
    answer.framing = Reader::<OwnedReadHalf>::response_framing(&answer, ask.method == "HEAD");
    let framing = match answer.framing {
        Framing::Empty => "none",
        Framing::Length(_) => "content-length",
        Framing::Chunked => "chunked",
        Framing::UntilClose => "until close",
    };
    line(lines, "response.framing", framing);
    if answer.framing != Framing::Empty && answer.framing != Framing::Length(0) {
        while reader.buffered.is_empty() && reader.fill().await.unwrap_or(false) {}
        progress.send_replace(Progress::Data);
    }
    if ask.client == Client::BreakResponse {
        return;
    }
    let read = reader.body(&mut answer).await;
    line(lines, "response.body", shown(&answer.body));
    for (name, value) in &answer.trailers {
        lines.push((format!("response.trailer.{}", name.to_ascii_lowercase()), value.clone()));
    }
    line(lines, "response.end", if read.is_ok() && answer.complete { "complete" } else { "closed" });
}

async fn probe_http1(reader: &mut Reader<OwnedReadHalf>, stream: &mut OwnedWriteHalf) -> String {
    if stream.write_all(b"GET /probe HTTP/1.1\r\nhost: probe.test\r\n\r\n").await.is_err() {
        return "closed".to_string();
    }
    match timeout(PATIENCE, reader.response(false)).await {
        Ok(Ok(answer)) if answer.text() == "probe" => "kept".to_string(),
        Ok(Ok(answer)) => format!("answers the next request with {}", answer.start_line),
        Ok(Err(_)) => "closed".to_string(),
        Err(_) => "does not answer the next request".to_string(),
    }
}

#[test]
fn halves_are_the_whole() {
    let (first, rest) = halves(&Body::Fixed(10));
    assert_eq!([&first[0][..], &rest[0][..]].concat(), pattern(10));
}
