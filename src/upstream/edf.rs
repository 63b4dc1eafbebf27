//! Earliest-deadline-first scheduling: weighted rotation as Envoy does it
//! (envoyproxy.io: load_balancers, weighted round robin).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Picks entries in proportion to their weights, as evenly spread as the weights allow.
#[derive(Debug, Default)]
pub struct Edf {
    heap: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

#[derive(Debug)]
struct Entry {
    deadline: f64,
    order: u64,
    item: u32,
}

impl Edf {
    /// A schedule of `items` with their weights (positive), started after a random number of picks
    /// so that many proxies do not move in step.
    pub fn new(items: impl Iterator<Item = (u32, f64)>, random: u64) -> Self {
        let mut edf = Self::default();
        let mut weights = Vec::new();
        for (item, weight) in items {
            edf.add(item, weight);
            weights.push((item, weight));
        }
        let picks = if weights.is_empty() { 0 } else { random % (weights.len() as u64) };
        for _ in 0..picks {
            edf.pick(|item| weights.iter().find(|(i, _)| *i == item).map_or(1.0, |(_, weight)| *weight));
        }
        edf
    }

    fn add(&mut self, item: u32, weight: f64) {
        let deadline = self.now + 1.0 / weight.max(f64::MIN_POSITIVE);
        self.heap.push(Entry { deadline, order: self.order, item });
        self.order += 1;
    }

    /// The next item; `weight` tells its weight for the time after.
    pub fn pick(&mut self, weight: impl FnOnce(u32) -> f64) -> Option<u32> {
        let entry = self.heap.pop()?;
        self.now = entry.deadline;
        self.add(entry.item, weight(entry.item));
        Some(entry.item)
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap's greatest is the earliest deadline, then the first added.
        other.deadline.total_cmp(&self.deadline).then_with(|| other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights_and_are_spread() {
        let weights = [1.0, 2.0, 5.0];
        let mut edf = Edf::new(weights.iter().enumerate().map(|(i, w)| (i as u32, *w)), 0);
        let mut seen = [0; 3];
        for _ in 0..800 {
            let item = edf.pick(|item| weights[item as usize]).expect("never empty");
            seen[item as usize] += 1;
        }
        assert_eq!(seen, [100, 200, 500]);
    }
}
