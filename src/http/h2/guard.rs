//! The bytes of an HTTP/2 connection between its socket and the `h2` crate, watched as they pass.
//!
//! Comes in: a socket and what was read from it while its protocol was found out. Goes out: the same bytes,
//! until the peer sends frames that are wrong, or out of proportion to the work it asks for. The `h2` crate bounds memory but
//! takes PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames without end; each costs time. What is
//! out of proportion is Envoy's rule where Envoy has one (`Http2ProtocolOptions`), see [`Limits`]. Frames that begin
//! a message or control the connection are held back until they are complete (`watch` looks at them, `screen` at
//! header blocks); bodies pass as they come.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{ready, Context, Poll};

use bytes::{Buf, BytesMut};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::outbound::Outbound;
use super::screen::Side;
use super::watch::{HeadLimits, Stop, Walk, Watch};
use crate::runtime::stream::Stream;

/// Frames that a peer may send for the work it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames in a row with neither payload nor end of stream
    /// (`max_consecutive_inbound_frames_with_empty_payload`, default 1).
    pub empty: u32,
    /// PRIORITY frames for each stream and one more (`max_inbound_priority_frames_per_stream`, default 100).
    pub priority: u64,
    /// WINDOW_UPDATE frames for each DATA frame that was sent
    /// (`max_inbound_window_update_frames_per_data_frame_sent`, default 10).
    pub window_update: u64,
    /// Frames that ask for an answer or mean nothing (PING, SETTINGS, RST_STREAM, unknown), beyond one for each
    /// stream and DATA frame, at a time (`max_outbound_control_frames`, default 1000). A tenth of it comes
    /// back each second.
    pub control: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { empty: 1, priority: 100, window_update: 10, control: 1000 }
    }
}

/// What a peer sent too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Frames without payload.
    Empty,
    /// PRIORITY.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// Frames that ask for an answer, or mean nothing.
    Control,
}

/// An error of the connection that was found before the crate saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// The code of the GOAWAY.
    pub reason: Reason,
    /// A head grew over its limit.
    pub overflow: bool,
}

/// What a connection has done so far; shared by its guard, its streams and who serves it.
#[derive(Debug, Default)]
pub struct Account {
    /// Streams opened by the peer, or by us where we are the client.
    pub streams: Cell<u64>,
    /// DATA frames handed over to be sent.
    pub data_sent: Cell<u64>,
    /// The peer is cut off for this.
    pub flood: Cell<Option<Flood>>,
    /// The peer is cut off for this.
    pub broken: Cell<Option<Broken>>,
    /// The peer said GOAWAY.
    pub going_away: Cell<bool>,
    /// A head has begun and is not complete.
    pub half: Cell<bool>,
    /// Bytes read.
    pub received: Cell<u64>,
    /// Messages that were malformed and whose streams the crate resets.
    pub malformed: Cell<u64>,
    /// Heads over a limit, answered or reset by the crate.
    pub overflows: Cell<u64>,
    /// Streams that the crate reset before anybody saw them.
    pub refused: Cell<u64>,
    /// The last stream of the peer that is served.
    pub accepted: Cell<u32>,
    /// PINGs and SETTINGS of ours that were not answered.
    pub(super) pings: Cell<u32>,
    pub(super) settings: Cell<u32>,
    /// What the crate's last GOAWAY said, its numbers before its words.
    pub(super) farewell: RefCell<Vec<u8>>,
    /// Bytes of heads that are held for streams.
    pub(super) held: Cell<u64>,
    /// Streams that were opened and perhaps not accepted.
    pub(super) fresh: Cell<u32>,
    /// Nothing is accepted any more.
    pub(super) closing: Cell<bool>,
    /// What kinds of frames the crate has been given since it last asked for bytes.
    given: Cell<u8>,
}

impl Account {
    /// HEADERS of a new stream.
    pub(super) const OPENS: u8 = 1;
    /// HEADERS of a stream that was there before.
    pub(super) const GOES_ON: u8 = 2;
    /// DATA.
    pub(super) const DATA: u8 = 4;

    pub(super) fn note(&self, kind: u8) {
        self.given.set(self.given.get() | kind);
    }

    /// The code of RFC 9113 where the crate says PROTOCOL_ERROR: what is left for it to find are streams that are
    /// over, and header blocks that do not decode.
    pub(super) fn code(&self) -> Option<Reason> {
        let given = self.given.get();
        if given & (Self::GOES_ON | Self::DATA) != 0 {
            Some(Reason::STREAM_CLOSED)
        } else if given & Self::OPENS != 0 {
            Some(Reason::COMPRESSION_ERROR)
        } else {
            None
        }
    }
}

/// So many streams may be opened before those that were are accepted: the crate decodes what there is to read
/// before it hands over the first, and decoded heads are much larger than coded ones: with the largest heads that are
/// taken (60 KiB) some 8 MiB stand in memory then.
const FRESH: u32 = 64;

/// What a client sends before its first frame (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket whose incoming frames are watched. After a flood, or when it is broken, it reads nothing more, and says
/// so in [`Account`].
#[derive(Debug)]
pub struct Guarded {
    stream: Stream,
    /// Bytes to look at: read before, or frames that are not complete.
    pending: BytesMut,
    /// So many of them are needed to go on.
    need: usize,
    /// Bytes that may pass.
    ready: BytesMut,
    watch: Watch,
    outbound: Outbound,
    account: Rc<Account>,
    /// A flood is an error, where nobody looks at the account.
    fails: bool,
}

impl Guarded {
    /// The server's end: a client's preface comes first. `prefix` was read before; `table_size` is what we let the
    /// client's compression table be.
    pub fn server(
        stream: Stream,
        prefix: BytesMut,
        limits: Limits,
        table_size: u32,
        heads: HeadLimits,
        account: Rc<Account>,
    ) -> Self {
        let watch = Watch::new(limits, Side::Server, table_size as usize, heads, PREFACE.len());
        Self::new(stream, prefix, watch, account, false)
    }

    /// The client's end.
    pub fn client(
        stream: Stream,
        limits: Limits,
        table_size: u32,
        heads: HeadLimits,
        account: Rc<Account>,
    ) -> Self {
        let watch = Watch::new(limits, Side::Client, table_size as usize, heads, 0);
        Self::new(stream, BytesMut::new(), watch, account, true)
    }

    fn new(stream: Stream, pending: BytesMut, watch: Watch, account: Rc<Account>, fails: bool) -> Self {
        let outbound = Outbound::new(!fails);
        Self { stream, pending, need: 0, ready: BytesMut::new(), watch, outbound, account, fails }
    }

    /// Takes what `walk` says about the first of `pending`.
    fn look(&mut self, context: &Context<'_>) -> io::Result<()> {
        match self.watch.walk(&self.pending, &self.account) {
            Walk::All => {
                self.pass(self.pending.len());
                self.need = 0;
            }
            Walk::Hold { pass, need } => {
                self.pass(pass);
                self.need = need;
            }
            Walk::Exchange { pass, skip, with } => {
                self.pass(pass);
                // `walk` counts only what is there.
                self.pending.advance(skip.min(self.pending.len()));
                self.ready.extend_from_slice(&with);
                self.need = 0;
            }
            Walk::Stop { pass, why } => {
                self.pass(pass);
                self.stop(why, context)?;
            }
        }
        Ok(())
    }

    fn pass(&mut self, count: usize) {
        let passed = self.pending.split_to(count.min(self.pending.len()));
        if self.ready.is_empty() {
            self.ready = passed;
        } else {
            self.ready.extend_from_slice(&passed);
        }
        if self.pending.is_empty() {
            // Gives the memory back: a connection that idles holds nothing.
            self.pending = BytesMut::new();
        }
    }

    fn stop(&self, why: Stop, context: &Context<'_>) -> io::Result<()> {
        let what = match why {
            Stop::Flood(flood) => {
                self.account.flood.set(Some(flood));
                "frame flood"
            }
            Stop::Broken(broken) => {
                self.account.broken.set(Some(broken));
                "frames are wrong"
            }
        };
        self.account.given.set(0);
        if self.fails {
            return Err(io::Error::other(what));
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.account.flood.get().is_some() || self.account.broken.get().is_some()
    }

    /// Reads into `pending`; false at the end of the stream.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.pending.reserve(4096);
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read_buf(&mut self.pending) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.account.received.set(self.account.received.get() + count as u64);
                    return Poll::Ready(Ok(count > 0));
                }
            }
        }
    }

    /// Reads into the crate's buffer, and takes back what may not pass. True when something passed, or at the end.
    fn poll_straight(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let before = buffer.filled().len();
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Ok(true)),
                Ok(_) => break,
            }
        }
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        self.account.received.set(self.account.received.get() + bytes.len() as u64);
        let (pass, skip, need) = match self.watch.walk(bytes, &self.account) {
            Walk::All => return Poll::Ready(Ok(true)),
            Walk::Hold { pass, need } => (pass, 0, need),
            Walk::Exchange { pass, skip, with } => {
                // Goes before what follows, which is looked at later.
                self.ready.extend_from_slice(&with);
                (pass, skip, 0)
            }
            Walk::Stop { pass, why } => {
                self.stop(why, context)?;
                (pass, 0, 0)
            }
        };
        self.need = need;
        self.pending.extend_from_slice(bytes.get(pass + skip..).unwrap_or_default());
        buffer.set_filled(before + pass);
        Poll::Ready(Ok(pass > 0))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ready.is_empty() {
            // What the crate had, it has used.
            this.account.given.set(0);
        }
        loop {
            if !this.ready.is_empty() {
                let take = this.ready.len().min(buffer.remaining());
                buffer.put_slice(this.ready.get(..take).unwrap_or_default());
                this.ready.advance(take);
                if this.ready.is_empty() {
                    this.ready = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.is_stopped() {
                return Poll::Pending;
            }
            if this.account.fresh.get() >= FRESH && !this.account.closing.get() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if this.pending.is_empty() {
                let passed = ready!(this.poll_straight(context, buffer))?;
                this.account.half.set(!this.pending.is_empty());
                if passed {
                    return Poll::Ready(Ok(()));
                }
            } else if this.pending.len() >= this.need {
                this.look(context)?;
                this.account.half.set(!this.pending.is_empty());
            } else if !ready!(this.poll_more(context))? {
                // What is not complete never will be.
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown_write())
    }
}

impl Guarded {
    fn write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        // An error code to be made exact goes out by itself.
        let exact = self.account.code().and_then(|code| {
            let first = slices.iter().find(|slice| !slice.is_empty())?;
            self.outbound.exact(first, code)
        });
        loop {
            let written = match (&exact, slices) {
                (Some(piece), _) => self.stream.try_write(piece.bytes()),
                (None, [one]) => self.stream.try_write(one),
                (None, several) => self.stream.try_write_vectored(several),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(context))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    let mut left = count;
                    for slice in slices {
                        let part = slice.get(..left.min(slice.len())).unwrap_or_default();
                        self.outbound.follow(part, &self.account);
                        left -= part.len();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
