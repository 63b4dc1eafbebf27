//! `envoy.service.metrics.v3.StreamMetrics`: statistics as Prometheus' messages.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_control_api::pb::envoy::config::core::v3::Node;
use outrigger_control_api::pb::envoy::service::metrics::v3::{stream_metrics_message, StreamMetricsMessage};
use outrigger_control_api::pb::io::prometheus::client as pb;
use prost::Message;

use super::{Since, Told};
use crate::config::local_node::LocalNode;
use crate::telemetry::metrics::{HistogramSnapshot, Value, BOUNDS, QUANTILES};

/// How statistics are told.
#[derive(Debug, Clone)]
pub struct MetricsService {
    /// Counters by what has come, not by what they are.
    pub deltas: bool,
    /// Tags leave the name.
    pub labels: bool,
    /// Histograms are told as summaries.
    pub summaries: bool,
    /// Histograms are told as such.
    pub histograms: bool,
    /// Most metrics in a message; 0 = all in one.
    pub batch: usize,
}

/// What is told of `all` at `now`.
pub fn families(options: &MetricsService, all: &[Told<'_>], now: SystemTime) -> Vec<pb::MetricFamily> {
    let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let timestamp_ms = Some(i64::try_from(millis).unwrap_or(i64::MAX));
    let mut out = Vec::with_capacity(all.len());
    for told in all {
        let (name, tags) = match options.labels {
            true => told.sample.extracted(),
            false => (told.sample.name.clone(), Vec::new()),
        };
        let label =
            |(name, value): (String, &str)| pb::LabelPair { name: Some(name), value: Some(value.to_owned()) };
        let base = pb::Metric {
            label: tags.into_iter().map(label).collect(),
            timestamp_ms,
            ..pb::Metric::default()
        };
        let mut add = |kind: pb::MetricType, metric: pb::Metric| {
            out.push(pb::MetricFamily {
                name: Some(name.clone()),
                r#type: Some(kind.into()),
                metric: vec![metric],
                ..pb::MetricFamily::default()
            });
        };
        match (&told.sample.value, &told.since) {
            (Value::Counter(value), Since::Count(since)) => {
                let value = if options.deltas { *since } else { *value };
                let counter = pb::Counter { value: Some(value as f64), ..pb::Counter::default() };
                add(pb::MetricType::Counter, pb::Metric { counter: Some(counter), ..base });
            }
            (Value::Gauge(value), _) => {
                let gauge = pb::Gauge { value: Some(*value as f64) };
                add(pb::MetricType::Gauge, pb::Metric { gauge: Some(gauge), ..base });
            }
            (Value::Histogram(value), Since::Values(since)) => {
                if options.summaries {
                    let summary = Some(summary(since));
                    add(pb::MetricType::Summary, pb::Metric { summary, ..base.clone() });
                }
                if options.histograms {
                    let histogram = Some(histogram(value));
                    add(pb::MetricType::Histogram, pb::Metric { histogram, ..base });
                }
            }
            _ => {}
        }
    }
    out
}

fn summary(values: &HistogramSnapshot) -> pb::Summary {
    let quantile =
        |q: &f64| pb::Quantile { quantile: Some(*q), value: Some(values.quantile(*q).unwrap_or(f64::NAN)) };
    pb::Summary {
        sample_count: Some(values.count),
        sample_sum: Some(values.sum),
        quantile: QUANTILES.iter().map(quantile).collect(),
        ..pb::Summary::default()
    }
}

fn histogram(values: &HistogramSnapshot) -> pb::Histogram {
    let bucket = |bound: &f64| pb::Bucket {
        cumulative_count: Some(values.count_up_to(*bound)),
        upper_bound: Some(*bound),
        ..pb::Bucket::default()
    };
    pb::Histogram {
        sample_count: Some(values.count),
        sample_sum: Some(values.sum),
        bucket: BOUNDS.iter().map(bucket).collect(),
        ..pb::Histogram::default()
    }
}

/// The messages for these families; `first` says that the stream begins with them.
pub fn messages(options: &MetricsService, families: &[pb::MetricFamily], first: bool) -> Vec<Vec<u8>> {
    let size = if options.batch == 0 { families.len().max(1) } else { options.batch };
    let mut identifier = first.then(|| {
        // It was encoded here.
        let node = Node::decode(&*LocalNode::current().told).ok();
        stream_metrics_message::Identifier { node }
    });
    let message = |families: &[pb::MetricFamily]| {
        let identifier = identifier.take();
        StreamMetricsMessage { identifier, envoy_metrics: families.to_vec() }.encode_to_vec()
    };
    families.chunks(size).map(message).collect()
}
