//! Bodies of HTTP/2 streams: what comes, and what waits to go.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{ready, Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::guard::Account;
use super::heads::{self};
use super::StreamError;
use crate::http::fields::Fields;

/// What comes next in a body.
#[derive(Debug)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// The body is complete, with trailers if there were any.
    End(Option<Fields>),
}

/// A body that the peer sends.
#[derive(Debug, Default)]
pub struct Incoming {
    stream: Option<RecvStream>,
    /// The peer ended it before its time.
    failed: bool,
    /// What was gathered while nobody could take it.
    gathered: Option<Box<Gathered>>,
}

/// Pieces in order, small ones joined.
#[derive(Debug, Default)]
struct Gathered {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Gathered {
    fn push(&mut self, piece: Bytes) {
        if piece.len() < JOINED_BELOW {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= JOINED {
                self.close_tail();
            }
            return;
        }
        self.close_tail();
        self.pieces.push_back(piece);
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.close_tail();
        }
        self.pieces.pop_front()
    }
}

impl Incoming {
    /// The body behind a head.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream: Some(stream), failed: false, gathered: None }
    }

    /// Whether the peer has sent all of it and all of it was taken.
    pub fn is_end(&self) -> bool {
        self.gathered.is_none() && self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    /// Whether nothing more will come, for whatever reason.
    pub fn is_over(&self) -> bool {
        self.failed || self.is_end()
    }

    /// Takes what has come out of the crate's hands, while there is no room to pass it on: the crate keeps each frame
    /// for itself, at a cost that is held against the whole connection, and ends that when it has become too much. The
    /// peer is not told that it may send more, so that no more is kept than the stream's window. Asks to be woken when
    /// more comes.
    pub fn gather(&mut self, context: &mut Context<'_>) {
        let Some(stream) = &mut self.stream else { return };
        // Ends and failures are said again to who takes the rest.
        while !stream.is_end_stream() {
            let Poll::Ready(Some(Ok(piece))) = stream.poll_data(context) else { return };
            if !piece.is_empty() {
                self.gathered.get_or_insert_default().push(piece);
            }
        }
    }

    /// The next piece. The peer may send as much again as soon as it is taken: whoever takes it bounds
    /// what it keeps.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece, StreamError>> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        if let Some(gathered) = &mut self.gathered {
            let piece = gathered.pop();
            if gathered.pieces.is_empty() && gathered.tail.is_empty() {
                self.gathered = None;
            }
            if let Some(piece) = piece {
                let _ = stream.flow_control().release_capacity(piece.len());
                return Poll::Ready(Ok(Piece::Data(piece)));
            }
        }
        loop {
            if stream.is_end_stream() {
                return Poll::Ready(Ok(Piece::End(None)));
            }
            match ready!(stream.poll_data(context)) {
                Some(Ok(data)) => {
                    let length = data.len();
                    if length == 0 {
                        continue;
                    }
                    // Fails only for more than was received.
                    let _ = stream.flow_control().release_capacity(length);
                    return Poll::Ready(Ok(Piece::Data(data)));
                }
                Some(Err(error)) => {
                    self.failed = true;
                    return Poll::Ready(Err(StreamError::of(&error)));
                }
                None => {
                    let trailers = ready!(stream.poll_trailers(context));
                    return Poll::Ready(match trailers {
                        Ok(trailers) => Ok(Piece::End(trailers.as_ref().map(heads::fields_of))),
                        Err(error) => Err(StreamError::of(&error)),
                    });
                }
            }
        }
    }
}

#[derive(Debug)]
enum Ending {
    /// More may come.
    Open,
    /// What waits is the rest, with these trailers.
    Last(Option<HeaderMap>),
    /// The end was sent.
    Sent,
}

/// Pieces below this size are joined where several wait.
const JOINED_BELOW: usize = 1024;
/// They become pieces of about this size.
const JOINED: usize = 16 * 1024;
/// So much of a body is handed over without asking for room first: most bodies are smaller, and asking takes two
/// more locks. It waits in the crate, where there is no room for it.
const UNASKED: usize = 16 * 1024;

/// A body on its way to the peer: pieces that wait for a stream, or for room in its window.
#[derive(Debug)]
pub struct Outgoing {
    stream: Option<SendStream<Bytes>>,
    waiting: VecDeque<Bytes>,
    /// Small pieces behind those.
    tail: BytesMut,
    length: usize,
    /// What may still go without asking.
    unasked: usize,
    ending: Ending,
    account: Option<Rc<Account>>,
    dead: bool,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            stream: None,
            waiting: VecDeque::new(),
            tail: BytesMut::new(),
            length: 0,
            unasked: UNASKED,
            ending: Ending::Open,
            account: None,
            dead: false,
        }
    }
}

impl Outgoing {
    /// The stream is there. `ended` says that its head had the end of the stream on it.
    pub fn open(&mut self, stream: SendStream<Bytes>, ended: bool, account: Rc<Account>) {
        self.stream = Some(stream);
        self.account = Some(account);
        if ended {
            self.ending = Ending::Sent;
        }
    }

    /// There will be no stream: what waits and what comes is for nobody.
    pub fn fail(&mut self) {
        self.clear();
        self.dead = true;
    }

    /// Adds a piece. Small ones that wait behind another become one frame: a frame costs more than copying them.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() || self.dead {
            return;
        }
        let behind = self.length > 0;
        self.length += piece.len();
        if behind && piece.len() < JOINED_BELOW {
            self.tail.extend_from_slice(&piece);
        } else {
            self.close_tail();
            self.waiting.push_back(piece);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.waiting.push_back(self.tail.split().freeze());
        }
    }

    /// No piece will follow; `trailers` end the body.
    pub fn finish(&mut self, trailers: Option<&Fields>) {
        if matches!(self.ending, Ending::Open) {
            let trailers = trailers.map(heads::map_of).filter(|trailers| !trailers.is_empty());
            self.ending = Ending::Last(trailers);
        }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing waits, not even the end.
    pub fn is_empty(&self) -> bool {
        self.length == 0 && !matches!(self.ending, Ending::Last(_))
    }

    /// Whether nothing at all is still to be said: a head can have the end of the stream on it.
    pub fn is_only_end(&self) -> bool {
        self.length == 0 && matches!(self.ending, Ending::Last(None) | Ending::Sent)
    }

    /// How many of `wanted` bytes can be handed over now; there will be room for all of them some time.
    pub fn room(&mut self, wanted: usize) -> usize {
        let Some(stream) = &mut self.stream else { return 0 };
        stream.reserve_capacity(wanted);
        stream.capacity().min(wanted)
    }

    /// Ready when some of `wanted` bytes can be handed over.
    pub fn poll_room(&mut self, wanted: usize, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        stream.reserve_capacity(wanted);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(StreamError::of(&error).into())),
                None => return Poll::Ready(Err(StreamError::Closed.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Hands over a piece that there is [`Outgoing::room`] for.
    ///
    /// # Errors
    /// The stream is over.
    pub fn send(&mut self, piece: Bytes) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(StreamError::Closed.into()) };
        if let Some(account) = &self.account {
            account.data_sent.set(account.data_sent.get() + 1);
        }
        Ok(stream.send_data(piece, false).map_err(|error| StreamError::of(&error))?)
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.tail.clear();
        self.length = 0;
        self.ending = Ending::Sent;
    }

    /// Ends the stream before its time.
    pub fn reset(&mut self, reason: h2::Reason) {
        if let Some(stream) = &mut self.stream {
            stream.send_reset(reason);
        }
    }

    /// Ready when the peer has ended the stream before its time; false when it was the connection that ended.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(context).map(|reset| reset.is_ok()),
            None => Poll::Pending,
        }
    }

    /// Hands over what waits, as far as the peer's window has room. Without a stream, waits.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.dead {
            return Poll::Ready(Err(StreamError::Closed.into()));
        }
        if self.stream.is_some() {
            self.close_tail();
        }
        let Self { stream, waiting, length, unasked, ending, account, .. } = self;
        let Some(stream) = stream else {
            return if *length == 0 { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        while let Some(front) = waiting.front_mut() {
            let piece = if front.len() <= *unasked {
                *unasked -= front.len();
                waiting.pop_front().unwrap_or_default()
            } else {
                *unasked = 0;
                stream.reserve_capacity(*length);
                let mut room = stream.capacity();
                if room == 0 {
                    room = match ready!(stream.poll_capacity(context)) {
                        Some(Ok(room)) => room,
                        Some(Err(error)) => return Poll::Ready(Err(StreamError::of(&error).into())),
                        None => return Poll::Ready(Err(StreamError::Closed.into())),
                    };
                    if room == 0 {
                        continue;
                    }
                }
                let piece = front.split_to(room.min(front.len()));
                if front.is_empty() {
                    waiting.pop_front();
                }
                piece
            };
            *length -= piece.len();
            let last = waiting.is_empty() && matches!(ending, Ending::Last(None));
            if let Some(account) = account {
                account.data_sent.set(account.data_sent.get() + 1);
            }
            stream.send_data(piece, last).map_err(|error| StreamError::of(&error))?;
            if last {
                *ending = Ending::Sent;
            }
        }
        if let Ending::Last(trailers) = ending {
            let sent = match trailers.take() {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            };
            *ending = Ending::Sent;
            sent.map_err(|error| StreamError::of(&error))?;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_behind_another_are_joined_in_order() {
        let mut out = Outgoing::default();
        let large = vec![b'l'; JOINED_BELOW];
        for piece in [&b"a"[..], b"b", b"c", &large, b"d", b"e"] {
            out.push(Bytes::copy_from_slice(piece));
        }
        assert_eq!(out.len(), JOINED_BELOW + 5);
        out.close_tail();
        let pieces: Vec<&[u8]> = out.waiting.iter().map(|piece| &piece[..]).collect();
        assert_eq!(pieces, [&b"a"[..], b"bc", &large, b"de"]);
        out.clear();
        assert_eq!((out.len(), out.is_only_end()), (0, true));
    }
}
