//! The UDP proxy beside Envoy's: what clients get back, what upstreams see, what is counted.

use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Answers each datagram with it, and with where it came from.
struct Origin {
    port: u16,
    task: JoinHandle<()>,
}

impl Origin {
    async fn start() -> Origin {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let task = tokio::spawn(async move {
            let mut bytes = vec![0; 1 << 16];
            while let Ok((count, peer)) = socket.recv_from(&mut bytes).await {
                let answer = [&bytes[..count], format!(" from {}", peer.port()).as_bytes()].concat();
                let _ = socket.send_to(&answer, peer).await;
            }
        });
        Origin { port, task }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn listener(name: &str, options: &str, route: &str) -> String {
    format!(
        "  - name: {name}\n    address: {{ socket_address: {{ protocol: UDP, address: 127.0.0.1, port_value: @port:{name}@ }} }}\n{options}    listener_filters:\n    - name: envoy.filters.udp_listener.udp_proxy\n      typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig, stat_prefix: {name}, {route} }}\n"
    )
}

fn cluster(name: &str, endpoints: &str) -> String {
    format!("  - name: {name}\n    connect_timeout: 1s\n    type: STATIC\n    load_assignment: {{ cluster_name: {name}{endpoints} }}\n")
}

fn template() -> String {
    let to = |name: &str| {
        format!("matcher: {{ on_no_match: {{ action: {{ name: route, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route, cluster: {name} }} }} }} }}")
    };
    let small = "    udp_listener_config: { downstream_socket_config: { max_rx_datagram_size: 100 } }\n";
    let at = |port: &str| {
        format!(", endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }} ] }} ]")
    };
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}",
        [
            listener("plain", "", "cluster: good"),
            listener("matched", "", &to("good")),
            listener("short", "", &format!("{}, idle_timeout: 0.3s", to("good"))),
            listener("small", small, &to("good")),
            listener("empty", "", &to("empty")),
            listener("missing", "", &to("nowhere")),
            listener("hashed", "", &format!("{}, hash_policies: [ {{ source_ip: true }} ]", to("ring"))),
        ]
        .concat(),
        [
            cluster("good", &at("@origin@")),
            cluster("empty", ""),
            cluster("ring", &at("@origin@")) + "    lb_policy: RING_HASH\n",
        ]
        .concat()
    )
}

struct Client(UdpSocket);

impl Client {
    async fn of(port: u16) -> Client {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.expect("connected");
        Client(socket)
    }

    async fn send(&self, bytes: &[u8]) {
        self.0.send(bytes).await.expect("sent");
    }

    async fn next(&self, patience: Duration) -> Option<String> {
        let mut bytes = vec![0; 1 << 16];
        let count = timeout(patience, self.0.recv(&mut bytes)).await.ok()?.ok()?;
        Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }
}

/// What happens, without the numbers of ports.
async fn observe(kind: Kind) -> (String, BTreeMap<String, u64>) {
    let origin = Origin::start().await;
    let values = [("origin", origin.port.to_string())];
    let proxy = Proxy::start(Plan::new(kind, &template(), &values)).await;
    let mut text = String::new();
    let none = Duration::from_millis(200);
    for name in ["plain", "matched", "hashed"] {
        let (one, other) = (Client::of(proxy.port(name)).await, Client::of(proxy.port(name)).await);
        let mut sources = Vec::new();
        for client in [&one, &other, &one, &other] {
            client.send(b"hello").await;
            let answer = client.next(DEADLINE).await.unwrap_or_else(|| "nothing from -".to_string());
            let (said, from) = answer.rsplit_once(' ').expect("a source");
            text += &format!("{name}: {said}\n");
            sources.push(from.to_string());
        }
        // One upstream socket for each client.
        let same = (sources[0] == sources[2], sources[1] == sources[3], sources[0] == sources[1]);
        text += &format!("{name}: {same:?}\n");
        one.send(b"").await;
        text += &format!("{name}: empty {}\n", one.next(DEADLINE).await.is_some());
        for _ in 0..50 {
            one.send(&[b'x'; 1200]).await;
        }
        let mut count = 0;
        while count < 50 && one.next(DEADLINE).await.is_some() {
            count += 1;
        }
        text += &format!("{name}: {count} of 50\n");
    }
    let client = Client::of(proxy.port("short")).await;
    client.send(b"a").await;
    let first = client.next(DEADLINE).await.expect("an answer");
    let over = || async { proxy.stats().await.get("udp.short.idle_timeout") == Some(&1) };
    text += &format!("short: over {}\n", eventually(DEADLINE, over).await);
    client.send(b"a").await;
    text += &format!("short: the same {}\n", client.next(DEADLINE).await.expect("an answer") == first);
    let client = Client::of(proxy.port("small")).await;
    client.send(&[b'x'; 101]).await;
    client.send(&[b'x'; 100]).await;
    text +=
        &format!("small: {}\n", client.next(DEADLINE).await.map_or(0, |answer| answer.matches('x').count()));
    for name in ["empty", "missing"] {
        let client = Client::of(proxy.port(name)).await;
        client.send(b"hello").await;
        text += &format!("{name}: {:?}\n", client.next(none).await);
    }
    let over = || async { proxy.stats().await.get("udp.short.idle_timeout") == Some(&2) };
    text += &format!("short: over again {}\n", eventually(DEADLINE, over).await);
    let wanted = |name: &String| {
        name.starts_with("udp.")
            || name.contains(".udp.")
            || (name.starts_with("cluster.") && name.ends_with("x_bytes_total"))
            || name.ends_with("downstream_rx_datagram_dropped")
            || name.ends_with("upstream_cx_none_healthy")
    };
    let stats = proxy.stats().await.into_iter().filter(|(name, value)| wanted(name) && *value > 0);
    let port = proxy.port("small").to_string();
    (text, stats.map(|(name, value)| (name.replace(&port, "<port>"), value)).collect())
}

#[tokio::test]
async fn udp() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, mine) = tokio::join!(observe(Kind::Envoy), observe(Kind::Outrigger));
    assert!(theirs.0.contains("matched: 50 of 50\n"), "{}", theirs.0);
    assert_eq!(theirs.0, mine.0, "left: Envoy");
    assert_eq!(theirs.1, mine.1, "left: Envoy");
}
