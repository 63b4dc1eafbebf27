//! A client that makes one exchange over HTTP/1 or over HTTP/2 and writes down what came of it.

mod http1;

pub use http1::http1;

use super::origin::{map, pairs, pattern, send, told, Body, Origin, Pairs};
use crate::harness::{eventually, DEADLINE};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{Method, Request};
use std::future::{poll_fn, Future};
use std::net::Ipv4Addr;
use std::task::Poll;
use std::time::Duration;
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

#[test]
fn halves_are_the_whole() {
    let (first, rest) = halves(&Body::Fixed(10));
    assert_eq!([&first[0][..], &rest[0][..]].concat(), pattern(10));
}
