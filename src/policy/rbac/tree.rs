//! The unified matcher (`xds.type.matcher.v3.Matcher`) with the inputs and actions of RBAC.
//!
//! A match whose own tree finds nothing counts as none, so that the search goes on; so does one that is to keep
//! matching (envoyproxy.io: matching_api). Where nothing is found at all, access is denied; so it is where something is
//! looked at that cannot be known.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::facts::{Facts, Whose};
use super::metadata::MetadataMatcher;
use super::ranges::Networks;
use super::{Action, Decision};
use crate::config::discovery::SanKind;
use crate::config::matcher::StringMatcher;
use crate::config::HeaderKey;
use crate::policy::cel::{Expression, Subject};

/// A compiled tree.
#[derive(Debug)]
pub struct Tree {
    /// Where it begins.
    pub root: Node,
    /// Whether one of its actions is about logs.
    pub logs: bool,
}

/// A matcher.
#[derive(Debug)]
pub struct Node {
    /// How it looks.
    pub search: Search,
    /// What counts when nothing is found.
    pub on_no_match: Option<Box<OnMatch>>,
}

/// How a matcher looks.
#[derive(Debug)]
pub enum Search {
    /// It finds nothing.
    Nothing,
    /// The first predicate that is true.
    List(Vec<(Predicate, OnMatch)>),
    /// By the whole value.
    Exact(Input, HashMap<Box<[u8]>, OnMatch>),
    /// By the longest beginning of the value; ordered from long to short.
    Prefix(Input, Vec<(Box<[u8]>, OnMatch)>),
}

/// What a match leads to.
#[derive(Debug)]
pub struct OnMatch {
    /// Where.
    pub then: Then,
    /// It does not count; the search goes on.
    pub keep_matching: bool,
}

/// Where a match leads.
#[derive(Debug)]
pub enum Then {
    /// Into another matcher.
    Node(Box<Node>),
    /// To a decision (`envoy.config.rbac.v3.Action`).
    Act(Arc<str>, Action),
}

/// A test.
#[derive(Debug)]
pub enum Predicate {
    /// The input is there and passes.
    Text(Input, StringMatcher),
    /// The input is an address in one of the networks.
    Ip(Input, Networks),
    /// What a filter has left passes.
    Metadata(Box<MetadataMatcher>),
    /// An expression is true.
    Expression(Box<Expression>),
    /// All of them.
    All(Vec<Predicate>),
    /// One of them.
    Any(Vec<Predicate>),
    /// The contrary.
    Not(Box<Predicate>),
}

/// What is looked at.
#[derive(Debug, Clone)]
pub enum Input {
    /// A request header; several values with commas between.
    Header(HeaderKey),
    /// The IP of an address.
    Ip(Whose),
    /// The port of an address.
    Port(Whose),
    /// SNI.
    ServerName,
    /// Names of one kind in the peer's certificate, with commas between.
    Names(SanKind),
    /// The subject of the peer's certificate.
    Subject,
}

/// What is looked at is not known and never will be, as with certificates without TLS: the whole tree gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unknown;

type Found<'t> = Result<Option<(&'t str, Action)>, Unknown>;

impl Tree {
    /// Whether an action is found.
    pub fn finds(&self, facts: &Facts<'_>) -> bool {
        self.root.find(facts).is_ok_and(|found| found.is_some())
    }

    /// The name of the action that is found.
    pub fn name(&self, facts: &Facts<'_>) -> Option<&str> {
        self.root.find(facts).ok().flatten().map(|(name, _)| name)
    }

    /// Decides.
    pub(super) fn decide(&self, facts: &Facts<'_>) -> Decision<'_> {
        let found = self.root.find(facts).unwrap_or(None);
        match found {
            Some((name, action)) => {
                let policy = Some(name).filter(|name| !name.is_empty());
                let log = self.logs.then_some(action == Action::Log);
                Decision { allowed: action != Action::Deny, policy, log }
            }
            None => Decision { allowed: false, policy: None, log: None },
        }
    }
}

impl Node {
    fn find(&self, facts: &Facts<'_>) -> Found<'_> {
        let found = match &self.search {
            Search::Nothing => None,
            Search::List(list) => first(list.iter().map(|(predicate, on_match)| {
                if predicate.matches(facts)? {
                    on_match.follow(facts)
                } else {
                    Ok(None)
                }
            }))?,
            Search::Exact(input, map) => {
                let on_match = input.look(facts, |value| map.get(value))?.flatten();
                on_match.map_or(Ok(None), |on_match| on_match.follow(facts))?
            }
            Search::Prefix(input, list) => {
                let found = input.look(facts, |value| {
                    let fitting = list.iter().filter(|(prefix, _)| value.starts_with(prefix));
                    first(fitting.map(|(_, on_match)| on_match.follow(facts)))
                })?;
                found.unwrap_or(Ok(None))?
            }
        };
        match (found, &self.on_no_match) {
            (None, Some(on_match)) => on_match.follow(facts),
            (found, _) => Ok(found),
        }
    }
}

/// The first that finds something.
fn first<'t>(mut all: impl Iterator<Item = Found<'t>>) -> Found<'t> {
    all.find(|found| !matches!(found, Ok(None))).unwrap_or(Ok(None))
}

impl OnMatch {
    fn follow(&self, facts: &Facts<'_>) -> Found<'_> {
        let found = match &self.then {
            Then::Node(node) => node.find(facts)?,
            Then::Act(name, action) => Some((&**name, *action)),
        };
        Ok(found.filter(|_| !self.keep_matching))
    }
}

impl Predicate {
    fn matches(&self, facts: &Facts<'_>) -> Result<bool, Unknown> {
        Ok(match self {
            Predicate::Text(input, matcher) => {
                input.look(facts, |value| matcher.matches(value))?.unwrap_or(false)
            }
            Predicate::Ip(input, networks) => {
                let is_inside = |value: &[u8]| {
                    let ip = std::str::from_utf8(value).ok().and_then(|text| text.parse::<IpAddr>().ok());
                    ip.is_some_and(|ip| networks.contains(ip))
                };
                input.look(facts, is_inside)?.unwrap_or(false)
            }
            Predicate::Metadata(matcher) => {
                matcher.matches(facts.dynamic.and_then(|all| all.get(&*matcher.filter)))
            }
            Predicate::Expression(expression) => expression.is_true(&Subject::from(facts)),
            Predicate::All(list) => {
                for predicate in list {
                    if !predicate.matches(facts)? {
                        return Ok(false);
                    }
                }
                true
            }
            Predicate::Any(list) => {
                let mut unknown = Ok(false);
                for predicate in list {
                    match predicate.matches(facts) {
                        Ok(true) => return Ok(true),
                        Ok(false) => {}
                        Err(Unknown) => unknown = Err(Unknown),
                    }
                }
                unknown?
            }
            Predicate::Not(inner) => !inner.matches(facts)?,
        })
    }
}

impl Input {
    /// Shows the value to `look`, if there is one.
    fn look<R>(&self, facts: &Facts<'_>, look: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Unknown> {
        Ok(match self {
            Input::Header(key) => {
                let request = facts.request.ok_or(Unknown)?;
                let mut values = 0u32;
                let mut joined = Vec::new();
                request.values(key, &mut |value| {
                    if values > 0 {
                        joined.push(b',');
                    }
                    values += 1;
                    joined.extend_from_slice(value);
                });
                (values > 0).then(|| look(&joined))
            }
            Input::Ip(whose) => facts.ip(*whose).map(|ip| look(ip.to_string().as_bytes())),
            Input::Port(whose) => {
                let port = facts.address(*whose).map(|address| address.port());
                port.map(|port| look(itoa::Buffer::new().format(port).as_bytes()))
            }
            Input::ServerName => {
                let name = facts.connection.server_name.as_deref().filter(|name| !name.is_empty());
                name.map(|name| look(name.as_bytes()))
            }
            Input::Names(kind) => {
                facts.connection.tls.as_ref().ok_or(Unknown)?;
                let mut names = facts.peer_names(*kind);
                match (names.next(), names.next()) {
                    (None, _) => None,
                    // The identity of a workload stands alone.
                    (Some(first), None) => Some(look(first.as_bytes())),
                    (Some(first), Some(second)) => {
                        let all: Vec<&str> = [first, second].into_iter().chain(names).collect();
                        Some(look(all.join(",").as_bytes()))
                    }
                }
            }
            Input::Subject => {
                let subject = facts.subject().ok_or(Unknown)?;
                (!subject.is_empty()).then(|| look(subject.as_bytes()))
            }
        })
    }
}
