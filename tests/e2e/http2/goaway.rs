//! An origin that ends its connection while requests are on it (GOAWAY with a lower last stream, RFC 9113 section 6.8):
//! those that it has not begun with go to another connection, and no request is lost. Frame by frame, since an origin
//! made of a library does not do it at will.

use super::matrix::{hosts, speaks};
use crate::differential::bootstrap::Bootstrap;
use crate::harness::client::Client;
use crate::harness::http2;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
/// `:status: 200` in HPACK's static table.
const STATUS_200: &[u8] = &[0x88];
/// Requests at a time.
const REQUESTS: usize = 10;

/// What the first connection does once it has all requests; later ones just answer.
#[derive(Debug, Clone, Copy)]
struct Farewell {
    /// So many of the requests are answered.
    begun: usize,
    /// The connection is closed right after the answers.
    closes: bool,
    /// Answers before it says goodbye, not after.
    answers_first: bool,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Streams that each connection was asked on.
type Asked = Arc<Mutex<Vec<Vec<u32>>>>;

async fn serve(mut stream: TcpStream, farewell: Farewell, asked: Asked) -> Option<()> {
    let nth = {
        let mut all = asked.lock().expect("asked");
        all.push(vec![]);
        all.len() - 1
    };
    let mut preface = [0u8; 24];
    stream.read_exact(&mut preface).await.ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    let mut complete = Vec::new();
    loop {
        let mut head = [0u8; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0u8; length];
        stream.read_exact(&mut payload).await.ok()?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await.ok()?;
            }
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload)).await.ok()?,
            HEADERS | DATA => {
                if kind == HEADERS {
                    asked.lock().expect("asked")[nth].push(id);
                }
                if flags & END_STREAM != 0 {
                    complete.push(id);
                }
            }
            _ => {}
        }
        let answer = |id: &u32| frame(HEADERS, 4 | END_STREAM, *id, STATUS_200);
        if nth > 0 {
            for id in complete.drain(..) {
                stream.write_all(&answer(&id)).await.ok()?;
            }
        } else if complete.len() == REQUESTS {
            complete.sort_unstable();
            let last = farewell.begun.checked_sub(1).map_or(0, |at| complete[at]);
            let mut payload = last.to_be_bytes().to_vec();
            payload.extend([0; 4]);
            let goodbye = frame(GOAWAY, 0, 0, &payload);
            let answers: Vec<u8> = complete[..farewell.begun].iter().flat_map(answer).collect();
            let bytes = if farewell.answers_first {
                [answers, goodbye].concat()
            } else {
                [goodbye, answers].concat()
            };
            stream.write_all(&bytes).await.ok()?;
            complete.clear();
            if farewell.closes {
                stream.shutdown().await.ok()?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.ok()?;
                return None;
            }
        }
    }
}

async fn origin(farewell: Farewell) -> (u16, Asked, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let asked = Asked::default();
    let shared = asked.clone();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, farewell, shared.clone()));
        }
    });
    (port, asked, task)
}

async fn no_request_is_lost(farewell: Farewell, request: &'static str) {
    let (port, asked, task) = origin(farewell).await;
    let template = Bootstrap::new()
        .cluster("h1", &speaks("h1"))
        .cluster("h2", &speaks("h2"))
        .listener("main", "upgrade_configs: [ { upgrade_type: websocket } ]", &hosts("h2"))
        .render();
    let values = ["h1", "h2", "origin:a", "origin:b"].map(|name| (name, port.to_string()));
    let proxy = Proxy::outrigger(&template, &values).await;
    let mut clients = JoinSet::new();
    for _ in 0..REQUESTS {
        let port = proxy.port("main");
        clients.spawn(async move {
            let mut client = Client::connect(port).await.expect("a connection");
            client.send(request.as_bytes()).await.expect("sent");
            client.response_within(false, DEADLINE).await.map(|answer| answer.map(|m| m.start_line))
        });
    }
    while let Some(answer) = clients.join_next().await {
        let answer = answer.expect("a client").expect("an answer in time");
        let asked = asked.lock().expect("asked").clone();
        assert_eq!(answer.expect("an answer"), "HTTP/1.1 200 OK", "{farewell:?} {asked:?}");
    }
    let asked = asked.lock().expect("asked").clone();
    assert_eq!(asked[0].len(), REQUESTS, "{asked:?}");
    let again: usize = asked[1..].iter().map(Vec::len).sum();
    assert_eq!(
        again,
        REQUESTS - farewell.begun,
        "each that was not begun with goes out once more: {asked:?}"
    );
    assert_eq!(asked.len(), if again > 0 { 2 } else { 1 }, "one new connection: {asked:?}");
    let counted = || async { proxy.stats().await["http.main.downstream_rq_2xx"] == REQUESTS as u64 };
    assert!(eventually(DEADLINE, counted).await, "not all answers are counted");
    assert_eq!(proxy.stats().await["cluster.h2.upstream_cx_close_notify"], 1);
    task.abort();
}

const GET: &str = "GET / HTTP/1.1\r\nhost: t.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: t.test\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn what_was_not_begun_with_goes_elsewhere() {
    for begun in [0, 4, REQUESTS] {
        for (closes, answers_first) in [(false, false), (false, true), (true, false), (true, true)] {
            no_request_is_lost(Farewell { begun, closes, answers_first }, GET).await;
        }
    }
}

#[tokio::test]
async fn bodies_too() {
    for closes in [false, true] {
        no_request_is_lost(Farewell { begun: 4, closes, answers_first: false }, POST).await;
    }
}

/// An upstream that begins with nothing is sent everything again only as far as the budget reaches.
#[tokio::test]
async fn who_refuses_everything_is_not_asked_everything_again() {
    const REQUESTS: usize = 1_500;
    let streams = Arc::new(AtomicUsize::new(0));
    let counted = streams.clone();
    let port = http2::serve(move |_, mut respond| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { respond.send_reset(h2::Reason::REFUSED_STREAM) }
    })
    .await;
    let template = Bootstrap::new()
        .cluster("h1", &speaks("h1"))
        .cluster("h2", &speaks("h2"))
        .listener("main", "", &hosts("h2"))
        .render();
    let values = ["h1", "h2", "origin:a", "origin:b"].map(|name| (name, port.to_string()));
    let proxy = Proxy::outrigger(&template, &values).await;
    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
    for _ in 0..REQUESTS {
        assert_eq!(client.exchange(GET.as_bytes()).await.expect("an answer").status(), 503);
    }
    let stats = proxy.stats().await;
    let replays = stats["cluster.h2.upstream_rq_replay"] as usize;
    // Three for each as long as there are some: what was saved, and a fifth of the requests.
    assert!((1_000..=1_000 + REQUESTS / 5).contains(&replays), "{replays} replays");
    assert!(stats["cluster.h2.upstream_rq_replay_overflow"] > 0);
    assert_eq!(streams.load(Ordering::Relaxed), REQUESTS + replays);
}
