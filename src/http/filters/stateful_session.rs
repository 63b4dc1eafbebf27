//! Requests of one session that go to one host (`envoy.filters.http.stateful_session`): a cookie or a header that the
//! client brings back names the host.
//!
//! Comes in: a request's head, and the head of its response with the host that gave it. Goes out: the host that the
//! request asks for, which the router tries first, and what the client is to bring back.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::prelude::{Engine as _, BASE64_STANDARD as BASE64};
use outrigger_control_api::pb::envoy::extensions::filters::http::stateful_session::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use outrigger_control_api::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use outrigger_control_api::type_of;
use prost::Message;

use super::chain::{active, At, Step};
use super::Encoder;
use crate::config::compile::extension;
use crate::config::problems::Problems;
use crate::config::route::{HashCookie, RouteFilter};
use crate::config::{HeaderKey, HeaderMutate, HeaderView, RequestView};
use crate::http::cookies;
use crate::http::exchange::Exchange;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::ResponseFlags;

crate::stats! {
    /// `http.<stat_prefix>.stateful_session.<stat_prefix>.`.
    pub struct SessionStats {
        counters { routed, failed_open, failed_closed, no_session }
        gauges {}
        histograms {}
    }
}

const COOKIE: &str = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
const HEADER: &str = "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState";

/// The filter, or what a route has instead.
#[derive(Debug)]
pub struct Config {
    /// `None`: there are no sessions.
    state: Option<State>,
    strict: bool,
    /// The status where a strict session's host cannot be used; 503 unless set.
    status: Option<u16>,
    stats: Option<SessionStats>,
}

/// What the client brings back.
#[derive(Debug)]
enum State {
    /// On paths below its own.
    Cookie(HashCookie),
    Header(HeaderKey),
}

/// What a route says (`StatefulSessionPerRoute`).
#[derive(Debug)]
pub enum PerRoute {
    /// Its requests belong to no session.
    Off,
    /// This instead of the filter's.
    Own(Arc<Config>),
}

/// A request's session.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    asked: Asked,
}

/// What a request says of its session.
#[derive(Debug)]
enum Asked {
    /// It is in none.
    Outside,
    /// It names no host.
    Any,
    /// It names the host at this address.
    Host(Vec<u8>),
}

/// What a cookie holds (`envoy.Cookie`).
#[derive(Clone, PartialEq, Message)]
struct Held {
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds since 1970; 0 = with the browser's session.
    #[prost(int64, tag = "2")]
    expires: i64,
}

impl Config {
    /// Compiles `config`, which counts below `stats`. `None` when a problem was reported.
    pub fn compile(config: &pb::StatefulSession, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let any = config.session_state.as_ref().and_then(|state| state.typed_config.as_ref());
        let state = any.and_then(|any| {
            problems.at("session_state.typed_config", |problems| match type_of(any) {
                COOKIE => {
                    let config: CookieBasedSessionState = extension(any, "", problems)?;
                    // Demanded by a field rule.
                    let cookie = config.cookie?;
                    let ttl = crate::config::compile::duration(&cookie.ttl, "cookie.ttl", problems);
                    let attributes = cookie.attributes.into_iter();
                    Some(State::Cookie(HashCookie {
                        name: cookie.name.into(),
                        ttl: ttl.filter(|ttl| !ttl.is_zero()),
                        path: (!cookie.path.is_empty()).then(|| cookie.path.into()),
                        attributes: attributes.map(|own| (own.name.into(), own.value.into())).collect(),
                    }))
                }
                HEADER => {
                    let config: HeaderBasedSessionState = extension(any, "", problems)?;
                    Some(State::Header(HeaderKey::new(&config.name)))
                }
                found => {
                    problems.report(format_args!("is of type {found}, must be of {COOKIE} or {HEADER}"));
                    None
                }
            })
        });
        let status = config.status_on_strict_destination_not_found;
        let status = (status > 0).then(|| u16::try_from(status).unwrap_or_default());
        if status.is_some_and(|status| !(100..600).contains(&status)) {
            problems.report_at("status_on_strict_destination_not_found", "is no HTTP status");
        }
        let name = config.stat_prefix.as_str();
        let stats = (!name.is_empty()).then(|| SessionStats::new(&stats.sub("stateful_session").sub(name)));
        (problems.count() == before).then_some(Self { state, strict: config.strict, status, stats })
    }

    pub(super) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let config = match at.said() {
            Some(RouteFilter::StatefulSession(PerRoute::Off)) => return Step::Continue,
            Some(RouteFilter::StatefulSession(PerRoute::Own(own))) => own,
            _ => self,
        };
        let Some(request) = &ex.request else { return Step::Continue };
        let wall = ex.worker.clock.system(ex.now).duration_since(UNIX_EPOCH).unwrap_or_default();
        let asked = config.state.as_ref().map_or(Asked::Outside, |state| state.read(request, wall));
        if !matches!(asked, Asked::Outside) || config.stats.is_some() {
            active(ex).session = Some(Box::new(Session { config: config.clone(), asked }));
            at.encode(ex, Encoder::StatefulSession);
        }
        Step::Continue
    }

    fn count(&self, which: impl Fn(&SessionStats) -> &metrics::Counter) {
        if let Some(stats) = &self.stats {
            which(stats).increment(1);
        }
    }
}

impl PerRoute {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::StatefulSessionPerRoute, problems: &mut Problems) -> Option<Self> {
        use pb::stateful_session_per_route::Override;
        Some(match config.r#override.as_ref()? {
            Override::Disabled(_) => Self::Off,
            Override::StatefulSession(own) => {
                let own = problems
                    .at("stateful_session", |problems| Config::compile(own, &Scope::raw(""), problems));
                Self::Own(Arc::new(own?))
            }
        })
    }
}

impl State {
    fn read(&self, request: &RequestHead, wall: Duration) -> Asked {
        let address = match self {
            State::Cookie(cookie) => {
                if cookie.path.as_deref().is_some_and(|own| !is_below(request.path(), own.as_bytes())) {
                    return Asked::Outside;
                }
                let found = || {
                    let (_, value) =
                        cookies::of(request).find(|(name, _)| *name == cookie.name.as_bytes())?;
                    address_in(BASE64.decode(value).ok()?, wall)
                };
                found()
            }
            State::Header(key) => request.first(key).and_then(|value| BASE64.decode(value).ok()),
        };
        address.filter(|address| !address.is_empty()).map_or(Asked::Any, Asked::Host)
    }
}

/// Whether `path` is `own` or below it.
fn is_below(path: &[u8], own: &[u8]) -> bool {
    let path = path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    match path.strip_prefix(own) {
        Some(rest) => rest.is_empty() || own.ends_with(b"/") || rest.starts_with(b"/"),
        None => false,
    }
}

/// The address in what a cookie holds; one that is over holds none. What is no message is the address itself.
fn address_in(held: Vec<u8>, wall: Duration) -> Option<Vec<u8>> {
    match Held::decode(held.as_slice()) {
        Ok(held) => {
            let over = held.expires != 0 && i64::try_from(wall.as_secs()).is_ok_and(|now| now > held.expires);
            (!over).then(|| held.address.into_bytes())
        }
        Err(_) => Some(held),
    }
}

impl Session {
    /// The address of the host that it asks for, and whether no other will do.
    pub fn wanted(&self) -> Option<(&[u8], bool)> {
        match &self.asked {
            Asked::Host(address) => Some((address, self.config.strict)),
            Asked::Outside | Asked::Any => None,
        }
    }

    /// The status where the host cannot be used.
    pub fn status(&self) -> Option<u16> {
        self.config.status.filter(|_| self.config.strict && self.wanted().is_some())
    }
}

/// The client is told which host it is with, where it does not know.
pub(super) fn on_response(ex: &mut Exchange<'_>, head: &mut ResponseHead) {
    let Some(session) = ex.filters.as_ref().and_then(|active| active.session.as_ref()) else { return };
    let Session { config, asked } = &**session;
    let Some(host) = &ex.info.host else {
        if config.strict && session.wanted().is_some() && ex.info.flags.contains(ResponseFlags::UH) {
            config.count(|stats| &stats.failed_closed);
        }
        return;
    };
    match asked {
        Asked::Outside => return config.count(|stats| &stats.no_session),
        Asked::Host(address) if **address == *host.address_text.as_bytes() => {
            return config.count(|stats| &stats.routed);
        }
        // In Envoy those count too that have asked for no host.
        Asked::Host(_) | Asked::Any if config.strict => {}
        Asked::Host(_) | Asked::Any => config.count(|stats| &stats.failed_open),
    }
    match &config.state {
        Some(State::Cookie(cookie)) => {
            let wall = ex.worker.clock.system(ex.now).duration_since(UNIX_EPOCH).unwrap_or_default();
            let expires = cookie.ttl.and_then(|ttl| i64::try_from((wall + ttl).as_secs()).ok());
            let held = Held { address: host.address_text.to_string(), expires: expires.unwrap_or_default() };
            head.fields.push(b"set-cookie", &cookie.set(&BASE64.encode(held.encode_to_vec())));
        }
        Some(State::Header(key)) => head.set(key, BASE64.encode(host.address_text.as_bytes()).as_bytes()),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_for_the_paths_below_its_own() {
        for (path, own, wanted) in [
            ("/", "/", true),
            ("/a/b?c", "/", true),
            ("/p", "/p", true),
            ("/p?x", "/p", true),
            ("/p/q", "/p", true),
            ("/pq", "/p", false),
            ("/", "/p", false),
            ("/p/q", "/p/", true),
        ] {
            assert_eq!(is_below(path.as_bytes(), own.as_bytes()), wanted, "{path} {own}");
        }
    }

    #[test]
    fn a_cookie_that_is_over_names_no_host() {
        let held = |expires| Held { address: "10.0.0.1:80".into(), expires }.encode_to_vec();
        let now = Duration::from_secs(100);
        let address = || Some(b"10.0.0.1:80".to_vec());
        assert_eq!(address_in(held(0), now), address());
        assert_eq!(address_in(held(100), now), address());
        assert_eq!(address_in(held(99), now), None);
        assert_eq!(address_in(b"127.0.0.1:8080".to_vec(), now).as_deref(), Some(&b"127.0.0.1:8080"[..]));
    }
}
