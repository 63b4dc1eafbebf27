//! Bodies that share a bandwidth (`envoy.filters.http.bandwidth_limit`): those of requests, of responses, or both.
//!
//! Comes in: requests and responses with a body. Goes out: a [`Throttle`] that it goes through. All bodies of a filter,
//! or of what a route says to it, take from one bucket, in both directions, whatever worker they are on.

mod throttle;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::extensions::filters::http::bandwidth_limit::v3 as pb;
use pb::bandwidth_limit::EnableMode;

use self::throttle::Side;
pub(in crate::http) use self::throttle::Throttle;
use super::chain::{active, At, Step};
use super::{is_over, look_at_download, Encoder};
use crate::config::compile::duration_or;
use crate::config::matcher::number;
use crate::config::problems::Problems;
use crate::config::route::{Override, RouteFilter};
use crate::config::runtime_value::RuntimeSwitch;
use crate::config::Known;
use crate::http::exchange::Exchange;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::stages::Stage;
use crate::policy::token_bucket::TokenBucket;
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `<stat_prefix>.http_bandwidth_limit.`.
    pub struct BandwidthStats {
        counters {
            request_enabled, response_enabled, request_enforced, response_enforced,
            request_incoming_total_size, response_incoming_total_size, request_allowed_total_size,
            response_allowed_total_size,
        }
        gauges {
            request_pending, response_pending, request_incoming_size, response_incoming_size,
            request_allowed_size, response_allowed_size,
        }
        histograms { request_transfer_duration: Milliseconds, response_transfer_duration: Milliseconds }
    }
}

/// Time between two looks at the bucket, unless config says otherwise.
const INTERVAL: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

/// The filter, or what a route has instead (`BandwidthLimit`).
#[derive(Debug)]
pub struct Config {
    requests: bool,
    responses: bool,
    enabled: RuntimeSwitch,
    /// A second's worth of bytes.
    bucket: TokenBucket,
    interval: Duration,
    /// What stands before the names of trailers that tell of delays; `None` = there are none.
    told: Option<Box<str>>,
    stats: BandwidthStats,
}

/// What is to be done to the body of a response.
#[derive(Debug)]
pub(super) struct Turn {
    config: Arc<Config>,
    /// What became of the request's body.
    request: Rc<Cell<Delays>>,
}

/// How long a body took.
#[derive(Debug, Clone, Copy, Default)]
struct Delays {
    /// From its first byte to its last.
    all: Duration,
    /// Waiting for tokens.
    waited: Duration,
}

impl Config {
    /// Compiles `config`, which is of a route if `route`. `None` when a problem was reported.
    pub fn compile(config: &pb::BandwidthLimit, route: bool, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let mode = config.enable_mode();
        let kib = config.limit_kbps.map(|limit| limit.value);
        match kib {
            None if route => problems.report_at("limit_kbps", "is required for a route"),
            None if mode != EnableMode::Disabled => {
                problems.report_at("limit_kbps", "is required where something is limited");
            }
            _ => {}
        }
        let interval = duration_or(&config.fill_interval, INTERVAL, "fill_interval", problems);
        (problems.count() == before).then_some(())?;
        // Above 4 GiB a second there is no limit to speak of.
        let bytes = u32::try_from(kib.unwrap_or(1).saturating_mul(1024)).unwrap_or(u32::MAX);
        let prefix = config.response_trailer_prefix.to_ascii_lowercase();
        let told = if prefix.is_empty() { prefix } else { format!("{prefix}-") };
        Some(Self {
            requests: matches!(mode, EnableMode::Request | EnableMode::RequestAndResponse),
            responses: matches!(mode, EnableMode::Response | EnableMode::RequestAndResponse),
            enabled: RuntimeSwitch::of(config.runtime_enabled.as_ref()),
            bucket: TokenBucket::new(bytes, bytes, SECOND, std::time::Instant::now()),
            interval,
            told: config.enable_response_trailers.then(|| told.into()),
            stats: BandwidthStats::new(&Scope::raw(&config.stat_prefix).sub("http_bandwidth_limit")),
        })
    }

    /// What is to be done to the response.
    pub(super) fn encoder(config: &Arc<Self>, over: Option<&Override>) -> Turn {
        let said = over.and_then(|over| over.levels.first());
        let config = match said.map(|said| &**said) {
            Some(RouteFilter::BandwidthLimit(own)) => own,
            _ => config,
        };
        Turn { config: config.clone(), request: Rc::default() }
    }
}

/// The filter's turn with a request: what it does to the response has been noted, with what a route says.
pub(super) fn on_request(ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
    let encoders = ex.filters.as_ref().map(|active| active.encoders.iter()).into_iter().flatten();
    let turn = encoders.filter(|(place, _)| *place == at.place).find_map(|(_, encoder)| match encoder {
        Encoder::BandwidthLimit(turn) => Some(turn),
        _ => None,
    });
    let Some(Turn { config, request }) = turn.map(|turn| &**turn) else { return Step::Continue };
    if !config.requests || !config.enabled.now(&ex.worker.runtime) {
        return Step::Continue;
    }
    config.stats.request_enabled.increment(1);
    if is_over(ex) || ex.request.as_ref().is_some_and(RequestHead::opens_tunnel) {
        return Step::Continue;
    }
    let throttle = Throttle::new(config, Side::Request, request);
    let taken = active(ex).body.take().unwrap_or_default();
    ex.upload.process(Stage::Throttle(Box::new(throttle)), taken);
    Step::Continue
}

impl Turn {
    /// A response's head passes; `ends` says that nothing follows it, `own` that it is an answer of our own.
    pub(super) fn on_response(&self, ex: &mut Exchange<'_>, head: &ResponseHead, ends: bool, own: bool) {
        let config = &self.config;
        if !config.responses || !config.enabled.now(&ex.worker.runtime) {
            return;
        }
        config.stats.response_enabled.increment(1);
        if own && !ends {
            // Those are short, and pass at once.
            let length = head.fields.get(Known::ContentLength).and_then(number::<u64>).unwrap_or(0);
            config.stats.response_incoming_total_size.increment(length);
            config.stats.response_allowed_total_size.increment(length);
        } else if !ends {
            let throttle = Throttle::new(config, Side::Response, &self.request);
            look_at_download(ex, Stage::Throttle(Box::new(throttle)));
        }
    }
}
