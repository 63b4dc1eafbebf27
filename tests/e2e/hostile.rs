//! Clients that never finish a request and origins that lie: each harms only itself.

use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin, Then};
use crate::harness::proxy::Proxy;
use std::time::Duration;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

async fn proxy_to(origin: &Origin) -> Proxy {
    let template = Bootstrap::new().plain("main", "").render();
    Proxy::outrigger(&template, &origins(origin.port(), origin.port())).await
}

/// A fresh client gets a good answer.
async fn serves(proxy: &Proxy) {
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    let answer = client.exchange(GET).await.unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
}

/// Half a head may be held for ten seconds, whether nothing more comes or a byte now and then.
#[tokio::test]
async fn half_a_request_is_not_held_for_ever() {
    let origin = Origin::start().await;
    let proxy = proxy_to(&origin).await;
    let limit = Duration::from_secs(12);
    let mut silent = Client::connect(proxy.port("main")).await.unwrap();
    silent.send(b"GET / HTTP/1.1\r\nHost: t.te").await.unwrap();
    let mut slow = Client::connect(proxy.port("main")).await.unwrap();
    slow.send(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    // The same after a good request: the connection is known, the head is not.
    let mut second = Client::connect(proxy.port("main")).await.unwrap();
    assert_eq!(second.exchange(GET).await.unwrap().status(), 200);
    second.send(b"GET /").await.unwrap();
    let trickle = async {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tick.tick().await;
            if slow.send(b"x").await.is_err() || slow.closed(Duration::from_millis(1)).await {
                return;
            }
        }
    };
    let trickle = tokio::time::timeout(limit, trickle);
    let (silent, slow, second) = tokio::join!(silent.closed(limit), trickle, second.closed(limit));
    assert!(silent, "half a head was held for more than {limit:?}");
    assert!(slow.is_ok(), "a head that trickles in was held for more than {limit:?}");
    assert!(second, "half a second head was held for more than {limit:?}");
    serves(&proxy).await;
}

#[tokio::test]
async fn a_response_that_nobody_asked_for_reaches_nobody() {
    let origin = Origin::start().await;
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    origin.answer(move |request| match request.target() {
        "/two" => Answer::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{poison}")),
        "/late" => Answer::ok("ok").piece(poison),
        _ => Answer::ok("ok"),
    });
    let proxy = proxy_to(&origin).await;
    for target in ["/two", "/late", "/two", "/late"] {
        let mut client = Client::connect(proxy.port("main")).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: t.test\r\n\r\n");
        assert_eq!(client.exchange(request.as_bytes()).await.unwrap().text(), "ok");
        for _ in 0..3 {
            serves(&proxy).await;
            let answer = client.exchange(GET).await;
            // The connection to the client may have been given up, but never with the wrong answer.
            assert!(answer.is_err() || answer.is_ok_and(|a| a.text() == "ok"), "poisoned after {target}");
            client = Client::connect(proxy.port("main")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn endless_heads_and_floods_of_interim_responses_are_ended() {
    let origin = Origin::start().await;
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000);
    origin.answer(move |request| match request.target() {
        "/endless-value" => Answer::raw("HTTP/1.1 200 OK\r\nx: ").flood(64 << 20).then(Then::Hang),
        "/endless-headers" => {
            Answer::raw(format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(1 << 20))).then(Then::Hang)
        }
        "/endless-status" => Answer::raw("HTTP/1.1 200 ").flood(64 << 20).then(Then::Hang),
        "/endless-nothing" => Answer::raw("").flood(64 << 20).then(Then::Hang),
        "/interim" => {
            Answer::raw(&interim).piece("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").then(Then::Close)
        }
        _ => Answer::ok("ok"),
    });
    let proxy = proxy_to(&origin).await;
    serves(&proxy).await;
    let before = proxy.resident();
    for target in ["/endless-value", "/endless-headers", "/endless-status", "/endless-nothing"] {
        let mut client = Client::connect(proxy.port("main")).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: t.test\r\n\r\n");
        let answer = client.exchange(request.as_bytes()).await.unwrap_or_else(|e| panic!("{target}: {e}"));
        assert_eq!(answer.status(), 502, "{target}");
        serves(&proxy).await;
    }
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    let answer = client.exchange(b"GET /interim HTTP/1.1\r\nHost: t.test\r\n\r\n").await.unwrap();
    assert!([200, 502].contains(&answer.status()), "{}", answer.start_line);
    serves(&proxy).await;
    let grown = proxy.resident().saturating_sub(before);
    // The allocator grows in steps of 2 MiB: a few of them, and some pages for what a first failure makes. Each flood is
    // 64 MiB.
    assert!(grown < 9 << 20, "memory grew by {grown} bytes");
}

/// What follows an upgrade that is refused must not have gone to the origin as if it had been accepted.
#[tokio::test]
async fn bytes_after_an_upgrade_wait_for_its_acceptance() {
    let origin = Origin::start().await;
    origin.answer(|_| Answer::status(403, "Forbidden", "no"));
    let template =
        Bootstrap::new().plain("main", "upgrade_configs: [ { upgrade_type: websocket } ]").render();
    let proxy = Proxy::outrigger(&template, &origins(origin.port(), origin.port())).await;
    let mut client = Client::connect(proxy.port("main")).await.unwrap();
    let request = b"GET /ws HTTP/1.1\r\nHost: t.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
                    GET /smuggled HTTP/1.1\r\nHost: t.test\r\n\r\n";
    assert_eq!(client.exchange(request).await.unwrap().status(), 403);
    client.closed(Duration::from_millis(300)).await;
    let seen: Vec<String> = origin.take().iter().map(|r| r.start_line.clone()).collect();
    assert_eq!(seen.first().map(String::as_str), Some("GET /ws HTTP/1.1"));
    // As the next request on the same client connection it may be served, but then as a request of its own, with the
    // headers that the proxy adds.
    assert!(seen.len() == 1 || seen[1..] == ["GET /smuggled HTTP/1.1"], "{seen:?}");
}
