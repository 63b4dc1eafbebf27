//! HTTP filters: what happens to a request before the router has it, and to its response before the client has it.
//!
//! Comes in: the connection manager's list of filters, compiled. Goes out: for each request, [`Active`]: what of
//! them concerns it, which heads and bodies then pass. Filters see requests in their order and responses in the
//! reverse one (envoyproxy.io: http_filters).

pub mod framing;
pub mod grpc_http1_bridge;
pub mod grpc_stats;
pub mod grpc_web;

use self::framing::Messages;
use self::grpc_http1_bridge::Bridged;
use self::grpc_stats::Call;
use self::grpc_web::{Transform, Web};
use super::exchange::Exchange;
use super::fields::Fields;
use super::head::ResponseHead;
use super::pump::Pump;
use crate::config::http::HttpFilter;
use crate::config::{Known, RequestView};

/// What the filters do to one request.
#[derive(Debug, Default)]
pub struct Active {
    web: Option<Web>,
    /// The client is told in a head what gRPC says in trailers.
    bridged: Option<Bridged>,
    call: Option<Call>,
}

/// A filter without configuration.
#[derive(Debug)]
pub(super) struct Untold;

impl Active {
    fn concerns_nothing(&self) -> bool {
        self.web.is_none() && self.bridged.is_none() && self.call.is_none()
    }
}

/// Filters see a request's head.
///
/// # Errors
/// One of them was told by nobody what to do.
pub(super) fn on_request(ex: &mut Exchange<'_>) -> Result<(), Untold> {
    let mut active = Active::default();
    for filter in &ex.manager.filters {
        let Some(request) = &mut ex.request else { return Ok(()) };
        let held;
        let filter = match filter {
            HttpFilter::Discovered(filter) => {
                held = filter.current();
                held.as_deref().ok_or(Untold)?
            }
            filter => filter,
        };
        match filter {
            // None is the configuration of another.
            HttpFilter::Discovered(_) => {}
            HttpFilter::GrpcStats(config) if request.is_grpc() || active.bridged.is_some() => {
                active.call = Some(Call::of(config, request));
            }
            HttpFilter::GrpcStats(_) => {}
            HttpFilter::GrpcWeb => {
                if let Some(web) = Web::of(request) {
                    ex.upload.transform(web.request_transform());
                    active.web = Some(web);
                }
            }
            // A client of gRPC-Web reads trailers in its own way.
            HttpFilter::GrpcHttp1Bridge(_) if active.web.is_some() || active.bridged.is_some() => {}
            HttpFilter::GrpcHttp1Bridge(config) => {
                active.bridged = Bridged::of(config, request);
                if active.bridged == Some(Bridged::Protobuf) {
                    ex.upload.transform(Some(Transform::Message(Vec::new(), ex.down.buffer_limit)));
                }
            }
        }
    }
    ex.filters = (!active.concerns_nothing()).then(|| Box::new(active));
    Ok(())
}

/// The router has chosen a cluster: what counts messages knows where.
pub(super) fn on_cluster(ex: &mut Exchange<'_>) {
    let call = ex.filters.as_mut().and_then(|active| active.call.as_mut());
    if let (Some(call), Some(request), Some(cluster)) = (call, &ex.request, &ex.info.cluster) {
        call.begin(&ex.worker.grpc, cluster, request);
        if let Some(stats) = call.stats() {
            ex.upload.count(Messages::new(stats.request_messages.clone()));
        }
    }
}

/// Whether the client speaks gRPC-Web.
pub(super) fn is_web(ex: &Exchange<'_>) -> bool {
    ex.filters.as_ref().is_some_and(|active| active.web.is_some())
}

/// Whether the response is to be complete before any of it is sent.
pub(super) fn collects_response(ex: &Exchange<'_>) -> bool {
    bridged(ex).is_some()
}

/// How the request came over the bridge from HTTP/1.
pub(super) fn bridged(ex: &Exchange<'_>) -> Option<Bridged> {
    ex.filters.as_ref().and_then(|active| active.bridged)
}

/// Filters see a response's head. `ends` says that nothing follows it.
pub(super) fn on_response(ex: &mut Exchange<'_>, head: &mut ResponseHead, ends: bool) {
    let Some(active) = &mut ex.filters else { return };
    if let Some(call) = &mut active.call {
        call.answered(head);
    }
    if active.bridged == Some(Bridged::Grpc) && ends {
        grpc_http1_bridge::head_only(head);
    }
    if let Some(web) = &active.web {
        web.response_head(head);
    }
}

/// A response's body is about to pass.
pub(super) fn on_download(ex: &Exchange<'_>, download: &mut Pump) {
    let Some(active) = &ex.filters else { return };
    if let Some(web) = &active.web {
        download.transform(web.response_transform());
    }
    if let Some(stats) = active.call.as_ref().and_then(Call::stats) {
        download.count(Messages::new(stats.response_messages.clone()));
    }
}

/// An answer of our own: its content type is the client's kind of gRPC.
pub(super) fn on_reply(ex: &Exchange<'_>, fields: &mut Fields) {
    let web = ex.filters.as_ref().and_then(|active| active.web.as_ref());
    if let Some(web) = web {
        if fields.get(Known::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            fields.set_known(Known::ContentType, web.response_type());
        }
    }
}

/// The request is over; its exchange has the trailers of its response.
pub(super) fn on_end(ex: &mut Exchange<'_>) {
    let Some(active) = ex.filters.take() else { return };
    if let Some(call) = active.call {
        call.end(ex.trailers.as_ref(), ex.info.response_code, ex.info.start.elapsed());
    }
}
