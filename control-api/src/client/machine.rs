//! The state machine of one discovery stream, in either variant.
//!
//! In: changes of interest, responses, verdicts, what became of the stream, and the time. Out: events
//! ([`Machine::event`]), requests ([`Machine::request`]) and the time to wake up at
//! ([`Machine::deadline`]). No sockets, no clock and no randomness but the seed: the same input gives
//! the same output. What is held survives streams; what was said on a stream does not.

mod verdicts;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::link::{Link, Phase};
use super::services::Method;
use super::timers::{Key, Kind, Timers};
use super::topic::{Answer, Incoming, Topic, Waiting, STAR};
use super::types::{warming_order, Change, Event, Status, Wildcard};
use super::RateLimit;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::google::{protobuf, rpc};

/// Longest text of a NACK in bytes; the rest is cut off.
const MAX_ERROR_DETAIL: usize = 8 << 10;

/// Longest type URL of a control plane that is repeated to anybody.
const MAX_TYPE_URL: usize = 200;

/// gRPC's INTERNAL, the code of Envoy's NACKs.
const NACK_CODE: i32 = 13;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who asks. Its `client_features` are sent as they are, see [`add_client_features`].
    ///
    /// [`add_client_features`]: super::add_client_features
    pub node: Node,
    /// The node goes with the first request of a stream only.
    pub set_node_on_first_message_only: bool,
    /// How long to wait for a resource before the user is told to go on without; zero is for ever.
    pub initial_fetch_timeout: Duration,
    /// The first bound of the wait before a new stream.
    pub backoff_base: Duration,
    /// The last one.
    pub backoff_cap: Duration,
    /// A stream that brought a response and lived this long was healthy: the wait starts over.
    pub healthy_after: Duration,
    /// With no response and no keepalive answer for this long, the stream is given up for a new one.
    pub doubt_after: Option<Duration>,
    /// A stream that brings no response for this long after it opened is reported once
    /// ([`Event::Odd`]); nothing else follows from it.
    pub answer_after: Duration,
    /// The rate of requests; unlimited if absent.
    pub rate_limit: Option<RateLimit>,
    /// On a stream of one type's own service: that type, for responses that do not name it.
    pub single_type: Option<String>,
}

impl Settings {
    /// Envoy's defaults: 15 s to fetch, 0.5-30 s between streams, no rate limit, node in every request.
    /// Doubt after 11 minutes, more than two intervals of [`Keepalive::default`].
    ///
    /// [`Keepalive::default`]: super::Keepalive
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self {
            node,
            set_node_on_first_message_only: false,
            initial_fetch_timeout: Duration::from_secs(15),
            backoff_base: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(30),
            healthy_after: Duration::from_secs(5),
            doubt_after: Some(Duration::from_secs(11 * 60)),
            answer_after: Duration::from_secs(15),
            rate_limit: None,
            single_type: None,
        }
    }
}

/// What differs between the variants of the protocol. Implemented by this crate only.
pub trait Variant: 'static {
    /// The request message.
    type Request: prost::Message + Default + 'static;
    /// The response message.
    type Response: prost::Message + Default + 'static;
    /// Responses of some types hold everything there is.
    const FULL_STATE: bool;
    /// Which of the service's methods.
    const METHOD: Method;
    /// The response in the common form.
    #[doc(hidden)]
    fn read(response: Self::Response) -> Incoming;
    /// Whether the stream has yet to be told of a change of interest.
    #[doc(hidden)]
    fn due(topic: &Topic) -> bool;
    /// The next request; marks as told what it tells.
    #[doc(hidden)]
    fn request(topic: &mut Topic, node: Option<Node>, answer: Option<Answer>) -> Self::Request;
}

/// The client's state; [`Delta`](super::Delta) and [`Sotw`](super::Sotw) are its two forms.
#[derive(Debug)]
pub struct Machine<V> {
    settings: Settings,
    link: Link,
    topics: Vec<Topic>,
    index: HashMap<String, usize>,
    timers: Timers,
    events: VecDeque<Event>,
    /// The type of each update that has no verdict yet.
    undecided: HashMap<u64, usize>,
    next_id: u64,
    node_sent: bool,
    variant: std::marker::PhantomData<fn() -> V>,
}

impl<V: Variant> Machine<V> {
    /// Nothing wanted, no stream. `seed` decides the waits between streams.
    #[must_use]
    pub fn new(settings: Settings, now: Instant, seed: u64) -> Self {
        Self {
            link: Link::new(&settings, now, seed),
            settings,
            topics: Vec::new(),
            index: HashMap::new(),
            timers: Timers::default(),
            events: VecDeque::new(),
            undecided: HashMap::new(),
            next_id: 1,
            node_sent: false,
            variant: std::marker::PhantomData,
        }
    }

    /// Takes a change of interest.
    pub fn change(&mut self, now: Instant, change: Change) {
        match change {
            Change::Subscribe { type_url, names, fetch_timeout } => {
                let topic = self.topic(&type_url);
                for name in names {
                    if name == STAR {
                        self.subscribe_all(now, topic, Wildcard::Star, fetch_timeout);
                    } else if is_glob(&name) {
                        let reason = "glob collections are not supported: list the names".to_owned();
                        self.events.push_back(Event::Unsupported {
                            type_url: type_url.clone(),
                            name,
                            reason,
                        });
                    } else if self.topics[topic].want(&name) {
                        self.await_first(now, topic, name, fetch_timeout);
                    }
                }
            }
            Change::SubscribeAll { type_url, wildcard, fetch_timeout } => {
                let topic = self.topic(&type_url);
                self.subscribe_all(now, topic, wildcard, fetch_timeout);
            }
            Change::Unsubscribe { type_url, names } => {
                let topic = self.topic(&type_url);
                for name in names {
                    if name == STAR {
                        self.unsubscribe_all(topic);
                    } else if self.topics[topic].unwant(&name) {
                        self.drop_timers(topic, &name);
                    }
                }
            }
            Change::UnsubscribeAll { type_url } => {
                let topic = self.topic(&type_url);
                self.unsubscribe_all(topic);
            }
            Change::Refresh { type_url, names } => {
                let topic = self.topic(&type_url);
                names.iter().for_each(|name| self.topics[topic].refresh(name));
            }
            Change::Pause { type_url } => {
                let topic = self.topic(&type_url);
                self.topics[topic].paused = true;
            }
            Change::Resume { type_url } => {
                let topic = self.topic(&type_url);
                self.topics[topic].paused = false;
            }
            Change::Restore { type_url, version, resources } => {
                let topic = self.topic(&type_url);
                let topic = &mut self.topics[topic];
                if topic.received.is_none() && topic.known.is_empty() && !topic.told {
                    topic.known = resources.into_iter().collect();
                    topic.accepted_version = version;
                    topic.wildcard_new = false;
                }
            }
        }
        if self.link.phase == Phase::Idle && self.topics.iter().any(Topic::wants_any) {
            self.connect();
        }
    }

    /// The stream that [`Event::Connect`] asked for is open.
    pub fn opened(&mut self, now: Instant) {
        self.link.opened(now);
        self.node_sent = false;
        self.events.push_back(Event::Connected);
    }

    /// It closed, or could not be opened.
    pub fn closed(&mut self, now: Instant, reason: impl Into<String>) {
        let Some(retry_in) = self.link.closed(now) else { return };
        self.topics.iter_mut().for_each(Topic::stream_closed);
        self.events.push_back(Event::Disconnected { reason: reason.into(), retry_in });
    }

    /// A sign of life that is no response: a keepalive answer, at the instant it came.
    pub fn alive(&mut self, at: Instant) {
        self.link.alive(at);
    }

    /// Takes a response of the open stream.
    pub fn response(&mut self, now: Instant, response: V::Response) {
        if !matches!(self.link.phase, Phase::Open { .. }) {
            return;
        }
        let mut incoming = V::read(response);
        self.link.received(now);
        if incoming.type_url.is_empty() {
            incoming.type_url = self.settings.single_type.clone().unwrap_or_default();
        }
        let ignore = |reason: &str, mut incoming: Incoming| {
            cut(&mut incoming.type_url, MAX_TYPE_URL);
            Event::Ignored { type_url: incoming.type_url, reason: reason.to_owned() }
        };
        let Some(&index) = self.index.get(&incoming.type_url) else {
            self.events.push_back(ignore("nothing of this type was asked for", incoming));
            return;
        };
        let topic = &mut self.topics[index];
        // In state of the world an answer could be read as a request for everything.
        if !topic.told || (V::FULL_STATE && !topic.wants_any()) {
            // The server goes by it all the same.
            topic.last_nonce.clone_from(&incoming.nonce);
            self.events.push_back(ignore("nothing of this type is wanted", incoming));
            return;
        }
        topic.received = Some(now);
        if let Some(what) = topic.odd_nonce(&incoming.nonce) {
            let (type_url, what) = (incoming.type_url.clone(), what.to_owned());
            self.events.push_back(Event::Odd { type_url, what });
        }
        let topic = &mut self.topics[index];
        for item in &incoming.items {
            for name in [&item.name].into_iter().chain(&item.aliases) {
                self.timers.clear(&fetch(index, name));
            }
        }
        incoming.removed.iter().for_each(|name| self.timers.clear(&fetch(index, name)));
        self.timers.clear(&fetch(index, ""));
        for (name, code, message) in std::mem::take(&mut incoming.errors) {
            self.timers.clear(&fetch(index, &name));
            let type_url = topic.url.clone();
            self.events.push_back(Event::ResourceError { type_url, name, code, message });
        }
        let bytes = incoming.bytes();
        topic.waiting.push_back(Waiting::Response { incoming, received: now, bytes });
        self.advance(now, index);
    }

    /// Notes that there was something, such as a file, but no response to be read from it.
    pub fn unreadable(&mut self, type_url: &str, message: String) {
        let index = self.topic(type_url);
        let topic = &mut self.topics[index];
        topic.rejected_total += 1;
        topic.last_rejection = Some((String::new(), message.clone()));
        let (type_url, version) = (type_url.to_owned(), String::new());
        self.events.push_back(Event::Refused { type_url, version, message });
    }

    /// Does what has become due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(Key { topic, kind, name }) = self.timers.pop(now) {
            match kind {
                Kind::Fetch => {
                    let type_url = self.topics[topic].url.clone();
                    let name = (!name.is_empty()).then_some(name);
                    self.events.push_back(Event::FetchTimeout { type_url, name });
                }
                Kind::Expiry => {
                    self.topics[topic].waiting.push_back(Waiting::Expired(name));
                    self.advance(now, topic);
                }
            }
        }
        if self.link.retry_due(now) {
            self.connect();
        }
        if let Some(silence) = self.link.unanswered(now) {
            let what = format!("the stream has brought no response for {} s", silence.as_secs());
            self.events.push_back(Event::Odd { type_url: String::new(), what });
        }
        if let Some(silence) = self.link.doubt(now) {
            let reason = format!("neither response nor keepalive answer for {} s", silence.as_secs());
            self.events.push_back(Event::Abandon { reason });
        }
    }

    /// When [`Machine::tick`], or a request held back by the rate limit, is due next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        [self.timers.next(), self.link.deadline()].into_iter().flatten().min()
    }

    /// The next event. To be called until there is none, after any input.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next request, when the stream can take one. To be called until there is none.
    ///
    /// The first type in warming order comes first. Changes made before this is called share a request.
    pub fn request(&mut self, now: Instant) -> Option<V::Request> {
        if !matches!(self.link.phase, Phase::Open { .. }) {
            return None;
        }
        let ready = (0..self.topics.len()).filter(|&index| sendable::<V>(&self.topics[index]));
        let Some(index) = ready.min_by_key(|&index| warming_order(&self.topics[index].url)) else {
            self.link.all_sent();
            return None;
        };
        match self.link.take_token(now) {
            Ok(()) => {}
            Err(first) => {
                if first {
                    self.events.push_back(Event::RateLimited);
                }
                return None;
            }
        }
        let with_node = !(self.settings.set_node_on_first_message_only && self.node_sent);
        self.node_sent = true;
        let node = with_node.then(|| self.settings.node.clone());
        let topic = &mut self.topics[index];
        let answer = topic.answers.pop_front();
        Some(V::request(topic, node, answer))
    }

    /// Responses that wait for verdicts on earlier ones. A transport should stop reading when this grows.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.topics.iter().map(|topic| topic.waiting.len()).sum()
    }

    /// The bytes of responses whose verdict is outstanding. A transport should stop reading when this
    /// grows.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.topics.iter().map(Topic::held_bytes).sum()
    }

    /// The state of the stream and of every type.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut types: Vec<_> = self.topics.iter().map(Topic::status).collect();
        types.sort_by(|a, b| {
            (warming_order(&a.type_url), &a.type_url).cmp(&(warming_order(&b.type_url), &b.type_url))
        });
        Status {
            connected: matches!(self.link.phase, Phase::Open { .. }),
            streams: self.link.generation,
            heard: self.link.heard,
            rate_limited: self.link.rate_limited,
            pending_requests: self.topics.iter().filter(|topic| sendable::<V>(topic)).count(),
            types,
        }
    }

    /// The index of a type, which stays valid: types are never taken out.
    fn topic(&mut self, url: &str) -> usize {
        if let Some(&index) = self.index.get(url) {
            return index;
        }
        self.topics.push(Topic::new(url));
        let index = self.topics.len() - 1;
        self.index.insert(url.to_owned(), index);
        index
    }

    fn connect(&mut self) {
        self.link.phase = Phase::Connecting;
        self.events.push_back(Event::Connect);
    }

    fn subscribe_all(&mut self, now: Instant, topic: usize, wildcard: Wildcard, timeout: Option<Duration>) {
        if self.topics[topic].want_all(wildcard) {
            self.await_first(now, topic, String::new(), timeout);
        }
    }

    fn unsubscribe_all(&mut self, topic: usize) {
        self.timers.clear(&fetch(topic, ""));
        for name in self.topics[topic].unwant_all() {
            self.drop_timers(topic, &name);
        }
    }

    fn await_first(&mut self, now: Instant, topic: usize, name: String, timeout: Option<Duration>) {
        let timeout = timeout.unwrap_or(self.settings.initial_fetch_timeout);
        if let Some(at) = now.checked_add(timeout).filter(|_| !timeout.is_zero()) {
            self.timers.set(Key { topic, kind: Kind::Fetch, name }, at);
        }
    }

    fn drop_timers(&mut self, topic: usize, name: &str) {
        self.timers.clear(&fetch(topic, name));
        if !self.topics[topic].known.contains_key(name) {
            self.timers.clear(&expiry(topic, name));
        }
    }

    fn expire(&mut self, topic: usize, name: &str, from: Instant, ttl: Option<Duration>) {
        let key = expiry(topic, name);
        match ttl.and_then(|ttl| from.checked_add(ttl)) {
            Some(at) => self.timers.set(key, at),
            None => self.timers.clear(&key),
        }
    }
}

/// Whether a request of this type can go out on an open stream.
fn sendable<V: Variant>(topic: &Topic) -> bool {
    if topic.paused {
        return false;
    }
    if topic.told {
        return !topic.answers.is_empty() || V::due(topic);
    }
    // What the first request says is held must include what the user is just deciding on.
    V::due(topic) && topic.in_flight.is_none()
}

/// True for the name of a collection (`xdstp://authority/type/path/*`).
fn is_glob(name: &str) -> bool {
    let path = name.split(['?', '#']).next().unwrap_or(name);
    name.starts_with("xdstp:") && path.ends_with("/*")
}

/// Cuts off what is beyond `limit` bytes.
fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
}

fn fetch(topic: usize, name: &str) -> Key {
    Key { topic, kind: Kind::Fetch, name: name.to_owned() }
}

fn expiry(topic: usize, name: &str) -> Key {
    Key { topic, kind: Kind::Expiry, name: name.to_owned() }
}

pub(super) fn to_status(message: String) -> rpc::Status {
    rpc::Status { code: NACK_CODE, message, details: Vec::new() }
}

/// A duration that is none, or not positive, is no time to live.
pub(super) fn to_duration(duration: &protobuf::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos)).filter(|duration| !duration.is_zero())
}
