//! Hosts that were silent: they are asked for a sign of life before the next request, and given up without one
//! (`connection_idle_interval`), as Envoy does.

use super::raw::*;
use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::client::{get as ask, Client};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What the host was sent, of all connections.
type Seen = Arc<Mutex<Vec<&'static str>>>;

async fn host(listener: TcpListener, seen: Seen, lives: Arc<AtomicBool>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (seen, lives) = (seen.clone(), lives.clone());
        connections.spawn(async move {
            let mut raw = Raw::of(stream);
            raw.accept(b"").await.ok()?;
            loop {
                let got = raw.next(DEADLINE * 6).await?;
                let answer = match got.kind {
                    HEADERS => {
                        seen.lock().expect("seen").push("request");
                        frame(HEADERS, 5, got.stream, &block(&[(b":status", b"200")]))
                    }
                    PING if got.flags & ACK == 0 => {
                        seen.lock().expect("seen").push("ping");
                        frame(PING, ACK, 0, &got.payload)
                    }
                    _ => continue,
                };
                if lives.load(Ordering::Relaxed) {
                    raw.send(&answer).await.ok()?;
                }
            }
            #[allow(unreachable_code)]
            Some(())
        });
    }
}

#[tokio::test]
async fn a_host_that_was_silent_is_asked_before_the_next_request() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let hosts = r"- name: all
  domains: ['*']
  routes:
  - { match: { prefix: / }, route: { cluster: silent } }
";
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (seen, lives) = (Seen::default(), Arc::new(AtomicBool::new(true)));
        let task = tokio::spawn(host(listener, seen.clone(), lives.clone()));
        let cluster = format!(
            "{}\nhttp2_protocol_options: {{ connection_keepalive: {{ timeout: 0.3s, connection_idle_interval: 0.2s }} }}",
            crate::differential::bootstrap::endpoints(&[&port.to_string()])
        );
        let template = Bootstrap::new().cluster("silent", &cluster).listener("main", "", hosts).render();
        let proxy = Proxy::start(Plan::new(kind, &template, &origins(port, port))).await;
        let status = || async { ask(proxy.port("main"), "/").await.map(|answer| answer.status()).ok() };
        let silence = |least: Duration| async move {
            let begin = Instant::now();
            assert!(eventually(DEADLINE, || std::future::ready(begin.elapsed() > least)).await);
        };
        assert_eq!(status().await, Some(200), "{kind:?}");
        assert_eq!(status().await, Some(200), "{kind:?}");
        silence(Duration::from_millis(250)).await;
        assert_eq!(status().await, Some(200), "{kind:?}");
        let told = seen.lock().expect("seen").clone();
        assert_eq!(told, ["request", "request", "ping", "request"], "{kind:?}");
        // It is gone without a word: the request fails long before its own timeout. One that may not be sent twice.
        lives.store(false, Ordering::Relaxed);
        silence(Duration::from_millis(250)).await;
        let begin = Instant::now();
        let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
        let post = b"POST / HTTP/1.1\r\nhost: t.test\r\ncontent-length: 2\r\n\r\nhi";
        let answer = client.exchange(post).await.expect("an answer");
        assert_eq!(answer.status(), 503, "{kind:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{kind:?}: {:?}", begin.elapsed());
        let stats = proxy.stats().await;
        assert_eq!(stats["cluster.silent.http2.keepalive_timeout"], 1, "{kind:?}");
        task.abort();
    }
}
