//! Moves one body from one side to the other: unframe, frame, write, with back-pressure.

mod wires;

use std::io;
use std::task::{ready, Context, Poll};

use bytes::{Bytes, BytesMut};

use super::bulk::Bulk;
use super::exchange::Reply;
use super::fields::Fields;
use super::filters::framing::Messages;
use super::filters::header_mutation::TrailerChanges;
use super::filters::transforms::{Transform, Transforms};
use super::h1::{BodyDecoder, BodyEvent, Framing, Refusal};
use super::h2::{Incoming, Outgoing, Piece, StreamError};
use super::io::{poll_read, OutBuf, BULK_READ, FIRST_READ};
use super::pace::Pace;
use super::shelf::Shelf;
use super::stages::{Passes, Stage, Stages, Stop};
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
    /// The source ended its stream before the body's end.
    SourceReset(StreamError),
    /// Writing failed.
    SinkIo(io::Error),
    /// A filter wants the message to be answered with this.
    Answer(Box<Reply>),
}

impl From<Stop> for PumpError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Reply(reply) => PumpError::Answer(reply),
            Stop::Broken => PumpError::Source(Refusal::CODEC),
        }
    }
}

/// What came of letting on what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Released {
    /// All of it has gone on.
    All,
    /// So much has that there is no room.
    Full,
}

/// Where a body comes from.
pub enum Source<'a> {
    /// An HTTP/1 connection, and what was read from it.
    Wire(&'a Stream, &'a mut BytesMut),
    /// An HTTP/2 stream.
    Frames(&'a mut Incoming),
}

impl Source<'_> {
    /// There is no room for what it has: as [`Incoming::gather`].
    pub fn gather(&mut self, context: &mut Context<'_>) {
        if let Source::Frames(incoming) = self {
            incoming.gather(context);
        }
    }
}

/// Where a body goes.
pub enum Sink<'a> {
    /// An HTTP/1 connection, and what waits to be written to it.
    Wire(&'a Stream, &'a mut OutBuf),
    /// An HTTP/2 stream.
    Frames(&'a mut Outgoing),
}

/// What waits to be sent, before there is a connection for it too.
#[derive(Debug)]
pub enum Out {
    /// Framed for an HTTP/1 connection.
    Wire(OutBuf),
    /// For an HTTP/2 stream.
    Frames(Outgoing),
}

impl Out {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        match self {
            Out::Wire(out) => out.is_empty(),
            Out::Frames(out) => out.is_empty(),
        }
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        match self {
            Out::Wire(out) => out.clear(),
            Out::Frames(out) => out.clear(),
        }
    }
}

/// A piece of a body, for who keeps copies.
#[derive(Clone, Copy)]
pub enum Seen<'a> {
    /// In a buffer that is about to change.
    Bytes(&'a [u8]),
    /// To be had by reference.
    Shared(&'a Bytes),
}

/// Pieces below this size are copied out of the buffer that they were read to, rather than keeping it.
const COPY_BELOW: usize = 2048;

/// The body of one message on its way.
#[derive(Debug)]
pub struct Pump {
    decoder: BodyDecoder,
    chunked: bool,
    /// The source's trailers count.
    takes_trailers: bool,
    /// The sink is given trailers.
    gives_trailers: bool,
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
    /// What filters do to it.
    filter: Option<Box<Transforms>>,
    /// Where its pieces wait for a while.
    stages: Option<Box<Stages>>,
}

impl Pump {
    /// A body framed as `framing` at its source. It is written chunked if `chunked`; the source's trailers
    /// count if `trailers`.
    pub fn new(framing: Framing, chunked: bool, trailers: bool, max_trailers: usize) -> Self {
        let mut pump = Self {
            decoder: BodyDecoder::new(framing, max_trailers),
            chunked,
            takes_trailers: trailers,
            gives_trailers: true,
            received: false,
            bytes: 0,
            progress: false,
            received_trailers: None,
            read_size: FIRST_READ,
            limit: usize::MAX,
            unseen: false,
            bulk: None,
            filter: None,
            stages: None,
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

    /// Each piece goes through `transform`, after those that are there; its length is then not known beforehand.
    pub fn transform(&mut self, transform: Transform) {
        self.then(transform);
        self.chunked |= !self.received;
    }

    /// As [`Pump::transform`], where its framing was decided with that in mind.
    pub fn then(&mut self, transform: Transform) {
        match &mut self.stages {
            Some(stages) => stages.transform(transform),
            None => self.filter.get_or_insert_default().add(transform),
        }
    }

    /// Its trailers are changed as they pass, or now where they have come.
    pub(super) fn change_trailers(&mut self, changes: TrailerChanges) {
        match &mut self.received_trailers {
            Some(trailers) if self.received && self.stages.is_none() => changes.apply(trailers),
            None if self.received && self.stages.is_none() => {}
            _ => self.then(Transform::Trailers(Box::new(changes))),
        }
    }

    /// gRPC's messages in it are counted, as they come if `first`, else as they go.
    pub fn count(&mut self, messages: Messages, first: bool) {
        self.filter.get_or_insert_default().count(messages, first);
    }

    /// At most so many KiB pass each second.
    pub fn slow_down(&mut self, kib: u64) {
        self.wait_in(Stage::Pace(Box::new(Pace::new(kib))));
    }

    /// A service looks at it, at what has been taken of it before too: `taken`.
    pub(super) fn process(&mut self, mut stage: Stage, taken: Bytes) {
        stage.hold(taken);
        // The end may still be in another stage.
        if self.received && self.stages.as_ref().is_none_or(|stages| stages.is_over()) {
            stage.hold_end(self.trailers().cloned());
        }
        self.wait_in(stage);
    }

    fn wait_in(&mut self, stage: Stage) {
        self.stages.get_or_insert_default().add(stage);
        // The way that looks at pieces.
        self.filter.get_or_insert_default();
    }

    /// Bytes of body that went on, after what filters did to them.
    pub fn passed(&self) -> u64 {
        match (&self.stages, &self.filter) {
            (Some(stages), _) => stages.passed,
            (None, Some(filter)) => filter.passed,
            (None, None) => self.bytes,
        }
    }

    /// Nothing more is read while this much waits to be written.
    fn high_water(&self) -> usize {
        self.limit.min(HIGH_WATER)
    }

    /// Drops trailers unless `keep`.
    pub fn keep_trailers(&mut self, keep: bool) {
        self.gives_trailers &= keep;
    }

    /// The whole body has come, and its length is to be told before it. False where that is known, or trailers
    /// need chunks.
    pub fn measure(&mut self) -> bool {
        let unknown = self.chunked && self.received && self.received_trailers.is_none();
        self.chunked &= !unknown;
        unknown
    }

    /// Whether it is written chunked, where that was not known when it began.
    pub fn set_chunked(&mut self, chunked: bool) {
        self.chunked = chunked;
    }

    /// Whether gRPC's messages in it are counted.
    pub fn counts(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.counts())
    }

    /// Its length is not told before it.
    pub fn without_length(&mut self) {
        self.chunked = true;
    }

    /// The trailers that were received, if they count.
    pub fn trailers(&self) -> Option<&Fields> {
        self.received_trailers.as_ref().filter(|_| self.takes_trailers)
    }

    /// Whether it is written chunked.
    pub fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// Whether the source has sent the whole body.
    pub fn is_received(&self) -> bool {
        self.received
    }

    /// Whether the whole body has been received and nothing of it is held back.
    pub fn is_passed(&self) -> bool {
        self.received && self.stages.as_ref().is_none_or(|stages| stages.is_over())
    }

    /// Ready when the whole body has been received and written. `each` sees every piece before it
    /// is written.
    #[inline]
    pub fn poll(
        &mut self,
        source: Source<'_>,
        sink: Sink<'_>,
        each: impl FnMut(Seen<'_>),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>> {
        match (source, sink) {
            (Source::Wire(source, input), Sink::Wire(sink, out)) if self.filter.is_none() => {
                self.poll_wires((source, input), (sink, out), each, context)
            }
            (source, Sink::Wire(sink, out)) => {
                self.poll_shelf(source, out, |out, context| out.poll_flush(sink, context), each, context)
            }
            (source, Sink::Frames(out)) => self.poll_shelf(source, out, Outgoing::poll_flush, each, context),
        }
    }

    /// Where one side is HTTP/2: whole pieces, by reference.
    fn poll_shelf<S: Shelf>(
        &mut self,
        mut source: Source<'_>,
        shelf: &mut S,
        mut flush: impl FnMut(&mut S, &mut Context<'_>) -> Poll<io::Result<()>>,
        mut each: impl FnMut(Seen<'_>),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            let filled = self.fill(&mut source, shelf, &mut each, context)?;
            let released = self.release(shelf, &mut each, context);
            let released = match released {
                Poll::Pending => None,
                Poll::Ready(released) => Some(released?),
            };
            let before = shelf.length();
            let flushed = flush(shelf, context);
            self.progress |= shelf.length() != before;
            let full = shelf.length() + self.held() >= self.high_water();
            let waits = released.is_none() && full;
            if (waits || flushed.is_pending()) && filled.is_ready() && !self.received {
                source.gather(context);
            }
            if let (true, Some(stages)) = (flushed.is_pending(), &mut self.stages) {
                stages.gather(context);
            }
            ready!(flushed).map_err(PumpError::SinkIo)?;
            match released {
                // There may be room again for what passes, or for what comes.
                Some(Released::Full) => continue,
                None if !full && !self.received && filled.is_ready() => continue,
                None => return Poll::Pending,
                Some(Released::All) => {}
            }
            if self.received {
                return Poll::Ready(Ok(()));
            }
            if filled.is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Takes in what there is and `shelf` has room for. Pending when the source has nothing more for now.
    fn fill<S: Shelf>(
        &mut self,
        source: &mut Source<'_>,
        shelf: &mut S,
        each: &mut impl FnMut(Seen<'_>),
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, PumpError> {
        while !self.received && shelf.length() + self.held() < self.high_water() {
            let end = match source {
                Source::Frames(incoming) => match incoming.poll_next(context) {
                    Poll::Pending => {
                        self.pause(shelf, each)?;
                        return Ok(Poll::Pending);
                    }
                    Poll::Ready(Ok(Piece::Data(piece))) => {
                        self.progress = true;
                        self.bytes += piece.len() as u64;
                        self.put(piece, shelf, each)?;
                        if !incoming.is_end() {
                            continue;
                        }
                        None
                    }
                    Poll::Ready(Ok(Piece::End(trailers))) => trailers,
                    Poll::Ready(Err(error)) => return Err(PumpError::SourceReset(error)),
                },
                Source::Wire(stream, input) => match self.decoder.next(input).map_err(PumpError::Source)? {
                    BodyEvent::Data(length) => {
                        self.bytes += length as u64;
                        let piece = if length < COPY_BELOW {
                            let piece = Bytes::copy_from_slice(input.get(..length).unwrap_or_default());
                            bytes::Buf::advance(*input, length);
                            piece
                        } else {
                            input.split_to(length).freeze()
                        };
                        self.put(piece, shelf, each)?;
                        if !self.decoder.is_done() {
                            continue;
                        }
                        None
                    }
                    BodyEvent::More => {
                        match poll_read(stream, input, self.read_size, context) {
                            Poll::Pending => {
                                self.pause(shelf, each)?;
                                return Ok(Poll::Pending);
                            }
                            Poll::Ready(Ok(0)) if self.decoder.ends_at_close() => self.decoder.finish(),
                            Poll::Ready(Ok(0)) => return Err(PumpError::SourceClosed),
                            Poll::Ready(Ok(count)) => {
                                self.progress = true;
                                if count >= self.read_size / 2 {
                                    self.read_size = self.limit.clamp(FIRST_READ, BULK_READ);
                                }
                            }
                            Poll::Ready(Err(error)) => return Err(PumpError::SourceIo(error)),
                        }
                        continue;
                    }
                    BodyEvent::End(trailers) => trailers,
                },
            };
            self.received = true;
            self.progress = true;
            let mut left = None;
            let mut trailers = end.as_ref().filter(|_| self.takes_trailers);
            if let Some(filter) = &mut self.filter {
                let (piece, passed) =
                    filter.end(trailers.cloned()).ok_or(PumpError::Source(Refusal::CODEC))?;
                if !piece.is_empty() {
                    self.shelve(piece, shelf, each);
                }
                left = passed;
                trailers = left.as_ref();
            }
            match &mut self.stages {
                Some(stages) => stages.hold_end(trailers.cloned()),
                None => shelf.put_end(self.chunked, trailers.filter(|_| self.gives_trailers)),
            }
            // What has been made of them is told and sent again; gRPC-Web's are in the body and told as they were.
            self.received_trailers = left.or(end);
        }
        Ok(Poll::Ready(()))
    }

    /// A piece goes through the filters to the shelf.
    fn put<S: Shelf>(
        &mut self,
        mut piece: Bytes,
        shelf: &mut S,
        each: &mut impl FnMut(Seen<'_>),
    ) -> Result<(), PumpError> {
        if let Some(filter) = &mut self.filter {
            piece = filter.piece(piece).ok_or(PumpError::Source(Refusal::CODEC))?;
        }
        self.shelve(piece, shelf, each);
        Ok(())
    }

    /// A piece that filters are done with goes on, or waits for its turn.
    fn shelve<S: Shelf>(&mut self, piece: Bytes, shelf: &mut S, each: &mut impl FnMut(Seen<'_>)) {
        if let Some(stages) = &mut self.stages {
            return stages.hold(piece);
        }
        each(Seen::Shared(&piece));
        shelf.put(piece, self.chunked);
    }

    /// Bytes that wait for their turn.
    fn held(&self) -> usize {
        self.stages.as_ref().map_or(0, |stages| stages.length())
    }

    /// What has its turn goes on. Pending while something waits for that.
    fn release<S: Shelf>(
        &mut self,
        shelf: &mut S,
        each: &mut impl FnMut(Seen<'_>),
        context: &mut Context<'_>,
    ) -> Poll<Result<Released, PumpError>> {
        let high_water = self.high_water();
        let Some(stages) = &mut self.stages else { return Poll::Ready(Ok(Released::All)) };
        loop {
            if shelf.length() >= high_water {
                return Poll::Ready(Ok(Released::Full));
            }
            match ready!(stages.poll_next(context)) {
                Ok(Passes::Piece(piece)) => {
                    self.progress = true;
                    each(Seen::Shared(&piece));
                    shelf.put(piece, self.chunked);
                }
                Ok(Passes::End(trailers)) => {
                    shelf.put_end(self.chunked, trailers.as_ref().filter(|_| self.gives_trailers));
                    self.received_trailers = trailers.or(self.received_trailers.take());
                }
                Ok(Passes::Nothing) => return Poll::Ready(Ok(Released::All)),
                Err(stop) => return Poll::Ready(Err(stop.into())),
            }
        }
    }

    /// The source has nothing for now: what filters hold goes on.
    fn pause<S: Shelf>(&mut self, shelf: &mut S, each: &mut impl FnMut(Seen<'_>)) -> Result<(), PumpError> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        let piece = filter.pause().ok_or(PumpError::Source(Refusal::CODEC))?;
        if !piece.is_empty() {
            self.shelve(piece, shelf, each);
        }
        Ok(())
    }

    fn take_in<S: Shelf>(
        &mut self,
        source: &mut Source<'_>,
        shelf: &mut S,
        each: &mut impl FnMut(Seen<'_>),
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, PumpError> {
        loop {
            let filled = self.fill(source, shelf, each, context)?.is_pending();
            let released = match self.release(shelf, each, context) {
                Poll::Ready(released) => match released? {
                    Released::All => Poll::Ready(()),
                    Released::Full => {
                        self.stages.iter_mut().for_each(|stages| stages.gather(context));
                        Poll::Pending
                    }
                },
                Poll::Pending => Poll::Pending,
            };
            // What was held has made room for more.
            let full = shelf.length() + self.held() >= self.high_water();
            if self.received || filled || full || self.stages.is_none() {
                if full && !self.received {
                    source.gather(context);
                }
                return Ok(released);
            }
        }
    }

    /// Ready as soon as something of it may go on.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        match &mut self.stages {
            Some(stages) => stages.poll_ready(context).map_err(PumpError::from),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Receives what fits into `out` while there is no sink yet. Ready when the whole body has come;
    /// pending also while `out` is full.
    pub fn poll_receive(
        &mut self,
        mut source: Source<'_>,
        out: &mut Out,
        mut each: impl FnMut(Seen<'_>),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>> {
        let released = match out {
            Out::Wire(out) => self.take_in(&mut source, out, &mut each, context)?,
            Out::Frames(out) => self.take_in(&mut source, out, &mut each, context)?,
        };
        if self.received && released.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Frames bytes that were kept from an earlier attempt.
    pub fn replay(&self, piece: &Bytes, out: &mut Out) {
        match out {
            Out::Wire(out) => out.put(piece.clone(), self.chunked),
            Out::Frames(out) => out.put(piece.clone(), self.chunked),
        }
    }

    /// Frames the end of a body that was received in an earlier attempt.
    pub fn replay_end(&self, out: &mut Out) {
        let passes = self.takes_trailers && self.gives_trailers;
        let trailers = self.received_trailers.as_ref().filter(|_| passes);
        match out {
            Out::Wire(out) => out.put_end(self.chunked, trailers),
            Out::Frames(out) => out.put_end(self.chunked, trailers),
        }
    }
}
