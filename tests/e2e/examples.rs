//! Every file of `examples/` with the real servers it is made for, and in front of it the judgement of the real Envoy:
//! it must accept the file too.

use crate::harness::client::Client;
use crate::harness::http1::{Message, Reader};
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use crate::peers::servers::{certificate, Server};
use outrigger_control_api::control::{Control, Settings};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Makes a template of an example: its fixed ports become free ones (`listen`, by name) or those of servers.
fn template(text: &str, listen: &[(u16, &str)], servers: &[(u16, u16)]) -> String {
    let mut template = text.to_string();
    let mut replace = |port: u16, new: String| {
        let fixed = format!("port_value: {port} ");
        assert!(template.contains(&fixed), "the example has no port {port}");
        template = template.replace(&fixed, &format!("port_value: {new} "));
    };
    replace(9901, "@port:admin@".to_string());
    for (port, name) in listen {
        replace(*port, format!("@port:{name}@"));
    }
    for (port, new) in servers {
        replace(*port, new.to_string());
    }
    template
}

/// Fails unless the real Envoy accepts the file.
fn envoy_accepts(file: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
    let output = Kind::Envoy.command().args(["--mode", "validate", "-l", "error", "-c"]).arg(&path).output();
    let output = output.expect("envoy");
    assert!(output.status.success(), "Envoy refuses {file}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Fails unless Outrigger validates the file as it stands.
fn outrigger_accepts(file: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["validate", "-c"])
        .arg(&path)
        .output()
        .expect("outrigger");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "outrigger validate refuses {file}: {}", String::from_utf8_lossy(&said));
}

async fn get(client: &mut Client, host: &str, target: &str, headers: &str) -> Message {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    client.exchange(request.as_bytes()).await.unwrap_or_else(|e| panic!("GET {target}: {e}"))
}

#[test]
fn every_example_is_accepted_by_both() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let files = std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"));
    let mut seen = 0;
    for file in files.expect("examples/").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") {
            envoy_accepts(&name);
            outrigger_accepts(&name);
            seen += 1;
        }
    }
    assert!(seen >= 6, "only {seen} examples");
}

#[tokio::test]
async fn http_proxy_shares_between_two_nginx() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let (one, two) = tokio::join!(Server::nginx("one", None), Server::nginx("two", None));
    let text = include_str!("../../examples/http-proxy.yaml");
    let text = template(text, &[(10000, "http")], &[(8081, one.port), (8082, two.port)]);
    let proxy = Proxy::outrigger(&text, &[]).await;

    let mut client = Client::connect(proxy.port("http")).await.unwrap();
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..100 {
        let answer = get(&mut client, "web.test", "/", "").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("server"), Some("envoy"));
        *answers.entry(answer.text()).or_insert(0) += 1;
    }
    assert_eq!(answers.get("one"), Some(&50), "round robin: {answers:?}");
    assert_eq!(answers.get("two"), Some(&50), "round robin: {answers:?}");
    let logged = || async { (one.logged(), two.logged()) == (50, 50) };
    assert!(eventually(DEADLINE, logged).await, "nginx logged {} and {}", one.logged(), two.logged());

    let big = get(&mut client, "web.test", "/big", "").await;
    assert_eq!((big.status(), big.body.len()), (200, 1 << 20));
    let post = b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(client.exchange(post).await.unwrap().status(), 200);
    assert!(proxy.admin("/clusters").await.contains("web::"), "the admin page does not name the cluster");
    let stats = proxy.stats().await;
    assert_eq!(stats.get("cluster.web.upstream_rq_total"), Some(&102));
    // Envoy's own default line: "GET / HTTP/1.1" 200.
    let output =
        || async { proxy.output().lines().filter(|l| l.contains("\"GET / HTTP/1.1\" 200 - 0 3 ")).count() };
    let said = eventually(DEADLINE * 2, || async { output().await == 100 }).await;
    assert!(said, "{} access-log lines on stdout", output().await);
}

#[tokio::test]
async fn tcp_proxy_carries_redis() {
    if !peers::have(&["redis-server"]) {
        return;
    }
    let redis = Server::redis().await;
    let text = include_str!("../../examples/tcp-redis.yaml");
    let text = template(text, &[(10001, "redis")], &[(6379, redis.port)]);
    let proxy = Proxy::outrigger(&text, &[]).await;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port("redis"))).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);

    write.write_all(b"SET greeting hello\r\n").await.unwrap();
    expect(&mut reader, b"+OK\r\n").await;
    write.write_all(b"GET greeting\r\n").await.unwrap();
    expect(&mut reader, b"$5\r\nhello\r\n").await;

    // A pipeline of a thousand, written at once.
    let pipeline: String = (0..1000).map(|i| format!("SET key{i} value{i}\r\n")).collect();
    write.write_all(pipeline.as_bytes()).await.unwrap();
    expect(&mut reader, "+OK\r\n".repeat(1000).as_bytes()).await;

    // A value of eight mebibytes, there and back.
    let value: Vec<u8> = (0..8usize << 20).map(|i| (i % 251) as u8).collect();
    let head = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n", value.len());
    let sending = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&value).await.unwrap();
        write.write_all(b"\r\n").await.unwrap();
    };
    tokio::join!(sending, expect(&mut reader, b"+OK\r\n"));
    write.write_all(b"GET big\r\n").await.unwrap();
    let mut expected = format!("${}\r\n", value.len()).into_bytes();
    expected.extend_from_slice(&value);
    expected.extend_from_slice(b"\r\n");
    expect(&mut reader, &expected).await;

    // QUIT: the server closes, and so must the proxy.
    write.write_all(b"QUIT\r\n").await.unwrap();
    expect(&mut reader, b"+OK\r\n").await;
    assert!(matches!(timeout(DEADLINE, reader.fill()).await, Ok(Ok(false))), "the close was not passed on");
    drop((reader, write));
    let stats = proxy.stats().await;
    assert_eq!(stats.get("tcp.redis.downstream_cx_total"), Some(&1));
    let line = format!("-> 127.0.0.1:{} in ", redis.port);
    assert!(
        eventually(DEADLINE * 2, || async { proxy.output().contains(&line) }).await,
        "no access-log line"
    );
}

async fn expect<R: tokio::io::AsyncRead + Unpin>(reader: &mut Reader<R>, bytes: &[u8]) {
    let wait = async { while reader.buffered.len() < bytes.len() && reader.fill().await.unwrap() {} };
    let in_time = timeout(DEADLINE, wait).await.is_ok();
    let got: Vec<u8> = reader.buffered.drain(..bytes.len().min(reader.buffered.len())).collect();
    let shown = |b: &[u8]| b[..b.len().min(60)].escape_ascii().to_string();
    assert!(
        in_time && got == bytes,
        "wanted {} bytes {}, got {} {}",
        bytes.len(),
        shown(bytes),
        got.len(),
        shown(&got)
    );
}

#[tokio::test]
async fn sni_chooses_the_server_and_tls_goes_through() {
    if !peers::have(&["nginx", "openssl"]) {
        return;
    }
    let dir = TempDir::new();
    let one = certificate(&dir.0, "one", &["one.example.com"]);
    let two = certificate(&dir.0, "two", &["two.example.com", "a.two.example.com"]);
    let first = Server::nginx("this is one", Some(one.clone())).await;
    let second = Server::nginx("this is two", Some(two.clone())).await;
    let text = include_str!("../../examples/sni-passthrough.yaml");
    let text = template(text, &[(10443, "tls")], &[(8443, first.port), (8444, second.port)]);
    let proxy = Proxy::outrigger(&text, &[]).await;

    for (name, trust, body) in [
        ("one.example.com", &one.0, "this is one"),
        ("two.example.com", &two.0, "this is two"),
        ("a.two.example.com", &two.0, "this is two"),
    ] {
        let answer = tls_get(proxy.port("tls"), name, trust).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(body), "{name}: {answer:?}");
    }
    let nobody = tls_get(proxy.port("tls"), "three.example.com", &one.0).await;
    assert!(!nobody.contains("HTTP/1.1"), "a name without a chain was answered: {nobody:?}");
    let unnamed = eventually(DEADLINE, || async {
        proxy.stats().await.iter().any(|(k, v)| k.ends_with(".no_filter_chain_match") && *v >= 1)
    });
    assert!(unnamed.await, "no_filter_chain_match was not counted");
}

/// `GET /` through `openssl s_client`, which checks the certificate against `trust`.
async fn tls_get(port: u16, name: &str, trust: &std::path::Path) -> String {
    let mut child = tokio::process::Command::new(peers::find("openssl").expect("openssl"))
        .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", name, "-servername", name])
        .arg("-connect")
        .arg(format!("127.0.0.1:{port}"))
        .arg("-CAfile")
        .arg(trust)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl s_client");
    let mut input = child.stdin.take().expect("its input");
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let _ = input.write_all(request.as_bytes()).await;
    let mut output = Vec::new();
    let mut stdout = child.stdout.take().expect("its output");
    timeout(DEADLINE, stdout.read_to_end(&mut output))
        .await
        .expect("s_client did not end")
        .expect("its output");
    drop(input);
    String::from_utf8_lossy(&output).into_owned()
}

/// A directory for certificates.
struct TempDir(tempfile::TempDir);

impl TempDir {
    fn new() -> TempDir {
        TempDir(tempfile::Builder::new().prefix("outrigger-tls").tempdir().expect("a directory"))
    }
}

/// A client's frame: final, masked.
fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | kind];
    match data.len() {
        n @ 0..=125 => bytes.push(0x80 | n as u8),
        n @ 126..=65535 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    bytes.extend_from_slice(&mask);
    bytes.extend(data.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
    bytes
}

/// A server's frame.
fn echoed(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = frame(kind, data);
    let head = bytes.len() - data.len();
    bytes.truncate(head - 4);
    bytes[1] &= 0x7f;
    bytes.extend_from_slice(data);
    bytes
}

async fn websocket(port: u16) -> Client {
    let mut client = Client::connect(port).await.unwrap();
    let upgrade =
        b"GET /chat/room HTTP/1.1\r\nHost: chat.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let answer = client.exchange(upgrade).await.unwrap();
    assert_eq!(answer.start_line, "HTTP/1.1 101 Switching Protocols");
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client
}

#[tokio::test]
async fn websocket_echoes_and_closes_at_once() {
    if !peers::have(&["python3"]) {
        return;
    }
    let server = Server::websocket().await;
    let text = include_str!("../../examples/websocket.yaml");
    let text = template(text, &[(10002, "web")], &[(8083, server.port)]);
    let proxy = Proxy::outrigger(&text, &[]).await;

    let mut client = websocket(proxy.port("web")).await;
    for size in [0, 5, 125, 126, 65_535, 65_536, 1 << 20] {
        let data: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
        client.send(&frame(2, &data)).await.unwrap();
        expect(&mut client.reader, &echoed(2, &data)).await;
    }
    client.send(&frame(9, b"are you there")).await.unwrap();
    expect(&mut client.reader, &echoed(10, b"are you there")).await;

    // The closing handshake begun by the client: the server closes after it, and that must arrive at once. (Envoy
    // waits a second.)
    client.send(&frame(8, &[3, 232])).await.unwrap();
    expect(&mut client.reader, &echoed(8, &[3, 232])).await;
    let started = Instant::now();
    assert!(client.closed(DEADLINE).await, "the close was not passed on");
    assert!(started.elapsed() < Duration::from_millis(500), "the close took {:?}", started.elapsed());

    // A server that goes away without a word.
    let mut client = websocket(proxy.port("web")).await;
    let started = Instant::now();
    client.send(&frame(1, b"drop")).await.unwrap();
    assert!(client.closed(DEADLINE).await, "the drop was not passed on");
    assert!(started.elapsed() < Duration::from_millis(500), "the drop took {:?}", started.elapsed());

    // Everything else is plain HTTP, and may not upgrade.
    let mut client = Client::connect(proxy.port("web")).await.unwrap();
    assert_eq!(get(&mut client, "chat.test", "/", "").await.text(), "talk to /chat\n");
    let elsewhere = get(&mut client, "chat.test", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    assert_ne!(elsewhere.status(), 101);
}

#[tokio::test]
async fn routing_tour() {
    let orders = Origin::with(true, |r| Answer::ok(&format!("orders {}", r.target()))).await;
    let users = Origin::with(true, |r| Answer::ok(&format!("users {}", r.target()))).await;
    let next = Origin::with(true, |r| Answer::ok(&format!("next {}", r.target()))).await;
    let text = include_str!("../../examples/routing.yaml");
    let servers = [(8081, orders.port()), (8082, users.port()), (8083, next.port())];
    let proxy = Proxy::outrigger(&template(text, &[(10000, "http")], &servers), &[]).await;
    let mut client = Client::connect(proxy.port("http")).await.unwrap();
    let shop = "shop.example.com";

    let order = get(&mut client, shop, "/orders/42", "").await;
    assert_eq!(order.text(), "orders /api/order?id=42");
    let seen = orders.take();
    assert_eq!(seen[0].header("x-proxied-by"), Some("outrigger"));
    assert_eq!(seen[0].header("x-envoy-original-path"), Some("/orders/42"));

    assert_eq!(get(&mut client, shop, "/users/7", "x-preview: on\r\n").await.text(), "next /v2/users/7");
    let mut shares = [0, 0];
    for _ in 0..300 {
        let answer = get(&mut client, shop, "/users", "").await;
        let next = answer.text() == "next /users";
        assert!(next || answer.text() == "users /users", "{}", answer.text());
        assert_eq!(answer.header("x-served-by").is_some(), next);
        shares[usize::from(next)] += 1;
    }
    assert!((5..90).contains(&shares[1]), "of 300 requests {} went to the tenth part", shares[1]);

    next.take();
    assert_eq!(get(&mut client, shop, "/search?q=x", "").await.text(), "orders /search?q=x");
    assert!(next.wait_for(1).await, "nothing was mirrored");
    assert_eq!(next.take()[0].header("host"), Some("shop.example.com-shadow"));

    let moved = get(&mut client, shop, "/legacy/9?a=b", "").await;
    assert_eq!(
        (moved.status(), moved.header("location")),
        (308, Some("http://shop.example.com/users/9?a=b"))
    );
    let health = get(&mut client, "eu.shop.example.com", "/healthz", "").await;
    assert_eq!((health.text().as_str(), health.header("cache-control")), ("fine\n", Some("no-store")));

    orders.take();
    orders.answer(|_| Answer::raw("HTTP/1.1 200 OK\r\nx-powered-by: cgi\r\ncontent-length: 2\r\n\r\nok"));
    let rest = get(&mut client, shop, "/a/../other", "x-debug: 1\r\nx-forwarded-for: 9.9.9.9\r\n").await;
    assert_eq!(rest.header("x-powered-by"), None);
    let seen = orders.take().remove(0);
    assert_eq!(seen.target(), "/other");
    assert_eq!((seen.header("host"), seen.header("x-debug")), (Some("orders.internal"), None));
    assert_eq!(seen.header("x-client"), Some("127.0.0.1"));
    assert!(seen.header("x-forwarded-for").is_some_and(|v| v.starts_with("9.9.9.9,")), "{:?}", seen.headers);

    let secure = get(&mut client, "secure.example.com", "/x", "").await;
    assert_eq!((secure.status(), secure.header("location")), (301, Some("https://secure.example.com/x")));
    let unknown = get(&mut client, "elsewhere.example.com", "/", "").await;
    assert_eq!((unknown.status(), unknown.text().as_str()), (404, "no such site\n"));

    // A failure is logged twice: as text, and as JSON on the other stream.
    drop(orders);
    let failed = get(&mut client, shop, "/orders/1", "").await;
    assert_eq!(failed.status(), 503);
    let logged = eventually(DEADLINE * 2, || async {
        let output = proxy.output();
        output.lines().any(|l| l.starts_with("GET /orders/1 503 U") && l.contains(" order orders "))
            && output
                .lines()
                .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
                .any(|v| v["status"] == 503 || v["status"] == "503")
    });
    assert!(logged.await, "access logs:\n{}", proxy.output());
}

#[tokio::test]
async fn a_sidecar_follows_the_files_of_its_control_plane() {
    let named = |name: &'static str| Origin::with(true, move |_| Answer::ok(name));
    let (one, two, stable, canary) =
        tokio::join!(named("one"), named("two"), named("stable"), named("canary"));
    let redis = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (http, tcp) = (free_port(), free_port());
    let mut services = include_str!("../../examples/control/services.yaml").to_string();
    let ports =
        [(10000, http), (8081, one.port()), (8082, two.port()), (8083, stable.port()), (8084, canary.port())];
    for (fixed, port) in ports {
        let address = format!("127.0.0.1:{fixed}");
        assert!(services.contains(&address), "the example has no {address}");
        services = services.replace(&address, &format!("127.0.0.1:{port}"));
    }
    let mut resources = include_str!("../../examples/control/redis.yaml").to_string();
    for (fixed, port) in [(10001, tcp), (6379, redis.local_addr().unwrap().port())] {
        assert!(resources.contains(&format!("port_value: {fixed} ")), "the example has no port {fixed}");
        resources = resources.replace(&format!("port_value: {fixed} "), &format!("port_value: {port} "));
    }
    let files = tempfile::tempdir().expect("a directory");
    let put = |name: &str, text: &str| {
        std::fs::write(files.path().join(".aside"), text).expect("written");
        std::fs::rename(files.path().join(".aside"), files.path().join(name)).expect("moved");
    };
    put("services.yaml", &services);
    put("redis.yaml", &resources);
    let control = Control::open(Settings::new(files.path()), |line| println!("{line}"));
    assert_eq!(control.problems(), []);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = control.clone();
    let plane = tokio::spawn(async move {
        let server = serving.server();
        tokio::select! {
            () = server.serve(listener) => {}
            () = serving.follow() => {}
        }
    });
    let text = template(include_str!("../../examples/sidecar-ads.yaml"), &[], &[(18000, port)]);
    let proxy = Proxy::outrigger(&text, &[]).await;
    let mut client = Client::connect(http).await.unwrap();
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..200 {
        for host in ["web", "checkout"] {
            *answers.entry(get(&mut client, host, "/", "").await.text()).or_insert(0) += 1;
        }
    }
    assert_eq!((answers.get("one"), answers.get("two")), (Some(&100), Some(&100)), "{answers:?}");
    assert!((1..60).contains(answers.get("canary").unwrap_or(&0)), "a tenth: {answers:?}");
    assert_eq!(get(&mut client, "checkout", "/", "x-preview: on\r\n").await.text(), "canary");
    let mut to_redis = TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).await.unwrap();
    to_redis.write_all(b"PING\r\n").await.unwrap();
    let (mut at_redis, _) = timeout(DEADLINE, redis.accept()).await.expect("in time").unwrap();
    let mut ping = [0; 6];
    timeout(DEADLINE, at_redis.read_exact(&mut ping)).await.expect("in time").unwrap();
    assert_eq!(&ping, b"PING\r\n");

    // The file changes: on the same connection the sidecar follows. A mistake changes nothing.
    put("services.yaml", &services.replace(&format!("\"127.0.0.1:{}\", ", one.port()), ""));
    let mut only_two = false;
    for _ in 0..10_000 {
        let (first, second) =
            (get(&mut client, "web", "/", "").await, get(&mut client, "web", "/", "").await);
        assert_eq!((first.status(), second.status()), (200, 200));
        only_two = first.text() == "two" && second.text() == "two";
        if only_two {
            break;
        }
    }
    assert!(only_two, "the change was not followed: {}", proxy.output());
    put("services.yaml", &services.replace("weight: 90", "wait: 90"));
    assert!(eventually(DEADLINE, || async { !control.problems().is_empty() }).await);
    assert_eq!(get(&mut client, "web", "/", "").await.text(), "two");
    assert!(control.cache().streams().iter().all(|stream| stream.types.iter().all(|known| known.nacks == 0)));
    plane.abort();
}
