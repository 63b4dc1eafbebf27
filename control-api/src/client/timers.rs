//! Deadlines of resources: in go keys with an instant, out come those that are due, in order.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The first answer is overdue.
    Fetch,
    /// The resource has outlived its time to live.
    Expiry,
}

/// The type as an index, the kind, and the resource's name (empty for a wildcard).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub topic: usize,
    pub kind: Kind,
    pub name: String,
}

/// A set of deadlines, at most one for each key.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(Instant, Key)>,
    at: HashMap<Key, Instant>,
}

impl Timers {
    /// Sets the deadline of `key`, in place of an earlier one.
    pub fn set(&mut self, key: Key, at: Instant) {
        self.clear(&key);
        self.order.insert((at, key.clone()));
        self.at.insert(key, at);
    }

    /// Takes the deadline of `key` away.
    pub fn clear(&mut self, key: &Key) {
        if let Some((key, at)) = self.at.remove_entry(key) {
            self.order.remove(&(at, key));
            self.tidy();
        }
    }

    /// Whether `key` has a deadline.
    pub fn holds(&self, key: &Key) -> bool {
        self.at.contains_key(key)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes one key that is due.
    pub fn pop(&mut self, now: Instant) -> Option<Key> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.at.remove(&key);
        self.tidy();
        Some(key)
    }

    /// There are thousands at a start, and few later.
    fn tidy(&mut self) {
        if self.at.is_empty() {
            self.at = HashMap::new();
        }
    }
}
