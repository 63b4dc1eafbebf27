//! One request, from its first byte to its log line.

mod again;
mod finish;

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub(super) use self::again::Redirected;
use super::client::{Client, Wire};
use super::connection::Downstream;
use super::fields::Fields;
use super::filters;
use super::filters::chain::{self, Course, Outcome};
use super::h1::{self, Framing, ParsedRequest};
use super::head::{RequestHead, ResponseHead};
use super::io::{poll_read, FIRST_READ};
use super::manager::{self, Stop};
use super::on_demand::Found;
use super::pump::Pump;
pub(super) use super::reply::Reply;
use super::router::{self, End, Ended};
use super::trace;
use super::worker::Worker;
use crate::config::http::{HttpConnectionManager, Routes};
use crate::config::route::{Action, Route, RouteTable, Selection};
use crate::config::{HeaderView, Known, RequestView, Slot};
use crate::runtime::{buffer, Counted};
use crate::telemetry::format::FormatContext;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::{Protocol, ResponseFlags, StreamInfo};

/// What happens to the connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next request may come.
    Keep,
    /// It is closed in good order.
    Close,
    /// The client is gone.
    Abort,
    /// It is reset: the answer could not be completed.
    Reset,
}

/// The state of one request.
pub struct Exchange<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) manager: &'a Arc<HttpConnectionManager>,
    pub(super) down: &'a mut Downstream,
    pub(super) info: StreamInfo,
    /// The request, once its head is complete.
    pub(super) request: Option<RequestHead>,
    /// The response head that went out, kept for the log.
    pub(super) response: Option<ResponseHead>,
    /// The request's body on its way.
    pub(super) upload: Pump,
    /// Whether the response announces the close.
    pub(super) close: bool,
    /// What filters do to it.
    pub(super) filters: Option<Box<filters::Active>>,
    /// They have been asked.
    pub(super) filtered: bool,
    /// Its trace.
    pub(super) span: Option<Box<trace::Span>>,
    /// Standard metrics count it when it is over.
    pub(super) reported: bool,
    /// The response's trailers, kept for the log.
    pub(super) trailers: Option<Fields>,
    /// The body of an answer of our own, kept for the log.
    pub(super) local_body: Bytes,
    /// It has been redirected here, or is about to be.
    pub(super) redirected: Option<Box<Redirected>>,
    /// The clock as last read: while nothing was waited for, it counts as now.
    pub(super) now: Instant,
    keep_alive: bool,
    /// Its head was read and its end was not recorded.
    open: bool,
}

/// A request whose connection is closed under it has its end, its statistics and its log line too.
impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if self.open {
            self.finish(End::Gone);
        }
    }
}

/// Slow heads are cut after this when config sets no limit: a half request must not be held for ever.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// The timeout that a head has outlasted.
#[derive(Debug, Clone, Copy)]
enum Slow {
    Request,
    Head,
    Stream,
}

/// What has come of a request beside its head.
#[derive(Clone, Copy)]
struct Arrival {
    /// Bytes of the head on the wire; 0 over HTTP/2.
    consumed: usize,
    framing: Framing,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> Exchange<'a> {
    /// A request that is about to be read, or was at `now`.
    pub fn new(
        worker: &'a Rc<Worker>,
        manager: &'a Arc<HttpConnectionManager>,
        down: &'a mut Downstream,
        now: Instant,
    ) -> Self {
        let info = StreamInfo::new(down.info.clone(), now, worker.clock.wall());
        Self {
            worker,
            manager,
            down,
            info,
            request: None,
            response: None,
            filters: None,
            filtered: false,
            reported: false,
            span: None,
            trailers: None,
            upload: Pump::new(Framing::Empty, false, false, 0),
            close: false,
            local_body: Bytes::new(),
            redirected: None,
            now,
            keep_alive: true,
            open: false,
        }
    }

    /// Serves it.
    pub async fn run(&mut self) -> Next {
        let arrival = match self.read_head().await {
            Ok(Some(arrival)) => arrival,
            Ok(None) => return Next::Abort,
            Err(next) => return next,
        };
        let stats = &self.manager.stats;
        stats.downstream_rq_total.increment(1);
        stats.downstream_rq_http1_total.increment(1);
        let _active = Held::new(&stats.downstream_rq_active);
        let worker = self.worker;
        let _counted = Counted::new(&worker.active_requests);
        self.down.requests += 1;
        self.open = true;
        let stopped = self.take(arrival);
        let mut end = self.serve(stopped).await;
        if end == End::Again {
            // Boxed: few requests are served twice.
            end = Box::pin(self.serve_again()).await;
        }
        self.open = false;
        self.finish(end)
    }

    /// Takes the request of an HTTP/2 stream, and says why it goes no further, if it does not.
    pub fn arrive(&mut self, head: RequestHead, framing: Framing, expects_continue: bool) -> Option<Stop> {
        let stats = &self.manager.stats;
        stats.downstream_rq_total.increment(1);
        stats.downstream_rq_http2_total.increment(1);
        self.info.protocol = Some(Protocol::Http2);
        self.open = true;
        self.request = Some(head);
        self.take(Arrival { consumed: 0, framing, keep_alive: true, expects_continue })
    }

    /// Whether anything may look at the request's head once it has its answer.
    pub(super) fn is_looked_back_at(&self) -> bool {
        let manager = self.manager;
        !manager.access_logs.is_empty()
            || !manager.filters.is_empty()
            || manager.tracing.is_some()
            || manager.local_reply.is_some()
    }

    /// Serves what has arrived.
    pub async fn run_stream(&mut self, stopped: Option<Stop>) -> Next {
        let _active = Held::new(&self.manager.stats.downstream_rq_active);
        let worker = self.worker;
        let _counted = Counted::new(&worker.active_requests);
        let mut end = self.serve(stopped).await;
        if end == End::Again {
            // Boxed: few requests are served twice.
            end = Box::pin(self.serve_again()).await;
        }
        self.open = false;
        self.finish(end)
    }

    /// Reads the head, which has its place from then on: it is large, and moved no more than once.
    async fn read_head(&mut self) -> Result<Option<Arrival>, Next> {
        let limits = &self.manager.limits;
        let (deadline, slow) = self.head_deadline();
        loop {
            let Downstream { client: Client::Http1(Wire { stream, input, .. }), timer, .. } = &mut *self.down
            else {
                return Ok(None);
            };
            if input.starts_with(b"\r\n") {
                // Empty lines before a request line are skipped (RFC 9112 §2.2).
                let _ = input.split_to(2);
                continue;
            }
            match h1::parse_request(input, limits) {
                Ok(Some(parsed)) => {
                    bytes::Buf::advance(input, parsed.consumed);
                    buffer::put_back(input);
                    let ParsedRequest { head, consumed, framing, keep_alive, expects_continue } = parsed;
                    self.info.protocol = Some(head.protocol);
                    self.request = Some(head);
                    return Ok(Some(Arrival { consumed, framing, keep_alive, expects_continue }));
                }
                Ok(None) => {}
                Err(refusal) => {
                    self.count_early();
                    self.info.protocol = Some(Protocol::Http11);
                    let end = self.refuse(refusal).await;
                    return Err(self.finish(end));
                }
            }
            let read = poll_fn(|context| match poll_read(stream, input, FIRST_READ, context) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => timer.poll(Some(deadline), context).map(|()| None),
            })
            .await;
            match read {
                Some(Ok(count)) if count > 0 => self.now = Instant::now(),
                Some(_) if input.is_empty() => return Ok(None),
                Some(_) => {
                    self.manager.stats.downstream_cx_protocol_error.increment(1);
                    return Ok(None);
                }
                None => {
                    self.count_early();
                    self.info.protocol = Some(Protocol::Http11);
                    let stats = &self.manager.stats;
                    let (body, details) = match slow {
                        Slow::Request => {
                            stats.downstream_rq_timeout.increment(1);
                            (&b"request timeout"[..], "request_overall_timeout")
                        }
                        Slow::Head => {
                            stats.downstream_rq_header_timeout.increment(1);
                            (&b"request header timeout"[..], "request_header_timeout")
                        }
                        Slow::Stream => {
                            stats.downstream_rq_idle_timeout.increment(1);
                            self.info.flags.insert(ResponseFlags::SI);
                            (&b"stream timeout"[..], "stream_idle_timeout")
                        }
                    };
                    self.close = true;
                    let end = self.reply(Reply::new(408, details).body(body)).await;
                    return Err(self.finish(end));
                }
            }
        }
    }

    /// When the head must be there, and which timeout says so.
    fn head_deadline(&self) -> (Instant, Slow) {
        let timeouts = &self.manager.timeouts;
        let mut nearest = (timeouts.request_headers.unwrap_or(HEAD_PATIENCE), Slow::Head);
        for (timeout, slow) in [(timeouts.request, Slow::Request), (timeouts.stream_idle, Slow::Stream)] {
            if let Some(timeout) = timeout.filter(|timeout| *timeout < nearest.0) {
                nearest = (timeout, slow);
            }
        }
        (self.info.start + nearest.0, nearest.1)
    }

    fn count_early(&mut self) {
        self.manager.stats.downstream_rq_total.increment(1);
        self.manager.stats.downstream_rq_http1_total.increment(1);
        self.down.requests += 1;
    }

    /// Takes in a request whose head is there, and says why it goes no further, if it does not.
    fn take(&mut self, arrival: Arrival) -> Option<Stop> {
        let Arrival { framing, keep_alive, expects_continue, consumed } = arrival;
        let head = self.request.as_mut()?;
        self.keep_alive = keep_alive;
        // Over HTTP/2 a head is counted as it is without compression.
        self.info.request_headers_bytes = if consumed > 0 { consumed } else { head.byte_size() } as u64;
        let limit = self.manager.max_requests_per_connection;
        let http2 = self.down.client.is_http2();
        if limit != 0 && self.down.requests >= limit && !http2 {
            self.manager.stats.downstream_cx_max_requests_reached.increment(1);
            self.keep_alive = false;
        }
        let prepared = manager::prepare_request(self.manager, head, &self.info, self.worker);
        self.info.client = head.client;
        let http1 = &self.manager.http1;
        // The body's framing upstream is decided by what is left of the head.
        let chunked = match framing {
            // Over HTTP/2 a length of nothing may come before the end of the stream does.
            Framing::Chunked if !http2 => true,
            Framing::Chunked | Framing::Length(_) => !head.fields.has(Known::ContentLength),
            _ => false,
        };
        let trailers = http2 || http1.enable_trailers;
        self.upload = Pump::new(framing, chunked, trailers, self.manager.limits.max_head);
        self.upload.limit(self.down.buffer_limit);
        if expects_continue && !self.manager.proxy_100_continue {
            head.fields.remove_known(Known::Expect);
            self.down.client.send_continue();
            self.count_interim();
        }
        if self.upload.is_received() {
            self.info.times.request_complete = Some(self.info.start);
        }
        prepared.err()
    }

    /// Serves what is over for now, as often as its redirects ask for that.
    async fn serve_again(&mut self) -> End {
        loop {
            let stopped = self.begin_again();
            let end = self.serve(stopped).await;
            if end != End::Again {
                return end;
            }
        }
    }

    async fn serve(&mut self, stopped: Option<Stop>) -> End {
        match stopped {
            None => {}
            Some(Stop::Refuse(refusal)) => {
                // Like any other message that is no good: nothing of it is logged.
                self.request = None;
                return self.refuse(refusal).await;
            }
            Some(Stop::Answer { status, details, close }) => {
                self.close |= close;
                return self.reply(Reply::new(status, details)).await;
            }
            Some(Stop::Redirect(path)) => {
                let reply = Reply::new(307, "path_normalization_failed").location(path);
                return self.reply(reply).await;
            }
        }
        self.route().await
    }

    async fn route(&mut self) -> End {
        let random = self.worker.random();
        let manager = self.manager;
        let mut found = match &manager.routes {
            Routes::Table(slot) => self.find(slot, random),
            Routes::Scoped(scoped) => self.find_scoped(scoped, random).await,
        };
        if let (Found::NoHost, Routes::Table(slot)) = (&found, &manager.routes) {
            found = Box::pin(self.find_host(slot, random)).await;
        }
        if let Found::Route(route) = &found {
            self.info.taken(route.name.as_ref(), route.metadata.as_ref());
        }
        if manager.tracing.is_some() {
            trace::begin(self, found.route().map(|route| &**route));
        }
        let mut chosen = None;
        if !manager.filters.is_empty() && !matches!(found, Found::Gone) {
            let mut course = Course::new(self, found, random);
            match self.filter(&mut course) {
                Outcome::Done => {}
                Outcome::Reply(reply) => return self.reply(course.answered(reply)).await,
                outcome => match Box::pin(self.filter_on(&mut course, outcome)).await {
                    Ok(None) => {}
                    Ok(Some(reply)) => return self.reply(course.answered(reply)).await,
                    Err(()) => return End::Gone,
                },
            }
            chosen = Some(course.choice);
            found = course.found;
        }
        self.manager.stats.rq_total.increment(1);
        match found {
            Found::Nothing | Found::NoHost => {
                self.manager.stats.no_route.increment(1);
                self.info.flags.insert(ResponseFlags::NR);
                self.reply(Reply::new(404, "route_not_found")).await
            }
            Found::RequireTls(location) => {
                self.manager.stats.rq_direct_response.increment(1);
                self.reply(Reply::new(301, "direct_response").location(location)).await
            }
            Found::Route(route) => {
                let chosen = chosen.unwrap_or_else(|| router::choice(self, &route, random));
                self.act(&route, chosen).await
            }
            Found::Gone => End::Gone,
        }
    }

    /// The filters have their turns.
    fn filter(&mut self, course: &mut Course) -> Outcome {
        match chain::create(self, course) {
            None => chain::on_request(self, course),
            Some(reply) => Outcome::Reply(reply),
        }
    }

    /// Goes on with the filters after `outcome`: an answer, or `None` when all have seen the request.
    async fn filter_on(&mut self, course: &mut Course, mut outcome: Outcome) -> Result<Option<Reply>, ()> {
        loop {
            match outcome {
                Outcome::Done => return Ok(None),
                Outcome::Reply(reply) => return Ok(Some(reply)),
                Outcome::Wait(wait) => {
                    if let Some(reply) = chain::wait(self, course, wait).await? {
                        return Ok(Some(reply));
                    }
                }
                Outcome::Reroute => {
                    let found = match &self.manager.routes {
                        Routes::Table(slot) => self.find(slot, course.random),
                        Routes::Scoped(scoped) => self.find_scoped(scoped, course.random).await,
                    };
                    if let Found::Route(route) = &found {
                        self.info.taken(route.name.as_ref(), route.metadata.as_ref());
                    }
                    course.reroute(self, found);
                }
            }
            outcome = chain::on_request(self, course);
        }
    }

    /// Looks the request up. It may last; the table, which may be large and replaced meanwhile, need not.
    pub(super) fn find(&mut self, slot: &Slot<RouteTable>, random: u64) -> Found {
        let table = slot.load();
        let (Some(request), Some(table)) = (&mut self.request, table.as_ref()) else { return Found::Nothing };
        for key in &table.internal_only_headers {
            if !request.fields.has(Known::XEnvoyInternal) {
                crate::config::HeaderMutate::remove(request, key);
            }
        }
        match table.select(&request.of_stream(&self.info), random) {
            Selection::NotFound => Found::Nothing,
            Selection::NoHost => Found::NoHost,
            Selection::RequireTls(_) => Found::RequireTls(crate::config::route::tls_location(&*request)),
            Selection::Found { route, .. } => Found::Route(route.clone()),
        }
    }

    async fn act(&mut self, route: &Arc<Route>, random: u64) -> End {
        let Some(request) = &mut self.request else { return End::Gone };
        match &route.action {
            Action::Forward(forward) => match router::forward(self, route, forward, random).await {
                Ended::Over(end) => end,
                Ended::Reply(reply) => self.reply(reply.on(route, random)).await,
            },
            Action::Redirect(redirect) => {
                let location = redirect.location(&route.matched, &*request);
                self.manager.stats.rq_direct_response.increment(1);
                let reply = Reply::new(redirect.status, "direct_response").location(location);
                self.reply(reply.on(route, random)).await
            }
            Action::Direct(direct) => {
                self.manager.stats.rq_direct_response.increment(1);
                let mut reply = Reply::new(direct.status, "direct_response").on(route, random);
                reply.body = direct.body.clone();
                if let Some(format) = &direct.format {
                    let mut body = Vec::new();
                    let context =
                        FormatContext { local_reply_body: &direct.body, ..FormatContext::new(&self.info) };
                    format.format.render(&mut body, &context.with_request(&*request));
                    reply.body = body.into();
                }
                // That of gRPC is its own.
                let typed = |_: &&Bytes| !request.is_grpc() && !reply.body.is_empty();
                if let Some(content_type) = direct.content_type.as_ref().filter(typed) {
                    let mut fields = Fields::default();
                    fields.push_known(Known::ContentType, content_type);
                    reply = reply.with_fields(fields);
                }
                if direct.status == 201 || (300..400).contains(&direct.status) {
                    reply = reply.location(crate::config::route::own_location(&*request));
                }
                self.reply(reply).await
            }
            Action::NonForwarding => {
                // As in Envoy a route to a cluster without a name.
                self.manager.stats.no_cluster.increment(1);
                self.info.flags.insert(ResponseFlags::NC);
                self.reply(Reply::new(503, "cluster_not_found").on(route, random)).await
            }
        }
    }

    /// Sends a finished response head. `chunked` is how its body is framed over HTTP/1, `ends` whether there
    /// is none.
    pub(super) fn start_response(
        &mut self,
        mut head: ResponseHead,
        chunked: Option<bool>,
        ends: bool,
        now: Instant,
    ) {
        let protocol = self.request.as_ref().map_or(Protocol::Http11, |request| request.protocol);
        let worker = self.worker;
        if self.manager.tracing.is_some() {
            trace::on_response(self.span.as_deref_mut(), self.manager, &mut head);
        }
        if !self.upload.is_received() {
            // The rest of the request is not waited for.
            self.close = true;
            self.manager.stats.downstream_rq_response_before_rq_complete.increment(1);
        }
        let connection = &self.down.info;
        let leaving = worker.drain.announces_close(now, connection.inbound, || worker.random())
            || connection.retirement.announces_close(now, || worker.random());
        match &mut self.down.client {
            Client::Http1(wire) => {
                let timeouts = &self.manager.timeouts;
                if timeouts.http1_safe && !self.down.aged {
                    self.down.aged =
                        timeouts.max_connection_duration.is_some_and(|max| now >= connection.start + max);
                    if self.down.aged {
                        self.manager.stats.downstream_cx_max_duration_reached.increment(1);
                    }
                }
                self.close |= self.down.aged;
                if leaving && !self.close {
                    self.manager.stats.downstream_cx_drain_close.increment(1);
                }
                self.close |= leaving || !self.keep_alive;
                let mut extra: &[u8] = b"";
                if head.status != 101 {
                    if protocol == Protocol::Http10 && chunked == Some(true) {
                        self.close = true;
                    }
                    if self.close {
                        head.fields.push_known(Known::Connection, b"close");
                    } else if protocol == Protocol::Http10 {
                        head.fields.push_known(Known::Connection, b"keep-alive");
                    }
                    if chunked == Some(true) && protocol != Protocol::Http10 {
                        extra = b"transfer-encoding: chunked\r\n";
                    }
                }
                let (case, http_10) = (self.manager.http1.header_case, protocol == Protocol::Http10);
                let before = wire.output.len();
                h1::write::response_head(wire.output.flat(), &head, case, extra, http_10);
                self.info.response_headers_bytes = (wire.output.len() - before) as u64;
            }
            Client::Http2(stream) => {
                if leaving && stream.drain() {
                    self.manager.stats.downstream_cx_drain_close.increment(1);
                }
                self.info.response_headers_bytes = head.byte_size() as u64;
                stream.begin(&head, ends);
            }
        }
        self.info.response_code = head.status;
        self.info.times.first_downstream_tx = Some(now);
        if self.reported || self.span.is_some() || !self.manager.access_logs.is_empty() {
            self.response = Some(head);
        }
    }

    /// Writes what waits; gives up after the stream's idle timeout.
    pub(super) async fn flush(&mut self) -> Result<(), ()> {
        self.flush_within(self.manager.timeouts.stream_idle).await
    }

    /// Writes what waits; gives up after `patience`.
    pub(super) async fn flush_within(&mut self, patience: Option<Duration>) -> Result<(), ()> {
        let mut waits: Option<Option<Instant>> = None;
        let Downstream { client, timer, .. } = &mut *self.down;
        let flushed = poll_fn(|context| match client.poll_flush(context) {
            Poll::Ready(result) => Poll::Ready(result.map_err(|_| ())),
            Poll::Pending => {
                let deadline =
                    waits.get_or_insert_with(|| patience.map(|patience| Instant::now() + patience));
                timer.poll(*deadline, context).map(Err)
            }
        })
        .await;
        if waits.is_some() {
            self.now = Instant::now();
        }
        flushed
    }
}
