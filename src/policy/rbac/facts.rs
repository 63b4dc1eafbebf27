//! What is known of a request or a connection when it is decided on.

use std::net::{IpAddr, SocketAddr};

use crate::config::discovery::SanKind;
use crate::config::{HeaderKey, RequestView};
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata, StreamInfo};

/// The facts of one request, or of a connection that carries none.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Its connection.
    pub connection: &'a ConnectionInfo,
    /// The stream's record; `None` for a network filter.
    pub stream: Option<&'a StreamInfo>,
    /// The request; `None` for a network filter.
    pub request: Option<&'a dyn RequestView>,
    /// Metadata that filters have left, by namespace.
    pub dynamic: Option<&'a DynamicMetadata>,
    /// Metadata of the request's route.
    pub route: Option<&'a DynamicMetadata>,
}

/// Addresses that rules speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Where the client meant to go (`destination_ip`).
    Destination,
    /// The connection's peer, after the PROXY protocol (`source_ip`).
    Source,
    /// The peer of the socket (`direct_remote_ip`).
    DirectRemote,
    /// The client after XFF (`remote_ip`).
    Remote,
}

/// Texts that rules speak of. One may have several values, or none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextInput {
    /// Names of the peer's certificate: URIs, DNS names, the subject. None without TLS; an empty subject without a
    /// certificate.
    Peer,
    /// The path without query and fragment.
    Path,
    /// SNI; empty if there is none.
    ServerName,
    /// A request header.
    Header(HeaderKey),
}

impl<'a> Facts<'a> {
    /// Of a connection.
    pub fn of_connection(connection: &'a ConnectionInfo) -> Self {
        Self { connection, stream: None, request: None, dynamic: None, route: None }
    }

    /// An address.
    pub fn address(&self, whose: Whose) -> Option<SocketAddr> {
        match whose {
            Whose::Destination => self.connection.local,
            Whose::Source => self.connection.remote,
            Whose::DirectRemote => self.connection.direct_remote,
            Whose::Remote => self.request.and_then(RequestView::remote_address).or(self.connection.remote),
        }
    }

    /// The IP of an address.
    pub fn ip(&self, whose: Whose) -> Option<IpAddr> {
        self.address(whose).map(|address| address.ip())
    }

    /// The port that the client meant to reach.
    pub fn destination_port(&self) -> Option<u16> {
        self.connection.local.map(|local| local.port())
    }

    /// The request's path without query and fragment; `None` if it has none.
    pub fn path(&self) -> Option<&'a [u8]> {
        let path = self.request.map(RequestView::path).filter(|path| !path.is_empty())?;
        path.split(|byte| matches!(byte, b'?' | b'#')).next()
    }

    /// Names of this kind in the peer's certificate.
    pub fn peer_names(&self, kind: SanKind) -> impl Iterator<Item = &'a str> {
        let facts = self.connection.tls.as_ref().and_then(|tls| tls.peer_facts());
        facts.into_iter().flat_map(move |facts| facts.of_kind(kind))
    }

    /// The subject of the peer's certificate; empty if it presented none. `None` without TLS.
    pub fn subject(&self) -> Option<&'a str> {
        let tls = self.connection.tls.as_ref()?;
        Some(tls.peer_facts().map_or("", |facts| facts.subject.as_str()))
    }

    /// Calls `each` with the values of a text until it says that it has seen enough, and whether it did.
    pub fn any_text(&self, input: &TextInput, each: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        match input {
            TextInput::Peer => {
                let Some(subject) = self.subject() else { return false };
                self.peer_names(SanKind::Uri).any(|name| each(name.as_bytes()))
                    || self.peer_names(SanKind::Dns).any(|name| each(name.as_bytes()))
                    || each(subject.as_bytes())
            }
            TextInput::Path => self.path().is_some_and(each),
            TextInput::ServerName => {
                each(self.connection.server_name.as_deref().unwrap_or_default().as_bytes())
            }
            TextInput::Header(key) => {
                let Some(request) = self.request else { return false };
                let mut enough = false;
                request.values(key, &mut |value| enough = enough || each(value));
                enough
            }
        }
    }
}
