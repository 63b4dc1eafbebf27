//! Listeners: LDS.
//!
//! In: encoded listeners. Out: listeners handed to whoever serves them once the route tables that they
//! need are there, and verdicts. A listener that serves is replaced when its successor can.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_control_api::client::{Rejection, Resource};

use super::clusters::Clusters;
use super::effects::{Effects, RDS};
use super::resource::{Refused, Stored};
use super::routes::{RouteKey, Routes};
use super::sources::{Sources, StreamId};
use super::Serving;
use crate::config::compile::resource::{Compiler, Needs};
use crate::config::listener::Listener;
use crate::config::Problem;

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
    needs: Vec<RouteKey>,
}

impl Listeners {
    pub(super) fn new(compiler: Arc<Compiler>) -> Self {
        Self { compiler, entries: HashMap::new() }
    }

    /// A listener that came.
    pub(super) fn update(
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
        if let Err(error) = world.serving.check(&compiled.value) {
            return Err(self.refuse(resource, &[Problem::new("address", error)]));
        }
        world.effects.warn(name, compiled.warnings);
        let needs = want(&compiled.needs, stream, world);
        let version = Version { stored: Stored::new(resource), needs };
        let entry = self.entries.entry(compiled.name).or_default();
        let superseded = entry.warming.replace((version, compiled.value));
        entry.refused = None;
        if let Some((version, _)) = superseded {
            version.needs.iter().for_each(|key| world.routes.release(key, world.effects));
        }
        match self.advance(name, world) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refuse(resource, &[Problem::new("address", error)])),
        }
    }

    fn refuse(&mut self, resource: &Resource, problems: &[Problem]) -> Rejection {
        let refused = Refused::new(resource, problems);
        let rejection = refused.rejection(&resource.name);
        self.entries.entry(resource.name.as_str().into()).or_default().refused = Some(refused);
        rejection
    }

    /// Lets listeners serve whose needs are met now.
    pub(super) fn advance_all(&mut self, world: &mut World<'_>) {
        let warming: Vec<Arc<str>> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.warming.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in warming {
            if let Err(error) = self.advance(&name, world) {
                tracing::error!(listener = &*name, "{error}");
            }
        }
    }

    /// Serves the warming version if all it needs is there.
    fn advance(&mut self, name: &str, world: &mut World<'_>) -> Result<(), String> {
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        let Some((version, _)) = &entry.warming else { return Ok(()) };
        if !version.needs.iter().all(|key| world.routes.is_answered(key)) {
            return Ok(());
        }
        let Some((version, listener)) = entry.warming.take() else { return Ok(()) };
        if let Err(error) = world.serving.apply(listener) {
            version.needs.iter().for_each(|key| world.routes.release(key, world.effects));
            return Err(error);
        }
        if let Some(old) = entry.active.replace(version) {
            old.needs.iter().for_each(|key| world.routes.release(key, world.effects));
        }
        Ok(())
    }

    /// The control plane took a listener away.
    pub(super) fn remove(&mut self, name: &str, world: &mut World<'_>) {
        let Some(entry) = self.entries.remove(name) else { return };
        if entry.active.is_some() {
            world.serving.remove(name);
        }
        let versions = entry.active.into_iter().chain(entry.warming.map(|(version, _)| version));
        for key in versions.flat_map(|version| version.needs) {
            world.routes.release(&key, world.effects);
        }
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
    pub(super) routes: &'a mut Routes,
    pub(super) sources: &'a mut Sources,
    pub(super) effects: &'a mut Effects,
    pub(super) serving: &'a mut dyn Serving,
}

fn want(needs: &Needs, stream: StreamId, world: &mut World<'_>) -> Vec<RouteKey> {
    let mut keys = Vec::new();
    for need in &needs.route_tables {
        let key = (world.sources.stream(&need.source.source, Some(stream), RDS), need.name.clone());
        world.routes.want(&key, need, world.effects);
        keys.push(key);
    }
    keys
}
