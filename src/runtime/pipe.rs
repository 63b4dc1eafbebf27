//! A pair of connected byte streams within one thread: what is written to one end is read from the other.
//!
//! Each direction holds a bounded number of bytes, and no memory while it holds none. An end that is dropped ends
//! its direction as closing a socket does: what it had written is still read, and it counts as broken off when it
//! leaves bytes unread or was told so ([`Conduit::set_linger_zero`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};

use super::conduit::{copy, Conduit};

/// One end.
#[derive(Debug)]
pub struct Pipe {
    outward: Rc<Way>,
    inward: Rc<Way>,
    resets: Cell<bool>,
}

/// One direction.
#[derive(Debug)]
struct Way {
    capacity: usize,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    held: BytesMut,
    /// The writer has ended it.
    ended: bool,
    /// An end has broken it off.
    broken: bool,
    /// Nobody will read it any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Who waits for it to be broken off.
    watcher: Option<Waker>,
}

/// Two ends; each direction holds at most `capacity` bytes, which is at least 1.
pub fn pair(capacity: usize) -> (Pipe, Pipe) {
    let way = || Rc::new(Way { capacity: capacity.max(1), state: RefCell::default() });
    let (there, back) = (way(), way());
    let far = Pipe { outward: back.clone(), inward: there.clone(), resets: Cell::new(false) };
    (Pipe { outward: there, inward: back, resets: Cell::new(false) }, far)
}

impl State {
    /// What a reader is told that gets no bytes.
    fn nothing(&self) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.ended {
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn break_off(&mut self) {
        self.held = BytesMut::new();
        self.broken = true;
    }

    fn wake_all(&mut self) {
        for waker in [self.reader.take(), self.writer.take(), self.watcher.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Notes who waits, without a new waker where the old one does.
fn park(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(context.waker()),
        None => *place = Some(context.waker().clone()),
    }
}

impl Conduit for Pipe {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.inward.state.borrow_mut();
        let count = copy(&state.held, buffer);
        if count == 0 {
            return if buffer.is_empty() { Ok(0) } else { state.nothing() };
        }
        state.held.advance(count);
        if state.held.is_empty() {
            state.held = BytesMut::new();
        }
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        Ok(count)
    }

    fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.inward.state.borrow();
        let count = copy(&state.held, buffer);
        if count == 0 {
            return if buffer.is_empty() { Ok(0) } else { state.nothing() };
        }
        Ok(count)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.outward.state.borrow_mut();
        if state.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if state.ended || state.deaf {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = self.outward.capacity.saturating_sub(state.held.len());
        let count = room.min(bytes.len());
        if count == 0 {
            return if bytes.is_empty() { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        state.held.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(count)
    }

    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.inward.state.borrow_mut();
        if !state.held.is_empty() || state.ended || state.broken {
            return Poll::Ready(Ok(()));
        }
        park(&mut state.reader, context);
        Poll::Pending
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.outward.state.borrow_mut();
        if state.held.len() < self.outward.capacity || state.ended || state.broken || state.deaf {
            return Poll::Ready(Ok(()));
        }
        park(&mut state.writer, context);
        Poll::Pending
    }

    fn poll_failed(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.inward.state.borrow_mut();
        if state.broken {
            return Poll::Ready(());
        }
        park(&mut state.watcher, context);
        Poll::Pending
    }

    fn shutdown_write(&self) -> io::Result<()> {
        let mut state = self.outward.state.borrow_mut();
        state.ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn set_linger_zero(&self) {
        self.resets.set(true);
    }

    fn unsent(&self) -> usize {
        self.outward.state.borrow().held.len()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut inward = self.inward.state.borrow_mut();
        let breaks = self.resets.get() || !inward.held.is_empty();
        inward.held = BytesMut::new();
        inward.deaf = true;
        inward.broken |= breaks;
        inward.wake_all();
        let mut outward = self.outward.state.borrow_mut();
        // What was written before an orderly end is still read, unless that is not wanted.
        if self.resets.get() || breaks && !outward.ended {
            outward.break_off();
        }
        outward.ended = true;
        outward.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(result: io::Result<usize>) -> io::ErrorKind {
        result.expect_err("an error").kind()
    }

    fn is_ready<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> bool {
        poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn bytes_pass_as_far_as_there_is_room() {
        let (one, other) = pair(4);
        let mut buffer = [0; 8];
        assert_eq!(kind(other.try_read(&mut buffer)), io::ErrorKind::WouldBlock);
        assert_eq!(one.try_write(b"abcdef").unwrap(), 4, "as many as it holds");
        assert_eq!((one.unsent(), kind(one.try_write(b"e"))), (4, io::ErrorKind::WouldBlock));
        assert!(!is_ready(|context| one.poll_write_ready(context)));
        assert_eq!(other.try_peek(&mut buffer[..2]).unwrap(), 2);
        assert_eq!(other.try_read(&mut buffer[..3]).unwrap(), 3);
        assert_eq!(&buffer[..3], b"abc");
        assert!(is_ready(|context| one.poll_write_ready(context)));
        assert_eq!(other.try_read(&mut buffer).unwrap(), 1);
        assert_eq!(other.inward.state.borrow().held.capacity(), 0, "an empty direction holds no memory");
    }

    #[test]
    fn each_direction_ends_on_its_own() {
        let (one, other) = pair(16);
        one.try_write(b"last").unwrap();
        one.shutdown_write().unwrap();
        assert_eq!(kind(one.try_write(b"more")), io::ErrorKind::BrokenPipe);
        let mut buffer = [0; 8];
        assert_eq!(other.try_read(&mut buffer).unwrap(), 4);
        assert_eq!(other.try_read(&mut buffer).unwrap(), 0);
        other.try_write(b"answer").unwrap();
        drop(other);
        assert_eq!(one.try_read(&mut buffer).unwrap(), 6);
        assert_eq!(one.try_read(&mut buffer).unwrap(), 0);
        assert!(!is_ready(|context| one.poll_failed(context)), "nothing was lost");
    }

    #[test]
    fn what_is_broken_off_is_told() {
        let mut buffer = [0; 8];
        let (one, other) = pair(16);
        other.try_write(b"lost").unwrap();
        other.set_linger_zero();
        drop(other);
        assert_eq!(kind(one.try_read(&mut buffer)), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(one.try_write(b"x")), io::ErrorKind::ConnectionReset);
        assert!(is_ready(|context| one.poll_failed(context)));

        let (one, other) = pair(16);
        one.try_write(b"never read").unwrap();
        drop(other);
        assert_eq!(kind(one.try_read(&mut buffer)), io::ErrorKind::ConnectionReset);

        let (one, other) = pair(16);
        drop(other);
        assert_eq!(one.try_read(&mut buffer).unwrap(), 0);
        assert_eq!(kind(one.try_write(b"x")), io::ErrorKind::BrokenPipe);
    }
}
