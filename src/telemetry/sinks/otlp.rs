//! OpenTelemetry's metrics.

use std::time::SystemTime;

use outrigger_control_api::pb::opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest;
use outrigger_control_api::pb::opentelemetry::proto::common::v1::KeyValue;
use outrigger_control_api::pb::opentelemetry::proto::metrics::v1 as pb;
use outrigger_control_api::pb::opentelemetry::proto::metrics::v1::{
    metric, number_data_point, AggregationTemporality,
};
use outrigger_control_api::pb::opentelemetry::proto::resource::v1::Resource;
use prost::Message;

use super::{Before, Since, Told};
use crate::telemetry::metrics::{HistogramSnapshot, Value, BOUNDS};
use crate::telemetry::otlp::{nanos, pair, sdk};

/// How statistics are told.
#[derive(Debug, Clone)]
pub struct Otlp {
    /// Counters by what has come, not by what they are.
    pub counter_deltas: bool,
    /// Histograms likewise.
    pub histogram_deltas: bool,
    /// Tags are attributes.
    pub attributes: bool,
    /// Names have no variable parts.
    pub extracted: bool,
    /// Before each name, with its dot; may be empty.
    pub prefix: Box<str>,
    /// Most metrics in a request; 0 = all in one.
    pub most: usize,
}

/// The requests that tell of `all` at `now`.
pub fn requests(options: &Otlp, all: &[Told<'_>], before: &Before, now: SystemTime) -> Vec<Vec<u8>> {
    let metrics: Vec<pb::Metric> =
        all.iter().filter_map(|told| metric_of(options, told, before, now)).collect();
    let size = if options.most == 0 { metrics.len().max(1) } else { options.most };
    let request = |metrics: &[pb::Metric]| {
        let scope = pb::ScopeMetrics { metrics: metrics.to_vec(), ..pb::ScopeMetrics::default() };
        let all = pb::ResourceMetrics {
            resource: Some(Resource { attributes: sdk().into(), ..Resource::default() }),
            scope_metrics: vec![scope],
            schema_url: String::new(),
        };
        ExportMetricsServiceRequest { resource_metrics: vec![all] }.encode_to_vec()
    };
    metrics.chunks(size).map(request).collect()
}

fn metric_of(options: &Otlp, told: &Told<'_>, before: &Before, now: SystemTime) -> Option<pb::Metric> {
    let (extracted, tags) = told.sample.extracted();
    let name = if options.extracted { &extracted } else { &told.sample.name };
    let tag = |(name, value): (String, &str)| pair(&name, value.to_owned());
    let attributes = if options.attributes { tags.into_iter().map(tag).collect() } else { Vec::new() };
    let temporality = |deltas: bool| match deltas {
        true => (AggregationTemporality::Delta.into(), nanos(before.at)),
        false => (AggregationTemporality::Cumulative.into(), nanos(before.start)),
    };
    let time_unix_nano = nanos(now);
    let number = |value: i64, start_time_unix_nano: u64, attributes| pb::NumberDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano,
        value: Some(number_data_point::Value::AsInt(value)),
        flags: 0,
    };
    let data = match (&told.sample.value, &told.since) {
        (Value::Counter(value), Since::Count(since)) => {
            let (aggregation_temporality, start) = temporality(options.counter_deltas);
            let value = if options.counter_deltas { *since } else { *value };
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            metric::Data::Sum(pb::Sum {
                data_points: vec![number(value, start, attributes)],
                aggregation_temporality,
                is_monotonic: true,
            })
        }
        (Value::Gauge(value), _) => {
            metric::Data::Gauge(pb::Gauge { data_points: vec![number(*value, 0, attributes)] })
        }
        (Value::Histogram(value), Since::Values(since)) => {
            let (aggregation_temporality, start) = temporality(options.histogram_deltas);
            let values = if options.histogram_deltas { since } else { value };
            metric::Data::Histogram(pb::Histogram {
                data_points: vec![point(values, start, time_unix_nano, attributes)],
                aggregation_temporality,
            })
        }
        _ => return None,
    };
    let name = format!("{}{name}", options.prefix);
    Some(pb::Metric { name, data: Some(data), ..pb::Metric::default() })
}

fn point(
    values: &HistogramSnapshot,
    start_time_unix_nano: u64,
    time_unix_nano: u64,
    attributes: Vec<KeyValue>,
) -> pb::HistogramDataPoint {
    let mut below = 0;
    let mut bucket_counts: Vec<u64> = Vec::with_capacity(BOUNDS.len() + 1);
    for bound in BOUNDS {
        let up_to = values.count_up_to(bound);
        bucket_counts.push(up_to.saturating_sub(below));
        below = up_to;
    }
    bucket_counts.push(values.count.saturating_sub(below));
    pb::HistogramDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano,
        count: values.count,
        sum: Some(values.sum),
        bucket_counts,
        explicit_bounds: BOUNDS.to_vec(),
        min: values.quantile(0.0),
        max: values.quantile(1.0),
        ..pb::HistogramDataPoint::default()
    }
}
