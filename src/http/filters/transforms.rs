//! What filters do to a body on its way: one after the other, piece by piece.

use bytes::Bytes;
use smallvec::SmallVec;

use super::compressor::Coder;
use super::decompressor::Reader;
use super::framing::Messages;
use super::grpc_web;
use super::header_mutation::TrailerChanges;
use crate::http::fields::Fields;

/// What one filter does to a body.
#[derive(Debug)]
pub enum Transform {
    /// gRPC's framing changes.
    Grpc(grpc_web::Transform),
    /// It is coded.
    Compress(Box<Coder>),
    /// It is decoded.
    Decompress(Box<Reader>),
    /// Its trailers change.
    Trailers(Box<TrailerChanges>),
}

impl From<grpc_web::Transform> for Transform {
    fn from(transform: grpc_web::Transform) -> Self {
        Transform::Grpc(transform)
    }
}

impl Transform {
    /// The next piece. `None` where it is not what it should be.
    fn piece(&mut self, piece: Bytes) -> Option<Bytes> {
        match self {
            Transform::Grpc(transform) => transform.piece(&piece),
            Transform::Compress(coder) => coder.piece(&piece),
            Transform::Decompress(reader) => reader.piece(&piece),
            Transform::Trailers(_) => Some(piece),
        }
    }

    /// What is held of pieces that have come: nothing follows for now.
    fn pause(&mut self) -> Option<Bytes> {
        match self {
            Transform::Compress(coder) => coder.pause(),
            Transform::Grpc(_) | Transform::Decompress(_) | Transform::Trailers(_) => Some(Bytes::new()),
        }
    }

    /// What the end becomes: the last piece, and the trailers that are left.
    fn end(&mut self, trailers: Option<Fields>) -> Option<(Bytes, Option<Fields>)> {
        match self {
            Transform::Grpc(transform) => transform.end(trailers),
            Transform::Compress(coder) => Some((coder.end()?, trailers)),
            Transform::Decompress(reader) => Some((Bytes::new(), Some(reader.end(trailers)))),
            Transform::Trailers(changes) => {
                let mut trailers = trailers;
                if let Some(trailers) = &mut trailers {
                    changes.apply(trailers);
                }
                Some((Bytes::new(), trailers))
            }
        }
    }
}

/// What all filters do to one body.
#[derive(Debug, Default)]
pub struct Transforms {
    list: SmallVec<[Transform; 1]>,
    messages: Option<Messages>,
    /// Messages are counted before they change.
    count_first: bool,
    /// Bytes that have gone on.
    pub passed: u64,
}

impl Transforms {
    /// One more, after those that are there.
    pub fn add(&mut self, transform: Transform) {
        self.list.push(transform);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// gRPC's messages are counted: as they come if `first`, else as they go.
    pub fn count(&mut self, messages: Messages, first: bool) {
        self.messages = Some(messages);
        self.count_first = first;
    }

    /// Whether gRPC's messages are counted.
    pub fn counts(&self) -> bool {
        self.messages.is_some()
    }

    /// The last of them.
    pub fn into_last(mut self) -> Option<Transform> {
        self.list.pop()
    }

    /// The next piece. `None` where it is not what it should be.
    pub fn piece(&mut self, piece: Bytes) -> Option<Bytes> {
        self.note(&piece, true);
        let mut piece = piece;
        for transform in &mut self.list {
            if piece.is_empty() {
                break;
            }
            piece = transform.piece(piece)?;
        }
        self.pass(piece)
    }

    /// What is held of pieces that have come.
    pub fn pause(&mut self) -> Option<Bytes> {
        let mut held = Bytes::new();
        for transform in &mut self.list {
            let next = if held.is_empty() { held } else { transform.piece(held)? };
            held = joined(next, transform.pause()?);
        }
        self.pass(held)
    }

    /// What the end becomes.
    pub fn end(&mut self, trailers: Option<Fields>) -> Option<(Bytes, Option<Fields>)> {
        let (mut held, mut trailers) = (Bytes::new(), trailers);
        for transform in &mut self.list {
            let next = if held.is_empty() { held } else { transform.piece(held)? };
            let (last, left) = transform.end(trailers)?;
            (held, trailers) = (joined(next, last), left);
        }
        Some((self.pass(held)?, trailers))
    }

    fn pass(&mut self, piece: Bytes) -> Option<Bytes> {
        self.note(&piece, false);
        self.passed += piece.len() as u64;
        Some(piece)
    }

    fn note(&mut self, piece: &[u8], first: bool) {
        if let Some(messages) = self.messages.as_mut().filter(|_| self.count_first == first) {
            messages.feed(piece);
        }
    }
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => [first, second].concat().into(),
    }
}
