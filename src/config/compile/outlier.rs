//! Outlier detection: `envoy.config.cluster.v3.OutlierDetection` in, its options out.

use std::time::Duration;

use outrigger_control_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_control_api::pb::google::protobuf::UInt32Value;

use super::{bool_or, duration, u32_or, Environment};
use crate::config::problems::Problems;
use crate::upstream::outlier::{Kind, Options};

/// Compiles `config`; runtime values win. `hosts` is how many hosts the cluster has, where that is known.
pub(super) fn options(
    config: &pb::OutlierDetection,
    hosts: Option<usize>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Options {
    let runtime = environment.compiler.runtime.load();
    let runtime = |key: &str| runtime.number(&format!("outlier_detection.{key}")).map(|value| value.max(0.0));
    let number = |key: &str, value: Option<UInt32Value>, default: u32| {
        runtime(key).map_or_else(|| u32_or(value, default), |value| value as u32)
    };
    let default = Options::default();
    let time = |key: &str, field: Option<Duration>, default: Duration| {
        runtime(key).map_or_else(|| field.unwrap_or(default), |value| Duration::from_millis(value as u64))
    };
    let interval = duration(&config.interval, "interval", problems);
    let base = duration(&config.base_ejection_time, "base_ejection_time", problems);
    let most = duration(&config.max_ejection_time, "max_ejection_time", problems);
    let jitter = duration(&config.max_ejection_time_jitter, "max_ejection_time_jitter", problems);
    let base_or_default = base.unwrap_or(default.base_ejection_time);
    if most.is_some_and(|most| most < base_or_default) {
        problems.report_at("max_ejection_time", "must not be less than base_ejection_time");
    }
    let enforcing = Kind::EJECTING.map(|kind| {
        let field = match kind {
            Kind::Consecutive5xx => config.enforcing_consecutive_5xx,
            Kind::ConsecutiveGatewayFailure => config.enforcing_consecutive_gateway_failure,
            Kind::SuccessRate => config.enforcing_success_rate,
            Kind::ConsecutiveLocalOriginFailure => config.enforcing_consecutive_local_origin_failure,
            Kind::SuccessRateLocalOrigin => config.enforcing_local_origin_success_rate,
            Kind::FailurePercentage => config.enforcing_failure_percentage,
            Kind::FailurePercentageLocalOrigin => config.enforcing_failure_percentage_local_origin,
            Kind::Degraded => None,
        };
        number(kind.enforcing_field(), field, default.enforcing(kind))
    });
    let options = Options {
        interval: time("interval_ms", interval, default.interval),
        base_ejection_time: time("base_ejection_time_ms", base, default.base_ejection_time),
        max_ejection_time: time("max_ejection_time_ms", most, default.max_ejection_time.max(base_or_default)),
        max_ejection_time_jitter: time("max_ejection_time_jitter_ms", jitter, Duration::ZERO),
        max_ejection_percent: number("max_ejection_percent", config.max_ejection_percent, 10),
        always_eject_one_host: bool_or(config.always_eject_one_host, false),
        split: config.split_external_local_origin_errors,
        consecutive_5xx: number("consecutive_5xx", config.consecutive_5xx, 5),
        consecutive_gateway_failure: number(
            "consecutive_gateway_failure",
            config.consecutive_gateway_failure,
            5,
        ),
        consecutive_local_origin_failure: number(
            "consecutive_local_origin_failure",
            config.consecutive_local_origin_failure,
            5,
        ),
        success_rate_minimum_hosts: number(
            "success_rate_minimum_hosts",
            config.success_rate_minimum_hosts,
            5,
        ),
        success_rate_request_volume: number(
            "success_rate_request_volume",
            config.success_rate_request_volume,
            100,
        ),
        success_rate_stdev_factor: f64::from(number(
            "success_rate_stdev_factor",
            config.success_rate_stdev_factor,
            1900,
        )) / 1000.0,
        failure_percentage_threshold: number(
            "failure_percentage_threshold",
            config.failure_percentage_threshold,
            85,
        ),
        failure_percentage_minimum_hosts: number(
            "failure_percentage_minimum_hosts",
            config.failure_percentage_minimum_hosts,
            5,
        ),
        failure_percentage_request_volume: number(
            "failure_percentage_request_volume",
            config.failure_percentage_request_volume,
            50,
        ),
        enforcing,
        unejected_by_checks: bool_or(config.successful_active_health_check_uneject_host, true),
        detect_degraded: bool_or(config.detect_degraded_hosts, false),
    };
    if let Some(why) = hosts.and_then(|hosts| options.never_ejects(hosts)) {
        problems.note("max_ejection_percent", why);
    }
    options
}
