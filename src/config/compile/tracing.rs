//! Tracing: a connection manager's, a route's and the bootstrap's messages in, [`Tracing`] and [`RouteTracing`] out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as route;
use outrigger_control_api::pb::envoy::config::trace::v3 as trace;
use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use outrigger_control_api::pb::envoy::r#type::metadata::v3::{
    metadata_key::path_segment, metadata_kind, MetadataKey,
};
use outrigger_control_api::pb::envoy::r#type::tracing::v3 as tag;
use outrigger_control_api::pb::envoy::r#type::v3::Percent;
use outrigger_control_api::type_of;

use super::{bool_or, extension, u32_or, Environment};
use crate::config::matcher::Fraction;
use crate::config::problems::Problems;
use crate::config::services::{http_service, GrpcTarget};
use crate::config::{Cluster, Directory};
use crate::http::trace::context::Propagation;
use crate::http::trace::export::{Form, OtlpTarget, Provider, ZipkinTarget, MOST_WAITING};
use crate::http::trace::{Decorator, RouteTracing, Shares, Tracing};
use crate::telemetry::format::{Format, Style};
use crate::telemetry::tag::{CustomTag, TagValue};

const OTLP: &str = "envoy.config.trace.v3.OpenTelemetryConfig";
const ZIPKIN: &str = "envoy.config.trace.v3.ZipkinConfig";

/// A connection manager's tracing; `None` without one, or when a problem was reported.
pub(super) fn compile(
    config: &pb::HttpConnectionManager,
    egress: bool,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Tracing> {
    let given = config.tracing.as_ref()?;
    let (packs_reason, by_request_id) = request_id(config);
    problems.at("tracing", |problems| {
        let before = problems.count();
        // Whole percents, but for the share of those that nobody asks for.
        let percent = |percent: Option<Percent>| {
            let value = percent.map_or(100.0, |percent| percent.value);
            Fraction::new(value.clamp(0.0, 100.0) as u32, 100)
        };
        let random = given.random_sampling.map_or(100.0, |percent| percent.value).clamp(0.0, 100.0);
        let random = Fraction::new((random * 100.0).round() as u32, 10_000);
        let shares = Shares::new(percent(given.client_sampling), random, percent(given.overall_sampling));
        let tags = custom_tags(&given.custom_tags, problems);
        let operations = operations(&given.operation, &given.upstream_operation, problems);
        let provider = match &given.provider {
            Some(given) => problems.at("provider", |problems| {
                provider(given, &environment.compiler.clusters, &environment.compiler.service.0, problems)
            }),
            None => environment.compiler.tracer.clone(),
        };
        (problems.count() == before).then_some(())?;
        Some(Tracing {
            shares,
            egress,
            spawn_upstream: bool_or(given.spawn_upstream_span, false) || starts_child_spans(config),
            max_path: u32_or(given.max_path_tag_length, 256) as usize,
            tags,
            operations: operations?,
            packs_reason,
            by_request_id,
            provider,
        })
    })
}

/// Whether the router begins spans for its tries.
fn starts_child_spans(config: &pb::HttpConnectionManager) -> bool {
    use outrigger_control_api::pb::envoy::extensions::filters::http::router::v3::Router;
    let Some(pb::http_filter::ConfigType::TypedConfig(any)) =
        config.http_filters.last().and_then(|last| last.config_type.as_ref())
    else {
        return false;
    };
    #[allow(deprecated)] // The field is still sent.
    let starts = |router: Router| router.start_child_span;
    outrigger_control_api::unpack::<Router>(any).is_ok_and(starts)
}

/// Whether request ids are marked, and whether they decide.
fn request_id(config: &pb::HttpConnectionManager) -> (bool, bool) {
    let any = config.request_id_extension.as_ref().and_then(|extension| extension.typed_config.as_ref());
    let config = any.and_then(|any| outrigger_control_api::unpack::<UuidRequestIdConfig>(any).ok());
    let config = config.unwrap_or_default();
    (bool_or(config.pack_trace_reason, true), bool_or(config.use_request_id_for_trace_sampling, true))
}

/// What takes spans; `None` without anything that can, which is noted.
pub(super) fn provider(
    config: &trace::tracing::Http,
    clusters: &Directory<Cluster>,
    service: &[u8],
    problems: &mut Problems,
) -> Option<Arc<Provider>> {
    let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = &config.config_type else { return None };
    problems
        .at("typed_config", |problems| match type_of(any) {
            OTLP => otlp(&extension(any, "", problems)?, clusters, problems),
            ZIPKIN => zipkin(&extension(any, "", problems)?, clusters, service, problems),
            found => {
                problems.note("", format!("{found} is not supported: no spans are sent"));
                None
            }
        })
        .map(Arc::new)
}

fn otlp(
    config: &trace::OpenTelemetryConfig,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Provider> {
    let target = match (&config.grpc_service, &config.http_service) {
        (Some(_), Some(_)) => {
            problems.report_at("http_service", "there is a grpc_service as well: one of them is enough");
            return None;
        }
        (Some(service), None) => {
            let target =
                problems.at("grpc_service", |problems| GrpcTarget::compile(service, clusters, problems))?;
            OtlpTarget::Grpc(Arc::new(target))
        }
        (None, Some(service)) => {
            let (target, fields) =
                problems.at("http_service", |problems| http_service(service, clusters, problems))?;
            OtlpTarget::Http(target, fields)
        }
        (None, None) => {
            problems.note("", "without grpc_service and http_service no spans are sent");
            return None;
        }
    };
    let name = match config.service_name.as_str() {
        "" => "unknown_service:envoy",
        name => name,
    };
    let most = u32_or(config.max_cache_size, MOST_WAITING as u32) as usize;
    Some(Provider::new(Propagation::W3c, Form::Otlp(target, name.into()), most))
}

fn zipkin(
    config: &trace::ZipkinConfig,
    clusters: &Directory<Cluster>,
    service: &[u8],
    problems: &mut Problems,
) -> Option<Provider> {
    if config.collector_cluster.is_empty() {
        problems.note("collector_cluster", "without one no spans are sent");
        return None;
    }
    let version = config.collector_endpoint_version();
    if version != trace::zipkin_config::CollectorEndpointVersion::HttpJson {
        problems
            .note("collector_endpoint_version", "spans are sent as JSON, which collectors take there too");
    }
    let authority = match config.collector_hostname.as_str() {
        "" => &config.collector_cluster,
        name => name,
    };
    let target = ZipkinTarget {
        cluster: clusters.slot(&config.collector_cluster),
        authority: authority.as_bytes().into(),
        path: config.collector_endpoint.as_bytes().into(),
        service: String::from_utf8_lossy(service).into(),
    };
    let shares = bool_or(config.shared_span_context, true) && !config.split_spans_for_request;
    let propagation = Propagation::B3 { long: config.trace_id_128bit, shares };
    Some(Provider::new(propagation, Form::Zipkin(Arc::new(target)), MOST_WAITING))
}

/// What a route says of traces.
pub(crate) fn of_route(config: &route::Route, problems: &mut Problems) -> Option<Arc<RouteTracing>> {
    let given = config.tracing.as_ref()?;
    problems.at("tracing", |problems| {
        let all = |share: &Option<_>| share.as_ref().map_or(Fraction::ALL, |share| Fraction::of(Some(share)));
        let (client, random, overall) =
            (all(&given.client_sampling), all(&given.random_sampling), all(&given.overall_sampling));
        let tags = custom_tags(&given.custom_tags, problems);
        let operations = operations(&given.operation, &given.upstream_operation, problems)?;
        Some(Arc::new(RouteTracing { shares: Some(Shares::new(client, random, overall)), tags, operations }))
    })
}

/// The name that a route gives to spans.
pub(crate) fn decorator(config: Option<&route::Decorator>) -> Option<Arc<Decorator>> {
    let config = config?;
    let propagate = bool_or(config.propagate, true);
    Some(Arc::new(Decorator { operation: config.operation.as_str().into(), propagate }))
}

fn operations(own: &str, upstream: &str, problems: &mut Problems) -> Option<[Option<Format>; 2]> {
    let mut format = |text: &str, field: &str| match text {
        "" => Some(None),
        text => match Format::parse_as(text, Style::Body) {
            Ok(format) => Some(Some(format)),
            Err(error) => {
                problems.report_at(field, error);
                None
            }
        },
    };
    Some([format(own, "operation")?, format(upstream, "upstream_operation")?])
}

/// The tags in the field `custom_tags`.
pub(crate) fn custom_tags(list: &[tag::CustomTag], problems: &mut Problems) -> Vec<CustomTag> {
    let each = |(index, config): (usize, &tag::CustomTag)| {
        problems.at_index("custom_tags", index, |problems| {
            Some(CustomTag { name: config.tag.as_str().into(), value: tag_value(config, problems)? })
        })
    };
    list.iter().enumerate().filter_map(each).collect()
}

fn tag_value(config: &tag::CustomTag, problems: &mut Problems) -> Option<TagValue> {
    use tag::custom_tag::Type;
    let format = |text: &str, otherwise: &str, problems: &mut Problems| {
        let format = problems.take(Format::parse_as(text, Style::Header))?;
        Some(TagValue::Of(format, otherwise.into()))
    };
    match config.r#type.as_ref()? {
        Type::Literal(literal) => Some(TagValue::Text(literal.value.as_str().into())),
        Type::Environment(variable) => {
            let found = std::env::var(&variable.name).ok();
            let text = found.unwrap_or_else(|| variable.default_value.clone());
            (!text.is_empty()).then(|| TagValue::Text(text.into()))
        }
        Type::RequestHeader(header) => {
            format(&format!("%REQ({})%", header.name), &header.default_value, problems)
        }
        Type::Metadata(metadata) => {
            use metadata_kind::Kind;
            let key = metadata.metadata_key.as_ref()?;
            let whose = match metadata.kind.as_ref().and_then(|kind| kind.kind.as_ref()) {
                Some(Kind::Request(_)) | None => "DYNAMIC",
                Some(Kind::Route(_)) => "ROUTE",
                Some(Kind::Cluster(_)) => "CLUSTER",
                Some(Kind::Host(_)) => "UPSTREAM_HOST",
            };
            format(&format!("%METADATA({whose}:{})%", path(key)), &metadata.default_value, problems)
        }
        Type::Value(text) => format(text, "", problems),
    }
}

/// A key as formats spell it.
fn path(key: &MetadataKey) -> String {
    let mut out = key.key.clone();
    for segment in &key.path {
        if let Some(path_segment::Segment::Key(name)) = &segment.segment {
            out.push(':');
            out.push_str(name);
        }
    }
    out
}
