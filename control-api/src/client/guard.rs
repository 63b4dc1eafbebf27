//! Watches a stream's messages as they come: one that never ends ends the stream.
//!
//! In: the body of the response. Out: the same body, or an error where a message was begun and next to
//! nothing of it came for too long. Between messages any silence is fine.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{sleep, Sleep};

/// So many bytes within the time are enough: a large response over a slow link is taken.
const ENOUGH: usize = 64 << 10;
/// A flag and the length as 32 bits stand before each gRPC message.
const PREFIX: usize = 5;

/// A message came to a halt.
#[derive(Debug, thiserror::Error)]
#[error("a response came to a halt: {got} of its {of} bytes came, fewer than {ENOUGH} of them in {limit:?}")]
pub(super) struct Halted {
    got: usize,
    of: usize,
    limit: Duration,
}

/// Where in the sequence of messages the body is.
#[derive(Debug, Default)]
struct Position {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that came.
    known: usize,
    /// Bytes of the message that came; what it has in all is in the prefix.
    got: usize,
}

impl Position {
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.known < PREFIX {
                let taken = bytes.len().min(PREFIX - self.known);
                self.prefix[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
                self.known += taken;
                bytes = &bytes[taken..];
            } else {
                let taken = bytes.len().min(self.of() - self.got);
                self.got += taken;
                bytes = &bytes[taken..];
            }
            if self.known == PREFIX && self.got >= self.of() {
                *self = Self::default();
            }
        }
    }

    fn of(&self) -> usize {
        let [_, length @ ..] = self.prefix;
        u32::from_be_bytes(length) as usize
    }

    fn within(&self) -> bool {
        self.known > 0
    }
}

/// A response's body that is watched.
pub(super) struct Guarded<B> {
    inner: B,
    limit: Option<Duration>,
    position: Position,
    /// Runs while a message is awaited; with what had come of it when it was set.
    timer: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<B> Guarded<B> {
    pub fn new(inner: B, limit: Option<Duration>) -> Self {
        Self { inner, limit, position: Position::default(), timer: None }
    }
}

impl<B> Body for Guarded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                let before = this.position.got;
                this.position.advance(data);
                let next = this.position.got < before || !this.position.within();
                if next || this.timer.as_ref().is_some_and(|(_, from)| this.position.got - from >= ENOUGH) {
                    this.timer = None;
                }
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(limit) = this.limit.filter(|_| this.position.within()) else { return Poll::Pending };
        let got = this.position.got;
        let (timer, _) = this.timer.get_or_insert_with(|| (Box::pin(sleep(limit)), got));
        match timer.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let of = this.position.of();
                Poll::Ready(Some(Err(Box::new(Halted { got, of, limit }))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct Pieces(mpsc::UnboundedReceiver<Vec<u8>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece.into()))))
        }
    }

    fn message(length: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend((length as u32).to_be_bytes());
        message.resize(PREFIX + length, 7);
        message
    }

    async fn next(body: &mut Guarded<Pieces>) -> Result<usize, String> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        let frame = frame.expect("the body goes on").map_err(|error| error.to_string())?;
        Ok(frame.data_ref().map_or(0, Bytes::len))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_drips_ends_the_stream_and_silence_between_messages_does_not() {
        let limit = Duration::from_secs(60);
        let (pieces, body) = mpsc::unbounded_channel();
        let mut body = Guarded::new(Pieces(body), Some(limit));
        let whole = message(100);
        pieces.send(whole.clone()).expect("open");
        assert_eq!(next(&mut body).await, Ok(105));
        let silence = tokio::time::timeout(limit * 100, next(&mut body)).await;
        assert!(silence.is_err(), "silence between messages: {silence:?}");
        // Two messages across odd boundaries, then a third byte by byte.
        let two: Vec<u8> = [message(10), message(0), message(3)].concat();
        for piece in two.chunks(4) {
            pieces.send(piece.to_vec()).expect("open");
            assert_eq!(next(&mut body).await, Ok(piece.len()));
        }
        assert!(!body.position.within());
        let drip = async {
            for byte in message(1000) {
                pieces.send(vec![byte]).expect("open");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let read = async {
            loop {
                if let Err(error) = next(&mut body).await {
                    return error;
                }
            }
        };
        let error = tokio::select! { () = drip => panic!("the drip was taken"), error = read => error };
        assert!(
            error.starts_with("a response came to a halt: 5") && error.contains("of its 1000 bytes"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_over_a_slow_link_is_taken() {
        let (pieces, body) = mpsc::unbounded_channel();
        let mut body = Guarded::new(Pieces(body), Some(Duration::from_secs(60)));
        let whole = message(ENOUGH * 8);
        let send = async {
            for piece in whole.chunks(ENOUGH / 2) {
                pieces.send(piece.to_vec()).expect("open");
                tokio::time::sleep(Duration::from_secs(25)).await;
            }
        };
        let read = async {
            let mut got = 0;
            while got < whole.len() {
                got += next(&mut body).await.expect("slow, but not halted");
            }
        };
        tokio::join!(send, read);
        assert!(!body.position.within());
    }
}
