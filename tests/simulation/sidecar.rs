//! One sidecar through the hour. Its load balancer, priorities, outlier detection, checks, breakers and suspicions are
//! the proxy's own state machines, told a virtual time; what the network does to a try is made up here.
//!
//! What must never be is asserted where it could happen first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::config::cluster::{Address, Health, HealthFlags, HostTemplate};
use outrigger::config::compile::bootstrap::NodeOptions;
use outrigger::config::{Cluster, Host, HostSet};
use outrigger::upstream::balancing::suspect;
use outrigger::upstream::health::session::{Failure, Session, Transition};
use outrigger::upstream::health::Checks;
use outrigger::upstream::outlier::Outcome;
use outrigger::upstream::permit::{RequestPermit, RetryPermit};
use outrigger::upstream::pick::{Ground, Picker};
use outrigger::upstream::PickContext;
use outrigger_control_api::load_value;
use serde_json::json;

use crate::world::{State, Time, World, END, MILLI, OUTAGE, SECOND};

/// `max_ejection_percent`.
const MOST_EJECTED: usize = 10;
/// `max_ejection_time` of outlier detection.
const LONGEST_EJECTION: Time = 300 * SECOND;
/// Its `interval`, and that of checks.
const INTERVAL: Time = 10 * SECOND;
/// The longest pause of a suspect host, in milliseconds.
const LONGEST_PAUSE: u64 = 30_000;
/// `connect_timeout`.
const CONNECT: Time = 500 * MILLI;
/// `per_try_timeout`; without a retry policy the timeout of the route.
const TRY: Time = SECOND;
const RETRIES: u32 = 2;
/// `max_requests`.
const MOST_REQUESTS: u32 = 64;
/// `retry_budget`: percent, and how many are always allowed.
const BUDGET: (f64, f64) = (20.0, 3.0);
/// After the outage, nobody may hold anything against a host of the zone for longer.
pub const RECOVERY: Time = LONGEST_EJECTION + 2 * INTERVAL;

/// What is switched on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Means {
    pub outliers: bool,
    pub retries: bool,
    pub suspects: bool,
    pub checks: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Requests by the second in which they came, those of them that were lost, and first tries in the zone that is lost.
    pub sent: Vec<u32>,
    pub lost: Vec<u32>,
    pub zone: Vec<u32>,
    pub tries: u64,
    pub retries: u64,
    /// Retries that the budget refused, and requests that a breaker did.
    pub over_budget: u64,
    pub overflow: u64,
    /// The most hosts that were ejected at a time.
    pub ejected: usize,
    pub suspected: u64,
    /// The same for the same seed.
    pub digest: u64,
}

impl Report {
    pub fn add(&mut self, other: &Report) {
        for (sum, more) in
            [(&mut self.sent, &other.sent), (&mut self.lost, &other.lost), (&mut self.zone, &other.zone)]
        {
            sum.resize(more.len().max(sum.len()), 0);
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        self.tries += other.tries;
        self.retries += other.retries;
        self.over_budget += other.over_budget;
        self.overflow += other.overflow;
        self.ejected = self.ejected.max(other.ejected);
        self.suspected += other.suspected;
        self.digest ^= other.digest;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Try(u32),
    End(u32, End),
    Sweep,
    Check(u32),
    /// A connection that carries nothing, to find out about a suspect host, is there or is not.
    Asked(u32),
    Judge,
}

/// How a try ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Answered(u16),
    Unreached,
    Late,
}

/// A request that is not over.
#[derive(Default)]
struct Request {
    second: usize,
    left: u32,
    paused: u32,
    /// The hosts of its tries, the last one last.
    tried: Vec<u32>,
    permit: Option<RequestPermit>,
    waits: bool,
    retry: Option<RetryPermit>,
}

/// A sidecar.
pub struct Sidecar {
    world: World,
    means: Means,
    rng: fastrand::Rng,
    cluster: Arc<Cluster>,
    hosts: Vec<Arc<Host>>,
    start: Instant,
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, Event)>>,
    events: u64,
    /// Requests a second.
    rate: f64,
    set: Arc<HostSet>,
    picker: Picker,
    requests: Vec<Request>,
    free: Vec<u32>,
    /// Hosts to which a connection is open.
    pooled: Vec<bool>,
    sessions: Vec<Session>,
    ejected_at: Vec<Option<Time>>,
    /// When a suspect host last failed or was last asked, in milliseconds.
    heard_of: Vec<u64>,
    suspects: usize,
    active: u32,
    retrying: u32,
    /// Picks of the second priority: what was to be expected, its variance, and what was.
    second: (f64, f64, f64),
    report: Report,
}

fn cluster(means: Means) -> Arc<Cluster> {
    let mut cluster = json!({
        "name": "origin", "connect_timeout": "0.5s", "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": "origin"},
        "circuit_breakers": {"thresholds": [{"max_requests": MOST_REQUESTS, "retry_budget": {
            "budget_percent": {"value": BUDGET.0}, "min_retry_concurrency": BUDGET.1 as u32}}]}});
    if means.outliers {
        cluster["outlier_detection"] = json!({"consecutive_5xx": 3, "interval": "10s", "base_ejection_time": "30s",
            "max_ejection_time": "300s", "max_ejection_percent": MOST_EJECTED,
            "successful_active_health_check_uneject_host": false});
    }
    if means.checks {
        cluster["health_checks"] = json!([{"timeout": "1s", "interval": "10s", "unhealthy_threshold": 2,
            "healthy_threshold": 2, "http_health_check": {"path": "/"}}]);
    }
    let loaded = load_value(&json!({"static_resources": {"clusters": [cluster]}}))
        .unwrap_or_else(|problems| panic!("{problems:?}"));
    let config = outrigger::config::compile::bootstrap(loaded, &NodeOptions::default())
        .unwrap_or_else(|problems| panic!("{problems:?}"));
    config.clusters.find("origin").and_then(|slot| slot.wake()).expect("the cluster")
}

fn picker(cluster: &Cluster, set: &HostSet, rng: &mut fastrand::Rng) -> Picker {
    Picker::new(&cluster.balancing, &set.split, cluster.overprovisioning, rng)
}

fn checks(cluster: &Cluster) -> &Checks {
    cluster.health.as_ref().and_then(|health| health.checks.as_ref()).expect("active health checks")
}

impl Sidecar {
    /// Most sidecars have few requests; few have many.
    pub fn new(seed: u64, world: World, means: Means) -> Sidecar {
        // Detectors draw from this thread's numbers.
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let rate = match rng.u32(0..100) {
            0 => 200.0,
            1..10 => 20.0,
            _ => 4.0,
        };
        let cluster = cluster(means);
        let host = |number: usize| {
            let ip = [10, (number >> 16) as u8, (number >> 8) as u8, number as u8];
            let template =
                HostTemplate { weight: 1, priority: world.priority(number), ..HostTemplate::default() };
            Host::new(Address::Ip((ip, 80).into()), template)
        };
        let hosts: Vec<_> = (0..world.hosts).map(host).collect();
        cluster.hosts.store(HostSet::new(hosts.clone(), cluster.split_options()));
        let set = cluster.hosts.load_full();
        let seconds = || vec![0; END as usize];
        let report = Report { sent: seconds(), lost: seconds(), zone: seconds(), ..Report::default() };
        let mut sidecar = Sidecar {
            picker: picker(&cluster, &set, &mut rng),
            sessions: (0..world.hosts).map(|_| Session::default()).collect(),
            pooled: vec![false; world.hosts],
            ejected_at: vec![None; world.hosts],
            heard_of: vec![0; world.hosts],
            world,
            means,
            rng,
            cluster,
            hosts,
            start: Instant::now(),
            now: 0,
            queue: BinaryHeap::new(),
            events: 0,
            rate,
            set,
            requests: Vec::new(),
            free: Vec::new(),
            suspects: 0,
            active: 0,
            retrying: 0,
            second: (0.0, 0.0, 0.0),
            report,
        };
        sidecar.begin();
        sidecar
    }

    /// The whole hour.
    pub fn run(mut self) -> Report {
        while let Some(Reverse((time, _, event))) = self.queue.pop() {
            if time >= END * SECOND {
                break;
            }
            self.now = time;
            match event {
                Event::Arrival => self.arrival(),
                Event::Try(request) => self.attempt(request),
                Event::End(request, end) => self.ended(request, end),
                Event::Sweep => self.sweep(),
                Event::Check(host) => self.check(host),
                Event::Asked(host) => self.asked(host),
                Event::Judge => self.judge(),
            }
        }
        let (expected, variance, found) = self.second;
        let far = (found - expected).abs() / variance.sqrt().max(1.0);
        assert!(
            far < 6.0,
            "{found} picks of the second priority, expected {expected:.0} (off by {far:.1} sigma)"
        );
        self.report
    }

    fn begin(&mut self) {
        if self.means.checks {
            let cluster = self.cluster.clone();
            let options = &checks(&cluster).options;
            // Every host is well at the start, and its first check says so.
            let mut sessions = std::mem::take(&mut self.sessions);
            for (host, session) in self.hosts.iter().zip(&mut sessions) {
                session.succeeded(&host.shared.health, false, options);
            }
            self.sessions = sessions;
            self.cluster.hosts.health_changed();
            for host in 0..self.hosts.len() {
                self.plan_check(host, true);
            }
        }
        if self.means.outliers {
            let first = self.rng.u64(1..INTERVAL);
            self.at(first, Event::Sweep);
        }
        self.at(OUTAGE.1 * SECOND + RECOVERY, Event::Judge);
        self.next_arrival();
    }

    fn at(&mut self, time: Time, event: Event) {
        self.events += 1;
        self.queue.push(Reverse((time, self.events, event)));
    }

    fn clock(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    /// As the suspicion of a host has it.
    fn millis(&self) -> u64 {
        self.now / MILLI + 1
    }

    fn next_arrival(&mut self) {
        let gap = -(1.0 - self.rng.f64()).ln() / self.rate;
        self.at(self.now + (gap * SECOND as f64) as Time, Event::Arrival);
    }

    fn arrival(&mut self) {
        self.next_arrival();
        let second = (self.now / SECOND) as usize;
        self.report.sent[second] += 1;
        let left = if self.means.retries { RETRIES } else { 0 };
        let request = Request { second, left, ..Request::default() };
        let number = match self.free.pop() {
            Some(number) => {
                self.requests[number as usize] = request;
                number
            }
            None => {
                self.requests.push(request);
                self.requests.len() as u32 - 1
            }
        };
        self.attempt(number);
    }

    /// Follows a change of health, as a worker does with its next pick.
    fn follow(&mut self) {
        if Arc::ptr_eq(&self.set, &self.cluster.hosts.load()) {
            return;
        }
        self.set = self.cluster.hosts.load_full();
        self.picker = picker(&self.cluster, &self.set, &mut self.rng);
        self.survey();
    }

    /// Looks at all hosts. A host that is out for two reasons is sorted as before when one of them ends.
    fn survey(&mut self) {
        let mut ejected = 0;
        for (number, host) in self.hosts.iter().enumerate() {
            let out = host.shared.health.has(HealthFlags::FAILED_OUTLIER_CHECK);
            ejected += usize::from(out);
            self.ejected_at[number] = out.then(|| self.ejected_at[number].unwrap_or(self.now));
            // Connections to a host that was found to have failed are not used on.
            self.pooled[number] &= host.health() != Health::Unhealthy;
        }
        assert!(100 * ejected <= MOST_EJECTED * self.hosts.len(), "{ejected} hosts are ejected");
        self.report.ejected = self.report.ejected.max(ejected);
    }

    fn pick(&mut self, tried: &[u32]) -> Option<u32> {
        self.follow();
        let reject = |host: &Host| {
            tried.iter().any(|tried| Arc::ptr_eq(&self.hosts[*tried as usize].shared, &host.shared))
        };
        let first = tried.is_empty();
        let context = PickContext {
            reject: if first { None } else { Some(&reject) },
            repicks: 5,
            ..PickContext::default()
        };
        let ground = Ground { all: &self.set.all, split: &self.set.split, now: 0 };
        let picked = self.picker.pick(ground, &context, &mut self.rng)?;
        let panicked = self.picker.panicked();
        let healthy = self.hosts[picked].health() == Health::Healthy;
        assert!(healthy || panicked, "{}: picked host {picked}, which is out", self.now);
        if first && self.suspects == 0 && !panicked {
            let share = f64::from(self.set.split.load.get(1).map_or(0, |load| load.healthy)) / 100.0;
            self.second.0 += share;
            self.second.1 += share * (1.0 - share);
            self.second.2 += f64::from(self.world.priority(picked));
        }
        if let Some(suspect) = self.picker.take_suspect() {
            self.look_into(suspect);
        }
        Some(picked as u32)
    }

    fn look_into(&mut self, suspect: u32) {
        let now = self.millis();
        let heard = &mut self.heard_of[suspect as usize];
        if suspect::may_ask(&self.hosts[suspect as usize], now) {
            *heard = now;
            let takes = match self.world.state(suspect as usize, self.now) {
                State::Gone => CONNECT,
                _ => MILLI,
            };
            self.at(self.now + takes, Event::Asked(suspect));
        } else {
            assert!(now < *heard + LONGEST_PAUSE, "nobody may ask host {suspect} since {heard} ms");
        }
    }

    fn asked(&mut self, suspect: u32) {
        let state = self.world.state(suspect as usize, self.now);
        if !matches!(state, State::Gone | State::Refuses) && suspect::answered(&self.hosts[suspect as usize])
        {
            self.suspects -= 1;
        }
    }

    fn attempt(&mut self, number: u32) {
        let mut tried = std::mem::take(&mut self.requests[number as usize].tried);
        let picked = self.pick(&tried);
        let Some(picked) = picked else {
            return self.over(number, false);
        };
        self.report.tries += 1;
        let mut digest = self.report.digest ^ (u64::from(picked) << 32) ^ self.now;
        digest = digest.wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        self.report.digest = digest;
        let host = picked as usize;
        if tried.is_empty() && self.world.is_hit(host) {
            self.report.zone[self.requests[number as usize].second] += 1;
        }
        tried.push(picked);
        self.requests[number as usize].tried = tried;
        let state = self.world.state(host, self.now);
        // Connections to a process that died are closed, and that shows before they are used.
        self.pooled[host] &= state != State::Refuses;
        let unreached = match state {
            State::Gone if !self.pooled[host] => Some(CONNECT),
            State::Refuses => Some(MILLI),
            _ => None,
        };
        if let Some(takes) = unreached {
            assert!(self.cluster.breakers[0].pending.try_take(), "a thousand wait for connections");
            self.requests[number as usize].waits = true;
            return self.at(self.now + takes, Event::End(number, End::Unreached));
        }
        if !self.pooled[host] && self.hosts[host].shared.health.has(HealthFlags::SUSPECT) {
            suspect::reached(&self.hosts[host]);
            self.suspects -= 1;
        } else if !self.pooled[host] {
            suspect::reached(&self.hosts[host]);
        }
        self.pooled[host] = !matches!(state, State::Gone | State::Slow);
        let Some(permit) = RequestPermit::take(&self.cluster, 0, &self.hosts[host]) else {
            assert_eq!(self.active, MOST_REQUESTS, "refused below the limit");
            self.report.overflow += 1;
            return self.over(number, false);
        };
        self.active += 1;
        assert!(self.active <= MOST_REQUESTS, "more requests than max_requests");
        self.requests[number as usize].permit = Some(permit);
        let (end, takes) = match state {
            State::Gone | State::Slow => (End::Late, TRY),
            _ => {
                let bad = state == State::Fails || self.rng.u32(0..10_000) == 0;
                let takes = 2 * MILLI + self.rng.u64(0..6 * MILLI);
                (End::Answered(if bad { 503 } else { 200 }), takes)
            }
        };
        self.at(self.now + takes, Event::End(number, end));
    }

    fn ended(&mut self, number: u32, end: End) {
        let request = &mut self.requests[number as usize];
        self.active -= u32::from(request.permit.take().is_some());
        if std::mem::take(&mut request.waits) {
            self.cluster.breakers[0].pending.release();
        }
        let tried = *request.tried.last().expect("the host of the try");
        let host = self.hosts[tried as usize].clone();
        let outcome = match end {
            End::Answered(status) => Outcome::Answered(status),
            End::Unreached => Outcome::Failed { connected: false },
            End::Late => Outcome::TimedOut { connected: true, status: 504 },
        };
        if end == End::Unreached && self.means.suspects {
            let now = self.millis();
            self.heard_of[tried as usize] = now;
            if suspect::failed(&host, now) {
                self.suspects += 1;
                self.report.suspected += 1;
            }
        }
        if let Some(outlier) = self.cluster.health.as_ref().and_then(|health| health.outlier.as_ref()) {
            let now = self.clock();
            outlier.report_at(&self.cluster, &host, outcome, || now);
        }
        if end == End::Answered(200) {
            return self.over(number, true);
        }
        self.retry(number);
    }

    fn retry(&mut self, number: u32) {
        let request = &mut self.requests[number as usize];
        // The retry that has just ended makes room for the next.
        self.retrying -= u32::from(request.retry.take().is_some());
        if request.left == 0 {
            return self.over(number, false);
        }
        request.left -= 1;
        let in_flight = self.active + self.cluster.breakers[0].pending.used();
        let allowed = (f64::from(in_flight) * BUDGET.0 / 100.0).floor().max(BUDGET.1);
        let Some(permit) = RetryPermit::take(&self.cluster, 0) else {
            assert!(
                f64::from(self.retrying) >= allowed,
                "{} of {allowed} retries, and no more",
                self.retrying
            );
            self.report.over_budget += 1;
            return self.over(number, false);
        };
        self.retrying += 1;
        assert!(f64::from(self.retrying) <= allowed, "{} retries, {allowed} allowed", self.retrying);
        self.report.retries += 1;
        request.retry = Some(permit);
        let interval = ((25 * MILLI) << request.paused).min(250 * MILLI);
        request.paused += 1;
        let pause = self.rng.u64(0..interval);
        self.at(self.now + pause, Event::Try(number));
    }

    fn over(&mut self, number: u32, well: bool) {
        let request = &mut self.requests[number as usize];
        self.retrying -= u32::from(request.retry.take().is_some());
        if !well {
            self.report.lost[request.second] += 1;
        }
        self.free.push(number);
    }

    fn sweep(&mut self) {
        self.at(self.now + INTERVAL, Event::Sweep);
        let outlier = self.cluster.health.as_ref().and_then(|health| health.outlier.as_ref());
        outlier.expect("outlier detection").sweep(&self.cluster, self.clock());
        self.survey();
        let longest = LONGEST_EJECTION + INTERVAL;
        for (host, since) in self.ejected_at.iter().enumerate() {
            let out = since.map_or(0, |since| self.now - since);
            assert!(out <= longest, "host {host} is ejected since {} s", out / SECOND);
        }
    }

    /// Checks of a host that found what they found before change nothing; the next that matters is the first after
    /// its state may have changed.
    fn plan_check(&mut self, host: usize, quiet: bool) {
        let after = match quiet {
            true => self.world.next_change(host, self.now),
            false => Some(self.now + 1),
        };
        let Some(after) = after else { return };
        let offset = host as Time * 7_919 * MILLI % INTERVAL;
        let check = (after + INTERVAL - 1 - offset) / INTERVAL * INTERVAL + offset;
        self.at(check, Event::Check(host as u32));
    }

    fn check(&mut self, number: u32) {
        let number = number as usize;
        let failure = match self.world.state(number, self.now) {
            // It is the application that fails, and its check does not notice.
            State::Well | State::Fails => None,
            State::Gone | State::Slow => Some(Failure::Timeout),
            State::Refuses => Some(Failure::Network),
        };
        let cluster = self.cluster.clone();
        let options = &checks(&cluster).options;
        let mut session = std::mem::take(&mut self.sessions[number]);
        let flags = &self.hosts[number].shared.health;
        let verdict = match failure {
            None => session.succeeded(flags, false, options),
            Some(failure) => session.failed(flags, failure, options),
        };
        self.sessions[number] = session;
        if verdict.transition == Transition::Changed {
            self.cluster.hosts.health_changed();
            self.follow();
        }
        let failed = self.hosts[number].shared.health.has(HealthFlags::FAILED_ACTIVE_HC);
        self.plan_check(number, failed == failure.is_some());
    }

    /// The outage is over for long enough. (A host may be out for what it did later.)
    fn judge(&mut self) {
        let last = OUTAGE.1 * SECOND + TRY;
        let held = |(number, host): (usize, &Arc<Host>)| {
            let since = self.ejected_at[number].is_some_and(|since| since <= last);
            let failed = since || host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC);
            self.world.is_hit(number) && failed
        };
        let held = self.hosts.iter().enumerate().filter(|one| held(*one)).count();
        assert_eq!(held, 0, "hosts of the zone are out {} s after its return", RECOVERY / SECOND);
    }
}
