//! Faults that are injected (`envoy.filters.http.fault`): delays, and answers instead of the upstream's.
//!
//! Comes in: a request's head. Goes out: a pause, an answer, or nothing, by chance. A delay may be followed by an answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use outrigger_control_api::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use outrigger_control_api::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit;
use outrigger_control_api::pb::envoy::extensions::filters::http::fault::v3 as pb;
use outrigger_control_api::pb::google::protobuf::Struct;

use super::chain::{active, At, Step, Wait};
use crate::config::compile::duration;
use crate::config::matcher::{number, Fraction, HeaderMatcher};
use crate::config::problems::Problems;
use crate::config::route::RouteFilter;
use crate::config::{HeaderKey, HeaderView, Known};
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::RequestHead;
use crate::http::worker::Worker;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::ResponseFlags;

crate::stats! {
    /// `http.<stat_prefix>.fault.`.
    pub struct FaultStats {
        counters { aborts_injected, delays_injected, faults_overflow, response_rl_injected }
        gauges { active_faults }
        histograms {}
    }
}

/// Most clients' clusters that are counted apart.
const MAX_CLUSTERS: usize = 1000;

/// The filter.
#[derive(Debug)]
pub struct Config {
    settings: Settings,
    stats: FaultStats,
    /// How many faults are active.
    active: Arc<std::sync::atomic::AtomicU64>,
    by_cluster: ByCluster,
}

/// Aborts and delays by the cluster that the client says it is of.
struct ByCluster {
    scope: Scope,
    counters: Mutex<HashMap<Box<str>, (Counter, Counter)>>,
}

impl std::fmt::Debug for ByCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ByCluster")
    }
}

/// `HTTPFault`.
#[derive(Debug)]
pub struct Settings {
    delay: Option<(Delay, Fraction)>,
    abort: Option<(Abort, Fraction)>,
    limit: Option<(Limit, Fraction)>,
    body: Bytes,
    upstream_cluster: Box<str>,
    headers: Box<[HeaderMatcher]>,
    nodes: Box<[Box<[u8]>]>,
    max_active: Option<u32>,
    keys: Keys,
    count_clusters: bool,
    metadata: Option<Struct>,
}

/// Names of runtime values.
#[derive(Debug)]
struct Keys {
    delay_percent: Box<str>,
    abort_percent: Box<str>,
    limit_percent: Box<str>,
    delay_duration: Box<str>,
    abort_http: Box<str>,
    abort_grpc: Box<str>,
    max_active: Box<str>,
}

#[derive(Debug)]
enum Delay {
    Fixed(Duration),
    /// `x-envoy-fault-delay-request`.
    Header,
}

/// How fast responses are, in KiB a second.
#[derive(Debug)]
enum Limit {
    Fixed(u64),
    /// `x-envoy-fault-throughput-response`.
    Header,
}

#[derive(Debug)]
enum Abort {
    Http(u32),
    Grpc(u32),
    /// `x-envoy-fault-abort-request` and `-grpc-request`.
    Header,
}

struct Headers {
    delay: HeaderKey,
    delay_percentage: HeaderKey,
    abort: HeaderKey,
    abort_grpc: HeaderKey,
    abort_percentage: HeaderKey,
    limit: HeaderKey,
    limit_percentage: HeaderKey,
}

static HEADERS: LazyLock<Headers> = LazyLock::new(|| Headers {
    delay: HeaderKey::new("x-envoy-fault-delay-request"),
    delay_percentage: HeaderKey::new("x-envoy-fault-delay-request-percentage"),
    abort: HeaderKey::new("x-envoy-fault-abort-request"),
    abort_grpc: HeaderKey::new("x-envoy-fault-abort-grpc-request"),
    abort_percentage: HeaderKey::new("x-envoy-fault-abort-request-percentage"),
    limit: HeaderKey::new("x-envoy-fault-throughput-response"),
    limit_percentage: HeaderKey::new("x-envoy-fault-throughput-response-percentage"),
});

/// A fault that counts as active while it lives.
#[derive(Debug)]
pub(super) struct Active {
    count: Arc<std::sync::atomic::AtomicU64>,
    _gauge: Held,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.count.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Settings {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::HttpFault, problems: &mut Problems) -> Option<Self> {
        use fault_rate_limit::LimitType;
        use pb::fault_abort::ErrorType;

        let before = problems.count();
        let delay = config.delay.as_ref().and_then(|config| {
            problems.at("delay", |problems| {
                let delay = match config.fault_delay_secifier.as_ref()? {
                    FaultDelaySecifier::FixedDelay(fixed) => {
                        Delay::Fixed(duration(&Some(*fixed), "fixed_delay", problems)?)
                    }
                    FaultDelaySecifier::HeaderDelay(_) => Delay::Header,
                };
                Some((delay, Fraction::of(config.percentage.as_ref())))
            })
        });
        let abort = config.abort.as_ref().and_then(|config| {
            let abort = match config.error_type.as_ref()? {
                ErrorType::HttpStatus(status) => Abort::Http(*status),
                ErrorType::GrpcStatus(status) => Abort::Grpc(*status),
                ErrorType::HeaderAbort(_) => Abort::Header,
            };
            Some((abort, Fraction::of(config.percentage.as_ref())))
        });
        let limit = config.response_rate_limit.as_ref().and_then(|config| {
            let limit = match config.limit_type.as_ref()? {
                LimitType::FixedLimit(fixed) => Limit::Fixed(fixed.limit_kbps),
                LimitType::HeaderLimit(_) => Limit::Header,
            };
            Some((limit, Fraction::of(config.percentage.as_ref())))
        });
        let headers = HeaderMatcher::compile_all(&config.headers, "headers", problems);
        if problems.count() > before {
            return None;
        }
        let body = config.abort.as_ref().map(|abort| abort.response_body.as_str()).unwrap_or_default();
        let key = |own: &str, default: &str| if own.is_empty() { default.into() } else { own.into() };
        Some(Self {
            delay,
            abort,
            limit,
            body: Bytes::copy_from_slice(
                if body.is_empty() { "fault filter abort" } else { body }.as_bytes(),
            ),
            upstream_cluster: config.upstream_cluster.as_str().into(),
            headers: headers?,
            nodes: config.downstream_nodes.iter().map(|node| node.as_bytes().into()).collect(),
            max_active: config.max_active_faults.map(|max| max.value),
            keys: Keys {
                delay_percent: key(&config.delay_percent_runtime, "fault.http.delay.fixed_delay_percent"),
                abort_percent: key(&config.abort_percent_runtime, "fault.http.abort.abort_percent"),
                delay_duration: key(&config.delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
                limit_percent: key(
                    &config.response_rate_limit_percent_runtime,
                    "fault.http.rate_limit.response_percent",
                ),
                abort_http: key(&config.abort_http_status_runtime, "fault.http.abort.http_status"),
                abort_grpc: key(&config.abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
                max_active: key(&config.max_active_faults_runtime, "fault.http.max_active_faults"),
            },
            count_clusters: !config.disable_downstream_cluster_stats,
            metadata: config.filter_metadata.clone(),
        })
    }

    /// Whether the request is one for faults.
    fn concerns(&self, request: &RequestHead, ex: &Exchange<'_>, at: &At<'_>) -> bool {
        let meant = |cluster: &str| *cluster == *self.upstream_cluster;
        (self.upstream_cluster.is_empty() || at.course.with_cluster(ex, meant) == Some(true))
            && (self.nodes.is_empty()
                || request
                    .fields
                    .get(Known::XEnvoyDownstreamServiceNode)
                    .is_some_and(|node| self.nodes.iter().any(|one| **one == *node)))
            && self.headers.iter().all(|matcher| matcher.matches(request))
    }

    /// How long the request is delayed, if it is.
    fn delay(&self, request: &RequestHead, worker: &Worker) -> Option<Duration> {
        let (delay, share) = self.delay.as_ref()?;
        let header = matches!(delay, Delay::Header);
        let share = asked(*share, request, header.then_some(&HEADERS.delay_percentage));
        if !drawn(share, &self.keys.delay_percent, "delay.fixed_delay_percent", request, worker) {
            return None;
        }
        let millis = match delay {
            Delay::Fixed(fixed) => u64::try_from(fixed.as_millis()).unwrap_or(u64::MAX),
            Delay::Header => number(request.first(&HEADERS.delay)?)?,
        };
        let millis = told(millis, &self.keys.delay_duration, "delay.fixed_duration_ms", request, worker);
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    /// How fast the response may be in KiB a second, if it is slowed down.
    fn limit(&self, request: &RequestHead, worker: &Worker) -> Option<u64> {
        let (limit, share) = self.limit.as_ref()?;
        let header = matches!(limit, Limit::Header);
        let share = asked(*share, request, header.then_some(&HEADERS.limit_percentage));
        let share = worker.runtime.load().fraction(&self.keys.limit_percent).unwrap_or(share);
        if !worker.draws(share) {
            return None;
        }
        let rate = match limit {
            Limit::Fixed(rate) => *rate,
            Limit::Header => number(request.first(&HEADERS.limit)?)?,
        };
        (rate > 0).then_some(rate)
    }

    /// The status of HTTP, and of gRPC, with which the request is answered, if it is.
    fn abort(&self, request: &RequestHead, worker: &Worker) -> Option<(u16, Option<u32>)> {
        let (abort, share) = self.abort.as_ref()?;
        let header = matches!(abort, Abort::Header);
        let share = asked(*share, request, header.then_some(&HEADERS.abort_percentage));
        if !drawn(share, &self.keys.abort_percent, "abort.abort_percent", request, worker) {
            return None;
        }
        let header = |key| request.first(key).and_then(number::<u64>);
        let http = match abort {
            Abort::Http(status) => Some(u64::from(*status)),
            Abort::Grpc(_) => None,
            Abort::Header => header(&HEADERS.abort).filter(|status| (200..600).contains(status)),
        };
        if let Some(status) = http {
            let status = told(status, &self.keys.abort_http, "abort.http_status", request, worker);
            // What runtime says need not be a status.
            let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
            return Some((status.unwrap_or(503), None));
        }
        let grpc = match abort {
            Abort::Grpc(status) => u64::from(*status),
            _ => header(&HEADERS.abort_grpc)?,
        };
        let grpc = told(grpc, &self.keys.abort_grpc, "abort.grpc_status", request, worker);
        Some((200, Some(u32::try_from(grpc).unwrap_or(u32::MAX))))
    }
}

/// The share, or the lesser one that the client asks for.
fn asked(share: Fraction, request: &RequestHead, key: Option<&HeaderKey>) -> Fraction {
    let wanted = key.and_then(|key| request.first(key)).and_then(number::<u32>);
    wanted.map_or(share, |wanted| share.at_most(wanted))
}

/// The cluster that the client says it is of.
fn client_cluster(request: &RequestHead) -> Option<&str> {
    let name = request.fields.get(Known::XEnvoyDownstreamServiceCluster)?;
    std::str::from_utf8(name).ok().filter(|name| !name.is_empty())
}

/// The runtime key for requests of the client's cluster.
fn cluster_key(request: &RequestHead, last: &str) -> Option<String> {
    client_cluster(request).map(|cluster| {
        let mut key = String::with_capacity(64);
        // Writing to a String cannot fail.
        let _ = write!(key, "fault.http.{cluster}.{last}");
        key
    })
}

/// Whether the request falls into the share, or that of its client's cluster.
fn drawn(share: Fraction, key: &str, last: &str, request: &RequestHead, worker: &Worker) -> bool {
    let runtime = worker.runtime.load();
    let own = runtime.fraction(key).unwrap_or(share);
    if worker.draws(own) {
        return true;
    }
    cluster_key(request, last).is_some_and(|key| worker.draws(runtime.fraction(&key).unwrap_or(share)))
}

/// The number that runtime has instead of `value`.
fn told(value: u64, key: &str, last: &str, request: &RequestHead, worker: &Worker) -> u64 {
    let runtime = worker.runtime.load();
    // Saturates.
    let told = |key: &str| runtime.number(key).map(|number| number as u64);
    let of_cluster = cluster_key(request, last).and_then(|key| told(&key));
    of_cluster.or_else(|| told(key)).unwrap_or(value)
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's. `None` when a problem was reported.
    pub fn compile(config: &pb::HttpFault, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        let scope = stats.sub("fault");
        Some(Self {
            settings: Settings::compile(config, problems)?,
            stats: FaultStats::new(&scope),
            active: Arc::default(),
            by_cluster: ByCluster { scope, counters: Mutex::default() },
        })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let settings = match at.said() {
            Some(RouteFilter::Fault(settings)) => settings,
            _ => &self.settings,
        };
        let Some(request) = &ex.request else { return Step::Continue };
        if !at.resumed {
            if settings.delay.is_none() && settings.abort.is_none() && settings.limit.is_none() {
                return Step::Continue;
            }
            if !settings.concerns(request, ex, at) {
                return Step::Continue;
            }
            if let Some(rate) = settings.limit(request, ex.worker) {
                if self.begin(settings, ex) {
                    self.stats.response_rl_injected.increment(1);
                    active(ex).slow = Some(rate);
                }
            }
            let Some(request) = &ex.request else { return Step::Continue };
            if let Some(delay) = settings.delay(request, ex.worker) {
                if self.begin(settings, ex) {
                    self.count(settings, ex, |stats| &stats.delays_injected, |(delays, _)| delays);
                    ex.info.flags.insert(ResponseFlags::DI);
                    self.note(settings, ex, at);
                    return Step::Wait(Wait::Until(std::time::Instant::now() + delay));
                }
            }
        }
        let Some(request) = &ex.request else { return Step::Continue };
        let Some((status, grpc)) = settings.abort(request, ex.worker) else { return Step::Continue };
        if !self.begin(settings, ex) {
            return Step::Continue;
        }
        self.count(settings, ex, |stats| &stats.aborts_injected, |(_, aborts)| aborts);
        ex.info.flags.insert(ResponseFlags::FI);
        self.note(settings, ex, at);
        let mut reply = Reply::new(status, "fault_filter_abort");
        reply.body = settings.body.clone();
        Step::Reply(reply.grpc_status(grpc.map(|status| Cow::Owned(status.to_string()))))
    }

    /// One more fault is active; `false` when there are as many as there may be. A request has one at most.
    fn begin(&self, settings: &Settings, ex: &mut Exchange<'_>) -> bool {
        use std::sync::atomic::Ordering;

        if ex.filters.as_ref().is_some_and(|active| active.fault.is_some()) {
            return true;
        }
        let told = ex.worker.runtime.load().number(&settings.keys.max_active).map(|number| number as u64);
        let max = told.or(settings.max_active.map(u64::from)).unwrap_or(u64::MAX);
        if self.active.load(Ordering::Relaxed) >= max {
            self.stats.faults_overflow.increment(1);
            return false;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        let gauge = Held::new(&self.stats.active_faults);
        active(ex).fault = Some(Active { count: self.active.clone(), _gauge: gauge });
        true
    }

    fn count(
        &self,
        settings: &Settings,
        ex: &Exchange<'_>,
        whole: fn(&FaultStats) -> &Counter,
        part: fn(&(Counter, Counter)) -> &Counter,
    ) {
        whole(&self.stats).increment(1);
        let Some(cluster) = ex.request.as_ref().and_then(client_cluster).filter(|_| settings.count_clusters)
        else {
            return;
        };
        let ByCluster { scope, counters } = &self.by_cluster;
        let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = counters.get(cluster) {
            return part(known).increment(1);
        }
        if counters.len() < MAX_CLUSTERS {
            let scope = scope.sub(cluster);
            let new = (scope.counter("delays_injected"), scope.counter("aborts_injected"));
            part(&new).increment(1);
            counters.insert(cluster.into(), new);
        }
    }

    /// What logs are to know of it.
    fn note(&self, settings: &Settings, ex: &mut Exchange<'_>, at: &At<'_>) {
        if let Some(metadata) = &settings.metadata {
            let all = ex.info.metadata.get_or_insert_default();
            all.insert(at.name.text().to_string(), metadata.clone());
        }
    }
}
