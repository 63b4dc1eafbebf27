//! What two sides say of the same cases, put beside each other.

use super::set;

/// What differs so far.
#[derive(Default)]
pub struct Beside {
    wrong: Vec<String>,
}

impl Beside {
    /// Both said this of `what`; it is printed where `OUTRIGGER_E2E_SHOW` is set.
    pub fn texts(&mut self, what: &str, theirs: &str, ours: &str) {
        if set("OUTRIGGER_E2E_SHOW").is_some() {
            println!("=== {what}\n--- Envoy\n{theirs}\n--- Outrigger\n{ours}");
        }
        if theirs != ours {
            self.wrong.push(format!("=== {what}\n--- Envoy\n{theirs}\n--- Outrigger\n{ours}"));
        }
    }

    /// Both said these lines of `what`, in any order.
    pub fn lines(&mut self, what: &str, theirs: &[String], ours: &[String]) {
        let mut text = String::new();
        for (side, one, other) in [("Envoy", theirs, ours), ("Outrigger", ours, theirs)] {
            let mut rest: Vec<&String> = other.iter().collect();
            for line in one {
                match rest.iter().position(|there| *there == line) {
                    Some(place) => drop(rest.swap_remove(place)),
                    None => text += &format!("\n  only {side}: {line}"),
                }
            }
        }
        if !text.is_empty() {
            self.wrong.push(format!("=== {what}{text}"));
        }
    }

    /// Both have this value.
    pub fn values<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, theirs: &T, ours: &T) {
        if theirs != ours {
            self.wrong.push(format!("{what}: Envoy {theirs:?}, Outrigger {ours:?}"));
        }
    }

    /// Panics with what differs.
    #[track_caller]
    pub fn end(self) {
        assert!(self.wrong.is_empty(), "{} differ\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}
