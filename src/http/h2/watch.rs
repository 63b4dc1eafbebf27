//! The frames of a connection as they come (RFC 9113 §4.1): what is out of proportion or wrong in itself, and header
//! blocks that must not reach the `h2` crate as they are.
//!
//! Comes in: bytes, from the beginning of a frame on or inside a body. Goes out: how many of them may pass, and why
//! not more. The crate would find much of this too, but says PROTOCOL_ERROR to most of it, and ends a connection
//! where one stream is wrong.

use std::time::Instant;

use h2::Reason;

use super::guard::{Account, Broken, Flood, Limits};
use super::screen::{Screen, Side, Verdict, Why, POISON};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const FLAG_1: u8 = 1;
/// END_HEADERS of HEADERS and CONTINUATION.
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;
const FRAME_HEAD: usize = 9;
/// Payload of a frame, at most; we announce no other size.
const MAX_FRAME: usize = 16_384;
/// A SETTINGS_INITIAL_WINDOW_SIZE above this is none (RFC 9113 §6.5.2).
const MAX_WINDOW: u32 = 0x7fff_ffff;
/// CONTINUATION frames of one block; the crate's own limit for common sizes.
const MAX_CONTINUATIONS: usize = 6;
/// Frames of responses' heads for each stream, beyond `Limits::control` in all: 1xx, the head, trailers.
const HEADS_PER_STREAM: u64 = 4;

/// How far the bytes may pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// All of them.
    All,
    /// So many; what follows is looked at again when there are so many more.
    Hold { pass: usize, need: usize },
    /// So many; the next `skip` are exchanged for others.
    Exchange { pass: usize, skip: usize, with: Vec<u8> },
    /// So many, and no more ever.
    Stop { pass: usize, why: Stop },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Flood(Flood),
    Broken(Broken),
}

/// A frame that is complete.
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// What a frame leads to.
enum Step {
    Pass,
    Exchange(Vec<u8>),
}

fn broken<T>(reason: Reason) -> Result<T, Stop> {
    Err(Stop::Broken(Broken { reason, overflow: false }))
}

/// Follows the frames of one direction.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
    side: Side,
    screen: Screen,
    /// Bytes of a block, at most.
    max_block: usize,
    /// Bytes to pass over: the preface, the rest of a payload.
    skip: u64,
    greeted: bool,
    empty_in_a_row: u32,
    priorities: u64,
    window_updates: u64,
    data_received: u64,
    heads: u64,
    last_stream: u32,
    /// Streams the peer opened.
    opened: u64,
    controls: u64,
    /// Control frames forgiven since.
    forgiven: u64,
    since: Option<Instant>,
}

impl Watch {
    pub(super) fn new(
        limits: Limits,
        side: Side,
        table_size: usize,
        heads: HeadLimits,
        preface: usize,
    ) -> Self {
        Self {
            limits,
            side,
            screen: Screen::new(side, table_size, heads.fields),
            // Coded fields may be larger than the limit's way to count them, but not by much.
            max_block: heads.bytes.saturating_mul(2).saturating_add(MAX_FRAME),
            skip: preface as u64,
            greeted: false,
            empty_in_a_row: 0,
            priorities: 0,
            window_updates: 0,
            data_received: 0,
            heads: 0,
            last_stream: 0,
            opened: 0,
            controls: 0,
            forgiven: 0,
            since: None,
        }
    }

    /// Looks at bytes that begin where the last ones that passed ended.
    pub(super) fn walk(&mut self, bytes: &[u8], account: &Account) -> Walk {
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            if self.skip > 0 {
                let over = rest.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                at += over;
                self.skip -= over as u64;
                if self.skip > 0 {
                    return Walk::All;
                }
                continue;
            }
            if rest.is_empty() {
                return Walk::All;
            }
            let Some((head, payload)) = rest.split_first_chunk::<FRAME_HEAD>() else {
                return Walk::Hold { pass: at, need: FRAME_HEAD };
            };
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
            let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            if length > MAX_FRAME {
                return Walk::Stop { pass: at, why: stop(Reason::FRAME_SIZE_ERROR) };
            }
            let whole = FRAME_HEAD + length;
            // Bodies, and what is passed over, go on as they come.
            let runs = !(HEADERS..=CONTINUATION).contains(&kind);
            let wanted = match kind {
                DATA if flags & PADDED != 0 => length.min(1),
                _ if runs => 0,
                _ => length,
            };
            let Some(payload) = payload.get(..wanted) else {
                return Walk::Hold { pass: at, need: FRAME_HEAD + wanted };
            };
            let frame = Frame { kind, flags, stream, payload };
            let (step, whole) = if kind == HEADERS && self.greeted {
                match self.block(&frame, rest, account) {
                    Ok(Ok(done)) => done,
                    Ok(Err(need)) => return Walk::Hold { pass: at, need },
                    Err(why) => return Walk::Stop { pass: at, why },
                }
            } else {
                match self.frame(&frame, length, account) {
                    Ok(step) => (step, whole),
                    Err(why) => return Walk::Stop { pass: at, why },
                }
            };
            match step {
                Step::Pass if runs => self.skip = whole as u64,
                Step::Pass => at += whole,
                Step::Exchange(with) => return Walk::Exchange { pass: at, skip: whole, with },
            }
        }
    }

    /// HEADERS and the frames that belong to it: what becomes of them and how long they are, or how much of them
    /// must be there to say more.
    fn block(
        &mut self,
        frame: &Frame<'_>,
        rest: &[u8],
        account: &Account,
    ) -> Result<Result<(Step, usize), usize>, Stop> {
        let server = self.side == Side::Server;
        let stream = frame.stream;
        if stream == 0 || (server && stream.is_multiple_of(2)) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let mut fragment = frame.payload;
        if frame.flags & PADDED != 0 {
            let Some((padding, inner)) = fragment.split_first() else {
                return broken(Reason::FRAME_SIZE_ERROR);
            };
            let Some(length) = inner.len().checked_sub(usize::from(*padding)) else {
                return broken(Reason::PROTOCOL_ERROR);
            };
            fragment = inner.get(..length).unwrap_or_default();
        }
        if frame.flags & WITH_PRIORITY != 0 {
            let Some((_, inner)) = fragment.split_at_checked(5) else {
                return broken(Reason::FRAME_SIZE_ERROR);
            };
            fragment = inner;
        }
        let mut whole = FRAME_HEAD + frame.payload.len();
        let mut gathered = Vec::new();
        if frame.flags & END_HEADERS == 0 {
            gathered.extend_from_slice(fragment);
            let (mut count, mut empty) = (0, u32::from(fragment.is_empty()));
            loop {
                let Some(after) = rest.get(whole..) else { return Ok(Err(whole)) };
                let Some((head, payload)) = after.split_first_chunk::<FRAME_HEAD>() else {
                    return Ok(Err(whole + FRAME_HEAD));
                };
                let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
                let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                if length > MAX_FRAME {
                    return broken(Reason::FRAME_SIZE_ERROR);
                }
                if kind != CONTINUATION || u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]) != stream {
                    return broken(Reason::PROTOCOL_ERROR);
                }
                let ends = flags & END_HEADERS != 0;
                count += 1;
                empty = if length == 0 && !ends { empty + 1 } else { 0 };
                if empty > self.limits.empty {
                    return Err(Stop::Flood(Flood::Empty));
                }
                if count > MAX_CONTINUATIONS || gathered.len() + length > self.max_block {
                    return Err(Stop::Broken(Broken { reason: Reason::ENHANCE_YOUR_CALM, overflow: true }));
                }
                let Some(payload) = payload.get(..length) else {
                    return Ok(Err(whole + FRAME_HEAD + length));
                };
                gathered.extend_from_slice(payload);
                whole += FRAME_HEAD + length;
                if ends {
                    break;
                }
            }
            fragment = &gathered;
        }
        // It is complete: from here on it counts.
        let opens = server && stream > self.last_stream;
        if opens {
            self.last_stream = stream;
            self.opened += 1;
            account.fresh.set(account.fresh.get().saturating_add(1));
            account.note(Account::OPENS);
        } else if server {
            account.note(Account::GOES_ON);
        } else {
            account.note(Account::OPENS);
        }
        self.empty_in_a_row = 0;
        self.heads += 1;
        if server {
            self.data_received += 1;
        } else if self.heads > u64::from(self.limits.control) + HEADS_PER_STREAM * account.streams.get() {
            return Err(Stop::Flood(Flood::Control));
        }
        match self.screen.look(fragment, server && !opens) {
            Verdict::Good => Ok(Ok((Step::Pass, whole))),
            Verdict::Broken => broken(Reason::COMPRESSION_ERROR),
            Verdict::Exchanged(block, why) => {
                match why {
                    Why::Request => {
                        // One that was left out is unexpected, not closed.
                        let left_out = self.opened != u64::from(self.last_stream / 2 + 1);
                        return broken(if left_out { Reason::PROTOCOL_ERROR } else { Reason::STREAM_CLOSED });
                    }
                    Why::Malformed => account.malformed.set(account.malformed.get() + 1),
                    Why::TooMany => account.overflows.set(account.overflows.get() + 1),
                }
                Ok(Ok((Step::Exchange(headers(stream, frame.flags & FLAG_1, &block)), whole)))
            }
        }
    }

    /// Any other frame.
    fn frame(&mut self, frame: &Frame<'_>, length: usize, account: &Account) -> Result<Step, Stop> {
        let Frame { kind, flags, stream, payload } = *frame;
        if !self.greeted {
            // RFC 9113 §3.4.
            if kind != SETTINGS || flags & FLAG_1 != 0 {
                return broken(Reason::PROTOCOL_ERROR);
            }
            self.greeted = true;
        }
        let server = self.side == Side::Server;
        let idle = server && stream > self.last_stream;
        match kind {
            DATA => {
                if stream == 0 || idle {
                    return broken(Reason::PROTOCOL_ERROR);
                }
                account.note(Account::DATA);
                let padding = payload.first().map_or(0, |padding| 1 + usize::from(*padding));
                if padding > length {
                    return broken(Reason::PROTOCOL_ERROR);
                }
                if flags & PADDED != 0 && length == 0 {
                    return broken(Reason::FRAME_SIZE_ERROR);
                }
                if length > padding || flags & FLAG_1 != 0 {
                    self.data_received += 1;
                    self.empty_in_a_row = 0;
                    return Ok(Step::Pass);
                }
                self.empty_in_a_row += 1;
                if self.empty_in_a_row > self.limits.empty {
                    return Err(Stop::Flood(Flood::Empty));
                }
                if length == 0 {
                    // It says nothing, and the crate ends connections that have had a hundred of them, whenever.
                    return Ok(Step::Exchange(Vec::new()));
                }
            }
            PRIORITY => {
                if stream == 0 {
                    return broken(Reason::PROTOCOL_ERROR);
                }
                if length != 5 {
                    return broken(Reason::FRAME_SIZE_ERROR);
                }
                self.priorities += 1;
                let allowed = self.limits.priority.saturating_mul(1 + self.streams(account));
                if self.priorities > allowed {
                    return Err(Stop::Flood(Flood::Priority));
                }
            }
            WINDOW_UPDATE => {
                let Ok(increment) = <[u8; 4]>::try_from(payload) else {
                    return broken(Reason::FRAME_SIZE_ERROR);
                };
                if idle {
                    return broken(Reason::PROTOCOL_ERROR);
                }
                self.window_updates += 1;
                let sent = self.limits.window_update.saturating_mul(account.data_sent.get());
                let allowed = 5 + 2 * (self.streams(account) + sent);
                if self.window_updates > allowed {
                    return Err(Stop::Flood(Flood::WindowUpdate));
                }
                if u32::from_be_bytes(increment) & MAX_WINDOW == 0 {
                    if stream == 0 {
                        return broken(Reason::PROTOCOL_ERROR);
                    }
                    // An error of the stream; the crate would end the connection.
                    account.malformed.set(account.malformed.get() + 1);
                    return Ok(Step::Exchange(headers(stream, FLAG_1, POISON)));
                }
            }
            _ => return self.control(frame, length, idle, account),
        }
        Ok(Step::Pass)
    }

    /// Frames that ask for an answer, end something, or mean nothing.
    fn control(
        &mut self,
        frame: &Frame<'_>,
        length: usize,
        idle: bool,
        account: &Account,
    ) -> Result<Step, Stop> {
        let Frame { kind, flags, stream, payload } = *frame;
        let size = match kind {
            RST_STREAM => length == 4,
            PING => length == 8,
            GOAWAY => length >= 8,
            SETTINGS if flags & FLAG_1 != 0 => length == 0,
            SETTINGS => length.is_multiple_of(6),
            _ => true,
        };
        let of_stream = match kind {
            RST_STREAM => stream != 0 && !idle,
            SETTINGS | PING | GOAWAY => stream == 0,
            // We allow no pushes, and a block goes on only after its beginning.
            PUSH_PROMISE | CONTINUATION => false,
            _ => true,
        };
        if !of_stream {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if !size {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        let acknowledges = matches!(kind, SETTINGS | PING) && flags & FLAG_1 != 0;
        let mut step = Step::Pass;
        match kind {
            SETTINGS if acknowledges => match account.settings.get().checked_sub(1) {
                Some(left) => account.settings.set(left),
                None => return broken(Reason::PROTOCOL_ERROR),
            },
            PING if acknowledges => match account.pings.get().checked_sub(1) {
                Some(left) => account.pings.set(left),
                // The crate would write a line about each.
                None => step = Step::Exchange(Vec::new()),
            },
            SETTINGS => {
                for setting in payload.chunks_exact(6) {
                    let [0, id, v0, v1, v2, v3] = *setting else { continue };
                    let value = u32::from_be_bytes([v0, v1, v2, v3]);
                    match id {
                        // RFC 9113 §6.5.2, RFC 8441 §3.
                        2 | 8 if value > 1 => return broken(Reason::PROTOCOL_ERROR),
                        4 if value > MAX_WINDOW => return broken(Reason::FLOW_CONTROL_ERROR),
                        5 if !(16_384..1 << 24).contains(&value) => return broken(Reason::PROTOCOL_ERROR),
                        _ => {}
                    }
                }
                // Each is a little work, however many share a frame.
                self.controls += payload.len() as u64 / 60;
            }
            GOAWAY => account.going_away.set(true),
            _ => {}
        }
        if !acknowledges || matches!(step, Step::Exchange(_)) {
            self.controls += 1;
        }
        let paid = self.streams(account) + self.data_received + self.forgiven;
        let allowed = u64::from(self.limits.control) + paid;
        if self.controls > allowed && !self.forgive(allowed) {
            return Err(Stop::Flood(Flood::Control));
        }
        Ok(step)
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

/// What a head may be.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Its size in bytes.
    pub bytes: usize,
    /// Its fields.
    pub fields: usize,
}

fn stop(reason: Reason) -> Stop {
    Stop::Broken(Broken { reason, overflow: false })
}

/// HEADERS with this block, in as many frames as it needs.
fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() + 2 * FRAME_HEAD);
    let mut rest = block;
    let mut kind = HEADERS;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(MAX_FRAME));
        rest = after;
        // A piece is below 2^24.
        let [_, l0, l1, l2] = (piece.len() as u32).to_be_bytes();
        let ends = if rest.is_empty() { END_HEADERS } else { 0 };
        out.extend_from_slice(&[l0, l1, l2, kind, ends | if kind == HEADERS { flags } else { 0 }]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(piece);
        if rest.is_empty() {
            return out;
        }
        kind = CONTINUATION;
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
