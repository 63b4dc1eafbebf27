//! What a filter's options change about the standard metrics: metrics left out, labels left out, set and added.

use std::borrow::Cow;

use outrigger_control_api::pb::stats::MetricConfig;

use super::labels::{Labels, UNKNOWN};
use super::series::Metric;
use crate::config::problems::Problems;
use crate::policy::cel::{Expression, Subject};
use crate::telemetry::stream_info::read_dynamic_metadata;

/// Changes of the standard metrics.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    /// What labels are set to; `None` where nothing tells it.
    expressions: Vec<(Box<str>, Option<Expression>)>,
    /// In the order of [`Metric::ALL`].
    rules: [Rules; Metric::ALL.len()],
}

#[derive(Debug, Default)]
struct Rules {
    dropped: bool,
    /// Labels and the expressions they are set to; without one they are left out. The last of a name counts.
    labels: Vec<(Box<str>, Option<usize>)>,
}

impl Overrides {
    pub fn compile(list: &[MetricConfig], problems: &mut Problems) -> Self {
        let mut all = Self::default();
        for (index, config) in list.iter().enumerate() {
            problems.at_index("metrics", index, |problems| all.add(config, problems));
        }
        all
    }

    fn add(&mut self, config: &MetricConfig, problems: &mut Problems) {
        let meant: Vec<usize> = Metric::ALL
            .iter()
            .enumerate()
            .filter(|(_, metric)| {
                config.name.is_empty() || metric.name().strip_prefix("istio_") == Some(&config.name)
            })
            .map(|(index, _)| index)
            .collect();
        if meant.is_empty() {
            problems.note("name", format!("there is no standard metric {:?}", config.name));
        }
        if config.drop {
            // As Istio has it: one metric, not all of them.
            for index in meant.into_iter().filter(|_| !config.name.is_empty()) {
                self.change(index, |rules| rules.dropped = true);
            }
            return;
        }
        for name in &config.tags_to_remove {
            for index in &meant {
                self.change(*index, |rules| rules.labels.push((name.as_str().into(), None)));
            }
        }
        let mut dimensions: Vec<_> = config.dimensions.iter().collect();
        dimensions.sort();
        for (name, text) in dimensions {
            let expression = self.expression(name, text, problems);
            for index in &meant {
                self.change(*index, |rules| rules.labels.push((name.as_str().into(), Some(expression))));
            }
        }
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut Rules)) {
        if let Some(rules) = self.rules.get_mut(index) {
            change(rules);
        }
    }

    /// The place of the expression `text`.
    fn expression(&mut self, label: &str, text: &str, problems: &mut Problems) -> usize {
        if let Some(known) = self.expressions.iter().position(|(own, _)| **own == *text) {
            return known;
        }
        let compiled = match Expression::of_text(text) {
            Ok(compiled) => {
                if compiled.reads_metadata() {
                    read_dynamic_metadata();
                }
                Some(compiled)
            }
            // As in Istio, the label is there all the same.
            Err(error) => {
                problems.note(format_args!("dimensions[{label:?}]"), format!("is {UNKNOWN:?}: {error}"));
                None
            }
        };
        self.expressions.push((text.into(), compiled));
        self.expressions.len() - 1
    }

    /// What the expressions say of a stream; empty where there are none, which costs nothing.
    pub fn values(&self, subject: &Subject<'_>) -> Vec<Box<str>> {
        let each = |(_, expression): &(Box<str>, Option<Expression>)| {
            let shown = expression.as_ref().and_then(|expression| expression.text(subject));
            shown.unwrap_or_else(|| UNKNOWN.into())
        };
        self.expressions.iter().map(each).collect()
    }

    /// The labels that `metric` has in place of `labels`; `None` when it is left out.
    pub fn labels(&self, metric: Metric, labels: &Labels, values: &[Box<str>]) -> Option<Labels> {
        let Some(rules) = self.rules.get(metric as usize) else { return Some(labels.clone()) };
        if rules.dropped {
            return None;
        }
        let rule = |name: &str| rules.labels.iter().rev().find(|(own, _)| **own == *name).map(|(_, to)| *to);
        let value = |place: usize| values.get(place).cloned().unwrap_or_else(|| UNKNOWN.into());
        let mut out = Labels::with_capacity(labels.len());
        for (name, own) in labels {
            match rule(name) {
                None => out.push((name.clone(), own.clone())),
                Some(None) => {}
                Some(Some(place)) => out.push((name.clone(), value(place))),
            }
        }
        for (name, to) in &rules.labels {
            let Some(place) = to else { continue };
            // Standard labels are changed where a metric has them, and are not added to others.
            if super::labels::is_standard(name) || out.iter().any(|(own, _)| **own == **name) {
                continue;
            }
            out.push((Cow::Owned(name.to_string()), value(*place)));
        }
        Some(out)
    }
}
