//! The open connections of one worker, for as long as drains have an end: when the drain time of a retired
//! filter chain is over, what is left of its connections is closed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::AbortHandle;

use crate::config::Retirement;

/// Open connections by their number.
#[derive(Debug, Default)]
pub struct Sessions(RefCell<HashMap<u64, Session>>);

#[derive(Debug)]
struct Session {
    task: AbortHandle,
    /// That of its filter chain, once one is chosen.
    retirement: Option<Arc<Retirement>>,
}

impl Sessions {
    /// A connection is served by `task`, which has not run yet.
    pub(super) fn opened(&self, connection: u64, task: AbortHandle) {
        self.0.borrow_mut().insert(connection, Session { task, retirement: None });
    }

    /// Its filter chain was chosen.
    pub(super) fn chosen(&self, connection: u64, retirement: &Arc<Retirement>) {
        if let Some(session) = self.0.borrow_mut().get_mut(&connection) {
            session.retirement = Some(retirement.clone());
        }
    }

    /// It is over.
    pub(super) fn closed(&self, connection: u64) {
        self.0.borrow_mut().remove(&connection);
    }

    /// Closes the connections of these filter chains.
    pub fn cut(&self, retired: &[Arc<Retirement>]) {
        // Entries go when the tasks end, which is later.
        for session in self.0.borrow().values() {
            let of_session = session.retirement.as_ref();
            if of_session.is_some_and(|own| retired.iter().any(|retired| Arc::ptr_eq(own, retired))) {
                session.task.abort();
            }
        }
    }
}
