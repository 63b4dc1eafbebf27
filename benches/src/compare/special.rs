//! What is no closed loop: added latency at a rate, memory of idle connections, time to the first answer.

use std::time::{Duration, Instant};

use super::bench::{ask, Bench, Running, Speak};
use super::configs::Setup;
use super::load::{add_load, costed, light, MIB};
use super::peer::Peer;
use super::process::{Memory, Process};
use super::result::{Metric, PeerResult, ScenarioResult, Status};
use super::scenario::{Load, Security, BASE};
use super::Error;

/// Percent of what the reference can do.
pub(super) const LEVELS: [u32; 3] = [25, 50, 75];
/// A tail needs more answers than a mean.
pub(super) const LONGER: f64 = 1.5;
/// Idle connections; the last is the largest.
const IDLE: [usize; 2] = [5_000, 10_000];
/// The most processes that are started for a scenario that starts one in each round.
pub(super) const STARTS: u32 = 3;
/// Starts of which the time to the first answer is the median.
pub(super) const FIRST_ANSWERS: u32 = 20;
/// The longest wait for an answer at a start.
const PATIENCE: Duration = Duration::from_secs(120);

/// Open loops at shares of what Envoy (or the first proxy there is) can do.
///
/// # Errors
/// The generator cannot run.
pub fn latency(bench: &mut Bench, say: &mut dyn FnMut(&str)) -> Result<Vec<ScenarioResult>, Error> {
    if !bench.peers.contains(&Peer::None) {
        // What is added is the difference to it.
        bench.peers.push(Peer::None);
    }
    let mut all = bench.start_all(&BASE, say)?;
    let can = |running: &&mut Running| running.result.status == Status::Measured;
    let reference = match all.iter_mut().position(|running| running.peer == Peer::Envoy && can(&running)) {
        Some(at) => all.get_mut(at),
        None => all.iter_mut().find(can),
    };
    let Some(reference) = reference else { return Ok(Vec::new()) };
    let seconds = format!("{}s", bench.seconds);
    bench.run(reference, &BASE, &["-d", &seconds])?;
    let most = bench.run(reference, &BASE, &["-d", &seconds])?.rates.answered_per_s;
    let whose = reference.peer;
    say(&format!("  {whose} can do {most:.0} requests/s"));
    let mut results = Vec::new();
    let longer = format!("{}s", bench.seconds * LONGER);
    for level in LEVELS {
        let rate = (most * f64::from(level) / 100.0).max(1.0);
        for round in 0..=bench.rounds {
            // The way without a proxy comes last in tables, and first here.
            let mut direct = None;
            for running in all.iter_mut().rev() {
                if bench.stopped() || running.result.status != Status::Measured {
                    continue;
                }
                let seconds = if round == 0 { &seconds } else { &longer };
                let flags = ["-d", seconds, "--rate", &format!("{rate:.1}")];
                let (run, cpu_us) = costed(bench, running, &BASE, &flags)?;
                let corrected = &run.latency.corrected;
                let now = [corrected.p50_us, corrected.p90_us, corrected.p99_us, corrected.p999_us];
                let base = *direct.get_or_insert(now);
                if round == 0 {
                    continue;
                }
                add_load(&mut running.result, &run, cpu_us, &BASE);
                for (nth, key) in ["p50", "p90", "p99", "p999"].into_iter().enumerate() {
                    if nth % 2 == 1 {
                        // The other two are added with the load.
                        running.result.add(key, now[nth]);
                    }
                    if running.peer != Peer::None {
                        running.result.add(&format!("added-{key}"), now[nth] - base[nth]);
                    }
                }
                running.result.run = Some(light(run));
            }
        }
        say(&format!("  {level} %: {} rounds", bench.rounds));
        let titles = [("p50", "p50 us"), ("p90", "p90 us"), ("p99", "p99 us"), ("p999", "p99.9 us")];
        let mut metrics = Vec::new();
        for (key, title) in titles {
            // Of what may be nothing there is no ratio.
            let ratio = key == "p50" || key == "p90";
            let full = Metric::full(&format!("added-{key}"), &format!("added {title}"), 0);
            metrics.push(Metric { ratio, ..full });
        }
        metrics.push(Metric::full("cpu", "CPU us/request", 2));
        metrics.extend(titles.into_iter().map(|(key, title)| Metric::plain(key, title, 0)));
        let peers = all.iter_mut().map(|running| {
            let next = PeerResult {
                peer: running.result.peer.clone(),
                status: running.result.status.clone(),
                config: running.result.config.clone(),
                ..PeerResult::default()
            };
            std::mem::replace(&mut running.result, next)
        });
        results.push(ScenarioResult {
            name: level.to_string(),
            about: format!(
                "HTTP/1.1, 32 connections, open loop of {rate:.0} requests/s, which is {level} % of what {whose} can do; \
                 added: with proxy minus without"
            ),
            metrics,
            peers: peers.collect(),
        });
    }
    Ok(results)
}

/// Memory with connections that do nothing.
///
/// # Errors
/// A file cannot be written.
pub fn idle(
    bench: &mut Bench,
    security: Security,
    say: &mut dyn FnMut(&str),
) -> Result<ScenarioResult, Error> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let most = IDLE.iter().max().copied().unwrap_or(0);
    let setup = |bench: &Bench, _: Peer| {
        let connections = u32::try_from(most * 6 / 5).unwrap_or(u32::MAX);
        Ok(Setup { connections, ..bench.setup(&Load { security, ..BASE }, 0)? })
    };
    let starts = bench.rounds.min(STARTS);
    let results = rounds(bench, starts, Some(security), &setup, say, &mut |bench, running, _| {
        let Some(process) = &running.process else { return };
        let (peer, result) = (running.peer, &mut running.result);
        let start = process.settled_memory();
        let files = process.open_files();
        result.add("start", start.rss as f64 / MIB);
        let mut open: Vec<Box<dyn Speak>> = Vec::new();
        for (key, count) in ["some", "many"].into_iter().zip(IDLE) {
            // A relay has a connection to the origin for each from a client.
            let each = if peer.is_proxy() { 1 } else { 2 };
            if count * each + 100 > limit {
                result.note(format!("{count} connections need more than the {limit} files that it may open"));
                break;
            }
            while open.len() < count && !bench.stopped() {
                let answered = bench
                    .connect(running.address, security)
                    .and_then(|mut stream| ask(&mut *stream, "localhost").map(|status| (stream, status)));
                match answered {
                    Ok((stream, 200)) => open.push(stream),
                    Ok((_, status)) => {
                        result.note(format!("connection {} had status {status}", open.len()));
                        break;
                    }
                    Err(error) => {
                        result.note(format!("connection {}: {error}", open.len()));
                        break;
                    }
                }
            }
            if open.len() < count {
                break;
            }
            let Memory { rss, pss } = process.settled_memory();
            // Some close the oldest when there are too many.
            let kept = process.open_files().saturating_sub(files);
            // It may have had one to the origin before that is gone now.
            if kept + 16 < count {
                result.note(format!("has only {kept} files more open with {count} connections"));
                break;
            }
            result.add(key, rss as f64 / MIB);
            let grown = rss.saturating_sub(start.rss) as f64;
            result.add(&format!("{key}-each"), grown / 1024.0 / count as f64);
            if let Some(pss) = pss {
                result.add(&format!("{key}-pss"), pss as f64 / MIB);
            }
        }
        let opened = open.len();
        drop(open);
        let deadline = Instant::now() + Duration::from_secs(10);
        // It keeps what it has to the origin.
        while process.open_files() > files + 64 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if opened >= IDLE[0] {
            result.add("after", process.settled_memory().rss as f64 / MIB);
        }
    })?;
    let metrics = vec![
        Metric::full("start", "RSS at start MiB", 1),
        Metric::with_ratio("some", "RSS at 5,000 MiB", 1),
        Metric::with_ratio("many", "RSS at 10,000 MiB", 1),
        Metric::with_ratio("many-pss", "PSS at 10,000 MiB", 1),
        Metric::with_ratio("some-each", "KiB/connection at 5,000", 2),
        Metric::full("many-each", "KiB/connection at 10,000", 2),
        Metric::with_ratio("after", "RSS after MiB", 1),
    ];
    Ok(ScenarioResult { metrics, peers: results, ..ScenarioResult::default() })
}

/// From the start to the first answer.
///
/// # Errors
/// A file cannot be written.
pub fn start(bench: &mut Bench, say: &mut dyn FnMut(&str)) -> Result<ScenarioResult, Error> {
    // Quick rounds are for a first look here too.
    let starts = if bench.seconds < 2.0 { 5 } else { FIRST_ANSWERS };
    let results =
        rounds(bench, starts, None, &|bench, _| bench.setup(&BASE, 0), say, &mut |bench, running, begin| {
            if ready(bench, running, begin, "localhost").is_some() {
                let memory = running.process.as_ref().map(Process::memory).unwrap_or_default();
                running.result.add("rss", memory.rss as f64 / MIB);
            }
        })?;
    let metrics = vec![
        Metric::full("ready", "first answer after ms", 1),
        Metric::full("ready-cpu", "CPU ms until then", 1),
        Metric::with_ratio("rss", "RSS then MiB", 1),
    ];
    Ok(ScenarioResult { metrics, peers: results, ..ScenarioResult::default() })
}

pub(super) type Round<'a> = &'a mut dyn FnMut(&Bench, &mut Running, Instant);

/// What to start a peer with.
pub(super) type Prepare<'a> = &'a dyn Fn(&Bench, Peer) -> Result<Setup, Error>;

/// Rounds in which each process is a new one; with `wait` it has answered like that before the round begins.
pub(super) fn rounds(
    bench: &Bench,
    count: u32,
    wait: Option<Security>,
    setup: Prepare<'_>,
    say: &mut dyn FnMut(&str),
    round: Round<'_>,
) -> Result<Vec<PeerResult>, Error> {
    let mut results: Vec<Option<PeerResult>> = bench.peers.iter().map(|_| None).collect();
    for nth in 1..=count {
        for (&peer, result) in bench.peers.iter().zip(&mut results) {
            let over = result.as_ref().is_some_and(|result| result.status != Status::Measured);
            if peer == Peer::None || over || bench.stopped() {
                continue;
            }
            let setup = setup(bench, peer)?;
            // Others have no clusters, and end no TLS.
            if (setup.clusters > 0 || setup.secure_clients) && !peer.is_proxy() {
                continue;
            }
            let mut running = bench.launch(peer, &setup)?;
            if let Some(earlier) = result.take() {
                let status = running.result.status.clone();
                running.result = PeerResult { status, ..earlier };
            }
            // Writing the configuration is not part of a start.
            let begin = running.begun.unwrap_or_else(Instant::now);
            if running.result.status == Status::Measured
                && wait.is_none_or(|security| answers(bench, &mut running, security, "localhost"))
            {
                round(bench, &mut running, begin);
            }
            *result = Some(running.result);
        }
        say(&format!("  round {nth} of {count}"));
    }
    Ok(results.into_iter().flatten().collect())
}

/// Waits for the first answer, and notes when it came and what was used until then.
pub(super) fn ready<'a>(
    bench: &Bench,
    running: &'a mut Running,
    begin: Instant,
    host: &str,
) -> Option<&'a Process> {
    if !answers(bench, running, Security::Plain, host) {
        return None;
    }
    running.result.add("ready", begin.elapsed().as_secs_f64() * 1000.0);
    let process = running.process.as_ref()?;
    running.result.add("ready-cpu", process.cpu() as f64 / 1e6);
    Some(process)
}

/// Waits until it answers a request with 200; otherwise its status says why not.
fn answers(bench: &Bench, running: &mut Running, security: Security, host: &str) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut looked = Instant::now();
    loop {
        if bench
            .connect(running.address, security)
            .is_ok_and(|mut stream| ask(&mut *stream, host).is_ok_and(|status| status == 200))
        {
            return true;
        }
        // Not every time: it takes longer than to connect.
        if looked.elapsed() > Duration::from_millis(50) {
            looked = Instant::now();
            bench.check(running);
        }
        if running.result.status != Status::Measured || bench.stopped() {
            return false;
        }
        if Instant::now() > deadline {
            running.fail(format!("does not answer after {} s", PATIENCE.as_secs()));
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
