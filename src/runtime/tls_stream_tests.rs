//! What a TLS stream promises, between two of them and towards one of another library.

use std::future::poll_fn;
use std::io::IoSlice;

use bytes::BytesMut;
use rcgen::{CertifiedKey, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["t.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(KeyPair::serialize_der(&signing_key)));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (far, listener.accept().await.unwrap().0)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("t.test").unwrap()
}

/// Client and server, both ours.
async fn pair() -> (Stream, Stream) {
    let (server, client) = configs();
    let (far, near) = sockets().await;
    let accepted = TlsStream::accept(near.into(), Vec::new(), server);
    let connected = TlsStream::connect(far.into(), client, name());
    let (accepted, connected) = tokio::join!(accepted, connected);
    (connected.unwrap().into(), accepted.unwrap().into())
}

fn body(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(3).fill(&mut bytes);
    bytes
}

async fn read_all(stream: &Stream, room: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut part = BytesMut::with_capacity(room);
        match stream.read_buf(&mut part).await.unwrap() {
            0 => return all,
            _ => all.extend_from_slice(&part),
        }
    }
}

#[tokio::test]
async fn bytes_arrive_whole_both_ways_at_a_time_whatever_the_rooms() {
    for room in [1 << 10, 20_000, 1 << 18] {
        let (one, other) = pair().await;
        let (there, back) = (body(3_000_000), body(2_500_001));
        let (_, _, got_there, got_back) = tokio::join!(
            async {
                one.write_all(&there).await.unwrap();
                one.shutdown_write().unwrap();
            },
            async {
                other.write_all(&back).await.unwrap();
                other.shutdown_write().unwrap();
            },
            read_all(&other, room),
            read_all(&one, room),
        );
        assert!(got_there == there && got_back == back, "room {room}");
    }
}

#[tokio::test]
async fn pieces_of_one_write_share_a_record() {
    let (one, other) = pair().await;
    let pieces = [IoSlice::new(b"head "), IoSlice::new(b""), IoSlice::new(b"and body")];
    assert_eq!(one.try_write_vectored(&pieces).unwrap(), 13);
    let mut got = [0; 64];
    poll_fn(|context| other.poll_read_ready(context)).await.unwrap();
    assert_eq!(other.try_read(&mut got).unwrap(), 13, "one read gives all of one record");
    assert_eq!(&got[..13], b"head and body");
    assert_eq!(other.try_read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn what_is_decrypted_already_makes_it_ready() {
    let (one, other) = pair().await;
    one.write_all(b"0123456789").await.unwrap();
    let mut two = [0; 2];
    for expected in [b"01", b"23", b"45", b"67", b"89"] {
        poll_fn(|context| other.poll_read_ready(context)).await.unwrap();
        assert_eq!(other.try_peek(&mut [0]).unwrap(), 1);
        assert_eq!(other.try_read(&mut two).unwrap(), 2);
        assert_eq!(&two, expected);
    }
    assert!(other.is_quiet());
    let pending = poll_fn(|context| Poll::Ready(other.poll_read_ready(context).is_pending())).await;
    assert!(pending, "nothing more is there");
}

#[tokio::test]
async fn a_write_counts_when_the_kernel_has_it() {
    let (one, other) = pair().await;
    let bytes = body(30 << 20);
    let mut sent = 0;
    let full = loop {
        match one.try_write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    assert!(one.unsent() > 0);
    let (_, got) = tokio::join!(
        async {
            one.write_all(&bytes[sent..]).await.unwrap();
            one.shutdown_write().unwrap();
            // Nothing else looks after what waits to be sent.
            poll_fn(|context| one.poll_read_ready(context)).await.unwrap();
        },
        async {
            let got = read_all(&other, 1 << 16).await;
            other.shutdown_write().unwrap();
            got
        }
    );
    assert!(got == bytes, "{} of {}", got.len(), bytes.len());
}

#[tokio::test]
async fn what_leaves_while_it_is_read_is_not_written_again() {
    let (one, other) = pair().await;
    let bytes = body(30 << 20);
    let mut sent = 0;
    while let Ok(count) = one.try_write(&bytes[sent..]) {
        sent += count;
    }
    let (_, got) = tokio::join!(
        async {
            // The records that the kernel had no room for go out with a look for something to read.
            while one.unsent() > 0 {
                poll_fn(|context| Poll::Ready(one.poll_read_ready(context).is_pending())).await;
                tokio::task::yield_now().await;
            }
            one.write_all(&bytes[sent..]).await.unwrap();
            one.shutdown_write().unwrap();
            poll_fn(|context| one.poll_read_ready(context)).await.unwrap();
        },
        async {
            let got = read_all(&other, 1 << 16).await;
            other.shutdown_write().unwrap();
            got
        }
    );
    assert!(got == bytes, "{} of {}", got.len(), bytes.len());
}

#[tokio::test]
async fn the_end_is_said_and_heard_and_the_other_way_stays_open() {
    let (one, other) = pair().await;
    one.shutdown_write().unwrap();
    assert_eq!(one.try_write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    poll_fn(|context| other.poll_read_ready(context)).await.unwrap();
    assert_eq!(other.try_read(&mut [0; 8]).unwrap(), 0);
    other.write_all(b"still here").await.unwrap();
    let mut got = BytesMut::with_capacity(64);
    one.read_buf(&mut got).await.unwrap();
    assert_eq!(&got[..], b"still here");
}

#[tokio::test]
async fn a_drop_says_the_end_to_other_libraries() {
    let (server, client) = configs();
    let (far, near) = sockets().await;
    let connector = tokio_rustls::TlsConnector::from(client);
    let (accepted, connected) =
        tokio::join!(TlsStream::accept(near.into(), Vec::new(), server), connector.connect(name(), far));
    let (accepted, mut connected) = (Stream::from(accepted.unwrap()), connected.unwrap());
    accepted.write_all(b"bye").await.unwrap();
    drop(accepted);
    let mut all = Vec::new();
    // Without `close_notify` this would be an error.
    connected.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"bye");
}

#[tokio::test]
async fn garbage_is_answered_with_an_alert_and_an_error() {
    let (server, _) = configs();
    let (mut far, near) = sockets().await;
    far.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    let error = TlsStream::accept(near.into(), Vec::new(), server).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(rustls::Error::InvalidMessage(_))), "{error:?}");
    let mut alert = Vec::new();
    far.read_to_end(&mut alert).await.unwrap();
    assert_eq!(alert.first(), Some(&21), "an alert: {alert:?}");
}

#[tokio::test]
async fn records_that_were_tampered_with_break_the_connection() {
    let (server, client) = configs();
    let ((far, relay_client), (relay_server, near)) = (sockets().await, sockets().await);
    let relay = async move {
        let (mut client, mut server) = (relay_client, relay_server);
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = async {
            let mut buffer = vec![0; 4096];
            let mut turn = 0;
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                turn += 1;
                if turn == 3 {
                    buffer[count - 1] ^= 1;
                }
                to_server.write_all(&buffer[..count]).await.unwrap();
            }
        };
        let _ = tokio::join!(up, tokio::io::copy(&mut from_server, &mut to_client));
    };
    let work = async move {
        let (accepted, connected) = tokio::join!(
            TlsStream::accept(near.into(), Vec::new(), server),
            TlsStream::connect(far.into(), client, name())
        );
        let (accepted, connected) = (Stream::from(accepted.unwrap()), Stream::from(connected.unwrap()));
        connected.write_all(b"secret").await.unwrap();
        let mut got = BytesMut::with_capacity(64);
        let error = accepted.read_buf(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(got.is_empty() && accepted.try_write(b"x").is_err());
        assert!(matches!(accepted.tls().unwrap().failure(), Some(rustls::Error::DecryptError)));
    };
    tokio::select! {
        () = work => {}
        () = relay => panic!("the relay ended first"),
    }
}

#[tokio::test]
async fn writes_between_the_parts_of_a_handshake_message_do_no_harm() {
    let (server, client) = configs();
    // Tickets come in many small records, byte by byte.
    let mut server = ServerConfig::clone(&server);
    server.max_fragment_size = Some(64);
    let ((far, relay_client), (relay_server, near)) = (sockets().await, sockets().await);
    let relay = async move {
        let (mut client, mut server) = (relay_client, relay_server);
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let down = async {
            let mut byte = [0];
            while let Ok(1) = from_server.read(&mut byte).await {
                to_client.write_all(&byte).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::join!(down, tokio::io::copy(&mut from_client, &mut to_server));
    };
    let serve = async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let mut accepted = acceptor.accept(near).await.unwrap();
        let mut all = vec![0; 3000];
        accepted.read_exact(&mut all).await.unwrap();
        accepted.write_all(b"done").await.unwrap();
        accepted.shutdown().await.unwrap();
    };
    let work = async move {
        let connected = Stream::from(TlsStream::connect(far.into(), client, name()).await.unwrap());
        let (mut got, mut held) = (Vec::new(), false);
        for _ in 0..3000 {
            connected.write_all(b"x").await.unwrap();
            let mut part = [0; 8];
            got.extend(connected.try_read(&mut part).map(|count| part[..count].to_vec()).unwrap_or_default());
            held |= !connected.tls().unwrap().state.borrow().partial.is_empty();
            tokio::task::yield_now().await;
        }
        assert!(held, "no write came between");
        got.extend(read_all(&connected, 64).await);
        assert_eq!(got, b"done");
    };
    let both = async { tokio::join!(work, serve) };
    tokio::select! {
        _ = both => {}
        () = relay => panic!("the relay ended first"),
    }
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (one, other) = pair().await;
    one.write_all(&body(100_000)).await.unwrap();
    let mut got = 0;
    let mut buffer = vec![0; 1 << 16];
    while got < 100_000 {
        poll_fn(|context| other.poll_read_ready(context)).await.unwrap();
        if let Ok(count) = other.try_read(&mut buffer) {
            got += count;
        }
    }
    assert!(other.is_quiet() && one.is_quiet());
    for stream in [&one, &other] {
        let state = stream.tls().unwrap().state.borrow();
        assert_eq!((state.partial.capacity(), state.plain.capacity(), state.unsent.capacity()), (0, 0, 0));
    }
    assert!(size_of::<TlsStream>() <= 2048, "{}", size_of::<TlsStream>());
    assert_eq!(size_of::<Stream>(), size_of::<TcpStream>() + 8);
}
