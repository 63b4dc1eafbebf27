//! Heads and bodies against RFC 9112, what Envoy 1.40 was seen to answer, and random mutations.

use super::{
    parse_request, parse_response, write, Framing, ParsedRequest, ParsedResponse, Refusal, RequestLimits,
    ResponseLimits,
};
use crate::config::http::{HeaderCase, Underscores};
use crate::config::{Known, RequestView};
use crate::http::fields::Fields;
use crate::telemetry::stream_info::Protocol;

mod body;
mod mutation;

fn limits() -> RequestLimits {
    RequestLimits::default()
}

const RESPONSE: ResponseLimits = ResponseLimits::UNSET;

/// Feeds the input in growing prefixes, as a slow client would, until something is decided.
fn by_prefix<T>(
    input: &[u8],
    parse: impl Fn(&[u8]) -> Result<Option<T>, Refusal>,
) -> Result<Option<T>, Refusal> {
    for end in 0..=input.len() {
        let result = parse(&input[..end]);
        if !matches!(result, Ok(None)) {
            return result;
        }
    }
    Ok(None)
}

fn request_with(input: &[u8], limits: &RequestLimits) -> Result<ParsedRequest, Refusal> {
    let whole = parse_request(input, limits);
    let cut = by_prefix(input, |part| parse_request(part, limits));
    let show = input.escape_ascii();
    match (&whole, &cut) {
        (Ok(Some(whole)), Ok(Some(cut))) => {
            assert_eq!(summary(whole), summary(cut), "{show}");
        }
        (Err(whole), Err(cut)) => assert_eq!(whole.status, cut.status, "{show}"),
        (Ok(None), Ok(None)) => panic!("incomplete: {show}"),
        _ => panic!("whole {whole:?}, cut {cut:?}: {show}"),
    }
    whole.map(|parsed| parsed.expect("complete"))
}

fn request(input: &str) -> Result<ParsedRequest, Refusal> {
    request_with(input.as_bytes(), &limits())
}

fn summary(parsed: &ParsedRequest) -> impl PartialEq + std::fmt::Debug {
    let mut out = Vec::new();
    write::request_head(&mut out, &parsed.head, HeaderCase::Lower, b"");
    (
        out,
        parsed.consumed,
        parsed.framing,
        parsed.keep_alive,
        parsed.expects_continue,
        parsed.head.scheme().to_vec(),
        parsed.head.upgrade().map(<[u8]>::to_vec),
        parsed.head.protocol == Protocol::Http10,
    )
}

fn response(input: &str, to_head: bool, to_connect: bool) -> Result<ParsedResponse, Refusal> {
    let whole = parse_response(input.as_bytes(), &RESPONSE, to_head, to_connect);
    let cut = by_prefix(input.as_bytes(), |part| parse_response(part, &RESPONSE, to_head, to_connect));
    match (&whole, &cut) {
        (Ok(Some(whole)), Ok(Some(cut))) => assert_eq!(
            (whole.head.status, whole.consumed, whole.framing, whole.keep_alive),
            (cut.head.status, cut.consumed, cut.framing, cut.keep_alive),
            "{input:?}"
        ),
        (Err(whole), Err(cut)) => assert_eq!(whole, cut, "{input:?}"),
        _ => panic!("whole {whole:?}, cut {cut:?}: {input:?}"),
    }
    whole.map(|parsed| parsed.expect("complete"))
}

fn refusal(input: &str) -> Refusal {
    match request(input) {
        Err(refusal) => refusal,
        Ok(parsed) => panic!("accepted {input:?}: {:?}", summary(&parsed)),
    }
}

#[test]
fn framing_that_two_parsers_could_read_differently_is_refused() {
    let cases: &[(&str, Refusal)] = &[
        // Lengths.
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 5\r\ncontent-length: 5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 5, 5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 5,6\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length:\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: \r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: +5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: -5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 0x5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 5.0\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 5 5\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 1_0\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: \"5\"\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: \u{0665}\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 9223372036854775808\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 18446744073709551621\r\n", Refusal::CONTENT_LENGTH),
        ("Content-Length: 99999999999999999999999999999999999999\r\n", Refusal::CONTENT_LENGTH),
        // Length and coding.
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Refusal::LENGTH_AND_CHUNKED),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Refusal::LENGTH_AND_CHUNKED),
        ("transfer-encoding:chunked\r\ncontent-length:0\r\n", Refusal::LENGTH_AND_CHUNKED),
        // Codings.
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: chunked, chunked\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: gzip, chunked\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: chunked, gzip\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: gzip\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: identity\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: xchunked\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: \"chunked\"\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding:\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: chunked;q=1\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: chunked,\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: ,chunked\r\n", Refusal::TRANSFER_ENCODING),
        ("Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", Refusal::TRANSFER_ENCODING),
        ("Transfer-Encoding: \x0bchunked\r\n", Refusal::CHARACTERS),
        ("Transfer-Encoding: chunked\x00\r\n", Refusal::CHARACTERS),
        ("Transfer_Encoding: chunked\r\n", Refusal::UNDERSCORE),
        ("Content-Length: 5\r\ntransfer_encoding: chunked\r\n", Refusal::UNDERSCORE),
        ("Content_Length: 5\r\n", Refusal::UNDERSCORE),
        ("Transfer-Encoding : chunked\r\n", Refusal::CODEC),
        ("Transfer-Encoding\t: chunked\r\n", Refusal::CODEC),
        (" Transfer-Encoding: chunked\r\n", Refusal::CODEC),
        ("Transfer-Encoding:\r\n chunked\r\n", Refusal::CODEC),
        ("X: y\rTransfer-Encoding: chunked\r\n", Refusal::CODEC),
        ("X: y\nTransfer-Encoding: chunked\r\n", Refusal::CODEC),
        // Lines.
        ("X: a\r\n b\r\n", Refusal::CODEC),
        ("X: a\r\n\tb\r\n", Refusal::CODEC),
        ("X: a\rb\r\n", Refusal::CODEC),
        ("X: a\r\r\n", Refusal::CODEC),
        ("X: a\nY: b\r\n", Refusal::CODEC),
        ("X : a\r\n", Refusal::CODEC),
        (": a\r\n", Refusal::CODEC),
        ("X\r\n", Refusal::CODEC),
        ("X Y: a\r\n", Refusal::CODEC),
        ("X(Y): a\r\n", Refusal::CODEC),
        ("X\u{e9}: a\r\n", Refusal::CODEC),
        ("X: a\x00b\r\n", Refusal::CHARACTERS),
        ("X: a\x01b\r\n", Refusal::CHARACTERS),
        ("X: a\x0cb\r\n", Refusal::CHARACTERS),
        ("X: a\x7fb\r\n", Refusal::CHARACTERS),
        ("X\x00: a\r\n", Refusal::CHARACTERS),
    ];
    for (lines, wanted) in cases {
        for input in [
            format!("POST / HTTP/1.1\r\nHost: t.test\r\n{lines}\r\nhello"),
            format!("POST / HTTP/1.1\r\nHost: t.test\r\n{lines}Accept: x\r\n\r\nhello"),
        ] {
            assert_eq!(refusal(&input), *wanted, "{input:?}");
        }
    }
    // Bare LF anywhere, the empty line included.
    for input in [
        "GET / HTTP/1.1\nHost: t.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: t.test\n\r\n",
        "GET / HTTP/1.1\r\nHost: t.test\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: t.test\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: t.test\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: t.test\r\n\r\n",
    ] {
        assert_eq!(refusal(input).status, 400, "{input:?}");
    }
    // A control byte in the body says nothing about the head.
    assert_eq!(refusal("GET / HTTP/1.1\r\nX Y: z\r\n\r\n\0"), Refusal::CODEC);
}

#[test]
fn hosts() {
    for lines in [
        "Host: t.test\r\nHost: u.test\r\n",
        "Host: t.test\r\nhost: t.test\r\n",
        "Host:\r\n",
        "Host: \r\n",
        "Host: t.test,u.test\r\n",
        "Host: t.test/x\r\n",
        "Host: t.test u.test\r\n",
        "Host: user@t.test\r\n",
        "Host: <t.test>\r\n",
        "Host: t.test:x\r\n",
        "Host: t.test:80:80\r\n",
        "Host: :80\r\n",
        "Host: t.test?x\r\n",
        "Host: t.test#x\r\n",
        "Host: t\\test\r\n",
        "Host: [::1\r\n",
        "Host: [::1]x\r\n",
        "Host: [::1/]\r\n",
        "Host: t.test:999999\r\n",
        "Host: t\u{e9}st\r\n",
    ] {
        for target in ["/", "http://abs.test/"] {
            let input = format!("GET {target} HTTP/1.1\r\n{lines}\r\n");
            assert_eq!(refusal(&input), Refusal::HOST, "{input:?}");
        }
    }
    for host in ["t.test", "t.test:80", "[::1]", "[::1]:8080", "127.0.0.1:1", "t_t.test.", "T.test:", "*"] {
        let parsed = request(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect(host);
        assert_eq!(parsed.head.authority(), host.as_bytes());
        assert!(!parsed.head.fields.has(Known::Host));
    }
    // The connection manager answers a missing host.
    assert_eq!(request("GET / HTTP/1.1\r\n\r\n").expect("no host").head.authority(), b"");
}

#[test]
fn request_lines() {
    let cases: &[(&str, Refusal)] = &[
        ("GET / HTTP/1.0", Refusal::LOW_VERSION),
        ("GET / HTTP/1.2", Refusal::LOW_VERSION),
        ("GET / HTTP/2.0", Refusal::LOW_VERSION),
        ("GET / HTTP/9.9", Refusal::LOW_VERSION),
        ("GET /", Refusal::LOW_VERSION),
        ("GET / http/1.1", Refusal::CODEC),
        ("GET / HTTPS/1.1", Refusal::CODEC),
        ("GET / HTTP/1.10", Refusal::CODEC),
        ("GET / HTTP/2.01", Refusal::CODEC),
        ("GET / HTTP/11", Refusal::CODEC),
        ("GET / HTTP/1.1 ", Refusal::CODEC),
        ("GET  / HTTP/1.1", Refusal::CODEC),
        ("GET /  HTTP/1.1", Refusal::CODEC),
        ("GET\t/ HTTP/1.1", Refusal::CODEC),
        ("GET / x HTTP/1.1", Refusal::CODEC),
        (" GET / HTTP/1.1", Refusal::CODEC),
        ("GET", Refusal::CODEC),
        ("get / HTTP/1.1", Refusal::CODEC),
        ("BREW / HTTP/1.1", Refusal::CODEC),
        ("G(T / HTTP/1.1", Refusal::CODEC),
        ("GET /\u{e9} HTTP/1.1", Refusal::CODEC),
        ("GET /\x01 HTTP/1.1", Refusal::CHARACTERS),
        ("GET /\x00 HTTP/1.1", Refusal::CHARACTERS),
        ("GET /\x7f HTTP/1.1", Refusal::CHARACTERS),
        ("GET * HTTP/1.1", Refusal::TARGET),
        ("GET *x HTTP/1.1", Refusal::TARGET),
        ("GET x HTTP/1.1", Refusal::CODEC),
        ("GET x HTTP/9.9", Refusal::CODEC),
        ("GET ?x HTTP/1.1", Refusal::CODEC),
        ("GET t.test:80 HTTP/1.1", Refusal::CODEC),
        ("GET HTTP/1.1", Refusal::CODEC),
        ("G\x01T / HTTP/1.1", Refusal::CODEC),
        ("\x16\x03\x01\x01hello", Refusal::CODEC),
        ("GET http:///x HTTP/1.1", Refusal::TARGET),
        ("GET http:/x HTTP/1.1", Refusal::CODEC),
        ("GET http://u@ HTTP/1.1", Refusal::TARGET),
        ("GET 1a://t.test/ HTTP/1.1", Refusal::CODEC),
        ("GET a+b-c.d://t.test/ HTTP/1.1", Refusal::SCHEME),
        ("GET ftp://t.test/ HTTP/1.1", Refusal::SCHEME),
        ("GET http://u@v@t.test/ HTTP/1.1", Refusal::HOST),
        ("GET http://t.test#x HTTP/1.1", Refusal::HOST),
        ("CONNECT  HTTP/2.1", Refusal::CODEC),
        ("CONNECT /x HTTP/1.1", Refusal::TARGET),
        ("CONNECT t.test HTTP/1.1", Refusal::TARGET),
        ("CONNECT t.test: HTTP/1.1", Refusal::TARGET),
        ("CONNECT http://t.test:80/ HTTP/1.1", Refusal::TARGET),
        ("CONNECT u@t.test:80 HTTP/1.1", Refusal::HOST),
        ("PRI * HTTP/2.0", Refusal::CODEC),
    ];
    for (line, wanted) in cases {
        assert_eq!(refusal(&format!("{line}\r\nHost: t.test\r\n\r\n")), *wanted, "{line:?}");
    }
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert_eq!(refusal(preface), Refusal::CODEC);
    assert_eq!(refusal("\r\nGET / HTTP/2.0\r\n\r\n"), Refusal::LOW_VERSION);
    // A TLS hello is refused at its first bytes, not waited out.
    assert!(parse_request(b"\x16\x03\x01\x02\x00", &limits()).is_err());

    for (line, path, authority) in [
        ("GET /a%2fb/../c//d?x=1 HTTP/1.1", "/a%2fb/../c//d?x=1", "t.test"),
        ("GET /|{}\"<>^`\\ HTTP/1.1", "/|{}\"<>^`\\", "t.test"),
        ("OPTIONS * HTTP/1.1", "*", "t.test"),
        ("GET http://abs.test/x?y HTTP/1.1", "/x?y", "abs.test"),
        ("GET HTTP://abs.test:81 HTTP/1.1", "/", "abs.test:81"),
        ("GET http://abs.test?q=1 HTTP/1.1", "?q=1", "abs.test"),
        ("GET http://user:pw@abs.test:81/x@y HTTP/1.1", "/x@y", "abs.test:81"),
        ("CONNECT up.test:443 HTTP/1.1", "", "up.test:443"),
        ("M-SEARCH / HTTP/1.1", "/", "t.test"),
    ] {
        let parsed = request(&format!("{line}\r\nHost: t.test\r\n\r\n")).expect(line);
        assert_eq!(parsed.head.path().escape_ascii().to_string(), path.as_bytes().escape_ascii().to_string());
        assert_eq!(parsed.head.authority(), authority.as_bytes(), "{line}");
    }
    let https = request("GET https://abs.test/ HTTP/1.1\r\nHost: x\r\n\r\n").expect("https");
    assert_eq!(https.head.scheme(), b"https");
    let custom = RequestLimits { custom_methods: true, ..limits() };
    assert!(request_with(b"BREW / HTTP/1.1\r\nHost: t\r\n\r\n", &custom).is_ok());
    let relative = RequestLimits { absolute_url: false, ..limits() };
    let left = request_with(b"GET http://a.test/x HTTP/1.1\r\nHost: t\r\n\r\n", &relative).expect("left");
    assert_eq!((left.head.path(), left.head.authority()), (&b"http://a.test/x"[..], &b"t"[..]));
}

#[test]
fn http_10_and_what_the_client_wants_of_the_connection() {
    let old = RequestLimits { http_10: true, default_host: Some("d.test".into()), ..limits() };
    let cases: &[(&str, bool)] = &[
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: x, Keep-Alive, close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nProxy-Connection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nConnection: closed\r\n\r\n", true),
    ];
    for (input, keep) in cases {
        let parsed = request_with(input.as_bytes(), &old).expect(input);
        assert_eq!(parsed.keep_alive, *keep, "{input:?}");
        // Since HTTP/1.1 a request must name its host.
        let host: &[u8] = if input.contains("HTTP/1.0") { b"d.test" } else { b"" };
        assert_eq!(parsed.head.authority(), host);
    }
    let chunked = request_with(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", &old);
    assert_eq!(chunked.err(), Some(Refusal::CHUNKED_HTTP_10));
    let expects = |line: &str, version: &str| {
        let input = format!("POST / HTTP/1.{version}\r\nHost: t\r\n{line}Content-Length: 1\r\n\r\n");
        request_with(input.as_bytes(), &old).expect(line).expects_continue
    };
    assert!(expects("Expect: 100-Continue\r\n", "1"));
    assert!(!expects("Expect: 100-continue\r\n", "0") && !expects("Expect: other\r\n", "1"));
    let upgrade = |lines: &str| {
        let parsed = request(&format!("GET / HTTP/1.1\r\nHost: t\r\n{lines}\r\n")).expect(lines);
        parsed.head.upgrade().map(<[u8]>::to_vec)
    };
    assert_eq!(upgrade("Connection: x, Upgrade\r\nUpgrade: WebSocket\r\n"), Some(b"websocket".to_vec()));
    assert_eq!(upgrade("Upgrade: websocket\r\n"), None);
    assert_eq!(upgrade("Proxy-Connection: upgrade\r\nUpgrade: websocket\r\n"), None);
    assert_eq!(upgrade("Connection: upgrade\r\n"), None);
}

#[test]
fn good_requests_and_limits() {
    let input = "\r\nPOST /p HTTP/1.1\r\nHost: t.test\r\nX-A:  v w \t\r\nX-EMPTY:\r\ncontent-length: 0005\r\n\r\nhello";
    let parsed = request(input).expect("good");
    assert_eq!(parsed.consumed, input.len() - 5);
    assert_eq!(parsed.framing, Framing::Length(5));
    let mut out = Vec::new();
    write::request_head(&mut out, &parsed.head, HeaderCase::Lower, b"a: b\r\n");
    let wanted =
        "POST /p HTTP/1.1\r\nhost: t.test\r\nx-a: v w\r\nx-empty: \r\ncontent-length: 0005\r\na: b\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), wanted);
    out.clear();
    write::request_head(&mut out, &parsed.head, HeaderCase::Proper, b"");
    assert!(
        String::from_utf8_lossy(&out).contains("\r\nHost: t.test\r\nX-A: v w\r\nX-Empty: \r\nContent-Length")
    );
    assert!(request_with(&out, &limits()).is_ok());

    let both = RequestLimits { chunked_length: true, ..limits() };
    let head = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: Chunked\r\n\r\n";
    let parsed = request_with(head, &both).expect("allowed");
    assert_eq!(parsed.framing, Framing::Chunked);
    assert!(!parsed.head.fields.has(Known::ContentLength));

    // Limits hold at their exact value: host and 99 others, or 70 of 70 beyond the stack's room.
    let many = |count: usize| format!("GET / HTTP/1.1\r\nHost: t\r\n{}\r\n", "x: y\r\n".repeat(count));
    assert!(request(&many(99)).is_ok());
    assert_eq!(refusal(&many(100)), Refusal::TOO_MANY_FIELDS);
    let few = RequestLimits { max_fields: 10, ..limits() };
    assert!(request_with(many(9).as_bytes(), &few).is_ok());
    assert_eq!(request_with(many(10).as_bytes(), &few).err(), Some(Refusal::TOO_MANY_FIELDS));
    let head = many(3);
    let exact = RequestLimits { max_head: head.len(), ..limits() };
    assert!(request_with(head.as_bytes(), &exact).is_ok());
    let small = RequestLimits { max_head: head.len() - 1, ..limits() };
    assert_eq!(request_with(head.as_bytes(), &small).err(), Some(Refusal::HEAD_TOO_LARGE));

    let under = |underscores| RequestLimits { underscores, ..limits() };
    let head = b"GET / HTTP/1.1\r\nHost: t\r\nX_A: 1\r\nb: 2\r\n\r\n";
    assert_eq!(request_with(head, &under(Underscores::Reject)).err(), Some(Refusal::UNDERSCORE));
    assert_eq!(request_with(head, &under(Underscores::Allow)).expect("allowed").head.fields.len(), 2);
    assert_eq!(request_with(head, &under(Underscores::Drop)).expect("dropped").head.fields.len(), 1);
}

#[test]
fn fields_write_back_what_came() {
    let lines = "accept: */*\r\nx-b: \r\nX-Case: a: b\r\ncookie: a=b; c=d\r\n";
    let preserve = RequestLimits { preserve_case: true, ..limits() };
    let written = |fields: &Fields| {
        let mut out = Vec::new();
        fields.write_lines(&mut out);
        String::from_utf8(out).expect("ascii")
    };
    let input = format!("GET / HTTP/1.1\r\n{lines}Host: t\r\n\r\n");
    let mut fields = request_with(input.as_bytes(), &preserve).expect("good").head.fields;
    assert_eq!(written(&fields), lines);
    // A gap in the run, a value moved to the end, a line that was not canonical.
    fields.set_known(Known::Cookie, b"z");
    assert_eq!(written(&fields), "accept: */*\r\nx-b: \r\nX-Case: a: b\r\ncookie: z\r\n");
    assert!(fields.remove_where(|name| name.eq_ignore_ascii_case(b"x-b")));
    assert_eq!(written(&fields.clone()), "accept: */*\r\nX-Case: a: b\r\ncookie: z\r\n");
    assert!(fields.remove_known(Known::Cookie) && !fields.remove_known(Known::Cookie));
    assert_eq!((fields.get(Known::Cookie), fields.len()), (None, 2));
    fields.remove_set(Known::Other.bit() | Known::Cookie.bit());
    assert_eq!(fields.len(), 2, "Other is no field that a set can name");
    let odd = request("GET / HTTP/1.1\r\nA:b\r\nHost: t\r\nc:  d\r\ne: f\r\nA: g \r\n\r\n").expect("good");
    assert_eq!(written(&odd.head.fields), "a: b\r\nc: d\r\ne: f\r\na: g\r\n");
}

#[test]
fn responses() {
    use Framing::{Chunked, Empty, Length, Tunnel, UntilClose};
    let good: &[(&str, bool, bool, u16, Framing, bool)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, false, 200, Length(3), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true, false, 200, Empty, true),
        ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", false, false, 200, Chunked, true),
        ("HTTP/1.1 200 OK\r\n\r\n", false, false, 200, UntilClose, false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", false, false, 200, Length(3), false),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n",
            false,
            false,
            200,
            Length(3),
            true,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
            false,
            200,
            Chunked,
            false,
        ),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", false, false, 204, Empty, true),
        ("HTTP/1.1 304 x\r\nContent-Length: 3\r\n\r\n", false, false, 304, Empty, true),
        ("HTTP/1.1 103 Early\r\n\r\n", false, false, 103, Empty, true),
        ("HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", false, true, 101, Tunnel, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, true, 200, Tunnel, false),
        ("HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\n", false, true, 403, Length(3), true),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            false,
            false,
            200,
            Length(0),
            false,
        ),
        ("HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n", false, false, 999, Length(0), true),
    ];
    for (input, to_head, to_connect, status, framing, keep) in good {
        let parsed = response(input, *to_head, *to_connect).expect(input);
        let found = (parsed.head.status, parsed.framing, parsed.keep_alive, parsed.consumed);
        assert_eq!(found, (*status, *framing, *keep, input.len()), "{input:?}");
        let mut out = Vec::new();
        write::response_head(&mut out, &parsed.head, HeaderCase::Lower, b"", false);
        let again = response(std::str::from_utf8(&out).expect("ascii"), *to_head, *to_connect).expect(input);
        assert_eq!((again.head.status, again.framing), (*status, *framing), "{input:?}");
        assert_eq!(again.head.fields.len(), parsed.head.fields.len());
    }
    for input in [
        "HTTP/1.1 101 Unasked\r\n\r\n",
        "HTTP/1.1 99 x\r\n\r\n",
        "HTTP/1.1 099 x\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
        "HTTP/1.1 20x OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer_Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip,\r\n chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
    ] {
        assert_eq!(response(input, false, false).err(), Some(Refusal::UPSTREAM), "{input:?}");
    }
    let small = ResponseLimits { max_head: 20, ..RESPONSE };
    let long = parse_response(b"HTTP/1.1 200 OK\r\nX: aaaaaaaaaaa", &small, false, false);
    assert_eq!(long.err(), Some(Refusal::UPSTREAM));
}

#[test]
fn folded_fields_of_responses_become_one_line() {
    let input =
        "HTTP/1.1 200 OK\r\nX-A: 1 \r\n\t 2\r\n \r\n 3\r\nX-B: 4\r\nTransfer-Encoding:\r\n Chunked\r\n\r\n";
    let parsed = response(input, false, false).expect("folded");
    let mut out = Vec::new();
    parsed.head.fields.write_lines(&mut out);
    assert_eq!(out.escape_ascii().to_string(), r"x-a: 1 2 3\r\nx-b: 4\r\ntransfer-encoding: Chunked\r\n");
    assert_eq!((parsed.framing, parsed.consumed), (Framing::Chunked, input.len()));
    // The name is known whatever its spelling, also where that is kept.
    let kept = ResponseLimits { preserve_case: true, ..RESPONSE };
    let parsed = parse_response(input.as_bytes(), &kept, false, false).expect("good").expect("whole");
    assert_eq!(parsed.framing, Framing::Chunked);
}
