//! The frames that the `h2` crate writes, followed on their way to the socket: what it answered by itself is counted,
//! and its error codes are made those of RFC 9113.

use h2::Reason;

use super::guard::{Account, PREFACE};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
/// Of what a GOAWAY says, so many bytes are looked at.
const FAREWELL: usize = 64;
const FRAME_HEAD: usize = 9;
/// Where the last byte of the code is in a GOAWAY's payload.
const CODE: usize = 7;

/// Follows frames.
#[derive(Debug, Clone)]
pub(super) struct Outbound {
    /// Of a server, whose streams the peer opens.
    serves: bool,
    head: [u8; FRAME_HEAD],
    have: usize,
    /// Bytes of the payload that are to come, and how many were.
    left: usize,
    passed: usize,
}

/// What is written in place of some bytes.
pub(super) enum Exact<'a> {
    /// As many as stand before the code.
    Before(&'a [u8]),
    /// The code's last byte.
    Code([u8; 1]),
}

impl Exact<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Before(bytes) => bytes,
            Self::Code(byte) => byte,
        }
    }
}

impl Outbound {
    pub(super) fn new(serves: bool) -> Self {
        // A client says its preface first; it is passed over like a payload.
        let (have, left) = if serves { (0, 0) } else { (FRAME_HEAD, PREFACE.len()) };
        Self { serves, head: [0; FRAME_HEAD], have, left, passed: 0 }
    }

    /// These bytes were written.
    pub(super) fn follow(&mut self, mut bytes: &[u8], account: &Account) {
        while !bytes.is_empty() {
            if self.have == FRAME_HEAD {
                let over = bytes.len().min(self.left);
                if self.head[3] == GOAWAY {
                    let mut farewell = account.farewell.borrow_mut();
                    let room = FAREWELL.saturating_sub(farewell.len()).min(over);
                    farewell.extend_from_slice(bytes.get(..room).unwrap_or_default());
                }
                self.left -= over;
                self.passed += over;
                bytes = bytes.get(over..).unwrap_or_default();
            } else {
                let take = (FRAME_HEAD - self.have).min(bytes.len());
                let (head, rest) = bytes.split_at(take);
                // `have` stays below the length of a head, and `take` fills it at most.
                self.head[self.have..self.have + take].copy_from_slice(head);
                self.have += take;
                bytes = rest;
                if self.have == FRAME_HEAD {
                    self.begin(account);
                }
            }
            if self.have == FRAME_HEAD && self.left == 0 {
                self.have = 0;
            }
        }
    }

    fn begin(&mut self, account: &Account) {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
        match kind {
            PING if flags & ACK == 0 => account.pings.set(account.pings.get().saturating_add(1)),
            SETTINGS if flags & ACK == 0 => account.settings.set(account.settings.get().saturating_add(1)),
            GOAWAY => account.farewell.borrow_mut().clear(),
            _ => {}
        }
        self.left = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        self.passed = 0;
        // An answer on a stream that nobody here has seen: the crate found the head too large.
        if kind == HEADERS && self.serves {
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            if stream > account.accepted.get() {
                account.overflows.set(account.overflows.get() + 1);
            }
        }
        if kind == RST_STREAM && self.serves {
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            if stream > account.accepted.get() {
                account.refused.set(account.refused.get() + 1);
            }
        }
    }

    /// If there is a GOAWAY with PROTOCOL_ERROR in `bytes`, which come next: what is to be written of them first, so
    /// that it says `code`.
    pub(super) fn exact<'a>(&self, bytes: &'a [u8], code: Reason) -> Option<Exact<'a>> {
        let none = Account::default();
        let mut at = 0;
        let mut state = self.clone();
        loop {
            if state.have == FRAME_HEAD && state.head[3] == GOAWAY && state.passed <= CODE {
                let place = at + (CODE - state.passed);
                return match bytes.get(place) {
                    Some(byte) if u32::from(*byte) == u32::from(Reason::PROTOCOL_ERROR) => {
                        if place == 0 {
                            // Codes of the RFC are below 256.
                            Some(Exact::Code([u32::from(code) as u8]))
                        } else {
                            bytes.get(..place).map(Exact::Before)
                        }
                    }
                    _ => None,
                };
            }
            let rest = bytes.get(at..)?;
            if rest.is_empty() {
                return None;
            }
            let step = match state.have {
                FRAME_HEAD => state.left,
                have => FRAME_HEAD - have,
            };
            let step = rest.len().min(step.max(1));
            state.follow(rest.get(..step)?, &none);
            at += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_goaway_is_made_exact() {
        let mut bytes = vec![0, 0, 4, 0, 0, 0, 0, 0, 1, 7, 7, 7, 7];
        bytes.extend([0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1]);
        for most in [1, 5, 100] {
            let account = Account::default();
            let mut outbound = Outbound::new(true);
            let (mut rest, mut written) = (&bytes[..], Vec::new());
            while !rest.is_empty() {
                let exact = outbound.exact(rest, Reason::COMPRESSION_ERROR);
                let piece = exact.as_ref().map_or(rest, |exact| exact.bytes());
                let count = piece.len().min(most);
                written.extend_from_slice(&piece[..count]);
                outbound.follow(&rest[..count], &account);
                rest = &rest[count..];
            }
            let mut expected = bytes.clone();
            *expected.last_mut().unwrap() = 9;
            assert_eq!(written, expected, "{most} at a time");
        }
    }

    #[test]
    fn a_preface_is_no_frame() {
        let account = Account::default();
        let mut outbound = Outbound::new(false);
        outbound.follow(PREFACE, &account);
        outbound.follow(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0], &account);
        assert_eq!(account.settings.get(), 1);
    }

    #[test]
    fn answers_of_the_crate_are_counted() {
        let account = Account::default();
        account.accepted.set(3);
        let mut outbound = Outbound::new(true);
        for stream in [1, 3, 5] {
            outbound.follow(&[0, 0, 1, HEADERS, 5, 0, 0, 0, stream, 0x88], &account);
        }
        assert_eq!(account.overflows.get(), 1);
    }
}
