//! Moves one body from one HTTP/1 connection to another: unframe, frame, write, with back-pressure.

use std::io;
use std::task::{ready, Context, Poll};

use bytes::{Bytes, BytesMut};

use super::bulk::{Bulk, Moved, WORTH};
use super::fields::Fields;
use super::h1::write::{chunk_open, chunked_end};
use super::h1::{BodyDecoder, BodyEvent, Framing, Refusal};
use super::io::{poll_read, OutBuf, BULK_READ, FIRST_READ};
use crate::runtime::stream::Stream;

/// Nothing more is read while this much waits to be written, or less where config says so.
const HIGH_WATER: usize = 64 * 1024;

/// Why a body stopped.
#[derive(Debug)]
pub enum PumpError {
    /// The source closed before the body's end.
    SourceClosed,
    /// Reading failed.
    SourceIo(io::Error),
    /// The source's framing is broken.
    Source(Refusal),
    /// Writing failed.
    SinkIo(io::Error),
}

/// The body of one message on its way.
#[derive(Debug)]
pub struct Pump {
    decoder: BodyDecoder,
    chunked: bool,
    trailers: bool,
    received: bool,
    /// Bytes of body that went through.
    pub bytes: u64,
    /// Something moved since this was last cleared.
    pub progress: bool,
    /// Trailers as received.
    pub received_trailers: Option<Fields>,
    read_size: usize,
    /// Most bytes held, as config has it: what is in memory at a time, or in a pipe.
    limit: usize,
    /// The kernel may move a large body: nobody here looks at its bytes.
    unseen: bool,
    bulk: Option<Bulk>,
}

impl Pump {
    /// A body framed as `framing` at its source. It is written chunked if `chunked`; trailers go
    /// along if `trailers`.
    pub fn new(framing: Framing, chunked: bool, trailers: bool, max_trailers: usize) -> Self {
        let mut pump = Self {
            decoder: BodyDecoder::new(framing, max_trailers),
            chunked,
            trailers,
            received: false,
            bytes: 0,
            progress: false,
            received_trailers: None,
            read_size: FIRST_READ,
            limit: usize::MAX,
            unseen: false,
            bulk: None,
        };
        pump.received = pump.decoder.is_done() && !chunked;
        pump
    }

    /// Nobody looks at the body's bytes: a large one need not come into this process.
    pub fn unseen(mut self) -> Self {
        self.unseen = true;
        self
    }

    /// Holds at most `limit` bytes, but for what a read of [`FIRST_READ`] bytes brings; the least of
    /// several limits counts. 64 KiB in memory are never exceeded.
    pub fn limit(&mut self, limit: usize) {
        self.limit = self.limit.min(limit);
    }

    /// Nothing more is read while this much waits to be written.
    fn high_water(&self) -> usize {
        self.limit.min(HIGH_WATER)
    }

    /// Drops trailers unless `keep`.
    pub fn keep_trailers(&mut self, keep: bool) {
        self.trailers &= keep;
    }

    /// Whether it is written chunked.
    pub fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// Whether the source has sent the whole body.
    pub fn is_received(&self) -> bool {
        self.received
    }

    /// Ready when the whole body has been received and written. `each` sees every piece before it
    /// is written.
    pub fn poll(
        &mut self,
        source: (&Stream, &mut BytesMut),
        sink: (&Stream, &mut OutBuf),
        mut each: impl FnMut(&[u8]),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>> {
        let (source, input) = source;
        let (sink, out) = sink;
        loop {
            if self.bulk.is_some() {
                ready!(self.poll_bulk(source, sink, context))?;
            }
            self.decode(input, out, &mut each).map_err(PumpError::Source)?;
            if !out.is_empty() {
                let before = out.len();
                let flushed = out.poll_flush(sink, context);
                self.progress |= out.len() != before;
                match flushed {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::SinkIo(error))),
                    Poll::Pending => return Poll::Pending,
                }
                if !self.received && !input.is_empty() {
                    // The high-water mark stopped decoding; go on with what was read.
                    let had = input.len();
                    self.decode(input, out, &mut each).map_err(PumpError::Source)?;
                    if input.len() != had || !out.is_empty() {
                        continue;
                    }
                }
            }
            if self.received {
                return Poll::Ready(Ok(()));
            }
            if self.unseen && !self.chunked && self.decoder.remaining().is_some_and(|left| left >= WORTH) {
                self.bulk = Some(Bulk::new(self.limit));
                continue;
            }
            match poll_read(source, input, self.read_size, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if self.decoder.ends_at_close() => {
                    self.decoder.finish();
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(PumpError::SourceClosed)),
                Poll::Ready(Ok(count)) => {
                    self.progress = true;
                    if count >= self.read_size / 2 {
                        self.read_size = self.limit.clamp(FIRST_READ, BULK_READ);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::SourceIo(error))),
            }
        }
    }

    /// Everything received before has been written.
    fn poll_bulk(
        &mut self,
        source: &Stream,
        sink: &Stream,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>> {
        let Self { bulk: Some(bulk), decoder, bytes, progress, .. } = self else {
            return Poll::Ready(Ok(()));
        };
        let left = decoder.remaining().unwrap_or(0);
        let received = |count| {
            decoder.skip(count);
            *bytes += count;
            *progress = true;
        };
        let moved = ready!(bulk.poll(source, sink, left, received, context));
        self.bulk = None;
        Poll::Ready(match moved {
            Moved::Done => {
                self.received = true;
                Ok(())
            }
            Moved::Copy => {
                self.unseen = false;
                Ok(())
            }
            Moved::Source(error) => Err(PumpError::SourceIo(error)),
            Moved::Sink(error) => Err(PumpError::SinkIo(error)),
        })
    }

    /// Receives what fits into `out` while there is no sink yet. Ready when the whole body has come;
    /// pending also while `out` is full.
    pub fn poll_receive(
        &mut self,
        source: (&Stream, &mut BytesMut),
        out: &mut OutBuf,
        mut each: impl FnMut(&[u8]),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>> {
        let (source, input) = source;
        loop {
            self.decode(input, out, &mut each).map_err(PumpError::Source)?;
            if self.received {
                return Poll::Ready(Ok(()));
            }
            if out.len() >= self.high_water() {
                return Poll::Pending;
            }
            match poll_read(source, input, self.read_size, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(PumpError::SourceClosed)),
                Poll::Ready(Ok(_)) => self.progress = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::SourceIo(error))),
            }
        }
    }

    /// Takes what is complete off `input` and puts it, framed, into `out`.
    pub fn decode(
        &mut self,
        input: &mut BytesMut,
        out: &mut OutBuf,
        each: &mut impl FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        while !self.received && out.len() < self.high_water() {
            match self.decoder.next(input)? {
                BodyEvent::More => return Ok(()),
                BodyEvent::Data(length) => {
                    self.bytes += length as u64;
                    each(input.get(..length).unwrap_or_default());
                    if self.chunked {
                        chunk_open(out.flat(), length);
                        out.take(input, length);
                        out.flat().extend_from_slice(b"\r\n");
                    } else {
                        out.take(input, length);
                    }
                }
                BodyEvent::End(trailers) => {
                    self.received = true;
                    if self.chunked {
                        chunked_end(out.flat(), trailers.as_ref().filter(|_| self.trailers));
                    }
                    self.received_trailers = trailers;
                }
            }
            if self.decoder.is_done() && !self.chunked {
                self.received = true;
            }
        }
        Ok(())
    }

    /// Frames bytes that were kept from an earlier attempt.
    pub fn replay(&self, piece: &Bytes, out: &mut OutBuf) {
        if self.chunked && !piece.is_empty() {
            chunk_open(out.flat(), piece.len());
            out.push(piece.clone());
            out.flat().extend_from_slice(b"\r\n");
        } else {
            out.push(piece.clone());
        }
    }

    /// Frames the end of a body that was received in an earlier attempt.
    pub fn replay_end(&self, out: &mut OutBuf) {
        if self.chunked {
            chunked_end(out.flat(), self.received_trailers.as_ref().filter(|_| self.trailers));
        }
    }
}
