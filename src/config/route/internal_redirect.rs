//! Redirects that are followed here, so that the client sees only what they lead to (`InternalRedirectPolicy`).

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use outrigger_control_api::type_of;

use crate::config::compile::extension;
use crate::config::headers::HeaderKey;
use crate::config::problems::Problems;

const PREVIOUS: &str = "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig";
const ALLOWED: &str = "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig";
const SAFE: &str = "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig";

/// What frames a body is each message's own.
const FRAMING: [&str; 4] = ["content-length", "transfer-encoding", "connection", "upgrade"];

/// Which redirects of an upstream are followed.
#[derive(Debug)]
pub struct InternalRedirects {
    /// A redirect is followed if the request has followed fewer than this so far. Default 1.
    pub max: u32,
    /// Statuses of redirects: some of 301, 302, 303, 307 and 308. Default 302.
    pub statuses: Box<[u16]>,
    /// A redirect may change between `http` and others.
    pub cross_scheme: bool,
    /// Fields of the redirect that the next request gets in place of its own.
    pub copied: Box<[HeaderKey]>,
    predicates: Box<[Predicate]>,
}

#[derive(Debug)]
enum Predicate {
    /// The route is not one that this route has led to before.
    PreviousRoutes,
    /// It has one of these names.
    AllowListed(Box<[String]>),
    /// No redirect leads from plain HTTP to anything else.
    SafeCrossScheme,
}

/// Routes that redirects of one request have led to, each with the route that led there. A route without a name counts
/// as one with an empty name.
#[derive(Debug, Clone, Default)]
pub struct RoutesSoFar(Vec<[Option<Arc<str>>; 2]>);

/// A redirect that may be followed.
#[derive(Debug, Clone, Copy)]
pub struct Leads<'a> {
    /// The name of the route whose policy it is.
    pub from: Option<&'a Arc<str>>,
    /// The name of the route that it leads to.
    pub to: Option<&'a Arc<str>>,
    /// The request came by plain HTTP.
    pub from_http: bool,
    /// It leads to plain HTTP.
    pub to_http: bool,
}

impl InternalRedirects {
    /// Compiles what `route` says of them; `None` when it follows none, or a problem was reported.
    #[allow(deprecated)] // The older fields are still sent.
    pub(super) fn compile(route: &pb::RouteAction, problems: &mut Problems) -> Option<Self> {
        use pb::route_action::InternalRedirectAction;
        if let Some(policy) = &route.internal_redirect_policy {
            return problems.at("internal_redirect_policy", |problems| Self::of(policy, problems));
        }
        let handled = route.internal_redirect_action() == InternalRedirectAction::HandleInternalRedirect;
        let max = route.max_internal_redirects;
        let policy = pb::InternalRedirectPolicy { max_internal_redirects: max, ..Default::default() };
        handled.then(|| Self::of(&policy, problems)).flatten()
    }

    fn of(policy: &pb::InternalRedirectPolicy, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        // Others are not valid, and ignored as in Envoy.
        let is_redirect = |code: &u16| matches!(code, 301 | 302 | 303 | 307 | 308);
        let codes = policy.redirect_response_codes.iter().filter_map(|code| u16::try_from(*code).ok());
        let statuses: Box<[u16]> = match policy.redirect_response_codes.is_empty() {
            true => [302].into(),
            false => codes.filter(is_redirect).collect(),
        };
        let predicates: Vec<_> = (policy.predicates.iter().enumerate())
            .filter_map(|(index, config)| {
                problems.at_index("predicates", index, |problems| predicate(config, problems))
            })
            .collect();
        for (index, name) in policy.response_headers_to_copy.iter().enumerate() {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let why = if name.starts_with(':') || is("host") {
                "neither host nor a name that begins with a colon may stand here"
            } else if FRAMING.into_iter().any(is) {
                "would change the framing of the next request"
            } else {
                continue;
            };
            problems.at_index("response_headers_to_copy", index, |problems| problems.report(why));
        }
        (problems.count() == before).then(|| Self {
            max: policy.max_internal_redirects.map_or(1, |max| max.value),
            statuses,
            cross_scheme: policy.allow_cross_scheme_redirect,
            copied: policy.response_headers_to_copy.iter().map(|name| HeaderKey::new(name)).collect(),
            predicates: predicates.into(),
        })
    }

    /// Whether all predicates let the request follow this redirect.
    pub fn accept(&self, leads: Leads<'_>, so_far: &mut RoutesSoFar) -> bool {
        self.predicates.iter().all(|predicate| match predicate {
            Predicate::PreviousRoutes => so_far.insert(leads),
            Predicate::AllowListed(names) => {
                let name = leads.to.map_or("", |name| name);
                names.iter().any(|allowed| allowed == name)
            }
            Predicate::SafeCrossScheme => !leads.from_http || leads.to_http,
        })
    }
}

impl RoutesSoFar {
    /// Notes where a redirect leads; false where it has led there before.
    fn insert(&mut self, leads: Leads<'_>) -> bool {
        let pair = [leads.from.cloned(), leads.to.cloned()];
        let new = !self.0.contains(&pair);
        if new {
            self.0.push(pair);
        }
        new
    }
}

fn predicate(config: &TypedExtensionConfig, problems: &mut Problems) -> Option<Predicate> {
    let Some(any) = &config.typed_config else {
        problems.report_at("typed_config", "is required");
        return None;
    };
    problems.at("typed_config", |problems| match type_of(any) {
        PREVIOUS => Some(Predicate::PreviousRoutes),
        SAFE => Some(Predicate::SafeCrossScheme),
        ALLOWED => {
            let config: AllowListedRoutesConfig = extension(any, "", problems)?;
            Some(Predicate::AllowListed(config.allowed_route_names.into()))
        }
        found => {
            problems.report(format_args!("there is no predicate {found}"));
            None
        }
    })
}
