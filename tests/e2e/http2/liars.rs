//! An HTTP/2 origin that lies: its client gets an error, and nobody else anything.

use super::abuse::{beside_a_neighbour, forget_peak, peak};
use super::raw::*;
use crate::differential::bootstrap::{origins, Bootstrap, ALL_TO_A};
use crate::harness::client::Client;
use crate::harness::origin::Origin;
use crate::harness::proxy::Proxy;
use crate::harness::{alone, DEADLINE};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// What the origin does in place of an answer on the stream: bytes, then the second over and over until the proxy
/// closes.
#[derive(Clone)]
struct Lie {
    name: &'static str,
    first: fn(u32) -> Vec<u8>,
    over_and_over: Option<fn(u32) -> Vec<u8>>,
    expect: Told,
}

/// What the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// 502 or 503.
    Error,
    /// An error, or an answer that shows that it broke off.
    Broken,
    /// 200, as if nothing was.
    Fine,
    /// An error, or 200 from a second try on another connection.
    Again,
}

/// It answers each request with `ok`, except that it lies once each time it is told to.
struct Liar {
    port: u16,
    lie: Arc<Mutex<Option<Lie>>>,
    task: JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const OK: &[(&[u8], &[u8])] = &[(b":status", b"200")];

fn answer(stream: u32, fields: &[(&[u8], &[u8])], flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

fn honest(stream: u32) -> Vec<u8> {
    [answer(stream, OK, 0), frame(DATA, END_STREAM, stream, b"ok")].concat()
}

impl Liar {
    async fn start() -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let lie: Arc<Mutex<Option<Lie>>> = Arc::default();
        let shared = lie.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(Raw::of(stream), shared.clone()));
            }
        });
        Liar { port, lie, task }
    }
}

async fn serve(mut raw: Raw, lie: Arc<Mutex<Option<Lie>>>) -> Option<()> {
    raw.accept(b"").await.ok()?;
    loop {
        let frame = raw.next(DEADLINE * 6).await?;
        match frame.kind {
            HEADERS if frame.ends() => {}
            SETTINGS | WINDOW_UPDATE | RST_STREAM | PRIORITY | HEADERS | DATA => continue,
            PING if frame.flags & ACK == 0 => {
                raw.send(&super::raw::frame(PING, ACK, 0, &frame.payload)).await.ok()?;
                continue;
            }
            _ => continue,
        }
        let told = lie.lock().expect("the lie").take();
        let Some(lie) = told else {
            raw.send(&honest(frame.stream)).await.ok()?;
            continue;
        };
        raw.send(&(lie.first)(frame.stream)).await.ok()?;
        if let Some(more) = lie.over_and_over {
            let bytes: Vec<u8> = (0..64).flat_map(|_| more(frame.stream)).collect();
            // At most so much; nobody takes more.
            for _ in 0..20_000 {
                raw.send(&bytes).await.ok()?;
                while raw.next(Duration::from_micros(20)).await.is_some() {}
            }
        }
    }
}

fn lies() -> Vec<Lie> {
    let lie = |name, first: fn(u32) -> Vec<u8>, expect| Lie { name, first, over_and_over: None, expect };
    let flood = |name, first: fn(u32) -> Vec<u8>, more: fn(u32) -> Vec<u8>, expect| Lie {
        name,
        first,
        over_and_over: Some(more),
        expect,
    };
    use Told::*;
    vec![
        lie("connection", |s| answer(s, &[OK[0], (b"connection", b"close")], END_STREAM), Error),
        lie(
            "transfer-encoding",
            |s| answer(s, &[OK[0], (b"transfer-encoding", b"chunked")], END_STREAM),
            Error,
        ),
        lie("an upper-case name", |s| answer(s, &[OK[0], (b"Foo", b"bar")], END_STREAM), Error),
        lie(
            "CR LF in a value",
            |s| answer(s, &[OK[0], (b"foo", b"a\r\nset-cookie: evil=1")], END_STREAM),
            Error,
        ),
        lie("NUL in a value", |s| answer(s, &[OK[0], (b"foo", b"a\0b")], END_STREAM), Error),
        lie("no status", |s| answer(s, &[(b"foo", b"bar")], END_STREAM), Error),
        lie("two statuses", |s| answer(s, &[OK[0], OK[0]], END_STREAM), Error),
        lie("a status of letters", |s| answer(s, &[(b":status", b"abc")], END_STREAM), Error),
        lie("status 99", |s| answer(s, &[(b":status", b"99")], END_STREAM), Error),
        lie("status 101", |s| answer(s, &[(b":status", b"101")], 0), Error),
        lie("status 101 that ends the stream", |s| answer(s, &[(b":status", b"101")], END_STREAM), Error),
        lie("status 100 that ends the stream", |s| answer(s, &[(b":status", b"100")], END_STREAM), Again),
        lie("a request's pseudo field", |s| answer(s, &[OK[0], (b":path", b"/")], END_STREAM), Error),
        lie("a pseudo field after another", |s| answer(s, &[(b"foo", b"bar"), OK[0]], END_STREAM), Error),
        lie("a length without a body", |s| answer(s, &[OK[0], (b"content-length", b"5")], END_STREAM), Error),
        lie(
            "two lengths",
            |s| answer(s, &[OK[0], (b"content-length", b"2"), (b"content-length", b"3")], 0),
            Error,
        ),
        lie("a length that is none", |s| answer(s, &[OK[0], (b"content-length", b"2x")], 0), Error),
        lie(
            "more than the length",
            |s| {
                [answer(s, &[OK[0], (b"content-length", b"2")], 0), frame(DATA, END_STREAM, s, b"too much")]
                    .concat()
            },
            Broken,
        ),
        lie(
            "less than the length",
            |s| {
                [answer(s, &[OK[0], (b"content-length", b"9")], 0), frame(DATA, END_STREAM, s, b"short")]
                    .concat()
            },
            Broken,
        ),
        lie("DATA before a head", |s| frame(DATA, END_STREAM, s, b"early"), Again),
        lie(
            "trailers without the end",
            |s| [answer(s, OK, 0), frame(DATA, 0, s, b"ok"), answer(s, &[(b"a", b"b")], 0)].concat(),
            Broken,
        ),
        lie(
            "trailers with a status",
            |s| [answer(s, OK, 0), frame(DATA, 0, s, b"ok"), answer(s, OK, END_STREAM)].concat(),
            Fine,
        ),
        lie("a reset", |s| rst(s, INTERNAL), Error),
        lie(
            "a reset after the head",
            |s| [answer(s, OK, 0), frame(DATA, 0, s, b"some"), rst(s, INTERNAL)].concat(),
            Broken,
        ),
        lie("the connection's window overflows", |_| window_update(0, 0x7fff_ffff), Again),
        lie(
            "the stream's window overflows",
            |s| [window_update(s, 0x7fff_ffff), rst(s, CANCEL)].concat(),
            Error,
        ),
        lie("an increment of 0", |s| window_update(s, 0), Again),
        lie(
            "a push",
            |s| {
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    s,
                    &[&[0, 0, 0, 2], &request("GET", "/", "t.test")[..]].concat(),
                )
            },
            Again,
        ),
        lie("a stream of its own", |_| answer(2, OK, END_STREAM), Again),
        lie("a stream nobody opened", |s| answer(s + 100, OK, END_STREAM), Again),
        lie("a frame too large", |s| frame(DATA, 0, s, &vec![0; 1 << 20]), Again),
        lie("a PING of another size", |_| frame(PING, 0, 0, b"1"), Again),
        lie("SETTINGS that are wrong", |_| frame(SETTINGS, 0, 0, &setting(4, u32::MAX)), Again),
        lie(
            "GOAWAY and then the answer",
            |s| [frame(GOAWAY, 0, 0, &[&s.to_be_bytes()[..], &[0; 4]].concat()), honest(s)].concat(),
            Fine,
        ),
        lie("an index past the tables", |s| frame(HEADERS, 5, s, &[0xff, 0x60]), Again),
        lie("103 and then the answer", |s| [answer(s, &[(b":status", b"103")], 0), honest(s)].concat(), Fine),
        lie(
            "a huge head",
            |s| {
                let mut block = block(OK);
                block.extend(indexed_literal(b"x", &[b'v'; 4000]));
                block.extend([0xbe; 40]);
                frame(HEADERS, 5, s, &block)
            },
            Error,
        ),
        lie(
            "thousands of fields",
            |s| {
                let mut block = block(OK);
                block.extend(literal(b"a", b"b").repeat(2500));
                frame(HEADERS, 5, s, &block)
            },
            Error,
        ),
        flood(
            "endless CONTINUATION",
            |s| frame(HEADERS, 0, s, &block(OK)),
            |s| frame(CONTINUATION, 0, s, &literal(b"a", &[b'b'; 1000])),
            Again,
        ),
        flood(
            "empty CONTINUATION",
            |s| frame(HEADERS, 0, s, &block(OK)),
            |s| frame(CONTINUATION, 0, s, b""),
            Again,
        ),
        flood("PING", |_| vec![], |_| ping(), Again),
        flood("SETTINGS", |_| vec![], |_| frame(SETTINGS, 0, 0, b""), Again),
        flood("acknowledgements", |_| vec![], |_| frame(SETTINGS, ACK, 0, b""), Again),
        flood("unknown frames", |_| vec![], |_| frame(0x99, 0, 0, b"x"), Again),
        flood("PRIORITY", |_| vec![], |s| frame(PRIORITY, 0, s, &[0, 0, 0, 0, 1]), Again),
        flood("WINDOW_UPDATE", |_| vec![], |s| window_update(s, 1), Again),
        flood(
            "GOAWAY",
            |_| vec![],
            |s| frame(GOAWAY, 0, 0, &[&s.to_be_bytes()[..], &[0; 4]].concat()),
            Again,
        ),
        flood("1xx", |_| vec![], |s| answer(s, &[(b":status", b"103"), (b"link", b"x")], 0), Error),
        flood("empty DATA", |s| answer(s, OK, 0), |s| frame(DATA, 0, s, b""), Again),
        flood("DATA of padding", |s| answer(s, OK, 0), |s| frame(DATA, PADDED, s, &[0]), Again),
    ]
}

#[tokio::test]
async fn an_origin_that_lies_harms_one_request() {
    let _alone = alone().await;
    let good = Origin::start().await;
    let liar = Liar::start().await;
    let protocol = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http2_protocol_options: {} }"#;
    let to_liar = ALL_TO_A.replace("cluster: a", "cluster: b-liar, timeout: 5s");
    let template =
        Bootstrap::new().origin("b-liar", protocol).plain("auto", "").listener("main", "", &to_liar).render();
    let proxy = Proxy::outrigger(&template, &origins(good.port(), liar.port)).await;
    let get = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";
    let mut failures = Vec::new();
    for lie in lies() {
        for over_http2 in [false, true] {
            let name = format!("{} (to HTTP/{})", lie.name, if over_http2 { 2 } else { 1 });
            *liar.lie.lock().expect("the lie") = Some(lie.clone());
            forget_peak(&proxy);
            let before = proxy.resident();
            let attack = async {
                if over_http2 {
                    let mut client = Raw::open(proxy.port("main")).await;
                    let told = match client.get(1, "/").await {
                        Outcome::Status(200, 2) => Some(Told::Fine),
                        Outcome::Status(502 | 503, _) => Some(Told::Error),
                        Outcome::Broken(_) | Outcome::Reset(_) => Some(Told::Broken),
                        other => {
                            failures.push(format!("{name}: {other:?}"));
                            None
                        }
                    };
                    // The client's own connection goes on.
                    (told, client.get(3, "/").await == Outcome::Status(200, 2))
                } else {
                    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
                    let told = match client.exchange(get).await {
                        Ok(message) if matches!(message.status(), 502 | 503) => Some(Told::Error),
                        Ok(message) if message.status() == 200 && !message.complete => Some(Told::Broken),
                        Ok(message) if message.status() == 200 && message.text() == "ok" => Some(Told::Fine),
                        Ok(message) => {
                            failures.push(format!("{name}: {} {:?}", message.start_line, message.text()));
                            None
                        }
                        Err(error) => {
                            failures.push(format!("{name}: no answer at all: {error}"));
                            None
                        }
                    };
                    (told, true)
                }
            };
            let ((told, goes_on), _) = beside_a_neighbour(&proxy, attack).await;
            let right = match lie.expect {
                Told::Broken => matches!(told, None | Some(Told::Broken | Told::Error)),
                Told::Again => true,
                expect => told.is_none_or(|told| told == expect),
            };
            if !right {
                failures.push(format!("{name}: {:?} is wanted, {told:?}", lie.expect));
            }
            if !goes_on {
                failures.push(format!("{name}: the client's next stream fails"));
            }
            // Somebody else's next request to the same origin.
            let mut other = Client::connect(proxy.port("main")).await.expect("a connection");
            match other.exchange(get).await {
                Ok(message) if message.status() == 200 && message.text() == "ok" => {}
                Ok(message) => {
                    failures.push(format!("{name}: then {} {}", message.start_line, message.text()));
                }
                Err(error) => failures.push(format!("{name}: then {error}")),
            }
            let cost = peak(&proxy).saturating_sub(before);
            if cost > 16 << 20 {
                failures.push(format!("{name}: {} KiB", cost >> 10));
            }
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
}
