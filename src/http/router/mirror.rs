//! Copies of requests for other clusters (`request_mirror_policies`).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::shadow::{self, Feed};
use super::upload::Copies;
use super::Deadlines;
use crate::config::route::{Chosen, Forward, MirrorHost};
use crate::config::{Known, RequestView};
use crate::http::exchange::Exchange;
use crate::http::trace::mirror::Mirrored;
use crate::http::{manager, trace};

/// Without any timeout, a mirror that has not answered so long after its request is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends a copy of the request where the route's mirrors say; its answers are thrown away. A body
/// that is not there yet follows by way of `copies`.
pub(super) fn mirror(
    ex: &Exchange<'_>,
    forward: &Forward,
    deadlines: &Deadlines,
    copies: &mut Copies,
    body: Option<&Bytes>,
) {
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
        let mut copy = request.clone();
        if let Some(changes) = &mirror.headers {
            changes.change_request(&mut copy, &ex.info);
        }
        match &mirror.host {
            MirrorHost::Suffixed => {
                let authority = shadow_authority(copy.authority());
                copy.set_authority(&authority);
            }
            MirrorHost::Kept => {}
            MirrorHost::Literal(host) => copy.set_authority(host),
        }
        copy.fields.set_known(Known::XEnvoyInternal, b"true");
        // It comes from this machine.
        manager::append_forwarded_for(&mut copy, ex.worker.own_address.as_bytes());
        let span = trace::mirror::begin(ex, &mut copy, mirror.sampled);
        let feed = Rc::new(Feed::default());
        // A filter may have waited for all of it, or for its beginning.
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            feed.push(body.clone(), usize::MAX);
        }
        if ex.upload.is_passed() {
            feed.end(ex.upload.received_trailers.clone());
        } else {
            copies.add_mirror(feed.clone());
        }
        let shadow = shadow::Shadow {
            worker: ex.worker.clone(),
            request: copy,
            chunked: ex.upload.is_chunked(),
            trailers: (ex.down.client.is_http2() || ex.manager.http1.enable_trailers)
                && cluster.cluster.http.http1.enable_trailers,
            cluster,
            span,
            said: Mirrored::default(),
            feed,
            patience: deadlines.route_timeout.or(ex.manager.timeouts.stream_idle).unwrap_or(PATIENCE),
        };
        tokio::task::spawn_local(shadow.send());
    }
}

/// `host-shadow[:port]`.
fn shadow_authority(authority: &[u8]) -> Vec<u8> {
    let port = authority
        .iter()
        .rposition(|byte| *byte == b':')
        .filter(|colon| authority.get(*colon..).is_some_and(|port| !port.contains(&b']')));
    let (host, port) = authority.split_at(port.unwrap_or(authority.len()));
    [host, b"-shadow", port].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_stands_before_the_port() {
        for (authority, expected) in [
            ("a.test", "a.test-shadow"),
            ("a.test:80", "a.test-shadow:80"),
            ("[::1]", "[::1]-shadow"),
            ("[::1]:80", "[::1]-shadow:80"),
        ] {
            assert_eq!(shadow_authority(authority.as_bytes()), expected.as_bytes());
        }
    }
}
