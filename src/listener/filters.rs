//! Listener filters: what becomes known of a connection before its filter chain is chosen.
//!
//! Comes in: an accepted [`Stream`] and its [`Listener`]. Goes out: an [`Arrival`]: where the connection comes from and
//! goes to, what it speaks, and the bytes read to find out.

use std::net::SocketAddr;

use base64::prelude::{Engine, BASE64_STANDARD};
use outrigger_control_api::pb::google::protobuf::{value::Kind, Value};

use super::inspect::{self, InspectError, Inspected, MAX_BYTES};
use crate::config::cluster::Address;
use crate::config::listener::{Inspect, Listener, ListenerFilter, ProxyProtocol};
use crate::runtime::internal::Passed;
use crate::runtime::proxy_protocol::{self, Header, Verdict, Version};
use crate::runtime::Stream;
use crate::telemetry::filter_state::{Objects, LOCAL_IP, REMOTE_IP};
use crate::telemetry::stream_info::DynamicMetadata;

/// The metadata that tell where a connection from this process is meant to go.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// A connection as far as listener filters know it.
#[derive(Debug, Default)]
pub struct Arrival {
    /// Where the client meant to go.
    pub local: Option<SocketAddr>,
    /// Our end of the socket itself.
    pub direct_local: Option<SocketAddr>,
    /// The client.
    pub remote: Option<SocketAddr>,
    /// The socket's own peer.
    pub direct_remote: Option<SocketAddr>,
    /// `local` was restored: it is where the client meant to go, whatever the socket's own end is.
    pub is_restored: bool,
    /// Upstreams are connected to from this address, by sockets with this mark.
    pub source: Option<(SocketAddr, u32)>,
    /// What filters noted.
    pub metadata: Option<Box<DynamicMetadata>>,
    /// Objects that came with it.
    pub objects: Option<Box<Objects>>,
    /// What the first bytes tell, and they themselves.
    pub inspected: Inspected,
}

impl Arrival {
    /// A connection of which nothing is known but its ends, and what it brings with it.
    pub fn new(stream: &Stream, passed: Passed) -> Self {
        let (local, remote) = (stream.local_addr(), stream.peer_addr());
        let Passed { metadata, objects } = passed;
        let ends = Self { local, direct_local: local, remote, direct_remote: remote, ..Self::default() };
        Self { metadata, objects, ..ends }
    }

    /// What the inspectors of `listener` have to find out; nothing for destinations that they are left out for.
    pub fn inspects(&self, listener: &Listener) -> Inspect {
        Inspect {
            tls: listener.runs(ListenerFilter::Tls, self.local),
            http: listener.runs(ListenerFilter::Http, self.local),
            original_dst: false,
        }
    }

    /// Runs the filters that do not look at what the client says for itself.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub async fn place(&mut self, listener: &Listener, stream: &Stream) -> Result<(), InspectError> {
        if listener.runs(ListenerFilter::OriginalDst, self.local) {
            self.restore(listener, stream);
        }
        if let Some(filter) = &listener.proxy_protocol {
            if listener.runs(ListenerFilter::ProxyProtocol, self.local) {
                self.introduce(filter, stream).await?;
            }
        }
        if let Some(filter) = listener.original_src {
            if listener.runs(ListenerFilter::OriginalSrc, self.local) {
                let port = |remote: SocketAddr| if filter.bind_port { remote.port() } else { 0 };
                let source = |remote| (SocketAddr::new(SocketAddr::ip(&remote), port(remote)), filter.mark);
                self.source = self.remote.map(source);
            }
        }
        Ok(())
    }

    /// Finds where the client meant to go: a redirect rule's table knows; what TPROXY brings has it as its own end.
    fn restore(&mut self, listener: &Listener, stream: &Stream) {
        if listener.is_internal() {
            return self.restore_passed();
        }
        // The address of the socket itself is nobody's destination: it would lead back here.
        let elsewhere = |found: &SocketAddr| Some(*found) != self.direct_local;
        let found = stream.original_dst().ok().filter(elsewhere).or_else(|| {
            let own_port = match &listener.address {
                Address::Ip(address) => Some(address.port()),
                Address::Pipe(_) | Address::Internal(_) => None,
            };
            self.direct_local.filter(|local| listener.transparent && Some(local.port()) != own_port)
        });
        if found.is_some() {
            (self.local, self.is_restored) = (found, true);
        }
    }

    /// The same of a connection from this process: what came with it says so.
    fn restore_passed(&mut self) {
        let object = |name| self.objects.as_ref()?.get(name)?.text().parse::<SocketAddr>().ok();
        let noted = || {
            let fields = &self.metadata.as_ref()?.get(ORIGINAL_DST)?.fields;
            match fields.get("local")?.kind.as_ref()? {
                Kind::StringValue(text) => text.parse().ok(),
                _ => None,
            }
        };
        let (local, remote) = (object(LOCAL_IP).or_else(noted), object(REMOTE_IP));
        if local.is_some() {
            (self.local, self.is_restored) = (local, true);
        }
        self.remote = remote.or(self.remote);
    }

    /// Reads the header of the PROXY protocol.
    async fn introduce(&mut self, filter: &ProxyProtocol, stream: &Stream) -> Result<(), InspectError> {
        let header = loop {
            if !self.inspected.prefix.is_empty() {
                match proxy_protocol::look(&self.inspected.prefix) {
                    Ok(Verdict::NeedMore) => {}
                    Ok(Verdict::Header(header)) => break header,
                    Ok(Verdict::Absent) if filter.optional => {
                        filter.stats.all.not_found_allowed.increment(1);
                        return Ok(());
                    }
                    Ok(Verdict::Absent) => {
                        filter.stats.all.not_found_disallowed.increment(1);
                        return Err(InspectError::Unannounced);
                    }
                    Err(malformed) => {
                        match malformed.version {
                            _ if malformed.endless => filter.stats.all.not_found_disallowed.increment(1),
                            Version::V1 => filter.stats.v1.error.increment(1),
                            Version::V2 => filter.stats.v2.error.increment(1),
                        }
                        return Err(malformed.into());
                    }
                }
            }
            inspect::read(stream, &mut self.inspected.prefix, MAX_BYTES + 16).await?;
        };
        let (stats, refused) = match header.version {
            Version::V1 => (&filter.stats.v1, filter.refuses_v1),
            Version::V2 => (&filter.stats.v2, filter.refuses_v2),
        };
        let fields = self.inspected.prefix.get(header.fields.clone()).unwrap_or_default();
        // Where nobody asks for them, as in Envoy, it does not matter what they are.
        if !filter.rules.is_empty() && !proxy_protocol::are_fields(fields) {
            stats.error.increment(1);
            return Err(InspectError::Unannounced);
        }
        stats.found.increment(1);
        if refused {
            stats.disallowed.increment(1);
            return Err(InspectError::Unannounced);
        }
        self.take(filter, &header);
        Ok(())
    }

    fn take(&mut self, filter: &ProxyProtocol, header: &Header) {
        let bytes = self.inspected.prefix.split_to(header.length);
        if let Some(ends) = header.ends {
            self.remote = Some(ends.source);
            if self.local != Some(ends.destination) {
                (self.local, self.is_restored) = (Some(ends.destination), true);
            }
        }
        let fields = bytes.get(header.fields.clone()).unwrap_or_default();
        for (kind, value) in proxy_protocol::fields(fields) {
            for rule in filter.rules.iter().filter(|rule| rule.kind == kind) {
                let text = if rule.base64 {
                    BASE64_STANDARD.encode(value)
                } else {
                    // As in Envoy, what is no UTF-8 shows as a mark for each byte.
                    String::from_utf8_lossy(value).replace(char::REPLACEMENT_CHARACTER, "!")
                };
                let space = self.metadata.get_or_insert_with(Box::default).entry(rule.namespace.to_string());
                let text = Value { kind: Some(Kind::StringValue(text)) };
                space.or_default().fields.insert(rule.key.to_string(), text);
            }
        }
    }
}
