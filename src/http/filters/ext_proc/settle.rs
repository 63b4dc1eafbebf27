//! What an answer of a service, or its absence, means for the request.

use std::cell::RefCell;
use std::rc::Rc;

use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::value::Kind;

use super::mutation::{self, Refused};
use super::session::{Said, Session};
use super::watch::Watcher;
use super::{Config, Mode, Service};
use crate::http::call_stream::Ended;
use crate::http::exchange::{Exchange, Reply};

/// What is said of messages that are out of turn.
pub(super) const SPURIOUS: &str = "spurious_message";
pub(super) const ORDINARY: &str =
    "spurious_message:_Normal_body_mutation_response_is_received_while_body_mode__is_FULL_DUPLEX_STREAMED";
pub(super) const STREAMED: &str =
    "spurious_message:_streamed_response_is_received_while_body_mode__is_not_FULL_DUPLEX_STREAMED";
const UNHANDLED: &str = "unhandled_message";
const NO_IMMEDIATE: &str = "unhandled_immediate_response_due_to_config_disabled_it";

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
        let fail_open = session.borrow().fails_open();
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
            Said::NotOk => {
                stats.http_not_ok_resp_received.increment(1);
                session.borrow_mut().close();
                if fail_open {
                    stats.failure_mode_allowed.increment(1);
                    return Ok(None);
                }
                return Err(Box::new(self.failure(self.status_on_error, "ext_proc_error_HTTP_ERROR")));
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
                return Err(Box::new(self.failed(ended)));
            }
        };
        let of_script = session.borrow().run.as_ref().map(|run| run.take_noted());
        let is_script = of_script.is_some();
        session.borrow_mut().noted.extend(of_script.unwrap_or_default());
        let Some(says) = answer.response else { return self.out_of_turn(session, UNHANDLED).map(|()| None) };
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
        let overrides = self.allow_override && of_head && !self.mode.is_duplex();
        if let Some(mode) = answer.mode_override.as_ref().filter(|_| overrides) {
            let mut session = session.borrow_mut();
            let mode = self.mode.overridden(mode).map(|mode| match session.terms.service {
                Service::Http(_) => mode.of_heads(),
                Service::Grpc(_) | Service::Lua(_) => mode,
            });
            if let Some(mode) = mode {
                let same = |other: &Mode| Mode { request_head: mode.request_head, ..*other } == mode;
                if self.overrides.is_empty() || self.overrides.iter().any(same) {
                    session.mode = mode;
                }
            }
        }
        if let Says::ImmediateResponse(said) = says {
            if self.no_immediate {
                return self.out_of_turn(session, NO_IMMEDIATE).map(|()| None);
            }
            stats.stream_msgs_received.increment(1);
            if !is_script {
                session.borrow_mut().close();
            }
            return Err(Box::new(self.immediate(said)));
        }
        Ok(Some(says))
    }

    /// The service has said something out of turn, and is not asked any more. An answer to the request unless that may
    /// go on without it.
    pub(in crate::http) fn out_of_turn(
        &self,
        session: &Rc<RefCell<Session>>,
        details: &str,
    ) -> Result<(), Box<Reply>> {
        self.stats.spurious_msgs_received.increment(1);
        let mut session = session.borrow_mut();
        session.close();
        if session.fails_open() {
            self.stats.failure_mode_allowed.increment(1);
            return Ok(());
        }
        Err(Box::new(self.failure(self.status_on_error, details)))
    }

    /// The answer where a change is not allowed.
    pub(in crate::http) fn refuse(&self, session: &Rc<RefCell<Session>>, refused: Refused) -> Reply {
        session.borrow_mut().close();
        self.failure(self.status_on_error, refused.0)
    }

    /// The answer where the call has failed.
    fn failed(&self, ended: Ended) -> Reply {
        let Ended { status, message } = ended;
        let message = match &*message {
            "" => "{via_upstream}".to_owned(),
            message => format!("{{{message}{{via_upstream}}}}"),
        };
        self.failure(self.status_on_error, &format!("ext_proc_error_gRPC_error_{status}{message}"))
    }

    /// The answer where a service that only watches has failed, and the request is not to go on without it.
    pub(in crate::http) fn watching(&self, session: &Rc<RefCell<Session>>) -> Option<Box<Reply>> {
        let mut session = session.borrow_mut();
        let ended = session.watcher.as_ref().and_then(Watcher::failure)?;
        session.done = true;
        Some(Box::new(self.failed(ended)))
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
