//! Checks as they run on the control thread: one task for each cluster, and one for each of its hosts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, Notify};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::probe::{Prober, Reply};
use super::session::{initial_delay, next_interval, Failure, Session, Transition, Verdict};
use super::{events, is_checked, is_checked_actively, key, Checks};
use crate::config::cluster::{Discovery, HealthFlags};
use crate::config::{Cluster, Host};
use crate::upstream::dns;
use crate::upstream::orca::out_of_band;

/// Whether somebody must look after the cluster's hosts: its names are to be resolved, or its hosts checked or asked for
/// their load.
pub fn is_followed(cluster: &Cluster) -> bool {
    is_dns(cluster) || is_checked_actively(cluster) || out_of_band::is_wanted(cluster)
}

fn is_dns(cluster: &Cluster) -> bool {
    matches!(cluster.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_))
}

/// Resolves the cluster's names, checks its hosts and asks them for their load, as far as config asks for any of it,
/// until it is dropped. Tells `first` when each name was answered once, and then each host.
pub async fn follow(cluster: Arc<Cluster>, first: oneshot::Sender<()>) {
    let reports = out_of_band::follow(cluster.clone());
    tokio::join!(watch(cluster, first), reports);
}

async fn watch(cluster: Arc<Cluster>, first: oneshot::Sender<()>) {
    match (is_dns(&cluster), is_checked_actively(&cluster)) {
        (true, false) => dns::follow_announcing(cluster, first).await,
        (false, _) => check(cluster, first).await,
        (true, true) => {
            let (named, names) = oneshot::channel();
            let checking = cluster.clone();
            let checking = async move {
                let _ = dns::first_resolution(names).await;
                check(checking, first).await;
            };
            tokio::join!(dns::follow_announcing(cluster, named), checking);
        }
    }
}

/// Waits for what [`follow`] tells, as long as that may take where all goes well.
pub async fn warmed(cluster: &Cluster, first: oneshot::Receiver<()>) {
    let checks = cluster.health.as_ref().and_then(|health| health.checks.as_ref());
    let Some(checks) = checks else {
        let _ = dns::first_resolution(first).await;
        return;
    };
    let options = &checks.options;
    let names = if is_dns(cluster) { Duration::from_secs(5) } else { Duration::ZERO };
    let most = options.timeout.saturating_add(options.initial_jitter).saturating_add(Duration::from_secs(1));
    let _ = timeout(most.saturating_add(names), first).await;
}

/// A host that is checked.
struct Running {
    /// Keeps its key from being given to another.
    host: Arc<Host>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Checks the hosts of `cluster`; tells `first` when each was checked once.
async fn check(cluster: Arc<Cluster>, first: oneshot::Sender<()>) {
    let Some(checks) = checks(&cluster) else { return };
    let Some(policy) = cluster.hosts.policy() else { return };
    let mut first = Some(first);
    let mut running: HashMap<usize, Running> = HashMap::new();
    let mut waiting = HashSet::new();
    let (sender, mut answered) = mpsc::unbounded_channel();
    loop {
        let set = cluster.hosts.load_full();
        let present: HashMap<usize, &Arc<Host>> =
            set.all.iter().filter(|host| is_checked(host)).map(|host| (key(host), host)).collect();
        running.retain(|key, running| {
            // Another description of a host is a change of its counters' owner only if it is another host.
            let stays = present.get(key).is_some_and(|host| Arc::ptr_eq(&host.shared, &running.host.shared));
            if !stays {
                waiting.remove(key);
                checks.leave(*key);
            }
            stays
        });
        for (key, host) in present {
            running.entry(key).or_insert_with(|| {
                waiting.insert(key);
                let notify = checks.enter(host);
                let task = check_host(cluster.clone(), host.clone(), notify, sender.clone());
                Running { host: host.clone(), task: tokio::spawn(task) }
            });
        }
        checks.publish(&cluster);
        if waiting.is_empty() {
            if let Some(first) = first.take() {
                // Nobody need wait for it.
                let _ = first.send(());
            }
        }
        tokio::select! {
            () = policy.changed.notified() => {}
            Some(key) = answered.recv() => {
                waiting.remove(&key);
                while let Ok(key) = answered.try_recv() {
                    waiting.remove(&key);
                }
            }
        }
    }
}

fn checks(cluster: &Cluster) -> Option<&Checks> {
    cluster.health.as_ref()?.checks.as_ref()
}

/// Checks one host until it is dropped; tells `first` its key after the first answer.
async fn check_host(
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    passive: Arc<Notify>,
    first: mpsc::UnboundedSender<usize>,
) {
    let Some(checks) = checks(&cluster) else { return };
    let options = &checks.options;
    let stats = checks.stats(&cluster.stat_name);
    let mut rng = fastrand::Rng::new();
    let mut session = Session::default();
    let mut prober = Prober::new(cluster.clone(), host.clone());
    let mut delay = initial_delay(options, &mut rng);
    let tell = |verdict: &Verdict| {
        if verdict.first {
            let _ = first.send(key(&host));
        }
    };
    loop {
        let mut pause = std::pin::pin!(sleep(delay));
        let broke = loop {
            tokio::select! {
                () = &mut pause => break false,
                () = prober.broken(options) => break true,
                () = passive.notified() => {
                    tell(&fail(&cluster, checks, &host, &mut session, Failure::Passive));
                }
            }
        };
        let reply = if broke {
            Reply::from(Err(Failure::Network))
        } else {
            stats.attempt.increment(1);
            let mut asked = std::pin::pin!(timeout(options.timeout, prober.check(options)));
            loop {
                tokio::select! {
                    reply = &mut asked => break reply.unwrap_or(Reply::from(Err(Failure::Timeout))),
                    () = passive.notified() => {
                        tell(&fail(&cluster, checks, &host, &mut session, Failure::Passive));
                    }
                }
            }
        };
        if reply.verified {
            stats.verify_cluster.increment(1);
        }
        if reply.exclude {
            host.shared.health.set(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
        }
        let verdict = match reply.result {
            Ok(degraded) => {
                let verdict = session.succeeded(&host.shared.health, degraded, options);
                stats.success.increment(1);
                conclude(&cluster, checks, &host, &verdict);
                if let Some(outlier) = cluster.health.as_ref().and_then(|health| health.outlier.as_ref()) {
                    outlier.checked(&cluster, &host);
                }
                verdict
            }
            Err(failure) => fail(&cluster, checks, &host, &mut session, failure),
        };
        tell(&verdict);
        let used = checks.is_used(&cluster);
        delay = next_interval(options, reply.result.is_ok(), verdict.transition, used, &mut rng);
    }
}

fn fail(
    cluster: &Cluster,
    checks: &Checks,
    host: &Arc<Host>,
    session: &mut Session,
    failure: Failure,
) -> Verdict {
    let verdict = session.failed(&host.shared.health, failure, &checks.options);
    let stats = checks.stats(&cluster.stat_name);
    stats.failure.increment(1);
    match failure {
        Failure::Network | Failure::Timeout => stats.network_failure.increment(1),
        Failure::Passive => stats.passive_failure.increment(1),
        Failure::Active { .. } => {}
    }
    conclude(cluster, checks, host, &verdict);
    verdict
}

/// Publishes what an answer changed.
fn conclude(cluster: &Cluster, checks: &Checks, host: &Arc<Host>, verdict: &Verdict) {
    events::log(&checks.options, cluster, host, &verdict.notes);
    if verdict.transition != Transition::Changed {
        return;
    }
    let failed = host.shared.health.has(HealthFlags::FAILED_ACTIVE_HC);
    if failed {
        host.shared.note_failure();
    }
    if failed && host.shared.health.has(HealthFlags::PENDING_DYNAMIC_REMOVAL) {
        // Only its checks kept it.
        cluster.hosts.remove(&host.shared);
        cluster.stats().membership_change.increment(1);
    } else {
        cluster.hosts.health_changed();
    }
    checks.publish(cluster);
    dns::publish_membership(cluster);
}
