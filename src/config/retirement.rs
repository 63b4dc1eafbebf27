//! Leaving gracefully, as a value that connections read: of the whole process, or of one filter chain that
//! was changed or removed.

use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tells connections whether to announce their close. Written by the control thread, read by workers.
#[derive(Debug)]
pub struct Retirement {
    epoch: Instant,
    /// One more than the milliseconds from the epoch to the beginning; zero before.
    began: AtomicU64,
    /// Over this long, in milliseconds, the share of closing responses rises to one; zero = at once.
    window_ms: AtomicU64,
}

impl Default for Retirement {
    fn default() -> Self {
        Self { epoch: Instant::now(), began: AtomicU64::new(0), window_ms: AtomicU64::new(0) }
    }
}

impl Retirement {
    /// Begins at `now`. With a `window`, responses announce the close with a probability that grows from
    /// 0 to 1 over it (Envoy's gradual strategy); without one, all do from now on.
    pub fn begin(&self, now: Instant, window: Option<Duration>) {
        self.window_ms.store(window.map_or(0, milliseconds), Ordering::Relaxed);
        let since = milliseconds(now.saturating_duration_since(self.epoch));
        self.began.store(since.saturating_add(1), Ordering::Release);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.began.load(Ordering::Acquire) != 0
    }

    /// Whether a response sent at `now` announces the close; `random` decides while the share grows.
    /// One relaxed load as long as it has not begun.
    #[inline]
    pub fn announces_close(&self, now: Instant, random: impl FnOnce() -> u64) -> bool {
        match self.began.load(Ordering::Relaxed) {
            0 => false,
            began => {
                // The window was stored before.
                fence(Ordering::Acquire);
                let window = self.window_ms.load(Ordering::Relaxed);
                let elapsed =
                    milliseconds(now.saturating_duration_since(self.epoch)).saturating_sub(began - 1);
                elapsed >= window || random() % window < elapsed
            }
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_closes_grows_from_none_to_all() {
        let retirement = Retirement::default();
        let start = Instant::now() + Duration::from_secs(100);
        let closes = |after: u64| {
            let now = start + Duration::from_millis(after);
            (0..10_000).filter(|draw| retirement.announces_close(now, || *draw)).count()
        };
        assert_eq!(closes(5_000), 0, "not begun");
        retirement.begin(start, Some(Duration::from_secs(10)));
        assert!(retirement.has_begun());
        assert_eq!(closes(0), 0);
        assert_eq!(closes(10), 10);
        assert_eq!(closes(2_500), 2_500);
        assert_eq!(closes(9_999), 9_999);
        assert_eq!(closes(10_000), 10_000);
        assert_eq!(closes(60_000), 10_000);
    }

    #[test]
    fn without_a_window_all_close_at_once() {
        let retirement = Retirement::default();
        let now = Instant::now();
        retirement.begin(now, None);
        assert!(retirement.announces_close(now, || unreachable!("nothing is left to chance")));
    }
}
