//! HTTP filters: what happens to a request before the router has it, and to its response before the client has it.
//!
//! Comes in: the connection manager's list of filters, compiled, and what routes say to them. Goes out: for each
//! request, [`Active`]: what of them concerns it, which heads and bodies then pass. Filters see requests in their order
//! ([`chain`]) and responses in the reverse one (envoyproxy.io: http_filters); that includes answers of our own, whoever
//! gives them.
//!
//! A filter is a module here: its options compiled (`Config`, and what routes may say to it), `on_request` for its turn
//! in [`decode`], and if it changes responses, an [`Encoder`].

pub mod adaptive_concurrency;
pub mod admission_control;
pub mod api_key_auth;
pub mod bandwidth_limit;
pub mod basic_auth;
pub mod buffer;
pub mod by_cluster;
pub(super) mod chain;
pub mod compressor;
pub mod conditional;
pub mod cors;
pub mod credential_injector;
pub mod csrf;
pub mod custom_response;
pub mod decompressor;
pub mod ext_authz;
pub mod ext_proc;
pub mod fault;
pub mod framing;
pub mod grpc_http1_bridge;
pub mod grpc_stats;
pub mod grpc_web;
pub mod header_mutation;
pub mod header_to_metadata;
pub mod health_check;
pub mod istio;
pub mod jwt_authn;
pub mod local_ratelimit;
pub mod lua;
pub mod oauth2;
pub mod ratelimit;
mod rbac;
pub mod set_filter_state;
pub mod set_metadata;
pub mod stateful_session;
pub mod transforms;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::RateLimitResponse;
use smallvec::SmallVec;

use self::chain::{At, Step};
use self::compressor::Choice;
use self::ext_proc::session::Session;
use self::framing::Messages;
use self::grpc_http1_bridge::Bridged;
use self::grpc_stats::Call;
use self::grpc_web::Web;
use self::transforms::Transform;
use super::call::{Answer, CallError};
use super::exchange::{Exchange, Reply};
use super::fields::Fields;
use super::head::ResponseHead;
use super::pump::Pump;
use super::stages::Stage;
use crate::config::http::HttpFilter;
use crate::config::{Known, RequestView};
use crate::policy::jwt::RemoteKeys;

/// What the filters do to one request.
#[derive(Debug, Default)]
pub struct Active {
    web: Option<Web>,
    /// The client is told in a head what gRPC says in trailers.
    bridged: Option<Bridged>,
    call: Option<Call>,
    /// What is done to the response, by the place of the filter, in order.
    encoders: SmallVec<[(usize, Encoder); 2]>,
    /// Filters that a control plane configures, as they were when the request came.
    discovered: SmallVec<[(usize, Arc<HttpFilter>); 1]>,
    /// What they do to the body of the response.
    downloads: SmallVec<[Download; 1]>,
    /// The body, where it was waited for.
    body: Option<Bytes>,
    /// A fault was injected.
    fault: Option<fault::Active>,
    /// The response is slowed down to so many KiB a second.
    slow: Option<u64>,
    /// What waits for the status in the trailers.
    admissions: SmallVec<[Arc<admission_control::Config>; 1]>,
    /// Limits that it counts against.
    turns: SmallVec<[adaptive_concurrency::Turn; 1]>,
    /// Limits that count it when it is over.
    later: SmallVec<[ratelimit::Later; 1]>,
    /// The route is to be found anew.
    reroute: bool,
    /// The session that it is in.
    session: Option<Box<stateful_session::Session>>,
    /// What a filter waits for.
    pending: Option<Pending>,
    /// What has come of it.
    awaited: Option<Awaited>,
    /// Processors that look at it.
    processors: SmallVec<[ext_proc::Turn; 1]>,
    /// Keys that were fetched for it, and whether they came.
    fetched: Vec<(Arc<RemoteKeys>, bool)>,
}

/// Something to wait for.
struct Pending(Pin<Box<dyn Future<Output = Awaited>>>);

/// What came of something that was waited for.
#[derive(Debug)]
enum Awaited {
    /// These keys were fetched, or not.
    Keys(Arc<RemoteKeys>, bool),
    /// A service has decided.
    Verdict(Box<ext_authz::Verdict>),
    /// A service has told about limits, or not; and of which of them the client is told.
    Limits(Box<Option<RateLimitResponse>>, SmallVec<[bool; 4]>),
    /// A service has answered, or not.
    Answer(Box<Result<Answer, CallError>>),
    /// A provider has given tokens, or not.
    Token(Box<(oauth2::Begun, oauth2::token::Fetched)>),
    /// A filter of bodies wants the request answered with this.
    Reply(Box<Reply>),
    /// A processor has said something, or not.
    Said(Box<ext_proc::session::Said>),
}

impl Pending {
    fn new(future: impl Future<Output = Awaited> + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

/// What a filter does to the body of a response.
#[derive(Debug)]
enum Download {
    Transform(Transform),
    Stage(Stage),
}

/// What a filter does to the head of a response.
#[derive(Debug)]
enum Encoder {
    GrpcStats,
    GrpcWeb,
    GrpcHttp1Bridge,
    Cors(cors::Allowed),
    HeaderMutation(header_mutation::Response),
    LocalRateLimit(crate::policy::token_bucket::Level),
    HeaderToMetadata(header_to_metadata::Response),
    HealthCheck(Arc<health_check::Config>),
    HealthFailing,
    AdmissionControl(Arc<admission_control::Config>),
    ExtAuthz(ext_authz::Changes),
    /// Cookies that are set.
    OAuth2(Box<Fields>),
    RateLimit(ratelimit::Told),
    Compressor(Box<compressor::Turn>),
    Decompressor(Arc<decompressor::Config>),
    ExtProc(Rc<RefCell<Session>>),
    CustomResponse(custom_response::Answers),
    BandwidthLimit(Box<bandwidth_limit::Turn>),
    StatefulSession,
    /// Whether the client is told the id and the workload.
    PeerMetadata(Arc<istio::peer_metadata::Config>, [bool; 2]),
}

impl Active {
    /// For a request whose body has come before.
    pub(super) fn of_body(body: Bytes) -> Self {
        Self { body: Some(body), ..Self::default() }
    }

    /// Notes what the filter at `place` does to the response.
    fn encode(&mut self, place: usize, encoder: Encoder) {
        let at = self.encoders.partition_point(|(other, _)| *other <= place);
        self.encoders.insert(at, (place, encoder));
    }

    /// The filter at `place` does nothing to the response after all.
    fn forget(&mut self, place: usize) {
        self.encoders.retain(|(other, _)| *other != place);
    }

    /// The filter at `place`, which a control plane configures.
    fn discovered(&self, place: usize) -> Option<Arc<HttpFilter>> {
        self.discovered.iter().find(|(other, _)| *other == place).map(|(_, filter)| filter.clone())
    }
}

/// A filter's turn.
fn decode(ex: &mut Exchange<'_>, filter: &HttpFilter, at: &At<'_>) -> Step {
    match filter {
        HttpFilter::Cors(config) => return config.on_request(ex, at),
        HttpFilter::Fault(config) => return config.on_request(ex, at),
        HttpFilter::HeaderMutation(config) => return config.on_request(ex, at),
        HttpFilter::LocalRateLimit(config) => return config.on_request(ex, at),
        HttpFilter::Csrf(config) => return config.on_request(ex, at),
        HttpFilter::BasicAuth(config) => return config.on_request(ex, at),
        HttpFilter::BandwidthLimit(_) => return bandwidth_limit::on_request(ex, at),
        HttpFilter::CredentialInjector(config) => return config.on_request(ex),
        HttpFilter::Buffer(config) => return config.on_request(ex, at),
        HttpFilter::HealthCheck(config) => return config.on_request(ex, at),
        HttpFilter::SetMetadata(config) => return config.on_request(ex),
        HttpFilter::SetFilterState(config) => return config.on_request(ex, at),
        HttpFilter::HeaderToMetadata(config) => return config.on_request(ex, at),
        HttpFilter::StatefulSession(config) => return config.on_request(ex, at),
        HttpFilter::IstioAuthn(config) => return config.on_request(ex),
        HttpFilter::IstioAlpn(config) => return config.on_request(ex, at),
        HttpFilter::PeerMetadata(config) => return config.on_request(ex, at),
        HttpFilter::Conditional(config) => return config.on_request(ex, at),
        HttpFilter::Rbac(filter) => return rbac::on_request(filter, ex, at),
        HttpFilter::AdmissionControl(config) => return config.on_request(ex, at),
        HttpFilter::AdaptiveConcurrency(config) => return config.on_request(ex),
        HttpFilter::ApiKeyAuth(config) => return config.on_request(ex, at),
        HttpFilter::OAuth2(config) => return config.on_request(ex, at),
        HttpFilter::JwtAuthn(config) => return config.on_request(ex, at),
        HttpFilter::ExtAuthz(config) => return config.on_request(ex, at),
        HttpFilter::RateLimit(config) => return config.on_request(ex, at),
        HttpFilter::Compressor(config) => return config.on_request(ex, at),
        HttpFilter::Decompressor(config) => return config.on_request(ex, at),
        HttpFilter::ExtProc(config) => return config.on_request(ex, at),
        // None is the configuration of another.
        HttpFilter::Discovered(_) => return Step::Continue,
        // It is told of requests that are over. A matcher may have skipped it for others.
        HttpFilter::StandardMetrics(_) => {
            ex.reported = true;
            return Step::Continue;
        }
        // It sees responses alone.
        HttpFilter::CustomResponse(_) => return Step::Continue,
        HttpFilter::GrpcStats(_) | HttpFilter::GrpcWeb | HttpFilter::GrpcHttp1Bridge(_) => {}
    }
    let (bridged, web) = match &ex.filters {
        Some(active) => (active.bridged.is_some(), active.web.is_some()),
        None => (false, false),
    };
    let Some(request) = &mut ex.request else { return Step::Continue };
    match filter {
        HttpFilter::GrpcStats(config) if request.is_grpc() || bridged => {
            let call = Call::of(config, request, ex.reported);
            chain::active(ex).call = Some(call);
            at.encode(ex, Encoder::GrpcStats);
        }
        HttpFilter::GrpcWeb => {
            if let Some(web) = Web::of(request) {
                if let Some(transform) = web.request_transform() {
                    ex.upload.transform(transform.into());
                }
                chain::active(ex).web = Some(web);
                at.encode(ex, Encoder::GrpcWeb);
            }
        }
        // A client of gRPC-Web reads trailers in its own way.
        HttpFilter::GrpcHttp1Bridge(config) if !web && !bridged => {
            let bridged = Bridged::of(config, request);
            if bridged.is_none() {
                return Step::Continue;
            }
            let message = bridged == Some(Bridged::Protobuf);
            if message {
                let transform = grpc_web::Transform::Message(Vec::new(), ex.down.buffer_limit);
                ex.upload.transform(transform.into());
            }
            let active = chain::active(ex);
            active.bridged = bridged;
            active.reroute = message;
            at.encode(ex, Encoder::GrpcHttp1Bridge);
        }
        _ => {}
    }
    Step::Continue
}

/// Whether nothing follows the request's head, not even what filters have taken in of its body.
fn is_over(ex: &Exchange<'_>) -> bool {
    ex.upload.is_passed() && ex.filters.as_ref().is_none_or(|active| active.body.is_none())
}

/// The router has chosen a cluster: what counts messages knows where.
pub(super) fn on_cluster(ex: &mut Exchange<'_>) {
    let call = ex.filters.as_mut().and_then(|active| active.call.as_mut());
    if let (Some(call), Some(request), Some(names)) = (call, &ex.request, &ex.info.cluster) {
        call.begin(&ex.worker.grpc, &names.stat_name, request);
        if let Some(stats) = call.stats() {
            ex.upload.count(Messages::new(stats.request_messages.clone(), call.seen(0)), false);
        }
    }
}

/// The request's body, where a filter has waited for all of it.
pub(super) fn take_body(ex: &mut Exchange<'_>) -> Option<Bytes> {
    ex.filters.as_mut()?.body.take()
}

/// The session that the request is in.
pub(super) fn session<'x>(ex: &'x Exchange<'_>) -> Option<&'x stateful_session::Session> {
    ex.filters.as_ref()?.session.as_deref()
}

/// Whether the client speaks gRPC-Web.
pub(super) fn is_web(ex: &Exchange<'_>) -> bool {
    ex.filters.as_ref().is_some_and(|active| active.web.is_some())
}

/// Whether the response is to be complete before any of it is sent.
pub(super) fn collects_response(ex: &Exchange<'_>) -> bool {
    bridged(ex).is_some()
}

/// How the request came over the bridge from HTTP/1.
pub(super) fn bridged(ex: &Exchange<'_>) -> Option<Bridged> {
    ex.filters.as_ref().and_then(|active| active.bridged)
}

/// The way of a response's head through the filters, the last one first.
pub(super) struct Encoding {
    encoders: SmallVec<[(usize, Encoder); 2]>,
    /// So many of them are still to see it.
    left: usize,
    choice: Option<Choice>,
    /// Nothing follows the head.
    pub(super) ends: bool,
    /// It is that of an answer of our own.
    own: bool,
}

/// Whose turn it is with a response.
pub(super) enum Turn {
    /// A service is asked, and the others go on with its answer.
    Ask(Rc<RefCell<Session>>),
    /// No filter sees it any more: this is the answer.
    Reply(Box<Reply>),
    /// Nor does the client: the request begins again.
    Again,
}

/// Filters are to see a response's head. `ends` says that nothing follows it.
pub(super) fn on_response(ex: &mut Exchange<'_>, ends: bool) -> Encoding {
    Encoding::new(ex, ends, false)
}

/// Filters are to see the head of an answer of our own. A chain that has not seen the request sees that.
pub(super) fn on_reply(ex: &mut Exchange<'_>, ends: bool) -> Encoding {
    if !ex.filtered {
        let mut course = chain::Course::new(ex, super::on_demand::Found::Nothing, 0);
        // Without the configuration of one of them none sees it.
        let _ = chain::create(ex, &mut course);
    }
    Encoding::new(ex, ends, true)
}

impl Encoding {
    fn new(ex: &mut Exchange<'_>, ends: bool, own: bool) -> Self {
        let encoders = ex.filters.as_mut().map(|active| std::mem::take(&mut active.encoders));
        let encoders = encoders.unwrap_or_default();
        Self { left: encoders.len(), encoders, choice: None, ends, own }
    }

    /// The next filters see it, up to one that has to ask a service, or has another answer.
    pub(super) fn next(&mut self, ex: &mut Exchange<'_>, head: &mut ResponseHead) -> Option<Turn> {
        let ends = self.ends;
        while self.left > 0 {
            self.left -= 1;
            let Some((_, encoder)) = self.encoders.get(self.left) else { break };
            match encoder {
                Encoder::Cors(allowed) => allowed.on_response(head),
                Encoder::HeaderMutation(changes) => changes.on_response(ex, head, !self.own && !ends),
                Encoder::ExtAuthz(changes) => changes.on_response(head),
                Encoder::OAuth2(cookies) => oauth2::on_response(cookies, head),
                Encoder::RateLimit(told) => told.on_response(head),
                Encoder::Compressor(turn) => {
                    turn.on_response(ex, head, ends, &self.encoders, &mut self.choice);
                }
                Encoder::Decompressor(config) => config.on_response(ex, head, ends),
                Encoder::PeerMetadata(config, told) => config.on_response(*told, &mut ex.info.peers, head),
                Encoder::LocalRateLimit(level) => level.on_response(head),
                Encoder::HeaderToMetadata(rules) => rules.on_response(ex, head),
                Encoder::StatefulSession => stateful_session::on_response(ex, head),
                Encoder::BandwidthLimit(turn) => turn.on_response(ex, head, ends, self.own),
                Encoder::CustomResponse(answers) => {
                    if let Some(turn) = answers.on_response(ex, head, self.own) {
                        return Some(turn);
                    }
                }
                Encoder::HealthCheck(config) => config.on_response(ex, head),
                Encoder::HealthFailing => {
                    head.fields.set_known(Known::XEnvoyImmediateHealthCheckFail, b"true");
                }
                Encoder::ExtProc(session) => {
                    if !session.borrow().is_done() {
                        return Some(Turn::Ask(session.clone()));
                    }
                }
                Encoder::AdmissionControl(config) => {
                    // Where gRPC's status is told in an answer of our own, it is in the head.
                    let ends = if self.own { head.fields.has(Known::GrpcStatus) } else { ends };
                    let waits = config.on_response(head, ends, ex.now);
                    if !self.own {
                        chain::active(ex).admissions.extend(waits);
                    }
                }
                Encoder::GrpcWeb if self.own => reply_type(ex, &mut head.fields),
                Encoder::GrpcStats | Encoder::GrpcWeb | Encoder::GrpcHttp1Bridge if !self.own => {
                    grpc(ex, encoder, head, ends);
                }
                Encoder::GrpcStats | Encoder::GrpcWeb | Encoder::GrpcHttp1Bridge => {}
            }
        }
        None
    }
}

/// What the filters of gRPC do to the head of an upstream's response.
fn grpc(ex: &mut Exchange<'_>, encoder: &Encoder, head: &mut ResponseHead, ends: bool) {
    let Some(active) = &mut ex.filters else { return };
    match (encoder, &mut active.call, &active.web) {
        (Encoder::GrpcStats, Some(call), _) => call.answered(head),
        (Encoder::GrpcWeb, _, Some(web)) => {
            web.response_head(head);
            active.downloads.extend(web.response_transform().map(Transform::from).map(Download::Transform));
        }
        (Encoder::GrpcHttp1Bridge, ..) if active.bridged == Some(Bridged::Grpc) && ends => {
            grpc_http1_bridge::head_only(head);
        }
        _ => {}
    }
}

/// A response's body is about to pass; what filters have said of it since this was asked before is added.
pub(super) fn on_download(ex: &mut Exchange<'_>, download: &mut Pump) {
    let Some(active) = &mut ex.filters else { return };
    for change in active.downloads.drain(..) {
        match change {
            Download::Transform(transform) => download.then(transform),
            Download::Stage(stage) => download.process(stage, Bytes::new()),
        }
    }
    if let Some(kib) = active.slow.take() {
        download.slow_down(kib);
    }
    if let Some(call) = &active.call {
        if let Some(stats) = call.stats().filter(|_| !download.counts()) {
            download.count(Messages::new(stats.response_messages.clone(), call.seen(1)), true);
        }
    }
}

/// A service looks at the response's body as it passes.
pub(super) fn look_at_download(ex: &mut Exchange<'_>, stage: Stage) {
    chain::active(ex).downloads.push(Download::Stage(stage));
}

/// The request's body goes through `transform`, what was taken in of it before too; an answer where that is not what it
/// should be.
fn transform_request(ex: &mut Exchange<'_>, transform: Transform) -> Step {
    let Some(body) = ex.filters.as_mut().and_then(|active| active.body.take()) else {
        ex.upload.transform(transform);
        return Step::Continue;
    };
    let refused = || Step::Reply(Reply::new(400, "request_body_undecodable").body("Bad Request"));
    let mut transforms = transforms::Transforms::default();
    transforms.add(transform);
    let Some(mut piece) = transforms.piece(body) else { return refused() };
    if ex.upload.is_passed() {
        let Some((last, _)) = transforms.end(None) else { return refused() };
        piece = [piece, last].concat().into();
        if let Some(request) = ex.request.as_mut().filter(|_| !ex.upload.is_chunked()) {
            let mut digits = itoa::Buffer::new();
            request.fields.set_known(Known::ContentLength, digits.format(piece.len()).as_bytes());
        }
    } else if let Some(transform) = transforms.into_last() {
        ex.upload.transform(transform);
    }
    chain::active(ex).body = Some(piece);
    Step::Continue
}

/// The body of an answer of our own, or of one that was taken in, with its trailers after what filters do to it. `None`
/// where they leave it alone.
pub(super) fn on_reply_body(
    ex: &mut Exchange<'_>,
    body: &Bytes,
    trailers: &mut Option<Fields>,
) -> Option<Bytes> {
    let active = ex.filters.as_mut().filter(|active| !active.downloads.is_empty())?;
    let mut transforms = transforms::Transforms::default();
    for change in active.downloads.drain(..) {
        // A service was asked about the whole.
        if let Download::Transform(transform) = change {
            transforms.add(transform);
        }
    }
    let piece = transforms.piece(body.clone())?;
    let (last, left) = transforms.end(trailers.take())?;
    *trailers = left;
    Some([piece, last].concat().into())
}

/// The content type of an answer of our own is the client's kind of gRPC.
fn reply_type(ex: &Exchange<'_>, fields: &mut Fields) {
    let web = ex.filters.as_ref().and_then(|active| active.web.as_ref());
    if let Some(web) = web {
        if fields.get(Known::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            fields.set_known(Known::ContentType, web.response_type());
        }
    }
}

/// The request is over: standard metrics count it.
pub(super) fn report(ex: &Exchange<'_>) {
    let active = ex.filters.as_deref();
    let installed = ex.manager.filters.iter().map(|installed| &installed.filter);
    let discovered = active.into_iter().flat_map(|active| &active.discovered).map(|(_, filter)| &**filter);
    let context = ex.context();
    let grpc = ex.request.as_ref().is_some_and(RequestView::is_grpc);
    let messages = active.and_then(|active| active.call.as_ref()).and_then(Call::messages);
    for filter in installed.chain(discovered) {
        let filter = match filter {
            HttpFilter::Conditional(conditional) => &conditional.filter,
            filter => filter,
        };
        if let HttpFilter::StandardMetrics(metrics) = filter {
            metrics.request(&context, grpc, messages);
        }
    }
}

/// The request is over: what services wanted noted with the last pieces of a body is, before it is told of.
pub(super) fn note(ex: &mut Exchange<'_>) {
    // Few requests have a processor.
    let Some(active) = ex.filters.take_if(|active| !active.processors.is_empty()) else { return };
    for turn in &active.processors {
        ext_proc::settle::set_metadata(&mut turn.session.borrow_mut(), ex);
    }
    ex.filters = Some(active);
}

/// The request is over; its exchange has the trailers of its response. `complete` says that the client has it all.
pub(super) fn on_end(ex: &mut Exchange<'_>, complete: bool) {
    let Some(active) = ex.filters.take() else { return };
    for later in active.later {
        later.count(ex);
    }
    if let Some(trailers) = &ex.trailers {
        for config in &active.admissions {
            config.on_trailers(trailers.get(Known::GrpcStatus), ex.now);
        }
    }
    for turn in active.turns.into_iter().filter(|_| complete) {
        turn.complete(ex.now);
    }
    if let Some(call) = active.call {
        call.end(ex.trailers.as_ref(), ex.info.response_code, ex.info.start.elapsed());
    }
}
