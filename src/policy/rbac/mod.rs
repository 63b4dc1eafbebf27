//! Role-based access control (`envoy.config.rbac.v3`), the engine of both RBAC filters.
//!
//! Comes in: policies as [`Condition`]s, or a match [`tree`], compiled from config; the [`Facts`] of a request or
//! connection. Goes out: a [`Decision`] and, with the statistics counted, a [`Verdict`]. Pure: reads nothing but
//! its arguments.
//!
//! Policies are looked at in the order of their names and the first that matches counts, as in Envoy. What a policy
//! demands exactly (a peer's name, a path, a port, a network) is looked up in an index first, so that policies that
//! cannot match cost nothing.

mod condition;
mod facts;
mod filter;
mod index;
mod metadata;
mod ranges;
mod text;
pub mod tree;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use condition::{Condition, MetadataSource};
pub use facts::{Facts, TextInput, Whose};
pub use filter::{response_detail, Filter, Rules, Verdict, Written};
pub use metadata::{MetadataMatcher, ValueMatcher};
pub use ranges::{Networks, Ports};
pub use text::TextSet;

use self::index::Index;
use self::tree::Tree;

/// What matching policies lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Allowed if a policy matches.
    Allow,
    /// Denied if a policy matches.
    Deny,
    /// Always allowed; whether a policy matched is a hint for access logs.
    Log,
}

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// Its permissions and its principals.
    pub condition: Condition,
}

/// Rules that decide.
#[derive(Debug)]
pub enum Engine {
    /// Policies by name.
    Policies {
        /// What a match means.
        action: Action,
        /// In the order of their names, byte by byte.
        policies: Box<[Policy]>,
        /// Which of them may match.
        index: Index,
    },
    /// A unified matcher.
    Tree(Tree),
}

/// What an engine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'e> {
    /// Whether to let it pass.
    pub allowed: bool,
    /// The policy that decided.
    pub policy: Option<&'e str>,
    /// Whether access logs should have it; `None` when the rules do not speak of logs.
    pub log: Option<bool>,
}

impl Engine {
    /// Policies, in any order.
    pub fn new(action: Action, mut policies: Vec<Policy>) -> Self {
        policies.sort_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
        let index = Index::new(&policies);
        Engine::Policies { action, policies: policies.into(), index }
    }

    /// Decides.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision<'_> {
        match self {
            Engine::Policies { action, policies, index } => {
                let matches = |number: u32| {
                    policies.get(number as usize).is_some_and(|policy| policy.condition.matches(facts))
                };
                let found = index.first(facts, matches);
                let policy =
                    found.and_then(|number| policies.get(number as usize)).map(|policy| &*policy.name);
                let matched = policy.is_some();
                match action {
                    Action::Allow => Decision { allowed: matched, policy, log: None },
                    Action::Deny => Decision { allowed: !matched, policy, log: None },
                    Action::Log => Decision { allowed: true, policy, log: Some(matched) },
                }
            }
            Engine::Tree(tree) => tree.decide(facts),
        }
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        match self {
            Engine::Policies { policies, .. } => policies.len(),
            Engine::Tree(_) => 1,
        }
    }

    /// Whether there is no policy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
