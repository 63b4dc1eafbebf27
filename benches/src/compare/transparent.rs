//! What capture costs: connections of a pod that are led to its proxy by the kernel, beside connections that come to the
//! same proxy by its address. The pod is a network namespace, the origin is in another one; the rules are those of
//! `outrigger init` for everybody.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};
use serde_json::{json, Value};

use super::bench::{Bench, Running};
use super::configs::{address, all_to};
use super::load::{costed, dropped, light};
use super::peer::Peer;
use super::result::{Metric, PeerResult, ScenarioResult, Status};
use super::scenario::{Load, BASE};
use super::Error;

/// The pod's address, and the origin's.
const POD: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const ORIGIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 88, 0, 2)), 8080);
/// Where captured connections come, and others.
const CAPTURED: u16 = 15001;
const EXPLICIT: u16 = 15080;
/// The group whose connections are not captured.
const GROUP: &str = "1337";

/// A pod and an origin, gone when dropped.
struct Ground {
    names: [String; 2],
    origin: Option<std::process::Child>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(origin) = &mut self.origin {
            let _ = origin.kill();
            let _ = origin.wait();
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

impl Ground {
    /// Makes it, with the rules in force and the origin answering.
    ///
    /// # Errors
    /// Why that is not possible here.
    fn make(bench: &Bench) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces and capture need root".to_owned());
        }
        let outrigger =
            bench.program(Peer::Outrigger).ok_or("outrigger, which makes the rules, was not found")?;
        let tool = bench.program(Peer::Relay).ok_or("the origin's program was not found")?;
        let own = format!("compare{}", std::process::id());
        let mut ground = Self { names: [format!("{own}-pod"), format!("{own}-origin")], origin: None };
        let [pod, origin] = ground.names.clone();
        for line in [
            format!("netns add {pod}"),
            format!("netns add {origin}"),
            format!("-n {pod} link add eth0 type veth peer name eth0 netns {origin}"),
            format!("-n {pod} addr add {POD}/24 dev eth0"),
            format!("-n {origin} addr add {}/24 dev eth0", ORIGIN.ip()),
            format!("-n {pod} link set lo up"),
            format!("-n {pod} link set eth0 up"),
            format!("-n {origin} link set lo up"),
            format!("-n {origin} link set eth0 up"),
        ] {
            run(Command::new("ip").args(line.split(' ')))?;
        }
        let within = |name: &String, program: &Path| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{name}")).arg(program);
            command
        };
        run(within(&pod, outrigger).args(["init", "-g", GROUP]))?;
        let mut command = within(&origin, tool);
        command.args(["serve", "-l", &format!("http={ORIGIN}")]);
        if let Some(core) = bench.load_core() {
            command.args(["--pin", &core.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("the origin does not start: {error}"))?;
        ground.origin = Some(child);
        Ok(ground)
    }

    /// Runs `work` on a thread in the pod, where what it starts is too.
    fn within_pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let file = File::open(format!("/run/netns/{}", self.names[0])).map_err(|error| error.to_string())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), kind).map_err(|error| error.to_string())?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| Err("the measurement ended".to_owned()))
        })
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{} ", command.get_program().display())
        + &command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = command.output().map_err(|error| format!("{shown}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Captured connections go where they meant to go, others to the origin.
fn config() -> Value {
    let listener = |name: &str, ip: &str, port: u16, filters: Value, cluster: &str| {
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [all_to(cluster, &["*".to_owned()])]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        });
        json!({
            "name": name, "listener_filters": filters,
            "address": {"socket_address": {"address": ip, "port_value": port}},
            "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
        })
    };
    let limits = json!({"thresholds": [{"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192}]});
    let original = json!([{"name": "envoy.filters.listener.original_dst", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}}]);
    let admin: SocketAddr = (Ipv4Addr::LOCALHOST, 15000).into();
    json!({
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [
                listener("captured", "0.0.0.0", CAPTURED, original, "meant"),
                listener("explicit", "127.0.0.1", EXPLICIT, json!([]), "origin"),
            ],
            "clusters": [
                {"name": "meant", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s",
                 "circuit_breakers": limits},
                {"name": "origin", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": limits,
                 "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": [
                     {"endpoint": {"address": address(ORIGIN)}}]}]}},
            ],
        },
    })
}

/// What is asked for: of kept connections, and of new ones.
fn loads() -> [(&'static str, &'static str, Load); 2] {
    let each =
        Load { connections: 8, unit: "connection", flags: &["--requests-per-connection", "1"], ..BASE };
    [
        ("request", "HTTP/1.1, 32 kept connections, body of 92 bytes", BASE),
        ("connection", "HTTP/1.1, a new connection for each request, 8 at a time", each),
    ]
}

/// Both ways to the same proxy, in turn.
///
/// # Errors
/// The generator cannot run.
pub fn transparent(bench: &Bench, say: &mut dyn FnMut(&str)) -> Result<Vec<ScenarioResult>, Error> {
    let ground = Ground::make(bench);
    let mut results = Vec::new();
    for (name, about, load) in loads() {
        let peers = match &ground {
            Ok(ground) => match ground.within_pod(|| measure(bench, &load)) {
                Ok(measured) => measured?,
                Err(reason) => unsupported(bench, &reason),
            },
            Err(reason) => unsupported(bench, reason),
        };
        let metrics = vec![
            Metric::full("cpu", &format!("captured, CPU us/{}", load.unit), 2),
            Metric::full("explicit", &format!("by address, CPU us/{}", load.unit), 2),
            // Of what may be nothing there is no ratio.
            Metric { ratio: false, ..Metric::full("capture", "difference us", 2) },
            Metric::plain("rate", &format!("captured {}/s", load.unit), 0),
            Metric::plain("p50", "captured p50 us", 0),
            Metric::plain("explicit-p50", "by address p50 us", 0),
        ];
        for peer in &peers {
            match &peer.status {
                Status::Measured | Status::NotYet { .. } => {
                    say(&format!("  {name}, {}: {} rounds", peer.peer, bench.rounds));
                }
                Status::NotSupported { reason } => say(&format!("  {}: not supported: {reason}", peer.peer)),
                Status::Failed { reason } => say(&format!("  {}: failed: {reason}", peer.peer)),
            }
        }
        let about = format!("{about}; led to the proxy by the kernel, and by its address");
        results.push(ScenarioResult { name: name.to_owned(), about, metrics, peers });
    }
    Ok(results)
}

fn unsupported(bench: &Bench, reason: &str) -> Vec<PeerResult> {
    let status = || Status::NotSupported { reason: reason.to_owned() };
    let result =
        |peer: &Peer| PeerResult { peer: peer.to_string(), status: status(), ..PeerResult::default() };
    bench.peers.iter().filter(|peer| is_measured(**peer)).map(result).collect()
}

/// Whose configuration knows of capture here.
fn is_measured(peer: Peer) -> bool {
    matches!(peer, Peer::Outrigger | Peer::Envoy)
}

fn measure(bench: &Bench, load: &Load) -> Result<Vec<PeerResult>, Error> {
    // So many new connections would use the ports up for a minute, and the kernel's table of them.
    for (setting, value) in [
        ("ipv4/ip_local_port_range", "1024 65000"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
    ] {
        // Where that cannot be set there are fewer answers, which is told.
        let _ = fs::write(format!("/proc/sys/net/{setting}"), value);
    }
    let mut results = Vec::new();
    // Both would have the same ports: one after the other.
    for &peer in bench.peers.iter().filter(|peer| is_measured(**peer)) {
        let mut running = bench.launch_as(peer, &format!("{:#}", config()), GROUP)?;
        let explicit = SocketAddr::from((Ipv4Addr::LOCALHOST, EXPLICIT));
        running.address = explicit;
        if running.result.status == Status::Measured {
            bench.wait(&mut running);
        }
        for round in 0..=bench.rounds {
            if bench.stopped() || running.result.status != Status::Measured {
                break;
            }
            let seconds = if round == 0 { dropped(bench.seconds) } else { bench.seconds };
            one(bench, &mut running, load, (explicit, seconds), round > 0)?;
        }
        results.push(running.result);
    }
    Ok(results)
}

/// A round: by address, then captured.
fn one(
    bench: &Bench,
    running: &mut Running,
    load: &Load,
    (explicit, seconds): (SocketAddr, f64),
    counts: bool,
) -> Result<(), Error> {
    let seconds = format!("{seconds}s");
    let mut each = Vec::new();
    for to in [explicit, ORIGIN] {
        running.address = to;
        let (run, cpu_us) = costed(bench, running, load, &["-d", &seconds])?;
        if run.requests.successful == 0 {
            running.fail(format!("no good answer by way of {to}"));
            return Ok(());
        }
        let cost = cpu_us.unwrap_or(0.0) / run.requests.answered.max(1) as f64;
        each.push((cost, run));
    }
    if let ([(by_address, plain), (captured, run)], true) = (each.as_slice(), counts) {
        let result = &mut running.result;
        for (key, value) in [
            ("explicit", *by_address),
            ("cpu", *captured),
            ("capture", captured - by_address),
            ("rate", run.rates.answered_per_s),
            ("p50", run.latency.corrected.p50_us),
            ("explicit-p50", plain.latency.corrected.p50_us),
        ] {
            result.add(key, value);
        }
        let bad = run.requests.scheduled.saturating_sub(run.requests.successful + run.requests.in_flight);
        if bad > 0 {
            result.note(format!("{bad} of {} had no good answer", run.requests.scheduled));
        }
        result.run = Some(light(run.clone()));
    }
    // The table of connections is given a moment to forget those that have ended.
    let until = Instant::now() + Duration::from_millis(200);
    while load.unit == "connection" && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
