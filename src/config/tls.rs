//! TLS of clusters: which context connections to a host have, and which names requests ask for.

use std::sync::Arc;

use super::headers::{HeaderKey, HeaderView};
use super::passing::Passing;
use super::Host;
use crate::runtime::proxy_protocol::Version;
use crate::tls::upstream::Names;
use crate::tls::UpstreamTls;

/// TLS towards the hosts of a cluster.
#[derive(Debug)]
pub struct ClusterTls {
    /// `transport_socket`; `None` = plain text.
    pub default: Option<Arc<UpstreamTls>>,
    /// `transport_socket_matches`: the first that fits a host counts, in place of `default`.
    pub matches: Vec<SocketMatch>,
    /// The PROXY protocol that comes before `default`.
    pub announced: Option<Version>,
    /// Names by the request.
    pub auto: Option<AutoNames>,
}

/// An entry of `transport_socket_matches`.
#[derive(Debug)]
pub struct SocketMatch {
    /// What the host's metadata `envoy.transport_socket_match` must have; nothing fits every host.
    pub criteria: Vec<(Box<str>, serde_json::Value)>,
    /// The context; `None` = plain text.
    pub tls: Option<Arc<UpstreamTls>>,
    /// The PROXY protocol that comes before it.
    pub announced: Option<Version>,
    /// What is passed on to internal listeners.
    pub passing: Option<Arc<Passing>>,
}

/// `auto_sni`, `auto_san_validation`, `override_auto_sni_header`.
#[derive(Debug)]
pub struct AutoNames {
    /// Ask for the name that the request asks for.
    pub sni: bool,
    /// The certificate must have it.
    pub san: bool,
    /// Where the request has it, unless that is empty: then its authority counts.
    pub header: Option<HeaderKey>,
}

impl ClusterTls {
    /// The context for connections to `host`.
    pub fn for_host(&self, host: &Host) -> Option<&Arc<UpstreamTls>> {
        self.for_metadata(host.template.socket_match.as_deref())
    }

    /// The context for connections to a host with this metadata.
    pub fn for_metadata(
        &self,
        metadata: Option<&serde_json::Map<String, serde_json::Value>>,
    ) -> Option<&Arc<UpstreamTls>> {
        match self.matches.iter().find(|entry| entry.fits(metadata)) {
            Some(entry) => entry.tls.as_ref(),
            None => self.default.as_ref(),
        }
    }

    /// The PROXY protocol that `host` is told of clients by.
    pub fn announced_to(&self, host: &Host) -> Option<Version> {
        let metadata = host.template.socket_match.as_deref();
        match self.matches.iter().find(|entry| entry.fits(metadata)) {
            Some(entry) => entry.announced,
            None => self.announced,
        }
    }

    /// What is passed on to `host`, an internal listener, where it is matched.
    pub fn passing_to(&self, host: &Host) -> Option<Option<&Arc<Passing>>> {
        let metadata = host.template.socket_match.as_deref();
        self.matches.iter().find(|entry| entry.fits(metadata)).map(|entry| entry.passing.as_ref())
    }

    /// All contexts.
    pub fn contexts(&self) -> impl Iterator<Item = &Arc<UpstreamTls>> {
        self.default.iter().chain(self.matches.iter().filter_map(|entry| entry.tls.as_ref()))
    }
}

impl SocketMatch {
    fn fits(&self, metadata: Option<&serde_json::Map<String, serde_json::Value>>) -> bool {
        let has = |(key, value): &(Box<str>, _)| metadata.is_some_and(|has| has.get(&**key) == Some(value));
        self.criteria.iter().all(has)
    }
}

impl AutoNames {
    /// The names for a request with these headers.
    pub fn of<V: HeaderView + ?Sized>(&self, request: &V, authority: &HeaderKey) -> Names {
        let named = self.header.as_ref().and_then(|key| request.first(key)).filter(|value| !value.is_empty());
        let value = named.or_else(|| request.first(authority)).unwrap_or_default();
        let text = String::from_utf8_lossy(value);
        let host = without_port(&text);
        if host.is_empty() {
            return Names::default();
        }
        let is_ip = host.parse::<std::net::IpAddr>().is_ok();
        Names {
            sni: (self.sni && !is_ip).then(|| host.into()),
            sans: if self.san { vec![host.into()] } else { Vec::new() },
            ..Names::default()
        }
    }
}

/// The host of an authority, an IPv6 address without its brackets.
fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inner, _)) => inner,
        None => match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        },
    }
}
