//! A comparison as text: a table for each scenario, aligned, which is also one of Markdown.

use std::fmt::Write as _;

use super::result::{Comparison, Metric, PeerResult, ScenarioResult, Status, Summary};

/// The whole comparison.
pub fn text(comparison: &Comparison) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(comparison, &mut text);
    text
}

fn write(comparison: &Comparison, text: &mut String) -> std::fmt::Result {
    writeln!(text, "{}", conditions(comparison))?;
    for scenario in &comparison.scenarios {
        writeln!(text, "\n{}: {}\n", scenario.name, scenario.about)?;
        text.push_str(&markdown(&rows(scenario)));
        for (peer, note) in notes(scenario) {
            writeln!(text, "{peer}: {note}")?;
        }
    }
    Ok(())
}

/// Where and how it was measured, in a sentence or two.
pub fn conditions(comparison: &Comparison) -> String {
    let machine = &comparison.machine;
    let pinned = match (machine.proxy_core, machine.load_core) {
        (Some(proxy), Some(load)) => format!("proxy on core {proxy}, load and origin on core {load}"),
        _ => "nothing pinned".to_owned(),
    };
    let early = if comparison.interrupted { " Ended early." } else { "" };
    format!(
        "{} ({} cores), Linux {}, TCP {}; {pinned}; idle cores {}; {} interleaved rounds of {} s. Median [smallest..largest] (x ratio to \
         outrigger).{early}",
        machine.processor,
        machine.cores,
        machine.kernel,
        machine.congestion,
        if machine.awake { "poll" } else { "sleep" },
        comparison.rounds,
        comparison.seconds
    )
}

/// The cells of a scenario's table, the first row its head.
pub fn rows(scenario: &ScenarioResult) -> Vec<Vec<String>> {
    // A figure that nobody has is no column.
    let has = |metric: &&Metric| scenario.peers.iter().any(|peer| peer.summary.contains_key(&metric.key));
    let metrics: Vec<_> = scenario.metrics.iter().filter(has).collect();
    let mut head = vec![String::new()];
    head.extend(metrics.iter().map(|metric| metric.title.clone()));
    if metrics.is_empty() {
        head.push("result".to_owned());
    }
    let mut rows = vec![head];
    for peer in &scenario.peers {
        let mut row = vec![peer.peer.clone()];
        match state(peer) {
            Some(state) => row.push(state),
            None => row.extend(metrics.iter().map(|metric| {
                peer.summary
                    .get(&metric.key)
                    .map_or_else(|| "-".to_owned(), |summary| cell(metric, summary, peer))
            })),
        }
        rows.push(row);
    }
    rows
}

/// What stands instead of figures.
pub fn state(peer: &PeerResult) -> Option<String> {
    let short = |reason: &str| reason.chars().take(100).collect::<String>().replace('|', "/");
    match &peer.status {
        Status::Measured => None,
        Status::NotSupported { .. } => Some("not supported".to_owned()),
        Status::Failed { reason } => Some(format!("failed: {}", short(reason))),
        Status::NotYet { reason } => Some(format!("not yet: {}", short(reason))),
    }
}

fn cell(metric: &Metric, summary: &Summary, peer: &PeerResult) -> String {
    let digits = metric.digits;
    let mut cell = format!("{:.digits$}", summary.median);
    if metric.spread {
        let _ = write!(cell, " [{:.digits$}..{:.digits$}]", summary.min, summary.max);
    }
    match summary.ratio {
        Some(ratio) if metric.ratio && peer.peer != super::peer::OURS => {
            let _ = write!(cell, " (x{ratio:.2})");
        }
        _ => {}
    }
    cell
}

/// What is worth knowing of those in it.
pub fn notes(scenario: &ScenarioResult) -> Vec<(&str, &str)> {
    let mut notes = Vec::new();
    for peer in &scenario.peers {
        if let Status::NotSupported { reason } = &peer.status {
            notes.push((peer.peer.as_str(), reason.as_str()));
        }
        notes.extend(peer.notes.iter().map(|note| (peer.peer.as_str(), note.as_str())));
    }
    notes
}

/// Rows as a table of Markdown that can be read as it is.
fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        // One that says why there are no figures is as wide as it is.
        let full = rows.iter().filter(|row| column == 0 || row.len() == columns);
        full.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let mut text = String::new();
    for (nth, row) in rows.iter().enumerate() {
        for column in 0..columns {
            let (cell, width) = (row.get(column).map_or("", String::as_str), width(column));
            let _ = match column {
                0 => write!(text, "| {cell:width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if nth == 0 {
            for column in 0..columns {
                let dashes = "-".repeat(width(column));
                let _ = match column {
                    0 => write!(text, "|-{dashes}-|"),
                    _ => write!(text, "-{dashes}:|"),
                };
            }
            text.push('\n');
        }
    }
    text
}
