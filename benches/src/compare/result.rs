//! What a comparison found, as one serializable value: it is printed, written as JSON and drawn. Every figure is kept
//! for every round; medians, spreads and ratios are made from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::result::RunResult;

/// Version of the JSON that [`Comparison`] is written as.
pub const FORMAT: u32 = 1;

/// A comparison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// Version of the tool.
    pub version: String,
    /// Its start, seconds since 1970.
    pub started_unix_s: f64,
    /// Whether a signal ended it early; the last scenario may then have fewer rounds.
    pub interrupted: bool,
    /// Where.
    pub machine: Machine,
    /// Rounds of each scenario, a dropped one not counted.
    pub rounds: u32,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// What was compared.
    pub peers: Vec<PeerInfo>,
    /// What was measured.
    pub scenarios: Vec<ScenarioResult>,
}

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// Cores that may be used.
    pub cores: usize,
    /// Version of the kernel.
    pub kernel: String,
    /// Core of the proxy; `None` for any.
    pub proxy_core: Option<usize>,
    /// Core of load and origin; `None` for any.
    pub load_core: Option<usize>,
    /// The most files that a process may have open.
    pub open_files: u64,
    /// TCP's congestion control; one that paces has pauses of milliseconds on loopback too.
    #[serde(default)]
    pub congestion: String,
    /// Idle cores poll, which spares whoever wakes them the cost of it.
    #[serde(default)]
    pub awake: bool,
}

/// One of those compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub version: String,
}

/// A scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// What was measured, in the order of tables.
    pub metrics: Vec<Metric>,
    /// Of whom.
    pub peers: Vec<PeerResult>,
}

/// A figure.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Metric {
    /// Its key in [`PeerResult::samples`].
    pub key: String,
    /// Its title, with its unit.
    pub title: String,
    /// Whether tables show smallest and largest.
    pub spread: bool,
    /// Whether tables show the ratio to Outrigger.
    pub ratio: bool,
    /// Digits after the point.
    pub digits: usize,
}

impl Metric {
    /// One whose tables show the median only.
    pub fn plain(key: &str, title: &str, digits: usize) -> Self {
        Self { key: key.to_owned(), title: title.to_owned(), spread: false, ratio: false, digits }
    }

    /// One whose tables show ratios too.
    pub fn with_ratio(key: &str, title: &str, digits: usize) -> Self {
        Self { ratio: true, ..Self::plain(key, title, digits) }
    }

    /// One whose tables show everything.
    pub fn full(key: &str, title: &str, digits: usize) -> Self {
        Self { spread: true, ..Self::with_ratio(key, title, digits) }
    }
}

/// One of those compared, in one scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeerResult {
    /// Its name.
    pub peer: String,
    /// Whether there are figures.
    pub status: Status,
    /// Figures by metric, one for each round.
    pub samples: BTreeMap<String, Vec<f64>>,
    /// The same in short.
    pub summary: BTreeMap<String, Summary>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// Its configuration, `DIR` for the directory of all files; a long one is cut.
    pub config: String,
    /// The last run, without its series.
    pub run: Option<RunResult>,
}

/// Whether there are figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Status {
    /// There are.
    #[default]
    Measured,
    /// It refuses the configuration.
    NotSupported {
        /// In its own words.
        reason: String,
    },
    /// It does not do what it should.
    Failed {
        /// What happened.
        reason: String,
    },
    /// The scenario cannot be run yet.
    NotYet {
        /// Why.
        reason: String,
    },
}

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Median.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Median over that of Outrigger.
    pub ratio: Option<f64>,
}

impl Summary {
    /// Of these; `None` if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, min, max, ratio: None })
    }
}

impl PeerResult {
    /// Adds a figure of a round.
    pub fn add(&mut self, key: &str, value: f64) {
        self.samples.entry(key.to_owned()).or_default().push(value);
    }

    /// Says something once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

impl ScenarioResult {
    /// Makes the summaries.
    pub fn summarise(&mut self) {
        for peer in &mut self.peers {
            let each = peer.samples.iter();
            peer.summary = each.filter_map(|(key, all)| Some((key.clone(), Summary::of(all)?))).collect();
        }
        let ours = self.peers.iter().find(|peer| peer.peer == super::peer::OURS);
        let ours = ours.map(|peer| peer.summary.clone()).unwrap_or_default();
        for peer in &mut self.peers {
            for (key, summary) in &mut peer.summary {
                let base = ours.get(key).map(|ours| ours.median).filter(|median| *median > 0.0);
                summary.ratio = base.map(|base| summary.median / base).filter(|ratio| *ratio > 0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_between_the_middle_two_and_ratios_are_to_ours() {
        let summary = |samples: &[f64]| Summary::of(samples);
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[4.0, 1.0, 3.0]), Some(Summary { median: 3.0, min: 1.0, max: 4.0, ratio: None }));
        assert_eq!(summary(&[4.0, 1.0, 3.0, 2.0]).map(|summary| summary.median), Some(2.5));
        let mut result = ScenarioResult::default();
        for (name, value) in [("envoy", 30.0), ("outrigger", 20.0)] {
            let mut peer = PeerResult { peer: name.to_owned(), ..PeerResult::default() };
            peer.add("cpu", value);
            result.peers.push(peer);
        }
        result.summarise();
        let ratios: Vec<_> = result.peers.iter().map(|peer| peer.summary["cpu"].ratio).collect();
        assert_eq!(ratios, [Some(1.5), Some(1.0)]);
    }
}
