//! Network filters before the terminal one: their messages in, [`NetworkFilter`] out.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::ApiVersion;
use outrigger_control_api::pb::envoy::extensions::filters::common::set_filter_state::v3 as state;
use outrigger_control_api::pb::envoy::extensions::filters::network::set_filter_state::v3 as set_filter_state;
use outrigger_control_api::pb::envoy::extensions::filters::network::{
    connection_limit::v3::ConnectionLimit as LimitConfig, ext_authz::v3::ExtAuthz as AuthzConfig,
    local_ratelimit::v3::LocalRateLimit as RateConfig,
};
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::{duration, extension, rbac};
use crate::config::listener::{NetworkFilter, NetworkSetFilterState};
use crate::config::problems::Problems;
use crate::config::runtime_value::RuntimeSwitch;
use crate::config::services::GrpcTarget;
use crate::config::{Cluster, Directory};
use crate::policy::authz::{NetworkAuthz, NetworkAuthzStats};
use crate::policy::limits::{ConnectionLimit, ConnectionLimitStats, ConnectionRate, ConnectionRateStats};
use crate::policy::token_bucket::TokenBucket;
use crate::telemetry::filter_state::{Setters, TCP_CLUSTER};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::read_dynamic_metadata;

const SET_FILTER_STATE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";
const CONNECTION_LIMIT: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

const EXT_AUTHZ: &str = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";

/// How long a service may take where config does not say.
const AUTHZ_TIMEOUT: Duration = Duration::from_millis(200);

/// The types of these filters.
pub(super) const TYPES: [&str; 6] =
    [rbac::NETWORK, SET_FILTER_STATE, CONNECTION_LIMIT, LOCAL_RATE_LIMIT, SNI_CLUSTER, EXT_AUTHZ];

/// The filter in `any`; the inner `None` when a problem was reported, the outer one when it is none of these.
pub(super) fn compile(
    any: &Any,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Option<NetworkFilter>> {
    let compiled = match type_of(any) {
        rbac::NETWORK => rbac(any, problems),
        SET_FILTER_STATE => objects(any, problems),
        CONNECTION_LIMIT => limit(any, problems),
        LOCAL_RATE_LIMIT => rate(any, problems),
        SNI_CLUSTER => sni_cluster(problems),
        EXT_AUTHZ => ext_authz(any, clusters, problems),
        _ => return None,
    };
    Some(compiled)
}

fn rbac(any: &Any, problems: &mut Problems) -> Option<NetworkFilter> {
    let compiled = rbac::network(&extension(any, "", problems)?, problems)?;
    Some(NetworkFilter::Rbac(Arc::new(compiled)))
}

fn objects(any: &Any, problems: &mut Problems) -> Option<NetworkFilter> {
    let config: set_filter_state::Config = extension(any, "", problems)?;
    let compiled = NetworkSetFilterState {
        on_new_connection: Setters::compile(&config.on_new_connection, "on_new_connection", problems),
        on_downstream_tls_handshake: Setters::compile(
            &config.on_downstream_tls_handshake,
            "on_downstream_tls_handshake",
            problems,
        ),
    };
    Some(NetworkFilter::SetFilterState(Arc::new(compiled)))
}

/// The TCP proxy's cluster is that of the server's name.
fn sni_cluster(problems: &mut Problems) -> Option<NetworkFilter> {
    use outrigger_control_api::pb::envoy::config::core::v3 as core;
    use state::filter_state_value::{Key, Value};
    let name = core::SubstitutionFormatString {
        omit_empty_values: true,
        format: Some(core::substitution_format_string::Format::TextFormatSource(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString("%REQUESTED_SERVER_NAME%".to_owned())),
            ..core::DataSource::default()
        })),
        ..core::SubstitutionFormatString::default()
    };
    let value = state::FilterStateValue {
        key: Some(Key::ObjectKey(TCP_CLUSTER.to_owned())),
        value: Some(Value::FormatString(name)),
        skip_if_empty: true,
        ..state::FilterStateValue::default()
    };
    let compiled = NetworkSetFilterState {
        on_new_connection: Setters::compile(&[value], "", problems),
        on_downstream_tls_handshake: Setters::compile(&[], "", problems),
    };
    Some(NetworkFilter::SetFilterState(Arc::new(compiled)))
}

fn limit(any: &Any, problems: &mut Problems) -> Option<NetworkFilter> {
    let config: LimitConfig = extension(any, "", problems)?;
    let delay = duration(&config.delay, "delay", problems);
    // Demanded by a field rule.
    let most = config.max_connections?.value;
    let stats = ConnectionLimitStats::new(&scope(
        "connection_limit",
        "envoy_connection_limit_prefix",
        &config.stat_prefix,
    ));
    let enabled = RuntimeSwitch::of(config.runtime_enabled.as_ref());
    let delay = delay.filter(|delay| !delay.is_zero());
    Some(NetworkFilter::ConnectionLimit(Arc::new(ConnectionLimit::new(stats, most, delay, enabled))))
}

fn rate(any: &Any, problems: &mut Problems) -> Option<NetworkFilter> {
    let config: RateConfig = extension(any, "", problems)?;
    let before = problems.count();
    // Demanded by a field rule.
    let bucket = TokenBucket::compile(config.token_bucket.as_ref()?, problems);
    (problems.count() == before).then_some(())?;
    Some(NetworkFilter::ConnectionRate(Arc::new(ConnectionRate {
        stats: ConnectionRateStats::new(&scope(
            "local_rate_limit",
            "envoy_local_network_ratelimit_prefix",
            &config.stat_prefix,
        )),
        bucket,
        enabled: RuntimeSwitch::of(config.runtime_enabled.as_ref()),
    })))
}

fn ext_authz(any: &Any, clusters: &Directory<Cluster>, problems: &mut Problems) -> Option<NetworkFilter> {
    let config: AuthzConfig = extension(any, "", problems)?;
    let before = problems.count();
    let Some(service) = &config.grpc_service else {
        problems.report_at("grpc_service", "is required");
        return None;
    };
    if config.transport_api_version() != ApiVersion::V3 {
        problems.report_at("transport_api_version", "only V3 is spoken");
    }
    let target = problems.at("grpc_service", |problems| GrpcTarget::compile(service, clusters, problems));
    let enabled = config.filter_enabled_metadata.as_ref().and_then(|wanted| {
        problems.at("filter_enabled_metadata", |problems| rbac::metadata(wanted, problems))
    });
    (problems.count() == before).then_some(())?;
    if enabled.is_some() || !config.metadata_context_namespaces.is_empty() {
        read_dynamic_metadata();
    }
    Some(NetworkFilter::ExtAuthz(Arc::new(NetworkAuthz {
        target: Arc::new(target?.or_timeout(AUTHZ_TIMEOUT)),
        fail_open: config.failure_mode_allow,
        shadow: config.shadow_mode,
        peer_certificate: config.include_peer_certificate,
        tls_session: config.include_tls_session,
        enabled,
        namespaces: config.metadata_context_namespaces.iter().map(|name| name.as_str().into()).collect(),
        stats: NetworkAuthzStats::new(&scope("ext_authz", "envoy_ext_authz_prefix", &config.stat_prefix)),
    })))
}

fn scope(room: &str, tag: &'static str, prefix: &str) -> Scope {
    Scope::raw("").tagged(room, tag, prefix.trim_end_matches('.'))
}
