//! Malformed and ambiguous requests, and header limits. The bar is the origin's view: what two parsers could read
//! differently must not get there.

use super::bootstrap::Bootstrap;
use super::case::{case, After, Case};
use super::Group;
use crate::harness::origin::{Answer, Then};

pub fn group() -> Group {
    let bootstrap = Bootstrap::new()
        .plain("main", "")
        .plain("http1", "codec_type: HTTP1")
        .plain("small", "max_request_headers_kb: 2\ncommon_http_protocol_options: { max_headers_count: 10 }")
        .plain("chunked-length", "http_protocol_options: { allow_chunked_length: true }")
        .plain(
            "no-underscores",
            "common_http_protocol_options: { headers_with_underscores_action: REJECT_REQUEST }",
        )
        .plain(
            "drop-underscores",
            "common_http_protocol_options: { headers_with_underscores_action: DROP_HEADER }",
        )
        .plain("max-url", "path_with_escaped_slashes_action: REJECT_REQUEST\nnormalize_path: true");
    let mut cases = lengths();
    cases.extend(chunks());
    cases.extend(lines());
    cases.extend(hosts());
    cases.extend(limits());
    cases.extend(origins());
    Group { bootstrap, cases }
}

/// A POST with these header lines and bytes after the head.
fn post(listener: &'static str, name: &'static str, headers: &str, rest: &str) -> Case {
    case(listener, name).raw(format!("POST / HTTP/1.1\r\nHost: t.test\r\n{headers}\r\n{rest}"))
}

/// A GET with these header lines.
fn get(name: &'static str, headers: &str) -> Case {
    case("main", name).raw(format!("GET / HTTP/1.1\r\nHost: t.test\r\n{headers}\r\n"))
}

/// These bytes alone.
fn raw(name: &'static str, bytes: &[u8]) -> Case {
    case("main", name).raw(bytes)
}

fn lengths() -> Vec<Case> {
    vec![
        post("main", "two equal content-lengths", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        post("main", "two different content-lengths", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
        post("main", "content-length list, equal", "Content-Length: 5, 5\r\n", "hello"),
        post("main", "content-length with a plus", "Content-Length: +5\r\n", "hello"),
        post("main", "negative content-length", "Content-Length: -5\r\n", "hello"),
        post("main", "hexadecimal content-length", "Content-Length: 0x5\r\n", "hello"),
        post("main", "content-length with a space inside", "Content-Length: 5 5\r\n", "hello"),
        post("main", "empty content-length", "Content-Length: \r\n", ""),
        post("main", "content-length over 64 bits", "Content-Length: 99999999999999999999\r\n", "hello"),
        post("main", "content-length with leading zeros", "Content-Length: 0005\r\n", "hello"),
        post(
            "main",
            "content-length and chunked",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post(
            "main",
            "chunked and content-length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post(
            "chunked-length",
            "content-length and chunked where it is allowed",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post("main", "chunked twice", "Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        post(
            "main",
            "two transfer-encodings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        post("main", "gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post("main", "chunked, gzip", "Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        post("main", "transfer-encoding gzip", "Transfer-Encoding: gzip\r\n", "0\r\n\r\n"),
        post("main", "transfer-encoding identity", "Transfer-Encoding: identity\r\n", ""),
        post("main", "transfer-encoding xchunked", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        post("main", "transfer-encoding quoted", "Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        post("main", "transfer-encoding empty", "Transfer-Encoding:\r\n", ""),
        post(
            "main",
            "transfer-encoding with a vertical tab",
            "Transfer-Encoding: \x0bchunked\r\n",
            "0\r\n\r\n",
        ),
        post("main", "transfer-encoding with a parameter", "Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
        post(
            "main",
            "Transfer_Encoding with an underscore",
            "Content-Length: 5\r\nTransfer_Encoding: chunked\r\n",
            "hello",
        )
        .refused("underscored-framing"),
        post(
            "main",
            "transfer-encoding named as hop by hop",
            "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post(
            "main",
            "content-length named as hop by hop",
            "Connection: content-length\r\nContent-Length: 5\r\n",
            "hello",
        ),
    ]
}

fn chunks() -> Vec<Case> {
    let chunked = |name, rest| post("main", name, "Transfer-Encoding: chunked\r\n", rest).partial();
    vec![
        chunked("chunk size that is no number", "xyz\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk size negative", "-5\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk size empty", "\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk size over 64 bits", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk size after a space", " 5\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk size before a space", "5 \r\nhello\r\n0\r\n\r\n").refused("chunk-syntax"),
        chunked("chunk size ended by a bare line feed", "5\nhello\r\n0\r\n\r\n"),
        chunked("chunk data ended by a bare line feed", "5\r\nhello\n0\r\n\r\n").refused("bare-line-feed"),
        chunked("chunk longer than its size", "5\r\nhello!!!\r\n0\r\n\r\n").refused("chunk-syntax"),
        chunked("chunk size ended by a bare carriage return", "5\rhello\r\n0\r\n\r\n"),
        chunked("chunk extension with a bare carriage return", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk extension with a line feed", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk extension empty", "5;\r\nhello\r\n0\r\n\r\n").refused("chunk-syntax"),
        chunked("chunk extension with a control byte", "5;a=\x01\r\nhello\r\n0\r\n\r\n")
            .refused("chunk-syntax"),
        chunked("trailer that is no header", "5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
        chunked("trailer that frames", "5\r\nhello\r\n0\r\ncontent-length: 3\r\n\r\n"),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        raw("obsolete line folding", b"GET / HTTP/1.1\r\nHost: t.test\r\nX-A: 1\r\n folded\r\n\r\n").refused("obs-fold"),
        raw("folding of the first header", b"GET / HTTP/1.1\r\n X-A: 1\r\nHost: t.test\r\n\r\n"),
        raw("white space before the colon", b"GET / HTTP/1.1\r\nHost: t.test\r\nX-A : 1\r\n\r\n"),
        raw("tab before the colon of content-length", b"POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length\t: 5\r\n\r\nhello"),
        raw("header without a colon", b"GET / HTTP/1.1\r\nHost: t.test\r\nnonsense\r\n\r\n"),
        raw("header with an empty name", b"GET / HTTP/1.1\r\nHost: t.test\r\n: x\r\n\r\n"),
        raw("space inside a header name", b"GET / HTTP/1.1\r\nHost: t.test\r\nX A: 1\r\n\r\n"),
        raw("bad byte in a header name", b"GET / HTTP/1.1\r\nHost: t.test\r\nX(A): 1\r\n\r\n"),
        raw("byte over 127 in a header name", b"GET / HTTP/1.1\r\nHost: t.test\r\nX\xe9: 1\r\n\r\n"),
        raw("bare carriage return in a value", b"GET / HTTP/1.1\r\nHost: t.test\r\nX-A: a\rb\r\n\r\n").refused("bare-carriage-return"),
        raw("NUL in a value", b"GET / HTTP/1.1\r\nHost: t.test\r\nX-A: a\0b\r\n\r\n"),
        raw("control byte in a value", b"GET / HTTP/1.1\r\nHost: t.test\r\nX-A: a\x01b\r\n\r\n"),
        raw("DEL in a value", b"GET / HTTP/1.1\r\nHost: t.test\r\nX-A: a\x7fb\r\n\r\n"),
        raw("bare line feeds throughout", b"GET / HTTP/1.1\nHost: t.test\n\n").refused("bare-line-feed"),
        raw("bare line feed after one header", b"GET / HTTP/1.1\r\nHost: t.test\nX-A: 1\r\n\r\n").refused("bare-line-feed"),
        raw("bare carriage return ends a line", b"GET / HTTP/1.1\rHost: t.test\r\r").refused("bare-carriage-return"),
        raw("NUL in the target", b"GET /a\0b HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("control byte in the target", b"GET /a\x01b HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("tab in the target", b"GET /a\tb HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("space in the target", b"GET /a b HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("two spaces after the method", b"GET  / HTTP/1.1\r\nHost: t.test\r\n\r\n").refused("request-line-space"),
        raw("two spaces before the version", b"GET /  HTTP/1.1\r\nHost: t.test\r\n\r\n").refused("request-line-space"),
        raw("tab after the method", b"GET\t/ HTTP/1.1\r\nHost: t.test\r\n\r\n").refused("request-line-space"),
        raw("space before the method", b" GET / HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("no target", b"GET HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("bad byte in the method", b"G(T / HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("version 1.2", b"GET / HTTP/1.2\r\nHost: t.test\r\n\r\n"),
        raw("version 2.0", b"GET / HTTP/2.0\r\nHost: t.test\r\n\r\n"),
        raw("version 9.9", b"GET / HTTP/9.9\r\nHost: t.test\r\n\r\n"),
        raw("version in lower case", b"GET / http/1.1\r\nHost: t.test\r\n\r\n"),
        raw("version of another protocol", b"GET / HTTPS/1.1\r\nHost: t.test\r\n\r\n"),
        raw("version with three digits", b"GET / HTTP/1.10\r\nHost: t.test\r\n\r\n"),
        raw("space after the version", b"GET / HTTP/1.1 \r\nHost: t.test\r\n\r\n").refused("request-line-space"),
        raw("a TLS hello in the clear", b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03abcdefgh\r\n\r\n"),
        raw("binary noise", b"\x00\xff\x80\x81nonsense\r\n\r\n"),
        case("http1", "http/2 preface on an http/1 port")
            .raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        raw("options star with a get", b"GET * HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("authority form with a get", b"GET t.test:80 HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("connect with a path", b"CONNECT /x HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        raw("connect without a port", b"CONNECT t.test HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        get("h2c upgrade", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"),
        get("header with an underscore", "X_Under: 1\r\n"),
        case("no-underscores", "underscore where it is refused").get("/", "X_Under: 1\r\n"),
        case("drop-underscores", "underscore where it is dropped").get("/", "X_Under: 1\r\nx-other: 2\r\n"),
        case("max-url", "escaped slash where it is refused")
            .get("/a%2fb", ""),
        case("max-url", "dots where paths are normalised").get("/a/../b/./c//d?x=/../y", ""),
    ]
}

fn hosts() -> Vec<Case> {
    vec![
        raw("no host", b"GET / HTTP/1.1\r\nX-A: 1\r\n\r\n"),
        raw("empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n").refused("empty-host"),
        raw("two hosts, different", b"GET / HTTP/1.1\r\nHost: t.test\r\nHost: u.test\r\n\r\n")
            .refused("repeated-host"),
        raw("two hosts, equal", b"GET / HTTP/1.1\r\nHost: t.test\r\nHost: t.test\r\n\r\n")
            .refused("repeated-host"),
        raw("host with a comma", b"GET / HTTP/1.1\r\nHost: t.test, u.test\r\n\r\n"),
        raw("host with userinfo", b"GET / HTTP/1.1\r\nHost: user@t.test\r\n\r\n").refused("host-syntax"),
        raw("host with a path", b"GET / HTTP/1.1\r\nHost: t.test/x\r\n\r\n"),
        raw("host with a space inside", b"GET / HTTP/1.1\r\nHost: t.test u.test\r\n\r\n"),
        raw("host with a bad port", b"GET / HTTP/1.1\r\nHost: t.test:abc\r\n\r\n").refused("host-syntax"),
        raw("host with a bad byte", b"GET / HTTP/1.1\r\nHost: t<.test\r\n\r\n"),
        raw("host in mixed case", b"GET / HTTP/1.1\r\nHost: T.Test\r\n\r\n"),
        raw("host that is an IPv6 address", b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n"),
    ]
}

fn limits() -> Vec<Case> {
    let many = |n: usize| (0..n).map(|i| format!("x-h{i}: v\r\n")).collect::<String>();
    let long = |n: usize| format!("x-long: {}\r\n", "v".repeat(n));
    vec![
        case("main", "99 headers and a host").get("/", &many(99)),
        case("main", "101 headers").get("/", &many(100)),
        case("main", "59 KiB of headers").get("/", &long(59 * 1024)),
        case("main", "61 KiB of headers").get("/", &long(61 * 1024)),
        case("main", "a target of 70 KiB").get(&format!("/{}", "a".repeat(70 * 1024)), ""),
        case("small", "10 headers where 10 are allowed").get("/", &many(9)),
        case("small", "11 headers where 10 are allowed").get("/", &many(10)),
        case("small", "3 KiB where 2 are allowed").get("/", &long(3 * 1024)),
        raw(
            "a head without an end",
            format!("GET / HTTP/1.1\r\nHost: t.test\r\nX: {}", "y".repeat(62 * 1024)).as_bytes(),
        ),
        raw(
            "a method of 1000 letters",
            format!("{} / HTTP/1.1\r\nHost: t.test\r\n\r\n", "A".repeat(1000)).as_bytes(),
        ),
    ]
}

/// Origins that lie.
fn origins() -> Vec<Case> {
    let answer =
        |name, bytes: &str| case("main", name).get("/", "").answers(Answer::raw(bytes).then(Then::Close));
    vec![
        answer(
            "origin: two different content-lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        ),
        answer(
            "origin: content-length and chunked",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        answer(
            "origin: content-length that is no number",
            "HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
        ),
        answer("origin: not http", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        answer("origin: status that is no number", "HTTP/1.1 abc OK\r\n\r\n"),
        answer("origin: status 99", "HTTP/1.1 99 Low\r\ncontent-length: 0\r\n\r\n")
            .answered("impossible-status", "HTTP/1.1 502 Bad Gateway"),
        answer("origin: status of four digits", "HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n")
            .answered("impossible-status", "HTTP/1.1 502 Bad Gateway"),
        answer("origin: folded header", "HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\nok"),
        answer("origin: NUL in a header", "HTTP/1.1 200 OK\r\nx-a: 1\0\r\ncontent-length: 2\r\n\r\nok"),
        answer(
            "origin: bad chunk size",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
        )
        .after(After::Nothing),
        answer(
            "origin: more bytes than its length",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more",
        ),
        answer(
            "origin: 101 unasked",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        )
        .answered("unasked-101", "HTTP/1.1 502 Bad Gateway"),
        answer(
            "origin: too many headers",
            &format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(120)),
        ),
        answer(
            "origin: headers too large",
            &format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(90_000)),
        ),
    ]
}
