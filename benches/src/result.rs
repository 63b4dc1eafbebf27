//! What a run of the load generator found, as one serializable value: it is printed, written as JSON, drawn, and
//! compared with others. Everything that happens to a request ends in exactly one count:
//!
//! `scheduled = sent + unsent` and `sent = answered + failed + in_flight`.
//!
//! Durations are microseconds (`_us`), seconds (`_s`) or nanoseconds (`_ns`) as their names say; latencies have 3
//! significant digits. Fields are only ever added; [`FORMAT`] changes when one changes its meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the JSON that [`RunResult`] is written as.
pub const FORMAT: u32 = 1;

/// One run against one target.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunResult {
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// What the plots and tables call this run (`--name`; by default protocol, target and schedule).
    pub name: String,
    /// Version of the tool.
    pub version: String,
    /// Start of the measured time, seconds since 1970.
    pub started_unix_s: f64,
    /// What was asked for.
    pub work: Work,
    /// Whether the run was ended early by a signal. The figures are then those of [`RunResult::measured_s`].
    pub interrupted: bool,
    /// Length of the measured time: warm-up and the wait for the last answers are not in it.
    pub measured_s: f64,
    /// Where every request went.
    pub requests: Requests,
    /// Answers by status: `200`, or for gRPC `grpc-0`; protocols without a status use `ok`.
    pub by_status: BTreeMap<String, u64>,
    /// Connections and handshakes.
    pub connections: Connections,
    /// Bytes and messages.
    pub traffic: Traffic,
    /// Rates over the measured time.
    pub rates: Rates,
    /// Times of requests.
    pub latency: Latency,
    /// One entry for every interval of the measured time, in order.
    pub series: Vec<Interval>,
    /// What the tool itself cost.
    pub tool: ToolCost,
    /// The trials of a search for the highest rate, in order; empty without a search. The rest of the result is then
    /// that of the best trial.
    pub search: Vec<Trial>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Work {
    /// `http1`, `http2`, `grpc-unary`, `grpc-server-stream`, `grpc-client-stream`, `grpc-bidi`, `websocket`, `tcp-rr`,
    /// `tcp-upload`, `tcp-download` or `handshake`.
    pub protocol: String,
    /// The target as it was given.
    pub target: String,
    /// `none`, `tls` or `mtls`.
    pub tls: String,
    /// When requests are sent.
    pub schedule: Schedule,
    /// Connections over all threads.
    pub connections: u32,
    /// Requests at a time on one connection.
    pub streams: u32,
    /// Messages of a streaming gRPC request; 1 elsewhere.
    pub messages: u32,
    /// Bytes of a request's body, or of its message.
    pub request_bytes: u64,
    /// Requests after which the client closes a connection; 0 for never.
    pub requests_per_connection: u64,
    /// Threads of the generator.
    pub threads: u32,
    /// Cores that the threads were pinned to, in order; empty for none.
    pub pinned: Vec<usize>,
    /// Seconds asked for.
    pub duration_s: f64,
    /// Seconds before the measured time whose requests are not counted.
    pub warmup_s: f64,
    /// The longest wait for one answer.
    pub timeout_s: f64,
}

/// When requests are sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Schedule {
    /// Closed loop: every connection (or stream) sends when it has the answer to the one before.
    #[default]
    Closed,
    /// Open loop, evenly spaced.
    Constant {
        /// Requests per second.
        rate: f64,
    },
    /// Open loop, exponentially distributed gaps.
    Poisson {
        /// Mean requests per second.
        rate: f64,
    },
    /// Open loop, a rate that changes evenly over the run.
    Ramp {
        /// Requests per second at the start.
        from: f64,
        /// Requests per second at the end.
        to: f64,
    },
    /// Open loop, rates one after the other, each for an equal part of the run.
    Steps {
        /// Requests per second of each step.
        rates: Vec<f64>,
    },
}

/// Where every request went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Requests that the schedule wanted within the measured time; in a closed loop those sent.
    pub scheduled: u64,
    /// Requests handed to a connection.
    pub sent: u64,
    /// Requests with a whole answer, whatever its status.
    pub answered: u64,
    /// Of those answered: whose status is a success (2xx or 3xx, gRPC 0, or any answer where there is no status).
    pub successful: u64,
    /// Requests that were sent and can have no answer any more.
    pub failed: u64,
    /// The same by reason: `closed`, `reset`, `timeout`, `protocol`, `stream-reset`, `goaway`, `tls`, `connect`, `io`.
    pub failed_by_reason: BTreeMap<String, u64>,
    /// The first bytes that were no answer (reason `protocol`), at most 200 of them, escaped; empty if there were none.
    #[serde(default)]
    pub unexpected: String,
    /// Requests that still waited for their answer when the tool stopped waiting.
    pub in_flight: u64,
    /// Requests that were due but found no free connection until the tool stopped waiting.
    pub unsent: u64,
}

impl Requests {
    /// Whether every request is accounted for.
    pub fn balanced(&self) -> bool {
        self.sent == self.answered + self.failed + self.in_flight
            && self.scheduled == self.sent + self.unsent
            && self.failed == self.failed_by_reason.values().sum::<u64>()
    }
}

/// Connections and handshakes. They are counted from the start of the process, warm-up included.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Connections {
    /// Connections that were usable (TLS handshake included).
    pub opened: u64,
    /// Connections that could not be opened.
    pub failed: u64,
    /// The same by reason: `refused`, `timeout`, `tls`, `upgrade`, `closed`, `reset`, `no-port`, `io`.
    pub failed_by_reason: BTreeMap<String, u64>,
    /// Open connections that the peer closed or broke.
    pub lost: u64,
    /// TLS sessions that were resumed.
    pub resumed: u64,
    /// TLS version, suite and key exchange of the last handshake, such as `TLSv1_3 TLS13_AES_256_GCM_SHA384
    /// X25519MLKEM768`; empty without TLS.
    pub tls: String,
    /// From `connect` to the connection.
    pub connect: Distribution,
    /// From there to the end of the TLS handshake.
    pub tls_handshake: Distribution,
}

/// Bytes and messages of the measured time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes given to the socket, before encryption.
    pub sent_bytes: u64,
    /// Bytes taken from the socket, after decryption.
    pub received_bytes: u64,
    /// Bytes of bodies, or of messages, of answers.
    pub body_bytes: u64,
    /// Messages sent on gRPC streams and WebSockets.
    pub sent_messages: u64,
    /// Messages received there.
    pub received_messages: u64,
}

/// Rates over the measured time. What is answered after its end is in [`Requests`] but not in a rate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Answers per second.
    pub answered_per_s: f64,
    /// Requests per second that the schedule wanted; in a closed loop those sent.
    pub offered_per_s: f64,
    /// Bytes sent per second.
    pub sent_bytes_per_s: f64,
    /// Bytes received per second.
    pub received_bytes_per_s: f64,
    /// Messages received per second.
    pub received_messages_per_s: f64,
}

/// Times of requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// From the moment the schedule wanted the request sent to the end of its answer, the wait for a free connection
    /// included: what a user sees who does not wait for others. A request that failed by timeout, never had an answer,
    /// or was never sent counts with the time it had waited by then. In a closed loop there is no such moment, and this
    /// equals [`Latency::uncorrected`].
    pub corrected: Distribution,
    /// From the moment the request was handed to its connection to the end of its answer: what a closed loop sees.
    pub uncorrected: Distribution,
    /// From the moment the request was handed to its connection to the first byte of its answer.
    pub first_byte: Distribution,
}

/// Values of an HDR histogram.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of values; the rest is 0 if this is.
    pub count: u64,
    /// Smallest value, microseconds.
    pub min_us: f64,
    /// Mean, microseconds.
    pub mean_us: f64,
    /// Standard deviation, microseconds.
    pub deviation_us: f64,
    /// Median, microseconds.
    pub p50_us: f64,
    /// 75th percentile, microseconds.
    pub p75_us: f64,
    /// 90th percentile, microseconds.
    pub p90_us: f64,
    /// 95th percentile, microseconds.
    pub p95_us: f64,
    /// 99th percentile, microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, microseconds.
    pub p999_us: f64,
    /// 99.99th percentile, microseconds.
    pub p9999_us: f64,
    /// Largest value, microseconds.
    pub max_us: f64,
    /// The shape for plots: latency by quantile, quantiles ascending, closer together towards 1.
    pub curve: Vec<CurvePoint>,
    /// The shape for sums over runs: counts by value, ascending, buckets of about 5 %, empty ones left out.
    pub buckets: Vec<Bucket>,
}

/// A point of a latency curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Quantile, 0 to 1.
    pub quantile: f64,
    /// Its latency, microseconds.
    pub us: f64,
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Values up to this, microseconds, and above the bucket before.
    pub to_us: f64,
    /// How many.
    pub count: u64,
}

/// A part of the measured time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Interval {
    /// Its start, seconds after the start of the measured time.
    pub start_s: f64,
    /// Its length.
    pub length_s: f64,
    /// Requests sent in it.
    pub sent: u64,
    /// Answers in it.
    pub answered: u64,
    /// Failures in it.
    pub failed: u64,
    /// Bytes received in it.
    pub received_bytes: u64,
    /// Median of the corrected latencies of its answers, microseconds; 0 if there are none.
    pub p50_us: f64,
    /// 90th percentile of the same.
    pub p90_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// Largest of the same.
    pub max_us: f64,
}

/// What the tool itself cost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ToolCost {
    /// CPU seconds of the generator's threads within the measured time (of `measured_s`, without warm-up).
    pub cpu_s: f64,
    /// CPU microseconds for each answer, 0 without answers.
    pub cpu_us_per_answer: f64,
    /// CPU seconds of the whole process from its start, start-up and report preparation included.
    pub process_cpu_s: f64,
    /// Share of a core that the busiest thread used: near 1 the tool was the limit, and the figures are its own.
    pub busiest_thread: f64,
}

/// One trial of a search for the highest rate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trial {
    /// Requests per second tried.
    pub rate: f64,
    /// Requests per second answered.
    pub answered_per_s: f64,
    /// 99th percentile of the corrected latencies, microseconds.
    pub p99_us: f64,
    /// Share of the requests that failed, were not sent or had no success.
    pub bad_share: f64,
    /// Whether the goal was kept.
    pub kept: bool,
}
