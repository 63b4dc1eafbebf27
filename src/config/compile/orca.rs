//! What a cluster wants of its hosts' load reports: `client_side_weighted_round_robin` and
//! `lrs_report_endpoint_metrics` in, [`Wanted`] out.

use std::time::Duration;

use outrigger_control_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;

use super::{bool_or, cluster_tls, duration_or};
use crate::config::balancing::{Balancing, LbPolicy};
use crate::config::problems::Problems;
use crate::upstream::orca::weights::{OutOfBand, WeightOptions};
use crate::upstream::orca::{Metric, Wanted};

/// The policy's options. `None` when a problem was reported.
pub(super) fn weights(
    config: &ClientSideWeightedRoundRobin,
    problems: &mut Problems,
) -> Option<WeightOptions> {
    // Envoy's message speaks of 1.0, its code has 0.
    let error_penalty = config.error_utilization_penalty.map_or(0.0, |penalty| f64::from(penalty.value));
    if error_penalty.is_nan() || error_penalty < 0.0 {
        problems.report_at("error_utilization_penalty", format!("is {error_penalty}, must be at least 0"));
        return None;
    }
    let mut time = |value: &Option<_>, seconds: u64, field: &str| {
        duration_or(value, Duration::from_secs(seconds), field, problems)
    };
    // As in gRPC, which the policy comes from; Envoy would reckon without a pause.
    let update = time(&config.weight_update_period, 1, "weight_update_period").max(MIN_UPDATE);
    let blackout = time(&config.blackout_period, 10, "blackout_period");
    let expiration = time(&config.weight_expiration_period, 180, "weight_expiration_period");
    let period = time(&config.oob_reporting_period, 10, "oob_reporting_period");
    let out_of_band = bool_or(config.enable_oob_load_report, false).then(|| {
        let more = config.oob_reporting_config.as_ref();
        // More than a port's bits break a field rule.
        let port = more.and_then(|more| u16::try_from(more.port_value).ok()).filter(|port| *port != 0);
        let authority = more.map(|more| more.authority.as_str()).filter(|authority| !authority.is_empty());
        let criteria = more.and_then(|more| more.transport_socket_match_criteria.as_ref());
        let socket_match = criteria.map(cluster_tls::socket_criteria).map(|map| (*map).clone());
        Box::new(OutOfBand { period, port, authority: authority.map(Into::into), socket_match })
    });
    let names = &config.metric_names_for_computing_utilization;
    let metrics = metrics(names, "metric_names_for_computing_utilization", problems);
    Some(WeightOptions { error_penalty, blackout, expiration, update, metrics, out_of_band })
}

/// Shortest time between two reckonings.
const MIN_UPDATE: Duration = Duration::from_millis(100);

/// What `cluster` wants, with what its policy does.
pub(super) fn wanted(
    cluster: &pb::Cluster,
    balancing: Option<&Balancing>,
    problems: &mut Problems,
) -> Option<Box<Wanted>> {
    let names = &cluster.lrs_report_endpoint_metrics;
    let metrics = (!names.is_empty()).then(|| metrics(names, "lrs_report_endpoint_metrics", problems));
    let weights = match balancing.map(|balancing| &balancing.policy) {
        Some(LbPolicy::ClientSideWeighted(options)) => Some((**options).clone()),
        _ => None,
    };
    (metrics.is_some() || weights.is_some()).then(|| Box::new(Wanted { metrics, weights }))
}

fn metrics(names: &[String], field: &str, problems: &mut Problems) -> Box<[Metric]> {
    let mut metrics = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        match Metric::new(name) {
            Some(metric) => metrics.push(metric),
            None => {
                let message = format!("load reports have no metric {name:?}");
                problems.note(format!("{field}[{index}]"), message);
            }
        }
    }
    metrics.into()
}
