//! What answers make of a host, when it is checked, and what becomes of hosts that come and go.

use std::net::SocketAddr;
use std::time::Duration;

use super::session::{initial_delay, next_interval, Failure, Note, Session, Transition};
use super::*;
use crate::config::cluster::{Address, HostTemplate, Hosts};

const SECOND: Duration = Duration::from_secs(1);

fn options() -> Options {
    Options {
        timeout: SECOND,
        interval: 10 * SECOND,
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        no_traffic_interval: 60 * SECOND,
        no_traffic_healthy_interval: 50 * SECOND,
        unhealthy_interval: 5 * SECOND,
        unhealthy_edge_interval: 3 * SECOND,
        healthy_edge_interval: 2 * SECOND,
        bounds: (Duration::ZERO, Duration::MAX),
        alpn: Box::default(),
        socket_match: None,
        reuse_connection: true,
        always_log_failures: false,
        always_log_success: false,
        logs: Vec::new(),
        probe: Probe::Tcp(options::TcpProbe { send: Vec::new(), receive: Vec::new() }),
    }
}

fn new_host() -> HealthFlags {
    let flags = HealthFlags::default();
    flags.set(HealthFlags::FAILED_ACTIVE_HC);
    flags
}

const REFUSED: Failure = Failure::Network;
const BAD: Failure = Failure::Active { retriable: false, status: 503 };
const RETRIABLE: Failure = Failure::Active { retriable: true, status: 500 };

#[test]
fn the_first_success_is_enough_and_later_ones_obey_the_threshold() {
    let (options, flags, mut session) = (options(), new_host(), Session::default());
    flags.set(HealthFlags::PENDING_ACTIVE_HC);
    let verdict = session.succeeded(&flags, false, &options);
    assert_eq!(verdict.transition, Transition::Changed);
    assert_eq!(verdict.notes[..], [Note::AddHealthy { first: true }]);
    assert!(verdict.first && flags.get() == 0);
    session.failed(&flags, BAD, &options);
    assert_eq!(session.succeeded(&flags, false, &options).transition, Transition::Pending);
    assert_eq!(session.failed(&flags, BAD, &options).transition, Transition::Unchanged);
    assert_eq!(session.succeeded(&flags, false, &options).transition, Transition::Pending);
    let verdict = session.succeeded(&flags, false, &options);
    assert_eq!(verdict.notes[..], [Note::AddHealthy { first: false }]);
    assert_eq!(flags.get(), 0);
}

#[test]
fn after_a_first_failure_the_threshold_counts() {
    let (options, flags, mut session) = (options(), new_host(), Session::default());
    let verdict = session.failed(&flags, REFUSED, &options);
    assert_eq!(verdict.notes[..], [Note::Failed { failure: REFUSED, first: true }]);
    assert_eq!(session.succeeded(&flags, false, &options).transition, Transition::Pending);
    assert_eq!(session.succeeded(&flags, false, &options).transition, Transition::Changed);
}

#[test]
fn network_failures_obey_the_threshold_and_bad_answers_do_not() {
    let options = options();
    for failure in [REFUSED, Failure::Timeout, RETRIABLE] {
        let (flags, mut session) = (new_host(), Session::default());
        session.succeeded(&flags, false, &options);
        let seen: Vec<_> = (0..4).map(|_| session.failed(&flags, failure, &options).transition).collect();
        use Transition::{Changed, Pending, Unchanged};
        assert_eq!(seen, [Pending, Pending, Changed, Unchanged], "{failure:?}");
        assert_eq!(flags.has(HealthFlags::ACTIVE_HC_TIMEOUT), failure == Failure::Timeout);
    }
    for failure in [BAD, Failure::Passive] {
        let (flags, mut session) = (new_host(), Session::default());
        session.succeeded(&flags, false, &options);
        assert_eq!(session.failed(&flags, failure, &options).notes[..], [Note::EjectUnhealthy(failure)]);
        assert!(flags.has(HealthFlags::FAILED_ACTIVE_HC));
    }
}

#[test]
fn a_degraded_answer_is_a_success_with_a_flag() {
    let (options, flags, mut session) = (options(), new_host(), Session::default());
    let verdict = session.succeeded(&flags, true, &options);
    assert_eq!(verdict.notes[..], [Note::AddHealthy { first: true }, Note::Degraded]);
    assert_eq!(session.succeeded(&flags, true, &options).transition, Transition::Unchanged);
    let verdict = session.succeeded(&flags, false, &options);
    assert_eq!(
        (verdict.transition, &verdict.notes[..]),
        (Transition::Changed, &[Note::NoLongerDegraded][..])
    );
}

#[test]
fn an_excluded_host_is_counted_again_when_it_is_healthy_again() {
    let (options, flags, mut session) = (options(), new_host(), Session::default());
    session.succeeded(&flags, false, &options);
    flags.set(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
    session.failed(&flags, Failure::Passive, &options);
    session.succeeded(&flags, false, &options);
    assert!(flags.has(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL), "not yet");
    session.succeeded(&flags, false, &options);
    assert_eq!(flags.get(), 0);
}

#[test]
fn intervals_follow_health_edges_and_traffic() {
    let (mut options, mut rng) = (options(), fastrand::Rng::with_seed(4));
    use Transition::{Changed, Pending, Unchanged};
    for (healthy, transition, used, seconds) in [
        (true, Unchanged, true, 10),
        (true, Changed, true, 10),
        (true, Pending, true, 2),
        (false, Unchanged, true, 5),
        (false, Changed, true, 5),
        (false, Pending, true, 3),
        (true, Unchanged, false, 50),
        (true, Pending, false, 60),
        (false, Unchanged, false, 60),
    ] {
        let next = next_interval(&options, healthy, transition, used, &mut rng);
        assert_eq!(next, seconds * SECOND, "{healthy} {transition:?} {used}");
    }
    assert_eq!(initial_delay(&options, &mut rng), Duration::ZERO);
    options.initial_jitter = SECOND;
    options.interval_jitter = SECOND;
    options.interval_jitter_percent = 20;
    for _ in 0..1000 {
        let next = next_interval(&options, true, Unchanged, true, &mut rng);
        assert!((10 * SECOND..13 * SECOND).contains(&next), "{next:?}");
        assert!((Duration::from_millis(1)..SECOND).contains(&initial_delay(&options, &mut rng)));
    }
    options.bounds = (20 * SECOND, 30 * SECOND);
    assert_eq!(next_interval(&options, true, Unchanged, true, &mut rng), 20 * SECOND);
    assert_eq!(next_interval(&options, false, Unchanged, false, &mut rng), 30 * SECOND);
}

/// Thresholds hold whatever comes, for hours of virtual time.
#[test]
fn a_host_is_failed_only_by_a_bad_answer_or_enough_failures_in_a_row() {
    for seed in 0..40u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let options =
            Options { unhealthy_threshold: rng.u32(1..5), healthy_threshold: rng.u32(1..5), ..options() };
        let (flags, mut session) = (new_host(), Session::default());
        let (mut failures, mut successes) = (0, 0);
        let mut time = Duration::ZERO;
        let mut first = true;
        while time < Duration::from_secs(7200) {
            let was_failed = flags.has(HealthFlags::FAILED_ACTIVE_HC);
            let healthy = rng.u32(0..3) > 0;
            let failure = [REFUSED, Failure::Timeout, RETRIABLE, BAD, Failure::Passive][rng.usize(0..5)];
            let verdict = if healthy {
                (failures, successes) = (0, if was_failed { successes + 1 } else { 0 });
                session.succeeded(&flags, rng.bool(), &options)
            } else {
                (failures, successes) = (failures + u32::from(!was_failed), 0);
                session.failed(&flags, failure, &options)
            };
            let is_failed = flags.has(HealthFlags::FAILED_ACTIVE_HC);
            if is_failed && !was_failed {
                let at_once = matches!(failure, BAD | Failure::Passive);
                assert!(at_once || failures == options.unhealthy_threshold, "seed {seed}: {failures}");
            }
            if was_failed && !is_failed {
                assert!(first || successes == options.healthy_threshold, "seed {seed}: {successes}");
            }
            if was_failed != is_failed {
                (failures, successes) = (0, 0);
            }
            first = false;
            time += next_interval(&options, healthy, verdict.transition, true, &mut rng);
        }
    }
}

fn host(port: u16) -> Arc<Host> {
    let address = Address::Ip(SocketAddr::from(([127, 0, 0, 1], port)));
    Host::new(address, HostTemplate { weight: 1, ..HostTemplate::default() })
}

fn set(hosts: &[&Arc<Host>]) -> HostSet {
    HostSet::new(hosts.iter().map(|host| (*host).clone()).collect(), Default::default())
}

fn ports(hosts: &Hosts) -> Vec<String> {
    hosts
        .load()
        .all
        .iter()
        .map(|host| host.address_text.rsplit(':').next().unwrap_or("").to_owned())
        .collect()
}

#[test]
fn new_hosts_wait_for_their_first_check() {
    let (old, new) = (host(1), host(2));
    let hosts = Hosts::new(set(&[&old]));
    hosts.check(CheckPolicy { ignore_new: true, ..CheckPolicy::default() });
    assert!(hosts.load().priorities[0].healthy.is_empty(), "those from the start too");
    old.shared.health.clear(HealthFlags::FAILED_ACTIVE_HC);
    hosts.health_changed();
    hosts.store(set(&[&old, &new]));
    assert_eq!(hosts.load().priorities[0].healthy, [0]);
    assert!(new.shared.health.has(HealthFlags::FAILED_ACTIVE_HC));
    assert!(new.shared.health.has(HealthFlags::PENDING_ACTIVE_HC));
    assert!(!old.shared.health.has(HealthFlags::PENDING_ACTIVE_HC));
}

#[test]
fn a_host_whose_checks_succeed_outlives_its_removal() {
    let (good, bad, stays) = (host(1), host(2), host(3));
    let hosts = Hosts::new(set(&[&good, &bad, &stays]));
    hosts.check(CheckPolicy::default());
    good.shared.health.clear(HealthFlags::FAILED_ACTIVE_HC);
    hosts.store(set(&[&stays]));
    assert_eq!(ports(&hosts), ["3", "1"]);
    assert!(good.shared.health.has(HealthFlags::PENDING_DYNAMIC_REMOVAL));
    hosts.store(set(&[&good, &stays]));
    assert!(!good.shared.health.has(HealthFlags::PENDING_DYNAMIC_REMOVAL), "it is back");
    hosts.store(set(&[&stays]));
    hosts.remove(&good.shared);
    assert_eq!(ports(&hosts), ["3"]);

    // A logical host moves with its health.
    let hosts = Hosts::new(set(&[&good]));
    hosts.check(CheckPolicy { logical: true, ..CheckPolicy::default() });
    good.shared.health.clear(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::PENDING_DYNAMIC_REMOVAL);
    let moved = host(4);
    hosts.store(set(&[&moved]));
    assert_eq!((ports(&hosts), moved.shared.health.get()), (vec!["4".to_owned()], 0));

    let hosts = Hosts::new(set(&[&good]));
    hosts.check(CheckPolicy { remove_healthy: true, ..CheckPolicy::default() });
    good.shared.health.clear(HealthFlags::FAILED_ACTIVE_HC);
    hosts.store(set(&[]));
    assert_eq!(ports(&hosts), Vec::<String>::new(), "ignore_health_on_host_removal");
}

#[test]
fn bytes_must_come_in_order_with_anything_in_between() {
    let wanted = [b"ab".to_vec(), b"cd".to_vec()];
    assert!(options::contains_in_order(b"xxabyycdzz", &wanted));
    assert!(!options::contains_in_order(b"cdab", &wanted));
    assert!(!options::contains_in_order(b"abd", &wanted));
    assert!(!options::contains_in_order(b"aab", &[b"aa".to_vec(), b"ab".to_vec()]), "no byte counts twice");
}

#[test]
fn where_and_as_what_a_host_is_checked() {
    let plain = host(80);
    assert_eq!(options::address_of(&plain).to_string(), "127.0.0.1:80");
    let check =
        |check: HostCheck| plain.described(HostTemplate { check: Some(check.into()), ..Default::default() });
    let other = check(HostCheck { port: Some(81), hostname: "h".into(), ..HostCheck::default() });
    assert_eq!(options::address_of(&other).to_string(), "127.0.0.1:81");
    let cluster = "c".into();
    assert_eq!(options::authority_of(&other, "configured", &cluster), "h");
    assert_eq!(options::authority_of(&plain, "configured", &cluster), "configured");
    assert_eq!(options::authority_of(&plain, "", &cluster), "c");
    let address = Some(Address::Ip(SocketAddr::from(([10, 0, 0, 1], 9))));
    let elsewhere = check(HostCheck { address, ..HostCheck::default() });
    assert_eq!(options::address_of(&elsewhere).to_string(), "10.0.0.1:9");
}
