//! HTTP filters but the router: their messages in, [`HttpFilter`]s out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::common::matching::v3::ExtensionWithMatcher;
use outrigger_control_api::pb::envoy::extensions::filters::http::cors::v3::Cors;
use outrigger_control_api::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3::Config as Bridge;
use outrigger_control_api::pb::envoy::extensions::filters::http::grpc_stats::v3 as stats;
use outrigger_control_api::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use outrigger_control_api::pb::envoy::extensions::filters::http::header_mutation::v3::HeaderMutationPerRoute;
use outrigger_control_api::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::discovery::config_source;
use super::{
    bool_or, compression, custom_response, ext_authz, ext_proc, extension, istio, jwt_authn, lua, oauth2,
    ratelimit, rbac, rbac_tree, Environment,
};
use crate::config::http::HttpFilter;
use crate::config::pieces::{DiscoveredFilter, PieceNeed};
use crate::config::problems::Problems;
use crate::config::route::RouteFilter;
use crate::config::{Cluster, Directory};
use crate::http::filters::grpc_stats::{ByMethod, Config};
use crate::http::filters::istio::{alpn, authn, peer_metadata};
use crate::http::filters::{
    adaptive_concurrency, admission_control, api_key_auth, bandwidth_limit, basic_auth, buffer, conditional,
    cors, credential_injector, csrf, fault, grpc_http1_bridge, header_mutation, header_to_metadata,
    health_check, local_ratelimit, set_filter_state, set_metadata, stateful_session,
};
use crate::telemetry::istio::StandardMetrics;
use crate::telemetry::metrics::Scope;

const CONDITIONAL: &str = "envoy.extensions.common.matching.v3.ExtensionWithMatcher";
const STATS: &str = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
const WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const HEADER_MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const HEADER_MUTATION_PER_ROUTE: &str =
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const CSRF: &str = "envoy.extensions.filters.http.csrf.v3.CsrfPolicy";
const BASIC_AUTH: &str = "envoy.extensions.filters.http.basic_auth.v3.BasicAuth";
const BASIC_AUTH_PER_ROUTE: &str = "envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute";
const BANDWIDTH_LIMIT: &str = "envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit";
const CREDENTIAL_INJECTOR: &str = "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector";
const API_KEY: &str = "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth";
const API_KEY_PER_ROUTE: &str = "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute";
const BUFFER: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
const BUFFER_PER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
const HEALTH_CHECK: &str = "envoy.extensions.filters.http.health_check.v3.HealthCheck";
const SET_METADATA: &str = "envoy.extensions.filters.http.set_metadata.v3.Config";
const STATEFUL_SESSION: &str = "envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
const STATEFUL_SESSION_PER_ROUTE: &str =
    "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
const SET_FILTER_STATE: &str = "envoy.extensions.filters.http.set_filter_state.v3.Config";
const HEADER_TO_METADATA: &str = "envoy.extensions.filters.http.header_to_metadata.v3.Config";
const ADMISSION_CONTROL: &str = "envoy.extensions.filters.http.admission_control.v3.AdmissionControl";
const ADAPTIVE_CONCURRENCY: &str =
    "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency";
const BRIDGE: &str = "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";

/// A filter whose configuration a control plane sends; the environment learns that it is needed. `None` when a problem
/// was reported.
pub(super) fn config_discovery(
    name: &str,
    config: &core::ExtensionConfigSource,
    stat_prefix: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<HttpFilter> {
    let before = problems.count();
    let source = problems.at("config_source", |problems| {
        // Demanded by a field rule.
        let parent = environment.parent();
        config_source(config.config_source.as_ref()?, parent.as_ref(), environment.compiler, problems)
    });
    let types: Vec<Box<str>> =
        config.type_urls.iter().map(|url| url.rsplit('/').next().unwrap_or_default().into()).collect();
    for (index, found) in types.iter().enumerate().filter(|(_, found)| !knows(found)) {
        let message = format!("an HTTP filter of type {found} cannot be discovered");
        problems.report_at(format_args!("type_urls[{index}]"), message);
    }
    let default = config.default_config.as_ref().and_then(|any| {
        problems.at("default_config", |problems| {
            check_type(any, &types, problems);
            knows(type_of(any))
                .then(|| compile(any, &Scope::http(stat_prefix), &environment.compiler.clusters, problems))
                .flatten()
        })
    });
    let optional = config.apply_default_config_without_warming;
    if optional && config.default_config.is_none() {
        problems.report_at("default_config", "is required with apply_default_config_without_warming");
    }
    if problems.count() > before {
        return None;
    }
    let filter = Arc::new(DiscoveredFilter::new(name.into(), types, default, stat_prefix));
    environment.needs.borrow_mut().pieces.push(PieceNeed {
        source: source?,
        name: name.into(),
        piece: filter.clone(),
        optional,
    });
    Some(HttpFilter::Discovered(filter))
}

/// A filter's configuration as a control plane sends it. `None` when a problem was reported.
pub(super) fn discovered(
    config: &core::TypedExtensionConfig,
    types: &[Box<str>],
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<HttpFilter> {
    problems.at("typed_config", |problems| {
        // Demanded by a field rule.
        let any = config.typed_config.as_ref()?;
        if !check_type(any, types, problems) {
            return None;
        }
        compile(any, stats, clusters, problems)
    })
}

fn check_type(any: &Any, types: &[Box<str>], problems: &mut Problems) -> bool {
    let found = type_of(any);
    let allowed = types.iter().any(|allowed| **allowed == *found);
    if !allowed {
        problems.report(format!("is of type {found}, must be of {}", types.join(" or ")));
    }
    allowed
}

/// Whether filters of this type are compiled here.
pub(super) fn knows(kind: &str) -> bool {
    matches!(
        kind,
        STATS
            | WEB
            | BRIDGE
            | CORS
            | FAULT
            | HEADER_MUTATION
            | LOCAL_RATE_LIMIT
            | CSRF
            | BASIC_AUTH
            | BANDWIDTH_LIMIT
            | CREDENTIAL_INJECTOR
            | API_KEY
            | BUFFER
            | custom_response::TYPE
            | HEALTH_CHECK
            | SET_METADATA
            | SET_FILTER_STATE
            | HEADER_TO_METADATA
            | ADMISSION_CONTROL
            | ADAPTIVE_CONCURRENCY
            | rbac::HTTP
            | CONDITIONAL
            | STATEFUL_SESSION
            | istio::ALPN
            | istio::AUTHN
            | istio::PEERS
            | istio::STATS
            | istio::WASM
            | jwt_authn::TYPE
            | oauth2::TYPE
            | ext_authz::TYPE
            | ratelimit::TYPE
            | ext_proc::TYPE
            | lua::TYPE
            | compression::COMPRESSOR
            | compression::DECOMPRESSOR
    )
}

/// The filter in `any`, which counts in `stats` and may ask services in `clusters`. `None` when a problem was reported.
pub(super) fn compile(
    any: &Any,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<HttpFilter> {
    match type_of(any) {
        STATS => Some(HttpFilter::GrpcStats(grpc_stats(&extension(any, "", problems)?))),
        WEB => {
            let _: GrpcWeb = extension(any, "", problems)?;
            Some(HttpFilter::GrpcWeb)
        }
        CORS => {
            let _: Cors = extension(any, "", problems)?;
            Some(HttpFilter::Cors(Arc::new(cors::Config::new(stats))))
        }
        FAULT => {
            let config = fault::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::Fault(Arc::new(config)))
        }
        HEADER_MUTATION => {
            let config = header_mutation::Config::compile(&extension(any, "", problems)?, problems)?;
            Some(HttpFilter::HeaderMutation(Arc::new(config)))
        }
        LOCAL_RATE_LIMIT => {
            let config = local_ratelimit::Config::compile(&extension(any, "", problems)?, false, problems)?;
            Some(HttpFilter::LocalRateLimit(Arc::new(config)))
        }
        CSRF => {
            let config = csrf::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::Csrf(Arc::new(config)))
        }
        BASIC_AUTH => {
            let config = basic_auth::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::BasicAuth(Arc::new(config)))
        }
        custom_response::TYPE => {
            let config = custom_response::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::CustomResponse(Arc::new(config)))
        }
        BANDWIDTH_LIMIT => {
            let config = bandwidth_limit::Config::compile(&extension(any, "", problems)?, false, problems)?;
            Some(HttpFilter::BandwidthLimit(Arc::new(config)))
        }
        CREDENTIAL_INJECTOR => {
            let config =
                credential_injector::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::CredentialInjector(Arc::new(config)))
        }
        API_KEY => {
            let config = api_key_auth::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::ApiKeyAuth(Arc::new(config)))
        }
        BUFFER => {
            let config = buffer::Config::compile(&extension(any, "", problems)?);
            Some(HttpFilter::Buffer(Arc::new(config)))
        }
        HEALTH_CHECK => {
            let config = health_check::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::HealthCheck(Arc::new(config)))
        }
        SET_METADATA => {
            let config = set_metadata::Config::compile(&extension(any, "", problems)?, stats);
            Some(HttpFilter::SetMetadata(Arc::new(config)))
        }
        SET_FILTER_STATE => {
            let config = set_filter_state::Config::compile(&extension(any, "", problems)?, problems);
            Some(HttpFilter::SetFilterState(Arc::new(config)))
        }
        HEADER_TO_METADATA => {
            let config =
                header_to_metadata::Config::compile(&extension(any, "", problems)?, false, problems)?;
            Some(HttpFilter::HeaderToMetadata(Arc::new(config)))
        }
        ADMISSION_CONTROL => {
            let config = admission_control::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::AdmissionControl(Arc::new(config)))
        }
        ADAPTIVE_CONCURRENCY => {
            let config =
                adaptive_concurrency::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::AdaptiveConcurrency(Arc::new(config)))
        }
        ratelimit::TYPE => {
            let config = ratelimit::compile(&extension(any, "", problems)?, clusters, problems)?;
            Some(HttpFilter::RateLimit(Arc::new(config)))
        }
        ext_proc::TYPE => {
            let config = ext_proc::compile(&extension(any, "", problems)?, stats, clusters, problems)?;
            Some(HttpFilter::ExtProc(Arc::new(config)))
        }
        lua::TYPE => {
            let config = lua::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::ExtProc(Arc::new(config)))
        }
        compression::COMPRESSOR => {
            let config = compression::compressor(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::Compressor(Arc::new(config)))
        }
        compression::DECOMPRESSOR => {
            let config = compression::decompressor(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::Decompressor(Arc::new(config)))
        }
        ext_authz::TYPE => {
            let config = ext_authz::compile(&extension(any, "", problems)?, stats, clusters, problems)?;
            Some(HttpFilter::ExtAuthz(Arc::new(config)))
        }
        oauth2::TYPE => {
            let config = oauth2::compile(&extension(any, "", problems)?, stats, clusters, problems)?;
            Some(HttpFilter::OAuth2(Arc::new(config)))
        }
        jwt_authn::TYPE => {
            let config = jwt_authn::compile(&extension(any, "", problems)?, stats, clusters, problems)?;
            Some(HttpFilter::JwtAuthn(Arc::new(config)))
        }
        CONDITIONAL => {
            let config: ExtensionWithMatcher = extension(any, "", problems)?;
            conditional(&config, stats, clusters, problems)
        }
        STATEFUL_SESSION => {
            let config = stateful_session::Config::compile(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::StatefulSession(Arc::new(config)))
        }
        istio::AUTHN => {
            let config = authn::Config::compile(&extension(any, "", problems)?, problems)?;
            Some(HttpFilter::IstioAuthn(Arc::new(config)))
        }
        istio::ALPN => {
            let config = alpn::Config::compile(&extension(any, "", problems)?);
            Some(HttpFilter::IstioAlpn(Arc::new(config)))
        }
        istio::PEERS => {
            let config = peer_metadata::Config::compile(&extension(any, "", problems)?);
            Some(HttpFilter::PeerMetadata(Arc::new(config)))
        }
        istio::STATS => {
            let config = StandardMetrics::compile(&extension(any, "", problems)?, problems)?;
            Some(HttpFilter::StandardMetrics(Arc::new(config)))
        }
        istio::WASM => {
            let config: Wasm = extension(any, "", problems)?;
            Some(match istio::plugin(config.config.as_ref(), problems)? {
                istio::BuiltIn::Stats(config) => {
                    HttpFilter::StandardMetrics(Arc::new(StandardMetrics::compile(&config, problems)?))
                }
                istio::BuiltIn::MetadataExchange => {
                    HttpFilter::PeerMetadata(Arc::new(peer_metadata::Config::exchange()))
                }
            })
        }
        rbac::HTTP => {
            let filter = rbac::http(&extension(any, "", problems)?, stats, problems)?;
            Some(HttpFilter::Rbac(Arc::new(filter)))
        }
        _ => {
            let config: Bridge = extension(any, "", problems)?;
            Some(HttpFilter::GrpcHttp1Bridge(grpc_http1_bridge::Config {
                protobuf: config.upgrade_protobuf_to_grpc,
                drop_query: config.ignore_query_parameters,
            }))
        }
    }
}

/// A filter that is skipped for some requests.
fn conditional(
    config: &ExtensionWithMatcher,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<HttpFilter> {
    let skips = match &config.xds_matcher {
        Some(matcher) => problems.at("xds_matcher", |problems| rbac_tree::skipping(matcher, problems)),
        None => {
            problems.report_at("xds_matcher", "is required");
            None
        }
    };
    let inner = problems.at("extension_config", |problems| {
        // What is missing breaks field rules.
        let any = config.extension_config.as_ref()?.typed_config.as_ref()?;
        problems.at("typed_config", |problems| {
            let found = type_of(any);
            if !knows(found) || found == CONDITIONAL {
                problems.report(format_args!("the filter {found} cannot be skipped by a matcher"));
                return None;
            }
            let compiled = compile(any, stats, clusters, problems)?;
            if conditional::sees_all(&compiled) {
                problems.report(format_args!("the filter {found} cannot be skipped by a matcher"));
                return None;
            }
            Some(compiled)
        })
    });
    Some(HttpFilter::Conditional(Arc::new(conditional::Config { skips: skips?, filter: inner? })))
}

/// What a route says to a filter, in `any`. `None` when a problem was reported.
pub(crate) fn compile_route(
    any: &Any,
    optional: bool,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<RouteFilter> {
    match type_of(any) {
        CORS_POLICY => cors::Policy::compile(&extension(any, "", problems)?, problems).map(RouteFilter::Cors),
        FAULT => fault::Settings::compile(&extension(any, "", problems)?, problems).map(RouteFilter::Fault),
        HEADER_MUTATION_PER_ROUTE => {
            let config: HeaderMutationPerRoute = extension(any, "", problems)?;
            header_mutation::Mutations::compile(config.mutations.as_ref(), problems)
                .map(RouteFilter::HeaderMutation)
        }
        LOCAL_RATE_LIMIT => local_ratelimit::Config::compile(&extension(any, "", problems)?, true, problems)
            .map(RouteFilter::LocalRateLimit),
        CSRF => csrf::Policy::compile(&extension(any, "", problems)?, problems).map(RouteFilter::Csrf),
        BASIC_AUTH_PER_ROUTE => basic_auth::PerRoute::compile(&extension(any, "", problems)?, problems)
            .map(RouteFilter::BasicAuth),
        custom_response::TYPE => {
            custom_response::compile(&extension(any, "", problems)?, &Scope::raw(""), problems)
                .map(RouteFilter::CustomResponse)
        }
        BANDWIDTH_LIMIT => bandwidth_limit::Config::compile(&extension(any, "", problems)?, true, problems)
            .map(|config| RouteFilter::BandwidthLimit(Arc::new(config))),
        API_KEY_PER_ROUTE => api_key_auth::PerRoute::compile(&extension(any, "", problems)?, problems)
            .map(RouteFilter::ApiKeyAuth),
        BUFFER_PER_ROUTE => {
            buffer::PerRoute::compile(&extension(any, "", problems)?).map(RouteFilter::Buffer)
        }
        HEADER_TO_METADATA => {
            header_to_metadata::Config::compile(&extension(any, "", problems)?, true, problems)
                .map(RouteFilter::HeaderToMetadata)
        }
        SET_FILTER_STATE => {
            let config = set_filter_state::Config::compile(&extension(any, "", problems)?, problems);
            Some(RouteFilter::SetFilterState(config))
        }
        STATEFUL_SESSION_PER_ROUTE => {
            stateful_session::PerRoute::compile(&extension(any, "", problems)?, problems)
                .map(RouteFilter::StatefulSession)
        }
        ratelimit::PER_ROUTE => {
            ratelimit::per_route(&extension(any, "", problems)?, problems).map(RouteFilter::RateLimit)
        }
        ext_proc::PER_ROUTE => {
            ext_proc::per_route(&extension(any, "", problems)?, clusters, problems).map(RouteFilter::ExtProc)
        }
        lua::PER_ROUTE => lua::per_route(&extension(any, "", problems)?, problems).map(RouteFilter::Lua),
        compression::PER_ROUTE => {
            compression::per_route(&extension(any, "", problems)?, problems).map(RouteFilter::Compressor)
        }
        ext_authz::PER_ROUTE => ext_authz::per_route(&extension(any, "", problems)?, clusters, problems)
            .map(RouteFilter::ExtAuthz),
        oauth2::PER_ROUTE => {
            let settings = oauth2::per_route(&extension(any, "", problems)?, clusters, problems)?;
            Some(RouteFilter::OAuth2(Box::new(settings)))
        }
        jwt_authn::PER_ROUTE => {
            jwt_authn::per_route(&extension(any, "", problems)?).map(RouteFilter::JwtAuthn)
        }
        rbac::PER_ROUTE => rbac::per_route(&extension(any, "", problems)?, problems).map(RouteFilter::Rbac),
        found if optional => {
            problems.note("@type", format_args!("{found} is not supported, and optional: left out"));
            None
        }
        found => {
            problems.report(format_args!("{found} is nothing that a supported filter takes from a route"));
            None
        }
    }
}

fn grpc_stats(config: &stats::FilterConfig) -> Config {
    use stats::filter_config::PerMethodStatSpecifier;
    let by_method = match &config.per_method_stat_specifier {
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
            let path = |service: &str, method: &str| format!("/{service}/{method}").into_bytes().into();
            let paths = list
                .services
                .iter()
                .flat_map(|service| service.method_names.iter().map(|method| path(&service.name, method)));
            ByMethod::These(Arc::new(paths.collect()))
        }
        Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if bool_or(Some(*all), false) => ByMethod::All,
        _ => ByMethod::None,
    };
    Config {
        by_method,
        times: config.enable_upstream_stats,
        replace_dots: config.replace_dots_in_grpc_service_name,
    }
}
