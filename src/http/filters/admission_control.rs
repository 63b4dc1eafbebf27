//! Turning requests away before the upstream fails them (`envoy.filters.http.admission_control`), by how many of the
//! last ones succeeded (envoyproxy.io: admission control).
//!
//! Comes in: requests, and what came of them. Goes out: 503 with a probability that grows as fewer succeed. What was
//! turned away is no sample. The samples are those of the process; Envoy keeps them for each of its workers.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_control_api::pb::envoy::extensions::filters::http::admission_control::v3 as pb;

use super::chain::{active, At, Step};
use crate::config::compile::duration_or;
use crate::config::problems::Problems;
use crate::config::runtime_value::{RuntimeNumber, RuntimeSwitch};
use crate::config::Known;
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::{is_grpc_type, ResponseHead};
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `http.<stat_prefix>.admission_control.`.
    pub struct AdmissionControlStats {
        counters { rq_rejected, rq_success, rq_failure }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: AdmissionControlStats,
    enabled: RuntimeSwitch,
    aggression: RuntimeNumber,
    success_rate: RuntimeNumber,
    requests: RuntimeNumber,
    most: RuntimeNumber,
    /// Statuses that are a success.
    http: Box<[Range<u16>]>,
    /// Statuses of gRPC that are, one bit each.
    grpc: u32,
    window: Mutex<Window>,
}

/// Statuses of gRPC that do not speak against the upstream: OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, NOT_FOUND,
/// ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, UNAUTHENTICATED.
const GRPC_SUCCESS: u32 =
    1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 16;
/// The probability has so many steps.
const STEPS: u64 = 10_000;

impl Config {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::AdmissionControl, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        use pb::admission_control::EvaluationCriteria;
        let before = problems.count();
        let default = Duration::from_secs(30);
        let window = duration_or(&config.sampling_window, default, "sampling_window", problems);
        let success_rate = RuntimeNumber::of_percent(config.sr_threshold.as_ref(), 95.0);
        if success_rate.default() < 1.0 {
            let message = format!("is {}, must be at least 1", success_rate.default());
            problems.report_at("sr_threshold.default_value.value", message);
        }
        let criteria = match &config.evaluation_criteria {
            Some(EvaluationCriteria::SuccessCriteria(criteria)) => criteria.clone(),
            // Demanded by a field rule.
            None => Default::default(),
        };
        let (http, grpc) = problems.at("success_criteria", |problems| {
            (http_success(&criteria, problems), grpc_success(&criteria, problems))
        });
        (problems.count() == before).then(|| Self {
            stats: AdmissionControlStats::new(&stats.sub("admission_control")),
            enabled: RuntimeSwitch::of(config.enabled.as_ref()),
            aggression: RuntimeNumber::of(config.aggression.as_ref(), 1.0),
            success_rate,
            requests: RuntimeNumber::of_integer(config.rps_threshold.as_ref(), 0),
            most: RuntimeNumber::of_percent(config.max_rejection_probability.as_ref(), 80.0),
            http,
            grpc,
            // As in Envoy, whole seconds count.
            window: Mutex::new(Window::new(Duration::from_secs(window.as_secs()))),
        })
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let runtime = &ex.worker.runtime;
        if !self.enabled.now(runtime) || ex.info.health_check {
            active(ex).forget(at.place);
            return Step::Continue;
        }
        let refused = {
            let mut window = self.window();
            f64::from(window.rate(ex.now)) >= self.requests.now(runtime) && {
                let limits = Limits {
                    aggression: self.aggression.now(runtime),
                    success_rate: self.success_rate.now(runtime) / 100.0,
                    most: self.most.now(runtime) / 100.0,
                };
                limits.refuse(window.counts(ex.now), ex.worker.random())
            }
        };
        if !refused {
            return Step::Continue;
        }
        active(ex).forget(at.place);
        self.stats.rq_rejected.increment(1);
        Step::Reply(Reply::new(503, "denied_by_admission_control"))
    }

    /// The head of a response has come; `ends` says that nothing follows it. Gives itself back where only the trailers
    /// will tell.
    pub(super) fn on_response(
        self: &Arc<Self>,
        head: &ResponseHead,
        ends: bool,
        now: Instant,
    ) -> Option<Arc<Self>> {
        let status = head.fields.get(Known::GrpcStatus);
        let grpc = if ends {
            status.is_some()
        } else {
            let kind = head.fields.get(Known::ContentType).unwrap_or_default();
            head.status == 200 && is_grpc_type(kind)
        };
        match (grpc, status) {
            (true, None) => return Some(self.clone()),
            (true, Some(status)) => self.record(self.is_success(status), now),
            (false, _) => self.record(self.http.iter().any(|range| range.contains(&head.status)), now),
        }
        None
    }

    /// The trailers of a response have come.
    pub(super) fn on_trailers(&self, status: Option<&[u8]>, now: Instant) {
        self.record(status.is_some_and(|status| self.is_success(status)), now);
    }

    fn is_success(&self, grpc_status: &[u8]) -> bool {
        let code: Option<u32> = std::str::from_utf8(grpc_status).ok().and_then(|text| text.parse().ok());
        code.is_some_and(|code| code < 32 && self.grpc & (1 << code) != 0)
    }

    fn record(&self, success: bool, now: Instant) {
        if success { &self.stats.rq_success } else { &self.stats.rq_failure }.increment(1);
        self.window().record(success, now);
    }
}

fn http_success(
    criteria: &pb::admission_control::SuccessCriteria,
    problems: &mut Problems,
) -> Box<[Range<u16>]> {
    let Some(given) = &criteria.http_criteria else { return std::iter::once(0..500).collect() };
    let mut ranges = Vec::new();
    for (index, range) in given.http_success_status.iter().enumerate() {
        let (start, end) = (range.start, range.end);
        let fits = 100 <= start && start < end && end <= 600;
        match (u16::try_from(start), u16::try_from(end)) {
            (Ok(start), Ok(end)) if fits => ranges.push(start..end),
            _ => problems.report_at(
                format_args!("http_criteria.http_success_status[{index}]"),
                format!("{start} to {end} is no range of statuses within 100 and 600"),
            ),
        }
    }
    ranges.into()
}

fn grpc_success(criteria: &pb::admission_control::SuccessCriteria, problems: &mut Problems) -> u32 {
    let Some(given) = &criteria.grpc_criteria else { return GRPC_SUCCESS };
    let mut codes = 0;
    for (index, code) in given.grpc_success_status.iter().enumerate() {
        if *code > 16 {
            let field = format!("grpc_criteria.grpc_success_status[{index}]");
            problems.report_at(field, format!("{code} is no status of gRPC"));
        } else {
            codes |= 1 << code;
        }
    }
    codes
}

/// What a decision depends on; shares are 0 to 1.
#[derive(Debug, Clone, Copy)]
struct Limits {
    aggression: f64,
    success_rate: f64,
    most: f64,
}

impl Limits {
    /// Whether a request that drew `random` is turned away after so many others.
    fn refuse(&self, counts: Counts, random: u64) -> bool {
        let (all, successes) = (counts.requests as f64, counts.successes as f64);
        let mut probability = (all - successes / self.success_rate.min(1.0)) / (all + 1.0);
        // What is not above 0 has no root.
        if probability.is_nan() || probability <= 0.0 {
            return false;
        }
        let aggression = self.aggression.max(1.0);
        if aggression != 1.0 {
            probability = probability.powf(1.0 / aggression);
        }
        STEPS as f64 * probability.min(self.most) > (random % STEPS) as f64
    }
}

/// Requests and how many of them succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    requests: u64,
    successes: u64,
}

/// What came of the requests of the last while, a second a piece.
#[derive(Debug)]
struct Window {
    length: Duration,
    pieces: VecDeque<(Instant, Counts)>,
    all: Counts,
}

impl Window {
    fn new(length: Duration) -> Self {
        Self { length, pieces: VecDeque::new(), all: Counts::default() }
    }

    /// Requests per second, by what is there.
    fn rate(&self, now: Instant) -> u32 {
        let Some((oldest, _)) = self.pieces.front() else { return 0 };
        let seconds = now.saturating_duration_since(*oldest).as_secs().max(1);
        u32::try_from(self.all.requests / seconds).unwrap_or(u32::MAX)
    }

    fn counts(&mut self, now: Instant) -> Counts {
        self.advance(now);
        self.all
    }

    fn record(&mut self, success: bool, now: Instant) {
        self.advance(now);
        let Some((_, newest)) = self.pieces.back_mut() else { return };
        for counts in [newest, &mut self.all] {
            counts.requests += 1;
            counts.successes += u64::from(success);
        }
    }

    /// Forgets what is too old; there is a piece for what is new afterwards.
    fn advance(&mut self, now: Instant) {
        while let Some((from, counts)) = self.pieces.front() {
            if now.saturating_duration_since(*from) < self.length {
                break;
            }
            self.all.requests -= counts.requests;
            self.all.successes -= counts.successes;
            self.pieces.pop_front();
        }
        let fresh = self
            .pieces
            .back()
            .is_some_and(|(from, _)| now.saturating_duration_since(*from) < Duration::from_secs(1));
        if !fresh {
            self.pieces.push_back((now, Counts::default()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_forgets() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut window = Window::new(Duration::from_secs(3));
        assert_eq!((window.rate(start), window.counts(start)), (0, Counts::default()));
        for step in 0..40 {
            window.record(step % 4 != 0, at(f64::from(step) * 0.1));
        }
        // The first second has passed out of it at 3 s.
        assert_eq!(window.counts(at(3.95)), Counts { requests: 30, successes: 23 });
        assert_eq!(window.rate(at(3.95)), 15, "thirty in the two whole seconds");
        assert_eq!(window.counts(at(5.0)), Counts { requests: 10, successes: 8 });
        assert_eq!(window.counts(at(60.0)), Counts::default());
    }

    /// The share that is turned away of ten thousand draws, one of each step.
    fn share(limits: Limits, requests: u64, successes: u64) -> u64 {
        (0..STEPS).filter(|random| limits.refuse(Counts { requests, successes }, *random)).count() as u64
    }

    #[test]
    fn the_fewer_succeed_the_more_are_turned_away() {
        let limits = Limits { aggression: 1.0, success_rate: 0.95, most: 0.8 };
        assert_eq!(share(limits, 0, 0), 0);
        assert_eq!(share(limits, 100, 100), 0);
        assert_eq!(share(limits, 100, 95), 0);
        // (99 - 57 / 0.95) / 100
        assert_eq!(share(limits, 99, 57), 3900);
        assert_eq!(share(limits, 999, 0), 8000, "never more than the limit");
        let all = Limits { most: 1.0, ..limits };
        assert_eq!(share(all, 999, 0), 9990);
        // The square root of 0.39.
        assert_eq!(share(Limits { aggression: 2.0, ..all }, 99, 57), 6245);
        assert_eq!(share(Limits { aggression: 0.1, ..all }, 99, 57), 3900, "at least 1");
    }

    #[test]
    fn what_is_grpc() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc_type(kind.as_bytes()), expected, "{kind}");
        }
    }
}
