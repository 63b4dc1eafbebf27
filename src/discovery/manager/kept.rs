//! What is in force, for the next start.

use std::sync::Arc;

use outrigger_control_api::client::{warming_order, Cause, Change, Rejection, Resource, Update};

use super::Manager;
use crate::discovery::effects::{CDS, EDS, LDS, RDS, SDS, SRDS, VHDS};
use crate::discovery::last_good::{Group, Kept};
use crate::discovery::resource::Stored;
use crate::discovery::sources::{Origin, StreamId};
use crate::discovery::Serving;

impl Manager {
    /// Serves what an earlier run held, and says what is held of each type.
    pub(in crate::discovery) fn restore(
        &mut self,
        mut groups: Vec<Group>,
        serving: &mut dyn Serving,
    ) -> Vec<(StreamId, Change)> {
        groups.sort_by_key(|group| warming_order(&group.type_url));
        let mut held = Vec::new();
        let mut resources = 0;
        for group in groups {
            // The clusters and listeners before it have named its stream.
            let Some(stream) = self.sources.labelled(&group.origin) else { continue };
            let kept = |kept: Kept| Resource {
                name: kept.name.to_string(),
                version: kept.version.to_string(),
                aliases: Vec::new(),
                body: bytes::Bytes::copy_from_slice(&kept.body),
            };
            let Group { type_url, version, resources: kept_resources, .. } = group;
            let update = Update {
                id: 0,
                type_url,
                version,
                cause: Cause::Response,
                added: kept_resources.into_iter().map(kept).collect(),
                removed: Vec::new(),
                flawed: false,
                received: None,
            };
            let refused = self.update(stream, &update, serving);
            let Update { type_url, version, added, .. } = update;
            for Rejection { name, message } in &refused {
                tracing::error!(resource = name, "no longer usable: {message}");
            }
            let good = |resource: &&Resource| !refused.iter().any(|refused| refused.name == resource.name);
            let names: Vec<_> = added
                .iter()
                .filter(good)
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect();
            resources += names.len();
            held.push((stream, Change::Restore { type_url, version, resources: names }));
        }
        if resources > 0 {
            tracing::warn!("serving {resources} resources of the last good configuration until the control plane is heard");
            self.restored = true;
            self.answer_all();
            self.initialized = true;
        }
        held
    }

    /// Everything in force, by stream and type.
    pub(in crate::discovery) fn in_force(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut put = |stream: StreamId, type_url: &str, version: &str, name: &Arc<str>, stored: &Stored| {
            let Some(origin) = self.sources.origin(stream).and_then(Origin::label) else { return };
            let kept =
                Kept { name: name.clone(), version: stored.version.clone(), body: stored.body.clone() };
            match groups.iter_mut().find(|group| group.origin == origin && group.type_url == type_url) {
                Some(group) => group.resources.push(kept),
                None => groups.push(Group {
                    origin,
                    type_url: type_url.to_owned(),
                    version: version.to_owned(),
                    resources: vec![kept],
                }),
            }
        };
        if let Some(cds) = &self.cds {
            for (name, entry) in self.clusters.entries() {
                if let Some(version) = &entry.active {
                    put(cds.stream, CDS, &cds.version, name, &version.stored);
                }
            }
        }
        for (name, stream, endpoints) in self.clusters.endpoints() {
            if let Some(stored) = &endpoints.stored {
                put(stream, EDS, &stored.version, name, stored);
            }
        }
        if let Some(lds) = &self.lds {
            for (name, entry) in self.listeners.entries() {
                if let Some(version) = &entry.active {
                    put(lds.stream, LDS, &lds.version, name, &version.stored);
                }
            }
        }
        for (stream, feed) in self.scopes.feeds() {
            for (name, held) in &feed.held {
                put(stream, SRDS, &feed.version, name, &held.stored);
            }
        }
        for (name, stream, table) in self.routes.tables() {
            if let Some(stored) = &table.stored {
                put(stream, RDS, &stored.version, name, stored);
            }
        }
        for ((stream, type_url, name), piece) in self.pieces.entries() {
            // What is secret is not written to a disk.
            if let Some(stored) = piece.stored.as_ref().filter(|_| *type_url != SDS) {
                put(*stream, type_url, &stored.version, name, stored);
            }
        }
        for (stream, feed) in self.routes.host_feeds() {
            for (name, stored) in &feed.held {
                put(stream, VHDS, &feed.version, name, stored);
            }
        }
        groups
    }
}
