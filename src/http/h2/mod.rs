//! HTTP/2 (RFC 9113), spoken by the `h2` crate on the worker's thread.
//!
//! `guard` stands below the crate: `watch` looks at the frames that come, `screen` at their header blocks, `outbound`
//! at the frames that go. `heads` translates between its heads and ours,
//! `body` moves DATA without copying it, `server` serves the streams of a client's connection, `client`
//! is the stream of a request upstream. Connections to hosts are kept by [`crate::upstream::multiplex`].

pub mod body;
pub mod client;
pub mod guard;
pub mod heads;
mod huffman;
mod outbound;
pub mod ping;
pub mod rebalance;
mod screen;
pub mod server;
pub mod tunnel;
mod watch;

use std::io;
use std::time::Duration;

use crate::config::cluster::UpstreamHttp;

pub use body::{Incoming, Outgoing, Piece};
pub use guard::{Account, Flood, Guarded, Limits, PREFACE};
pub use watch::HeadLimits;

/// `Http2ProtocolOptions`, as far as both directions have a use for them. Defaults are Envoy's
/// (`config/core/v3/protocol.proto`).
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Size of the peer's header compression table, in bytes. Default 4096.
    pub header_table_size: u32,
    /// Streams at a time, that we accept as a server or open as a client. Default 1024.
    pub max_concurrent_streams: u32,
    /// Bytes of a stream's body that may be on their way. Default 16 MiB.
    pub initial_stream_window: u32,
    /// Bytes of all bodies of a connection that may be on their way. Default 24 MiB.
    pub initial_connection_window: u32,
    /// Accept extended CONNECT (RFC 8441) as a server.
    pub allow_connect: bool,
    /// How often the peer is asked for a sign of life.
    pub keepalive: Option<Keepalive>,
    /// What a peer may send.
    pub limits: Limits,
}

/// `connection_keepalive`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keepalive {
    /// Time between two PINGs; `None` = none are sent by the clock.
    pub interval: Option<Duration>,
    /// An upstream that was silent for longer is asked with the next request (`connection_idle_interval`).
    pub idle_interval: Option<Duration>,
    /// How long the answer may take.
    pub timeout: Duration,
    /// Random addition to the interval, in percent of it. Default 15.
    pub jitter_percent: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window: 16 << 20,
            initial_connection_window: 24 << 20,
            allow_connect: false,
            keepalive: None,
            limits: Limits::default(),
        }
    }
}

/// Bytes of one stream that wait in the crate for the socket.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a peer reset and we have not looked at yet, at a time: a proxy before us whose clients leave
/// resets all of their streams at once. Who opens streams only to reset them is found out by their age.
const PENDING_RESETS: usize = 512;
/// Streams that we reset as a server and still remember, at a time.
const RESETS_KEPT: usize = 50;
/// Streams that we reset because of the peer's errors, in the life of a connection.
const ERROR_RESETS: usize = 100;
/// The same as a client: requests are given up in the ordinary course of things, and their answers still come. A
/// frame of a stream that was forgotten counts as an error of the upstream's, and too many of these would end the
/// connection under the requests of everybody else.
const CLIENT_RESETS_KEPT: usize = 1024;
const CLIENT_ERROR_RESETS: usize = 10_000;

/// How we speak as a client.
pub fn client_builder(options: &Options, http: &UpstreamHttp) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .header_table_size(options.header_table_size)
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_header_list_size(u32::try_from(http.max_response_headers).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(CLIENT_RESETS_KEPT)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(CLIENT_ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Why a stream ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset it.
    #[error("the peer reset the stream: {0}")]
    Reset(h2::Reason),
    /// The peer has not begun with it: REFUSED_STREAM, or GOAWAY with a lower stream.
    #[error("the peer did not process the stream")]
    Refused,
    /// Its connection is gone.
    #[error("the connection was closed")]
    Closed,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(h2::Reason),
}

impl StreamError {
    /// The meaning of the crate's error.
    pub fn of(error: &h2::Error) -> Self {
        let reason = error.reason();
        if error.is_io() {
            return Self::Closed;
        }
        match reason {
            // A GOAWAY reaches only streams above the last one that the peer will process.
            Some(_) if error.is_go_away() && error.is_remote() => Self::Refused,
            Some(h2::Reason::REFUSED_STREAM) if error.is_remote() => Self::Refused,
            Some(reason) if error.is_remote() => Self::Reset(reason),
            Some(reason) => Self::Protocol(reason),
            None => Self::Closed,
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}
