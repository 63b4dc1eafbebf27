//! The bytes of an HTTP/2 connection between its socket and the `h2` crate, watched as they pass.
//!
//! Comes in: a socket and what was read from it while its protocol was found out. Goes out: the same bytes,
//! until the peer sends frames out of proportion to the work it asks for. The `h2` crate bounds memory but
//! takes PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames without end; each costs time. What is
//! out of proportion is Envoy's rule where Envoy has one (`Http2ProtocolOptions`), see [`Limits`].

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{ready, Context, Poll};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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

/// What a connection has done so far; shared by its guard, its streams and who serves it.
#[derive(Debug, Default)]
pub struct Account {
    /// Streams opened by the peer, or by us where we are the client.
    pub streams: Cell<u64>,
    /// DATA frames handed over to be sent.
    pub data_sent: Cell<u64>,
    /// The peer is cut off for this.
    pub flood: Cell<Option<Flood>>,
    /// The peer said GOAWAY.
    pub going_away: Cell<bool>,
    /// A head has begun and is not complete.
    pub half: Cell<bool>,
    /// Bytes read.
    pub received: Cell<u64>,
    /// Bytes written.
    pub sent: Cell<u64>,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const FLAG_1: u8 = 1;
/// END_HEADERS of HEADERS and CONTINUATION.
const END_HEADERS: u8 = 4;
const FRAME_HEAD: usize = 9;
/// What a client sends before its first frame (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Follows the frames in a stream of bytes and counts them (RFC 9113 §4.1).
#[derive(Debug)]
struct Watch {
    limits: Limits,
    head: [u8; FRAME_HEAD],
    have: usize,
    /// Bytes to pass over: the preface, the rest of a payload.
    skip: u64,
    /// A header block goes on in the next frame.
    open_block: bool,
    kind: u8,
    empty_in_a_row: u32,
    priorities: u64,
    window_updates: u64,
    data_received: u64,
    last_stream: u32,
    /// Streams the peer opened.
    opened: u64,
    controls: u64,
    /// Control frames forgiven since.
    forgiven: u64,
    since: Option<Instant>,
}

impl Watch {
    fn new(limits: Limits, preface: usize) -> Self {
        Self {
            limits,
            head: [0; FRAME_HEAD],
            have: 0,
            skip: preface as u64,
            open_block: false,
            kind: DATA,
            empty_in_a_row: 0,
            priorities: 0,
            window_updates: 0,
            data_received: 0,
            last_stream: 0,
            opened: 0,
            controls: 0,
            forgiven: 0,
            since: None,
        }
    }

    fn feed(&mut self, mut bytes: &[u8], account: &Account) -> Option<Flood> {
        let mut flood = None;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let over = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                bytes = bytes.get(over..).unwrap_or_default();
                self.skip -= over as u64;
                continue;
            }
            let take = (FRAME_HEAD - self.have).min(bytes.len());
            let (head, rest) = bytes.split_at(take);
            // `have` stays below the length of a head, and `take` fills it at most.
            self.head[self.have..self.have + take].copy_from_slice(head);
            self.have += take;
            bytes = rest;
            if self.have == FRAME_HEAD {
                self.have = 0;
                flood = self.frame(account).or(flood);
            }
        }
        // The rest of a body may take as long as its stream does.
        let inside = self.have > 0 || (self.skip > 0 && self.kind != DATA);
        account.half.set(inside || self.open_block);
        flood
    }

    /// A frame begins.
    fn frame(&mut self, account: &Account) -> Option<Flood> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        self.skip = length.into();
        self.kind = kind;
        match kind {
            DATA | HEADERS | CONTINUATION => {
                if kind == HEADERS && stream > self.last_stream {
                    self.last_stream = stream;
                    self.opened += 1;
                }
                if kind != DATA {
                    self.open_block = flags & END_HEADERS == 0;
                }
                if length > 0 || flags & FLAG_1 != 0 {
                    self.data_received += 1;
                    self.empty_in_a_row = 0;
                    return None;
                }
                self.empty_in_a_row += 1;
                (self.empty_in_a_row > self.limits.empty).then_some(Flood::Empty)
            }
            PRIORITY => {
                self.priorities += 1;
                let allowed = self.limits.priority.saturating_mul(1 + self.streams(account));
                (self.priorities > allowed).then_some(Flood::Priority)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let sent = self.limits.window_update.saturating_mul(account.data_sent.get());
                let allowed = 5 + 2 * (self.streams(account) + sent);
                (self.window_updates > allowed).then_some(Flood::WindowUpdate)
            }
            // Answers to what we sent.
            SETTINGS | PING if flags & FLAG_1 != 0 => None,
            _ => {
                if kind == GOAWAY {
                    account.going_away.set(true);
                }
                self.controls += 1;
                let paid = self.streams(account) + self.data_received + self.forgiven;
                let allowed = u64::from(self.limits.control) + paid;
                (self.controls > allowed && !self.forgive(allowed)).then_some(Flood::Control)
            }
        }
    }

    fn streams(&self, account: &Account) -> u64 {
        self.opened.max(account.streams.get())
    }

    /// Time pays too. The clock is asked only when nothing else is left to pay with.
    #[cold]
    fn forgive(&mut self, allowed: u64) -> bool {
        let now = Instant::now();
        // The first time, as if all of it had come within a moment.
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_millis();
        let earned = passed.saturating_mul(u128::from(self.limits.control)) / 10_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX).min(self.limits.control.into());
        if earned == 0 {
            return false;
        }
        self.since = Some(now);
        self.forgiven += earned;
        self.controls <= allowed.saturating_add(earned)
    }
}

/// A socket whose incoming frames are watched. After a flood it reads nothing more, and says so in
/// [`Account::flood`].
#[derive(Debug)]
pub struct Guarded {
    stream: Stream,
    prefix: BytesMut,
    watch: Watch,
    account: Rc<Account>,
    /// A flood is an error, where nobody looks at the account.
    fails: bool,
}

impl Guarded {
    /// The server's end: a client's preface comes first. `prefix` was read before.
    pub fn server(stream: Stream, prefix: BytesMut, limits: Limits, account: Rc<Account>) -> Self {
        let watch = Watch::new(limits, PREFACE.len());
        Self { stream, prefix, watch, account, fails: false }
    }

    /// The client's end.
    pub fn client(stream: Stream, limits: Limits, account: Rc<Account>) -> Self {
        let watch = Watch::new(limits, 0);
        Self { stream, prefix: BytesMut::new(), watch, account, fails: true }
    }

    fn passed(&mut self, bytes: &[u8], context: &Context<'_>) -> io::Result<()> {
        self.account.received.set(self.account.received.get() + bytes.len() as u64);
        if let Some(flood) = self.watch.feed(bytes, &self.account) {
            self.account.flood.set(Some(flood));
            if self.fails {
                return Err(io::Error::other("frame flood"));
            }
            context.waker().wake_by_ref();
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.account.flood.get().is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if this.prefix.is_empty() {
            loop {
                ready!(this.stream.poll_read_ready(context))?;
                match this.stream.try_read_buf(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Poll::Ready(Err(error)),
                    Ok(_) => break,
                }
            }
        } else {
            let take = this.prefix.len().min(buffer.remaining());
            buffer.put_slice(this.prefix.get(..take).unwrap_or_default());
            this.prefix.advance(take);
            if this.prefix.is_empty() {
                this.prefix = BytesMut::new();
            }
        }
        this.passed(buffer.filled().get(before..).unwrap_or_default(), context)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |stream| match slices {
            [one] => stream.try_write(one),
            several => stream.try_write_vectored(several),
        })
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
    fn write(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&Stream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(context))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.account.sent.set(self.account.sent.get() + count as u64);
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0, (length >> 8) as u8, length as u8, kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.resize(FRAME_HEAD + length, 0xff);
        bytes
    }

    /// How many of `one` pass, however the bytes are cut.
    fn passes(one: &[u8], most: usize, prelude: &[u8], account: &Account) -> usize {
        let mut counts = [1, 7, 4096].map(|cut| {
            let mut watch = Watch::new(Limits::default(), PREFACE.len());
            assert_eq!(watch.feed(PREFACE, account), None);
            assert_eq!(watch.feed(prelude, account), None);
            (0..most)
                .take_while(|_| one.chunks(cut).all(|piece| watch.feed(piece, account).is_none()))
                .count()
        });
        counts.sort_unstable();
        assert_eq!(counts[0], counts[2], "the cuts must not matter");
        counts[0]
    }

    #[test]
    fn floods_are_counted_as_envoy_does() {
        let account = Account::default();
        assert_eq!(passes(&frame(DATA, 0, 1, 0), 10, &[], &account), 1);
        assert_eq!(passes(&frame(PRIORITY, 0, 1, 5), 1000, &[], &account), 100);
        assert_eq!(passes(&frame(WINDOW_UPDATE, 0, 0, 4), 1000, &[], &account), 5);
        let stream = frame(HEADERS, 4, 1, 30);
        assert_eq!(passes(&frame(PRIORITY, 0, 1, 5), 1000, &stream, &account), 200);
        assert_eq!(passes(&frame(WINDOW_UPDATE, 0, 0, 4), 1000, &stream, &account), 7);
        account.data_sent.set(3);
        assert_eq!(passes(&frame(WINDOW_UPDATE, 0, 0, 4), 1000, &[], &account), 65);
    }

    #[test]
    fn control_frames_are_paid_for_by_work() {
        let account = Account::default();
        for kind in [PING, SETTINGS, 3, 0x77] {
            assert_eq!(passes(&frame(kind, 0, 1, 8), 2000, &[], &account), 1000, "{kind}");
        }
        // Acknowledgements are asked for by us.
        assert_eq!(passes(&frame(PING, FLAG_1, 0, 8), 2000, &[], &account), 2000);
        let mut work = Vec::new();
        for _ in 0..50 {
            work.extend(frame(DATA, 0, 1, 100));
        }
        assert_eq!(passes(&frame(PING, 0, 0, 8), 2000, &work, &account), 1050);
    }

    #[test]
    fn half_a_head_shows() {
        let account = Account::default();
        let mut watch = Watch::new(Limits::default(), 0);
        let mut fed = |bytes: &[u8]| {
            assert_eq!(watch.feed(bytes, &account), None);
            account.half.get()
        };
        let whole = frame(HEADERS, END_HEADERS, 1, 30);
        assert!(!fed(&whole));
        assert!(fed(&whole[..5]));
        assert!(fed(&whole[5..20]));
        assert!(!fed(&whole[20..]));
        assert!(fed(&frame(HEADERS, 0, 3, 30)), "CONTINUATION is to come");
        assert!(!fed(&frame(CONTINUATION, END_HEADERS, 3, 30)));
        assert!(!fed(&frame(DATA, 0, 3, 100)[..50]), "a body may be slow");
    }

    #[test]
    fn work_is_never_a_flood() {
        let account = Account::default();
        let mut pair = frame(HEADERS, 4, 1, 30);
        pair.extend(frame(DATA, FLAG_1, 1, 0));
        assert_eq!(passes(&pair, 5000, &[], &account), 5000);
    }

    #[test]
    fn time_forgives() {
        let account = Account::default();
        let mut watch = Watch::new(Limits::default(), 0);
        let ping = frame(PING, 0, 0, 8);
        while watch.feed(&ping, &account).is_none() {}
        // A second later a hundred more may come.
        watch.since = watch.since.map(|since| since - std::time::Duration::from_secs(1));
        let more = (0..1000).take_while(|_| watch.feed(&ping, &account).is_none()).count();
        assert!((90..=101).contains(&more), "{more}");
    }
}
