//! The stream to the service that one request and its response share: questions out, one at a time, and answers in.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::Struct;
use prost::Message;

use super::watch::Watcher;
use super::{http, Body, Config, Mode, Service};
use crate::http::call_stream::{Ended, GrpcStream};
use crate::http::exchange::Exchange;
use crate::http::filters::lua::Run;
use crate::http::worker::Worker;
use crate::telemetry::stream_info::DynamicMetadata;

const PATH: &[u8] = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Nothing more is heard while one side has not taken so many bytes that the service has said of it.
const KEPT: usize = 1 << 20;

/// Under this name attributes are told.
const NAME: &str = "envoy.filters.http.ext_proc";

/// The stream.
pub(in crate::http) struct Session {
    pub(in crate::http) config: Arc<Config>,
    pub(in crate::http) mode: Mode,
    worker: Rc<Worker>,
    pub(super) terms: Terms,
    pub(super) stream: Option<GrpcStream>,
    /// The stream, where the service only watches.
    pub(super) watcher: Option<Watcher>,
    /// What it has said of the other side's parts than the one that read it, by [`Side`].
    kept: [VecDeque<Box<pb::ProcessingResponse>>; 2],
    /// Bytes of that.
    kept_bytes: usize,
    /// Questions without an answer, by side.
    asked: [usize; 2],
    /// How far each side is.
    flows: [Flow; 2],
    /// The service has been given of a body what it alone has now, by side.
    given: [bool; 2],
    /// What it is told of the stream with the next message.
    attributes: Option<Struct>,
    /// It knows how bodies come.
    introduced: bool,
    /// Metadata that it wants set, until who is asked about a body's pieces can set it.
    pub(super) noted: Vec<(String, Struct)>,
    /// The service is not asked any more.
    pub(super) done: bool,
    /// The script that is asked in place of a service.
    pub(super) run: Option<Rc<Run>>,
    /// Its answers to come, by side.
    answers: [VecDeque<Pin<Box<dyn Future<Output = pb::ProcessingResponse>>>>; 2],
}

/// How far a side is whose body the service takes and gives as it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Flow {
    /// It does not, or not yet.
    #[default]
    Other,
    /// It has yet to say something of the head, and may be given the body.
    Head,
    Body,
    /// Another body has taken its place.
    Replaced,
}

/// What the request's route may say in place of the filter.
#[derive(Debug)]
pub(super) struct Terms {
    /// Who looks.
    pub service: Service,
    /// Without an answer all goes on.
    pub fail_open: bool,
    /// Dynamic metadata that the service sees, by namespace.
    pub told: Arc<[Box<str>]>,
    /// Messages among them, likewise.
    pub told_typed: Arc<[Box<str>]>,
    /// Those that it may set.
    pub heard: Arc<[Box<str>]>,
    /// What it sees of the cluster's metadata.
    pub of_cluster: DynamicMetadata,
}

/// Whose parts are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Side {
    Request,
    Response,
}

impl Side {
    fn of(ask: &Ask) -> Self {
        match ask {
            Ask::RequestHeaders(_) | Ask::RequestBody(_) | Ask::RequestTrailers(_) => Side::Request,
            Ask::ResponseHeaders(_) | Ask::ResponseBody(_) | Ask::ResponseTrailers(_) => Side::Response,
        }
    }
}

/// A question that was asked.
enum Begun {
    /// The service is not asked any more.
    Nothing,
    /// On the stream; an answer may take so long.
    Sent(Option<Duration>),
    /// In a call of its own, which may.
    Called(Option<Duration>, Pin<Box<dyn Future<Output = Said>>>),
}

/// What came of a question.
#[derive(Debug)]
pub(in crate::http) enum Said {
    Answer(Box<pb::ProcessingResponse>),
    /// The call is over.
    Ended(Ended),
    TimedOut,
    /// It needs so much time for its answer.
    Later(Duration),
    /// The service has refused an answer over HTTP, or has given none.
    NotOk,
    /// The service is not asked any more.
    Nothing,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mode", &self.mode).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl Session {
    pub(super) fn new(config: Arc<Config>, worker: Rc<Worker>, terms: Terms, mode: Mode) -> Self {
        Self {
            config,
            mode,
            worker,
            terms,
            stream: None,
            watcher: None,
            kept: [const { VecDeque::new() }; 2],
            kept_bytes: 0,
            asked: [0; 2],
            flows: [Flow::Other; 2],
            given: [false; 2],
            attributes: None,
            introduced: false,
            noted: Vec::new(),
            done: false,
            run: None,
            answers: [const { VecDeque::new() }; 2],
        }
    }

    /// Whether the service is not asked any more.
    pub(in crate::http) fn is_done(&self) -> bool {
        self.done || self.watcher.as_ref().is_some_and(Watcher::has_ended)
    }

    /// The metadata that the service sees.
    pub(in crate::http) fn metadata(&self, ex: &Exchange<'_>) -> Metadata {
        if let Some(run) = &self.run {
            run.look(ex, &self.noted);
        }
        let (mut seen, told) = (Metadata::default(), &self.terms.told);
        let of_cluster = self.terms.of_cluster.iter();
        seen.filter_metadata.extend(of_cluster.map(|(name, fields)| (name.clone(), fields.clone())));
        if let Some(all) = ex.info.metadata.as_ref().filter(|_| !told.is_empty()) {
            for name in told.iter() {
                if let Some(found) = all.get(&**name) {
                    seen.filter_metadata.insert(name.to_string(), found.clone());
                }
            }
        }
        if let Some(all) = &ex.info.typed_metadata {
            let found = self.terms.told_typed.iter().filter_map(|name| all.get_key_value(&**name));
            seen.typed_filter_metadata.extend(found.map(|(name, value)| (name.clone(), value.clone())));
        }
        seen
    }

    /// The next message has these attributes.
    pub(in crate::http) fn tell(&mut self, attributes: Option<Struct>) {
        self.attributes = attributes;
    }

    /// The stream ends; counted once.
    pub(super) fn close(&mut self) {
        if self.stream.take().is_some() {
            self.config.stats.streams_closed.increment(1);
        }
        self.done = true;
    }

    /// The body of `side` goes to the service as it comes.
    pub(super) fn begin_body(&mut self, side: Side) {
        let flow = &mut self.flows[side as usize];
        if *flow == Flow::Other {
            *flow = Flow::Body;
        }
    }

    /// The body of `side` has its end: the service has nothing more to say of it.
    pub(super) fn end_body(&mut self, side: Side) {
        if self.is_duplex(side) {
            self.flows[side as usize] = Flow::Other;
            self.asked[side as usize] = 0;
        }
    }

    /// What the service says of the body of `side` counts no more: it has given another.
    pub(in crate::http) fn replace_body(&mut self, side: Side) {
        let flow = &mut self.flows[side as usize];
        if *flow != Flow::Other {
            *flow = Flow::Replaced;
            self.given[side as usize] = false;
            self.asked[side as usize] = 0;
        }
    }

    /// Whether the body of `side` is what the service says.
    pub(super) fn is_duplex(&self, side: Side) -> bool {
        matches!(self.flows[side as usize], Flow::Head | Flow::Body)
    }

    /// Whether it is another that it has given.
    pub(super) fn is_replaced(&self, side: Side) -> bool {
        self.flows[side as usize] == Flow::Replaced
    }

    /// Whether the service has yet to say something of the head of `side`, whose body it may be given.
    pub(super) fn awaits_head(&self, side: Side) -> bool {
        self.flows[side as usize] == Flow::Head
    }

    /// Bytes that the service has not taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.stream.as_ref().map_or(0, GrpcStream::unsent)
    }

    /// What waits to be sent is, as far as the service takes it.
    pub(super) fn flush(&mut self, context: &mut Context<'_>) {
        if let Some(stream) = &mut self.stream {
            stream.flush(context);
        }
    }

    /// Nobody takes what it says for now; calls beside it go on.
    pub(super) fn gather(&mut self, context: &mut Context<'_>) {
        if let Some(stream) = &mut self.stream {
            stream.gather(context);
        }
    }

    /// Whether all goes on without the service: not where it has what would have to go on.
    pub(super) fn fails_open(&self) -> bool {
        self.terms.fail_open && self.given == [false; 2]
    }

    fn question(&mut self, ask: Ask, metadata: Metadata) -> pb::ProcessingRequest {
        let attributes = self.attributes.take().map(|attributes| (NAME.to_owned(), attributes));
        let watches = self.config.watches.is_some();
        let first = !watches && !std::mem::replace(&mut self.introduced, true);
        pb::ProcessingRequest {
            attributes: attributes.into_iter().collect(),
            metadata_context: Some(metadata),
            observability_mode: watches,
            protocol_config: first.then(|| self.mode.protocol()),
            request: Some(ask),
        }
    }

    /// Sends a question, on a stream that it opens if there is none.
    pub(super) fn send(&mut self, ask: Ask, metadata: Metadata) {
        let side = Side::of(&ask);
        self.asked[side as usize] += 1;
        self.given[side as usize] |=
            self.is_duplex(side) && matches!(ask, Ask::RequestBody(_) | Ask::ResponseBody(_));
        if self.is_done() {
            return;
        }
        if let Some(answer) = self.of_script(&ask) {
            self.answers[side as usize].push_back(Box::pin(answer));
            return;
        }
        let bytes = self.question(ask, metadata).encode_to_vec();
        let Service::Grpc(target) = &self.terms.service else { return };
        let (worker, stats) = (&self.worker, &self.config.stats);
        let open = || {
            stats.streams_started.increment(1);
            GrpcStream::new(worker, target, PATH)
        };
        match self.config.watches {
            None => self.stream.get_or_insert_with(open).send(&bytes),
            Some(linger) => {
                let fail_open = self.terms.fail_open;
                let begin = || Watcher::new(open(), self.config.clone(), fail_open, linger);
                self.watcher.get_or_insert_with(begin).send(bytes);
            }
        }
        stats.stream_msgs_sent.increment(1);
    }

    /// What a script makes of it, where there is one in place of a service.
    fn of_script(&self, ask: &Ask) -> Option<impl Future<Output = pb::ProcessingResponse> + 'static> {
        let (Service::Lua(scripts), Some(run)) = (&self.terms.service, &self.run) else { return None };
        let (scripts, run, ask) = (scripts.clone(), run.clone(), ask.clone());
        Some(async move { run.ask(&scripts, ask).await })
    }

    /// Asks, and waits for what the service says to that.
    pub(in crate::http) fn ask(
        session: Rc<RefCell<Self>>,
        ask: Ask,
        metadata: Metadata,
    ) -> impl Future<Output = Said> {
        let side = Side::of(&ask);
        let begun = session.borrow_mut().begin(ask, metadata);
        async move {
            let (timeout, call) = match begun {
                Begun::Nothing => return Said::Nothing,
                Begun::Sent(timeout) => (timeout, None),
                Begun::Called(timeout, call) => (timeout, Some(call)),
            };
            match (call, timeout) {
                (Some(call), Some(timeout)) => {
                    return tokio::time::timeout(timeout, call).await.unwrap_or(Said::TimedOut);
                }
                (Some(call), None) => return call.await,
                (None, _) => {}
            }
            let mut limit = timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
            let mut extended = false;
            poll_fn(|context| {
                let mut session = session.borrow_mut();
                loop {
                    match session.poll_said(side, context) {
                        Poll::Pending => break,
                        Poll::Ready(Said::Later(wanted)) => {
                            if let Some(wanted) = session.may_take(wanted, limit.is_some(), &mut extended) {
                                if let Some(limit) = &mut limit {
                                    limit.as_mut().reset(tokio::time::Instant::now() + wanted);
                                }
                            }
                        }
                        said => {
                            if session.awaits_head(side) {
                                session.flows[side as usize] = Flow::Body;
                            }
                            return said;
                        }
                    }
                }
                match &mut limit {
                    Some(limit) => limit.as_mut().poll(context).map(|()| Said::TimedOut),
                    None => Poll::Pending,
                }
            })
            .await
        }
    }

    /// Asks; says how long an answer may take.
    fn begin(&mut self, ask: Ask, metadata: Metadata) -> Begun {
        if self.is_done() {
            return Begun::Nothing;
        }
        let timeout = self.config.timeout;
        if let Some(answer) = self.of_script(&ask) {
            return Begun::Called(None, Box::pin(async move { Said::Answer(Box::new(answer.await)) }));
        }
        if let Service::Http(target) = &self.terms.service {
            let target = target.clone();
            let question = self.question(ask, metadata);
            self.config.stats.stream_msgs_sent.increment(1);
            return Begun::Called(Some(timeout), Box::pin(http::ask(self.worker.clone(), target, question)));
        }
        let (duplex, ends) = match &ask {
            Ask::RequestHeaders(head) => (self.mode.request_body == Body::Duplex, head.end_of_stream),
            Ask::ResponseHeaders(head) => (self.mode.response_body == Body::Duplex, head.end_of_stream),
            _ => (false, false),
        };
        if duplex && !ends {
            self.flows[Side::of(&ask) as usize] = Flow::Head;
        }
        self.send(ask, metadata);
        // Where it may gather a body it has all the time it wants.
        Begun::Sent((!duplex).then_some(timeout))
    }

    /// What the service says next of the parts of `side`.
    pub(super) fn poll_said(&mut self, side: Side, context: &mut Context<'_>) -> Poll<Said> {
        if let Some(kept) = self.kept[side as usize].pop_front() {
            self.kept_bytes = self.kept_bytes.saturating_sub(kept.encoded_len());
            self.asked[side as usize] = self.asked[side as usize].saturating_sub(1);
            return Poll::Ready(Said::Answer(kept));
        }
        if let Some(answer) = self.answers[side as usize].front_mut() {
            let answer = ready!(answer.as_mut().poll(context));
            self.answers[side as usize].pop_front();
            return Poll::Ready(Said::Answer(Box::new(answer)));
        }
        while let Some(stream) = &mut self.stream {
            if self.kept_bytes >= KEPT {
                // The other side takes what it has first; both are of one task.
                stream.flush(context);
                stream.gather(context);
                return Poll::Pending;
            }
            let bytes = match ready!(stream.poll_next(context)) {
                Err(ended) => return Poll::Ready(Said::Ended(ended)),
                Ok(bytes) => bytes,
            };
            let Ok(answer) = pb::ProcessingResponse::decode(bytes) else {
                return Poll::Ready(Said::Ended(Ended { status: 13, message: String::new() }));
            };
            if let Some(wanted) = &answer.override_message_timeout {
                // Such a message says nothing else.
                let millis =
                    wanted.seconds.saturating_mul(1000).saturating_add(i64::from(wanted.nanos) / 1_000_000);
                return Poll::Ready(Said::Later(Duration::from_millis(u64::try_from(millis).unwrap_or(0))));
            }
            let of = match &answer.response {
                Some(Says::RequestHeaders(_) | Says::RequestBody(_) | Says::RequestTrailers(_)) => {
                    Side::Request
                }
                Some(Says::ResponseHeaders(_) | Says::ResponseBody(_) | Says::ResponseTrailers(_)) => {
                    Side::Response
                }
                _ => side,
            };
            // What nobody asked about is out of turn, whoever hears it.
            let unasked = self.kept[of as usize].len() >= self.asked[of as usize] && !self.is_duplex(of);
            if of == side || unasked {
                self.asked[side as usize] = self.asked[side as usize].saturating_sub(1);
                return Poll::Ready(Said::Answer(Box::new(answer)));
            }
            // Both sides are of one task, and the other may have looked before.
            self.kept_bytes += answer.encoded_len();
            self.kept[of as usize].push_back(Box::new(answer));
            context.waker().wake_by_ref();
        }
        Poll::Ready(Said::Nothing)
    }

    /// Whether the service may take so long for an answer, which it may ask for once where that is `timed`.
    pub(super) fn may_take(&self, wanted: Duration, timed: bool, extended: &mut bool) -> Option<Duration> {
        let stats = &self.config.stats;
        if timed && !*extended && wanted >= Duration::from_millis(1) && wanted <= self.config.max_timeout {
            stats.override_message_timeout_received.increment(1);
            *extended = true;
            return Some(wanted);
        }
        stats.override_message_timeout_ignored.increment(1);
        None
    }
}
