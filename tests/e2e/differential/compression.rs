//! Coding and decoding of bodies. Bodies are compared as they are before they are coded: two libraries need not write
//! the same bytes.

use super::bootstrap::Bootstrap;
use super::case::{case, After, Case};
use super::filters::{check_but, filter, host, route, says};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use std::io::Write;

/// What `docs/differences.md` says of these cases.
pub(super) const DIFFERENCES: &[&str] = &["undecodable-bodies"];

const TEXT: &str = "hello world hello world hello world hello world hello world hello world hello world ";

fn library(name: &str, kind: &str, options: &str) -> String {
    let comma = if options.is_empty() { "" } else { ", " };
    format!(
        "{name}, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.compression.{kind}{comma}{options} }}"
    )
}

fn gzip() -> String {
    library("text", "gzip.compressor.v3.Gzip", "compression_level: BEST_SPEED, window_bits: 15")
}

fn brotli() -> String {
    library("other", "brotli.compressor.v3.Brotli", "quality: 5")
}

fn zstd() -> String {
    library("last", "zstd.compressor.v3.Zstd", "enable_checksum: true")
}

fn compressor(name: &str, library: &str, options: &str) -> String {
    let comma = if options.is_empty() { "" } else { ", " };
    filter(
        name,
        "compressor.v3.Compressor",
        &format!("compressor_library: {{ name: {library} }}{comma}{options}"),
    )
}

/// What the path asks for.
fn origin(request: &Message) -> Answer {
    let (mut status, mut kind, mut more, mut body) = ("200 OK", "text/plain; charset=utf-8", "", TEXT);
    let path =
        request.start_line.split(' ').nth(1).unwrap_or_default().rsplit('/').next().unwrap_or_default();
    match path {
        "etag" => more = "ETag: \"x\"\r\n",
        "weak" => more = "ETag: W/\"x\"\r\n",
        "part" => (status, more) = ("206 Partial Content", "Content-Range: bytes 0-83/1000\r\n"),
        "404" => status = "404 Not Found",
        "vary" => more = "Vary: Cookie\r\nVary: X\r\n",
        "varies" => more = "Vary: Cookie, Accept-Encoding\r\n",
        "varies-small" => more = "Vary: accept-encoding\r\n",
        "stays" => more = "Cache-Control: public, No-Transform\r\n",
        "image" => kind = "image/png",
        "html" => kind = "Text/HTML",
        "coded" => more = "Content-Encoding: deflate\r\n",
        "short" => body = "hi",
        "chunked" => {
            return Answer::raw(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            );
        }
        "untyped" => {
            let length = TEXT.len();
            return Answer::raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{TEXT}"));
        }
        "none" => return Answer::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "empty" => body = "",
        _ => {}
    }
    let length = body.len();
    Answer::raw(format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n{body}"
    ))
}

fn get(name: &'static str, path: &str, accept: &str) -> Case {
    case("main", name).get(path, &format!("Accept-Encoding: {accept}\r\n")).script(origin)
}

/// Responses of every kind.
fn responses() -> Vec<Case> {
    let plain = |name, path: &str| get(name, path, "gzip");
    vec![
        plain("text", "/x"),
        plain("entity tag", "/etag"),
        plain("weak entity tag", "/weak"),
        plain("a part", "/part"),
        plain("404", "/404"),
        plain("vary", "/vary"),
        plain("varies already", "/varies"),
        plain("varies, in small letters", "/varies-small"),
        plain("no transform", "/stays"),
        plain("image", "/image"),
        plain("html", "/html"),
        plain("coded", "/coded"),
        plain("short", "/short"),
        plain("chunked", "/chunked"),
        plain("untyped", "/untyped"),
        plain("no content", "/none"),
        plain("empty", "/empty"),
        plain("off", "/off/x"),
        plain("hidden", "/hidden/x"),
        plain("another coding", "/other/x"),
        get("another coding, accepted", "/other/x", "br"),
        plain("direct", "/direct"),
        plain("no host", "/nowhere/x"),
        case("main", "to head")
            .send("HEAD", "/x", "Accept-Encoding: gzip\r\n", "")
            .answers_head()
            .script(origin),
        case("main", "to head, image")
            .send("HEAD", "/image", "Accept-Encoding: gzip\r\n", "")
            .answers_head()
            .script(origin),
        case("main", "nothing accepted").get("/x", "").script(origin),
        case("main", "two lines")
            .get("/x", "Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n")
            .script(origin),
        case("main", "a request").send("POST", "/x", "Content-Type: text/plain\r\n", TEXT).script(origin),
        case("main", "a request, short")
            .send("POST", "/x", "Content-Type: text/plain\r\n", "abc")
            .script(origin),
        case("main", "a request, image")
            .send("POST", "/x", "Content-Type: image/png\r\n", TEXT)
            .script(origin),
        case("main", "a request, coded")
            .send("POST", "/x", "Content-Encoding: deflate\r\n", TEXT)
            .script(origin),
        case("main", "a request, chunked")
            .raw(
                "POST /x HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            )
            .script(origin),
        case("main", "HTTP/1.0")
            .raw("GET /x HTTP/1.0\r\nHost: t.test\r\nAccept-Encoding: gzip\r\n\r\n")
            .script(origin),
    ]
}

fn wishes() -> Vec<Case> {
    [
        ("br", "br"),
        ("weights", "br;q=0.5, gzip"),
        ("equal, gzip first", "gzip, br"),
        ("equal, br first", "br, gzip"),
        ("any", "*"),
        ("identity", "identity"),
        ("identity liked more", "identity, gzip;q=0.3"),
        ("refused", "gzip;q=0"),
        ("refused, any other", "gzip;q=0, *"),
        ("all refused", "gzip;q=0, br;q=0, zstd;q=0, identity"),
        ("none", "*;q=0"),
        ("unknown", "deflate"),
        ("empty", ""),
        ("capitals", "GZIP"),
        ("no weight", "gzip;q=bad"),
        ("two parameters", "gzip;q=1.0;x=2, br;q=0.9"),
        ("spaces", "gzip; Q=0.4 , br ; q = 0.5"),
        ("zstd", "zstd;q=0.2,*;q=0.1"),
        ("refused after all", "br;q=0.5, gzip, gzip;q=0"),
        ("list with holes", ",, gzip,"),
    ]
    .map(|(name, accept)| get(name, "/x", accept))
    .to_vec()
}

const ON_REQUESTS: &str =
    "request_direction_config: { common_config: { enabled: { default_value: true, runtime_key: coded } } }";

fn routes() -> String {
    const PER_ROUTE: &str = "extensions.filters.http.compressor.v3.CompressorPerRoute";
    let other = format!("overrides: {{ compressor_library: {{ name: {} }} }}", brotli());
    [
        route("/off", &[says("one", PER_ROUTE, "disabled: true")]),
        route("/hidden", &[says("one", PER_ROUTE, "overrides: { response_direction_config: { remove_accept_encoding_header: true } }")]),
        route("/other", &[says("one", PER_ROUTE, &other)]),
        format!("- {{ match: {{ prefix: /direct }}, direct_response: {{ status: 200, body: {{ inline_string: '{TEXT}' }} }} }}\n"),
        "- { match: { prefix: /nowhere }, route: { cluster: empty } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat()
}

#[tokio::test]
async fn one_compressor() {
    let bootstrap = Bootstrap::new()
        .listener("main", "http_protocol_options: { accept_http_10: true }", &host("", &routes()))
        .filters("main", &compressor("one", &gzip(), ON_REQUESTS));
    let mut cases = responses();
    cases.extend(wishes());
    check_but(bootstrap, cases, &["http.main.compressor."], &["total_compressed_bytes"]).await;
}

#[tokio::test]
async fn compressors_and_their_options() {
    let told = "response_direction_config: { status_header_enabled: true, disable_on_etag_header: true, uncompressible_response_codes: [404], common_config: { min_content_length: 50 } }";
    let weak = "choose_first: true, response_direction_config: { weaken_etag_on_compress: true, remove_accept_encoding_header: true, common_config: { content_type: [ text/plain, text/html ] } }";
    let filters = [
        compressor("one", &gzip(), &format!("{told}, {ON_REQUESTS}")),
        compressor("two", &brotli(), weak),
        compressor("three", &zstd(), ""),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "http_protocol_options: { accept_http_10: true }", &host("", &routes()))
        .filters("main", &filters);
    let mut cases = responses();
    cases.extend(wishes());
    for (name, path) in
        [("br, entity tag", "/etag"), ("br, weak entity tag", "/weak"), ("br, untyped", "/untyped")]
    {
        cases.push(get(name, path, "br"));
    }
    check_but(bootstrap, cases, &["http.main.compressor."], &["total_compressed_bytes"]).await;
}

#[tokio::test]
async fn a_compressor_after_a_whole_body() {
    let filters = [
        filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100000"),
        compressor("one", &gzip(), ON_REQUESTS),
    ]
    .concat();
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", "- { match: { prefix: / }, route: { cluster: a } }\n"))
        .filters("main", &filters);
    let large = "some body ".repeat(5000);
    let cases = vec![
        case("main", "a body").send("POST", "/x", "", TEXT),
        case("main", "a large body").send("POST", "/x", "Content-Type: text/plain\r\n", &large),
    ];
    // Envoy measures the body before it is coded, and then has no length: nothing but the framing differs.
    let framing: &[&str] =
        &["origin-a[0].framing", "origin-a[0].header.content-length", "origin-a[0].header.transfer"];
    let cases = cases.into_iter().map(|case| case.differs("undecodable-bodies", framing)).collect();
    check_but(bootstrap, cases, &["http.main.compressor."], &["total_compressed_bytes"]).await;
}

fn gzipped(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

fn coded(request: &Message) -> Answer {
    let mut body = gzipped(TEXT.as_bytes());
    let (mut coding, mut more) = ("gzip", "");
    match request.start_line.split(' ').nth(1).unwrap_or_default() {
        "/bomb" => body = gzipped(&[0; 1_000_000]),
        "/noise" => body = b"this is no gzip at all, sorry".to_vec(),
        "/cut" => body.truncate(20),
        "/tail" => body.extend_from_slice(b"garbage"),
        "/stays" => more = "Cache-Control: no-transform\r\n",
        "/last" => coding = "br, gzip",
        "/first" => coding = "gzip , br",
        "/capitals" => coding = "GZIP",
        "/other" => coding = "x-gzip",
        "/plain" => return Answer::ok(TEXT),
        "/chunked" => {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
                body.len()
            )
            .into_bytes();
            answer.extend(&body);
            answer.extend(b"\r\n0\r\nx-t: 1\r\n\r\n");
            return Answer::raw(answer);
        }
        _ => {}
    }
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\nETag: \"x\"\r\n{more}\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    Answer::raw(answer)
}

#[tokio::test]
async fn decompressor() {
    let library = library("text", "gzip.decompressor.v3.Gzip", "");
    let filters = filter(
        "one",
        "decompressor.v3.Decompressor",
        &format!("decompressor_library: {{ name: {library} }}"),
    );
    let options = "http_protocol_options: { enable_trailers: true }";
    let bootstrap = Bootstrap::new()
        .listener("main", options, &host("", "- { match: { prefix: / }, route: { cluster: a } }\n"))
        .filters("main", &filters);
    let get = |name, path: &str, headers: &str| case("main", name).get(path, headers).script(coded);
    let post = |name, headers: &str, body: &[u8]| {
        let mut bytes = format!(
            "POST /plain HTTP/1.1\r\nHost: t.test\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend(body);
        case("main", name).raw(bytes).script(coded)
    };
    let body = gzipped(TEXT.as_bytes());
    let bad: &[&str] = &["response[0]", "connection", "log[0]", "origin"];
    let differs = |case: Case| case.after(After::Nothing).differs("undecodable-bodies", bad);
    let cases = vec![
        get("a response", "/x", ""),
        get("cut short", "/cut", ""),
        get("something after the end", "/tail", ""),
        get("no transform", "/stays", ""),
        get("coded twice, gzip last", "/last", ""),
        get("coded twice, gzip first", "/first", ""),
        get("in capitals", "/capitals", ""),
        get("another name", "/other", ""),
        get("not coded", "/plain", ""),
        get("chunked, with trailers", "/chunked", ""),
        get("accepts another", "/plain", "Accept-Encoding: br\r\n"),
        get("accepts none", "/plain", "Accept-Encoding: gzip;q=0\r\n"),
        get("accepts both", "/plain", "Accept-Encoding: gzip;q=0.5, br\r\nAccept-Encoding: zstd\r\n"),
        case("main", "to head").send("HEAD", "/x", "", "").answers_head().script(coded),
        post("a request", "Content-Encoding: gzip\r\n", &body),
        post("a request, no transform", "Content-Encoding: gzip\r\nCache-Control: no-transform\r\n", &body),
        post("a request, not coded", "", TEXT.as_bytes()),
        differs(get("a bomb", "/bomb", "")),
        differs(get("no gzip", "/noise", "")),
        differs(post("a request, no gzip", "Content-Encoding: gzip\r\n", b"not gzip")),
        differs(post("a request, a bomb", "Content-Encoding: gzip\r\n", &gzipped(&[0; 1_000_000]))),
    ];
    // Envoy has a counter for each error of its library.
    let but = ["zlib_", "total_uncompressed_bytes"];
    check_but(bootstrap, cases, &["http.main.decompressor."], &but).await;
}
