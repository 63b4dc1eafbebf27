//! The filters of a connection manager, one after the other over a request's head.
//!
//! Comes in: a request with the route that was found for it. Goes out: the request as it is to be routed, or an answer.
//! Which filters are on is decided by the first route; each filter sees the route as it is when its turn comes
//! (envoyproxy.io: http_filters). Nothing here waits: a filter that has to says what for, and has its turn again.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::{bandwidth_limit, custom_response, header_to_metadata, Active, Awaited, Encoder};
use crate::config::http::HttpFilter;
use crate::config::route::{Action, Chosen, FilterName, Forward, Override, Overrides, Route, RouteFilter};
use crate::config::{Cluster, Known};
use crate::http::exchange::{Exchange, Reply};
use crate::http::h1::Refusal;
use crate::http::head::RequestHead;
use crate::http::io::OutBuf;
use crate::http::on_demand::Found;
use crate::http::pump::{Out, PumpError, Seen};
use crate::http::router::choice;
use crate::telemetry::stream_info::ResponseFlags;

/// What a filter says of a request.
#[derive(Debug)]
pub(in crate::http) enum Step {
    /// The next filter has it.
    Continue,
    /// It is answered with this and goes no further.
    Reply(Reply),
    /// The filter wants to see it again after this.
    Wait(Wait),
}

/// What a filter waits for.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) enum Wait {
    /// This moment.
    Until(Instant),
    /// The whole body of the request, of at most so many bytes.
    Body(usize),
    /// The same; its framing stays what it is.
    Hold(usize),
    /// So many bytes of the body, or all of it.
    Prefix(usize),
    /// What the filter has asked for.
    Answer,
}

/// What comes of the filters.
#[derive(Debug)]
pub(in crate::http) enum Outcome {
    /// All have seen it.
    Done,
    /// An answer.
    Reply(Reply),
    /// Something is waited for.
    Wait(Wait),
    /// Its route is to be found anew, by its head as it is now.
    Reroute,
}

/// The way of one request through the filters.
pub(in crate::http) struct Course {
    /// Its route.
    pub(in crate::http) found: Found,
    /// The number it drew.
    pub(in crate::http) random: u64,
    /// The number by which it chooses among the clusters of its route.
    pub(in crate::http) choice: u64,
    overrides: Option<Arc<Overrides>>,
    /// Filters that are off, one bit each.
    off: u64,
    /// The filter whose turn it is.
    next: usize,
    /// It has seen the request before and waited.
    resumed: bool,
}

/// A filter's turn.
pub(in crate::http) struct At<'c> {
    /// Its place in the chain.
    pub(super) place: usize,
    /// Its name.
    pub(super) name: &'c FilterName,
    /// The request's way.
    pub(super) course: &'c Course,
    /// It waited for something, which has come.
    pub(super) resumed: bool,
    over: Option<&'c Override>,
}

impl At<'_> {
    /// What tables, virtual hosts, routes and weighted clusters say to it, the most specific first.
    pub(super) fn levels(&self) -> &[Arc<RouteFilter>] {
        self.over.map(|over| &*over.levels).unwrap_or_default()
    }

    /// The most specific of them.
    pub(super) fn said(&self) -> Option<&RouteFilter> {
        self.levels().first().map(|said| &**said)
    }

    /// Notes what it will do to the response.
    pub(super) fn encode(&self, ex: &mut Exchange<'_>, encoder: Encoder) {
        active(ex).encode(self.place, encoder);
    }
}

/// What filters do to the request, from now on.
pub(super) fn active<'x>(ex: &'x mut Exchange<'_>) -> &'x mut Active {
    ex.filters.get_or_insert_default()
}

impl Course {
    /// The way of a request that drew `random` and found this.
    pub(in crate::http) fn new(ex: &Exchange<'_>, found: Found, random: u64) -> Self {
        let mut course =
            Self { found, random, choice: random, overrides: None, off: 0, next: 0, resumed: false };
        course.look(ex);
        course
    }

    /// Another route was found.
    pub(in crate::http) fn reroute(&mut self, ex: &Exchange<'_>, found: Found) {
        self.found = found;
        self.look(ex);
    }

    fn look(&mut self, ex: &Exchange<'_>) {
        if let Found::Route(route) = &self.found {
            self.choice = choice(ex, route, self.random);
        }
        self.overrides = match (&self.found, &ex.request) {
            (Found::Route(route), Some(request)) => route.overrides_for(request, self.choice).cloned(),
            _ => None,
        };
    }

    /// A filter's answer: what its route does to responses is done to it too.
    pub(in crate::http) fn answered(&self, reply: Reply) -> Reply {
        match self.route().filter(|route| route.action.has_clusters()) {
            Some(route) => reply.on(route, self.choice),
            None => reply,
        }
    }

    /// The route, if there is one.
    pub(super) fn route(&self) -> Option<&Arc<Route>> {
        self.found.route()
    }

    /// How the request is to be forwarded, if it is.
    pub(super) fn forward(&self) -> Option<&Forward> {
        match &self.route()?.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    /// Whether the request is to be forwarded.
    pub(super) fn forwards(&self) -> bool {
        self.forward().is_some()
    }

    /// What is said to filters.
    pub(super) fn overrides(&self) -> Option<&Arc<Overrides>> {
        self.overrides.as_ref()
    }

    /// The cluster that the request goes to, where it is known.
    pub(super) fn cluster(&self, ex: &Exchange<'_>) -> Option<Arc<Cluster>> {
        let (chosen, _) = self.forward()?.target.choose(ex.request.as_ref()?, self.choice);
        let upstreams = &ex.worker.upstreams;
        let local = match chosen {
            Chosen::Slot(slot) => upstreams.cluster(slot),
            Chosen::Named(name) => {
                upstreams.cluster(&ex.worker.clusters.find(std::str::from_utf8(name?).ok()?)?)
            }
        };
        Some(local?.cluster.clone())
    }

    /// The name of the cluster that the request goes to.
    pub(super) fn with_cluster<R>(&self, ex: &Exchange<'_>, look: impl FnOnce(&str) -> R) -> Option<R> {
        let (chosen, _) = self.forward()?.target.choose(ex.request.as_ref()?, self.choice);
        match chosen {
            Chosen::Slot(slot) => Some(look(slot.name())),
            Chosen::Named(name) => std::str::from_utf8(name?).ok().map(look),
        }
    }
}

/// Decides which filters are on, and what is to be done to the response whatever becomes of the request.
/// An answer where one of them has no configuration.
pub(in crate::http) fn create(ex: &mut Exchange<'_>, course: &mut Course) -> Option<Reply> {
    ex.filtered = true;
    let manager = ex.manager;
    for (place, installed) in manager.filters.iter().enumerate() {
        let over = course.overrides.as_ref().and_then(|all| all.find(&installed.name));
        if over.map_or(installed.disabled, |over| over.disabled) {
            course.off |= 1 << place;
            continue;
        }
        let held;
        let filter = match &installed.filter {
            HttpFilter::Discovered(discovered) => {
                let Some(current) = discovered.current().clone() else {
                    ex.info.flags.insert(ResponseFlags::NFCF);
                    return Some(Reply::new(500, ""));
                };
                held = current.clone();
                active(ex).discovered.push((place, current));
                &*held
            }
            filter => filter,
        };
        let encoder = match filter {
            HttpFilter::HeaderMutation(config) => config.encoder(over).map(Encoder::HeaderMutation),
            HttpFilter::HeaderToMetadata(config) => {
                header_to_metadata::Config::encoder(config, over).map(Encoder::HeaderToMetadata)
            }
            HttpFilter::CustomResponse(config) => {
                Some(Encoder::CustomResponse(custom_response::Config::encoder(config, over)))
            }
            HttpFilter::AdmissionControl(config) => Some(Encoder::AdmissionControl(config.clone())),
            HttpFilter::BandwidthLimit(config) => {
                let turn = bandwidth_limit::Config::encoder(config, over);
                Some(Encoder::BandwidthLimit(Box::new(turn)))
            }
            HttpFilter::StandardMetrics(_) => {
                ex.reported = true;
                None
            }
            _ => None,
        };
        if let Some(encoder) = encoder {
            active(ex).encode(place, encoder);
        }
    }
    None
}

/// The filters have their turns, from where they stopped.
pub(in crate::http) fn on_request(ex: &mut Exchange<'_>, course: &mut Course) -> Outcome {
    if let Some(reply) = stopped(ex, course) {
        return Outcome::Reply(reply);
    }
    let manager = ex.manager;
    while let Some(installed) = manager.filters.get(course.next) {
        let place = course.next;
        let resumed = std::mem::take(&mut course.resumed);
        course.next += 1;
        if course.off & (1 << place) != 0 {
            continue;
        }
        let held;
        let filter = match &installed.filter {
            HttpFilter::Discovered(_) => {
                let Some(current) = ex.filters.as_ref().and_then(|active| active.discovered(place)) else {
                    continue;
                };
                held = current;
                &*held
            }
            filter => filter,
        };
        let over = course.overrides.as_ref().and_then(|all| all.find(&installed.name));
        let at = At { place, name: &installed.name, course, resumed, over };
        match super::decode(ex, filter, &at) {
            Step::Continue => {}
            Step::Reply(reply) => {
                note_cluster(ex, course);
                return Outcome::Reply(reply);
            }
            Step::Wait(wait) => {
                (course.next, course.resumed) = (place, true);
                return Outcome::Wait(wait);
            }
        }
        if ex.filters.as_mut().is_some_and(|active| std::mem::take(&mut active.reroute)) {
            return Outcome::Reroute;
        }
    }
    Outcome::Done
}

/// What a filter of bodies wants answered, which said so while another waited.
fn stopped(ex: &mut Exchange<'_>, course: &Course) -> Option<Reply> {
    let active = ex.filters.as_mut().filter(|_| course.resumed)?;
    let Awaited::Reply(reply) = active.awaited.take_if(|awaited| matches!(awaited, Awaited::Reply(_)))?
    else {
        return None;
    };
    note_cluster(ex, course);
    Some(*reply)
}

/// Logs name the cluster of a route even where a filter has answered.
#[cold]
fn note_cluster(ex: &mut Exchange<'_>, course: &Course) {
    let slot = course.with_cluster(ex, |name| ex.worker.clusters.find(name)).flatten();
    if let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) {
        ex.info.cluster = Some(cluster.cluster.names.clone());
        ex.info.service.clone_from(&cluster.cluster.istio.service);
    }
}

/// Waits. An answer when the request cannot wait that long.
///
/// # Errors
/// The client is gone.
pub(in crate::http) async fn wait(
    ex: &mut Exchange<'_>,
    course: &Course,
    wait: Wait,
) -> Result<Option<Reply>, ()> {
    let stopped = wait_for(ex, course, wait).await?;
    if stopped.is_some() {
        note_cluster(ex, course);
    }
    Ok(stopped)
}

async fn wait_for(ex: &mut Exchange<'_>, course: &Course, wait: Wait) -> Result<Option<Reply>, ()> {
    let patience = Patience::of(ex, course);
    let until = match wait {
        Wait::Until(until) => until,
        Wait::Body(most) => return collect(ex, most, Take::Measured, patience).await,
        Wait::Hold(most) => return collect(ex, most, Take::Whole, patience).await,
        Wait::Prefix(most) => return collect(ex, most, Take::Beginning, patience).await,
        Wait::Answer => return answer(ex, patience).await,
    };
    let deadline = patience.end(ex.upload.is_received()).map_or(until, |end| end.min(until));
    let waited = poll_fn(|context| {
        let down = &mut *ex.down;
        down.client.nudge(context);
        down.client.gather(context);
        if down.client.poll_gone(ex.upload.is_received(), down.buffer_limit, context).is_ready() {
            return Poll::Ready(Err(()));
        }
        down.timer.poll(Some(deadline), context).map(Ok)
    })
    .await;
    ex.now = Instant::now();
    waited?;
    if deadline == until {
        return Ok(None);
    }
    Ok(Some(patience.reply(ex)))
}

/// Waits for what a filter has asked for.
async fn answer(ex: &mut Exchange<'_>, mut patience: Patience) -> Result<Option<Reply>, ()> {
    let Some(mut pending) = active(ex).pending.take() else { return Ok(None) };
    // The body comes in meanwhile, as far as it may be held: a client that has sent all of it may be refused and stay.
    let upgrade = ex.request.as_ref().is_some_and(RequestHead::opens_tunnel);
    let takes = !upgrade && !ex.upload.is_passed();
    let mut body = active(ex).body.take().map(Vec::from).unwrap_or_default();
    let mut stopped = None;
    let awaited = poll_fn(|context| {
        if let Poll::Ready(awaited) = pending.0.as_mut().poll(context) {
            return Poll::Ready(Ok(Some(awaited)));
        }
        let Exchange { upload, down, .. } = &mut *ex;
        let before = body.len();
        while takes && !upload.is_passed() && body.len() < down.buffer_limit {
            let mut shelf = Out::Wire(OutBuf::default());
            let each = |piece: Seen<'_>| match piece {
                Seen::Bytes(bytes) => body.extend_from_slice(bytes),
                Seen::Shared(bytes) => body.extend_from_slice(bytes),
            };
            match upload.poll_receive(down.client.source(), &mut shelf, each, context) {
                Poll::Ready(Ok(())) => break,
                // What is wrong with it shows again where it is forwarded.
                Poll::Ready(Err(PumpError::Source(_))) => break,
                Poll::Ready(Err(PumpError::Answer(reply))) => {
                    stopped = Some(reply);
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                Poll::Pending if shelf.is_empty() => break,
                Poll::Pending => {}
            }
        }
        down.client.nudge(context);
        down.client.gather(context);
        if down.client.poll_gone(upload.is_received(), down.buffer_limit, context).is_ready() {
            return Poll::Ready(Err(()));
        }
        patience.note(body.len() > before);
        down.timer.poll(patience.end(upload.is_received()), context).map(|()| Ok(None))
    })
    .await;
    ex.now = Instant::now();
    if takes && ex.upload.is_passed() {
        ex.info.times.request_complete = Some(ex.now);
    }
    if !body.is_empty() {
        active(ex).body = Some(body.into());
    }
    match awaited? {
        Some(awaited) => {
            active(ex).awaited = Some(awaited);
            Ok(None)
        }
        None => Ok(match stopped {
            Some(reply) => {
                active(ex).awaited = Some(Awaited::Reply(reply));
                None
            }
            None => Some(patience.reply(ex)),
        }),
    }
}

/// How long a request may be among filters, by the route that it is on.
struct Patience {
    /// Without a piece of it that comes.
    idle: Option<Duration>,
    active: Instant,
    /// When all of it must have come.
    request: Option<Instant>,
    /// When its stream ends.
    life: Option<Instant>,
}

impl Patience {
    fn of(ex: &Exchange<'_>, course: &Course) -> Self {
        let (timeouts, forward) = (&ex.manager.timeouts, course.forward());
        let idle = forward.and_then(|forward| forward.idle_timeout).unwrap_or(timeouts.stream_idle);
        let life = forward.and_then(|forward| forward.max_stream_duration);
        let tunnel = ex.request.as_ref().is_some_and(RequestHead::opens_tunnel);
        let start = ex.info.start;
        Self {
            idle,
            active: Instant::now(),
            // That of a tunnel never ends.
            request: timeouts.request.filter(|_| !tunnel).map(|timeout| start + timeout),
            life: life.unwrap_or(timeouts.max_stream_duration).map(|life| start + life),
        }
    }

    fn note(&mut self, moved: bool) {
        if moved && self.idle.is_some() {
            self.active = Instant::now();
        }
    }

    /// When it is over; `received` says that all of the request is there.
    fn end(&self, received: bool) -> Option<Instant> {
        let idle = self.idle.map(|idle| self.active + idle);
        [idle, self.request.filter(|_| !received), self.life].into_iter().flatten().min()
    }

    /// The answer to who has waited too long.
    fn reply(&self, ex: &mut Exchange<'_>) -> Reply {
        let received = ex.upload.is_received();
        let (end, stats) = (self.end(received), &ex.manager.stats);
        if end == self.life {
            stats.downstream_rq_max_duration_reached.increment(1);
            let status = if received { 504 } else { 408 };
            // DEADLINE_EXCEEDED
            let reply = Reply::new(status, "max_duration_timeout").grpc_status(Some("4".into()));
            return reply.body("downstream duration timeout");
        }
        if !received && end == self.request {
            stats.downstream_rq_timeout.increment(1);
            return Reply::new(408, "request_overall_timeout").body("request timeout");
        }
        stats.downstream_rq_idle_timeout.increment(1);
        ex.info.flags.insert(ResponseFlags::SI);
        Reply::new(if received { 504 } else { 408 }, "stream_idle_timeout").body("stream timeout")
    }
}

/// How much of a body is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Take {
    /// All of it; then its length is known.
    Measured,
    Whole,
    Beginning,
}

/// Takes in the request's body.
async fn collect(
    ex: &mut Exchange<'_>,
    most: usize,
    take: Take,
    mut patience: Patience,
) -> Result<Option<Reply>, ()> {
    // Another filter may have taken in the beginning.
    let mut body = active(ex).body.take().map(Vec::from).unwrap_or_default();
    let collected = poll_fn(|context| {
        let Exchange { upload, down, .. } = &mut *ex;
        down.client.nudge(context);
        let before = body.len();
        loop {
            let mut shelf = Out::Wire(OutBuf::default());
            let each = |piece: Seen<'_>| match piece {
                Seen::Bytes(bytes) => body.extend_from_slice(bytes),
                Seen::Shared(bytes) => body.extend_from_slice(bytes),
            };
            let polled = upload.poll_receive(down.client.source(), &mut shelf, each, context);
            if take == Take::Beginning && body.len() >= most {
                return Poll::Ready(if upload.is_passed() { Collected::All } else { Collected::Enough });
            }
            if body.len() > most {
                return Poll::Ready(Collected::TooLarge);
            }
            match polled {
                Poll::Ready(Ok(())) => return Poll::Ready(Collected::All),
                Poll::Ready(Err(PumpError::Source(refusal))) => {
                    return Poll::Ready(Collected::Refused(refusal));
                }
                Poll::Ready(Err(PumpError::Answer(reply))) => return Poll::Ready(Collected::Answer(reply)),
                Poll::Ready(Err(_)) => return Poll::Ready(Collected::Gone),
                // It held as much as it may; there is room again.
                Poll::Pending if !shelf.is_empty() => {}
                Poll::Pending => break,
            }
        }
        patience.note(body.len() > before);
        down.timer.poll(patience.end(upload.is_received()), context).map(|()| Collected::Late)
    })
    .await;
    ex.now = Instant::now();
    match collected {
        Collected::All => {
            ex.info.times.request_complete = Some(ex.now);
            if take == Take::Measured && ex.upload.measure() {
                if let Some(request) = &mut ex.request {
                    let mut digits = itoa::Buffer::new();
                    request.fields.set_known(Known::ContentLength, digits.format(body.len()).as_bytes());
                }
            }
            active(ex).body = Some(body.into());
            Ok(None)
        }
        Collected::Enough => {
            active(ex).body = Some(body.into());
            Ok(None)
        }
        Collected::TooLarge => {
            ex.manager.stats.downstream_rq_too_large.increment(1);
            ex.answer_early();
            Ok(Some(Reply::new(413, "request_payload_too_large").body("Payload Too Large")))
        }
        Collected::Refused(refusal) => {
            ex.info.flags.insert(ResponseFlags::DPE);
            ex.close = true;
            ex.manager.stats.downstream_cx_protocol_error.increment(1);
            let body = crate::http::head::reason(refusal.status);
            Ok(Some(Reply::new(refusal.status, refusal.details).body(body)))
        }
        Collected::Late => Ok(Some(patience.reply(ex))),
        Collected::Answer(reply) => {
            active(ex).awaited = Some(Awaited::Reply(reply));
            Ok(None)
        }
        Collected::Gone => Err(()),
    }
}

/// What came of taking in a body.
enum Collected {
    All,
    Enough,
    TooLarge,
    Refused(Refusal),
    Late,
    /// A filter wants this answered.
    Answer(Box<Reply>),
    Gone,
}
