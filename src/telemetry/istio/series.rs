//! The series of a stream: resolved when one like it is first seen by a thread.

use std::cell::RefCell;
use std::rc::Rc;

use metrics::{Counter, Histogram};

use super::labels::{Kept, Labels, Protocol, Stream};
use super::recent::Recent;
use crate::telemetry::metrics::{Scope, Unit};

/// A standard metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    Requests,
    Duration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

impl Metric {
    /// All, in the order of their declaration.
    pub const ALL: [Metric; 10] = [
        Metric::Requests,
        Metric::Duration,
        Metric::RequestBytes,
        Metric::ResponseBytes,
        Metric::RequestMessages,
        Metric::ResponseMessages,
        Metric::TcpOpened,
        Metric::TcpClosed,
        Metric::TcpSent,
        Metric::TcpReceived,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Metric::Requests => "istio_requests_total",
            Metric::Duration => "istio_request_duration_milliseconds",
            Metric::RequestBytes => "istio_request_bytes",
            Metric::ResponseBytes => "istio_response_bytes",
            Metric::RequestMessages => "istio_request_messages_total",
            Metric::ResponseMessages => "istio_response_messages_total",
            Metric::TcpOpened => "istio_tcp_connections_opened_total",
            Metric::TcpClosed => "istio_tcp_connections_closed_total",
            Metric::TcpSent => "istio_tcp_sent_bytes_total",
            Metric::TcpReceived => "istio_tcp_received_bytes_total",
        }
    }
}

/// Handles of the series of streams with the same labels. Those of other protocols count nothing.
pub(super) struct Series {
    pub requests: Counter,
    pub duration: Histogram,
    pub request_bytes: Histogram,
    pub response_bytes: Histogram,
    pub request_messages: Counter,
    pub response_messages: Counter,
    pub opened: Counter,
    pub closed: Counter,
    pub sent: Counter,
    pub received: Counter,
}

/// A thread remembers the series of so many kinds of streams at least. Peers choose some of the labels: without a bound
/// those who call under ever new names would fill the memory. A series that no thread remembers is no longer shown.
const REMEMBERED: usize = 8192;

thread_local! {
    static SERIES: RefCell<Recent<(Kept, Rc<Series>)>> = RefCell::new(Recent::new(REMEMBERED));
}

/// The series of `stream`.
pub(super) fn of(stream: &Stream<'_>) -> Rc<Series> {
    SERIES.with_borrow_mut(|all| {
        let hash = stream.hash();
        if let Some((_, series)) = all.get(hash).filter(|(kept, _)| kept.is_of(stream)) {
            return series.clone();
        }
        let series = Rc::new(Series::new(stream));
        all.put(hash, (Kept::of(stream), series.clone()));
        series
    })
}

impl Series {
    fn new(stream: &Stream<'_>) -> Self {
        let labels = stream.labels();
        let scope = |metric: Metric, labels: &Labels| {
            let changed = stream.metrics.overrides.labels(metric, labels, stream.extra)?;
            Some(Scope::labelled(changed))
        };
        let counter = |metric: Metric, labels: &Labels| match scope(metric, labels) {
            Some(scope) => scope.counter(metric.name()),
            None => Counter::noop(),
        };
        let histogram = |metric: Metric, unit| match scope(metric, &labels) {
            Some(scope) => scope.histogram(metric.name(), unit),
            None => Histogram::noop(),
        };
        let mut series = Self {
            requests: Counter::noop(),
            duration: Histogram::noop(),
            request_bytes: Histogram::noop(),
            response_bytes: Histogram::noop(),
            request_messages: Counter::noop(),
            response_messages: Counter::noop(),
            opened: Counter::noop(),
            closed: Counter::noop(),
            sent: Counter::noop(),
            received: Counter::noop(),
        };
        if stream.protocol == Protocol::Tcp {
            series.opened = counter(Metric::TcpOpened, &labels);
            series.closed = counter(Metric::TcpClosed, &labels);
            series.sent = counter(Metric::TcpSent, &labels);
            series.received = counter(Metric::TcpReceived, &labels);
            return series;
        }
        series.requests = counter(Metric::Requests, &labels);
        series.duration = histogram(Metric::Duration, Unit::Milliseconds);
        series.request_bytes = histogram(Metric::RequestBytes, Unit::Bytes);
        series.response_bytes = histogram(Metric::ResponseBytes, Unit::Bytes);
        if matches!(stream.protocol, Protocol::Grpc(_)) {
            // Messages are counted while a call lasts, so their labels know nothing of its end.
            let early = stream.of_peers();
            series.request_messages = counter(Metric::RequestMessages, &early);
            series.response_messages = counter(Metric::ResponseMessages, &early);
        }
        series
    }
}
