//! The stream to the service that one request and its response share: questions out, one at a time, and answers in.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode as mode_pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::Struct;
use prost::Message;

use super::mutation::{self, Refused};
use super::{Body, Config, Mode};
use crate::config::services::GrpcTarget;
use crate::http::call_stream::{Ended, GrpcStream};
use crate::http::exchange::{Exchange, Reply};
use crate::http::worker::Worker;

const PATH: &[u8] = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Under this name attributes are told.
const NAME: &str = "envoy.filters.http.ext_proc";

/// The stream.
#[derive(Debug)]
pub(in crate::http) struct Session {
    pub(in crate::http) config: Arc<Config>,
    pub(in crate::http) mode: Mode,
    worker: Rc<Worker>,
    terms: Terms,
    stream: Option<GrpcStream>,
    /// What it has said of the other side's parts than the one that read it, by [`Side`].
    kept: [VecDeque<Box<pb::ProcessingResponse>>; 2],
    /// Questions without an answer, by side.
    asked: [usize; 2],
    /// What it is told of the stream with the next message.
    attributes: Option<Struct>,
    /// Metadata that it wants set, until who is asked about a body's pieces can set it.
    pub(super) noted: Vec<(String, Struct)>,
    /// The service is not asked any more.
    done: bool,
}

/// What the request's route may say in place of the filter.
#[derive(Debug)]
pub(super) struct Terms {
    /// Who looks.
    pub target: Arc<GrpcTarget>,
    /// Without an answer all goes on.
    pub fail_open: bool,
    /// Dynamic metadata that the service sees, by namespace.
    pub told: Arc<[Box<str>]>,
    /// Those that it may set.
    pub heard: Arc<[Box<str>]>,
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

/// What came of a question.
#[derive(Debug)]
pub(in crate::http) enum Said {
    Answer(Box<pb::ProcessingResponse>),
    /// The call is over.
    Ended(Ended),
    TimedOut,
    /// It needs so much time for its answer.
    Later(Duration),
    /// The service is not asked any more.
    Nothing,
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
            kept: [const { VecDeque::new() }; 2],
            asked: [0; 2],
            attributes: None,
            noted: Vec::new(),
            done: false,
        }
    }

    /// Whether the service is not asked any more.
    pub(in crate::http) fn is_done(&self) -> bool {
        self.done
    }

    /// The metadata that the service sees.
    pub(in crate::http) fn metadata(&self, ex: &Exchange<'_>) -> Metadata {
        let (mut seen, told) = (Metadata::default(), &self.terms.told);
        if let Some(all) = ex.info.metadata.as_ref().filter(|_| !told.is_empty()) {
            for name in told.iter() {
                if let Some(found) = all.get(&**name) {
                    seen.filter_metadata.insert(name.to_string(), found.clone());
                }
            }
        }
        seen
    }

    /// The next message has these attributes.
    pub(in crate::http) fn tell(&mut self, attributes: Option<Struct>) {
        self.attributes = attributes;
    }

    /// The stream ends; counted once.
    fn close(&mut self) {
        if self.stream.take().is_some() {
            self.config.stats.streams_closed.increment(1);
        }
        self.done = true;
    }

    /// Sends a question, on a stream that it opens if there is none.
    pub(super) fn send(&mut self, ask: Ask, metadata: Metadata) {
        self.asked[Side::of(&ask) as usize] += 1;
        let stats = &self.config.stats;
        let attributes = self.attributes.take().map(|attributes| (NAME.to_owned(), attributes));
        let question = pb::ProcessingRequest {
            attributes: attributes.into_iter().collect(),
            metadata_context: Some(metadata),
            request: Some(ask),
            ..pb::ProcessingRequest::default()
        };
        let mut bytes = question.encode_to_vec();
        let (worker, target, mode) = (&self.worker, &self.terms.target, self.mode);
        let stream = self.stream.get_or_insert_with(|| {
            stats.streams_started.increment(1);
            bytes.extend_from_slice(&protocol(mode));
            GrpcStream::new(worker, target, PATH)
        });
        stream.send(&bytes);
        stats.stream_msgs_sent.increment(1);
    }

    /// Asks, and waits for what the service says to that.
    pub(in crate::http) async fn ask(session: Rc<RefCell<Self>>, ask: Ask, metadata: Metadata) -> Said {
        let side = Side::of(&ask);
        let timeout = {
            let mut session = session.borrow_mut();
            if session.done {
                return Said::Nothing;
            }
            session.send(ask, metadata);
            session.config.timeout
        };
        let mut limit = pin!(tokio::time::sleep(timeout));
        let mut extended = false;
        poll_fn(|context| {
            let mut session = session.borrow_mut();
            loop {
                match session.poll_said(side, context) {
                    Poll::Pending => break,
                    Poll::Ready(Said::Later(wanted)) => {
                        if let Some(wanted) = session.may_take(wanted, &mut extended) {
                            limit.as_mut().reset(tokio::time::Instant::now() + wanted);
                        }
                    }
                    said => return said,
                }
            }
            limit.as_mut().poll(context).map(|()| Said::TimedOut)
        })
        .await
    }

    /// What the service says next of the parts of `side`.
    pub(super) fn poll_said(&mut self, side: Side, context: &mut Context<'_>) -> Poll<Said> {
        if let Some(kept) = self.kept[side as usize].pop_front() {
            self.asked[side as usize] = self.asked[side as usize].saturating_sub(1);
            return Poll::Ready(Said::Answer(kept));
        }
        while let Some(stream) = &mut self.stream {
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
            if of == side || self.kept[of as usize].len() >= self.asked[of as usize] {
                self.asked[side as usize] = self.asked[side as usize].saturating_sub(1);
                return Poll::Ready(Said::Answer(Box::new(answer)));
            }
            // Both sides are of one task, and the other may have looked before.
            self.kept[of as usize].push_back(Box::new(answer));
            context.waker().wake_by_ref();
        }
        Poll::Ready(Said::Nothing)
    }

    /// Whether the service may take so long for an answer, which it may ask for once.
    pub(super) fn may_take(&self, wanted: Duration, extended: &mut bool) -> Option<Duration> {
        let stats = &self.config.stats;
        if !*extended && wanted >= Duration::from_millis(1) && wanted <= self.config.max_timeout {
            stats.override_message_timeout_received.increment(1);
            *extended = true;
            return Some(wanted);
        }
        stats.override_message_timeout_ignored.increment(1);
        None
    }
}

/// The field of the first message that tells how bodies come (`protocol_config`).
fn protocol(mode: Mode) -> Vec<u8> {
    let code = |body: Body| match body {
        Body::None => 0,
        Body::Pieces => mode_pb::BodySendMode::Streamed as u8,
        Body::Whole => mode_pb::BodySendMode::Buffered as u8,
        Body::Beginning => mode_pb::BodySendMode::BufferedPartial as u8,
    };
    let mut inner = Vec::new();
    for (field, code) in [(1u8, code(mode.request_body)), (2, code(mode.response_body))] {
        if code != 0 {
            inner.extend_from_slice(&[field << 3, code]);
        }
    }
    // Field 11 holds a message of a few bytes.
    let mut out = vec![11 << 3 | 2, inner.len() as u8];
    out.extend(inner);
    out
}

impl Mode {
    /// What `mode` says; `None` if it wants what is not supported.
    pub(crate) fn of(mode: &ProcessingMode) -> Option<Self> {
        use mode_pb::{BodySendMode, HeaderSendMode};
        let body = |value: i32| match BodySendMode::try_from(value) {
            Ok(BodySendMode::None) => Some(Body::None),
            Ok(BodySendMode::Streamed) => Some(Body::Pieces),
            Ok(BodySendMode::Buffered) => Some(Body::Whole),
            Ok(BodySendMode::BufferedPartial) => Some(Body::Beginning),
            _ => None,
        };
        let sends = |value: i32| HeaderSendMode::try_from(value) == Ok(HeaderSendMode::Send);
        let skips = |value: i32| HeaderSendMode::try_from(value) == Ok(HeaderSendMode::Skip);
        Some(Self {
            request_head: !skips(mode.request_header_mode),
            response_head: !skips(mode.response_header_mode),
            request_body: body(mode.request_body_mode)?,
            response_body: body(mode.response_body_mode)?,
            request_trailers: sends(mode.request_trailer_mode),
            response_trailers: sends(mode.response_trailer_mode),
        })
    }
}

/// Sets the metadata that the service wanted set.
pub(in crate::http) fn set_metadata(session: &mut Session, ex: &mut Exchange<'_>) {
    for (name, fields) in session.noted.drain(..) {
        let all = ex.info.metadata.get_or_insert_default();
        all.entry(name).or_default().fields.extend(fields.fields);
    }
}

impl Config {
    /// As [`Config::settle_later`], and what has been noted of metadata is set.
    pub(in crate::http) fn settle(
        &self,
        session: &Rc<RefCell<Session>>,
        said: Said,
        ex: &mut Exchange<'_>,
    ) -> Result<Option<Says>, Box<Reply>> {
        let settled = self.settle_later(session, said);
        set_metadata(&mut session.borrow_mut(), ex);
        settled
    }

    /// What an answer of any kind means for the request: what the service says of the part it was asked about, `None`
    /// where it has nothing to say, or the answer to the request.
    pub(super) fn settle_later(
        &self,
        session: &Rc<RefCell<Session>>,
        said: Said,
    ) -> Result<Option<Says>, Box<Reply>> {
        let stats = &self.stats;
        let fail_open = session.borrow().terms.fail_open;
        let answer = match said {
            Said::Nothing | Said::Later(_) => return Ok(None),
            Said::Answer(answer) => answer,
            Said::TimedOut => {
                stats.message_timeouts.increment(1);
                session.borrow_mut().close();
                if fail_open {
                    stats.failure_mode_allowed.increment(1);
                    return Ok(None);
                }
                return Err(Box::new(self.failure(504, "ext_proc_error_per-message_timeout_exceeded")));
            }
            Said::Ended(ended) => {
                let mut session = session.borrow_mut();
                stats.server_half_closed.increment(1);
                if ended.status == 0 {
                    session.close();
                    return Ok(None);
                }
                stats.streams_failed.increment(1);
                if fail_open {
                    session.close();
                    stats.failure_mode_allowed.increment(1);
                    return Ok(None);
                }
                session.stream = None;
                session.done = true;
                let Ended { status, message } = ended;
                let message = match &*message {
                    "" => "{via_upstream}".to_owned(),
                    message => format!("{{{message}{{via_upstream}}}}"),
                };
                let details = format!("ext_proc_error_gRPC_error_{status}{message}");
                return Err(Box::new(self.failure(self.status_on_error, &details)));
            }
        };
        let Some(says) = answer.response else { return self.out_of_turn(session, None).map(|()| None) };
        if let Some(metadata) = answer.dynamic_metadata {
            let mut session = session.borrow_mut();
            let heard = session.terms.heard.clone();
            for (name, value) in metadata.fields {
                if let (true, Some(Kind::StructValue(fields))) =
                    (heard.iter().any(|heard| **heard == *name), value.kind)
                {
                    session.noted.push((name, fields));
                }
            }
        }
        let of_head = matches!(says, Says::RequestHeaders(_) | Says::ResponseHeaders(_));
        if let Some(mode) = answer.mode_override.as_ref().filter(|_| self.allow_override && of_head) {
            let mut session = session.borrow_mut();
            // The head of the request has been looked at.
            let mode = Mode::of(mode).map(|mode| Mode { request_head: session.mode.request_head, ..mode });
            if let Some(mode) = mode {
                let same = |other: &Mode| Mode { request_head: mode.request_head, ..*other } == mode;
                if self.overrides.is_empty() || self.overrides.iter().any(same) {
                    session.mode = mode;
                }
            }
        }
        if let Says::ImmediateResponse(said) = says {
            if self.no_immediate {
                return self.out_of_turn(session, Some(&Says::ImmediateResponse(said))).map(|()| None);
            }
            stats.stream_msgs_received.increment(1);
            session.borrow_mut().close();
            return Err(Box::new(self.immediate(said)));
        }
        Ok(Some(says))
    }

    /// The service has said something out of turn, and is not asked any more. An answer to the request unless that may
    /// go on without it.
    pub(in crate::http) fn out_of_turn(
        &self,
        session: &Rc<RefCell<Session>>,
        says: Option<&Says>,
    ) -> Result<(), Box<Reply>> {
        self.stats.spurious_msgs_received.increment(1);
        let mut session = session.borrow_mut();
        session.close();
        if session.terms.fail_open {
            self.stats.failure_mode_allowed.increment(1);
            return Ok(());
        }
        let details = if says.is_some() { "spurious_message" } else { "unhandled_message" };
        Err(Box::new(self.failure(self.status_on_error, details)))
    }

    /// The answer where a change is not allowed.
    pub(in crate::http) fn refuse(&self, session: &Rc<RefCell<Session>>, refused: Refused) -> Reply {
        session.borrow_mut().close();
        self.failure(self.status_on_error, refused.0)
    }

    fn failure(&self, status: u16, details: &str) -> Reply {
        self.stats.immediate_responses_sent.increment(1);
        Reply::new(status, details.to_owned())
    }

    fn immediate(&self, said: pb::ImmediateResponse) -> Reply {
        self.stats.immediate_responses_sent.increment(1);
        let status = said.status.and_then(|status| u16::try_from(status.code).ok());
        let status = status.filter(|status| (200..600).contains(status)).unwrap_or(200);
        let details: String =
            said.details.chars().map(|c| if c.is_ascii_whitespace() { '_' } else { c }).collect();
        let mut reply = Reply::new(status, details);
        if let Some(status) = said.grpc_status {
            reply = reply.grpc_status(Some(status.status.to_string().into()));
        }
        reply.body = said.body.into();
        match said.headers {
            Some(changes) => reply.with_fields(mutation::fields(self, &changes)),
            None => reply,
        }
    }
}
