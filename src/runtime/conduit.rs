//! Byte streams that are no sockets: the far end is in this process, or behind a stream of another connection.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

/// Copies as much of `held` into `buffer` as fits. Returns how much that is.
pub fn copy(held: &[u8], buffer: &mut [u8]) -> usize {
    let count = held.len().min(buffer.len());
    if let (Some(held), Some(buffer)) = (held.get(..count), buffer.get_mut(..count)) {
        buffer.copy_from_slice(held);
    }
    count
}

/// What stands for a socket. Everything works on `&self`, as with [`super::Stream`], whose functions of the same
/// names say what each of these does.
pub trait Conduit: Debug {
    /// See [`super::Stream::try_read`].
    ///
    /// # Errors
    /// As there.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// See [`super::Stream::try_peek`].
    ///
    /// # Errors
    /// As there.
    fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// See [`super::Stream::try_write`].
    ///
    /// # Errors
    /// As there.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// See [`super::Stream::poll_read_ready`].
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// See [`super::Stream::poll_write_ready`].
    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// See [`super::Stream::gather`].
    fn gather(&self, _: &mut Context<'_>) {}

    /// Ready when the peer has broken it off.
    fn poll_failed(&self, context: &mut Context<'_>) -> Poll<()>;

    /// See [`super::Stream::shutdown_write`].
    ///
    /// # Errors
    /// As there.
    fn shutdown_write(&self) -> io::Result<()>;

    /// Closing it breaks it off.
    fn set_linger_zero(&self);

    /// Bytes written that the peer has not taken yet, as far as that is known.
    fn unsent(&self) -> usize;

    /// Our address.
    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// The peer's address.
    fn peer_addr(&self) -> Option<SocketAddr> {
        None
    }
}
