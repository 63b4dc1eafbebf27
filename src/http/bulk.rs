//! A large body of known length, from socket to socket inside the kernel.

use std::io;
use std::task::{Context, Poll};

use tokio::io::Interest;

use crate::runtime::stream::Stream;
use crate::tcp::splice::{Lent, Pipes};

/// Bodies with less than this many bytes to come are copied: below it, the pipe costs more than the
/// copy.
pub const WORTH: u64 = 128 * 1024;

/// How far a splice came.
#[derive(Debug)]
pub enum Moved {
    /// All of it.
    Done,
    /// These sockets, or this moment, are not for splicing: go on with copies.
    Copy,
    /// The source failed.
    Source(io::Error),
    /// The target failed.
    Sink(io::Error),
}

/// A splice in progress. Holds a pipe only while bytes are in it.
#[derive(Debug)]
pub struct Bulk {
    /// Most bytes in the pipe.
    limit: u64,
    pipe: Option<Lent>,
    /// The source has yielded bytes since it was last waited for.
    fresh: bool,
}

impl Bulk {
    /// A splice that holds at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit as u64, pipe: None, fresh: false }
    }

    /// Moves up to `left` bytes and says with each step how many were received. Ready when all of them
    /// are written.
    pub fn poll(
        &mut self,
        source: &Stream,
        sink: &Stream,
        mut left: u64,
        mut received: impl FnMut(u64),
        context: &mut Context<'_>,
    ) -> Poll<Moved> {
        if !source.is_plain() || !sink.is_plain() {
            return Poll::Ready(Moved::Copy);
        }
        loop {
            while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
                match sink.poll_write_ready(context) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Moved::Sink(error)),
                    Poll::Pending => return Poll::Pending,
                }
                match sink.try_io(Interest::WRITABLE, || pipe.drain(sink.descriptor()?)) {
                    // A slow reader is no idle one.
                    Ok(_) => received(0),
                    Err(error) if would_block(&error) => {}
                    Err(error) => return Poll::Ready(Moved::Sink(error)),
                }
            }
            if left == 0 {
                self.pipe = None;
                return Poll::Ready(Moved::Done);
            }
            match source.poll_read_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Moved::Source(error)),
                Poll::Pending => {
                    self.pipe = None;
                    self.fresh = false;
                    return Poll::Pending;
                }
            }
            if self.pipe.is_none() {
                self.pipe = Pipes::of_thread().lend();
            }
            let Some(pipe) = &mut self.pipe else { return Poll::Ready(Moved::Copy) };
            match source.try_io(Interest::READABLE, || pipe.fill(source.descriptor()?, left.min(self.limit)))
            {
                // The end of the stream, or TCP's urgent data, which stops splices: a read tells.
                Ok(0) => return self.copy(),
                Ok(count) => {
                    self.fresh = true;
                    left = left.saturating_sub(count as u64);
                    received(count as u64);
                }
                Err(error) if would_block(&error) => {
                    if !self.fresh && source.try_peek(&mut [0]).is_ok() {
                        return self.copy();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return self.copy(),
                Err(error) => return Poll::Ready(Moved::Source(error)),
            }
        }
    }

    /// The pipe is empty here.
    fn copy(&mut self) -> Poll<Moved> {
        self.pipe = None;
        Poll::Ready(Moved::Copy)
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http::h1::Framing;
    use crate::http::io::OutBuf;
    use crate::http::pump::{Pump, PumpError, Sink, Source};

    async fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (far, Stream::Tcp(listener.accept().await.unwrap().0))
    }

    /// Pumps a body of `announced` bytes of which `sent` come, the first 1,000 with the head.
    async fn pump(announced: usize, sent: usize) -> (Result<(), PumpError>, bool, usize) {
        let ((mut origin, source), (mut client, sink)) = (pair().await, pair().await);
        let mut body = vec![0u8; sent];
        fastrand::Rng::with_seed(7).fill(&mut body);
        let mut input = BytesMut::from(&body[..1000]);
        let rest = body[1000..].to_vec();
        let sending = tokio::spawn(async move {
            origin.write_all(&rest).await.unwrap();
            // Not part of this body.
            if sent == announced {
                origin.write_all(b"next").await.unwrap();
            }
        });
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut out = OutBuf::default();
        out.flat().extend_from_slice(b"head");
        let mut pump = Pump::new(Framing::Length(announced as u64), false, false, 0).unseen();
        let result = poll_fn(|cx| {
            pump.poll(Source::Wire(&source, &mut input), Sink::Wire(&sink, &mut out), |_| {}, cx)
        })
        .await;
        sending.await.unwrap();
        let mut next = [0; 8];
        let left = source.try_read(&mut next).unwrap_or(0);
        drop(sink);
        let got = reading.await.unwrap();
        let same = got.strip_prefix(b"head").is_some_and(|got| got == body);
        assert_eq!(Pipes::of_thread().in_use(), 0, "the pipe went back");
        (result, same, left)
    }

    #[tokio::test]
    async fn a_large_body_arrives_whole_and_no_byte_more_is_taken() {
        let (result, same, left) = pump(5_000_000, 5_000_000).await;
        assert!(result.is_ok() && same, "{result:?}");
        assert!(left <= 4, "{left} bytes of what follows");
    }

    #[tokio::test]
    async fn a_body_cut_short_is_passed_on_as_far_as_it_came_and_told() {
        let (result, same, _) = pump(5_000_000, 3_000_000).await;
        assert!(matches!(result, Err(PumpError::SourceClosed)), "{result:?}");
        assert!(same);
    }
}
