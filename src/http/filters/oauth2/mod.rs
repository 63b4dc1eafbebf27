//! Browsers that log in at an OAuth2 provider (`envoy.filters.http.oauth2`): the authorization code flow, and the cookies
//! that stand for it afterwards.
//!
//! Comes in: a request's head. Goes out: the request of somebody who is logged in, a redirect to the provider, or to where
//! the flow began. [`session`] reads and writes cookies, [`flow`] the way to the provider and back, [`token`] asks it for
//! tokens. The order of the steps and what they answer are Envoy's.

pub mod flow;
pub mod session;
pub mod token;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use super::chain::{active, At, Step, Wait};
use super::{Awaited, Encoder, Pending};
use crate::config::matcher::{HeaderMatcher, StringMatcher};
use crate::config::route::RouteFilter;
use crate::config::services::{HttpTarget, Retries};
use crate::config::{HeaderKey, HeaderMutate, Known, RequestView};
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::format::{Format, FormatContext};
use crate::tls::secret::Content;
use flow::Callback;
use session::{Cookie, Cookies, Tokens};
use token::{Fetched, Grant};

crate::stats! {
    /// `http.<stat_prefix>.`, and the filter's own prefix.
    pub struct OAuthStats {
        counters {
            oauth_allow_failed_passthrough, oauth_failure, oauth_passthrough, oauth_refreshtoken_failure,
            oauth_refreshtoken_success, oauth_success, oauth_unauthorized_rq,
        }
        gauges {}
        histograms {}
    }
}

/// The filter. Without settings only routes have some.
#[derive(Debug)]
pub struct Config {
    /// What holds where no route says anything.
    pub settings: Option<Settings>,
}

/// A secret that comes by itself.
pub type Secret = Arc<OnceLock<Arc<crate::tls::Slot>>>;

/// How a client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Its secret is in the body.
    Body,
    /// It is in the `authorization` header.
    Basic,
    /// Its certificate says it.
    Certificate,
}

/// What becomes of the id token.
#[derive(Debug)]
pub struct IdTokenHeader {
    /// The header that it goes into.
    pub header: HeaderKey,
    /// After `Bearer `.
    pub bearer: bool,
}

/// `OAuth2Config`.
#[derive(Debug)]
pub struct Settings {
    /// Where tokens are.
    pub endpoint: HttpTarget,
    /// When it is asked again.
    pub retries: Option<Retries>,
    /// Where users log in, with what never changes in its query.
    pub authorization: Box<[u8]>,
    /// `&resource=...`.
    pub resources: Box<[u8]>,
    /// Where users log out.
    pub end_session: Option<Box<str>>,
    /// Where they go from there: `None` = to the host's root.
    pub after_logout: Option<Format>,
    /// The provider is not told where they go.
    pub untold_logout: bool,
    /// The client.
    pub client_id: Box<str>,
    /// Its secret; `None` where a certificate stands for it.
    pub client_secret: Option<Secret>,
    /// What signs and encrypts cookies.
    pub hmac_secret: Secret,
    /// How the client says who it is.
    pub auth: ClientAuth,
    /// Where the provider sends users back to.
    pub redirect_uri: Format,
    /// Which paths that is.
    pub callback: StringMatcher,
    /// Which paths log out.
    pub signout: StringMatcher,
    /// Where the flow began, if not the request's own scheme and host.
    pub original: Option<Format>,
    /// Hosts that users may be sent to; none = any.
    pub domains: Box<[Box<str>]>,
    /// Requests that pass as they are.
    pub pass: Vec<HeaderMatcher>,
    /// Requests that are refused and not redirected.
    pub deny: Vec<HeaderMatcher>,
    /// Requests that go on without anybody being logged in.
    pub allow_failed: Vec<HeaderMatcher>,
    /// The access token goes to the upstream.
    pub forward_bearer: bool,
    /// The id token does.
    pub forward_id: Option<IdTokenHeader>,
    /// The client's `authorization` header stays.
    pub preserve: bool,
    /// Tokens are renewed.
    pub refresh: bool,
    /// How long an access token lives if its provider does not say; zero = that is an error.
    pub expires: Duration,
    /// The same of refresh tokens.
    pub refresh_expires: Duration,
    /// How long a login may take.
    pub csrf_expires: Duration,
    /// The same, for its proof.
    pub verifier_expires: Duration,
    /// The cookie of an id token lives as long as the access token.
    pub id_expires_with_access: bool,
    /// No cookie of these is set: access, id and refresh tokens.
    pub unset: [bool; 3],
    /// Tokens stand in cookies as they are.
    pub plain: bool,
    /// The cookies' names and attributes.
    pub cookies: Cookies,
    /// Its statistics.
    pub stats: OAuthStats,
}

/// What a flow goes on with when its tokens are there.
#[derive(Debug)]
pub struct Begun {
    /// The flow's id; empty where it has none.
    flow: String,
    /// Where it began.
    url: Vec<u8>,
    /// Instead of a login tokens are renewed.
    renews: bool,
}

const UNAUTHORIZED: &str = "OAuth flow failed.";
const STATUS: &[u8] = b"x-envoy-oauth-status";
const REASON: &[u8] = b"x-envoy-oauth-failure-reason";

/// The secrets of a request's turn.
pub struct Keys {
    /// Of the client; empty where a certificate stands for it.
    pub client: Vec<u8>,
    /// Of cookies.
    pub hmac: Vec<u8>,
}

/// What is in a secret; `None` where it has not come, or is empty.
pub(super) fn secret(place: &Secret) -> Option<Vec<u8>> {
    match &place.get()?.load().as_ref()?.content {
        Content::Generic(secret) if !secret.is_empty() => Some(secret.to_vec()),
        _ => None,
    }
}

impl Settings {
    fn keys(&self) -> Option<Keys> {
        let client = match &self.client_secret {
            Some(place) => secret(place)?,
            None => Vec::new(),
        };
        Some(Keys { client, hmac: secret(&self.hmac_secret)? })
    }

    /// The host that cookies are bound to.
    fn domain<'r>(&'r self, request: &'r RequestHead) -> &'r [u8] {
        match &*self.cookies.domain {
            "" => request.authority(),
            domain => domain.as_bytes(),
        }
    }
}

/// The seconds since 1970.
fn now(ex: &Exchange<'_>) -> u64 {
    ex.worker.clock.system(ex.now).duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn rendered(format: &Format, ex: &Exchange<'_>, request: &RequestHead) -> Vec<u8> {
    let mut out = Vec::new();
    format.render(&mut out, &FormatContext::new(&ex.info).with_request(request));
    out
}

impl Config {
    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let settings = match at.said() {
            Some(RouteFilter::OAuth2(settings)) => Some(&**settings),
            _ => self.settings.as_ref(),
        };
        let Some(mut request) = ex.request.take() else { return Step::Continue };
        if !at.resumed {
            // Nobody but this filter may say so.
            request.fields.remove_where(|name| name == STATUS || name == REASON);
        }
        let step = settings.map_or(Step::Continue, |settings| {
            if at.resumed {
                let awaited = ex.filters.as_mut().and_then(|active| active.awaited.take());
                let Some(Awaited::Token(fetched)) = awaited else { return Step::Continue };
                let (begun, fetched) = *fetched;
                return settings.on_token(ex, &mut request, at, begun, fetched);
            }
            settings.on_request(ex, &mut request)
        });
        ex.request = Some(request);
        step
    }
}

impl Settings {
    fn on_request(&self, ex: &mut Exchange<'_>, request: &mut RequestHead) -> Step {
        if self.pass.iter().any(|matcher| matcher.matches(request)) {
            self.stats.oauth_passthrough.increment(1);
            return Step::Continue;
        }
        let Some(keys) = self.keys() else {
            self.stats.oauth_failure.increment(1);
            let details = "OAuth2 secrets are not ready";
            return Step::Reply(Reply::new(503, details).body("Service Unavailable"));
        };
        if !self.plain {
            self.cookies.decrypt(request, &keys.hmac);
        }
        if !self.preserve {
            request.fields.remove_known(Known::Authorization);
        }
        if let Some(forward) = &self.forward_id {
            request.remove(&forward.header);
        }
        let path = path_only(request.path());
        let calls_back = self.callback.matches(path);
        if self.signout.matches(path) {
            return self.sign_out(ex, request);
        }
        let tokens = self.cookies.tokens(request);
        if tokens.are_valid(&keys.hmac, self.domain(request), now(ex)) {
            self.stats.oauth_success.increment(1);
            self.forward(request, &tokens);
            if calls_back {
                return self.again(request, &keys);
            }
            self.cookies.hide_flow(request);
            return Step::Continue;
        }
        if calls_back {
            return self.call_back(ex, request, &keys);
        }
        if self.refresh && !tokens.refresh.is_empty() {
            let begun = Begun { flow: String::new(), url: Vec::new(), renews: true };
            return self.fetch(ex, begun, &Grant::Refresh(&tokens.refresh), &keys);
        }
        let shown = String::from_utf8_lossy(request.path()).into_owned();
        let failed = "Unauthorized, and forwarding as unauthorized because OAuth failure is allowed: ";
        let denied = "Unauthorized, and redirecting to OAuth server is not allowed: ";
        self.unless_allowed(ex, request, &keys, &format!("{failed}{shown}"), &format!("{denied}{shown}"))
    }

    /// Somebody is not logged in: they go on so, are refused, or are sent to the provider.
    fn unless_allowed(
        &self,
        ex: &Exchange<'_>,
        request: &mut RequestHead,
        keys: &Keys,
        failed: &str,
        denied: &str,
    ) -> Step {
        if self.allows_failure(request) {
            return self.go_on(request, failed);
        }
        if self.deny.iter().any(|matcher| matcher.matches(request)) {
            return self.unauthorized(denied, "");
        }
        self.redirect(ex, request, keys)
    }

    fn allows_failure(&self, request: &RequestHead) -> bool {
        !self.callback.matches(path_only(request.path()))
            && self.allow_failed.iter().any(|matcher| matcher.matches(request))
    }

    /// The request goes on without anybody being logged in.
    fn go_on(&self, request: &mut RequestHead, reason: &str) -> Step {
        self.cookies.hide_all(request);
        request.fields.push(STATUS, b"failed");
        request.fields.push(REASON, reason.as_bytes());
        self.stats.oauth_allow_failed_passthrough.increment(1);
        Step::Continue
    }

    fn forward(&self, request: &mut RequestHead, tokens: &Tokens) {
        if self.forward_bearer && !tokens.access.is_empty() {
            request.fields.set_known(Known::Authorization, &[b"Bearer ", &*tokens.access].concat());
        }
        if let Some(forward) = self.forward_id.as_ref().filter(|_| !tokens.id.is_empty()) {
            let prefix: &[u8] = if forward.bearer { b"Bearer " } else { b"" };
            request.set(&forward.header, &[prefix, &*tokens.id].concat());
        }
    }

    /// The answer to a flow that failed.
    fn unauthorized(&self, details: &str, flow: &str) -> Step {
        self.stats.oauth_failure.increment(1);
        let mut fields = Fields::default();
        if !flow.is_empty() {
            self.cookies.end_flow(&mut fields, flow);
        }
        let reply = Reply::new(401, details.to_owned()).body(UNAUTHORIZED);
        Step::Reply(reply.with_fields(fields))
    }

    fn found(location: Vec<u8>, details: &'static str, fields: Fields) -> Step {
        Step::Reply(Reply::new(302, details).location(location).with_fields(fields))
    }

    /// To the provider.
    fn redirect(&self, ex: &Exchange<'_>, request: &RequestHead, keys: &Keys) -> Step {
        let scheme: &[u8] = if request.scheme() == b"http" { b"http" } else { b"https" };
        let base = match &self.original {
            Some(format) => rendered(format, ex, request),
            None => [scheme, b"://", request.authority()].concat(),
        };
        let may = |url: &[u8]| flow::is_allowed(url, &self.domains);
        if !may(&base) {
            let shown = String::from_utf8_lossy(&base);
            let why =
                format!("authority or original_request_uri failed domain allow-list validation: {shown}");
            return self.unauthorized(&why, "");
        }
        let redirect_uri = rendered(&self.redirect_uri, ex, request);
        if !may(&redirect_uri) {
            let shown = String::from_utf8_lossy(&redirect_uri);
            return self
                .unauthorized(&format!("redirect_uri failed domain allow-list validation: {shown}"), "");
        }
        let flow = format!("{:016x}", ex.worker.random());
        let csrf = session::csrf_token(&keys.hmac, &flow);
        let Some(verifier) = flow::verifier() else {
            return self.unauthorized("there is no randomness for a code verifier", "");
        };
        let mut fields = Fields::default();
        let mut both = |cookie: &Cookie, value: &[u8], age: Duration| {
            for name in [format!("{}.{flow}", cookie.name), cookie.name.to_string()] {
                self.cookies.set(&mut fields, cookie, &name, value, age.as_secs());
            }
        };
        both(&self.cookies.nonce, csrf.as_bytes(), self.csrf_expires);
        let Some(sealed) = session::encrypt(verifier.as_bytes(), &keys.hmac) else {
            return self.unauthorized("the code verifier cannot be encrypted", "");
        };
        both(&self.cookies.verifier, sealed.as_bytes(), self.verifier_expires);
        let original = [&*base, request.path()].concat();
        let state = flow::state(&original, &csrf, &flow);
        let mut location = flow::authorization(&self.authorization, &state, &redirect_uri, &verifier);
        location.extend_from_slice(&self.resources);
        self.stats.oauth_unauthorized_rq.increment(1);
        Self::found(location, "oauth.missing_credentials", fields)
    }

    fn sign_out(&self, ex: &Exchange<'_>, request: &RequestHead) -> Step {
        let mut fields = Fields::default();
        self.cookies.sign_out(&mut fields, request);
        let root = [request.scheme(), b"://", request.authority(), b"/"].concat();
        let Some(end) = &self.end_session else {
            return Self::found(root, "oauth.sign_out", fields);
        };
        let hint = self.cookies.tokens(request).id;
        let mut location = end.as_bytes().to_vec();
        for part in [&b"?id_token_hint="[..], &hint, b"&client_id=", self.client_id.as_bytes()] {
            location.extend_from_slice(part);
        }
        if !self.untold_logout {
            let uri = self.after_logout.as_ref().map_or(root, |format| rendered(format, ex, request));
            location.extend_from_slice(b"&post_logout_redirect_uri=");
            crate::config::query::encode(&mut location, &uri, crate::config::query::is_unreserved);
        }
        Self::found(location, "oauth.sign_out", fields)
    }

    /// The provider sends somebody back who is logged in already.
    fn again(&self, request: &RequestHead, keys: &Keys) -> Step {
        match self.callback(request, keys) {
            Callback::Bad { details, flow } => self.unauthorized(&details, &flow),
            Callback::Good { url, flow, .. } => {
                let path = flow::path_of(&url);
                if self.callback.matches(path_only(path)) {
                    let shown = String::from_utf8_lossy(path);
                    let why = format!("State url query params matches the redirect path matcher: {shown}");
                    return self.unauthorized(&why, &flow);
                }
                let mut fields = Fields::default();
                self.cookies.end_flow(&mut fields, &flow);
                Self::found(url, "oauth.race_redirect", fields)
            }
        }
    }

    fn callback(&self, request: &RequestHead, keys: &Keys) -> Callback {
        flow::callback(request, &keys.hmac, &self.cookies.nonce.name, &self.domains)
    }

    /// The provider sends somebody back with a code.
    fn call_back(&self, ex: &mut Exchange<'_>, request: &RequestHead, keys: &Keys) -> Step {
        let (code, url, flow) = match self.callback(request, keys) {
            Callback::Bad { details, flow } => return self.unauthorized(&details, &flow),
            Callback::Good { code, url, flow } => (code, url, flow),
        };
        let redirect_uri = rendered(&self.redirect_uri, ex, request);
        let Some(sealed) = session::of_flow(request, &self.cookies.verifier.name, &flow) else {
            return self.unauthorized("Code verifier cookie is missing in the request", &flow);
        };
        let verifier = match session::decrypt(&sealed, &keys.hmac) {
            Ok(verifier) => verifier,
            Err(error) => {
                let shown = String::from_utf8_lossy(&sealed);
                let why = format!("Failed to decrypt code verifier: {shown}, error: {error}");
                return self.unauthorized(&why, &flow);
            }
        };
        let grant = Grant::Code { code: &code, redirect_uri: &redirect_uri, verifier: &verifier };
        self.fetch(ex, Begun { flow, url, renews: false }, &grant, keys)
    }

    fn fetch(&self, ex: &mut Exchange<'_>, begun: Begun, grant: &Grant<'_>, keys: &Keys) -> Step {
        let call = token::call(self, grant, keys, ex.worker);
        let (worker, slot) = (ex.worker.clone(), self.endpoint.cluster.clone());
        let (renews, expires) = (begun.renews, self.expires);
        active(ex).pending = Some(Pending::new(async move {
            let answer = call.send(worker, slot).await;
            Awaited::Token(Box::new((begun, token::read(answer, renews, expires))))
        }));
        Step::Wait(Wait::Answer)
    }

    /// The provider has answered.
    fn on_token(
        &self,
        ex: &mut Exchange<'_>,
        request: &mut RequestHead,
        at: &At<'_>,
        begun: Begun,
        fetched: Fetched,
    ) -> Step {
        let Some(keys) = self.keys() else { return self.unauthorized("OAuth2 secrets are not ready", "") };
        let (answer, lives) = match fetched {
            Fetched::Tokens(tokens, lives) => (tokens, lives),
            Fetched::Refused => {
                self.stats.oauth_refreshtoken_failure.increment(1);
                let failed = "Failed to refresh the access token, and forwarding as unauthorized because OAuth failure is allowed";
                let denied =
                    "Failed to refresh the access token, and redirecting to OAuth server is not allowed";
                return self.unless_allowed(ex, request, &keys, failed, denied);
            }
            Fetched::Failed { reason, details } => {
                if self.allows_failure(request) {
                    return self.go_on(request, reason);
                }
                let all = if details.is_empty() { reason.to_owned() } else { format!("{reason}: {details}") };
                return self.unauthorized(&all, &begun.flow);
            }
        };
        let now = now(ex);
        let until = now.saturating_add(lives.as_secs()).to_string();
        let refresh_lives = match self.refresh {
            true => session::lifetime(&answer.refresh, now).unwrap_or(self.refresh_expires.as_secs()),
            false => lives.as_secs(),
        };
        let id_lives = match self.id_expires_with_access {
            true => lives.as_secs(),
            false => session::lifetime(&answer.id, now).unwrap_or(lives.as_secs()),
        };
        let [no_access, no_id, no_refresh] = self.unset;
        let keep = |unset: bool, token: Vec<u8>| if unset { Vec::new() } else { token };
        let mut tokens = Tokens {
            access: keep(no_access, answer.access),
            id: keep(no_id, answer.id),
            refresh: keep(no_refresh || !self.refresh, answer.refresh),
            expires: until.into_bytes(),
            hmac: Vec::new(),
        };
        if begun.renews && tokens.refresh.is_empty() {
            // The old one stays good.
            tokens.refresh = self.cookies.tokens(request).refresh;
        }
        tokens.sign(&keys.hmac, self.domain(request));
        let lifetimes = [lives.as_secs(), id_lives, refresh_lives];
        let set = self.cookies.login(request, &tokens, lifetimes, (!self.plain).then_some(&*keys.hmac));
        self.stats.oauth_success.increment(1);
        if !begun.renews {
            let mut fields = set;
            self.cookies.end_flow(&mut fields, &begun.flow);
            return Self::found(begun.url, "oauth.logged_in", fields);
        }
        self.stats.oauth_refreshtoken_success.increment(1);
        self.cookies.renew(request, &tokens);
        self.forward(request, &tokens);
        self.cookies.hide_flow(request);
        at.encode(ex, Encoder::OAuth2(Box::new(set)));
        Step::Continue
    }
}

/// A response gets these fields.
pub(super) fn on_response(fields: &Fields, head: &mut ResponseHead) {
    for (_, name, value) in fields.iter() {
        head.fields.push(name, value);
    }
}

/// A path as path matchers see it.
fn path_only(path: &[u8]) -> &[u8] {
    path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_without_their_query() {
        assert_eq!(path_only(b"/callback?code=1"), b"/callback");
        assert_eq!(path_only(b""), b"");
    }
}
