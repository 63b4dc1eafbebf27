//! Looking at a connection's first bytes to learn what it speaks, before a filter chain is chosen.
//!
//! Comes in: an accepted [`Stream`] and which inspectors config asks for. Goes out: [`Inspected`]:
//! transport, server name, application protocols, and the bytes read, with which whoever serves the
//! connection begins.
//!
//! The bytes are read into a buffer instead of being peeked at. With edge-triggered readiness a
//! peek tells nothing about when *more* than it has already seen arrives, so that waiting for the
//! rest of a hello would mean polling; and every byte would be copied once more when it is read for
//! good.

pub mod http;
pub mod tls;

use std::io;

use bytes::BytesMut;

use crate::config::listener::Inspect;
use crate::runtime::proxy_protocol::Malformed;
use crate::runtime::Stream;

/// Most bytes looked at, as in Envoy's inspectors.
pub const MAX_BYTES: usize = 64 << 10;

/// Room made for one read. A hello with a post-quantum key share fits.
const READ: usize = 2048;

/// What is known of a connection after inspection.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Bytes read from the client, to be served before anything else from the stream.
    pub prefix: BytesMut,
    /// A TLS ClientHello was seen.
    pub tls: bool,
    /// SNI in lower case.
    pub server_name: Option<Box<str>>,
    /// Application protocols: the client's ALPN list, or what the HTTP inspector found (`http/1.0`,
    /// `http/1.1`, `h2c`).
    pub alpn: Vec<Box<str>>,
}

impl Inspected {
    /// The transport protocol as filter chains name it.
    pub fn transport(&self) -> &'static str {
        if self.tls {
            "tls"
        } else {
            "raw_buffer"
        }
    }
}

/// Why a connection is to be closed without choosing a chain.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// `downstream_listener_filter_remote_close`.
    #[error("the client closed before it was clear what it speaks")]
    Closed,
    /// Counted by the PROXY protocol filter.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Counted by the PROXY protocol filter.
    #[error("the client has not been introduced by the PROXY protocol in a version that is allowed")]
    Unannounced,
    /// `downstream_listener_filter_error`.
    #[error("{MAX_BYTES} bytes do not tell what the client speaks")]
    TooLarge,
    /// `downstream_listener_filter_remote_close`.
    #[error("reading the first bytes: {0}")]
    Io(#[from] io::Error),
}

/// Reads until the inspectors of `inspect` have made up their minds, beginning with the bytes that `found` has. What
/// was found so far is kept when the future is dropped, which time may do.
pub async fn inspect(stream: &Stream, inspect: Inspect, found: &mut Inspected) -> Result<(), InspectError> {
    let mut inspection = Inspection::new(inspect, found);
    if !inspection.is_over() && !inspection.found.prefix.is_empty() {
        inspection.look()?;
    }
    inspection.run(stream).await
}

/// Reads more of a connection's first bytes. A silent client costs no buffer.
pub(super) async fn read(stream: &Stream, prefix: &mut BytesMut, most: usize) -> Result<(), InspectError> {
    loop {
        stream.readable().await?;
        if prefix.len() >= most {
            return Err(InspectError::TooLarge);
        }
        prefix.reserve(READ);
        match stream.try_read_buf(prefix) {
            Ok(0) => return Err(InspectError::Closed),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Inspection<'a> {
    tls: Option<tls::HelloParser>,
    http: Option<http::RequestLine>,
    found: &'a mut Inspected,
}

impl<'a> Inspection<'a> {
    fn new(inspect: Inspect, found: &'a mut Inspected) -> Self {
        Self {
            tls: inspect.tls.then(tls::HelloParser::default),
            http: inspect.http.then(http::RequestLine::default),
            found,
        }
    }

    /// No inspector is undecided.
    fn is_over(&self) -> bool {
        self.tls.is_none() && self.http.is_none()
    }

    async fn run(&mut self, stream: &Stream) -> Result<(), InspectError> {
        while !self.is_over() {
            read(stream, &mut self.found.prefix, usize::MAX).await?;
            self.look()?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), InspectError> {
        let bytes = &self.found.prefix;
        if let Some(parser) = &mut self.tls {
            match parser.look(bytes) {
                tls::Verdict::NeedMore => {}
                tls::Verdict::NotTls => self.tls = None,
                tls::Verdict::Hello(hello) => {
                    self.found.tls = true;
                    self.found.server_name = hello.server_name;
                    self.found.alpn = hello.alpn;
                    // HTTP inspection is for plain text only.
                    (self.tls, self.http) = (None, None);
                }
            }
        }
        if let (None, Some(line)) = (&self.tls, &mut self.http) {
            match line.look(bytes) {
                http::Verdict::NeedMore => {}
                http::Verdict::NotHttp => self.http = None,
                http::Verdict::Http(protocol) => {
                    self.found.alpn = vec![protocol.into()];
                    self.http = None;
                }
            }
        }
        if !self.is_over() && bytes.len() >= MAX_BYTES {
            return Err(InspectError::TooLarge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
