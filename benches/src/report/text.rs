//! A result as text.

use std::fmt::Write as _;

use crate::result::{Distribution, RunResult, Schedule};

/// A time in the unit that suits it.
pub fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.1} us"),
        us if us < 1_000_000.0 => format!("{:.2} ms", us / 1000.0),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// A count or rate, short.
pub fn count(value: f64) -> String {
    match value {
        value if value < 10_000.0 => format!("{value:.0}"),
        value if value < 1e6 => format!("{:.1}k", value / 1e3),
        value if value < 1e9 => format!("{:.2}M", value / 1e6),
        value => format!("{:.2}G", value / 1e9),
    }
}

/// When requests were sent, in words.
pub fn schedule(result: &RunResult) -> String {
    let rates = |rates: &[f64]| rates.iter().map(|rate| count(*rate)).collect::<Vec<_>>().join(", ");
    match &result.work.schedule {
        Schedule::Closed => "closed loop".to_owned(),
        Schedule::Constant { rate } => format!("{}/s", count(*rate)),
        Schedule::Poisson { rate } => format!("{}/s, Poisson", count(*rate)),
        Schedule::Ramp { from, to } => format!("{}/s to {}/s", count(*from), count(*to)),
        Schedule::Steps { rates: steps } => format!("steps of {}/s", rates(steps)),
    }
}

/// The rows of a table of latencies.
pub fn latencies(result: &RunResult) -> Vec<(&'static str, &Distribution)> {
    let latency = &result.latency;
    let mut rows = vec![("corrected", &latency.corrected)];
    if result.work.schedule != Schedule::Closed {
        rows.push(("uncorrected", &latency.uncorrected));
    } else {
        rows.clear();
        rows.push(("latency", &latency.uncorrected));
    }
    rows.push(("first byte", &latency.first_byte));
    rows.push(("connect", &result.connections.connect));
    rows.push(("tls", &result.connections.tls_handshake));
    rows.retain(|(_, distribution)| distribution.count > 0);
    rows
}

/// The columns of that table.
pub fn columns(distribution: &Distribution) -> [(&'static str, f64); 9] {
    [
        ("min", distribution.min_us),
        ("mean", distribution.mean_us),
        ("p50", distribution.p50_us),
        ("p75", distribution.p75_us),
        ("p90", distribution.p90_us),
        ("p99", distribution.p99_us),
        ("p99.9", distribution.p999_us),
        ("p99.99", distribution.p9999_us),
        ("max", distribution.max_us),
    ]
}

/// The whole result.
pub fn text(result: &RunResult) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(result, &mut text);
    text
}

fn write(result: &RunResult, text: &mut String) -> std::fmt::Result {
    let (work, requests, rates) = (&result.work, &result.requests, &result.rates);
    writeln!(text, "{}", result.name)?;
    writeln!(
        text,
        "{}, {} connections x {}, {} threads, {:.2} s{}",
        schedule(result),
        work.connections,
        work.streams,
        work.threads,
        result.measured_s,
        if result.interrupted { " (ended early)" } else { "" }
    )?;
    writeln!(text, "\n{} answers/s, {} offered/s", count(rates.answered_per_s), count(rates.offered_per_s))?;
    writeln!(
        text,
        "{}B/s sent, {}B/s received",
        count(rates.sent_bytes_per_s),
        count(rates.received_bytes_per_s)
    )?;
    if result.traffic.received_messages > 0 {
        writeln!(text, "{} messages/s received", count(rates.received_messages_per_s))?;
    }
    writeln!(
        text,
        "\nrequests: {} sent = {} answered + {} failed + {} in flight; {} not sent",
        requests.sent, requests.answered, requests.failed, requests.in_flight, requests.unsent
    )?;
    for (status, count) in &result.by_status {
        writeln!(text, "  {status}: {count}")?;
    }
    for (reason, count) in &requests.failed_by_reason {
        writeln!(text, "  failed, {reason}: {count}")?;
    }
    if !requests.unexpected.is_empty() {
        writeln!(text, "  no answer: {}", requests.unexpected)?;
    }
    let connections = &result.connections;
    writeln!(
        text,
        "connections: {} opened, {} failed, {} lost, {} resumed {}",
        connections.opened, connections.failed, connections.lost, connections.resumed, connections.tls
    )?;
    for (reason, count) in &connections.failed_by_reason {
        writeln!(text, "  failed, {reason}: {count}")?;
    }
    writeln!(text)?;
    for (nth, (name, distribution)) in latencies(result).into_iter().enumerate() {
        let columns = columns(distribution);
        if nth == 0 {
            let names: String = columns.iter().map(|(name, _)| format!("{name:>11}")).collect();
            writeln!(text, "{:12}{names}", "")?;
        }
        let values: String = columns.iter().map(|(_, us)| format!("{:>11}", time(*us))).collect();
        writeln!(text, "{name:12}{values}")?;
    }
    let tool = &result.tool;
    writeln!(
        text,
        "\nthis tool: {:.2} CPU s, {:.2} us an answer, busiest thread at {:.0} % of a core{}",
        tool.cpu_s,
        tool.cpu_us_per_answer,
        tool.busiest_thread * 100.0,
        if tool.busiest_thread > 0.9 { ": it may be the limit" } else { "" }
    )?;
    if let Some(best) =
        result.search.iter().filter(|trial| trial.kept).map(|trial| trial.rate).reduce(f64::max)
    {
        writeln!(text, "highest rate that keeps the goal: {}/s", count(best))?;
    } else if !result.search.is_empty() {
        writeln!(text, "no rate kept the goal")?;
    }
    Ok(())
}
