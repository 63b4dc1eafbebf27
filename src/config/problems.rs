//! What is wrong with a resource, found while it is compiled.
//!
//! A compiler walks a message, names where it is with [`Problems::at`] and says what it does not
//! like with [`Problems::report`]. It goes on after a problem, so that one pass finds them all.

use std::fmt;
use std::sync::{Arc, OnceLock};

use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;

use crate::tls;

pub use outrigger_control_api::Problem;

/// The problems found so far, the notes on fields that are taken but not acted on, and the path of
/// the field being looked at.
#[derive(Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
    notes: Vec<Problem>,
    path: String,
    wants: Vec<Want>,
}

/// A secret that a part of a resource wants. Only who compiles the whole resource can have it asked for.
#[derive(Debug)]
pub struct Want {
    /// Where it is wanted.
    pub path: String,
    /// Which secret.
    pub config: SdsSecretConfig,
    /// Where it goes.
    pub place: Arc<OnceLock<Arc<tls::Slot>>>,
}

impl Problems {
    /// A secret is wanted.
    pub fn want_secret(&mut self, config: &SdsSecretConfig, place: &Arc<OnceLock<Arc<tls::Slot>>>) {
        let (path, config) = (self.path.clone(), config.clone());
        self.wants.push(Want { path, config, place: place.clone() });
    }

    /// How many secrets are wanted so far.
    pub fn wanted(&self) -> usize {
        self.wants.len()
    }

    /// The secrets that are wanted; they are no more afterwards.
    pub fn take_wants(&mut self) -> Vec<Want> {
        std::mem::take(&mut self.wants)
    }

    /// Runs `look` at `path`, wherever that is.
    pub fn elsewhere<R>(&mut self, path: String, look: impl FnOnce(&mut Self) -> R) -> R {
        let here = std::mem::replace(&mut self.path, path);
        let result = look(self);
        self.path = here;
        result
    }

    /// No problem, at the root of the resource.
    pub fn new() -> Self {
        Self::default()
    }

    /// No problem, below `root`: problems found are named `root.field`.
    pub fn under(root: &str) -> Self {
        Self { path: root.to_owned(), ..Self::default() }
    }

    /// Runs `look` one step further down: `step` is a field name, with its index or key if it has
    /// one (`routes[2]`, `typed_per_filter_config["x"]`).
    pub fn at<R>(&mut self, step: impl fmt::Display, look: impl FnOnce(&mut Self) -> R) -> R {
        let parent = self.path.len();
        self.descend(format_args!("{step}"));
        let result = look(self);
        self.path.truncate(parent);
        result
    }

    /// [`Problems::at`] for the element `index` of the repeated field `field`.
    pub fn at_index<R>(&mut self, field: &str, index: usize, look: impl FnOnce(&mut Self) -> R) -> R {
        self.at(format_args!("{field}[{index}]"), look)
    }

    /// Reports a problem with the field being looked at.
    pub fn report(&mut self, message: impl fmt::Display) {
        self.list.push(Problem::new(self.path.as_str(), message.to_string()));
    }

    /// Reports a problem with the field `step` below the one being looked at.
    pub fn report_at(&mut self, step: impl fmt::Display, message: impl fmt::Display) {
        self.at(step, |problems| problems.report(message));
    }

    /// Reports that the field `step` below this one is set but not supported.
    pub fn unsupported(&mut self, step: impl fmt::Display, why: impl fmt::Display) {
        self.report_at(step, format_args!("not supported: {why}"));
    }

    /// Notes that the field `step` below this one is accepted without effect. Not a problem: the
    /// caller warns about it once.
    pub fn note(&mut self, step: impl fmt::Display, why: impl fmt::Display) {
        let message = why.to_string();
        self.at(step, |problems| {
            let path = problems.path.clone();
            problems.notes.push(Problem::new(path, message));
        });
    }

    /// Takes a result: the value, or its error reported here.
    pub fn take<T, E: fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.report(error)).ok()
    }

    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many problems were reported: compare before and after a step to see whether it was clean.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Everything reported, in order.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Everything noted, in order.
    pub fn notes(&self) -> &[Problem] {
        &self.notes
    }

    /// The path of the field being looked at.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Gives the problems and the notes away.
    pub fn into_parts(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.list, self.notes)
    }

    fn descend(&mut self, step: fmt::Arguments<'_>) {
        use fmt::Write;

        if !self.path.is_empty() {
            self.path.push('.');
        }
        // Writing to a String cannot fail.
        let _ = self.path.write_fmt(step);
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_path_of_each_problem() {
        let mut problems = Problems::new();
        problems.at_index("virtual_hosts", 3, |problems| {
            problems.at("routes[0]", |problems| problems.report_at("match", "missing"));
            problems.report("no name");
        });
        problems.report("empty");
        let paths: Vec<_> = problems.list().iter().map(ToString::to_string).collect();
        assert_eq!(
            paths,
            ["virtual_hosts[3].routes[0].match: missing", "virtual_hosts[3]: no name", "empty"]
        );
        assert_eq!(problems.path(), "");
    }

    #[test]
    fn notes_are_not_problems() {
        let mut problems = Problems::under("resource");
        problems.note("tracing", "no tracer yet");
        assert!(problems.is_empty());
        assert_eq!(problems.notes()[0].path, "resource.tracing");
    }
}
