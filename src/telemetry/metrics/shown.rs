//! Which statistics are shown: `stats_config.stats_matcher`.

use std::sync::LazyLock;

use arc_swap::ArcSwapOption;
use outrigger_control_api::pb::envoy::config::metrics::v3::stats_matcher::StatsMatcher as Pattern;
use outrigger_control_api::pb::envoy::config::metrics::v3::StatsMatcher as Config;

use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;

static SHOWN: LazyLock<ArcSwapOption<Shown>> = LazyLock::new(ArcSwapOption::default);

/// A choice of statistics by their names. All are kept: those that are not chosen are not shown.
#[derive(Debug)]
pub struct Shown {
    patterns: Box<[StringMatcher]>,
    /// What matches is shown; otherwise what does not.
    include: bool,
}

impl Shown {
    /// Compiles `config`; `None` where all are shown, or a problem was reported.
    pub fn compile(config: &Config, problems: &mut Problems) -> Option<Self> {
        match config.stats_matcher.as_ref()? {
            Pattern::RejectAll(all) => all.then(|| Self { patterns: Box::default(), include: true }),
            Pattern::ExclusionList(list) => {
                let patterns =
                    StringMatcher::compile_all(&list.patterns, "exclusion_list.patterns", problems)?;
                Some(Self { patterns, include: false })
            }
            Pattern::InclusionList(list) => {
                let patterns =
                    StringMatcher::compile_all(&list.patterns, "inclusion_list.patterns", problems)?;
                Some(Self { patterns, include: true })
            }
        }
    }

    fn shows(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name.as_bytes())) == self.include
    }
}

/// Shows only these from now on; all of them for `None`.
pub fn show(shown: Option<Shown>) {
    SHOWN.store(shown.map(Into::into));
}

/// Whether the statistic `name` is shown.
pub(super) fn is_shown(name: &str) -> bool {
    SHOWN.load().as_ref().is_none_or(|shown| shown.shows(name))
}
