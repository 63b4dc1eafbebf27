//! Message bodies (RFC 9112 §6 and §7): where they end, and chunked framing taken off.

use bytes::{Buf, BytesMut};

use super::Refusal;
use crate::config::token::is_token;
use crate::config::Known;
use crate::http::fields::Fields;

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunked.
    Chunked,
    /// Until the peer closes (responses only).
    UntilClose,
    /// Not a body: bytes of another protocol, both ways, until each side closes.
    Tunnel,
}

impl Framing {
    /// A body of `length` bytes, [`Framing::Length`] even when it is 0: the field was there.
    pub fn length(length: u64) -> Self {
        Framing::Length(length)
    }

    /// Whether no byte of body will come.
    pub fn is_empty(self) -> bool {
        matches!(self, Framing::Empty | Framing::Length(0))
    }
}

/// What comes next in a body.
#[derive(Debug)]
pub enum BodyEvent {
    /// The first so many bytes of the buffer are body; the caller takes them.
    Data(usize),
    /// More input is needed.
    More,
    /// The body is complete, with trailers if there were any.
    End(Option<Fields>),
}

/// Takes the framing off a body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    max_trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// A chunk-size line longer than this is refused: extensions carry nothing that we pass on.
const MAX_CHUNK_LINE: usize = 1024;
/// Fields allowed in trailers.
const MAX_TRAILER_FIELDS: usize = 64;

impl BodyDecoder {
    /// A decoder for a body framed so; `max_trailers` bounds the trailer section in bytes.
    pub fn new(framing: Framing, max_trailers: usize) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose | Framing::Tunnel => State::UntilClose,
        };
        Self { state, max_trailers }
    }

    /// Whether the body has been taken to its end.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the end of input ends this body rightly.
    pub fn ends_at_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Marks the end of input, where that ends the body.
    pub fn finish(&mut self) {
        self.state = State::Done;
    }

    /// Bytes of a fixed-length body still to come.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Notes that `count` bytes of a fixed-length body came another way.
    pub fn skip(&mut self, count: u64) {
        if let State::Length(left) = self.state {
            let left = left.saturating_sub(count);
            self.state = if left == 0 { State::Done } else { State::Length(left) };
        }
    }

    /// The next event. After [`BodyEvent::Data`] the caller must take exactly those bytes off the
    /// buffer before it calls again.
    ///
    /// # Errors
    /// A [`Refusal`] when chunked framing is broken.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<BodyEvent, Refusal> {
        loop {
            match self.state {
                State::Done => return Ok(BodyEvent::End(None)),
                State::UntilClose if buffer.is_empty() => return Ok(BodyEvent::More),
                State::UntilClose => return Ok(BodyEvent::Data(buffer.len())),
                State::Length(left) => {
                    let take = left.min(buffer.len() as u64);
                    if take == 0 {
                        return Ok(BodyEvent::More);
                    }
                    self.state = if left == take { State::Done } else { State::Length(left - take) };
                    // Not more than the buffer holds.
                    return Ok(BodyEvent::Data(take as usize));
                }
                State::ChunkData(left) => {
                    let take = left.min(buffer.len() as u64);
                    if take == 0 {
                        return Ok(BodyEvent::More);
                    }
                    self.state = if left == take { State::ChunkEnd } else { State::ChunkData(left - take) };
                    return Ok(BodyEvent::Data(take as usize));
                }
                State::ChunkEnd => match (buffer.first(), buffer.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        buffer.advance(2);
                        self.state = State::ChunkSize;
                    }
                    (None, _) | (Some(b'\r'), None) => return Ok(BodyEvent::More),
                    _ => return Err(Refusal::CHUNK),
                },
                State::ChunkSize => match parse_chunk_line(buffer)? {
                    None => return Ok(BodyEvent::More),
                    Some((line, size)) => {
                        buffer.advance(line);
                        self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                    }
                },
                State::Trailers => {
                    if buffer.starts_with(b"\r\n") {
                        buffer.advance(2);
                        self.state = State::Done;
                        return Ok(BodyEvent::End(None));
                    }
                    let Some((length, trailers)) = parse_trailers(buffer, self.max_trailers)? else {
                        return Ok(BodyEvent::More);
                    };
                    buffer.advance(length);
                    self.state = State::Done;
                    return Ok(BodyEvent::End(Some(trailers)));
                }
            }
        }
    }
}

/// Reads `size[;ext]CRLF`; returns the line's length and the size.
fn parse_chunk_line(buffer: &[u8]) -> Result<Option<(usize, u64)>, Refusal> {
    let mut size: u64 = 0;
    let mut digits = 0;
    for byte in buffer {
        let Some(digit) = (*byte as char).to_digit(16) else { break };
        digits += 1;
        if digits > 15 {
            return Err(Refusal::CHUNK);
        }
        size = size * 16 + u64::from(digit);
    }
    let rest = buffer.get(digits..).unwrap_or_default();
    match (digits, rest.first()) {
        (0, Some(_)) => return Err(Refusal::CHUNK),
        (_, None) => return Ok(None),
        (_, Some(b'\r')) => {
            return match rest.get(1) {
                None => Ok(None),
                Some(b'\n') => Ok(Some((digits + 2, size))),
                Some(_) => Err(Refusal::CHUNK),
            }
        }
        (_, Some(b';')) => {}
        (_, Some(_)) => return Err(Refusal::CHUNK),
    }
    let window = rest.get(..MAX_CHUNK_LINE).unwrap_or(rest);
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if rest.len() >= MAX_CHUNK_LINE { Err(Refusal::CHUNK) } else { Ok(None) };
    };
    let Some(extensions) = window.get(..end).and_then(|line| line.strip_suffix(b"\r")) else {
        return Err(Refusal::CHUNK);
    };
    check_extensions(extensions)?;
    Ok(Some((digits + end + 1, size)))
}

/// `*( ";" token [ "=" ( token / quoted-string ) ] )` without white space (RFC 9112 §7.1.1).
fn check_extensions(mut rest: &[u8]) -> Result<(), Refusal> {
    let token = |text: &[u8]| text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len());
    while let Some((b';', after)) = rest.split_first() {
        let name = token(after);
        if name == 0 {
            return Err(Refusal::CHUNK);
        }
        rest = after.get(name..).unwrap_or_default();
        let Some((b'=', value)) = rest.split_first() else { continue };
        if value.first() == Some(&b'"') {
            let mut at = 1;
            loop {
                match value.get(at) {
                    Some(b'"') => break,
                    Some(b'\\') if value.get(at + 1).is_some_and(|byte| *byte >= 0x20 && *byte != 0x7f) => {
                        at += 2;
                    }
                    Some(b'\t' | 0x20..=0x5b | 0x5d..=0x7e) => at += 1,
                    _ => return Err(Refusal::CHUNK),
                }
            }
            rest = value.get(at + 1..).unwrap_or_default();
        } else {
            let length = token(value);
            if length == 0 {
                return Err(Refusal::CHUNK);
            }
            rest = value.get(length..).unwrap_or_default();
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Refusal::CHUNK)
    }
}

/// Reads a trailer section; fields that frame or route a message or say who sent it are left
/// out (RFC 9110 §6.5.1).
fn parse_trailers(buffer: &[u8], max: usize) -> Result<Option<(usize, Fields)>, Refusal> {
    let window = buffer.get(..max).unwrap_or(buffer);
    let mut parsed = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let (length, parsed) = match httparse::parse_headers(window, &mut parsed) {
        Ok(httparse::Status::Complete(complete)) => complete,
        Ok(httparse::Status::Partial) => {
            return if buffer.len() >= max { Err(Refusal::TRAILERS_TOO_LARGE) } else { Ok(None) }
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TRAILERS_TOO_LARGE),
        Err(_) => return Err(Refusal::CHUNK),
    };
    let raw = window.get(..length).unwrap_or_default();
    for at in memchr::memchr_iter(b'\n', raw) {
        if at == 0 || raw.get(at - 1) != Some(&b'\r') {
            return Err(Refusal::CHUNK);
        }
    }
    let mut fields = Fields::recycled();
    for header in parsed {
        let name = header.name.to_ascii_lowercase();
        let forbidden = matches!(
            Known::of(name.as_bytes()),
            Known::Host
                | Known::Connection
                | Known::ContentLength
                | Known::TransferEncoding
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::Upgrade
                | Known::Te
                | Known::Trailer
                | Known::Expect
                | Known::Authorization
                | Known::Cookie
                | Known::ContentType
                | Known::XForwardedFor
                | Known::XForwardedProto
                | Known::XForwardedHost
                | Known::XForwardedPort
                | Known::XForwardedClientCert
        );
        if !forbidden {
            fields.push(name.as_bytes(), header.value.trim_ascii_end());
        }
    }
    Ok(Some((length, fields)))
}
