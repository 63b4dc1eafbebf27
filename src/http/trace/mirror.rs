//! Spans of copies of requests: each is part of its request's, and ends when the copy is answered.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::context::Context;
use super::export::{self, Provider};
use super::{tags, Finished, Kind, Span};
use crate::config::Host;
use crate::http::exchange::Exchange;
use crate::http::head::RequestHead;
use crate::http::worker::Worker;
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, StreamInfo};
use crate::upstream::ClusterLocal;

/// The span of a copy that is on its way.
#[derive(Debug)]
pub struct MirrorSpan {
    provider: Arc<Provider>,
    context: Context,
    connection: Rc<ConnectionInfo>,
    start: Instant,
}

/// What came of a copy.
#[derive(Debug, Default)]
pub struct Mirrored {
    /// The host that it went to.
    pub host: Option<Arc<Host>>,
    /// By which protocol.
    pub protocol: Option<Protocol>,
    /// The status of the answer; 0 = there was none.
    pub status: u16,
}

/// A copy of the request is about to be sent: its head is told of its span. `sampled` is what is said of copies.
pub(in crate::http) fn begin(
    ex: &Exchange<'_>,
    copy: &mut RequestHead,
    sampled: Option<bool>,
) -> Option<Box<MirrorSpan>> {
    let span: &Span = ex.span.as_deref()?;
    let provider = span.provider.clone().filter(|_| span.context.trace != 0)?;
    let mut context = span.context.child(ex.worker);
    context.sampled = sampled.unwrap_or(context.sampled);
    context.put(provider.propagation, copy);
    Some(Box::new(MirrorSpan {
        provider,
        context,
        connection: ex.info.connection.clone(),
        start: Instant::now(),
    }))
}

impl MirrorSpan {
    /// The copy was answered, or never will be.
    pub(in crate::http) fn end(self, worker: &Rc<Worker>, cluster: &ClusterLocal, said: &Mirrored) {
        if !self.context.sampled {
            return;
        }
        let clock = worker.clock.wall();
        let info = StreamInfo {
            cluster: Some(cluster.cluster.names.clone()),
            upstream_protocol: said.protocol,
            ..StreamInfo::new(self.connection, self.start, clock)
        };
        let tried = tags::Tried { number: 0, status: said.status, last: true };
        let mut tags = tags::upstream(&[], &[], &FormatContext::new(&info), said.host.as_deref(), tried);
        // The size of an answer that nobody reads is not told.
        tags.retain(|(name, _)| *name != "response_size");
        let finished = Finished {
            context: &self.context,
            name: "mirror".into(),
            kind: Kind::Client,
            start: clock.system(self.start),
            end: clock.system(Instant::now()),
            tags,
        };
        export::hand_over(worker, &self.provider, &[finished]);
    }
}
