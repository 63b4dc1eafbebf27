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
use self::grpc_stats::Call;
use self::grpc_web::Web;
use super::exchange::Exchange;
use super::fields::Fields;
use super::head::ResponseHead;
use super::pump::Pump;
use crate::config::http::HttpFilter;
use crate::config::Known;

/// What the filters do to one request.
#[derive(Debug, Default)]
pub struct Active {
    web: Option<Web>,
    /// The client is told in a head what gRPC says in trailers.
    bridged: bool,
    call: Option<Call>,
}

impl Active {
    /// Whether the client speaks gRPC-Web.
    pub(super) fn is_web(&self) -> bool {
        self.web.is_some()
    }
}

/// Filters see a request's head.
pub(super) fn on_request(ex: &mut Exchange<'_>) {
    for filter in &ex.manager.filters {
        let Some(request) = &mut ex.request else { return };
        match filter {
            HttpFilter::GrpcStats(config) => ex.filters.call = Call::of(config, request),
            HttpFilter::GrpcWeb => {
                if let Some(web) = Web::of(request) {
                    ex.upload.transform(web.request_transform());
                    ex.filters.web = Some(web);
                }
            }
            // A client of gRPC-Web reads trailers in its own way.
            HttpFilter::GrpcHttp1Bridge if ex.filters.web.is_some() => {}
            HttpFilter::GrpcHttp1Bridge => ex.filters.bridged |= grpc_http1_bridge::concerns(request),
        }
    }
}

/// The router has chosen a cluster: what counts messages knows where.
pub(super) fn on_cluster(ex: &mut Exchange<'_>) {
    if let (Some(call), Some(request)) = (&mut ex.filters.call, &ex.request) {
        let Some(cluster) = &ex.info.cluster else { return };
        call.begin(&ex.worker.grpc, cluster, request);
        if let Some(stats) = call.stats() {
            ex.upload.count(Messages::new(stats.request_messages.clone()));
        }
    }
}

/// Whether the response is to be complete before any of it is sent.
pub(super) fn collects_response(ex: &Exchange<'_>) -> bool {
    ex.filters.bridged
}

/// Filters see a response's head. `ends` says that nothing follows it.
pub(super) fn on_response(ex: &mut Exchange<'_>, head: &mut ResponseHead, ends: bool) {
    if let Some(web) = &ex.filters.web {
        web.response_head(head);
    }
    if ex.filters.bridged && ends {
        grpc_http1_bridge::head_only(head);
    }
    if let Some(call) = &mut ex.filters.call {
        call.answered(head);
    }
}

/// A response's body is about to pass.
pub(super) fn on_download(ex: &Exchange<'_>, download: &mut Pump) {
    if let Some(web) = &ex.filters.web {
        download.transform(web.response_transform());
    }
    if let Some(stats) = ex.filters.call.as_ref().and_then(Call::stats) {
        download.count(Messages::new(stats.response_messages.clone()));
    }
}

/// An answer of our own: its content type is the client's kind of gRPC.
pub(super) fn on_reply(ex: &Exchange<'_>, fields: &mut Fields) {
    if let Some(web) = &ex.filters.web {
        if fields.get(Known::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            fields.set_known(Known::ContentType, web.response_type());
        }
    }
}

/// The request is over; `trailers` are those of its response.
pub(super) fn on_end(ex: &mut Exchange<'_>) {
    if let Some(call) = ex.filters.call.take() {
        call.end(ex.trailers.as_ref(), ex.info.response_code, ex.info.start.elapsed());
    }
}
