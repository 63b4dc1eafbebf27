//! Answers in place of those that come (`envoy.filters.http.custom_response`): an upstream's response, or an answer of our
//! own, whose head matches is replaced by one of config's.
//!
//! Comes in: the head of a response. Goes out: nothing, or the answer in its place, which no filter sees any more.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::http::BodyFormat;
use crate::config::matcher::StringMatcher;
use crate::config::route::{HeaderOps, Override, RouteFilter};
use crate::config::HeaderKey;
use crate::config::HeaderView;
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::ResponseHead;
use crate::policy::cel::{Expression, Subject};
use crate::telemetry::format::FormatContext;

/// The filter, or what a route has instead.
#[derive(Debug)]
pub struct Config {
    /// The first that matches counts, if it leads to an answer.
    pub rules: Vec<(Test, Then)>,
    /// What counts when none does.
    pub otherwise: Option<Then>,
}

/// What a match leads to.
#[derive(Debug)]
pub enum Then {
    /// This answer.
    Answer(Arc<Policy>),
    /// Other rules, which may lead to none.
    Rules(Box<Config>),
}

/// A test of a response.
#[derive(Debug)]
pub enum Test {
    /// Its status passes.
    Status(StringMatcher),
    /// The class of its status, as `2xx`, passes.
    Class(StringMatcher),
    /// It has this header, whose value passes.
    Header(HeaderKey, StringMatcher),
    /// The request has this header, whose value passes.
    RequestHeader(HeaderKey, StringMatcher),
    /// `true` where it is an answer of our own, or else `false`, passes.
    Own(StringMatcher),
    /// An expression is true.
    Expression(Box<Expression>),
    /// All of them.
    All(Vec<Test>),
    /// One of them.
    Any(Vec<Test>),
    /// The contrary.
    Not(Box<Test>),
}

/// The answer (`LocalResponsePolicy`).
#[derive(Debug)]
pub struct Policy {
    /// Its status; `None` = that of the response.
    pub status: Option<u16>,
    /// Its body, or what the format has for one.
    pub body: Option<Bytes>,
    /// What its body is made by.
    pub format: Option<BodyFormat>,
    /// Changes to its head.
    pub headers: HeaderOps,
    /// `response_code_details`; `None` = those of the response.
    pub details: Option<Box<str>>,
}

/// What is to be done to a response.
#[derive(Debug)]
pub(super) struct Answers {
    /// Of the filter, or of the route.
    config: Source,
}

#[derive(Debug)]
enum Source {
    Filter(Arc<Config>),
    Route(Arc<RouteFilter>),
}

impl Config {
    /// What is to be done to the response.
    pub(super) fn encoder(config: &Arc<Self>, over: Option<&Override>) -> Answers {
        let said = over.and_then(|over| over.levels.first());
        let source = match said {
            Some(said) if matches!(**said, RouteFilter::CustomResponse(_)) => Source::Route(said.clone()),
            _ => Source::Filter(config.clone()),
        };
        Answers { config: source }
    }

    fn policy(&self, seen: &Seen<'_, '_>) -> Option<&Arc<Policy>> {
        let matching = self.rules.iter().filter(|(test, _)| test.passes(seen));
        let found = matching.map(|(_, then)| then).find_map(|then| then.policy(seen));
        found.or_else(|| self.otherwise.as_ref()?.policy(seen))
    }
}

impl Then {
    fn policy(&self, seen: &Seen<'_, '_>) -> Option<&Arc<Policy>> {
        match self {
            Then::Answer(policy) => Some(policy),
            Then::Rules(rules) => rules.policy(seen),
        }
    }
}

/// What tests look at.
struct Seen<'a, 'e> {
    ex: &'a Exchange<'e>,
    head: &'a ResponseHead,
    own: bool,
}

impl Test {
    fn passes(&self, seen: &Seen<'_, '_>) -> bool {
        match self {
            Test::Status(matcher) => matcher.matches(itoa::Buffer::new().format(seen.head.status).as_bytes()),
            Test::Class(matcher) => {
                let mut text = *b"0xx";
                // A status has three digits.
                text[0] += u8::try_from(seen.head.status / 100 % 10).unwrap_or(0);
                matcher.matches(&text)
            }
            Test::Header(key, matcher) => joined(seen.head, key).is_some_and(|value| matcher.matches(&value)),
            Test::RequestHeader(key, matcher) => {
                let request = seen.ex.request.as_ref();
                request.and_then(|request| joined(request, key)).is_some_and(|value| matcher.matches(&value))
            }
            Test::Own(matcher) => matcher.matches(if seen.own { b"true" } else { b"false" }),
            Test::Expression(expression) => expression.is_true(&Subject {
                connection: &seen.ex.info.connection,
                stream: Some(&seen.ex.info),
                request: seen.ex.request.as_ref().map(|head| head as _),
                response: Some(seen.head),
                trailers: None,
                dynamic: seen.ex.info.metadata.as_deref(),
            }),
            Test::All(list) => list.iter().all(|test| test.passes(seen)),
            Test::Any(list) => list.iter().any(|test| test.passes(seen)),
            Test::Not(inner) => !inner.passes(seen),
        }
    }
}

/// The values of a header with commas between.
fn joined(head: &dyn HeaderView, key: &HeaderKey) -> Option<Vec<u8>> {
    let mut all: Option<Vec<u8>> = None;
    head.values(key, &mut |value| match &mut all {
        Some(all) => {
            all.push(b',');
            all.extend_from_slice(value);
        }
        None => all = Some(value.to_vec()),
    });
    all
}

impl Answers {
    /// The answer in place of this response, if there is to be one.
    pub(super) fn on_response(&self, ex: &Exchange<'_>, head: &ResponseHead, own: bool) -> Option<Reply> {
        let config = match &self.config {
            Source::Filter(config) => config,
            Source::Route(said) => match &**said {
                RouteFilter::CustomResponse(config) => config,
                _ => return None,
            },
        };
        let policy = config.policy(&Seen { ex, head, own })?;
        let details = match &policy.details {
            Some(details) => Cow::Owned(details.to_string()),
            None => ex.info.details.clone(),
        };
        let mut reply = Reply::new(policy.status.unwrap_or(head.status), details);
        let inner = match &policy.body {
            Some(body) => body,
            None => &ex.local_body,
        };
        if let Some(format) = &policy.format {
            let mut body = Vec::new();
            let context = FormatContext {
                request: ex.request.as_ref().map(|head| head as _),
                response: Some(head),
                local_reply_body: inner,
                ..FormatContext::new(&ex.info)
            };
            format.format.render(&mut body, &context);
            reply.body = body.into();
        } else if let Some(body) = &policy.body {
            reply.body = body.clone();
        }
        Some(reply.changed(policy.headers.clone()).direct())
    }
}
