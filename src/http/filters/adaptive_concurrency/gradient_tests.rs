use super::*;

struct Rig {
    gradient: Gradient,
    now: Instant,
}

const MS: Duration = Duration::from_millis(1);

impl Rig {
    /// Updates every 100 ms, measures every 60 s by five requests.
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            percentile: 0.5,
            most: 1000,
            least: 3,
            update: 100 * MS,
            buffer: 0.25,
            min_rtt: Rtt::Measured { interval: Duration::from_secs(60), jitter: 0.15, requests: 5 },
        };
        change(&mut options);
        let now = Instant::now();
        Self { gradient: Gradient::new(options, 7, now), now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.gradient.advance(self.now);
    }

    /// So many requests, one after the other, that take so long each.
    fn requests(&mut self, count: u32, each: Duration) {
        for _ in 0..count {
            self.gradient.advance(self.now);
            assert!(self.gradient.admit());
            let start = self.now;
            self.now += each;
            self.gradient.advance(self.now);
            self.gradient.complete(start, self.now);
        }
    }

    fn limit(&self) -> u32 {
        self.gradient.shown().limit
    }
}

#[test]
fn the_limit_is_the_least_until_the_ideal_time_is_known() {
    let mut rig = Rig::new(|_| {});
    let admitted: Vec<bool> = (0..5).map(|_| rig.gradient.admit()).collect();
    assert_eq!(admitted, [true, true, true, false, false]);
    (0..3).for_each(|_| rig.gradient.cancel());
    rig.requests(4, 30 * MS);
    assert!(rig.gradient.shown().measuring, "four are too few, however many updates were due");
    rig.requests(1, 30 * MS);
    let shown = rig.gradient.shown();
    assert_eq!((shown.measuring, shown.limit, shown.sample_rtt), (false, 3, 0));
    assert!((30_000..31_000).contains(&shown.min_rtt), "{shown:?}");
}

#[test]
fn the_limit_grows_while_times_are_ideal_and_shrinks_when_they_are_not() {
    let mut rig = Rig::new(|_| {});
    rig.requests(5, 10 * MS);
    // 1.25 times as long as ideal is as good.
    let mut limits = vec![rig.limit()];
    for _ in 0..4 {
        rig.requests(5, 10 * MS);
        rig.pass(50 * MS);
        limits.push(rig.limit());
    }
    // limit * 1.25, and its root.
    assert_eq!(limits, [3, 5, 8, 13, 20]);
    let shown = rig.gradient.shown();
    assert!(
        (shown.gradient - 1.25).abs() < 0.02 && (shown.headroom - 16.25f64.sqrt()).abs() < 0.1,
        "{shown:?}"
    );
    // Four times as long: never less than half, and its root.
    rig.requests(2, 40 * MS);
    rig.pass(20 * MS);
    assert_eq!((rig.limit(), rig.gradient.shown().gradient), (13, 0.5));
    let before = rig.limit();
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.limit(), before, "without samples it stays");
}

#[test]
fn the_ideal_time_is_measured_again_with_some_jitter() {
    let mut rig = Rig::new(|options| options.most = 15);
    rig.requests(5, 10 * MS);
    for _ in 0..6 {
        rig.requests(3, 5 * MS);
        rig.pass(100 * MS);
    }
    assert_eq!(rig.limit(), 15, "never more than the most");
    rig.pass(Duration::from_secs(59));
    assert!(!rig.gradient.shown().measuring);
    let early = rig.now;
    rig.pass(Duration::from_secs(10));
    let shown = rig.gradient.shown();
    assert!(shown.measuring && shown.limit == 3);
    // What had come before is no sample.
    assert!(rig.gradient.admit());
    assert!(!rig.gradient.complete(early, rig.now));
    rig.requests(5, 20 * MS);
    let shown = rig.gradient.shown();
    assert_eq!((shown.measuring, shown.limit), (false, 15), "the limit of before");
    assert!((20_000..21_000).contains(&shown.min_rtt), "{shown:?}");
}

#[test]
fn the_least_limit_too_often_speaks_against_the_ideal_time() {
    let mut rig = Rig::new(|_| {});
    rig.requests(5, 10 * MS);
    // Gone up once, then down to the least and there.
    for _ in 0..20 {
        rig.requests(2, 300 * MS);
        rig.pass(100 * MS);
        if rig.gradient.shown().measuring {
            break;
        }
    }
    assert!(rig.gradient.shown().measuring, "{:?}", rig.gradient);
    rig.requests(5, 300 * MS);
    assert_eq!(rig.gradient.shown().min_rtt / 10_000, 30);
    assert_eq!(rig.limit(), 3);
}

#[test]
fn a_fixed_ideal_time_is_not_measured() {
    let mut rig = Rig::new(|options| options.min_rtt = Rtt::Fixed(10 * MS));
    let shown = rig.gradient.shown();
    assert_eq!((shown.measuring, shown.min_rtt, shown.limit), (false, 10_000, 3));
    rig.requests(5, 10 * MS);
    rig.pass(100 * MS);
    assert_eq!(rig.limit(), 5);
    for _ in 0..20 {
        rig.requests(2, 300 * MS);
        rig.pass(100 * MS);
    }
    assert!(!rig.gradient.shown().measuring && rig.limit() == 3);
}

#[test]
fn times_are_kept_to_two_digits() {
    let mut samples = Samples::default();
    for micros in 1..=1000 {
        samples.add(micros);
    }
    assert_eq!(samples.take(0.5), 501);
    assert_eq!(samples.count, 0);
    for micros in [0, 7, 7, 123_456, u64::MAX] {
        samples.add(micros);
    }
    assert_eq!(samples.take(0.0), 0);
    samples.add(0);
    assert_eq!(samples.take(1.0), 0);
    samples.add(123_456);
    assert_eq!(samples.take(1.0), 130_000, "the end of the bucket");
    samples.add(7);
    assert_eq!(samples.take(0.5), 7);
    samples.add(u64::MAX);
    assert!(samples.take(0.5) > 900_000_000_000);
}
