//! HTTP/2 framing (RFC 9113) without I/O, for both ends: bytes come in, events go out, and what the protocol itself
//! answers (acknowledgements, window updates of the connection) is appended to the output. Streams belong to the users
//! of [`Core`]; it keeps what belongs to the connection.

pub mod hpack;
mod huffman;

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;

use crate::out::Out;
use hpack::{Decoder, Encoder};

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The window that this tool announces for streams and connection, so that it is never what slows a transfer.
pub const WINDOW: u32 = 1 << 30;
/// The window of a stream and of the connection before anybody says otherwise.
const FIRST_WINDOW: i64 = 65_535;
/// The longest frame that may be received; the protocol's default.
const MAX_FRAME: usize = 16_384;
const HEAD: usize = 9;
/// The longest header block that is put together from several frames.
const MAX_BLOCK: usize = 256 * 1024;

/// Types of frames, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Frame {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    Goaway,
    WindowUpdate,
    Continuation,
    Unknown,
}

impl Frame {
    fn of(number: u8) -> Self {
        let all = [
            Self::Data,
            Self::Headers,
            Self::Priority,
            Self::RstStream,
            Self::Settings,
            Self::PushPromise,
            Self::Ping,
            Self::Goaway,
            Self::WindowUpdate,
            Self::Continuation,
        ];
        all.get(usize::from(number)).copied().unwrap_or(Self::Unknown)
    }
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The peer broke the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not valid HTTP/2")]
pub struct Invalid;

impl From<hpack::Invalid> for Invalid {
    fn from(_: hpack::Invalid) -> Self {
        Self
    }
}

/// What a peer did.
#[derive(Debug)]
pub enum Event<'a> {
    /// A header block; trailers are one too.
    Headers {
        /// Its stream.
        stream: u32,
        /// HPACK, to be decoded with [`Core::decoder`] whether it is of use or not.
        block: Cow<'a, [u8]>,
        /// Whether it is the last of its stream.
        end: bool,
    },
    /// A part of a DATA frame.
    Data {
        /// Its stream.
        stream: u32,
        /// Without padding; may be empty.
        bytes: &'a [u8],
        /// Bytes that count for flow control.
        counted: u32,
        /// Whether the stream ends after it.
        end: bool,
    },
    /// A stream was reset.
    Reset {
        /// Which one.
        stream: u32,
    },
    /// The peer takes no stream above this.
    Goaway {
        /// The last one that it may have taken.
        last: u32,
    },
    /// Windows grew: what waited may go on.
    Room {
        /// The stream whose window grew, 0 for the connection's.
        stream: u32,
        /// By how much.
        by: i64,
    },
    /// The peer's first window of every stream changed by this much, those that are open too.
    Windows {
        /// Bytes, may be negative.
        by: i64,
    },
    /// Of no further interest.
    Nothing,
}

/// The beginning of a client's connection that asks for nothing: preface and settings.
pub fn beginning() -> Vec<u8> {
    [PREFACE, &[0, 0, 0, Frame::Settings as u8, 0, 0, 0, 0, 0]].concat()
}

/// One end of a connection.
pub struct Core {
    /// For the blocks of the peer.
    pub decoder: Decoder,
    /// For blocks to the peer.
    pub encoder: Encoder,
    /// What may still be sent on the connection.
    pub window: i64,
    /// The first window of a stream to the peer.
    pub stream_window: i64,
    /// Streams that the peer allows at a time.
    pub max_streams: u32,
    max_frame: usize,
    unacknowledged: u32,
    /// The rest of a DATA frame: stream, payload, padding, end of stream.
    data: Option<(u32, usize, usize, bool)>,
    /// A block whose end has not come: stream, end of stream, bytes.
    block: Option<(u32, bool, Vec<u8>)>,
}

impl Default for Core {
    fn default() -> Self {
        Self {
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            window: FIRST_WINDOW,
            stream_window: FIRST_WINDOW,
            max_streams: u32::MAX,
            max_frame: MAX_FRAME,
            unacknowledged: 0,
            data: None,
            block: None,
        }
    }
}

impl Core {
    /// Our settings and the connection's window; a client sends the preface before.
    pub fn open(&self, client: bool, streams: u32, out: &mut Out) {
        if client {
            out.push(PREFACE);
        }
        // INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS and, from a client, no ENABLE_PUSH.
        let settings = [(4_u16, WINDOW), (3, streams), (2, 0)];
        let settings = settings.get(..if client { 3 } else { 2 }).unwrap_or_default();
        head(settings.len() * 6, Frame::Settings, 0, 0, out);
        for (id, value) in settings {
            out.push(&id.to_be_bytes());
            out.push(&value.to_be_bytes());
        }
        window_update(0, WINDOW - FIRST_WINDOW as u32, out);
    }

    /// Takes one event from the front of the bytes; how many bytes it was, 0 if it is not complete.
    ///
    /// # Errors
    /// [`Invalid`]; the connection is of no use any more.
    pub fn take<'a>(&mut self, bytes: &'a [u8], out: &mut Out) -> Result<(usize, Event<'a>), Invalid> {
        if self.data.is_some() {
            return Ok(self.data(bytes, out));
        }
        let Some((front, rest)) = bytes.split_first_chunk::<HEAD>() else { return Ok((0, Event::Nothing)) };
        let [a, b, c, kind, flags, stream @ ..] = *front;
        let (length, kind) = (u32::from_be_bytes([0, a, b, c]) as usize, Frame::of(kind));
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        if length > MAX_FRAME || (self.block.is_some() && kind != Frame::Continuation) {
            return Err(Invalid);
        }
        if kind == Frame::Data {
            let padded = flags & PADDED != 0;
            let padding = match rest.first() {
                _ if !padded => 0,
                Some(padding) => usize::from(*padding),
                None => return Ok((0, Event::Nothing)),
            };
            let payload = length.checked_sub(padding + usize::from(padded)).ok_or(Invalid)?;
            self.data = Some((stream, payload, padding, flags & END_STREAM != 0));
            let head = HEAD + usize::from(padded);
            self.consumed(u32::from(padded), out);
            let (used, event) = self.data(rest.get(usize::from(padded)..).unwrap_or_default(), out);
            return Ok((head + used, event));
        }
        let Some(payload) = rest.get(..length) else { return Ok((0, Event::Nothing)) };
        Ok((HEAD + length, self.frame(kind, flags, stream, payload, out)?))
    }

    fn frame<'a>(
        &mut self,
        kind: Frame,
        flags: u8,
        stream: u32,
        mut payload: &'a [u8],
        out: &mut Out,
    ) -> Result<Event<'a>, Invalid> {
        match kind {
            Frame::Headers => {
                if flags & PADDED != 0 {
                    let (&padding, rest) = payload.split_first().ok_or(Invalid)?;
                    let length = rest.len().checked_sub(usize::from(padding)).ok_or(Invalid)?;
                    payload = rest.get(..length).ok_or(Invalid)?;
                }
                if flags & PRIORITY != 0 {
                    payload = payload.get(5..).ok_or(Invalid)?;
                }
                let end = flags & END_STREAM != 0;
                if flags & END_HEADERS != 0 {
                    return Ok(Event::Headers { stream, block: Cow::Borrowed(payload), end });
                }
                self.block = Some((stream, end, payload.to_vec()));
                Ok(Event::Nothing)
            }
            Frame::Continuation => {
                let (opened, end, mut block) = self.block.take().ok_or(Invalid)?;
                block.extend_from_slice(payload);
                if opened != stream || block.len() > MAX_BLOCK {
                    return Err(Invalid);
                }
                if flags & END_HEADERS != 0 {
                    return Ok(Event::Headers { stream, block: Cow::Owned(block), end });
                }
                self.block = Some((stream, end, block));
                Ok(Event::Nothing)
            }
            Frame::RstStream => Ok(Event::Reset { stream }),
            Frame::Goaway => Ok(Event::Goaway { last: word(payload)? & 0x7fff_ffff }),
            Frame::WindowUpdate => {
                let by = i64::from(word(payload)? & 0x7fff_ffff);
                if stream == 0 {
                    self.window += by;
                }
                Ok(Event::Room { stream, by })
            }
            Frame::Settings if flags & ACK == 0 => {
                let before = self.stream_window;
                for setting in payload.chunks_exact(6) {
                    let Some((id, value)) = setting.split_first_chunk() else { continue };
                    let value = word(value)?;
                    match u16::from_be_bytes(*id) {
                        1 => self.encoder.limit(value as usize),
                        3 => self.max_streams = value,
                        4 => self.stream_window = i64::from(value),
                        5 => self.max_frame = (value as usize).clamp(MAX_FRAME, 1 << 20),
                        _ => {}
                    }
                }
                head(0, Frame::Settings, ACK, 0, out);
                Ok(Event::Windows { by: self.stream_window - before })
            }
            Frame::Ping if flags & ACK == 0 => {
                head(payload.len(), Frame::Ping, ACK, 0, out);
                out.push(payload);
                Ok(Event::Nothing)
            }
            _ => Ok(Event::Nothing),
        }
    }

    /// The next part of a DATA frame.
    fn data<'a>(&mut self, bytes: &'a [u8], out: &mut Out) -> (usize, Event<'a>) {
        let Some((stream, payload, padding, last)) = self.data.take() else { return (0, Event::Nothing) };
        let taken = payload.min(bytes.len());
        let skipped = if taken == payload { padding.min(bytes.len() - taken) } else { 0 };
        let whole = taken == payload && skipped == padding;
        if !whole {
            self.data = Some((stream, payload - taken, padding - skipped, last));
        }
        let counted = (taken + skipped) as u32;
        self.consumed(counted, out);
        let bytes = bytes.get(..taken).unwrap_or_default();
        (taken + skipped, Event::Data { stream, bytes, counted, end: whole && last })
    }

    fn consumed(&mut self, count: u32, out: &mut Out) {
        self.unacknowledged += count;
        if self.unacknowledged > WINDOW / 2 {
            window_update(0, self.unacknowledged, out);
            self.unacknowledged = 0;
        }
    }
}

/// What one stream still has to send, and may.
#[derive(Default)]
pub struct Sending {
    /// The stream's window.
    pub window: i64,
    /// Bytes to go.
    pieces: VecDeque<Bytes>,
    /// The stream ends after them.
    end: bool,
}

impl Sending {
    /// A stream with the window that the peer gives new ones.
    pub fn new(core: &Core) -> Self {
        Self { window: core.stream_window, pieces: VecDeque::new(), end: false }
    }

    /// Appends; sent by [`Sending::pump`].
    pub fn push(&mut self, bytes: Bytes, end: bool) {
        if !bytes.is_empty() {
            self.pieces.push_back(bytes);
        }
        self.end |= end;
    }

    /// Whether all that was appended is out.
    pub fn is_done(&self) -> bool {
        self.pieces.is_empty() && !self.end
    }

    /// Writes as much as windows allow. An end of stream is written with the last bytes.
    pub fn pump(&mut self, stream: u32, core: &mut Core, out: &mut Out) {
        while let Some(piece) = self.pieces.front_mut() {
            let room = self.window.min(core.window).clamp(0, core.max_frame as i64) as usize;
            if room == 0 {
                return;
            }
            let part = piece.split_to(room.min(piece.len()));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            self.window -= part.len() as i64;
            core.window -= part.len() as i64;
            let end = self.end && self.pieces.is_empty();
            self.end &= !end;
            head(part.len(), Frame::Data, if end { END_STREAM } else { 0 }, stream, out);
            out.push_shared(&part);
        }
        if std::mem::take(&mut self.end) {
            head(0, Frame::Data, END_STREAM, stream, out);
        }
    }
}

/// A HEADERS frame, continued if it must be.
pub fn headers(stream: u32, block: &[u8], end: bool, out: &mut Out) {
    let mut chunks = block.chunks(MAX_FRAME);
    let first = chunks.next().unwrap_or_default();
    let more = chunks.len() > 0;
    let flags = if end { END_STREAM } else { 0 } | if more { 0 } else { END_HEADERS };
    head(first.len(), Frame::Headers, flags, stream, out);
    out.push(first);
    while let Some(chunk) = chunks.next() {
        head(chunk.len(), Frame::Continuation, if chunks.len() > 0 { 0 } else { END_HEADERS }, stream, out);
        out.push(chunk);
    }
}

/// A RST_STREAM frame.
pub fn reset(stream: u32, code: u32, out: &mut Out) {
    head(4, Frame::RstStream, 0, stream, out);
    out.push(&code.to_be_bytes());
}

/// A GOAWAY frame without an error.
pub fn goaway(last: u32, out: &mut Out) {
    head(8, Frame::Goaway, 0, 0, out);
    out.push(&last.to_be_bytes());
    out.push(&[0; 4]);
}

/// A WINDOW_UPDATE frame.
pub fn window_update(stream: u32, by: u32, out: &mut Out) {
    head(4, Frame::WindowUpdate, 0, stream, out);
    out.push(&by.to_be_bytes());
}

fn head(length: usize, kind: Frame, flags: u8, stream: u32, out: &mut Out) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [e, f, g, h] = stream.to_be_bytes();
    out.push(&[a, b, c, kind as u8, flags, e, f, g, h]);
}

fn word(payload: &[u8]) -> Result<u32, Invalid> {
    payload.first_chunk().map(|word| u32::from_be_bytes(*word)).ok_or(Invalid)
}
