//! A limit of requests for this process (`envoy.filters.http.local_ratelimit`): for each configuration, that of the filter
//! or of a route, one token bucket for all requests, and one for each descriptor that it names.
//!
//! Comes in: a request. Goes out: nothing while there are tokens, else 429, or only a number that is counted.

use std::borrow::Cow;
use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::common::ratelimit::v3::{
    VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use outrigger_control_api::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;

use super::chain::{At, Step};
use super::ratelimit::{self, HostLimits};
use super::Encoder;
use crate::config::compile::bool_or;
use crate::config::matcher::RuntimeFraction;
use crate::config::problems::Problems;
use crate::config::route::{HeaderOps, RateLimits, RouteFilter};
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::ResponseHead;
use crate::policy::token_bucket::{Level, TokenBucket};
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
    /// Buckets by descriptor, the slowest first.
    named: Box<[(Entries, TokenBucket)]>,
    /// Requests of a descriptor take from the bucket for all, too.
    always: bool,
    /// What descriptors are made of, unless the route says it.
    limits: Option<Arc<RateLimits>>,
    stage: u32,
    host: HostLimits,
}

/// The keys and values of a descriptor.
type Entries = Box<[(Box<str>, Box<str>)]>;

impl Config {
    /// Compiles `config`, which is of a route if `route`. `None` when a problem was reported.
    pub fn compile(config: &pb::LocalRateLimit, route: bool, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let mut bucket = None;
        match &config.token_bucket {
            None if route => problems.report_at("token_bucket", "is required for a route"),
            None => {}
            Some(config) => bucket = Some(TokenBucket::compile(config, problems)),
        }
        let mut named = Vec::new();
        for (index, config) in config.descriptors.iter().enumerate() {
            problems.at_index("descriptors", index, |problems| {
                if config.shadow_mode {
                    problems.report_at("shadow_mode", "not supported yet");
                }
                let entries: Entries = (config.entries.iter())
                    .map(|entry| (entry.key.as_str().into(), entry.value.as_str().into()))
                    .collect();
                if entries.iter().any(|(_, value)| value.is_empty()) {
                    problems.report_at("entries", "each needs a value: there are no buckets for any value");
                }
                if named.iter().any(|(known, _)| *known == entries) {
                    problems.report_at("entries", "another descriptor has the same");
                }
                // Demanded by a field rule.
                if let Some(config) = &config.token_bucket {
                    named.push((entries, TokenBucket::compile(config, problems)));
                }
            });
        }
        named.sort_by(|(_, one), (_, other)| other.each().total_cmp(&one.each()));
        let limits = RateLimits::compile(&config.rate_limits, "rate_limits", problems);
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
            named: named.into(),
            always: bool_or(config.always_consume_default_token_bucket, true),
            limits,
            stage: config.stage,
            host: match config.vh_rate_limits() {
                VhRateLimitsOptions::Override => HostLimits::Override,
                VhRateLimitsOptions::Include => HostLimits::Include,
                VhRateLimitsOptions::Ignore => HostLimits::Ignore,
            },
        })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        match at.said() {
            Some(RouteFilter::LocalRateLimit(own)) => own.limit(ex, at),
            _ => self.limit(ex, at),
        }
    }

    /// Takes tokens for a request; says whether there were, and what bucket tells of it.
    fn take(&self, ex: &Exchange<'_>, at: &At<'_>) -> (bool, Option<&TokenBucket>) {
        let mut first = None;
        if !self.named.is_empty() {
            let found = ratelimit::descriptors(ex, at, self.stage, self.limits.as_ref(), self.host);
            for (entries, bucket) in &self.named {
                let Some(descriptor) = found.iter().find(|found| *found.entries == **entries) else {
                    continue;
                };
                if !bucket.take_many(descriptor.hits.unwrap_or(1), ex.now) {
                    return (false, Some(bucket));
                }
                first = first.or(Some(bucket));
            }
        }
        match &self.bucket {
            Some(bucket) if first.is_none() || self.always => {
                let taken = bucket.take(ex.now);
                (taken, if taken { first.or(Some(bucket)) } else { Some(bucket) })
            }
            _ => (true, first),
        }
    }

    fn limit(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let drawn =
            |share: &Option<RuntimeFraction>| share.as_ref().is_some_and(|share| ex.worker.draws_from(share));
        if !drawn(&self.enabled) {
            return Step::Continue;
        }
        self.stats.enabled.increment(1);
        let (taken, bucket) = self.take(ex, at);
        let Some(bucket) = bucket else {
            self.stats.ok.increment(1);
            return Step::Continue;
        };
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
