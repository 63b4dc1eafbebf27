//! Spans on their way to a collector.
//!
//! Comes in: finished spans, from workers. Goes out: calls of the collector's cluster, at most one at a time from each
//! worker, with all spans that came together meanwhile. What does not fit is dropped and counted: a collector that is
//! slow or gone costs a bounded amount of memory and no request any time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use outrigger_control_api::pb::opentelemetry::proto::trace::v1::Span as OtlpSpan;
use serde_json::Value as Json;

use super::context::Propagation;
use super::{otlp, zipkin, Finished};
use crate::config::services::{GrpcTarget, HttpTarget, Pairs};
use crate::config::{Cluster, Slot};
use crate::http::worker::Worker;
use crate::telemetry::metrics::Scope;

/// A collector, and how spans are told to it.
pub struct Provider {
    id: u64,
    pub(super) propagation: Propagation,
    pub(super) form: Form,
    stats: Stats,
    /// What runtime has to say of how many spans are enough, and of how long fewer wait.
    keys: [&'static str; 2],
    /// Most spans that wait in one worker.
    most: usize,
}

/// The form of what is sent.
#[derive(Debug)]
pub enum Form {
    /// OTLP, of the service of this name.
    Otlp(OtlpTarget, Box<str>),
    /// Zipkin's JSON, version 2.
    Zipkin(Arc<ZipkinTarget>),
}

/// A collector of OpenTelemetry's.
#[derive(Debug)]
pub enum OtlpTarget {
    /// Over gRPC.
    Grpc(Arc<GrpcTarget>),
    /// Over HTTP, with these fields.
    Http(HttpTarget, Pairs),
}

/// A collector of Zipkin's.
#[derive(Debug)]
pub struct ZipkinTarget {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// The authority of requests.
    pub authority: Box<[u8]>,
    /// Their path.
    pub path: Box<[u8]>,
    /// The name of this service.
    pub service: Box<str>,
}

struct Stats {
    sent: Counter,
    dropped: Counter,
    flushed: Counter,
    failed: Counter,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("id", &self.id).field("form", &self.form).finish_non_exhaustive()
    }
}

/// So many spans are sent at once, unless runtime says otherwise; fewer wait for more.
const ENOUGH: u64 = 5;
/// How long they wait, in milliseconds, unless runtime says otherwise.
const PATIENCE: u64 = 5000;
/// Most spans that wait, unless config says otherwise.
pub const MOST_WAITING: usize = 1024;

impl Provider {
    /// A collector that takes `form`; at most `most` spans wait for it in each worker.
    pub fn new(propagation: Propagation, form: Form, most: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (scope, keys) = match form {
            Form::Otlp(..) => (
                "tracing.opentelemetry",
                ["tracing.opentelemetry.min_flush_spans", "tracing.opentelemetry.flush_interval_ms"],
            ),
            Form::Zipkin(_) => {
                ("tracing.zipkin", ["tracing.zipkin.min_flush_spans", "tracing.zipkin.flush_interval_ms"])
            }
        };
        let scope = Scope::raw(scope);
        let stats = Stats {
            sent: scope.counter("spans_sent"),
            dropped: scope.counter("spans_dropped"),
            flushed: scope.counter("timer_flushed"),
            failed: scope.counter("reports_dropped"),
        };
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), propagation, form, stats, keys, most }
    }
}

impl Provider {
    /// How many spans are enough, and how long fewer wait.
    fn habits(&self, worker: &Worker) -> [u64; 2] {
        let runtime = worker.runtime.load();
        let [enough, patience] = self.keys.map(|key| runtime.number(key));
        [enough.map_or(ENOUGH, |number| number as u64), patience.map_or(PATIENCE, |number| number as u64)]
    }
}

/// What waits in a worker, by provider.
#[derive(Debug, Default)]
pub struct Waiting(RefCell<HashMap<u64, Queue>>);

#[derive(Debug, Default)]
struct Queue {
    otlp: Vec<OtlpSpan>,
    zipkin: Vec<Json>,
    /// So many are enough to be sent.
    enough_is: usize,
    /// Somebody looks after it.
    tended: bool,
    /// Who looks after it waits for more, and is told when there is enough.
    enough: Rc<tokio::sync::Notify>,
}

impl Queue {
    fn len(&self) -> usize {
        self.otlp.len() + self.zipkin.len()
    }
}

/// Takes the spans of a request.
pub(super) fn hand_over(worker: &Rc<Worker>, provider: &Arc<Provider>, spans: &[Finished<'_>]) {
    let mut queues = worker.spans.0.borrow_mut();
    let queue = queues.entry(provider.id).or_default();
    if queue.len() + spans.len() > provider.most {
        return provider.stats.dropped.increment(spans.len() as u64);
    }
    match &provider.form {
        Form::Otlp(..) => queue.otlp.extend(spans.iter().map(otlp::span)),
        Form::Zipkin(target) => queue.zipkin.extend(spans.iter().map(|span| zipkin::span(span, target))),
    }
    if queue.len() >= queue.enough_is {
        queue.enough.notify_one();
    }
    if !std::mem::replace(&mut queue.tended, true) {
        tokio::task::spawn_local(tend(worker.clone(), provider.clone(), queue.enough.clone()));
    }
}

/// Sends what waits until nothing is left.
async fn tend(worker: Rc<Worker>, provider: Arc<Provider>, enough: Rc<tokio::sync::Notify>) {
    loop {
        let [enough_is, patience] = provider.habits(&worker);
        let few = worker.spans.0.borrow_mut().get_mut(&provider.id).is_none_or(|queue| {
            queue.enough_is = usize::try_from(enough_is).unwrap_or(usize::MAX);
            (queue.len() as u64) < enough_is
        });
        let patience = Duration::from_millis(patience);
        if few && tokio::time::timeout(patience, enough.notified()).await.is_err() {
            provider.stats.flushed.increment(1);
        }
        let (otlp, zipkin) = {
            let mut queues = worker.spans.0.borrow_mut();
            let Some(queue) = queues.get_mut(&provider.id) else { return };
            if queue.len() == 0 {
                queues.remove(&provider.id);
                return;
            }
            (std::mem::take(&mut queue.otlp), std::mem::take(&mut queue.zipkin))
        };
        let count = (otlp.len() + zipkin.len()) as u64;
        let sent = match &provider.form {
            Form::Otlp(target, service) => otlp::send(&worker, target, service, otlp).await,
            Form::Zipkin(target) => zipkin::send(&worker, target, zipkin).await,
        };
        match sent {
            true => provider.stats.sent.increment(count),
            false => {
                provider.stats.failed.increment(1);
                provider.stats.dropped.increment(count);
            }
        }
    }
}
