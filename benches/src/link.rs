//! A non-blocking connection, plain or TLS, for client and server: bytes in, [`Out`] out. It knows no protocol.

use std::io::{self, Read as _};

use mio::net::TcpStream;
use rustls::Connection;

use crate::out::Out;

/// Encrypted bytes that may wait for the socket before more are encrypted.
const ENCRYPTED: usize = 256 * 1024;

/// One connection.
pub struct Link {
    /// The socket.
    pub stream: TcpStream,
    tls: Option<Box<Connection>>,
    /// What is to be sent.
    pub out: Out,
    /// Bytes that the protocol has not taken yet.
    rest: Vec<u8>,
    /// Encrypted bytes that rustls holds at most now.
    encrypted: usize,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// So many bytes at the start of the buffer, those that were left before included; `more` if a next read may bring
    /// more at once.
    Bytes {
        /// How many.
        count: usize,
        /// Whether to read again.
        more: bool,
    },
    /// Nothing for now.
    Nothing,
    /// The peer has ended its side.
    End,
}

impl Link {
    /// A connection that is (or is being) established.
    pub fn new(stream: TcpStream, tls: Option<Connection>) -> Self {
        let mut tls = tls.map(Box::new);
        if let Some(tls) = &mut tls {
            // The limit is ours: rustls's own would look like a socket that takes nothing.
            tls.set_buffer_limit(None);
        }
        Self { stream, tls, out: Out::default(), rest: Vec::new(), encrypted: 0 }
    }

    /// The TLS session, if it is one.
    pub fn tls(&self) -> Option<&Connection> {
        self.tls.as_deref()
    }

    /// Whether the TLS handshake goes on.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Reads once. The buffer begins with what was left by the last [`Link::keep`].
    ///
    /// # Errors
    /// Those of the socket; `InvalidData` for what is no TLS; `OutOfMemory` if what was left fills the buffer.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        let kept = self.rest.len();
        let Some((front, free)) = buffer.split_at_mut_checked(kept) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        if free.is_empty() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let size = free.len();
        let result = match &mut self.tls {
            None => read_plain(&mut self.stream, free).map(|count| (count, count == size)),
            // Several records may wait, in rustls or in the socket.
            Some(tls) => read_tls(&mut self.stream, tls, free).map(|count| (count, true)),
        };
        match result {
            Ok((0, _)) => Ok(Got::End),
            Ok((count, more)) => {
                front.copy_from_slice(&self.rest);
                self.rest.clear();
                Ok(Got::Bytes { count: kept + count, more })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Got::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Keeps what the protocol could not use yet for the next read.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.rest.len()
    }

    /// Takes what is kept, to use it without a read.
    pub fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }

    /// Sends what can be sent; whether that is everything.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return self.out.write_to(&mut self.stream) };
        loop {
            while tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.encrypted = 0;
            if self.out.is_empty() || tls.is_handshaking() {
                return Ok(self.out.is_empty());
            }
            self.out.write_to(&mut Encrypt { tls, held: &mut self.encrypted })?;
        }
    }

    /// Says goodbye, in TLS; what cannot be sent at once is lost.
    pub fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.stream);
        }
    }
}

/// Takes plain bytes until enough encrypted ones wait.
struct Encrypt<'a> {
    tls: &'a mut Connection,
    held: &'a mut usize,
}

impl io::Write for Encrypt<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.held >= ENCRYPTED {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let part = bytes.get(..bytes.len().min(ENCRYPTED)).unwrap_or_default();
        let count = self.tls.writer().write(part)?;
        *self.held += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_plain(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn read_tls(stream: &mut TcpStream, tls: &mut Connection, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Many do not say goodbye; whether something is missing, the protocol inside knows.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            result => return result,
        }
        match tls.read_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if let Err(error) = tls.process_new_packets() {
            // The alert that says why.
            let _ = tls.write_tls(stream);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if tls.is_handshaking() {
            // The handshake's answer must go out before more can come.
            if tls.wants_write() {
                tls.write_tls(stream)?;
            }
        }
    }
}
