//! Heads from bytes and back.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use outrigger::config::http::HeaderCase;
use outrigger::http::h1::{self, ParsedRequest, RequestLimits, ResponseLimits};

/// What command-line clients send.
const SMALL: &[u8] =
    b"GET /items/42 HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: client/1.0\r\nAccept: */*\r\n\r\n";

/// What a browser sends.
const BROWSER: &[u8] = b"GET /items/42?view=full&sort=price HTTP/1.1\r\n\
Host: shop.test\r\n\
Connection: keep-alive\r\n\
Cache-Control: max-age=0\r\n\
Upgrade-Insecure-Requests: 1\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-User: ?1\r\n\
Sec-Fetch-Dest: document\r\n\
Referer: https://shop.test/items?page=3\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
Server: origin/1.0\r\n\
Date: Fri, 01 Jan 2027 00:00:00 GMT\r\n\
Content-Type: application/json\r\n\
Content-Length: 92\r\n\
Cache-Control: no-store\r\n\
ETag: \"5f3e-1a2b\"\r\n\r\n";

/// The request at the front of `bytes`.
pub fn request(bytes: &[u8]) -> ParsedRequest {
    h1::parse_request(bytes, &RequestLimits::default()).expect("a good request").expect("a whole request")
}

/// Requests and responses read.
pub fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heads/parse");
    let limits = RequestLimits::default();
    for (name, bytes) in [("request_small", SMALL), ("request_browser", BROWSER)] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| h1::parse_request(black_box(bytes), &limits)));
    }
    let limits = ResponseLimits::UNSET;
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    group.bench_function("response", |bencher| {
        bencher.iter(|| h1::parse_response(black_box(RESPONSE), &limits, false, false));
    });
    group.finish();
}

/// Requests written.
pub fn writing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heads/write");
    let mut out = Vec::with_capacity(4096);
    for (name, bytes) in [("request_small", SMALL), ("request_browser", BROWSER)] {
        let head = request(bytes).head;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                h1::write::request_head(&mut out, black_box(&head), HeaderCase::Lower, b"");
            });
        });
    }
    group.finish();
}
