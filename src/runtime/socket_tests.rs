use std::os::fd::AsFd;
use std::task::{Context, Waker};

use super::*;
use crate::runtime::foreign::listening;
use crate::runtime::Acceptor;

fn any() -> Address {
    Address::Ip(([127, 0, 0, 1], 0).into())
}

async fn pair() -> (Stream, Stream) {
    let acceptor = Acceptor::new(listen(&any(), &ListenOptions::default()).unwrap()).unwrap();
    let to = Address::Ip(acceptor.local_addr().unwrap());
    let tuning = SocketTuning::default();
    let (client, server) = tokio::join!(connect(&to, &tuning), acceptor.accept(&tuning));
    (client.unwrap(), server.unwrap())
}

#[test]
fn a_taken_port_is_one_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(taken.local_addr().unwrap());
    let error = listen(&address, &ListenOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("address {address} is in use"));
}

#[test]
fn two_of_ours_share_a_port() {
    let first = listen(&any(), &ListenOptions::default()).unwrap();
    let address = Address::Ip(first.local_addr().unwrap());
    listen(&address, &ListenOptions::default()).unwrap();
    let alone = ListenOptions { reuse_port: false, ..ListenOptions::default() };
    assert!(matches!(listen(&address, &alone), Err(ListenError::InUse(_))));
}

#[test]
fn other_listen_errors_name_the_address() {
    let foreign = Address::Ip(([192, 0, 2, 1], 0).into());
    let error = listen(&foreign, &ListenOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "address 192.0.2.1:0 is not an address of this machine");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = listen(&Address::Pipe(file.clone()), &ListenOptions::default()).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

#[tokio::test]
async fn unix_sockets_in_the_file_system_and_out_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("s").display().to_string();
    for path in [name.clone(), format!("@{name}")] {
        let address = Address::Pipe(path.clone().into());
        let options = ListenOptions { mode: Some(0o600), ..ListenOptions::default() };
        if !path.starts_with('@') {
            // A socket left behind by a process that is gone.
            drop(listen(&address, &options).unwrap());
        }
        let acceptor = Acceptor::new(listen(&address, &options).unwrap()).unwrap();
        let tuning = SocketTuning::default();
        let (client, server) = tokio::join!(connect(&address, &tuning), acceptor.accept(&tuning));
        let (client, server) = (client.unwrap(), server.unwrap());
        client.write_all(b"ping").await.unwrap();
        let mut read = Vec::with_capacity(16);
        server.read_buf(&mut read).await.unwrap();
        assert_eq!(read, b"ping");
    }
    let mode = std::fs::metadata(name).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn options_reach_the_socket() {
    let acceptor = Acceptor::new(listen(&any(), &ListenOptions::default()).unwrap()).unwrap();
    let to = Address::Ip(acceptor.local_addr().unwrap());
    let keepalive = Keepalive { probes: Some(3), time: Some(Duration::from_secs(7)), interval: None };
    let tuning = SocketTuning {
        keepalive: Some(keepalive),
        source_address: Some(([127, 0, 0, 9], 0).into()),
        ..SocketTuning::default()
    };
    let (client, server) = tokio::join!(connect(&to, &tuning), acceptor.accept(&tuning));
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.peer_addr().unwrap().ip().to_string(), "127.0.0.9");
    for stream in [&client, &server] {
        let socket = stream.descriptor().unwrap();
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }
}

#[tokio::test]
async fn a_refused_connection_is_an_error() {
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Address::Ip(listener.local_addr().unwrap())
    };
    let error = connect(&gone, &SocketTuning::default()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_partial_read_uses_the_readiness_up() {
    let (client, server) = pair().await;
    client.write_all(b"0123456789").await.unwrap();
    server.readable().await.unwrap();
    let mut peeked = [0; 4];
    assert_eq!(server.try_peek(&mut peeked).unwrap(), 4);
    assert!(!server.is_quiet());
    let mut buffer = [0; 8];
    assert_eq!(server.try_read(&mut buffer).unwrap(), 8);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(server.poll_read_ready(&mut cx).is_ready(), "a full buffer proves nothing");
    assert_eq!(server.try_read(&mut buffer).unwrap(), 2);
    assert!(server.poll_read_ready(&mut cx).is_pending());
    assert!(server.is_quiet());
    client.write_all(b"more").await.unwrap();
    assert_eq!(server.read_buf(&mut Vec::with_capacity(10)).await.unwrap(), 4);
    client.shutdown_write().unwrap();
    assert_eq!(server.read_buf(&mut Vec::with_capacity(10)).await.unwrap(), 0);
    assert!(!server.is_quiet());
}

#[tokio::test]
async fn linger_zero_resets() {
    let (client, server) = pair().await;
    client.set_linger_zero();
    drop(client);
    let error = server.read_buf(&mut Vec::with_capacity(10)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_is_noticed_after_the_end_of_stream() {
    let (client, server) = pair().await;
    client.shutdown_write().unwrap();
    assert_eq!(server.read_buf(&mut Vec::with_capacity(1)).await.unwrap(), 0);
    client.set_linger_zero();
    drop(client);
    server.failed().await.unwrap();
}

#[test]
fn threads_and_limits() {
    set_thread_name("outrigger-test-thread");
    let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    assert_eq!(name.trim(), "outrigger-test-");
    let before = raise_nofile_limit().unwrap();
    assert_eq!(raise_nofile_limit().unwrap(), before);
    pin_thread(0).unwrap();
    assert!(pin_thread(100_000).is_err());
}

#[test]
fn mapped_addresses() {
    assert_eq!(unmapped("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    assert_eq!(unmapped("[::1]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
}

fn listeners(address: &Address) -> (TcpListener, TcpListener) {
    let one = |address: &Address| match listen(address, &ListenOptions::default()).unwrap() {
        Bound::Tcp(listener) => listener,
        Bound::Unix(_) | Bound::Udp(_) => panic!("not asked for"),
    };
    let first = one(address);
    let second = one(&Address::Ip(first.local_addr().unwrap()));
    (first, second)
}

/// Connects `count` times; how many of them waited at each listener.
fn arrivals(listeners: [&TcpListener; 2], count: usize) -> [usize; 2] {
    let to = listeners[0].local_addr().unwrap();
    let clients: Vec<_> = (0..count).map(|_| std::net::TcpStream::connect(to).unwrap()).collect();
    let mut arrived = [0, 0];
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    // A client's connect may return before the listener has its connection.
    while arrived[0] + arrived[1] < clients.len() {
        assert!(std::time::Instant::now() < deadline, "{arrived:?}");
        for (listener, arrived) in listeners.iter().zip(&mut arrived) {
            while listener.accept().is_ok() {
                *arrived += 1;
            }
        }
        std::thread::yield_now();
    }
    arrived
}

#[test]
fn new_connections_go_where_they_are_steered() {
    let (first, second) = listeners(&any());
    steer_new_connections(first.as_fd(), 1).unwrap();
    assert_eq!(arrivals([&first, &second], 50), [0, 50]);
    steer_new_connections(first.as_fd(), 0).unwrap();
    assert_eq!(arrivals([&first, &second], 50), [50, 0]);
    // Nobody has this index: both get some, but with a chance of one in 2^49.
    steer_new_connections(first.as_fd(), 7).unwrap();
    assert!(!arrivals([&first, &second], 50).contains(&0));
    steer_new_connections(first.as_fd(), 1).unwrap();
    stop_steering(second.as_fd()).unwrap();
    stop_steering(second.as_fd()).unwrap();
    assert!(!arrivals([&first, &second], 50).contains(&0));
}

/// The order of a hand-over: the old process steers, empties its queue and closes.
#[test]
fn closing_after_steering_loses_nothing() {
    let (old, new) = listeners(&any());
    steer_new_connections(old.as_fd(), 0).unwrap();
    let before = std::net::TcpStream::connect(old.local_addr().unwrap()).unwrap();
    steer_new_connections(old.as_fd(), 1).unwrap();
    assert_eq!(arrivals([&new, &new], 20).iter().sum::<usize>(), 20);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while old.accept().is_err() {
        assert!(std::time::Instant::now() < deadline, "the waiting connection is gone");
        std::thread::yield_now();
    }
    drop(old);
    // The group's only socket now has index 0, and the rule's 1 names nobody.
    assert_eq!(arrivals([&new, &new], 20).iter().sum::<usize>(), 20);
    drop(before);
}

#[test]
fn foreign_listeners_are_told_from_our_own() {
    let sets = [any(), Address::Ip((std::net::Ipv6Addr::LOCALHOST, 0).into())].map(|a| listeners(&a));
    let [v4, v6] = [&sets[0], &sets[1]].map(|(first, _)| first.local_addr().unwrap());
    let inodes = |(first, second): &(TcpListener, TcpListener)| {
        [first, second].map(|socket| inode(socket.as_fd()).unwrap())
    };
    let own = [inodes(&sets[0]), inodes(&sets[1])].concat();
    assert_ne!(own[0], own[1]);
    let found = |addresses: &[SocketAddr], own: &[u64]| {
        let mut found: Vec<_> = foreign_listeners(addresses, own).into_iter().collect();
        found.sort();
        found
    };
    assert_eq!(found(&[v4, v6], &own), []);
    assert_eq!(found(&[v4, v6], &own[1..]), [v4]);
    assert_eq!(found(&[v6], &own[1..]), [], "not asked for");
    assert_eq!(found(&[v4, v6], &own[..3]), [v6]);
    assert_eq!(found(&[v4, v6], &[]), [v4, v6]);
    drop(sets);
    assert_eq!(found(&[v4, v6], &[]), []);
}

#[test]
fn lines_of_the_kernels_table() {
    let line = |state: &str, address: &str| {
        format!("   0: {address}:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0")
    };
    let local = u32::from_ne_bytes([127, 0, 0, 1]);
    let expected = Some((SocketAddr::from(([127, 0, 0, 1], 8080)), 4711));
    assert_eq!(listening(line("0A", &format!("{local:08X}")).as_bytes()), expected);
    assert_eq!(listening(line("01", &format!("{local:08X}")).as_bytes()), None);
    for broken in ["", "0A", "\u{e4}\u{e4}\u{e4}\u{e4}", "ZZZZZZZZ"] {
        assert_eq!(listening(line("0A", broken).as_bytes()), None, "{broken}");
    }
}

#[test]
fn the_own_address_is_one_that_can_be_bound() {
    let address = own_address();
    listen(&Address::Ip((address, 0).into()), &ListenOptions::default()).unwrap();
}
