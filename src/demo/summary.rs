//! What both sides counted: as lines for a person, and as a verdict.

use std::fmt::Write as _;
use std::net::SocketAddr;

use hdrhistogram::Histogram;

use super::script::{Done, Progress, STEPS};
use super::sidecar::Snapshot;
use super::traffic::Traffic;
use super::Origins;

/// Fewer answers than this prove nothing.
const ENOUGH: u64 = 100;
/// What share of their service's requests each of the three replicas of `users` may get, in percent. Each worker
/// takes turns for itself, so a third is not exact.
const FAIR: std::ops::RangeInclusive<u64> = 20..=47;

/// One replica, as its origin and the sidecar saw it.
pub(super) struct Replica {
    pub(super) service: &'static str,
    pub(super) cluster: &'static str,
    pub(super) name: &'static str,
    /// `None` while it is scaled away.
    pub(super) address: Option<SocketAddr>,
    /// What the origin counted.
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// What the sidecar counted for it, since it last came.
    pub(super) seen: u64,
    pub(super) seen_errors: u64,
    /// Answers that clients got from it.
    pub(super) answers: u64,
}

/// Everything counted since the start.
pub(super) struct Totals {
    /// Answers of any status, the right ones among them, and requests without one.
    pub(super) answers: u64,
    pub(super) right: u64,
    pub(super) lost: u64,
    /// Requests that did not get the right answer.
    pub(super) failed: u64,
    /// `503: 2, 404: 1`
    pub(super) others: String,
    pub(super) replicas: Vec<Replica>,
    pub(super) echo_sent: u64,
    pub(super) echo_back: u64,
    pub(super) echo_broken: u64,
    pub(super) echo_connections: u64,
    /// Bytes the echo service itself sent.
    pub(super) echo_served: u64,
    pub(super) sidecar: Snapshot,
    /// Latencies since the start, in microseconds.
    pub(super) latencies: Option<Histogram<u64>>,
}

impl Totals {
    pub(super) fn new(traffic: &Traffic, origins: &Origins, sidecar: Snapshot) -> Self {
        let tally = &traffic.tally;
        let served_by = tally.served_by.borrow();
        let mut others: Vec<String> =
            tally.wrong_status.borrow().iter().map(|(status, count)| format!("{status}: {count}")).collect();
        if tally.wrong_body.get() > 0 {
            others.push(format!("wrong body: {}", tally.wrong_body.get()));
        }
        let replicas = origins.all().map(|origin| Replica {
            service: origin.service,
            cluster: origin.cluster,
            name: origin.name,
            address: origin.address(),
            requests: origin.requests.get(),
            failed: origin.failed.get(),
            seen: origin.address().map_or(0, |address| sidecar.host(address, "rq_total")),
            seen_errors: origin.address().map_or(0, |address| sidecar.host(address, "rq_error")),
            answers: served_by.get(origin.name).copied().unwrap_or_default(),
        });
        Self {
            answers: tally.answers(),
            failed: tally.failed(),
            right: tally.right.get(),
            lost: tally.lost.get(),
            others: others.join(", "),
            replicas: replicas.collect(),
            echo_sent: tally.echo_sent.get(),
            echo_back: tally.echo_back.get(),
            echo_broken: tally.echo_broken.get(),
            echo_connections: tally.echo_connections.get(),
            echo_served: origins.echo.bytes.get(),
            latencies: traffic.latencies(),
            sidecar,
        }
    }

    /// Requests that the cluster's origins received.
    fn received(&self, cluster: &str) -> u64 {
        let of = self.replicas.iter().filter(|replica| replica.cluster == cluster);
        of.map(|replica| replica.requests).sum()
    }

    pub(super) fn retries(&self) -> u64 {
        self.sidecar.stat("cluster.users.upstream_rq_retry")
    }

    /// What is not as it must be once nothing is under way any more; empty when all is.
    pub(super) fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut equal = |what: &str, got: u64, wanted: u64| {
            if got != wanted {
                wrong.push(format!("{what}: {got}, not {wanted}"));
            }
        };
        let stat = |name: &str| self.sidecar.stat(name);
        let failed: u64 = self.replicas.iter().map(|replica| replica.failed).sum();
        equal("requests without an answer", self.lost, 0);
        equal("answers of 200 with the right body", self.right, self.answers);
        equal("the sidecar's answers of 200", stat("http.services.downstream_rq_2xx"), self.answers);
        equal("the sidecar's requests", stat("http.services.downstream_rq_total"), self.answers + self.lost);
        equal("the sidecar's retries", self.retries(), failed);
        equal(
            "requests the origins received",
            self.replicas.iter().map(|r| r.requests).sum(),
            self.answers + failed,
        );
        for cluster in ["web", "checkout/stable", "checkout/canary", "users"] {
            let counted = stat(&format!("cluster.{cluster}.upstream_rq_total"));
            equal(&format!("the sidecar's requests to {cluster}"), counted, self.received(cluster));
        }
        equal("updates that the sidecar refused", self.refused(), 0);
        for replica in &self.replicas {
            // Endpoints that come and go are counted anew each time.
            if replica.service == "users" {
                equal(&format!("the sidecar's requests to {}", replica.name), replica.seen, replica.requests);
                equal(
                    &format!("the sidecar's errors of {}", replica.name),
                    replica.seen_errors,
                    replica.failed,
                );
            }
            equal(
                &format!("answers from {}", replica.name),
                replica.answers,
                replica.requests - replica.failed,
            );
        }
        equal("broken echo connections", self.echo_broken, 0);
        equal("bytes echoed", self.echo_back, self.echo_sent);
        equal("bytes the echo service sent", self.echo_served, self.echo_sent);
        equal(
            "the sidecar's echo connections",
            stat("tcp.services/echo.downstream_cx_total"),
            self.echo_connections,
        );
        equal(
            "bytes the sidecar brought to the echo service",
            stat("tcp.services/echo.downstream_cx_rx_bytes_total"),
            self.echo_sent,
        );
        equal(
            "bytes the sidecar brought back",
            stat("tcp.services/echo.downstream_cx_tx_bytes_total"),
            self.echo_sent,
        );
        if self.answers < ENOUGH {
            wrong.push(format!("only {} answers, fewer than {ENOUGH}", self.answers));
        }
        if self.echo_sent == 0 {
            wrong.push("nothing was sent to the echo service".to_owned());
        }
        for replica in self.replicas.iter().filter(|replica| replica.service == "users") {
            let share = percent(replica.requests, self.received("users"));
            if self.answers >= ENOUGH && !FAIR.contains(&share) {
                wrong.push(format!("{} got {share}% of the requests for users, not about 33%", replica.name));
            }
        }
        wrong
    }

    /// The summary at the end: what each step cost, and everything together.
    pub(super) fn report(&self, progress: &Progress) -> String {
        let mut text = steps(progress);
        let mut line = |line: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        };
        line(String::new());
        line(format!("{:<14} {:<21} {:>9} {:>6}", "endpoint", "address", "requests", "share"));
        for replica in &self.replicas {
            let service = self.replicas.iter().filter(|other| other.service == replica.service);
            let share = percent(replica.requests, service.map(|other| other.requests).sum());
            let address = replica.address.map_or("scaled away".to_owned(), |address| address.to_string());
            line(format!("{:<14} {address:<21} {:>9} {share:>5}%", replica.name, replica.requests));
        }
        line(String::new());
        line(self.retry_line());
        line(format!("echo over TCP: {} bytes sent, {} back", self.echo_sent, self.echo_back));
        line(format!("web and checkout: {}", quantiles(self.latencies.as_ref())));
        line(format!(
            "{} requests, {} answered 200, failed: {}{}",
            self.answers + self.lost,
            self.right,
            self.failed,
            self.failures()
        ));
        text
    }

    /// What hides the replica that fails.
    pub(super) fn retry_line(&self) -> String {
        let stat = |name: &str| self.sidecar.stat(name);
        format!(
            "users-flaky failed {} times, which no client noticed: {} retries, {} of them successful",
            self.replicas.iter().map(|replica| replica.failed).sum::<u64>(),
            self.retries(),
            stat("cluster.users.upstream_rq_retry_success"),
        )
    }

    /// Updates of any type that the sidecar refused.
    fn refused(&self) -> u64 {
        let stat = |name: &str| self.sidecar.stat(name);
        stat("cluster_manager.cds.update_rejected")
            + stat("listener_manager.lds.update_rejected")
            + stat("http.services.rds.services.update_rejected")
    }

    /// `, 503: 2, no answer: 1`
    pub(super) fn failures(&self) -> String {
        let mut text = String::new();
        if !self.others.is_empty() {
            let _ = write!(text, ", {}", self.others);
        }
        if self.lost > 0 {
            let _ = write!(text, ", no answer: {}", self.lost);
        }
        text
    }
}

/// What happened in each of the latest steps.
fn steps(progress: &Progress) -> String {
    let mut text = format!(
        "{:<30} {:>9} {:>9} {:>7} {:>9} {:>9}\n",
        "step", "accepted", "requests", "failed", "p50", "p99"
    );
    for Done { title, accepted, requests, failed, latencies, shares } in &*progress.done.borrow() {
        let accepted = accepted.map_or("-".to_owned(), |took| format!("{} ms", took.as_millis()));
        let at = |quantile| {
            let found = latencies.as_ref().filter(|latencies| !latencies.is_empty());
            found.map_or("-".to_owned(), |found| milliseconds(found.value_at_quantile(quantile)))
        };
        let (p50, p99) = (at(0.5), at(0.99));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{title:<30} {accepted:>9} {requests:>9} {failed:>7} {p50:>9} {p99:>9}");
        let _ = writeln!(text, "    {shares}");
    }
    text
}

/// Fewer steps than there are, when all were to be gone through.
pub(super) fn missing_steps(progress: &Progress) -> Option<String> {
    let completed = progress.completed.get();
    (completed < STEPS.len()).then(|| format!("only {completed} of {} steps were completed", STEPS.len()))
}

/// Rounded; 0 of nothing.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(200).checked_div(whole).map_or(0, |halves| halves.div_ceil(2))
}

pub(super) fn quantiles(latencies: Option<&Histogram<u64>>) -> String {
    let Some(latencies) = latencies.filter(|latencies| !latencies.is_empty()) else {
        return "no answer yet".to_owned();
    };
    let at = |quantile| milliseconds(latencies.value_at_quantile(quantile));
    format!("p50 {}, p99 {}, slowest {}", at(0.5), at(0.99), milliseconds(latencies.max()))
}

fn milliseconds(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1000.0)
}
