//! Bytes on their way to a socket: small pieces are copied together, large ones shared, both written with one call.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::Bytes;

/// Pieces up to this are copied: a copy is cheaper than one more entry of the vector that is written.
const COPIED: usize = 16 * 1024;
/// Entries of one vectored write.
const SLICES: usize = 64;

/// What waits to be written, in order.
#[derive(Default)]
pub struct Out {
    copied: Vec<u8>,
    /// What of `copied` is written.
    written: usize,
    /// Pieces after `copied`.
    shared: VecDeque<Bytes>,
    /// Bytes ever appended.
    total: u64,
}

impl Out {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.written == self.copied.len() && self.shared.is_empty()
    }

    /// Bytes appended since this was last asked.
    pub fn take_total(&mut self) -> u64 {
        std::mem::take(&mut self.total)
    }

    /// Appends a copy.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.shared.is_empty() {
            self.copied.extend_from_slice(bytes);
        } else {
            self.shared.push_back(Bytes::copy_from_slice(bytes));
        }
    }

    /// Appends without a copy if that pays.
    pub fn push_shared(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPIED && self.shared.is_empty() {
            self.push(bytes);
        } else {
            self.total += bytes.len() as u64;
            self.shared.push_back(bytes.clone());
        }
    }

    /// Writes until everything is written (`true`) or the writer takes no more.
    ///
    /// # Errors
    /// Those of the writer but for `WouldBlock`; a writer that takes nothing is `WriteZero`.
    pub fn write_to(&mut self, writer: &mut impl Write) -> io::Result<bool> {
        while !self.is_empty() {
            let rest = self.copied.get(self.written..).unwrap_or_default();
            let result = if self.shared.is_empty() {
                writer.write(rest)
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let pieces = std::iter::once(rest).chain(self.shared.iter().map(|piece| &**piece));
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(pieces.filter(|piece| !piece.is_empty())) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
                writer.write_vectored(slices.get(..used).unwrap_or_default())
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, mut count: usize) {
        let copied = count.min(self.copied.len() - self.written);
        self.written += copied;
        count -= copied;
        if self.written == self.copied.len() {
            self.copied.clear();
            self.written = 0;
        }
        while let Some(piece) = self.shared.front_mut() {
            let part = count.min(piece.len());
            count -= part;
            if part < piece.len() {
                let _ = piece.split_to(part);
                return;
            }
            self.shared.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes 7 bytes at a time and blocks every third time.
    struct Slow(Vec<u8>, u32);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(7);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn pieces_leave_in_order_whatever_the_writer_takes() {
        let (mut out, mut slow) = (Out::default(), Slow(Vec::new(), 0));
        out.push(b"hello ");
        out.push_shared(&Bytes::from(vec![b'x'; COPIED + 1]));
        out.push(b" and ");
        out.push_shared(&Bytes::from_static(b"goodbye"));
        while !out.write_to(&mut slow).unwrap() {}
        assert_eq!(slow.0.len() as u64, out.take_total());
        assert!(slow.0.starts_with(b"hello xxx") && slow.0.ends_with(b"x and goodbye"));
        assert!(out.is_empty());
    }
}
