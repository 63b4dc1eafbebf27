//! `/stats` and `/stats/prometheus`.

use super::{AdminState, Answer, Params};
use crate::telemetry::metrics::{self, HistogramView, Kind, Query};

pub(super) const PARAMS: &[(&str, &str)] = &[
    ("usedonly", "only what was written since the start"),
    ("filter", "regular expression for names"),
    ("invert_filter", "only names that do not match the filter"),
    ("format", "one of text, json, prometheus"),
    ("type", "one of All, Counters, Gauges, Histograms, TextReadouts"),
    ("histogram_buckets", "one of cumulative, disjoint, detailed, summary, none"),
];

/// Stays within the exposition format's version that Prometheus assumes unasked.
const EXPOSITION: &str = "text/plain; charset=UTF-8";

pub(super) fn stats(state: &AdminState, params: &Params) -> Answer {
    let query = match query(params) {
        Ok(Some(query)) => query,
        // There are no text readouts.
        Ok(None) => return Answer::text("\n"),
        Err(answer) => return answer,
    };
    let format = params.get("format").unwrap_or("text");
    if !matches!(format, "text" | "json" | "prometheus" | "html") {
        return Answer::bad_request("usage: /stats?format=(json|prometheus|text)\n\n");
    }
    state.server.refresh();
    let snapshot = metrics::snapshot();
    match format {
        "json" => {
            let body = metrics::json(&snapshot, &query).to_string();
            Answer { content_type: "application/json", ..Answer::text(body) }
        }
        "prometheus" => {
            Answer { content_type: EXPOSITION, ..Answer::text(metrics::prometheus(&snapshot, &query)) }
        }
        _ => Answer::text(metrics::text(&snapshot, &query)),
    }
}

pub(super) fn prometheus(state: &AdminState, params: &Params) -> Answer {
    match query(params) {
        Ok(Some(query)) => {
            state.server.refresh();
            let body = metrics::prometheus(&metrics::snapshot(), &query);
            Answer { content_type: EXPOSITION, ..Answer::text(body) }
        }
        Ok(None) => Answer { content_type: EXPOSITION, ..Answer::text("") },
        Err(answer) => answer,
    }
}

/// What to show; `None` for a type of which there is nothing.
fn query(params: &Params) -> Result<Option<Query>, Answer> {
    let kind = match params.get("type").unwrap_or("All") {
        "All" | "" => None,
        "Counters" | "counters" => Some(Kind::Counter),
        "Gauges" | "gauges" => Some(Kind::Gauge),
        "Histograms" | "histograms" => Some(Kind::Histogram),
        "TextReadouts" => return Ok(None),
        _ => return Err(Answer::bad_request("invalid &type= param")),
    };
    let histograms = match params.get("histogram_buckets").unwrap_or("") {
        "" | "none" => HistogramView::Default,
        "summary" => HistogramView::Summary,
        "cumulative" => HistogramView::Cumulative,
        "disjoint" => HistogramView::Disjoint,
        "detailed" => HistogramView::Detailed,
        _ => {
            return Err(Answer::bad_request(
                "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary|none)\n",
            ))
        }
    };
    Ok(Some(Query {
        filter: params.regex("filter")?,
        invert: params.has("invert_filter"),
        used_only: params.has("usedonly"),
        kind,
        histograms,
    }))
}
