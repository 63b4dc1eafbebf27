//! A TLS connection with the contract of a [`Stream`]: everything on `&self`, nothing waits in `try_*`.
//!
//! Comes in: a connected plain stream and a configured TLS session. Goes out: the bytes inside. Records are
//! read into, and written from, buffers that the whole thread shares; a connection at rest holds its keys and
//! nothing else. What does not fit is kept with the connection until it is taken: decrypted bytes that the
//! reader had no room for, part of a record, and records that the kernel did not take.
//!
//! A write counts when the kernel has all its records: until then the caller is told "would block" and comes
//! back with the same bytes, which are not encrypted twice.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{ready, Context, Poll};

use bytes::BufMut;
use tokio_rustls::rustls;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};

use super::client_hello;
use super::stream::Stream;
use super::tls_records::{close, encrypt, pass, Growing, Place, Sink, Slice};

/// Read at a time: four full records.
const READ: usize = 4 * RECORD;
/// The longest record on the wire, its header included, and a little more.
const RECORD: usize = 16_640;
/// Bytes encrypted at a time.
const WRITE: usize = 64 << 10;
/// Room for what they become.
const WRITE_ROOM: usize = WRITE + 5 * 64;

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer went away, or the socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The sides do not agree.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Runs `$body` with the connection of either side.
macro_rules! either {
    ($session:expr, $connection:ident => $body:expr) => {
        match $session {
            Session::Client($connection) => $body,
            Session::Server($connection) => $body,
        }
    };
}

/// A TLS connection over a plain stream.
pub struct TlsStream {
    socket: Stream,
    state: RefCell<State>,
    /// The socket is to be reset, so nothing more is said on it.
    reset: Cell<bool>,
}

struct State {
    session: Session,
    /// Bytes of the peer that are no whole record yet.
    partial: Vec<u8>,
    /// Decrypted bytes, of which the first `taken` are taken.
    plain: Vec<u8>,
    taken: usize,
    /// Records of which the first `sent` are sent.
    unsent: Vec<u8>,
    sent: usize,
    /// Bytes of the caller that are in `unsent`, and that no call has reported as written.
    owed: usize,
    handshaking: bool,
    /// The peer sends no more.
    ended: bool,
    /// The connection is broken.
    failed: Option<Failure>,
    /// Our end of the stream: said, and with it that of the socket.
    closing: Closing,
}

/// Why a connection is broken.
#[derive(Clone)]
pub(super) enum Failure {
    Tls(rustls::Error),
    Io(io::ErrorKind),
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Tls(error) => io::Error::new(io::ErrorKind::InvalidData, error),
            Failure::Io(kind) => kind.into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// `close_notify` is among what is unsent; the socket's end follows it.
    Pending,
    Done,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl TlsStream {
    /// The server's side of a handshake, of which `prefix` was read before.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn accept(
        socket: Stream,
        prefix: Vec<u8>,
        config: Arc<ServerConfig>,
    ) -> Result<Self, HandshakeError> {
        let session = Session::Server(UnbufferedServerConnection::new(config)?);
        Self::handshake(socket, session, prefix).await
    }

    /// The client's side of a handshake.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn connect(
        socket: Stream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, HandshakeError> {
        let session = Session::Client(UnbufferedClientConnection::new(config, name)?);
        Self::handshake(socket, session, Vec::new()).await
    }

    async fn handshake(
        socket: Stream,
        session: Session,
        mut prefix: Vec<u8>,
    ) -> Result<Self, HandshakeError> {
        let state = State {
            session,
            partial: Vec::new(),
            plain: Vec::new(),
            taken: 0,
            unsent: Vec::new(),
            sent: 0,
            owed: 0,
            handshaking: true,
            ended: false,
            failed: None,
            closing: Closing::No,
        };
        let stream = Self { socket, state: RefCell::new(state), reset: Cell::new(false) };
        stream.state.borrow_mut().process(&mut prefix, &mut Slice { buffer: &mut [], filled: 0 });
        drop(prefix);
        poll_fn(|context| -> Poll<Result<(), HandshakeError>> {
            let mut state = stream.state.borrow_mut();
            loop {
                let flushed = match state.flush(&stream.socket) {
                    Ok(flushed) => flushed,
                    // An error of ours matters more than that nobody hears it.
                    Err(error) if state.failed.is_none() => return Poll::Ready(Err(error.into())),
                    Err(_) => true,
                };
                match &state.failed {
                    Some(Failure::Tls(error)) if flushed => return Poll::Ready(Err(error.clone().into())),
                    Some(Failure::Io(kind)) => return Poll::Ready(Err(io::Error::from(*kind).into())),
                    _ => {}
                }
                if !flushed {
                    ready!(stream.socket.poll_write_ready(context))?;
                    continue;
                }
                if !state.handshaking {
                    return Poll::Ready(Ok(()));
                }
                if state.ended {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                }
                match state.receive(&stream.socket, &mut Slice { buffer: &mut [], filled: 0 }) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        // The peer may have nothing more to say: its last message can have ended the handshake.
                        if state.handshaking {
                            ready!(stream.socket.poll_read_ready(context))?;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Told above, once the alert is out.
                    Err(_) if state.failed.is_some() => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
        })
        .await?;
        Ok(stream)
    }

    /// The stream below.
    pub fn socket(&self) -> &Stream {
        &self.socket
    }

    /// What was agreed on.
    pub fn agreed<R>(&self, look: impl FnOnce(&CommonState) -> R) -> R {
        let state = self.state.borrow();
        either!(&state.session, connection => look(connection))
    }

    /// Whether the protocol agreed on by ALPN is `name`.
    pub fn speaks(&self, name: &[u8]) -> bool {
        self.agreed(|state| state.alpn_protocol() == Some(name))
    }

    /// Whether an earlier session was resumed.
    pub fn is_resumed(&self) -> bool {
        self.agreed(|state| state.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// Why TLS broke after the handshake, if it did.
    pub fn failure(&self) -> Option<rustls::Error> {
        match &self.state.borrow().failed {
            Some(Failure::Tls(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Runs `look` with the peer's certificates, its own first; none where it sent none.
    pub fn with_peer<R>(&self, look: impl FnOnce(&[CertificateDer<'static>]) -> R) -> R {
        self.agreed(|state| look(state.peer_certificates().unwrap_or_default()))
    }

    /// As [`Stream::try_read`].
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len();
        self.state.borrow_mut().read(&self.socket, &mut Slice { buffer, filled: 0 }, room)
    }

    /// As [`Stream::try_read_buf`].
    pub(super) fn try_read_buf<B: BufMut>(&self, buffer: &mut B) -> io::Result<usize> {
        let room = buffer.remaining_mut().min(buffer.chunk_mut().len());
        self.state.borrow_mut().read(&self.socket, &mut Growing { buffer, room }, room)
    }

    /// As [`Stream::try_write`].
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.state.borrow_mut().write(&self.socket, bytes)
    }

    /// As [`Stream::try_write_vectored`]. Small pieces share a record.
    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        let Some(first) = filled.next() else { return Ok(0) };
        if first.len() >= WRITE || filled.next().is_none() {
            return self.try_write(first);
        }
        let mut gathered = GATHERED.take();
        gathered.clear();
        for slice in slices {
            let room = WRITE - gathered.len();
            gathered.extend_from_slice(slice.get(..slice.len().min(room)).unwrap_or_default());
        }
        let written = self.try_write(&gathered);
        GATHERED.set(gathered);
        written
    }

    /// Decrypted bytes, without taking them.
    pub(super) fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        if state.may_receive() {
            state.receive(&self.socket, &mut Slice { buffer: &mut [], filled: 0 })?;
        }
        let waiting = state.plain.get(state.taken..).unwrap_or_default();
        let count = waiting.len().min(buffer.len());
        if count == 0 {
            return state.nothing(&self.socket, buffer.len());
        }
        for (to, from) in buffer.iter_mut().zip(waiting) {
            *to = *from;
        }
        Ok(count)
    }

    pub(super) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.taken < state.plain.len() || state.ended || state.failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        if !state.unsent.is_empty() {
            // What a session says by itself leaves while it is read.
            match state.flush(&self.socket) {
                Ok(true) => {}
                Ok(false) => drop(self.socket.poll_write_ready(context)),
                Err(_) => return Poll::Ready(Ok(())),
            }
        }
        self.socket.poll_read_ready(context)
    }

    pub(super) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(context)
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if state.closing == Closing::No {
            state.say_close();
            state.closing = Closing::Pending;
        }
        state.flush(&self.socket).map(drop)
    }

    pub(super) fn set_linger_zero(&self) {
        self.reset.set(true);
        self.socket.set_linger_zero();
    }

    pub(super) fn unsent(&self) -> usize {
        let state = self.state.borrow();
        self.socket.unsent() + state.unsent.len().saturating_sub(state.sent)
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if self.reset.get() || state.handshaking || state.failed.is_some() || state.closing != Closing::No {
            return;
        }
        if state.unsent.is_empty() {
            state.say_close();
            // Who is gone need not hear it.
            let _ = state.flush(&self.socket);
        }
    }
}

impl State {
    fn may_receive(&self) -> bool {
        self.taken == self.plain.len() && !self.ended && self.failed.is_none()
    }

    fn read(&mut self, socket: &Stream, place: &mut dyn Place, room: usize) -> io::Result<usize> {
        if room > 0 && self.may_receive() {
            let count = self.receive(socket, place)?;
            if count > 0 {
                return Ok(count);
            }
        }
        let count = place.put(self.plain.get(self.taken..).unwrap_or_default());
        if count == 0 {
            return self.nothing(socket, room);
        }
        self.taken += count;
        if self.taken >= self.plain.len() {
            self.plain = Vec::new();
            self.taken = 0;
        }
        Ok(count)
    }

    /// What a read says that got nothing.
    fn nothing(&mut self, socket: &Stream, room: usize) -> io::Result<usize> {
        if let Some(failure) = &self.failed {
            // The peer is told why, if it still listens.
            let failure = failure.clone();
            let _ = self.flush(socket);
            return Err(failure.into());
        }
        if self.ended || room == 0 {
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Reads from the socket until something is decrypted, at the latest until the socket has no more. What
    /// comes goes to `place`, as far as it fits; how much did is returned.
    fn receive(&mut self, socket: &Stream, place: &mut dyn Place) -> io::Result<usize> {
        loop {
            let mut incoming = INCOMING.take();
            let held = self.partial.len();
            let needed = READ.max(held + RECORD);
            if incoming.len() < needed {
                incoming.resize(needed, 0);
            }
            let outcome = match socket.try_read(incoming.get_mut(held..needed).unwrap_or_default()) {
                Ok(0) => {
                    // Whether or not the peer said so before.
                    self.ended = true;
                    Ok(0)
                }
                Ok(count) => {
                    if let Some(front) = incoming.get_mut(..held) {
                        front.copy_from_slice(&self.partial);
                    }
                    let given = self.process(incoming.get_mut(..held + count).unwrap_or_default(), place);
                    // What is said to a key update or an alert leaves now.
                    if !self.handshaking && !self.unsent.is_empty() {
                        let _ = self.flush(socket);
                    }
                    Ok(given)
                }
                Err(error) => Err(error),
            };
            INCOMING.set(incoming);
            let given = outcome?;
            if given > 0 || !self.may_receive() || self.handshaking {
                return Ok(given);
            }
        }
    }

    /// Gives `incoming` to the session; what it leaves is kept.
    fn process(&mut self, incoming: &mut [u8], place: &mut dyn Place) -> usize {
        let Self { session, plain, unsent, handshaking, ended, failed, .. } = self;
        if *handshaking && matches!(session, Session::Server(_)) {
            client_hello::look(incoming);
        }
        let mut sink = Sink { place, given: 0, plain };
        let used = either!(session, connection => {
            pass(connection, incoming, &mut sink, unsent, handshaking, ended, failed)
        });
        let given = sink.given;
        // Exactly as much as is needed: a peer may leave it like this for long.
        self.partial = incoming.get(used..).unwrap_or_default().to_vec();
        given
    }

    /// Sends what is unsent; true when all of it is.
    fn flush(&mut self, socket: &Stream) -> io::Result<bool> {
        while self.sent < self.unsent.len() {
            match socket.try_write(self.unsent.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.unsent = Vec::new();
                    self.sent = 0;
                    return Err(error);
                }
            }
        }
        self.unsent = Vec::new();
        self.sent = 0;
        if self.closing == Closing::Pending {
            self.closing = Closing::Done;
            socket.shutdown_write()?;
        }
        Ok(true)
    }

    fn write(&mut self, socket: &Stream, bytes: &[u8]) -> io::Result<usize> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone().into());
        }
        if self.closing != Closing::No {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.unsent.is_empty() && !self.flush(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // A read may have sent what was left of it since.
        let owed = std::mem::take(&mut self.owed);
        if owed > 0 {
            return Ok(owed.min(bytes.len()));
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let part = bytes.get(..bytes.len().min(WRITE)).unwrap_or_default();
        let mut outgoing = OUTGOING.take();
        if outgoing.len() < WRITE_ROOM {
            outgoing.resize(WRITE_ROOM, 0);
        }
        let encrypted = either!(&mut self.session, connection => encrypt(connection, &mut self.partial, part, &mut outgoing, &mut self.unsent));
        let result = match encrypted {
            Ok(length) => self.send_records(socket, outgoing.get(..length).unwrap_or_default(), part.len()),
            Err(failure) => {
                self.failed = Some(failure.clone());
                Err(failure.into())
            }
        };
        OUTGOING.set(outgoing);
        result
    }

    /// Sends `records`, which carry `length` bytes of the caller; keeps what the kernel does not take.
    fn send_records(&mut self, socket: &Stream, records: &[u8], length: usize) -> io::Result<usize> {
        if self.unsent.is_empty() {
            match socket.try_write(records) {
                Ok(count) if count == records.len() => return Ok(length),
                Ok(count) => self.unsent.extend_from_slice(records.get(count..).unwrap_or_default()),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    self.unsent.extend_from_slice(records);
                }
                Err(error) => return Err(error),
            }
        } else {
            // The session had something to say first.
            self.unsent.extend_from_slice(records);
        }
        if self.flush(socket)? {
            return Ok(length);
        }
        self.owed = length;
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// `close_notify` behind what is unsent.
    fn say_close(&mut self) {
        let Self { session, partial, unsent, failed, .. } = self;
        if failed.is_none() {
            either!(session, connection => close(connection, partial, unsent));
        }
    }
}

thread_local! {
    // What all connections of a thread share; each is taken for the time of a call.
    static INCOMING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static OUTGOING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static GATHERED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
#[path = "tls_stream_tests.rs"]
mod tests;
