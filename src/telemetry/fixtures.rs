//! A stream and heads for the tests of this room.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::stream_info::{ConnectionInfo, Protocol, ResponseFlags, StreamInfo, WallClock};
use crate::config::cluster::{Address, HostTemplate};
use crate::config::fixtures::names;
use crate::config::{HeaderKey, HeaderView, Host};

/// A head as a list of fields.
pub(crate) struct Head(pub Vec<(&'static str, Vec<u8>)>);

impl Head {
    pub fn new(fields: &[(&'static str, &str)]) -> Self {
        Self(fields.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect())
    }
}

impl HeaderView for Head {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        self.0.iter().filter(|(name, _)| *name == key.name()).for_each(|(_, value)| each(value));
    }

    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| *name == key.name()).map(|(_, value)| value.as_slice())
    }

    fn byte_size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// A connection, numbered 1, from `remote` to `local`.
pub(crate) fn connection(remote: Option<SocketAddr>, local: Option<SocketAddr>) -> ConnectionInfo {
    ConnectionInfo {
        inbound: false,
        retirement: Arc::default(),
        id: 1,
        remote,
        direct_remote: remote,
        local,
        direct_local: local,
        tls: None,
        server_name: None,
        listener: "".into(),
        filter_chain: "".into(),
        start: Instant::now(),
        objects: None,
        is_restored: false,
        source: None,
        metadata: None,
    }
}

/// A finished request: 200 after 12 ms, from 10.0.0.9:4444 by way of 127.0.0.1:8080 to 10.1.1.1:80.
pub(crate) fn stream() -> StreamInfo {
    let peer = "10.0.0.9:4444".parse().ok();
    let local = "127.0.0.1:8080".parse().ok();
    let connection =
        ConnectionInfo { id: 7, server_name: Some("sni.example".into()), ..connection(peer, local) };
    let start_time = UNIX_EPOCH + Duration::from_millis(1_795_235_329_739);
    let start = Instant::now();
    let mut info = StreamInfo::new(Rc::new(connection), start, WallClock::at(start, start_time));
    info.protocol = Some(Protocol::Http11);
    info.upstream_protocol = Some(Protocol::Http2);
    info.response_code = 200;
    info.bytes_received = 4;
    info.bytes_sent = 83;
    info.request_headers_bytes = 100;
    info.details = "via_upstream".into();
    info.cluster = Some(names("web"));
    info.upstream_local = "10.0.0.1:5555".parse().ok();
    let template = HostTemplate { hostname: Arc::from("h.example"), weight: 1, ..HostTemplate::default() };
    if let Ok(address) = "10.1.1.1:80".parse() {
        info.host = Some(Host::new(Address::Ip(address), template));
    }
    info.attempts = 1;
    info.times.request_complete = Some(info.start + Duration::from_micros(1500));
    info.times.first_upstream_tx = Some(info.start + Duration::from_micros(2500));
    info.times.first_upstream_rx = Some(info.start + Duration::from_millis(9));
    info.times.last_downstream_tx = Some(info.start + Duration::from_millis(11));
    info.times.end = Some(info.start + Duration::from_millis(12));
    info
}

/// [`stream`], failed with 503.
pub(crate) fn failed_stream() -> StreamInfo {
    let mut info = stream();
    info.response_code = 503;
    info.flags.insert(ResponseFlags::UF);
    info.flags.insert(ResponseFlags::URX);
    info
}
