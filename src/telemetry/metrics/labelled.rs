//! Series that are told apart by labels alone, under names of their own: Istio's.

use std::borrow::Cow;

use super::Scope;

/// What their full names begin with, as in Istio's proxy.
const NAMESPACE: &str = "istiocustom.";

impl Scope {
    /// A scope whose series are shown to Prometheus under their own names with these labels, and elsewhere as
    /// `istiocustom.<name>.<label>.<value>...`.
    pub fn labelled(labels: Vec<(Cow<'static, str>, Box<str>)>) -> Self {
        let mut prefix = String::from(NAMESPACE);
        let labels: Vec<_> = labels
            .into_iter()
            .map(|(name, value)| match value.contains(char::is_control) {
                true => (name, value.replace(char::is_control, "_").into()),
                false => (name, value),
            })
            .collect();
        for (name, value) in &labels {
            prefix.extend([name, ".", value, "."]);
        }
        Self::open_as(prefix, String::new(), labels, true)
    }

    /// The full name of its series `leaf`.
    pub(super) fn full_name(&self, leaf: &str) -> String {
        let prefix = self.prefix();
        match prefix.strip_prefix(NAMESPACE).filter(|_| self.0.labelled) {
            Some(labels) => format!("{NAMESPACE}{leaf}.{}", labels.trim_end_matches('.')),
            None => format!("{prefix}{leaf}"),
        }
    }
}
