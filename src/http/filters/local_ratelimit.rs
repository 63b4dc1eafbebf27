//! A limit of requests for this process (`envoy.filters.http.local_ratelimit`): one token bucket for each configuration,
//! that of the filter or of a route.
//!
//! Comes in: a request. Goes out: nothing while there are tokens, else 429, or only a number that is counted.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use outrigger_control_api::pb::envoy::extensions::common::ratelimit::v3::XRateLimitHeadersRfcVersion;
use outrigger_control_api::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;

use super::chain::{At, Step};
use super::token_bucket::{Level, TokenBucket};
use super::Encoder;
use crate::config::compile::{duration, u32_or};
use crate::config::matcher::RuntimeFraction;
use crate::config::problems::Problems;
use crate::config::route::{HeaderOps, RouteFilter};
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::ResponseHead;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::ResponseFlags;

crate::stats! {
    /// `<stat_prefix>.http_local_rate_limit.`.
    pub struct LocalRateLimitStats {
        counters { enabled, enforced, ok, rate_limited, shadow_mode }
        gauges {}
        histograms {}
    }
}

/// Shortest time in which tokens come.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// The filter, or what a route has instead.
#[derive(Debug)]
pub struct Config {
    stats: LocalRateLimitStats,
    status: u16,
    /// `None`: there is no limit.
    bucket: Option<TokenBucket>,
    enabled: Option<RuntimeFraction>,
    enforced: Option<RuntimeFraction>,
    /// Changes to the request where the limit is not enforced.
    request_headers: HeaderOps,
    /// Changes to the answer of a request that was limited.
    response_headers: HeaderOps,
    tell: bool,
    exhausted: bool,
}

impl Config {
    /// Compiles `config`, which is of a route if `route`. `None` when a problem was reported.
    pub fn compile(config: &pb::LocalRateLimit, route: bool, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let mut bucket = None;
        match &config.token_bucket {
            None if route => problems.report_at("token_bucket", "is required for a route"),
            None => {}
            Some(config) => {
                problems.at("token_bucket", |problems| {
                    let interval = duration(&config.fill_interval, "fill_interval", problems);
                    let interval = interval.unwrap_or(Duration::ZERO);
                    if interval < MIN_INTERVAL {
                        problems.report_at("fill_interval", "must be at least 0.05s");
                    }
                    let tokens = u32_or(config.tokens_per_fill, 1);
                    bucket = Some(TokenBucket::new(config.max_tokens, tokens, interval, Instant::now()));
                });
            }
        }
        let mut ops = |list, field| HeaderOps::compile(list, field, &[], "", problems).unwrap_or_default();
        let request_headers =
            ops(&config.request_headers_to_add_when_not_enforced, "request_headers_to_add_when_not_enforced");
        let response_headers = ops(&config.response_headers_to_add, "response_headers_to_add");
        let status = config.status.as_ref().map_or(429, |status| status.code);
        let prefix = Scope::raw("").leading(
            "envoy_local_http_ratelimit_prefix",
            &config.stat_prefix,
            "http_local_rate_limit",
        );
        (problems.count() == before).then(|| Self {
            stats: LocalRateLimitStats::new(&prefix),
            // As in Envoy, a limit is never told as a success.
            status: u16::try_from(status).ok().filter(|status| (400..600).contains(status)).unwrap_or(429),
            bucket,
            enabled: config.filter_enabled.as_ref().map(RuntimeFraction::of),
            enforced: config.filter_enforced.as_ref().map(RuntimeFraction::of),
            request_headers,
            response_headers,
            tell: config.enable_x_ratelimit_headers() == XRateLimitHeadersRfcVersion::DraftVersion03,
            exhausted: config.rate_limited_as_resource_exhausted,
        })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        match at.said() {
            Some(RouteFilter::LocalRateLimit(own)) => own.limit(ex, at),
            _ => self.limit(ex, at),
        }
    }

    fn limit(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let drawn =
            |share: &Option<RuntimeFraction>| share.as_ref().is_some_and(|share| ex.worker.draws_from(share));
        if !drawn(&self.enabled) {
            return Step::Continue;
        }
        self.stats.enabled.increment(1);
        let Some(bucket) = &self.bucket else {
            self.stats.ok.increment(1);
            return Step::Continue;
        };
        let taken = bucket.take(ex.now);
        let enforced = !taken && drawn(&self.enforced);
        if self.tell {
            at.encode(ex, Encoder::LocalRateLimit(bucket.level(ex.now)));
        }
        if taken {
            self.stats.ok.increment(1);
            return Step::Continue;
        }
        self.stats.rate_limited.increment(1);
        if !enforced {
            if let Some(request) = &mut ex.request {
                self.request_headers.apply_to_request(request, &ex.info);
            }
            return Step::Continue;
        }
        self.stats.enforced.increment(1);
        ex.info.flags.insert(ResponseFlags::RL);
        let reply = Reply::new(self.status, "local_rate_limited").body("local_rate_limited");
        let reply = reply.grpc_status(self.exhausted.then_some(Cow::Borrowed("8")));
        Step::Reply(reply.changed(self.response_headers.clone()))
    }
}

impl Level {
    pub(super) fn on_response(&self, head: &mut ResponseHead) {
        let mut digits = itoa::Buffer::new();
        head.fields.push(b"x-ratelimit-limit", digits.format(self.max).as_bytes());
        head.fields.push(b"x-ratelimit-remaining", digits.format(self.left).as_bytes());
        head.fields.push(b"x-ratelimit-reset", digits.format(self.reset).as_bytes());
    }
}
