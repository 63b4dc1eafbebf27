//! How messages to services write what we have: texts, addresses, times.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use outrigger_control_api::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use outrigger_control_api::pb::google::protobuf as wkt;

use crate::config::cluster::Address;

/// Text of bytes that should be UTF-8, with `!` in place of each byte that is not, as Envoy has it.
pub fn utf8(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(std::iter::repeat_n('!', chunk.invalid().len()));
    }
    out
}

/// The address of a socket.
pub fn socket(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

/// The address of a host.
pub fn address(address: &Address) -> core::Address {
    let address = match address {
        Address::Ip(ip) => return socket(*ip),
        Address::Pipe(path) => {
            core::address::Address::Pipe(core::Pipe { path: path.to_string_lossy().into_owned(), mode: 0 })
        }
        Address::Internal(internal) => {
            core::address::Address::EnvoyInternalAddress(core::EnvoyInternalAddress {
                endpoint_id: internal.endpoint_id.to_string(),
                address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(
                    internal.listener.to_string(),
                )),
            })
        }
    };
    core::Address { address: Some(address) }
}

/// A span of time.
pub fn duration(value: Duration) -> wkt::Duration {
    wkt::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or_default(),
    }
}

/// A point in time; the epoch where it is before that.
pub fn timestamp(time: SystemTime) -> wkt::Timestamp {
    let since = duration(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    wkt::Timestamp { seconds: since.seconds, nanos: since.nanos }
}
