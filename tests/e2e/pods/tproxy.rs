//! The client's address all the way: TPROXY brings connections in, and the sidecar goes on in the client's name.

use std::io::{Read, Write};

use super::cases::World;
use super::server::{ECHO, GREETING, GREETS, OTHER};
use super::user::as_root;

#[test]
fn the_application_sees_the_client() {
    as_root!();
    let mut world = World::new(&["-m", "TPROXY", "-d", "7005"], true);
    let [captured, server, free, _] = world.pods();
    for six in [false, true] {
        for client in [captured, free] {
            let mut stream = client.connect(server.at(six, ECHO)).expect("a connection");
            stream.write_all(b"hello\n").expect("sent");
            let mut got = [0; 6];
            stream.read_exact(&mut got).expect("an echo");
            let ip = client.at(six, 0).ip();
            let seen = world.captured.peers(ECHO);
            assert!(seen.iter().any(|peer| peer.ip().to_canonical() == ip), "{ip} is none of {seen:?}");
        }
    }
    let mut stream = captured.connect(server.at(false, GREETS)).expect("a connection");
    let mut got = vec![0; GREETING.len()];
    stream.read_exact(&mut got).expect("a greeting");
    assert_eq!(got, GREETING);
    assert_eq!(server.counter("listener.[__]_15006.downstream_cx_total"), 5);
    // What it sends to itself comes in as from anybody.
    let mut stream = server.connect(server.at(false, ECHO)).expect("a connection");
    stream.write_all(b"x\n").expect("sent");
    stream.read_exact(&mut [0]).expect("an echo");
    // Without its sidecar nobody reaches the application, and is told so at once, but for the port that is left out.
    world.sidecars[1].kill();
    let [_, server, free, _] = world.pods();
    for six in [false, true] {
        let refused = free.connect(server.at(six, ECHO)).expect_err("there is no sidecar");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
        free.connect(server.at(six, OTHER)).expect("a connection");
    }
}
