//! From a response to its verdict: one update of a type at a time is with the user.
//!
//! In: responses that wait, resources that expired, and verdicts. Out: updates for the user, and answers for the
//! control plane.

use std::time::Instant;

use super::super::topic::{Answer, Checked, Held, InFlight, Incoming, Waiting};
use super::super::types::{Cause, Event, Rejection, Resource, Update, Verdict};
use super::{cut, expiry, Machine, Variant, MAX_ERROR_DETAIL};

impl<V: Variant> Machine<V> {
    /// Takes the verdict on the update `id`; one that is unknown or judged already is passed over.
    pub fn verdict(&mut self, now: Instant, id: u64, verdict: Verdict) {
        let Some(index) = self.undecided.remove(&id) else { return };
        let Some(in_flight) = self.topics[index].in_flight.take_if(|in_flight| in_flight.id == id) else {
            return;
        };
        let rejections = match verdict {
            Verdict::Accepted => Vec::new(),
            Verdict::Rejected(rejections) => rejections,
        };
        self.settle(now, index, in_flight, rejections);
        self.advance(now, index);
    }

    /// Hands the user the next update of a type, if it can take one.
    pub(super) fn advance(&mut self, now: Instant, index: usize) {
        while self.topics[index].in_flight.is_none() {
            match self.topics[index].waiting.pop_front() {
                None => return,
                Some(Waiting::Expired(name)) => self.expired(now, index, name),
                Some(Waiting::Response { incoming, received, bytes }) => {
                    self.examine(index, incoming, received, bytes);
                }
            }
        }
    }

    fn expired(&mut self, now: Instant, index: usize, name: String) {
        let key = expiry(index, &name);
        // A heartbeat may have come while this waited for a verdict.
        if self.timers.holds(&key) || self.topics[index].known.remove(&name).is_none() {
            return;
        }
        let in_flight = self.in_flight(None, String::new(), now);
        self.deliver(index, in_flight, Cause::Expired, Vec::new(), vec![name]);
    }

    fn examine(&mut self, index: usize, incoming: Incoming, received: Instant, bytes: usize) {
        let nonce = incoming.nonce.clone();
        let version = incoming.version.clone();
        let checked = self.topics[index].check(incoming, V::FULL_STATE);
        let mut in_flight = self.in_flight(Some(nonce), version, received);
        let Checked { added, removed, refreshed, problems, deliver } = match checked {
            Ok(checked) => checked,
            Err(message) => {
                let rejection = Rejection { name: String::new(), message };
                self.settle(received, index, in_flight, vec![rejection]);
                return;
            }
        };
        for (name, ttl) in refreshed {
            self.expire(index, &name, received, ttl);
        }
        in_flight.problems = problems;
        in_flight.bytes = bytes;
        if !deliver {
            self.settle(received, index, in_flight, Vec::new());
            return;
        }
        let mut resources = Vec::with_capacity(added.len());
        for (resource, ttl) in added {
            in_flight.items.push(Held {
                name: resource.name.clone(),
                aliases: resource.aliases.clone(),
                version: resource.version.clone(),
                ttl,
            });
            resources.push(resource);
        }
        in_flight.removed.clone_from(&removed);
        self.deliver(index, in_flight, Cause::Response, resources, removed);
    }

    fn in_flight(&mut self, nonce: Option<String>, version: String, received: Instant) -> InFlight {
        let id = self.next_id;
        self.next_id += 1;
        InFlight {
            id,
            generation: self.link.generation,
            received,
            nonce,
            version,
            items: Vec::new(),
            removed: Vec::new(),
            problems: Vec::new(),
            bytes: 0,
        }
    }

    fn deliver(
        &mut self,
        index: usize,
        in_flight: InFlight,
        cause: Cause,
        added: Vec<Resource>,
        removed: Vec<String>,
    ) {
        let topic = &mut self.topics[index];
        self.undecided.insert(in_flight.id, index);
        self.events.push_back(Event::Update(Update {
            id: in_flight.id,
            type_url: topic.url.clone(),
            version: in_flight.version.clone(),
            cause,
            added,
            removed,
            flawed: !in_flight.problems.is_empty(),
            received: topic.received.filter(|_| cause == Cause::Response),
        }));
        topic.in_flight = Some(in_flight);
    }

    /// Records what was taken and answers.
    fn settle(&mut self, now: Instant, index: usize, in_flight: InFlight, rejections: Vec<Rejection>) {
        let InFlight { generation, received, nonce, version, items, removed, problems, .. } = in_flight;
        let refused = |name: &str| rejections.iter().any(|r| r.name.is_empty() || r.name == name);
        let mut clocks = Vec::new();
        let topic = &mut self.topics[index];
        for Held { name, aliases, version, ttl } in items {
            if !refused(&name) && topic.wants(&name, &aliases) {
                topic.known.insert(name.clone(), version);
                clocks.push((name, ttl));
            }
        }
        for name in removed {
            if !refused(&name) {
                topic.known.remove(&name);
                clocks.push((name, None));
            }
        }
        for (name, ttl) in clocks {
            self.expire(index, &name, received, ttl);
        }
        let Some(nonce) = nonce else { return };

        let reasons = problems.into_iter().chain(rejections.into_iter().map(|rejection| {
            if rejection.name.is_empty() {
                rejection.message
            } else {
                format!("{}: {}", rejection.name, rejection.message)
            }
        }));
        let mut error = reasons.collect::<Vec<_>>().join("; ");
        cut(&mut error, MAX_ERROR_DETAIL);
        let topic = &mut self.topics[index];
        let error = if error.is_empty() {
            topic.accepted_version = version;
            topic.accepted = Some(now);
            topic.wildcard_new &= !topic.told_wildcard;
            topic.accepted_total += 1;
            topic.last_rejection = None;
            None
        } else {
            topic.rejected_total += 1;
            topic.last_rejection = Some((version.clone(), error.clone()));
            let type_url = topic.url.clone();
            self.events.push_back(Event::Refused { type_url, version, message: error.clone() });
            Some(error)
        };
        if self.link.is_current(generation) {
            let version = topic.accepted_version.clone();
            topic.answers.push_back(Answer { nonce, version, error });
        }
    }
}
