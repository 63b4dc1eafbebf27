//! Load reports (LRS): tells a control plane how many requests each cluster took, when it asks.
//!
//! In: what became of the stream, what the control plane asks for, counts ([`Loads`]), and the time. Out: events
//! ([`LoadReporter::event`]), reports ([`LoadReporter::report`]) and the time to wake up at
//! ([`LoadReporter::deadline`]). No sockets and no clock; [`load_reports`] joins it with both.
//!
//! As in Envoy, the first message of the process has the node alone. A later stream begins with what was counted
//! meanwhile of the clusters that were last asked for, and reports go on at the last interval until the control plane
//! asks for something else.

mod driver;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

pub use driver::load_reports;

use super::link::{Link, Phase};
use super::machine::{to_duration, Settings};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::ClusterStats;
use crate::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use crate::pb::google::protobuf;

/// Tells the control plane that it need not list clusters.
const SEND_ALL: &str = "envoy.lrs.supports_send_all_clusters";

/// Reports are not sent more often, whatever is asked for.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Clusters that a control plane may list; more are passed over.
const MAX_LISTED: usize = 100_000;

/// Where counts come from.
pub trait Loads: Send {
    /// The names of all clusters there are.
    fn clusters(&mut self) -> Vec<String>;

    /// What happened to `cluster` until now is not to be reported.
    fn start(&mut self, cluster: &str);

    /// `cluster` is not asked for any more.
    fn stop(&mut self, cluster: &str);

    /// What happened to `cluster` since the last call or [`start`](Self::start), without its name and the interval;
    /// `endpoints`: each endpoint's share as well. `None` where there is no such cluster.
    fn take(&mut self, cluster: &str, endpoints: bool) -> Option<ClusterStats>;

    /// Something happened; for statistics.
    fn event(&mut self, event: &LoadEvent);
}

/// What happened, or is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadEvent {
    /// A stream is to be opened.
    Connect,
    /// This is another attempt after a stream that ended, or could not be opened.
    Retried,
    /// The stream is open.
    Connected,
    /// It ended, or could not be opened.
    Disconnected {
        /// Why.
        reason: String,
        /// When the next is tried.
        retry_in: Duration,
        /// The control plane ended it without an error.
        graceful: bool,
    },
    /// Nothing was heard for too long: the stream is to be closed.
    Abandon {
        /// What was missing.
        reason: String,
    },
    /// The control plane said what it wants.
    Asked {
        /// So many clusters; `None` = all.
        clusters: Option<usize>,
        /// Time between two reports.
        interval: Duration,
    },
    /// A report was made, of so many clusters.
    Sent {
        /// How many.
        clusters: usize,
    },
}

/// What the control plane asks for.
#[derive(Debug)]
struct Asked {
    /// `None` = all.
    clusters: Option<BTreeSet<String>>,
    interval: Duration,
    endpoints: bool,
}

/// The state of load reporting.
#[derive(Debug)]
pub struct LoadReporter {
    node: Node,
    link: Link,
    asked: Option<Asked>,
    /// The clusters that are counted, and since when.
    tracked: BTreeMap<String, Instant>,
    /// When the list of clusters was last looked at.
    listed: Instant,
    /// When the next message goes out.
    due: Option<Instant>,
    events: VecDeque<LoadEvent>,
}

impl LoadReporter {
    /// Asks for a stream at once. Of `settings`, the node, the back-off and the time to doubt a stream count.
    #[must_use]
    pub fn new(settings: &Settings, now: Instant, seed: u64) -> Self {
        let mut node = settings.node.clone();
        if !node.client_features.iter().any(|feature| feature == SEND_ALL) {
            node.client_features.push(SEND_ALL.to_owned());
        }
        // A control plane that wants no reports has nothing to say.
        let settings = Settings { answer_after: Duration::MAX, ..settings.clone() };
        let mut link = Link::new(&settings, now, seed);
        link.phase = Phase::Connecting;
        let events = VecDeque::from([LoadEvent::Connect]);
        Self { node, link, asked: None, tracked: BTreeMap::new(), listed: now, due: None, events }
    }

    /// The stream that [`LoadEvent::Connect`] asked for is open.
    pub fn opened(&mut self, now: Instant) {
        self.link.opened(now);
        self.due = Some(now);
        self.events.push_back(LoadEvent::Connected);
    }

    /// It closed, or could not be opened.
    pub fn closed(&mut self, now: Instant, reason: impl Into<String>, graceful: bool) {
        let Some(retry_in) = self.link.closed(now) else { return };
        self.due = None;
        self.events.push_back(LoadEvent::Disconnected { reason: reason.into(), retry_in, graceful });
    }

    /// A sign of life that is no response, at the instant it came.
    pub fn alive(&mut self, at: Instant) {
        self.link.alive(at);
    }

    /// The control plane says what it wants.
    pub fn response(&mut self, now: Instant, response: &LoadStatsResponse, loads: &mut dyn Loads) {
        if !matches!(self.link.phase, Phase::Open { .. }) {
            return;
        }
        self.link.received(now);
        let interval = response.load_reporting_interval.as_ref().and_then(to_duration).unwrap_or_default();
        let listed = || response.clusters.iter().take(MAX_LISTED).cloned().collect::<BTreeSet<_>>();
        let asked = Asked {
            clusters: (!response.send_all_clusters).then(listed),
            interval: interval.max(SHORTEST_INTERVAL),
            endpoints: response.report_endpoint_granularity,
        };
        let clusters = asked.clusters.as_ref().map(BTreeSet::len);
        self.events.push_back(LoadEvent::Asked { clusters, interval: asked.interval });
        self.asked = Some(asked);
        // The first message may not be out yet.
        let greets = self.due.is_some_and(|due| due <= now);
        self.begin(now, loads);
        if greets {
            self.due = Some(now);
        }
    }

    /// Does what has become due.
    pub fn tick(&mut self, now: Instant) {
        if self.link.retry_due(now) {
            self.link.phase = Phase::Connecting;
            self.events.extend([LoadEvent::Retried, LoadEvent::Connect]);
        }
        if let Some(silence) = self.link.doubt(now) {
            let reason = format!("neither request nor keepalive answer for {} s", silence.as_secs());
            self.events.push_back(LoadEvent::Abandon { reason });
        }
    }

    /// When [`tick`](Self::tick) is due next, or with `room` for a report, when that is.
    #[must_use]
    pub fn deadline(&self, room: bool) -> Option<Instant> {
        [self.link.deadline(), self.due.filter(|_| room)].into_iter().flatten().min()
    }

    /// The next event. To be called until there is none, after any input.
    pub fn event(&mut self) -> Option<LoadEvent> {
        self.events.pop_front()
    }

    /// The report that is due, when the stream can take one.
    pub fn report(&mut self, now: Instant, loads: &mut dyn Loads) -> Option<LoadStatsRequest> {
        let open = matches!(self.link.phase, Phase::Open { .. });
        if !open || self.due.is_none_or(|due| due > now) {
            return None;
        }
        let endpoints = self.asked.as_ref().is_some_and(|asked| asked.endpoints);
        if self.asked.as_ref().is_some_and(|asked| asked.clusters.is_none()) {
            // All that a cluster counted that was not there when the list was last looked at is news.
            for cluster in loads.clusters() {
                self.tracked.entry(cluster).or_insert(self.listed);
            }
        }
        let mut cluster_stats = Vec::with_capacity(self.tracked.len());
        for (name, since) in &mut self.tracked {
            let Some(stats) = loads.take(name, endpoints) else { continue };
            let interval = interval(now.saturating_duration_since(*since));
            let load_report_interval = Some(interval);
            cluster_stats.push(ClusterStats { cluster_name: name.clone(), load_report_interval, ..stats });
            *since = now;
        }
        self.events.push_back(LoadEvent::Sent { clusters: cluster_stats.len() });
        self.due = None;
        self.begin(now, loads);
        Some(LoadStatsRequest { node: Some(self.node.clone()), cluster_stats })
    }

    /// Begins the time until the next report. What is counted already goes on.
    fn begin(&mut self, now: Instant, loads: &mut dyn Loads) {
        let Some(asked) = &self.asked else { return };
        let wanted = match &asked.clusters {
            Some(listed) => listed.clone(),
            None => loads.clusters().into_iter().collect(),
        };
        self.tracked.retain(|name, _| {
            let stays = wanted.contains(name);
            if !stays {
                loads.stop(name);
            }
            stays
        });
        for name in wanted {
            self.tracked.entry(name).or_insert_with_key(|name| {
                loads.start(name);
                now
            });
        }
        self.listed = now;
        self.due = now.checked_add(asked.interval);
    }
}

/// Microseconds, as Envoy counts them.
fn interval(passed: Duration) -> protobuf::Duration {
    let seconds = i64::try_from(passed.as_secs()).unwrap_or(i64::MAX);
    // Less than 10^9.
    let nanos = i32::try_from(passed.subsec_micros() * 1000).unwrap_or_default();
    protobuf::Duration { seconds, nanos }
}
