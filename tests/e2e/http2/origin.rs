//! An origin in the test's own process that does what a case has planned, over HTTP/1 on one port and over HTTP/2 on
//! another, and keeps what it saw.

mod http1;

use http1::serve_http1;

use crate::harness::{eventually, DEADLINE};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

pub type Pairs = Vec<(&'static str, &'static str)>;

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    None,
    /// Its length is told before.
    Fixed(usize),
    /// Its length is not told; so many pieces of this size.
    Streamed(usize, usize),
}

impl Body {
    /// Its pieces.
    pub fn pieces(&self) -> Vec<Bytes> {
        match self {
            Body::None => vec![],
            Body::Fixed(length) => vec![pattern(*length)],
            Body::Streamed(length, count) => vec![pattern(*length); *count],
        }
    }
}

/// So many bytes that tell their place.
pub fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| b'a' + (i % 26) as u8).collect::<Vec<_>>().into()
}

/// How an origin breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// RST_STREAM; over HTTP/1 a reset of the connection.
    Reset(Reason),
    /// An orderly close of the connection.
    Close,
}

/// What the origin does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    Answer {
        status: u16,
        headers: Pairs,
        body: Body,
        trailers: Pairs,
    },
    /// Accepts another protocol, sends back what comes, and ends when its peer does.
    Tunnel,
    /// Accepts another protocol and, once something has come, breaks off.
    TunnelBreak(Break),
    /// Says nothing more after the head and so many bytes, or after nothing at all.
    Stall(Option<usize>),
    /// Breaks off after the head and so many bytes, which the client must have, or after nothing at all.
    Break(Option<usize>, Break),
    /// Refuses the first request (REFUSED_STREAM; over HTTP/1 there is no such thing) and answers the others.
    RefuseOnce,
}

/// What is planned for the next request.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The request's body is not waited for,
    pub at_head: bool,
    /// but for so many of its first bytes.
    pub after: usize,
    pub interim: Vec<(u16, Pairs)>,
    pub act: Act,
}

/// A request as it was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// How the body ended; empty while it comes.
    pub end: String,
    /// What the proxy did to the stream after that, where it was waited for.
    pub after: Option<String>,
}

struct State {
    plan: Mutex<Plan>,
    seen: Mutex<Vec<Seen>>,
    /// The client has the beginning of the answer.
    go: Mutex<Arc<Notify>>,
    /// Requests that are not over.
    busy: Mutex<usize>,
}

impl State {
    fn record(&self, seen: Seen) -> usize {
        *self.busy.lock().expect("busy") += 1;
        let mut all = self.seen.lock().expect("seen");
        all.push(seen);
        all.len() - 1
    }

    fn update(&self, slot: usize, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.seen.lock().expect("seen").get_mut(slot) {
            change(seen);
        }
    }

    async fn wait_for_client(&self) {
        let go = self.go.lock().expect("go").clone();
        let _ = tokio::time::timeout(DEADLINE / 3, go.notified()).await;
    }
}

/// A request that is not over.
struct Busy<'a>(&'a State);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().expect("busy") -= 1;
    }
}

/// A running origin; it stops when dropped.
pub struct Origin {
    pub http1: u16,
    pub http2: u16,
    state: Arc<State>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Origin {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Origin {
    pub async fn start() -> Origin {
        let state = Arc::new(State {
            plan: Mutex::new(Plan { at_head: false, after: 0, interim: vec![], act: Act::Stall(None) }),
            seen: Mutex::default(),
            go: Mutex::default(),
            busy: Mutex::default(),
        });
        let (http1, one) = listen(state.clone(), serve_http1).await;
        let (http2, two) = listen(state.clone(), serve_http2).await;
        Origin { http1, http2, state, tasks: [one, two] }
    }

    /// What happens to the requests that follow.
    pub fn plan(&self, plan: Plan) {
        *self.state.plan.lock().expect("plan") = plan;
        *self.state.go.lock().expect("go") = Arc::default();
        self.state.seen.lock().expect("seen").clear();
    }

    /// The client has the beginning of the answer.
    pub fn go(&self) {
        self.state.go.lock().expect("go").notify_one();
    }

    /// Requests since the last plan, as they are now.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("seen").clone()
    }

    /// Waits for the ends of all requests; what they are then.
    pub async fn settled(&self) -> Vec<Seen> {
        let quiet = || std::future::ready(*self.state.busy.lock().expect("busy") == 0);
        eventually(Duration::from_secs(1), quiet).await;
        self.seen()
    }
}

async fn listen<F, S>(state: Arc<State>, serve: S) -> (u16, JoinHandle<()>)
where
    F: std::future::Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream, Arc<State>) -> F + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            connections.spawn(serve(stream, state.clone()));
            while connections.try_join_next().is_some() {}
        }
    });
    (port, task)
}

pub fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
    }
    map
}

pub fn pairs(map: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| value.as_bytes().iter().map(|b| char::from(*b)).collect();
    map.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// How a stream ended, by the crate's error.
pub fn told(error: &h2::Error) -> String {
    match error.reason() {
        _ if error.is_io() => "closed".to_string(),
        Some(reason) if error.is_go_away() => format!("goaway {reason:?}"),
        Some(reason) => format!("reset {reason:?}"),
        None => "closed".to_string(),
    }
}

/// Sends a piece as the peer has room for it.
pub async fn send(stream: &mut SendStream<Bytes>, mut piece: Bytes, last: bool) -> Result<(), h2::Error> {
    if piece.is_empty() {
        return stream.send_data(piece, last);
    }
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let room = match poll_fn(|context| stream.poll_capacity(context)).await {
            Some(room) => room?,
            None => return Err(Reason::CANCEL.into()),
        };
        let part = piece.split_to(room.min(piece.len()));
        if !part.is_empty() {
            stream.send_data(part, last && piece.is_empty())?;
        }
    }
    Ok(())
}

async fn serve_http2(stream: TcpStream, state: Arc<State>) {
    let mut builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.enable_connect_protocol().handshake::<_, Bytes>(stream).await else {
        return;
    };
    let mut streams = JoinSet::new();
    let close = Arc::new(Notify::new());
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = close.notified() => return,
        };
        match accepted {
            Some(Ok((request, respond))) => {
                streams.spawn(serve_stream(state.clone(), request, respond, close.clone()));
            }
            _ => break,
        }
    }
    // The streams see the end of the connection.
    while streams.join_next().await.is_some() {}
}

async fn serve_stream(
    state: Arc<State>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    close: Arc<Notify>,
) {
    let (parts, body) = request.into_parts();
    let mut headers = Vec::new();
    let uri = &parts.uri;
    let protocol = parts.extensions.get::<h2::ext::Protocol>().map(|protocol| protocol.as_str().to_string());
    let pseudo = [
        (":scheme", uri.scheme_str().map(str::to_string)),
        (":authority", uri.authority().map(ToString::to_string)),
        (":protocol", protocol),
    ];
    headers.extend(pseudo.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
    headers.extend(pairs(&parts.headers));
    let path = uri.path_and_query().map_or("-", |path| path.as_str());
    let line = format!("{} {path}", parts.method);
    let slot = state.record(Seen { line, headers, ..Seen::default() });
    let _busy = Busy(&state);
    answer(&state, slot, body, respond, &close).await;
}

/// Waits for the first bytes of a body.
async fn read_first(state: &State, slot: usize, body: &mut RecvStream, mut count: usize) {
    while count > 0 {
        let Some(Ok(data)) = body.data().await else { return };
        let _ = body.flow_control().release_capacity(data.len());
        count = count.saturating_sub(data.len());
        state.update(slot, |seen| seen.body.extend_from_slice(&data));
    }
}

async fn read_body(state: &State, slot: usize, body: &mut RecvStream) -> Result<(), ()> {
    loop {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                state.update(slot, |seen| seen.body.extend_from_slice(&data));
            }
            Some(Err(error)) => {
                state.update(slot, |seen| seen.end = told(&error));
                return Err(());
            }
            None => break,
        }
    }
    match body.trailers().await {
        Ok(trailers) => {
            state.update(slot, |seen| {
                seen.trailers = trailers.as_ref().map(pairs).unwrap_or_default();
                seen.end = "complete".to_string();
            });
            Ok(())
        }
        Err(error) => {
            state.update(slot, |seen| seen.end = told(&error));
            Err(())
        }
    }
}

fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Response<()> {
    let mut response = Response::builder().status(status).body(()).expect("a response");
    *response.headers_mut() = map(headers);
    response
}

async fn answer(
    state: &State,
    slot: usize,
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    close: &Notify,
) {
    let plan = state.plan.lock().expect("plan").clone();
    for (status, headers) in &plan.interim {
        let _ = respond.send_informational(head(*status, headers));
    }
    let tunnel = matches!(plan.act, Act::Tunnel | Act::TunnelBreak(_));
    if plan.at_head {
        read_first(state, slot, &mut body, plan.after).await;
    } else if !tunnel && read_body(state, slot, &mut body).await.is_err() {
        return;
    }
    match plan.act {
        Act::RefuseOnce if slot == 0 => respond.send_reset(Reason::REFUSED_STREAM),
        Act::RefuseOnce => drop(write(&mut respond, 200, &vec![], &Body::Fixed(2), &vec![]).await),
        Act::Answer { status, headers, body, trailers } => {
            let _ = write(&mut respond, status, &headers, &body, &trailers).await;
        }
        Act::Stall(sent) => {
            let mut stream = None;
            if let Some(sent) = sent {
                stream = begin(&mut respond, sent).await;
            }
            let reset = match &mut stream {
                Some(stream) => poll_fn(|context| stream.poll_reset(context)).await,
                None => poll_fn(|context| respond.poll_reset(context)).await,
            };
            let reset = match reset {
                Ok(reason) => format!("reset {reason:?}"),
                Err(error) => told(&error),
            };
            state.update(slot, |seen| seen.after = Some(reset));
        }
        Act::Break(sent, how) => {
            let mut stream = None;
            if let Some(sent) = sent {
                stream = begin(&mut respond, sent).await;
                state.wait_for_client().await;
            }
            match (how, &mut stream) {
                (Break::Close, _) => return gone(close).await,
                (Break::Reset(reason), Some(stream)) => stream.send_reset(reason),
                (Break::Reset(reason), None) => respond.send_reset(reason),
            }
        }
        Act::Tunnel => {
            let Ok(mut stream) = respond.send_response(head(200, &[]), false) else { return };
            loop {
                match body.data().await {
                    Some(Ok(data)) => {
                        let _ = body.flow_control().release_capacity(data.len());
                        state.update(slot, |seen| seen.body.extend_from_slice(&data));
                        let _ = send(&mut stream, data, false).await;
                    }
                    Some(Err(error)) => return state.update(slot, |seen| seen.end = told(&error)),
                    None => break,
                }
            }
            state.update(slot, |seen| seen.end = "complete".to_string());
            let _ = stream.send_data(Bytes::new(), true);
        }
        Act::TunnelBreak(how) => {
            let Ok(mut stream) = respond.send_response(head(200, &[]), false) else { return };
            let _ = body.data().await;
            state.update(slot, |seen| seen.end = "broken off".to_string());
            match how {
                Break::Close => gone(close).await,
                Break::Reset(reason) => stream.send_reset(reason),
            }
        }
    }
    if plan.at_head {
        let _ = read_body(state, slot, &mut body).await;
    }
}

/// Ends the connection, and this stream with it: not before, which would be a reset.
async fn gone(close: &Notify) {
    close.notify_one();
    std::future::pending::<()>().await;
}

/// A head and so many bytes of a body that is longer.
async fn begin(respond: &mut SendResponse<Bytes>, sent: usize) -> Option<SendStream<Bytes>> {
    let mut stream = respond.send_response(head(200, &[("x-begun", "yes")]), false).ok()?;
    if sent > 0 {
        let _ = send(&mut stream, pattern(sent), false).await;
    }
    Some(stream)
}

async fn write(
    respond: &mut SendResponse<Bytes>,
    status: u16,
    headers: &Pairs,
    body: &Body,
    trailers: &Pairs,
) -> Result<(), h2::Error> {
    let mut response = head(status, headers);
    if let Body::Fixed(length) = body {
        response.headers_mut().insert("content-length", (*length).into());
    }
    let empty = *body == Body::None && trailers.is_empty();
    let mut stream = respond.send_response(response, empty)?;
    if empty {
        return Ok(());
    }
    let pieces = body.pieces();
    for (i, piece) in pieces.iter().enumerate() {
        let last = i + 1 == pieces.len() && trailers.is_empty();
        send(&mut stream, piece.clone(), last).await?;
    }
    if !trailers.is_empty() {
        stream.send_trailers(map(trailers))?;
    } else if pieces.is_empty() {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}
