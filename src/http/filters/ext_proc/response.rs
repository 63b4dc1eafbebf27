//! What a service makes of responses.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Ask;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Says;
use outrigger_control_api::pb::google::protobuf::Struct;

use super::mutation::{self, Refused};
use super::session::{Said, Session, Side};
use super::settle::SPURIOUS;
use super::stream::{Look, Processor};
use super::watch::Watch;
use super::{Body, Config, Duplex, Verdict};
use crate::config::Known;
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;
use crate::http::stages::Stage;
use crate::policy::cel::Subject;

impl Config {
    /// Applies what the service says of a response's head, or else of its body.
    pub(in crate::http) fn hear_response(
        &self,
        session: &Rc<RefCell<Session>>,
        said: Said,
        ex: &mut Exchange<'_>,
        head: &mut ResponseHead,
        of_head: bool,
    ) -> Verdict {
        let says = match self.settle(session, said, ex) {
            Ok(Some(says)) => says,
            Ok(None) => return Verdict::Go(None, false),
            Err(reply) => return Verdict::Reply(reply),
        };
        let common = match says {
            Says::ResponseHeaders(response) if of_head => response.response,
            Says::ResponseBody(response) if !of_head => response.response,
            _ => return self.unexpected(session),
        };
        self.stats.stream_msgs_received.increment(1);
        let Some(common) = common else { return Verdict::Go(None, false) };
        if let Some(changes) = &common.header_mutation {
            let may_size = session.borrow().mode.response_body == Body::Whole;
            if let Err(refused) = mutation::apply_to_response(self, changes, head, may_size) {
                return Verdict::Reply(Box::new(self.refuse(session, refused)));
            }
        }
        // As in the request.
        let whole = !of_head && session.borrow().mode.response_body == Body::Whole;
        if whole && mutation::is_streamed(&common) && head.fields.has(Known::ContentLength) {
            return Verdict::Reply(Box::new(self.refuse(session, Refused::LENGTH)));
        }
        mutation::body_of(common, of_head)
    }

    /// What the service is told of the stream as a side begins.
    pub(in crate::http) fn attributes_of(
        &self,
        side: Side,
        ex: &Exchange<'_>,
        response: Option<&ResponseHead>,
    ) -> Option<Struct> {
        let [of_request, of_response] = &self.attributes;
        let wanted = if side == Side::Request { of_request } else { of_response };
        if wanted.is_empty() {
            return None;
        }
        let subject = Subject {
            connection: &ex.info.connection,
            stream: Some(&ex.info),
            request: ex.request.as_ref().map(|request| request as _),
            response: response.map(|response| response as _),
            trailers: None,
            dynamic: ex.info.metadata.as_deref(),
        };
        let told = wanted
            .iter()
            .filter_map(|(name, expression)| Some((name.to_string(), expression.message(&subject)?)));
        Some(Struct { fields: told.collect() })
    }

    /// What the service is asked about a response's head.
    pub(in crate::http) fn question_of_head(&self, head: &ResponseHead, ends: bool) -> Ask {
        Ask::ResponseHeaders(mutation::headers(self, mutation::response_lines(head), ends))
    }

    /// What it is asked about a response's body.
    pub(in crate::http) fn question_of_body(body: &Bytes, ends: bool) -> Ask {
        Ask::ResponseBody(pb::HttpBody { body: body.to_vec(), end_of_stream: ends })
    }

    /// What it is asked about its trailers.
    pub(in crate::http) fn question_of_trailers(&self, trailers: &Fields) -> Ask {
        Ask::ResponseTrailers(mutation::trailers(self, trailers))
    }

    /// Applies what the service says of a response's trailers.
    pub(in crate::http) fn hear_trailers(
        &self,
        session: &Rc<RefCell<Session>>,
        said: Said,
        ex: &mut Exchange<'_>,
        trailers: &mut Fields,
    ) -> Result<(), Box<Reply>> {
        match self.settle(session, said, ex)? {
            None => Ok(()),
            Some(Says::ResponseTrailers(said)) => {
                self.stats.stream_msgs_received.increment(1);
                let changes = said.header_mutation.unwrap_or_default();
                mutation::apply_to_trailers(self, &changes, trailers)
                    .map_err(|refused| Box::new(self.refuse(session, refused)))
            }
            Some(_) => self.out_of_turn(session, SPURIOUS),
        }
    }

    /// A response's body after what the service said of it; an answer of our own where its length is told otherwise.
    pub(in crate::http) fn body_of_response(
        &self,
        session: &Rc<RefCell<Session>>,
        head: &mut ResponseHead,
        body: &Bytes,
    ) -> Result<(), Box<Reply>> {
        if session.borrow().mode.response_body != Body::Whole {
            // What it becomes may have another length.
            if head.fields.has(Known::ContentLength) {
                let mut digits = itoa::Buffer::new();
                head.fields.set_known(Known::ContentLength, digits.format(body.len()).as_bytes());
            }
            return Ok(());
        }
        let length = head.fields.get(Known::ContentLength).map(crate::config::matcher::number::<usize>);
        if length.is_some_and(|length| length != Some(body.len())) {
            return Err(Box::new(self.refuse(session, Refused::LENGTH)));
        }
        Ok(())
    }

    /// What looks at a response's body on its way, and at its trailers, if anything does.
    pub(in crate::http) fn of_response(
        &self,
        session: &Rc<RefCell<Session>>,
        ex: &Exchange<'_>,
        limit: usize,
    ) -> Option<Stage> {
        if session.borrow().is_done() {
            return None;
        }
        let (mode, metadata) = (session.borrow().mode, session.borrow().metadata(ex));
        let look = match mode.response_body {
            Body::Duplex => {
                return Some(Stage::Duplex(Box::new(Duplex::new(session, Side::Response, metadata))));
            }
            Body::Pieces => Look::Pieces,
            Body::Beginning => Look::Beginning(limit),
            Body::None | Body::Whole => Look::Pass,
        };
        let looks = look != Look::Pass || mode.response_trailers;
        looks.then(|| Stage::Processor(Box::new(Processor::new(session, Side::Response, look, metadata))))
    }

    /// A service that only watches is told of a response's head; what tells it of the rest, if anything does. An answer
    /// of our own where that service has failed.
    pub(in crate::http) fn tell_response(
        &self,
        session: &Rc<RefCell<Session>>,
        ex: &Exchange<'_>,
        head: &mut ResponseHead,
        ends: bool,
    ) -> Result<Option<Watch>, Box<Reply>> {
        if let Some(reply) = self.watching(session) {
            return Err(reply);
        }
        let (mode, metadata) = (session.borrow().mode, session.borrow().metadata(ex));
        if mode.response_head {
            session.borrow_mut().send(self.question_of_head(head, ends), metadata.clone());
        } else if mode.response_body.unsizes() && !ends {
            // As in Envoy.
            head.fields.remove_known(Known::ContentLength);
        }
        Ok(Watch::of(session, Side::Response, metadata).filter(|_| !ends))
    }
}
