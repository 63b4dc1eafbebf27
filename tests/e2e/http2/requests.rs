//! What a server must do with each malformed request, by section of RFC 9113; and what nobody should pass on to
//! HTTP/1.

use super::raw::*;
use super::table::*;
use super::table::{Expect::Refused, Expect::Status, Expect::Stream};

/// Requests: §8.
pub fn messages() -> Vec<Case> {
    let r = |fields: &[(&[u8], &[u8])]| head(&block(fields));
    type Field = (&'static [u8], &'static [u8]);
    let (m, s, p, a): (Field, Field, Field, Field) =
        ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"t.test"));
    let path = |path: &'static [u8]| {
        head(&block(&[
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"t.test"),
        ]))
    };
    let authority = |value: &'static [u8]| {
        head(&block(&[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", value)]))
    };
    let method = |value: &'static [u8]| {
        head(&block(&[
            (b":method", value),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"t.test"),
        ]))
    };
    let trailers = |flags: u8, fields: &[(&[u8], &[u8])]| {
        all(&[post(1, "/"), data(1, 0, 3), frame(HEADERS, flags, 1, &block(fields))])
    };
    let length = |value: &'static [u8], sizes: &[usize]| {
        let mut bytes = posted(&literal(b"content-length", value));
        for (i, size) in sizes.iter().enumerate() {
            bytes.extend(data(1, u8::from(i + 1 == sizes.len()), *size));
        }
        bytes
    };
    let mut cases = vec![
        // §8.2
        case("8.2.1", "an upper-case name", field(b"Foo", b"bar"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a name with a space", field(b"foo bar", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a name with a colon", field(b"foo:bar", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a name with NUL", field(b"foo\0", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a name with CR LF", field(b"foo\r\nbar", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a name with 0xff", field(b"foo\xff", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a name with a parenthesis", field(b"foo(", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "an empty name", field(b"", b"baz"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a value with NUL", field(b"foo", b"a\0b"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a value with CR", field(b"foo", b"a\rb"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a value with LF", field(b"foo", b"a\nb"), Stream(P)).envoy(ENDED),
        case("8.2.1", "a value with CR LF and a field", field(b"foo", b"a\r\nx-evil: 1"), Stream(P))
            .envoy(ENDED),
        case("8.2.1", "a value that begins with a space", field(b"foo", b" a"), Stream(P))
            .envoy(Envoy::Status(200)),
        case("8.2.1", "a value that ends with a tab", field(b"foo", b"a\t"), Stream(P))
            .envoy(Envoy::Status(200)),
        case("8.2.2", "connection", field(b"connection", b"keep-alive"), Stream(P)).envoy(ENDED),
        case("8.2.2", "proxy-connection", field(b"proxy-connection", b"keep-alive"), Stream(P)).envoy(ENDED),
        case("8.2.2", "keep-alive", field(b"keep-alive", b"timeout=5"), Stream(P)).envoy(ENDED),
        case("8.2.2", "transfer-encoding", field(b"transfer-encoding", b"chunked"), Stream(P)).envoy(ENDED),
        case("8.2.2", "upgrade", field(b"upgrade", b"h2c"), Stream(P)).envoy(ENDED),
        case("8.2.2", "te other than trailers", field(b"te", b"gzip"), Stream(P)).envoy(ENDED),
        case("8.2.2", "te with trailers and more", field(b"te", b"trailers, gzip"), Stream(P)).envoy(ENDED),
        case("-", "transfer_encoding", field(b"transfer_encoding", b"chunked"), Refused)
            .envoy(Envoy::Status(200)),
        // §8.3
        case("8.3", "an unknown pseudo field", field(b":foo", b"bar"), Stream(P)).envoy(ENDED),
        case("8.3", ":status in a request", field(b":status", b"200"), Stream(P)).envoy(ENDED),
        case("8.3", "a pseudo field after another", r(&[m, s, (b"foo", b"bar"), p, a]), Stream(P))
            .envoy(ENDED),
        case("8.3", "a pseudo field in trailers", trailers(5, &[(b":path", b"/")]), Stream(P)).envoy(ENDED),
        case("8.3.1", "no :method", r(&[s, p, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "no :scheme", r(&[m, p, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "no :path", r(&[m, s, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "no fields at all", head(&[]), Stream(P)).envoy(ENDED),
        case("8.3.1", "two :method", r(&[m, m, s, p, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "two :scheme", r(&[m, s, s, p, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "two :path", r(&[m, s, p, p, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "two :authority", r(&[m, s, p, a, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "an empty :path", path(b""), Stream(P)).envoy(ENDED),
        case("8.3.1", "an empty :method", method(b""), Stream(P)).envoy(ENDED),
        case("8.3.1", "an empty :scheme", r(&[m, (b":scheme", b""), p, a]), Stream(P)).envoy(ENDED),
        case("8.3.1", "neither :authority nor Host", r(&[m, s, p]), Refused).envoy(ENDED),
        case("8.3.1", "an empty :authority", authority(b""), Refused).envoy(ENDED),
        case("8.3.1", ":authority with user information", authority(b"user@t.test"), Refused).envoy(ENDED),
        case("8.3.1", ":authority with a path", authority(b"t.test/x"), Refused).envoy(ENDED),
        case("8.3.1", ":authority with a comma", authority(b"t.test,u.test"), Refused)
            .envoy(Envoy::Status(200)),
        case("8.3.1", ":authority other than Host", field(b"host", b"other.test"), Refused)
            .envoy(Envoy::Status(200)),
        case("8.3.1", ":authority like Host", field(b"host", b"t.test"), Status(200)),
        case("8.3.1", "Host in place of :authority", r(&[m, s, p, (b"host", b"t.test")]), Status(200)),
        case("8.3.1", "two Hosts", r(&[m, s, p, (b"host", b"t.test"), (b"host", b"t.test")]), Refused)
            .envoy(ENDED),
        case("8.3.1", "* with GET", path(b"*"), Refused).envoy(ENDED),
        case("8.3.1", "a path without a slash", path(b"index"), Refused).envoy(ENDED),
        case("8.3.1", "a path that is a URI", path(b"http://u.test/"), Refused).envoy(ENDED),
        case("-", "a path with a space", path(b"/a b"), Refused).envoy(ENDED),
        case("-", "a path with a request line in it", path(b"/ HTTP/1.1\r\nx-evil: 1\r\n\r\n"), Refused)
            .envoy(ENDED),
        case("-", "a path with NUL", path(b"/\0"), Refused).envoy(ENDED),
        case("-", "a path with CR", path(b"/\r"), Refused).envoy(ENDED),
        case("-", "a path with LF", path(b"/\n"), Refused).envoy(ENDED),
        case("-", "a path with a tab", path(b"/\t"), Refused).envoy(ENDED),
        case("-", "a path with 0xff", path(b"/\xff"), Refused).envoy(Envoy::Status(200)),
        case("-", "a path with 0x7f", path(b"/\x7f"), Refused).envoy(ENDED),
        case("-", "an authority with CR LF", authority(b"t.test\r\nx-evil: 1"), Refused).envoy(ENDED),
        case("-", "an authority with 0xff", authority(b"t\xff"), Refused).envoy(ENDED),
        case("-", "an authority with a space", authority(b"t test"), Refused).envoy(ENDED),
        case("-", "a lower-case method", method(b"get"), Refused).envoy(Envoy::Status(200)),
        case("-", "a method with a space", method(b"GET /x HTTP/1.1"), Refused).envoy(ENDED),
        case("-", "a method with CR LF", method(b"GET\r\n"), Refused).envoy(ENDED),
        case("-", "a method with 0xff", method(b"G\xff"), Refused).envoy(ENDED),
        case("-", "a scheme with CR LF", r(&[m, (b":scheme", b"http\r\n"), p, a]), Refused).envoy(ENDED),
        case("-", "a scheme with a colon", r(&[m, (b":scheme", b"http://x"), p, a]), Refused).envoy(ENDED),
        // §8.5
        case("8.5", "CONNECT with :scheme and :path", r(&[(b":method", b"CONNECT"), s, p, a]), Stream(P))
            .envoy(ENDED),
        case("8.5", "CONNECT with :path", r(&[(b":method", b"CONNECT"), p, a]), Stream(P)).envoy(ENDED),
        case("8.5", "CONNECT without :authority", r(&[(b":method", b"CONNECT")]), Refused).envoy(ENDED),
        case(
            "8.5",
            "CONNECT that no route takes",
            r(&[(b":method", b"CONNECT"), (b":authority", b"t.test:80")]),
            Status(404),
        ),
        case(
            "8441 4",
            ":protocol that was not allowed",
            r(&[(b":method", b"CONNECT"), (b":protocol", b"websocket"), s, p, a]),
            Stream(P),
        )
        .envoy(ENDED),
        case("8441 4", ":protocol with GET", r(&[m, (b":protocol", b"websocket"), s, p, a]), Stream(P))
            .envoy(ENDED),
        case("8.1.1", "a length and no body", field(b"content-length", b"5"), Stream(P)).envoy(ENDED),
        case(
            "8.1.1",
            "two lengths",
            with(&block(&[(b"content-length", b"0"), (b"content-length", b"1")])),
            Stream(P),
        )
        .envoy(ENDED),
        case("8.1.1", "a length that is no number", field(b"content-length", b"0x0"), Stream(P)).envoy(ENDED),
        case("8.1.1", "a negative length", field(b"content-length", b"-1"), Stream(P)).envoy(ENDED),
        case("8.1.1", "a signed length", field(b"content-length", b"+0"), Stream(P)).envoy(ENDED),
        case("8.1.1", "an empty length", field(b"content-length", b""), Stream(P)).envoy(ENDED),
        case("8.1.1", "a list of lengths", field(b"content-length", b"0, 0"), Stream(P)).envoy(ENDED),
        case("8.1.1", "a huge length", length(b"18446744073709551616", &[3]), Stream(P)).envoy(ENDED),
    ];
    for case in &mut cases {
        case.unseen = !matches!(case.expect, Status(_));
    }
    // What an origin sees of these is half a request.
    cases.extend([
        case("8.1.1", "more DATA than the length", length(b"3", &[3, 3]), Stream(P)),
        case("8.1.1", "less DATA than the length", length(b"5", &[3]), Stream(P)),
        case(
            "8.1.1",
            "less DATA than the length before trailers",
            all(&[length(b"5", &[]), data(1, 0, 3), frame(HEADERS, 5, 1, &literal(b"a", b"b"))]),
            Stream(P),
        )
        .envoy(ENDED),
        case("8.1.1", "DATA as long as the length", length(b"6", &[3, 3]), Status(200)),
        case(
            "8.1",
            "trailers without the end of the stream",
            trailers(END_HEADERS, &[(b"a", b"b")]),
            Stream(P),
        )
        .envoy(ENDED),
        case("8.1", "trailers", trailers(5, &[(b"a", b"b")]), Status(200)),
        case("8.2.1", "trailers with CR LF in a value", trailers(5, &[(b"a", b"b\r\nc: d")]), Stream(P))
            .envoy(ENDED),
        case("8.2.1", "trailers with an upper-case name", trailers(5, &[(b"A", b"b")]), Stream(P))
            .envoy(ENDED),
        case(
            "8.2.2",
            "trailers with transfer-encoding",
            trailers(5, &[(b"transfer-encoding", b"chunked")]),
            Stream(P),
        )
        .envoy(ENDED),
        case("8.2.1", "a value with 0xff is allowed", field(b"foo", b"a\xff"), Status(200)),
        case("8.2.2", "te: trailers is allowed", field(b"te", b"trailers"), Status(200)),
        case(
            "8.2.3",
            "a cookie in crumbs",
            with(&block(&[(b"cookie", b"a=1"), (b"cookie", b"b=2")])),
            Status(200),
        ),
    ]);
    cases
}
