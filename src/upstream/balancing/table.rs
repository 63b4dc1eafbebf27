//! Tables of consistent hashing: the ring and Maglev's table, entry for entry as Envoy makes them, so that both send
//! a key to the same host (envoyproxy.io: load_balancers, ring hash and maglev; Maglev: the paper's listing 1).
//!
//! Comes in: the hosts of one priority. Goes out: a table that answers for a hash in O(log n) or O(1). With a balance
//! factor, a host that has more than its share of requests is passed over in an order that only the hash decides.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::config::balancing::{Hashing, LbPolicy, Maglev, RingHash};
use crate::config::cluster::Split;
use crate::config::Host;

/// The table of one priority.
#[derive(Debug)]
pub struct HashTable {
    policy: LbPolicy,
    locality_weighted: bool,
    members: Box<[Member]>,
    entries: Entries,
    /// How many entries the table has, and the host with the fewest and with the most.
    pub size: (u64, u64, u64),
}

/// A host in the table.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Member {
    /// Among all hosts.
    host: u32,
    /// Its share; all together make 1.
    weight: f64,
}

#[derive(Debug)]
enum Entries {
    /// Positions on the ring, ascending, and the member at each.
    Ring(Box<[u64]>, Places),
    /// The member of each entry.
    Maglev(Places),
}

/// Indices of members, as small as their number allows.
#[derive(Debug)]
enum Places {
    Small(Box<[u8]>),
    Medium(Box<[u16]>),
    Large(Box<[u32]>),
}

impl Places {
    fn new(places: &[u32], members: usize) -> Self {
        // Indices are below `members`.
        match members {
            0..=0x100 => Places::Small(places.iter().map(|place| *place as u8).collect()),
            0x101..=0x1_0000 => Places::Medium(places.iter().map(|place| *place as u16).collect()),
            _ => Places::Large(places.into()),
        }
    }

    fn at(&self, index: usize) -> Option<usize> {
        match self {
            Places::Small(places) => places.get(index).map(|place| usize::from(*place)),
            Places::Medium(places) => places.get(index).map(|place| usize::from(*place)),
            Places::Large(places) => places.get(index).map(|place| *place as usize),
        }
    }
}

impl HashTable {
    /// The table of one priority of `split`; `None` when the policy has none.
    pub fn new(
        all: &[Arc<Host>],
        split: &Split,
        level: usize,
        policy: &LbPolicy,
        locality_weighted: bool,
    ) -> Arc<Self> {
        Self::of_members(all, members(all, split, level, locality_weighted), policy, locality_weighted)
    }

    fn of_members(
        all: &[Arc<Host>],
        members: Box<[Member]>,
        policy: &LbPolicy,
        locality_weighted: bool,
    ) -> Arc<Self> {
        let (entries, counts) = match policy {
            LbPolicy::RingHash(options) => ring(all, &members, options),
            LbPolicy::Maglev(options) => maglev(all, &members, options),
            _ => (Entries::Maglev(Places::Small(Box::default())), Vec::new()),
        };
        let size = (
            counts.iter().sum(),
            counts.iter().copied().min().unwrap_or_default(),
            counts.iter().copied().max().unwrap_or_default(),
        );
        Arc::new(Self { policy: policy.clone(), locality_weighted, members, entries, size })
    }

    /// The same for other hosts; this one where nothing changed that it depends on.
    pub(crate) fn renewed(
        self: &Arc<Self>,
        all: &[Arc<Host>],
        split: &Split,
        level: usize,
        before: &[Arc<Host>],
    ) -> Arc<Self> {
        let members = members(all, split, level, self.locality_weighted);
        let same = |member: &Member| {
            let at = member.host as usize;
            all.get(at).zip(before.get(at)).is_some_and(|(now, before)| Arc::ptr_eq(now, before))
        };
        if members == self.members && members.iter().all(same) {
            return self.clone();
        }
        Self::of_members(all, members, &self.policy, self.locality_weighted)
    }

    /// The host for a hash. `attempt` counts picks for the same request: each takes another entry.
    pub fn pick(&self, hash: u64, attempt: u32) -> Option<u32> {
        self.member(hash, attempt).map(|(_, member)| member.host)
    }

    fn member(&self, hash: u64, attempt: u32) -> Option<(usize, Member)> {
        let index = match &self.entries {
            Entries::Ring(hashes, places) => {
                let size = hashes.len();
                let found = hashes.partition_point(|entry| *entry < hash);
                let found = if found == size { 0 } else { found };
                let index = (found + attempt as usize).checked_rem(size)?;
                places.at(index)?
            }
            Entries::Maglev(places) => {
                let size = match places {
                    Places::Small(places) => places.len(),
                    Places::Medium(places) => places.len(),
                    Places::Large(places) => places.len(),
                } as u64;
                let hash = if attempt == 0 { hash } else { hash ^ u64::from(attempt).wrapping_neg() };
                places.at(usize::try_from(hash.checked_rem(size)?).ok()?)?
            }
        };
        self.members.get(index).map(|member| (index, *member))
    }

    /// As [`HashTable::pick`], but no host that has more than its share of `in_flight` requests and one more.
    pub fn pick_bounded(
        &self,
        hash: u64,
        attempt: u32,
        bound: &Bound<'_>,
        shuffle: &mut Shuffle,
    ) -> Option<u32> {
        let (index, member) = self.member(hash, attempt)?;
        let load = bound.load(member);
        if load <= 1.0 {
            return Some(member.host);
        }
        let (mut least, mut least_load) = (member, load);
        let mut random = Twister::new(hash);
        let count = self.members.len() as u32;
        shuffle.begin(count);
        for step in 0..count {
            let at = shuffle.draw(step, step + random.below(count - step)) as usize;
            let Some(other) = self.members.get(at).filter(|_| at != index) else { continue };
            let load = bound.load(*other);
            if load <= 1.0 {
                shuffle.end();
                return Some(other.host);
            }
            if load < least_load {
                (least, least_load) = (*other, load);
            }
        }
        shuffle.end();
        Some(least.host)
    }
}

/// What bounded loads are reckoned from.
pub struct Bound<'a> {
    /// All hosts.
    pub all: &'a [Arc<Host>],
    /// Requests of the whole cluster.
    pub in_flight: u32,
    /// `hash_balance_factor`.
    pub factor: u32,
}

impl Bound<'_> {
    /// The host's requests by those it may have.
    fn load(&self, member: Member) -> f64 {
        let slots = (u64::from(self.in_flight) + 1) * u64::from(self.factor);
        let slots = (slots.div_ceil(100) as f64 * member.weight).ceil().max(1.0);
        let host = self.all.get(member.host as usize);
        host.map_or(0.0, |host| f64::from(host.shared.active_requests.load(Ordering::Relaxed)) / slots)
    }
}

/// The numbers 0 to n, shuffled as far as needed and put back in order after, so that a pick allocates nothing.
#[derive(Debug, Default)]
pub struct Shuffle {
    numbers: Vec<u32>,
    swaps: Vec<(u32, u32)>,
}

impl Shuffle {
    fn begin(&mut self, count: u32) {
        if self.numbers.len() != count as usize {
            self.numbers = (0..count).collect();
        }
    }

    /// Swaps two numbers and tells the one that is now at `step`.
    fn draw(&mut self, step: u32, with: u32) -> u32 {
        self.numbers.swap(step as usize, with as usize);
        self.swaps.push((step, with));
        self.numbers.get(step as usize).copied().unwrap_or(0)
    }

    fn end(&mut self) {
        while let Some((one, other)) = self.swaps.pop() {
            self.numbers.swap(one as usize, other as usize);
        }
    }
}

/// The 32-bit Mersenne Twister: overflow has to go where Envoy sends it.
struct Twister {
    state: [u32; 624],
    index: usize,
}

impl Twister {
    fn new(seed: u64) -> Self {
        let mut state = [0u32; 624];
        state[0] = seed as u32;
        for i in 1..624 {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, index: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.index >= 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
            }
            self.index = 0;
        }
        // Set to 0 above where it was past the end.
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: u32) -> u32 {
        let part = (1u64 << 32) / u64::from(limit.max(1));
        loop {
            let number = u64::from(self.next()) / part;
            if number < u64::from(limit) {
                return number as u32;
            }
        }
    }
}

/// The hosts of one priority with their shares.
fn members(all: &[Arc<Host>], split: &Split, level: usize, locality_weighted: bool) -> Box<[Member]> {
    let Some(hosts) = split.priorities.get(level) else { return Box::default() };
    let panic = split.load.get(level).is_some_and(|load| load.panic);
    let mut members = Vec::new();
    let mut add = |list: &[u32], share: f64| {
        let weight = |index: u32| all.get(index as usize).map_or(1, |host| host.template.weight.max(1));
        let sum: u64 = list.iter().map(|index| u64::from(weight(*index))).sum();
        let member =
            |index: &u32| Member { host: *index, weight: f64::from(weight(*index)) * share / sum as f64 };
        members.extend(list.iter().map(member));
    };
    if locality_weighted && !hosts.localities.is_empty() {
        let sum: u64 = hosts.localities.iter().map(|locality| u64::from(locality.weight)).sum();
        for locality in hosts.localities.iter().filter(|locality| locality.weight > 0) {
            let list = if panic { &locality.hosts } else { &locality.healthy };
            add(list, f64::from(locality.weight) / sum as f64);
        }
    } else {
        add(if panic { &hosts.hosts } else { &hosts.healthy }, 1.0);
    }
    members.into()
}

fn key<'a>(all: &'a [Arc<Host>], member: &Member, hashing: &Hashing) -> &'a str {
    all.get(member.host as usize).map_or("", |host| host.hash_key(hashing))
}

fn ring(all: &[Arc<Host>], members: &[Member], options: &RingHash) -> (Entries, Vec<u64>) {
    let least = members.iter().map(|member| member.weight).fold(1.0, f64::min);
    let scale = ((least * options.minimum_size as f64).ceil() / least).min(options.maximum_size as f64);
    let mut counts = vec![0u64; members.len()];
    let mut entries: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    let mut text = Vec::new();
    for ((index, member), count) in members.iter().enumerate().zip(&mut counts) {
        text.clear();
        text.extend_from_slice(key(all, member, &options.hashing).as_bytes());
        text.push(b'_');
        let stem = text.len();
        target += scale * member.weight;
        while current < target {
            text.truncate(stem);
            text.extend_from_slice(itoa::Buffer::new().format(*count).as_bytes());
            let hash = if options.murmur { murmur2(&text, MURMUR_SEED) } else { xxh64(&text, 0) };
            entries.push((hash, index as u32));
            *count += 1;
            current += 1.0;
        }
    }
    entries.sort_unstable();
    let places: Vec<u32> = entries.iter().map(|(_, member)| *member).collect();
    let hashes = entries.into_iter().map(|(hash, _)| hash).collect();
    (Entries::Ring(hashes, Places::new(&places, members.len())), counts)
}

fn maglev(all: &[Arc<Host>], members: &[Member], options: &Maglev) -> (Entries, Vec<u64>) {
    struct Build {
        member: u32,
        offset: u64,
        skip: u64,
        weight: f64,
        target: f64,
        next: u64,
        count: u64,
    }
    let size = options.table_size.max(2);
    let most = members.iter().map(|member| member.weight).fold(0.0, f64::max);
    let mut order: Vec<(u32, &str)> = members
        .iter()
        .enumerate()
        .map(|(i, member)| (i as u32, key(all, member, &options.hashing)))
        .collect();
    order.sort_by(|(_, one), (_, other)| one.as_bytes().cmp(other.as_bytes()));
    let mut builds: Vec<Build> = order
        .iter()
        .map(|(member, key)| Build {
            member: *member,
            offset: xxh64(key.as_bytes(), 0) % size,
            skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
            weight: members.get(*member as usize).map_or(0.0, |member| member.weight),
            target: 0.0,
            next: 0,
            count: 0,
        })
        .collect();
    if builds.is_empty() {
        return (Entries::Maglev(Places::Small(Box::default())), Vec::new());
    }
    const FREE: u32 = u32::MAX;
    let mut table = vec![FREE; size as usize];
    let mut filled = 0;
    let mut round = 0.0;
    while filled < size {
        round += 1.0;
        for build in &mut builds {
            if filled >= size {
                break;
            }
            if round * build.weight < build.target {
                continue;
            }
            build.target += most;
            // The table's size is a prime, so that the walk comes by every entry, and one is free.
            loop {
                let at = (build.offset + build.skip * build.next) % size;
                build.next += 1;
                if let Some(entry) = table.get_mut(at as usize).filter(|entry| **entry == FREE) {
                    *entry = build.member;
                    break;
                }
            }
            build.count += 1;
            filled += 1;
        }
    }
    let counts = builds.iter().map(|build| build.count).collect();
    (Entries::Maglev(Places::new(&table, members.len())), counts)
}

/// The seed of `std::hash` in libstdc++, which Envoy takes.
const MURMUR_SEED: u64 = 0xc70f_6907;

/// MurmurHash2, the 64-bit version for 64-bit machines, as libstdc++ has it.
pub fn murmur2(bytes: &[u8], seed: u64) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(MUL);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ mix(word.wrapping_mul(MUL)).wrapping_mul(MUL)).wrapping_mul(MUL);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ word).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
