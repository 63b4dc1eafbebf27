//! What follows from a change of configuration and is done by others: subscriptions and lookups.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::client::type_url;

use super::sources::StreamId;
use crate::config::{Cluster, Problem};

pub(super) const CDS: &str = type_url::CLUSTER;
pub(super) const EDS: &str = type_url::ENDPOINTS;
pub(super) const LDS: &str = type_url::LISTENER;
pub(super) const SRDS: &str = type_url::SCOPED_ROUTE;
pub(super) const RDS: &str = type_url::ROUTE;
pub(super) const VHDS: &str = type_url::VIRTUAL_HOST;
pub(super) const ECDS: &str = type_url::EXTENSION;
pub(super) const RTDS: &str = type_url::RUNTIME;

/// Kinds of warnings remembered.
const MAX_WARNED: usize = 1024;

/// One thing to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Ask for everything of a type.
    SubscribeAll { stream: StreamId, type_url: &'static str, timeout: Option<Duration> },
    /// Ask for a resource.
    Subscribe { stream: StreamId, type_url: &'static str, name: Arc<str>, timeout: Option<Duration> },
    /// Ask for everything of a type no longer.
    UnsubscribeAll { stream: StreamId, type_url: &'static str },
    /// Ask for it no longer.
    Unsubscribe { stream: StreamId, type_url: &'static str, name: Arc<str> },
    /// Follow the names of a cluster, and say when all were answered.
    FollowDns { name: Arc<str>, generation: u64, cluster: Arc<Cluster> },
    /// Follow them no longer.
    StopDns { generation: u64 },
}

/// What is to be done after an update, in order.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) list: Vec<Effect>,
    /// Kinds of warnings that were given.
    warned: HashSet<(String, String)>,
}

impl Effects {
    pub(super) fn subscribe(
        &mut self,
        stream: StreamId,
        type_url: &'static str,
        name: &Arc<str>,
        timeout: Option<Duration>,
    ) {
        self.list.push(Effect::Subscribe { stream, type_url, name: name.clone(), timeout });
    }

    pub(super) fn subscribe_all(
        &mut self,
        stream: StreamId,
        type_url: &'static str,
        timeout: Option<Duration>,
    ) {
        self.list.push(Effect::SubscribeAll { stream, type_url, timeout });
    }

    pub(super) fn unsubscribe_all(&mut self, stream: StreamId, type_url: &'static str) {
        self.list.push(Effect::UnsubscribeAll { stream, type_url });
    }

    pub(super) fn unsubscribe(&mut self, stream: StreamId, type_url: &'static str, name: &Arc<str>) {
        self.list.push(Effect::Unsubscribe { stream, type_url, name: name.clone() });
    }

    pub(super) fn follow_dns(&mut self, name: &str, generation: u64, cluster: Arc<Cluster>) {
        self.list.push(Effect::FollowDns { name: name.into(), generation, cluster });
    }

    pub(super) fn stop_dns(&mut self, _name: &str, generation: u64) {
        self.list.push(Effect::StopDns { generation });
    }

    /// Logs what was accepted without effect, each kind once however many resources have it.
    pub(super) fn warn(&mut self, resource: &str, warnings: Vec<Problem>) {
        for warning in warnings {
            let field = warning.path.rsplit('.').next().unwrap_or_default();
            let field = field.split('[').next().unwrap_or_default().to_owned();
            // Texts may hold names, of which a control plane may invent ever more.
            if self.warned.len() >= MAX_WARNED {
                self.warned.clear();
            }
            if self.warned.insert((field, warning.message.clone())) {
                tracing::warn!(resource, "{warning}");
            }
        }
    }
}
