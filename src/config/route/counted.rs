//! Whose requests are counted apart from those of their cluster: virtual clusters, and routes with a name for statistics
//! (envoyproxy.io: router filter, statistics).

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as pb;

use crate::config::headers::RequestView;
use crate::config::matcher::HeaderMatcher;
use crate::config::problems::Problems;
use crate::telemetry::stats::RouteStats;
use crate::telemetry::stream_info::VirtualClusterName;

/// By what a route's requests are counted beside their cluster.
#[derive(Debug)]
pub struct CountedBy {
    /// The route's own.
    own: Option<RouteStats>,
    /// The virtual host's.
    clusters: Option<Arc<VirtualClusters>>,
}

impl CountedBy {
    /// For a route with this name for statistics, which may be empty; `None` = by their cluster alone.
    pub(super) fn new(
        host: &str,
        prefix: &str,
        clusters: Option<&Arc<VirtualClusters>>,
    ) -> Option<Box<Self>> {
        let own = (!prefix.is_empty()).then(|| RouteStats::for_route(host, prefix));
        (own.is_some() || clusters.is_some()).then(|| Box::new(Self { own, clusters: clusters.cloned() }))
    }

    /// What counts `request`, and the name of the virtual cluster that it belongs to.
    pub fn of<R: RequestView>(&self, request: &R) -> (Counts<'_>, Option<&Arc<VirtualClusterName>>) {
        let (stats, name) = match &self.clusters {
            None => (None, None),
            Some(clusters) => {
                let (stats, name) = clusters.of(request);
                (Some(stats), name)
            }
        };
        (Counts([stats, self.own.as_ref()]), name)
    }
}

/// What counts one request beside its cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts<'r>([Option<&'r RouteStats>; 2]);

impl Counts<'_> {
    /// Does it to each.
    #[inline]
    pub fn each(&self, count: impl Fn(&RouteStats)) {
        // Few requests have either: no loop.
        let [host, route] = self.0;
        if let Some(stats) = host {
            count(stats);
        }
        if let Some(stats) = route {
            count(stats);
        }
    }
}

/// `virtual_clusters` of a virtual host.
#[derive(Debug)]
pub(super) struct VirtualClusters {
    list: Box<[VirtualCluster]>,
    /// Of the requests that belong to none.
    other: RouteStats,
}

#[derive(Debug)]
struct VirtualCluster {
    name: Arc<VirtualClusterName>,
    headers: Box<[HeaderMatcher]>,
    stats: RouteStats,
}

impl VirtualClusters {
    /// `None` where there is none, or a problem was reported.
    pub(super) fn compile(config: &pb::VirtualHost, problems: &mut Problems) -> Option<Arc<Self>> {
        let compile = |cluster: &pb::VirtualCluster, problems: &mut Problems| {
            if cluster.headers.is_empty() {
                problems.report_at("headers", "is required");
            }
            let headers = HeaderMatcher::compile_all(&cluster.headers, "headers", problems)?;
            let stats = RouteStats::for_virtual_cluster(&config.name, &cluster.name);
            let name = Arc::new(VirtualClusterName(cluster.name.as_str().into()));
            Some(VirtualCluster { name, headers, stats })
        };
        let list: Box<[_]> = (config.virtual_clusters.iter().enumerate())
            .filter_map(|(index, cluster)| {
                problems.at_index("virtual_clusters", index, |problems| compile(cluster, problems))
            })
            .collect();
        let other = || RouteStats::for_virtual_cluster(&config.name, "other");
        (!list.is_empty()).then(|| Arc::new(Self { list, other: other() }))
    }

    fn of<R: RequestView>(&self, request: &R) -> (&RouteStats, Option<&Arc<VirtualClusterName>>) {
        let of = |cluster: &&VirtualCluster| cluster.headers.iter().all(|matcher| matcher.matches(request));
        match self.list.iter().find(of) {
            Some(cluster) => (&cluster.stats, Some(&cluster.name)),
            None => (&self.other, None),
        }
    }
}
