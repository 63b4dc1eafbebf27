//! The rules one by one, and a simulation of clusters over hours of virtual time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::detector::is_ejected;
use super::*;
use crate::config::cluster::{Address, HealthFlags, HostTemplate};

/// A detector with its hosts and a clock of its own.
struct Rig {
    options: Options,
    detector: Detector,
    hosts: Vec<Arc<Host>>,
    now: Instant,
}

impl Rig {
    fn new(hosts: u16, options: Options) -> Self {
        let host = |port| {
            let address = Address::Ip(SocketAddr::from(([10, 0, 0, 1], port)));
            let host = Host::new(address, HostTemplate { weight: 1, ..HostTemplate::default() });
            host.shared.outlier.get_or_init(|| Box::new(Monitor::new()));
            host
        };
        let detector = Detector::new(fastrand::Rng::with_seed(1));
        Self { options, detector, hosts: (1..=hosts).map(host).collect(), now: Instant::now() }
    }

    fn take(&mut self, host: usize, outcome: Outcome) -> Vec<Event> {
        let host = self.hosts[host].clone();
        let found = host.shared.outlier.get().unwrap().take(outcome, &self.options);
        let detect = |kind| self.detector.consecutive(&self.options, &self.hosts, &host, kind, self.now);
        found.into_iter().flatten().filter_map(detect).collect()
    }

    fn answers(&mut self, host: usize, statuses: &[u16]) -> Vec<(Kind, Action)> {
        let mut seen = Vec::new();
        for status in statuses {
            seen.extend(self.take(host, Outcome::Answered(*status)).iter().map(|e| (e.kind, e.action)));
        }
        seen
    }

    fn sweep(&mut self, after: Duration) -> Vec<Event> {
        self.now += after;
        self.detector.sweep(&self.options, &self.hosts, self.now)
    }

    fn ejected(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|index| is_ejected(&self.hosts[*index])).collect()
    }
}

fn all_may_go() -> Options {
    Options { max_ejection_percent: 100, ..Options::default() }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_run_of_5xx_ejects_at_its_fifth_and_a_success_ends_it() {
    let mut rig = Rig::new(2, all_may_go());
    assert_eq!(rig.answers(0, &[500, 503, 500, 500, 200, 500, 500, 500, 500]), []);
    assert_eq!(rig.answers(0, &[404]), [], "an answer of another class is none");
    assert_eq!(rig.answers(0, &[500, 500, 500, 500, 501]), [(Kind::Consecutive5xx, Action::Ejected)]);
    assert_eq!(rig.ejected(), [0]);
    assert_eq!(rig.answers(0, &[500; 20]), [], "it is out already");
}

#[test]
fn gateway_failures_have_a_run_of_their_own_that_other_5xx_end() {
    let mut options = all_may_go();
    options.consecutive_gateway_failure = 3;
    options.consecutive_5xx = 0;
    options.enforcing[Kind::ConsecutiveGatewayFailure as usize] = 100;
    let mut rig = Rig::new(2, options);
    assert_eq!(rig.answers(1, &[502, 503, 500, 504, 502]), []);
    assert_eq!(rig.answers(1, &[503]), [(Kind::ConsecutiveGatewayFailure, Action::Ejected)]);
}

#[test]
fn by_default_gateway_failures_are_noticed_and_not_acted_on() {
    let mut rig = Rig::new(2, Options { consecutive_5xx: 6, ..all_may_go() });
    let seen = rig.answers(0, &[503; 11]);
    let gateway = (Kind::ConsecutiveGatewayFailure, Action::NotEnforced);
    assert_eq!(seen, [gateway, (Kind::Consecutive5xx, Action::Ejected)]);
}

#[test]
fn failures_to_reach_a_host_count_as_503_and_timeouts_as_what_the_client_is_told() {
    let mut rig = Rig::new(2, Options { consecutive_5xx: 2, ..all_may_go() });
    let failed = Outcome::Failed { connected: false };
    assert!(rig.take(0, failed).is_empty());
    assert!(rig.take(0, Outcome::TimedOut { connected: true, status: 204 }).is_empty());
    assert!(rig.take(0, failed).is_empty(), "the 204 has ended the run");
    assert_eq!(rig.take(0, Outcome::TimedOut { connected: true, status: 504 }).len(), 1);
    assert!(rig.take(1, failed).is_empty());
    assert!(rig.take(1, Outcome::Connected).is_empty());
    assert!(rig.take(1, failed).is_empty(), "the connection has ended the run");
}

#[test]
fn with_the_split_a_host_that_can_be_connected_to_has_no_run_of_local_failures() {
    let options = Options { split: true, consecutive_local_origin_failure: 2, ..all_may_go() };
    let mut rig = Rig::new(2, options);
    for _ in 0..10 {
        assert!(rig.take(0, Outcome::Failed { connected: true }).is_empty(), "a reset after the connect");
    }
    let refused = Outcome::Failed { connected: false };
    assert_eq!(rig.take(0, refused)[0].kind, Kind::ConsecutiveLocalOriginFailure);
    assert_eq!(rig.ejected(), [0]);
    assert_eq!(rig.answers(1, &[500; 5]), [(Kind::Consecutive5xx, Action::Ejected)]);
}

#[test]
fn no_more_hosts_go_than_may() {
    for (hosts, percent, always, most) in [
        (3, 10, false, 0),
        (9, 10, false, 0),
        (10, 10, false, 1),
        (3, 10, true, 1),
        (3, 66, false, 1),
        (3, 67, true, 2),
    ] {
        let options =
            Options { max_ejection_percent: percent, always_eject_one_host: always, ..Options::default() };
        assert_eq!(options.most_ejected(hosts), most);
        let mut rig = Rig::new(hosts as u16, options);
        let seen: Vec<_> = (0..hosts).flat_map(|host| rig.answers(host, &[500; 5])).collect();
        assert_eq!(rig.ejected().len(), most, "{hosts} hosts, {percent} %");
        let capped = Action::Capped { ejected: most, hosts };
        assert!(seen[most..].iter().all(|(_, action)| *action == capped), "{seen:?}");
    }
}

#[test]
fn a_config_that_can_never_eject_is_told_apart() {
    let options = Options::default();
    assert!(options.never_ejects(3).unwrap().contains("less than one host"));
    assert_eq!(options.never_ejects(10), None);
    assert_eq!(Options { always_eject_one_host: true, ..options.clone() }.never_ejects(1), None);
    let nothing = Options { consecutive_5xx: 0, max_ejection_percent: 100, ..options };
    assert!(nothing.never_ejects(4).unwrap().contains("nothing is both detected and enforced"));
    assert_eq!(nothing.never_ejects(5), None, "success rates");
}

#[test]
fn an_ejection_lasts_longer_each_time_up_to_the_limit_and_shorter_after_good_behaviour() {
    let options = Options { max_ejection_time: 75 * SECOND, ..all_may_go() };
    let mut rig = Rig::new(2, options);
    let mut lasted = Vec::new();
    for _ in 0..4 {
        rig.answers(0, &[500; 5]);
        let since = rig.now;
        while rig.ejected() == [0] {
            rig.sweep(10 * SECOND);
        }
        lasted.push((rig.now - since).as_secs());
    }
    // 30, 60, and then 75 s, which a sweep notices after 80.
    assert_eq!(lasted, [30, 60, 80, 80]);
    for _ in 0..10 {
        rig.sweep(10 * SECOND);
    }
    assert!(!Detector::remembers(&rig.hosts));
    rig.answers(0, &[500; 5]);
    rig.sweep(20 * SECOND);
    assert_eq!(rig.ejected(), [0]);
    let back = rig.sweep(10 * SECOND);
    assert_eq!((back[0].action, back[0].ejections, back[0].since), (Action::Returned, 5, Some(30 * SECOND)));
}

#[test]
fn success_rates_are_judged_as_in_the_documented_example() {
    let mut rig = Rig::new(5, Options { consecutive_5xx: 0, ..all_may_go() });
    for host in 0..5 {
        for request in 0..100 {
            let status = if host == 0 && request % 2 == 0 { 500 } else { 200 };
            rig.take(host, Outcome::Answered(status));
        }
    }
    let events = rig.sweep(10 * SECOND);
    assert_eq!(rig.detector.rates(Origin::External), Rates { average: 90.0, threshold: 52.0 });
    assert_eq!((events.len(), events[0].kind, events[0].rate), (1, Kind::SuccessRate, 50.0));
    assert_eq!(rig.ejected(), [0]);
    rig.sweep(10 * SECOND);
    assert_eq!(rig.detector.rates(Origin::External), Rates { average: -1.0, threshold: -1.0 });
}

#[test]
fn failure_percentages_need_volume_and_hosts() {
    let mut options = Options { consecutive_5xx: 0, success_rate_minimum_hosts: 99, ..all_may_go() };
    options.enforcing[Kind::FailurePercentage as usize] = 100;
    let mut rig = Rig::new(5, options);
    let ask = |rig: &mut Rig, volume: u32| {
        for host in 0..5 {
            for request in 0..volume {
                let status = if host == 3 && request * 100 < volume * 85 { 500 } else { 200 };
                rig.take(host, Outcome::Answered(status));
            }
        }
        rig.sweep(10 * SECOND).iter().map(|event| (event.kind, event.action)).collect::<Vec<_>>()
    };
    assert_eq!(ask(&mut rig, 40), [], "too few requests");
    assert_eq!(ask(&mut rig, 100), [(Kind::FailurePercentage, Action::Ejected)]);
    assert_eq!(rig.ejected(), [3]);
    assert_eq!(ask(&mut rig, 100), [], "four hosts are too few");
}

#[test]
fn a_host_that_calls_itself_degraded_is_so_for_a_while_and_never_out() {
    let mut rig = Rig::new(2, Options { detect_degraded: true, ..Options::default() });
    let host = rig.hosts[0].clone();
    assert_eq!(rig.detector.degraded(&host, rig.now).unwrap().action, Action::Degraded);
    assert!(rig.detector.degraded(&host, rig.now).is_none());
    assert!(rig.sweep(20 * SECOND).is_empty());
    assert_eq!(rig.sweep(10 * SECOND)[0].action, Action::Restored);
    assert!(!host.shared.health.has(HealthFlags::DEGRADED_OUTLIER_DETECTION));
}

#[test]
fn a_successful_check_brings_a_host_back() {
    let mut rig = Rig::new(2, all_may_go());
    rig.answers(0, &[500; 5]);
    let host = rig.hosts[0].clone();
    host.shared.health.set(HealthFlags::FAILED_ACTIVE_HC);
    assert!(rig.detector.checked(&host, rig.now).is_none(), "its checks fail as well");
    host.shared.health.clear(HealthFlags::FAILED_ACTIVE_HC);
    assert_eq!(rig.detector.checked(&host, rig.now).unwrap().action, Action::Returned);
    assert!(rig.ejected().is_empty());
}

#[test]
fn the_event_log_has_envoys_lines() {
    let mut rig = Rig::new(2, all_may_go());
    let time = UNIX_EPOCH + Duration::from_millis(1_795_281_763_235);
    rig.answers(0, &[500; 4]);
    let event = rig.take(0, Outcome::Answered(500)).remove(0);
    assert_eq!(
        events::line("a", &event, time).unwrap(),
        "{\"type\":\"CONSECUTIVE_5XX\",\"timestamp\":\"2026-11-21T17:22:43.235Z\",\"cluster_name\":\"a\",\
         \"upstream_url\":\"10.0.0.1:1\",\"action\":\"EJECT\",\"num_ejections\":1,\"enforced\":true,\
         \"eject_consecutive_event\":{}}\n"
    );
    let back = rig.sweep(30 * SECOND).remove(0);
    assert_eq!(
        events::line("a", &back, UNIX_EPOCH + Duration::from_secs(1_795_281_763)).unwrap(),
        "{\"type\":\"CONSECUTIVE_5XX\",\"timestamp\":\"2026-11-21T17:22:43Z\",\"secs_since_last_action\":\"30\",\
         \"cluster_name\":\"a\",\"upstream_url\":\"10.0.0.1:1\",\"action\":\"UNEJECT\",\"num_ejections\":1,\
         \"enforced\":false}\n"
    );
    let capped = Event { action: Action::Capped { ejected: 0, hosts: 3 }, ..event };
    assert_eq!(events::line("a", &capped, SystemTime::now()), None, "Envoy does not log it");
}

/// Hosts that fall ill and recover, for hours of virtual time. `OUTRIGGER_SEED` repeats one run.
#[test]
fn whatever_hosts_do_the_cap_holds_and_who_recovers_comes_back() {
    let seeds = match std::env::var("OUTRIGGER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..60u64,
    };
    for seed in seeds {
        simulate(seed);
    }
}

fn simulate(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut options = Options {
        max_ejection_percent: rng.u32(0..=100),
        always_eject_one_host: rng.bool(),
        split: rng.bool(),
        consecutive_5xx: rng.u32(0..6),
        consecutive_gateway_failure: rng.u32(0..6),
        success_rate_minimum_hosts: rng.u32(1..6),
        success_rate_request_volume: rng.u32(1..50),
        failure_percentage_request_volume: rng.u32(1..50),
        max_ejection_time_jitter: rng.u32(0..3) * SECOND,
        max_ejection_time: (30 + rng.u32(0..200)) * SECOND,
        ..Options::default()
    };
    for percent in &mut options.enforcing {
        *percent = rng.u32(0..=100);
    }
    let most = options.max_ejection_time + options.max_ejection_time_jitter + 2 * options.interval;
    let hosts = rng.u16(1..40);
    let mut rig = Rig::new(hosts, options);
    let mut ill = vec![false; hosts.into()];
    let mut out: Vec<(u32, Instant)> = vec![(0, rig.now); hosts.into()];
    for _ in 0..720 {
        for (host, ill) in ill.iter_mut().enumerate() {
            if rng.u32(0..50) == 0 {
                *ill = !*ill;
            }
            for _ in 0..rng.u32(0..30) {
                let bad = if *ill { rng.u32(0..10) > 0 } else { rng.u32(0..500) == 0 };
                let outcome = match (bad, rng.u32(0..4)) {
                    (false, _) => Outcome::Answered(200),
                    (true, 0) => Outcome::Failed { connected: rng.bool() },
                    (true, 1) => Outcome::TimedOut { connected: true, status: 504 },
                    (true, _) => Outcome::Answered(rng.u16(500..506)),
                };
                // A host that is out gets no requests.
                if !is_ejected(&rig.hosts[host]) {
                    rig.take(host, outcome);
                }
            }
        }
        let (interval, allowed) = (rig.options.interval, rig.options.most_ejected(hosts.into()));
        assert!(
            rig.ejected().len() <= allowed,
            "seed {seed}: {} of {hosts}, {allowed} may",
            rig.ejected().len()
        );
        for (host, out) in out.iter_mut().enumerate() {
            let ejections = rig.hosts[host].shared.outlier.get().unwrap().record().ejections;
            if out.0 != ejections {
                *out = (ejections, rig.now);
            }
            if is_ejected(&rig.hosts[host]) {
                let since = rig.now - out.1;
                assert!(since <= most, "seed {seed}: host {host} is out since {since:?}");
            }
        }
        rig.sweep(interval);
    }
}
