//! Shares where chance decides: policies, weights, localities, zones, priorities under a sweep of unhealthy hosts.

use super::{assert_alike, Answered, Origins, Setup};
use serde_json::{json, Value};

fn extension(name: &str, more: Value) -> Value {
    let mut config = more;
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}"));
    json!({"load_balancing_policy": {"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]}})
}

#[tokio::test]
async fn policies_share_as_envoys() {
    let origins = Origins::start(6).await;
    let mut setup = Setup::default();
    let weights = [1, 1, 2, 2, 3, 9];
    let equal =
        || vec![json!({"lb_endpoints": (0..6).map(|n| origins.endpoint(n, json!({}))).collect::<Vec<_>>()})];
    let heavy = || {
        let endpoint = |n: usize| origins.endpoint(n, json!({"load_balancing_weight": weights[n]}));
        vec![json!({"lb_endpoints": (0..6).map(endpoint).collect::<Vec<_>>()})]
    };
    let zone = |zone: &str, weight: Value, range: std::ops::Range<usize>, sick: usize| {
        let endpoint = |n: usize| {
            let health = if n < sick { "UNHEALTHY" } else { "HEALTHY" };
            origins.endpoint(n, json!({"health_status": health}))
        };
        let mut group =
            json!({"locality": {"zone": zone}, "lb_endpoints": range.map(endpoint).collect::<Vec<_>>()});
        if !weight.is_null() {
            group["load_balancing_weight"] = weight;
        }
        group
    };
    let zones = |sick: usize| {
        vec![
            zone("a", json!(1), 0..2, sick),
            zone("b", json!(4), 2..5, sick),
            zone("c", Value::Null, 5..6, sick),
        ]
    };
    let by_locality = json!({"common_lb_config": {"locality_weighted_lb_config": {}}});
    let slow = json!({"slow_start_config": {"slow_start_window": "100s"}});
    let cases = [
        ("round-robin", equal(), json!({})),
        ("round-robin-weights", heavy(), json!({})),
        ("random", equal(), json!({"lb_policy": "RANDOM"})),
        ("random-weights", heavy(), json!({"lb_policy": "RANDOM"})),
        ("least", equal(), json!({"lb_policy": "LEAST_REQUEST"})),
        ("least-weights", heavy(), json!({"lb_policy": "LEAST_REQUEST"})),
        (
            "least-scan",
            equal(),
            extension("least_request.v3.LeastRequest", json!({"selection_method": "FULL_SCAN"})),
        ),
        (
            "least-of-five",
            equal(),
            json!({"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 5}}),
        ),
        // Without a hash, chance takes its place.
        ("ring", heavy(), json!({"lb_policy": "RING_HASH"})),
        ("maglev", heavy(), json!({"lb_policy": "MAGLEV"})),
        ("slow", heavy(), extension("round_robin.v3.RoundRobin", slow)),
        ("localities", zones(0), by_locality.clone()),
        ("localities-sick", zones(3), by_locality),
        (
            "localities-extension",
            zones(3),
            extension(
                "round_robin.v3.RoundRobin",
                json!({"locality_lb_config": {"locality_weighted_lb_config": {}}}),
            ),
        ),
    ];
    for (name, groups, options) in &cases {
        setup.cluster(name, groups.clone(), options.clone());
        setup.route(name, json!({"cluster": name}));
    }
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for (name, ..) in cases {
        let (theirs, mine) = tokio::join!(envoy.shares(name, 900), ours.shares(name, 900));
        assert_alike(name, &theirs, &mine);
    }
}

/// The nearest hosts first, as many elsewhere as keeps all equally busy.
#[tokio::test]
async fn zones_are_routed_as_envoys() {
    let origins = Origins::start(9).await;
    let mut setup = Setup::default();
    let zone = |zone: &str, range: std::ops::Range<usize>| {
        let endpoints: Vec<Value> = range.map(|n| origins.endpoint(n, json!({}))).collect();
        json!({"locality": {"zone": zone}, "lb_endpoints": endpoints})
    };
    setup.more = json!({"cluster_manager": {"local_cluster_name": "local"}});
    setup.cluster("local", vec![zone("a", 0..4), zone("b", 4..6)], json!({}));
    let cases = [
        (
            "residual",
            vec![zone("a", 0..3), zone("b", 3..7), zone("c", 7..9)],
            json!({"zone_aware_lb_config": {}}),
        ),
        ("direct", vec![zone("a", 0..7), zone("b", 7..9)], json!({"zone_aware_lb_config": {}})),
        ("small", vec![zone("a", 0..3), zone("b", 3..5)], json!({"zone_aware_lb_config": {}})),
        (
            "small-allowed",
            vec![zone("a", 0..3), zone("b", 3..5)],
            json!({"zone_aware_lb_config": {"min_cluster_size": 2}}),
        ),
        (
            "half",
            vec![zone("a", 0..7), zone("b", 7..9)],
            json!({"zone_aware_lb_config": {"routing_enabled": {"value": 50}}}),
        ),
        ("nobody-near", vec![zone("b", 0..7), zone("c", 7..9)], json!({"zone_aware_lb_config": {}})),
    ];
    for (name, groups, common) in &cases {
        setup.cluster(name, groups.clone(), json!({"common_lb_config": common}));
        setup.route(name, json!({"cluster": name}));
    }
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for (name, ..) in &cases {
        let (theirs, mine) = tokio::join!(envoy.shares(name, 900), ours.shares(name, 900));
        assert_alike(name, &theirs, &mine);
    }
    let (theirs, mine) = (envoy.proxy.stats().await, ours.proxy.stats().await);
    for name in ["direct.lb_zone_routing_all_directly", "small-allowed.lb_zone_routing_all_directly"] {
        let name = format!("cluster.{name}");
        assert_eq!(theirs.get(&name), mine.get(&name), "{name}");
    }
}

/// The share of each priority while more and more hosts of the first are unhealthy or degraded.
#[tokio::test]
async fn priorities_share_as_envoys() {
    let origins = Origins::start(10).await;
    let mut setup = Setup::default();
    let mut names = Vec::new();
    let level = |priority: u32, range: std::ops::Range<usize>, sick: usize, degraded: usize| {
        let endpoint = |(index, n): (usize, usize)| {
            let health = match index {
                index if index < sick => "UNHEALTHY",
                index if index < sick + degraded => "DEGRADED",
                _ => "HEALTHY",
            };
            origins.endpoint(n, json!({"health_status": health, "load_balancing_weight": n + 1}))
        };
        json!({"priority": priority, "lb_endpoints": range.enumerate().map(endpoint).collect::<Vec<_>>()})
    };
    let cases: Vec<(&str, [usize; 4], Value)> = [0, 1, 2, 3, 4, 5]
        .into_iter()
        .flat_map(|sick| {
            [[sick, 0, 0, 0], [sick, 0, 3, 0], [sick, 5 - sick, 0, 0], [sick, 0, 4, 1], [sick, 0, 5, 0]]
        })
        .map(|case| ("sweep", case, json!({})))
        .chain([
            (
                "no-panic",
                [5, 0, 5, 0],
                json!({"common_lb_config": {"healthy_panic_threshold": {"value": 0}}}),
            ),
            (
                "no-panic",
                [4, 0, 5, 0],
                json!({"common_lb_config": {"healthy_panic_threshold": {"value": 0}}}),
            ),
            (
                "fail",
                [4, 0, 4, 0],
                json!({"common_lb_config": {"zone_aware_lb_config": {"fail_traffic_on_panic": true}}}),
            ),
            ("factor", [2, 0, 0, 0], json!({"policy": {"overprovisioning_factor": 100}})),
            ("weighted", [3, 0, 0, 0], json!({"policy": {"weighted_priority_health": true}})),
            ("weighted", [2, 1, 2, 1], json!({"policy": {"weighted_priority_health": true}})),
        ])
        .collect();
    for (kind, [sick, degraded, sick_backup, degraded_backup], options) in cases {
        let name = format!("{kind}-{sick}-{degraded}-{sick_backup}-{degraded_backup}");
        if names.contains(&name) {
            continue;
        }
        let groups = vec![level(0, 0..5, sick, degraded), level(1, 5..10, sick_backup, degraded_backup)];
        let mut options = options;
        options["lb_policy"] = json!("RANDOM");
        setup.cluster(&name, groups, options);
        setup.route(&name, json!({"cluster": name}));
        names.push(name);
    }
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for name in &names {
        let (theirs, mine) = tokio::join!(envoy.shares(name, 500), ours.shares(name, 500));
        assert_alike(name, &theirs, &mine);
        // Whoever gets nothing from one gets nothing from the other.
        let who = |of: &std::collections::BTreeMap<Answered, usize>| of.keys().copied().collect::<Vec<_>>();
        let rare = theirs.values().chain(mine.values()).any(|count| *count < 8);
        assert!(rare || who(&theirs) == who(&mine), "{name}:\n{theirs:?}\n{mine:?}");
    }
    let (theirs, mine) = (envoy.proxy.stats().await, ours.proxy.stats().await);
    let panics = |of: &std::collections::BTreeMap<String, u64>, name: &str| {
        of.get(&format!("cluster.{name}.lb_healthy_panic")).copied().unwrap_or(0) as i64
    };
    for name in &names {
        let (theirs, mine) = (panics(&theirs, name), panics(&mine, name));
        assert!((theirs - mine).abs() < 120, "{name}: {theirs} and {mine} picks in panic");
    }
}
