//! A body that is slowed down: pieces wait until there are tokens for them.
//!
//! As in Envoy a second has sixteen slices, each of which lets through its share; what was not used of one is lost.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, Instant, Sleep};

use super::fields::Fields;
use super::stages::Passes;

/// Slices of a second.
const SLICES: u64 = 16;
const SLICE: Duration = Duration::from_millis(1000 / SLICES);

/// The pace of one body.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes that a slice lets through; at least 1.
    each: u64,
    /// Those left of this slice.
    left: u64,
    timer: Pin<Box<Sleep>>,
    held: VecDeque<Bytes>,
    length: usize,
    /// The body's end, with its trailers, comes after what is held.
    end: Option<Option<Fields>>,
}

impl Pace {
    /// So many KiB each second; at least 1.
    pub(super) fn new(kib: u64) -> Self {
        let each = (kib.saturating_mul(1024) / SLICES).max(1);
        Self { each, left: each, timer: Box::pin(sleep(SLICE)), held: VecDeque::new(), length: 0, end: None }
    }

    /// Bytes that wait.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn hold(&mut self, piece: Bytes) {
        self.length += piece.len();
        if !piece.is_empty() {
            self.held.push_back(piece);
        }
    }

    pub(super) fn hold_end(&mut self, trailers: Option<Fields>) {
        self.end = Some(trailers);
    }

    /// What passes next; pending until there are tokens for it.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Passes> {
        if self.held.is_empty() {
            return Poll::Ready(self.end.take().map_or(Passes::Nothing, Passes::End));
        }
        while self.left == 0 {
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.left = self.each;
            self.timer.as_mut().reset(Instant::now() + SLICE);
        }
        let Some(first) = self.held.front_mut() else { return Poll::Ready(Passes::Nothing) };
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(first.len());
        let piece = first.split_to(count);
        if first.is_empty() {
            self.held.pop_front();
        }
        self.length -= count;
        self.left -= count as u64;
        Poll::Ready(Passes::Piece(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_its_time() {
        let mut pace = Pace::new(16);
        pace.hold(Bytes::from(vec![0; 5000]));
        pace.hold_end(None);
        let start = Instant::now();
        let (mut bytes, mut pieces) = (0, 0);
        loop {
            match std::future::poll_fn(|context| pace.poll_next(context)).await {
                Passes::Piece(piece) => {
                    bytes += piece.len();
                    pieces += 1;
                    assert!(piece.len() <= 1024, "a slice lets 1 KiB through");
                }
                Passes::End(_) => break,
                Passes::Nothing => panic!("the end is missing"),
            }
        }
        assert_eq!((bytes, pieces, pace.length()), (5000, 5, 0));
        // The first slice passes at once.
        let took = start.elapsed();
        assert!((SLICE * 4..SLICE * 5).contains(&took), "{took:?}");
    }
}
