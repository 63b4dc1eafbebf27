//! What two processes say to each other while one takes over from the other: version 1.
//!
//! The channel is a connected Unix stream socket, made by the old process; the new one has it as its standard input,
//! and the environment variable `OUTRIGGER_UPGRADE` says so. A message is a frame: three numbers of 32 bits, least
//! significant byte first, which are the length of a text, the length of the bytes after it, and how many descriptors
//! came with the first of the twelve bytes (`SCM_RIGHTS`); then the text, JSON with the kind of message under `is`,
//! and the bytes. Readers ignore members that they do not know.
//!
//! 1. New to old: `hello`, with the versions of this protocol that it speaks.
//! 2. Old to new: `socket` for each socket, with its descriptor; then `begin`, with the version that both speak.
//! 3. New to old: `ready`, once its configuration is there, with the ids of those that it uses and the names of its
//!    listeners.
//! 4. Old to new: `go`, if no listener is missing. New to old: `serving`, once it accepts connections; until then
//!    the old process does as well.
//! 5. Old to new, as often as it has one: `connection`, with two descriptors (client, upstream) and the bytes that were
//!    read from either and not delivered. New to old: `took`, before the first byte of it is read or written, or
//!    `refused`: then the old process goes on with it.
//!
//! Either process closes the channel when it has nothing more to say. Before `serving` this undoes everything: the new
//! process ends, and the old one goes on as if nothing had been.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tcp::handover::Passage;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// Says to a process that its standard input is the channel.
pub const VARIABLE: &str = "OUTRIGGER_UPGRADE";

/// Longest text.
const MOST_TEXT: usize = 64 << 10;
/// Most bytes: two directions of a relay, each with a full pipe and a full buffer.
const MOST_BYTES: usize = 4 << 20;
/// Most descriptors with a frame.
const MOST_SOCKETS: usize = 2;
/// A peer that takes nothing for so long is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the other process was not understood, or not reached.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The channel.
    #[error("the other process cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// The other process closed the channel, or ended.
    #[error("the other process has closed the channel")]
    Closed,
    /// It says nothing.
    #[error("the other process has said nothing in time")]
    Silent,
    /// It does not keep to the protocol.
    #[error("the other process says what was not expected: {0}")]
    Unexpected(String),
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Connections or datagrams of a listener.
    Listener,
    /// The admin port.
    Admin,
    /// The port for probes of the application.
    Probes,
    /// Where `outrigger upgrade` asks.
    Upgrade,
}

/// A socket that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Its number in the kernel, which is how both speak of it.
    pub id: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// The listener's name.
    #[serde(default)]
    pub name: String,
    /// The address that was asked for.
    #[serde(default)]
    pub address: String,
    /// Options that must be alike.
    #[serde(default)]
    pub form: String,
}

/// What the old process says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Old {
    /// A socket.
    Socket(Socket),
    /// That was all of them.
    Begin {
        /// What is spoken.
        version: u32,
    },
    /// To accept connections.
    Go,
    /// A connection that is being relayed.
    Connection(Box<Passage>),
}

/// What the new process says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum New {
    /// It is there.
    Hello {
        /// What it speaks.
        versions: Vec<u32>,
    },
    /// Its configuration is there.
    Ready {
        /// It uses these sockets.
        taken: Vec<u64>,
        /// It has listeners of these names.
        listeners: Vec<String>,
    },
    /// It accepts connections.
    Serving,
    /// It goes on with the connection.
    Took,
    /// It does not.
    Refused {
        /// Why.
        why: String,
    },
}

/// A message and what came with it.
#[derive(Debug)]
pub struct Frame<M> {
    /// The message.
    pub message: M,
    /// The bytes after it.
    pub bytes: Vec<u8>,
    /// Descriptors.
    pub sockets: Vec<OwnedFd>,
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(UnixStream);

impl Channel {
    /// Speaks over this socket.
    ///
    /// # Errors
    /// It is none.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// A second handle on the same end.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Ends the conversation, for all handles.
    pub fn close(&self) {
        // Fails where the other end has gone.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// From now on nothing more can be said to this end. What was said is still received.
    pub fn hear_no_more(&self) {
        let _ = self.0.shutdown(Shutdown::Read);
    }

    /// Says something.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn send(
        &self,
        message: &impl Serialize,
        bytes: &[u8],
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let text = serde_json::to_vec(message).map_err(|error| WireError::Unexpected(error.to_string()))?;
        let mut head = [0; 12];
        for (part, number) in head.chunks_exact_mut(4).zip([text.len(), bytes.len(), sockets.len()]) {
            let number = u32::try_from(number).map_err(|_| WireError::Unexpected("too much".to_owned()))?;
            part.copy_from_slice(&number.to_le_bytes());
        }
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(WireError::Unexpected("too many sockets".to_owned()));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL);
        let sent = sent.map_err(io::Error::from)?;
        let mut socket = &self.0;
        socket.write_all(head.get(sent..).unwrap_or_default())?;
        socket.write_all(&text)?;
        socket.write_all(bytes)?;
        Ok(())
    }

    /// What the other end says next; `until` at the latest.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn receive<M: DeserializeOwned>(&self, until: Option<Instant>) -> Result<Frame<M>, WireError> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(WireError::Silent);
        }
        self.0.set_read_timeout(left)?;
        let mut head = [0; 12];
        let sockets = self.receive_head(&mut head)?;
        // Once it has begun to speak it goes on.
        self.0.set_read_timeout(Some(PATIENCE))?;
        let number = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(head.get(at..at + 4).unwrap_or(&[0; 4]));
            u32::from_le_bytes(bytes) as usize
        };
        let (text, bytes, count) = (number(0), number(4), number(8));
        if text > MOST_TEXT || bytes > MOST_BYTES || count != sockets.len() {
            return Err(WireError::Unexpected(format!("{text} and {bytes} bytes, {count} sockets")));
        }
        let read = |length: usize| -> Result<Vec<u8>, WireError> {
            let mut into = vec![0; length];
            (&self.0).read_exact(&mut into).map_err(received)?;
            Ok(into)
        };
        let (text, bytes) = (read(text)?, read(bytes)?);
        let message = serde_json::from_slice(&text)
            .map_err(|error| WireError::Unexpected(format!("{error}: {}", String::from_utf8_lossy(&text))))?;
        Ok(Frame { message, bytes, sockets })
    }

    fn receive_head(&self, head: &mut [u8; 12]) -> Result<Vec<OwnedFd>, WireError> {
        let (mut got, mut sockets) = (0, Vec::new());
        while let Some(rest) = head.get_mut(got..).filter(|rest| !rest.is_empty()) {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
            let mut control = RecvAncillaryBuffer::new(&mut room);
            let into = &mut [IoSliceMut::new(rest)];
            let received = match recvmsg(&self.0, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                received => received.map_err(|error| self::received(error.into()))?,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    sockets.extend(descriptors);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(WireError::Unexpected("more sockets than there is room for".to_owned()));
            }
            if received.bytes == 0 {
                return Err(WireError::Closed);
            }
            got += received.bytes;
        }
        Ok(sockets)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a failed read means.
fn received(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WireError::Silent,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => WireError::Closed,
        _ => WireError::Io(error),
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
