//! What one thread of the generator counts, and how the counts of all become a result. A thread fills one [`Slice`] per
//! interval and sends it off; what needs no interval is in [`Totals`], sent when it ends.

use std::sync::mpsc::Sender;

use hdrhistogram::Histogram;

use crate::clock::{self, SECOND};
use crate::result::{Bucket, CurvePoint, Distribution};

/// Values above an hour count as an hour.
const SLOWEST: u64 = 3600 * SECOND;
/// Finest step of a histogram, nanoseconds.
const FINEST: u64 = 16;
/// Statuses below 1000 are of HTTP; gRPC's come after.
pub const GRPC: u16 = 1000;
/// The place of answers without a status.
pub const NO_STATUS: u16 = 0;
/// The interval of what comes after the measured time.
pub const AFTER: u64 = u64::MAX;
const STATUSES: usize = GRPC as usize + 64;

/// A request that waits for its answer; moments are nanoseconds of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// When the schedule wanted it sent.
    pub intended: u64,
    /// When it was.
    pub sent: u64,
}

/// Why a request or a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names, and those in the result, say it")]
pub enum Reason {
    Closed,
    Reset,
    Timeout,
    Protocol,
    StreamReset,
    Goaway,
    Tls,
    Refused,
    Upgrade,
    NoPort,
    Io,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Closed,
        Self::Reset,
        Self::Timeout,
        Self::Protocol,
        Self::StreamReset,
        Self::Goaway,
        Self::Tls,
        Self::Refused,
        Self::Upgrade,
        Self::NoPort,
        Self::Io,
    ];

    /// Its name in the result.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::StreamReset => "stream-reset",
            Self::Goaway => "goaway",
            Self::Tls => "tls",
            Self::Refused => "refused",
            Self::Upgrade => "upgrade",
            Self::NoPort => "no-port",
            Self::Io => "io",
        }
    }

    /// The reason behind an error of a socket.
    pub fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted | Kind::NotConnected => {
                Self::Reset
            }
            Kind::ConnectionRefused => Self::Refused,
            Kind::TimedOut => Self::Timeout,
            Kind::InvalidData => Self::Tls,
            Kind::OutOfMemory => Self::Protocol,
            Kind::AddrNotAvailable | Kind::AddrInUse => Self::NoPort,
            Kind::UnexpectedEof => Self::Closed,
            _ => Self::Io,
        }
    }
}

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that it accepts; anything else is an error of this line.
    #[expect(clippy::expect_used, reason = "constant arguments")]
    Histogram::new_with_bounds(FINEST, SLOWEST, 3).expect("bounds of a histogram")
}

/// One interval of one thread.
pub struct Slice {
    /// Which interval, from 0, or [`AFTER`].
    pub index: u64,
    /// Latencies from the intended moment.
    pub corrected: Histogram<u64>,
    /// Latencies from sending, in an open loop; a closed one has only the other.
    pub uncorrected: Option<Histogram<u64>>,
    /// Sent to first byte.
    pub first_byte: Histogram<u64>,
    /// Requests sent.
    pub sent: u64,
    /// Answers.
    pub answered: u64,
    /// Failures.
    pub failed: u64,
    /// Bytes given to sockets.
    pub sent_bytes: u64,
    /// Bytes taken from sockets.
    pub received_bytes: u64,
    /// Messages received.
    pub received_messages: u64,
}

impl Slice {
    /// An empty one.
    pub fn new(index: u64, open: bool) -> Self {
        Self {
            index,
            corrected: histogram(),
            uncorrected: open.then(histogram),
            first_byte: histogram(),
            sent: 0,
            answered: 0,
            failed: 0,
            sent_bytes: 0,
            received_bytes: 0,
            received_messages: 0,
        }
    }
}

/// What a thread counted that needs no interval.
pub struct Totals {
    /// Answers by status, [`NO_STATUS`], HTTP's, and gRPC's from [`GRPC`].
    pub by_status: Vec<u64>,
    /// Failures in the order of [`Reason::ALL`].
    pub failed: [u64; Reason::ALL.len()],
    /// The start of the first bytes that were no answer, escaped.
    pub unexpected: String,
    /// Requests without an end.
    pub in_flight: u64,
    /// Requests never sent.
    pub unsent: u64,
    /// Bytes of bodies received.
    pub body_bytes: u64,
    /// Messages sent.
    pub sent_messages: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections not opened.
    pub not_opened: [u64; Reason::ALL.len()],
    /// Connections broken by the peer.
    pub lost: u64,
    /// TLS sessions resumed.
    pub resumed: u64,
    /// What TLS agreed on.
    pub tls: String,
    /// Times to connect.
    pub connect: Histogram<u64>,
    /// Times of handshakes.
    pub handshake: Histogram<u64>,
    /// CPU within the measured time, nanoseconds.
    pub cpu: u64,
    /// Length of the measured time, nanoseconds.
    pub measured: u64,
}

/// The counts of one thread.
pub struct Recorder {
    /// The interval now.
    pub slice: Slice,
    /// The rest.
    pub totals: Totals,
    /// Start of the measured time; requests intended before do not count. `u64::MAX` until it is known.
    pub start: u64,
    interval: u64,
    next: u64,
    open: bool,
    slices: Sender<Slice>,
}

impl Recorder {
    /// Counts nothing until `start` is set.
    pub fn new(open: bool, interval: u64, slices: Sender<Slice>) -> Self {
        let totals = Totals {
            by_status: vec![0; STATUSES],
            failed: [0; Reason::ALL.len()],
            in_flight: 0,
            unsent: 0,
            body_bytes: 0,
            sent_messages: 0,
            opened: 0,
            not_opened: [0; Reason::ALL.len()],
            lost: 0,
            resumed: 0,
            tls: String::new(),
            unexpected: String::new(),
            connect: histogram(),
            handshake: histogram(),
            cpu: 0,
            measured: 0,
        };
        let slice = Slice::new(0, open);
        Self { slice, totals, start: u64::MAX, interval, next: u64::MAX, open, slices }
    }

    /// The measured time starts at this moment.
    pub fn start_at(&mut self, start: u64) {
        (self.start, self.next) = (start, start.saturating_add(self.interval));
    }

    /// To be called now and then: sends the interval off when it is over.
    pub fn tick(&mut self, now: u64) {
        if now >= self.next {
            let index = (now - self.start) / self.interval;
            self.next = self.start + (index + 1) * self.interval;
            let done = std::mem::replace(&mut self.slice, Slice::new(index, self.open));
            // Nobody listens any more when the run is given up; then counts do not matter.
            let _ = self.slices.send(done);
        }
    }

    /// These bytes were no answer: of the first such, the start is kept.
    pub fn unexpected(&mut self, bytes: &[u8]) {
        /// Bytes shown.
        const SHOWN: usize = 200;
        if self.totals.unexpected.is_empty() {
            self.totals.unexpected = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii().to_string();
        }
    }

    /// The measured time is over; what comes is for the accounts only.
    pub fn end(&mut self) {
        let rest = Slice::new(AFTER, self.open);
        let _ = self.slices.send(std::mem::replace(&mut self.slice, rest));
        self.next = u64::MAX;
    }

    /// Sends the last interval off.
    pub fn finish(self) -> Totals {
        let _ = self.slices.send(self.slice);
        self.totals
    }

    /// Whether this request belongs to the measured time.
    pub fn counts(&self, pending: Pending) -> bool {
        pending.intended >= self.start
    }

    /// A request was handed to a connection.
    pub fn sent(&mut self, pending: Pending) {
        self.slice.sent += u64::from(self.counts(pending));
    }

    /// A request has its whole answer.
    #[inline]
    pub fn answered(&mut self, pending: Pending, now: u64, first_byte: u64, status: u16) {
        if !self.counts(pending) {
            return;
        }
        self.slice.answered += 1;
        self.slice.corrected.saturating_record(now.saturating_sub(pending.intended));
        if let Some(uncorrected) = &mut self.slice.uncorrected {
            uncorrected.saturating_record(now.saturating_sub(pending.sent));
        }
        self.slice.first_byte.saturating_record(first_byte.saturating_sub(pending.sent));
        if let Some(count) = self.totals.by_status.get_mut(usize::from(status)) {
            *count += 1;
        }
    }

    /// A request can have no answer any more.
    pub fn failed(&mut self, pending: Pending, now: u64, reason: Reason) {
        if !self.counts(pending) {
            return;
        }
        self.slice.failed += 1;
        self.totals.failed[reason as usize] += 1;
        if reason == Reason::Timeout {
            self.waited(pending.intended, Some(pending.sent), now);
        }
    }

    /// A request has no end when the tool stops.
    pub fn left(&mut self, pending: Pending, now: u64) {
        if self.counts(pending) {
            self.totals.in_flight += 1;
            self.waited(pending.intended, Some(pending.sent), now);
        }
    }

    /// A request was never sent.
    pub fn unsent(&mut self, intended: u64, now: u64) {
        if intended >= self.start {
            self.totals.unsent += 1;
            self.waited(intended, None, now);
        }
    }

    /// A lower bound is nearer to the truth than silence.
    fn waited(&mut self, intended: u64, sent: Option<u64>, now: u64) {
        self.slice.corrected.saturating_record(now.saturating_sub(intended));
        if let (Some(sent), Some(uncorrected)) = (sent, &mut self.slice.uncorrected) {
            uncorrected.saturating_record(now.saturating_sub(sent));
        }
    }

    /// Bytes of the measured time.
    #[inline]
    pub fn bytes(&mut self, now: u64, sent: u64, received: usize) {
        if now >= self.start {
            self.slice.sent_bytes += sent;
            self.slice.received_bytes += received as u64;
        }
    }

    /// A part of an answer's body.
    #[inline]
    pub fn body(&mut self, now: u64, bytes: usize) {
        if now >= self.start {
            self.totals.body_bytes += bytes as u64;
        }
    }

    /// Messages of the measured time.
    pub fn messages(&mut self, now: u64, sent: u64, received: u64) {
        if now >= self.start {
            self.totals.sent_messages += sent;
            self.slice.received_messages += received;
        }
    }
}

/// The values of a histogram of nanoseconds as a result shows them.
pub fn distribution(histogram: &Histogram<u64>) -> Distribution {
    if histogram.is_empty() {
        return Distribution::default();
    }
    let us = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
    // A bucket's upper edge may lie above the largest value.
    let at = |quantile: f64| us(histogram.value_at_quantile(quantile).min(histogram.max()));
    let curve = histogram
        .iter_quantiles(5)
        .map(|value| CurvePoint {
            quantile: value.quantile(),
            us: us(value.value_iterated_to().min(histogram.max())),
        })
        .collect();
    let buckets = histogram
        .iter_log(1000, 1.05)
        .filter(|value| value.count_since_last_iteration() > 0)
        .map(|value| Bucket {
            to_us: us(value.value_iterated_to()),
            count: value.count_since_last_iteration(),
        })
        .collect();
    Distribution {
        count: histogram.len(),
        min_us: us(histogram.min()),
        mean_us: histogram.mean() / 1000.0,
        deviation_us: histogram.stdev() / 1000.0,
        p50_us: at(0.5),
        p75_us: at(0.75),
        p90_us: at(0.9),
        p95_us: at(0.95),
        p99_us: at(0.99),
        p999_us: at(0.999),
        p9999_us: at(0.9999),
        max_us: us(histogram.max()),
        curve,
        buckets,
    }
}

/// The share of a core that so much CPU is over a time.
pub fn share(cpu: u64, time: u64) -> f64 {
    clock::seconds(cpu) / clock::seconds(time).max(1e-9)
}
