//! Real programs, unchanged, through two sidecars with mTLS between them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::cases::World;
use super::program::{program, said, Program};
use super::user::as_root;
use super::wire::Wire;
use crate::harness::DEADLINE;
use crate::peers::have;
use crate::peers::servers::python;

#[test]
fn redis_by_pipeline_and_by_publishing() {
    as_root!();
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
    as_root!();
    if !have(&["nginx", "curl"]) {
        return;
    }
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let dir = tempfile::Builder::new().prefix("outrigger-nginx").tempdir().expect("a directory");
    let at = dir.path().display();
    let config = format!(
        "daemon off; master_process off; user root; pid {at}/pid; error_log {at}/error.log;\nevents {{ }}\nhttp {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\nserver {{ listen 8080; listen [::]:8080; location / {{ return 200 \"nginx here\"; }} }} }}"
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
    as_root!();
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

/// The server speaks first, and the client's answer is the first that it says.
#[test]
fn mariadb_and_its_client() {
    as_root!();
    if !have(&["mariadbd", "mariadb"]) {
        return;
    }
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let dir = tempfile::Builder::new().prefix("outrigger-mariadb").tempdir().expect("a directory");
    let at = |file: &str| dir.path().join(file).display().to_string();
    let mut command = program(server, "mariadbd");
    // Without accounts, and without the engine that would take seconds to make its files.
    command.args(["--no-defaults", "--user=root", "--skip-grant-tables", "--skip-innodb", "--port=3306"]);
    command.args(["--default-storage-engine=Aria", "--bind-address=*"]);
    command.args(
        [("datadir", "."), ("socket", "s"), ("pid-file", "p")]
            .map(|(flag, file)| format!("--{flag}={}", at(file))),
    );
    let _database = Program::start(server, command, 3306);
    for (six, address) in [(false, server.v4.to_string()), (true, server.v6.to_string())] {
        let wire = Wire::tap(&world.mesh);
        let mut command = program(client, "mariadb");
        command.args(["--no-defaults", "--batch", "--skip-column-names", "-u", "root", "-h", &address]);
        let many: Vec<String> = (0..500).map(|n| format!("({n}, 'for the mesh only {n}')")).collect();
        let queries = format!(
            "CREATE OR REPLACE DATABASE shop; USE shop; CREATE TABLE orders (id INT, note VARCHAR(99));\nINSERT INTO orders VALUES {};\nSELECT COUNT(*) FROM orders;\nSELECT note FROM orders WHERE id = 499;\nSELECT LENGTH(REPEAT('x', 3000000));\n",
            many.join(", ")
        );
        let answer = said(command, &queries);
        assert_eq!(answer, "500\nfor the mesh only 499\n3000000\n", "IPv6: {six}");
        assert_eq!(wire.saw(b"for the mesh only"), (false, true));
    }
    assert_eq!(client.counter("tcp.mesh.downstream_cx_total"), 2);
}
