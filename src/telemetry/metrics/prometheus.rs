//! Prometheus text exposition.
//!
//! Written by hand because no crate fits: `prometheus-client` and `prometheus` own their metric
//! types and know one name per series, `metrics-exporter-prometheus` owns the recorder. Here a
//! series has two names (Envoy's and the tag-extracted one), belongs to a scope that can go away,
//! and the format needed is four line shapes.

use std::fmt::Write;

use super::extracted::Code;
use super::histogram::{BOUNDS, QUANTILES};
use super::render::{HistogramView, Query};
use super::{Kind, Sample, Snapshot, Value};

/// Renders what `query` selects. A metric's series stand together below one `# TYPE` line;
/// counters come first, then gauges, then histograms.
pub fn prometheus(snapshot: &Snapshot, query: &Query) -> String {
    let mut families: Vec<(Kind, String, Labels<'_>, &Sample)> = snapshot
        .0
        .iter()
        .filter(|sample| query.selects(sample))
        .map(|sample| {
            let (name, labels) = extracted(sample);
            (sample.kind(), name, labels, sample)
        })
        .collect();
    // Stable: within a metric the order of Envoy's names stays.
    families.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));

    let summary = query.histograms == HistogramView::Summary;
    let mut out = String::with_capacity(families.len() * 96);
    let mut last: Option<(Kind, &str)> = None;
    for (kind, name, labels, sample) in &families {
        if last != Some((*kind, name)) {
            last = Some((*kind, name));
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram if summary => "summary",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(out, "# TYPE {name} {kind}");
        }
        // Writing to a String cannot fail.
        let _ = match &sample.value {
            Value::Counter(value) => writeln!(out, "{name}{{{labels}}} {value}"),
            Value::Gauge(value) => writeln!(out, "{name}{{{labels}}} {value}"),
            Value::Histogram(histogram) => {
                let comma = if labels.is_empty() { "" } else { "," };
                if summary {
                    for q in QUANTILES {
                        let value = histogram.quantile(q).unwrap_or(f64::NAN);
                        let _ = writeln!(out, "{name}{{{labels}{comma}quantile=\"{q}\"}} {value}");
                    }
                } else {
                    for bound in BOUNDS {
                        let count = histogram.count_up_to(bound);
                        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
                    }
                    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", histogram.count);
                }
                let _ = writeln!(out, "{name}_sum{{{labels}}} {}", histogram.sum);
                writeln!(out, "{name}_count{{{labels}}} {}", histogram.count)
            }
        };
    }
    out
}

struct Labels<'a> {
    code: Code<'a>,
    sample: &'a Sample,
}

impl Labels<'_> {
    fn is_empty(&self) -> bool {
        self.code.is_none() && self.sample.scope.0.tags.is_empty()
    }
}

impl std::fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tags = self.sample.scope.0.tags.iter().map(|(name, value)| (&**name, &**value));
        for (at, (name, value)) in self.code.into_iter().chain(tags).enumerate() {
            if at > 0 {
                f.write_char(',')?;
            }
            write_name(f, name)?;
            f.write_str("=\"")?;
            for c in value.chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    c => f.write_char(c)?,
                }
            }
            f.write_char('"')?;
        }
        Ok(())
    }
}

/// The metric's name and labels.
fn extracted(sample: &Sample) -> (String, Labels<'_>) {
    let (parts, code) = sample.parts();
    let mut name = String::with_capacity(6 + sample.name.len());
    if sample.scope.0.labelled {
        name.push_str(&parts.concat());
        return (name, Labels { code, sample });
    }
    name.push_str("envoy_");
    for part in parts {
        let _ = write_name(&mut name, part);
    }
    (name, Labels { code, sample })
}

fn write_name(out: &mut impl Write, name: &str) -> std::fmt::Result {
    name.chars().try_for_each(|c| out.write_char(if c.is_ascii_alphanumeric() { c } else { '_' }))
}
