//! Clients that say who they are by a key (`envoy.filters.http.api_key_auth`): in a header, a query parameter or a cookie.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use outrigger_control_api::pb::envoy::extensions::filters::http::api_key_auth::v3 as pb;

use super::chain::{At, Step};
use crate::config::matcher::cookie_value;
use crate::config::problems::Problems;
use crate::config::query::Query;
use crate::config::route::RouteFilter;
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known, RequestView};
use crate::http::cookies;
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::RequestHead;
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `http.<stat_prefix>.api_key_auth.`.
    pub struct ApiKeyStats {
        counters { allowed, unauthorized, forbidden }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: ApiKeyStats,
    settings: Settings,
}

/// What a route says (`ApiKeyAuthPerRoute`): the keys and sources that it leaves out are the filter's. What the upstream sees
/// is the route's alone to say, as in Envoy.
#[derive(Debug)]
pub struct PerRoute {
    settings: Settings,
    /// Clients that may pass; none = all that have a key.
    allowed: HashSet<Box<str>>,
}

/// What both have.
#[derive(Default)]
struct Settings {
    /// Clients by their keys.
    clients: Option<HashMap<Box<[u8]>, Box<str>>>,
    sources: Option<Box<[Source]>>,
    forwarding: Option<Forwarding>,
}

// Keys are no business of logs.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("sources", &self.sources)
            .field("forwarding", &self.forwarding)
            .finish_non_exhaustive()
    }
}

/// Where a key is looked for.
#[derive(Debug)]
enum Source {
    Header(HeaderKey),
    Query(Box<[u8]>),
    Cookie(Box<[u8]>),
}

/// What the upstream sees.
#[derive(Debug)]
struct Forwarding {
    /// The client's name goes into this header.
    header: Option<HeaderKey>,
    /// Keys are taken out.
    hides: bool,
}

impl Settings {
    fn compile(
        credentials: &[pb::Credential],
        sources: &[pb::KeySource],
        forwarding: Option<&pb::Forwarding>,
        problems: &mut Problems,
    ) -> Self {
        let mut clients = HashMap::with_capacity(credentials.len());
        for (index, credential) in credentials.iter().enumerate() {
            let key = credential.key.as_bytes().into();
            if clients.insert(key, Box::from(credential.client.as_str())).is_some() {
                problems.report_at(format_args!("credentials[{index}].key"), "another client has this key");
            }
        }
        let found = sources.iter().enumerate().filter_map(|(index, source)| {
            if !source.header.is_empty() {
                return Some(Source::Header(HeaderKey::new(&source.header)));
            }
            if !source.query.is_empty() {
                return Some(Source::Query(source.query.as_bytes().into()));
            }
            if !source.cookie.is_empty() {
                return Some(Source::Cookie(source.cookie.as_bytes().into()));
            }
            problems
                .report_at(format_args!("key_sources[{index}]"), "one of header, query, cookie is required");
            None
        });
        let found: Box<[Source]> = found.collect();
        Self {
            clients: (!clients.is_empty()).then_some(clients),
            sources: (!sources.is_empty()).then_some(found),
            forwarding: forwarding.map(|config| Forwarding {
                header: (!config.header.is_empty()).then(|| HeaderKey::new(&config.header)),
                hides: config.hide_credentials,
            }),
        }
    }
}

impl PerRoute {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::ApiKeyAuthPerRoute, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let settings =
            Settings::compile(&config.credentials, &config.key_sources, config.forwarding.as_ref(), problems);
        let allowed = config.allowed_clients.iter().map(|name| name.as_str().into()).collect();
        (problems.count() == before).then_some(Self { settings, allowed })
    }
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's. `None` when a problem was reported.
    pub fn compile(config: &pb::ApiKeyAuth, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let settings =
            Settings::compile(&config.credentials, &config.key_sources, config.forwarding.as_ref(), problems);
        let stats = ApiKeyStats::new(&stats.sub("api_key_auth"));
        (problems.count() == before).then_some(Self { stats, settings })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let own = match at.said() {
            Some(RouteFilter::ApiKeyAuth(said)) => Some(said),
            _ => None,
        };
        let Some(request) = &mut ex.request else { return Step::Continue };
        let own_settings = own.map(|own| &own.settings);
        let clients = own_settings.and_then(|own| own.clients.as_ref()).or(self.settings.clients.as_ref());
        let sources = own_settings.and_then(|own| own.sources.as_ref()).or(self.settings.sources.as_ref());
        let forwarding = own_settings.unwrap_or(&self.settings).forwarding.as_ref();
        let Some(sources) = sources else { return self.unknown("missing_key_sources") };
        let Some(clients) = clients else { return self.unknown("missing_credentials") };
        let key = sources.iter().find_map(|source| source.key(request).filter(|key| !key.is_empty()));
        let Some(key) = key else { return self.unknown("missing_api_key") };
        let Some(client) = clients.get(&*key) else { return self.unknown("unknown_api_key") };
        if own.is_some_and(|own| !own.allowed.is_empty() && !own.allowed.contains(client)) {
            self.stats.forbidden.increment(1);
            return Step::Reply(Reply::new(403, "client_not_allowed").body("Client is forbidden."));
        }
        if let Some(forwarding) = forwarding {
            if let Some(header) = &forwarding.header {
                request.set(header, client.as_bytes());
            }
            if forwarding.hides {
                sources.iter().for_each(|source| source.hide(request));
            }
        }
        self.stats.allowed.increment(1);
        Step::Continue
    }

    fn unknown(&self, details: &'static str) -> Step {
        self.stats.unauthorized.increment(1);
        Step::Reply(Reply::new(401, details).body("Client authentication failed."))
    }
}

impl Source {
    fn key<'r>(&self, request: &'r RequestHead) -> Option<Cow<'r, [u8]>> {
        match self {
            Source::Header(key) => {
                let value = request.first(key)?;
                Some(Cow::Borrowed(value.strip_prefix(b"Bearer ").unwrap_or(value)))
            }
            Source::Query(name) => Some(Cow::Owned(Query::decoded(request.path()).first(name)?.to_vec())),
            Source::Cookie(name) => {
                let pairs = request.fields.all(Known::Cookie).find_map(|pairs| cookie_value(pairs, name));
                pairs.map(Cow::Borrowed)
            }
        }
    }

    fn hide(&self, request: &mut RequestHead) {
        match self {
            Source::Header(key) => {
                request.remove(key);
            }
            Source::Query(name) => {
                let mut query = Query::decoded(request.path());
                query.remove(name);
                let path = query.written();
                request.set_path(&path);
            }
            Source::Cookie(name) => cookies::retain(request, |other| *other != **name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_for_one_client_and_comes_from_somewhere() {
        let config = pb::ApiKeyAuth {
            credentials: ["one", "two"]
                .map(|client| pb::Credential { key: "a".to_owned(), client: client.to_owned() })
                .into(),
            key_sources: vec![
                pb::KeySource { header: "x-key".to_owned(), ..Default::default() },
                pb::KeySource::default(),
            ],
            forwarding: None,
        };
        let mut problems = Problems::under("filter");
        let scope = Scope::http("api-key-test");
        assert!(Config::compile(&config, &scope, &mut problems).is_none());
        let told = problems.to_string();
        assert!(told.contains("filter.credentials[1].key"), "{told}");
        assert!(told.contains("filter.key_sources[1]"), "{told}");
    }
}
