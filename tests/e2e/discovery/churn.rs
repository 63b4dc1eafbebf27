//! Constant change under load: nothing fails, and what was open stays open.

use std::time::Duration;

use super::calls::{echo, Call};
use super::clients::{named, proxy, Load};
use super::mesh::{ControlPlane, Mesh};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin, Then};
use crate::harness::ports::free_port;
use crate::harness::{alone, http2};

const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: t.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// How many seconds the churn lasts: `OUTRIGGER_CHURN_SECONDS`, else few.
fn seconds() -> u64 {
    std::env::var("OUTRIGGER_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

#[tokio::test]
async fn constant_change_loses_no_request_and_cuts_no_stream() {
    let _alone = alone().await;
    let backends = [named("a").await, named("b").await, named("c").await];
    let ports: Vec<u16> = backends.iter().map(Origin::port).collect();
    let sockets = Origin::with(false, |_| {
        Answer::raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .at_head()
            .then(Then::Echo)
    })
    .await;
    let port = free_port();
    let mut mesh = Mesh::simple(port, &ports);
    mesh.services.insert("sockets".into(), vec![sockets.port()]);
    mesh.services.insert("streams".into(), vec![http2::serve(echo).await]);
    mesh.cluster_extra.insert("streams".into(), http2::OPTIONS.into());
    let tables = [
        vec![
            ("/ws".into(), vec![("sockets".into(), 1)]),
            ("/test.Echo/".into(), vec![("streams".into(), 1)]),
            ("/".into(), vec![("web".into(), 1)]),
        ],
        vec![
            ("/ws".into(), vec![("sockets".into(), 1)]),
            ("/test.Echo/".into(), vec![("streams".into(), 1)]),
            ("/".into(), vec![("web".into(), 9), ("web2".into(), 1)]),
        ],
    ];
    mesh.services.insert("web2".into(), ports.clone());
    mesh.tables.insert("main".into(), tables[0].clone());
    let control = ControlPlane::start(&mesh).await;
    let proxy = proxy(true, &control).await;
    let mut socket = Client::connect(port).await.expect("a connection");
    assert_eq!(socket.exchange(UPGRADE).await.expect("an answer").status(), 101);

    let mut call = Call::open(port).await;

    let local = tokio::task::LocalSet::new();
    let load = Load::start(port, 8, &local);
    let script = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        for step in 1..=seconds() * 100 {
            tick.tick().await;
            // A different choice of endpoints each time.
            let chosen: Vec<u16> =
                (0..3).filter(|bit| (step % 7 + 1) >> bit & 1 == 1).map(|bit| ports[bit as usize]).collect();
            mesh.services.insert("web".into(), chosen);
            if step % 100 == 0 {
                mesh.tables.insert("main".into(), tables[(step / 100 % 2) as usize].clone());
            }
            if step % 250 == 0 {
                mesh.manager_extra = format!("      server_name: step{step}");
            }
            control.set(&mesh);
            if step % 50 == 0 {
                let message = format!("message {step}");
                socket.send(message.as_bytes()).await.expect("the socket is open");
                while socket.reader.buffered.len() < message.len() {
                    assert!(socket.reader.fill().await.expect("the socket is open"), "the socket was closed");
                }
                assert_eq!(&socket.reader.buffered[..], message.as_bytes());
                socket.reader.buffered.clear();
                call.echo(message.as_bytes()).await;
            }
        }
        call.end().await;
        load.stop.set(true);
    };
    local.run_until(script).await;
    local.await;
    assert_eq!(*load.lost.borrow(), Vec::<String>::new(), "of {} requests", load.good.get());
    assert_eq!(control.refused(), []);
    let stats = proxy.stats().await;
    let updates = stats["cluster.web.update_success"];
    assert!(updates >= seconds() * 20, "only {updates} updates of endpoints arrived");
    assert!(stats["listener_manager.lds.update_success"] > seconds() * 100 / 250);
    eprintln!("{} requests, {updates} updates of endpoints", load.good.get());
}
