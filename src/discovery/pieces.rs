//! Pieces of other resources: ECDS and SDS.
//!
//! In: encoded resources and which listeners and clusters need them. Out: filled places ([`Piece`]), subscriptions and
//! verdicts. One that is needed in a new place too is taken as it was last known.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use metrics::Counter;
use outrigger_control_api::client::{Rejection, Resource};

use super::effects::{Effects, ECDS};
use super::resource::{Refused, Stored};
use super::sources::{Sources, StreamId};
use super::stats::{PieceStats, SubscriptionStats};
use crate::config::compile::resource::Compiler;
use crate::config::pieces::{Piece, PieceNeed};
use crate::telemetry::metrics::Scope;
use crate::tls::renewal::Renewal;

/// A piece that is wanted: from which stream, its type URL, its name.
pub(super) type PieceKey = (StreamId, &'static str, Arc<str>);

/// All pieces that something needs.
pub(super) struct Pieces {
    compiler: Arc<Compiler>,
    entries: HashMap<PieceKey, Entry>,
}

/// A piece that something needs. It is asked for while one of these is left.
#[derive(Debug)]
pub(super) struct Held {
    answered: Arc<AtomicBool>,
    _user: Arc<()>,
    optional: bool,
}

impl Held {
    /// Whether nothing is to be waited for that could come at once.
    pub(super) fn is_settled(&self) -> bool {
        self.optional || self.answered.load(Ordering::Relaxed)
    }
}

/// What pieces are asked for with.
pub(super) struct Supply<'a> {
    pub(super) pieces: &'a mut Pieces,
    pub(super) sources: &'a mut Sources,
    pub(super) effects: &'a mut Effects,
}

impl Supply<'_> {
    /// As [`Pieces::ask`].
    pub(super) fn ask(&mut self, needs: &[PieceNeed], parent: Option<StreamId>) -> Box<[Held]> {
        self.pieces.ask(needs, parent, self.sources, self.effects)
    }
}

/// A place, and those who hold it.
struct User {
    piece: Arc<dyn Piece>,
    holders: Arc<()>,
}

/// One piece.
pub(super) struct Entry {
    users: Vec<User>,
    pub(super) stored: Option<Stored>,
    pub(super) refused: Option<Refused>,
    /// It came, was refused, does not exist or is late.
    answered: Arc<AtomicBool>,
    subscription: SubscriptionStats,
    stats: Option<PieceStats>,
    renewal: Renewal,
    /// It came, and is answered when its own pieces are.
    waits: bool,
    /// Pieces of its own. Given back by being dropped.
    own: Box<[Held]>,
    /// It was given up a moment ago, to be asked for anew.
    given_up: bool,
    /// Counts how often; made by the first time.
    early: Option<Counter>,
}

impl Entry {
    fn failed(&self) {
        if let Some(stats) = &self.stats {
            stats.config_fail.increment(1);
        }
    }

    /// What is known goes into a new place. One that allows fewer types stays without. The pieces that it needs are
    /// those that were asked for when it came.
    fn fill(&self, name: &str, piece: &dyn Piece, compiler: &Compiler) {
        let Some(stored) = &self.stored else { return };
        if let Err(problems) = piece.take(name, &stored.body, compiler) {
            tracing::error!(resource = name, "not usable here: {:?}", problems.first());
            if let Some(stats) = &self.stats {
                stats.config_conflict.increment(1);
            }
        }
    }

    /// It is there, but what it needs may not be.
    fn came(&mut self) {
        self.waits = !self.own.iter().all(Held::is_settled);
        if !self.waits {
            self.answered.store(true, Ordering::Relaxed);
        }
    }
}

impl Pieces {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self { compiler, entries: HashMap::new() }
    }

    /// Asks for everything that `needs` names; `parent` is the stream that brought what has these needs.
    pub(super) fn ask(
        &mut self,
        needs: &[PieceNeed],
        parent: Option<StreamId>,
        sources: &mut Sources,
        effects: &mut Effects,
    ) -> Box<[Held]> {
        let ask = |need: &PieceNeed| {
            let type_url = need.piece.type_url();
            let key = (sources.stream(&need.source.source, parent, type_url), type_url, need.name.clone());
            self.want(&key, need, effects)
        };
        needs.iter().map(ask).collect()
    }

    fn want(&mut self, key: &PieceKey, need: &PieceNeed, effects: &mut Effects) -> Held {
        let entry = self.entries.entry(key.clone()).or_insert_with(|| {
            effects.subscribe(key.0, key.1, &key.2, need.source.initial_fetch_timeout);
            let scope = Scope::raw(&need.piece.scope());
            let subscription = SubscriptionStats::new(&scope);
            subscription.update_attempt.increment(1);
            let stats = (key.1 == ECDS).then(|| PieceStats::new(&scope));
            let answered = Arc::default();
            let (renewal, given_up) = (Renewal::default(), false);
            let (users, stored, refused, early) = (Vec::new(), None, None, None);
            let (waits, own) = (false, Box::default());
            Entry {
                users,
                stored,
                refused,
                answered,
                subscription,
                stats,
                renewal,
                waits,
                own,
                given_up,
                early,
            }
        });
        let place = need.piece.place();
        let user = match entry.users.iter().find(|user| user.piece.place() == place) {
            Some(user) => user.holders.clone(),
            None => {
                entry.fill(&key.2, &*need.piece, &self.compiler);
                let holders = Arc::new(());
                entry.users.push(User { piece: need.piece.clone(), holders: holders.clone() });
                holders
            }
        };
        Held { answered: entry.answered.clone(), _user: user, optional: need.optional }
    }

    /// Asks no longer for what nothing holds.
    pub(super) fn sweep(&mut self, effects: &mut Effects) {
        loop {
            let before = self.entries.len();
            self.entries.retain(|(stream, type_url, name), entry| {
                entry.users.retain(|user| Arc::strong_count(&user.holders) > 1);
                if entry.users.is_empty() {
                    effects.unsubscribe(*stream, type_url, name);
                }
                !entry.users.is_empty()
            });
            // What goes gives back pieces of its own.
            if self.entries.len() == before {
                return;
            }
        }
    }

    /// Those are answered that waited for nothing but what is there now.
    fn settle(&mut self) {
        self.entries.values_mut().filter(|entry| entry.waits).for_each(Entry::came);
    }

    /// Asks anew for certificates that are near their end while their streams are silent: what a control plane is asked
    /// for again it must send again. Until then, and if it has no other, the last one serves on.
    pub(super) fn renew(&mut self, now: SystemTime, effects: &mut Effects) {
        for ((stream, type_url, name), entry) in &mut self.entries {
            if std::mem::take(&mut entry.given_up) {
                entry.subscription.update_attempt.increment(1);
                effects.subscribe(*stream, type_url, name, None);
                continue;
            }
            let valid = entry.users.iter().find_map(|user| user.piece.validity());
            if !entry.renewal.is_due(valid, now, fastrand::f64()) {
                continue;
            }
            let left = valid.and_then(|valid| valid.until.duration_since(now).ok()).unwrap_or_default();
            tracing::warn!(resource = &**name, "expires in {} s and is asked for anew", left.as_secs());
            let counter = || Scope::raw(&format!("sds.{name}")).counter("early_refetch");
            entry.early.get_or_insert_with(counter).increment(1);
            effects.unsubscribe(*stream, type_url, name);
            entry.given_up = true;
        }
    }

    /// One that came.
    pub(super) fn update(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        type_url: &'static str,
        sources: &mut Sources,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let taken = self.take(resource, stream, type_url, effects);
        if let Ok(needs) = &taken {
            let own = needs.as_ref().map(|needs| self.ask(needs, Some(stream), sources, effects));
            if let Some(entry) = self.entries.get_mut(&(stream, type_url, Arc::from(resource.name.as_str())))
            {
                entry.own = own.unwrap_or_else(|| std::mem::take(&mut entry.own));
                entry.came();
            }
        }
        self.settle();
        taken.map(drop)
    }

    /// What it needs; `None` where it is what was there before.
    fn take(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        type_url: &'static str,
        effects: &mut Effects,
    ) -> Result<Option<Vec<PieceNeed>>, Rejection> {
        let key = (stream, type_url, Arc::from(resource.name.as_str()));
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(None) };
        let began = Instant::now();
        entry.subscription.update_attempt.increment(1);
        if let Some(stored) = entry.stored.as_mut().filter(|stored| stored.is(resource)) {
            stored.confirm(resource);
            entry.refused = None;
            let (version, updated) = (stored.version.clone(), stored.updated);
            entry.subscription.succeeded(&version, updated, began.elapsed());
            return Ok(None);
        }
        let (mut problems, mut needs) = (Vec::new(), Vec::new());
        for user in &entry.users {
            match user.piece.take(&resource.name, &resource.body, &self.compiler) {
                Ok(taken) => {
                    effects.warn(&resource.name, taken.warnings);
                    // The same for each.
                    needs = taken.needs;
                }
                Err(found) => problems = found,
            }
        }
        if !problems.is_empty() {
            entry.answered.store(true, Ordering::Relaxed);
            let refused = Refused::new(resource, &problems);
            let rejection = refused.rejection(&resource.name);
            entry.refused = Some(refused);
            entry.subscription.update_rejected.increment(1);
            entry.failed();
            return Err(rejection);
        }
        let stored = Stored::new(resource);
        entry.subscription.succeeded(&stored.version, SystemTime::now(), began.elapsed());
        if let Some(stats) = &entry.stats {
            stats.config_reload.increment(1);
        }
        (entry.stored, entry.refused) = (Some(stored), None);
        Ok(Some(needs))
    }

    /// The control plane does not have it, or not in time; `removed` says that it had it.
    pub(super) fn absent(&mut self, name: &str, stream: StreamId, type_url: &'static str, removed: bool) {
        let key = (stream, type_url, Arc::from(name));
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.answered.store(true, Ordering::Relaxed);
        if removed {
            if entry.stored.take().is_some() {
                (entry.own, entry.waits) = (Box::default(), false);
                entry.users.iter().for_each(|user| user.piece.lose());
            }
        } else if entry.stored.is_none() {
            entry.subscription.init_fetch_timeout.increment(1);
            entry.failed();
            entry.users.iter().for_each(|user| user.piece.lose());
        }
        self.settle();
    }

    /// The stream could not be opened, or broke.
    pub(super) fn failed(&self, stream: StreamId) {
        for (_, entry) in self.entries.iter().filter(|(key, _)| key.0 == stream) {
            entry.subscription.update_attempt.increment(1);
            entry.subscription.update_failure.increment(1);
            entry.failed();
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&PieceKey, &Entry)> {
        self.entries.iter()
    }
}
