//! Tokens whose signatures were verified before. They are known by their hashes: the tokens themselves are not kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{digest, SHA256};

use super::token::Token;

/// Verified tokens, as many as config allows; the one longest unused goes first.
#[derive(Debug)]
pub struct TokenCache {
    /// How many are kept.
    most: usize,
    /// Longer tokens are not kept.
    longest: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_hash: HashMap<[u8; 32], (u64, Arc<Token>)>,
    /// By when they were last used.
    by_turn: BTreeMap<u64, [u8; 32]>,
    turn: u64,
}

fn hash(token: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

impl TokenCache {
    /// Keeps `most` tokens of at most `longest` bytes.
    pub fn new(most: usize, longest: usize) -> Self {
        Self { most, longest, kept: Mutex::default() }
    }

    /// The token, if it was verified before and is not over at `wall`.
    pub(super) fn find(&self, token: &[u8], wall: u64) -> Option<Arc<Token>> {
        let hash = hash(token);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        let (turn, found) = kept.by_hash.get_mut(&hash)?;
        kept.by_turn.remove(turn);
        // Without skew: one that is over is verified anew.
        if found.check_time(wall, 0).is_err() {
            kept.by_hash.remove(&hash);
            return None;
        }
        kept.turn += 1;
        *turn = kept.turn;
        kept.by_turn.insert(kept.turn, hash);
        Some(found.clone())
    }

    /// Keeps a verified token.
    pub(super) fn put(&self, token: &[u8], read: &Arc<Token>) {
        if token.len() > self.longest || self.most == 0 {
            return;
        }
        let hash = hash(token);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        kept.turn += 1;
        if let Some((before, _)) = kept.by_hash.insert(hash, (kept.turn, read.clone())) {
            kept.by_turn.remove(&before);
        }
        kept.by_turn.insert(kept.turn, hash);
        while kept.by_hash.len() > self.most {
            let Some((_, oldest)) = kept.by_turn.pop_first() else { break };
            kept.by_hash.remove(&oldest);
        }
    }
}
