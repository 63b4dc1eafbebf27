//! A request that is served once more, as its head is now: after a redirect of its upstream that is followed here.
//!
//! As in Envoy each time is a stream of its own, with its filters, its route, its log line and its span; only what the
//! connection manager does to a head that comes from outside is not done again.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::Exchange;
use crate::config::route::{Action, Chosen, RoutesSoFar};
use crate::config::{HeaderView, RequestView};
use crate::http::filters;
use crate::http::filters::custom_response::Elsewhere;
use crate::http::h1::Framing;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::location::Location;
use crate::http::manager::{self, Stop};
use crate::http::on_demand::Found;
use crate::http::pump::Pump;
use crate::http::router::{choice, End};
use crate::telemetry::stream_info::StreamInfo;

/// What a request that was redirected here has behind it.
#[derive(Debug, Default)]
pub(in crate::http) struct Redirected {
    /// How many redirects it has followed.
    pub(in crate::http) followed: u32,
    /// Where they led.
    pub(in crate::http) so_far: RoutesSoFar,
    /// Its body, for the next time.
    pub(in crate::http) body: Bytes,
    /// What is to be made of the response, and the status of the one in whose place it comes.
    pub(in crate::http) policy: Option<(Arc<Elsewhere>, u16)>,
    /// Bytes of bodies that were counted as received: each time counts, as in Envoy.
    pub(super) received: u64,
    /// How often it was begun again.
    pub(super) times: u32,
}

impl Exchange<'_> {
    /// Whether it was begun again.
    pub(in crate::http) fn is_again(&self) -> bool {
        self.redirected.as_ref().is_some_and(|redirected| redirected.times > 0)
    }

    /// Directs the request's head there, and says where that is.
    pub(in crate::http) fn aim(&mut self, location: &Location<'_>) -> Found {
        let Some(request) = &mut self.request else { return Found::Nothing };
        request.set_scheme(&location.scheme.to_ascii_lowercase());
        request.set_authority(location.authority);
        request.set_path(location.path);
        let random = self.worker.random();
        let found = self.find_now(random);
        note_target(self, &found, random);
        found
    }

    /// The client does not get this response: the request goes elsewhere first.
    pub(in crate::http) fn give_up_response(&mut self, head: ResponseHead) {
        self.info.details = Cow::Borrowed("internal_redirect");
        self.info.response_code = head.status;
        self.info.response_headers_bytes = head.byte_size() as u64;
        self.response = Some(head);
    }

    /// Ends this time and begins the next. Says why the request goes no further, if it does not.
    pub(super) fn begin_again(&mut self) -> Option<Stop> {
        self.open = false;
        self.finish(End::Again);
        self.open = true;
        let stats = &self.manager.stats;
        stats.downstream_rq_total.increment(1);
        if self.down.client.is_http2() {
            stats.downstream_rq_http2_total.increment(1);
        } else {
            stats.downstream_rq_http1_total.increment(1);
        }
        let before = &self.info;
        let mut info = StreamInfo::new(before.connection.clone(), before.start, before.clock);
        info.protocol = before.protocol;
        info.client = before.client;
        info.request_headers_bytes = before.request_headers_bytes;
        info.times.request_complete = before.times.request_complete;
        let redirected = self.redirected.get_or_insert_default();
        redirected.received = before.bytes_received;
        redirected.times += 1;
        let body = std::mem::take(&mut redirected.body);
        let chunked = self.upload.is_chunked() && !body.is_empty();
        let trailers = self.down.client.is_http2() || self.manager.http1.enable_trailers;
        self.upload = Pump::new(Framing::Empty, false, trailers, self.manager.limits.max_head);
        self.upload.limit(self.down.buffer_limit);
        self.upload.bytes = body.len() as u64;
        if chunked {
            self.upload.without_length();
        }
        self.filters = (!body.is_empty()).then(|| Box::new(filters::Active::of_body(body)));
        self.info = info;
        self.response = None;
        self.filtered = false;
        self.reported = false;
        self.span = None;
        self.trailers = None;
        self.local_body = Bytes::new();
        let head = self.request.as_mut()?;
        if !matches!(head.scheme(), b"http" | b"https") {
            let scheme: &[u8] = if self.info.connection.tls.is_some() { b"https" } else { b"http" };
            head.set_scheme(scheme);
        }
        manager::prepare_again(self.manager, head, &self.info).err()
    }
}

/// Logs name the route and the cluster that a redirect leads to, even where it is not followed.
fn note_target(ex: &mut Exchange<'_>, found: &Found, random: u64) {
    let route = found.route();
    let known = route.and_then(|route| route.name.as_ref());
    ex.info.taken(known, route.and_then(|route| route.metadata.as_ref()));
    let target = route.and_then(|route| match &route.action {
        Action::Forward(forward) => Some((forward, choice(ex, route, random))),
        _ => None,
    });
    let slot = target.zip(ex.request.as_ref()).and_then(|((forward, choice), request)| {
        match forward.target.choose::<RequestHead>(request, choice).0 {
            Chosen::Slot(slot) => Some(slot.clone()),
            Chosen::Named(name) => ex.worker.clusters.find(std::str::from_utf8(name?).ok()?),
        }
    });
    let cluster = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot));
    ex.info.cluster = cluster.as_ref().map(|local| local.cluster.names.clone());
    ex.info.service = cluster.and_then(|local| local.cluster.istio.service.clone());
}
