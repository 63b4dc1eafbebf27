//! Random sequences of snapshots, deliveries and acknowledgements: the client ends with what it shall
//! have, and never has a route to a cluster that is not there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::*;

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

/// A client that behaves as Envoy: all clusters, the endpoints of each, all listeners, one route table.
struct Client {
    protocol: Protocol,
    have: BTreeMap<ResourceType, BTreeMap<String, Vec<u8>>>,
    endpoints: BTreeSet<String>,
    /// Clusters that were new or changed and whose endpoints have not come since.
    warming: BTreeSet<String>,
    nonces: BTreeMap<ResourceType, String>,
    outbox: VecDeque<Request>,
}

impl Client {
    fn request(&mut self, kind: &ResourceType, add: &[&str], remove: &[&str], nonce: &str) {
        let request = match self.protocol {
            Protocol::Delta => Request::Delta(DeltaDiscoveryRequest {
                response_nonce: nonce.into(),
                ..delta(kind, add, remove)
            }),
            Protocol::StateOfTheWorld => {
                let names: Vec<&str> = match kind {
                    k if *k == EDS => self.endpoints.iter().map(String::as_str).collect(),
                    k if *k == RDS => vec!["r"],
                    _ => vec![],
                };
                let nonce = self.nonces.get(kind).map_or("", String::as_str);
                Request::Sotw(sotw(kind, &names, nonce))
            }
        };
        self.outbox.push_back(request);
    }

    fn receive(&mut self, seen: &Seen) {
        let kind = seen.kind.clone();
        self.nonces.insert(kind.clone(), seen.nonce.clone());
        let have = self.have.entry(kind.clone()).or_default();
        let before = have.clone();
        if self.protocol == Protocol::StateOfTheWorld && (kind == CDS || kind == LDS) {
            have.clear();
        }
        for ((name, _), body) in seen.resources.iter().zip(&seen.bodies) {
            // As Envoy: what is not subscribed to any more is ignored.
            if kind == EDS && !self.endpoints.contains(name) {
                continue;
            }
            have.insert(name.clone(), body.clone());
        }
        // As Envoy: endpoints go with their cluster, not by themselves.
        if kind != EDS {
            seen.removed.iter().for_each(|name| drop(have.remove(name)));
        }
        if kind == CDS {
            let now = have.clone();
            let changed = now.iter().filter(|(name, body)| before.get(*name) != Some(*body));
            self.warming.extend(changed.map(|(name, _)| name.clone()));
            self.warming.retain(|name| now.contains_key(name));
            let wanted: BTreeSet<String> = now.keys().cloned().collect();
            let add: Vec<String> = wanted.difference(&self.endpoints).cloned().collect();
            let gone: Vec<String> = self.endpoints.difference(&wanted).cloned().collect();
            let old = self.have.entry(EDS).or_default();
            gone.iter().for_each(|name| drop(old.remove(name)));
            self.endpoints = wanted;
            if !add.is_empty() || !gone.is_empty() {
                let add: Vec<&str> = add.iter().map(String::as_str).collect();
                let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
                self.request(&EDS, &add, &gone, "");
            }
        }
        if kind == EDS {
            for name in seen.names() {
                self.warming.remove(name);
            }
        }
        self.request(&kind, &[], &[], &seen.nonce);
    }

    fn check(&self) {
        let Some(route) = self.have.get(&RDS).and_then(|r| r.get("r")) else { return };
        let to = RouteConfiguration::decode(route.as_slice()).unwrap().internal_only_headers.remove(0);
        assert!(self.have[&CDS].contains_key(&to), "a route to {to}, which is gone or not there yet");
        assert!(self.have[&EDS].contains_key(&to), "a route to {to}, which has no endpoints");
    }
}

struct Simulation {
    state: StreamState,
    client: Client,
    inbox: VecDeque<Seen>,
    now: Instant,
}

impl Simulation {
    fn deliver(&mut self) -> bool {
        let Some(request) = self.client.outbox.pop_front() else { return false };
        match request {
            Request::Delta(r) => drop(self.state.on_delta(r, self.now).unwrap()),
            Request::Sotw(r) => drop(self.state.on_sotw(r, self.now).unwrap()),
        }
        true
    }

    fn respond(&mut self) -> bool {
        let response = self.state.poll(self.now);
        let protocol = self.state.protocol();
        self.inbox.extend(response.as_ref().map(|r| seen(protocol, r)));
        response.is_some()
    }

    fn receive(&mut self) -> bool {
        let Some(seen) = self.inbox.pop_front() else { return false };
        self.client.receive(&seen);
        self.client.check();
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let work = [self.deliver(), self.respond(), self.receive()];
            if work == [false; 3] {
                return;
            }
        }
        panic!("client and server never come to rest");
    }
}

fn random_mesh(dice: &mut Dice) -> Snapshot {
    let mut names: Vec<String> = (0..8).map(|i| format!("c{i}")).collect();
    names.retain(|_| dice.roll(2) == 0);
    names.push(format!("c{}", dice.roll(8)));
    let target = names[usize::try_from(dice.roll(names.len() as u64)).unwrap()].clone();
    let mut snapshot = Snapshot::new();
    for name in &names {
        let edition = |dice: &mut Dice| u32::try_from(dice.roll(3)).unwrap();
        snapshot.insert(&cluster(name, edition(dice) / 2)).unwrap();
        snapshot.insert(&endpoints(name, edition(dice))).unwrap();
    }
    snapshot.insert(&listener("l", 0)).unwrap();
    snapshot.insert(&route("r", &target)).unwrap();
    snapshot.validate().unwrap();
    snapshot
}

fn simulate(protocol: Protocol, seed: u64) {
    let mut dice = Dice(seed);
    let mut target = random_mesh(&mut dice);
    let client = Client {
        protocol,
        have: BTreeMap::new(),
        endpoints: BTreeSet::new(),
        warming: BTreeSet::new(),
        nonces: BTreeMap::new(),
        outbox: VecDeque::new(),
    };
    let state = stream(protocol, &target);
    let mut s = Simulation { state, client, inbox: VecDeque::new(), now: Instant::now() };
    // Envoy asks for listeners and routes once its clusters are there.
    s.client.request(&CDS, &[], &[], "");
    s.settle();
    s.client.request(&LDS, &[], &[], "");
    s.client.request(&RDS, &["r"], &[], "");
    s.settle();
    for _ in 0..300 {
        match dice.roll(10) {
            0 => {
                target = random_mesh(&mut dice);
                s.state.set_target(Arc::new(target.clone()));
            }
            1..=3 => drop(s.deliver()),
            4..=6 => drop(s.respond()),
            _ => drop(s.receive()),
        }
    }
    s.settle();
    for kind in [CDS, EDS, LDS, RDS] {
        let have: Vec<&str> = s.client.have[&kind].keys().map(String::as_str).collect();
        let want: Vec<&str> = target.names(&kind).collect();
        assert_eq!(have, want, "{kind}");
        for (name, body) in &s.client.have[&kind] {
            let any = target.get(&kind, name).unwrap().encoded_any();
            let want = crate::pb::google::protobuf::Any::decode(any.clone()).unwrap().value;
            assert_eq!(*body, want, "{kind} {name}");
        }
    }
    assert!(s.client.warming.is_empty(), "still warming: {:?}", s.client.warming);
    let sent = s.state.status();
    assert!(sent.iter().all(|t| t.pending == 0 && t.version_acked == t.version_sent), "{sent:?}");
}

#[test]
fn random_updates_converge() {
    for seed in 1..=200u64 {
        for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
            let run =
                std::panic::catch_unwind(|| simulate(protocol, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            assert!(run.is_ok(), "{protocol:?}, seed {seed}");
        }
    }
}
