//! What a try tells about its host's health.

use std::sync::Arc;

use super::attempt::Failed;
use super::deadlines::Expired;
use super::{Attempts, Failure};
use crate::config::{Cluster, Host, Known, RequestView};
use crate::http::exchange::Exchange;
use crate::http::grpc;
use crate::http::head::{RequestHead, ResponseHead};
use crate::upstream::health::{ClusterHealth, Heard};
use crate::upstream::outlier::Outcome;
use crate::upstream::UpstreamError;

/// The head of an answer from `host` to `request` has come.
pub(super) fn heard(cluster: &Arc<Cluster>, host: &Arc<Host>, request: &RequestHead, head: &ResponseHead) {
    if let Some(health) = &cluster.health {
        tell(health, cluster, host, request, head);
    }
}

fn tell(
    health: &ClusterHealth,
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    request: &RequestHead,
    head: &ResponseHead,
) {
    let status = head.fields.get(Known::GrpcStatus).filter(|_| request.is_grpc());
    let status = status.and_then(grpc::http_status_of).unwrap_or(head.status);
    let heard = Heard {
        degraded: head.fields.has(Known::XEnvoyDegraded),
        immediate_fail: head.fields.has(Known::XEnvoyImmediateHealthCheckFail),
    };
    health.heard(cluster, host, status, heard);
}

impl Attempts<'_> {
    /// The head of an answer has come, whether or not the request is tried again for it.
    #[inline]
    pub(super) fn heard(&self, ex: &Exchange<'_>, head: &ResponseHead) {
        if let Some(health) = &self.cluster.cluster.health {
            self.tell(health, ex, head);
        }
    }

    fn tell(&self, health: &ClusterHealth, ex: &Exchange<'_>, head: &ResponseHead) {
        if let (Some(host), Some(request)) = (&ex.info.host, &ex.request) {
            tell(health, &self.cluster.cluster, host, request, head);
        }
    }

    /// A try failed, whether or not another follows.
    #[inline]
    pub(super) fn failed(&self, ex: &Exchange<'_>, failed: &Failed) {
        if self.cluster.cluster.health.is_some() {
            self.report_failure(ex, &failed.failure, failed.started);
        }
    }

    /// An answer broke off. That there was a connection has been told with its head.
    pub(super) fn broke_off(&self, ex: &Exchange<'_>, failure: &Failure) {
        // A route's timeout that strikes after the head says nothing of the host.
        if !matches!(failure, Failure::Timeout(Expired::Route | Expired::PerTry)) {
            self.report_failure(ex, failure, false);
        }
    }

    #[cold]
    fn report_failure(&self, ex: &Exchange<'_>, failure: &Failure, connected: bool) {
        let outcome = match failure {
            Failure::Upstream(UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. })
            | Failure::Closed
            | Failure::Protocol
            | Failure::Reset(_) => Outcome::Failed { connected },
            // Before there is a connection, no host has been too slow.
            Failure::Timeout(Expired::Route | Expired::PerTry) if !connected => return,
            Failure::Timeout(Expired::Route | Expired::PerTry | Expired::PerTryIdle) => {
                Outcome::TimedOut { connected, status: self.deadlines.late_status }
            }
            _ => return,
        };
        if let (Some(health), Some(host)) = (&self.cluster.cluster.health, &ex.info.host) {
            health.report(&self.cluster.cluster, host, outcome);
        }
    }
}
