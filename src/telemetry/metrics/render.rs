//! `/stats` in Envoy's text and JSON.

use std::fmt::Write;

use regex::Regex;
use serde_json::json;

use super::histogram::{Bin, HistogramSnapshot, BOUNDS, PERCENTS, QUANTILES};
use super::{Kind, Sample, Snapshot, Value};

/// What of a snapshot to show.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only names in which this is found.
    pub filter: Option<Regex>,
    /// Only names in which `filter` is not found.
    pub invert: bool,
    /// Only series that were ever written.
    pub used_only: bool,
    /// Only this type.
    pub kind: Option<Kind>,
    /// How histograms are shown.
    pub histograms: HistogramView,
}

impl Query {
    pub(super) fn selects(&self, sample: &Sample) -> bool {
        (!self.used_only || sample.used)
            && self.kind.is_none_or(|kind| kind == sample.kind())
            && self.filter.as_ref().is_none_or(|filter| filter.is_match(&sample.name) != self.invert)
    }
}

/// `histogram_buckets`. Envoy shows each figure for the last flush interval and for all time; no
/// intervals are kept here, so both are of all time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistogramView {
    /// Quantiles in text and JSON, cumulative buckets in Prometheus: what is shown unasked.
    #[default]
    Default,
    /// Quantiles.
    Summary,
    /// Values at most each bound.
    Cumulative,
    /// Values between each bound and the one before it.
    Disjoint,
    /// Every bin, and quantiles.
    Detailed,
}

/// Lines `name: value`: counters and gauges, then histograms, each sorted by name.
pub fn text(snapshot: &Snapshot, query: &Query) -> String {
    let mut numbers = String::new();
    let mut histograms = String::new();
    for sample in snapshot.0.iter().filter(|sample| query.selects(sample)) {
        let name = &sample.name;
        // Writing to a String cannot fail.
        let _ = match &sample.value {
            Value::Counter(value) => writeln!(numbers, "{name}: {value}"),
            Value::Gauge(value) => writeln!(numbers, "{name}: {value}"),
            Value::Histogram(histogram) if histogram.count == 0 => {
                writeln!(histograms, "{name}: No recorded values")
            }
            Value::Histogram(histogram) => match query.histograms {
                HistogramView::Default | HistogramView::Summary => {
                    writeln!(histograms, "{name}: {}", summary(histogram))
                }
                HistogramView::Cumulative | HistogramView::Disjoint => {
                    let buckets: Vec<String> = buckets(histogram, query.histograms)
                        .map(|(bound, count)| format!("B{}({count},{count})", general(bound)))
                        .collect();
                    writeln!(histograms, "{name}: {}", buckets.join(" "))
                }
                HistogramView::Detailed => {
                    let bins: Vec<String> = histogram.bins.iter().map(bin_text).collect();
                    let bins = bins.join(" ");
                    writeln!(
                        histograms,
                        "{name}:\n  totals={bins}\n  intervals={bins}\n  summary={}",
                        summary(histogram)
                    )
                }
            },
        };
    }
    numbers + &histograms
}

/// Envoy's JSON: `{"stats": [{"name", "value"}..., {"histograms": ...}]}`.
pub fn json(snapshot: &Snapshot, query: &Query) -> serde_json::Value {
    let mut stats = Vec::new();
    let mut histograms = Vec::new();
    for sample in snapshot.0.iter().filter(|sample| query.selects(sample)) {
        match &sample.value {
            Value::Counter(value) => stats.push(json!({"name": sample.name, "value": value})),
            Value::Gauge(value) => stats.push(json!({"name": sample.name, "value": value})),
            Value::Histogram(histogram) => histograms.push((&sample.name, histogram)),
        }
    }
    if histograms.is_empty() {
        return json!({ "stats": stats });
    }
    let percents: Vec<_> = PERCENTS.iter().map(|percent| number(*percent)).collect();
    let shown = match query.histograms {
        HistogramView::Default | HistogramView::Summary => {
            let computed: Vec<_> = histograms
                .iter()
                .map(|(name, histogram)| json!({"name": name, "values": quantiles_json(histogram)}))
                .collect();
            json!({"supported_quantiles": percents, "computed_quantiles": computed})
        }
        view @ (HistogramView::Cumulative | HistogramView::Disjoint) => histograms
            .iter()
            .map(|(name, histogram)| {
                let buckets: Vec<_> = buckets(histogram, view)
                    .map(|(bound, count)| json!({"upper_bound": number(bound), "interval": count, "cumulative": count}))
                    .collect();
                json!({"name": name, "buckets": buckets})
            })
            .collect(),
        HistogramView::Detailed => {
            let details: Vec<_> = histograms
                .iter()
                .map(|(name, histogram)| {
                    let bins: Vec<_> = histogram
                        .bins
                        .iter()
                        .map(|bin| json!({"lower_bound": number(bin.lower), "width": number(bin.width), "count": bin.count}))
                        .collect();
                    let percentiles = quantiles_json(histogram);
                    json!({"name": name, "totals": bins, "intervals": bins, "percentiles": percentiles})
                })
                .collect();
            json!({"supported_percentiles": percents, "details": details})
        }
    };
    stats.push(json!({ "histograms": shown }));
    json!({ "stats": stats })
}

fn quantiles_json(histogram: &HistogramSnapshot) -> Vec<serde_json::Value> {
    let each = |q: &f64| {
        let value = histogram.quantile(*q).map(number);
        json!({"interval": value, "cumulative": value})
    };
    QUANTILES.iter().map(each).collect()
}

fn buckets(histogram: &HistogramSnapshot, view: HistogramView) -> impl Iterator<Item = (f64, u64)> + '_ {
    let mut below = 0;
    BOUNDS.iter().map(move |bound| {
        let up_to = histogram.count_up_to(*bound);
        let count = if view == HistogramView::Disjoint { up_to - below } else { up_to };
        below = up_to;
        (*bound, count)
    })
}

fn summary(histogram: &HistogramSnapshot) -> String {
    let each = |(q, percent): (&f64, &f64)| {
        let value = general(histogram.quantile(*q).unwrap_or(f64::NAN));
        format!("P{}({value},{value})", general(*percent))
    };
    QUANTILES.iter().zip(&PERCENTS).map(each).collect::<Vec<_>>().join(" ")
}

/// Whole numbers without a decimal point, as Envoy prints them.
fn number(value: f64) -> serde_json::Value {
    let whole = value as i64;
    if whole as f64 == value {
        whole.into()
    } else {
        // Six digits: the bins are not more exact than that.
        general(value).parse::<f64>().map_or(serde_json::Value::Null, Into::into)
    }
}

fn bin_text(bin: &Bin) -> String {
    format!("{},{}:{}", general(bin.lower), general(bin.width), bin.count)
}

/// C's `%g`: six significant digits, an exponent from a million on.
pub(in crate::telemetry) fn general(value: f64) -> String {
    if !value.is_finite() {
        return "nan".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or(0);
        trimmed(&format!("{value:.decimals$}")).into()
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs())
    }
}

fn trimmed(number: &str) -> &str {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}
