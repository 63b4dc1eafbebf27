//! A stream of an HTTP/2 connection to an upstream as a stream of bytes: what follows a CONNECT.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use super::body::{Outgoing, Piece};
use super::client::ClientStream;
use super::StreamError;
use crate::runtime::conduit::{self, Conduit};

/// Most bytes that one write hands over.
const WRITE: usize = 64 << 10;

/// Both directions of a stream whose response said that the tunnel is open. Trailers count as its end.
#[derive(Debug)]
pub struct TunnelStream {
    state: RefCell<State>,
    resets: Cell<bool>,
}

#[derive(Debug)]
struct State {
    out: Outgoing,
    stream: ClientStream,
    /// What came and was not read yet: one frame.
    held: Bytes,
    ended: bool,
    failed: Option<StreamError>,
    /// Our side was ended.
    closed: bool,
    /// What the last write could not hand over.
    wanted: usize,
}

impl TunnelStream {
    /// `stream`, whose request was sent with `out`.
    pub fn new(stream: ClientStream, out: Outgoing) -> Self {
        let (held, ended, failed) = (Bytes::new(), false, None);
        let state = State { out, stream, held, ended, failed, closed: false, wanted: 0 };
        Self { state: RefCell::new(state), resets: Cell::new(false) }
    }
}

impl State {
    /// What a reader is told that gets no bytes.
    fn nothing(&self) -> io::Result<usize> {
        match &self.failed {
            Some(error) => Err((*error).into()),
            None if self.ended => Ok(0),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn copy(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match conduit::copy(&self.held, buffer) {
            0 if !buffer.is_empty() => self.nothing(),
            count => Ok(count),
        }
    }
}

impl Conduit for TunnelStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        let count = state.copy(buffer)?;
        state.held.advance(count);
        Ok(count)
    }

    fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.state.borrow().copy(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if let Some(error) = &state.failed {
            return Err((*error).into());
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let wanted = bytes.len().min(WRITE);
        // What is handed over there is room for: nothing waits that nobody would send.
        let room = state.out.room(wanted);
        state.wanted = wanted - room;
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.out.send(Bytes::copy_from_slice(bytes.get(..room).unwrap_or_default()))?;
        Ok(room)
    }

    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.held.is_empty() && !state.ended && state.failed.is_none() {
            match state.stream.incoming.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Piece::Data(data))) => state.held = data,
                Poll::Ready(Ok(Piece::End(_))) => state.ended = true,
                Poll::Ready(Err(error)) => state.failed = Some(error),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn gather(&self, context: &mut Context<'_>) {
        self.state.borrow_mut().stream.incoming.gather(context);
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.closed || state.failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        let wanted = state.wanted.max(1);
        state.out.poll_room(wanted, context)
    }

    fn poll_failed(&self, context: &mut Context<'_>) -> Poll<()> {
        self.state.borrow_mut().out.poll_reset(context).map(drop)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.closed, true) {
            return Ok(());
        }
        state.out.finish(None);
        // Nothing waits before the end.
        match state.out.poll_flush(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    fn set_linger_zero(&self) {
        self.resets.set(true);
    }

    fn unsent(&self) -> usize {
        0
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.state.borrow().stream.connection().local()
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if self.resets.get() {
            self.state.get_mut().out.reset(h2::Reason::CANCEL);
        }
    }
}
