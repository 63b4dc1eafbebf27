//! Traces of requests: which are sampled, what of them goes upstream, and what is told of them.
//!
//! Comes in: a connection manager's options ([`Tracing`]), and a request at its route, at each try, and at its end. Goes
//! out: the trace's context in the request's head ([`context`]), and spans for a collector ([`export`]), which are put
//! together and sent apart from the request. Who is sampled is decided as in Envoy: by `x-request-id`, in which the
//! decision is written down for those behind.

pub mod context;
pub mod export;
pub mod mirror;
mod otlp;
pub mod tags;
#[cfg(test)]
mod tests;
mod zipkin;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use smallvec::SmallVec;

use self::context::{Context, Propagation};
use self::export::Provider;
use super::exchange::Exchange;
use super::fields::Fields;
use super::head::{RequestHead, ResponseHead};
use super::worker::Worker;
use crate::config::http::HttpConnectionManager;
use crate::config::matcher::{Fraction, RuntimeFraction};
use crate::config::route::Route;
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Host, Known};
use crate::telemetry::format::{Format, FormatContext};
use crate::telemetry::stream_info::Trace;
use crate::telemetry::tag::CustomTag;

/// `HttpConnectionManager.tracing`, compiled.
#[derive(Debug)]
pub struct Tracing {
    /// Who asks for a trace, all others, and both of them together.
    pub shares: Shares,
    /// Requests leave the service here: spans have another name.
    pub egress: bool,
    /// Tries are spans of their own.
    pub spawn_upstream: bool,
    /// Most bytes of a path in a tag.
    pub max_path: usize,
    /// More tags.
    pub tags: Vec<CustomTag>,
    /// The name of spans, and of those of tries.
    pub operations: [Option<Format>; 2],
    /// The decision is written into `x-request-id`.
    pub packs_reason: bool,
    /// `x-request-id` decides.
    pub by_request_id: bool,
    /// Where spans go; without one only `x-request-id` is marked, and decorators are told.
    pub provider: Option<Arc<Provider>>,
}

/// Shares of requests.
#[derive(Debug, Clone)]
pub struct Shares {
    /// Of those with `x-client-trace-id`.
    pub client: RuntimeFraction,
    /// Of those that nobody asks for.
    pub random: RuntimeFraction,
    /// Of all that would be sampled.
    pub overall: RuntimeFraction,
}

impl Shares {
    /// These shares, which runtime can change.
    pub fn new(client: Fraction, random: Fraction, overall: Fraction) -> Self {
        Self {
            client: RuntimeFraction::new("tracing.client_enabled", client),
            random: RuntimeFraction::new("tracing.random_sampling", random),
            overall: RuntimeFraction::new("tracing.global_enabled", overall),
        }
    }
}

/// What a route says of traces.
#[derive(Debug)]
pub struct RouteTracing {
    /// In place of the connection manager's.
    pub shares: Option<Shares>,
    /// More tags.
    pub tags: Vec<CustomTag>,
    /// The name of spans, and of those of tries.
    pub operations: [Option<Format>; 2],
}

/// `Route.decorator`.
#[derive(Debug)]
pub struct Decorator {
    /// The name of spans.
    pub operation: Box<str>,
    /// It is told to the proxy on the other side.
    pub propagate: bool,
}

/// Why a request is traced, as `x-request-id` has it at its fifteenth character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    None,
    Sampled,
    Service,
    Client,
}

impl Reason {
    const DIGITS: [(u8, Reason); 3] =
        [(b'9', Reason::Sampled), (b'a', Reason::Service), (b'b', Reason::Client)];
    const PLACE: usize = 14;

    fn of(id: &[u8]) -> Self {
        let digit = id.get(Self::PLACE);
        Self::DIGITS.iter().find(|(own, _)| Some(own) == digit).map_or(Reason::None, |(_, reason)| *reason)
    }

    fn digit(self) -> u8 {
        Self::DIGITS.iter().find(|(_, own)| *own == self).map_or(b'4', |(digit, _)| *digit)
    }
}

/// A request that is traced, or one whose trace passes through here.
#[derive(Debug)]
pub struct Span {
    /// Without one it only knows what the response's head is to say.
    provider: Option<Arc<Provider>>,
    context: Context,
    /// The name that a decorator or the other side gave it.
    operation: Option<Box<str>>,
    /// What is told to clients in `x-envoy-decorator-operation`.
    decorated: Option<Arc<Decorator>>,
    /// The route's own options.
    route: Option<Arc<RouteTracing>>,
    start: SystemTime,
    tries: SmallVec<[Try; 1]>,
}

/// A try to reach an upstream.
#[derive(Debug)]
struct Try {
    context: Context,
    start: Instant,
    end: Option<Instant>,
    host: Option<Arc<Host>>,
    status: u16,
}

/// A request has its route: decides whether it is traced, and begins its span.
pub(super) fn begin(ex: &mut Exchange<'_>, route: Option<&Route>) {
    let manager = ex.manager;
    let (Some(tracing), Some(request)) = (manager.tracing.as_deref(), &mut ex.request) else { return };
    let said = route.and_then(|route| route.tracing.as_ref());
    let shares = said.and_then(|said| said.shares.as_ref()).unwrap_or(&tracing.shares);
    let sampled = decide(tracing, shares, request, ex.worker);
    let begun = tracing.provider.as_ref().and_then(|it| it.propagation.begin(request, sampled, ex.worker));
    let context = begun.unwrap_or_else(Context::null);
    let mut decorated = route.and_then(|route| route.decorator.clone());
    let mut operation = decorated.as_ref().map(|decorator| decorator.operation.clone());
    if tracing.egress {
        if let Some(decorator) = decorated.take_if(|decorator| decorator.propagate) {
            request.fields.set_known(Known::XEnvoyDecoratorOperation, decorator.operation.as_bytes());
        }
        decorated = None;
    } else if let Some(told) = request.fields.get(Known::XEnvoyDecoratorOperation).map(<[u8]>::to_vec) {
        if !told.is_empty() {
            operation = Some(String::from_utf8_lossy(&told).into());
            decorated = None;
        }
        request.fields.remove_known(Known::XEnvoyDecoratorOperation);
    }
    let decorated = decorated.filter(|decorator| decorator.propagate);
    if tracing.provider.is_none() && decorated.is_none() {
        return;
    }
    if context.trace != 0 {
        ex.info.trace = Some(Box::new(Trace { id: context.trace, span: context.span }));
    }
    ex.span = Some(Box::new(Span {
        provider: tracing.provider.clone(),
        context,
        operation,
        decorated,
        route: said.cloned(),
        start: ex.info.start_time(),
        tries: SmallVec::new(),
    }));
}

/// Whether a request is sampled; its id says so then.
fn decide(tracing: &Tracing, shares: &Shares, request: &mut RequestHead, worker: &Worker) -> bool {
    if !tracing.by_request_id {
        return true;
    }
    let Some(id) = request.fields.get(Known::XRequestId) else { return false };
    let digits = id.get(..8).and_then(|digits| std::str::from_utf8(digits).ok());
    let Some(number) = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()) else { return false };
    let told = Reason::of(id);
    let falls = |share: &RuntimeFraction| share.now(&worker.runtime).holds(number);
    let mut reason = told;
    if told == Reason::None {
        if request.first(&CLIENT_TRACE).is_some() && worker.draws_from(&shares.client) {
            reason = Reason::Client;
        } else if request.fields.has(Known::XEnvoyForceTrace) {
            reason = Reason::Service;
        } else if falls(&shares.random) {
            reason = Reason::Sampled;
        }
    }
    if reason != Reason::None && !falls(&shares.overall) {
        reason = Reason::None;
    }
    if reason != told && tracing.packs_reason {
        let mut marked = request.fields.get(Known::XRequestId).unwrap_or_default().to_vec();
        // Only an id in the form of a UUID has the place.
        if let Some(digit) = marked.get_mut(Reason::PLACE).filter(|_| id_is_uuid(request)) {
            *digit = reason.digit();
            request.fields.set_known(Known::XRequestId, &marked);
        }
    }
    reason != Reason::None
}

fn id_is_uuid(request: &RequestHead) -> bool {
    request.fields.get(Known::XRequestId).is_some_and(|id| id.len() == 36)
}

static CLIENT_TRACE: std::sync::LazyLock<HeaderKey> =
    std::sync::LazyLock::new(|| HeaderKey::new("x-client-trace-id"));

/// The request is about to go upstream; this is its next try.
pub(super) fn on_try(ex: &mut Exchange<'_>, host: &Arc<Host>) {
    let (Some(span), Some(request), Some(tracing)) = (&mut ex.span, &mut ex.request, &ex.manager.tracing)
    else {
        return;
    };
    let Some(propagation) = span.provider.as_ref().map(|provider| provider.propagation) else { return };
    if !tracing.spawn_upstream {
        return span.context.put(propagation, request);
    }
    let now = Instant::now();
    if let Some(last) = span.tries.last_mut() {
        last.end.get_or_insert(now);
    }
    let context = span.context.child(ex.worker);
    context.put(propagation, request);
    span.tries.push(Try { context, start: now, end: None, host: Some(host.clone()), status: 0 });
}

/// The try of the moment was answered.
pub(super) fn on_answer(ex: &mut Exchange<'_>, status: u16) {
    if let Some(last) = ex.span.as_mut().and_then(|span| span.tries.last_mut()) {
        last.status = status;
    }
}

/// A response's head is about to go out.
pub(super) fn on_response(span: Option<&mut Span>, manager: &HttpConnectionManager, head: &mut ResponseHead) {
    let Some(tracing) = &manager.tracing else { return };
    let fields: &mut Fields = &mut head.fields;
    if !tracing.egress {
        if let Some(decorator) = span.and_then(|span| span.decorated.as_ref()) {
            fields.set_known(Known::XEnvoyDecoratorOperation, decorator.operation.as_bytes());
        }
        return;
    }
    if let Some(told) = fields.get(Known::XEnvoyDecoratorOperation) {
        if let Some(span) = span.filter(|_| !told.is_empty()) {
            span.operation = Some(String::from_utf8_lossy(told).into());
        }
        fields.remove_known(Known::XEnvoyDecoratorOperation);
    }
}

/// The request is over: its spans are handed over if they are sampled.
pub(super) fn end(ex: &mut Exchange<'_>) {
    let Some(span) = ex.span.take() else { return };
    let Some(provider) = &span.provider else { return };
    if !span.context.sampled || ex.info.health_check {
        return;
    }
    let Some(tracing) = &ex.manager.tracing else { return };
    let context = ex.context();
    let ended = ex.info.times.end.unwrap_or(ex.now);
    let kind = match (tracing.spawn_upstream, tracing.egress) {
        (false, true) => Kind::Client,
        _ => Kind::Server,
    };
    let name = span.name(tracing, provider.propagation, &context);
    let finished = Finished {
        context: &span.context,
        name,
        kind,
        start: span.start,
        end: ex.info.clock.system(ended),
        tags: tags::downstream(tracing, span.route.as_deref(), &context),
    };
    let mut spans: SmallVec<[Finished<'_>; 2]> = SmallVec::new();
    let (all, own) = tags::custom(tracing, span.route.as_deref());
    let last = span.tries.len().saturating_sub(1);
    for (number, attempt) in span.tries.iter().enumerate() {
        let end = attempt.end.filter(|_| number < last).unwrap_or(ended);
        spans.push(Finished {
            context: &attempt.context,
            name: span.name_of_try(tracing, &context),
            kind: Kind::Client,
            start: ex.info.clock.system(attempt.start),
            end: ex.info.clock.system(end),
            tags: tags::upstream(
                all,
                own,
                &context,
                attempt.host.as_deref(),
                tags::Tried { number, status: attempt.status, last: number == last },
            ),
        });
    }
    spans.push(finished);
    export::hand_over(ex.worker, provider, &spans);
}

impl Span {
    fn name(&self, tracing: &Tracing, propagation: Propagation, context: &FormatContext<'_>) -> String {
        let format = self.route.as_ref().and_then(|route| route.operations[0].as_ref());
        if let Some(name) = rendered(format.or(tracing.operations[0].as_ref()), context) {
            return name;
        }
        if let Some(operation) = &self.operation {
            return operation.to_string();
        }
        let host = context.request.and_then(|request| request.first(&tags::AUTHORITY)).unwrap_or_default();
        let host = String::from_utf8_lossy(host);
        match (propagation, tracing.egress) {
            // As Envoy has it.
            (Propagation::B3 { .. }, _) => host.into_owned(),
            (Propagation::W3c, true) => format!("egress {host}"),
            (Propagation::W3c, false) => "ingress".into(),
        }
    }

    fn name_of_try(&self, tracing: &Tracing, context: &FormatContext<'_>) -> String {
        let format = self.route.as_ref().and_then(|route| route.operations[1].as_ref());
        rendered(format.or(tracing.operations[1].as_ref()), context).unwrap_or_else(|| {
            format!("router {} egress", context.info.cluster.as_ref().map_or("", |names| &*names.stat_name))
        })
    }
}

fn rendered(format: Option<&Format>, context: &FormatContext<'_>) -> Option<String> {
    let mut out = Vec::new();
    format?.render(&mut out, context);
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Client,
}

/// A span that is over.
pub(super) struct Finished<'a> {
    pub context: &'a Context,
    pub name: String,
    pub kind: Kind,
    pub start: SystemTime,
    pub end: SystemTime,
    /// Names and values.
    pub tags: Vec<(&'a str, String)>,
}

impl Provider {
    /// How the context is told.
    pub fn propagation(&self) -> Propagation {
        self.propagation
    }
}

/// Fields of a trace's context are not those of the request: they are set in its copy for the upstream.
fn set(request: &mut RequestHead, key: &HeaderKey, value: &[u8]) {
    HeaderMutate::set(request, key, value);
}
