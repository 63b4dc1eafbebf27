//! Listeners: LDS.
//!
//! In: encoded listeners. Out: listeners handed to whoever serves them once the route tables that they
//! need are there, and verdicts. A listener that serves is replaced when its successor can.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_control_api::client::{Rejection, Resource};

use super::clusters::Clusters;
use super::resource::{Refused, Stored};
use super::sources::StreamId;
use super::wanted::{Ground, Wanted};
use super::Serving;
use crate::config::compile::resource::Compiler;
use crate::config::listener::Listener;
use crate::config::Problem;

/// Listeners kept, for the admin page, of which no version was ever good.
const MAX_NEVER_GOOD: usize = 64;

/// All listeners that a control plane gave.
pub(super) struct Listeners {
    compiler: Arc<Compiler>,
    entries: HashMap<Arc<str>, Entry>,
}

/// One listener.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) active: Option<Version>,
    pub(super) warming: Option<(Version, Listener)>,
    pub(super) refused: Option<Refused>,
}

/// One version of a listener.
pub(super) struct Version {
    pub(super) stored: Stored,
    wanted: Wanted,
}

impl Listeners {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self { compiler, entries: HashMap::new() }
    }

    /// Listeners that came, and names of those that went, together: one may take over another's address.
    pub(super) fn update(
        &mut self,
        added: &[Resource],
        removed: &[String],
        stream: StreamId,
        world: &mut World<'_>,
    ) -> Vec<Rejection> {
        let mut refused = Vec::new();
        for resource in added {
            refused.extend(self.prepare(resource, stream, world).err());
        }
        let mut gone: Vec<&str> = Vec::new();
        for name in removed {
            let Some(entry) = self.entries.remove(name.as_str()) else { continue };
            if entry.active.is_some() {
                gone.push(name);
            }
            let versions = entry.active.into_iter().chain(entry.warming.map(|(version, _)| version));
            versions.for_each(|version| version.wanted.release(&mut world.ground));
        }
        for (name, error) in self.serve_ready(&gone, world) {
            match added.iter().find(|resource| *resource.name == *name) {
                Some(resource) => refused.push(self.refuse(resource, &[Problem::new("address", error)])),
                None => tracing::error!(listener = &*name, "{error}"),
            }
        }
        refused
    }

    /// Lets listeners serve whose needs are met now.
    pub(super) fn advance(&mut self, world: &mut World<'_>) {
        for (name, error) in self.serve_ready(&[], world) {
            tracing::error!(listener = &*name, "{error}");
        }
    }

    fn prepare(
        &mut self,
        resource: &Resource,
        stream: StreamId,
        world: &mut World<'_>,
    ) -> Result<(), Rejection> {
        let name = resource.name.as_str();
        if let Some(entry) = self.entries.get_mut(name) {
            let newest = entry.warming.as_mut().map(|(version, _)| version).or(entry.active.as_mut());
            if let Some(newest) = newest.filter(|newest| newest.stored.is(resource)) {
                newest.stored.confirm(resource);
                entry.refused = None;
                return Ok(());
            }
        }
        let compiled = match self.compiler.listener(&resource.body, &|name| world.clusters.knows(name)) {
            Ok(compiled) if *compiled.name == *name => compiled,
            Ok(compiled) => {
                let message = format!("the resource is called {name:?} and the listener {:?}", compiled.name);
                return Err(self.refuse(resource, &[Problem::new("name", message)]));
            }
            Err(problems) => return Err(self.refuse(resource, &problems)),
        };
        world.ground.effects.warn(name, compiled.warnings);
        let wanted = Wanted::ask(&compiled.needs, Some(stream), &mut world.ground);
        let version = Version { stored: Stored::new(resource), wanted };
        let entry = self.entries.entry(compiled.name).or_default();
        entry.refused = None;
        if let Some((superseded, _)) = entry.warming.replace((version, compiled.value)) {
            superseded.wanted.release(&mut world.ground);
        }
        Ok(())
    }

    fn refuse(&mut self, resource: &Resource, problems: &[Problem]) -> Rejection {
        let refused = Refused::new(resource, problems);
        let rejection = refused.rejection(&resource.name);
        self.entries.entry(resource.name.as_str().into()).or_default().refused = Some(refused);
        self.forget_refused();
        rejection
    }

    /// Forgets the oldest of those that were never good, so that names that never come again leave
    /// nothing.
    fn forget_refused(&mut self) {
        let never_good = |entry: &Entry| entry.active.is_none() && entry.warming.is_none();
        let mut refused: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| never_good(entry))
            .map(|(name, entry)| (entry.refused.as_ref().map(|refused| refused.stored.updated), name.clone()))
            .collect();
        if refused.len() <= MAX_NEVER_GOOD {
            return;
        }
        refused.sort();
        for (_, name) in refused.iter().take(refused.len() - MAX_NEVER_GOOD) {
            self.entries.remove(name);
        }
    }

    /// Serves warming versions if all they need is there, in place of what is `gone`. Says which could
    /// not be served and why.
    fn serve_ready(&mut self, gone: &[&str], world: &mut World<'_>) -> Vec<(Arc<str>, String)> {
        let (mut versions, mut ready) = (Vec::new(), Vec::new());
        for (name, entry) in &mut self.entries {
            // One that serves is not replaced by one whose routes do not exist.
            let replaces = entry.active.is_some();
            let is_ready = |(version, _): &mut (Version, Listener)| {
                version.wanted.is_met(replaces, world.ground.scopes, world.ground.routes, world.ground.pieces)
            };
            if let Some((version, listener)) = entry.warming.take_if(is_ready) {
                versions.push((name.clone(), version));
                ready.push(listener);
            }
        }
        if ready.is_empty() && gone.is_empty() {
            return Vec::new();
        }
        let mut failed = Vec::new();
        for ((name, version), result) in versions.into_iter().zip(world.serving.update(gone, ready)) {
            let superseded = match result {
                Ok(()) => self.entries.entry(name).or_default().active.replace(version),
                Err(error) => {
                    failed.push((name, error));
                    Some(version)
                }
            };
            if let Some(version) = superseded {
                version.wanted.release(&mut world.ground);
            }
        }
        failed
    }

    /// Whether no listener waits for its first route table.
    pub(super) fn is_warm(&self) -> bool {
        self.entries.values().all(|entry| entry.active.is_some() || entry.warming.is_none())
    }

    /// How many wait.
    pub(super) fn warming(&self) -> usize {
        self.entries.values().filter(|entry| entry.warming.is_some()).count()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter()
    }
}

/// What a listener's update touches besides the listeners.
pub(super) struct World<'a> {
    pub(super) clusters: &'a Clusters,
    pub(super) ground: Ground<'a>,
    pub(super) serving: &'a mut dyn Serving,
}
