//! Requests and responses that another service looks at and changes (`envoy.filters.http.ext_proc`).
//!
//! Comes in: heads, and bodies and trailers where config wants them seen. Goes out: what the service makes of them:
//! changes to a head, another body, or an answer of its own. One gRPC stream ([`session`]) serves a request and its
//! response; bodies of which it sees piece after piece, and trailers, are [`stream`]'s, those that it takes and gives as it
//! likes [`duplex`]'s; [`mutation`] holds what may be changed. Without an answer in time the request fails, unless config
//! says otherwise ([`settle`]). A service may be one that only watches ([`watch`]), or one that is asked over HTTP
//! ([`http`]).

pub(in crate::http) mod duplex;
mod http;
mod mode;
pub(super) mod mutation;
pub(in crate::http) mod reply;
mod response;
pub(in crate::http) mod session;
pub(super) mod settle;
pub(in crate::http) mod stream;
pub(in crate::http) mod watch;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use smallvec::SmallVec;

use self::duplex::Duplex;
pub use self::mode::{Body, Mode};
use self::mutation::Refused;
use self::session::{Said, Session, Side, Terms};
use self::settle::SPURIOUS;
use self::stream::{Look, Processor};
use self::watch::Watch;
use super::chain::{active, At, Step, Wait};
use super::ext_authz::rules::MutationRules;
use super::lua::{Run, Scripts};
use super::{is_over, Awaited, Encoder, Pending};
use crate::config::matcher::StringMatcher;
use crate::config::route::RouteFilter;
use crate::config::services::{GrpcTarget, HttpTarget, Pairs};
use crate::config::Known;
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::RequestHead;
use crate::http::stages::Stage;
use crate::policy::cel::Expression;
use crate::telemetry::stream_info::DynamicMetadata;

crate::stats! {
    /// `http.<stat_prefix>.ext_proc.[<stat_prefix>.]`.
    pub struct ProcessorStats {
        counters {
            streams_started, stream_msgs_sent, stream_msgs_received, spurious_msgs_received, streams_closed,
            streams_failed, failure_mode_allowed, message_timeouts, rejected_header_mutations,
            override_message_timeout_received, override_message_timeout_ignored, clear_route_cache_ignored,
            clear_route_cache_disabled, clear_route_cache_upstream_ignored, http_not_ok_resp_received,
            immediate_responses_sent, server_half_closed,
        }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// Who looks.
    pub service: Service,
    /// It only watches, on a stream that is closed so long after the request.
    pub watches: Option<Duration>,
    /// Without an answer all goes on.
    pub fail_open: bool,
    /// The status of a failure.
    pub status_on_error: u16,
    /// What is looked at.
    pub mode: Mode,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long it may take where the service asks for more; zero = it may not ask.
    pub max_timeout: Duration,
    /// The service may change what is looked at.
    pub allow_override: bool,
    /// Only to one of these, if there are any.
    pub overrides: Box<[Mode]>,
    /// It may not answer in our place.
    pub no_immediate: bool,
    /// Whether the route is found anew.
    pub route_cache: RouteCache,
    /// What it may change.
    pub rules: MutationRules,
    /// Headers that it sees; `None` = all.
    pub allowed: Option<Box<[StringMatcher]>>,
    /// Those that it does not see.
    pub disallowed: Box<[StringMatcher]>,
    /// Dynamic metadata that it sees, by namespace.
    pub told: Arc<[Box<str>]>,
    /// Messages among them, likewise.
    pub told_typed: Arc<[Box<str>]>,
    /// Metadata of the request's cluster that it sees, by namespace.
    pub told_of_cluster: Arc<[Box<str>]>,
    /// Those that it may set.
    pub heard: Arc<[Box<str>]>,
    /// What it is told of the connection and the stream, with the first message of each side: names, and what they are
    /// the value of.
    pub attributes: [Attributes; 2],
    /// Its statistics.
    pub stats: ProcessorStats,
}

/// Who looks.
#[derive(Debug, Clone)]
pub enum Service {
    /// A stream of gRPC for each request.
    Grpc(Arc<GrpcTarget>),
    /// A request of its own for each question, in JSON; it sees heads.
    Http(Arc<HttpService>),
    /// No service, but scripts that are asked in place.
    Lua(Arc<Scripts>),
}

/// A service that is asked over HTTP.
#[derive(Debug)]
pub struct HttpService {
    /// Where it is.
    pub target: HttpTarget,
    /// What is sent with each question besides.
    pub fields: Pairs,
}

/// What of the stream is told, by the name under which it is.
pub type Attributes = Box<[(Box<str>, Expression)]>;

/// When a route is found anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RouteCache {
    AsAsked,
    Always,
    Never,
}

/// What a route says (`ExtProcPerRoute`).
#[derive(Debug)]
pub enum PerRoute {
    /// Nothing is looked at.
    Off,
    /// In place of what the filter says.
    Overrides(Box<Overrides>),
}

/// What a route says in place of the filter (`ExtProcOverrides`).
#[derive(Debug)]
pub struct Overrides {
    /// What is looked at.
    pub mode: Option<Mode>,
    /// Who looks.
    pub target: Option<Arc<GrpcTarget>>,
    /// What is sent with the call besides.
    pub metadata: Pairs,
    /// Without an answer all goes on.
    pub fail_open: Option<bool>,
    /// Dynamic metadata that it sees, by namespace.
    pub told: Option<Arc<[Box<str>]>>,
    /// Messages among them, likewise.
    pub told_typed: Option<Arc<[Box<str>]>>,
    /// Metadata of the request's cluster that it sees, by namespace.
    pub told_of_cluster: Option<Arc<[Box<str>]>>,
    /// Those that it may set.
    pub heard: Option<Arc<[Box<str>]>>,
}

/// Where a request is with the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    /// Its body is taken in.
    Taking,
    Body,
    /// The client's body is taken in, which another takes the place of.
    Dropping,
    Done,
}

/// The filter's part in one request.
#[derive(Debug)]
pub(in crate::http) struct Turn {
    place: usize,
    phase: Phase,
    pub(in crate::http) session: Rc<RefCell<Session>>,
    /// The body in place of the client's.
    replacement: Option<Bytes>,
}

/// What the service makes of a head or a body.
pub(in crate::http) enum Verdict {
    /// It goes on; with another body, if there is one. The second says that it takes the place of all that follows.
    Go(Option<Bytes>, bool),
    /// It is answered with this.
    Reply(Box<Reply>),
}

impl Config {
    pub(super) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let turns = ex.filters.as_ref().map(|active| &active.processors);
        let found = turns.and_then(|turns| turns.iter().position(|turn| turn.place == at.place));
        let Some(found) = found else { return self.begin(ex, at) };
        // Taken out while its step is made.
        let mut turn = active(ex).processors.remove(found);
        let step = self.step(&mut turn, ex);
        active(ex).processors.insert(found, turn);
        step
    }

    fn begin(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let mut said: SmallVec<[&Overrides; 3]> = SmallVec::new();
        for level in at.levels() {
            match &**level {
                RouteFilter::ExtProc(PerRoute::Off) if said.is_empty() => return Step::Continue,
                RouteFilter::ExtProc(PerRoute::Overrides(overrides)) => said.push(overrides),
                _ => {}
            }
        }
        let mut mode = said.iter().find_map(|said| said.mode).unwrap_or(self.mode);
        if let Service::Http(_) = self.service {
            // What a route says is not known to be about such a service when it is compiled.
            mode = mode.of_heads();
        }
        let mut run = None;
        if let Service::Lua(scripts) = &self.service {
            let said = at.levels().iter().find_map(|level| match &**level {
                RouteFilter::Lua(said) => Some(said),
                _ => None,
            });
            let Some(chosen) = scripts.choose(said, at.name) else { return Step::Continue };
            (mode.request_head, mode.response_head) = (chosen.script.on_request, chosen.script.on_response);
            run = Some(Rc::new(Run::new(chosen, ex.worker.clone())));
        }
        let terms = Terms {
            service: self.service_for(&said),
            fail_open: said.iter().find_map(|said| said.fail_open).unwrap_or(self.fail_open),
            told: said.iter().find_map(|said| said.told.as_ref()).unwrap_or(&self.told).clone(),
            told_typed: said
                .iter()
                .find_map(|said| said.told_typed.as_ref())
                .unwrap_or(&self.told_typed)
                .clone(),
            heard: said.iter().find_map(|said| said.heard.as_ref()).unwrap_or(&self.heard).clone(),
            of_cluster: self.of_cluster(&said, ex, at),
        };
        let session = Session::new(self.clone(), ex.worker.clone(), terms, mode);
        let session = Rc::new(RefCell::new(session));
        session.borrow_mut().run = run;
        session.borrow_mut().tell(self.attributes_of(Side::Request, ex, None));
        at.encode(ex, Encoder::ExtProc(session.clone()));
        let mut turn = Turn { place: at.place, phase: Phase::Head, session, replacement: None };
        let step = match mode.request_head {
            _ if self.watches.is_some() => {
                self.tell(&turn, ex);
                Step::Continue
            }
            true => {
                let ends = is_over(ex);
                let ask = ex.request.as_ref().map(|request| {
                    Ask::RequestHeaders(mutation::headers(self, mutation::request_lines(request), ends))
                });
                let step = self.ask(&turn, ask, ex);
                if mode.request_body == Body::Duplex && !ends {
                    self.give_body(&turn, ex);
                }
                step
            }
            false => self.body(&mut turn, ex, false),
        };
        active(ex).processors.push(turn);
        step
    }

    /// What is told of the cluster that the request goes to.
    fn of_cluster(&self, said: &[&Overrides], ex: &Exchange<'_>, at: &At<'_>) -> DynamicMetadata {
        let own = said.iter().find_map(|said| said.told_of_cluster.as_ref());
        let names = own.unwrap_or(&self.told_of_cluster);
        if names.is_empty() {
            return DynamicMetadata::new();
        }
        let slot = at.course.with_cluster(ex, |name| ex.worker.clusters.find(name)).flatten();
        let cluster = slot.and_then(|slot| slot.load().clone());
        let Some(all) = cluster.as_ref().and_then(|cluster| cluster.names.metadata.as_ref()) else {
            return DynamicMetadata::new();
        };
        let found = names.iter().filter_map(|name| all.get_key_value(&**name));
        found.map(|(name, fields)| (name.clone(), fields.clone())).collect()
    }

    /// Who looks at a request whose route says this.
    fn service_for(&self, said: &[&Overrides]) -> Service {
        let Service::Grpc(own) = &self.service else { return self.service.clone() };
        let mut target = said.iter().find_map(|said| said.target.as_ref()).unwrap_or(own).clone();
        // The least specific first: the others take the place of what it says.
        for said in said.iter().rev().filter(|said| !said.metadata.is_empty()) {
            target = Arc::new(GrpcTarget::clone(&target).with_metadata(&said.metadata));
        }
        Service::Grpc(target)
    }

    /// A service that only watches is told of the request as that passes.
    fn tell(&self, turn: &Turn, ex: &mut Exchange<'_>) {
        let Turn { session, .. } = turn;
        let (mode, metadata) = (session.borrow().mode, session.borrow().metadata(ex));
        let Some(request) = &ex.request else { return };
        let (ends, tunnel) = (is_over(ex), request.opens_tunnel());
        if mode.request_head {
            let ask = Ask::RequestHeaders(mutation::headers(self, mutation::request_lines(request), ends));
            session.borrow_mut().send(ask, metadata.clone());
        } else if mode.request_body.unsizes() && !ends {
            // As in Envoy.
            self.without_length(ex);
        }
        if ends || tunnel {
            return;
        }
        if let Some(watch) = Watch::of(session, Side::Request, metadata) {
            let taken = active(ex).body.take().unwrap_or_default();
            ex.upload.process(Stage::Watch(Box::new(watch)), taken);
        }
    }

    /// The service is given the request's body as it comes.
    fn give_body(&self, turn: &Turn, ex: &mut Exchange<'_>) {
        if ex.request.as_ref().is_some_and(RequestHead::opens_tunnel) {
            // What follows is no body.
            return;
        }
        self.without_length(ex);
        let metadata = turn.session.borrow().metadata(ex);
        let duplex = Duplex::new(&turn.session, Side::Request, metadata);
        let taken = active(ex).body.take().unwrap_or_default();
        ex.upload.process(Stage::Duplex(Box::new(duplex)), taken);
    }

    fn step(&self, turn: &mut Turn, ex: &mut Exchange<'_>) -> Step {
        let awaited = match turn.phase {
            Phase::Head | Phase::Body => ex.filters.as_mut().and_then(|active| active.awaited.take()),
            Phase::Taking => {
                turn.phase = Phase::Body;
                let body = ex.filters.as_ref().and_then(|active| active.body.clone()).unwrap_or_default();
                let ask = Ask::RequestBody(pb::HttpBody {
                    body: body.into(),
                    end_of_stream: ex.upload.is_received() && ex.upload.trailers().is_none(),
                });
                return self.ask(turn, Some(ask), ex);
            }
            Phase::Dropping => {
                self.replace(turn.replacement.take().unwrap_or_default(), ex);
                turn.phase = Phase::Done;
                return Step::Continue;
            }
            Phase::Done => return Step::Continue,
        };
        let Some(Awaited::Said(said)) = awaited else { return Step::Continue };
        let of_head = turn.phase == Phase::Head;
        match self.hear(&turn.session, *said, ex, of_head) {
            Verdict::Reply(reply) => Step::Reply(*reply),
            Verdict::Go(Some(body), true) => {
                turn.session.borrow_mut().replace_body(Side::Request);
                if ex.upload.is_received() {
                    self.replace(body, ex);
                    turn.phase = Phase::Done;
                    return Step::Continue;
                }
                turn.phase = Phase::Dropping;
                turn.replacement = Some(body);
                Step::Wait(Wait::Hold(ex.down.buffer_limit))
            }
            Verdict::Go(body, _) => {
                if of_head {
                    return self.body(turn, ex, true);
                }
                if let Some(body) = body {
                    let whole = turn.session.borrow().mode.request_body == Body::Whole;
                    if let Some(reply) = self.set_body(&turn.session, body, whole, ex) {
                        return Step::Reply(reply);
                    }
                }
                if !turn.session.borrow().is_done() {
                    // Of what follows it sees the trailers.
                    self.stream(turn, ex);
                }
                turn.phase = Phase::Done;
                Step::Continue
            }
        }
    }

    /// The head has been looked at, if it was to be (`asked`): its body's turn.
    fn body(&self, turn: &mut Turn, ex: &mut Exchange<'_>, asked: bool) -> Step {
        turn.phase = Phase::Done;
        let session = turn.session.borrow();
        if session.is_done() || is_over(ex) {
            return Step::Continue;
        }
        let wait = match session.mode.request_body {
            // What has come while the head was looked at is shown before that goes on.
            Body::Pieces if ex.upload.is_received() => {
                drop(session);
                self.without_length(ex);
                turn.phase = Phase::Taking;
                return self.step(turn, ex);
            }
            Body::None | Body::Pieces => {
                drop(session);
                self.stream(turn, ex);
                return Step::Continue;
            }
            Body::Duplex => {
                let begun = session.is_duplex(Side::Request);
                drop(session);
                if !begun {
                    self.give_body(turn, ex);
                }
                // Where all of it has come, the head waits until the service has said something of it.
                let waits = asked && ex.upload.is_received() && !ex.upload.is_passed();
                return if waits { Step::Wait(Wait::Prefix(1)) } else { Step::Continue };
            }
            Body::Whole => Wait::Hold(ex.down.buffer_limit),
            Body::Beginning => Wait::Prefix(ex.down.buffer_limit),
        };
        drop(session);
        if matches!(wait, Wait::Prefix(_)) {
            self.without_length(ex);
        }
        turn.phase = Phase::Taking;
        if ex.upload.is_received() {
            // Another filter has waited for it.
            return self.step(turn, ex);
        }
        Step::Wait(wait)
    }

    /// What is left of the request is looked at as it passes.
    fn stream(&self, turn: &Turn, ex: &mut Exchange<'_>) {
        let mode = turn.session.borrow().mode;
        if ex.request.as_ref().is_some_and(RequestHead::opens_tunnel) {
            // What follows is no body.
            return;
        }
        let look = match (turn.phase, mode.request_body) {
            (Phase::Done, Body::Pieces) => Look::Pieces,
            _ => Look::Pass,
        };
        let ended = ex.upload.is_received() && ex.upload.trailers().is_none();
        if look == Look::Pass && (!mode.request_trailers || ended) {
            return;
        }
        if look == Look::Pieces {
            self.without_length(ex);
        }
        let metadata = turn.session.borrow().metadata(ex);
        let processor = Processor::new(&turn.session, Side::Request, look, metadata);
        let taken = active(ex).body.take().unwrap_or_default();
        ex.upload.process(Stage::Processor(Box::new(processor)), taken);
    }

    /// Asks, and waits for what the service says.
    fn ask(&self, turn: &Turn, ask: Option<Ask>, ex: &mut Exchange<'_>) -> Step {
        let Some(ask) = ask else { return Step::Continue };
        let metadata = turn.session.borrow().metadata(ex);
        let answer = Session::ask(turn.session.clone(), ask, metadata);
        active(ex).pending = Some(Pending::new(async move { Awaited::Said(Box::new(answer.await)) }));
        Step::Wait(Wait::Answer)
    }

    /// Sets the body that goes upstream in place of the one that was taken in.
    fn set_body(
        &self,
        session: &Rc<RefCell<Session>>,
        body: Bytes,
        whole: bool,
        ex: &mut Exchange<'_>,
    ) -> Option<Reply> {
        let length = ex.request.as_ref().and_then(|request| request.fields.get(Known::ContentLength));
        match length.map(crate::config::matcher::number::<usize>) {
            Some(length) if whole && length != Some(body.len()) => {
                return Some(self.refuse(session, Refused::LENGTH));
            }
            Some(_) if whole => active(ex).body = Some(body),
            _ => self.replace(body, ex),
        }
        None
    }

    /// Nobody knows how long the body will be.
    fn without_length(&self, ex: &mut Exchange<'_>) {
        if let Some(request) = &mut ex.request {
            request.fields.remove_known(Known::ContentLength);
        }
        ex.upload.without_length();
    }

    /// As [`Config::set_body`], whatever was told of its length.
    fn replace(&self, body: Bytes, ex: &mut Exchange<'_>) {
        self.without_length(ex);
        active(ex).body = Some(body);
    }

    /// Applies what the service says of the request's head, or else of its body.
    fn hear(&self, session: &Rc<RefCell<Session>>, said: Said, ex: &mut Exchange<'_>, head: bool) -> Verdict {
        let says = match self.settle(session, said, ex) {
            Ok(Some(says)) => says,
            Ok(None) => return Verdict::Go(None, false),
            Err(reply) => return Verdict::Reply(reply),
        };
        let common = match says {
            Says::RequestHeaders(response) if head => response.response,
            Says::RequestBody(response) if !head => response.response,
            _ => return self.unexpected(session),
        };
        self.stats.stream_msgs_received.increment(1);
        let Some(common) = common else { return Verdict::Go(None, false) };
        let changes = common.header_mutation.as_ref();
        if let (Some(changes), Some(request)) = (changes, &mut ex.request) {
            let may_size = session.borrow().mode.request_body == Body::Whole;
            let mut chunked = false;
            if let Err(refused) = mutation::apply_to_request(self, changes, request, may_size, &mut chunked) {
                return Verdict::Reply(Box::new(self.refuse(session, refused)));
            }
            if chunked && !is_over(ex) {
                ex.upload.without_length();
            }
        }
        // As in Envoy a piece is a body without length to who has the whole.
        let whole = !head && session.borrow().mode.request_body == Body::Whole;
        let has_length =
            || ex.request.as_ref().is_some_and(|request| request.fields.has(Known::ContentLength));
        if whole && mutation::is_streamed(&common) && has_length() {
            return Verdict::Reply(Box::new(self.refuse(session, Refused::LENGTH)));
        }
        self.reroute(common.clear_route_cache, ex);
        mutation::body_of(common, head)
    }

    fn unexpected(&self, session: &Rc<RefCell<Session>>) -> Verdict {
        match self.out_of_turn(session, SPURIOUS) {
            Ok(()) => Verdict::Go(None, false),
            Err(reply) => Verdict::Reply(reply),
        }
    }

    fn reroute(&self, asked: bool, ex: &mut Exchange<'_>) {
        let now = match self.route_cache {
            RouteCache::Always => true,
            RouteCache::AsAsked => asked,
            RouteCache::Never => {
                if asked {
                    self.stats.clear_route_cache_disabled.increment(1);
                }
                false
            }
        };
        if now {
            active(ex).reroute = true;
        }
    }
}
