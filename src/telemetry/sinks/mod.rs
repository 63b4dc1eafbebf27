//! Statistics on their way to others: what each kind of sink is told of the registry (`stats_sinks` of the bootstrap).
//!
//! Comes in: [`Snapshot`]s, one an interval. Goes out: text and messages; `runtime::sinks` brings them.

mod metrics_service;
mod otlp;
mod statsd;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::metrics_service::{families, messages, MetricsService};
pub use self::otlp::{requests, Otlp};
pub use self::statsd::{datagrams, Statsd};
use crate::config::services::{GrpcTarget, HttpTarget, Pairs};
use crate::config::{Cluster, Slot};
use crate::telemetry::metrics::{HistogramSnapshot, Sample, Snapshot, Value};

/// All sinks.
#[derive(Debug)]
pub struct Sinks {
    /// How often they are told. Default 5 s.
    pub interval: Duration,
    /// Who is told.
    pub list: Vec<Sink>,
}

/// A sink.
#[derive(Debug)]
pub enum Sink {
    /// statsd or DogStatsD over UDP.
    Udp(SocketAddr, Statsd),
    /// statsd over a TCP connection of a cluster.
    Tcp(Arc<Slot<Cluster>>, Statsd),
    /// A stream of `StreamMetrics`.
    Metrics(Arc<GrpcTarget>, MetricsService),
    /// OTLP over gRPC.
    OtlpGrpc(Arc<GrpcTarget>, Otlp),
    /// OTLP over HTTP, with these fields.
    OtlpHttp(HttpTarget, Pairs, Otlp),
}

/// A statistic as sinks are told of it.
#[derive(Debug)]
pub struct Told<'a> {
    /// The statistic.
    pub sample: &'a Sample,
    /// What has come since the last time: of a counter, or of a histogram.
    pub since: Since,
}

/// What has come since the last time.
#[derive(Debug)]
pub enum Since {
    /// To a counter.
    Count(u64),
    /// To a histogram.
    Values(HistogramSnapshot),
    /// Gauges have no such thing.
    Nothing,
}

/// What was told the last time.
#[derive(Debug)]
pub struct Before {
    counters: HashMap<String, u64>,
    histograms: HashMap<String, HistogramSnapshot>,
    /// When that was.
    pub at: SystemTime,
    /// When it all began.
    pub start: SystemTime,
}

impl Before {
    /// Nothing was told, as of `now`.
    pub fn new(now: SystemTime) -> Self {
        Self { counters: HashMap::new(), histograms: HashMap::new(), at: now, start: now }
    }

    /// What is told of `snapshot`: of statistics that were ever written. Those that are gone are forgotten.
    pub fn advance<'a>(&mut self, snapshot: &'a Snapshot) -> Vec<Told<'a>> {
        let mut counters = HashMap::with_capacity(self.counters.len());
        let mut histograms = HashMap::with_capacity(self.histograms.len());
        let told = snapshot.0.iter().filter(|sample| sample.used).map(|sample| {
            let since = match &sample.value {
                Value::Counter(value) => {
                    let before = self.counters.get(&sample.name).copied().unwrap_or(0);
                    counters.insert(sample.name.clone(), *value);
                    // One that was reset begins anew.
                    Since::Count(value.checked_sub(before).unwrap_or(*value))
                }
                Value::Histogram(value) => {
                    let since = match self.histograms.get(&sample.name) {
                        Some(before) => value.since(before),
                        None => value.clone(),
                    };
                    histograms.insert(sample.name.clone(), value.clone());
                    Since::Values(since)
                }
                Value::Gauge(_) => Since::Nothing,
            };
            Told { sample, since }
        });
        let told = told.collect();
        (self.counters, self.histograms) = (counters, histograms);
        told
    }
}
