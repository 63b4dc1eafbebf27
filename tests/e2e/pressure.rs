//! What a hostile or unlucky neighbour can cost: readers that do not read, origins that do not read, origins that close
//! while a request is on its way, descriptors that run out.

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin, Silent, Then};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{alone, eventually, settled, DEADLINE};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

/// What one stuck stream may cost in the proxy.
const PER_STREAM: usize = 256 * 1024;
const STREAMS: usize = 200;

fn template() -> String {
    Bootstrap::new().plain("main", "").render()
}

/// A connection whose own kernel buffers are small, so that what does not fit stays with the proxy.
async fn narrow(port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
    socket.set_send_buffer_size(16 * 1024).expect("a small buffer");
    socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.expect("a connection")
}

#[tokio::test]
async fn readers_that_never_read_cost_little() {
    let _alone = alone().await;
    let origin = Origin::with(false, |request| match request.target() {
        "/flood" => {
            let size = 64 << 20;
            Answer::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).flood(size)
        }
        _ => Answer::ok("ok"),
    })
    .await;
    let proxy = Proxy::outrigger(&template(), &origins(origin.port(), origin.port())).await;
    let mut warm = Client::connect(proxy.port("main")).await.unwrap();
    assert_eq!(warm.exchange(GET).await.unwrap().status(), 200);
    let before = proxy.resident();

    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let mut reader = narrow(proxy.port("main")).await;
        reader.write_all(b"GET /flood HTTP/1.1\r\nHost: t.test\r\n\r\n").await.unwrap();
        readers.push(reader);
    }
    // What fills the kernel's buffers of all of them first are gigabytes, written by the thread that runs this test.
    assert!(
        eventually(DEADLINE * 6, || async { origin.requests() > STREAMS }).await,
        "{} requests",
        origin.requests()
    );
    let written = settled(|| origin.flooded()).await;
    assert!(
        written < (64 << 20) * STREAMS / 2,
        "the origin could write {written} bytes: nothing held it back"
    );
    let each = proxy.resident().saturating_sub(before) / STREAMS;
    assert!(each <= PER_STREAM, "{each} bytes per stuck reader, at most {PER_STREAM} are allowed");

    // The others are served meanwhile, and a stuck reader that wakes up gets everything.
    assert_eq!(warm.exchange(GET).await.unwrap().status(), 200);
    let mut late = crate::harness::http1::Reader::new(readers.pop().expect("a reader"));
    let answer = timeout(DEADLINE * 3, late.response(false)).await.expect("in time").expect("an answer");
    assert_eq!((answer.status(), answer.body.len(), answer.complete), (200, 64 << 20, true));
}

/// A listener of each kind; `place` is where the limit of what a connection may hold stands.
fn limited(place: &str, limit: usize) -> String {
    let tcp = r#"  - name: tcp
    address: { socket_address: { address: 127.0.0.1, port_value: @port:tcp@ } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: a
  clusters:
"#;
    let limit = format!("    per_connection_buffer_limit_bytes: {limit}\n{place}");
    Bootstrap::new().plain("http", "").render().replace("  clusters:\n", tcp).replace(place, &limit)
}

/// Bytes in the kernel on their way from `origin` through the proxy's port `proxy` to its clients: sent and not
/// acknowledged, or received and not read.
fn in_kernel(origin: u16, proxy: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table of sockets");
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let count = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, remote) = (port(fields.get(1)?)?, port(fields.get(2)?)?);
        let (unsent, unread) = fields.get(4)?.split_once(':')?;
        let sends = usize::from_str_radix(unsent, 16).ok()? * usize::from([origin, proxy].contains(&local));
        let reads = usize::from_str_radix(unread, 16).ok()? * usize::from([origin, proxy].contains(&remote));
        // Of a socket that listens, it is the accept queue.
        (*fields.get(3)? == "01").then_some(sends + reads)
    };
    table.lines().filter_map(count).sum()
}

#[tokio::test]
async fn the_buffer_limit_bounds_what_is_held_for_a_client_that_does_not_read() {
    const LIMIT: usize = 32 * 1024;
    const SIZE: usize = 64 << 20;
    let _alone = alone().await;
    let sized = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
    let unframed = "HTTP/1.1 200 OK\r\n\r\n";
    let (of_listener, of_cluster) = ("    filter_chains:\n", "    connect_timeout: 1s\n");
    for (listener, place, head) in [
        ("http", of_listener, &*sized),
        ("http", of_cluster, &*sized),
        ("http", of_listener, unframed),
        ("tcp", of_listener, &*sized),
        ("tcp", of_cluster, &*sized),
    ] {
        let answer = Answer::raw(head).flood(SIZE).then(Then::Close);
        let origin = Origin::with(false, move |_| answer.clone()).await;
        let proxy = Proxy::outrigger(&limited(place, LIMIT), &origins(origin.port(), origin.port())).await;
        let mut client = narrow(proxy.port(listener)).await;
        client.write_all(GET).await.unwrap();
        assert!(eventually(DEADLINE, || async { origin.flooded() > 0 }).await, "the origin is not asked");
        let written = settled(|| origin.flooded()).await + head.len();
        assert!(written < SIZE, "{listener}: nothing held the origin back");
        let kernel = in_kernel(origin.port(), proxy.port(listener));
        let held = written.saturating_sub(kernel);
        // The head that is passed on is not quite the one that came.
        assert!(
            held <= LIMIT + 1024,
            "{listener} {place:?} {head:?}: {held} of {written} bytes are held, {kernel} by the kernel"
        );
        drop(client);
    }
}

#[tokio::test]
async fn uploads_to_an_origin_that_never_reads_cost_little() {
    let _alone = alone().await;
    let origin = Origin::start().await;
    let silent = Silent::start().await;
    let host = "- name: all
  domains: ['*']
  routes:
  - { match: { prefix: /stuck }, route: { cluster: b, timeout: 0s } }
  - { match: { prefix: / }, route: { cluster: a } }";
    let template = Bootstrap::new().listener("main", "", host).render();
    let proxy = Proxy::outrigger(&template, &origins(origin.port(), silent.port())).await;
    let mut warm = Client::connect(proxy.port("main")).await.unwrap();
    assert_eq!(warm.exchange(GET).await.unwrap().status(), 200);
    let before = proxy.resident();

    let sent = Rc::new(Cell::new(0));
    let local = tokio::task::LocalSet::new();
    let size = 64usize << 20;
    for _ in 0..STREAMS {
        let (sent, port) = (sent.clone(), proxy.port("main"));
        local.spawn_local(async move {
            let mut upload = narrow(port).await;
            let head = format!("POST /stuck HTTP/1.1\r\nHost: t.test\r\nContent-Length: {size}\r\n\r\n");
            upload.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![b'u'; 16 * 1024];
            while let Ok(n) = upload.write(&chunk).await {
                sent.set(sent.get() + n);
            }
        });
    }
    let script = async {
        let started = || std::future::ready(sent.get() > STREAMS * 16 * 1024);
        assert!(eventually(DEADLINE, started).await, "only {} bytes were taken", sent.get());
        let taken = settled(|| sent.get()).await;
        assert!(taken < size * STREAMS / 2, "the proxy took {taken} bytes that nobody read");
        let each = proxy.resident().saturating_sub(before) / STREAMS;
        assert!(each <= PER_STREAM, "{each} bytes per stuck upload, at most {PER_STREAM} are allowed");
        assert_eq!(warm.exchange(GET).await.unwrap().status(), 200);
    };
    local.run_until(script).await;
}

#[tokio::test]
async fn an_origin_that_closes_idle_connections_loses_no_get() {
    let origin = Origin::start().await;
    // Good in all but one thing: the connection is closed after the answer without a word.
    origin.answer(|_| Answer::ok("ok").then(Then::Close));
    let proxy = Proxy::outrigger(&template(), &origins(origin.port(), origin.port())).await;
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    for i in 0..500 {
        let answer = client.exchange(GET).await.unwrap_or_else(|e| panic!("request {i}: {e}"));
        assert_eq!(answer.status(), 200, "request {i}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_close_as_the_request_arrives_replays_a_get_and_never_a_post() {
    let origin = Origin::start().await;
    // The first request of a connection is answered; the second finds it closing.
    let answered = std::sync::atomic::AtomicUsize::new(0);
    origin.answer(move |request| match request.target() {
        "/last" => Answer::raw("").then(Then::Reset),
        _ => {
            answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Answer::ok("ok")
        }
    });
    let proxy = Proxy::outrigger(&template(), &origins(origin.port(), origin.port())).await;
    let mut client = Client::connect(proxy.port("main")).await.unwrap();

    // A connection is in the pool; a request that is not idempotent dies on it: it must not be sent twice.
    assert_eq!(client.exchange(GET).await.unwrap().status(), 200);
    origin.take();
    let post = b"POST /last HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(client.exchange(post).await.unwrap().status(), 503);
    let seen: Vec<String> = origin.take().iter().map(|r| r.start_line.clone()).collect();
    assert_eq!(seen, ["POST /last HTTP/1.1"], "a POST was sent more than once");

    // A GET on a reused connection that is reset before any answer may be sent again on a new one, once. The origin
    // resets the first and answers the second.
    assert_eq!(client.exchange(GET).await.unwrap().status(), 200);
    origin.take();
    let first = std::sync::atomic::AtomicBool::new(true);
    origin.answer(move |request| {
        if request.target() == "/race" && first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            Answer::raw("").then(Then::Reset)
        } else {
            Answer::ok("again")
        }
    });
    let answer = client.exchange(b"GET /race HTTP/1.1\r\nHost: t.test\r\n\r\n").await.unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "again"));
    assert_eq!(origin.take().len(), 2);
}

#[tokio::test]
async fn running_out_of_descriptors_is_survived() {
    let _alone = alone().await;
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let (template, values) = (template(), origins(origin.port(), origin.port()));
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.descriptors = Some(256);
    let proxy = Proxy::start(plan).await;

    let mut held = Vec::new();
    for _ in 0..600 {
        if let Ok(mut client) = Client::connect(proxy.port("main")).await {
            let _ = client.send(GET).await;
            held.push(client);
        }
    }
    assert!(held.len() > 300, "only {} connections could be made", held.len());
    // Stuck, it must not burn the processor: 0.05 of a core over four seconds.
    settled(|| origin.requests()).await;
    let (cpu, wall) = (proxy.cpu(), Instant::now());
    eventually(Duration::from_secs(4), || std::future::ready(false)).await;
    let share = (proxy.cpu() - cpu).as_secs_f64() / wall.elapsed().as_secs_f64();
    assert!(share <= 0.05, "{share:.3} of a core while out of descriptors");

    drop(held);
    let served = || async {
        let Ok(mut client) = Client::connect(proxy.port("main")).await else { return false };
        client.exchange(GET).await.is_ok_and(|answer| answer.status() == 200)
    };
    assert!(eventually(DEADLINE, served).await, "no service after the descriptors were given back");
    // And it is no lucky hit: a hundred in a row.
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    for _ in 0..100 {
        assert_eq!(client.exchange(GET).await.unwrap().status(), 200);
    }
}
