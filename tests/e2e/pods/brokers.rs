//! Brokers and their clients, unchanged, through two sidecars with mTLS between them.

use std::process::Stdio;

use super::cases::World;
use super::program::{program, said, Program};
use super::user::as_root;
use super::wire::Wire;
use crate::peers::have;

/// A broker: one connection that publishes, and one that listens for as long as it takes.
#[test]
fn mosquitto_and_its_clients() {
    as_root!();
    if !have(&["mosquitto", "mosquitto_pub", "mosquitto_sub"]) {
        return;
    }
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let dir = tempfile::Builder::new().prefix("outrigger-mosquitto").tempdir().expect("a directory");
    let file = dir.path().join("mosquitto.conf");
    let config =
        "listener 1883 0.0.0.0\nlistener 1883 ::\nallow_anonymous true\nuser root\npersistence false\n";
    std::fs::write(&file, config).expect("written");
    let mut command = program(server, "mosquitto");
    command.arg("-c").arg(&file);
    let _broker = Program::start(server, command, 1883);
    for address in [server.v4.to_string(), server.v6.to_string()] {
        let wire = Wire::tap(&world.mesh);
        let at = |name: &str, arguments: &[&str]| {
            let mut command = program(client, name);
            command.args(["-h", &address, "-q", "1"]).args(arguments);
            command
        };
        // The second message is what the subscriber waits for; the first is there when it comes.
        assert_eq!(said(at("mosquitto_pub", &["-t", "news", "-m", "kept for later", "-r"]), ""), "");
        let mut subscriber = at("mosquitto_sub", &["-t", "news", "-C", "2"]);
        let mut subscriber = subscriber.stdout(Stdio::piped()).spawn().expect("mosquitto_sub");
        let mut heard = std::io::BufReader::new(subscriber.stdout.take().expect("its output"));
        let mut line = || {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut heard, &mut line).expect("a line");
            line
        };
        assert_eq!(line(), "kept for later\n");
        assert_eq!(said(at("mosquitto_pub", &["-t", "news", "-m", "only just now"]), ""), "");
        assert_eq!(line(), "only just now\n");
        assert!(subscriber.wait().expect("its end").success());
        assert_eq!(wire.saw(b"only just now"), (false, true));
    }
    assert_eq!(client.counter("tcp.mesh.downstream_cx_total"), 6);
}

/// A broker that takes a while to start, whose clients say first what they speak: as many queues as there are kinds of
/// addresses, messages of all sizes, an acknowledgement for each.
#[test]
fn rabbitmq_and_its_clients() {
    as_root!(really: "a broker's processes from others");
    if !have(&["rabbitmq-server", "amqp-publish", "amqp-consume"]) {
        return;
    }
    let world = World::new(&[], false);
    let [client, server, ..] = world.pods();
    let dir = tempfile::Builder::new().prefix("outrigger-rabbitmq").tempdir().expect("a directory");
    let at = |file: &str| dir.path().join(file).display().to_string();
    std::fs::write(at("rabbitmq.conf"), "loopback_users = none\nlisteners.tcp.default = 5672\n")
        .expect("written");
    std::fs::write(at("plugins"), "[].\n").expect("written");
    // It begins others, which end with the first process of a namespace.
    let mut command = program(server, "unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]);
    command.arg("exec \"$(ls /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server)\"");
    command.env("HOME", dir.path()).env("RABBITMQ_NODENAME", "rabbit@localhost").env("RABBITMQ_LOGS", "-");
    command.env("RABBITMQ_CONF_ENV_FILE", "/dev/null").env("RABBITMQ_MNESIA_BASE", at("db"));
    for (name, file) in [
        ("LOG_BASE", "log"),
        ("ENABLED_PLUGINS_FILE", "plugins"),
        ("CONFIG_FILE", "rabbitmq.conf"),
        ("GENERATED_CONFIG_DIR", "generated"),
        ("PID_FILE", "pid"),
    ] {
        command.env(format!("RABBITMQ_{name}"), at(file));
    }
    let _broker = Program::start(server, command, 5672);
    for (queue, address) in [("four", server.v4.to_string()), ("six", format!("[{}]", server.v6))] {
        let wire = Wire::tap(&world.mesh);
        let url = format!("amqp://guest:guest@{address}:5672/%2f");
        let with = |name: &str, arguments: &[&str]| {
            let mut command = program(client, name);
            command.arg("--url").arg(&url).args(arguments);
            command
        };
        assert_eq!(said(with("amqp-declare-queue", &["-d", "-q", queue]), "").trim(), queue);
        let long = "a long one ".repeat(100_000);
        for message in ["for the mesh only", &long] {
            assert_eq!(said(with("amqp-publish", &["-p", "-r", queue]), message), "");
        }
        let heard = said(with("amqp-consume", &["-q", queue, "-c", "2", "cat"]), "");
        assert!(heard == format!("for the mesh only{long}"), "{} bytes came", heard.len());
        assert_eq!(wire.saw(b"for the mesh only"), (false, true));
    }
    assert_eq!(client.counter("tcp.mesh.downstream_cx_total"), 8);
}
