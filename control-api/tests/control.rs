//! `outrigger-control` with foreign clients: the real Envoy, and gRPC's own xDS client. `OUTRIGGER_ENVOY`
//! names the binary of the one, `OUTRIGGER_GRPC_PYTHON` a Python that has `grpcio`, for the other.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

mod harness;
use harness::{backend, bootstrap, envoy_binary, free_address, start_envoy, until_answered, LIMIT};

/// `outrigger-control` on a directory.
struct Control {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    discovery: SocketAddr,
    status: SocketAddr,
}

impl Control {
    async fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger-control"))
            .args(["--listen", "127.0.0.1:0", "--status", "127.0.0.1:0", "--dir"])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("outrigger-control starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let nowhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let mut control = Self { _child: child, lines, discovery: nowhere, status: nowhere };
        let served = control.line("outrigger-control serves").await;
        control.discovery = served.rsplit(' ').next().unwrap().parse().unwrap();
        let page = control.line("status page: http://").await;
        control.status = page.rsplit("//").next().unwrap().trim_end_matches('/').parse().unwrap();
        control
    }

    /// The next line with `part` in it.
    async fn line(&mut self, part: &str) -> String {
        let found = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("outrigger-control runs");
                if line.contains(part) {
                    return line;
                }
            }
        };
        tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no line with {part:?}"))
    }

    async fn status(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.status).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

/// Moves a file into place, so that nobody sees half of it.
fn put(directory: &Path, name: &str, text: &str) {
    let fresh = directory.join(".fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, directory.join(name)).unwrap();
}

fn web(listen: SocketAddr, endpoint: SocketAddr) -> String {
    format!("listen: {listen}\nservices:\n  web:\n    endpoints: ['{endpoint}']\n    timeout: 5s\n")
}

async fn envoy_follows(envoy: &OsStr, api_type: &str) {
    let (one, two) = (backend("one").await, backend("two").await);
    let free = free_address().await;
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "services.yaml", &web(free, one));
    let mut control = Control::start(dir.path()).await;
    let _envoy = start_envoy(envoy, &bootstrap(control.discovery, api_type));
    let mut good = false;
    until_answered(free, "one", &mut good).await;

    put(dir.path(), "services.yaml", &web(free, two));
    until_answered(free, "two", &mut good).await;
    // A canary that gets everything.
    let canary = format!(
        "listen: {free}\nservices:\n  web:\n    versions:\n      old: {{weight: 0, endpoints: ['{two}']}}\n      \
         new: {{weight: 100, endpoints: ['{one}']}}\n"
    );
    put(dir.path(), "services.yaml", &canary);
    until_answered(free, "one", &mut good).await;

    // What is wrong with a file is said, and what was served stays.
    put(dir.path(), "services.yaml", &web(free, two).replace("timeout", "tmieout"));
    let line = control.line("MISTAKE").await;
    let where_to_look = "services.yaml: service \"web\": services[\"web\"].tmieout: no such field";
    assert!(line.contains(where_to_look), "{line}");
    control.line("the last good state stays").await;
    let status: Value = serde_json::from_str(&control.status("/status.json").await).unwrap();
    assert_eq!(status["snapshots"][0]["problems"][0]["field"], "services[\"web\"].tmieout", "{status:#}");
    assert_eq!(status["clients"][0]["id"], "envoy");
    assert_eq!(status["clients"][0]["protocol"], if api_type == "GRPC" { "sotw" } else { "delta" });
    until_answered(free, "one", &mut good).await;

    // What the client refuses is said as well: no prime number.
    put(dir.path(), "services.yaml", &canary);
    let odd = "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: odd\n\
               lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 12}\n";
    put(dir.path(), "odd.yaml", odd);
    let line = control.line("REFUSED").await;
    assert!(line.contains("\"envoy\"") && line.contains("Cluster") && line.contains("odd"), "{line}");
    let page = control.status("/").await;
    assert!(page.contains("class=bad") && page.contains("odd"), "{page}");
    until_answered(free, "one", &mut good).await;
}

#[tokio::test]
async fn envoy_is_served_from_a_directory() {
    let Some(envoy) = envoy_binary() else { return };
    for api_type in ["DELTA_GRPC", "GRPC"] {
        envoy_follows(&envoy, api_type).await;
    }
}

/// A Python process that says lines.
struct Python {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start(python: &OsStr, script: &str, argument: &str, bootstrap: Option<String>) -> Self {
        let mut command = Command::new(python);
        command.args(["-c", script, argument]).envs(bootstrap.map(|b| ("GRPC_XDS_BOOTSTRAP_CONFIG", b)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("Python starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { input: child.stdin.take().unwrap(), lines, child }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await.expect("a line in time");
        line.unwrap().expect("Python runs")
    }

    async fn call(&mut self) -> String {
        self.input.write_all(b"\n").await.unwrap();
        self.line().await
    }

    async fn until_answered(&mut self, want: &str) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let asking = async {
            loop {
                tick.tick().await;
                let answer = self.call().await;
                assert!(!answer.starts_with("error"), "{answer}");
                if answer == want {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, asking).await.unwrap_or_else(|_| panic!("{want:?} never answered"));
    }
}

#[tokio::test]
async fn grpc_finds_its_services() {
    let Some(python) = std::env::var_os("OUTRIGGER_GRPC_PYTHON") else {
        eprintln!("skipped: OUTRIGGER_GRPC_PYTHON does not name a Python with grpcio");
        return;
    };
    let server = include_str!("harness/echo_server.py");
    let mut one = Python::start(&python, server, "one", None);
    let mut two = Python::start(&python, server, "two", None);
    let (first, second) = (one.line().await, two.line().await);
    let dir = tempfile::tempdir().unwrap();
    let services = |port: &str| {
        format!("services:\n  echo: {{protocol: grpc, port: 5000, endpoints: ['127.0.0.1:{port}']}}\n")
    };
    put(dir.path(), "services.yaml", &services(&first));
    let mut control = Control::start(dir.path()).await;
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": control.discovery.to_string(), "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"]
        }],
        "node": {"id": "grpc", "cluster": "test"}
    });
    let client = include_str!("harness/echo_client.py");
    for target in ["xds:///echo", "xds:///echo:5000"] {
        put(dir.path(), "services.yaml", &services(&first));
        let mut client = Python::start(&python, client, target, Some(bootstrap.to_string()));
        client.until_answered("one").await;
        put(dir.path(), "services.yaml", &services(&second));
        client.until_answered("two").await;
        control.line("client \"grpc\"").await;
        let status: Value = serde_json::from_str(&control.status("/status.json").await).unwrap();
        let types = status["clients"][0]["types"].as_array().unwrap();
        assert!(types.iter().all(|kind| kind["refused"] == 0 && kind["wildcard"] == false), "{status:#}");
        drop(client.input);
        tokio::time::timeout(LIMIT, client.child.wait()).await.expect("the client ends").unwrap();
    }
}
