//! What is reported of counters that change as requests change them.

use super::*;
use crate::config::cluster::{Address, Discovery, HostTemplate};
use crate::config::slot::Dormant;
use crate::config::{fixtures, HostSet};

struct Rig {
    directory: Arc<Directory<Cluster>>,
    ledger: Ledger,
}

fn host(port: u16, zone: &str, priority: u32) -> Arc<Host> {
    let locality = Arc::new(Locality { zone: zone.into(), ..Locality::default() });
    let template = HostTemplate { priority, locality, ..HostTemplate::default() };
    Host::new(Address::Ip(([127, 0, 0, 1], port).into()), template)
}

fn request(host: &Host, success: bool) {
    let counters = &host.shared.counters;
    counters.rq_total.fetch_add(1, Ordering::Relaxed);
    let outcome = if success { &counters.rq_success } else { &counters.rq_error };
    outcome.fetch_add(1, Ordering::Relaxed);
}

impl Rig {
    fn new() -> Self {
        let directory = Arc::new(Directory::default());
        Self { ledger: Ledger::new(directory.clone()), directory }
    }

    fn cluster(&self, hosts: &[Arc<Host>]) -> Arc<Cluster> {
        let cluster = Arc::new(fixtures::cluster("web", Discovery::Static));
        cluster.hosts.store(HostSet::new(hosts.to_vec(), Default::default()));
        self.directory.slot("web").set(Some(cluster.clone()));
        cluster
    }

    /// Of each locality: zone, priority, then issued, succeeded, failed and in progress.
    fn take(&mut self) -> Option<Vec<(String, u32, [u64; 4])>> {
        let stats = self.ledger.take("web", false)?;
        let line = |stats: &UpstreamLocalityStats| {
            let zone = stats.locality.as_ref().expect("a locality").zone.clone();
            let numbers = [
                stats.total_issued_requests,
                stats.total_successful_requests,
                stats.total_error_requests,
                stats.total_requests_in_progress,
            ];
            (zone, stats.priority, numbers)
        };
        Some(stats.upstream_locality_stats.iter().map(line).collect())
    }
}

fn line(zone: &str, priority: u32, numbers: [u64; 4]) -> (String, u32, [u64; 4]) {
    (zone.to_owned(), priority, numbers)
}

#[test]
fn differences_by_locality_and_priority_without_what_was_before_and_without_what_is_idle() {
    let mut rig = Rig::new();
    assert_eq!(rig.take(), None, "there is no such cluster");
    let hosts = [host(1, "a", 0), host(2, "a", 0), host(3, "b", 0), host(4, "a", 1), host(5, "idle", 0)];
    rig.cluster(&hosts);
    request(&hosts[0], true);
    rig.ledger.start("web");
    assert_eq!(rig.take(), Some(vec![]));
    request(&hosts[0], true);
    request(&hosts[1], false);
    request(&hosts[2], true);
    request(&hosts[3], true);
    hosts[3].shared.active_requests.fetch_add(2, Ordering::Relaxed);
    rig.ledger.count();
    request(&hosts[2], true);
    let first = vec![line("a", 0, [2, 1, 1, 0]), line("b", 0, [2, 2, 0, 0]), line("a", 1, [1, 1, 0, 2])];
    assert_eq!(rig.take(), Some(first));
    assert_eq!(rig.take(), Some(vec![line("a", 1, [0, 0, 0, 2])]), "in progress is no difference");
}

#[test]
fn hosts_that_leave_are_reported_until_their_last_request_is_over() {
    let mut rig = Rig::new();
    let (stays, leaves) = (host(1, "a", 0), host(2, "b", 0));
    let cluster = rig.cluster(&[stays.clone(), leaves.clone()]);
    rig.ledger.start("web");
    leaves.shared.counters.rq_total.fetch_add(1, Ordering::Relaxed);
    leaves.shared.active_requests.fetch_add(1, Ordering::Relaxed);
    // The one that stays moves to another locality and keeps its counters.
    request(&stays, true);
    let locality = Arc::new(Locality { zone: "c".into(), ..Locality::default() });
    let moved = stays.described(HostTemplate { locality, ..HostTemplate::default() });
    cluster.hosts.store(HostSet::new(vec![moved], Default::default()));
    assert_eq!(rig.take(), Some(vec![line("b", 0, [1, 0, 0, 1]), line("c", 0, [1, 1, 0, 0])]));
    leaves.shared.counters.rq_success.fetch_add(1, Ordering::Relaxed);
    leaves.shared.active_requests.fetch_sub(1, Ordering::Relaxed);
    assert_eq!(rig.take(), Some(vec![line("b", 0, [0, 1, 0, 0])]));
    assert_eq!(Arc::strong_count(&leaves), 1, "it is let go");
}

#[test]
fn a_cluster_that_sleeps_or_is_replaced_loses_nothing_that_was_counted_before() {
    struct Asleep;
    impl Dormant<Cluster> for Asleep {
        fn wake(&self) -> Option<Arc<Cluster>> {
            let cluster = fixtures::cluster("web", Discovery::Static);
            cluster.hosts.store(HostSet::new(vec![host(1, "a", 0)], Default::default()));
            Some(Arc::new(cluster))
        }
    }
    let mut rig = Rig::new();
    let slot = rig.directory.slot("web");
    slot.replace(Arc::new(Asleep), |_| None);
    rig.ledger.start("web");
    assert_eq!((rig.take(), slot.get().is_none()), (Some(vec![]), true), "a report wakes nobody");
    let cluster = slot.wake().expect("a cluster");
    request(&cluster.hosts.load().all[0], true);
    cluster.drops.total.fetch_add(3, Ordering::Relaxed);
    rig.ledger.count();
    drop(cluster);
    assert!(slot.sleep(), "what is counted keeps nobody awake");
    let cluster = slot.wake().expect("a cluster");
    request(&cluster.hosts.load().all[0], false);
    cluster.drops.total.fetch_add(1, Ordering::Relaxed);
    let stats = rig.ledger.take("web", true).expect("a cluster");
    assert_eq!(stats.total_dropped_requests, 4);
    let [locality] = stats.upstream_locality_stats.as_slice() else { panic!("{stats:?}") };
    let counts = |issued, succeeded, failed| (issued, succeeded, failed);
    assert_eq!(
        (locality.total_issued_requests, locality.total_successful_requests, locality.total_error_requests),
        counts(2, 1, 1)
    );
    let each: Vec<_> =
        locality.upstream_endpoint_stats.iter().map(|stats| stats.total_issued_requests).collect();
    assert_eq!(each, [1, 1], "the same address, but not the same host");
}
