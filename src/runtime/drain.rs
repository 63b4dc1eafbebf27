//! Draining the process, as a value that connections read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::listener::{Direction, Listener};
use crate::config::Retirement;

/// Which listeners have stopped accepting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// None.
    #[default]
    None,
    /// Those whose traffic direction is INBOUND.
    Inbound,
    /// All.
    All,
}

impl Stop {
    /// Whether it concerns this listener.
    pub fn concerns(self, listener: &Listener) -> bool {
        match self {
            Stop::None => false,
            Stop::Inbound => listener.direction == Direction::Inbound,
            Stop::All => true,
        }
    }
}

/// Tells connections whether to announce their close because the process is leaving.
#[derive(Debug, Default)]
pub struct Drain {
    retirement: Retirement,
    /// Only connections of inbound listeners are told.
    inbound_only: AtomicBool,
}

impl Drain {
    /// Starts draining. With a `window`, responses announce the close with a probability that grows
    /// from 0 to 1 over it (Envoy's gradual strategy); without one, all do from now on. `inbound_only`
    /// spares the connections of listeners that are not inbound.
    pub fn start(&self, window: Option<Duration>, inbound_only: bool) {
        self.inbound_only.store(inbound_only, Ordering::Relaxed);
        self.retirement.begin(Instant::now(), window);
    }

    /// Whether draining has started.
    pub fn is_draining(&self) -> bool {
        self.retirement.has_begun()
    }

    /// Whether a response sent now, on a connection that is `inbound` or not, announces the close; `random`
    /// decides while the share grows.
    #[inline]
    pub fn announces_close(&self, now: Instant, inbound: bool, random: impl FnOnce() -> u64) -> bool {
        self.retirement.announces_close(now, random)
            && (inbound || !self.inbound_only.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradual_drain_grows_from_never_to_always() {
        let drain = Drain::default();
        let start = Instant::now();
        assert!(!drain.announces_close(start, true, || 0));
        drain.start(Some(Duration::from_secs(10)), false);
        let closes = |after: u64| {
            (0..10_000)
                .filter(|draw| drain.announces_close(start + Duration::from_millis(after), false, || *draw))
                .count()
        };
        assert!(closes(10) < 100);
        assert!((4_800..5_200).contains(&closes(5_000)));
        assert_eq!(closes(11_000), 10_000);
    }

    #[test]
    fn an_inbound_drain_spares_the_others() {
        let drain = Drain::default();
        drain.start(None, true);
        assert!(drain.announces_close(Instant::now(), true, || 0));
        assert!(!drain.announces_close(Instant::now(), false, || 0));
        drain.start(None, false);
        assert!(drain.announces_close(Instant::now(), false, || 0));
    }
}
