//! The stream to the service that one request and its response share: questions out, one at a time, and answers in.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode as mode_pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::value::Kind;
use prost::Message;

use super::mutation::{self, Refused};
use super::{Body, Config, Mode};
use crate::config::services::GrpcTarget;
use crate::http::call_stream::{Ended, GrpcStream};
use crate::http::exchange::{Exchange, Reply};
use crate::http::worker::Worker;

const PATH: &[u8] = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// The stream.
#[derive(Debug)]
pub(in crate::http) struct Session {
    pub(in crate::http) config: Arc<Config>,
    pub(in crate::http) mode: Mode,
    worker: Rc<Worker>,
    target: Arc<GrpcTarget>,
    fail_open: bool,
    stream: Option<GrpcStream>,
    /// The service is not asked any more.
    done: bool,
}

/// What came of a question.
#[derive(Debug)]
pub(in crate::http) enum Said {
    Answer(Box<pb::ProcessingResponse>),
    /// The call is over.
    Ended(Ended),
    TimedOut,
    /// The service is not asked any more.
    Nothing,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl Session {
    pub(super) fn new(
        config: Arc<Config>,
        worker: Rc<Worker>,
        target: Arc<GrpcTarget>,
        mode: Mode,
        fail_open: bool,
    ) -> Self {
        Self { config, mode, worker, target, fail_open, stream: None, done: false }
    }

    /// Whether the service is not asked any more.
    pub(in crate::http) fn is_done(&self) -> bool {
        self.done
    }

    /// The stream ends; counted once.
    fn close(&mut self) {
        if self.stream.take().is_some() {
            self.config.stats.streams_closed.increment(1);
        }
        self.done = true;
    }

    /// Sends a question, on a stream that it opens if there is none.
    fn send(&mut self, ask: Ask, metadata: Metadata) {
        let stats = &self.config.stats;
        let question = pb::ProcessingRequest {
            metadata_context: Some(metadata),
            request: Some(ask),
            ..pb::ProcessingRequest::default()
        };
        let mut bytes = question.encode_to_vec();
        let (worker, target, mode) = (&self.worker, &self.target, self.mode);
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
        let (timeout, max) = {
            let mut session = session.borrow_mut();
            if session.done {
                return Said::Nothing;
            }
            session.send(ask, metadata);
            (session.config.timeout, session.config.max_timeout)
        };
        let mut limit = pin!(tokio::time::sleep(timeout));
        let mut extended = false;
        poll_fn(|context| {
            let mut session = session.borrow_mut();
            while let Some(stream) = &mut session.stream {
                let bytes = match stream.poll_next(context) {
                    Poll::Pending => break,
                    Poll::Ready(Err(ended)) => return Poll::Ready(Said::Ended(ended)),
                    Poll::Ready(Ok(bytes)) => bytes,
                };
                let Ok(answer) = pb::ProcessingResponse::decode(bytes) else {
                    let message = String::new();
                    return Poll::Ready(Said::Ended(Ended { status: 13, message }));
                };
                let Some(wanted) = &answer.override_message_timeout else {
                    return Poll::Ready(Said::Answer(Box::new(answer)));
                };
                // Such a message says nothing else.
                let millis =
                    wanted.seconds.saturating_mul(1000).saturating_add(i64::from(wanted.nanos) / 1_000_000);
                let wanted = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
                let stats = &session.config.stats;
                if !extended && wanted >= Duration::from_millis(1) && wanted <= max {
                    stats.override_message_timeout_received.increment(1);
                    extended = true;
                    limit.as_mut().reset(tokio::time::Instant::now() + wanted);
                } else {
                    stats.override_message_timeout_ignored.increment(1);
                }
            }
            limit.as_mut().poll(context).map(|()| Said::TimedOut)
        })
        .await
    }
}

/// The field of the first message that tells how bodies come (`protocol_config`).
fn protocol(mode: Mode) -> Vec<u8> {
    let code = |body: Body| match body {
        Body::None => 0,
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
            Ok(BodySendMode::Buffered) => Some(Body::Whole),
            Ok(BodySendMode::BufferedPartial) => Some(Body::Beginning),
            _ => None,
        };
        let sends = |value: i32| HeaderSendMode::try_from(value) == Ok(HeaderSendMode::Send);
        if sends(mode.request_trailer_mode) || sends(mode.response_trailer_mode) {
            return None;
        }
        let skips = |value: i32| HeaderSendMode::try_from(value) == Ok(HeaderSendMode::Skip);
        Some(Self {
            request_head: !skips(mode.request_header_mode),
            response_head: !skips(mode.response_header_mode),
            request_body: body(mode.request_body_mode)?,
            response_body: body(mode.response_body_mode)?,
        })
    }
}

impl Config {
    /// The metadata that the service sees.
    pub(in crate::http) fn metadata(&self, ex: &Exchange<'_>) -> Metadata {
        let mut seen = Metadata::default();
        if let Some(all) = ex.info.metadata.as_ref().filter(|_| !self.told.is_empty()) {
            for name in &self.told {
                if let Some(found) = all.get(&**name) {
                    seen.filter_metadata.insert(name.to_string(), found.clone());
                }
            }
        }
        seen
    }

    /// What an answer of any kind means for the request: what the service says of the part it was asked about, `None`
    /// where it has nothing to say, or the answer to the request.
    pub(in crate::http) fn settle(
        &self,
        session: &Rc<RefCell<Session>>,
        said: Said,
        ex: &mut Exchange<'_>,
    ) -> Result<Option<Says>, Box<Reply>> {
        let stats = &self.stats;
        let fail_open = session.borrow().fail_open;
        let answer = match said {
            Said::Nothing => return Ok(None),
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
                let message =
                    if message.is_empty() { message } else { format!("{{{message}{{via_upstream}}}}") };
                let details = format!("ext_proc_error_gRPC_error_{status}{message}");
                return Err(Box::new(self.failure(self.status_on_error, &details)));
            }
        };
        let Some(says) = answer.response else { return Err(Box::new(self.spurious(session, None))) };
        if let Some(metadata) = answer.dynamic_metadata {
            for (name, value) in metadata.fields {
                if let (true, Some(Kind::StructValue(fields))) =
                    (self.heard.iter().any(|heard| **heard == *name), value.kind)
                {
                    let all = ex.info.metadata.get_or_insert_default();
                    all.entry(name).or_default().fields.extend(fields.fields);
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
                return Err(Box::new(self.spurious(session, Some(&Says::ImmediateResponse(said)))));
            }
            stats.stream_msgs_received.increment(1);
            session.borrow_mut().close();
            return Err(Box::new(self.immediate(said)));
        }
        Ok(Some(says))
    }

    /// The answer to a request of which the service says something out of turn.
    pub(in crate::http) fn spurious(&self, session: &Rc<RefCell<Session>>, says: Option<&Says>) -> Reply {
        self.stats.spurious_msgs_received.increment(1);
        session.borrow_mut().close();
        let details = if says.is_some() { "spurious_message" } else { "unhandled_message" };
        self.failure(self.status_on_error, details)
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
