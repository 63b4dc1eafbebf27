//! Which headers of a request a service may change (`HeaderMutationRules`).

use outrigger_control_api::pb::envoy::config::common::mutation_rules::v3 as pb;

use crate::config::compile::bool_or;
use crate::config::matcher::regex;
use crate::config::problems::Problems;
use crate::config::regex::Regex;
use crate::config::HeaderKey;

/// The rules.
#[derive(Debug)]
pub struct MutationRules {
    routing: bool,
    envoy: bool,
    no_system: bool,
    nothing: bool,
    allow: Option<Regex>,
    disallow: Option<Regex>,
    is_error: bool,
}

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::filters) enum Change {
    Made,
    Ignored,
    /// The whole answer is invalid.
    Fatal,
}

impl MutationRules {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::HeaderMutationRules, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let allow = config.allow_expression.as_ref();
        let allow =
            allow.and_then(|config| problems.at("allow_expression", |problems| regex(config, problems)));
        let disallow = config.disallow_expression.as_ref();
        let disallow = disallow
            .and_then(|config| problems.at("disallow_expression", |problems| regex(config, problems)));
        (problems.count() == before).then(|| Self {
            routing: bool_or(config.allow_all_routing, false),
            envoy: bool_or(config.allow_envoy, false),
            no_system: bool_or(config.disallow_system, false),
            nothing: bool_or(config.disallow_all, false),
            allow,
            disallow,
            is_error: bool_or(config.disallow_is_error, false),
        })
    }

    pub(in crate::http::filters) fn check(&self, key: &HeaderKey, remove: bool) -> Change {
        if self.allows(key.name(), remove) {
            Change::Made
        } else if self.is_error {
            Change::Fatal
        } else {
            Change::Ignored
        }
    }

    fn allows(&self, name: &str, remove: bool) -> bool {
        let system = name.starts_with(':');
        if remove && system {
            return false;
        }
        let matches =
            |regex: &Option<Regex>| regex.as_ref().is_some_and(|regex| regex.matches(name.as_bytes()));
        if matches(&self.disallow) {
            return false;
        }
        if matches(&self.allow) {
            return true;
        }
        !(self.nothing
            || (self.no_system && system)
            || (!self.routing && matches!(name, ":authority" | ":scheme" | ":method"))
            || (!self.envoy && name.starts_with("x-envoy")))
    }
}
