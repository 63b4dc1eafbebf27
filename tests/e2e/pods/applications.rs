//! Real programs, unchanged, through two sidecars with mTLS between them.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cases::World;
use super::mesh::Pod;
use super::wire::Wire;
use crate::harness::DEADLINE;
use crate::peers::servers::python;
use crate::peers::{find, have};

/// A server program in a pod; killed when dropped.
struct Program(Child);

impl Program {
    /// Starts it, and waits until something listens on `port` of its pod.
    fn start(pod: &Pod, mut command: Command, port: u16) -> Program {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let program = Program(child.expect("a program"));
        let end = Instant::now() + DEADLINE * 2;
        while pod.connect(std::net::SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
            assert!(Instant::now() < end, "nothing listens on {port}");
            std::thread::sleep(Duration::from_millis(10));
        }
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(pod: &Pod, name: &str) -> Command {
    pod.program(false, &find(name).expect(name).display().to_string())
}

fn said(mut command: Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a client");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("sent");
    let output = child.wait_with_output().expect("the client's end");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn redis_by_pipeline_and_by_publishing() {
    if !have(&["redis-server", "redis-cli"]) {
        return;
    }
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let mut command = program(server, "redis-server");
    command.args(["--port", "6379", "--save", "", "--protected-mode", "no", "--bind", "0.0.0.0", "::"]);
    let _redis = Program::start(server, command, 6379);
    let cli = || {
        let mut command = program(client, "redis-cli");
        command.args(["-h", &server.v4.to_string()]);
        command
    };
    let wire = Wire::tap(&world.mesh);
    let lines: String = (0..2000).map(|n| format!("SET key{n} value{n}\r\n")).collect();
    let mut pipe = cli();
    pipe.arg("--pipe");
    let answer = said(pipe, &lines);
    assert!(answer.contains("errors: 0, replies: 2000"), "{answer}");
    assert_eq!(said(cli(), "GET key1999\n").trim(), "value1999");
    assert_eq!(wire.saw(b"value1999"), (false, true));
    // A subscriber says one thing and then listens.
    let mut subscriber = cli();
    let mut subscriber =
        subscriber.args(["SUBSCRIBE", "news"]).stdout(Stdio::piped()).spawn().expect("redis-cli");
    let end = Instant::now() + DEADLINE;
    while said(cli(), "PUBLISH news hello\n").trim() != "1" {
        assert!(Instant::now() < end, "nobody subscribes");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut heard = String::new();
    let mut output = std::io::BufReader::new(subscriber.stdout.take().expect("its output"));
    while !heard.contains("hello") {
        let count = std::io::BufRead::read_line(&mut output, &mut heard).expect("a line");
        assert!(count > 0, "{heard}");
    }
    let _ = subscriber.kill();
    let _ = subscriber.wait();
    assert!(client.counter("tcp.mesh.downstream_cx_total") >= 4);
}

#[test]
fn nginx_and_curl() {
    if !have(&["nginx", "curl"]) {
        return;
    }
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let dir = tempfile::Builder::new().prefix("outrigger-nginx").tempdir().expect("a directory");
    let at = dir.path().display();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\nevents {{ }}\nhttp {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\nserver {{ listen 8080; listen [::]:8080; location / {{ return 200 \"nginx here\"; }} }} }}"
    );
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, config).expect("written");
    let mut command = program(server, "nginx");
    command.arg("-c").arg(&file);
    let _nginx = Program::start(server, command, 8080);
    for url in [format!("http://{}:8080/", server.v4), format!("http://[{}]:8080/", server.v6)] {
        let wire = Wire::tap(&world.mesh);
        let mut curl = program(client, "curl");
        curl.args(["-s", "-S", "-m", "10", "-i", &url, &url]);
        let answer = said(curl, "");
        assert_eq!(answer.matches("nginx here").count(), 2, "{answer}");
        assert!(answer.contains("x-envoy-upstream-service-time"), "{answer}");
        assert_eq!(wire.saw(b"nginx here"), (false, true));
    }
    assert_eq!(server.counter("http.in4-http.downstream_rq_total"), 2);
    assert_eq!(server.counter("http.in6-http.downstream_rq_total"), 2);
}

#[test]
fn a_greeter_of_grpc() {
    let Some(python) = python() else { return };
    let example = |name: &str| format!("{}/examples/grpc/{name}", env!("CARGO_MANIFEST_DIR"));
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let python = python.display().to_string();
    let mut command = server.program(false, &python);
    let dir = tempfile::Builder::new().prefix("outrigger-greeter").tempdir().expect("a directory");
    let everywhere = std::fs::read_to_string(example("server.py")).expect("the example");
    let script = dir.path().join("server.py");
    std::fs::write(&script, everywhere.replace("127.0.0.1", "[::]")).expect("written");
    command.arg(script).arg("50051");
    let _greeter = Program::start(server, command, 50051);
    for address in [format!("{}:50051", server.v4), format!("[{}]:50051", server.v6)] {
        let wire = Wire::tap(&world.mesh);
        let mut command = client.program(false, &python);
        command.arg(example("client.py")).args(["Ada", &address]);
        assert_eq!(said(command, ""), "Hello, Ada!\n");
        assert_eq!(wire.saw(b"Ada"), (false, true));
    }
    assert_eq!(client.counter("http.mesh-http.downstream_cx_http2_total"), 2);
}
