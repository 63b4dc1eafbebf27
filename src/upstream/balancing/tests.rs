//! Simulations of whole clusters: localities, zones, subsets, aggregates, slow start, suspect hosts, and that picks do
//! not become dearer with the number of hosts.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::google::protobuf::{value::Kind, ListValue, Struct, Value};

use super::subset::{SubsetIndex, SubsetNote, Target};
use super::zone::ZoneRouting;
use crate::config::balancing::{
    Balancing, Criteria, HostMetadata, LbPolicy, LocalityLb, Maglev, Members, RingHash, Selector,
    SelectorFallback, SlowStart, SubsetFallback, Subsets, ZoneAware,
};
use crate::config::cluster::{Address, Discovery, Health, HealthFlags, HostTemplate, Hosts, Locality};
use crate::config::{fixtures, Cluster, Directory, Host, HostSet, Slot};
use crate::upstream::host_set::SplitOptions;
use crate::upstream::pick::{Ground, Picker};
use crate::upstream::{PickContext, Upstreams};

fn host(port: u16, template: HostTemplate) -> Arc<Host> {
    Host::new(Address::Ip(([127, 0, 0, 1], port).into()), template)
}

fn locality(zone: &str) -> Arc<Locality> {
    Arc::new(Locality { zone: zone.into(), ..Locality::default() })
}

const BY_LOCALITY: SplitOptions = SplitOptions {
    overprovisioning: 140,
    panic_threshold: 50,
    weighted: false,
    localities: true,
    ignore_new_hosts: false,
};

/// How often each host is picked.
fn simulate(
    balancing: &Arc<Balancing>,
    set: &HostSet,
    picks: usize,
    zone: Option<ZoneRouting>,
) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(17);
    let mut picker = Picker::new(balancing, set, 140, &mut rng);
    picker.set_zone(zone);
    let mut seen = vec![0; set.all.len()];
    for _ in 0..picks {
        let ground = Ground { all: &set.all, split: set, now: 1 };
        if let Some(index) = picker.pick(ground, &PickContext::default(), &mut rng) {
            seen[index] += 1;
        }
    }
    seen
}

#[test]
fn localities_share_by_their_weights_and_their_health() {
    let balancing =
        Arc::new(Balancing { locality: LocalityLb::Weighted, ..Balancing::new(LbPolicy::RoundRobin) });
    let of = |zone: &str, locality_weight: u32, health: Health| HostTemplate {
        locality: locality(zone),
        locality_weight,
        status: health.into(),
        ..HostTemplate::default()
    };
    let up = Health::Healthy;
    let hosts = vec![
        host(1, of("a", 1, up)),
        host(2, of("a", 1, up)),
        host(3, of("b", 3, up)),
        host(4, of("c", 0, up)),
    ];
    let seen = simulate(&balancing, &HostSet::new(hosts, BY_LOCALITY), 4_000, None);
    for (seen, expected) in seen.iter().zip([500, 500, 3_000, 0i32]) {
        assert!((*seen as i32 - expected).abs() <= 2, "{seen} instead of {expected}");
    }
    // Half of b is gone: it gets 0.7 of its weight.
    let hosts =
        vec![host(1, of("a", 1, up)), host(2, of("b", 1, up)), host(3, of("b", 1, Health::Unhealthy))];
    let seen = simulate(&balancing, &HostSet::new(hosts, BY_LOCALITY), 1_700, None);
    assert!((998..=1002).contains(&seen[0]) && (698..=702).contains(&seen[1]) && seen[2] == 0, "{seen:?}");
}

/// The example of Envoy's source: 40, 40 and 20 % of the clients, 25, 50 and 25 % of the hosts.
#[test]
fn zones_keep_what_they_can() {
    let in_zones = |zones: &[(&str, usize)]| {
        let each = zones.iter().flat_map(|(zone, count)| std::iter::repeat_n(*zone, *count));
        let template = |zone: &str| HostTemplate { locality: locality(zone), ..HostTemplate::default() };
        let hosts = each.enumerate().map(|(index, zone)| host(index as u16, template(zone)));
        HostSet::new(hosts.collect(), BY_LOCALITY)
    };
    let upstream = in_zones(&[("a", 25), ("b", 50), ("c", 25)]);
    let options = ZoneAware {
        routing_enabled: 100,
        min_cluster_size: 6,
        force_local: None,
        by_weight: false,
        local: Slot::anonymous(Arc::new(fixtures::cluster("us", Discovery::Static))),
        here: (*locality("a")).clone(),
    };
    let decide = |local: &HostSet, options: &ZoneAware| {
        ZoneRouting::new(&upstream.all, &upstream.split, Some(local), options, 50).0
    };
    let local = in_zones(&[("a", 40), ("b", 40), ("c", 20)]);
    let expected = ZoneRouting::Residual { local: Some((0, 6_250)), room: vec![0, 1_000, 1_500] };
    assert_eq!(decide(&local, &options), expected);
    let near = ZoneAware { here: (*locality("b")).clone(), ..options.clone() };
    assert_eq!(decide(&local, &near), ZoneRouting::Direct(1));
    let forced = ZoneAware { force_local: Some(25), ..options.clone() };
    assert_eq!(decide(&local, &forced), ZoneRouting::Direct(0));
    let large = ZoneAware { min_cluster_size: 101, ..options.clone() };
    assert_eq!(decide(&local, &large), ZoneRouting::None);
    let elsewhere = ZoneAware { here: (*locality("d")).clone(), ..options.clone() };
    assert_eq!(decide(&local, &elsewhere), ZoneRouting::None);

    let zone = decide(&local, &options);
    let balancing = Arc::new(Balancing {
        locality: LocalityLb::ZoneAware(Arc::new(options)),
        ..Balancing::new(LbPolicy::RoundRobin)
    });
    let seen = simulate(&balancing, &upstream, 20_000, Some(zone));
    let sums = [&seen[..25], &seen[25..75], &seen[75..]].map(|zone| zone.iter().sum::<usize>());
    for (sum, expected) in sums.iter().zip([12_500, 5_000, 2_500i32]) {
        assert!((*sum as i32 - expected).abs() < 300, "{sums:?}");
    }
}

fn fields(pairs: &[(&str, &str)]) -> Struct {
    let value = |text: &str| {
        let parts: Vec<_> =
            text.split(',').map(|part| Value { kind: Some(Kind::StringValue(part.into())) }).collect();
        match parts.as_slice() {
            [one] => one.clone(),
            _ => Value { kind: Some(Kind::ListValue(ListValue { values: parts })) },
        }
    };
    Struct { fields: pairs.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect() }
}

fn with_metadata(port: u16, pairs: &[(&str, &str)]) -> Arc<Host> {
    let metadata = HostMetadata::of(Some(&fields(pairs)));
    host(port, HostTemplate { metadata, ..HostTemplate::default() })
}

fn selector(keys: &[&str], fallback: SelectorFallback) -> Selector {
    Selector { keys: keys.iter().map(|key| (*key).into()).collect(), single_host: false, fallback }
}

#[test]
fn subsets_fall_back_as_config_says() {
    let set = HostSet::new(
        vec![
            with_metadata(1, &[("stage", "prod"), ("version", "1")]),
            with_metadata(2, &[("stage", "prod"), ("version", "2")]),
            with_metadata(3, &[("stage", "dev"), ("version", "2,3")]),
            host(4, HostTemplate::default()),
        ],
        SplitOptions::default(),
    );
    let options = Subsets {
        fallback: SubsetFallback::Default,
        default_subset: Criteria::of(&fields(&[("stage", "dev")])),
        selectors: Box::new([
            selector(&["stage", "version"], SelectorFallback::Keys(Box::new(["stage".into()]))),
            selector(&["stage"], SelectorFallback::To(SubsetFallback::Any)),
            selector(&["version"], SelectorFallback::Inherit),
        ]),
        list_as_any: true,
        panic_mode_any: true,
        ..Subsets::default()
    };
    let index = SubsetIndex::new(Arc::new(options.clone()), &set);
    // What a plan says, as the hosts of its groups.
    let plan = |index: &SubsetIndex, pairs: &[(&str, &str)]| -> Vec<(Vec<u32>, SubsetNote)> {
        let steps = index.plan(Some(&Criteria::of(&fields(pairs))));
        let hosts = |target| match target {
            Target::Any => vec![0, 1, 2, 3],
            Target::Subset(subset) => index.get(subset).unwrap().split.priorities[0].hosts.clone(),
        };
        steps.into_iter().map(|(target, note)| (hosts(target), note)).collect()
    };
    let selected = |hosts: &[u32]| vec![(hosts.to_vec(), SubsetNote::Selected)];
    let default = || vec![(vec![2], SubsetNote::Fallback), (vec![0, 1, 2, 3], SubsetNote::Panic)];
    assert_eq!(plan(&index, &[("stage", "prod"), ("version", "2")]), selected(&[1]));
    assert_eq!(plan(&index, &[("version", "2")]), selected(&[1, 2]), "a list stands for its values");
    assert_eq!(plan(&index, &[("stage", "prod"), ("version", "9")]), selected(&[0, 1]), "fewer keys");
    assert_eq!(plan(&index, &[("stage", "none")]), [(vec![0, 1, 2, 3], SubsetNote::None)]);
    assert_eq!(plan(&index, &[("version", "9")]), default());
    assert_eq!(plan(&index, &[("other", "1")]), default());
    let steps = index.plan(None);
    assert!(matches!(
        steps.as_slice(),
        [(Target::Subset(_), SubsetNote::Fallback), (Target::Any, SubsetNote::Panic)]
    ));

    let redundant = Subsets { allow_redundant_keys: true, ..options.clone() };
    let index = SubsetIndex::new(Arc::new(redundant), &set);
    assert_eq!(plan(&index, &[("version", "3"), ("zone", "z")]), selected(&[2]));

    let exact = Subsets { list_as_any: false, fallback: SubsetFallback::None, ..options };
    let index = SubsetIndex::new(Arc::new(exact), &set);
    assert_eq!(plan(&index, &[("version", "3")]), []);
}

#[test]
fn subsets_that_come_and_go_are_counted() {
    let set = |ids: &[&str]| {
        let hosts = ids.iter().enumerate().map(|(index, id)| with_metadata(index as u16 + 1, &[("id", id)]));
        HostSet::new(hosts.collect(), SplitOptions::default())
    };
    let options =
        Subsets { selectors: Box::new([selector(&["id"], SelectorFallback::Inherit)]), ..Subsets::default() };
    let index = SubsetIndex::new(Arc::new(options), &set(&["a", "b", "a"]));
    assert_eq!(index.changes, (2, 0));
    let index = index.renewed(&set(&["c", "b", "d"]));
    assert_eq!(index.changes, (4, 1));
    let index = index.renewed(&set(&["b", "c", "d", "b"]));
    assert_eq!(index.changes, (4, 1));
    assert_eq!(index.renewed(&set(&[])).changes, (4, 4));
}

#[test]
fn one_host_stands_for_its_subset() {
    let set = HostSet::new(
        vec![
            with_metadata(1, &[("id", "a")]),
            with_metadata(2, &[("id", "b")]),
            with_metadata(3, &[("id", "a")]),
        ],
        SplitOptions::default(),
    );
    let selector = Selector { single_host: true, ..selector(&["id"], SelectorFallback::Inherit) };
    let options = Subsets { selectors: Box::new([selector]), ..Subsets::default() };
    let index = SubsetIndex::new(Arc::new(options), &set);
    assert_eq!((index.len(), index.duplicates), (2, 1));
    assert_eq!((index.get(0).unwrap().single, index.get(1).unwrap().single), (Some(0), Some(1)));
}

fn cluster(name: &str, hosts: Vec<Arc<Host>>) -> Cluster {
    let set = HostSet::new(hosts, SplitOptions::default());
    Cluster { hosts: Hosts::new(set), ..fixtures::cluster(name, Discovery::Static) }
}

/// Failover from one member to the next; members come and go while requests do.
#[test]
fn an_aggregate_fails_over_and_follows_its_members() {
    let directory = Directory::<Cluster>::default();
    let (first, second, whole) = (directory.slot("first"), directory.slot("second"), directory.slot("whole"));
    let discovery = Discovery::Aggregate(Members([first.clone(), second.clone(), whole.clone()].into()));
    whole.set(Some(Arc::new(fixtures::cluster("whole", discovery))));
    let upstreams = Upstreams::default();
    let picks = |count: usize| {
        let local = upstreams.cluster(&whole).unwrap();
        let mut ports = [0; 5];
        for _ in 0..count {
            let Ok(pool) = local.pick(&PickContext::default()) else { continue };
            let Address::Ip(address) = &pool.host.address else { panic!() };
            ports[usize::from(address.port())] += 1;
        }
        ports
    };
    assert_eq!(picks(10), [0; 5], "no member is there");
    let second_hosts = || vec![host(3, HostTemplate::default()), host(4, HostTemplate::default())];
    second.set(Some(Arc::new(cluster("second", second_hosts()))));
    assert_eq!(picks(10), [0, 0, 0, 5, 5]);
    let hosts = vec![host(1, HostTemplate::default()), host(2, HostTemplate::default())];
    first.set(Some(Arc::new(cluster("first", hosts.clone()))));
    assert_eq!(picks(10), [0, 5, 5, 0, 0]);
    // One of two is out: 70 % stay.
    hosts[0].shared.health.set(HealthFlags::FAILED_OUTLIER_CHECK);
    first.get().unwrap().hosts.health_changed();
    let seen = picks(10_000);
    assert_eq!((seen[0], seen[1]), (0, 0));
    assert!((6_700..7_300).contains(&seen[2]), "{seen:?}");
    hosts[1].shared.health.set(HealthFlags::FAILED_OUTLIER_CHECK);
    first.get().unwrap().hosts.health_changed();
    assert_eq!(picks(10), [0, 0, 0, 5, 5]);
    second.set(None);
    assert!(picks(10)[1] > 0, "in panic when nobody else is there");
    first.set(None);
    assert_eq!(picks(10), [0; 5]);
}

#[test]
fn new_hosts_start_slowly() {
    let slow = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min_weight: 0.1 };
    let balancing = Arc::new(Balancing { slow_start: Some(slow), ..Balancing::new(LbPolicy::RoundRobin) });
    let set = HostSet::new(
        vec![host(1, HostTemplate::default()), host(2, HostTemplate::default())],
        SplitOptions::default(),
    );
    set.all[0].shared.healthy_since.store(1, Ordering::Relaxed);
    set.all[1].shared.healthy_since.store(100_000, Ordering::Relaxed);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut picker = Picker::new(&balancing, &set, 140, &mut rng);
    // Share of the new host in percent, while it is so old.
    let mut share = |age: u64| {
        let mut seen = [0; 2];
        for _ in 0..2_200 {
            let ground = Ground { all: &set.all, split: &set, now: 100_000 + age };
            seen[picker.pick(ground, &PickContext::default(), &mut rng).unwrap()] += 1;
        }
        seen[1] * 100 / 2_200
    };
    assert!((8..=10).contains(&share(100)), "a tenth of the other's");
    assert!((32..=34).contains(&share(5_000)), "half of the other's");
    assert!((49..=50).contains(&share(10_000)), "as much");
}

/// Every policy, with one suspect host and with all of them.
#[test]
fn suspect_hosts_are_passed_over_while_there_are_others() {
    let policies = [
        LbPolicy::RoundRobin,
        LbPolicy::Random,
        LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: false },
        LbPolicy::RingHash(RingHash {
            minimum_size: 1024,
            maximum_size: 1 << 23,
            murmur: true,
            hashing: Default::default(),
        }),
        LbPolicy::Maglev(Maglev { table_size: 251, hashing: Default::default() }),
    ];
    for policy in policies {
        let balancing = Arc::new(Balancing::new(policy));
        let hosts: Vec<_> = (0..4).map(|port| host(port, HostTemplate::default())).collect();
        let set = HostSet::new(hosts, SplitOptions::default());
        set.all[2].shared.health.set(HealthFlags::SUSPECT);
        let seen = simulate(&balancing, &set, 400, None);
        assert!(seen[2] == 0 && seen.iter().sum::<usize>() == 400, "{balancing:?}: {seen:?}");
        assert!(seen[0] > 60 && seen[1] > 60 && seen[3] > 60, "{balancing:?}: {seen:?}");
        for host in &set.all {
            host.shared.health.set(HealthFlags::SUSPECT);
        }
        let seen = simulate(&balancing, &set, 400, None);
        assert!(seen.iter().all(|seen| *seen > 50), "{balancing:?}: {seen:?}");
    }
    // The next priority is asked before a suspect host is.
    let backup = HostTemplate { priority: 1, ..HostTemplate::default() };
    let set = HostSet::new(vec![host(1, HostTemplate::default()), host(2, backup)], SplitOptions::default());
    set.all[0].shared.health.set(HealthFlags::SUSPECT);
    let balancing = Arc::new(Balancing::new(LbPolicy::RoundRobin));
    assert_eq!(simulate(&balancing, &set, 100, None), [0, 100]);
}
