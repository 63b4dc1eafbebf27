//! Resources in the form they came in, and clusters that sleep in it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use outrigger_control_api::client::{Rejection, Resource};
use xxhash_rust::xxh64::xxh64;

use crate::config::compile::resource::Compiler;
use crate::config::slot::Dormant;
use crate::config::{Cluster, Problem};

/// Problems of one resource that are told to the control plane; more are counted.
const MAX_TOLD: usize = 8;
/// Larger resources are not kept when they are refused: the admin page shows none of their content.
const MAX_REFUSED_BYTES: usize = 256 << 10;

/// A resource as the control plane sent it: a copy of its own, so that it does not keep the response
/// that it came with.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) body: Arc<[u8]>,
    pub(super) hash: u64,
    pub(super) version: Arc<str>,
    /// When it came.
    pub(super) updated: SystemTime,
}

impl Stored {
    pub(super) fn new(resource: &Resource) -> Self {
        Self {
            body: Arc::from(&*resource.body),
            hash: xxh64(&resource.body, 0),
            version: Arc::from(resource.version.as_str()),
            updated: SystemTime::now(),
        }
    }

    /// For what the bootstrap holds.
    pub(super) fn none() -> Self {
        Self { body: Arc::from([]), hash: 0, version: Arc::from(""), updated: SystemTime::now() }
    }

    /// Whether `resource` has the same bytes. Told without decoding them.
    pub(super) fn is(&self, resource: &Resource) -> bool {
        self.body.len() == resource.body.len() && self.hash == xxh64(&resource.body, 0)
    }

    /// The same content came again.
    pub(super) fn confirm(&mut self, resource: &Resource) {
        if *self.version != *resource.version {
            self.version = Arc::from(resource.version.as_str());
        }
    }
}

/// Why a resource is refused, with what was refused.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) stored: Stored,
    pub(super) details: String,
}

impl Refused {
    pub(super) fn new(resource: &Resource, problems: &[Problem]) -> Self {
        let mut stored = Stored::new(resource);
        if stored.body.len() > MAX_REFUSED_BYTES {
            stored.body = Arc::from([]);
        }
        Self { stored, details: text(problems) }
    }

    pub(super) fn rejection(&self, name: &str) -> Rejection {
        Rejection { name: name.to_owned(), message: self.details.clone() }
    }
}

/// All problems in one line.
fn text(problems: &[Problem]) -> String {
    let mut told: Vec<String> = problems.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if problems.len() > MAX_TOLD {
        told.push(format!("and {} more problems", problems.len() - MAX_TOLD));
    }
    told.join("; ")
}

/// The endpoints that EDS gave for one name; every cluster that asks for the name shares them.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    body: Mutex<Option<Arc<[u8]>>>,
}

impl Assignment {
    pub(super) fn set(&self, body: Option<Arc<[u8]>>) {
        *self.body.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    pub(super) fn get(&self) -> Option<Arc<[u8]>> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A cluster in its compact form, with the place where its endpoints are found when it wakes.
pub(super) struct SleepingCluster {
    pub(super) compiler: Arc<Compiler>,
    pub(super) body: Arc<[u8]>,
    pub(super) assignment: Option<Arc<Assignment>>,
}

impl Dormant<Cluster> for SleepingCluster {
    fn wake(&self) -> Option<Arc<Cluster>> {
        let compiled = self.compiler.cluster(&self.body).map_err(|problems| {
            // It compiled when it came, so a file that it names has gone.
            tracing::error!("a cluster cannot be compiled any more: {}", text(&problems));
        });
        let cluster = compiled.ok()?.value;
        if let Some(body) = self.assignment.as_ref().and_then(|assignment| assignment.get()) {
            if let Ok(hosts) = self.compiler.hosts(&cluster, &body, &[]) {
                cluster.hosts.store(hosts);
            }
        }
        crate::upstream::dns::announce_members(&cluster);
        Some(Arc::new(cluster))
    }
}
