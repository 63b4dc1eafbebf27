//! Global rate limits: `envoy.filters.http.ratelimit`'s messages in, [`Config`] out.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;

use super::duration;
use crate::config::matcher::{Fraction, RuntimeFraction};
use crate::config::problems::Problems;
use crate::config::route::{HeaderOps, LimitsOf, RateLimits};
use crate::config::services::GrpcTarget;
use crate::config::{Cluster, Directory};
use crate::http::filters::by_cluster::ByCluster;
use crate::http::filters::ratelimit::{Config, HostLimits, LimitStats, PerRoute};

/// The filter's type.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.ratelimit.v3.RateLimit";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute";

/// How long an answer may take where config does not say.
const TIMEOUT: Duration = Duration::from_millis(20);

/// The filter. `None` when a problem was reported.
pub(super) fn compile(
    config: &pb::RateLimit,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Config> {
    let before = problems.count();
    let service = config.rate_limit_service.as_ref();
    let service = service.and_then(|service| service.grpc_service.as_ref()).and_then(|config| {
        problems
            .at("rate_limit_service.grpc_service", |problems| GrpcTarget::compile(config, clusters, problems))
    });
    let timeout = duration(&config.timeout, "timeout", problems).unwrap_or(TIMEOUT);
    let limits = RateLimits::compile(&config.rate_limits, LimitsOf::Service, problems);
    let response_headers =
        HeaderOps::compile(&config.response_headers_to_add, "response_headers_to_add", &[], "", problems);
    let status = |status: &Option<_>, default: u16| {
        let code = status
            .as_ref()
            .map(|status: &outrigger_control_api::pb::envoy::r#type::v3::HttpStatus| status.code);
        code.and_then(|code| u16::try_from(code).ok()).unwrap_or(default)
    };
    let share = |config: &Option<_>, key: &str| {
        config.as_ref().map_or_else(|| RuntimeFraction::new(key, Fraction::ALL), RuntimeFraction::of)
    };
    (problems.count() == before).then_some(())?;
    let mut service = service?;
    // The filter's own timeout counts, not that of the service.
    service.timeout = (!timeout.is_zero()).then_some(timeout);
    // As in Envoy, a limit is never told as a success.
    let limited = Some(status(&config.rate_limited_status, 429)).filter(|code| *code >= 400).unwrap_or(429);
    Some(Config {
        domain: config.domain.as_str().into(),
        stage: config.stage,
        internal: match config.request_type.as_str() {
            "internal" => Some(true),
            "external" => Some(false),
            _ => None,
        },
        service: Arc::new(service),
        limits,
        deny: config.failure_mode_deny,
        status_on_error: status(&config.status_on_error, 500),
        status: limited,
        exhausted: config.rate_limited_as_resource_exhausted,
        tell: config.enable_x_ratelimit_headers()
            == pb::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03,
        quiet: config.disable_x_envoy_ratelimited_header,
        response_headers: response_headers?,
        enabled: share(&config.filter_enabled, "ratelimit.http_filter_enabled"),
        enforced: share(&config.filter_enforced, "ratelimit.http_filter_enforcing"),
        by_cluster: ByCluster::new("ratelimit", config.stat_prefix.trim_end_matches('.'), LimitStats::new),
    })
}

/// What a route says. `None` when a problem was reported.
pub(super) fn per_route(config: &pb::RateLimitPerRoute, problems: &mut Problems) -> Option<PerRoute> {
    use pb::rate_limit_per_route::VhRateLimitsOptions;
    let before = problems.count();
    let limits = RateLimits::compile(&config.rate_limits, LimitsOf::Service, problems);
    (problems.count() == before).then(|| PerRoute {
        host: match config.vh_rate_limits() {
            VhRateLimitsOptions::Override => HostLimits::Override,
            VhRateLimitsOptions::Include => HostLimits::Include,
            VhRateLimitsOptions::Ignore => HostLimits::Ignore,
        },
        limits,
        domain: config.domain.as_str().into(),
    })
}
