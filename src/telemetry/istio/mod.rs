//! Istio's standard metrics (`stats.PluginConfig`): requests and connections by who calls whom.
//!
//! Comes in: the filter's options, and finished requests or connections with what is known of their peers
//! ([`workload`]). Goes out: counters and histograms whose labels are those of Istio's dashboards. The labels of a stream
//! are put together when a stream like it is first seen; from then on it costs its thread one look-up ([`series`]).

mod labels;
mod overrides;
mod recent;
mod series;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod workload;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use outrigger_control_api::pb::stats as pb;

use self::labels::{Protocol, Stream};
use self::overrides::Overrides;
pub use self::workload::{Peers, Service, Workload};
use super::format::{told_grpc_status, FormatContext};
use super::metrics::Scope;
use crate::config::compile::duration_or;
use crate::config::local_node::LocalNode;
use crate::config::problems::Problems;

/// The options of the filter, compiled.
pub struct StandardMetrics {
    /// Unique in this process.
    id: u64,
    gateway: bool,
    /// A request's own host stands for a service that is not known.
    host_fallback: bool,
    /// How often connections that last are counted; `None` = when they end.
    tcp_interval: Option<Duration>,
    overrides: Overrides,
    node: Arc<LocalNode>,
    /// `istio_build`, shown as long as there is a filter.
    _build: Gauge,
}

impl std::fmt::Debug for StandardMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandardMetrics").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Time between two counts of a connection that lasts, unless config says otherwise.
const TCP_INTERVAL: Duration = Duration::from_secs(5);

impl StandardMetrics {
    /// Compiles `config`; `None` when a problem was reported.
    pub fn compile(config: &pb::PluginConfig, problems: &mut Problems) -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let before = problems.count();
        let interval =
            duration_or(&config.tcp_reporting_duration, TCP_INTERVAL, "tcp_reporting_duration", problems);
        let overrides = Overrides::compile(&config.metrics, problems);
        if problems.count() > before {
            return None;
        }
        let node = LocalNode::current();
        let version = if node.istio_version.is_empty() { labels::UNKNOWN } else { &node.istio_version };
        let build =
            Scope::labelled(vec![("component".into(), "proxy".into()), ("tag".into(), version.into())]);
        let build = build.gauge("istio_build");
        build.set(1.0);
        Some(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            gateway: config.reporter() == pb::Reporter::ServerGateway,
            host_fallback: !config.disable_host_header_fallback,
            tcp_interval: Some(interval).filter(|interval| !interval.is_zero()),
            overrides,
            node,
            _build: build,
        })
    }

    /// Counts a request that is over. `messages` are those of a gRPC call in the request and in the response, if they
    /// were counted.
    pub fn request(&self, context: &FormatContext<'_>, grpc: bool, messages: Option<[u64; 2]>) {
        let info = context.info;
        let status = || told_grpc_status(context.trailers, context.response, info.response_code);
        let protocol = match grpc {
            true => Protocol::Grpc(status()),
            false => Protocol::Http,
        };
        let extra = self.overrides.values(&context.into());
        let stream = Stream::of(self, context, protocol, &extra);
        let series = series::of(&stream);
        series.requests.increment(1);
        let took = info.after_start(info.times.end).unwrap_or_default();
        // Whole milliseconds, as Istio's.
        series.duration.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX) as f64);
        series.request_bytes.record(info.request_headers_bytes.saturating_add(info.bytes_received) as f64);
        series.response_bytes.record(info.response_headers_bytes.saturating_add(info.bytes_sent) as f64);
        if let Some([sent, answered]) = messages {
            series.request_messages.increment(sent);
            series.response_messages.increment(answered);
        }
    }
}
