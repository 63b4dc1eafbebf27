//! Requests that wait for what a control plane may have.
//!
//! In: what they ask for. Out: an answer to each, when what it asked for is there or will not come. That
//! is looked at after every change; requests that went away are forgotten.

use std::sync::Arc;

use crate::config::demand::Ask;

use super::routes::RouteKey;

/// What a request waits for, as the rooms of discovery know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Awaited {
    /// A route table.
    Table(RouteKey),
    /// A virtual host, by its name in the table.
    VirtualHost(RouteKey, Arc<str>),
    /// A cluster.
    Cluster(Arc<str>),
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Demands {
    /// No more than may wait in the whole process.
    waiting: Vec<(Awaited, Ask)>,
}

impl Demands {
    /// One more waits.
    pub(super) fn push(&mut self, awaited: Awaited, ask: Ask) {
        self.waiting.push((awaited, ask));
    }

    /// Answers those whose wait `is_over`.
    pub(super) fn settle(&mut self, is_over: impl Fn(&Awaited) -> bool) {
        if self.waiting.is_empty() {
            return;
        }
        let mut index = 0;
        while let Some((awaited, _)) = self.waiting.get(index) {
            if is_over(awaited) {
                self.waiting.swap_remove(index).1.answer();
            } else {
                index += 1;
            }
        }
    }

    /// Forgets those that do not wait any more.
    pub(super) fn sweep(&mut self) {
        self.waiting.retain(|(_, ask)| !ask.is_over());
    }
}
