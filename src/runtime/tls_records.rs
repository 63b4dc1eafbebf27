//! Records of a TLS session: what comes in goes to the session and out as bytes, and the other way round.
//!
//! The session has no buffers. It works on what was read and not used up yet, in place, and says how much of it may go.

use std::io;

use bytes::BufMut;
use tokio_rustls::rustls;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::CommonState;

use super::tls_stream::Failure;

/// Room for a handshake's flight; it grows where a certificate chain is longer.
const FLIGHT: usize = 8 << 10;

/// Room that a reader has.
pub(super) trait Place {
    /// Takes as much of `bytes` as fits.
    fn put(&mut self, bytes: &[u8]) -> usize;
}

/// A buffer.
pub(super) struct Slice<'a> {
    pub(super) buffer: &'a mut [u8],
    pub(super) filled: usize,
}

impl Place for Slice<'_> {
    fn put(&mut self, bytes: &[u8]) -> usize {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        let count = bytes.len().min(room.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..count), bytes.get(..count)) {
            room.copy_from_slice(bytes);
        }
        self.filled += count;
        count
    }
}

/// Room at the end of a buffer.
pub(super) struct Growing<'a, B> {
    pub(super) buffer: &'a mut B,
    pub(super) room: usize,
}

impl<B: BufMut> Place for Growing<'_, B> {
    fn put(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room);
        self.buffer.put_slice(bytes.get(..count).unwrap_or_default());
        self.room -= count;
        count
    }
}

/// Where decrypted bytes go: the reader's room first, then what waits for it.
pub(super) struct Sink<'a> {
    pub(super) place: &'a mut dyn Place,
    pub(super) given: usize,
    pub(super) plain: &'a mut Vec<u8>,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let fits = if self.plain.is_empty() { self.place.put(bytes) } else { 0 };
        self.given += fits;
        self.plain.extend_from_slice(bytes.get(fits..).unwrap_or_default());
    }
}

/// The same for both sides, whose types differ in what they look for in early data.
pub(super) trait Records {
    type Data;
    /// Lets the session work. `incoming` is always all that it has not used up: part of a handshake message
    /// stays there, in the place where the session has put it together.
    fn records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// Whether the session has something to say, which then comes before all else.
    fn says(&self) -> bool;
}

impl Records for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;
    fn records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        UnbufferedConnectionCommon::<Self::Data>::process_tls_records(self, incoming)
    }

    fn says(&self) -> bool {
        CommonState::wants_write(self)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;
    fn records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        UnbufferedConnectionCommon::<Self::Data>::process_tls_records(self, incoming)
    }

    fn says(&self) -> bool {
        CommonState::wants_write(self)
    }
}

/// Lets the session work on `incoming` until it wants more; how much of it is used up is returned.
pub(super) fn pass<C: Records>(
    connection: &mut C,
    incoming: &mut [u8],
    sink: &mut Sink<'_>,
    unsent: &mut Vec<u8>,
    handshaking: &mut bool,
    ended: &mut bool,
    failed: &mut Option<Failure>,
) -> usize {
    let mut used = 0;
    loop {
        if failed.is_some() && !connection.says() {
            return used;
        }
        let waiting = incoming.get_mut(used..).unwrap_or_default();
        let UnbufferedStatus { discard, state } = connection.records(waiting);
        used += discard;
        match state {
            // What the peer is told of it comes next: while there is any, nothing else is looked at.
            Err(error) => *failed = Some(Failure::Tls(error)),
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, unsent),
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => sink.put(record.payload),
                        Err(error) => *failed = Some(Failure::Tls(error)),
                    }
                }
            }
            Ok(ConnectionState::WriteTraffic(_)) => {
                *handshaking &= failed.is_some();
                return used;
            }
            Ok(ConnectionState::PeerClosed) => *ended = true,
            // More is needed; or both ends are closed; or early data came, which is never offered.
            Ok(_) => return used,
        }
    }
}

/// Encrypts `bytes` into `outgoing`: how long it became. What the session itself has to say goes to `unsent`.
pub(super) fn encrypt<C: Records>(
    connection: &mut C,
    partial: &mut Vec<u8>,
    bytes: &[u8],
    outgoing: &mut Vec<u8>,
    unsent: &mut Vec<u8>,
) -> Result<usize, Failure> {
    loop {
        let UnbufferedStatus { discard, state } = connection.records(partial);
        match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match traffic.encrypt(bytes, outgoing) {
                Ok(length) => {
                    drop_front(partial, discard);
                    return Ok(length);
                }
                Err(EncryptError::InsufficientSize(need)) => outgoing.resize(need.required_size, 0),
                Err(EncryptError::EncryptExhausted) => {
                    return Err(Failure::Io(io::ErrorKind::ConnectionAborted))
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, unsent),
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            // The peer has closed its end, which does not keep us from writing; it is told only once.
            Ok(ConnectionState::PeerClosed) => {}
            Ok(_) => return Err(Failure::Io(io::ErrorKind::BrokenPipe)),
            Err(error) => return Err(Failure::Tls(error)),
        }
        drop_front(partial, discard);
    }
}

/// Queues `close_notify`.
pub(super) fn close<C: Records>(connection: &mut C, partial: &mut Vec<u8>, unsent: &mut Vec<u8>) {
    loop {
        let UnbufferedStatus { discard, state } = connection.records(partial);
        match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let mut room = [0u8; 256];
                let said = traffic.queue_close_notify(&mut room).unwrap_or(0);
                unsent.extend_from_slice(room.get(..said).unwrap_or_default());
                return drop_front(partial, discard);
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, unsent),
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => {}
            _ => return,
        }
        drop_front(partial, discard);
    }
}

fn drop_front(bytes: &mut Vec<u8>, count: usize) {
    if count > 0 {
        bytes.drain(..count.min(bytes.len()));
    }
}

/// Appends what the session says by itself.
fn encode<D>(data: &mut EncodeTlsData<'_, D>, unsent: &mut Vec<u8>) {
    let start = unsent.len();
    unsent.resize(start + FLIGHT, 0);
    let mut encoded = data.encode(unsent.get_mut(start..).unwrap_or_default());
    if let Err(EncodeError::InsufficientSize(need)) = &encoded {
        unsent.resize(start + need.required_size, 0);
        encoded = data.encode(unsent.get_mut(start..).unwrap_or_default());
    }
    unsent.truncate(start + encoded.unwrap_or(0));
}
