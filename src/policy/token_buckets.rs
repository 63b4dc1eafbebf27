//! Token buckets for keys that are not known beforehand: each gets one when it comes.
//!
//! Shared by all workers, which count together; so there is a lock, held for a look-up.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::token_bucket::TokenBucket;

/// Equal buckets, as many as config allows; the one longest unused goes first, and is full when its key comes again.
#[derive(Debug)]
pub struct TokenBuckets<K> {
    like: TokenBucket,
    most: usize,
    kept: Mutex<Kept<K>>,
}

#[derive(Debug)]
struct Kept<K> {
    by_key: HashMap<K, (u64, Arc<TokenBucket>)>,
    /// By when they were last used.
    by_turn: BTreeMap<u64, K>,
    turn: u64,
}

impl<K: Hash + Eq + Clone> TokenBuckets<K> {
    /// At most `most` buckets, from 1, like this one.
    pub fn new(like: TokenBucket, most: usize) -> Self {
        let kept = Kept { by_key: HashMap::new(), by_turn: BTreeMap::new(), turn: 0 };
        Self { like, most, kept: Mutex::new(kept) }
    }

    /// The bucket of `key`.
    pub fn of(&self, key: &K, now: Instant) -> Arc<TokenBucket> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        kept.turn += 1;
        if let Some((turn, bucket)) = kept.by_key.get_mut(key) {
            if let Some(key) = kept.by_turn.remove(turn) {
                kept.by_turn.insert(kept.turn, key);
            }
            *turn = kept.turn;
            return bucket.clone();
        }
        let bucket = Arc::new(self.like.anew(now));
        kept.by_key.insert(key.clone(), (kept.turn, bucket.clone()));
        kept.by_turn.insert(kept.turn, key.clone());
        if kept.by_key.len() > self.most {
            if let Some((_, oldest)) = kept.by_turn.pop_first() {
                kept.by_key.remove(&oldest);
            }
        }
        debug_assert_eq!(kept.by_key.len(), kept.by_turn.len());
        bucket
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_one_longest_unused_is_forgotten() {
        let now = Instant::now();
        let buckets = TokenBuckets::new(TokenBucket::new(1, 1, Duration::from_secs(60), now), 2);
        let take = |key: &'static str| buckets.of(&key, now).take(now);
        assert_eq!(["a", "b", "a", "b"].map(take), [true, true, false, false]);
        // `b` was used after `a`, and stays.
        assert_eq!(["c", "b", "a"].map(take), [true, false, true]);
        // `c` had to go for `a`.
        assert_eq!(["b", "c"].map(take), [false, true]);
    }
}
