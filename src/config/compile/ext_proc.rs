//! External processing: `envoy.filters.http.ext_proc`'s messages in, [`Config`] out.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use outrigger_control_api::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use super::{cel, duration_or};
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::services::{http_service, pairs, GrpcTarget};
use crate::config::{Cluster, Directory};
use crate::http::filters::ext_authz::rules::MutationRules;
use crate::http::filters::ext_proc::{
    Attributes, Body, Config, HttpService, Mode, Overrides, PerRoute, ProcessorStats, RouteCache, Service,
};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::read_dynamic_metadata;

/// The filter's type.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute";

/// How long an answer may take where config does not say.
const TIMEOUT: Duration = Duration::from_millis(200);

/// How long after a request its stream is closed where config does not say, if the service only watches.
const LINGER: Duration = Duration::from_secs(5);

/// The filter, which counts below `stats`. `None` when a problem was reported.
pub(super) fn compile(
    config: &pb::ExternalProcessor,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Config> {
    use pb::external_processor::RouteCacheAction;
    let before = problems.count();
    let service = service(config, clusters, problems);
    let unset = pb::ProcessingMode::default();
    let looked_at = problems.at("processing_mode", |problems| {
        own_mode(config.processing_mode.as_ref().unwrap_or(&unset), problems)
    });
    let overrides: Vec<Mode> = (config.allowed_override_modes.iter().enumerate())
        .filter_map(|(index, config)| {
            problems.at_index("allowed_override_modes", index, |problems| mode(config, problems))
        })
        .collect();
    let rules = problems.at("mutation_rules", |problems| {
        MutationRules::compile(&config.mutation_rules.clone().unwrap_or_default(), problems)
    });
    let forward = config.forward_rules.clone().unwrap_or_default();
    let (allowed, disallowed) = problems.at("forward_rules", |problems| {
        let allowed = forward.allowed_headers.as_ref();
        (
            allowed.map(|list| matchers(list, "allowed_headers", problems).into()),
            matchers(&forward.disallowed_headers.unwrap_or_default(), "disallowed_headers", problems),
        )
    });
    if let Some(mode) = &looked_at {
        check(config, mode, problems);
    }
    let linger = duration_or(&config.deferred_close_timeout, LINGER, "deferred_close_timeout", problems);
    let timeout = duration_or(&config.message_timeout, TIMEOUT, "message_timeout", problems);
    let max_timeout =
        duration_or(&config.max_message_timeout, Duration::ZERO, "max_message_timeout", problems);
    let options = config.metadata_options.clone().unwrap_or_default();
    let told_of_cluster = of_cluster(Some(&options), problems).unwrap_or_default();
    let forwarded = options.forwarding_namespaces.unwrap_or_default();
    let (told, told_typed) = (names(&forwarded.untyped), names(&forwarded.typed));
    if config.disable_clear_route_cache && config.route_cache_action() != RouteCacheAction::Default {
        problems.report_at("disable_clear_route_cache", "cannot be set with route_cache_action");
    }
    let route_cache = match config.route_cache_action() {
        RouteCacheAction::Default if config.disable_clear_route_cache => RouteCache::Never,
        RouteCacheAction::Default => RouteCache::AsAsked,
        RouteCacheAction::Clear => RouteCache::Always,
        RouteCacheAction::Retain => RouteCache::Never,
    };
    let attributes = [
        ("request_attributes", &config.request_attributes),
        ("response_attributes", &config.response_attributes),
    ];
    let attributes = attributes.map(|(field, names)| {
        let compiled = names.iter().enumerate().filter_map(|(index, name)| {
            let compiled = problems.at_index(field, index, |problems| cel::text(name, problems))?;
            Some((name.as_str().into(), compiled))
        });
        compiled.collect::<Attributes>()
    });
    (problems.count() == before).then_some(())?;
    if !told.is_empty() {
        read_dynamic_metadata();
    }
    let status = config.status_on_error.as_ref().map_or(500, |status| status.code);
    Some(Config {
        service: service?,
        watches: config.observability_mode.then_some(linger),
        fail_open: config.failure_mode_allow,
        status_on_error: u16::try_from(status).unwrap_or(500),
        mode: looked_at?,
        timeout,
        max_timeout,
        allow_override: config.allow_mode_override,
        overrides: overrides.into(),
        no_immediate: config.disable_immediate_response,
        route_cache,
        rules: rules?,
        allowed,
        disallowed: disallowed.into(),
        told,
        told_typed,
        told_of_cluster,
        heard: heard_of(&options.receiving_namespaces.unwrap_or_default(), problems),
        attributes,
        stats: ProcessorStats::new(&stats.sub("ext_proc").sub(config.stat_prefix.trim_end_matches('.'))),
    })
}

/// Who looks. `None` when a problem was reported.
fn service(
    config: &pb::ExternalProcessor,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Service> {
    match (&config.grpc_service, &config.http_service) {
        (Some(_), Some(_)) => {
            problems.report_at("http_service", "there is a grpc_service as well: one of them is enough");
            None
        }
        (Some(service), None) => {
            let target = problems
                .at("grpc_service", |problems| GrpcTarget::compile_stream(service, clusters, problems));
            target.map(Arc::new).map(Service::Grpc)
        }
        (None, Some(service)) => {
            let service = service.http_service.clone().unwrap_or_default();
            let (target, fields) = problems
                .at("http_service.http_service", |problems| http_service(&service, clusters, problems))?;
            Some(Service::Http(Arc::new(HttpService { target, fields })))
        }
        (None, None) => {
            problems.report_at("grpc_service", "is required");
            None
        }
    }
}

/// What cannot go together, or comes to nothing.
fn check(config: &pb::ExternalProcessor, mode: &Mode, problems: &mut Problems) {
    let looked_at = [mode.request_body, mode.response_body];
    if config.observability_mode && looked_at.iter().any(|body| !matches!(body, Body::None | Body::Pieces)) {
        problems.note(
            "processing_mode",
            "as in Envoy, who only watches is told of bodies that are STREAMED alone",
        );
    }
    if config.http_service.is_some() {
        let bodies = looked_at != [Body::None; 2];
        if bodies || mode.request_trailers || mode.response_trailers {
            let why = "a service that is asked over HTTP sees neither bodies nor trailers";
            problems.report_at("processing_mode", why);
        }
        if config.observability_mode {
            problems.report_at("observability_mode", "a service that is asked over HTTP cannot only watch");
        }
    }
}

/// What a route says; a message without a word, which a field rule forbids, says nothing.
pub(super) fn per_route(
    config: &pb::ExtProcPerRoute,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<PerRoute> {
    use pb::ext_proc_per_route::Override;
    match config.r#override.as_ref()? {
        Override::Disabled(_) => Some(PerRoute::Off),
        Override::Overrides(config) => problems
            .at("overrides", |problems| overrides(config, clusters, problems))
            .map(|overrides| PerRoute::Overrides(Box::new(overrides))),
    }
}

fn overrides(
    config: &pb::ExtProcOverrides,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Overrides> {
    let before = problems.count();
    let said = config.processing_mode.as_ref();
    let mode = said.and_then(|said| problems.at("processing_mode", |problems| own_mode(said, problems)));
    let service = config.grpc_service.as_ref();
    let target = service.and_then(|service| {
        problems.at("grpc_service", |problems| GrpcTarget::compile_stream(service, clusters, problems))
    });
    let options = config.metadata_options.as_ref();
    let forwarded = options.and_then(|options| options.forwarding_namespaces.as_ref());
    let told = forwarded.map(|all| names(&all.untyped));
    let told_typed = forwarded.map(|all| names(&all.typed));
    let told_of_cluster = of_cluster(options, problems);
    let heard = options.and_then(|options| options.receiving_namespaces.as_ref());
    let heard = heard.map(|namespaces| heard_of(namespaces, problems));
    if told.as_ref().is_some_and(|told| !told.is_empty()) {
        read_dynamic_metadata();
    }
    (problems.count() == before).then(|| Overrides {
        mode,
        target: target.map(Arc::new),
        metadata: pairs(&config.grpc_initial_metadata),
        fail_open: config.failure_mode_allow.map(|value| value.value),
        told,
        told_typed,
        told_of_cluster,
        heard,
    })
}

/// The namespaces of a cluster's metadata that a service sees.
fn of_cluster(options: Option<&pb::MetadataOptions>, problems: &mut Problems) -> Option<Arc<[Box<str>]>> {
    let told = options?.cluster_metadata_forwarding_namespaces.as_ref()?;
    if !told.typed.is_empty() {
        let field = "metadata_options.cluster_metadata_forwarding_namespaces.typed";
        problems.report_at(field, "messages among a cluster's metadata are not kept: use untyped");
    }
    Some(names(&told.untyped))
}

/// The namespaces that a service may set.
fn heard_of(
    namespaces: &pb::metadata_options::MetadataNamespaces,
    problems: &mut Problems,
) -> Arc<[Box<str>]> {
    if !namespaces.typed.is_empty() {
        let why = "as in Envoy, a processor sets no messages: use untyped";
        problems.note("metadata_options.receiving_namespaces.typed", why);
    }
    names(&namespaces.untyped)
}

fn names(namespaces: &[String]) -> Arc<[Box<str>]> {
    namespaces.iter().map(|name| name.as_str().into()).collect()
}

/// What is looked at, as a filter or a route says. `None` when a problem was reported.
fn own_mode(config: &pb::ProcessingMode, problems: &mut Problems) -> Option<Mode> {
    for (body, trailers, field, other) in [
        (config.request_body_mode, config.request_trailer_mode, "request_trailer_mode", "request_body_mode"),
        (
            config.response_body_mode,
            config.response_trailer_mode,
            "response_trailer_mode",
            "response_body_mode",
        ),
    ] {
        let duplex = BodySendMode::try_from(body) == Ok(BodySendMode::FullDuplexStreamed);
        if duplex && HeaderSendMode::try_from(trailers) != Ok(HeaderSendMode::Send) {
            problems.report_at(field, format_args!("must be SEND where {other} is FULL_DUPLEX_STREAMED"));
        }
    }
    mode(config, problems)
}

/// What is looked at. `None` when a problem was reported.
fn mode(config: &pb::ProcessingMode, problems: &mut Problems) -> Option<Mode> {
    for (field, value) in
        [("request_body_mode", config.request_body_mode), ("response_body_mode", config.response_body_mode)]
    {
        if matches!(BodySendMode::try_from(value), Ok(BodySendMode::Grpc) | Err(_)) {
            problems.report_at(field, "bodies are not sent to processors in this way");
        }
    }
    Mode::of(config)
}

fn matchers(list: &ListStringMatcher, field: &str, problems: &mut Problems) -> Vec<StringMatcher> {
    problems.at(field, |problems| {
        (list.patterns.iter().enumerate())
            .filter_map(|(index, config)| {
                problems.at_index("patterns", index, |problems| StringMatcher::compile(config, problems))
            })
            .collect()
    })
}
