//! Where both sides are HTTP/1 and no filter looks: from one buffer into the other, or past this process.

use std::task::{ready, Context, Poll};

use bytes::BytesMut;

use super::{Pump, PumpError, Seen};
use crate::http::bulk::{Bulk, Moved, WORTH};
use crate::http::h1::write::{chunk_open, chunked_end};
use crate::http::h1::{BodyEvent, Refusal};
use crate::http::io::{poll_read, OutBuf, BULK_READ, FIRST_READ};
use crate::runtime::stream::Stream;

impl Pump {
    pub(super) fn poll_wires(
        &mut self,
        source: (&Stream, &mut BytesMut),
        sink: (&Stream, &mut OutBuf),
        mut each: impl FnMut(Seen<'_>),
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

    /// Takes what is complete off `input` and puts it, framed, into `out`.
    pub fn decode(
        &mut self,
        input: &mut BytesMut,
        out: &mut OutBuf,
        each: &mut impl FnMut(Seen<'_>),
    ) -> Result<(), Refusal> {
        while !self.received && out.len() < self.high_water() {
            match self.decoder.next(input)? {
                BodyEvent::More => return Ok(()),
                BodyEvent::Data(length) => {
                    self.bytes += length as u64;
                    each(Seen::Bytes(input.get(..length).unwrap_or_default()));
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
                        let passes = self.takes_trailers && self.gives_trailers;
                        chunked_end(out.flat(), trailers.as_ref().filter(|_| passes));
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
}
