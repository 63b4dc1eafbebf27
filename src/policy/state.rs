//! Tests of filter state (`envoy.type.matcher.v3.FilterStateMatcher`).

use std::net::{IpAddr, SocketAddr};

use super::rbac::Networks;
use crate::config::matcher::StringMatcher;
use crate::telemetry::filter_state::Object;
use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo};

/// A test of the object of one name; where there is none, it is not passed.
#[derive(Debug, Clone)]
pub struct StateMatcher {
    /// The name.
    pub key: Box<str>,
    /// What the object must be.
    pub wanted: Wanted,
}

/// What an object must be.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Such a text.
    Text(StringMatcher),
    /// An address in one of the networks, or if the second is set, in none.
    Address(Networks, bool),
}

impl StateMatcher {
    /// Whether a stream passes.
    pub fn matches(&self, stream: &StreamInfo) -> bool {
        self.passes(stream.object(&self.key))
    }

    /// Whether a connection passes.
    pub fn matches_connection(&self, connection: &ConnectionInfo) -> bool {
        self.passes(connection.objects.as_ref().and_then(|objects| objects.get(&self.key)))
    }

    fn passes(&self, object: Option<&Object>) -> bool {
        let Some(text) = object.map(Object::text) else { return false };
        match &self.wanted {
            Wanted::Text(matcher) => matcher.matches(text.as_bytes()),
            Wanted::Address(networks, invert) => {
                let ip = text.parse::<SocketAddr>().map(|address| address.ip());
                let ip = ip.or_else(|_| text.parse::<IpAddr>());
                ip.is_ok_and(|ip| networks.contains(ip) != *invert)
            }
        }
    }
}
