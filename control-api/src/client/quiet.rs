//! Keeps the log short where a control plane says the same thing again and again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Lines of one kind and type before it becomes quiet.
const BURST: u32 = 5;
/// How long one line stands for all that follow.
const INTERVAL: Duration = Duration::from_secs(10);
/// Kinds and types told apart; a control plane may invent more of them.
const MAX_KINDS: usize = 64;

/// What was said of late.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    said: HashMap<(&'static str, String), Said>,
}

#[derive(Debug)]
struct Said {
    since: Instant,
    lines: u32,
    unsaid: u64,
}

impl Quiet {
    /// Whether to say it; then how many like it were left unsaid before.
    pub fn say(&mut self, kind: &'static str, type_url: &str) -> Option<u64> {
        let now = Instant::now();
        let key = (kind, type_url.to_owned());
        if self.said.len() >= MAX_KINDS && !self.said.contains_key(&key) {
            self.said.retain(|_, said| now.duration_since(said.since) < INTERVAL);
            if self.said.len() >= MAX_KINDS {
                return None;
            }
        }
        let said = self.said.entry(key).or_insert(Said { since: now, lines: 0, unsaid: 0 });
        if now.duration_since(said.since) >= INTERVAL {
            (said.since, said.lines) = (now, 0);
        }
        if said.lines >= BURST {
            said.unsaid += 1;
            return None;
        }
        said.lines += 1;
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_again_and_again_is_said_a_few_times_and_counted() {
        let mut quiet = Quiet::default();
        let said =
            |quiet: &mut Quiet| (0..1000).filter_map(|_| quiet.say("refused", "t")).collect::<Vec<_>>();
        assert_eq!(said(&mut quiet), vec![0; BURST as usize]);
        assert_eq!(quiet.say("refused", "u"), Some(0), "another type is another matter");
        tokio::time::advance(INTERVAL).await;
        assert_eq!(quiet.say("refused", "t"), Some(1000 - u64::from(BURST)));
        // Types that are invented do not grow it without end.
        for number in 0..10_000 {
            let _ = quiet.say("ignored", &number.to_string());
        }
        assert!(quiet.said.len() <= MAX_KINDS);
    }
}
