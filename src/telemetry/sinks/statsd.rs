//! statsd's lines, and DogStatsD's.

use std::fmt::Write;

use super::{Since, Told};
use crate::telemetry::metrics::{general, Unit, Value};

/// How lines are written.
#[derive(Debug, Clone)]
pub struct Statsd {
    /// Before each name, without the dot.
    pub prefix: Box<str>,
    /// Tags are written as DogStatsD has them, and leave the name.
    pub tagged: bool,
    /// Lines go together up to so many bytes; 0 = each is a datagram of its own.
    pub most: usize,
}

/// What is sent, each a datagram. Values of histograms are kept in bins: a line says how many there were in one, as a
/// rate of sampling.
pub fn datagrams(statsd: &Statsd, all: &[Told<'_>]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |line: String| match out.last_mut() {
        Some(last) if last.len() + 1 + line.len() <= statsd.most => {
            last.push('\n');
            last.push_str(&line);
        }
        _ => out.push(line),
    };
    for told in all {
        let (name, tags) = match statsd.tagged {
            true => told.sample.extracted(),
            false => (told.sample.name.clone(), Vec::new()),
        };
        // What separates the parts of a line stands in no name.
        let clean = |text: &str| text.replace([':', '|', '\n', '@', '#'], "_");
        let name = format!("{}.{}", statsd.prefix, clean(&name));
        let mut ending = String::new();
        for (at, (tag, value)) in tags.iter().enumerate() {
            let before = if at == 0 { "|#" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(ending, "{before}{tag}:{}", value.replace(['|', ',', '\n'], "_"));
        }
        match (&told.since, &told.sample.value) {
            (Since::Count(count), _) => add(format!("{name}:{count}|c{ending}")),
            (Since::Values(values), _) => {
                let kind = match values.unit {
                    Unit::Milliseconds | Unit::Microseconds => "ms",
                    Unit::Bytes | Unit::Unspecified => "h",
                };
                for (middle, count) in values.middles() {
                    let rate =
                        if count == 1 { String::new() } else { format!("|@{}", general(1.0 / count as f64)) };
                    add(format!("{name}:{}|{kind}{rate}{ending}", general(middle)));
                }
            }
            (Since::Nothing, Value::Gauge(value)) => add(format!("{name}:{value}|g{ending}")),
            (Since::Nothing, _) => {}
        }
    }
    out
}
