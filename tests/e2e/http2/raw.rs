//! HTTP/2 frame by frame: both ends of a connection that send exactly what they are told to and see every frame.
//! Header blocks are written as literals without Huffman coding or table entries, so that any byte can be sent; of
//! what is received only the status is decoded.

use crate::harness::DEADLINE;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL: u32 = 1;
pub const INTERNAL: u32 = 2;
pub const FLOW_CONTROL: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE: u32 = 6;
pub const REFUSED: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION: u32 = 9;
pub const CALM: u32 = 11;

/// A frame with a length of its own.
pub fn lying(length: usize, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).expect("a length").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    lying(payload.len(), kind, flags, stream, payload)
}

/// An HPACK integer (RFC 7541 §5.1) with what stands before it in its first byte.
fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, mut value: usize) {
    let most = (1usize << prefix) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    value -= most;
    while value >= 128 {
        out.push((value % 128) as u8 | 128);
        value /= 128;
    }
    out.push(value as u8);
}

/// A field as a literal that enters no table.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    integer(&mut out, 0, 7, name.len());
    out.extend_from_slice(name);
    integer(&mut out, 0, 7, value.len());
    out.extend_from_slice(value);
    out
}

/// A field as a literal that becomes the newest entry of the dynamic table.
pub fn indexed_literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = literal(name, value);
    out[0] = 0x40;
    out
}

pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// The pseudo fields of a request.
pub fn request(method: &str, path: &str, authority: &str) -> Vec<u8> {
    block(&[
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":path", path.as_bytes()),
        (b":authority", authority.as_bytes()),
    ])
}

pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET", path, "t.test"))
}

/// A POST whose body is to come.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", path, "t.test"))
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&value.to_be_bytes());
    out
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn rst(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"12345678")
}

/// One frame as it came.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The 32-bit number at this place of the payload.
    pub fn number(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(u32::MAX, u32::from_be_bytes)
    }

    pub fn ends(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The status of a response's head; 0 when the first field is no status. The peer's table must be empty (every
    /// connection of this module says so).
    pub fn status(&self) -> u16 {
        let mut block = &self.payload[..];
        // Changes of the table's size come first.
        while let Some((first, rest)) = block.split_first() {
            if first & 0xe0 != 0x20 {
                break;
            }
            block = rest;
        }
        const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        match block {
            [first @ 0x88..=0x8e, ..] => INDEXED[usize::from(first - 0x88)],
            // A literal whose name is an indexed `:status`.
            [first, length, value @ ..] if matches!(first & 0x0f, 8..=14) && first & 0xe0 != 0x20 => {
                let text = value.get(..usize::from(length & 0x7f)).unwrap_or_default();
                if length & 0x80 == 0 {
                    return std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                }
                digits(text)
            }
            _ => 0,
        }
    }
}

/// Decimal digits in Huffman code (RFC 7541 appendix B).
fn digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1)).collect();
    let mut bits = &bits[..];
    let mut number = 0;
    let value = |bits: &[u8]| bits.iter().fold(0u16, |all, bit| all * 2 + u16::from(*bit));
    while bits.len() >= 5 {
        let digit = match value(&bits[..5]) {
            short @ 0..=2 => {
                bits = &bits[5..];
                short
            }
            _ if bits.len() >= 6 && (0x19..=0x1f).contains(&value(&bits[..6])) => {
                let digit = value(&bits[..6]) - 0x19 + 3;
                bits = &bits[6..];
                digit
            }
            _ => break,
        };
        number = number * 10 + digit;
    }
    number
}

/// One end of a connection.
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Frames of the peer's SETTINGS and window are not shown unless asked for.
    pub settings: Vec<u8>,
    /// The code of the last GOAWAY, seen or passed over.
    pub goaway: Option<u32>,
}

impl Raw {
    /// Connects and sends nothing.
    pub async fn bare(port: u16) -> io::Result<Raw> {
        let stream = timeout(DEADLINE, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await??;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, buffer: Vec::new(), settings: Vec::new(), goaway: None })
    }

    /// The other end of an accepted connection.
    pub fn of(stream: TcpStream) -> Raw {
        let _ = stream.set_nodelay(true);
        Raw { stream, buffer: Vec::new(), settings: Vec::new(), goaway: None }
    }

    /// Connects with small buffers in the kernel, so that what does not fit stays with the proxy.
    pub async fn narrow(port: u16, settings: &[u8]) -> Raw {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.expect("a connection");
        let mut raw = Raw::of(stream);
        raw.greet(settings).await.expect("a greeting");
        raw
    }

    /// Connects, shakes hands and waits until the peer's SETTINGS are here. No table for the peer's heads.
    pub async fn open(port: u16) -> Raw {
        Raw::with(port, &setting(1, 0)).await
    }

    /// As `open` with these settings.
    pub async fn with(port: u16, settings: &[u8]) -> Raw {
        let mut raw = Raw::bare(port).await.expect("a connection");
        raw.greet(settings).await.expect("a greeting");
        raw
    }

    async fn greet(&mut self, settings: &[u8]) -> io::Result<()> {
        let mut hello = PREFACE.to_vec();
        hello.extend(frame(SETTINGS, 0, 0, settings));
        self.send(&hello).await?;
        loop {
            match self.next(DEADLINE).await {
                Some(frame) if frame.kind == SETTINGS && frame.flags & ACK == 0 => {
                    self.settings = frame.payload;
                    break;
                }
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        self.send(&frame(SETTINGS, ACK, 0, b"")).await
    }

    /// The server's side of the same.
    pub async fn accept(&mut self, settings: &[u8]) -> io::Result<()> {
        let mut preface = [0; 24];
        timeout(DEADLINE, self.stream.read_exact(&mut preface)).await??;
        if preface != PREFACE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.send(&frame(SETTINGS, 0, 0, settings)).await?;
        loop {
            match self.next(DEADLINE).await {
                Some(got) if got.kind == SETTINGS => break,
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        self.send(&frame(SETTINGS, ACK, 0, b"")).await
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(DEADLINE, self.stream.write_all(bytes)).await?
    }

    /// As many of the bytes as are taken within a time; whether that was all.
    pub async fn try_send(&mut self, bytes: &[u8], within: Duration) -> bool {
        matches!(timeout(within, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    pub fn setting(&self, id: u16) -> Option<u32> {
        let found = self.settings.chunks_exact(6).rfind(|entry| entry[..2] == id.to_be_bytes())?;
        Some(u32::from_be_bytes([found[2], found[3], found[4], found[5]]))
    }

    /// The next frame; `None` at the end of the connection, or when nothing comes in time.
    pub async fn next(&mut self, within: Duration) -> Option<Frame> {
        let wait = async {
            loop {
                if let Some(frame) = self.take() {
                    return Some(frame);
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(count) if count > 0 => {}
                    _ => return None,
                }
            }
        };
        timeout(within, wait).await.ok().flatten()
    }

    fn take(&mut self) -> Option<Frame> {
        let head = self.buffer.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        let frame = Frame { kind, flags, stream, payload };
        if frame.kind == GOAWAY {
            self.goaway = Some(frame.number(4));
        }
        Some(frame)
    }

    /// Whether the peer ends the connection in time; frames on the way are dropped. The code of its last
    /// GOAWAY.
    pub async fn ended(&mut self, within: Duration) -> (bool, Option<u32>) {
        let end = tokio::time::Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return (false, self.goaway);
            }
            if self.next(left).await.is_none() {
                return (tokio::time::Instant::now() < end, self.goaway);
            }
        }
    }

    /// What becomes of a stream: waits for its end.
    pub async fn outcome(&mut self, stream: u32, within: Duration) -> Outcome {
        let end = tokio::time::Instant::now() + within;
        let mut status = None;
        let mut body = 0;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let Some(frame) = self.next(left).await else {
                return if tokio::time::Instant::now() < end { Outcome::Closed } else { Outcome::Nothing };
            };
            match frame.kind {
                GOAWAY if frame.number(4) != NO_ERROR => return Outcome::Away(frame.number(4)),
                RST_STREAM if frame.stream == stream && status.is_none() => {
                    return Outcome::Reset(frame.number(0))
                }
                RST_STREAM if frame.stream == stream => return Outcome::Broken(frame.number(0)),
                HEADERS if frame.stream == stream && status.is_none() => {
                    status = Some(frame.status()).filter(|status| *status >= 200);
                }
                DATA if frame.stream == stream => body += frame.payload.len(),
                _ => {}
            }
            if frame.stream == stream && frame.ends() {
                return Outcome::Status(status.unwrap_or(0), body);
            }
        }
    }

    /// A GET and what becomes of it.
    pub async fn get(&mut self, stream: u32, path: &str) -> Outcome {
        if self.send(&get(stream, path)).await.is_err() {
            return Outcome::Closed;
        }
        self.outcome(stream, DEADLINE).await
    }
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A whole response with so many bytes of body.
    Status(u16, usize),
    /// Reset before a response.
    Reset(u32),
    /// Reset after the head of a response.
    Broken(u32),
    /// The connection was ended with an error.
    Away(u32),
    /// The connection was closed without a word.
    Closed,
    /// Nothing in time.
    Nothing,
}
