//! Tokens that requests must carry (`envoy.filters.http.jwt_authn`).
//!
//! Comes in: a request's head and route. Goes out: 401 or 403, or a request with what its tokens say in headers and
//! dynamic metadata. What tokens are worth is [`crate::policy::jwt`]'s; this fetches keys of other services, for a
//! request that waits for them or ahead of all requests.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Instant, UNIX_EPOCH};

use outrigger_control_api::pb::google::protobuf::{value::Kind, Value};

use super::chain::{active, At, Step, Wait};
use super::{Awaited, Pending};
use crate::config::route::{RequestMatch, RouteFilter};
use crate::config::{HeaderKey, HeaderView, Known, RequestView};
use crate::http::call::{self, Call};
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::RequestHead;
use crate::http::worker::Worker;
use crate::policy::jwt::{details, Failure, KeySet, Provider, RemoteKeys, Requirement, Stop, Trial};
use crate::telemetry::filter_state::Object;
use crate::telemetry::stream_info::StreamInfo;

crate::stats! {
    /// `http.<stat_prefix>.jwt_authn.`.
    pub struct JwtStats {
        counters {
            allowed, cors_preflight_bypassed, denied, jwks_fetch_success, jwks_fetch_failed, jwt_cache_hit,
            jwt_cache_miss,
        }
        gauges {}
        histograms {}
    }
}

/// Whose metadata they are, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// Bytes of the path that a refusal names.
const MAX_PATH: usize = 256;
/// As whom Envoy asks for keys: some services refuse who does not say it.
const USER_AGENT: &[u8] = b"Go-browser";
/// Most bytes of a key set.
const MAX_KEYS: usize = 1 << 20;

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// What requests must have: the first rule that matches counts.
    pub rules: Box<[Rule]>,
    /// Requirements that routes ask for.
    pub named: BTreeMap<Box<str>, Requirement>,
    /// All providers: keys are fetched ahead for those that no requirement names, too.
    pub providers: Box<[Arc<Provider>]>,
    /// CORS preflights pass.
    pub bypass_preflight: bool,
    /// Refusals do not say why.
    pub terse: bool,
    /// `origin` and `access-control-request-method`.
    pub preflight: [HeaderKey; 2],
    /// What requests must have that no rule is for.
    pub by_state: Option<ByState>,
    /// Its statistics.
    pub stats: Arc<JwtStats>,
}

/// What some requests must have.
#[derive(Debug)]
pub struct Rule {
    /// Which.
    pub matched: RequestMatch,
    /// What; `None` for nothing.
    pub demand: Option<Demand>,
}

/// What requests must have by the text that filter state holds.
#[derive(Debug)]
pub struct ByState {
    /// The object's name.
    pub name: Box<str>,
    /// By its text.
    pub requires: HashMap<Box<str>, Requirement>,
}

/// A requirement.
#[derive(Debug)]
pub enum Demand {
    /// This one.
    Own(Requirement),
    /// The one of this name.
    Named(Box<str>),
}

/// What a route says (`PerRouteConfig`).
#[derive(Debug)]
pub enum PerRoute {
    /// Nothing is demanded.
    Off,
    /// The requirement of this name is.
    Named(Box<str>),
}

impl Config {
    fn is_preflight(&self, request: &RequestHead) -> bool {
        let says = |key| request.first(key).is_some_and(|value| !value.is_empty());
        request.is_method(b"OPTIONS") && self.preflight.iter().all(says)
    }

    /// What the request must have.
    fn demand(
        &self,
        request: &RequestHead,
        info: &StreamInfo,
        at: &At<'_>,
    ) -> Result<Option<&Requirement>, Box<str>> {
        let demand = match at.said() {
            Some(RouteFilter::JwtAuthn(PerRoute::Off)) => return Ok(None),
            Some(RouteFilter::JwtAuthn(PerRoute::Named(name))) => {
                return self.named.get(name).map(Some).ok_or_else(|| name.clone());
            }
            _ => self.rules.iter().find(|rule| rule.matched.matches(&request.of_stream(info))),
        };
        if let (None, Some(by_state)) = (demand, &self.by_state) {
            let text = info.object(&by_state.name).map(Object::text);
            return Ok(text.and_then(|text| by_state.requires.get(text)));
        }
        Ok(match demand.and_then(|rule| rule.demand.as_ref()) {
            Some(Demand::Own(requirement)) => Some(requirement),
            Some(Demand::Named(name)) => self.named.get(name),
            None => None,
        })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let Some(request) = &ex.request else { return Step::Continue };
        if self.bypass_preflight && self.is_preflight(request) {
            self.stats.cors_preflight_bypassed.increment(1);
            self.stats.allowed.increment(1);
            return Step::Continue;
        }
        let requirement = match self.demand(request, &ex.info, at) {
            Ok(Some(requirement)) => requirement,
            Ok(None) => {
                self.stats.allowed.increment(1);
                return Step::Continue;
            }
            Err(name) => return self.refuse_name(&name),
        };
        let mut fetched = Vec::new();
        if let (true, Some(active)) = (at.resumed, &mut ex.filters) {
            if let Some(Awaited::Keys(remote, came)) = active.awaited.take() {
                active.fetched.push((remote, came));
            }
            fetched.clone_from(&active.fetched);
        }
        self.judge(requirement, ex, &fetched)
    }

    fn judge(
        &self,
        requirement: &Requirement,
        ex: &mut Exchange<'_>,
        fetched: &[(Arc<RemoteKeys>, bool)],
    ) -> Step {
        let Some(request) = &mut ex.request else { return Step::Continue };
        // What is taken from a token changes the path.
        let realm = if self.terse { Vec::new() } else { realm(request) };
        let wall =
            ex.worker.clock.system(ex.now).duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // What is taken from a token changes the request; one that waits must be found as it was.
        let mut copy = requirement.may_wait(ex.now).then(|| request.clone());
        let mut trial = Trial {
            request: copy.as_mut().unwrap_or(request),
            now: ex.now,
            wall,
            fetched,
            hits: 0,
            misses: 0,
            told: Vec::new(),
            reroute: false,
        };
        let result = trial.run(requirement);
        let Trial { told, reroute, hits, misses, .. } = trial;
        if let Err(Stop::Needs(remote)) = result {
            let (worker, stats) = (ex.worker.clone(), self.stats.clone());
            active(ex).pending = Some(Pending::new(async move {
                let fetched = fetch(&worker, &remote, &stats).await;
                Awaited::Keys(remote, fetched)
            }));
            return Step::Wait(Wait::Answer);
        }
        self.stats.jwt_cache_hit.increment(hits);
        self.stats.jwt_cache_miss.increment(misses);
        if let Some(copy) = copy {
            ex.request = Some(copy);
        }
        if !told.is_empty() {
            let all = ex.info.metadata.get_or_insert_default();
            let fields = &mut all.entry(NAMESPACE.to_owned()).or_default().fields;
            for (name, told) in told {
                fields.insert(name.into(), Value { kind: Some(Kind::StructValue(told)) });
            }
        }
        match result {
            Err(Stop::Failed(failure)) => self.refuse(failure, &realm),
            _ => {
                self.stats.allowed.increment(1);
                if reroute {
                    active(ex).reroute = true;
                }
                Step::Continue
            }
        }
    }

    fn refuse(&self, failure: Failure, realm: &[u8]) -> Step {
        self.stats.denied.increment(1);
        let status = if failure == Failure::AudienceNotAllowed { 403 } else { 401 };
        let reply = Reply::new(status, failure.details());
        if self.terse {
            return Step::Reply(reply);
        }
        let error: &[u8] = if failure == Failure::Missing { b"" } else { b", error=\"invalid_token\"" };
        let mut fields = Fields::default();
        fields.push(b"www-authenticate", &[b"Bearer realm=\"", realm, b"\"", error].concat());
        Step::Reply(reply.body(failure.text()).with_fields(fields))
    }

    /// The route asks for a requirement that there is not.
    fn refuse_name(&self, name: &str) -> Step {
        self.stats.denied.increment(1);
        let names: Vec<&str> = self.named.keys().map(|name| &**name).collect();
        let error = format!("Wrong requirement_name: {name}. It should be one of [{}]", names.join(","));
        let reply = Reply::new(403, details(&error));
        Step::Reply(match self.terse {
            true => reply,
            false => reply.body(format!("Failed JWT authentication: {error}")),
        })
    }
}

/// The URI that a refusal names.
fn realm(request: &RequestHead) -> Vec<u8> {
    let path = request.fields.get(Known::XEnvoyOriginalPath).unwrap_or(request.path());
    let path = path.get(..MAX_PATH).unwrap_or(path);
    [request.scheme(), b"://", request.authority(), path].concat()
}

/// Fetches keys; says whether they came. They are in their place then.
async fn fetch(worker: &Rc<Worker>, remote: &RemoteKeys, stats: &JwtStats) -> bool {
    let target = &remote.target;
    let timeout = target.timeout;
    let per_try = remote.retries.and_then(|retries| retries.per_try(timeout));
    let mut request = call::head(b"GET", &target.authority, &target.path, b"http");
    request.fields.push_known(Known::UserAgent, USER_AGENT);
    call::sign(&mut request, worker, per_try.or(timeout));
    let call = Call { request, body: bytes::Bytes::new(), timeout, most: MAX_KEYS, retries: remote.retries };
    let keys = match call.send(worker.clone(), target.cluster.clone()).await {
        Ok(answer) if answer.head.status == 200 => KeySet::parse(&answer.body),
        _ => None,
    };
    match keys {
        Some(keys) => {
            stats.jwks_fetch_success.increment(1);
            remote.put(keys, Instant::now());
            true
        }
        None => {
            stats.jwks_fetch_failed.increment(1);
            tracing::warn!(cluster = &**remote.target.cluster.name(), "keys of tokens cannot be fetched");
            false
        }
    }
}

/// Keys that are fetched ahead, and when that is due.
struct Ahead {
    remote: Weak<RemoteKeys>,
    stats: Arc<JwtStats>,
    due: Instant,
    /// Gone while nobody fetches them.
    running: Weak<()>,
}

/// All such keys of the process. Whichever worker looks first when they are due fetches them for all.
static AHEAD: Mutex<Vec<Ahead>> = Mutex::new(Vec::new());
/// Keys that are fetched ahead are renewed so long before they are too old.
const MARGIN: std::time::Duration = std::time::Duration::from_secs(5);

/// From now on these are fetched ahead.
pub fn fetch_ahead(remote: &Arc<RemoteKeys>, stats: &Arc<JwtStats>) {
    let mut all = AHEAD.lock().unwrap_or_else(PoisonError::into_inner);
    let (remote, due) = (Arc::downgrade(remote), Instant::now());
    all.push(Ahead { remote, stats: stats.clone(), due, running: Weak::new() });
}

/// Fetches the keys that are due. Called about once a second.
pub fn tick(worker: &Rc<Worker>, now: Instant) {
    let mut all = AHEAD.lock().unwrap_or_else(PoisonError::into_inner);
    if all.is_empty() {
        return;
    }
    all.retain_mut(|ahead| {
        let Some(remote) = ahead.remote.upgrade() else { return false };
        // A service that is away for long is asked by one task.
        if now >= ahead.due && ahead.running.strong_count() == 0 {
            // Until it is known how it went.
            let lifetime = remote.lifetime;
            ahead.due = now + lifetime.checked_sub(MARGIN).filter(|left| !left.is_zero()).unwrap_or(lifetime);
            let (worker, stats) = (worker.clone(), ahead.stats.clone());
            let running = Arc::new(());
            ahead.running = Arc::downgrade(&running);
            tokio::task::spawn_local(async move {
                let _running = running;
                while !fetch(&worker, &remote, &stats).await {
                    tokio::time::sleep(remote.ahead.unwrap_or(remote.lifetime)).await;
                    if Arc::strong_count(&remote) == 1 {
                        break;
                    }
                }
            });
        }
        true
    });
}
