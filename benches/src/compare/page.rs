//! A comparison as one page that needs nothing else: bars and a table for each scenario, latency by percentile where
//! there is load, and the configurations.

use std::fmt::Write as _;

use super::result::{Comparison, ScenarioResult};
use super::table::{conditions, notes, rows};
use crate::report::html::{escaped, Error, STYLE};
use crate::report::plots;
use crate::result::RunResult;

const OWN: &str = ".bar{display:grid;grid-template-columns:6rem 1fr;gap:.15rem .8rem;align-items:center;max-width:52rem;margin-bottom:1rem}\
.notes{margin:.6rem 0;line-height:1.35;font-size:.9rem}\
.bar b{display:block;height:1.1rem;border-radius:2px;min-width:2px}.bar div{display:flex;gap:.5rem;align-items:center}\
.bar div b{flex:none}pre{overflow-x:auto;background:#f5f7fa;padding:.8rem;font-size:12px}h3{margin-bottom:.3rem}\
td,th{white-space:nowrap}body{max-width:84rem}p{max-width:60rem}.who td,.who th{text-align:left}.quiet{color:#5a6678}nav a{margin-right:1rem}";

/// The page.
///
/// # Errors
/// A plot cannot be drawn.
pub fn page(comparison: &Comparison) -> Result<String, Error> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Outrigger side by side</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}{OWN}</style></head><body>\
         <h1>Outrigger side by side</h1>\n"
    );
    write(comparison, &mut page)?;
    page.push_str("</body></html>\n");
    Ok(page)
}

fn write(comparison: &Comparison, page: &mut String) -> Result<(), Error> {
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "<p>{}</p><table class=\"who\"><tr><th>who<th>version</tr>",
        escaped(&conditions(comparison))
    );
    for peer in &comparison.peers {
        let _ = writeln!(page, "<tr><td>{}<td>{}</tr>", escaped(&peer.name), escaped(&peer.version));
    }
    page.push_str("</table><nav><p>");
    for scenario in &comparison.scenarios {
        let name = escaped(&scenario.name);
        let _ = write!(page, "<a href=\"#{name}\">{name}</a>");
    }
    page.push_str("</p></nav>\n");
    for scenario in &comparison.scenarios {
        let _ = section(scenario, page);
        // Who has no run has a place nevertheless: everybody has the same colour throughout.
        let runs: Vec<RunResult> =
            scenario.peers.iter().map(|peer| peer.run.clone().unwrap_or_default()).collect();
        if scenario.peers.iter().any(|peer| peer.run.is_some()) {
            let plot = plots::percentiles(&runs);
            let plot = plot.map_err(|reason| Error { plot: "latency by percentile", reason })?;
            let _ = writeln!(page, "<h3>Latency by percentile, last round</h3>{plot}");
        }
        page.push_str("<details><summary>Configurations</summary>");
        for peer in scenario.peers.iter().filter(|peer| !peer.config.is_empty()) {
            let _ = writeln!(page, "<h3>{}</h3><pre>{}</pre>", escaped(&peer.peer), escaped(&peer.config));
        }
        page.push_str("</details>\n");
    }
    Ok(())
}

fn section(scenario: &ScenarioResult, page: &mut String) -> std::fmt::Result {
    let name = escaped(&scenario.name);
    writeln!(page, "<h2 id=\"{name}\">{name}</h2><p>{}</p>", escaped(&scenario.about))?;
    // The figure that counts comes first.
    if let Some(metric) = scenario.metrics.first() {
        let summary = |nth: usize| scenario.peers.get(nth).and_then(|peer| peer.summary.get(&metric.key));
        let most = (0..scenario.peers.len()).filter_map(summary).map(|all| all.median).fold(0.0, f64::max);
        if most > 0.0 {
            writeln!(page, "<h3>{}</h3><div class=\"bar\">", escaped(&metric.title))?;
            for (nth, peer) in scenario.peers.iter().enumerate() {
                let Some(summary) = summary(nth) else { continue };
                let (red, green, blue) = plots::colour(nth);
                let width = 75.0 * summary.median.max(0.0) / most;
                let digits = metric.digits;
                let name = escaped(&peer.peer);
                writeln!(
                    page,
                    "<span>{name}</span><div><b style=\"width:{width:.1}%;background:rgb({red},{green},{blue})\"></b>\
                     {:.digits$}</div>",
                    summary.median
                )?;
            }
            page.push_str("</div>\n");
        }
    }
    page.push_str("<div class=\"scroll\"><table>");
    let rows = rows(scenario);
    let columns = rows.first().map_or(0, Vec::len);
    for (nth, row) in rows.iter().enumerate() {
        page.push_str("<tr>");
        let cell = if nth == 0 { "th" } else { "td" };
        for (column, text) in row.iter().enumerate() {
            let span = if column + 1 == row.len() && row.len() < columns {
                format!(" colspan=\"{}\" style=\"text-align:left\" class=\"quiet\"", columns - column)
            } else {
                String::new()
            };
            write!(page, "<{cell}{span}>{}", escaped(text))?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    page.push_str("<p class=\"notes quiet\">");
    for (nth, (peer, note)) in notes(scenario).into_iter().enumerate() {
        let line = if nth > 0 { "<br>" } else { "" };
        writeln!(page, "{line}{}: {}", escaped(peer), escaped(note))?;
    }
    page.push_str("</p>\n");
    Ok(())
}
