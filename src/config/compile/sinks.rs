//! The bootstrap's `stats_sinks`.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::metrics::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::stat_sinks::open_telemetry::v3 as otlp;
use outrigger_control_api::pb::google::protobuf as wkt;
use outrigger_control_api::type_of;

use super::{bool_or, duration_or, extension, ip_address};
use crate::config::problems::Problems;
use crate::config::services::{http_service, GrpcTarget};
use crate::config::{Cluster, Directory};
use crate::telemetry::sinks::{MetricsService, Otlp, Sink, Sinks, Statsd};

const STATSD: &str = "envoy.config.metrics.v3.StatsdSink";
const DOG: &str = "envoy.config.metrics.v3.DogStatsdSink";
const METRICS: &str = "envoy.config.metrics.v3.MetricsServiceConfig";
const OTLP: &str = "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig";
const HYSTRIX: &str = "envoy.config.metrics.v3.HystrixSink";

/// `stats_flush_interval` where config says none.
const INTERVAL: Duration = Duration::from_secs(5);

/// Compiles sinks; `None` where there are none.
pub(super) fn compile(
    list: &[pb::StatsSink],
    interval: &Option<wkt::Duration>,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Sinks> {
    let interval = duration_or(interval, INTERVAL, "stats_flush_interval", problems);
    let each = |(index, config)| {
        problems.at_index("stats_sinks", index, |problems| sink(config, clusters, problems))
    };
    let list: Vec<_> = list.iter().enumerate().filter_map(each).collect();
    (!list.is_empty()).then_some(Sinks { interval: interval.max(Duration::from_millis(1)), list })
}

fn sink(config: &pb::StatsSink, clusters: &Directory<Cluster>, problems: &mut Problems) -> Option<Sink> {
    let Some(pb::stats_sink::ConfigType::TypedConfig(any)) = &config.config_type else {
        problems.report_at("typed_config", "is required");
        return None;
    };
    problems.at("typed_config", |problems| match type_of(any) {
        STATSD => {
            use pb::statsd_sink::StatsdSpecifier;
            let config: pb::StatsdSink = extension(any, "", problems)?;
            let statsd = Statsd { prefix: prefix(&config.prefix), tagged: false, most: 0 };
            match config.statsd_specifier.as_ref()? {
                StatsdSpecifier::Address(address) => {
                    let address = problems.at("address", |problems| ip_address(address, problems))?;
                    Some(Sink::Udp(address, statsd))
                }
                StatsdSpecifier::TcpClusterName(name) => Some(Sink::Tcp(clusters.slot(name), statsd)),
            }
        }
        DOG => {
            let config: pb::DogStatsdSink = extension(any, "", problems)?;
            let most = config.max_bytes_per_datagram.map_or(0, |most| most.value);
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(65_507);
            let statsd = Statsd { prefix: prefix(&config.prefix), tagged: true, most };
            let pb::dog_statsd_sink::DogStatsdSpecifier::Address(address) =
                config.dog_statsd_specifier.as_ref()?;
            let address = problems.at("address", |problems| ip_address(address, problems))?;
            Some(Sink::Udp(address, statsd))
        }
        METRICS => metrics_service(&extension(any, "", problems)?, clusters, problems),
        OTLP => open_telemetry(&extension(any, "", problems)?, clusters, problems),
        // Said by the support table.
        HYSTRIX => None,
        found => {
            problems.report(format_args!("the sink {found} is not supported"));
            None
        }
    })
}

fn prefix(given: &str) -> Box<str> {
    if given.is_empty() { "envoy" } else { given }.into()
}

fn metrics_service(
    config: &pb::MetricsServiceConfig,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Sink> {
    use pb::HistogramEmitMode as Mode;
    if config.transport_api_version() == core::ApiVersion::V2 {
        problems.report_at("transport_api_version", "only V3 is spoken");
    }
    // Demanded by a field rule.
    let service = config.grpc_service.as_ref()?;
    let target =
        problems.at("grpc_service", |problems| GrpcTarget::compile_stream(service, clusters, problems))?;
    let mode = config.histogram_emit_mode();
    let options = MetricsService {
        deltas: bool_or(config.report_counters_as_deltas, false),
        labels: config.emit_tags_as_labels,
        summaries: mode != Mode::Histogram,
        histograms: mode != Mode::Summary,
        batch: config.batch_size as usize,
    };
    // The stream lasts, whatever a call may take.
    Some(Sink::Metrics(Arc::new(GrpcTarget { timeout: None, ..target }), options))
}

fn open_telemetry(
    config: &otlp::SinkConfig,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Sink> {
    use otlp::sink_config::ProtocolSpecifier;
    let dotted = if config.prefix.is_empty() { String::new() } else { format!("{}.", config.prefix) };
    let options = Otlp {
        counter_deltas: config.report_counters_as_deltas,
        histogram_deltas: config.report_histograms_as_deltas,
        attributes: bool_or(config.emit_tags_as_attributes, true),
        extracted: bool_or(config.use_tag_extracted_name, true),
        prefix: dotted.into(),
        most: config.max_data_points_per_request as usize,
    };
    match config.protocol_specifier.as_ref() {
        Some(ProtocolSpecifier::GrpcService(service)) => {
            let target =
                problems.at("grpc_service", |problems| GrpcTarget::compile(service, clusters, problems))?;
            Some(Sink::OtlpGrpc(Arc::new(target), options))
        }
        Some(ProtocolSpecifier::HttpService(service)) => {
            let (target, fields) =
                problems.at("http_service", |problems| http_service(service, clusters, problems))?;
            Some(Sink::OtlpHttp(target, fields, options))
        }
        None => {
            problems.report("needs grpc_service or http_service");
            None
        }
    }
}
