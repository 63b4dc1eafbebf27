//! Large configurations, and their changes: over delta ADS for those that follow a control plane, each with one of its
//! own; in a file for the others.
//!
//! The time of a change is that from the moment when the control plane has it to the end of the first request that the
//! changed endpoint answers, on one connection that asks without a pause. The control plane's own work, gRPC on both
//! sides and that request are in it: it is more than the time from receipt to effect, which Outrigger itself says.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::bench::{ask, connect, Bench, Running, ENDPOINTS};
use super::configs::{domain, DOMAINS};
use super::control::{ControlPlane, Elsewhere, Mesh, ELSEWHERE};
use super::load::{add_load, costed, light, MIB};
use super::peer::Peer;
use super::result::{Metric, PeerResult, ScenarioResult, Status};
use super::scenario::BASE;
use super::special::{ready, rounds, STARTS};
use super::Error;

/// Changes of an endpoint in a round.
const CHANGES: usize = 400;
/// The longest wait for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Changes of endpoints in a second.
const CHURN_RATE: u32 = 100;
/// Requests in a second meanwhile.
const LOAD_RATE: &str = "5000";

/// A large configuration.
///
/// # Errors
/// The generator cannot run.
pub fn scale(bench: &mut Bench, clusters: usize, say: &mut dyn FnMut(&str)) -> Result<ScenarioResult, Error> {
    let host = domain(clusters.saturating_sub(1), DOMAINS - 1);
    let header = format!("Host: {host}");
    let mut failed = None;
    let seconds = format!("{}s", bench.seconds);
    let starts = bench.rounds.min(STARTS);
    let changes = if bench.seconds < 2.0 { CHANGES / 8 } else { CHANGES };
    let mesh = Mesh::new(clusters, &bench.setup(&BASE, clusters)?.endpoints)?;
    let elsewhere = Elsewhere::start(ENDPOINTS)?;
    let plane = RefCell::new(None);
    let mut results = rounds(
        bench,
        starts,
        None,
        &|bench, peer| {
            let mut setup = bench.setup(&BASE, clusters)?;
            plane.take();
            if peer.follows_control_planes() {
                let new = ControlPlane::start(&mesh, &setup, &elsewhere.endpoints, bench.load_core())?;
                setup.control = Some(new.address);
                plane.replace(Some(new));
            }
            Ok(setup)
        },
        say,
        &mut |bench, running, begin| {
            let plane = plane.borrow();
            let Some(process) = ready(bench, running, begin, &host) else {
                for refused in plane.iter().flat_map(ControlPlane::refused) {
                    running.result.note(refused);
                }
                return;
            };
            let memory = process.settled_memory();
            running.result.add("rss", memory.rss as f64 / MIB);
            if let Some(pss) = memory.pss {
                running.result.add("pss", pss as f64 / MIB);
            }
            let run = bench
                .run(running, &BASE, &["-H", &header, "-d", "300ms"])
                .and_then(|_| costed(bench, running, &BASE, &["-H", &header, "-d", &seconds]));
            match run {
                Ok((run, cpu_us)) => {
                    add_load(&mut running.result, &run, cpu_us, &BASE);
                    running.result.run = Some(light(run));
                }
                Err(error) => failed = Some(error),
            }
            if let Some(plane) = &*plane {
                change(bench, running, plane, &host, changes);
                add_effect(running);
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    publish(&mut results, &mesh);
    let metrics = vec![
        Metric::full("ready", "first answer after ms", 0),
        Metric::plain("ready-cpu", "CPU ms until then", 0),
        Metric::full("rss", "RSS MiB", 1),
        Metric::with_ratio("pss", "PSS MiB", 1),
        Metric::full("cpu", "CPU us/request", 2),
        Metric::plain("rate", "request/s", 0),
        Metric::with_ratio("change-p50", "endpoint change p50 us", 0),
        Metric::with_ratio("change-p99", "endpoint change p99 us", 0),
        Metric::plain("effect-p50", "receipt to effect p50 us", 0),
        Metric::plain("effect-p99", "receipt to effect p99 us", 0),
    ];
    Ok(ScenarioResult { metrics, peers: results, ..ScenarioResult::default() })
}

/// Changes the last cluster's endpoints to and fro, and waits each time until a request sees it.
fn change(bench: &Bench, running: &mut Running, plane: &ControlPlane, host: &str, changes: usize) {
    let Ok(mut stream) = connect(running.address) else {
        return running.fail("no more connections".to_owned());
    };
    let mut times = Vec::with_capacity(changes);
    for nth in 0..changes {
        let others = nth % 2 == 0;
        let wanted = if others { ELSEWHERE } else { 200 };
        let begin = Instant::now();
        plane.change(others);
        loop {
            let Ok(status) = ask(&mut stream, host) else {
                running.result.note("a connection was closed while an endpoint changed".to_owned());
                match connect(running.address) {
                    Ok(new) => stream = new,
                    Err(error) => return running.fail(format!("no more connections: {error}")),
                }
                continue;
            };
            if status == wanted {
                break;
            }
            if status != ELSEWHERE && status != 200 {
                running.result.note(format!("status {status} while an endpoint changed"));
            }
            if begin.elapsed() > PATIENCE || bench.stopped() {
                return running.fail(format!("a changed endpoint is not used after {PATIENCE:?}"));
            }
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        // Not at once: the proxy has to say yes before there is more.
        std::thread::sleep(Duration::from_millis(5));
    }
    times.sort_by(f64::total_cmp);
    for (key, part) in [("change-p50", 0.5), ("change-p99", 0.99)] {
        // The nearest rank; a share of what is in memory.
        let rank = (times.len() as f64 * part).ceil() as usize;
        if let Some(us) = times.get(rank.saturating_sub(1)) {
            running.result.add(key, *us);
        }
    }
}

/// Adds how long the proxy itself says that endpoints took from their receipt until requests went by them.
fn add_effect(running: &mut Running) {
    for (key, us) in ["effect-p50", "effect-p99"].into_iter().zip(effect(running.admin).into_iter().flatten())
    {
        running.result.add(key, us);
    }
}

/// The median and the 99th percentile of `time_to_effect_us`, where there is such a statistic.
fn effect(admin: SocketAddr) -> Option<[f64; 2]> {
    let mut stream = connect(admin).ok()?;
    let question = "GET /stats?format=json&filter=eds.time_to_effect_us HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n";
    stream.write_all(question.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let body: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
    let histograms = &body["stats"][0]["histograms"];
    let percents = histograms["supported_quantiles"].as_array()?;
    let values = &histograms["computed_quantiles"][0]["values"];
    let at = |wanted: f64| {
        let index = percents.iter().position(|percent| percent.as_f64() == Some(wanted))?;
        values[index]["cumulative"].as_f64()
    };
    Some([at(50.0)?, at(99.0)?])
}

/// An endpoint assignment that changes all the time, one of many, under a steady load; routes and a listener that change
/// now and then.
///
/// # Errors
/// The generator cannot run.
pub fn churn(bench: &Bench, clusters: usize, say: &mut dyn FnMut(&str)) -> Result<ScenarioResult, Error> {
    let host = domain(clusters.saturating_sub(1), DOMAINS - 1);
    let header = format!("Host: {host}");
    let seconds = format!("{}s", bench.seconds);
    let flags = ["-H", &header, "-d", &seconds, "--rate", LOAD_RATE];
    let mut mesh = None;
    let mut results = Vec::new();
    for &peer in bench.peers.iter().filter(|peer| peer.is_proxy()) {
        if !peer.follows_control_planes() {
            let reason = "follows no control plane".to_owned();
            results.push(PeerResult {
                peer: peer.to_string(),
                status: Status::NotSupported { reason },
                ..PeerResult::default()
            });
            continue;
        }
        let mut setup = bench.setup(&BASE, clusters)?;
        let mesh = match &mut mesh {
            Some(mesh) => mesh,
            none => none.insert(Mesh::new(clusters, &setup.endpoints)?),
        };
        // Half of the endpoints come and go; all of them are good.
        let half: Vec<_> = setup.endpoints.iter().copied().take(usize::from(ENDPOINTS / 2)).collect();
        let plane = ControlPlane::start(mesh, &setup, &half, bench.load_core())?;
        setup.control = Some(plane.address);
        let mut running = bench.launch(peer, &setup)?;
        let begin = running.begun.unwrap_or_else(Instant::now);
        if running.result.status == Status::Measured && ready(bench, &mut running, begin, &host).is_some() {
            for round in 0..=bench.rounds {
                if bench.stopped() || running.result.status != Status::Measured {
                    break;
                }
                let (calm, _) = costed(bench, &mut running, &BASE, &flags)?;
                let before = plane.acknowledged();
                let (churned, changes) =
                    plane.churn(CHURN_RATE, || costed(bench, &mut running, &BASE, &flags));
                let (churned, cpu_us) = churned?;
                if round == 0 {
                    continue;
                }
                let bad = |run: &crate::result::RunResult| {
                    let requests = &run.requests;
                    requests.scheduled.saturating_sub(requests.successful + requests.in_flight) as f64
                };
                let result = &mut running.result;
                result.add("calm-p50", calm.latency.corrected.p50_us);
                result.add("calm-p99", calm.latency.corrected.p99_us);
                result.add("calm-failed", bad(&calm));
                result.add("changes", changes as f64 / bench.seconds);
                result.add("taken", plane.acknowledged().saturating_sub(before) as f64 / bench.seconds);
                result.add("failed", bad(&churned));
                add_load(result, &churned, cpu_us, &BASE);
                result.run = Some(light(churned));
            }
            for refused in plane.refused() {
                running.result.note(refused);
            }
            add_effect(&mut running);
        }
        say(&format!("  {peer}: {} rounds", bench.rounds));
        results.push(running.result);
    }
    if let Some(mesh) = &mesh {
        publish(&mut results, mesh);
    }
    let metrics = vec![
        Metric::full("calm-p99", "p99 us without", 0),
        Metric::full("p99", "p99 us with", 0),
        Metric::plain("calm-p50", "p50 us without", 0),
        Metric::plain("p50", "p50 us with", 0),
        Metric::plain("failed", "failed", 0),
        Metric::plain("calm-failed", "failed without", 0),
        Metric::plain("changes", "changes/s", 0),
        Metric::plain("taken", "taken/s", 0),
        Metric::plain("effect-p50", "receipt to effect p50 us", 0),
        Metric::plain("effect-p99", "receipt to effect p99 us", 0),
        Metric::full("cpu", "CPU us/request", 2),
    ];
    Ok(ScenarioResult { metrics, peers: results, ..ScenarioResult::default() })
}

/// Shows what the control plane gives beside the bootstraps of those that get it.
fn publish(results: &mut [PeerResult], mesh: &Mesh) {
    for result in results {
        let follows = [Peer::Outrigger, Peer::Envoy].iter().any(|peer| peer.to_string() == result.peer);
        if follows {
            result.config += &format!("\n# From the control plane, the last of each:\n{}", mesh.sample);
        }
    }
}
