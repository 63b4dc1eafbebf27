//! What both sides counted: as lines for a person, and as a verdict.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

use crossterm::{cursor, queue, terminal};
use hdrhistogram::Histogram;

use super::sidecar::Snapshot;
use super::traffic::Traffic;
use super::Origins;

/// Fewer answers than this prove nothing.
const ENOUGH: u64 = 100;
/// What share of their service's requests each of three replicas that take turns may get, in percent. Each worker
/// takes turns for itself, so a third is not exact.
const FAIR: std::ops::RangeInclusive<u64> = 20..=47;

/// One replica, as its origin and the sidecar saw it.
pub(super) struct Replica {
    pub(super) service: &'static str,
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    /// What the origin counted.
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// What the sidecar counted for it.
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
        let replicas = origins.http.iter().map(|origin| Replica {
            service: origin.service,
            name: origin.name,
            address: origin.address,
            requests: origin.requests.get(),
            failed: origin.failed.get(),
            seen: sidecar.host(origin.address, "rq_total"),
            seen_errors: sidecar.host(origin.address, "rq_error"),
            answers: served_by.get(origin.name).copied().unwrap_or_default(),
        });
        let wrong_status: u64 = tally.wrong_status.borrow().values().sum();
        Self {
            answers: tally.right.get() + tally.wrong_body.get() + wrong_status,
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

    /// Requests that the service's origins received.
    fn received(&self, service: &str) -> u64 {
        self.replicas
            .iter()
            .filter(|replica| replica.service == service)
            .map(|replica| replica.requests)
            .sum()
    }

    fn retries(&self) -> u64 {
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
        equal("the sidecar's answers of 200", stat("http.demo.downstream_rq_2xx"), self.answers);
        equal("the sidecar's requests", stat("http.demo.downstream_rq_total"), self.answers + self.lost);
        equal("the sidecar's retries", self.retries(), failed);
        equal(
            "requests the origins received",
            self.replicas.iter().map(|r| r.requests).sum(),
            self.answers + failed,
        );
        for service in ["orders", "users"] {
            let counted = stat(&format!("cluster.{service}.upstream_rq_total"));
            equal(&format!("the sidecar's requests to {service}"), counted, self.received(service));
        }
        for replica in &self.replicas {
            equal(&format!("the sidecar's requests to {}", replica.name), replica.seen, replica.requests);
            equal(&format!("the sidecar's errors of {}", replica.name), replica.seen_errors, replica.failed);
            equal(
                &format!("answers from {}", replica.name),
                replica.answers,
                replica.requests - replica.failed,
            );
        }
        equal("broken echo connections", self.echo_broken, 0);
        equal("bytes echoed", self.echo_back, self.echo_sent);
        equal("bytes the echo service sent", self.echo_served, self.echo_sent);
        equal("the sidecar's echo connections", stat("tcp.echo.downstream_cx_total"), self.echo_connections);
        equal(
            "bytes the sidecar brought to the echo service",
            stat("tcp.echo.downstream_cx_rx_bytes_total"),
            self.echo_sent,
        );
        equal(
            "bytes the sidecar brought back",
            stat("tcp.echo.downstream_cx_tx_bytes_total"),
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

    /// The summary at the end.
    pub(super) fn report(&self) -> String {
        self.lines("total", &self.latencies).join("\n") + "\n"
    }

    /// The table; `heading` stands before the numbers of all requests.
    fn lines(&self, heading: &str, latencies: &Option<Histogram<u64>>) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{heading}: {} requests, {} answered 200{}",
                self.answers + self.lost,
                self.right,
                self.failures()
            ),
            format!("latency:  {}", quantiles(latencies.as_ref())),
            format!("{:<14} {:<21} {:>9} {:>6} {:>8}", "endpoint", "address", "requests", "share", "failed"),
        ];
        for replica in &self.replicas {
            let share = percent(
                replica.seen,
                self.sidecar.stat(&format!("cluster.{}.upstream_rq_total", replica.service)),
            );
            lines.push(format!(
                "{:<14} {:<21} {:>9} {share:>5}% {:>8}",
                replica.name,
                replica.address.to_string(),
                replica.seen,
                replica.seen_errors
            ));
        }
        let stat = |name: &str| self.sidecar.stat(name);
        lines.push(format!(
            "retries:  {} ({} of them successful, {} refused by the breaker)",
            self.retries(),
            stat("cluster.users.upstream_rq_retry_success"),
            stat("cluster.users.upstream_rq_retry_overflow"),
        ));
        let mut breakers = "breakers:".to_owned();
        for cluster in ["orders", "users", "echo"] {
            // Writing to a String cannot fail.
            let _ = write!(breakers, " {cluster} {},", self.breaker(cluster));
        }
        lines.push(breakers.trim_end_matches(',').to_owned());
        lines.push(format!("echo:     {} bytes sent, {} back", self.echo_sent, self.echo_back));
        lines
    }

    fn failures(&self) -> String {
        let mut text = String::new();
        if !self.others.is_empty() {
            let _ = write!(text, ", {}", self.others);
        }
        if self.lost > 0 {
            let _ = write!(text, ", no answer: {}", self.lost);
        }
        text
    }

    /// Which of a cluster's breakers are open.
    fn breaker(&self, cluster: &str) -> String {
        let gauges = ["cx_open", "rq_pending_open", "rq_open", "rq_retry_open"];
        let name = |gauge: &str| format!("cluster.{cluster}.circuit_breakers.default.{gauge}");
        let open: Vec<&str> =
            gauges.into_iter().filter(|gauge| self.sidecar.stat(&name(gauge)) > 0).collect();
        if open.is_empty() {
            "closed".to_owned()
        } else {
            format!("OPEN ({})", open.join(" "))
        }
    }
}

/// Rounded; 0 of nothing.
fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(200).checked_div(whole).map_or(0, |halves| halves.div_ceil(2))
}

fn quantiles(latencies: Option<&Histogram<u64>>) -> String {
    let Some(latencies) = latencies.filter(|latencies| !latencies.is_empty()) else {
        return "none yet".to_owned();
    };
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
        at(0.5),
        at(0.99),
        latencies.max() as f64 / 1000.0
    )
}

/// Where the numbers are shown while it runs.
pub(super) struct Screen {
    terminal: bool,
    /// Lines of the last picture, which the next one replaces.
    drawn: u16,
}

impl Screen {
    /// A picture that is drawn anew on a terminal, a line a second elsewhere.
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, drawn: 0 }
    }

    /// Shows the totals, the requests per second and the latencies since the last call.
    pub(super) fn show(&mut self, totals: &Totals, rate: f64, recent: &Option<Histogram<u64>>) {
        let rate = format!("{rate:.0} requests/s");
        // A terminal that went away ends the program by its signal.
        let _ = if self.terminal {
            let mut lines = totals.lines(&rate, recent);
            lines.push("Ctrl-C ends it.".to_owned());
            self.draw(&lines)
        } else {
            let shares: Vec<String> =
                totals.replicas.iter().map(|replica| format!("{} {}", replica.name, replica.seen)).collect();
            let line = format!(
                "{rate}, {}, retries {}, {}{}",
                quantiles(recent.as_ref()),
                totals.retries(),
                shares.join(", "),
                totals.failures()
            );
            writeln!(std::io::stdout().lock(), "{line}")
        };
    }

    fn draw(&mut self, lines: &[String]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            queue!(out, cursor::MoveToPreviousLine(self.drawn))?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        // A line that wraps would take two. Some terminals say that they have no width at all.
        let width = match terminal::size() {
            Ok((columns @ 20.., _)) => usize::from(columns),
            _ => 80,
        };
        for line in lines {
            let cut: String = line.chars().take(width - 1).collect();
            writeln!(out, "{cut}")?;
        }
        self.drawn = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        out.flush()
    }
}
