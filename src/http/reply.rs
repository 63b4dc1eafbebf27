//! Answers of our own: what they say, and how the connection manager's rules and filters change them
//! (envoyproxy.io: http_conn_man/local_reply).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::exchange::Exchange;
use super::fields::Fields;
use super::filters::ext_proc::{self, reply::Stopped};
use super::filters::Turn;
use super::h1::write::{chunk_open, chunked_end};
use super::h1::Refusal;
use super::head::ResponseHead;
use super::router::End;
use super::{filters, grpc, manager};
use crate::config::route::{Action, HeaderOps, Route};
use crate::config::{Known, RequestView};
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::{Protocol, ResponseFlags};

/// An answer of our own.
#[derive(Debug)]
pub struct Reply {
    pub(super) status: u16,
    pub(super) details: Cow<'static, str>,
    pub(super) body: Bytes,
    pub(super) location: Option<Vec<u8>>,
    /// Whose changes to responses apply, and the number that chose among its clusters.
    pub(super) route: Option<(Arc<Route>, u64)>,
    /// Header that says "true", unless the router is to add none.
    pub(super) marker: Option<&'static str>,
    pub(super) grpc_status: Option<Cow<'static, str>>,
    pub(super) attempts: Option<u32>,
    /// Nothing was waited for since the request came: the clock need not be read again.
    pub(super) at_once: bool,
    /// What filters add.
    pub(super) extra: Option<Box<Extra>>,
}

/// What a filter adds to an answer.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// Its fields.
    pub(super) fields: Fields,
    /// Changes to its head.
    pub(super) changes: HeaderOps,
    /// It is sent as it is: no rules for local replies, no gRPC.
    pub(super) plain: bool,
    /// No filter sees it.
    pub(super) direct: bool,
}

impl Reply {
    pub(super) fn new(status: u16, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            details: details.into(),
            body: Bytes::new(),
            location: None,
            route: None,
            marker: None,
            grpc_status: None,
            attempts: None,
            at_once: false,
            extra: None,
        }
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Bytes::copy_from_slice(body.as_ref());
        self
    }

    /// As [`Reply::body`], without a copy.
    pub(super) fn text(mut self, text: Cow<'static, str>) -> Self {
        self.body = match text {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        self
    }

    pub(super) fn location(mut self, location: Vec<u8>) -> Self {
        self.location = Some(location);
        self
    }

    /// The answer to a request on a route.
    pub(super) fn on(mut self, route: &Arc<Route>, choice: u64) -> Self {
        self.route.get_or_insert_with(|| (route.clone(), choice));
        self
    }

    /// The gRPC status when it is not that of the HTTP status.
    pub(super) fn grpc_status(mut self, code: Option<Cow<'static, str>>) -> Self {
        self.grpc_status = code;
        self
    }

    /// How often the request was tried, when the client is to know.
    pub(super) fn attempts(mut self, attempts: Option<u32>) -> Self {
        self.attempts = attempts;
        self
    }

    /// Follows the request without a wait.
    pub(super) fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }

    /// An empty answer with these fields, which no rules change.
    pub(super) fn unchanged(mut self, fields: Fields) -> Self {
        self.extra = Some(Box::new(Extra { fields, plain: true, ..Extra::default() }));
        self
    }

    /// With these fields.
    pub(super) fn with_fields(mut self, fields: Fields) -> Self {
        self.extra.get_or_insert_default().fields = fields;
        self
    }

    /// With these changes to its head.
    pub(super) fn changed(mut self, changes: HeaderOps) -> Self {
        self.extra.get_or_insert_default().changes = changes;
        self
    }

    /// Past all filters.
    pub(super) fn direct(mut self) -> Self {
        self.extra.get_or_insert_default().direct = true;
        self
    }

    pub(super) fn marker(mut self, marker: Option<&'static str>) -> Self {
        self.marker = marker;
        self
    }
}

impl Exchange<'_> {
    /// Answers a message that is not acceptable HTTP, and closes.
    pub(super) async fn refuse(&mut self, refusal: Refusal) -> End {
        let reply = self.refusal(refusal);
        self.reply(reply).await
    }

    /// The answer to a message that is not acceptable HTTP, after which the connection is closed.
    pub(super) fn refusal(&mut self, refusal: Refusal) -> Reply {
        self.manager.stats.downstream_cx_protocol_error.increment(1);
        self.info.flags.insert(ResponseFlags::DPE);
        self.close = true;
        if self.request.is_none() && self.upload.is_received() {
            // Nothing of it was understood: the codec gives up on the stream.
            self.manager.stats.downstream_rq_rx_reset.increment(1);
            self.manager.stats.downstream_rq_response_before_rq_complete.increment(1);
        }
        let body = super::head::reason(refusal.status).as_bytes();
        Reply::new(refusal.status, refusal.details).body(body)
    }

    /// Sends an answer of our own.
    pub(super) async fn reply(&mut self, reply: Reply) -> End {
        let now = if reply.at_once { self.now } else { Instant::now() };
        self.now = now;
        // What the client sends after it asked for another protocol is no further request.
        self.close |= self.request.as_ref().is_some_and(|request| request.upgrade().is_some());
        let Reply {
            mut status,
            details,
            mut body,
            location,
            route,
            marker,
            grpc_status: own,
            attempts,
            at_once: _,
            extra,
        } = reply;
        let mut head = ResponseHead::new(Fields::recycled(), status, Protocol::Http11);
        let plain = extra.as_ref().is_some_and(|extra| extra.plain);
        let direct = extra.as_ref().is_some_and(|extra| extra.direct);
        let grpc = !plain && self.request.as_ref().is_some_and(RequestView::is_grpc);
        if let Some(location) = location {
            head.fields.push_known(Known::Location, &location);
        }
        self.info.details = details;
        if let Some((route, choice)) = route.as_ref().filter(|_| !plain) {
            self.change_as_routed(&mut head, route, *choice);
        }
        if let Some(marker) = marker.filter(|_| !self.manager.router.suppress_envoy_headers) {
            head.fields.push(marker.as_bytes(), b"true");
        }
        if let Some(attempts) = attempts {
            let mut digits = itoa::Buffer::new();
            head.fields.push_known(Known::XEnvoyAttemptCount, digits.format(attempts).as_bytes());
        }
        let mut content_type: Bytes = Bytes::from_static(b"text/plain");
        if let Some(extra) = &extra {
            for (known, name, value) in extra.fields.iter() {
                match known {
                    Known::ContentType => head.fields.set_known(known, value),
                    _ => head.fields.push(name, value),
                }
            }
            extra.changes.apply_to_response(&mut head, &self.info, self.request.as_ref().map(|r| r as _));
        }
        self.info.response_code = status;
        if let Some(rules) = self.manager.local_reply.as_ref().filter(|_| !plain) {
            let mut format = rules.body_format.as_ref();
            let context = FormatContext {
                request: self.request.as_ref().map(|head| head as _),
                local_reply_body: &body,
                ..FormatContext::new(&self.info)
            };
            let mapper = rules.mappers.iter().find(|mapper| mapper.filter.matches(&context));
            let mut new_body = None;
            if let Some(mapper) = mapper {
                status = mapper.status.unwrap_or(status);
                new_body.clone_from(&mapper.body);
                format = mapper.body_format.as_ref().or(format);
                head.set_status(status);
            }
            if let Some(new_body) = new_body {
                body = new_body;
            }
            self.info.response_code = status;
            if let Some(mapper) = mapper {
                mapper.headers.apply_to_response(
                    &mut head,
                    &self.info,
                    self.request.as_ref().map(|r| r as _),
                );
            }
            if let Some(format) = format {
                let mut rendered = Vec::new();
                let context = FormatContext {
                    request: self.request.as_ref().map(|head| head as _),
                    response: Some(&head),
                    local_reply_body: &body,
                    ..FormatContext::new(&self.info)
                };
                format.format.render(&mut rendered, &context);
                if grpc && format.format.is_json() {
                    // The end of the line is no part of a message.
                    rendered.pop();
                }
                body = rendered.into();
                content_type.clone_from(&format.content_type);
            }
        }
        self.local_body = body.clone();
        let to_head = self.request.as_ref().is_some_and(|request| request.is_method(b"HEAD"));
        let may_have_body = status >= 200 && !matches!(status, 204 | 304);
        if grpc {
            let code = own.unwrap_or(Cow::Borrowed(grpc::status_of(status)));
            let message = grpc::percent_encoded(&body);
            // As in Envoy, a client of gRPC-Web sees the status of HTTP too.
            if !filters::is_web(self) {
                head.set_status(200);
                self.info.response_code = 200;
            }
            head.fields.set_known(Known::ContentType, b"application/grpc");
            head.fields.set_known(Known::GrpcStatus, code.as_bytes());
            if !message.is_empty() {
                head.fields.set_known(Known::GrpcMessage, &message);
            }
            if !self.down.client.is_http2() {
                head.fields.push_known(Known::ContentLength, b"0");
            }
            self.info.response_code = 200;
            body = Bytes::new();
        } else if matches!(status, 204 | 304) || status < 200 {
            body = Bytes::new();
        } else {
            // Without a body the end of the stream says so over HTTP/2, and the answer to HEAD has no length.
            if !body.is_empty() || !(to_head || self.down.client.is_http2()) {
                let mut digits = itoa::Buffer::new();
                head.fields.push_known(Known::ContentLength, digits.format(body.len()).as_bytes());
            }
            if body.is_empty() && !plain {
                head.fields.remove_known(Known::ContentType);
            } else if !body.is_empty() && !head.fields.has(Known::ContentType) {
                head.fields.push_known(Known::ContentType, &content_type);
            }
        }
        let mut empty = to_head || body.is_empty();
        let mut coded = None;
        if !self.manager.filters.is_empty() && !direct {
            let mut encoding = filters::on_reply(self, empty);
            while let Some(turn) = encoding.next(self, &mut head) {
                let session = match turn {
                    Turn::Ask(session) => session,
                    Turn::Reply(reply) => return self.reply_instead(*reply, route).await,
                    Turn::Again => return End::Again,
                };
                let asked = ext_proc::reply::consult(self, &session, &mut head, &mut body, encoding.ends);
                match Box::pin(asked).await {
                    Ok(()) => {}
                    Err(Stopped::Reply(reply)) => return self.reply_instead(*reply, route).await,
                    Err(Stopped::Gone) => return End::Gone,
                }
                encoding.ends = to_head || body.is_empty();
            }
            empty = encoding.ends;
            coded = filters::on_reply_body(self, &body, &mut None);
            if !empty && coded.is_none() && !head.fields.has(Known::ContentLength) {
                // Another body has taken the place of ours.
                coded = Some(body.clone());
            }
        }
        manager::finish_response(self.manager, &mut head, self.request.as_ref(), false, self.worker, now);
        let mut chunked =
            (to_head && !head.fields.has(Known::ContentLength) && may_have_body).then_some(true);
        if let Some(coded) = coded {
            self.info.bytes_sent += coded.len() as u64;
            let http_10 = self.request.as_ref().is_some_and(|request| request.protocol == Protocol::Http10);
            body = if http_10 || self.down.client.is_http2() { coded } else { one_chunk(&coded, None) };
            chunked = Some(true);
        } else if !empty {
            self.info.bytes_sent += body.len() as u64;
        }
        self.start_response(head, chunked, empty, now);
        if !empty {
            self.down.client.push_all(body);
        }
        match self.flush().await {
            Ok(()) => End::Done,
            Err(()) => End::Gone,
        }
    }

    /// What a route does to responses, and the cluster that was chosen on it: first of all, so that what is said of the
    /// answer itself stays (Envoy's `prepareLocalReply`).
    fn change_as_routed(&self, head: &mut ResponseHead, route: &Route, choice: u64) {
        let request = self.request.as_ref();
        if let (Action::Forward(forward), Some(request)) = (&route.action, request) {
            if let (_, Some(weighted)) = forward.target.choose(request, choice) {
                weighted.response_headers.apply_to_response(head, &self.info, Some(request));
            }
        }
        route.response_headers.apply_to_response(head, &self.info, request.map(|request| request as _));
    }

    /// Sends an answer in place of another, on the same route if requests are forwarded on it.
    async fn reply_instead(&mut self, reply: Reply, route: Option<(Arc<Route>, u64)>) -> End {
        let route = route.filter(|(route, _)| route.action.has_clusters());
        let reply = match &route {
            Some((route, choice)) => reply.on(route, *choice),
            None => reply,
        };
        Box::pin(self.reply(reply)).await
    }
}

/// A whole body whose length is not told before it.
pub(super) fn one_chunk(body: &Bytes, trailers: Option<&Fields>) -> Bytes {
    let mut out = Vec::with_capacity(body.len() + 16);
    if !body.is_empty() {
        chunk_open(&mut out, body.len());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
    chunked_end(&mut out, trailers);
    out.into()
}
