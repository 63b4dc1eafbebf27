//! How much may be sent again beside what retries allow: requests that no upstream has begun with.

use std::cell::Cell;

/// A replay costs what so many requests earn.
const COST: u32 = 5;
/// Most replays that are saved up: those of a connection or two whose streams are all refused at once.
const SAVED: u32 = 1_000;

/// A budget for one cluster and worker: each request earns a fifth of a replay. Hosts that refuse everything are asked
/// hardly more than without replays.
#[derive(Debug)]
pub struct ReplayBudget(Cell<u32>);

impl Default for ReplayBudget {
    fn default() -> Self {
        Self(Cell::new(SAVED * COST))
    }
}

impl ReplayBudget {
    /// There is a request.
    #[inline]
    pub fn earn(&self) {
        self.0.set((self.0.get() + 1).min(SAVED * COST));
    }

    /// Takes a replay, if there is one.
    pub fn spend(&self) -> bool {
        let left = self.0.get().checked_sub(COST);
        self.0.set(left.unwrap_or(self.0.get()));
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replays_are_a_fifth_of_the_requests_and_what_was_saved() {
        let budget = ReplayBudget::default();
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut requests, mut replays) = (0, 0);
        for _ in 0..100_000 {
            budget.earn();
            requests += 1;
            for _ in 0..rng.u32(0..4) {
                replays += u32::from(budget.spend());
            }
            assert!(replays <= SAVED + requests / COST, "{replays} for {requests}");
        }
        assert!(replays > requests / COST, "nothing is left unused: {replays} for {requests}");
        // What is earned in good times is kept up to a limit.
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!((0..100_000).filter(|_| budget.spend()).count(), SAVED as usize);
    }
}
