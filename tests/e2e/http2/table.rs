//! What a server must do with each wrong frame, by section of RFC 9113 and RFC 7541. Malformed requests are in
//! [`super::requests`].

use super::raw::*;

/// What the client does.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Waits for the end of this stream.
    End(u32),
}

/// What must come of it.
#[derive(Debug, Clone, Copy)]
pub enum Expect {
    /// A connection error with one of these codes.
    Connection(&'static [u32]),
    /// A stream error with one of these codes; other streams go on.
    Stream(&'static [u32]),
    /// Either; RFC 9113 §5.4.1 lets a stream error be one of the connection.
    Either(&'static [u32]),
    /// The stream is reset (PROTOCOL_ERROR) or answered 4xx; other streams go on.
    Refused,
    /// This status; other streams go on.
    Status(u16),
    /// This status; the connection need not take more.
    Last(u16),
    /// Nothing; other streams go on.
    Ignored,
}

/// What Envoy 1.40 does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envoy {
    /// What is asked of us.
    Same,
    /// It ends the connection, with this code if it says one.
    Connection(Option<u32>),
    /// It resets the stream.
    Stream(u32),
    Status(u16),
    Ignores,
}

pub struct Case {
    pub section: &'static str,
    pub name: &'static str,
    pub listener: &'static str,
    /// Sends its own preface.
    pub bare: bool,
    pub steps: Vec<Step>,
    /// The stream that is looked at.
    pub stream: u32,
    pub expect: Expect,
    pub envoy: Envoy,
    /// No origin may see a request of it.
    pub unseen: bool,
}

pub(super) fn case(section: &'static str, name: &'static str, bytes: Vec<u8>, expect: Expect) -> Case {
    let steps = if bytes.is_empty() { vec![] } else { vec![Step::Send(bytes)] };
    let envoy = Envoy::Same;
    Case { section, name, listener: "main", bare: false, steps, stream: 1, expect, envoy, unseen: false }
}

impl Case {
    pub(super) fn then(mut self, bytes: Vec<u8>) -> Case {
        self.steps.push(Step::Send(bytes));
        self
    }

    pub(super) fn end(mut self, stream: u32) -> Case {
        self.steps.push(Step::End(stream));
        self
    }

    pub(super) fn stream(mut self, stream: u32) -> Case {
        self.stream = stream;
        self
    }

    pub(super) fn on(mut self, listener: &'static str) -> Case {
        self.listener = listener;
        self
    }

    pub(super) fn bare(mut self) -> Case {
        self.bare = true;
        self
    }

    pub(super) fn envoy(mut self, envoy: Envoy) -> Case {
        self.envoy = envoy;
        self
    }
}

pub(super) fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

/// HEADERS of stream 1 that end the stream.
pub(super) fn head(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block)
}

pub(super) fn with(more: &[u8]) -> Vec<u8> {
    let mut block = request("GET", "/", "t.test");
    block.extend_from_slice(more);
    head(&block)
}

pub(super) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    with(&literal(name, value))
}

pub(super) fn data(stream: u32, flags: u8, size: usize) -> Vec<u8> {
    frame(DATA, flags, stream, &vec![b'd'; size])
}

pub(super) fn posted(more: &[u8]) -> Vec<u8> {
    let mut block = request("POST", "/", "t.test");
    block.extend_from_slice(more);
    frame(HEADERS, END_HEADERS, 1, &block)
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &setting(id, value))
}

use Expect::{Connection, Either, Ignored, Last, Status, Stream};

/// Envoy ends the whole connection, and says GOAWAY with no error or nothing.
pub(super) const ENDED: Envoy = Envoy::Connection(None);
pub(super) const P: &[u32] = &[PROTOCOL];
const SIZE: &[u32] = &[FRAME_SIZE];
const CLOSED: &[u32] = &[STREAM_CLOSED];
const HPACK: &[u32] = &[COMPRESSION];

/// Frames and connections: §3 to §7.
pub fn framing() -> Vec<Case> {
    let split = request("GET", "/", "t.test");
    let (first, rest) = split.split_at(10);
    let begun = || frame(HEADERS, END_STREAM, 1, first);
    let hello = |more: &[u8]| [PREFACE, more].concat();
    let mut padded = vec![3];
    padded.extend(request("GET", "/", "t.test"));
    padded.extend([0; 3]);
    let mut depends_on_itself = 1u32.to_be_bytes().to_vec();
    depends_on_itself.push(16);
    let mut prioritised = depends_on_itself.clone();
    prioritised.extend(request("GET", "/", "t.test"));
    vec![
        case("3.4", "another preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), Connection(P)).bare(),
        case(
            "3.4",
            "HTTP/1 in place of a preface",
            b"GET / HTTP/1.1\r\nhost: t.test\r\n\r\n".to_vec(),
            Connection(P),
        )
        .bare(),
        case("3.4", "HEADERS before SETTINGS", hello(&get(1, "/")), Connection(P)).bare(),
        case("3.4", "PING before SETTINGS", hello(&ping()), Connection(P)).bare(),
        case(
            "3.4",
            "an acknowledgement before SETTINGS",
            hello(&frame(SETTINGS, ACK, 0, b"")),
            Connection(P),
        )
        .bare(),
        // §4
        case("4.1", "an unknown type is ignored", frame(0x77, 0xff, 1, b"whatever"), Ignored),
        case("4.1", "an unknown type on stream 0 is ignored", frame(0xfe, 0, 0, b""), Ignored),
        case("4.1", "the reserved bit is ignored", frame(PING, 0, 1 << 31, b"12345678"), Ignored),
        case("4.1", "unknown flags are ignored", frame(PING, 0xfe, 0, b"12345678"), Ignored),
        case("4.2", "DATA over the largest size", all(&[post(1, "/"), data(1, 0, 16_385)]), Either(SIZE)),
        case("4.2", "HEADERS over the largest size", frame(HEADERS, 5, 1, &[0; 16_385]), Connection(SIZE)),
        case(
            "4.2",
            "an unknown type over the largest size",
            frame(0x77, 0, 0, &[0; 16_385]),
            Connection(SIZE),
        ),
        case(
            "4.3",
            "PRIORITY inside a header block",
            all(&[begun(), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), frame(CONTINUATION, 4, 1, rest)]),
            Connection(P),
        ),
        case(
            "4.3",
            "another stream's HEADERS inside a header block",
            all(&[begun(), get(3, "/")]),
            Connection(P),
        ),
        case(
            "5.5",
            "an unknown type inside a header block",
            all(&[begun(), frame(0x77, 0, 1, b""), frame(CONTINUATION, 4, 1, rest)]),
            Connection(P),
        ),
        // §5
        case("5.1", "idle: DATA", data(1, END_STREAM, 3), Connection(P)),
        case("5.1", "idle: RST_STREAM", rst(1, CANCEL), Connection(P)).envoy(ENDED),
        case("5.1", "idle: WINDOW_UPDATE", window_update(1, 10), Connection(P)).envoy(ENDED),
        case("5.1", "idle: CONTINUATION", frame(CONTINUATION, 4, 1, first), Connection(P)),
        case("5.1", "idle: PRIORITY is allowed", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]), Ignored),
        case(
            "5.1",
            "half-closed: DATA",
            all(&[post(1, "/"), data(1, END_STREAM, 3), data(1, END_STREAM, 3)]),
            Either(CLOSED),
        ),
        case(
            "5.1",
            "half-closed: HEADERS",
            all(&[post(1, "/"), data(1, END_STREAM, 3), frame(HEADERS, 5, 1, &literal(b"a", b"b"))]),
            Either(CLOSED),
        )
        .envoy(ENDED),
        case(
            "5.1",
            "half-closed: CONTINUATION",
            all(&[get(1, "/"), frame(CONTINUATION, 4, 1, b"")]),
            Connection(&[PROTOCOL, STREAM_CLOSED]),
        ),
        case(
            "5.1",
            "half-closed: WINDOW_UPDATE is allowed",
            all(&[get(1, "/"), window_update(1, 10)]),
            Status(200),
        ),
        case(
            "5.1",
            "half-closed: PRIORITY is allowed",
            all(&[get(1, "/"), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])]),
            Status(200),
        ),
        case("5.1", "closed: DATA", get(1, "/"), Either(CLOSED))
            .end(1)
            .then(data(1, END_STREAM, 3))
            .envoy(Envoy::Ignores),
        case("5.1", "closed: HEADERS", get(1, "/"), Either(CLOSED))
            .end(1)
            .then(get(1, "/"))
            .envoy(Envoy::Ignores),
        case("5.1", "closed: WINDOW_UPDATE is ignored", get(1, "/"), Ignored)
            .end(1)
            .then(window_update(1, 10)),
        case("5.1", "closed: RST_STREAM is ignored", get(1, "/"), Ignored).end(1).then(rst(1, CANCEL)),
        case("5.1", "closed: PRIORITY is ignored", get(1, "/"), Ignored).end(1).then(frame(
            PRIORITY,
            0,
            1,
            &[0, 0, 0, 0, 1],
        )),
        case(
            "5.1",
            "reset by the client: DATA",
            all(&[post(1, "/"), rst(1, CANCEL), data(1, END_STREAM, 3)]),
            Either(CLOSED),
        )
        .envoy(Envoy::Ignores),
        case(
            "5.1",
            "reset by the client: HEADERS",
            all(&[post(1, "/"), rst(1, CANCEL), frame(HEADERS, 5, 1, &request("GET", "/", "t.test"))]),
            Either(CLOSED),
        )
        .envoy(Envoy::Ignores),
        case("5.1.1", "an even stream", frame(HEADERS, 5, 2, &split), Connection(P)).stream(2).envoy(ENDED),
        case("5.1.1", "a lower stream than before", all(&[get(5, "/"), get(3, "/")]), Connection(P))
            .stream(3)
            .envoy(Envoy::Ignores),
        case("5.1.1", "streams may be left out", all(&[get(7, "/")]), Status(200)).stream(7),
        case(
            "5.1.2",
            "more streams than allowed",
            all(&[post(1, "/"), post(3, "/"), post(5, "/"), post(7, "/"), rst(1, CANCEL)]),
            Stream(&[REFUSED, PROTOCOL]),
        )
        .stream(7)
        .on("few")
        .envoy(ENDED),
        // Of RFC 7540; RFC 9113 says no more than that priorities may be ignored.
        case("5.3.1", "HEADERS that depend on themselves", frame(HEADERS, 0x25, 1, &prioritised), Stream(P))
            .envoy(ENDED),
        case(
            "5.3.1",
            "PRIORITY that depends on itself",
            all(&[post(1, "/"), frame(PRIORITY, 0, 1, &depends_on_itself)]),
            Stream(P),
        )
        .envoy(Envoy::Ignores),
        // §6.1
        case("6.1", "DATA on stream 0", data(0, 0, 3), Connection(P)),
        case(
            "6.1",
            "DATA with more padding than payload",
            all(&[post(1, "/"), frame(DATA, PADDED | END_STREAM, 1, &[5, b'd'])]),
            Connection(P),
        ),
        case(
            "6.1",
            "DATA with padding as long as the payload",
            all(&[post(1, "/"), frame(DATA, PADDED, 1, &[1])]),
            Connection(P),
        ),
        case(
            "6.1",
            "padded DATA without payload",
            all(&[post(1, "/"), frame(DATA, PADDED, 1, b"")]),
            Connection(&[PROTOCOL, FRAME_SIZE]),
        ),
        case(
            "6.1",
            "padded DATA",
            all(&[post(1, "/"), frame(DATA, PADDED | END_STREAM, 1, &[2, b'd', 0, 0])]),
            Status(200),
        ),
        // §6.2
        case("6.2", "HEADERS on stream 0", frame(HEADERS, 5, 0, &split), Connection(P)).envoy(ENDED),
        case(
            "6.2",
            "HEADERS with more padding than payload",
            frame(HEADERS, 5 | PADDED, 1, &[200, 0x82]),
            Connection(P),
        ),
        case(
            "6.2",
            "padded HEADERS without payload",
            frame(HEADERS, 5 | PADDED, 1, b""),
            Connection(&[PROTOCOL, FRAME_SIZE]),
        ),
        case(
            "6.2",
            "HEADERS with half a priority",
            frame(HEADERS, 5 | WITH_PRIORITY, 1, &[0, 0, 0]),
            Connection(&[PROTOCOL, FRAME_SIZE]),
        ),
        case("6.2", "padded HEADERS", frame(HEADERS, 5 | PADDED, 1, &padded), Status(200)),
        // §6.3
        case("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 1]), Connection(P))
            .envoy(Envoy::Ignores),
        case(
            "6.3",
            "PRIORITY of another size",
            all(&[post(1, "/"), frame(PRIORITY, 0, 1, &[0, 0, 0, 0])]),
            Either(SIZE),
        ),
        // §6.4
        case("6.4", "RST_STREAM on stream 0", rst(0, CANCEL), Connection(P)).envoy(ENDED),
        case(
            "6.4",
            "RST_STREAM of another size",
            all(&[post(1, "/"), frame(RST_STREAM, 0, 1, &[0, 0, 8])]),
            Connection(SIZE),
        ),
        // §6.5
        case("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), Connection(P)).envoy(ENDED),
        case("6.5", "SETTINGS of another size", frame(SETTINGS, 0, 0, &[0, 3, 0]), Connection(SIZE)),
        case(
            "6.5",
            "an acknowledgement with payload",
            frame(SETTINGS, ACK, 0, &setting(3, 1)),
            Connection(SIZE),
        ),
        case("6.5", "one acknowledgement too many", frame(SETTINGS, ACK, 0, b""), Connection(P)).envoy(ENDED),
        case("6.5.2", "ENABLE_PUSH of 2", settings(2, 2), Connection(P)).envoy(ENDED),
        case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", settings(4, 1 << 31), Connection(&[FLOW_CONTROL]))
            .envoy(ENDED),
        case("6.5.2", "MAX_FRAME_SIZE of 16383", settings(5, 16_383), Connection(P)).envoy(ENDED),
        case("6.5.2", "MAX_FRAME_SIZE of 2^24", settings(5, 1 << 24), Connection(P)).envoy(ENDED),
        case("6.5.2", "an unknown setting is ignored", settings(0x7777, 7), Ignored),
        case("8441 3", "ENABLE_CONNECT_PROTOCOL of 2", settings(8, 2), Connection(P)).envoy(ENDED),
        // §6.6
        case(
            "6.6",
            "PUSH_PROMISE of a client",
            all(&[post(1, "/"), frame(PUSH_PROMISE, 4, 1, &[&[0, 0, 0, 2], &split[..]].concat())]),
            Connection(P),
        )
        .envoy(ENDED),
        // §6.7
        case("6.7", "PING on a stream", frame(PING, 0, 1, b"12345678"), Connection(P)).envoy(ENDED),
        case("6.7", "PING of another size", frame(PING, 0, 0, b"123456"), Connection(SIZE)),
        case("6.7", "an answer to no PING", frame(PING, ACK, 0, b"12345678"), Ignored),
        // §6.8
        case("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(P)).envoy(ENDED),
        case("6.8", "GOAWAY of another size", frame(GOAWAY, 0, 0, &[0; 7]), Connection(SIZE)),
        case(
            "6.8",
            "GOAWAY lets open streams end",
            all(&[post(1, "/"), frame(GOAWAY, 0, 0, &[0; 8]), data(1, END_STREAM, 3)]),
            Last(200),
        ),
        // §6.9
        case("6.9", "WINDOW_UPDATE of 0 on the connection", window_update(0, 0), Connection(P)).envoy(ENDED),
        case("6.9", "WINDOW_UPDATE of 0 on a stream", all(&[post(1, "/"), window_update(1, 0)]), Stream(P))
            .envoy(ENDED),
        case(
            "6.9",
            "WINDOW_UPDATE of another size",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]),
            Connection(SIZE),
        ),
        case(
            "6.9.1",
            "the connection's window overflows",
            all(&[window_update(0, 0x7fff_ffff)]),
            Connection(&[FLOW_CONTROL]),
        )
        .envoy(ENDED),
        case(
            "6.9.1",
            "a stream's window overflows",
            all(&[post(1, "/"), window_update(1, 0x7fff_ffff)]),
            Stream(&[FLOW_CONTROL]),
        )
        .envoy(ENDED),
        case(
            "6.9.2",
            "INITIAL_WINDOW_SIZE makes a stream's window overflow",
            all(&[post(1, "/"), window_update(1, 0x7fff_0000), settings(4, 0x7fff_ffff)]),
            Connection(&[FLOW_CONTROL]),
        )
        .envoy(Envoy::Stream(3)),
        case(
            "6.9",
            "more DATA than a stream's window",
            all(&[
                post(1, "/"),
                data(1, 0, 16_384),
                data(1, 0, 16_384),
                data(1, 0, 16_384),
                data(1, 0, 16_384),
            ]),
            Either(&[FLOW_CONTROL]),
        )
        .on("few")
        .envoy(Envoy::Ignores),
        // §6.10
        case(
            "6.10",
            "CONTINUATION of another stream",
            all(&[begun(), frame(CONTINUATION, 4, 3, rest)]),
            Connection(P),
        ),
        case(
            "6.10",
            "CONTINUATION on stream 0",
            all(&[begun(), frame(CONTINUATION, 4, 0, rest)]),
            Connection(P),
        ),
        case(
            "6.10",
            "CONTINUATION after the end of a block",
            all(&[get(1, "/"), frame(CONTINUATION, 4, 1, rest)]),
            Connection(P),
        ),
        case(
            "6.10",
            "a block of three frames",
            all(&[begun(), frame(CONTINUATION, 0, 1, &rest[..9]), frame(CONTINUATION, 4, 1, &rest[9..])]),
            Status(200),
        ),
    ]
}

/// Header compression: RFC 7541.
pub fn compression() -> Vec<Case> {
    // Our tables are of 4096 bytes.
    let mut late = request("GET", "/", "t.test");
    late.push(0x20);
    let mut trailers = post(1, "/");
    trailers.extend(frame(HEADERS, 5, 1, &[0x80]));
    vec![
        case("7541 2.3.3", "an index past the tables", with(&[0xff, 0x60]), Connection(HPACK)),
        case("7541 6.1", "index 0", with(&[0x80]), Connection(HPACK)),
        case("7541 4.2", "a table size update after a field", head(&late), Connection(HPACK)),
        case(
            "7541 6.3",
            "a table size update over the limit",
            head(&[&[0x3f, 0xe1, 0xff, 0x03], &request("GET", "/", "t.test")[..]].concat()),
            Connection(HPACK),
        ),
        case(
            "7541 6.3",
            "a table size update within the limit",
            head(&[&[0x20], &request("GET", "/", "t.test")[..]].concat()),
            Status(200),
        ),
        case(
            "7541 5.1",
            "an integer without end",
            with(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            Connection(HPACK),
        ),
        case("7541 5.2", "a string longer than its block", with(&[0, 5, b'a', b'b']), Connection(HPACK)),
        case(
            "7541 5.2",
            "Huffman padding of more than 7 bits",
            with(&[0, 1, b'a', 0x82, 0x1f, 0xff]),
            Connection(HPACK),
        ),
        case("7541 5.2", "Huffman padding of zeros", with(&[0, 1, b'a', 0x81, 0x18]), Connection(HPACK)),
        case(
            "7541 5.2",
            "Huffman code with the end of string",
            with(&[0, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xff]),
            Connection(HPACK),
        ),
        case(
            "7541 2.3.3",
            "an index past the tables, in trailers",
            trailers,
            Connection(&[COMPRESSION, STREAM_CLOSED]),
        ),
    ]
}
