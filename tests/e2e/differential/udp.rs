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
            listener("sources", "", BY_SOURCE),
            listener("spread", "", &format!("{}, use_per_packet_load_balancing: true", to("both"))),
            listener("logged", "", &format!("idle_timeout: 0.3s, {}, {}, {}", to("good"), log("access_log", SESSION_LOG), log("proxy_access_log", PROXY_LOG))),
            listener("often", "", &format!("access_log_options: {{ access_log_flush_interval: 0.05s }}, {}, {}", to("good"), log("access_log", "often %ACCESS_LOG_TYPE%"))),
            listener("hashed", "", &format!("{}, hash_policies: [ {{ source_ip: true }} ]", to("ring"))),
        ]
        .concat(),
        [
            cluster("good", &at("@origin@")),
            cluster("other", &at("@second@")),
            cluster("both", &format!(
                ", endpoints: [ {{ lb_endpoints: [ {} ] }} ]",
                ["@origin@", "@second@"].map(|port| format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")).join(", ")
            )),
            cluster("empty", ""),
            cluster("ring", &at("@origin@")) + "    lb_policy: RING_HASH\n",
        ]
        .concat()
    )
}

/// From 127.0.0.1 to one cluster, from 127.0.0.3 to 5 to another, from elsewhere to none.
const BY_SOURCE: &str = r#"matcher: {
  matcher_tree: { input: { name: source, typed_config: { "@type": type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput } },
    exact_match_map: { map: { "127.0.0.1": { action: { name: route, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route, cluster: good } } } } } },
  on_no_match: { matcher: { matcher_list: { matchers: [ {
    predicate: { single_predicate: { input: { name: source, typed_config: { "@type": type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput } },
      custom_match: { name: ip, typed_config: { "@type": type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip, stat_prefix: ip, cidr_ranges: [ { address_prefix: 127.0.0.3, prefix_len: 32 }, { address_prefix: 127.0.0.4, prefix_len: 31 } ] } } } },
    on_match: { action: { name: route, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route, cluster: other } } } } ] } } } }"#;

const SESSION_LOG: &str = "session %DYNAMIC_METADATA(udp.proxy.session)% %DYNAMIC_METADATA(udp.proxy.session:cluster_name)% %DYNAMIC_METADATA(udp.proxy.session:bytes_sent)% %BYTES_SENT% %BYTES_RECEIVED% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_CLUSTER% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %ACCESS_LOG_TYPE% %REQUESTED_SERVER_NAME% %ROUTE_NAME% %UPSTREAM_WIRE_BYTES_SENT% %FILTER_CHAIN_NAME% %UPSTREAM_REQUEST_ATTEMPT_COUNT%";
const PROXY_LOG: &str = "proxy %DYNAMIC_METADATA(udp.proxy.proxy)% %BYTES_SENT% %BYTES_RECEIVED% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %CONNECTION_ID% %ACCESS_LOG_TYPE%";

fn log(field: &str, format: &str) -> String {
    format!("{field}: [ {{ name: log, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \"@dir@/udp.log\", log_format: {{ text_format_source: {{ inline_string: \"{format}\\n\" }} }} }} }} ]")
}

struct Client(UdpSocket);

impl Client {
    async fn of(port: u16) -> Client {
        Client::at(Ipv4Addr::LOCALHOST, port).await
    }

    async fn at(own: Ipv4Addr, port: u16) -> Client {
        let socket = UdpSocket::bind((own, 0)).await.expect("a port");
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
    let (origin, second) = (Origin::start().await, Origin::start().await);
    let values = [("origin", origin.port.to_string()), ("second", second.port.to_string())];
    let template = template();
    let mut plan = Plan::new(kind, &template, &values);
    plan.arguments = &["--concurrency", "1", "--file-flush-interval-msec", "50"];
    let mut proxy = Proxy::start(plan).await;
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
    for last in 1..7 {
        let client = Client::at(Ipv4Addr::new(127, 0, 0, last), proxy.port("sources")).await;
        client.send(b"a").await;
        // Who gets nothing is counted below.
        let patience = if matches!(last, 2 | 6) { none } else { DEADLINE };
        text += &format!("sources: {last} {}\n", client.next(patience).await.is_some());
    }
    let client = Client::of(proxy.port("spread")).await;
    let mut from = Vec::new();
    for _ in 0..6 {
        client.send(b"a").await;
        let answer = client.next(DEADLINE).await.expect("an answer");
        from.push(answer.rsplit_once(' ').expect("a source").1.to_owned());
    }
    // Every other one by the same socket.
    let pairs: Vec<_> = from.iter().skip(2).zip(&from).map(|(later, first)| later == first).collect();
    text += &format!("spread: {pairs:?} {}\n", from[0] == from[1]);
    let (logged, often) = (Client::of(proxy.port("logged")).await, Client::of(proxy.port("often")).await);
    for size in [3, 30, 300] {
        logged.send(&vec![b'x'; size]).await;
        text += &format!(
            "logged: {}\n",
            logged.next(DEADLINE).await.map_or(0, |answer| answer.matches('x').count())
        );
    }
    often.send(b"a").await;
    let lines = |start: &'static str| {
        proxy.lines("udp.log", 0).into_iter().filter(|line| line.starts_with(start)).collect::<Vec<_>>()
    };
    let periodic = || async { lines("often").len() > 2 };
    text += &format!("often: {} {:?}\n", eventually(DEADLINE, periodic).await, lines("often").first());
    let ended = || async { lines("session").len() == 1 };
    text += &format!("logged: ended {}\n", eventually(DEADLINE, ended).await);
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
    let stats = stats.collect::<Vec<_>>().into_iter();
    let ended = proxy.lines("udp.log", 0);
    proxy.signal(libc::SIGTERM);
    text += &format!("ended: {}\n", proxy.exit(DEADLINE).await.is_some());
    for line in proxy.lines("udp.log", 0).iter().filter(|line| !line.starts_with("often UdpPeriodic")) {
        text += &format!("{} {line}\n", ended.contains(line));
    }
    (text, stats.map(|(name, value)| (name.replace(&port, "<port>"), value)).collect())
}

#[tokio::test]
async fn udp() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, mine) = tokio::join!(observe(Kind::Envoy), observe(Kind::Outrigger));
    assert!(theirs.0.contains("matched: 50 of 50\n"), "{}", theirs.0);
    for wanted in [
        "sources: 1 true\nsources: 2 false\nsources: 3 true\n",
        "spread: [true, true, true, true] false\n",
        "often: true Some(\"often UdpPeriodic\")\nlogged: ended true\n",
        "ended: true\n",
        "false proxy {",
    ] {
        assert!(theirs.0.contains(wanted), "{wanted}: {}", theirs.0);
    }
    assert_eq!(theirs.0, mine.0, "left: Envoy");
    assert_eq!(theirs.1, mine.1, "left: Envoy");
}
