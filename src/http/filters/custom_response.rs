//! Answers in place of those that come (`envoy.filters.http.custom_response`): an upstream's response, or an answer of our
//! own, whose head matches is replaced by one of config's.
//!
//! Comes in: the head of a response. Goes out: nothing, the answer in its place, which no filter sees any more, or a request
//! that begins again for one from elsewhere.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::Turn;
use crate::config::http::BodyFormat;
use crate::config::matcher::StringMatcher;
use crate::config::route::{HeaderOps, Override, PathMatch, Redirect, RouteFilter};
use crate::config::{HeaderKey, HeaderView, Known};
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::location::Location;
use crate::http::on_demand;
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
    /// One from elsewhere.
    Elsewhere(Arc<Elsewhere>),
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

crate::stats! {
    /// `http.<stat_prefix>.`, or at the root for what a route says.
    pub struct ElsewhereStats {
        counters { custom_response_redirect_no_route, custom_response_invalid_uri }
        gauges {}
        histograms {}
    }
}

/// An answer that another route gives (`RedirectPolicy`).
#[derive(Debug)]
pub struct Elsewhere {
    /// Where it is.
    pub place: Place,
    /// Its status; `None` = that of the response in whose place it comes.
    pub status: Option<u16>,
    /// Changes to its head.
    pub response_headers: HeaderOps,
    /// Changes to the head of the request for it.
    pub request_headers: HeaderOps,
    /// What is counted.
    pub stats: ElsewhereStats,
}

/// Where an answer comes from.
#[derive(Debug)]
pub enum Place {
    /// This URL.
    Url(Box<str>),
    /// What is made of the request's.
    Action(Box<Redirect>),
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

    fn policy(&self, seen: &Seen<'_, '_>) -> Option<Found<'_>> {
        let matching = self.rules.iter().filter(|(test, _)| test.passes(seen));
        let found = matching.map(|(_, then)| then).find_map(|then| then.policy(seen));
        found.or_else(|| self.otherwise.as_ref()?.policy(seen))
    }
}

/// What the rules lead to.
enum Found<'c> {
    Answer(&'c Policy),
    Elsewhere(&'c Arc<Elsewhere>),
}

impl Then {
    fn policy(&self, seen: &Seen<'_, '_>) -> Option<Found<'_>> {
        match self {
            Then::Answer(policy) => Some(Found::Answer(policy)),
            Then::Elsewhere(policy) => Some(Found::Elsewhere(policy)),
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
    /// What takes the place of this response, if anything does.
    pub(super) fn on_response(
        &self,
        ex: &mut Exchange<'_>,
        head: &mut ResponseHead,
        own: bool,
    ) -> Option<Turn> {
        // It is the one from elsewhere.
        if let Some((policy, status)) = ex.redirected.as_ref().and_then(|it| it.policy.clone()) {
            policy.finish(ex, head, status);
            return None;
        }
        let config = match &self.config {
            Source::Filter(config) => config,
            Source::Route(said) => match &**said {
                RouteFilter::CustomResponse(config) => config,
                _ => return None,
            },
        };
        let policy = match config.policy(&Seen { ex, head, own })? {
            Found::Answer(policy) => policy,
            Found::Elsewhere(policy) => return policy.turn(ex, head).then_some(Turn::Again),
        };
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
        Some(Turn::Reply(Box::new(reply.changed(policy.headers.clone()).direct())))
    }
}

impl Elsewhere {
    /// Whether the request begins again, with a head that asks for the answer.
    fn turn(self: &Arc<Self>, ex: &mut Exchange<'_>, head: &ResponseHead) -> bool {
        let whole = ex.upload.is_passed();
        let Some(request) = ex.request.as_ref().filter(|request| whole && !request.opens_tunnel()) else {
            return false;
        };
        let before = request.clone();
        let url = match &self.place {
            Place::Url(url) => Cow::Borrowed(url.as_bytes()),
            // Redirects that rewrite the path are refused: what the route matched is not asked for.
            Place::Action(redirect) => Cow::Owned(redirect.location(&PathMatch::Connect, request)),
        };
        let Some(location) = Location::of(&url) else {
            self.stats.custom_response_invalid_uri.increment(1);
            return false;
        };
        let found = ex.aim(&location);
        if !matches!(found, on_demand::Found::Route(_) | on_demand::Found::RequireTls(_)) {
            self.stats.custom_response_redirect_no_route.increment(1);
            ex.request = Some(before);
            return false;
        }
        ex.give_up_response(head.clone());
        let Some(request) = &mut ex.request else { return false };
        as_get(request);
        self.request_headers.apply_to_request(request, &ex.info);
        let redirected = ex.redirected.get_or_insert_default();
        redirected.policy = Some((self.clone(), head.status));
        redirected.body = Bytes::new();
        true
    }

    /// The answer is here; it has taken the place of one with this status.
    fn finish(&self, ex: &Exchange<'_>, head: &mut ResponseHead, status: u16) {
        self.response_headers.apply_to_response(head, &ex.info, ex.request.as_ref().map(|r| r as _));
        let status = self.status.unwrap_or(status);
        // Those have no body.
        if status >= 200 && !matches!(status, 204 | 304) {
            head.set_status(status);
        }
    }
}

/// Nothing of the request's body is sent. What began as HEAD has an answer without a body, whoever gives it.
fn as_get(request: &mut RequestHead) {
    if !request.is_method(b"HEAD") {
        request.set_method(b"GET");
    }
    request.fields.remove_known(Known::ContentLength);
}
