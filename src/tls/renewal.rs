//! When a certificate that nobody has replaced is asked for anew: well before its end, and ever more often towards it.
//!
//! Comes in: how long the certificate is valid, the time, and chance. Goes out: whether to ask now. Who keeps
//! certificates young (an agent, a control plane) does so at half of their life or so; this is for when that fails.

use std::time::{Duration, SystemTime};

/// The first time is when this share of its life is over, and chance adds up to as much again as [`SPREAD`].
const FIRST: f64 = 0.8;
const SPREAD: f64 = 0.1;
/// Longest pause between two times.
const LONGEST: Duration = Duration::from_secs(3600);
/// The shortest is a fortieth of its life within these bounds.
const SHORTEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// `notBefore`.
    pub from: SystemTime,
    /// `notAfter`.
    pub until: SystemTime,
}

/// When one certificate, or what takes its place, is asked for.
#[derive(Debug, Default)]
pub struct Renewal(Option<(Validity, SystemTime)>);

impl Renewal {
    /// Whether to ask at `now`. `random` is from 0 to 1; `valid` is that of the certificate in use, if there is one.
    pub fn is_due(&mut self, valid: Option<Validity>, now: SystemTime, random: f64) -> bool {
        let Some(valid) = valid else {
            self.0 = None;
            return false;
        };
        let life = valid.until.duration_since(valid.from).unwrap_or_default();
        let due = match self.0 {
            Some((own, due)) if own == valid => due,
            _ => valid.from + life.mul_f64(FIRST + SPREAD * random),
        };
        if now < due {
            self.0 = Some((valid, due));
            return false;
        }
        let left = valid.until.duration_since(now).unwrap_or_default();
        let shortest = (life / 40).clamp(SHORTEST.0, SHORTEST.1);
        let pause = (left / 4).clamp(shortest, LONGEST).mul_f64(0.75 + 0.5 * random);
        self.0 = Some((valid, now + pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_long_certificate_is_asked_for_in_its_last_fifth() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        const DAY: u64 = 86_400;
        let valid = Some(Validity { from: at(0), until: at(DAY) });
        for random in [0.0, 0.5, 1.0] {
            let mut renewal = Renewal::default();
            let mut asked = Vec::new();
            for second in 0..DAY + 120 {
                if renewal.is_due(valid, at(second), random) {
                    asked.push(second);
                }
            }
            let first = asked[0] as f64 / DAY as f64;
            assert!((first - 0.8 - 0.1 * random).abs() < 0.001, "{first} at {random}");
            assert!(asked.windows(2).all(|two| two[1] - two[0] <= 5400), "{asked:?}");
            let in_the_last_minute = asked.iter().filter(|second| (DAY - 60..DAY).contains(second)).count();
            assert!((1..=3).contains(&in_the_last_minute), "{asked:?}");
            assert!(asked.iter().any(|second| *second >= DAY), "and when it is over: {asked:?}");
            assert!(asked.len() < 60, "{}", asked.len());
        }
        // Its successor begins anew.
        let mut renewal = Renewal::default();
        assert!(renewal.is_due(valid, at(DAY - 1), 0.0));
        let next = Some(Validity { from: at(DAY / 2), until: at(DAY * 2) });
        assert!(!renewal.is_due(next, at(DAY - 1), 0.0) && !renewal.is_due(None, at(DAY - 1), 0.0));
    }
}
