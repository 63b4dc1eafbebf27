//! Limits that a service keeps for many proxies (`envoy.filters.http.ratelimit`).
//!
//! Comes in: a request whose route has descriptors. Goes out: 429 where the service says that one of them is over its
//! limit; otherwise the request, with headers that the service wants added. Without an answer it passes unless config
//! says otherwise. Some descriptors only count, when the request is over.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::HeaderValue;
use outrigger_control_api::pb::envoy::extensions::common::ratelimit::v3 as common;
use outrigger_control_api::pb::envoy::service::ratelimit::v3 as pb;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use outrigger_control_api::pb::google::protobuf::UInt64Value;
use smallvec::SmallVec;

use super::by_cluster::{charge, ByCluster};
use super::chain::{active, At, Step, Wait};
use super::{Awaited, Encoder, Pending};
use crate::config::matcher::{Fraction, RuntimeFraction};
use crate::config::route::{Descriptor, HeaderOps, LimitFacts, RateLimits, Route, RouteFilter};
use crate::config::services::GrpcTarget;
use crate::config::token::{is_field_name, is_field_value};
use crate::config::Known;
use crate::http::call;
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;
use crate::telemetry::stream_info::ResponseFlags;

/// Whose metadata they are, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.ratelimit";
const PATH: &[u8] = b"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

crate::stats! {
    /// `cluster.<name>.ratelimit.`.
    pub struct LimitStats {
        counters { ok, error, over_limit, failure_mode_allowed }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// What the service knows its limits by.
    pub domain: Box<str>,
    /// The policies that count have this stage.
    pub stage: u32,
    /// Only requests from inside, or from outside, count.
    pub internal: Option<bool>,
    /// The service.
    pub service: Arc<GrpcTarget>,
    /// Its own policies, for requests whose routes have none.
    pub limits: Option<Arc<RateLimits>>,
    /// Without an answer requests are refused.
    pub deny: bool,
    /// The status of that.
    pub status_on_error: u16,
    /// The status of a request over its limit.
    pub status: u16,
    /// For gRPC that is RESOURCE_EXHAUSTED.
    pub exhausted: bool,
    /// Answers tell the limit (`x-ratelimit-*`).
    pub tell: bool,
    /// Refusals do not say `x-envoy-ratelimited`.
    pub quiet: bool,
    /// Changes to refusals.
    pub response_headers: HeaderOps,
    /// Whether the service is asked; whether that is heeded; both may be told by runtime.
    pub enabled: RuntimeFraction,
    /// See `enabled`.
    pub enforced: RuntimeFraction,
    /// Statistics by the cluster that requests go to.
    pub by_cluster: ByCluster<LimitStats>,
}

/// What a route says (`RateLimitPerRoute`).
#[derive(Debug)]
pub struct PerRoute {
    /// What becomes of the virtual host's policies.
    pub host: HostLimits,
    /// Policies in place of the route's.
    pub limits: Option<Arc<RateLimits>>,
    /// Another domain, if not empty.
    pub domain: Box<str>,
}

/// `vh_rate_limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HostLimits {
    Override,
    Include,
    Ignore,
}

/// A request that is counted when it is over.
#[derive(Debug)]
pub(super) struct Later {
    service: Arc<GrpcTarget>,
    domain: Box<str>,
    stage: u32,
    policies: SmallVec<[Arc<RateLimits>; 2]>,
    route: Arc<Route>,
    destination: Box<str>,
}

/// What is done to a response.
#[derive(Debug, Clone)]
pub(super) struct Told(Vec<(Box<str>, Box<str>)>);

impl Config {
    /// By what the request is counted.
    fn descriptors(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Vec<Descriptor> {
        let Some(request) = &ex.request else { return Vec::new() };
        let internal = request.fields.get(Known::XEnvoyInternal) == Some(b"true");
        if self.internal.is_some_and(|wanted| wanted != internal) {
            return Vec::new();
        }
        let said = match at.said() {
            Some(RouteFilter::RateLimit(said)) => Some(said),
            _ => None,
        };
        let own = said.and_then(|said| said.limits.as_ref()).or(self.limits.as_ref());
        let policies = policies(at, own, said.map_or(HostLimits::Override, |said| said.host));
        if policies.iter().any(|limits| limits.count_later(self.stage)) {
            self.note(ex, at, &policies);
        }
        descriptors(ex, at, self.stage, &policies)
    }

    fn domain<'x>(&'x self, at: &'x At<'_>) -> &'x str {
        match at.said() {
            Some(RouteFilter::RateLimit(said)) if !said.domain.is_empty() => &said.domain,
            _ => &self.domain,
        }
    }

    /// Some of its policies count the request when it is over.
    fn note(&self, ex: &mut Exchange<'_>, at: &At<'_>, policies: &[&Arc<RateLimits>]) {
        let (Some(route), Some(destination)) =
            (at.course.route(), at.course.with_cluster(ex, |name| Box::from(name)))
        else {
            return;
        };
        let later = Later {
            service: self.service.clone(),
            domain: self.domain(at).into(),
            stage: self.stage,
            policies: policies.iter().map(|limits| Arc::clone(limits)).collect(),
            route: route.clone(),
            destination,
        };
        active(ex).later.push(later);
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        if at.resumed {
            let awaited = ex.filters.as_mut().and_then(|active| active.awaited.take());
            return match awaited {
                Some(Awaited::Limits(answer, told)) => self.apply(*answer, &told, ex, at),
                _ => Step::Continue,
            };
        }
        if !ex.worker.draws_from(&self.enabled) {
            return Step::Continue;
        }
        let descriptors = self.descriptors(ex, at);
        if descriptors.is_empty() {
            return Step::Continue;
        }
        let told = descriptors.iter().map(|descriptor| descriptor.tell.unwrap_or(self.tell)).collect();
        let question = question(self.domain(at), descriptors);
        let (worker, service) = (ex.worker.clone(), self.service.clone());
        active(ex).pending = Some(Pending::new(async move {
            Awaited::Limits(Box::new(call::unary(worker, service, PATH, question).await.ok()), told)
        }));
        Step::Wait(Wait::Answer)
    }

    /// `tells` says of each descriptor whether its limit is told.
    fn apply(
        &self,
        answer: Option<pb::RateLimitResponse>,
        tells: &[bool],
        ex: &mut Exchange<'_>,
        at: &At<'_>,
    ) -> Step {
        let stats = self.by_cluster.of(ex, at);
        let count = |which: fn(&LimitStats) -> &metrics::Counter| {
            if let Some(stats) = &stats {
                which(stats).increment(1);
            }
        };
        let Some(mut answer) = answer else {
            count(|stats| &stats.error);
            if !self.deny {
                count(|stats| &stats.failure_mode_allowed);
                return Step::Continue;
            }
            ex.info.flags.insert(ResponseFlags::RLSE);
            return Step::Reply(Reply::new(self.status_on_error, "rate_limiter_error"));
        };
        if let Some(metadata) = answer.dynamic_metadata.take() {
            let all = ex.info.metadata.get_or_insert_default();
            all.entry(NAMESPACE.to_owned()).or_default().fields.extend(metadata.fields);
        }
        let mut told = Told(Vec::new());
        // The service may tell of more than it was asked.
        let tells = tells.iter().copied().chain(std::iter::repeat(self.tell));
        told.limits(answer.statuses.iter().zip(tells));
        told.0.extend(answer.response_headers_to_add.iter().filter_map(pair));
        if answer.overall_code() != Code::OverLimit {
            count(|stats| &stats.ok);
        } else {
            if !self.quiet {
                told.0.push((Known::XEnvoyRatelimited.name().into(), "true".into()));
            }
            count(|stats| &stats.over_limit);
            charge(ex, at, 429);
            if ex.worker.draws_from(&self.enforced) {
                return self.refuse(&told, answer.raw_body.into(), ex);
            }
        }
        if let Some(request) = &mut ex.request {
            for (name, value) in answer.request_headers_to_add.iter().filter_map(pair) {
                request.fields.push(name.as_bytes(), value.as_bytes());
            }
        }
        if !told.0.is_empty() {
            at.encode(ex, Encoder::RateLimit(told));
        }
        Step::Continue
    }

    fn refuse(&self, told: &Told, body: Bytes, ex: &mut Exchange<'_>) -> Step {
        ex.info.flags.insert(ResponseFlags::RL);
        let mut fields = Fields::default();
        for (name, value) in &told.0 {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        let mut reply = Reply::new(self.status, "request_rate_limited").with_fields(fields);
        reply.body = body;
        let reply = reply.grpc_status(self.exhausted.then_some(Cow::Borrowed("8")));
        Step::Reply(reply.changed(self.response_headers.clone()))
    }
}

impl Later {
    /// The request is over. Nobody waits for what the service says to it.
    pub(super) fn count(self, ex: &Exchange<'_>) {
        let mut found = Vec::new();
        for limits in &self.policies {
            describe(ex, limits, (self.stage, true), &self.route, &self.destination, &mut found);
        }
        if found.is_empty() {
            return;
        }
        let question = question(&self.domain, found);
        let (worker, service) = (ex.worker.clone(), self.service);
        tokio::task::spawn_local(async move {
            let _: Result<pb::RateLimitResponse, _> = call::unary(worker, service, PATH, question).await;
        });
    }
}

/// The policies that count a request: `own` if there are any, else those of its route and, as `host` says, of its virtual
/// host.
pub(super) fn policies<'a>(
    at: &'a At<'_>,
    own: Option<&'a Arc<RateLimits>>,
    host: HostLimits,
) -> SmallVec<[&'a Arc<RateLimits>; 2]> {
    if let Some(own) = own {
        return SmallVec::from_elem(own, 1);
    }
    let Some(limits) = at.course.route().and_then(|route| route.limits.as_ref()) else {
        return SmallVec::new();
    };
    let included = limits.both
        || match host {
            HostLimits::Include => true,
            HostLimits::Override => limits.own.is_none(),
            HostLimits::Ignore => false,
        };
    limits.own.iter().chain(limits.host.as_ref().filter(|_| included)).collect()
}

/// By what those `policies` that are of `stage` count a request as it comes.
pub(super) fn descriptors(
    ex: &Exchange<'_>,
    at: &At<'_>,
    stage: u32,
    policies: &[&Arc<RateLimits>],
) -> Vec<Descriptor> {
    let mut out = Vec::new();
    let Some(route) = at.course.route().filter(|_| !policies.is_empty()) else { return out };
    at.course.with_cluster(ex, |destination| {
        for limits in policies {
            describe(ex, limits, (stage, false), route, destination, &mut out);
        }
    });
    out
}

fn describe(
    ex: &Exchange<'_>,
    limits: &RateLimits,
    which: (u32, bool),
    route: &Route,
    destination: &str,
    out: &mut Vec<Descriptor>,
) {
    let Some(request) = &ex.request else { return };
    let facts = LimitFacts {
        request,
        info: &ex.info,
        remote: ex.info.remote(),
        source: &ex.manager.service.0,
        destination,
        dynamic: ex.info.metadata.as_deref(),
        route: route.metadata.as_deref(),
    };
    let on = |key: &str| {
        let share = ex.worker.runtime.load().fraction(key);
        share.is_none_or(|share: Fraction| ex.worker.draws(share))
    };
    limits.describe(which, &facts, on, out);
}

fn question(domain: &str, descriptors: Vec<Descriptor>) -> pb::RateLimitRequest {
    pb::RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.into_iter().map(message).collect(),
        hits_addend: 0,
    }
}

fn message(descriptor: Descriptor) -> common::RateLimitDescriptor {
    let entry = |(key, value): (Box<str>, Box<str>)| common::rate_limit_descriptor::Entry {
        key: key.into(),
        value: value.into(),
    };
    common::RateLimitDescriptor {
        entries: descriptor.entries.into_iter().map(entry).collect(),
        hits_addend: descriptor.hits.map(|value| UInt64Value { value }),
        is_negative_hits: descriptor.refunds,
        limit: descriptor.limit.map(|(requests_per_unit, unit)| {
            common::rate_limit_descriptor::RateLimitOverride {
                requests_per_unit,
                unit: unit.into(),
                ..common::rate_limit_descriptor::RateLimitOverride::default()
            }
        }),
    }
}

/// A header of the service's, if it may stand in a head.
fn pair(header: &HeaderValue) -> Option<(Box<str>, Box<str>)> {
    let name = header.key.to_ascii_lowercase();
    let value = if header.raw_value.is_empty() {
        header.value.clone()
    } else {
        String::from_utf8_lossy(&header.raw_value).into_owned()
    };
    let valid = !name.starts_with(':') && is_field_name(name.as_bytes()) && is_field_value(value.as_bytes());
    (valid && name != "content-length" && name != "transfer-encoding").then(|| (name.into(), value.into()))
}

impl Told {
    /// What is left of the limit that is nearest (draft-ietf-httpapi-ratelimit-headers-03).
    fn limits<'s>(&mut self, statuses: impl Iterator<Item = (&'s DescriptorStatus, bool)> + Clone) {
        let known =
            statuses.filter_map(|(status, told)| Some((status, status.current_limit.as_ref()?, told)));
        let nearest = known.clone().min_by_key(|(status, ..)| status.limit_remaining);
        let Some((status, limit, true)) = nearest else { return };
        let mut policies = String::new();
        for (_, limit, _) in known.filter(|(.., told)| *told) {
            let window = match limit.unit() {
                Unit::Second => 1,
                Unit::Minute => 60,
                Unit::Hour => 3600,
                Unit::Day => 86_400,
                Unit::Month => 2_592_000,
                Unit::Year => 31_536_000,
                Unit::Unknown => continue,
            };
            // Writing to a String cannot fail.
            let _ = write!(policies, ", {};w={window}", limit.requests_per_unit);
            if !limit.name.is_empty() {
                let name: String =
                    limit.name.chars().filter(|one| !one.is_control() && *one != '"').collect();
                let _ = write!(policies, ";name=\"{name}\"");
            }
        }
        let reset = status.duration_until_reset.map_or(0, |left| left.seconds);
        let mut tell = |name: &str, value: String| self.0.push((name.into(), value.into()));
        tell("x-ratelimit-limit", format!("{}{policies}", limit.requests_per_unit));
        tell("x-ratelimit-remaining", status.limit_remaining.to_string());
        tell("x-ratelimit-reset", reset.to_string());
    }

    pub(super) fn on_response(&self, head: &mut ResponseHead) {
        for (name, value) in &self.0 {
            head.fields.push(name.as_bytes(), value.as_bytes());
        }
    }
}
