//! Routes: which cluster, redirect or reply answers a request.
//!
//! Comes in: a `RouteConfiguration`. Goes out: a [`RouteTable`] that [`RouteTable::select`] searches
//! without allocating, and [`Route`]s that say what to do with the request. Pure data and functions;
//! the data path does the forwarding.

mod action;
mod beyond;
mod compile;
mod compile_action;
mod counted;
mod domains;
mod header_ops;
mod internal_redirect;
mod limits;
mod overrides;
mod path;
mod redirect;
mod retry;
mod rewrite;
mod sleeping;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use self::domains::{without_port, Domains};
use self::path::{matches, without_parameters, Conditions, RequestPath};
use self::sleeping::{HostCell, Sleeping};
use super::demand::RouteOnDemand;
use super::headers::{HeaderKey, HeaderView, Known, RequestView};
use super::{Cluster, Slot};
use crate::http::trace::{Decorator, RouteTracing};
use crate::telemetry::stream_info::DynamicMetadata;

pub use action::{
    Action, Chosen, ClusterRef, DirectResponse, Forward, GrpcTimeout, GrpcTimeoutLimits, HashCookie,
    HashInput, HashPolicy, Mirror, MirrorHost, Target, WeightedCluster, WeightedClusters,
};
pub(crate) use compile::redirect as redirect_action;
pub use compile::{compile, compile_encoded, Look};
pub(crate) use compile_action::hash_policies;
pub use counted::{CountedBy, Counts};
pub use header_ops::HeaderOps;
pub use internal_redirect::{InternalRedirects, Leads, RoutesSoFar};
pub use limits::{Descriptor, DescriptorEntries, LimitFacts, LimitsOf, RateLimits, RouteLimits};
pub use overrides::{FilterName, Override, Overrides, RouteFilter};
pub use path::{PathMatch, PathText, RequestMatch};
pub use redirect::{own_location, tls_location, Redirect, RedirectPath};
pub use retry::{
    BackOff, HostPredicate, RateLimitedBackOff, RequestRetries, ResetFormat, ResetHeader, RetryOn,
    RetryPolicy, RETRY_HEADERS,
};
pub use rewrite::{HostRewrite, PathRewrite};
pub use sleeping::{split, Parts};

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {
    /// Its name.
    pub name: Arc<str>,
    /// Removed from requests that come from outside.
    pub internal_only_headers: Box<[HeaderKey]>,
    virtual_hosts: Box<[HostCell]>,
    domains: Arc<Domains>,
    /// What those that sleep are made from.
    sleeping: Option<Arc<Sleeping>>,
    /// Names the virtual host in place of the authority.
    vhost_header: Option<HeaderKey>,
    ignore_port: bool,
    ignore_path_parameters: bool,
    /// A control plane may have more virtual hosts (VHDS).
    has_more: bool,
}

/// A compiled virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    require_tls: RequireTls,
    routes: Box<[Arc<Route>]>,
}

/// `require_tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequireTls {
    None,
    ExternalOnly,
    All,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// Its path matcher.
    pub matched: PathMatch,
    conditions: Conditions,
    /// What to do.
    pub action: Action,
    /// Changes to the request's head by route, virtual host and table, in the order they apply.
    pub request_headers: HeaderOps,
    /// Changes to the response's head, likewise.
    pub response_headers: HeaderOps,
    /// Most body bytes kept for retries and mirrors; `None` = the connection's limit.
    pub buffer_limit: Option<u32>,
    /// Free-form metadata.
    pub metadata: Option<Arc<DynamicMetadata>>,
    /// What it says to HTTP filters, its virtual host's and table's words included.
    pub overrides: Option<Arc<Overrides>>,
    /// What it says to the on-demand filter: its own, or its virtual host's or table's.
    pub on_demand: Option<Arc<RouteOnDemand>>,
    /// What counts its requests, beside their cluster.
    pub counted: Option<Box<CountedBy>>,
    /// By what rate limits count its requests.
    pub limits: Option<Box<RouteLimits>>,
    /// What it says of traces.
    pub tracing: Option<Arc<RouteTracing>>,
    /// The name that it gives to spans.
    pub decorator: Option<Arc<Decorator>>,
}

/// What [`RouteTable::select`] found.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'t> {
    /// No virtual host serves the authority, or none of its routes matches: 404.
    NotFound,
    /// No virtual host serves the authority, but a control plane may have one (VHDS).
    NoHost,
    /// The virtual host wants TLS: 301 to [`tls_location`].
    RequireTls(&'t Arc<VirtualHost>),
    /// A route.
    Found {
        /// Its virtual host.
        vhost: &'t Arc<VirtualHost>,
        /// The route.
        route: &'t Arc<Route>,
    },
}

static ENVOY_INTERNAL: LazyLock<HeaderKey> = LazyLock::new(|| Known::XEnvoyInternal.into());

impl RouteTable {
    /// The first route that matches. `random`, drawn once for a request, decides runtime fractions and
    /// weighted clusters. Allocates nothing, but for the first request to a virtual host that sleeps:
    /// that one compiles it.
    pub fn select<'t, R: RequestView>(&'t self, request: &R, random: u64) -> Selection<'t> {
        let mut authority = match &self.vhost_header {
            None => request.authority(),
            Some(key) => match request.first(key) {
                Some(named) => named,
                None => return Selection::NotFound,
            },
        };
        if self.ignore_port {
            authority = without_port(authority);
        }
        let index = self.domains.find(authority);
        let Some(cell) = index.and_then(|index| self.virtual_hosts.get(index as usize)) else {
            return if self.has_more { Selection::NoHost } else { Selection::NotFound };
        };
        let Some(vhost) = cell.get().or_else(|| cell.wake(self.sleeping.as_deref())) else {
            return Selection::NotFound;
        };
        if vhost.wants_tls(request) {
            return Selection::RequireTls(vhost);
        }
        let bare = if self.ignore_path_parameters { without_parameters(request.path()) } else { None };
        let path = RequestPath::new(request.path(), bare.as_deref());
        let found = (vhost.routes.iter())
            .find(|route| matches(&route.matched, &route.conditions, path, request, random));
        match found {
            Some(route) => Selection::Found { vhost, route },
            None => Selection::NotFound,
        }
    }

    /// How many virtual hosts there are.
    pub fn len(&self) -> usize {
        self.virtual_hosts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.virtual_hosts.is_empty()
    }

    /// The virtual hosts, in order. Those that sleep are made for the caller alone.
    pub fn virtual_hosts(&self) -> impl Iterator<Item = Arc<VirtualHost>> + '_ {
        self.virtual_hosts.iter().filter_map(|cell| cell.made(self.sleeping.as_deref()))
    }

    /// How many virtual hosts are awake that could sleep.
    pub fn awake(&self) -> usize {
        self.virtual_hosts.iter().filter(|cell| cell.is_tired()).count()
    }

    /// The same table with everything asleep that can sleep.
    #[must_use]
    pub fn rested(&self) -> Self {
        Self {
            name: self.name.clone(),
            internal_only_headers: self.internal_only_headers.clone(),
            virtual_hosts: self.virtual_hosts.iter().map(HostCell::rested).collect(),
            domains: self.domains.clone(),
            sleeping: self.sleeping.clone(),
            vhost_header: self.vhost_header.clone(),
            ignore_port: self.ignore_port,
            ignore_path_parameters: self.ignore_path_parameters,
            has_more: self.has_more,
        }
    }
}

impl Route {
    /// What it says to filters about `request`, which drew `random`: a weighted cluster may say more than the route.
    pub fn overrides_for<V: HeaderView>(&self, request: &V, random: u64) -> Option<&Arc<Overrides>> {
        if let Action::Forward(forward) = &self.action {
            if let Target::Weighted(weighted) = &forward.target {
                if let Some(own) = &weighted.pick(request, random).overrides {
                    return Some(own);
                }
            }
        }
        self.overrides.as_ref()
    }
}

impl VirtualHost {
    /// The routes, in order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The clusters that its routes name, also for mirrors.
    fn clusters(&self) -> impl Iterator<Item = &Arc<Slot<Cluster>>> {
        let forwards = self.routes.iter().filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        });
        forwards.flat_map(|forward| forward.clusters())
    }

    fn wants_tls<R: RequestView>(&self, request: &R) -> bool {
        match self.require_tls {
            RequireTls::None => false,
            _ if redirect::forwarded_proto(request) == b"https" => false,
            RequireTls::All => true,
            RequireTls::ExternalOnly => request.first(&ENVOY_INTERNAL) != Some(b"true"),
        }
    }
}
