//! Redirects of an upstream that are followed here: the request is sent where they lead, and the client never sees them
//! (envoyproxy.io: http_connection_management, "Internal redirects").

use std::time::Instant;

use super::attempt::Answered;
use super::{Attempts, End, Ended};
use crate::config::route::{InternalRedirects, Leads};
use crate::config::{HeaderMutate, HeaderView, Known, RequestView};
use crate::http::exchange::Exchange;
use crate::http::h1::{Framing, ParsedResponse};
use crate::http::head::ResponseHead;
use crate::http::location::Location;
use crate::http::on_demand::Found;

/// Why a redirect is the client's to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passes {
    /// It has no location, or the body of the request was not kept.
    Unable,
    BadLocation,
    UnsafeScheme,
    TooMany,
    NoRoute,
    Predicate,
}

impl Attempts<'_> {
    /// Whether this response redirects the request, whose head is then as it is to be sent next.
    #[cold]
    pub(super) fn redirect(
        &mut self,
        ex: &mut Exchange<'_>,
        policy: &InternalRedirects,
        parsed: &ParsedResponse,
    ) -> bool {
        if !policy.statuses.contains(&parsed.head.status) {
            return false;
        }
        let followed = self.follow(ex, policy, &parsed.head);
        let stats = &ex.manager.stats;
        match followed {
            Ok(()) | Err(Passes::Unable) => {}
            Err(Passes::BadLocation) => stats.passthrough_internal_redirect_bad_location.increment(1),
            Err(Passes::UnsafeScheme) => stats.passthrough_internal_redirect_unsafe_scheme.increment(1),
            Err(Passes::TooMany) => stats.passthrough_internal_redirect_too_many_redirects.increment(1),
            Err(Passes::NoRoute) => stats.passthrough_internal_redirect_no_route.increment(1),
            Err(Passes::Predicate) => stats.passthrough_internal_redirect_predicate.increment(1),
        }
        let stats = self.cluster.cluster.stats();
        match followed {
            Ok(()) => stats.upstream_internal_redirect_succeeded_total.increment(1),
            Err(_) => stats.upstream_internal_redirect_failed_total.increment(1),
        }
        followed.is_ok()
    }

    fn follow(
        &mut self,
        ex: &mut Exchange<'_>,
        policy: &InternalRedirects,
        head: &ResponseHead,
    ) -> Result<(), Passes> {
        let (true, Some(request)) = (ex.upload.is_passed() && !self.upgrade, &ex.request) else {
            return Err(Passes::Unable);
        };
        let location = head.fields.get(Known::Location).filter(|_| self.copies.is_kept());
        let location = Location::of(location.ok_or(Passes::Unable)?).ok_or(Passes::BadLocation)?;
        // What came without TLS came by plain HTTP, whatever else it says.
        let from_http = request.scheme() == b"http" || ex.info.connection.tls.is_none();
        let to_http = location.scheme.eq_ignore_ascii_case(b"http");
        if !policy.cross_scheme && from_http != to_http {
            return Err(Passes::UnsafeScheme);
        }
        if ex.redirected.as_ref().map_or(0, |redirected| redirected.followed) >= policy.max {
            return Err(Passes::TooMany);
        }
        let before = request.clone();
        let led = self.lead(ex, policy, head, &location, (from_http, to_http));
        if led.is_err() {
            ex.request = Some(before);
            return led;
        }
        let Some(request) = &mut ex.request else { return Err(Passes::Unable) };
        let scheme: &[u8] = if from_http { b"http" } else { b"https" };
        let url = [scheme, b"://", before.authority(), before.path()].concat();
        request.fields.set_known(Known::XEnvoyOriginalUrl, &url);
        let mut body = self.copies.take().unwrap_or_default();
        // RFC 9110 §15.4.4
        if head.status == 303 && !matches!(request.method(), b"GET" | b"HEAD") {
            request.set_method(b"GET");
            request.fields.remove_known(Known::ContentLength);
            body.clear();
        }
        let redirected = ex.redirected.get_or_insert_default();
        redirected.followed += 1;
        redirected.body = body;
        Ok(())
    }

    /// Makes of the request's head what the redirect asks for, and looks where it leads.
    fn lead(
        &self,
        ex: &mut Exchange<'_>,
        policy: &InternalRedirects,
        head: &ResponseHead,
        location: &Location<'_>,
        (from_http, to_http): (bool, bool),
    ) -> Result<(), Passes> {
        let Some(request) = &mut ex.request else { return Err(Passes::Unable) };
        for key in &policy.copied {
            request.remove(key);
            head.values(key, &mut |value| request.append(key, value));
        }
        let found = ex.aim(location);
        let to = match &found {
            Found::Route(route) => route.name.as_ref(),
            Found::RequireTls(_) => None,
            Found::Nothing | Found::NoHost | Found::Gone => return Err(Passes::NoRoute),
        };
        let leads = Leads { from: self.route.name.as_ref(), to, from_http, to_http };
        let mut so_far = ex.redirected.as_ref().map(|it| it.so_far.clone()).unwrap_or_default();
        if !policy.accept(leads, &mut so_far) {
            return Err(Passes::Predicate);
        }
        ex.redirected.get_or_insert_default().so_far = so_far;
        Ok(())
    }

    /// The response is not passed on: the request is over, and begins again.
    #[cold]
    pub(super) fn leave(&mut self, ex: &mut Exchange<'_>, answered: Answered) -> Ended {
        let Answered { parsed, connection, sent, .. } = answered;
        let ParsedResponse { head, framing, keep_alive, consumed } = parsed;
        ex.now = Instant::now();
        let head_size = if connection.is_http2() { head.fields.size() } else { consumed };
        ex.info.upstream_wire_received += head_size as u64;
        ex.info.times.first_upstream_rx = Some(ex.now);
        ex.give_up_response(head);
        if matches!(framing, Framing::Empty | Framing::Length(0)) {
            connection.give_back(keep_alive && sent.out.is_empty(), ex.now);
        } else {
            // What it has to say besides is not waited for.
            self.count_given_up(ex);
        }
        End::Again.into()
    }
}
