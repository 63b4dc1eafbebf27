//! The byte streams that workers read and write, and the sockets they are accepted from.
//!
//! Everything works on `&self`: a [`Stream`] belongs to one task on one current-thread runtime, so
//! reading and writing it at the same time needs no lock and no splitting. The `try_*` functions
//! never wait; `poll_*_ready` says when to try again.
//!
//! Readiness is edge-triggered. A read that leaves room in its buffer, or a write that the kernel
//! took only part of, has used the edge up: it is cleared right away, which saves the call that
//! would only have said "would block". This relies on the I/O driver running on the same thread
//! as the task, so that no event can arrive between the call and the clearing.
//!
//! Reads and writes go straight to the kernel: libc's wrappers are cancellation points, which costs
//! every call of a process with threads.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use bytes::BufMut;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, SockRef};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::conduit::Conduit;
use super::socket;
use super::tls_stream::TlsStream;
use crate::config::cluster::SocketTuning;

/// A connected byte stream.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix domain, stream type.
    Unix(UnixStream),
    /// TLS over one of the others.
    Tls(Box<TlsStream>),
    /// No socket.
    Virtual(Box<dyn Conduit>),
}

macro_rules! each {
    ($self:expr, $stream:ident => $body:expr, $tls:ident => $other:expr) => {
        match $self {
            Stream::Tcp($stream) => $body,
            Stream::Unix($stream) => $body,
            Stream::Tls($tls) => $other,
            Stream::Virtual($tls) => $other,
        }
    };
}

/// The descriptor of a socket; what is none returns what `$other` says.
macro_rules! socket_or {
    ($self:expr, $other:ident => $instead:expr) => {
        each!($self, stream => stream.as_fd(), $other => return $instead)
    };
}

impl Stream {
    /// A connected, non-blocking socket from elsewhere, on the current runtime.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        Ok(match SockRef::from(&socket).domain()? {
            Domain::UNIX => UnixStream::from_std(socket.into())?.into(),
            _ => TcpStream::from_std(socket.into())?.into(),
        })
    }

    /// Reads what is there into `buffer`. `Ok(0)` is the peer's end of stream (or an empty
    /// `buffer`); [`io::ErrorKind::WouldBlock`] when nothing is there.
    #[inline]
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let socket = socket_or!(self, other => other.try_read(buffer));
        let room = buffer.len();
        let count = self
            .try_io(Interest::READABLE, || Ok(rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT)?.0))?;
        if 0 < count && count < room {
            self.used_up(Interest::READABLE);
        }
        Ok(count)
    }

    /// As [`Stream::try_read`], into the spare room of `buffer`: its next chunk, so reserve first.
    #[inline]
    pub fn try_read_buf<B: BufMut>(&self, buffer: &mut B) -> io::Result<usize> {
        let own = match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tls(tls) => return tls.try_read_buf(buffer),
            Stream::Virtual(other) => return read_into(other.as_ref(), buffer),
        };
        let room = buffer.chunk_mut().len();
        let count = self.try_io(Interest::READABLE, || socket::receive(own, buffer))?;
        if 0 < count && count < room {
            self.used_up(Interest::READABLE);
        }
        Ok(count)
    }

    /// Writes what the kernel takes of `bytes`.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket = socket_or!(self, other => other.try_write(bytes));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let count = self.try_io(Interest::WRITABLE, || Ok(rustix::net::send(socket, bytes, flags)?))?;
        if 0 < count && count < bytes.len() {
            self.used_up(Interest::WRITABLE);
        }
        Ok(count)
    }

    /// Writes what the kernel takes of `slices`, at most 1024 of them.
    #[inline]
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = match self {
            Stream::Tcp(stream) => stream.try_write_vectored(slices),
            Stream::Unix(stream) => stream.try_write_vectored(slices),
            Stream::Tls(tls) => return tls.try_write_vectored(slices),
            Stream::Virtual(other) => return write_each(other.as_ref(), slices),
        }?;
        if count > 0 && slices.len() <= MAX_SLICES && count < slices.iter().map(|s| s.len()).sum() {
            self.used_up(Interest::WRITABLE);
        }
        Ok(count)
    }

    /// Copies what is there into `buffer` without consuming it. Looks at the socket each time,
    /// whatever the readiness says, and leaves the readiness alone.
    pub fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::peek(socket_or!(self, other => other.try_peek(buffer)), buffer)
    }

    /// Whether an idle connection can still be used: nothing to read, no end of stream, no error.
    pub fn is_quiet(&self) -> bool {
        matches!(self.try_peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Ready when a read may make progress, end of stream and errors included.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read_ready(cx), tls => tls.poll_read_ready(cx))
    }

    /// Ready when there is something to read: bytes, an end or an error, and not messages of TLS's own, nor a readiness that
    /// nothing is behind. Consumes nothing.
    pub fn poll_spoken(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            // What finds nothing takes the readiness away, so that the next is waited for.
            let found = match self.is_plain() {
                true => self.try_io(Interest::READABLE, || self.try_peek(&mut [0])),
                false => self.try_peek(&mut [0]),
            };
            if !matches!(found, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Poll::Ready(());
            }
        }
    }

    /// Nobody reads it for now: what carries it does not keep what has come, where others are carried that must not
    /// suffer for that. Asks to be woken when more comes.
    pub fn gather(&self, cx: &mut Context<'_>) {
        if let Stream::Virtual(other) = self {
            other.gather(cx);
        }
    }

    /// Ready when a write may make progress, errors included.
    #[inline]
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_write_ready(cx), tls => tls.poll_write_ready(cx))
    }

    /// Waits until a read may make progress. Only one task may wait to read.
    #[inline]
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    /// Waits until a write may make progress. Only one task may wait to write.
    #[inline]
    pub async fn writable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_write_ready(cx)).await
    }

    /// Waits until the socket has failed, as by a reset from the peer. For streams that are read to
    /// their end already and have nothing to write.
    pub async fn failed(&self) -> io::Result<()> {
        match self.socket() {
            Stream::Tcp(stream) => stream.ready(Interest::ERROR).await.map(drop),
            Stream::Unix(stream) => stream.ready(Interest::ERROR).await.map(drop),
            Stream::Virtual(other) => {
                poll_fn(|cx| other.poll_failed(cx)).await;
                Ok(())
            }
            Stream::Tls(_) => Err(unsupported()),
        }
    }

    /// Reads once into `buffer`, waiting until something is there.
    pub async fn read_buf<B: BufMut>(&self, buffer: &mut B) -> io::Result<usize> {
        poll_fn(|cx| loop {
            ready!(self.poll_read_ready(cx))?;
            match self.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        })
        .await
    }

    /// Writes all of `bytes`, waiting as often as it takes.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.writable().await?;
            match self.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs `operation` if the readiness for `interest` is set, and clears it when `operation`
    /// says [`io::ErrorKind::WouldBlock`]. Nobody but TLS itself may touch the socket below it: there this is
    /// [`io::ErrorKind::InvalidInput`].
    #[inline]
    pub fn try_io<R>(&self, interest: Interest, operation: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        each!(self, stream => stream.try_io(interest, operation), _tls => Err(unsupported()))
    }

    /// Sends the end of our side (FIN), leaving the other direction open.
    pub fn shutdown_write(&self) -> io::Result<()> {
        each!(self, stream => SockRef::from(stream).shutdown(Shutdown::Write), tls => tls.shutdown_write())
    }

    /// Makes closing send a reset (RST) and throw away what is unsent. No effect on Unix sockets.
    pub fn set_linger_zero(&self) {
        match self {
            // Fails only on a socket that is already dead.
            Stream::Tcp(stream) => drop(SockRef::from(stream).set_linger(Some(Duration::ZERO))),
            Stream::Unix(_) => {}
            Stream::Tls(tls) => tls.set_linger_zero(),
            Stream::Virtual(other) => other.set_linger_zero(),
        }
    }

    /// Bytes written that the peer's kernel has not acknowledged yet.
    pub fn unsent(&self) -> usize {
        socket::unsent(socket_or!(self, other => other.unsent()))
    }

    /// The error pending on the socket, which is thereby taken from it.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        each!(self.socket(), stream => stream.take_error(), _tls => Ok(None))
    }

    /// Our address; `None` for Unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok().map(socket::unmapped),
            Stream::Unix(_) => None,
            Stream::Tls(tls) => tls.socket().local_addr(),
            Stream::Virtual(other) => other.local_addr(),
        }
    }

    /// The peer's address; `None` for Unix sockets and peers that are gone.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().ok().map(socket::unmapped),
            Stream::Unix(_) => None,
            Stream::Tls(tls) => tls.socket().peer_addr(),
            Stream::Virtual(other) => other.peer_addr(),
        }
    }

    /// Where the client meant to go before a redirect rule brought it here.
    pub fn original_dst(&self) -> io::Result<SocketAddr> {
        match self {
            Stream::Tcp(stream) => socket::original_dst(stream.as_fd(), stream.local_addr()?.is_ipv4()),
            Stream::Unix(_) | Stream::Virtual(_) => Err(io::ErrorKind::Unsupported.into()),
            Stream::Tls(tls) => tls.socket().original_dst(),
        }
    }

    /// The socket: the stream itself, or what is below TLS.
    fn socket(&self) -> &Stream {
        match self {
            Stream::Tls(tls) => tls.socket(),
            plain => plain,
        }
    }

    /// The TLS connection, if this is one.
    pub fn tls(&self) -> Option<&TlsStream> {
        match self {
            Stream::Tls(tls) => Some(tls),
            _ => None,
        }
    }

    /// Whether the bytes on the socket are those that are read and written here, so that the kernel can move
    /// them.
    #[inline]
    pub fn is_plain(&self) -> bool {
        matches!(self, Stream::Tcp(_) | Stream::Unix(_))
    }

    /// Its descriptor.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where it is not itself a socket.
    #[inline]
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(socket_or!(self, _other => Err(unsupported())))
    }

    /// Clears the readiness for `interest` until the next event. Sound only after a call has shown
    /// that there is nothing more to read, or no more room.
    #[inline]
    fn used_up(&self, interest: Interest) {
        let _ = self.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

fn unsupported() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

/// What the kernel looks at in one vectored write (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;
/// Most bytes that one read of what is no socket copies by way of the stack.
const VIRTUAL_READ: usize = 8 << 10;

/// As [`Stream::try_read_buf`], where bytes are copied in any case.
fn read_into<B: BufMut>(source: &dyn Conduit, buffer: &mut B) -> io::Result<usize> {
    let mut read = [0; VIRTUAL_READ];
    let room = buffer.chunk_mut().len().min(VIRTUAL_READ);
    let read = read.get_mut(..room).unwrap_or_default();
    let count = source.try_read(read)?;
    buffer.put_slice(read.get(..count).unwrap_or_default());
    Ok(count)
}

/// As [`Stream::try_write_vectored`], one after the other.
fn write_each(target: &dyn Conduit, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut written = 0;
    for slice in slices.iter().filter(|slice| !slice.is_empty()) {
        match target.try_write(slice) {
            Ok(count) => {
                written += count;
                if count < slice.len() {
                    break;
                }
            }
            // Told again by the next write.
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Stream::Tcp(stream)
    }
}

impl From<TlsStream> for Stream {
    fn from(stream: TlsStream) -> Self {
        Stream::Tls(Box::new(stream))
    }
}

impl Stream {
    /// A stream that is no socket.
    pub fn of(conduit: impl Conduit + 'static) -> Self {
        Stream::Virtual(Box::new(conduit))
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Stream::Unix(stream)
    }
}

/// A listening socket on one worker's runtime.
#[derive(Debug)]
pub enum Acceptor {
    /// TCP.
    Tcp(TcpListener),
    /// Unix domain.
    Unix(UnixListener),
}

impl Acceptor {
    /// Hands a bound socket to the current runtime.
    pub fn new(bound: socket::Bound) -> io::Result<Self> {
        Ok(match bound {
            socket::Bound::Tcp(listener) => Acceptor::Tcp(TcpListener::from_std(listener)?),
            socket::Bound::Unix(listener) => Acceptor::Unix(UnixListener::from_std(listener)?),
            socket::Bound::Udp(_) => return Err(io::ErrorKind::InvalidInput.into()),
        })
    }

    /// The next connection, not yet tuned.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        Poll::Ready(match self {
            Acceptor::Tcp(listener) => ready!(listener.poll_accept(cx)).map(|(stream, _)| stream.into()),
            Acceptor::Unix(listener) => ready!(listener.poll_accept(cx)).map(|(stream, _)| stream.into()),
        })
    }

    /// Waits for the next connection and gives it the options of `tuning`.
    pub async fn accept(&self, tuning: &SocketTuning) -> io::Result<Stream> {
        let stream = poll_fn(|cx| self.poll_accept(cx)).await?;
        socket::tune_accepted(&stream, tuning);
        Ok(stream)
    }

    /// A connection that waits in the accept queue, without waiting for one and not yet tuned. Finds what
    /// the runtime has not heard of yet.
    pub fn accept_waiting(&self) -> io::Result<Option<Stream>> {
        Ok(match self {
            Acceptor::Tcp(listener) => match socket::accept_waiting(listener.as_fd())? {
                Some(accepted) => Some(TcpStream::from_std(accepted.into())?.into()),
                None => None,
            },
            Acceptor::Unix(listener) => match socket::accept_waiting(listener.as_fd())? {
                Some(accepted) => Some(UnixStream::from_std(accepted.into())?.into()),
                None => None,
            },
        })
    }

    /// Changes the accept backlog.
    pub fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        match self {
            Acceptor::Tcp(listener) => socket::set_backlog(listener.as_fd(), backlog),
            Acceptor::Unix(listener) => socket::set_backlog(listener.as_fd(), backlog),
        }
    }

    /// The address listened on; `None` for Unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Acceptor::Tcp(listener) => listener.local_addr().ok(),
            Acceptor::Unix(_) => None,
        }
    }
}
