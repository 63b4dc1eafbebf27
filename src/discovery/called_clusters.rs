//! Clusters that requests ask for by name (ODCDS).
//!
//! In: names, and what becomes of them. Out: one subscription for each name, however many requests wait.
//! The clusters themselves are with all others; one that does not exist is asked for anew by the next
//! request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_control_api::client::Update;

use super::effects::{Effects, CDS};
use super::sources::StreamId;
use super::stats::SubscriptionStats;
use crate::config::demand::PATIENCE;
use crate::config::discovery::ConfigSource;
use crate::telemetry::metrics::Scope;

/// Most names that are subscribed to.
const MAX_CALLED: usize = 1 << 14;

/// All names that are subscribed to.
#[derive(Default)]
pub(super) struct CalledClusters {
    names: HashMap<Arc<str>, Called>,
    stats: Option<SubscriptionStats>,
}

struct Called {
    stream: StreamId,
    /// Something came under this name, good or not.
    came: bool,
}

impl CalledClusters {
    /// A request wants this cluster. `None` if there are too many.
    pub(super) fn call(
        &mut self,
        name: &str,
        stream: StreamId,
        source: &ConfigSource,
        effects: &mut Effects,
    ) -> Option<Arc<str>> {
        if let Some((name, _)) = self.names.get_key_value(name) {
            return Some(name.clone());
        }
        if self.names.len() >= MAX_CALLED {
            return None;
        }
        let name: Arc<str> = name.into();
        // A name that nobody knows must go some time.
        let timeout = source.initial_fetch_timeout.unwrap_or(PATIENCE);
        effects.subscribe(stream, CDS, &name, Some(timeout));
        self.names.insert(name.clone(), Called { stream, came: false });
        let stats =
            self.stats.get_or_insert_with(|| SubscriptionStats::new(&Scope::raw("cluster_manager.odcds")));
        stats.update_attempt.increment(1);
        Some(name)
    }

    /// Clusters came or went; `good` if none was refused.
    pub(super) fn update(&mut self, stream: StreamId, update: &Update, good: bool, effects: &mut Effects) {
        let began = Instant::now();
        let mut own = false;
        for resource in &update.added {
            let called = self.names.get_mut(resource.name.as_str());
            if let Some(called) = called.filter(|called| called.stream == stream) {
                called.came = true;
                own = true;
            }
        }
        for name in &update.removed {
            own |= self.forget(name, stream, effects);
        }
        if let Some(stats) = self.stats.as_ref().filter(|_| own) {
            match good {
                true => stats.succeeded(&update.version, SystemTime::now(), began.elapsed()),
                false => stats.update_rejected.increment(1),
            }
        }
    }

    /// The control plane does not have this cluster, or has not given it in time.
    pub(super) fn absent(&mut self, name: &str, stream: StreamId, effects: &mut Effects) {
        if self.forget(name, stream, effects) {
            self.stats.iter().for_each(|stats| stats.init_fetch_timeout.increment(1));
        }
    }

    fn forget(&mut self, name: &str, stream: StreamId, effects: &mut Effects) -> bool {
        if self.names.get(name).is_none_or(|called| called.stream != stream) {
            return false;
        }
        if let Some((name, _)) = self.names.remove_entry(name) {
            effects.unsubscribe(stream, CDS, &name);
        }
        true
    }

    /// Whether nothing has come under a name that was asked for.
    pub(super) fn is_awaited(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|called| !called.came)
    }
}
