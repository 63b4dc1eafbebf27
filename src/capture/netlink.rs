//! Netlink: messages, attributes, and asking the kernel.
//!
//! Comes in: messages as [`Message`] builds them. Goes out: the kernel's word on each. The numbers are those of
//! `linux/netlink.h`; no crate at hand has all of what capture needs.

use std::io;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// A family of netlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// Routes and rules of routing.
    Route,
    /// nf_tables among others.
    Netfilter,
}

/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 0x1 | 0x4;
/// Make it if it is not there.
pub const CREATE: u16 = 0x400;
/// Fail if it is there.
pub const EXCLUSIVE: u16 = 0x200;
/// Put it after what is there.
pub const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const HEADER: usize = 16;
/// Marks attributes that hold others.
const NESTED: u16 = 0x8000;
/// How long the kernel may take for its answers. It gives them before the call that sends returns.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room for a message with its answer.
const BUFFER: usize = 1 << 20;

/// One request.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
    /// What it is about, for messages about its failure.
    pub subject: Subject,
}

/// What a request asks the kernel for, as far as a kernel may lack it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// For people: `the table ip outrigger`.
    pub what: String,
    /// The options of a kernel that can do it.
    pub needs: &'static str,
}

impl Message {
    /// A request of this kind that begins with a fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8], subject: Subject) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes, subject }
    }

    /// One that needs no answer: the ends of a transaction.
    pub fn bracket(kind: u16, fixed: &[u8]) -> Self {
        let subject = Subject { what: "the transaction".to_owned(), needs: "" };
        let mut message = Self::new(kind, 0, fixed, subject);
        message.bytes[6..8].copy_from_slice(&1u16.to_ne_bytes());
        message
    }

    fn wants_answer(&self) -> bool {
        self.bytes[6] & 0x4 != 0
    }

    /// Adds an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.bytes, kind, value);
        self
    }

    /// Adds an attribute that holds others.
    pub fn nest(mut self, kind: u16, attributes: &[u8]) -> Self {
        attribute(&mut self.bytes, kind | NESTED, attributes);
        self
    }

    fn numbered(&self, number: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        out[start + 8..start + 12].copy_from_slice(&number.to_ne_bytes());
    }
}

/// Appends an attribute to `out`.
pub fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds others to `out`.
pub fn nest(out: &mut Vec<u8>, kind: u16, attributes: &[u8]) {
    attribute(out, kind | NESTED, attributes);
}

/// A text as the kernel takes it.
pub fn text(value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Sends all messages at once and waits for the answers; the first failure by the order of messages counts, with the
/// number of its message.
///
/// # Errors
/// The socket, or a refused message; `None`: none in particular.
pub fn ask(bus: Bus, messages: &[Message]) -> Result<(), (Option<usize>, io::Error)> {
    let general = |error| (None, error);
    let protocol = match bus {
        Bus::Route => libc::NETLINK_ROUTE,
        Bus::Netfilter => libc::NETLINK_NETFILTER,
    };
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))
        .map_err(general)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(general)?;
    // Long lists of rules, with an answer for each, may need more than the default; less than wanted may do as well.
    let _ = socket.set_send_buffer_size(BUFFER);
    let _ = socket.set_recv_buffer_size(BUFFER);
    let mut bytes = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        message.numbered(u32::try_from(number).unwrap_or(u32::MAX), &mut bytes);
    }
    socket.send(&bytes).map_err(general)?;
    let mut left = messages.iter().filter(|message| message.wants_answer()).count();
    let mut failed: Option<(usize, io::Error)> = None;
    let mut buffer = vec![0; BUFFER];
    while left > 0 {
        let count = match io::Read::read(&mut &socket, &mut buffer) {
            Ok(count) => count,
            // Without the right to it, the kernel answers no more than the first message.
            Err(error) => return Err(failed.map_or((None, error), |(number, error)| (Some(number), error))),
        };
        for (number, code) in answers(buffer.get(..count).unwrap_or_default()) {
            let known = messages.get(number).is_some_and(Message::wants_answer);
            left -= usize::from(known && left > 0);
            if code != 0 {
                let error = io::Error::from_raw_os_error(-code);
                if !known {
                    return Err((None, error));
                }
                if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                    failed = Some((number, error));
                }
            }
        }
    }
    failed.map_or(Ok(()), |(number, error)| Err((Some(number), error)))
}

/// The numbers of the messages that these bytes answer, and the answers (0, or a negative error number).
fn answers(mut bytes: &[u8]) -> impl Iterator<Item = (usize, i32)> + '_ {
    std::iter::from_fn(move || loop {
        let (&length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_ne_bytes(length)).ok().filter(|length| *length >= HEADER)?;
        let message = bytes.get(..length)?;
        let kind = u16::from_ne_bytes(*rest.first_chunk()?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        if kind == ERROR {
            let number = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
            let code = i32::from_ne_bytes(*message.get(HEADER..)?.first_chunk()?);
            return Some((usize::try_from(number).ok()?, code));
        }
    })
}
