//! What the fields of a head say about the body that follows and about the connection
//! (RFC 9112 §6 and §9). Whatever two parsers could frame differently is refused.

use super::{Framing, Refusal};
use crate::config::http::RequestLimits;
use crate::config::Known;
use crate::http::fields::Fields;
use crate::telemetry::stream_info::Protocol;

pub(super) fn request_framing(
    fields: &mut Fields,
    protocol: Protocol,
    limits: &RequestLimits,
) -> Result<Framing, Refusal> {
    let length = content_length(fields)?;
    let chunked = transfer_encoding(fields)?;
    if chunked {
        if protocol == Protocol::Http10 {
            // HTTP/1.0 knows no transfer coding: the framing is faulty (RFC 9112 §6.1).
            return Err(Refusal::CHUNKED_HTTP_10);
        }
        if length.is_some() {
            if !limits.chunked_length {
                return Err(Refusal::LENGTH_AND_CHUNKED);
            }
            fields.remove_known(Known::ContentLength);
        }
        return Ok(Framing::Chunked);
    }
    Ok(length.map_or(Framing::Empty, Framing::length))
}

/// The one content length, if any (RFC 9110 §8.6). Repeated fields are refused even when equal.
pub(super) fn content_length(fields: &Fields) -> Result<Option<u64>, Refusal> {
    let mut values = fields.all(Known::ContentLength);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::CONTENT_LENGTH);
    }
    let mut length: u64 = 0;
    for digit in value {
        length = length
            .checked_mul(10)
            .and_then(|length| length.checked_add(u64::from(digit - b'0')))
            .filter(|length| *length <= i64::MAX as u64)
            .ok_or(Refusal::CONTENT_LENGTH)?;
    }
    Ok(Some(length))
}

/// Whether the message is chunked; any other transfer coding is refused.
pub(super) fn transfer_encoding(fields: &Fields) -> Result<bool, Refusal> {
    let mut values = fields.all(Known::TransferEncoding);
    let Some(value) = values.next() else { return Ok(false) };
    if values.next().is_some() || !value.eq_ignore_ascii_case(b"chunked") {
        return Err(Refusal::TRANSFER_ENCODING);
    }
    Ok(true)
}

/// The options of `Connection` that matter here.
#[derive(Default)]
pub(super) struct Connection {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

impl Connection {
    pub fn of(fields: &Fields) -> Self {
        let mut connection = Self::default();
        if !fields.has_any(Known::Connection.bit() | Known::ProxyConnection.bit()) {
            return connection;
        }
        for value in fields.all(Known::Connection).chain(fields.all(Known::ProxyConnection)) {
            connection.add(value);
        }
        // Only the connection itself can be upgraded.
        connection.upgrade &= fields.all(Known::Connection).any(|value| Self::named(value).upgrade);
        connection
    }

    fn named(value: &[u8]) -> Self {
        let mut connection = Self::default();
        connection.add(value);
        connection
    }

    fn add(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // The lengths of the three tell them apart.
            match option.len() {
                5 => self.close |= option.eq_ignore_ascii_case(b"close"),
                7 => self.upgrade |= option.eq_ignore_ascii_case(b"upgrade"),
                10 => self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive"),
                _ => {}
            }
        }
    }

    pub fn keep_alive(&self, protocol: Protocol) -> bool {
        !self.close && (protocol != Protocol::Http10 || self.keep_alive)
    }
}

/// `Transfer_Encoding` and its like: servers that turn names into variables (CGI) read them as the
/// field with a dash, so what frames the message for them does not frame it for us.
pub(in crate::http) fn reads_as_framing(name: &[u8]) -> bool {
    let is = |field: &[u8]| {
        name.len() == field.len()
            && name.iter().zip(field).all(|(byte, wanted)| {
                byte.to_ascii_lowercase() == *wanted || (*byte == b'_' && *wanted == b'-')
            })
    };
    // By length first: this is asked of every field that is not known.
    matches!(name.len(), 14 | 17)
        && name.contains(&b'_')
        && (is(b"transfer-encoding") || is(b"content-length"))
}
