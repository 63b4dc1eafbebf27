use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::tls::{Hello, HelloParser, Verdict};
use super::*;

/// A ClientHello message as a client would send it, without record headers.
fn hello(server_name: Option<&[u8]>, alpn: &[&[u8]], padding: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, data: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((data.len() as u16).to_be_bytes());
        extensions.extend(data);
    };
    extension(0x0a0a, &[]);
    if let Some(name) = server_name {
        let mut data = ((name.len() + 3) as u16).to_be_bytes().to_vec();
        data.push(0);
        data.extend((name.len() as u16).to_be_bytes());
        data.extend(name);
        extension(0, &data);
    }
    if !alpn.is_empty() {
        let list: Vec<u8> = alpn.iter().flat_map(|p| [&[p.len() as u8], *p].concat()).collect();
        let data = [&(list.len() as u16).to_be_bytes(), list.as_slice()].concat();
        extension(16, &data);
    }
    extension(21, &vec![0; padding]);
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend([2, 1, 1]);
    body.extend([0, 4, 0x13, 1, 0x13, 2]);
    body.extend([1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    message
}

/// The message in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    message.chunks(size).flat_map(record).collect()
}

fn at_once(bytes: &[u8]) -> Verdict {
    HelloParser::default().look(bytes)
}

fn found(server_name: &str, alpn: &[&str]) -> Verdict {
    let server_name = (!server_name.is_empty()).then(|| server_name.into());
    Verdict::Hello(Hello { server_name, alpn: alpn.iter().map(|p| (*p).into()).collect() })
}

#[test]
fn a_hello_however_it_is_cut() {
    let message = hello(Some(b"WWW.Example.com"), &[b"h2", b"http/1.1"], 40);
    let expected = found("www.example.com", &["h2", "http/1.1"]);
    for size in [1, 2, 3, 4, 5, 50, 1000] {
        let bytes = records(&message, size);
        assert_eq!(at_once(&bytes), expected, "records of {size}");
        let mut slowly = HelloParser::default();
        for end in 0..bytes.len() {
            assert_eq!(slowly.look(&bytes[..end]), Verdict::NeedMore, "records of {size}, {end} bytes");
        }
        assert_eq!(slowly.look(&bytes), expected);
    }
    let mut with_empty_record = vec![22, 3, 1, 0, 0];
    with_empty_record.extend(records(&message, 1000));
    assert_eq!(at_once(&with_empty_record), expected);
    // Bytes behind the hello are somebody else's.
    let mut bytes = records(&message, 1000);
    bytes.extend(b"early data");
    assert_eq!(at_once(&bytes), expected);
}

#[test]
fn large_hellos() {
    let message = hello(Some(b"a.test"), &[], 40_000);
    assert_eq!(at_once(&records(&message, 16_384)), found("a.test", &[]));
}

#[test]
fn names_and_protocols() {
    let check = |name: Option<&[u8]>, alpn: &[&[u8]]| at_once(&records(&hello(name, alpn, 0), 9000));
    assert_eq!(check(None, &[]), found("", &[]));
    assert_eq!(check(Some(b"10.0.0.1"), &[b"x"]), found("10.0.0.1", &["x"]));
    // As Envoy: a NUL or an empty name makes it no hello at all.
    assert_eq!(check(Some(b"a\0b"), &[]), Verdict::NotTls);
    assert_eq!(check(Some(b""), &[]), Verdict::NotTls);
    assert_eq!(check(Some(&[b'a'; 256]), &[]), Verdict::NotTls);
    assert_eq!(check(Some(&[b'a'; 255]), &[]), found(&"a".repeat(255), &[]));
    // Stricter than Envoy: such a name is no name.
    for name in [&b"a\nb.test"[..], b"a b.test", b"a\xffb", b"a\x7f", "ä.test".as_bytes()] {
        assert_eq!(check(Some(name), &[]), found("", &[]), "{name:?}");
    }
    assert_eq!(check(None, &[b"h2", b""]), Verdict::NotTls);
    assert_eq!(check(None, &[b"\x0a\x0a", b"\xff", b"h2"]), found("", &["\n\n", "h2"]));
}

#[test]
fn what_is_not_a_hello() {
    let good = records(&hello(Some(b"a.test"), &[], 0), 9000);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        at_once(&changed)
    };
    assert_eq!(with(1, &[3, 9]), found("a.test", &[]), "the minor version does not matter");
    assert_eq!(with(1, &[4]), Verdict::NotTls);
    assert_eq!(with(0, &[21]), Verdict::NotTls);
    assert_eq!(with(3, &[0xff, 0xff]), Verdict::NotTls);
    assert_eq!(with(5, &[2]), Verdict::NotTls);
    assert_eq!(with(6, &[0xff, 0xff, 0xff]), Verdict::NotTls);
    assert_eq!(with(good.len() - 2, &[0xff]), Verdict::NotTls, "an extension longer than the rest");
    // Decided by the first byte that differs.
    assert_eq!(at_once(b""), Verdict::NeedMore);
    assert_eq!(at_once(b"h"), Verdict::NotTls);
    assert_eq!(at_once(&[22]), Verdict::NeedMore);
    assert_eq!(at_once(&[22, 2]), Verdict::NotTls);
    // A second server name could be read differently by the server.
    let mut twice = hello(Some(b"a.test"), &[], 0);
    let extension = twice[4 + 2 + 32 + 3 + 6 + 2 + 2 + 4..][..15].to_vec();
    assert_eq!(&extension[..2], &[0, 0]);
    twice.extend(&extension);
    let length = (twice.len() - 4) as u32;
    twice[1..4].copy_from_slice(&length.to_be_bytes()[1..]);
    let at = 4 + 2 + 32 + 3 + 6 + 2;
    let extensions = (twice.len() - at - 2) as u16;
    twice[at..at + 2].copy_from_slice(&extensions.to_be_bytes());
    assert_eq!(at_once(&records(&twice, 9000)), Verdict::NotTls);
}

#[test]
fn the_hello_of_ssl_2() {
    assert_eq!(at_once(&[0x80, 0x2e]), Verdict::NeedMore);
    assert_eq!(at_once(&[0x80, 0x2e, 1, 3, 1]), found("", &[]));
    assert_eq!(at_once(&[0x80, 0x2e, 2]), Verdict::NotTls);
    assert_eq!(at_once(&[0x80, 0x2e, 1, 2]), Verdict::NotTls);
}

/// Whatever arrives, in whatever pieces: no panic, and the same verdict as at once.
#[test]
fn mutations_do_no_harm() {
    let mut random = fastrand::Rng::with_seed(20_260_115);
    let seeds = [
        records(&hello(Some(b"a.test"), &[b"h2", b"http/1.1"], 30), 9000),
        records(&hello(Some(b"a.test"), &[b"h2"], 10), 17),
        b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ];
    for round in 0..100_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len().max(1));
            match random.u8(..5) {
                0 if !bytes.is_empty() => bytes[at] = random.u8(..),
                1 if !bytes.is_empty() => bytes[at] ^= 1 << random.u8(..8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, random.u8(..)),
                _ => bytes.extend_from_within(at..),
            }
        }
        let mut tls = HelloParser::default();
        let mut line = http::RequestLine::default();
        let (mut tls_verdict, mut http_verdict) = (Verdict::NeedMore, http::Verdict::NeedMore);
        let mut end = 0;
        while end < bytes.len() {
            end = (end + random.usize(1..40)).min(bytes.len());
            if tls_verdict == Verdict::NeedMore {
                tls_verdict = tls.look(&bytes[..end]);
            }
            if http_verdict == http::Verdict::NeedMore {
                http_verdict = line.look(&bytes[..end]);
            }
        }
        assert_eq!(tls_verdict, at_once(&bytes), "{bytes:?}");
        assert_eq!(http_verdict, super::http::RequestLine::default().look(&bytes), "{bytes:?}");
    }
}

#[test]
fn request_lines_as_envoy_sees_them() {
    use super::http::Verdict::{Http, NeedMore, NotHttp};
    let (h10, h11) = (Http("http/1.0"), Http("http/1.1"));
    let cases: &[(&[u8], &super::http::Verdict)] = &[
        (b"GET / HTTP/1.0\r\n\r\n", &h10),
        (b"GET / HTTP/1.1\r\n", &h11),
        (b"GET / HTTP/1.1\n", &h11),
        (b"GET / HTTP/1.1\r", &NeedMore),
        (b"FOO / HTTP/1.1\r\n", &h11),
        (b"get / HTTP/1.1\r\n", &h11),
        (b"M-SEARCH * HTTP/1.1\r\n", &h11),
        (b"CONNECT a:1 HTTP/1.1\r\n", &h11),
        (b"CONNECT / HTTP/1.1\r\n", &h11),
        (b"GET http://a/ HTTP/1.1\r\n", &h11),
        (b"GET *x HTTP/1.1\r\n", &h11),
        (b"GET  / HTTP/1.1\r\n", &h11),
        (b"GET\t/ HTTP/1.1\r\n", &h11),
        (b"GET / HTTP/1.1 \r\n", &h11),
        (b"GET /\x00 HTTP/1.1\r\n", &h11),
        (b"PRI / HTTP/1.1\r\n", &h11),
        (b"PRI * HTTP/1.1\r\n", &h11),
        (b"PRIX / HTTP/1.1\r\n", &h11),
        (b"GET /\r\n", &h10),
        (b"GET / HTTP/1.2\r\n", &h10),
        (b"GET / HTTP/2.0\r\n", &h10),
        (b"GET / HTTP/9.9\r\n", &h10),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &Http("h2c")),
        (b"PRI * HTTP/2.0\r\n\r\nSM", &NeedMore),
        (b"PRI * HTTP/2.0\r\n", &NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &NotHttp),
        (b"PRI * HTTP/2.0\r\nHost: x\r\n\r\n", &NotHttp),
        (b"", &NeedMore),
        (b"GETT", &NeedMore),
        (b"hello", &NeedMore),
        (b"GET world", &NeedMore),
        (b"SSH-2.0-x", &NeedMore),
        (b"SSH-2.0-x\r\n", &NotHttp),
        (b"hello world\n", &NotHttp),
        (b"GET world HTTP/1.1\r\n", &NotHttp),
        (b"GET a:/ HTTP/1.1\r\n", &NotHttp),
        (b"GET / FOO/1.1\r\n", &NotHttp),
        (b"GET / http/1.1\r\n", &NotHttp),
        (b"GET / HTTP/1.x\r\n", &NotHttp),
        (b"GET / HTTP/1.10\r\n", &NotHttp),
        (b"GET /a b HTTP/1.1\r\n", &NotHttp),
        (b"GET /\tx HTTP/1.1\r\n", &NotHttp),
        (b"GET /\x80 HTTP/1.1\r\n", &NotHttp),
        (b"GET \r\n", &NotHttp),
        (b"GET\r\n", &NotHttp),
        (b"\r\nGET / HTTP/1.1\r\n", &NotHttp),
        (b" GET / HTTP/1.1\r\n", &NotHttp),
        (b"G@T", &NotHttp),
        (b"\x16\x03\x01abc", &NotHttp),
    ];
    for (bytes, expected) in cases {
        let mut line = http::RequestLine::default();
        assert_eq!(&line.look(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

const BOTH: Inspect = Inspect { tls: true, http: true, original_dst: false };

fn pair() -> (UnixStream, Stream) {
    let (client, server) = UnixStream::pair().unwrap();
    (client, server.into())
}

async fn inspect(stream: &Stream, what: Inspect) -> Result<Inspected, InspectError> {
    let mut found = Inspected::default();
    super::inspect(stream, what, &mut found).await.map(|()| found)
}

#[tokio::test]
async fn every_byte_read_is_handed_on() {
    let (mut client, server) = pair();
    let bytes = records(&hello(Some(b"a.test"), &[b"h2"], 5000), 100);
    let (sent, inspected) = tokio::join!(
        async {
            for part in bytes.chunks(1500) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
        },
        inspect(&server, BOTH),
    );
    let ((), mut inspected) = (sent, inspected.unwrap());
    assert_eq!(inspected.transport(), "tls");
    assert_eq!(inspected.server_name.as_deref(), Some("a.test"));
    assert_eq!(inspected.alpn, ["h2".into()]);
    while server.read_buf(&mut { &mut inspected.prefix }).await.unwrap() > 0 {
        inspected.prefix.reserve(READ);
    }
    assert_eq!(inspected.prefix, bytes);
}

#[tokio::test]
async fn plain_http_behind_both_inspectors() {
    let (mut client, server) = pair();
    client.write_all(b"GET / HT").await.unwrap();
    let (rest, inspected) =
        tokio::join!(client.write_all(b"TP/1.1\r\nHost: a\r\n\r\n"), inspect(&server, BOTH));
    let ((), inspected) = (rest.unwrap(), inspected.unwrap());
    assert_eq!((inspected.transport(), inspected.alpn.as_slice()), ("raw_buffer", &["http/1.1".into()][..]));
    let none = inspect(&server, Inspect::default()).await.unwrap();
    assert!(none.prefix.is_empty() && !none.tls);
}

#[tokio::test]
async fn what_was_read_outlives_the_wait() {
    let half_hello = &records(&hello(Some(b"a.test"), &[], 0), 9000)[..40];
    for sent in [half_hello, b"GET / HTTP"] {
        let (mut client, server) = pair();
        client.write_all(sent).await.unwrap();
        let mut found = Inspected::default();
        {
            let waiting = super::inspect(&server, BOTH, &mut found);
            tokio::select! {
                biased;
                _ = waiting => panic!("decided"),
                () = tokio::task::yield_now() => {}
            }
        }
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        let _ = super::inspect(&server, BOTH, &mut found).await;
        assert_eq!(found.prefix, [sent, b"x"].concat());
    }
}

#[tokio::test]
async fn clients_that_leave_or_never_finish() {
    let (client, server) = pair();
    drop(client);
    assert!(matches!(inspect(&server, BOTH).await, Err(InspectError::Closed)));
    for endless in [b"A".repeat(1000), b"\x16\x03\x01\x00\x00".repeat(200)] {
        let (mut client, server) = pair();
        let flood = async { while client.write_all(&endless).await.is_ok() {} };
        tokio::select! {
            () = flood => unreachable!("the socket is open"),
            result = inspect(&server, BOTH) => {
                assert!(matches!(result, Err(InspectError::TooLarge)), "{result:?}");
            }
        }
    }
}
