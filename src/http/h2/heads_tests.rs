use super::*;
use crate::config::HeaderView;

fn request_of(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> http::request::Parts {
    build(Request::builder().uri("http://a.test/p?q=1")).body(()).unwrap().into_parts().0
}

fn parsed(parts: &http::request::Parts) -> Parsed {
    request(parts, true, &RequestLimits::default(), || 0).unwrap()
}

fn bad(parts: &http::request::Parts) -> Bad {
    request(parts, true, &RequestLimits::default(), || 0).unwrap_err()
}

#[test]
fn a_request_reads_as_over_http_1() {
    let parts = request_of(|r| r.header("cookie", "a=1").header("x", " y ").header("cookie", "b=2"));
    let Parsed { head, framing, .. } = parsed(&parts);
    assert_eq!((head.method(), head.path(), head.authority()), (&b"GET"[..], &b"/p?q=1"[..], &b"a.test"[..]));
    assert_eq!(head.fields.get(Known::Cookie), Some(&b"a=1; b=2"[..]));
    assert_eq!(head.fields.all(Known::Cookie).count(), 1);
    assert_eq!(head.fields.first(&crate::config::HeaderKey::new("x")), Some(&b"y"[..]));
    assert_eq!(framing, Framing::Empty);
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let cases: [http::request::Parts; 5] = [
        request_of(|r| r.method("get")),
        request_of(|r| r.header("host", "b.test")),
        request_of(|r| r.header("content-length", "1").header("content-length", "2")),
        request_of(|r| r.header("content-length", "+1")),
        request_of(|r| r.header("transfer_encoding", "chunked")),
    ];
    for parts in cases {
        assert!(matches!(bad(&parts), Bad::Malformed(_)), "{parts:?}");
    }
    // The same host twice says nothing new.
    let parts = request_of(|r| r.header("host", "A.test"));
    assert!(!parsed(&parts).head.fields.has(Known::Host));
    let mut many = Request::builder().uri("http://a.test/");
    for index in 0..101 {
        many = many.header(format!("x-{index}"), "1");
    }
    assert_eq!(bad(&many.body(()).unwrap().into_parts().0), Bad::TooManyFields);
}

#[test]
fn names_with_underscores_follow_the_config() {
    let parts = request_of(|r| r.header("a_b", "1"));
    let with =
        |underscores| request(&parts, true, &RequestLimits { underscores, ..RequestLimits::default() }, || 0);
    assert_eq!(with(Underscores::Allow).unwrap().head.fields.len(), 1);
    let dropped = with(Underscores::Drop).unwrap();
    assert_eq!((dropped.head.fields.len(), dropped.dropped), (0, 1));
    assert_eq!(with(Underscores::Reject).unwrap_err(), Bad::Underscore);
}

#[test]
fn an_extended_connect_is_an_upgrade_and_back() {
    let mut parts = request_of(|r| r.method("CONNECT").header("sec-websocket-version", "13"));
    parts.extensions.insert(ConnectProtocol::from_static("websocket"));
    let head = parsed(&parts).head;
    assert_eq!((head.method(), head.upgrade()), (&b"GET"[..], Some(&b"websocket"[..])));
    assert_eq!(head.fields.get(Known::Upgrade), Some(&b"websocket"[..]));
    let back = to_upstream(&head).unwrap();
    assert_eq!(back.method(), Method::CONNECT);
    assert_eq!(back.extensions().get::<ConnectProtocol>().unwrap().as_str(), "websocket");
    assert_eq!(back.uri(), "http://a.test/p?q=1");
    assert!(!back.headers().contains_key("upgrade") && !back.headers().contains_key("connection"));
    assert_eq!(back.headers()["sec-websocket-version"], "13");

    let answer = Response::builder().status(200).header("content-length", "0").body(()).unwrap();
    let (head, framing) = response(&answer.into_parts().0, false, false, false, Some(b"websocket")).unwrap();
    assert_eq!((head.status, framing), (101, Framing::Tunnel));
    assert_eq!(head.fields.get(Known::Upgrade), Some(&b"websocket"[..]));
    let client = to_client(&head);
    assert_eq!(client.status(), 200);
    assert!(client.headers().is_empty(), "{client:?}");
}

#[test]
fn a_connect_has_neither_path_nor_scheme() {
    let parts = Request::builder().method("CONNECT").uri("a.test:443").body(()).unwrap().into_parts().0;
    let head = parsed(&parts).head;
    assert_eq!(
        (head.method(), head.authority(), head.upgrade()),
        (&b"CONNECT"[..], &b"a.test:443"[..], Some(&b"connect"[..]))
    );
    let back = to_upstream(&head).unwrap();
    assert_eq!((back.method(), back.uri().to_string()), (&Method::CONNECT, "a.test:443".to_owned()));
}

#[test]
fn fields_survive_the_way_there_and_back() {
    let mut fields = Fields::recycled();
    for (name, value) in [("x-a", "1"), ("x-request-id", "2"), ("x-a", "3"), ("Te", "trailers"), ("x-b", "")]
    {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields.push_known(Known::Connection, b"close");
    fields.push_known(Known::GrpcStatus, b"0");
    let map = map_of(&fields);
    assert_eq!(map.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!((map.len(), map.contains_key("connection")), (6, false));
    assert_eq!(
        (&map["te"], &map["grpc-status"], &map["x-b"]),
        (
            &HeaderValue::from_static("trailers"),
            &HeaderValue::from_static("0"),
            &HeaderValue::from_static("")
        )
    );
    let back = fields_of(&map);
    assert_eq!(back.len(), 6);
    assert_eq!(back.get(Known::XRequestId), Some(&b"2"[..]));
}

#[test]
fn framing_of_responses() {
    let of = |status: u16, length: Option<&str>, ended: bool, to_head: bool| {
        let mut builder = Response::builder().status(status);
        if let Some(length) = length {
            builder = builder.header("content-length", length);
        }
        response(&builder.body(()).unwrap().into_parts().0, ended, to_head, false, None)
            .map(|(_, framing)| framing)
    };
    assert_eq!(of(200, None, false, false), Ok(Framing::Chunked));
    assert_eq!(of(200, Some("5"), false, false), Ok(Framing::Length(5)));
    assert_eq!(of(200, Some("5"), false, true), Ok(Framing::Empty));
    assert_eq!(of(200, None, true, false), Ok(Framing::Empty));
    assert!(of(200, Some("x"), true, false).is_err());
}

#[test]
fn a_websocket_gets_the_key_that_http_1_needs() {
    let mut parts = request_of(|r| r.method("CONNECT"));
    parts.extensions.insert(ConnectProtocol::from_static("websocket"));
    let head = request(&parts, false, &RequestLimits::default(), || 0x0001_0203_0405_0607).unwrap().head;
    let key = head.fields.first(&crate::config::HeaderKey::new("sec-websocket-key")).unwrap();
    assert_eq!(key, b"AAECAwQFBgcAAQIDBAUGBw==");
    assert!(!to_upstream(&head).unwrap().headers().contains_key("sec-websocket-key"));
}
