//! Circuit breakers under all the load that a machine can make: they hold, as origins and gauges see it, and saying no
//! is cheap.

use std::future::pending;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::Setup;
use crate::harness::client::Client;
use crate::harness::proxy::{Kind, Proxy};
use crate::harness::{alone, eventually, DEADLINE};
use crate::peers;

/// Saying no costs less than this share of a request that is served. It has half of its system calls; what there is
/// beside them weighs more in a build that is optimised little, and differs between processors.
const CHEAP: f64 = if cfg!(debug_assertions) { 0.85 } else { 0.5 };
/// And less than this share of what it costs Envoy, whose build is always an optimised one.
const BESIDE_ENVOY: f64 = if cfg!(debug_assertions) { 0.8 } else { 0.5 };
const CLIENTS: usize = 64;

/// An origin that counts what it has at a time.
struct Counting {
    port: u16,
    count: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    connections: Gauge,
    requests: Gauge,
    all: AtomicUsize,
}

#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// Something counted, for as long as it lives.
struct Held<'a>(&'a Gauge);

impl Gauge {
    fn hold(&self) -> Held<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Held(self)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counting {
    /// Answers after `delay`; a request for something that hangs, never.
    async fn start(delay: Duration) -> Counting {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let count = Arc::new(Counts::default());
        let shared = count.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move { serve(stream, &shared, delay).await });
            }
        });
        Counting { port, count, task }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, count: &Counts, delay: Duration) {
    let _open = count.connections.hold();
    let mut input = Vec::with_capacity(4096);
    loop {
        input.clear();
        while !input.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
                return;
            }
        }
        let request = count.requests.hold();
        count.all.fetch_add(1, Ordering::Relaxed);
        if input.starts_with(b"GET /full/hangs") {
            let mut rest = [0];
            let _ = stream.read(&mut rest).await;
            return;
        }
        if !delay.is_zero() {
            let gone = async {
                // The proxy sends nothing before it has the answer: that it can be read means that it went away.
                let _ = stream.readable().await;
                if matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
                {
                    pending::<()>().await;
                }
            };
            tokio::select! { () = tokio::time::sleep(delay) => {}, () = gone => return }
        }
        // The proxy counts it until the answer is there.
        drop(request);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.is_err() {
            return;
        }
    }
}

/// A load generator that works as hard as it can.
struct Wrk(Child);

impl Wrk {
    fn start(proxy: &Proxy, path: &str, seconds: u32) -> Wrk {
        let child = Command::new(peers::find("wrk").expect("wrk"))
            .args(["-t1", &format!("-c{CLIENTS}"), "-d", &seconds.to_string()])
            .arg(format!("http://127.0.0.1:{}/{path}", proxy.port("main")))
            .stdout(Stdio::piped())
            .spawn()
            .expect("wrk starts");
        Wrk(child)
    }

    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for its end; what it reports.
    async fn report(mut self) -> String {
        let ended = eventually(DEADLINE * 2, || std::future::ready(!self.runs())).await;
        assert!(ended, "wrk does not end");
        let mut report = String::new();
        let output = self.0.stdout.as_mut().expect("its output");
        std::io::Read::read_to_string(output, &mut report).expect("a report");
        report
    }
}

impl Drop for Wrk {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rate(report: &str) -> f64 {
    let line = report.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|rate| rate.trim().parse().ok()).unwrap_or_else(|| panic!("cannot read wrk: {report}"))
}

fn refused(report: &str) -> u64 {
    let line = report.lines().find_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Looks at gauges of a cluster until wrk is about to end; the highest values.
async fn highest(proxy: &Proxy, wrk: &mut Wrk, cluster: &str, gauges: [&str; 3], time: Duration) -> [u64; 3] {
    let began = Instant::now();
    let mut highest = [0; 3];
    let mut looks = 0;
    while began.elapsed() < time && wrk.runs() {
        let page = proxy.admin(&format!("/stats?filter=^cluster.{cluster}.upstream_")).await;
        for (highest, gauge) in highest.iter_mut().zip(gauges) {
            let name = format!("cluster.{cluster}.{gauge}: ");
            let value = page.lines().find_map(|line| line.strip_prefix(name.as_str()));
            *highest = value.and_then(|value| value.parse().ok()).unwrap_or(0).max(*highest);
        }
        looks += 1;
    }
    assert!(looks >= 10, "only {looks} looks at the gauges");
    highest
}

#[tokio::test]
async fn a_limit_under_load_is_never_exceeded() {
    if !peers::have(&["wrk"]) {
        return;
    }
    let _alone = alone().await;
    let delay = Duration::from_millis(3);
    let gauges = ["upstream_rq_active", "upstream_cx_active", "upstream_rq_pending_active"];
    let limits = |cluster: &str| match cluster {
        "requests" => json!({"max_requests": 16, "max_connections": 10_000, "max_pending_requests": 10_000}),
        _ => json!({"max_connections": 8, "max_pending_requests": 4}),
    };
    // Workers share the count of requests; a worker without any connection to a host is always allowed one.
    for (cluster, workers) in [("requests", "2"), ("connections", "1")] {
        let origin = Counting::start(delay).await;
        let mut setup = Setup::default();
        let options = json!({"circuit_breakers": {"thresholds": [limits(cluster)]}});
        setup.cluster(cluster, &[&[origin.port]], &options, &json!({}));
        let proxy = setup.start(Kind::Outrigger, workers).await;
        let mut wrk = Wrk::start(&proxy, cluster, 3);
        let [requests, connections, pending] =
            highest(&proxy, &mut wrk, cluster, gauges, Duration::from_millis(2_500)).await;
        // Clients that go away at the end leave requests behind that only the origin still knows of.
        let (most_requests, most_connections) =
            (origin.count.requests.most(), origin.count.connections.most());
        assert!(wrk.runs(), "the load ended too early");
        let report = wrk.report().await;
        println!(
            "{cluster}: {:.0} requests/s of which {} in all were refused; at most {requests} requests, {connections} connections, \
             {pending} pending by gauges, {most_requests} requests and {most_connections} connections at the origin",
            rate(&report),
            refused(&report),
        );
        assert!(refused(&report) > 1_000, "{report}");
        assert!(!report.contains("Socket errors"), "{report}");
        match cluster {
            "requests" => {
                assert!(requests <= 16 && most_requests == 16, "{requests} and {most_requests} requests");
            }
            _ => {
                assert!(
                    connections <= 8 && most_connections == 8,
                    "{connections} and {most_connections} connections"
                );
                assert!(pending <= 4, "{pending} pending");
            }
        }
        let idle = || async {
            let stats = proxy.stats().await;
            gauges.iter().all(|gauge| {
                *gauge == "upstream_cx_active" || stats.get(&format!("cluster.{cluster}.{gauge}")) == Some(&0)
            })
        };
        assert!(eventually(DEADLINE, idle).await, "something was not given back");
    }
}

#[tokio::test]
async fn to_refuse_costs_less_than_to_serve() {
    if !peers::have(&["wrk"]) {
        return;
    }
    let _alone = alone().await;
    let origin = Counting::start(Duration::ZERO).await;
    let mut setup = Setup { quiet: true, ..Setup::default() };
    let breakers = |most: u32| json!({"lb_policy": "LEAST_REQUEST", "circuit_breakers": {"thresholds": [{"max_requests": most}]}});
    setup.cluster("free", &[&[origin.port]], &breakers(1_000), &json!({}));
    setup.cluster("full", &[&[origin.port]], &breakers(1), &json!({"timeout": "0s"}));
    let mut envoys = None;
    for kind in [Kind::Envoy, Kind::Outrigger] {
        if kind == Kind::Envoy && peers::envoy_if_any().is_none() {
            continue;
        }
        let proxy = setup.start(kind, "1").await;
        let before = origin.count.all.load(Ordering::Relaxed);
        let mut holder = Client::connect(proxy.port("main")).await.expect("a connection");
        holder.send(b"GET /full/hangs HTTP/1.1\r\nhost: t.test\r\n\r\n").await.expect("a request is sent");
        let there = || std::future::ready(origin.count.all.load(Ordering::Relaxed) > before);
        assert!(eventually(DEADLINE, there).await, "the one request that is allowed does not arrive");
        // What others do on the machine only adds to a cost: the least of each counts.
        let (mut serve, mut refuse) = (f64::INFINITY, f64::INFINITY);
        for round in 0..6 {
            let (path, least) = if round % 2 == 0 { ("free", &mut serve) } else { ("full", &mut refuse) };
            let requests = proxy.stats().await["http.main.downstream_rq_total"];
            let before = proxy.cpu_of_threads();
            let report = Wrk::start(&proxy, path, 1).report().await;
            let spent = proxy.cpu_of_threads() - before;
            let requests = proxy.stats().await["http.main.downstream_rq_total"] - requests;
            assert_eq!(refused(&report) > 0, path == "full", "{report}");
            *least = least.min(spent.as_secs_f64() * 1e6 / requests as f64);
        }
        let share = refuse / serve;
        println!("{kind:?}: {serve:.1} us to serve, {refuse:.1} us to refuse, {share:.2} of it");
        if kind == Kind::Envoy {
            envoys = Some(refuse);
        } else {
            assert!(share < CHEAP, "to refuse costs {share:.2} of a request");
            let beside = refuse / envoys.unwrap_or(f64::INFINITY);
            assert!(beside < BESIDE_ENVOY, "to refuse costs {beside:.2} of what it costs Envoy");
        }
    }
}
