//! The checks that come before compiling: the support table, and the field rules of Envoy's own .proto
//! files. How what they find is put together with what the compiler finds.

use std::collections::{HashMap, HashSet};

use outrigger_control_api::support::{Findings, SupportTable};
use outrigger_control_api::DynamicMessage;

use crate::config::problems::Problem;

/// What the support table says, without the entries of load-balancing policy lists: the first policy
/// that is supported counts, which only their compiler can tell.
pub(super) fn support(table: &SupportTable, message: &DynamicMessage, path: &str) -> Findings {
    let mut findings = table.check(message, path);
    let listed = |problem: &Problem| problem.path.contains("load_balancing_policy.policies[");
    findings.rejected.retain(|problem| !listed(problem));
    findings.observed.retain(|problem| !listed(problem));
    findings
}

/// Whether `path` is `base` or inside of it.
pub(super) fn is_inside(path: &str, base: &str) -> bool {
    path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// `rejected`, then those of `others` that stand elsewhere. One problem for each path.
pub(super) fn merge(rejected: Vec<Problem>, others: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let mut seen: HashSet<String> = rejected.iter().map(|problem| problem.path.clone()).collect();
    let refused: Vec<String> = seen.iter().cloned().collect();
    let inside = |path: &str| refused.iter().any(|refused| is_inside(path, refused));
    let others: Vec<_> =
        others.filter(|problem| !inside(&problem.path) && seen.insert(problem.path.clone())).collect();
    rejected.into_iter().chain(others).collect()
}

/// The first warning of each kind, with the number of its likes.
pub(super) fn once_each(warnings: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let mut kinds: HashMap<(String, String), (usize, usize)> = HashMap::new();
    let mut once: Vec<Problem> = Vec::new();
    for warning in warnings {
        let field = warning.path.rsplit('.').next().unwrap_or_default();
        let field = field.split('[').next().unwrap_or_default().to_owned();
        let next = once.len();
        let (_, count) = kinds.entry((field, warning.message.clone())).or_insert((next, 0));
        *count += 1;
        if *count == 1 {
            once.push(warning);
        }
    }
    for (index, count) in kinds.into_values().filter(|(_, count)| *count > 1) {
        if let Some(warning) = once.get_mut(index) {
            warning.message.push_str(&format!(" (and {} more)", count - 1));
        }
    }
    once
}
