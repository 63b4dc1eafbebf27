//! Random damage to valid requests: nothing panics, and nothing that a second, independent parser
//! reads otherwise is passed on. Seeded, so a failure repeats.

use super::body::decode;
use super::*;

const CORPUS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: t.test\r\n\r\n",
    "GET /a/b?c=d HTTP/1.1\r\nHost: t.test:80\r\nAccept: */*\r\nConnection: keep-alive\r\nX-Empty:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhello",
    "PUT /x HTTP/1.1\r\nHost: t.test\r\ncontent-length: 0\r\nExpect: 100-continue\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: t\r\ntransfer-encoding:chunked\r\nTE: trailers\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    "GET http://abs.test/p HTTP/1.1\r\nHost: other\r\nCookie: a=b\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: t.test\r\n\r\n",
    "CONNECT up.test:443 HTTP/1.1\r\nHost: up.test:443\r\n\r\n",
    "GET /ws HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: t\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    "POST /1 HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nHost: t\r\n\r\n",
];

/// Pieces that have set parsers against each other.
const PIECES: &[&[u8]] = &[
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\r\n\r\n",
    b"\0",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\x80",
    b"\xff",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"_",
    b"+",
    b"-",
    b"0",
    b"0x",
    b"/",
    b"@",
    b"#",
    b"%00",
    b"\"",
    b"Content-Length: 6\r\n",
    b"Content-Length: 0\r\n",
    b"content-length:5\r\n",
    b"Content_Length: 7\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Host: u.test\r\n",
    b"Host: \r\n",
    b"Connection: content-length\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"http://x/",
    b"GET / HTTP/1.1\r\n",
];

fn mutate(random: &mut fastrand::Rng, input: &mut Vec<u8>) {
    let at = random.usize(0..=input.len());
    let to = random.usize(at..=input.len().min(at + 12));
    match random.u8(0..8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.u8(0..8);
            }
        }
        1 => input.insert(at, random.u8(..)),
        2 => drop(input.drain(at..to)),
        3 => {
            // Splice with the tail of another message.
            let other = CORPUS[random.usize(0..CORPUS.len())].as_bytes();
            input.truncate(at);
            input.extend_from_slice(&other[random.usize(0..other.len())..]);
        }
        4 => {
            // Double or move a line.
            let lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
            if lines.is_empty() {
                return;
            }
            let (from, to) = (random.usize(0..lines.len()), random.usize(0..=lines.len()));
            let mut made = lines[..to].concat();
            made.extend_from_slice(lines[from]);
            made.extend_from_slice(&lines[to..].concat());
            *input = made;
        }
        5 => {
            // Games with a line's end.
            let ends: Vec<usize> = (0..input.len()).filter(|at| input[*at] == b'\n').collect();
            if let Some(end) = random.choice(ends) {
                let with: &[u8] = random
                    .choice([&b"\n"[..], b"\r", b"\r\r\n", b"\n\n", b" \r\n", b"\r\n ", b""])
                    .unwrap_or(b"");
                input.splice(end.saturating_sub(1)..=end, with.iter().copied());
            }
        }
        _ => {
            let piece = PIECES[random.usize(0..PIECES.len())];
            // Mostly at the start of a line, where fields go.
            let at = if random.bool() {
                input[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
            } else {
                at
            };
            input.splice(at..at, piece.iter().copied());
        }
    }
}

/// Reads a forwarded head the strictest way there is; what it finds to object to, or the framing.
fn strict(head: &[u8]) -> Result<Framing, &'static str> {
    let text = head.strip_suffix(b"\r\n\r\n").ok_or("no end")?;
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    lines.push(rest);
    if lines.iter().any(|line| line.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f)) {
        return Err("control byte");
    }
    let (line, fields) = lines.split_first().ok_or("no request line")?;
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = parts[..] else { return Err("request line") };
    if method.is_empty() || target.is_empty() || target.iter().any(|byte| !byte.is_ascii_graphic()) {
        return Err("method or target");
    }
    let (mut hosts, mut length, mut codings) = (0, None, 0);
    for field in fields {
        let colon = field.iter().position(|byte| *byte == b':').ok_or("no colon")?;
        let name: String = field[..colon].iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err("field name");
        }
        let value = field[colon + 1..].trim_ascii();
        // As a server reads it that makes variables of names.
        match name.replace('_', "-").as_str() {
            "host" => {
                hosts += 1;
                if value.is_empty()
                    || value.iter().any(|byte| b" ,/\\@?#<>\"\t".contains(byte) || *byte >= 0x80)
                {
                    return Err("host");
                }
            }
            "content-length" => {
                if length.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                    return Err("content-length");
                }
                length =
                    Some(std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or("huge")?);
            }
            "transfer-encoding" => {
                codings += 1;
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("coding");
                }
            }
            _ => {}
        }
    }
    match (hosts, length, codings) {
        (1, None, 0) => Ok(Framing::Empty),
        (1, Some(length), 0) => Ok(Framing::Length(length)),
        (1, None, 1) => Ok(Framing::Chunked),
        (1, _, _) => Err("length and coding"),
        _ => Err("hosts"),
    }
}

#[test]
fn nothing_ambiguous_is_passed_on() {
    const ROUNDS: usize = 100_000;
    let mut random = fastrand::Rng::with_seed(0x6f75_7472);
    let lax = RequestLimits { http_10: true, chunked_length: true, custom_methods: true, ..limits() };
    let strictest = limits();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let mut input = CORPUS[random.usize(0..CORPUS.len())].as_bytes().to_vec();
        for _ in 0..random.usize(1..4) {
            mutate(&mut random, &mut input);
        }
        let limits = if random.bool() { &lax } else { &strictest };
        let show = || format!("round {round}: {}", input.escape_ascii());

        let whole = parse_request(&input, limits);
        // A cut input is waited for or decided as the whole is.
        let part = parse_request(&input[..random.usize(0..=input.len())], limits);
        match (&whole, &part) {
            (_, Ok(None)) => {}
            (Err(whole), Err(part)) => assert_eq!(whole.status, part.status, "{}", show()),
            (Ok(Some(whole)), Ok(Some(part))) => {
                assert_eq!((whole.consumed, whole.framing), (part.consumed, part.framing), "{}", show());
            }
            _ => panic!("whole {whole:?}, cut {part:?}, {}", show()),
        }
        let parsed = match whole {
            Ok(Some(parsed)) => parsed,
            Ok(None) => continue,
            Err(_) => {
                refused += 1;
                continue;
            }
        };
        let head = &parsed.head;
        let path = head.path();
        if head.authority().is_empty() || !(path.is_empty() || path == b"*" || path.starts_with(b"/")) {
            // The connection manager refuses these.
            continue;
        }
        accepted += 1;
        for case in [HeaderCase::Lower, HeaderCase::Proper, HeaderCase::Preserve] {
            let mut out = Vec::new();
            write::request_head(&mut out, head, case, b"");
            assert_eq!(strict(&out), Ok(parsed.framing), "{}", show());
            let again = parse_request(&out, limits);
            let Ok(Some(again)) = again else { panic!("{again:?}: {}", show()) };
            assert_eq!((again.framing, again.consumed), (parsed.framing, out.len()), "{}", show());
            assert_eq!((again.head.path(), again.head.authority()), (path, head.authority()), "{}", show());
            assert_eq!(again.head.fields.len(), head.fields.len(), "{}", show());
        }
        let rest = &input[parsed.consumed..];
        let step = random.usize(1..9);
        assert_eq!(
            decode(rest, parsed.framing, rest.len(), 60),
            decode(rest, parsed.framing, step, 60),
            "{}",
            show()
        );
    }
    // The mutations must neither leave everything whole nor break everything.
    assert!(accepted > ROUNDS / 20 && refused > ROUNDS / 20, "{accepted} accepted, {refused} refused");
}
