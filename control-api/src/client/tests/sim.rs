//! Thousands of random steps of a client, a user and a small model of a server, then quiet: what the
//! user holds must be what the server has.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::super::*;
use super::{any, resource};
use crate::pb::envoy::service::discovery::v3 as pb;

/// What the server has of each type: version and whether the user will take it.
type Content = BTreeMap<String, (u64, bool)>;

/// The server's side of one variant.
trait Model<V: Variant>: Default {
    fn request(&mut self, request: V::Request, content: &HashMap<String, Content>, serial: u64);
    /// Responses that are due now that the content is this.
    fn respond(&mut self, content: &HashMap<String, Content>, serial: u64) -> Vec<V::Response>;
}

fn body(url: &str, name: &str, version: u64, good: bool) -> crate::pb::google::protobuf::Any {
    any(url, name, &format!("{version}{}", if good { "" } else { " bad" }))
}

#[derive(Default)]
struct DeltaTopic {
    star: bool,
    names: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    owed: BTreeSet<String>,
    greeted: bool,
}

#[derive(Default)]
struct DeltaModel {
    topics: HashMap<String, DeltaTopic>,
    nonce: u64,
}

impl Model<Incremental> for DeltaModel {
    fn request(&mut self, request: pb::DeltaDiscoveryRequest, _: &HashMap<String, Content>, _: u64) {
        let first = !self.topics.contains_key(&request.type_url);
        let topic = self.topics.entry(request.type_url).or_default();
        if first {
            topic.star = request.resource_names_subscribe.is_empty();
            for (name, version) in request.initial_resource_versions {
                topic.sent.insert(name, version.parse().unwrap());
            }
        } else {
            assert!(request.initial_resource_versions.is_empty(), "only in the first request");
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                topic.star = false;
                topic.sent.retain(|name, _| topic.names.contains(name));
            } else {
                topic.names.remove(&name);
                if topic.star {
                    topic.owed.insert(name);
                } else {
                    topic.sent.remove(&name);
                }
            }
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                topic.star = true;
            } else {
                if !(first && topic.sent.contains_key(&name)) {
                    topic.owed.insert(name.clone());
                }
                topic.names.insert(name);
            }
        }
    }

    fn respond(&mut self, content: &HashMap<String, Content>, _: u64) -> Vec<pb::DeltaDiscoveryResponse> {
        let mut out = Vec::new();
        for (url, topic) in &mut self.topics {
            let content = &content[url];
            let mut response = pb::DeltaDiscoveryResponse { type_url: url.clone(), ..Default::default() };
            for (name, (version, good)) in content {
                let wanted = topic.star || topic.names.contains(name);
                let owed = topic.owed.remove(name);
                if wanted && (owed || topic.sent.get(name) != Some(version)) {
                    topic.sent.insert(name.clone(), *version);
                    response.resources.push(resource(name, *version, Some(body(url, name, *version, *good))));
                }
            }
            let lost: Vec<_> =
                topic.sent.keys().filter(|name| !content.contains_key(*name)).cloned().collect();
            for name in lost.into_iter().chain(std::mem::take(&mut topic.owed)) {
                topic.sent.remove(&name);
                if !response.removed_resources.contains(&name) {
                    response.removed_resources.push(name);
                }
            }
            let greet = topic.star && !topic.greeted;
            if greet || !response.resources.is_empty() || !response.removed_resources.is_empty() {
                topic.greeted = true;
                self.nonce += 1;
                response.nonce = self.nonce.to_string();
                out.push(response);
            }
        }
        out
    }
}

#[derive(Default)]
struct SotwTopic {
    names: BTreeSet<String>,
    star: bool,
    named: bool,
    met: bool,
    nonce: u64,
    sent: Option<(u64, BTreeSet<String>, bool)>,
}

#[derive(Default)]
struct SotwModel {
    topics: HashMap<String, SotwTopic>,
    nonce: u64,
}

impl Model<StateOfTheWorld> for SotwModel {
    fn request(&mut self, request: pb::DiscoveryRequest, _: &HashMap<String, Content>, _: u64) {
        let topic = self.topics.entry(request.type_url).or_default();
        let nonce = if topic.nonce == 0 { String::new() } else { topic.nonce.to_string() };
        if request.response_nonce != nonce {
            return; // stale
        }
        let mut names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let silent = names.is_empty();
        let star = names.remove("*") || (silent && !topic.named);
        topic.named |= !silent;
        let version = request.version_info.parse().ok();
        if !std::mem::replace(&mut topic.met, true) {
            // A new stream with a known version: only a wildcard says that this is all.
            topic.sent = version.filter(|_| names.is_empty()).map(|v| (v, names.clone(), star));
        } else {
            let asked_anew = version.is_none() && request.error_detail.is_none();
            if asked_anew || names != topic.names || star != topic.star {
                topic.sent = None;
            }
        }
        topic.names = names;
        topic.star = star;
    }

    fn respond(&mut self, content: &HashMap<String, Content>, serial: u64) -> Vec<pb::DiscoveryResponse> {
        let mut out = Vec::new();
        for (url, topic) in &mut self.topics {
            let state = (serial, topic.names.clone(), topic.star);
            if topic.sent.as_ref() == Some(&state) || (!topic.star && topic.names.is_empty()) {
                continue;
            }
            topic.sent = Some(state);
            self.nonce += 1;
            topic.nonce = self.nonce;
            let resources = content[url]
                .iter()
                .filter(|(name, _)| topic.star || topic.names.contains(*name))
                .map(|(name, (version, good))| body(url, name, *version, *good))
                .collect();
            out.push(pb::DiscoveryResponse {
                version_info: serial.to_string(),
                type_url: url.clone(),
                nonce: self.nonce.to_string(),
                resources,
                ..Default::default()
            });
        }
        out
    }
}

/// What the user wants and holds of one type.
#[derive(Default)]
struct Held {
    all: bool,
    names: BTreeSet<String>,
    resources: BTreeMap<String, String>,
}

struct World<V: Variant, M> {
    rng: Rng,
    now: Instant,
    client: Machine<V>,
    server: Option<M>,
    content: HashMap<String, Content>,
    serial: u64,
    up: VecDeque<V::Request>,
    down: VecDeque<V::Response>,
    updates: VecDeque<Update>,
    user: HashMap<String, Held>,
    deletes: bool,
}

const TYPES: [&str; 2] = [type_url::CLUSTER, type_url::ENDPOINTS];

impl<V: Variant, M: Model<V>> World<V, M> {
    fn new(seed: u64, deletes: bool) -> Self {
        let now = Instant::now();
        let mut settings = Settings::new(Default::default());
        settings.rate_limit = seed.is_multiple_of(3).then_some(RateLimit { max_tokens: 3, fill_rate: 20.0 });
        Self {
            rng: Rng::with_seed(seed),
            now,
            client: Machine::new(settings, now, seed),
            server: None,
            content: TYPES.iter().map(|url| ((*url).to_owned(), Content::new())).collect(),
            serial: 1,
            up: VecDeque::new(),
            down: VecDeque::new(),
            updates: VecDeque::new(),
            user: TYPES.iter().map(|url| ((*url).to_owned(), Held::default())).collect(),
            deletes,
        }
    }

    fn step(&mut self, quiet: bool) {
        self.now += Duration::from_millis(self.rng.u64(0..50));
        self.client.tick(self.now);
        while let Some(event) = self.client.event() {
            match event {
                Event::Connect if quiet || self.rng.u8(0..4) > 0 => {
                    self.server = Some(M::default());
                    self.client.opened(self.now);
                }
                Event::Connect | Event::Abandon { .. } => self.close(),
                Event::Update(update) => self.updates.push_back(update),
                _ => {}
            }
        }
        if self.server.is_some() && self.rng.bool() {
            self.up.extend(self.client.request(self.now));
        }
        match self.rng.u8(0..if quiet { 4 } else { 9 }) {
            0 => {
                if let (Some(server), Some(request)) = (&mut self.server, self.up.pop_front()) {
                    server.request(request, &self.content, self.serial);
                }
            }
            1 => {
                if let Some(server) = &mut self.server {
                    self.down.extend(server.respond(&self.content, self.serial));
                }
            }
            2 => {
                if let Some(response) = self.down.pop_front() {
                    self.client.response(self.now, response);
                }
            }
            3 => {
                if let Some(update) = self.updates.pop_front() {
                    self.judge(update);
                }
            }
            4 | 5 => self.mutate(),
            6 | 7 => self.wish(),
            _ => {
                if self.rng.u8(0..8) == 0 {
                    self.close();
                }
            }
        }
    }

    fn close(&mut self) {
        self.server = None;
        self.up.clear();
        self.down.clear();
        self.client.closed(self.now, "reset");
    }

    fn judge(&mut self, update: Update) {
        let held = self.user.get_mut(&update.type_url).unwrap();
        let mut rejections = Vec::new();
        for resource in update.added {
            let text = String::from_utf8_lossy(&resource.body[2 + resource.name.len()..]).into_owned();
            if text.ends_with("bad") {
                rejections.push(Rejection { name: resource.name, message: "bad".to_owned() });
            } else if held.all || held.names.contains(&resource.name) {
                held.resources.insert(resource.name, text[2..].to_owned());
            }
        }
        for name in update.removed {
            held.resources.remove(&name);
        }
        let bad = !rejections.is_empty();
        let verdict = if bad { Verdict::Rejected(rejections) } else { Verdict::Accepted };
        self.client.verdict(self.now, update.id, verdict);
    }

    fn mutate(&mut self) {
        self.serial += 1;
        let url = TYPES[self.rng.usize(0..2)];
        let name = format!("r{}", self.rng.u8(0..6));
        let content = self.content.get_mut(url).unwrap();
        if self.deletes && self.rng.u8(0..3) == 0 {
            content.remove(&name);
        } else {
            content.insert(name, (self.serial, self.rng.u8(0..5) > 0));
        }
    }

    fn wish(&mut self) {
        let url = TYPES[self.rng.usize(0..2)];
        let held = self.user.get_mut(url).unwrap();
        let type_url = url.to_owned();
        let names = vec![format!("r{}", self.rng.u8(0..6))];
        let change = match self.rng.u8(0..12) {
            0..=4 => {
                held.names.extend(names.clone());
                Change::Subscribe { type_url, names, fetch_timeout: None }
            }
            5..=7 => {
                held.names.remove(&names[0]);
                if !held.all {
                    held.resources.remove(&names[0]);
                }
                Change::Unsubscribe { type_url, names }
            }
            8 => {
                held.all = true;
                let wildcard = if self.rng.bool() { Wildcard::Star } else { Wildcard::Legacy };
                Change::SubscribeAll { type_url, wildcard, fetch_timeout: None }
            }
            9 => {
                held.all = false;
                held.resources.retain(|name, _| held.names.contains(name));
                Change::UnsubscribeAll { type_url }
            }
            _ => Change::Refresh { type_url, names },
        };
        self.client.change(self.now, change);
    }

    fn check(&self, seed: u64) {
        for url in TYPES {
            let held = &self.user[url];
            let content = &self.content[url];
            for (name, (version, good)) in content {
                if *good && (held.all || held.names.contains(name)) {
                    let have = held.resources.get(name);
                    assert_eq!(have, Some(&version.to_string()), "seed {seed}: {name} of {url}");
                }
            }
            for name in held.resources.keys() {
                assert!(content.contains_key(name), "seed {seed}: {name} of {url} is kept for ever");
                assert!(held.all || held.names.contains(name), "seed {seed}: {name} of {url} is not wanted");
            }
            let status = self.client.status();
            let status = status.types.iter().find(|status| status.type_url == url);
            let known = status.map_or(0, |status| status.resources);
            assert_eq!(known, held.resources.len(), "seed {seed}: the client knows what is held of {url}");
        }
    }
}

fn run<V: Variant, M: Model<V>>(seeds: std::ops::Range<u64>, deletes: bool) {
    for seed in seeds {
        let mut world = World::<V, M>::new(seed, deletes);
        for _ in 0..400 {
            world.step(false);
        }
        for _ in 0..3000 {
            world.step(true);
        }
        world.check(seed);
    }
}

#[test]
fn delta_converges() {
    run::<Incremental, DeltaModel>(0..150, true);
}

/// Without deletions: for endpoints this variant has no word for them.
#[test]
fn state_of_the_world_converges() {
    run::<StateOfTheWorld, SotwModel>(0..150, false);
}

#[test]
fn the_same_seed_runs_the_same() {
    let mut end = Vec::new();
    for _ in 0..2 {
        let mut world = World::<Incremental, DeltaModel>::new(7, true);
        for _ in 0..500 {
            world.step(false);
        }
        end.push((world.serial, world.client.status().streams, world.updates.len()));
    }
    assert_eq!(end[0], end[1]);
}
