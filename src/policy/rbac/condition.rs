//! What a policy demands, as a tree of tests.
//!
//! Building it simplifies: nested lists become one, and alternatives about the same thing become one set.

use std::net::IpAddr;

use super::facts::{Facts, TextInput, Whose};
use super::metadata::MetadataMatcher;
use super::ranges::{Networks, Ports};
use super::text::TextSet;
use crate::config::matcher::HeaderMatcher;
use crate::config::{HeaderKey, HeaderView};
use crate::policy::cel::{Expression, Subject};
use crate::policy::state::StateMatcher;
use crate::tls::names::NameMatcher;

/// Where metadata is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataSource {
    /// What filters have left.
    Dynamic,
    /// The route's own.
    Route,
}

/// A test of facts.
#[derive(Debug)]
pub enum Condition {
    /// True.
    Always,
    /// False.
    Never,
    /// All of them.
    All(Box<[Condition]>),
    /// One of them.
    Any(Box<[Condition]>),
    /// The contrary.
    Not(Box<Condition>),
    /// A value of a text is in the set.
    Text(TextInput, TextSet),
    /// An address is in one of the networks.
    Ip(Whose, Networks),
    /// The destination's port is one of these.
    Port(Ports),
    /// A header that no set describes.
    Header(Box<HeaderMatcher>),
    /// The connection has TLS.
    Tls,
    /// The peer's certificate was verified, and has such a name if one is asked for.
    Verified(Option<Box<NameMatcher>>),
    /// Metadata have a value.
    Metadata(MetadataSource, Box<MetadataMatcher>),
    /// Filter state has a value.
    State(Box<StateMatcher>),
    /// An expression is true.
    Expression(Box<Expression>),
}

/// The head of something that is no HTTP request.
struct NoHead;

impl HeaderView for NoHead {
    fn values(&self, _: &HeaderKey, _: &mut dyn FnMut(&[u8])) {}

    fn first(&self, _: &HeaderKey) -> Option<&[u8]> {
        None
    }

    fn byte_size(&self) -> usize {
        0
    }
}

impl Condition {
    /// All of `list`.
    pub fn all(list: Vec<Self>) -> Self {
        let mut kept = Vec::with_capacity(list.len());
        for part in list {
            match part {
                Self::Always => {}
                Self::Never => return Self::Never,
                Self::All(parts) => kept.extend(parts),
                part => kept.push(part),
            }
        }
        kept.sort_by_key(Self::cost);
        match kept.len() {
            1 => kept.remove(0),
            0 => Self::Always,
            _ => Self::All(kept.into()),
        }
    }

    /// One of `list`.
    pub fn any(list: Vec<Self>) -> Self {
        let mut kept: Vec<Self> = Vec::with_capacity(list.len());
        let mut flat = Vec::with_capacity(list.len());
        for part in list {
            match part {
                Self::Any(parts) => flat.extend(parts),
                part => flat.push(part),
            }
        }
        for part in flat {
            match part {
                Self::Never => {}
                Self::Always => return Self::Always,
                part => {
                    let apart = kept.iter_mut().try_fold(part, |part, other| other.merge(part)).ok();
                    kept.extend(apart);
                }
            }
        }
        kept.sort_by_key(Self::cost);
        match kept.len() {
            1 => kept.remove(0),
            0 => Self::Never,
            _ => Self::Any(kept.into()),
        }
    }

    /// The contrary of `self`.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Always => Self::Never,
            Self::Never => Self::Always,
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// Takes an alternative about the same thing in (an error, by which the caller's fold ends); gives any other back.
    fn merge(&mut self, other: Self) -> Result<Self, ()> {
        match (self, other) {
            (Self::Text(input, set), Self::Text(same, more)) if *input == same => set.extend(more),
            (Self::Ip(whose, set), Self::Ip(same, more)) if *whose == same => set.extend(more),
            (Self::Port(set), Self::Port(more)) => set.extend(more),
            (_, other) => return Ok(other),
        }
        Err(())
    }

    /// Cheap tests come first.
    fn cost(&self) -> u32 {
        match self {
            Self::Always | Self::Never | Self::Tls => 0,
            Self::Port(_) => 1,
            Self::Ip(..) => 2,
            Self::Text(_, set) => 3 + 20 * u32::from(!set.is_plain()),
            Self::Header(_) => 6,
            Self::Verified(_) => 7,
            Self::Metadata(..) => 8,
            Self::State(_) => 8,
            Self::Expression(_) => 12,
            Self::Not(inner) => inner.cost().saturating_add(1),
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().fold(2, |sum, part| part.cost().saturating_add(sum))
            }
        }
    }

    /// Whether it is true of `facts`.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::All(parts) => parts.iter().all(|part| part.matches(facts)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(facts)),
            Self::Not(inner) => !inner.matches(facts),
            Self::Text(input, set) => facts.any_text(input, &mut |value| set.contains(value)),
            Self::Ip(whose, networks) => facts.ip(*whose).is_some_and(|ip: IpAddr| networks.contains(ip)),
            Self::Port(ports) => facts.destination_port().is_some_and(|port| ports.contains(port)),
            Self::Header(matcher) => match facts.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches(&NoHead),
            },
            Self::Tls => facts.connection.tls.is_some(),
            Self::Verified(name) => {
                let tls = facts.connection.tls.as_ref().filter(|tls| tls.is_verified());
                tls.is_some_and(|tls| {
                    let names = tls.peer_facts().map_or(&[][..], |facts| &facts.names);
                    name.as_deref()
                        .is_none_or(|wanted| names.iter().any(|(kind, name)| wanted.matches(*kind, name)))
                })
            }
            Self::State(matcher) => match facts.stream {
                Some(stream) => matcher.matches(stream),
                None => matcher.matches_connection(facts.connection),
            },
            Self::Expression(expression) => expression.is_true(&Subject::from(facts)),
            Self::Metadata(source, matcher) => matcher.matches(match (source, facts.route) {
                (MetadataSource::Dynamic, _) => facts.dynamic.and_then(|all| all.get(&*matcher.filter)),
                (MetadataSource::Route, Some(route)) => route.get(&*matcher.filter),
                // Without a route there is nothing that even an inverted matcher could look at.
                (MetadataSource::Route, None) => return false,
            }),
        }
    }
}
