//! What was used of late, by hash.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

/// A map of bounded size that keeps what was used last: what was not asked for while as much again came is forgotten.
#[derive(Debug)]
pub(super) struct Recent<V> {
    now: HashMap<u64, V, BuildHasherDefault<Hashed>>,
    before: HashMap<u64, V, BuildHasherDefault<Hashed>>,
    most: usize,
}

impl<V> Recent<V> {
    /// It holds the last `most` values that were used, and up to as many more.
    pub fn new(most: usize) -> Self {
        Self { now: HashMap::default(), before: HashMap::default(), most }
    }

    /// The value with this hash.
    pub fn get(&mut self, hash: u64) -> Option<&V> {
        if !self.now.contains_key(&hash) {
            let found = self.before.remove(&hash)?;
            self.put(hash, found);
        }
        self.now.get(&hash)
    }

    /// Takes a value, in place of another with the same hash.
    pub fn put(&mut self, hash: u64, value: V) {
        if self.now.len() >= self.most {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(hash, value);
    }
}

/// What hashes of this process begin with: peers choose what is hashed, and cannot foresee them.
pub(super) fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));
    *SEED
}

/// Keys are hashes already.
#[derive(Debug, Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not called: keys are written as numbers.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays() {
        let mut recent = Recent::new(4);
        recent.put(1, "one");
        for number in 2..100 {
            recent.put(number, "other");
            assert_eq!(recent.get(1), Some(&"one"), "after {number}");
        }
        assert_eq!(recent.get(50), None, "it was forgotten");
        assert!(recent.now.len() + recent.before.len() <= 8);
    }
}
