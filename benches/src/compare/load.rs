//! Closed loops: what a request costs, how many there are in a second, and how long they take.

use super::bench::{answered_well, Bench, Running};
use super::result::{Metric, PeerResult, ScenarioResult, Status};
use super::scenario::Load;
use super::Error;
use crate::result::RunResult;

/// Bytes of a mebibyte.
pub const MIB: f64 = 1024.0 * 1024.0;

/// Seconds of the round before the others, which is dropped.
pub fn dropped(seconds: f64) -> f64 {
    seconds.min(1.0)
}

/// Interleaved rounds of all that can do it.
///
/// # Errors
/// The generator cannot run.
pub fn measure(bench: &mut Bench, load: &Load, say: &mut dyn FnMut(&str)) -> Result<ScenarioResult, Error> {
    let mut all = bench.start_all(load, say)?;
    for round in 0..=bench.rounds {
        for running in &mut all {
            if bench.stopped() {
                break;
            }
            if running.result.status != Status::Measured {
                continue;
            }
            let seconds = if round == 0 { dropped(bench.seconds) } else { bench.seconds };
            let seconds = format!("{seconds}s");
            let (run, cpu_us) = costed(bench, running, load, &["-d", &seconds])?;
            if load.flags.contains(&"--resume") && run.connections.resumed * 2 < run.connections.opened {
                let resumed = 100.0 * run.connections.resumed as f64 / run.connections.opened as f64;
                // Some may send their tickets only with the first data.
                running.fail(format!("{resumed:.0} % of the sessions were resumed"));
                running.result.samples.clear();
                continue;
            }
            if round == 0 {
                continue;
            }
            add_load(&mut running.result, &run, cpu_us, load);
            if let Some(memory) = running.memory() {
                running.result.add("rss", memory.rss as f64 / MIB);
                if let Some(pss) = memory.pss {
                    running.result.add("pss", pss as f64 / MIB);
                }
            }
            running.result.run = Some(light(run));
        }
        say(&format!("  round {round} of {}{}", bench.rounds, if round == 0 { " (dropped)" } else { "" }));
        if bench.stopped() {
            break;
        }
    }
    let unit = load.unit;
    let mut metrics = vec![
        Metric::full("cpu", &format!("CPU us/{unit}"), 2),
        Metric::full("rate", &format!("{unit}/s"), 0),
        Metric::plain("busy", "proxy's core %", 0),
        Metric::plain("p50", "p50 us", 0),
        Metric::plain("p99", "p99 us", 0),
        Metric::with_ratio("rss", "RSS MiB", 1),
        Metric::with_ratio("pss", "PSS MiB", 1),
    ];
    if load.download {
        // A part that waits in a buffer takes no time.
        metrics.retain(|metric| !metric.key.starts_with('p') || metric.key == "pss");
    }
    let peers = all.into_iter().map(|running| running.result).collect();
    Ok(ScenarioResult { metrics, peers, ..ScenarioResult::default() })
}

/// A run, and the microseconds of CPU that the proxy used while it went on.
///
/// # Errors
/// The generator cannot run.
pub fn costed(
    bench: &Bench,
    running: &mut Running,
    load: &Load,
    flags: &[&str],
) -> Result<(RunResult, Option<f64>), Error> {
    let before = running.cpu();
    let run = bench.run(running, load, flags)?;
    let after = running.cpu();
    bench.check(running);
    if let Status::NotSupported { reason } = &running.result.status {
        // It could do it before.
        running.result.status = Status::Failed { reason: format!("ended under load: {reason}") };
    }
    Ok((run, before.zip(after).map(|(before, after)| after.saturating_sub(before) as f64 / 1000.0)))
}

/// Adds the figures of a run. There is no warm-up in it: CPU and answers are of the same time.
pub fn add_load(result: &mut PeerResult, run: &RunResult, cpu_us: Option<f64>, load: &Load) {
    let requests = &run.requests;
    if let Some(cpu_us) = cpu_us {
        if requests.answered > 0 {
            result.add("cpu", cpu_us / requests.answered as f64);
        }
        result.add("busy", cpu_us / 1e4 / run.measured_s.max(1e-9));
    }
    result.add("rate", run.rates.answered_per_s);
    for (key, us) in [("p50", run.latency.corrected.p50_us), ("p99", run.latency.corrected.p99_us)] {
        result.add(key, us);
    }
    let bad = requests.scheduled.saturating_sub(answered_well(run, load) + requests.in_flight);
    if bad > 0 {
        let reasons = requests.failed_by_reason.keys().chain(Some(&requests.unexpected)).map(String::as_str);
        let reasons: Vec<_> = reasons.filter(|text| !text.is_empty()).collect();
        result.note(format!("{bad} of {} had no good answer {}", requests.scheduled, reasons.join(", ")));
    }
    if !run.connections.tls.is_empty() {
        result.note(run.connections.tls.clone());
    }
}

/// Without what no table or plot of a comparison shows.
pub fn light(mut run: RunResult) -> RunResult {
    run.series.clear();
    let connections = &mut run.connections;
    let latency = &mut run.latency;
    let all = [
        &mut latency.corrected,
        &mut latency.uncorrected,
        &mut latency.first_byte,
        &mut connections.connect,
        &mut connections.tls_handshake,
    ];
    for (nth, distribution) in all.into_iter().enumerate() {
        distribution.buckets.clear();
        if nth > 0 {
            distribution.curve.clear();
        }
    }
    run
}
