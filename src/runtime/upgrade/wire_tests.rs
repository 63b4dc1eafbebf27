use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use super::*;

fn pair() -> (Channel, Channel) {
    let (one, other) = UnixStream::pair().unwrap();
    (Channel::new(one).unwrap(), Channel::new(other).unwrap())
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(5))
}

#[test]
fn a_message_arrives_with_its_bytes_and_its_sockets() {
    let (old, new) = pair();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let passage =
        Passage { cluster: "c".to_owned(), held_up: 3, traffic: [1, 2, 3, 4], ..Passage::default() };
    let stream = TcpStream::connect(address).unwrap();
    let sockets = [listener.as_fd(), stream.as_fd()];
    old.send(&Old::Connection(Box::new(passage.clone())), b"abc", &sockets).unwrap();
    old.send(&Old::Begin { version: 1 }, b"", &[]).unwrap();
    let frame = new.receive::<Old>(soon()).unwrap();
    let Old::Connection(received) = frame.message else { panic!("{:?}", frame.message) };
    assert_eq!(*received, passage);
    assert_eq!((frame.bytes.as_slice(), frame.sockets.len()), (&b"abc"[..], 2));
    let again: TcpListener = frame.sockets.into_iter().next().unwrap().into();
    assert_eq!(again.local_addr().unwrap(), address);
    let frame = new.receive::<Old>(soon()).unwrap();
    assert!(matches!(frame.message, Old::Begin { version: 1 }) && frame.sockets.is_empty());
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let (old, new) = pair();
    let later = serde_json::json!({"is": "connection", "cluster": "c", "color": "blue", "up": "ending"});
    old.send(&later, b"", &[]).unwrap();
    let Old::Connection(passage) = new.receive::<Old>(soon()).unwrap().message else { panic!() };
    assert_eq!(passage.cluster, "c");
}

#[test]
fn an_end_silence_and_nonsense_are_told_apart() {
    let (old, new) = pair();
    assert!(matches!(new.receive::<Old>(Some(Instant::now())), Err(WireError::Silent)));
    let moment = Some(Instant::now() + Duration::from_millis(20));
    assert!(matches!(new.receive::<Old>(moment), Err(WireError::Silent)));
    (&old.0).write_all(&[0xff; 12]).unwrap();
    assert!(matches!(new.receive::<Old>(soon()), Err(WireError::Unexpected(_))));
    old.send(&serde_json::json!({"is": "something else"}), b"", &[]).unwrap();
    assert!(matches!(new.receive::<Old>(soon()), Err(WireError::Unexpected(_))));
    drop(old);
    assert!(matches!(new.receive::<Old>(soon()), Err(WireError::Closed)));
}

/// Of an answer and the end of patience one came first, and both sides know which.
#[test]
fn what_was_said_before_nobody_listens_is_heard() {
    let (old, new) = pair();
    new.send(&New::Took, b"", &[]).unwrap();
    old.hear_no_more();
    assert!(new.send(&New::Took, b"", &[]).is_err());
    assert!(matches!(old.receive::<New>(soon()).unwrap().message, New::Took));
    assert!(matches!(old.receive::<New>(soon()), Err(WireError::Closed)));
}
