//! What both RBAC filters do with a decision: statistics, metadata, the answer's details.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{PoisonError, RwLock};

use metrics::Counter;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Value};
use smallvec::SmallVec;

use super::facts::Facts;
use super::Engine;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::DynamicMetadata;

/// Rules as a filter has them, or as a route has them in its place.
#[derive(Debug, Default)]
pub struct Rules {
    /// Those that decide; `None` lets everything pass and counts nothing.
    pub enforced: Option<Engine>,
    /// Those that are only counted.
    pub shadow: Option<Engine>,
    /// Before the keys of the metadata about `enforced`.
    pub prefix: Box<str>,
    /// Before the keys of the metadata about `shadow`.
    pub shadow_prefix: Box<str>,
    /// Whether statistics are kept by policy.
    pub by_policy: bool,
}

/// A filter: its rules and its statistics.
#[derive(Debug)]
pub struct Filter {
    /// Its own rules.
    pub rules: Rules,
    enforced: Tally,
    shadow: Tally,
    /// Metadata are about the enforced rules too.
    tells_all: bool,
}

/// What is counted of one set of rules.
struct Tally {
    allowed: Counter,
    denied: Counter,
    scope: Scope,
    names: [&'static str; 2],
    /// Allowed and denied by policy, made when they are first counted.
    by_policy: RwLock<HashMap<Box<str>, [Option<Counter>; 2]>>,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tally({})", self.scope.prefix())
    }
}

/// A field of dynamic metadata: its key and its value.
pub type Written = (String, String);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether to let it pass.
    pub allowed: bool,
    /// Why not: `rbac_access_denied_matched_policy[...]`. Empty if allowed.
    pub details: String,
    /// Dynamic metadata of the filter.
    pub metadata: SmallVec<[Written; 4]>,
    /// Whether access logs should have it: `access_log_hint` among the metadata of `envoy.common`.
    pub log: Option<bool>,
}

impl Filter {
    /// A filter that counts in `scope` (`http.<stat_prefix>.` or `<stat_prefix>.`). The enforced rules' statistics
    /// have `stat_prefix` in their names; `tag` is the tag of that. Without one, as a network filter, it tells of the
    /// shadow rules only.
    pub fn new(scope: &Scope, stat_prefix: &str, tag: Option<&'static str>, rules: Rules) -> Self {
        let base = scope.sub("rbac");
        let part = |prefix: &str| match (prefix.trim_end_matches('.'), tag) {
            ("", _) => base.clone(),
            (prefix, Some(tag)) => base.named(tag, prefix),
            (prefix, None) => base.sub(prefix),
        };
        Self {
            enforced: Tally::new(part(stat_prefix), ["allowed", "denied"]),
            shadow: Tally::new(part(&rules.shadow_prefix), ["shadow_allowed", "shadow_denied"]),
            rules,
            tells_all: tag.is_some(),
        }
    }

    /// Decides by `rules` (the filter's own, or those of a route), and counts. `tell`: somebody reads the metadata.
    pub fn judge(&self, rules: &Rules, facts: &Facts<'_>, tell: bool) -> Verdict {
        let mut verdict =
            Verdict { allowed: true, details: String::new(), metadata: SmallVec::new(), log: None };
        if let Some(shadow) = &rules.shadow {
            let decision = shadow.decide(facts);
            self.shadow.count(decision.allowed, decision.policy.filter(|_| rules.by_policy));
            if tell {
                verdict.tell(&rules.shadow_prefix, "shadow", decision.allowed, decision.policy);
            }
        }
        if let Some(enforced) = &rules.enforced {
            let decision = enforced.decide(facts);
            self.enforced.count(decision.allowed, decision.policy.filter(|_| rules.by_policy));
            if tell && self.tells_all {
                verdict.tell(&rules.prefix, "enforced", decision.allowed, decision.policy);
            }
            verdict.log = decision.log.filter(|_| tell);
            verdict.allowed = decision.allowed;
            if !decision.allowed {
                verdict.details = response_detail(decision.policy);
            }
        }
        verdict
    }

    /// As [`Filter::judge`] by the filter's own rules.
    pub fn judge_own(&self, facts: &Facts<'_>, tell: bool) -> Verdict {
        self.judge(&self.rules, facts, tell)
    }
}

impl Verdict {
    /// Whether it leaves metadata.
    pub fn tells(&self) -> bool {
        !self.metadata.is_empty() || self.log.is_some()
    }

    /// Moves its metadata to those under `namespace`, and the hint for access logs to where these look for it.
    pub fn write(&mut self, namespace: &str, all: &mut DynamicMetadata) {
        if !self.metadata.is_empty() {
            let fields = &mut all.entry(namespace.to_owned()).or_default().fields;
            for (key, value) in self.metadata.drain(..) {
                fields.insert(key, Value { kind: Some(Kind::StringValue(value)) });
            }
        }
        if let Some(hint) = self.log {
            let fields = &mut all.entry("envoy.common".to_owned()).or_default().fields;
            fields.insert("access_log_hint".to_owned(), Value { kind: Some(Kind::BoolValue(hint)) });
        }
    }

    fn tell(&mut self, prefix: &str, kind: &str, allowed: bool, policy: Option<&str>) {
        if let Some(policy) = policy {
            self.metadata.push((format!("{prefix}{kind}_effective_policy_id"), policy.to_owned()));
        }
        let result = if allowed { "allowed" } else { "denied" };
        self.metadata.push((format!("{prefix}{kind}_engine_result"), result.to_owned()));
    }
}

impl Tally {
    fn new(scope: Scope, names: [&'static str; 2]) -> Self {
        let [allowed, denied] = names.map(|name| scope.counter(name));
        Self { allowed, denied, scope, names, by_policy: RwLock::default() }
    }

    fn count(&self, allowed: bool, policy: Option<&str>) {
        let total = if allowed { &self.allowed } else { &self.denied };
        total.increment(1);
        if let Some(policy) = policy {
            self.counter(allowed, policy).increment(1);
        }
    }

    fn counter(&self, allowed: bool, policy: &str) -> Counter {
        let at = usize::from(!allowed);
        let known = self.by_policy.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(counter)) = known.get(policy).and_then(|pair| pair.get(at)) {
            return counter.clone();
        }
        drop(known);
        let name = if allowed { self.names[0] } else { self.names[1] };
        let counter = self.scope.tagged("policy", "envoy_rbac_policy_name", policy).counter(name);
        let mut known = self.by_policy.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = known.entry(policy.into()).or_default().get_mut(at) {
            *place = Some(counter.clone());
        }
        counter
    }
}

/// What access logs say of a denial: white space in the policy's name would break their fields.
pub fn response_detail(policy: Option<&str>) -> String {
    let mut out = String::from("rbac_access_denied_matched_policy[");
    for part in policy.unwrap_or("none").chars() {
        let _ = out.write_char(if part.is_ascii_whitespace() || part == '\x0b' { '_' } else { part });
    }
    out.push(']');
    out
}
