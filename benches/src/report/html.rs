//! Results as one page that needs nothing else: tables, and plots as inline SVG.

use std::fmt::Write as _;

use super::plots;
use super::text::{columns, count, latencies, schedule, time};
use crate::result::RunResult;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {plot}: {reason}")]
pub struct Error {
    /// Which plot.
    pub plot: &'static str,
    /// What the library says.
    pub reason: String,
}

/// How pages look.
pub(crate) const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;max-width:70rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e3e7ee}th:first-child,td:first-child{text-align:left}\
th{color:#5a6678;font-weight:600}.scroll{overflow-x:auto}svg{max-width:100%;height:auto}.bad{color:#b3261e}\
i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.5em}";

/// The page of one or several results.
///
/// # Errors
/// A plot cannot be drawn.
pub fn page(results: &[RunResult]) -> Result<String, Error> {
    let title = match results {
        [one] => escaped(&one.name),
        many => format!("{} runs compared", many.len()),
    };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body><h1>{title}</h1>\n"
    );
    let drawn = |plot, drawn: Result<String, String>| drawn.map_err(|reason| Error { plot, reason });
    // Writing to a string cannot fail.
    let _ = tables(results, &mut page);
    for (heading, plot) in [
        ("Latency by percentile", drawn("latency by percentile", plots::percentiles(results))?),
        (
            "p99 over time",
            drawn("latency over time", plots::over_time(results, "ms", |i| i.p99_us / 1000.0))?,
        ),
        (
            "Answers per second over time",
            drawn(
                "rate over time",
                plots::over_time(results, "per second", |i| i.answered as f64 / i.length_s.max(1e-9)),
            )?,
        ),
    ] {
        let _ = writeln!(page, "<h2>{heading}</h2>{plot}");
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn tables(results: &[RunResult], page: &mut String) -> std::fmt::Result {
    writeln!(
        page,
        "<h2>Requests</h2><div class=\"scroll\"><table><tr><th>run<th>schedule<th>answers/s<th>sent\
        <th>answered<th>failed<th>in flight<th>not sent<th>received/s<th>tool us/answer</tr>"
    )?;
    for (nth, result) in results.iter().enumerate() {
        let (requests, rates) = (&result.requests, &result.rates);
        let mark = |count: u64| if count > 0 { " class=\"bad\"" } else { "" };
        writeln!(
            page,
            "<tr><td>{}{}<td>{}, {} x {}<td>{}<td>{}<td>{}<td{}>{}<td>{}<td{}>{}<td>{}B<td>{:.2}</tr>",
            swatch(nth),
            escaped(&result.name),
            schedule(result),
            result.work.connections,
            result.work.streams,
            count(rates.answered_per_s),
            requests.sent,
            requests.answered,
            mark(requests.failed),
            requests.failed,
            requests.in_flight,
            mark(requests.unsent),
            requests.unsent,
            count(rates.received_bytes_per_s),
            result.tool.cpu_us_per_answer,
        )?;
    }
    page.push_str("</table></div><h2>Times</h2><div class=\"scroll\"><table>");
    for (nth, result) in results.iter().enumerate() {
        for (row, (name, distribution)) in latencies(result).into_iter().enumerate() {
            let columns = columns(distribution);
            if nth == 0 && row == 0 {
                page.push_str("<tr><th>run<th>time");
                columns.iter().try_for_each(|(name, _)| write!(page, "<th>{name}"))?;
                page.push_str("</tr>\n");
            }
            write!(page, "<tr><td>{}{}<td>{name}", swatch(nth), escaped(&result.name))?;
            columns.iter().try_for_each(|(_, us)| write!(page, "<td>{}", time(*us)))?;
            page.push_str("</tr>\n");
        }
    }
    page.push_str(
        "</table></div><h2>Outcomes</h2><div class=\"scroll\"><table><tr><th>run<th>outcome<th>count</tr>",
    );
    for (nth, result) in results.iter().enumerate() {
        let answers = result.by_status.iter().map(|(status, count)| (format!("answered {status}"), count));
        let failures = &result.requests.failed_by_reason;
        let failures = failures.iter().map(|(reason, count)| (format!("failed: {reason}"), count));
        let connections = &result.connections.failed_by_reason;
        let connections =
            connections.iter().map(|(reason, count)| (format!("no connection: {reason}"), count));
        for (outcome, count) in answers.chain(failures).chain(connections) {
            let name = escaped(&result.name);
            writeln!(page, "<tr><td>{}{name}<td>{}<td>{count}</tr>", swatch(nth), escaped(&outcome))?;
        }
    }
    page.push_str("</table></div>\n");
    if let [one] = results {
        if !one.search.is_empty() {
            page.push_str("<h2>Search</h2><table><tr><th>rate<th>answers/s<th>p99<th>bad<th>goal</tr>");
            for trial in &one.search {
                let (rate, answered) = (count(trial.rate), count(trial.answered_per_s));
                let kept = if trial.kept { "kept" } else { "missed" };
                let (p99, bad) = (time(trial.p99_us), trial.bad_share * 100.0);
                writeln!(page, "<tr><td>{rate}<td>{answered}<td>{p99}<td>{bad:.3} %<td>{kept}</tr>")?;
            }
            page.push_str("</table>");
        }
    }
    Ok(())
}

fn swatch(nth: usize) -> String {
    let (red, green, blue) = plots::colour(nth);
    format!("<i style=\"background:rgb({red},{green},{blue})\"></i>")
}

/// Text as a page has it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
