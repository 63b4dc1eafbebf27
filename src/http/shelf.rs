//! Where the pieces of a body wait to be sent: framed for an HTTP/1 connection, or as they are for an HTTP/2 stream.

use bytes::Bytes;

use super::fields::Fields;
use super::h1::write::{chunk_open, chunked_end};
use super::h2::Outgoing;
use super::io::OutBuf;

/// What takes the pieces of a body.
pub(super) trait Shelf {
    /// Bytes that wait.
    fn length(&self) -> usize;
    /// Takes a piece, framed as a chunk if `chunked`.
    fn put(&mut self, piece: Bytes, chunked: bool);
    /// Takes the end.
    fn put_end(&mut self, chunked: bool, trailers: Option<&Fields>);
}

impl Shelf for OutBuf {
    fn length(&self) -> usize {
        self.len()
    }

    fn put(&mut self, piece: Bytes, chunked: bool) {
        if chunked && !piece.is_empty() {
            chunk_open(self.flat(), piece.len());
            self.push(piece);
            self.flat().extend_from_slice(b"\r\n");
        } else {
            self.push(piece);
        }
    }

    fn put_end(&mut self, chunked: bool, trailers: Option<&Fields>) {
        if chunked {
            chunked_end(self.flat(), trailers);
        }
    }
}

impl Shelf for Outgoing {
    fn length(&self) -> usize {
        self.len()
    }

    fn put(&mut self, piece: Bytes, _chunked: bool) {
        self.push(piece);
    }

    fn put_end(&mut self, _chunked: bool, trailers: Option<&Fields>) {
        self.finish(trailers);
    }
}
