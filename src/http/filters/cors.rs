//! Cross-origin requests (`envoy.filters.http.cors`): who may read answers from another origin, and what they may send.
//!
//! Comes in: a request's head and the policies of its route. Goes out: for a preflight its answer, for any other
//! request of an allowed origin the fields that its answer gets.

use std::sync::{Arc, LazyLock};

use outrigger_control_api::pb::envoy::config::route::v3 as route;
use outrigger_control_api::pb::envoy::extensions::filters::http::cors::v3 as pb;

use super::chain::{At, Step};
use super::Encoder;
use crate::config::matcher::{RuntimeFraction, StringMatcher};
use crate::config::problems::Problems;
use crate::config::route::RouteFilter;
use crate::config::{HeaderKey, HeaderMutate, HeaderView};
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;
use crate::http::worker::Worker;
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `http.<stat_prefix>.cors.`.
    pub struct CorsStats {
        counters { origin_invalid, origin_valid }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: CorsStats,
}

/// `CorsPolicy`. Where a policy says nothing the next, less specific one counts.
#[derive(Debug)]
pub struct Policy {
    origins: Box<[StringMatcher]>,
    methods: Box<str>,
    headers: Box<str>,
    expose: Box<str>,
    max_age: Box<str>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_others: Option<bool>,
    /// Default: all requests.
    enabled: Option<RuntimeFraction>,
    /// Default: none.
    shadow: Option<RuntimeFraction>,
}

/// What the answer to a request of an allowed origin says.
#[derive(Debug)]
pub(super) struct Allowed {
    origin: Box<[u8]>,
    credentials: bool,
    expose: Box<str>,
}

struct Keys {
    origin: HeaderKey,
    request_method: HeaderKey,
    request_headers: HeaderKey,
    request_private_network: HeaderKey,
    allow_origin: HeaderKey,
    allow_credentials: HeaderKey,
    expose_headers: HeaderKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    origin: HeaderKey::new("origin"),
    request_method: HeaderKey::new("access-control-request-method"),
    request_headers: HeaderKey::new("access-control-request-headers"),
    request_private_network: HeaderKey::new("access-control-request-private-network"),
    allow_origin: HeaderKey::new("access-control-allow-origin"),
    allow_credentials: HeaderKey::new("access-control-allow-credentials"),
    expose_headers: HeaderKey::new("access-control-expose-headers"),
});

impl Policy {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::CorsPolicy, problems: &mut Problems) -> Option<Self> {
        let origins = StringMatcher::compile_all(
            &config.allow_origin_string_match,
            "allow_origin_string_match",
            problems,
        );
        Some(Self {
            origins: origins?,
            methods: config.allow_methods.as_str().into(),
            headers: config.allow_headers.as_str().into(),
            expose: config.expose_headers.as_str().into(),
            max_age: config.max_age.as_str().into(),
            credentials: config.allow_credentials.map(|set| set.value),
            private_network: config.allow_private_network_access.map(|set| set.value),
            forward_others: config.forward_not_matching_preflights.map(|set| set.value),
            enabled: config.filter_enabled.as_ref().map(RuntimeFraction::of),
            shadow: config.shadow_enabled.as_ref().map(RuntimeFraction::of),
        })
    }

    /// Compiles the policy in a field of a route or virtual host.
    pub fn of_field(config: &route::CorsPolicy, problems: &mut Problems) -> Option<Self> {
        use route::cors_policy::EnabledSpecifier;
        let enabled =
            config.enabled_specifier.as_ref().map(|EnabledSpecifier::FilterEnabled(share)| share.clone());
        let same = pb::CorsPolicy {
            allow_origin_string_match: config.allow_origin_string_match.clone(),
            allow_methods: config.allow_methods.clone(),
            allow_headers: config.allow_headers.clone(),
            expose_headers: config.expose_headers.clone(),
            max_age: config.max_age.clone(),
            allow_credentials: config.allow_credentials,
            filter_enabled: enabled,
            shadow_enabled: config.shadow_enabled.clone(),
            allow_private_network_access: config.allow_private_network_access,
            forward_not_matching_preflights: config.forward_not_matching_preflights,
        };
        Self::compile(&same, problems)
    }

    fn is_enabled(&self, worker: &Worker) -> bool {
        self.enabled.as_ref().is_none_or(|share| worker.draws_from(share))
    }

    fn is_shadow(&self, worker: &Worker) -> bool {
        self.shadow.as_ref().is_some_and(|share| worker.draws_from(share))
    }
}

/// Policies, the most specific first.
struct Policies<'p>(Vec<&'p Policy>);

impl<'p> Policies<'p> {
    fn text(&self, of: impl Fn(&'p Policy) -> &'p str) -> &'p str {
        self.0.iter().map(|policy| of(policy)).find(|text| !text.is_empty()).unwrap_or_default()
    }

    fn choice(&self, default: bool, of: impl Fn(&Policy) -> Option<bool>) -> bool {
        self.0.iter().find_map(|policy| of(policy)).unwrap_or(default)
    }

    fn allows(&self, origin: &[u8]) -> bool {
        let origins = self.0.iter().map(|policy| &policy.origins).find(|origins| !origins.is_empty());
        origins.into_iter().flatten().any(|allowed| allowed.matches(b"*") || allowed.matches(origin))
    }
}

impl Config {
    /// A filter that counts in `stats`, the connection manager's.
    pub fn new(stats: &Scope) -> Self {
        Self { stats: CorsStats::new(&stats.sub("cors")) }
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        // Only requests that are forwarded have policies.
        if !at.course.forwards() {
            return Step::Continue;
        }
        let Some(request) = &ex.request else { return Step::Continue };
        let Some(origin) = request.first(&KEYS.origin).filter(|origin| !origin.is_empty()) else {
            return Step::Continue;
        };
        let mut policies = Policies(at.levels().iter().filter_map(policy).collect());
        if policies.0.is_empty() {
            policies.0.extend(at.course.overrides().iter().flat_map(|all| &all.cors).filter_map(policy));
        }
        let Some(first) = policies.0.first() else { return Step::Continue };
        let (enabled, shadow) = (first.is_enabled(ex.worker), first.is_shadow(ex.worker));
        if !enabled && !shadow {
            return Step::Continue;
        }
        let origin: Box<[u8]> = origin.into();
        let allowed = policies.allows(&origin);
        if allowed {
            self.stats.origin_valid.increment(1);
        } else {
            self.stats.origin_invalid.increment(1);
        }
        if !enabled {
            return Step::Continue;
        }
        let answer = Allowed {
            origin,
            credentials: policies.choice(false, |policy| policy.credentials),
            expose: policies.text(|policy| &policy.expose).into(),
        };
        let wanted = request.first(&KEYS.request_method).filter(|method| !method.is_empty());
        let preflight = wanted.filter(|_| request.is_method(b"OPTIONS"));
        let reply = preflight
            .filter(|_| allowed || !policies.choice(true, |policy| policy.forward_others))
            .map(|method| {
                let fields = preflight_answer(request, method, &policies, &answer, allowed);
                Reply::new(200, "cors_response").unchanged(fields)
            });
        if allowed {
            at.encode(ex, Encoder::Cors(answer));
        }
        reply.map_or(Step::Continue, Step::Reply)
    }
}

fn policy(said: &Arc<RouteFilter>) -> Option<&Policy> {
    match &**said {
        RouteFilter::Cors(policy) => Some(policy),
        _ => None,
    }
}

fn preflight_answer(
    request: &impl HeaderView,
    method: &[u8],
    policies: &Policies<'_>,
    answer: &Allowed,
    allowed: bool,
) -> Fields {
    let mut fields = Fields::default();
    if allowed {
        fields.push(b"access-control-allow-origin", &answer.origin);
    }
    if answer.credentials {
        fields.push(b"access-control-allow-credentials", b"true");
    }
    let mut put = |name: &[u8], text: &str, wanted: Option<&[u8]>| match text {
        "" => {}
        "*" => fields.push(name, wanted.unwrap_or_default()),
        text => fields.push(name, text.as_bytes()),
    };
    put(b"access-control-allow-methods", policies.text(|policy| &policy.methods), Some(method));
    let headers = request.first(&KEYS.request_headers);
    put(b"access-control-allow-headers", policies.text(|policy| &policy.headers), headers);
    let max_age = policies.text(|policy| &policy.max_age);
    if !max_age.is_empty() {
        fields.push(b"access-control-max-age", max_age.as_bytes());
    }
    let private = request.first(&KEYS.request_private_network) == Some(b"true");
    if private && policies.choice(false, |policy| policy.private_network) {
        fields.push(b"access-control-allow-private-network", b"true");
    }
    fields
}

impl Allowed {
    pub(super) fn on_response(&self, head: &mut ResponseHead) {
        head.fields.set(&KEYS.allow_origin, &self.origin);
        if self.credentials {
            head.fields.set(&KEYS.allow_credentials, b"true");
        }
        if !self.expose.is_empty() {
            head.fields.set(&KEYS.expose_headers, self.expose.as_bytes());
        }
    }
}
