//! The state machine with given times.

use super::*;
use crate::pb::envoy::config::endpoint::v3::UpstreamLocalityStats;

/// Counts by hand.
#[derive(Default)]
struct Counts {
    /// Requests issued since the last look.
    issued: BTreeMap<String, u64>,
    started: Vec<String>,
    stopped: Vec<String>,
    endpoints: bool,
}

impl Counts {
    fn of(clusters: &[&str]) -> Self {
        Self { issued: clusters.iter().map(|name| ((*name).to_owned(), 0)).collect(), ..Self::default() }
    }

    fn add(&mut self, cluster: &str, requests: u64) {
        *self.issued.entry(cluster.to_owned()).or_default() += requests;
    }
}

impl Loads for Counts {
    fn clusters(&mut self) -> Vec<String> {
        self.issued.keys().cloned().collect()
    }

    fn start(&mut self, cluster: &str) {
        self.started.push(cluster.to_owned());
        self.issued.entry(cluster.to_owned()).and_modify(|count| *count = 0);
    }

    fn stop(&mut self, cluster: &str) {
        self.stopped.push(cluster.to_owned());
    }

    fn take(&mut self, cluster: &str, endpoints: bool) -> Option<ClusterStats> {
        self.endpoints = endpoints;
        let total_issued_requests = std::mem::take(self.issued.get_mut(cluster)?);
        let locality = UpstreamLocalityStats { total_issued_requests, ..Default::default() };
        Some(ClusterStats { upstream_locality_stats: vec![locality], ..Default::default() })
    }

    fn event(&mut self, _event: &LoadEvent) {}
}

struct Rig {
    start: Instant,
    machine: LoadReporter,
    counts: Counts,
}

impl Rig {
    fn new(clusters: &[&str]) -> Self {
        let start = Instant::now();
        let node = Node { id: "n".to_owned(), ..Default::default() };
        let settings = Settings { doubt_after: Some(Duration::from_secs(600)), ..Settings::new(node) };
        Self { start, machine: LoadReporter::new(&settings, start, 3), counts: Counts::of(clusters) }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn events(&mut self) -> Vec<LoadEvent> {
        std::iter::from_fn(|| self.machine.event()).collect()
    }

    fn ask(&mut self, millis: u64, clusters: &[&str], every: u64) {
        let response = LoadStatsResponse {
            clusters: clusters.iter().map(ToString::to_string).collect(),
            send_all_clusters: clusters.is_empty(),
            load_reporting_interval: Some(interval(Duration::from_millis(every))),
            report_endpoint_granularity: false,
        };
        self.machine.response(self.at(millis), &response, &mut self.counts);
    }

    fn report(&mut self, millis: u64) -> Option<LoadStatsRequest> {
        self.machine.report(self.at(millis), &mut self.counts)
    }

    /// Of each cluster the requests and the milliseconds.
    fn loads(&mut self, millis: u64) -> Option<Vec<(String, u64, i64)>> {
        let report = self.report(millis)?;
        let stats = report.cluster_stats.into_iter().map(|stats| {
            let passed = stats.load_report_interval.expect("an interval");
            let millis = passed.seconds * 1000 + i64::from(passed.nanos) / 1_000_000;
            (stats.cluster_name, stats.upstream_locality_stats[0].total_issued_requests, millis)
        });
        Some(stats.collect())
    }

    /// A stream that is open and has said who we are.
    fn open(&mut self, millis: u64) -> LoadStatsRequest {
        self.machine.opened(self.at(millis));
        self.report(millis).expect("the first message")
    }
}

fn load(name: &str, requests: u64, millis: i64) -> (String, u64, i64) {
    (name.to_owned(), requests, millis)
}

#[test]
fn the_first_message_has_the_node_alone_and_then_the_control_plane_is_waited_for() {
    let mut rig = Rig::new(&["a"]);
    assert_eq!(rig.events(), [LoadEvent::Connect]);
    assert_eq!(rig.report(0), None, "there is no stream");
    rig.counts.add("a", 5);
    let first = rig.open(10);
    let node = first.node.expect("a node");
    assert_eq!((node.id.as_str(), node.client_features), ("n", vec![SEND_ALL.to_owned()]));
    assert_eq!(first.cluster_stats, []);
    assert_eq!(rig.report(100_000), None);
    assert_eq!(rig.events(), [LoadEvent::Connected, LoadEvent::Sent { clusters: 0 }]);
}

#[test]
fn reports_come_at_the_interval_with_the_time_that_passed_and_without_what_was_before() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.open(0);
    rig.counts.add("a", 5);
    rig.ask(100, &[], 1000);
    assert_eq!(rig.counts.started, ["a", "b"]);
    assert_eq!(rig.machine.deadline(true), Some(rig.at(1100)));
    assert_ne!(rig.machine.deadline(false), Some(rig.at(1100)), "no room, no report");
    rig.counts.add("a", 2);
    assert_eq!(rig.loads(1099), None);
    assert_eq!(rig.loads(1100), Some(vec![load("a", 2, 1000), load("b", 0, 1000)]));
    // A stream without room delays the report, whose interval says so.
    rig.counts.add("b", 3);
    assert_eq!(rig.loads(2500), Some(vec![load("a", 0, 1400), load("b", 3, 1400)]));
    assert_eq!(rig.machine.deadline(true), Some(rig.at(3500)));
    assert_eq!(rig.counts.started, ["a", "b"], "what is counted is not begun anew");
}

#[test]
fn another_list_drops_and_adds_clusters_and_what_is_counted_goes_on() {
    let mut rig = Rig::new(&["a", "b", "c"]);
    rig.open(0);
    rig.ask(0, &["a", "b", "absent"], 1000);
    rig.counts.add("a", 1);
    rig.counts.add("b", 1);
    rig.counts.add("c", 1);
    rig.ask(500, &["b", "c", "absent"], 2000);
    assert_eq!(rig.counts.stopped, ["a"]);
    rig.counts.add("c", 4);
    assert_eq!(rig.loads(2499), None, "the new interval begins with the new list");
    assert_eq!(rig.loads(2500), Some(vec![load("b", 1, 2500), load("c", 4, 2000)]));
    // It appears later: its time is that since it was asked for.
    rig.counts.add("absent", 7);
    assert_eq!(rig.loads(4500), Some(vec![load("absent", 7, 4500), load("b", 0, 2000), load("c", 0, 2000)]));
}

#[test]
fn a_cluster_that_comes_between_reports_is_reported_from_its_beginning() {
    let mut rig = Rig::new(&["a"]);
    rig.open(0);
    rig.ask(0, &[], 1000);
    rig.counts.add("late", 9);
    assert_eq!(rig.loads(1000), Some(vec![load("a", 0, 1000), load("late", 9, 1000)]));
    rig.counts.issued.remove("a");
    assert_eq!(rig.loads(2000), Some(vec![load("late", 0, 1000)]));
    assert_eq!(rig.counts.stopped, ["a"]);
}

#[test]
fn the_next_stream_begins_with_what_was_counted_meanwhile() {
    let mut rig = Rig::new(&["a"]);
    rig.open(0);
    rig.ask(0, &["a"], 1000);
    rig.counts.add("a", 1);
    rig.machine.closed(rig.at(500), "broken", false);
    let events = rig.events();
    let Some(LoadEvent::Disconnected { reason, retry_in, graceful: false }) = events.last().cloned() else {
        panic!("{events:?}");
    };
    assert_eq!(reason, "broken");
    assert!(retry_in <= Duration::from_millis(500));
    assert_eq!(rig.loads(1200), None, "there is no stream");
    rig.machine.tick(rig.at(1300));
    assert_eq!(rig.events(), [LoadEvent::Retried, LoadEvent::Connect]);
    rig.counts.add("a", 1);
    rig.machine.opened(rig.at(1400));
    assert_eq!(rig.loads(1400), Some(vec![load("a", 2, 1400)]));
    assert_eq!(rig.machine.deadline(true), Some(rig.at(2400)), "at the interval of before");
    rig.machine.closed(rig.at(1500), "closed", true);
    assert!(matches!(rig.events().last(), Some(LoadEvent::Disconnected { graceful: true, .. })));
}

#[test]
fn an_interval_of_nothing_is_no_reason_to_send_without_end() {
    let mut rig = Rig::new(&["a"]);
    rig.open(0);
    rig.ask(0, &["a"], 0);
    assert_eq!(rig.machine.deadline(true), Some(rig.start + SHORTEST_INTERVAL));
    rig.machine.response(rig.at(0), &LoadStatsResponse::default(), &mut rig.counts);
    assert_eq!(rig.machine.deadline(true), Some(rig.start + SHORTEST_INTERVAL));
    assert_eq!(rig.loads(100), Some(vec![]), "an empty list is no cluster");
}

#[test]
fn a_stream_that_is_silent_for_too_long_is_given_up() {
    let mut rig = Rig::new(&["a"]);
    rig.open(0);
    rig.ask(0, &["a"], 3_600_000);
    rig.machine.alive(rig.at(100_000));
    rig.machine.tick(rig.at(699_999));
    assert!(!rig.events().iter().any(|event| matches!(event, LoadEvent::Abandon { .. })));
    rig.machine.tick(rig.at(700_000));
    let events = rig.events();
    assert!(matches!(events.as_slice(), [LoadEvent::Abandon { .. }]), "{events:?}");
    rig.machine.closed(rig.at(700_000), "silent", false);
    assert!(matches!(rig.events().as_slice(), [LoadEvent::Disconnected { .. }]));
}

#[test]
fn endpoints_are_counted_each_when_asked_for() {
    let mut rig = Rig::new(&["a"]);
    rig.open(0);
    rig.ask(0, &[], 1000);
    rig.loads(1000);
    assert!(!rig.counts.endpoints);
    let response = LoadStatsResponse {
        send_all_clusters: true,
        report_endpoint_granularity: true,
        load_reporting_interval: Some(interval(Duration::from_secs(1))),
        ..Default::default()
    };
    rig.machine.response(rig.at(1100), &response, &mut rig.counts);
    rig.loads(2100);
    assert!(rig.counts.endpoints);
}
