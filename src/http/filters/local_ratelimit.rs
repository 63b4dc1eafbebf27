//! A limit of requests for this process (`envoy.filters.http.local_ratelimit`): for each configuration, that of the filter
//! or of a route, one token bucket for all requests, and one for each descriptor that it names, or for each value that comes
//! where it leaves a value open.
//!
//! Comes in: a request. Goes out: nothing while there are tokens, else 429, or only a number that is counted.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use outrigger_control_api::pb::envoy::extensions::common::ratelimit::v3::{
    VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use outrigger_control_api::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use smallvec::SmallVec;

use super::chain::{At, Step};
use super::ratelimit::{self, HostLimits};
use super::Encoder;
use crate::config::compile::{bool_or, u32_or};
use crate::config::matcher::RuntimeFraction;
use crate::config::problems::Problems;
use crate::config::route::{Descriptor, DescriptorEntries, HeaderOps, LimitsOf, RateLimits, RouteFilter};
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::ResponseHead;
use crate::policy::token_bucket::{Level, TokenBucket};
use crate::policy::token_buckets::TokenBuckets;
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
    /// Buckets by descriptor.
    named: Box<[Named]>,
    /// Requests of a descriptor take from the bucket for all, too.
    always: bool,
    /// What descriptors are made of, unless the route says it.
    limits: Option<Arc<RateLimits>>,
    stage: u32,
    host: HostLimits,
}

/// The keys and values of a descriptor.
type Entries = Box<[(Box<str>, Box<str>)]>;

/// Limits of requests with a descriptor.
#[derive(Debug)]
struct Named {
    /// An empty value stands for any.
    entries: Entries,
    buckets: Buckets,
    /// Requests beyond are only counted.
    shadow: bool,
}

/// The buckets of a descriptor.
#[derive(Debug)]
enum Buckets {
    One(TokenBucket),
    /// One for each value that comes.
    Each(TokenBuckets<DescriptorEntries>),
}

/// A bucket that a request takes from.
enum Found<'a> {
    Named(&'a TokenBucket),
    Shared(Arc<TokenBucket>),
}

impl std::ops::Deref for Found<'_> {
    type Target = TokenBucket;

    fn deref(&self) -> &TokenBucket {
        match self {
            Found::Named(bucket) => bucket,
            Found::Shared(bucket) => bucket,
        }
    }
}

/// What came of taking tokens.
struct Taken<'a> {
    allowed: bool,
    /// A limit that is only counted had none.
    shadow: bool,
    /// The bucket that tells of itself, and whether clients are told.
    bucket: Option<(Found<'a>, bool)>,
}

impl Named {
    /// The bucket of a request's descriptor, if it is one of these.
    fn bucket(&self, descriptor: &Descriptor, now: Instant) -> Option<Found<'_>> {
        let same =
            self.entries.len() == descriptor.entries.len()
                && self.entries.iter().zip(&descriptor.entries).all(|((key, value), (found, given))| {
                    key == found && (value.is_empty() || value == given)
                });
        match &self.buckets {
            _ if !same => None,
            Buckets::One(bucket) => Some(Found::Named(bucket)),
            Buckets::Each(buckets) => Some(Found::Shared(buckets.of(&descriptor.entries, now))),
        }
    }
}

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
        let mut named: Vec<Named> = Vec::new();
        // Its field rule: at least 1.
        let most = u32_or(config.max_dynamic_descriptors, 20) as usize;
        for (index, config) in config.descriptors.iter().enumerate() {
            problems.at_index("descriptors", index, |problems| {
                let entries: Entries = (config.entries.iter())
                    .map(|entry| (entry.key.as_str().into(), entry.value.as_str().into()))
                    .collect();
                if named.iter().any(|known: &Named| known.entries == entries) {
                    problems.report_at("entries", "another descriptor has the same");
                }
                // Demanded by a field rule.
                let Some(bucket) = &config.token_bucket else { return };
                let bucket = TokenBucket::compile(bucket, problems);
                let buckets = if entries.iter().any(|(_, value)| value.is_empty()) {
                    Buckets::Each(TokenBuckets::new(bucket, most))
                } else {
                    Buckets::One(bucket)
                };
                named.push(Named { entries, buckets, shadow: config.shadow_mode });
            });
        }
        // Those of a whole descriptor come first.
        named.sort_by_key(|named| matches!(named.buckets, Buckets::Each(..)));
        let limits = RateLimits::compile(&config.rate_limits, LimitsOf::Process, problems);
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

    /// Takes tokens for a request.
    fn take(&self, ex: &Exchange<'_>, at: &At<'_>) -> Taken<'_> {
        let mut taken = Taken { allowed: true, shadow: false, bucket: None };
        if !self.named.is_empty() {
            let policies = ratelimit::policies(at, self.limits.as_ref(), self.host);
            let mut found: SmallVec<[_; 2]> = SmallVec::new();
            for descriptor in ratelimit::descriptors(ex, at, self.stage, &policies) {
                let hits = (descriptor.hits.unwrap_or(1), descriptor.refunds);
                let tell = descriptor.tell.unwrap_or(self.tell);
                for named in &self.named {
                    if let Some(bucket) = named.bucket(&descriptor, ex.now) {
                        found.push((bucket, hits, tell, named.shadow));
                        break;
                    }
                }
            }
            // The slowest first.
            found.sort_by(|(one, ..), (other, ..)| other.each().total_cmp(&one.each()));
            for (bucket, (hits, refunds), tell, shadow) in found {
                let enough = refunds || bucket.take_many(hits, ex.now);
                if refunds {
                    bucket.put_back(hits, ex.now);
                }
                if !enough && !shadow {
                    return Taken { allowed: false, bucket: Some((bucket, tell)), ..taken };
                }
                taken.shadow |= !enough;
                taken.bucket.get_or_insert((bucket, tell));
            }
        }
        if let Some(bucket) = self.bucket.as_ref().filter(|_| taken.bucket.is_none() || self.always) {
            if !bucket.take(ex.now) {
                return Taken { allowed: false, bucket: Some((Found::Named(bucket), self.tell)), ..taken };
            }
            taken.bucket.get_or_insert((Found::Named(bucket), self.tell));
        }
        taken
    }

    fn limit(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let drawn =
            |share: &Option<RuntimeFraction>| share.as_ref().is_some_and(|share| ex.worker.draws_from(share));
        if !drawn(&self.enabled) {
            return Step::Continue;
        }
        self.stats.enabled.increment(1);
        let Taken { allowed, shadow, bucket } = self.take(ex, at);
        let Some((bucket, tell)) = bucket else {
            self.stats.ok.increment(1);
            return Step::Continue;
        };
        let enforced = !allowed && drawn(&self.enforced);
        if tell {
            at.encode(ex, Encoder::LocalRateLimit(bucket.level(ex.now)));
        }
        if allowed && !shadow {
            self.stats.ok.increment(1);
            return Step::Continue;
        }
        self.stats.rate_limited.increment(1);
        if allowed {
            self.stats.shadow_mode.increment(1);
            return Step::Continue;
        }
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
