//! The kinds of resources and the order in which a stream sends them.

use std::borrow::Cow;
use std::fmt;

/// A resource type, named by its type URL. Ordered as a stream sends additions and changes: what others
/// point at comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceType {
    rank: u8,
    url: Cow<'static, str>,
}

const RANK_CLUSTER: u8 = 2;
const RANK_ENDPOINTS: u8 = 3;
const RANK_LISTENER: u8 = 5;
const RANK_SCOPED_ROUTES: u8 = 6;
const RANK_ROUTE: u8 = 7;
const RANK_VIRTUAL_HOST: u8 = 8;

/// Types without a rank of their own.
const RANK_OTHER: u8 = 9;

impl ResourceType {
    /// Runtime layers (RTDS).
    pub const RUNTIME: Self = Self::known(0, "type.googleapis.com/envoy.service.runtime.v3.Runtime");
    /// TLS secrets (SDS).
    pub const SECRET: Self =
        Self::known(1, "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    /// Clusters (CDS).
    pub const CLUSTER: Self =
        Self::known(RANK_CLUSTER, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    /// Endpoint assignments (EDS).
    pub const ENDPOINTS: Self =
        Self::known(RANK_ENDPOINTS, "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    /// Extension configurations (ECDS).
    pub const EXTENSION: Self =
        Self::known(4, "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
    /// Listeners (LDS).
    pub const LISTENER: Self =
        Self::known(RANK_LISTENER, "type.googleapis.com/envoy.config.listener.v3.Listener");
    /// Scopes of route tables (SRDS).
    pub const SCOPED_ROUTES: Self =
        Self::known(RANK_SCOPED_ROUTES, "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration");
    /// Route tables (RDS).
    pub const ROUTE: Self =
        Self::known(RANK_ROUTE, "type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
    /// Virtual hosts (VHDS).
    pub const VIRTUAL_HOST: Self =
        Self::known(RANK_VIRTUAL_HOST, "type.googleapis.com/envoy.config.route.v3.VirtualHost");

    /// Every type that has a place of its own in the order.
    pub const KNOWN: [Self; 9] = [
        Self::RUNTIME,
        Self::SECRET,
        Self::CLUSTER,
        Self::ENDPOINTS,
        Self::EXTENSION,
        Self::LISTENER,
        Self::SCOPED_ROUTES,
        Self::ROUTE,
        Self::VIRTUAL_HOST,
    ];

    const fn known(rank: u8, url: &'static str) -> Self {
        Self { rank, url: Cow::Borrowed(url) }
    }

    /// The type that a type URL names. Unknown ones are served too, after all others.
    #[must_use]
    pub fn from_url(url: &str) -> Self {
        let known = Self::KNOWN.into_iter().find(|k| k.url == url);
        known.unwrap_or_else(|| Self { rank: RANK_OTHER, url: Cow::Owned(url.to_owned()) })
    }

    /// The type URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// True when a state-of-the-world response holds every resource, so that absence means removal.
    pub(super) fn is_full_state(&self) -> bool {
        matches!(self.rank, RANK_CLUSTER | RANK_LISTENER | RANK_SCOPED_ROUTES)
    }

    /// True when a change of this type waits until the client has settled what it may point at.
    pub(super) fn waits(&self) -> bool {
        (RANK_LISTENER..=RANK_VIRTUAL_HOST).contains(&self.rank)
    }

    /// True when a waiting type `other` waits for this one.
    pub(super) fn is_waited_for_by(&self, other: &Self) -> bool {
        other.waits() && self.rank >= RANK_CLUSTER && self.rank < other.rank
    }

    /// Where removals of this type stand: what points at others goes first.
    pub(super) fn removal_rank(&self) -> u8 {
        match self.rank {
            RANK_LISTENER..=RANK_VIRTUAL_HOST => self.rank,
            RANK_CLUSTER | RANK_ENDPOINTS => self.rank + RANK_OTHER,
            other => other + 2 * RANK_OTHER,
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.rsplit('/').next().unwrap_or(&self.url))
    }
}
