//! The TCP proxy's compiled options (`envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`).

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use outrigger_control_api::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use super::balancing::Criteria;
use super::cluster::Cluster;
use super::compile::{duration, idle, rooms, Environment};
use super::problems::Problems;
use super::slot::Slot;
use super::tunnel::Tunnel;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::istio::StandardMetrics;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::TcpProxyStats;

/// A compiled `tcp_proxy`.
#[derive(Debug)]
pub struct TcpProxy {
    /// `stat_prefix`.
    pub stat_prefix: Box<str>,
    /// `tcp.<stat_prefix>.` statistics.
    pub stats: TcpProxyStats,
    /// Where connections go.
    pub target: Target,
    /// Longest time without a byte in either direction. Default 1 h; `None` = for ever.
    pub idle_timeout: Option<Duration>,
    /// How often to try to connect upstream, at least 1.
    pub max_connect_attempts: u32,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// `max_downstream_connection_duration_jitter_percentage`: up to this share is added at random.
    pub max_connection_duration_jitter: f64,
    /// Written when a connection ends, and as `log_options` say.
    pub access_logs: Vec<AccessLog>,
    /// Istio's standard metrics, made of its connections.
    pub metrics: Vec<Arc<StandardMetrics>>,
    /// When else access logs are written.
    pub log_options: LogOptions,
    /// `hash_policy` with `source_ip`: hash-based balancing goes by the client's address.
    pub hash_source_ip: bool,
    /// `hash_policy` with `filter_state`: it goes by this object.
    pub hash_object: Option<Box<str>>,
    /// What is asked of the host's metadata.
    pub metadata_match: Option<Arc<Criteria>>,
    /// Connections go through HTTP.
    pub tunnel: Option<Box<Tunnel>>,
}

/// Where connections go.
#[derive(Debug)]
pub enum Target {
    /// One cluster.
    Cluster(Arc<Slot<Cluster>>),
    /// One of several, drawn anew for each attempt.
    Weighted(Weighted),
}

/// `weighted_clusters`.
#[derive(Debug)]
pub struct Weighted {
    /// Each with the sum of the weights up to and including its own; ascending.
    clusters: Vec<(u64, Destination)>,
}

/// A cluster, and what is asked of its host's metadata.
pub type Destination = (Arc<Slot<Cluster>>, Option<Arc<Criteria>>);

/// `access_log_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Write when the connection is accepted.
    pub on_start: bool,
    /// Write when the upstream is connected.
    pub on_connected: bool,
    /// Write again and again at this interval.
    pub interval: Option<Duration>,
}

impl TcpProxy {
    /// Compiles the filter's configuration; `None` when it has problems, which are reported.
    #[allow(deprecated)] // The fields before access_log_options are still in use.
    pub fn compile(
        config: &pb::TcpProxy,
        environment: &Environment<'_>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.count();
        let metadata = Criteria::under(config.metadata_match.as_ref(), None);
        let target = match &config.cluster_specifier {
            Some(pb::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                environment.check_reserved(name, "cluster", problems);
                Target::Cluster(environment.compiler.clusters.slot(name))
            }
            Some(pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                for (index, cluster) in weighted.clusters.iter().enumerate() {
                    let field = format_args!("weighted_clusters.clusters[{index}].name");
                    environment.check_reserved(&cluster.name, field, problems);
                }
                Target::Weighted(Weighted::compile(weighted, metadata.as_ref(), environment))
            }
            // Reported by the field rules.
            None => return None,
        };
        let access_logs = rooms::access_logs(&config.access_log, "access_log", environment, problems);
        let (hash_source_ip, hash_object) = hashed(config, problems);
        let tunnel = config.tunneling_config.as_ref().and_then(|config| {
            problems.at("tunneling_config", |problems| Tunnel::compile(config, problems)).map(Box::new)
        });
        let proxy = Self {
            stat_prefix: config.stat_prefix.as_str().into(),
            stats: TcpProxyStats::new(&Scope::tcp(&config.stat_prefix)),
            target,
            idle_timeout: idle(
                &config.idle_timeout,
                Some(Duration::from_secs(3600)),
                "idle_timeout",
                problems,
            ),
            max_connect_attempts: config.max_connect_attempts.as_ref().map_or(1, |attempts| attempts.value),
            max_connection_duration: duration(
                &config.max_downstream_connection_duration,
                "max_downstream_connection_duration",
                problems,
            ),
            max_connection_duration_jitter: jitter(config, problems),
            access_logs,
            metrics: Vec::new(),
            log_options: log_options(config, problems),
            hash_source_ip,
            hash_object,
            metadata_match: metadata,
            tunnel,
        };
        (problems.count() == before).then_some(proxy)
    }
}

impl Weighted {
    fn compile(
        weighted: &pb::tcp_proxy::WeightedCluster,
        outer: Option<&Arc<Criteria>>,
        environment: &Environment<'_>,
    ) -> Self {
        let mut sum = 0u64;
        let add = |cluster: &pb::tcp_proxy::weighted_cluster::ClusterWeight| {
            sum = sum.saturating_add(cluster.weight.into());
            let metadata = Criteria::under(cluster.metadata_match.as_ref(), outer);
            (sum, (environment.compiler.clusters.slot(&cluster.name), metadata))
        };
        Self { clusters: weighted.clusters.iter().map(add).collect() }
    }

    /// The sum of the weights.
    pub fn total(&self) -> u64 {
        self.clusters.last().map_or(0, |(sum, ..)| *sum)
    }

    /// The cluster that `draw`, a number below [`Weighted::total`], falls on.
    pub fn at(&self, draw: u64) -> Option<&Arc<Slot<Cluster>>> {
        self.entry(draw).map(|(slot, _)| slot)
    }

    fn entry(&self, draw: u64) -> Option<&Destination> {
        let at = self.clusters.partition_point(|(sum, _)| *sum <= draw);
        self.clusters.get(at).map(|(_, destination)| destination)
    }
}

impl TcpProxy {
    /// The cluster for one attempt, and what is asked of the host's metadata.
    pub fn draw(&self) -> Option<Destination> {
        match &self.target {
            Target::Cluster(slot) => Some((slot.clone(), self.metadata_match.clone())),
            Target::Weighted(weighted) => weighted.entry(fastrand::u64(..weighted.total().max(1))).cloned(),
        }
    }
}

fn jitter(config: &pb::TcpProxy, problems: &mut Problems) -> f64 {
    let field = "max_downstream_connection_duration_jitter_percentage";
    let percent = config.max_downstream_connection_duration_jitter_percentage.as_ref();
    let percent = percent.map_or(0.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        problems.report_at(field, format_args!("is {percent}, must be from 0 to 100"));
    }
    percent
}

#[allow(deprecated)]
fn log_options(config: &pb::TcpProxy, problems: &mut Problems) -> LogOptions {
    let Some(options) = &config.access_log_options else {
        let interval = duration(&config.access_log_flush_interval, "access_log_flush_interval", problems);
        check_interval(interval, "access_log_flush_interval", problems);
        return LogOptions { on_start: false, on_connected: config.flush_access_log_on_connected, interval };
    };
    for (field, set) in [
        ("flush_access_log_on_connected", config.flush_access_log_on_connected),
        ("access_log_flush_interval", config.access_log_flush_interval.is_some()),
    ] {
        if set {
            problems.report_at(field, "cannot be set together with access_log_options");
        }
    }
    problems.at("access_log_options", |problems| {
        let interval = duration(&options.access_log_flush_interval, "access_log_flush_interval", problems);
        check_interval(interval, "access_log_flush_interval", problems);
        LogOptions {
            on_start: options.flush_access_log_on_start,
            on_connected: options.flush_access_log_on_connected,
            interval,
        }
    })
}

/// Reports an interval of less than a millisecond, the shortest that Envoy takes.
pub(crate) fn check_interval(interval: Option<Duration>, field: &str, problems: &mut Problems) {
    if let Some(interval) = interval.filter(|interval| *interval < Duration::from_millis(1)) {
        problems.report_at(field, format_args!("is {interval:?}, must be at least 1ms"));
    }
}

/// Whether the client's address is hashed, or which object.
fn hashed(config: &pb::TcpProxy, problems: &mut Problems) -> (bool, Option<Box<str>>) {
    let mut found = (false, None);
    for (index, policy) in config.hash_policy.iter().enumerate() {
        problems.at_index("hash_policy", index, |problems| match &policy.policy_specifier {
            Some(PolicySpecifier::SourceIp(_)) => found.0 = true,
            Some(PolicySpecifier::FilterState(state)) => found.1 = Some(state.key.as_str().into()),
            None => problems.report("needs source_ip or filter_state"),
        });
    }
    found
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
