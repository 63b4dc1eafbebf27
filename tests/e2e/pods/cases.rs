//! Captured and uncaptured clients and servers, both versions of IP, every way that a connection can go.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::mesh::{Mesh, Pod};
use super::program::Program;
use super::server::{Application, COUNTS, ECHO, GREETING, GREETS, HTTP, OTHER, RESETS, WELCOMES};
use super::sidecar::{Plan, Sidecar};
use super::user::as_root;
use super::wire::Wire;
use crate::tls::certs::Certs;

/// Four pods: a client and a server with sidecars, a client and a server without.
pub struct World {
    pub mesh: Mesh,
    pub certs: Certs,
    pub sidecars: Vec<Sidecar>,
    pub captured: Application,
    pub plain: Application,
}

impl World {
    pub fn new(inbound: &[&str], transparent: bool) -> World {
        let mesh = Mesh::new(4);
        let certs = Certs::new();
        let [client, server, _, other] = mesh.pods.as_slice() else { panic!("four pods") };
        client.init(&[]);
        server.init(inbound);
        let plan = Plan { mesh: &[client, server], transparent, ..Plan::PLAIN };
        let sidecars = vec![
            Sidecar::start(client, &Plan { transparent: false, ..plan }, &certs),
            Sidecar::start(server, &plan, &certs),
        ];
        let (captured, plain) = (Application::start(server), Application::start(other));
        World { mesh, certs, sidecars, captured, plain }
    }

    /// The client with a sidecar, the server with one, the client without, the server without.
    pub fn pods(&self) -> [&Pod; 4] {
        let [a, b, c, d] = self.mesh.pods.as_slice() else { panic!("four pods") };
        [a, b, c, d]
    }
}

const MARKER: &[u8] = b"not for other eyes\n";

/// What a client does, and what it gets.
type Way = (&'static str, u16, fn(TcpStream) -> Result<(), String>);

#[allow(clippy::needless_pass_by_value)] // As errors are mapped.
fn failed(error: std::io::Error) -> String {
    error.to_string()
}

fn read(stream: &mut TcpStream, wanted: &[u8]) -> Result<(), String> {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).map_err(failed)?;
    (got == wanted).then_some(()).ok_or_else(|| format!("got {:?}", String::from_utf8_lossy(&got)))
}

fn end(stream: &mut TcpStream) -> Result<(), String> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        other => Err(format!("no end: {other:?}")),
    }
}

const WAYS: &[Way] = &[
    ("echo", ECHO, |mut stream| {
        stream.write_all(MARKER).map_err(failed)?;
        read(&mut stream, MARKER)
    }),
    ("the server first", GREETS, |mut stream| {
        read(&mut stream, GREETING)?;
        stream.write_all(MARKER).map_err(failed)?;
        read(&mut stream, MARKER)
    }),
    ("half-close", COUNTS, |mut stream| {
        stream.write_all(&[0; 1000]).map_err(failed)?;
        stream.shutdown(Shutdown::Write).map_err(failed)?;
        read(&mut stream, b"1000 bytes")?;
        end(&mut stream)
    }),
    ("reset", RESETS, |mut stream| {
        stream.write_all(b"\0").map_err(failed)?;
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("no reset: {other:?}")),
        }
    }),
    ("HTTP", HTTP, |mut stream| {
        for _ in 0..2 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: app\r\nnote: not for other eyes\r\n\r\n")
                .map_err(failed)?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nhi") {
                let mut more = [0; 1024];
                let count = stream.read(&mut more).map_err(failed)?;
                answer.extend_from_slice(&more[..count]);
                if count == 0 {
                    return Err(format!("only {:?}", String::from_utf8_lossy(&answer)));
                }
            }
        }
        Ok(())
    }),
];

#[test]
fn every_client_reaches_every_server() {
    as_root!();
    let world = World::new(&[], false);
    let [captured, server, free, other] = world.pods();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (who, client) in [("captured", captured), ("uncaptured", free)] {
        for (whom, target) in [("captured", server), ("uncaptured", other)] {
            for six in [false, true] {
                for (how, port, way) in WAYS {
                    count += 1;
                    let outcome = client.connect(target.at(six, *port)).map_err(failed).and_then(way);
                    if let Err(error) = outcome {
                        wrong
                            .push(format!("{who} to {whom}, IPv{}, {how}: {error}", if six { 6 } else { 4 }));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} went wrong:\n{}", wrong.len(), wrong.join("\n"));
    // The sidecars had their part in it: HTTP was HTTP, the rest was bytes, and both ends of the mesh spoke TLS.
    assert_eq!(captured.counter("http.mesh-http.downstream_rq_total"), 4);
    assert_eq!(captured.counter("http.out-http.downstream_rq_total"), 4);
    assert_eq!(captured.counter("tcp.mesh.downstream_cx_total"), 8);
    assert_eq!(captured.counter("tcp.out.downstream_cx_total"), 8);
    assert_eq!(server.counter("http.in4-http.downstream_rq_total"), 4);
    assert_eq!(server.counter("tcp.in6.downstream_cx_total"), 8);
    assert!(world
        .captured
        .peers(ECHO)
        .iter()
        .any(|peer| peer.ip().to_canonical().to_string() == "127.0.0.6"));
    let direct = world.plain.peers(ECHO).into_iter().filter(|peer| peer.ip().to_canonical() == captured.v4);
    assert_eq!(direct.count(), 1);
}

/// A client that waits for its server is not made to wait for a timer: with mTLS, where there can be no TLS, and in plain
/// text where both are taken, once it is known.
#[test]
fn greetings_are_not_held_back() {
    as_root!();
    let world = World::new(&[], false);
    let [captured, server, free, _] = world.pods();
    let greeted = |client: &Pod, port| {
        let begin = Instant::now();
        read(&mut client.connect(server.at(false, port)).expect("a connection"), GREETING)
            .expect("a greeting");
        begin.elapsed()
    };
    for (who, client, port) in [("mTLS", captured, GREETS), ("plain", free, WELCOMES), ("both", free, GREETS)]
    {
        let fastest = (0..4).map(|_| greeted(client, port)).min().expect("some");
        println!("{who}: {fastest:?}");
        assert!(fastest < Duration::from_millis(200), "{who}: {fastest:?}");
    }
    // Others still come with mTLS.
    WAYS[1].2(captured.connect(server.at(false, GREETS)).expect("a connection")).expect("a greeting");
}

#[test]
fn what_sidecars_say_to_each_other_nobody_reads() {
    as_root!();
    let world = World::new(&[], false);
    let [captured, server, free, other] = world.pods();
    for (client, target, port, way, (readable, encrypted)) in [
        (captured, server, ECHO, "echo", (false, true)),
        (captured, server, GREETS, "the server first", (false, true)),
        (captured, server, HTTP, "HTTP", (false, true)),
        (captured, other, ECHO, "echo", (true, false)),
        (free, server, ECHO, "echo", (true, false)),
    ] {
        let wire = Wire::tap(&world.mesh);
        let (_, _, act) = WAYS.iter().find(|(name, ..)| *name == way).expect("a way");
        act(client.connect(target.at(false, port)).expect("a connection")).expect(way);
        assert_eq!(wire.saw(b"not for other eyes"), (readable, encrypted), "{way} to {port}");
    }
}

#[test]
fn much_is_carried_both_ways_at_once() {
    as_root!();
    const SIZE: usize = 8 << 20;
    let world = World::new(&[], false);
    let [captured, server, ..] = world.pods();
    for six in [false, true] {
        let mut stream = captured.connect(server.at(six, ECHO)).expect("a connection");
        let mut sending = stream.try_clone().expect("a handle");
        let writer = std::thread::spawn(move || {
            let block: Vec<u8> = (0..=255).cycle().take(1 << 16).collect();
            for _ in 0..SIZE / block.len() {
                sending.write_all(&block).expect("sent");
            }
            sending.shutdown(Shutdown::Write).expect("ended");
        });
        let mut got = Vec::with_capacity(SIZE);
        stream.read_to_end(&mut got).expect("everything");
        writer.join().expect("the writer");
        assert_eq!(got.len(), SIZE);
        assert!(got.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }
}

/// To its own address, by way of both listeners of its own sidecar, and not for ever.
#[test]
fn an_application_reaches_itself_once() {
    as_root!();
    let world = World::new(&[], false);
    let [_, server, ..] = world.pods();
    for (to, captured) in
        [(server.at(false, ECHO), true), (server.at(true, ECHO), true), (local(ECHO), false)]
    {
        let before = server.counter("listener.[__]_15001.downstream_cx_total");
        let mut stream = server.connect(to).expect("a connection");
        stream.write_all(b"me\n").expect("sent");
        read(&mut stream, b"me\n").expect("the same");
        let new = server.counter("listener.[__]_15001.downstream_cx_total") - before;
        // What goes over loopback is the application's own business.
        assert_eq!(new, 0, "{to} {captured}");
    }
    // The sidecar itself goes to its own pod only by way of its inbound listener.
    let mut stream = server.connect(server.at(false, OTHER)).expect("a connection");
    stream.write_all(b"x\n").expect("sent");
    read(&mut stream, b"x\n").expect("the same");
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_sidecar_that_comes_back_goes_on() {
    as_root!();
    let mut world = World::new(&[], false);
    let certs = std::mem::replace(&mut world.certs, Certs::new());
    {
        let [captured, server, ..] = world.pods();
        WAYS[0].2(captured.connect(server.at(false, ECHO)).expect("a connection")).expect("an echo");
    }
    world.sidecars[0].kill();
    let [captured, server, ..] = world.pods();
    // Without its sidecar a captured client reaches nobody, in plain text least of all.
    assert!(captured.connect(server.at(false, ECHO)).is_err());
    let plan = Plan { mesh: &[captured, server], ..Plan::PLAIN };
    let _again = Sidecar::start(captured, &plan, &certs);
    for (how, port, way) in WAYS {
        way(captured.connect(server.at(true, *port)).expect("a connection")).expect(how);
    }
}

/// Nobody listens at first, then somebody, then nobody, then somebody.
#[test]
fn a_server_comes_and_goes() {
    as_root!();
    let world = World::new(&[], false);
    let [captured, server, ..] = world.pods();
    let port = 7100;
    for _ in 0..2 {
        let mut early = captured.connect(server.at(false, port)).expect("the sidecar's end");
        early.write_all(b"x\n").expect("sent");
        assert!(matches!(early.read(&mut [0]), Ok(0) | Err(_)), "nobody is there");
        let listener = server.listen(port);
        let mut stream = captured.connect(server.at(false, port)).expect("a connection");
        stream.write_all(b"y\n").expect("sent");
        let (mut accepted, _) = listener.accept().expect("a connection");
        read(&mut accepted, b"y\n").expect("what was sent");
    }
}

/// An application that keeps its connections.
const KEEPS: &str = "import socket
own = socket.create_server(('::', 7100), family=socket.AF_INET6, dualstack_ipv6=True)
kept = []
while True:
    kept.append(own.accept()[0])
    kept[-1].sendall(kept[-1].recv(2))";

/// All that a pod is ends at once: who talks to it hears of it, and so does who comes later; then there is another one.
#[test]
fn a_pod_is_killed_and_another_takes_its_place() {
    as_root!();
    let mut world = World::new(&[], false);
    let certs = std::mem::replace(&mut world.certs, Certs::new());
    let [captured, server, ..] = world.pods();
    let mut open = Vec::new();
    let mut command = server.program(false, "python3");
    command.args(["-c", KEEPS]);
    let mut application = Program::start(server, command, 7100);
    for six in [false, true] {
        let mut stream = captured.connect(server.at(six, 7100)).expect("a connection");
        stream.write_all(b"x\n").expect("sent");
        read(&mut stream, b"x\n").expect("an echo");
        open.push(stream);
    }
    world.sidecars[1].kill();
    application.kill();
    for stream in &mut open {
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "nobody is there any more");
    }
    let [captured, server, ..] = world.pods();
    let ask = || {
        let mut stream = captured.connect(server.at(false, HTTP)).expect("the sidecar's end");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(ask(), "HTTP/1.1 503 Service Unavailable");
    let plan = Plan { mesh: &[captured, server], ..Plan::PLAIN };
    let _again = Sidecar::start(server, &plan, &certs);
    assert_eq!(ask(), "HTTP/1.1 200 OK");
}

/// A client that resets its connection tells the application so, through both sidecars.
#[test]
fn a_reset_of_the_client_ends_the_applications_connection() {
    as_root!();
    let world = World::new(&[], false);
    let [captured, server, free, other] = world.pods();
    // Behind TLS it is an end; where bytes are only relayed it is what it was.
    for (from, to, is_reset) in [(captured, server, false), (captured, other, true), (free, server, true)] {
        let listener = to.listen(7100);
        let mut stream = from.connect(to.at(false, 7100)).expect("a connection");
        stream.write_all(b"x\n").expect("sent");
        let (mut accepted, _) = listener.accept().expect("a connection");
        accepted.set_read_timeout(Some(crate::harness::DEADLINE)).expect("a timeout");
        read(&mut accepted, b"x\n").expect("what was sent");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
        drop(stream);
        let got = accepted.read(&mut [0]);
        let reset = matches!(&got, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(reset || !is_reset && matches!(got, Ok(0)), "{got:?}");
    }
}

#[test]
fn strict_servers_take_no_plain_text() {
    as_root!();
    let mesh = Mesh::new(3);
    let certs = Certs::new();
    let [client, server, free] = mesh.pods.as_slice() else { panic!("three pods") };
    client.init(&[]);
    let plan = Plan { mesh: &[client, server], ..Plan::PLAIN };
    // The proxy captures by itself, once it listens.
    let strict = Plan { strict: true, arguments: &["--capture=-g 1337 -d 7005"], ..plan };
    let _sidecars = [Sidecar::start(client, &plan, &certs), Sidecar::start(server, &strict, &certs)];
    let application = Application::start(server);
    for (how, port, way) in WAYS {
        way(client.connect(server.at(false, *port)).expect("a connection")).expect(how);
    }
    for port in [ECHO, HTTP] {
        let mut stream = free.connect(server.at(false, port)).expect("a connection");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "{port}");
    }
    assert!(application.peers(ECHO).iter().all(|peer| peer.ip().to_canonical() != free.v4));
    // A port that is left out has no sidecar.
    WAYS[0].2(free.connect(server.at(false, OTHER)).expect("a connection")).expect("an echo");
    assert_eq!(application.peers(OTHER)[0].ip().to_canonical(), free.v4);
}
