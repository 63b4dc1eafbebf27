//! How many instructions the proxy spends on a request, user space only, against a committed baseline.
//!
//! The proxy runs under valgrind's callgrind between real sockets; this process is its client and its origin. Every run
//! sends the same requests one after the other, but for one scenario that gets many more of them: the difference
//! between two runs is what those requests cost, and warm-up and shutdown cancel out. Only the worker's thread counts:
//! what the others do depends on the machine (which ports are taken, how often readiness was asked for). Callgrind counts executed
//! instructions, not time, so the figures do not depend on how busy or how fast the machine is. Nor do they depend on who is
//! quicker: client and origin send nothing before every thread of the proxy sleeps. Otherwise, whether bytes are there when
//! the proxy looks for more, or come with a wake-up of their own, is a matter of luck that makes a percent.
//!
//! They do depend on the compiler, on the C library and on which instruction sets it may choose from; a baseline made
//! with others is reported and not held against the build. The binary is the one the tests are built with (dev
//! profile): its figures follow those of a release build without another build. To have other figures:
//!
//! - `OUTRIGGER_UPDATE_BASELINE=1` writes `benches/instructions.json` anew;
//! - `OUTRIGGER_COUNT_BINARY=<file>` counts another binary (a release build) and only prints;
//! - the counts by function of the last run of a scenario are left in `target/tmp/instructions-<scenario>.out-<thread>`, for
//!   `callgrind_annotate`.

use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{alone, http2, DEADLINE};
use crate::peers;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A rise by more than this many percent fails.
const LIMIT: f64 = 3.0;
/// A fall by more than this many percent asks for a new baseline, so that it is not lost again unseen.
const NOTICED: f64 = 1.0;
/// Requests that every scenario sends in every run: connections, pools and buffers are warm after them.
const WARM: usize = 50;
/// Requests more in the run that measures a scenario.
const MEASURED: usize = 4_000;
/// The least of so many runs counts, where one is too much.
const RUNS: usize = 2;
/// A GET with every means of resilience switched on may cost so many percent more than one with none.
const RESILIENCE: f64 = 10.0;
/// A breaker is open.
const REFUSED: &str = "http1_get_refused";
const RESILIENT: &str = "http1_get_resilient";
/// The proxy under callgrind has this long to stop.
const STOP: Duration = Duration::from_secs(60);

/// One kind of request.
struct Scenario {
    name: &'static str,
    /// The name of its listener in `TEMPLATE`.
    listener: &'static str,
    request: Vec<u8>,
    /// The request is the header block of an HTTP/2 stream, without state: the same bytes each time.
    http2: bool,
}

/// Headers of a usual client.
const HEADERS: &str =
    "Host: shop.test\r\nUser-Agent: client/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n";

fn scenarios() -> Vec<Scenario> {
    let get = format!("GET /items/42?view=full HTTP/1.1\r\n{HEADERS}\r\n");
    let body = "x".repeat(1024);
    let post = format!("POST /items HTTP/1.1\r\n{HEADERS}Content-Length: {}\r\n\r\n{body}", body.len());
    let scenario =
        |name, listener, request: &str| Scenario { name, listener, request: request.into(), http2: false };
    vec![
        scenario("http1_get", "plain", &get),
        scenario("http1_post_1k", "plain", &post),
        scenario("http1_get_logged_and_edited", "full", &get),
        scenario("http1_direct_response", "direct", &get),
        scenario(REFUSED, "open", &get),
        scenario(RESILIENT, "resilient", &get),
        Scenario { name: "http2_get", listener: "plain", request: header_block(), http2: true },
        Scenario {
            name: "http2_get_to_http2",
            listener: "multiplexed",
            request: header_block(),
            http2: true,
        },
    ]
}

/// The fields of a GET, each a literal that is not indexed (RFC 7541 §6.2.2).
fn header_block() -> Vec<u8> {
    // :method GET and :scheme http stand in the static table.
    let mut block = vec![0x82, 0x86];
    let fields = [
        (":path", "/items/42?view=full"),
        (":authority", "shop.test"),
        ("user-agent", "client/1.0"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip, deflate"),
    ];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("a short text"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A client of one stream at a time that says only what it must.
struct Http2 {
    stream: TcpStream,
    id: u32,
}

const DATA: u8 = 0;
const HEADERS_FRAME: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

impl Http2 {
    async fn connect(port: u16) -> Http2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        // Room for all that will come.
        hello.extend_from_slice(b"\0\0\x04\x08\0\0\0\0\0\x40\0\0\0");
        stream.write_all(&hello).await.expect("the preface is taken");
        Http2 { stream, id: 1 }
    }

    /// Sends the request and reads its answer to the end.
    async fn exchange(&mut self, block: &[u8]) {
        let mut frame =
            vec![0, 0, u8::try_from(block.len()).expect("a short block"), HEADERS_FRAME, END_STREAM | 4];
        frame.extend_from_slice(&self.id.to_be_bytes());
        frame.extend_from_slice(block);
        self.stream.write_all(&frame).await.expect("the request is taken");
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.expect("a frame");
            let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
            self.stream.read_exact(&mut payload).await.expect("a payload");
            match head[3] {
                SETTINGS if head[4] & ACK == 0 => {
                    self.stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").await.expect("settings are taken");
                }
                HEADERS_FRAME => {
                    assert!(payload.first() == Some(&0x88) || self.id > 1, "the status is not 200");
                }
                DATA if head[4] & END_STREAM != 0 => break,
                kind => assert!(matches!(kind, DATA | 4 | 6 | 8), "frame {kind}"),
            }
        }
        self.id += 2;
    }
}

const MANAGER: &str = r#"  - name: @name@
    address: { socket_address: { address: 127.0.0.1, port_value: @port:@name@@ } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: @name@
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
"#;

const PLAIN: &str = r#"          route_config:
            virtual_hosts:
            - { name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: origin } }] }
"#;

const DIRECT: &str = r#"          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: hello } } }]
"#;

/// What a mesh's sidecar is usually told to do to a request.
const FULL: &str = r#"          use_remote_address: true
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: "@dir@/access.log"
          route_config:
            request_headers_to_add: [{ header: { key: x-client, value: "%DOWNSTREAM_REMOTE_ADDRESS%" } }]
            response_headers_to_remove: [x-powered-by]
            virtual_hosts:
            - { name: other, domains: [other.test], routes: [{ match: { prefix: / }, route: { cluster: origin } }] }
            - name: shop
              domains: [shop.test, "*.shop.test"]
              retry_policy: { retry_on: "connect-failure,refused-stream,5xx", num_retries: 2 }
              routes:
              - match: { prefix: /carts, headers: [{ name: x-user, present_match: true }] }
                route: { cluster: origin }
              - match: { path: /exact }
                route: { cluster: origin }
              - match: { safe_regex: { regex: "/items/[0-9]+" } }
                route: { cluster: origin, timeout: 5s, prefix_rewrite: /v2/items }
"#;

const RETRIED: &str = r#"          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: / }
                route:
                  cluster: resilient
                  retry_policy:
                    retry_on: "connect-failure,refused-stream,reset,5xx"
                    num_retries: 2
                    per_try_timeout: 5s
                    host_selection_retry_max_attempts: 5
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
"#;

/// All that there is against failures. Checks are seldom enough to be over before requests come.
const MEANS: &str = r#"  - name: resilient
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    circuit_breakers:
      thresholds:
      - track_remaining: true
        retry_budget: { budget_percent: { value: 20 }, min_retry_concurrency: 3 }
    outlier_detection: { split_external_local_origin_errors: true, enforcing_consecutive_gateway_failure: 100 }
    health_checks:
    - { timeout: 60s, interval: 600s, no_traffic_interval: 600s, unhealthy_threshold: 2, healthy_threshold: 2, http_health_check: { path: /check } }
    load_assignment:
      cluster_name: resilient
      endpoints:
      - lb_endpoints:
        - { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin@ } } } }
        - { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @second@ } } } }
      - priority: 1
        lb_endpoints:
        - { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @third@ } } } }
"#;

const CLUSTERS: &str = r#"  clusters:
  - name: open
    type: STATIC
    circuit_breakers: { thresholds: [{ max_requests: 0 }] }
    load_assignment:
      cluster_name: open
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin@ } } } }] }]
  - name: origin
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: origin
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin@ } } } }] }]
"#;

fn template() -> String {
    let listener = |name: &str, more: &str| format!("{}{more}", MANAGER.replace("@name@", name));
    format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}\n\
         node: {{ id: instructions, cluster: tests }}\nstatic_resources:\n  listeners:\n{}{}{}{}{}{}{CLUSTERS}{MEANS}{}",
        listener("plain", PLAIN),
        listener("full", FULL),
        listener("direct", DIRECT),
        listener("open", &PLAIN.replace("cluster: origin", "cluster: open")),
        listener("resilient", RETRIED),
        listener("multiplexed", &PLAIN.replace("cluster: origin", "cluster: multiplexed")),
        http2::cluster("multiplexed", "@multiplexed@")
    )
}

/// The instructions of the proxy's worker from its start to its end when every scenario is sent `WARM` requests and `more` of them, if any,
/// `MEASURED` more.
async fn count(program: &Path, scenarios: &[Scenario], more: Option<&str>) -> u64 {
    let counts = counts_prefix(more.unwrap_or("start"));
    for old in counts_files(&counts) {
        std::fs::remove_file(old).expect("old counts removed");
    }
    let body = "b".repeat(92);
    let process = Arc::new(AtomicU32::new(0));
    let proxy_process = process.clone();
    let answer = move |_: &Message| {
        // Checks come before it is known.
        match proxy_process.load(Ordering::Relaxed) {
            0 => {}
            pid => wait_for_sleep(pid),
        }
        Answer::raw(format!(
            "HTTP/1.1 200 OK\r\nServer: origin/1\r\nDate: Fri, 01 Jan 2027 00:00:00 GMT\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let origin = Origin::with(false, answer.clone()).await;
    let (second, third) = (Origin::with(false, answer.clone()).await, Origin::with(false, answer).await);
    let template = template();
    let multiplexed = http2_origin(process.clone()).await;
    let values = [
        ("origin", origin.port().to_string()),
        ("second", second.port().to_string()),
        ("third", third.port().to_string()),
        ("multiplexed", multiplexed.to_string()),
    ];
    let mut plan = Plan::new(Kind::Outrigger, &template, &values);
    plan.kind = Kind::Outrigger;
    // The files of access logs are written by the control thread's clock: seldom, so that it does not show.
    plan.arguments = &["--file-flush-interval-msec", "10000"];
    plan.program = Some(callgrind(program, &counts));
    let mut proxy = Proxy::start(plan).await;
    process.store(proxy.pid(), Ordering::Relaxed);
    for scenario in scenarios {
        let requests = WARM + if more == Some(scenario.name) { MEASURED } else { 0 };
        let port = proxy.port(scenario.listener);
        if scenario.http2 {
            let mut client = Http2::connect(port).await;
            for _ in 0..requests {
                wait_for_sleep(proxy.pid());
                client.exchange(&scenario.request).await;
            }
            continue;
        }
        let mut client = Client::connect(port).await.expect("a connection");
        for _ in 0..requests {
            wait_for_sleep(proxy.pid());
            let answer = client.exchange(&scenario.request).await.expect("an answer");
            let wanted = if scenario.name == REFUSED { 503 } else { 200 };
            assert_eq!(answer.status(), wanted, "{}", scenario.name);
        }
    }
    proxy.signal(libc::SIGTERM);
    assert!(proxy.exit(STOP).await.is_some(), "the proxy does not stop");
    worker_total(&counts)
}

/// An origin that answers as the other does, over HTTP/2, on a port of its own.
async fn http2_origin(process: Arc<AtomicU32>) -> u16 {
    http2::serve(move |_, mut respond| {
        wait_for_sleep(process.load(Ordering::Relaxed));
        async move {
            let head = http::Response::builder()
                .header("server", "origin/1")
                .header("date", "Fri, 01 Jan 2027 00:00:00 GMT")
                .header("content-type", "text/plain")
                .header("content-length", "92");
            let head = head.body(()).expect("a head");
            let mut body = respond.send_response(head, false).expect("the head is taken");
            body.send_data(bytes::Bytes::from("b".repeat(92)), true).expect("the body is taken");
        }
    })
    .await
}

/// Waits until all threads of a process wait for something. Nothing else is to happen meanwhile in this process, so the
/// wait blocks it.
fn wait_for_sleep(pid: u32) {
    let sleeps = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('S'))
    };
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        if tasks.flatten().all(sleeps) {
            return;
        }
        std::thread::yield_now();
    }
    panic!("process {pid} does not come to rest");
}

/// Where callgrind puts its counts: a file for each thread, with the thread's number after this name.
fn counts_prefix(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("instructions-{name}.out"))
}

/// The files that begin with `prefix`.
fn counts_files(prefix: &Path) -> Vec<PathBuf> {
    let dir = std::fs::read_dir(prefix.parent().expect("a directory")).expect("the directory of counts");
    let files = dir.flatten().map(|entry| entry.path());
    files.filter(|file| file.display().to_string().starts_with(&format!("{}-", prefix.display()))).collect()
}

/// The command that runs `program` under callgrind.
fn callgrind(program: &Path, counts: &Path) -> Vec<OsString> {
    let valgrind = peers::find("valgrind").unwrap_or_default();
    let counts = format!("--callgrind-out-file={}", counts.display());
    let options = ["--tool=callgrind", "--separate-threads=yes", &counts];
    let command = options.map(OsString::from).into_iter().chain([program.into(), "run".into()]);
    [valgrind.into()].into_iter().chain(command).collect()
}

/// The sum over all functions of the worker: the one thread that serves connections.
fn worker_total(prefix: &Path) -> u64 {
    let serving = |text: &String| text.contains("outrigger::http::connection::serve");
    let texts = counts_files(prefix).into_iter().filter_map(|file| std::fs::read_to_string(file).ok());
    let workers: Vec<String> = texts.filter(serving).collect();
    assert_eq!(workers.len(), 1, "threads that serve connections, by the counts in {}-*", prefix.display());
    let line = workers[0].lines().rev().find_map(|line| line.strip_prefix("totals: "));
    line.and_then(|number| number.trim().parse().ok()).expect("a total in the counts")
}

/// The first line that a program prints about itself.
fn says(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").trim().to_string()
}

/// What the figures depend on besides the code.
fn surroundings() -> Map<String, Value> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|known| known == flag);
    let sets: Vec<&str> = ["avx2", "bmi2", "erms", "fsrm"].into_iter().filter(|flag| has(flag)).collect();
    let profile = if cfg!(debug_assertions) { "dev" } else { "other" };
    let mut map = Map::new();
    map.insert("profile".into(), profile.into());
    map.insert("rustc".into(), says(Command::new(rustc).arg("--version")).into());
    map.insert("libc".into(), says(Command::new("getconf").arg("GNU_LIBC_VERSION")).into());
    map.insert("valgrind".into(), says(peers::command("valgrind").arg("--version")).into());
    map.insert("cpu".into(), format!("{} {}", std::env::consts::ARCH, sets.join(" ")).into());
    map
}

/// A line for whoever runs the tests, also when they pass.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "instructions: {line}");
}

fn baseline_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

fn read_baseline() -> Value {
    let text = std::fs::read_to_string(baseline_file()).expect("benches/instructions.json");
    serde_json::from_str(&text).expect("JSON in benches/instructions.json")
}

fn write_baseline(figures: &BTreeMap<&str, u64>) {
    let mut per_request = Map::new();
    per_request.extend(figures.iter().map(|(name, count)| (name.to_string(), json!(count))));
    let baseline = json!({
        "what": "user-space instructions per request; written by OUTRIGGER_UPDATE_BASELINE=1, see tests/e2e/instructions.rs",
        "valid_for": surroundings(),
        "instructions_per_request": per_request,
    });
    let text = serde_json::to_string_pretty(&baseline).expect("JSON");
    std::fs::write(baseline_file(), text + "\n").expect("the baseline file");
}

/// How far `now` is above `then`, in percent.
fn rise(then: u64, now: u64) -> f64 {
    (now as f64 - then as f64) / then as f64 * 100.0
}

#[tokio::test]
async fn a_request_costs_no_more_instructions_than_the_baseline() {
    if !peers::have(&["valgrind"]) {
        return;
    }
    let _alone = alone().await;
    let other = std::env::var_os("OUTRIGGER_COUNT_BINARY").map(PathBuf::from);
    let program = other.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_outrigger")));
    let scenarios = scenarios();
    let update = std::env::var_os("OUTRIGGER_UPDATE_BASELINE").is_some_and(|v| v == "1");
    let baseline = if update || other.is_some() { Value::Null } else { read_baseline() };
    let start = count(&program, &scenarios, None).await.min(count(&program, &scenarios, None).await);
    let mut figures = BTreeMap::new();
    for scenario in &scenarios {
        let then = baseline["instructions_per_request"][scenario.name].as_u64();
        let mut least = u64::MAX;
        for run in 0..RUNS {
            let all = count(&program, &scenarios, Some(scenario.name)).await;
            least = least.min(all.saturating_sub(start) / MEASURED as u64);
            let enough = if update { run == 1 } else { then.is_none_or(|then| rise(then, least) <= LIMIT) };
            if enough {
                break;
            }
        }
        figures.insert(scenario.name, least);
    }
    if other.is_some() {
        figures.iter().for_each(|(name, now)| tell(&format!("{name}: {now} a request")));
        return;
    }
    if update {
        write_baseline(&figures);
        tell(&format!("wrote {}", baseline_file().display()));
        return;
    }

    let more = rise(figures["http1_get"], figures[RESILIENT]);
    tell(&format!("every means of resilience costs {more:+.2} %"));
    assert!(more <= RESILIENCE, "every means of resilience costs {more:.2} %, more than {RESILIENCE} %");

    let here = Value::Object(surroundings());
    let comparable = baseline["valid_for"] == here;
    if !comparable {
        tell(&format!(
            "NOT CHECKED: the baseline is for {}, this is {here}; OUTRIGGER_UPDATE_BASELINE=1 makes one for it",
            baseline["valid_for"]
        ));
    }
    let mut worse = Vec::new();
    for (name, now) in &figures {
        let Some(then) = baseline["instructions_per_request"][name].as_u64() else {
            worse.push(format!("{name}: {now} a request, and no baseline"));
            continue;
        };
        let rise = rise(then, *now);
        let line = format!("{name}: {now} a request, baseline {then} ({rise:+.2} %)");
        tell(&line);
        if comparable && rise > LIMIT {
            worse.push(line);
        } else if comparable && rise < -NOTICED {
            tell(&format!("{name} got cheaper: OUTRIGGER_UPDATE_BASELINE=1 keeps it so"));
        }
    }
    assert!(
        worse.is_empty(),
        "more than {LIMIT} % above the baseline; callgrind_annotate target/tmp/instructions-<scenario>.out-<thread> says where, \
         OUTRIGGER_UPDATE_BASELINE=1 accepts it:\n{}",
        worse.join("\n")
    );
}
