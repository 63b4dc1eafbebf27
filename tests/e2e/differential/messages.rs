//! Well-formed messages of every shape: methods, targets, body framing both ways, HTTP/1.0, `Expect`, pipelining.

use super::bootstrap::{Bootstrap, ALL_TO_A};
use super::case::{case, After, Case, Step};
use super::Group;
use crate::harness::origin::{Answer, Then};

/// Trailers travel only where both sides enable them.
const TRAILERS: &str = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config:
      http_protocol_options: { enable_trailers: true }"#;

const TRAILERS_REQUEST: &str =
    "POST / HTTP/1.1\r\nHost: t.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
     5\r\nhello\r\n0\r\nX-T: 1\r\nx-u: 2\r\n\r\n";
const TRAILERS_RESPONSE: &str =
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-r\r\n\r\n3\r\nabc\r\n0\r\nx-r: 9\r\n\r\n";

pub fn group() -> Group {
    let bootstrap = Bootstrap::new()
        .origin("a-trailers", TRAILERS)
        .plain("main", "")
        .plain(
            "http10",
            "http_protocol_options: { accept_http_10: true, default_host_for_http_10: ten.test }",
        )
        .plain("http10-no-host", "http_protocol_options: { accept_http_10: true }")
        .plain("no-absolute", "http_protocol_options: { allow_absolute_url: false }")
        .plain("continue", "proxy_100_continue: true")
        .listener(
            "trailers",
            "http_protocol_options: { enable_trailers: true }",
            &ALL_TO_A.replace("cluster: a ", "cluster: a-trailers "),
        )
        .plain("trailers-down", "http_protocol_options: { enable_trailers: true }")
        .listener("trailers-up", "", &ALL_TO_A.replace("cluster: a ", "cluster: a-trailers "));
    let mut cases = methods();
    cases.extend(targets());
    cases.extend(bodies());
    cases.extend(http10());
    cases.extend(sequences());
    Group { bootstrap, cases }
}

fn methods() -> Vec<Case> {
    vec![
        case("main", "get").get("/", ""),
        case("main", "get with a query and odd bytes in it").get("/a/b?x=1&y=%20|{}\"<>^`\\", ""),
        case("main", "headers of the request travel as they are").get(
            "/",
            "X-Mixed-Case: Value\r\nx-empty:\r\nx-spaces:   padded\t \r\nx-twice: 1\r\nx-twice: 2\r\nAccept: a, b\r\n\
             Cookie: a=1\r\nCookie: b=2\r\nx-obs-text: caf\u{e9}\r\n",
        ),
        case("main", "head").send("HEAD", "/", "", "").answers_head().answers(Answer::raw(
            "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\nx-a: b\r\n\r\n",
        )),
        case("main", "head answered without a length")
            .send("HEAD", "/", "", "")
            .answers_head()
            .answers(Answer::raw("HTTP/1.1 200 OK\r\nx-a: b\r\n\r\n")),
        case("main", "head answered as chunked")
            .send("HEAD", "/", "", "")
            .answers_head()
            .answers(Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")),
        case("main", "post").send("POST", "/", "", "hello"),
        case("main", "post with an empty body").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 0\r\n\r\n",
        ),
        case("main", "post without a length").raw("POST / HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        case("main", "get with a body").send("GET", "/", "", "hello"),
        case("main", "put").send("PUT", "/", "", "hello"),
        case("main", "patch").send("PATCH", "/", "", "hello"),
        case("main", "delete").send("DELETE", "/x", "", ""),
        case("main", "options of a path").send("OPTIONS", "/x", "", ""),
        case("main", "options of everything").send("OPTIONS", "*", "", ""),
        case("main", "trace").send("TRACE", "/", "", ""),
        case("main", "webdav method").send("PROPFIND", "/", "Depth: 1\r\n", ""),
        case("main", "search").send("SEARCH", "/", "", ""),
        case("main", "unknown method").send("BREW", "/", "", ""),
        case("main", "method in lower case").send("get", "/", "", ""),
        case("main", "connect without a route for it").raw(
            "CONNECT t.test:443 HTTP/1.1\r\nHost: t.test:443\r\n\r\n",
        ),
    ]
}

fn targets() -> Vec<Case> {
    vec![
        case("main", "absolute form").raw("GET http://abs.test/x?y=1 HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "absolute form beats the host header")
            .raw("GET http://abs.test/x HTTP/1.1\r\nHost: other.test\r\n\r\n"),
        case("main", "absolute form with a port")
            .raw("GET http://abs.test:8080/x HTTP/1.1\r\nHost: abs.test:8080\r\n\r\n"),
        case("main", "absolute form without a path")
            .raw("GET http://abs.test HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "absolute form with https")
            .raw("GET https://abs.test/x HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "absolute form with another scheme")
            .raw("GET ftp://abs.test/x HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "absolute form in mixed case")
            .raw("GET HTTP://Abs.Test/x HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "absolute form with userinfo")
            .raw("GET http://user:pw@abs.test/x HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "absolute form with a query and no path")
            .raw("GET http://abs.test?q=1 HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("no-absolute", "absolute form where it is off")
            .raw("GET http://abs.test/x HTTP/1.1\r\nHost: abs.test\r\n\r\n"),
        case("main", "target with a fragment").get("/a#b", ""),
        case("main", "target with dots").get("/a/../b/./c//d", ""),
        case("main", "target with escapes").get("/a%2fb%2e%2e%00%zz", ""),
        case("main", "target without a slash").get("nothing", ""),
        case("main", "target with a byte over 127").raw("GET /caf\u{e9} HTTP/1.1\r\nHost: t.test\r\n\r\n"),
    ]
}

fn bodies() -> Vec<Case> {
    let big = "0123456789abcdef".repeat(20_000);
    let big_request =
        format!("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: {}\r\n\r\n{big}", big.len());
    vec![
        case("main", "chunked request").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        ),
        case("main", "chunked request, empty").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        case("main", "chunked request with extensions and a long size").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n\
             0005;name=value\r\nhello\r\n0;last\r\n\r\n",
        ),
        case("main", "chunked request in upper case").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        case("main", "chunked request with trailers, not enabled").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nTrailer: x-t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        ),
        case("trailers", "trailers both ways").raw(TRAILERS_REQUEST).answers(Answer::raw(TRAILERS_RESPONSE)),
        case("trailers-down", "trailers that only the listener enables").raw(TRAILERS_REQUEST).answers(Answer::raw(TRAILERS_RESPONSE)),
        case("trailers-up", "trailers that only the cluster enables").raw(TRAILERS_REQUEST).answers(Answer::raw(TRAILERS_RESPONSE)),
        case("main", "chunked response").get("/", "").answers(
            Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").piece("5\r\nhello\r\n").piece("0\r\n\r\n"),
        ),
        case("main", "chunked response with trailers, not enabled").get("/", "").answers(Answer::raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        )),
        case("main", "response without a length").get("/", "").answers(
            Answer::raw("HTTP/1.1 200 OK\r\nx-a: b\r\n\r\nuntil the end").then(Then::Close),
        ),
        case("main", "response that announces its close").get("/", "").answers(
            Answer::raw("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").then(Then::Close),
        ),
        case("main", "http/1.0 response").get("/", "").answers(
            Answer::raw("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok").then(Then::Close),
        ),
        case("main", "http/1.0 response without a length").get("/", "").answers(
            Answer::raw("HTTP/1.0 200 OK\r\n\r\nok").then(Then::Close),
        ),
        case("main", "204").get("/", "").answers(Answer::raw("HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n")),
        case("main", "204 with a content-length").get("/", "").answers(Answer::raw(
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
        )),
        case("main", "205").get("/", "").answers(Answer::raw(
            "HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n",
        )),
        case("main", "304 with a content-length").get("/", "If-None-Match: \"x\"\r\n").answers(Answer::raw(
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 55\r\n\r\n",
        )),
        case("main", "304 bare").get("/", "").answers(Answer::raw("HTTP/1.1 304 Not Modified\r\n\r\n")),
        case("main", "404 of the origin").get("/", "").answers(Answer::status(404, "Not Found", "gone")),
        case("main", "500 of the origin").get("/", "").answers(Answer::status(500, "Oops", "bad")),
        case("main", "503 of the origin").get("/", "").answers(Answer::status(503, "Service Unavailable", "busy")),
        case("main", "status without a reason").get("/", "").answers(Answer::raw(
            "HTTP/1.1 299\r\ncontent-length: 2\r\n\r\nok",
        )),
        case("main", "unusual status").get("/", "").answers(Answer::status(599, "Whatever It Takes", "x")),
        case("main", "headers of the response").get("/", "").answers(Answer::raw(
            "HTTP/1.1 200 Fine\r\nServer: origin/1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: a=1\r\n\
             Set-Cookie: b=2\r\nX-Mixed-Case: V\r\nx-empty:\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
             Via: 1.1 x\r\nContent-Length: 2\r\n\r\nok",
        )),
        case("main", "large request").raw(&big_request),
        case("main", "large response").get("/", "").answers(Answer::ok(&big)),
        case("main", "head and body byte by byte").raw("POS").raw("T / HT").raw("TP/1.1\r").raw("\nHost: t").raw(
            ".test\r\nContent-Len",
        ).raw("gth: 5\r\n\r").raw("\nhel").raw("lo"),
        case("main", "the response comes before the request has ended").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 10\r\n\r\nhello",
        )
        .answers(Answer::status(413, "Too Large", "no").at_head().then(Then::Close))
        .after(After::Nothing),
        case("main", "body ends early").raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 10\r\n\r\nhello")
            .step(Step::Origin(1)).step(Step::Drop).lines(1),
        case("main", "te and connection tokens").get(
            "/",
            "TE: gzip, trailers\r\nConnection: keep-alive, x-hop, te\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n",
        ),
        case("main", "te without trailers").get("/", "TE: gzip\r\n"),
        case("main", "connection cannot name x-forwarded-for").get(
            "/",
            "Connection: close, x-forwarded-for, authorization\r\nX-Forwarded-For: 10.9.9.9\r\nAuthorization: Bearer x\r\n",
        ),
    ]
}

fn http10() -> Vec<Case> {
    vec![
        case("main", "http/1.0 where it is off").raw("GET / HTTP/1.0\r\nHost: t.test\r\n\r\n"),
        case("http10", "http/1.0").raw("GET / HTTP/1.0\r\nHost: t.test\r\n\r\n"),
        case("http10", "http/1.0 without a host").raw("GET / HTTP/1.0\r\n\r\n"),
        case("http10-no-host", "http/1.0 without a host or a default").raw("GET / HTTP/1.0\r\n\r\n"),
        case("http10", "http/1.0 with keep-alive")
            .raw("GET / HTTP/1.0\r\nHost: t.test\r\nConnection: keep-alive\r\n\r\n"),
        case("http10", "http/1.0 gets a chunked answer")
            .raw("GET / HTTP/1.0\r\nHost: t.test\r\n\r\n")
            .answers(Answer::raw(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            )),
        case("http10", "http/1.0 with keep-alive gets a chunked answer")
            .raw("GET / HTTP/1.0\r\nHost: t.test\r\nConnection: keep-alive\r\n\r\n")
            .answers(Answer::raw(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            )),
        case("http10", "http/1.0 post")
            .raw("POST / HTTP/1.0\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhello"),
        case("http10", "http/1.0 with a chunked body").raw(
            "POST / HTTP/1.0\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .refused("chunked-http-10"),
        case("http10", "http/1.1 where 1.0 is on").get("/", ""),
        case("http10", "http/1.1 without a host where 1.0 is on").raw("GET / HTTP/1.1\r\n\r\n"),
        case("main", "http/0.9").raw("GET /\r\n\r\n"),
    ]
}

fn sequences() -> Vec<Case> {
    vec![
        case("main", "connection: close").get("/", "Connection: close\r\n"),
        case("main", "connection: keep-alive").get("/", "Connection: keep-alive\r\n"),
        case("main", "proxy-connection: close").get("/", "Proxy-Connection: close\r\n"),
        case("main", "connection: Close in mixed case among others").get("/", "Connection: x, Close\r\n"),
        case("main", "three in a pipeline").raw(
            "GET /1 HTTP/1.1\r\nHost: t.test\r\n\r\nPOST /2 HTTP/1.1\r\nHost: t.test\r\nContent-Length: 3\r\n\r\nabc\
             GET /3 HTTP/1.1\r\nHost: t.test\r\n\r\n",
        )
        .script(|request| Answer::ok(request.target()))
        .responses(3),
        case("main", "a pipeline after connection: close").raw(
            "GET /1 HTTP/1.1\r\nHost: t.test\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: t.test\r\n\r\n",
        )
        .responses(2)
        .lines(1),
        case("main", "a pipeline that turns bad").raw(
            "GET /1 HTTP/1.1\r\nHost: t.test\r\n\r\nGET /2 HTTP/9.9\r\nHost: t.test\r\n\r\n",
        )
        .responses(2),
        case("main", "empty lines before the request").raw("\r\n\r\nGET / HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        case("main", "expect: 100-continue")
            .raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .step(Step::Read)
            .raw("hello"),
        case("main", "expect: 100-Continue in mixed case")
            .raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n")
            .step(Step::Read)
            .raw("hello"),
        case("main", "expect with the body already there").raw(
            "POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        ),
        case("main", "expect without a body").get("/", "Expect: 100-continue\r\n"),
        case("main", "expect of something else").get("/", "Expect: the-unexpected\r\n"),
        case("continue", "expect passed on and granted")
            .raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .step(Step::Read)
            .raw("hello")
            .answers(Answer::ok("ok").interim("HTTP/1.1 100 Continue\r\n\r\n")),
        case("continue", "expect passed on and refused")
            .raw("POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .answers(Answer::status(417, "Expectation Failed", "no").at_head().then(Then::Close))
            .after(After::Nothing),
        case("main", "100 of the origin unasked").get("/", "").answers(
            Answer::ok("ok").interim("HTTP/1.1 100 Continue\r\n\r\n"),
        ),
        case("main", "102 of the origin").get("/", "").answers(
            Answer::ok("ok").interim("HTTP/1.1 102 Processing\r\nx-i: 1\r\n\r\n"),
        ),
        case("main", "103 of the origin").get("/", "").answers(
            Answer::ok("ok").interim("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
        ),
        case("continue", "103 of the origin where continue is passed on").get("/", "").answers(
            Answer::ok("ok").interim("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
        ),
        case("main", "the client half-closes after its request")
            .get("/", "")
            .answers(Answer::raw("").then(Then::Hang))
            .step(Step::Origin(1))
            .step(Step::Finish)
            .after(After::Close)
            .lines(1),
    ]
}
