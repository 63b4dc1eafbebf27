//! What tables, virtual hosts, routes and weighted clusters say to HTTP filters (`typed_per_filter_config`).
//!
//! Comes in: a map from names of filters to their options, one for each level. Goes out: for each route (or weighted
//! cluster) that has any, [`Overrides`]: what all levels say to one filter stands together, the most specific first.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;
use smallvec::SmallVec;

use crate::config::compile::{extension, http_filters, on_demand};
use crate::config::problems::Problems;
use crate::config::{Cluster, Directory};
use crate::http::filters;

/// The name of a filter, as routes and connection managers spell it. Two are compared by a number.
#[derive(Debug, Clone)]
pub struct FilterName {
    hash: u64,
    text: Arc<str>,
}

impl FilterName {
    /// The filter called `name`.
    pub fn new(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self { hash: hasher.finish(), text: name.into() }
    }

    /// As it is spelled.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }
}

impl PartialEq for FilterName {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for FilterName {}

/// What a route says to one kind of filter.
#[derive(Debug)]
#[allow(missing_docs)] // Each is that of the filter of its name.
pub enum RouteFilter {
    Cors(filters::cors::Policy),
    Fault(filters::fault::Settings),
    HeaderMutation(filters::header_mutation::Mutations),
    LocalRateLimit(filters::local_ratelimit::Config),
    Csrf(filters::csrf::Policy),
    BasicAuth(filters::basic_auth::PerRoute),
    CustomResponse(filters::custom_response::Config),
    BandwidthLimit(Arc<filters::bandwidth_limit::Config>),
    ApiKeyAuth(filters::api_key_auth::PerRoute),
    Buffer(filters::buffer::PerRoute),
    HeaderToMetadata(filters::header_to_metadata::Config),
    SetFilterState(filters::set_filter_state::Config),
    StatefulSession(filters::stateful_session::PerRoute),
    Rbac(crate::policy::rbac::Rules),
    JwtAuthn(filters::jwt_authn::PerRoute),
    OAuth2(Box<filters::oauth2::Settings>),
    ExtAuthz(filters::ext_authz::PerRoute),
    RateLimit(filters::ratelimit::PerRoute),
    Compressor(filters::compressor::PerRoute),
    ExtProc(filters::ext_proc::PerRoute),
    Lua(filters::lua::PerRoute),
}

/// What a route says to all filters.
#[derive(Debug, Default)]
pub struct Overrides {
    entries: Box<[Override]>,
    /// The policies in the fields called `cors`, the route's first: they count where nothing is said to the filter.
    pub cors: Box<[Arc<RouteFilter>]>,
}

/// What a route says to one filter.
#[derive(Debug, Clone)]
pub struct Override {
    name: FilterName,
    /// The filter is off here; otherwise it is on.
    pub disabled: bool,
    /// What each level says, the most specific first.
    pub levels: SmallVec<[Arc<RouteFilter>; 1]>,
}

impl Overrides {
    /// What is said to the filter called `name`.
    pub fn find(&self, name: &FilterName) -> Option<&Override> {
        self.entries.iter().find(|entry| entry.name == *name)
    }
}

/// What one level says, in the order of names.
#[derive(Debug, Default)]
pub(super) struct Level {
    filters: Vec<(FilterName, bool, Option<Arc<RouteFilter>>)>,
    cors: Option<Arc<RouteFilter>>,
}

impl Level {
    /// Compiles `options`; clusters that they name get a slot in `clusters`.
    pub(super) fn compile(
        options: &HashMap<String, Any>,
        clusters: &Directory<Cluster>,
        problems: &mut Problems,
    ) -> Self {
        let mut names: Vec<_> = options.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        let mut filters = Vec::new();
        for (name, any) in names {
            problems.at(format_args!("typed_per_filter_config[{name:?}]"), |problems| {
                if let Some((disabled, filter)) = entry(any, clusters, problems) {
                    filters.push((FilterName::new(name), disabled, filter.map(Arc::new)));
                }
            });
        }
        Self { filters, cors: None }
    }

    /// With the policy in the field `cors`.
    pub(super) fn with_cors(mut self, config: Option<&pb::CorsPolicy>, problems: &mut Problems) -> Self {
        let policy = config.and_then(|config| {
            problems.at("cors", |problems| filters::cors::Policy::of_field(config, problems))
        });
        self.cors = policy.map(|policy| Arc::new(RouteFilter::Cors(policy)));
        self
    }

    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.filters.is_empty() && self.cors.is_none()
    }
}

/// Whether the filter is off, and what is said to it. `None` if that is nothing, or a problem was reported.
fn entry(
    any: &Any,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<(bool, Option<RouteFilter>)> {
    match type_of(any) {
        // It makes requests wait and is no step of its own.
        on_demand::PER_ROUTE => None,
        "envoy.config.route.v3.FilterConfig" => {
            let config: pb::FilterConfig = extension(any, "", problems)?;
            match &config.config {
                _ if config.disabled => Some((true, None)),
                None => {
                    problems.report("needs either config or disabled");
                    None
                }
                // On, with nothing more to say.
                Some(inner) if inner.type_url.is_empty() => Some((false, None)),
                Some(inner) => problems.at("config", |problems| {
                    let optional = config.is_optional;
                    Some((false, Some(http_filters::compile_route(inner, optional, clusters, problems)?)))
                }),
            }
        }
        _ => Some((false, Some(http_filters::compile_route(any, false, clusters, problems)?))),
    }
}

/// What `levels` say together, the most specific of them first; `None` if that is nothing.
pub(super) fn merge(levels: &[&Level]) -> Option<Arc<Overrides>> {
    if levels.iter().all(|level| level.is_empty()) {
        return None;
    }
    let mut entries: Vec<Override> = Vec::new();
    for (name, disabled, filter) in levels.iter().flat_map(|level| &level.filters) {
        match entries.iter_mut().find(|entry| entry.name == *name) {
            Some(entry) => entry.levels.extend(filter.clone()),
            None => entries.push(Override {
                name: name.clone(),
                disabled: *disabled,
                levels: filter.iter().cloned().collect(),
            }),
        }
    }
    let cors = levels.iter().filter_map(|level| level.cors.clone()).collect();
    Some(Arc::new(Overrides { entries: entries.into(), cors }))
}
