//! What all connections of one worker share.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::filters::grpc_stats::Methods;
use super::h2::rebalance::Rebalance;
use super::h2::server::{Registry, Seats};
use super::trace::export::Waiting;
use crate::config::compile::runtime::Runtime;
use crate::config::matcher::{Fraction, RuntimeFraction};
use crate::config::{Cluster, Directory};
use crate::runtime::drain::Drain;
use crate::telemetry::process::Server;
use crate::telemetry::stream_info::WallClock;
use crate::upstream::Upstreams;

/// One worker's state. Never leaves its thread.
#[derive(Debug)]
pub struct Worker {
    /// Pickers and pools.
    pub upstreams: Upstreams,
    /// Clusters by name, for routes that take the name from a header.
    pub clusters: Arc<Directory<Cluster>>,
    /// Runtime values, as they are now.
    pub runtime: Arc<ArcSwap<Runtime>>,
    /// The server's state.
    pub server: Option<Arc<Server>>,
    /// Whether the process is draining.
    pub drain: Arc<Drain>,
    /// Connections that carry several requests.
    pub multiplexed: Registry,
    /// Tasks for their requests.
    pub seats: Seats,
    /// Whether connections move when the service grows.
    pub rebalance: Option<Rebalance>,
    /// Statistics of gRPC calls, by method.
    pub grpc: Methods,
    /// Spans on their way to collectors.
    pub spans: Waiting,
    /// Random numbers for routing, ids and back-off.
    pub rng: RefCell<fastrand::Rng>,
    /// Wall clock.
    pub clock: Clock,
    /// Requests being served.
    pub active_requests: Cell<usize>,
    /// When the last request ended.
    pub last_request: Cell<Instant>,
    /// This machine in `x-forwarded-for`, where the client itself is on loopback.
    pub own_address: Box<str>,
}

impl Worker {
    /// State for a worker that starts now.
    pub fn new(clusters: Arc<Directory<Cluster>>, drain: Arc<Drain>) -> Self {
        Self {
            upstreams: Upstreams::default(),
            clusters,
            runtime: Arc::default(),
            server: None,
            drain,
            multiplexed: Registry::default(),
            seats: Seats::default(),
            rebalance: None,
            grpc: Methods::default(),
            spans: Waiting::default(),
            rng: RefCell::new(fastrand::Rng::new()),
            clock: Clock::new(),
            active_requests: Cell::new(0),
            last_request: Cell::new(Instant::now()),
            own_address: crate::runtime::socket::own_address().to_string().into(),
        }
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        self.rng.borrow_mut().u64(..)
    }

    /// Whether `/healthcheck/fail` is in effect.
    pub fn is_failing_health(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_failing_health())
    }

    /// Whether a request falls into `share`.
    pub fn draws(&self, share: Fraction) -> bool {
        share.certain().unwrap_or_else(|| share.holds(self.random()))
    }

    /// Whether a request falls into `share`, as runtime has it now.
    pub fn draws_from(&self, share: &RuntimeFraction) -> bool {
        self.draws(share.now(&self.runtime))
    }

    /// A random (version 4) UUID in text (RFC 9562 §5.4).
    pub fn uuid(&self) -> [u8; 36] {
        let mut bits = {
            let mut rng = self.rng.borrow_mut();
            (u128::from(rng.u64(..)) << 64) | u128::from(rng.u64(..))
        };
        bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let mut text = [b'-'; 36];
        // Where each of the sixteen bytes goes: below 35, and a byte indexes 256 pairs.
        const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
        for (byte, place) in bits.to_be_bytes().into_iter().zip(PLACES) {
            [text[place], text[place + 1]] = HEX_PAIRS[usize::from(byte)];
        }
        text
    }
}

/// Every byte in hexadecimal.
const HEX_PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Wall-clock time derived from the monotonic clock, so that a request reads one clock.
#[derive(Debug)]
pub struct Clock {
    wall: Cell<WallClock>,
    date: Cell<Option<Date>>,
}

/// The text of one second.
#[derive(Debug, Clone, Copy)]
struct Date {
    from: Instant,
    until: Instant,
    text: [u8; 29],
}

impl Clock {
    fn new() -> Self {
        Self { wall: Cell::new(WallClock::now()), date: Cell::new(None) }
    }

    /// Follows adjustments of the wall clock. Called about once a second.
    pub fn tick(&self) {
        self.wall.set(WallClock::now());
        self.date.set(None);
    }

    /// The wall clock as last followed.
    pub fn wall(&self) -> WallClock {
        self.wall.get()
    }

    /// The wall-clock time at `now`.
    pub fn system(&self, now: Instant) -> SystemTime {
        self.wall.get().system(now)
    }

    /// The `date` header at `now` (RFC 9110 §5.6.7), formatted once a second.
    pub fn date(&self, now: Instant) -> [u8; 29] {
        if let Some(date) = self.date.get().filter(|date| date.from <= now && now < date.until) {
            return date.text;
        }
        let since = self.system(now).duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let text = http_date(since.as_secs());
        let rest = Duration::from_secs(1) - Duration::from_nanos(since.subsec_nanos().into());
        self.date.set(Some(Date { from: now, until: now + rest, text }));
        text
    }
}

fn http_date(second: u64) -> [u8; 29] {
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let stamp = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    let formatted = stamp.map(|stamp| stamp.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    if let Some(formatted) = formatted.filter(|formatted| formatted.len() == text.len()) {
        text.copy_from_slice(formatted.as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdate() {
        assert_eq!(&http_date(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn the_date_turns_with_the_second() {
        let clock = Clock::new();
        let second = Duration::from_secs(1);
        let at = |since: Duration| http_date(since.as_secs());
        let mut now = Instant::now();
        for _ in 0..50 {
            let since = clock.system(now).duration_since(UNIX_EPOCH).expect("after 1970");
            assert_eq!(clock.date(now), at(since));
            let left = second - Duration::from_nanos(since.subsec_nanos().into());
            let last = now + left - Duration::from_nanos(1);
            assert_eq!(clock.date(last), at(since), "the last moment of the second");
            assert_eq!(clock.date(now + left), at(since + left), "the first of the next");
            assert_eq!(clock.date(last), at(since), "and back");
            now += Duration::from_millis(130);
        }
    }

    #[test]
    fn uuids_are_version_4_and_differ() {
        let worker = Worker::new(Arc::default(), Arc::default());
        let (one, two) = (worker.uuid(), worker.uuid());
        assert_ne!(one, two);
        assert_eq!((one[8], one[13], one[14], one[18], one[23]), (b'-', b'-', b'4', b'-', b'-'));
        assert!(b"89ab".contains(&one[19]));
    }
}
