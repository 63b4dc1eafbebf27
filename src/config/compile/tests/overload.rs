//! What spares an upstream: admission control, adaptive concurrency, maintenance, hedging.

use super::*;
use crate::config::drops::Refusal;

fn filter(kind: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = json!(typed(&format!("extensions.filters.http.{kind}")));
    json!({"http_filters": [{"name": "it", "typed_config": config}, router()]})
}

const ADMISSION: &str = "admission_control.v3.AdmissionControl";
const CONCURRENCY: &str = "adaptive_concurrency.v3.AdaptiveConcurrency";

#[test]
fn admission_control() {
    let installed = hcm(filter(ADMISSION, json!({"success_criteria": {}})));
    assert_eq!(installed.filters.len(), 1);
    for (config, expected) in [
        (
            json!({"success_criteria": {}, "sr_threshold": {"default_value": {"value": 0.5}}}),
            "sr_threshold.default_value.value: is 0.5, must be at least 1",
        ),
        (
            json!({"success_criteria": {"http_criteria": {"http_success_status": [{"start": 300, "end": 200}]}}}),
            "success_criteria.http_criteria.http_success_status[0]: \
             300 to 200 is no range of statuses within 100 and 600",
        ),
        (
            json!({"success_criteria": {"grpc_criteria": {"grpc_success_status": [0, 17]}}}),
            "success_criteria.grpc_criteria.grpc_success_status[1]: 17 is no status of gRPC",
        ),
    ] {
        refuses_hcm(filter(ADMISSION, config), &format!("http_filters[0].typed_config.{expected}"));
    }
    let changes = hcm_changes(&filter(ADMISSION, json!({})));
    let changes: Vec<_> = changes.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    assert!(try_compile(&with(&changes)).is_err(), "it needs criteria");
}

#[test]
fn adaptive_concurrency() {
    let config = |rtt: Value| {
        json!({"gradient_controller_config": {
            "concurrency_limit_params": {"concurrency_update_interval": "0.1s"}, "min_rtt_calc_params": rtt}})
    };
    for rtt in [json!({"interval": "60s"}), json!({"fixed_value": "0.02s"})] {
        assert_eq!(hcm(filter(CONCURRENCY, config(rtt))).filters.len(), 1);
    }
    refuses_hcm(
        filter(CONCURRENCY, config(json!({"request_count": 3}))),
        "http_filters[0].typed_config.gradient_controller_config.min_rtt_calc_params: \
         needs interval or fixed_value",
    );
    for wrong in [
        json!({}),
        json!({"gradient_controller_config": {"min_rtt_calc_params": {"interval": "60s"}}}),
        config(json!({"interval": "0.0001s"})),
        config(json!({"interval": "1s", "request_count": 0})),
        config(json!({"interval": "1s", "min_concurrency": 0})),
    ] {
        let changes = hcm_changes(&filter(CONCURRENCY, wrong.clone()));
        let changes: Vec<_> =
            changes.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
        assert!(try_compile(&with(&changes)).is_err(), "{wrong}");
    }
}

#[test]
fn runtime_has_a_say_in_what_is_refused() {
    let layer =
        |values: Value| ("/layered_runtime", json!({"layers": [{"name": "a", "static_layer": values}]}));
    let refusals = |values: Value, policy: Value| {
        let mut assignment = assignment(&[endpoint("127.0.0.1", 1)]);
        assignment["policy"] = policy;
        let mut changes = cluster_changes(&json!({"load_assignment": assignment}));
        changes.push(layer(values));
        let compiled = compiled(&changes);
        let cluster = compiled.clusters.find("origin").unwrap().get().unwrap();
        [0, 49, 99, 299_999, 999_999].map(|random| cluster.drops.refuses(|| random))
    };
    let half = refusals(json!({"upstream.maintenance_mode.origin": 50}), json!({}));
    let maintenance = Some(Refusal::Maintenance);
    assert_eq!(half, [maintenance, maintenance, None, None, None]);
    let other = refusals(json!({"upstream.maintenance_mode.other": 50}), json!({}));
    assert_eq!(other, [None; 5]);
    let dropped = json!({"drop_overloads": [{"category": "c", "drop_percentage": {"numerator": 80}}]});
    let limit = json!({"load_balancing_policy.drop_overload_limit": 30});
    let share = Some(Refusal::Overload(300_000));
    assert_eq!(refusals(limit, dropped.clone()), [share, share, share, share, None]);
    let mut assignment = assignment(&[endpoint("127.0.0.1", 1)]);
    assignment["policy"] = dropped;
    let mut changes = cluster_changes(&json!({"load_assignment": assignment}));
    changes.push(layer(json!({"load_balancing_policy.drop_overload_limit": 101})));
    refuses(
        &changes,
        "static_resources.clusters[0].load_assignment.policy.drop_overloads[0].drop_percentage: \
         runtime limits it to 101, which is not within 0 and 100",
    );
}
