//! Standard metrics of a TCP connection, counted now and then while it lasts and at its end.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::labels::{Protocol, Stream};
use super::series::{self, Series};
use super::StandardMetrics;
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::StreamInfo;

/// What was counted of a connection. Its labels are those that it had when it was first counted.
pub struct Connection {
    metrics: Arc<StandardMetrics>,
    series: Option<Rc<Series>>,
    sent: u64,
    received: u64,
}

impl Connection {
    /// A connection that begins.
    pub fn new(metrics: Arc<StandardMetrics>) -> Self {
        Self { metrics, series: None, sent: 0, received: 0 }
    }

    /// So many bytes were carried, and counted, by another process before.
    pub fn resume(&mut self, [sent, received]: [u64; 2]) {
        (self.sent, self.received) = (sent, received);
    }

    /// How often it is counted while it lasts.
    pub fn interval(&self) -> Option<Duration> {
        self.metrics.tcp_interval
    }

    /// Counts what is new: bytes `sent` to the client and `received` from it in all, and that it is over if it is.
    pub fn count(&mut self, info: &StreamInfo, [sent, received]: [u64; 2], over: bool) {
        let series = self.series.get_or_insert_with(|| {
            let context = FormatContext::new(info);
            let extra = self.metrics.overrides.values(&(&context).into());
            let series = series::of(&Stream::of(&self.metrics, &context, Protocol::Tcp, &extra));
            series.opened.increment(1);
            series
        });
        series.sent.increment(sent.saturating_sub(self.sent));
        series.received.increment(received.saturating_sub(self.received));
        (self.sent, self.received) = (sent, received);
        if over {
            series.closed.increment(1);
        }
    }
}
