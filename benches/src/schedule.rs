//! When requests are to be sent. A schedule is a rate over time; its integral says how many requests are due by a
//! moment, and its inverse when the n-th one is: no rounding adds up, and threads share one schedule by taking every
//! n-th request each.

use crate::clock::SECOND;
use crate::result::Schedule;

/// A part of the time with a rate that changes evenly.
#[derive(Clone, Copy, Debug)]
struct Segment {
    seconds: f64,
    from: f64,
    to: f64,
}

impl Segment {
    fn requests(&self) -> f64 {
        (self.from + self.to) / 2.0 * self.seconds
    }

    /// Seconds into the segment at which so many requests are due.
    fn time_of(&self, requests: f64) -> f64 {
        let slope = (self.to - self.from) / self.seconds.max(f64::MIN_POSITIVE);
        // from t + slope t^2 / 2 = requests, in the form that is exact for small slopes.
        let root = (self.from * self.from + 2.0 * slope * requests).max(0.0).sqrt();
        (2.0 * requests / (self.from + root).max(f64::MIN_POSITIVE)).min(self.seconds)
    }
}

/// The moments at which one thread sends.
#[derive(Debug)]
pub struct Arrivals {
    segments: std::vec::IntoIter<Segment>,
    segment: Option<Segment>,
    /// Start of the segment, nanoseconds of the clock, and requests before it.
    segment_start: f64,
    before: f64,
    /// The next request, counted over all threads.
    position: f64,
    stride: f64,
    poisson: Option<fastrand::Rng>,
    next: Option<u64>,
    /// The end of all.
    end: u64,
}

impl Arrivals {
    /// Arrivals of thread `thread` of `threads`, from `begin`: first `warmup` seconds at the first rate, then the
    /// schedule over `seconds`. `None` for a closed loop.
    pub fn new(
        schedule: &Schedule,
        (thread, threads): (u32, u32),
        begin: u64,
        (warmup, seconds): (f64, f64),
        seed: u64,
    ) -> Option<Self> {
        let flat = |seconds: f64, rate: f64| Segment { seconds, from: rate, to: rate };
        let mut segments = match schedule {
            Schedule::Closed => return None,
            Schedule::Constant { rate } | Schedule::Poisson { rate } => vec![flat(seconds, *rate)],
            Schedule::Ramp { from, to } => vec![Segment { seconds, from: *from, to: *to }],
            Schedule::Steps { rates } => {
                rates.iter().map(|rate| flat(seconds / rates.len() as f64, *rate)).collect()
            }
        };
        let first = segments.first().map_or(0.0, |segment| segment.from);
        segments.insert(0, flat(warmup, first));
        let stride = f64::from(threads.max(1));
        let mut poisson = matches!(schedule, Schedule::Poisson { .. })
            .then(|| fastrand::Rng::with_seed(seed.wrapping_add(u64::from(thread))));
        let mut segments = segments.into_iter();
        let segment = segments.next();
        let position = match &mut poisson {
            Some(random) => exponential(random) * stride,
            None => f64::from(thread),
        };
        let end = begin.saturating_add(((warmup + seconds) * SECOND as f64) as u64);
        let mut arrivals = Self {
            segments,
            segment,
            segment_start: begin as f64,
            before: 0.0,
            position,
            stride,
            poisson,
            next: None,
            end,
        };
        arrivals.next = arrivals.find();
        Some(arrivals)
    }

    /// The moment of the next request.
    pub fn peek(&self) -> Option<u64> {
        self.next.filter(|next| *next < self.end)
    }

    /// Takes the next request.
    pub fn advance(&mut self) {
        self.position += match &mut self.poisson {
            Some(random) => exponential(random) * self.stride,
            None => self.stride,
        };
        self.next = self.find();
    }

    /// Nothing is due from this moment on.
    pub fn stop(&mut self, at: u64) {
        self.end = self.end.min(at);
    }

    fn find(&mut self) -> Option<u64> {
        loop {
            let segment = self.segment?;
            let within = self.position - self.before;
            if within < segment.requests() {
                return Some((self.segment_start + segment.time_of(within) * SECOND as f64) as u64);
            }
            self.before += segment.requests();
            self.segment_start += segment.seconds * SECOND as f64;
            self.segment = self.segments.next();
        }
    }
}

fn exponential(random: &mut fastrand::Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(schedule: &Schedule, share: (u32, u32), times: (f64, f64)) -> Vec<u64> {
        let mut arrivals = Arrivals::new(schedule, share, 1_000, times, 1).unwrap();
        let mut moments = Vec::new();
        while let Some(moment) = arrivals.peek() {
            moments.push(moment - 1_000);
            arrivals.advance();
        }
        moments
    }

    #[test]
    fn a_constant_rate_is_evenly_spaced_and_shared_by_threads() {
        let schedule = Schedule::Constant { rate: 1000.0 };
        let all = moments(&schedule, (0, 1), (0.5, 1.5));
        assert_eq!(all.len(), 2000);
        assert!(all.windows(2).all(|pair| (pair[1] - pair[0]).abs_diff(1_000_000) <= 1), "{all:?}");
        let mut shared: Vec<_> = (0..3).flat_map(|i| moments(&schedule, (i, 3), (0.5, 1.5))).collect();
        shared.sort_unstable();
        assert_eq!(shared, all);
    }

    #[test]
    fn a_ramp_and_steps_send_what_their_rates_say() {
        let ramp = moments(&Schedule::Ramp { from: 0.0, to: 1000.0 }, (0, 1), (0.0, 10.0));
        assert!(ramp.len().abs_diff(5000) <= 1, "{}", ramp.len());
        let early = ramp.iter().filter(|at| **at < 5 * SECOND).count();
        assert!(early.abs_diff(1250) <= 1, "{early}");
        let steps = moments(&Schedule::Steps { rates: vec![10.0, 100.0] }, (0, 1), (0.0, 4.0));
        assert_eq!(steps.iter().filter(|at| **at < 2 * SECOND).count(), 20);
        assert_eq!(steps.len(), 220);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let moments = moments(&Schedule::Poisson { rate: 1000.0 }, (1, 2), (0.0, 100.0));
        let gaps: Vec<_> =
            moments.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / SECOND as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.002).abs() < 0.0001, "{mean}");
        assert!((variance.sqrt() - mean).abs() < 0.0002, "{} {mean}", variance.sqrt());
    }
}
