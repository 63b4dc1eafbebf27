//! Network filters before the terminal one: their messages in, [`NetworkFilter`] out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::filters::common::set_filter_state::v3 as state;
use outrigger_control_api::pb::envoy::extensions::filters::network::set_filter_state::v3 as set_filter_state;
use outrigger_control_api::pb::envoy::extensions::filters::network::{
    connection_limit::v3::ConnectionLimit as LimitConfig, local_ratelimit::v3::LocalRateLimit as RateConfig,
};
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::{duration, extension, rbac};
use crate::config::listener::{NetworkFilter, NetworkSetFilterState};
use crate::config::problems::Problems;
use crate::config::runtime_value::RuntimeSwitch;
use crate::policy::limits::{ConnectionLimit, ConnectionLimitStats, ConnectionRate, ConnectionRateStats};
use crate::policy::token_bucket::TokenBucket;
use crate::telemetry::filter_state::{Setters, TCP_CLUSTER};
use crate::telemetry::metrics::Scope;

const SET_FILTER_STATE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";
const CONNECTION_LIMIT: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

/// The types of these filters.
pub(super) const TYPES: [&str; 5] =
    [rbac::NETWORK, SET_FILTER_STATE, CONNECTION_LIMIT, LOCAL_RATE_LIMIT, SNI_CLUSTER];

/// The filter in `any`; the inner `None` when a problem was reported, the outer one when it is none of these.
pub(super) fn compile(any: &Any, problems: &mut Problems) -> Option<Option<NetworkFilter>> {
    let compiled = match type_of(any) {
        rbac::NETWORK => rbac(any, problems),
        SET_FILTER_STATE => objects(any, problems),
        CONNECTION_LIMIT => limit(any, problems),
        LOCAL_RATE_LIMIT => rate(any, problems),
        SNI_CLUSTER => sni_cluster(problems),
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

fn scope(room: &str, tag: &'static str, prefix: &str) -> Scope {
    Scope::raw("").tagged(room, tag, prefix.trim_end_matches('.'))
}
