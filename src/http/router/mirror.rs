//! Copies of requests for other clusters (`request_mirror_policies`).

use super::shadow;
use crate::config::route::{Chosen, Forward};
use crate::config::{Known, RequestView};
use crate::http::exchange::Exchange;

/// Sends a copy of the request where the route's mirrors say; its answers are thrown away.
pub(super) fn mirror(ex: &Exchange<'_>, forward: &Forward) {
    let Some(request) = &ex.request else { return };
    for mirror in forward.mirrors.iter() {
        if !mirror.fraction.holds(ex.worker.random()) {
            continue;
        }
        let slot = match mirror.cluster.choose(request) {
            Chosen::Slot(slot) => Some(slot.clone()),
            Chosen::Named(name) => name
                .and_then(|name| std::str::from_utf8(name).ok())
                .and_then(|name| ex.worker.clusters.find(name)),
        };
        let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) else { continue };
        // A body would have to be held until its end; only requests without one are mirrored so far.
        if !ex.upload.is_received() {
            cluster.cluster.stats().retry_or_shadow_abandoned.increment(1);
            continue;
        }
        let mut copy = request.clone();
        if mirror.append_shadow_suffix {
            let authority = shadow_authority(copy.authority());
            copy.set_authority(&authority);
        }
        copy.fields.set_known(Known::XEnvoyInternal, b"true");
        let worker = ex.worker.clone();
        tokio::task::spawn_local(async move {
            let _ = shadow::send(&worker, &cluster, copy).await;
        });
    }
}

/// `host-shadow[:port]`.
fn shadow_authority(authority: &[u8]) -> Vec<u8> {
    let colon = authority.iter().rposition(|byte| *byte == b':').unwrap_or(authority.len());
    let (host, port) = authority.split_at(colon);
    [host, b"-shadow", port].concat()
}
