use super::*;
use crate::config::cluster::{Address, Health, HostTemplate};
use crate::config::HostSet;
use std::net::SocketAddr;

fn set(hosts: &[(u32, u32, Health)]) -> HostSet {
    let all = hosts
        .iter()
        .enumerate()
        .map(|(index, (weight, priority, health))| {
            let address = SocketAddr::from(([127, 0, 0, 1], 1000 + index as u16));
            let template = HostTemplate {
                weight: *weight,
                priority: *priority,
                status: (*health).into(),
                ..HostTemplate::default()
            };
            Host::new(Address::Ip(address), template)
        })
        .collect();
    HostSet::new(all, Default::default())
}

fn shares(policy: &LbPolicy, set: &HostSet, picks: usize) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut picker = Picker::new(&Arc::new(Balancing::new(policy.clone())), set, 140, &mut rng);
    let mut seen = vec![0; set.all.len()];
    for _ in 0..picks {
        let ground = Ground { all: &set.all, split: set, now: 0 };
        if let Some(index) = picker.pick(ground, &PickContext::default(), &mut rng) {
            seen[index] += 1;
        }
    }
    seen
}

#[test]
fn round_robin_is_exact() {
    let set = set(&[(1, 0, Health::Healthy); 4]);
    assert_eq!(shares(&LbPolicy::RoundRobin, &set, 400), [100; 4]);
}

#[test]
fn round_robin_follows_weights() {
    let set = set(&[(1, 0, Health::Healthy), (3, 0, Health::Healthy)]);
    let seen = shares(&LbPolicy::RoundRobin, &set, 400);
    assert!((299..=301).contains(&seen[1]), "{seen:?}");
}

#[test]
fn unhealthy_hosts_are_skipped_until_panic() {
    let one_out = set(&[(1, 0, Health::Healthy), (1, 0, Health::Healthy), (1, 0, Health::Unhealthy)]);
    assert_eq!(shares(&LbPolicy::RoundRobin, &one_out, 100)[2], 0);
    let two_out = set(&[(1, 0, Health::Healthy), (1, 0, Health::Unhealthy), (1, 0, Health::Unhealthy)]);
    assert_eq!(shares(&LbPolicy::RoundRobin, &two_out, 99), [33; 3]);
}

#[test]
fn spills_to_the_next_priority() {
    let set = set(&[(1, 0, Health::Unhealthy), (1, 0, Health::Healthy), (1, 1, Health::Healthy)]);
    let seen = shares(&LbPolicy::RoundRobin, &set, 10_000);
    assert_eq!(seen[0], 0);
    assert!((6_700..7_300).contains(&seen[1]), "{seen:?}");
}

#[test]
fn least_request_prefers_the_idle_host() {
    let set = set(&[(1, 0, Health::Healthy), (1, 0, Health::Healthy)]);
    set.all[0].shared.active_requests.store(50, Ordering::Relaxed);
    let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: false };
    let seen = shares(&policy, &set, 1000);
    assert!((200..300).contains(&seen[0]), "both draws hit the busy host a quarter of the time: {seen:?}");
}

#[test]
fn a_tried_host_is_avoided() {
    let set = set(&[(1, 0, Health::Healthy); 3]);
    let mut rng = fastrand::Rng::with_seed(3);
    let balancing = Arc::new(Balancing::new(LbPolicy::RoundRobin));
    let mut picker = Picker::new(&balancing, &set, 140, &mut rng);
    let reject = |host: &Host| Arc::ptr_eq(&host.shared, &set.all[1].shared);
    let context = PickContext { reject: Some(&reject), repicks: 3, ..PickContext::default() };
    let ground = Ground { all: &set.all, split: &set, now: 0 };
    for _ in 0..30 {
        assert_ne!(picker.pick(ground, &context, &mut rng), Some(1));
    }
}
