//! What the tests with foreign clients share: backends, Envoy, and waiting for answers.

#![allow(dead_code)] // each test uses its part

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

pub const LIMIT: Duration = Duration::from_secs(30);

/// Answers every connection with its name.
pub async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let length = name.len();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.write_all((head + name).as_bytes()).await;
        }
    });
    address
}

pub fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

pub fn bootstrap(server: SocketAddr, api_type: &str) -> String {
    let http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let source = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": "envoy", "cluster": "test"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type, "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]
            },
            "cds_config": source, "lds_config": source
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "5s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": http2, "explicit_http_config": {"http2_protocol_options": {}}
                }
            },
            "load_assignment": {
                "cluster_name": "xds",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(server)}}]}]
            }
        }]}
    })
    .to_string()
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Asks until the answer ends with `want`; from the first good answer on, every answer must be good.
pub async fn until_answered(address: SocketAddr, want: &str, good: &mut bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let asking = async {
        loop {
            tick.tick().await;
            let answer = ask(address).await.unwrap_or_default();
            let ok = answer.starts_with("HTTP/1.1 200");
            assert!(ok || !*good, "a request failed during a change: {answer:?}");
            *good |= ok;
            if answer.ends_with(want) {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap_or_else(|_| panic!("{want:?} never answered"));
}

/// The Envoy to test with; without one the test is skipped.
pub fn envoy_binary() -> Option<OsString> {
    let named = std::env::var_os("OUTRIGGER_ENVOY");
    if named.is_none() {
        eprintln!("skipped: OUTRIGGER_ENVOY does not name an Envoy binary");
    }
    named
}

/// Starts Envoy; it ends with the value returned.
pub fn start_envoy(envoy: &OsStr, config: &str) -> Child {
    Command::new(envoy)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error", "--config-yaml", config])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("Envoy starts")
}

/// An address that nobody listens on.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
