//! Bytes in and out of a socket, with back-pressure and without copies of large bodies.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{ready, Context, Poll};

use bytes::{Buf, Bytes, BytesMut};

use crate::runtime::buffer;
use crate::runtime::stream::Stream;

/// Pieces below this size are copied into one buffer, so that a head and a small body leave in one
/// write; larger ones are written from where they were read.
const COPY_BELOW: usize = 4096;
/// Slices handed to one vectored write.
const MAX_SLICES: usize = 16;
/// First read of a message: most heads fit.
pub const FIRST_READ: usize = buffer::INPUT;
/// Read size once a body proves to be large.
pub const BULK_READ: usize = 64 * 1024;

/// What waits to be written to one socket: small pieces in one flat buffer, large ones by reference,
/// in order.
#[derive(Debug, Default)]
pub struct OutBuf {
    flat: Vec<u8>,
    /// How much of `flat` has been written.
    written: usize,
    /// Large pieces and the length `flat` had when each was added.
    shared: VecDeque<(usize, Bytes)>,
    shared_len: usize,
}

impl OutBuf {
    /// The buffer that small pieces are appended to.
    pub fn flat(&mut self) -> &mut Vec<u8> {
        if self.flat.capacity() == 0 {
            self.flat = buffer::output();
        }
        &mut self.flat
    }

    /// Appends a piece taken off the front of `input`.
    pub fn take(&mut self, input: &mut BytesMut, length: usize) {
        if length < COPY_BELOW {
            let piece = input.get(..length).unwrap_or_default();
            self.flat().extend_from_slice(piece);
            input.advance(length);
        } else {
            self.push(input.split_to(length).freeze());
        }
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: Bytes) {
        if piece.len() < COPY_BELOW {
            self.flat().extend_from_slice(&piece);
        } else {
            self.shared_len += piece.len();
            self.shared.push_back((self.flat.len(), piece));
        }
    }

    /// Everything that waits behind the first `head` bytes, of which nothing has been written.
    pub fn without_head(mut self, head: usize) -> Self {
        self.written = head.min(self.flat.len());
        self
    }

    /// Appends all that waits in another.
    pub fn append(&mut self, other: Self) {
        let start = self.flat().len();
        self.flat.extend_from_slice(other.flat.get(other.written..).unwrap_or_default());
        self.shared_len += other.shared_len;
        // A piece stands behind what is unwritten, or at its very start.
        let pieces = other.shared.into_iter();
        self.shared.extend(pieces.map(|(at, piece)| (start + at.saturating_sub(other.written), piece)));
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.flat.len() - self.written + self.shared_len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what waits and gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Writes until nothing waits or the socket is full. Returns the bytes written by this call when
    /// everything is out.
    pub fn poll_flush(&mut self, stream: &Stream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.shared.is_empty() {
                stream.try_write(self.flat.get(self.written..).unwrap_or_default())
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let used = self.slices(&mut slices);
                stream.try_write_vectored(slices.get(..used).unwrap_or_default())
            };
            match written {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(stream.poll_write_ready(context))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut used = 0;
        let mut at = self.written;
        let mut add = |piece: &'a [u8]| {
            if !piece.is_empty() {
                if let Some(slice) = slices.get_mut(used) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
            }
        };
        for (before, piece) in self.shared.iter().take(MAX_SLICES / 2) {
            add(self.flat.get(at..*before).unwrap_or_default());
            add(piece);
            at = *before;
        }
        if self.shared.len() < MAX_SLICES / 2 {
            add(self.flat.get(at..).unwrap_or_default());
        }
        used
    }

    fn advance(&mut self, mut count: usize) {
        while let Some((before, piece)) = self.shared.front_mut() {
            let flat = (*before - self.written).min(count);
            self.written += flat;
            count -= flat;
            let shared = piece.len().min(count);
            piece.advance(shared);
            self.shared_len -= shared;
            count -= shared;
            if piece.is_empty() && self.written == *before {
                self.shared.pop_front();
            } else {
                break;
            }
        }
        self.written += count;
        debug_assert!(self.written <= self.flat.len(), "more written than was given");
        if self.is_empty() {
            buffer::put_back_output(&mut self.flat);
            self.written = 0;
        }
    }
}

/// Reads once into `input`, at most about `size` bytes. `Ok(0)` is the end of the stream. While there
/// is nothing to read, an empty `input` holds no memory.
pub fn poll_read(
    stream: &Stream,
    input: &mut BytesMut,
    size: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        match stream.poll_read_ready(context) {
            Poll::Ready(ready) => ready?,
            Poll::Pending => {
                buffer::put_back(input);
                return Poll::Pending;
            }
        }
        if input.capacity() == 0 {
            *input = buffer::input();
        }
        if input.capacity() - input.len() < size / 2 {
            input.reserve(size);
        }
        match stream.try_read_buf(input) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            other => return Poll::Ready(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(out: &mut OutBuf, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let used = out.slices(&mut slices);
            let mut taken = 0;
            for slice in &slices[..used] {
                let take = slice.len().min(step - taken);
                all.extend_from_slice(&slice[..take]);
                taken += take;
            }
            out.advance(taken);
        }
        all
    }

    #[test]
    fn pieces_leave_in_order_whatever_the_write_sizes() {
        for step in [1, 7, 4096, 100_000] {
            let mut out = OutBuf::default();
            let mut expected = Vec::new();
            for round in 0..20u8 {
                out.flat().extend_from_slice(&[round; 10]);
                expected.extend_from_slice(&[round; 10]);
                let large = vec![round; COPY_BELOW + usize::from(round)];
                expected.extend_from_slice(&large);
                out.push(Bytes::from(large));
            }
            assert_eq!(out.len(), expected.len());
            assert_eq!(drain(&mut out, step), expected, "step {step}");
        }
    }
}
