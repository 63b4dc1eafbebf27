//! What becomes of a request that a route matched.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::header_ops::HeaderOps;
use super::internal_redirect::InternalRedirects;
use super::overrides::Overrides;
use super::path::PathMatch;
use super::redirect::Redirect;
use super::retry::RetryPolicy;
use super::rewrite::{HostRewrite, PathRewrite};
use crate::config::balancing::Criteria;
use crate::config::headers::{HeaderKey, HeaderView, RequestView};
use crate::config::http::{BodyFormat, Upgrade};
use crate::config::matcher::{number, Fraction};
use crate::config::regex::Substitution;
use crate::config::slot::Slot;
use crate::config::Cluster;
use crate::http::filters::header_mutation::Mutations;

/// A route's action.
#[derive(Debug)]
pub enum Action {
    /// To an upstream.
    Forward(Box<Forward>),
    /// To another URL.
    Redirect(Box<Redirect>),
    /// Answered here.
    Direct(DirectResponse),
    /// For routes that no proxy forwards by (`non_forwarding_action`).
    NonForwarding,
}

impl Action {
    /// Whether requests are for a cluster, if only one that there is not.
    pub fn has_clusters(&self) -> bool {
        matches!(self, Self::Forward(_) | Self::NonForwarding)
    }
}

/// A reply made from config.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// Its body, possibly empty.
    pub body: Bytes,
    /// What the body is made by, where it is not the same for all requests.
    pub format: Option<Arc<BodyFormat>>,
    /// The content type, unless that is `text/plain`.
    pub content_type: Option<Bytes>,
}

/// How a request is forwarded (`RouteAction`).
#[derive(Debug)]
pub struct Forward {
    /// Which cluster.
    pub target: Target,
    /// From the end of the request to the end of the response, retries included. Default 15 s; `None`
    /// = no limit, which is also what setting `max_stream_duration` means.
    pub timeout: Option<Duration>,
    /// Time without progress, instead of the connection manager's. `Some(None)` = no limit.
    pub idle_timeout: Option<Option<Duration>>,
    /// Longest life of a stream, instead of the connection manager's. `Some(None)` = no limit.
    pub max_stream_duration: Option<Option<Duration>>,
    /// Whether and how `grpc-timeout` counts.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// The route's retry policy, or its virtual host's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// A try whose time is up goes on beside the next: the route's policy, or its virtual host's.
    pub hedge_on_per_try_timeout: bool,
    /// Redirects of the upstream that are followed here.
    pub redirects: Option<Box<InternalRedirects>>,
    /// Routing priority: 0 DEFAULT, 1 HIGH.
    pub priority: usize,
    /// Status when the cluster is unknown. Default 503.
    pub cluster_not_found_code: u16,
    /// Upgrades that differ from the connection manager's.
    pub upgrades: Box<[Upgrade]>,
    /// Where copies of the request go: the route's, else its virtual host's, else its table's.
    pub mirrors: Arc<[Mirror]>,
    /// What is asked of the host's metadata.
    pub metadata_match: Option<Arc<Criteria>>,
    /// What a consistent-hash balancer hashes, in order.
    pub hash_policies: Box<[HashPolicy]>,
    /// How the path is rewritten.
    pub path_rewrite: Option<PathRewrite>,
    /// How the authority is rewritten.
    pub host_rewrite: HostRewrite,
    /// Append the original authority to `x-forwarded-host` when it is rewritten.
    pub append_x_forwarded_host: bool,
    /// Send `x-envoy-attempt-count` upstream (virtual host).
    pub include_request_attempt_count: bool,
    /// Return `x-envoy-attempt-count` (virtual host).
    pub include_attempt_count_in_response: bool,
    /// Send `x-envoy-is-timeout-retry` with retries after a per-try timeout (virtual host).
    pub include_is_timeout_retry_header: bool,
}

impl Forward {
    /// The path to send, query kept; `None` = the original. `matched` is the route's matcher.
    pub fn rewritten_path(&self, matched: &PathMatch, original: &[u8]) -> Option<Vec<u8>> {
        self.path_rewrite.as_ref().map(|rewrite| rewrite.apply(matched, original))
    }

    /// The authority to send; `None` = the original, or (auto) the chosen host's name.
    pub fn rewritten_host<'a, R: RequestView>(&'a self, request: &'a R) -> Option<Cow<'a, [u8]>> {
        self.host_rewrite.apply(request)
    }

    /// The clusters that it names, also for mirrors.
    pub(super) fn clusters(&self) -> impl Iterator<Item = &Arc<Slot<Cluster>>> {
        let (one, many) = match &self.target {
            Target::Cluster(slot) => (Some(slot), &[][..]),
            Target::Header(_) => (None, &[][..]),
            Target::Weighted(weighted) => (None, weighted.all()),
        };
        let others = many.iter().map(|one| &one.cluster);
        let others = others.chain(self.mirrors.iter().map(|mirror| &mirror.cluster));
        one.into_iter().chain(others.filter_map(ClusterRef::slot))
    }

    /// Whether a hash chooses among clusters.
    pub fn chooses_by_hash(&self) -> bool {
        matches!(&self.target, Target::Weighted(weighted) if weighted.by_hash)
            && !self.hash_policies.is_empty()
    }

    /// Whether the authority becomes the chosen host's name.
    pub fn auto_host_rewrite(&self) -> bool {
        matches!(self.host_rewrite, HostRewrite::Auto)
    }
}

/// Which cluster a request goes to.
#[derive(Debug)]
pub enum Target {
    /// This one.
    Cluster(Arc<Slot<Cluster>>),
    /// The one this request header names (its first value).
    Header(HeaderKey),
    /// One of several, by weight.
    Weighted(Box<WeightedClusters>),
}

/// The cluster chosen for one request.
#[derive(Debug)]
pub enum Chosen<'t, 'r> {
    /// One that config names.
    Slot(&'t Arc<Slot<Cluster>>),
    /// One that the request names, to be looked up; `None` = the request has no such header.
    Named(Option<&'r [u8]>),
}

impl Target {
    /// Chooses. `random` is the number drawn for this request. A weighted cluster comes with its own
    /// header changes and host, which apply before the route's.
    pub fn choose<'t, 'r, V: HeaderView>(
        &'t self,
        request: &'r V,
        random: u64,
    ) -> (Chosen<'t, 'r>, Option<&'t WeightedCluster>) {
        match self {
            Target::Cluster(slot) => (Chosen::Slot(slot), None),
            Target::Header(key) => (Chosen::Named(request.first(key)), None),
            Target::Weighted(weighted) => {
                let cluster = weighted.pick(request, random);
                (cluster.cluster.choose(request), Some(cluster))
            }
        }
    }
}

/// A cluster, by name or by a header that names it.
#[derive(Debug, Clone)]
pub enum ClusterRef {
    /// This one.
    Slot(Arc<Slot<Cluster>>),
    /// The one this request header names.
    Header(HeaderKey),
}

impl ClusterRef {
    fn slot(&self) -> Option<&Arc<Slot<Cluster>>> {
        match self {
            ClusterRef::Slot(slot) => Some(slot),
            ClusterRef::Header(_) => None,
        }
    }

    /// The cluster for `request`.
    pub fn choose<'t, 'r, V: HeaderView>(&'t self, request: &'r V) -> Chosen<'t, 'r> {
        match self {
            ClusterRef::Slot(slot) => Chosen::Slot(slot),
            ClusterRef::Header(key) => Chosen::Named(request.first(key)),
        }
    }
}

/// Clusters that share a route's requests by weight.
#[derive(Debug)]
pub struct WeightedClusters {
    /// Sums of the weights up to and including each cluster; the last is more than 0.
    ends: Box<[u64]>,
    /// As many as `ends`; at least one.
    clusters: Box<[WeightedCluster]>,
    /// Request header whose number replaces the random one.
    random_header: Option<HeaderKey>,
    /// The hash of the route's hash policies replaces it, where there is one.
    by_hash: bool,
}

/// One of [`WeightedClusters`].
#[derive(Debug)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: ClusterRef,
    /// Changes to the request's head, before the route's.
    pub request_headers: HeaderOps,
    /// Changes to the response's head, before the route's.
    pub response_headers: HeaderOps,
    /// New authority, set before the route's rewrite.
    pub host_rewrite: Option<Bytes>,
    /// What is asked of the host's metadata, the route's included.
    pub metadata_match: Option<Arc<Criteria>>,
    /// What it says to HTTP filters, the route's words included; `None` = what the route says.
    pub overrides: Option<Arc<Overrides>>,
}

impl WeightedClusters {
    /// `None` unless the weights' sum is between 1 and 2^32 - 1.
    pub(super) fn new(
        clusters: Vec<(u32, WeightedCluster)>,
        random_header: Option<HeaderKey>,
        by_hash: bool,
    ) -> Option<Self> {
        let mut sum = 0u64;
        let (mut ends, mut list) = (Vec::new(), Vec::new());
        for (weight, cluster) in clusters {
            sum += u64::from(weight);
            ends.push(sum);
            list.push(cluster);
        }
        let valid = (1..=u64::from(u32::MAX)).contains(&sum);
        valid.then(|| Self { ends: ends.into(), clusters: list.into(), random_header, by_hash })
    }

    /// The clusters, in order.
    pub fn all(&self) -> &[WeightedCluster] {
        &self.clusters
    }

    /// The cluster into whose share the request falls.
    pub fn pick<V: HeaderView>(&self, request: &V, random: u64) -> &WeightedCluster {
        let given = self.random_header.as_ref().and_then(|key| single_number(request, key));
        let total = self.ends.last().copied().unwrap_or(1);
        let drawn = given.unwrap_or(random) % total;
        let index = self.ends.partition_point(|end| *end <= drawn);
        // `drawn` is less than the last end, so the index is one of a cluster.
        &self.clusters[index.min(self.clusters.len() - 1)]
    }
}

/// The number in a header that has exactly one value.
fn single_number<V: HeaderView>(request: &V, key: &HeaderKey) -> Option<u64> {
    let mut count = 0;
    request.values(key, &mut |_| count += 1);
    if count == 1 {
        request.first(key).and_then(number)
    } else {
        None
    }
}

/// Use of the `grpc-timeout` request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// What it limits.
    pub limits: GrpcTimeoutLimits,
    /// Longest time it may ask for; `None` = any.
    pub max: Option<Duration>,
    /// Taken off it, if that leaves anything.
    pub offset: Duration,
}

/// What `grpc-timeout` limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcTimeoutLimits {
    /// `max_grpc_timeout`: it replaces the route's timeout (no header: `max`).
    Route,
    /// `max_stream_duration.grpc_timeout_header_max`: it replaces the stream's longest life.
    Stream,
}

/// A copy of requests (`RequestMirrorPolicy`).
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where it goes.
    pub cluster: ClusterRef,
    /// Of which requests.
    pub fraction: Fraction,
    /// Changes to the copy's head.
    pub headers: Option<Arc<Mutations>>,
    /// The copy's authority.
    pub host: MirrorHost,
    /// Whether its span is sampled; `None` = as the request's.
    pub sampled: Option<bool>,
}

/// The authority of a copy.
#[derive(Debug, Clone)]
pub enum MirrorHost {
    /// The request's, with `-shadow` behind the name.
    Suffixed,
    /// The request's.
    Kept,
    /// This one.
    Literal(Bytes),
}

/// What a consistent-hash balancer hashes.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    /// The value.
    pub input: HashInput,
    /// Stop here if there is a hash.
    pub terminal: bool,
}

/// A value to hash.
#[derive(Debug, Clone)]
pub enum HashInput {
    /// A request header, rewritten if so configured.
    Header(HeaderKey, Option<Box<Substitution>>),
    /// A cookie, which is made if a lifetime is given and the request has none.
    Cookie(Box<HashCookie>),
    /// The peer's IP address.
    SourceIp,
    /// A query parameter.
    QueryParameter(Box<str>),
    /// An object of the filter state.
    FilterState(Box<str>),
}

/// A cookie that carries a hash, or where a session is.
#[derive(Debug, Clone)]
pub struct HashCookie {
    /// Its name.
    pub name: Box<str>,
    /// Its lifetime; zero = the session's. `None` = it is never made.
    pub ttl: Option<Duration>,
    /// Its path.
    pub path: Option<Box<str>>,
    /// Other attributes.
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

impl HashCookie {
    /// The value of the `set-cookie` that gives a client this `value` of it.
    pub fn set(&self, value: &str) -> Vec<u8> {
        let mut set = format!("{}=\"{value}\"", self.name);
        if let Some(seconds) = self.ttl.map(|ttl| ttl.as_secs()).filter(|seconds| *seconds > 0) {
            set += &format!("; Max-Age={seconds}");
        }
        if let Some(path) = &self.path {
            set += &format!("; Path={path}");
        }
        for (name, value) in &self.attributes {
            set += &match &**value {
                "" => format!("; {name}"),
                value => format!("; {name}={value}"),
            };
        }
        set += "; HttpOnly";
        set.into_bytes()
    }
}
