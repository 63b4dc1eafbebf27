//! Pieces of other resources: ECDS.
//!
//! In: encoded resources and which listeners need them. Out: filled places ([`Piece`]), subscriptions and verdicts. One
//! that a new listener needs too is taken as it was last known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_control_api::client::{Rejection, Resource};

use super::effects::Effects;
use super::resource::{Refused, Stored};
use super::sources::StreamId;
use super::stats::{PieceStats, SubscriptionStats};
use crate::config::compile::resource::Compiler;
use crate::config::pieces::{Piece, PieceNeed};
use crate::telemetry::metrics::Scope;

/// A piece that is wanted: from which stream, its type URL, its name.
pub(super) type PieceKey = (StreamId, &'static str, Arc<str>);

/// All pieces that something needs.
pub(super) struct Pieces {
    compiler: Arc<Compiler>,
    entries: HashMap<PieceKey, Entry>,
}

/// One piece.
pub(super) struct Entry {
    users: Vec<Arc<dyn Piece>>,
    pub(super) stored: Option<Stored>,
    pub(super) refused: Option<Refused>,
    /// It came, was refused, does not exist or is late.
    answered: bool,
    subscription: SubscriptionStats,
    stats: PieceStats,
}

impl Pieces {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self { compiler, entries: HashMap::new() }
    }

    /// One place more for it.
    pub(super) fn want(&mut self, key: &PieceKey, need: &PieceNeed, effects: &mut Effects) {
        let entry = self.entries.entry(key.clone()).or_insert_with(|| {
            effects.subscribe(key.0, key.1, &key.2, need.source.initial_fetch_timeout);
            let scope = Scope::raw(&need.piece.scope());
            let subscription = SubscriptionStats::new(&scope);
            subscription.update_attempt.increment(1);
            Entry {
                users: Vec::new(),
                stored: None,
                refused: None,
                answered: false,
                subscription,
                stats: PieceStats::new(&scope),
            }
        });
        if let Some(stored) = &entry.stored {
            // Another place may allow fewer types: then it stays without.
            if let Err(problems) = need.piece.take(&key.2, &stored.body, &self.compiler) {
                tracing::error!(resource = &*key.2, "not usable here: {:?}", problems.first());
                entry.stats.config_conflict.increment(1);
            }
        }
        entry.users.push(need.piece.clone());
    }

    /// One place less for it.
    pub(super) fn release(&mut self, key: &PieceKey, piece: &Arc<dyn Piece>, effects: &mut Effects) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.users.retain(|user| !Arc::ptr_eq(user, piece));
        if entry.users.is_empty() {
            self.entries.remove(key);
            effects.unsubscribe(key.0, key.1, &key.2);
        }
    }

    /// Whether nothing is to be waited for that could come at once.
    pub(super) fn is_settled(&self, key: &PieceKey) -> bool {
        self.entries.get(key).is_none_or(|entry| entry.answered)
    }

    /// One that came.
    pub(super) fn update(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        type_url: &'static str,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let key = (stream, type_url, Arc::from(resource.name.as_str()));
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(()) };
        let began = Instant::now();
        entry.subscription.update_attempt.increment(1);
        if let Some(stored) = entry.stored.as_mut().filter(|stored| stored.is(resource)) {
            stored.confirm(resource);
            entry.refused = None;
            let (version, updated) = (stored.version.clone(), stored.updated);
            entry.subscription.succeeded(&version, updated, began.elapsed());
            return Ok(());
        }
        let mut problems = Vec::new();
        for user in &entry.users {
            match user.take(&resource.name, &resource.body, &self.compiler) {
                Ok(warnings) => effects.warn(&resource.name, warnings),
                Err(found) => problems = found,
            }
        }
        entry.answered = true;
        if !problems.is_empty() {
            let refused = Refused::new(resource, &problems);
            let rejection = refused.rejection(&resource.name);
            entry.refused = Some(refused);
            entry.subscription.update_rejected.increment(1);
            entry.stats.config_fail.increment(1);
            return Err(rejection);
        }
        let stored = Stored::new(resource);
        entry.subscription.succeeded(&stored.version, SystemTime::now(), began.elapsed());
        entry.stats.config_reload.increment(1);
        (entry.stored, entry.refused) = (Some(stored), None);
        Ok(())
    }

    /// The control plane does not have it, or not in time; `removed` says that it had it.
    pub(super) fn absent(&mut self, name: &str, stream: StreamId, type_url: &'static str, removed: bool) {
        let key = (stream, type_url, Arc::from(name));
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.answered = true;
        if removed {
            if entry.stored.take().is_some() {
                entry.users.iter().for_each(|user| user.lose());
            }
        } else if entry.stored.is_none() {
            entry.subscription.init_fetch_timeout.increment(1);
            entry.stats.config_fail.increment(1);
            entry.users.iter().for_each(|user| user.lose());
        }
    }

    /// The stream could not be opened, or broke.
    pub(super) fn failed(&self, stream: StreamId) {
        for (_, entry) in self.entries.iter().filter(|(key, _)| key.0 == stream) {
            entry.subscription.update_attempt.increment(1);
            entry.subscription.update_failure.increment(1);
            entry.stats.config_fail.increment(1);
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&PieceKey, &Entry)> {
        self.entries.iter()
    }
}
