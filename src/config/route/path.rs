//! What a route demands of a request: its path, and everything else.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as pb;

use super::beyond::Beyond;
use crate::config::headers::{HeaderKey, RequestView};
use crate::config::matcher::{CookieMatcher, Fraction, HeaderMatcher, QueryParameterMatcher};
use crate::config::problems::Problems;
use crate::config::regex::Regex;

/// A route's path matcher. Paths are compared without query and fragment.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Starts with.
    Prefix(PathText),
    /// Is.
    Exact(PathText),
    /// Is, or starts with and goes on with `/`.
    SeparatedPrefix(PathText),
    /// Matches as a whole.
    Regex(Regex),
    /// Any CONNECT request, and CONNECT-UDP.
    Connect,
}

/// The fixed text of a path matcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathText {
    /// The text, as configured.
    pub text: Box<[u8]>,
    /// Whether ASCII case counts (`case_sensitive`).
    pub case_sensitive: bool,
}

/// A request's path, prepared once for all routes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestPath<'r> {
    /// As sent; empty for a request without a path.
    full: &'r [u8],
    /// Without query, fragment and what else matching is to ignore.
    bare: &'r [u8],
}

impl<'r> RequestPath<'r> {
    /// `bare` is its path [`without_parameters`], where those are to be ignored.
    pub(super) fn new(full: &'r [u8], bare: Option<&'r [u8]>) -> Self {
        Self { full, bare: bare.unwrap_or_else(|| without_query(full)) }
    }
}

/// `path` up to its query or fragment.
pub(super) fn without_query(path: &[u8]) -> &[u8] {
    let end = memchr::memchr2(b'?', b'#', path).unwrap_or(path.len());
    path.get(..end).unwrap_or(path)
}

/// `path` without its query, and without what follows a semicolon in each of its segments; `None` if nothing does.
pub(super) fn without_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let path = without_query(path);
    memchr::memchr(b';', path)?;
    let segments = path.split(|byte| *byte == b'/').map(|segment| segment.split(|byte| *byte == b';').next());
    Some(segments.map(Option::unwrap_or_default).collect::<Vec<_>>().join(&b'/'))
}

impl PathText {
    fn equals(&self, path: &[u8]) -> bool {
        if self.case_sensitive {
            path == &*self.text
        } else {
            path.eq_ignore_ascii_case(&self.text)
        }
    }

    fn starts(&self, path: &[u8]) -> bool {
        path.get(..self.text.len()).is_some_and(|start| self.equals(start))
    }
}

impl PathMatch {
    fn matches<R: RequestView>(&self, path: RequestPath<'_>, request: &R) -> bool {
        if path.full.is_empty() && !matches!(self, PathMatch::Connect) {
            return false;
        }
        match self {
            PathMatch::Prefix(text) => text.starts(path.bare),
            PathMatch::Exact(text) => text.equals(path.bare),
            PathMatch::SeparatedPrefix(text) => {
                text.starts(path.bare) && matches!(path.bare.get(text.text.len()), None | Some(b'/'))
            }
            PathMatch::Regex(regex) => regex.matches(path.bare),
            PathMatch::Connect => match request.upgrade() {
                None => request.method() == b"CONNECT",
                Some(b"connect") => true,
                Some(protocol) => protocol.eq_ignore_ascii_case(b"connect-udp"),
            },
        }
    }

    /// How much of `path` a prefix rewrite replaces.
    pub(super) fn matched_length(&self, path: &[u8]) -> usize {
        match self {
            PathMatch::Prefix(text) | PathMatch::Exact(text) | PathMatch::SeparatedPrefix(text) => {
                text.text.len().min(path.len())
            }
            PathMatch::Regex(_) | PathMatch::Connect => without_query(path).len(),
        }
    }
}

/// What a route demands besides the path; all of it must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    pub(super) headers: Box<[HeaderMatcher]>,
    pub(super) query: Box<[QueryParameterMatcher]>,
    /// With the key of their header; `None` without any.
    pub(super) cookies: Option<(HeaderKey, Box<[CookieMatcher]>)>,
    pub(super) grpc: bool,
    pub(super) fraction: Option<Fraction>,
    pub(super) beyond: Option<Arc<Beyond>>,
}

/// What a rule demands of the requests that it is for, as a route would.
#[derive(Debug)]
pub struct RequestMatch {
    matched: PathMatch,
    conditions: Conditions,
}

impl RequestMatch {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::RouteMatch, problems: &mut Problems) -> Option<Self> {
        for (field, set) in
            [("runtime_fraction", config.runtime_fraction.is_some()), ("grpc", config.grpc.is_some())]
        {
            if set {
                problems.report_at(field, "only routes have it");
            }
        }
        let (matched, conditions) = super::compile::route_match(config, problems)?;
        Some(Self { matched, conditions })
    }

    /// Whether a request meets it.
    pub fn matches<R: RequestView>(&self, request: &R) -> bool {
        matches(&self.matched, &self.conditions, RequestPath::new(request.path(), None), request, 0)
    }
}

/// Whether a request meets a route's demands.
pub(super) fn matches<R: RequestView>(
    matched: &PathMatch,
    conditions: &Conditions,
    path: RequestPath<'_>,
    request: &R,
    random: u64,
) -> bool {
    matched.matches(path, request)
        && conditions.fraction.is_none_or(|fraction| fraction.holds(random))
        && (!conditions.grpc || request.is_grpc())
        && conditions.headers.iter().all(|matcher| matcher.matches(request))
        && conditions.query.iter().all(|matcher| matcher.matches(path.full))
        && conditions.beyond.as_ref().is_none_or(|beyond| beyond.holds(request.stream()))
        && conditions
            .cookies
            .as_ref()
            .is_none_or(|(key, matchers)| matchers.iter().all(|matcher| matcher.matches(request, key)))
}
