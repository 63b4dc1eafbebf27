//! Requests that another service allows or denies (`envoy.filters.http.ext_authz`).
//!
//! Comes in: a request's head, and as much of its body as config wants. Goes out: what the service answers: a denial, or
//! the request as the service changed it. [`question`] makes what it is asked, [`verdict`] applies what it says; without
//! an answer the request is denied unless config says otherwise.

pub mod question;
pub mod rules;
mod shadow;
mod verdict;

use std::collections::HashMap;
use std::sync::Arc;

use metrics::Counter;

use super::by_cluster::ByCluster;
use super::chain::{active, At, Step, Wait};
use super::{Awaited, Pending};
use crate::config::matcher::{RuntimeFraction, StringMatcher};
use crate::config::route::{HeaderOps, RouteFilter};
use crate::config::services::{GrpcTarget, HttpTarget, Retries};
use crate::config::token::{is_field_name, is_field_value};
use crate::config::{HeaderKey, RequestView};
use crate::http::call::{self, Call};
use crate::http::exchange::{Exchange, Reply};
use crate::policy::rbac::MetadataMatcher;
use crate::telemetry::stream_info::ResponseFlags;
use rules::MutationRules;
use shadow::Decision;
pub(super) use verdict::{Changes, Verdict};

crate::stats! {
    /// `http.<stat_prefix>.ext_authz.`.
    pub struct AuthzStats {
        counters {
            ok, denied, error, disabled, failure_mode_allowed, invalid, ignored_dynamic_metadata,
            filter_state_name_collision, omitted_response_headers, request_header_limits_reached,
            response_header_limits_reached, shadow_denied, shadow_error,
        }
        gauges {}
        histograms {}
    }
}

/// Whose metadata they are, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const PATH: &[u8] = b"/envoy.service.auth.v3.Authorization/Check";
/// Most bytes of a denial's body.
const MAX_BODY: usize = 1 << 20;

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// Who decides.
    pub service: Service,
    /// Without an answer the request passes; then a header may say so.
    pub fail_open: bool,
    /// Decisions are counted and noted, and no request is refused.
    pub shadow: bool,
    /// That header is added.
    pub tell_failure: bool,
    /// The status without an answer.
    pub status_on_error: u16,
    /// What of the body the service sees.
    pub body: Option<Buffering>,
    /// That goes as bytes, not as text.
    pub bytes: bool,
    /// The route is found anew when the request was changed.
    pub reroute: bool,
    /// What is no header makes an answer invalid.
    pub validate: bool,
    /// The share of requests that are decided on.
    pub enabled: Option<RuntimeFraction>,
    /// Only requests with such metadata are decided on.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Others are denied: by default, and the runtime key that may say otherwise.
    pub deny_others: Option<(bool, Box<str>)>,
    /// Names of the headers that the service sees; `None` = all.
    pub allowed: Option<Box<[StringMatcher]>>,
    /// Names of those that it does not see.
    pub disallowed: Box<[StringMatcher]>,
    /// Values of headers go as bytes, each by itself.
    pub raw_headers: bool,
    /// The service sees the client's certificate.
    pub peer_certificate: bool,
    /// And the name that the client asked for in TLS.
    pub tls_session: bool,
    /// Dynamic metadata that the service sees, by namespace.
    pub namespaces: Box<[Box<str>]>,
    /// Messages among them that it sees, by namespace.
    pub typed_namespaces: Box<[Box<str>]>,
    /// Metadata of routes that the service sees.
    pub route_namespaces: Box<[Box<str>]>,
    /// What the service may change in the request.
    pub rules: Option<MutationRules>,
    /// Metadata of the service are taken.
    pub ingest: bool,
    /// Denials count among the answers of the request's cluster.
    pub charge: bool,
    /// Longer bodies of denials are cut; 0 = none are.
    pub max_denial: usize,
    /// Its statistics.
    pub stats: AuthzStats,
    /// Those of the clusters that requests go to.
    pub by_cluster: ByCluster<ClusterStats>,
}

/// Who decides.
#[derive(Debug)]
pub enum Service {
    /// A gRPC service.
    Grpc(Arc<GrpcTarget>),
    /// An HTTP service.
    Http(Box<HttpService>),
}

/// An HTTP service that decides.
#[derive(Debug)]
pub struct HttpService {
    /// Where it is.
    pub target: HttpTarget,
    /// Before the path that it is asked about.
    pub path_prefix: Box<[u8]>,
    /// Instead of that path, if not empty.
    pub path_override: Box<[u8]>,
    /// Changes to the head of the question.
    pub headers: HeaderOps,
    /// Headers of a yes that go to the upstream, in place of others.
    pub upstream: Box<[StringMatcher]>,
    /// Those that are appended to what is there.
    pub upstream_append: Box<[StringMatcher]>,
    /// Headers of a no that go to the client; `None` = all but the host.
    pub client: Option<Box<[StringMatcher]>>,
    /// Headers of a yes that go to the client.
    pub client_on_success: Box<[StringMatcher]>,
    /// Headers of a yes that become metadata.
    pub metadata: Box<[StringMatcher]>,
    /// When it is asked again.
    pub retries: Option<Retries>,
}

/// What of a body the service sees.
#[derive(Debug, Clone, Copy)]
pub struct Buffering {
    /// At most so many bytes.
    pub most: usize,
    /// Of a longer body the service sees the beginning; otherwise the request is refused.
    pub partial: bool,
}

/// What a route says (`ExtAuthzPerRoute`).
#[derive(Debug)]
pub enum PerRoute {
    /// Its requests pass.
    Off,
    /// They are decided on with these settings.
    Settings {
        /// What the service is told besides.
        extensions: HashMap<String, String>,
        /// It does not see bodies.
        no_body: bool,
        /// It sees so much of them, instead of what the filter says.
        body: Option<Buffering>,
        /// Another one decides.
        service: Option<Service>,
    },
}

crate::stats! {
    /// `cluster.<name>.ext_authz.`.
    pub struct ClusterStats {
        counters { ok, denied, error, failure_mode_allowed, invalid }
        gauges {}
        histograms {}
    }
}

impl Config {
    /// Where a request's fate is counted.
    fn count(
        &self,
        ex: &Exchange<'_>,
        at: &At<'_>,
        own: fn(&AuthzStats) -> &Counter,
        of: fn(&ClusterStats) -> &Counter,
    ) {
        own(&self.stats).increment(1);
        if let Some(cluster) = self.by_cluster.of(ex, at) {
            of(&cluster).increment(1);
        }
    }

    fn failure(&self, ex: &mut Exchange<'_>) -> Step {
        ex.info.flags.insert(ResponseFlags::UAEX);
        Step::Reply(Reply::new(self.status_on_error, "ext_authz_error"))
    }

    /// Who decides; of levels only the most specific has a say, as in Envoy.
    fn service<'a>(&'a self, at: &'a At<'_>) -> &'a Service {
        match at.said() {
            Some(RouteFilter::ExtAuthz(PerRoute::Settings { service: Some(service), .. })) => service,
            _ => &self.service,
        }
    }

    /// What the service is to see of the body.
    fn buffering(&self, ex: &Exchange<'_>, at: &At<'_>) -> Option<Buffering> {
        let own = match at.said() {
            Some(RouteFilter::ExtAuthz(PerRoute::Settings { no_body: true, .. })) => return None,
            Some(RouteFilter::ExtAuthz(PerRoute::Settings { body, .. })) => *body,
            _ => None,
        };
        let upgrade = ex.request.as_ref().is_some_and(|request| request.upgrade().is_some());
        own.or(self.body).filter(|_| !upgrade)
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        if at.resumed {
            let awaited = ex.filters.as_mut().and_then(|active| active.awaited.take());
            return match (awaited, self.service(at)) {
                (Some(Awaited::Verdict(verdict)), _) => self.apply(*verdict, ex, at),
                (Some(Awaited::Answer(answer)), Service::Http(service)) => {
                    self.apply(Verdict::of_http(service, *answer), ex, at)
                }
                // The body is here.
                _ => self.ask(ex, at),
            };
        }
        let off = matches!(at.said(), Some(RouteFilter::ExtAuthz(PerRoute::Off)));
        if off || at.course.route().is_none() {
            return Step::Continue;
        }
        let noted = |filter: &str| ex.info.metadata.as_deref().and_then(|all| all.get(filter));
        let unlike = |wanted: &MetadataMatcher| !wanted.matches(noted(&wanted.filter));
        if self.enabled.as_ref().is_some_and(|share| !ex.worker.draws_from(share))
            || self.enabled_metadata.as_ref().is_some_and(unlike)
        {
            self.stats.disabled.increment(1);
            let denies = self.deny_others.as_ref().is_some_and(|(default, key)| {
                let told = ex.worker.runtime.load().number(key);
                told.map_or(*default, |told| told != 0.0)
            });
            if denies && self.shadow {
                ex.info.flags.insert(ResponseFlags::UAEX);
                return self.note(
                    ex,
                    at,
                    Decision::Denied { status: self.status_on_error, headers: &[], http: false },
                );
            }
            return if denies { self.failure(ex) } else { Step::Continue };
        }
        match self.buffering(ex, at) {
            Some(body) if !super::is_over(ex) => Step::Wait(match body.partial {
                true => Wait::Prefix(body.most),
                false => Wait::Hold(body.most),
            }),
            _ => self.ask(ex, at),
        }
    }

    fn ask(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let body = self.buffering(ex, at);
        let pending = match self.service(at) {
            Service::Grpc(target) => {
                let question = self.question(ex, at, body);
                let (worker, target) = (ex.worker.clone(), target.clone());
                Pending::new(async move {
                    let answer = call::unary(worker, target, PATH, question).await;
                    let verdict = answer.map_or(Verdict::Error, Verdict::of_answer);
                    Awaited::Verdict(Box::new(verdict))
                })
            }
            Service::Http(service) => {
                let Some((request, body)) = self.http_question(service, ex, body) else {
                    return Step::Continue;
                };
                let slot = service.target.cluster.clone();
                let timeout = service.target.timeout;
                let call = Call { request, body, timeout, most: MAX_BODY, retries: service.retries };
                let worker = ex.worker.clone();
                Pending::new(async move { Awaited::Answer(Box::new(call.send(worker, slot).await)) })
            }
        };
        active(ex).pending = Some(pending);
        Step::Wait(Wait::Answer)
    }
}

/// Whether a header may stand in a head.
fn is_valid(name: &str, value: &[u8]) -> bool {
    is_field_name(name.as_bytes()) && is_field_value(value)
}

/// Whether a header of this name is meant.
fn any(matchers: &[StringMatcher], name: &[u8]) -> bool {
    matchers.iter().any(|matcher| matcher.matches(name))
}

/// Pseudo headers that a request has.
fn is_pseudo(key: &HeaderKey) -> bool {
    matches!(key.name(), ":method" | ":path" | ":authority" | ":scheme")
}
