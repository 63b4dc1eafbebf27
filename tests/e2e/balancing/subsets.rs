//! Subsets: which hosts a route's metadata lead to, with every way to fall back.

use super::{Answered, Origins, Setup};
use serde_json::{json, Value};
use std::collections::BTreeSet;

#[tokio::test]
async fn metadata_lead_to_the_same_hosts() {
    let origins = Origins::start(6).await;
    let mut setup = Setup::default();
    let hosts = [
        json!({"stage": "prod", "version": "1", "id": "a"}),
        json!({"stage": "prod", "version": "2", "id": "b"}),
        json!({"stage": "prod", "version": 2, "id": "c"}),
        json!({"stage": "dev", "version": ["2", "3"], "id": "d"}),
        json!({"stage": "dev", "id": "a"}),
        Value::Null,
    ];
    let endpoint = |(number, metadata): (usize, &Value)| match metadata {
        Value::Null => origins.endpoint(number, json!({})),
        metadata => {
            origins.endpoint(number, json!({"metadata": {"filter_metadata": {"envoy.lb": metadata}}}))
        }
    };
    let endpoints: Vec<Value> = hosts.iter().enumerate().map(endpoint).collect();
    let both = json!({"keys": ["stage", "version"]});
    let stage = json!({"keys": ["stage"]});
    let with = |selector: &Value, more: Value| {
        let mut selector = selector.clone();
        selector.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        selector
    };
    let dev = json!({"stage": "dev"});
    let subset = |more: Value| more;
    let clusters = [
        ("none", subset(json!({"subset_selectors": [both, stage]}))),
        ("any", subset(json!({"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [both, stage]}))),
        (
            "default",
            subset(json!({"fallback_policy": "DEFAULT_SUBSET", "default_subset": dev,
            "subset_selectors": [both, stage]})),
        ),
        (
            "panic",
            subset(json!({"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"stage": "nowhere"},
            "panic_mode_any": true, "subset_selectors": [both]})),
        ),
        ("lists", subset(json!({"list_as_any": true, "subset_selectors": [both, {"keys": ["version"]}]}))),
        (
            "keys",
            subset(json!({"subset_selectors": [
            with(&both, json!({"fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["stage"]})),
            with(&stage, json!({"fallback_policy": "ANY_ENDPOINT"}))]})),
        ),
        (
            "selector-none",
            subset(json!({"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [
            with(&both, json!({"fallback_policy": "NO_FALLBACK"})), stage]})),
        ),
        (
            "selector-default",
            subset(json!({"default_subset": dev, "subset_selectors": [
            with(&both, json!({"fallback_policy": "DEFAULT_SUBSET"}))]})),
        ),
        ("single", subset(json!({"subset_selectors": [{"keys": ["id"], "single_host_per_subset": true}]}))),
        (
            "list-of-fallbacks",
            subset(json!({"metadata_fallback_policy": "FALLBACK_LIST",
            "subset_selectors": [both, stage]})),
        ),
    ];
    for (name, config) in &clusters {
        let group = json!({"lb_endpoints": endpoints});
        setup.cluster(name, vec![group], json!({"lb_subset_config": config}));
    }
    let criteria = [
        ("prod-2", json!({"stage": "prod", "version": "2"})),
        ("prod-number", json!({"stage": "prod", "version": 2})),
        ("prod-9", json!({"stage": "prod", "version": "9"})),
        ("dev-3", json!({"stage": "dev", "version": "3"})),
        ("prod", json!({"stage": "prod"})),
        ("nowhere", json!({"stage": "nowhere"})),
        ("version", json!({"version": "2"})),
        ("id-a", json!({"id": "a"})),
        ("other", json!({"other": "x"})),
        ("more", json!({"other": "x", "stage": "prod"})),
        ("fallbacks", json!({"stage": "prod", "fallback_list": [{"version": "9"}, {"version": "1"}]})),
        ("no-fallbacks", json!({"stage": "prod", "fallback_list": []})),
        ("empty", json!({})),
    ];
    let mut names = Vec::new();
    for (cluster, _) in &clusters {
        for (name, wanted) in &criteria {
            let path = format!("{cluster}/{name}");
            setup.route(
                &path,
                json!({"cluster": cluster, "metadata_match": {"filter_metadata": {"envoy.lb": wanted}}}),
            );
            names.push(path);
        }
        let path = format!("{cluster}/without");
        setup.route(&path, json!({"cluster": cluster}));
        // A weighted cluster adds to what its route asks.
        let weighted = format!("{cluster}/weighted");
        setup.route(
            &weighted,
            json!({
            "metadata_match": {"filter_metadata": {"envoy.lb": {"stage": "prod", "version": "1"}}},
            "weighted_clusters": {"clusters": [{"name": cluster, "weight": 1,
                "metadata_match": {"filter_metadata": {"envoy.lb": {"version": "2"}}}}]}}),
        );
        names.extend([path, weighted]);
    }
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for name in &names {
        let (theirs, mine) = tokio::join!(envoy.shares(name, 12), ours.shares(name, 12));
        let who =
            |of: &std::collections::BTreeMap<Answered, usize>| of.keys().copied().collect::<BTreeSet<_>>();
        assert_eq!(who(&theirs), who(&mine), "{name}: left Envoy, right Outrigger");
    }
    let (theirs, mine) = (envoy.proxy.stats().await, ours.proxy.stats().await);
    for (cluster, _) in &clusters {
        for stat in [
            "lb_subsets_selected",
            "lb_subsets_fallback",
            "lb_subsets_fallback_panic",
            "upstream_cx_none_healthy",
        ] {
            let name = format!("cluster.{cluster}.{stat}");
            let count = |of: &std::collections::BTreeMap<String, u64>| of.get(&name).copied().unwrap_or(0);
            assert_eq!(count(&theirs), count(&mine), "{name}");
        }
    }
}
