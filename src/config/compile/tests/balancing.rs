//! How hosts are chosen.

use super::*;
use crate::config::balancing::{LocalityLb, Maglev, RingHash, SelectorFallback, SubsetFallback};

fn policy(name: &str, more: Value) -> Value {
    let mut config = more;
    config["@type"] = json!(typed(&format!("extensions.load_balancing_policies.{name}")));
    json!({"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]})
}

#[test]
fn hash_tables_have_envoys_defaults() {
    let LbPolicy::RingHash(RingHash { minimum_size, maximum_size, murmur, hashing }) =
        cluster(json!({"lb_policy": "RING_HASH"})).balancing.policy.clone()
    else {
        panic!()
    };
    assert_eq!((minimum_size, maximum_size, murmur, hashing.balance_factor), (1024, 8_388_608, false, 0));
    let common = json!({"consistent_hashing_lb_config": {"use_hostname_for_hashing": true, "hash_balance_factor": 150}});
    let LbPolicy::Maglev(Maglev { table_size, hashing }) =
        cluster(json!({"type": "STRICT_DNS", "lb_policy": "MAGLEV", "common_lb_config": common}))
            .balancing
            .policy
            .clone()
    else {
        panic!()
    };
    assert_eq!((table_size, hashing.use_hostname, hashing.balance_factor), (65537, true, 150));
    let ring =
        policy("ring_hash.v3.RingHash", json!({"hash_function": "MURMUR_HASH_2", "minimum_ring_size": 7}));
    let cluster = cluster(json!({"load_balancing_policy": ring}));
    let LbPolicy::RingHash(ring) = &cluster.balancing.policy else { panic!() };
    assert!(ring.murmur && ring.minimum_size == 7);
    refuses_cluster(
        json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 65536}}),
        "maglev_lb_config.table_size: is 65536, must be a prime number",
    );
    refuses_cluster(
        json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 9, "maximum_ring_size": 8}}),
        "ring_hash_lb_config.minimum_ring_size: is 9, more than maximum_ring_size (8)",
    );
}

#[test]
fn policies_inside_of_policies() {
    let inner =
        policy("round_robin.v3.RoundRobin", json!({"slow_start_config": {"slow_start_window": "20s"}}));
    let weighted = policy("wrr_locality.v3.WrrLocality", json!({"endpoint_picking_policy": inner}));
    let compiled = cluster(json!({"load_balancing_policy": weighted}));
    assert_eq!(compiled.balancing.locality, LocalityLb::Weighted);
    let slow = compiled.balancing.slow_start.unwrap();
    assert_eq!((slow.window.as_secs(), slow.aggression, slow.min_weight), (20, 1.0, 0.1));
    assert!(compiled.split_options().localities);

    let random = policy("random.v3.Random", json!({}));
    let subset = policy(
        "subset.v3.Subset",
        json!({
        "subset_selectors": [{"keys": ["b", "a"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["a"]}],
        "fallback_policy": "ANY_ENDPOINT", "subset_lb_policy": random}),
    );
    let compiled = cluster(json!({"load_balancing_policy": subset}));
    let subsets = compiled.balancing.subsets.as_ref().unwrap();
    assert_eq!(compiled.balancing.policy, LbPolicy::Random);
    assert_eq!(subsets.fallback, SubsetFallback::Any);
    assert_eq!(*subsets.selectors[0].keys, ["a".into(), "b".into()]);
    assert_eq!(subsets.selectors[0].fallback, SelectorFallback::Keys(["a".into()].into()));

    let named = policy(
        "override_host.v3.OverrideHost",
        json!({
        "override_host_sources": [{"header": "X-Host"}], "fallback_policy": random}),
    );
    let compiled = cluster(json!({"load_balancing_policy": named}));
    assert_eq!(compiled.balancing.override_host.as_ref().unwrap().headers[0].name(), "x-host");
    refuses_cluster(
        json!({"load_balancing_policy": policy("maglev.v3.Maglev", json!({})),
               "common_lb_config": {"locality_weighted_lb_config": {}}}),
        "common_lb_config.locality_weighted_lb_config: cannot be set together with load_balancing_policy",
    );
}

#[test]
fn subsets_that_cannot_be_are_refused() {
    let with = |selector: Value| json!({"lb_subset_config": {"subset_selectors": [selector]}});
    refuses_cluster(
        with(json!({"keys": ["a"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["a"]})),
        "lb_subset_config.subset_selectors[0].fallback_keys_subset: must be some of keys, but not all",
    );
    refuses_cluster(
        json!({"lb_subset_config": {"subset_selectors": [{"keys": ["a"]}]},
               "common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": true}}}),
        "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing: is only for clusters of type STRICT_DNS",
    );
    // As in Envoy, no selectors mean no subsets.
    assert!(cluster(json!({"lb_subset_config": {}})).balancing.subsets.is_none());
}

#[test]
fn aggregates_name_their_members() {
    let aggregate = |policy: &str| {
        json!({
        "load_assignment": null, "lb_policy": policy,
        "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": {
            "@type": typed("extensions.clusters.aggregate.v3.ClusterConfig"), "clusters": ["one", "two"]}}})
    };
    let compiled = cluster(aggregate("CLUSTER_PROVIDED"));
    let Discovery::Aggregate(members) = &compiled.discovery else { panic!("{:?}", compiled.discovery) };
    assert_eq!(members.0.iter().map(|slot| &**slot.name()).collect::<Vec<_>>(), ["one", "two"]);
    refuses_cluster(aggregate("ROUND_ROBIN"), "lb_policy: an aggregate cluster needs CLUSTER_PROVIDED");
}

#[test]
fn endpoints_bring_metadata_and_weights_of_localities() {
    let mut assignment = assignment(&[endpoint("10.0.0.1", 80)]);
    assignment["endpoints"][0]["load_balancing_weight"] = json!(7);
    assignment["endpoints"][0]["lb_endpoints"][0]["metadata"] =
        json!({"filter_metadata": {"envoy.lb": {"canary": true, "hash_key": "k"}, "other": {"a": 1}}});
    let cluster = cluster(json!({"load_assignment": assignment}));
    let hosts = cluster.hosts.load();
    let host = &hosts.all[0];
    assert_eq!(host.template.locality_weight, 7);
    assert!(host.is_canary());
    assert_eq!(host.hash_key(&Default::default()), "k");
}

#[test]
fn weights_by_load_have_envoys_defaults() {
    let name = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";
    let compiled = cluster(json!({"load_balancing_policy": policy(name, json!({}))}));
    let LbPolicy::ClientSideWeighted(options) = &compiled.balancing.policy else { panic!() };
    let times = [options.blackout, options.expiration, options.update].map(|time| time.as_secs());
    assert_eq!((times, options.error_penalty, options.metrics.len()), ([10, 180, 1], 0.0, 0));
    assert_eq!(compiled.orca.as_ref().unwrap().weights.as_ref(), Some(&**options));
    let full = policy(
        name,
        json!({"blackout_period": "2s", "weight_expiration_period": "3s", "weight_update_period": "0.001s",
               "error_utilization_penalty": 0.5, "enable_oob_load_report": false,
               "metric_names_for_computing_utilization": ["named_metrics.a", "nonsense"],
               "slow_start_config": {"slow_start_window": "9s"}}),
    );
    let outer = policy("wrr_locality.v3.WrrLocality", json!({"endpoint_picking_policy": full}));
    let compiled = cluster(json!({"load_balancing_policy": outer}));
    let LbPolicy::ClientSideWeighted(options) = &compiled.balancing.policy else { panic!() };
    let times = [options.blackout, options.expiration, options.update].map(|time| time.as_millis());
    assert_eq!((times, options.error_penalty, options.metrics.len()), ([2000, 3000, 100], 0.5, 1));
    assert!(compiled.balancing.slow_start.is_some() && compiled.balancing.locality == LocalityLb::Weighted);
    assert_eq!(options.out_of_band, None);
    let asks = json!({"enable_oob_load_report": true, "oob_reporting_config": {"port_value": 9, "authority": "a.test"}});
    let compiled = cluster(json!({"load_balancing_policy": policy(name, asks)}));
    let LbPolicy::ClientSideWeighted(options) = &compiled.balancing.policy else { panic!() };
    let asked = options.out_of_band.as_ref().unwrap();
    assert_eq!(
        (asked.period.as_secs(), asked.port, asked.authority.as_deref()),
        (10, Some(9), Some("a.test"))
    );
    refuses_cluster(
        json!({"load_balancing_policy": policy(name, json!({"error_utilization_penalty": -1}))}),
        "load_balancing_policy.policies[0].typed_extension_config.typed_config.error_utilization_penalty: \
         is -1, must be at least 0",
    );
}

#[test]
fn load_reports_are_wanted_only_where_somebody_asks() {
    assert!(cluster(json!({})).orca.is_none());
    let compiled = cluster(json!({"lrs_report_endpoint_metrics": ["cpu_utilization", "named_metrics.*"]}));
    let wanted = compiled.orca.as_ref().unwrap();
    assert_eq!((wanted.metrics.as_ref().map(|metrics| metrics.len()), &wanted.weights), (Some(2), &None));
}
