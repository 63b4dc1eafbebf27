//! What breakers, budgets and retries count and tell, beside the real Envoy: the same requests at the same limits.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::{json, Value};
use tokio::sync::Semaphore;

use super::{failures, Setup};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const COUNTED: [&str; 22] = [
    "upstream_rq_total",
    "upstream_rq_active",
    "upstream_rq_completed",
    "upstream_rq_503",
    "upstream_rq_active_overflow",
    "upstream_rq_pending_overflow",
    "upstream_rq_pending_active",
    "upstream_cx_overflow",
    "upstream_cx_active",
    "upstream_rq_retry",
    "upstream_rq_retry_success",
    "upstream_rq_retry_overflow",
    "upstream_rq_retry_limit_exceeded",
    "upstream_rq_retry_backoff_exponential",
    "circuit_breakers.default.cx_open",
    "circuit_breakers.default.rq_open",
    "circuit_breakers.default.rq_pending_open",
    "circuit_breakers.default.rq_retry_open",
    "circuit_breakers.default.remaining_cx",
    "circuit_breakers.default.remaining_pending",
    "circuit_breakers.default.remaining_rq",
    "circuit_breakers.default.remaining_retries",
];

/// One proxy, its origin, and requests that have no answer yet.
struct Side {
    proxy: Proxy,
    origin: Origin,
    gate: Arc<Semaphore>,
    waiting: Vec<Client>,
    text: String,
}

impl Side {
    /// `/hold` is answered when the gate opens, `/fail` with 503, `/again` with 503 and, asked again, as `/hold`.
    async fn start(kind: Kind) -> Side {
        let gate = Arc::new(Semaphore::new(0));
        let (shared, seen) = (gate.clone(), Mutex::new(HashMap::<String, u32>::new()));
        let origin = Origin::with(true, move |request| {
            let target = request.target().to_owned();
            let held = || Answer::ok("ok").gated(&shared);
            let busy = Answer::status(503, "Busy", "busy");
            if target.contains("/hold") {
                return held();
            }
            let mut seen = seen.lock().expect("what was seen");
            let times = seen.entry(target.clone()).or_default();
            *times += 1;
            if target.contains("/again") && *times > 1 {
                held()
            } else {
                busy
            }
        })
        .await;
        let mut setup = Setup::default();
        let retry = |more: Value| {
            let mut policy =
                json!({"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}});
            super::extend(&mut policy, &more);
            json!({"timeout": "0s", "retry_policy": policy})
        };
        let patient = json!({"timeout": "0s"});
        let once = retry(json!({}));
        let cases = [
            ("requests", json!({"max_requests": 2}), &patient),
            ("pending", json!({"max_connections": 1, "max_pending_requests": 1}), &patient),
            ("connections", json!({"max_connections": 2}), &patient),
            ("nobody", json!({"max_requests": 0}), &patient),
            ("retries", json!({"max_retries": 1}), &once),
            (
                "budget",
                json!({"retry_budget": {"budget_percent": {"value": 50.0}, "min_retry_concurrency": 1}}),
                &once,
            ),
            (
                "share",
                json!({"retry_budget": {"budget_percent": {"value": 50.0}, "min_retry_concurrency": 1}}),
                &once,
            ),
            (
                "least",
                json!({"retry_budget": {"budget_percent": {"value": 0.0}, "min_retry_concurrency": 2}}),
                &once,
            ),
            ("limit", json!({}), &retry(json!({"num_retries": 2}))),
        ];
        for (name, mut limits, action) in cases {
            limits["track_remaining"] = json!(true);
            let options = json!({"circuit_breakers": {"thresholds": [limits]}});
            setup.cluster(name, &[&[origin.port()]], &options, action);
        }
        let proxy = setup.start(kind, "1").await;
        Side { proxy, origin, gate, waiting: Vec::new(), text: String::new() }
    }

    /// Sends a request and does not wait for its answer.
    async fn send(&mut self, target: &str) {
        let mut client = Client::connect(self.proxy.port("main")).await.expect("a connection");
        let request = format!("GET {target} HTTP/1.1\r\nhost: t.test\r\n\r\n");
        client.send(request.as_bytes()).await.expect("a request is sent");
        self.waiting.push(client);
    }

    /// Sends one that the origin gets, `tries` times in all.
    async fn held(&mut self, target: &str, tries: usize) {
        let before = self.origin.requests();
        self.send(target).await;
        let there = || std::future::ready(self.origin.requests() >= before + tries);
        assert!(eventually(DEADLINE, there).await, "{target} does not reach the origin");
    }

    /// The status of an answer that comes at once.
    async fn status(&mut self, target: &str) {
        let answer = crate::harness::client::get(self.proxy.port("main"), target).await.expect("an answer");
        let overloaded = answer.header("x-envoy-overloaded").unwrap_or("-").to_owned();
        let _ =
            writeln!(self.text, "{target}: {} {} overloaded {overloaded}", answer.status(), answer.text());
    }

    /// Waits for a statistic, then notes all that are not zero.
    async fn note(&mut self, cluster: &str, until: &str, value: u64) {
        let name = |stat: &str| format!("cluster.{cluster}.{stat}");
        let there = || async { self.proxy.stats().await.get(&name(until)).copied().unwrap_or(0) == value };
        let reached = eventually(DEADLINE, there).await;
        let stats = self.proxy.stats().await;
        let _ = writeln!(self.text, "{cluster}: {until} is {value}: {reached}");
        for stat in COUNTED {
            let value = stats.get(&name(stat)).copied().unwrap_or(0);
            // Who is refused by max_requests opens no connection here.
            let of_connections = stat.contains("_cx") && ["requests", "nobody"].contains(&cluster);
            if value > 0 && !of_connections {
                let _ = writeln!(self.text, "  {stat} {value}");
            }
        }
    }

    /// Opens the gate; all that wait are answered.
    async fn release(&mut self) {
        self.gate.add_permits(self.waiting.len());
        for mut client in std::mem::take(&mut self.waiting) {
            let status = client.response().await.status();
            let _ = write!(self.text, "{status} ");
        }
        self.text.push('\n');
        self.gate.forget_permits(usize::MAX);
    }

    /// With so many requests that wait, more that are tried again and then wait, until one may not be.
    async fn budget(&mut self, cluster: &str, wait: u64) {
        let name = |stat: &str| format!("cluster.{cluster}.{stat}");
        for _ in 0..wait {
            self.held(&format!("/{cluster}/hold"), 1).await;
        }
        for number in 0..12 {
            self.send(&format!("/{cluster}/again/{number}")).await;
            let mut over = false;
            for _ in 0..1_000 {
                let stats = self.proxy.stats().await;
                over = stats[&name("upstream_rq_retry_overflow")] > 0;
                let again = stats[&name("upstream_rq_retry")] > number;
                if over || again && stats[&name("upstream_rq_active")] > wait + number {
                    break;
                }
            }
            if over {
                let status = self.waiting.pop().expect("a client").response().await.status();
                let _ = writeln!(self.text, "retry {number} is over the budget: {status}");
                break;
            }
        }
        self.note(cluster, "upstream_rq_retry_overflow", 1).await;
        self.release().await;
    }

    async fn story(mut self) -> String {
        for target in ["/requests/hold", "/requests/hold"] {
            self.held(target, 1).await;
        }
        for _ in 0..3 {
            self.status("/requests/x").await;
        }
        self.note("requests", "upstream_rq_active", 2).await;
        self.release().await;
        self.note("requests", "upstream_rq_active", 0).await;

        self.held("/pending/hold", 1).await;
        self.send("/pending/hold").await;
        self.note("pending", "upstream_rq_pending_active", 1).await;
        for _ in 0..2 {
            self.status("/pending/x").await;
        }
        self.note("pending", "upstream_rq_pending_overflow", 2).await;
        self.release().await;
        self.note("pending", "upstream_rq_active", 0).await;

        for target in ["/connections/hold", "/connections/hold"] {
            self.held(target, 1).await;
        }
        self.send("/connections/hold").await;
        self.note("connections", "upstream_rq_pending_active", 1).await;
        self.release().await;
        self.note("connections", "upstream_rq_active", 0).await;

        self.status("/nobody/x").await;
        self.note("nobody", "upstream_rq_active_overflow", 1).await;

        self.held("/retries/again/1", 2).await;
        for target in ["/retries/again/2", "/retries/again/3"] {
            self.status(target).await;
        }
        self.note("retries", "upstream_rq_retry_overflow", 2).await;
        self.release().await;
        self.note("retries", "upstream_rq_retry_success", 1).await;

        // With an even number of requests that wait and with an odd one, half of all may be retries.
        self.budget("budget", 4).await;
        self.budget("share", 5).await;

        for number in 0..2 {
            self.held(&format!("/least/again/{number}"), 2).await;
        }
        self.status("/least/again/2").await;
        self.note("least", "upstream_rq_retry_overflow", 1).await;
        self.release().await;

        self.status("/limit/fail").await;
        self.note("limit", "upstream_rq_retry_limit_exceeded", 1).await;

        let logged = eventually(DEADLINE, || std::future::ready(failures(&self.proxy).len() >= 12)).await;
        let _ = writeln!(self.text, "failures were logged: {logged}");
        for failure in failures(&self.proxy) {
            let _ = writeln!(self.text, "{} {} {}", failure.cluster, failure.status, failure.flags);
        }
        self.text
    }
}

#[tokio::test]
async fn limits_count_and_tell_what_envoys_do() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let side = |kind| async move { Side::start(kind).await.story().await };
    let (theirs, ours) = tokio::join!(side(Kind::Envoy), side(Kind::Outrigger));
    if std::env::var_os("OUTRIGGER_E2E_SHOW").is_some() {
        println!("--- Envoy\n{theirs}--- Outrigger\n{ours}");
    }
    assert!(theirs == ours, "they differ\n--- Envoy\n{theirs}--- Outrigger\n{ours}");
}
