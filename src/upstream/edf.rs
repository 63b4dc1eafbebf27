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

/// Most picks that a start emulates.
const MOST_PICKS: u64 = u32::MAX as u64 / 10;

impl Edf {
    /// A schedule of the items 0 to `weights.len()` with their weights (positive), started after a random
    /// number of picks so that many proxies do not move in step. Costs O(n log n) however many that are.
    pub fn new(weights: &[f64], random: u64) -> Self {
        let sum: f64 = weights.iter().sum();
        let picks = if weights.len() < 2 || sum <= 0.0 { 0 } else { random % MOST_PICKS };
        let mut left = picks;
        let mut entries = Vec::with_capacity(weights.len());
        let mut now = 0.0f64;
        for (item, weight) in weights.iter().enumerate() {
            let weight = weight.max(f64::MIN_POSITIVE);
            // What the item has certainly had by then; what is left after all have had theirs is picked.
            let had = (picks as f64 * (weight / sum)).floor().max(0.0);
            left = left.saturating_sub(had as u64);
            now = now.max(had / weight);
            let order = item as u64;
            entries.push(Entry { deadline: (had + 1.0) / weight, order, item: item as u32 });
        }
        let order = entries.len() as u64;
        let mut edf = Self { heap: entries.into(), now: if picks == 0 { 0.0 } else { now }, order };
        for _ in 0..left.min(weights.len() as u64) {
            edf.pick(|item| weights.get(item as usize).copied().unwrap_or(1.0));
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
        for random in [0, 1, 7, 12_345_678_901] {
            let mut edf = Edf::new(&weights, random);
            let mut seen = [0i32; 3];
            for _ in 0..800 {
                let item = edf.pick(|item| weights[item as usize]).expect("never empty");
                seen[item as usize] += 1;
            }
            for (seen, expected) in seen.iter().zip([100, 200, 500]) {
                assert!((seen - expected).abs() <= 1, "{random}: {seen} for {expected}");
            }
        }
    }

    #[test]
    fn a_start_is_cheap_for_many_items() {
        let weights: Vec<f64> = (0..100_000).map(|i| f64::from(i % 7 + 1)).collect();
        let mut edf = Edf::new(&weights, u64::MAX);
        assert!(edf.pick(|_| 1.0).is_some());
    }
}
