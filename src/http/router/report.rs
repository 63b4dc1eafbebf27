//! Load reports of upstreams (ORCA) in the heads and trailers of responses.

use std::sync::Arc;

use super::Attempts;
use crate::config::{Cluster, Host, Known};
use crate::http::fields::Fields;
use crate::upstream::balancing::clock;
use crate::upstream::orca::{self, Wanted};

/// Heeds the report among `fields`, if there is one: for the control plane what `metrics` wants, for picks what
/// `weights` wants. True if there was one.
fn heed(metrics: Option<&Wanted>, weights: Option<&Wanted>, host: &Host, fields: &Fields) -> bool {
    let (plain, binary) = (fields.get(Known::EndpointLoadMetrics), fields.get(Known::EndpointLoadMetricsBin));
    // What cannot be read is as if it were not there.
    let Ok(Some(report)) = orca::report::read(plain, binary) else { return false };
    orca::heed(&report, metrics, weights, &host.shared, clock());
    true
}

/// Fields of a response to a copy of a request have come from `host`.
pub(super) fn heard(cluster: &Cluster, host: &Host, fields: &Fields) {
    if let Some(wanted) = cluster.orca.as_deref() {
        heed(Some(wanted), Some(wanted), host, fields);
    }
}

impl Attempts<'_> {
    /// Fields of a response have come, its head's or its trailers. The first report of a request counts.
    #[inline]
    pub(super) fn note_load(&mut self, host: Option<&Arc<Host>>, fields: &Fields) {
        let (metrics, weights) = (&self.cluster.cluster.orca, &self.upstream().orca);
        if metrics.is_none() && weights.is_none() || self.reported {
            return;
        }
        if let Some(host) = host {
            self.reported = heed(metrics.as_deref(), weights.as_deref(), host, fields);
        }
    }
}
