use super::*;
use crate::config::cluster::{Address, HostTemplate};
use crate::config::HostSet;

fn hosts(weights: &[u32]) -> HostSet {
    let host = |(index, weight): (usize, &u32)| {
        let address = ([10, 0, (index / 250) as u8, (index % 250) as u8], 80).into();
        Host::new(Address::Ip(address), HostTemplate { weight: *weight, ..HostTemplate::default() })
    };
    HostSet::new(weights.iter().enumerate().map(host).collect(), Default::default())
}

fn ring_policy(minimum_size: u64, maximum_size: u64) -> LbPolicy {
    LbPolicy::RingHash(RingHash { minimum_size, maximum_size, murmur: false, hashing: Hashing::default() })
}

fn maglev_policy(table_size: u64) -> LbPolicy {
    LbPolicy::Maglev(Maglev { table_size, hashing: Hashing::default() })
}

fn table(set: &HostSet, policy: &LbPolicy) -> Arc<HashTable> {
    HashTable::new(&set.all, &set.split, 0, policy, false)
}

/// The shares of hosts in percent of `keys` picks.
fn shares(set: &HostSet, table: &HashTable, keys: u64) -> Vec<f64> {
    let mut seen = vec![0u64; set.all.len()];
    for key in 0..keys {
        seen[table.pick(xxh64(&key.to_le_bytes(), 0), 0).unwrap() as usize] += 1;
    }
    seen.iter().map(|seen| *seen as f64 * 100.0 / keys as f64).collect()
}

#[test]
fn the_hashes_are_the_known_ones() {
    // `std::hash` of libstdc++, and the ten-thousandth number of the reference generator.
    assert_eq!(murmur2(b"hello", MURMUR_SEED), 2_762_169_579_135_187_400);
    let mut random = Twister::new(5489);
    assert_eq!((0..10_000).map(|_| random.next()).last(), Some(4_123_659_995));
}

#[test]
fn rings_have_the_sizes_of_envoys() {
    // Every host gets a whole number of entries, the lightest as many as the smallest ring gives it.
    let set = hosts(&[1, 1, 1]);
    assert_eq!(table(&set, &ring_policy(1024, 1 << 23)).size, (1026, 342, 342));
    let set = hosts(&[1, 2]);
    assert_eq!(table(&set, &ring_policy(1024, 1 << 23)).size, (1026, 342, 684));
    // Unless the largest ring is too small for that.
    let set = hosts(&[1; 4]);
    assert_eq!(table(&set, &ring_policy(6, 6)).size, (6, 1, 2));
}

#[test]
fn maglev_shares_follow_weights() {
    let set = hosts(&[1, 2, 5]);
    let table = table(&set, &maglev_policy(65537));
    assert_eq!(table.size.0, 65537);
    for (share, expected) in shares(&set, &table, 20_000).iter().zip([12.5, 25.0, 62.5]) {
        assert!((share - expected).abs() < 1.5, "{share} instead of {expected}");
    }
}

#[test]
fn few_keys_move_when_a_host_leaves() {
    let set = hosts(&[1; 20]);
    let fewer = HostSet::new(set.all[1..].to_vec(), Default::default());
    for policy in [ring_policy(1024, 1 << 23), maglev_policy(65537)] {
        let (before, after) = (table(&set, &policy), table(&fewer, &policy));
        let moved = (0..20_000u64).filter(|key| {
            let hash = xxh64(&key.to_le_bytes(), 0);
            let before = before.pick(hash, 0).unwrap();
            before != 0 && before != after.pick(hash, 0).unwrap() + 1
        });
        let moved = moved.count();
        assert!(moved < 1_000, "{moved} of 20000 keys moved without need: {policy:?}");
    }
}

#[test]
fn another_attempt_takes_another_entry() {
    let set = hosts(&[1; 5]);
    for policy in [ring_policy(1024, 1 << 23), maglev_policy(251)] {
        let table = table(&set, &policy);
        let others = (0..200u64).filter(|key| {
            let hash = xxh64(&key.to_le_bytes(), 0);
            (1..8).any(|attempt| table.pick(hash, attempt) != table.pick(hash, 0))
        });
        assert_eq!(others.count(), 200, "{policy:?}");
    }
}

#[test]
fn a_table_is_kept_until_something_changes_that_it_depends_on() {
    let set = hosts(&[1; 3]);
    let before = table(&set, &maglev_policy(251));
    let same = HostSet::new(set.all.clone(), Default::default());
    assert!(Arc::ptr_eq(&before, &before.renewed(&same.all, &same.split, 0, &set.all)));
    let fewer = HostSet::new(set.all[1..].to_vec(), Default::default());
    assert!(!Arc::ptr_eq(&before, &before.renewed(&fewer.all, &fewer.split, 0, &set.all)));
}

/// No host has more than its bound, and a busy one is passed over in an order of the hash alone.
#[test]
fn loads_are_bounded() {
    let set = hosts(&[1; 10]);
    let table = table(&set, &ring_policy(1024, 1 << 23));
    let mut shuffle = Shuffle::default();
    let hash = 12_345;
    for request in 0..1_000u32 {
        let bound = Bound { all: &set.all, in_flight: request, factor: 120 };
        let host = table.pick_bounded(hash, 0, &bound, &mut shuffle).unwrap();
        assert_eq!(table.pick_bounded(hash, 0, &bound, &mut shuffle), Some(host));
        set.all[host as usize].shared.active_requests.fetch_add(1, Ordering::Relaxed);
    }
    let most = set.all.iter().map(|host| host.shared.active_requests.load(Ordering::Relaxed)).max();
    // 1.2 times the mean, and one that is accepted at the bound.
    assert!(most <= Some(122), "{most:?}");
    assert!(shuffle.numbers.iter().enumerate().all(|(at, number)| at as u32 == *number));
}
