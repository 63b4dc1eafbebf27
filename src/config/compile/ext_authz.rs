//! External authorization: `envoy.filters.http.ext_authz`'s messages in, [`Config`] out.

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use outrigger_control_api::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use std::sync::Arc;
use std::time::Duration;

use super::{bool_or, rbac};
use crate::config::matcher::{RuntimeFraction, StringMatcher};
use crate::config::problems::Problems;
use crate::config::route::HeaderOps;
use crate::config::services::{GrpcTarget, HttpTarget, Retries};
use crate::config::{Cluster, Directory};
use crate::http::filters::by_cluster::ByCluster;
use crate::http::filters::ext_authz::rules::MutationRules;
use crate::http::filters::ext_authz::{
    AuthzStats, Buffering, ClusterStats, Config, HttpService, PerRoute, Service,
};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::read_dynamic_metadata;

/// The filter's type.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";

/// How long an answer may take where config does not say.
const TIMEOUT: Duration = Duration::from_millis(200);
/// What an HTTP service sees in any case.
const SEEN: [&str; 4] = ["authorization", ":method", ":path", ":authority"];
/// What a denied client sees in any case.
const TOLD: [&str; 4] = [":status", "content-length", "www-authenticate", "location"];

/// The filter, which counts below `stats`. `None` when a problem was reported.
pub(super) fn compile(
    config: &pb::ExtAuthz,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Config> {
    use pb::ext_authz::Services;
    let before = problems.count();
    // Demanded by a field rule.
    let (service, deprecated) = match config.services.as_ref()? {
        Services::GrpcService(config) => (grpc(config, clusters, problems), None),
        Services::HttpService(config) => {
            let request = config.authorization_request.as_ref();
            let allowed = request.and_then(|request| request.allowed_headers.as_ref());
            (http_of(config, clusters, problems), Some(allowed))
        }
    };
    let allowed = match (&config.allowed_headers, deprecated) {
        (Some(list), _) => Some(matchers(Some(list), "allowed_headers", problems)),
        (None, Some(Some(list))) => {
            let field = "http_service.authorization_request.allowed_headers";
            Some(matchers(Some(list), field, problems))
        }
        (None, Some(None)) => Some(Vec::new()),
        (None, None) => None,
    };
    let allowed = allowed.map(|mut allowed| {
        if deprecated.is_some() {
            allowed.extend(SEEN.map(StringMatcher::exact));
        }
        allowed.into()
    });
    let disallowed = matchers(config.disallowed_headers.as_ref(), "disallowed_headers", problems).into();
    let rules = config.decoder_header_mutation_rules.as_ref().and_then(|config| {
        problems.at("decoder_header_mutation_rules", |problems| MutationRules::compile(config, problems))
    });
    if config.shadow_mode && config.validate_mutations {
        problems.report_at("shadow_mode", "cannot be set with validate_mutations yet");
    }
    let status = config.status_on_error.as_ref().map_or(403, |status| status.code);
    let scope = stats.sub("ext_authz");
    let scope = match config.stat_prefix.trim_end_matches('.') {
        "" => scope,
        prefix => scope.sub(prefix),
    };
    (problems.count() == before).then_some(())?;
    let names = |list: &[String]| list.iter().map(|name| name.as_str().into()).collect();
    if !config.metadata_context_namespaces.is_empty() || config.filter_enabled_metadata.is_some() {
        read_dynamic_metadata();
    }
    let enabled_metadata = match &config.filter_enabled_metadata {
        Some(wanted) => {
            Some(problems.at("filter_enabled_metadata", |problems| rbac::metadata(wanted, problems))?)
        }
        None => None,
    };
    Some(Config {
        service: service?,
        fail_open: config.failure_mode_allow,
        shadow: config.shadow_mode,
        tell_failure: config.failure_mode_allow_header_add,
        status_on_error: u16::try_from(status).unwrap_or(403),
        body: config.with_request_body.as_ref().map(buffering),
        // As in Envoy, what a route says of it counts for nothing.
        bytes: config.with_request_body.as_ref().is_some_and(|body| body.pack_as_bytes)
            || matches!(config.services, Some(Services::HttpService(_))),
        reroute: config.clear_route_cache,
        validate: config.validate_mutations,
        enabled: config.filter_enabled.as_ref().map(RuntimeFraction::of),
        enabled_metadata,
        deny_others: config
            .deny_at_disable
            .as_ref()
            .map(|flag| (bool_or(flag.default_value, false), flag.runtime_key.as_str().into())),
        allowed,
        disallowed,
        raw_headers: config.encode_raw_headers,
        peer_certificate: config.include_peer_certificate,
        tls_session: config.include_tls_session,
        namespaces: names(&config.metadata_context_namespaces),
        typed_namespaces: names(&config.typed_metadata_context_namespaces),
        route_namespaces: names(&config.route_metadata_context_namespaces),
        rules,
        ingest: bool_or(config.enable_dynamic_metadata_ingestion, true),
        charge: bool_or(config.charge_cluster_response_stats, true),
        max_denial: config.max_denied_response_body_bytes as usize,
        stats: AuthzStats::new(&scope),
        by_cluster: ByCluster::new("ext_authz", config.stat_prefix.trim_end_matches('.'), ClusterStats::new),
    })
}

/// What a route says; a message without a word, which a field rule forbids, says nothing.
pub(super) fn per_route(
    config: &pb::ExtAuthzPerRoute,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<PerRoute> {
    use pb::check_settings::ServiceOverride;
    use pb::ext_authz_per_route::Override;
    match config.r#override.as_ref()? {
        Override::Disabled(_) => Some(PerRoute::Off),
        Override::CheckSettings(settings) => {
            let body = settings.with_request_body.as_ref();
            if settings.disable_request_body_buffering && body.is_some() {
                problems.report_at("check_settings", "has a body and turns it off");
                return None;
            }
            let service = settings.service_override.as_ref().map(|service| {
                problems.at("check_settings", |problems| match service {
                    ServiceOverride::GrpcService(config) => grpc(config, clusters, problems),
                    ServiceOverride::HttpService(config) => http_of(config, clusters, problems),
                })
            });
            if matches!(service, Some(None)) {
                return None;
            }
            Some(PerRoute::Settings {
                extensions: settings.context_extensions.clone(),
                no_body: settings.disable_request_body_buffering,
                body: body.map(buffering),
                service: service.flatten(),
            })
        }
    }
}

fn grpc(
    config: &core::GrpcService,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Service> {
    let target = problems.at("grpc_service", |problems| GrpcTarget::compile(config, clusters, problems));
    target.map(|target| Service::Grpc(Arc::new(target.or_timeout(TIMEOUT))))
}

fn http_of(
    config: &pb::HttpService,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Service> {
    let service = problems.at("http_service", |problems| http(config, clusters, problems));
    service.map(|service| Service::Http(Box::new(service)))
}

fn buffering(config: &pb::BufferSettings) -> Buffering {
    Buffering { most: config.max_request_bytes as usize, partial: config.allow_partial_message }
}

fn matchers(list: Option<&ListStringMatcher>, field: &str, problems: &mut Problems) -> Vec<StringMatcher> {
    let Some(list) = list else { return Vec::new() };
    problems.at(field, |problems| {
        (list.patterns.iter().enumerate())
            .filter_map(|(index, config)| {
                problems.at_index("patterns", index, |problems| StringMatcher::compile(config, problems))
            })
            .collect()
    })
}

fn http(
    config: &pb::HttpService,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<HttpService> {
    let before = problems.count();
    let target = config.server_uri.as_ref().and_then(|config| {
        problems.at("server_uri", |problems| HttpTarget::compile(config, clusters, problems))
    });
    if config.server_uri.is_none() {
        problems.report_at("server_uri", "is required");
    }
    let retries = problems.at("retry_policy", |problems| {
        let policy = config.retry_policy.as_ref();
        Retries::compile(policy, policy.map_or("", |policy| &policy.retry_on), problems)
    });
    for (field, path) in [("path_prefix", &config.path_prefix), ("path_override", &config.path_override)] {
        if !path.is_empty() && !path.starts_with('/') {
            problems.report_at(field, "must begin with /");
        }
    }
    if !config.path_prefix.is_empty() && !config.path_override.is_empty() {
        problems.report_at("path_override", "cannot be set with path_prefix");
    }
    let added = config.authorization_request.as_ref().map(|request| &*request.headers_to_add);
    let added: Vec<_> = added.unwrap_or_default().iter().map(option).collect();
    let headers = problems.at("authorization_request", |problems| {
        HeaderOps::compile(&added, "headers_to_add", &[], "", problems).unwrap_or_default()
    });
    let empty = pb::AuthorizationResponse::default();
    let response = config.authorization_response.as_ref().unwrap_or(&empty);
    let (client, upstream, append, success, metadata) = problems.at("authorization_response", |problems| {
        let mut of = |list: &Option<ListStringMatcher>, field| matchers(list.as_ref(), field, problems);
        (
            of(&response.allowed_client_headers, "allowed_client_headers"),
            of(&response.allowed_upstream_headers, "allowed_upstream_headers"),
            of(&response.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append"),
            of(&response.allowed_client_headers_on_success, "allowed_client_headers_on_success"),
            of(&response.dynamic_metadata_from_headers, "dynamic_metadata_from_headers"),
        )
    });
    (problems.count() == before).then_some(())?;
    Some(HttpService {
        target: target?,
        path_prefix: config.path_prefix.as_bytes().into(),
        path_override: config.path_override.as_bytes().into(),
        headers,
        upstream: upstream.into(),
        upstream_append: append.into(),
        client: (!client.is_empty())
            .then(|| client.into_iter().chain(TOLD.map(StringMatcher::exact)).collect()),
        client_on_success: success.into(),
        metadata: metadata.into(),
        retries,
    })
}

/// A header that takes the place of another.
fn option(header: &core::HeaderValue) -> core::HeaderValueOption {
    let action = core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;
    core::HeaderValueOption {
        header: Some(header.clone()),
        append_action: action.into(),
        ..core::HeaderValueOption::default()
    }
}
