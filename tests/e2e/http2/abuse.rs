//! Clients that ask for little and take much: memory, windows, time. [`super::floods`] are many small frames. Of each: what ends it, the statistic that
//! says so, how much memory it took at its worst, and that another client was served all the time.

use super::frames::bootstrap;
use super::raw::*;
use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::Proxy;
use crate::harness::{alone, eventually, DEADLINE};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// What one hostile connection may cost the proxy at its worst.
pub const WORST: usize = 16 << 20;
/// How long the neighbour may wait for an answer: it, the attacker and the origin share a thread, on a machine that does
/// other things too.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most memory that was resident since [`forget_peak`].
pub fn peak(proxy: &Proxy) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) * 1024
}

pub fn forget_peak(proxy: &Proxy) {
    std::fs::write(format!("/proc/{}/clear_refs", proxy.pid()), "5").expect("the peak is forgotten");
}

/// Sum of the statistics whose name ends so.
pub async fn stat(proxy: &Proxy, name: &str) -> u64 {
    proxy.stats().await.iter().filter(|(full, _)| full.ends_with(name)).map(|(_, value)| value).sum()
}

/// Runs `attack` beside a client that asks all the time; what the attack says, and the memory it took.
pub async fn beside_a_neighbour<T>(proxy: &Proxy, attack: impl Future<Output = T>) -> (T, usize) {
    let mut neighbour = Raw::open(proxy.port("auto")).await;
    assert_eq!(neighbour.get(1, "/probe").await, Outcome::Status(200, 2));
    forget_peak(proxy);
    let before = proxy.resident();
    let mut stream = 3;
    let mut worst = Duration::ZERO;
    let asking = async {
        loop {
            let begun = Instant::now();
            let answer = neighbour.get(stream, "/").await;
            assert_eq!(answer, Outcome::Status(200, 2), "the neighbour's stream {stream}");
            worst = worst.max(begun.elapsed());
            stream += 2;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let result = tokio::select! {
        () = asking => unreachable!("it asks for ever"),
        result = attack => result,
    };
    assert!(worst <= PATIENCE, "the neighbour waited {worst:?}");
    let cost = peak(proxy).saturating_sub(before);
    // The last one may be under way.
    assert_eq!(neighbour.get(stream + 2, "/").await, Outcome::Status(200, 2), "afterwards");
    (result, cost)
}

/// A head whose decoded form is far larger than its bytes.
fn bomb(stream: u32, entry: usize, count: usize, flags: u8) -> Vec<u8> {
    let mut block = request("GET", "/stuck", "t.test");
    if stream == 1 {
        block.extend(indexed_literal(b"x", &vec![b'v'; entry]));
    }
    // The newest entry of the dynamic table.
    block.extend(vec![0xbe; count]);
    let mut pieces = block.chunks(16_000).enumerate().peekable();
    let mut bytes = Vec::new();
    while let Some((i, piece)) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(match i {
            0 => frame(HEADERS, flags | last, stream, piece),
            _ => frame(CONTINUATION, last, stream, piece),
        });
    }
    bytes
}

/// Heads that are small on the wire and large in memory, kept alive by a window of nothing.
#[tokio::test]
async fn bombs_cost_little() {
    let _alone = alone().await;
    // The hostile client's requests are never answered, so that all of them are held at once.
    let never = Arc::new(Semaphore::new(0));
    let origin = Origin::with(false, move |message| match message.target() {
        "/stuck" => Answer::ok("ok").gated(&never),
        _ => Answer::ok("ok"),
    })
    .await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    let cookie_bomb = |stream: u32| {
        let mut block = request("GET", "/stuck", "t.test");
        if stream == 1 {
            block.extend(indexed_literal(b"cookie", b"a"));
        }
        block.extend(vec![0xbe; 10_000]);
        frame(HEADERS, 5, stream, &block)
    };
    type Unit<'a> = Box<dyn Fn(u32) -> Vec<u8> + 'a>;
    let bombs: Vec<(&str, Unit<'_>)> = vec![
        ("fields of 4000 bytes, 14 a head", Box::new(|stream| bomb(stream, 4000, 14, END_STREAM))),
        ("fields of 4000 bytes, 60 a head", Box::new(|stream| bomb(stream, 4000, 60, END_STREAM))),
        ("fields of 4000 bytes, 16000 a head", Box::new(|stream| bomb(stream, 4000, 16_000, END_STREAM))),
        ("fields of 1 byte, 1500 a head", Box::new(|stream| bomb(stream, 1, 1500, END_STREAM))),
        ("fields of 500 bytes, 90 a head, no end", Box::new(|stream| bomb(stream, 500, 90, 0))),
        ("cookies", Box::new(cookie_bomb)),
    ];
    let mut failures = Vec::new();
    let mut costs = Vec::new();
    for (name, unit) in bombs {
        let attack = async {
            let settings = [setting(1, 0), setting(4, 0)].concat();
            let mut raw = Raw::with(proxy.port("main"), &settings).await;
            let mut sent = 0;
            for i in 0..3000 {
                if !raw.try_send(&unit(2 * i + 1), Duration::from_secs(1)).await {
                    break;
                }
                sent += 1;
                while raw.next(Duration::from_micros(20)).await.is_some() {}
            }
            // What it holds, it holds now.
            let ended = raw.ended(Duration::from_millis(300)).await;
            (sent, ended)
        };
        let ((sent, ended), cost) = beside_a_neighbour(&proxy, attack).await;
        costs.push(format!("{name}: {} KiB after {sent}, {ended:?}", cost >> 10));
        if cost > WORST {
            failures.push(format!("{name}: {} KiB", cost >> 10));
        }
    }
    println!("{}", costs.join("\n"));
    assert!(failures.is_empty(), "{}\n\n{}", failures.join("\n"), costs.join("\n"));
    assert!(stat(&proxy, "http2.header_overflow").await > 0, "nothing counts them");
}

/// One head that is too large is answered by itself; the connection goes on.
#[tokio::test]
async fn heads_over_the_limit_end_their_stream_only() {
    let origin = Origin::start().await;
    let small = "codec_type: HTTP2\nmax_request_headers_kb: 8\ncommon_http_protocol_options: { max_headers_count: 20 }";
    let template = Bootstrap::new().plain("main", small).render();
    let proxy = Proxy::outrigger(&template, &origins(origin.port(), origin.port())).await;
    let mut raw = Raw::open(proxy.port("main")).await;
    assert_eq!(raw.setting(6), Some(8 * 1024), "the limit is announced");
    let with = |stream: u32, more: &[u8]| {
        let mut block = request("GET", "/", "t.test");
        block.extend_from_slice(more);
        frame(HEADERS, 5, stream, &block)
    };
    let many = |count: usize| literal(b"a", b"b").repeat(count);
    for (stream, more, good) in [
        (1, literal(b"a", &[b'v'; 6_000]), true),
        (3, literal(b"a", &[b'v'; 9_000]), false),
        (5, many(15), true),
        (7, many(30), false),
        (9, literal(b"cookie", &[b'c'; 9_000]), false),
        (11, literal(b"a", b"b"), true),
    ] {
        let before = stat(&proxy, "http2.header_overflow").await;
        raw.send(&with(stream, &more)).await.expect("sent");
        let outcome = raw.outcome(stream, DEADLINE).await;
        if good {
            assert_eq!(outcome, Outcome::Status(200, 2), "stream {stream}");
        } else {
            let refused = matches!(outcome, Outcome::Status(431, _) | Outcome::Reset(_));
            assert!(refused, "stream {stream}: {outcome:?}");
            // The reset may be here before it is counted.
            let counted = || async { stat(&proxy, "http2.header_overflow").await > before };
            assert!(eventually(DEADLINE, counted).await, "stream {stream} is not counted");
        }
    }
    assert_eq!(origin.requests(), 3);
}

/// Answers that the client's window has no room for wait at the origin, not here.
#[tokio::test]
async fn streams_without_a_window_cost_little() {
    let _alone = alone().await;
    const STREAMS: u32 = 200;
    // What waits and what is being read are 64 KiB each; a reader that never reads may cost twice that.
    const EACH: usize = 256 * 1024;
    let origin = Origin::with(false, |request| match request.target() {
        "/large" => {
            let size = 64 << 20;
            Answer::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).flood(size)
        }
        _ => Answer::ok("ok"),
    })
    .await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    for window in [0, 1] {
        let attack = async {
            let mut raw = Raw::with(proxy.port("main"), &[setting(1, 0), setting(4, window)].concat()).await;
            for i in 0..STREAMS {
                raw.send(&get(2 * i + 1, "/large")).await.expect("sent");
            }
            let flooding = || std::future::ready(origin.requests() as u32 > STREAMS);
            assert!(eventually(DEADLINE, flooding).await, "{} requests", origin.requests());
            crate::harness::settled(|| origin.flooded()).await;
            raw
        };
        let (mut raw, cost) = beside_a_neighbour(&proxy, attack).await;
        assert!(
            cost <= STREAMS as usize * EACH,
            "window {window}: {} KiB a stream",
            (cost / STREAMS as usize) >> 10
        );
        // One that gets room is served: a MiB of it.
        let mut got = 0;
        raw.send(&[window_update(0, 8 << 20), window_update(1, 1 << 20)].concat()).await.expect("sent");
        while got < 1 << 20 {
            let frame = raw.next(DEADLINE).await.expect("a frame");
            if frame.kind == DATA && frame.stream == 1 {
                got += frame.payload.len();
            }
        }
        drop(raw);
        assert!(eventually(DEADLINE, || async { stat(&proxy, "http2.streams_active").await == 0 }).await);
    }
}

/// Uploads that never end hold what they were given and no more.
#[tokio::test]
async fn streams_that_never_end_cost_little() {
    let _alone = alone().await;
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    let attack = async {
        let mut raw = Raw::open(proxy.port("main")).await;
        for i in 0..500 {
            raw.send(&post(2 * i + 1, "/")).await.expect("sent");
        }
        let all = || async { stat(&proxy, "http2.streams_active").await >= 500 };
        assert!(eventually(DEADLINE, all).await);
        raw
    };
    let (mut raw, cost) = beside_a_neighbour(&proxy, attack).await;
    // An upload is a connection to the origin too, and a task.
    assert!(cost <= 500 * 64 * 1024, "{} KiB a stream", (cost / 500) >> 10);
    raw.send(&frame(DATA, END_STREAM, 1, b"the end")).await.expect("sent");
    assert_eq!(raw.outcome(1, DEADLINE).await, Outcome::Status(200, 2));
}

/// Half a head must become whole within the time for heads; half a preface and silence too.
#[tokio::test]
async fn half_heads_are_ended_in_time() {
    let origin = Origin::start().await;
    let template = Bootstrap::new()
        .plain("main", "codec_type: HTTP2\nrequest_headers_timeout: 0.5s")
        .plain("auto", "request_headers_timeout: 0.5s")
        .render();
    let proxy = Proxy::outrigger(&template, &origins(origin.port(), origin.port())).await;
    let head = get(1, "/");
    let open = frame(HEADERS, END_STREAM, 1, &request("GET", "/", "t.test"));
    for port in ["main", "auto"] {
        for (name, bytes) in [
            ("half a frame", &head[..20]),
            ("half a frame's head", &head[..4]),
            ("no CONTINUATION", &open[..]),
        ] {
            let before = stat(&proxy, "downstream_rq_header_timeout").await;
            let mut raw = Raw::open(proxy.port(port)).await;
            raw.send(bytes).await.expect("sent");
            let begun = Instant::now();
            let (ended, code) = raw.ended(Duration::from_secs(5)).await;
            assert!(ended && code.is_some(), "{name}: {code:?}");
            assert!(begun.elapsed() >= Duration::from_millis(400), "{name}: {:?}", begun.elapsed());
            assert_eq!(stat(&proxy, "downstream_rq_header_timeout").await, before + 1, "{name}");
        }
        // Byte by byte is no way around it.
        let mut raw = Raw::open(proxy.port(port)).await;
        let begun = Instant::now();
        for byte in &head {
            if !raw.try_send(&[*byte], Duration::from_secs(1)).await
                || raw.next(Duration::from_millis(50)).await.is_some_and(|frame| frame.kind == GOAWAY)
            {
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(raw.ended(Duration::from_secs(3)).await.0);
    }
}

/// Who asks and never reads is not read from any more; what was made for it is bounded.
#[tokio::test]
async fn a_client_that_never_reads_costs_little() {
    let _alone = alone().await;
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    type Unit = fn(u32) -> Vec<u8>;
    let units: [(&str, Unit); 4] = [
        ("requests", |i| get(2 * i + 1, "/")),
        ("pings and requests", |i| [get(2 * i + 1, "/"), ping()].concat()),
        ("settings and requests", |i| [get(2 * i + 1, "/"), frame(SETTINGS, 0, 0, b"")].concat()),
        ("uploads that are refused", |i| post(2 * i + 1, "/")),
    ];
    for (name, unit) in units {
        let attack = async {
            let mut raw = Raw::narrow(proxy.port("main"), &setting(1, 0)).await;
            let mut sent = 0;
            for i in 0..100_000 {
                if !raw.try_send(&unit(i), Duration::from_millis(300)).await {
                    break;
                }
                sent += 1;
            }
            (raw, sent)
        };
        let ((_raw, sent), cost) = beside_a_neighbour(&proxy, attack).await;
        assert!(sent < 100_000, "{name}: all of it was taken");
        // As many streams as are allowed at a time (1,024), each with its task, its answer and a connection upstream.
        assert!(cost <= 3 * WORST, "{name}: {} KiB after {sent}", cost >> 10);
    }
}
